"""Borrowing and returning: what a lone pool, the pool of an endpoint, and a cluster have in common."""

from __future__ import annotations

import sys
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gevent import getcurrent, reinit

from geventconnpool import _check, _fork
from geventconnpool._check import show
from geventconnpool._engine import SYSTEM, Engine
from geventconnpool._fork import get_ident
from geventconnpool._lease import Lease, Unset
from geventconnpool._queue import (
    CAUSES,
    DRAINED,
    ERROR,
    IN_USE,
    INTERRUPTED,
    KEPT,
    NOT_REUSABLE,
    PROVISIONAL,
    SHUT,
    TRUSTED_FOR,
    USER,
    Nested,
    Queue,
    Slot,
    Waiter,
)
from geventconnpool._retry import note_failure
from geventconnpool._slots import Slots
from geventconnpool.errors import PoolClosed, PoolError, PoolFull, PoolTimeout, PoolUnavailable

if TYPE_CHECKING:
    from geventconnpool import events
    from geventconnpool.pool import _Options
else:
    from geventconnpool._late import events

C = TypeVar("C")


class State(Protocol):
    """The slots of one pool, or the members of a cluster."""

    warming: list[int]

    def grow(self, now: float) -> None: ...
    def reset(self, now: float) -> None: ...
    def resize(self, size: int, min_size: int, now: float) -> None: ...


