"""A Timeout, a kill or another exception at any switch of any operation loses no slot, connection or wake-up.

Nor do two of them, at any two switches: of two operations that meet, or of one that goes on after the first.
"""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import product
from typing import Any

import gevent
import pytest
from gevent import Greenlet, GreenletExit
from gevent.event import Event
from gevent.hub import Waiter

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, PoolClosed, PoolError, _retry, events, retry
from geventconnpool._queue import CHECKING, CLOSING, CONNECTING, IDLE, IN_USE
from geventconnpool.cluster import OutlierDetection, Resolution
from tests.servers import wait_until
from tests.switches import Interrupter

A, B = Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2)
QUICK = OutlierDetection(consecutive_failures=1, base_ejection_time=0.002, jitter=0)
KEPT: dict[str, Any] = {"keepalive": 0.01, "keepalive_timeout": 30}
BOUND = 0.05  # seconds for a hook that hangs

Kind = Callable[[], BaseException]
KINDS: list[type[BaseException]] = [gevent.Timeout, GreenletExit, RuntimeError]
PAIRS = [pytest.param(pair, id="-".join(kind.__name__ for kind in pair)) for pair in product(KINDS, KINDS)]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_pair = pytest.mark.parametrize("kinds", PAIRS)
some_pairs = pytest.mark.parametrize("kinds", [PAIRS[1], PAIRS[5], PAIRS[6]])  # each kind once as each


# -- what the tests set up ---------------------------------------------------------------------------------------------


def pause() -> None:
    """Switch away, and stay away for longer than the one turn of the loop in which an interruption comes."""
    gevent.sleep(0.001)


def plainly() -> None:
    """How a hook takes its time: it switches twice."""
    pause()
    pause()


def tidily() -> None:
    """The same, and then tidy up, which switches as often."""
    try:
        plainly()
    finally:
        plainly()


def stubbornly() -> None:
    """The same, and once more if it was hit."""
    try:
        plainly()
    except BaseException:
        plainly()


def hanging() -> None:
    """Hang until the bound comes, and then tidy up."""
    try:
        gevent.sleep(60)
    finally:
        plainly()


def hanging_at_the_end() -> None:
    """Hang until the bound comes when there is but to tidy up."""
    try:
        plainly()
    finally:
        gevent.sleep(60)


class Connection:
    """Remembers whether it is open, and who uses it. Who asks for its peer is told after ``look()``."""

    def __init__(self, look: Callable[[], object]) -> None:
        self.is_open = True
        self.user: Any = None
        self._look = look

    def getpeername(self) -> tuple[str, int]:
        self._look()
        return "127.0.0.1", 1


class Scripted:
    """Hooks that switch, and take ``steps`` where an interrupter watches.

    Each call of a hook is watched by the next of the ``watchers`` of that hook, as long as there are any.
    """

    made: list[Connection]
    heard: list[events.Event]
    watchers: defaultdict[str, list[Interrupter]]
    steps: Callable[[], None]
    has_begun: Event  # set when a hook begins that is watched
    resolver: Any

    def _prepare(self, resolver: Any = None) -> None:
        self.made, self.heard, self.watchers, self.resolver = [], [], defaultdict(list), resolver
        self.steps, self.has_begun = plainly, Event()

    def _step(self, hook: str) -> None:
        if not self.watchers[hook]:
            gevent.sleep(0)
            return
        watcher = self.watchers[hook].pop(0)
        watcher.watch()
        self.has_begun.set()
        self.steps()
        watcher.leave()

    def _look(self, hook: str) -> None:
        """A hook that switches only where it is watched."""
        if self.watchers[hook]:
            self._step(hook)

    def _new_connection(self, endpoint: Endpoint | None = None) -> Connection:
        self._step("connect")
        self.made.append(Connection(partial(self._look, "peer")))
        return self.made[-1]

    def _keepalive(self, c: Connection) -> None:
        self._step("keepalive")

    def _close_connection(self, c: Connection) -> None:
        c.is_open = False
        self._step("close")

    def hear(self, event: events.Event) -> None:
        self.heard.append(event)
        self._look("event")


class Pool(Scripted, ConnectionPool[Connection]):
    pass


class Cluster(Scripted, ClusterPool[Connection]):
    pass


class Deciding(Pool):
    """Hooks that switch though they must not."""

    def _is_reusable(self, c: Connection) -> bool:
        pause()
        return True

    def _is_connection_error(self, exc: BaseException) -> bool:
        pause()
        return False


def make_pool(size: int = 2, of: type[Pool] = Pool, **options: Any) -> Pool:
    pool = of.__new__(of)
    pool._prepare()
    pool.__init__(size, on_event=pool.hear, **options)  # type: ignore[misc]
    pool.wait()
    return pool


