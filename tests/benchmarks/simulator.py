"""A discrete-event simulator that drives the very classes a ClusterPool decides with: members, slots, balancers.

Time is virtual and chance is seeded, so a run is the same every time, and contestants that are given one seed meet the
same arrivals and the same servers (common random numbers). What the gevent shell does in the product is done here by
events: a connect takes ``CONNECT`` seconds, a keepalive and a call as long as the server says.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random
from typing import Any, Protocol

from geventconnpool._queue import (
    ABORT,
    ALARM,
    CANCEL,
    CHECK,
    CLOSE,
    ERROR,
    INTERRUPTED,
    OPEN,
    WAKE,
    Gate,
    Slot,
    Timed,
    Waiter,
)
from geventconnpool._slots import Slots
from geventconnpool.cluster import Endpoint, OutlierDetection
from geventconnpool.cluster._balancers import Balancer
from geventconnpool.cluster._members import ClusterQueue, Members

CONNECT = 0.0005  # seconds, as in one data centre
REFUSED = ConnectionRefusedError("refused")
BROKEN = ConnectionResetError("reset")


class World:
    """The clock, and what is to happen."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()

    def at(self, when: float, happen: Callable[..., None], *args: Any) -> None:
        heappush(self._events, (when, next(self._order), happen, args))

    def run(self, until: float = inf, is_over: Callable[[], bool] = lambda: False) -> None:
        events = self._events
        while events and events[0][0] <= until and not is_over():
            self.now, _, happen, args = heappop(events)
            happen(*args)
        if until < inf:
            self.now = until


class Server(Protocol):
    """What is at the other end: how long it takes, and whether it succeeds."""

    def call(self, now: float) -> tuple[float, bool]: ...
    def ping(self, now: float) -> tuple[float, bool]: ...
    def connect(self, now: float) -> bool: ...


class Call:
    """One call: when it was made, and how it went."""

    __slots__ = ("at", "failed_on", "is_good", "place", "seconds")

    def __init__(self, at: float) -> None:
        self.at = at
        self.failed_on: tuple[Endpoint, ...] = ()  # the endpoints of attempts that were followed by another
        self.seconds = inf  # never answered
        self.is_good = False
        self.place = ""


