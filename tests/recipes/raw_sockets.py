"""docs/recipes/raw_sockets.py: gevent sockets and a server of lines."""

from __future__ import annotations

from typing import Any

import gevent

from tests.recipes.description import Recipe, load
from tests.recipes.servers import PythonServer
from tests.servers import _Server

module = load("raw_sockets")


class LineServer(PythonServer):
    script = "line_server.py"


class RawSockets(Recipe):
    pool_class = module.LinePool
    cluster_class = module.LineCluster
    errors = module.ERRORS
    refused = ConnectionRefusedError

    def make_server(self) -> _Server:
        return LineServer()

    def call(self, c: Any, token: str) -> str:
        reply: bytes = c.ask(token.encode())
        return reply.decode()

    def client_version(self) -> str:
        return f"gevent {gevent.__version__}"

    def server_version(self) -> str:
        return "a line server of the tests"


RECIPE = RawSockets()
