"""Pairs from documents that nobody labelled: what a document says of itself in its headings, its title, its sentences
and its docstrings.

A document is plain text, Markdown, HTML, or Python source. All pairs of a file belong to one group: a file's own
passages are not negatives of each other.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from data_prep.clean import order
from data_prep.decontaminate import UNSPACED
from data_prep.docstrings import split_docstring

Pairing = Literal["heading", "title", "context", "docstring"]
MARKDOWN, HTML, PYTHON = {".md", ".markdown"}, {".html", ".htm", ".xhtml"}, {".py"}
PLAIN = {".txt", ".text", ".rst"}
READ = PLAIN | MARKDOWN | HTML | PYTHON
"""The endings of the files that are read in a folder."""
OTHER_KIND = "a file of a kind that is not read"
"""Why any other file of a folder is dropped."""
PASSAGE_WORDS = 200
"""Words of a passage, at most: a longer section is cut at the end of a sentence. Here and below two characters of a
script without spaces count as a word."""
FEWEST_WORDS = 8
"""A shorter passage says too little to be found by."""
FEWEST_SENTENCES = 3
"""Of a passage that one sentence is taken out of."""
KEPT = 10
"""Of one pair in so many, the sentence also stays in its context, so that equal words count too (Lee et al. 2019,
arXiv:1906.00300: 90 % are taken out)."""
_SENTENCE = re.compile(r"(?<=[.!?။។])\s+(?=[^a-z])|(?<=[。！？])|(?<=[\u0e00-\u0eff])\s+(?=[\u0e00-\u0eff])")
_WIDE_STOPS = ("。", "！", "？")
"""Behind them stands no space."""
_RANGES = "".join(f"{chr(low)}-{chr(high)}" for low, high in UNSPACED)
_WORD = re.compile(rf"[{_RANGES}]{{1,2}}[^\w\s]*|[^\s{_RANGES}]+")
_GAPS = re.compile(r"\s+")
FURNITURE = (
    *("title", "script", "style", "nav", "header", "footer", "aside", "form", "button", "select", "svg"),
    *("noscript", "template"),
)
"""What of an HTML page is not its text (the title is read before)."""
HEADINGS = re.compile(r"^h[1-6]$")
BLOCKS = re.compile(
    r"^(p|li|ul|ol|td|th|tr|table|caption|dd|dt|dl|blockquote|figcaption|figure|pre|div|section|article|main|body)$"
)
"""What ends a line of an HTML page, besides headings."""


class Section(NamedTuple):
    """A heading, under those it stands below, and its own text."""

    path: tuple[str, ...]
    text: str


class Document(NamedTuple):
    """A file as its author cut it."""

    title: str
    sections: list[Section]


class Found(NamedTuple):
    """A pair, and where in the file it comes from."""

    query: str
    positive: str
    where: str


def pairs_of(path: Path, text: str, kinds: Sequence[Pairing]) -> Iterator[Found]:
    """The pairs of a file, in its order.

    Raises:
        SyntaxError, ValueError: Python source or HTML that does not parse.
    """
    if path.suffix.lower() in PYTHON:
        if "docstring" in kinds:
            yield from _docstrings(text)
        return
    document = read_document(path, text)
    if "title" in kinds and document.title:
        body = " ".join(section.text for section in document.sections)
        yield from _pair(document.title, next(passages(body), ""), "title")
    for section in document.sections:
        heading = " › ".join(section.path)
        found = list(passages(section.text))
        if "heading" in kinds and heading and found:
            yield from _pair(heading, found[0], heading)
        if "context" in kinds:
            for number, passage in enumerate(found, start=1):
                yield from _context(passage, f"{heading or document.title} {number}".strip())


def read_document(path: Path, text: str) -> Document:
    """A file's title and sections, by its ending; anything else is plain text.

    Raises:
        ValueError: HTML that does not parse.
    """
    if path.suffix.lower() in MARKDOWN:
        return _markdown(text)
    if path.suffix.lower() in HTML:
        return _html(text)
    paragraphs = [_flat(part) for part in re.split(r"\n\s*\n", text)]
    paragraphs = [part for part in paragraphs if part]
    # A first paragraph that is short and no sentence is what people write as a title.
    titled = len(paragraphs) > 1 and words_in(paragraphs[0]) <= 15 and paragraphs[0][-1] not in ".!?:;,。！？：；，、"
    title = paragraphs[0] if titled else ""
    return Document(title, [Section((), " ".join(paragraphs[titled:]))])


def passages(text: str) -> Iterator[str]:
    """A text in runs of whole sentences of at most PASSAGE_WORDS; a longer sentence stays whole."""
    held: list[str] = []
    words = 0
    for sentence in sentences(text):
        size = words_in(sentence)
        if held and words + size > PASSAGE_WORDS:
            yield _joined(held)
            held, words = [], 0
        held.append(sentence)
        words += size
    if words >= FEWEST_WORDS:
        yield _joined(held)


def sentences(text: str) -> list[str]:
    """The sentences of a text: a full stop and white space before anything but a small letter ends one, and so does a
    full stop of Chinese or Japanese whatever follows. Thai and Lao have none: a space between two of their letters ends
    a sentence or a clause."""
    return [part for part in (_flat(part) for part in _SENTENCE.split(text)) if part]


def words_in(text: str) -> int:
    """How long a text is: the parts between spaces, and of a script without them every two characters."""
    return len(_WORD.findall(text))


def _joined(parts: Sequence[str]) -> str:
    """Sentences as one text."""
    return "".join(part if part.endswith(_WIDE_STOPS) else f"{part} " for part in parts).rstrip()


def _pair(query: str, positive: str, where: str) -> Iterator[Found]:
    if words_in(positive) >= FEWEST_WORDS and query != positive:
        yield Found(query, positive, where)


def _context(passage: str, where: str) -> Iterator[Found]:
    """Inverse cloze: one sentence asks for the rest of its passage. Which one depends on the passage alone."""
    parts = sentences(passage)
    if len(parts) < FEWEST_SENTENCES:
        return
    chance = order(0, passage)
    taken = chance % len(parts)
    rest = parts if chance // len(parts) % KEPT == 0 else parts[:taken] + parts[taken + 1 :]
    if words_in(parts[taken]) >= FEWEST_WORDS // 2:
        yield from _pair(parts[taken], _joined(rest), f"{where}, sentence {taken + 1}")


def _docstrings(text: str) -> Iterator[Found]:
    """What each class and function says it does -> its code without the docstring."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if not docstring or len(node.body) < 2:
            continue
        split = split_docstring(docstring)
        summary = split[0] if split else _flat(docstring.partition("\n\n")[0])
        lines = text.split("\n")  # as the parser counts them: a form feed ends none
        said = node.body[0]
        head = lines[node.lineno - 1 : said.lineno - 1]
        code = "\n".join([*head, *lines[said.end_lineno or said.lineno : node.end_lineno]])
        yield from _pair(summary, code, f"line {node.lineno}")


