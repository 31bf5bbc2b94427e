"""Answers of a chat model behind an OpenAI-compatible `/v1/chat/completions`, each asked for once: what was answered is
kept on disk under the hash of what was asked, so that a pass that was killed goes on where it was.
"""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from pydantic import Field

from data_prep.server import Again, Refused, Server, ServerConfig
from embedding.files import fingerprint


class ChatConfig(ServerConfig):
    """A model that answers `POST {url}/chat/completions` as OpenAI's API does."""

    revision: str | None = None
    """Your own name for this version of the model; another one asks everything again."""
    temperature: float = Field(default=0.7, ge=0.0)
    max_tokens: int = Field(default=256, ge=1)
    """Of an answer."""
    parameters: dict[str, Any] = Field(default={})
    """Further fields of the request, such as `seed: 1` or `chat_template_kwargs: {enable_thinking: false}` (vLLM)."""


class Answer(NamedTuple):
    """What the model said."""

    text: str
    whole: bool
    """False: it was cut off at `max_tokens`."""
    asked: bool
    """False: it was kept from an earlier time."""


class Chat:
    """The model, and what it answered before."""

    def __init__(self, config: ChatConfig, cache: Path) -> None:
        """`cache`: the file of kept answers (SQLite).

        Raises:
            ValueError: the file is not what it should be.
        """
        self.config = config
        self._server = Server(config, "model", "answer")
        self.pool = self._server.pool
        self.call = self._server.call
        cache.parent.mkdir(parents=True, exist_ok=True)
        self._cache, self._lock = cache, threading.Lock()
        try:
            self._kept = sqlite3.connect(cache, check_same_thread=False, timeout=60)
            with self._kept:
                self._kept.execute("CREATE TABLE IF NOT EXISTS answers (asked TEXT PRIMARY KEY, said TEXT, whole INT)")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{cache}: no file of kept answers ({error}); move it away to ask again") from None

    def ask(self, prompt: str, stop: threading.Event) -> Answer:
        """The answer to a prompt: the kept one, else the model's, which is kept before it is returned.

        Raises:
            data_prep.server.Refused: the server does not take the prompt.
            ValueError: a wrong key, a wrong address, or no good answer within the patience.
        """
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
            **self.config.parameters,
        }
        key = fingerprint({"revision": self.config.revision, **body})
        with (
            self._lock,
            closing(self._kept.execute("SELECT said, whole FROM answers WHERE asked = ?", (key,))) as found,
        ):
            kept = found.fetchone()
        if kept is not None:
            return Answer(kept[0], bool(kept[1]), False)
        text, whole = self._server.post("/chat/completions", body, self._read, stop)
        with self._lock, self._kept:
            self._kept.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, text, whole))
        return Answer(text, whole, True)

    def close(self) -> None:
        """Give up what is under way. What was answered is kept."""
        self._server.close()
        self.pool.shutdown(cancel_futures=True)
        self._kept.close()

    def _read(self, answer: httpx.Response) -> tuple[str, bool]:
        try:
            choice = answer.json()["choices"][0]
            text = choice["message"]["content"]
            if text is None:  # a filter's doing, or the model's: asked again it would say the same
                raise Refused(f"an answer without text (finish_reason {choice.get('finish_reason')!r})")
            text.encode()
            return text, choice.get("finish_reason") != "length"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise Again(f"not the form of OpenAI's chat: {self._server.message(answer)}") from None
