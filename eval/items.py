"""What a task was measured on, as a digest: two scores may be compared only where it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from eval.suite import SuiteTask

if TYPE_CHECKING:
    from eval.encoder import Request

ROWS = 1_000


def items_digest(entry: SuiteTask, requests: Sequence[Request]) -> str:
    """16 hex digits of the texts a task asks for (`eval.encoder.requests_of`) and of what is right: its labels, scores
    or judgements.

    Nothing of a model is in it, nor the instruction: the same items may be asked in another way. The order counts,
    because outcomes are paired by their places.
    """
    digest = hashlib.sha256()
    for piece in chain(_asked(requests), _right(entry)):
        digest.update(json.dumps(piece, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _asked(requests: Sequence[Request]) -> Iterator[Any]:
    for role, texts in requests:
        yield role
        yield from _pieces(texts)


def _right(entry: SuiteTask) -> Iterator[Any]:
    """What says which answers are right, in pieces: the column of labels or scores, or all where there is none. Of a
    search that is the corpus too, because the requests for a streamed one hold only its beginning."""
    task: Any = entry.task
    subsets = {subset: task.dataset[subset] for subset in task.hf_subsets if subset in task.dataset}
    splits = {*task.eval_splits, getattr(task, "train_split", None)}
    gold = {getattr(task, "label_column_name", "score"), "gold"}
    for subset, parts in (subsets or {"": task.dataset}).items():
        for split in sorted(splits & set(parts)):
            yield [subset, split]
            data = parts[split]
            if isinstance(data, Mapping):
                for name in sorted(data):
                    yield name
                    yield from _pieces(data[name])
            else:
                columns = sorted(gold & set(getattr(data, "column_names", ())))
                yield from _pieces(data.select_columns(columns) if columns else data)


def _pieces(data: Any) -> Iterator[Any]:
    """A table or a list some rows at a time: as text, a whole corpus would be in memory once more."""
    if not isinstance(data, list) and not hasattr(data, "column_names"):
        yield data
        return
    for start in range(0, len(data), ROWS):
        yield data[start : start + ROWS]
