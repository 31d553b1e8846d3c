"""What the speed benchmark compares with and builds upon: the floor, the recipe of the textbooks, and our pools."""

from __future__ import annotations

import resource
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from gevent import get_hub, getcurrent
from gevent.lock import BoundedSemaphore

from geventconnpool import ClusterPool, ConnectionPool, Endpoint

KEEPALIVE = 5.0


class Wire:
    """One end of a pair of sockets, the cheapest real connection: silent, with a descriptor to be looked at."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()

    def fileno(self) -> int:
        return self._ours.fileno()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


class Token:
    """A connection that is none, where ten thousand are too many for the system."""

    __slots__ = ()


class Floor:
    """The least that can hand out anything in a ``with`` block: nobody waits, nothing is counted or checked."""

    def __init__(self, size: int) -> None:
        self._free = deque(Wire() for _ in range(size))

    def __enter__(self) -> Wire:
        self._lent = self._free.popleft()
        return self._lent

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._free.append(self._lent)


class FairFloor:
    """The least that hands connections to who waits, in the order in which they came; nobody may be interrupted."""

    def __init__(self, size: int) -> None:
        self._free = deque(Wire() for _ in range(size))
        self._waiting: deque[list[Any]] = deque()
        self._hub: Any = get_hub()

    def get(self) -> FairLease:
        return FairLease(self)

    def take(self) -> Wire:
        if self._free:
            return self._free.popleft()
        place: list[Any] = [getcurrent(), None]
        self._waiting.append(place)
        self._hub.switch()
        wire: Wire = place[1]
        return wire

    def put_back(self, wire: Wire) -> None:
        if not self._waiting:
            self._free.append(wire)
            return
        place = self._waiting.popleft()
        place[1] = wire
        self._hub.loop.run_callback(place[0].switch)


class FairLease:
    __slots__ = ("pool", "wire")

    def __init__(self, pool: FairFloor) -> None:
        self.pool = pool

    def __enter__(self) -> Wire:
        self.wire = self.pool.take()
        return self.wire

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.pool.put_back(self.wire)


class Recipe:
    """The recipe of textbooks, and this package in 2013: a generator, a semaphore and a deque.

    Nothing is checked, nobody is told how it went, and who comes back first is served first.
    """

    def __init__(self, size: int) -> None:
        self._free = deque(Wire() for _ in range(size))
        self._lock = BoundedSemaphore(size)

    @contextmanager
    def get(self) -> Iterator[Wire]:
        self._lock.acquire()
        c = self._free.popleft()
        try:
            yield c
        except OSError:
            self._put_back(Wire())
            raise
        except BaseException:
            self._put_back(c)
            raise
        else:
            self._put_back(c)

    def _put_back(self, c: Wire) -> None:
        self._free.append(c)
        self._lock.release()


class Pool(ConnectionPool[Any]):
    def _new_connection(self) -> Any:
        return Wire()

    def _keepalive(self, c: Any) -> None:
        """Nothing is sent."""


class Cluster(ClusterPool[Any]):
    def _new_connection(self, endpoint: Endpoint) -> Any:
        return Wire()

    def _keepalive(self, c: Any) -> None:
        """Nothing is sent."""


class Counting:
    """Hooks of a pool of tokens, who count."""

    opened = closed_ones = 0

    def _new_connection(self, *_endpoint: Endpoint) -> Any:
        self.opened += 1
        return Token()

    def _close_connection(self, c: Any) -> None:
        self.closed_ones += 1


class TokenPool(Counting, Pool):
    pass


class TokenCluster(Counting, Cluster):
    pass


def places(number: int) -> list[tuple[str, int]]:
    """Return so many addresses that nobody connects to."""
    return [(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 6379) for n in range(1, number + 1)]


def allow_descriptors(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
