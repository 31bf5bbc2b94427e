"""Queries written by a chat server, which is a real process that speaks the protocol and fails as it is told to.

No language model runs here: the server answers with words of the document.
"""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import server as room
from data_prep.build import DataConfig, prepare
from data_prep.chat import Answer
from data_prep.clean import digest
from data_prep.docstrings import Docstring
from data_prep.rows import Tally
from data_prep.sources import DocumentsSource
from data_prep.write import WriteConfig, _passages, copied, read_queries, write_queries
from embedding.config import parse_config

SERVER = Path(__file__).with_name("chat_server.py")
Start = Callable[..., tuple[str, Path]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server with faults; gives its address and its log."""
    running: list[subprocess.Popen[str]] = []

    def begin(*faults: str) -> tuple[str, Path]:
        log = tmp_path / f"log-{len(running)}.jsonl"
        log.touch()
        words = [sys.executable, str(SERVER), str(log), *faults]
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        out = running[-1].stdout
        assert out is not None
        return f"http://127.0.0.1:{int(out.readline())}/v1", log

    yield begin
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def documents(tmp_path: Path, real_texts: list[Docstring]) -> Path:
    """Thirty texts, the first of them twice."""
    long = {digest(pair.body): pair.body for pair in real_texts if len(pair.body.split()) > 12}
    texts = list(long.values())[:30]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in [*texts, f"{texts[0]} "]))
    return path


def settings(documents: Path, url: str, **more: Any) -> dict[str, Any]:
    return {
        "documents": {"kind": "jsonl", "path": str(documents), "text": "body"},
        "model": {"url": url, "model": "m", "patience_seconds": 20, "concurrency": 4, **more.pop("model", {})},
        "teacher": {"max_tokens": 48},
        "out": str(documents.parent / "out"),
        "cache": str(documents.parent / "cache"),
        **more,
    }


def write(documents: Path, url: str, **more: Any) -> dict[str, Any]:
    return write_queries(parse_config(WriteConfig, settings(documents, url, **more)), progress=False)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_pass_through_every_fault_asks_each_document_once(start: Start, documents: Path) -> None:
    url, log = start("busy", "broken", "torn", "empty")
    found = write(documents, url)
    assert found["documents"] == 30
    assert found["answers"] == {"asked for": 60}
    assert max(Counter(lines(log)).values()) == 1
    assert len(lines(log)) == 60
    rows = lines(documents.parent / "out" / "queries.jsonl")
    assert (
        len(rows)
        == found["queries"]
        == found["distinct queries"] - found["left out"].get("its document is not among the first 3", 0)
    )
    assert found["documents with a query"] >= 27
    assert all(row["query"].split()[1] in row["document"] for row in rows)
    assert {row["instruction"][:12] for row in rows} == {"Given a ques", "Given a web "}
    assert len(lines(documents.parent / "out" / "left_out.jsonl")) == sum(found["left out"].values())
    again = write(documents, url)
    assert again["answers"] == {"kept from before": 60}
    assert len(lines(log)) == 60
    source = {"kind": "jsonl", "path": str(documents.parent / "out" / "queries.jsonl"), "group": "group"}
    source |= {"query": "query", "positive": "document", "instruction_column": "instruction"}
    data = parse_config(DataConfig, {"sources": [source]})
    assert prepare(data, documents.parent / "data", progress=False)["sources"]["queries"]["rows"] == len(rows)


def test_a_query_that_does_not_find_its_document_is_left_out(start: Start, documents: Path) -> None:
    url, _ = start()
    with documents.open("a") as file:
        file.write(json.dumps({"body": "A vague text about boats in a harbour on a quiet morning in May."}) + "\n")
    found = write(documents, url, tasks=["question"], top=1)
    assert "its document is not among the first 1" in found["left out"]
    queries = [row["query"] for row in lines(documents.parent / "out" / "queries.jsonl")]
    assert queries
    assert not any("logarithm" in query for query in queries)
    whole = write(documents, url, tasks=["question"], top=None, out=str(documents.parent / "all"))
    assert whole["queries"] == whole["distinct queries"] > len(queries)
    assert any("logarithm" in row["query"] for row in lines(documents.parent / "all" / "queries.jsonl"))


def test_killed_half_way_it_goes_on_where_it_was(start: Start, documents: Path) -> None:
    url, log = start("slow")
    config = documents.parent / "write.yaml"
    config.write_text(json.dumps(settings(documents, url)))
    process = subprocess.Popen([sys.executable, "-m", "launch", "write", str(config)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 600
    while len(lines(log)) < 20:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(lines(log))
    found = write(documents, url)
    assert before < 60
    assert not found["answers"].get("refused")
    assert found["answers"]["kept from before"] >= before - 4, "all but those that were under way"
    assert sum(found["answers"].values()) == 60
    assert max(Counter(lines(log)).values()) <= 2


def left_out_beside_a_forbidden_document(url: str, documents: Path) -> list[Any]:
    with documents.open("a") as file:
        file.write(json.dumps({"body": "A forbidden text about boats in a harbour on a quiet morning."}) + "\n")
    found = write(documents, url, tasks=["question"])
    assert found["left out"]["the server refuses the document"] == 1
    return lines(documents.parent / "out" / "left_out.jsonl")


def test_what_the_server_refuses_is_counted_and_named(start: Start, documents: Path) -> None:
    url, _ = start("refuses")
    left = left_out_beside_a_forbidden_document(url, documents)
    assert [row for row in left if "400 Bad Request: content policy" in row["detail"] and row["place"].endswith(":32")]


@pytest.mark.parametrize(
    "faults, model, message",
    [
        (["locked"], {}, "401 Unauthorized: no key; the environment variable OPENAI_API_KEY is not set"),
        (["broken"] * 2, {"patience_seconds": 0}, r"no answer within 0 s .*model\.patience_seconds"),
    ],
)
def test_a_server_that_does_not_answer(
    start: Start, documents: Path, faults: list[str], model: dict[str, Any], message: str
) -> None:
    url, _ = start(*faults)
    with pytest.raises(ValueError, match=message):
        write(documents, url, model=model)
    assert not (documents.parent / "out").exists()


def test_bad_settings(documents: Path, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    with pytest.raises(ValueError, match=r"the prompt has no \{document\}"):
        write(documents, url, own={"mine": {"prompt": "Write!", "instruction": "x"}})
    with pytest.raises(ValueError, match="no task: name one"):
        write(documents, url, tasks=[])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "answers.sqlite").write_text("no data base, but long enough to be taken for one" * 9)
    with pytest.raises(ValueError, match=r"answers\.sqlite: no file of kept answers"):
        write(documents, url)


@pytest.mark.parametrize(
    "text, whole, queries",
    [
        ("1. What is an eyas?\n2) Who trains it?", True, ["What is an eyas?", "Who trains it?"]),
        ('Sure! Here they are:\n\n- "one"\n* two\n', True, ["one", "two"]),
        ("<think>1. no\n2. no</think>\nyes", True, ["yes"]),
        ("<think>never ends", True, []),
        ("I think of two.\n</think>\n\none\ntwo", True, ["one", "two"]),
        ("one\n<think>x</think>\ntwo", True, ["one", "two"]),
        ("whole\ncut of", False, ["whole"]),
        ("3.5 GHz is fast", True, ["3.5 GHz is fast"]),
        ("", True, []),
    ],
)
def test_reading_an_answer(text: str, whole: bool, queries: list[str]) -> None:
    assert read_queries(Answer(text, whole, True)) == queries


@pytest.mark.parametrize(
    "query, text, expected",
    [
        (
            "A young falcon, taken from its nest, learns to fly.",
            "Then: a young falcon taken from its nest learns to fly!",
            True,
        ),
        ("A young falcon learns.", "A young falcon learns.", False),
        (
            "How does a young falcon taken from its nest learn?",
            "A young falcon taken from its nest learns to fly.",
            False,
        ),
        ("在学会飞行之前就被人们从巢中取出", "幼鹰在学会飞行之前就被人们从巢中取出。", True),
        ("幼鹰在什么时候被人们从巢中取出来？", "幼鹰在学会飞行之前就被人们从巢中取出。", False),
        ("从巢中取出", "幼鹰在学会飞行之前就被人们从巢中取出。", False),
    ],
)
def test_a_copied_query(query: str, text: str, expected: bool) -> None:
    assert copied(query, text) is expected


def test_an_answer_without_text_costs_one_document(start: Start, documents: Path) -> None:
    url, _ = start("filters")
    left = left_out_beside_a_forbidden_document(url, documents)
    assert [row["detail"] for row in left if "without text" in row["detail"]] == [
        "an answer without text (finish_reason 'content_filter')"
    ]


def test_a_file_that_cannot_be_read_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.md", "b.md", "c.md"):
        (tmp_path / name).write_text(f"# {name}\n\nA falcon is taken from its nest before it learns to fly at all.\n")
    readable = Path.read_text

    def read_text(path: Path, **how: Any) -> str:
        if path.name == "b.md":
            raise PermissionError(13, "Permission denied", str(path))
        return readable(path, **how)

    monkeypatch.setattr(Path, "read_text", read_text)
    (source,) = parse_config(DataConfig, {"sources": [{"kind": "documents", "path": str(tmp_path)}]}).sources
    assert isinstance(source, DocumentsSource)
    tally = Tally()
    assert {Path(document.group).name for document in _passages(source, tally)} == {"a.md", "c.md"}
    assert tally.report() == f"1 row: a file that cannot be read ({tmp_path / 'b.md'})"


def test_a_limit_hides_no_bad_row(start: Start, documents: Path) -> None:
    url, _ = start()
    documents.write_text('{"body": 7}\n' + documents.read_text())
    chosen = {"kind": "jsonl", "path": str(documents), "text": "body", "limit": 3}
    with pytest.raises(ValueError, match="'body' is int, expected text"):
        write_queries(parse_config(WriteConfig, settings(documents, url) | {"documents": chosen}), progress=False)
