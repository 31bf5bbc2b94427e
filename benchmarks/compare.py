"""Both sides of `benchmarks.sides` in processes of their own, taking turns, the peer at its best setting.

That is MultipleNegativesRankingLoss, or its cached form with the mini-batch, in texts or in tokens, that is fastest in
this run; on a GPU also the fastest attention that is installed, and compiled layers where they are faster. The search
runs on a quarter of a batch. That favours the plain loss, whose padding grows with the batch, so where it loses there
it needs no second look.

On a CPU the sides take turns step by step, since the machine's speed drifts. On a GPU one comes after the other: each
is to have all of the memory.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.common import say
from benchmarks.sides import ATTENTION, PLAIN, Case, Ours, Theirs

# ----------------------------------------------------------------------------------------------------- one process each


class SideFailed(Exception):
    """A side's process ended, or could not begin; the message says why where that is known."""


class Side:
    """A side in its own process, which does one thing when asked and is idle otherwise."""

    def __init__(self, kind: type[Ours] | type[Theirs], *arguments: Any) -> None:
        """Raises SideFailed: it could not begin (a missing package)."""
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        threads = torch.get_num_threads()
        self.process = context.Process(target=_serve, args=(kind, arguments, other, threads), daemon=True)
        self.process.start()
        other.close()
        problem = self._receive()
        if problem:
            self.end()
            raise SideFailed(problem)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the side, or `peak_gib` of its process."""
        self.pipe.send((method, arguments))
        return self._receive()

    def end(self) -> None:
        """Let the process go, and with it its memory."""
        self.pipe.close()
        self.process.join()

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise SideFailed(f"a side ended with exit code {self.process.exitcode}; -9 is: out of memory") from None


def _serve(kind: Callable[..., Any], arguments: tuple[Any, ...], pipe: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        side = kind(*arguments)
    except (ImportError, ValueError) as error:
        pipe.send(f"{kind.__name__}{arguments[1:]}: {str(error).splitlines()[0]}")
        return
    pipe.send("")
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        pipe.send(_peak_gib() if method == "peak_gib" else getattr(side, method)(*given))


def _peak_gib() -> float:
    """The most memory held since the last call, in GiB: of the GPU where there is one, else resident (Linux)."""
    gc.collect()
    if torch.cuda.is_available():
        held = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return held / 2**30
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak
    return peak / 2**20


# ------------------------------------------------------------------------------------------------------------ comparing


def best_peer(case: Case) -> tuple[Side, dict[str, float]]:
    """The peer's side at its fastest setting, and the seconds that every setting took for a quarter of a batch.

    Raises:
        SideFailed: no setting of the peer runs here.
    """
    found: dict[str, dict[str, float]] = {}
    sides: dict[str, Side] = {}
    problems = []
    for attention in ATTENTION[case.device]:
        try:
            sides[attention] = Side(Theirs, case, attention)
        except SideFailed as problem:
            problems.append(str(problem))
            say(f"  peer: {problem}")
            continue
        found[attention] = _search(sides[attention])
    if not found:
        raise SideFailed("; ".join(problems))
    best = min(found, key=lambda attention: min(found[attention].values()))
    for attention, side in sides.items():
        if attention != best:
            side.end()
    taken = found[best]
    ranked = sorted(taken, key=lambda name: taken[name])
    seconds = {f"{attention}, {name}": s for attention, names in found.items() for name, s in names.items()}
    if case.device == "cuda":
        return sides[best], seconds | _choose_by_whole_batches(sides[best], ranked)
    sides[best].ask("choose", ranked[0])
    if ranked[0] == PLAIN and not _plain_wins(sides[best], ranked[1]):
        sides[best].ask("choose", ranked[1])
    return sides[best], seconds


def _choose_by_whole_batches(theirs: Side, ranked: list[str]) -> dict[str, float]:
    """Choose the faster of the first two settings that fit a GPU with a whole batch (a mini-batch beyond the quarter is
    full only there), compiled if that is faster; seconds of each.

    Raises:
        SideFailed: none fits.
    """
    seconds: dict[str, float] = {}
    for name in ranked:
        theirs.ask("choose", name)
        taken = _three_steps(theirs)
        if taken < float("inf"):
            seconds[name] = taken
        if len(seconds) == 2:
            break
    if not seconds:
        raise SideFailed("no setting of the peer fits this GPU with a whole batch")
    best = min(seconds, key=lambda name: seconds[name])
    theirs.ask("choose", best)
    theirs.ask("compile", True)
    compiled = _three_steps(theirs)
    theirs.ask("compile", compiled < seconds[best])
    say(f"  peer, three whole batches: {best} {seconds[best]:.2f} s, compiled {compiled:.2f} s")
    return {f"three batches, {name}": s for name, s in seconds.items()} | {f"three batches, {best}, compiled": compiled}


def _three_steps(theirs: Side) -> float:
    """Seconds of three steps, done before: shapes are compiled for when they come, memory is fetched once."""
    if any(theirs.ask("step", step)["seconds"] == float("inf") for step in range(3)):
        return float("inf")
    return float(sum(theirs.ask("step", step)["seconds"] for step in range(3)))


def _search(theirs: Side) -> dict[str, float]:
    """Seconds of each of the peer's settings on a quarter of the first batch."""
    theirs.ask("step", 0, 1 / 16)
    seconds = {}
    for name in theirs.ask("names"):
        theirs.ask("choose", name)
        seconds[name] = theirs.ask("step", 0, 0.25)["seconds"]
    say("  peer, a quarter batch: " + ", ".join(f"{name} {taken:.2f} s" for name, taken in seconds.items()))
    return seconds


