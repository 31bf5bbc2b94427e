"""Jobs that were submitted for a run: `job.json` in its folder, the queue's word on them, and how to end them."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from embedding.files import read_json, write_json
from launch.runs import JOB, holder, now, read_run


def note_jobs(folder: Path, jobs: Sequence[str], scripts: Sequence[Path], command: Sequence[str]) -> None:
    """Say in the run folder which jobs were submitted for it."""
    facts = {"engine": "slurm", "jobs": list(jobs), "scripts": [str(path) for path in scripts]}
    write_json(folder / JOB, {**facts, "command": list(command), "submitted": now()})


def jobs_of(folder: Path) -> list[str]:
    """The jobs last submitted for a run, whatever became of them."""
    path = folder / JOB
    return list(read_json(path)["jobs"]) if path.is_file() else []


def queued(folder: Path) -> str:
    """What the queue says of a run's jobs: `12 running 0:41, 13 pending (Dependency)`; "" where it holds none."""
    jobs = jobs_of(folder)
    if not jobs:
        return ""
    if shutil.which("squeue") is None:
        if read_run(folder, folder.parent).state == "done":
            return ""
        return f"{' '.join(jobs)} (no squeue on this machine)"
    asked = ask(["squeue", "--noheader", "--jobs", ",".join(jobs), "--format", "%i|%T|%M|%r"], check=False)
    found = []
    for line in asked.splitlines():
        job, state, spent, reason = line.split("|")
        found.append(f"{job} {state.lower()} " + (spent if reason == "None" else f"({reason})"))
    return ", ".join(found)


def cancel_run(folder: Path) -> str:
    """End what works on a run or waits for it; says what was done.

    Raises:
        ValueError: nothing does, or it does on another machine.
    """
    waiting, who = queued(folder), holder(folder)
    if waiting and shutil.which("scancel") is not None:
        jobs = jobs_of(folder)
        # It sends SIGTERM first, on which a training writes its checkpoint, and kills after Slurm's own KillWait.
        ask(["scancel", *jobs])
        return f"cancelled Slurm job {' and '.join(jobs)}"
    if waiting and not who:
        raise ValueError(f"{folder}: Slurm jobs {waiting}; run eyas cancel where they were submitted")
    if not who:
        raise ValueError(f"{folder}: nothing works on it; it is {read_run(folder, folder.parent).state}")
    if who["host"] != socket.gethostname():
        raise ValueError(f"{folder}: process {who['pid']} on {who['host']} works on it; run eyas cancel there")
    os.kill(who["pid"], signal.SIGTERM)
    return f"asked process {who['pid']} to stop: a training writes a checkpoint first"


def ask(words: Sequence[str], *, check: bool = True) -> str:
    """What a command of the cluster prints.

    Raises:
        ValueError: it fails, and `check` is set; says what it said.
    """
    asked = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and asked.returncode:
        raise ValueError(f"{words[0]}: {(asked.stderr or asked.stdout).strip()}")
    return asked.stdout
