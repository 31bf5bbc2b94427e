"""mteb's own tasks by name: found, pinned, loaded from the hub or a copy of it, and made smaller where asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding.config import Config, suggest
from embedding.hub import cache_of
from eval.kinds import KINDS, SEARCHED, Kind, kind_of

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask


class OfficialTask(Config):
    """One of mteb's tasks, or a part of it."""

    name: str
    """As mteb calls it."""
    revision: str | None = None
    """The commit of its data set on the hub; None: the one that the installed mteb names."""
    subsets: list[str] | None = None
    """Only these of its subsets (languages or language pairs); None: all."""
    splits: list[str] | None = None
    """Only these of its evaluation splits; None: all."""


def known_names() -> list[str]:
    """Every task and benchmark of the installed mteb."""
    import mteb

    names = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)}
    return sorted(names | {benchmark.name for benchmark in mteb.get_benchmarks()})


def find_tasks(wanted: OfficialTask, mirror: Path | None) -> list[AbsTask]:
    """The tasks of a name, without data; a benchmark's name stands for all its tasks.

    Args:
        mirror: a folder of copies of the hub's data sets, `mirror/OWNER/NAME`; None: the hub.

    Raises:
        ValueError: mteb has no task or benchmark of this name (the close ones are named), a subset or split is not the
            task's, or a benchmark comes with settings of a task.
    """
    import mteb

    benchmarks = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
    if wanted.name in benchmarks:
        if wanted.revision or wanted.subsets or wanted.splits:
            raise ValueError("a benchmark takes no revision, subsets or splits; name its tasks one by one")
        tasks = list(benchmarks[wanted.name].tasks)
    else:
        names = known_names()
        if wanted.name not in names:
            raise ValueError(f"mteb has no task or benchmark of this name{suggest(wanted.name, names)}")
        whole = mteb.get_task(wanted.name)
        for given, valid in ((wanted.subsets, whole.hf_subsets), (wanted.splits, whole.metadata.eval_splits)):
            if strangers := sorted(set(given or ()) - set(valid)):
                raise ValueError(f"{wanted.name} has no {strangers[0]!r}{suggest(strangers[0], list(valid))}")
        tasks = [mteb.get_task(wanted.name, hf_subsets=wanted.subsets, eval_splits=wanted.splits)]
    for task in tasks:
        source = dict(task.metadata.dataset)
        source["revision"] = wanted.revision or source["revision"]
        if mirror is not None:
            source["path"] = str(mirror / str(source["path"]))
        task.metadata = task.metadata.model_copy(update={"dataset": source})
    return tasks


def load_task(task: Any, mirror: Path | None, rows: int | None, documents: int | None, seed: int) -> Kind:
    """Load the data of a task, make it as small as asked, and say of which kind it is.

    Raises:
        ValueError: the task is of another kind than the nine, or the mirror lacks its data.
    """
    kind = kind_of(task.metadata.type)
    if mirror is not None and not Path(task.metadata.dataset["path"]).is_dir():
        raise ValueError(f"{task.metadata.dataset['path']}: no copy of the data set there")
    with cache_of(None if mirror is None else Path(task.metadata.dataset["path"])):
        task.load_data()
        if kind in SEARCHED:
            task.convert_v1_dataset_format_to_v2(num_proc=None)  # else some only get `.dataset` when they run
    if kind == "pair_classification":
        _unpack(task)
    if rows is not None or documents is not None:
        _make_smaller(task, kind, rows, documents, seed)
    return kind


def registered_instruction(task: Any) -> str:
    """The instruction mteb registers for Harrier on this task, else the task's own, else that of its kind."""
    from mteb.models.model_implementations.harrier_models import harrier_task_prompts

    prompts: list[Any] = [harrier_task_prompts.get(task.metadata.name), task.metadata.prompt, task.abstask_prompt]
    for prompt in prompts:
        sentence = prompt.get("query") if isinstance(prompt, dict) else prompt
        if sentence:
            return str(sentence)
    return KINDS[kind_of(task.metadata.type)].instruction


def _make_smaller(task: Any, kind: Kind, rows: int | None, documents: int | None, seed: int) -> None:
    from eval.sample import draw, smaller_search

    if kind == "clustering":
        # its class draws by itself, the same for every model
        if rows is not None:
            task.max_document_to_embed = min(task.max_document_to_embed or rows, rows)
            task.max_fraction_of_documents_to_embed = None
            task.max_documents_per_cluster = min(task.max_documents_per_cluster, rows)
        return
    if kind in SEARCHED:
        # FollowIR's score is over all its few queries; only what is ranked for each becomes less
        paired = kind == "instruction_reranking"
        queries, question = (None, _question) if paired else (rows, str)
        for subset in task.dataset.values():
            for split in set(subset) & set(task.eval_splits):
                subset[split] = smaller_search(subset[split], queries, documents, seed, question)
        return
    for part, split in _evaluated(task):
        part[split] = part[split].select(draw(range(len(part[split])), rows, seed))


def _question(query: str) -> str:
    """FollowIR asks each question twice, as ID-og and ID-changed, and scores where the same documents go."""
    return query.removesuffix("-og").removesuffix("-changed")


def _unpack(task: Any) -> None:
    """Give a task of pairs a row for each; mteb's older sets hold all their pairs in one."""
    from datasets import Dataset

    for part, split in _evaluated(task):
        if len(part[split]) == 1 and isinstance(next(iter(part[split][0].values())), list):
            part[split] = Dataset.from_dict(part[split][0])


def _evaluated(task: Any) -> list[tuple[Any, str]]:
    """(what holds it, its name) for every split of a task that is no search; subsets lie above splits, where there are
    any."""
    parallel = not set(task.dataset) & set(task.eval_splits)
    parts = task.dataset.values() if parallel else [task.dataset]
    return [(part, split) for part in parts for split in (set(part) & set(task.eval_splits)) - {"train"}]
