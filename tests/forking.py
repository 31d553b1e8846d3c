"""A program that forks in the middle of everything, for ``test_fork``.

Each scene makes a pool of connections to a server that keeps what it is told, forks, and reports what parent and child
saw, as a line of JSON. Whoever touches a connection that its parent opened says so on stderr.

``python -m tests.forking HOW KIND PORT SCENE...``; HOW is a way to fork, ``-pid`` behind it hides from the package that
the kernel can wipe pages.
"""

# ruff: noqa: E402  # what is imported later is so on purpose: patched, and without what the kernel can do

from __future__ import annotations

import sys

HOW, KIND, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
SCENES_ASKED = sys.argv[4:]

if HOW.startswith("patched"):
    from gevent import monkey

    monkey.patch_all()

import ctypes
import gc
import json
import mmap
import multiprocessing
import os
import select
import signal
import socket
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

if HOW.endswith("-pid"):

    class Unwiped(mmap.mmap):
        def madvise(self, *args: Any) -> None:
            raise OSError("not on this kernel")

    mmap.mmap = Unwiped  # type: ignore[misc]  # before the package is imported

collects_early: list[bool] = []  # anything: the collector comes in a child before the package is told of the fork
os.register_at_fork(after_in_child=lambda: collects_early and gc.collect())

import gevent
import gevent.os
import gevent.select
import gevent.socket
import greenlet
from gevent.monkey import get_original

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, PoolClosed, PoolTimeout, _fork, events
from geventconnpool._worker import Slice
from geventconnpool.cluster import DNSResolver, Resolution, _pool

HOST = "127.0.0.1"
PATIENCE = 30.0  # seconds
LIBC = ctypes.PyDLL(None)
FORKS: dict[str, Callable[[], int]] = {
    "os": get_original("os", "fork"),
    "gevent": gevent.os.fork,
    "patched": os.fork,
    "libc": LIBC.fork,  # neither Python nor gevent knows
}
fork = FORKS[HOW.removesuffix("-pid")]
plain_socket: Any = get_original("socket", "socket")
poll: Any = get_original("select", "poll")
os_read: Any = get_original("os", "read")
os_close: Any = get_original("os", "close")
start_new_thread: Any = get_original("_thread", "start_new_thread")
allocate_lock: Any = get_original("_thread", "allocate_lock")

scene = ""  # that is on
made: weakref.WeakSet[Any] = weakref.WeakSet()  # pools
calls: list[tuple[int, str]] = []  # of hooks, by process
hello = ["HELLO"]  # what the next connections say first: the last one to all that follow


def note(hook: str, c: Client) -> None:
    if c.scene == scene:  # what an earlier one has left may be collected at any time
        calls.append((os.getpid(), hook))
    if c.owner != os.getpid():
        os.write(2, f"{scene}: {hook} of an inherited connection\n".encode())


def calls_while(job: Callable[[], object]) -> list[tuple[int, str]]:
    done = len(calls)
    job()
    return calls[done:]


def calls_here() -> list[str]:
    return [hook for process, hook in calls if process == os.getpid()]


