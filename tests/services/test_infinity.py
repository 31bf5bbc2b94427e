"""The pass against an embedding server that others wrote: infinity (`infinity-emb` on PyPI), killed half-way; and the
same server with models that eyas exported.

`tests/services/install_infinity.sh` makes its environment in the folder that EYAS_INFINITY names.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from data_prep import embed as room
from data_prep.embed import embed_texts
from data_prep.endpoint import Endpoint, EndpointConfig
from data_prep.tables import Texts
from data_prep.teacher import vector_keys
from data_prep.vectors import VectorStore
from embedding.embedder import Embedder
from embedding.instruction import Template
from embedding.layout import resolve_model
from tests.conftest import TEACHER
from tests.data_prep.test_embed import make_texts
from train.pruning import pruned

pytestmark = [pytest.mark.server, pytest.mark.timeout(1_800)]  # a busy machine is slow, not broken
PAIRS = [(f"How does {verb} a {noun} work?", f"To {verb} the {noun}, be patient. " * length)
         for verb in ("open", "close", "move", "paint") for noun in ("door", "file", "window", "valve")
         for length in (1, 3, 10)]  # fmt: skip
KEY = "sk-only-for-this-test"
START_SECONDS = 900.0
ROOT = Path(__file__).parents[2]


class Infinity:
    """The server's process on a port of the loopback, with models by name; it may be killed and started again."""

    def __init__(self, python: Path, log: Path, models: dict[str, Path]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._python, self._log, self._models = python, log, models
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = [str(self._python), "-c", "from infinity_emb.cli import cli; cli()", "v2"]
        for name, folder in self._models.items():
            words += ["--model-id", str(folder), "--served-model-name", name]
        words += ["--engine", "torch", "--device", "cpu", "--dtype", "float32"]
        words += ["--no-bettertransformer", "--no-model-warmup", "--log-level", "warning"]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--api-key", KEY]
        quiet = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | quiet)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=60).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError(f"infinity did not start: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def exported(folder: Path) -> dict[str, Path]:
    """What eyas leaves behind: two of the teacher's layers, a decoder with Qwen3's rotary base, and what a run of all
    stages ends with."""
    teacher = Embedder.from_pretrained(TEACHER)
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 12}
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    decoder = Qwen3Config(
        **shape, vocab_size=30_522, num_hidden_layers=3, num_key_value_heads=2, pad_token_id=0, rope_parameters=rope
    )
    template = Template(query="Instruct: {task}\nQuery: ")
    made = {
        "pruned": pruned(teacher, [2, 5]),
        "decoder": Embedder(Qwen3Model(decoder), teacher.tokenizer, "last", max_tokens=64, template=template),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
    words = [sys.executable, "-m", "launch", "run", "tiny/harrier-0.6b"]
    subprocess.run(words, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    return {name: folder / name for name in made} | {"run": folder / "runs" / "tiny-harrier-0.6b" / "model"}


@pytest.fixture(scope="module")
def python() -> Path:
    """The server's; asked for before anything is made for it to serve."""
    folder = os.environ.get("EYAS_INFINITY")
    if not folder:
        pytest.skip("EYAS_INFINITY is not set: tests/services/install_infinity.sh says how")
    python = Path(folder) / "bin" / "python"
    if not python.exists():
        pytest.fail(f"EYAS_INFINITY={folder} has no bin/python; run tests/services/install_infinity.sh")
    return python.absolute()


@pytest.fixture(scope="module")
def students(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return exported(tmp_path_factory.mktemp("students"))


@pytest.fixture(scope="module")
def infinity(python: Path, students: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Infinity]:
    models = {"minilm": resolve_model(TEACHER), **students}
    server = Infinity(python, tmp_path_factory.mktemp("infinity") / "log.txt", models)
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
    fields |= {"batch_texts": 4, "concurrency": 2, "timeout_seconds": 300}
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


@pytest.mark.parametrize("name", ["pruned", "decoder", "run"])
def test_an_exported_student_is_served_with_its_own_vectors(
    infinity: Infinity, students: dict[str, Path], texts: Texts, name: str
) -> None:
    student = Embedder.from_pretrained(students[name])
    raw = texts.texts.to_pylist()
    prompts = [student.template.prompt("query", "Find the manual")] * len(raw)
    endpoint = Endpoint(config(infinity, model=name))
    ids = student.tokenize(raw, prompts)
    assert max(len(row) for row in ids) > 64  # the decoder's are cut, with their last token kept
    served = endpoint.encode_ids(endpoint.tokenize(raw, prompts))
    np.testing.assert_allclose(served, student.encode_ids(ids), atol=1e-4)


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
