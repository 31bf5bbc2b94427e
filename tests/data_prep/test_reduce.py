"""The reduction against scikit-learn, against plain counting, and in a pass of the real teacher."""

import errno
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD

from data_prep.embed import embed_texts
from data_prep.reduce import FILE, NEIGHBOURS, Reduction, StoreConfig, _fidelity
from data_prep.tables import Texts
from data_prep.teacher import TeacherConfig, vector_keys
from data_prep.vectors import VectorStore
from embedding.embedder import Embedder
from tests.data_prep.test_embed import make_texts

VERBS = ("open", "close", "move", "paint", "sell", "count", "bend", "lift")
NOUNS = ("door", "file", "window", "valve", "letter", "ship", "garden", "engine")
PAIRS = [
    (f"How does one {verb} a {noun}?", f"{verb.title()} the {noun} with care.") for verb in VERBS for noun in NOUNS
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return make_texts(tmp_path_factory.mktemp("data"), PAIRS)


@pytest.fixture(scope="module")
def vectors(teacher: Embedder, texts: Texts) -> np.ndarray:
    found = teacher.encode(texts.texts.to_pylist())
    return found[np.random.default_rng(0).permutation(len(found))]


def test_the_axes_are_those_of_the_singular_value_decomposition(vectors: np.ndarray) -> None:
    reduction = Reduction.fit(vectors, 16)
    fitted = vectors[: len(vectors) - len(vectors) // 5]
    reference = TruncatedSVD(16, algorithm="arpack", random_state=0).fit(fitted.astype(np.float64)).components_
    np.testing.assert_allclose(np.abs(reduction.axes_RE @ reference.T), np.eye(16), atol=1e-4)
    reduced = reduction.apply(vectors)
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=1), 1, atol=1e-6)
    again = Reduction.fit(vectors, 16)
    assert (again.axes_RE == reduction.axes_RE).all()


def test_the_fidelity_is_what_counting_says(vectors: np.ndarray) -> None:
    whole = vectors[:30].astype(np.float64)
    reduced = whole @ np.linalg.svd(whole)[2][:6].T
    found = _fidelity(whole, reduced)
    energy = (reduced**2).sum() / (whole**2).sum()
    unit = reduced / np.linalg.norm(reduced, axis=1, keepdims=True)
    errors, kept, order = [], [], []
    for i in range(30):
        before = {j: whole[i] @ whole[j] for j in range(30) if j != i}
        after = {j: unit[i] @ unit[j] for j in range(30) if j != i}
        errors += [abs(before[j] - after[j]) for j in before]
        near = [set(sorted(cosines, key=lambda j: -cosines[j])[:NEIGHBOURS]) for cosines in (before, after)]
        kept.append(len(near[0] & near[1]) / NEIGHBOURS)
        order += [(before[j] > before[k]) == (after[j] > after[k]) for j in before for k in before if j != k]
    assert found.texts == 30
    assert found.energy == pytest.approx(energy)
    assert found.cosine_error == pytest.approx(np.mean(errors))
    assert found.neighbours == pytest.approx(np.mean(kept))
    assert found.order == pytest.approx(np.mean(order), abs=0.01)  # a sample of the triples


def test_all_is_kept_where_the_vectors_lie_in_the_axes() -> None:
    rng = np.random.default_rng(0)
    low = rng.standard_normal((500, 8))
    sample = (low @ np.linalg.qr(rng.standard_normal((32, 8)))[0].T).astype(np.float32)
    fidelity = Reduction.fit(sample, 8).fidelity
    assert fidelity.energy == pytest.approx(1, abs=1e-6)
    assert fidelity.cosine_error < 1e-6
    assert (fidelity.neighbours, fidelity.order) == (1.0, 1.0)


@pytest.mark.parametrize("width", [384, 400, 110])
def test_more_axes_than_there_are_numbers_or_texts(vectors: np.ndarray, width: int) -> None:
    with pytest.raises(ValueError, match=rf"store\.pca {width}: expected fewer than the teacher's 384"):
        Reduction.fit(vectors[:120], width)


def test_the_first_of_several_writers_wins(tmp_path: Path, vectors: np.ndarray) -> None:
    fits = [Reduction.fit(vectors[at:], 8) for at in range(6)]
    with ThreadPool(6) as pool:
        saved = pool.map(lambda fit: fit.save(tmp_path), fits)
    there = Reduction.load(tmp_path)
    assert all((one.axes_RE == there.axes_RE).all() for one in saved)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert any(there.fidelity == fit.fidelity for fit in fits)


def test_a_pass_stores_reduced_vectors_and_a_second_one_the_same_kind(
    texts: Texts, teacher: Embedder, tmp_path: Path
) -> None:
    config = TeacherConfig(max_tokens=48, store=StoreConfig(dtype="int8", pca=32, pca_sample=100))
    half = texts.take(np.arange(110))
    first = embed_texts(config, half, tmp_path, progress=False, embedder=teacher)
    assert first.width == 32
    second = embed_texts(config, texts, tmp_path, progress=False, embedder=teacher)
    assert second.store == first.store
    assert second.reused == 110
    store = VectorStore.existing(second.store)
    reduction = Reduction.load(store.folder)
    expected = reduction.apply(teacher.encode(texts.texts.to_pylist()))
    found = store.rows(vector_keys(texts, teacher.template))
    assert ((found * expected).sum(axis=1) / np.linalg.norm(found, axis=1)).min() > 0.999
    assert 0.5 < reduction.fidelity.energy <= 1
    assert reduction.fidelity.texts == 20
    (store.folder / FILE).unlink()
    with pytest.raises(ValueError, match=f"{FILE} is gone, and with it what the stored numbers mean"):
        embed_texts(config, texts, tmp_path, progress=False, embedder=teacher)


def test_the_sample_is_computed_in_the_configured_chunks_and_taken_from_the_store_of_whole_vectors(
    texts: Texts, teacher: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[int | None] = []
    encode = teacher.encode_ids

    def noting(ids: list[np.ndarray], *, token_budget: int | None = None) -> np.ndarray:
        budgets.append(token_budget)
        return encode(ids, token_budget=token_budget)

    monkeypatch.setattr(teacher, "encode_ids", noting)
    settings = {"max_tokens": 48, "token_budget": 96}
    reduced = TeacherConfig(**settings, store=StoreConfig(pca=32, pca_sample=100))
    first = embed_texts(reduced, texts, tmp_path, progress=False, embedder=teacher)
    assert (first.computed, first.reused) == (len(texts), 0)
    assert set(budgets) == {96}
    budgets.clear()
    whole = embed_texts(TeacherConfig(**settings), texts, tmp_path / "b", progress=False, embedder=teacher)
    assert whole.computed == len(texts)
    budgets.clear()
    second = embed_texts(reduced, texts, tmp_path / "b", progress=False, embedder=teacher)
    assert (second.computed, second.reused) == (0, len(texts))
    assert not budgets


def test_without_hard_links_the_first_of_two_writers_wins_too(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr("os.link", refused)
    first, second = Reduction.fit(vectors, 8).save(tmp_path), Reduction.fit(vectors[3:], 8).save(tmp_path)
    assert (first.axes_RE == second.axes_RE).all()
