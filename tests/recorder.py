"""A TCP server in a native thread that keeps every line of every connection: for programs that run beside the tests.

It needs nothing of the hub, so a test may block while such a program runs. A line is ``<process> <scene> <word>``; the
answer is the word. ``LATER`` is answered when somebody says ``NOW``, and ``QUIT`` is not.
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from typing import Any


class Seen:
    """What one connection said."""

    def __init__(self) -> None:
        self.data = b""
        self.is_over = False  # the peer has closed it, or shut it down

    @property
    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.data.decode().splitlines()]

    @property
    def processes(self) -> set[str]:
        return {line[0] for line in self.lines}

    @property
    def scene(self) -> str:
        return self.lines[0][1] if self.lines else ""

    @property
    def words(self) -> list[str]:
        return [line[2] for line in self.lines]


class Recorder:
    """Serves until ``stop``."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._later: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._bell, self._button = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._bell, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def of(self, scene: str) -> list[Seen]:
        """Return the connections that were opened in one scene."""
        return [seen for seen in self.seen if seen.scene == scene]

    def stop(self) -> None:
        self._button.send(b"!")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # none of them is a bare descriptor
        self._button.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, _events in self._selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)

    def _accept(self, listener: Any) -> None:
        connection, _address = listener.accept()
        seen = Seen()
        self.seen.append(seen)
        self._selector.register(connection, selectors.EVENT_READ, lambda c: self._read(c, seen))

    def _read(self, connection: Any, seen: Seen) -> None:
        data = b""
        with suppress(OSError):
            data = connection.recv(65536)
        seen.data += data
        if data:
            for line in data.decode().splitlines():
                self._answer(connection, line.split()[2])
        else:
            seen.is_over = True
            self._selector.unregister(connection)
            connection.close()

    def _answer(self, connection: socket.socket, word: str) -> None:
        if word == "LATER":
            self._later.append(connection)
            return
        if word == "NOW":
            for late in self._later:
                _send(late, "LATER")
            self._later.clear()
        if word != "QUIT":
            _send(connection, word)


def _send(connection: socket.socket, word: str) -> None:
    with suppress(OSError):
        connection.sendall(word.encode() + b"\n")
