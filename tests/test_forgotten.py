"""A pool that nobody holds any more goes, with its sockets, and whatever the collector ends it disturbs nothing.

Nor does anybody but the hub's native thread; and a program may end with pools in whatever state.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gevent
import greenlet
import pytest
from gevent import socket
from gevent.event import Event

from geventconnpool import ClusterPool, ConnectionPool, Endpoint
from geventconnpool.cluster import Resolution
from tests.recorder import Recorder
from tests.servers import wait_until

ROOT = Path(__file__).parent.parent
KINDS = ["lone", "cluster"]


class Client:
    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.socket()
        self.socket.connect(address)
        self.socket.sendall(b"0 forgotten HELLO\n")
        self.socket.recv(100)

    def __del__(self) -> None:
        self.socket.close()


class Hooked:
    address = ("127.0.0.1", 0)
    calls: list[str] = []
    slow: set[str] = set()  # hooks that take their time
    failing: list[str] = []  # hooks that fail, once

    def _connect(self) -> Client:
        self._called("_new_connection")
        return Client(self.address)

    def _called(self, hook: str) -> None:
        self.calls.append(hook)
        if hook in self.failing:
            self.failing.remove(hook)
            raise ConnectionError(hook)
        if hook in self.slow:
            gevent.sleep(0.05)

    def _keepalive(self, c: Client) -> None:
        self._called("_keepalive")

    def _close_connection(self, c: Client) -> None:
        self._called("_close_connection")
        c.socket.close()

    def _is_connection_error(self, exc: BaseException) -> bool:
        self._called("_is_connection_error")
        return isinstance(exc, OSError)


class Lone(Hooked, ConnectionPool[Client]):
    def _new_connection(self) -> Client:
        return self._connect()


class Cluster(Hooked, ClusterPool[Client]):
    def _new_connection(self, endpoint: Endpoint) -> Client:
        return self._connect()


@pytest.fixture
def server(monkeypatch) -> Iterator[Recorder]:
    server = Recorder()
    monkeypatch.setattr(Hooked, "address", server.address)
    monkeypatch.setattr(Hooked, "calls", [])
    monkeypatch.setattr(Hooked, "slow", set())
    monkeypatch.setattr(Hooked, "failing", [])
    yield server
    server.stop()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing goes but what nobody refers to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.fixture
def make(server, kind):
    def make(size: int = 2, opened: int = 2, **options: Any) -> Any:
        pool: Any = Lone(size, **options) if kind == "lone" else Cluster([server.address], size, **options)
        pool.wait(opened, timeout=5)
        gevent.sleep(0.01)  # the greenlets that connect, and tell of it, have ended
        return pool

    return make


def all_over(server: Recorder, number: int) -> bool:
    return len(server.seen) == number and all(seen.is_over for seen in server.seen)


def rows(pool: Any) -> Iterator[Client]:
    with pool.get(timeout=5) as c:
        yield c


# -- sockets are closed by nobody holding them -------------------------------------------------------------------------


def idle(make: Any) -> list[Any]:
    return [make()]


def with_timers(make: Any) -> list[Any]:
    return [make(keepalive=60, hold_warning=60, max_lifetime=600, fail_after=60)]


def borrowed_by_a_block(make: Any) -> list[Any]:
    pool = make()
    lease = pool.get()
    return [pool, lease, lease.__enter__()]


def borrowed_by_hand(make: Any) -> list[Any]:
    pool = make()
    return [pool, pool.acquire()]


def borrowed_by_a_generator(make: Any) -> list[Any]:
    pool = make()
    suspended = rows(pool)
    next(suspended)
    return [pool, suspended]


def with_a_slow_handler(make: Any) -> list[Any]:
    return [make(on_event=lambda event: gevent.sleep(0.05))]


def just_broken(make: Any) -> list[Any]:
    pool = make()
    with pytest.raises(ConnectionError), pool.get():
        raise ConnectionError
    return [pool]


def just_reset(make: Any) -> list[Any]:
    pool = make()
    pool.reset()
    return [pool]


def closing(make: Any) -> list[Any]:
    Hooked.slow.add("_close_connection")
    pool = make()
    pool.reset()
    gevent.sleep(0)
    return [pool]


def kept_alive(make: Any) -> list[Any]:
    Hooked.slow.add("_keepalive")
    pool = make(keepalive=0.01, keepalive_timeout=30)
    wait_until(lambda: "_keepalive" in Hooked.calls)
    return [pool]


AT_ONCE = [idle, with_timers, borrowed_by_a_block, borrowed_by_hand, borrowed_by_a_generator, with_a_slow_handler]
SOON = [just_broken, just_reset, closing, kept_alive]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", AT_ONCE)
def test_the_sockets_of_a_forgotten_pool_are_closed_at_once_without_the_collector(server, uncollected, make, shape):
    held = shape(make)
    pool = weakref.ref(held[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held.clear()

    assert pool() is None
    wait_until(lambda: all_over(server, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SOON)
def test_a_forgotten_pool_goes_with_the_last_hook_that_runs(server, uncollected, make, shape):
    held = shape(make)
    pool = weakref.ref(held[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held.clear()
        wait_until(lambda: pool() is None)

    wait_until(lambda: all(seen.is_over for seen in server.seen))
    assert len(server.seen) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_forgotten_pool_that_connects_goes_with_what_it_gets(server, uncollected, make):
    Hooked.slow.add("_new_connection")
    pool = make(2, opened=0)
    gone = weakref.ref(pool)
    del pool

    wait_until(lambda: gone() is None)
    wait_until(lambda: all_over(server, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_waiter_keeps_the_pool_until_it_is_served(server, uncollected, make):
    held = [make(1, opened=1)]
    pool = weakref.ref(held[0])
    c = held[0].acquire()
    waiting = gevent.spawn(lambda wanted: wanted.acquire(timeout=5), held[0])
    wait_until(lambda: pool().stats().waiting == 1)
    pool().release(c)
    held.clear()

    assert waiting.get(timeout=5) is c


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_pool_in_a_cycle_of_its_user_goes_with_the_cycle(server, make):
    class Owner:
        def __init__(self) -> None:
            self.told: list[object] = []
            self.pool = make(on_event=self.told.append)
            self.pool.owner = self
            self.lease = self.pool.get()
            self.lease.__enter__()

    owner = weakref.ref(Owner())
    gc.collect()

    assert owner() is None
    wait_until(lambda: all_over(server, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", ["_new_connection", "_keepalive"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_error_of_a_hook_that_somebody_keeps_keeps_neither_pool_nor_sockets(server, make, uncollected, hook):
    errors: list[BaseException] = []
    Hooked.failing.append(hook)
    pool = make(keepalive=0.01, on_event=lambda event: errors.append(getattr(event, "error", None)))
    wait_until(lambda: any(errors))
    gone = weakref.ref(pool)
    wait_until(lambda: gone().stats().idle == 2)
    del pool

    wait_until(lambda: gone() is None)
    wait_until(lambda: all(seen.is_over for seen in server.seen))
    assert any(errors)


def test_a_cluster_that_is_looked_up_goes_at_once_and_the_answer_does_nothing(server):
    asked, answer = Event(), Event()
    answered: list[str] = []

    class Slow:
        def resolve(self, service: str | None) -> Resolution:
            asked.set()
            answer.wait()
            answered.append("yes")
            return Resolution((Endpoint(*server.address),))

    pool = Cluster(Slow(), 2)
    gone = weakref.ref(pool)
    assert asked.wait(5)
    del pool
    is_gone = gone() is None
    answer.set()
    wait_until(lambda: answered)
    gevent.sleep(0.01)

    assert is_gone
    assert server.seen == []
    assert Hooked.calls == []


# -- warnings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_forgotten_pool_with_open_connections_is_warned_of_by_name_and_number(make, uncollected):
    pool = make(3, opened=3, name="mine")
    with pytest.warns(ResourceWarning) as caught:
        del pool

    assert [str(warning.message) for warning in caught] == ["mine was not closed: 3 connections were open"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_warning_that_is_made_an_error_keeps_no_socket_open(server, make, uncollected, capsys, monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: told.append(type(event.exc_value)))
    pool = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del pool

    assert told == [ResourceWarning]
    wait_until(lambda: all_over(server, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_a_pool_that_was_closed_or_has_nothing_open_is_forgotten_without_a_word(make, uncollected, monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    closed, cut, empty = make(), make(), make(min_size=0, opened=0)
    c = cut.acquire()
    closed.close(5)
    cut.close(0)
    del closed, cut, empty, c

    assert told == []


# -- finalizers append, and no more ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_forgetting_a_pool_switches_to_nobody_and_calls_no_hook(make):
    held = borrowed_by_a_generator(make)
    switches: list[Any] = []
    Hooked.calls.clear()
    greenlet.settrace(lambda *event: switches.append(event))
    held.clear()
    gc.collect()
    greenlet.settrace(None)

    assert switches == []
    assert Hooked.calls == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_pool_may_be_forgotten_in_another_native_thread(server, make):
    held = [make(keepalive=60)]
    gevent.get_hub().threadpool.apply(held.clear)

    wait_until(lambda: all_over(server, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_pool_may_be_collected_in_another_native_thread_with_its_leases(server, make):
    pool = make(keepalive=60)
    pool.itself = pool
    pool.suspended = rows(pool)
    next(pool.suspended)
    del pool
    gevent.get_hub().threadpool.apply(gc.collect)

    wait_until(lambda: all_over(server, 2))


@pytest.mark.parametrize(
    ("case", "kind"),
    [(case, "lone") for case in ("timer", "release", "discard", "fail", "serve", "reset", "resize")]
    + [(case, "cluster") for case in ("timer", "fail", "serve")],
)
def test_the_collector_may_come_at_any_bytecode(case, kind):
    command = [sys.executable, "-m", "tests.collecting", case, kind]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert result.stdout == "True []\n"
    assert result.stderr == ""


# -- other native threads ----------------------------------------------------------------------------------------------


def refused(job: Any) -> str:
    """Return how the job is refused in another native thread."""

    def run() -> str:
        try:
            job()
        except RuntimeError as error:
            return str(error)
        return "it was not"

    return str(gevent.get_hub().threadpool.apply(run))


USES = {
    "get": lambda pool, c: pool.get().__enter__(),
    "acquire": lambda pool, c: pool.acquire(timeout=0),
    "release": lambda pool, c: pool.release(c),
    "discard": lambda pool, c: pool.discard(c),
    "wait": lambda pool, c: pool.wait(1, timeout=0),
    "reset": lambda pool, c: pool.reset(),
    "resize": lambda pool, c: pool.resize(5),
    "close": lambda pool, c: pool.close(0),
    "with": lambda pool, c: pool.__exit__(None, None, None),
}


def test_a_pool_whose_thread_has_ended_is_refused_in_another_that_has_its_number():
    program = """
