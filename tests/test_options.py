"""What the options of a pool do, and ``resize`` and ``reset``: of a lone pool and of a cluster where both have them.

Connections are made by ``connect``, a function of the endpoint (None in a lone pool) that a test may replace: it may
return, raise or hang. Tests with the argument ``kind`` are run with a pool and with a cluster of one endpoint.
"""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventconnpool import (
    ClusterPool,
    ConnectionPool,
    Endpoint,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolTimeout,
    PoolUnavailable,
    events,
    retry,
)
from geventconnpool.cluster import OutlierDetection, Resolution, _pool
from tests.servers import wait_until

A, B, C = (Endpoint(f"{name}.test", 1, (f"10.0.0.{number}",)) for number, name in enumerate("abc", 1))
FOR_LONG = OutlierDetection(consecutive_failures=2, base_ejection_time=30, jitter=0)

# -- what the tests set up ---------------------------------------------------------------------------------------------


class Connection:
    """Remembers where it leads, how long it lived, and how it ended: "closed", "aborted", or None while it is open."""

    ended: str | None = None
    age = 0.0

    def __init__(self, endpoint: Endpoint | None) -> None:
        self.endpoint = endpoint
        self.opened_at = time.monotonic()

    def end(self, how: str) -> None:
        assert self.ended is None, "closed twice"
        self.ended = how
        self.age = time.monotonic() - self.opened_at


def at_once(endpoint: Endpoint | None) -> None:
    """Connect."""


def refuse(endpoint: Endpoint | None) -> None:
    """Fail to connect."""
    raise OSError("refused")


class Hooks:
    """Notes the endpoints to which ``attempts`` were made, the connections ``made`` and ``kept`` alive, the ``heard``
    events, and the ``most`` connections that were open at a time.
    """

    alive: list[Any] = []

    def prepare(self, connect: Callable[[Any], object], keep: Callable[[Any], object]) -> None:
        self.connect = connect
        self.keep = keep
        self.attempts: list[Endpoint | None] = []
        self.made: list[Connection] = []
        self.kept: list[Connection] = []
        self.heard: list[Any] = []
        self.most = 0
        Hooks.alive.append(self)

    def _new_connection(self, endpoint: Endpoint | None = None) -> Connection:
        self.attempts.append(endpoint)
        self.connect(endpoint)
        self.made.append(Connection(endpoint))
        self.most = max(self.most, len(self.live()))
        return self.made[-1]

    def _keepalive(self, c: Connection) -> None:
        self.kept.append(c)
        self.keep(c)

    def _close_connection(self, c: Connection) -> None:
        c.end("closed")

    def _abort_connection(self, c: Connection) -> None:
        c.end("aborted")

    def live(self) -> list[Connection]:
        return [c for c in self.made if c.ended is None]

    def kinds(self, *kinds: type[events.Event]) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kinds)]

    def closes(self) -> list[str | None]:
        """The causes of the closes that were told of."""
        return [event.cause for event in self.kinds(events.ConnectionClosed)]


class Pool(Hooks, ConnectionPool[Any]):
    def __init__(self, size: int, connect: Any = at_once, keep: Any = at_once, **options: Any) -> None:
        self.prepare(connect, keep)
        super().__init__(size, **{"on_event": self.heard.append, **options})


class Cluster(Hooks, ClusterPool[Any]):
    def __init__(self, size: int, connect: Any = at_once, keep: Any = at_once, to: Any = (A,), **options: Any) -> None:
        self.prepare(connect, keep)
        super().__init__(to, size, **{"on_event": self.heard.append, **options})


@pytest.fixture(params=[Pool, Cluster], ids=["pool", "cluster"])
def kind(request):
    return request.param


@pytest.fixture(autouse=True)
def hub_errors(monkeypatch):
    """No error reaches the hub's error handler."""
    errors: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, tb: errors.append(value))
    yield
    assert errors == []


@pytest.fixture(autouse=True)
def nothing_is_left_open(hub_errors):
    """After each test its pools are closed; then every connection that was ever opened is closed, and nothing rests."""
    Hooks.alive.clear()
    yield
    for pool in Hooks.alive:
        if hasattr(pool, "closed"):
            gevent.spawn(pool.close, 0).join()  # which spares what its own greenlet has borrowed
            wait_until(partial(is_over, pool), what=f"the end of {pool}")


def is_over(pool: Any) -> bool:
    s = pool.stats()
    return (s.closed, s.open, s.connecting, s.waiting, pool.live()) == (s.opened, 0, 0, 0, [])


@pytest.fixture
def gate(nothing_is_left_open):
    """An event to hang on, set when the test is over."""
    event = Event()
    yield event
    event.set()


def hang(gate: Event) -> Callable[[Any], None]:
    def connect(endpoint: Any) -> None:
        gate.wait()

    return connect


def hang_at(endpoint: Endpoint, gate: Event) -> Callable[[Any], object]:
    return lambda where: gate.wait() if where == endpoint else None


def ready(pool: Any) -> Any:
    """Return the pool when it has what it keeps."""
    pool.wait(timeout=30)
    return pool


def take(pool: Any, count: int) -> list[Connection]:
    return [pool.acquire(timeout=30) for _ in range(count)]


def give(pool: Any, connections: list[Connection]) -> None:
    for c in connections:
        pool.release(c)


def use(pool: Any) -> Connection:
    with pool.get(timeout=30) as c:
        return c  # type: ignore[no-any-return]


def rotation(pool: Any, count: int) -> list[Connection]:
    return [use(pool) for _ in range(count)]


def line_up(pool: Any, count: int, timeout: float | None = 30.0) -> list[Any]:
    """Return greenlets that wait for a connection each, in this order, and return it without giving it back.

    Where those who wait are refused soon, some may be so before the next has come.
    """
    started = []
    for _ in range(count):
        before = pool.stats().waiting
        started.append(gevent.spawn(outcome, partial(pool.acquire, timeout)))
        wait_until(partial(is_in_line, pool, before + 1, started[-1]), what="one more waiting")
    return started


def is_in_line(pool: Any, count: int, greenlet: Any) -> bool:
    return bool(pool.stats().waiting == count or greenlet.ready())


def outcome(job: Callable[[], Any]) -> Any:
    """Return what the job returns or raises."""
    try:
        return job()
    except Exception as error:
        return error


def values(greenlets: list[Any]) -> list[Any]:
    return [greenlet.get(timeout=30) for greenlet in greenlets]


def causes(pool: Any) -> dict[str, int]:
    return {cause: count for cause, count in pool.stats().discarded.items() if count}


def gauges(pool: Any) -> tuple[int, int, int, int]:
    s = pool.stats()
    return s.idle, s.in_use, s.connecting, s.waiting


def first_of(*order: Endpoint) -> Callable[[], Any]:
    """A balancer that prefers endpoints in this order."""

    class InOrder:
        def choose(self, candidates: Any, now: float) -> Any:
            return min(candidates, key=lambda candidate: order.index(candidate.endpoint))

    return InOrder


class Names:
    """A resolver that raises until it has an answer."""

    min_refresh = 0.001

    def __init__(self, *endpoints: Endpoint) -> None:
        self.endpoints = endpoints

    def resolve(self, service: str | None) -> Resolution:
        if not self.endpoints:
            raise OSError("no DNS")
        return Resolution(self.endpoints, ttl=0.001)


def loop_turns(seconds: float) -> int:
    """Return how often the loop woke within that time, once of which was for us."""
    turns: list[int] = []
    watcher = gevent.get_hub().loop.check()
    watcher.start(turns.append, 1)
    try:
        gevent.sleep(seconds)
    finally:
        watcher.close()
    return len(turns)


def rests() -> bool:
    """Say whether nothing of ours wakes the loop, in one of ten tries: what stops this process wakes it as well."""
    return any(loop_turns(0.2) <= 3 for _ in range(10))