def make_cluster(size: int = 1, service: Any = (A, B), **options: Any) -> Cluster:
    """Return a cluster with as many connections as a pool has, if nothing else is said."""
    cluster = Cluster.__new__(Cluster)
    cluster._prepare(service)
    cluster.__init__(service, size, on_event=cluster.hear, **options)  # type: ignore[misc]
    cluster.wait()
    return cluster


either = pytest.mark.parametrize("make", [make_pool, make_cluster], ids=["pool", "cluster"])


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geventconnpool._slots.FIRST_RETRY", 0.001)
    monkeypatch.setattr("geventconnpool.cluster._pool.CHANGES_AT_ONCE", 10.0)  # on a busy machine, too


@pytest.fixture(scope="module", autouse=True)
def _young_garbage_only() -> Iterator[None]:
    """Have the collector pass over what was there before: it is called often, and other tests leave a lot."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# -- what is done ------------------------------------------------------------------------------------------------------


def be_alone_with(c: Connection, steps: Callable[[], None]) -> None:
    """Use a connection. One on which somebody was interrupted stays his: nobody is to use it any more."""
    assert c.is_open
    assert c.user is None
    c.user = gevent.getcurrent()
    try:
        steps()
    except Exception:
        c.user = None
        raise
    c.user = None


def use(pool: Any, steps: Callable[[], None] = pause, **options: Any) -> None:
    """Borrow, be alone with the connection, return."""
    with pool.get(**options) as c:
        be_alone_with(c, steps)


def use_by_hand(pool: Any) -> None:
    """The same, as one does without a block."""
    c = pool.acquire(timeout=5)
    try:
        be_alone_with(c, pause)
    except BaseException:
        pool.discard(c)
        raise
    pool.release(c)


def hold(pool: Any, turns: int) -> None:
    """Keep a connection for some turns of the loop."""
    with pool.get():
        for _ in range(turns):
            pause()


@contextmanager
def lent(pool: Any, turns: int = 3, connections: int = 2) -> Iterator[None]:
    """Have that many connections lent for some turns of the loop."""
    busy = [gevent.spawn(hold, pool, turns) for _ in range(connections)]
    pause()
    yield
    gevent.joinall(busy, raise_error=True)


def break_one(pool: Any) -> None:
    """Have a connection closed and another opened."""
    with pytest.raises(OSError, match="broken"), pool.get():
        raise OSError("broken")


def suppressed(kind: type[Exception], function: Callable[..., object], *args: Any, **options: Any) -> None:
    with suppress(kind):
        function(*args, **options)


def run(operation: Callable[[], object], *interrupters: Interrupter) -> None:
    """Run the operation in a greenlet for each interrupter; out of one that was hit, the very exception must come."""
    outcomes: list[BaseException | None] = [None] * len(interrupters)

    def attempt(number: int, interrupter: Interrupter) -> None:
        interrupter.watch()
        try:
            operation()
        except BaseException as error:
            outcomes[number] = error
        interrupter.leave()

    with ExitStack() as stack:
        victims = [gevent.spawn(attempt, number, stack.enter_context(i)) for number, i in enumerate(interrupters)]
        gevent.joinall(victims, raise_error=True)
    assert outcomes == [interrupter.outcome for interrupter in interrupters]


def hit_hook(pool: Any, hook: str, *interrupters: Interrupter) -> None:
    """Have each call of a hook watched by one of the interrupters, and wait until all is over."""
    pool.watchers[hook] += interrupters
    with ExitStack() as stack:
        for interrupter in interrupters:
            stack.enter_context(interrupter)
            break_one(pool)
        wait_until(lambda: all(i.is_over for i in interrupters), what=f"the end of {hook}")
        settle(pool)


# -- what must hold ----------------------------------------------------------------------------------------------------


def settle(pool: Any) -> None:
    """Wait until nothing is under way, and every connection is at rest again."""
    wait_until(lambda: is_at_rest(pool), what=f"rest of {pool!r}")


def is_at_rest(pool: Any) -> bool:
    stats = pool.stats()
    return not pool._lender.engine.queue.open if pool.closed else bool(stats.idle == stats.size)


def check(pool: Any) -> None:
    """Assert the invariants of a pool at rest, then that its end closes all that was ever opened."""
    for slots in pool._lender.pools():
        check_slots(slots)
    queue = pool._lender.engine.queue
    assert (list(queue.waiting), list(queue.todo), list(queue.late)) == ([], [], [])
    assert {id(c) for c in pool.made if c.is_open} == set(queue.open)
    assert (pool._lender.engine._watches, _retry.calls) == ([], {})

    was_closed = pool.closed
    assert pool.close(5) or was_closed
    check_end(pool)
    assert (queue.open, queue.cut) == ({}, {})


def check_slots(slots: Any) -> None:
    states = Counter(slot.state for slot in slots.slots)
    assert (states[IDLE], states[IN_USE]) == (len(slots.idle), slots.in_use)
    assert (states[CONNECTING], states[CHECKING]) == (slots.connecting, slots.checking)
    assert states[CLOSING] == slots.closing
    assert states.total() == len(slots.slots) <= slots.size
    assert (slots.in_use, slots.waiting) == (0, 0)
    for slot in slots.idle:
        assert (slot.owner, slot.worker, slot.by_hand, slot.doomed) == (None, None, False, None)


def check_end(pool: Any) -> None:
    """Assert that what was opened is closed, and that the counters and events tell just that."""
    assert [c for c in pool.made if c.is_open] == []
    stats = pool.stats()
    assert (stats.open, stats.in_use, stats.waiting) == (0, 0, 0)
    assert stats.opened == stats.closed == len(pool.made)
    wait_until(lambda: len(closed_for(pool)) == stats.closed, what="the news of all closed connections")
    assert {cause: number for cause, number in Counter(closed_for(pool)).items() if cause} == discarded(pool)
    told = Counter(map(type, pool.heard))
    assert (told[events.ConnectionOpened], told[events.ConnectFailed]) == (stats.opened, stats.open_errors)


def closed_for(pool: Any) -> list[str | None]:
    """Return for what causes connections were closed, as the events tell."""
    return [event.cause for event in pool.heard if isinstance(event, events.ConnectionClosed)]


def discarded(pool: Any) -> dict[str, int]:
    return {cause: number for cause, number in pool.stats().discarded.items() if number}


def no_greenlet_is_left() -> bool:
    """Whether only the current one lives, of those that can be found."""
    gc.collect()
    return not [g for g in gc.get_objects() if isinstance(g, Greenlet) and not g.dead and g is not gevent.getcurrent()]


Attempt = Callable[..., None]  # of an operation, given a pool and one or two interrupters


def try_once(make: Callable[[], Any], attempt: Attempt, *interrupters: Interrupter) -> None:
    pool = make()
    try:
        attempt(pool, *interrupters)
        settle(pool)
        check(pool)
    finally:
        pool.close(0)
    wait_until(no_greenlet_is_left, what="the end of all greenlets")


def at_every_switch(kind: Kind, make: Callable[[], Any], attempt: Attempt) -> int:
    """Attempt an operation on a fresh pool, hit at its 1st, 2nd, ... switch until it ends unhit; return the hits."""
    hits = 0
    while True:
        interrupter = Interrupter(hits + 1, kind())
        try_once(make, attempt, interrupter)
        if not interrupter.hit:
            return hits
        hits += 1


def at_every_pair(
    kinds: tuple[Kind, Kind], make: Callable[[], Any], attempt: Attempt, *, again: bool = False
) -> set[tuple[int, int]]:
    """The same with two faults at each pair of switches until neither hits; return the pairs of which both did.

    The second is for another greenlet, or ``again`` for the one that went on after the first.
    """
    hits: set[tuple[int, int]] = set()
    k1, k2, is_hit = 1, 1, False
    while True:
        second = Interrupter(k2, kinds[1]())
        first = Interrupter(k1, kinds[0](), then=second if again else None)
        try_once(make, attempt, *([first] if again else [first, second]))
        is_hit = is_hit or first.hit
        if second.hit:
            hits |= {(k1, k2)} if first.hit else set()
            k2 += 1
        elif is_hit:
            k1, k2, is_hit = k1 + 1, 1, False
        else:
            return hits


# -- one fault: borrowing and returning --------------------------------------------------------------------------------


@either
@every_kind
def test_a_get_that_does_not_wait_has_no_switch_but_those_of_its_block(kind: Kind, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        run(partial(use, pool), interrupter)

    assert at_every_switch(kind, make, attempt) == 1


@either
@every_kind
@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_get_that_waits_can_be_hit_anywhere(timeout: float | None, kind: Kind, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        with lent(pool):
            run(partial(use, pool, timeout=timeout), interrupter)

    assert at_every_switch(kind, make, attempt) == 2


@every_kind
def test_a_get_that_waits_for_one_endpoint_of_a_cluster_can_be_hit_anywhere(kind: Kind) -> None:
    def attempt(cluster: Cluster, interrupter: Interrupter) -> None:
        with lent(cluster):
            run(partial(use, cluster.pools[A]), interrupter)

    assert at_every_switch(kind, make_cluster, attempt) == 2


@either
@every_kind
@pytest.mark.parametrize(("others", "switches"), [(0, 1), (2, 2)], ids=["at once", "after waiting"])
def test_who_borrows_by_hand_can_be_hit_anywhere(others: int, switches: int, kind: Kind, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        with lent(pool, connections=others):
            run(partial(use_by_hand, pool), interrupter)

    assert at_every_switch(kind, make, attempt) == switches


@either
@every_kind
def test_a_block_that_discards_its_connection_can_be_hit_anywhere_and_that_is_closed_once(
    kind: Kind, make: Any
) -> None:
    def discard(pool: Any) -> None:
        with pool.get() as c:
            pool.discard(c)
            pause()

    def attempt(pool: Any, interrupter: Interrupter) -> None:
        run(partial(discard, pool), interrupter)
        is_cut_off = interrupter.hit and not isinstance(interrupter.exc, Exception)
        assert discarded(pool) == {"interrupted" if is_cut_off else "user": 1}

    assert at_every_switch(kind, make, attempt) == 1


@either
@every_kind
def test_who_discards_by_hand_can_be_hit_before_and_not_meanwhile(kind: Kind, make: Any) -> None:
    def discard(pool: Any) -> None:
        c = pool.acquire()
        try:
            pause()
        finally:
            pool.discard(c)

    def attempt(pool: Any, interrupter: Interrupter) -> None:
        run(partial(discard, pool), interrupter)
        assert discarded(pool) == {"user": 1}

    assert at_every_switch(kind, make, attempt) == 1


# What never switches, given a pool and a connection that was borrowed from it by hand. One line each.
NEVER_SWITCHES: dict[str, Callable[[Any, Connection], object]] = {
    "stats": lambda pool, c: pool.stats(),
    "repr": lambda pool, c: repr(pool),
    "closed": lambda pool, c: pool.closed,
    "release": lambda pool, c: pool.release(c),
    "discard": lambda pool, c: pool.discard(c),
    "get": lambda pool, c: pool.get(),
    "acquire(0)": lambda pool, c: suppressed(PoolError, pool.acquire, timeout=0),
    "wait(0)": lambda pool, c: pool.wait(timeout=0),
    "reset": lambda pool, c: pool.reset(),
    "resize": lambda pool, c: pool.resize(3),
    "close(0)": lambda pool, c: pool.close(0),
}


@either
@pytest.mark.parametrize("waiting", [0, 1], ids=["nobody waits", "somebody waits"])
@pytest.mark.parametrize("method", NEVER_SWITCHES)
def test_what_never_switches_cannot_be_hit(method: str, waiting: int, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        borrowed = [pool.acquire(), pool.acquire()]
        waiters = [gevent.spawn(suppressed, PoolError, hold, pool, 1) for _ in range(waiting)]
        wait_until(lambda: pool.stats().waiting == waiting)
        run(partial(NEVER_SWITCHES[method], pool, borrowed[0]), interrupter)
        for c in borrowed:
            suppressed(ValueError, pool.release, c)  # it may be returned already
        gevent.joinall(waiters, raise_error=True)

    assert at_every_switch(gevent.Timeout, make, attempt) == 0


@pytest.mark.parametrize("kind", [gevent.Timeout, GreenletExit])
def test_a_return_can_be_hit_anywhere_in_the_hooks_that_decide_if_they_switch(kind: Kind) -> None:
    def fail(pool: Pool) -> None:
        with suppress(LookupError), pool.get():
            raise LookupError("of no concern to the connection")

    def attempt(pool: Pool, interrupter: Interrupter) -> None:
        run(partial(fail, pool), interrupter)
        assert discarded(pool) == ({"interrupted": 1} if interrupter.hit else {})

    assert at_every_switch(kind, partial(make_pool, of=Deciding), attempt) == 2


@either
@every_kind
def test_a_connection_handed_to_a_waiter_who_is_hit_in_the_same_turn_goes_to_the_next(kind: Kind, make: Any) -> None:
    pool = make()
    borrowed = [pool.acquire(), pool.acquire()]
    served: list[Connection] = []

    def be_served() -> None:
        with pool.get() as c:
            served.append(c)

    interrupter = Interrupter(1, kind())
    interrupter.before = lambda: pool.release(borrowed[0])
    second: list[Any] = []

    def first() -> None:
        second.append(gevent.spawn(be_served))
        be_served()

    run(first, interrupter)
    gevent.joinall(second, timeout=5, raise_error=True)

    assert interrupter.hit
    assert served == [borrowed[0]]  # by the second, and the same connection: nobody has used it
    assert discarded(pool) == {}
    pool.release(borrowed[1])
    check(pool)


@either
@every_kind
@pytest.mark.parametrize("method", ["get", "wait"])
def test_who_is_hit_in_the_same_turn_as_he_is_served_or_refused_is_not_woken_later(
    method: str, kind: Kind, make: Any
) -> None:
    pool = make()
    borrowed = [pool.acquire(), pool.acquire()]
    pool.discard(borrowed.pop())  # so that there is something to wait for
    interrupter = Interrupter(1, kind())
    if method == "get":
        operation, interrupter.before = partial(use, pool), partial(pool.release, borrowed[0])
    else:
        operation, interrupter.before = pool.wait, partial(pool.close, 0)

    def go_on() -> None:
        try:
            operation()
        finally:
            plainly()

    run(go_on, interrupter)

    assert interrupter.hit
    suppressed(ValueError, pool.release, borrowed[0])
    settle(pool)
    check(pool)


@either
@every_kind
def test_a_refused_waiter_who_is_hit_in_the_same_turn_gets_the_exception_and_not_the_refusal(
    kind: Kind, make: Any
) -> None:
    pool = make()
    borrowed = [pool.acquire(), pool.acquire()]
    interrupter = Interrupter(1, kind())
    interrupter.before = lambda: pool.close(0)

    run(partial(use, pool), interrupter)

    assert interrupter.hit
    with pytest.raises(PoolClosed):
        pool.acquire(timeout=0)
    for c in borrowed:
        pool.release(c)
    settle(pool)
    check(pool)


# -- one fault: the life of a pool -------------------------------------------------------------------------------------


@either
@every_kind
def test_a_wait_can_be_hit_anywhere(kind: Kind, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        break_one(pool)
        run(partial(pool.wait, timeout=5), interrupter)

    assert at_every_switch(kind, make, attempt) == 1


@either
@every_kind
@pytest.mark.parametrize("timeout", [5, 0.002], ids=["connections return in time", "connections are cut"])
def test_a_close_that_waits_can_be_hit_anywhere_and_the_pool_is_closed_all_the_same(
    timeout: float, kind: Kind, make: Any
) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        with lent(pool, turns=10):
            run(partial(pool.close, timeout), interrupter)
            with pytest.raises(PoolClosed):
                pool.acquire(timeout=0)

    assert at_every_switch(kind, make, attempt) == 1


@either
@every_kind
def test_a_close_inside_a_block_can_be_hit_anywhere(kind: Kind, make: Any) -> None:
    def close(pool: Any) -> None:
        with pool.get():
            pool.close(5)

    def attempt(pool: Any, interrupter: Interrupter) -> None:
        run(partial(close, pool), interrupter)

    assert at_every_switch(kind, make, attempt) == 1


@either
@every_kind
def test_leaving_the_block_of_a_pool_can_be_hit_anywhere(kind: Kind, make: Any) -> None:
    def live(pool: Any) -> None:
        with pool:
            use(pool)

    def attempt(pool: Any, interrupter: Interrupter) -> None:
        with lent(pool, connections=1):
            run(partial(live, pool), interrupter)

    assert at_every_switch(kind, make, attempt) == 2  # while a connection is used, and while the others are awaited


@either
@every_kind
def test_leaving_the_block_of_a_pool_by_an_exception_cannot_be_hit(kind: Kind, make: Any) -> None:
    def live(pool: Any) -> None:
        with suppress(LookupError), pool:
            use(pool)
            raise LookupError("the end")

    def attempt(pool: Any, interrupter: Interrupter) -> None:
        with lent(pool, connections=1):
            run(partial(live, pool), interrupter)
            assert pool.closed

    assert at_every_switch(kind, make, attempt) == 1  # while a connection is used


@every_kind
def test_a_retried_call_on_a_cluster_can_be_hit_anywhere(kind: Kind) -> None:
    def attempt(cluster: Cluster, interrupter: Interrupter) -> None:
        tried: list[Endpoint] = []

        @retry(max_failures=2, interval=0.001)
        def call() -> None:
            with cluster.get(timeout=5) as c:
                tried.append(cluster.endpoint_of(c))
                pause()
                if len(tried) == 1:
                    raise OSError("the first attempt fails")

        run(call, interrupter)
        assert len(set(tried)) == len(tried)  # never twice the same endpoint

    assert at_every_switch(kind, make_cluster, attempt) == 3  # in the first block, between the attempts, in the second


# -- one fault: what runs in greenlets of the pool ---------------------------------------------------------------------


@either
@every_kind
def test_a_connect_can_be_hit_anywhere_and_is_tried_again(kind: Kind, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        hit_hook(pool, "connect", interrupter)
        assert (pool.stats().open_errors, pool.stats().last_error) == (int(interrupter.hit), interrupter.outcome)

    assert at_every_switch(kind, partial(make, max_connecting=1), attempt) == 2


@either
@every_kind
def test_a_keepalive_can_be_hit_anywhere_and_costs_its_connection(kind: Kind, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        hit_hook(pool, "keepalive", interrupter)
        assert pool.stats().discarded["keepalive"] == interrupter.hit

    assert at_every_switch(kind, partial(make, **KEPT), attempt) == 2


@either
@every_kind
def test_a_hook_that_closes_can_be_hit_anywhere(kind: Kind, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        hit_hook(pool, "close", interrupter)

    assert at_every_switch(kind, make, attempt) == 2


@every_kind
def test_a_connection_can_be_hit_anywhere_while_it_tells_where_it_leads_and_is_taken_all_the_same(kind: Kind) -> None:
    def attempt(cluster: Cluster, interrupter: Interrupter) -> None:
        hit_hook(cluster, "peer", interrupter)
        assert cluster.stats().open_errors == 0

    assert at_every_switch(kind, make_cluster, attempt) == 2


@either
@every_kind
def test_a_handler_of_events_can_be_hit_anywhere_and_hears_the_next(kind: Kind, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        hit_hook(pool, "event", interrupter)

    assert at_every_switch(kind, make, attempt) == 2


@every_kind
def test_a_look_up_can_be_hit_anywhere_and_the_endpoints_stay(kind: Kind) -> None:
    def attempt(cluster: Cluster, interrupter: Interrupter) -> None:
        with interrupter:
            cluster.resolver.watcher = interrupter
            wait_until(lambda: interrupter.is_over)
        assert cluster.stats().discovery.last_error is interrupter.outcome
        assert [entry.state for entry in cluster.stats().endpoints] == ["active"] * 2

    assert at_every_switch(kind, lambda: make_cluster(service=Slow()), attempt) == 2


class Slow:
    """A resolver that is asked all the time, and switches where it is watched."""

    min_refresh = 0.001
    watcher: Interrupter | None = None

    def resolve(self, service: str | None) -> Resolution:
        watcher, self.watcher = self.watcher, None
        if watcher is not None:
            watcher.watch()
            plainly()
            watcher.leave()
        return Resolution((A, B), ttl=0)


@every_kind
@pytest.mark.parametrize("steps", [hanging, hanging_at_the_end])
@pytest.mark.parametrize("hook", ["connect", "keepalive", "close"])
def test_a_hook_that_hangs_can_be_hit_anywhere_before_and_after_its_bound(
    hook: str, steps: Any, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geventconnpool._engine.CLOSE_TIMEOUT", BOUND)

    def attempt(pool: Pool, interrupter: Interrupter) -> None:
        pool.steps = steps
        hit_hook(pool, hook, interrupter)

    options: dict[str, Any] = {"open_timeout": BOUND, "keepalive": 0.01, "keepalive_timeout": BOUND}
    assert at_every_switch(kind, partial(make_pool, **options), attempt) >= 2  # 3, if the bound is not early


# -- one fault: what happens to an endpoint ----------------------------------------------------------------------------


class Told:
    """A resolver that names A and B, and then what it is told, in the same turn of the loop."""

    min_refresh = 0.001

    def __init__(self) -> None:
        self.is_asked_again = False
        self._answer: Any = None

    def say(self, *endpoints: Endpoint) -> None:
        """Answer the second look-up; for callbacks of the hub."""
        self._answer.switch(endpoints)

    def resolve(self, service: str | None) -> Resolution:
        self.is_asked_again = self._answer is not None
        self._answer = Waiter()
        return Resolution(self._answer.get() if self.is_asked_again else (A, B), ttl=0)


class Stage:
    """A cluster of which every connection is lent, and what may happen to those who wait for one."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._call: Any = cluster.pools[A].get()
        self._call.__enter__()
        self._of_a = [cluster.pools[A].acquire() for _ in range(2)]
        self._of_b = [cluster.pools[B].acquire() for _ in range(3)]

    def hand_over(self) -> None:
        """Hand connections to A to the first who wait; they will know when they run."""
        self._release(self._of_a)

    def eject(self) -> None:
        call, self._call = self._call, None
        call.__exit__(OSError, OSError("broken"), None)

    def drain(self) -> None:
        self.cluster.resolver.say(B)

    def empty(self) -> None:
        self.cluster.resolver.say()

    def close(self) -> None:
        self.cluster.close(0)

    def give_back(self) -> None:
        self._release(self._of_a)
        self._release(self._of_b)

    def end(self) -> None:
        """End the call that is still under way, unless it has failed."""
        if self._call is not None:
            self._call.__exit__(None, None, None)

    def _release(self, connections: list[Connection]) -> None:
        while connections:
            self.cluster.release(connections.pop())


