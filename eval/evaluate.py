"""Run a suite on a model: plan, tokenize, encode each distinct text once, score every task on the stored vectors."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embedding.instruction import Role
from eval.kinds import SEARCHED, Kind
from eval.preserve import evaluation_mode, preserved_random_state, quiet
from eval.ranks import ALONE, Ranks
from eval.suite import SKIPPED, Suite, SuiteTask, reason
from eval.views import FULL, View

if TYPE_CHECKING:
    from eval.encoder import Request, StoredModel, TextEncoder, VectorTable

Scores = dict[str, Any]
"""JSON: {suite, template, tasks: {name: {kind, metric, instruction, items, score, outcomes, ...} or {kind, failed}},
kinds, means, views: {name: {tasks: {name: score}, kinds, means, bytes} or {failed}}, bytes, texts, tokens, seconds}."""


@dataclass(frozen=True)
class Encoded:
    """Every text that a suite asks for as a vector of one model."""

    model: TextEncoder
    suite: Suite
    table: VectorTable
    prompts: dict[str, dict[Role, str]]
    """Task -> what the model reads before a query and before a document."""
    failed: dict[str, dict[str, Any]]
    """The tasks that could not be planned, as they stand in the scores."""
    items: dict[str, str]
    """Task -> a digest of what it asks and of what is right (`eval.items`)."""
    tokens: int
    seconds: dict[str, float]

    @property
    def tasks(self) -> list[SuiteTask]:
        """The tasks that can be scored."""
        return [entry for entry in self.suite.tasks if entry.name not in self.failed]

    def stored(self, entry: SuiteTask, view: View = FULL) -> StoredModel:
        """What mteb sees as the model in one task."""
        from eval.encoder import StoredModel

        def encode(prompts_N: Sequence[str], texts_N: Sequence[str]) -> np.ndarray:
            return self.model.encode_ids(self.model.tokenize(texts_N, prompts_N))

        return StoredModel(self.table, self.prompts[entry.name], encode, view)


def evaluate(model: TextEncoder, suite: Suite, views: Sequence[View] = (), ranks: Ranks = ALONE) -> Scores:
    """Score a model on every task of a suite.

    The random generators and the train/eval mode of every submodule are as before afterwards. A task that fails is
    reported as `{"failed": reason}` and left out of the means. With `views` (such as `suite.views`), the same vectors
    are also scored cut short or with fewer bits. With several `ranks`, each encodes its share of the texts and scores
    its share of the tasks, and every rank returns the same; all must call with the same model and suite.
    """
    return score(encode(model, suite, ranks), views, ranks)


def encode(model: TextEncoder, suite: Suite, ranks: Ranks = ALONE) -> Encoded:
    """Encode each distinct (prompt, text) of a suite once; the model is left as it was."""
    from eval.encoder import VectorTable

    seconds: dict[str, float] = {}
    with preserved_random_state(), evaluation_mode(model), quiet():
        clock = time.perf_counter()
        requests, failed = _requests(suite)
        items = _items(suite, requests)
        seconds["plan"], clock = _lap(clock)
        prompts = {entry.name: _prompts(model, entry) for entry in suite.tasks}
        positions = _distinct(requests, prompts)
        pairs, mine = list(positions), list(range(len(positions)))
        if ranks.size > 1:
            _require_alike(ranks, suite, pairs)
            mine = list(ranks.mine(sorted(mine, key=lambda at: sum(map(len, pairs[at])))))
        ids = _tokens(model, suite, [pairs[at] for at in mine])
        seconds["tokenize"], clock = _lap(clock)
        vectors = model.encode_ids(ids) if ids else np.zeros((0, 1))
        if ranks.size > 1:
            parts = ranks.gather((mine, np.asarray(vectors, dtype=np.float32), sum(map(len, ids))))
            vectors = np.empty((len(pairs), parts[0][1].shape[1]), dtype=np.float32)
            for rows, part, _ in parts:
                vectors[rows] = part if rows else 0
            tokens = sum(count for _, _, count in parts)
        else:
            tokens = sum(map(len, ids))
        seconds["encode"], clock = _lap(clock)
    table = VectorTable(positions, np.asarray(vectors, dtype=np.float32))
    return Encoded(model, suite, table, prompts, failed, items, tokens, seconds)


def _require_alike(ranks: Ranks, suite: Suite, pairs: Sequence[Any]) -> None:
    """Each rank loads the suite itself, and one may not get all of it: a hub that refuses, a node without a network."""
    found = ranks.gather((len(pairs), dict(suite.failed)))
    for number, (texts, failed) in enumerate(found):
        if (texts, failed.keys()) != (found[0][0], found[0][1].keys()):
            why = "; ".join(f"{task}: {said}" for task, said in failed.items()) or "no task failed there"
            raise ValueError(
                f"the suite of rank {number} has {texts} texts, that of rank 0 {found[0][0]} ({why}); let all ranks "
                "see the same data: suite.mirror, or one cache for all machines"
            )


def score(encoded: Encoded, views: Sequence[View] = (), ranks: Ranks = ALONE) -> Scores:
    """Score what was encoded; see `evaluate`."""
    vectors = encoded.table.values
    with preserved_random_state(), evaluation_mode(encoded.model), quiet():
        clock = time.perf_counter()
        tasks = encoded.failed | _score_all(encoded, FULL, ranks)
        viewed: dict[str, dict[str, Any]] = {}
        for view in views:
            try:
                view.change(vectors[:1])
            except ValueError as error:
                viewed[view.name] = {"failed": reason(error)}
                continue
            of_view = _score_all(encoded, view, ranks)
            scores = {name: task["score"] for name, task in sorted(of_view.items()) if "score" in task}
            viewed[view.name] = {"tasks": scores, **means(of_view), "bytes": view.bytes(vectors.shape[1])}
        seconds = encoded.seconds | {"score": _lap(clock)[0]}
    return {
        "suite": encoded.suite.name,
        "template": encoded.model.template.model_dump(),
        "tasks": dict(sorted(tasks.items())),
        **means(tasks),
        "views": viewed,
        "bytes": FULL.bytes(vectors.shape[1]),
        "texts": len(encoded.table.positions),
        "tokens": int(encoded.tokens),
        "seconds": {name: round(value, 3) for name, value in seconds.items()}
        | {"total": round(sum(seconds.values()), 3)},
    }


def _score_all(encoded: Encoded, view: View, ranks: Ranks) -> dict[str, dict[str, Any]]:
    mine = {entry.name: _score(encoded, entry, view) for entry in ranks.mine(encoded.tasks)}
    return {name: result for part in ranks.gather(mine) for name, result in part.items()}


def means(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The mean of each kind, Mean(Task) and Mean(TaskType) over the tasks that have a score; None where none has."""
    by_kind: dict[Kind, list[float]] = {}
    for task in tasks.values():
        if "score" in task:
            by_kind.setdefault(task["kind"], []).append(task["score"])
    kinds = {kind: float(np.mean(scores)) for kind, scores in sorted(by_kind.items())}
    scores = [score for of_kind in by_kind.values() for score in of_kind]
    return {
        "kinds": kinds,
        "means": {
            "task": float(np.mean(scores)) if scores else None,
            "task_type": float(np.mean(list(kinds.values()))) if kinds else None,
        },
    }


