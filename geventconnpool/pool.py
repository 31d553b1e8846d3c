"""The pool of connections to one place, as since 2013. The state is in ``_slots``, the greenlets are in ``_engine``."""

from __future__ import annotations

import socket
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from math import inf
from random import Random
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from gevent import getcurrent

from geventconnpool import _check
from geventconnpool._engine import Engine
from geventconnpool._lease import UNSET, Lease, LoneLease, Unset
from geventconnpool._lender import Lender, PoolLender
from geventconnpool._liveness import descriptor_of
from geventconnpool._queue import IN_USE, RUNNING, Gate, Holds, Queue, Slot, Waiter
from geventconnpool._retry import retry
from geventconnpool._slots import Slots

if TYPE_CHECKING:
    from geventconnpool import events
else:
    from geventconnpool._late import events

__all__ = ["DEFAULT_EXC_CLASSES", "ConnectionPool", "retry"]

DEFAULT_EXC_CLASSES: tuple[type[BaseException], ...] = (socket.error,)

C = TypeVar("C")
_numbers = count(1)


class Hooks(Generic[C]):
    """What a user overrides, but for ``_new_connection``, and how each behaves if he does not."""

    _lender: Lender

    def _keepalive(self, c: C, /) -> None:
        """Raise anything to say that an idle connection is broken; at most ``keepalive_timeout`` seconds."""

    def _close_connection(self, c: C, /) -> None:
        """Close a healthy connection, politely if the protocol has a goodbye; at most 5 s."""
        close = getattr(c, "close", None)
        if close is not None:
            close()

    def _abort_connection(self, c: C, /) -> None:
        """Close a broken or interrupted connection, on which nothing should be sent; at most 5 s.

        As it is: if somebody still uses it, as ``close`` could not wait for him, its socket (of ``c.fileno()``) is shut
        down and he is given a moment to notice; then ``_close_connection``.
        """
        self._lender.engine.let_user_go(c)
        self._close_connection(c)

    def _is_connection_error(self, exc: BaseException, /) -> bool:
        """Say whether ``exc``, raised by a block, means that its connection is broken. Must not switch.

        As it is: an instance of ``exc_classes``, but not an OSError with a ``filename``, as ``open()`` raises it,
        unless a proper subclass of OSError that it is an instance of is named. If this raises, that counts for True.
        """
        return _check.is_connection_error(exc, self._lender.options.exc_classes)

    def _is_reusable(self, c: C, /) -> bool:
        """Say whether a connection that comes back well may be used again. Must not switch.

        If it says False, or raises, the connection is closed and replaced.
        """
        return True

    def _fileno(self, c: C, /) -> int | None:
        """Return the descriptor by which to tell that the peer has closed an idle connection; None if there is none.

        Asked when a connection has been opened or kept alive; at most 1 s.
        """
        return descriptor_of(c)