class Client:
    """Says who it is, and goodbye when it is closed or collected."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.is_closed = False
        self.scene = scene
        self.asked = ""
        self.socket = gevent.socket.socket()  # not create_connection: its threads are gone in a child
        self.socket.connect((HOST, PORT))
        self.ask(hello[0] if len(hello) == 1 else hello.pop(0))

    def fileno(self) -> int:
        return int(self.socket.fileno())

    def line(self, word: str, getpid: Callable[[], int] = os.getpid) -> bytes:
        return f"{getpid()} {scene} {word}\n".encode()

    def ask(self, word: str) -> str:
        self.socket.sendall(self.line(word))
        self.asked = word
        return str(self.socket.recv(100).decode().strip())

    def close(self, write: Callable[[int, bytes], int] = os.write) -> None:
        if not self.is_closed:
            self.is_closed = True
            write(self.socket.fileno(), self.line("QUIT"))
            self.socket.shutdown(2)
            self.socket.close()

    def __del__(self) -> None:
        if hasattr(self, "socket") and not self.is_closed:
            note("__del__", self)
            self.close()


class Hooked:
    ping = ["PING"]  # as ``hello``, for keepalives

    def _keepalive(self, c: Client) -> None:
        note("_keepalive", c)
        c.ask(self.ping[0] if len(self.ping) == 1 else self.ping.pop(0))

    def _close_connection(self, c: Client) -> None:
        note("_close_connection", c)
        c.close()

    def _abort_connection(self, c: Client) -> None:
        note("_abort_connection", c)
        c.close()

    def _is_connection_error(self, exc: BaseException) -> bool:
        calls.append((os.getpid(), "_is_connection_error"))
        return isinstance(exc, OSError)


class Lone(Hooked, ConnectionPool[Client]):
    def _new_connection(self) -> Client:
        calls.append((os.getpid(), "_new_connection"))
        return Client()


class Cluster(Hooked, ClusterPool[Client]):
    def _new_connection(self, endpoint: Endpoint) -> Client:
        calls.append((os.getpid(), "_new_connection"))
        return Client()


class Asking:
    """Makes every return go through a hook."""

    answers = [True]

    def _is_reusable(self, c: Client) -> bool:
        note("_is_reusable", c)
        return self.answers[0]


class AskingLone(Asking, Lone):
    pass


class AskingCluster(Asking, Cluster):
    pass


class Service:
    """Knows so many endpoints."""

    def __init__(self, count: int = 1) -> None:
        self.asked: list[int] = []  # by which process
        self.answers = True
        self.endpoints = tuple(Endpoint(HOST, PORT + n) for n in range(count))

    def resolve(self, service: str | None) -> Resolution:
        self.asked.append(os.getpid())
        while not self.answers:
            gevent.sleep(0.002)
        return Resolution(self.endpoints, ttl=None)


def make(size: int = 2, *, asking: bool = False, **options: Any) -> Any:
    """Return a new pool of the kind that is asked for."""
    service: Any = Service() if KIND == "resolved" else [(HOST, PORT)]
    pool: Any
    if KIND == "lone":
        pool = (AskingLone if asking else Lone)(size, **options)
    else:
        pool = (AskingCluster if asking else Cluster)(service, size, **options)
    made.add(pool)
    return pool


def ready(pool: Any) -> Any:
    pool.wait(pool.size, timeout=PATIENCE)
    return pool


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not come true")
        gevent.sleep(0.002)


def run_hub(seconds: float = 0.03) -> None:
    """Give everything that should not happen the time to happen."""
    gevent.sleep(seconds)


# -- forking -----------------------------------------------------------------------------------------------------------


def leave() -> None:
    os._exit(0)


def in_child(job: Callable[[], Any], end: Callable[[], object] = leave, make_child: Callable[[], int] = fork) -> Any:
    """Run a job in a child process; return what it told. The hub of the parent goes on meanwhile."""
    reader, writer = os.pipe()
    process = make_child()
    if process == 0:
        signal.alarm(60)
        os_close(reader)
        tell(writer, job)
        os_close(writer)
        end()
        return None
    os_close(writer)
    gevent.os.make_nonblocking(reader)
    return outcome(process, lambda: gevent.os.nb_read(reader, 65536), reader)


def tell(writer: int, job: Callable[[], Any]) -> None:
    try:
        told = job()
    except Exception:
        told = traceback.format_exc().splitlines()
    os.write(writer, json.dumps(told).encode() + b"\n")


def outcome(process: int, read: Callable[[], bytes], reader: int) -> Any:
    data = b""
    while part := read():
        data += part
    os_close(reader)
    status = reap(process)
    return json.loads(data) if data and status == 0 else f"status {status} after {data!r}"


def reap(process: int) -> int:
    """Wait for the end of a child without blocking the hub."""
    waitpid = get_original("os", "waitpid") if HOW.startswith(("os", "libc")) else gevent.os.waitpid
    while True:
        done, status = waitpid(process, os.WNOHANG)
        if done:
            return int(status)
        gevent.sleep(0.002)


def counters(pool: Any) -> list[Any]:
    s = pool.stats()
    return [s.gets, s.waits, s.timeouts, s.opened, s.open_errors, s.closed, s.open, s.idle, s.in_use, s.waiting]


NOTHING = [0] * 10


def works(pool: Any) -> Any:
    """Use every connection of a pool; return the answers, and whether all are of this process."""
    borrowed = [pool.acquire(timeout=PATIENCE) for _ in range(pool.size)]
    answers = [c.ask("PING") for c in borrowed]
    is_mine = all(c.owner == os.getpid() for c in borrowed)
    for c in borrowed:
        pool.release(c)
    return answers if is_mine else "another's connections"


def unharmed(pool: Any, before: list[Any]) -> Any:
    """Say whether nothing has changed for the parent."""
    after = counters(pool)
    return works(pool) if after == before else [before, after]


def use(pool: Any) -> Any:
    """Borrow, as a child does that knows nothing of its parent."""
    with pool.get(timeout=PATIENCE) as c:
        return [c.owner == os.getpid(), c.ask("PING")]


# -- scenes ------------------------------------------------------------------------------------------------------------


def uses() -> Any:
    pool = ready(make())
    before = counters(pool)

    def job() -> Any:
        first = counters(pool)
        used = use(pool)
        ready(pool)
        s = pool.stats()
        return [first == NOTHING, used, s.gets, s.opened, s.open, works(pool), pool.close(PATIENCE)]

    return [in_child(job), unharmed(pool, before)]


def never_uses() -> Any:
    pool = ready(make(keepalive=0.02, max_lifetime=0.05, hold_warning=0.02))
    done = len(calls)

    def job() -> Any:
        run_hub(0.1)
        gc.collect()
        return calls[done:]

    return [in_child(job), works(pool)]


def looks() -> Any:
    pool = ready(make())
    kept = pool.acquire()
    before = counters(pool)

    def look() -> Any:
        told = [counters(pool) == NOTHING, pool.closed, pool.size, " 0 idle" in repr(pool)]
        told += [pool.exc_classes == (OSError,), pool.keepalive]
        if KIND != "lone":
            told += [len(pool.pools) >= 0, bool(repr(pool.pools)), pool.endpoint_of(kept).host, pool.explain() == ()]
        return told

    def job() -> Any:
        switches: list[Any] = []
        done = len(calls)
        greenlet.settrace(lambda *event: switches.append(event))
        told = look()
        greenlet.settrace(None)
        run_hub()
        return [told, len(switches), calls[done:]]

    told = in_child(job)
    after = counters(pool)
    pool.release(kept)
    return [told, before == after, works(pool)]


def drops() -> Any:
    box = [ready(make())]

    def job() -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            box.clear()
            gc.collect()
            run_hub()
        return [str(warning.message) for warning in caught]

    return [in_child(job), works(box[0])]


def drops_after_use() -> Any:
    box = [ready(make())]

    def job() -> Any:
        used = use(box[0])
        ready(box[0])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            box.clear()
            gc.collect()
            run_hub()
        return [used, [str(warning.message).split(": ")[1] for warning in caught]]

    return [in_child(job), works(box[0])]


def drops_a_cycle() -> Any:
    class Owner:
        def __init__(self) -> None:
            self.pool = make(on_event=lambda event: bool(self))
            self.pool.owner = self

    box = [Owner()]
    ready(box[0].pool)
    run_hub(0.01)

    def job() -> Any:
        box.clear()
        gc.collect()
        run_hub()

    return [in_child(job), works(box[0].pool)]


def has_dropped_a_cycle() -> Any:
    """The parent has dropped a pool that waits for the collector, and that comes in the child as early as it can."""

    def drop() -> None:
        pool = ready(make(keepalive=60))
        pool.itself = pool

    gc.collect()
    gc.disable()
    drop()
    run_hub(0.01)  # so that nothing else holds it
    collects_early.append(True)
    told = in_child(run_hub)
    collects_early.clear()
    gc.enable()
    return [told, [hook for _, hook in calls_while(gc.collect)]]


def drops_what_is_lent() -> Any:
    box = [ready(make(3, asking=True))]
    kept: list[Any] = [box[0].acquire()]

    def rows() -> Any:
        with box[0].get() as c:
            yield c

    kept.append(rows())
    next(kept[1])

    def job() -> Any:
        done = len(calls)
        kept.clear()
        box.clear()
        gc.collect()
        run_hub()
        return calls[done:]

    told = in_child(job)
    before = counters(box[0])[-3:]
    box[0].release(kept[0])
    kept[1].close()
    return [told, before, works(box[0])]


def drops_in_a_thread() -> Any:
    """Leases are collected in another native thread of the child, before and after it has used the pool."""
    pool = ready(make(asking=True))
    kept = [suspended(pool), suspended(pool)]

    def job() -> Any:
        gevent.reinit()  # else a hub that gevent has not forked itself has no threads
        first = calls_while(drop_one)
        used = use(pool)
        then = calls_while(drop_one)
        s = pool.stats()
        return [first, used, then, len(kept), s.gets, s.in_use, s.closed]

    def drop_one() -> None:
        gevent.get_hub().threadpool.apply(kept.__delitem__, (0,))
        run_hub()

    told = in_child(job)
    for lease in kept:
        lease.close()
    return [told, works(pool)]


def suspended(pool: Any) -> Any:
    """Return a generator that has borrowed a connection."""

    def rows() -> Any:
        with pool.get() as c:
            yield c

    lease = rows()
    next(lease)
    return lease


def exits() -> Any:
    pool = ready(make())
    before = counters(pool)
    kept = pool.acquire()
    told = in_child(lambda: None, end=sys.exit)
    pool.release(kept)
    return [told, counters(pool)[1:] == before[1:], works(pool)]


def exits_after_use() -> Any:
    pool = ready(make())
    before = counters(pool)
    told = in_child(lambda: use(pool), end=sys.exit)
    return [told, unharmed(pool, before)]


def exits_a_pool_block() -> Any:
    with ready(make()) as pool:
        told = in_child(lambda: None, end=sys.exit)
        answers = works(pool)
    return [told, answers]


def exits_by_an_error_in_a_block() -> Any:
    pool = ready(make())

    def fail() -> None:
        raise ConnectionError("in the child")

    try:
        with pool.get() as c:
            told = in_child(lambda: None, end=fail)
            answer = c.ask("PING")
    except ConnectionError:
        sys.exit()  # the child
    return [told, answer, works(pool)]


def ends_a_block() -> Any:
    """With nothing raised, by a broken connection, by an interruption: for each its own child."""
    told = []
    for asking in (False, True):
        pool = ready(make(1, asking=asking))
        told += [ends_a_block_with(pool, error) for error in (None, ConnectionError(), KeyboardInterrupt())]
        told.append(works(pool))
    return told


def ends_a_block_with(pool: Any, error: BaseException | None) -> Any:
    lease = pool.get()
    lease.__enter__()

    def job() -> Any:
        done = len(calls)
        lease.__exit__(None if error is None else type(error), error, None)
        first = calls[done:]
        run_hub(0.01)
        gc.collect()
        s = pool.stats()
        return [first, s.gets, s.closed, s.discarded["error"] + s.discarded["interrupted"]]

    told = in_child(job)
    lease.__exit__(None, None, None)
    return told


def ends_a_block_after_use() -> Any:
    told = []
    for asking in (False, True):
        pool = ready(make(1, asking=asking))
        with pool.get():
            told.append(in_child(lambda: uses_within(pool)))  # noqa: B023  # it is called here
        told.append(works(pool))
    return told


def uses_within(pool: Any) -> Any:
    """Borrow while a block of the parent is still open here; then go on as it would."""
    used = use(pool)
    s = pool.stats()
    return [used, s.gets, s.in_use, s.open]


def gives_back() -> Any:
    pool = ready(make(3))
    by_hand, other = pool.acquire(), pool.acquire()
    with pool.get() as in_block:

        def job() -> Any:
            pool.release(by_hand)
            pool.release(by_hand)
            pool.discard(other)
            pool.discard(in_block)
            run_hub()
            s = pool.stats()
            return [s.gets, s.closed, sum(s.discarded.values()), use(pool)]

        told = in_child(job)
    pool.release(by_hand)
    pool.release(other)
    return [told, works(pool)]


def is_closed() -> Any:
    pool = ready(make())
    pool.close(PATIENCE)

    def job() -> Any:
        first = [pool.closed, pool.close(1), "closed" in repr(pool)]
        try:
            pool.acquire(timeout=1)
        except PoolClosed:
            first.append("refused")
        return [first, pool.closed]

    return [in_child(job), pool.closed]


def closes_unused() -> Any:
    """Close a pool in the child before anything else: there is nothing of it to be closed."""
    pool = ready(make())
    kept = pool.acquire()

    def job() -> Any:
        done = len(calls)
        return [pool.close(1), pool.closed, calls[done:]]

    told = in_child(job)
    pool.release(kept)
    return [told, works(pool)]


def has_a_grandchild() -> Any:
    pool = ready(make())

    def child() -> Any:
        used = use(pool)
        ready(pool)
        with pool.get():
            below = in_child(grandchild)
        return [used, below, works(pool)]

    def grandchild() -> Any:
        return [counters(pool) == NOTHING, use(pool), pool.stats().gets]

    def idle_child() -> Any:
        return in_child(grandchild)

    return [in_child(child), in_child(child, end=sys.exit), in_child(idle_child), works(pool)]


class Busy:
    """A pool that has a connect and a keepalive waiting for the server, two greenlets waiting for a connection, and
    events for a greenlet that sleeps.
    """

    def __init__(self) -> None:
        self.heard: list[int] = []  # events, by process
        self.served: list[Any] = []
        hello[:] = ["HELLO", "HELLO", "LATER", "HELLO"]
        Hooked.ping = ["LATER", "PING"]
        self.pool = make(3, keepalive=0.01, keepalive_timeout=PATIENCE, on_event=self.listen)
        self.pool.wait(2, timeout=PATIENCE)
        self.kept = self.pool.acquire(timeout=PATIENCE)
        until(lambda: len(self.left_waiting()) == 2)
        self.waiting = [gevent.spawn(self.wait_for_one, PATIENCE), gevent.spawn(self.wait_for_one, 0.1)]
        until(lambda: self.pool.stats().waiting == 2)
        self.sockets = [c.fileno() for c in self.left_waiting()]

    def left_waiting(self) -> list[Client]:
        return [c for c in gc.get_objects() if type(c) is Client and c.scene == scene and c.asked == "LATER"]

    def listen(self, event: Any) -> None:
        self.heard.append(os.getpid())
        gevent.sleep(0.05)

    def wait_for_one(self, timeout: float) -> None:
        try:
            with self.pool.get(timeout=timeout) as c:
                self.served.append([os.getpid(), c.owner])
        except PoolTimeout:
            self.served.append([os.getpid(), 0])

    def end(self) -> Any:
        """Have it settle; return what became of those who waited, and whether all still works."""
        until(lambda: self.pool.stats().connecting == 0)
        gevent.joinall(self.waiting, timeout=PATIENCE)
        self.pool.release(self.kept)
        Hooked.ping = ["PING"]
        me = os.getpid()
        return [[owner == me or owner for process, owner in self.served if process == me], works(self.pool)]


def is_busy() -> Any:
    """The server answers while only the child's hub runs."""
    busy = Busy()
    told = in_child_alone(lambda: endures(busy), answer=True)
    return [told, busy.end()]


