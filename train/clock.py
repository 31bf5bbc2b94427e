"""Where the time of a step goes."""

import time

import torch


class Clock:
    """Adds up the seconds between laps by name. On CUDA, laps are events: nothing waits until the shares are read."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []
        self.start()

    def start(self) -> None:
        """Forget the laps and count from now."""
        self._marks = [("", self._now())]

    def lap(self, name: str) -> None:
        """The time since the lap before belongs to `name`."""
        self._marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds by name since `start`; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        out: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._marks[:-1], self._marks[1:], strict=True):
            out[name] = out.get(name, 0.0) + _between(before, after)
        return out

    def _now(self) -> "torch.cuda.Event | float":
        if not self._cuda:
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _between(before: "torch.cuda.Event | float", after: "torch.cuda.Event | float") -> float:
    if isinstance(before, float) and isinstance(after, float):
        return after - before
    assert not isinstance(before, float)
    assert not isinstance(after, float)
    return float(before.elapsed_time(after)) / 1000
