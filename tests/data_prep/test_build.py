import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep import build, harvest
from data_prep.build import DataConfig, data_fingerprint, prepare
from data_prep.clean import normal_form
from data_prep.docstrings import Docstring
from data_prep.heldout import HeldoutConfig, write_docstring_tasks
from data_prep.near_duplicates import similarities
from data_prep.tables import Examples, Texts
from embedding.config import parse_config
from embedding.files import content_key, fingerprint, read_json, read_manifest

KINDS = {
    *("retrieval", "reranking", "instruction_reranking", "sts", "pair_classification"),
    *("classification", "multilabel_classification", "clustering", "bitext"),
}
TASK = "Given a question, retrieve the answer"


def pair(i: int) -> dict[str, Any]:
    return {"question": f"What is number {i}?", "answer": f"It is the number {i}, and none other."}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(path: Path, share: float = 0.0, **source: Any) -> DataConfig:
    values = {"kind": "jsonl", "path": str(path), "query": "question", "positive": "answer", "instruction": TASK}
    return parse_config(DataConfig, {"sources": [values | source], "heldout": {"share": share}})


def tables(out: Path) -> tuple[Texts, Examples]:
    return Texts.load(out / "texts"), Examples.load(out / "examples")


def training_texts(out: Path) -> set[str]:
    return {normal_form(text) for text in Texts.load(out / "texts").texts.to_pylist()}


@pytest.fixture
def site_roots(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Harvest the small installation, in this process's own digest cache."""
    monkeypatch.setattr(harvest, "package_roots", lambda: [site])
    harvest.installed_digest.cache_clear()
    yield site
    harvest.installed_digest.cache_clear()


# ------------------------------------------------------------------------------------------------------------- tables


def test_texts_and_examples(tmp_path: Path) -> None:
    rows = [
        {"question": "one?", "answer": ["first", "also first"], "wrong": "second", "s": 0.5, "g": "a", "l": "en"},
        {"question": "two?", "answer": ["second"], "wrong": None, "s": None, "g": None, "l": "de"},
        {"question": "three?", "answer": ["first"], "wrong": None, "s": None, "g": "a", "l": "en"},
    ]
    path = write(tmp_path / "x.jsonl", rows)
    summary = prepare(config(path, negative="wrong", score="s", group="g", lang="l"), tmp_path / "out")
    texts, examples = tables(tmp_path / "out")
    assert [texts.text(i) for i in range(len(texts))] == ["one?", "first", "also first", "second", "two?", "three?"]
    assert [texts.role(i) for i in range(3)] == ["query", "document", "document"]
    assert [texts.task(i) for i in range(3)] == [TASK, "", ""]
    assert [texts.lang(i) for i in range(6)] == ["en", "en", "en", "en", "de", "en"]
    assert texts.keys[0].tobytes() == content_key("query", TASK, "one?")
    assert examples.queries.tolist() == [0, 4, 5]
    assert [examples.positives_of(i).tolist() for i in range(3)] == [[1, 2], [3], [1]]
    assert [examples.negatives_of(i).tolist() for i in range(3)] == [[3], [], []]
    assert examples.scores[0] == 0.5
    assert str(examples.scores[1]) == "nan"
    assert examples.groups.tolist() == [0, -1, 0]
    assert (examples.source_names, examples.sources.tolist()) == (["x"], [0, 0, 0])
    assert (summary["texts"], summary["examples"]) == (6, 3)


def test_the_tables_are_ordinary_datasets(tmp_path: Path) -> None:
    prepare(config(write(tmp_path / "x.jsonl", [pair(1), pair(2)])), tmp_path / "out")
    texts = datasets.load_from_disk(str(tmp_path / "out" / "texts"))
    examples = datasets.load_from_disk(str(tmp_path / "out" / "examples"))
    assert texts[examples[1]["positives"][0]]["text"] == pair(2)["answer"]
    assert texts.column_names == ["key_hi", "key_lo", "role", "task", "text", "lang"]


def test_single_texts_and_symmetric_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [pair(1), pair(2)])
    single = {"query": None, "positive": None, "text": "answer"}
    prepare(config(path, share=0.5, **single, instruction=""), tmp_path / "single")
    texts, examples = tables(tmp_path / "single")
    assert (len(examples), len(examples.positives_of(0))) == (2, 0)
    assert texts.role(0) == "document"
    prepare(config(path, symmetric=True), tmp_path / "both")
    texts, _ = tables(tmp_path / "both")
    assert [(texts.role(i), texts.task(i)) for i in range(len(texts))] == [("query", TASK)] * 4


