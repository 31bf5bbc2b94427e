"""A teacher behind an OpenAI-compatible `/v1/embeddings` endpoint: vLLM, TEI, infinity, a hosted API.

Requests run side by side, are repeated with growing pauses while the server is away or busy, and stay under a rate.
The key is read from the environment when it is needed and written nowhere.

Shapes: N texts, E width of the vectors.
"""

import base64
import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal

import httpx
import numpy as np
from pydantic import Field

from data_prep.reduce import StoreConfig
from data_prep.server import Refused, Server, ServerConfig
from embedding.instruction import BARE, Template
from embedding.tokens import PROBE


class EndpointConfig(ServerConfig):
    """A teacher that answers `POST {url}/embeddings` as OpenAI's API does. The URL does not name the store."""

    kind: Literal["endpoint"]
    revision: str | None = None
    """Your own name for this version of the model; another one begins a new store."""
    template: Template = BARE
    """Prompts are put before the texts here, so the server must not add its own."""
    dimensions: int | None = Field(default=None, ge=1)
    """Asked of the server, where its model can shorten vectors."""
    parameters: dict[str, Any] = Field(default={})
    """Further fields of the request, such as `truncate_prompt_tokens: 512` (vLLM)."""
    max_bytes: int | None = Field(default=None, ge=16)
    """Cut prompt + text to so many bytes of UTF-8; None: the server cuts or refuses."""
    encoding: Literal["float", "base64"] = "float"
    """`base64` is much smaller, and not every server has it."""
    batch_texts: int = Field(default=64, ge=1)
    batch_bytes: int = Field(default=262_144, ge=1)
    """A request's texts, at most; a longer text goes alone."""
    store: StoreConfig = StoreConfig()


class TextsRefused(ValueError):
    """The server does not take some of the texts."""

    def __init__(self, said: dict[int, str], vectors_NE: np.ndarray) -> None:
        """`said`: what it says of each, by its place among the rows given; `vectors_NE`: those of the others, NaN in
        these rows."""
        super().__init__(next(iter(said.values())))
        self.said, self.vectors = said, vectors_NE


