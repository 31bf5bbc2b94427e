"""Sources to tables: distinct texts, examples that point into them, and the held-out part as evaluation data."""

import fnmatch
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from data_prep.assemble import DUPLICATE, FATES, HELD, NEAR_DUPLICATE, SPOILT, Assembly, Pair
from data_prep.clean import digest
from data_prep.decontaminate import DecontaminationConfig, EvaluationTexts, build_index
from data_prep.docstrings import Docstring
from data_prep.dropped import Drops, write_fates
from data_prep.examine import Batch, Shared, Workers, batches, examined
from data_prep.filters import FilterConfig
from data_prep.harvest import Harvest, harvest, installed_digest
from data_prep.heldout import HeldoutConfig, Task, write_docstring_tasks, write_instructions, write_pair_tasks
from data_prep.near_duplicates import NearDuplicateConfig
from data_prep.readers import hub_commit
from data_prep.rows import Numbered, Row, Tally
from data_prep.sources import DocstringsSource, HubSource, MtebSource, Source, numbered_rows
from embedding.config import Config
from embedding.files import made_before, new_folder, sha256_file, write_manifest

FORMAT = 10
"""Raised when the same sources would give other tables; part of the fingerprint."""
SHORT = "short texts that equal an evaluation text"
"""Fact of a source: how many of its texts stay for being short (`DecontaminationConfig.least_chars`)."""
SHOWN_EVERY = 500
"""Rows between two steps of the progress bar."""


class DataConfig(Config):
    """The training text of a run."""

    sources: list[Source] = Field(default=[DocstringsSource()], min_length=1)
    heldout: HeldoutConfig = HeldoutConfig()
    filters: FilterConfig = FilterConfig()
    """For the sources that have none of their own."""
    near_duplicates: NearDuplicateConfig | None = None
    """None: only rows that are equal count as duplicates."""
    decontamination: DecontaminationConfig = DecontaminationConfig()
    licences: list[str] | None = None
    """Patterns such as `CC-BY*`: sources under another licence, or under none known, are left out. None: all."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        twice = [name for name, n in Counter(source.title() for source in self.sources).items() if n > 1]
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}; give each a `name`")
        if not self.used():
            known = ", ".join(sorted({source.licence or "none" for source in self.sources}))
            raise ValueError(f"licences {self.licences}: no source is left; their licences are {known}")
        return self

    def used(self) -> list[Source]:
        """The sources whose licence is allowed."""
        if self.licences is None:
            return list(self.sources)
        allowed = self.licences
        return [source for source in self.sources if any(fnmatch.fnmatch(source.licence, name) for name in allowed)]


def data_fingerprint(config: DataConfig, evaluation: EvaluationTexts | None = None) -> dict[str, Any]:
    """What the tables are made from: the config, the contents of all files it reads, and what is tested on.

    Raises:
        ValueError: a file is missing, or the hub cannot tell a revision's commit.
    """
    contents = {source.title(): _contents(source) for source in config.used()}
    # Which sources are used decides, not under which licences.
    used = config.used()
    facts = config.model_copy(update={"sources": used, "licences": None}).model_dump(mode="json")
    for source in facts["sources"]:
        del source["licence"]
    left_out = [source.title() for source in config.sources if source not in used]
    made_from = {"format": FORMAT, "config": facts, "left out": left_out, "contents": contents}
    if evaluation is not None and config.decontamination.enabled:
        made_from["evaluation"] = evaluation.made_from
    return made_from


def _contents(source: Source) -> Any:
    """What a source would read, by content."""
    if isinstance(source, DocstringsSource):
        return installed_digest()
    if isinstance(source, MtebSource) and source.mirror is None:
        return source.revision
    if not isinstance(source, HubSource):
        return _hashed(source.files())
    local = Path(source.repository)
    return _hashed(sorted(local.rglob("*"))) if local.is_dir() else hub_commit(source.repository, source.revision)


def _hashed(paths: Sequence[Path]) -> list[list[str]]:
    files = [path for path in paths if path.is_file()]
    names = [path.name.encode("utf-8", "backslashreplace").decode() for path in files]  # not every name is UTF-8
    return [[name, sha256_file(path)] for name, path in zip(names, files, strict=True)]


def prepare(
    config: DataConfig,
    out: Path,
    progress: bool = True,
    evaluation: EvaluationTexts | None = None,
    workers: Workers = examined,
    made_from: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `out/{texts,examples,heldout}`, what became of every row, and a manifest, whole or not at all; return the
    summary.

    Nothing is done where `out` was made from the same config and the same files.

    Args:
        evaluation: the texts of the evaluation suites, which must not be trained on.
        workers: examines the rows, in their order: processes of this machine, or of a cluster that sees `out`.
        made_from: their `data_fingerprint`, where it has been taken already: all files are read for it.

    Raises:
        ValueError: a bad source or bad rows (see `read_rows`), or nothing left to train on.
    """
    made_from = made_from or data_fingerprint(config, evaluation)
    if manifest := made_before(out, made_from):
        return dict(manifest["summary"])
    with new_folder(out, made_from) as folder:
        summary = _build(config, folder, progress, evaluation, workers)
        write_manifest(folder, made_from, summary=summary)
    return summary


