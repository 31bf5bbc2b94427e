"""A run is a folder: who works in it now, what made it, and how it ended."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from embedding.files import read_json, read_log, write_json

MADE_READY = ("prepare", "embed", "mine", "tokenize")
"""Steps after which the model of a run is still that of the training before."""
RECORD, ENVIRONMENT, LOCK, JOB = "run.json", "environment.json", "lock", "job.json"
PACKAGES = ("eyas", "torch", "transformers", "accelerate", "datasets", "numpy", "mteb", "sentence-transformers", "peft")
SECRET = re.compile(r"(?i)(^|[._-])((api|access|secret|private)[_-]?key|token|secret|password|passwd|credentials?)$")
"""The last word of a name that holds a secret: HF_TOKEN, WANDB_API_KEY, teacher.parameters.api_key; not max_tokens."""
IN_URL = re.compile(r"(?<=://)[^/@\s:]+:[^/@\s]+(?=@)")
CHECKOUT = Path(__file__).resolve().parents[1]


# ------------------------------------------------------------------------------------------------- one job at a time


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process until the block ends; the lock goes with the process, however it ends.

    Raises:
        ValueError: another process holds it; says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if not _lock(file):
            raise ValueError(
                f"{folder}: another job works on this run ({_said(holder(folder))}); wait for it, stop it with "
                f"`eyas cancel {folder.name}`, or give this one another name=…"
            )
        file.truncate(0)
        json.dump(_holder(), file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _lock(file: TextIO) -> bool:
    """Try for a second: whoever only looks at a run locks it for a moment too."""
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
    return False


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the run folder now: {pid, host, since, slurm}; None where nobody does."""
    path = folder / LOCK
    if not path.is_file():
        return None
    with path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read()
            return dict(json.loads(text)) if text else {}
    return None


def _holder() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now(), "slurm": os.environ.get("SLURM_JOB_ID")}


def _said(who: dict[str, Any] | None) -> str:
    if not who:
        return "it has just begun"
    job = f", Slurm job {who['slurm']}" if who["slurm"] else ""
    return f"process {who['pid']} on {who['host']}{job}, since {who['since']}"


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")


# ------------------------------------------------------------------------------------------------ what the folder says


@dataclass
class RunRecord:
    """Writes `run.json` and `environment.json` from the first step that does something: a run that only skips leaves
    them as they are."""

    folder: Path
    command: Sequence[str]
    facts: dict[str, Any] = field(default_factory=dict)

    def begin(self, step: str) -> None:
        """A step begins to work."""
        if not self.facts:
            self.facts = {"started": now(), "command": redacted(self.command), "folder": str(Path.cwd()), **_holder()}
            if not (self.folder / f".{RECORD}").exists():
                self._put_aside()
            write_json(self.folder / ENVIRONMENT, environment())
        self._write(state="running", step=step)

    def end(self, state: str, error: str = "", made_from: dict[str, Any] | None = None) -> None:
        """The run ends as `done`, `stopped` (to go on later), `refused` (the user can mend it) or `failed`.

        One that ends before a step began to work says nothing of the run that the folder holds already.
        """
        if not self.facts:
            if state == "done" or (self.folder / RECORD).is_file():
                return
            self.facts = {"started": now(), "command": redacted(self.command), "step": ""}
        extra: dict[str, Any] = {"ended": now()} | ({"error": scrubbed(error)} if error else {})
        self._write(state=state, **extra, **({"made_from": made_from} if made_from else {}))
        if state == "done" and self.facts["step"] not in MADE_READY:
            self._put_aside()

    def _put_aside(self) -> None:
        """Copy the records, for `keep_finished`: commands that do not get as far as another training may come before
        it, and write their own."""
        for name in (RECORD, ENVIRONMENT):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, self.folder / f".{name}")

    def _write(self, **facts: Any) -> None:
        self.facts |= facts
        write_json(self.folder / RECORD, self.facts)


def redacted(words: Sequence[str]) -> list[str]:
    """A command line without the values of keys that name a secret, and without the secrets of the environment."""
    found = []
    for word in words:
        key, equals, _ = word.partition("=")
        found.append(f"{key}=…" if equals and SECRET.search(key) else scrubbed(word))
    return found


def scrubbed(text: str) -> str:
    """A text without the values of environment variables that name a secret, and without passwords in addresses."""
    for name, value in os.environ.items():
        if len(value.strip()) >= 8 and SECRET.search(name):
            text = text.replace(value.strip(), "…")
    return IN_URL.sub("…", text)


