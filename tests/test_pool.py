"""What ``ConnectionPool`` promises, with factories that do as they are told, and on sockets where it is about those."""

from __future__ import annotations

import ctypes
import gc
import inspect
import logging
import os
import re
import signal
import socket as plain_socket
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import FrozenInstanceError
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import greenlet
import pytest
from gevent import socket
from gevent.event import Event
from gevent.lock import RLock

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, PoolClosed, PoolError, PoolTimeout, events
from geventconnpool._engine import Engine
from geventconnpool._queue import Queue
from geventconnpool._slots import Slots
from geventconnpool.cluster import Resolution
from geventconnpool.pool import DEFAULT_EXC_CLASSES, _without_cycle
from tests.servers import wait_until

# -- what the tests set up ---------------------------------------------------------------------------------------------


class Connection:
    """Remembers how it ended: "closed", "aborted", or None while it is open."""

    ended: str | None = None

    def close(self) -> None:
        assert self.ended is None, "closed twice"
        self.ended = "closed"


class Pool(ConnectionPool[Any]):
    """Opens what its script says (exceptions are raised, functions called, others returned); then Connections."""

    alive: list[Pool] = []

    def __init__(self, size: int = 1, *args: Any, script: Any = (), **options: Any) -> None:
        self.script = deque(script)
        self.made: list[Any] = []
        self.attempts: list[float] = []
        Pool.alive.append(self)
        super().__init__(size, *args, **options)

    def _new_connection(self):
        self.attempts.append(time.monotonic())
        step = self.script.popleft() if self.script else Connection()
        if isinstance(step, BaseException):
            raise step
        connection = step() if isinstance(step, type(lambda: None)) else step
        self.made.append(connection)
        return connection


class Polite(Pool):
    """Tells goodbyes from aborts."""

    def _close_connection(self, c):
        c.ended = "closed"

    def _abort_connection(self, c):
        c.ended = "aborted"


class KeptAlive(Pool):
    """Calls ``keep`` with each connection to be kept alive; ``now`` are under way, ``most`` is the maximum of that."""

    def __init__(self, size: int = 1, *args: Any, keep: Any = lambda c: None, **options: Any) -> None:
        self.keep = keep
        self.kept: list[Any] = []
        self.now = self.most = 0
        super().__init__(size, *args, **options)

    def _keepalive(self, c):
        self.kept.append(c)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            self.keep(c)
        finally:
            self.now -= 1


@pytest.fixture(autouse=True)
def hub_errors(monkeypatch):
    """The kinds of the errors that reached the hub's error handler."""
    kinds = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, tb: kinds.append(kind))
    return kinds


@pytest.fixture(autouse=True)
def nothing_is_left_open(hub_errors):
    """After each test its pools are closed; then every connection that was ever opened is closed."""
    Pool.alive.clear()
    yield
    for pool in Pool.alive:
        if hasattr(pool, "closed"):
            pool.close(0)
            wait_until(lambda pool=pool: is_over(pool), what=f"the end of {pool}")


def is_over(pool):
    stats = pool.stats()
    return (stats.closed, stats.open, stats.connecting, stats.waiting) == (stats.opened, 0, 0, 0)


@pytest.fixture
def blocked(nothing_is_left_open):
    """An event to hang on, set when the test is over."""
    event = Event()
    yield event
    event.set()


def ready(pool):
    """Return the pool when it is full."""
    pool.wait(timeout=30)
    return pool


def causes(pool) -> dict[str, int]:
    return {cause: count for cause, count in pool.stats().discarded.items() if count}


def borrow_once(pool):
    with pool.get(timeout=5) as c:
        return c


def line_up(pool, count, log):
    """Return greenlets that wait in this order, and write their numbers to the log when served."""

    def serve(number):
        with pool.get():
            log.append(number)

    greenlets = []
    before = pool.stats().waiting
    for number in range(count):
        greenlets.append(gevent.spawn(serve, number))
        wait_until(lambda number=number: pool.stats().waiting == before + number + 1)
    return greenlets


def swallow(times: int, event: Event) -> int:
    """Hang until the event, or until that many interruptions were swallowed; return how many were."""
    for number in range(times):
        try:
            event.wait(20)
        except gevent.Timeout:
            continue
        return number
    return times


def count_switches(action: Callable[[], object]) -> int:
    """Return how often ``action`` switches greenlets."""
    switches = []
    greenlet.settrace(lambda *args: switches.append(args))
    try:
        action()
    finally:
        greenlet.settrace(None)
    return len(switches)


# -- how a block ends decides about the connection ---------------------------------------------------------------------

NO_FILE = FileNotFoundError(2, "no such file", "/nowhere")

ENDS = [
    (OSError("broken"), OSError, "error"),
    (ConnectionResetError(104, "reset"), OSError, "error"),
    (TimeoutError("timed out"), OSError, "error"),
    (plain_socket.gaierror(-2, "unknown"), OSError, "error"),
    (PermissionError(13, "not allowed"), OSError, "error"),
    (KeyError("mine"), KeyError, "error"),
    (KeyError("mine"), (OSError, KeyError), "error"),
    (gevent.Timeout(1), (gevent.Timeout,), "error"),
    (NO_FILE, FileNotFoundError, "error"),
    (NO_FILE, (OSError, FileNotFoundError), "error"),
    (NO_FILE, OSError, None),
    (NO_FILE, (OSError, PermissionError), None),
    (NO_FILE, (OSError, ConnectionError), None),
    (OSError(5, "not the network", "/dev/sda"), OSError, None),
    (ValueError("no matter"), OSError, None),
    (OSError("not named"), KeyError, None),
    (PoolTimeout("of another pool"), OSError, None),
    (StopIteration(), OSError, None),
    (gevent.Timeout(1), OSError, "interrupted"),
    (gevent.GreenletExit(), OSError, "interrupted"),
    (KeyboardInterrupt(), OSError, "interrupted"),
    (SystemExit(1), OSError, "interrupted"),
    (GeneratorExit(), OSError, "interrupted"),
    (BaseException("odd"), Exception, "interrupted"),
]


@pytest.mark.parametrize(("exc", "exc_classes", "cause"), ENDS)
def test_how_a_block_ends_decides_about_the_connection_and_the_same_exception_goes_on(exc, exc_classes, cause):
    pool = ready(Polite(1, exc_classes))
    with pytest.raises(type(exc)) as caught:
        with pool.get() as c:
            raise exc

    assert caught.value is exc
    assert causes(pool) == ({cause: 1} if cause else {})
    assert (borrow_once(pool) is c) is (cause is None)
    assert c.ended == ("aborted" if cause else None)


def test_a_block_that_returns_puts_its_connection_back():
    pool = ready(Polite(1))

    assert borrow_once(pool) is borrow_once(pool)
    assert causes(pool) == {}


def test_a_gevent_timeout_that_fires_in_a_block_goes_on_as_itself():
    pool = ready(Polite(1))
    timeout = gevent.Timeout(0.01)
    with pytest.raises(gevent.Timeout) as caught:
        with timeout, pool.get():
            gevent.sleep(5)

    assert caught.value is timeout
    assert causes(pool) == {"interrupted": 1}


def test_a_silent_gevent_timeout_round_a_block_stays_silent():
    pool = ready(Polite(1))
    with gevent.Timeout(0.01, False), pool.get():
        gevent.sleep(5)

    assert causes(pool) == {"interrupted": 1}


def test_a_greenlet_killed_in_its_block_has_its_connection_aborted():
    pool = ready(Polite(1))

    def hold():
        with pool.get():
            gevent.sleep(5)

    holder = gevent.spawn(hold)
    wait_until(lambda: pool.stats().in_use == 1)
    holder.kill()

    assert causes(pool) == {"interrupted": 1}
    assert borrow_once(pool) is pool.made[1]


def test_a_generator_that_is_collected_inside_its_block_has_its_connection_aborted():
    pool = ready(Polite(1))

    def rows():
        with pool.get():
            yield

    next(rows())
    gc.collect()

    assert causes(pool) == {"interrupted": 1}
    assert borrow_once(pool) is pool.made[1]


def test_a_broken_connection_is_replaced_at_once_with_nobody_waiting():
    pool = ready(Polite(3))

    def seconds_to_replace():
        opened = pool.stats().opened
        with pytest.raises(OSError, match="broken"):
            with pool.get() as c:
                raise OSError("broken")
        broken_at = time.monotonic()
        wait_until(lambda: pool.stats().opened == opened + 1)
        assert c.ended == "aborted"
        return pool.attempts[-1] - broken_at

    assert any(seconds_to_replace() < 0.05 for _ in range(10))
    assert pool.stats().idle == 3


def test_an_application_error_about_a_file_leaves_the_socket_alone(tcp_server):
    class ToServer(Pool):
        def _new_connection(self):
            return socket.create_connection(tcp_server.address)

    pool = ready(ToServer(1))
    with pytest.raises(FileNotFoundError):
        with pool.get() as c:
            Path("/nowhere/at/all").read_bytes()
    with pytest.raises(FileNotFoundError):
        with pool.get():
            os.stat("/nowhere/at/all")

    assert borrow_once(pool) is c
    wait_until(lambda: tcp_server.opened)
    assert tcp_server.opened == 1


def test_is_connection_error_decides_if_overridden():
    class Judge(Polite):
        def _is_connection_error(self, exc):
            return isinstance(exc, KeyError)

    pool = ready(Judge(1))
    for exc in KeyError("mine"), OSError("yours"), gevent.Timeout(1):
        with pytest.raises(type(exc)):
            with pool.get():
                raise exc

    assert causes(pool) == {"error": 1, "interrupted": 1}


def test_a_subclass_may_ask_what_the_default_says_about_an_error():
    class Judge(Polite):
        def _is_connection_error(self, exc):
            return super()._is_connection_error(exc) or "gone away" in str(exc)

    pool = ready(Judge(1))
    for exc in ValueError("gone away"), OSError("broken"), ValueError("no matter"):
        with pytest.raises(type(exc)):
            with pool.get():
                raise exc

    assert causes(pool) == {"error": 2}


@pytest.mark.parametrize("failure", [ValueError("bug"), ZeroDivisionError(), AttributeError("errno")])
def test_a_raising_is_connection_error_counts_as_true_is_logged_and_the_blocks_exception_goes_on(failure, caplog):
    class Judge(Polite):
        def _is_connection_error(self, exc):
            raise failure

    pool = ready(Judge(1, name="judge"))
    exc = KeyError("the block's own")
    with pytest.raises(KeyError) as caught:
        with pool.get():
            raise exc
    wait_until(lambda: caplog.records)

    assert caught.value is exc
    assert causes(pool) == {"error": 1}
    assert "judge" in caplog.text
    assert "_is_connection_error" in caplog.text


@pytest.mark.parametrize("answer", [False, None, 0, ValueError("bug"), OSError("bug")])
def test_a_connection_is_discarded_if_is_reusable_says_no_or_raises(answer):
    class Asks(Polite):
        def _is_reusable(self, c):
            if isinstance(answer, Exception):
                raise answer
            return answer

    pool = ready(Asks(1))
    borrow_once(pool)
    with pytest.raises(KeyError):
        with pool.get():
            raise KeyError

    assert causes(pool) == {"not_reusable": 2}
    ready(pool)
    assert [c.ended for c in pool.made[:2]] == ["aborted", "aborted"]