def _plain_wins(theirs: Side, cached: str) -> bool:
    """Whether the plain loss is the faster one on a whole batch as well, where that fits into memory."""
    theirs.ask("peak_gib")
    theirs.ask("step", 0, 0.25)
    need = 4 * theirs.ask("peak_gib")
    if need > psutil.virtual_memory().available / 2**30:
        say(f"  peer: its plain loss would need {need:.0f} GiB for a whole batch")
        return False
    plain = theirs.ask("step", 0)["seconds"]
    theirs.ask("choose", cached)
    other = theirs.ask("step", 0)["seconds"]
    theirs.ask("choose", PLAIN)
    return bool(plain < other)


def compare(case: Case, *, low_memory: bool = False) -> dict[str, Any]:
    """Both sides on one case, after one step each that does not count.

    `low_memory`: a third side is ours, keeping the activations of no chunk but recomputing them.
    """
    theirs, seconds = best_peer(case)
    begin = {"theirs": lambda: theirs, "ours": lambda: Side(Ours, case)}
    if low_memory:
        begin["ours_recomputed"] = lambda: Side(Ours, replace(case, activation_gib=1e-3))
    together = [list(begin)] if case.device == "cpu" else [[name] for name in begin]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in begin}
    result: dict[str, Any] = {}
    for names in together:
        sides = {name: begin[name]() for name in names}
        for side in sides.values():
            side.ask("peak_gib")  # from here on: steps, without the calibration and the search
            side.ask("step", 0)
        for step in range(1, case.steps):
            for name, side in sides.items():
                rounds[name].append(side.ask("step", step))
        for name, side in sides.items():
            result[name] = {"peak_gib": side.ask("peak_gib"), **side.ask("configuration")}
            side.end()
    result["theirs"]["search_s"] = seconds
    return summarize(case, rounds, result)


def summarize(case: Case, rounds: dict[str, list[dict[str, float]]], result: dict[str, Any]) -> dict[str, Any]:
    """Rates and ratios out of what the sides measured step by step; adds them to `result`.

    Raises:
        AssertionError: the sides counted other tokens, so they did not do the same work.
    """
    tokens = {name: [taken["tokens"] for taken in found] for name, found in rounds.items()}
    assert all(counts == tokens["ours"] for counts in tokens.values()), f"the sides counted other tokens: {tokens}"
    ours, pairs = rounds["ours"], case.batch * len(rounds["ours"])
    for name, found in rounds.items():
        result[name]["pairs_per_s"] = case.batch / median(taken["seconds"] for taken in found)
        result[name]["tokens_per_s"] = median(taken["tokens"] / taken["seconds"] for taken in found)
        if name != "theirs":
            result[name]["padding"] = 1 - sum(tokens[name]) / sum(taken["computed"] for taken in found)
    padded = sum(taken["padded"] for taken in rounds["theirs"])
    result["theirs"]["padding_of_plain"] = 1 - sum(tokens["theirs"]) / padded
    result["flops_per_s"] = median(taken["flops"] / taken["seconds"] for taken in ours)
    result["flops_per_pair"] = sum(taken["flops"] for taken in ours) / pairs
    result["tokens_per_pair"] = sum(tokens["ours"]) / pairs
    # step by step: the same batch on both sides
    result["ratio"] = median(b["seconds"] / a["seconds"] for a, b in zip(ours, rounds["theirs"], strict=True))
    facts = [
        f"{name} {found['pairs_per_s']:.2f} pairs/s {found['peak_gib']:.2f} GiB"
        for name, found in result.items()
        if name in rounds
    ]
    say(f"{case.name}: {', '.join(facts)}; peer: {result['theirs']['loss']}; ratio {result['ratio']:.2f}")
    return result
