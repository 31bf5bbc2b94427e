"""The report's section on dropped rows: a few of each reason, to see whether the filters hit what they should."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

SHOWN_CHARS = 160


def dropped_section(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A card for each reason with some of its rows: source and number (as `eyas prepare --explain` takes them), what
    showed the fault, and the texts."""
    cards = []
    for reason, rows in samples.items():
        lines = "".join(
            f'<tr><td title="{escape(str(row["place"]))}">{_text("{source}:{row}".format(**row))}</td>'
            f"<td>{_text(row['detail'])}</td>"
            f"<td>{_text(row['query'])}</td><td>{_text(next(iter(row['positives']), ''))}</td></tr>"
            for row in rows
        )
        heads = "".join(f"<th>{title}</th>" for title in ("row", "why", "query", "positive"))
        cards.append(f'<h3>{escape(reason)}</h3><div class="card scroll"><table><tr>{heads}</tr>{lines}</table></div>')
    return "".join(cards)


def _text(text: str) -> str:
    words = " ".join(str(text).split())
    return escape(words if len(words) <= SHOWN_CHARS else f"{words[:SHOWN_CHARS]}…")