# What happens, and how often somebody is switched away from who waits for a connection and uses it.
HAPPENINGS: dict[str, tuple[list[Callable[[Stage], None]], int]] = {
    "ejected": ([Stage.eject], 2),
    "handed over and ejected": ([Stage.hand_over, Stage.eject], 3),
    "drained": ([Stage.drain], 2),
    "handed over and drained": ([Stage.hand_over, Stage.drain], 3),
    "emptied": ([Stage.empty], 1),
    "handed over and emptied": ([Stage.hand_over, Stage.empty], 1),
    "closed": ([Stage.close], 1),
    "handed over and closed": ([Stage.hand_over, Stage.close], 1),
}


def make_stage(**options: Any) -> Cluster:
    cluster = make_cluster(3, Told(), outlier=QUICK, **options)
    wait_until(lambda: cluster.resolver.is_asked_again)
    return cluster


def wait_while(happening: str, is_sudden: bool, cluster: Cluster, *interrupters: Interrupter) -> None:
    """Have it happen to those who wait: by and by, or ``is_sudden``, in the turn in which an interrupter strikes."""
    stage = Stage(cluster)
    acts = list(HAPPENINGS[happening][0])

    def happen() -> None:
        while acts:
            acts[0](stage)
            del acts[0]

    def drive() -> None:
        pause()
        if not is_sudden:
            gevent.get_hub().loop.run_callback(happen)
        pause()
        stage.give_back()

    for interrupter in interrupters:
        interrupter.before = happen if is_sudden else interrupter.before
    driver = gevent.spawn(drive)
    run(partial(suppressed, PoolError, use, cluster, timeout=5), *interrupters)
    driver.get()
    stage.end()
    assert acts == [] or is_sudden


