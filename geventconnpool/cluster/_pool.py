"""The cluster: one pool per endpoint that discovery names, one queue before all of them.

Who is eligible, chosen, ejected, probed and drained is decided in ``_members``; when to look the service up again in
``_refresh``; this is the shell round them. One engine acts for all pools, so a cluster at rest has a timer and no
greenlet, whatever its size. A look-up runs in a greenlet of its own, for as long as it takes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import dataclass, fields, replace
from functools import partial
from math import inf, isfinite
from random import Random
from time import monotonic
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from gevent import getcurrent

from geventconnpool import _check, events
from geventconnpool._check import show
from geventconnpool._engine import Engine, forget_locals
from geventconnpool._lease import ClusterLease
from geventconnpool._lender import Lender, PoolLender, nothing_yet
from geventconnpool._queue import CAUSES, Gate, Slot, Waiter
from geventconnpool._retry import places_to_avoid
from geventconnpool._slots import Slots
from geventconnpool._worker import Slice
from geventconnpool.cluster._balancers import Balancer, PeakEWMA, make_balancer
from geventconnpool.cluster._endpoints import Endpoint, NoRecords, Resolution, parse_service
from geventconnpool.cluster._explain import describe, explain
from geventconnpool.cluster._members import Change, ClusterQueue, Member, Members
from geventconnpool.cluster._outliers import OutlierDetection
from geventconnpool.cluster._refresh import Refresh
from geventconnpool.cluster._resolvers import DNSResolver, Resolver, StaticResolver, bounds_of
from geventconnpool.cluster._subset import Subset
from geventconnpool.errors import PoolClosed, PoolError
from geventconnpool.pool import DEFAULT_EXC_CLASSES, Borrowing, ConnectionPool, _Options

C = TypeVar("C")

CONNECTS_AT_ONCE = 64  # over all endpoints of a cluster
DESCRIBED = 20  # endpoints in the message of an error
# Seconds, a power of two: in these times add up to the same in whatever order, or a total would go back when an
# endpoint becomes the past, by the last bit, and who draws rates would take that for a restart.
GRAIN = 2.0**-20
# What is changed in one go when many endpoints come or go: seconds of it, and connects and closes that it leads to.
CHANGES_AT_ONCE, DEEDS_AT_ONCE = 0.0005, 12
LOOKUP_TIMEOUT = 60.0  # seconds, for whatever resolver


NOT_BEGUN = events.DiscoveryStats(
    "starting", since=None, outcome="", last_error=None, ttl=None, records=None, generation=0, next_lookup=None
)


class Discovery:
    """Asks the resolver when it is time to, and hands what is believed of its answers to the members.

    One greenlet at a time does so: it looks up, then changes the members in slices. Only a stale set that is to be
    given up while it looks up is given up by another. What happens between its switches, be it a stop, a fork or the
    end of the pool, finds the members whole, if not complete; if somebody kills it, the next alarm goes on.

    With a ``subset``, the members are a choice among what is believed, and made anew when some of them become unfit to
    serve, or fit again. That is no other belief: what is told of discovery stays as it is meanwhile.
    """

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        service: str | None,
        name: str,
        rng: Random,
        subset: Subset | None = None,
    ) -> None:
        self.alarm = inf
        self.members: Members
        self._engine = engine
        self._resolver = resolver
        self._service = service
        self._name = name
        self._refresh = Refresh(bounds_of(resolver), rng)
        self._told: tuple[str, bool] = (self._refresh.state, False)
        self._subset = subset
        self._applied: tuple[Endpoint, ...] | None = None  # what was believed when the members became that
        self._turns = 0  # of the members, when they were chosen
        self._before = NOT_BEGUN  # what was told before the members began to change
        self._greenlet: Any = None  # that looks up
        self._applier: Any = None  # the greenlet that changes the members
        self._is_stopped = False

    def start(self, members: Members) -> None:
        """Look up for the first time: at once what is at hand, the rest in the background."""
        self.members = members
        now = monotonic()
        if isinstance(self._resolver, StaticResolver):
            given = self._resolver.at_hand()
            self._refresh.given(given, now)
            self.members.update(self._choose(given.endpoints), now)
            self._applied = given.endpoints
            self._tell()
        self.tick(now)

    def stop(self) -> None:
        self._is_stopped = True
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def ask(self, now: float) -> None:
        """An endpoint has failed: perhaps DNS knows better by now."""
        self._refresh.ask(now)
        self._set_alarm()

    def turned(self) -> None:
        """An endpoint is unfit to serve, or fit again: perhaps others are wanted."""
        self._set_alarm()
        self._engine.act()  # a good call that makes one fit is returned without

    def tick(self, now: float) -> None:
        if self._is_stopped:
            return
        self._before = self.stats()
        refresh = self._refresh
        refresh.tick(now)
        if self._greenlet is None and refresh.due <= now:
            refresh.started(now)
            self._greenlet = self._engine.spawn(self._look_up, self._fail)
        elif self._is_behind:
            self._applier = self._engine.spawn(self._apply, self._applier_ended)
        self._set_alarm()

    @property
    def _is_behind(self) -> bool:
        """Whether the members are not what is believed, and nobody is about to change that."""
        return self._applier is None and not self._is_current(self._applied, self._turns)

    def _is_current(self, believed: tuple[Endpoint, ...] | None, turns: int) -> bool:
        """Say whether that is what is believed still, and where there is a choice, whether it would be the same."""
        return believed is self._refresh.endpoints and (self._subset is None or turns == self.members.turns)

    def _set_alarm(self) -> None:
        if self._is_stopped:
            return
        alarm = self._refresh.gives_up_at if self._greenlet is not None else self._refresh.alarm
        self._engine.queue.ring_at(-inf if self._is_behind else alarm, self)

    def _look_up(self) -> None:
        try:
            self._ask_and_note()
            if self._applier is None:
                self._apply()
        finally:
            self._end()

    def _ask_and_note(self) -> None:
        try:
            resolution = self._ask("resolve")
            if self._refresh.is_doubtful(resolution) and callable(getattr(self._resolver, "confirm", None)):
                resolution = self._ask("confirm")
        except BaseException as error:
            forget_locals(error)
            self._note_failure(error)
            self._engine.pass_on_system_error(error)
        else:
            self._refresh.answered(resolution, monotonic())

    def _ask(self, method: str) -> Resolution:
        resolve = getattr(self._resolver, method)
        resolution = self._engine.bounded(LOOKUP_TIMEOUT, method, None, resolve, self._service)
        if not isinstance(resolution, Resolution):
            raise TypeError(f"{method} must return a Resolution, not {show(resolution)}")
        return resolution

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, NoRecords):
            self._refresh.denied(error, monotonic())
        else:
            self._refresh.failed(error, monotonic())

    def _apply(self) -> None:
        """Have the members become what is believed, in slices."""
        self._applier = getcurrent()
        try:
            while (wanted := self._refresh.endpoints) is not None and not self._is_current(self._applied, self._turns):
                if wanted is not self._applied:
                    self._applied = None  # who is killed on the way leaves the members as nobody said they were
                self.members.reason = self._refresh.outcome
                self._become(wanted)
        finally:
            self._applier_ended()

    def _applier_ended(self, _error: BaseException | None = None) -> None:
        self._applier = None
        self._report()

    def _become(self, wanted: tuple[Endpoint, ...]) -> None:
        """Change the members to those ``wanted``, or a choice of them, unless others are before that is done."""
        turns, part = self.members.turns, Slice(CHANGES_AT_ONCE)
        changes = self.members.changes(self._choose(wanted, part))
        # A choice must not outlive what it was made for: who stood in for one that is ejected again would be drained.
        while self._is_current(wanted, turns):
            if self._change(changes, part):
                self._applied, self._turns = wanted, turns
                return
            part.rest()

    def _choose(self, endpoints: tuple[Endpoint, ...], part: Slice | None = None) -> Iterable[Endpoint]:
        """Return those of the endpoints to have pools for."""
        if self._subset is None:
            return endpoints
        chosen = self._subset.choose(part.through(endpoints) if part else endpoints, self.members.unfit)
        self.members.reweigh(chosen)
        return chosen

    def _change(self, changes: Iterator[Change | None], part: Slice) -> bool:
        pool = self._engine.hooks()  # held: it must not be collected in the middle
        if pool is None or self._is_stopped:
            return True
        todo = self._engine.queue.todo
        is_done = self.members.change(changes, monotonic(), lambda: part.is_over() or len(todo) >= DEEDS_AT_ONCE)
        self._engine.act()
        return is_done

    def _fail(self, error: BaseException) -> None:
        """Somebody has killed the greenlet before it began."""
        self._refresh.failed(error, monotonic())
        self._end()

    def _end(self) -> None:
        self._greenlet = None
        self._report()

    def _report(self) -> None:
        pool = self._engine.hooks()  # held, see _change
        if pool is not None:
            self._tell()

    def _tell(self) -> None:
        """Report a change of state, once."""
        refresh = self._refresh
        state = (refresh.state, refresh.last_error is not None)
        if state != self._told and not self._is_stopped:
            self._told = state
            event = events.DiscoveryChanged(self._name, refresh.state, refresh.last_error, refresh.outcome)
            self._engine.queue.news.append(event)
        self._set_alarm()
        self._engine.act()

    @property
    def last_error(self) -> BaseException | None:
        return self._refresh.last_error

    def stats(self) -> events.DiscoveryStats:
        """Return how it stands: what is believed is told when it is so."""
        refresh = self._refresh
        if refresh.endpoints is not self._applied:
            return replace(self._before, next_lookup=None)
        return events.DiscoveryStats(
            state=refresh.state,
            since=refresh.since,
            outcome=refresh.outcome,
            last_error=refresh.last_error,
            ttl=refresh.ttl,
            records=refresh.records,
            generation=refresh.generation,
            next_lookup=refresh.due if isfinite(refresh.due) and not self._is_stopped else None,
        )


class Past:
    """What endpoints did that are gone: it still counts in the totals."""

    def __init__(self, name: str) -> None:
        self.stats = nothing_yet(name, 0, 0)

    def add(self, pool: Slots) -> None:
        gone = replace(pool.facade.stats(), size=0, min_size=0)
        self.stats = _sum(self.stats.name, [self.stats, gone])


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cluster is made of, checked; it is made again in the child of a fork."""

    resolver: Resolver
    service: str | None
    balancer: Callable[[], Balancer]
    outlier: OutlierDetection | None
    drain_timeout: float
    slow_start: float
    subset: int | None


