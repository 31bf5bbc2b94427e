"""Scores of a run's three models: the teacher's and the untrained student's are measured once and kept in the cache."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embedding.embedder import Embedder
from embedding.files import fingerprint, read_json, sha256_file, write_json
from eval.encoder import TextEncoder
from eval.evaluate import Scores, encode, evaluate, score
from eval.looks import look
from eval.ranks import ALONE, Ranks
from eval.scorecard import scorecard
from eval.speed import measure as measure_speed
from eval.suite import Suite, SuiteConfig
from eval.views import View
from launch.prepared import tool_facts

FORMAT = 4
"""Raised when scores hold something new."""


def suite_facts(config: SuiteConfig, folder: Path) -> dict[str, Any]:
    """What the scores on a suite are made from, as JSON values: its config, the contents of its folder, and what
    official tasks are read from and all scores are computed by (`tool_facts`)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    contents = {str(path.relative_to(folder)): sha256_file(path) for path in files}
    return {"config": config.model_dump(mode="json"), "files": fingerprint(contents), **tool_facts(config)}


def measured(model: TextEncoder, suite: Suite, views: Sequence[View] = (), ranks: Ranks = ALONE) -> Scores:
    """The scores of a model with its `speed` (`eval.speed`; {} for one behind an endpoint, whose speed is that of its
    server) and a `look` at it (`eval.looks`). Every rank must ask."""
    encoded = encode(model, suite, ranks)
    speed = measure_speed(model) if isinstance(model, Embedder) else {}
    return score(encoded, views, ranks) | {"speed": speed, "look": look(encoded)}


def kept_scores(
    cache: Path,
    suite: Suite,
    made_from: dict[str, Any],
    model: Callable[[], TextEncoder],
    measure: Callable[[TextEncoder, Suite], Scores] = measured,
) -> Scores:
    """The scores that `cache` keeps under the fingerprint of `made_from`; else `model` is measured and they are kept.

    Scores with a failed task are not kept: the next run tries again.
    """
    made_from = {"format": FORMAT, **made_from}
    path = cache / f"{fingerprint(made_from)}.json"
    if path.is_file():
        return dict(read_json(path)["scores"])
    scores = measure(model(), suite)
    if not any("failed" in task for task in scores["tasks"].values()):
        write_json(path, {"made_from": made_from, "scores": scores})
    return scores


def curve_ends(
    cache: Path,
    watched: Suite,
    rows: int,
    others: Sequence[tuple[dict[str, Any], Callable[[], TextEncoder]]],
    student: TextEncoder,
) -> dict[str, Any]:
    """Where learning curves begin and end, for the scorecard: {curve: {kinds, means}} on the part of the suite that was
    watched while training, `rows` of each task. `others`: teacher and untrained student, as `kept_scores` takes them.
    """
    of_teacher, of_untrained = (
        kept_scores(cache, watched, made_from | {"rows": rows}, model, evaluate) for made_from, model in others
    )
    card = scorecard(of_teacher, of_untrained, evaluate(student, watched))
    return {"curve": {name: card[name] for name in ("kinds", "means")}}


def curve_values(scores: Scores, decides: bool = False) -> dict[str, float]:
    """The scores that a training log shows: `eval/mean` (Mean(TaskType)) and `eval/KIND`. No mean where no task has a
    score; nor, where the mean `decides`, where one has none: means over other tasks must not be compared."""
    values = {f"eval/{kind}": score for kind, score in scores["kinds"].items()}
    mean = scores["means"]["task_type"]
    partial = any("failed" in task for task in scores["tasks"].values())
    return values if mean is None or (decides and partial) else {"eval/mean": mean, **values}
