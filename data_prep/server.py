"""A model behind an OpenAI-compatible HTTP server: requests side by side, repeated with growing pauses while the server
is away or busy, under a rate, with a key that is read from the environment and written nowhere.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from pydantic import Field, field_validator
from rich.console import Console

from embedding.config import Config

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Pauses double from the first to the longest, each shortened by a random part so that clients do not come in step."""
REFUSED = {400, 413, 422}
"""What servers answer to a text they do not take (too long, empty, no valid text) or to a body that is too large."""
BUSY = {408, 409, 425, 429}
"""Client errors that pass; so does every 5xx."""
SHOWN = 200
"""Characters of a server's own message that an error quotes."""
PATHS = ("/embeddings", "/chat/completions")
T = TypeVar("T")


class ServerConfig(Config):
    """Where a model is served, and how it is asked."""

    url: str
    """Up to and with the version, such as http://localhost:8000/v1."""
    model: str
    """The name the server knows the model by."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; without it no key is sent."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at once."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Of one request."""
    patience_seconds: float = Field(default=300.0, ge=0)
    """For how long a request that fails is repeated: a server that is restarted within it costs nothing."""

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("expected a URL such as http://localhost:8000/v1")
        url = url.rstrip("/")
        for path in PATHS:
            url = url.removesuffix(path)
        return url


class Refused(Exception):
    """The server does not take what it was sent; the message is what it said."""


class Again(Exception):
    """An attempt failed in a way that may pass; `pause`: seconds the server asked for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Server:
    """Asks the server. `pool` has as many threads as requests may run at once."""

    def __init__(self, config: ServerConfig, section: str, wanted: str) -> None:
        """`section` of the settings and what is `wanted` of the server are named in messages."""
        self.config, self.section, self.wanted = config, section, wanted
        self._key = os.environ.get(config.key_env, "").strip()  # secrets often end in a newline
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        self._client = httpx.Client(headers=headers, timeout=config.timeout_seconds, limits=limits)
        self.pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="server")
        self.lock = threading.Lock()
        self._next_request = 0.0
        self._waiting = False
        self._closed = False
        self._stops: set[threading.Event] = set()
        """One for each call under way: set, it ends the pauses of that call's requests."""

    @contextmanager
    def call(self) -> Iterator[threading.Event]:
        """Requests that belong together; the event is theirs, and leaving ends the pauses of those still under way."""
        stop = threading.Event()
        with self.lock:
            self._stops.add(stop)
        try:
            yield stop
        finally:
            stop.set()
            with self.lock:
                self._stops.discard(stop)

    def close(self) -> None:
        """Give up what is under way: pauses end, and nothing more is asked."""
        with self.lock:
            self._closed = True
            for stop in self._stops:
                stop.set()
        self._client.close()

    def post(self, path: str, body: dict[str, Any], read: Callable[[httpx.Response], T], stop: threading.Event) -> T:
        """What `read` makes of the answer, repeated until it comes; `read` may raise `Again` too.

        Raises:
            Refused: the server does not take the body.
            ValueError: a wrong key, a wrong address, or no answer within the patience.
        """
        began, pause, tries = time.monotonic(), FIRST_PAUSE_SECONDS, 0
        while True:
            if stop.is_set() or self._closed:
                raise ValueError(f"{self.config.url}: given up, since another request failed")
            tries += 1
            try:
                found = read(self._once(path, body, stop))
            except Again as reason:
                passed = time.monotonic() - began
                wait = max(reason.pause, pause * random.uniform(0.5, 1.0))
                if passed + wait > self.config.patience_seconds:
                    raise ValueError(
                        f"{self.config.url}: no {self.wanted} within {self.config.patience_seconds:g} s ({tries} tries,"
                        f" the last: {reason}); start the same command again when the server is well, or raise "
                        f"{self.section}.patience_seconds"
                    ) from None
                self._tell(str(reason))
                stop.wait(wait)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                with self.lock:
                    self._waiting = False
                return found

    def message(self, answer: httpx.Response) -> str:
        """What the server says, as one short line."""
        try:
            found = answer.json()
        except ValueError:
            found = answer.text
        for key in ("error", "message"):
            found = found.get(key, found) if isinstance(found, dict) else found
        return self._clean(" ".join(str(found).split())[:SHOWN] or "(empty)")

    def _once(self, path: str, body: dict[str, Any], stop: threading.Event) -> httpx.Response:
        self._await_turn(stop)
        try:
            answer = self._client.post(f"{self.config.url}{path}", json=body)
        except httpx.TimeoutException:
            raise Again(f"no answer within {self.config.timeout_seconds:g} s") from None
        except httpx.TransportError as error:
            raise Again(self._clean(str(error) or type(error).__name__)) from None
        if answer.status_code != httpx.codes.OK:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: httpx.Response) -> Exception:
        """What an answer other than 200 means."""
        code = answer.status_code
        said = f"{code} {answer.reason_phrase}: {self.message(answer)}"
        if code in BUSY or code >= 500:
            return Again(said, _retry_after(answer))
        if code in REFUSED:
            return Refused(said)
        if code in {401, 403}:
            held = "holds a key that it does not take" if self._key else "is not set"
            return ValueError(f"{self.config.url}: {said}; the environment variable {self.config.key_env} {held}")
        return ValueError(f"{self.config.url}: {said}; check {self.section}.url and {self.section}.model")

    def _await_turn(self, stop: threading.Event) -> None:
        """Wait until the rate allows one more request."""
        if self.config.requests_per_minute is None:
            return
        with self.lock:
            turn = max(self._next_request, time.monotonic())
            self._next_request = turn + 60.0 / self.config.requests_per_minute
        stop.wait(turn - time.monotonic())

    def _tell(self, reason: str) -> None:
        """Say once for each outage what is waited for."""
        with self.lock:
            told, self._waiting = self._waiting, True
        if not told:
            text = f"{self.config.url}: {reason}; trying again for {self.config.patience_seconds:g} s"
            Console(stderr=True).print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)

    def _clean(self, text: str) -> str:
        """Without the key: some servers repeat it."""
        return text.replace(self._key, "***") if self._key else text


def _retry_after(answer: httpx.Response) -> float:
    """The seconds of a Retry-After header (its form as a date is not read: pauses grow anyhow)."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0
