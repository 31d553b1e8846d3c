"""Interrupting an operation at each of its switches in turn.

Under gevent an asynchronous exception can only arrive where a greenlet has switched away, so trying every switch of an
operation is exhaustive for one fault, and trying every pair of switches is for two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import greenlet


class Interrupter:
    """Throws ``exc`` into the greenlet it is told to watch, right after the ``k``-th switch out of it.

    A second fault comes from a second interrupter: for another greenlet one that is entered inside the first, for the
    same greenlet one that is given as ``then`` and counts the switches from the first fault on.
    """

    def __init__(self, k: int, exc: BaseException, then: Interrupter | None = None) -> None:
        self.exc = exc
        self.hit = False
        self.before: Callable[[], object] = lambda: None  # called in the same turn, just before the exception is thrown
        self._left = k
        self._then = then
        self._victim: Any = None
        self._is_left = False
        self._previous: Any = None

    @property
    def outcome(self) -> BaseException | None:
        """What has to come out of an operation that catches nothing; None: it was not hit."""
        if self._then is not None and self._then.hit:
            return self._then.outcome
        return self.exc if self.hit else None

    @property
    def is_over(self) -> bool:
        """Whether it has struck, or its victim got away."""
        return self.hit or self._is_left or bool(self._victim is not None and self._victim.dead)

    def watch(self) -> None:
        """Begin to count the switches out of the current greenlet, unless another is watched."""
        if self._victim is None:
            self._victim = gevent.getcurrent()

    def leave(self) -> None:
        """Stop counting: the operation is over."""
        if self._victim is gevent.getcurrent():
            self._is_left = True
        if self._then is not None:
            self._then.leave()

    def _trace(self, event: str, switch: tuple[Any, Any]) -> None:
        if self._previous is not None:
            self._previous(event, switch)
        origin, target = switch
        if event != "switch" or origin is not self._victim or target is origin or self._is_left or not self._left:
            return
        self._left -= 1
        if not self._left:
            gevent.get_hub().loop.run_callback(self._strike)

    def _strike(self) -> None:
        if self._victim.dead or self._is_left:
            return
        self.hit = True
        self.before()
        if self._then is not None:
            self._then._victim = self._victim
        self._victim.throw(self.exc)

    def __enter__(self) -> Interrupter:
        self._previous = greenlet.settrace(self._trace)
        if self._then is not None:
            self._then.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._then is not None:
            self._then.__exit__()
        greenlet.settrace(self._previous)
