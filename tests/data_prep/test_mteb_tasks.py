"""Training splits of mteb's tasks, from copies laid out as the hub has them."""

from pathlib import Path
from typing import Any

import mteb
import pytest

from data_prep.build import DataConfig, data_fingerprint, prepare
from data_prep.rows import Row, Tally
from data_prep.sources import MtebSource, numbered_rows
from data_prep.tables import Examples
from embedding.config import parse_config
from tests.eval.test_suites import hub_copy

PAIRS = [(f"sentence {n} about {word}", f"{word} in sentence {n}") for n in range(6) for word in ("hawks", "rain")]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror")
    graded = [{"sentence1": a, "sentence2": b, "score": float(n % 5)} for n, (a, b) in enumerate(PAIRS)]
    hub_copy(root, "STSBenchmark", {"default": {"train": graded, "test": graded[:2]}})
    judged = [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(4)]
    judged += [{"query-id": "q0", "corpus-id": doc, "score": 0} for doc in ("d9", "copy of d0")]
    corpus = [{"_id": f"d{n}", "title": "T" * (n % 2), "text": b} for n, (_, b) in enumerate(PAIRS)]
    corpus.append({**corpus[0], "_id": "copy of d0"})
    queries = [{"_id": f"q{n}", "text": a} for n, (a, _) in enumerate(PAIRS)]
    parts = {
        "corpus": {"corpus": corpus},
        "queries": {"queries": queries},
        "default": {"train": judged, "test": judged},
    }
    hub_copy(root, "SciFact", parts)
    first, second = (list(side) for side in zip(*PAIRS, strict=True))
    one_row = [{"sent1": first, "sent2": second, "labels": [n % 2 for n in range(len(PAIRS))]}]
    hub_copy(root, "SprintDuplicateQuestions", {"default": {"validation": one_row, "test": one_row}})
    labelled = [{"text": text, "label": n % 3, "label_text": f"class {n % 3}"} for n, (text, _) in enumerate(PAIRS)]
    hub_copy(root, "Banking77Classification", {"default": {"train": labelled, "test": labelled[:3]}})
    return root


def source(mirror: Path, task: str, **settings: Any) -> MtebSource:
    values = {"kind": "mteb", "task": task, "mirror": str(mirror), **settings}
    found = parse_config(DataConfig, {"sources": [values]}).sources[0]
    assert isinstance(found, MtebSource)
    return found


def rows(mirror: Path, task: str, **settings: Any) -> list[Row]:
    return [found.row for found in numbered_rows(source(mirror, task, **settings), Tally())]


def test_each_type_becomes_rows_of_its_own_kind(mirror: Path) -> None:
    graded = rows(mirror, "STSBenchmark")
    assert graded[3] == Row(PAIRS[3][0], (PAIRS[3][1],), score=3.0)
    assert rows(mirror, "SprintDuplicateQuestions", split="validation") == [Row(a, (b,)) for a, b in PAIRS[1::2]]
    found = rows(mirror, "SciFact")
    assert found[0] == Row(PAIRS[0][0], (PAIRS[0][1],), (f"T {PAIRS[9][1]}",))
    assert found[1] == Row(PAIRS[1][0], (f"T {PAIRS[1][1]}",))
    assert len(found) == 4
    labelled = rows(mirror, "Banking77Classification")
    assert len(labelled) == 12
    assert all(int(row.group or -1) == [a for a, _ in PAIRS].index(row.query) % 3 for row in labelled)


def test_a_text_that_two_documents_have_is_judged_by_the_better_judgement(mirror: Path) -> None:
    """`copy of d0` has the text of d0 and is judged 0, after it."""
    first = rows(mirror, "SciFact")[0]
    assert first.positives == (PAIRS[0][1],)
    assert PAIRS[0][1] not in first.negatives


def test_commit_and_instruction_are_the_tasks(mirror: Path) -> None:
    found = source(mirror, "SciFact")
    metadata = mteb.get_task("SciFact").metadata
    assert found.revision == metadata.dataset["revision"]
    assert isinstance(metadata.prompt, dict)
    assert found.instruction == metadata.prompt["query"]
    assert not found.both_sides
    assert source(mirror, "STSBenchmark").both_sides
    given = source(mirror, "SciFact", instruction="Find it", revision="a" * 40)
    assert (given.instruction, given.revision) == ("Find it", "a" * 40)


def test_a_pass_over_tasks(mirror: Path, tmp_path: Path) -> None:
    tasks = [{"kind": "mteb", "task": task, "mirror": str(mirror)} for task in ("SciFact", "Banking77Classification")]
    config = parse_config(DataConfig, {"sources": tasks, "heldout": {"share": 0.0}})
    made_from = data_fingerprint(config)
    assert len(made_from["contents"]["SciFact"]) == 5
    assert prepare(config, tmp_path / "out", progress=False)["examples"] == 16
    assert Examples.load(tmp_path / "out" / "examples").source_names == ["SciFact", "Banking77Classification"]
    again = parse_config(DataConfig, config.model_dump(mode="json"))
    assert data_fingerprint(again) == made_from, "a dumped config reads back as it was"


def test_a_hub_data_set_is_known_by_its_commit(mirror: Path) -> None:
    config = parse_config(DataConfig, {"sources": [{"kind": "mteb", "task": "SciFact"}]})
    assert data_fingerprint(config)["contents"]["SciFact"] == mteb.get_task("SciFact").metadata.dataset["revision"]


@pytest.mark.parametrize(
    "task, settings, message",
    [
        ("SciFakt", {}, "mteb has no task 'SciFakt'; did you mean 'SciFact'"),
        ("SummEval", {}, "mteb's task SummEval is of type Summarization, which is no training data"),
        ("SciFact", {"split": "dev"}, "SciFact/dev: cannot be loaded: .*dev"),
        (
            "STSBenchmark",
            {"split": "tran"},
            "STSBenchmark/tran: cannot be loaded: no split 'tran'; did you mean 'train'",
        ),
        ("Tatoeba", {}, "Tatoeba: set `subset` to one of its subsets: .*deu-eng"),
        ("Tatoeba", {"subset": "deu-emg"}, "Tatoeba: set `subset` to one of its subsets; did you mean 'deu-eng'"),
        ("NFCorpus", {}, "no copy of the data set there"),
    ],
)
def test_what_does_not_fit_is_said(mirror: Path, task: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(mirror, task, **settings)