def test_is_reusable_is_asked_at_each_return_that_would_keep_the_connection():
    asked = []

    class Asks(Polite):
        def _is_reusable(self, c):
            asked.append((c, gevent.getcurrent()))
            return True

    pool = ready(Asks(1))
    first = borrow_once(pool)
    pool.release(pool.acquire())
    with pytest.raises(ValueError, match="no matter"):
        with pool.get():
            raise ValueError("no matter")
    with pytest.raises(OSError, match="broken"):
        with pool.get():
            raise OSError("broken")

    assert asked == [(first, gevent.getcurrent())] * 3


def test_a_subclass_may_ask_what_the_default_says_about_a_connection_that_comes_back():
    class Choosy(Polite):
        def _is_reusable(self, c):
            return super()._is_reusable(c) and c not in worn_out

    worn_out = []
    pool = ready(Choosy(1))
    first = borrow_once(pool)
    worn_out.append(borrow_once(pool))
    borrow_once(pool)

    assert worn_out == [first]
    assert causes(pool) == {"not_reusable": 1}


@pytest.mark.parametrize("hook", ["_is_connection_error", "_is_reusable"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_system_exception_out_of_a_deciding_hook_goes_to_the_hub_and_the_blocks_own_goes_on(hook, kind, hub_errors):
    def fail(self, subject):
        raise kind

    pool = ready(type("Rude", (Polite,), {hook: fail})(1))
    exc = ValueError("the block's own")
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # which one is the question
        with pool.get():
            raise exc
    gevent.sleep(0.01)

    assert caught.value is exc
    assert hub_errors == [kind]
    assert causes(pool) == {"error" if hook == "_is_connection_error" else "not_reusable": 1}


def test_an_aborted_connection_is_closed_like_any_other_by_default():
    pool = ready(Pool(1))
    with pytest.raises(OSError, match="broken"):
        with pool.get() as c:
            raise OSError("broken")
    wait_until(lambda: c.ended)

    assert c.ended == "closed"


def test_a_connection_without_a_close_method_is_let_go():
    pool = ready(Pool(1, script=["a connection"]))
    pool.discard(pool.acquire())

    assert isinstance(borrow_once(pool), Connection)
    assert pool.stats().closed == 1


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_those_who_wait_are_served_first_come_first_served():
    pool = ready(Pool(1))
    log: list[int] = []
    with pool.get():
        greenlets = line_up(pool, 20, log)
    gevent.joinall(greenlets)

    assert log == list(range(20))


def test_who_is_woken_and_raises_does_not_keep_the_next_one_waiting(hub_errors):
    pool = ready(Pool(2))
    lost = [pool.acquire(), pool.acquire()]
    served = []

    def serve(number):
        with pool.get():
            served.append(number)
            raise LookupError

    for number in range(2):
        gevent.spawn_raw(serve, number)  # its errors are those of the hub's callback that woke it
        wait_until(lambda number=number: pool.stats().waiting == number + 1)
    for connection in lost:
        pool.release(connection)
    wait_until(lambda: len(served) == 2)

    assert served == [0, 1]
    assert hub_errors == [LookupError, LookupError]


def test_those_who_hand_connections_to_each_other_for_ever_keep_no_timer_waiting():
    pool = ready(Pool(1))
    calls = 0
    is_over = False

    def use():
        nonlocal calls
        while not is_over and calls < 1_000_000:
            with pool.get():
                calls += 1

    with pool.get():
        greenlets = [gevent.spawn(use) for _ in range(3)]
        wait_until(lambda: pool.stats().waiting == 3)
    gevent.sleep(0.01)
    is_over = True
    gevent.joinall(greenlets)

    assert 10 < calls < 1_000_000


@pytest.mark.parametrize(
    "change",
    [
        lambda pool: pool.reset(),
        lambda pool: pool.resize(1),
        lambda pool: (pool.resize(1), pool.resize(2)),
    ],
    ids=["reset", "shrink", "shrink and grow"],
)
def test_what_happens_before_those_who_were_served_run_changes_nothing_about_their_order(change):
    pool = ready(Pool(2))
    log: list[int] = []
    leases = [pool.acquire(), pool.acquire()]
    greenlets = line_up(pool, 5, log)
    for connection in leases:
        pool.release(connection)
    change(pool)
    gevent.joinall(greenlets)

    assert log == list(range(5))


def test_what_comes_back_in_the_moment_before_the_wait_is_taken_without_a_switch(monkeypatch):
    pool = ready(Pool(1))
    held = pool.acquire()
    monkeypatch.setattr(pool._lender, "_look_nested", lambda now: pool.release(held))  # as the collector may
    got = []
    switches = count_switches(lambda: got.append(pool.acquire(timeout=5)))
    gevent.idle()
    stats = pool.stats()
    pool.release(held)

    assert (switches, got) == (0, [held])
    assert (stats.in_use, stats.waiting) == (1, 0)


def strike(monkeypatch, kind, method, blow):
    """Have the collector strike once, as a method is called."""
    original = getattr(kind, method)

    def struck(*args):
        monkeypatch.setattr(kind, method, original)
        blow()
        return original(*args)

    monkeypatch.setattr(kind, method, struck)


class Struck(OrderedDict[Any, None]):
    """The collector strikes once, as one more is put in."""

    blow: Any = None

    def __setitem__(self, waiter, value):
        blow, self.blow = self.blow, None
        if blow is not None:
            blow()
        super().__setitem__(waiter, value)


def strike_as_one_queues(pool, blow):
    queue = pool._lender.engine.queue
    queue.waiting = waiting = Struck(queue.waiting)
    waiting.blow = blow


def test_what_the_collector_gives_back_as_one_queues_behind_others_is_taken():
    pool = ready(Pool(2))
    lost = [pool.acquire(), pool.acquire()]
    log: list[int] = []
    greenlets = line_up(pool, 1, log)
    strike_as_one_queues(pool, lambda: [pool.release(c) for c in lost])
    got = []
    switches = count_switches(lambda: got.append(pool.acquire()))
    gevent.joinall(greenlets)
    pool.release(*got)

    assert switches == 0
    assert log == [0]


def test_who_is_served_by_the_collector_as_he_leaves_the_queue_takes_no_other(monkeypatch):
    pool = ready(Pool(3))
    lost = [pool.acquire() for _ in range(3)]
    log: list[int] = []
    greenlets = line_up(pool, 1, log)

    def give_back():
        pool.release(lost[0])
        pool.release(lost[1])
        strike(monkeypatch, Queue, "withdraw", lambda: pool.release(lost[2]))

    strike_as_one_queues(pool, give_back)
    got = pool.acquire()
    gevent.joinall(greenlets)
    stats = pool.stats()
    pool.release(got)

    assert got is lost[2]
    assert (stats.in_use, stats.idle, stats.waiting) == (1, 2, 0)


def test_who_queues_behind_others_as_the_collector_closes_the_pool_is_refused(monkeypatch):
    pool = ready(Pool(1))
    held = pool.acquire()
    greenlets = line_up(pool, 1, [])
    strike_as_one_queues(pool, lambda: pool.close(0))

    with pytest.raises(PoolClosed):
        pool.acquire()
    with pytest.raises(PoolClosed):
        greenlets[0].get(timeout=5)
    pool.release(held)


def test_a_signal_that_breaks_into_a_look_at_those_who_wait_leaves_it_to_the_next(monkeypatch, hub_errors):
    pool = ready(Pool(2))
    held = [pool.acquire(), pool.acquire()]
    closing = gevent.spawn(pool.close)
    wait_until(lambda: pool._lender.engine._watches)

    def interrupt():
        raise KeyboardInterrupt

    strike(monkeypatch, Engine, "_see_watches", interrupt)
    pool.release(held[0])
    wait_until(lambda: hub_errors)
    pool.release(held[1])

    assert closing.get(timeout=5) is True
    assert hub_errors == [KeyboardInterrupt]


def test_when_the_collector_has_served_the_last_who_waits_a_connection_that_comes_back_is_idle(monkeypatch):
    pool = ready(Pool(2))
    lost = pool.acquire()
    log: list[int] = []
    with pool.get():
        greenlets = line_up(pool, 1, log)
        strike(monkeypatch, Slots, "handed_over", lambda: pool.release(lost))
    idle = pool.stats().idle
    gevent.joinall(greenlets)

    assert idle == 1
    assert log == [0]


class Mine(BaseException):
    """Nobody else raises it."""


def before_the_second_is_woken(deed, wait):
    """Have three wait for the connection, and ``deed(greenlet)`` done in the turn in which the second of them gets it.

    Return him, and what has happened: he notes what he is told by who switches to him after he was interrupted.
    """
    pool = ready(Pool(1))
    log: list[Any] = []
    greenlets: list[Any] = []

    def first():
        with pool.get(timeout=wait):
            deed(greenlets[1])

    def other():
        try:
            with pool.get(timeout=wait):
                log.append("served")
        except Mine:
            log.append("interrupted")
            log.append(gevent.get_hub().switch())

    with pool.get():
        for serve in (first, other, other):
            greenlets.append(gevent.spawn(serve))
            wait_until(lambda: pool.stats().waiting == len(greenlets))
    greenlets[2].get(timeout=5)
    gevent.idle()

    assert pool.stats().idle == 1
    return greenlets[1], log


@pytest.mark.parametrize("wait", [None, 60.0], ids=["for ever", "for a minute"])
def test_a_signal_that_strikes_as_one_is_woken_is_raised_there_and_the_next_one_is_served(wait):
    strike = ctypes.CDLL(None)["raise"]  # in C: no Python is run between the signal and who is woken
    told = signal.signal(signal.SIGUSR1, raise_mine)
    try:
        waiter, log = before_the_second_is_woken(
            lambda _: gevent.get_hub().loop.run_callback(strike, signal.SIGUSR1), wait
        )
    finally:
        signal.signal(signal.SIGUSR1, told)
    waiter.kill()

    assert log == ["interrupted", "served"]


def raise_mine(*_):
    raise Mine


@pytest.mark.parametrize("wait", [None, 60.0], ids=["for ever", "for a minute"])
def test_who_is_interrupted_before_he_is_woken_is_not_woken_from_what_he_does_then(wait):
    waiter, log = before_the_second_is_woken(lambda greenlet: greenlet.kill(Mine, block=False), wait)
    found = list(log)
    gevent.get_hub().loop.run_callback(waiter.switch, "now")
    waiter.get(timeout=5)

    assert found == ["interrupted", "served"]
    assert log == [*found, "now"]


def test_who_returns_and_asks_again_queues_behind_those_who_wait():
    pool = ready(Pool(1))
    log: list[Any] = []
    with pool.get():
        greenlets = line_up(pool, 3, log)
    with pool.get():
        log.append("again")
    gevent.joinall(greenlets)

    assert log == [0, 1, 2, "again"]


def test_a_returned_connection_is_the_waiters_from_that_moment():
    pool = ready(Pool(1))
    with pool.get():
        (waiter,) = line_up(pool, 1, [])

    assert (pool.stats().idle, pool.stats().in_use, pool.stats().waiting) == (0, 1, 0)
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    waiter.join()


def test_who_gives_up_in_the_middle_of_the_queue_does_not_hold_up_the_others():
    pool = ready(Pool(1))
    log: list[int] = []
    with pool.get():
        greenlets = line_up(pool, 3, log)
        greenlets[1].kill()
        assert pool.stats().waiting == 2
    gevent.joinall(greenlets)

    assert log == [0, 2]


def test_leaving_the_queue_takes_no_longer_in_a_long_one():
    def seconds_per_waiter(count: int) -> float:
        pool = ready(Pool(1))
        with pool.get():
            waiters = [gevent.spawn(pool.acquire) for _ in range(count)]
            wait_until(lambda: pool.stats().waiting == count)
            started = time.process_time()
            for waiter in reversed(waiters):
                waiter.kill(block=False)
            gevent.joinall(waiters)
            return (time.process_time() - started) / count

    short, long = (min(seconds_per_waiter(count) for _ in range(3)) for count in (300, 6000))

    assert long < 10 * short  # twenty times as much if each had to look through the queue


def test_a_new_connection_goes_to_the_oldest_waiter():
    pool = Pool(2)
    log: list[int] = []
    greenlets = [gevent.spawn(lambda number=number: log.append((number, borrow_once(pool)))) for number in range(4)]
    gevent.joinall(greenlets)

    assert [number for number, _ in log] == [0, 1, 2, 3]
    assert pool.stats().opened == 2


def test_a_discarded_connection_is_replaced_for_who_waits():
    pool = ready(Pool(1))
    log: list[int] = []
    with pytest.raises(OSError, match="broken"):
        with pool.get():
            greenlets = line_up(pool, 2, log)
            raise OSError("broken")
    gevent.joinall(greenlets, timeout=30)

    assert log == [0, 1]
    assert pool.stats().opened == 2


def test_idle_connections_are_used_in_turn():
    pool = ready(Pool(3))

    assert [borrow_once(pool) for _ in range(6)] == pool.made * 2


class Asked(Polite):
    """Overrides the hooks that are called at a return."""

    def _is_reusable(self, c):
        return True

    def _is_connection_error(self, exc):
        return isinstance(exc, OSError)


@pytest.mark.parametrize("kind", [Polite, Asked])
@pytest.mark.parametrize("exc", [None, ValueError("kept"), OSError("broken"), gevent.Timeout(1)])
@pytest.mark.parametrize("waiting", [0, 2])
def test_giving_back_never_switches(kind, exc, waiting):
    pool = ready(kind(1, on_event=lambda event: None))
    lease = pool.get()
    lease.__enter__()
    waiters = line_up(pool, waiting, [])

    assert count_switches(lambda: lease.__exit__(type(exc) if exc else None, exc, None)) == 0
    gevent.joinall(waiters)


@pytest.mark.parametrize("waiting", [0, 2])
@pytest.mark.parametrize("how", ["release", "discard"])
def test_release_and_discard_never_switch(how, waiting):
    pool = ready(Asked(1, on_event=lambda event: None))
    c = pool.acquire()
    waiters = line_up(pool, waiting, [])

    assert count_switches(lambda: getattr(pool, how)(c)) == 0
    gevent.joinall(waiters)


def test_taking_an_idle_connection_never_switches():
    pool = ready(Pool(1))

    assert count_switches(lambda: borrow_once(pool)) == 0


def test_stats_and_repr_never_switch():
    pool = ready(Pool(1))

    assert count_switches(lambda: (pool.stats(), repr(pool))) == 0


# -- timeouts ----------------------------------------------------------------------------------------------------------


def test_get_with_timeout_0_never_waits():
    pool = ready(Pool(1))
    with pool.get():

        def get():
            with pytest.raises(PoolTimeout):
                with pool.get(timeout=0):
                    pass

        assert count_switches(get) == 0


def test_get_with_timeout_0_takes_an_idle_connection():
    pool = ready(Pool(1))

    with pool.get(timeout=0) as c:
        assert c is pool.made[0]


def test_get_with_timeout_0_of_an_empty_pool_starts_to_connect():
    pool = Pool(1, script=[OSError("not yet")])
    wait_until(lambda: pool.stats().open_errors == 1)
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)

    assert pool.stats().waiting == 0
    assert borrow_once(pool) is pool.made[0]


def test_a_pool_timeout_says_who_waited_how_long_and_how_the_pool_stands():
    pool = ready(Pool(3, name="mine"))
    with pool.get(), pool.get(), pool.get():
        others = line_up(pool, 2, [])
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(timeout=0.05)
    gevent.joinall(others)

    text = str(caught.value)
    assert "mine" in text
    waited = re.search(r"no connection within (\d\.\d\d) s", text)
    assert waited is not None
    assert 0.05 <= float(waited[1]) < 10
    assert "open 3" in text
    assert "idle 0" in text
    assert "in use 3" in text
    assert "waiting 2" in text
    assert caught.value.__cause__ is None


def test_a_pool_timeout_has_the_last_connect_error_as_its_cause():
    first, last = OSError("first"), ConnectionRefusedError(111, "the last")
    pool = Pool(1, script=[first, last, OSError("later"), OSError("later"), OSError("later")])
    wait_until(lambda: pool.stats().open_errors == 2)
    with pytest.raises(PoolTimeout, match="the last") as caught:
        pool.acquire(timeout=0)

    assert caught.value.__cause__ is last
    assert pool.stats().last_error is last


def test_the_pools_timeout_is_the_default_of_get_and_acquire():
    pool = ready(Pool(1, timeout=0.02))
    with pool.get():
        with pytest.raises(PoolTimeout):
            pool.acquire()
        with pytest.raises(PoolTimeout):
            with pool.get():
                pass


def test_an_explicit_timeout_of_none_waits_although_the_pool_has_one():
    pool = ready(Pool(1, timeout=0.01))
    c = pool.acquire()
    gevent.spawn_later(0.05, pool.release, c)

    with pool.get(timeout=None) as again:
        assert again is c


def test_a_connection_handed_over_as_the_time_runs_out_is_not_lost():
    pool = ready(Pool(1))
    for _ in range(50):
        c = pool.acquire()
        waiter = gevent.spawn(borrow_or_none, pool, 0.002)
        gevent.sleep(0)
        time.sleep(0.003)  # the hub sees the end of the time and the return in the same turn
        pool.release(c)
        waiter.join()

        assert (pool.stats().idle, pool.stats().in_use, pool.stats().waiting) == (1, 0, 0)


def borrow_or_none(pool, timeout):
    try:
        return pool.release(pool.acquire(timeout=timeout))
    except PoolTimeout:
        return None


def test_who_timed_out_does_not_swallow_the_next_connection():
    pool = ready(Pool(1))
    c = pool.acquire()
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.01)
    pool.release(c)

    assert pool.acquire(timeout=0) is c
    pool.release(c)


