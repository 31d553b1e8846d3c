"""When to look a service up again. Pure: told the time.

    starting --succeeded--> fresh <--failed / succeeded--> stale
       |                      ^                              |
       +----succeeded, empty--+--> empty <--succeeded, empty-+

A failure before the first answer leaves ``starting``, and a failure after an empty answer leaves ``empty``: the last
good answer stays, whatever it was.
"""

from __future__ import annotations

import math
from random import Random
from typing import Literal

from geventconnpool._backoff import exponential, spread

State = Literal["starting", "fresh", "stale", "empty"]


class Refresh:
    """The due time of the next look-up, in monotonic seconds, and what the last ones told.

    ``min_refresh`` and ``max_refresh`` bound the time to live that an answer asks for, in seconds.
    """

    def __init__(self, min_refresh: float, max_refresh: float, rng: Random) -> None:
        self.due = -math.inf  # inf while a look-up is under way, and for ever after an answer without a ttl
        self.state: State = "starting"
        self.since: float | None = None  # when `state` was entered; None before the first look-up
        self.last_error: BaseException | None = None  # None again after an answer
        self.generation = 0  # answers so far
        self._min_refresh = min_refresh
        self._max_refresh = max_refresh
        self._rng = rng
        self._failures = 0  # in a row
        self._started_at = -math.inf
        self._is_running = False

    def started(self, now: float) -> None:
        """A look-up has begun. Exactly one of :meth:`succeeded` and :meth:`failed` must follow."""
        if self._is_running:
            raise RuntimeError("a look-up is under way already")
        self._is_running = True
        self._started_at = now
        self.due = math.inf
        if self.since is None:
            self.since = now

    def succeeded(self, ttl: float | None, empty: bool, now: float) -> None:
        """The look-up answered, for ``ttl`` seconds (None: for ever); ``empty``: the service has no endpoint."""
        self._finished()
        self._failures = 0
        self.generation += 1
        self.last_error = None
        self._enter("empty" if empty else "fresh", now)
        self.due = math.inf if ttl is None else now + self._interval(ttl)

    def failed(self, error: BaseException, now: float) -> None:
        """The look-up failed: what is known stays, and DNS is asked again with back-off."""
        self._finished()
        self.last_error = error
        if self.state == "fresh":
            self._enter("stale", now)
        delay = exponential(self._failures, base=1.0, factor=1.6, cap=30.0)
        self.due = now + spread(delay, 0.8, 1.2, self._rng)
        self._failures += 1

    def ask(self, now: float) -> None:
        """Something suggests that the answer is out of date: look again soon.

        Not within ``min_refresh`` seconds of the last start, and not at all while a look-up is under way or the answer
        holds for ever.
        """
        if self.due != math.inf:
            self.due = min(self.due, max(now, self._started_at + self._min_refresh))

    def _interval(self, ttl: float) -> float:
        # Later than the ttl, never earlier: a caching resolver would only give its old copy once more.
        return spread(max(self._min_refresh, min(ttl, self._max_refresh)), 1.0, 1.1, self._rng)

    def _finished(self) -> None:
        if not self._is_running:
            raise RuntimeError("no look-up is under way")
        self._is_running = False

    def _enter(self, state: State, now: float) -> None:
        if state != self.state:
            self.state = state
            self.since = now
