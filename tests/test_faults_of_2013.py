"""What the pool of 2013 got wrong, one test per fault, so that none of it comes back."""

from __future__ import annotations

import functools
import logging
import time
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

from geventconnpool import ConnectionPool, PoolTimeout, retry
from tests.servers import wait_until


class TcpPool(ConnectionPool[socket.socket]):
    def __init__(self, address, *args, **options):
        self.address = address
        super().__init__(*args, **options)

    def _new_connection(self):
        return socket.create_connection(self.address)


@pytest.fixture
def slow_server():
    """The address of a server that answers a name with ``reply-for-`` that name, 50 ms later."""

    def serve(connection, _address):
        with connection.makefile("rb") as names:
            for name in names:
                gevent.sleep(0.05)
                connection.sendall(b"reply-for-" + name)

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    yield server.socket.getsockname()
    server.stop()


def ask(pool, name):
    with pool.get() as c:
        c.sendall(name + b"\n")
        return c.recv(100)


# S1


def test_two_greenlets_that_share_one_connection_get_the_same_number_of_turns(tcp_server):
    turns = {"a": 0, "b": 0}

    def loop(who):
        while True:
            with pool.get():
                gevent.sleep(0.001)
            turns[who] += 1

    with TcpPool(tcp_server.address, 1) as pool:
        loops = [gevent.spawn(loop, who) for who in turns]
        wait_until(lambda: sum(turns.values()) >= 200)
        gevent.killall(loops)

    assert turns["a"] == pytest.approx(turns["b"], rel=0.05)


# S2


def test_a_connect_that_fails_once_is_tried_again_and_the_slot_is_not_lost(tcp_server):
    class FailsOnce(TcpPool):
        calls = 0

        def _new_connection(self):
            self.calls += 1
            if self.calls == 1:
                raise OSError("not yet")
            return super()._new_connection()

    with FailsOnce(tcp_server.address, 1) as pool, pool.get(timeout=5) as c:
        assert c.getpeername() == tcp_server.address
        assert pool.calls == 2


# S3


def test_nobody_gets_the_reply_to_somebody_who_timed_out(slow_server):
    with TcpPool(slow_server, 1) as pool:
        with pytest.raises(gevent.Timeout):
            with gevent.Timeout(0.02):
                ask(pool, b"alice")
        gevent.sleep(0.1)  # the reply to alice has come by now

        assert ask(pool, b"bob") == b"reply-for-bob\n"


def test_nobody_gets_the_reply_to_somebody_who_was_killed(slow_server):
    with TcpPool(slow_server, 1) as pool:
        alice = gevent.spawn(ask, pool, b"alice")
        wait_until(lambda: pool.stats().in_use == 1)
        gevent.sleep(0.01)
        alice.kill()
        gevent.sleep(0.1)  # the reply to alice has come by now

        assert ask(pool, b"bob") == b"reply-for-bob\n"


# S4


def test_retry_takes_options_with_or_without_a_function():
    calls = []

    def fail_once():
        calls.append(1)
        if len(calls) % 2:
            raise KeyError("once")
        return "done"

    assert retry(exc_classes=(KeyError,), max_failures=5)(fail_once)() == "done"
    assert retry(fail_once, exc_classes=(KeyError,))() == "done"
    assert functools.partial(retry, exc_classes=(KeyError,))(fail_once)() == "done"
    assert len(calls) == 6


def test_retry_logs_to_the_logger_it_was_given(caplog):
    @retry(exc_classes=(KeyError,), logger=logging.getLogger("mine"), max_failures=1)
    def send_data():
        raise KeyError("always")

    caplog.set_level(logging.INFO, "mine")
    with pytest.raises(KeyError):
        send_data()

    assert [(record.name, record.levelname) for record in caplog.records] == [("mine", "INFO"), ("mine", "ERROR")]
    assert all("send_data" in record.getMessage() for record in caplog.records)


# S5


def test_a_discarded_connection_is_closed_and_replaced_without_delay(tcp_server):
    def seconds_to_replace(pool):
        opened, closed = tcp_server.opened, tcp_server.closed
        with pytest.raises(OSError, match="broken"):
            with pool.get():
                raise OSError("broken")
        started = time.monotonic()
        wait_until(lambda: (tcp_server.opened, tcp_server.closed) == (opened + 1, closed + 1))
        return time.monotonic() - started

    with TcpPool(tcp_server.address, 1) as pool:
        pool.wait(timeout=5)
        wait_until(lambda: tcp_server.open == 1)

        assert any(seconds_to_replace(pool) < 0.05 for _ in range(10))


# S6


def test_an_error_about_a_file_does_not_cost_a_connection(tcp_server):
    with TcpPool(tcp_server.address, 1) as pool:
        with pytest.raises(FileNotFoundError):
            with pool.get() as c:
                Path("/nonexistent").read_bytes()

        with pool.get() as again:
            assert again is c
        assert sum(pool.stats().discarded.values()) == 0


# S7


def test_keepalive_goes_on_after_it_raised_what_is_not_in_exc_classes(tcp_server):
    class Buggy(TcpPool):
        calls = 0

        def _keepalive(self, c):
            self.calls += 1
            if self.calls == 1:
                raise KeyError("bug")

    with Buggy(tcp_server.address, 1, keepalive=0.02) as pool:
        wait_until(lambda: pool.calls >= 4)

        assert pool.stats().discarded["keepalive"] == 1


# S8


def test_a_keepalive_that_hangs_does_not_hold_a_slot_for_ever(tcp_server):
    for_ever = Event()

    class Hangs(TcpPool):
        def _keepalive(self, c):
            for_ever.wait()

    with Hangs(tcp_server.address, 1, keepalive=0.02, keepalive_timeout=0.05) as pool:
        pool.wait(timeout=5)
        wait_until(lambda: pool.stats().open and not pool.stats().idle)
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)

        with pool.get(timeout=30) as c:
            assert c.getpeername() == tcp_server.address


# S12


def test_filling_twenty_connections_takes_less_than_a_tenth_of_a_second(tcp_server):
    def seconds_to_fill():
        started = time.monotonic()
        with TcpPool(tcp_server.address, 20) as pool:
            pool.wait(timeout=5)
            return time.monotonic() - started

    assert min(seconds_to_fill() for _ in range(3)) < 0.1
    wait_until(lambda: tcp_server.opened == 60)


def test_the_second_failed_connect_does_not_put_off_the_third_for_minutes(tcp_server):
    class FailsTwice(TcpPool):
        calls = 0

        def _new_connection(self):
            self.calls += 1
            if self.calls <= 2:
                raise OSError("not yet")
            return super()._new_connection()

    with FailsTwice(tcp_server.address, 1) as pool:
        pool.wait(timeout=30)

        assert pool.calls == 3