class Client:
    """A ClusterPool whose greenlets are events.

    A balancer that has a method ``ended(endpoint, seconds, is_good, now)`` is told of every attempt that has ended.
    """

    def __init__(
        self,
        world: World,
        servers: dict[Endpoint, Server],
        balancer: Balancer,
        *,
        seed: object = 0,
        size: int = 100,
        keepalive: float = 0.0,
        outlier: OutlierDetection | None = None,
        give_up: float = inf,
        slow_start: float = 3.0,
        retries: int = 0,
        avoids: bool = True,
    ) -> None:
        self.world = world
        self.servers = servers
        self.calls: list[Call] = []
        self._give_up = give_up  # after so many seconds the caller interrupts his call
        self._retries = retries  # a call that fails is tried again, at once
        self._avoids = avoids  # not where it has failed, if it can be helped
        self._ended = getattr(balancer, "ended", None)
        rng = Random(f"client {seed}")
        queue = self.queue = ClusterQueue()
        gate = Gate(64)

        def open_pool(endpoint: Endpoint) -> Slots:
            return Slots(
                size,
                name=str(endpoint),
                queue=queue,
                gate=gate,
                rng=rng,
                keepalive=keepalive,
                has_keepalive=bool(keepalive),
                endpoint=endpoint,
                lifo=False,
            )

        self.members = Members(
            "simulated",
            queue,
            balancer,
            open_pool=open_pool,
            closed_pool=lambda pool: None,
            ask=lambda now: None,
            outlier=outlier,
            drain_timeout=30.0,
            rng=rng,
            slow_start=slow_start,
        )
        self._waiting: dict[Waiter, tuple[Call, Callable[[Call], None]]] = {}
        self.members.update(servers, world.now)
        self._act()

    # -- what the shell does -------------------------------------------------------------------------------------------

    def _act(self) -> None:
        todo = self.queue.todo
        while todo:
            deed, subject = todo.popleft()
            self._DEEDS[deed](self, subject)
        self.queue.news.clear()

    def _open(self, slot: Slot) -> None:
        self.world.at(self.world.now + CONNECT, self._opened, slot)

    def _opened(self, slot: Slot) -> None:
        now = self.world.now
        if slot.doomed is None and not self.servers[slot.endpoint].connect(now):
            slot.pool.connect_failed(slot, REFUSED, now)
        else:
            slot.pool.opened(slot, object(), now)
        self._act()

    def _check(self, slot: Slot) -> None:
        seconds, is_good = self.servers[slot.endpoint].ping(self.world.now)
        self.world.at(self.world.now + seconds, self._checked, slot, is_good)

    def _checked(self, slot: Slot, is_good: bool) -> None:
        if is_good:
            slot.pool.kept_alive(slot, self.world.now)
        else:
            slot.pool.keepalive_failed(slot, BROKEN, self.world.now)
        self._act()

    def _close(self, slot: Slot) -> None:
        self.world.at(self.world.now, self._closed, slot)

    def _closed(self, slot: Slot) -> None:
        slot.pool.closed(slot, self.world.now)
        self._act()

    def _wake(self, waiter: Waiter) -> None:
        call, done = self._waiting.pop(waiter)
        assert waiter.slot is not None
        self._begin(waiter.slot, call, done)

    def _alarm(self, item: Timed) -> None:
        self.world.at(max(item.alarm, self.world.now), self._ring, item, item.alarm)

    def _ring(self, item: Timed, alarm: float) -> None:
        if item.alarm == alarm:
            item.alarm = inf
            item.tick(self.world.now)
            self._act()

    def _nothing(self, slot: Slot) -> None:
        """What is cancelled ends by itself."""

    _DEEDS: dict[str, Callable[[Client, Any], None]] = {
        OPEN: _open,
        CANCEL: _nothing,
        CHECK: _check,
        CLOSE: _close,
        ABORT: _close,
        WAKE: _wake,
        ALARM: _alarm,
    }

    # -- what users do -------------------------------------------------------------------------------------------------

    def call(self, done: Callable[[Call], None] = lambda call: None) -> None:
        """Make a call now; ``done`` is told when it has ended."""
        call = Call(self.world.now)
        self.calls.append(call)
        self._attempt(call, done)

    def _attempt(self, call: Call, done: Callable[[Call], None]) -> None:
        now = self.world.now
        avoid = call.failed_on if self._avoids else ()
        slot = self.members.take(avoid, now)
        if slot is not None:
            self._begin(slot, call, done)
            return
        waiter = Waiter(now, avoid=avoid)
        self._waiting[waiter] = call, done
        self.members.ask_for(waiter, now)
        self._act()

    def _begin(self, slot: Slot, call: Call, done: Callable[[Call], None]) -> None:
        now = self.world.now
        seconds, is_good = self.servers[slot.endpoint].call(now)
        call.place = slot.endpoint.name
        if seconds > self._give_up:
            self.world.at(now + self._give_up, self._end, slot, call, done, INTERRUPTED)
        else:
            self.world.at(now + seconds, self._end, slot, call, done, None if is_good else ERROR)

    def _end(self, slot: Slot, call: Call, done: Callable[[Call], None], verdict: str | None) -> None:
        now = self.world.now
        endpoint = slot.endpoint
        if self._ended is not None:
            self._ended(endpoint, now - slot.since, verdict is None, now)
        if verdict is not None or not slot.pool.returned(slot, now):
            slot.pool.ended(slot, verdict, BROKEN if verdict is ERROR else None, now)
            self._act()
        if verdict is ERROR and len(call.failed_on) < self._retries:
            call.failed_on += (endpoint,)
            self._attempt(call, done)
            return
        call.is_good = verdict is None
        call.seconds = now - call.at
        done(call)


def poisson(world: World, rng: Random, rate: float, until: float, arrive: Callable[..., None]) -> None:
    """Have calls arrive at so many per second, independently of each other (an open loop)."""
    when = world.now
    while (when := when + rng.expovariate(rate)) < until:
        world.at(when, arrive)


def evenly(world: World, rate: float, until: float, arrive: Callable[..., None]) -> None:
    """Have calls arrive one by one at equal distances."""
    for n in range(int(rate * (until - world.now))):
        world.at(world.now + n / rate, arrive)


def closed_loop(client: Client, callers: int, total: int) -> Callable[[], bool]:
    """Have so many callers call one time after the other, ``total`` calls in all; return whether they have."""
    done = 0

    def again(call: Call | None = None) -> None:
        nonlocal done
        done += call is not None
        if len(client.calls) < total:
            client.call(again)

    for _ in range(callers):
        client.world.at(client.world.now, again)
    return lambda: done >= total


def quantile(values: list[float], q: float) -> float:
    """Return the smallest value that a share ``q`` of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(q * len(ordered) + 0.5) - 1))]
