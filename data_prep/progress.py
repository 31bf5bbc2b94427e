"""How far the pass is: a bar on a terminal, a line now and then in a log."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from embedding.files import in_bytes

LINE_SECONDS = 30.0
"""Between two lines where the output is no terminal."""


class Meter:
    """Progress in bytes of text, which are known beforehand; speed in texts and tokens; time left; size when done."""

    def __init__(self, shown: bool, total_bytes: int, texts: int, vector_bytes: int) -> None:
        """`total_bytes`: of the texts that this process is to embed; `texts`: of all processes."""
        self._console = Console(stderr=True)
        self._total = max(total_bytes, 1)
        self._size = f"{texts:,} new vectors will take {in_bytes(texts * vector_bytes)}"
        self._lines = shown and not self._console.is_terminal
        columns = [TextColumn("embedding"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}")]
        live = shown and self._console.is_terminal
        self._display = Progress(*columns, TimeRemainingColumn(), console=self._console, disable=not live)
        self._task = self._display.add_task("embedding", total=self._total, speed="")
        self._begun = self._said = time.perf_counter()
        self._texts = self._tokens = self._bytes = 0
        self._shown = shown

    def __enter__(self) -> Self:
        if self._shown:
            self._say(f"embedding: {self._size}")
        self._display.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._display.stop()
        if self._lines:
            self._say(self._line())

    def advance(self, texts: int, tokens: int, size: int) -> None:
        """So many more texts, tokens, and bytes of text are done. Called by several threads: figures may lag a bit."""
        self._texts += texts
        self._tokens += tokens
        self._bytes += size
        self._display.update(self._task, completed=min(self._bytes, self._total), speed=self._speed())
        if self._lines and time.perf_counter() - self._said > LINE_SECONDS:
            self._said = time.perf_counter()
            self._say(self._line())

    def _speed(self) -> str:
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        return f"{self._texts:,} texts, {self._texts / seconds:,.0f} texts/s, {self._tokens / seconds:,.0f} tokens/s"

    def _line(self) -> str:
        share = min(self._bytes / self._total, 1.0)
        seconds = time.perf_counter() - self._begun
        left = f", {_time(seconds / share - seconds)} left" if 0 < share < 1 else ""
        return f"embedding {share:.0%}: {self._speed()}{left}"

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
