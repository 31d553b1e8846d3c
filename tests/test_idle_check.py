"""Connections that the peer has closed while they were idle are found before they are lent: on real descriptors."""

from __future__ import annotations

import fcntl
import io
import os
import resource
import select
import socket as plain_socket
import ssl as plain_ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any
from unittest.mock import MagicMock

import gevent
import greenlet
import pytest
import trustme
from gevent import socket, ssl
from gevent.event import Event

from geventconnpool import (
    ClusterPool,
    ConnectionPool,
    Endpoint,
    PoolClosed,
    PoolTimeout,
    _engine,
    _lender,
    _liveness,
    _queue,
    events,
    retry,
)
from geventconnpool.cluster import OutlierDetection, StaticResolver
from tests.servers import Redis, require, wait_until

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its view of a socket")

# -- what the tests set up ---------------------------------------------------------------------------------------------

Pair = tuple[Any, Any]


def tcp_pair() -> Pair:
    """Return both ends of a TCP connection over loopback: the pool's, and its peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


def unix_pair() -> Pair:
    """The same over a path in the file system."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/socket")
        listener.listen()
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(f"{directory}/socket")
        return ours, listener.accept()[0]


def reading_pipe() -> Pair:
    reader, writer = os.pipe()
    return open(reader, "rb", buffering=0), open(writer, "wb", buffering=0)


def writing_pipe() -> Pair:
    reader, writer = os.pipe()
    return open(writer, "wb", buffering=0), open(reader, "rb", buffering=0)


def close_if_it_can_be(c: Any) -> None:
    if hasattr(type(c), "close"):
        c.close()


class Pairs:
    """A pool whose connections ``make`` makes in pairs; ``pairs`` are those so far. It hears what happens to it."""

    alive: list[Pairs] = []

    def __init__(self, where: Any, make: Callable[[], Pair], size: int = 1, **options: Any) -> None:
        self.make = make
        self.pairs: list[Pair] = []
        self.heard: list[events.Event] = []
        self.ended: list[tuple[str, Any]] = []
        Pairs.alive.append(self)
        super().__init__(*where, size, on_event=self.heard.append, **options)  # type: ignore[call-arg]

    def open(self) -> Any:
        self.pairs.append(self.make())
        return self.pairs[-1][0]

    def _close_connection(self, c):
        self.ended.append(("closed", c))
        close_if_it_can_be(c)

    def _abort_connection(self, c):
        self.ended.append(("aborted", c))
        close_if_it_can_be(c)

    def peer(self, c: Any) -> Any:
        return next(theirs for ours, theirs in self.pairs if ours is c)


class Lone(Pairs, ConnectionPool[Any]):
    def __init__(self, make: Callable[[], Pair] = tcp_pair, size: int = 1, **options: Any) -> None:
        super().__init__((), make, size, **options)

    def _new_connection(self):
        return self.open()


class Cluster(Pairs, ClusterPool[Any]):
    """Of one endpoint, so that it does as a lone pool does."""

    def __init__(self, make: Callable[[], Pair] = tcp_pair, size: int = 1, **options: Any) -> None:
        super().__init__(([("127.0.0.1", 1)],), make, size, **options)

    def _new_connection(self, endpoint):
        return self.open()


KINDS = pytest.mark.parametrize("kind", [Lone, Cluster])


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """After each test its pools, and the peers of what they opened, are closed; then no descriptor is left over."""
    Pairs.alive.clear()
    before = descriptors()
    yield
    for pool in Pairs.alive:
        end_of(pool)
    Pairs.alive.clear()
    wait_until(lambda: descriptors() <= before, what="the close of every descriptor")


def end_of(pool):
    pool.close(0)
    wait_until(lambda: is_over(pool), what=f"the end of {pool}")
    for _, theirs in pool.pairs:
        close_if_it_can_be(theirs)


def is_over(pool):
    stats = pool.stats()
    return (stats.closed, stats.open, stats.connecting, stats.waiting) == (stats.opened, 0, 0, 0)


def descriptors() -> set[tuple[int, str]]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((int(number), os.readlink(f"/proc/self/fd/{number}")))
        except FileNotFoundError:  # the one by which they were listed
            continue
    return found


def ready(pool):
    """Return the pool when it is full."""
    pool.wait(timeout=30)
    return pool


def rest(pool, seconds=1.0):
    """Make every idle connection believe that its last sign of life is older."""
    for slots in pool._lender.pools():
        for slot in slots.idle:
            slot.seen -= seconds
            slot.kept -= seconds


def lend(pool, timeout=30.0):
    """Borrow a connection, return it, and return which it was."""
    with pool.get(timeout=timeout) as c:
        return c


def rest_and_lend(pool):
    rest(pool)
    return lend(pool)


def causes(pool) -> dict[str, int]:
    return {cause: count for cause, count in pool.stats().discarded.items() if count}