def warnings(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# -- min_size: growth --------------------------------------------------------------------------------------------------


def test_above_min_size_nothing_is_opened_while_nobody_waits(kind):
    pool = ready(kind(5, min_size=2))
    take(pool, 2)
    gevent.sleep(0.03)

    assert len(pool.attempts) == 2
    assert gauges(pool) == (0, 2, 0, 0)
    assert pool.stats().min_size == 2


def test_as_many_are_opened_as_wait_and_none_above_size(kind, gate):
    pool = ready(kind(4, min_size=1))
    pool.connect = hang(gate)
    take(pool, 1)
    line_up(pool, 2)

    assert gauges(pool) == (0, 1, 2, 2)
    line_up(pool, 4)
    assert gauges(pool) == (0, 1, 3, 6)
    gate.set()
    wait_until(lambda: pool.stats().in_use == 4)
    assert gauges(pool) == (0, 4, 0, 3)
    assert pool.most == 4


def test_growth_keeps_to_max_connecting(kind, gate):
    pool = kind(10, hang(gate), min_size=0, max_connecting=3)
    waiting = line_up(pool, 8)

    assert gauges(pool) == (0, 0, 3, 8)
    gate.set()
    assert len(set(values(waiting))) == 8
    assert len(pool.attempts) == 8


def test_while_connects_fail_one_at_a_time_is_tried_for_those_who_wait(kind, gate):
    pool = kind(5, refuse, min_size=0)
    waiting = line_up(pool, 3)
    wait_until(lambda: pool.stats().open_errors >= 2)
    pool.connect = hang(gate)
    wait_until(lambda: pool.stats().connecting)
    gevent.sleep(0.02)

    assert pool.stats().connecting == 1
    gate.set()
    assert len(set(values(waiting))) == 3


def test_a_pool_with_min_size_zero_connects_for_the_first_get(kind):
    pool = kind(3, min_size=0)
    gevent.sleep(0.02)
    before = len(pool.attempts)

    assert use(pool) is use(pool)
    assert before == 0
    assert len(pool.attempts) == 1


def test_who_waits_gets_what_comes_back_first_and_what_was_opened_for_him_is_left_idle(kind, gate):
    pool = ready(kind(2, min_size=1))
    pool.connect = hang(gate)
    c = pool.acquire()
    waiting = line_up(pool, 1)
    pool.release(c)

    assert values(waiting) == [c]
    assert gauges(pool) == (0, 1, 1, 0)
    gate.set()
    wait_until(lambda: pool.stats().idle == 1)
    assert pool.stats().opened == 2


def test_a_connection_that_breaks_is_replaced_for_those_who_wait_and_for_nobody_else(kind):
    pool = kind(1, min_size=0)
    c = pool.acquire(timeout=5)
    waiting = line_up(pool, 1)
    pool.discard(c)
    [second] = values(waiting)
    pool.discard(second)
    gevent.sleep(0.03)

    assert second is not c
    assert len(pool.attempts) == 2
    assert gauges(pool) == (0, 0, 0, 0)


@pytest.mark.parametrize(("options", "error"), [({"timeout": 0}, PoolTimeout), ({"max_waiting": 0}, PoolFull)])
def test_a_get_that_does_not_wait_has_a_connection_opened_where_there_is_room(kind, options, error):
    pool = kind(1, min_size=0, **options)
    with pytest.raises(error):
        pool.acquire()
    wait_until(lambda: pool.stats().idle == 1)

    assert len(pool.attempts) == 1
    assert pool.acquire() is pool.made[0]
    with pytest.raises(error):
        pool.acquire()
    gevent.sleep(0.02)
    assert len(pool.attempts) == 1


def test_gets_that_do_not_wait_have_one_connection_opened_between_them(kind, gate):
    pool = kind(5, hang(gate), min_size=0, timeout=0)
    for _ in range(10):
        with pytest.raises(PoolTimeout):
            pool.acquire()

    assert pool.stats().connecting == 1
    assert pool.stats().timeouts == 10


def test_wait_has_more_opened_than_is_kept(kind):
    pool = ready(kind(5, min_size=1))
    pool.wait(4, timeout=5)

    assert gauges(pool) == (4, 0, 0, 0)
    assert len(pool.attempts) == 4


def test_wait_gives_up_with_the_cause_and_has_no_more_opened(kind):
    pool = kind(3, refuse, min_size=0)
    with pytest.raises(PoolTimeout, match=r"not ready within \d+\.\d\d s") as caught:
        pool.wait(2, timeout=0.02)
    attempts = len(pool.attempts)
    gevent.sleep(0.15)

    assert isinstance(caught.value.__cause__, OSError)
    assert len(pool.attempts) == attempts


def test_wait_without_a_number_is_for_what_is_kept_but_a_cluster_opens_one_at_least():
    pool, cluster = Pool(3, min_size=0), Cluster(3, min_size=0, to=[A, B])
    pool.wait(timeout=5)
    cluster.wait(timeout=5)

    assert pool.attempts == []
    assert cluster.stats().open == 1


def test_wait_in_a_cluster_counts_connections_to_all_endpoints():
    pool = Cluster(2, to=[A, B, C], min_size=0)
    pool.wait(6, timeout=5)

    assert Counter(pool.attempts) == {A: 2, B: 2, C: 2}


def test_growth_goes_on_when_more_endpoints_are_wanted_than_a_cluster_connects_to_at_once():
    pool = Cluster(1, to=[Endpoint(f"{number}.test", 1) for number in range(100)], min_size=0)
    pool.wait(100, timeout=5)

    assert len(pool.attempts) == 100


def test_min_size_is_per_endpoint():
    pool = ready(Cluster(4, to=[A, B], min_size=1))

    assert sorted(pool.attempts, key=str) == [A, B]
    assert [(entry.pool.size, entry.pool.min_size) for entry in pool.stats().endpoints] == [(4, 1), (4, 1)]
    assert (pool.stats().size, pool.stats().min_size) == (8, 2)


def test_a_storm_of_gets_never_has_more_open_than_size(kind):
    pool = kind(3, lambda endpoint: gevent.sleep(0.001), min_size=0, max_idle=0.01)

    def call():
        with pool.get(timeout=5):
            gevent.sleep(0.001)

    gevent.joinall([gevent.spawn(call) for _ in range(100)], raise_error=True)

    assert pool.stats().gets == 100
    assert pool.most == 3
    wait_until(lambda: pool.stats().open == 0)


def test_growth_goes_where_the_balancer_prefers(gate):
    pool = Cluster(2, hang(gate), to=[A, B], min_size=0, balancer=first_of(B, A))
    line_up(pool, 3)

    assert pool.attempts == [B, B, A]


def test_an_endpoint_pool_grows_for_those_who_want_just_that():
    pool = Cluster(2, to=[A, B], min_size=0, balancer=first_of(B, A))
    with pool.pools[A].get(timeout=5) as c:
        assert c.endpoint == A

    assert pool.attempts == [A]


def test_growth_for_a_retried_call_goes_to_an_endpoint_that_it_does_not_avoid():
    pool = Cluster(2, to=[A, B], min_size=0, balancer=first_of(A, B), timeout=5, outlier=None)

    @retry(max_failures=1)
    def call():
        with pool.get() as c:
            if c.endpoint == A:
                raise OSError("broken")
            return c.endpoint

    assert call() == B
    assert pool.attempts == [A, B]


def test_a_connect_for_one_who_wants_just_that_endpoint_is_none_for_those_who_want_any(gate):
    pool = Cluster(1, hang(gate), to=[A, B], min_size=0, balancer=first_of(A, B))
    only = line_up(pool.pools[A], 1)
    anyone = line_up(pool, 1)

    assert pool.attempts == [A, B]
    gate.set()
    assert [c.endpoint for c in values(only + anyone)] == [A, B]


def test_who_waits_behind_one_that_gets_the_connect_under_way_has_another_endpoint_tried_again(gate):
    def connect(endpoint):
        if endpoint == B:
            refuse(endpoint)
        gate.wait()

    pool = Cluster(1, connect, to=[A, B], min_size=0, balancer=first_of(B, A), outlier=None)
    first = line_up(pool, 1)
    wait_until(lambda: pool.attempts == [B, A])
    second = line_up(pool, 1)
    pool.connect = hang_at(A, gate)
    gate.set()

    assert [c.endpoint for c in values(first + second)] == [A, B]


def test_those_who_wait_before_the_first_answer_are_spread_as_the_balancer_says(gate, monkeypatch):
    monkeypatch.setattr(_pool, "CHANGES_AT_ONCE", 10.0)  # all endpoints at once, on a busy machine, too

    class Slow(Names):
        def resolve(self, service):
            gate.wait()
            return super().resolve(service)

    pool = Cluster(8, to=Slow(A, B, C), min_size=0)
    waiting = line_up(pool, 9)
    gate.set()

    assert len(set(values(waiting))) == 9
    assert set(pool.attempts) == {A, B, C}


def test_when_an_endpoint_leaves_another_grows_for_those_who_wait(gate):
    names = Names(A, B)
    pool = Cluster(1, hang_at(A, gate), to=names, min_size=0, balancer=first_of(A, B))
    wait_until(lambda: len(pool.pools) == 2)
    waiting = line_up(pool, 1)
    names.endpoints = (B,)

    assert [c.endpoint for c in values(waiting)] == [B]
    assert pool.attempts == [A, B]


def test_when_an_endpoint_is_ejected_another_grows_for_those_who_wait():
    pool = ready(Cluster(1, to=[A, B], min_size=0, balancer=first_of(A, B), outlier=FOR_LONG))
    for _ in range(2):
        with pytest.raises(OSError, match="mine"):
            with pool.pools[A].get(timeout=5):
                raise OSError("mine")

    assert use(pool).endpoint == B


# -- max_idle ----------------------------------------------------------------------------------------------------------


def test_a_surplus_that_is_unused_is_closed_down_to_min_size_longest_unused_first(kind):
    pool = kind(4, min_size=1, max_idle=0.1)
    held = take(pool, 4)
    for c in held:
        pool.release(c)
        gevent.sleep(0.01)
    wait_until(lambda: len(pool.live()) == 1)
    ends = sorted(held[:3], key=lambda c: c.opened_at + c.age)
    gevent.sleep(0.15)

    assert ends == held[:3]
    assert pool.live() == held[3:]
    assert causes(pool) == {"idle": 3}
    assert {c.ended for c in ends} == {"closed"}
    assert pool.closes() == ["idle"] * 3


def test_keepalive_is_no_use_of_a_connection(kind):
    pool = kind(2, min_size=0, max_idle=0.15, keepalive=0.02)
    give(pool, take(pool, 2))
    wait_until(lambda: pool.stats().open == 0)

    assert pool.kept
    assert causes(pool) == {"idle": 2}


def test_a_connection_in_use_is_not_closed_and_one_that_came_back_rests_from_then_on(kind):
    pool = kind(2, min_size=0, max_idle=0.08)
    c = pool.acquire(timeout=5)
    gevent.sleep(0.15)
    returned_at = time.monotonic()
    pool.release(c)
    wait_until(lambda: c.ended)

    assert 0.07 < time.monotonic() - returned_at < 10
    assert use(pool) is not c


def test_a_full_pool_and_one_without_max_idle_close_nothing(kind):
    full, for_ever = ready(kind(2, max_idle=0.02)), kind(2, min_size=0, max_idle=None)
    use(for_ever)
    gevent.sleep(0.1)

    assert (causes(full), causes(for_ever)) == ({}, {})
    assert (full.stats().open, for_ever.stats().open) == (2, 1)


def test_each_endpoint_keeps_its_min_size():
    pool = Cluster(3, to=[A, B], min_size=1, max_idle=0.05)
    pool.wait(6, timeout=5)
    wait_until(lambda: pool.stats().open == 2)
    gevent.sleep(0.1)

    assert {c.endpoint for c in pool.live()} == {A, B}
    assert causes(pool) == {"idle": 4}


def test_a_pool_without_a_surplus_does_not_wake_to_look_for_one(kind):
    pool = ready(kind(3, min_size=1, max_idle=0.01))
    give(pool, take(pool, 3))
    wait_until(lambda: len(pool.live()) == 1)
    gevent.sleep(0.05)

    assert rests()


# -- lifo --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "is_lifo"),
    [
        ({}, False),
        ({"min_size": 3}, False),
        ({"min_size": 1}, True),
        ({"lifo": True}, True),
        ({"lifo": False, "min_size": 1}, False),
        ({"lifo": True, "min_size": 1}, True),
    ],
)
def test_a_full_pool_uses_all_in_turn_and_one_that_shrinks_the_last_again_unless_told(kind, options, is_lifo):
    pool = kind(3, **options)
    pool.wait(3, timeout=5)
    a, b, c = held = take(pool, 3)
    give(pool, held)

    assert rotation(pool, 4) == ([c, c, c, c] if is_lifo else [a, b, c, a])


