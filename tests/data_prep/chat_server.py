"""A chat server in a process of its own that fails as it is told to: `python chat_server.py LOG [FAULT]...`.

It prints its port, and writes a line to LOG for each document that it answers for. A query is the first words of the
document, so that it finds it; of a document with the word `vague` it is about nothing in particular.

Faults: `busy` (429 with retry-after), `broken` (500), `torn` (JSON cut off), `empty` (200, no choice): every third
request; `slow`: 250 ms each; `refuses`, `filters`: 400, or an answer without text, for documents with the word
`forbidden`; `locked`: 401.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOG, FAULTS = Path(sys.argv[1]), sys.argv[2:]
COUNT = [0]
LOCK = threading.Lock()


def reply(prompt: str) -> str:
    """What the model says."""
    document = prompt.partition("Document:\n")[2]
    words = document.split()
    kind = "search" if "search engine" in prompt else "question"
    queries = [f"{kind} {' '.join(words[:6])}", f"{kind} {' '.join(words[3:10])}?"]
    if "vague" in words:
        queries = ["how is a list of names sorted by a key function", "return the logarithm of a decimal number"]
    return "Here are two:\n1. " + queries[0] + '\n2. "' + queries[1] + '"\n'


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """A chat completion, or a fault."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][0]["content"]
        with LOCK:
            COUNT[0] += 1
            number = COUNT[0]
        fault = FAULTS[number // 3 % len(FAULTS)] if FAULTS and number % 3 == 0 else ""
        if "slow" in FAULTS:
            time.sleep(0.25)
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": "no such path"})
        elif "locked" in FAULTS:
            self._send(401, {"error": "no key"})
        elif "refuses" in FAULTS and "forbidden" in prompt:
            self._send(400, {"error": {"message": "content policy"}})
        elif "filters" in FAULTS and "forbidden" in prompt:
            choice = {"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}
            self._send(200, {"choices": [choice]})
        elif fault == "busy":
            self._send(429, {"error": {"message": "rate limit"}}, ("retry-after", "0.1"))
        elif fault == "broken":
            self._send(500, {"error": "out of memory"})
        elif fault == "empty":
            self._send(200, {"choices": []})
        else:
            choice = {"message": {"role": "assistant", "content": reply(prompt)}, "finish_reason": "stop"}
            self._send(200, {"choices": [choice]}, cut=40 if fault == "torn" else None)
            if fault != "torn":
                with LOCK, LOG.open("a") as log:
                    log.write(json.dumps(prompt) + "\n")

    def _send(self, status: int, content: Any, *headers: tuple[str, str], cut: int | None = None) -> None:
        data = json.dumps(content).encode()[:cut]
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
