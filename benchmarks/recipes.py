"""What the three benchmarks of recipes share: runs of the product in processes of their own, at equal wall-clock time.

A run is `eyas run` of a recipe in `configs/experiments`. A short run tells the pace of the machine; from it follows how
many steps fill the minutes. Everything lies in one folder: a benchmark that was killed goes on where it was, since
finished runs are read from their scorecards, the others resume from their checkpoints, and the pace is kept.
"""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field
from rich.console import Console

from benchmarks.common import Options, say
from benchmarks.eval_sets import data_folder
from benchmarks.outcomes import outcome, ran
from embedding.config import Config, load_config
from embedding.files import fingerprint, read_json, read_log, sha256_file, write_json
from launch.pipeline import Pipeline
from train.plan import plan_stages
from train.recipe import Recipe

ROOT = Path(__file__).parents[1]
PRODUCT = ("embedding", "data_prep", "eval", "train", "launch")
SAMPLED_STEPS = 256
"""Batches whose tokens are counted to know those of a run."""
SMOKE_STEPS = 3
SMOKE = (
    "data.sources=[{kind: parquet, path: $EYAS_DATA/pairs/snli_dev_test.parquet, query: query, positive: positive,"
    " negative: negative, limit: 300}]",
    "data.filters={}",
    "suite.tasks=[sts/stsb_en-dev, classification/snips]",
    "suite.max_rows=60",
    "stages.0.batch_size=8",
    "stages.0.max_tokens=32",
    "teacher.max_tokens=32",
    "tracking.log_every=1",
    "compute.token_budget=1024",
)
"""A recipe so small that a test runs it; what it scores means nothing."""


class Cut(Config):
    """What a first look leaves out."""

    text: int = Field(ge=1)
    rows: int | None = None


class RetentionProtocol(Config):
    """`benchmarks.retention`."""

    minutes: float
    layers: list[int]
    cut: Cut | None = None


class DecoderProtocol(Config):
    """`benchmarks.decoder`."""

    minutes: float
    cut: Cut | None = None


class VersusProtocol(Config):
    """`benchmarks.versus_st`."""

    minutes: float
    cut: Cut | None = None
    starts: list[Literal["copied", "folded"]]
    shares: list[float]
    search_minutes: float
    learning_rates: list[float]
    batch_sizes: list[int]


class Protocol(Config):
    """What is fixed before the first run; `configs/experiments/protocol.yaml` and `quick.yaml` explain the values."""

    seeds: list[int] = Field(min_length=1)
    pace_steps: int
    retention: RetentionProtocol
    decoder: DecoderProtocol
    versus_st: VersusProtocol


def protocol(full: bool) -> Protocol:
    """The protocol as committed, or the first look."""
    return load_config(Protocol, f"experiments/{'protocol' if full else 'quick'}")


def recipe_options(options: Options, *, add: bool = False) -> None:
    """Add `--full`, `--minutes`, `--seeds`, `--work` and `--smoke`; `planned` reads them. `add`: `--add` too."""
    options.add_argument(
        "--full", action="store_true", help="configs/experiments/protocol.yaml: hours (default: quick.yaml)"
    )
    options.add_argument("--minutes", type=float, help="of each run (default: as planned there)")
    options.add_argument("--seeds", type=int, nargs="+", help="default: as planned there")
    options.add_argument("--work", type=Path, default=Path("runs/experiments"), help="runs, caches and logs")
    options.add_argument("--smoke", action="store_true", help=f"{SMOKE_STEPS} steps, one small source, one seed")
    if add:
        options.add_argument("--add", action="store_true", help="to the saved result: keep its runs of other seeds")


def planned(given: Namespace, benchmark: Literal["retention", "decoder", "versus_st"]) -> Protocol:
    """The protocol that the options ask for; fills in `given.minutes` and `given.seeds`."""
    fixed = protocol(given.full)
    given.minutes = given.minutes or getattr(fixed, benchmark).minutes
    given.seeds = (given.seeds or fixed.seeds)[: 1 if given.smoke else None]
    return fixed


