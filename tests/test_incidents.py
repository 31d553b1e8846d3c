"""What other pools have done to their users, and this one must not: each test is named after what it would have done.

The incidents are those of ChatGPT (2023, redis-py #2624), SQLAlchemy #3803, psycopg #1208 and #1401, Vitess #20310,
asyncpg #467, ChatGPT (2024, a connection storm), pgx #1287, HikariCP #1819, eventlet #113, django-db-geventpool #45,
Vitess #20080, httpcore #1093. Others have tests of their own: answers that reach somebody else (test_cross_talk),
bookkeeping hit by a timeout (test_interruptions), starvation (test_pool), deadlocks in the garbage collector
(test_forgotten), storms at the end of lifetimes and nested gets (test_options), shared sockets after forks (test_fork).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventconnpool import ConnectionPool, PoolTimeout
from tests.servers import wait_until


class Connection:
    def __init__(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


class Pool(ConnectionPool[Connection]):
    """Connects when ``way`` is free, or fails with ``error``; ``most`` is how many connections were open at once."""

    def __init__(self, size: int, **options: Any) -> None:
        self.way = Event()
        self.way.set()
        self.error: BaseException | None = None
        self.made: list[Connection] = []
        self.attempts = self.under_way = self.most = self.kept = 0
        super().__init__(size, **options)

    def _new_connection(self) -> Connection:
        self.attempts += 1
        self.under_way += 1
        try:
            self.most = max(self.most, self.under_way + sum(c.is_open for c in self.made))
            self.way.wait()
            if self.error is not None:
                raise self.error
            self.made.append(Connection())
            return self.made[-1]
        finally:
            self.under_way -= 1

    def _keepalive(self, c: Connection) -> None:
        self.kept += 1
        self.way.wait()


@pytest.fixture
def pools() -> Iterator[list[Pool]]:
    made: list[Pool] = []
    yield made
    for pool in made:
        pool.way.set()
        assert pool.close(5)
        assert not any(c.is_open for c in pool.made)


@pytest.fixture
def make(pools: list[Pool]) -> Any:
    def make(size: int, *, wait: bool = True, **options: Any) -> Pool:
        pools.append(Pool(size, **options))
        if wait:
            pools[-1].wait()
        return pools[-1]

    return make


def waiting(pool: Pool, n: int, **options: Any) -> list[Any]:
    """Return greenlets that wait for a connection, in this order."""
    greenlets = [gevent.spawn(pool.acquire, **options) for _ in range(n)]
    wait_until(lambda: pool.stats().waiting == n, what="the waiters")
    return greenlets


def test_one_killed_request_does_not_cost_all_connections_of_the_pool(make: Any) -> None:
    pool = make(3)
    with pytest.raises(gevent.GreenletExit), pool.get():
        raise gevent.GreenletExit
    pool.wait()

    assert [c.is_open for c in pool.made] == [False, True, True, True]


def test_a_waiter_that_timed_out_does_not_swallow_the_next_connection(make: Any) -> None:
    pool = make(1)
    lent = pool.acquire()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        pool.acquire()
    pool.release(lent)

    assert pool.acquire(timeout=0) is lent
    pool.release(lent)


def test_a_timeout_round_a_get_is_not_swallowed_by_its_clean_up(make: Any) -> None:
    pool = make(1)
    lent = pool.acquire()
    mine = gevent.Timeout(0.01)
    with pytest.raises(gevent.Timeout) as raised, mine:
        pool.acquire(timeout=10)
    pool.release(lent)

    assert raised.value is mine


def test_connections_are_not_trapped_behind_waiters_whose_time_is_over(make: Any) -> None:
    pool = make(1)
    lent = pool.acquire()
    late = [gevent.spawn(pool.acquire, timeout=0.5) for _ in range(1000)]  # they run, and queue, in this order
    (live,) = [gevent.spawn(pool.acquire)]
    gevent.joinall(late, timeout=30)
    pool.release(lent)

    assert live.get(timeout=30) is lent
    assert {type(g.exception) for g in late} == {PoolTimeout}
    pool.release(lent)


def test_a_connection_granted_at_the_moment_of_the_timeout_is_not_lost(make: Any) -> None:
    pool = make(1)
    lent = pool.acquire()
    (waiter,) = waiting(pool, 1)
    waiter.kill(block=False)  # strikes at the next turn of the loop
    pool.release(lent)  # it is the waiter's from here, who is woken in the same turn, after that
    waiter.join()

    assert pool.acquire(timeout=0) is lent
    pool.release(lent)


def test_a_server_that_comes_back_is_not_stormed(make: Any) -> None:
    pool = make(50, wait=False, max_connecting=50)
    pool.error = OSError("down")
    wait_until(lambda: pool.stats().open_errors >= 50)
    before = pool.attempts
    waiters = waiting(pool, 100)
    gevent.sleep(0.3)  # 50 callers' worth of retries, were each to try for himself
    tried = pool.attempts - before
    gevent.killall(waiters)
    pool.error = None
    pool.wait(timeout=30)

    assert tried <= 10
    assert pool.most <= 50


def test_impatient_callers_do_not_kill_the_connect_that_the_next_one_needs(make: Any) -> None:
    pool = make(1, wait=False)
    pool.way.clear()
    for _ in range(5):
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.005)
    pool.way.set()
    c = pool.acquire(timeout=30)

    assert pool.attempts == 1
    pool.release(c)


def test_the_pool_is_not_empty_for_good_after_connects_that_never_returned(make: Any) -> None:
    pool = make(2, wait=False, open_timeout=0.05)
    pool.way.clear()
    wait_until(lambda: pool.stats().open_errors >= 2)
    pool.way.set()
    pool.wait(timeout=30)

    assert pool.stats().open == 2


def test_those_who_wait_get_the_replacement_of_a_connection_that_was_dropped(make: Any) -> None:
    pool = make(1)
    lent = pool.acquire()
    (waiter,) = waiting(pool, 1)
    pool.discard(lent)

    assert waiter.get(timeout=30) is pool.made[1]
    pool.release(pool.made[1])


def test_slow_connects_do_not_let_the_pool_grow_beyond_its_size(make: Any) -> None:
    pool = make(3, wait=False, min_size=0)
    pool.way.clear()
    waiters = waiting(pool, 20)
    pool.way.set()
    for waiter in waiters:
        pool.release(waiter.get(timeout=30))

    assert pool.most == 3


def test_keepalive_does_not_take_all_connections_from_the_callers(make: Any) -> None:
    pool = make(4, keepalive=0.02, keepalive_timeout=30)
    pool.way.clear()  # keepalives hang
    wait_until(lambda: pool.kept > 0)
    gevent.sleep(0.05)

    lent = [pool.acquire(timeout=0) for _ in range(3)]

    assert pool.kept == 1
    for c in lent:
        pool.release(c)


def test_a_call_that_is_cancelled_while_its_connection_is_being_made_frees_its_place(make: Any) -> None:
    pool = make(1, wait=False, min_size=0)
    pool.way.clear()
    (waiter,) = waiting(pool, 1)
    wait_until(lambda: pool.under_way == 1)
    waiter.kill()
    pool.way.set()
    c = pool.acquire(timeout=30)

    assert pool.stats().in_use == 1
    pool.release(c)
