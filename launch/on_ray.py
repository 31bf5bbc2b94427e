"""On a Ray cluster: tasks examine the rows of a preparation, and actors that hold the teacher, one per GPU, embed units
of text that Ray Data hands them.

What Ray is used for: it deals batches of rows to the processors and does those of a dead worker again; it starts the
actors where there is room, deals them the units, starts a dead one again elsewhere and gives its unit to another, and
shows the progress. The vectors do not travel through Ray: an actor appends them to the store itself, as every other
process does, so that what was computed is kept whatever happens to the cluster. A unit that is dealt twice costs what
its last shard cost, since only missing vectors are computed. Recipe, texts and store lie on a file system that every
node sees; the files of the sources are read here.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.embed import Pass
from data_prep.examine import Batch, Examined, Shared, examine, in_order, open_index
from data_prep.refused import Refusals
from data_prep.tables import Texts
from data_prep.teacher import AnyTeacher, load_teacher, vector_keys
from data_prep.units import Rota, Share, cut_units, text_bytes
from data_prep.vectors import VectorStore, first_rows
from data_prep.vectors_care import rows_stored
from embedding.embedder import Embedder
from launch.drive import drive
from launch.engine import Engine, Job, inherited_path
from launch.pipeline import Pipeline
from launch.prepared import prepare_data
from launch.steps import Result
from launch.workspace import parameters

CPU_WORKERS = 2
"""Actors where the cluster has no GPU and nothing is asked for."""
ROW = dict[str, np.ndarray]


class Worker:
    """An actor: the teacher, and the store it writes to."""

    def __init__(self, config: AnyTeacher, texts: Path, stores: Path, workers: int) -> None:
        teacher = load_teacher(config)
        self.work = Pass(config, teacher, stores, Texts.load(texts))
        self.units = cut_units(self.work.size_N, workers)
        store = self.work.store
        facts = {
            "store": str(store.folder),
            "identity": store.identity,
            "width": store.width,
            "parameters": parameters(teacher) if isinstance(teacher, Embedder) else None,
            "note": self.work.note,
            "set_aside": store.set_aside,
        }
        self.facts = json.dumps(facts)
        self.told = (0, 0, 0)
        """What `__call__` has said of computed vectors, tokens and cut texts so far."""

    def __call__(self, batch: ROW) -> ROW:
        """Embed what the units lack: {unit} -> {computed, tokens, cut, facts}, a row for each unit."""
        rows: dict[str, list[Any]] = {"computed": [], "tokens": [], "cut": [], "facts": []}
        for unit in batch["unit"].tolist():
            rota = Rota(self.work.store, self.work.keys_N2, self.units, Share())
            rota.own = [unit]
            self.work.run(rota, progress=False)
            after = (self.work.computed, self.work.tokens, self.work.cut)
            for name, now, then in zip(("computed", "tokens", "cut"), after, self.told, strict=True):
                rows[name].append(now - then)
            self.told = after
            rows["facts"].append(self.facts)
        return {name: np.array(values) for name, values in rows.items()}


class RayPipeline(Pipeline):
    """The pipeline whose rows and teacher are on the cluster; this process loads no teacher."""

    def __init__(self, *args: Any, engine: Engine, **options: Any) -> None:
        super().__init__(*args, **options)
        self.engine = engine

    def _prepare(self, made_from: dict[str, Any]) -> Result:
        with _cluster() as ray:
            workers = self.engine.procs or max(1, int(ray.cluster_resources().get("CPU", 1)))
            return prepare_data(self.recipe, made_from, workers=partial(examined, ray, workers))

    def _embed(self) -> Result:
        with _cluster() as ray:
            return self._on_cluster(ray)

    def _on_cluster(self, ray: Any) -> Result:
        config = self.recipe.teacher
        there = int(ray.cluster_resources().get("GPU", 0))
        gpus = self.engine.gpus if self.engine.gpus is not None else there
        if gpus > there:
            raise ValueError(f"--gpus {gpus}: the Ray cluster has {there}")
        workers = gpus or self.engine.procs or CPU_WORKERS
        texts, stores = (self.at.data / "texts").resolve(), (self.at.cache / "vectors").resolve()
        keys_N2 = vector_keys(self.at.texts, config.template)
        distinct_N = first_rows(keys_N2)
        units = np.arange(len(cut_units(text_bytes(self.at.texts)[distinct_N], workers)))
        # A reduction is fitted by the first process, so one actor begins alone; it is quick where there is none to fit.
        first, rest = (units[:1], units[1:]) if config.store.pca else (units[:0], units)
        make = partial(_embedded, ray, config, texts, stores, workers, 1 if gpus else 0)
        rows = [row for part in (first, rest) if len(part) for row in make(part)]
        facts = json.loads(rows[0]["facts"])
        store = VectorStore.open(Path(facts["store"]), facts["identity"], facts["width"])
        absent = distinct_N[store.missing(keys_N2[distinct_N])]
        Refusals(store.folder).require_none(keys_N2[absent], absent, len(self.at.texts))
        if lost := len(absent):
            raise ValueError(
                f"{store.folder}: {lost} vectors did not arrive; do all nodes of the cluster see this folder?"
            )
        notes = [facts["note"], *(f"damaged, computed again: {name}" for name in facts["set_aside"])]
        for line in filter(None, notes):
            self.ledger.say("", line)
        computed = sum(int(row["computed"]) for row in rows)
        return {
            "outputs": [str(self.at.cache / "vectors" / store.folder.name)],
            "identity": facts["identity"],
            "width": facts["width"],
            "parameters": facts["parameters"],
            "vectors": {"computed": computed, "reused": len(distinct_N) - computed},
            "rows": rows_stored(store.folder),
            "tokens": sum(int(row["tokens"]) for row in rows),
            "cut": sum(int(row["cut"]) for row in rows),
        }


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, joined to the cluster that `RAY_ADDRESS` names, else to one that is started here."""
    import ray
    import ray.data

    ray.init(runtime_env={"env_vars": {**inherited_path(), "TOKENIZERS_PARALLELISM": "false"}}, log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()


def examined(ray: Any, workers: int, stream: Iterable[Batch], shared: Shared) -> Iterator[Examined]:
    """`data_prep.examine.examined` by tasks of the cluster; Ray does a task again whose worker died.

    Raises:
        ValueError: the workers of one batch died again and again.
    """
    if shared.evaluation is not None:
        shared = shared._replace(evaluation=shared.evaluation.resolve())  # a worker has a working folder of its own
    task = ray.remote(num_cpus=1)(_examine)
    try:
        yield from in_order(stream, lambda batch: task.remote(batch, shared), ray.get, workers)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise ValueError(f"a worker of the Ray cluster that examines rows died again and again: {error}") from None


def _examine(batch: Batch, shared: Shared) -> Examined:
    return examine(batch, shared, _index(shared))


_index = lru_cache(maxsize=1)(open_index)
"""Opened once in each worker process."""


def _embedded(
    ray: Any, config: AnyTeacher, texts: Path, stores: Path, workers: int, gpus: int, units: np.ndarray
) -> list[dict[str, Any]]:
    """The units through a pool of actors. Ray Data starts a lost actor again, and gives its units to the others."""
    size = min(workers, len(units))
    found: list[dict[str, Any]] = (
        ray.data.from_items([{"unit": int(unit)} for unit in units], override_num_blocks=len(units))
        .map_batches(
            Worker,
            fn_constructor_args=(config, texts, stores, workers),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=1,
            num_gpus=gpus,
        )
        .take_all()
    )
    return found


def run(job: Job, engine: Engine) -> int:
    """Prepare or embed on the Ray cluster that `RAY_ADDRESS` names, else on one that is started on this machine.

    Raises:
        ValueError: another command, or an option that means nothing here.
    """
    if job.command not in ("prepare", "embed"):
        raise ValueError(f"eyas {job.command} --on ray: Ray runs prepare and embed; use --on local or --on slurm")
    if job.command == "prepare" and (engine.gpus or job.flags):
        raise ValueError("eyas prepare --on ray: rows are examined on CPUs, say --procs; --explain needs no engine")
    for name in ("time", "partition", "sbatch", "port", "accelerate"):
        if getattr(engine, name):
            raise ValueError(f"--{name} means nothing with --on ray")
    if engine.nodes > 1:
        raise ValueError(f"--nodes {engine.nodes}: the Ray cluster says which nodes there are; --gpus says how many")
    if engine.dry_run:
        where = os.environ.get("RAY_ADDRESS", "a cluster started on this machine, unless one runs here")
        workers = f"{engine.gpus} GPUs" if engine.gpus else f"{engine.procs or CPU_WORKERS} CPU actors or all GPUs"
        what = f"{workers}, an actor with the teacher on each"
        if job.command == "prepare":
            what = f"{engine.procs or 'all'} CPUs, on each a task that examines rows"
        sys.stdout.write(f"Ray at {where}: {what}: {' '.join(job.words())}\n")
        return 0
    make: Callable[..., Pipeline] = partial(RayPipeline, engine=engine)
    return drive(job.config, job.overrides, "prepare" if job.command == "prepare" else "embed", pipeline=make)
