"""A teacher behind an OpenAI-compatible `/v1/embeddings` endpoint: vLLM, TEI, infinity, a hosted API.

Requests run side by side, are repeated with growing pauses while the server is away or busy, and stay under a rate.
The key is read from the environment when it is needed and written nowhere.

Shapes: N texts, E width of the vectors.
"""

import base64
import math
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Self

import httpx
import numpy as np
from pydantic import Field, field_validator
from rich.console import Console

from data_prep.reduce import StoreConfig
from embedding.config import Config
from embedding.instruction import BARE, Template
from embedding.tokens import PROBE

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Pauses double from the first to the longest, each shortened by a random part so that clients do not come in step."""
REFUSED = {400, 413, 422}
"""What servers answer to a text they do not take (too long, empty, no valid text) or to a body that is too large."""
BUSY = {408, 409, 425, 429}
"""Client errors that pass; so does every 5xx."""
SHOWN = 200
"""Characters of a server's own message that an error quotes."""


class EndpointConfig(Config):
    """A teacher that answers `POST {url}/embeddings` as OpenAI's API does."""

    kind: Literal["endpoint"]
    url: str
    """Up to and without `/embeddings`, such as http://localhost:8000/v1. Not part of what names the store."""
    model: str
    """The name the server knows the model by."""
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
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; without it no key is sent."""
    encoding: Literal["float", "base64"] = "float"
    """`base64` is much smaller, and not every server has it."""
    batch_texts: int = Field(default=64, ge=1)
    batch_bytes: int = Field(default=262_144, ge=1)
    """A request's texts, at most; a longer text goes alone."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at once."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Of one request."""
    patience_seconds: float = Field(default=300.0, ge=0)
    """For how long a request that fails is repeated: a server that is restarted within it costs nothing."""
    store: StoreConfig = StoreConfig()

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("expected a URL such as http://localhost:8000/v1")
        return url.rstrip("/").removesuffix("/embeddings")

    def whole(self) -> Self:
        """The same teacher without our own cut."""
        return self.model_copy(update={"max_bytes": None})


