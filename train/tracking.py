"""What a run says while it trains: metrics.jsonl, the terminal, and wandb when asked. The same names everywhere."""

import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from embedding.files import write_text
from train.recipe import Recipe
from train.step import TrainState, Work
from train.student import training_flops

METRICS = "metrics.jsonl"


class Tracker:
    """Collects one line of metrics every `log_every` steps. Only the main process writes."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        accelerator: Accelerator,
        *,
        steps: int,
        start: int,
        matrix_rate: float,
        done: Collection[str] = (),
    ) -> None:
        """
        Args:
            matrix_rate: FLOP/s of all ranks together at a large matrix product, for the utilisation.
            done: stages that are taken over; what was noted of them stays.
        """
        self._flops, self._matrix_rate = 0.0, matrix_rate
        self.steps = steps
        """Of the whole run."""
        self._every = recipe.tracking.log_every
        self._main = accelerator.is_main_process
        self._accelerator, self._tracked = accelerator, recipe.tracking.wandb and accelerator.is_main_process
        self._path = run / METRICS
        self._start, self._time, self._tokens, self._padded, self._since = start, time.perf_counter(), 0, 0, start
        self._console = Console(stderr=True, quiet=not self._main)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[stage]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("train", total=steps, completed=start, stage="", said="")
        if self._tracked:
            _start_wandb(recipe, run, accelerator)
        if self._main:
            self._forget_after(start, done)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        self._time = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._progress.stop()  # elsewhere it would print an empty line
        if self._tracked:
            # Not accelerator.end_training(): it also parts the ranks, which still have a model to export together.
            self._accelerator.get_tracker("wandb", unwrap=True).finish(exit_code=0 if error is None else 1)

    def say(self, text: str) -> None:
        """One line on the terminal."""
        self._console.print(text, highlight=False)

    def due(self, step: int) -> bool:
        """Whether a line is written after this step."""
        return step % self._every == 0 or step == self.steps

    def step(self, step: int, stage: str, metrics: dict[str, float], work: Work, state: TrainState) -> None:
        """Note a finished step; writes a line when it is due."""
        self._tokens += int(work.batch.length_N.sum())
        self._padded += state.padded_tokens(work)
        self._flops += training_flops(state.embedder, work.batch.length_N)
        self._progress.update(self._task, completed=step, stage=stage)
        if not self.due(step):
            return
        laps = state.clock.seconds()
        state.clock.start()
        seconds = time.perf_counter() - self._time
        line = {
            "step": step,
            "stage": stage,
            **metrics,
            "tokens_per_s": self._tokens / seconds,
            "steps_per_s": (step - self._since) / seconds,
            "padding": 1 - self._tokens / self._padded,
            "mfu": self._flops / seconds / self._matrix_rate,
            **{f"time/{name}": lap / max(sum(laps.values()), 1e-9) for name, lap in laps.items()},
        }
        self._write(line)
        said = f"loss {metrics['loss']:.4f}  {line['tokens_per_s']:,.0f} tokens/s"
        self._progress.update(self._task, said=said)
        if not self._console.is_terminal:
            self.say(f"{stage} {step}/{self.steps}  {said}")
        self._forget(step)

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """Note an evaluation; its time does not count as training."""
        if step or not self._start:  # that before the first step stands in the log where finished stages are taken over
            self._write({"step": step, **scores})
        mean = scores.get("eval/mean")
        if mean is not None:
            self.say(f"step {step}: MTEB-lite mean {mean:.4f}")
        self._forget(step)

    def _forget(self, step: int) -> None:
        self._since = step
        self._time, self._tokens, self._padded, self._flops = time.perf_counter(), 0, 0, 0.0

    def _write(self, line: dict[str, Any]) -> None:
        if not self._main:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._tracked:
            self._accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])

    def _forget_after(self, step: int, done: Collection[str]) -> None:
        """Drop lines of steps that will be done again, and a line that a kill cut short."""
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                break
            if (value["step"] <= step and step) or value.get("stage") in done:
                kept.append(line + "\n")
        write_text(self._path, "".join(kept))


def _start_wandb(recipe: Recipe, run: Path, accelerator: Accelerator) -> None:
    if not accelerator.log_with:  # Accelerate leaves out a tracker that is not there
        raise ValueError("tracking.wandb is true, but wandb is not installed: pip install 'eyas[wandb]'")
    run.mkdir(parents=True, exist_ok=True)
    settings = {
        "name": recipe.name,
        "dir": run.resolve(),  # its writer is one process for all runs of this one, in the folder where the first began
        # Said each time: wandb remembers the environment of its first run in a process.
        "mode": os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline"),
    }
    accelerator.init_trackers("eyas", recipe.model_dump(mode="json"), {"wandb": settings})
