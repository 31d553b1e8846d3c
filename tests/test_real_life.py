"""A whole pool, with its engine, its greenlets and the hub, driven through the same life as the pure state.

Nothing here waits: the clock is the test's, every hook rests until the test says how it ends, and so does every block
of a borrower. What is left of chance is drawn from the seed of the example, so that each run is like the last.

Between one step and the next the hub may be left with work to do, as it is between two turns of its loop: a waiter that
was handed a connection has not run yet. The next step lets it run first, unless it is one that may come before it: an
interruption, a reset, a change of size, the passing of time, the end of the pool.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from random import Random
from typing import Any

import gevent
import pytest
from gevent import Greenlet, GreenletExit, get_hub, getcurrent
from gevent.event import AsyncResult
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from geventconnpool import ConnectionPool, PoolClosed, PoolError, PoolTimeout, PoolUnavailable, events
from geventconnpool._queue import (
    ABORTED,
    CHECKING,
    CLOSING,
    CONNECTING,
    ERROR,
    HELD,
    IN_USE,
    INTERRUPTED,
    KEPT,
    NOT_REUSABLE,
    PROVISIONAL,
    USER,
    WAKE,
    Slot,
    Waiter,
)
from geventconnpool._slots import Slots
from geventconnpool._worker import Worker
from tests.life import PUT_BACK, REFUSED, SERVED, Gauges, Life, Options, number, verdict
from tests.virtual import Ordered, Orders

NEVER = 1e6  # seconds of real time in which no example ends
SUDDEN = ["interrupt", "reset", "shrink", "pass time", "end", "nothing"]  # what may come before a waiter runs


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Connection:
    """Has a descriptor, and a peer that may hang up."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.is_open = True

    def fileno(self) -> int:
        return self.near.fileno()

    def close(self) -> None:
        self.near.close()
        self.far.close()
        self.is_open = False


class Call:
    """A call of a hook that rests until the test says what comes of it."""

    def __init__(self, hook: str, *, is_stubborn: bool) -> None:
        self.hook = hook
        self.is_stubborn = is_stubborn  # it takes no notice of being killed
        self.result: AsyncResult[Any] = AsyncResult()

    def rest(self) -> Any:
        while True:
            try:
                return self.result.get()
            except GreenletExit:
                if not self.is_stubborn:
                    raise


class Pool(ConnectionPool[Connection]):
    """Does as the driver says."""

    def __init__(self, driver: Hall, size: int, **options: Any) -> None:
        self.driver = driver
        super().__init__(size, **options)

    def _new_connection(self) -> Connection:
        connection: Connection = self.driver.serve("_new_connection")
        return connection

    def _keepalive(self, c: Connection) -> None:
        self.driver.serve("_keepalive")

    def _close_connection(self, c: Connection) -> None:
        self.driver.serve("_close_connection")

    def _abort_connection(self, c: Connection) -> None:
        self.driver.serve("_abort_connection")


class Asking(Pool):
    """Asks about each connection that comes back, and says itself which descriptor is whose."""

    def _is_reusable(self, c: Connection) -> bool:
        return c not in self.driver.unusable

    def _fileno(self, c: Connection) -> int:
        return c.near.fileno()


