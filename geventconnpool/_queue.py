"""What the pools under one roof share: the queue of those who wait, the words for what happens, the gate to connect.

Pure: no gevent, no clock, no logging. A lone pool has a queue to itself; the pools of a cluster have one in common.

The queue also knows how many live connections there are behind it. While there is none although one is wanted, it is
*bare*; when that has lasted ``fail_after`` seconds it is *down*: who waits is refused, and so is whoever comes, until a
connection is open::

            none is live, one is wanted           fail_after
    (well) ---------------------------> (bare) --------------> (down)
       ^                                   |                      |
       +------------- one is open ---------+----------------------+
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from functools import wraps
from itertools import count, islice, takewhile
from math import inf
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from geventconnpool import events
    from geventconnpool._slots import Slots
else:
    from geventconnpool._late import events

# States of a slot.
CONNECTING, IDLE, IN_USE, CHECKING, CLOSING = "connecting", "idle", "in use", "checking", "closing"

# How a lease ends. None: well. KEPT: by an exception that says nothing about the connection. Else: the cause of a
# discard.
KEPT = "kept"
ERROR, INTERRUPTED, USER, NOT_REUSABLE, KEEPALIVE = "error", "interrupted", "user", "not_reusable", "keepalive"
STALE, LIFETIME, UNUSED, RESET = "stale", "lifetime", "idle", "reset"
CAUSES = (ERROR, INTERRUPTED, STALE, KEEPALIVE, LIFETIME, UNUSED, USER, RESET, NOT_REUSABLE)
# Marks of a connection that is closed at its return without being discarded for a cause of its own.
DRAINED, EJECTED, CLOSED, MOVED, CUT, RESIZED = "drained", "ejected", "closed", "moved", "cut", "resized"
# Marks that are looked at again when the connection comes back: there may be no reason any more.
PROVISIONAL = frozenset({None, DRAINED, LIFETIME, RESIZED})
# After these nobody knows what is on the wire, or nobody listens: no goodbye.
ABORTED = frozenset({ERROR, INTERRUPTED, STALE, KEEPALIVE, USER, NOT_REUSABLE, EJECTED, CUT})

# What the shell is told to do: with a slot (the first five and HELD), a greenlet and how many connections it holds, a
# waiter, something that has an alarm.
OPEN, CANCEL, CHECK, CLOSE, ABORT = "open", "cancel", "check", "close", "abort"
HELD, NESTED, WAKE, ALARM = "held", "nested", "wake", "alarm"

# Modes of a pool.
RUNNING, SUSPENDED, SHUT = "running", "suspended", "shut"

TRUSTED_FOR = 1.0  # seconds since its last sign of life for which a connection is believed to be there

NESTED_PAUSE, NESTED_LOOK = 0.001, 1e-5  # seconds between two looks, and more for each connection
NESTED_SOON = 0.02  # seconds until one at all who wait

P = ParamSpec("P")
R = TypeVar("R")
NONE: frozenset[Any] = frozenset()


class Timed(Protocol):
    """Something with work that has a due time: at ``alarm`` the shell sets that to inf and calls ``tick``."""

    alarm: float

    def tick(self, now: float) -> None: ...


class Observer(Protocol):
    """Who wants to know how one pool's connections fare: the cluster."""

    def connected(self, now: float) -> None: ...
    def connect_failed(self, error: BaseException, now: float) -> None: ...
    def kept_alive(self, began: float, now: float) -> None: ...
    def keepalive_failed(self, error: BaseException, now: float) -> None: ...
    def call_ended(self, verdict: str | None, error: BaseException | None, seconds: float, now: float) -> None: ...
    def probed(self, error: BaseException | None, now: float) -> None: ...
    def hung_up(self, now: float) -> None: ...
    def changed(self, now: float) -> None: ...
    def emptied(self) -> None: ...


class _EachCall:
    """What each call goes through, side by side: of many, every line of the cache that it touches counts."""

    __slots__ = ("connection", "doomed", "owner", "pool", "seen", "since", "state")


