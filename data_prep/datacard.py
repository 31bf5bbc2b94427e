"""The data card: what a prepared data set consists of, for people, as Markdown and as one HTML page without scripts.

Everything is computed from the tables column by column, a piece of the texts in memory at a time.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from data_prep.build import SHORT, DataConfig
from data_prep.tables import Examples, Texts, Tokens
from embedding.files import read_manifest, write_text

BINS = np.array([0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 1 << 40])
"""Lengths are shown on a scale of powers of two."""
QUANTILES = (0.5, 0.9, 0.99)
MOST_LANGUAGES = 40
SHOWN_DETAIL = 160


class Table(NamedTuple):
    """A table of the card; a cell that is a list of numbers is a histogram."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def write_card(
    out: Path, data: Path, config: DataConfig, tokens: Tokens | None = None, shares: Mapping[str, float] | None = None
) -> list[Path]:
    """Write `out/data_card.{md,html}` of the tables in `data`; return the two paths.

    Args:
        tokens: the student's; without, lengths are in characters.
        shares: how often each source is drawn in training.
    """
    tables = card_tables(data, config, tokens, shares)
    paths = [out / "data_card.md", out / "data_card.html"]
    write_text(paths[0], _markdown(tables))
    write_text(paths[1], _html(tables))
    return paths


def card_tables(
    data: Path, config: DataConfig, tokens: Tokens | None = None, shares: Mapping[str, float] | None = None
) -> list[Table]:
    """The card's tables.

    Raises:
        ValueError: there are no prepared tables at `data`.
    """
    manifest = read_manifest(data)
    if manifest is None:
        raise ValueError(f"{data}: no prepared data here (no manifest.json); run the prepare step first")
    texts, examples = Texts.load(data / "texts"), Examples.load(data / "examples")
    summary = manifest["summary"]
    unit = "characters" if tokens is None else "tokens"
    lengths_N = pc.utf8_length(texts.texts).to_numpy() if tokens is None else tokens.lengths
    sources = {source.title(): source for source in config.used()}
    return [
        _overview(summary, lengths_N, unit),
        _sources(examples, lengths_N, unit, summary, sources, shares),
        _languages(texts, lengths_N, unit),
        Table(
            "Dropped rows",
            "All of them, with their texts, are in dropped.parquet.",
            ["reason", "rows", "of which, by source"],
            [
                [reason, count, _by_source(summary, reason)]
                for reason, count in sorted(summary["dropped"].items(), key=lambda item: -item[1])
            ],
        ),
        _overlaps(examples),
        _samples(summary),
    ]


def _overview(summary: Mapping[str, Any], lengths_N: np.ndarray, unit: str) -> Table:
    rows = [
        ["training examples", summary["examples"]],
        ["distinct texts", summary["texts"]],
        [f"{unit} of all distinct texts", int(lengths_N.sum())],
        ["rows read", sum(part["rows"] for part in summary["sources"].values())],
        ["rows dropped", sum(summary["dropped"].values())],
        ["rows held out for evaluation", sum(part["held out"] for part in summary["sources"].values())],
    ]
    if summary.get("evaluation texts") is not None:
        rows.append(["distinct evaluation texts compared with", summary["evaluation texts"]])
    if short := sum(part.get(SHORT, 0) for part in summary["sources"].values()):
        rows.append([f"{SHORT} and stay", short])
    rows += [[f"single texts removed: {reason}", count] for reason, count in summary.get("removed", {}).items()]
    rows += [[f"near-duplicates: {what}", count] for what, count in (summary.get("near-duplicates") or {}).items()]
    rows += [["left out for its licence", name] for name in summary.get("left out for their licence", [])]
    return Table("Overview", "", ["", "count"], rows)


def _sources(
    examples: Examples,
    lengths_N: np.ndarray,
    unit: str,
    summary: Mapping[str, Any],
    sources: Mapping[str, Any],
    shares: Mapping[str, float] | None,
) -> Table:
    rows = []
    for code in np.argsort(-np.bincount(examples.sources, minlength=len(examples.source_names))).tolist():
        name = examples.source_names[code]
        mine = examples.sources == code
        answers = examples.positives.values[mine[examples.positives.owners]]
        negatives = int(mine[examples.negatives.owners].sum())
        used = np.unique(np.concatenate([examples.queries[mine], answers]))
        drawn = (shares or {}).get(name, float(mine.mean()) if shares is None else 0.0)
        facts = summary["sources"][name]
        row = [name, facts["rows"], int(mine.sum()), negatives, f"{drawn:.1%}", int(lengths_N[used].sum())]
        for side in (examples.queries[mine], answers):
            row += [_quantiles(lengths_N[side]), _histogram(lengths_N[side])]
        rows.append([*row, sources[name].licence or "not stated", sources[name].instruction])
    columns = ["source", "rows read", "examples", "negatives", "share drawn", unit, "query: median / p90 / p99", ""]
    columns += ["positive: median / p90 / p99", "", "licence", "instruction"]
    note = f"Lengths in {unit}; the bars count texts up to 8, 16, 32, … {unit}."
    return Table("Sources", note, columns, rows)


