"""Hard negatives against the same rules written out row by row in float64, on real text with a teacher's vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.assemble import write_rows
from data_prep.clean import normal_form
from data_prep.harvest import harvest
from data_prep.mine import MineConfig, mine
from data_prep.rows import Row
from data_prep.search import Approximate, Exact, OnDevice
from data_prep.tables import Examples, Texts
from embedding.embedder import Embedder
from embedding.files import read_manifest


class Prepared:
    """Tables on disk with the vectors of their texts."""

    def __init__(self, folder: Path, rows: list[tuple[Row, int]], names: list[str], teacher: Embedder) -> None:
        tasked = ((row, source, f"Find what {names[source]} asks for") for row, source in rows)
        write_rows(tasked, folder, names)
        self.folder = folder
        self.texts, self.examples = Texts.load(folder / "texts"), Examples.load(folder / "examples")
        self.words = [normal_form(self.texts.text(row)) for row in range(len(self.texts))]
        found = teacher.encode([self.texts.text(row) for row in range(len(self.texts))])
        # The teacher cuts its texts: those with one beginning would tie, and either could come first.
        found += 1e-3 * np.random.default_rng(0).standard_normal(found.shape)
        self.all = found.astype(np.float16)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self.all[rows].astype(np.float32)

    def mine(self, out: Path, **settings: Any) -> tuple[Examples, dict[str, Any]]:
        seed = settings.pop("seed", 0)
        config = MineConfig(**settings)
        found = mine(config, self.folder, self.vectors, {"config": config.model_dump()}, out, seed=seed, progress=False)
        return Examples.load(out / "examples"), found


@pytest.fixture(scope="module")
def prepared(site: Path, teacher: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Docstrings: two sources, a group for each module in the second, rows that repeat a query or a document, a single
    text, and a graded pair."""
    found = harvest(250, roots=[site], workers=1).train
    rows = [(Row(pair.summary, (pair.body,)), 0) for pair in found[:130]]
    rows += [(Row(pair.summary, (pair.body,), group=pair.module), 1) for pair in found[130:]]
    rows.append((Row(found[0].summary, (found[1].body, found[2].body), (found[3].body,)), 0))
    rows.append((Row(found[5].summary, (found[4].body.upper(),)), 0))
    rows.append((Row(found[6].body), 0))
    rows.append((Row(found[7].summary, (found[8].body,), score=0.5), 0))
    return Prepared(tmp_path_factory.mktemp("tables"), rows, ["first", "second"], teacher)


def by_hand(at: Prepared, row: int, config: MineConfig) -> dict[str, float]:
    """The usable negatives of a row in normal form with their scores, nearest first, as the settings' words say."""
    ex, words = at.examples, at.words
    query = words[ex.queries[row]]
    unit = at.all.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    same = [i for i in range(len(ex)) if words[ex.queries[i]] == query]
    known = {query} | {words[d] for i in same for d in (*ex.positives_of(i), *ex.negatives_of(i))}
    known |= {words[ex.queries[i]] for i in range(len(ex)) if query in {words[d] for d in ex.positives_of(i)}}
    if ex.groups[row] >= 0:
        mates = np.flatnonzero(ex.groups == ex.groups[row])
        known |= {words[ex.queries[i]] for i in mates} | {words[d] for i in mates for d in ex.positives_of(i)}
    rated = np.isnan(ex.scores)
    positive = min(unit[ex.queries[i]] @ unit[d] for i in same if rated[i] for d in ex.positives_of(i))
    pool = {}
    for i in np.flatnonzero(ex.sources == ex.sources[row]):
        for document in sorted((*ex.positives_of(i), *ex.negatives_of(i))):
            pool.setdefault(words[document], unit[ex.queries[row]] @ unit[document])
    ranked = sorted((score, word) for word, score in pool.items() if word not in known)[::-1]
    first, last = config.ranks
    highest = min(
        positive * config.relative if config.relative else np.inf,
        positive - config.absolute if config.absolute is not None else np.inf,
    )
    return {word: score for score, word in ranked[first - 1 : last] if score < highest}