def test_two_users_of_a_lifo_pool_leave_the_third_connection_alone(kind):
    pool = kind(3, min_size=1)
    held = take(pool, 3)
    give(pool, held)
    used = set()
    for _ in range(10):
        pair = take(pool, 2)
        used.update(pair)
        give(pool, pair)

    assert used == {held[1], held[2]}


def test_a_lifo_pool_keeps_all_alive_and_lends_the_last_used_all_the_same(kind):
    pool = kind(4, lifo=True, keepalive=0.1)
    held = take(pool, 4)
    give(pool, held)
    wait_until(lambda: len(pool.kept) >= 12)
    most, least = max(Counter(pool.kept).values()), min(Counter(pool.kept).values())
    wait_until(lambda: pool.stats().idle == 4)

    assert set(pool.kept) == set(held)
    assert most - least <= 1
    assert use(pool) in held
    last = use(pool)
    assert rotation(pool, 3) == [last] * 3


def test_in_a_lifo_pool_under_traffic_every_other_connection_is_kept_alive_in_time(kind):
    for _ in range(20):
        pool = kind(4, lifo=True, keepalive=0.1)
        give(pool, take(pool, 4))
        hot = use(pool)
        used, pause = use_for(pool, 0.4)
        counts = Counter(pool.kept)
        if pause < 0.05:  # else a busy machine has let the one that is used rest, too
            break

    assert used == {hot}
    assert counts[hot] == 0
    assert [counts[c] >= 2 for c in pool.made if c is not hot] == [True] * 3


def use_for(pool: Any, seconds: float) -> tuple[set[Connection], float]:
    """Use a pool again and again; return the connections that were lent, and the longest time between two uses."""
    used, pause = set(), 0.0
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        used.add(use(pool))
        gevent.sleep(0.005)
        pause = max(pause, time.monotonic() - now)
    return used, pause


def test_the_order_follows_a_resize_unless_it_was_told(kind):
    pool, told = ready(kind(2)), ready(kind(2, lifo=False))
    pool.resize(3, min_size=2)
    told.resize(3, min_size=2)

    assert len(set(rotation(pool, 4))) == 1
    assert len(set(rotation(told, 4))) == 2
    pool.resize(2)
    assert pool.stats().min_size == 2
    assert len(set(rotation(pool, 4))) == 2


# -- max_waiting -------------------------------------------------------------------------------------------------------


def test_who_finds_the_queue_full_is_refused_at_once_with_numbers(kind):
    pool = ready(kind(1, max_waiting=2, name="mine"))
    c = pool.acquire()
    waiting = line_up(pool, 2)
    started = time.monotonic()
    with pytest.raises(PoolFull) as caught:
        pool.acquire(timeout=5)

    assert time.monotonic() - started < 1
    assert str(caught.value).startswith("mine: 2 wait already (open 1")
    assert "in use 1" in str(caught.value)
    assert not isinstance(caught.value, OSError)
    assert (pool.stats().refused, pool.stats().waits, pool.stats().timeouts) == (1, 2, 0)
    pool.discard(c)
    [second, third] = (greenlet.get(timeout=5) if greenlet is waiting[0] else greenlet for greenlet in waiting)
    pool.release(second)
    assert third.get(timeout=5) is second


def test_a_get_that_would_not_wait_anyway_times_out_and_is_not_refused(kind):
    pool = ready(kind(1, max_waiting=0))
    pool.acquire()
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)

    assert (pool.stats().refused, pool.stats().timeouts) == (0, 1)


def test_with_max_waiting_zero_nobody_waits(kind):
    pool = ready(kind(1, max_waiting=0))
    c = pool.acquire()
    with pytest.raises(PoolFull, match="0 wait already"):
        pool.acquire()
    pool.release(c)

    assert use(pool) is c
    assert (pool.stats().refused, pool.stats().waits) == (1, 0)


def test_who_gave_up_waiting_leaves_room_for_the_next(kind):
    pool = ready(kind(1, max_waiting=1))
    c = pool.acquire()
    [gone] = line_up(pool, 1, timeout=0.01)
    assert isinstance(gone.get(timeout=5), PoolTimeout)
    waiting = line_up(pool, 1)
    pool.release(c)

    assert values(waiting) == [c]
    assert pool.stats().refused == 0


