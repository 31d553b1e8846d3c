"""The pools of others, checked out and returned the way their own documents say. Imported in a patched process only.

Nothing travels: where a pool takes any connection it gets a stand-in, else it is connected once to a server on
loopback. What a stand-in does not do (begin or end a transaction, say) is in favour of that pool.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from itertools import repeat
from types import SimpleNamespace
from typing import Any

from tests.benchmarks.rounds import Loop
from tests.benchmarks.standins import places
from tests.servers import HOST, Redis, find

SIZE = 10


class Missing(Exception):
    """The peer cannot be measured here; the message says why."""


def peer(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise Missing(f"{module} cannot be imported: {error}") from error


def listener(stack: ExitStack) -> tuple[str, int]:
    """Return the address of a server that accepts connections and says nothing."""
    server = stack.enter_context(socket.create_server((HOST, 0)))
    address: tuple[str, int] = server.getsockname()
    return address


class _StandIn:
    """What psycopg_pool and SQLAlchemy want of a connection."""

    closed = broken = False

    def __init__(self) -> None:
        self.pgconn = SimpleNamespace(transaction_status=0)  # idle

    @classmethod
    def connect(cls, *_args: object, **_options: object) -> _StandIn:
        return cls()

    def __enter__(self) -> _StandIn:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        """A real one commits."""

    def rollback(self) -> None:
        """A real one sends it, unless nothing was begun."""

    def close(self) -> None:
        """There is nothing to close."""


def psycopg_pool(stack: ExitStack) -> Loop:
    pool = peer("psycopg_pool").ConnectionPool(connection_class=_StandIn, min_size=SIZE, open=True)
    stack.callback(pool.close)
    pool.wait()

    def loop(number: int) -> None:
        for _ in repeat(None, number):
            with pool.connection():
                pass

    return loop


def sqlalchemy(stack: ExitStack) -> Loop:
    pool = peer("sqlalchemy.pool").QueuePool(_StandIn, pool_size=SIZE)
    stack.callback(pool.dispose)

    def loop(number: int) -> None:
        for _ in repeat(None, number):
            c = pool.connect()
            c.close()

    return loop


def redis_py(stack: ExitStack) -> Loop:
    return _redis(stack, "ConnectionPool")


def redis_py_blocking(stack: ExitStack) -> Loop:
    return _redis(stack, "BlockingConnectionPool")


def _redis(stack: ExitStack, kind: str) -> Loop:
    module = peer("redis")
    if find("redis-server") is None:
        raise Missing("redis-server is not installed")
    server = stack.enter_context(Redis())
    pool = getattr(module, kind)(host=HOST, port=server.port, max_connections=SIZE)
    stack.callback(pool.disconnect)

    def loop(number: int) -> None:
        for _ in repeat(None, number):
            c = pool.get_connection()
            pool.release(c)

    return loop


def urllib3(stack: ExitStack) -> Loop:
    """Check-out is part of a request there; these two methods are what a request calls for it."""
    host, port = listener(stack)
    pool = peer("urllib3").HTTPConnectionPool(host, port, maxsize=SIZE, block=True)
    stack.callback(pool.close)
    connection = pool._get_conn()
    connection.connect()
    pool._put_conn(connection)

    def loop(number: int) -> None:
        for _ in repeat(None, number):
            c = pool._get_conn()
            pool._put_conn(c)

    return loop


def pymemcache(_stack: ExitStack) -> Loop:
    pool = peer("pymemcache.pool").ObjectPool(_StandIn, max_size=SIZE)

    def loop(number: int) -> None:
        for _ in repeat(None, number):
            with pool.get_and_release():
                pass

    return loop


def geventhttpclient(stack: ExitStack) -> Loop:
    host, port = listener(stack)
    pool = peer("geventhttpclient.connectionpool").ConnectionPool(host, port, host, port, size=SIZE)
    stack.callback(pool.close)

    def loop(number: int) -> None:
        for _ in repeat(None, number):
            c = pool.get_socket()
            pool.return_socket(c)

    return loop


def elastic_transport_3(stack: ExitStack) -> Loop:
    return _nodes(stack, 3)


def elastic_transport_1000(stack: ExitStack) -> Loop:
    return _nodes(stack, 1000)


def _nodes(stack: ExitStack, number: int) -> Loop:
    """It chooses a node and is told how that went, no more: the connection is the node's own affair."""
    module = peer("elastic_transport")
    configs = [module.NodeConfig("http", host, port) for host, port in places(number)]
    pool = module.NodePool(configs, node_class=module.Urllib3HttpNode)
    stack.callback(lambda: [node.close() for node in pool.all()])

    def loop(number: int) -> None:
        for _ in repeat(None, number):
            node = pool.get()
            pool.mark_live(node)

    return loop


ELASTIC, ELASTIC_1000 = "elastic-transport NodePool, 3", "elastic-transport NodePool, 1,000"
PSYCOPG, SQLALCHEMY, URLLIB3, GEVENTHTTP = "psycopg_pool", "SQLAlchemy QueuePool", "urllib3", "geventhttpclient"
REDIS, REDIS_BLOCKING = "redis-py ConnectionPool", "redis-py BlockingConnectionPool"
PYMEMCACHE = "pymemcache ObjectPool"
CHECKING = (PSYCOPG, SQLALCHEMY, REDIS, REDIS_BLOCKING, URLLIB3, GEVENTHTTP)  # who look at what they hand out

PEERS: dict[str, Callable[[ExitStack], Loop]] = {
    PSYCOPG: psycopg_pool,
    SQLALCHEMY: sqlalchemy,
    REDIS: redis_py,
    REDIS_BLOCKING: redis_py_blocking,
    URLLIB3: urllib3,
    PYMEMCACHE: pymemcache,
    GEVENTHTTP: geventhttpclient,
    ELASTIC: elastic_transport_3,
    ELASTIC_1000: elastic_transport_1000,
}
