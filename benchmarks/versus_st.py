"""The same student, data and minutes for the product and for sentence-transformers' own distillation.

    python -m benchmarks.versus_st [--full] [--student pruned] [--layers 2] [--minutes 5] [--seeds 0] [--no-folded]
                                   [--add] [--work FOLDER] [--smoke]

The student is the last two of the six layers of all-MiniLM-L6-v2, or as many as `--layers` says (its result is saved
as versus_st_layers_N); or, with `--student decoder`, the causal decoder of `benchmarks.decoder` (versus_st_decoder).

For the former the product trains `configs/experiments/versus.yaml`, which begins by folding the layers below
into the token embeddings; the other side trains the same layers, copied, on the very same texts with
`EmbedDistillLoss` and precomputed vectors, through its Trainer (`benchmarks.st_distill`). To tell what the start gives
from what the training gives, the other side trains the folded student too, at the setting found for the copied one, the
seconds of the fold counted on it as well. A decoder is built from nothing by `configs/experiments/decoder.yaml`: there
both sides begin with the product's closed form (`train.static_start`), fitted to each side's own vectors, and there is
no other start.

The minutes hold each side's own pass of the teacher and its training; the steps follow from each side's own pace,
measured in turns. Learning rate and batch size are searched on both sides over the same grid, with the same minutes
each, by the cosine to the teacher on held-out text; what was found is printed. While a side is best at the largest or
smallest rate tried, the next one is tried on both, and so, once, with the batch size; the other side's best is tried
with the product's rate for the token embeddings too, where it begins with the closed form. The scores are those of one
suite: English tasks of six kinds (EYAS_DATA). The default is a first look: 5 minutes, a tenth of the text, a small
grid, one seed, and without the last of the three trainings above and the teacher's own score. `--full`: 30 minutes, all
text, three seeds: seven hours, or a seed at a time: `--seeds 1 --add` searches again and joins what it finds to the
runs of the saved result (`benchmarks.outcomes`).

Prints one JSON line last: `points_ahead`, Mean(TaskType) x 100 of the product minus the peer's, mean over the seeds,
with the 95 % interval of chance in the items and the seeds (`eval.study`; with one seed, in the items alone);
`points_ahead_same_start`, the same with the product's own start given to the peer (the only one of a decoder);
`time_to_same`, the smallest share of the minutes after which a product's run is as good as the peer's whole one, from
the first of its starts.
"""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from benchmarks.common import arguments, report, saved_path, say
from benchmarks.eval_sets import data_folder
from benchmarks.outcomes import ran, saved_runs
from benchmarks.pairs import TEACHER
from benchmarks.recipes import (
    SMOKE_STEPS,
    Experiment,
    Protocol,
    later,
    per_token,
    planned,
    recipe_options,
    steps_logged,
)
from benchmarks.versus_peer import Peer, Setting
from benchmarks.versus_seeds import of_seed, together
from embedding.config import load_config
from embedding.embedder import Embedder
from embedding.files import fingerprint, read_json, sha256_file, write_text
from embedding.layout import resolve_model
from eval.compare import as_card
from eval.scorecard import Scorecard
from eval.study import Trial
from eval.suite import SuiteConfig
from eval.texts import suite_texts
from launch.scoring import suite_facts
from train.recipe import Recipe

SEARCH_TEXTS = 1_000
"""Held-out texts that a setting is chosen by."""
BEYOND = {"learning_rate": 3.0, "batch_size": 2.0}
"""Factor from one to the next, outside the grid."""
LAYERS = 2
"""Of the student that the protocol fixed before the first run."""
RECIPES = {"pruned": "versus", "decoder": "decoder"}
"""Of each student, in `configs/experiments`."""


def saved_as(name: str, given: Namespace) -> str:
    """What the results and the folder of a student are called."""
    if given.student != "pruned":
        return f"{name}_{given.student}"
    return name if given.layers == LAYERS else f"{name}_layers_{given.layers}"


