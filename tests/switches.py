"""Interrupting an operation at each of its switches in turn.

Under gevent an asynchronous exception can only arrive where a greenlet has switched away, so trying every switch of an
operation is exhaustive for one fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import greenlet


class Interrupter:
    """Throws ``exc`` into the greenlet it is told to watch, right after the ``k``-th switch out of it."""

    def __init__(self, k: int, exc: BaseException, before: Callable[[], object] = lambda: None) -> None:
        self.exc = exc
        self.hit = False
        self._left = k
        self._before = before  # called in the same turn of the loop, just before the exception is thrown
        self._victim: Any = None

    def watch(self) -> None:
        """Begin to count the switches out of the current greenlet, unless another is watched."""
        if self._victim is None:
            self._victim = gevent.getcurrent()

    def leave(self) -> None:
        """Stop counting: the operation is over."""
        if self._victim is gevent.getcurrent():
            self._left = 0

    def _trace(self, event: str, switch: tuple[Any, Any]) -> None:
        origin, target = switch
        if event == "switch" and origin is self._victim and target is not origin and self._left:
            self._left -= 1
            if not self._left:
                gevent.get_hub().loop.run_callback(self._strike)

    def _strike(self) -> None:
        if not self._victim.dead:
            self.hit = True
            self._before()
            self._victim.throw(self.exc)

    def __enter__(self) -> Interrupter:
        greenlet.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        greenlet.settrace(None)