@dataclass(frozen=True)
class Pace:
    """How fast a recipe trains on this machine."""

    seconds_per_token: float
    tokens_per_step: float
    """Mean over the run's own batches."""
    overhead: float
    """Seconds of the training step besides its steps: building the student, measuring, a start in closed form."""
    vector_seconds: float | None
    """Of the teacher's pass over all texts; None: its vectors were there before."""
    token_seconds: float
    """Of turning all texts into the student's tokens, which is done once, before the training."""

    def teacher_seconds(self) -> float:
        """Of the teacher's pass.

        Raises:
            RuntimeError: nobody took the time.
        """
        if self.vector_seconds is None:
            raise RuntimeError(
                "the cache held the teacher's vectors before, so nobody knows how long they take; remove it"
            )
        return self.vector_seconds

    def after(self, run: Path) -> "Pace":
        """The same, where a longer run took more besides its steps."""
        return replace(self, overhead=max(self.overhead, overhead(run)))

    def steps(self, seconds: float) -> int:
        """The steps that fill so many seconds of training.

        Raises:
            ValueError: not even one does.
        """
        steps = int((seconds - self.overhead) / (self.seconds_per_token * self.tokens_per_step))
        if steps < 1:
            raise ValueError(
                f"{seconds:.0f} s are left for training, which begins after {self.overhead:.0f} s; give more --minutes"
            )
        return steps


@dataclass(frozen=True)
class Experiment:
    """A recipe with changes, its runs and its cache in one folder."""

    recipe: str
    work: Path
    settings: tuple[str, ...] = ()
    smoke: bool = False

    @classmethod
    def of(cls, recipe: str, given: Namespace, cut: Cut | None, folder: str = "") -> "Experiment":
        """The experiment in a folder of its own below `--work`, called as the recipe is if `folder` does not say: the
        time for vectors is then the time for all of them. Other code of the product has another: nothing that it made
        is taken for what this one makes.

        Raises:
            SystemExit: EYAS_DATA names no folder.
        """
        data_folder()
        name, size = f"experiments/{recipe}", "-smoke" if given.smoke else "" if given.full else "-quick"
        work = given.work / f"{folder or recipe}{size}" / product()
        settings = SMOKE if given.smoke else _settings(load_config(Recipe, name), cut) if cut else ()
        return cls(name, work.resolve(), settings, given.smoke)

    def with_settings(self, *settings: str) -> "Experiment":
        """The same with further changes."""
        return Experiment(self.recipe, self.work, (*self.settings, *settings), self.smoke)

    def overrides(self, name: str, settings: Sequence[str] = ()) -> list[str]:
        """What `eyas run` is given after the recipe."""
        places = [f"output={self.work}", f"cache={self.work / 'cache'}", f"suite.folder={data_folder().resolve()}"]
        return [f"name={name}", *places, *self.settings, *settings]

    def command(self, command: str, name: str, *settings: str) -> Path:
        """`eyas COMMAND RECIPE` in a process of its own, its output in NAME.log; returns the run's folder.

        Raises:
            RuntimeError: it failed.
        """
        self.process(["launch", command, self.recipe, *self.overrides(name, settings)], name)
        return self.work / name

    def process(self, words: Sequence[str], name: str) -> None:
        """`python -m WORDS` in a process of its own, from the root of the checkout, its output appended to NAME.log.

        Raises:
            RuntimeError: it failed.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        log = self.work / f"{name}.log"
        with log.open("a", encoding="utf-8") as out:
            done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, stdout=out, stderr=out, check=False)
        if done.returncode:
            end = log.read_text(encoding="utf-8", errors="replace")[-2_000:]
            raise RuntimeError(f"{' '.join(words[:3])} ({name}) failed with exit code {done.returncode}:\n{end}")

    def prepared(self, steps: int) -> Path:
        """The folder of the prepared data, once the pace of a run of so many steps is known."""
        record = self.work / f"pace-{self._pace_file(steps).stem}" / "steps" / "prepare.json"
        return Path(read_json(record)["result"]["outputs"][0])

    def _pace_file(self, steps: int) -> Path:
        recipe = load_config(Recipe, self.recipe, self.settings).model_dump(mode="json")
        return self.work / "paces" / f"{fingerprint([recipe, steps])}.json"

    def pace(self, steps: int) -> Pace:
        """The pace of a run of so many steps; kept, so that a benchmark that goes on plans the same steps."""
        path = self._pace_file(steps)
        if not path.is_file():
            name = f"pace-{path.stem}"
            steps = 2 * SMOKE_STEPS if self.smoke else steps
            # From its first step, also after a kill: timings.json holds the seconds of the last process alone.
            run = self.command("train", name, f"stages.0.steps={steps}", "--restart")
            write_json(path, self._measured(run, name, steps).__dict__)
        return Pace(**read_json(path))

    def _measured(self, run: Path, name: str, steps: int) -> Pace:
        whole = read_json(run / "timings.json")
        vectors = read_json(run / "steps" / "embed.json")["result"]["vectors"]
        share = vectors["computed"] / (vectors["computed"] + vectors["reused"])  # below 1 after a kill
        vector_seconds = whole["embed"] / share if share else None
        recipe = load_config(Recipe, self.recipe, [*self.overrides(name), f"stages.0.steps={steps}"])
        pipeline = Pipeline(recipe, Console(quiet=True))
        pipeline.run(until="tokenize")
        sampler = plan_stages(recipe, pipeline.at.inputs)[0].sampler
        tokens = fmean(float(sampler.batch(step).length_N.sum()) for step in range(SAMPLED_STEPS))
        return Pace(per_token(later(steps_logged(run))), tokens, overhead(run), vector_seconds, whole["tokenize"])

    def made_from(self, minutes: float) -> str:
        """What a run's figures depend on besides the machine, the product and the seed: the recipe, and for how long.
        Settings at their defaults are not in it, so a setting that the product gains leaves it as it is."""
        recipe = load_config(Recipe, self.recipe, self.settings)
        return fingerprint([recipe.model_dump(mode="json", exclude_defaults=True), minutes])

    def finished(self, name: str, seed: int, steps: int, pace: Pace, minutes: float) -> dict[str, Any]:
        """What the run gave (`benchmarks.outcomes`); it is done where it is not finished."""
        run = self.command("run", name, f"seed={seed}", f"stages.0.steps={steps}")
        card: dict[str, Any] = read_json(run / "scorecard.json")
        if card["failed"]:
            raise RuntimeError(f"{run}: tasks of the suite failed: {card['failed']}")
        path, of, log = run / "outcome.json", sha256_file(run / "scorecard.json"), sha256_file(run / "metrics.jsonl")
        before = read_json(path) if path.is_file() else {}
        if before.get("scorecard") != of:
            seconds = sum(line["seconds"] for line in steps_logged(run))
            facts = {"seed": seed, "steps": steps, "train_seconds": seconds, "start_seconds": max(0.0, overhead(run))}
            made_from = {"made_from": self.made_from(minutes), "pace": pace.__dict__, "scorecard": of, "log": log}
            here = before["ran"] if before.get("log") == log else ran()  # scored again, trained where it was
            write_json(path, {**outcome(card), **facts, **made_from, "ran": here})
        found: dict[str, Any] = read_json(path)
        say(f"{name}: {steps} steps in {found['train_seconds']:.0f} s, kept {found['retention']:.4f}")
        return found


def product() -> str:
    """A digest of the product's code: what trains, and what measures."""
    files = sorted(path for name in PRODUCT for path in (ROOT / name).glob("*.py"))
    return fingerprint({str(path.relative_to(ROOT)): sha256_file(path) for path in files})[:8]