class Borrower:
    """Who borrows in a greenlet of his own: for a block, or by hand, or in a generator that may be collected."""

    def __init__(self, hall: Hall, kind: str, timeout: float | None) -> None:
        self.hall = hall
        self.kind = kind
        self.timeout = timeout
        self.connection: Any = None
        self.handed: Any = None  # what he was handed, but has not seen yet
        self.waiter: Waiter | None = None  # while he waits
        self.is_refused = False
        self.outcome: BaseException | None = None  # what came out
        self.order: AsyncResult[BaseException | None] = AsyncResult()  # how the block shall end
        self.lease: Any = None
        self.greenlet = Greenlet(self._run)
        hall.greenlets.append(self.greenlet)

    def _run(self) -> None:
        try:
            if self.kind == "block":
                self._borrow_for_a_block()
            elif self.kind == "hand":
                self._enter(self.hall.pool.acquire(self.timeout))
            else:
                lease = self._leases()
                self._enter(next(lease))
                self.lease = lease
        except BaseException as error:
            self.outcome = error
            if isinstance(error, PoolError):
                self.hall.refused(self)

    def _borrow_for_a_block(self) -> None:
        with self.hall.pool.get(self.timeout) as connection:
            self._enter(connection)
            error = self.order.get()
            if error is not None:
                raise error

    def _leases(self) -> Iterator[Any]:
        with self.hall.pool.get(self.timeout) as connection:
            yield connection

    def _enter(self, connection: Any) -> None:
        self.connection = connection
        self.hall.entered(self)

    # -- the end -------------------------------------------------------------------------------------------------------

    def end(self, verdict: str | None) -> None:
        """End the lease; the exception that ends it must come out of it."""
        error = self._error_of(verdict)
        if verdict == NOT_REUSABLE:
            self.hall.unusable.add(self.connection)
        elif verdict == USER:
            self.hall.pool.discard(self.connection)
        if self.kind == "hand":
            if verdict != USER:
                self.hall.pool.release(self.connection)
        elif self.kind == "block":
            self._end_block(error)
            assert self.greenlet.dead
            assert self.outcome is error
        elif verdict == INTERRUPTED:
            self.drop()
        else:
            self._end_generator(error)

    def _error_of(self, verdict: str | None) -> BaseException | None:
        if verdict == INTERRUPTED:
            return self.hall.dice.choice([GreenletExit(), gevent.Timeout(None), KeyboardInterrupt()])
        if verdict == NOT_REUSABLE:
            return self.hall.dice.choice([None, LookupError("in a block")])
        return {KEPT: LookupError("in a block"), ERROR: ConnectionResetError("in a block")}.get(verdict or "")

    def _end_block(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, Exception):
            self.order.set(error)
            gevent.sleep(0)
        else:
            self.hall.turn(self.greenlet.throw, error)

    def _end_generator(self, error: BaseException | None) -> None:
        lease, self.lease = self.lease, None
        try:
            if error is None:
                next(lease)
            else:
                lease.throw(error)
        except StopIteration:
            pass
        except (LookupError, OSError) as outcome:
            self.outcome = outcome
        assert self.outcome is error

    def drop(self) -> None:
        """Let go of the generator: what collects it ends the lease."""
        self.lease = None

    def possible(
        self, verdict: str | None, discard: bool, collect: bool, doomed: str | None
    ) -> tuple[str | None, bool, bool]:
        if verdict == NOT_REUSABLE and (discard or doomed not in PROVISIONAL or not self.hall.asks_reusable):
            verdict = None  # it is not asked
        if self.kind == "hand":
            if discard or verdict in (ERROR, INTERRUPTED, USER):
                return USER, False, False
            return (verdict if verdict == NOT_REUSABLE else None), False, False
        if collect and self.kind == "generator":
            return INTERRUPTED, discard, True
        return verdict, discard and verdict != USER, False


