"""Slurm: one readable script for each job, submitted when everything that can be checked here is in order.

A job that is asked to stop (preempted, or at the end of its time) writes a checkpoint, is queued again and goes on.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.readers import find_files
from embedding.config import load_config, suggest
from embedding.files import expanded, write_text
from launch.engine import LAUNCH, Engine, Job, absolute, inherited_path, python_words
from launch.queue import ask, note_jobs, queued
from launch.runs import holder, redacted, refuse_secrets
from train.recipe import Recipe

NOTICE = 120
"""Seconds before the end of its time that a job is told (SIGUSR1): enough for a checkpoint."""
SETTLE = 5
"""Seconds between the death of a process and the next attempt: its node may be about to leave."""


@dataclass(frozen=True)
class Script:
    """A job as it is submitted."""

    name: str
    tasks: Sequence[Sequence[str]]
    """The eyas command of each task of the array; a single one is a job without an array."""
    logs: Path
    """The folder of what the job prints, whole path."""
    needs: Sequence[Path] = ()
    """Files and folders that every node must see."""
    at_once: int | None = None
    """Tasks of the array that may run at the same time."""

    @property
    def many(self) -> bool:
        """Whether it is an array."""
        return len(self.tasks) > 1


def run(job: Job, engine: Engine) -> int:
    """Submit a job.

    Raises:
        ValueError: the recipe, the cluster or the run folder does not allow it; nothing was submitted.
    """
    recipe = load_config(Recipe, job.config, job.overrides)
    refuse_secrets(recipe.model_dump(mode="json"))
    folder = recipe.output / recipe.name
    needs = [path.absolute() for path in reads(recipe)]
    if not engine.dry_run:
        check_cluster(engine)
    if job.command in ("run", "train"):
        recipe.check_ranks(engine.nodes * engine.ranks)
    words, logs = absolute(job).words(), (folder / "logs").resolve()
    if job.command == "embed" and engine.nodes * engine.ranks > 1:
        # Prepared once, by one process; then every process is a task of its own, that starts whenever there is room.
        one = Engine(**{**vars(engine), "nodes": 1, "gpus": None, "procs": None})
        each = Engine(**{**vars(engine), "nodes": 1, "gpus": engine.gpus and 1, "procs": engine.procs and 1})
        prepare = Script(f"{recipe.name}-prepare", [["prepare", *words[1:]]], logs, needs)
        embed = Script(f"{recipe.name}-embed", [words] * (engine.nodes * engine.ranks), logs, needs)
        scripts = [(prepare, one), (embed, each)]
    else:
        size = engine if job.command in ("run", "train", "embed") else Engine(**{**vars(engine), "nodes": 1})
        scripts = [(Script(recipe.name, [words], logs, needs), size)]
    rendered = [(script.name, render(script, size)) for script, size in scripts]
    if engine.dry_run:
        _show(folder, rendered)
        return 0
    check_free(folder)
    jobs, files = submit(folder, rendered)
    note_jobs(folder, jobs, files, redacted(["eyas", *job.words()]))
    sys.stdout.write(f"submitted job {' and '.join(jobs)}: {' '.join(map(str, files))}\n")
    sys.stdout.write(f"`eyas status` says how far it is, `eyas cancel {recipe.name}` ends it; logs are in {logs}\n")
    return 0


def submit_array(
    name: str,
    commands: Sequence[Sequence[str]],
    folder: Path,
    engine: Engine,
    at_once: int | None = None,
    needs: Sequence[Path] = (),
) -> str:
    """Submit eyas commands (`["train", "mine.yaml", "seed=1"]`), each a task of one array and each on all of `engine`.

    The script and what is printed go to `folder`; every node must see `needs`. Returns the number of the job.

    Raises:
        ValueError: the cluster does not allow it; nothing was submitted.
    """
    check_cluster(engine)
    needs = [path.absolute() for path in needs]
    script = Script(name, [list(words) for words in commands], (folder / "logs").resolve(), needs, at_once)
    jobs, files = submit(folder, [(name, render(script, engine))])
    note_jobs(folder, jobs, files, ["array", name])
    return jobs[0]


# ---------------------------------------------------------------------------------------------------------- the script


def render(script: Script, engine: Engine) -> str:
    """The text of the script; `sbatch` takes it as it is."""
    number = "%A_%a" if script.many else "%j"
    options = {
        "job-name": script.name,
        "chdir": str(Path.cwd()),
        "nodes": engine.nodes,
        "ntasks-per-node": engine.ranks,
        "gpus-per-node": engine.gpus,
        "time": engine.time,
        "partition": engine.partition,
        "output": str(script.logs / f"slurm-{number}.log"),
        "open-mode": "append",
        "signal": f"USR1@{NOTICE}",
    }
    if script.many:
        options["array"] = f"0-{len(script.tasks) - 1}" + (f"%{script.at_once}" if script.at_once else "")
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in engine.sbatch)]
    setup = {**engine.environment(), **inherited_path()}
    port = engine.port or "$((10000 + SLURM_JOB_ID % 50000))"
    return "\n".join(
        [
            "#!/bin/bash",
            f"# Written by eyas: {script.name}, {engine.nodes} node(s) of {engine.ranks} process(es).",
            *lines,
            "",
            *(f"export {name}={shlex.quote(value)}" for name, value in setup.items()),
            '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
            "",
            *_check_nodes(script.needs),
            "# One attempt: a process per task of Slurm. When one ends with an error, its exit code is kept;",
            "# the others are ended then, with codes that say nothing.",
            f"export {LAUNCH}=$SLURM_JOB_ID",
            f"export FIRST={shlex.quote(str(script.logs))}/exit-$SLURM_JOB_ID",
            *_attempt(engine, str(port)),
            "",
            *_tasks(script.tasks),
            "",
            *_attempts(engine.restarts, script.logs),
            "",
        ]
    )


def _check_nodes(needs: Sequence[Path]) -> list[str]:
    if not needs:
        return []
    return [
        "# Every node must see what the recipe reads.",
        'srun --ntasks-per-node=1 --ntasks=$SLURM_NNODES bash -c \'for path in "$@"; do',
        '  [ -e "$path" ] || { echo "error: node $(hostname) lacks $path; copy or mount it there" >&2; exit 2; }',
        "done' check \\",
        f"  {' '.join(shlex.quote(str(path)) for path in needs)} || exit 2",
        "",
    ]


def _attempt(engine: Engine, port: str) -> list[str]:
    ranks = engine.nodes * engine.ranks
    meet = [
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export MASTER_PORT={port} WORLD_SIZE={ranks} LOCAL_WORLD_SIZE={engine.ranks}",
    ]
    return [
        *(meet if ranks > 1 else []),
        "attempt() {",
        '  rm -f "$FIRST"',
        "  srun --kill-on-bad-exit=1 bash -c '",
        "    trap : USR1 TERM",
        *(["    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID"] if ranks > 1 else []),
        '    "$@" || { code=$?; (set -o noclobber; echo $code >"$FIRST") 2>/dev/null; exit $code; }',
        f'  \' rank {shlex.join(python_words([]))} "$@"',
        "}",
    ]


def _tasks(tasks: Sequence[Sequence[str]]) -> list[str]:
    if len({tuple(words) for words in tasks}) == 1:
        return [f"command=({shlex.join(tasks[0])})"]
    cases = [f"  {number}) command=({shlex.join(words)}) ;;" for number, words in enumerate(tasks)]
    return ["case $SLURM_ARRAY_TASK_ID in", *cases, "esac"]


def _attempts(restarts: int, logs: Path) -> list[str]:
    return [
        "# 0: done; 3: too, but a task of the evaluation failed. 2: refused, the message says what to mend.",
        "# 75: asked to stop, with a checkpoint (138: too early).",
        "# Anything else: a process died; begin again from the newest checkpoint, a bounded number of times.",
        f"for restart in $(seq 0 {restarts}); do",
        '  attempt "${command[@]}"',
        "  code=$?",
        '  [ $code = 0 ] || code=$(cat "$FIRST" 2>/dev/null || echo $code)',
        "  case $code in",
        "    0 | 2 | 3) exit $code ;;",
        '    75 | 138) echo "asked to stop: queued again"; scontrol requeue "$SLURM_JOB_ID"; exit 0 ;;',
        "  esac",
        f'  echo "attempt ended with code $code, after $restart of {restarts} restarts; see {logs}" >&2',
        f"  sleep {SETTLE}",
        "done",
        "exit $code",
    ]


def _show(folder: Path, rendered: Sequence[tuple[str, str]]) -> None:
    depends = ""
    for name, text in rendered:
        sys.stdout.write(f"# {folder / f'{name}.sbatch'}\n{text}\n")
        sys.stdout.write(f"# sbatch --parsable {depends}{folder / f'{name}.sbatch'}\n")
        depends = f"--dependency=afterok:$JOB_OF_{re.sub('[^A-Za-z0-9]', '_', name)} --kill-on-invalid-dep=yes "


# ------------------------------------------------------------------------------------------------------- the submission


def submit(folder: Path, rendered: Sequence[tuple[str, str]]) -> tuple[list[str], list[Path]]:
    """Write scripts into a folder and submit them, each to begin when the one before ended well: jobs and files.

    Raises:
        ValueError: Slurm refuses; what was submitted before is cancelled.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    jobs: list[str] = []
    files = [folder / f"{name}.sbatch" for name, _ in rendered]
    for file, (_, text) in zip(files, rendered, strict=True):
        write_text(file, text)
        ask(["sbatch", "--test-only", str(file)])
    for file in files:
        depends = [f"--dependency=afterok:{jobs[-1]}", "--kill-on-invalid-dep=yes"] if jobs else []
        try:
            jobs.append(ask(["sbatch", "--parsable", *depends, str(file)]).strip().partition(";")[0])
        except ValueError:
            if jobs:
                ask(["scancel", *jobs])
            raise
    return jobs, files


