"""The state of one pool. Pure: no gevent, no clock, no logging; every transition is told what happened and what time
it is.

A slot is the right to have one connection. A pool has ``size`` of them; one that is used is in exactly one state::

               failed: free again
        +---------------------------+
        v                           |
      (free) ----connect----> CONNECTING --opened--> IDLE <---lent, returned---> IN_USE
        ^                           |                 ^                            |
        |                    doomed |       kept alive|                            |
        |                           v                 v                            |
        +-------closed-------- CLOSING <--failed-- CHECKING                        |
                                    ^                                              |
                                    +----error, interrupted, not reusable, doomed--+

A doomed slot (its endpoint drains or is ejected, its pool is shut, its user discards it) goes to CLOSING from wherever
it is, as soon as whoever has it lets go.

Who moves a slot: the borrower's greenlet from IDLE to IN_USE and back; the worker greenlet that was told to open,
check or close it out of CONNECTING, CHECKING and CLOSING; nobody else. A slot in one of these is never handed out.

What the shell must do (open, close, check a slot, wake a waiter, set an alarm) is put on ``queue.todo``, in order.
The shell does it after the transition; nothing in it runs user code or switches while a transition is under way.
Between two switches of greenlets these hold (style: conservation, exclusivity, no lost wake-up, no barging):

* ``idle + in_use + connecting + checking + closing == len(slots) <= size``;
* a slot is idle only if nobody waits who may use it, so a borrower may take an idle one without looking at the queue;
* a slot handed to a waiter is IN_USE from that moment; a waiter who was interrupted passes it on.

The one thing that can break into a transition is the garbage collector, which may end a lease (a collected generator)
between any two bytecodes. So while a transition runs, ends are kept in ``queue.late`` and applied after it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from math import inf
from random import Random
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from geventconnpool import events
from geventconnpool._backoff import exponential, spread

# States of a slot.
CONNECTING, IDLE, IN_USE, CHECKING, CLOSING = "connecting", "idle", "in use", "checking", "closing"

# How a lease ends. None: well. KEPT: by an exception that says nothing about the connection. Else: the cause of a
# discard.
KEPT = "kept"
ERROR, INTERRUPTED, USER, NOT_REUSABLE, KEEPALIVE = "error", "interrupted", "user", "not_reusable", "keepalive"
CAUSES = (ERROR, INTERRUPTED, "stale", KEEPALIVE, "lifetime", "idle", USER, "reset", NOT_REUSABLE)
# Marks of a connection that is closed at its return without being discarded for a cause of its own.
DRAINED, EJECTED, CLOSED, MOVED, CUT = "drained", "ejected", "closed", "moved", "cut"
# After these nobody knows what is on the wire, or nobody listens: no goodbye.
ABORTED = frozenset({ERROR, INTERRUPTED, "stale", KEEPALIVE, USER, NOT_REUSABLE, EJECTED, CUT})

# What the shell is told to do, with a slot (the first five), a waiter, or something that has an alarm.
OPEN, CANCEL, CHECK, CLOSE, ABORT, WAKE, ALARM = "open", "cancel", "check", "close", "abort", "wake", "alarm"

# Modes of a pool.
RUNNING, SUSPENDED, SHUT = "running", "suspended", "shut"

FIRST_RETRY, LONGEST_RETRY, LONGEST_RETRY_IDLE = 0.1, 5.0, 30.0  # seconds
KEEPALIVE_JITTER = 0.1

P = ParamSpec("P")
R = TypeVar("R")


class Timed(Protocol):
    """Something with work that has a due time: at ``alarm`` the shell sets that to inf and calls ``tick``."""

    alarm: float

    def tick(self, now: float) -> None: ...


class Observer(Protocol):
    """Who wants to know how one pool's connections fare: the cluster."""

    def connected(self, now: float) -> None: ...
    def connect_failed(self, error: BaseException, now: float) -> None: ...
    def kept_alive(self, now: float) -> None: ...
    def keepalive_failed(self, error: BaseException, now: float) -> None: ...
    def call_ended(self, verdict: str | None, error: BaseException | None, seconds: float, now: float) -> None: ...
    def probed(self, error: BaseException | None, now: float) -> None: ...
    def emptied(self) -> None: ...