def exits_while_busy() -> Any:
    busy = Busy()
    told = in_child(lambda: run_hub(), end=sys.exit)
    say_now()
    return [told, busy.end()]


def drops_while_busy() -> Any:
    box = [Busy()]

    def job() -> Any:
        done = len(calls)
        box.clear()
        gc.collect()
        run_hub()
        return calls[done:]

    told = in_child(job)
    say_now()
    return [told, box[0].end()]


def endures(busy: Busy) -> Any:
    """Run the hub of the child until the answers for its parent are there, and for a while."""
    done = len(calls)
    until(lambda: all(map(is_readable, busy.sockets)))
    return {
        "is idle": is_idle(),
        "answers waiting": list(map(is_readable, busy.sockets)),
        "hooks": calls[done:],
        "events": busy.heard.count(os.getpid()),
        "served": busy.served,
        "uses": use(busy.pool),
    }


def is_idle() -> Any:
    """Run the hub for a while; say whether that took next to no time of the processor, or how much."""
    began = time.process_time()
    run_hub(0.2)
    seconds = time.process_time() - began
    return seconds < 0.1 or seconds


def is_readable(descriptor: int) -> bool:
    asked = poll()
    asked.register(descriptor, select.POLLIN)
    return bool(asked.poll(0))


def in_child_alone(job: Callable[[], Any], *, answer: bool = False) -> Any:
    """As ``in_child``, but that the hub of the parent does not run meanwhile; the server may be told to ``answer``."""
    reader, writer = os.pipe()
    process = fork()
    if process == 0:
        signal.alarm(60)
        tell(writer, job)
        os._exit(0)
    os_close(writer)
    if answer:
        say_now()
    return outcome(process, lambda: os_read(reader, 65536), reader)


