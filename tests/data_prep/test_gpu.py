"""Teachers on a CUDA device, in bf16 and in fewer bits, against the same teacher on the CPU."""

import numpy as np
import pytest

from data_prep.teacher import TeacherConfig, load_local
from embedding.embedder import Embedder
from tests.embedding.conftest import TEACHER
from tests.embedding.conftest import TEXTS as ALL_TEXTS

pytestmark = pytest.mark.gpu
TEXTS = ALL_TEXTS[:4]  # those that the bounds below were found with


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return Embedder.from_pretrained(TEACHER).encode(TEXTS)


def test_in_fp32_it_is_the_same_and_in_bf16_near_it(expected: np.ndarray) -> None:
    whole = load_local(TeacherConfig(model=TEACHER, dtype="float32"))
    assert whole.device.type == "cuda"
    assert not whole.packs
    np.testing.assert_allclose(whole.encode(TEXTS), expected, atol=2e-5)
    half = load_local(TeacherConfig(model=TEACHER, dtype="bfloat16"))
    assert half.packs
    assert (half.encode(TEXTS) * expected).sum(axis=1).min() > 0.999


@pytest.mark.parametrize(("quantization", "near"), [("8bit", 0.995), ("4bit", 0.9)])
def test_in_fewer_bits_it_is_smaller_and_near(quantization: str, near: float, expected: np.ndarray) -> None:
    pytest.importorskip("bitsandbytes")
    packed = load_local(TeacherConfig(model=TEACHER, dtype="bfloat16", quantization=quantization))  # type: ignore[arg-type]
    layers = packed.backbone.get_submodule("encoder")
    weights = sum(p.numel() * p.element_size() for p in layers.parameters())
    assert weights < (1.1e7 if quantization == "8bit" else 6e6), "the layers have 10.6 million weights"
    assert packed.packs
    assert near < (packed.encode(TEXTS) * expected).sum(axis=1).min() < 0.99999
