"""Real servers for the tests: BIND, Unbound and Redis on loopback, in a temporary directory, never outliving the tests.

They are found on the PATH and in the sbin directories, run with as few rights as possible, and never switch to the
hub for long: waiting is done with ``gevent.sleep``, so that they work patched and unpatched.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.update
import gevent
import pytest
from gevent import socket

HOST = "127.0.0.1"
HOST6 = "::1"
_PORTS = (10_000, 32_768)  # Linux gives those above to who asks for any
SERVERS = ("named", "unbound", "redis-server")
_POSTGRESQL = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))[-1:]  # Debian's is on no PATH
_random = random.SystemRandom()  # the usual one may have been seeded by a test
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin", *_POSTGRESQL])
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def find(program: str) -> str | None:
    """Return the path of a server program, None if it is not installed."""
    return shutil.which(program, path=_PATH)


def missing_servers() -> list[str]:
    """Return the names of the server programs that are not installed."""
    return [program for program in SERVERS if find(program) is None]


def require(program: str) -> None:
    """Skip the test if ``program`` is not installed. With CI=true it fails instead: there nothing may be skipped."""
    if find(program) is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{program} is not installed")
    pytest.skip(f"{program} is not installed")


def has_ipv6() -> bool:
    """Tell whether the kernel has ``::1``."""
    return _is_free(socket.AF_INET6, socket.SOCK_STREAM, HOST6, 0)


def require_ipv6() -> None:
    """Skip the test if the kernel has no ``::1``: that is nothing one could install."""
    if not has_ipv6():
        pytest.skip("the kernel has no ::1")


def free_port() -> int:
    """Return a port of 127.0.0.1, and of ::1 where there is one, that is free for TCP and UDP right now.

    It is none that the system gives to who asks for any: a server that is down for a while finds it free.
    """
    kinds = [(socket.AF_INET, kind, HOST) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    if has_ipv6():
        kinds += [(socket.AF_INET6, kind, HOST6) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    while True:
        port = _random.randrange(*_PORTS)
        if all(_is_free(*kind, port) for kind in kinds):
            return port


def _is_free(family: int, kind: int, host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(family, kind) as candidate:
        candidate.bind((host, port))
        return True
    return False


def wait_until(condition: Callable[[], Any], timeout: float = 30.0, what: str = "the condition") -> Any:
    """Return the first true value of ``condition()``; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        gevent.sleep(0.005)


class ServerFailed(Exception):
    """The server process ended instead of answering."""


