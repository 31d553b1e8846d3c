"""What type checkers make of programs that use the package: checked by mypy and by pyright, both strict, never run.

``assert_type`` says what must be known. A line that must be refused says so by ``type: ignore[...]`` for mypy and
``pyright: ignore[...]`` for pyright, each of which is an error itself where the checker finds nothing to refuse.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar, assert_type

import redis
from gevent import socket

import geventconnpool
from geventconnpool import ClusterPool, ConnectionPool, Endpoint, PoolTimeout, RetryBudget, events, retry
from geventconnpool.cluster import (
    Balancer,
    Candidate,
    DNSResolver,
    LeastLoaded,
    NoRecords,
    OutlierDetection,
    PeakEWMA,
    Resolution,
    Resolver,
    RoundRobin,
    StaticResolver,
)
from geventconnpool.testing import Backend, DNSServer, Proxy, SimpleCandidate, SimulatedServer, VirtualClock, play

C = TypeVar("C")
T = TypeVar("T")


def knows_its_names() -> None:
    assert_type(geventconnpool.__version__, str)
    print(geventconnpool.NoSuchName)  # type: ignore[attr-defined]  # pyright: ignore


# -- one endpoint ------------------------------------------------------------------------------------------------------


class Cache(ConnectionPool[redis.Redis]):
    """Every hook, with parameters that have names of the user's choosing."""

    def __init__(self, host: str, log: logging.Logger) -> None:
        self.host = host
        self.log = log
        super().__init__(10, (redis.ConnectionError, OSError), 30, min_size=2, timeout=2, on_event=self.note)

    def _new_connection(self) -> redis.Redis:
        return redis.Redis(self.host)

    def _keepalive(self, client: redis.Redis) -> None:
        self.log.debug("%r", client)

    def _close_connection(self, client: redis.Redis) -> None:
        client.close()

    def _abort_connection(self, client: redis.Redis) -> None:
        super()._abort_connection(client)

    def _is_connection_error(self, error: BaseException) -> bool:
        return super()._is_connection_error(error) or isinstance(error, EOFError)

    def _is_reusable(self, client: redis.Redis) -> bool:
        return bool(client.connection_pool)

    def _fileno(self, client: redis.Redis) -> int | None:
        return None

    def note(self, event: events.Event) -> None:
        self.log.info("%s", event.pool)


class Confused(ConnectionPool[redis.Redis]):
    def _new_connection(self) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return "no Redis"


