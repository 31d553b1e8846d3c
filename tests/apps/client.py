"""A client of the witness that says everything aloud: hello, keepalive, goodbye, and that it was forgotten."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from gevent import socket

from geventconnpool import ClusterPool, ConnectionPool, Endpoint

TIMEOUT = 30.0  # seconds for an answer


class WrongAnswer(Exception):
    """An answer to somebody else's line."""


class Client:
    """One connection. Its lines carry the pid of the process that writes them, whoever connected.

    ``close`` says BYE and shuts the connection down, ``abort`` just shuts it down, and a client that is collected
    before says GONE, as clients do whose finalizer ends the session.
    """

    alive: WeakSet[Client] = WeakSet()

    def __init__(self, address: tuple[str, int]) -> None:
        self.number = 0  # of the connection, as the server counts
        self.pending = ""  # the word that waits for its answer
        self._socket: Any = socket.create_connection(address, timeout=TIMEOUT)
        Client.alive.add(self)
        self.number = self.ask("HELLO")

    def ask(self, *words: str) -> int:
        """Write a line and check that the answer is to that; return the number of the connection."""
        line = f"{os.getpid()} {' '.join(words)}"
        self.pending = words[0]
        self._socket.sendall(f"{line}\n".encode())
        answer = self._read_line()
        self.pending = ""
        number, _, repeated = answer.partition(" ")
        if repeated != line or self.number not in (0, int(number)):
            raise WrongAnswer(f"{line!r} on connection {self.number} was answered {answer!r}")
        return int(number)

    def _read_line(self) -> str:
        answer = b""
        while not answer.endswith(b"\n"):
            data = self._socket.recv(1000)
            if not data:
                raise ConnectionError("the server hung up")
            answer += data
        return answer.decode().rstrip("\n")

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def close(self) -> None:
        self._end("BYE")

    def abort(self) -> None:
        self._end("")

    def __del__(self, write: Any = os.write, getpid: Any = os.getpid) -> None:
        # With nothing global: it should be heard at the end of the interpreter, too.
        connection = getattr(self, "_socket", None)
        if connection is not None and connection.fileno() >= 0:
            write(connection.fileno(), b"%d GONE\n" % getpid())

    def _end(self, word: str) -> None:
        connection, self._socket = self._socket, None
        if connection is None:
            return
        with suppress(OSError):
            if word:
                connection.send(f"{os.getpid()} {word}\n".encode())
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


class Hooks:
    """What the two kinds of pool have in common."""

    pings = 0  # answered keepalives of connections that this very process opened

    def _keepalive(self, c: Client) -> None:
        c.ask("PING")
        self.pings += 1

    def _close_connection(self, c: Client) -> None:
        c.close()

    def _abort_connection(self, c: Client) -> None:
        c.abort()


class Pool(Hooks, ConnectionPool[Client]):
    def __init__(self, address: tuple[str, int], size: int, **options: Any) -> None:
        self.address = address
        super().__init__(size, **options)

    def _new_connection(self) -> Client:
        return Client(self.address)


class Cluster(Hooks, ClusterPool[Client]):
    def _new_connection(self, endpoint: Endpoint) -> Client:
        return Client((endpoint.host, endpoint.port))


def open_pools() -> tuple[Pool, Cluster]:
    """Make what an application has at module level; with WARM_UP, wait until it is connected, as some do there."""
    first, *others = witnesses()
    places = (
        Pool(first, 3, keepalive=0.3, keepalive_timeout=TIMEOUT),
        Cluster(others, 2, keepalive=0.3, keepalive_timeout=TIMEOUT),
    )
    if os.environ.get("WARM_UP"):
        for place in places:
            place.wait(timeout=TIMEOUT)
    return places


def witnesses() -> list[tuple[str, int]]:
    """Where they are, as the environment says."""
    addresses = [address.rpartition(":") for address in os.environ["WITNESSES"].split()]
    return [(host, int(port)) for host, _, port in addresses]
