"""What benchmarks leave behind: the JSON line, and the file that `--save` writes."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common
from benchmarks.__main__ import names
from benchmarks.common import arguments, machine, report

ROOT = Path(common.__file__).parents[1]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "benchmarks" / "results"
    monkeypatch.setattr(common, "RESULTS", folder)
    return folder


def test_a_result_is_printed_and_only_saved_when_asked(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report({"benchmark": "pace", "ratio": np.float32(1.5)})
    assert json.loads(capsys.readouterr().out)["ratio"] == 1.5
    assert not results.exists()


def test_a_saved_result_names_machine_command_and_day(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pace.py", "--full", "--save"])
    report({"benchmark": "pace", "ratio": 1.5}, save=True)
    saved = json.loads((results / "pace.json").read_text())
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key: saved[key] for key in printed} == printed
    assert saved["command"] == "python -m benchmarks.pace --full --save"
    assert len(saved["day"]) == len("2026-11-25")
    assert saved["machine"]["torch"]
    assert saved["machine"]["cores"] >= 1


def test_the_commit_is_the_checkout_s_and_saved_results_do_not_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "pace.json").write_text("{}")
    (tmp_path / "code.py").write_text("one = 1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
    monkeypatch.setattr(common, "RESULTS", folder)
    (folder / "pace.json").write_text('{"ratio": 2}')
    assert machine()["commit"] == head.stdout.strip()
    (tmp_path / "code.py").write_text("one = 2")
    assert machine()["commit"] == head.stdout.strip() + "+"


def test_a_smoke_run_is_not_saved(capsys: pytest.CaptureFixture[str]) -> None:
    options = arguments("A benchmark.")
    options.add_argument("--smoke", action="store_true")
    with pytest.raises(SystemExit):
        options.parse_args(["--smoke", "--save"])
    assert "measures nothing worth keeping" in capsys.readouterr().err


@pytest.mark.parametrize("name", names())
def test_every_benchmark_can_save(name: str) -> None:
    source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert "arguments(__doc__)" in source, "take the options from benchmarks.common.arguments"
    assert "save=" in source, "pass --save on to benchmarks.common.report"
    assert f'"benchmark": "{name}"' in source, "name the benchmark in its result"
