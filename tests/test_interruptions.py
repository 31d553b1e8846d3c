"""A Timeout, a kill or another exception at any switch of any operation loses no slot, connection or wake-up."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import Greenlet, GreenletExit

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, PoolClosed, PoolError, retry
from geventconnpool._queue import CHECKING, CLOSING, CONNECTING, IDLE, IN_USE
from tests.servers import wait_until
from tests.switches import Interrupter

EXCEPTIONS = [gevent.Timeout(None), GreenletExit(), RuntimeError("an ordinary one")]
IDS = ["Timeout", "GreenletExit", "Exception"]


def pause() -> None:
    """Switch away, and stay away for longer than the one turn of the loop in which an interruption comes."""
    gevent.sleep(0.001)


class Connection:
    """Remembers whether it is open, and who uses it."""

    def __init__(self) -> None:
        self.is_open = True
        self.user: Any = None

    def close(self) -> None:
        pause()
        self.is_open = False


class Scripted:
    """Hooks that switch twice each, and let an interrupter watch one of them."""

    made: list[Connection]
    interrupter: Interrupter | None
    watched: str

    def _prepare(self) -> None:
        self.made, self.interrupter, self.watched = [], None, ""

    def _step(self, hook: str) -> None:
        watching = self.interrupter if hook == self.watched else None
        if watching is not None:
            watching.watch()
        pause()
        pause()
        if watching is not None:
            watching.leave()

    def _new_connection(self, endpoint: Endpoint | None = None) -> Connection:
        self._step("connect")
        self.made.append(Connection())
        return self.made[-1]

    def _keepalive(self, c: Connection) -> None:
        self._step("keepalive")

    def _close_connection(self, c: Connection) -> None:
        c.is_open = False
        self._step("close")


class Pool(Scripted, ConnectionPool[Connection]):
    pass


class Cluster(Scripted, ClusterPool[Connection]):
    pass


def make_pool(size: int = 2, **options: Any) -> Pool:
    pool = Pool.__new__(Pool)
    pool._prepare()
    pool.__init__(size, **options)  # type: ignore[misc]
    pool.wait()
    return pool


def make_cluster(size: int = 1) -> Cluster:
    cluster = Cluster.__new__(Cluster)
    cluster._prepare()
    cluster.__init__([("127.0.0.1", 1), ("127.0.0.1", 2)], size)  # type: ignore[misc]
    cluster.wait()
    return cluster


def settle(pool: Any) -> None:
    """Wait until nothing is under way, and every connection is at rest again."""
    open_connections = pool._lender.engine.queue.open
    wait_until(
        lambda: not open_connections if pool.closed else pool.stats().idle == pool.stats().size,
        what=f"rest of {pool!r}",
    )


def check(pool: Any) -> None:
    """Assert the invariants of a pool at rest, then that its end closes all that was ever opened."""
    source = pool._lender
    for slots in source.pools():
        states = Counter(slot.state for slot in slots.slots)
        assert (states[IDLE], states[IN_USE]) == (len(slots.idle), slots.in_use)
        assert (states[CONNECTING], states[CHECKING], states[CLOSING]) == (
            slots.connecting,
            slots.checking,
            slots.closing,
        )
        assert len(slots.slots) <= slots.size
        assert slots.in_use == 0
    assert not source.engine.queue.waiting
    assert not source.engine.queue.todo
    assert {id(c) for c in pool.made if c.is_open} == set(source.engine.queue.open)

    assert pool.close(5)
    assert [c for c in pool.made if c.is_open] == []
    stats = pool.stats()
    assert (stats.open, stats.opened) == (0, stats.closed)


def no_greenlet_is_left() -> bool:
    """Whether no pool's greenlet is left; the garbage of others may stand in the way of counting all."""
    gc.collect()
    return not [g for g in gc.get_objects() if isinstance(g, Greenlet) and not g.dead and g is not gevent.getcurrent()]


def use(pool: Any, interrupter: Interrupter, **options: Any) -> None:
    """Borrow, be alone with the connection, return."""
    interrupter.watch()
    with pool.get(**options) as c:
        assert c.user is None
        c.user = gevent.getcurrent()
        pause()
        c.user = None
    interrupter.leave()


def run(victim: Callable[[Interrupter], object], interrupter: Interrupter) -> None:
    """Run the operation in a greenlet; if it was hit, the very exception must come out of it."""
    outcome: list[BaseException | None] = []

    def operation() -> None:
        try:
            victim(interrupter)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    with interrupter:
        gevent.spawn(operation).join()
    assert outcome == [interrupter.exc if interrupter.hit else None]


def at_every_switch(exc: BaseException, make: Callable[[], Any], attempt: Callable[[Any, Interrupter], None]) -> int:
    """Attempt an operation on a fresh pool, hit at its 1st, 2nd, ... switch until it ends unhit; return the hits."""
    hits = 0
    while True:
        pool = make()
        interrupter = Interrupter(hits + 1, exc)
        attempt(pool, interrupter)
        settle(pool)
        check(pool)
        assert no_greenlet_is_left()
        if not interrupter.hit:
            return hits
        hits += 1


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=IDS)
def test_a_get_that_does_not_wait_has_no_switch_but_those_of_its_block(exc: BaseException) -> None:
    def attempt(pool: Pool, interrupter: Interrupter) -> None:
        run(lambda i: use(pool, i), interrupter)

    assert at_every_switch(exc, make_pool, attempt) == 1


