import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import DataConfig
from data_prep.rows import Row, Tally
from data_prep.sources import ColumnSource, read_rows
from embedding.config import parse_config

FAQ = [
    {"question": "How do I reset my password?", "answer": "Settings, then Account, then Reset."},
    {"question": "Wo liegt Köln?", "answer": 'Am Rhein, in "Nordrhein-Westfalen",\nsüdlich von Düsseldorf.'},
    {"question": "When do you ship?", "answer": "Within two days."},
]
COLUMNS = {"query": "question", "positive": "answer"}
ROWS = [Row(row["question"], (row["answer"],)) for row in FAQ]


def source(kind: str, path: Path | str, **settings: Any) -> ColumnSource:
    config = parse_config(DataConfig, {"sources": [{"kind": kind, "path": str(path), **(settings or COLUMNS)}]})
    found = config.sources[0]
    assert not isinstance(found, str)
    return found  # type: ignore[return-value]


def rows(kind: str, path: Path | str, **settings: Any) -> list[Row]:
    return list(read_rows(source(kind, path, **settings), Tally()))


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "faq.jsonl", [json.dumps(row) for row in FAQ])


def test_jsonl(jsonl: Path) -> None:
    assert rows("jsonl", jsonl) == ROWS
    jsonl.write_bytes(b"\xef\xbb\xbf" + jsonl.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert rows("jsonl", jsonl) == ROWS


@pytest.mark.parametrize("suffix, delimiter", [(".csv", ","), (".tsv", "\t")])
def test_csv(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"faq{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["answer", "question"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(FAQ)
    assert rows("csv", path) == ROWS


def test_tsv_with_bare_quotes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bare.tsv", ["q\ta", 'what is "x"?\t"x is a letter', "and y?\ty is a letter"])
    assert len(rows("csv", path, query="q", positive="a", quotes=False)) == 2
    with pytest.raises(ValueError, match=r"bare\.tsv:2: a quote opens here and never closes.*`quotes: false`"):
        rows("csv", path, query="q", positive="a")


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**row, "extra": 1} for row in FAQ]), tmp_path / "faq.parquet")
    assert rows("parquet", tmp_path / "faq.parquet") == ROWS


def test_saved_datasets(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(FAQ)
    data.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "splits")
    assert rows("datasets", tmp_path / "plain") == ROWS
    assert rows("datasets", tmp_path / "splits", split="test", **COLUMNS) == ROWS[:1]
    with pytest.raises(ValueError, match="has the splits train, test; set `split`"):
        rows("datasets", tmp_path / "splits")
    with pytest.raises(ValueError, match="save_to_disk"):
        rows("datasets", tmp_path)


def test_hub_data_set(jsonl: Path) -> None:
    """A folder in the layout of a hub repository stands in for the hub: the same streaming loader reads it."""

    def hub(**settings: Any) -> list[Row]:
        values = {"kind": "hub", "repository": str(jsonl.parent), **COLUMNS, **settings}
        return list(read_rows(parse_config(DataConfig, {"sources": [values]}).sources[0], Tally()))  # type: ignore[arg-type]

    assert hub() == ROWS
    assert hub(limit=2) == ROWS[:2]
    with pytest.raises(ValueError, match=r"^[^:]*/train: no column 'positive'; columns: question, answer"):
        hub(positive="positive")
    with pytest.raises(ValueError, match="nothing/train: cannot read row 1 from the hub"):
        hub(repository="nobody/nothing")


def test_lists_scores_groups_and_languages(tmp_path: Path) -> None:
    full = {"q": "q text", "p": ["one", "two", "one"], "n": ["three"], "s": 2, "g": 7, "l": "en"}
    bare = {"q": "other", "p": "one", "n": None, "s": None, "g": None, "l": None}
    path = write_lines(tmp_path / "x.jsonl", [json.dumps(full), json.dumps(bare)])
    mapping = {"query": "q", "positive": "p", "negative": "n", "score": "s", "group": "g", "lang": "l"}
    expected = [Row("q text", ("one", "two"), ("three",), 2.0, "7", "en"), Row("other", ("one",))]
    assert rows("jsonl", path, **mapping) == expected


def test_texts_of_a_label_keep_their_languages(tmp_path: Path) -> None:
    lines = [{"t": "eins", "l": "number", "g": "de"}, {"t": "two", "l": "number", "g": "en"}]
    path = write_lines(tmp_path / "x.jsonl", [json.dumps(line) for line in lines])
    found = {
        (row.query, row.lang, *row.positives, row.positive_lang)
        for row in rows("jsonl", path, text="t", label="l", lang="g")
    }
    assert found == {("eins", "de", "two", "en"), ("two", "en", "eins", "de")}


