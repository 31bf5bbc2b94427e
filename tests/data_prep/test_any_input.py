"""Whatever a file holds: a clear message that names file and row, or, with `on_error: drop`, a counted drop.

Every property here is one function, `read_both_ways`, over another reader and another way to spoil its input.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.build import DataConfig
from data_prep.rows import BadRow, Mapping, Row, Tally, to_row
from data_prep.sources import HARMLESS, numbered_rows
from embedding.config import parse_config

# The same examples at every run, so that a failure here can be repeated and a change elsewhere is not blamed.
few = settings(
    deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
WORDS = st.text("abc é語\u200b\x00\n\t\"',;|\\{}[]", max_size=12)
SCALARS = st.one_of(
    WORDS, st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["\ud83d", "x" * 9_999])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2))
GOOD = st.builds(
    lambda word, place: f"{word}{place} text", st.text("abcdef", min_size=1, max_size=6), st.integers(0, 99)
)
ROWS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys("qpnsgl", GOOD | VALUES)), max_size=6)
PAIRS = {"query": "q", "positive": "p"}
FULL = {**PAIRS, "negative": "n", "score": "s", "group": "g", "lang": "l"}
MAPPINGS = st.sampled_from([PAIRS, FULL, {"text": "q"}, {"text": "q", "label": "g"}, {**PAIRS, "negative": ["n", "p"]}])
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
}


def read_both_ways(kind: str, path: Path, **values: Any) -> tuple[list[Row] | str, list[Row] | str]:
    """What reading gives with `on_error: stop` and with `drop`: the rows or the message; checks what holds of any."""
    results: list[list[Row] | str] = []
    tallies = []
    for on_error in ("stop", "drop"):
        source = {"kind": kind, "path": str(path), "on_error": on_error, **values}
        config = parse_config(DataConfig, {"sources": [source]}).sources[0]
        tally = Tally()
        try:
            rows = [found.row for found in numbered_rows(config, tally)]  # type: ignore[arg-type]
        except ValueError as error:
            message = str(error)
            assert path.name.partition(".")[0] in message, f"names no file: {message}"
            results.append(message)
        else:
            results.append(rows)
            for row in rows:
                assert all(text.strip() and text.encode() for text in row.texts())
                assert not set(row.negatives) & set(row.positives)
        tallies.append(tally)
        if isinstance(results[-1], list):
            assert tally.read == len(results[-1]) + tally.dropped.total(), tally.report()
    stopped, dropped = results
    if isinstance(stopped, list):
        assert dropped == stopped
        assert set(tallies[0].dropped) <= HARMLESS
    return stopped, dropped


@few
@given(VALUES | GOOD, VALUES | GOOD, VALUES, VALUES, MAPPINGS)
def test_the_row_schema(query: Any, positive: Any, negative: Any, other: Any, mapping: dict[str, Any]) -> None:
    values = {"q": query, "p": positive, "n": negative, "s": other, "g": other, "l": other}
    try:
        row = to_row(Mapping(**mapping), values, symmetric=False)
    except BadRow:
        return
    assert row.query == query
    assert all(isinstance(text, str) and text.strip() for text in row.texts())
    assert row.query not in row.positives
    assert not set(row.negatives) & set(row.positives)
    assert len(set(row.positives)) == len(row.positives)


@few
@given(ROWS, MAPPINGS, st.sampled_from(sorted(PACKERS)), st.integers(0, 400) | st.none(), st.integers(0, 255))
def test_jsonl(rows: list[Any], mapping: Any, packed: str, cut: int | None, byte: int) -> None:
    lines = [json.dumps(row).encode() for row in rows] + [
        b'{"q": "a b", "p": "c d", "n": "e", "s": 1, "g": "g", "l": "en"}'
    ]
    data = bytearray(PACKERS[packed](b"\n".join(lines)))
    if cut is not None:
        del data[cut:]
        data += bytes([byte]) * (byte % 3)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.jsonl{packed}"
        path.write_bytes(data)
        read_both_ways("jsonl", path, **mapping)


@few
@given(st.binary(max_size=300), MAPPINGS)
def test_jsonl_of_any_bytes(data: bytes, mapping: Any) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(data)
        read_both_ways("jsonl", path, **mapping)


@few
@given(
    st.lists(st.lists(WORDS | GOOD, min_size=6, max_size=6), max_size=6),
    MAPPINGS,
    st.sampled_from(sorted(PACKERS)),
    st.integers(0, 300) | st.none(),
    st.binary(max_size=6),
    st.booleans(),
)
def test_csv(rows: list[list[str]], mapping: Any, packed: str, cut: int | None, spoilt: bytes, quotes: bool) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([["q", "p", "n", "s", "g", "l"], *rows])
    data = text.getvalue().encode()
    if cut is not None:
        data = data[:cut] + spoilt + data[cut:]
    data = PACKERS[packed](data)
    if packed and cut is not None:
        data = data[:cut]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.csv{packed}"
        path.write_bytes(data)
        read_both_ways("csv", path, quotes=quotes, **mapping)


COLUMNS: list[pa.DataType] = [
    *(pa.string(), pa.large_string(), pa.int64(), pa.float32(), pa.bool_(), pa.binary(), pa.date32()),
    *(pa.list_(pa.string()), pa.list_(pa.list_(pa.string())), pa.struct([("a", pa.string())]), pa.null()),
    *(pa.timestamp("ns"), pa.decimal128(14, 2), pa.dictionary(pa.int32(), pa.string())),
]


def column(kind: pa.DataType, words: list[str]) -> pa.Array:
    """An array of a type that holds something like the words."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.array(words, kind)
    if pa.types.is_dictionary(kind):
        return pa.array(words).dictionary_encode()
    if pa.types.is_binary(kind):
        return pa.array([word.encode() for word in words], kind)
    if pa.types.is_list(kind):
        deep = pa.types.is_list(kind.value_type)
        return pa.array([[[word]] if deep else [word, None, word] for word in words], kind)
    if pa.types.is_struct(kind):
        return pa.array([{"a": word} for word in words], kind)
    if pa.types.is_null(kind):
        return pa.nulls(len(words))
    numbers = pa.array([len(word) for word in words], pa.int32())
    if pa.types.is_timestamp(kind):
        return pa.array([2**62 + len(word) for word in words], pa.int64()).cast(kind)
    return numbers.cast(pa.bool_() if pa.types.is_boolean(kind) else kind)


