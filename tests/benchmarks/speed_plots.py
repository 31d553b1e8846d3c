"""The plots of the speed benchmark, drawn from the figures of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil, floor, log10
from statistics import median
from typing import Any

from tests.benchmarks import end_to_end, failover, growth, pinging
from tests.benchmarks.rounds import Rows
from tests.benchmarks.svg import Axis, Band, Bar, Line, bars, chart

Points = list[tuple[float, float]]
Result = dict[str, Any]


def _powers(label: str, values: Iterable[float]) -> Axis:
    """Return a logarithmic axis that has room for all values."""
    known = [value for value in values if value > 0]
    low, high = floor(log10(min(known))), ceil(log10(max(known)))
    ticks = [10.0**power for power in range(low, max(high, low + 1) + 1)]
    return Axis(label, ticks[0], ticks[-1], ticks, is_log=True)


def _bars(title: str, label: str, rows: Rows, figure: str, *, is_log: bool) -> str:
    drawn = [
        Bar(name, median(row[figure]), min(row[figure]), max(row[figure]), name.startswith(("ours", "geventconnpool")))
        for name, row in rows.items()
    ]
    if is_log:
        return bars(title, _powers(label, (value for row in rows.values() for value in row[figure])), drawn)
    most = max(bar.high for bar in drawn)
    step = 10.0 ** floor(log10(most)) / 2
    return bars(title, Axis(label, 0.0, most, [step * n for n in range(int(most / step) + 1)]), drawn)


def checkouts(result: Result) -> str:
    title = "Check-out and return, uncontended"
    return _bars(title, "microseconds of processor time", result["rows"], "us", is_log=True)


def parts(result: Result) -> str:
    title = "What a check-out is made of"
    return _bars(title, "microseconds of processor time", result["rows"], "us", is_log=False)


def contentions(result: Result) -> str:
    rows = {name.replace(", 5 connections each", ""): row for name, row in result["rows"].items()}
    title = "1,000 greenlets over 20 connections"
    return _bars(title, "microseconds of processor time per call", rows, "us", is_log=False)


def ends(result: Result) -> str:
    tails: dict[str, Points] = result["tails"]
    order = (pinging.CLUSTER, pinging.DIRECT, pinging.NAIVE, pinging.HAPROXY)
    lines = [Line(kind, tails[kind + end_to_end.MANY]) for kind in order if kind + end_to_end.MANY in tails]
    return chart(
        "PING by 30 greenlets: how long calls take (last round)",
        _powers("microseconds", (us for line in lines for us, _ in line.points)),
        Axis("calls that take longer, %", 0.1, 100.0, [0.1, 1, 10, 100], is_log=True),
        lines,
    )


def failovers(result: Result) -> str:
    points: dict[str, Points] = result["over time"]
    kinds = [kind for kind in (pinging.CLUSTER, pinging.HAPROXY) if kind + failover.STOPPED in points]
    return chart(
        "One of three servers is stopped: the longest call that began at a time (last round)",
        Axis("seconds since the stop", -0.5, 2.5, [-0.5, 0, 0.5, 1, 1.5, 2, 2.5]),
        Axis("seconds", 0.0, 0.7, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        [Line(kind, [p for p in points[kind + failover.STOPPED] if -0.5 <= p[0] <= 2.5]) for kind in kinds],
        Band("the server is stopped", 0.0, 2.5),
    )


def growths(result: Result) -> str:
    rows: Rows = result["rows"]
    lines = []
    for kind, text in (
        (growth.ENDPOINT, "endpoints"),
        (growth.CONNECTION, "connections of one pool"),
        (growth.WAITER, "waiters for one connection"),
    ):
        labels = [label for label in rows if label.startswith(kind) and growth.US in rows[label]]
        sizes = [float(label.removeprefix(kind).replace(",", "")) for label in labels]
        values = [median(rows[label][growth.US]) for label in labels]
        lines.append(Line(text, list(zip(sizes, values, strict=True))))
    return chart(
        "What a call costs",
        _powers("how many", (x for line in lines for x, _ in line.points)),
        _powers("microseconds of processor time", (y for line in lines for _, y in line.points)),
        lines,
    )


def importing(result: Result) -> str:
    return _bars("python -c 'import ...'", "milliseconds of processor time", result["rows"], "ms", is_log=False)


PLOTS: dict[str, Callable[[Result], str]] = {
    "checkout": checkouts,
    "parts": parts,
    "contended": contentions,
    "end-to-end": ends,
    "failover": failovers,
    "growth": growths,
    "import": importing,
}
