"""What ``ClusterPool`` promises its users: scripted resolvers and connections, and sockets where it is about those."""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import inf
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event
from gevent.queue import Queue

from geventconnpool import ClusterPool, Endpoint, PoolClosed, PoolTimeout, PoolUnavailable, events, retry
from geventconnpool._log import LogWriter
from geventconnpool.cluster import DNSResolver, LeastLoaded, OutlierDetection, Resolution, RoundRobin, StaticResolver
from geventconnpool.cluster._members import Member
from geventconnpool.cluster._refresh import Refresh
from geventconnpool.testing import DNSServer
from tests.servers import wait_until

A, B, C = (Endpoint(f"{name}.test", 1, (f"10.0.0.{number}",)) for number, name in enumerate("abc", 1))
QUICK = OutlierDetection(consecutive_failures=2, base_ejection_time=0.05, jitter=0)
SLOW = OutlierDetection(consecutive_failures=2, base_ejection_time=30, jitter=0)
SERVICE = "_redis._tcp.example.test"

# -- what the tests set up ---------------------------------------------------------------------------------------------


class Connection:
    """Remembers where it leads, and how it ended: "closed", "aborted", or None while it is open."""

    ended: str | None = None

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint


class Cluster(ClusterPool[Any]):
    """Connections to the endpoints in ``dead`` cannot be opened or used; ``connect`` is called before each is opened.

    ``attempts`` are the endpoints that were to be connected, ``made`` the connections, ``heard`` the events.
    """

    alive: list[Cluster] = []

    def __init__(self, service: Any = (A, B), size: int = 1, *args: Any, **options: Any) -> None:
        self.dead: set[Endpoint] = set(options.pop("dead", ()))
        self.connect = options.pop("connect", lambda endpoint: None)
        self.attempts: list[Endpoint] = []
        self.made: list[Connection] = []
        self.heard: list[Any] = []
        Cluster.alive.append(self)
        super().__init__(service, size, *args, **{"on_event": self.heard.append, **options})

    def _new_connection(self, endpoint):
        self.attempts.append(endpoint)
        self.connect(endpoint)
        if endpoint in self.dead:
            raise OSError(f"{endpoint} refused")
        self.made.append(Connection(endpoint))
        return self.made[-1]

    def _close_connection(self, c):
        assert c.ended is None
        c.ended = "closed"

    def _abort_connection(self, c):
        assert c.ended is None
        c.ended = "aborted"

    def call(self, timeout=30.0, to=None):
        """Use a connection, and return where it leads."""
        with (self if to is None else self.pools[to]).get(timeout) as c:
            if c.endpoint in self.dead:
                raise OSError(f"{c.endpoint} hung up")
            return c.endpoint

    def entry(self, endpoint):
        return next(entry for entry in self.stats().endpoints if entry.endpoint == endpoint)

    def state(self, endpoint):
        return {entry.endpoint: entry.state for entry in self.stats().endpoints}.get(endpoint)

    def becomes(self, endpoint, state):
        wait_until(lambda: self.state(endpoint) == state, what=f"{endpoint} {state}")

    def kinds(self, *kinds):
        return [event for event in self.heard if isinstance(event, kinds)]


class Kept(Cluster):
    """Keepalives to the endpoints in ``dead`` and ``mute`` fail."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.mute: set[Endpoint] = set()
        self.kept: list[Connection] = []
        super().__init__(*args, **options)

    def _keepalive(self, c):
        self.kept.append(c)
        if c.endpoint in self.dead | self.mute:
            raise OSError("no answer to keepalive")


class Names:
    """A resolver that hangs until it is told an answer; each holds until the next."""

    min_refresh = 0.001

    def __init__(self, *first: Any) -> None:
        self._answers: Any = Queue()
        if first:
            self.tell(*first)

    def tell(self, *endpoints: Endpoint) -> None:
        self._answers.put(Resolution(endpoints, ttl=0))

    def resolve(self, service):
        return self._answers.get()


class Asked:
    """A resolver that gives the answer of the moment (exceptions are raised, functions called) and notes each time."""

    def __init__(self, answer: Any, **attributes: float) -> None:
        self.answer = answer
        self.times: list[float] = []
        self.services: list[str | None] = []
        vars(self).update(attributes)

    def resolve(self, service):
        self.times.append(monotonic())
        self.services.append(service)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer() if callable(self.answer) else self.answer


class Sockets(ClusterPool[Any]):
    def _new_connection(self, endpoint):
        return endpoint.connect(timeout=2)


@pytest.fixture(autouse=True)
def hub_errors(monkeypatch):
    """The kinds of the errors that reached the hub's error handler; a test that expects some clears the list."""
    kinds: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, tb: kinds.append(kind))
    yield kinds
    assert kinds == []


@pytest.fixture(autouse=True)
def nothing_is_left_open(hub_errors):
    """After each test its clusters are closed; then every connection that was ever opened is closed, once."""
    Cluster.alive.clear()
    yield
    for pool in Cluster.alive:
        if hasattr(pool, "closed"):
            pool.close(0)
            wait_until(partial(is_over, pool), what=f"the end of {pool}")
            assert all(c.ended for c in pool.made)


def is_over(pool):
    s = pool.stats()
    return (s.closed, s.open, s.connecting, s.waiting) == (s.opened, 0, 0, 0)


@pytest.fixture
def blocked(nothing_is_left_open):
    """An event to hang on, set when the test is over."""
    event = Event()
    yield event
    event.set()


def ready(pool):
    pool.wait(timeout=30)
    return pool


def make(*endpoints: Any, size: int = 1, kind: Any = Cluster, **options: Any) -> Any:
    """Return a full static cluster."""
    return ready(kind(endpoints or (A, B), size, **options))


def fail(pool, endpoint, times=2):
    """Let calls to an endpoint fail."""
    for _ in range(times):
        with pytest.raises(OSError, match="mine"):
            with pool.pools[endpoint].get(timeout=5):
                raise OSError("mine")


def eject(pool, *endpoints):
    for endpoint in endpoints:
        fail(pool, endpoint)
        assert pool.state(endpoint) == "ejected"
        pool.dead.add(endpoint)  # so its probes fail


def outcome(job):
    """Return what the job returns or raises."""
    try:
        return job()
    except Exception as error:
        return error


def in_line(pool, *jobs):
    """Start greenlets that wait for a connection in this order; their values are the outcomes."""
    started = []
    for job in jobs:
        before = pool.stats().waiting
        started.append(gevent.spawn(outcome, job))
        wait_until(lambda before=before: pool.stats().waiting == before + 1, what="one more waiting")
    return started


def greenlets() -> set[Any]:
    return {g for g in gc.get_objects() if isinstance(g, Greenlet) and not g.dead}


# -- what can be given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "endpoints"),
    [
        ([("127.0.0.1", 1), ("db.example.test", 2)], [Endpoint("127.0.0.1", 1), Endpoint("db.example.test", 2)]),
        ((e for e in (A, B)), [A, B]),
        ({A: "keys count"}, [A]),
        (StaticResolver([A, ("B.test.", 1)]), [A, B]),
        (Asked(Resolution((A, C))), [A, C]),
        ("127.0.0.1:6379", [Endpoint("127.0.0.1", 6379)]),
        ("[::1]:6379", [Endpoint("::1", 6379)]),
    ],
)
def test_a_service_is_a_static_set_a_resolver_or_an_address_with_a_port(service, endpoints):
    assert list(ready(Cluster(service)).pools) == endpoints


def test_host_names_of_a_static_set_are_looked_up_from_the_first_moment():
    with DNSServer() as dns:
        dns.add_address("one.example.test", "127.0.0.3")
        resolver = StaticResolver([("one.example.test", 7)], resolver=DNSResolver([dns.address], min_refresh=60))
        pool = Cluster(resolver)
        wait_until(lambda: [endpoint.addresses for endpoint in pool.pools] == [("127.0.0.3",)])
        wait_until(lambda: pool.stats().discovery.generation == 2)


def test_a_name_is_looked_up_as_srv_and_with_a_port_each_of_its_addresses_is_an_endpoint():
    with DNSServer() as dns:
        dns.add_srv(SERVICE, "one.example.test", 7, weight=3)
        for ip in "127.0.0.1", "127.0.0.2":
            dns.add_address("one.example.test", ip)
        resolver = DNSResolver([dns.address])
        (one,) = ready(Cluster(SERVICE, resolver=resolver)).pools
        two = ready(Cluster("one.example.test:8", resolver=resolver)).pools

        assert (one.name, one.port, one.weight, one.domain) == ("one.example.test", 7, 3, "example.test")
        assert one.addresses == ("127.0.0.1", "127.0.0.2")
        assert set(two) == {Endpoint("127.0.0.1", 8), Endpoint("127.0.0.2", 8)}


def test_a_resolver_given_as_such_is_asked_for_the_service_and_one_given_as_service_for_none():
    first, second = Asked(Resolution((A,))), Asked(Resolution((A,)))
    ready(Cluster("whatever it knows!", resolver=first))
    ready(Cluster(second))

    assert (first.services, second.services) == (["whatever it knows!"], [None])


class NoChoice:
    pass