@pytest.mark.parametrize("exc", [gevent.GreenletExit(), gevent.Timeout(1), KeyError("mine")])
def test_a_connection_on_its_way_to_a_waiter_who_is_interrupted_goes_to_the_next(exc):
    pool = ready(Pool(1))
    log: list[int] = []
    with pool.get() as c:
        first, second = line_up(pool, 2, log)
        first.kill(exc, block=False)  # arrives after the hand-over below and before the waiter wakes
    gevent.joinall([first, second], timeout=30)

    assert log == [1]
    assert borrow_once(pool) is c
    assert pool.stats().waiting == 0


def test_a_waiters_own_timeout_goes_through_unchanged():
    pool = ready(Pool(1))
    with pool.get():
        with pytest.raises(gevent.Timeout) as caught:
            with gevent.Timeout(0.01) as mine, pool.get(timeout=5):
                pass

        assert caught.value is mine
        assert pool.stats().waiting == 0


def test_no_error_of_the_pool_is_an_oserror():
    assert not issubclass(PoolError, OSError)
    assert [issubclass(kind, PoolError) for kind in (PoolTimeout, PoolClosed)] == [True, True]
    assert issubclass(OSError, DEFAULT_EXC_CLASSES)


def test_a_greenlet_in_the_hub_cannot_wait_but_is_told_so():
    pool = ready(Pool(1))
    caught: list[BaseException] = []

    def get():
        try:
            pool.acquire()
        except RuntimeError as error:
            caught.append(error)

    with pool.get():
        gevent.get_hub().loop.run_callback(get)
        wait_until(lambda: caught)

        assert pool.stats().waiting == 0


# -- leases, acquire, release, discard ---------------------------------------------------------------------------------


def test_get_borrows_when_the_block_is_entered():
    pool = ready(Pool(1))
    lease = pool.get()

    assert pool.stats().in_use == 0
    with lease as c:
        assert pool.stats().in_use == 1
        assert c is pool.made[0]
    assert pool.stats().in_use == 0


def test_what_get_returns_is_for_one_block_only():
    pool = ready(Pool(2))
    lease = pool.get()
    with lease:
        with pytest.raises(RuntimeError):
            with lease:
                pass
    with pytest.raises(RuntimeError):
        with lease:
            pass

    assert (pool.stats().idle, pool.stats().in_use) == (2, 0)


def test_two_greenlets_that_wait_with_one_lease_lose_no_connection():
    pool = ready(Pool(2))
    first, second = pool.acquire(), pool.acquire()
    lease = pool.get()

    def use():
        try:
            with lease:
                gevent.sleep(0)
        except RuntimeError:
            pass

    users = [gevent.spawn(use), gevent.spawn(use)]
    gevent.sleep(0)
    pool.release(first)
    pool.release(second)
    gevent.joinall(users)

    assert (pool.stats().idle, pool.stats().in_use) == (2, 0)


def test_acquire_lends_until_release():
    pool = ready(Pool(1))
    c = pool.acquire()

    assert c is pool.made[0]
    assert pool.stats().in_use == 1
    assert pool.release(c) is None
    assert (pool.stats().idle, pool.stats().in_use) == (1, 0)


def test_a_connection_may_be_released_by_another_greenlet():
    pool = ready(Pool(1))
    c = gevent.spawn(pool.acquire).get()
    gevent.spawn(pool.release, c).get()

    assert pool.acquire(timeout=0) is c
    pool.release(c)


def test_discard_replaces_what_acquire_lent():
    pool = ready(Polite(1))
    c = pool.acquire()
    pool.discard(c)

    assert borrow_once(pool) is pool.made[1]
    assert c.ended == "aborted"
    assert causes(pool) == {"user": 1}


def test_discard_inside_its_block_takes_effect_at_the_end_of_that():
    pool = ready(Polite(1))
    with pool.get() as c:
        pool.discard(c)
        gevent.sleep(0.01)

        assert c.ended is None
        assert pool.stats().in_use == 1
    wait_until(lambda: c.ended)

    assert causes(pool) == {"user": 1}
    assert borrow_once(pool) is pool.made[1]


def test_discard_counts_as_the_users_also_if_is_reusable_would_say_no():
    class Asks(Polite):
        def _is_reusable(self, c):
            return c.ended is None and not hasattr(c, "bad")

    pool = ready(Asks(1))
    with pool.get() as c:
        c.bad = True
        pool.discard(c)

    assert causes(pool) == {"user": 1}


@pytest.mark.parametrize("verb", ["release", "discard"])
def test_what_is_not_borrowed_by_hand_cannot_be_returned(verb):
    pool, other = ready(Pool(1)), ready(Pool(1))
    give_back = getattr(pool, verb)
    mine, foreign = pool.acquire(), other.acquire()
    give_back(mine)

    for thing in mine, foreign, object(), None, [], pool:
        with pytest.raises(ValueError, match=verb):
            give_back(thing)
    other.release(foreign)
    assert borrow_once(pool) is pool.made[-1]
    assert (pool.stats().idle, pool.stats().in_use, other.stats().idle) == (1, 0, 1)


