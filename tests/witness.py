"""A server that remembers who said what on which connection, and the programs that are run against it.

A line is ``<pid> <word> [<token>]``, the pid that of the process which writes it. The answer repeats the line behind
the number of the connection, so that an answer to somebody else's line is seen by whoever reads it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Self

from gevent.event import Event
from gevent.server import StreamServer
from gevent.socket import socket

from tests.servers import die_with_parent, wait_until

ROOT = Path(__file__).parent.parent


class Record:
    """One accepted connection: every byte that came in, and when its end did (``monotonic()``; None: not yet)."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.received = b""
        self.ended: float | None = None

    @property
    def lines(self) -> list[str]:
        return self.received.decode(errors="replace").splitlines()

    @property
    def pids(self) -> set[str]:
        """Who wrote, as they say."""
        return {line.partition(" ")[0] for line in self.lines}

    @property
    def opener(self) -> str:
        """Who connected: each client says HELLO first. Empty before that."""
        return self.lines[0].partition(" ")[0] if self.lines else ""

    def words_of(self, pid: object) -> list[str]:
        """What a process said here, without the tokens."""
        return [line.split()[1] for line in self.lines if line.startswith(f"{pid} ")]

    @property
    def last_words(self) -> str:
        """Who said what last."""
        return self.lines[-1] if self.lines else ""

    def __repr__(self) -> str:
        return f"<{self.number}: {self.lines}{', ended' if self.ended else ''}>"


class Witness:
    """Answers lines, keeps a :class:`Record` per connection, and all lines in the order of their arrival."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.lines: list[str] = []
        self._held = ""
        self._gate = Event()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()

    @property
    def address(self) -> str:
        host, port = self._server.socket.getsockname()
        return f"{host}:{port}"

    def hold(self, word: str) -> None:
        """Leave lines with this word unanswered until :meth:`release`."""
        self._held = word
        self._gate.clear()

    def release(self) -> None:
        self._held = ""
        self._gate.set()

    def opened_by(self, pid: object) -> list[Record]:
        return [record for record in self.records if record.opener == str(pid)]

    def shared(self) -> list[Record]:
        """The connections on which more than one process wrote."""
        return [record for record in self.records if len(record.pids) > 1]

    def stop(self) -> None:
        self._server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()

    def _serve(self, connection: socket, _address: object) -> None:
        record = Record(len(self.records) + 1)
        self.records.append(record)
        try:
            self._listen(connection, record)
        except OSError:
            pass
        finally:
            record.ended = monotonic()

    def _listen(self, connection: socket, record: Record) -> None:
        unread = b""
        while data := connection.recv(65536):
            record.received += data
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                self._answer(connection, record, line)

    def _answer(self, connection: socket, record: Record, line: bytes) -> None:
        text = line.decode(errors="replace")
        self.lines.append(text)
        if self._held and text.split()[1:2] == [self._held]:
            self._gate.wait()
        connection.sendall(b"%d %s\n" % (record.number, line))


class Program:
    """A Python program in a session of its own, told where the witnesses are; no process of it outlives it."""

    runner: tuple[str, ...] = (sys.executable, "-u", "-m")

    def __init__(self, *arguments: str, log: Path, witnesses: list[Witness], **environment: str) -> None:
        self._log = log
        self._name = " ".join(arguments)
        addresses = " ".join(witness.address for witness in witnesses)
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [*self.runner, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=ROOT, env={**os.environ, "WITNESSES": addresses, **environment},
                preexec_fn=die_with_parent, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        """What its processes have written so far, to standard output and error."""
        return self._log.read_text(errors="replace")

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end and return the exit code."""
        wait_until(lambda: self._process.poll() is not None, timeout, f"the end of {self._name}")
        return self._process.returncode

    def processes(self) -> list[int]:
        """The processes of its session that are alive, children of children included."""
        return [pid for pid, state, session in _processes() if session == self.pid and state != "Z"]

    def ask_to_end(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        """Kill what is left, those too that are forked meanwhile."""
        while pids := self.processes():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
        self._process.wait()


def _processes() -> Iterator[tuple[int, str, int]]:
    """Yield (pid, state, session) of every process."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = stat.read_text().rpartition(")")[2].split()
            yield int(stat.parent.name), fields[0], int(fields[3])
