"""Everything that may happen to a service, in about twenty seconds, and what its callers see of it: nothing.

Run ``python -m geventconnpool.demo``: no arguments, no root, no network. (With ``geventconnpool demo`` you direct.)
Three backends in processes of their own, a DNS server in this one that names them, and 30 greenlets that call them
through a :class:`ClusterPool`. Then a backend is killed and comes back, another hangs, one leaves DNS, a new one enters
it. Each step waits until its effect is seen.
The exit status is 0 only if every effect was and no caller saw a failure; else it is 1, and the last lines say why.

Every request carries a number, which the reply has to echo with the name of the backend: a reply that belongs to
somebody else's request would be noticed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import os
import random
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Protocol

import gevent
from gevent import socket
from gevent.server import StreamServer
from gevent.subprocess import PIPE, Popen

from geventconnpool import ClusterPool, Endpoint, events, retry
from geventconnpool import _commands as commands
from geventconnpool._commands import _terminal
from geventconnpool._commands._output import end_with_signals
from geventconnpool._commands._terminal import Column, milliseconds
from geventconnpool.cluster import DNSResolver
from geventconnpool.testing import DNSServer

SERVICE = "_demo._tcp.example.test"
CALLERS = 30
SIZE = 10  # connections to each backend
PAUSE = 0.01  # seconds between two calls of a caller, on average
SERVICE_TIME = 0.002  # seconds that a backend takes for a reply
PATIENCE = 0.5  # seconds to wait for a reply: what a backend that hangs costs a call
CALM = 2.7  # seconds to look at what a step has led to
ABSENCE = 1.5  # seconds to see that an endpoint is left alone
DEADLINE = 15.0  # seconds in which each effect must be seen
EXAMPLES = 5  # of failures that callers saw
PR_SET_PDEATHSIG = 1


class NotSeenError(Exception):
    """Something that the demo is to show did not happen."""


def serve(name: str, port: int) -> None:
    """Be a backend: answer lines until stdin is closed, that is until the demo has ended, in whatever way."""

    def answer(connection: socket.socket, _client: object) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            for line in lines:
                if line != b"PING\n":
                    gevent.sleep(SERVICE_TIME)
                connection.sendall(line.rstrip() + f" {name}\n".encode())

    with contextlib.suppress(AttributeError):
        # Linux, prctl(2): a backend that is stopped does not see the end of stdin.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    server = StreamServer(("127.0.0.1", port), answer)
    server.start()
    with contextlib.suppress(OSError):  # who wanted to know it has ended
        os.write(sys.stdout.fileno(), f"{server.server_port}\n".encode())
    socket.wait_read(sys.stdin.fileno())


class Backend:
    """A backend in a process of its own, on a port that it keeps when it is started again."""

    def __init__(self, letter: str) -> None:
        self.name: str = f"{letter}.example.test"
        self.port: int = 0
        self.process: Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process."""
        self.kill()
        command = [sys.executable, "-m", "geventconnpool.demo", "--backend", self.name, str(self.port)]
        # A process group of its own: the terminal's Ctrl-C is for the demo alone, which then ends its backends.
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, process_group=0)

    def wait(self) -> None:
        """Wait until it listens."""
        line = self.process.stdout.readline() if self.process and self.process.stdout else b""
        if not line:
            raise NotSeenError(f"{self.name} does not start")
        self.port = int(line)

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End the process, even a stopped one, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            with self.process:
                self.process.wait()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.name, self.port)

    def __str__(self) -> str:
        return self.name