@pytest.mark.parametrize(
    ("service", "options", "kind", "message"),
    [
        ("_redis._tcp.example.test:6379", {}, ValueError, "service '_redis._tcp.example.test:6379'.*SRV"),
        ("", {}, ValueError, "service ''"),
        ("not a name", {}, ValueError, "service 'not a name'"),
        ("example.test:0", {}, ValueError, "service 'example.test:0'.*port"),
        ("example.test:65536", {}, ValueError, "service 'example.test:65536'.*port"),
        ("example.test:", {}, ValueError, "service 'example.test:'.*port"),
        ("127.0.0.1", {}, ValueError, "service '127.0.0.1'.*port"),
        (b"example.test", {}, TypeError, "service .*b'example.test'"),
        (None, {}, TypeError, "service .*None"),
        (6379, {}, TypeError, "service .*6379"),
        (NoChoice(), {}, TypeError, "service .*NoChoice"),
        ([], {}, ValueError, "endpoints"),
        ([("a.test", 1), A], {}, ValueError, "a.test:1"),
        (["a.test:1"], {}, TypeError, "'a.test:1'"),
        ([("a.test", "1")], {}, TypeError, "port.*'1'"),
        ([("a b", 1)], {}, ValueError, "'a b'"),
        ([A], {"resolver": Asked(None)}, TypeError, "service .*a.test"),
        (None, {"resolver": Asked(None)}, TypeError, "service .*None"),
        (DNSResolver(["127.0.0.1"]), {}, TypeError, "service"),
        (Asked, {}, TypeError, "service"),
        ("a b", {"resolver": DNSResolver(["127.0.0.1"])}, ValueError, "service 'a b'"),
        ("a.test", {"resolver": NoChoice()}, TypeError, "resolver .*NoChoice"),
        ("a.test", {"resolver": "127.0.0.1"}, TypeError, "resolver .*'127.0.0.1'"),
        (Asked(None, min_refresh=-1), {}, ValueError, "min_refresh.*-1"),
        (Asked(None, max_refresh="5"), {}, TypeError, "max_refresh.*'5'"),  # type: ignore[arg-type]
        ([A], {"size": 0}, ValueError, "size.*0"),
        ([A], {"size": 1.5}, TypeError, "size.*1.5"),
        ([A], {"exc_classes": (OSError, 3)}, TypeError, "exc_classes.*3"),
        ([A], {"keepalive": 3}, TypeError, "keepalive=3.*_keepalive"),
        ([A], {"keepalive": -3}, ValueError, "keepalive.*-3"),
        ([A], {"drain_timeout": -1}, ValueError, "drain_timeout.*-1"),
        ([A], {"drain_timeout": None}, TypeError, "drain_timeout.*None"),
        ([A], {"timeout": -1}, ValueError, "timeout.*-1"),
        ([A], {"open_timeout": 0}, ValueError, "open_timeout.*0"),
        ([A], {"keepalive_timeout": -1}, ValueError, "keepalive_timeout.*-1"),
        ([A], {"max_connecting": 0}, ValueError, "max_connecting.*0"),
        ([A], {"name": 5}, TypeError, "name.*5"),
        ([A], {"on_event": 5}, TypeError, "on_event.*5"),
        ([A], {"balancer": LeastLoaded()}, TypeError, "balancer.*LeastLoaded"),
        ([A], {"balancer": NoChoice}, TypeError, "balancer.*choose.*NoChoice"),
        ([A], {"outlier": 5}, TypeError, "outlier.*5"),
        ([A], {"outlier": OutlierDetection}, TypeError, "outlier.*OutlierDetection"),
        *(([A], {name: 1}, TypeError, name) for name in ("colour",)),
        ([A], {"slow_start": -1}, ValueError, "slow_start.*-1"),
        ([A], {"slow_start": None}, TypeError, "slow_start.*None"),
    ],
)
def test_bad_input_is_refused_at_once_with_its_name_and_value_and_nothing_runs(service, options, kind, message):
    before = greenlets()
    with pytest.raises(kind, match=message):
        Cluster(service, **{"size": 1, **options})

    assert greenlets() - before == set()


def test_a_cluster_without_new_connection_cannot_be_made():
    class Bare(ClusterPool[Any]):
        pass

    with pytest.raises(TypeError, match="Bare must override _new_connection"):
        Bare([A], 1)


def test_a_hook_that_leaves_it_to_the_base_class_opens_nothing_and_the_error_says_so():
    class Lazy(Cluster):
        def _new_connection(self, endpoint):
            return ClusterPool._new_connection(self, endpoint)

    pool = Lazy([A])
    with pytest.raises(PoolTimeout, match=r"NotImplementedError") as caught:
        pool.acquire(timeout=0.01)

    assert isinstance(caught.value.__cause__, NotImplementedError)


@pytest.mark.parametrize("service", [[A], Asked(Resolution((A,)))])
def test_the_constructor_returns_before_the_first_look_up_and_connect(service):
    pool = Cluster(service)

    assert pool.attempts == getattr(service, "times", []) == []
    assert ready(pool).attempts == [A]


# -- endpoints and their pools -----------------------------------------------------------------------------------------


def test_the_hook_gets_the_endpoint_as_it_is_at_connect_and_endpoint_of_tells_what_it_was():
    old, new = Endpoint("a.test", 1, ("10.0.0.1",)), Endpoint("a.test", 1, ("10.0.0.1",), weight=7)
    names = Names(old)
    pool = ready(Cluster(names))
    c = pool.acquire()
    names.tell(new)
    wait_until(lambda: pool.kinds(events.EndpointUpdated))
    weights = [pool.endpoint_of(c).weight, *(e.weight for e in pool.pools), pool.entry(old).endpoint.weight]
    pool.discard(c)
    with pool.get(timeout=5) as c:
        weights.append(pool.endpoint_of(c).weight)

    assert weights == [1, 7, 7, 7]
    assert [endpoint.weight for endpoint in pool.attempts] == [1, 7]


def test_endpoint_of_works_in_hooks():
    class Curious(Kept):
        def _note(self, hook, c):
            self.places.setdefault(hook, set()).add(self.endpoint_of(c) == c.endpoint)

        def _keepalive(self, c):
            self._note("keepalive", c)

        def _is_reusable(self, c):
            self._note("reusable", c)
            return False

        def _close_connection(self, c):
            self._note("close", c)
            super()._close_connection(c)

        def _abort_connection(self, c):
            self._note("abort", c)
            super()._abort_connection(c)

    Curious.places = {}
    pool = ready(Curious([A], keepalive=0.01))
    wait_until(lambda: pool.places)
    pool.call()
    ready(pool)
    pool.close(5)

    assert pool.places == {hook: {True} for hook in ("keepalive", "reusable", "abort", "close")}


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("stranger", [None, object(), Connection(A), Unprintable(), "gone"])
def test_endpoint_of_a_foreign_object_is_a_value_error(stranger):
    pool = make(A)
    if stranger == "gone":
        stranger = pool.acquire()
        pool.discard(stranger)
        wait_until(lambda: stranger.ended)
    with pytest.raises(ValueError, match="not a connection of this cluster"):
        pool.endpoint_of(stranger)


def test_pools_is_a_live_read_only_mapping_by_endpoint():
    names = Names(A)
    pool = ready(Cluster(names))
    pools = pool.pools
    before = pools[A]
    names.tell(A, B)
    wait_until(lambda: len(pools) == 2)

    assert isinstance(pools, Mapping)
    assert (list(pools), B in pools, C in pools) == ([A, B], True, False)
    assert pools[A] is before
    assert pools.get(C) is None
    with pytest.raises(KeyError):
        pools[C]
    with pytest.raises(TypeError):
        pools[C] = before
    with pytest.raises(TypeError):
        del pools[A]


def test_pools_may_be_gone_through_while_endpoints_leave():
    names = Names(A, B, C)
    pool = ready(Cluster(names))
    seen = []
    for item in pool.pools.items():
        seen.append(item[0])
        names.tell(A)
        wait_until(lambda: len(pool.pools) == 1)

    assert seen[0] == A


def test_the_pool_of_one_endpoint_lends_and_tells_but_is_closed_with_its_cluster():
    pool = make(size=2)
    one = pool.pools[B]
    with one.get() as c:
        in_use = one.stats().in_use, pool.entry(A).in_flight, pool.entry(B).in_flight
    with pytest.raises(RuntimeError, match="cluster"):
        one.close()
    with pytest.raises(ValueError, match="not a connection of this pool"):
        one.release(other := pool.pools[A].acquire())
    pool.release(other)
    pool.release(one.acquire())

    assert c.endpoint == B
    assert in_use == (1, 0, 1)
    assert (one.size, one.closed, one.stats().idle, one.stats().gets) == (2, False, 2, 2)
    pool.close()
    assert one.closed
    with pytest.raises(PoolClosed):
        one.acquire()


def test_the_pool_of_one_endpoint_opens_nothing_by_itself():
    pool = make(A)
    with pytest.raises(NotImplementedError, match="the cluster opens the connections of its pools"):
        pool.pools[A]._new_connection()

    assert pool.attempts == [A]