def test_max_waiting_bounds_the_one_queue_of_a_cluster():
    pool = ready(Cluster(1, to=[A, B], max_waiting=2))
    take(pool, 2)
    line_up(pool, 1)
    line_up(pool.pools[A], 1)
    with pytest.raises(PoolFull, match="2 wait already"):
        pool.acquire()
    with pytest.raises(PoolFull, match="2 wait already"):
        pool.pools[B].acquire()

    assert pool.stats().refused == 2
    assert pool.pools[B].stats().refused == 1


# -- max_lifetime ------------------------------------------------------------------------------------------------------


def test_connections_live_for_three_quarters_of_max_lifetime_or_more_each_for_a_time_of_its_own(kind):
    for _ in range(10):
        pool = ready(kind(40, max_lifetime=0.4, max_connecting=40))
        first = list(pool.made)
        wait_until(lambda: all(c.ended for c in first))  # noqa: B023  # it is called here
        ages = [c.age for c in first]
        assert min(ages) >= 0.295
        if max(ages) < 0.6 and max(ages) - min(ages) > 0.04:  # else a busy machine was late, for one or for all
            break

    assert max(ages) < 0.6
    assert max(ages) - min(ages) > 0.04
    wait_until(lambda: pool.stats().idle == 40)
    assert causes(pool)["lifetime"] >= 40
    assert {c.ended for c in first} == {"closed"}
    assert set(pool.closes()) == {"lifetime"}


def test_old_age_never_interrupts_a_user_and_takes_effect_at_return(kind):
    pool = ready(kind(1, max_lifetime=0.05))
    c = pool.acquire()
    gevent.sleep(0.15)
    assert c.ended is None
    pool.release(c)
    wait_until(lambda: c.ended)

    assert causes(pool) == {"lifetime": 1}
    assert use(pool) is pool.made[1]


def test_what_others_had_a_thundering_herd_of_reconnects_when_all_grew_old_together(kind):
    """Pools without a limit had every connection of a fleet replaced in the same second, and the server down."""
    under_way = []
    most = []

    def connect(endpoint):
        under_way.append(endpoint)
        most.append(len(under_way))
        gevent.sleep(0.01)
        under_way.pop()

    pool = ready(kind(30, max_lifetime=0.2, max_connecting=2))
    pool.connect = connect
    held = take(pool, 30)
    gevent.sleep(0.25)  # all are too old, and come back at once
    give(pool, held)
    fewest = 30
    while not all(c.ended for c in held):
        fewest = min(fewest, pool.stats().open)
        gevent.sleep(0.001)

    assert fewest == 28
    assert max(most) == 2
    assert {c.ended for c in held} == {"closed"}


def test_what_others_had_a_pool_that_retires_its_last_connections_while_no_new_ones_can_be_had(kind):
    pool = ready(
        kind(4, max_lifetime=0.1, max_connecting=1, outlier=None)
        if kind is Cluster
        else kind(4, max_lifetime=0.1, max_connecting=1)
    )
    pool.connect = refuse
    wait_until(lambda: pool.stats().open_errors >= 2)
    gevent.sleep(0.2)

    assert pool.stats().open == 3
    assert causes(pool) == {"lifetime": 1}
    pool.connect = at_once
    old = pool.live()
    wait_until(lambda: all(c.ended for c in old))


def test_the_last_connection_of_a_pool_that_cannot_grow_stays_though_it_is_old(kind):
    options: dict[str, Any] = {"outlier": None} if kind is Cluster else {}
    pool = ready(kind(2, min_size=1, max_lifetime=0.1, **options))
    c = pool.acquire()
    pool.connect = refuse
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.01)
    pool.release(c)
    gevent.sleep(0.2)

    assert use(pool) is c
    assert causes(pool) == {}
    pool.connect = at_once
    wait_until(lambda: c.ended)
    wait_until(lambda: pool.stats().open == 1)
    assert causes(pool) == {"lifetime": 1}


def test_a_lifetime_shorter_than_a_connect_takes_serves_all_the_same(kind):
    pool = kind(2, lambda endpoint: gevent.sleep(0.02), max_lifetime=0.005)
    used = set()
    wait_until(lambda: used.add(use(pool)) or len(used) >= 5)

    assert pool.most <= 2


def test_connections_that_were_spared_by_a_shrink_still_grow_old(kind):
    pool = ready(kind(2, max_lifetime=0.1))
    held = take(pool, 2)
    pool.resize(1)
    give(pool, held)
    wait_until(lambda: all(c.ended for c in held))

    assert causes(pool) == {"lifetime": 1}
    assert held[0].ended == held[1].ended == "closed"


# -- fail_after --------------------------------------------------------------------------------------------------------


def options_for(kind: Any, **options: Any) -> dict[str, Any]:
    """Return the options with which a cluster leaves a failing endpoint where it is, as a lone pool does."""
    return {**options, "outlier": None} if kind is Cluster else options


def test_after_fail_after_without_a_connection_those_who_wait_are_refused(kind):
    started = time.monotonic()
    pool = kind(2, refuse, **options_for(kind, fail_after=0.1, name="mine"))
    errors = values(line_up(pool, 3))

    assert 0.09 < time.monotonic() - started < 10
    assert {type(error) for error in errors} == {PoolUnavailable}
    assert len({id(error) for error in errors}) == 3
    assert re.match(r"mine: no connection for \d\.\d s \(open 0", str(errors[0]))
    assert [repr(error.__cause__) for error in errors] == ["OSError('refused')"] * 3
    assert pool.stats().waiting == 0


def test_then_who_comes_is_refused_at_once_while_the_pool_goes_on_trying_until_it_recovers(kind):
    pool = kind(2, refuse, **options_for(kind, fail_after=0.05))
    values(line_up(pool, 1))
    attempts = len(pool.attempts)
    started = time.monotonic()
    with pytest.raises(PoolUnavailable, match=r"no connection for \d\.\d s"):
        pool.acquire(timeout=5)
    with pytest.raises(PoolUnavailable):
        pool.acquire(timeout=0)

    assert time.monotonic() - started < 1
    assert (pool.stats().timeouts, pool.stats().refused) == (0, 0)
    wait_until(lambda: len(pool.attempts) > attempts + 1)
    pool.connect = at_once
    wait_until(lambda: pool.stats().idle == 2)
    assert use(pool) in pool.made


def test_connects_that_hang_count_as_no_connection(kind, gate):
    pool = kind(1, hang(gate), fail_after=0.05)
    [error] = values(line_up(pool, 1))

    assert isinstance(error, PoolUnavailable)
    assert "connecting" in str(error) or kind is Cluster
    assert error.__cause__ is None
    gate.set()
    wait_until(lambda: pool.stats().idle == 1)
    assert use(pool) is pool.made[0]


def test_the_time_begins_when_the_last_connection_is_lost(kind):
    pool = ready(kind(1, **options_for(kind, fail_after=0.1)))
    c = pool.acquire()
    gevent.sleep(0.15)
    pool.connect = refuse
    lost_at = time.monotonic()
    pool.discard(c)
    [error] = values(line_up(pool, 1))

    assert isinstance(error, PoolUnavailable)
    assert 0.08 < time.monotonic() - lost_at < 10


def test_as_long_as_one_connection_is_there_nobody_is_refused(kind):
    pool = kind(2, **options_for(kind, min_size=0, fail_after=0.02))
    c = pool.acquire(timeout=5)
    pool.connect = refuse
    waiting = line_up(pool, 1)
    gevent.sleep(0.1)

    assert pool.stats().waiting == 1
    pool.release(c)
    assert values(waiting) == [c]


def test_a_pool_that_keeps_none_is_down_only_if_it_cannot_serve_who_waits(kind):
    pool = kind(2, **options_for(kind, min_size=0, fail_after=0.05, max_idle=0.01))
    use(pool)
    wait_until(lambda: pool.stats().open == 0)
    gevent.sleep(0.1)

    assert use(pool) in pool.made
    wait_until(lambda: pool.stats().open == 0)
    pool.connect = refuse
    [error] = values(line_up(pool, 1))
    assert isinstance(error, PoolUnavailable)
    attempts = len(pool.attempts)
    wait_until(lambda: len(pool.attempts) > attempts)
    pool.connect = at_once
    wait_until(lambda: pool.stats().open == 1)
    assert use(pool) in pool.made