def has_arrived(c) -> bool:
    """Whether the system knows that a TCP connection is not established any more."""
    return bool(c.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\x01")


def is_readable(c) -> bool:
    poll = select.poll()
    poll.register(c.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def hang_up(c, peer):
    """Close the peer of whatever it is, and wait until the system knows."""
    poll = select.poll()
    poll.register(c.fileno(), select.POLLRDHUP)
    peer.close()
    wait_until(lambda: poll.poll(0))


def close_by_fin(c, peer):
    peer.close()
    wait_until(lambda: has_arrived(c))


def close_by_rst(c, peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    wait_until(lambda: has_arrived(c))


def close_half(c, peer):
    peer.shutdown(socket.SHUT_WR)
    wait_until(lambda: has_arrived(c))


def say_and_close(c, peer):
    peer.sendall(b"421 too busy\r\n")
    close_by_fin(c, peer)


def say_and_reset(c, peer):
    peer.sendall(b"421 too busy\r\n")
    close_by_rst(c, peer)


def leave_a_question_and_close(c, peer):
    """The system resets what is closed with something unread in it."""
    c.sendall(b"PING\r\n")
    wait_until(lambda: is_readable(peer))
    close_by_fin(c, peer)


def do_nothing(c, peer):
    pass


def say_hello(c, peer):
    peer.sendall(b"220 welcome\r\n")
    wait_until(lambda: is_readable(c))


def say_urgently(c, peer):
    peer.send(b"!", socket.MSG_OOB)
    poll = select.poll()
    poll.register(c.fileno(), select.POLLPRI)
    wait_until(lambda: poll.poll(0))


def stop_sending(c, peer):
    """We do: the peer may still answer."""
    c.shutdown(socket.SHUT_WR)


DEADLY = [close_by_fin, close_by_rst, close_half, say_and_close, say_and_reset, leave_a_question_and_close]
HARMLESS = [do_nothing, say_hello, say_urgently]


class Told:
    """Has a descriptor to tell, as its ``fileno`` would; ``asked`` are the greenlets that asked."""

    def __init__(self, number: Any) -> None:
        self.number = number
        self.asked: list[Any] = []

    def fileno(self) -> Any:
        self.asked.append(gevent.getcurrent())
        if isinstance(self.number, BaseException):
            raise self.number
        return self.number


class Counted(socket.socket):
    """Counts how often its descriptor was asked for by the greenlet that is told to be the ``caller``."""

    caller: Any = None
    looks = 0

    def fileno(self):
        if self.caller is gevent.getcurrent():
            self.looks += 1
        return super().fileno()


def counted_pair() -> Pair:
    ours, theirs = tcp_pair()
    return Counted(fileno=ours.detach()), theirs


@contextmanager
def looks(*connections: Counted) -> Iterator[Callable[[], list[int]]]:
    """Return a function that says how often each was looked at in the block by this greenlet."""
    for c in connections:
        c.caller = gevent.getcurrent()
        c.looks = 0
    yield lambda: [c.looks for c in connections]
    for c in connections:
        c.caller = None


def count_switches(action: Callable[[], object]) -> int:
    switches: list[Any] = []
    greenlet.settrace(lambda *args: switches.append(args))
    try:
        action()
    finally:
        greenlet.settrace(None)
    return len(switches)


# -- what is found, and what is not ------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("end", DEADLY)
def test_a_connection_that_its_peer_closed_is_not_lent_after_a_second(kind, end):
    pool = ready(kind())
    c = lend(pool)
    end(c, pool.peer(c))
    new = rest_and_lend(pool)

    assert new is not c
    assert causes(pool) == {"stale": 1}
    assert not has_arrived(new)


@KINDS
@pytest.mark.parametrize("act", [*HARMLESS, stop_sending])
def test_a_connection_that_its_peer_did_not_close_is_lent_again(kind, act):
    pool = ready(kind())
    c = lend(pool)
    act(c, pool.peer(c))

    assert [rest_and_lend(pool) is c for _ in range(3)] == [True, True, True]
    assert causes(pool) == {}
    assert pool.stats().opened == 1


def test_the_second_is_a_real_one():
    pool = ready(Lone())
    c = lend(pool)
    returned_at = monotonic()
    close_by_fin(c, pool.peer(c))
    wait_until(lambda: monotonic() >= returned_at + 1.0)
    new = lend(pool)

    assert new is not c
    assert causes(pool) == {"stale": 1}


def test_a_second_since_it_was_opened_counts_as_well():
    pool = ready(Lone())
    c, peer = pool.pairs[0]
    close_by_fin(c, peer)
    new = rest_and_lend(pool)

    assert new is not c
    assert causes(pool) == {"stale": 1}


@KINDS
def test_what_waits_to_be_read_is_still_there_after_the_check(kind):
    pool = ready(kind())
    c = lend(pool)
    say_hello(c, pool.peer(c))
    rest(pool)
    with pool.get() as again:
        text = again.recv(100)

    assert again is c
    assert text == b"220 welcome\r\n"


@pytest.mark.parametrize("end", [close_by_fin, say_and_close])
def test_what_is_said_after_the_end_is_left_to_be_read_by_who_closes(end):
    read = []

    class Reading(Lone):
        def _abort_connection(self, c):
            read.append(c.recv(100))
            c.close()

    pool = ready(Reading())
    c = lend(pool)
    end(c, pool.peer(c))
    rest_and_lend(pool)
    wait_until(lambda: read)

    assert read == [b"421 too busy\r\n" if end is say_and_close else b""]


@pytest.mark.parametrize("make", [unix_pair, socket.socketpair, reading_pipe, writing_pipe])
def test_unix_sockets_and_pipes_are_told_apart_from_their_closed_likes(make):
    pool = ready(Lone(make, 2, lifo=False))
    first, second = lend(pool), lend(pool)
    before = [rest_and_lend(pool), lend(pool)]
    hang_up(first, pool.peer(first))
    after = [rest_and_lend(pool), lend(pool)]

    assert before == [first, second]
    assert after[0] is second
    assert first not in after
    assert causes(pool) == {"stale": 1}


@pytest.mark.parametrize("flags", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_unix_socket_that_is_shut_down_by_its_peer_is_found(flags):
    pool = ready(Lone(socket.socketpair))
    c = lend(pool)
    pool.peer(c).shutdown(flags)
    wait_until(lambda: is_readable(c))
    new = rest_and_lend(pool)

    assert new is not c
    assert causes(pool) == {"stale": 1}


def eventfd() -> Any:
    return open(os.eventfd(0), "r+b", buffering=0)


def datagrams() -> Any:
    ours = socket.socket(type=socket.SOCK_DGRAM)
    ours.bind(("127.0.0.1", 0))
    return ours


QUIET = [
    pytest.param(partial(tempfile.TemporaryFile), id="file"),
    pytest.param(partial(open, "/dev/null", "rb"), id="device"),
    pytest.param(eventfd, id="eventfd"),
    pytest.param(datagrams, id="datagrams"),
    pytest.param(select.epoll, id="epoll"),
]


@pytest.mark.parametrize("make", QUIET)
def test_what_has_a_descriptor_but_no_peer_is_alive(make):
    pool = ready(Lone(lambda: (make(), None)))
    c = lend(pool)

    assert [rest_and_lend(pool) is c for _ in range(3)] == [True, True, True]
    assert causes(pool) == {}


@pytest.fixture
def more_descriptors() -> Iterator[None]:
    """Room for 3000 descriptors, and all numbers below 1100 taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 3000)), hard))
    taken = [os.open("/dev/null", os.O_RDONLY)]
    while taken[-1] < 1100:
        taken.append(os.dup(taken[0]))
    yield
    for number in taken:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@KINDS
def test_a_descriptor_above_1024_is_looked_at_like_any_other(kind, request):
    request.getfixturevalue("more_descriptors")
    pool = ready(kind())
    c = lend(pool)
    assert c.fileno() > 1024

    assert rest_and_lend(pool) is c
    close_by_fin(c, pool.peer(c))
    assert rest_and_lend(pool) is not c
    assert causes(pool) == {"stale": 1}
    end_of(pool)


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_pair(authority, request) -> Callable[[], Pair]:
    """Makes both ends of a TLS connection of the version that the test asks for."""
    version = getattr(plain_ssl.TLSVersion, request.param)
    server = ssl.SSLContext(plain_ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(plain_ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        context.minimum_version = context.maximum_version = version
    authority.issue_cert("server.test").configure_cert(server)
    authority.configure_trust(client)

    def make() -> Pair:
        ours, theirs = tcp_pair()
        accepting = gevent.spawn(server.wrap_socket, theirs, server_side=True)
        ours = client.wrap_socket(ours, server_hostname="server.test")
        return ours, accepting.get(timeout=5)

    return make


TLS = pytest.mark.parametrize("tls_pair", ["TLSv1_2", "TLSv1_3"], indirect=True)


@KINDS
@TLS
def test_a_tls_connection_that_is_open_is_alive_and_what_it_says_next_is_whole(kind, tls_pair):
    pool = ready(kind(tls_pair))
    c = pool.pairs[0][0]
    if c.version() == "TLSv1.3":
        wait_until(lambda: is_readable(c), what="session tickets")
    before = [rest_and_lend(pool) is c for _ in range(3)]
    pool.peer(c).sendall(b"hello")
    wait_until(lambda: is_readable(c))
    rest(pool)
    with pool.get() as again:
        text = again.recv(100)

    assert before == [True, True, True]
    assert text == b"hello"
    assert causes(pool) == {}


@KINDS
@TLS
@pytest.mark.parametrize("says", [b"", b"goodbye"])
def test_a_tls_connection_that_its_peer_closed_is_found_whatever_waits_to_be_read(kind, tls_pair, says):
    pool = ready(kind(tls_pair))
    c = pool.pairs[0][0]
    if says:
        pool.peer(c).sendall(says)
    close_by_fin(c, pool.peer(c))
    new = rest_and_lend(pool)

    assert new is not c
    assert causes(pool) == {"stale": 1}


# -- patched or not, with and without POLLRDHUP ------------------------------------------------------------------------

# Says of each case whether the connection was lent again; the last line, what was switched and left open by the checks.
PROGRAM = """
import select, sys
if "patched" in sys.argv:
    from gevent import monkey
    monkey.patch_all()
if "without" in sys.argv:
    del select.POLLRDHUP
import os, struct, gevent, greenlet, trustme
from gevent.monkey import get_original
import socket as s, ssl as l
if "patched" not in sys.argv:
    from gevent import socket as s, ssl as l
from geventconnpool import ConnectionPool

authority = trustme.CA()

def pair():
    with s.create_server(("127.0.0.1", 0)) as listener:
        ours = s.create_connection(listener.getsockname())
        return ours, listener.accept()[0]

def tls(version):
    contexts = l.SSLContext(l.PROTOCOL_TLS_SERVER), l.SSLContext(l.PROTOCOL_TLS_CLIENT)
    for context in contexts:
        context.minimum_version = context.maximum_version = version
    authority.issue_cert("server.test").configure_cert(contexts[0])
    authority.configure_trust(contexts[1])
    def make():
        ours, theirs = pair()
        accepting = gevent.spawn(contexts[0].wrap_socket, theirs, server_side=True)
        return contexts[1].wrap_socket(ours, server_hostname="server.test"), accepting.get()
    return make

def nothing(c, peer): pass
def hello(c, peer): peer.sendall(b"hello")
def fin(c, peer): peer.close()
def half(c, peer): peer.shutdown(s.SHUT_WR)
def rst(c, peer):
    peer.setsockopt(s.SOL_SOCKET, s.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
def bye(c, peer):
    peer.sendall(b"bye")
    peer.close()

class Pool(ConnectionPool):
    def _new_connection(self):
        self.last = make()
        return self.last[0]

def is_lent_again(act):
    pool = Pool(1)
    pool.wait(timeout=5)
    c, peer = pool.last
    act(c, peer)
    if act is not nothing:
        poll = get_original("select", "poll")()
        poll.register(c.fileno(), 1 if act is hello else 0x2000)  # POLLIN, POLLRDHUP
        while not poll.poll(0):
            gevent.sleep(0.001)
    for slot in pool._lender.slots.idle:
        slot.seen -= 1.0
        slot.kept -= 1.0
    switches = []
    greenlet.settrace(lambda *args: switches.append(args))
    slot = pool._lender.slots.idle[0]
    gone = slot.poller.has_hung_up(c)
    greenlet.settrace(None)
    assert switches == []
    with pool.get(timeout=5) as again:
        assert (again is not c) == gone
    pool.close(0)
    peer.close()
    return not gone

def left_open():
    return len(os.listdir("/proc/self/fd"))

makes = {"tcp": pair, "unix": s.socketpair, "1.2": tls(l.TLSVersion.TLSv1_2), "1.3": tls(l.TLSVersion.TLSv1_3)}
before = None
for name, make in makes.items():
    acts = (nothing, hello, fin, half, rst, bye) if name == "tcp" else (nothing, hello, fin, bye)
    print(name, *(f"{act.__name__}={'alive' if is_lent_again(act) else 'dead'}" for act in acts))
    before = before or left_open()
for _ in range(500):  # what is closed may be so a little later
    if left_open() == before:
        break
    gevent.sleep(0.01)
print("left open:", left_open() - before)
"""

WITH = """\
tcp nothing=alive hello=alive fin=dead half=dead rst=dead bye=dead
unix nothing=alive hello=alive fin=dead bye=dead
1.2 nothing=alive hello=alive fin=dead bye=dead
1.3 nothing=alive hello=alive fin=dead bye=dead
left open: 0
"""

# What has last words to be read looks alive: nothing tells whether there is an end behind them.
WITHOUT = """\
tcp nothing=alive hello=alive fin=dead half=dead rst=dead bye=alive
unix nothing=alive hello=alive fin=dead bye=dead
1.2 nothing=alive hello=alive fin=dead bye=alive
1.3 nothing=alive hello=alive fin=alive bye=alive
left open: 0
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("patched", ["patched", "unpatched"])
@pytest.mark.parametrize(("system", "output"), [("with", WITH), ("without", WITHOUT)])
def test_a_program_sees_the_same_patched_or_not_and_nearly_that_without_pollrdhup(patched, system, output):
    assert run(PROGRAM, patched, system) == output


# A blocking descriptor whose owner is no Python socket, as a client library in C has it.
BLOCKING = """
import os, select
del select.POLLRDHUP
import socket
from geventconnpool import ConnectionPool

socket.setdefaulttimeout(5)

class Client:
    def __init__(self):
        ours, self.peer = socket.socketpair()
        self.number = ours.detach()
        os.set_blocking(self.number, True)

    def fileno(self):
        return self.number

class Pool(ConnectionPool):
    def _new_connection(self):
        return Client()

pool = Pool(1)
for _ in range(2):
    with pool.get(timeout=5) as c:
        print(os.get_blocking(c.number))
    c.peer.sendall(b"hello")
    for slot in pool._lender.slots.idle:
        slot.seen -= 1.0
        slot.kept -= 1.0
print(os.read(c.number, 100))
"""


def test_without_pollrdhup_a_blocking_descriptor_stays_so_and_loses_no_byte_whatever_the_default_timeout():
    assert run(BLOCKING) == "True\nTrue\nb'hellohello'\n"


@pytest.mark.parametrize(
    ("make", "act", "is_at_end"),
    [
        (socket.socketpair, lambda peer: None, False),
        (socket.socketpair, lambda peer: peer.sendall(b"hello"), False),
        (socket.socketpair, lambda peer: peer.close(), True),
        (reading_pipe, lambda peer: peer.close(), False),  # no socket: nothing tells
    ],
    ids=["silent", "hello", "end", "pipe"],
)
@pytest.mark.parametrize("is_blocking", [True, False])
def test_whether_the_end_is_next_is_seen_without_a_trace(make, act, is_at_end, is_blocking):
    ours, peer = make()
    with closing(ours), closing(peer):
        os.set_blocking(ours.fileno(), is_blocking)
        act(peer)
        before = descriptors()
        found = _liveness._is_at_end(ours.fileno())

        assert found is is_at_end
        assert os.get_blocking(ours.fileno()) is is_blocking
        assert descriptors() == before


WITHOUT_POLL = """
import select
del select.poll
from gevent import socket
from geventconnpool import ConnectionPool

class Pool(ConnectionPool):
    def _new_connection(self):
        c, self.peer = socket.socketpair()
        return c

pool = Pool(1)
with pool.get(timeout=5) as c:
    pass
pool.peer.close()
for slot in pool._lender.slots.idle:
    slot.seen -= 1.0
    slot.kept -= 1.0
with pool.get(timeout=5) as again:
    print(again is c)
"""


def test_where_the_system_has_no_poll_idle_connections_are_left_to_keepalive():
    assert run(WITHOUT_POLL) == "True\n"


# -- objects of another kind -------------------------------------------------------------------------------------------


class WithProperty:
    @property
    def fileno(self):
        return 0


class WithArgument:
    def fileno(self, which):
        return which


class WithStatic:
    @staticmethod
    def fileno():
        return 10**6


class OddNumber(int):
    def __lt__(self, other):
        raise RuntimeError("not to be compared")

    __le__ = __gt__ = __ge__ = __lt__


NO_DESCRIPTORS: list[Any] = [
    "3", b"3", None, True, False, 3.0, -1, -(2**40), 2**31, 2**63, 2**200, [3], OddNumber(3), 2**31 - 1, 10**6,
    ValueError("closed"), OSError("gone"), AttributeError("no such thing"), NotImplementedError(),
]  # fmt: skip


def each(values):
    return [pytest.param(value, id=f"{type(value).__name__}-{str(value)[:12]}") for value in values]


@KINDS
@pytest.mark.parametrize("number", each(NO_DESCRIPTORS))
def test_what_fileno_says_that_is_no_descriptor_is_left_alone(kind, number):
    pool = ready(kind(lambda: (Told(number), None)))
    c = lend(pool)

    assert [rest_and_lend(pool) is c for _ in range(3)] == [True, True, True]
    assert causes(pool) == {}


STRANGERS = [object, dict, WithProperty, WithArgument, WithStatic, MagicMock, io.BytesIO]


@KINDS
@pytest.mark.parametrize("make", [*STRANGERS, partial(MagicMock, spec=plain_socket.socket), lambda: Told])
def test_an_object_that_has_no_descriptor_is_left_alone(kind, make):
    pool = ready(kind(lambda: (make(), None)))
    c = lend(pool)

    assert [rest_and_lend(pool) is c for _ in range(3)] == [True, True, True]
    assert causes(pool) == {}


class Remote:
    """Every attribute is a call to its server."""

    def __init__(self, calls):
        object.__setattr__(self, "calls", calls)

    def __getattr__(self, name):
        self.calls.append(name)
        return lambda *args: 0

    def __bool__(self):
        self.calls.append("bool")
        raise OSError("the server is asked for that")

    def __eq__(self, other):
        self.calls.append("eq")
        raise OSError("the server is asked for that")

    __hash__ = None  # type: ignore[assignment]


class Untouched:
    """Does not close its connections."""

    def _close_connection(self, c):
        pass

    def _abort_connection(self, c):
        pass


@KINDS
def test_a_proxy_whose_every_attribute_is_a_remote_call_is_not_called(kind):
    class Pool(Untouched, kind):
        pass

    calls: list[str] = []
    pool = ready(Pool(lambda: (Remote(calls), None)))
    for _ in range(3):
        rest_and_lend(pool)

    assert calls == []
    assert pool.stats().opened == 1


def test_nothing_of_a_connection_but_fileno_is_called_in_the_greenlet_of_its_borrower():
    touched = []

    class Touched(socket.socket):
        def __getattribute__(self, name):
            touched.append((name, gevent.getcurrent()))
            return super().__getattribute__(name)

        def fileno(self):
            touched.append(("fileno()", gevent.getcurrent()))
            return super().fileno()

    def make():
        ours, theirs = tcp_pair()
        return Touched(fileno=ours.detach()), theirs

    pool = ready(Lone(make, 2, lifo=False))
    rest(pool)
    close_by_fin(*pool.pairs[0])
    me = gevent.getcurrent()
    touched.clear()
    with pool.get():
        by_me = [name for name, toucher in touched if toucher is me]
    wait_until(lambda: pool.ended)

    assert by_me.count("fileno()") == 2
    assert set(by_me) <= {"fileno()", "_sock"}  # by which gevent's own fileno() asks
    assert [how for how, _ in pool.ended] == ["aborted"]


@KINDS
def test_a_socket_that_its_user_closed_is_not_lent_though_the_block_was_good(kind):
    pool = ready(kind())
    with pool.get() as c:
        c.close()
    new = rest_and_lend(pool)

    assert new is not c
    assert new.fileno() >= 0
    assert causes(pool) == {"stale": 1}


def test_a_file_that_its_user_closed_is_not_lent():
    pool = ready(Lone(reading_pipe))
    with pool.get() as c:
        c.close()
    new = rest_and_lend(pool)

    assert new is not c
    assert causes(pool) == {"stale": 1}


def test_a_socket_that_its_user_closed_is_not_lent_though_its_number_belongs_to_another_now():
    pool = ready(Lone())
    with pool.get() as c:
        number = c.fileno()
        c.close()
    wait_until(lambda: number not in {number for number, _ in descriptors()})
    with tempfile.TemporaryFile() as stranger:
        os.dup2(stranger.fileno(), number)
        new = rest_and_lend(pool)
        wait_until(lambda: pool.ended)
        is_left_alone = os.path.sameopenfile(stranger.fileno(), number)
        os.close(number)

    assert new is not c
    assert causes(pool) == {"stale": 1}
    assert is_left_alone


class Reconnecting:
    """A client that has a ``fileno`` of its own, and may connect later or anew."""

    inner: Any = None
    peer: Any = None

    def fileno(self):
        return self.inner.fileno()

    def connect(self) -> None:
        new = socket.socketpair()  # first, so that it is another descriptor
        self.close()
        self.inner, self.peer = new

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()
            self.peer.close()


@KINDS
def test_a_client_that_connected_anew_in_a_block_is_judged_by_its_new_descriptor(kind):
    def make():
        client = Reconnecting()
        client.connect()
        return client, None

    pool = ready(kind(make))
    with pool.get() as c:
        c.connect()
    same = rest_and_lend(pool)
    hang_up(c.inner, c.peer)
    new = rest_and_lend(pool)

    assert same is c
    assert new is not c
    assert causes(pool) == {"stale": 1}


@KINDS
def test_a_client_that_connects_when_it_is_first_kept_alive_is_looked_at_from_then_on(kind):
    class Pool(kind):
        def _keepalive(self, c):
            c.connect()
            kept.append(c)

    kept: list[Any] = []
    pool = ready(Pool(lambda: (Reconnecting(), None), keepalive=100))
    c = rest_and_lend(pool)
    rest(pool, 200)
    pool.resize(1)  # looks what is due
    wait_until(lambda: kept and pool.stats().idle)
    same = rest_and_lend(pool)
    hang_up(c.inner, c.peer)
    new = rest_and_lend(pool)

    assert same is c
    assert new is not c
    assert causes(pool) == {"stale": 1}


def test_a_fileno_that_is_interrupted_ends_the_get_and_loses_no_connection():
    bound = gevent.Timeout(1)
    with tempfile.TemporaryFile() as file:
        pool = ready(Lone(lambda: (Told(file.fileno()), None)))
        c = lend(pool)
        c.number = bound
        rest(pool)
        with pytest.raises(gevent.Timeout) as caught, pool.get():
            raise AssertionError("not lent")
        c.number = file.fileno()

        assert caught.value is bound
        assert pool.stats().idle == 1
        assert lend(pool) is c
        assert causes(pool) == {}


@KINDS
def test_what_was_closed_with_its_pool_while_its_fileno_switched_is_not_lent(kind):
    class Slow(Told):
        is_slow = False

        def fileno(self):
            if self.is_slow:
                gevent.spawn(pool.close, 0).join()
            return super().fileno()

    with tempfile.TemporaryFile() as file:
        pool = ready(kind(lambda: (Slow(file.fileno()), None)))
        c = lend(pool)
        c.is_slow = True
        with pytest.raises(PoolClosed):
            rest_and_lend(pool)

    assert pool.stats().in_use == 0


# -- _fileno overridden ------------------------------------------------------------------------------------------------


class Wrapped:
    """A client that keeps its socket to itself."""

    def __init__(self) -> None:
        self.inner, self.peer = socket.socketpair()

    def reconnect(self) -> None:
        new = socket.socketpair()  # first, so that it is another descriptor
        self.close()
        self.inner, self.peer = new

    def close(self) -> None:
        self.inner.close()
        self.peer.close()


class Telling(Lone):
    """Tells of a descriptor by ``tell``; keepalive is ``keep``."""

    def __init__(self, tell: Any = lambda c: c.inner.fileno(), size: int = 1, **options: Any) -> None:
        self.tell = tell
        self.keep: Any = id
        self.tellers: list[Any] = []
        super().__init__(lambda: (Wrapped(), None), size, **options)

    def _fileno(self, c):
        self.tellers.append(gevent.getcurrent())
        return self.tell(c)

    def _keepalive(self, c):
        self.keep(c)


def keep_alive(pool):
    """Have every idle connection kept alive now."""
    told = len(pool.tellers)
    rest(pool, 2 * pool.keepalive)
    pool.resize(pool.size)  # looks what is due
    wait_until(lambda: len(pool.tellers) > told and pool.stats().idle == pool.size, what="a keepalive")


def test_an_overridden_fileno_tells_where_the_connection_is():
    pool = ready(Telling())
    c = lend(pool)
    same = rest_and_lend(pool)
    hang_up(c.inner, c.peer)
    new = rest_and_lend(pool)

    assert same is c
    assert new is not c
    assert causes(pool) == {"stale": 1}


def test_an_overridden_fileno_is_asked_after_open_and_keepalive_in_a_greenlet_of_the_pool_and_never_by_the_borrower():
    pool = ready(Telling(keepalive=100))
    after_open = len(pool.tellers)
    rest_and_lend(pool)
    after_get = len(pool.tellers)
    keep_alive(pool)

    assert (after_open, after_get, len(pool.tellers)) == (1, 1, 2)
    assert gevent.getcurrent() not in pool.tellers
    assert gevent.get_hub() not in pool.tellers


def test_an_overridden_fileno_may_switch():
    def tell(c):
        gevent.sleep(0.01)
        return c.inner.fileno()

    pool = ready(Telling(tell, 3))
    hang_up(pool.pairs[0][0].inner, pool.pairs[0][0].peer)
    lent = [rest_and_lend(pool) for _ in range(3)]

    assert pool.pairs[0][0] not in lent
    assert causes(pool) == {"stale": 1}


def fail(c):
    raise RuntimeError("cannot tell")


@pytest.mark.parametrize("tell", [lambda c: None, fail, lambda c: "3", lambda c: True, lambda c: -1, lambda c: 10**6])
def test_an_overridden_fileno_that_tells_of_none_leaves_the_connection_to_keepalive(tell):
    pool = ready(Telling(tell))
    c = lend(pool)
    hang_up(c.inner, c.peer)

    assert rest_and_lend(pool) is c
    assert causes(pool) == {}
    assert pool.stats().open_errors == 0


@pytest.mark.parametrize("number", [OddNumber(3), MagicMock(spec=int)], ids=["odd", "mock"])
def test_an_overridden_fileno_that_tells_nonsense_costs_no_connection(number):
    pool = ready(Telling(lambda c: number))
    c = lend(pool)

    assert rest_and_lend(pool) is c
    assert pool.stats().open_errors == 0


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_system_exception_out_of_an_overridden_fileno_goes_to_the_hub_and_the_connection_is_served(kind, monkeypatch):
    kinds = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, tb: kinds.append(kind))

    def tell(c):
        raise kind

    pool = ready(Telling(tell))
    c = lend(pool)
    wait_until(lambda: kinds)

    assert kinds == [kind]
    assert rest_and_lend(pool) is c


def test_an_overridden_fileno_that_raises_is_told_of():
    pool = ready(Telling(fail))
    wait_until(lambda: [e for e in pool.heard if isinstance(e, events.HookFailed)])
    told = [e for e in pool.heard if isinstance(e, events.HookFailed)]

    assert [(e.hook, str(e.error)) for e in told] == [("_fileno", "cannot tell")]


def test_an_overridden_fileno_that_hangs_is_ended_and_its_connection_served_unchecked(monkeypatch):
    monkeypatch.setattr(_engine, "PEER_TIMEOUT", 0.02)
    pool = ready(Telling(lambda c: Event().wait()))
    c = lend(pool)
    hang_up(c.inner, c.peer)
    wait_until(lambda: [e for e in pool.heard if isinstance(e, events.HookFailed)])
    told = [str(e.error) for e in pool.heard if isinstance(e, events.HookFailed)]

    assert rest_and_lend(pool) is c
    assert told == ["_fileno took longer than 0.02 s"]
    assert causes(pool) == {}


def test_what_an_overridden_fileno_tells_after_it_swallowed_its_bound_is_accepted(monkeypatch):
    monkeypatch.setattr(_engine, "PEER_TIMEOUT", 0.02)

    def tell(c):
        try:
            Event().wait()
        except gevent.Timeout:
            return c.inner.fileno()

    pool = ready(Telling(tell))
    c = lend(pool)
    same = rest_and_lend(pool)
    hang_up(c.inner, c.peer)
    new = rest_and_lend(pool)

    assert same is c
    assert new is not c
    assert causes(pool) == {"stale": 1}


def test_a_kill_of_the_greenlet_in_which_an_overridden_fileno_runs_loses_no_connection():
    pool = Telling(lambda c: Event().wait())
    wait_until(lambda: pool.tellers)
    pool.tellers[0].kill(block=False)
    c = lend(ready(pool))

    assert rest_and_lend(pool) is c
    assert (pool.stats().opened, pool.stats().open_errors) == (1, 0)


def test_a_pool_that_is_closed_while_an_overridden_fileno_hangs_closes_the_connection():
    pool = Telling(lambda c: Event().wait())
    wait_until(lambda: pool.tellers)
    pool.close(5)
    (c, _) = pool.pairs[0]

    assert c.inner.fileno() == -1
    assert pool.stats().open == 0


def test_a_client_that_reconnects_in_its_keepalive_is_judged_by_the_descriptor_told_after_it():
    pool = ready(Telling(keepalive=100))
    pool.keep = lambda c: c.reconnect()
    c = lend(pool)
    keep_alive(pool)
    same = rest_and_lend(pool)
    hang_up(c.inner, c.peer)
    new = rest_and_lend(pool)

    assert same is c
    assert new is not c
    assert causes(pool) == {"stale": 1}


def test_a_descriptor_that_was_told_and_then_closed_counts_as_closed():
    pool = ready(Telling())
    with pool.get() as c:
        c.inner.close()
    new = rest_and_lend(pool)

    assert new is not c
    assert causes(pool) == {"stale": 1}


def test_a_number_that_was_told_and_belongs_to_somebody_else_now_costs_him_nothing():
    pool = ready(Telling())
    with pool.get() as c:
        number = c.inner.fileno()
        c.inner.close()
    stranger, friend = socket.socketpair()
    with stranger, friend:
        friend.sendall(b"for the stranger")
        taken = number in (stranger.fileno(), friend.fileno())
        lent = rest_and_lend(pool)
        text = stranger.recv(100)
        friend.sendall(b"more")
        more = stranger.recv(100)

    assert taken
    assert lent is c  # by its number, it is alive
    assert (text, more) == (b"for the stranger", b"more")


def test_a_fileno_of_the_pool_itself_overrides_that_of_its_class():
    class Pool(Lone):
        def __init__(self):
            self._fileno = lambda c: c.inner.fileno()
            super().__init__(lambda: (Wrapped(), None))

    pool = ready(Pool())
    c = lend(pool)
    same = rest_and_lend(pool)
    hang_up(c.inner, c.peer)
    new = rest_and_lend(pool)

    assert same is c
    assert new is not c
    assert causes(pool) == {"stale": 1}


# -- when one looks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trusting(monkeypatch):
    """A second takes so long that no test is as slow."""
    monkeypatch.setattr(_lender, "TRUSTED_FOR", 1000.0)
    monkeypatch.setattr(_queue, "TRUSTED_FOR", 1000.0)


@KINDS
def test_a_connection_that_gave_a_sign_of_life_is_not_looked_at(kind, trusting):
    pool = ready(kind(counted_pair))
    c = lend(pool)
    close_by_fin(c, pool.peer(c))
    with looks(c) as count:
        lent = [lend(pool) for _ in range(3)]

    assert lent == [c, c, c]
    assert count() == [0]


@KINDS
def test_a_connection_is_looked_at_once_per_get_and_a_return_is_a_sign_of_life(kind, trusting):
    pool = ready(kind(counted_pair))
    c = lend(pool)
    counts = []
    for seconds in (1000, 0, 999, 1001, 0):
        rest(pool, seconds)
        with looks(c) as count:
            lend(pool)
        counts += count()

    assert counts == [1, 0, 0, 1, 0]


def test_a_keepalive_is_a_sign_of_life(trusting):
    class Pool(Lone):
        def _keepalive(self, c):
            kept.append(c)

    kept: list[Any] = []
    pool = ready(Pool(counted_pair, keepalive=2000))
    c = lend(pool)
    rest(pool, 4000)
    pool.resize(1)  # looks what is due
    wait_until(lambda: kept and pool.stats().idle)
    with looks(c) as count:
        lend(pool)

    assert count() == [0]


def fail_a_connect(pool):
    def refuse():
        raise OSError("refused")

    pool.make = refuse
    pool.resize(3)
    wait_until(lambda: pool.stats().open_errors)


def fail_a_keepalive(pool):
    first = next(iter(pool._lender.pools())).idle[0]
    first.seen -= 10000
    first.kept -= 10000
    pool.resize(2)  # looks what is due
    wait_until(lambda: causes(pool) == {"keepalive": 1})


def fail_a_block(pool):
    with pytest.raises(OSError, match="broken"), pool.get():
        raise OSError("broken")


def find_one_closed(pool):
    first = next(iter(pool._lender.pools())).idle[0]
    first.seen -= 1000
    first.kept -= 1000
    close_by_fin(first.connection, pool.peer(first.connection))
    lend(pool)  # which is not the second: that is the next but one


class Kept:
    """Keepalives fail."""

    def _keepalive(self, c):
        raise OSError("no answer")


TROUBLES = [fail_a_connect, fail_a_keepalive, fail_a_block]


@KINDS
@pytest.mark.parametrize("trouble", TROUBLES)
def test_after_a_failure_of_the_pool_every_connection_that_is_older_is_looked_at(kind, trouble, trusting):
    class Pool(Kept, kind):
        pass

    pool = ready(Pool(counted_pair, 2, keepalive=9000, lifo=False))
    lend(pool), lend(pool)
    second = next(iter(pool._lender.pools())).idle[1].connection
    trouble(pool)
    close_by_fin(second, pool.peer(second))
    with looks(second) as count:
        lent = [lend(pool) for _ in range(2)]

    assert second not in lent
    assert count() == [1]
    assert causes(pool)["stale"] == 1


@KINDS
def test_after_one_was_found_closed_the_others_are_looked_at_in_the_same_get(kind, trusting):
    pool = ready(kind(counted_pair, 3, lifo=False))
    connections = [lend(pool) for _ in range(3)]
    first = next(iter(pool._lender.pools())).idle[0]
    first.seen -= 1000
    first.kept -= 1000
    for c in connections[:2]:
        close_by_fin(c, pool.peer(c))
    with looks(*connections) as count:
        lent = lend(pool)

    assert first.connection is connections[0]
    assert lent is connections[2]
    assert count() == [1, 1, 1]
    assert causes(pool) == {"stale": 2}


@KINDS
@pytest.mark.parametrize("exc", [ValueError("mine"), gevent.Timeout(1), None])
def test_what_is_no_failure_of_a_connection_makes_nobody_look(kind, exc, trusting):
    pool = ready(kind(counted_pair, 2, lifo=False))
    lend(pool), lend(pool)
    second = next(iter(pool._lender.pools())).idle[1].connection
    with pytest.raises(BaseException), pool.get() as c:  # noqa: B017, PT011  # whatever it is
        if exc is None:
            pool.discard(c)
        raise exc or KeyError()
    with looks(second) as count:
        lent = lend(pool)

    assert lent is second
    assert count() == [0]


@KINDS
def test_what_was_used_after_the_failure_is_not_looked_at_again(kind, trusting):
    pool = ready(kind(counted_pair, 2, lifo=False))
    lend(pool), lend(pool)
    second = next(iter(pool._lender.pools())).idle[1].connection
    fail_a_block(pool)
    with looks(second) as count:
        lent = [lend(pool) for _ in range(4)]

    assert lent.count(second) >= 2
    assert count() == [1]


@KINDS
def test_a_connection_is_looked_at_for_a_waiter_too_if_there_was_a_failure_before_he_ran(kind, trusting):
    pool = ready(kind(counted_pair, 2, lifo=False))
    handed = pool.acquire()
    with pytest.raises(OSError, match="broken"), pool.get():
        waiter = gevent.spawn(lend, pool)
        wait_until(lambda: pool.stats().waiting == 1)
        close_by_fin(handed, pool.peer(handed))
        pool.release(handed)
        raise OSError("broken")
    lent = waiter.get(timeout=5)

    assert lent is not handed
    assert causes(pool) == {"error": 1, "stale": 1}
    assert pool.stats().gets == 3


# -- how it is done ----------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_get_that_looks_does_not_switch_as_long_as_one_is_alive(kind, closed):
    pool = ready(kind(size=3, lifo=False))
    connections = [lend(pool) for _ in range(3)]
    for c in connections[:closed]:
        close_by_fin(c, pool.peer(c))
    rest(pool)
    lease = pool.get()
    switches = count_switches(lease.__enter__)
    lease.__exit__(None, None, None)

    assert switches == 0
    assert causes(pool) == ({"stale": closed} if closed else {})


def test_a_last_in_first_out_pool_looks_as_well():
    pool = ready(Lone(size=3, lifo=True))
    connections = [c for c, _ in pool.pairs]
    last = lend(pool)
    close_by_fin(last, pool.peer(last))
    rest(pool)
    new = lend(pool)

    assert new is not last
    assert new in connections
    assert causes(pool) == {"stale": 1}


@KINDS
def test_acquire_looks_like_get(kind):
    pool = ready(kind())
    c = lend(pool)
    close_by_fin(c, pool.peer(c))
    rest(pool)
    new = pool.acquire(timeout=5)
    pool.release(new)

    assert new is not c


@KINDS
def test_get_with_timeout_0_never_gets_a_closed_one_and_never_waits(kind):
    pool = ready(kind(size=2))
    for c, peer in tuple(pool.pairs):
        close_by_fin(c, peer)
    rest(pool)
    with pytest.raises(PoolTimeout):
        lend(pool, 0)

    assert causes(pool) == {"stale": 2}
    assert pool.stats().idle == 0


@KINDS
def test_what_is_found_closed_is_aborted_counted_and_replaced(kind):
    pool = ready(kind(size=3))
    for c, peer in tuple(pool.pairs):
        close_by_fin(c, peer)
    rest(pool)
    lend(pool)
    wait_until(lambda: pool.stats().idle == 3 and pool.stats().closed == 3)
    wait_until(lambda: len([e for e in pool.heard if isinstance(e, events.ConnectionClosed)]) == 3)
    told = [e.cause for e in pool.heard if isinstance(e, events.ConnectionClosed)]
    stats = pool.stats()

    assert told == ["stale", "stale", "stale"]
    assert [how for how, _ in pool.ended] == ["aborted", "aborted", "aborted"]
    assert (stats.opened, stats.closed, stats.gets, stats.open_errors) == (6, 3, 1, 0)


def test_many_closed_at_once_are_all_found_by_one_get():
    pool = ready(Lone(socket.socketpair, 200, max_connecting=50))
    for c, peer in tuple(pool.pairs):
        hang_up(c, peer)
    rest(pool)
    with pool.get(timeout=5) as c:
        is_new = c in [ours for ours, _ in pool.pairs[200:]]

    assert is_new
    assert causes(pool) == {"stale": 200}


def test_no_descriptor_is_opened_by_a_look():
    pool = ready(Lone())
    before = descriptors()
    for _ in range(50):
        rest_and_lend(pool)

    assert descriptors() == before


def test_a_blocking_descriptor_stays_so():
    def make():
        ours, theirs = plain_socket.socketpair()
        return ours, theirs

    pool = ready(Lone(make))
    c = rest_and_lend(pool)

    assert os.get_blocking(c.fileno())
    assert fcntl.fcntl(c.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


# -- clusters ----------------------------------------------------------------------------------------------------------

STRICT = OutlierDetection(consecutive_failures=1, base_ejection_time=30, jitter=0)


def test_an_idle_connection_that_was_found_closed_is_no_failure_of_its_endpoint():
    pool = ready(Cluster(size=3, outlier=STRICT))
    for c, peer in tuple(pool.pairs):
        close_by_fin(c, peer)
    rest(pool)
    lend(pool)
    (entry,) = pool.stats().endpoints

    assert causes(pool) == {"stale": 3}
    assert (entry.state, entry.ejections, set(entry.failures.values())) == ("active", 0, {0})
    assert [e for e in pool.heard if isinstance(e, events.EndpointEjected)] == []


class Two(Pairs, ClusterPool[Any]):
    """Of two endpoints; ``at`` are their pairs."""

    def __init__(self, size: int = 2, **options: Any) -> None:
        self.at: dict[Endpoint, list[Pair]] = {}
        resolver = StaticResolver([("a.test", 1), ("b.test", 1)])
        super().__init__((resolver,), tcp_pair, size, outlier=STRICT, **options)

    def _new_connection(self, endpoint):
        self.open()
        self.at.setdefault(endpoint, []).append(self.pairs[-1])
        return self.pairs[-1][0]


def test_what_one_endpoint_closed_is_passed_over_for_another_in_the_same_get():
    pool = ready(Two())
    a, b = pool.at
    for c, peer in tuple(pool.at[a]):
        close_by_fin(c, peer)
    rest(pool)
    lost = [c for c, _ in pool.at[a]]
    lent = []

    def borrow_all():
        lent.extend(pool.acquire(timeout=0) for _ in range(2))

    switches = count_switches(borrow_all)
    places = [pool.endpoint_of(c) for c in lent]
    for c in lent:
        pool.release(c)

    assert places == [b, b]
    assert switches == 0
    assert not set(lost) & set(lent)
    assert {entry.state for entry in pool.stats().endpoints} == {"active"}


def test_trouble_of_one_endpoint_makes_nobody_look_at_another(trusting):
    pool = ready(Two(1))
    a, b = pool.at
    with pytest.raises(OSError, match="broken"), pool.pools[a].get():
        raise OSError("broken")
    c = pool.at[b][0][0]
    close_by_fin(c, pool.at[b][0][1])
    with pool.pools[b].get() as lent:
        pass

    assert lent is c


def test_the_pool_of_an_endpoint_looks_as_well():
    pool = ready(Two(1))
    a, _ = pool.at
    c, peer = pool.at[a][0]
    close_by_fin(c, peer)
    rest(pool)
    with pool.pools[a].get(timeout=5) as lent:
        place = pool.endpoint_of(lent)

    assert lent is not c
    assert place == a


# -- a server that is restarted ----------------------------------------------------------------------------------------


def echo(c, text):
    """Call ECHO of Redis, and see whether the answer is ours."""
    c.sendall(b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (len(text), text))
    expected = b"$%d\r\n%s\r\n" % (len(text), text)
    reply = b""
    while len(reply) < len(expected):
        chunk = c.recv(1000)
        if not chunk:
            raise OSError("the server hung up")
        reply += chunk
    assert reply == expected


class Clients(ConnectionPool[socket.socket]):
    def __init__(self, server: Redis, size: int = 20) -> None:
        self.server = server
        super().__init__(size)

    def _new_connection(self):
        return socket.create_connection(self.server.address, timeout=30)


class Clusters(ClusterPool[socket.socket]):
    def _new_connection(self, endpoint):
        return endpoint.connect(timeout=30)


class Load:
    """30 greenlets that call, with pauses in which part of the connections is idle; and what they saw."""

    def __init__(self, pool: Any, wrap: Callable[[Any], Any] = lambda call: call) -> None:
        self.pool = pool
        self.in_flight = self.calls = 0
        self.failures: list[BaseException] = []
        self._call = wrap(self._call_once)
        self._is_on = True
        self._greenlets = [gevent.spawn(self._run, number) for number in range(30)]

    def _run(self, number: int) -> None:
        for turn in count():
            if not self._is_on:
                return
            try:
                self._call(b"%d-%d" % (number, turn))
            except Exception as error:  # what the caller would have seen
                self.failures.append(error)
            self.calls += 1
            gevent.sleep(0.001 * (1 + number % 4))

    def _call_once(self, text: bytes) -> None:
        with self.pool.get(timeout=30) as c:
            self.in_flight += 1
            try:
                echo(c, text)
            finally:
                self.in_flight -= 1

    def go_on(self, calls: int) -> None:
        goal = self.calls + calls
        wait_until(lambda: self.calls >= goal, what=f"{calls} calls")

    def stop(self) -> None:
        self._is_on = False
        gevent.joinall(self._greenlets, timeout=30, raise_error=True)


@pytest.fixture
def redis() -> Iterator[Redis]:
    require("redis-server")
    with Redis() as server:
        yield server


def end(server: Redis, how: str) -> None:
    """End the server while nothing else runs here, so that all of its connections are closed at one moment."""
    process = server._process
    assert process is not None
    getattr(process, how)()
    process.wait(timeout=30)
    server.kill()


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_restart_costs_the_calls_in_flight_at_that_moment_and_one_more_at_most(redis, how):
    with closing(Clients(redis)) as pool:
        pool.wait(timeout=5)
        load = Load(pool)
        figures = []
        for _ in range(3):
            load.go_on(300)
            wait_until(lambda: pool.stats().idle >= 5 and load.in_flight >= 3, what="a pool that is partly idle")
            before, in_flight, stale = len(load.failures), load.in_flight, pool.stats().discarded["stale"]
            end(redis, how)
            redis.start()
            load.go_on(300)
            figures.append((in_flight, len(load.failures) - before, pool.stats().discarded["stale"] - stale))
        load.stop()
    print(f"{how}: (in flight, failed, found closed) {figures}")

    assert [failed <= in_flight + 1 for in_flight, failed, _ in figures] == [True, True, True]
    assert [found > 0 for _, _, found in figures] == [True, True, True]
    assert {isinstance(error, OSError) for error in load.failures} <= {True}


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_restart_while_the_pool_rests_costs_no_call(redis, how):
    with closing(Clients(redis)) as pool:
        pool.wait(timeout=5)
        end(redis, how)
        redis.start()
        rest(pool)
        load = Load(pool)
        load.go_on(300)
        load.stop()
        discarded = causes(pool)

    assert load.failures == []
    assert discarded == {"stale": 20}


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_no_caller_of_a_retried_call_to_a_cluster_sees_a_restart(redis, how):
    with Redis() as other, closing(Clusters([redis.address, other.address], 20)) as pool:
        pool.wait(timeout=5)
        load = Load(pool, retry(max_failures=3))
        for _ in range(3):
            load.go_on(300)
            end(redis, how)
            redis.start()
            load.go_on(300)
        load.stop()

    assert load.failures == []
    assert load.calls >= 1800