class HeldOut:
    """Texts that neither side trained on, with the teacher's vectors: what a setting is chosen by. Their ranking would
    not do: after seconds of training no setting differs by it from another, or from the untrained student."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        texts = list(dict.fromkeys(text for _, text in suite_texts(SuiteConfig(), folder)))
        self._texts, self._max_tokens = texts[:: max(1, len(texts) // SEARCH_TEXTS)], max_tokens
        self._vectors_ND = self._encode(TEACHER)

    def _encode(self, model: str | Path) -> np.ndarray:
        return Embedder.from_pretrained(model, max_tokens=self._max_tokens).encode(self._texts)

    def cosine(self, model: Path) -> float:
        """The mean cosine of a model's vectors to the teacher's."""
        return float((self._encode(model) * self._vectors_ND).sum(axis=1).mean())


def best(found: Mapping[Setting, float]) -> Setting:
    """The setting with the best score."""
    return max(found, key=lambda setting: found[setting])


def beyond(tried: Collection[float], chosen: Collection[float], factor: float) -> float | None:
    """What to try next: a step outside what was tried, where the best of a side lies at its edge."""
    if max(tried) in chosen:
        return max(tried) * factor
    return min(tried) / factor if min(tried) in chosen else None


def further(ours: Mapping[Setting, float], theirs: Mapping[Setting, float], planned: Collection[int]) -> list[Setting]:
    """The settings to try next on both sides: outside the rates with every batch size, then outside the sizes `planned`
    with the best rate of each side, and that once: a search of seconds favours small batches, however small."""
    chosen = [best(ours), best(theirs)]
    rates, sizes = ({getattr(setting, name) for setting in ours} for name in BEYOND)
    if rate := beyond(rates, {setting.learning_rate for setting in chosen}, BEYOND["learning_rate"]):
        return [Setting(rate, size) for size in sorted(sizes)]
    size = beyond(sizes, {setting.batch_size for setting in chosen}, BEYOND["batch_size"])
    if size and sizes <= set(planned):
        return [Setting(rate, int(size)) for rate in sorted({setting.learning_rate for setting in chosen})]
    return []


class Versus:
    """Both sides of one comparison."""

    def __init__(self, given: Namespace, fixed: Protocol) -> None:
        self.given, self.plan, self.smoke = given, fixed.versus_st, given.smoke
        self._pace_steps = fixed.pace_steps
        # Texts, vectors and times of its own: nothing is shared with another student or benchmark.
        experiment = Experiment.of(RECIPES[given.student], given, self.plan.cut, saved_as("versus", given))
        keep = (f"student.start.keep={given.layers}",) if given.student == "pruned" else ()
        self.experiment = experiment.with_settings(*keep)
        grid = [Setting(rate, size) for size in self.plan.batch_sizes for rate in self.plan.learning_rates]
        self.grid = [setting._replace(batch_size=8) for setting in grid[:2]] if given.smoke else grid
        sizes = list(dict.fromkeys(setting.batch_size for setting in self.grid))
        self.paces = {size: self._sized(size).pace(fixed.pace_steps) for size in sizes}
        first = self.paces[sizes[0]]
        self.vector_seconds = first.teacher_seconds() + first.token_seconds  # the peer's Trainer tokenizes as it trains
        self.recipe = load_config(Recipe, self.experiment.recipe, self.experiment.overrides("any"))
        self.data = self._sized(sizes[0]).prepared(fixed.pace_steps)
        self.peer = Peer(self.experiment, self.recipe, self.data)
        self.peer_vectors = self.peer.vectors()
        self.starts = self._starts()
        self.suite_facts = suite_facts(self.recipe.suite, data_folder())
        self.peer_paces = {size: self._peer_pace(size) for size in sizes}

    def made_from(self) -> str:
        """What a seed's figures depend on besides the machine, the product and the seed."""
        recipe = self.experiment.made_from(self.given.minutes)
        return fingerprint([recipe, list(self.starts), self.plan.model_dump()])

    def _starts(self) -> Sequence[str]:
        if self.given.student == "decoder":
            return ["static"]
        return self.plan.starts[: 1 if self.given.no_folded else None]

    def _sized(self, size: int) -> Experiment:
        return self.experiment.with_settings(f"stages.0.batch_size={size}")

    def _peer_pace(self, size: int) -> dict[str, Any]:
        steps = SMOKE_STEPS if self.smoke else self._pace_steps
        return self.peer.train(f"pace-{size}", Setting(1e-4, size), steps, 0, self.starts[0])

    def our_steps(self, setting: Setting, seconds: float) -> int:
        """The product's steps that fill so many seconds."""
        return SMOKE_STEPS if self.smoke else self.paces[setting.batch_size].steps(seconds)

    def their_steps(self, setting: Setting, seconds: float) -> int:
        """The peer's.

        Raises:
            ValueError: not even one does.
        """
        pace = self.peer_paces[setting.batch_size]
        steps = int((seconds - pace["overhead"]) / pace["seconds_per_step"])
        if steps < 1 and not self.smoke:
            raise ValueError(f"{seconds:.0f} s are left for the peer's training; give more --minutes")
        return SMOKE_STEPS if self.smoke else steps

    def search(self) -> tuple[dict[Setting, float], dict[Setting, float]]:
        """Every setting on both sides for the same minutes: the cosine to the teacher on held-out text.

        The sides take turns here, so the pace of both is taken again from these runs: what planned them was measured
        many minutes apart, and a machine that others use does not keep its speed that long.
        """
        heldout = HeldOut(self.data / "heldout", self.recipe.stages[0].max_tokens)
        seconds = 60 * self.plan.search_minutes
        ours, theirs = {}, {}
        our_lines: defaultdict[int, list[dict[str, float]]] = defaultdict(list)
        their_steps: defaultdict[int, list[float]] = defaultdict(list)

        def try_peer(at: int, setting: Setting) -> None:
            pace = self.peer_paces[setting.batch_size]
            steps = self.their_steps(setting, seconds + pace["overhead"])
            trained = self.peer.train(f"search-{at}", setting, steps, 0, self.starts[0])
            theirs[setting] = heldout.cosine(self.peer.folder / f"search-{at}" / "model")
            their_steps[setting.batch_size].append(trained["seconds_per_step"])

        settings = list(self.grid)
        for at, setting in enumerate(settings):  # which grows
            size = setting.batch_size
            if size not in self.paces:
                self.paces[size] = self._sized(size).pace(self._pace_steps)
                self.peer_paces[size] = self._peer_pace(size)
            steps = f"stages.0.steps={self.our_steps(setting, seconds + self.paces[size].overhead)}"
            run = self.experiment.command("train", f"search-{at}", steps, *setting.words())
            ours[setting] = heldout.cosine(run / "model")
            our_lines[size] += later(steps_logged(run))
            try_peer(at, setting)
            say(f"{setting}: {ours[setting]:.4f}, the peer {theirs[setting]:.4f}")
            if at + 1 == len(settings) and not self.smoke:
                settings += further(ours, theirs, self.plan.batch_sizes)
        if self.starts[0] == "static":  # its token vectors have elements about 1: the product has a rate of their own
            rate = self.recipe.stages[0].embedding_learning_rate
            setting = best(theirs)._replace(embedding_rate=rate)
            try_peer(len(settings), setting)
            say(f"{setting}: the peer {theirs[setting]:.4f}")
        for size in self.paces:
            self.paces[size] = replace(self.paces[size], seconds_per_token=per_token(our_lines[size]))
            self.peer_paces[size] |= {"seconds_per_step": fmean(their_steps[size])}
        return ours, theirs

    def scored(self, name: str, model: Path) -> Scorecard:
        """What `eyas eval` finds of a model; kept for just these weights, this suite and what its folder holds, unless
        a task failed.

        Raises:
            RuntimeError: it failed, or a task did.
        """
        suite, folder = self.recipe.suite.model_dump(mode="json"), self.experiment.work / "scores"
        key = fingerprint([sha256_file(model / "model.safetensors"), self.suite_facts])
        path, out = folder / f"{name}-{key}.yaml", folder / f"{name}-{key}.json"
        if not out.is_file():
            folder.mkdir(exist_ok=True)
            write_text(path, yaml.safe_dump(suite))
            new = folder / f"{name}.json"  # a failed task ends the command with a code of its own, and leaves this
            self.experiment.process(
                ["launch", "eval", str(model), "--suite", str(path), "--out", str(new)], f"eval-{name}"
            )
            new.replace(out)
        return as_card(read_json(out))

    def ours(self, setting: Setting, seed: int) -> dict[str, Trial]:
        """The product after each share of the minutes; 1 is the whole. A share in which the teacher's pass leaves no
        time to train is left out."""
        found: dict[str, Trial] = {}
        for share in (*sorted(self.plan.shares), 1.0):
            pace = self.paces[setting.batch_size]
            left = share * 60 * self.given.minutes - self.vector_seconds
            if left > pace.overhead + 1 or share == 1.0 or self.smoke:
                name, steps = f"ours-{share:g}-s{seed}", self.our_steps(setting, left)
                words = (f"seed={seed}", f"stages.0.steps={steps}", *setting.words())
                run = self.experiment.command("train", name, *words)
                # A fold reads among the texts of the steps to come, more of them than in the short run that was timed.
                pace = self.paces[setting.batch_size] = pace.after(run)
                seconds = self.vector_seconds + pace.overhead + sum(line["seconds"] for line in steps_logged(run))
                found[f"{share:g}"] = Trial(seed, self.scored(name, run / "model"), seconds)
        return found

    def theirs(self, setting: Setting, seed: int) -> dict[str, Trial]:
        """The peer from each start."""
        found: dict[str, Trial] = {}
        for start in self.starts:
            before = self.peer_vectors["seconds"] + float(read_json(self.peer.start(start) / "seconds.json"))
            steps = self.their_steps(setting, 60 * self.given.minutes - before)
            name = f"{start}-s{seed}"
            trained = self.peer.train(name, setting, steps, seed, start)
            card = self.scored(f"peer-{name}", self.peer.folder / name / "model")
            found[start] = Trial(seed, card, before + trained["seconds"])
        return found


