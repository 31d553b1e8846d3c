"""How benchmarks tell what they found: numbers, tables, and whether a target is met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a figure should be at least, or at most."""

    least: float | None = None
    most: float | None = None

    @property
    def bound(self) -> str:
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"

    def is_met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def number(value: float) -> str:
    digits = 0 if value >= 1000 else 1 if value >= 200 else 2 if value >= 10 else 3
    return f"{value:.{digits}f}"


def around(middle: float, values: Iterable[float]) -> str:
    """Return a value that stands for all of them, and in brackets the least and the most."""
    ordered = sorted(values)
    low, high = number(ordered[0]), number(ordered[-1])
    return number(middle) if low == high else f"{number(middle)} ({low}..{high})"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells, the first to the left and the others to the right, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def verdict(judged: Iterable[dict[str, Any]]) -> str:
    lines = [["target", "asked", "ours", ""]]
    lines += [[j["target"], j["asked"], number(j["found"]), "met" if j["met"] else "MISSED"] for j in judged]
    return table(lines)