def test_release_inside_its_block_is_refused_and_the_block_goes_on():
    pool = ready(Pool(1))
    with pool.get() as c:
        with pytest.raises(ValueError, match="release"):
            pool.release(c)

        assert pool.stats().in_use == 1
    assert pool.stats().idle == 1


def test_discarding_twice_inside_the_block_is_refused():
    pool = ready(Pool(1))
    with pool.get() as c:
        pool.discard(c)
        with pytest.raises(ValueError, match="discard"):
            pool.discard(c)

    assert causes(pool) == {"user": 1}


def test_an_idle_connection_cannot_be_released_or_discarded():
    pool = ready(Pool(1))
    (c,) = pool.made

    for verb in pool.release, pool.discard:
        with pytest.raises(ValueError):  # noqa: PT011  # the text is another test's
            verb(c)
    assert pool.stats().idle == 1


def test_a_foreign_object_that_cannot_be_printed_is_refused_like_any_other():
    pool = ready(Pool(1))
    for verb in pool.release, pool.discard:
        with pytest.raises(ValueError):  # noqa: PT011  # the text is another test's
            verb(Difficult())


def test_a_connection_lent_by_get_after_it_was_lent_by_acquire_is_its_blocks():
    pool = ready(Pool(1))
    c = pool.acquire()
    pool.release(c)
    with pool.get() as again:
        assert again is c
        with pytest.raises(ValueError, match="release"):
            pool.release(c)


# -- wait --------------------------------------------------------------------------------------------------------------


def test_wait_returns_when_that_many_connections_are_open(blocked):
    pool = Pool(3, max_connecting=1, script=[Connection(), Connection(), blocked.wait])
    pool.script[2] = lambda: blocked.wait() and Connection()
    pool.wait(2, timeout=5)

    assert pool.stats().open == 2
    gevent.spawn_later(0.02, blocked.set)
    pool.wait(timeout=5)
    assert pool.stats().open == 3


def test_wait_counts_what_is_borrowed_as_open():
    pool = ready(Pool(2))
    with pool.get():
        pool.wait(timeout=0)


def test_wait_raises_a_pool_timeout_with_the_connect_error_and_the_pool_stays_usable():
    error = OSError("not yet")
    pool = Pool(1, script=[error, error])
    with pytest.raises(PoolTimeout, match="not yet") as caught:
        pool.wait(timeout=0.02)

    assert caught.value.__cause__ is error
    assert pool.stats().timeouts in (0, 1)
    assert borrow_once(pool) is pool.made[0]


def test_wait_with_timeout_0_does_not_switch():
    pool = Pool(1)

    def wait():
        with pytest.raises(PoolTimeout):
            pool.wait(timeout=0)

    assert count_switches(wait) == 0


def test_wait_ends_when_the_pool_is_closed():
    pool = Pool(1, script=[OSError("not yet")])
    waiter = gevent.spawn(pool.wait)
    gevent.sleep(0.01)
    pool.close()

    with pytest.raises(PoolClosed):
        waiter.get(timeout=30)
    with pytest.raises(PoolClosed):
        pool.wait()


@pytest.mark.parametrize(("n", "kind"), [(-1, ValueError), (3, ValueError), (1.5, TypeError), ("2", TypeError)])
def test_wait_refuses_a_number_of_connections_that_cannot_be(n, kind):
    pool = Pool(2)

    with pytest.raises(kind, match=f"n must .*{n}"):
        pool.wait(n)


# -- close -------------------------------------------------------------------------------------------------------------


def test_close_says_goodbye_to_idle_connections_and_refuses_everybody():
    pool = ready(Polite(3))

    assert pool.closed is False
    assert pool.close() is True
    assert pool.closed is True
    assert [c.ended for c in pool.made] == ["closed"] * 3
    assert causes(pool) == {}
    for timeout in None, 0, 1:
        with pytest.raises(PoolClosed):
            pool.acquire(timeout=timeout)
        with pytest.raises(PoolClosed):
            with pool.get(timeout=timeout):
                pass


def test_close_closes_the_sockets(tcp_server):
    class ToServer(Pool):
        def _new_connection(self):
            return socket.create_connection(tcp_server.address)

    pool = ready(ToServer(5))
    wait_until(lambda: tcp_server.open == 5)
    pool.close()
    wait_until(lambda: tcp_server.open == 0)

    assert tcp_server.opened == 5


def test_close_is_idempotent():
    pool = ready(Polite(2))

    assert [pool.close(), pool.close(0), pool.close(1), pool.close()] == [True] * 4
    assert pool.stats().closed == 2


def test_close_fails_those_who_wait_at_once():
    pool = ready(Pool(1))
    with pool.get():
        waiters = [gevent.spawn(pool.acquire) for _ in range(3)]
        wait_until(lambda: pool.stats().waiting == 3)
        closer = gevent.spawn(pool.close)
        gevent.joinall(waiters, timeout=30)

        assert [type(waiter.exception) for waiter in waiters] == [PoolClosed] * 3
        assert len({id(waiter.exception) for waiter in waiters}) == 3
    assert closer.get() is True


def test_close_waits_for_what_others_have_borrowed():
    pool = ready(Polite(2))
    c = gevent.spawn(pool.acquire).get()
    closer = gevent.spawn(pool.close)
    gevent.sleep(0.02)

    assert not closer.ready()
    assert c.ended is None
    pool.release(c)
    assert closer.get(timeout=30) is True
    assert c.ended == "closed"


def test_close_does_not_wait_for_what_its_own_greenlet_has_borrowed():
    pool = ready(Polite(2))
    with pool.get() as c:
        assert pool.close() is True
        assert c.ended is None
    wait_until(lambda: c.ended)

    assert c.ended == "closed"
    assert pool.stats().opened == pool.stats().closed == 2


def test_close_cuts_what_is_still_borrowed_when_its_time_is_over():
    pool = ready(Polite(1))
    c = gevent.spawn(pool.acquire).get()

    assert pool.close(0.02) is False
    wait_until(lambda: c.ended)
    assert c.ended == "aborted"
    pool.release(c)
    assert pool.stats().closed == 1
    assert pool.stats().in_use == 0


def test_a_user_who_is_cut_wakes_up_with_an_error_of_the_socket(tcp_server):
    class ToServer(Pool):
        def _new_connection(self):
            return socket.create_connection(tcp_server.address)

    pool = ready(ToServer(1))

    def read():
        with pool.get() as c:
            return c.recv(1)

    reader = gevent.spawn(read)
    wait_until(lambda: pool.stats().in_use == 1)

    assert pool.close(0) is False
    with pytest.raises(OSError):  # noqa: PT011  # what gevent raises is gevent's
        reader.get(timeout=30)
    wait_until(lambda: tcp_server.open == 0)


class Library:
    """A client as those in C are: it waits by its descriptor, and knows nothing of who does when it closes that."""

    def __init__(self, address):
        self._socket = plain_socket.create_connection(address)
        self._socket.setblocking(False)
        self.story = []

    def fileno(self):
        return self._socket.fileno()

    def ask(self):
        try:
            socket.wait_read(self.fileno())
            if not self._socket.recv(1):
                raise ConnectionError("the connection is closed")
        finally:
            self.story.append("left")

    def close(self):
        self.story.append("closed")
        self._socket.close()


@pytest.mark.parametrize("end", ["closed", "drained"])
@pytest.mark.parametrize("held_up", [0.0, 0.3])
def test_who_waits_by_a_descriptor_leaves_before_it_is_closed_under_him(tcp_server, end, held_up, monkeypatch):
    def sleep(seconds):
        gevent.get_hub().loop.run_callback(time.sleep, held_up)
        gevent.sleep(seconds)

    monkeypatch.setattr("geventconnpool._engine.sleep", sleep)

    class Clients(ConnectionPool[Library]):
        def _new_connection(self):
            return Library(tcp_server.address)

    class Cluster(ClusterPool[Library]):
        def _new_connection(self, endpoint):
            return Library(tcp_server.address)

    told = [Endpoint("127.0.0.1", 1)]
    resolver = SimpleNamespace(resolve=lambda _: Resolution(told, ttl=0.01), min_refresh=0.01, max_refresh=0.01)
    pool = Clients(1) if end == "closed" else Cluster(resolver, 1, drain_timeout=0.01)
    seen = []

    def use():
        with pool.get() as c:
            seen.append(c)
            c.ask()

    user = gevent.spawn(use)
    wait_until(lambda: seen)
    if end == "closed":
        assert pool.close(0) is False
    else:
        told.clear()

    with pytest.raises(ConnectionError, match="the connection is closed"):
        user.get(timeout=5)
    wait_until(lambda: "closed" in seen[0].story)
    assert seen[0].story == ["left", "closed"]
    pool.close()


def test_who_does_not_leave_holds_nothing_up(tcp_server):
    class Clients(ConnectionPool[Library]):
        def _new_connection(self):
            return Library(tcp_server.address)

    pool = ready(Clients(1))
    c = gevent.spawn(pool.acquire).get()

    assert pool.close(0) is False
    wait_until(lambda: c.story)
    assert c.story == ["closed"]
    pool.release(c)


def test_a_connection_that_its_peer_has_reset_is_closed_under_its_user():
    listener = plain_socket.create_server(("127.0.0.1", 0))
    pool = ready(Pool(1, script=[lambda: Library(listener.getsockname())]))
    c = gevent.spawn(pool.acquire).get()
    peer = listener.accept()[0]
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()

    with pytest.raises(ConnectionResetError):
        c.ask()
    assert pool.close(0) is False
    wait_until(lambda: c.story == ["left", "closed"])
    pool.release(c)
    listener.close()


def test_a_client_object_whose_user_holds_the_lock_of_its_descriptor_is_closed_under_him_all_the_same(monkeypatch):
    monkeypatch.setattr("geventconnpool._engine.PEER_TIMEOUT", 0.01)
    lock = RLock()

    class Locked(Connection):
        def fileno(self):
            with lock:
                return -1

    pool = ready(Pool(1, script=[Locked()]))
    left = Event()

    def use():
        with pool.get(), lock:
            left.wait(30)

    user = gevent.spawn(use)
    wait_until(lambda: pool.stats().in_use == 1)

    assert pool.close(0) is False
    wait_until(lambda: pool.stats().closed == 1)
    assert pool.made[0].ended == "closed"
    left.set()
    user.get(timeout=5)


def test_close_0_does_not_switch():
    pool = ready(Polite(2))
    gevent.spawn(pool.acquire).get()

    assert count_switches(lambda: pool.close(0)) == 0
    wait_until(lambda: pool.stats().closed == 2)
    assert sorted(c.ended for c in pool.made) == ["aborted", "closed"]


def test_what_was_cut_can_be_given_back_once_and_counts_once():
    pool = ready(Polite(3))

    def hold():
        with pool.get():
            gevent.sleep(0.02)

    holder = gevent.spawn(hold)
    by_hand, another = gevent.spawn(pool.acquire).get(), gevent.spawn(pool.acquire).get()
    pool.close(0)
    pool.release(by_hand)
    pool.discard(another)
    holder.get()

    for c in by_hand, another:
        with pytest.raises(ValueError, match="release"):
            pool.release(c)
    wait_until(lambda: pool.stats().closed == 3)
    assert (pool.stats().opened, pool.stats().in_use, pool.stats().open) == (3, 0, 0)


