"""The pass against an embedding server that others wrote: infinity (`infinity-emb` on PyPI), killed half-way.

`tests/services/install_infinity.sh` makes its environment in the folder that EYAS_INFINITY names.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from data_prep import embed as room
from data_prep.embed import embed_texts
from data_prep.endpoint import Endpoint, EndpointConfig
from data_prep.tables import Texts
from data_prep.teacher import vector_keys
from data_prep.vectors import VectorStore
from embedding.embedder import Embedder
from embedding.layout import resolve_model
from tests.conftest import TEACHER
from tests.data_prep.test_embed import make_texts

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
PAIRS = [(f"How does {verb} a {noun} work?", f"To {verb} the {noun}, be patient. " * length)
         for verb in ("open", "close", "move", "paint", "sell") for noun in ("door", "file", "window", "valve", "ship")
         for length in (1, 3, 8, 40)]  # fmt: skip
KEY = "sk-only-for-this-test"
START_SECONDS = 240.0


class Infinity:
    """The server's process on a port of the loopback; it may be killed and started again."""

    def __init__(self, python: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._python, self._log = python, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = [str(self._python), "-c", "from infinity_emb.cli import cli; cli()", "v2"]
        words += ["--model-id", str(resolve_model(TEACHER)), "--served-model-name", "minilm", "--device", "cpu"]
        words += ["--engine", "torch", "--dtype", "float32", "--no-bettertransformer", "--no-model-warmup"]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--api-key", KEY, "--log-level", "warning"]
        quiet = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | quiet)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError(f"infinity did not start: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture(scope="module")
def infinity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Infinity]:
    folder = os.environ.get("EYAS_INFINITY")
    if not folder:
        pytest.skip("EYAS_INFINITY is not set: tests/services/install_infinity.sh says how")
    python = Path(folder) / "bin" / "python"
    if not python.exists():
        pytest.fail(f"EYAS_INFINITY={folder} has no bin/python; run tests/services/install_infinity.sh")
    server = Infinity(python.absolute(), tmp_path_factory.mktemp("infinity") / "log.txt")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return make_texts(tmp_path_factory.mktemp("data"), PAIRS)


@pytest.fixture(scope="module")
def teacher() -> Embedder:
    return Embedder.from_pretrained(TEACHER)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITY_KEY", KEY)


def config(infinity: Infinity, **settings: object) -> EndpointConfig:
    fields = {"kind": "endpoint", "url": infinity.url, "model": "minilm", "key_env": "INFINITY_KEY"}
    fields |= {"batch_texts": 4, "concurrency": 2, "timeout_seconds": 20}
    return EndpointConfig.model_validate(fields | settings)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_its_vectors_are_those_of_the_model_run_here(
    infinity: Infinity, texts: Texts, teacher: Embedder, encoding: str
) -> None:
    endpoint = Endpoint(config(infinity, encoding=encoding))
    raw = texts.texts.to_pylist()
    found = endpoint.encode_ids(endpoint.tokenize(raw, [""] * len(raw)))
    np.testing.assert_allclose(found, teacher.encode(raw), atol=1e-4)
    assert endpoint.used_tokens > 0


def test_a_wrong_key(infinity: Infinity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITY_KEY", "another")
    with pytest.raises(ValueError, match=r"401 Unauthorized: .*INFINITY_KEY holds a key that it does not take"):
        Endpoint(config(infinity))


def test_a_server_killed_half_way_and_started_again_costs_nothing(
    infinity: Infinity, texts: Texts, teacher: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SHARD_TEXTS", 8)

    def disturb() -> None:
        while len(list(tmp_path.glob("*/shards/[!.]*.arrow"))) < 5:
            time.sleep(0.001)
        infinity.kill()
        infinity.start()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    report = embed_texts(config(infinity), texts, tmp_path, progress=False)
    disturber.join()
    assert (report.computed, report.reused) == (len(texts), 0)
    store = VectorStore.existing(report.store)
    found = store.rows(vector_keys(texts, teacher.template))
    np.testing.assert_allclose(found, teacher.encode(texts.texts.to_pylist()), atol=1e-3)


def test_a_server_that_stays_away_ends_the_pass_and_the_next_one_goes_on(
    infinity: Infinity, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SHARD_TEXTS", 8)
    settings = config(infinity, patience_seconds=1)

    def disturb() -> None:
        while len(list(tmp_path.glob("*/shards/[!.]*.arrow"))) < 5:
            time.sleep(0.001)
        infinity.kill()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    with pytest.raises(ValueError, match=r"no vectors within 1 s .*start the same command again"):
        embed_texts(settings, texts, tmp_path, progress=False)
    disturber.join()
    infinity.start()
    report = embed_texts(settings, texts, tmp_path, progress=False)
    assert report.reused >= 4 * 8
    assert report.reused + report.computed == len(texts)
