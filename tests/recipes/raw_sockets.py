"""docs/recipes/raw_sockets.py: gevent sockets and a server of lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent

from geventconnpool import ClusterPool, ConnectionPool
from tests.recipes.description import Recipe, load
from tests.recipes.servers import PythonServer
from tests.servers import _Server

module = load("raw_sockets")


class LineServer(PythonServer):
    script = "line_server.py"


class RawSockets(Recipe):
    errors = module.ERRORS
    refused = ConnectionRefusedError

    def make_server(self) -> _Server:
        return LineServer()

    def make_pool(self, server: _Server, size: int, **options: Any) -> ConnectionPool[Any]:
        pool: ConnectionPool[Any] = module.LinePool(*server.address, size, **options)
        return pool

    def make_cluster(self, servers: Sequence[_Server], size: int, **options: Any) -> ClusterPool[Any]:
        cluster: ClusterPool[Any] = module.LineCluster([server.address for server in servers], size, **options)
        return cluster

    def call(self, c: Any, token: str) -> str:
        reply: bytes = c.ask(token.encode())
        return reply.decode()

    def client_version(self) -> str:
        return f"gevent {gevent.__version__}"

    def server_version(self) -> str:
        return "a line server of the tests"


RECIPE = RawSockets()