def test_a_connection_on_its_way_to_a_waiter_is_not_closed_under_it_unseen():
    pool = ready(Polite(1))
    c = pool.acquire()
    waiter = gevent.spawn(pool.acquire)
    wait_until(lambda: pool.stats().waiting == 1)
    pool.release(c)
    pool.close(0)

    with pytest.raises(PoolClosed):
        waiter.get(timeout=30)


def test_closing_while_connections_are_opened_leaves_none_open(blocked):
    pool = Polite(2, script=[lambda: blocked.wait() and Connection()] * 2)
    wait_until(lambda: len(pool.attempts) == 2)
    pool.close(1)
    wait_until(lambda: pool.stats().connecting == 0)

    assert pool.stats().opened == 0
    assert pool.stats().open_errors == 0


def test_a_connect_that_ends_well_although_the_pool_was_closed_is_closed(blocked):
    def stubborn():
        with suppress(gevent.GreenletExit):
            blocked.wait(5)
        return Connection()

    pool = Polite(1, script=[stubborn])
    wait_until(lambda: pool.attempts)
    pool.close(1)
    wait_until(lambda: pool.made and pool.made[0].ended)

    assert pool.made[0].ended == "closed"


def test_closing_before_the_first_connect_began_opens_nothing():
    pool = Pool(3)
    pool.close()
    gevent.sleep(0.02)

    assert pool.attempts == []
    assert pool.stats().connecting == 0


def test_when_close_returns_no_keepalive_is_under_way():
    pool = ready(KeptAlive(1, keepalive=0.02, keep=lambda c: gevent.sleep(0.1)))
    wait_until(lambda: pool.now)

    assert pool.close(5) is True
    assert pool.now == 0
    assert pool.made[0].ended == "closed"


def test_close_waits_for_hooks_that_close_but_not_beyond_its_time(blocked):
    class Slow(Pool):
        def _close_connection(self, c):
            blocked.wait(30)

    pool = ready(Slow(1))
    started = time.monotonic()

    assert pool.close(0.05) is True  # all came back; the goodbye goes on
    assert time.monotonic() - started < 4
    assert pool.stats().closed == 0
    blocked.set()
    assert pool.close() is True
    assert pool.stats().closed == 1


def test_leaving_a_with_block_closes_the_pool_and_waits_for_leases():
    with Polite(1) as pool:
        c = gevent.spawn(pool.acquire).get()
        gevent.spawn_later(0.02, pool.release, c)

    assert pool.closed
    assert c.ended == "closed"


def test_leaving_a_with_block_by_an_exception_cuts_at_once():
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        with Polite(1) as pool:
            c = gevent.spawn(pool.acquire).get()
            started = time.monotonic()
            raise error
    wait_until(lambda: c.ended)

    assert caught.value is error
    assert time.monotonic() - started < 10
    assert c.ended == "aborted"


def test_two_greenlets_may_close_at_the_same_time():
    pool = ready(Polite(1))
    c = pool.acquire()
    closers = [gevent.spawn(pool.close), gevent.spawn(pool.close, 5)]
    gevent.sleep(0)
    pool.release(c)

    assert [closer.get(timeout=30) for closer in closers] == [True, True]


@pytest.mark.parametrize(("timeout", "kind"), [(-1, ValueError), ("1", TypeError), (float("nan"), ValueError)])
def test_a_bad_timeout_of_close_closes_nothing(timeout, kind):
    pool = Pool(1)

    with pytest.raises(kind, match=f"timeout .*{timeout}"):
        pool.close(timeout)
    assert not pool.closed


# -- connecting --------------------------------------------------------------------------------------------------------


def test_the_constructor_returns_before_the_first_connect():
    pool = Pool(3)

    assert pool.attempts == []
    ready(pool)
    assert len(pool.attempts) == 3


def test_connecting_happens_in_greenlets_of_the_pool():
    where: list[Any] = []
    pool = Pool(1, script=[lambda: where.append(gevent.getcurrent()) or Connection()])
    borrow_once(pool)

    assert where[0] is not gevent.getcurrent()


@pytest.mark.parametrize(("options", "most"), [({}, 4), ({"max_connecting": 1}, 1), ({"max_connecting": 7}, 7)])
def test_no_more_than_max_connecting_connects_run_at_a_time(options, most):
    now, seen = [0], []

    def connect():
        now[0] += 1
        seen.append(now[0])
        gevent.sleep(0.003)
        now[0] -= 1
        return Connection()

    pool = ready(Pool(20, script=[connect] * 20, **options))

    assert max(seen) == most
    assert pool.stats().opened == 20


def test_while_connects_fail_there_is_one_probe_at_a_time():
    now, seen = [0], []

    def refuse():
        now[0] += 1
        seen.append(now[0])
        gevent.sleep(0.01)
        now[0] -= 1
        raise ConnectionRefusedError

    pool = Pool(10, script=[refuse] * 7)
    ready(pool)

    assert seen == [1, 2, 3, 4, 1, 1, 1]
    assert pool.stats().open_errors == 7


def test_the_delay_between_probes_doubles_from_a_tenth_of_a_second_with_jitter():
    longest = [0.1, 0.2, 0.4, 0.8]

    def are_in_time():
        pool = ready(Pool(1, script=[OSError("no")] * 4))
        delays = [later - earlier for earlier, later in pairwise(pool.attempts)]
        assert len(delays) == 4
        assert all(at_most / 2 <= delay + 0.002 for delay, at_most in zip(delays, longest, strict=True))
        return all(delay < at_most + 0.1 for delay, at_most in zip(delays, longest, strict=True))

    assert any(are_in_time() for _ in range(10))  # a busy machine is late now and then


def test_the_first_delay_is_the_same_after_a_success():
    def delay():
        pool = ready(Pool(1, script=[OSError("no"), OSError("no"), OSError("no"), Connection(), OSError("again")]))
        pool.discard(pool.acquire())
        wait_until(lambda: len(pool.attempts) == 6)
        assert pool.attempts[5] - pool.attempts[4] + 0.002 >= 0.05
        return pool.attempts[5] - pool.attempts[4]

    assert any(delay() < 0.2 for _ in range(10))  # as above


def test_connects_that_fail_side_by_side_count_once_for_the_delay():
    def delay():
        pool = Pool(4, script=[OSError("no")] * 4)
        wait_until(lambda: len(pool.attempts) >= 5)
        return pool.attempts[4] - pool.attempts[3]

    assert any(delay() < 0.2 for _ in range(10))  # as above


def test_the_first_delay_is_the_same_if_the_connect_that_fails_began_before_the_last_success():
    def make_pool(failed_at):
        def late():
            wait_until(lambda: pool.stats().open == 2)  # the success that it began before, and the one that led to
            failed_at.append(time.monotonic())
            raise OSError("late")

        def succeed():
            gevent.sleep(0.01)
            return Connection()

        pool = Pool(3, script=[OSError("early"), succeed, late])
        return pool

    def longest_delay():
        failed_at: list[list[float]] = [[] for _ in range(8)]
        pools = [make_pool(times) for times in failed_at]
        for pool in pools:
            ready(pool)
        delays = [pool.attempts[4] - at for pool, (at,) in zip(pools, failed_at, strict=True)]
        assert min(delays) >= 0.048
        return max(delays)

    assert any(longest_delay() < 0.2 for _ in range(10))  # as above


def test_after_the_first_success_the_pool_fills_at_full_speed():
    def seconds_to_fill():
        pool = Pool(20, script=[OSError("no")] * 4)
        wait_until(lambda: pool.made)
        first = time.monotonic()
        ready(pool)
        return time.monotonic() - first

    assert any(seconds_to_fill() < 0.1 for _ in range(10))  # as above


@pytest.mark.parametrize("nothing", [None, False])
def test_a_factory_that_returns_nothing_has_failed(nothing):
    pool = Pool(1, script=[nothing])
    c = borrow_once(pool)

    assert isinstance(c, Connection)
    assert pool.stats().open_errors == 1
    assert repr(nothing) in str(pool.stats().last_error)


@pytest.mark.parametrize(
    "failure",
    [OSError("no"), ValueError("bug"), gevent.Timeout(1), gevent.GreenletExit(), BaseException("odd"), StopIteration()],
)
def test_whatever_a_factory_raises_is_a_failure_that_is_tried_again(failure):
    pool = Pool(1, script=[failure, failure])

    assert borrow_once(pool) is pool.made[0]
    assert pool.stats().open_errors == 2
    assert pool.stats().last_error is failure


def test_the_last_error_keeps_nothing_of_what_the_factory_had_open():
    class HalfOpen:
        pass

    def connect():
        half_open = HalfOpen()
        try:
            raise OSError("login refused")
        except OSError as error:
            raise ValueError(f"with {half_open}") from error

    pool = Pool(1, script=[connect])
    wait_until(lambda: pool.stats().open_errors == 1)

    assert isinstance(pool.stats().last_error, ValueError)
    assert not [thing for thing in gc.get_objects() if type(thing) is HalfOpen]


def test_an_error_that_a_living_generator_still_holds_leaves_that_alive():
    def refusals():
        while True:
            try:
                raise ConnectionRefusedError(111, "refused")
            except OSError as error:
                refused = error
            yield refused

    answers = refusals()

    def connect():
        raise next(answers)

    pool = ready(Pool(1, script=[connect, connect]))

    assert isinstance(pool.stats().last_error, ConnectionRefusedError)
    assert isinstance(next(answers), ConnectionRefusedError)


