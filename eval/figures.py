"""Figures as HTML and SVG text: pure functions of numbers, no script, no image, no font to fetch.

Text is HTML and only the lines are SVG, stretched to whatever width there is with strokes that do not scale: a figure
is as sharp and as readable on a phone as on a slide. Colours are the style sheet's variables, so dark mode needs no
second figure.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

Point = tuple[float, float]
MAX_POINTS = 300
"""A curve with more is averaged in buckets: no screen shows more, and the page stays small."""


class Series(NamedTuple):
    """A curve: its name in the legend, its points (x, y), and the style sheet's colour of it."""

    name: str
    points: Sequence[Point]
    colour: str


class Guide(NamedTuple):
    """A horizontal line to compare a curve with."""

    name: str
    value: float
    colour: str


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers within [low, high]: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number for an axis: 1.5k, 2M, 0.25, 1e-05."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e5:
        return f"{value / 1e3:.3g}k"
    return f"{value:,.0f}" if size >= 1000 or value == round(value) else f"{value:.3g}"


def seconds(value: float) -> str:
    """A duration: 820 ms, 12.4 s, 3 min 20 s, 2 h 05 min."""
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points, each the mean of its bucket of neighbours; the last point is kept as it is."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil((len(points) - 1) / (limit - 1))
    buckets = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets]
    return [*means, points[-1]]


def line_panel(
    title: str,
    series: Sequence[Series],
    guides: Sequence[Guide] = (),
    *,
    form: Callable[[float], str] = short,
    axis: Callable[[float], str] = short,
    note: str = "",
    marks: bool = False,
) -> str:
    """A panel of curves over training steps from 0; beside its title the last value of the first curve, or `note`.

    `form` writes values, `axis` those at the ticks. `marks` puts a dot on each point; a curve of one point is a dot.
    """
    curves = [s._replace(points=thin([p for p in s.points if math.isfinite(p[1])])) for s in series]
    curves = [s for s in curves if s.points]
    if not curves:
        return missing(title, "no values")
    xs = [x for s in curves for x, _ in s.points]
    ys = [y for s in curves for _, y in s.points] + [g.value for g in guides]
    right = max(*xs, 1.0)
    low, high = min(ys), max(ys)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    # a curve of positive numbers gets no axis below zero
    low, high = (max(0.0, low - room) if low >= 0 else low - room), high + room

    def x_of(x: float) -> float:
        return 100 * x / right

    def y_of(y: float) -> float:
        return 100 * (high - y) / (high - low)

    grid = [(y_of(v), axis(v)) for v in ticks(low, high)]
    lines = [f'<path class="grid" d="M0 {y:.2f}H100"/>' for y, _ in grid]
    lines += [
        f'<path class="guide" style="stroke:var(--{g.colour})" d="M0 {y_of(g.value):.2f}H100">'
        f"<title>{escape(g.name)}: {form(g.value)}</title></path>"
        for g in guides
    ]
    for s in curves:
        path = "L".join(f"{x_of(x):.2f} {y_of(y):.2f}" for x, y in s.points)
        lines.append(f'<path class="curve" style="stroke:var(--{s.colour})" d="M{path}"/>')
        if marks or len(s.points) == 1:
            lines += [
                f'<path class="dot" style="stroke:var(--{s.colour})" d="M{x_of(x):.2f} {y_of(y):.2f}h0">'
                f"<title>step {x:,.0f}: {form(y)}</title></path>"
                for x, y in s.points
            ]
    y_labels = "".join(f'<span style="top:{y:.2f}%">{escape(text)}</span>' for y, text in grid)
    x_labels = "".join(f'<span style="left:{x_of(v):.2f}%">{short(v)}</span>' for v in ticks(0, right))
    last = curves[0].points[-1][1]
    return (
        f'<figure class="panel"><figcaption><b>{escape(title)}</b>'
        f"<span>{escape(note or form(last))}</span></figcaption>"
        f'<div class="plot"><div class="y">{y_labels}</div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'{"".join(lines)}</svg><div class="x">{x_labels}</div></div>'
        f"{legend([(s.name, s.colour, False) for s in curves] + [(g.name, g.colour, True) for g in guides])}</figure>"
    )