class Slot:
    """One connection's place, from the decision to connect until it is closed. Never used for a second connection."""

    __slots__ = (
        "by_hand",
        "connection",
        "doomed",
        "endpoint",
        "is_past",
        "jitter",
        "owner",
        "peer",
        "pool",
        "probe",
        "seen",
        "since",
        "state",
        "worker",
    )

    def __init__(self, pool: Slots, jitter: float, now: float, *, probe: bool) -> None:
        self.pool = pool
        self.endpoint = pool.endpoint  # as it was when this connection was made
        self.state = CONNECTING
        self.connection: Any = None
        self.since = now  # when the connect, or the lease, began
        self.seen = now  # last sign of life: opened, returned, kept alive
        self.jitter = jitter  # how much of ``keepalive`` to wait
        self.doomed: str | None = None  # why it will be closed when it comes back
        self.is_past = False  # from before an ejection: what it tells counts for nothing
        self.probe = probe  # opened to find out whether an ejected endpoint is back
        self.by_hand = False  # borrowed by acquire(), so release() may return it
        self.owner: Any = None  # the greenlet that borrowed it
        self.worker: Any = None  # the greenlet that opens, checks or closes it
        self.peer: str | None = None  # the address it leads to, where known


class Waiter:
    """One greenlet that waits for a connection; settled by a slot, an error, or ``is_late`` (its time is over)."""

    __slots__ = ("avoid", "error", "greenlet", "is_late", "only", "since", "slot")

    def __init__(self, now: float, *, only: Slots | None = None, avoid: Collection[Any] = ()) -> None:
        self.since = now
        self.only = only  # the one pool it wants, or None for any of the queue's
        self.avoid = avoid  # endpoints it would rather not use
        self.slot: Slot | None = None
        self.error: BaseException | None = None
        self.is_late = False
        self.greenlet: Any = None

    @property
    def is_settled(self) -> bool:
        return self.slot is not None or self.error is not None or self.is_late


class Queue:
    """What the pools under one roof share: who waits (oldest first), what the shell is to do, every open connection."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()  # leaving is O(1), wherever one stands
        self.todo: deque[tuple[str, Any]] = deque()
        self.news: deque[events.Event] = deque()
        self.open: dict[int, Slot] = {}  # by id(connection), which may be unhashable, until it is closed
        self.cut: dict[int, Slot] = {}  # closed under their users, who have yet to return them
        self.failing: set[Slots] = set()  # pools whose last connect failed
        self.busy = False
        self.late: deque[tuple[Slot, str | None, BaseException | None, float]] = deque()

    def may_use(self, waiter: Waiter, pool: Slots) -> bool:
        """Say whether the waiter may get a connection of that pool; overridden where there are several pools."""
        return True

    def join(self, waiter: Waiter, now: float, *, first: bool = False) -> None:
        """Put a waiter at the end, or ``first``; the only one makes the pools that cannot connect try again sooner."""
        is_only = not self.waiting
        self.waiting[waiter] = None
        self.waiting.move_to_end(waiter, last=not first)
        if waiter.only is not None:
            waiter.only.waiting += 1
        if is_only:
            for pool in tuple(self.failing):
                pool.plan(now)

    def settle(self, waiter: Waiter, *, slot: Slot | None = None, error: BaseException | None = None) -> None:
        self.withdraw(waiter)
        waiter.slot, waiter.error = slot, error
        self.todo.append((WAKE, waiter))

    def withdraw(self, waiter: Waiter) -> None:
        """Take a waiter out who gave up; nothing happens if it is settled already."""
        if waiter in self.waiting:
            del self.waiting[waiter]
            if waiter.only is not None:
                waiter.only.waiting -= 1

    def refuse(self, error: Callable[[], BaseException], only: Slots | None = None) -> None:
        """Settle with an error of its own each waiter, or each that wants that one pool."""
        for waiter in list(self.waiting):
            if only is None or waiter.only is only:
                self.settle(waiter, error=error())


class Gate:
    """At most ``limit`` connects at a time over all pools that share it; who found it shut goes on in order."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._blocked: OrderedDict[Slots, None] = OrderedDict()

    def enter(self, pool: Slots) -> bool:
        if not self._free:
            self._blocked[pool] = None
            return False
        self._free -= 1
        return True

    def leave(self, now: float) -> None:
        self._free += 1
        while self._free and self._blocked:
            pool, _ = self._blocked.popitem(last=False)
            pool.plan(now)  # may have no use for it any more