def test_a_group_that_is_not_a_number_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"q": ["a", "b"], "p": ["c", "d"], "g": [1.0, float("nan")]}), path)
    assert [row.group for row in rows("parquet", path, query="q", positive="p", group="g")] == ["1.0", None]


def test_a_source_is_named_after_the_folder_that_a_dot_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "handbook").mkdir()
    monkeypatch.chdir(tmp_path / "handbook")
    assert [source("documents", path, pairs=["title"]).title() for path in (".", "../handbook", "..")] == [
        "handbook",
        "handbook",
        tmp_path.name,
    ]


def test_single_texts_and_limit(jsonl: Path) -> None:
    assert rows("jsonl", jsonl, text="answer", limit=2) == [Row(row["answer"]) for row in FAQ[:2]]


def test_patterns_and_variables(jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (jsonl.parent / "b.jsonl").write_bytes(jsonl.read_bytes())
    monkeypatch.setenv("EYAS_TEST_FOLDER", str(jsonl.parent))
    assert rows("jsonl", "$EYAS_TEST_FOLDER/*.jsonl") == ROWS * 2
    assert source("jsonl", "$EYAS_TEST_FOLDER/faq.jsonl").title() == "faq"


# ------------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"query": "question"}, "name the columns: `query` and `positive` for pairs, or `text`"),
        ({}, "name the columns"),
        ({"text": "a", "query": "b"}, "give either `text`, or `query` and `positive`"),
        ({"query": "a", "positiv": "b"}, "unknown key 'sources.0.jsonl.positiv'; did you mean 'positive'"),
        ({**COLUMNS, "limit": 0}, "limit: .*greater than or equal to 1"),
        ({**COLUMNS, "on_error": "ignore"}, "on_error: .*'stop' or 'drop'"),
    ],
)
def test_bad_mappings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(DataConfig, {"sources": [{"kind": "jsonl", "path": "x.jsonl", **settings}]})


def test_two_sources_of_one_name() -> None:
    twice = [{"kind": "jsonl", "path": f"{folder}/faq.jsonl", **COLUMNS} for folder in "ab"]
    with pytest.raises(ValueError, match="two sources are called 'faq'; give each a `name`"):
        parse_config(DataConfig, {"sources": twice})


# ----------------------------------------------------------------------------------------------------------- bad files


def test_missing_files(tmp_path: Path, jsonl: Path) -> None:
    with pytest.raises(ValueError, match=r"fap\.jsonl: no such file or folder; did you mean 'faq\.jsonl'"):
        rows("jsonl", tmp_path / "fap.jsonl")
    with pytest.raises(ValueError, match="no such file"):
        rows("parquet", tmp_path / "none" / "x.parquet")
    with pytest.raises(ValueError, match="no file matches"):
        rows("csv", tmp_path / "*.csv")
    with pytest.raises(ValueError, match="environment variable EYAS_NO_SUCH is not set"):
        rows("jsonl", "$EYAS_NO_SUCH/x.jsonl")
    with pytest.raises(ValueError, match="is a folder"):
        rows("jsonl", tmp_path)


def test_wrong_columns_name_the_right_ones(tmp_path: Path, jsonl: Path) -> None:
    wrong = {"query": "qeustion", "positive": "answer"}
    message = r"faq\.jsonl: no column 'qeustion'; did you mean 'question'\? columns: question, answer"
    with pytest.raises(ValueError, match=message):
        rows("jsonl", jsonl, **wrong)
    pq.write_table(pa.Table.from_pylist(FAQ), tmp_path / "faq.parquet")
    with pytest.raises(ValueError, match=r"no column 'qeustion'; did you mean 'question'"):
        rows("parquet", tmp_path / "faq.parquet", **wrong)
    path = write_lines(tmp_path / "faq.csv", ["question,answer", "a,b"])
    with pytest.raises(ValueError, match=r"no column 'gruppe'; columns: question, answer"):
        rows("csv", path, **COLUMNS, group="gruppe")


def test_an_optional_column_of_jsonl_may_first_occur_in_any_row(tmp_path: Path) -> None:
    plain = [{"question": f"question {n}", "answer": f"answer {n}"} for n in range(250)]
    write_lines(tmp_path / "a.jsonl", [json.dumps(row) for row in plain])
    write_lines(tmp_path / "b.jsonl", [json.dumps(row) for row in [*plain, {**FAQ[0], "wrong": "No.", "lang": "en"}]])
    columns = {**COLUMNS, "negative": "wrong", "lang": "lang"}
    expected = Row(FAQ[0]["question"], (FAQ[0]["answer"],), ("No.",), lang="en")
    assert rows("jsonl", tmp_path / "b.jsonl", **columns)[-1] == expected
    assert rows("jsonl", tmp_path / "*.jsonl", **columns)[-1] == expected
    assert len(rows("jsonl", tmp_path / "*.jsonl", **columns)) == 501