def borrows(pool: Cache) -> None:
    with pool.get() as client:
        assert_type(client, redis.Redis)
    with pool.get(timeout=None), pool.get(timeout=0), pool.get(2.5) as client:
        assert_type(client, redis.Redis)
    client = pool.acquire(timeout=1)
    assert_type(client, redis.Redis)
    pool.release(client)
    pool.discard(client)
    pool.release("something else")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pool.get(timeout="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    lease: AbstractContextManager[redis.Redis] = pool.get()
    assert_type(lease.__enter__(), redis.Redis)


def ends_in_a_block(pool: Cache) -> str:
    with pool.get():  # swallows nothing, so nothing is missing behind it
        return "done"


@contextmanager
def wrapped(pool: ConnectionPool[C]) -> Generator[C]:
    with pool.get() as connection:
        yield connection


def goes_through_functions_of_the_user(pool: Cache) -> None:
    with wrapped(pool) as client:
        assert_type(client, redis.Redis)


def lives(pool: Cache) -> None:
    with pool as the_same:
        assert_type(the_same, Cache)
    pool.wait(3, timeout=1)
    pool.resize(20, min_size=1)
    pool.reset()
    assert_type(pool.close(timeout=1), bool)
    assert_type(pool.closed, bool)
    assert_type(pool.size, int)
    assert_type(pool.keepalive, float)
    assert_type(pool.exc_classes, tuple[type[BaseException], ...])
    pool.size = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


class Anything(ConnectionPool[Any]):
    def _new_connection(self) -> object:
        return object()


# A strict checker wants to be told what is lent; others let it pass, and then it is Any, too.
class Bare(ConnectionPool):  # type: ignore[type-arg]  # pyright: ignore[reportMissingTypeArgument]
    def _new_connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", 2485))


def borrows_anything(anything: Anything, bare: Bare) -> None:
    with anything.get() as c:
        assert_type(c, Any)
    with bare.get() as c:  # pyright: ignore[reportUnknownVariableType]
        assert_type(c, Any)


def options_are_checked() -> None:
    Anything(10, OSError)
    Anything(10, [OSError, EOFError], keepalive=None, lifo=True, name="anything")
    Anything(size=10, exc_classes=(), keepalive=3)
    Anything(10, OSError, None, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Anything(10, nmae="anything")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Anything("10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Anything(10, exc_classes=[ValueError()])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


# -- a service ---------------------------------------------------------------------------------------------------------


class Caches(ClusterPool[redis.Redis]):
    def _new_connection(self, server: Endpoint) -> redis.Redis:
        assert_type(server.address, tuple[str, int])
        return redis.Redis(server.host, server.port)


class Lines(ClusterPool[socket.socket]):
    def _new_connection(self, endpoint: Endpoint) -> socket.socket:
        return endpoint.connect(timeout=2)


class Forgetful(ClusterPool[redis.Redis]):
    def _new_connection(self) -> redis.Redis:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return redis.Redis()


def serves(pool: Caches) -> None:
    with pool.get(timeout=3) as client:
        assert_type(client, redis.Redis)
        assert_type(pool.endpoint_of(client), Endpoint)
    client = pool.acquire()
    assert_type(client, redis.Redis)
    one_each: Mapping[Endpoint, ConnectionPool[redis.Redis]] = pool.pools
    for endpoint, part in one_each.items():
        with part.get() as client:
            assert_type((endpoint, client), tuple[Endpoint, redis.Redis])
    pool.endpoint_of(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def stands(lone: Cache, cluster: Caches) -> None:
    assert_type(lone.stats(), events.PoolStats)
    stats = cluster.stats()
    assert_type(stats, events.ClusterStats)
    assert_type(stats.idle, int)
    assert_type(stats.discarded["error"], int)
    assert_type(stats.last_error, BaseException | None)
    assert_type(stats.discovery.next_lookup, float | None)
    for entry in stats.endpoints:
        assert_type(entry.endpoint, Endpoint)
        assert_type(entry.state, Literal["active", "ejected", "draining"])
        assert_type(entry.latency, float | None)
        assert_type(entry.failures["calls"], int)
        assert_type(entry.pool, events.PoolStats)
        entry.failures["cals"]  # type: ignore[index]  # pyright: ignore[reportArgumentType]
    assert stats.discovery.state != "gone"  # type: ignore[comparison-overlap]
    stats.idle = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def note(event: events.Event) -> None:
    assert_type(event.pool, str)
    match event:
        case events.EndpointEjected(endpoint=endpoint, kind=kind, seconds=seconds, error=error):
            assert_type(endpoint, Endpoint)
            assert_type(kind, Literal["connects", "keepalives", "calls"])
            assert_type(seconds, float)
            assert_type(error, BaseException | None)
        case events.ConnectionClosed():
            assert_type(event.cause, str | None)
            assert_type(event.endpoint, Endpoint | None)
        case _:
            print(event.endpoint)  # type: ignore[attr-defined]  # pyright: ignore
    if isinstance(event, events.EndpointUpdated):
        assert_type(event.previous, Endpoint)


def note_one_kind(event: events.EndpointEjected) -> None: ...


class Steady:
    """A resolver, with a parameter that has a name of the user's choosing."""

    min_refresh = 1.0

    def resolve(self, name: str | None) -> Resolution:
        if name is None:
            raise NoRecords("which service?", ttl=5)
        return Resolution((Endpoint("a.example.test", 1, weight=3),), ttl=5)


class Wordy:
    def resolve(self, name: str | None) -> list[str]:
        return []


class Nearest:
    """A balancer."""

    def choose(self, among: Sequence[Candidate], now: float) -> Candidate:
        return min(among, key=lambda candidate: (candidate.endpoint.name, candidate.in_flight / candidate.weight))


class Generic:
    """The same for every kind of candidate."""

    def choose(self, candidates: Sequence[C], now: float) -> C:
        return candidates[0]


class Vague:
    def choose(self, candidates: Sequence[Candidate], now: float) -> Endpoint:
        return candidates[0].endpoint


def finds_services() -> None:
    Caches("_redis._tcp.example.org", 10, balancer=LeastLoaded, outlier=None, subset=20)
    Caches("redis.example.org:6379", 10, resolver=DNSResolver(["192.0.2.1", ("192.0.2.2", 8600)], max_stale=None))
    Caches([("a", 1), ("b", 2)], 10, balancer=lambda: RoundRobin(), outlier=OutlierDetection(jitter=0))
    Caches([Endpoint("a", 1), ("b", 2)], 10, on_event=note)
    Caches(StaticResolver([("a", 1)]), 10, balancer=Nearest)
    Caches(Steady(), 10, balancer=Generic)
    Caches("redis", 10, resolver=Steady(), balancer=PeakEWMA)
    Caches(Wordy(), 10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Caches("redis", 10, balancer=Vague)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Caches("redis", 10, balancer=RoundRobin())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Caches("redis", 10, on_event=note_one_kind)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Caches(["a:1"], 10)  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    balancer: Balancer = Nearest()
    resolver: Resolver = Steady()
    assert_type(resolver.resolve("redis").endpoints, tuple[Endpoint, ...])
    assert_type(balancer.choose([], 0.0).latency, float | None)


# -- retry -------------------------------------------------------------------------------------------------------------

budget = RetryBudget(ratio=0.2, min_per_second=10)
assert_type(budget.balance(0.0), int)
assert_type(budget.reserve, float)
# Of partials of what has overloads mypy knows nothing. It refuses nothing, either.
patient = functools.partial(retry, max_failures=3, interval=0.05)


@retry
def plain(key: str, *, default: int = 0) -> bytes:
    return b""


@retry(max_failures=3, exc_classes=redis.ConnectionError, logger=logging.getLogger(), budget=budget)
def with_options(key: str, *, default: int = 0) -> bytes:
    return b""


@patient
def as_a_partial(key: str, *, default: int = 0) -> bytes:
    return b""


@patient()
def as_a_partial_called(key: str, *, default: int = 0) -> bytes:
    return b""


@retry(interval=1)
def generic(value: T) -> T:
    return value


def keeps_signatures() -> None:
    for function in (plain, with_options, retry(plain, max_failures=3)):
        assert_type(function("key", default=3), bytes)
    as_a_partial("key", default=3)
    as_a_partial_called("key", default=3)
    plain(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with_options("key", defualt=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    as_a_partial()  # pyright: ignore[reportCallIssue]
    as_a_partial_called(3)  # pyright: ignore[reportArgumentType]
    assert_type(generic(3), int)
    assert_type(retry(lambda: 3)(), int)
    handed_on: Callable[[str], bytes] = plain
    assert_type(handed_on("key"), bytes)
    retry(max_failure=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    retry(plain, budget=0.2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


class Client:
    def __init__(self, pool: Caches) -> None:
        self.pool = pool

    @retry
    def plain(self, key: str) -> redis.Redis:
        with self.pool.get() as client:
            return client

    @retry(max_failures=3, backoff=2.0, jitter=0.5, timeout=10)
    def with_options(self, key: str) -> redis.Redis:
        with self.pool.get() as client:
            return client

    @classmethod
    @retry(max_failures=3)
    def of_the_class(cls, key: str) -> type[Client]:
        return cls

    @staticmethod
    @retry
    def of_nobody(key: str) -> str:
        return key


def keeps_methods(client: Client) -> None:
    assert_type(client.plain("key"), redis.Redis)
    assert_type(client.with_options("key"), redis.Redis)
    assert_type(Client.plain(client, "key"), redis.Redis)
    assert_type(Client.of_the_class("key"), type[Client])
    assert_type(client.of_nobody("key"), str)
    client.plain(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.with_options()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def says_what_is_missing(pool: Caches) -> BaseException | None:
    try:
        pool.wait(timeout=1)
    except PoolTimeout as error:
        return error.__cause__
    return None


# -- the testing kit ---------------------------------------------------------------------------------------------------


def answer(connection: socket.socket) -> None:
    connection.sendall(connection.recv(100))


def some_fail(request: bytes) -> str | None:
    return "reset" if request.startswith(b"GET") else None


def fails(place: Endpoint) -> None:
    with Backend() as backend, Backend(answer, port=2485), Proxy(place) as proxy, DNSServer() as dns:
        assert_type(backend, Backend)
        assert_type(backend.address, tuple[str, int])
        proxy.target = backend.address
        proxy.fault = some_fail
        backend.fault = "hang"
        dns.fault = lambda query: "refused" if len(query.question) > 1 else None
        backend.fault = 3  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
        backend.requests.append(3)  # type: ignore[attr-defined]  # pyright: ignore
        backend.connections = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
        Backend(lambda: None)  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType]


def passes_no_time(place: Endpoint) -> None:
    clock: Callable[[], float] = VirtualClock(100)
    assert_type(clock(), float)
    candidate: Candidate = SimpleCandidate(place, in_flight=3)
    assert_type(RoundRobin().choose([SimpleCandidate(place)], 0.0), SimpleCandidate)
    assert_type(candidate.latency, float | None)
    story = play([SimulatedServer(place, fails=[(3, 8)]), SimulatedServer(place, lambda now: now)], seconds=20)
    assert_type(story.calls[0].failed_on, tuple[Endpoint, ...])
    assert_type(story.events[0], tuple[float, events.Event])
    play([place], seconds=20)  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