def transition(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Mark a method of something with a ``queue`` as one transition: leases ended during it are applied after it."""

    @wraps(method)
    def run(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        queue: Queue = self.queue
        if queue.busy:
            return method(self, *args, **kwargs)
        queue.busy = True
        try:
            return method(self, *args, **kwargs)
        finally:
            try:
                while queue.late:
                    slot, verdict, error, now = queue.late.popleft()
                    slot.pool.end(slot, verdict, error, now)
            finally:
                queue.busy = False

    return cast(Callable[Concatenate[Any, P], R], run)


class Slots:
    """The slots of one pool. What is to be done after a transition is in ``queue.todo``."""

    def __init__(
        self,
        size: int,
        *,
        name: str,
        queue: Queue,
        gate: Gate,
        rng: Random,
        keepalive: float = 0.0,
        max_connecting: int = 4,
        has_keepalive: bool = False,
        endpoint: Any = None,
    ) -> None:
        self.size = size
        self.name = name
        self.endpoint = endpoint
        self.queue = queue
        self.keepalive = keepalive
        self.max_connecting = max_connecting
        self.has_keepalive = has_keepalive  # a probe is kept alive once
        self.observer: Observer | None = None
        self.facade: Any = None  # what the shell shows of it
        self.mode = RUNNING
        self.alarm = inf
        self._gate = gate
        self._rng = rng

        self.slots: set[Slot] = set()  # every slot that is used, in whatever state; len <= size
        self.idle: deque[Slot] = deque()  # oldest sign of life first
        self.in_use = 0
        self.connecting = 0
        self.checking = 0
        self.closing = 0
        self.waiting = 0  # how many wait for this pool and no other
        self._probe_wanted = False
        self._left: frozenset[str] = frozenset()  # addresses that the endpoint had and has no longer

        self.failures = 0  # failed connects in a row
        self._series = 0  # the same, but attempts made side by side count once: what the backoff grows with
        self._failed_at = -inf
        self._retry_factor = 1.0
        self.last_error: BaseException | None = None

        self.gets = 0
        self.opened_total = 0
        self.open_errors = 0
        self.closed_total = 0
        self.discarded = dict.fromkeys(CAUSES, 0)

    # -- borrowing and returning ---------------------------------------------------------------------------------------

    def take(self, now: float) -> Slot | None:
        """Hand out an idle connection, if there is one. By the invariant nobody waits who may use it."""
        if not self.idle:
            return None
        slot = self.idle.popleft()
        slot.state = IN_USE
        slot.since = now
        self.in_use += 1
        return slot

    @transition
    def ask(self, waiter: Waiter, now: float, *, first: bool = False) -> None:
        """Hand an idle connection to the caller, or queue it: at the end, or ``first``."""
        self.queue.join(waiter, now, first=first)
        if self.idle:
            self.queue.settle(waiter, slot=self.take(now))

    def returned(self, slot: Slot, now: float) -> bool:
        """Take back a connection after a good call. False if there is more to it: then call ``ended``."""
        queue = self.queue
        if slot.state is not IN_USE or slot.doomed or queue.waiting or queue.busy:
            return False
        # Nothing below allocates or calls before the slot is idle, so nothing can break in.
        slot.state = IDLE
        slot.seen = now
        self.in_use -= 1
        self.idle.append(slot)
        if self.observer is not None:
            self.observer.call_ended(None, None, now - slot.since, now)
        return True

    def ended(self, slot: Slot, verdict: str | None, error: BaseException | None, now: float) -> None:
        """Take back a connection whose lease ended as ``verdict`` says, if need be after the transition under way."""
        if self.queue.busy:
            self.queue.late.append((slot, verdict, error, now))
        else:
            self.end(slot, verdict, error, now)

    @transition
    def end(self, slot: Slot, verdict: str | None, error: BaseException | None, now: float) -> None:
        if slot.state is not IN_USE:
            self.queue.cut.pop(id(slot.connection), None)
            return
        self.in_use -= 1
        if verdict is None and slot.doomed is USER:
            verdict = USER
        cause = verdict if verdict in self.discarded else slot.doomed
        if cause is None:
            slot.seen = now
            self._free(slot, now)
        else:
            self._retire(slot, cause)
        if self.observer is not None and not slot.is_past:
            self.observer.call_ended(verdict, error, now - slot.since, now)

    @transition
    def pass_on(self, slot: Slot, now: float) -> None:
        """Take back a connection that was handed to a waiter who never used it: as clean as it was."""
        if slot.state is not IN_USE:
            self.queue.cut.pop(id(slot.connection), None)
            return
        self.in_use -= 1
        if slot.doomed is None:
            self._free(slot, now, is_oldest=True)
        else:
            self._retire(slot, slot.doomed)

    def _free(self, slot: Slot, now: float, *, is_oldest: bool = False) -> None:
        """Give a clean connection to the oldest waiter who may use it, or let it rest in the order of signs of life."""
        for waiter in self.queue.waiting:
            if self.queue.may_use(waiter, self):
                self._lend(slot, now)
                self.queue.settle(waiter, slot=slot)
                return
        slot.state = IDLE
        if is_oldest:
            self.idle.appendleft(slot)
        else:
            self.idle.append(slot)

    def _lend(self, slot: Slot, now: float) -> None:
        slot.state = IN_USE
        slot.since = now
        self.in_use += 1

    # -- opening -------------------------------------------------------------------------------------------------------

    @transition
    def opened(self, slot: Slot, connection: Any, now: float) -> None:
        """A connect succeeded; the connection is not in ``queue.open`` yet."""
        self.connecting -= 1
        self.opened_total += 1
        self.failures = self._series = 0
        self.queue.failing.discard(self)
        self.queue.open[id(connection)] = slot
        self.queue.news.append(events.ConnectionOpened(self.name, slot.endpoint, now - slot.since))
        slot.connection = connection
        slot.seen = now
        if slot.doomed is None and self._has_moved(slot) and not slot.probe:
            slot.doomed = MOVED
        if slot.doomed is not None:
            self._retire(slot, slot.doomed)
        elif slot.probe and self.has_keepalive:
            self._check(slot)
        elif slot.probe:
            self._probe_passed(slot, now)
        else:
            self._free(slot, now)
            if self.observer is not None:
                self.observer.connected(now)
        self._gate.leave(now)
        self.plan(now)

    @transition
    def connect_failed(self, slot: Slot, error: BaseException, now: float) -> None:
        """A connect failed, whatever it raised; tried again after a delay, one at a time until one succeeds."""
        self.connecting -= 1
        self.slots.discard(slot)
        if slot.doomed is None:
            self._note_failure(slot, error, now)
        self._gate.leave(now)
        self._look_empty()
        self.plan(now)

    def _note_failure(self, slot: Slot, error: BaseException, now: float) -> None:
        self.open_errors += 1
        self.last_error = error
        self.failures += 1
        self.queue.failing.add(self)
        if slot.since >= self._failed_at or not self._series:
            self._series += 1
            self._retry_factor = spread(1.0, 0.5, 1.0, self._rng)
        self._failed_at = now
        self.queue.news.append(events.ConnectFailed(self.name, slot.endpoint, error, self.failures))
        if self.observer is None:
            return
        if slot.probe:
            self.observer.probed(error, now)
        else:
            self.observer.connect_failed(error, now)

    @property
    def retry_at(self) -> float:
        """When to try again after a failure: sooner if somebody waits."""
        cap = LONGEST_RETRY if self.queue.waiting else LONGEST_RETRY_IDLE
        return self._failed_at + self._retry_factor * exponential(
            self._series - 1, base=FIRST_RETRY, factor=2.0, cap=cap
        )

    @property
    def open(self) -> int:
        """How many connections can be used now or soon: idle, in use, or under keepalive."""
        return len(self.idle) + self.in_use + self.checking

    @property
    def _has_room(self) -> bool:
        wanted = self.mode is RUNNING or self._probe_wanted
        return wanted and len(self.slots) < self.size

    def _may_connect(self, now: float) -> bool:
        if not self._has_room:
            return False
        if self._probe_wanted:
            return True
        if not self.failures:
            return self.connecting < self.max_connecting
        return not self.connecting and now >= self.retry_at

    def _connect(self, now: float) -> None:
        slot = Slot(self, self._draw_jitter(), now, probe=self._probe_wanted)
        self._probe_wanted = False
        self.slots.add(slot)
        self.connecting += 1
        self.queue.todo.append((OPEN, slot))

    # -- keepalive -----------------------------------------------------------------------------------------------------

    def _draw_jitter(self) -> float:
        return self._rng.uniform(1.0 - KEEPALIVE_JITTER, 1.0)

    def _check_due(self, slot: Slot) -> float:
        # The head of ``idle`` has the oldest sign of life, so no connection waits for its turn beyond ``keepalive``.
        return slot.seen + self.keepalive * slot.jitter

    @property
    def _may_check(self) -> bool:
        return bool(self.keepalive and self.idle) and self.checking < max(1, self.size // 4)

    def _check(self, slot: Slot) -> None:
        slot.state = CHECKING
        self.checking += 1
        self.queue.todo.append((CHECK, slot))

    @transition
    def kept_alive(self, slot: Slot, now: float) -> None:
        self.checking -= 1
        slot.seen = now
        slot.jitter = self._draw_jitter()
        if slot.doomed is not None:
            self._retire(slot, slot.doomed)
        elif slot.probe:
            self._probe_passed(slot, now)
        else:
            self._free(slot, now)
            if self.observer is not None:
                self.observer.kept_alive(now)
        self.plan(now)

    @transition
    def keepalive_failed(self, slot: Slot, error: BaseException, now: float) -> None:
        self.checking -= 1
        counts = self.observer is not None and slot.doomed is None
        self._retire(slot, KEEPALIVE)
        self.queue.news.append(events.KeepaliveFailed(self.name, slot.endpoint, error))
        if counts and self.observer is not None:
            if slot.probe:
                self.observer.probed(error, now)
            else:
                self.observer.keepalive_failed(error, now)
        self.plan(now)

    # -- closing -------------------------------------------------------------------------------------------------------

    def _retire(self, slot: Slot, cause: str) -> None:
        """Close a connection that is in no other list; the slot counts until ``closed``."""
        slot.state = CLOSING
        slot.doomed = cause
        self.closing += 1
        if cause in self.discarded:
            self.discarded[cause] += 1
        self.queue.todo.append((ABORT if cause in ABORTED else CLOSE, slot))

    @transition
    def closed(self, slot: Slot, now: float) -> None:
        """The hook that closes has ended, well or not."""
        self.closing -= 1
        self.closed_total += 1
        self.slots.discard(slot)
        del self.queue.open[id(slot.connection)]
        cause = slot.doomed if slot.doomed in self.discarded else None
        self.queue.news.append(events.ConnectionClosed(self.name, slot.endpoint, cause))
        self._look_empty()
        self.plan(now)

    def _look_empty(self) -> None:
        if not self.slots and self.mode is not RUNNING and self.observer is not None:
            self.observer.emptied()

    @transition
    def shut(self, error: Callable[[], BaseException]) -> None:
        """Close for good: waiters get an ``error``, idle connections go now, borrowed ones when they come back."""
        self.mode = SHUT
        self.queue.failing.discard(self)
        self.queue.refuse(error, only=self)
        self._probe_wanted = False
        self._empty(CLOSED)

    @transition
    def suspend(self, mark: str) -> None:
        """Open, check and keep nothing until ``resume``; ``mark`` is why: EJECTED or DRAINED."""
        if self.mode is SHUT:
            return
        self.mode = SUSPENDED
        self._probe_wanted = False
        self._empty(mark)
        self._look_empty()

    def _empty(self, mark: str) -> None:
        while self.idle:
            self._retire(self.idle.popleft(), mark)
        for slot in self.slots:
            slot.doomed = slot.doomed or mark
            slot.is_past = slot.is_past or mark is EJECTED
            if slot.state is CONNECTING:
                self.queue.todo.append((CANCEL, slot))

    @transition
    def resume(self, now: float) -> None:
        """Refill after ``suspend``; what was only drained and is still out may come back to stay."""
        if self.mode is not SUSPENDED:
            return
        self.mode = RUNNING
        for slot in self.slots:
            if slot.doomed is DRAINED and slot.state in (IN_USE, CHECKING):
                slot.doomed = MOVED if self._has_moved(slot) else None
        self.plan(now)

    @transition
    def probe(self, now: float) -> None:
        """Open one connection, and keep it alive once, to find out whether a suspended pool may resume."""
        if self.mode is not SUSPENDED:
            return
        self._probe_wanted = True
        self._series = 0
        self.plan(now)

    def _probe_passed(self, slot: Slot, now: float) -> None:
        slot.probe = False
        if self.observer is not None:
            self.observer.probed(None, now)  # readmits: the pool runs again, and the connection has a use
        if self.mode is not RUNNING:
            self._retire(slot, EJECTED)
        elif self._has_moved(slot):
            self._retire(slot, MOVED)
        else:
            self._free(slot, now)

    @transition
    def cut(self, spare: Any = None) -> bool:
        """Close under its users what is still borrowed, but not by ``spare``; say whether there was any.

        A later return has no effect.
        """
        borrowed = [s for s in self.slots if s.state is IN_USE and (spare is None or s.owner is not spare)]
        for slot in borrowed:
            self.in_use -= 1
            self.queue.cut[id(slot.connection)] = slot
            self._retire(slot, CUT)
        return bool(borrowed)

    @transition
    def moved(self, before: Iterable[str], after: Iterable[str]) -> None:
        """Retire connections that lead to an address which the endpoint had and has no longer, when they are at rest.

        Those that lead anywhere else stay: there may be a proxy between. So do probes, until they have told.
        """
        left = (self._left | frozenset(before)) - frozenset(after)
        self._left = left if self.connecting else left.intersection(slot.peer for slot in self.slots)
        for slot in [s for s in self.slots if s.doomed is None and self._has_moved(s) and not s.probe]:
            slot.doomed = MOVED
            if slot.state is IDLE:
                self.idle.remove(slot)
                self._retire(slot, MOVED)

    def _has_moved(self, slot: Slot) -> bool:
        # What was opened since the change is there by the will of the user's hook: to retire it would never end.
        return slot.peer in self._left and slot.endpoint is not self.endpoint

    # -- maintenance ---------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time has come to ``alarm``: start what is due."""
        self.plan(now)

    @transition
    def plan(self, now: float) -> None:
        """Start every connect and keepalive that is due, and ask for an alarm when the next one is."""
        while self._may_connect(now) and self._gate.enter(self):
            self._connect(now)
        if self.mode is RUNNING:
            while self._may_check and self._check_due(self.idle[0]) <= now:
                self._check(self.idle.popleft())
            self._set_alarm(now)

    def _set_alarm(self, now: float) -> None:
        due = self._next_due(now)
        if due < self.alarm:
            self.alarm = due
            self.queue.todo.append((ALARM, self))

    def _next_due(self, now: float) -> float:
        due = self.retry_at if self.failures and self._has_room and not self.connecting else inf
        if due <= now:
            due = inf  # the gate is shut: it tells us when it opens
        if not self.keepalive:
            return due
        # A connection that comes to rest after now is not due before ``0.9 * keepalive``, so no return needs to wake
        # us.
        rests = self._check_due(self.idle[0]) if self._may_check else now + self.keepalive * (1.0 - KEEPALIVE_JITTER)
        return min(due, rests)