@pytest.mark.parametrize("limit", [None, 2])
def test_an_optional_column_of_jsonl_that_occurs_nowhere_is_refused(tmp_path: Path, limit: int | None) -> None:
    for name in "ab":
        write_lines(tmp_path / f"{name}.jsonl", [json.dumps(row) for row in [*FAQ, {**FAQ[0], "wrong": "No."}]])
    message = r"/\*\.jsonl: no column 'worng'; did you mean 'wrong'\? columns: question, answer, wrong"
    for on_error in ("stop", "drop"):
        settings = {**COLUMNS, "negative": "worng", "limit": limit, "on_error": on_error}
        with pytest.raises(ValueError, match=message):
            rows("jsonl", tmp_path / "*.jsonl", **settings)


@pytest.mark.parametrize(
    "kind, content, message",
    [
        ("jsonl", b"", "the file is empty"),
        ("jsonl", b"PK\x03\x04....", "expected UTF-8 text, found a zip archive; unpack it"),
        ("jsonl", gzip.compress(b"", mtime=0), "the file is empty"),
        ("csv", gzip.compress(b"question,answer", mtime=0)[:12], "bad.csv: cannot be read"),
        ("jsonl", "{}".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("csv", b"PAR1....", "kind: parquet"),
        ("csv", b"question,answer,answer\n1,2,3\n", "names the column 'answer' twice"),
        ("csv", b"question,answer\n", "no usable row.*there are none"),
        ("jsonl", b"\n\n", "no usable row"),
        ("parquet", b"", "not a readable Parquet file"),
        ("parquet", b"PAR1 and then nothing", "not a readable Parquet file"),
    ],
)
def test_files_of_no_use(tmp_path: Path, kind: str, content: bytes, message: str) -> None:
    path = tmp_path / f"bad.{kind}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows(kind, path)


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "faq.parquet"
    pq.write_table(pa.Table.from_pylist(FAQ * 200), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"faq\.parquet: not a readable Parquet file"):
        rows("parquet", path)


# ------------------------------------------------------------------------------------------------------------ bad rows

BAD = [
    ('{"question": "cut off", "answ', "malformed JSON", r"bad\.jsonl:2 \(column 25: Unterminated string starting\)"),
    ('["question", "answer"]', "not one JSON object on each line", r"bad\.jsonl:2 \(list\)"),
    ('{"question": "  ", "answer": "b"}', "'question' is empty", r"bad\.jsonl:2"),
    ('{"question": "a", "answer": ""}', "'answer' is empty", r"bad\.jsonl:2"),
    ('{"question": 5, "answer": "b"}', "'question' is int, expected text", r"bad\.jsonl:2"),
    ('{"question": null, "answer": "b"}', "'question' is null, expected text", r"bad\.jsonl:2"),
    ('{"question": "a", "answer": {"b": 1}}', "'answer' is dict, expected text", r"bad\.jsonl:2"),
    ('{"question": "a", "answer": ["b", ["c"]]}', "'answer' is list, expected text", r"bad\.jsonl:2"),
    ('{"question": "a", "answer": []}', "'answer' is an empty list", r"bad\.jsonl:2"),
    ('{"question": "a"}', "has no 'answer'", r"bad\.jsonl:2"),
    ('{"question": "same", "answer": "same"}', "'answer' equals 'question'", r"bad\.jsonl:2"),
    ('{"question": "half \\ud83d", "answer": "b"}', "not valid UTF-8", r"bad\.jsonl:2"),
    ("[" * 100_000, "malformed JSON", r"nested too deeply"),
    (f'{{"question": {"9" * 5_000}, "answer": "b"}}', "malformed JSON", r"bad\.jsonl:2 \(Exceeds the limit"),
]


@pytest.mark.parametrize("line, reason, place", BAD, ids=[reason for _, reason, _ in BAD])
def test_bad_rows(tmp_path: Path, line: str, reason: str, place: str) -> None:
    path = write_lines(tmp_path / "bad.jsonl", [json.dumps(FAQ[0]), line, json.dumps(FAQ[2])])
    with pytest.raises(ValueError, match=rf"1 of 3 rows cannot be used.*{reason} \(.*{place}.*set `on_error: drop`"):
        rows("jsonl", path)
    tally = Tally()
    kept = list(read_rows(source("jsonl", path, **COLUMNS, on_error="drop"), tally))
    assert kept == [ROWS[0], ROWS[2]]
    assert tally.read == 3
    assert [(found, count) for found, count in tally.dropped.items() if reason in found] == [
        (next(iter(tally.dropped)), 1)
    ]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"question": "a", "answer": "b"}\n{"question": "caf\xe9", "answer": "b"}\n')
    with pytest.raises(ValueError, match=r"not UTF-8 \(.*latin\.jsonl:2 \(byte 0xe9 at position 17\)\)"):
        rows("jsonl", path)
    path = tmp_path / "latin.csv"
    path.write_bytes(b"question,answer\na,b\ncaf\xe9,b\n")
    with pytest.raises(ValueError, match=r"'question' holds bytes that are not valid UTF-8 \(.*latin\.csv:3\)"):
        rows("csv", path)


