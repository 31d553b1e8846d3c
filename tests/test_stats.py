"""What ``stats()`` says to a native thread, such as an exporter of metrics has."""

from __future__ import annotations

import sys
import threading
from itertools import pairwise
from random import Random
from typing import Any

import gevent

from geventconnpool import ClusterPool, Endpoint
from geventconnpool.cluster import Resolution
from geventconnpool.cluster._load import Load
from geventconnpool.cluster._members import Moves
from tests.servers import wait_until

COUNTERS = ("gets", "waits", "wait_seconds", "timeouts", "refused", "opened", "open_errors", "closed")


class Told:
    """A resolver that says what it has been told to."""

    min_refresh = max_refresh = 0.001
    empty_hold = 0.0

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.endpoints = endpoints

    def resolve(self, _service: str | None) -> Resolution:
        return Resolution(self.endpoints, ttl=0.001)


class Things(ClusterPool[Any]):
    def _new_connection(self, endpoint: Endpoint) -> Any:
        return object()


def test_no_counter_goes_back_for_a_native_thread_that_looks_while_endpoints_leave():
    endpoints = [Endpoint("10.0.0.1", port) for port in range(1, 5)]
    told = Told(tuple(endpoints))
    seen: list[list[float]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            stats = pool.stats()
            seen.append([getattr(stats, name) for name in COUNTERS])

    with Things(told, 1, name="things", outlier=None) as pool:
        pool.wait(4, timeout=5)
        thread = threading.Thread(target=look)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # so that it breaks in everywhere
        thread.start()
        try:
            for turn in range(300):
                told.endpoints = tuple(endpoints[: 4 - turn % 2 * 2])
                for _ in range(20):
                    with pool.get(timeout=5):
                        pass
                gevent.sleep(0.003)
        finally:
            stop.set()
            thread.join()
            sys.setswitchinterval(interval)

    assert len(seen) > 1000
    assert [pair for pair in pairwise(seen) if any(after < before for before, after in zip(*pair, strict=True))] == []
    assert pool.stats().gets == 6000


def test_who_looks_while_an_endpoint_never_ceases_to_leave_is_told_all_the_same():
    moves = Moves()

    with moves:
        assert moves.between(lambda: "this") == "this"


def test_the_time_waited_for_endpoints_that_leave_is_the_same_to_the_last_bit():
    told = Told(tuple(Endpoint("10.0.0.1", port) for port in range(1, 41)))
    cluster = Things(told, 1)
    cluster.wait(timeout=5)
    rng = Random(1)
    for pool in cluster.pools.values():
        pool._lender.wait_seconds = rng.random()
    totals = [cluster.stats().wait_seconds]
    while told.endpoints:
        told.endpoints = told.endpoints[1:]
        wait_until(lambda: len(cluster.pools) == len(told.endpoints))
        totals.append(cluster.stats().wait_seconds)
    cluster.close()

    assert totals == [totals[0]] * 41


def test_to_look_changes_nothing_of_what_endpoints_are_judged_by():
    cluster = Things(Told((Endpoint("10.0.0.1", 1),)), 1)
    cluster.wait(timeout=5)
    for _ in range(5):
        with cluster.get():
            pass
    (member,) = cluster._lender.members
    names = [name for kind in Load.__mro__ for name in getattr(kind, "__slots__", ())]
    before = {name: getattr(member.load, name) for name in names}
    (entry,) = cluster.stats().endpoints
    after = {name: getattr(member.load, name) for name in names}
    cluster.close()

    assert after == before
    assert after["_ended"] > 0
    assert entry.latency == member.latency
