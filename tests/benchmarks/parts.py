"""What a check-out is made of: the interpreter's and the system's part of it, each by itself."""

from __future__ import annotations

from collections import deque
from itertools import repeat
from time import monotonic
from types import TracebackType
from typing import Any

from gevent import getcurrent

from geventconnpool._fork import life
from tests.benchmarks.checkout import SECONDS
from tests.benchmarks.rounds import QUICK_ROUNDS, ROUNDS, Loop, timed


class Empty:
    """A lease that does nothing."""

    __slots__ = ("a", "b", "c", "d")

    a: Any
    b: Any
    c: Any
    d: Any

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        pass


def statement(number: int) -> None:
    lease = Empty()
    for _ in repeat(None, number):
        with lease:
            pass


def lease(number: int) -> None:
    def get() -> Empty:
        lease = Empty()
        lease.a = lease.b = lease.c = lease.d = None
        return lease

    for _ in repeat(None, number):
        get()


def clock(number: int) -> None:
    for _ in repeat(None, number):
        monotonic()
        monotonic()


def greenlet(number: int) -> None:
    for _ in repeat(None, number):
        getcurrent()
        getcurrent()


def thread(number: int) -> None:
    alive, me, main = life(), getcurrent(), getcurrent()
    for _ in repeat(None, number):
        if not alive[0] or me is not main:
            raise AssertionError


def idle(number: int) -> None:
    line: deque[None] = deque(repeat(None, 10))
    for _ in repeat(None, number):
        line.append(line.popleft())


PARTS: dict[str, Loop] = {
    "with, and a lease in Python that does nothing": statement,
    "a function that makes a lease": lease,
    "the clock, twice": clock,
    "the current greenlet, twice": greenlet,
    "thread and process": thread,
    "out of a deque, and back": idle,
}


def measure(is_quick: bool) -> dict[str, Any]:
    rows = timed(PARTS, QUICK_ROUNDS if is_quick else ROUNDS, SECONDS / 40 if is_quick else SECONDS)
    return {"rows": rows, "left_out": []}