class Slot(_EachCall):
    """One connection's place, from the decision to connect until it is closed. Never used for a second connection."""

    __slots__ = (
        "by_hand",
        "endpoint",
        "expires",
        "is_past",
        "is_reset",
        "jitter",
        "kept",
        "peer",
        "poller",
        "probe",
        "told",
        "warned",
        "worker",
    )

    def __init__(self, pool: Slots, jitter: float, now: float, *, probe: bool) -> None:
        self.pool = pool
        self.endpoint = pool.endpoint  # as it was when this connection was made
        self.state = CONNECTING
        self.connection: Any = None
        self.since = now  # when the connect, the lease, or the keepalive began
        self.seen = now  # when it was opened, or came back from its last user
        self.kept = now  # when it was opened, or last kept alive
        self.expires = inf  # when it is too old
        self.jitter = jitter  # how much of ``keepalive`` to wait
        self.doomed: str | None = None  # why it will be closed when it comes back
        self.is_past = False  # from before an ejection: what it tells counts for nothing
        self.is_reset = False  # a probe from before a reset: replaced when it has passed
        self.probe = probe  # opened to find out whether an ejected endpoint is back
        self.by_hand = False  # borrowed by acquire(), so release() may return it
        self.owner: Any = None  # the greenlet that borrowed it
        self.worker: Any = None  # the greenlet that opens, checks or closes it
        self.peer: str | None = None  # the address it leads to, where known
        self.poller: Any = None  # what asks the system whether the peer is there, where that can be asked
        self.told = self.warned = -inf  # the ``since`` of the lease that was reported as held, or nested

    @property
    def alive_at(self) -> float:
        """When it last gave a sign of life."""
        return max(self.seen, self.kept)

    def is_suspect(self, now: float) -> bool:
        """Say whether it was silent for so long, or through such events, that one asks before one hands it out."""
        alive_at = self.alive_at
        return now - alive_at >= TRUSTED_FOR or alive_at < self.pool.trouble_at


class Waiter:
    """One greenlet that waits for a connection; settled by a slot, an error, or ``is_late`` (its time is over)."""

    __slots__ = ("avoid", "error", "greenlet", "is_late", "only", "place", "since", "slot", "waking")

    def __init__(self, now: float, only: Slots | None = None, avoid: Collection[Any] = ()) -> None:
        self.since = now
        self.only = only  # the one pool it wants, or None for any of the queue's
        self.avoid = frozenset(avoid) if avoid else NONE  # endpoints it would rather not use
        self.slot: Slot | None = None
        self.error: BaseException | None = None
        self.is_late = False
        self.greenlet: Any = None  # while it is parked
        self.waking: Any = None  # the callback that switches to that
        self.place = 0  # those who came before have a lower one

    @property
    def is_settled(self) -> bool:
        return self.slot is not None or self.error is not None or self.is_late

    def claim(self) -> Slot:
        """Return the slot that was handed over, once."""
        slot, self.slot = self.slot, None
        assert slot is not None
        return slot


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


class Queue:
    """What the pools under one roof share: who waits (oldest first), what the shell is to do, every open connection."""

    def __init__(self, fail_after: float = inf, *, keeps_some: bool = True) -> None:
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()  # leaving is O(1), wherever one stands
        self.places = count()
        self.todo: deque[tuple[str, Any]] = deque()
        self.news: deque[events.Event] = deque()
        self.open: dict[int, Slot] = {}  # by id(connection), which may be unhashable, until it is closed
        self.cut: dict[int, Slot] = {}  # closed under their users, who have yet to return them
        self.failing: set[Slots] = set()  # pools whose last connect failed
        self.busy = False
        self.late: deque[tuple[Slot, str | None, BaseException | None, float]] = deque()

        self.live = 0  # connections that are idle, in use or under keepalive
        self.keeps_some = keeps_some  # else none is wanted while nobody waits
        self.fail_after = fail_after
        self.bare_since = inf
        self.is_down = False
        self.alarm = inf
        self.unavailable: Callable[[], BaseException] = RuntimeError  # makes what waiters get when it goes down

    @property
    def queue(self) -> Queue:
        return self  # for ``transition``

    def ring_at(self, due: float, item: Timed) -> None:
        """Have ``item`` ticked when it is due, unless it will be sooner."""
        if due < item.alarm:
            item.alarm = due
            self.todo.append((ALARM, item))

    def may_use(self, waiter: Waiter, pool: Slots) -> bool:
        """Say whether the waiter may get a connection of that pool; overridden where there are several pools."""
        return True

    def wants_more(self, pool: Slots) -> bool:
        """Say whether a pool that has what it keeps should open one more for those who want just that pool."""
        return pool.shortage > 0

    def join(self, waiter: Waiter, *, again: bool = False) -> None:
        """Put a waiter at the end, or ``again`` where it was."""
        if again:
            self.waiting[waiter] = None
            self._let_in(waiter)
        else:
            self.line_up(waiter)
        if waiter.only is not None:
            waiter.only.waiting += 1

    def hurry(self, now: float) -> None:
        """There was nothing for one who has joined: if he is the only one, failing pools try again sooner."""
        if len(self.waiting) == 1:
            self.judge(now)
            for pool in tuple(self.failing):
                pool.plan(now)

    def line_up(self, waiter: Waiter) -> None:
        """Put a waiter behind others."""
        self.waiting[waiter] = None
        waiter.place = next(self.places)

    def _let_in(self, waiter: Waiter) -> None:
        """Put one that waits again before all that came after it; the queue is in the order in which they came."""
        self.waiting.move_to_end(waiter, last=False)
        elders = list(takewhile(lambda w: w.place < waiter.place, islice(self.waiting, 1, None)))
        for elder in reversed(elders):
            self.waiting.move_to_end(elder, last=False)

    def settle(self, waiter: Waiter, *, slot: Slot | None = None, error: BaseException | None = None) -> None:
        self.withdraw(waiter)
        waiter.slot, waiter.error = slot, error
        self.todo.append((WAKE, waiter))

    def withdraw(self, waiter: Waiter) -> None:
        """Take a waiter out who gave up; nothing happens if it is settled already."""
        if waiter not in self.waiting:
            return
        del self.waiting[waiter]
        if waiter.only is not None:
            waiter.only.waiting -= 1
        if not self._is_wanted:
            self.bare_since = inf

    def refuse(self, error: Callable[[], BaseException], only: Slots | None = None) -> None:
        """Settle with an error of its own each waiter, or each that wants that one pool."""
        for waiter in list(self.waiting):
            if only is None or waiter.only is only:
                self.settle(waiter, error=error())

    @property
    def _is_wanted(self) -> bool:
        """Whether there should be a connection: because some are kept, or somebody waits, or it has been tried."""
        return bool(self.keeps_some or self.waiting or self.is_down or self.was_tried_in_vain)

    @property
    def was_tried_in_vain(self) -> bool:
        """Whether who comes next will find only what has failed; overridden where there are several pools."""
        return bool(self.failing)

    def judge(self, now: float) -> None:
        """Note since when there has been no live connection though one is wanted."""
        if self.live:
            self.bare_since = inf
            self.is_down = False
        elif not self._is_wanted:
            self.bare_since = inf
        elif self.bare_since == inf:
            self.bare_since = now
            self.ring_at(now + self.fail_after, self)

    def planned(self, now: float) -> None:
        """A pool has started what it could; there may be a use for others."""
        self.judge(now)

    @transition
    def tick(self, now: float) -> None:
        """Time has come to ``alarm``: it is down, or it was well in between."""
        due = self.bare_since + self.fail_after
        if self.is_down or due == inf:
            return
        if due > now:
            self.ring_at(due, self)
            return
        self.is_down = True
        self.refuse(self.unavailable)
        for pool in tuple(self.failing):
            pool.plan(now)  # from now on somebody must try, even if nobody waits