class Client:
    """A connection to a backend."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._replies = connection.makefile("rb")
        self.fileno: Callable[[], int] = connection.fileno

    def ask(self, request: bytes) -> bytes:
        self._socket.sendall(request + b"\n")
        reply = self._replies.readline()
        if not reply.endswith(b"\n"):
            raise ConnectionError("the backend has closed the connection")
        return reply[:-1]

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


class Backends(ClusterPool[Client]):
    """The pool of the demo, written as its users write theirs."""

    def _new_connection(self, endpoint: Endpoint) -> Client:
        return Client(endpoint.connect(timeout=PATIENCE))

    def _keepalive(self, c: Client) -> None:
        c.ask(b"PING")


@dataclass
class Window:
    """What the callers have measured since it was opened."""

    since: float = field(default_factory=monotonic)
    seconds: defaultdict[Endpoint, list[float]] = field(default_factory=lambda: defaultdict(list))  # of good attempts
    errors: Counter[Endpoint] = field(default_factory=Counter)
    slowest: float = 0.0  # call, with all its attempts


class Load:
    """Greenlets that make one call after the other, and what they see."""

    pool: Backends

    def __init__(self) -> None:
        self.calls: int = 0
        self.failures: int = 0  # that a caller saw
        self.examples: list[Exception] = []  # of these, the first
        self.begun: Counter[Endpoint] = Counter()  # attempts
        self.window: Window = Window()
        self._numbers = itertools.count(1)
        self._is_over = False

    @contextlib.contextmanager
    def on(self, pool: Backends) -> Iterator[None]:
        """Call as long as the block lasts; at its end every caller finishes the call it is in."""
        self.pool = pool
        callers = [gevent.spawn(self._run) for _ in range(CALLERS)]
        try:
            yield
            self._is_over = True
            if len(gevent.joinall(callers, timeout=DEADLINE, raise_error=True)) < CALLERS:
                raise NotSeenError("the last calls do not end")
        finally:
            gevent.killall(callers)

    def _run(self) -> None:
        while not self._is_over:
            gevent.sleep(PAUSE * random.uniform(0.5, 1.5))
            begun = monotonic()
            try:
                self.call()
            except Exception as error:
                self.failures += 1
                self.examples += [error][: EXAMPLES - len(self.examples)]
            self.calls += 1
            self.window.slowest = max(self.window.slowest, monotonic() - begun)

    @retry(max_failures=3)
    def call(self) -> None:
        number = next(self._numbers)
        with self.pool.get() as c:
            endpoint = self.pool.endpoint_of(c)
            self.begun[endpoint] += 1
            begun = monotonic()
            try:
                reply = c.ask(b"%d" % number)
            except OSError:
                self.window.errors[endpoint] += 1
                raise
            self.window.seconds[endpoint].append(monotonic() - begun)
        if reply != f"{number} {endpoint.name}".encode():
            raise ValueError(f"the reply of {endpoint} to request {number} is {reply!r}")


@dataclass(frozen=True)
class Row:
    """How an endpoint stands, and how it fared in a window. Times are in seconds."""

    endpoint: str
    state: str
    in_flight: int
    calls_per_second: float
    errors: int
    ejections: int
    p50: float | None
    p99: float | None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that ``percent`` per cent of the values do not exceed; None if there are none."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else None


COLUMNS = (
    Column("endpoint"),
    Column("state", least=8),
    *(Column(title, is_number=True) for title in ("in flight", "calls/s", "errors", "ejections", "p50 ms", "p99 ms")),
)


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Yield a line of headings and a line for each row."""
    return _terminal.table(COLUMNS, map(cells, rows))


def cells(row: Row) -> Sequence[str]:
    counts = (str(row.in_flight), f"{row.calls_per_second:.0f}", str(row.errors), str(row.ejections))
    return row.endpoint, row.state, *counts, milliseconds(row.p50), milliseconds(row.p99)


def rows_of(stats: events.ClusterStats, window: Window, now: float) -> Iterator[Row]:
    """Put together what the pool and the callers say; endpoints that are gone only the callers remember."""
    entries = {entry.endpoint: entry for entry in stats.endpoints}
    for endpoint in sorted({*entries, *window.seconds, *window.errors}, key=str):
        entry = entries.get(endpoint)
        state, in_flight, ejections = (entry.state, entry.in_flight, entry.ejections) if entry else ("gone", 0, 0)
        seconds = window.seconds.get(endpoint, [])
        rate = len(seconds) / max(now - window.since, 1e-9)
        p50, p99 = percentile(seconds, 50), percentile(seconds, 99)
        yield Row(str(endpoint), state, in_flight, rate, window.errors[endpoint], ejections, p50, p99)


class Teller(Protocol):
    """Who is told what the scenes show."""

    def step(self, number: int, title: str) -> None: ...
    def note(self, line: str) -> None: ...
    def seen(self, what: str, seconds: float, happening: str) -> None: ...
    def report(self, rows: Iterable[Row], window: Window, seconds: float, failures: int) -> None: ...
    def end(self, load: Load, failed: str | None) -> None: ...


class Plain:
    """Tells it in lines of text."""

    def step(self, number: int, title: str) -> None:
        print(f"\n{number}. {title}", flush=True)

    def note(self, line: str) -> None:
        print(f"   {line}", flush=True)

    def seen(self, what: str, seconds: float, happening: str) -> None:
        self.note(f"{what} {seconds:.2f} s after {happening}")

    def report(self, rows: Iterable[Row], window: Window, seconds: float, failures: int) -> None:
        self.note(f"the last {seconds:.1f} s:")
        for line in table(rows):
            print(f"     {line}")
        retried, slowest = window.errors.total(), window.slowest * 1000
        self.note(f"{retried} attempts failed, slowest call {slowest:.0f} ms, {failures} failures seen so far")

    def end(self, load: Load, failed: str | None) -> None:
        if failed is not None:
            print(f"\nFAILED: {failed}")
        for failure in load.examples:
            self.note(f"a caller saw {failure!r}")
        print(f"\n{load.calls} calls, {load.failures} failures seen by callers", flush=True)