def test_what_the_parent_of_a_fork_lent_is_given_back_to_the_pool_of_an_endpoint_without_effect(monkeypatch):
    pool = make(A)
    one = pool.pools[A]
    c = one.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(pool._lender.engine, "stamp", -1)  # as if this were its child
        one.release(c)
        one.discard(c)
    in_use = pool.stats().in_use
    one.release(c)

    assert (in_use, pool.stats().idle) == (1, 1)
    assert c.ended is None


def test_gets_of_one_endpoint_and_of_the_cluster_stand_in_one_queue():
    pool = make(A)
    c = pool.acquire()
    served = []
    jobs = [lambda to=to, n=n: served.append((n, pool.call(to=to))) for n, to in enumerate([None, A, None, A, A, None])]
    waiting = in_line(pool, *jobs)
    counts = pool.stats().waiting, pool.pools[A].stats().waiting
    pool.release(c)
    gevent.joinall(waiting, 30, raise_error=True)

    assert [n for n, _ in served] == [0, 1, 2, 3, 4, 5]
    assert counts == (6, 3)


def test_a_returned_connection_passes_by_who_waits_for_another_endpoint():
    pool = make()
    a, b = pool.pools[A].acquire(), pool.pools[B].acquire()
    wants_a, wants_any = in_line(pool, partial(pool.call, to=A), pool.call)
    pool.release(b)
    place = wants_any.get(timeout=5)
    waits = not wants_a.ready()
    pool.release(a)

    assert (place, waits, wants_a.get(timeout=5)) == (B, True, A)


@pytest.mark.parametrize("end", ["closed", "removed"])
def test_who_waits_for_the_pool_of_one_endpoint_is_told_of_its_end(end, blocked):
    names = Names(A, B)
    pool = Cluster(names, connect=lambda endpoint: blocked.wait())
    wait_until(lambda: A in pool.pools)
    one = pool.pools[A]
    waiting = [gevent.spawn(outcome, job) for job in (one.wait, one.acquire)]
    gevent.idle()
    names.tell(B) if end == "removed" else pool.close(0)
    gevent.joinall(waiting, 30)

    assert [type(greenlet.value) for greenlet in waiting] == [PoolClosed, PoolClosed]


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_wait_is_for_every_available_endpoint_and_wait_n_for_connections_in_total(blocked):
    pool = Cluster([A, B], 2, connect=lambda endpoint: endpoint == B and blocked.wait())
    pool.wait(2, timeout=5)
    for n in None, 3:
        with pytest.raises(PoolTimeout, match="not ready within"):
            pool.wait(n, timeout=0.02)
    blocked.set()
    pool.wait(timeout=5)

    assert pool.stats().open == 4
    with pytest.raises(ValueError, match="n must be at least 0, not -1"):
        pool.wait(-1)


def test_wait_does_not_wait_for_what_is_ejected():
    pool = make(outlier=SLOW)
    eject(pool, A)
    pool.wait(timeout=30)

    assert pool.stats().open == 1


def test_while_dns_fails_a_get_waits_for_its_timeout_and_the_error_names_the_failure():
    with DNSServer() as dns:
        dns.fault = "servfail"
        pool = Cluster(SERVICE, resolver=DNSResolver([dns.address]))
        wait_until(lambda: pool.stats().discovery.last_error is not None, what="the failure")
        began = monotonic()
        with pytest.raises(PoolTimeout, match=f"{SERVICE}.*SERVFAIL") as caught:
            pool.call(0.3)

        assert monotonic() - began >= 0.3
        assert str(caught.value.__cause__) in str(caught.value)
        assert pool.stats().discovery.state == "starting"
        dns.fault = None
        dns.add_srv(SERVICE, "one.example.test", 7)
        dns.add_address("one.example.test", "127.0.0.1")
        assert pool.call().name == "one.example.test"


@pytest.mark.parametrize("known", [True, False])
def test_a_service_without_endpoints_is_unavailable_at_once_also_for_who_waits(known):
    names = Names(*([A] if known else []))
    pool = Cluster(names)
    c = pool.acquire(5) if known else None
    waiting = in_line(pool, pool.call, pool.call, *([pool.pools[A].acquire] if known else []))
    names.tell()
    gevent.joinall(waiting, 30)
    with pytest.raises(PoolUnavailable, match="the service has no endpoints: 0 endpoints"):
        pool.call(None)

    assert {type(greenlet.value) for greenlet in waiting} == {PoolUnavailable}
    assert pool.stats().discovery.state == "unavailable"
    if known:
        pool.release(c)
    names.tell(B)
    wait_until(lambda: B in pool.pools)
    assert pool.call() == B


def test_when_none_serves_the_error_lists_each_endpoint_with_its_last_failure_and_when_it_is_tried_next():
    pool = make(Endpoint("a.test", 1, priority=0), Endpoint("b.test", 1, priority=1), C, outlier=SLOW)
    eject(pool, A, C)
    fail(pool, B)  # the last one stays
    pool.dead.add(B)
    with pytest.raises(PoolTimeout) as caught:
        pool.call(0.2)
    text = str(caught.value)

    for endpoint in A, C:
        assert re.search(rf"{endpoint} ejected[^;]*last failure OSError\([^;]*next probe in \d+\.\d s", text), text
    assert re.search(rf"{B} active[^;]*last failure OSError\([^;]*, (next connect in \d\.\d s|connecting)", text), text
    assert isinstance(caught.value.__cause__, OSError)


def test_the_error_tells_of_a_connect_that_is_under_way():
    goes_on = Event()
    pool = Cluster([A], dead=[A], connect=lambda _endpoint: pool.stats().open_errors and goes_on.wait())
    wait_until(lambda: pool.stats().open_errors and pool.stats().connecting)
    with pytest.raises(PoolTimeout, match=rf"{A} active[^;]*, last failure OSError\([^;]*, connecting now"):
        pool.acquire(timeout=0)
    goes_on.set()


def test_of_very_many_endpoints_the_error_lists_twenty_and_counts_the_rest():
    endpoints = many(23)
    pool = Cluster(endpoints, dead=endpoints)
    with pytest.raises(PoolTimeout) as caught:
        pool.call(0.01)
    text = str(caught.value)

    assert text.count(".test:1 active") == 20
    assert text.endswith("; and 3 more)")


def test_before_the_first_answer_the_error_says_that_there_is_none_yet():
    pool = Cluster(Names())
    with pytest.raises(PoolTimeout, match=r"waiting 0; discovery has not answered yet\)$") as caught:
        pool.call(0.01)

    assert caught.value.__cause__ is None


def test_the_last_error_of_a_cluster_is_that_of_its_latest_failed_connect():
    pool = make(outlier=None)
    for endpoint in A, B, A, B:
        pool.dead = {endpoint}
        with pytest.raises(OSError, match="mine"):
            with pool.pools[endpoint].get(timeout=5):
                raise OSError("mine")
        wait_until(lambda: pool.stats().last_error is not None)
        wait_until(lambda: str(pool.stats().last_error) == f"{endpoint} refused")  # noqa: B023
        pool.dead = set()
        ready(pool)


# -- ejection and return -----------------------------------------------------------------------------------------------


def test_five_failed_calls_in_a_row_eject_an_endpoint():
    pool = make(size=2, outlier=OutlierDetection(base_ejection_time=30))
    states = []
    for _ in range(5):
        states.append(pool.state(A))
        fail(pool, A, 1)

    assert states == ["active"] * 5
    assert pool.state(A) == "ejected"
    assert {pool.call() for _ in range(20)} == {B}
    assert [(e.endpoint, e.kind, str(e.error)) for e in ejections(pool)] == [(A, "calls", "mine")]


def ejections(pool):
    return wait_until(lambda: pool.kinds(events.EndpointEjected))


def test_failed_connects_eject_an_endpoint():
    pool = Cluster([A, B], dead={A}, outlier=SLOW)
    pool.becomes(A, "ejected")
    tried = pool.attempts.count(A)

    assert [(e.endpoint, e.kind) for e in ejections(pool)] == [(A, "connects")]
    assert (tried, pool.call(), pool.entry(A).ejections) == (2, B, 1)


def test_a_connection_by_which_an_endpoint_is_probed_is_none_to_wait_for():
    class Slow(Kept):
        probed = False

        def _keepalive(self, c):
            if c.endpoint == A:
                self.probed = True
                gevent.sleep(60)

    pool = make(kind=Slow, keepalive=60, keepalive_timeout=1, outlier=QUICK)
    fail(pool, A)
    wait_until(lambda: pool.probed)

    assert (pool.state(A), pool.entry(A).pool.open) == ("ejected", 1)
    with pytest.raises(PoolTimeout):
        pool.wait(2, timeout=0.05)


def test_failed_keepalives_eject_an_endpoint_although_it_accepts_connections():
    pool = make(kind=Kept, keepalive=0.02, outlier=SLOW)
    pool.mute.add(A)
    pool.becomes(A, "ejected")

    assert [(e.endpoint, e.kind) for e in ejections(pool)] == [(A, "keepalives")]
    wait_until(lambda: pool.entry(A).pool.open == 0)
    assert pool.entry(A).pool.discarded["keepalive"] == 2