def say_now() -> None:
    with plain_socket() as control:
        control.connect((HOST, PORT))
        control.sendall(f"{os.getpid()} {scene} NOW\n".encode())
        control.recv(100)


def has_just_been_served() -> Any:
    """Fork between the moment when a connection is handed to a waiter and the one when he runs."""
    served: list[Any] = []
    pool = ready(make(1))
    kept = pool.acquire()

    def wait_for_one() -> None:
        with pool.get(timeout=PATIENCE) as c:
            served.append([os.getpid() == parent, c.owner == parent])

    parent = os.getpid()
    waiting = gevent.spawn(wait_for_one)
    until(lambda: pool.stats().waiting == 1)
    pool.release(kept)

    def job() -> Any:
        run_hub()
        return served

    told = in_child(job)
    waiting.join(PATIENCE)
    return [told, served, works(pool)]


def forks_as_it_is_served() -> Any:
    """Fork as the first of two runs who are handed a connection at once: in the child the other one does not."""
    served: list[Any] = []
    told: list[Any] = []
    pool = ready(make(2))
    kept = [pool.acquire(), pool.acquire()]

    def fork_first() -> None:
        with pool.get():
            told.append(in_child(job))

    def wait_for_one() -> None:
        with pool.get() as c:
            served.append([os.getpid() == parent, c.owner == parent])

    def job() -> Any:
        run_hub()
        return served

    parent = os.getpid()
    waiting = [gevent.spawn(fork_first), gevent.spawn(wait_for_one)]
    until(lambda: pool.stats().waiting == 2)
    for c in kept:
        pool.release(c)
    gevent.joinall(waiting, PATIENCE)
    return [told, served, works(pool)]