class Holds:
    """Finds the leases that have lasted for ``seconds``, and tells of each once.

    A look at all connections finds the next that is due; whatever is lent after it cannot be due sooner than
    ``seconds`` later. So borrowing and returning cost nothing, and there is a look every ``seconds``, or a few more.
    """

    def __init__(self, queue: Queue, seconds: float, now: float) -> None:
        self.alarm = inf
        self._queue = queue
        self._seconds = seconds
        queue.ring_at(now + seconds, self)

    def tick(self, now: float) -> None:
        next_due = now + self._seconds
        for slot in self._queue.open.values():
            if slot.state is not IN_USE or slot.told == slot.since:
                continue
            due = slot.since + self._seconds
            if due <= now:
                slot.told = slot.since
                self._queue.todo.append((HELD, slot))
            else:
                next_due = min(next_due, due)
        self._queue.ring_at(next_due, self)


class Nested:
    """Finds greenlets that wait while they hold what others may wait for, and tells of each such lease once.

    To look at all connections would be most of what it costs to wait. So there is a look at once if the last was some
    time ago, and else one soon, for all who wait then: who is stuck is found.
    """

    def __init__(self, queue: Queue) -> None:
        self.alarm = inf
        self.look_at = -inf  # who waits from then on has to be told of: it is time for a look, or none is to come
        self._queue = queue
        self._next = -inf

    def look(self, greenlet: Any, now: float) -> None:
        """One more is about to wait."""
        if now >= self._next:
            self._next = now + NESTED_PAUSE + NESTED_LOOK * len(self._queue.open)
            self._tell({greenlet})
        elif self.alarm == inf:
            self._queue.ring_at(now + NESTED_SOON, self)
        if self.alarm < inf:
            self.look_at = self._next

    def tick(self, now: float) -> None:
        self.look_at = -inf
        self._tell({waiter.greenlet for waiter in self._queue.waiting} - {None})

    def _tell(self, greenlets: Collection[Any]) -> None:
        held: dict[Any, list[Slot]] = {}
        for slot in self._queue.open.values():
            if slot.owner in greenlets and slot.state is IN_USE:
                held.setdefault(slot.owner, []).append(slot)
        for greenlet, slots in held.items():
            if any(slot.warned != slot.since for slot in slots):
                for slot in slots:
                    slot.warned = slot.since
                self._queue.todo.append((NESTED, (greenlet, len(slots))))


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
