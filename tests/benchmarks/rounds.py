"""Rounds: contestants take turns, so that what the machine does meanwhile hits all of them alike.

Time is processor time wherever nothing is waited for: what else runs on the machine is not counted then.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from time import process_time

import gevent

Figures = dict[str, float]
Row = dict[str, list[float]]  # by figure, one value per round
Rows = dict[str, Row]
Loop = Callable[[int], None]  # does the same thing so many times

ROUNDS, QUICK_ROUNDS = 15, 2
AT_LEAST = 7  # rounds where one takes long


def alternate(contestants: Mapping[str, Callable[[], Figures]], rounds: int) -> Rows:
    """Run all of them that many times by turns, another one first each time; return their figures."""
    rows: Rows = {name: {} for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            gevent.sleep(0.001)  # the background work of those before is not for the next
            for figure, value in contestants[name]().items():
                rows[name].setdefault(figure, []).append(value)
    return rows


def microseconds(loop: Loop, number: int) -> float:
    """Return the processor time that each of so many turns takes."""
    started = process_time()
    loop(number)
    return (process_time() - started) / number * 1e6


def fitting(loop: Loop, seconds: float) -> int:
    """Return how many turns of ``loop`` take about so many seconds of processor time, when it has run for some time."""
    started = process_time()
    while process_time() - started < seconds:
        loop(100)
    number = 10
    while (taken := microseconds(loop, number) * number / 1e6) < seconds / 10:
        number *= 4
    return max(1, round(number * seconds / taken))


def timed(loops: Mapping[str, Loop], rounds: int, seconds: float, figure: str = "us") -> Rows:
    """Return the microseconds that a turn of each loop takes, in rounds of so many seconds for each."""
    contestants = {name: _contestant(loop, fitting(loop, seconds), figure) for name, loop in loops.items()}
    gc.collect()
    gc.freeze()  # garbage is collected as ever, but nobody pays for what all of them have made before
    try:
        return alternate(contestants, rounds)
    finally:
        gc.unfreeze()


def _contestant(loop: Loop, number: int, figure: str) -> Callable[[], Figures]:
    def run() -> Figures:
        loop(
            max(1, number // 4)
        )  # warm: what others had in the caches meanwhile, and what a rest leads to, is no call's
        return {figure: microseconds(loop, number)}

    return run


def compare(rows: Rows, base: str, figure: str, name: str) -> None:
    """Add to each row, as a figure of that name, how many times the figure of row ``base`` it is, round by round."""
    if base in rows:
        for row in rows.values():
            row[name] = [value / other for value, other in zip(row[figure], rows[base][figure], strict=True)]