@pytest.mark.parametrize(
    "settings",
    [
        {"ranks": (1, 30)},
        {"ranks": (4, 40), "relative": 0.8},
        {"ranks": (1, 200), "relative": None, "absolute": 0.2},
        {"ranks": (1, 20), "relative": None},
    ],
)
def test_the_nearest_are_those_that_the_rules_leave(
    prepared: Prepared, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings |= {"pick": "nearest", "negatives": 5}
    mined, found = prepared.mine(tmp_path / "mined", **settings)
    compared = 0
    for row in range(len(mined)):
        given = len(prepared.examples.negatives_of(row))
        got = [prepared.words[text] for text in mined.negatives_of(row)][given:]
        if not len(mined.positives_of(row)) or not np.isnan(mined.scores[row]):
            assert got == []
            continue
        allowed = by_hand(prepared, row, MineConfig(**settings))
        assert got == list(allowed)[: 5 - given]
        compared += len(got)
    assert compared > len(mined)
    assert found["rows"] == len(mined) - 2
    assert found["graded rows left out"] == found["single texts left out"] == 1


@pytest.mark.parametrize("parts", [1, 3])
def test_random_ones_are_among_those_that_the_rules_leave(prepared: Prepared, tmp_path: Path, parts: int) -> None:
    settings: dict[str, Any] = {"ranks": (1, 60), "negatives": 4, "parts": parts, "relative": 0.9}
    mined, found = prepared.mine(tmp_path / "mined", **settings)
    # A part's ranks stand for the pool's; a document may so lie beyond them, but never at or above the limit.
    wide = MineConfig(**settings | {"ranks": (1, 60) if parts == 1 else (1, 400)})
    different = 0
    for row in np.flatnonzero((mined.positives.counts > 0) & np.isnan(mined.scores)).tolist():
        given = len(prepared.examples.negatives_of(row))
        allowed = by_hand(prepared, row, wide)
        got = [prepared.words[text] for text in mined.negatives_of(row)][given:]
        assert set(got) <= set(allowed)
        assert len(set(got)) == len(got)
        different += got != list(allowed)[: len(got)]
    assert different > len(mined) / 2, "these are the nearest, not random ones"
    assert found["negatives"] == sum(len(mined.negatives_of(row)) for row in range(len(mined)))
    assert (found["rows searched again"] > 0) == (parts > 1)


def test_parts_find_as_many_and_as_hard_ones(prepared: Prepared, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ranks": (1, 60), "negatives": 4, "relative": 0.9}
    whole = prepared.mine(tmp_path / "whole", parts=1, **settings)[1]
    dealt = prepared.mine(tmp_path / "dealt", parts=3, **settings)[1]
    assert dealt["negatives"] == pytest.approx(whole["negatives"], rel=0.05)
    assert dealt["mean score of negatives"] == pytest.approx(whole["mean score of negatives"], abs=0.01)
    assert dealt["too near, share"] == pytest.approx(whole["too near, share"], abs=0.03)


def test_the_seed_decides_and_nothing_else(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prepared.mine(tmp_path / "one", seed=1)[0].negatives
    monkeypatch.setattr("data_prep.mine.BLOCK_ROWS", 70)
    monkeypatch.setattr("data_prep.search.CHUNK_BYTES", 1_000)
    again = prepared.mine(tmp_path / "again", seed=1)[0].negatives
    np.testing.assert_array_equal(one.values, again.values)
    assert not np.array_equal(one.values, prepared.mine(tmp_path / "other", seed=2)[0].negatives.values)


def test_given_negatives_are_kept_or_replaced(prepared: Prepared, tmp_path: Path) -> None:
    row = int(np.flatnonzero(prepared.examples.negatives.counts)[0])
    given = int(prepared.examples.negatives_of(row)[0])
    kept = prepared.mine(tmp_path / "kept", negatives=3)[0].negatives_of(row)
    replaced = prepared.mine(tmp_path / "replaced", negatives=3, given="replace")[0].negatives_of(row)
    assert kept[0] == given
    assert len(kept) == len(replaced) == 3
    assert given not in replaced


def test_a_large_group_still_gets_negatives(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"pick": "nearest", "negatives": 5, "ranks": (1, 30)}
    usual = prepared.mine(tmp_path / "usual", **settings)[0].negatives
    monkeypatch.setattr("data_prep.mine.DEPTH", 3)
    apart = prepared.mine(tmp_path / "apart", **settings)[0].negatives
    grouped = np.flatnonzero(prepared.examples.groups >= 0)
    assert len(grouped) == 120
    for row in grouped.tolist():
        np.testing.assert_array_equal(usual.row(row), apart.row(row))


def test_one_pool_holds_the_documents_of_all_sources(prepared: Prepared, tmp_path: Path) -> None:
    mined = prepared.mine(tmp_path / "mined", pool="all", relative=None)[0]
    owner = {int(d): int(mined.sources[i]) for i in range(len(mined)) for d in mined.positives_of(i)}
    sources = {
        owner[int(d)] for i in np.flatnonzero(mined.sources == 0) for d in mined.negatives_of(i) if int(d) in owner
    }
    assert sources == {0, 1}


def test_what_was_made_from_the_same_is_not_made_again(prepared: Prepared, tmp_path: Path) -> None:
    found = prepared.mine(tmp_path / "mined")[1]
    stamp = (tmp_path / "mined" / "examples" / "state.json").stat().st_mtime_ns
    assert prepared.mine(tmp_path / "mined")[1] == found
    assert (tmp_path / "mined" / "examples" / "state.json").stat().st_mtime_ns == stamp
    manifest = read_manifest(tmp_path / "mined")
    assert manifest is not None
    assert manifest["statistics"] == found
    assert prepared.mine(tmp_path / "mined", negatives=2)[1]["negatives"] < found["negatives"]


def test_the_histogram_counts_every_negative(prepared: Prepared, tmp_path: Path) -> None:
    found = prepared.mine(tmp_path / "mined", given="replace")[1]
    bins = found["histogram"]
    assert sum(bins["chosen"]) == found["negatives"]
    assert sum(bins["too near"]) == found["too near"]
    zero = bins["positive's score less the candidate's"].index(0.0)
    assert sum(bins["chosen"][:zero]) == 0, "a negative is nearer than the positive"


# ---------------------------------------------------------------------------------------------------------- the search


def test_every_search_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((3_000, 32)).astype(np.float16).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = documents[:50] + 0.1 * rng.standard_normal((50, 32)).astype(np.float32)
    true = np.argsort(-(queries.astype(np.float64) @ documents.T), axis=1)[:, :10]
    rows = np.arange(3_000)
    monkeypatch.setattr("data_prep.search.CHUNK_BYTES", 1_100 * 32 * 4)
    streamed = OnDevice(rows, documents.__getitem__, "cpu")
    monkeypatch.setattr("data_prep.search._free_bytes", lambda device: 1e9)
    held = OnDevice(rows, documents.__getitem__, "cpu")
    assert (len(streamed._held), len(held._held)) == (0, 3)
    for search in (Exact(rows, documents.__getitem__), streamed, held):
        scores, places = search.nearest(queries, 10)
        np.testing.assert_array_equal(places, true)
        np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, places, 1), atol=1e-5)
    for kind in ("ivf", "hnsw"):
        found = Approximate(rows, documents.__getitem__, kind)
        recall = found.tune(queries)
        assert recall >= 0.95
        places = found.nearest(queries, 10)[1]
        assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(places, true, strict=True)]) > 9


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_an_approximate_index_says_what_it_finds(prepared: Prepared, tmp_path: Path, index: str) -> None:
    found = prepared.mine(tmp_path / "mined", index=index)[1]
    assert set(found["indexes"]) == {index}
    assert found["recall"] >= 0.95


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"ranks": (5, 3)}, "expected a first rank"),
        ({"ranks": (1, 5), "negatives": 6}, "expected room for negatives: 6"),
        ({"pick": "nearest", "parts": 2}, "set pick: random"),
        ({"negative": 3}, "negative"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MineConfig(**settings)


def test_single_texts_alone_cannot_be_mined(tmp_path: Path, teacher: Embedder) -> None:
    at = Prepared(tmp_path / "tables", [(Row("one text"), 0), (Row("another text"), 0)], ["texts"], teacher)
    with pytest.raises(ValueError, match="no row to mine for"):
        at.mine(tmp_path / "mined")
    assert not (tmp_path / "mined").exists()


def test_one_row_has_no_negatives_and_says_so(tmp_path: Path, teacher: Embedder) -> None:
    at = Prepared(tmp_path / "tables", [(Row("a question", ("an answer",)), 0)], ["faq"], teacher)
    mined, found = at.mine(tmp_path / "mined")
    assert found["rows with none"] == found["rows"] == 1
    assert len(mined.negatives_of(0)) == 0


@pytest.mark.parametrize("count, negatives", [(30, 1), (30, 2), (8, 3)])
def test_an_empty_part_costs_no_row_its_negatives(
    teacher: Embedder, site: Path, tmp_path: Path, count: int, negatives: int
) -> None:
    found = harvest(200, roots=[site], workers=1).train
    bodies = {pair.body: pair.summary for pair in found}
    rows = [(Row(summary, (body,)), 0) for body, summary in list(bodies.items())[:count]]
    at = Prepared(tmp_path / "tables", rows, ["all"], teacher)
    settings: dict[str, Any] = {"negatives": negatives, "ranks": (1, 100), "relative": None}
    assert MineConfig(**settings).dealt > 1
    mined, _ = at.mine(tmp_path / "mined", **settings)
    whole, _ = at.mine(tmp_path / "whole", **settings, parts=1)
    assert mined.negatives.counts.sum() == whole.negatives.counts.sum() > 0


def test_a_pair_is_known_in_both_directions(teacher: Embedder, tmp_path: Path) -> None:
    texts = ["how do I learn python", "best way to learn python", "python for beginners", "learning python quickly"]
    rows = [(Row(texts[0], (texts[1],)), 0), (Row(texts[1], (texts[2],)), 0), (Row(texts[3], (texts[0],)), 0)]
    at = Prepared(tmp_path / "tables", rows, ["all"], teacher)
    mined, _ = at.mine(tmp_path / "mined", negatives=3, ranks=(1, 10), relative=None, pick="nearest")
    got = [{at.words[text] for text in mined.negatives_of(row)} for row in range(3)]
    assert texts[0] not in got[1], "row 0 calls these two a pair"
    assert got[0] == {texts[2]}
