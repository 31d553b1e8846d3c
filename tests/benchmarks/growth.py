"""Growth: what more endpoints, more waiters and more connections cost, in time and in memory; what a pool at rest does.

Connections are stand-ins without a descriptor, since the system has not that many. Time is processor time.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import process_time
from typing import Any

import gevent
from gevent import Greenlet, get_hub

from tests.benchmarks.checkout import through
from tests.benchmarks.rounds import AT_LEAST, QUICK_ROUNDS, Figures, Row, Rows, alternate, timed
from tests.benchmarks.standins import TokenCluster, TokenPool, places

ENDPOINTS = (1, 3, 10, 100, 1000, 10_000)
CONNECTIONS = (1, 10, 100, 1000, 10_000)
WAITERS = (1, 10, 100, 1000, 10_000, 100_000)
QUICK = (1, 20)
SECONDS = 0.02  # for each size in each round
MANY = 20  # from so many on, what there is once does not count much
REST = 2.0  # seconds for which it is looked at what a pool at rest does
KEEPALIVE = 30.0
US, KB, START = "us per call", "KB each", "start us each"
GREENLETS, TIMERS, IDLE = "greenlets", "timers", "CPU at rest, ms/s"
ENDPOINT, BARE, CONNECTION, WAITER = "endpoints, ", "endpoints without connections, ", "connections, ", "waiters, "


def label(kind: str, number: int) -> str:
    return f"{kind}{number:,}"


Make = Callable[[], Any]


def bare(number: int) -> Any:
    """Return a cluster that connects nowhere before somebody calls."""
    return TokenCluster(places(number), 10, min_size=0, keepalive=KEEPALIVE)


def full(number: int) -> Any:
    return _filled(TokenCluster(places(number), 1, keepalive=KEEPALIVE), number)


def lone(number: int) -> Any:
    return _filled(TokenPool(number, keepalive=KEEPALIVE, max_connecting=64), number)


def _filled(pool: Any, number: int) -> Any:
    """Return it when all is open. To be told would cost as much as what is measured."""
    with gevent.Timeout(60):
        while pool.opened < number:
            gevent.sleep(0.002)
    gevent.sleep(0.002)
    return pool


def end(pool: Any) -> None:
    """Close a pool, and wait until nothing of that is left to do."""
    pool.close(0)
    with gevent.Timeout(60):
        while pool.closed_ones < pool.opened:
            gevent.sleep(0.002)
    gevent.sleep(0.01)
    gc.collect()


# -- calls -------------------------------------------------------------------------------------------------------------


def calls(kind: str, make: Callable[[int], Any], sizes: tuple[int, ...], rounds: int) -> Rows:
    """Return the time of a call, by size."""
    with ExitStack() as stack:
        pools = {label(kind, number): make(number) for number in sizes}
        for pool in pools.values():
            stack.callback(end, pool)
        return timed({name: through(pool) for name, pool in pools.items()}, rounds, SECONDS, US)


def served(number: int) -> Figures:
    """Have so many greenlets wait for one connection; return what it takes until each of them has had it."""
    with TokenPool(1) as pool:
        pool.wait(timeout=30)
        started = process_time()
        held = pool.acquire()
        greenlets = [gevent.spawn(_borrow, pool) for _ in range(number)]
        gevent.sleep(0)
        pool.release(held)
        gevent.joinall(greenlets, raise_error=True)
        return {US: (process_time() - started) / number * 1e6}


def _borrow(pool: Any) -> None:
    with pool.get():
        pass


def queues(sizes: tuple[int, ...], rounds: int) -> Rows:
    rows: Rows = {}
    for number in sizes:
        rows |= alternate({label(WAITER, number): partial(served, number)}, rounds if number < 100_000 else 2)
    return rows


# -- start, memory, rest -----------------------------------------------------------------------------------------------


def start(make: Callable[[int], Any], number: int) -> float:
    """Return the processor time that it takes to make a pool, in microseconds for each."""
    gc.collect()
    started = process_time()
    pool = make(number)
    taken = process_time() - started
    end(pool)
    return taken / number * 1e6


def memory(make: Callable[[int], Any], number: int) -> float:
    """Return what a pool keeps allocated when it is at rest, in KB for each."""
    end(make(1))  # what is made once and for all
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        pool = make(number)
        gevent.sleep(0.01)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    end(pool)
    return (after - before) / number / 1024


def background(make: Make, seconds: float) -> Figures:
    """Return the greenlets and timers that a pool at rest has, and the processor time that it takes."""
    gevent.sleep(0.05)
    before = _greenlets(), _timers()
    pool = make()
    gevent.sleep(0.1)
    greenlets, timers = _greenlets() - before[0], _timers() - before[1]
    started = process_time()
    gevent.sleep(seconds)
    spent = process_time() - started
    end(pool)
    return {GREENLETS: greenlets, TIMERS: timers, IDLE: 1000 * spent / seconds}


def _greenlets() -> int:
    """Return how many greenlets there are that have not ended."""
    return sum(isinstance(o, Greenlet) and not o.dead for o in gc.get_objects())


def _timers() -> int:
    """Return what the event loop waits for beside its own."""
    return int(get_hub().loop.activecnt)


def measure_one(kind: str, make: Callable[[int], Any], number: int, rounds: int, rest: float) -> Row:
    row: Row = {START: [start(make, number) for _ in range(rounds if number < 10_000 else 2)]}
    if number >= MANY:
        row[KB] = [memory(make, number)]
    if rest:
        row |= {figure: [value] for figure, value in background(partial(make, number), rest).items()}
    return row


def measure(is_quick: bool) -> dict[str, Any]:
    rounds = QUICK_ROUNDS if is_quick else AT_LEAST
    endpoints, connections, waiters = (QUICK,) * 3 if is_quick else (ENDPOINTS, CONNECTIONS, WAITERS)
    rows = calls(ENDPOINT, full, endpoints, rounds) | calls(CONNECTION, lone, connections, rounds)
    rest = 0.05 if is_quick else REST
    for kind, make, sizes in ((BARE, bare, endpoints), (ENDPOINT, full, endpoints), (CONNECTION, lone, connections)):
        for number in sizes:
            rows.setdefault(label(kind, number), {}).update(
                measure_one(kind, make, number, rounds, rest if number == sizes[-1] or number == 1000 else 0.0)
            )
    return {"rows": rows | queues(waiters, rounds), "left_out": []}
