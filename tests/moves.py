"""Which moves the state machines of the core really make: recorded while they run.

A slot and a member say their state in one attribute each. While :func:`recorded` is on, every change of it is noted
with why: the transition that made it or, where a connection begins to close, the cause. ``FREE`` and ``GONE`` are no
states, but what was before the first and is after the last.

:func:`scripted` makes every move there is, each for every reason there is; the machines of hypothesis find no other.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import getattr_static
from typing import Any

import pytest

from geventconnpool import _slots
from geventconnpool._queue import (
    CLOSING,
    DRAINED,
    EJECTED,
    ERROR,
    INTERRUPTED,
    NOT_REUSABLE,
    USER,
    Gate,
    Queue,
    Slot,
    Waiter,
)
from geventconnpool._slots import Slots
from geventconnpool.cluster import Endpoint, PeakEWMA, _members
from geventconnpool.cluster._members import ClusterQueue, Member, Members
from geventconnpool.cluster._outliers import OutlierDetection
from geventconnpool.errors import PoolClosed
from tests.virtual import Dice, Shell

FREE, GONE = "free", "gone"
CORE = {_slots.__file__, _members.__file__}

Moves = dict[tuple[str, str], set[str]]  # (from, to): why


class State:
    """Stands where the attribute stood, and notes what is written to it."""

    def __init__(self, kept_in: Any, first: str, moves: Moves) -> None:
        self._kept_in = kept_in  # the descriptor of a slot, or None: the object's dict
        self._first = first
        self._moves = moves

    def __get__(self, item: Any, kind: type | None = None) -> Any:
        return item.__dict__["state"] if self._kept_in is None else self._kept_in.__get__(item, kind)

    def __set__(self, item: Any, state: str) -> None:
        try:
            before = self.__get__(item)
        except (AttributeError, KeyError):
            before = self._first
        if before != state:
            self._moves[before, state].add(_reason(state))
        if self._kept_in is None:
            item.__dict__["state"] = state
        else:
            self._kept_in.__set__(item, state)


def _reason(state: str) -> str:
    """Return the transition that is under way, or why a connection is closed."""
    frame = sys._getframe(2)
    if state == CLOSING and "cause" in frame.f_locals:
        return str(frame.f_locals["cause"])
    while frame.f_code.co_filename not in CORE or frame.f_code.co_name.startswith("_"):
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_code.co_name


def _noting_the_end(method: Callable[..., Any], last: str, moves: Moves) -> Callable[..., Any]:
    """Return the method, which is the last that is heard of its first argument."""
    name = method.__name__

    def run(self: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        moves[item.state, last].add(_reason(last) if name.startswith("_") else name)
        return method(self, item, *args, **kwargs)

    return run


@contextmanager
def recorded() -> Iterator[tuple[Moves, Moves]]:
    """Note the moves of all slots and all members while this is on."""
    slots: Moves = defaultdict(set)
    members: Moves = defaultdict(set)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slot, "state", State(getattr_static(Slot, "state"), FREE, slots))
        patch.setattr(Member, "state", State(None, GONE, members), raising=False)
        for name in ("connect_failed", "closed"):
            patch.setattr(Slots, name, _noting_the_end(getattr(Slots, name), FREE, slots))
        patch.setattr(Members, "_forget", _noting_the_end(Members._forget, GONE, members))
        yield slots, members


# -- a life with everything in it --------------------------------------------------------------------------------------


class Pool:
    """A pool and its shell, ready to be played with."""

    def __init__(self, size: int = 1, *, is_open: bool = True, **options: Any) -> None:
        options.setdefault("rng", Dice())
        self.slots = Slots(size, name="pool", queue=Queue(), gate=Gate(10), max_connecting=10, **options)
        self.shell = Shell(self.slots.queue)
        self.do(self.slots.plan, 0.0)
        if is_open:
            self.shell.settle_down()

    def do(self, transition: Callable[..., Any], *args: Any, **options: Any) -> Any:
        result = transition(*args, **options)
        self.shell.act()
        return result

    def run_to(self, now: float) -> None:
        self.shell.run_to(now)

    def take(self) -> Slot:
        slot = self.slots.take(self.shell.now)
        assert slot is not None
        return slot

    def ask(self) -> Waiter:
        waiter = Waiter(self.shell.now, only=self.slots)
        self.do(self.slots.ask, waiter, self.shell.now)
        return waiter

    def check(self) -> Slot:
        """Let the time come for a keepalive."""
        while not self.shell.checking:
            self.run_to(self.shell.next_due)
        return self.shell.checking[0]

    def reset(self) -> None:
        self.do(self.slots.reset, self.shell.now)

    def resize(self, size: int) -> None:
        self.do(self.slots.resize, size, size, self.shell.now)

    def suspend(self, mark: str) -> None:
        self.do(self.slots.suspend, mark)

    def shut(self) -> None:
        self.do(self.slots.shut, lambda: PoolClosed("closed"))

    def move(self) -> None:
        """The address of the endpoint that all connections lead to is no longer one."""
        for slot in self.slots.slots:
            slot.peer = "10.0.0.1"
        self.slots.endpoint = object()
        self.do(self.slots.moved, ["10.0.0.1"], ["10.0.0.2"])


ENDS: dict[str, Callable[[Pool], None]] = {
    "closed": Pool.shut,
    "drained": lambda pool: pool.suspend(DRAINED),
    "ejected": lambda pool: pool.suspend(EJECTED),
    "moved": Pool.move,
    "reset": Pool.reset,
    "resized": lambda pool: pool.resize(1),
}
"""What may happen to a connection in any state, and closes it."""


def scripted() -> tuple[Moves, Moves]:
    """Return the moves of slots and of members in scenes that leave none out."""
    with recorded() as moves:
        for scene in SCENES:
            scene()
    return moves


def connections_come_and_go() -> None:
    pool = Pool(is_open=False)
    pool.shell.refuse(pool.shell.opening[0])
    waiter = pool.ask()
    pool.run_to(1.0)
    pool.shell.open(pool.shell.opening[0])  # for him who waits
    pool.shell.end(waiter.claim())
    pool.shell.end(pool.take(), "kept")
    pool.do(pool.slots.pass_on, pool.take(), pool.shell.now)
    pool.do(pool.slots.hung_up, pool.take(), pool.shell.now)
    pool.shell.settle_down()


def a_call_ends(verdict: str) -> None:
    pool = Pool()
    pool.shell.end(pool.take(), verdict)


def what_is_idle_is_kept_alive() -> None:
    pool = Pool(keepalive=3.0)
    pool.check()
    pool.shell.answer(pool.shell.checking[0])
    pool.check()
    pool.ask()
    pool.shell.answer(pool.shell.checking[0])
    other = Pool(keepalive=3.0)
    other.shell.hang_up(other.check())


def what_is_old_or_unused_goes() -> None:
    Pool(max_lifetime=100.0).run_to(100.0)
    pool = Pool(max_lifetime=100.0)
    slot = pool.take()
    pool.run_to(100.0)
    pool.shell.end(slot)
    pool = Pool(keepalive=30.0, max_lifetime=90.0, rng=Dice(0.0))  # kept alive since 54 s, too old since 67.5 s
    pool.run_to(27.0)
    pool.shell.answer(pool.shell.checking[0])
    pool.run_to(54.0)
    pool.run_to(70.0)
    pool.do(pool.slots.plan, 70.0)
    pool.shell.answer(pool.shell.checking[0])
    pool = Pool(2, min_size=1, max_idle=5.0)
    pool.resize(2)
    pool.shell.settle_down()
    pool.do(pool.slots.resize, 2, 1, 0.0)
    pool.run_to(10.0)


def what_is_idle_ends(end: Callable[[Pool], None]) -> None:
    end(Pool(2))


def what_is_in_use_ends(end: Callable[[Pool], None]) -> None:
    pool = Pool(2)
    slots = pool.take(), pool.take()
    end(pool)
    for slot in slots:
        pool.shell.end(slot)


def what_is_checked_ends(end: Callable[[Pool], None]) -> None:
    pool = Pool(2, keepalive=3.0)
    checked, borrowed = pool.check(), pool.take()
    end(pool)
    pool.shell.answer(checked)
    pool.shell.end(borrowed)


def what_connects_ends(end: Callable[[Pool], None]) -> None:
    pool = Pool(2, is_open=False)
    for slot in pool.shell.opening:
        slot.peer = "10.0.0.1"
    end(pool)
    for slot in list(pool.shell.opening):
        pool.shell.open(slot, peer="10.0.0.1")


def what_is_borrowed_is_cut_off() -> None:
    pool = Pool()
    pool.take()
    pool.shut()
    pool.do(pool.slots.cut)


class Cluster:
    """Two endpoints, one connection each, and what comes of them; none is asked for anything but its life."""

    A, B = Endpoint("a", 6379), Endpoint("b", 6379)

    def __init__(self, *, has_keepalive: bool = False, min_size: int = 1) -> None:
        self.queue = ClusterQueue(keeps_some=min_size > 0)
        self.shell = Shell(self.queue)
        self._options: dict[str, Any] = {"has_keepalive": has_keepalive, "min_size": min_size}
        self._gate = Gate(10)
        self.members = Members(
            "cluster",
            self.queue,
            PeakEWMA(),
            open_pool=self._open_pool,
            closed_pool=lambda pool: None,
            ask=lambda now: None,
            outlier=OutlierDetection(consecutive_failures=1, max_ejection_percent=50),
            drain_timeout=30.0,
            rng=Dice(),
        )
        self.update(self.A, self.B)

    def _open_pool(self, endpoint: Endpoint) -> Slots:
        queue, gate = self.queue, self._gate
        return Slots(1, name="a pool", queue=queue, gate=gate, rng=Dice(), endpoint=endpoint, **self._options)

    def update(self, *endpoints: Endpoint) -> None:
        self.members.update(endpoints, self.shell.now)
        self.shell.act()
        self.shell.settle_down()

    def borrow(self) -> Slot:
        """Take a connection to A."""
        slot = self.members.take([self.B], self.shell.now)
        assert slot is not None
        return slot

    def eject(self) -> None:
        self.shell.end(self.borrow(), ERROR, OSError("refused"))
        self.shell.settle_down()

    def probe(self) -> None:
        """Let the time come for a probe, and have it pass."""
        member = self.members.get(self.A)
        assert member is not None
        self.shell.run_to(member.until)
        self.shell.settle_down()


def an_endpoint_is_ejected_and_readmitted(*, has_keepalive: bool, is_wanted: bool) -> None:
    cluster = Cluster(has_keepalive=has_keepalive)
    cluster.eject()
    if is_wanted:
        cluster.members.take([], 0.0)  # the other one's
        cluster.members.ask_for(Waiter(0.0), 0.0)
    cluster.probe()


def an_endpoint_leaves_and_comes_back() -> None:
    cluster = Cluster()
    slot = cluster.borrow()
    cluster.update(Cluster.B)
    cluster.update(Cluster.A, Cluster.B)
    cluster.shell.end(slot)
    cluster.update(Cluster.B)  # and is gone, as it has nothing to wait for
    cluster.update(Cluster.A, Cluster.B)
    slot = cluster.borrow()
    cluster.update(Cluster.B)
    cluster.shell.run_to(cluster.shell.now + 31.0)
    cluster.shell.end(slot)


def an_ejected_endpoint_leaves_and_comes_back() -> None:
    cluster = Cluster()
    cluster.eject()
    member = cluster.members.get(Cluster.A)
    assert member is not None
    cluster.shell.run_to(member.until)  # a probe is under way, so it is not gone at once
    cluster.members.update([Cluster.B], cluster.shell.now)
    cluster.shell.act()
    cluster.members.update([Cluster.A, Cluster.B], cluster.shell.now)
    cluster.shell.act()
    cluster.shell.settle_down()


def a_call_makes_its_endpoint_grow() -> None:
    cluster = Cluster(min_size=0)
    waiter = Waiter(0.0)
    cluster.members.ask_for(waiter, 0.0)
    cluster.shell.act()
    cluster.shell.settle_down()
    cluster.shell.end(waiter.claim())


def a_lease_borrows_where_nothing_is_out_of_the_ordinary() -> None:
    cluster = Cluster()
    for _ in range(10):
        slot = cluster.members.take_idle(cluster.shell.now)
        if slot is not None:
            cluster.shell.end(slot)


def _each(scene: Callable[[Any], None], arguments: Any) -> list[Callable[[], None]]:
    return [partial(scene, argument) for argument in arguments]


SCENES: list[Callable[[], None]] = [
    connections_come_and_go,
    *_each(a_call_ends, (ERROR, INTERRUPTED, NOT_REUSABLE, USER)),
    what_is_idle_is_kept_alive,
    what_is_old_or_unused_goes,
    *(
        call
        for scene in (what_is_idle_ends, what_is_in_use_ends, what_is_checked_ends, what_connects_ends)
        for call in _each(scene, ENDS.values())
    ),
    what_is_borrowed_is_cut_off,
    *(
        partial(an_endpoint_is_ejected_and_readmitted, has_keepalive=keeps, is_wanted=is_wanted)
        for keeps in (False, True)
        for is_wanted in (False, True)
    ),
    an_endpoint_leaves_and_comes_back,
    an_ejected_endpoint_leaves_and_comes_back,
    a_call_makes_its_endpoint_grow,
    a_lease_borrows_where_nothing_is_out_of_the_ordinary,
]
