"""A study: a base recipe, named variants or a grid, times seeds. Every run is an ordinary run in a folder of its own.

runs/STUDY/VARIANT-s0/    the runs            runs/STUDY/configs/    their recipes
runs/STUDY/study.md, study.csv, study.html    the result
"""

import itertools
import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, model_validator

from embedding.config import Config, dump_config, load_config
from embedding.files import fingerprint, read_json, write_text
from eval.study import Study, Trial, study
from eval.study_page import markdown, page, table_csv
from launch.engine import TASK_FAILED, Engine, engine_module, python_words
from launch.local import check as check_here
from launch.local import threads
from launch.present import Present
from launch.queue import queued
from launch.runs import ENVIRONMENT, JOB, holder, read_run
from launch.slurm import check_cluster, reads, submit_array
from train.recipe import Recipe

WAIT_SECONDS = 2.0
"""Between two looks at a run that another process works on."""


class StudyConfig(Config):
    """What is compared."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: str
    """The recipe that every variant changes: a file beside the study's, or one shipped with eyas."""
    settings: dict[str, Any] = Field(default={})
    """Changes to the base that all variants share, as `tracking.evaluate_every: 0`."""
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    variants: dict[str, dict[str, Any]] = Field(default={})
    """Changes by name; `{}` is the base itself."""
    grid: dict[str, list[Any]] = Field(default={})
    """Instead of variants: every combination of these values."""
    baseline: str | None = None
    """The variant that others are compared with; None: the first."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "StudyConfig":
        if bool(self.variants) == bool(self.grid):
            raise ValueError("expected either variants or a grid")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, got {self.seeds}")
        names = list(self.all_variants())
        if len(names) < 2:
            raise ValueError(f"one variant, {names[0]}: there is nothing to compare")
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"variant {name!r}: expected letters, digits, dot, dash or underscore")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} is not among the variants {', '.join(names)}")
        return self

    def all_variants(self) -> dict[str, dict[str, Any]]:
        """The variants, named or of the grid."""
        if self.variants:
            return self.variants
        if not all(self.grid.values()):
            raise ValueError("every key of the grid needs at least one value")
        combinations = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        named = {"_".join(_short(key, value) for key, value in one.items()): one for one in combinations}
        if len(named) < len(combinations):
            raise ValueError("values of the grid differ only in signs or spaces; name them under variants instead")
        return named


def _short(key: str, value: Any) -> str:
    """`learning_rate-0.001`: the last word of the key and the value, as a name."""
    return f"{key.rpartition('.')[2]}-" + re.sub(r"[^A-Za-z0-9.]+", "-", str(value)).strip("-")


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named is not None else [str(number) for number in range(count)]


@dataclass(frozen=True)
class Run:
    """One training of a study."""

    variant: str
    seed: int
    recipe: Recipe
    config: Path
    present: Present

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.recipe.output / self.recipe.name

    @property
    def lacks(self) -> str:
        """Why its result cannot be taken; "" where it was finished, from this very recipe and what it names."""
        config, steps = self.folder / "config.yaml", self.folder / "steps"
        left = [self.folder / "scorecard.json", config, steps / "export.json", steps / "evaluate.json"]
        if not all(path.is_file() for path in left) or read_run(self.folder, self.recipe.output).state != "done":
            return "not finished"
        if config.read_text(encoding="utf-8") != dump_config(self.recipe):
            return "finished from another recipe; the same command does it again"
        changed = self.present.changed(self.recipe, steps)
        return f"finished before {changed} changed; the same command does it again" if changed else ""

    @property
    def done(self) -> bool:
        """Whether it was finished, from this very recipe and what it names."""
        return not self.lacks


class Ablation:
    """A study on its way."""

    def __init__(self, file: Path, say: Callable[[str], None]) -> None:
        """Read the study and every recipe in it.

        Raises:
            ValueError: an unknown key or a wrong value in any variant; nothing was started.
        """
        self.config = load_config(StudyConfig, file)
        self.file = file
        self.say = say
        self.present = Present(say)
        beside = file.parent / self.config.base
        self.base = beside if beside.is_file() else Path(self.config.base)
        self.variants = self.config.all_variants()
        self.baseline = self.config.baseline or next(iter(self.variants))
        self.runs = [self._run(name, seed) for seed in self.config.seeds for name in self.variants]
        self.folder = self.runs[0].recipe.output
        self.failed: dict[str, dict[int, str]] = {}
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._ending = False

    def _run(self, variant: str, seed: int) -> Run:
        settings = self.config.settings | self.variants[variant] | {"seed": seed, "name": f"{variant}-s{seed}"}
        words = [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in settings.items()]
        words = [word.removesuffix("\n...").removesuffix("...").strip() for word in words]
        try:
            recipe = load_config(Recipe, self.base, words)
        except ValueError as error:
            raise ValueError(f"{self.file}: variant {variant!r}: {error}") from None
        recipe = recipe.model_copy(update={"output": recipe.output / self.config.name})
        return Run(variant, seed, recipe, recipe.output / "configs" / f"{recipe.name}.yaml", self.present)

    # ------------------------------------------------------------------------------------------------------ running

    def check(self, engine: Engine, jobs: int) -> None:
        """Refuse for the whole study what would be refused for each of its runs.

        Raises:
            ValueError: no such engine, or not one for studies, or it has fewer GPUs, nodes or time, or its processes do
                not divide a batch.
        """
        if engine.on is None:
            return
        engine_module(engine)
        if engine.on == "ray":
            raise ValueError("--on ray: its actors embed and do not train; a study runs --on local or --on slurm")
        if engine.port is not None and jobs > 1:
            raise ValueError(f"--port {engine.port}: {jobs} runs at the same time cannot share a port; leave it out")
        if engine.on == "local":
            check_here(engine)
            if engine.gpus and jobs * engine.gpus > (found := len(visible_gpus())):
                raise ValueError(
                    f"--jobs {jobs} of --gpus {engine.gpus} need {jobs * engine.gpus} GPUs; here are {found}"
                )
        elif not engine.dry_run:
            check_cluster(engine)
        for run in self.runs:
            run.recipe.check_ranks(engine.nodes * engine.ranks)

    def start(self, engine: Engine, jobs: int) -> bool:
        """Do what is not finished; returns whether the result is there to be looked at (else it waits in a queue).

        A run that fails is noted and the others go on.

        Raises:
            ValueError: the engine is none, or cannot do what is asked; nothing was started or submitted.
        """
        due = [run for run in self.runs if not run.done]
        if due:
            self.check(engine, jobs)
        failed = self._failed_there(due) if engine.on == "slurm" else 0
        for run in self.runs:
            write_text(run.config, dump_config(run.recipe))
        self.say(f"{len(self.runs)} runs in {self.folder}: {len(self.runs) - len(due)} finished before")
        if engine.on == "slurm":
            return self._submit(due, engine, jobs, failed)
        with _terminated():
            if jobs > 1:
                self._share(due)
            if due:
                self._local(due, engine, jobs)
                self.present.found.clear()  # it may have changed while they ran
        return True

    def _failed_there(self, due: Sequence[Run]) -> int:
        """How many failed in the last array, with the recipe they have now: noted for the result."""
        job, count = self.folder / JOB, 0
        submitted = read_json(job)["submitted"] if job.is_file() else "never"
        for run in due:
            record = read_run(run.folder, run.recipe.output).record
            same = run.config.is_file() and run.config.read_text(encoding="utf-8") == dump_config(run.recipe)
            if same and record.get("state") in ("failed", "refused") and record.get("ended", "") >= submitted:
                said = f"{record['state']}: {record.get('error', '')} ({run.folder})"
                self.failed.setdefault(run.variant, {})[run.seed] = said
                count += 1
        return count

    def _submit(self, due: Sequence[Run], engine: Engine, jobs: int, failed: int) -> bool:
        if not due:
            return True
        if waiting := queued(self.folder):
            self.say(f"in the queue: {waiting}; the same command shows the result when they are done")
            return False
        if failed == len(due):  # whoever has seen that, and comes again, wants them tried again
            (self.folder / JOB).unlink()
            return True
        job = submit_array(
            self.config.name,
            [["run", str(run.config.resolve())] for run in due],
            self.folder,
            engine,
            jobs if jobs > 1 else None,
            list(dict.fromkeys(path for run in due for path in reads(run.recipe))),
        )
        self.say(f"submitted {len(due)} runs as job {job}; the same command shows the result when they are done")
        return False

    def _share(self, due: Sequence[Run]) -> None:
        """Data and teacher vectors that several runs share, before these begin together."""
        seen = set()
        for run in due:
            of = fingerprint([run.recipe.data, run.recipe.teacher])
            if of not in seen:
                seen.add(of)
                try:
                    self._process(run, ["embed", str(run.config)], {}, "data and vectors")
                except BaseException:
                    self._end()
                    raise

    def _local(self, due: Sequence[Run], engine: Engine, jobs: int) -> None:
        places: queue.Queue[int] = queue.Queue()
        for place in range(jobs):
            places.put(place)
        # An engine places its processes itself, on as many GPUs as it was told.
        each = 1 if engine.on is None else engine.gpus or 0
        gpus = visible_gpus() if jobs > 1 and each else []
        # Each would take all cores, and threads that wait for one another hold the others up tenfold.
        shared = {"OMP_NUM_THREADS": threads(jobs * engine.ranks)} if jobs > 1 else {}

        def one(run: Run) -> None:
            place = places.get()
            try:
                mine = [gpus[(place * each + i) % len(gpus)] for i in range(each)] if gpus else []
                own = {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if mine else {}
                self._process(run, ["run", str(run.config), *_words(engine)], shared | own, "run")
            finally:
                places.put(place)

        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(one, run) for run in due]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                self._end()
                raise

    def _end(self) -> None:
        """Ask every run to stop: a training writes a checkpoint, from which the study goes on."""
        self._ending = True
        for process in list(self._alive):
            process.terminate()

    def _process(self, run: Run, words: Sequence[str], environment: dict[str, str], what: str) -> None:
        """One eyas command as a process of its own, its words in `runs/STUDY/output/NAME.log`."""
        while not self._ending and (who := holder(run.folder)) is not None:
            self.say(f"{run.recipe.name}: waiting for process {who.get('pid')}, which works on it")
            time.sleep(WAIT_SECONDS)
        log = self.folder / "output" / f"{run.recipe.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                python_words(words), stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )
            self._alive.add(process)
            if self._ending:
                process.terminate()
            code = process.wait()
            self._alive.discard(process)
        took = time.perf_counter() - begun
        if code:
            last = (log.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"])[-1]
            last = "a task of its evaluation failed" if code == TASK_FAILED else last
            self.failed.setdefault(run.variant, {})[run.seed] = f"{what} ended with code {code}: {last} ({log})"
            self.say(f"{run.recipe.name}: {what} failed after {took:.0f} s: {last}")
        else:
            self.say(f"{run.recipe.name}: {what} done in {took:.0f} s")

    # ------------------------------------------------------------------------------------------------------- result

    def result(self) -> Study:
        """Compare what is finished, and write `study.md`, `study.csv` and `study.html`.

        Raises:
            ValueError: nothing of the baseline is finished.
        """
        trials: dict[str, list[Trial]] = {name: [] for name in self.variants}
        finished = []
        for run in self.runs:
            if run.done:
                finished.append(run)
                timings = read_json(run.folder / "timings.json")
                card = read_json(run.folder / "scorecard.json")
                trials[run.variant].append(Trial(run.seed, card, float(timings["train"])))
                self.failed.get(run.variant, {}).pop(run.seed, None)  # its run mended what came before it
            elif run.seed not in self.failed.get(run.variant, {}):
                self.failed.setdefault(run.variant, {})[run.seed] = run.lacks
        found = study(self.config.name, self.baseline, self.variants, trials, self.failed)
        found = replace(found, mixed=mixed(finished))
        write_text(self.folder / "study.md", markdown(found))
        write_text(self.folder / "study.csv", table_csv(found))
        write_text(self.folder / "study.html", page(found, self.file.read_text(encoding="utf-8")))
        return found


def mixed(runs: Sequence[Run]) -> list[str]:
    """Versions, commit and GPUs that are not the same for all of these finished runs: `torch: 2.12.0, 2.13.0`."""
    found: dict[str, set[str]] = {}
    for run in runs:
        path = run.folder / ENVIRONMENT
        here = read_json(path) if path.is_file() else {}
        commit = ((here.get("git") or {}).get("eyas") or {}).get("commit")
        gpus = ", ".join(here.get("gpus", [])) or "none"
        facts = {**here.get("versions", {}), "commit of eyas": commit, "GPUs": gpus}
        for name, value in facts.items():
            found.setdefault(name, set()).add(str(value))
    return [f"{name}: {', '.join(sorted(values))}" for name, values in found.items() if len(values) > 1]


def _words(engine: Engine) -> list[str]:
    """The engine as options of the command line."""
    if engine.on is None:
        return []
    words = ["--on", engine.on]
    for name in ("gpus", "procs", "port", "restarts", "accelerate"):
        value = getattr(engine, name)
        words += [f"--{name}", str(value)] if value is not None else []
    return words


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends the study as an interrupt does, its runs with it."""
    import signal

    def stop(number: int, frame: Any) -> None:
        sys.exit(os.EX_TEMPFAIL)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