class _Server:
    """A server process on one port of 127.0.0.1 that keeps the port, and its directory, when it is started again."""

    program = ""
    drops_rights = True  # where we are root

    def __init__(self, port: int | None = None) -> None:
        self._port = port
        self._has_own_port = port is None
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None

    @property
    def port(self) -> int:
        """The port; chosen at the first start unless given."""
        assert self._port is not None, "not started"
        return self._port

    @property
    def address(self) -> tuple[str, int]:
        """``("127.0.0.1", port)``"""
        return HOST, self.port

    @property
    def pid(self) -> int:
        """The process id; 0 while not running."""
        return self._process.pid if self._process is not None else 0

    @property
    def directory(self) -> Path:
        """The working directory; removed at :meth:`close`."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix=f"test-{self.program}-"))
        return self._directory

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def start(self) -> Self:
        """Start and return as soon as it answers. A port of its own choosing is changed if another has taken it."""
        assert self._process is None, "started already"
        atexit.register(self.close)
        for attempt in range(3, 0, -1):
            try:
                self._start_once()
            except ServerFailed:
                if attempt == 1 or not self._has_own_port:
                    raise
                self._port = None
            else:
                self._has_own_port = False  # from now on the same port
                return self
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End in an orderly way (SIGTERM)."""
        self.resume()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End at once (SIGKILL)."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop answering without closing anything (SIGSTOP); returns when every thread has stopped."""
        self._signal(signal.SIGSTOP)
        wait_until(self._is_stopped, what=f"the stop of {self.program}")

    def resume(self) -> None:
        """Undo :meth:`pause` (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same port, killed first if it runs."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill the process and remove its directory. Idempotent."""
        self.kill()
        atexit.unregister(self.close)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def log(self) -> str:
        """What the process has written so far."""
        return (self.directory / "log").read_text(errors="replace")

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_answering(self) -> bool:
        raise NotImplementedError

    def _start_once(self) -> None:
        self._port = self._port or free_port()
        command = self._command()
        identity = _as_nobody(self.directory) if self.drops_rights else {}
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
                preexec_fn=die_with_parent, start_new_session=True, **identity,
            )  # fmt: skip
        wait_until(self._has_started, what=f"{self.program} on port {self.port}")

    def _has_started(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            self._process = None
            raise ServerFailed(f"{self.program} ended:\n{self.log()}")
        return self._is_answering()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _is_stopped(self) -> bool:
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")  # empty where there is no /proc
        return all(") T " in thread.read_text() for thread in threads)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            wait_until(lambda: process.poll() is not None, what=f"the end of {self.program}")
        except AssertionError:
            process.kill()
            process.wait()


class Bind(_Server):
    """``named``, authoritative for ``example.test`` with TTL 1, which anybody on 127.0.0.1 may update."""

    program = "named"
    zone = "example.test"

    @property
    def address6(self) -> tuple[str, int]:
        """``("::1", port)``, where the kernel has it."""
        return HOST6, self.port

    def update(
        self, add: Iterable[tuple[str, str, str]] = (), delete: Iterable[tuple[str, ...]] = (), ttl: int = 1
    ) -> None:
        """Change the zone (RFC 2136), visible at once. Names are relative to the zone unless they end in a dot.

        ``add`` holds (name, type, data), as in ``("_redis._tcp", "SRV", "0 1 6379 redis1")``; ``delete`` the same, or
        (name, type), or (name,). Deletions come first. Blocks for a millisecond or two.
        """
        update = dns.update.Update(self.zone)
        for name, *what in delete:
            update.delete(name, *what)
        for name, rdtype, data in add:
            update.add(name, ttl, rdtype, data)
        response = dns.query.tcp(update, HOST, timeout=30, port=self.port)
        assert response.rcode() == dns.rcode.NOERROR, dns.rcode.to_text(response.rcode())

    def _command(self) -> list[str]:
        program = find("named")
        assert program is not None, "named is not installed"
        self._write_configuration(program)
        return [_unconfined(program, self.directory), "-c", "named.conf", "-g", "-n", "1"]

    def _write_configuration(self, program: str) -> None:
        known = subprocess.run([program, "-C"], capture_output=True, text=True, check=False).stdout
        options = {"lock-file": "none", "max-records-per-type": "0"}
        extra = "".join(f"    {name} {value};\n" for name, value in options.items() if f"{name} " in known)
        zone = self.directory / "zone"
        if not zone.exists():  # else the updates of an earlier run are in it and in its journal
            self.token = uuid.uuid4().hex
            zone.write_text(_ZONE.format(token=self.token))
        (self.directory / "named.conf").write_text(
            _NAMED_CONF.format(
                port=self.port,
                directory=self.directory,
                zone=self.zone,
                ipv6=HOST6 if has_ipv6() else "none",
                extra=extra,
            )
        )

    def _is_answering(self) -> bool:
        return _knows_token(self.port, self)


class Unbound(_Server):
    """``unbound``, which asks a :class:`Bind` and remembers what that told, and sends no additional section.

    With ``serve_expired`` it does as RFC 8767 says: what has expired is the answer when the other has been silent for
    ``patience`` seconds, or cannot be reached. ``bind`` has to answer while this is started.
    """

    program = "unbound"

    def __init__(self, bind: Bind, *, serve_expired: bool, patience: float = 0.3, port: int | None = None) -> None:
        super().__init__(port)
        self._bind = bind
        self._serve_expired = serve_expired
        self._patience = patience

    def queries(self, name: str, rdtype: str) -> int:
        """How often it was asked for a name of the zone."""
        return self.log().count(f" {name}.{Bind.zone}. {rdtype} IN\n")

    def _command(self) -> list[str]:
        program = find("unbound")
        assert program is not None, "unbound is not installed"
        (self.directory / "unbound.conf").write_text(
            _UNBOUND_CONF.format(
                port=self.port,
                directory=self.directory,
                serve_expired="yes" if self._serve_expired else "no",
                patience=round(self._patience * 1000),
                zone=Bind.zone,
                upstream=self._bind.port,
            )
        )
        return [_unconfined(program, self.directory), "-c", "unbound.conf", "-d", "-p"]

    def _is_answering(self) -> bool:
        return _knows_token(self.port, self._bind)


def _knows_token(port: int, bind: Bind) -> bool:
    """Tell whether the name server on ``port`` has the data of ``bind``: others may have taken the port."""
    query = dns.message.make_query(f"token.{bind.zone}", "TXT")
    with contextlib.suppress(OSError, dns.exception.DNSException):
        return bind.token in str(dns.query.tcp(query, HOST, timeout=0.2, port=port))
    return False


class Redis(_Server):
    """``redis-server`` that keeps nothing on disk."""

    program = "redis-server"

    def _command(self) -> list[str]:
        program = find("redis-server")
        assert program is not None, "redis-server is not installed"
        return [program, "--port", str(self.port), "--bind", HOST, "--save", "", "--appendonly", "no"]

    def _is_answering(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
        return False


class HAProxy(_Server):
    """``haproxy`` before some Redis servers: one address for all of them, checked with PING every ``check`` seconds.

    Two checks that fail, or one after ten connections that were refused, mark a server as down, and that ends what
    leads there.
    """

    program = "haproxy"

    def __init__(self, servers: Iterable[Redis], check: float = 1.0) -> None:
        super().__init__()
        self._servers = [server.address for server in servers]
        self._check = check

    def _command(self) -> list[str]:
        program = find("haproxy")
        assert program is not None, "haproxy is not installed"
        lines = [f"    server redis{n} {host}:{port}" for n, (host, port) in enumerate(self._servers, 1)]
        text = _HAPROXY_CFG.format(port=self.port, check=round(1000 * self._check), servers="\n".join(lines))
        (self.directory / "haproxy.cfg").write_text(text)
        return [program, "-db", "-f", "haproxy.cfg"]

    def _is_answering(self) -> bool:
        return Redis._is_answering(self)  # type: ignore[arg-type]  # PONG from one of them


# One thread, as Redis has. It tries another server at once where a connect fails.
_HAPROXY_CFG = """\
global
    maxconn 1000
    nbthread 1
defaults
    mode tcp
    timeout connect 500ms
    timeout client 60s
    timeout server 60s
    retries 3
    option redispatch 1
listen redis
    bind 127.0.0.1:{port}
    balance leastconn
    option redis-check
    timeout check 500ms
    default-server check inter {check}ms fall 2 rise 2 observe layer4
    default-server error-limit 10 on-error mark-down on-marked-down shutdown-sessions
{servers}
"""

_NAMED_CONF = """\
options {{
    directory "{directory}";
    listen-on port {port} {{ 127.0.0.1; }};
    listen-on-v6 port {port} {{ {ipv6}; }};
    pid-file "named.pid";
    session-keyfile "session.key";
    managed-keys-directory "{directory}";
    recursion no;
    notify no;
    dnssec-validation no;
    minimal-responses no;
{extra}}};
controls {{ }};
zone "{zone}" {{ type primary; file "zone"; allow-update {{ 127.0.0.1; }}; }};
"""

# "test" is one of the zones that it answers for by itself. What it has found out about the one whom it asks (that it is
# silent, say) it forgets within a second, and it gives up after the second try.
_UNBOUND_CONF = """\
server:
    interface: 127.0.0.1
    port: {port}
    access-control: 127.0.0.0/8 allow
    directory: "{directory}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    logfile: ""
    log-queries: yes
    do-daemonize: no
    do-ip6: no
    num-threads: 1
    module-config: "iterator"
    qname-minimisation: no
    outbound-msg-retry: 1
    do-not-query-localhost: no
    infra-host-ttl: 1
    infra-keep-probing: yes
    serve-expired: {serve_expired}
    serve-expired-client-timeout: {patience}
    serve-expired-reply-ttl: 1
    local-zone: "test." nodefault
remote-control:
    control-enable: no
stub-zone:
    name: "{zone}"
    stub-addr: 127.0.0.1@{upstream}
"""

_ZONE = """\
$TTL 1
@ IN SOA ns hostmaster 1 3600 600 86400 1
@ IN NS ns
ns IN A 127.0.0.1
token IN TXT {token}
"""


def die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _as_nobody(directory: Path) -> dict[str, Any]:
    """Hand ``directory`` to the user nobody; return how to run a process as that user, nothing if we are not root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    for path in (directory, *directory.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _unconfined(program: str, directory: Path) -> str:
    """Return a program outside of the AppArmor profile that confines the installed path to /etc/bind and the like."""
    profile = Path("/etc/apparmor.d") / program.strip("/").replace("/", ".")
    if not profile.exists():
        return program
    copy = directory / Path(program).name
    if not copy.exists():
        shutil.copy(program, copy)
    return str(copy)