def failures(scores: Scores) -> dict[str, str]:
    """Task -> reason, of the tasks that failed."""
    return {name: task["failed"] for name, task in scores["tasks"].items() if "failed" in task}


def _lap(start: float) -> tuple[float, float]:
    now = time.perf_counter()
    return now - start, now


def _requests(suite: Suite) -> tuple[dict[str, list[Request]], dict[str, dict[str, Any]]]:
    """The texts of each task (remembered by the suite: they do not depend on the model), and the failed tasks."""
    from eval.encoder import requests_of

    if "requests" not in suite.memory:
        found, failed = {}, {name: {"kind": name.split("/")[0], "failed": why} for name, why in suite.failed.items()}
        for entry in suite.tasks:
            try:
                found[entry.name] = requests_of(entry)
            except SKIPPED as error:
                failed[entry.name] = {"kind": entry.kind, "metric": entry.metric, "failed": reason(error)}
        suite.memory["requests"] = found, failed
    requests, failures = suite.memory["requests"]
    return requests, failures


def _items(suite: Suite, requests: dict[str, list[Request]]) -> dict[str, str]:
    """The digest of each task's items, remembered as its texts are: evaluations while training do not pay for it."""
    from eval.items import items_digest

    if "items" not in suite.memory:
        entries = [entry for entry in suite.tasks if entry.name in requests]
        suite.memory["items"] = {entry.name: items_digest(entry, requests[entry.name]) for entry in entries}
    items: dict[str, str] = suite.memory["items"]
    return items


