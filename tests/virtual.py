"""Virtual time: a stand-in for the engine that carries out what the pure state orders, when the test says so.

It checks that every order can be carried out: each slot is opened, checked and closed once at a time and in the right
state, each waiter is woken once, no alarm is for the past.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
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
    IN_USE,
    OPEN,
    WAKE,
    Queue,
    Slot,
    Timed,
    Waiter,
)


class Dice(Random):
    """Always throws the same: 0.0 for the low end of a range, 1.0 for its high end."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


class Connection:
    """What is lent: an object like no other."""


class Orders(deque[tuple[str, Any]]):
    """``queue.todo`` in which the collector may strike: the ends in ``due`` come while the next order is given."""

    def __init__(self) -> None:
        super().__init__()
        self.due: list[Callable[[], None]] = []

    def append(self, item: tuple[str, Any]) -> None:
        ends, self.due = self.due, []
        for end in ends:
            end()
        super().append(item)


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


def assert_conserved(pool: Any) -> None:
    """Every slot is in exactly one state, and the counters say how many are in which."""
    found = states(pool)
    assert len(pool.slots) <= pool.size
    assert len(pool.idle) == len(set(pool.idle)) == found.get("idle", 0)
    assert all(slot in pool.slots for slot in pool.idle)
    assert pool.in_use == found.get(IN_USE, 0)
    assert pool.connecting == found.get(CONNECTING, 0)
    assert pool.checking == found.get(CHECKING, 0)
    assert pool.closing == found.get(CLOSING, 0)