@few
@given(
    st.lists(GOOD, max_size=5),
    st.lists(st.sampled_from(COLUMNS), min_size=6, max_size=6),
    MAPPINGS,
    st.integers(0, 3_000),
)
def test_parquet(words: list[str], kinds: list[pa.DataType], mapping: Any, cut: int) -> None:
    table = pa.table({name: column(kind, words) for name, kind in zip("qpnsgl", kinds, strict=True)})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(table, path)
        read_both_ways("parquet", path, **mapping)
        path.write_bytes(path.read_bytes()[:cut])
        if cut < 400:
            stopped, dropped = read_both_ways("parquet", path, **mapping)
            assert isinstance(stopped, str)
            assert isinstance(dropped, str)


def test_one_value_that_is_no_text_costs_one_row_of_a_parquet_file(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")]
    )
    pq.write_table(pa.table({"q": bad, "p": ["x", "y", "z"]}), tmp_path / "rows.parquet")
    stopped, dropped = read_both_ways("parquet", tmp_path / "rows.parquet", **PAIRS)
    assert "rows.parquet row 2" in stopped
    assert dropped == [Row("a", ("x",)), Row("c", ("z",))]


@pytest.mark.parametrize("spoil", ["state.json", "dataset_info.json", "arrow", "half", "list"])
def test_a_datasets_folder(tmp_path: Path, spoil: str) -> None:
    datasets.Dataset.from_list([{"q": f"question {n}", "p": f"answer {n}"} for n in range(50)]).save_to_disk(
        tmp_path / "data"
    )
    arrow = next((tmp_path / "data").glob("*.arrow"))
    if spoil in ("state.json", "dataset_info.json"):
        (tmp_path / "data" / spoil).write_text('{"_data_files":')
    elif spoil == "list":
        (tmp_path / "data" / "state.json").write_text("[]")
    elif spoil == "arrow":
        arrow.unlink()
    else:
        arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    stopped, _ = read_both_ways("datasets", tmp_path / "data", **PAIRS)
    assert isinstance(stopped, str)


IDS = st.sampled_from(["d1", "d2", "d3", "", "unknown"])