def test_borrowed_connections_of_an_ejected_endpoint_are_closed_at_their_return_and_idle_ones_now():
    pool = make(size=3, outlier=SLOW)
    held = pool.pools[A].acquire()
    fail(pool, A)
    wait_until(lambda: [c for c in pool.made if c.endpoint == A and not c.ended] == [held])
    pool.release(held)
    wait_until(lambda: held.ended)

    assert pool.entry(A).pool.open == pool.entry(A).in_flight == 0


def test_an_ejected_endpoint_is_probed_off_the_users_path_and_readmitted_and_refilled():
    pool = make(size=3, kind=Kept, outlier=QUICK)
    pool.mute.add(A)
    fail(pool, A)
    tried = pool.attempts.count(A)
    wait_until(lambda: pool.kinds(events.ProbeFailed))
    assert [pool.call() for _ in range(20)] == [B] * 20
    pool.mute.clear()
    pool.becomes(A, "active")
    ready(pool)

    failed = pool.kinds(events.ProbeFailed)
    assert 0.5 <= failed[0].seconds <= 1.0
    assert [c.endpoint for c in pool.kept] == [A] * (len(failed) + 1)  # each time it opened, then its keepalive failed
    assert pool.attempts.count(A) - tried == len(failed) + 3
    assert pool.entry(A).pool.idle == 3
    assert A in {pool.call() for _ in range(40)}


def test_if_none_is_available_all_are_probed_at_once_and_who_waits_is_served():
    one, two = Endpoint("a.test", 1, priority=0), Endpoint("b.test", 1, priority=1)
    names = Names(one, two)
    pool = ready(Cluster(names, outlier=SLOW))
    eject(pool, A)
    waiting = []
    with pool.get() as c:
        waiting += in_line(pool, pool.call)
        pool.dead.clear()
        names.tell(one)
        gevent.joinall(waiting, 30)

    assert c.endpoint == B
    assert waiting[0].value == A
    assert pool.state(A) == "active"


def test_a_hook_that_fails_in_a_probe_with_anything_is_a_failed_probe(hub_errors):
    pool = make(outlier=QUICK)
    fail(pool, A)
    failures = [KeyboardInterrupt()]

    def connect(endpoint):
        if failures:
            raise failures.pop(0)

    pool.connect = connect
    pool.becomes(A, "active")

    assert [type(e.error) for e in pool.kinds(events.ProbeFailed)] == [KeyboardInterrupt]
    assert hub_errors == [KeyboardInterrupt]
    hub_errors.clear()


# -- draining ----------------------------------------------------------------------------------------------------------


def test_a_removed_endpoint_gets_no_new_calls_and_those_under_way_finish():
    names = Names(A, B)
    pool = ready(Cluster(names, 2))
    held = pool.pools[A].acquire()
    names.tell(B)
    pool.becomes(A, "draining")
    until = pool.entry(A).until - monotonic()
    wait_until(lambda: pool.entry(A).pool.open == 1)
    places = {pool.call() for _ in range(20)}
    untouched = held.ended
    pool.release(held)
    wait_until(lambda: pool.state(A) is None)

    assert (places, untouched, held.ended) == ({B}, None, "closed")
    assert 25 < until <= 30
    assert [e.forced for e in wait_until(lambda: pool.kinds(events.EndpointDrained))] == [False]


@pytest.mark.parametrize("ending", ["block", "failed block", "release", "discard", "discard in block"])
def test_drain_timeout_cuts_calls_and_returning_what_was_cut_is_silent(ending):
    names = Names(A, B)
    pool = ready(Cluster(names, drain_timeout=0.02))
    lease = pool.pools[A].get()
    held = lease.__enter__() if "block" in ending else pool.pools[A].acquire()
    names.tell(B)
    wait_until(lambda: held.ended)
    wait_until(lambda: pool.state(A) is None)
    before = pool.stats()
    error = OSError("cut") if ending == "failed block" else None
    if ending == "discard in block":
        pool.discard(held)
    if "block" in ending:
        lease.__exit__(error and OSError, error, None)
    else:
        getattr(pool, ending)(held)

    assert held.ended == "aborted"
    assert pool.stats() == before
    assert (before.open, before.in_use, before.closed, before.discarded["user"]) == (1, 0, 1, 0)
    with pytest.raises(ValueError, match="not a connection"):
        pool.release(held)


def test_a_cut_call_sees_an_error_of_its_socket(tcp_server):
    endpoint = Endpoint(*tcp_server.address)
    names = Names(endpoint)
    pool = Sockets(names, 1, drain_timeout=0.02)
    with pytest.raises(OSError):  # noqa: PT011  # which of the errors of a closed socket is the system's choice
        with pool.get(timeout=5) as c:
            names.tell()
            c.recv(1)
    pool.close(0)


def test_an_endpoint_that_is_back_while_it_drains_keeps_its_pool_and_its_history():
    names = Names(A, B)
    pool = ready(Cluster(names, 2))
    one = pool.pools[A]
    fail(pool, A, 2)
    ready(pool)
    held = pool.pools[A].acquire()
    names.tell(B)
    pool.becomes(A, "draining")
    names.tell(B, A)
    pool.becomes(A, "active")
    ready(pool)
    pool.release(held)

    assert pool.pools[A] is one
    assert (held.ended, one.stats().idle, one.stats().gets, one.stats().discarded["error"]) == (None, 2, 3, 2)
    assert pool.entry(A).until is None


class Telling(Connection):
    peer: Any = None

    def getpeername(self):
        return self.peer


class Peered(Cluster):
    """Connections tell their peer: ``peer`` at the time of their connect."""

    peer: Any = ("10.0.0.1", 1)

    def _new_connection(self, endpoint):
        super()._new_connection(endpoint)
        if self.peer is not None:
            self.made[-1] = Telling(endpoint)
            self.made[-1].peer = self.peer
        return self.made[-1]


def at(*addresses, **fields):
    return Endpoint("a.test", 1, addresses, **fields)


@pytest.mark.parametrize(
    ("before", "peer", "after", "stays"),
    [
        (at("10.0.0.1", "10.0.0.2"), ("10.0.0.1", 1), at("10.0.0.2"), False),
        (at("10.0.0.1", "10.0.0.2"), ("10.0.0.2", 1), at("10.0.0.2"), True),
        (at("10.0.0.1"), ("10.0.0.1", 1), at("10.0.0.1", "10.0.0.3"), True),
        (at("10.0.0.1"), ("10.0.0.1", 1), at("10.0.0.1", weight=5), True),
        (at("10.0.0.1", "10.0.0.2"), None, at("10.0.0.2"), False),
        (at("10.0.0.1", "10.0.0.2"), None, at("10.0.0.1"), True),
        (at("10.0.0.1"), ("192.0.2.9", 3128), at("10.0.0.1", weight=5), True),  # through a proxy
        (at("10.0.0.1", "10.0.0.2"), ("192.0.2.9", 3128), at("10.0.0.2"), True),
        (at("10.0.0.1", "10.0.0.2"), "/run/proxy.sock", at("10.0.0.1"), True),
    ],
)
def test_connections_to_an_address_that_left_are_retired_and_no_others(before, peer, after, stays):
    names = Names(before)
    pool = Peered(names, 2)
    pool.peer = peer
    ready(pool)
    idle, held = pool.made
    assert pool.acquire() is idle
    idle, held = held, idle
    if not stays:
        pool.peer = (after.host, 1)
    names.tell(after)
    wait_until(lambda: pool.kinds(events.EndpointUpdated))
    assert held.ended is None
    pool.release(held)
    ready(pool)
    gevent.sleep(0.02)

    assert (idle.ended, held.ended) == ((None, None) if stays else ("closed", "closed"))
    assert len(pool.made) == (2 if stays else 4)
    assert pool.stats().idle == 2


def test_connecting_to_an_address_that_left_is_no_endless_loop():
    names = Names(at("10.0.0.1", "10.0.0.2"))
    pool = ready(Peered(names, connect=lambda endpoint: gevent.sleep(0)))
    names.tell(at("10.0.0.2"))
    wait_until(lambda: pool.kinds(events.EndpointUpdated))
    gevent.sleep(0.1)

    assert len(pool.made) < 10


def test_the_peer_of_a_client_object_is_that_of_its_descriptor(tcp_server):
    class Client:
        def __init__(self, endpoint):
            self.sock = endpoint.connect(timeout=2)

        def fileno(self):
            return self.sock.fileno()

        def close(self):
            self.sock.close()

    class Clients(ClusterPool[Any]):
        def _new_connection(self, endpoint):
            return Client(endpoint)

    port = tcp_server.address[1]
    names = Names(Endpoint("a.test", port, ("127.0.0.0", "127.0.0.1")))  # nobody can listen on the first
    with Clients(names, 1) as pool:
        pool.wait(timeout=5)
        c = pool.acquire()
        pool.release(c)
        names.tell(Endpoint("a.test", port, ("127.0.0.1",)))
        wait_until(lambda: [len(e.addresses) for e in pool.pools] == [1])
        gevent.sleep(0.02)

        assert pool.stats().closed == 0


