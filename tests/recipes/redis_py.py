"""docs/recipes/redis_py.py: redis-py and redis-server."""

from __future__ import annotations

from contextlib import ExitStack
from time import monotonic
from typing import Any

import pytest
import redis

from geventconnpool import retry
from geventconnpool.cluster import DNSResolver
from geventconnpool.testing import DNSServer
from tests.recipes.description import HEALS, Recipe, load, version_of
from tests.recipes.scenes import PATIENCE, running
from tests.recipes.servers import clients_of
from tests.servers import Redis, _Server, wait_until

module = load("redis_py")


class RedisPy(Recipe):
    pool_class = module.RedisPool
    cluster_class = module.RedisReplicas
    errors = module.ERRORS
    refused = redis.ConnectionError
    careless = HEALS

    def make_server(self) -> _Server:
        return Redis()

    def call(self, c: Any, token: str) -> str:
        reply: bytes = c.echo(token)
        return reply.decode()

    def client_version(self) -> str:
        return f"redis-py {redis.__version__}"

    def server_version(self) -> str:
        return f"Redis {version_of('redis-server', '--version')}"


RECIPE = RedisPy()


class Replica(Redis):
    """Of another server."""

    def __init__(self, primary: _Server) -> None:
        super().__init__()
        self._primary = primary

    def _command(self) -> list[str]:
        host, port = self._primary.address
        return [*super()._command(), "--replicaof", f"{host} {port}", "--repl-diskless-sync-delay", "0"]


def quick_refusal(recipe: Recipe) -> None:
    """redis-py tries no more often than told, which is once."""
    with running(recipe, 1) as (server,):
        server.kill()
        seconds = []
        for _ in range(5):  # the machine may be busy now and then
            begun = monotonic()
            with pytest.raises(redis.ConnectionError):
                module.connect(*server.address)
            seconds.append(monotonic() - begun)

        assert min(seconds) < 0.5  # by default it takes three seconds


def pipelines(recipe: Recipe) -> None:
    """A pipeline, and a transaction that watches, use the connection of the pool and open none beside it."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        with pool.get(PATIENCE) as c:
            with c.pipeline() as pipeline:
                pipeline.watch("a")
                with pytest.raises(redis.exceptions.MaxConnectionsError):
                    c.ping()
                pipeline.multi()
                assert pipeline.set("a", 1).get("a").execute() == [True, b"1"]

            wait_until(lambda: clients_of(server) == 1, what="one client")


def left_open(recipe: Recipe) -> None:
    """Who leaves a transaction open does not leave it to the next one."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        with pool.get(PATIENCE) as c:
            pipeline = c.pipeline()
            pipeline.watch("a")
        with pool.get(PATIENCE) as other:
            assert other is not c
            assert other.set("a", 1)
        assert pool.stats().discarded["not_reusable"] == 1


def wrong_command(recipe: Recipe) -> None:
    """An error that is an answer leaves the connection in the pool."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        with pytest.raises(redis.ResponseError):
            with pool.get(PATIENCE) as c:
                c.execute_command("NO-SUCH-COMMAND")
        with pool.get(PATIENCE) as other:
            assert other is c


def replicas(recipe: Recipe) -> None:
    """What is written to a primary is read from its replicas, found in DNS; one is killed, then the primary."""
    with ExitStack() as stack:
        primary = stack.enter_context(Redis())
        copies = [stack.enter_context(Replica(primary)) for _ in range(2)]
        dns = stack.enter_context(DNSServer())
        dns.add_address("host.example.test", "127.0.0.1")
        for copy in copies:
            dns.add_srv("_redis._tcp.replicas.example.test", "host.example.test", copy.port)
        service, resolver = "_redis._tcp.replicas.example.test", DNSResolver([dns.address])
        to_write = stack.enter_context(module.RedisPool(*primary.address, 1))
        to_read = stack.enter_context(module.RedisReplicas(service, 2, resolver=resolver))
        read = retry(lambda: _read(to_read), exc_classes=module.ERRORS, max_failures=2)

        _write(to_write)
        _read_often(to_read, read)
        with pytest.raises(redis.ReadOnlyError), to_read.get(PATIENCE) as c:
            c.set("key", "other")
        assert sum(to_read.stats().discarded.values()) == 0
        copies[0].kill()
        assert [read() for _ in range(20)] == [b"value"] * 20
        copies[0].start()
        _write(to_write)
        primary.kill()
        assert [read() for _ in range(20)] == [b"value"] * 20


def _write(pool: Any) -> None:
    """Write to a primary, and wait until both replicas have it."""
    with pool.get(PATIENCE) as c:
        wait_until(lambda: c.set("key", "value") and c.wait(2, 100) == 2, what="two replicas")


def _read(cluster: Any) -> Any:
    with cluster.get(PATIENCE) as c:
        return c.get("key")


def _read_often(cluster: Any, read: Any) -> None:
    cluster.wait(timeout=PATIENCE)

    assert [read() for _ in range(20)] == [b"value"] * 20
    assert all(entry.pool.gets > 0 for entry in cluster.stats().endpoints)