@few
@given(
    st.lists(
        st.fixed_dictionaries({}, optional={"_id": IDS | VALUES, "text": GOOD | VALUES, "title": VALUES}), max_size=5
    ),
    st.lists(st.fixed_dictionaries({}, optional={"_id": IDS | VALUES, "text": GOOD | VALUES}), max_size=4),
    st.lists(st.tuples(IDS, IDS, st.sampled_from(["1", "0", "-1", "2.5", "high", "", "nan"])), max_size=6),
)
def test_beir(corpus: list[Any], queries: list[Any], qrels: list[Any]) -> None:
    """Duplicate ids, judgements of unknown texts, missing fields, scores that are none."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "qrels").mkdir()
        for file, rows in (("corpus", corpus), ("queries", queries)):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(row) for row in qrels)]
        (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")
        read_both_ways("beir", folder)


def test_beir_says_what_is_wrong_and_where(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    documents = [{"_id": f"d{n}", "text": f"document {n}"} for n in (1, 2, 2)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "one?"}\n')
    rows = ["q1\td1\t1", "q1\td2\t0", "q1\td9\t1", "q7\td1\t1", "q1\td1\t0", "q1\td1\thigh"]
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n")
    stopped, dropped = read_both_ways("beir", tmp_path)
    for part in (
        r"an id that is there already (PATH/corpus.jsonl:3)",
        r"a judgement names an unknown document (PATH/qrels/train.tsv:4 (document d9))",
        r"a judgement names an unknown query (PATH/qrels/train.tsv:5 (query q7))",
        r"another judgement of a pair that is judged already (PATH/qrels/train.tsv:6)",
        r"no number in 'score' (PATH/qrels/train.tsv:7)",
    ):
        assert part.replace("PATH", str(tmp_path)) in stopped
    assert dropped == [Row("one?", ("document 1",), ("document 2",))]


CODE = 'def f(a):\n    """Say what it does in a few words here."""\n    return [a for a in range(10)] + ["and so on"]\n'
DEEP = ["-" * 100_000 + "1", "(" * 1_000, "x" + ".a" * 100_000, "<div>" * 5_000, "> " * 5_000 + "a", "# " * 900, CODE]


@few
@given(
    st.binary(max_size=200) | st.sampled_from(DEEP).map(str.encode) | WORDS.map(str.encode),
    st.sampled_from(["md", "html", "txt", "py"]),
)
def test_documents(data: bytes, ending: str) -> None:
    """A folder with one good file and one of anything: the good one's pairs are there, the other's are counted."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "docs"
        folder.mkdir()
        (folder / "good.py").write_text(CODE)
        (folder / f"any.{ending}").write_bytes(data)
        config = parse_config(DataConfig, {"sources": [{"kind": "documents", "path": str(folder)}]}).sources[0]
        tally = Tally()
        rows = [found.row for found in numbered_rows(config, tally)]  # type: ignore[arg-type]
        assert any(row.query == "Say what it does in a few words here." for row in rows)
        assert tally.read == len(rows) + tally.dropped.total()
        assert tally.read >= 2, "the other file gave a row or a reason"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_text_of_ten_megabytes_and_a_file_of_no_byte(tmp_path: Path, ending: str, packed: str) -> None:
    long = "ten mega " * 1_200_000
    path = tmp_path / f"rows.{ending}{packed}"
    if ending == "parquet":
        pq.write_table(pa.table({"q": ["how long?"], "p": [long]}), path)
    else:
        line = json.dumps({"q": "how long?", "p": long}) if ending == "jsonl" else f"q,p\nhow long?,{long}"
        path.write_bytes(PACKERS[packed](line.encode()))
    assert read_both_ways(ending, path, **PAIRS)[0] == [Row("how long?", (long,))]
    path.write_bytes(b"")
    assert isinstance(read_both_ways(ending, path, **PAIRS)[0], str)
    shutil.rmtree(tmp_path)


@few
@given(st.lists(st.tuples(GOOD, st.sampled_from(["a", "b", "", None, 1, 2.5, ["a"]])), max_size=8))
def test_labelled_texts(rows: list[tuple[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps({"t": text, "c": label}) + "\n" for text, label in rows) + "\n")
        _, dropped = read_both_ways("jsonl", path, text="t", label="c")
        by_text = {text: {str(label) for other, label in rows if other == text} for text, _ in rows}
        for row in dropped if isinstance(dropped, list) else []:
            assert row.group in by_text[row.query]
            assert row.group in by_text[row.positives[0]], "a positive has the same label"
            assert row.positives[0] != row.query