class Hall:
    """Drives a pool as ``tests.life`` wants it to be driven: clients, the server, and the time."""

    def __init__(self, options: Options) -> None:
        self.clock = Clock()
        self.dice = Random(options.seed)
        self.hub = get_hub()
        gevent.sleep(0)  # it runs
        self.settled: list[tuple[Any, str, Any]] = []
        self.told: list[tuple[float, Any]] = []
        self.unusable: set[Any] = set()
        self.made: list[Connection] = []
        self.greenlets: list[Any] = []  # everybody's
        self.news: list[events.Event] = []
        self.errors: list[Any] = []  # that reached the hub
        self.gets = self.timeouts = 0
        self._calls: dict[Any, Call] = {}
        self._users: dict[Any, Borrower] = {}
        self._borrowers: dict[Waiter, Borrower] = {}
        self._warming: list[tuple[int, Any]] = []
        self._closers: list[Any] = []
        self._was_cut = False
        self._patch = pytest.MonkeyPatch()
        self._set_the_scene(options.seed)
        self.asks_reusable = options.seed % 2 == 0
        self.pool = (Asking if self.asks_reusable else Pool)(
            self,
            options.size,
            min_size=options.min_size,
            max_connecting=options.max_connecting,
            keepalive=options.keepalive,
            max_idle=_or_none(options.max_idle),
            max_lifetime=_or_none(options.max_lifetime),
            lifo=options.lifo,
            fail_after=_or_none(options.fail_after),
            hold_warning=_or_none(options.hold_warning),
            open_timeout=NEVER,
            keepalive_timeout=NEVER,
            on_event=self.news.append,
        )
        self.lender = self.pool._lender
        self.slots = self.lender.slots
        self.engine = self.lender.engine
        self.queue = self.engine.queue
        self._listen()

    def _set_the_scene(self, seed: int) -> None:
        hall = self

        class Noted(Worker):
            def __init__(self, run: Callable[[], None]) -> None:
                super().__init__(run)
                hall.greenlets.append(self)

        def make_slots(*args: Any, **options: Any) -> Slots:
            slots = Slots(*args, **options)
            slots.slots = Ordered()  # type: ignore[assignment]
            return slots

        for module in ("_engine", "_lease", "_lender", "pool"):
            self._patch.setattr(f"geventconnpool.{module}.monotonic", self.clock)
        self._patch.setattr("geventconnpool.pool.Random", partial(Random, seed))
        self._patch.setattr("geventconnpool.pool.Slots", make_slots)
        self._patch.setattr("geventconnpool._engine.Worker", Noted)
        self._patch.setattr("geventconnpool._engine.CLOSE_TIMEOUT", NEVER)
        self._patch.setattr("geventconnpool._engine.PEER_TIMEOUT", NEVER)
        self._patch.setattr(logging.getLogger("geventconnpool"), "disabled", True)
        self._patch.setattr(logging.getLogger("geventconnpool.pool"), "disabled", True)
        self._patch.setattr(self.hub, "handle_error", lambda *what: self.errors.append(what))

    def _listen(self) -> None:
        """Be told what the engine does."""
        deeds, ask_again = self.engine._deeds, self.lender._ask_again
        wake, report = deeds[WAKE], deeds[HELD]

        def woken(waiter: Waiter) -> None:
            borrower = self._borrowers.get(waiter)
            if borrower is not None and waiter.slot is not None:
                borrower.handed = waiter.slot.connection
                self.settled.append((borrower, SERVED, borrower.handed))
            elif borrower is not None and waiter.error is not None:
                self.refused(borrower)
            wake(waiter)

        def reported(slot: Slot) -> None:
            self.told.append((self.now, slot.connection))
            report(slot)

        def asked_again(waiter: Waiter, timeout: float | None) -> None:
            borrower = self._borrowers.get(waiter)
            if borrower is not None:
                assert borrower.handed is not None
                self.settled.append((borrower, PUT_BACK, borrower.handed))
                borrower.handed = None
            ask_again(waiter, timeout)

        deeds[WAKE], deeds[HELD] = woken, reported
        self.engine.wake_soon = woken  # type: ignore[assignment, method-assign]
        self.lender._ask_again = asked_again  # type: ignore[method-assign]
        self.orders = self.queue.todo = Orders()

    # -- the hub -------------------------------------------------------------------------------------------------------

    def turn(self, what: Callable[..., object], *args: object) -> None:
        """Do something in the next turn of the loop, and no more than that."""
        self.hub.loop.run_callback(what, *args)
        gevent.sleep(0)

    def at_once(self, what: Callable[..., object], *args: object) -> None:
        """Do something in another greenlet, before anything else that the loop has to do."""
        self.hub.loop.run_callback(getcurrent().switch)
        what(*args)

    def rest(self) -> None:
        """Let everybody run until nobody can."""
        loop: Any = self.hub.loop
        for _ in range(1000):
            gevent.sleep(0)
            if not len(loop._callbacks):
                return
        raise AssertionError("it never rests")

    def serve(self, hook: str) -> Any:
        me = getcurrent()
        is_stubborn = hook == "_new_connection" and self.dice.random() < 0.3
        call = self._calls[me] = Call(hook, is_stubborn=is_stubborn)
        try:
            return call.rest()
        finally:
            del self._calls[me]

    def _call_of(self, slot: Slot) -> Call:
        self.rest()
        return self._calls[slot.worker]

    def slot_of(self, connection: Any) -> Slot:
        return self.queue.open.get(id(connection)) or self.queue.cut[id(connection)]

    # -- what it looks like --------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.clock.now

    @property
    def connecting(self) -> list[Slot]:
        return [slot for slot in self.slots.slots if slot.state == CONNECTING]

    @property
    def checking(self) -> list[Any]:
        return [slot.connection for slot in self.slots.slots if slot.state == CHECKING]

    @property
    def closing(self) -> list[Any]:
        return [slot.connection for slot in self.slots.slots if slot.state == CLOSING]

    def gauges(self) -> Gauges:
        lent = [slot for slot in self.slots.slots if slot.owner is not None]
        assert all(slot.state == IN_USE or slot.doomed for slot in lent), lent  # the end of a lease relies on it
        stats = self.pool.stats()
        return Gauges(
            idle=stats.idle,
            in_use=stats.in_use,
            checking=stats.open - stats.idle - stats.in_use,
            connecting=stats.connecting,
            closing=stats.opened - stats.closed - stats.open,
            waiting=stats.waiting,
            is_down=self.queue.is_down,
        )

    def counters(self) -> dict[str, int]:
        stats = self.pool.stats()
        assert (stats.gets, stats.timeouts, stats.refused) == (self.gets, self.timeouts, 0)
        return {"opened": stats.opened, "open_errors": stats.open_errors, "closed": stats.closed}

    def discarded(self) -> dict[str, int]:
        return dict(self.pool.stats().discarded)

    # -- borrowers -----------------------------------------------------------------------------------------------------

    def _start(self, timeout: float | None) -> Borrower:
        self.rest()
        borrower = Borrower(self, self.dice.choice(["block", "block", "hand", "generator"]), timeout)
        borrower.greenlet.start()
        gevent.sleep(0)
        return borrower

    def entered(self, borrower: Borrower) -> None:
        self.gets += 1
        slot = self.slot_of(borrower.connection)
        if slot.state != IN_USE or slot.doomed not in PROVISIONAL:
            self.errors.append(("lent, and no good", slot.state, slot.doomed))
        self._users[borrower.connection] = borrower
        if borrower.handed is None and borrower.timeout is None:
            self.settled.append((borrower, SERVED, borrower.connection))
        else:
            assert borrower.handed in (None, borrower.connection)
        borrower.handed = None

    def refused(self, borrower: Borrower) -> None:
        if isinstance(borrower.outcome, PoolTimeout):
            self.timeouts += 1
        elif not borrower.is_refused:
            borrower.is_refused = True
            self.settled.append((borrower, REFUSED, None))

    def borrow(self) -> Any:
        borrower = self._start(0)
        if borrower.connection is None:
            assert isinstance(borrower.outcome, (PoolTimeout, PoolClosed, PoolUnavailable))
            self.settled = [entry for entry in self.settled if entry[0] is not borrower]
        return borrower.connection

    def ask(self) -> Borrower | None:
        borrower = self._start(None)
        if borrower.outcome is not None:
            assert isinstance(borrower.outcome, PoolUnavailable)
            self.settled.remove((borrower, REFUSED, None))
            return None
        if borrower.connection is None:
            borrower.waiter = list(self.queue.waiting)[-1]
            self._borrowers[borrower.waiter] = borrower
        return borrower

    def give_up(self, waiter: Borrower) -> None:
        self.rest()
        if self.dice.random() < 0.5:
            assert waiter.waiter is not None
            self.turn(self.engine._expire, waiter.waiter)
            assert isinstance(waiter.outcome, PoolTimeout)
        else:
            waiter.greenlet.kill(block=False)
            gevent.sleep(0)
            assert isinstance(waiter.outcome, GreenletExit)

    def has_run(self, waiter: Borrower) -> bool:
        return waiter.handed is None

    def interrupt(self, waiter: Borrower, connection: Any) -> None:
        assert waiter.handed is connection
        waiter.handed = None
        error = self.dice.choice([GreenletExit(), gevent.Timeout(None), LookupError("while waiting")])
        self.at_once(waiter.greenlet.throw, error)
        assert waiter.outcome is error
        if self.dice.random() < 0.5:
            self.rest()  # else the next in the queue, to whom it was passed on, has not run yet

    def possible(self, connection: Any, verdict: str | None, discard: bool, collect: bool) -> tuple[Any, bool, bool]:
        if connection not in self._users or self._users[connection].kind == "block":
            self.rest()
        user = self._users[connection]
        return user.possible(verdict, discard, collect, self.slot_of(connection).doomed)

    def discard(self, connection: Any) -> None:
        self.pool.discard(connection)

    def give_back(self, connection: Any, verdict: str | None) -> None:
        self._users.pop(connection).end(verdict)

    def collect(self, connection: Any, verdict: str | None) -> None:
        self.orders.due.append(self._users.pop(connection).drop)

    def flush(self) -> None:
        ends, self.orders.due = self.orders.due, []
        for end in ends:
            end()

    # -- the server ----------------------------------------------------------------------------------------------------

    def accept(self, attempt: Slot) -> Any:
        connection = Connection()
        self.made.append(connection)
        self._call_of(attempt).result.set(connection)
        gevent.sleep(0)
        assert attempt.connection is connection
        return connection

    def refuse(self, attempt: Slot) -> None:
        result = self._call_of(attempt).result
        error = self.dice.choice([None, OSError("refused"), gevent.Timeout(None), LookupError("refused")])
        if error is None:
            result.set(None)
        else:
            result.set_exception(error)
        gevent.sleep(0)

    def is_cancelled(self, attempt: Slot) -> bool:
        return attempt.doomed is not None

    def answer(self, connection: Any, *, good: bool) -> None:
        result = self._call_of(self.slot_of(connection)).result
        if good:
            result.set(None)
        else:
            result.set_exception(self.dice.choice([OSError("hung up"), gevent.Timeout(None), LookupError("hung up")]))
        gevent.sleep(0)

    def hang_up(self, connection: Any) -> None:
        connection.far.close()

    def end_close(self, connection: Any) -> None:
        slot = self.slot_of(connection)
        call = self._call_of(slot)
        assert call.hook == ("_abort_connection" if slot.doomed in ABORTED else "_close_connection")
        connection.close()
        if self.dice.random() < 0.8:
            call.result.set(None)
        else:
            call.result.set_exception(OSError("no goodbye"))
        gevent.sleep(0)

    # -- the pool ------------------------------------------------------------------------------------------------------

    def next_due(self) -> float:
        return min((at for at, _, timed in self.engine._heap if timed.alarm == at), default=inf)

    def run_to(self, now: float) -> None:
        while (due := self.next_due()) <= now:
            self.clock.now = max(self.now, due)
            self.engine.ring()
            assert self.next_due() > self.now, "an alarm for now, at once after now: the hub would spin"
        self.clock.now = max(self.now, now)
        self.rest()

    def reset(self) -> None:
        if self.pool.closed:
            with pytest.raises(PoolClosed):
                self.pool.reset()
        else:
            self.pool.reset()
        self._rest_after_cancelling()

    def resize(self, size: int, min_size: int) -> None:
        self.pool.resize(size, min_size)
        self._rest_after_cancelling()

    def _rest_after_cancelling(self) -> None:
        self.rest()
        assert all(self._calls[slot.worker].is_stubborn for slot in self.connecting if self.is_cancelled(slot))

    def warm(self, count: int) -> None:
        self.rest()
        greenlet = Greenlet(self._wait, count)
        self.greenlets.append(greenlet)
        self._warming.append((count, greenlet))
        greenlet.start()
        gevent.sleep(0)

    def _wait(self, count: int) -> None:
        try:
            self.pool.wait(count)
        except PoolClosed:
            assert self.pool.closed
        else:
            assert self.pool.stats().open >= min(count, self.pool.size)

    def cool(self, count: int) -> None:
        self.rest()
        entry = next(entry for entry in self._warming if entry[0] == count)
        self._warming.remove(entry)
        entry[1].kill(block=False)
        gevent.sleep(0)

    def warmed(self) -> list[int]:
        over = [entry for entry in self._warming if entry[1].dead]
        self._warming = [entry for entry in self._warming if entry not in over]
        return [count for count, _ in over]

    def shut(self) -> None:
        self._close(None)

    def cut(self) -> None:
        self._was_cut = self._was_cut or self.pool.stats().in_use > 0
        self._close(0)

    def _close(self, timeout: float | None) -> None:
        greenlet = Greenlet(self.pool.close, timeout)
        self.greenlets.append(greenlet)
        self._closers.append(greenlet)
        self.at_once(greenlet.switch)
        self._rest_after_cancelling()

    # -- the end -------------------------------------------------------------------------------------------------------

    def assert_nothing_is_left(self) -> None:
        self.rest()
        assert self.errors == []
        assert [connection for connection in self.made if connection.is_open] == []
        assert [greenlet for greenlet in self.greenlets if not greenlet.dead] == []
        assert self.engine.workers == set()
        assert not self.queue.open
        assert not self.queue.cut
        assert not self.queue.waiting
        assert not self.slots.slots
        assert {greenlet.value for greenlet in self._closers} == {not self._was_cut}
        closed = Counter(event.cause for event in self.news if isinstance(event, events.ConnectionClosed))
        assert len(self.made) == sum(isinstance(event, events.ConnectionOpened) for event in self.news)
        assert len(self.made) == closed.total()
        assert {cause: closed[cause] for cause in self.discarded()} == self.discarded()

    def leave(self) -> None:
        self._patch.undo()
        gevent.killall([greenlet for greenlet in self.greenlets if not greenlet.dead], block=False)
        self.engine.stop_alarms()
        for connection in self.made:
            connection.close()