class Endpoint:
    """The teacher itself. Its "tokens" are the bytes of prompt + text: the server's tokenizer is its own affair."""

    tokenizer = "utf-8"

    def __init__(self, config: EndpointConfig) -> None:
        """Ask for one short text, which shows the width and that the server is the one it should be.

        Raises:
            ValueError: the server cannot be reached, wants a key, or does not answer with a vector.
        """
        self.config = config
        self.template = config.template
        self.max_tokens = config.max_bytes or 2**31
        self.used_tokens = 0
        """What the server says it has read."""
        self._server = Server(config, "teacher", "vectors")
        self.width = 0
        self.width = self.encode_ids(self.tokenize([PROBE], [""])).shape[1]

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray]:
        """The bytes of prompt + text: uint8 [length] each."""
        joined = (prompt + text for prompt, text in zip(prompts, texts, strict=True))
        return [np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8) for text in joined]

    def encode_ids(self, ids: Sequence[np.ndarray], *, token_budget: int | None = None) -> np.ndarray:
        """Unit vectors of rows of bytes: float32 [N, E]. `token_budget` has no meaning here.

        Raises:
            TextsRefused: the server does not take some of the texts; carries the vectors of the others.
            ValueError: a wrong key, a wrong answer, or no answer within the patience.
        """
        texts = [row[: self.max_tokens].tobytes().decode("utf-8", "ignore") for row in ids]
        jobs: list[Future[np.ndarray]] = []
        refused: dict[int, str] = {}
        with self._server.call() as stop:
            try:
                spans = self._batches(ids)
                jobs += [self._server.pool.submit(self._batch, texts, *span, stop, refused) for span in spans]
                parts = [job.result() for job in jobs]
            finally:
                for job in jobs:
                    job.cancel()
        vectors_NE = np.concatenate(parts) if parts else np.zeros((0, self.width), dtype=np.float32)
        if refused:
            raise TextsRefused(refused, vectors_NE)
        return vectors_NE

    def close(self) -> None:
        """Give up what is under way: pauses end, and nothing more is asked."""
        self._server.close()

    def identity(self) -> dict[str, Any]:
        """What we know of what determines a vector; the pass compares a stored vector for what we do not know."""
        return {
            "kind": "endpoint",
            "template": self.template.model_dump(),
            **self.config.model_dump(include={"dimensions", "parameters", "max_bytes"}),
        }

    def _batches(self, ids: Sequence[np.ndarray]) -> list[tuple[int, int]]:
        """Spans of rows that go into one request each."""
        spans, start, size = [], 0, 0
        for at, row in enumerate(ids):
            size += min(len(row), self.max_tokens)
            if at > start and (at - start >= self.config.batch_texts or size > self.config.batch_bytes):
                spans.append((start, at))
                start, size = at, min(len(row), self.max_tokens)
        return [*spans, (start, len(ids))] if len(ids) else []

    def _batch(
        self, texts: list[str], start: int, end: int, stop: threading.Event, refused: dict[int, str]
    ) -> np.ndarray:
        """The vectors of `texts[start:end]`; a refused batch is halved to find the text, which is noted in `refused`
        and has a row of NaN."""
        body: dict[str, Any] = {
            "model": self.config.model,
            "input": texts[start:end],
            "encoding_format": self.config.encoding,
        }
        if self.config.dimensions:
            body["dimensions"] = self.config.dimensions
        try:
            return self._server.post(
                "/embeddings", body | self.config.parameters, lambda answer: self._vectors(answer, end - start), stop
            )
        except Refused as said:
            if end - start == 1:
                text = texts[start]
                refused[start] = f"{self.config.url} refuses the text {text[:60]!r} ({len(text):,} characters): {said}"
                return np.full((1, self.width), np.nan, dtype=np.float32)
        middle = (start + end) // 2
        halves = [self._batch(texts, *span, stop, refused) for span in ((start, middle), (middle, end))]
        return np.concatenate(halves)

    def _vectors(self, answer: httpx.Response, count: int) -> np.ndarray:
        """The vectors of an answer, in the order of the texts, each with unit norm.

        Raises:
            ValueError: not as many as were asked for, not of one width, not finite, or zero.
        """
        wrong = f"{self.config.url}: a wrong answer: "
        try:
            data = answer.json()
            rows = {int(item["index"]): item["embedding"] for item in data["data"]}
            used = int((data.get("usage") or {}).get("prompt_tokens") or 0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{wrong}not the form of OpenAI's embeddings: {self._server.message(answer)}") from None
        if sorted(rows) != list(range(count)):
            raise ValueError(f"{wrong}{len(rows)} vectors for {count} texts")
        try:
            vectors = [_decode(rows[place]) for place in range(count)]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{wrong}a vector that is no list of numbers ({error})") from None
        widths = sorted({len(vector) for vector in vectors} | ({self.width} if self.width else set()))
        if len(widths) > 1 or not widths[0]:
            expected = f"expected {self.width}" if self.width else "expected one width"
            raise ValueError(f"{wrong}vectors of {' and '.join(map(str, widths))} numbers, {expected}")
        vectors_nE = np.stack(vectors)
        norms = np.linalg.norm(vectors_nE, axis=1, keepdims=True)
        bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
        if len(bad):
            raise ValueError(f"{wrong}{len(bad)} of {count} vectors hold NaN or are zero")
        with self._server.lock:
            self.used_tokens += used
        vectors_nE /= norms
        return vectors_nE


def _decode(embedding: Any) -> np.ndarray:
    """A list of numbers, or base64 of little-endian float32: float32 [E]. An entry that is no number becomes NaN."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    with np.errstate(over="ignore"):
        return np.asarray([math.nan if value is None else value for value in embedding], dtype=np.float32)
