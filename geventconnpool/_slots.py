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

While somebody waits, what would be IDLE is IN_USE at once; a probe is CHECKING before it is of use. So these are all
the moves there are (``tests/moves.py`` records them, and ``docs/plots/states-slot.svg`` is drawn from that)::

    (free)     -> CONNECTING
    CONNECTING -> IDLE, IN_USE, CHECKING, CLOSING, (free)
    IDLE       -> IN_USE, CHECKING, CLOSING
    IN_USE     -> IDLE, CLOSING
    CHECKING   -> IDLE, IN_USE, CLOSING
    CLOSING    -> (free)

A doomed slot (its endpoint drains or is ejected, its pool is shut or reset, its user discards it) goes to CLOSING from
wherever it is, as soon as whoever has it lets go. Some marks are provisional: a connection that is too old, one too
many, or drained, stays if there is no reason any more when it comes back.

How many there are: ``min_size`` always; up to ``size`` while somebody waits, no more than wait; what is above
``min_size`` goes when it was unused for ``max_idle`` seconds.

Who moves a slot: the borrower's greenlet from IDLE to IN_USE and back; the worker greenlet that was told to open,
check or close it out of CONNECTING, CHECKING and CLOSING; nobody else. A slot in one of these is never handed out.

What the shell must do (open, close, check a slot, wake a waiter, set an alarm) is put on ``queue.todo``, in order.
The shell does it after the transition; nothing in it runs user code or switches while a transition is under way.
Between two switches of greenlets these hold (style: conservation, exclusivity, no lost wake-up, no barging):

* ``idle + in_use + connecting + checking + closing == len(slots) <= size`` (more after ``resize`` to a smaller size,
  until those in use have come back);
* a slot is idle only if nobody waits who may use it, so a borrower may take an idle one without looking at the queue;
* a slot handed to a waiter is IN_USE from that moment; a waiter who was interrupted passes it on.

The one thing that can break into a transition is the garbage collector, which may end a lease (a collected generator)
between any two bytecodes. So while a transition runs, ends are kept in ``queue.late`` and applied after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

from geventconnpool._backoff import exponential, spread
from geventconnpool._queue import (
    ABORT,
    ABORTED,
    CANCEL,
    CAUSES,
    CHECK,
    CHECKING,
    CLOSE,
    CLOSED,
    CLOSING,
    CONNECTING,
    CUT,
    DRAINED,
    EJECTED,
    ERROR,
    IDLE,
    IN_USE,
    KEEPALIVE,
    LIFETIME,
    MOVED,
    OPEN,
    PROVISIONAL,
    RESET,
    RESIZED,
    RUNNING,
    SHUT,
    STALE,
    SUSPENDED,
    UNUSED,
    USER,
    Gate,
    Observer,
    Queue,
    Slot,
    Waiter,
    transition,
)

if TYPE_CHECKING:
    from geventconnpool import events
else:
    from geventconnpool._late import events

FIRST_RETRY, LONGEST_RETRY, LONGEST_RETRY_IDLE = 0.1, 5.0, 30.0  # seconds
KEEPALIVE_JITTER = 0.1
LIFETIME_JITTER = 0.25


class _EachCall:
    """What each call goes through, side by side: of many, every line of the cache that it touches counts."""

    __slots__ = ("gets", "idle", "lifo", "load", "queue", "trouble_at")


