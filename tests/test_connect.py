"""A socket to the first address of an endpoint that accepts, within one bound."""

from __future__ import annotations

import contextlib
import os
import time

import gevent
import pytest
from gevent import socket

from geventconnpool.cluster._endpoints import Endpoint


class Listener:
    """Listens on some addresses of 127.0.0.0/8, on one port: "accepting" ones, and "full" ones that never answer."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.accepting = self._listen("127.0.0.1", 0, 5)
        self.port = self.accepting.getsockname()[1]

    def add_full(self, address: str) -> None:
        """Linux drops every SYN to a socket whose queue of unaccepted connections is full."""
        self._listen(address, self.port, 0)
        for _ in range(4):
            filler = self._stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((address, self.port))

    def close(self) -> None:
        self._stack.close()

    def _listen(self, address: str, port: int, backlog: int) -> socket.socket:
        listener = self._stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(backlog)
        return listener


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.close()


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_the_addresses_are_tried_in_order(listener):
    endpoint = Endpoint("a.test", listener.port, ["127.0.0.0", "127.0.0.1"])

    with endpoint.connect(2) as connection:
        assert connection.getpeername() == ("127.0.0.1", listener.port)


def test_the_socket_is_a_gevent_one_with_the_timeout_and_without_delay(listener):
    with Endpoint("127.0.0.1", listener.port).connect(2) as connection:
        assert isinstance(connection, socket.socket)
        assert connection.gettimeout() == 2
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_without_a_timeout_the_socket_has_none(listener):
    with Endpoint("127.0.0.1", listener.port).connect() as connection:
        assert connection.gettimeout() is None


def test_a_host_without_addresses_is_left_to_the_system(listener):
    with Endpoint("localhost", listener.port).connect(2) as connection:
        assert connection.getpeername()[1] == listener.port


def test_when_nobody_accepts_the_last_error_is_raised(listener):
    listener.close()

    with pytest.raises(ConnectionRefusedError):
        Endpoint("a.test", listener.port, ["127.0.0.1", "127.0.0.2"]).connect(2)


def test_one_bound_holds_for_all_addresses(listener):
    listener.add_full("127.0.0.2")
    listener.add_full("127.0.0.3")
    endpoint = Endpoint("a.test", listener.port, ["127.0.0.2", "127.0.0.3"])
    before = time.monotonic()

    with pytest.raises(TimeoutError, match=r"a\.test:\d+ did not accept a connection within 0\.2 s"):
        endpoint.connect(0.2)

    assert 0.2 <= time.monotonic() - before < 0.4


def test_the_error_at_the_bound_has_the_last_refusal_as_its_cause(listener):
    listener.add_full("127.0.0.3")

    with pytest.raises(TimeoutError) as raised:
        Endpoint("a.test", listener.port, ["127.0.0.2", "127.0.0.3"]).connect(0.1)

    assert isinstance(raised.value.__cause__, ConnectionRefusedError)


def test_an_interrupted_attempt_leaves_no_socket_open(listener):
    listener.add_full("127.0.0.2")
    endpoint = Endpoint("a.test", listener.port, ["127.0.0.2"])
    before = open_files()

    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.05):
            endpoint.connect(5)
    attempt = gevent.spawn(endpoint.connect, 5)
    gevent.sleep(0.01)
    attempt.kill()

    assert isinstance(attempt.value, gevent.GreenletExit)
    assert open_files() == before


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "2"])
def test_a_bad_timeout_is_refused(timeout):
    with pytest.raises((ValueError, TypeError), match=f"timeout must be .*{timeout!r}"):
        Endpoint("127.0.0.1", 1).connect(timeout)