def is_about_to_be_told() -> Any:
    """Fork after the greenlet that delivers events has ended, and before it is noticed that there is one more."""
    heard: list[int] = []
    forked: list[int] = []
    run_callback = gevent.get_hub().loop.run_callback

    def listen(event: Any) -> None:
        heard.append(os.getpid())
        if isinstance(event, events.ConnectionOpened) and not forked:
            run_callback(strike)  # comes after the end of this greenlet, and before the news of that

    def strike() -> None:
        c = pool.acquire(timeout=0)
        Asking.answers = []
        pool.release(c)  # the hook fails, which is an event
        Asking.answers = [True]
        forked.append(fork())

    pool = make(1, asking=True, on_event=listen)
    until(lambda: forked)
    if not forked[0]:
        run_hub()
        os._exit(heard.count(os.getpid()))
    told = os.waitstatus_to_exitcode(reap(forked[0]))
    until(lambda: pool.stats().discarded["not_reusable"] == 1 and pool.stats().idle == 1)
    return [told, len(heard) >= 3, works(pool)]


def is_about_to_let_go() -> Any:
    """Fork when a pool was dropped in another thread, and its connections wait to be closed in that of the hub."""
    box = [ready(make())]
    run_hub(0.01)
    is_clear = allocate_lock()
    is_clear.acquire()
    start_new_thread(lambda: [call() for call in (box.clear, is_clear.release)], ())
    is_clear.acquire()  # without a turn of the hub

    told = in_child_alone(run_hub)
    run_hub()
    return [told, calls_here()[-2:]]


