"""Asking the system whether the peer of a connection is still there: no switch, no byte read, a third of a microsecond.

Readable does not mean closed: a fresh TLS 1.3 connection has session tickets to be read, some servers send a banner.
So it is the hang-up that is asked for (``POLLRDHUP``, Linux 2.6.17), and where the system has no such event, whether
the next byte is the end. Never ``select``, which cannot look at descriptors from 1024 on, nor what gevent has patched,
which switches.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gevent.monkey import get_original

_plain_socket: Any = get_original("socket", "socket")
_poll: Any = get_original("select", "poll") if hasattr(select, "poll") else None
_HANG_UP: int = getattr(select, "POLLRDHUP", 0)
_GONE: int = _HANG_UP | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0) | getattr(select, "POLLNVAL", 0)
_READABLE: int = getattr(select, "POLLIN", 0)


class Poller:
    """Watches the descriptor of one connection.

    ``asks_object``: the connection has a method ``fileno`` that may be asked again, which finds out that it was closed
    on our side; else the descriptor is the one that the hook ``_fileno`` told.
    """

    __slots__ = ("_descriptor", "_poll", "asks_object")

    def __init__(self, descriptor: int, *, asks_object: bool) -> None:
        self.asks_object = asks_object
        self._watch(descriptor)

    def _watch(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = _poll()
        self._poll.register(descriptor, _HANG_UP or _READABLE)

    @property
    def is_open(self) -> bool:
        """Whether the system knows the descriptor."""
        found = self._poll.poll(0)
        return not (found and found[0][1] & select.POLLNVAL)

    def has_hung_up(self, connection: Any) -> bool:
        """Say whether the connection is closed, by its peer or on our side."""
        if self.asks_object:
            descriptor = descriptor_of(connection)
            if descriptor is None:
                return True  # it had one
            if descriptor != self._descriptor:
                self._watch(descriptor)
        found = self._poll.poll(0)
        if not found:
            return False
        event: int = found[0][1]
        return bool(event & _GONE) or (not _HANG_UP and _is_at_end(self._descriptor))


def make_poller(descriptor: object, *, asks_object: bool) -> Poller | None:
    """Return what watches a descriptor; None if it is none, or the system cannot."""
    if _poll is None or not _is_descriptor(descriptor):
        return None
    poller = Poller(descriptor, asks_object=asks_object)  # type: ignore[arg-type]  # that was just looked at
    return poller if poller.is_open else None  # else it is a number that means something else


def descriptor_of(connection: Any) -> int | None:
    """Return what the connection's own ``fileno`` says; None if it has none, or is closed.

    The method is looked up on the class: for some client objects any attribute is a call to their server.
    """
    try:
        descriptor = type(connection).fileno(connection)
    except Exception:  # a client object may do anything here, and most have no such method
        return None
    return descriptor if _is_descriptor(descriptor) else None


def wake_user(connection: Any) -> bool:
    """Shut down the socket of a connection, so that who waits for it goes on; False if it says of none."""
    with plain_twin(descriptor_of(connection)) as plain, suppress(OSError):
        if plain is not None:
            plain.shutdown(socket.SHUT_RDWR)
        return plain is not None
    return True  # it was shut down already


@contextmanager
def plain_twin(descriptor: int | None) -> Iterator[Any]:
    """Yield a socket on a copy of a descriptor, None if that is none of a socket.

    Not a socket of gevent, which makes the descriptor non-blocking under its owner. A default timeout would do so, too:
    what it was is restored.
    """
    try:
        twin = -1 if descriptor is None else os.dup(descriptor)
    except OSError:
        twin = -1
    if twin < 0:
        yield None
        return
    is_blocking = os.get_blocking(twin)
    try:
        plain = _plain_socket(fileno=twin)
    except OSError:  # no socket
        os.close(twin)
        yield None
        return
    with plain:
        os.set_blocking(twin, is_blocking)
        yield plain


def _is_descriptor(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31  # neither a bool, nor what only looks like a number


def _is_at_end(descriptor: int) -> bool:
    """Say whether all there is to read is the end."""
    with plain_twin(descriptor) as plain, suppress(OSError):
        return plain is not None and plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    return False
