"""The main job, end to end: BIND, three redis-servers, 30 greenlets of retried calls, and what can befall them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from time import monotonic

import gevent
import pytest
from gevent import socket

from geventconnpool import ClusterPool, Endpoint, events, retry
from geventconnpool.cluster import DNSResolver
from tests.servers import Bind, Redis, require, wait_until

SERVICE = "_redis._tcp.example.test"
GREENLETS = 30
PATIENCE = 30.0  # seconds


class Echoes(ClusterPool[socket.socket]):
    """Connections to Redis on which a call is an ECHO, so that a reply to somebody else's would be seen."""

    call_timeout = PATIENCE  # seconds that a client waits for its reply

    def _new_connection(self, endpoint: Endpoint) -> socket.socket:
        return endpoint.connect(timeout=self.call_timeout)

    def _keepalive(self, c: socket.socket) -> None:
        echo(c, b"keepalive")


class HastyEchoes(Echoes):
    """For a server that hangs."""

    call_timeout = 1.0


def echo(c: socket.socket, text: bytes) -> None:
    c.sendall(b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (len(text), text))
    expected = b"$%d\r\n%s\r\n" % (len(text), text)
    reply = b""
    while len(reply) < len(expected):
        chunk = c.recv(1000)
        if not chunk:
            raise OSError("the server hung up")
        reply += chunk
    assert reply == expected


@dataclass
class Attempt:
    endpoint: Endpoint
    began: float
    ended: float = 0.0
    failed: bool = False


class Load:
    """Greenlets that call, and what they saw."""

    def __init__(self, pool: Echoes) -> None:
        self.pool = pool
        self.attempts: list[Attempt] = []
        self.calls = 0
        self.failures: list[BaseException] = []
        self._numbers = count()
        self._is_on = True
        self._greenlets = [gevent.spawn(self._run) for _ in range(GREENLETS)]

    def stop(self) -> None:
        self._is_on = False
        gevent.joinall(self._greenlets, timeout=PATIENCE, raise_error=True)

    def _run(self) -> None:
        while self._is_on:
            try:
                self._call(b"%d" % next(self._numbers))
            except Exception as error:  # what the caller of a retried call would have seen
                self.failures.append(error)
            self.calls += 1
            gevent.sleep(0.01)

    @retry(max_failures=3)
    def _call(self, text: bytes) -> None:
        with self.pool.get(timeout=PATIENCE) as c:
            attempt = Attempt(self.pool.endpoint_of(c), monotonic())
            self.attempts.append(attempt)
            try:
                echo(c, text)
            except OSError:
                attempt.failed = True
                raise
            finally:
                attempt.ended = monotonic()

    def since(self, moment: float, endpoint: Endpoint) -> list[Attempt]:
        """The attempts on an endpoint that began after a moment."""
        return [a for a in self.attempts if a.began > moment and a.endpoint == endpoint]

    def ports(self, moment: float) -> set[int]:
        """Where attempts went that began after a moment."""
        return {a.endpoint.port for a in self.attempts if a.began > moment}