@every_kind
@pytest.mark.parametrize("happening", HAPPENINGS)
def test_a_get_can_be_hit_anywhere_when_the_endpoint_it_waits_for_goes(happening: str, kind: Kind) -> None:
    attempt = partial(wait_while, happening, False)

    assert at_every_switch(kind, make_stage, attempt) == HAPPENINGS[happening][1]


@every_kind
@pytest.mark.parametrize("happening", HAPPENINGS)
def test_a_get_can_be_hit_anywhere_in_the_same_turn_as_an_endpoint_goes(happening: str, kind: Kind) -> None:
    attempt = partial(wait_while, happening, True)

    assert at_every_switch(kind, make_stage, attempt) == 2


@every_kind
@pytest.mark.parametrize("is_sudden", [False, True], ids=["by and by", "in the same turn"])
@pytest.mark.parametrize("happening", ["drained", "handed over and drained"])
def test_a_get_can_be_hit_anywhere_when_what_is_lent_of_an_endpoint_is_cut(
    happening: str, is_sudden: bool, kind: Kind
) -> None:
    attempt = partial(wait_while, happening, is_sudden)

    assert at_every_switch(kind, partial(make_stage, drain_timeout=0), attempt) >= 2


# -- two faults --------------------------------------------------------------------------------------------------------