import threading
from geventconnpool import ConnectionPool

class Pool(ConnectionPool):
    def _new_connection(self):
        return object()

made = []

def make():
    made.append((Pool(1), threading.get_ident()))
    made[0][0].wait()

def use():
    pool, number = made[0]
    try:
        pool.acquire(timeout=0)
        told.append((number == threading.get_ident(), "lent"))
    except RuntimeError:
        told.append((number == threading.get_ident(), "refused"))

def run(job):
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()

told = []
run(make)
while not told or not told[-1][0]:
    run(use)
print(told[-1][1], {what for _, what in told})
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert result.stdout == "refused {'refused'}\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", USES)
def test_every_method_is_refused_in_another_native_thread_and_changes_nothing(make, use):
    pool = make(name="mine")
    c = pool.acquire()
    refusal = refused(lambda: USES[use](pool, c))
    s = pool.stats()
    pool.release(c)

    assert re.fullmatch(r"mine belongs to the native thread \d+, this is \d+", refusal)
    assert (s.open, s.in_use, s.idle, s.gets, s.size, pool.closed) == (2, 1, 1, 1, 2, False)
    pool.close(5)


@pytest.mark.parametrize("use", ["get", "acquire", "release", "discard", "wait", "reset"])
@pytest.mark.parametrize("kind", ["cluster"])
def test_the_pool_of_an_endpoint_is_refused_in_another_native_thread_too(make, use):
    pool = make(name="mine")
    (part,) = pool.pools.values()
    c = part.acquire()
    refusal = refused(lambda: USES[use](part, c))
    s = part.stats()
    part.release(c)

    assert re.fullmatch(r"mine belongs to the native thread \d+, this is \d+", refusal)
    assert (s.open, s.in_use, s.idle, s.gets) == (2, 1, 1, 1)
    pool.close(5)