def test_drops_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [pair(1), pair(1), {"question": "", "answer": "x"}, {"question": 3, "answer": "x"}, pair(2)]
    path = write(tmp_path / "x.jsonl", rows)
    summary = prepare(config(path, on_error="drop"), tmp_path / "out")
    dropped = {"'question' is empty": 1, "'question' is int, expected text": 1, "duplicate": 1}
    assert summary["dropped"] == summary["sources"]["x"]["dropped"] == dropped
    assert summary["sources"]["x"]["rows"] == 5
    assert summary["sources"]["x"]["examples"] == 2
    assert summary["sources"]["x"]["places"]["'question' is empty"] == [f"{path}:3"]


def test_a_bad_row_leaves_nothing_behind_and_finished_work_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [pair(1), pair(2)])
    before = prepare(config(path), tmp_path / "out")
    write(path, [pair(1), {"question": "", "answer": "x"}])
    with pytest.raises(ValueError, match=r"x\.jsonl:2"):
        prepare(config(path), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest["summary"] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x.jsonl"]


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    rows = [{"question": "The same for all?", "answer": f"answer {i}"} for i in range(6)]
    with pytest.raises(ValueError, match=r"no row is left to train on.*repeats a held-out text.*heldout\.share"):
        prepare(config(write(tmp_path / "x.jsonl", rows), share=0.4), tmp_path / "out")


# -------------------------------------------------------------------------------------------------------- fingerprints


def test_a_finished_step_is_skipped_and_a_change_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", [pair(1), pair(2)])
    first = prepare(config(path), tmp_path / "out")
    made = fingerprint(data_fingerprint(config(path)))
    stamp = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
        assert prepare(config(path), tmp_path / "out") == first
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == stamp
    path.write_text(path.read_text().replace("number 2", "number 3"))  # the same size
    assert fingerprint(data_fingerprint(config(path))) != made
    prepare(config(path), tmp_path / "out")
    assert "What is number 3?" in Texts.load(tmp_path / "out" / "texts").texts.to_pylist()


def test_changed_code_is_another_fingerprint(site_roots: Path, tmp_path: Path) -> None:
    before = data_fingerprint(DataConfig())
    (site_roots / "extra.py").write_text("x = 1\n")
    try:
        harvest.installed_digest.cache_clear()
        assert data_fingerprint(DataConfig()) != before
    finally:
        (site_roots / "extra.py").unlink()


def test_a_hub_data_set_is_known_by_its_commit() -> None:
    values = {"kind": "hub", "repository": "nobody/nothing", "text": "text"}
    pinned = parse_config(DataConfig, {"sources": [{**values, "revision": "0123456789" * 4}]})
    assert data_fingerprint(pinned)["contents"] == {"nothing": "0123456789" * 4}
    with pytest.raises(ValueError, match=r"nobody/nothing: the hub did not say which commit main is.*pin `revision`"):
        data_fingerprint(parse_config(DataConfig, {"sources": [{**values, "revision": "main"}]}))


# ------------------------------------------------------------------------------------------------------------ held out


def test_held_out_pairs_become_a_retrieval_task(tmp_path: Path) -> None:
    rows = [pair(i) for i in range(200)]
    rows += [{"question": f"Another way to ask for {i}?", "answer": pair(i)["answer"].upper()} for i in range(200)]
    rows += [{"question": pair(i)["question"].lower(), "answer": f"A second answer to {i}."} for i in range(200)]
    out = tmp_path / "out"
    summary = prepare(config(write(tmp_path / "faq.jsonl", rows), share=0.1), out)
    folder = out / "heldout" / "retrieval" / "faq"
    corpus, queries, qrels = (pq.read_table(folder / f"{name}.parquet") for name in ("corpus", "queries", "qrels"))
    assert (corpus.column_names, queries.column_names) == (["id", "title", "text"], ["id", "text"])
    assert qrels.column_names == ["query_id", "doc_id", "score"]
    assert summary["heldout"] == {"retrieval/faq": len(queries)}
    held = {normal_form(text) for table in (corpus, queries) for text in table["text"].to_pylist()}
    assert len(held) > 60
    assert held.isdisjoint(training_texts(out))
    text_of = dict(zip(corpus["id"].to_pylist(), corpus["text"].to_pylist(), strict=True))
    asked = dict(zip(queries["id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    allowed = {(normal_form(row["question"]), normal_form(row["answer"])) for row in rows}
    judged = {(normal_form(asked[row["query_id"]]), normal_form(text_of[row["doc_id"]])) for row in qrels.to_pylist()}
    assert judged <= allowed
    assert len({q for q, _ in judged}) == len(queries)
    assert read_json(out / "heldout" / "instructions.json") == {"retrieval/faq": TASK}
    counts = summary["sources"]["faq"]
    assert (
        counts["rows"] == 600 == counts["held out"] + counts["examples"] + counts["dropped"]["repeats a held-out text"]
    )


def test_a_held_out_document_goes_from_the_negatives_only(tmp_path: Path) -> None:
    rows = [{**pair(i), "wrong": [pair((i + 1) % 100)["answer"], pair((i + 2) % 100)["answer"]]} for i in range(100)]
    out = tmp_path / "out"
    summary = prepare(config(write(tmp_path / "x.jsonl", rows), share=0.1, negative="wrong"), out)
    _, examples = tables(out)
    corpus = pq.read_table(out / "heldout" / "retrieval" / "x" / "corpus.parquet")["text"].to_pylist()
    assert len(examples) == 90
    assert {normal_form(text) for text in corpus}.isdisjoint(training_texts(out))
    gone = summary["held-out texts removed as negatives"]
    assert gone > 0
    assert len(examples.negatives.values) + gone == 2 * 90


def test_a_group_is_held_out_whole(tmp_path: Path) -> None:
    rows = [{**pair(i), "g": i // 10} for i in range(200)]
    prepare(config(write(tmp_path / "x.jsonl", rows), share=0.1, group="g"), tmp_path / "out")
    corpus = pq.read_table(tmp_path / "out" / "heldout" / "retrieval" / "x" / "corpus.parquet")["text"].to_pylist()
    number = {pair(i)["answer"]: i for i in range(200)}
    groups = [number[text] // 10 for text in corpus]
    assert len(groups) == 10 * len(set(groups)) == 20


def test_a_group_too_large_for_an_evaluation_stays_in_training(tmp_path: Path) -> None:
    rows = [{**pair(i), "g": f"large {i % 3}" if i < 300 else i // 4} for i in range(400)]
    few = {"share": 0.05, "documents": 20}
    values = config(write(tmp_path / "x.jsonl", rows), share=0.05, group="g")
    prepare(values.model_copy(update={"heldout": HeldoutConfig(**few)}), tmp_path / "out")
    corpus = pq.read_table(tmp_path / "out" / "heldout" / "retrieval" / "x" / "corpus.parquet")["text"].to_pylist()
    number = {pair(i)["answer"]: i for i in range(400)}
    groups = [number[text] // 4 for text in corpus]
    assert all(group >= 75 for group in groups), "none of the hundreds"
    assert len(groups) == 4 * len(set(groups)) == 20


def test_graded_pairs_become_an_sts_task(tmp_path: Path) -> None:
    rows = [{**pair(i), "s": i % 5} for i in range(100)]
    summary = prepare(config(write(tmp_path / "x.jsonl", rows), share=0.1, score="s"), tmp_path / "out")
    assert summary["heldout"] == {"sts/x": 10}
    table = pq.read_table(tmp_path / "out" / "heldout" / "sts" / "x.parquet")
    assert table.column_names == ["sentence1", "sentence2", "score"]


def test_pairs_of_a_graded_source_that_have_no_grade_become_a_retrieval_task(tmp_path: Path) -> None:
    rows = [{**pair(i), "s": i % 5 if i % 2 else None} for i in range(100)]
    summary = prepare(config(write(tmp_path / "x.jsonl", rows), share=0.2, score="s"), tmp_path / "out")
    assert set(summary["heldout"]) == {"sts/x", "retrieval/x"}
    assert sum(summary["heldout"].values()) == 20


@pytest.mark.parametrize("own", ["", "Answer"])
def test_a_held_out_task_is_asked_with_the_most_frequent_instruction_of_its_rows(tmp_path: Path, own: str) -> None:
    wanted = [*["Find what it is"] * 5, *["Find where it is"] * 3, None, ""]
    rows = [{**pair(i), "i": wanted[i % 10], "s": i % 5 if i % 2 else None} for i in range(200)]
    path = write(tmp_path / "x.jsonl", rows)
    source = {"score": "s", "instruction": own, "instruction_column": "i"}
    out = tmp_path / "out"
    summary = prepare(config(path, share=0.3, **source), out)
    assert set(read_json(out / "heldout" / "instructions.json")) == {"retrieval/x", "sts/x"}
    by_text = {row["question"]: row["i"] or own for row in rows}
    for task, file, column in (("retrieval/x", "retrieval/x/queries", "text"), ("sts/x", "sts/x", "sentence1")):
        asked = [by_text[text] for text in pq.read_table(out / "heldout" / f"{file}.parquet")[column].to_pylist()]
        chosen = read_json(out / "heldout" / "instructions.json")[task]
        assert asked.count(chosen) == max(asked.count(text) for text in ("Find what it is", "Find where it is"))
        assert summary["held-out pairs with another instruction"][task] == len(asked) - asked.count(chosen) > 0


def test_a_handful_of_rows_is_all_trained_on(tmp_path: Path) -> None:
    summary = prepare(config(write(tmp_path / "x.jsonl", [pair(i) for i in range(3)]), share=0.05), tmp_path / "out")
    assert (summary["examples"], summary["heldout"]) == (3, {})


def test_the_docstring_corpus(site_roots: Path, tmp_path: Path) -> None:
    heldout = {"share": 0.4, "queries": 30, "documents": 120}
    data = parse_config(DataConfig, {"sources": [{"kind": "docstrings", "limit": 100}], "heldout": heldout})
    out = tmp_path / "out"
    summary = prepare(data, out)
    assert summary["examples"] == 100
    texts, examples = tables(out)
    assert texts.task(int(examples.queries[0])) == data.sources[0].instruction
    folder = out / "heldout"
    corpus = pq.read_table(folder / "retrieval" / "docstrings" / "corpus.parquet")["text"].to_pylist()
    queries = pq.read_table(folder / "retrieval" / "docstrings" / "queries.parquet")["text"].to_pylist()
    assert {normal_form(text) for text in corpus + queries}.isdisjoint(training_texts(out))
    assert len(queries) == 30
    reranking = pq.read_table(folder / "reranking" / "docstrings.parquet").to_pylist()
    for row in reranking:
        assert len(row["positive"]) == 1
        assert row["positive"][0] not in row["negative"]
        assert {*row["positive"], *row["negative"]} <= set(corpus)
    pairs = pq.read_table(folder / "pair_classification" / "docstrings.parquet").to_pylist()
    assert [row["label"] for row in pairs] == [1, 0] * (len(pairs) // 2)
    assert pairs[0]["sentence1"] == pairs[1]["sentence1"]
    assert pairs[0]["sentence2"] != pairs[1]["sentence2"]
    train, test = (
        pq.read_table(folder / "classification" / f"docstrings-{split}.parquet") for split in ("train", "test")
    )
    assert set(train["label"].to_pylist()) == set(test["label"].to_pylist())
    assert set(train["text"].to_pylist()).isdisjoint(test["text"].to_pylist())
    assert pq.read_table(folder / "clustering" / "docstrings.parquet").num_rows == test.num_rows
    instructions = read_json(folder / "instructions.json")
    assert instructions["reranking/docstrings"] == data.sources[0].instruction
    assert "package" in instructions["clustering/docstrings"]
    labels = pq.read_table(folder / "multilabel_classification" / "docstrings-test.parquet")["label"].to_pylist()
    assert {"long", "short"} <= {label for row in labels for label in row}
    assert min(map(len, labels)) >= 2
    for row in pq.read_table(folder / "instruction_reranking" / "docstrings.parquet").to_pylist():
        assert row["instruction"] != row["changed_instruction"]
        groups = [row["positive"], row["dropped"], row["negative"]]
        assert all(groups)
        assert len({text for group in groups for text in group}) == sum(map(len, groups))
    graded = pq.read_table(folder / "sts" / "docstrings.parquet").to_pylist()
    bodies = {row["sentence1"]: row["sentence2"] for row in graded if row["score"] == 3}
    own = {row["query"]: row["positive"][0] for row in reranking}
    assert bodies
    assert all(own[summary] == body for summary, body in bodies.items())
    names = pq.read_table(folder / "bitext" / "docstrings.parquet").to_pylist()
    assert len({row["sentence1"] for row in names}) == len({row["sentence2"] for row in names}) == len(names)
    assert {task.split("/")[0] for task in summary["heldout"]} == KINDS
    again = prepare(data, tmp_path / "again")
    assert again == summary
    for file in sorted(out.rglob("*.parquet")):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(out)).read_bytes()


def test_sources_that_are_only_trained_on(site_roots: Path, tmp_path: Path) -> None:
    rows = {"path": str(write(tmp_path / "x.jsonl", [pair(i) for i in range(50)])), "query": "question"}
    sources: list[dict[str, Any]] = [
        {"kind": "docstrings", "limit": 50},
        {"kind": "docstrings", "name": "both", "limit": 20, "symmetric": True, "hold_out": False},
        {"kind": "jsonl", **rows, "positive": "answer", "hold_out": False},
    ]
    heldout = {"share": 0.4, "queries": 10, "documents": 60}
    summary = prepare(parse_config(DataConfig, {"sources": sources, "heldout": heldout}), tmp_path / "out")
    assert {task.split("/")[1] for task in summary["heldout"]} == {"docstrings"}
    assert [part["examples"] for part in summary["sources"].values()] == [50, 20, 50]
    corpus = pq.read_table(tmp_path / "out/heldout/retrieval/docstrings/corpus.parquet")["text"].to_pylist()
    assert {normal_form(text) for text in corpus}.isdisjoint(training_texts(tmp_path / "out"))


def test_a_near_copy_does_not_hide_a_held_out_docstring(site_roots: Path, tmp_path: Path) -> None:
    """A text that is held out word for word goes from another source, though it is near an earlier text there."""
    heldout = {"share": 0.4, "queries": 10, "documents": 60}
    docstrings = {"kind": "docstrings", "limit": 50}
    prepare(parse_config(DataConfig, {"sources": [docstrings], "heldout": heldout}), tmp_path / "alone")
    corpus = pq.read_table(tmp_path / "alone/heldout/retrieval/docstrings/corpus.parquet")["text"].to_pylist()
    held = max(corpus, key=len)
    near = f"{held} Zebra."
    rows = [{"question": "What comes first?", "answer": near}, {"question": "And what then?", "answer": held}]
    path = write(tmp_path / "x.jsonl", [*rows, {"question": "Anything else?", "answer": "No, nothing at all."}])
    columns = {"kind": "jsonl", "path": str(path), "query": "question", "positive": "answer", "hold_out": False}
    values = {"sources": [docstrings, columns], "heldout": heldout, "near_duplicates": {}}
    summary = prepare(parse_config(DataConfig, values), tmp_path / "out")
    assert summary["near-duplicates"]["near pairs"] >= 1
    assert normal_form(held) not in training_texts(tmp_path / "out")
    assert normal_form(near) not in training_texts(tmp_path / "out")
    assert summary["sources"]["x"]["dropped"] == {"repeats a held-out text": 2}


def test_real_pairs_with_negatives(eyas_data: Path, tmp_path: Path) -> None:
    columns = {"query": "query", "positive": "positive", "negative": "negative", "lang": "lang"}
    path = str(eyas_data / "pairs" / "snli_dev_test.parquet")
    source = {"kind": "parquet", "path": path, **columns, "symmetric": True, "on_error": "drop"}
    summary = prepare(parse_config(DataConfig, {"sources": [source]}), tmp_path / "out")
    texts, examples = tables(tmp_path / "out")
    assert summary["sources"]["snli_dev_test"]["rows"] == 6027
    assert len(examples) > 5000
    assert summary["heldout"]["retrieval/snli_dev_test"] > 200
    assert len(examples.negatives.values) > 4000
    assert texts.lang(0) == "en"


def test_a_bad_text_of_a_label_goes_alone(tmp_path: Path) -> None:
    good = [{"t": f"a perfectly good text number {i}", "l": "x"} for i in range(27)]
    bad = [{"t": f"no {i}", "l": "x"} for i in range(13)]
    rows = [row for pair in zip(good, bad, strict=False) for row in pair] + good[13:] + [good[0]]
    path = write(tmp_path / "x.jsonl", rows)
    source = {"kind": "jsonl", "path": str(path), "text": "t", "label": "l"}
    values = {"sources": [source], "filters": {"min_chars": 10}, "heldout": {"share": 0.0}}
    summary = prepare(parse_config(DataConfig, values), tmp_path / "out")
    assert summary["examples"] == 27
    assert summary["dropped"] == {"shorter than min_chars": 13, "duplicate": 1}


def test_held_out_rows_that_make_no_task_are_trained_on(tmp_path: Path) -> None:
    rows = [{**pair(i), "s": 1.0} for i in range(100)]
    summary = prepare(config(write(tmp_path / "x.jsonl", rows), share=0.1, score="s"), tmp_path / "out")
    assert (summary["examples"], summary["heldout"]) == (100, {})
    assert summary["sources"]["x"]["held out"] == 0


def test_no_version_of_a_held_out_document_is_trained_on(tmp_path: Path) -> None:
    """Of versions in a row each is near the next one only, so that no text stands for all of them."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=7)) for _ in range(4_000)]
    rows = []
    for family in range(60):
        text = words[60 * family : 60 * family + 60]
        for version in range(4):
            changed = [*text]
            for place in rng.sample(range(60), 3):
                changed[place] = rng.choice(words)
            rows.append({"question": f"{family} {version} {changed[5]}?", "answer": " ".join(changed)})
    source = {
        "kind": "jsonl",
        "path": str(write(tmp_path / "x.jsonl", rows)),
        "query": "question",
        "positive": "answer",
    }
    values = {"sources": [source], "near_duplicates": {}, "heldout": {"share": 0.1}}
    prepare(parse_config(DataConfig, values), tmp_path / "out")
    corpus = pq.read_table(tmp_path / "out/heldout/retrieval/x/corpus.parquet")["text"].to_pylist()
    texts = [normal_form(text) for text in corpus]
    trained = sorted(training_texts(tmp_path / "out"))
    pairs = np.array([(i, len(texts) + j) for i in range(len(texts)) for j in range(len(trained))])
    both = texts + trained
    assert similarities(pairs, lambda rows: [both[row] for row in rows.tolist()]).max() < 0.8


def test_a_licence_changes_no_table(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [pair(i) for i in range(30)])
    plain, said = config(path), config(path, licence="CC-BY-4.0")
    assert data_fingerprint(plain) == data_fingerprint(said)
    left_out = said.model_copy(update={"sources": [*said.sources, *plain.sources], "licences": ["CC-*"]})
    assert data_fingerprint(left_out) != data_fingerprint(said), "the summary names what was left out"


def test_what_stays_keeps_its_own_grade_and_group_and_so_does_what_is_held_out(tmp_path: Path) -> None:
    rows = [{**pair(i // 2), "s": float(i // 2), "g": f"g{i // 2}"} for i in range(40)]  # each twice
    prepare(config(write(tmp_path / "x.jsonl", rows), share=0.2, score="s", group="g"), tmp_path / "out")
    texts, examples = tables(tmp_path / "out")
    number = {pair(i)["question"]: i for i in range(20)}
    kept = [number[texts.text(int(query))] for query in examples.queries]
    assert 0 < len(kept) < 20
    assert examples.scores.tolist() == kept
    groups = examples.groups.tolist()
    assert len(set(groups)) == len(kept), "each pair had a group of its own"
    answers = [texts.text(int(examples.positives_of(row)[0])) for row in range(len(kept))]
    assert answers == [pair(i)["answer"] for i in kept]
    held = pq.read_table(tmp_path / "out/heldout/sts/x.parquet").to_pylist()
    assert held
    for row in held:
        i = number[row["sentence1"]]
        assert (row["sentence2"], row["score"]) == (pair(i)["answer"], float(i))


def test_what_the_tasks_of_docstrings_call_right_is_right(tmp_path: Path) -> None:
    rng = random.Random(0)
    found = [
        Docstring(
            package=f"p{p}",
            module=f"p{p}.m{m}",
            name=f"f{n}",
            summary=f"Summary {p} {m} {n} of it",
            body=f"Body {p} {m} {n} " + " ".join(rng.choices("abcdefgh", k=9)),
        )
        for p in range(3)
        for m in range(12)
        for n in range(4)
    ]
    tasks = write_docstring_tasks(tmp_path, "docs", found, "Find it", 50)
    assert {"reranking", "pair_classification", "classification", "clustering"} <= {
        name.split("/")[0] for name in tasks
    }
    body, package = {d.summary: d.body for d in found}, {d.body: d.package for d in found}

    def rows(name: str) -> list[dict[str, Any]]:
        return list(pq.read_table(tmp_path / f"{name}.parquet").to_pylist())

    assert all(row["positive"] == [body[row["query"]]] for row in rows("reranking/docs"))
    for row in rows("pair_classification/docs"):
        assert row["label"] == (row["sentence2"] == body[row["sentence1"]])
    for name in ("classification/docs-train", "classification/docs-test", "clustering/docs"):
        assert all(row["label"] == package[row["text"]] for row in rows(name))
    assert all(row["label"][0] == package[row["text"]] for row in rows("multilabel_classification/docs-test"))