def _or_none(seconds: float) -> float | None:
    return None if seconds == inf else seconds


class RealLife(Life):
    """What may happen to a pool, and more often than by chance what may happen while greenlets are about to run."""

    def make(self, options):
        return Hall(options)

    @rule(count=st.integers(2, 8))
    @precondition(lambda self: not self.is_shut)
    def crowd(self, count):
        for _ in range(count):
            self.ask()

    @rule(count=st.integers(1, 4), number=number, verdict=verdict, then=st.sampled_from(SUDDEN))
    @precondition(lambda self: self.held and self.waiting)
    def hand_over(self, count, number, verdict, then):
        """Give connections back for which others wait, and something else before those run."""
        for _ in range(min(count, len(self.held))):
            self.give_back(number, verdict, False, False)
        if then == "interrupt" and self.fresh():
            self.interrupt(number)
        elif then == "reset":
            self.reset()
        elif then == "shrink":
            self.resize(max(1, self.size - 1), self.min_size)
        elif then == "pass time":
            self.pass_time(self.options.max_lifetime if self.options.max_lifetime < inf else 1.0)
        elif then == "end":
            self.shut()
            self.cut_off()

    def teardown(self):
        if not hasattr(self, "driver"):
            return
        try:
            super().teardown()
            self.driver.assert_nothing_is_left()
        finally:
            self.driver.leave()


TestRealLife = RealLife.TestCase
TestRealLife.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink)
)
