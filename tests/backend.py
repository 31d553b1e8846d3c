"""A server that misbehaves on command, in a process of its own, for faults that Redis does not have.

It speaks as much of the Redis protocol as one client needs for both: ``PING``, and ``ECHO text`` for a call. What it is
told on stdin it confirms on stdout, so the fault has begun (or ended) when :meth:`Backend.becomes` returns.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from pathlib import Path
from typing import Literal

import gevent
from gevent import socket
from gevent.fileobject import FileObjectPosix
from gevent.server import StreamServer
from gevent.subprocess import PIPE, Popen

from geventconnpool import Endpoint
from tests.servers import die_with_parent

ROOT = Path(__file__).parent.parent
SERVICE_TIME = 0.002  # seconds that a call takes, unless it is told otherwise

# sinkhole: accepts and resets, at once, whatever comes. grey: resets what is a call, and answers PING.
Mode = Literal["well", "sinkhole", "grey"]


class Backend:
    """The server as a test has it: on a port of ``host`` that the kernel has chosen."""

    def __init__(self, host: str) -> None:
        command = [sys.executable, "-m", "tests.backend", host]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, cwd=ROOT, preexec_fn=die_with_parent, process_group=0)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._confirmed = self._process.stdin, self._process.stdout
        self.endpoint = Endpoint(host, int(self._confirmed.readline()))

    def becomes(self, mode: Mode, seconds: float = SERVICE_TIME) -> None:
        """Have it behave so, and take so many seconds for a call that it answers."""
        order = f"{mode} {seconds}\n".encode()
        self._orders.write(order)
        self._orders.flush()
        assert self._confirmed.readline() == order

    def close(self) -> None:
        """End the process, and wait until it is gone."""
        with self._process:
            self._process.kill()
            self._process.wait()


class _Service:
    """The server in its process."""

    def __init__(self) -> None:
        self._mode = "well"
        self._seconds = SERVICE_TIME

    def obey(self, command: bytes) -> None:
        self._mode, seconds = command.decode().split()
        self._seconds = float(seconds)

    def serve(self, connection: socket.socket, _client: object) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            if self._mode != "sinkhole" and all(self._answers(connection, line.strip()) for line in lines):
                return
            # Closed now, it sends a reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _answers(self, connection: socket.socket, line: bytes) -> bool:
        """Answer a line, unless it is to be rejected, be it that the fault began while the call was at work."""
        if line != b"PING" and not self._rejects(line):
            gevent.sleep(self._seconds)
        if self._rejects(line):
            return False
        connection.sendall(_reply(line))
        return True

    def _rejects(self, line: bytes) -> bool:
        return self._mode == "sinkhole" or (self._mode == "grey" and line != b"PING")


def _reply(line: bytes) -> bytes:
    if line == b"PING":
        return b"+PONG\r\n"
    text = line.removeprefix(b"ECHO ")
    return b"$%d\r\n%s\r\n" % (len(text), text)


def main() -> None:
    service = _Service()
    server = StreamServer((sys.argv[1], 0), service.serve)
    server.start()
    print(server.server_port, flush=True)
    for command in FileObjectPosix(sys.stdin.fileno(), "rb", closefd=False):
        service.obey(command)
        print(command.decode(), end="", flush=True)


if __name__ == "__main__":
    main()