ALL_FOUR = {(1, 1), (1, 2), (2, 1), (2, 2)}


def check_interrupted(pool: Any) -> None:
    """Assert that just those connections were thrown away on which somebody was cut off."""
    cut_off = [c for c in pool.made if c.user is not None]
    assert discarded(pool) == ({"interrupted": len(cut_off)} if cut_off else {})


@either
@every_pair
def test_two_gets_that_wait_can_both_be_hit_anywhere(kinds: Any, make: Any) -> None:
    def attempt(pool: Any, *interrupters: Interrupter) -> None:
        with lent(pool):
            run(partial(use, pool), *interrupters)
        check_interrupted(pool)

    assert at_every_pair(kinds, make, attempt) == ALL_FOUR


@either
@every_pair
def test_a_block_that_waited_can_be_hit_again_while_it_tidies_up(kinds: Any, make: Any) -> None:
    def attempt(pool: Any, interrupter: Interrupter) -> None:
        with lent(pool):
            run(partial(use, pool, tidily), interrupter)
        check_interrupted(pool)

    assert at_every_pair(kinds, make, attempt, again=True) == {(2, 1), (2, 2), (3, 1), (3, 2)}


@every_pair
@pytest.mark.parametrize("turn", [0, 1], ids=["as the first is hit", "as the second is hit"])
def test_a_connection_handed_from_one_waiter_who_is_hit_to_another_who_is_goes_to_the_next_who_is_not(
    turn: int, kinds: Any
) -> None:
    def attempt(pool: Pool, *interrupters: Interrupter) -> None:
        borrowed = [pool.acquire()]
        followers: list[Any] = [gevent.spawn(give_back, pool, borrowed, later=True)]

        def be_followed() -> None:
            followers.append(gevent.spawn(use, pool))
            use(pool)

        interrupters[turn].before = partial(give_back, pool, borrowed)
        run(be_followed, *interrupters)
        gevent.joinall(followers, raise_error=True)
        check_interrupted(pool)

    assert at_every_pair(kinds, partial(make_pool, 1), attempt) == ALL_FOUR


