"""The Slurm engine: the script as it is written, what is refused, and a real Slurm that submits, preempts, requeues."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from embedding.files import read_json
from launch.engine import Engine
from launch.queue import jobs_of, queued
from launch.slurm import Script, minutes, render, submit_array
from tests.launch.conftest import RUN, eyas

ROOT = Path(__file__).parents[2]

# ----------------------------------------------------------------------------------------------------- without a Slurm


def test_a_dry_run_prints_scripts_that_bash_accepts(finished: Path) -> None:
    for words in (["train", "--nodes", "2", "--gpus", "4"], ["embed", "--nodes", "2", "--gpus", "4"], ["prepare"]):
        command, *size = words
        result = eyas(command, "mine.yaml", "name=new", "--on", "slurm", "--dry-run", *size)
        assert result.exit_code == 0, result.output
        subprocess.run(["bash", "-n"], input=result.stdout, text=True, check=True)
        assert str(Path("faq.jsonl").absolute()) in result.stdout, "each node looks for the data"
    assert not Path("runs/new").exists()


def test_a_job_of_several_nodes_says_who_meets_where() -> None:
    engine = Engine(on="slurm", gpus=4, nodes=2, time="1:00:00", partition="a b", sbatch=["--account=lab"])
    text = render(Script("mine", [["train", "mine.yaml", "name=it's"]], Path("/logs")), engine)
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=4\n#SBATCH --gpus-per-node=4\n" in text
    assert "#SBATCH --partition='a b'\n" in text
    assert "#SBATCH --account=lab\n" in text
    assert "WORLD_SIZE=8 LOCAL_WORLD_SIZE=4" in text
    assert "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID\n" in text
    assert 'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)' in text
    assert "export ACCELERATE_MIXED_PRECISION=bf16" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_an_array_gives_each_task_its_command() -> None:
    tasks = [["train", "mine.yaml", f"seed={seed}"] for seed in range(3)]
    text = render(Script("study", tasks, Path("/logs"), at_once=2), Engine(on="slurm", gpus=1))
    assert "#SBATCH --array=0-2%2\n" in text
    assert "  2) command=(train mine.yaml seed=2) ;;" in text


@pytest.mark.parametrize(
    "text, expected",
    [("90", 90), ("1:30", 1.5), ("4:00:00", 240), ("2-12", 3600), ("1-0:30", 1470), ("infinite", float("inf"))],
)
def test_times_are_read_as_slurm_reads_them(text: str, expected: float) -> None:
    assert minutes(text) == expected


def test_embedding_on_slurm_is_an_array_of_single_processes(finished: Path) -> None:
    result = eyas("embed", "mine.yaml", "--on", "slurm", "--nodes", "3", "--gpus", "2", "--dry-run")
    prepare, embed = result.stdout.split("# Written by eyas")[1:]
    assert "command=(prepare" in prepare
    assert "#SBATCH --array=0-5\n" in embed
    assert "gpus-per-node=1" in embed
    assert "--dependency=afterok:" in embed
    assert "WORLD_SIZE" not in embed, "tasks of the array know nothing of each other"


def test_a_batch_that_the_processes_cannot_share_is_refused_before_anything_is_submitted(finished: Path) -> None:
    for command in ("train", "run"):
        result = eyas(command, "mine.yaml", "name=new", "--on", "slurm", "--nodes", "3", "--gpus", "7", "--dry-run")
        assert result.exit_code == 2, result.output
        assert "expected a multiple of the 21 ranks" in " ".join(result.stderr.split())
    assert not Path("runs/new").exists()


@pytest.mark.parametrize(
    "words", [("train", "mine.yaml", "name=new"), ("ablate", "study.yaml")], ids=["train", "ablate"]
)
def test_no_slurm_on_the_path_is_said(finished: Path, words: tuple[str, ...]) -> None:
    study = {"name": "new", "base": "mine.yaml", "variants": {"a": {}, "b": {"seed": 3}}}
    Path("study.yaml").write_text(yaml.safe_dump(study))
    Path("empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(Path("empty").resolve())}
    command = [sys.executable, "-m", "launch", *words, "--on", "slurm"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 2, result.stderr
    assert "no sbatch on the path; run it on a login node of the cluster, or use --on local" in result.stderr
    assert not Path("runs/new").exists()


def test_data_that_is_not_there_is_refused_before_anything_is_submitted(finished: Path) -> None:
    Path("faq.jsonl").rename("moved.jsonl")
    result = eyas("train", "mine.yaml", "name=new", "--on", "slurm")
    assert result.exit_code == 2
    assert "faq.jsonl: no such file" in result.stderr
    assert not Path("runs/new").exists()


# -------------------------------------------------------------------------------------------------------- a real Slurm


@pytest.fixture
def cluster(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder whose jobs run on a real Slurm; they are cancelled afterwards."""
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no Slurm answers: start one with tests/services/start_slurm.sh")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield finished
    for folder in Path("runs").iterdir():
        if jobs := jobs_of(folder):
            subprocess.run(["scancel", *jobs], check=True)


def submitted(*words: str) -> Path:
    """Submit; the run's folder."""
    result = eyas(*words)
    assert result.exit_code == 0, result.output
    name = next(word.removeprefix("name=") for word in words if word.startswith("name="))
    return Path("runs") / name