@pytest.mark.parametrize("kind", KINDS)
def test_another_native_thread_may_look_at_everything(make):
    pool = make(name="mine")

    def look() -> Any:
        parts = [pool, *(pool.pools.values() if hasattr(pool, "pools") else ())]
        return [(p.stats().idle, p.closed, p.size, "'mine" in repr(p), p.keepalive) for p in parts]

    assert set(gevent.get_hub().threadpool.apply(look)) == {(2, False, 2, True, 0.0)}
    pool.close(5)


# -- the end of the program --------------------------------------------------------------------------------------------

PROGRAM = """
import sys
{patch}
import atexit, gc, gevent
gc.set_threshold(0)  # what the collector finds before the end is reported, as it should be
from geventconnpool import ClusterPool, ConnectionPool
from geventconnpool.cluster import Resolution
class Thing: pass
class Hooked:
    is_slow = False
    def _keepalive(self, c):
        if self.is_slow: gevent.sleep(100)
class Lone(Hooked, ConnectionPool):
    def _new_connection(self): return Thing()
class Cluster(Hooked, ClusterPool):
    def _new_connection(self, endpoint): return Thing()
class Slow(Lone):
    def _new_connection(self): gevent.sleep(100)
class Slower:
    def resolve(self, service): gevent.sleep(100)
def make(n=2, **options):
    pools = [Lone(n, **options), Cluster([("127.0.0.1", 1)], n, **options)]
    for pool in pools: pool.wait()
    return pools
def rows(pool):
    with pool.get() as c: yield c
def started(generator):
    next(generator)
    return generator
def hold(pool):
    with pool.get(): gevent.sleep(100)
def end(): gevent.sleep(0.01)
{scene}
"""
ENDS = {
    "open": "pools = make(keepalive=60, hold_warning=60, max_lifetime=60)",
    "just made": "pools = [Lone(2), Cluster([('127.0.0.1', 1)], 2)]",
    "connecting": "pool = Slow(2); end()",
    "kept alive": "Hooked.is_slow = True; pools = make(keepalive=0.01); gevent.sleep(0.03)",
    "looked up": "pool = Cluster(Slower(), 2); end()",
    "lent": "pools = make(); leases = [p.get() for p in pools]; things = [l.__enter__() for l in leases]",
    "lent to generators": "pools = make(); suspended = [started(rows(p)) for p in pools]",
    "lent in a cycle": "\nfor p in make(): p.itself = started(rows(p))\ndel p",
    "lent to greenlets": "held = [gevent.spawn(hold, p) for p in make()]; end()",
    "waited for": "\npools = make(1)\nmine = [p.acquire() for p in pools]\n"
    "waiting = [gevent.spawn(p.acquire, t) for p in pools for t in (None, 60)]\nend()",
    "told": "pools = make(on_event=lambda event: gevent.sleep(100)); end()",
    "exits in blocks": "a, b = make()\nwith a.get(), b.get(): sys.exit()",
    "exits in a greenlet": "\npools = make()\ndef run():\n"
    "    with pools[0].get(): sys.exit()\ngevent.spawn(run).join()",
    "being closed": "pools = make(); c = pools[0].acquire(); closing = gevent.spawn(pools[0].close); end()",
    "of a thread": "box = []; gevent.get_hub().threadpool.apply(lambda: box.extend(make()))",
    "closed at exit": "\nfor p in make(): atexit.register(p.close)",
}


@pytest.fixture(scope="module")
def ended() -> Iterator[dict[tuple[str, bool], tuple[int, str, str]]]:
    """Run all programs, a few at a time."""
    scenes = [(scene, is_patched) for scene in ENDS for is_patched in (False, True)]
    with ThreadPoolExecutor(3) as executor:
        yield dict(zip(scenes, executor.map(run_to_end, scenes), strict=True))


def run_to_end(scene: tuple[str, bool]) -> tuple[int, str, str]:
    name, is_patched = scene
    patch = "from gevent import monkey; monkey.patch_all()" if is_patched else ""
    program = PROGRAM.format(patch=patch, scene=ENDS[name])
    command = [sys.executable, "-X", "dev", "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("is_patched", [False, True], ids=["unpatched", "patched"])
@pytest.mark.parametrize("scene", ENDS)
def test_a_program_ends_without_a_word_whatever_its_pools_do(ended, scene, is_patched):
    assert ended[scene, is_patched] == (0, "", "")
