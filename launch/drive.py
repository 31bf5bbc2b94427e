"""One process of a run: alone, one of the ranks that train together, or one of several that embed the same texts.

Rank 0 holds the run folder, records what happens and talks to the terminal; the others write their logs.
"""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from transformers.utils import logging

from data_prep.units import Share, launched_share
from embedding.config import load_config
from embedding.files import read_json
from embedding.memory import keep_freed_memory
from launch.engine import TASK_FAILED
from launch.logs import rank_log
from launch.pipeline import Pipeline, Step
from launch.runs import RunRecord, hold, redacted, refuse_secrets
from train.distributed import MainFailed, from_main, join, launched_fsdp, leave, rank, world_size
from train.loop import Preempted
from train.plan import check_sharding
from train.recipe import Recipe
from train.signals import stopping

STOPPED = os.EX_TEMPFAIL
"""Exit code of a run that was asked to stop and goes on when it is started again: what schedulers take as that, too."""
TRAINS: tuple[Step, ...] = ("train", "export", "evaluate", "report")
"""Up to which steps there is a training."""
GRACE = 15.0
"""Seconds that a rank waits for its launcher to end it when rank 0 failed: rank 0's own exit code is the one to see."""


class Stopped(Exception):
    """A signal asked to stop outside of a training, which would have written a checkpoint first (`Preempted`)."""


EXPECTED = (Preempted, Stopped, MainFailed)
"""Ends that are nobody's fault, or that rank 0 explains."""


def drive(
    config: str,
    overrides: Sequence[str],
    until: Step,
    *,
    resume: bool = True,
    queries: Sequence[str] = (),
    pipeline: Callable[..., Pipeline] = Pipeline,
) -> int:
    """Run a recipe up to a step, together with the other ranks where a launcher started several.

    Returns the exit code: 0, or `TASK_FAILED`, or `STOPPED`, or 1 on a rank whose rank 0 failed.

    Raises:
        ValueError: something the user can mend.
    """
    keep_freed_memory()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the terminal belongs to the steps
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # datasets takes seconds to import: not for this
    recipe = load_config(Recipe, config, overrides)
    refuse_secrets(recipe.model_dump(mode="json"))
    join()
    if until in TRAINS:  # before the teacher's pass
        recipe.check_ranks(world_size())
        check_sharding(recipe, launched_fsdp())
    folder = recipe.output / recipe.name
    share = launched_share() if until == "embed" else Share()
    if share.world > 1 and world_size() == 1:  # one of several that know nothing of each other: a folder each
        folder = folder / f"share-{share.rank}"
    words = redacted(["eyas", *sys.argv[1:]])
    record = RunRecord(folder, words)
    try:
        with _stoppable(), contextlib.ExitStack() as holds:
            from_main(lambda: holds.enter_context(hold(folder)))
            log = holds.enter_context(rank_log(folder / "logs", rank(), shlex.join(words), EXPECTED))

            def on_work(step: str) -> None:
                log.begin()
                record.begin(step)

            if rank() > 0:
                log.begin()
            work = pipeline(recipe, Console(), resume=resume, queries=queries, on_work=on_work)
            with _recorded(record, work) if rank() == 0 else contextlib.nullcontext():
                work.run(until)
            code = TASK_FAILED if rank() == 0 and until in ("evaluate", "report") and _task_failed(folder) else 0
            leave()
    except Preempted as stop:
        main = rank() == 0
        leave()  # all ranks stop together, after the checkpoint
        return _stopped(stop, main)
    except Stopped as stop:
        return _stopped(stop, rank() == 0)
    except MainFailed:
        time.sleep(GRACE)
        return 1
    return code


def _task_failed(folder: Path) -> bool:
    """Whether the scorecard of a run, where it has one, lacks a task that could not be evaluated."""
    card = folder / "scorecard.json"
    return card.is_file() and bool(read_json(card)["failed"])


@contextlib.contextmanager
def _recorded(record: RunRecord, pipeline: Pipeline) -> Iterator[None]:
    """Say in the run folder how the run ended."""
    try:
        yield
    except (Preempted, Stopped, KeyboardInterrupt) as stop:
        record.end("stopped", str(stop) or "interrupted")
        raise
    except (ValueError, OSError, ModuleNotFoundError) as error:
        record.end("refused", str(error))
        raise
    except BaseException as error:
        record.end("failed", f"{type(error).__name__}: {error}")
        raise
    record.end("done", made_from=pipeline.fingerprints())


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Signals (`train.signals`) raise `Stopped`, but for Ctrl-C; a training has its own way to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise Stopped(f"asked to stop ({name}): finished steps are kept; run it again to go on")

    before = {number: signal.signal(number, stop) for number in stopping() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(stop: Exception, said: bool) -> int:
    if said:
        Console(stderr=True).print(str(stop), style="yellow", soft_wrap=True)
    return STOPPED
