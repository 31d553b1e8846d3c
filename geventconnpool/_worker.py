"""Greenlets of ours, which take no step in the child of a fork.

The child has copies of its parent's greenlets, and its hub would go on with them: a connect that is under way would
write to the parent's socket, a keepalive would read the reply that the parent waits for. To throw something into them
is no way out, since what a user's ``finally`` does is just as bad. So they stay where they are, for ever.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, TypeVar

from gevent import Greenlet, get_hub, getcurrent, sleep

from geventconnpool import _fork
from geventconnpool._fork import stamp

T = TypeVar("T")

_hushing: list[Any] = []

REST = 0.001  # seconds after a slice: a timer, since what is ready at once would come before all sockets


class Worker(Greenlet):  # type: ignore[type-arg]  # it is not generic where it runs
    """A greenlet of this process."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__(run)
        self._stamp = stamp[0]

    def adopt(self) -> None:
        """Go on in this process, the child of one that was forked by what runs in here."""
        self._stamp = _fork.current()

    def switch(self, *args: Any) -> Any:
        if stamp[0] != self._stamp:
            return _hush(args)
        return super().switch(*args)

    def throw(self, *args: Any) -> Any:
        return super().throw(*args) if stamp[0] == self._stamp else None


class Slice:
    """The part of some long work that is done in one go, in at most so many ``seconds`` of the hub's time."""

    def __init__(self, seconds: float = 0.002) -> None:
        self._seconds = seconds
        self._end = monotonic() + seconds

    def is_over(self) -> bool:
        return monotonic() >= self._end

    def rest(self) -> None:
        """Let others run, then begin the next."""
        sleep(REST)
        self._end = monotonic() + self._seconds

    def breathe(self) -> None:
        """Rest if it is over."""
        if self.is_over():
            self.rest()

    def through(self, items: Iterable[T]) -> Iterator[T]:
        """Yield all ``items``, with a rest before each that comes when it is over."""
        for item in items:
            self.breathe()
            yield item


def _adopt_current() -> None:
    me = getcurrent()
    if isinstance(me, Worker):
        me.adopt()


_fork.after_in_child(_adopt_current)


def _hush(waiters: tuple[Any, ...]) -> None:
    """Stop the watcher that would wake an inherited greenlet, else the loop would try for ever."""
    if not _hushing:
        get_hub().loop.run_callback(_hush_all)
    _hushing.extend(waiters)


def _hush_all() -> None:
    # Nobody but the collector knows who holds what is passed at the wake-up: a tuple of arguments, held by the watcher.
    # It looks through everything there is, so it is asked once for all of them.
    holders = [holder for holder in gc.get_referrers(*_hushing) if isinstance(holder, tuple)]
    _hushing.clear()
    for watcher in gc.get_referrers(*holders) if holders else ():
        if hasattr(type(watcher), "stop") and hasattr(type(watcher), "active"):
            watcher.stop()
