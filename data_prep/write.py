"""Queries for documents that nobody labelled, written by a chat model, and kept where the teacher agrees.

    documents ──▶ prompt of each task ──▶ answers (each kept on disk) ──▶ distinct queries
                                                                             │
    queries.jsonl ◀── those whose document is among the first `top` of all documents by the teacher's vectors

Shapes: Q queries, P documents, k = `top`, E width of the teacher.
"""

import json
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.assemble import write_rows
from data_prep.chat import Answer, Chat, ChatConfig
from data_prep.clean import digest, normal_form
from data_prep.documents import HTML, MARKDOWN, OTHER_KIND, PLAIN, passages, read_document, words_in
from data_prep.embed import embed_texts
from data_prep.rows import Row, Tally, printable
from data_prep.search import TUNED_WITH, search_among, unit
from data_prep.server import Refused
from data_prep.sources import ColumnSource, DocumentsSource, numbered_rows
from data_prep.tables import Examples, Texts, pieces
from data_prep.teacher import AnyTeacher, TeacherConfig, vector_keys
from data_prep.vectors import VectorStore
from embedding.config import Config, Place
from embedding.files import write_json, write_text

QUERIES, LEFT_OUT, SUMMARY = "queries.jsonl", "left_out.jsonl", "summary.json"
AHEAD = 4
"""Prompts waiting for each request that may run."""
LEAST_CHARS, MOST_CHARS = 3, 400
"""Of a query."""
COPIED_WORDS = 8
"""A query of so many words or more (`words_in`) that stands in its document word for word asks nothing."""
SEARCHED = 1_024
"""Queries searched for at a time."""
_BULLET = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.):]|[Qq]\d{0,2}[.:])\s+")
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)|\A(?:(?!<think>).)*?</think>", re.DOTALL)
"""Some templates open the thought in the prompt: then the answer begins within it."""

_ENDING = "Write one on each line and nothing else, in the language of the document.\n\nDocument:\n{document}"


class Task(Config):
    """What the model is asked for, and what a query of this kind asks of a search."""

    prompt: str
    """With `{document}`, and `{count}` where it should know how many."""
    instruction: str
    """Goes with every query of the task into training."""

    @model_validator(mode="after")
    def _has_document(self) -> "Task":
        if "{document}" not in self.prompt:
            raise ValueError("the prompt has no {document}: the model would not see it")
        return self


TASKS = {
    "question": Task(
        prompt="Write {count} different questions that this document answers, as somebody would ask them who has not "
        "seen it. Do not speak of 'the document' or 'the text'. " + _ENDING,
        instruction="Given a question, retrieve passages that answer it",
    ),
    "search": Task(
        prompt="Write {count} different short queries that somebody would type into a search engine to find this "
        "document. Use few of its own words. " + _ENDING,
        instruction="Given a web search query, retrieve relevant passages that answer the query",
    ),
    "claim": Task(
        prompt="Write {count} different claims of one sentence that this document supports or refutes, in words of "
        "your own. " + _ENDING,
        instruction="Given a claim, retrieve documents that support or refute the claim",
    ),
    "summary": Task(
        prompt="Write {count} different summaries of this document of one sentence each, in words of your own. "
        + _ENDING,
        instruction="Given a summary, retrieve the document it is of",
    ),
}
"""The tasks that are there; the instructions of `search` and `claim` are those of MTEB's MS MARCO and FEVER."""
TaskName = Literal["question", "search", "claim", "summary"]


class WriteConfig(Config):
    """Queries to be written."""

    documents: Annotated[ColumnSource, Field(discriminator="kind")]
    """Where they come from: `kind: documents` gives the passages of its files; of any other source the single texts, or
    the positives of its pairs."""
    model: ChatConfig
    """What writes."""
    tasks: list[TaskName] = Field(default=["question", "search"])
    own: dict[str, Task] = Field(default={})
    """Further tasks, by a name of yours."""
    count: int = Field(default=2, ge=1)
    """Queries of each task for a document."""
    document_chars: int = Field(default=6_000, ge=100)
    """What the model sees of a document."""
    top: int | None = Field(default=3, ge=1)
    """A query stays where its document is among so many nearest by the teacher's vectors; None: all stay."""
    teacher: AnyTeacher = TeacherConfig()
    """Its vectors are kept in the cache, where a run with the same teacher finds them again."""
    out: Place
    """The folder of queries.jsonl, left_out.jsonl and summary.json."""
    cache: Place = Path("runs/cache")

    @model_validator(mode="after")
    def _has_tasks(self) -> "WriteConfig":
        if not self.all_tasks():
            raise ValueError("no task: name one in `tasks`, or describe one in `own`")
        return self

    def all_tasks(self) -> dict[str, Task]:
        """The tasks by name."""
        return {**{name: TASKS[name] for name in self.tasks}, **self.own}


