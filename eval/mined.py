"""The report's section on mined negatives: how hard they are, and what was kept out because it may be relevant."""

from collections.abc import Mapping
from html import escape
from typing import Any

from eval.figures import bar

HIDDEN = {"histogram", "sources", "indexes"}


def mined_section(found: Mapping[str, Any]) -> str:
    """The counts, a histogram of how far below its positive each candidate scores, and a line for each source."""
    counts = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{_number(name, value)}</td></tr>'
        for name, value in found.items()
        if name not in HIDDEN
    )
    counts += f'<tr><td>searched</td><td class="n">{escape(", ".join(found["indexes"]))}</td></tr>'
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{part["rows"]:,}</td>'
        f'<td class="n">{part["negatives a row"]:.2f}</td><td class="n">{part["rows without"]:,}</td></tr>'
        for name, part in found["sources"].items()
    )
    heads = "".join(f'<th class="n">{title}</th>' for title in ("rows", "negatives a row", "rows without any"))
    return (
        f'<div class="card scroll"><table>{counts}</table></div>'
        f'<div class="card"><p>Score of the positive less that of the candidate: how many were chosen, and how many'
        f" were kept out for being too near.</p>{_histogram(found['histogram'])}</div>"
        f'<div class="card scroll"><table><tr><th>source</th>{heads}</tr>{rows}</table></div>'
    )


def _histogram(bins: Mapping[str, list[float]]) -> str:
    edges, chosen, near = bins.values()
    most = max(*chosen, *near, 1)
    lines = []
    for low, high, taken, kept_out in zip(edges[:-1], edges[1:], chosen, near, strict=True):
        if taken or kept_out:
            title = f"{low:+.2f} to {high:+.2f}: {taken:,} chosen, {kept_out:,} too near"
            lines.append(
                f'<tr><td class="n">{low:+.2f}</td><td>{bar(taken / most, "student", f"{taken:,}", title)}</td>'
                f"<td>{bar(kept_out / most, 'faint', f'{kept_out:,}', title)}</td></tr>"
            )
    return f'<table><tr><th class="n">from</th><th>chosen</th><th>too near</th></tr>{"".join(lines)}</table>'


def _number(name: str, value: float) -> str:
    if "share" in name:
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
