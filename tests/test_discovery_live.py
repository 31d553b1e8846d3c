"""Discovery against real name servers: BIND, Unbound in front of it, all that can befall them, and what that costs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

from geventconnpool import ClusterPool, Endpoint, events, retry
from geventconnpool.cluster import DNSResolver, Resolution
from tests.servers import Bind, Redis, Unbound, require, require_ipv6, wait_until
from tests.test_main_job import Echoes, Load

ROOT = Path(__file__).parent.parent
NAME = "_redis._tcp"
SERVICE = f"{NAME}.{Bind.zone}"
OUTAGE = float(os.environ.get("OUTAGE_SECONDS", "8"))
ALLOWED_GAP = 15.0  # ms above those of an idle process
PATIENT: dict[str, Any] = {"timeout": 20.0, "lifetime": 20.0}  # with a name server that will answer
THREE = ["r1", "r2", "r3"]


@pytest.fixture(scope="module")
def bind() -> Iterator[Bind]:
    require("named")
    with Bind() as bind:
        yield bind


@pytest.fixture
def zone(bind: Bind) -> Bind:
    """BIND without the service."""
    bind.update(delete=[(NAME,)])
    return bind


# All that BIND can do. The acts are played by programs of their own, tests.discovery_scene, beside one that is idle.


def play() -> dict[str, Any]:
    """Return what the patched, the unpatched and the idle program have to tell."""
    require("named")
    with contextlib.ExitStack() as stack:
        programs = {mode: stack.enter_context(scene(mode)) for mode in ("idle", "patched", "unpatched")}
        told = {mode: programs[mode].communicate(timeout=120)[0] for mode in ("patched", "unpatched", "idle")}
    return {mode: json.loads(text) for mode, text in told.items()}


@contextlib.contextmanager
def scene(mode: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.discovery_scene", mode]
    # To be measured by coverage would take most of their time.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            yield program
        finally:
            program.kill()


@pytest.fixture(scope="module")
def played() -> dict[str, Any]:
    return play()


@pytest.fixture(params=["patched", "unpatched"])
def seen(request: pytest.FixtureRequest, played: dict[str, Any]) -> Any:
    """What the acts saw, by their names."""
    return played[request.param]["seen"]


def looks(state: str, outcome: str, hosts: list[str] = THREE, *, fails: bool = False) -> dict[str, Any]:
    return {"state": state, "outcome": outcome, "fails": fails, "hosts": hosts}


FRESH = looks("fresh", "3 SRV records from BIND")
EMPTY = "Echoes-1: the service has no endpoints"


def test_the_first_answer_brings_all_endpoints_and_says_who_gave_it(seen: Any) -> None:
    assert seen["the_first_answer"] == {"found": FRESH, "records": 3, "ttl": 0, "call": "served"}


def test_a_record_more_or_less_is_an_endpoint_more_or_less_and_the_others_are_untouched(seen: Any) -> None:
    assert seen["a_record_is_added_and_removed"] == {
        "added": looks("fresh", "4 SRV records from BIND", [*THREE, "r4"]),
        "removed": FRESH,
        "others are untouched": True,
        "news": ["EndpointAdded r4", "EndpointRemoved r4", "EndpointDrained r4"],
    }


def test_another_weight_is_an_update_in_place(seen: Any) -> None:
    assert seen["a_record_gets_another_weight"] == {
        "weights": [10, 70],
        "same pool": True,
        "same connection": True,
        "news": ["EndpointUpdated r2"],
    }


def test_a_target_without_an_address_is_told_and_one_that_lost_it_keeps_the_last(seen: Any) -> None:
    assert seen["a_target_has_no_address"] == {
        "never": looks("fresh", "4 SRV records from BIND, 1 without a known address"),
        "no longer": FRESH,
        "addresses": ["127.0.0.2"],
    }


def test_when_the_last_record_goes_all_is_held_then_emptied_and_comes_back(seen: Any) -> None:
    act = dict(seen["the_last_record_goes_and_comes_back"])
    lasted = act.pop("lasted")
    denial = f"{SERVICE} SRV: no such name (NXDOMAIN) from BIND"

    assert lasted >= 0.6  # empty_hold
    assert act == {
        "held": looks("held", denial, fails=True),
        "call": "served",
        "emptied": looks("empty", denial, [], fails=True),
        "refused": f"{EMPTY}: {denial}",
        "back": FRESH,
        "call when back": "served",
        "states": ["held", "empty", "fresh"],
    }


def test_a_name_with_other_records_only_is_held_and_emptied_too(seen: Any) -> None:
    denial = f"{SERVICE} SRV: no such record (NODATA) from BIND"

    assert seen["only_another_record_is_left"] == {
        "held": looks("held", denial, fails=True),
        "call": "served",
        "emptied": looks("empty", denial, [], fails=True),
    }


def test_a_service_that_is_decidedly_not_available_is_emptied_without_a_hold(seen: Any) -> None:
    outcome = "1 SRV records from BIND: the service is not available"

    assert seen["the_service_is_decidedly_not_available"] == {
        "emptied": looks("unavailable", outcome, []),
        "refused": f"{EMPTY}: {outcome}",
        "states": ["unavailable"],
        "call when back": "served",
    }


@pytest.mark.parametrize(
    ("act", "why"), [("the_name_server_is_silent", "no answer"), ("the_name_server_is_killed", "Connection refused")]
)
def test_without_a_name_server_all_is_kept_and_called_stale_with_the_reason(seen: Any, act: str, why: str) -> None:
    assert seen[act] == {
        "stale": looks("stale", f"{SERVICE} SRV: {why} from BIND", fails=True),
        "call": "served",
        "fresh": FRESH,
        "states": ["stale", "fresh"],
        "changes": [],
    }


def test_a_thousand_records_come_and_go(seen: Any) -> None:
    assert seen["a_thousand_records_come_and_go"] == {
        "call": "served",
        "gone": FRESH,
        "added": 1003,  # and the three that were there before
        "call when gone": "served",
    }


def test_a_set_too_large_for_any_message_changes_nothing_and_is_called_stale(seen: Any) -> None:
    why = f"{SERVICE} SRV: an answer too large for any message from BIND"

    assert seen["the_set_is_too_large_for_any_message"] == {
        "stale": looks("stale", why, fails=True),
        "call": "served",
        "removed": [],
    }


@pytest.mark.bound(400)
def test_none_of_this_stalls_the_hub_patched_or_not(played: dict[str, Any]) -> None:
    least: dict[tuple[str, str], float] = {}
    told = played
    for _ in range(4):  # the machine may be busy; an act that stalls the hub does so every time
        gaps = {mode: worst(told[mode]["gaps"]) for mode in told}
        print(f"largest gaps of a 1 ms ticker, in ms: {gaps}")
        for mode in told:
            for act, gap in told[mode]["gaps"].items():
                least[mode, act] = min(gap["own"], least.get((mode, act), inf))
        if all(own <= gaps["idle"]["own"] + ALLOWED_GAP for own in least.values()):
            return
        told = play()
    pytest.fail(f"largest gaps in ms: {gaps}, the least of each act: {least}, all: {told}")


def worst(gaps: dict[str, dict[str, float]]) -> dict[str, float]:
    return {kind: max(gap[kind] for gap in gaps.values()) for kind in ("gap", "own", "collecting")}


# Unbound in front of BIND


class Things(ClusterPool[object]):
    """Connections to nowhere: here only the endpoints matter."""

    def _new_connection(self, endpoint: Endpoint) -> object:
        return object()


@contextlib.contextmanager
def things(nameserver: tuple[str, int], service: str = SERVICE, **options: Any) -> Iterator[Things]:
    resolver = DNSResolver([nameserver], **{"min_refresh": 0.2, **options})
    pool = Things(service, 1, resolver=resolver)
    try:
        yield pool
    finally:
        pool.close(0)


def await_answers(pool: Things, count: int) -> None:
    wanted = pool.stats().discovery.generation + count
    wait_until(lambda: pool.stats().discovery.generation >= wanted, what=f"{count} answers")


def names(pool: ClusterPool[Any]) -> list[str]:
    return sorted(endpoint.name.partition(".")[0] for endpoint in pool.pools)


def test_addresses_that_do_not_come_along_are_asked_for_when_their_own_time_to_live_is_over(zone: Bind) -> None:
    require("unbound")
    zone.update(add=[("u1", "A", "127.0.0.2"), ("u2", "A", "127.0.0.3")], ttl=60)
    zone.update(add=[(NAME, "SRV", "0 1 6379 u1"), (NAME, "SRV", "0 1 6379 u2")], ttl=1)
    with Unbound(zone, serve_expired=False) as unbound, things(unbound.address, **PATIENT) as pool:
        await_answers(pool, 4)

        assert names(pool) == ["u1", "u2"]
        assert [endpoint.addresses for endpoint in pool.pools] == [("127.0.0.2",), ("127.0.0.3",)]
        assert unbound.queries(NAME, "SRV") >= 4
        assert [unbound.queries(host, "A") for host in ("u1", "u2")] == [1, 1]


def test_a_resolver_that_serves_what_has_expired_hides_the_end_of_its_name_server(zone: Bind) -> None:
    require("unbound")
    zone.update(add=[("u1", "A", "127.0.0.2"), (NAME, "SRV", "0 1 6379 u1")], ttl=1)
    with Unbound(zone, serve_expired=True) as unbound, things(unbound.address) as pool:
        await_answers(pool, 1)
        zone.pause()
        await_answers(pool, 3)  # for longer than the records live
        while_silent = pool.stats().discovery
        zone.resume()
        zone.kill()
        await_answers(pool, 3)
        while_dead = pool.stats().discovery
        zone.start()
        zone.update(add=[("u2", "A", "127.0.0.3"), (NAME, "SRV", "0 1 6379 u2")], ttl=1)
        wait_until(lambda: names(pool) == ["u1", "u2"], what="the new endpoint")

        outcome = f"1 SRV records from 127.0.0.1:{unbound.port}"
        assert [(told.state, told.outcome) for told in (while_silent, while_dead)] == [("fresh", outcome)] * 2


def test_a_resolver_that_has_nothing_left_says_servfail_and_all_is_kept(zone: Bind) -> None:
    require("unbound")
    zone.update(add=[("u1", "A", "127.0.0.2"), (NAME, "SRV", "0 1 6379 u1")], ttl=1)
    with Unbound(zone, serve_expired=False) as unbound, things(unbound.address, **PATIENT) as pool:
        await_answers(pool, 1)
        zone.kill()
        wait_until(lambda: "SERVFAIL" in pool.stats().discovery.outcome, what="that it has given up")
        stale = pool.stats().discovery
        kept = names(pool)
    zone.start()

    assert (stale.state, stale.outcome) == ("stale", f"{SERVICE} SRV: SERVFAIL from 127.0.0.1:{unbound.port}")
    assert kept == ["u1"]


def test_that_there_is_nothing_is_believed_for_the_negative_time_to_live(bind: Bind) -> None:
    require("unbound")
    bind.update(add=[("@", "SOA", "ns hostmaster 1000000 3600 600 86400 7")], ttl=7)
    with Unbound(bind, serve_expired=False) as unbound:
        with things(unbound.address, f"_none._tcp.{Bind.zone}", empty_hold=0, **PATIENT) as pool:
            wait_until(lambda: pool.stats().discovery.state == "empty", what="that it is empty")
            told = pool.stats().discovery
    bind.update(add=[("@", "SOA", "ns hostmaster 2000000 3600 600 86400 1")], ttl=1)

    assert told.since is not None
    assert told.next_lookup is not None
    assert 6.0 <= told.next_lookup - told.since <= 7.7  # Unbound counts down; up to a tenth more


# IPv6


def test_name_servers_and_endpoints_may_be_on_ipv6(zone: Bind) -> None:
    require_ipv6()
    server = StreamServer(("::1", 0), echo)
    server.start()
    port = int(server.address[1])
    zone.update(add=[("six", "AAAA", "::1"), (NAME, "SRV", f"0 1 {port} six")])
    resolver = DNSResolver([zone.address6], **PATIENT)
    pool = Sockets(SERVICE, 1, resolver=resolver)
    try:
        with pool.get(timeout=30) as c:
            c.sendall(b"hello")
            said, peer = c.recv(100), c.getpeername()
        told = wait_until(lambda: pool.stats().discovery.outcome, what="that it is told")
        over_tcp = resolver.confirm(SERVICE)
    finally:
        pool.close(0)
        server.stop()

    assert (said, peer[:2]) == (b"hello", ("::1", port))
    assert told == f"1 SRV records from [::1]:{zone.port}"
    assert over_tcp.endpoints == (Endpoint("six.example.test", port),)
    assert over_tcp.endpoints[0].address == ("::1", port)


class Sockets(ClusterPool[socket.socket]):
    def _new_connection(self, endpoint: Endpoint) -> socket.socket:
        return endpoint.connect(30)


def echo(connection: socket.socket, _address: object) -> None:
    with contextlib.suppress(OSError):
        while data := connection.recv(100):
            connection.sendall(data)


# Under load: 30 greenlets that call three real servers


@pytest.fixture(scope="module")
def redis() -> Iterator[list[Redis]]:
    require("redis-server")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Redis()) for _ in range(6)]


class PatientEchoes(Echoes):
    """A machine that is busy for a while is no failure."""

    def _new_connection(self, endpoint: Endpoint) -> socket.socket:
        return endpoint.connect(20)


class Confirming(DNSResolver):
    """Counts how often it was asked for a second opinion."""

    confirmed = 0

    def confirm(self, service: str | None) -> Resolution:
        self.confirmed += 1
        return super().confirm(service)


def records(servers: list[Redis]) -> list[tuple[str, str, str]]:
    return [(NAME, "SRV", f"0 1 {server.port} redis") for server in servers]


@pytest.fixture
def loaded(zone: Bind, redis: list[Redis]) -> Iterator[tuple[PatientEchoes, Load, list[events.Event], Confirming]]:
    zone.update(add=[("redis", "A", "127.0.0.1"), *records(redis[:3])])
    news: list[events.Event] = []
    resolver = Confirming([zone.address], timeout=1.0, lifetime=2.0, min_refresh=1)
    pool = PatientEchoes(SERVICE, 20, keepalive=1, keepalive_timeout=20, resolver=resolver, on_event=news.append)
    pool.wait(timeout=20)
    load = Load(pool)
    try:
        wait_until(lambda: load.calls > 300 and pool.stats().open == 60, what="300 calls, and all connections")
        yield pool, load, news, resolver
    finally:
        load.stop()
        assert pool.close(30)


@pytest.mark.bound(OUTAGE + 60)
def test_while_dns_is_silent_no_call_fails_and_no_connection_is_closed(
    zone: Bind, loaded: tuple[PatientEchoes, Load, list[events.Event], Confirming]
) -> None:
    pool, load, news, _resolver = loaded
    endpoints, before, calls = set(pool.pools), pool.stats(), load.calls
    zone.pause()
    gevent.sleep(OUTAGE)
    why = f"{SERVICE} SRV: no answer from 127.0.0.1:{zone.port}"
    wait_until(lambda: pool.stats().discovery.outcome == why, what="that it is stale")
    stale, made = pool.stats(), load.calls - calls
    zone.resume()
    wait_until(lambda: pool.stats().discovery.state == "fresh", what="that it is fresh")
    print(f"{made} calls in {OUTAGE} s without DNS")

    assert stale.discovery.state == "stale"
    assert made > 300
    assert load.failures == []
    assert not any(attempt.failed for attempt in load.attempts)
    assert (before.opened, before.closed) == (pool.stats().opened, pool.stats().closed) == (60, 0)
    assert set(pool.pools) == endpoints
    assert not any(isinstance(e, (events.EndpointRemoved, events.EndpointEjected)) for e in news)


def test_when_all_endpoints_are_replaced_at_once_no_call_fails_and_none_in_flight_is_cut(
    zone: Bind, redis: list[Redis], loaded: tuple[PatientEchoes, Load, list[events.Event], Confirming]
) -> None:
    pool, load, news, resolver = loaded
    long_calls = LongCalls(pool)
    wait_until(lambda: len(long_calls.done) > 10, 30, "some long calls")
    confirmed = resolver.confirmed
    zone.update(delete=[(NAME, "SRV")], add=records(redis[3:]))
    wait_until(lambda: sum(isinstance(e, events.EndpointDrained) for e in news) == 3, 30, "the drain")
    replaced_at, calls = monotonic(), load.calls
    wait_until(lambda: load.calls > calls + 300 and len(load.ports(replaced_at)) >= 3, 30, "300 calls to three servers")
    long_calls.stop()
    drained = [e.forced for e in news if isinstance(e, events.EndpointDrained)]
    removed_at = min(long_calls.removals)
    ports = load.ports(replaced_at)

    assert confirmed == 0
    assert resolver.confirmed > 0
    assert load.failures == long_calls.failures == []
    assert not any(attempt.failed for attempt in load.attempts)
    assert drained == [False] * 3
    assert ports == {server.port for server in redis[3:]}
    # Those that were in flight at that moment have finished where they began.
    old = {server.port for server in redis[:3]}
    assert [port in old for began, ended, port in long_calls.done if began < removed_at < ended].count(True) >= 3
    assert pool.stats().discarded["error"] == 0


class LongCalls:
    """Ten greenlets with calls of half a second, and when endpoints were first seen to drain."""

    def __init__(self, pool: PatientEchoes) -> None:
        self.done: list[tuple[float, float, int]] = []  # began, ended, port
        self.failures: list[BaseException] = []
        self.removals: list[float] = []
        self._pool = pool
        self._is_on = True
        self._greenlets = [gevent.spawn(self._run) for _ in range(10)] + [gevent.spawn(self._watch)]

    def stop(self) -> None:
        self._is_on = False
        gevent.joinall(self._greenlets, timeout=30, raise_error=True)

    def _run(self) -> None:
        while self._is_on:
            try:
                self._call()
            except Exception as error:
                self.failures.append(error)

    @retry(max_failures=1)  # so that one that is cut would be seen
    def _call(self) -> None:
        with self._pool.get(timeout=30) as c:
            began, port = monotonic(), self._pool.endpoint_of(c).port
            c.sendall(b"BLPOP nothing 0.5\r\n")
            assert c.recv(100) == b"*-1\r\n"
            self.done.append((began, monotonic(), port))

    def _watch(self) -> None:
        while self._is_on:
            if any(entry.state == "draining" for entry in self._pool.stats().endpoints):
                self.removals.append(monotonic())
            gevent.sleep(0.01)


# Figures


def test_the_figures_of_discovery_can_be_measured() -> None:
    require("named")
    command = [sys.executable, "-m", "tests.discovery_figures", "1", "0.2"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=True).stdout
    print(told)

    assert [line.partition(":")[0] for line in told.splitlines()] == [
        "from an update to the first call",
        "a pool of 3 endpoints at rest",
        "a pool of 300 endpoints at rest",
    ]
