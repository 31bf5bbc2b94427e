"""The run folder: what it says of a run, that nothing finished is lost, and that no secret gets into it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedding.config import load_config
from embedding.files import read_json
from launch.queue import cancel_run, queued
from launch.runs import RunRecord, find_runs, git_state, hold, keep_finished, redacted, refuse_secrets, scrubbed
from tests.launch.conftest import RUN, STEPS, contents, eyas, skipped
from train.recipe import Recipe

ROOT = Path(__file__).parents[2]
SECRETS = {"HF_TOKEN": "hf_neverToBeSeenAnywhere", "SOME_API_KEY": "sk-neverToBeSeenEither"}

# ------------------------------------------------------------------------------------------------- what a folder says


def test_a_run_folder_says_what_made_it(finished: Path) -> None:
    record, environment = read_json(RUN / "run.json"), read_json(RUN / "environment.json")
    assert record["state"] == "done"
    assert record["command"][0] == "eyas"
    assert list(record["made_from"]) == STEPS
    assert all(len(fingerprint) == 16 for fingerprint in record["made_from"].values())
    if (ROOT / ".git").exists():
        assert len(environment["git"]["eyas"]["commit"]) == 40
    assert environment["versions"]["torch"]
    assert load_config(Recipe, RUN / "config.yaml").name == "tiny"
    log = (RUN / "logs" / "rank-0.log").read_text()
    assert all(f"{step}  done in" in log for step in STEPS)
    assert "\x1b" not in log
    names = {"metrics.jsonl", "checkpoints", "model", "scorecard.json", "report.html", "summary.json", "timings.json"}
    assert names <= {path.name for path in RUN.iterdir()}


def test_changed_files_of_a_checkout_are_named(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        as_someone = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        subprocess.run(["git", "-C", str(tmp_path), *as_someone, *words], check=True, capture_output=True)

    names = ["README.md", "recipe.yaml"]
    git("init")
    for name in names:
        (tmp_path / name).write_text("first")
    git("add", ".")
    git("commit", "-m", "first")
    assert (git_state(tmp_path) or {})["changed"] == []
    for name in names:
        (tmp_path / name).write_text("second")
    assert (git_state(tmp_path) or {})["changed"] == names


def test_runs_are_listed_and_shown(finished: Path) -> None:
    card = read_json(RUN / "scorecard.json")
    listed = eyas("runs").stdout
    assert "tiny" in listed
    assert "done" in listed
    assert f"{card['means']['task_type']['student']:.4f}" in listed
    shown = " ".join(eyas("runs", "show", "tiny").stdout.split())
    assert read_json(RUN / "environment.json")["versions"]["torch"] in shown
    missing = eyas("runs", "show", "tinny")
    assert missing.exit_code == 2
    assert "did you mean 'tiny'" in missing.stderr
    with hold(RUN):
        assert "running" in eyas("status").stdout
    assert "nothing runs here" in eyas("status").stdout


def test_a_failed_and_a_killed_run_say_where(finished: Path) -> None:
    failed = eyas("train", "mine.yaml", "name=failed", "data.sources.0.query=qestion")
    assert failed.exit_code == 2
    record = read_json(Path("runs/failed/run.json"))
    assert (record["state"], record["step"]) == ("refused", "prepare")
    assert "no column 'qestion'" in record["error"]
    killed = record | {"state": "running", "step": "train"}  # what a process that is gone has left
    Path("runs/failed/run.json").write_text(json.dumps(killed))
    states = {run.name: run.state for run in find_runs(Path("runs"))}
    assert states == {"failed": "killed at train", "tiny": "done"}


def test_a_finished_run_is_never_overwritten(finished: Path) -> None:
    before = contents(RUN / "model")
    card, record = (RUN / "scorecard.json").read_bytes(), read_json(RUN / "run.json")
    (RUN / "job.json").write_text('{"jobs": ["4711"]}')
    again = eyas("run", "mine.yaml", "seed=1")
    (RUN / "job.json").unlink()
    assert again.exit_code == 0, again.output
    assert skipped(again) == STEPS[:2]
    assert contents(RUN / "model") != before
    assert contents(Path("runs/tiny.1/model")) == before
    assert Path("runs/tiny.1/scorecard.json").read_bytes() == card
    assert read_json(Path("runs/tiny.1/run.json")) == record
    assert read_json(RUN / "run.json")["started"] > record["started"]
    assert not Path("runs/tiny.1/job.json").exists(), "it is of the run that goes on"
    assert "the finished run is kept in runs/tiny.1" in " ".join(again.stdout.split())
    assert eyas("run", "runs/tiny.1/config.yaml", "name=tiny.1").exit_code == 0
    assert contents(Path("runs/tiny.1/model")) == before


# --------------------------------------------------------------------------------------------------- tracking, secrets


def records_of_wandb(folder: Path) -> list[dict[str, Any]]:
    """What wandb's own reader finds in an offline folder."""
    (log,) = folder.glob("offline-run-*/*.wandb")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    asked = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert asked.returncode == 0, asked.stderr
    return [json.loads(line) for line in asked.stdout.splitlines()]


