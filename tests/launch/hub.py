"""As much of the hub as an upload needs, on the loopback: the real client talks to it."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What it was asked, and whom it lets in."""

    def __init__(self) -> None:
        self.url = ""
        self.token = "hf_known"
        self.repositories: list[dict[str, Any]] = []
        """Bodies of the requests that make a repository."""
        self.files: dict[str, dict[str, bytes]] = {}
        """Of each repository."""

    def answer(self, path: str, body: bytes, token: str | None) -> tuple[int, dict[str, Any]]:
        """Status and content for a POST to a path."""
        if token != f"Bearer {self.token}":
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            self.repositories.append(made := json.loads(body))
            return 200, {"url": f"{self.url}/{made['organization']}/{made['name']}"}
        _, _, kind, owner, name, what, revision = path.split("/")
        if (kind, what, revision) == ("models", "preupload", "main"):
            asked = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": at, "uploadMode": "regular", "shouldIgnore": False} for at in asked]}
        if (kind, what, revision) == ("models", "commit", "main"):
            _, *lines = map(json.loads, body.splitlines())
            sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines}
            self.files.setdefault(f"{owner}/{name}", {}).update(sent)
            commit = "0" * 40
            return 200, {
                "commitUrl": f"{self.url}/{owner}/{name}/commit/{commit}",
                "commitOid": commit,
                "success": True,
            }
        return 404, {"error": f"no such place: {path}"}


@contextmanager
def loopback_hub() -> Iterator[Hub]:
    """A hub that listens until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self._send(*hub.answer(self.path, body, self.headers.get("authorization")))

        def do_GET(self) -> None:
            self._send(404, {"error": "Repository not found"})

        def _send(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