def test_csv_rows_of_another_length(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.csv", ["question,answer", '"two\nlines",b', "only one", "a,b,c", "c,d"])
    with pytest.raises(
        ValueError, match=r"other number of fields than the header \(.*x\.csv:4 \(1 of 2\), .*x\.csv:5 \(3 of 2\)"
    ):
        rows("csv", path)


def test_every_line_that_a_stray_quote_swallows_counts(tmp_path: Path) -> None:
    lines = ["question,answer", '"an inch,b', "c,d", 'e "quoted" f,g', "h,i", 'a "b" c,d', '"j ""k""\nl",m', '"n"o,p']
    path = write_lines(tmp_path / "x.csv", lines)
    tally = Tally()
    kept = list(read_rows(source("csv", path, **COLUMNS, on_error="drop"), tally))
    assert kept == [Row("h", ("i",)), Row('a "b" c', ("d",)), Row('j "k"\nl', ("m",))]
    assert sorted(tally.dropped.values()) == [1, 3]
    assert tally.read == len(kept) + 4
    with pytest.raises(
        ValueError,
        match=r"4 of 7 rows .*3 rows: in a quote that closes lines later, .*`quotes: false`.*\(.*x\.csv:2 "
        r"\(lines 2 to 4\), .*x\.csv:4 \(lines 2 to 4\)\); 1 row: malformed row \(.*x\.csv:9",
    ):
        rows("csv", path)
    assert len(rows("csv", path, **COLUMNS, quotes=False, on_error="drop")) == 7


def test_one_message_names_all_bad_rows(tmp_path: Path) -> None:
    lines = ['{"question": "", "answer": "b"}'] * 6 + ['{"question": "a", "answer": "b"}', "{"]
    path = write_lines(tmp_path / "x.jsonl", lines)
    with pytest.raises(
        ValueError, match=r"7 of 8 rows .*6 rows: 'question' is empty \(.*:1, .*:2, .*:3, …\); 1 row: malf"
    ):
        rows("jsonl", path)


def test_no_usable_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", ['{"question": "", "answer": "b"}', "nothing"])
    with pytest.raises(ValueError, match=r"no usable row; 2 of 2 rows cannot be used: 1 row: 'question' is empty"):
        rows("jsonl", path, **COLUMNS, on_error="drop")


@pytest.mark.parametrize(
    "value, column, message",
    [
        ("high", "score", "'x' is not a number"),
        (float("nan"), "score", "'x' is not a finite number"),
        ([1], "group", "'x' is list, expected text or a number"),
        (3, "lang", "'x' is int, expected text"),
    ],
)
def test_optional_columns_that_make_no_sense(tmp_path: Path, value: Any, column: str, message: str) -> None:
    path = write_lines(tmp_path / "x.jsonl", [json.dumps({**FAQ[0], "x": value})])
    with pytest.raises(ValueError, match=message):
        rows("jsonl", path, **COLUMNS, **{column: "x"})


def test_a_text_of_ten_megabytes(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    path = tmp_path / "long.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], ["how long?", long]])
    assert rows("csv", path) == [Row("how long?", (long,))]


def test_a_file_whose_name_is_not_utf8_is_named_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    text = "# Hawks\n\nA young hawk in training is called an eyas by those who know of such things.\n"
    (folder / os.fsdecode(b"h\xfc.md")).write_text(text, encoding="utf-8")
    (folder / os.fsdecode(b"bild-\xfc.png")).write_bytes(b"x")
    tally = Tally()
    found = list(read_rows(source("documents", folder, pairs=["title"]), tally))
    assert [row.query for row in found] == ["Hawks"]
    assert str(found[0].group).endswith("h\\xfc.md")
    assert tally.pending[0].place.endswith("bild-\\xfc.png")
