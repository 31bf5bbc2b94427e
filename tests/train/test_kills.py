"""Runs that are asked to stop, killed, or lose a rank: real signals to real processes, and bit for bit the same end."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.multiprocessing import ProcessExitedException

from benchmarks.processes import run_ranks, start
from benchmarks.resume import EVERY, PREEMPTED, logged, newest, outcome, run_to_end

ROOT = Path(__file__).parents[2]
STEPS = 16


def wait_for(run: Path, step: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not (lines := logged(run)) or lines[-1]["step"] < step:
        assert time.monotonic() < until, f"{run} did not reach step {step}"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on_from_there(
    number: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    undisturbed = start(run_to_end, str(folder), str(whole), STEPS)
    process = start(run_to_end, str(folder), str(stopped), STEPS)
    wait_for(stopped, EVERY + 1)
    os.kill(process.pid or 0, number)
    process.join(timeout=60)
    assert process.exitcode == PREEMPTED
    assert EVERY < newest(stopped) == logged(stopped)[-1]["step"] < STEPS

    process = start(run_to_end, str(folder), str(stopped), STEPS)
    for one in (process, undisturbed):
        one.join(timeout=60)
        assert one.exitcode == 0
    assert outcome(stopped) == outcome(whole)


def stopped_on_one_rank(folder: str, run: str) -> None:
    if os.environ["RANK"] == "1":
        _signal_at(Path(run), 2 * EVERY + 1, signal.SIGTERM)
    run_to_end(folder, run, STEPS)


def _signal_at(run: Path, step: int, number: signal.Signals) -> None:
    """Signal this very process once the run has logged a step."""

    def watch() -> None:
        wait_for(run, step)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


def test_a_rank_that_dies_ends_the_job_and_the_next_one_goes_on(folder: Path, tmp_path: Path) -> None:
    """Rank 1 is killed under torchrun; then one of two ranks is asked to stop; then both go to the end."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_ranks(2, run_to_end, str(folder), str(whole), STEPS)

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    begun = time.monotonic()
    job = subprocess.run(
        [*torchrun, __file__, str(folder), str(killed)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert job.returncode != 0
    assert "Signal 9 (SIGKILL)" in job.stderr, job.stderr[-2000:]
    assert "local_rank: 1" in job.stderr
    ended = (killed / "metrics.jsonl").stat().st_mtime
    assert time.time() - ended < 60, f"the job outlived its rank; it took {time.monotonic() - begun:.0f} s in all"
    assert EVERY <= newest(killed) < STEPS

    with pytest.raises(ProcessExitedException) as stop:
        run_ranks(2, stopped_on_one_rank, str(folder), str(killed))
    assert stop.value.exit_code == PREEMPTED
    assert 2 * EVERY < newest(killed) < STEPS

    run_ranks(2, run_to_end, str(folder), str(killed), STEPS)
    assert outcome(killed) == outcome(whole)


if __name__ == "__main__":  # what torchrun starts on each rank
    if os.environ["RANK"] == "1":
        _signal_at(Path(sys.argv[2]), EVERY + 2, signal.SIGKILL)
    run_to_end(sys.argv[1], sys.argv[2], STEPS)