def _build(
    config: DataConfig, folder: Path, progress: bool, evaluation: EvaluationTexts | None, workers: Workers
) -> dict[str, Any]:
    sources, work = config.used(), folder / ".work"
    names = [source.title() for source in sources]
    shared, evaluated = Shared(bands=config.near_duplicates is not None), None
    if evaluation is not None and config.decontamination.enabled:
        index = work / "evaluation"
        evaluated = build_index(evaluation.stream(), index)
        shared = shared._replace(evaluation=index, decontamination=config.decontamination)
    assembly = Assembly(work / "texts")
    columns = (TextColumn("reading {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    display = Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True)
    with Drops(folder) as drops:
        intake = _Intake(config, sources, drops, display)
        with display:
            for found in workers(intake.batches(), shared):
                part = intake.parts[found.source]
                part.removed.update(found.removed)
                part.short[SHORT] += found.short
                for number, place, reason, detail, row in found.dropped:
                    drops.add(names[found.source], number, place, reason, detail, row)
                    part.dropped[reason] += 1
                assembly.add(found)
        selection = assembly.freeze()
        near = None
        if config.near_duplicates is not None:
            compared = np.array([source.near_duplicates for source in sources])
            near = selection.drop_near_duplicates(config.near_duplicates.threshold, compared)
        pairs = {
            source.title(): selection.hold_out(code, config.heldout.share, config.heldout.documents)
            for code, source in enumerate(sources)
            if source.hold_out and not isinstance(source, DocstringsSource) and source.label is None
        }
        forbidden = {
            digest(text) for found in intake.docstrings.values() for pair in found for text in (pair.summary, pair.body)
        }
        negatives = selection.protect(forbidden | selection.digests_of_held())
        drops.repeats(selection, names)
    parts = [part.facts() for part in intake.parts]
    for code, facts in enumerate(parts):
        fates = Counter(selection.fate_M[selection.sources_M == code].tolist())
        facts["held out"] = facts.get("held out", 0) + fates[HELD]
        repeats = Counter({FATES[fate]: fates[fate] for fate in (DUPLICATE, NEAR_DUPLICATE, SPOILT) if fates[fate]})
        facts["dropped"] = dict((Counter(facts["dropped"]) + repeats).most_common())
        facts["examples"] = fates[0]
    dropped = sum((Counter(part["dropped"]) for part in parts), Counter[str]())
    if not selection.kept_M.any():
        reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.most_common())
        raise ValueError(
            f"no row is left to train on: {reasons or 'all are held out'}; add rows or lower `data.heldout.share`"
        )
    texts, examples = selection.write(folder, names)
    write_fates(folder, selection, names)
    tasks = _write_heldout(folder / "heldout", config, pairs, intake.docstrings)
    shutil.rmtree(work)
    return {
        "texts": texts,
        "examples": examples,
        "dropped": dict(dropped.most_common()),
        "held-out texts removed as negatives": negatives,
        "removed": dict(sum((part.removed for part in intake.parts), Counter[str]())),
        "near-duplicates": near,
        "evaluation texts": evaluated,
        "left out for their licence": [source.title() for source in config.sources if source not in sources],
        "samples": dict(drops.samples),
        "heldout": {name: task.rows for name, task in tasks.items()},
        "held-out pairs with another instruction": {name: task.others for name, task in tasks.items() if task.others},
        "sources": dict(zip(names, parts, strict=True)),
    }


class _Part(NamedTuple):
    """What is known of one source so far."""

    tally: Tally
    dropped: Counter[str]
    """By what looked at usable rows."""
    removed: Counter[str]
    short: Counter[str]
    extra: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """As the summary has it."""
        dropped = self.tally.dropped + self.dropped
        places = dict(self.tally.places)
        return {**self.extra, **+self.short, "rows": self.tally.read, "dropped": dict(dropped), "places": places}


class _Intake:
    """Reads the sources one after another; tells what was read while it is read."""

    def __init__(self, config: DataConfig, sources: Sequence[Source], drops: Drops, display: Progress) -> None:
        self.config, self.sources, self.drops, self.display = config, sources, drops, display
        self.parts = [_Part(Tally(), Counter(), Counter(), Counter(), {}) for _ in sources]
        self.docstrings: dict[str, list[Docstring]] = {}

    def batches(self) -> Iterator[Batch]:
        """The usable rows of all sources."""
        for code, source in enumerate(self.sources):
            name, part = source.title(), self.parts[code]
            show = partial(_show, self.display, self.display.add_task(name, total=source.limit))
            rows = self._docstrings(source, part, show) if isinstance(source, DocstringsSource) else None
            filters = self.config.filters if source.filters is None else source.filters
            found = rows if rows is not None else _shown(numbered_rows(source, part.tally, filters), source.limit, show)  # type: ignore[arg-type]
            for batch in batches(found, code, source.instruction, source.both_sides, filters):
                self.drops.bad_records(name, part.tally)
                yield batch
            self.drops.bad_records(name, part.tally)

    def _docstrings(
        self, source: DocstringsSource, part: _Part, show: Callable[[int, int | None], None]
    ) -> Iterator[Numbered]:
        documents = self.config.heldout.documents if source.hold_out else 0
        share = self.config.heldout.share
        found: Harvest = harvest(source.limit, seed=source.seed, share=share, heldout=documents, report=show)
        if not found.train:
            raise ValueError(
                f"source {source.title()!r}: no docstring with a summary and a body in the installed packages"
            )
        self.docstrings[source.title()] = found.heldout
        counts = found.counts
        gone = _counted({reason: counts[reason] for reason in ("duplicate", "repeats a held-out text")})
        part.tally.dropped.update(gone)
        part.tally.read = len(found.train) + len(found.heldout) + sum(gone.values())
        part.extra.update({fact: counts[fact] for fact in ("modules", "modules read", "modules not parsable")})
        part.extra["held out"] = len(found.heldout)
        numbers = count(1)
        return (
            Numbered(next(numbers), f"{pair.module}:{pair.name}", Row(pair.summary, (pair.body,), lang="en"))
            for pair in found.train
        )


def _shown(rows: Iterator[Numbered], limit: int | None, show: Callable[[int, int | None], None]) -> Iterator[Numbered]:
    for number, row in enumerate(rows, start=1):
        yield row
        if number % SHOWN_EVERY == 0:
            show(number, limit)


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
) -> dict[str, Task]:
    """Write the evaluation data; return the tasks by `kind/NAME`."""
    folder.mkdir()
    tasks: dict[str, Task] = {}
    for source in config.used():
        name, queries = source.title(), config.heldout.queries
        if name in docstrings:
            written = write_docstring_tasks(folder, name, docstrings[name], source.instruction, queries)
        else:
            written = write_pair_tasks(folder, name, pairs.get(name, []), queries)
        tasks |= {f"{kind}/{name}": task for kind, task in written.items()}
    write_instructions(folder, {name: task.instruction for name, task in tasks.items()})
    return tasks