def test_with_a_default_timeout_too_a_client_object_is_asked_where_it_leads_and_stays_as_blocking_as_it_was(tcp_server):
    class Client:
        def __init__(self, endpoint):
            self.sock = endpoint.connect(timeout=2)
            os.set_blocking(self.sock.fileno(), True)

        def fileno(self):
            return self.sock.fileno()

        def close(self):
            self.sock.close()

    class Clients(ClusterPool[Any]):
        def _new_connection(self, endpoint):
            return Client(endpoint)

    port = tcp_server.address[1]
    names = Names(Endpoint("a.test", port, ("127.0.0.0", "127.0.0.1")))  # nobody can listen on the first
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)
    try:
        with Clients(names, 1) as pool:
            pool.wait(timeout=5)
            with pool.get() as c:
                assert os.get_blocking(c.fileno())
            names.tell(Endpoint("a.test", port, ("127.0.0.1",)))
            wait_until(lambda: [len(e.addresses) for e in pool.pools] == [1])
            assert (pool.stats().idle, pool.stats().closed) == (1, 0)

            names.tell(Endpoint("a.test", port, ("127.0.0.0",)))
            wait_until(lambda: pool.stats().closed)
    finally:
        socket.setdefaulttimeout(before)


# -- retried calls -----------------------------------------------------------------------------------------------------


def test_what_is_borrowed_from_just_one_endpoint_is_load_for_calls_to_any():
    def go_elsewhere():
        pool = make(size=2)
        found = []
        for endpoint in [A] * 5 + [B] * 5:
            with pool.pools[endpoint].get(), pool.get() as c:
                found.append(pool.endpoint_of(c))
        pool.close()
        return found == [B] * 5 + [A] * 5

    assert any(go_elsewhere() for _ in range(10))  # where the machine pauses in a call, that endpoint looks slow


def test_with_two_endpoints_one_dead_one_retry_is_always_enough():
    pool = make(size=2, outlier=None, balancer=RoundRobin)
    failed = []

    @retry(max_failures=1)
    def call():
        with pool.get(timeout=5) as c:
            if c.endpoint == A:
                failed.append(A)
                raise OSError("mine")
            return c.endpoint

    assert {call() for _ in range(200)} == {B}
    wait_until(lambda: call() == B and len(failed) > 20)


@pytest.mark.parametrize("ending", ["error", "other", "discard", "not reusable"])
def test_a_retried_call_avoids_where_its_lease_ended_badly_and_waits_for_another_rather_than_take_it(ending):
    class Wary(Cluster):
        def _is_reusable(self, c):
            return ending != "not reusable"

    pool = make(kind=Wary, size=2, balancer=RoundRobin)
    others = [pool.pools[B].acquire() for _ in range(2)]
    places = []

    @retry(max_failures=1, exc_classes=(OSError, KeyError))
    def call():
        with pool.get(timeout=5) as c:
            places.append(c.endpoint)
            if len(places) == 1:
                if ending == "discard":
                    pool.discard(c)
                elif ending != "not reusable":
                    raise {"error": OSError, "other": KeyError}[ending]
        if len(places) == 1:
            raise OSError("after its lease")

    (greenlet,) = [gevent.spawn(call)]
    wait_until(lambda: pool.stats().waiting == 1)
    wait_until(lambda: pool.entry(A).pool.idle == 2)
    one_waits = pool.stats().waiting
    pool.release(others.pop())
    greenlet.get(timeout=5)
    pool.release(others.pop())

    assert one_waits == 1
    assert places == [A, B]


@pytest.mark.parametrize("failures_of_inner", [0, 1])
def test_a_nested_call_avoids_what_failed_in_the_enclosing_one(failures_of_inner):
    pool = make(size=2, outlier=None)

    @retry(max_failures=failures_of_inner)
    def inner():
        with pool.get(timeout=5) as c:
            if c.endpoint == A:
                raise OSError("mine")
            return c.endpoint

    @retry(max_failures=1)
    def outer():
        return inner()

    assert {outer() for _ in range(50)} == {B}


def test_a_call_beside_and_a_greenlet_within_know_nothing_of_its_failures():
    pool = make(size=2, outlier=None, balancer=RoundRobin)
    seen = set()

    @retry(max_failures=1)
    def call():
        seen.update(gevent.spawn(lambda: [pool.call() for _ in range(10)]).get())
        with pool.get(timeout=5) as c:
            if c.endpoint == A:
                raise OSError("mine")

    for _ in range(4):
        call()

    assert seen == {A, B}


def test_a_call_that_uses_two_clusters_avoids_in_each_what_failed_there():
    one, two = make(size=4, outlier=None), make(size=4, outlier=None)
    bad = {one: A, two: B}

    @retry(max_failures=2)
    def call():
        places = []
        for pool in one, two:
            with pool.get(timeout=5) as c:
                if c.endpoint == bad[pool]:
                    raise OSError("mine")
                places.append(c.endpoint)
        return tuple(places)

    assert {call() for _ in range(50)} == {(B, A)}


FIRST, SECOND, LAST = A, replace(B, priority=1), replace(C, priority=2)


def test_a_call_that_failed_on_the_only_endpoint_of_a_priority_is_retried_on_the_next_priority():
    pool = make(FIRST, SECOND, outlier=None)
    places = []

    @retry(max_failures=1)
    def call():
        with pool.get(timeout=5) as c:
            places.append(c.endpoint)
            if c.endpoint == FIRST:
                raise OSError("mine")

    for _ in range(3):
        call()

    assert places == [FIRST, SECOND] * 3  # a call anew begins with the first priority


def test_a_call_that_fails_everywhere_is_retried_through_the_priorities_and_then_on_the_first_again():
    pool = make(FIRST, replace(FIRST, name="a2.test"), SECOND, LAST, outlier=None)
    places = []

    @retry(max_failures=5)
    def call():
        with pool.get(timeout=5) as c:
            places.append(c.endpoint)
            raise OSError("mine")

    with pytest.raises(OSError, match="mine") as caught:
        call()

    assert [c.priority for c in places] == [0, 0, 1, 2, 0, 0]
    assert places[0] != places[1]
    lines = caught.value.__notes__[0].splitlines()
    assert [str(endpoint) in line for endpoint, line in zip(places, lines, strict=False)] == [True] * 5


class Alphabetic:
    def choose(self, candidates, now):
        return min(candidates, key=lambda candidate: candidate.endpoint.name)


def both_leases_end_badly(one, two, places):
    with one.get(timeout=5) as c, two.get(timeout=5) as d:
        places.append((c.endpoint, d.endpoint))
        raise OSError("mine")


def the_second_lease_ends_badly_within_the_first(one, two, places):
    with one.get(timeout=5) as c:
        with suppress(OSError), two.get(timeout=5) as d:
            places.append((c.endpoint, d.endpoint))
            raise OSError("mine")
    raise OSError("after both")


def the_second_lease_ends_badly_after_the_first(one, two, places):
    with one.get(timeout=5) as c:
        pass
    with two.get(timeout=5) as d:
        places.append((c.endpoint, d.endpoint))
        raise OSError("mine")


def the_first_lease_ends_badly_around_the_second(one, two, places):
    with one.get(timeout=5) as c:
        with two.get(timeout=5) as d:
            places.append((c.endpoint, d.endpoint))
        raise OSError("mine")


@pytest.mark.parametrize(
    ("attempt", "second"),
    [
        (both_leases_end_badly, (B, B)),
        (the_second_lease_ends_badly_within_the_first, (A, B)),
        (the_second_lease_ends_badly_after_the_first, (A, B)),
        (the_first_lease_ends_badly_around_the_second, (B, A)),
    ],
)
def test_an_attempt_that_uses_two_clusters_is_blamed_on_those_whose_lease_ended_badly(attempt, second):
    one, two = (make(size=2, outlier=None, balancer=Alphabetic) for _ in range(2))
    places: list[Any] = []

    with pytest.raises(OSError, match="mine|after both"):
        retry(attempt, max_failures=1)(one, two, places)

    assert places == [(A, A), second]


# -- resolvers ---------------------------------------------------------------------------------------------------------

FAILURES: list[Any] = [
    OSError("no network"),
    gevent.Timeout(1),
    gevent.GreenletExit(),
    BaseException("odd"),
    StopIteration(),
]
GARBAGE: list[Any] = [None, [A], (A,), 5, Resolution, lambda: Resolution((A, A))]