class Document(NamedTuple):
    """A text to write for."""

    text: str
    place: str
    group: str
    """Documents of one group (passages of one file) are never each other's negatives."""


class Written(NamedTuple):
    """A query and what it was written for."""

    query: str
    document: Document
    task: str


class LeftOut(NamedTuple):
    """A query, or a document for which none came, and why."""

    reason: str
    detail: str
    task: str
    place: str


def write_queries(config: WriteConfig, progress: bool = True) -> dict[str, Any]:
    """Write `out/queries.jsonl` (query, document, instruction, group, task, place), whole; return the summary.

    Documents and queries are held in memory; what the model answered and the teacher's vectors are kept on disk, so a
    pass that was stopped asks for nothing twice.

    Raises:
        ValueError: bad documents (see `data_prep.sources.read_rows`), a server that does not answer as it should, or
            not one query that stays.
    """
    tally = Tally()
    documents = _distinct(_documents(config.documents, tally))
    if not documents:
        raise ValueError(f"source {config.documents.title()!r}: no document; {tally.report() or 'there are none'}")
    left_out: list[LeftOut] = []
    counts: Counter[str] = Counter()
    chat = Chat(config.model, config.cache / "answers.sqlite")
    try:
        written = list(_written(chat, config, documents, left_out, counts, progress))
    finally:
        chat.close()
    found = len(written)
    if config.top is not None and written:
        stays = round_trip(config, written, documents, progress)
        reason = f"its document is not among the first {config.top}"
        left_out += [
            LeftOut(reason, query.query, query.task, query.document.place)
            for query, stay in zip(written, stays, strict=True)
            if not stay
        ]
        written = [query for query, stay in zip(written, stays, strict=True) if stay]
    reasons = Counter(query.reason for query in left_out)
    if not written:
        said = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        example = f" (such as: {left_out[0].detail})" if left_out else ""
        raise ValueError(f"{config.model.url}: not one query for {len(documents)} documents: {said}{example}")
    summary = {
        "documents": len(documents),
        "documents left out": dict(tally.dropped),
        "answers": dict(counts),
        "distinct queries": found,
        "queries": len(written),
        "documents with a query": len({query.document.text for query in written}),
        "left out": dict(reasons.most_common()),
        "tasks": dict(Counter(query.task for query in written)),
    }
    tasks = config.all_tasks()
    lines = (
        {
            "query": query.query,
            "document": query.document.text,
            "instruction": tasks[query.task].instruction,
            "group": query.document.group,
            "task": query.task,
            "place": query.document.place,
        }
        for query in written
    )
    config.out.mkdir(parents=True, exist_ok=True)
    write_text(config.out / QUERIES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    rejected = "".join(json.dumps(query._asdict(), ensure_ascii=False) + "\n" for query in left_out)
    write_text(config.out / LEFT_OUT, rejected)
    write_json(config.out / SUMMARY, summary)
    return summary


def _documents(source: ColumnSource, tally: Tally) -> Iterator[Document]:
    if isinstance(source, DocumentsSource):
        yield from islice(_passages(source, tally), source.limit)
        return
    for found in numbered_rows(source, tally):
        for text in found.row.positives or (found.row.query,):
            yield Document(text, found.place, found.row.group or found.place)


def _passages(source: DocumentsSource, tally: Tally) -> Iterator[Document]:
    endings = PLAIN | MARKDOWN | HTML
    for path in source.files():
        tally.read += 1
        name = printable(str(path))
        if path.suffix.lower() not in endings:
            tally.drop(OTHER_KIND, name, tally.read)
            continue
        try:
            document = read_document(path, path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError, MemoryError):
            tally.drop("a file that cannot be read", name, tally.read)
            continue
        parts = [passage for section in document.sections for passage in passages(section.text)]
        if not parts:
            tally.drop("no passage in the document", name, tally.read)
        for number, passage in enumerate(parts, start=1):
            yield Document(passage, f"{name} (passage {number})", name)


def _distinct(documents: Iterator[Document]) -> list[Document]:
    """Each text once, the first of those that count as the same."""
    found: dict[int, Document] = {}
    for document in documents:
        found.setdefault(digest(document.text), document)
    return list(found.values())


def _written(
    chat: Chat,
    config: WriteConfig,
    documents: Sequence[Document],
    left_out: list[LeftOut],
    counts: Counter[str],
    progress: bool,
) -> Iterator[Written]:
    """The distinct queries of all documents, in the order of documents and tasks."""
    seen: set[int] = set()
    columns = (TextColumn("writing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    prompts = _prompts(config, documents)
    waiting: deque[tuple[Document, str, Future[Answer]]] = deque()
    with (
        Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True) as display,
        chat.call() as stop,
    ):
        bar = display.add_task("", total=len(documents) * len(config.all_tasks()))
        for document, task, prompt in prompts:
            waiting.append((document, task, chat.pool.submit(chat.ask, prompt, stop)))
            if len(waiting) >= AHEAD * config.model.concurrency:
                yield from _taken(*waiting.popleft(), config.count, seen, left_out, counts)
                display.advance(bar)
        while waiting:
            yield from _taken(*waiting.popleft(), config.count, seen, left_out, counts)
            display.advance(bar)


def _prompts(config: WriteConfig, documents: Sequence[Document]) -> Iterator[tuple[Document, str, str]]:
    for document in documents:
        for name, task in config.all_tasks().items():
            prompt = task.prompt.replace("{count}", str(config.count))
            yield document, name, prompt.replace("{document}", document.text[: config.document_chars])


def _taken(
    document: Document,
    task: str,
    job: Future[Answer],
    count: int,
    seen: set[int],
    left_out: list[LeftOut],
    counts: Counter[str],
) -> Iterator[Written]:
    try:
        answer = job.result()
    except Refused as said:
        counts["refused"] += 1
        left_out.append(LeftOut("the server refuses the document", str(said), task, document.place))
        return
    counts["asked for" if answer.asked else "kept from before"] += 1
    queries = read_queries(answer)[:count]
    if not queries:
        left_out.append(LeftOut("no query in the answer", answer.text[:MOST_CHARS], task, document.place))
    for query in queries:
        key = digest(query)
        if not LEAST_CHARS <= len(query) <= MOST_CHARS:
            reason = f"shorter than {LEAST_CHARS} or longer than {MOST_CHARS} characters"
        elif key in seen:
            reason = "repeats another query"
        elif copied(query, document.text):
            reason = "copied from its document"
        else:
            seen.add(key)
            yield Written(query, document, task)
            continue
        left_out.append(LeftOut(reason, query[:MOST_CHARS], task, document.place))


def copied(query: str, text: str) -> bool:
    """Whether a query stands in a text word for word, and is long enough for that not to be chance."""
    normal = normal_form(query)
    return words_in(normal) >= COPIED_WORDS and normal in normal_form(text)


def read_queries(answer: Answer) -> list[str]:
    """The queries of an answer, one a line: without thoughts, numbers, bullets, quotes, and lines that lead to a list.
    Of an answer that was cut off the last line is left out."""
    lines = _THOUGHT.sub("", answer.text).strip().splitlines()
    if not answer.whole:
        lines = lines[:-1]
    plain = (_BULLET.sub("", line).strip().strip("\"'“”„«»*`").strip() for line in lines)
    return [line for line in plain if line and not line.endswith((":", "："))]


def round_trip(
    config: WriteConfig, written: Sequence[Written], documents: Sequence[Document], progress: bool
) -> np.ndarray:
    """Whether each query's document is among its `top` nearest of all documents: bool [Q]."""
    assert config.top is not None
    tasks = config.all_tasks()
    with TemporaryDirectory() as name:
        folder = Path(name) / "data"
        asked = ((Row(query.query, (query.document.text,)), 0, tasks[query.task].instruction) for query in written)
        alone = ((Row(document.text), 1, "") for document in documents)
        write_rows((row for rows in (asked, alone) for row in rows), folder, ["queries", "documents"])
        texts, examples = Texts.load(folder / "texts"), Examples.load(folder / "examples")
        report = embed_texts(config.teacher, texts, config.cache / "vectors", progress=progress)
        store = VectorStore.open(report.store, report.identity, report.width)
        positions_N = store.locate(vector_keys(texts, config.teacher.template))

        def vectors(rows: np.ndarray) -> np.ndarray:
            return store.read(positions_N[rows])

        query_Q = examples.queries[: len(written)]
        own_Q = examples.positives.values
        assert len(query_Q) == len(own_Q), "each query has one document, and no two rows are equal"
        document_P = np.unique(examples.queries[len(written) :])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        step = max(1, len(query_Q) // TUNED_WITH)
        search, _ = search_among(document_P, vectors, "auto", device, unit(vectors(query_Q[::step])))
        found = [np.zeros(0, dtype=bool)]
        for rows in pieces(len(query_Q), SEARCHED):
            _, places_Qk = search.nearest(unit(vectors(query_Q[rows])), min(config.top, len(document_P)))
            found.append((document_P[places_Qk] == own_Q[rows][:, None]).any(axis=1))
        return np.concatenate(found)
