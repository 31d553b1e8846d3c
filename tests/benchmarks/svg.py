"""Plots of lines as SVG: as little as the benchmark needs, legible on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 76, 52  # margins of the field
LETTER = 6.6  # how wide one is, about
SWATCH = 28

# The first line is ours. Dashes tell them apart where colours do not.
LIGHT = ("#0b57d0", "#c2410c", "#15803d", "#7e22ce", "#5f6368")
DARK = ("#8ab4f8", "#fb923c", "#4ade80", "#d8b4fe", "#bdc1c6")
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 4")

STYLE = """
text {{ font: 12px system-ui, sans-serif; fill: {ink}; }}
.page {{ fill: {page}; }}
.title {{ font-size: 14px; font-weight: 600; }}
.grid {{ stroke: {grid}; stroke-width: 1; }}
.band {{ fill: {grid}; opacity: 0.55; }}
"""


@dataclass(frozen=True)
class Axis:
    label: str
    low: float
    high: float
    ticks: Sequence[float]
    is_log: bool = False

    def part(self, value: float) -> float:
        """Return how far along the axis a value is, from 0 to 1; what lies outside is at its end."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return log10(value / self.low) / log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Band:
    """A span of the x axis in which something is the case."""

    name: str
    begin: float
    end: float


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line], band: Band | None = None) -> str:
    """Return a whole SVG file."""
    parts = [
        *_head(title, HEIGHT),
        _text(16, 24, title, kind="title"),
        *_legend(lines),
        *(_band(x, band) if band else ()),
        *_x_axis(x),
        *_y_axis(y),
        *(_line(x, y, number, line) for number, line in reversed(list(enumerate(lines)))),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class Bar:
    """How much something is, and between what it varied."""

    name: str
    value: float
    low: float
    high: float
    is_ours: bool = False


ROW, NAMES, BAR_TOP = 22, 250, 44  # height of a bar with its gap; room for names; where the first begins


def bars(title: str, axis: Axis, values: Sequence[Bar]) -> str:
    """Return a whole SVG file of horizontal bars, ours in the first colour and the others in the last."""
    height = BAR_TOP + ROW * len(values) + BOTTOM
    bottom = height - BOTTOM
    parts = [*_head(title, height), _text(16, 24, title, kind="title")]
    for tick in axis.ticks:
        x = _along(axis, tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{BAR_TOP}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 18, f"{tick:g}", anchor="middle"))
    for number, bar in enumerate(values):
        parts += _bar(axis, BAR_TOP + ROW * number, bar)
    parts += [_text((NAMES + WIDTH - RIGHT) / 2, height - 12, axis.label, anchor="middle"), "</svg>"]
    return "\n".join(parts) + "\n"


def _along(axis: Axis, value: float) -> float:
    return NAMES + axis.part(value) * (WIDTH - NAMES - RIGHT)


def _bar(axis: Axis, top: float, bar: Bar) -> list[str]:
    end, low, high = (_along(axis, value) for value in (bar.value, bar.low, bar.high))
    middle, kind = top + ROW / 2, "ours" if bar.is_ours else "other"
    return [
        _text(NAMES - 8, middle + 4, bar.name, anchor="end"),
        f'<rect class="{kind}" x="{NAMES}" y="{top + 4:.1f}" width="{end - NAMES:.1f}" height="{ROW - 8}"/>',
        f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
    ]


def _head(title: str, height: float) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" width="{WIDTH}">',
        f"<title>{escape(title)}</title>",
        f"<style>{_style(LIGHT, '#1f1f1f', '#ffffff', '#dadce0')}",
        f"@media (prefers-color-scheme: dark) {{{_style(DARK, '#e8eaed', '#17181a', '#44474c')}}}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
    ]


def _style(colours: Sequence[str], ink: str, page: str, grid: str) -> str:
    series = [
        f".s{n} {{ stroke: {colour}; stroke-dasharray: {DASHES[n]}; fill: none; stroke-width: {2 if n else 3}; }}"
        for n, colour in enumerate(colours)
    ]
    fills = f".ours {{ fill: {colours[0]}; }} .other {{ fill: {colours[-1]}; }} .spread {{ stroke: {ink}; }}\n"
    return STYLE.format(ink=ink, page=page, grid=grid) + "\n".join(series) + "\n" + fills


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "label", more: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _legend(lines: Sequence[Line]) -> list[str]:
    parts, x = [], 16.0
    for number, line in enumerate(lines):
        parts.append(f'<line class="s{number}" x1="{x:.1f}" x2="{x + SWATCH:.1f}" y1="46" y2="46"/>')
        parts.append(_text(x + SWATCH + 6, 50, line.name))
        x += SWATCH + 22 + LETTER * len(line.name)
    return parts


def _across(x: Axis, value: float) -> float:
    return LEFT + x.part(value) * (WIDTH - LEFT - RIGHT)


def _up(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.part(value) * (HEIGHT - TOP - BOTTOM)


def _band(x: Axis, band: Band) -> list[str]:
    left, right = _across(x, band.begin), _across(x, band.end)
    return [
        f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>',
        _text((left + right) / 2, TOP - 6, band.name, anchor="middle"),
    ]


def _x_axis(x: Axis) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    parts += [_text(_across(x, tick), bottom + 18, _short(tick), anchor="middle") for tick in x.ticks]
    return [*parts, _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x.label, anchor="middle")]


def _short(tick: float) -> str:
    return f"{tick / 1000:g}k" if tick >= 10_000 else f"{tick:g}"


def _y_axis(y: Axis) -> list[str]:
    parts = []
    for tick in y.ticks:
        up = _up(y, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up:.1f}" y2="{up:.1f}"/>')
        parts.append(_text(LEFT - 8, up + 4, f"{tick:g}", anchor="end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f' transform="rotate(-90 18 {middle:.1f})"'
    return [*parts, _text(18, middle, y.label, anchor="middle", more=turned)]


def _line(x: Axis, y: Axis, number: int, line: Line) -> str:
    points = " ".join(f"{_across(x, along):.1f},{_up(y, up):.1f}" for along, up in line.points)
    return f'<polyline class="s{number}" points="{points}"/>'