def give_back(pool: Any, borrowed: list[Connection], later: bool = False) -> None:
    """Release what is borrowed, unless that is done."""
    if later:
        plainly()
    while borrowed:
        pool.release(borrowed.pop())


@every_pair
def test_two_who_close_can_both_be_hit_anywhere(kinds: Any) -> None:
    def attempt(pool: Any, *interrupters: Interrupter) -> None:
        with lent(pool):
            run(partial(pool.close, 5), *interrupters)
            assert pool.closed

    assert at_every_pair(kinds, make_pool, attempt) == {(1, 1)}


@either
@every_pair
def test_two_connects_can_both_be_hit_anywhere(kinds: Any, make: Any) -> None:
    def attempt(pool: Any, *interrupters: Interrupter) -> None:
        hit_hook(pool, "connect", *interrupters)
        assert pool.stats().open_errors == sum(interrupter.hit for interrupter in interrupters)

    assert at_every_pair(kinds, partial(make, max_connecting=2), attempt) == ALL_FOUR


@every_pair
def test_two_keepalives_can_both_be_hit_anywhere(kinds: Any) -> None:
    def attempt(pool: Any, *interrupters: Interrupter) -> None:
        hit_hook(pool, "keepalive", *interrupters)
        assert pool.stats().discarded["keepalive"] == sum(interrupter.hit for interrupter in interrupters)

    assert at_every_pair(kinds, partial(make_pool, 8, **KEPT), attempt) == ALL_FOUR  # two at a time