def main() -> None:
    """Run it all."""
    options = arguments(__doc__)
    recipe_options(options, add=True)
    options.add_argument(
        "--no-folded", action="store_true", help="without the peer's training from the product's start"
    )
    options.add_argument("--student", choices=RECIPES, default="pruned", help="a part of the teacher, or from nothing")
    options.add_argument("--layers", type=int, choices=range(1, 6), default=LAYERS, help="of the pruned student")
    given = options.parse_args()
    fixed = planned(given, "versus_st")
    both = Versus(given, fixed)
    say(f"vectors: {both.vector_seconds:.0f} s, the peer's {both.peer_vectors['seconds']:.0f} s")
    ours, theirs = both.search()
    our_setting, their_setting = best(ours), best(theirs)
    say(f"chosen: {our_setting}, the peer {their_setting}")
    around = {"untrained": both.scored("untrained", both.peer.start(both.starts[0]))}
    if given.full:
        around["teacher"] = both.scored("teacher", resolve_model(TEACHER))
    found = {
        "made_from": both.made_from(),
        "search": {side: {str(tuple(s)): v for s, v in of.items()} for side, of in (("ours", ours), ("peer", theirs))},
        "chosen": {"ours": our_setting._asdict(), "peer": their_setting._asdict()},
        "vector_seconds": {"ours": both.vector_seconds, "peer": both.peer_vectors},
        "pace": {
            "ours": both.paces[our_setting.batch_size].__dict__,
            "peer": both.peer_paces[their_setting.batch_size],
        },
        "ran": ran(),
    }
    runs, name = [], saved_as("versus_st", given)
    for seed in given.seeds:
        trials = both.theirs(their_setting, seed) | both.ours(our_setting, seed)
        runs.append({"seed": seed, **of_seed(trials, around), **found})
    if given.add:
        runs += saved_runs(saved_path(name, full=given.full), None, both.made_from(), besides=given.seeds)
    layers = {"layers": given.layers} if given.student == "pruned" else {}
    facts = {"benchmark": "versus_st", "full": given.full, "student": given.student, **layers, "minutes": given.minutes}
    report({**facts, **together(runs)}, save=given.save, name=name)


if __name__ == "__main__":
    main()
