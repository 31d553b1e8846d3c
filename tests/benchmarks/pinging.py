"""PING to real redis-servers on loopback, over gevent's sockets, through each kind of pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import cycle
from typing import Any

from gevent import socket

from geventconnpool import ClusterPool, ConnectionPool, Endpoint
from tests.servers import HAProxy, Redis, find

READ_TIMEOUT = 0.5  # seconds: the caller's own
DIRECT, NAIVE, CLUSTER, HAPROXY = "one direct pool", "round robin over three pools", "ClusterPool", "one pool, HAProxy"


class Refused(Exception):
    """Not what PING is answered with."""


def ping(c: Any) -> None:
    c.sendall(b"*1\r\n$4\r\nPING\r\n")
    answer = c.recv(64)
    if not answer:
        raise ConnectionResetError("the server has closed the connection")
    if answer != b"+PONG\r\n":
        raise Refused(answer)


def connect(address: tuple[str, int]) -> Any:
    connection = socket.create_connection(address, timeout=READ_TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Direct(ConnectionPool[Any]):
    """One address, of a server or of HAProxy."""

    def __init__(self, address: tuple[str, int], size: int, keepalive: float) -> None:
        self._address = address
        super().__init__(size, keepalive=keepalive)

    def _new_connection(self) -> Any:
        return connect(self._address)

    def _keepalive(self, c: Any) -> None:
        ping(c)


class Cluster(ClusterPool[Any]):
    def _new_connection(self, endpoint: Endpoint) -> Any:
        return connect(endpoint.address)

    def _keepalive(self, c: Any) -> None:
        ping(c)


class Naive:
    """What is written first when there are several servers: each call goes to the next one's pool."""

    def __init__(self, pools: list[Direct]) -> None:
        self._pools = pools
        self._next: Iterator[Direct] = cycle(pools)

    def get(self) -> AbstractContextManager[Any]:
        return next(self._next).get()


def start_redis(stack: ExitStack, number: int = 3) -> list[Redis]:
    return [stack.enter_context(Redis()) for _ in range(number)]


def missing() -> list[str]:
    """Return what cannot be measured here for want of a program."""
    if find("redis-server") is None:
        return ["all: redis-server is not installed"]
    return [] if find("haproxy") is not None else [f"{HAPROXY}: haproxy is not installed"]


def open_pool(kind: str, servers: list[Redis], size: int, keepalive: float, stack: ExitStack) -> Any:
    """Return a full pool of that kind with ``size`` connections to each server, and as many in all where it has one."""
    if kind == NAIVE:
        return Naive([_full(Direct(server.address, size, keepalive), stack) for server in servers])
    if kind == CLUSTER:
        return _full(Cluster([server.address for server in servers], size, keepalive=keepalive), stack)
    address = servers[0].address if kind == DIRECT else stack.enter_context(HAProxy(servers)).address
    return _full(Direct(address, size * len(servers), keepalive), stack)


def _full(pool: Any, stack: ExitStack) -> Any:
    stack.callback(pool.close, 0)
    pool.wait(timeout=30)
    return pool


Call = Callable[[], None]


def caller(pool: Any) -> Call:
    def call() -> None:
        with pool.get() as c:
            ping(c)

    return call
