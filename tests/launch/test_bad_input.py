"""Whatever is wrong with the input: one message that names it, a non-zero exit, and finished work as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedding.embedder import Embedder
from embedding.files import read_json
from tests.conftest import TEACHER
from tests.launch.conftest import RUN, STEPS, contents, eyas, questions_and_answers, skipped, write_rows

ROWS = questions_and_answers()
Break = Callable[[], list[str]]
"""Breaks something in the working directory; returns overrides for the command line."""


def replace_row(number: int, row: Any) -> None:
    """Another row in place of the given one, counted from 1."""
    write_rows(Path("faq.jsonl"), [*ROWS[: number - 1], row, *ROWS[number:]])


def missing_file() -> list[str]:
    return ["data.sources.0.path=fqa.jsonl"]


def wrong_column() -> list[str]:
    return ["data.sources.0.query=qestion"]


def unknown_key() -> list[str]:
    return ["stages.0.learning_rat=0.1"]


def unknown_source_key() -> list[str]:
    return ["data.sources.0.postive=answer"]


def malformed_json() -> list[str]:
    lines = Path("faq.jsonl").read_text().splitlines()
    lines[6] = lines[6][:-5]
    Path("faq.jsonl").write_text("\n".join(lines))
    return []


def empty_text() -> list[str]:
    replace_row(5, {"question": "Where?", "answer": "  "})
    return []


def not_a_string() -> list[str]:
    replace_row(4, {"question": 17, "answer": "A number."})
    return []


def no_rows() -> list[str]:
    Path("faq.jsonl").write_text("")
    return []


def no_usable_row() -> list[str]:
    write_rows(Path("faq.jsonl"), [{"question": "", "answer": "Nothing was asked."}] * 3)
    return ["data.sources.0.on_error=drop"]


def fewer_rows_than_a_batch() -> list[str]:
    return ["stages.0.batch_size=512"]


def teacher_without_weights() -> list[str]:
    Embedder.from_pretrained(TEACHER).save_pretrained("teacher")
    Path("teacher/model.safetensors").unlink()
    return ["teacher.model=./teacher"]


def no_such_teacher() -> list[str]:
    return ["teacher.model=./nowhere"]


def other_width_without_projection() -> list[str]:
    start = {"kind": "built", "layers": 1, "width": 64, "heads": 1, "kv_heads": 1, "embeddings": "random"}
    recipe = yaml.safe_load(Path("mine.yaml").read_text())
    recipe["student"] = {"start": start, "max_tokens": 32, "projection": "none"}
    base = {"seed": 0, "teacher": {"model": TEACHER, **recipe.pop("teacher")}, "stages": recipe["stages"]}
    base["stages"][0]["losses"] = [{"kind": "match"}]
    del recipe["extends"]
    Path("mine.yaml").write_text(yaml.safe_dump({**base, **recipe}))
    return []


def widths_beyond_the_student() -> list[str]:
    return ["stages.0.losses=[{kind: match, widths: [512]}]"]


def loss_not_finite() -> list[str]:
    return ["stages.0.learning_rate=1.0e+38", "stages.0.steps=4", "stages.0.warmup=0.0"]


def no_evaluation_folder() -> list[str]:
    return ["suite.folder=elsewhere"]


def unset_variable() -> list[str]:
    return ["suite.folder=$EYAS_NO_SUCH/evaluation"]


def not_yaml() -> list[str]:
    Path("mine.yaml").write_text("name: [tiny\n")
    return []


BAD: list[tuple[Break, list[str]]] = [
    (missing_file, ["fqa.jsonl: no such file", "faq.jsonl"]),
    (wrong_column, ["faq.jsonl", "no column 'qestion'", "did you mean 'question'", "columns: question, answer"]),
    (unknown_key, ["unknown key 'stages.0.learning_rat'", "did you mean 'learning_rate'"]),
    (unknown_source_key, ["unknown key", "postive", "did you mean 'positive'"]),
    (malformed_json, ["faq.jsonl:7", "malformed JSON"]),
    (empty_text, ["faq.jsonl:5", "'answer' is empty", "on_error: drop"]),
    (not_a_string, ["faq.jsonl:4", "'question' is int, expected text"]),
    (no_rows, ["faq.jsonl", "empty"]),
    (no_usable_row, ["no usable row", "3 of 3 rows", "'question' is empty"]),
    (fewer_rows_than_a_batch, ["stage 'match'", "batch_size 512", "set batch_size to at most"]),
    (teacher_without_weights, ["teacher", "without weights", "model.safetensors"]),
    (no_such_teacher, ["./nowhere", "does not exist"]),
    (other_width_without_projection, ["width 64", "384", "student.projection", "learned"]),
    (widths_beyond_the_student, ["stage 'match'", "[512]", "below the student's 384"]),
    (loss_not_finite, ["stage 'match', step", "not finite", "learning_rate"]),
    (no_evaluation_folder, ["suite.folder elsewhere: no such folder"]),
    (unset_variable, ["suite.folder", "the environment variable EYAS_NO_SUCH is not set", "$EYAS_NO_SUCH/evaluation"]),
    (not_yaml, ["mine.yaml", "not valid YAML"]),
]


@pytest.mark.parametrize("break_it, said", BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_input_is_refused_and_finished_work_stays(finished: Path, break_it: Break, said: list[str]) -> None:
    work = {name: contents(finished / name) for name in ("runs/tiny/model", "runs/cache/data", "runs/cache/vectors")}
    results = [RUN / name for name in ("scorecard.json", "report.html", "config.yaml", "summary.json")]
    if break_it is loss_not_finite:
        results = results[:2]  # the training began: config and summary are already its own
    before = [path.read_bytes() for path in results]
    good = Path("mine.yaml").read_text()

    result = eyas("run", "mine.yaml", *break_it())
    assert result.exit_code == 2, result.output
    message = result.stderr.splitlines()[-1]
    assert message.startswith("error: ")
    assert all(part in message for part in said), message
    assert "Traceback" not in result.output

    assert [path.read_bytes() for path in results] == before
    for name, files in work.items():
        assert files.items() <= contents(finished / name).items()
    Path("mine.yaml").write_text(good)
    write_rows(Path("faq.jsonl"), ROWS)
    if break_it is not loss_not_finite:
        assert skipped(eyas("run", "mine.yaml")) == STEPS


@pytest.mark.parametrize(
    "override, said",
    [
        ("student.start.keep=9", ["student.start.keep 9", "6 layers"]),
        ("stages.0.batch_size=512", ["stage 'match'", "batch_size 512"]),
        ("stages.0.losses=[{kind: cosent}]", ["stage 'match'", "cosent", "rows with a score"]),
        ("stages.0.losses=[{kind: match, widths: [512]}]", ["stage 'match'", "[512]", "384"]),
    ],
)
def test_what_training_would_refuse_is_refused_before_the_teacher_s_pass(
    finished: Path, override: str, said: list[str]
) -> None:
    fresh = ("mine.yaml", "name=fresh", "cache=runs/fresh", override)
    result = eyas("run", *fresh)
    assert result.exit_code == 2, result.output
    assert all(part in result.stderr.splitlines()[-1] for part in said), result.stderr
    assert (finished / "runs/fresh/data").is_dir()
    assert not (finished / "runs/fresh/vectors").exists()

    result = eyas("embed", *fresh)  # which asks for vectors alone
    assert result.exit_code == 0, result.output
    assert (finished / "runs/fresh/vectors").is_dir()


def test_a_loss_of_negatives_waits_for_those_that_are_still_to_be_mined(finished: Path) -> None:
    losses = ("stages.0.losses=[{kind: margin_mse}]", "stages.0.negatives=1", "name=fresh", "cache=runs/fresh")
    for command in ("plan", "train"):
        result = eyas(command, "mine.yaml", *losses)
        assert result.exit_code == 2, result.output
        assert "needs rows with negatives" in result.stderr.splitlines()[-1]
        result = eyas(command, "mine.yaml", *losses, "mine={negatives: 1}")
        assert result.exit_code == 0, result.output


def test_dropped_rows_are_counted_by_reason(finished: Path) -> None:
    bad = [
        {"question": "Where?", "answer": " "},
        {"question": 3, "answer": "Three."},
        {"question": None, "answer": "x"},
    ]
    write_rows(Path("faq.jsonl"), [*ROWS, *bad])
    result = eyas("prepare", "mine.yaml", "name=new", "data.sources.0.on_error=drop")
    assert result.exit_code == 0, result.output
    source = read_json(Path("runs/new/summary.json"))["sources"]["faq"]
    assert source["rows"] == len(ROWS) + 3
    reasons = ("'answer' is empty", "'question' is int, expected text", "'question' is null, expected text")
    assert [source["dropped"][reason] for reason in reasons] == [1, 1, 1]
    assert "'answer' is empty" in result.stdout


def test_a_text_longer_than_max_tokens_is_cut_and_counted(finished: Path) -> None:
    write_rows(Path("faq.jsonl"), [*ROWS, {"question": "What is long?", "answer": "A very long answer. " * 50}])
    result = eyas("train", "mine.yaml", "data.heldout.share=0.0", "name=cut")
    assert result.exit_code == 0, result.output
    summary = read_json(Path("runs/cut/summary.json"))
    assert summary["vectors"]["longer than the teacher's max tokens"] >= 1
    assert summary["tokens"]["texts longer than the student's max tokens"] >= 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["mine.yml"], "mine.yml: no such config file"),
        (["mine.yaml", "seed"], "expected key=value"),
        (["mine.yaml", "seed=one"], "seed"),
        (["mine.yaml", "name=../elsewhere"], "name"),
        (["mine.yaml", "stages.3.steps=1"], "not a position in a list of 1"),
        (["mine.yaml", "stages.0.steps=0"], "stages.0.steps"),
    ],
)
def test_a_bad_command_line_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_once: Path, arguments: list[str], said: str
) -> None:
    shutil.copy(finished_once / "mine.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    result = eyas("run", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not Path("runs").exists()


def test_broken_json_of_our_own_is_named(finished: Path) -> None:
    path = RUN / "steps" / "train.json"
    path.write_text(json.dumps({"fingerprint": "x"})[:-3])
    result = eyas("run", "mine.yaml")
    assert result.exit_code == 2
    assert "train.json: not valid JSON" in result.stderr
    assert "delete it" in result.stderr
