"""`eyas embed` in real processes against a server that misbehaves half-way, a full disk, and what cannot begin: one
clear message, exit code 2, finished work kept."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.processes import start
from benchmarks.vectors_faults import small_disk
from data_prep.endpoint import Endpoint, EndpointConfig
from data_prep.teacher import teacher_identity
from data_prep.vectors_care import rows_stored
from embedding.files import fingerprint
from tests.data_prep.server import Answer, Server, answer, serving
from tests.launch.conftest import write_rows

pytestmark = pytest.mark.timeout(900)
LONG, SHORT = 24, 8
"""Texts: long ones fill shards of their own and are embedded first, short ones come in the last shard."""
LETTERS = 100_000
"""Of a long text; a shard of an endpoint ends at a million bytes."""
RECIPE = """
extends: base
name: faults
data: {{sources: [{{kind: jsonl, path: texts.jsonl, query: q, positive: a}}], heldout: {{share: 0}}}}
teacher:
  kind: endpoint
  url: {url}
  model: MODEL
  key_env: FAULTS_KEY
  timeout_seconds: 60
  batch_texts: 4
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def folder(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and its texts; every test embeds with a model name, so a store, of its own."""
    folder = tmp_path_factory.mktemp("faults")
    letters = [f"letter {row}: " + "all is well here. " * (LETTERS // 18) for row in range(LONG)]
    rows = [{"q": f"question {row}" if row < SHORT else letters[row - SHORT], "a": letters[-1]} for row in range(31)]
    write_rows(folder / "texts.jsonl", rows)
    (folder / "mine.yaml").write_text(RECIPE.format(url=server.url))
    return folder


class Done(NamedTuple):
    """A command that has ended."""

    code: int | None
    said: str
    """On stderr."""


def command(folder: str, words: list[str]) -> None:
    """`eyas WORDS` in this process, as its own program would run it."""
    os.chdir(folder)
    os.environ |= {"FAULTS_KEY": "sk-none", "COLUMNS": "200"}
    for stream in (sys.stdout, sys.stderr):
        name = "out" if stream is sys.stdout else "err"
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    from launch.cli import app

    app(words)


def eyas(folder: Path, *words: str) -> Done:
    """The command in a process of its own."""
    process = start(command, str(folder), list(words))
    process.join()
    return Done(process.exitcode, (folder / "err").read_text())


def embed(folder: Path, model: str, *overrides: str) -> Done:
    """Embed with a teacher of this name."""
    return eyas(folder, "embed", "mine.yaml", f"teacher.model={model}", f"name={model}", *overrides)


def refused(done: Done) -> str:
    """The one message of a command that was refused."""
    assert done.code == 2, done
    assert "Traceback" not in done.said
    assert done.said.count("error:") == 1, done.said
    return " ".join(done.said.partition("error:")[2].split())


def store_of(folder: Path, model: str) -> Path:
    stores = folder.glob("runs/cache/vectors/*/manifest.json")
    return next(path.parent for path in stores if f'"model": "{model}"' in path.read_text())


def on_short(change: Any) -> Any:
    """Good for long texts, which come first, and for the one that shows the width; then another answer."""

    def behave(server: Server, body: dict[str, Any]) -> Answer | None:
        return change(body) if any(text.startswith("question") for text in body["input"]) else None

    return behave


def vectors(*numbers: float) -> Any:
    return lambda body: answer({"data": [{"index": i, "embedding": numbers} for i in range(len(body["input"]))]})


def never(body: dict[str, Any]) -> None:
    time.sleep(8)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("width", vectors(1.0, 2.0), "a wrong answer: vectors of 2 and 24 numbers, expected 24"),
        ("nan", vectors(*[float("nan")] * 24), "vectors hold NaN or are zero"),
        ("fewer", lambda body: answer({"data": []}), "a wrong answer: 0 vectors for 4 texts"),
        ("key", lambda body: answer({"error": "who?"}, 401), "401 Unauthorized: who?; the environment variable FAULTS"),
        ("busy", lambda body: answer({"error": "slow down"}, 429), "no vectors within 3 s"),
        ("broken", lambda body: answer({"error": "oh"}, 500), "no vectors within 3 s"),
        ("silent", never, "no vectors within 3 s"),
    ],
)
def test_a_server_that_goes_wrong_half_way(server: Server, folder: Path, name: str, change: Any, message: str) -> None:
    server.behave = on_short(change)
    brief = [f"teacher.{setting}_seconds=3" for setting in ("timeout", "patience")]
    said = refused(embed(folder, name, *(brief if "within" in message else [])))
    assert message in said
    kept = rows_stored(store_of(folder, name))
    assert kept >= LONG // 4
    server.behave = lambda server, body: None
    server.bodies.clear()
    if name == "width":  # and the same command goes on from there
        done = embed(folder, name)
        assert done.code == 0, done.said
        assert sum(len(body["input"]) for body in server.bodies) <= 3 + LONG + SHORT - kept
        assert rows_stored(store_of(folder, name)) == 1 + LONG + SHORT


def test_a_text_that_is_refused_is_named_and_the_rest_is_done(server: Server, folder: Path) -> None:
    server.behave = lambda server, body: answer("too long", 413) if "question 5" in body["input"] else None
    said = refused(embed(folder, "picky"))
    assert f"1 of {LONG + SHORT} texts were refused" in said
    assert "'question 5' (10 characters): 413" in said
    assert "too long" in said
    assert rows_stored(store_of(folder, "picky")) == LONG + SHORT  # with the one that shows which model it is


def test_a_pooling_that_nobody_says(folder: Path) -> None:
    (folder / "plain").mkdir()
    (folder / "plain" / "config.json").write_text('{"model_type": "bert"}')
    teacher = folder / "plain.yaml"
    teacher.write_text((folder / "mine.yaml").read_text().partition("teacher:")[0] + "teacher: {model: plain}\n")
    assert "give pooling: last, mean or cls" in refused(eyas(folder, "embed", "plain.yaml"))


def test_a_store_of_another_teacher(server: Server, folder: Path) -> None:
    server.behave = lambda server, body: None
    assert embed(folder, "mine").code == 0
    config = EndpointConfig(kind="endpoint", url=server.url, model="yours")
    yours = store_of(folder, "mine").parent / fingerprint(teacher_identity(config, Endpoint(config)))
    shutil.copytree(store_of(folder, "mine"), yours)
    said = refused(embed(folder, "yours"))
    assert 'the store of another teacher: model: expected "yours", found "mine"; use another folder' in said
    assert rows_stored(yours) == rows_stored(store_of(folder, "mine"))


def test_a_disk_that_fills(server: Server, folder: Path) -> None:
    width = 8_192

    def wide(server: Server, body: dict[str, Any]) -> Answer:
        rows = [
            {"index": at, "embedding": np.resize(np.arange(1, 90, dtype=np.float32) + len(text), width).tolist()}
            for at, text in enumerate(body["input"])
        ]
        return answer({"data": rows})

    server.behave = wide
    cache = folder / "disk"
    cache.mkdir()
    shutil.copytree(folder / "runs/cache/data", cache / "data")
    size = 2 * width * (LONG + SHORT)
    with small_disk(cache / "vectors", size * 2 // 3) as mounted:
        if not mounted:
            pytest.skip("this process may not mount a tmpfs")
        said = refused(embed(folder, "full", f"cache={cache}"))
        assert "No space left on device" in said
        store = next(cache.glob("vectors/*/manifest.json")).parent
        kept = rows_stored(store)
        assert kept >= LONG // 4
        assert not list(store.glob("shards/.*"))
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(cache / "vectors")], check=True)
        done = embed(folder, "full", f"cache={cache}")
        assert done.code == 0, done.said
        assert rows_stored(store) == 1 + LONG + SHORT