class ClusterLender(Lender):
    """All endpoints of a cluster as one place to borrow from."""

    quick_lease = ClusterLease

    def __init__(self, options: _Options, plan: Plan, pool: Any) -> None:
        super().__init__(options, options.name, weakref.ref(pool))
        self._plan = plan
        self._balancer: Balancer | None = make_balancer(plan.balancer)  # bad input is refused at once
        self.begin_here()

    def begin_here(self) -> None:
        options, plan, rng = self.options, self._plan, Random()
        queue = ClusterQueue()
        self._own(queue)
        engine = options.make_engine(self.user, queue)
        # In the child of a fork it is another choice: the workers of a gunicorn should not all have their master's.
        subset = None if plan.subset is None else Subset(plan.subset)
        self.discovery = Discovery(engine, plan.resolver, plan.service, options.name, rng, subset)
        self.past = Past(options.name)
        self.members = Members(
            options.name,
            queue,
            self._balancer or make_balancer(plan.balancer),
            open_pool=partial(_open_pool, self._hooks, options, engine, Gate(CONNECTS_AT_ONCE), rng),
            closed_pool=self.past.add,
            ask=self.discovery.ask,
            turned=self.discovery.turned,
            outlier=plan.outlier,
            drain_timeout=plan.drain_timeout,
            rng=rng,
            slow_start=plan.slow_start,
        )
        self._balancer = None
        self.begin(engine)

    def start(self) -> None:
        self.engine.queue.judge(monotonic())  # the time without any endpoint counts, too
        self.discovery.start(self.members)
        self.engine.act()

    def __del__(self) -> None:
        self.forgotten()

    def take(self, now: float) -> Slot | None:
        slot = self.members.take(places_to_avoid(self.engine), now)
        if self.engine.queue.news or self.engine.queue.todo:
            self.engine.act()  # the balancer failed, or would rather have one that is to be opened
        return self.begun(slot)

    def look_closer(self, slot: Slot | None, now: float) -> Slot | None:
        return self.begun(super().look_closer(slot, now))

    def begun(self, slot: Slot | None) -> Slot | None:
        """Have a call begin when its connection has been chosen: what that took is nothing to the endpoint."""
        if self.members.has_looked:
            self.members.has_looked = False
            if slot is not None:
                slot.since = monotonic()
        return slot

    def new_waiter(self, now: float) -> Waiter:
        return Waiter(now, avoid=places_to_avoid(self.engine))

    def ask(self, waiter: Waiter, now: float, *, again: bool = False) -> None:
        self.members.ask_for(waiter, now, again=again)

    def pools(self) -> list[Slots]:
        return [member.pool for member in (*self.members, *self.members.leaving)]

    def refusal(self) -> PoolError | None:
        if self.members.is_empty and not self.closed:
            return self.members.unavailable()
        return super().refusal()

    @property
    def is_shut(self) -> bool:
        return self.members.is_shut

    @property
    def state(self) -> Members:
        return self.members

    def shut(self) -> None:
        self.discovery.stop()
        self.members.shut(partial(PoolClosed, f"{self.name} is closed"))

    def is_ready(self, n: int | None) -> bool:
        """Whether ``n`` connections are open; None: what the available endpoints keep at least, and at least one.

        Those by which ejected endpoints are probed are of use to nobody yet.
        """
        live = self.engine.queue.live
        if n is not None:
            return live >= n
        available = self.members.available
        if not available or not live or self.members.is_partial:
            return False
        return all(member.pool.open >= member.pool.min_size for member in available)

    def trouble(self) -> tuple[str, BaseException | None]:
        pools = self.pools()
        gauges = f"open {sum(p.open for p in pools)}, idle {sum(len(p.idle) for p in pools)}"
        gauges += f", in use {sum(p.in_use for p in pools)}, waiting {len(self.engine.queue.waiting)}"
        return "; ".join([gauges, *self._places()]), self.last_error

    def _places(self) -> list[str]:
        """Describe the endpoints, those that do not serve first, as many as one wants to read."""
        now = monotonic()
        members = sorted(self.members, key=lambda member: member.state == "active")
        places = [describe(member, now) for member in members[:DESCRIBED]]
        if len(members) > DESCRIBED:
            places.append(f"and {len(members) - DESCRIBED} more")
        if self.discovery.last_error is not None:
            places.append(f"discovery fails: {show(self.discovery.last_error)}")
        elif not members and not self.members.is_empty:
            places.append("discovery has not answered yet")
        return places

    def explain(self) -> tuple[events.Explanation, ...]:
        if self.is_shut or self.engine.is_inherited:
            return ()
        self._look_round()
        explanations = tuple(explain(self.members, monotonic()))
        self.engine.act()
        return explanations

    @property
    def last_error(self) -> BaseException | None:
        return self.members.last_error or self.discovery.last_error

    def stats(self) -> events.ClusterStats:
        if self.engine.is_inherited:
            blank = nothing_yet(self.name, 0, 0)
            return events.ClusterStats(**_values(blank), endpoints=(), discovery=NOT_BEGUN)
        members, leaving, past = self.members.moves.between(self._everybody)
        endpoints = tuple(map(_endpoint_stats, members))
        pools = [entry.pool for entry in endpoints] + [member.pool.facade.stats() for member in leaving]
        total = _sum(self.name, [*pools, past])
        values = _values(total)
        values["waits"] += self.waits
        values["wait_seconds"] += self.wait_seconds
        values["timeouts"] += self.timeouts
        values["refused"] += self.refused
        values["waiting"] = len(self.engine.queue.waiting)
        values["last_error"] = self.last_error
        return events.ClusterStats(**values, endpoints=endpoints, discovery=self.discovery.stats())

    def _everybody(self) -> tuple[tuple[Member, ...], tuple[Member, ...], events.PoolStats]:
        """Return who there is, who is leaving, and what the others did."""
        return tuple(self.members), tuple(self.members.leaving), self.past.stats