def test_whatever_a_resolver_does_is_a_failed_look_up_and_it_is_asked_again():
    pools = []
    for answer in FAILURES + GARBAGE:
        resolver = Asked(answer)
        pools.append(pool := Cluster(resolver))
        with pytest.raises(PoolTimeout, match="discovery fails"):
            pool.call(0.01)
        told = pool.stats().discovery
        resolver.answer = Resolution((B,))

        assert told.last_error is answer or isinstance(told.last_error, (TypeError, ValueError))
        assert 0.8 <= told.next_lookup - resolver.times[0] < 4
    for pool in pools:
        assert pool.call() == B
        wait_until(lambda pool=pool: len(pool.kinds(events.DiscoveryChanged)) == 2)
        assert pool.stats().discovery.last_error is None
        assert [e.state for e in pool.kinds(events.DiscoveryChanged)] == ["starting", "fresh"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_system_exception_out_of_a_resolver_goes_to_the_hub_and_discovery_goes_on(kind, hub_errors):
    resolver = Asked(kind())
    pool = Cluster(resolver)
    wait_until(lambda: resolver.times)
    resolver.answer = Resolution((A,))

    assert pool.call() == A
    assert hub_errors == [kind]
    hub_errors.clear()


def test_the_last_good_answer_stays_while_look_ups_fail():
    resolver = Asked(Resolution((A,), ttl=0), min_refresh=0.01)
    pool = ready(Cluster(resolver))
    resolver.answer = OSError("no network")
    wait_until(lambda: pool.stats().discovery.state == "stale")

    assert pool.call() == A
    assert str(pool.stats().discovery.last_error) == "no network"


@pytest.mark.parametrize(
    ("ttl", "bounds", "low", "high"),
    [
        (0, {"min_refresh": 0.1}, 0.1, 0.11),
        (0.1, {"min_refresh": 0.01, "max_refresh": 5}, 0.1, 0.11),
        (1000, {"min_refresh": 0.01, "max_refresh": 0.1}, 0.1, 0.11),
        (0, {}, 5, 5.5),
        (9999, {}, 300, 330),
    ],
)
def test_the_time_to_live_counts_within_the_bounds_that_the_resolver_names(ttl, bounds, low, high):
    resolver = Asked(Resolution((A,), ttl=ttl), **bounds)
    pool = ready(Cluster(resolver))
    due = pool.stats().discovery.next_lookup - resolver.times[0]
    if low < 1:
        wait_until(lambda: len(resolver.times) == 2)

    assert low <= due < high + 0.05
    # A busy machine may be late with the first.
    assert len(resolver.times) == 1 or resolver.times[1] - resolver.times[0] >= low / 2


def test_an_answer_without_a_time_to_live_is_never_asked_for_again():
    resolver = Asked(Resolution((A, B)), min_refresh=0.001)
    pool = ready(Cluster(resolver, outlier=QUICK))
    eject(pool, A)
    wait_until(lambda: pool.kinds(events.ProbeFailed))

    assert len(resolver.times) == 1
    assert pool.stats().discovery.next_lookup is None


def test_failing_endpoints_make_discovery_look_again_at_most_every_min_refresh(monkeypatch):
    times = []
    started = Refresh.started
    monkeypatch.setattr(Refresh, "started", lambda refresh, now: times.append(now) or started(refresh, now))
    resolver = Asked(Resolution((A, B), ttl=100), min_refresh=0.1)
    pool = Cluster(resolver, dead={A, B}, outlier=None, connect=lambda endpoint: gevent.sleep(0.001))
    in_line(pool, pool.call)
    wait_until(lambda: len(times) == 4)

    assert times[3] - times[0] >= 0.299
    assert len(pool.attempts) > 4


def test_endpoints_come_and_go_as_dns_says_and_unchanged_ones_are_untouched():
    with DNSServer() as dns:
        for n in 1, 2:
            dns.add_srv(SERVICE, f"{n}.example.test", n)
            dns.add_address(f"{n}.example.test", "127.0.0.1")
        pool = ready(Cluster(SERVICE, resolver=DNSResolver([dns.address], min_refresh=0.05)))
        first = [c for c in pool.made if c.endpoint.port == 1]
        dns.remove_srv(SERVICE, "2.example.test", 2)
        dns.add_srv(SERVICE, "3.example.test", 3, ttl=0)
        dns.add_address("3.example.test", "127.0.0.1", ttl=0)
        wait_until(lambda: {e.port for e in pool.pools} == {1, 3}, what="the change")
        pool.wait(timeout=30)

        assert [c.ended for c in first] == [None]
        assert sorted(e.port for e in pool.attempts) == [1, 2, 3]


# -- numbers and events ------------------------------------------------------------------------------------------------


def counters(pool) -> list[float]:
    s = pool.stats()
    names = ("gets", "waits", "wait_seconds", "timeouts", "refused", "opened", "open_errors", "closed")
    return [*(getattr(s, name) for name in names), *s.discarded.values()]


def test_totals_are_the_sum_of_all_that_was_also_after_endpoints_are_gone():
    names = Names(A, B)
    pool = ready(Cluster(names, 2))
    history = [counters(pool)]
    for answer in (B,), (B, C), (A,), (A, B, C), (C,):
        fail(pool, next(iter(pool.pools)))
        ready(pool)
        held = [pool.acquire(5) for _ in range(pool.stats().open)]
        with pytest.raises(PoolTimeout):
            pool.acquire(0)
        for c in held:
            pool.release(c)
        history.append(counters(pool))
        names.tell(*answer)
        wait_until(lambda answer=answer: set(pool.pools) == set(answer))
        ready(pool)
        history.append(counters(pool))
    s = pool.stats()

    for one, two in pairwise(history):
        assert all(early <= late for early, late in zip(one, two, strict=True))
    assert s.timeouts == 5
    assert s.discarded["error"] == 10
    assert (s.opened, s.opened - s.closed) == (len(pool.made), s.open)
    assert s.open == s.idle == s.size == 2


def test_stats_are_a_frozen_value_that_names_every_endpoint_and_discovery():
    pool = make(A, B, size=2, name="redis", outlier=SLOW)
    eject(pool, B)
    c = pool.acquire()
    s = pool.stats()
    pool.release(c)

    assert (s.name, s.size, s.in_use, s.idle, s.waiting) == ("redis", 4, 1, 1, 0)
    assert [(e.endpoint, e.state, e.in_flight, e.ejections) for e in s.endpoints] == [
        (A, "active", 1, 0),
        (B, "ejected", 0, 1),
    ]
    assert s.endpoints[0].until is None
    assert 25 < s.endpoints[1].until - monotonic() <= 30
    assert str(s.endpoints[1].last_error) == "mine"
    assert (s.discovery.state, s.discovery.generation, s.discovery.last_error) == ("fresh", 1, None)
    with pytest.raises(AttributeError):
        s.size = 5


def test_repr_shows_name_states_and_gauges():
    pool = make(A, B, size=2, name="redis", outlier=SLOW)
    eject(pool, B)
    wait_until(lambda: pool.entry(B).pool.open == 0)
    with pool.get():
        text = repr(pool)
    pool.close()

    assert text == "<Cluster 'redis': 1 active, 1 ejected, 0 draining; 2 open, 1 idle, 1 in use, 0 waiting>"
    assert repr(pool).endswith("0 waiting, closed>")
    assert repr(make(A, name="x").pools) == (
        "{a.test:1: <EndpointPool 'x/a.test:1': 1 of 1 open, 1 idle, 0 in use, 0 connecting, 0 waiting>}"
    )


@pytest.mark.parametrize("cut", [False, True])
def test_the_events_of_an_endpoint_come_in_the_order_of_cause_and_effect(cut):
    names = Names(A, B)
    pool = ready(Cluster(names, outlier=QUICK, drain_timeout=0.02 if cut else 30))
    eject(pool, A)
    wait_until(lambda: pool.kinds(events.ProbeFailed))
    pool.dead.clear()
    pool.becomes(A, "active")
    held = pool.pools[A].acquire(5)
    names.tell(B)
    wait_until(lambda: held.ended if cut else pool.state(A) == "draining")
    pool.release(held)
    wait_until(lambda: pool.state(A) is None)
    wait_until(lambda: pool.kinds(events.EndpointDrained))
    gevent.sleep(0.02)
    story = [e for e in pool.heard if getattr(e, "endpoint", None) == A]

    assert [type(e).__name__ for e in story] == [
        *("EndpointAdded", "ConnectionOpened", "ConnectionClosed", "ConnectionOpened"),
        *("EndpointEjected", "ConnectionClosed", "ConnectFailed", "ProbeFailed"),
        *("ConnectionOpened", "EndpointReadmitted", "EndpointRemoved", "ConnectionClosed", "EndpointDrained"),
    ]
    assert story[-1].forced is cut
    assert {e.pool for e in pool.heard} == {pool.stats().name}


@pytest.mark.parametrize(
    "failure", [OSError("mine"), gevent.GreenletExit(), gevent.Timeout(1)], ids=lambda failure: type(failure).__name__
)
def test_whatever_a_handler_raises_it_gets_the_other_events_too(failure, hub_errors, caplog):
    heard = []

    def handle(event):
        heard.append(event)
        raise failure

    with caplog.at_level(logging.ERROR, "geventconnpool"):
        pool = make(size=2, on_event=handle)
        wait_until(lambda: len(heard) == 7, what="two endpoints, four connections, one answer")

        assert pool.call() in (A, B)
        # The pool of a former test may tell of its end just now.
        named = {(record.pool, record.getMessage().partition(":")[0]) for record in caplog.records}
        assert pool.stats().name in {name for name, _ in named}
        assert all(name == told for name, told in named)
    assert hub_errors == []


def test_a_handler_that_hangs_holds_up_nothing_and_one_may_call_any_method(blocked):
    results = []

    def busy(event):
        if isinstance(event, events.EndpointReadmitted):
            pool = other
            results.append((pool.call(), pool.state(A), repr(pool)[:1], pool.pools[A].stats().size, pool.close(5)))

    other = make(outlier=QUICK, on_event=busy)
    hung = make(outlier=SLOW, on_event=lambda event: blocked.wait())
    eject(hung, A)
    assert hung.call() == B
    eject(other, A)
    other.dead.clear()
    wait_until(lambda: results)

    assert results[0][1:] == ("active", "<", 1, True)
    assert other.closed


# -- limits ------------------------------------------------------------------------------------------------------------


def many(n, **fields):
    return [Endpoint(f"n{number}.test", 1, (f"10.0.{number >> 8}.{number & 255}",), **fields) for number in range(n)]


def test_at_most_64_connects_run_at_once_and_all_are_opened():
    now = most = 0

    def connect(endpoint):
        nonlocal now, most
        now += 1
        most = max(most, now)
        gevent.sleep(0.005)
        now -= 1

    pool = make(*many(100), size=2, connect=connect)

    assert most == 64
    assert pool.stats().open == 200


def test_endpoints_that_wait_for_their_turn_to_connect_do_not_keep_the_hub_busy():
    def fail_slowly(endpoint):
        gevent.sleep(0.2)
        raise OSError("unreachable")

    pool = Cluster(many(100), connect=fail_slowly, outlier=None)
    wait_until(lambda: len(pool.attempts) > 130)
    loops = count_loops(0.3)

    assert loops < 1500  # about three per connect, and one per connect and event


def count_loops(seconds):
    loops = 0

    def count():
        nonlocal loops
        loops += 1

    watcher = gevent.get_hub().loop.prepare()
    watcher.start(count)
    try:
        gevent.sleep(seconds)
    finally:
        watcher.close()
    return loops


def test_a_thousand_endpoints_rest_on_a_handful_of_greenlets_and_all_are_closed():
    before = greenlets()
    pool = make(*many(1000), size=1, kind=Kept, keepalive=60)
    gevent.idle()
    resting = greenlets() - before
    began = monotonic()
    closed = pool.close(30)

    assert len(resting) <= 5
    assert closed
    assert monotonic() - began < 5
    assert [c.ended for c in pool.made] == ["closed"] * 1000
    wait_until(lambda: greenlets() <= before)


def test_a_thousand_changes_are_made_in_slices_and_all_of_them():
    names, ticks = Names(*many(1000)), []
    pool = ready(Cluster(names))
    names.tell(*many(1000, weight=2))

    def is_done():
        weights = {e.weight for e in pool.pools}
        ticks.append(weights == {1, 2})
        return weights == {2}

    ticker = gevent.spawn(lambda: wait_until(is_done))
    ticker.join()

    assert ticker.successful()
    assert any(ticks)  # others ran in between


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["static", "names"])
def test_after_close_nothing_is_looked_up_probed_or_opened_and_no_greenlet_is_left(service):
    before = greenlets()
    names = Names(A, B)
    pool = ready(Cluster(names if service == "names" else [A, B], outlier=QUICK))
    eject(pool, A)
    held = pool.acquire()
    waiting = [gevent.spawn(outcome, partial(pool.wait, 99))]
    waiting += in_line(pool, pool.call, pool.pools[B].acquire, pool.pools[A].acquire)
    closing = gevent.spawn(pool.close)
    gevent.joinall(waiting, 30)
    refused = [type(greenlet.value) for greenlet in waiting]
    attempts = list(pool.attempts)
    gevent.sleep(0.1)
    pool.release(held)
    closing.get(timeout=30)
    del waiting, closing
    wait_until(lambda: greenlets() <= before)

    assert refused == [PoolClosed] * 4
    assert pool.attempts == attempts
    assert pool.closed
    assert held.ended == "closed"
    for get in pool.call, pool.wait, lambda: pool.call(to=B):
        with pytest.raises(PoolClosed):
            get()