@pytest.mark.parametrize(("options", "first"), [({"timeout": 0.02}, PoolTimeout), ({"max_waiting": 0}, PoolFull)])
def test_a_pool_that_keeps_none_is_down_though_nobody_waits_for_so_long_himself(kind, options, first):
    pool = kind(2, refuse, **options_for(kind, min_size=0, fail_after=0.1, **options))
    errors = [outcome(pool.acquire)]
    deadline = time.monotonic() + 30
    while not isinstance(errors[-1], PoolUnavailable) and time.monotonic() < deadline:
        gevent.sleep(0.005)
        errors.append(outcome(pool.acquire))

    assert isinstance(errors[0], first)
    assert isinstance(errors[-1], PoolUnavailable)


def test_a_cluster_whose_dns_is_dead_refuses_after_fail_after_and_recovers():
    names = Names()
    pool = Cluster(1, to=names, fail_after=0.1)
    [error] = values(line_up(pool, 1))

    assert isinstance(error, PoolUnavailable)
    assert "no DNS" in str(error)
    assert repr(error.__cause__) == "OSError('no DNS')"
    names.endpoints = (A,)
    wait_until(lambda: pool.stats().idle == 1)
    assert use(pool).endpoint == A


def test_the_time_without_any_endpoint_counts_from_the_beginning():
    pool = Cluster(1, to=Names(), fail_after=0.4)
    gevent.sleep(0.45)
    started = time.monotonic()
    with pytest.raises(PoolUnavailable):
        pool.acquire(timeout=5)

    assert time.monotonic() - started < 0.3


def test_a_cluster_whose_endpoints_are_all_ejected_refuses_and_recovers():
    quick = OutlierDetection(consecutive_failures=1, base_ejection_time=0.05, jitter=0, max_ejection_percent=100)
    pool = Cluster(1, refuse, to=[A, B], fail_after=0.1, outlier=quick)
    [error] = values(line_up(pool, 1))

    assert isinstance(error, PoolUnavailable)
    assert "a.test:1" in str(error)
    pool.connect = at_once
    wait_until(lambda: pool.stats().idle == 2)
    assert use(pool) in pool.made


def test_one_endpoint_that_is_alive_is_enough():
    pool = Cluster(1, to=[A, B], fail_after=0.05, outlier=None)
    pool.connect = lambda endpoint: refuse(endpoint) if endpoint == B else None
    wait_until(lambda: pool.stats().open == 1)
    gevent.sleep(0.1)
    held = use(pool)

    assert held.endpoint == A
    with pytest.raises(PoolTimeout):
        pool.pools[B].acquire(timeout=0.02)


def test_with_fail_after_zero_nobody_waits_for_the_first_connection(kind, gate):
    pool = kind(1, hang(gate), fail_after=0)
    [error] = [outcome(partial(pool.acquire, 5))]

    assert isinstance(error, PoolUnavailable)


# -- hold_warning ------------------------------------------------------------------------------------------------------


def report_of_the_night(pool: Any, gate: Event) -> None:
    with pool.get():
        read_slowly(gate)


def read_slowly(gate: Event) -> None:
    gate.wait()


def test_a_lease_that_is_held_for_long_is_told_of_once_with_what_its_holder_is_doing(kind, gate, caplog):
    pool = ready(kind(1, hold_warning=0.05, name="mine"))
    holder = gevent.spawn(report_of_the_night, pool, gate)
    wait_until(lambda: warnings(caplog))
    gevent.sleep(0.15)

    [text] = warnings(caplog)
    assert text.startswith("mine")
    assert re.search(r"held for \d\.\d s", text)
    assert "report_of_the_night" in text
    assert "read_slowly" in text
    assert "gate.wait()" in text
    assert caplog.records[-1].pool == "mine"
    assert caplog.records[-1].name == "geventconnpool.pool"
    [event] = pool.kinds(events.ConnectionHeld)
    assert 0.05 <= event.seconds < 10
    assert event.endpoint == (A if kind is Cluster else None)
    gate.set()
    holder.get()


def test_each_lease_is_told_of_and_each_next_one_of_the_same_connection(kind, gate):
    pool = ready(kind(2, hold_warning=0.03))
    held = take(pool, 2)
    wait_until(lambda: len(pool.kinds(events.ConnectionHeld)) == 2)
    give(pool, held)
    pool.acquire()
    wait_until(lambda: len(pool.kinds(events.ConnectionHeld)) == 3)
    gevent.sleep(0.1)

    assert len(pool.kinds(events.ConnectionHeld)) == 3


def test_a_greenlet_that_ended_without_giving_back_is_told_of_too(kind, caplog):
    pool = ready(kind(1, hold_warning=0.03))
    gevent.spawn(pool.acquire).join()
    wait_until(lambda: warnings(caplog))

    assert "a greenlet that has ended" in warnings(caplog)[0]
    assert list(pool.kinds(events.ConnectionHeld)[0].stack) == []


def test_short_leases_are_not_told_of_however_many(kind, caplog):
    pool = ready(kind(1, hold_warning=0.06))
    held = []
    while sum(held) < 0.25:
        began = time.monotonic()
        with pool.get():
            gevent.sleep(0.005)
        held.append(time.monotonic() - began)
    long = [seconds for seconds in held if seconds >= 0.06]  # there is none but on a busy machine

    assert len(pool.kinds(events.ConnectionHeld)) <= len(long)
    assert len(warnings(caplog)) <= len(long)


def test_a_lease_is_told_of_before_it_has_lasted_twice_as_long_whenever_it_began(kind):
    def longest():
        pool = ready(kind(8, hold_warning=0.1))
        for _ in range(8):
            pool.acquire()
            gevent.sleep(0.02)
        wait_until(lambda: len(pool.kinds(events.ConnectionHeld)) == 8)
        return max(event.seconds for event in pool.kinds(events.ConnectionHeld))

    assert any(longest() < 0.18 for _ in range(10))  # a busy machine is late now and then


def test_a_warning_does_not_keep_alive_what_the_holder_has(kind, gate):
    class Heavy:
        pass

    pool = ready(kind(1, hold_warning=0.02))
    alive = []

    def hold():
        heavy = Heavy()
        alive.append(sum(isinstance(o, Heavy) for o in gc.get_objects()))
        with pool.get():
            gate.wait()
        del heavy

    holder = gevent.spawn(hold)
    wait_until(lambda: pool.kinds(events.ConnectionHeld))
    gate.set()
    holder.get()
    gc.collect()

    assert alive == [1]
    assert sum(isinstance(o, Heavy) for o in gc.get_objects()) == 0


def test_a_thousand_leases_that_are_held_for_long_are_all_told_of(gate, caplog):
    pool = Pool(1000, hold_warning=0.3, max_connecting=1000)
    pool.wait(timeout=30)
    holders = [gevent.spawn(report_of_the_night, pool, gate) for _ in range(1000)]
    wait_until(lambda: len(warnings(caplog)) == 1000)

    assert len(pool.kinds(events.ConnectionHeld)) == 1000
    gate.set()
    gevent.joinall(holders, raise_error=True)


# -- nested gets -------------------------------------------------------------------------------------------------------


def nest(pool: Any, barrier: Callable[[], object] = gc.isenabled) -> Any:
    with pool.get(timeout=5):
        barrier()
        with pool.get(timeout=0.05) as inner:
            return inner


def test_a_greenlet_that_holds_one_and_waits_for_another_is_told_of(kind, caplog):
    pool = ready(kind(1, name="mine"))
    with pytest.raises(PoolTimeout):
        nest(pool)
    wait_until(lambda: warnings(caplog))

    [text] = warnings(caplog)
    assert text.startswith("mine: possible deadlock: a greenlet that holds 1 waits for one more")
    assert "in nest" in text
    [event] = pool.kinds(events.NestedGet)
    assert event.held == 1


def test_a_nested_get_that_need_not_wait_is_not_told_of(kind):
    pool = ready(kind(2))
    nest(pool)
    with pool.get():
        with pytest.raises(PoolTimeout):
            with pool.get(), pool.get(timeout=0):
                pass
    gevent.sleep(0.02)

    assert pool.kinds(events.NestedGet) == []