def asks_dns() -> Any:
    """Fork while a name server has been asked; it counts what it is asked from then on, and does not answer."""
    with plain_socket(type=socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        server.setblocking(False)
        resolver = DNSResolver([server.getsockname()], timeout=0.05, lifetime=2)
        pool = Cluster(f"redis.example.test:{PORT}", 1, resolver=resolver)
        until(lambda: received(server))
        run_hub(0.01)
        received(server)
        told = in_child_alone(lambda: [is_idle(), received(server)])
        pool.close(0)
    return told


def received(server: Any) -> int:
    """Return how many datagrams have arrived, and take them."""
    number = 0
    with suppress(BlockingIOError):
        while server.recv(1000):
            number += 1
    return number


def polls_in_a_keepalive() -> Any:
    """Fork while a keepalive waits in ``select``, whose watcher goes on as long as there is something to be read."""

    class Polling(Lone if KIND == "lone" else Cluster):  # type: ignore[misc]  # whichever is asked for
        def _keepalive(self, c: Client) -> None:
            if not polled:
                polled.append(c.fileno())
                c.socket.sendall(c.line("LATER"))
                gevent.select.select([c.socket], [], [])
                c.socket.recv(100)

    polled: list[int] = []
    pool: Any
    pool = Polling(1, keepalive=0.01) if KIND == "lone" else Polling([(HOST, PORT)], 1, keepalive=0.01)
    until(lambda: polled)

    def job() -> Any:
        until(lambda: is_readable(polled[0]))
        return is_idle()

    return [in_child_alone(job, answer=True), works(pool)]


def has_a_waiter_with_a_timeout() -> Any:
    """A greenlet that waits under a Timeout of its own: in the child, too, it is thrown; nothing of that is counted."""
    pool = ready(make(1))
    kept = pool.acquire()
    ended: list[int] = []

    def wait_for_one() -> None:
        with gevent.Timeout(0.05, False):  # type: ignore[arg-type]  # the way not to raise
            with pool.get():
                raise AssertionError("nobody returned one")
        ended.append(os.getpid())

    waiting = gevent.spawn(wait_for_one)
    until(lambda: pool.stats().waiting == 1)

    def job() -> Any:
        used = use(pool)
        waited = pool.stats().wait_seconds
        until(lambda: ended == [os.getpid()])
        s = pool.stats()
        return [used, s.gets, s.timeouts, s.waiting, s.wait_seconds == waited]

    told = in_child(job)
    waiting.join(PATIENCE)
    pool.release(kept)
    return [told, works(pool)]


def forks_in_a_hook() -> Any:
    told: list[Any] = []
    parent = os.getpid()

    def once(where: str) -> None:
        if os.getpid() == parent and where not in told:
            told.append(where)
            told.append(in_child(job))

    def job() -> Any:
        gevent.sleep(0.01)  # it may switch, and is switched to again
        return use(pool)

    class Forking(Lone if KIND == "lone" else Cluster):  # type: ignore[misc]  # whichever is asked for
        def _new_connection(self, *endpoint: Any) -> Client:
            once("_new_connection")
            return super()._new_connection(*endpoint)  # type: ignore[no-any-return]

        def _keepalive(self, c: Client) -> None:
            once("_keepalive")
            super()._keepalive(c)

        def _abort_connection(self, c: Client) -> None:
            once("_abort_connection")
            super()._abort_connection(c)

    pool: Any
    options: Any = {"keepalive": 0.01, "keepalive_timeout": PATIENCE}
    pool = Forking(1, **options) if KIND == "lone" else Forking([(HOST, PORT)], 1, **options)
    until(lambda: len(told) == 4)
    pool.discard(pool.acquire())
    until(lambda: len(told) == 6)
    return told


def goes_on_in_a_hook() -> Any:
    """A child returns from the hook of its parent in which it was forked: nothing comes of it in the child."""
    told: list[Any] = []
    parent = os.getpid()

    def is_child(where: str) -> bool:
        if os.getpid() == parent and where not in told:
            told.append(where)
            told.append(in_child_that_returns(lambda: [counters(pool) == NOTHING, use(pool), counters(pool)[3:6]]))
        return os.getpid() != parent

    class Forking(Lone if KIND == "lone" else Cluster):  # type: ignore[misc]  # whichever is asked for
        def _new_connection(self, *endpoint: Any) -> Client:
            is_child("_new_connection")
            return super()._new_connection(*endpoint)  # type: ignore[no-any-return]

        def _keepalive(self, c: Client) -> None:
            if not is_child("_keepalive"):
                super()._keepalive(c)

        def _abort_connection(self, c: Client) -> None:
            if not is_child("_abort_connection"):
                super()._abort_connection(c)

    pool: Any
    options: Any = {"keepalive": 0.01, "keepalive_timeout": PATIENCE}
    pool = Forking(1, **options) if KIND == "lone" else Forking([(HOST, PORT)], 1, **options)
    until(lambda: len(told) == 4)
    pool.discard(pool.acquire())
    until(lambda: len(told) == 6)
    return [told, works(pool)]


def in_child_that_returns(job: Callable[[], Any]) -> Any:
    """As ``in_child``, but that this returns in the child, too, and the job is done when the greenlet has ended."""
    reader, writer = os.pipe()
    process = fork()
    if process:
        os_close(writer)
        gevent.os.make_nonblocking(reader)
        return outcome(process, lambda: gevent.os.nb_read(reader, 65536), reader)
    signal.alarm(60)
    me: Any = gevent.getcurrent()

    def finish() -> None:
        me.join()
        tell(writer, job)
        os._exit(0)

    gevent.spawn(finish)
    return None


def forks_in_a_handler() -> Any:
    told: list[Any] = []
    parent = os.getpid()

    def listen(event: Any) -> None:
        if os.getpid() == parent and not told:
            told.append("on_event")
            told.append(in_child(job))

    def job() -> Any:
        gevent.sleep(0.01)
        return use(pool)

    pool = make(1, on_event=listen)
    until(lambda: len(told) == 2)
    return [told, works(pool)]


def forks_in_a_thread() -> Any:
    """The child has one thread, which is not that of the parent's hub."""
    pool = ready(make())
    before = counters(pool)

    def job() -> Any:
        return [counters(pool) == NOTHING, use(pool), works(pool), pool.close(PATIENCE)]

    told = [gevent.get_hub().threadpool.apply(in_child_of_thread, (job,))]
    box: list[Any] = []
    start_new_thread(lambda: box.append(in_child_of_thread(job)), ())
    until(lambda: box)
    return [told + box, unharmed(pool, before)]


def in_child_of_thread(job: Callable[[], Any]) -> Any:
    """As ``in_child`` where there is no hub yet, and need not be one."""
    reader, writer = os.pipe()
    process = FORKS["libc" if HOW.startswith("libc") else "os"]()
    if process == 0:
        signal.alarm(60)
        tell(writer, job)
        os._exit(0)
    os_close(writer)
    data = b""
    while part := os_read(reader, 65536):
        data += part
    os_close(reader)
    with suppress(ChildProcessError):  # gevent's loop was faster
        get_original("os", "waitpid")(process, 0)
    return json.loads(data) if data else "nothing"


def looks_up() -> Any:
    """Fork while the service is being looked up: the child asks for itself, and what its parent asked is not used."""
    service = Service()
    service.answers = False
    pool: Any = Cluster(service, 1)
    until(lambda: service.asked)
    parent = os.getpid()

    def job() -> Any:
        service.answers = True
        run_hub()
        before = len(service.asked)
        used = use(pool)
        until(lambda: pool.stats().discovery.generation)
        return [before, used, len(service.asked), pool.stats().discovery.generation]

    told = in_child(job)
    service.answers = True
    pool.wait(timeout=PATIENCE)
    return [told, service.asked == [parent], works(pool)]


def is_between_slices() -> Any:
    """Fork when three of ten endpoints are there: the child finds all for itself, and its parent goes on."""
    service = Service(10)
    goes_on: list[bool] = []
    rested: list[int] = []  # by which process

    def rest(part: Slice) -> None:
        rested.append(os.getpid())
        while len(rested) == 3 and not goes_on:
            gevent.sleep(0.002)

    before, slice_rest, Slice.rest = _pool.CHANGES_AT_ONCE, Slice.rest, rest  # type: ignore[method-assign, assignment]
    _pool.CHANGES_AT_ONCE = -1.0  # one change each
    pool: Any = Cluster(service, 1)
    until(lambda: len(rested) == 3 and pool.stats().open == 3)

    def job() -> Any:
        goes_on.append(True)
        run_hub()
        seen = [len(pool.pools), len(rested)]
        used = use(pool)
        pool.wait(10, timeout=PATIENCE)
        return [*seen, used, len(pool.pools), len(service.asked)]

    told = in_child(job)
    seen = [len(pool.pools), pool.stats().open, len(service.asked)]
    goes_on.append(True)
    pool.wait(10, timeout=PATIENCE)
    _pool.CHANGES_AT_ONCE, Slice.rest = before, slice_rest  # type: ignore[method-assign]
    return [told, seen, len(pool.pools), works(pool)]


def chooses() -> Any:
    """Fork with pools for three of a thousand endpoints: two children, and a child of one, choose for themselves."""
    pool: Any = Cluster([(HOST, port) for port in range(1, 1001)], 1, subset=3)
    made.add(pool)
    pool.wait(3, timeout=PATIENCE)

    def ports() -> list[int]:
        return sorted(endpoint.port for endpoint in pool.pools)

    def job() -> Any:
        told = [ports(), use(pool)]
        pool.wait(3, timeout=PATIENCE)
        return [*told, ports()]

    def job_of_two() -> Any:
        return [job(), in_child(job)]

    before = ports()
    told = [in_child(job), *in_child(job_of_two)]
    return [told, before, ports() == before, works(pool)]


def keeps_an_endpoint_pool() -> Any:
    pool = ready(make())
    (endpoint,) = pool.pools
    part = pool.pools[endpoint]
    kept = part.acquire()

    def job() -> Any:
        told = [part.stats().gets, part.closed, bool(repr(part))]
        part.release(kept)
        part.discard(kept)
        told.append(refusal(part.acquire))
        pool.wait(timeout=PATIENCE)
        told.append(refusal(part.acquire))
        return [*told, use(pool.pools[endpoint])]

    told = in_child(job)
    part.release(kept)
    return [told, works(pool)]


def takes_an_endpoint_pool() -> Any:
    """A child that never uses the cluster itself, only its parts."""
    pool = ready(make())
    (endpoint,) = pool.pools

    def job() -> Any:
        told = [endpoint in pool.pools]
        return [*told, use(pool.pools[endpoint])] if told[0] else told

    return [in_child(job), works(pool)]


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "none"


def runs_processes() -> Any:
    """Four calls in processes of multiprocessing: two that share the work, or where gevent has patched one for each."""
    pool = ready(make())
    before = counters(pool)
    context = multiprocessing.get_context("fork")
    if HOW == "patched":
        told = [run_process(context, pool) for _ in range(4)]
    else:
        with context.Pool(2, initializer=shared.append, initargs=(pool,)) as processes:
            told = processes.map_async(use_shared, range(4)).get(PATIENCE)
        processes.join()
    return [told, unharmed(pool, before)]


shared: list[Any] = []


def use_shared(number: int) -> Any:
    return use(shared[0])


def run_process(context: Any, pool: Any) -> Any:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(use(pool)))
    process.start()
    told = receiver.recv() if receiver.poll(PATIENCE) else None
    process.join()
    return told


