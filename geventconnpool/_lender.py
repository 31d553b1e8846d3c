"""Borrowing and returning: what a lone pool, the pool of an endpoint, and a cluster have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, Generic, Protocol, TypeVar

from gevent import getcurrent

from geventconnpool import events
from geventconnpool._check import show
from geventconnpool._engine import SYSTEM, Engine, get_ident
from geventconnpool._retry import note_failure
from geventconnpool._slots import ERROR, IN_USE, INTERRUPTED, KEPT, NOT_REUSABLE, SHUT, USER, Slot, Slots, Waiter
from geventconnpool.errors import PoolClosed, PoolError, PoolTimeout

C = TypeVar("C")

_USED: Any = object()


class Lease(Generic[C]):
    """A connection for the time of one ``with`` block; borrowed at its start, single use."""

    __slots__ = ("_lender", "_slot", "_timeout")

    def __init__(self, lender: Lender, timeout: float | None) -> None:
        self._lender = lender
        self._timeout = timeout
        self._slot: Any = None

    def __enter__(self) -> C:
        if self._slot is not None:
            raise RuntimeError("get() is for one with statement; call it again for the next")
        self._slot = _USED  # nobody may enter it a second time, not even while this waits
        slot = self._slot = self._lender.borrow(self._timeout)
        connection: C = slot.connection
        return connection

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        slot, self._slot = self._slot, _USED
        self._lender.give_back(slot, exc)


class Options(Protocol):
    """What the user chose, checked."""

    exc_classes: tuple[type[BaseException], ...]
    keepalive: float
    timeout: float | None
    asks_reusable: bool


class Lender(ABC):
    """Where connections are borrowed and returned: one pool, or a cluster of them.

    The parts that switch greenlets are ``borrow`` (only if it has to wait), ``wait`` and ``close``.
    """

    def __init__(self, engine: Engine, hooks: Any, options: Options, name: str) -> None:
        self.engine = engine
        self.name = name
        self.options = options
        self.waits = 0
        self.wait_seconds = 0.0
        self.timeouts = 0
        self._is_cut = False  # connections were closed under their users
        self._hooks = hooks
        self._asks_reusable = options.asks_reusable
        self._thread = engine.thread

    @abstractmethod
    def take(self, now: float) -> Slot | None:
        """Hand out an idle connection if there is one."""

    @abstractmethod
    def new_waiter(self, now: float) -> Waiter:
        """Return a waiter for what may be borrowed here."""

    @abstractmethod
    def ask(self, waiter: Waiter, now: float, *, first: bool = False) -> None:
        """Queue for a connection, at the end or ``first``; the waiter may be settled at once."""

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
    def closed(self) -> bool:
        """Whether nothing can be borrowed ever again."""

    @abstractmethod
    def shut(self) -> None:
        """Refuse everybody from now on, and close what is not borrowed."""

    def refusal(self) -> PoolError | None:
        """Return the error with which to refuse a get at once, if there is reason to."""
        return PoolClosed(f"{self.name} is closed") if self.closed else None

    # -- borrowing -----------------------------------------------------------------------------------------------------

    def borrow(self, timeout: float | None) -> Slot:
        """Return a slot that is in use by the current greenlet from now on; wait up to ``timeout`` seconds for it."""
        if get_ident() != self._thread:  # without a call: this is the hot path
            self.engine.refuse_thread()
        slot = self.take(monotonic())
        if slot is None:
            slot = self._borrow_later(timeout)
        slot.owner = getcurrent()
        slot.pool.gets += 1
        return slot

    def _borrow_later(self, timeout: float | None) -> Slot:
        error = self.refusal()
        if error is not None:
            raise error
        waiter = self.new_waiter(monotonic())
        self.ask(waiter, waiter.since)
        self.engine.act()
        if not waiter.is_settled and timeout != 0:
            self.waits += 1
            self._wait(waiter, timeout)
        while waiter.slot is not None:
            if waiter.slot.state is IN_USE and waiter.slot.doomed is None:
                return waiter.slot
            self._ask_again(waiter, timeout)
        self.engine.queue.withdraw(waiter)
        if waiter.error is not None:
            raise waiter.error
        self.timeouts += 1
        state, cause = self.trouble()
        waited = monotonic() - waiter.since
        raise PoolTimeout(f"{self.name}: no connection within {waited:.2f} s ({state})") from cause

    def _ask_again(self, waiter: Waiter, timeout: float | None) -> None:
        """What was handed over is no good: the pool was closed, or its endpoint ejected, before the waiter ran."""
        slot, waiter.slot = waiter.slot, None
        if slot is not None:
            slot.pool.pass_on(slot, monotonic())
        waiter.error = self.refusal()
        now = monotonic()
        left = None if timeout is None else max(0.0, waiter.since + timeout - now)
        if waiter.error is None:
            self.ask(waiter, now, first=True)
        self.engine.act()
        if not waiter.is_settled and left != 0:
            self._wait(waiter, left)

    def _wait(self, waiter: Waiter, timeout: float | None) -> None:
        started = monotonic()
        try:
            self.engine.park(waiter, timeout)
        except BaseException:
            # Interrupted. A connection that was handed over meanwhile is clean: the next one gets it.
            self.engine.queue.withdraw(waiter)
            if waiter.slot is not None:
                waiter.slot.pool.pass_on(waiter.slot, monotonic())
                self.engine.act()
            raise
        finally:
            self.wait_seconds += monotonic() - started

    # -- returning -----------------------------------------------------------------------------------------------------

    def give_back(self, slot: Slot, exc: BaseException | None) -> None:
        """End a lease: ``exc`` is what its block raised. Never switches, unless a hook that must not does."""
        if get_ident() != self._thread:
            self._give_back_elsewhere(slot, exc)
            return
        if exc is None and not self._asks_reusable:
            slot.owner, owner = None, slot.owner
            if slot.pool.returned(slot, monotonic()):
                return
            slot.owner = owner
        try:
            verdict = self._verdict(slot, exc)
        except BaseException as interruption:  # of a hook that switched: its own, and the connection's, end
            self._end(slot, INTERRUPTED, interruption)
            raise
        self._end(slot, verdict, exc)

    def _give_back_elsewhere(self, slot: Slot, exc: BaseException | None) -> None:
        """Not in the thread of the hub: by mistake, or by the collector, which runs wherever garbage is made."""
        self.engine.end_later(slot, exc)
        if not isinstance(exc, GeneratorExit):
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
            if not isinstance(exc, Exception):
                return INTERRUPTED
        if self._asks_reusable and slot.doomed is None and not self._is_reusable(slot):
            return NOT_REUSABLE
        return None if exc is None else KEPT

    def _is_connection_error(self, exc: BaseException, slot: Slot) -> bool:
        if isinstance(exc, GeneratorExit):
            return False  # perhaps of a lease that is being collected, when nothing of the user's may run
        try:
            return bool(self._hooks._is_connection_error(exc))
        except (Exception, *SYSTEM) as error:
            self._complain(slot, "_is_connection_error", error)
            return True

    def _is_reusable(self, slot: Slot) -> bool:
        try:
            return bool(self._hooks._is_reusable(slot.connection))
        except (Exception, *SYSTEM) as error:
            self._complain(slot, "_is_reusable", error)
            return False

    def _complain(self, slot: Slot, hook: str, error: BaseException) -> None:
        self.engine.queue.news.append(events.HookFailed(slot.pool.name, slot.endpoint, hook, error))
        self.engine.pass_on_system_error(error)

    def lent(self, connection: object, verb: str) -> Slot:
        """Return the slot of a connection that is borrowed, or ValueError."""
        self.engine.check_thread()
        queue = self.engine.queue
        slot = queue.open.get(id(connection)) or queue.cut.get(id(connection))
        if slot is None or not self.owns(slot):
            raise ValueError(f"{self.name}: cannot {verb} {show(connection)}: it is not a connection of this pool")
        if slot.state is not IN_USE and id(connection) not in queue.cut:
            raise ValueError(f"{self.name}: cannot {verb} {show(connection)}: it is not borrowed")
        return slot

    def release(self, connection: object) -> None:
        slot = self.lent(connection, "release")
        if not slot.by_hand:
            raise ValueError(f"{self.name}: cannot release {show(connection)}: the end of its with block will")
        slot.by_hand = False
        self.give_back(slot, None)

    def discard(self, connection: object) -> None:
        slot = self.lent(connection, "discard")
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

    def wait(self, is_ready: Callable[[], bool], timeout: float | None) -> None:
        self.engine.check_thread()
        started = monotonic()
        if not self.engine.wait_until(lambda: is_ready() or self.refusal() is not None, timeout):
            state, cause = self.trouble()
            raise PoolTimeout(f"{self.name}: not ready within {monotonic() - started:.2f} s ({state})") from cause
        refusal = self.refusal()
        if refusal is not None:
            raise refusal

    def close(self, timeout: float | None) -> bool:
        self.engine.check_thread()
        if not self.closed:
            self.shut()
            self.engine.act()
            self.engine.stop_alarms()
        me = getcurrent()
        self.engine.wait_until(lambda: not self._is_busy(besides=me), timeout)
        for pool in tuple(self.pools()):
            self._is_cut = pool.cut(spare=me) or self._is_cut
        self.engine.act()
        return not self._is_cut

    def _is_busy(self, besides: object) -> bool:
        """Whether anything is still to be returned, or is being opened, kept alive or closed."""
        return any(s.state is not IN_USE or s.owner is not besides for pool in self.pools() for s in pool.slots)


class PoolLender(Lender):
    """One pool: a lone one, or that of one endpoint in a cluster."""

    def __init__(self, engine: Engine, hooks: Any, options: Options, name: str, slots: Slots) -> None:
        super().__init__(engine, hooks, options, name)
        self.slots = slots

    def take(self, now: float) -> Slot | None:
        return self.slots.take(now)

    def new_waiter(self, now: float) -> Waiter:
        return Waiter(now, only=self.slots)

    def ask(self, waiter: Waiter, now: float, *, first: bool = False) -> None:
        self.slots.ask(waiter, now, first=first)

    def pools(self) -> Iterable[Slots]:
        return (self.slots,)

    def owns(self, slot: Slot) -> bool:
        return slot.pool is self.slots

    def shut(self) -> None:
        self.slots.shut(lambda: PoolClosed(f"{self.name} is closed"))

    @property
    def closed(self) -> bool:
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
        return events.PoolStats(
            name=self.name,
            size=slots.size,
            min_size=slots.size,
            open=self.count_open(),
            idle=len(slots.idle),
            in_use=slots.in_use,
            connecting=slots.connecting,
            waiting=slots.waiting,
            gets=slots.gets,
            waits=self.waits,
            wait_seconds=self.wait_seconds,
            timeouts=self.timeouts,
            refused=0,
            opened=slots.opened_total,
            open_errors=slots.open_errors,
            closed=slots.closed_total,
            discarded=MappingProxyType(dict(slots.discarded)),
            last_error=slots.last_error,
        )
