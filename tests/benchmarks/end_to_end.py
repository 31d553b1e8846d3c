"""End to end: PING by one greenlet and by thirty, one call after the other, to three redis-servers on this machine."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import monotonic, perf_counter
from typing import Any

import gevent

from tests.benchmarks.pinging import (
    CLUSTER,
    DIRECT,
    HAPROXY,
    NAIVE,
    Call,
    caller,
    connect,
    missing,
    open_pool,
    ping,
    start_redis,
)
from tests.benchmarks.rounds import QUICK_ROUNDS, ROUNDS, Figures, alternate
from tests.benchmarks.simulator import quantile

SIZE, KEEPALIVE = 10, 5.0
SECONDS = {1: 0.2, 30: 0.3}  # of each round, by greenlets
BARE = "no pool, one socket"  # for one greenlet: what no pool can be quicker than
ALONE, MANY = ", 1 greenlet", ", 30 greenlets"
TEXTS = {1: ALONE, 30: MANY}
CALLS, P50, P99, CPU = "calls/s", "p50 us", "p99 us", "CPU us per call"
PARTS = [10 ** (-n / 20) for n in range(61)]  # from all calls to one in a thousand


def run(call: Call, greenlets: int, seconds: float, latencies: list[float]) -> Figures:
    latencies.clear()
    cpu, started = _cpu(), monotonic()
    end = started + seconds

    def caller() -> None:
        while (begun := perf_counter()) < end:
            call()
            latencies.append(perf_counter() - begun)

    end += perf_counter() - monotonic()  # in the clock that is read for each call
    gevent.joinall([gevent.spawn(caller) for _ in range(greenlets)], raise_error=True)
    taken, spent = monotonic() - started, _cpu() - cpu
    number = len(latencies)
    us = [1e6 * value for value in latencies]
    return {CALLS: number / taken, P50: quantile(us, 0.5), P99: quantile(us, 0.99), CPU: 1e6 * spent / number}


def _cpu() -> float:
    """Return the processor time of this process, the client, in user mode and in the kernel."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(is_quick: bool) -> dict[str, Any]:
    left_out = missing()
    if len(left_out) == 1 and left_out[0].startswith("all"):
        return {"rows": {}, "left_out": left_out}
    kinds = [DIRECT, NAIVE, CLUSTER] + ([] if left_out else [HAPROXY])
    rows: dict[str, Any] = {}
    tails: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        servers = start_redis(stack)
        calls = {kind: caller(open_pool(kind, servers, SIZE, KEEPALIVE, stack)) for kind in kinds}
        bare = stack.enter_context(connect(servers[0].address))
        for greenlets, text in TEXTS.items():
            seconds = SECONDS[greenlets] / 10 if is_quick else SECONDS[greenlets]
            latencies: dict[str, list[float]] = {kind: [] for kind in kinds}
            contestants: dict[str, Callable[[], Figures]] = {
                kind + text: partial(run, call, greenlets, seconds, latencies[kind]) for kind, call in calls.items()
            }
            if greenlets == 1:
                contestants[BARE + text] = partial(run, partial(ping, bare), greenlets, seconds, [])
            rows |= alternate(contestants, QUICK_ROUNDS if is_quick else ROUNDS)
            tails |= {kind + text: _tail(latencies[kind]) for kind in kinds}
    return {"rows": rows, "left_out": left_out, "tails": tails}


def _tail(latencies: list[float]) -> list[tuple[float, float]]:
    """Return how many per cent of the last round's calls took longer than so many microseconds, as points."""
    return [(1e6 * quantile(latencies, 1.0 - part), 100 * part) for part in PARTS]
