"""Several processes on this machine through the command: the same model, a lost rank, what is refused."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from embedding.config import CONFIGS
from embedding.files import read_json
from launch.engine import accelerate_environment
from launch.runs import hold
from tests.launch.conftest import RUN, eyas

ROOT = Path(__file__).parents[2]
HANGUP = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
"""Runs its words as a process that a hangup reaches, also where these tests run under nohup."""
TRAIN = ("stages.0.batch_size=8", "tracking.log_every=1", "tracking.checkpoint_every=5")


def start(*words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "launch", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rest(process: subprocess.Popen[str]) -> str:
    """All it says from here on, until it ends. Not `communicate`: that passes by the lines which reading one by one has
    taken into its buffer already."""
    assert process.stdout is not None
    said = process.stdout.read()
    process.wait(60)
    return said


def end(process: subprocess.Popen[str]) -> str:
    """What it said; it must end well."""
    output = rest(process)
    assert process.returncode == 0, output
    return output


def weights(name: str) -> Path:
    return Path("runs", name, "model", "model.safetensors")


def wait_for_step(name: str, step: int, process: subprocess.Popen[str], seconds: float = 180) -> None:
    log, until = Path("runs", name, "metrics.jsonl"), time.monotonic() + seconds
    while not log.is_file() or len(log.read_text().splitlines()) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, f"{name} did not come to step {step}"
        time.sleep(0.02)


def rank_process(number: int, parent: subprocess.Popen[str]) -> psutil.Process:
    """The process of a rank below its launcher."""
    for child in psutil.Process(parent.pid).children(recursive=True):
        if child.environ().get("RANK") == str(number) and "launch" in child.cmdline():
            return child
    raise AssertionError(f"no rank {number} below process {parent.pid}")


@pytest.mark.timeout(900)
def test_two_processes_end_where_one_does_and_where_a_job_that_lost_a_rank_does(finished: Path) -> None:
    steps = "stages.0.steps=24"
    calm = start("train", "mine.yaml", "name=calm", steps, *TRAIN, "--on", "local", "--procs", "2")
    lost = start("train", "mine.yaml", "name=lost", steps, *TRAIN, "--on", "local", "--procs", "2", "--restarts", "1")

    wait_for_step("lost", 12, lost)
    rank_process(1, lost).kill()
    killed_at = time.monotonic()
    assert lost.stdout is not None
    said = next(line for line in lost.stdout if "rank 1 was killed (SIGKILL)" in line)
    assert time.monotonic() - killed_at < 60, said
    output = end(lost)
    assert "starting again from the newest checkpoint: restart 1 of 1" in output
    assert "resumed from step" in output
    end(calm)
    assert weights("lost").read_bytes() == weights("calm").read_bytes(), "bit for bit"

    alone = eyas("train", "mine.yaml", "name=alone", steps, *TRAIN)
    assert alone.exit_code == 0, alone.output
    one, two = load_file(weights("alone")), load_file(weights("calm"))
    start_weights = load_file(RUN / "model" / "model.safetensors")
    moved = sum(float((one[name] - start_weights[name]).square().sum()) for name in one) ** 0.5
    apart = sum(float((one[name] - two[name]).square().sum()) for name in one) ** 0.5
    assert apart < 1e-2 * moved, "other sums of the same numbers, no more"
    torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-3)

    facts = read_json(Path("runs/calm/environment.json"))
    assert facts["ranks"] == 2
    assert {path.name for path in Path("runs/calm/logs").iterdir()} == {"rank-0.log", "rank-1.log"}


@pytest.mark.timeout(600)
def test_two_processes_train_where_no_loss_looks_through_the_map(finished: Path) -> None:
    """DDP waits for every gradient that is to come, and the map's never does."""
    start_from = "student.start={kind: built, layers: 1, width: 32, heads: 2, kv_heads: 1, embeddings: random}"
    losses = "stages.0.losses=[{kind: info_nce}]"
    words = ("train", "mine.yaml", "name=contrast", start_from, losses, "stages.0.steps=4", *TRAIN)
    end(start(*words, "--on", "local", "--procs", "2"))
    assert read_json(Path("runs/contrast/environment.json"))["ranks"] == 2
    assert weights("contrast").is_file()


@pytest.mark.timeout(600)
def test_a_job_asked_to_stop_and_one_refused_do_not_begin_again(finished: Path) -> None:
    words = ("train", "mine.yaml", "--on", "local", "--procs", "2")
    refused = start(*words, "name=refused", "stages.0.batch_size=512")
    stopped = start(*words, "name=stopped", "stages.0.steps=2000", *TRAIN)
    wait_for_step("stopped", 3, stopped)
    stopped.send_signal(signal.SIGUSR1)
    output, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == os.EX_TEMPFAIL, output
    assert output.count("asked to stop: checkpoint of step") == 1
    assert read_json(Path("runs/stopped/run.json"))["state"] == "stopped"

    output, _ = refused.communicate(timeout=120)
    assert refused.returncode == 2, output
    assert output.count("error: ") == 1
    assert "batch_size 512" in output
    assert "starting again" not in output


@pytest.mark.timeout(600)
def test_one_process_begins_again_when_it_is_killed_and_not_when_it_is_asked_to_stop(finished: Path) -> None:
    words = ("train", "mine.yaml", "name=single", *TRAIN, "--on", "local", "--procs", "1")
    process = start(*words, "stages.0.steps=2000", "--restarts", "1")
    wait_for_step("single", 6, process)
    child = rank_process(0, process)
    assert [found.pid for found in psutil.Process(process.pid).children()] == [child.pid], "no launcher between"
    child.kill()
    assert process.stdout is not None
    said = [next(line for line in process.stdout if "resumed from step" in line)]
    process.send_signal(signal.SIGINT)
    output = rest(process)
    assert process.returncode == 130, output
    assert not child.is_running()
    assert output.count("starting again") == 0, said
    assert read_json(Path("runs/single/run.json"))["state"] == "stopped"

    end(start(*words, "stages.0.steps=8", "--restart"))
    assert weights("single").is_file()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("procs", ["1", "2"])