def wait(until: Callable[[], object], folder: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            said = {path.name: path.read_text()[-1500:] for path in (folder / "logs").glob("*.log")}
            pytest.fail(f"{queued(folder)}: {said}")
        time.sleep(0.3)


def logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


TRAIN = ("stages.0.steps=40", "stages.0.batch_size=8", "tracking.log_every=1", "tracking.checkpoint_every=1000")


@pytest.mark.slurm
@pytest.mark.timeout(1800)
def test_a_preempted_job_is_queued_again_and_ends_as_an_undisturbed_one(cluster: Path) -> None:
    calm = subprocess.Popen(
        [sys.executable, "-m", "launch", "train", "mine.yaml", "name=calm", *TRAIN, "--on", "local", "--procs", "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = submitted("train", "mine.yaml", "name=job", *TRAIN, "--on", "slurm", "--procs", "2", "--time", "30")
    refused = eyas("train", "mine.yaml", "name=job", "--on", "slurm")
    assert refused.exit_code == 2
    assert "in the queue" in refused.stderr

    wait(lambda: logged(folder) > 5, folder)
    assert "running" in eyas("status").stdout
    (job,) = jobs_of(folder)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)  # what Slurm does at the end of a job's time
    wait(lambda: "queued again" in (folder / "logs" / f"slurm-{job}.log").read_text(), folder)
    stopped_at = logged(folder)
    assert 5 < stopped_at < 40
    wait(lambda: not queued(folder), folder)
    assert read_json(folder / "run.json")["state"] == "done"
    log = (folder / "logs" / "rank-0.log").read_text()
    assert f"resumed from step {stopped_at} of 40" in log
    assert (folder / "logs" / "rank-1.log").is_file()
    assert read_json(folder / "environment.json")["ranks"] == 2
    assert calm.wait(timeout=600) == 0, calm.communicate()[0]
    assert weights(folder) == weights(Path("runs/calm"))


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_an_array_embeds_what_one_process_would(cluster: Path) -> None:
    shutil.rmtree("runs/cache/vectors")
    shutil.rmtree("runs/cache/steps")
    folder = submitted("embed", "mine.yaml", "name=array", "--on", "slurm", "--procs", "3")
    assert len(jobs_of(folder)) == 2, "one that prepares, and the array"
    wait(lambda: not queued(folder), folder)
    states = [read_json(path)["state"] for path in sorted(folder.glob("share-*/run.json"))]
    assert states == ["done"] * 3
    result = eyas("embed", "mine.yaml", "name=array")
    assert "embed  skipped" in result.stdout, result.output
    before = read_json(RUN / "steps" / "embed.json")["result"]
    after = read_json(folder / "steps" / "embed.json")["result"]
    assert after["identity"] == before["identity"]


@pytest.mark.slurm
@pytest.mark.timeout(300)
def test_a_study_runs_as_an_array_and_is_cancelled(cluster: Path) -> None:
    folder = Path("runs/study")
    commands = [["train", "mine.yaml", f"name=seed{seed}", f"seed={seed}", *TRAIN] for seed in range(3)]
    job = submit_array("study", commands, folder, Engine(on="slurm", procs=1), at_once=1, needs=[Path("faq.jsonl")])
    (script,) = folder.rglob("*.sbatch")
    assert str(Path("faq.jsonl").absolute()) in script.read_text(encoding="utf-8"), "every node must see it"
    wait(lambda: "running" in queued(folder), folder)
    assert f"{job}_[1-2%1] pending" in queued(folder)
    assert f"cancelled Slurm job {job}" in eyas("cancel", "study").stdout
    wait(lambda: not queued(folder), folder)
    again = eyas("cancel", "study")
    assert again.exit_code == 2
    assert "nothing works on it" in again.stderr


@pytest.mark.slurm
def test_what_the_cluster_lacks_is_refused_before_anything_is_submitted(cluster: Path) -> None:
    for words, said in [
        (["--partition", "mian"], "no such partition; did you mean 'main'"),
        (["--nodes", "5"], "has 1; use at most 1"),
        (["--gpus", "2"], "have 0 GPUs; use --procs"),
        (["--partition", "short", "--time", "5:00:00"], "jobs of partition short may take 10:00"),
        (["--sbatch=--qos=nowhere", "--sbatch=--nonsense"], "sbatch: "),
    ]:
        result = eyas("train", "mine.yaml", "name=new", "--on", "slurm", *words)
        assert result.exit_code == 2, result.output
        assert said in " ".join(result.stderr.split()), result.stderr
        assert not jobs_of(Path("runs/new"))


@pytest.mark.slurm
@pytest.mark.timeout(300)
def test_a_node_without_the_data_says_so(cluster: Path) -> None:
    folder = submitted("train", "mine.yaml", "name=moved", "--on", "slurm", "--sbatch=--hold")
    (job,) = jobs_of(folder)
    Path("faq.jsonl").rename("elsewhere.jsonl")  # as a node sees it that does not mount the folder
    subprocess.run(["scontrol", "release", job], check=True)
    log = folder / "logs" / f"slurm-{job}.log"
    wait(lambda: log.is_file() and "lacks" in log.read_text(), folder)
    assert f"lacks {Path('faq.jsonl').absolute()}; copy or mount it there" in log.read_text()
    wait(lambda: not queued(folder), folder)
    assert not (folder / "run.json").exists()