def test_while_a_close_waits_for_its_users_nothing_is_looked_up():
    resolver = Asked(Resolution((A,), ttl=0), min_refresh=0.02)
    pool = ready(Cluster(resolver))
    held = pool.acquire()
    closing = gevent.spawn(pool.close)
    wait_until(lambda: pool.closed)
    asked = len(resolver.times)
    wait_until(lambda: pool._lender.discovery.alarm == inf, what="the time of the next look-up")
    is_closing = not closing.ready()
    pool.release(held)

    assert closing.get(timeout=5) is True
    assert is_closing
    assert len(resolver.times) == asked


def test_an_answer_that_comes_after_the_close_changes_nothing():
    class Stubborn:
        is_asked = False

        def resolve(self, service):
            self.is_asked = True
            try:
                gevent.sleep(60)
            except gevent.GreenletExit:
                return Resolution((A,), ttl=0)

    resolver = Stubborn()
    pool = Cluster(resolver)
    wait_until(lambda: resolver.is_asked)
    pool.close()
    wait_until(lambda: pool.stats().discovery.state == "fresh")

    assert len(pool.pools) == 0
    assert pool.attempts == []
    assert pool.kinds(events.EndpointAdded, events.DiscoveryChanged) == []
    assert pool.stats().discovery.next_lookup is None


def test_close_waits_for_draining_endpoints_too_and_cuts_them_after_its_time():
    names = Names(A, B)
    pool = ready(Cluster(names))
    held = pool.pools[A].acquire()
    names.tell(B)
    pool.becomes(A, "draining")
    greenlet = gevent.spawn(pool.close, 0.02)
    gevent.idle()
    waits = not greenlet.ready()

    assert greenlet.get(timeout=30) is False
    assert waits
    wait_until(lambda: held.ended)


@pytest.mark.parametrize("ejected", [False, True])
def test_a_forgotten_cluster_leaves_no_greenlet_and_no_pool(ejected, monkeypatch):
    monkeypatch.setattr(logging.getLogger("geventconnpool"), "propagate", False)  # pytest keeps tracebacks
    before = greenlets()
    resolver = Asked(Resolution((A, B), ttl=0), min_refresh=0.01)
    pool = ready(Kept(resolver, outlier=QUICK, keepalive=0.01, on_event=None))
    if ejected:
        eject(pool, A)
    pool.call()
    Cluster.alive.clear()
    del pool
    wait_until(lambda: gc.collect() >= 0 and not any(isinstance(o, Kept) for o in gc.get_objects()), what="collection")
    gevent.sleep(0.02)
    asked = len(resolver.times)
    gevent.sleep(0.05)

    assert len(resolver.times) == asked
    assert greenlets() - before == set()


def test_leaving_a_with_block_closes_the_cluster():
    with Cluster() as pool:
        ready(pool)
        c = gevent.spawn(pool.acquire).get()
        gevent.spawn_later(0.02, pool.release, c)
    with pytest.raises(KeyError), Cluster() as cut:
        c = gevent.spawn(ready(cut).acquire).get()
        raise KeyError

    assert (pool.closed, cut.closed) == (True, True)
    wait_until(lambda: c.ended == "aborted")


@pytest.mark.parametrize("number", [3, 40])
@pytest.mark.parametrize("borrow", ["get", "acquire"])
def test_the_time_it_takes_to_choose_is_none_of_the_call(monkeypatch, number, borrow):
    pool = make(*(Endpoint(f"e{i}.test", 1) for i in range(number)))
    look, looks = Member.look, []

    def look_long(member, now):
        looks.append(member)
        time.sleep(0.2)
        look(member, now)

    pool._lender.members.survey_soon()
    monkeypatch.setattr(Member, "look", look_long)
    if borrow == "get":
        pool.call()
    else:
        pool.release(pool.acquire())
    monkeypatch.undo()

    assert looks
    assert max(endpoint.latency or 0.0 for endpoint in pool.stats().endpoints) < 0.2