def _prompts(model: TextEncoder, entry: SuiteTask) -> dict[Role, str]:
    return {
        "query": model.template.prompt("query", entry.instruction),
        "document": model.template.prompt("document", entry.instruction),
    }


def _distinct(requests: dict[str, list[Request]], prompts: dict[str, dict[Role, str]]) -> dict[tuple[str, str], int]:
    positions: dict[tuple[str, str], int] = {}
    for name, asked in requests.items():
        for role, texts in asked:
            for text in texts:
                positions.setdefault((prompts[name][role], text), len(positions))
    return positions


def _tokens(model: TextEncoder, suite: Suite, pairs: list[tuple[str, str]]) -> list[np.ndarray]:
    """Token rows of (prompt, text) pairs; kept for the next evaluation of the same pairs by the same tokenizer.

    The pairs themselves are compared, not what they follow from: another template, another share among ranks or a task
    added to the suite are other pairs. Equal ones are mostly the very same strings, so that costs next to nothing.
    """
    known = suite.memory.get("tokens")
    if known is None or known[0] is not model.tokenizer or known[1] != pairs:
        ids = model.tokenize([text for _, text in pairs], [prompt for prompt, _ in pairs])
        known = suite.memory["tokens"] = model.tokenizer, pairs, ids
    rows: list[np.ndarray] = known[2]
    return rows


def _score(encoded: Encoded, entry: SuiteTask, view: View) -> dict[str, Any]:
    """Run mteb's task and take its main score, averaged over splits and subsets as mteb's results do."""
    from eval.outcomes import note_queries, read_outcomes

    stored = encoded.stored(entry, view)
    start = time.perf_counter()
    failed = {"kind": entry.kind, "metric": entry.metric}
    # mteb seeds the global generators when it makes a task, just before it runs it
    random.seed(entry.seed)
    np.random.seed(entry.seed)  # noqa: NPY002
    torch.manual_seed(entry.seed)
    subsets: dict[str, float] = {}
    outcomes: list[Any] = []
    try:
        task = entry.fresh()
        noted = note_queries(entry, task) if entry.kind in SEARCHED else []
        for split in task.eval_splits:
            with tempfile.TemporaryDirectory() as place:
                # mteb's predictions of a search are a thousand hits a query; the noted measures serve instead
                folder = None if entry.kind in SEARCHED else Path(place)
                (Path(place) / task.prediction_file_name).parent.mkdir(exist_ok=True)  # `kind/NAME` is a path to mteb
                options: Any = {"encode_kwargs": {"show_progress_bar": False}, "prediction_folder": folder}
                found = task.evaluate(stored, split, **options)
                outcomes += read_outcomes(entry, task, Path(place), found)
            for subset, scores in found.items():
                subsets[subset if len(task.eval_splits) == 1 else f"{split}/{subset}"] = float(scores["main_score"])
    except SKIPPED as error:
        return failed | {"failed": reason(error)}
    score = float(np.mean(list(subsets.values())))
    if not np.isfinite(score):
        return failed | {"failed": f"{entry.metric} is {score} (constant similarities?)"}
    result: dict[str, Any] = {"kind": entry.kind, "metric": entry.metric, "instruction": entry.instruction}
    result |= {"items": encoded.items[entry.name], "score": score}
    if len(subsets) > 1:
        result["subsets"] = subsets
    return result | {"outcomes": outcomes + noted, "seconds": round(time.perf_counter() - start, 3)}
