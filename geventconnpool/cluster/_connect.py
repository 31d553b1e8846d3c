"""One TCP socket to an endpoint that may have several addresses: Happy Eyeballs, RFC 8305.

What is decided is in ``_race``. Here sockets are opened, and waited for with one switch for all of them: no greenlets,
so that whatever is thrown in while they connect finds everything to be closed in one place.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from errno import EINPROGRESS
from select import POLLOUT

import gevent
from gevent import select, socket

from geventconnpool import _check
from geventconnpool.cluster._endpoints import Endpoint
from geventconnpool.cluster._race import Race


def connect(endpoint: Endpoint, timeout: float | None) -> socket.socket:
    """Do what :meth:`Endpoint.connect` says.

    An attempt that is interrupted, by a ``gevent.Timeout`` or a kill, leaves no socket open, nor do those that lose.
    """
    _check.seconds_or_none("timeout", timeout, positive=True)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    too_late = f"{endpoint} did not accept a connection within {timeout} s"
    with gevent.Timeout(timeout, TimeoutError(too_late)):
        addresses = _addresses(endpoint)
    attempts = _Attempts(Race(addresses, deadline), endpoint.port)
    try:
        winner = attempts.run(too_late)
    finally:
        attempts.close()
    winner.settimeout(timeout)
    return winner


def _addresses(endpoint: Endpoint) -> Sequence[str]:
    """Return the IP addresses of ``endpoint``; one that brings none is looked up. The caller bounds the time."""
    if endpoint.addresses:
        return endpoint.addresses
    from geventconnpool.cluster._hosts import addresses_of  # with dnspython, which others do without

    return addresses_of(endpoint.name)


class _Attempts:
    """The sockets that are connecting to ``port``, as ``race`` decides. To be closed, whatever comes out of it."""

    def __init__(self, race: Race, port: int) -> None:
        self._race = race
        self._port = port
        self._under_way: list[socket.socket] = []  # in the order in which they began

    def run(self, too_late: str) -> socket.socket:
        """Return the first socket that is connected, which is the caller's from now on."""
        while not self._race.is_lost:
            now = time.monotonic()
            if now >= self._race.deadline:
                raise TimeoutError(too_late) from self._race.last_error
            address = self._race.next(now)
            if address is not None:
                self._begin(address)
            elif winner := self._wait(self._race.patience(now)):
                return winner
        assert self._race.last_error is not None
        raise self._race.last_error

    def close(self) -> None:
        """Close all sockets that are left."""
        for attempt in self._under_way:
            attempt.close()
        self._race.last_error = None  # which would refer to itself, through its traceback, once it is raised

    def _begin(self, address: str) -> None:
        try:  # in which nothing switches: what comes out is no interruption
            self._under_way.append(_connecting(address, self._port))
        except OSError as error:
            self._race.failed(error)

    def _wait(self, seconds: float | None) -> socket.socket | None:
        """Wait until an attempt has ended, for at most ``seconds``. Return one that is connected, if there is one."""
        for attempt in self._ended(seconds):
            code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._under_way.remove(attempt)
            if not code:
                return attempt
            attempt.close()
            self._race.failed(OSError(code, os.strerror(code)))
        return None

    def _ended(self, seconds: float | None) -> list[socket.socket]:
        poll = select.poll()  # not select(), which cannot look at descriptors from 1024 on
        for attempt in self._under_way:
            poll.register(attempt, POLLOUT)
        ready = {descriptor for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000)}
        return [attempt for attempt in self._under_way if attempt.fileno() in ready]


def _connecting(address: str, port: int) -> socket.socket:
    """Return a socket that is connecting; raises :class:`OSError` if that is known to be in vain at once."""
    attempt = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Requests go out as they are written: to be held back and merged costs the peer's delayed ACK, 40 ms.
        attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        attempt.setblocking(False)
        code = attempt.connect_ex(sockaddr(address, port))
        if code not in (0, EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        attempt.close()
        raise
    return attempt


def sockaddr(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return what connect takes without a look-up, which the zone of ``fe80::1%eth0`` would ask for."""
    host, _, zone = address.partition("%")
    if not zone:
        return host, port
    return host, port, 0, int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
