"""Ten minutes of trouble: faults of every kind over a pool and a cluster, with an eye on memory and descriptors.

``make soak``, or ``python -m tests.soak SECONDS``. Ends with status 0 if nobody ever got the answer of another, all
calls ended, and memory, descriptors and greenlets were flat.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic
from typing import Any

import gevent
from gevent import socket

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, PoolError, retry
from geventconnpool.cluster import Resolution
from geventconnpool.testing import Backend

WORKERS = 40
SAMPLE_EVERY = 5.0  # seconds
MEMORY_MAY_GROW = 1.05  # times the first half's
MEMORY_NOISE = 4.0  # MB: what a run of a minute may differ in
rng = Random(1)
tokens = count()


class Server(Backend):
    """Echoes lines; now and then it is slow, says nothing, hangs up, or is gone for a while."""

    def __init__(self) -> None:
        super().__init__(_serve)
        self.start()

    def restart(self) -> None:
        self.stop()
        gevent.sleep(rng.uniform(0, 1))
        self.start()


def _serve(connection: Any) -> None:
    with connection.makefile("rb") as lines:
        for line in lines:
            gevent.sleep(rng.choice([0, 0, 0, 0.001, 0.003, 0.2 if rng.random() < 0.05 else 0]))
            if rng.random() < 0.01:
                return
            connection.sendall(line)


class Hooks:
    def _keepalive(self, c: Any) -> None:
        echo(c)

    def _close_connection(self, c: Any) -> None:
        c.close()


class Pool(Hooks, ConnectionPool[Any]):
    port = 0

    def _new_connection(self) -> Any:
        return socket.create_connection(("127.0.0.1", self.port), timeout=0.5)


class Cluster(Hooks, ClusterPool[Any]):
    def _new_connection(self, endpoint: Endpoint) -> Any:
        return endpoint.connect(timeout=0.5)


class Fickle:
    """Names other servers each time, sometimes none, and fails now and then."""

    min_refresh = 0.2

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers

    def resolve(self, service: str | None) -> Resolution:
        if rng.random() < 0.1:
            raise OSError("no DNS")
        chosen = rng.sample(self._servers, rng.randint(1, len(self._servers)))
        return Resolution(tuple(Endpoint("127.0.0.1", server.port, (), rng.choice([0, 0, 1])) for server in chosen), 1)


def echo(c: Any) -> None:
    line = b"%d\n" % next(tokens)
    c.sendall(line)
    answer = c.recv(100)
    if not answer:
        raise OSError("hung up")
    if answer != line:
        raise SystemError(f"got the answer of another: {answer!r} for {line!r}")


def make_pool(server: Server) -> Pool:
    Pool.port = server.port
    return Pool(
        8,
        keepalive=0.5,
        keepalive_timeout=0.2,
        open_timeout=1,
        min_size=2,
        max_idle=1,
        max_lifetime=3,
        max_waiting=30,
        fail_after=2,
        hold_warning=1,
    )


def make_cluster(servers: list[Server]) -> Cluster:
    return Cluster(
        Fickle(servers), 4, keepalive=0.5, keepalive_timeout=0.2, open_timeout=1, max_lifetime=3, drain_timeout=1
    )


class Soak:
    """The load, and what it did."""

    def __init__(self, seconds: float) -> None:
        self.servers = [Server() for _ in range(4)]
        self.pools: list[Any] = [make_pool(self.servers[0]), make_cluster(self.servers)]
        self.ends_at = monotonic() + seconds
        self.outcomes: dict[str, int] = {}
        self.workers: set[Any] = set()

    @property
    def is_on(self) -> bool:
        return monotonic() < self.ends_at

    def work(self) -> None:
        while self.is_on:
            pool = rng.choice(self.pools)
            try:
                with gevent.Timeout(rng.choice([0.001, 0.01, 0.1, 1])):
                    rng.choice([self.call, self.call, self.retried, self.by_hand, self.forget_lease])(pool)
                outcome = "well"
            except (PoolError, OSError, gevent.Timeout) as error:
                outcome = type(error).__name__
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            gevent.sleep(rng.choice([0, 0.001, 0.01]))

    def call(self, pool: Any) -> None:
        with pool.get(timeout=rng.choice([0, 0.1, None])) as c:
            echo(c)

    def retried(self, pool: Any) -> None:
        retry(self.call, max_failures=3)(pool)

    def by_hand(self, pool: Any) -> None:
        c = pool.acquire()
        try:
            echo(c)
        except BaseException:
            pool.discard(c)
            raise
        pool.release(c)

    def forget_lease(self, pool: Any) -> None:
        def lease() -> Any:
            with pool.get() as c:
                yield c

        kept: list[Any] = [lease()]
        kept.append(kept)  # so that it is the collector that ends it
        echo(next(kept[0]))

    def trouble(self) -> None:
        """Restart servers, kill callers, reset and resize, make pools and forget them."""
        while self.is_on:
            gevent.sleep(rng.uniform(0, 0.3))
            rng.choice([self.restart, self.kill, self.kill, self.change, self.come_and_go])()
            self.fill()

    def restart(self) -> None:
        rng.choice(self.servers).restart()

    def kill(self) -> None:
        rng.choice(sorted(self.workers, key=id)).kill(block=False)

    def change(self) -> None:
        pool = rng.choice(self.pools)
        rng.choice([pool.reset, lambda: pool.resize(rng.randint(1, 8))])()

    def come_and_go(self) -> None:
        """A pool that is closed, and one that is forgotten."""
        with make_pool(self.servers[0]) as pool:
            gevent.sleep(rng.choice([0, 0.05]))
            gevent.spawn(self.call, pool).join(0.1)
        make_cluster(self.servers)

    def fill(self) -> None:
        self.workers = {worker for worker in self.workers if not worker.dead}
        while len(self.workers) < WORKERS and self.is_on:
            self.workers.add(gevent.spawn(self.work))


def sample() -> tuple[float, int, int, int]:
    """Return memory in MB, descriptors, greenlets, objects."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    objects = gc.get_objects()
    greenlets = sum(isinstance(o, gevent.Greenlet) and not o.dead for o in objects)
    return memory, len(os.listdir("/proc/self/fd")), greenlets, len(objects)