# -- shares and priorities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balancer", [RoundRobin, LeastLoaded])
@pytest.mark.parametrize("users", [1, 8])
def test_calls_are_spread_in_proportion_to_the_weights(balancer, users):
    weights = {A: 1, B: 2, C: 5}
    endpoints = [Endpoint(e.name, e.port, weight=weight) for e, weight in weights.items()]
    pool = make(*endpoints, size=8, balancer=balancer)
    calls: Counter[Endpoint] = Counter()

    def use():
        for _ in range(4000 // users):
            with pool.get() as c:
                calls[c.endpoint] += 1
                if users > 1:
                    gevent.sleep(0)

    gevent.joinall([gevent.spawn(use) for _ in range(users)], 30, raise_error=True)

    for endpoint, weight in weights.items():
        assert calls[endpoint] / 4000 == pytest.approx(weight / 8, abs=0.04)


def test_calls_go_to_the_lowest_priority_spill_over_when_that_is_ejected_and_come_back():
    first = [Endpoint(f"f{n}.test", 1, priority=1) for n in range(2)]
    later = [Endpoint(f"l{n}.test", 1, priority=9) for n in range(2)]
    pool = make(*first, *later, outlier=QUICK)
    places = [{pool.call() for _ in range(40)}]
    eject(pool, *first)
    places.append({pool.call() for _ in range(40)})
    pool.dead.clear()
    for endpoint in first:
        pool.becomes(endpoint, "active")
    ready(pool)
    places.append({pool.call() for _ in range(40)})

    assert places == [set(first), set(later), set(first)]


@pytest.mark.parametrize("choice", [lambda candidates, now: None, lambda candidates, now: 1 / 0])
def test_a_balancer_that_raises_or_chooses_nobody_is_no_reason_to_lose_anything(choice, hub_errors):
    class Broken:
        choose = staticmethod(choice)

    pool = make(A, replace(B, priority=5), balancer=Broken, outlier=QUICK)
    fail(pool, A, 1)
    ready(pool)
    go = Event()

    def use():
        with pool.pools[A].get():
            go.wait()
            raise OSError("mine")

    user = gevent.spawn(outcome, use)
    wait_until(lambda: pool.entry(A).in_flight)
    waiting = in_line(pool, pool.call)  # the ejection of a serves it with b, of which the balancer is asked
    go.set()
    gevent.joinall(waiting, 30)
    pool.becomes(A, "active")
    ready(pool)
    hub_errors.clear()

    assert str(user.get()) == "mine"
    assert waiting[0].ready()
    assert pool.stats().idle == 2


# -- what would have crept up on its users -----------------------------------------------------------------------------


def test_a_waiter_whose_endpoint_is_ejected_before_he_runs_gets_a_connection_to_another():
    pool = make(size=3, outlier=SLOW)
    leases = [pool.acquire() for _ in range(6)]
    of_a = [c for c in leases if c.endpoint == A]
    of_b = [c for c in leases if c.endpoint == B]
    got = []
    waiter = gevent.spawn(lambda: got.append(pool.acquire(timeout=5)))
    wait_until(lambda: pool.stats().waiting == 1)
    pool.release(of_a[0])  # to the waiter, who runs in the next turn of the loop
    for c in of_a[1:]:
        pool._lender.give_back(pool._lender.lent(c, "fail"), OSError("mine"))
    assert pool.state(A) == "ejected"
    pool.release(of_b[0])
    waiter.join(5)

    assert got == [of_b[0]]
    for c in of_b:
        pool.release(c)
    wait_until(lambda: of_a[0].ended == "aborted")


def test_an_object_whose_descriptor_is_no_socket_costs_no_descriptor():
    class Piped(Cluster):
        def _new_connection(self, endpoint):
            super()._new_connection(endpoint)
            self.made[-1] = Pipe(endpoint)
            return self.made[-1]

    class Pipe(Connection):
        def __init__(self, endpoint):
            super().__init__(endpoint)
            self.ends = os.pipe()

        def fileno(self):
            return self.ends[0]

    pool = ready(Piped([A]))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pool.get(timeout=5) as c:
            pool.discard(c)
        ready(pool)
        for end in c.ends:
            os.close(end)

    assert len(os.listdir("/proc/self/fd")) == before


def test_an_object_that_hangs_when_asked_for_its_peer_is_taken_all_the_same(monkeypatch):
    monkeypatch.setattr("geventconnpool._engine.PEER_TIMEOUT", 0.01)

    class Hanging(Connection):
        def getpeername(self):
            gevent.sleep(60)

    class Hung(Cluster):
        def _new_connection(self, endpoint):
            super()._new_connection(endpoint)
            self.made[-1] = Hanging(endpoint)
            return self.made[-1]

    pool = ready(Hung([A]))

    assert pool.stats().idle == 1


def test_a_drain_is_not_forced_if_only_a_close_outlasts_it():
    class Slow(Cluster):
        def _close_connection(self, c):
            gevent.sleep(0.05)
            super()._close_connection(c)

    names = Names(A, B)
    pool = ready(Slow(names, 1, drain_timeout=0.01))
    names.tell(B)
    wait_until(lambda: pool.kinds(events.EndpointDrained))

    assert [event.forced for event in pool.kinds(events.EndpointDrained)] == [False]


def test_a_balancer_that_fails_is_told_of_at_once():
    class Broken:
        def choose(self, candidates, now):
            raise ZeroDivisionError

    pool = make(balancer=Broken)
    with pool.get(timeout=5):
        pass
    wait_until(lambda: pool.kinds(events.HookFailed))

    assert [event.hook for event in pool.kinds(events.HookFailed)] == ["choose"]


def test_the_log_forgets_endpoints_that_are_gone():
    writer = LogWriter()
    writer(events.ConnectFailed("cluster", A, OSError("refused"), 1))
    writer(events.ConnectFailed("cluster", B, OSError("refused"), 1))
    writer(events.EndpointDrained("cluster", A, forced=False))

    assert [series[1] for series in writer._warned] == [B]


def test_a_closed_cluster_does_not_keep_the_loop_alive():
    script = """if True:
        import gevent, time
        from geventconnpool.cluster import ClusterPool, Endpoint, Resolution
        class Cluster(ClusterPool):
            def _new_connection(self, endpoint): return object()
            def _keepalive(self, c): pass
        class Names:
            def resolve(self, service): return Resolution((Endpoint("127.0.0.1", 1),), ttl=300)
        pool = Cluster(Names(), 1, keepalive=600)
        pool.wait(timeout=5)
        pool.close(5)
        print(gevent.wait(timeout=5))
    """
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout == "True\n"


def test_a_waiter_who_was_handed_what_is_no_good_any_more_is_still_the_first():
    pool = make(size=2, outlier=OutlierDetection(consecutive_failures=1, base_ejection_time=30))
    leases = [pool.acquire() for _ in range(4)]
    of_a = [c for c in leases if c.endpoint == A]
    of_b = [c for c in leases if c.endpoint == B]
    order: list[int] = []

    def wait(n):
        with pool.get(timeout=5):
            order.append(n)

    waiters = [gevent.spawn(wait, n) for n in range(3)]
    wait_until(lambda: pool.stats().waiting == 3)
    pool.release(of_a[0])  # handed to the first, who has not run yet
    pool._lender.give_back(pool._lender.lent(of_a[1], "fail"), OSError("mine"))
    wait_until(lambda: pool.stats().waiting == 3)
    for c in of_b:
        pool.release(c)
    gevent.joinall(waiters, timeout=5)

    assert order == [0, 1, 2]
    assert (pool.stats().waits, pool.stats().timeouts) == (3, 0)


class Custom(OSError):
    def __init__(self, reason):
        super().__init__()
        self.args = (reason,)
        self.reason = reason

    def __str__(self):
        return f"custom: {self.reason}"


def test_the_last_error_of_a_call_reads_like_the_error_and_holds_no_frames():
    pool = make()
    with pytest.raises(Custom):
        with pool.get(timeout=5) as c:
            raise Custom("refused by peer")
    [entry] = [entry for entry in pool.stats().endpoints if entry.endpoint == c.endpoint]

    assert str(entry.last_error) == "custom: refused by peer"
    assert entry.last_error.__traceback__ is None


def test_a_hook_that_hangs_is_told_with_its_endpoint():
    pool = Cluster(
        (A, B), dead=[], connect=lambda endpoint: gevent.sleep(60 if endpoint == B else 0), open_timeout=0.02
    )
    wait_until(lambda: pool.kinds(events.HookFailed))

    assert {event.endpoint for event in pool.kinds(events.HookFailed)} == {B}


def test_an_interruption_is_a_connection_error_if_the_hook_says_so():
    class Impatient(Cluster):
        def _is_connection_error(self, exc):
            return isinstance(exc, gevent.Timeout)

    pool = make(kind=Impatient)
    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.001), pool.get(timeout=5) as c:
            gevent.sleep(5)
    [entry] = [entry for entry in pool.stats().endpoints if entry.endpoint == c.endpoint]

    assert entry.failures == {"connects": 0, "keepalives": 0, "calls": 1}


def test_wait_knows_that_a_service_has_no_endpoints():
    pool = Cluster(Names())
    pool._lender.discovery._resolver.tell()

    with pytest.raises(PoolUnavailable):
        pool.wait(timeout=5)
    pool.close(0)
    assert pool.stats().discovery.next_lookup is None


def test_of_two_who_close_none_is_told_that_all_came_back_if_one_cut():
    pool = make(size=1)
    holder = gevent.spawn(lambda: pool.acquire() and gevent.sleep(60))
    wait_until(lambda: pool.stats().in_use == 1)
    patient = gevent.spawn(pool.close, 10)
    gevent.sleep(0)

    assert pool.close(0) is False
    assert patient.get(timeout=5) is False
    holder.kill()


def test_events_keep_their_order_when_the_collector_ends_a_lease_between_them():
    pool = make(size=2)

    def lease():
        with pool.get(timeout=0):
            yield

    suspended = [lease()]
    next(suspended[0])
    put = pool._lender.engine._feeds[1].put
    heard: list[Any] = []

    def strike(event):
        if suspended:
            suspended.clear()  # ends the lease in the middle of the telling
        heard.append(event)
        put(event)

    pool._lender.engine._feeds[1].put = strike
    queue = pool._lender.engine.queue
    told = [events.EndpointRemoved("first", A), events.EndpointRemoved("second", A)]
    queue.news.extend(told)
    pool._lender.engine.act()
    wait_until(lambda: pool.kinds(events.ConnectionClosed))

    assert heard[:2] == told