class NoLender:
    """Stands in for the lender of a pool until its constructor has made that, and says so."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self._kind}.__init__ must call super().__init__(...) before the pool is used")


class Borrowing(Hooks[C]):
    """The methods that a lone pool and a cluster have in common."""

    def __new__(cls, *_args: Any, **_options: Any) -> Self:
        pool = super().__new__(cls)
        pool._lender = cast("Lender", NoLender(cls.__name__))
        return pool

    def get(self, timeout: float | Unset | None = UNSET) -> Lease[C]:
        """Return a context manager that lends a connection to its block.

        It is for one block. The connection is borrowed when that is entered: if none is idle, after waiting for up to
        ``timeout`` seconds (default: the pool's; None: for ever; 0: not at all), first come, first served. Then it
        raises :class:`PoolTimeout`, or at once :class:`PoolClosed` if the pool is closed, :class:`PoolFull` if
        ``max_waiting`` others wait already, and :class:`PoolUnavailable` if there has been no connection for
        ``fail_after`` seconds, or if a cluster knows that its service has no endpoints. How the block ends decides
        about the connection: see the tutorial.
        """
        make = self._lender.lease
        lease: Lease[C] = make()
        lease.pool = self
        lease.timeout = timeout if timeout is UNSET else _seconds(timeout)
        lease.slot = None
        return lease

    def acquire(self, timeout: float | Unset | None = UNSET) -> C:
        """Borrow a connection until :meth:`release` or :meth:`discard` is called with it.

        Waits, and raises, as the block of :meth:`get` does: ``timeout`` is in seconds.
        """
        slot = self._lender.borrow(_seconds(timeout))
        slot.by_hand = True
        connection: C = slot.connection
        return connection

    def release(self, c: C) -> None:
        """Return what :meth:`acquire` lent, from whatever greenlet; :class:`ValueError` for anything else."""
        self._lender.release(c)

    def discard(self, c: C) -> None:
        """Have a borrowed connection closed and replaced: now, or inside its ``with`` block at the end of that.

        Raises :class:`ValueError` for anything that is not borrowed from here.
        """
        self._lender.discard(c)

    def close(self, timeout: float | None = None) -> bool:
        """Close the pool for good. Idempotent.

        Waiters get :class:`PoolClosed` now, idle connections are closed now, borrowed ones when they come back. Waits
        for those (but for the ones that the calling greenlet holds) up to ``timeout`` seconds (None: for ever); then
        the rest is closed under their users. Returns whether all came back in time.
        """
        return self._lender.close(_check.seconds_or_none("timeout", timeout))

    def reset(self) -> None:
        """Replace every connection: idle ones now, borrowed ones when they come back. Never switches.

        For when all are known to be of no use any more, as after a change of password or a failover that keeps the
        address. A pool that is waiting to try again tries now. Raises :class:`PoolClosed` if it is closed.
        """
        self._lender.reset()

    def resize(self, size: int, min_size: int | None = None) -> None:
        """Have ``size`` connections at most (a cluster: to each endpoint), and ``min_size`` at least. Never switches.

        What is too much is closed, idle ones first and the rest when it comes back. Without ``min_size``, a pool that
        was always full is so at the new size, and another keeps its ``min_size``, or ``size`` if that is less. Raises
        :class:`ValueError` or :class:`TypeError`, and :class:`PoolClosed` if the pool is closed.
        """
        self._lender.resize(size, min_size)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called."""
        return self._lender.closed

    @property
    def exc_classes(self) -> tuple[type[BaseException], ...]:
        """The exceptions that mean a broken connection."""
        return self._lender.options.exc_classes

    @property
    def keepalive(self) -> float:
        """Seconds between two signs of life of a connection; 0 if not kept alive."""
        return self._lender.options.keepalive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close(10 if exc is None else 0)


SPARE = 100  # waiters that are kept, to wait again


def _seconds(timeout: float | Unset | None) -> float | Unset | None:
    """Return what bounds a get, checked."""
    return timeout if isinstance(timeout, Unset) else _check.seconds_or_none("timeout", timeout)


# What a user overrides. They are called, nobody awaits them.
HOOKS = (
    *("_new_connection", "_keepalive", "_close_connection", "_abort_connection"),
    *("_is_connection_error", "_is_reusable", "_fileno"),
)


class _Options:
    """The options that a lone pool and a cluster have in common, checked."""

    def __init__(
        self,
        pool: Any,
        base: type,
        *,
        size: int,
        exc_classes: type[BaseException] | Iterable[type[BaseException]],
        keepalive: float | None,
        timeout: float | None,
        min_size: int | None,
        max_waiting: int | None,
        max_connecting: int,
        open_timeout: float,
        keepalive_timeout: float | None,
        max_lifetime: float | None,
        max_idle: float | None,
        lifo: bool | None,
        fail_after: float | None,
        hold_warning: float | None,
        name: str | None,
        on_event: Callable[[events.Event], object] | None,
    ) -> None:
        kind = type(pool)
        if kind._new_connection is base._new_connection:  # type: ignore[attr-defined]  # both kinds of pool have it
            raise TypeError(f"{kind.__name__} must override _new_connection")
        for hook in HOOKS:
            _check.plain_function(f"{kind.__name__}.{hook}", getattr(kind, hook))
        self.has_keepalive = kind._keepalive is not Hooks._keepalive
        self.asks_reusable = kind._is_reusable is not Hooks._is_reusable
        self.size = _check.integer("size", size, 1)
        self.min_size = self.size if min_size is None else _check.integer("min_size", min_size, 0, self.size)
        self.is_full = self.min_size == self.size  # always, whatever size it will have
        self.max_waiting = inf if max_waiting is None else _check.integer("max_waiting", max_waiting, 0)
        self.max_lifetime = _check.seconds_or_none("max_lifetime", max_lifetime, positive=True)
        self.max_idle = _check.seconds_or_none("max_idle", max_idle, positive=True)
        self.fail_after = _check.seconds_or_none("fail_after", fail_after)
        self.hold_warning = _check.seconds_or_none("hold_warning", hold_warning, positive=True)
        if lifo is not None and not isinstance(lifo, bool):
            raise TypeError(f"lifo must be True, False or None, not {_check.show(lifo)}")
        self.lifo = lifo
        self.exc_classes = _check.exception_classes("exc_classes", exc_classes)
        self.keepalive = _check.seconds_or_none("keepalive", keepalive) or 0.0
        if self.keepalive and not self.has_keepalive:
            raise TypeError(f"keepalive={_check.show(keepalive)} needs {kind.__name__} to override _keepalive")
        self.timeout = _check.seconds_or_none("timeout", timeout)
        self.max_connecting = _check.integer("max_connecting", max_connecting, 1)
        self.open_timeout = _check.seconds("open_timeout", open_timeout, positive=True)
        given = _check.seconds_or_none("keepalive_timeout", keepalive_timeout, positive=True)
        self.keepalive_timeout = given or min(self.keepalive or 10.0, 10.0)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str, not {_check.show(name)}")
        self.name = name or f"{kind.__name__}-{next(_numbers)}"
        _check.function("on_event", on_event)
        self.on_event = _without_cycle(pool, on_event)

    def outfit(self, queue: Queue) -> None:
        """Give a new queue what the options say about it."""
        queue.fail_after = inf if self.fail_after is None else self.fail_after
        queue.keeps_some = self.min_size > 0
        if self.hold_warning is not None:
            Holds(queue, self.hold_warning, monotonic())

    def make_engine(self, pool: Any, queue: Queue) -> Engine:
        self.outfit(queue)
        return Engine(
            pool,
            queue,
            name=self.name,
            open_timeout=self.open_timeout,
            keepalive_timeout=self.keepalive_timeout,
            on_event=self.on_event,
            default_fileno=Hooks._fileno,
        )

    def make_slots(self, queue: Queue, gate: Gate, rng: Random, endpoint: Any = None) -> Slots:
        return Slots(
            self.size,
            name=self.name,
            queue=queue,
            gate=gate,
            rng=rng,
            keepalive=self.keepalive,
            max_connecting=self.max_connecting,
            has_keepalive=self.has_keepalive,
            min_size=self.min_size,
            max_lifetime=self.max_lifetime or inf,
            max_idle=self.max_idle or inf,
            lifo=self.lifo,
            endpoint=endpoint,
        )


def _without_cycle(pool: Any, on_event: Callable[[events.Event], object] | None) -> Any:
    """Know a method of the pool itself by a weak reference, or the pool would keep itself alive."""
    if on_event is None or getattr(on_event, "__self__", None) is not pool:
        return on_event
    method = weakref.WeakMethod(on_event)

    def tell(event: events.Event) -> None:
        alive = method()
        if alive is not None:
            alive(event)

    return tell


class _LoneLender(PoolLender):
    """A pool by itself: it has an engine of its own."""

    quick_lease = LoneLease

    def __init__(self, options: _Options, pool: Any) -> None:
        super().__init__(options, options.name, weakref.ref(pool))
        self._may_be_long = options.max_waiting == inf  # else each has to be counted
        self.begin_here()

    def begin_here(self) -> None:
        options = self.options
        queue = Queue()
        self._spare: deque[Waiter] = deque(maxlen=SPARE)  # as they were at first
        self._own(queue)
        self.slots = options.make_slots(queue, Gate(options.max_connecting), Random())
        self.begin(options.make_engine(self.user, queue))

    def start(self) -> None:
        self.slots.plan(monotonic())
        self.engine.act()

    def borrow_later(self, given: float | Unset | None) -> Slot:  # noqa: C901 - as in a lease
        slots, engine = self.slots, self.engine
        me = getcurrent()
        timeout = self.options.timeout if given is UNSET else given
        if timeout is not None or not self._may_be_long or me is engine.hub:
            return super().borrow_later(given)
        now = monotonic()
        spare = self._spare
        waiter = spare.pop() if spare else self.new_waiter(now)
        if not slots.line_up(waiter, now):
            return super().borrow_later(None)
        # Others wait already: to wait behind them, for as long as it takes, is all that is to be done.
        if slots.idle or slots.mode is not RUNNING:  # unless the collector has just ended their leases, or the pool
            engine.queue.withdraw(waiter)
            if not waiter.is_settled:
                return super().borrow_later(None)
        self.waits += 1
        if now >= self._nested.look_at:
            self._look_nested(now)
        waiter.greenlet = me
        switch, life = engine.hub.switch, self.life
        try:
            try:
                while (
                    (waiter.slot is None and waiter.error is None and not waiter.is_late)
                    or not life[0]  # the turn of the loop may be a child's
                ):
                    switch()
            finally:
                waiter.greenlet = None
                if waiter.waking is not None:
                    waiter.waking.stop()
                if engine is self.engine:
                    self.wait_seconds += monotonic() - now
            slot = waiter.slot
            if (
                slot is not None
                and slot.state is IN_USE
                and not slot.doomed
                and slot.since == slot.seen
                and slot.seen >= slots.trouble_at
            ):
                spare.append(waiter)
                waiter.slot = waiter.waking = None
                return slot
        except BaseException:
            self.interrupted(waiter, engine)
            raise
        return self.claim(waiter, None)

    def hand_over(self, slot: Slot, now: float) -> None:
        slots, engine = self.slots, self.engine
        if slot.pool is not slots or not self.life[0]:  # in the child of a fork
            self.give_back(slot, None)
            return
        try:
            waiter = slots.handed_over(slot, now)
        except KeyError:  # nobody: the collector has ended another lease in between
            self.give_back(slot, None)
        else:
            engine.wake_soon(waiter)

    def __del__(self) -> None:
        self.forgotten()


class ConnectionPool(Borrowing[C]):
    """Keeps ``size`` connections open and lends them, one user at a time. Override :meth:`_new_connection`.

    ``exc_classes``
        one class or an iterable of those that mean "this connection is broken" when they end a block.
    ``keepalive``
        seconds (minus up to 10 %) after its last sign of life when an idle connection is given to :meth:`_keepalive`,
        which must be overridden then; None or 0: never.
    ``timeout``
        seconds that :meth:`get` waits; None: for ever.
    ``min_size``
        connections that are kept at least; None: ``size``, the pool is always full. Above that, one is opened only
        while somebody waits, and closed when it has been unused for ``max_idle`` seconds.
    ``max_waiting``
        callers that may wait; the next gets :class:`PoolFull`. None: any number.
    ``max_connecting``
        connects at a time; one, with a growing delay, while they fail.
    ``open_timeout``, ``keepalive_timeout``
        seconds that :meth:`_new_connection` (10) and :meth:`_keepalive` (``min(keepalive, 10)``) may take.
    ``max_lifetime``
        seconds after which a connection is replaced, less up to 25 % drawn for each so that they do not all go at once,
        when nobody uses it, at most ``max_connecting`` at a time; None: never.
    ``max_idle``
        see ``min_size``; None: never.
    ``lifo``
        True: lend the connection that was used last, so that a surplus is left alone; False: use all in turn; None:
        what fits, False for a pool that is always full and True for one that shrinks.
    ``fail_after``
        seconds without one live connection after which those who wait, and all who come, get :class:`PoolUnavailable`
        at once; the pool goes on trying. None: never.
    ``hold_warning``
        seconds after which the log tells who still holds a connection, and what he is doing; None: never.
    ``name``
        used in messages, events and the log; default: the name of the class and a number.
    ``on_event``
        called with each value of :mod:`geventconnpool.events`, in order, in a greenlet of the pool.

    Raises :class:`ValueError` or :class:`TypeError`, naming parameter and value. Returns before the first connect
    begins. A pool belongs to the hub (the native thread) that made it: in another thread its methods raise
    :class:`RuntimeError`, but for ``stats``, ``closed``, ``size`` and ``repr``; so do, in a callback of the hub, those
    that have to wait.
    """

    _lender: PoolLender

    def __init__(
        self,
        size: int,
        exc_classes: type[BaseException] | Iterable[type[BaseException]] = DEFAULT_EXC_CLASSES,
        keepalive: float | None = None,
        *,
        timeout: float | None = None,
        min_size: int | None = None,
        max_waiting: int | None = None,
        max_connecting: int = 4,
        open_timeout: float = 10.0,
        keepalive_timeout: float | None = None,
        max_lifetime: float | None = None,
        max_idle: float | None = 600.0,
        lifo: bool | None = None,
        fail_after: float | None = None,
        hold_warning: float | None = None,
        name: str | None = None,
        on_event: Callable[[events.Event], object] | None = None,
    ) -> None:
        options = _Options(
            self,
            ConnectionPool,
            size=size,
            exc_classes=exc_classes,
            keepalive=keepalive,
            timeout=timeout,
            min_size=min_size,
            max_waiting=max_waiting,
            max_connecting=max_connecting,
            open_timeout=open_timeout,
            keepalive_timeout=keepalive_timeout,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            lifo=lifo,
            fail_after=fail_after,
            hold_warning=hold_warning,
            name=name,
            on_event=on_event,
        )
        self._lender = _LoneLender(options, self)
        self._lender.start()

    def _new_connection(self) -> C:
        """Return a new connection: any object but None and False; within ``open_timeout`` seconds.

        Whatever it raises is a failed connect. It is called again later, for ever.
        """
        raise NotImplementedError

    def wait(self, n: int | None = None, timeout: float | None = None) -> None:
        """Wait until ``n`` connections (default: ``min_size``) are open; more than are kept are opened for it.

        Raises :class:`PoolTimeout` after ``timeout`` seconds (None: never), with the last connect error as its cause;
        :class:`PoolClosed` if the pool is closed; :class:`ValueError` if ``n`` is more than ``size``.
        """
        wanted = self._lender.slots.min_size if n is None else _check.integer("n", n, 0, self.size)
        seconds = _check.seconds_or_none("timeout", timeout)
        self._lender.wait(lambda: self._lender.count_open() >= min(wanted, self.size), seconds, warm=wanted)

    def stats(self) -> events.PoolStats:
        """Return how the pool stands, as a frozen value. Cheap; never switches."""
        return self._lender.stats()

    @property
    def size(self) -> int:
        """How many connections the pool has at most."""
        return self._lender.slots.size

    def __repr__(self) -> str:
        s = self.stats()
        gauges = f"{s.open} of {s.size} open, {s.idle} idle, {s.in_use} in use"
        rest = f"{s.connecting} connecting, {s.waiting} waiting{', closed' if self.closed else ''}"
        return f"<{type(self).__name__} {s.name!r}: {gauges}, {rest}>"