class Lender(ABC):
    """Where connections are borrowed and returned: one pool, or a cluster of them.

    The parts that switch greenlets are ``borrow`` (only if it has to wait), ``wait`` and ``close``. What is most
    frequent is done by a ``lease`` itself, without calling any of these.

    Like its engine, a lender knows the user's pool by a weak reference only; and when the process is forked, it begins
    anew in the child: nothing is connected before the first use there.
    """

    quick_lease: type[Lease[Any]] = Lease  # where all connections are reusable

    def __init__(self, options: _Options, name: str, hooks: weakref.ref[Any]) -> None:
        self.name = name
        self.options = options
        self._hooks = hooks
        self.asks_reusable = options.asks_reusable
        self.lease = Lease if options.asks_reusable else self.quick_lease
        self.inherited: dict[int, Slot] = {}  # what this process must not touch, by id(connection)

    def begin(self, engine: Engine) -> None:
        """Count from nothing, with this engine."""
        self.engine = engine
        self.waits = 0
        self.wait_seconds = 0.0
        self.timeouts = 0
        self.refused = 0
        self._is_cut = False  # connections were closed under their users
        self._is_started = True
        self.thread = engine.thread
        self.main = main_of(engine.hub)
        self.life = _fork.life()
        self._nested = Nested(engine.queue)

    @abstractmethod
    def begin_here(self) -> None:
        """Make everything anew: at construction, and in the child of a fork. Connects nothing yet."""

    @abstractmethod
    def start(self) -> None:
        """Begin to connect."""

    def _arrive(self) -> None:
        """Somebody came who is not of this thread, or not of this process."""
        if not self.engine.is_inherited:
            self.engine.refuse_thread()
        reinit()  # idempotent; who forks without telling gevent has a hub whose thread pool hangs
        was_closed = self.closed
        self.inherited.update(self.engine.queue.open | self.engine.queue.cut)
        _fork.bury(self.engine)
        self.begin_here()
        self._is_started = was_closed
        if was_closed:
            self.shut()

    @property
    def is_here(self) -> bool:
        """Whether this is the native thread of the hub, in its process."""
        return bool(self.life[0]) and get_ident() == self.thread

    def _look_round(self) -> None:
        if not self.is_here:
            self._arrive()

    def check_place(self) -> None:
        """Raise :class:`RuntimeError` in any native thread but that of the hub; begin anew in a child process."""
        self._look_round()
        if not self._is_started:
            self._is_started = True
            self.start()

    def forgotten(self) -> None:
        """The user's pool is gone. The collector may have come at any moment: references are dropped, and no more."""
        engine: Engine | None = getattr(self, "engine", None)
        if engine is None or sys.is_finalizing():
            return
        if engine.is_inherited:
            _fork.bury(engine)
            return
        number = 0 if self.is_shut else len(engine.queue.open)
        for pool in self.pools():
            pool.slots.clear()
            pool.idle.clear()
        engine.abandon()
        if number:  # at last: it may be made an error
            warnings.warn(f"{self.name} was not closed: {number} connections were open", ResourceWarning, stacklevel=1)

    @abstractmethod
    def take(self, now: float) -> Slot | None:
        """Hand out an idle connection if there is one."""

    @abstractmethod
    def new_waiter(self, now: float) -> Waiter:
        """Return a waiter for what may be borrowed here."""

    @abstractmethod
    def ask(self, waiter: Waiter, now: float, *, again: bool = False) -> None:
        """Queue for a connection, at the end, or ``again`` where it was; the waiter may be settled at once."""

    @abstractmethod
    def pools(self) -> Iterable[Slots]:
        """Return the pools behind this."""

    def owns(self, slot: Slot) -> bool:
        """Say whether the slot, one of this engine's, was borrowed from here."""
        return True

    @abstractmethod
    def trouble(self) -> tuple[str, BaseException | None]:
        """Return how things stand, for the message of an error, and the last connect error."""

    @property
    @abstractmethod
    def is_shut(self) -> bool:
        """Whether it was closed."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be borrowed ever again."""
        return self.is_shut or self._hooks() is None

    @abstractmethod
    def shut(self) -> None:
        """Refuse everybody from now on, and close what is not borrowed."""

    def refusal(self) -> PoolError | None:
        """Return the error with which to refuse a get at once, if there is reason to."""
        return PoolClosed(f"{self.name} is closed") if self.closed else None

    # -- borrowing -----------------------------------------------------------------------------------------------------

    def borrow(self, timeout: float | Unset | None) -> Slot:
        """Return a slot that is in use by the current greenlet from now on; wait up to ``timeout`` seconds for it."""
        slot = self.find(timeout)
        slot.pool.gets += 1
        slot.owner = getcurrent()
        return slot

    def find(self, timeout: float | Unset | None) -> Slot:
        """Do that, but for what a lease does itself."""
        self._look_round()
        now = monotonic()
        slot = self.take(now)
        if slot is None:
            slot = self.borrow_later(timeout)
        elif now - slot.seen >= TRUSTED_FOR or slot.seen < slot.pool.trouble_at:
            slot = self.look_closer(slot, now) or self.borrow_later(timeout)
        return slot

    def look_closer(self, slot: Slot | None, now: float) -> Slot | None:
        """Return the slot unless its peer has closed it meanwhile; then another idle that lives, if there is one."""
        while slot is not None and slot.is_suspect(now) and self._has_hung_up(slot):
            slot.pool.hung_up(slot, now)
            self.engine.act()
            slot = self.take(now)
        return slot

    def _has_hung_up(self, slot: Slot) -> bool:
        if slot.poller is None:
            return False
        try:
            has_hung_up = bool(slot.poller.has_hung_up(slot.connection))
        except BaseException:  # of a fileno() that switches
            slot.pool.pass_on(slot, monotonic())
            self.engine.act()
            raise
        return has_hung_up or slot.state is not IN_USE  # closed with its pool while fileno() switched

    def borrow_later(self, given: float | Unset | None) -> Slot:
        timeout = self.options.timeout if isinstance(given, Unset) else given
        waiter = self.new_waiter(monotonic())
        self._ask_first(waiter, timeout)
        if not waiter.is_settled and timeout != 0:
            self.waits += 1
            self._look_nested(waiter.since)
            self._wait(waiter, timeout, waiter.since)
        return self.claim(waiter, timeout)

    def claim(self, waiter: Waiter, timeout: float | None) -> Slot:
        """Return the slot that the waiter was handed, or another if that is no good any more; or raise his error."""
        while waiter.slot is not None:
            slot = waiter.claim()
            if self._is_good(slot):
                return slot
            self._ask_again(waiter, timeout)
        self.engine.queue.withdraw(waiter)
        if waiter.error is not None:
            raise waiter.error
        self.timeouts += 1
        state, cause = self.trouble()
        waited = monotonic() - waiter.since
        raise PoolTimeout(f"{self.name}: no connection within {waited:.2f} s ({state})") from cause

    def _ask_first(self, waiter: Waiter, timeout: float | None) -> None:
        error = self.refusal()
        if error is not None:
            raise error
        if not self._is_started:
            self.check_place()
        queue = self.engine.queue
        is_full = timeout != 0 and len(queue.waiting) >= self.options.max_waiting
        self.ask(waiter, waiter.since)
        self.engine.act()
        if not waiter.is_settled and (is_full or queue.is_down):
            queue.withdraw(waiter)
            raise self._turned_away()

    def _turned_away(self) -> PoolError:
        """Return why somebody may not even wait. He has been seen, though: who fails to connect tries sooner."""
        if self.engine.queue.is_down:
            return self.unavailable()
        self.refused += 1
        return PoolFull(f"{self.name}: {len(self.engine.queue.waiting)} wait already ({self.trouble()[0]})")

    def _own(self, queue: Queue) -> None:
        """Be the one who says what is wrong when the queue is down."""
        me = weakref.ref(self)  # or sockets were kept open by a cycle

        def unavailable() -> PoolError:
            lender = me()
            return PoolClosed("the pool is gone") if lender is None else lender.unavailable()

        queue.unavailable = unavailable

    def _unavailable(self) -> PoolError | None:
        return self.unavailable() if self.engine.queue.is_down else None

    def unavailable(self) -> PoolError:
        """Return what a get is refused with while there has been no connection for ``fail_after`` seconds."""
        state, cause = self.trouble()
        seconds = monotonic() - self.engine.queue.bare_since
        error = PoolUnavailable(f"{self.name}: no connection for {seconds:.1f} s ({state})")
        error.__cause__ = cause
        return error

    def _is_good(self, slot: Slot) -> bool:
        """Say whether what was handed to a waiter is still so when he runs; if it is not, it is taken back."""
        if slot.state is not IN_USE or slot.doomed is DRAINED or slot.doomed not in PROVISIONAL:
            slot.pool.pass_on(slot, monotonic())
            return False
        may_be_dead = slot.seen < slot.pool.trouble_at or slot.since - slot.seen >= TRUSTED_FOR
        if may_be_dead and slot.is_suspect(slot.since) and self._has_hung_up(slot):
            slot.pool.hung_up(slot, monotonic())
            self.engine.act()
            return False
        return True

    def _look_nested(self, now: float) -> None:
        """Tell of a greenlet that is about to wait while it holds what others may wait for."""
        engine = self.engine
        self._nested.look(getcurrent(), now)
        if engine.queue.todo:
            engine.act()

    def _ask_again(self, waiter: Waiter, timeout: float | None) -> None:
        """What was handed over is no good: closed by its peer, or its pool, or ejected, before the waiter ran."""
        waiter.error = self.refusal() or self._unavailable()
        now = monotonic()
        left = None if timeout is None else max(0.0, waiter.since + timeout - now)
        if waiter.error is None:
            self.ask(waiter, now, again=True)
        self.engine.act()
        if not waiter.is_settled and left != 0:
            self._wait(waiter, left, now)

    def _wait(self, waiter: Waiter, timeout: float | None, started: float) -> None:
        engine = self.engine  # in the child of a fork there may be another when this goes on
        try:
            engine.park(waiter, timeout)
        except BaseException:
            self.interrupted(waiter, engine)
            raise
        finally:
            if engine is self.engine:
                self.wait_seconds += monotonic() - started

    def interrupted(self, waiter: Waiter, engine: Engine) -> None:
        """He waits no more. A connection that was handed over meanwhile is clean: the next one gets it."""
        engine.queue.withdraw(waiter)
        if waiter.slot is not None:
            slot = waiter.claim()
            slot.pool.pass_on(slot, monotonic())
            engine.act()

    # -- returning -----------------------------------------------------------------------------------------------------

    def hand_over(self, slot: Slot, now: float) -> None:
        """Take back a connection after a good call; somebody waits."""
        self.give_back(slot, None)

    def give_back(self, slot: Slot, exc: BaseException | None) -> None:
        """End a lease: ``exc`` is what its block raised. Never switches, unless a hook that must not does."""
        if not self.is_here:
            self._give_back_elsewhere(slot, exc)
            return
        if exc is None and not self.asks_reusable:
            slot.owner, owner = None, slot.owner
            if slot.pool.returned(slot, monotonic()):
                return
            slot.owner = owner
        if self._is_inherited(slot):
            slot.owner = None
            return
        try:
            verdict = self._verdict(slot, exc)
        except BaseException as interruption:  # of a hook that switched: its own, and the connection's, end
            self._end(slot, INTERRUPTED, interruption)
            raise
        self._end(slot, verdict, exc)

    def _is_inherited(self, slot: Slot) -> bool:
        """Say whether the slot was borrowed in the parent process, and is still its."""
        return slot.pool.queue is not self.engine.queue or self.engine.is_inherited

    def _give_back_elsewhere(self, slot: Slot, exc: BaseException | None) -> None:
        """Not in the thread of the hub: by mistake, or by the collector, which runs wherever garbage is made."""
        if self._is_inherited(slot):
            return
        self.engine.end_later(slot, exc)
        if not issubclass(type(exc), GeneratorExit):
            self.engine.refuse_thread()

    def _end(self, slot: Slot, verdict: str | None, error: BaseException | None) -> None:
        if verdict is not None:
            self._note_failure(slot)
        slot.by_hand = False
        slot.owner = None
        slot.pool.ended(slot, verdict, error, monotonic())
        self.engine.act()

    def _note_failure(self, slot: Slot) -> None:
        """Remember it in the retried call, if it is one, that borrowed the connection."""
        note_failure(slot.owner, self.engine, slot.endpoint or self.name)

    def _verdict(self, slot: Slot, exc: BaseException | None) -> str | None:
        if exc is not None:
            if self._is_connection_error(exc, slot):
                return ERROR
            if not issubclass(type(exc), Exception):
                return INTERRUPTED
        if self.asks_reusable and slot.doomed in PROVISIONAL and not self._is_reusable(slot):
            return NOT_REUSABLE
        return None if exc is None else KEPT

    @property
    def user(self) -> Any:
        """The user's pool, with his hooks."""
        return self._hooks()

    def _is_connection_error(self, exc: BaseException, slot: Slot) -> bool:
        if issubclass(type(exc), GeneratorExit):
            return False  # perhaps of a lease that is being collected, when nothing of the user's may run
        try:
            return bool(self.user._is_connection_error(exc))
        except (Exception, *SYSTEM) as error:
            self._complain(slot, "_is_connection_error", error)
            return True

    def _is_reusable(self, slot: Slot) -> bool:
        try:
            return bool(self.user._is_reusable(slot.connection))
        except (Exception, *SYSTEM) as error:
            self._complain(slot, "_is_reusable", error)
            return False

    def _complain(self, slot: Slot, hook: str, error: BaseException) -> None:
        self.engine.queue.news.append(events.HookFailed(slot.pool.name, slot.endpoint, hook, error))
        self.engine.pass_on_system_error(error)

    def lent(self, connection: object, verb: str) -> Slot | None:
        """Return the slot of a connection that is borrowed, None if by the parent process, or ValueError."""
        self.check_place()
        if id(connection) in self.inherited:
            return None
        queue = self.engine.queue
        slot = queue.open.get(id(connection)) or queue.cut.get(id(connection))
        if slot is None or not self.owns(slot):
            raise ValueError(f"{self.name}: cannot {verb} {show(connection)}: it is not a connection of this pool")
        if slot.state is not IN_USE and id(connection) not in queue.cut:
            raise ValueError(f"{self.name}: cannot {verb} {show(connection)}: it is not borrowed")
        return slot

    def release(self, connection: object) -> None:
        slot = self.lent(connection, "release")
        if slot is None:
            return
        if not slot.by_hand:
            raise ValueError(f"{self.name}: cannot release {show(connection)}: the end of its with block will")
        slot.by_hand = False
        self.give_back(slot, None)

    def discard(self, connection: object) -> None:
        slot = self.lent(connection, "discard")
        if slot is None:
            return
        if slot.by_hand:
            self._end(slot, USER, None)
        elif slot.doomed is USER:
            raise ValueError(f"{self.name}: cannot discard {show(connection)}: it is discarded already")
        elif slot.state is IN_USE:  # else it was closed under its user, and that is that
            slot.doomed = USER
            self._note_failure(slot)

    # -- the life of the pool ------------------------------------------------------------------------------------------

    def count_open(self) -> int:
        return sum(pool.open for pool in self.pools())

    def wait(self, is_ready: Callable[[], bool], timeout: float | None, warm: int) -> None:
        """Wait until ``is_ready()``; have ``warm`` connections opened for that, if fewer are to be kept."""
        self.check_place()
        started = monotonic()
        warming = self.state.warming
        warming.append(warm)
        try:
            self.state.grow(started)
            self.engine.act()
            is_done = self.engine.wait_until(lambda: is_ready() or self.refusal() is not None, timeout)
        finally:
            warming.remove(warm)
        if not is_done:
            state, cause = self.trouble()
            raise PoolTimeout(f"{self.name}: not ready within {monotonic() - started:.2f} s ({state})") from cause
        refusal = self.refusal()
        if refusal is not None:
            raise refusal

    @property
    @abstractmethod
    def state(self) -> State:
        """What is borrowed from here."""

    def reset(self) -> None:
        self._check_open("reset")
        self.state.reset(monotonic())
        self.engine.act()

    def resize(self, size: int, min_size: int | None) -> None:
        options = self.options
        _check.integer("size", size, 1)
        if min_size is None:
            min_size = size if options.is_full else min(options.min_size, size)
        else:
            options.is_full = _check.integer("min_size", min_size, 0, size) == size
        self._check_open("resize")
        options.size, options.min_size = size, min_size
        self.state.resize(size, min_size, monotonic())
        self.engine.act()

    def _check_open(self, verb: str) -> None:
        self.check_place()
        if self.closed:
            raise PoolClosed(f"cannot {verb} {self.name}: it is closed")

    def close(self, timeout: float | None) -> bool:
        self._look_round()
        if not self.closed:
            self.shut()
            self.engine.act()
        me = getcurrent()
        try:
            self.engine.wait_until(lambda: not self._is_busy(besides=me), timeout)
        finally:
            self.engine.stop_alarms()  # until here it is told who holds connections for long
        for pool in tuple(self.pools()):
            self._is_cut = pool.cut(spare=me) or self._is_cut
        self.engine.act()
        return not self._is_cut

    def _is_busy(self, besides: object) -> bool:
        """Whether anything is still to be returned, or is being opened, kept alive or closed."""
        return any(s.state is not IN_USE or s.owner is not besides for pool in self.pools() for s in pool.slots)


