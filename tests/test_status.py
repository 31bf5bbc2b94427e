"""docs/status.md claims nothing that is not there: commands exist, and a benchmark's claim has its result file."""

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STATES = ("here", "GPU", "never")


class Row(NamedTuple):
    capability: str
    state: str
    command: str
    result: str
    commit: str


def read_rows(text: str) -> list[Row]:
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines]


def faults(row: Row, results: Path) -> list[str]:
    """What a row claims and cannot show."""
    found = []
    if row.state not in STATES:
        found.append(f"state {row.state!r}: expected one of {', '.join(STATES)}")
    command = row.command.strip("`")
    words = shlex.split(command) if command != "–" else []
    benchmark = next((word.removeprefix("benchmarks.") for word in words if word.startswith("benchmarks.")), None)
    paths = [word for word in words if word.startswith("tests/")]
    found += [f"{path} does not exist" for path in paths if not (ROOT / path).exists()]
    if benchmark and not (ROOT / "benchmarks" / f"{benchmark}.py").is_file():
        found.append(f"there is no benchmark {benchmark}")
    if row.state == "never":
        claims = (row.commit, row.result) != ("–", "–")
        return [*found, "claims a commit or result, and was never run"] if claims else found
    if not re.fullmatch(r"[0-9a-f]{7,40}", row.commit):
        found.append(f"commit {row.commit!r}: expected what git calls it, without changes (+)")
    if not words:
        found.append("has run, and names no command")
    if row.state == "GPU" and not benchmark:
        return found if row.result.startswith("NVIDIA ") else [*found, "names no GPU"]
    if benchmark:
        name = re.search(r"benchmarks/results/([\w.]+)\.json", row.result)
        if name is None:
            return [*found, "names no file of benchmarks/results"]
        found += _result_faults(row, results / f"{name[1]}.json", benchmark)
    return found


def _result_faults(row: Row, path: Path, benchmark: str | None) -> list[str]:
    if not path.is_file():
        return [f"{path.name} is not in benchmarks/results"]
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = []
    if benchmark and saved["benchmark"] != benchmark:
        found.append(f"{path.name} is of benchmark {saved['benchmark']}")
    if not saved["machine"]["commit"].startswith(row.commit[:7]):
        found.append(f"{path.name} was measured at {saved['machine']['commit']}, the row says {row.commit}")
    if row.state == "GPU" and "device" not in saved["machine"]:
        found.append(f"{path.name} names no GPU")
    return found


STATUS = read_rows((ROOT / "docs" / "status.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", STATUS, ids=lambda row: row.capability)
def test_a_row_claims_what_can_be_shown(row: Row) -> None:
    assert faults(row, RESULTS) == []


def test_every_saved_result_has_a_row() -> None:
    claimed = {name for row in STATUS for name in re.findall(r"results/([\w.]+\.json)", row.result)}
    assert {path.name for path in RESULTS.glob("*.json")} <= claimed


def test_a_saved_result_says_how_it_came_to_be() -> None:
    for path in RESULTS.glob("*.json"):
        saved = json.loads(path.read_text(encoding="utf-8"))
        assert saved["benchmark"] == re.sub(r"(_layers_\d|_decoder)?(_quick)?$", "", path.stem)
        assert saved.get("full", True) is not path.stem.endswith("_quick")
        assert saved["machine"]["commit"]
        assert saved["command"].startswith(f"python -m benchmarks.{saved['benchmark']}")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", saved["day"])


def test_false_claims_are_found(tmp_path: Path) -> None:
    (tmp_path / "resume.json").write_text(json.dumps({"benchmark": "resume", "machine": {"commit": "abc1234"}}))
    command = "`python -m benchmarks.resume --save`"
    file = "`benchmarks/results/resume.json`"
    good = Row("resume", "here", command, file, "abc1234")
    assert faults(good, tmp_path) == []
    assert faults(good, tmp_path / "elsewhere") == ["resume.json is not in benchmarks/results"]
    assert "names no file" in faults(good._replace(result="–"), tmp_path)[0]
    assert "the row says abc9999" in faults(good._replace(commit="abc9999"), tmp_path)[0]
    assert "names no GPU" in faults(good._replace(state="GPU"), tmp_path)[0]
    tested = good._replace(state="GPU", command="`pytest -m gpu tests/embedding`", result="NVIDIA H200")
    assert faults(tested, tmp_path) == []
    assert faults(tested._replace(result="–"), tmp_path) == ["names no GPU"]
    assert "never run" in faults(good._replace(state="never"), tmp_path)[0]
    assert "state 'perhaps'" in faults(good._replace(state="perhaps"), tmp_path)[0]
    assert "tests/gone.py does not exist" in faults(good._replace(command="`pytest tests/gone.py`"), tmp_path)[0]
    assert "there is no benchmark rezume" in faults(good._replace(command="`python -m benchmarks.rezume`"), tmp_path)[0]
