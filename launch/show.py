"""What a run shows on the terminal when it is done: the scorecard, a few searches, and where everything lies."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from embedding.files import read_json


def say(console: Console, name: str, text: str) -> None:
    """One line about a step or a file."""
    console.print(f"[bold cyan]{name:>9}[/]  {escape(text)}", soft_wrap=True, highlight=False)


def show_run(folder: Path, console: Console) -> None:
    """Everything a person wants to see of a finished run."""
    if (folder / "scorecard.json").is_file():
        from eval.scorecard import terminal_table

        console.print()
        console.print(terminal_table(read_json(folder / "scorecard.json")))
    if (folder / "searches.json").is_file():
        _show_searches(read_json(folder / "searches.json"), console)
    console.print()
    for name in ("model", "scorecard.json", "report.html"):
        if (folder / name).exists():
            say(console, name.partition(".")[0], str(folder / name))


def _show_searches(found: dict[str, Any], console: Console) -> None:
    """Each query with its hits, a line each, as wide as the terminal."""
    console.print(f"\n[bold]Searches[/] among {found['documents']:,} held-out documents ({escape(found['corpus'])})")
    for search in found["searches"]:
        _line(console, f"\n  [bold]{_flat(search['query'])}[/]")
        for rank, hit in enumerate(search["hits"], start=1):
            mark = "[green]✓[/] " if hit.get("relevant") else ""
            _line(console, f"    {rank}. [cyan]{hit['score']:.3f}[/]  {mark}{_flat(hit['text'])}")


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, no_wrap=True, overflow="ellipsis")


def _flat(text: str) -> str:
    return escape(" ".join(text.split()))
