"""All that BIND can do to one cluster, as a program: what becomes of the cluster, and how long its hub stands still.

``python -m tests.discovery_scene [patched]`` plays the acts below in their order, on one cluster and beside a ticker,
and prints as JSON what each of them saw and the largest gaps; with ``idle`` there is only the ticker, until standard
input ends. BIND is in the hands of another process, since to make an update of a thousand records stalls a hub, too.
"""

from __future__ import annotations

import gc
import json
import socket as native_socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import gevent
from gevent import socket
from gevent.server import StreamServer
from gevent.socket import wait_read

from geventconnpool import ClusterPool, Endpoint, PoolUnavailable, events
from geventconnpool.cluster import DNSResolver
from tests.servers import Bind, die_with_parent, wait_until

NAME = "_redis._tcp"
MANY = 1000
TOO_MANY = 1320  # times 51 bytes are more than the 65,535 of a message
PATIENCE = 60.0
SCHEDSTAT = Path("/proc/self/schedstat")

Record = tuple[str, str, str]


class Echoes(ClusterPool[socket.socket]):
    def _new_connection(self, endpoint: Endpoint) -> socket.socket:
        return endpoint.connect(PATIENCE)


class Hands:
    """BIND, run by a process of its own that does what it is told, one method call at a time."""

    def __init__(self) -> None:
        ours, theirs = native_socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.discovery_scene", "hands"], stdin=theirs.fileno(), preexec_fn=die_with_parent
        )
        theirs.close()
        self._lines = socket.socket(fileno=ours.detach()).makefile("rw")
        self.address: tuple[str, int] = ("127.0.0.1", int(self._lines.readline()))

    def do(self, method: str, **arguments: Any) -> None:
        self._lines.write(json.dumps([method, arguments]) + "\n")
        self._lines.flush()
        assert self._lines.readline() == "done\n", f"{method} failed"

    def close(self) -> None:
        self._lines.close()
        self._process.wait(PATIENCE)


def be_hands() -> None:
    with native_socket.socket(fileno=0) as connection, connection.makefile("rw") as lines, Bind() as bind:
        lines.write(f"{bind.port}\n")
        lines.flush()
        for line in lines:
            method, arguments = json.loads(line)
            getattr(bind, method)(**arguments)
            lines.write("done\n")
            lines.flush()


class Ticker:
    """The largest gaps of a greenlet that sleeps for 1 ms, in ms: as they were, and without what is no doing of ours.

    That is the time in which the process could have run and others did, and the pauses of the garbage collector, which
    are noted on their own.
    """

    def __init__(self) -> None:
        self.gap = self.own = self.collecting = 0.0
        self._collected = self._began = 0.0
        gc.callbacks.append(self._collects)
        self._greenlet = gevent.spawn(self._tick)

    def take(self) -> dict[str, float]:
        taken = {"gap": self.gap, "own": self.own, "collecting": self.collecting}
        self.gap = self.own = self.collecting = 0.0
        return {name: round(seconds * 1000, 1) for name, seconds in taken.items()}

    def _tick(self) -> None:
        last, delayed = perf_counter(), _run_delay()
        while True:
            self._collected = 0.0
            gevent.sleep(0.001)
            now, delayed_now = perf_counter(), _run_delay()
            self.gap = max(self.gap, now - last)
            self.own = max(self.own, now - last - (delayed_now - delayed) - self._collected)
            self.collecting = max(self.collecting, self._collected)
            last, delayed = now, delayed_now

    def _collects(self, phase: str, _info: object) -> None:
        now = thread_time()
        if phase == "start":
            self._began = now
        else:
            self._collected += now - self._began