def test_a_terminal_that_is_gone_asks_to_stop_and_under_nohup_does_not(procs: str, finished: Path) -> None:
    words = ("train", "mine.yaml", *TRAIN, "stages.0.steps=2000", "--on", "local", "--procs", procs)
    kept = start(*words, "name=kept", before=("nohup",))
    wait_for_step("kept", 3, kept)
    kept.send_signal(signal.SIGHUP)
    wait_for_step("kept", len(Path("runs/kept/metrics.jsonl").read_text().splitlines()) + 5, kept)
    kept.send_signal(signal.SIGTERM)
    assert "asked to stop: checkpoint of step" in rest(kept)
    hung = start(*words, "name=kept", before=(sys.executable, "-c", HANGUP))
    wait_for_step("kept", len(Path("runs/kept/metrics.jsonl").read_text().splitlines()) + 1, hung)
    hung.send_signal(signal.SIGHUP)
    output = rest(hung)
    assert (hung.returncode, output.count("asked to stop: checkpoint of step")) == (os.EX_TEMPFAIL, 1), output


# ------------------------------------------------------------------------------------------------------------- refused


def test_two_jobs_on_one_run_folder_are_refused(finished: Path) -> None:
    with hold(RUN):
        second = start("run", "mine.yaml")
        said, _ = second.communicate(timeout=240)
    assert second.returncode == 2
    assert f"process {os.getpid()} on {socket.gethostname()}" in said
    assert "eyas cancel tiny" in said
    assert eyas("run", "mine.yaml").exit_code == 0


def test_a_port_in_use_is_refused(finished: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        result = eyas("train", "mine.yaml", "name=new", "--on", "local", "--procs", "2", "--port", port)
    assert result.exit_code == 2
    assert f"--port {port}: cannot be used" in result.stderr
    assert not Path("runs/new").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--on", "locl"], "no such engine; did you mean 'local'"),
        (["--on", "local", "--gpus", "99"], "--gpus 99: this machine has"),
        (["--on", "local", "--gpus", "2", "--procs", "2"], "exclude each other"),
        (["--on", "local", "--nodes", "2"], "--on slurm"),
        (["--on", "local", "--time", "10"], "--time is for --on slurm"),
        (["--on", "local", "--procs", "0"], "expected a number from 1"),
        (["--on", "local", "--accelerate", "fsdp3"], "did you mean 'fsdp2'"),
        (["--procs", "2"], "--procs: needs an engine; add --on local"),
    ],
)
def test_what_cannot_be_started_is_refused(finished: Path, words: list[str], said: str) -> None:
    result = eyas("train", "mine.yaml", "name=new", *words)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert not Path("runs/new").exists()


# -------------------------------------------------------------------------------------------------- what would be run


def test_a_dry_run_prints_a_command_that_torchrun_takes(finished: Path) -> None:
    result = eyas("train", "mine.yaml", "name=it's", "--on", "local", "--procs", "2", "--dry-run")
    assert result.exit_code == 0, result.output
    assert " torchrun --rdzv-backend c10d " in result.stdout
    assert result.stdout.rstrip().endswith("""-m launch train mine.yaml 'name=it'"'"'s'""")
    subprocess.run(["bash", "-n"], input=result.stdout, text=True, check=True)


def test_one_process_needs_no_launcher(finished: Path) -> None:
    said = eyas("train", "mine.yaml", "--on", "local", "--procs", "1", "--dry-run").stdout
    assert said.rstrip().endswith(f"RANK=0 WORLD_SIZE=1 {sys.executable} -m launch train mine.yaml")
    for words in (["--port", "29512"], ["--accelerate", "fsdp2"]):
        assert " torchrun " in eyas("train", "mine.yaml", "--on", "local", "--procs", "1", "--dry-run", *words).stdout


@pytest.mark.parametrize("name", ["one_gpu", "ddp", "fsdp2", "multi_node"])
def test_an_accelerate_config_means_what_accelerate_makes_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import _validate_launch_command

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    path = CONFIGS / "accelerate" / f"{name}.yaml"
    words = ["--config_file", str(path), "--num_processes", "2", "--num_machines", "1", "train.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.mixed_precision = arguments.mixed_precision or "bf16"
    theirs = prepare_multi_gpu_env(arguments)
    ours = accelerate_environment(name)
    assert {key: theirs[key] for key in ours} == ours
    assert ("ACCELERATE_USE_FSDP" in ours) == (name == "fsdp2")


@pytest.mark.parametrize(
    "values, said",
    [
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}", "distributed_type DEEPSPEED"),
        ("distributed_type: MULTI_GPU\ngradient_accumulation_steps: 8", "no accumulated gradients"),
        ("distributed_type: 'NO'\nfp8_config: {backend: TE}", "sections fp8_config"),
    ],
)
def test_what_the_training_does_not_do_is_refused(tmp_path: Path, values: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{values}\nmixed_precision: bf16\n")
    with pytest.raises(ValueError, match=said):
        accelerate_environment(str(path))
    path.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nfsdp_config: {}\nmixed_precision: bf16\n"
    )
    assert accelerate_environment(str(path)) == {"ACCELERATE_MIXED_PRECISION": "bf16"}