class Json:
    """Tells a step in one line, when it is over, and the end in another. Times are in seconds."""

    def __init__(self) -> None:
        self._step: dict[str, object] = {}
        self._seen: list[dict[str, object]] = []

    def step(self, number: int, title: str) -> None:
        self._seen = []
        self._step = {"step": number, "title": title, "seen": self._seen}

    def note(self, line: str) -> None:
        """All that counts is told elsewhere."""

    def seen(self, what: str, seconds: float, happening: str) -> None:
        self._seen.append({"what": what, "seconds": round(seconds, 3), "after": happening})

    def report(self, rows: Iterable[Row], window: Window, seconds: float, failures: int) -> None:
        self._step |= {
            "window": round(seconds, 3),
            "endpoints": [_rounded(asdict(row)) for row in rows],
            "failed_attempts": window.errors.total(),
            "slowest_call": round(window.slowest, 6),
            "failures": failures,
        }
        print(json.dumps(self._step), flush=True)

    def end(self, load: Load, failed: str | None) -> None:
        examples = list(map(repr, load.examples))
        end = {"calls": load.calls, "failures": load.failures, "examples": examples, "failed": failed}
        print(json.dumps(end), flush=True)


def _rounded(fields: dict[str, object]) -> dict[str, object]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}


class Stage:
    """DNS, backends, the pool and its callers."""

    pool: Backends
    a: Backend
    b: Backend
    c: Backend
    d: Backend

    def __init__(self, load: Load) -> None:
        self.load = load
        self.dns: DNSServer = DNSServer()
        self.backends: list[Backend] = [Backend(letter) for letter in "abcd"]
        self.a, self.b, self.c, self.d = self.backends

    @contextlib.contextmanager
    def on(self, first: int = 3) -> Iterator[None]:
        """Have all of it there, with so many backends that run, and leave nothing behind."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.dns)
            for backend in self.backends:
                stack.callback(backend.kill)
            for backend in self.backends[:first]:
                backend.launch()
            for backend in self.backends[:first]:
                self.see_start(backend)
            for backend in self.backends[:3]:
                self.publish(backend)
            resolver = DNSResolver([self.dns.address], min_refresh=1)
            self.pool = Backends(
                SERVICE, SIZE, keepalive=1, keepalive_timeout=PATIENCE, timeout=5, resolver=resolver, on_event=self.note
            )
            stack.enter_context(self.pool)
            self.begin()
            stack.enter_context(self.load.on(self.pool))
            yield

    def note(self, event: events.Event) -> None:
        """The pool tells of an event."""

    def begin(self) -> None:
        """The pool is there, and calls are about to begin."""

    def start(self, backend: Backend) -> None:
        backend.launch()
        self.see_start(backend)

    def see_start(self, backend: Backend) -> None:
        backend.wait()

    def publish(self, backend: Backend) -> None:
        """Enter a backend into DNS."""
        self.dns.add_address(backend.name, "127.0.0.1")
        self.dns.add_srv(SERVICE, backend.name, backend.port)

    def withdraw(self, backend: Backend) -> None:
        """Take a backend out of DNS."""
        self.dns.remove_srv(SERVICE, backend.name, backend.port)

    def state_of(self, backend: Backend) -> str:
        states = {entry.endpoint: entry.state for entry in self.pool.stats().endpoints}
        return states.get(backend.endpoint, "gone")


class Scene(Stage):
    """The steps of the demo in order; the docstring of each announces it."""

    def __init__(self, deadline: float, load: Load, teller: Teller) -> None:
        super().__init__(load)
        self.deadline = deadline
        self.teller = teller
        self.drained: set[Endpoint] = set()
        self._moment = ("the start", monotonic())

    def play(self) -> None:
        """Go through all steps; raise :class:`NotSeenError` at the first that does not show what it should."""
        steps = (self.steady, self.killed, self.revived, self.hung, self.woken, self.removed, self.added)
        with self.on():
            for number, step in enumerate(steps, 1):
                self.teller.step(number, step.__doc__ or "")
                try:
                    step()
                except NotSeenError as error:
                    raise NotSeenError(f"step {number}. {step.__doc__}\n   {error}") from None

    def note(self, event: events.Event) -> None:
        if isinstance(event, events.EndpointDrained) and not event.forced:
            self.drained.add(event.endpoint)

    def begin(self) -> None:
        self.mark("the start")

    def steady(self) -> None:
        """All is well: the load is spread over three backends."""
        self.see("all connections are open", lambda: self.pool.stats().open == 3 * SIZE)
        self.see("all backends serve", lambda: all(map(self.serves, (self.a, self.b, self.c))))
        self.look_on()

    def killed(self) -> None:
        """A backend dies: kill -9."""
        self.b.signal(signal.SIGKILL)
        self.mark("the kill")
        self.see(f"{self.b} is ejected", lambda: self.state_of(self.b) == "ejected")
        self.look_on(without=self.b)

    def revived(self) -> None:
        """It is started again, on the same port."""
        self.start(self.b)
        self.mark("its start")
        self.see_return(self.b)

    def hung(self) -> None:
        """Another one hangs: SIGSTOP. Its connections stay open, but nothing comes back."""
        self.c.signal(signal.SIGSTOP)
        self.mark("SIGSTOP")
        self.see(f"{self.c} is ejected", lambda: self.state_of(self.c) == "ejected")
        self.look_on(without=self.c)

    def woken(self) -> None:
        """It goes on: SIGCONT."""
        self.c.signal(signal.SIGCONT)
        self.mark("SIGCONT")
        self.see_return(self.c)

    def removed(self) -> None:
        """A backend is taken out of DNS. It still runs, and calls to it may finish."""
        self.withdraw(self.a)
        self.mark("the change in DNS")
        self.see(
            f"{self.a} is drained and gone", lambda: self.a.endpoint in self.drained and self.state_of(self.a) == "gone"
        )
        self.look_on(without=self.a)

    def added(self) -> None:
        """A new backend is started and entered into DNS."""
        self.start(self.d)
        self.publish(self.d)
        self.mark("the change in DNS")
        self.see(f"{self.d} serves", lambda: self.serves(self.d))
        self.look_on()

    # What steps are made of.

    def see_start(self, backend: Backend) -> None:
        super().see_start(backend)
        pid = backend.process.pid if backend.process else None
        self.teller.note(f"{backend} is process {pid}, port {backend.port}")

    def mark(self, what: str) -> None:
        """Measure and count the time from now, when this happens."""
        self._moment = (what, monotonic())
        self.load.window = Window()

    def see(self, what: str, is_seen: Callable[[], bool]) -> None:
        """Wait until something is seen, and tell how long that took."""
        end = monotonic() + self.deadline
        while not is_seen():
            if monotonic() >= end:
                raise NotSeenError(f"not seen within {self.deadline:g} s: {what}")
            gevent.sleep(0.005)
        happening, moment = self._moment
        self.teller.seen(what, monotonic() - moment, happening)

    def see_return(self, backend: Backend) -> None:
        due = next((entry.until for entry in self.pool.stats().endpoints if entry.endpoint == backend.endpoint), None)
        self.teller.note(f"{backend} is to be probed in {max(0.0, (due or 0.0) - monotonic()):.2f} s")
        self.see(f"{backend} is readmitted", lambda: self.state_of(backend) == "active")
        self.see(f"{backend} serves", lambda: self.serves(backend))
        self.look_on()

    def look_on(self, without: Backend | None = None) -> None:
        """Show what follows; with a backend that is out of service, the whole step, and that no call goes there."""
        if without is None:
            self.load.window = Window()
            gevent.sleep(CALM)
        else:
            gevent.sleep(0.05)  # an attempt may have been let through just before
            begun = self.load.begun[without.endpoint]
            gevent.sleep(ABSENCE)
            if self.load.begun[without.endpoint] > begun:
                raise NotSeenError(f"calls still go to {without}")
            self.teller.note(f"no call went there in the {ABSENCE} s since")
        self.report()

    def report(self) -> None:
        window, now = self.load.window, monotonic()
        rows = rows_of(self.pool.stats(), window, now)
        self.teller.report(rows, window, now - window.since, self.load.failures)

    def serves(self, backend: Backend) -> bool:
        return len(self.load.window.seconds.get(backend.endpoint, ())) > 0


def main(deadline: float = DEADLINE, teller: Teller | None = None) -> int:
    """Play the scenes, and return the exit status. ``deadline``: seconds in which each effect must be seen."""
    end_with_signals()
    load, teller, failed = Load(), teller or Plain(), None
    try:
        Scene(deadline, load, teller).play()
    except NotSeenError as error:
        failed = str(error)
    teller.end(load, failed)
    return 1 if load.failures or failed is not None else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--backend"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(commands.main(["demo", "--play"]))