def _values(stats: events.PoolStats) -> dict[str, Any]:
    return {field.name: getattr(stats, field.name) for field in fields(stats)}


def _endpoint_stats(member: Member) -> events.EndpointStats:
    return events.EndpointStats(
        endpoint=member.endpoint,
        state=member.state,
        in_flight=member.in_flight,
        latency=member.load.latency_now,
        failures=MappingProxyType(dict(member.failures)),
        ejections=member.ejections,
        until=member.until if isfinite(member.until) else None,
        last_error=member.last_error,
        pool=member.pool.facade.stats(),
        since=member.since,
    )


def _sum(name: str, pools: Iterable[events.PoolStats]) -> events.PoolStats:
    """Add up the gauges and counters of several pools."""
    total: dict[str, Any] = {"name": name, "last_error": None}
    pools = tuple(pools)
    for field in fields(events.PoolStats):
        if field.name == "discarded":
            sums = {cause: sum(pool.discarded.get(cause, 0) for pool in pools) for cause in CAUSES}
            total["discarded"] = MappingProxyType(sums)
        elif field.name == "wait_seconds":
            total["wait_seconds"] = sum(pool.wait_seconds // GRAIN for pool in pools) * GRAIN
        elif field.name not in total:
            total[field.name] = sum(getattr(pool, field.name) for pool in pools)
    return events.PoolStats(**total)


class EndpointPool(ConnectionPool[C]):
    """The pool of one endpoint of a cluster: to borrow from just that, and to look at. Its life is the cluster's."""

    def __init__(self, lender: PoolLender) -> None:
        self._lender = lender

    def _new_connection(self) -> NoReturn:
        raise NotImplementedError("the cluster opens the connections of its pools")

    def close(self, timeout: float | None = None) -> bool:
        """Raise :class:`RuntimeError`: the pool belongs to its cluster."""
        raise RuntimeError(f"{self._lender.name} belongs to a cluster; close that")

    def resize(self, size: int, min_size: int | None = None) -> None:
        """Raise :class:`RuntimeError`: the pool belongs to its cluster."""
        raise RuntimeError(f"{self._lender.name} belongs to a cluster; resize that")


class Nobody:
    """The members in the child of a fork before it uses its cluster."""

    def get(self, endpoint: Endpoint) -> None:
        return None

    def __iter__(self) -> Iterator[Member]:
        return iter(())

    def __len__(self) -> int:
        return 0


NOBODY = Nobody()


class Pools(Mapping[Endpoint, EndpointPool[C]]):
    """The pools of a cluster by endpoint, a live view."""

    def __init__(self, lender: ClusterLender) -> None:
        self._lender = lender

    @property
    def _members(self) -> Members | Nobody:
        lender = self._lender
        return NOBODY if lender.engine.is_inherited else lender.members

    def __getitem__(self, endpoint: Endpoint) -> EndpointPool[C]:
        member = self._members.get(endpoint)
        if member is None:
            raise KeyError(endpoint)
        pool: EndpointPool[C] = member.pool.facade
        return pool

    def __iter__(self) -> Iterator[Endpoint]:
        return (member.endpoint for member in self._members)

    def __len__(self) -> int:
        return len(self._members)

    def items(self) -> ItemsView[Endpoint, EndpointPool[C]]:
        """Return what there is now: endpoints may leave while one goes through them."""
        return dict(self._snapshot()).items()

    def values(self) -> ValuesView[EndpointPool[C]]:
        return dict(self._snapshot()).values()

    def _snapshot(self) -> Iterator[tuple[Endpoint, EndpointPool[C]]]:
        return ((member.endpoint, member.pool.facade) for member in self._members)

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{endpoint}: {pool!r}' for endpoint, pool in self.items())}}}"


class ClusterPool(Borrowing[C]):
    """Keeps ``size`` connections to each endpoint of a service, and lends one that is good. Override
    ``_new_connection``.

    ``service``
        a name without a port is looked up as SRV (``_redis._tcp.example.org``); each address of a name with a port
        (``redis.example.org:6379``) is an endpoint; an iterable of ``(host, port)`` or :class:`Endpoint` is a fixed
        set; an object with ``resolve`` is a resolver.
    ``resolver``
        who is asked for ``service``; default: :class:`DNSResolver`.
    ``balancer``
        :class:`PeakEWMA` (the least expected latency), :class:`LeastLoaded`, :class:`RoundRobin`, or any class or
        callable that makes an object with their ``choose``.
    ``outlier``
        when endpoints are ejected, an :class:`OutlierDetection`: for failures in a row, or for failing far more calls
        than the others; None: never.
    ``slow_start``
        seconds in which an endpoint that is new among others, or back, goes from a tenth of its weight to all of it.
    ``subset``
        for fleets: have pools for so many endpoints of each SRV priority, which each process chooses at random and
        keeps; None: for all. While one is ejected, another stands in for it. See "Fleets" in :doc:`where-it-runs`.
    ``drain_timeout``
        seconds that calls to an endpoint which left DNS, or the subset, have to finish; then it is closed under its
        users.

    The other options are those of :class:`ConnectionPool`: ``timeout``, ``max_waiting``, ``fail_after``, ``name``,
    ``on_event`` and ``hold_warning`` are the cluster's, the rest goes for each endpoint's pool; at most 64 connects are
    under way at once. While somebody waits, one connection more is opened to the endpoint that the balancer prefers.

    Raises :class:`ValueError` or :class:`TypeError`, naming parameter and value. Returns before the first look-up or
    connect.
    """

    _lender: ClusterLender

    def __init__(
        self,
        service: str | Resolver | Iterable[Endpoint | tuple[str, int]],
        size: int,
        exc_classes: type[BaseException] | Iterable[type[BaseException]] = DEFAULT_EXC_CLASSES,
        keepalive: float | None = None,
        *,
        resolver: Resolver | None = None,
        balancer: Callable[[], Balancer] = PeakEWMA,
        outlier: OutlierDetection | None = OutlierDetection(),  # noqa: B008  # a frozen value
        subset: int | None = None,
        slow_start: float = 3.0,
        drain_timeout: float = 30.0,
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
            ClusterPool,
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
        resolver, question = _who_to_ask(service, resolver)
        if outlier is not None and not isinstance(outlier, OutlierDetection):
            raise TypeError(f"outlier must be an OutlierDetection or None, not {show(outlier)}")
        plan = Plan(
            resolver,
            question,
            balancer,
            outlier,
            subset=None if subset is None else _check.integer("subset", subset, 1),
            drain_timeout=_check.seconds("drain_timeout", drain_timeout),
            slow_start=_check.seconds("slow_start", slow_start),
        )
        self._lender = ClusterLender(options, plan, self)
        self._lender.start()

    def _new_connection(self, endpoint: Endpoint, /) -> C:
        """Return a new connection to ``endpoint``: any object but None and False; within ``open_timeout`` seconds.

        Whatever it raises is a failed connect, which counts against the endpoint. It is called again later.
        """
        raise NotImplementedError

    @property
    def pools(self) -> Mapping[Endpoint, EndpointPool[C]]:
        """The pool of each endpoint, a live read-only view."""
        return Pools(self._lender)

    def endpoint_of(self, c: C) -> Endpoint:
        """Return the endpoint a connection leads to, as it was at connect; works in hooks, too.

        Raises :class:`ValueError` for an object that is no connection of this cluster.
        """
        queue = self._lender.engine.queue
        slot = queue.open.get(id(c)) or queue.cut.get(id(c)) or self._lender.inherited.get(id(c))
        if slot is None:
            raise ValueError(f"{self._lender.name}: {show(c)} is not a connection of this cluster")
        endpoint: Endpoint = slot.endpoint
        return endpoint

    def wait(self, n: int | None = None, timeout: float | None = None) -> None:
        """Wait until ``n`` connections are open in total.

        Without ``n``: until the service is resolved, every available endpoint has ``min_size``, and there is at least
        one. What that takes is opened. Raises :class:`PoolTimeout` after ``timeout`` seconds (None: never), with the
        last error as its cause; :class:`PoolClosed` if the cluster is closed; :class:`PoolUnavailable` if the service
        turns out to have no endpoints.
        """
        wanted = 1 if n is None else _check.integer("n", n, 0)
        seconds = _check.seconds_or_none("timeout", timeout)
        self._lender.wait(partial(self._lender.is_ready, n), seconds, warm=wanted)

    def stats(self) -> events.ClusterStats:
        """Return how the cluster stands, as a frozen value: totals, each endpoint, discovery. Never switches."""
        return self._lender.stats()

    def explain(self) -> tuple[events.Explanation, ...]:
        """Return, for each endpoint, why a call that came now would go there or not.

        ``print(*pool.explain(), sep="\\n")`` shows it. Those who may serve come first, with :class:`PeakEWMA` in the
        order in which they would be chosen; who is chosen by another balancer, or of more than 32 endpoints, only the
        choice itself shows. What :func:`retry` avoids is not taken into account. Of a pool that is closed, or was made
        before a fork and not used since, there is nothing to tell. Never switches; raises :class:`RuntimeError` in any
        native thread but that of the pool.
        """
        return self._lender.explain()

    @property
    def size(self) -> int:
        """How many connections there are to each endpoint at most."""
        return self._lender.options.size

    def __repr__(self) -> str:
        s = self.stats()
        states = [entry.state for entry in s.endpoints]
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("active", "ejected", "draining"))
        gauges = f"{s.open} open, {s.idle} idle, {s.in_use} in use, {s.waiting} waiting"
        return f"<{type(self).__name__} {s.name!r}: {counts}; {gauges}{', closed' if self.closed else ''}>"


def _open_pool(
    cluster: weakref.ref[Any], options: _Options, engine: Engine, gate: Gate, rng: Random, endpoint: Endpoint
) -> Slots:
    slots = options.make_slots(engine.queue, gate, rng, endpoint)
    slots.facade = EndpointPool(EndpointLender(options, cluster, engine, slots))
    return slots


class EndpointLender(PoolLender):
    """The pool of one endpoint: the engine is its cluster's."""

    def __init__(self, options: _Options, cluster: weakref.ref[Any], engine: Engine, slots: Slots) -> None:
        super().__init__(options, f"{options.name}/{slots.endpoint}", cluster)
        self.slots = slots
        self.begin(engine)

    def take(self, now: float) -> Slot | None:
        slot = super().take(now)
        if slot is not None and self.slots.observer is not None:
            self.slots.observer.changed(now)  # nobody of the cluster has chosen it
        return slot

    def lent(self, connection: object, verb: str) -> Slot | None:
        if self.engine.is_inherited and id(connection) in self.engine.queue.open:
            return None
        return super().lent(connection, verb)

    def begin_here(self) -> None:
        raise PoolClosed(f"{self.name} is of the parent process; take it from pools again")

    def start(self) -> None:
        """The cluster has."""


def _who_to_ask(service: Any, resolver: Any) -> tuple[Resolver, str | None]:
    """Return the resolver, and what to ask it for."""
    if resolver is not None:
        return _given(service, resolver)
    if isinstance(service, str):
        parse_service(service)
        return DNSResolver(), service
    if isinstance(service, DNSResolver):
        raise TypeError(f"service must be a name to look up with resolver={show(service)}")
    if _is_resolver(service):
        return service, None
    if not isinstance(service, Iterable) or isinstance(service, bytes):
        raise TypeError(f"service must be a name, endpoints or a resolver, not {show(service)}")
    return StaticResolver(service), None


def _given(service: Any, resolver: Any) -> tuple[Resolver, str]:
    if not _is_resolver(resolver):
        raise TypeError(f"resolver must have a method resolve, not {show(resolver)}")
    if not isinstance(service, str):
        raise TypeError(f"service must be a name where a resolver is given, not {show(service)}")
    if isinstance(resolver, DNSResolver):
        parse_service(service)
    return resolver, service


def _is_resolver(candidate: Any) -> bool:
    return callable(getattr(candidate, "resolve", None)) and not isinstance(candidate, type)
