"""`eyas ablate`: a tiny real study, killed half-way and continued; and studies that are refused before they begin."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import yaml

from embedding.config import CONFIGS, dump_config, load_config
from embedding.files import fingerprint, stamps, write_json, write_text
from embedding.layout import resolve_model
from launch.ablate import Ablation, Run, StudyConfig, mixed
from launch.engine import Engine
from launch.prepared import prepared_facts
from launch.scoring import suite_facts
from launch.workspace import Workspace
from tests.launch.conftest import RECIPE, eyas, questions_and_answers, write_rows
from train.plan import own_losses

ROOT = Path(__file__).parents[2]
STUDY = {
    "name": "rates",
    "base": "mine.yaml",
    "seeds": [0],
    "variants": {"base": {}, "high": {"stages.0.learning_rate": 1e-2}},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_rows(tmp_path / "faq.jsonl", questions_and_answers())
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(**changes: object) -> None:
    Path("study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))


@pytest.mark.timeout(900)
def test_a_study_killed_half_way_goes_on_and_ends(place: Path) -> None:
    words = [sys.executable, "-m", "launch", "ablate", "study.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    second = place / "runs/rates/high-s0/run.json"
    until = time.monotonic() + 600
    try:
        while not second.is_file():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the study and the run it is at, both at once
        process.wait()
    first = place / "runs/rates/base-s0/scorecard.json"
    written = first.stat().st_mtime_ns
    result = eyas("ablate", "study.yaml")
    assert result.exit_code == 0, result.output
    assert "2 runs in runs/rates: 1 finished before" in result.stdout
    assert first.stat().st_mtime_ns == written
    # data and teacher vectors were computed once: the second run found them
    assert "embed  skipped, finished before" in (place / "runs/rates/output/high-s0.log").read_text()
    lines = list(csv.DictReader((place / "runs/rates/study.csv").open()))
    assert [line["variant"] for line in lines] == ["base", "high"]
    assert "against the baseline" in (place / "runs/rates/study.md").read_text()
    assert "<svg" in (place / "runs/rates/study.html").read_text()
    again = eyas("ablate", "study.yaml")
    assert "2 finished before" in again.stdout
    with (place / "faq.jsonl").open("a") as file:
        file.write('{"question": "What does a hawk eat?", "answer": "Mice."}\n')
    assert all("before its data changed" in run.lacks for run in Ablation(Path("study.yaml"), print).runs)
    (place / "mine.yaml").write_text(RECIPE.replace("steps: 2", "steps: 1"))
    assert all("from another recipe" in run.lacks for run in Ablation(Path("study.yaml"), print).runs)


def finish(run: Run, held_out: Path = Path("held-out")) -> None:
    """Leave behind what a study looks at in a finished run."""
    recipe, steps = run.recipe, run.folder / "steps"
    inputs = {"data": fingerprint(prepared_facts(recipe)), **Workspace(recipe).start}
    suite = suite_facts(recipe.suite, recipe.suite.folder or held_out)
    own = {"own": own_losses(recipe)} if own_losses(recipe) else {}
    write_json(steps / "export.json", {"made_from": {"training": {"inputs": inputs, **own}}})
    if recipe.mine and recipe.mine.model:
        write_json(steps / "mine.json", {"made_from": {"model": stamps(resolve_model(recipe.mine.model))}})
    write_json(steps / "evaluate.json", {"made_from": {"suite": suite}})
    write_json(run.folder / "scorecard.json", {"means": {"task_type": {"student": 0.5}, "retention": 0.9}})
    write_json(run.folder / "run.json", {"state": "done"})
    write_text(run.folder / "config.yaml", dump_config(recipe))


def test_a_run_that_failed_on_the_cluster_is_shown_and_tried_again_by_the_call_after(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def submit(name: str, commands: Sequence[Sequence[str]], folder: Path, *_: object) -> str:
        sent.append(len(commands))
        write_json(folder / "job.json", {"jobs": ["7"], "submitted": "2026-01-01 10:00:00"})
        return "7"

    monkeypatch.setattr("launch.ablate.check_cluster", lambda engine: None)
    monkeypatch.setattr("launch.ablate.queued", lambda folder: "")
    monkeypatch.setattr("launch.ablate.submit_array", submit)

    def call() -> tuple[bool, Ablation]:
        study = Ablation(Path("study.yaml"), print)
        return study.start(Engine(on="slurm", procs=1), 1), study

    assert call()[0] is False
    base, high = Ablation(Path("study.yaml"), print).runs
    finish(base)
    record = {"state": "failed", "error": "out of memory", "ended": "2026-01-01 09:59:59"}
    write_json(high.folder / "run.json", record)
    assert call()[0] is False, "that was before the array"
    write_json(high.folder / "run.json", record | {"ended": "2026-01-01 11:00:00"})
    shown, study = call()
    assert shown
    assert study.failed == {"high": {0: f"failed: out of memory ({high.folder})"}}
    assert call()[0] is False
    assert sent == [2, 1, 1]
    (place / "mine.yaml").write_text(RECIPE.replace("steps: 2", "steps: 1"))
    assert call()[0] is False, "of another recipe"


def test_a_finished_run_is_not_taken_over_once_what_its_paths_hold_has_changed(place: Path) -> None:
    for folder in ("suite/sts", "start"):
        (place / folder).mkdir(parents=True)
    settings = {"suite.folder": "suite", "student.start": {"kind": "pretrained", "model": "start"}}
    write(settings=settings)
    said: list[str] = []
    study = Ablation(Path("study.yaml"), said.append)
    for run in study.runs:
        finish(run)

    def lacks() -> str:
        found = {run.lacks for run in Ablation(Path("study.yaml"), said.append).runs}
        return " | ".join(sorted(found))

    assert lacks() == ""
    texts = (place / "faq.jsonl").read_text()
    (place / "faq.jsonl").write_text(texts + texts.splitlines()[0])
    assert lacks().startswith("finished before its data changed; the same command")
    (place / "faq.jsonl").write_text(texts)
    (place / "suite/sts/notes.txt").write_text("new")
    assert lacks().startswith("finished before its suite changed")
    (place / "start/config.json").write_text("{}")
    assert lacks().startswith("finished before its suite and its student's start changed")
    assert not said, "all of it could be read"


def test_a_finished_run_is_not_taken_over_once_its_own_loss_or_its_mining_model_has_changed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "first").mkdir()
    (place / "first/config.json").write_text("{}")
    (place / "my_losses_of_a_study.py").write_text("def softer(views):\n    return views.student_nD.sum()\n")
    monkeypatch.syspath_prepend(str(place))
    losses = [{"kind": "match"}, {"kind": "own", "function": "my_losses_of_a_study:softer"}]
    write(settings={"mine": {"model": "first"}, "stages.0.losses": losses})
    for run in Ablation(Path("study.yaml"), print).runs:
        finish(run)

    def lacks() -> set[str]:
        return {run.lacks.split(";")[0] for run in Ablation(Path("study.yaml"), print).runs}

    assert lacks() == {""}
    with (place / "my_losses_of_a_study.py").open("a") as file:
        file.write("# other\n")
    assert lacks() == {"finished before its own loss changed"}
    (place / "first/config.json").write_text('{"a": 1}')
    assert lacks() == {"finished before its own loss and its mining model changed"}


def test_each_run_of_a_study_may_have_held_out_texts_of_its_own(place: Path) -> None:
    runs = Ablation(Path("study.yaml"), print).runs
    for run in runs:
        held_out = place / run.variant
        held_out.mkdir()
        (held_out / "texts").write_text(run.variant)
        finish(run, held_out)
    assert [run.lacks for run in Ablation(Path("study.yaml"), print).runs] == ["", ""]


def test_versions_that_differ_between_the_runs_of_a_study_are_said(place: Path) -> None:
    runs = Ablation(Path("study.yaml"), print).runs
    for run, torch_version in zip(runs, ("2.12.0", "2.13.0"), strict=True):
        facts = {"versions": {"torch": torch_version, "mteb": "2.0"}, "gpus": [], "git": {"eyas": {"commit": "abc"}}}
        write_json(run.folder / "environment.json", facts)
    assert mixed(runs) == ["torch: 2.12.0, 2.13.0"]
    assert mixed(runs[:1]) == []


def test_a_result_outlives_its_data_and_a_hub_that_does_not_answer(place: Path) -> None:
    hub = {"kind": "hub", "repository": "someone/questions", "query": "question", "positive": "answer"}
    write(variants={"base": {}, "online": {"data.sources": [hub | {"revision": "0" * 40}]}})
    for run in Ablation(Path("study.yaml"), print).runs:
        finish(run)
    recorded = Ablation(Path("study.yaml"), print).runs[1]
    write(variants={"base": {}, "online": {"data.sources": [hub]}})
    said: list[str] = []
    study = Ablation(Path("study.yaml"), said.append)
    write_text(recorded.folder / "config.yaml", dump_config(study.runs[1].recipe))
    (place / "faq.jsonl").unlink()
    assert [run.lacks for run in study.runs * 2] == ["", ""] * 2
    gone, offline = said
    assert "whether the data changed cannot be told, so what is finished is taken as it is: faq.jsonl: no such" in gone
    assert "someone/questions: the hub did not say which commit" in offline


@pytest.mark.timeout(900)
def test_a_study_shares_the_cores_among_its_runs_and_takes_them_with_it_when_asked_to_stop(place: Path) -> None:
    words = [sys.executable, "-m", "launch", "ablate", "study.yaml", "--jobs", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    study = psutil.Popen(words, env={**environment, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 600
    while len(runs := study.children()) < 2:
        assert study.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    assert {run.environ()["OMP_NUM_THREADS"] for run in runs} == {str(max(1, (os.cpu_count() or 1) // 2))}
    study.terminate()
    assert study.wait(timeout=120) == os.EX_TEMPFAIL
    assert not [run for run in runs if run.is_running()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {}, "b": {"stages.0.lerning_rate": 1}}}, "variant 'b': .*did you mean 'learning_rate'"),
        ({"variants": {"a": {}, "b": {"stages.7.steps": 1}}}, "variant 'b': .*not a position in a list of 1"),
        ({"variants": {"a": {}, "b": {"stages.0.steps": "many"}}}, "variant 'b': .*stages.0.steps"),
        ({"variants": {"a": {}}}, "nothing to compare"),
        ({"variants": {}, "grid": {}}, "either variants or a grid"),
        ({"grid": {"seed": [1]}}, "either variants or a grid"),
        ({"variants": {}, "grid": {"stages.0.steps": []}}, "at least one value"),
        ({"variants": {"a": {}, "b/c": {}}}, "variant 'b/c'"),
        ({"seeds": [0, 0]}, "seeds must differ"),
        ({"baseline": "c"}, "baseline 'c' is not among the variants base, high"),
        ({"base": "minee.yaml"}, "no such config file"),
        ({"sedes": [1]}, "did you mean 'seeds'"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_starts(place: Path, changes: dict[str, object], message: str) -> None:
    write(**changes)
    with pytest.raises(ValueError, match=message):
        Ablation(Path("study.yaml"), print)
    assert eyas("ablate", "study.yaml").exit_code == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--on", "locl"], "no such engine; did you mean 'local'"),
        (["--on", "locl", "--dry-run"], "no such engine; did you mean 'local'"),
        (["--on", "ray"], "a study runs --on local or --on slurm"),
        (["--on", "local", "--gpus", "99"], "--gpus 99: this machine has"),
        (["--on", "local", "--procs", "2", "--port", "29500", "--jobs", "2"], "cannot share a port"),
        (["--on", "local", "--procs", "3"], "expected a multiple of the 3 ranks"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_once_for_all_runs(place: Path, words: list[str], said: str) -> None:
    result = eyas("ablate", "study.yaml", *words)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert not Path("runs").exists()


def test_a_grid_is_every_combination(place: Path) -> None:
    write(variants={}, grid={"stages.0.learning_rate": [1e-4, 1e-3], "stages.0.batch_size": [4, 8]}, seeds=[0, 1])
    study = Ablation(Path("study.yaml"), print)
    assert len(study.runs) == 8
    assert study.baseline == "learning_rate-0.0001_batch_size-4"
    run = study.runs[-1]
    assert (run.recipe.stages[0].learning_rate, run.recipe.stages[0].batch_size, run.recipe.seed) == (1e-3, 8, 1)
    assert run.folder == Path("runs/rates/learning_rate-0.001_batch_size-8-s1")


@pytest.mark.timeout(900)
def test_a_failed_run_is_reported_and_the_others_go_on(place: Path) -> None:
    write(variants={"base": {}, "broken": {"data.sources.0.path": "nowhere.jsonl"}})
    result = eyas("ablate", "study.yaml")
    assert result.exit_code == 1
    assert "nowhere.jsonl" in result.stdout
    assert "broken" in Path("runs/rates/study.md").read_text()


def test_a_dry_run_starts_nothing(place: Path) -> None:
    result = eyas("ablate", "study.yaml", "--on", "local", "--dry-run")
    assert result.exit_code == 0
    assert "runs/rates/high-s0" in result.stdout
    assert not Path("runs").exists()


@pytest.mark.parametrize("path", sorted((CONFIGS / "ablations").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_a_valid_one(path: Path) -> None:
    assert load_config(StudyConfig, path).name == path.stem
    assert len(Ablation(path, print).runs) >= 6


def test_values_that_make_no_name_of_their_own_are_refused(place: Path) -> None:
    write(variants={}, grid={"student.template.query": ["Query: ", "Query:"], "stages.0.batch_size": [4, 8]})
    with pytest.raises(ValueError, match="differ only in signs or spaces"):
        Ablation(Path("study.yaml"), print)


def test_runs_share_the_gpus_that_were_given(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(self: Ablation, run: Run, words: list[str], environment: dict[str, str], what: str) -> None:
        seen.append(environment.get("CUDA_VISIBLE_DEVICES"))
        time.sleep(0.2)

    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(Ablation, "_process", note)
    study = Ablation(Path("study.yaml"), print)
    for given, engine, expected in [
        ("4,5,6,7", Engine(), {"4", "5"}),
        (None, Engine(), {"0", "1"}),
        ("4,5,6,7", Engine(on="local", gpus=2), {"4,5", "6,7"}),
    ]:
        seen.clear()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        study._local(study.runs, engine, 2)
        assert set(seen) == expected
    with pytest.raises(ValueError, match="--jobs 2 of --gpus 4 need 8 GPUs; here are 4"):
        study.start(Engine(on="local", gpus=4), 2)
