"""Scenarios in virtual time, played by the very classes that a ClusterPool decides with: members, slots, balancers.

A discrete-event simulation. Time is virtual and chance is seeded, so a run is the same every time, and contestants that
are given one seed meet the same arrivals and the same servers (common random numbers). What the gevent shell does in
the product is done here by events: a connect takes ``CONNECT`` seconds, a keepalive and a call as long as the server
says. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random
from typing import Any, ClassVar, Protocol

from geventconnpool import _check, events
from geventconnpool._queue import (
    ABORT,
    ALARM,
    CANCEL,
    CHECK,
    CLOSE,
    ERROR,
    OPEN,
    WAKE,
    Gate,
    Slot,
    Timed,
    Waiter,
)
from geventconnpool._slots import Slots
from geventconnpool.cluster._balancers import Balancer, PeakEWMA, make_balancer
from geventconnpool.cluster._endpoints import Endpoint, check_unique
from geventconnpool.cluster._members import ClusterQueue, Members
from geventconnpool.cluster._outliers import OutlierDetection

CONNECT = 0.0005  # seconds, as in one data centre
REFUSED = ConnectionRefusedError("refused")
BROKEN = ConnectionResetError("reset")


class World:
    """The clock, and what is to happen."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._plans: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()

    def at(self, when: float, happen: Callable[..., None], *args: Any) -> None:
        heappush(self._plans, (when, next(self._order), happen, args))

    def run(self, until: float = inf, is_over: Callable[[], bool] = lambda: False) -> None:
        plans = self._plans
        while plans and plans[0][0] <= until and not is_over():
            self.now, _, happen, args = heappop(plans)
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

    __slots__ = ("at", "endpoint", "failed_on", "is_good", "place", "seconds")

    def __init__(self, at: float) -> None:
        self.at = at
        self.failed_on: tuple[Endpoint, ...] = ()  # the endpoints of attempts that were followed by another
        self.seconds = inf  # never answered
        self.is_good = False
        self.endpoint: Endpoint | None = None  # that it went to last
        self.place = ""  # its name


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
        slow_start: float = 3.0,
        retries: int = 0,
        avoids: bool = True,
        tell: Callable[[float, events.Event], object] = lambda now, event: None,
    ) -> None:
        self.world = world
        self.servers = servers
        self.calls: list[Call] = []
        self._retries = retries  # a call that fails is tried again, at once
        self._avoids = avoids  # not where it has failed, if it can be helped
        self._tell = tell
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
        for event in self.queue.news:
            self._tell(self.world.now, event)
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

    _DEEDS: ClassVar[dict[str, Callable[[Client, Any], None]]] = {
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
        call.endpoint, call.place = slot.endpoint, slot.endpoint.name
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


# -- for users ---------------------------------------------------------------------------------------------------------

AT_ONCE = 0.0001  # seconds that a failure takes
OPENING = 0.1  # seconds for all connections to open, before the first call
AFTERWARDS = 120.0  # seconds after the last call for all to end


@dataclass(frozen=True, slots=True)
class SimulatedServer:
    """What is at one endpoint in :func:`play`, which is where weight and priority are, too.

    ``latency`` is how long a call takes, in seconds, or a function of the time that says so. In each of the spans
    ``fails``, as in ``[(3, 8)]``, calls and keepalives fail at once and nobody can connect. Raises ValueError or
    TypeError, naming the parameter and the value.
    """

    endpoint: Endpoint
    latency: float | Callable[[float], float] = 0.005
    fails: Sequence[tuple[float, float]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.endpoint, Endpoint):
            raise TypeError(f"endpoint must be an Endpoint, not {_check.show(self.endpoint)}")
        if not callable(self.latency):
            _check.seconds("latency", self.latency)
        _check.iterable("fails", self.fails, "spans")
        for span in self.fails:
            try:
                begin, end = span
            except (TypeError, ValueError):
                raise TypeError(f"fails must hold (begin, end), not {_check.show(span)}") from None
            _check.number("the end of a span in fails", end, _check.seconds("the begin of a span in fails", begin), inf)

    def is_failing(self, now: float) -> bool:
        """Say whether ``now``, in seconds from the first call, is in one of the spans."""
        return any(begin <= now < end for begin, end in self.fails)


@dataclass(frozen=True, slots=True)
class SimulatedCall:
    """One call of :func:`play`: when it began, for how many seconds its caller waited, and how it ended.

    ``endpoint`` is where the last attempt went, ``failed_on`` where those before it did. ``seconds`` is inf, and
    ``endpoint`` None, if nobody ever served it.
    """

    at: float
    seconds: float
    is_good: bool
    endpoint: Endpoint | None
    failed_on: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """What has happened in :func:`play`: all calls in the order in which they began, and all events with their time."""

    calls: tuple[SimulatedCall, ...]
    events: tuple[tuple[float, events.Event], ...]


def play(
    servers: Iterable[SimulatedServer],
    *,
    seconds: float,
    rate: float = 100.0,
    timeout: float | None = None,
    retries: int = 0,
    balancer: Callable[[], Balancer] = PeakEWMA,
    outlier: OutlierDetection | None = OutlierDetection(),  # noqa: B008  # a frozen value
    size: int = 100,
    keepalive: float | None = None,
    slow_start: float = 3.0,
    seed: int = 0,
) -> Story:
    """Have a cluster call ``servers`` for so many ``seconds`` of virtual time, and return what has happened.

    ``rate`` calls begin per second, at equal distances, from 0 on. One that would take longer fails after ``timeout``
    seconds, as by a timeout of the socket; one that fails is repeated up to ``retries`` times, elsewhere if it can be,
    as ``@retry`` does. The rest are options of :class:`~geventconnpool.ClusterPool`.

    What happens is the same every time for one ``seed``, if the balancer is: one that draws can be given a ``Random``
    with a seed. Raises ValueError or TypeError, naming parameter and value.
    """
    _check.iterable("servers", servers, "SimulatedServer")
    servers = tuple(servers)
    for server in servers:
        if not isinstance(server, SimulatedServer):
            raise TypeError(f"servers must hold SimulatedServer, not {_check.show(server)}")
    if outlier is not None and not isinstance(outlier, OutlierDetection):
        raise TypeError(f"outlier must be an OutlierDetection or None, not {_check.show(outlier)}")
    check_unique("servers", [server.endpoint for server in servers])
    patience = inf if timeout is None else _check.seconds("timeout", timeout, positive=True)
    by_endpoint: dict[Endpoint, Server] = {server.endpoint: _Conduct(server, patience) for server in servers}
    if not by_endpoint:
        raise ValueError("servers is empty")
    _check.seconds("seconds", seconds, positive=True)
    number = int(seconds * _check.number("rate", rate, 0, 1e6))
    told: list[tuple[float, events.Event]] = []
    world = World(-OPENING)
    client = Client(
        world,
        by_endpoint,
        make_balancer(balancer),
        seed=seed,
        size=_check.integer("size", size, 1),
        keepalive=_check.seconds_or_none("keepalive", keepalive) or 0.0,
        outlier=outlier,
        slow_start=_check.seconds("slow_start", slow_start),
        retries=_check.integer("retries", retries, 0),
        tell=lambda now, event: told.append((now, event)),
    )
    ended: list[Call] = []
    for n in range(number):
        world.at(n / rate, client.call, ended.append)
    world.run(seconds)
    world.run(seconds + AFTERWARDS, is_over=lambda: len(ended) == number)
    calls = (SimulatedCall(c.at, c.seconds, c.is_good, c.endpoint, c.failed_on) for c in client.calls)
    return Story(tuple(calls), tuple((now, event) for now, event in told if now >= 0))


class _Conduct:
    """A :class:`SimulatedServer` at work."""

    def __init__(self, server: SimulatedServer, patience: float) -> None:
        self._server = server
        self._patience = patience

    def call(self, now: float) -> tuple[float, bool]:
        if self._server.is_failing(now):
            return AT_ONCE, False
        latency = self._server.latency
        seconds = _check.number("what latency returns", latency(now), 0, inf) if callable(latency) else latency
        return min(seconds, self._patience), seconds <= self._patience

    def ping(self, now: float) -> tuple[float, bool]:
        return AT_ONCE, not self._server.is_failing(now)

    def connect(self, now: float) -> bool:
        return not self._server.is_failing(now)