def point_panel(title: str, points: Sequence[tuple[float, float, str, str]], note: str = "") -> str:
    """A cloud of points in [0, 1] x [0, 1], each (x, y, colour, title); no axes, for positions only compare."""
    dots = "".join(
        f'<path class="dot" style="stroke:var(--{colour})" d="M{100 * x:.1f} {100 * (1 - y):.1f}h0">'
        f"<title>{escape(name)}</title></path>"
        for x, y, colour, name in points
    )
    return (
        f'<figure class="panel cloud"><figcaption><b>{escape(title)}</b><span>{escape(note)}</span></figcaption>'
        f'<div class="plot"><svg viewBox="-2 -2 104 104" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{dots}</svg></div></figure>'
    )


def trade_panel(
    title: str, points: Sequence[tuple[str, float, float]], guide: Guide, form: Callable[[float], str]
) -> str:
    """What is paid (x, doubling from tick to tick) and what is got for it (y); (name, x, y) each, with its name."""
    xs, ys = [math.log2(x) for _, x, _ in points], [y for _, _, y in points] + [guide.value]
    left, right = min(xs) - 0.4, max(xs) + 0.4
    room = 0.15 * (max(ys) - min(ys)) or 0.1
    low, high = max(0.0, min(ys) - room), max(ys) + room
    grid = [(100 * (high - v) / (high - low), form(v)) for v in ticks(low, high)]
    lines = "".join(f'<path class="grid" d="M0 {y:.2f}H100"/>' for y, _ in grid)
    at = 100 * (high - guide.value) / (high - low)
    lines += f'<path class="guide" style="stroke:var(--{guide.colour})" d="M0 {at:.2f}H100"/>'
    marks = ""
    for k, (name, x, y) in enumerate(sorted(points, key=lambda point: point[1])):
        lift = 8 if k % 2 else -20  # names in turn below and above their points, so that neighbours do not collide
        across, down = 100 * (math.log2(x) - left) / (right - left), 100 * (high - y) / (high - low)
        lines += (
            f'<path class="dot" style="stroke:var(--student)" d="M{across:.2f} {down:.2f}h0">'
            f"<title>{escape(name)}: {x:,.0f} bytes, {form(y)}</title></path>"
        )
        marks += (
            f'<em style="left:{across:.2f}%;top:{down:.2f}%;transform:translate(-{across:.0f}%,{lift}px)">'
            f"{escape(name)}</em>"
        )
    steps = list(range(math.ceil(left), math.floor(right) + 1))
    steps = steps[:: max(1, len(steps) // 6)]
    x_labels = "".join(f'<span style="left:{100 * (k - left) / (right - left):.2f}%">{2**k:,.0f}</span>' for k in steps)
    y_labels = "".join(f'<span style="top:{y:.2f}%">{escape(text)}</span>' for y, text in grid)
    key = legend([("student", "student", False), (guide.name, guide.colour, True)])
    return (
        f'<figure class="panel trade"><figcaption><b>{escape(title)}</b><span>bytes of a vector</span></figcaption>'
        f'<div class="plot"><div class="y">{y_labels}</div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">{lines}</svg>'
        f'<div class="names">{marks}</div><div class="x">{x_labels}</div></div>{key}</figure>'
    )


def legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """Names with their colours; (name, colour, dashed). One entry needs no legend: the title says it."""
    if len(entries) < 2:
        return ""
    keys = "".join(
        f'<span><i class="{"dashed" if dashed else ""}" style="--key:var(--{colour})"></i>{escape(name)}</span>'
        for name, colour, dashed in entries
    )
    return f'<div class="legend">{keys}</div>'


def bar(value: float, colour: str, label: str, title: str) -> str:
    """One horizontal bar: `value` in [0, 1] of the width (outside it is cut), `label` behind its end."""
    return (
        f'<div class="bar" title="{escape(title)}"><i style="width:{_width(value)};background:var(--{colour})"></i>'
        f"<span>{escape(label)}</span></div>"
    )


def gauge(value: float, label: str, title: str, mark: float | None = None) -> str:
    """A bar on a track that ends at 1, with a mark on it where things started."""
    pin = "" if mark is None else f'<b style="left:{_width(mark)}"></b>'
    return (
        f'<div class="gauge" title="{escape(title)}"><div><i style="width:{_width(value)}"></i>'
        f"{pin}</div><span>{escape(label)}</span></div>"
    )


def _width(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def ring(value: float | None, label: str, colour: str) -> str:
    """A ring filled to a share, the number in its middle."""
    around = 2 * math.pi * 42
    filled = around * min(max(value or 0.0, 0.0), 1.0)
    text = "–" if value is None else f"{100 * value:.1f}"
    unit = "" if value is None else "<small>%</small>"
    long = ' class="long"' if len(text) > 4 else ""  # 100.8 would touch the ring
    return (
        f'<div class="ring"><svg viewBox="0 0 100 100" role="img" aria-label="{escape(label)}: {text} %">'
        f'<circle cx="50" cy="50" r="42" class="track"/><circle cx="50" cy="50" r="42" class="fill" '
        f'style="stroke:var(--{colour})" stroke-dasharray="{filled:.2f} {around:.2f}"/></svg>'
        f"<div><b{long}>{text}{unit}</b><span>{escape(label)}</span></div></div>"
    )


LABEL_WIDTH = 40.0
"""Per cent of a scale that a label may take, on a telephone."""


def scale(marks: Sequence[tuple[str, float, str]], fill: tuple[float, float], form: Callable[[float], str]) -> str:
    """Named values on one line from 0 to the right end of the scale, the stretch `fill` coloured."""
    high = max(1e-9, *(v for _, v, _ in marks)) * 1.06
    at = [(name, 100 * max(v, 0.0) / high, v, colour) for name, v, colour in marks]
    start, end = (100 * max(v, 0.0) / high for v in fill)

    def side(k: int) -> str:
        """Labels alternate above and below the line; one above that would run into the next there goes higher."""
        if k % 2:
            return " under"
        return " high" if any(abs(x - at[k][1]) < LABEL_WIDTH for _, x, _, _ in at[k + 2 : k + 3]) else ""

    pins = "".join(
        f'<span class="pin{side(k)}" style="left:{x:.2f}%;--key:var(--{colour})">'
        # shifted by its own share of its width, a label stays inside the line at both ends
        f'<i></i><em style="transform:translateX(-{x:.1f}%)">{escape(name)} <b>{form(v)}</b></em></span>'
        for k, (name, x, v, colour) in enumerate(at)
    )
    width = max(end - start, 0.0)
    return f'<div class="scale"><div class="stretch" style="left:{start:.2f}%;width:{width:.2f}%"></div>{pins}</div>'


def shares(parts: Sequence[tuple[str, float]], form: Callable[[float], str]) -> str:
    """Parts of a whole: one bar cut into pieces, and a line of name, value and share for each."""
    total = sum(value for _, value in parts) or 1.0
    pieces = "".join(
        f'<i style="flex-grow:{value / total:.5f};background:var(--part{k % 7})" '
        f'title="{escape(name)}: {form(value)}"></i>'
        for k, (name, value) in enumerate(parts)
    )
    lines = "".join(
        f'<li><i style="background:var(--part{k % 7})"></i><span>{escape(name)}</span><b>{form(value)}</b>'
        f"<em>{100 * value / total:.1f} %</em></li>"
        for k, (name, value) in enumerate(parts)
    )
    return f'<div class="shares">{pieces}</div><ul class="parts">{lines}</ul>'


def missing(title: str, why: str) -> str:
    """Where a figure would be, what is missing for it."""
    return f'<p class="missing"><b>{escape(title)}</b> {escape(why)}</p>'
