"""Run a suite on a model: plan, tokenize, encode each distinct text once, score every task on the stored vectors."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embedding.instruction import Role
from eval.kinds import Kind
from eval.preserve import evaluation_mode, preserved_random_state, quiet
from eval.suite import SKIPPED, Suite, SuiteTask, reason
from eval.views import FULL, View

if TYPE_CHECKING:
    from eval.encoder import Request, StoredModel, TextEncoder, VectorTable

Scores = dict[str, Any]
"""JSON: {suite, template, tasks: {name: {kind, metric, instruction, score, outcomes, ...} or {kind, failed}}, kinds,
means, views: {name: {kinds, means, bytes}}, bytes, texts, tokens, seconds}."""


def evaluate(model: TextEncoder, suite: Suite, views: Sequence[View] = ()) -> Scores:
    """Score a model on every task of a suite.

    The random generators and the train/eval mode of every submodule are as before afterwards. A task that fails is
    reported as `{"failed": reason}` and left out of the means. With `views` (such as `suite.views`), the same vectors
    are also scored cut short or with fewer bits.
    """
    seconds: dict[str, float] = {}
    with preserved_random_state(), evaluation_mode(model), quiet():
        clock = time.perf_counter()
        requests, failed = _requests(suite)
        seconds["plan"], clock = _lap(clock)
        prompts = {entry.name: _prompts(model, entry) for entry in suite.tasks}
        positions = _distinct(requests, prompts)
        ids = _tokens(model, suite, positions)
        seconds["tokenize"], clock = _lap(clock)
        vectors = model.encode_ids(ids) if ids else np.zeros((0, 1), dtype=np.float32)
        seconds["encode"], clock = _lap(clock)
        table = _table(positions, vectors)
        entries = [entry for entry in suite.tasks if entry.name not in failed]
        tasks = failed | {e.name: _score(e, _stored(model, table, prompts[e.name], FULL)) for e in entries}
        viewed: dict[str, dict[str, Any]] = {}
        for view in views:
            try:
                view.change(vectors[:1])
            except ValueError as error:
                viewed[view.name] = {"failed": reason(error)}
                continue
            found = {e.name: _score(e, _stored(model, table, prompts[e.name], view)) for e in entries}
            viewed[view.name] = {**means(found), "bytes": view.bytes(vectors.shape[1])}
        seconds["score"], clock = _lap(clock)
    return {
        "suite": suite.name,
        "template": model.template.model_dump(),
        "tasks": dict(sorted(tasks.items())),
        **means(tasks),
        "views": viewed,
        "bytes": FULL.bytes(vectors.shape[1]),
        "texts": len(positions),
        "tokens": int(sum(len(row) for row in ids)),
        "seconds": {name: round(value, 3) for name, value in seconds.items()}
        | {"total": round(sum(seconds.values()), 3)},
    }


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


def _tokens(model: TextEncoder, suite: Suite, positions: dict[tuple[str, str], int]) -> list[np.ndarray]:
    """Token rows of the distinct pairs; kept for the next evaluation by the same tokenizer and template."""
    known = suite.memory.get("tokens")
    if known is None or known[0] is not model.tokenizer or known[1] != model.template:
        pairs = list(positions)
        ids = model.tokenize([text for _, text in pairs], [prompt for prompt, _ in pairs])
        known = suite.memory["tokens"] = model.tokenizer, model.template, ids
    rows: list[np.ndarray] = known[2]
    return rows


def _table(positions: dict[tuple[str, str], int], vectors: np.ndarray) -> VectorTable:
    from eval.encoder import VectorTable

    return VectorTable(positions, np.asarray(vectors, dtype=np.float32))


def _stored(model: TextEncoder, table: VectorTable, prompts: dict[Role, str], view: View) -> StoredModel:
    from eval.encoder import StoredModel

    def encode(prompts_N: Sequence[str], texts_N: Sequence[str]) -> np.ndarray:
        return model.encode_ids(model.tokenize(texts_N, prompts_N))

    return StoredModel(table, prompts, encode, view)


def _score(entry: SuiteTask, stored: StoredModel) -> dict[str, Any]:
    """Run mteb's task and take its main score, averaged over splits and subsets as mteb's results do."""
    from eval.encoder import SEARCHED
    from eval.outcomes import note_queries, read_outcomes

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
    result = {"kind": entry.kind, "metric": entry.metric, "instruction": entry.instruction, "score": score}
    if len(subsets) > 1:
        result["subsets"] = subsets
    return result | {"outcomes": outcomes + noted, "seconds": round(time.perf_counter() - start, 3)}