class Scene:
    """The servers, the cluster, its load, and when what was reported."""

    def __init__(self, bind: Bind, servers: list[Redis], kind: type[Echoes] = Echoes) -> None:
        self.bind = bind
        self.servers = servers
        self.reports: deque[tuple[float, events.Event]] = deque()
        bind.update(delete=[(SERVICE.removesuffix(".example.test"),)])
        for server in servers:
            self.publish(server)
        self.pool = kind(
            SERVICE,
            10,
            keepalive=1,
            keepalive_timeout=PATIENCE,
            resolver=DNSResolver([bind.address], timeout=0.5, lifetime=1.0, min_refresh=1),
            on_event=lambda event: self.reports.append((monotonic(), event)),
        )
        self.pool.wait(timeout=PATIENCE)
        self.load = Load(self.pool)
        wait_until(lambda: self.load.calls > 300, what="300 calls")

    def publish(self, server: Redis) -> None:
        name = f"redis{server.port}"
        self.bind.update(add=[("_redis._tcp", "SRV", f"0 10 {server.port} {name}"), (name, "A", "127.0.0.1")])

    def withdraw(self, server: Redis) -> None:
        self.bind.update(delete=[("_redis._tcp", "SRV", f"0 10 {server.port} redis{server.port}")])

    def endpoint(self, server: Redis) -> Endpoint:
        return Endpoint(f"redis{server.port}.example.test", server.port)

    def state(self, server: Redis) -> events.EndpointStats | None:
        entries = {entry.endpoint: entry for entry in self.pool.stats().endpoints}
        return entries.get(self.endpoint(server))

    def seen(self, kind: type[events.Event], server: Redis) -> list[float]:
        """When events of a kind were reported of a server."""
        return [
            at for at, e in self.reports if type(e) is kind and getattr(e, "endpoint", None) == self.endpoint(server)
        ]

    def end(self) -> None:
        self.load.stop()
        assert self.pool.close(PATIENCE)


@pytest.fixture(scope="module")
def bind() -> Iterator[Bind]:
    require("named")
    with Bind() as server:
        yield server


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Redis]]:
    require("redis-server")
    running = [Redis().start() for _ in range(4)]
    yield running
    for server in running:
        server.close()