@every_pair
@pytest.mark.parametrize("steps", [tidily, stubbornly])
@pytest.mark.parametrize("hook", ["connect", "keepalive", "close"])
def test_a_hook_that_goes_on_can_be_hit_again_anywhere(hook: str, steps: Any, kinds: Any) -> None:
    def attempt(pool: Pool, interrupter: Interrupter) -> None:
        pool.steps = steps
        hit_hook(pool, hook, interrupter)

    assert at_every_pair(kinds, partial(make_pool, **KEPT), attempt, again=True) == ALL_FOUR


@every_pair
@pytest.mark.parametrize("hook", ["connect", "keepalive"])
def test_a_hook_and_the_one_who_waits_for_its_connection_can_both_be_hit_anywhere(hook: str, kinds: Any) -> None:
    def attempt(pool: Pool, waiter: Interrupter, worker: Interrupter) -> None:
        pool.watchers[hook].append(worker)
        with worker:
            break_one(pool)
            pool.has_begun.wait()
            assert pool.stats().idle == 0
            run(partial(use, pool), waiter)
            wait_until(lambda: worker.is_over)

    assert at_every_pair(kinds, partial(make_pool, 1, **KEPT), attempt) == ALL_FOUR


@some_pairs
@pytest.mark.parametrize("happening", ["handed over and ejected", "handed over and drained"])
def test_two_gets_can_both_be_hit_anywhere_when_the_endpoint_they_wait_for_goes(happening: str, kinds: Any) -> None:
    attempt = partial(wait_while, happening, False)

    assert at_every_pair(kinds, make_stage, attempt) == set(product([1, 2, 3], repeat=2))


@some_pairs
@pytest.mark.parametrize(
    ("happening", "always", "perhaps"),
    [
        # Who is not hit at first waits a second time, unless there is a connection again by then.
        ("handed over and ejected", ALL_FOUR, {(1, 3), (3, 1)}),
        ("handed over and drained", ALL_FOUR, {(1, 3), (3, 1)}),
        ("handed over and closed", {(1, 1), (2, 2)}, set()),  # who is not hit at first is refused
    ],
    ids=["ejected", "drained", "closed"],
)
def test_two_gets_can_both_be_hit_anywhere_in_the_same_turn_as_an_endpoint_goes(
    happening: str, always: set[tuple[int, int]], perhaps: set[tuple[int, int]], kinds: Any
) -> None:
    attempt = partial(wait_while, happening, True)

    assert always <= at_every_pair(kinds, make_stage, attempt) <= always | perhaps
