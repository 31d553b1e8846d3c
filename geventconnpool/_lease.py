"""The context managers that ``get`` returns: the path that every call takes.

Half of what a call costs here is the interpreter's work for the ``with`` statement, the clock and the current greenlet;
the next largest part would be calls of our own functions. So what happens to nearly all calls is written out in one
method each for the two ends of a lease: what :meth:`Slots.take` and :meth:`Slots.returned` do, and nothing else. As
soon as anything is out of the ordinary (nobody idle, somebody waiting, a doubt about the connection, an exception,
another thread, another process), the lender sees to all of it.
"""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar

from gevent import getcurrent

from geventconnpool._fork import get_ident
from geventconnpool._queue import IDLE, IN_USE, TRUSTED_FOR
from geventconnpool._retry import calls

C = TypeVar("C")

USED: Any = object()


class Unset:
    """The default of ``get(timeout=...)``: the pool's own."""

    def __repr__(self) -> str:
        return "<the pool's timeout>"


UNSET = Unset()


class Lease(Generic[C]):
    """A connection for the time of one ``with`` block; borrowed at its start, single use.

    Who makes one fills it in: a constructor would take as long as the rest of ``get``.
    """

    __slots__ = ("pool", "slot", "timeout")

    pool: Any  # lives as long as anything is borrowed from it
    timeout: float | Unset | None
    slot: Any  # None before it is borrowed

    def __enter__(self) -> C:
        if self.slot is not None:
            raise RuntimeError("get() is for one with statement; call it again for the next")
        self.slot = USED  # nobody may enter it a second time, not even while this waits
        slot = self.slot = self.pool._lender.borrow(self.timeout)
        connection: C = slot.connection
        return connection

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        slot, self.slot = self.slot, USED
        self.pool._lender.give_back(slot, exc)


class _QuickLease(Lease[C]):
    """The same where all connections are reusable, and the end of most leases needs no thought."""

    __slots__ = ()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        slot, self.slot = self.slot, USED
        slots = slot.pool
        queue = slots.queue
        if (
            exc is not None
            or slot.doomed  # else it is in use: who takes it out of a lease that has not ended dooms it
            or queue.busy
            or getcurrent() is not slot.owner  # then this is the right thread, too
        ):
            self.pool._lender.give_back(slot, exc)
            return
        now = monotonic()
        if queue.waiting:
            self.pool._lender.hand_over(slot, now)
            return
        # Nothing below allocates or calls before the slot is idle, so nothing can break in.
        slot.owner = None
        slot.state = IDLE
        slot.seen = now
        slots.idle.append(slot)
        load = slots.load
        if load is not None:
            load.returned(slot.since, now)


class LoneLease(_QuickLease[C]):
    """A lease of a pool by itself."""

    __slots__ = ()

    def __enter__(self) -> C:
        lender = self.pool._lender
        slots = lender.slots
        idle = slots.idle
        me = getcurrent()
        if self.slot is not None or not lender.life[0] or (me is not lender.main and get_ident() != lender.thread):
            return Lease.__enter__(self)
        if idle:
            now = monotonic()
            slot = idle.pop() if slots.lifo else idle.popleft()
            slot.state = IN_USE
            slot.since = now
            if now - slot.seen >= TRUSTED_FOR or slot.seen < slots.trouble_at:
                self.slot = USED
                slot = lender.look_closer(slot, now) or lender.find(self.timeout)
                slots = slot.pool
        else:
            self.slot = USED
            slot = lender.borrow_later(self.timeout)
            slots = slot.pool
        slots.gets += 1
        slot.owner = me
        self.slot = slot
        connection: C = slot.connection
        return connection


class ClusterLease(_QuickLease[C]):
    """A lease of a cluster."""

    __slots__ = ()

    def __enter__(self) -> C:
        lender = self.pool._lender
        me = getcurrent()
        if (
            calls
            or self.slot is not None
            or not lender.life[0]
            or (me is not lender.main and get_ident() != lender.thread)
        ):
            return Lease.__enter__(self)
        now = monotonic()
        members = lender.members
        slot = members.take_idle(now)
        if slot is None or now - slot.seen >= TRUSTED_FOR or slot.seen < slot.pool.trouble_at:
            self.slot = USED
            slot = lender.look_closer(slot, now) or lender.find(self.timeout)
        elif members.has_looked:
            lender.begun(slot)
        slot.pool.gets += 1
        slot.owner = me
        self.slot = slot
        connection: C = slot.connection
        return connection