def _run_delay() -> float:
    """For how many seconds this process was ready to run and did not; 0 where the kernel does not tell."""
    try:
        return int(SCHEDSTAT.read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


class Scene:
    """Three endpoints of a service, and a cluster that has found them."""

    def __init__(self, hands: Hands) -> None:
        self.hands = hands
        self.servers = {f"r{n}": StreamServer((f"127.0.0.{n + 1}", 0), _echo) for n in (1, 2, 3, 4)}
        for server in self.servers.values():
            server.start()
        self.usual = [self.srv(name) for name in ("r1", "r2", "r3")]
        hosts = [(name, "A", server.address[0]) for name, server in self.servers.items()]
        self.change(add=[*hosts, *self.usual])
        self.news: list[events.Event] = []
        self.pool = Echoes(
            f"{NAME}.{Bind.zone}",
            size=1,
            min_size=0,
            resolver=DNSResolver([hands.address], timeout=1.0, lifetime=6.0, min_refresh=0.3, empty_hold=0.6),
            on_event=self.news.append,
        )

    def srv(self, host: str, weight: int = 10) -> Record:
        return NAME, "SRV", f"0 {weight} {self.servers[host].server_port} {host}"

    def change(self, add: Iterable[Record] = (), delete: Iterable[tuple[str, ...]] = (), ttl: int = 0) -> None:
        self.hands.do("update", add=list(add), delete=list(delete), ttl=ttl)

    def restore(self) -> None:
        """Have the three in DNS, nothing else, and wait until the cluster has it, too."""
        self.change(delete=[(NAME,)], add=self.usual)
        self.until(state="fresh", hosts=["r1", "r2", "r3"])
        wait_until(lambda: self._told_states()[-1:] in ([], ["fresh"]), PATIENCE, "the report of that")
        self.news.clear()

    def until(self, **wanted: Any) -> dict[str, Any]:
        """Return how the cluster looks as soon as it looks like that."""
        with suppress(AssertionError):
            wait_until(lambda: wanted.items() <= self.look().items(), PATIENCE)
        return self.look()

    def look(self) -> dict[str, Any]:
        stats = self.pool.stats()
        found = stats.discovery
        return {
            "state": found.state,
            "outcome": self._named(found.outcome),
            "fails": found.last_error is not None,
            "hosts": sorted(_host(entry.endpoint) for entry in stats.endpoints if entry.state == "active"),
        }

    def look_ups(self, count: int) -> None:
        """Wait for so many answers."""
        wanted = self.pool.stats().discovery.generation + count
        wait_until(lambda: self.pool.stats().discovery.generation >= wanted, PATIENCE, "answers")

    def told(self, *kinds: type[events.Event]) -> list[str]:
        """What was reported of these kinds, in words."""
        return [_in_words(event) for event in self.news if isinstance(event, kinds)]

    def states(self, last: str) -> list[str]:
        """Which states were reported up to that one."""
        wait_until(lambda: self._told_states()[-1:] == [last], PATIENCE, last)
        return self._told_states()

    def _told_states(self) -> list[str]:
        return [event.state for event in self.news if isinstance(event, events.DiscoveryChanged)]

    def since(self) -> float:
        """When the present state of discovery began."""
        since = self.pool.stats().discovery.since
        assert since is not None
        return since

    def call(self) -> str:
        """Call some endpoint, and return what became of it."""
        try:
            with self.pool.get(timeout=PATIENCE) as c:
                return _call(c)
        except PoolUnavailable as error:
            return self._named(str(error))

    def _named(self, text: str) -> str:
        return text.replace(f"127.0.0.1:{self.hands.address[1]}", "BIND")

    def connection_to(self, host: str) -> int:
        """Call an endpoint, and return which connection that took."""
        endpoint = next(endpoint for endpoint in self.pool.pools if _host(endpoint) == host)
        with self.pool.pools[endpoint].get(timeout=PATIENCE) as c:
            assert _call(c) == "served"
            return id(c)

    def close(self) -> None:
        self.pool.close(0)
        for server in self.servers.values():
            server.stop()


def the_first_answer(scene: Scene) -> dict[str, Any]:
    found = scene.until(state="fresh", hosts=["r1", "r2", "r3"])  # which come in slices
    discovery = scene.pool.stats().discovery
    return {"found": found, "records": discovery.records, "ttl": discovery.ttl, "call": scene.call()}


def a_record_is_added_and_removed(scene: Scene) -> dict[str, Any]:
    connections = [scene.connection_to(host) for host in ("r1", "r2", "r3")]
    scene.change(add=[scene.srv("r4")])
    added = scene.until(hosts=["r1", "r2", "r3", "r4"], outcome="4 SRV records from BIND")  # which is told last
    scene.connection_to("r4")
    scene.change(delete=[scene.srv("r4")])
    removed = scene.until(hosts=["r1", "r2", "r3"], outcome="3 SRV records from BIND")
    wait_until(lambda: scene.told(events.EndpointDrained), PATIENCE)
    return {
        "added": added,
        "removed": removed,
        "others are untouched": connections == [scene.connection_to(host) for host in ("r1", "r2", "r3")],
        "news": scene.told(events.EndpointAdded, events.EndpointRemoved, events.EndpointDrained),
    }


def a_record_gets_another_weight(scene: Scene) -> dict[str, Any]:
    before = next(endpoint for endpoint in scene.pool.pools if _host(endpoint) == "r2")
    pool, connection = scene.pool.pools[before], scene.connection_to("r2")
    scene.change(delete=[scene.srv("r2")], add=[scene.srv("r2", weight=70)])
    wait_until(lambda: scene.told(events.EndpointUpdated), PATIENCE)
    after = next(endpoint for endpoint in scene.pool.pools if _host(endpoint) == "r2")
    return {
        "weights": [before.weight, after.weight],
        "same pool": scene.pool.pools[after] is pool,
        "same connection": scene.connection_to("r2") == connection,
        "news": scene.told(events.EndpointAdded, events.EndpointUpdated, events.EndpointRemoved),
    }


def a_target_has_no_address(scene: Scene) -> dict[str, Any]:
    scene.change(add=[(NAME, "SRV", "0 10 6379 nowhere")])
    never = scene.until(outcome="4 SRV records from BIND, 1 without a known address")
    scene.change(delete=[(NAME, "SRV", "0 10 6379 nowhere"), ("r1", "A")])
    scene.look_ups(3)
    no_longer = scene.look()
    addresses = next(endpoint.addresses for endpoint in scene.pool.pools if _host(endpoint) == "r1")
    scene.change(add=[("r1", "A", "127.0.0.2")])
    return {"never": never, "no longer": no_longer, "addresses": addresses}


def the_last_record_goes_and_comes_back(scene: Scene) -> dict[str, Any]:
    scene.change(delete=[(NAME, "SRV")])
    held = scene.until(state="held")
    since = scene.since()
    call = scene.call()
    emptied = scene.until(state="empty")
    lasted = scene.since() - since
    refused = scene.call()
    scene.change(add=scene.usual)
    return {
        "held": held,
        "call": call,
        "emptied": emptied,
        "lasted": lasted,
        "refused": refused,
        "back": scene.until(state="fresh", hosts=["r1", "r2", "r3"]),
        "call when back": scene.call(),
        "states": scene.states("fresh"),
    }


def only_another_record_is_left(scene: Scene) -> dict[str, Any]:
    scene.change(delete=[(NAME, "SRV")], add=[(NAME, "TXT", "nothing")])
    held = scene.until(state="held")
    return {"held": held, "call": scene.call(), "emptied": scene.until(state="empty")}


def the_service_is_decidedly_not_available(scene: Scene) -> dict[str, Any]:
    scene.change(delete=[(NAME, "SRV")], add=[(NAME, "SRV", "0 0 0 .")])
    emptied = scene.until(state="unavailable")
    refused = scene.call()
    states = scene.states("unavailable")
    scene.restore()
    return {"emptied": emptied, "refused": refused, "states": states, "call when back": scene.call()}


def the_name_server_is_silent(scene: Scene) -> dict[str, Any]:
    scene.hands.do("pause")
    stale = scene.until(state="stale", outcome=f"{NAME}.example.test SRV: no answer from BIND")
    call = scene.call()
    scene.hands.do("resume")
    return _came_back(scene, stale, call)


def the_name_server_is_killed(scene: Scene) -> dict[str, Any]:
    scene.hands.do("kill")
    # A question may have been under way, and has no answer then.
    stale = scene.until(state="stale", outcome=f"{NAME}.example.test SRV: Connection refused from BIND")
    call = scene.call()
    scene.hands.do("start")
    return _came_back(scene, stale, call)


def a_thousand_records_come_and_go(scene: Scene) -> dict[str, Any]:
    hosts = [f"t{number:04}" for number in range(MANY)]
    scene.change(add=[(host, "A", "127.0.0.2") for host in hosts], ttl=60)
    port = scene.servers["r1"].server_port
    scene.change(delete=[(NAME, "SRV")], add=[(NAME, "SRV", f"0 10 {port} {host}") for host in hosts])
    wait_until(lambda: len(scene.pool.pools) == MANY, PATIENCE, "so many endpoints")
    call = scene.call()
    scene.change(delete=[(NAME, "SRV")], add=scene.usual)
    wait_until(lambda: len(scene.pool.pools) == 3, PATIENCE, "three endpoints")
    gone = scene.until(outcome="3 SRV records from BIND")
    scene.change(delete=[(host,) for host in hosts])
    return {
        "call": call,
        "gone": gone,
        "added": len(scene.told(events.EndpointAdded)),
        "call when gone": scene.call(),
    }


def the_set_is_too_large_for_any_message(scene: Scene) -> dict[str, Any]:
    records = [(NAME, "SRV", f"0 1 6379 {'x' * 13}-{number:04}") for number in range(TOO_MANY)]
    for some in (records[:700], records[700:]):  # for an update, too
        scene.change(add=some)
    outcome = f"{NAME}.example.test SRV: an answer too large for any message from BIND"
    stale = scene.until(state="stale", outcome=outcome)  # the server may have been too busy to answer, at first
    return {"stale": stale, "call": scene.call(), "removed": scene.told(events.EndpointRemoved)}


ACTS: list[Callable[[Scene], dict[str, Any]]] = [
    the_first_answer,
    a_record_is_added_and_removed,
    a_record_gets_another_weight,
    a_target_has_no_address,
    the_last_record_goes_and_comes_back,
    only_another_record_is_left,
    the_service_is_decidedly_not_available,
    the_name_server_is_silent,
    the_name_server_is_killed,
    a_thousand_records_come_and_go,
    the_set_is_too_large_for_any_message,
]


def play() -> dict[str, Any]:
    """Play all acts. Return what each saw, and the largest gap and collector's pause in each, in ms."""
    hands = Hands()
    scene = Scene(hands)
    gc.collect()
    ticker = Ticker()
    seen, gaps = {}, {}
    try:
        for act in ACTS:
            seen[act.__name__] = act(scene)
            scene.restore()
            gaps[act.__name__] = ticker.take()
    finally:
        scene.close()
        hands.close()
    return {"seen": seen, "gaps": gaps}


def idle() -> dict[str, Any]:
    ticker = Ticker()
    wait_read(0)  # its end
    return {"seen": {}, "gaps": {"idle": ticker.take()}}


def _came_back(scene: Scene, stale: dict[str, Any], call: str) -> dict[str, Any]:
    fresh = scene.until(state="fresh")
    states = scene.states("fresh")
    changes = scene.told(events.EndpointAdded, events.EndpointRemoved, events.EndpointEjected)
    return {"stale": stale, "call": call, "fresh": fresh, "states": states, "changes": changes}


def _echo(connection: socket.socket, _address: object) -> None:
    with suppress(OSError):
        while data := connection.recv(100):
            connection.sendall(data)


def _call(c: socket.socket) -> str:
    c.sendall(b"served")
    return c.recv(100).decode()


def _host(endpoint: Endpoint) -> str:
    return endpoint.name.partition(".")[0]


def _in_words(event: events.Event) -> str:
    return f"{type(event).__name__} {_host(event.endpoint)}"  # type: ignore[attr-defined]


def main() -> None:
    if sys.argv[1:] == ["hands"]:
        be_hands()
        return
    print(json.dumps(idle() if sys.argv[1:] == ["idle"] else play()))


if __name__ == "__main__":
    if sys.argv[1:] == ["patched"]:
        from gevent import monkey

        monkey.patch_all()
    main()
