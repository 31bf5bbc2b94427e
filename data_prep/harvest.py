"""The embedded default corpus: docstrings of the standard library and the installed packages.

What is harvested depends on the installed files, the seed and the sizes asked for, never on the order in which the
file system lists them or on the number of processes.
"""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

from data_prep.clean import digest, order
from data_prep.docstrings import Docstring, Module
from embedding.machine import cores

# Tests have few docstrings with a body, and are a quarter of all code.
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"})
STANDARD_LIBRARY = "python"
MODULES_PER_TASK = 24
PER_MODULE = 16
"""Held-out pairs of one module: enough siblings to tell apart, no module that fills the corpus."""


class Harvest(NamedTuple):
    """Pairs to train on, pairs of held-out modules, and what was read and dropped."""

    train: list[Docstring]
    heldout: list[Docstring]
    counts: Counter[str]
    """modules, modules read, modules not parsable, duplicate, repeats a held-out text."""


def package_roots() -> list[Path]:
    """The folders of the running interpreter's standard library and of its installed packages."""
    paths = sysconfig.get_paths()
    roots = [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return list(dict.fromkeys(root.resolve() for root in roots if root.is_dir()))


def find_modules(roots: Sequence[Path]) -> list[Module]:
    """Every Python file below `roots`, sorted by name; of two with one name, the one of the earlier root."""
    found: dict[str, Module] = {}
    standard = {Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib")}
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
            parts = Path(folder).relative_to(root).parts
            # An __init__.py before a module that would have the same name, whatever the file system lists first.
            for file in sorted(file for file in files if file.endswith(".py")):
                name = ".".join(parts if file == "__init__.py" else (*parts, file.removesuffix(".py")))
                package = STANDARD_LIBRARY if root in standard else name.split(".")[0]
                found.setdefault(name, Module(name, package, str(Path(folder, file))))
    return sorted(module for module in found.values() if module.name)


@cache
def installed_digest() -> str:
    """A hash of the names and contents of all modules that are harvested; taken once in a process."""
    whole = hashlib.sha256()
    for module in find_modules(package_roots()):
        whole.update(f"{module.package} {module.name}\n".encode("utf-8", "surrogateescape"))
        whole.update(hashlib.blake2b(Path(module.path).read_bytes(), digest_size=16).digest())
    return whole.hexdigest()[:16]


def harvest(
    limit: int | None = None,
    *,
    seed: int = 0,
    share: float = 0.0,
    heldout: int = 0,
    roots: Sequence[Path] | None = None,
    workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Harvest:
    """Distinct pairs from all installed code, or a deterministic sample of it by module.

    Modules are read in an order that the seed decides, so a small sample costs a small part of the time. A module
    belongs to the held-out side when a hash of its name says so, the same for every seed; a training pair whose summary
    or body stands on the held-out side, whatever its case and punctuation, is dropped.

    Args:
        limit: how many training pairs; None for all.
        share: the share of modules held out.
        heldout: how many held-out pairs to collect, at most a few from each module.
        roots: the folders to read; None for the standard library and the installed packages.
        workers: processes; None for one a core.
        report: told now and then how much is done of how much.
    """
    modules = find_modules(package_roots() if roots is None else roots)
    modules.sort(key=lambda module: order(2 * seed, module.name))
    border = int(share * 2**64)
    # An odd number, so that no seed reads these first: a source that holds nothing out would train on them.
    held = {module.name for module in modules if order(1, module.name) < border}
    counts: Counter[str] = Counter({"modules": len(modules)})
    test: list[Docstring] = []
    train: list[Docstring] = []
    seen: set[tuple[int, int]] = set()
    with _Readers(workers) as readers:
        if heldout:
            for found in readers.read([module for module in modules if module.name in held], counts):
                test += _spread(found)
                if len(test) >= heldout:
                    break
        del test[heldout:]
        forbidden = {digest(text) for pair in test for text in (pair.summary, pair.body)}
        for found in readers.read([module for module in modules if module.name not in held], counts):
            for pair in found:
                key = digest(pair.summary), digest(pair.body)
                if key in seen:
                    counts["duplicate"] += 1
                elif not forbidden.isdisjoint(key):
                    counts["repeats a held-out text"] += 1
                else:
                    seen.add(key)
                    train.append(pair)
            if report and limit is not None:
                report(min(len(train), limit), limit)
            elif report:
                report(counts["modules read"], len(modules))
            if limit is not None and len(train) >= limit:
                break
    return Harvest(train[:limit], test, counts)


def _spread(pairs: list[Docstring]) -> list[Docstring]:
    """At most PER_MODULE pairs with distinct bodies, evenly over the module."""
    distinct = list({digest(pair.body): pair for pair in reversed(pairs)}.values())[::-1]
    step = max(1.0, len(distinct) / PER_MODULE)
    return [distinct[int(i * step)] for i in range(min(len(distinct), PER_MODULE))]


class _Readers:
    """Worker processes that read modules, and the threads that talk to them.

    Plain programs rather than `multiprocessing`: a forked process inherits the caller's threads broken, and a spawned
    one imports the caller's main module, with everything that a training framework brings.
    """

    def __init__(self, workers: int | None) -> None:
        self._threads = ThreadPoolExecutor(workers or cores(), initializer=self._start)
        self._mine = threading.local()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def read(self, modules: list[Module], counts: Counter[str]) -> Iterator[list[Docstring]]:
        """The pairs of each module, in the order given."""
        tasks = [modules[i : i + MODULES_PER_TASK] for i in range(0, len(modules), MODULES_PER_TASK)]
        for results in self._threads.map(self._ask, tasks):
            for found in results:
                counts["modules read"] += 1
                counts["modules not parsable"] += found is None
                yield [Docstring(*pair) for pair in found or ()]

    def _start(self) -> None:
        home = str(Path(__file__).resolve().parents[1])
        environment = os.environ | {"PYTHONPATH": home, "PYTHONIOENCODING": "utf-8"}
        self._mine.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "data_prep.docstrings"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C is for the caller; a worker ends when its input does
        )
        self._processes.append(self._mine.process)

    def _ask(self, modules: list[Module]) -> list[list[list[str]] | None]:
        process = self._mine.process
        try:
            process.stdin.write(json.dumps(modules) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"a process that reads docstrings died (exit code {process.wait()}) near {modules[0]}")
        results: list[list[list[str]] | None] = json.loads(answer)
        return results