def _settings(recipe: Recipe, cut: Cut) -> tuple[str, ...]:
    """Settings that leave each source its share of its `limit`, and each task so many rows and documents."""
    given = [(at, source.limit) for at, source in enumerate(recipe.data.sources) if source.limit]
    sources = [f"data.sources.{at}.limit={max(1, limit // cut.text)}" for at, limit in given]
    rows = () if cut.rows is None else (f"suite.max_rows={cut.rows}", f"suite.max_documents={cut.rows}")
    return (*sources, *rows)


def overhead(run: Path) -> float:
    """Seconds that a training took besides its steps."""
    return float(read_json(run / "timings.json")["train"]) - sum(line["seconds"] for line in steps_logged(run))


def steps_logged(run: Path) -> list[dict[str, float]]:
    """What the log says of each stretch of steps: its `seconds` and `tokens`, whatever process did it."""
    found, before = [], 0
    for line in read_log(run / "metrics.jsonl"):
        if "steps_per_s" in line:
            seconds = (line["step"] - before) / line["steps_per_s"]
            found.append({"seconds": seconds, "tokens": line["tokens_per_s"] * seconds})
            before = line["step"]
    return found


def later(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """The lines but the first, whose steps also fetch memory; the only one where there is no other."""
    return lines[1:] or lines


def per_token(lines: Sequence[Mapping[str, float]]) -> float:
    """Seconds a token."""
    return sum(line["seconds"] for line in lines) / sum(line["tokens"] for line in lines)
