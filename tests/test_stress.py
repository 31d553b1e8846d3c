"""Everything at once, in any order: nobody ever shares a connection, and all that was opened is closed in the end."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import gevent
import pytest

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, PoolError, PoolUnavailable, retry
from geventconnpool.cluster import OutlierDetection, Resolution
from tests.servers import wait_until

GREENLETS, CONNECTIONS, TURNS = 200, 20, 100
SEEDS = int(os.environ.get("STORMS", "2"))  # more of them by hand


class Connection:
    """Notices when two use it at a time, or when it is used after its end."""

    def __init__(self) -> None:
        self.user: Any = None
        self.ends = 0

    def use(self, rng: Random) -> None:
        assert self.user is None, "two users"
        self.user = gevent.getcurrent()
        try:
            gevent.sleep(rng.choice([0, 0, 0.001]))
        finally:
            self.user = None


class Scripted:
    """Hooks that take their time, fail now and then, and hang now and then."""

    rng: Random
    made: list[Connection]
    is_calm = False

    def _mishap(self, failing: float) -> None:
        gevent.sleep(self.rng.choice([0, 0.001]))
        if self.rng.random() < failing and not self.is_calm:
            if self.rng.random() < 0.1:
                gevent.sleep(60)
            raise OSError("mishap")

    def _new_connection(self, endpoint: Endpoint | None = None) -> Connection:
        self._mishap(0.2)
        self.made.append(Connection())
        return self.made[-1]

    def _keepalive(self, c: Connection) -> None:
        c.use(self.rng)
        self._mishap(0.2)

    def _close_connection(self, c: Connection) -> None:
        c.ends += 1
        self._mishap(0.1)


class Pool(Scripted, ConnectionPool[Connection]):
    pass


class Cluster(Scripted, ClusterPool[Connection]):
    pass


class Fickle:
    """Names other endpoints each time it is asked."""

    min_refresh = 0.01

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def resolve(self, service: str | None) -> Resolution:
        if self._rng.random() < 0.1:
            raise OSError("no DNS")
        names = self._rng.sample("abcde", self._rng.randint(1, 5))
        return Resolution(tuple(self._endpoint(name) for name in names), ttl=0)

    def _endpoint(self, name: str) -> Endpoint:
        addresses = self._rng.sample(["10.0.0.1", "10.0.0.2", "10.0.0.3"], 2)
        return Endpoint(name, 1, tuple(addresses), self._rng.choice([0, 0, 1]), self._rng.randint(0, 3))


def live(pool: Any, rng: Random) -> None:
    """Use the pool in every way there is, and be unlucky in every way there is."""
    for _ in range(TURNS):
        try:
            with gevent.Timeout(rng.choice([0.001, 0.01, 0.1, 1]), False):  # type: ignore[arg-type]  # False: it ends the block in silence
                rng.choices([borrow, by_hand, retried, collected, change], [40, 20, 20, 20, 1])[0](pool, rng)
        except (OSError, LookupError):
            pass
        except PoolError:
            gevent.sleep(rng.choice([0, 0.001, 0.01]))


def borrow(pool: Any, rng: Random) -> None:
    with pool.get(timeout=rng.choice([0, 0.01, 1])) as c:
        c.use(rng)
        if rng.random() < 0.2:
            pool.discard(c)
        if rng.random() < 0.3:
            raise rng.choice([OSError("mine"), LookupError("mine")])


def by_hand(pool: Any, rng: Random) -> None:
    c = pool.acquire(timeout=rng.choice([0, 0.01, 1]))
    try:
        c.use(rng)
    finally:
        rng.choice([pool.release, pool.discard])(c)


@retry(max_failures=3)
def retried(pool: Any, rng: Random) -> None:
    borrow(pool, rng)


def collected(pool: Any, rng: Random) -> None:
    """Leave a lease to the garbage collector."""

    def lease() -> Iterator[None]:
        with pool.get(timeout=0):
            yield

    cycle: list[Any] = [lease()]
    cycle.append(cycle)
    next(cycle[0])


def change(pool: Any, rng: Random) -> None:
    """Have another size, or other connections, all of a sudden."""
    size = rng.randint(1, CONNECTIONS)
    rng.choice([pool.reset, lambda: pool.resize(size), lambda: pool.resize(CONNECTIONS, rng.randint(0, size))])()


def options(rng: Random) -> dict[str, Any]:
    """Return all options, such that everything happens all the time."""
    return {
        "keepalive": 0.01,
        "open_timeout": 0.05,
        "keepalive_timeout": 0.05,
        "min_size": rng.randint(0, 4),
        "max_idle": 0.02,
        "max_lifetime": 0.1,
        "max_waiting": GREENLETS * 3 // 4,
        "lifo": rng.choice([True, False, None]),
        "fail_after": rng.choice([None, 0.1]),
        "hold_warning": 0.05,
    }


def check(pool: Any) -> None:
    """Assert that the pool is whole, and that it closes."""
    gc.collect()
    pool.is_calm = True
    pool.reset()
    wait_until(lambda: pool.stats().in_use == 0, what=f"the return of all connections of {pool!r}")
    wait_until(partial(lends, pool), what="a connection")
    for slots in pool._lender.pools():
        assert len(slots.slots) <= slots.size
    assert not pool._lender.engine.queue.waiting
    assert pool.close(30)
    wait_until(lambda: pool.stats().opened == pool.stats().closed, what=f"the end of all connections of {pool!r}")
    assert {c.ends for c in pool.made} == {1}
    assert len(pool.made) == pool.stats().opened
    queue = pool._lender.engine.queue
    assert (queue.open, queue.cut, queue.live, len(queue.waiting)) == ({}, {}, 0, 0)
    add_up(pool.stats())


def lends(pool: Any) -> bool:
    """Say whether it does; a connect that a busy machine holds up fails here, and the pool is down for a moment."""
    with suppress(PoolUnavailable), pool.get(timeout=30):
        return True
    return False


def add_up(stats: Any) -> None:
    assert (stats.open, stats.idle, stats.in_use, stats.connecting, stats.waiting) == (0, 0, 0, 0, 0)
    assert sum(stats.discarded.values()) <= stats.closed == stats.opened
    assert stats.gets > GREENLETS // 4


def storm(pool: Any, rng: Random) -> None:
    pool.wait(1, timeout=30)
    greenlets = [gevent.spawn(live, pool, Random(rng.random())) for _ in range(GREENLETS)]
    wait_until(lambda: any(g.ready() for g in greenlets), timeout=30, what="the first to be done")
    for greenlet in rng.sample(greenlets, GREENLETS // 10):
        greenlet.kill(block=False)
    gevent.joinall(greenlets, timeout=30)
    assert [g.exception for g in greenlets if g.exception is not None] == []
    assert all(greenlet.ready() for greenlet in greenlets)


@pytest.fixture(params=[700, 1], ids=["gc as usual", "gc at every turn"])
def weather(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("geventconnpool._engine.CLOSE_TIMEOUT", 0.05)
    before = gc.get_threshold()
    gc.set_threshold(request.param)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("weather")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_pool_survives_a_storm(seed: int) -> None:
    pool = Pool.__new__(Pool)
    pool.rng, pool.made = Random(seed), []
    pool.__init__(CONNECTIONS, **options(pool.rng))  # type: ignore[misc]

    storm(pool, pool.rng)
    check(pool)


@pytest.mark.usefixtures("weather")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_cluster_survives_a_storm(seed: int) -> None:
    pool = Cluster.__new__(Cluster)
    pool.rng, pool.made = Random(seed), []
    outlier = OutlierDetection(consecutive_failures=3, base_ejection_time=0.01, max_ejection_time=0.05)
    pool.__init__(  # type: ignore[misc]
        Fickle(pool.rng), 4, outlier=outlier, drain_timeout=0.05, **options(pool.rng)
    )

    storm(pool, pool.rng)
    check(pool)