@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize("exc", EXCEPTIONS, ids=IDS)
def test_a_get_that_waits_can_be_hit_anywhere(exc: BaseException, timeout: float | None) -> None:
    def attempt(pool: Pool, interrupter: Interrupter) -> None:
        busy = [gevent.spawn(hold, pool, 3) for _ in range(2)]
        pause()
        run(lambda i: use(pool, i, timeout=timeout), interrupter)
        gevent.joinall(busy, raise_error=True)

    assert at_every_switch(exc, make_pool, attempt) == 2


def hold(pool: Any, turns: int) -> None:
    """Keep a connection for some turns of the loop."""
    with pool.get():
        for _ in range(turns):
            pause()


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=IDS)
def test_a_connection_handed_to_a_waiter_who_is_hit_in_the_same_turn_goes_to_the_next(exc: BaseException) -> None:
    pool = make_pool(size=1)
    lent = pool.acquire()
    served = []

    def next_in_line() -> None:
        with pool.get() as c:
            served.append(c)

    interrupter = Interrupter(1, exc, before=lambda: pool.release(lent))
    second: list[Any] = []

    def first(i: Interrupter) -> None:
        i.watch()
        second.append(gevent.spawn(next_in_line))
        with pool.get() as c:
            served.append(c)

    run(first, interrupter)
    gevent.joinall(second, timeout=5, raise_error=True)

    assert interrupter.hit
    assert served == [lent]  # by the second, and the same connection: nobody has used it
    assert pool.stats().discarded["interrupted"] == 0
    check(pool)


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=IDS)
@pytest.mark.parametrize("hook", ["connect", "keepalive", "close"])
def test_a_hook_can_be_hit_anywhere(hook: str, exc: BaseException) -> None:
    def make() -> Pool:
        return make_pool(keepalive=0.01)

    def attempt(pool: Pool, interrupter: Interrupter) -> None:
        pool.interrupter, pool.watched = interrupter, hook
        with interrupter:
            with pytest.raises(OSError, match="broken"), pool.get():  # so that one is closed and one opened
                raise OSError("broken")
            runs = pool.stats().opened
            wait_until(
                lambda: interrupter._victim is not None and (interrupter.hit or not interrupter._left), what=hook
            )
            wait_until(lambda: pool.stats().opened > runs - 1)
        pool.watched = ""

    assert at_every_switch(exc, make, attempt) == 2


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=IDS)
def test_a_close_that_waits_can_be_hit_anywhere_and_the_pool_is_closed_all_the_same(exc: BaseException) -> None:
    def attempt(pool: Pool, interrupter: Interrupter) -> None:
        busy = gevent.spawn(hold, pool, 3)
        pause()

        def close(i: Interrupter) -> None:
            i.watch()
            pool.close(5)
            i.leave()

        run(close, interrupter)
        busy.join()
        with pytest.raises(PoolClosed):
            pool.acquire(timeout=0)

    assert at_every_switch(exc, make_pool, attempt) >= 1


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=IDS)
def test_a_wait_can_be_hit_anywhere(exc: BaseException) -> None:
    def attempt(pool: Pool, interrupter: Interrupter) -> None:
        with pytest.raises(OSError, match="broken"), pool.get():
            raise OSError("broken")

        def wait(i: Interrupter) -> None:
            i.watch()
            pool.wait(timeout=5)
            i.leave()

        run(wait, interrupter)

    assert at_every_switch(exc, make_pool, attempt) >= 1


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=IDS)
def test_a_get_from_a_cluster_that_waits_can_be_hit_anywhere(exc: BaseException) -> None:
    def attempt(cluster: Cluster, interrupter: Interrupter) -> None:
        busy = [gevent.spawn(hold, cluster, 3) for _ in range(2)]
        pause()
        run(lambda i: use(cluster, i, timeout=5), interrupter)
        gevent.joinall(busy, raise_error=True)

    assert at_every_switch(exc, make_cluster, attempt) == 2


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=IDS)
def test_a_retried_call_on_a_cluster_can_be_hit_anywhere(exc: BaseException) -> None:
    def attempt(cluster: Cluster, interrupter: Interrupter) -> None:
        tried: list[Endpoint] = []

        @retry(max_failures=2, interval=0.001)
        def call() -> None:
            with cluster.get(timeout=5) as c:
                tried.append(cluster.endpoint_of(c))
                pause()
                if len(tried) == 1:
                    raise OSError("the first attempt fails")

        def operation(i: Interrupter) -> None:
            i.watch()
            call()
            i.leave()

        run(operation, interrupter)
        assert len(set(tried)) == len(tried)  # never twice the same endpoint

    assert at_every_switch(exc, make_cluster, attempt) == 3  # in the first block, between the attempts, in the second


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=IDS)
def test_a_refused_waiter_who_is_hit_in_the_same_turn_gets_the_exception_and_not_the_refusal(
    exc: BaseException,
) -> None:
    pool = make_pool(size=1)
    lent = pool.acquire()
    interrupter = Interrupter(1, exc, before=lambda: pool.close(0))

    run(lambda i: use(pool, i), interrupter)

    assert interrupter.hit
    with pytest.raises(PoolError):
        pool.acquire(timeout=0)
    pool.release(lent)
    wait_until(lambda: not lent.is_open)
