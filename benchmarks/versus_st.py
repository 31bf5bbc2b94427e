"""The same student, data and minutes for the product and for sentence-transformers' own distillation.

    python -m benchmarks.versus_st [--full] [--minutes 5] [--seeds 0] [--work FOLDER] [--smoke] [--save]

The student is the last two of the six layers of all-MiniLM-L6-v2. The product trains `configs/experiments/versus.yaml`,
which begins by folding the layers below into the token embeddings; the other side trains the same layers, copied, on
the very same texts with `EmbedDistillLoss` and precomputed vectors, through its Trainer (`benchmarks.st_distill`). To
tell what the start gives from what the training gives, the other side trains the folded student too, at the setting
found for the copied one, the seconds of the fold counted on it as well.

The minutes hold each side's own pass of the teacher and its training; the steps follow from each side's own pace.
Learning rate and batch size are searched on both sides over the same grid, with the same minutes each, by the cosine to
the teacher on held-out text; what was found is printed. The scores are those of one suite: English tasks of six kinds
(EYAS_DATA). The default is a first look: 5 minutes, a tenth of the text, one seed. `--full`: 30 minutes, all text, a
larger grid, three seeds; that takes seven hours.

Prints one JSON line last: `points_ahead`, Mean(TaskType) x 100 of the product minus the peer's, mean over the seeds;
`points_ahead_same_start`, the same with the product's own start given to the peer;
`time_to_same`, the smallest share of the minutes after which a product's run is as good as the peer's whole one.
"""

import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import yaml

from benchmarks.common import arguments, report, say
from benchmarks.pairs import TEACHER
from benchmarks.recipes import SMOKE_STEPS, Experiment, Protocol, planned, recipe_options, spread
from benchmarks.st_distill import Settings
from data_prep.tables import Texts
from embedding.config import load_config
from embedding.embedder import Embedder
from embedding.files import fingerprint, new_folder, read_json, sha256_file, write_json, write_text
from embedding.layout import resolve_model
from eval.suite import SuiteConfig
from eval.texts import suite_texts
from train.fold import fold
from train.loop import FOLD_TEXTS
from train.recipe import Recipe
from train.student import build_student

SEARCH_TEXTS = 1_000
"""Held-out texts that a setting is chosen by."""


class Setting(NamedTuple):
    """What is searched."""

    learning_rate: float
    batch_size: int

    def words(self) -> tuple[str, ...]:
        """For `eyas run`."""
        return f"stages.0.learning_rate={self.learning_rate}", f"stages.0.batch_size={self.batch_size}"


