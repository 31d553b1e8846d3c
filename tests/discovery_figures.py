"""What discovery costs, and how long it takes to notice: ``python -m tests.discovery_figures [updates [seconds]]``.

Opt-in, as it takes minutes: the time from an update in BIND to the first call on the new endpoint, at a TTL of 1 s and
``min_refresh=1``, and the CPU time per hour of pools at rest, extrapolated from so many seconds at a TTL of 5 s and the
default options.
"""

from __future__ import annotations

import sys
from contextlib import closing
from functools import partial
from random import uniform
from statistics import median
from time import monotonic, process_time
from typing import Any

import gevent
from gevent import socket
from gevent.server import StreamServer

from geventconnpool import ClusterPool, Endpoint
from geventconnpool.cluster import DNSResolver
from tests.servers import Bind, wait_until

NAME = "_redis._tcp"
SERVICE = f"{NAME}.{Bind.zone}"


class Sockets(ClusterPool[socket.socket]):
    def _new_connection(self, endpoint: Endpoint) -> socket.socket:
        return endpoint.connect(30)


def hold(connection: socket.socket, _address: object) -> None:
    connection.recv(1)


def seconds_to_first_call(bind: Bind, updates: int) -> list[float]:
    """Add an endpoint so many times, each at any time between two look-ups."""
    servers = [StreamServer(("127.0.0.1", 0), hold) for _ in range(updates + 1)]
    for server in servers:
        server.start()
    bind.update(delete=[(NAME,)], add=[("host", "A", "127.0.0.1"), _record(int(servers[0].address[1]))], ttl=1)
    pool = Sockets(SERVICE, 1, resolver=DNSResolver([bind.address], min_refresh=1))
    took = []
    with closing(pool):
        pool.wait(timeout=30)
        for server in servers[1:]:
            gevent.sleep(uniform(1.0, 2.0))
            bind.update(add=[_record(int(server.address[1]))], ttl=1)
            began = monotonic()
            wait_until(partial(_may_call, pool, int(server.address[1])), what="the new endpoint")
            took.append(monotonic() - began)
    for server in servers:
        server.stop()
    return took


def cpu_per_hour(bind: Bind, endpoints: int, seconds: float) -> tuple[float, int]:
    """Return CPU seconds per hour of a pool of so many at rest, with a connection to each, and how often it looked."""
    server = StreamServer(("127.0.0.1", 0), hold)
    server.start()
    port = int(server.address[1])
    hosts = [f"host{number}" for number in range(endpoints)]
    bind.update(delete=[(NAME,)], add=[(host, "A", "127.0.0.1") for host in hosts], ttl=5)
    bind.update(add=[(NAME, "SRV", f"0 1 {port} {host}") for host in hosts], ttl=5)
    pool = Sockets(SERVICE, 1, resolver=DNSResolver([bind.address]))
    with closing(pool):
        pool.wait(endpoints, timeout=30)
        began, used, looked = monotonic(), process_time(), pool.stats().discovery.generation
        gevent.sleep(seconds)
        used, took = process_time() - used, monotonic() - began
        looked = pool.stats().discovery.generation - looked
    server.stop()
    return used / took * 3600, looked


def _record(port: int) -> tuple[str, str, str]:
    return NAME, "SRV", f"0 1 {port} host"


def _may_call(pool: Sockets, port: int) -> Any:
    endpoint_pool = pool.pools.get(Endpoint(f"host.{Bind.zone}", port))
    if endpoint_pool is None:
        return False
    with endpoint_pool.get(timeout=30) as c:
        return c


def main() -> None:
    updates, seconds = int((sys.argv[1:] or ["7"])[0]), float((sys.argv[2:] or ["60"])[0])
    with Bind() as bind:
        took = seconds_to_first_call(bind, updates)
        print(
            f"from an update to the first call: {median(took):.2f} s (median of {updates}; at most {max(took):.2f} s)"
        )
        for endpoints in (3, 300):
            used, looked = cpu_per_hour(bind, endpoints, seconds)
            print(f"a pool of {endpoints} endpoints at rest: {used:.1f} s of CPU per hour ({looked} look-ups seen)")


if __name__ == "__main__":
    main()
