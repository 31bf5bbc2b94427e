"""A suite: which tasks, with which instructions, over which folder. Tasks that cannot be loaded carry their reason.

A folder is laid out by kind, one entry a task, named `kind/NAME`:

    retrieval/NAME/{corpus,queries,qrels}.parquet        id, title, text | id, text | query_id, doc_id, score
    reranking/NAME.parquet                               query, positive [texts], negative [texts]
    instruction_reranking/NAME.parquet                   query, instruction, changed_instruction,
                                                         positive, dropped, negative [texts]
    sts/NAME.parquet                                     sentence1, sentence2, score
    pair_classification/NAME.parquet                     sentence1, sentence2, label (0, 1)
    classification/NAME-{train,test}.parquet             text, label
    multilabel_classification/NAME-{train,test}.parquet  text, label [texts]
    clustering/NAME.parquet                              text, label
    bitext/NAME.parquet                                  sentence1, sentence2 (lang1, lang2: one subset a pair)
    instructions.json                                    optional: {"kind" or "kind/NAME": instruction}
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, ModelWrapValidatorHandler, model_validator

from embedding.config import CONFIGS, Config, Place, load_config, override_config, suggest
from embedding.files import read_json
from eval.kinds import KIND_NAMES, KINDS, Kind
from eval.official import OfficialTask, find_tasks, known_names, load_task, registered_instruction
from eval.preserve import preserved_random_state, quiet
from eval.tables import some
from eval.views import View

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

INSTRUCTIONS_FILE = "instructions.json"
SPLIT_KINDS = ("classification", "multilabel_classification")
SKIPPED = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, ArithmeticError, OSError)
"""What a task may raise, from our checks to mteb's and scikit-learn's insides: the task fails, the suite goes on."""


class SuiteConfig(Config):
    """What to evaluate."""

    name: str = ""
    """Shown with the scores; empty: what `label` says."""
    folder: Place | None = None
    """A folder in the layout above; None, without `official`, is the held-out part of the run's own data."""
    tasks: list[str] = Field(default=["*"])
    """Patterns over `kind/NAME`, such as `retrieval/*` or `sts/stsb_*-test`; one that matches nothing is a failure."""
    official: list[str | OfficialTask] = Field(default=[])
    """mteb's own tasks or benchmarks, by name or with settings; their data comes from the hub."""
    mirror: Place | None = None
    """A folder of copies of the hub's data sets, `mirror/OWNER/NAME`, for machines without a network."""
    instructions: dict[str, str] = Field(default={})
    """By task (`retrieval/docs`) or kind (`retrieval`), over the folder's own; else mteb's sentence for the kind."""
    max_rows: int | None = Field(default=None, ge=2)
    """Keep at most so many rows of a flat set (per language pair for bitext), or queries."""
    max_documents: int | None = Field(default=None, ge=2)
    """Keep at most so many documents of a retrieval corpus, or of all candidates of one of mteb's reranking tasks (but
    ten of each query; a folder's all stay); relevant ones always stay, then those judged and found wrong, then those
    most like a query."""
    widths: list[int] = Field(default=[])
    """Also score the finished student's vectors cut to these widths (Matryoshka)."""
    precisions: list[Literal["int8", "binary"]] = Field(default=[])
    """Also score them with fewer bits a number."""
    seed: int = 42
    """The seed of mteb's tasks (42 in mteb itself) and of the limits above."""

    @property
    def label(self) -> str:
        """The name; without one the folder's, and `official` or `held-out` where there is no folder."""
        if self.name:
            return self.name
        if self.folder:
            return self.folder.resolve().name
        return "official" if self.official else "held-out"

    @model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, value: Any, validate: ModelWrapValidatorHandler[SuiteConfig]) -> SuiteConfig:
        """A recipe may name a suite: `suite: lite`."""
        return find_suite(value) if isinstance(value, str) else validate(value)


@dataclass(frozen=True)
class SuiteTask:
    """One mteb task with its data, and what is said to the model about it."""

    name: str
    kind: Kind
    instruction: str
    task: AbsTask
    seed: int

    @property
    def metric(self) -> str:
        """The name of mteb's main score."""
        return str(self.task.metadata.main_score)

    def fresh(self) -> AbsTask:
        """The task as mteb would have just made it: same data, generators at their seed.

        mteb's sampling moves a task's generators on, so a second evaluation of one object would see other samples.
        """
        task = copy.copy(self.task)
        task.rng_state, task.np_rng = random.Random(self.seed), np.random.default_rng(self.seed)
        return task


@dataclass
class Suite:
    """Tasks ready to run, and those that are not, with the reason."""

    name: str
    tasks: list[SuiteTask]
    failed: dict[str, str] = field(default_factory=dict)
    """Task -> why it could not be loaded."""
    known: list[str] = field(default_factory=list)
    """Every task that could have been chosen."""
    views: list[View] = field(default_factory=list)
    """How else the finished student's vectors are to be scored."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What one evaluation leaves for the next: the texts of each task, their tokens, the digests of the items."""


