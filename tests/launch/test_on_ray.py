"""On a real local Ray cluster, a worker of which is killed: every vector is there, the tables are those made here."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_prep.embed import embed_texts
from data_prep.harvest import harvest
from data_prep.tables import Texts
from data_prep.teacher import TeacherConfig, vector_keys
from data_prep.vectors import VectorStore
from embedding.files import read_json
from tests.launch.conftest import RECIPE, eyas, write_rows

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
PAIRS = 600


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pairs = harvest(PAIRS, workers=1).train
    write_rows(tmp_path / "faq.jsonl", [{"question": pair.summary, "answer": pair.body} for pair in pairs])
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def workers(of: psutil.Process, name: str) -> list[psutil.Process]:
    """The processes of Ray's that do what is called so."""
    found = []
    for child in of.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found


def run_and_kill_one(place: Path, command: str, name: str, ready: str) -> None:
    """Run a command on a Ray cluster of two workers to its good end, and kill one of those called so when a file of
    the pattern `ready` is there."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'eyas[ray]'")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    environment["RAY_worker_niceness"] = "0"  # its default, 15, starves the workers where other tests run beside
    words = [sys.executable, "-m", "launch", command, "mine.yaml", "--on", "ray", "--procs", "2"]
    with (place / "said.txt").open("w") as said:
        process = psutil.Popen(words, env=environment, stdout=said, stderr=subprocess.STDOUT)
        until, killed = time.monotonic() + 600, 0
        while process.poll() is None:
            assert time.monotonic() < until, (place / "said.txt").read_text()
            if not killed and any(place.glob(ready)):
                victims = workers(process, name)
                if victims:
                    victims[0].kill()
                    killed += 1
            time.sleep(0.01)
    assert process.returncode == 0, (place / "said.txt").read_text()
    assert killed == 1


@pytest.mark.timeout(900)
def test_a_killed_worker_costs_no_vector(place: Path) -> None:
    run_and_kill_one(place, "embed", "MapWorker", ready="runs/cache/vectors/*/shards/*.arrow")
    facts = read_json(place / "runs/tiny/steps/embed.json")["result"]
    texts = Texts.load(next((place / "runs/cache/data").glob("*/texts")))
    config = TeacherConfig(max_tokens=32)
    keys_N2 = vector_keys(texts, config.template)
    on_ray = VectorStore.open(Path(facts["outputs"][0]), facts["identity"], facts["width"])
    assert not on_ray.missing(keys_N2).any()
    report = embed_texts(config, texts, place / "alone", progress=False)
    assert report.identity == facts["identity"]
    alone = VectorStore.open(report.store, report.identity, report.width)
    np.testing.assert_allclose(on_ray.rows(keys_N2), alone.rows(keys_N2), atol=2e-3)
    # another process finds nothing left to do
    assert "skipped, finished before" in eyas("embed", "mine.yaml").stdout


@pytest.mark.timeout(900)
def test_prepared_on_ray_is_prepared_here(place: Path) -> None:
    """The same tables to the byte, drops and all, though a worker is killed on the way."""
    rows = [f"Row {number} of many says that {number * 7919 % 10007} is no prime." for number in range(60_000)]
    rows[::50] = [""] * len(rows[::50])
    write_rows(place / "many.jsonl", [{"text": text} for text in rows])
    write_rows(place / "faq.jsonl", [{"question": f"what is row {n}?", "answer": rows[n + 1]} for n in range(0, 90, 3)])
    source = "    - {kind: jsonl, path: many.jsonl, text: text, hold_out: false, on_error: drop}\n"
    recipe = RECIPE.replace("  heldout:", f"{source}  near_duplicates: {{threshold: 0.9}}\n  heldout:")
    (place / "mine.yaml").write_text(recipe)
    run_and_kill_one(place, "prepare", "ray::_examine", ready="mine.yaml")
    (there,) = place.glob("runs/cache/data/*")
    there.rename(place / "there")
    for file in place.glob("runs/**/steps/prepare*.json"):
        file.unlink()
    assert eyas("prepare", "mine.yaml").exit_code == 0
    (here,) = place.glob("runs/cache/data/*")
    files = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert len(files) > 4
    for name in files:
        assert (here / name).read_bytes() == (place / "there" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "mine.yaml", "--on", "ray"], "Ray runs prepare and embed"),
        (["prepare", "mine.yaml", "--on", "ray", "--gpus", "2"], "rows are examined on CPUs"),
        (["embed", "mine.yaml", "--on", "ray", "--time", "1:00"], "--time means nothing"),
        (["embed", "mine.yaml", "--on", "ray", "--nodes", "2"], "the Ray cluster says which nodes"),
    ],
)
def test_what_ray_cannot_do_is_refused(place: Path, words: list[str], message: str) -> None:
    result = eyas(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("runs").exists()


def test_a_dry_run_starts_no_cluster(place: Path) -> None:
    result = eyas("embed", "mine.yaml", "--on", "ray", "--gpus", "4", "--dry-run")
    assert result.exit_code == 0
    assert "4 GPUs" in result.stdout
    result = eyas("prepare", "mine.yaml", "--on", "ray", "--procs", "4", "--dry-run")
    assert "4 CPUs, on each a task that examines rows" in result.stdout
