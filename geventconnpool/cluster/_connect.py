"""One TCP socket to an endpoint that may have several addresses, tried in order."""

from __future__ import annotations

import gevent
from gevent import socket

from geventconnpool import _check
from geventconnpool.cluster._endpoints import Endpoint


def connect(endpoint: Endpoint, timeout: float | None) -> socket.socket:
    """Return a gevent TCP socket to the first address of ``endpoint`` that accepts.

    ``timeout`` bounds all attempts together, in seconds, and stays set on the socket; None means no bound. Raises the
    last :class:`OSError`, or :class:`TimeoutError` when the time is over. An attempt that is interrupted, by a
    ``gevent.Timeout`` or a kill, leaves no socket open.
    """
    _check.seconds_or_none("timeout", timeout, positive=True)
    errors: list[OSError] = []
    bound = gevent.Timeout(timeout)
    try:
        with bound:
            connection = _first_that_accepts(endpoint, errors)
    except gevent.Timeout as raised:
        if raised is not bound:
            raise
        last_error = errors[-1] if errors else None
        raise TimeoutError(f"{endpoint} did not accept a connection within {timeout} s") from last_error
    connection.settimeout(timeout)
    # Requests go out as they are written: one that is held back to be merged waits for the peer's delayed ACK, 40 ms.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _first_that_accepts(endpoint: Endpoint, errors: list[OSError]) -> socket.socket:
    if not endpoint.addresses:
        return socket.create_connection((endpoint.name, endpoint.port), None)
    for address in endpoint.addresses:
        try:
            return _open(address, endpoint.port)
        except OSError as error:
            errors.append(error)
    raise errors[-1]


def _open(address: str, port: int) -> socket.socket:
    # Not create_connection: it takes even an IP address through getaddrinfo in the hub's shared thread pool.
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.connect((address, port))
    except BaseException:
        connection.close()
        raise
    return connection