class Peer:
    """Runs of sentence-transformers in processes of their own; what is finished is not done again."""

    def __init__(self, experiment: Experiment, recipe: Recipe, data: Path) -> None:
        self._experiment, self._recipe = experiment, recipe
        self.folder = experiment.work / "peer"
        self._texts = self.folder / "texts.json"
        if not self._texts.is_file():
            texts = Texts.load(data / "texts")
            write_json(self._texts, list(dict.fromkeys(texts.text(row) for row in range(len(texts)))))
        self._starts = self.folder / "starts"
        if not self._starts.is_dir():
            student = build_student(recipe.student, Embedder.from_pretrained(TEACHER), recipe.seed)
            with new_folder(self._starts) as folder:
                student.embedder.save_pretrained(folder / "copied")
                begin = time.perf_counter()
                texts = read_json(self._texts)
                texts = texts[:: max(1, len(texts) // FOLD_TEXTS)]
                fold(student.embedder, student.lower[0], student.embedder.tokenize(texts, [""] * len(texts)))
                student.embedder.save_pretrained(folder / "folded")
                write_json(folder / "seconds.json", {"copied": 0.0, "folded": time.perf_counter() - begin})
        self.start_seconds: dict[str, float] = read_json(self._starts / "seconds.json")

    def vectors(self) -> dict[str, Any]:
        """The seconds of the teacher's pass, and the batch size it took."""
        tokens = self._recipe.stages[0].max_tokens
        return self._result("vectors", "vectors", Settings(str(resolve_model(TEACHER)), str(self._texts), "", tokens))

    def train(self, name: str, setting: Setting, steps: int, seed: int, start: str = "copied") -> dict[str, Any]:
        """A training from the layers as `copied` or `folded`; its `seconds`, `seconds_per_step` and `overhead`."""
        stage = self._recipe.stages[0]
        settings = Settings(
            model=str(self._starts / start),
            texts=str(self._texts),
            out="",
            max_tokens=stage.max_tokens,
            vectors=str(self.folder / "vectors" / "vectors.npy"),
            steps=steps,
            learning_rate=setting.learning_rate,
            batch_size=setting.batch_size,
            warmup=stage.warmup,
            seed=seed,
            final_tokens=self._recipe.student.max_tokens,
        )
        return self._result(name, "train", settings)

    def _result(self, name: str, what: str, settings: Settings) -> dict[str, Any]:
        made_from = settings.__dict__ | {"out": str(self.folder / name)}
        out, path = self.folder / name, self.folder / f"{name}.json"
        if not (out / "result.json").is_file() or not path.is_file() or read_json(path) != made_from:
            (out / "result.json").unlink(missing_ok=True)
            write_json(path, made_from)
            self._experiment.process(["benchmarks.st_distill", what, str(path)], f"peer-{name}")
        return dict(read_json(out / "result.json"))


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


def score(experiment: Experiment, model: Path, suite: Path) -> float:
    """Mean(TaskType) of a model on a suite file, kept beside the model for just these weights."""
    weights = sha256_file(model / "model.safetensors")
    out = model.parent / f"scores-{fingerprint([weights, str(suite)])}.json"
    if not out.is_file():
        words = ["launch", "eval", str(model), "--suite", str(suite), "--out", str(out)]
        experiment.process(words, f"eval-{model.parent.name}")
    return float(read_json(out)["means"]["task_type"])


def best(found: Mapping[Setting, float]) -> Setting:
    """The setting with the best score."""
    return max(found, key=lambda setting: found[setting])


class Versus:
    """Both sides of one comparison."""

    def __init__(self, given: Namespace, fixed: Protocol) -> None:
        self.given, self.plan, self.smoke = given, fixed.versus_st, given.smoke
        self._pace_steps = SMOKE_STEPS if given.smoke else fixed.pace_steps
        self.experiment = Experiment.of("versus", given, fixed)
        grid = [Setting(rate, size) for size in self.plan.batch_sizes for rate in self.plan.learning_rates]
        self.grid = [setting._replace(batch_size=8) for setting in grid[:2]] if given.smoke else grid
        sizes = dict.fromkeys(setting.batch_size for setting in self.grid)
        of_size = {size: self.experiment.with_settings(f"stages.0.batch_size={size}") for size in sizes}
        self.paces = {size: experiment.pace(fixed.pace_steps) for size, experiment in of_size.items()}
        self.vector_seconds = next(iter(self.paces.values())).teacher_seconds()
        self.recipe = load_config(Recipe, self.experiment.recipe, self.experiment.overrides("any"))
        self.data = self.experiment.prepared()
        self.peer = Peer(self.experiment, self.recipe, self.data)
        self.peer_vectors = self.peer.vectors()
        self.peer_paces = {
            size: self.peer.train(f"pace-{size}", Setting(1e-4, size), self._pace_steps, 0) for size in sizes
        }

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
        """Every setting on both sides for the same minutes: the cosine to the teacher on held-out text."""
        heldout = HeldOut(self.data / "heldout", self.recipe.stages[0].max_tokens)
        seconds = 60 * self.plan.search_minutes
        ours, theirs = {}, {}
        for at, setting in enumerate(self.grid):
            steps = f"stages.0.steps={self.our_steps(setting, seconds + self.paces[setting.batch_size].overhead)}"
            run = self.experiment.command("train", f"search-{at}", steps, *setting.words())
            ours[setting] = heldout.cosine(run / "model")
            their_steps = self.their_steps(setting, seconds + self.peer_paces[setting.batch_size]["overhead"])
            self.peer.train(f"search-{at}", setting, their_steps, 0)
            theirs[setting] = heldout.cosine(self.peer.folder / f"search-{at}" / "model")
            say(f"{setting}: {ours[setting]:.4f}, the peer {theirs[setting]:.4f}")
        return ours, theirs

    def product(self, setting: Setting, seed: int) -> dict[float, dict[str, Any]]:
        """The scorecards of the product after each share of the minutes; 1.0 is the whole. A share in which the
        teacher's pass leaves no time to train is left out."""
        found = {}
        for share in (*self.plan.shares, 1.0):
            left = share * 60 * self.given.minutes - self.vector_seconds
            if left > self.paces[setting.batch_size].overhead + 1 or share == 1.0 or self.smoke:
                steps = self.our_steps(setting, left)
                found[share] = self.experiment.finished(f"ours-{share:g}-s{seed}", seed, steps, *setting.words())
        return found

    def other(self, setting: Setting, seed: int, suite: Path, start: str) -> tuple[float, float]:
        """The peer's Mean(TaskType) x 100 from one of the starts, and the seconds it used."""
        before = self.peer_vectors["seconds"] + self.peer.start_seconds[start]
        steps = self.their_steps(setting, 60 * self.given.minutes - before)
        trained = self.peer.train(f"{start}-s{seed}", setting, steps, seed, start)
        mean = score(self.experiment, self.peer.folder / f"{start}-s{seed}" / "model", suite)
        return 100 * mean, before + trained["seconds"]


def main() -> None:
    """Run it all."""
    options = arguments(__doc__)
    recipe_options(options)
    given = options.parse_args()
    fixed = planned(given, "versus_st")
    both = Versus(given, fixed)
    say(f"vectors: {both.vector_seconds:.0f} s, the peer's {both.peer_vectors['seconds']:.0f} s")
    ours, theirs = both.search()
    our_setting, their_setting = best(ours), best(theirs)
    say(f"chosen: {our_setting}, the peer {their_setting}")
    suite = both.experiment.work / "suite.yaml"
    write_text(suite, yaml.safe_dump(both.recipe.suite.model_dump(mode="json")))
    cards: list[dict[float, dict[str, Any]]] = []
    others: dict[str, list[tuple[float, float]]] = {start: [] for start in ("copied", "folded")}
    for seed in given.seeds:
        cards.append(both.product(our_setting, seed))
        for start, found in others.items():
            found.append(both.other(their_setting, seed, suite, start))
            say(f"seed {seed}: {points(cards[-1][1.0]):.2f} points, the peer {found[-1][0]:.2f} ({start})")
    curve = {share: fmean(points(of[share]) for of in cards) for share in cards[0]}
    peer_points = {start: [mean for mean, _ in found] for start, found in others.items()}
    ahead, ahead_same = (
        [points(of[1.0]) - peer for of, peer in zip(cards, found, strict=True)] for found in peer_points.values()
    )
    pace = both.paces[our_setting.batch_size]
    result = {
        "benchmark": "versus_st",
        "full": fixed.full,
        "points_ahead": fmean(ahead),
        "sd": spread(ahead),
        "time_to_same": min(
            (share for share, mean in curve.items() if mean >= fmean(peer_points["copied"])), default=None
        ),
        "points_ahead_same_start": fmean(ahead_same),
        "points": curve,
        "points_peer": {start: fmean(found) for start, found in peer_points.items()},
        "points_teacher": points(cards[0][1.0], "teacher"),
        "points_untrained": points(cards[0][1.0], "untrained"),
        "each": {"ours": [points(of[1.0]) for of in cards], "peer": peer_points},
        "seconds": {
            "ours": [both.vector_seconds + pace.overhead + of[1.0]["train_seconds"] for of in cards],
            "peer": {start: [seconds for _, seconds in found] for start, found in others.items()},
        },
        "vector_seconds": {"ours": both.vector_seconds, "peer": both.peer_vectors},
        "search": {side: {str(tuple(s)): v for s, v in of.items()} for side, of in (("ours", ours), ("peer", theirs))},
        "chosen": {"ours": our_setting._asdict(), "peer": their_setting._asdict()},
        "pace": {"ours": pace.__dict__, "peer": both.peer_paces[their_setting.batch_size]},
        "minutes": given.minutes,
        "seeds": given.seeds,
    }
    report(result, save=given.save)


def points(card: Mapping[str, Any], model: str = "student") -> float:
    """Mean(TaskType) x 100 of a scorecard."""
    return 100 * float(card["means"]["task_type"][model])


if __name__ == "__main__":
    main()