def test_two_greenlets_that_wait_for_each_other_are_told_of_both(kind):
    pool = ready(kind(2))

    def both_hold():
        wait_until(lambda: pool.stats().in_use == 2)

    pair = [gevent.spawn(outcome, partial(nest, pool, both_hold)) for _ in range(2)]
    results = values(pair)
    wait_until(lambda: len(pool.kinds(events.NestedGet)) == 2)

    assert any(isinstance(result, PoolTimeout) for result in results)


def test_a_lease_held_through_many_nested_gets_is_told_of_once_and_the_next_again(kind):
    pool = ready(kind(1))
    for _ in range(2):
        with pool.get():
            for _ in range(3):
                with pytest.raises(PoolTimeout):
                    pool.acquire(timeout=0.001)
    gevent.sleep(0.02)

    assert [event.held for event in pool.kinds(events.NestedGet)] == [1, 1]


def test_who_waits_while_others_hold_is_not_told_of(kind):
    pool = ready(kind(1))
    gevent.spawn(pool.acquire).join()
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.02)

    assert pool.kinds(events.NestedGet) == []


def test_in_a_cluster_the_leases_of_all_endpoints_count():
    pool = ready(Cluster(1, to=[A, B]))
    with pool.pools[A].get(), pool.pools[B].get():
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.01)
    wait_until(lambda: pool.kinds(events.NestedGet))

    assert [event.held for event in pool.kinds(events.NestedGet)] == [2]


def test_after_a_look_at_very_many_connections_the_next_is_at_all_who_wait_some_time_later(kind, monkeypatch):
    monkeypatch.setattr("geventconnpool._queue.NESTED_LOOK", 100.0)  # as if there were so many more
    pool = ready(kind(1))
    for _ in range(2):
        with pool.get():
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=0.001)
    seen = len(pool.kinds(events.NestedGet))
    nested = gevent.spawn(outcome, partial(nest, pool))
    wait_until(lambda: len(pool.kinds(events.NestedGet)) == 2)  # by the look at all who wait
    nested.join()

    assert seen <= 1


# -- resize ------------------------------------------------------------------------------------------------------------


def test_a_full_pool_grows_at_once_and_serves_those_who_wait(kind):
    pool = ready(kind(1))
    take(pool, 1)
    waiting = line_up(pool, 2)
    pool.resize(3)

    assert len(set(values(waiting))) == 2
    assert (pool.size, pool.stats().size, pool.stats().min_size) == (3, 3, 3)
    assert len(pool.attempts) == 3


def test_a_pool_that_grows_on_demand_serves_those_who_wait_when_it_may_have_more(kind):
    pool = kind(1, min_size=0)
    take(pool, 1)
    waiting = line_up(pool, 3)
    pool.resize(3)

    wait_until(lambda: pool.stats().in_use == 3)
    assert pool.stats().waiting == 1
    assert pool.stats().min_size == 0
    pool.release(waiting[0].get(timeout=5))
    assert isinstance(waiting[2].get(timeout=5), Connection)


def test_a_pool_shrinks_by_what_has_rested_longest(kind):
    pool = ready(kind(4))
    held = take(pool, 4)
    give(pool, [held[2], held[0], held[3], held[1]])
    pool.resize(2)
    wait_until(lambda: len(pool.live()) == 2)

    assert pool.live() == [held[1], held[3]]
    assert causes(pool) == {}
    assert [held[2].ended, held[0].ended] == ["closed", "closed"]
    assert pool.stats().closed == 2
    wait_until(lambda: pool.closes() == [None, None])


def test_what_is_borrowed_is_closed_at_its_return_and_only_as_many_as_are_too_much(kind):
    pool = ready(kind(3))
    a, b, c = held = take(pool, 3)
    pool.resize(2)
    assert [x.ended for x in held] == [None] * 3
    give(pool, [b, c, a])
    wait_until(lambda: pool.stats().closed == 1)

    assert pool.live() == [a, c]
    assert gauges(pool) == (2, 0, 0, 0)
    assert causes(pool) == {}


def test_a_pool_that_is_made_as_large_as_it_was_keeps_all_that_came_back_late(kind):
    pool = ready(kind(3))
    held = take(pool, 3)
    pool.resize(1)
    pool.resize(3)
    give(pool, held)
    gevent.sleep(0.02)

    assert pool.live() == held
    assert len(pool.attempts) == 3


def test_a_connect_that_is_too_much_is_cancelled(kind, gate):
    pool = kind(3, hang(gate))
    wait_until(lambda: len(pool.attempts) == 3)
    pool.resize(1)
    wait_until(lambda: pool.stats().connecting == 1)
    gate.set()
    ready(pool)
    gevent.sleep(0.02)

    assert gauges(pool) == (1, 0, 0, 0)
    assert (len(pool.attempts), pool.stats().open_errors) == (3, 0)


def test_a_connect_that_is_too_much_and_succeeds_all_the_same_is_closed(kind, gate):
    def connect(endpoint):
        try:
            gate.wait()
        except gevent.GreenletExit:
            gate.wait()

    pool = kind(2, connect)
    wait_until(lambda: len(pool.attempts) == 2)
    pool.resize(1)
    gevent.sleep(0.01)
    gate.set()
    wait_until(lambda: pool.stats().opened == 2)
    wait_until(lambda: pool.stats().closed == 1)

    assert gauges(pool) == (1, 0, 0, 0)
    assert causes(pool) == {}


def test_a_cancelled_connect_is_made_up_for_when_the_pool_is_as_large_as_it_was(kind, gate):
    pool = kind(3, hang(gate))
    wait_until(lambda: len(pool.attempts) == 3)
    pool.resize(1)
    pool.resize(3)
    gate.set()
    ready(pool)

    assert gauges(pool) == (3, 0, 0, 0)
    assert len(pool.attempts) == 5


def test_a_connection_under_keepalive_that_is_too_much_is_closed_after_it(kind, gate):
    pool = ready(kind(2, keep=hang(gate), keepalive=0.02, keepalive_timeout=30))
    wait_until(lambda: pool.kept)
    held = take(pool, 1)
    pool.resize(1)
    assert len(pool.live()) == 2
    gate.set()
    wait_until(lambda: len(pool.live()) == 1)
    give(pool, held)

    assert pool.live() == held
    assert causes(pool) == {}


def test_without_min_size_a_full_pool_stays_full_and_another_keeps_what_it_kept(kind):
    full, other = ready(kind(2)), ready(kind(4, min_size=3))
    seen = []
    for size in 5, 2, 4:
        full.resize(size)
        other.resize(size)
        seen.append((full.stats().min_size, other.stats().min_size))
    full.resize(4, 0)
    full.resize(6)

    assert seen == [(5, 3), (2, 2), (4, 2)]
    assert full.stats().min_size == 0


def test_min_size_can_be_raised_and_lowered(kind):
    pool = kind(4, min_size=0, max_idle=0.05)
    pool.resize(4, min_size=3)
    wait_until(lambda: pool.stats().open == 3)
    pool.resize(4, min_size=1)
    wait_until(lambda: pool.stats().open == 1)

    assert causes(pool) == {"idle": 2}


def test_endpoints_that_come_later_have_the_new_size():
    names = Names(A)
    pool = ready(Cluster(1, to=names))
    pool.resize(3, 2)
    names.endpoints = (A, B)
    wait_until(lambda: len(pool.pools) == 2)

    assert (pool.pools[B].size, pool.pools[B].stats().min_size) == (3, 2)
    assert pool.size == 3


def test_an_endpoint_that_was_ejected_comes_back_at_the_new_size():
    quick = OutlierDetection(consecutive_failures=1, base_ejection_time=0.1, jitter=0)
    pool = ready(Cluster(3, to=[A, B], outlier=quick))
    with pytest.raises(OSError, match="mine"):
        with pool.pools[A].get():
            raise OSError("mine")
    pool.resize(2)
    wait_until(lambda: pool.pools[A].stats().open == 2)
    gevent.sleep(0.02)

    assert [entry.pool.open for entry in pool.stats().endpoints] == [2, 2]


