"""What tests share: an end for each of them, and a TCP server on loopback."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import gevent
import pytest
from gevent.server import StreamServer
from gevent.socket import socket
from gevent.threadpool import ThreadPool

from geventconnpool.cluster import _dns

PATIENCE = 60.0


def pytest_configure() -> None:
    # Who runs this in the background may have it ignore Ctrl-C, and programs that tests interrupt would inherit that.
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_name_server_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests ask name servers of their own; what others say of their names is nothing to rely on."""
    monkeypatch.setattr(_dns, "_RESOLV_CONF", tmp_path / "no-resolv.conf")


@pytest.fixture
def no_thread_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever uses the hub's thread pool fails."""

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("the hub's thread pool is used")

    for method in ("spawn", "apply"):
        monkeypatch.setattr(ThreadPool, method, refuse)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that waits for ever; pytest's faulthandler_timeout is there for one that blocks the hub."""
    marker = item.get_closest_marker("bound")
    seconds = marker.args[0] if marker else PATIENCE
    with gevent.Timeout(seconds, AssertionError(f"not done after {seconds} s")):
        return (yield)


class LineServer:
    """Answers lines: ``PING`` with ``PONG`` and a newline, all others with ``OK``, nothing while ``answers`` is False.

    Counts connections ``opened`` and ``closed``, and keeps the ``lines``.
    """

    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.lines: list[bytes] = []
        self.answers = True
        self._sockets: set[socket] = set()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.address: tuple[str, int] = self._server.socket.getsockname()

    @property
    def open(self) -> int:
        return self.opened - self.closed

    def close_all(self) -> None:
        """Close every connection, as a server that restarts does."""
        for connection in self._sockets:
            connection.shutdown(2)

    def stop(self) -> None:
        self._server.stop()

    def _serve(self, connection: socket, _address: object) -> None:
        self.opened += 1
        self._sockets.add(connection)
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    self._answer(connection, line.strip())
        except OSError:
            pass
        finally:
            self._sockets.discard(connection)
            self.closed += 1

    def _answer(self, connection: socket, line: bytes) -> None:
        self.lines.append(line)
        if self.answers:
            connection.sendall(b"PONG\n" if line == b"PING" else b"OK")


@pytest.fixture
def tcp_server() -> Iterator[LineServer]:
    server = LineServer()
    yield server
    server.stop()