def refuse_secrets(value: Any, place: str = "") -> None:
    """A recipe is copied into artefacts, so it must hold no secret; `value` is the recipe as plain values.

    Raises:
        ValueError: a key that names a secret has a value, or an address holds a password.
    """
    if isinstance(value, dict):
        for key, below in value.items():
            where = f"{place}.{key}" if place else str(key)
            if below and isinstance(below, str) and SECRET.search(where):
                raise ValueError(
                    f"{where}: a secret in a recipe would be written into artefacts; put it into an environment "
                    "variable (an endpoint's key: the one that teacher.key_env names)"
                )
            refuse_secrets(below, where)
    elif isinstance(value, list):
        for position, below in enumerate(value):
            refuse_secrets(below, f"{place}.{position}")
    elif isinstance(value, str) and IN_URL.search(value):
        raise ValueError(f"{place}: the address holds a password; put it into an environment variable")


def environment() -> dict[str, Any]:
    """Where a run runs: machine, versions, git state. No environment variables: they hold secrets."""
    import torch

    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": versions,
        "git": {"eyas": git_state(CHECKOUT), "working folder": git_state(Path.cwd())},
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and changed files of the checkout that holds a folder; None outside of one."""

    def ask(*words: str) -> str | None:
        try:
            asked = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        except OSError:
            return None  # no git on this machine
        return asked.stdout.rstrip() if asked.returncode == 0 else None  # a status may begin with a blank

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = [line[3:] for line in (ask("status", "--porcelain", "--untracked-files=no") or "").splitlines()]
    return {"commit": commit, "branch": ask("rev-parse", "--abbrev-ref", "HEAD"), "changed": changed}


def keep_finished(folder: Path) -> Path:
    """A copy of a finished run beside it, `NAME.1`, `NAME.2`, …: its own folder will be written over.

    Large files are linked, not copied: they are only ever replaced as a whole.
    """
    number = 1
    while (kept := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    aside = folder.with_name(f".{kept.name}")
    shutil.rmtree(aside, ignore_errors=True)
    ignored = shutil.ignore_patterns(LOCK, JOB, "*.sbatch")  # the job is that of the run to come
    shutil.copytree(folder, aside, copy_function=_link_or_copy, ignore=ignored)
    for name in (RECORD, ENVIRONMENT):
        if (aside / f".{name}").is_file():
            (aside / f".{name}").replace(aside / name)
            (folder / f".{name}").unlink()
    aside.rename(kept)
    return kept


def _link_or_copy(source: str, target: str) -> str:
    if source.endswith(".safetensors"):
        with contextlib.suppress(OSError):  # this file system knows no links
            os.link(source, target)
            return target
    return shutil.copy2(source, target)


# ------------------------------------------------------------------------------------------------------ looking at runs


@dataclass(frozen=True)
class Run:
    """What the folder of a run says of it."""

    folder: Path
    name: str
    state: str
    """running at STEP, done, stopped at, failed at, refused at or killed at STEP; submitted or prepared."""
    score: float | None
    retention: float | None
    tokens_per_s: float | None
    step: int | None
    record: dict[str, Any]


def find_runs(folder: Path) -> list[Run]:
    """Every run below a folder, newest first."""
    found = {path for pattern in (RECORD, JOB, "config.yaml") for path in folder.rglob(pattern)}
    paths = {path.parent for path in found if _visible(path, folder) and path.parent.name != "configs"}
    return [read_run(path, folder) for path in sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True)]


def _visible(path: Path, below: Path) -> bool:
    parts = path.relative_to(below).parts[:-1]
    return bool(parts) and not any(part.startswith(".") or part in ("cache", "wandb") for part in parts)


def read_run(path: Path, below: Path) -> Run:
    """One run; its name is its folder as seen from `below`."""
    record = dict(read_json(path / RECORD)) if (path / RECORD).is_file() else {}
    card = read_json(path / "scorecard.json") if (path / "scorecard.json").is_file() else None
    lines = metrics(path)
    speeds = [line["tokens_per_s"] for line in lines if "tokens_per_s" in line]
    return Run(
        folder=path,
        name=str(path.relative_to(below)),
        state=_state(path, record),
        score=card["means"]["task_type"]["student"] if card else None,
        retention=card["means"]["retention"] if card else None,
        tokens_per_s=median(speeds) if speeds else None,
        step=max((line["step"] for line in lines), default=None),
        record=record,
    )


def _state(path: Path, record: dict[str, Any]) -> str:
    at = f" at {record['step']}" if record.get("step") else ""
    if holder(path) is not None:
        return f"running{at}"
    if not record:
        return "done" if (path / "report.html").is_file() else "submitted" if (path / JOB).is_file() else "prepared"
    if record["state"] == "running":
        return f"killed{at}"
    return "done" if record["state"] == "done" else f"{record['state']}{at}"


def metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's training log, by step."""
    log = path / "metrics.jsonl"
    return read_log(log) if log.is_file() else []
