"""Filters, near-duplicates and decontamination in a whole pass: what goes, why, and that nothing goes silently."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep.build import DataConfig, prepare
from data_prep.datacard import write_card
from data_prep.decontaminate import EvaluationTexts
from data_prep.docstrings import Docstring
from data_prep.dropped import explain
from data_prep.tables import Examples, Texts
from embedding.config import parse_config

EVALUATION = "Return the position of the first card that beats every other card on the table, or -1 where none does."
Rows = list[dict[str, Any]]
Cleaned = tuple[Path, DataConfig, dict[str, Any]]
WORDS = ["boat", "river", "lantern", "copper", "window", "garden", "thunder", "pencil", "velvet", "harbour", "meadow"]
TWIN = "A sentence about boats that is long enough to be changed a little without anyone noticing the change at all."


@pytest.fixture(scope="module")
def rows(real_texts: list[Docstring]) -> Rows:
    found = [{"q": pair.summary, "p": pair.body, "n": []} for pair in real_texts[:150]]
    found.append({"q": "Which boats?", "p": TWIN, "n": []})
    found.append({"q": "which boats", "p": TWIN.replace("anyone", "anybody"), "n": []})
    found.append({"q": "Which card wins?", "p": EVALUATION.lower(), "n": []})
    found.append({"q": "Another question", "p": "And its answer.", "n": [EVALUATION, "A wrong answer."]})
    found.append({"q": "Wer weiß denn das schon so ganz genau?", "p": "Das weiß niemand, auch ich nicht.", "n": []})
    found.append({"q": "Buy!", "p": "buy cheap boats now " * 30, "n": []})
    found.append(found[0])
    found.append({"q": "", "p": "nothing asked", "n": []})
    return found


@pytest.fixture(scope="module")
def cleaned(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Cleaned:
    folder = tmp_path_factory.mktemp("cleaned")
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "path": str(folder / "docs.jsonl"), "query": "q", "positive": "p", "negative": "n"}
    filters = {"unicode": "nfc", "repetition": True, "languages": ["en"]}
    values: dict[str, Any] = {
        "sources": [{**source, "on_error": "drop", "licence": "PSF-2.0"}],
        "filters": filters,
        "near_duplicates": {},
        "heldout": {"share": 0.0},
    }
    config = parse_config(DataConfig, values)
    evaluation = EvaluationTexts({"suite": 1}, lambda: [("retrieval/cards", EVALUATION)])
    return folder / "out", config, prepare(config, folder / "out", progress=False, evaluation=evaluation)


def test_every_row_is_accounted_for(rows: Rows, cleaned: Cleaned) -> None:
    out, _, summary = cleaned
    part = summary["sources"]["docs"]
    assert part["rows"] == len(rows) == part["examples"] + part["held out"] + sum(part["dropped"].values())
    dropped = pq.read_table(out / "dropped.parquet").to_pylist()
    assert Counter(row["reason"] for row in dropped) == Counter(summary["dropped"])
    fates = pq.read_table(out / "fates.parquet").to_pylist()
    assert sum(row["fate"] == "kept" for row in fates) == len(Examples.load(out / "examples")) == summary["examples"]
    for reason in ("duplicate", "near-duplicate", "is an evaluation text", "another language", "repeats itself"):
        assert summary["dropped"][reason] >= 1, reason
    assert not (out / ".work").exists()


def test_no_text_of_the_evaluation_is_left(cleaned: Cleaned) -> None:
    out, _, summary = cleaned
    texts = Texts.load(out / "texts").texts.to_pylist()
    assert not [text for text in texts if text.lower() == EVALUATION.lower()]
    assert "A wrong answer." in texts
    assert summary["removed"] == {"negatives that repeat an evaluation text": 1}


def test_a_row_is_explained(cleaned: Cleaned) -> None:
    out, _, _ = cleaned
    assert explain(out, "docs:152")[2:4] == ("near-duplicate", "of row 151 of docs")
    assert explain(out, "153").fate == "is an evaluation text"
    assert "retrieval/cards" in explain(out, "docs:153").detail
    assert explain(out, "docs:158").fate == "'q' is empty"
    assert explain(out, explain(out, "docs:158").place).row == 158
    kept = explain(out, "docs:154")
    assert kept.fate in ("kept", "held out")
    with pytest.raises(ValueError, match="source 'docs' has no row 999"):
        explain(out, "docs:999")
    with pytest.raises(ValueError, match="name a row as SOURCE:NUMBER, sources: docs"):
        explain(out, "faq:1")


def test_the_data_card(cleaned: Cleaned, tmp_path: Path) -> None:
    out, config, summary = cleaned
    markdown, page = (path.read_text() for path in write_card(tmp_path, out, config))
    assert f"| training examples | {summary['examples']:,} |" in markdown
    assert "PSF-2.0" in markdown
    assert "near-duplicate" in markdown
    assert page.count("<svg") >= 3
    assert "<script" not in page


def test_worker_processes_give_the_same(
    rows: Rows,
    cleaned: Cleaned,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from data_prep import examine

    monkeypatch.setattr(examine, "BATCH_ROWS", 20)
    monkeypatch.setattr(examine, "ALONE_BATCHES", 1)
    monkeypatch.setattr(examine, "cores", lambda: 2)
    out, config, summary = cleaned
    evaluation = EvaluationTexts({"suite": 1}, lambda: [("retrieval/cards", EVALUATION)])
    assert prepare(config, tmp_path / "out", progress=False, evaluation=evaluation) == summary
    assert (tmp_path / "out" / "fates.parquet").read_bytes() == (out / "fates.parquet").read_bytes()


GETTER = """def get_{0}(self):
    # The value is read from the device once, cached, and returned as a float.
    return self._{0}"""


def test_of_templates_nothing_goes_as_a_near_duplicate_where_the_source_says_so(tmp_path: Path) -> None:
    lines = [{"q": f"Return the {name} of the device.", "p": GETTER.format(name)} for name in ("mass", "pass", "load")]
    for name in ("code", "text"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({**row, "q": name + row["q"]}) + "\n" for row in lines)
        )
    common = {"kind": "jsonl", "query": "q", "positive": "p"}
    code = {**common, "path": str(tmp_path / "code.jsonl"), "near_duplicates": False}
    values = {
        "sources": [code, {**common, "path": str(tmp_path / "text.jsonl")}],
        "near_duplicates": {"threshold": 0.6},
        "heldout": {"share": 0.0},
    }
    found = prepare(parse_config(DataConfig, values), tmp_path / "out", progress=False)["sources"]
    assert found["code"]["examples"] == 3
    assert found["text"]["dropped"]["near-duplicate"] >= 1


def test_a_held_out_text_goes_from_a_source_that_is_not_compared(tmp_path: Path) -> None:
    """Its near-duplicate is the one that stands for it, and the other source's equal text has no such."""

    def text(number: int) -> str:
        return " ".join(random.Random(number).choices(WORDS, k=40))

    pairs = [("first", text(i)) for i in range(20)] + [("later", f"{text(i)} indeed") for i in range(20)]
    compared = [{"q": f"which {side} {text(100 + i)}", "p": answer} for i, (side, answer) in enumerate(pairs)]
    other = [{"q": f"{text(i)} indeed", "p": text(200 + i)} for i in range(20)]
    common = {"kind": "jsonl", "query": "q", "positive": "p"}
    sources: Rows = []
    for name, rows in (("compared", compared), ("other", other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({**common, "path": str(tmp_path / f"{name}.jsonl")})
    sources[1] |= {"near_duplicates": False, "hold_out": False}
    values = {"sources": sources, "near_duplicates": {}, "heldout": {"share": 0.2}}
    summary = prepare(parse_config(DataConfig, values), tmp_path / "out", progress=False)
    held = pq.read_table(tmp_path / "out/heldout/retrieval/compared/corpus.parquet")["text"].to_pylist()
    assert sum(answer.endswith("indeed") for answer in held) == len(held) / 2 > 0
    assert set(held).isdisjoint(Texts.load(tmp_path / "out" / "texts").texts.to_pylist())
    assert summary["sources"]["other"]["dropped"] == {"repeats a held-out text": len(held) / 2}


def test_licences_choose_sources() -> None:
    texts = [{"kind": "jsonl", "path": f"{name}.jsonl", "text": "t", "licence": name} for name in ("CC0", "CC-BY-NC")]
    config = parse_config(DataConfig, {"sources": texts, "licences": ["CC0", "MIT"]})
    assert [source.title() for source in config.used()] == ["CC0"]
    with pytest.raises(ValueError, match="no source is left; their licences are CC-BY-NC, CC0"):
        parse_config(DataConfig, {"sources": texts, "licences": ["MIT"]})