def test_connections_that_come_back_from_a_drain_are_no_more_than_the_new_size():
    names = Names(A, B)
    pool = ready(Cluster(3, to=names))
    held = take(pool.pools[A], 3)
    names.endpoints = (B,)
    wait_until(lambda: pool.kinds(events.EndpointRemoved))
    pool.resize(1)
    names.endpoints = (A, B)
    wait_until(lambda: len(pool.kinds(events.EndpointAdded)) == 3)
    give(pool, held)
    wait_until(lambda: len(pool.live()) == 2)

    assert Counter(c.endpoint for c in pool.live()) == {A: 1, B: 1}


def test_after_a_shrink_another_endpoint_grows_for_those_whose_connect_was_cancelled(gate):
    pool = Cluster(2, to=[A, B], min_size=0, balancer=first_of(A, B))
    take(pool, 1)
    pool.connect = hang_at(A, gate)
    waiting = line_up(pool, 1)
    assert pool.attempts == [A, A]
    pool.resize(1)

    assert [c.endpoint for c in values(waiting)] == [B]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ValueError, "size must be at least 1, not 0"),
        ((-1,), ValueError, "size must be at least 1, not -1"),
        ((2.0,), TypeError, "size must be an int, not 2.0"),
        (("2",), TypeError, "size must be an int, not '2'"),
        ((True,), TypeError, "size must be an int, not True"),
        ((None,), TypeError, "size must be an int, not None"),
        ((2, 3), ValueError, "min_size must be between 0 and 2, not 3"),
        ((2, -1), ValueError, "min_size must be between 0 and 2, not -1"),
        ((2, 1.5), TypeError, "min_size must be an int, not 1.5"),
    ],
)
def test_a_resize_that_makes_no_sense_is_refused_and_changes_nothing(kind, arguments, error, text):
    pool = ready(kind(3))
    with pytest.raises(error) as caught:
        pool.resize(*arguments)

    assert str(caught.value) == text
    assert (pool.size, pool.stats().min_size, pool.stats().open) == (3, 3, 3)


@pytest.mark.parametrize("deed", [lambda pool: pool.resize(2), lambda pool: pool.reset()])
def test_a_closed_pool_can_be_neither_resized_nor_reset(kind, deed):
    pool = ready(kind(1))
    c = pool.acquire()
    gevent.spawn(pool.close)
    wait_until(lambda: pool.closed)
    with pytest.raises(PoolClosed):
        deed(pool)

    pool.release(c)
    wait_until(lambda: c.ended)
    with pytest.raises(PoolClosed):
        deed(pool)
    assert len(pool.attempts) == 1


def test_the_pool_of_an_endpoint_cannot_be_resized():
    pool = ready(Cluster(1))
    with pytest.raises(RuntimeError, match="belongs to a cluster"):
        pool.pools[A].resize(2)

    assert pool.pools[A].size == 1


# -- reset -------------------------------------------------------------------------------------------------------------


def test_reset_replaces_idle_ones_at_once_and_borrowed_ones_at_their_return_with_a_goodbye(kind):
    pool = ready(kind(3))
    old = list(pool.made)
    held = take(pool, 1)
    pool.reset()
    wait_until(lambda: pool.stats().opened == 5)

    assert held[0].ended is None
    assert gauges(pool) == (2, 1, 0, 0)
    give(pool, held)
    wait_until(lambda: pool.stats().opened == 6)
    assert [c.ended for c in old] == ["closed"] * 3
    assert causes(pool) == {"reset": 3}
    assert pool.closes() == ["reset"] * 3
    assert set(rotation(pool, 3)) == set(pool.made[3:])


def test_a_lease_that_was_reset_ends_as_its_block_does(kind):
    pool = ready(kind(2))
    with pytest.raises(OSError, match="broken"):
        with pool.get():
            pool.reset()
            raise OSError("broken")
    wait_until(lambda: pool.stats().idle == 2)

    assert causes(pool) == {"reset": 1, "error": 1}


def test_reset_repeats_connects_that_are_under_way(kind, gate):
    pool = kind(2, hang(gate))
    wait_until(lambda: len(pool.attempts) == 2)
    pool.reset()
    wait_until(lambda: len(pool.attempts) == 4)
    gate.set()
    ready(pool)

    assert (pool.stats().opened, pool.stats().open_errors) == (2, 0)
    assert causes(pool) == {}


def test_a_connect_that_survives_a_reset_is_closed_and_repeated(kind, gate):
    def connect(endpoint):
        try:
            gate.wait()
        except gevent.GreenletExit:
            gate.wait()

    pool = kind(1, connect)
    wait_until(lambda: pool.attempts)
    pool.reset()
    gevent.sleep(0.01)
    gate.set()
    ready(pool)
    wait_until(lambda: pool.stats().closed == 1)

    assert causes(pool) == {"reset": 1}
    assert use(pool) is pool.made[1]


def test_reset_makes_a_pool_that_waits_to_try_again_try_now(kind):
    pool = kind(1, refuse, **options_for(kind))
    wait_until(lambda: pool.stats().open_errors == 3)
    pool.connect = at_once
    pool.reset()
    gevent.sleep(0.01)

    assert pool.stats().open == 1


def test_those_who_wait_get_what_replaces_the_old(kind):
    pool = ready(kind(1))
    old = pool.acquire()
    waiting = line_up(pool, 1)
    pool.reset()
    pool.release(old)

    assert values(waiting) == [pool.made[1]]


def test_reset_of_a_connection_under_keepalive_takes_effect_after_it(kind, gate):
    pool = ready(kind(1, keep=hang(gate), keepalive=0.02, keepalive_timeout=30))
    wait_until(lambda: pool.kept)
    pool.reset()
    assert pool.made[0].ended is None
    gate.set()
    wait_until(lambda: pool.stats().opened == 2)

    assert causes(pool) == {"reset": 1}
    assert pool.made[0].ended == "closed"


def test_reset_of_a_pool_that_grows_on_demand_opens_what_it_keeps(kind):
    pool = kind(3, min_size=1)
    pool.wait(3, timeout=5)
    pool.reset()
    wait_until(lambda: pool.stats().closed == 3)
    wait_until(lambda: pool.stats().idle == 1)
    gevent.sleep(0.02)

    assert pool.stats().opened == 4


def test_reset_never_switches(kind):
    pool = ready(kind(2))
    ran = []
    gevent.spawn(ran.append, "other")
    pool.reset()
    pool.resize(3)

    assert ran == []


def test_reset_of_one_endpoint_leaves_the_others_alone():
    pool = ready(Cluster(2, to=[A, B]))
    pool.pools[A].reset()
    wait_until(lambda: pool.stats().opened == 6)

    assert [c.ended for c in pool.made[:4] if c.endpoint == B] == [None, None]
    assert [c.ended for c in pool.made[:4] if c.endpoint == A] == ["closed", "closed"]
    assert causes(pool) == {"reset": 2}


def test_a_connection_on_trial_while_all_are_reset_is_replaced_too(gate):
    quick = OutlierDetection(consecutive_failures=1, base_ejection_time=0.02, jitter=0)
    pool = ready(Cluster(1, to=[A, B], outlier=quick))
    pool.keep = hang(gate)
    with pytest.raises(OSError, match="mine"):
        with pool.pools[A].get():
            raise OSError("mine")
    wait_until(lambda: pool.kept)  # the probe is open, and is kept alive
    probe = pool.kept[0]
    pool.reset()
    gate.set()
    wait_until(lambda: pool.kinds(events.EndpointReadmitted))
    wait_until(lambda: pool.pools[A].stats().idle == 1)

    assert use(pool.pools[A]) is not probe
    assert causes(pool) == {"error": 1, "reset": 2}


def reset_in_connect(pool):
    pool.connect = lambda endpoint: (setattr(pool, "connect", at_once), pool.reset())
    pool.reset()


def reset_in_close(pool):
    pool.end_with = pool.reset
    pool.reset()


def reset_in_event(pool):
    pool.on_close = pool.reset
    pool.reset()


def reset_in_block(pool):
    with pool.get():
        pool.reset()
        pool.reset()


