"""Servers with child processes, servers that are Python programs, and what the kernel knows of their connections."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gevent import socket

from tests.servers import _Server

_ESTABLISHED, _CLOSE_WAIT = "01", "08"  # the latter: the other side has closed it


def accepts(server: _Server) -> bool:
    """Say whether somebody listens on the port."""
    with suppress(OSError), socket.create_connection(server.address, timeout=1):
        return True
    return False


class Tree(_Server):
    """A server whose work is done by children: they are paused, resumed and killed with it."""

    def _signal(self, number: int) -> None:
        # The parent first: it must not replace a child that is gone.
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: int) -> None:
        if number == signal.SIGKILL:
            self._signal(number)
        super()._end(number)

    def _is_stopped(self) -> bool:
        return all(_is_stopped(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        return list(_descendants(self.pid)) if self.pid else []


class PythonServer(_Server):
    """A script of this folder: ``python SCRIPT HOST PORT ARGUMENTS``."""

    program = "python"
    drops_rights = False  # our interpreter may not be for everybody
    script = ""

    def arguments(self) -> list[str]:
        return []

    def _command(self) -> list[str]:
        # -P: what lies beside the script is nothing to import.
        script = Path(__file__).parent / self.script
        return [sys.executable, "-P", str(script), *map(str, self.address), *self.arguments()]

    def _is_answering(self) -> bool:
        return accepts(self)


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from _descendants(int(child))


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):
        return all(") T " in stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat"))
    return True  # it has ended


def _connections() -> Iterator[Any]:
    """Yield (local port, remote port, state, bytes not read yet) of each TCP connection over IPv4 on this machine."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        yield int(local.split(":")[1], 16), int(remote.split(":")[1], 16), state, int(queues.split(":")[1], 16)


def unread_by(server: _Server) -> int:
    """Return how many bytes wait for the server to read them; the end of a connection would count for one."""
    return sum(unread for port, _, state, unread in _connections() if port == server.port and state == _ESTABLISHED)


def clients_of(server: _Server) -> int:
    """Return how many connections to the server have not been closed by the client."""
    return sum(port == server.port and state in (_ESTABLISHED, _CLOSE_WAIT) for _, port, state, _ in _connections())