class Slots(_EachCall):
    """The slots of one pool. What is to be done after a transition is in ``queue.todo``."""

    __slots__ = (
        "__weakref__",
        "_cold",
        "_failed_at",
        "_gate",
        "_is_overdue",
        "_keepalive_fails",
        "_left",
        "_next",
        "_order",
        "_probe_wanted",
        "_prune_at",
        "_retry_factor",
        "_rng",
        "_series",
        "alarm",
        "checking",
        "closed_total",
        "closing",
        "connecting",
        "discarded",
        "endpoint",
        "facade",
        "failures",
        "has_keepalive",
        "keepalive",
        "last_error",
        "max_connecting",
        "max_idle",
        "max_lifetime",
        "min_size",
        "mode",
        "name",
        "observer",
        "open_errors",
        "opened_total",
        "size",
        "slots",
        "waiting",
        "warming",
    )

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
        min_size: int | None = None,
        max_lifetime: float = inf,
        max_idle: float = inf,
        lifo: bool | None = None,
        endpoint: Any = None,
    ) -> None:
        self.size = size
        self.min_size = size if min_size is None else min_size
        self.name = name
        self.endpoint = endpoint
        self.queue = queue
        self.keepalive = keepalive
        self.max_connecting = max_connecting
        self.max_lifetime = max_lifetime
        self.max_idle = max_idle
        self.has_keepalive = has_keepalive  # a probe is kept alive once
        self.observer: Observer | None = None
        self.load: Any = None  # the observer's, which is told of good calls
        self.facade: Any = None  # what the shell shows of it
        self.mode = RUNNING
        self.alarm = inf
        self._gate = gate
        self._rng = rng

        self.slots: set[Slot] = set()  # every slot that is used, in whatever state; len <= size
        # First in, first out: oldest sign of life first. Last in, first out: longest unused first.
        self.idle: deque[Slot] = deque()
        self._cold = 0  # how many at the head of it were kept alive since they were used; last in, first out only
        self._order = lifo
        self._set_order()
        self.gets = 0  # how many calls got a connection: who gets one counts, so it never goes back
        self.connecting = 0
        self.checking = 0
        self.closing = 0
        self.waiting = 0  # how many wait for a connection of this pool and no other
        self.warming: list[int] = []  # and how many open ones others wait for
        self._probe_wanted = False
        self._left: frozenset[str] = frozenset()  # addresses that the endpoint had and has no longer

        self.failures = 0  # failed connects in a row
        self._series = 0  # the same, but attempts made side by side count once: what the backoff grows with
        self._failed_at = -inf
        self._retry_factor = 1.0
        self.trouble_at = -inf  # last failure of a connect, a keepalive or a call; or a connection found closed
        self._keepalive_fails = False  # the last one did
        self._is_overdue = False  # a connection is too old, and may not go before there is another
        self._prune_at = inf  # before that, no connection is too old or has rested for too long
        self.last_error: BaseException | None = None

        self.opened_total = 0
        self.open_errors = 0
        self.closed_total = 0
        self.discarded = dict.fromkeys(CAUSES, 0)

    # -- borrowing and returning ---------------------------------------------------------------------------------------

    def take(self, now: float) -> Slot | None:
        """Hand out an idle connection, if there is one. By the invariant nobody waits who may use it."""
        if not self.idle:
            return None
        slot = self._next()
        self._lend(slot, now)
        return slot

    def _set_order(self) -> None:
        """A pool that is always full uses all connections in turn; one that shrinks leaves the surplus alone."""
        self.lifo = self.min_size < self.size if self._order is None else self._order
        self._next: Callable[[], Slot] = self.idle.pop if self.lifo else self.idle.popleft
        self._keep_idle(self.idle)

    def _keep_idle(self, kept: Iterable[Slot]) -> None:
        slots = sorted(kept, key=lambda slot: (self.lifo and slot.kept <= slot.seen, slot.alive_at))
        self._cold = sum(slot.kept > slot.seen for slot in slots) if self.lifo else 0
        self.idle.clear()
        self.idle.extend(slots)

    @transition
    def ask(self, waiter: Waiter, now: float, *, again: bool = False) -> None:
        """Hand an idle connection to the caller, or queue it: at the end, or ``again`` where it was."""
        self.queue.join(waiter, again=again)
        if self.idle:
            self.queue.settle(waiter, slot=self.take(now))
        else:
            self.queue.hurry(now)
            if self.min_size < self.size:
                self.plan(now)
        self._tell_change(now)

    def returned(self, slot: Slot, now: float) -> bool:
        """Take back a connection after a good call. False if there is more to it: then call ``ended``."""
        queue = self.queue
        if slot.state is not IN_USE or slot.doomed or queue.waiting or queue.busy:
            return False
        # Nothing below allocates or calls before the slot is idle, so nothing can break in.
        slot.state = IDLE
        slot.seen = now
        self.idle.append(slot)
        if self.load is not None:
            self.load.returned(slot.since, now)
        return True

    def line_up(self, waiter: Waiter, now: float) -> bool:
        """Queue one more behind others, in a pool by itself that is always full; False if there is more to be done."""
        queue = self.queue
        waiting = queue.waiting
        if not waiting or self.min_size != self.size or queue.busy or queue.is_down or self.idle:
            return False
        waiter.since = now
        waiting[waiter] = None
        waiter.place = next(queue.places)
        self.waiting += 1
        return True

    def handed_over(self, slot: Slot, now: float) -> Waiter:
        """Take back a connection after a good call, and give it to the oldest waiter, in a pool by itself."""
        waiter, _ = self.queue.waiting.popitem(last=False)  # from here on it is nobody else's
        slot.owner = None
        slot.seen = slot.since = now
        self.waiting -= 1
        waiter.slot = slot
        return waiter

    def ended(self, slot: Slot, verdict: str | None, error: BaseException | None, now: float) -> None:
        """Take back a connection whose lease ended as ``verdict`` says, if need be after the transition under way."""
        if self.queue.busy:
            self.queue.late.append((slot, verdict, error, now))
        else:
            self.end(slot, verdict, error, now)

    @transition
    def end(self, slot: Slot, verdict: str | None, error: BaseException | None, now: float) -> None:
        if not self._let_go(slot):
            return
        seconds = now - slot.since  # before a waiter has it, and its next lease begins
        if verdict is None and slot.doomed is USER:
            verdict = USER
        if verdict is ERROR:
            self.trouble_at = now
        cause = verdict if verdict in self.discarded else self._fate(slot)
        if cause is None:
            slot.seen = now
            self._free(slot, now)
        else:
            self._retire(slot, cause)
            self.plan(now)
        if self.observer is not None and not slot.is_past:
            self.observer.call_ended(verdict, error, seconds, now)

    @transition
    def pass_on(self, slot: Slot, now: float) -> None:
        """Take back a connection that was handed to a waiter who never used it: as clean as it was."""
        if not self._let_go(slot):
            return
        cause = self._fate(slot)
        if cause is None:
            self._free(slot, now, is_unused=True)
            self._tell_change(now)
        else:
            self._retire(slot, cause)
            self.plan(now)

    def _tell_change(self, now: float) -> None:
        """How many are in use or connecting has changed, and nothing was reported that says so."""
        if self.observer is not None:
            self.observer.changed(now)

    @transition
    def hung_up(self, slot: Slot, now: float) -> None:
        """The peer of a connection that was handed out, and not yet used, has closed it."""
        if not self._let_go(slot):
            return
        self.trouble_at = now  # if the server was restarted, it is not the only one
        self._retire(slot, STALE)
        if self.observer is not None:
            self.observer.hung_up(now)
        self.plan(now)

    def _let_go(self, slot: Slot) -> bool:
        """Take a connection from its borrower; False if it was closed under him."""
        if slot.state is not IN_USE:
            self.queue.cut.pop(id(slot.connection), None)
            return False
        return True

    def _fate(self, slot: Slot) -> str | None:
        """Return why a connection that comes back well is closed all the same; None if it is not."""
        if slot.doomed is LIFETIME and not self._may_replace(self.open):
            slot.doomed = RESIZED  # if there are too many it goes all the same
            self._prune_at = -inf  # else it will be looked at again when others have been replaced
        if slot.doomed is RESIZED and self._excess + (slot.state is CONNECTING) <= 0:
            slot.doomed = MOVED if self._has_moved(slot) else None
        return slot.doomed

    def _free(self, slot: Slot, now: float, *, is_unused: bool = False) -> None:
        """Give a clean connection to the oldest waiter who may use it, or let it rest where it belongs."""
        for waiter in self.queue.waiting:
            if self.queue.may_use(waiter, self):
                self._lend(slot, now)
                self.queue.settle(waiter, slot=slot)
                return
        slot.state = IDLE
        if not self.lifo and is_unused:
            self.idle.appendleft(slot)
        elif self.lifo and slot.kept > slot.seen:
            self._coldest()  # counts
            self.idle.insert(self._cold, slot)
            self._cold += 1
        else:
            self.idle.append(slot)

    def _coldest(self) -> int:
        """Return where in ``idle``, which is not empty, the connection with the oldest sign of life is.

        Last in, first out, those that were kept alive since their last use lie at the head, in the order in which they
        were, and behind them the others, in the order of their use. So it is the first of one or of the other.
        """
        idle = self.idle
        cold = min(self._cold, len(idle))
        while cold and idle[cold - 1].kept <= idle[cold - 1].seen:
            cold -= 1  # it has been used
        self._cold = cold
        if 0 < cold < len(idle) and idle[cold].alive_at < idle[0].alive_at:
            return cold
        return 0

    def _remove(self, index: int) -> Slot:
        """Take one out of the idle ones."""
        slot = self.idle[index]
        del self.idle[index]
        if index < self._cold:
            self._cold -= 1
        return slot

    def _lend(self, slot: Slot, now: float) -> None:
        slot.state = IN_USE
        slot.since = now

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
        self.queue.live += not slot.probe  # of use to nobody until it has passed
        slot.connection = connection
        slot.seen = slot.kept = now
        slot.expires = now + spread(self.max_lifetime, 1.0 - LIFETIME_JITTER, 1.0, self._rng)
        self._prune_at = min(self._prune_at, slot.expires, now + self._surplus_rests)
        if slot.doomed is None and self._has_moved(slot) and not slot.probe:
            slot.doomed = MOVED
        cause = self._fate(slot)
        if cause is not None:
            self._retire(slot, cause)
        elif slot.probe and self.has_keepalive:
            self._check(slot, now)
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
        self._failed_at = self.trouble_at = now
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
    def in_use(self) -> int:
        """How many are borrowed; one that changes its state just now is counted here, until it has the new one."""
        return len(self.slots) - len(self.idle) - self.connecting - self.checking - self.closing

    @property
    def open(self) -> int:
        """How many connections can be used now or soon: idle, in use, or under keepalive."""
        return len(self.idle) + self.in_use + self.checking

    @property
    def _wants_one(self) -> bool:
        """Whether there is room for one more connection, and a use for it."""
        if len(self.slots) >= self.size:
            return False
        if self.mode is not RUNNING:
            return self._probe_wanted
        if self._is_overdue and self.failures:
            return True
        least = self.min_size or self.queue.is_down  # when all are down, one tries
        return len(self.slots) - self.closing < least or self.queue.wants_more(self)

    def grow(self, now: float) -> None:
        """Open what is wanted beyond what is kept."""
        self.plan(now)

    @property
    def shortage(self) -> int:
        """How many connects more than are under way are wanted by those who wait for this pool."""
        to_warm = max(self.warming, default=0) - self.open
        return self.waiting + max(0, to_warm) - self.connecting

    def may_grow(self, now: float) -> bool:
        """Say whether a connection could be opened now, if one was wanted."""
        return self.mode is RUNNING and len(self.slots) < self.size and self._is_free_to_connect(now)

    @transition
    def open_one(self, now: float) -> bool:
        """Open one for somebody who waits, maybe not just for this pool. False if there is no getting through."""
        if not self.may_grow(now) or not self._gate.enter(self):
            return False
        self._connect(now)
        self._tell_change(now)
        return True

    @transition
    def await_retry(self) -> None:
        """Look again when the next attempt is due, though this pool may have no use for it."""
        if self.failures and self.mode is RUNNING and len(self.slots) < self.size and not self.connecting:
            self.queue.ring_at(self.retry_at, self)

    def _may_connect(self, now: float) -> bool:
        return self._wants_one and self._is_free_to_connect(now)

    def _is_free_to_connect(self, now: float) -> bool:
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

    @property
    def _check_due(self) -> float:
        # The coldest has the oldest sign of life, so no connection waits for its turn beyond ``keepalive``.
        slot = self.idle[self._coldest()]
        return slot.alive_at + self.keepalive * slot.jitter

    @property
    def _may_check(self) -> bool:
        return bool(self.keepalive and self.idle) and self.checking < max(1, self.size // 4)

    def _check(self, slot: Slot, now: float) -> None:
        slot.state = CHECKING
        slot.since = now
        self.checking += 1
        self.queue.todo.append((CHECK, slot))

    @transition
    def kept_alive(self, slot: Slot, now: float) -> None:
        if self.open > self.min_size:
            self._prune_at = min(self._prune_at, slot.seen + self._surplus_rests)  # it may have come to that meanwhile
        self.checking -= 1
        began = slot.since  # before a waiter has it
        if self._keepalive_fails:
            self._keepalive_fails = False
            self.queue.news.append(events.KeepaliveRecovered(self.name, slot.endpoint))
        slot.kept = now
        slot.jitter = self._draw_jitter()
        cause = self._fate(slot)
        if cause is not None:
            self._retire(slot, cause)
        elif slot.probe:
            self._probe_passed(slot, now)
        else:
            self._free(slot, now)
            if self.observer is not None:
                self.observer.kept_alive(began, now)
        self.plan(now)

    @transition
    def keepalive_failed(self, slot: Slot, error: BaseException, now: float) -> None:
        self.checking -= 1
        counts = self.observer is not None and slot.doomed in (None, LIFETIME, RESIZED)
        self.trouble_at = now
        self._keepalive_fails = True
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
        self.queue.live -= not slot.probe
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
        self._retire_idle(mark)
        for slot in self.slots:
            slot.is_past = slot.is_past or mark is EJECTED
            self._doom(slot, mark)

    def _retire_idle(self, cause: str) -> None:
        while self.idle:
            self._retire(self._remove(0), cause)

    def _doom(self, slot: Slot, mark: str) -> None:
        """Have a connection closed when whoever has it lets go, and a connect cancelled."""
        if slot.state is not CLOSING and slot.doomed in PROVISIONAL:
            slot.doomed = mark
        if slot.state is CONNECTING:
            self.queue.todo.append((CANCEL, slot))

    # -- changing ------------------------------------------------------------------------------------------------------

    @transition
    def reset(self, now: float) -> None:
        """Replace every connection: idle ones now, borrowed ones when they come back; and try again at once."""
        if self.mode is SHUT:
            return
        self._failed_at = -inf
        self._series = 0
        self._retire_idle(RESET)
        for slot in self.slots:
            if slot.probe:
                slot.is_reset = True  # when it has told what it was opened for
            else:
                self._doom(slot, RESET)
        self.plan(now)

    @transition
    def resize(self, size: int, min_size: int, now: float) -> None:
        """Grow at once; shrink by what has rested longest, and if that is not enough by what comes back."""
        self.size, self.min_size = size, min(min_size, size)
        self.queue.keeps_some = self.min_size > 0
        self._set_order()
        self._prune_at = -inf
        self._trim()
        self.plan(now)

    @property
    def _excess(self) -> int:
        """How many connections there are, or will be, above ``size``."""
        return sum(not (s.state is CLOSING or (s.state is CONNECTING and s.doomed)) for s in self.slots) - self.size

    def _trim(self) -> None:
        connecting = [slot for slot in self.slots if slot.state is CONNECTING and not slot.doomed and not slot.probe]
        for slot in connecting[: max(0, self._excess)]:
            self._doom(slot, RESIZED)
        excess = self._excess
        surplus = sorted(self.idle, key=lambda slot: slot.seen)[: max(0, excess)]
        for slot in surplus:
            self._retire(slot, RESIZED)
        if surplus:
            self._keep_idle(slot for slot in self.idle if slot.state is IDLE)
        if excess > len(surplus):
            for slot in self.slots:
                slot.doomed = slot.doomed or (RESIZED if slot.state in (IN_USE, CHECKING) else None)

    # -- suspending ----------------------------------------------------------------------------------------------------

    @transition
    def resume(self, now: float) -> None:
        """Refill after ``suspend``; what was only drained and is still out may come back to stay."""
        if self.mode is not SUSPENDED:
            return
        self.mode = RUNNING
        for slot in self.slots:
            if slot.doomed is DRAINED and slot.state in (IN_USE, CHECKING):
                slot.doomed = MOVED if self._has_moved(slot) else None
        self._trim()
        self._prune_at = -inf
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
        self.queue.live += 1
        slot.state = CHECKING  # whatever it was: no connect to be cancelled, if there are too many
        if self.observer is not None:
            self.observer.probed(None, now)  # readmits: the pool runs again, and the connection has a use
        cause = self._fate(slot)
        if self.mode is not RUNNING:
            self._retire(slot, EJECTED)
        elif cause is not None:
            self._retire(slot, cause)
        elif self._has_moved(slot):
            self._retire(slot, MOVED)
        elif slot.is_reset:
            self._retire(slot, RESET)
        else:
            self._free(slot, now)

    @transition
    def cut(self, spare: Any = None) -> bool:
        """Close under its users what is still borrowed, but not by ``spare``; say whether there was any.

        A later return has no effect.
        """
        borrowed = [s for s in self.slots if s.state is IN_USE and (spare is None or s.owner is not spare)]
        for slot in borrowed:
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
                self._retire(self._remove(self.idle.index(slot)), MOVED)

    def _has_moved(self, slot: Slot) -> bool:
        # What was opened since the change is there by the will of the user's hook: to retire it would never end.
        return slot.peer in self._left and slot.endpoint is not self.endpoint

    # -- maintenance ---------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time has come to ``alarm``: start what is due."""
        self.plan(now)

    @transition
    def plan(self, now: float) -> None:
        """Start every connect, keepalive and retirement that is due, and ask for an alarm when the next one is."""
        if self.mode is RUNNING:
            self._prune(now)
        while self._may_connect(now) and self._gate.enter(self):
            self._connect(now)
        if self.mode is RUNNING:
            while self._may_check and self._check_due <= now:
                self._check(self._remove(self._coldest()), now)
            self.queue.ring_at(self._next_due(now), self)
        self._tell_change(now)
        self.queue.planned(now)

    @property
    def _surplus_rests(self) -> float:
        """For how long a connection above ``min_size`` may be unused, in seconds."""
        return self.max_idle if self.min_size < self.size else inf

    def _may_replace(self, is_open: int) -> bool:
        """Say whether an old connection of so many may go: not too many at once, not while none can be had instead."""
        missing = max(self.closing + self.connecting, self.min_size - is_open)
        return not self._is_stuck(is_open) and missing < self.max_connecting

    def _is_stuck(self, is_open: int) -> bool:
        """Say whether connects fail while one is wanted, or could be had in advance of the end of an old one."""
        has_room = is_open <= self.min_size and len(self.slots) < self.size
        return bool(self.failures and (self.connecting or self._wants_one or has_room))

    def _prune(self, now: float) -> None:
        """Retire what is too old, or above ``min_size`` and unused for too long.

        This looks at every connection, so not before one may be due.
        """
        if now < self._prune_at:
            return
        rests = self._surplus_rests
        self._is_overdue = False
        for slot in sorted(self.idle, key=lambda slot: slot.seen):
            if slot.expires <= now and self._may_replace(self.open):
                self._retire(self._remove(self.idle.index(slot)), LIFETIME)
            elif slot.seen + rests <= now and self.open > self.min_size:
                self._retire(self._remove(self.idle.index(slot)), UNUSED)
            elif slot.expires <= now and self._is_stuck(self.open):
                self._is_overdue = True
        for slot in self.slots:
            if slot.state in (IN_USE, CHECKING) and slot.doomed in (None, RESIZED) and slot.expires <= now:
                slot.doomed = LIFETIME
        self._prune_at = self._next_prune(now)

    def _next_prune(self, now: float) -> float:
        """Return when to look again: what is in use now is unused ``max_idle`` from now at the earliest."""
        rests = self._surplus_rests
        due = now + rests if self.open > self.min_size else inf  # of what will be above it, ``opened`` takes care
        for slot in self.slots:
            if slot.state in (IDLE, IN_USE, CHECKING) and slot.doomed in (None, RESIZED):
                due = min(due, slot.expires)
                if slot.state is IDLE and slot.seen + rests > now:
                    due = min(due, slot.seen + rests)
        return due

    def _next_due(self, now: float) -> float:
        due = self.retry_at if self.failures and self._wants_one and not self.connecting else inf
        if due <= now:
            due = inf  # the gate is shut: it tells us when it opens
        if self._prune_at > now:  # else it waits for the end of a connect or a close
            due = min(due, self._prune_at)
        if not self.keepalive:
            return due
        # A connection that comes to rest after now is not due before ``0.9 * keepalive``, so no return needs to wake
        # us.
        return min(due, self._check_due if self._may_check else now + self.keepalive * (1.0 - KEEPALIVE_JITTER))