def find_suite(name: str, overrides: Sequence[str] = ()) -> SuiteConfig:
    """The suite of a name: a YAML file, one shipped with eyas, a folder of evaluation data, or a task or benchmark of
    mteb; each with the overrides.

    Raises:
        ValueError: it is none of these (the close names are named), or its config is wrong.
    """
    shipped = sorted(path.stem for path in (CONFIGS / "suites").glob("*.yaml"))
    if Path(name).is_dir():
        values: dict[str, Any] = {"folder": name}
    elif Path(name).is_file() or name in shipped:
        return load_config(SuiteConfig, f"suites/{name}" if name in shipped else name, overrides)
    elif name in (official := known_names()):
        values = {"name": name, "official": [name]}
    else:
        raise ValueError(
            f"suite {name!r}: no such file, folder, shipped suite ({', '.join(shipped)}), or task or benchmark of mteb"
            f"{suggest(name, [*shipped, *official])}"
        )
    return override_config(SuiteConfig, values, overrides, where=f"suite {name!r}")


def load_suite(config: SuiteConfig, folder: Path | None = None) -> Suite:
    """Load the tasks of a suite; `folder` (a run's held-out data) stands in where the config names no data at all.

    A task that cannot be loaded does not stop the others: it is in `Suite.failed` with its reason.

    Raises:
        ValueError: there is no folder, or the config names neither a folder nor official tasks.
    """
    folder = config.folder or (None if config.official else folder)
    if folder is None and not config.official:
        raise ValueError(f"suite {config.label!r}: set `folder` to evaluation data, or name `official` mteb tasks")
    if folder is not None and not folder.is_dir():
        raise ValueError(f"suite {config.label!r}: {folder} is not a folder")
    views = [View(width=width) for width in config.widths] + [View(precision=p) for p in config.precisions]
    suite = Suite(config.label, [], views=views)
    with preserved_random_state(), quiet():
        if folder is not None:
            _load_folder(suite, config, folder)
        _load_official(suite, config)
    _check_instructions(suite, config)
    return suite


def entries(folder: Path) -> dict[str, tuple[Kind, Path]]:
    """The tasks a folder holds: `kind/NAME` -> (kind, path without the split)."""
    found: dict[str, tuple[Kind, Path]] = {}
    for kind in KIND_NAMES:
        for path in sorted((folder / kind).glob("*")):
            if kind == "retrieval" and not path.is_dir():
                continue
            if kind != "retrieval" and path.suffix != ".parquet":
                continue
            name = path.name if kind == "retrieval" else path.stem
            if kind in SPLIT_KINDS:
                name = name.removesuffix("-train").removesuffix("-test")
                path = path.with_name(f"{name}.parquet")
            found[f"{kind}/{name}"] = kind, path
    return found


def _load_folder(suite: Suite, config: SuiteConfig, folder: Path) -> None:
    from eval.tasks import Limits, make_task

    found = entries(folder)
    if not found:
        raise ValueError(f"{folder}: no evaluation tasks; expected sub-folders such as {', '.join(KIND_NAMES[:4])}")
    instructions = _folder_instructions(folder) | config.instructions
    for pattern in config.tasks:
        if not fnmatch.filter(found, pattern):
            close = difflib.get_close_matches(pattern, found, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {some(list(found), 5)}"
            suite.failed[pattern] = f"{folder} has no such task; {hint}"
    chosen = [name for name in found if any(fnmatch.fnmatch(name, pattern) for pattern in config.tasks)]
    suite.known += found
    limits = Limits(config.max_rows, config.max_documents, config.seed)
    for name in chosen:
        kind, path = found[name]
        try:
            task = make_task(kind, name, path, limits, config.seed)
        except SKIPPED as error:
            suite.failed[name] = reason(error)
            continue
        instruction = instructions.get(name, instructions.get(kind, KINDS[kind].instruction))
        suite.tasks.append(SuiteTask(name, kind, instruction, task, config.seed))


def _load_official(suite: Suite, config: SuiteConfig) -> None:
    for named in config.official:
        wanted = named if isinstance(named, OfficialTask) else OfficialTask(name=named)
        try:
            tasks = find_tasks(wanted, config.mirror)
        except SKIPPED as error:
            suite.failed[wanted.name] = reason(error)
            continue
        for task in tasks:
            name = task.metadata.name
            suite.known.append(name)
            try:
                kind = load_task(task, config.mirror, config.max_rows, config.max_documents, config.seed)
            except SKIPPED as error:
                suite.failed[name] = reason(error)
                continue
            instruction = config.instructions.get(name, config.instructions.get(kind))
            suite.tasks.append(SuiteTask(name, kind, instruction or registered_instruction(task), task, config.seed))


def reason(error: BaseException) -> str:
    """One sentence for a report; the type is named where the message alone would not be understood."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _folder_instructions(folder: Path) -> dict[str, str]:
    path = folder / INSTRUCTIONS_FILE
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError(f"{path}: expected a mapping from a kind or a task to its instruction")
    return found


def _check_instructions(suite: Suite, config: SuiteConfig) -> None:
    official = [named if isinstance(named, str) else named.name for named in config.official]
    known = list(dict.fromkeys([*suite.known, *KIND_NAMES, *official]))
    for name in config.instructions:
        if name not in known:
            suite.failed[name] = f"instructions name an unknown task or kind{suggest(name, known)}"
