"""A program in which the garbage collector comes at one bytecode after another, for ``test_forgotten``.

It comes wherever it can: when something is allocated, and in later Pythons at calls and jumps back. What lies between
two of these cannot be broken into, and that is relied on.

``python -m tests.collecting CASE KIND`` prints whether many bytecodes were hit, and what went wrong at which.
"""

from __future__ import annotations

import dis
import gc
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent

import geventconnpool
from geventconnpool import ClusterPool, ConnectionPool, _engine

BREAKABLE = ("CALL", "PRECALL", "BUILD", "MAKE", "LIST", "MAP", "GET_ITER", "FOR_ITER", "JUMP_BACKWARD", "RESUME")
PACKAGE = os.path.dirname(geventconnpool.__file__)
CASE, KIND = sys.argv[1:]
wrong: list[tuple[int, str]] = []
k = 0


class Thing:
    pass


class Lone(ConnectionPool[Thing]):
    def _new_connection(self) -> Thing:
        return Thing()

    def _keepalive(self, c: Thing) -> None:
        pass


class Cluster(ClusterPool[Thing]):
    def _new_connection(self, endpoint: Any) -> Thing:
        return Thing()

    def _keepalive(self, c: Thing) -> None:
        pass


def make(size: int, **options: Any) -> Any:
    pool: Any = Lone(size, **options) if KIND == "lone" else Cluster([("127.0.0.1", 1)], size, **options)
    pool.wait(size, timeout=5)
    gevent.sleep(0)
    gevent.sleep(0)
    return pool


class Collector:
    """Collects after the k-th bytecode at which the package can be broken into during an operation."""

    def __init__(self) -> None:
        self.left = k
        self.is_hit = False
        self.before: dict[Any, str] = {}  # the last bytecode, by frame

    def run(self, operation: Callable[[], Any]) -> None:
        sys.settrace(self.enter)
        try:
            operation()
        except Exception as error:
            wrong.append((k, repr(error)))
        finally:
            sys.settrace(None)
            self.before.clear()

    def enter(self, frame: Any, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        return self.look

    def look(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "opcode":
            self.left -= self.before.get(frame, "RESUME").startswith(BREAKABLE)
            self.before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if self.left <= 0 and not self.is_hit:
                self.is_hit = True
                sys.settrace(None)
                gc.collect()
        return self.look


def rows(pool: Any) -> Iterator[Any]:
    with pool.get() as c:
        yield c


def timer_rings() -> bool:
    """A pool in a cycle is forgotten, and everything it has to do becomes due."""
    pool = make(3, keepalive=5, hold_warning=5, max_lifetime=10, max_idle=5, min_size=1)
    held = pool.acquire()
    pool.itself = pool
    engine = weakref.ref(pool._lender.engine)
    del pool, held
    later = monotonic() + 20
    _engine.monotonic = lambda: later  # type: ignore[attr-defined]  # there is no other way to its clock
    collector = Collector()
    collector.run(lambda: _engine._ring(engine))
    _engine.monotonic = monotonic  # type: ignore[attr-defined]  # as above
    gc.collect()
    return collector.is_hit


def lease_is_collected(operation: Callable[[Any, Any], Any]) -> bool:
    """A lease that nobody holds any more ends in the middle of an operation: one connection is replaced, none lost."""
    pool = make(4)
    mine = pool.acquire()
    suspended: list[Any] = [rows(pool)]
    next(suspended[0])
    suspended.append(suspended)
    del suspended
    collector = Collector()
    collector.run(lambda: operation(pool, mine))
    gc.collect()
    for _ in range(20):
        gevent.sleep(0)
    s = pool.stats()
    found = [s.size, s.open, s.idle, s.in_use, s.discarded["interrupted"]]
    if found != [s.size, s.size, s.size, 0, 1]:
        wrong.append((k, f"{found}"))
    pool.close(1)
    return collector.is_hit


def fail(pool: Any, mine: Any) -> None:
    pool.release(mine)
    try:
        with pool.get():
            raise ConnectionError
    except ConnectionError:
        pass


def serve(pool: Any, mine: Any) -> None:
    """Return a connection to who waits for it."""
    others = [pool.acquire() for _ in range(2)]
    served: list[Any] = []
    gevent.spawn(lambda: served.append(pool.acquire(timeout=5)))
    gevent.sleep(0)
    for c in (mine, *others):
        pool.release(c)
    gevent.sleep(0)
    gevent.sleep(0)
    pool.release(served[0])


def reset(pool: Any, mine: Any) -> None:
    pool.reset()
    pool.release(mine)


def resize(pool: Any, mine: Any) -> None:
    pool.resize(2)
    pool.release(mine)
    pool.resize(3)


CASES: dict[str, Callable[[], bool]] = {
    "timer": timer_rings,
    "release": lambda: lease_is_collected(lambda pool, mine: pool.release(mine)),
    "discard": lambda: lease_is_collected(lambda pool, mine: pool.discard(mine)),
    "fail": lambda: lease_is_collected(fail),
    "serve": lambda: lease_is_collected(serve),
    "reset": lambda: lease_is_collected(reset),
    "resize": lambda: lease_is_collected(resize),
}


def main() -> None:
    global k
    warnings.simplefilter("ignore")
    hub: Any = gevent.get_hub()
    hub.handle_error = lambda context, kind, error, traceback: wrong.append((k, repr(error)))
    gc.disable()
    make(1).close(1)
    gc.collect()
    gc.freeze()  # so that a collection has little to look at
    k = 1
    while CASES[CASE]():
        k += 1
    print(k > 20 or k, wrong[:5])


if __name__ == "__main__":
    main()