def run(seconds: float) -> int:
    logging.getLogger("geventconnpool").setLevel(logging.CRITICAL)
    gevent.get_hub().exception_stream = None  # GreenletExit of the killed
    failed: list[str] = []

    def handle_error(context: object, type: object, value: object, tb: object) -> None:  # noqa: A002  # the hub's names
        if type is SystemError:
            failed.append(repr(value))

    gevent.get_hub().handle_error = handle_error  # type: ignore[method-assign]
    before = sample()
    soak = Soak(seconds)
    soak.fill()
    trouble = gevent.spawn(soak.trouble)
    samples = []
    while soak.is_on:
        gevent.sleep(min(SAMPLE_EVERY, seconds / 20))
        samples.append(sample())
        print("{:7.1f} MB {:4} descriptors {:4} greenlets {:7} objects".format(*samples[-1]), flush=True)
    gevent.joinall([trouble, *soak.workers], timeout=30)
    for pool in soak.pools:
        pool.close(10)
    for server in soak.servers:
        server.close()
    calls = sum(soak.outcomes.values())
    del soak, trouble, pool, server
    gevent.sleep(1)
    after = sample()
    print(f"{calls} calls; before, after (MB, descriptors, greenlets, objects): {before}, {after}")
    return judge(samples, before, after, failed)


def judge(samples: list[Any], before: Any, after: Any, failed: list[str]) -> int:
    """Say what is not as it should be."""
    quarter = len(samples) // 4
    early, late = (median(s[0] for s in samples[i * quarter : (i + 1) * quarter]) for i in (1, 3))
    print(f"memory: {early:.1f} MB in the second quarter, {late:.1f} MB in the last")
    if late > early * MEMORY_MAY_GROW + MEMORY_NOISE:
        failed.append("memory grows")
    if after[1] > before[1] + 3:  # the hub has some of its own
        failed.append("descriptors are left open")
    if after[2] > before[2]:
        failed.append("greenlets are left")
    print("FAILED: " + "; ".join(failed) if failed else "nothing leaks, and nobody got the answer of another")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run(float(sys.argv[1]) if len(sys.argv) > 1 else 600))
