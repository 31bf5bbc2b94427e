"""A small embedding server on the loopback that can misbehave: real sockets, real HTTP."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

WIDTH = 24
Answer = tuple[int, dict[str, str], bytes]
Behaviour = Callable[["Server", dict[str, Any]], Answer | None]
"""What to answer to a request's body (status, headers, content); None: as a good server does."""


def vector_of(text: str) -> np.ndarray:
    """What the server's model makes of a text: float32 [WIDTH], not of unit length."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def expected(texts: list[str]) -> np.ndarray:
    """The unit vectors of texts: float32 [N, WIDTH]."""
    vectors = np.stack([vector_of(text) for text in texts])
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def good(body: dict[str, Any]) -> Answer:
    """The answer of a good server, the vectors not in the order of the texts."""
    rows = []
    for index, text in enumerate(body["input"]):
        vector = vector_of(text)
        coded: Any = vector.tolist()
        if body["encoding_format"] == "base64":
            coded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        rows.append({"object": "embedding", "index": index, "embedding": coded})
    used = sum(len(text.split()) for text in body["input"])
    return answer({"data": rows[::-1], "usage": {"prompt_tokens": used}})


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """A JSON answer."""
    return status, headers or {}, json.dumps(content).encode()


class Server:
    """Where it listens, how it behaves, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.behave: Behaviour = lambda server, body: None
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def handle(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        """One request."""
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self.behave(self, body) or good(body)
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port, until the block ends."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers, content = server.handle(body, dict(self.headers.items()))
            if status == 0:  # hang up without a word
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.block_on_close = False
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
