"""Sources to tables: distinct texts, examples that point into them, and the held-out part as evaluation data."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from data_prep.assemble import Assembly, Pair
from data_prep.clean import digest
from data_prep.docstrings import Docstring
from data_prep.harvest import Harvest, harvest, installed_digest
from data_prep.heldout import HeldoutConfig, Task, write_docstring_tasks, write_instructions, write_pair_tasks
from data_prep.readers import hub_commit
from data_prep.sources import ColumnSource, DocstringsSource, HubSource, Row, Source, Tally, read_rows
from embedding.config import Config
from embedding.files import new_folder, read_manifest, sha256_file, write_manifest

FORMAT = 1
"""Raised when the same sources would give other tables; part of the fingerprint."""
SHOWN_EVERY = 500
"""Rows between two steps of the progress bar."""


class DataConfig(Config):
    """The training text of a run."""

    sources: list[Source] = Field(default=[DocstringsSource()], min_length=1)
    heldout: HeldoutConfig = HeldoutConfig()

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        twice = [name for name, n in Counter(source.label() for source in self.sources).items() if n > 1]
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}; give each a `name`")
        return self


def data_fingerprint(config: DataConfig) -> dict[str, Any]:
    """What the tables are made from: the config and the contents of all files it reads.

    Raises:
        ValueError: a file is missing, or the hub cannot tell a revision's commit.
    """
    contents = {source.label(): _contents(source) for source in config.sources}
    return {"format": FORMAT, "config": config.model_dump(mode="json"), "contents": contents}


def _contents(source: Source) -> Any:
    """What a source would read, by content."""
    if isinstance(source, DocstringsSource):
        return installed_digest()
    if not isinstance(source, HubSource):
        return _hashed(source.files())
    local = Path(source.repository)
    return _hashed(sorted(local.rglob("*"))) if local.is_dir() else hub_commit(source.repository, source.revision)


def _hashed(paths: Sequence[Path]) -> list[list[str]]:
    return [[path.name, sha256_file(path)] for path in paths if path.is_file()]


def prepare(config: DataConfig, out: Path, progress: bool = True) -> dict[str, Any]:
    """Write `out/{texts,examples,heldout}` and a manifest, whole or not at all; return the summary.

    Nothing is done where `out` was made from the same config and the same files.

    Raises:
        ValueError: a bad source or bad rows (see `read_rows`), or nothing left to train on.
    """
    made_from = data_fingerprint(config)
    manifest = read_manifest(out)
    if manifest is not None and manifest["made_from"] == made_from:
        return dict(manifest["summary"])
    with new_folder(out) as folder:
        summary = _build(config, folder, progress)
        write_manifest(folder, made_from, summary=summary)
    return summary


def _build(config: DataConfig, folder: Path, progress: bool) -> dict[str, Any]:
    assembly = Assembly()
    names = [source.label() for source in config.sources]
    parts: list[dict[str, Any]] = []
    docstrings: dict[str, list[Docstring]] = {}
    columns = (TextColumn("reading {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True) as display:
        for code, source in enumerate(config.sources):
            show = partial(_show, display, display.add_task(names[code], total=source.limit))
            if isinstance(source, DocstringsSource):
                documents = config.heldout.documents if source.hold_out else 0
                share = config.heldout.share
                found = harvest(source.limit, seed=source.seed, share=share, heldout=documents, report=show)
                docstrings[names[code]] = found.heldout
                parts.append(_add_docstrings(assembly, code, source, found))
            else:
                parts.append(_add_rows(assembly, code, source, show))
    selection = assembly.freeze()
    pairs = {
        source.label(): selection.hold_out(code, config.heldout.share, config.heldout.documents)
        for code, source in enumerate(config.sources)
        if source.hold_out and not isinstance(source, DocstringsSource)
    }
    asked = [text for found in pairs.values() for pair in found for text in (pair.query, pair.document)]
    asked += [text for found in docstrings.values() for pair in found for text in (pair.summary, pair.body)]
    negatives = selection.protect({digest(text) for text in asked})
    for code, part in enumerate(parts):
        mine = selection.sources_M == code
        part["held out"] = part.get("held out", 0) + int((mine & selection.held_M).sum())
        spoilt = int((mine & selection.spoilt_M).sum())
        part["dropped"] = dict(Counter(part["dropped"]) + Counter({"repeats a held-out text": spoilt}))
        part["examples"] = int((mine & selection.kept_M).sum())
    dropped = sum((Counter(part["dropped"]) for part in parts), Counter[str]())
    if not selection.kept_M.any():
        reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.most_common())
        raise ValueError(
            f"no row is left to train on: {reasons or 'all are held out'}; add rows or lower `heldout.share`"
        )
    texts, examples = selection.write(folder, names)
    heldout = _write_heldout(folder / "heldout", config, pairs, docstrings)
    return {
        "texts": texts,
        "examples": examples,
        "dropped": dict(dropped.most_common()),
        "held-out texts removed as negatives": negatives,
        "heldout": heldout,
        "sources": dict(zip(names, parts, strict=True)),
    }


def _add_docstrings(assembly: Assembly, code: int, source: DocstringsSource, found: Harvest) -> dict[str, Any]:
    for pair in found.train:
        assembly.add(Row(pair.summary, (pair.body,), lang="en"), code, source.instruction, source.symmetric)
    if not found.train:
        raise ValueError(f"source {source.label()!r}: no docstring with a summary and a body in the installed packages")
    counts = found.counts
    dropped = _counted({reason: counts[reason] for reason in ("duplicate", "repeats a held-out text")})
    return {
        **{fact: counts[fact] for fact in ("modules", "modules read", "modules not parsable")},
        "rows": len(found.train) + len(found.heldout) + sum(dropped.values()),
        "dropped": dropped,
        "held out": len(found.heldout),
    }


def _add_rows(
    assembly: Assembly, code: int, source: ColumnSource, show: Callable[[int, int | None], None]
) -> dict[str, Any]:
    tally = Tally()
    duplicates = 0
    for number, row in enumerate(read_rows(source, tally), start=1):
        duplicates += not assembly.add(row, code, source.instruction, source.symmetric)
        if number % SHOWN_EVERY == 0:
            show(number, source.limit)
    return {
        "rows": tally.read,
        "dropped": dict(tally.dropped.most_common()) | _counted({"duplicate": duplicates}),
        "places": dict(tally.places),
    }


def _show(display: Progress, task: TaskID, done: int, total: int | None) -> None:
    display.update(task, completed=done, total=total)


def _counted(reasons: dict[str, int]) -> dict[str, int]:
    """Only the reasons that occurred."""
    return {reason: count for reason, count in reasons.items() if count}


def _write_heldout(
    folder: Path,
    config: DataConfig,
    pairs: dict[str, list[Pair]],
    docstrings: dict[str, list[Docstring]],
) -> dict[str, int]:
    """Write the evaluation data; return the rows of each task by `kind/NAME`."""
    folder.mkdir()
    tasks: dict[str, Task] = {}
    for source in config.sources:
        name, instruction, queries = source.label(), source.instruction, config.heldout.queries
        if name in docstrings:
            written = write_docstring_tasks(folder, name, docstrings[name], instruction, queries)
        else:
            written = write_pair_tasks(folder, name, pairs.get(name, []), instruction, queries)
        tasks |= {f"{kind}/{name}": task for kind, task in written.items()}
    write_instructions(folder, {name: task.instruction for name, task in tasks.items()})
    return {name: task.rows for name, task in tasks.items()}
