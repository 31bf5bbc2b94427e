"""The GPU benchmark where there is no GPU: its shapes, its texts, its refusal, and one of its cases in small."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModel

from benchmarks.gpu_step import long_tailed_pairs, measure, result_of, shapes, tiny_shapes, write_model
from benchmarks.pairs import ranking_rows, write_inputs
from benchmarks.sides import Case, Theirs

ROOT = Path(__file__).parents[2]


def test_the_shapes_are_those_of_the_published_students() -> None:
    """Parameters, and token embeddings among them, as the model cards count them."""
    published = {"qwen3_0.6b": (596_049_920, 155_582_464), "gemma3_270m": (268_098_176, 167_772_160)}
    for name, config in shapes().items():
        with torch.device("meta"):
            model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        embeddings = model.get_input_embeddings().weight.numel()
        assert (sum(p.numel() for p in model.parameters()), embeddings) == published[name]


def test_lengths_are_long_tailed_and_texts_distinct() -> None:
    pairs = long_tailed_pairs(1_000, 512, [("a summary", "of some words " * 100)])
    texts = [text for pair in pairs for text in pair]
    lengths = np.array([len(text.split()) for text in texts])
    assert len(set(texts)) == 2_000
    assert 50 < np.median(lengths) < 90
    assert 0.03 < np.mean(lengths >= 512) < 0.08


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_step"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "torch sees none here" in run.stderr


def test_a_case_in_small(tmp_path: Path) -> None:
    [found] = measure(tmp_path, {"gemma3": tiny_shapes()["gemma3"]}, {32: 4}, "cpu")
    result = result_of(found, 1e9)
    assert result["ratio_gemma3_32"] > 0
    assert result["mfu_gemma3_32"] > 0
    assert found["gemma3_32"]["theirs"]["attention"] == "sdpa"


def test_the_peer_computes_in_bf16_also_what_it_computes_again(tmp_path: Path) -> None:
    """Its cached losses go forward a second time in a hook of the backward pass, where autocast has ended already."""
    model = write_model(tmp_path / "model", tiny_shapes()["qwen3"])
    rows = ranking_rows([(f"query {i}", f"document {i} of some words") for i in range(8)])
    write_inputs(tmp_path / "texts", rows, model, vectors=False)
    case = Case("bf16", str(tmp_path / "texts"), str(tmp_path / "model"), max_tokens=32, batch=4, steps=1, bf16=True)
    AcceleratorState._reset_state(reset_partial_state=True)  # type: ignore[no-untyped-call]
    try:
        theirs = Theirs(case)
        passes: list[bool] = []
        theirs.backbone.layers[0].register_forward_hook(lambda *_: passes.append(torch.is_autocast_enabled("cpu")))
        theirs.choose("cached, 2 texts")
        theirs.step(0)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # type: ignore[no-untyped-call]
    assert passes == [True] * 8  # two sides of two mini-batches, twice
