"""Contended: 1,000 greenlets over 20 connections, each with so many calls, with and without a switch in the block.

Fairness is, when the first of them has made all its calls, what the slowest has made over what the quickest has.
Without a switch in the block nobody ever waits, and one runs to its end after the other: there is nothing to share.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import process_time
from typing import Any

import gevent

from tests.benchmarks.rounds import AT_LEAST, QUICK_ROUNDS, Figures, Rows, alternate, compare
from tests.benchmarks.standins import KEEPALIVE, Cluster, FairFloor, Pool, Recipe, places

GREENLETS, SIZE = 1000, 20
CALLS = {
    True: 30,
    False: 100,
}  # of each, with a switch in the block and without: to start a greenlet costs a call or so
FAIR = "the least that is fair"
RECIPE, SINGLE, CLUSTER = "textbook recipe (2013)", "ours", "ours, cluster of 4, 5 connections each"
SWITCH, NONE = ", a switch in the block", ", none"
FAIRNESS, RELATIVE = "fairness", "of the recipe"


def run(pool: Any, has_switch: bool, greenlets: int) -> Figures:
    made = [0] * greenlets
    calls = CALLS[has_switch]
    shares: list[float] = []

    def call(number: int) -> None:
        for _ in range(calls):
            with pool.get():
                if has_switch:
                    gevent.sleep(0)
            made[number] += 1
        if not shares:
            shares.append(min(made) / max(made))

    started = process_time()
    gevent.joinall([gevent.spawn(call, number) for number in range(greenlets)], raise_error=True)
    taken = process_time() - started
    return {"us": taken / (calls * greenlets) * 1e6, **({FAIRNESS: shares[0]} if has_switch else {})}


def measure(is_quick: bool) -> dict[str, Any]:
    greenlets = 50 if is_quick else GREENLETS
    with ExitStack() as stack:
        single = stack.enter_context(Pool(SIZE, keepalive=KEEPALIVE))
        cluster = stack.enter_context(Cluster(places(4), SIZE // 4, keepalive=KEEPALIVE))
        single.wait(timeout=30)
        cluster.wait(timeout=30)
        pools = {RECIPE: Recipe(SIZE), FAIR: FairFloor(SIZE), SINGLE: single, CLUSTER: cluster}
        rows: Rows = {}
        for text, has_switch in ((SWITCH, True), (NONE, False)):
            contestants: dict[str, Callable[[], Figures]] = {
                name + text: partial(run, pool, has_switch, greenlets) for name, pool in pools.items()
            }
            part = alternate(contestants, QUICK_ROUNDS if is_quick else AT_LEAST)
            compare(part, RECIPE + text, "us", RELATIVE)
            rows |= part
    return {"rows": rows, "left_out": []}
