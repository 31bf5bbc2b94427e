"""Teachers on a CUDA device, in bf16 and in fewer bits, against the same teacher on the CPU; the search there."""

import numpy as np
import pytest

from data_prep.search import OnDevice
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


def test_the_search_finds_what_float64_finds_held_or_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((3_000, 32)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = documents[:50] + 0.1 * rng.standard_normal((50, 32)).astype(np.float32)
    rows = np.arange(len(documents))
    similarity = queries.astype(np.float64) @ documents.T
    places = np.argsort(-similarity, axis=1)[:, :10]
    scores = np.take_along_axis(similarity, places, 1)
    monkeypatch.setattr("data_prep.search.CHUNK_BYTES", 1_100 * 32 * 4)
    held = OnDevice(rows, documents.__getitem__, "cuda")
    monkeypatch.setattr("data_prep.search.HELD_SHARE", 0.0)
    streamed = OnDevice(rows, documents.__getitem__, "cuda")
    assert (len(held._held), len(streamed._held)) == (3, 0)
    for search in (held, streamed):
        found = search.nearest(queries, 10)
        np.testing.assert_allclose(found[0], scores, atol=1e-5)
        np.testing.assert_array_equal(found[1], places)
