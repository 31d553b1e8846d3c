"""The command line as its users have it: processes, terminals, and a service to look at.

What runs here runs in greenlets, so that servers in the same process go on while a command is waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import trustme
from gevent import socket, ssl
from gevent.server import StreamServer
from gevent.subprocess import PIPE, Popen

from geventconnpool.testing import DNSServer
from tests.servers import wait_until

ROOT = Path(__file__).parent.parent
SERVICE = "_redis._tcp.example.org"
DEADLINE = 40.0  # seconds for what a command does
MARK = "(the end)"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "geventconnpool", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """Return one in which the package is found from anywhere, and nothing says how to write."""
    without = {"NO_COLOR", "COLUMNS", "LINES", "PYTHONIOENCODING"}
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONUTF8": "1", **changes}


@contextlib.contextmanager
def started(*arguments: str, **options: Any) -> Iterator[Any]:
    """Start a command, and end it with the block."""
    process = Popen(command(*arguments), stdout=PIPE, stderr=PIPE, text=True, env=environment(), **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def run(*arguments: str, cwd: Path | None = None, **changes: str) -> SimpleNamespace:
    """Run a command to its end; return its ``status``, ``out`` and ``err``."""
    process = Popen(command(*arguments), stdout=PIPE, stderr=PIPE, text=True, env=environment(**changes), cwd=cwd)
    try:
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        if process.poll() is None:
            process.kill()
    return SimpleNamespace(status=process.returncode, out=out, err=err)


class Terminal:
    """A command in a terminal of its own."""

    def __init__(
        self,
        arguments: list[str],
        columns: int = 80,
        lines: int = 24,
        directory: str | None = None,
        **changes: str,
    ) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.settings = termios.tcgetattr(self._slave)
        self.written = ""
        self.process = Popen(
            arguments,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            cwd=directory,
            env=environment(**changes),
            preexec_fn=self._lead_a_session,
        )
        self._reader = gevent.spawn(self._read)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # the demo ends its backends
            self.wait()
        self._reader.kill()
        os.close(self._master)
        os.close(self._slave)

    def _lead_a_session(self) -> None:
        os.setsid()
        fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)  # Ctrl-C is for it

    def _read(self) -> None:
        pending = b""
        while True:
            socket.wait_read(self._master)
            pending += os.read(self._master, 65536)
            with contextlib.suppress(UnicodeDecodeError):  # in the middle of a character
                self.written += pending.decode()
                pending = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    @property
    def is_restored(self) -> bool:
        """Whether it is set as before the command was started."""
        return termios.tcgetattr(self._slave) == self.settings

    @property
    def frame(self) -> str:
        """The last whole picture, colours included."""
        frames = self.written.split("\x1b[H")[1:]
        whole = [frame for frame in frames if frame.endswith("\x1b[J") or "\x1b[J" in frame]
        return whole[-1].partition("\x1b[J")[0] if whole else ""

    @property
    def text(self) -> str:
        """The last whole picture without colours."""
        return plain(self.frame)

    def see(self, condition: str | Callable[[str], Any], what: str = "") -> str:
        """Wait until the picture has a text in it, or fulfils a condition; return it."""
        is_seen = (lambda text: condition in text) if isinstance(condition, str) else condition
        try:
            wait_until(lambda: is_seen(self.text) or self.process.poll() is not None, DEADLINE)
        except AssertionError:
            raise AssertionError(f"not seen: {what or condition}\n{self.text}") from None
        assert is_seen(self.text), f"ended with {self.process.returncode}:\n{plain(self.written)}"
        return self.text

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        wait_until(lambda: self.process.poll() is not None, DEADLINE, f"the end of\n{self.text}")
        self._drain()
        return self.process.returncode

    def _drain(self) -> None:
        """Wait until all that was written is read."""
        os.write(self._slave, MARK.encode())
        wait_until(lambda: self.written.endswith(MARK), what="the last of what was written")
        self.written = self.written.removesuffix(MARK)


def plain(text: str) -> str:
    """Return a text without what moves the cursor or colours."""
    return _ESCAPE.sub("", text).replace("\r", "")


class Service:
    """``_redis._tcp.example.org``: three servers, a DNS server that names them, and an authority for their TLS."""

    def __init__(self, directory: Path, *, tls: bool = False) -> None:
        self.dns = DNSServer()
        self.ca_file = directory / "ca.pem"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.ca_file)
        self.servers = [self._server(f"redis{number}.example.org", tls=tls) for number in (1, 2, 3)]

    def __enter__(self) -> Service:
        self.dns.start()
        for server in self.servers:
            server.start()
        for number, (priority, weight) in enumerate([(0, 3), (0, 1), (10, 1)]):
            name = f"redis{number + 1}.example.org"
            self.dns.add_srv(SERVICE, name, self.ports[number], priority, weight, ttl=30)
            self.dns.add_address(name, "127.0.0.1", ttl=30)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for server in self.servers:
            server.stop()
        self.dns.stop()

    @property
    def nameserver(self) -> str:
        return "{}:{}".format(*self.dns.address)

    @property
    def ports(self) -> list[int]:
        return [int(server.server_port or 0) for server in self.servers]

    def _server(self, name: str, *, tls: bool) -> StreamServer:
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._authority.issue_cert(name, "example.org").configure_cert(context)
        return StreamServer(("127.0.0.1", 0), partial(_listen, context))


def _listen(context: ssl.SSLContext | None, connection: socket.socket, _address: object) -> None:
    """Say nothing, whatever is said, but a few words of TLS."""
    with contextlib.suppress(OSError):
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        while connection.recv(4096):
            pass


def examples(text: str) -> list[tuple[str, str]]:
    """Return (arguments, output) of each ``$ geventconnpool ...`` in a text, output as far as it is indented."""
    found = []
    for match in re.finditer(r"^( +)\$ geventconnpool (.+)\n((?:\1.*\n|\n)*)", text + "\n", re.MULTILINE):
        indent, arguments, block = match.groups()
        lines = [line.removeprefix(indent) for line in block.splitlines()]
        end = next((n for n, line in enumerate(lines) if line.startswith("$ ")), len(lines))
        found.append((arguments, "\n".join(lines[:end]).strip()))
        if end < len(lines):
            found += examples("\n".join(f"{indent}{line}" for line in lines[end:]))
    return found


def normal(output: str) -> str:
    """Return what is the same whenever a command is run: no measured times, ports, bars, nor how wide columns are."""
    output = re.sub(r"\d\d:\d\d:\d\d", "TIME", output)
    output = re.sub(r":\d{2,5}\b", ":PORT", output)
    output = re.sub(r"(?<![\d.])\d+\.\d+(?![\d.]| ?%)", "NUMBER", output)
    output = output.replace(" AAAA: ", " A: ")  # whichever was asked first
    output = re.sub(r'"time": "[^"]*"', '"time": "TIME"', output)
    output = re.sub(r'"port": \d+', '"port": PORT', output)
    output = re.sub(r"[█#]+[▒=]*", "BAR", output).replace("▒", "=")
    return "\n".join(re.sub(r" {2,}", "  ", line).strip() for line in output.strip().splitlines())
