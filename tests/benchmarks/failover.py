"""Failover: one of three redis-servers is killed, stopped, or restarted under load; what callers see of it.

Thirty greenlets call PING, 20 ms apart, with a read timeout of half a second and ``@retry``. Ours keeps connections
alive every second, HAProxy checks with PING as often, and both have twenty connections to each server.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import gevent

from geventconnpool import retry
from tests.benchmarks.pinging import CLUSTER, HAPROXY, caller, missing, open_pool, start_redis
from tests.benchmarks.rounds import AT_LEAST, Figures, Rows, alternate
from tests.servers import Redis

SIZE, KEEPALIVE = 20, 1.0  # connections to each server: two of them have enough for all callers
GREENLETS, PAUSE, RETRIES = 30, 0.02, 3
BEFORE, QUIET, LONGEST = 0.5, 1.6, 5.0  # seconds before the fault; without a failure after it, and at most
DOWN = 0.5  # seconds until a server that is restarted is there again
BUCKET = 0.05  # seconds, in the plot
KILLED, STOPPED, RESTARTED = ", one killed", ", one stopped", ", one restarted"
FAILED, ATTEMPTS, LONGEST_CALL = "failed calls", "failed attempts", "longest call s"
LEFT, LAST = "traffic has left after s", "last failure after s"


@dataclass
class Attempt:
    begun: float
    ended: float
    is_good: bool


class Load:
    """Callers, who note when each attempt, and each call with its retries, began and ended, and how."""

    def __init__(self, pool: Any) -> None:
        self.attempts: list[Attempt] = []
        self.calls: list[Attempt] = []
        call = caller(pool)

        @retry(max_failures=RETRIES)
        def retried() -> None:
            self._note(self.attempts, call)

        self._retried = retried
        self._is_over = False
        self._greenlets = [gevent.spawn(self._work, number / GREENLETS * PAUSE) for number in range(GREENLETS)]

    def _work(self, delay: float) -> None:
        gevent.sleep(delay)
        while not self._is_over:
            try:
                self._note(self.calls, self._retried)
            except Exception:  # noted
                gevent.sleep(PAUSE)
            gevent.sleep(PAUSE)

    @staticmethod
    def _note(notes: list[Attempt], call: Callable[[], None]) -> None:
        begun, is_good = monotonic(), False
        try:
            call()
            is_good = True
        finally:
            notes.append(Attempt(begun, monotonic(), is_good))

    def last_failure(self) -> float:
        return max((attempt.ended for attempt in self.attempts if not attempt.is_good), default=0.0)

    def end(self) -> None:
        self._is_over = True
        gevent.joinall(self._greenlets, raise_error=True)


def kill(victim: Redis) -> None:
    victim.kill()


def stop(victim: Redis) -> None:
    victim.pause()


def restart(victim: Redis) -> None:
    victim.kill()
    gevent.sleep(DOWN)
    victim.start()


FAULTS = {KILLED: kill, STOPPED: stop, RESTARTED: restart}
Points = list[tuple[float, float]]


def run(kind: str, servers: list[Redis], fault: Callable[[Redis], None], points: Points) -> Figures:
    with ExitStack() as stack:
        stack.callback(_recover, servers[0])
        pool = open_pool(kind, servers, SIZE, KEEPALIVE, stack)
        load = Load(pool)
        gevent.sleep(BEFORE)
        when = monotonic()
        fault(servers[0])
        while monotonic() - max(when, load.last_failure()) < QUIET and monotonic() - when < LONGEST:
            gevent.sleep(0.05)
        load.end()
        points[:] = _over_time(load.calls, when)
        return _figures(load, when)


def _recover(victim: Redis) -> None:
    """Have it serve again, whatever was done to it."""
    victim.resume()
    if not victim.pid:
        victim.start()


def _figures(load: Load, when: float) -> Figures:
    failed = [attempt for attempt in load.attempts if not attempt.is_good]
    return {
        FAILED: float(sum(not call.is_good for call in load.calls)),
        ATTEMPTS: float(len(failed)),
        LONGEST_CALL: max(call.ended - call.begun for call in load.calls),
        LEFT: max((attempt.begun - when for attempt in failed), default=0.0),
        LAST: max((attempt.ended - when for attempt in failed), default=0.0),
    }


def _over_time(calls: list[Attempt], when: float) -> Points:
    """Return the longest call, in seconds, of those that began in each twentieth of a second; from the fault on."""
    longest: dict[int, float] = {}
    for call in calls:
        bucket = int((call.begun - when) // BUCKET)
        longest[bucket] = max(longest.get(bucket, 0.0), call.ended - call.begun)
    return [((bucket + 0.5) * BUCKET, seconds) for bucket, seconds in sorted(longest.items())]


def measure(is_quick: bool) -> dict[str, Any]:
    left_out = missing()
    if len(left_out) == 1 and left_out[0].startswith("all"):
        return {"rows": {}, "left_out": left_out}
    kinds = [CLUSTER] + ([] if left_out else [HAPROXY])
    rows: Rows = {}
    points: dict[str, Points] = {kind + text: [] for text in FAULTS for kind in kinds}
    with ExitStack() as stack:
        servers = start_redis(stack)
        for text, fault in FAULTS.items():
            contestants: dict[str, Callable[[], Figures]] = {
                kind + text: partial(run, kind, servers, fault, points[kind + text]) for kind in kinds
            }
            rows |= alternate(contestants, 1 if is_quick else AT_LEAST)
    return {"rows": rows, "left_out": left_out, "over time": points}