def forks_often() -> Any:
    pool = ready(make())
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), len(gc.get_objects())
    for _ in range(10):
        process = fork()
        if process == 0:
            os._exit(0)
        reap(process)
    gc.collect()
    after = len(os.listdir("/proc/self/fd")), len(gc.get_objects())
    return [after[0] <= before[0], after[1] - before[1] < 300, len(_fork._graveyard), works(pool)]


def takes_its_time() -> Any:
    """Fork with 1,000 connections: what is done in the child before ``fork`` returns there."""

    class Things(ConnectionPool[Any]):
        def _new_connection(self) -> object:
            return object()

    pool = Things(1000)
    pool.wait(timeout=PATIENCE)
    switches: list[Any] = []

    times: list[float] = []
    for _ in range(5):
        _fork.enrol(pool._lender.engine)
        greenlet.settrace(lambda *event: switches.append(event))
        began = time.perf_counter()
        _fork._bury_all()
        times.append(time.perf_counter() - began)
        greenlet.settrace(None)
        _fork._graveyard.clear()
    return [len(switches), min(times) < 0.001 or times]


def main() -> None:
    global scene
    process = os.getpid()
    for scene in SCENES_ASKED:
        hello[:] = ["HELLO"]
        try:
            told = globals()[scene]()
        except Exception:
            told = traceback.format_exc().splitlines()
        if os.getpid() != process:
            os.write(2, f"{scene}: a child got out\n{told}\n".encode())
            os._exit(9)
        for pool in list(made):
            pool.close(1)
        os.write(1, json.dumps({"scene": scene, "told": told}).encode() + b"\n")


if __name__ == "__main__":
    main()