def _languages(texts: Texts, lengths_N: np.ndarray, unit: str) -> Table:
    encoded = texts.langs.dictionary_encode().combine_chunks()
    codes_N, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    rows = []
    for code in np.argsort(-np.bincount(codes_N, minlength=len(names)))[:MOST_LANGUAGES].tolist():
        mine = lengths_N[codes_N == code]
        rows.append([names[code] or "not stated", len(mine), int(mine.sum()), _quantiles(mine), _histogram(mine)])
    note = f"As the sources say. {len(names)} in all." if len(names) > MOST_LANGUAGES else "As the sources say."
    return Table("Languages", note, ["language", "texts", unit, "median / p90 / p99", ""], rows)


def _overlaps(examples: Examples) -> Table:
    """Which sources share texts: equal rows of the texts table."""
    users: dict[int, np.ndarray] = {}
    for code in range(len(examples.source_names)):
        mine = examples.sources == code
        answers = examples.positives.values[mine[examples.positives.owners]]
        users[code] = np.unique(np.concatenate([examples.queries[mine], answers]))
    rows: list[list[Any]] = []
    for one, mine in users.items():
        for other in range(one + 1, len(users)):
            shared = len(np.intersect1d(mine, users[other], assume_unique=True))
            if shared:
                names = examples.source_names[one], examples.source_names[other]
                rows.append([*names, shared, f"{shared / min(len(mine), len(users[other])):.2%}"])
    rows.sort(key=lambda row: row[2], reverse=True)
    note = "Texts that stand in two sources in the same role, with the same instruction."
    return Table("Overlaps between sources", note, ["source", "and", "texts", "of the smaller"], rows)


def _samples(summary: Mapping[str, Any]) -> Table:
    rows = [
        [reason, sample["place"] or f"{sample['source']}:{sample['row']}", *_shown(sample)]
        for reason, samples in summary.get("samples", {}).items()
        for sample in samples
    ]
    return Table("Dropped rows to look at", "", ["reason", "row", "why", "query", "positive"], rows)


def _shown(sample: Mapping[str, Any]) -> list[str]:
    parts = [sample["detail"], sample["query"], *(sample["positives"][:1] or [""])]
    return [part if len(part) <= SHOWN_DETAIL else f"{part[:SHOWN_DETAIL]}…" for part in parts]


def _by_source(summary: Mapping[str, Any], reason: str) -> str:
    counts = {name: part["dropped"].get(reason, 0) for name, part in summary["sources"].items()}
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items(), key=lambda item: -item[1]) if n)


def _quantiles(lengths: np.ndarray) -> str:
    return " / ".join(f"{value:,.0f}" for value in np.quantile(lengths, QUANTILES)) if len(lengths) else "–"


def _histogram(lengths: np.ndarray) -> list[int]:
    counts: list[int] = np.histogram(lengths, BINS)[0].tolist()
    return counts


# ------------------------------------------------------------------------------------------------------------ as pages


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _markdown(tables: Sequence[Table]) -> str:
    parts = ["# Data card"]
    for table in tables:
        shown = [i for i, column in enumerate(table.columns) if not any(isinstance(row[i], list) for row in table.rows)]
        parts.append(f"## {table.title}\n\n{table.note}".rstrip())
        lines = ["| " + " | ".join(table.columns[i] for i in shown) + " |", "|" + " --- |" * len(shown)]
        lines += ["| " + " | ".join(_plain(row[i]) for i in shown) + " |" for row in table.rows]
        parts.append("\n".join(lines) if table.rows else "None.")
    return "\n\n".join(parts) + "\n"


def _plain(value: Any) -> str:
    return " ".join(_cell(value).split()).replace("|", "\\|")


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1500px;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.7rem}h2{font-size:1.2rem;margin:2.2rem 0 .3rem}p{color:#566;margin:.2rem 0 .6rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem}
th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #e4e8ee;vertical-align:top;overflow-wrap:anywhere}
th{color:#566;font-weight:600;white-space:nowrap}td{min-width:3.5rem;max-width:30rem}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}svg{display:block}rect{fill:#3b6fb6}
@media(prefers-color-scheme:dark){body{background:#14181f;color:#dde3ec}th,p{color:#9aa7b8}
th,td{border-color:#2a323e}rect{fill:#7aa7e8}}
"""


def _html(tables: Sequence[Table]) -> str:
    parts = []
    for table in tables:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
        body = "".join(f"<tr>{''.join(map(_td, row))}</tr>" for row in table.rows)
        shown = f"<div class=wide><table><tr>{head}</tr>{body}</table></div>" if table.rows else "<p>None.</p>"
        parts.append(f"<h2>{html.escape(table.title)}</h2><p>{html.escape(table.note)}</p>{shown}")
    page = f"<style>{_STYLE}</style><title>Data card</title><h1>Data card</h1>{''.join(parts)}"
    return f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>{page}\n"


def _td(value: Any) -> str:
    if isinstance(value, list):
        return f"<td>{_bars(value)}</td>"
    numeric = isinstance(value, int) or (isinstance(value, str) and value[:1].isdigit() and value[-1:] in "0123456789%")
    return f"<td{' class=n' if numeric else ''}>{html.escape(_cell(value))}</td>"


def _bars(counts: Sequence[int]) -> str:
    most, bars = max([*counts, 1]), []
    for place, count in enumerate(counts):
        height = 28 * count / most
        title = f"from {BINS[place]:,}: {count:,} texts"
        bars.append(
            f"<rect x={place * 9} y={30 - height:.1f} width=8 height={height:.1f}><title>{title}</title></rect>"
        )
    return f"<svg width={9 * len(counts)} height=30 role=img aria-label='length distribution'>{''.join(bars)}</svg>"