@pytest.fixture
def scene(bind: Bind, servers: list[Redis], request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = Scene(bind, servers[:3], getattr(request, "param", Echoes))
    yield scene
    scene.end()


def test_calls_are_spread_over_all_servers_and_get_their_own_replies(scene: Scene) -> None:
    def shares() -> list[float]:
        calls = [len(scene.load.since(0, scene.endpoint(server))) for server in scene.servers]
        return [number / sum(calls) for number in calls]

    # One that the machine holds up gets few calls for some time.
    wait_until(lambda: min(shares()) > 0.03, 30, "a share for each")

    assert scene.load.failures == []


def test_a_killed_server_is_ejected_and_no_caller_sees_a_failure_and_it_serves_again_after_a_probe(
    scene: Scene,
) -> None:
    victim = scene.servers[0]
    victim.kill()
    wait_until(lambda: scene.seen(events.EndpointEjected, victim), what="the ejection")
    ejected_at = scene.seen(events.EndpointEjected, victim)[0]
    calls = scene.load.calls
    wait_until(lambda: scene.load.calls > calls + 500, what="500 calls more")
    failed = sorted(a.ended for a in scene.load.since(0, scene.endpoint(victim)) if a.failed)
    state = scene.state(victim)

    assert scene.load.failures == []
    assert state is not None
    assert state.state == "ejected"
    assert scene.load.since(ejected_at, scene.endpoint(victim)) == []
    assert scene.load.since(failed[4], scene.endpoint(victim)) == [] if len(failed) >= 5 else True

    victim.start()
    restarted_at = monotonic()
    wait_until(lambda: _is_probe_named(scene, victim), what="the next probe")
    named = scene.state(victim)
    assert named is not None
    next_probe = named.until or restarted_at
    wait_until(lambda: scene.load.since(restarted_at, scene.endpoint(victim)), what="a call to the restarted server")
    first = scene.load.since(restarted_at, scene.endpoint(victim))[0]

    assert [at for at in scene.seen(events.ProbeFailed, victim) if at > next_probe] == []
    assert first.began <= next_probe + 5.0
    assert scene.load.failures == []


def _is_probe_named(scene: Scene, server: Redis) -> bool:
    """Whether the next probe is known: it lies ahead, or the last one was passed."""
    state = scene.state(server)
    return state is not None and (state.state == "active" or (state.until or 0) > monotonic())


def test_a_server_that_leaves_dns_is_drained_and_no_call_is_cut(scene: Scene) -> None:
    leaver = scene.servers[1]
    scene.withdraw(leaver)
    wait_until(lambda: scene.seen(events.EndpointDrained, leaver), what="the drain")
    removed_at = scene.seen(events.EndpointRemoved, leaver)[0]
    calls = scene.load.calls
    wait_until(lambda: scene.load.calls > calls + 300, what="300 calls more")
    drained = [e for _, e in scene.reports if isinstance(e, events.EndpointDrained)]

    assert scene.load.failures == []
    assert scene.load.since(removed_at, scene.endpoint(leaver)) == []
    assert [e.forced for e in drained] == [False]
    assert not any(a.failed for a in scene.load.attempts)
    assert scene.state(leaver) is None


def test_a_server_that_is_added_is_used_as_soon_as_the_ttl_allows(scene: Scene, servers: list[Redis]) -> None:
    soon = 1.1 * 1.0 + 1.0  # 1.1 x max(TTL, min_refresh) + 1 s
    for _ in range(3):  # a busy machine is late now and then
        seconds = seconds_to_use(scene, servers[3])
        if seconds <= soon:
            break
        scene.withdraw(servers[3])
        wait_until(lambda: scene.state(servers[3]) is None, what="the end of the drain")

    assert seconds <= soon
    assert scene.load.failures == []


def seconds_to_use(scene: Scene, server: Redis) -> float:
    """Publish a server, and return how much later the first call to it began."""
    endpoint, began = scene.endpoint(server), monotonic()
    scene.publish(server)
    published_at = monotonic()
    wait_until(lambda: scene.load.since(began, endpoint), what="a call to the new server")
    return scene.load.since(began, endpoint)[0].began - published_at


@pytest.mark.bound(150)
def test_a_silent_dns_server_changes_nothing_and_does_not_stall_the_hub(scene: Scene) -> None:
    endpoints = set(scene.pool.pools)
    for _ in range(5):  # a busy machine adds gaps now and then; a hub that is blocked shows them every time
        before = largest_gap(2.0)
        scene.bind.pause()
        during = largest_gap(4.0)
        wait_until(lambda: scene.pool.stats().discovery.state == "stale", what="the end of a look-up")
        scene.bind.resume()
        if during <= before + 0.1:  # a look-up takes ten times as long
            break
    changes = [e for _, e in scene.reports if isinstance(e, (events.EndpointRemoved, events.EndpointEjected))]
    print(f"largest gap of a 1 ms ticker: {before * 1000:.1f} ms before, {during * 1000:.1f} ms while DNS was silent")

    assert during <= before + 0.1
    assert scene.pool.stats().discovery.last_error is not None or scene.reports
    assert any(e.state == "stale" for _, e in scene.reports if isinstance(e, events.DiscoveryChanged))
    assert set(scene.pool.pools) == endpoints
    assert changes == []
    assert scene.load.failures == []


def largest_gap(seconds: float) -> float:
    """Return the longest time between two ticks of a greenlet that sleeps for 1 ms, in seconds, over ``seconds``."""
    largest = 0.0
    last = end = monotonic()
    end += seconds
    while last < end:
        gevent.sleep(0.001)
        now = monotonic()
        largest = max(largest, now - last)
        last = now
    return largest


@pytest.mark.parametrize("scene", [HastyEchoes], indirect=True)
def test_a_server_that_hangs_is_ejected_and_no_caller_sees_a_failure(scene: Scene) -> None:
    victim = scene.servers[2]
    victim.pause()
    wait_until(lambda: scene.seen(events.EndpointEjected, victim), what="the ejection")
    victim.resume()
    wait_until(lambda: scene.seen(events.EndpointReadmitted, victim), what="the return")
    back_at = scene.seen(events.EndpointReadmitted, victim)[0]
    wait_until(lambda: scene.load.since(back_at, scene.endpoint(victim)), what="a call after the return")

    assert scene.load.failures == []
