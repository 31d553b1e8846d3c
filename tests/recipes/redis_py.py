"""docs/recipes/redis_py.py: redis-py and redis-server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from geventconnpool import ClusterPool, ConnectionPool
from tests.recipes.description import HEALS, Recipe, load, version_of
from tests.servers import Redis, _Server

module = load("redis_py")


class RedisPy(Recipe):
    errors = module.ERRORS
    refused = redis.ConnectionError
    careless = HEALS

    def make_server(self) -> _Server:
        return Redis()

    def make_pool(self, server: _Server, size: int, **options: Any) -> ConnectionPool[Any]:
        pool: ConnectionPool[Any] = module.RedisPool(*server.address, size, **options)
        return pool

    def make_cluster(self, servers: Sequence[_Server], size: int, **options: Any) -> ClusterPool[Any]:
        cluster: ClusterPool[Any] = module.RedisReplicas([server.address for server in servers], size, **options)
        return cluster

    def call(self, c: Any, token: str) -> str:
        reply: bytes = c.echo(token)
        return reply.decode()

    def client_version(self) -> str:
        return f"redis-py {redis.__version__}"

    def server_version(self) -> str:
        return f"Redis {version_of('redis-server', '--version')}"


RECIPE = RedisPy()
