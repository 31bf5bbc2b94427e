"""Kill a run anywhere, start it again, and it ends bit for bit where the undisturbed run ends.

    python -m benchmarks.resume [--kills 20] [--seed 0] [--smoke]

A real run (`train.loop`, two stages, match and InfoNCE, attention dropout, a checkpoint every 5 steps of 80) goes
through once undisturbed. The same run in another folder is then killed (SIGKILL) again and again at random moments and
resumed each time: while it starts, in the middle of steps, and inside the write of a checkpoint, which is seen from
outside by the folder that a write leaves aside until it is whole. Compared are the SHA-256 of the weights and optimizer
state in the last two checkpoints (the very last, at the end of a stage, has weights alone), and every logged loss,
gradient norm and learning rate. The token budget is given, as it is in a checkpoint: two runs that measure it for
themselves may choose differently.

Prints one JSON line last; keys `kills`, `identical`.
"""

import random
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from benchmarks.common import arguments, report, say
from benchmarks.pairs import TEACHER, load_inputs
from benchmarks.processes import start
from benchmarks.ranks import small_recipe, write_small_inputs
from embedding.embedder import Embedder
from embedding.files import read_log, read_manifest
from train.checkpoint import checkpoints
from train.distributed import leave
from train.loop import Preempted, train
from train.recipe import Recipe, TrackingConfig
from train.student import build_student

STEPS = 80
EVERY = 5
PREEMPTED = 75
"""Exit code of a run that was asked to stop: EX_TEMPFAIL of sysexits.h, `try again later`."""
Moment = Literal["start", "step", "checkpoint"]
WEIGHTS = {"start": 1, "step": 3, "checkpoint": 2}
"""How often each moment is chosen, beside the others."""
DELAY = {"start": 1.5, "step": 0.1, "checkpoint": 0.01}
"""Seconds that may pass between the moment and the kill."""
SAME = ("step", "stage", "loss", "loss/0_match", "loss/1_info_nce", "grad_norm", "lr")


def recipe(steps: int = STEPS) -> Recipe:
    """The small run of `benchmarks.ranks` in two stages."""
    small = small_recipe()
    stages = [
        small.stages[0].model_copy(update={"name": name, "steps": count, "learning_rate": rate, "clip": 1.0})
        for name, count, rate in (("first", steps // 2, 1e-3), ("second", steps - steps // 2, 5e-4))
    ]
    tracking = TrackingConfig(log_every=1, checkpoint_every=EVERY)
    return small.model_copy(update={"stages": stages, "tracking": tracking})


def run_to_end(folder: str, run: str, steps: int) -> None:
    """What the killed process does: train to the end from wherever the checkpoints allow."""
    settings = recipe(steps)
    student = build_student(settings.student, Embedder.from_pretrained(TEACHER), settings.seed)
    for module in student.modules():
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.1)  # noqa: B010  # so that random numbers must be replayed too
    try:
        train(settings, student, load_inputs(Path(folder)), Path(run))
    except Preempted as stop:
        say(str(stop))
        leave()
        sys.exit(PREEMPTED)


def kill_and_resume(folder: Path, run: Path, *, kills: int, steps: int, chance: random.Random) -> dict[str, Any]:
    """Kill the run `kills` times, then let it end; how often each moment was hit, and how many steps were redone."""
    hits: dict[str, int] = dict.fromkeys(get_args(Moment), 0)
    redone = 0
    for target in sorted(chance.sample(range(1, steps - EVERY), kills)):
        at = max(target, newest(run) + 1)
        moment: Moment = chance.choices(get_args(Moment), [WEIGHTS[m] for m in get_args(Moment)])[0]
        before = set(halves(run))
        process = start(run_to_end, str(folder), str(run), steps)
        _wait(process, moment, run, at, before)
        time.sleep(chance.uniform(0, DELAY[moment]))
        process.kill()
        process.join()
        left = sorted(set(halves(run)) - before)
        if left:
            moment = "checkpoint"
        elif moment == "checkpoint":
            moment = "step"  # the write was over before the kill came
        hits[moment] += 1
        reached = logged(run)[-1]["step"] if logged(run) else 0
        redone += max(0, reached - newest(run))
        say(f"killed at step {reached}, {moment} {' '.join(left)}: whole up to step {newest(run)}")
    process = start(run_to_end, str(folder), str(run), steps)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the last run failed with exit code {process.exitcode}")
    return {"moments": hits, "steps_redone": redone}


def _wait(process: BaseProcess, moment: Moment, run: Path, step: int, before: set[str]) -> None:
    """Until the process reaches the moment, but for a random delay."""
    changed = _stamp(run)
    while moment != "start":
        lines = logged(run) if _stamp(run) != changed else []
        if lines and lines[-1]["step"] >= step and (moment == "step" or set(halves(run)) - before):
            return
        if not process.is_alive():
            raise RuntimeError(f"the run ended by itself before step {step}, exit code {process.exitcode}")
        time.sleep(0.0005)


def _stamp(run: Path) -> int:
    """When the log was last written; lines of before a resume do not count."""
    path = run / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.is_file() else 0


def halves(run: Path) -> list[str]:
    """The folders of checkpoints that are being written, or were when the run was killed."""
    return sorted(path.name for path in (run / "checkpoints").glob(".step-*"))


def newest(run: Path) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    found = checkpoints(run / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else 0


def logged(run: Path) -> list[dict[str, Any]]:
    """The whole lines of the log."""
    path = run / "metrics.jsonl"
    return read_log(path) if path.is_file() else []


def outcome(run: Path) -> dict[str, Any]:
    """What must be identical: hashes of the tensors of the checkpoints kept, and the course of the training."""
    sums = {}
    for path in checkpoints(run / "checkpoints"):
        manifest = read_manifest(path)
        assert manifest is not None, "a whole checkpoint has a manifest"
        sums[path.name] = manifest["sha256"]
    return {"sha256": sums, "course": [{name: line[name] for name in SAME} for line in logged(run)]}


def measure(folder: Path, *, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """One undisturbed run, one that is killed `kills` times, compared."""
    write_small_inputs(folder)
    begun = time.perf_counter()
    process = start(run_to_end, str(folder), str(folder / "whole"), steps)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the undisturbed run failed with exit code {process.exitcode}")
    say(f"undisturbed: {steps} steps in {time.perf_counter() - begun:.1f} s")
    chance = random.Random(seed)
    killed_at = kill_and_resume(folder, folder / "killed", kills=kills, steps=steps, chance=chance)
    whole, killed = outcome(folder / "whole"), outcome(folder / "killed")
    return {
        "kills": kills,
        "identical": whole == killed,
        **killed_at,
        "steps": steps,
        "sha256": killed["sha256"],
        "seconds": time.perf_counter() - begun,
    }


def main() -> None:
    """Run it all."""
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--smoke", action="store_true", help="2 kills in 20 steps")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        if options.smoke:
            result = measure(Path(folder), kills=2, steps=20, seed=options.seed)
        else:
            result = measure(Path(folder), kills=options.kills, steps=STEPS, seed=options.seed)
    report({"benchmark": "resume", **result}, save=options.save)


if __name__ == "__main__":
    main()
