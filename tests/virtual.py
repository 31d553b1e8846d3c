"""Virtual time: a stand-in for the engine that carries out what the pure state orders, when the test says so.

It checks that every order can be carried out: each slot is opened, checked and closed once at a time and in the right
state, each waiter is woken once, no alarm is for the past.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from random import Random
from typing import Any

from geventconnpool import events
from geventconnpool._queue import (
    ABORT,
    ALARM,
    CANCEL,
    CHECK,
    CHECKING,
    CLOSE,
    CLOSING,
    CONNECTING,
    HELD,
    IN_USE,
    OPEN,
    WAKE,
    Holds,
    Queue,
    Slot,
    Timed,
    Waiter,
)
from geventconnpool._slots import Slots
from geventconnpool.errors import PoolClosed
from tests.life import REFUSED, SERVED, Gauges


class Dice(Random):
    """Always throws the same: 0.0 for the low end of a range, 1.0 for its high end."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


class Ordered(dict[Any, None]):
    """A set that is walked in the order in which it was filled, so that every run is like the last."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)


class Connection:
    """What is lent: an object like no other."""


class Orders(deque[tuple[str, Any]]):
    """``queue.todo`` in which the collector may strike: the ends in ``due`` come while the next order is given."""

    def __init__(self) -> None:
        super().__init__()
        self.due: list[Callable[[], None]] = []

    def append(self, item: tuple[str, Any]) -> None:
        self.strike()
        super().append(item)

    def strike(self) -> None:
        ends, self.due = self.due, []
        for end in ends:
            end()


class Shell:
    """Carries out the orders of one queue; the test decides how connects, keepalives and closes go."""

    def __init__(self, queue: Queue, now: float = 0.0) -> None:
        self.queue = queue
        self.now = now
        self.orders = queue.todo = Orders()
        self.opening: list[Slot] = []
        self.checking: list[Slot] = []
        self.closing: list[Slot] = []
        self.cancelled: list[Slot] = []
        self.polite: list[Slot] = []  # those of closing that get a goodbye
        self.woken: list[Waiter] = []
        self.alarms: list[tuple[float, Timed]] = []
        self.held: list[tuple[float, Slot]] = []  # leases that were reported as held for too long, and when
        self.opened_total = 0
        self.news: list[events.Event] = []

    # -- carrying out --------------------------------------------------------------------------------------------------

    def act(self) -> list[str]:
        """Carry out all orders and return what they were."""
        done = []
        while self.queue.todo:
            deed, subject = self.queue.todo.popleft()
            done.append(deed)
            self._carry_out(deed, subject)
        self.news.extend(self.queue.news)
        self.queue.news.clear()
        return done

    def _carry_out(self, deed: str, subject: Any) -> None:
        if deed == ALARM:
            self.alarms.append((subject.alarm, subject))
        elif deed == WAKE:
            assert subject.is_settled
            assert subject not in self.woken
            self.woken.append(subject)
        elif deed == HELD:
            assert subject.state == IN_USE
            self.held.append((self.now, subject))
        elif deed == CANCEL:
            assert subject.doomed
            assert subject in self.opening
            self.cancelled.append(subject)
        else:
            jobs, state = {
                OPEN: (self.opening, CONNECTING),
                CHECK: (self.checking, CHECKING),
                CLOSE: (self.closing, CLOSING),
                ABORT: (self.closing, CLOSING),
            }[deed]
            assert subject.state == state
            assert subject not in self.opening + self.checking + self.closing, "two workers for one connection"
            jobs.append(subject)
            if deed == CLOSE:
                self.polite.append(subject)

    @property
    def next_due(self) -> float:
        """When the next alarm rings that nobody has moved."""
        return min((at for at, timed in self.alarms if timed.alarm == at), default=inf)

    def run_to(self, now: float) -> None:
        """Let time pass, ringing at every alarm."""
        while due := [entry for entry in self.alarms if entry[0] <= now]:
            entry = min(due, key=lambda e: e[0])
            self.alarms.remove(entry)
            at, timed = entry
            if timed.alarm != at:
                continue  # moved forward since
            self.now = max(self.now, at)
            timed.alarm = inf
            timed.tick(self.now)
            self.act()
            assert timed.alarm > self.now, "an alarm for now, at once after now: the hub would spin"
        self.now = max(self.now, now)

    # -- what the world does -------------------------------------------------------------------------------------------

    def open(self, slot: Slot, peer: str | None = None) -> Any:
        self.opening.remove(slot)
        connection = Connection()
        slot.peer = peer
        self.opened_total += 1
        slot.pool.opened(slot, connection, self.now)
        self.act()
        return connection

    def refuse(self, slot: Slot, error: BaseException | None = None) -> None:
        self.opening.remove(slot)
        slot.pool.connect_failed(slot, error or OSError("refused"), self.now)
        self.act()

    def answer(self, slot: Slot) -> None:
        self.checking.remove(slot)
        slot.pool.kept_alive(slot, self.now)
        self.act()

    def hang_up(self, slot: Slot, error: BaseException | None = None) -> None:
        self.checking.remove(slot)
        slot.pool.keepalive_failed(slot, error or OSError("hung up"), self.now)
        self.act()

    def close(self, slot: Slot) -> None:
        self.closing.remove(slot)
        slot.pool.closed(slot, self.now)
        self.act()

    def end(self, slot: Slot, verdict: str | None = None, error: BaseException | None = None) -> None:
        """End a lease as the shell does: the short way if there is no more to it."""
        if verdict is None and slot.pool.returned(slot, self.now):
            return
        slot.pool.ended(slot, verdict, error, self.now)
        if not self.queue.busy:
            self.act()

    def settle_down(self, *, opens: bool = True) -> None:
        """Carry out what is pending, well, until nothing is."""
        while self.opening or self.checking or self.closing:
            for slot in list(self.closing):
                self.close(slot)
            for slot in list(self.opening):
                if opens and not slot.doomed:
                    self.open(slot)
                else:
                    self.refuse(slot)
            for slot in list(self.checking):
                self.answer(slot)


def states(pool: Any) -> dict[str, int]:
    """Count the slots of a pool by state."""
    counts: dict[str, int] = {}
    for slot in pool.slots:
        counts[slot.state] = counts.get(slot.state, 0) + 1
    return counts


def assert_conserved(pool: Any, at_most: int | None = None) -> None:
    """Every slot is in exactly one state, and the counters say how many are in which."""
    found = states(pool)
    assert len(pool.slots) <= (pool.size if at_most is None else at_most)
    assert len(pool.idle) == len(set(pool.idle)) == found.get("idle", 0)
    assert all(slot in pool.slots for slot in pool.idle)
    assert pool.in_use == found.get(IN_USE, 0)
    assert pool.connecting == found.get(CONNECTING, 0)
    assert pool.checking == found.get(CHECKING, 0)
    assert pool.closing == found.get(CLOSING, 0)


class Bench:
    """Drives the pure state of one pool as ``tests.life`` wants a pool to be driven."""

    def __init__(self, pool: Slots, *, hold_warning: float = inf) -> None:
        self.pool = pool
        pool.slots = Ordered()  # type: ignore[assignment]
        self.queue = pool.queue
        self.shell = Shell(pool.queue)
        if hold_warning < inf:
            Holds(self.queue, hold_warning, 0.0)
        self.settled: list[tuple[Waiter, str, Any]] = []
        self._dead: set[Any] = set()
        pool.plan(0.0)
        self.act()

    def act(self) -> None:
        self.shell.act()
        for waiter in self.shell.woken:
            slot = waiter.slot
            self.settled.append((waiter, REFUSED, None) if slot is None else (waiter, SERVED, slot.connection))
        self.shell.woken.clear()

    @property
    def now(self) -> float:
        return self.shell.now

    @property
    def connecting(self) -> list[Slot]:
        return self.shell.opening

    @property
    def checking(self) -> list[Any]:
        return [slot.connection for slot in self.shell.checking]

    @property
    def closing(self) -> list[Any]:
        return [slot.connection for slot in self.shell.closing]

    @property
    def told(self) -> list[tuple[float, Any]]:
        return [(at, slot.connection) for at, slot in self.shell.held]

    def slot_of(self, connection: Any) -> Slot:
        return self.queue.open.get(id(connection)) or self.queue.cut[id(connection)]

    # -- borrowers -----------------------------------------------------------------------------------------------------

    def borrow(self) -> Any:
        while (slot := self.pool.take(self.now)) is not None:
            if not self._is_found_dead(slot):
                return slot.connection
        return None

    def _is_found_dead(self, slot: Slot) -> bool:
        if slot.connection not in self._dead or not slot.is_suspect(self.now):
            return False
        self.pool.hung_up(slot, self.now)
        self.act()
        return True

    def ask(self) -> Waiter | None:
        if self.queue.is_down:
            return None
        waiter = Waiter(self.now, only=self.pool)
        self.pool.ask(waiter, self.now)
        self.act()
        return waiter

    def give_up(self, waiter: Waiter) -> None:
        waiter.is_late = True
        self.queue.withdraw(waiter)

    def has_run(self, waiter: Waiter) -> bool:
        return False

    def interrupt(self, waiter: Waiter, connection: Any) -> None:
        self.pool.pass_on(self.slot_of(connection), self.now)
        self.act()

    def discard(self, connection: Any) -> None:
        slot = self.slot_of(connection)
        if slot.state is IN_USE:
            slot.doomed = "user"

    def possible(self, connection: Any, verdict: str | None, discard: bool, collect: bool) -> tuple[Any, bool, bool]:
        return verdict, discard, collect

    def give_back(self, connection: Any, verdict: str | None) -> None:
        self.shell.end(self.slot_of(connection), verdict)
        self.act()

    def collect(self, connection: Any, verdict: str | None) -> None:
        self.shell.orders.due.append(partial(self.shell.end, self.slot_of(connection), verdict))

    def flush(self) -> None:
        ends, self.shell.orders.due = self.shell.orders.due, []
        for end in ends:
            end()
        self.act()

    # -- the server ----------------------------------------------------------------------------------------------------

    def accept(self, attempt: Slot) -> Any:
        connection = self.shell.open(attempt)
        self.act()
        return connection

    def refuse(self, attempt: Slot) -> None:
        self.shell.refuse(attempt)
        self.act()

    def is_cancelled(self, attempt: Slot) -> bool:
        return attempt.doomed is not None

    def answer(self, connection: Any, *, good: bool) -> None:
        slot = self.slot_of(connection)
        if good:
            self.shell.answer(slot)
        else:
            self.shell.hang_up(slot)
        self.act()

    def hang_up(self, connection: Any) -> None:
        self._dead.add(connection)

    def end_close(self, connection: Any) -> None:
        self.shell.close(self.slot_of(connection))
        self.act()

    # -- the pool ------------------------------------------------------------------------------------------------------

    def next_due(self) -> float:
        return self.shell.next_due

    def run_to(self, now: float) -> None:
        self.shell.run_to(now)
        self.act()

    def reset(self) -> None:
        self.pool.reset(self.now)
        self.act()

    def resize(self, size: int, min_size: int) -> None:
        self.pool.resize(size, min_size, self.now)
        self.act()

    def warm(self, count: int) -> None:
        self.pool.warming.append(count)
        self.pool.plan(self.now)
        self.act()

    def cool(self, count: int) -> None:
        self.pool.warming.remove(count)

    def warmed(self) -> list[int]:
        return []

    def shut(self) -> None:
        self.pool.shut(lambda: PoolClosed("pool is closed"))
        self.act()

    def cut(self) -> None:
        self.pool.cut()
        self.act()

    def gauges(self) -> Gauges:
        pool, queue = self.pool, self.queue
        return Gauges(
            idle=len(pool.idle),
            in_use=pool.in_use,
            checking=pool.checking,
            connecting=pool.connecting,
            closing=pool.closing,
            waiting=len(queue.waiting),
            is_down=queue.is_down,
        )

    def counters(self) -> dict[str, int]:
        pool = self.pool
        return {"opened": pool.opened_total, "open_errors": pool.open_errors, "closed": pool.closed_total}

    def discarded(self) -> dict[str, int]:
        return self.pool.discarded