def _markdown(text: str) -> Document:
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").parse(re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL))
    pieces: list[tuple[int, str]] = []
    level = 0
    for token in tokens:
        if token.type == "heading_open":
            level = int(token.tag[1])
        elif token.type == "heading_close":
            level = 0
        elif token.type == "inline":
            words = "".join(
                child.content if child.type in {"text", "code_inline"} else " " if "break" in child.type else ""
                for child in token.children or ()
            )
            pieces.append((level, _flat(words)))
    return _assembled("", pieces)


def _html(text: str) -> Document:
    from bs4 import BeautifulSoup
    from bs4.element import NavigableString
    from bs4.exceptions import ParserRejectedMarkup

    try:
        soup = BeautifulSoup(text, "html.parser")
    except ParserRejectedMarkup as error:
        raise ValueError(str(error)) from None
    title = _flat(soup.title.get_text()) if soup.title else ""
    for gone in soup(FURNITURE):
        gone.decompose()
    pieces: list[tuple[int, str]] = []
    last: object = soup
    for text_node in soup.find_all(string=True):
        if type(text_node) is NavigableString and text_node.strip():  # not a comment or a doctype, which derive from it
            heading = text_node.find_parent(HEADINGS)
            block = heading or text_node.find_parent(BLOCKS)
            level = int(heading.name[1]) if heading else 0
            if block is last:  # what stands in a line was cut by its tags alone
                pieces[-1] = (level, f"{pieces[-1][1]} {_flat(text_node)}")
            else:
                pieces.append((level, _flat(text_node)))
            last = block
    return _assembled(title, pieces)


def _assembled(title: str, pieces: Sequence[tuple[int, str]]) -> Document:
    """Sections from headings (level 1 to 6) and text (level 0). The first heading is the title where none is given, and
    leads no path: every section stands below it."""
    first = next((words for level, words in pieces if level), "")
    title = title or first
    path: list[tuple[int, str]] = []
    sections: list[tuple[tuple[str, ...], list[str]]] = [((), [])]
    for level, words in pieces:
        if level:
            path = [*(step for step in path if step[0] < level), (level, words)]
            named = tuple(name for _, name in path if name and name not in (title, first))
            sections.append((named, []))
        elif words:
            sections[-1][1].append(words)
    return Document(title, [Section(named, " ".join(parts)) for named, parts in sections if parts])


def _flat(text: str) -> str:
    return _GAPS.sub(" ", text).strip()