def check_cluster(engine: Engine) -> None:
    """Find what the cluster cannot do before anything is submitted.

    Raises:
        ValueError: no Slurm here, no such partition, or it has fewer nodes or GPUs.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "--on slurm: there is no sbatch on the path; run it on a login node of the cluster, or use --on local"
        )
    rows = [line.split("|") for line in ask(["sinfo", "--noheader", "--format", "%P|%D|%G|%l"]).splitlines()]
    names = sorted({name.rstrip("*") for name, *_ in rows})
    if engine.partition is not None and engine.partition not in names:
        raise ValueError(f"--partition {engine.partition}: no such partition{suggest(engine.partition, names)}")
    chosen = [row for row in rows if row[0].rstrip("*") == engine.partition] or [r for r in rows if r[0].endswith("*")]
    if not chosen:
        raise ValueError(f"--partition: the cluster has no default partition; choose one of {', '.join(names)}")
    where = f"partition {chosen[0][0].rstrip('*')}"
    nodes = sum(int(row[1]) for row in chosen)
    if engine.nodes > nodes:
        raise ValueError(f"--nodes {engine.nodes}: {where} has {nodes}; use at most {nodes}, or another --partition")
    gpus = max(_gpus(row[2]) for row in chosen)
    if engine.gpus and engine.gpus > gpus:
        use = f"at most --gpus {gpus}" if gpus else "--procs N for processes on CPUs"
        raise ValueError(f"--gpus {engine.gpus}: the nodes of {where} have {gpus} GPUs; use {use}, or more --nodes")
    if engine.time is not None and minutes(engine.time) > max(minutes(row[3]) for row in chosen):
        raise ValueError(
            f"--time {engine.time}: jobs of {where} may take {chosen[0][3]}; use that, or another --partition"
        )


def minutes(text: str) -> float:
    """A time as Slurm writes it (sbatch, --time): minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S, or `infinite`.

    Raises:
        ValueError: it is none.
    """
    if text == "infinite":
        return float("inf")
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise ValueError(f"--time {text}: expected a time such as 90 (minutes), 4:00:00 or 2-12 (days and hours)")
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is None and len(numbers) < 3:
        return numbers[0] + (numbers[1] / 60 if len(numbers) > 1 else 0)
    hours, mins, seconds = (*numbers, 0, 0)[:3]
    return 1440 * int(days or 0) + 60 * hours + mins + seconds / 60


def _gpus(resources: str) -> int:
    """GPUs in what sinfo calls generic resources, such as `gpu:a100:4(S:0-1),gpu:h100:8`."""
    return sum(int(count) for count in re.findall(r"gpu(?::[^,:(]+)?:(\d+)", resources))


def check_free(folder: Path) -> None:
    """Whether nobody works on a run folder or waits for it.

    Raises:
        ValueError: somebody does; says who.
    """
    if waiting := queued(folder):
        raise ValueError(
            f"{folder}: a job of this run is in the queue ({waiting}); `eyas cancel {folder.name}` ends it"
        )
    if who := holder(folder):
        raise ValueError(f"{folder}: process {who['pid']} on {who['host']} works on it; wait, or use another name=…")


def reads(recipe: Recipe) -> list[Path]:
    """The files and folders of this machine that a recipe reads, and that every node must see.

    Raises:
        ValueError: one is missing here already.
    """
    found: list[Path] = []
    for source in recipe.data.sources:
        pattern = getattr(source, "path", None)
        if pattern is not None:
            found += find_files(str(pattern))[:1]
    if recipe.suite.folder is not None:
        found.append(recipe.suite.folder)
    for model in (recipe.teacher.model, getattr(recipe.student.start, "model", None)):
        if model and model.startswith((".", "/", "~", "$")):
            found.append(Path(expanded(model)))
    for path in found:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder, and the recipe reads it")
    return list(dict.fromkeys(found))