class Difficult:
    """A client object that hates to be looked at."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = None

    def __bool__(self):
        raise RuntimeError("this has no truth")

    def __len__(self):
        raise RuntimeError("this has no length")

    def __eq__(self, other):
        raise RuntimeError("this has no equal")

    def __repr__(self):
        raise RuntimeError("this cannot be printed")

    __hash__ = None  # type: ignore[assignment]


class Equal:
    """Equal to all of its kind."""

    ended = None

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1


@pytest.mark.parametrize("kind", [Difficult, Equal, list, dict, object])
def test_any_object_can_be_pooled(kind):
    pool = ready(Pool(2, script=[kind(), kind()]))
    pool._close_connection = lambda c: None
    first, second = pool.acquire(), pool.acquire()

    assert first is not second
    assert (id(first), id(second)) == tuple(id(c) for c in pool.made)
    pool.discard(first)
    pool.release(second)
    assert pool.acquire() is second
    with pytest.raises(OSError, match="broken"):
        with pool.get():
            raise OSError("broken")
    pool.release(second)
    assert ready(pool).stats().opened == 4


@pytest.mark.parametrize("value", [0, "", (), 0.0])
def test_a_false_object_other_than_none_and_false_can_be_pooled(value):
    pool = ready(Pool(1, script=[value]))

    assert borrow_once(pool) is value
    assert pool.stats().open_errors == 0


def test_an_object_that_is_in_the_pool_already_is_refused_and_left_alone(caplog):
    same = Connection()
    pool = ready(Polite(2, name="double", script=[same, same]))

    assert same.ended is None
    assert pool.stats().open_errors == 1
    assert pool.stats().opened == 2
    assert sum(c is same for c in (borrow_once(pool), borrow_once(pool))) == 1
    assert "double" in caplog.text
    assert "already" in caplog.text


def test_two_connects_at_once_that_return_the_same_object_make_one_connection():
    same = Connection()
    pool = ready(Polite(2, script=[lambda: gevent.sleep(0.01) or same] * 2))

    assert pool.stats().open_errors == 1
    first, second = pool.acquire(), pool.acquire()
    assert first is not second
    pool.release(first)
    pool.release(second)


def test_an_object_that_left_the_pool_may_come_back():
    same = Connection()
    pool = ready(Polite(1, script=[same, same]))
    pool.discard(pool.acquire())
    c = borrow_once(pool)

    assert c is same
    assert pool.stats().open_errors == 0


def test_a_connect_that_takes_longer_than_open_timeout_is_interrupted_and_tried_again(blocked):
    pool = Pool(1, open_timeout=0.02, script=[lambda: blocked.wait(20)])
    c = borrow_once(pool)

    assert isinstance(c, Connection)
    assert pool.stats().open_errors == 1
    assert "0.02 s" in str(pool.stats().last_error)
    assert isinstance(pool.stats().last_error, gevent.Timeout)


def test_open_timeout_applies_to_a_connect_to_a_server_that_does_not_answer(tcp_server):
    tcp_server.answers = False

    class Login(Pool):
        def _new_connection(self):
            c = socket.create_connection(tcp_server.address)
            c.sendall(b"LOGIN\n")
            c.recv(2)
            return c

    pool = Login(1, open_timeout=0.05)
    wait_until(lambda: pool.stats().open_errors == 1)
    tcp_server.answers = True
    pool.wait(timeout=30)

    wait_until(lambda: tcp_server.open == 1, what="the end of the socket that was half open")


def test_a_hook_that_swallows_its_bound_and_returns_has_its_result_accepted(blocked):
    def stubborn():
        swallow(1, blocked)
        return Connection()

    pool = ready(Pool(1, open_timeout=0.02, script=[stubborn]))

    assert pool.stats().open_errors == 0
    assert pool.stats().opened == 1


def test_the_bound_is_thrown_again_every_second_with_one_warning_and_the_slot_counts(blocked, caplog):
    told = []
    seen = []

    def stubborn():
        swallowed = swallow(2, blocked)
        seen.append((swallowed, pool.stats().connecting, len(pool.attempts)))
        raise OSError("gave up")

    pool = Pool(1, open_timeout=0.02, on_event=told.append, script=[stubborn])
    wait_until(lambda: seen)
    took = time.monotonic() - pool.attempts[0]
    ready(pool)

    assert seen == [(2, 1, 1)]
    assert 0.9 < took < 5
    assert [event.hook for event in told if isinstance(event, events.HookFailed)] == ["_new_connection"]
    assert sum("longer than" in record.getMessage() for record in caplog.records) == 1


def test_the_users_own_timeout_inside_a_hook_is_his(blocked):
    def connect():
        with gevent.Timeout(0.01, False):
            blocked.wait()
        return Connection()

    pool = ready(Pool(1, open_timeout=5, script=[connect]))

    assert pool.stats().open_errors == 0


def test_a_hook_is_not_interrupted_after_it_has_ended():
    pool = ready(Pool(1, open_timeout=0.03))
    gevent.sleep(0.06)

    assert borrow_once(pool) is pool.made[0]
    assert pool.stats().open_errors == 0


def test_a_pool_whose_greenlet_could_not_be_started_can_be_closed_all_the_same(monkeypatch):
    def spawn(*job):
        raise MemoryError

    class Plain(ConnectionPool[Any]):
        def _new_connection(self):
            return object()

    pool = Plain(1, min_size=0)
    with monkeypatch.context() as patch:
        patch.setattr(pool._lender.engine, "spawn", spawn)
        with pytest.raises(MemoryError):
            pool.acquire(timeout=0)
    pool.close(0)

    assert (pool.closed, pool.stats().connecting) == (True, 1)
    assert pool._lender.engine.workers == set()


# -- closing hooks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [OSError("no"), gevent.Timeout(1), gevent.GreenletExit(), BaseException("odd")])
def test_a_closing_hook_that_raises_loses_no_slot(failure):
    class Fails(Pool):
        def _close_connection(self, c):
            raise failure

    pool = ready(Fails(2))
    for _ in range(5):
        pool.discard(pool.acquire(timeout=5))
    ready(pool)

    assert pool.stats().closed == 5
    assert pool.stats().idle == 2


def test_a_slot_counts_until_its_connection_is_closed(blocked):
    class Slow(Pool):
        def _abort_connection(self, c):
            blocked.wait(5)

    pool = ready(Slow(1))
    pool.discard(pool.acquire())
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.05)

    assert pool.stats().opened == 1
    blocked.set()
    assert borrow_once(pool) is pool.made[1]


def test_a_closing_hook_that_hangs_is_interrupted(blocked, monkeypatch):
    monkeypatch.setattr("geventconnpool._engine.CLOSE_TIMEOUT", 0.02)

    class Hangs(Pool):
        def _close_connection(self, c):
            blocked.wait(20)

    pool = ready(Hangs(1))
    pool.discard(pool.acquire())

    assert borrow_once(pool) is pool.made[1]
    assert pool.stats().closed == 1


# -- system exceptions out of hooks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_system_exception_out_of_new_connection_goes_to_the_hub_and_the_loop_goes_on(kind, hub_errors):
    pool = Pool(1, script=[kind()])

    assert borrow_once(pool) is pool.made[0]
    assert hub_errors == [kind]
    assert pool.stats().open_errors == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_system_exception_out_of_keepalive_goes_to_the_hub_and_the_loop_goes_on(kind, hub_errors):
    failures = [kind(), kind()]

    def keep(c):
        if failures:
            raise failures.pop()

    pool = ready(KeptAlive(1, keepalive=0.02, keep=keep))
    wait_until(lambda: len(pool.kept) >= 4)

    assert hub_errors == [kind, kind]
    assert causes(pool) == {"keepalive": 2}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("hook", ["_close_connection", "_abort_connection"])
def test_a_system_exception_out_of_a_closing_hook_goes_to_the_hub_and_the_loop_goes_on(kind, hook, hub_errors):
    def fail(self, c):
        raise kind

    pool = ready(type("Rude", (Pool,), {hook: fail})(1))
    pool.discard(pool.acquire())

    assert borrow_once(pool) is pool.made[1]
    assert hub_errors == [kind]
    assert pool.stats().closed == 1


@pytest.mark.parametrize("failure", [gevent.Timeout(1), gevent.GreenletExit(), OSError("no")])
def test_other_exceptions_out_of_hooks_do_not_reach_the_hub(failure, hub_errors):
    def fail(c):
        raise failure

    class Fails(KeptAlive):
        def _abort_connection(self, c):
            raise failure

    pool = ready(Fails(1, keepalive=0.02, keep=fail, script=[failure]))
    wait_until(lambda: pool.stats().closed >= 2)

    assert hub_errors == []


# -- keepalive ---------------------------------------------------------------------------------------------------------


def test_each_idle_connection_is_kept_alive_when_its_time_has_come():
    times: list[tuple[Any, float]] = []
    pool = ready(KeptAlive(3, keepalive=0.1, keep=lambda c: times.append((c, time.monotonic()))))

    def gaps(c):
        return [later - earlier for earlier, later in pairwise(at for who, at in times if who is c)]

    wait_until(lambda: len(times) >= 9 and all(min(gaps(c), default=1) < 0.15 for c in pool.made))

    assert all(gap >= 0.088 for c in pool.made for gap in gaps(c))
    assert pool.stats().opened == 3


def test_keepalive_runs_in_a_greenlet_of_the_pool_and_not_in_its_users():
    where: list[Any] = []
    pool = ready(KeptAlive(1, keepalive=0.02, keep=lambda c: where.append(gevent.getcurrent())))
    wait_until(lambda: where)

    assert where[0] is not gevent.getcurrent()
    assert pool.stats().gets == 0


def test_a_borrowed_connection_is_not_kept_alive():
    pool = ready(KeptAlive(2, keepalive=0.02))
    with pool.get() as c:
        pool.kept.clear()
        wait_until(lambda: len(pool.kept) >= 3)

        assert c not in pool.kept


def test_use_is_a_sign_of_life():
    def longest_rest():
        began = [time.monotonic()]
        for _ in range(25):
            borrow_once(pool)
            gevent.sleep(0.015)
            began.append(time.monotonic())
        return max(later - earlier for earlier, later in pairwise(began))

    for _ in range(20):
        pool = ready(KeptAlive(1, keepalive=0.2))
        if longest_rest() < 0.15:  # else a busy machine has left it unused for as long as a keepalive is due
            break

    assert pool.kept == []
    wait_until(lambda: pool.kept)


def test_a_connection_under_keepalive_is_open_but_not_lent(blocked):
    pool = ready(KeptAlive(1, keepalive=0.02, keep=lambda c: blocked.wait(5)))
    wait_until(lambda: pool.now)

    assert (pool.stats().open, pool.stats().idle, pool.stats().in_use) == (1, 0, 0)
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    blocked.set()
    assert borrow_once(pool) is pool.made[0]


@pytest.mark.parametrize(("size", "most"), [(1, 1), (3, 1), (7, 1), (8, 2), (12, 3)])
def test_at_most_a_quarter_of_the_pool_is_under_keepalive_and_at_least_one(size, most):
    pool = ready(KeptAlive(size, keepalive=0.02, keep=lambda c: gevent.sleep(0.01)))
    wait_until(lambda: len({id(c) for c in pool.kept}) == size)

    assert pool.most == most


def test_nothing_is_kept_alive_while_somebody_waits():
    seen = []
    pool = ready(KeptAlive(2, keepalive=0.01, keep=lambda c: seen.append(pool.stats().waiting)))

    def use():
        for _ in range(40):
            with pool.get():
                gevent.sleep(0.001)

    gevent.joinall([gevent.spawn(use) for _ in range(6)])

    assert set(seen) <= {0}


FAILURES = [
    OSError("broken"), ValueError("bug"), AssertionError(), gevent.Timeout(1), gevent.GreenletExit(), GeneratorExit(),
    BaseException("odd"), StopIteration(),
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_any_exception_from_keepalive_discards_the_connection_and_the_loop_goes_on(failure):
    def keep(c):
        if c is pool.made[0]:
            raise failure

    pool = ready(KeptAlive(1, keepalive=0.02, keep=keep))
    wait_until(lambda: len(pool.kept) >= 3)

    assert causes(pool) == {"keepalive": 1}
    assert pool.kept[0] is pool.made[0]
    assert pool.kept[2] is pool.made[1]
    assert pool.made[0].ended == "closed"
    assert pool.stats().open_errors == 0


def test_a_connection_that_fails_its_keepalive_is_aborted():
    class Both(KeptAlive, Polite):
        pass

    pool = ready(Both(1, keepalive=0.02, keep=lambda c: 1 / 0))
    wait_until(lambda: pool.made[0].ended)

    assert pool.made[0].ended == "aborted"


def test_a_keepalive_that_hangs_is_interrupted_and_its_connection_discarded(blocked):
    pool = ready(KeptAlive(1, keepalive=0.02, keepalive_timeout=0.03, keep=lambda c: blocked.wait(20)))
    wait_until(lambda: pool.now)

    c = borrow_once(pool)
    assert c is pool.made[1]
    assert causes(pool)["keepalive"] >= 1


def test_a_keepalive_is_bounded_by_its_period_if_nothing_else_is_said(blocked):
    pool = ready(KeptAlive(1, keepalive=0.05, keep=lambda c: blocked.wait(20)))
    wait_until(lambda: pool.now)
    started = time.monotonic()
    wait_until(lambda: causes(pool))

    assert time.monotonic() - started < 5  # it would be ten for a long period


def test_a_peer_that_hung_up_is_found_by_keepalive(tcp_server):
    class Pinging(Pool):
        def _new_connection(self):
            return socket.create_connection(tcp_server.address)

        def _keepalive(self, c):
            c.sendall(b"PING\n")
            if c.recv(5) != b"PONG\n":
                raise OSError("no PONG")

    pool = ready(Pinging(2, keepalive=0.05, keepalive_timeout=30))
    wait_until(lambda: tcp_server.lines.count(b"PING") >= 4)
    assert tcp_server.opened == 2
    tcp_server.close_all()
    wait_until(lambda: (tcp_server.opened, tcp_server.open) == (4, 2))

    assert causes(pool) == {"keepalive": 2}


@pytest.mark.parametrize("off", [None, 0, 0.0])
def test_keepalive_of_none_or_0_is_off(off):
    pool = ready(KeptAlive(1, (OSError,), off))
    gevent.sleep(0.05)

    assert pool.kept == []
    assert not pool.keepalive


# -- events, log -------------------------------------------------------------------------------------------------------


def test_events_tell_what_happened_in_order():
    told: list[events.Event] = []
    refused = OSError("no")
    pool = ready(Pool(1, name="mine", on_event=told.append, script=[refused]))
    pool.discard(pool.acquire())
    ready(pool)
    with pytest.raises(OSError, match="broken"):
        with pool.get():
            raise OSError("broken")
    ready(pool)
    pool.close()
    wait_until(lambda: len(told) >= 7)

    assert told[0] == events.ConnectFailed("mine", None, refused, 1)
    assert [(type(event).__name__, getattr(event, "cause", None)) for event in told] == [
        ("ConnectFailed", None),
        ("ConnectionOpened", None),
        ("ConnectionClosed", "user"),
        ("ConnectionOpened", None),
        ("ConnectionClosed", "error"),
        ("ConnectionOpened", None),
        ("ConnectionClosed", None),
    ]


def test_when_a_connection_is_reported_closed_it_is():
    seen: list[Any] = []

    def look(event):
        if isinstance(event, events.ConnectionClosed):
            seen.append(pool.made[0].ended)

    class Slow(Pool):
        def _abort_connection(self, c):
            gevent.sleep(0.02)
            c.ended = "aborted"

    pool = ready(Slow(1, on_event=look))
    pool.discard(pool.acquire())
    wait_until(lambda: seen)

    assert seen == ["aborted"]


def test_events_are_frozen():
    told: list[Any] = []
    ready(Pool(1, on_event=told.append))
    wait_until(lambda: told)

    with pytest.raises(FrozenInstanceError):
        told[0].pool = "another"


def test_events_are_delivered_by_a_greenlet_of_the_pool_after_the_fact():
    where: list[Any] = []
    pool = ready(Pool(1, on_event=lambda event: where.append(gevent.getcurrent())))
    wait_until(lambda: where)
    where.clear()
    pool.discard(pool.acquire())

    assert where == []
    wait_until(lambda: where)
    assert where[0] is not gevent.getcurrent()


def test_a_handler_may_call_any_method_of_the_pool():
    told = []

    def handle(event):
        told.append((pool.stats().open, repr(pool)))
        if isinstance(event, events.ConnectionOpened) and not pool.closed:
            pool.wait(timeout=30)
            borrow_once(pool)
            pool.discard(pool.acquire(timeout=30))
            pool.close(30)

    pool = Pool(2, on_event=handle)
    wait_until(lambda: pool.closed)
    wait_until(lambda: pool.stats().closed == pool.stats().opened)


@pytest.mark.parametrize("failure", [ValueError("bug"), OSError("disk full"), gevent.Timeout(1), gevent.GreenletExit()])
def test_what_a_handler_raises_is_logged_and_it_gets_the_next_event(failure, caplog):
    told: list[events.Event] = []

    def handle(event):
        told.append(event)
        raise failure

    ready(Pool(3, name="mine", on_event=handle))
    gevent.sleep(0.02)

    assert len(told) == 3
    assert sum("on_event" in record.getMessage() and "mine" in record.getMessage() for record in caplog.records) == 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_system_exception_out_of_a_handler_goes_to_the_hub_and_it_gets_the_next_event(kind, hub_errors):
    told: list[events.Event] = []

    def handle(event):
        told.append(event)
        raise kind

    ready(Pool(3, on_event=handle))
    gevent.sleep(0.02)

    assert len(told) == 3
    assert hub_errors == [kind] * 3


def test_a_handler_that_hangs_does_not_hold_up_the_pool_and_loses_the_oldest_events(blocked, monkeypatch):
    monkeypatch.setattr("geventconnpool._engine.EVENTS_KEPT", 1000)
    told: list[Any] = []

    def handle(event):
        told.append(event)
        blocked.wait()

    pool = ready(Pool(1, name="slow", on_event=handle))
    for _ in range(1200):
        pool.discard(pool.acquire(timeout=5))
    ready(pool)
    happened = pool.stats().opened + 1200
    blocked.set()
    wait_until(lambda: sum(getattr(event, "count", 1) for event in told) >= happened)

    dropped = [event for event in told if isinstance(event, events.EventsDropped)]
    assert len(dropped) == 1
    assert dropped[0].pool == "slow"
    assert dropped[0].count + len(told) - 1 == happened
    assert 100 < len(told) < 2000
    assert told.index(dropped[0]) == 1


def test_the_first_failed_connect_of_a_series_is_a_warning_with_traceback_and_recovery_is_info(caplog):
    caplog.set_level(logging.INFO, "geventconnpool")
    ready(Pool(1, name="mine", script=[OSError("no")] * 3))
    wait_until(lambda: len(caplog.records) >= 2)
    failed, recovered = caplog.records

    assert (failed.levelname, recovered.levelname) == ("WARNING", "INFO")
    assert failed.exc_info is not None
    assert failed.name.startswith("geventconnpool")
    assert (failed.pool, recovered.pool) == ("mine", "mine")


def test_each_new_series_of_failures_is_a_warning_again(caplog):
    pool = ready(Pool(1, script=[OSError("no"), Connection(), OSError("again")]))
    pool.discard(pool.acquire())
    ready(pool)
    gevent.sleep(0.01)

    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == ["WARNING"] * 2


def test_a_failing_hook_does_not_hide_another_that_fails(caplog):
    class Fails(Pool):
        def _is_connection_error(self, exc):
            raise ValueError("bug in judging")

        def _is_reusable(self, c):
            raise ValueError("bug in asking")

    pool = ready(Fails(1))
    borrow_once(pool)
    with pytest.raises(KeyError):
        with pool.get(timeout=5):
            raise KeyError
    gevent.sleep(0.02)

    assert "_is_reusable" in caplog.text
    assert "_is_connection_error" in caplog.text


def test_nothing_is_logged_per_use(caplog):
    caplog.set_level(logging.DEBUG, "geventconnpool")
    pool = ready(Pool(1))
    gevent.sleep(0.01)
    caplog.clear()
    for _ in range(10):
        borrow_once(pool)
        pool.release(pool.acquire())
    gevent.sleep(0.01)

    assert caplog.records == []


# -- statistics --------------------------------------------------------------------------------------------------------


def test_the_counters_agree_with_what_happened():
    failures = [OSError("1"), OSError("2")]
    pool = KeptAlive(2, name="mine", max_connecting=1, script=failures, keepalive=30)
    ready(pool)
    for exc in None, ValueError("kept"), OSError("broken"), gevent.Timeout(1):
        try:
            with pool.get():
                if exc:
                    raise exc
        except BaseException as error:
            if error is not exc:
                raise
    ready(pool)
    pool.discard(pool.acquire())
    ready(pool)
    a, b = pool.acquire(), pool.acquire()
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.05)

    def release():  # begins when somebody waits
        gevent.sleep(0.05)
        pool.release(a)

    gevent.spawn(release)
    with pool.get() as c:
        assert c is a
    stats = pool.stats()
    pool.release(b)

    assert (stats.name, stats.size, stats.min_size) == ("mine", 2, 2)
    assert (stats.open, stats.idle, stats.in_use, stats.connecting, stats.waiting) == (2, 1, 1, 0, 0)
    assert (stats.gets, stats.waits, stats.timeouts, stats.refused) == (8, 2, 2, 0)
    assert 0.098 < stats.wait_seconds < 10
    assert (stats.opened, stats.open_errors, stats.closed) == (5, 2, 3)
    assert {cause: n for cause, n in stats.discarded.items() if n} == {"error": 1, "interrupted": 1, "user": 1}
    assert stats.last_error is failures[1]


def test_stats_are_a_frozen_value_with_every_cause_of_a_discard():
    stats = ready(Pool(1)).stats()

    assert set(stats.discarded) == {
        "error", "interrupted", "stale", "keepalive", "lifetime", "idle", "user", "reset", "not_reusable",
    }  # fmt: skip
    with pytest.raises(FrozenInstanceError):
        stats.open = 5
    with pytest.raises(TypeError):
        stats.discarded["user"] = 5


def test_stats_of_the_past_do_not_change():
    pool = ready(Pool(1))
    before = pool.stats()
    pool.discard(pool.acquire())

    assert before.discarded["user"] == before.gets == 0


def test_who_is_interrupted_while_waiting_is_counted_as_having_waited_only():
    pool = ready(Pool(1))
    with pool.get():
        waiter = gevent.spawn(pool.acquire)
        gevent.sleep(0)
        gevent.sleep(0.02)
        waiter.kill()
    stats = pool.stats()

    assert (stats.gets, stats.waits, stats.timeouts, stats.waiting) == (1, 1, 0, 0)
    assert stats.wait_seconds >= 0.018


def test_no_moment_shows_more_connections_than_the_size():
    pool = Pool(3)

    def use(number):
        for turn in range(30):
            try:
                with pool.get():
                    gevent.sleep(0)
                    if (turn + number) % 7 == 0:
                        raise OSError("broken")
            except OSError:
                pass

    users = [gevent.spawn(use, number) for number in range(8)]
    while not all(user.ready() for user in users):
        stats = pool.stats()
        assert stats.open + stats.connecting <= 3
        assert stats.open == stats.idle + stats.in_use
        assert not (stats.idle and stats.waiting)
        gevent.sleep(0)
    ready(pool)

    assert pool.stats().gets == 240
    assert pool.stats().opened - pool.stats().closed == 3


def test_repr_shows_how_the_pool_stands():
    pool = ready(Pool(5, name="mine"))
    with pool.get():
        text = repr(pool)

    assert "Pool" in text
    assert "mine" in text
    assert "5 of 5 open" in text
    assert "4 idle" in text
    assert "1 in use" in text
    assert "closed" not in text
    pool.close()
    assert "closed" in repr(pool)


# -- subclasses, options -----------------------------------------------------------------------------------------------

TAKEN = ["host", "port", "log", "server", "client", "_client", "_login", "name", "user", "timeout", "_lock", "_pool"]


def test_a_subclass_may_call_its_own_attributes_what_it_likes():
    class Mine(Pool):
        def __init__(self):
            for attribute in TAKEN:
                setattr(self, attribute, f"my {attribute}")
            super().__init__(1, timeout=5, name="the pool")

        def _new_connection(self):
            assert self.host == "my host"
            return Connection()

    pool = ready(Mine())
    for attribute in TAKEN:
        setattr(pool, attribute, f"my {attribute}")
    with pytest.raises(OSError, match="broken"):
        with pool.get():
            raise OSError("broken")
    ready(pool)

    assert [getattr(pool, attribute) for attribute in TAKEN] == [f"my {attribute}" for attribute in TAKEN]
    assert pool.stats().name == "the pool"
    assert "the pool" in repr(pool)


def test_the_public_names_are_the_promised_ones():
    hooks = {name for name in dir(ConnectionPool) if not name.startswith("_")}

    assert hooks == {
        "get", "acquire", "release", "discard", "wait", "resize", "reset", "close", "closed", "stats", "size",
        "exc_classes", "keepalive",
    }  # fmt: skip


def test_a_pool_keeps_its_state_in_few_attributes():
    class Bare(ConnectionPool):
        def _new_connection(self):
            return Connection()

    with Bare(1) as pool:
        assert len(vars(pool)) <= 2


def test_the_first_three_options_work_by_position_and_by_keyword():
    by_position = KeptAlive(2, (KeyError,), 30)
    by_keyword = KeptAlive(size=2, exc_classes=(KeyError,), keepalive=30)

    for pool in by_position, by_keyword:
        assert (pool.size, pool.exc_classes, pool.keepalive) == (2, (KeyError,), 30)


@pytest.mark.parametrize("given", [KeyError, [KeyError], (KeyError,), {KeyError}, iter([KeyError]), {KeyError: 1}])
def test_exc_classes_takes_one_class_or_any_iterable(given):
    assert Pool(1, given).exc_classes == (KeyError,)


def test_the_rest_of_the_options_are_keyword_only():
    with pytest.raises(TypeError):
        KeptAlive(1, OSError, 30, 5.0)


def test_a_pool_without_new_connection_cannot_be_made():
    class Forgot(ConnectionPool):
        pass

    with pytest.raises(TypeError, match="Forgot.*_new_connection"):
        Forgot(1)
    with pytest.raises(TypeError, match="ConnectionPool.*_new_connection"):
        ConnectionPool(1)


def test_a_hook_that_leaves_it_to_the_base_class_opens_nothing_and_the_error_says_so():
    class Lazy(Pool):
        def _new_connection(self):
            return ConnectionPool._new_connection(self)

    pool = Lazy(1)
    with pytest.raises(PoolTimeout, match="NotImplementedError") as caught:
        pool.acquire(timeout=0.01)

    assert isinstance(caught.value.__cause__, NotImplementedError)


def test_the_signature_of_get_says_what_the_default_of_its_timeout_is():
    defaults = [inspect.signature(method).parameters["timeout"].default for method in (Pool.get, Pool.acquire)]

    assert list(map(repr, defaults)) == ["<the pool's timeout>", "<the pool's timeout>"]


def test_keepalive_needs_a_keepalive_method():
    with pytest.raises(TypeError, match="keepalive=30.*_keepalive"):
        Pool(1, keepalive=30)


def test_pools_without_a_name_get_different_ones():
    first, second = Pool(1), Pool(1)

    assert first.stats().name != second.stats().name
    assert "Pool" in first.stats().name


def test_a_pool_class_may_be_given_the_type_of_its_connections():
    class Typed(ConnectionPool[Connection]):
        def _new_connection(self) -> Connection:
            return Connection()

    with Typed(1) as pool, pool.get() as c:
        assert isinstance(c, Connection)


NAN, INF = float("nan"), float("inf")
NO_SECONDS = [(-1, ValueError), (-0.001, ValueError), (NAN, ValueError), (INF, ValueError), ("5", TypeError),
              (True, TypeError), ([], TypeError), (1j, TypeError)]  # fmt: skip
NO_NUMBER = [(0, ValueError), (-3, ValueError), (1.0, TypeError), ("5", TypeError), (True, TypeError),
             (None, TypeError)]  # fmt: skip
BAD: dict[str, list[tuple[Any, type[Exception]]]] = {
    "size": NO_NUMBER,
    "exc_classes": [
        (5, TypeError), (None, TypeError), ("OSError", TypeError), (OSError(), TypeError), ([OSError, 5], TypeError),
        ((int,), TypeError), (int, TypeError), (((OSError,),), TypeError), ([None], TypeError),
    ],
    "keepalive": NO_SECONDS,
    "timeout": NO_SECONDS,
    "max_connecting": NO_NUMBER,
    "open_timeout": [*NO_SECONDS, (0, ValueError), (None, TypeError)],
    "keepalive_timeout": [*NO_SECONDS, (0, ValueError)],
    "name": [(5, TypeError), (b"mine", TypeError), (["mine"], TypeError)],
    "on_event": [(5, TypeError), ("print", TypeError)],
}  # fmt: skip


@pytest.mark.parametrize(("option", "value", "kind"), [(o, v, k) for o, bad in BAD.items() for v, k in bad])
def test_a_bad_option_is_refused_with_its_name_and_value(option, value, kind):
    with pytest.raises(kind) as caught:
        KeptAlive(**{"size": 1, option: value})

    text = str(caught.value)
    assert option in text
    assert repr(value) in text or (option == "exc_classes" and any(repr(item) in text for item in value))


@pytest.mark.parametrize("value", [-1, "5", NAN, True, [], INF])
@pytest.mark.parametrize("method", ["get", "acquire"])
def test_a_bad_timeout_of_a_get_is_refused_with_its_value(method, value):
    pool = ready(Pool(1))

    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(pool, method)(timeout=value)
    assert "timeout" in str(caught.value)
    assert repr(value) in str(caught.value)
    assert pool.stats().idle == 1


def test_an_unknown_option_is_refused_with_its_name():
    class Bare(ConnectionPool):
        def _new_connection(self):
            return Connection()

    with pytest.raises(TypeError, match="maxsize"):
        Bare(1, maxsize=1)


def test_a_refused_constructor_leaves_nothing_running():
    class Counting(ConnectionPool):
        calls = 0

        def _new_connection(self):
            Counting.calls += 1
            return Connection()

    with pytest.raises(ValueError, match="open_timeout"):
        Counting(1, open_timeout=-1)
    gevent.sleep(0.01)

    assert Counting.calls == 0


def test_a_handler_that_falls_behind_is_told_of_in_the_log(caplog, blocked, monkeypatch):
    monkeypatch.setattr("geventconnpool._engine.EVENTS_KEPT", 1000)
    heard = []

    def hang(event):
        heard.append(event)
        blocked.wait()

    pool = ready(Pool(1, on_event=hang, name="mine"))
    for _ in range(600):
        with pool.get(timeout=5) as c:
            pool.discard(c)
        ready(pool)
    blocked.set()
    wait_until(lambda: any(isinstance(event, events.EventsDropped) for event in heard))

    assert "mine: on_event is too slow" in caplog.text


def test_a_lease_that_is_collected_in_another_native_thread_loses_no_connection():
    pool = ready(Pool(1))

    def lease():
        with pool.get(timeout=5):
            yield

    suspended = [lease()]
    next(suspended[0])
    gevent.get_hub().threadpool.apply(suspended.clear)  # its last reference goes there

    with pool.get(timeout=5):
        pass
    assert pool.stats().discarded["interrupted"] == 1


def in_another_thread(job):
    """Return what the job returns or raises in another native thread."""

    def run():
        try:
            return job()
        except Exception as error:
            return error

    return gevent.get_hub().threadpool.apply(run)


@pytest.mark.parametrize(
    "use",
    [
        lambda pool, c: pool.acquire(timeout=0),
        lambda pool, c: pool.get().__enter__(),
        lambda pool, c: pool.release(c),
        lambda pool, c: pool.discard(c),
        lambda pool, c: pool.wait(timeout=0),
        lambda pool, c: pool.close(0),
    ],
    ids=["acquire", "get", "release", "discard", "wait", "close"],
)
def test_another_native_thread_is_refused_and_changes_nothing(use):
    pool = ready(Pool(2, name="mine"))
    c = pool.acquire()
    refusal = in_another_thread(lambda: use(pool, c))
    stats = pool.stats()
    pool.release(c)

    assert isinstance(refusal, RuntimeError)
    assert re.fullmatch(r"mine belongs to the native thread \d+, this is \d+", str(refusal))
    assert (stats.in_use, stats.idle, stats.gets, pool.closed) == (1, 1, 1, False)


def test_a_block_that_ends_in_another_native_thread_is_refused_and_its_connection_replaced():
    pool = ready(Pool(1))
    lease = pool.get()
    lease.__enter__()
    refusal = in_another_thread(lambda: lease.__exit__(None, None, None))
    wait_until(lambda: pool.stats().idle == 1)

    assert isinstance(refusal, RuntimeError)
    assert pool.stats().discarded["interrupted"] == 1


def test_another_native_thread_may_look():
    pool = ready(Pool(2))

    assert in_another_thread(lambda: (pool.stats().idle, pool.size, pool.closed, "2 idle" in repr(pool))) == (
        2,
        2,
        False,
        True,
    )


def test_a_handler_that_is_a_method_of_the_pool_does_not_keep_a_forgotten_pool():
    heard = []

    class Telling(Pool):
        def hear(self, event):
            heard.append(event)

    pool = Telling.__new__(Telling)
    pool.__init__(1, on_event=pool.hear)
    pool.wait()
    wait_until(lambda: heard)
    made = pool.made
    Pool.alive.clear()
    gevent.sleep(0)  # what woke the wait is done with
    gc.collect()
    gc.disable()
    try:
        with pytest.warns(ResourceWarning):
            del pool
    finally:
        gc.enable()

    assert (len(heard), len(made)) == (1, 1)


def test_a_keepalive_that_succeeds_again_ends_the_series_of_failures_in_the_log(caplog):
    caplog.set_level(logging.INFO, "geventconnpool")
    failing = [True]

    def keep(c):
        if failing[0]:
            raise OSError("no answer")

    pool = KeptAlive(1, keep=keep, keepalive=0.01)
    for state in (True, False, True, False):
        failing[0] = state
        kept = len(pool.kept)
        wait_until(lambda kept=kept: len(pool.kept) > kept + 1 and pool.stats().idle == 1, what="keepalives")
    lines = [record.getMessage() for record in caplog.records if "keepalive" in record.getMessage()]

    assert [line.split(": ")[1].split(",")[0] for line in lines][:4] == [
        "keepalive failed", "keepalive succeeds again", "keepalive failed", "keepalive succeeds again",
    ]  # fmt: skip


def test_what_is_told_when_the_pool_is_gone_is_told_to_nobody():
    class Telling(Pool):
        heard: list[Any] = []

        def hear(self, event):
            self.heard.append(event)

    pool = Telling(1)
    tell = _without_cycle(pool, pool.hear)
    tell(events.ConnectionOpened("pool", None, 0.1))
    pool.close()
    Pool.alive.clear()
    del pool
    wait_until(lambda: gc.collect() >= 0 and not any(isinstance(o, Telling) for o in gc.get_objects()))
    tell(events.ConnectionClosed("pool", None, None))

    assert Telling.heard == [events.ConnectionOpened("pool", None, 0.1)]