@pytest.mark.timeout(600)
def test_wandb_reads_what_metrics_jsonl_holds_and_no_secret_is_in_any_file(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    result = eyas("train", "mine.yaml", "name=tracked", "tracking.wandb=true", "tracking.log_every=1")
    assert result.exit_code == 0, result.output
    records = records_of_wandb(Path("runs/tracked/wandb"))
    history = [record["history"] for record in records if record["type"] == "history"]
    lines = [json.loads(line) for line in Path("runs/tracked/metrics.jsonl").read_text().splitlines()]
    assert len(history) == len(lines) == 2
    for found, line in zip(history, lines, strict=True):
        values = _values(found)
        assert {name for name in values if not name.startswith("_")} - {"num"} == set(line) - {"step"}
        assert values["loss"] == pytest.approx(line["loss"])

    searched = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert len(searched) > 30
    for path in searched:
        data = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in data], path


def _values(history: dict[str, Any]) -> dict[str, Any]:
    """The named numbers of a history record, however the reader nests them."""
    flat: dict[str, Any] = {}
    for key, value in history.items():
        flat |= _values(value) if isinstance(value, dict) else {key: value}
    return flat


@pytest.mark.parametrize(
    "override, said",
    [
        ("teacher.parameters.api_key=sk-onTheCommandLine", "teacher.parameters.api_key: a secret in a recipe"),
        ("teacher.url=http://me:sk-onTheCommandLine@localhost:1/v1", "teacher.url: the address holds a password"),
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_written_nowhere(finished: Path, override: str, said: str) -> None:
    recipe = Path("mine.yaml").read_text().replace("teacher:\n  max_tokens: 32", "teacher:\n  kind: endpoint")
    Path("mine.yaml").write_text(recipe)
    endpoint = ["teacher.model=m", "teacher.url=http://localhost:1/v1"]
    for engine in ([], ["--on", "slurm", "--dry-run"]):
        result = eyas("embed", "mine.yaml", "name=secret", *endpoint, override, *engine)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert "sk-onTheCommandLine" not in result.output
    assert not Path("runs/secret").exists()


def test_secrets_are_taken_out_of_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert scrubbed("key 0123456789abcdef, at https://me:word@host/x") == "key …, at https://…@host/x"
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef\n")
    assert scrubbed("key 0123456789abcdef") == "key …"
    words = [
        "eyas",
        "run",
        "a.yaml",
        "teacher.parameters.api_key=sk-1",
        "student.max_tokens=32",
        "name=0123456789abcdef",
    ]
    assert redacted(words)[3:] == ["teacher.parameters.api_key=…", "student.max_tokens=32", "name=…"]
    refuse_secrets({"teacher": {"key_env": "OPENAI_API_KEY", "tokenizer": "teacher"}, "stages": [{"max_tokens": 3}]})
    assert os.environ["WANDB_API_KEY"]


def test_a_run_of_a_cluster_is_stopped_where_it_runs_now(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    (RUN / "job.json").write_text('{"jobs": ["4711"]}')
    assert queued(RUN) == "", "it is done"
    record = read_json(RUN / "run.json")
    (RUN / "run.json").write_text(json.dumps(record | {"state": "running"}))
    assert "no squeue" in queued(RUN)
    with pytest.raises(ValueError, match="run eyas cancel where they were submitted"):
        cancel_run(RUN)
    killed: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append(pid))
    monkeypatch.setattr("launch.queue.holder", lambda folder: {"pid": 12345, "host": socket.gethostname()})
    assert "asked process 12345 to stop" in cancel_run(RUN)
    assert killed == [12345]


def test_a_kept_run_has_its_own_record_whatever_came_between(finished: Path) -> None:
    first = read_json(RUN / "run.json")
    assert eyas("run", "mine.yaml", "seed=1", "student.start.keep=99").exit_code == 2
    assert read_json(RUN / "run.json")["state"] == "refused"
    assert eyas("train", "mine.yaml", "seed=1").exit_code == 0
    assert read_json(Path("runs/tiny.1/run.json")) == first
    second = read_json(RUN / "run.json")
    assert eyas("train", "mine.yaml", "seed=2").exit_code == 0
    assert read_json(Path("runs/tiny.2/run.json")) == second


def test_a_run_that_was_killed_and_went_on_is_kept_as_done(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    RunRecord(folder, ["eyas", "first"]).begin("train")  # and it is killed
    second = RunRecord(folder, ["eyas", "second"])
    second.begin("train")
    second.end("done")
    for step in ("prepare", "train"):
        later = RunRecord(folder, ["eyas", "later"])
        later.begin(step)
        if step == "prepare":
            later.end("done")
    record = read_json(keep_finished(folder) / "run.json")
    assert (record["command"], record["state"]) == (["eyas", "second"], "done")