def main_of(greenlet: Any) -> Any:
    """Return the greenlet that a native thread began with."""
    while greenlet.parent is not None:
        greenlet = greenlet.parent
    return greenlet


class PoolLender(Lender):
    """One pool: a lone one, or that of one endpoint in a cluster."""

    slots: Slots

    def take(self, now: float) -> Slot | None:
        return self.slots.take(now)

    def new_waiter(self, now: float) -> Waiter:
        return Waiter(now, self.slots)

    def ask(self, waiter: Waiter, now: float, *, again: bool = False) -> None:
        self.slots.ask(waiter, now, again=again)

    def pools(self) -> Iterable[Slots]:
        return (self.slots,)

    def owns(self, slot: Slot) -> bool:
        return slot.pool is self.slots

    @property
    def state(self) -> Slots:
        return self.slots

    def shut(self) -> None:
        self.slots.shut(lambda: PoolClosed(f"{self.name} is closed"))

    @property
    def is_shut(self) -> bool:
        return self.slots.mode is SHUT

    def trouble(self) -> tuple[str, BaseException | None]:
        s = self.stats()
        text = f"open {s.open} of {s.size}, idle {s.idle}, in use {s.in_use}"
        text += f", connecting {s.connecting}, waiting {s.waiting}"
        if s.last_error is not None:
            text += f"; last error: {show(s.last_error)}"
        return text, s.last_error

    def stats(self) -> events.PoolStats:
        slots = self.slots
        if self.engine.is_inherited:
            return nothing_yet(self.name, slots.size, slots.min_size)
        return events.PoolStats(
            name=self.name,
            size=slots.size,
            min_size=slots.min_size,
            open=self.count_open(),
            idle=len(slots.idle),
            in_use=slots.in_use,
            connecting=slots.connecting,
            waiting=slots.waiting,
            gets=slots.gets,
            waits=self.waits,
            wait_seconds=self.wait_seconds,
            timeouts=self.timeouts,
            refused=self.refused,
            opened=slots.opened_total,
            open_errors=slots.open_errors,
            closed=slots.closed_total,
            discarded=MappingProxyType(dict(slots.discarded)),
            last_error=slots.last_error,
        )


def nothing_yet(name: str, size: int, min_size: int) -> events.PoolStats:
    """Return the statistics of a pool that has done nothing."""
    values: dict[str, Any] = dict.fromkeys(events.PoolStats.__match_args__, 0)
    values.update(name=name, size=size, min_size=min_size, wait_seconds=0.0, last_error=None)
    values["discarded"] = MappingProxyType(dict.fromkeys(CAUSES, 0))
    return events.PoolStats(**values)