@pytest.mark.parametrize("deed", [reset_in_connect, reset_in_close, reset_in_event, reset_in_block])
def test_reset_may_be_called_from_anywhere(kind, deed):
    def call(name):
        job, _ = vars(pool).pop(name, None), None
        if job is not None:
            job()

    class Asks(kind):
        def _close_connection(self, c):
            super()._close_connection(c)
            call("end_with")

    def told(event):
        if isinstance(event, events.ConnectionClosed):
            call("on_close")

    pool = Asks(2, on_event=told)
    ready(pool)
    first = list(pool.made)
    deed(pool)
    wait_until(lambda: all(c.ended for c in first))
    wait_until(lambda: pool.stats().idle == 2)

    assert set(causes(pool)) == {"reset"}
    assert use(pool) in pool.live()


# -- what a get that found nothing says --------------------------------------------------------------------------------


def test_pool_timeout_tells_the_numbers_and_has_the_last_connect_error_as_its_cause():
    pool = Pool(3, name="mine", min_size=0)
    held = take(pool, 1)
    pool.connect = refuse
    [error] = values(line_up(pool, 1, timeout=0.05))

    assert re.sub(r"\d\.\d\d s", "0.05 s", str(error)) == (
        "mine: no connection within 0.05 s (open 1 of 3, idle 0, in use 1, connecting 0, waiting 0; "
        "last error: OSError('refused'))"
    )
    assert error.__cause__ is pool.stats().last_error
    assert isinstance(error, PoolError)
    assert not isinstance(error, OSError)
    give(pool, held)


def test_pool_timeout_of_a_cluster_tells_of_each_endpoint():
    pool = Cluster(1, refuse, to=[A, B], name="mine", outlier=None)
    wait_until(lambda: pool.stats().open_errors >= 2)
    [error] = values(line_up(pool, 1, timeout=0.05))

    text = re.sub(r"within \d\.\d\d s", "within 0.05 s", str(error))
    assert re.sub(r"next connect in \d\.\d s|connecting now", "soon", text) == (
        "mine: no connection within 0.05 s (open 0, idle 0, in use 0, waiting 0; "
        "a.test:1 active, in use 0, last failure OSError('refused'), soon; "
        "b.test:1 active, in use 0, last failure OSError('refused'), soon)"
    )
    assert repr(error.__cause__) == "OSError('refused')"


def test_pool_timeout_of_a_pool_whose_connects_never_failed_has_no_cause(kind):
    pool = ready(kind(1))
    pool.acquire()
    [error] = values(line_up(pool, 1, timeout=0.01))

    assert error.__cause__ is None
    assert (pool.stats().timeouts, pool.stats().waits) == (1, 1)
    assert 0.01 <= pool.stats().wait_seconds < 10


# -- bad input ---------------------------------------------------------------------------------------------------------

WRONG = [
    ("min_size", -1, ValueError, "min_size must be between 0 and 2, not -1"),
    ("min_size", 3, ValueError, "min_size must be between 0 and 2, not 3"),
    ("min_size", 1.0, TypeError, "min_size must be an int, not 1.0"),
    ("min_size", True, TypeError, "min_size must be an int, not True"),
    ("max_waiting", -1, ValueError, "max_waiting must be at least 0, not -1"),
    ("max_waiting", 1.5, TypeError, "max_waiting must be an int, not 1.5"),
    ("max_waiting", float("inf"), TypeError, "max_waiting must be an int, not inf"),
    ("max_lifetime", 0, ValueError, "max_lifetime must be more than 0 seconds, not 0"),
    ("max_lifetime", -1, ValueError, "max_lifetime must be more than 0 seconds, not -1"),
    ("max_lifetime", float("nan"), ValueError, "max_lifetime must be more than 0 seconds, not nan"),
    ("max_lifetime", "60", TypeError, "max_lifetime must be a number of seconds, not '60'"),
    ("max_idle", 0, ValueError, "max_idle must be more than 0 seconds, not 0"),
    ("max_idle", float("inf"), ValueError, "max_idle must be more than 0 seconds, not inf"),
    ("max_idle", True, TypeError, "max_idle must be a number of seconds, not True"),
    ("lifo", 1, TypeError, "lifo must be True, False or None, not 1"),
    ("lifo", "yes", TypeError, "lifo must be True, False or None, not 'yes'"),
    ("fail_after", -0.1, ValueError, "fail_after must be 0 or more seconds, not -0.1"),
    ("fail_after", "5", TypeError, "fail_after must be a number of seconds, not '5'"),
    ("hold_warning", 0, ValueError, "hold_warning must be more than 0 seconds, not 0"),
    ("hold_warning", [], TypeError, "hold_warning must be a number of seconds, not []"),
]


@pytest.mark.parametrize(("parameter", "value", "error", "text"), WRONG)
def test_an_option_that_makes_no_sense_is_refused_by_name_and_value(kind, parameter, value, error, text):
    with pytest.raises(error) as caught:
        kind(2, **{parameter: value})

    assert str(caught.value) == text


# -- all at once -------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "min_size": 1,
    "max_waiting": 50,
    "max_lifetime": 300,
    "max_idle": 60,
    "fail_after": 5,
    "hold_warning": 30,
    "keepalive": 20,
    "timeout": 5,
}


def test_a_pool_with_every_option_rests_without_a_greenlet_and_without_waking(kind):
    pool = ready(kind(4, **EVERYTHING))
    give(pool, take(pool, 4))
    gevent.sleep(0.05)

    assert rests()
    gc.collect()
    assert [g for g in gc.get_objects() if isinstance(g, gevent.Greenlet) and not g.dead] == []


CLOSE_AND_REST = """
import gevent
from geventconnpool import ClusterPool, ConnectionPool

def connect(self, endpoint=None):
    return object()

hooks = {"_new_connection": connect, "_keepalive": lambda self, c: None}
options = dict(min_size=1, max_lifetime=60, max_idle=60, fail_after=0.2, hold_warning=60, keepalive=60)
lone = type("Lone", (ConnectionPool,), hooks)(2, **options)
cluster = type("Cluster", (ClusterPool,), hooks)([("a.test", 1)], 2, **options)
for pool in lone, cluster:
    pool.wait()
gevent.sleep(0.3)
for pool in lone, cluster:
    pool.close()
print(gevent.wait(timeout=10))
"""


def test_closed_pools_with_every_option_leave_nothing_for_the_loop_to_wait_for():
    done = subprocess.run([sys.executable, "-c", CLOSE_AND_REST], capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("True\n", "")


def test_options_that_all_refuse_together_refuse_and_recover(kind):
    pool = kind(1, refuse, **options_for(kind, min_size=0, max_waiting=0, fail_after=0.05))
    errors = [type(outcome(pool.acquire))]
    while errors[-1] is not PoolUnavailable:
        gevent.sleep(0.01)
        errors.append(type(outcome(pool.acquire)))
    assert set(errors) == {PoolFull, PoolUnavailable}
    pool.connect = at_once
    wait_until(lambda: isinstance(outcome(partial(use, pool)), Connection))

    assert pool.stats().refused >= errors.count(PoolFull)
    assert pool.stats().waiting == 0


def test_resize_and_reset_while_a_pool_is_used_lose_nobody(kind):
    pool = kind(4, lambda endpoint: gevent.sleep(0.001), min_size=1, max_lifetime=0.05, max_idle=0.01, keepalive=0.02)
    served = []

    def call():
        for _ in range(30):
            with pool.get(timeout=30) as c:
                assert c.ended is None
                gevent.sleep(0.001)
            served.append(c)

    users = [gevent.spawn(call) for _ in range(20)]
    for size in (1, 4, 2, 3, 1, 5) * 5:
        pool.resize(size, min_size=size // 2)
        gevent.sleep(0.002)
        pool.reset()
        gevent.sleep(0.002)
    gevent.joinall(users, raise_error=True)

    assert len(served) == 600
    assert pool.stats().gets == 600
    assert pool.stats().timeouts == 0
    s = pool.stats()
    assert s.opened == s.closed + len(pool.live())


def test_a_close_in_the_middle_of_resizing_and_resetting_ends_them_all(kind):
    pool = ready(kind(4, lambda endpoint: gevent.sleep(0.002), min_size=1, fail_after=1))
    held = take(pool, 4)
    waiting = line_up(pool, 3)
    pool.resize(2)
    pool.reset()
    closing = gevent.spawn(pool.close, 5)
    wait_until(lambda: pool.closed)

    assert {type(error) for error in values(waiting)} == {PoolClosed}
    give(pool, held)
    assert closing.get(timeout=5) is True
    assert pool.live() == []
    assert pool.stats().opened == pool.stats().closed
