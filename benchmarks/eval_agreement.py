"""Are our evaluation's numbers mteb's? `python -m benchmarks.eval_agreement`, with EYAS_DATA set.

Two models: all-MiniLM-L6-v2, and a small Qwen3 decoder with instructions and random weights. Every task runs three
times: by us; by `mteb.evaluate` over our vectors; and by `mteb.evaluate` with sentence-transformers, which loads and
encodes for itself (the decoder through the class that mteb registers for Harrier). The last JSON line has the largest
differences:

max_diff_same_vectors   same vectors, mteb alone against our evaluation         expected 1e-9
max_diff_ranking        each encodes for itself, ranking and correlation kinds  expected 1e-4
max_diff_fitted         each encodes for itself, k-means and classifiers        expected 5e-3
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mteb.types import PromptType

from benchmarks.common import arguments, report, say
from benchmarks.eval_peers import TEACHER, decoder, instructed_peer, mteb_scores, plain_peer
from benchmarks.eval_sets import TASKS, data_folder, derive
from embedding.embedder import Embedder
from embedding.instruction import BARE, Role
from embedding.layout import resolve_model
from eval.encoder import MtebModel
from eval.evaluate import evaluate, failures
from eval.suite import Suite, SuiteConfig, load_suite

MAX_TOKENS = 128
FITTED = ("classification", "multilabel_classification", "clustering")
INSTRUCTIONS = {"retrieval": "Given a question, retrieve passages that answer it", "sts": "Retrieve similar text"}


class Noted:
    """An Embedder that remembers the vector of every (prompt, text) it was asked for."""

    def __init__(self, model: Embedder) -> None:
        self.model, self.template, self.tokenizer = model, model.template, model.tokenizer
        self.asked: list[tuple[str, str]] = []
        self.vectors: dict[tuple[str, str], np.ndarray] = {}

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray]:
        """As the Embedder."""
        self.asked = list(zip(prompts, texts, strict=True))
        return self.model.tokenize(texts, prompts)

    def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """As the Embedder."""
        found = self.model.encode_ids(ids)
        self.vectors.update(zip(self.asked, found, strict=True))
        return found


class FixedVectors(MtebModel):
    """Remembered vectors behind mteb's interface, in the plainest way: go through the loader, look up each text."""

    def __init__(self, noted: Noted, suite: Suite) -> None:
        super().__init__("fixed")
        self.noted, self.instructions = noted, {entry.name: entry.instruction for entry in suite.tasks}

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """Vectors [N, D] of a loader's texts."""
        role: Role = "document" if prompt_type == PromptType.document else "query"
        prompt = self.noted.template.prompt(role, self.instructions[task_metadata.name])
        return np.stack([self.noted.vectors[prompt, text] for batch in inputs for text in batch["text"]])


def compare(
    name: str, model: Embedder, alone: Callable[[Suite], Any], configs: Sequence[SuiteConfig]
) -> dict[str, dict[str, float]]:
    """Differences of one model: task -> {ours, same_vectors, alone}; `alone` makes mteb's own model for a suite."""
    rows: dict[str, dict[str, float]] = {}
    for config in configs:
        suite = load_suite(config)
        noted = Noted(model)
        ours = evaluate(noted, suite)
        if wrong := failures(ours):
            raise SystemExit(f"{name}: {wrong}")
        same, own = mteb_scores(FixedVectors(noted, suite), suite), mteb_scores(alone(suite), suite)
        for task, result in ours["tasks"].items():
            differences = {
                "same_vectors": abs(result["score"] - same[task]),
                "alone": abs(result["score"] - own[task]),
            }
            rows[task] = {"ours": result["score"], **differences}
            shown = "  ".join(f"{key} {value:.1e}" for key, value in differences.items())
            say(f"{name:8} {task:40} {result['score']:.6f}  {shown}")
    return rows


def main() -> None:
    """Compare, and print the largest differences."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=100, help="rows of a flat set, or queries")
    parser.add_argument("--documents", type=int, default=300, help="documents of a corpus")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        limits = {"max_rows": given.rows, "max_documents": given.documents, "instructions": INSTRUCTIONS}
        configs = [
            SuiteConfig(folder=data_folder(), tasks=TASKS, **limits),
            SuiteConfig(folder=derive(Path(place) / "derived"), max_rows=given.rows),
        ]
        teacher = Embedder.from_pretrained(TEACHER, template=BARE, max_tokens=MAX_TOKENS)
        student = decoder(Path(place) / "decoder", MAX_TOKENS)
        plain = plain_peer(resolve_model(TEACHER), MAX_TOKENS)
        tasks = {
            "minilm": compare("minilm", teacher, lambda _: plain, configs),
            "decoder": compare("decoder", student, lambda s: instructed_peer(Path(place) / "decoder", s), configs),
        }
    rows = [(name, row) for of in tasks.values() for name, row in of.items()]
    fitted = [row["alone"] for name, row in rows if name.startswith(FITTED)]
    report(
        {
            "benchmark": "eval_agreement",
            "max_diff_same_vectors": max(row["same_vectors"] for _, row in rows),
            "max_diff_ranking": max(row["alone"] for name, row in rows if not name.startswith(FITTED)),
            "max_diff_fitted": max(fitted),
            "tasks": tasks,
        },
        save=given.save,
    )


if __name__ == "__main__":
    main()