class TextRefused(ValueError):
    """The server does not take a text; `position` is its place among the rows given."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position


class _Again(Exception):
    """An attempt failed in a way that may pass; `pause`: seconds the server asked for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


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
        self._key = os.environ.get(config.key_env, "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        self._client = httpx.Client(headers=headers, timeout=config.timeout_seconds, limits=limits)
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="endpoint")
        self._lock = threading.Lock()
        self._next_request = 0.0
        self._waiting = False
        self._closed = False
        self._stops: set[threading.Event] = set()
        """One for each call under way: set, it ends the pauses of that call's requests."""
        self.width = 0
        self.width = self.encode_ids(self.tokenize([PROBE], [""])).shape[1]

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray]:
        """The bytes of prompt + text: uint8 [length] each."""
        joined = (prompt + text for prompt, text in zip(prompts, texts, strict=True))
        return [np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8) for text in joined]

    def encode_ids(self, ids: Sequence[np.ndarray], *, token_budget: int | None = None) -> np.ndarray:
        """Unit vectors of rows of bytes: float32 [N, E]. `token_budget` has no meaning here.

        Raises:
            TextRefused: the server does not take one of the texts.
            ValueError: a wrong key, a wrong answer, or no answer within the patience.
        """
        texts = [row[: self.max_tokens].tobytes().decode("utf-8", "ignore") for row in ids]
        stop = threading.Event()
        with self._lock:
            self._stops.add(stop)
        jobs: list[Future[np.ndarray]] = []
        try:
            jobs += [self._pool.submit(self._batch, texts, *span, stop) for span in self._batches(ids)]
            parts = [job.result() for job in jobs]
        finally:
            stop.set()  # ends the pauses of the others where one failed
            for job in jobs:
                job.cancel()
            with self._lock:
                self._stops.discard(stop)
        return np.concatenate(parts) if parts else np.zeros((0, self.width), dtype=np.float32)

    def close(self) -> None:
        """Give up what is under way: pauses end, and nothing more is asked."""
        with self._lock:
            self._closed = True
            for stop in self._stops:
                stop.set()
        self._client.close()

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

    def _batch(self, texts: list[str], start: int, end: int, stop: threading.Event) -> np.ndarray:
        """The vectors of `texts[start:end]`, repeated until they come; a refused batch is halved to find the text."""
        began, pause, tries = time.monotonic(), FIRST_PAUSE_SECONDS, 0
        while True:
            if stop.is_set() or self._closed:
                raise ValueError(f"{self.config.url}: given up, since another request failed")
            tries += 1
            try:
                return self._request(texts, start, end, stop)
            except TextRefused:
                if end - start == 1:
                    raise
                middle = (start + end) // 2
                halves = [self._batch(texts, *span, stop) for span in ((start, middle), (middle, end))]
                return np.concatenate(halves)
            except _Again as reason:
                passed = time.monotonic() - began
                wait = max(reason.pause, pause * random.uniform(0.5, 1.0))
                if passed + wait > self.config.patience_seconds:
                    raise ValueError(
                        f"{self.config.url}: no vectors within {self.config.patience_seconds:g} s ({tries} tries, the "
                        f"last: {reason}); start the same command again when the server is well, or raise "
                        "teacher.patience_seconds"
                    ) from None
                self._tell(str(reason))
                stop.wait(wait)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _request(self, texts: list[str], start: int, end: int, stop: threading.Event) -> np.ndarray:
        self._await_turn(stop)
        body: dict[str, Any] = {
            "model": self.config.model,
            "input": texts[start:end],
            "encoding_format": self.config.encoding,
        }
        if self.config.dimensions:
            body["dimensions"] = self.config.dimensions
        try:
            answer = self._client.post(f"{self.config.url}/embeddings", json=body | self.config.parameters)
        except httpx.TimeoutException:
            raise _Again(f"no answer within {self.config.timeout_seconds:g} s") from None
        except httpx.TransportError as error:
            raise _Again(self._clean(str(error) or type(error).__name__)) from None
        if answer.status_code != httpx.codes.OK:
            raise self._refusal(answer, texts[start], start)
        vectors_nE = self._vectors(answer, end - start)
        with self._lock:
            self._waiting = False
        return vectors_nE

    def _refusal(self, answer: httpx.Response, text: str, position: int) -> Exception:
        """What an answer other than 200 means."""
        code = answer.status_code
        said = f"{code} {answer.reason_phrase}: {self._message(answer)}"
        if code in BUSY or code >= 500:
            return _Again(said, _retry_after(answer))
        if code in REFUSED:
            return TextRefused(
                position,
                f"{self.config.url} refuses the text {text[:60]!r} ({len(text):,} characters): {said}; shorten what "
                "is sent with teacher.max_bytes, or take the text out of the data",
            )
        if code in {401, 403}:
            held = "holds a key that it does not take" if self._key else "is not set"
            return ValueError(f"{self.config.url}: {said}; the environment variable {self.config.key_env} {held}")
        return ValueError(f"{self.config.url}: {said}; check teacher.url and teacher.model")

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
            raise ValueError(f"{wrong}not the form of OpenAI's embeddings: {self._message(answer)}") from None
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
        with self._lock:
            self.used_tokens += used
        vectors_nE /= norms
        return vectors_nE

    def _await_turn(self, stop: threading.Event) -> None:
        """Wait until the rate allows one more request."""
        if self.config.requests_per_minute is None:
            return
        with self._lock:
            turn = max(self._next_request, time.monotonic())
            self._next_request = turn + 60.0 / self.config.requests_per_minute
        stop.wait(turn - time.monotonic())

    def _tell(self, reason: str) -> None:
        """Say once for each outage what is waited for."""
        with self._lock:
            told, self._waiting = self._waiting, True
        if not told:
            text = f"{self.config.url}: {reason}; trying again for {self.config.patience_seconds:g} s"
            Console(stderr=True).print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)

    def _message(self, answer: httpx.Response) -> str:
        """What the server says, as one short line."""
        try:
            found = answer.json()
        except ValueError:
            found = answer.text
        for key in ("error", "message"):
            found = found.get(key, found) if isinstance(found, dict) else found
        return self._clean(" ".join(str(found).split())[:SHOWN] or "(empty)")

    def _clean(self, text: str) -> str:
        """Without the key: some servers repeat it."""
        return text.replace(self._key, "***") if self._key else text


def _decode(embedding: Any) -> np.ndarray:
    """A list of numbers, or base64 of little-endian float32: float32 [E]. An entry that is no number becomes NaN."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    with np.errstate(over="ignore"):
        return np.asarray([math.nan if value is None else value for value in embedding], dtype=np.float32)


def _retry_after(answer: httpx.Response) -> float:
    """The seconds of a Retry-After header (its form as a date is not read: pauses grow anyhow)."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0
