"""`eyas doctor`: is this machine ready?"""

from pathlib import Path
from typing import Annotated

import typer

MARKS = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}


def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs and cache are to lie.")] = Path("runs"),
) -> None:
    """Try out what a run needs: versions, devices, attention kernels, two ranks, disk, hub, keys.

    Each line is ok, worth knowing, or bad, and says how to mend it. Exit code 1: something is bad.

    [bold]Examples[/]

      eyas doctor

      eyas doctor --folder /scratch/runs
    """
    from rich.console import Console
    from rich.markup import escape

    from launch.doctor import examine

    console = Console()
    counts = dict.fromkeys(MARKS, 0)
    for finding in examine(folder):
        counts[finding.state] += 1
        mend = f" [dim]→ {escape(finding.mend)}[/]" if finding.mend else ""
        line = f"{MARKS[finding.state]} [bold]{finding.name:<22}[/] {escape(finding.text)}{mend}"
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"\n{counts['ok']} ok, {counts['note']} worth knowing, {counts['bad']} bad", highlight=False)
    raise typer.Exit(1 if counts["bad"] else 0)
