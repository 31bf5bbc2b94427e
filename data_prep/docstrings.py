"""The docstrings of one Python file, read with `ast`: nothing is imported or run.

As a program (`python -m data_prep.docstrings`) it is a worker of `data_prep.harvest`: a JSON list of modules on each
line of its input, a JSON list of what each holds on each line of its output.
"""

import ast
import gc
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

MIN_SUMMARY_WORDS, MIN_BODY_WORDS, MAX_SUMMARY_CHARS = 3, 5, 500
# A line that begins with a triple quote: what nearly every docstring looks like; files without one are not parsed.
_DOCSTRING_LIKE = re.compile(rb'^[ \t]*[rRuU]?(?:"""|\'\'\')', re.MULTILINE)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """A Python file: its dotted name, the package it belongs to (`python` for the standard library), where it is."""

    name: str
    package: str
    path: str


class Docstring(NamedTuple):
    """One pair: the summary line and the rest of a docstring, and where it stands."""

    package: str
    module: str
    name: str
    """Dotted name inside the module; "" for the module itself."""
    summary: str
    body: str


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """(summary, body) of a cleaned docstring: its first paragraph on one line, and the rest; None where it is too
    short for a pair, or its first paragraph too long for a summary."""
    head, _, rest = docstring.strip().partition("\n\n")
    summary, body = " ".join(head.split()), rest.strip()
    if len(summary) > MAX_SUMMARY_CHARS or len(summary.split()) < MIN_SUMMARY_WORDS:
        return None
    return (summary, body) if len(body.split()) >= MIN_BODY_WORDS else None


def read_docstrings(module: Module) -> list[Docstring] | None:
    """The pairs of a module in the order of its source; None where the file is not Python that this version parses."""
    source = Path(module.path).read_bytes()
    if not _DOCSTRING_LIKE.search(source):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found = []
    for name, node in _documented(tree):
        text = ast.get_docstring(node)
        pair = split_docstring(text) if text else None
        if pair and _is_text("".join(pair)):
            found.append(Docstring(module.package, module.name, name, *pair))
    return found


def _documented(tree: ast.Module) -> Iterator[tuple[str, Documented]]:
    """The module, its classes and its functions at any depth, in source order.

    Only statements that can hold a definition are entered: visiting every expression takes ten times as long.
    """
    yield "", tree
    pending: list[tuple[str, ast.stmt]] = [("", node) for node in reversed(tree.body)]
    while pending:
        prefix, node = pending.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{node.name}" if prefix else node.name
            yield name, node
            pending.extend((name, inner) for inner in reversed(node.body))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            inner = [*node.body, *getattr(node, "orelse", [])]
            pending.extend((prefix, statement) for statement in reversed(inner))


def _is_text(text: str) -> bool:
    """Whether `text` holds neither control characters nor halves of surrogate pairs, which UTF-8 cannot hold."""
    return text.isprintable() or all(c.isprintable() or c.isspace() for c in text)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer each line of modules with a line of their docstrings, until the input ends."""
    gc.disable()  # syntax trees have no cycles, and the collector's passes over them take half the time
    for line in requests:
        found = [read_docstrings(Module(*module)) for module in json.loads(line)]
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
