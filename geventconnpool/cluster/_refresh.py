"""What a look-up does to the set of endpoints, and when to look again. Pure: told the time.

    starting --answer--> FRESH <--answer-- every other state
       |                   |  \\
       |           failure |   \\ no such name, no data
       |                   v    v
       |                STALE <--> HELD              the set is kept
       |                   |        |
       |     for max_stale |        | for empty_hold and three look-ups in a row
       |                   v        v
       +--held so long-->  EMPTY                     nothing is left; so is UNAVAILABLE: "." says so decidedly

======================  ===================================  =========================================================
the look-up says        the set                              the next look-up
======================  ===================================  =========================================================
an answer               is what the answer says              its ttl within [min_refresh, max_refresh], plus up to 10 %
``.`` (RFC 2782)        empty at once                        as above
no such name, no data   kept until it is believed            every max(min_refresh, min(5 s, empty_hold / 3)); later
                                                             the negative ttl (RFC 2308), at most 30 s
a failure               kept for ``max_stale``               1 s x 1.6^n up to 30 s, +-20 %
======================  ===================================  =========================================================

To believe in "no such name" at once has taken services down while their DNS was being repaired (Envoy #2691), and
never to believe it sends calls to hosts that are gone (Envoy #20890): it is believed when it has lasted. A failure in
between begins that anew, since a DNS server in trouble is no witness. A failure before the first answer leaves
``starting``, one that finds the set empty leaves it as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from geventconnpool._backoff import dns_delay, spread
from geventconnpool.cluster._endpoints import Endpoint, NoRecords, Resolution
from geventconnpool.events import DiscoveryState

LOOKUPS_TO_BELIEVE = 3  # that say in a row that there is nothing
HELD_REFRESH = 5.0  # seconds, at most, between these
MAX_EMPTY_REFRESH = 30.0  # seconds: a negative ttl of hours would hide a service that is back
FEWEST_TO_DOUBT = 3  # endpoints, of which more than half would be lost


@dataclass(frozen=True, slots=True)
class Bounds:
    """The patience of a resolver, in seconds. ``empty_hold`` and ``max_stale`` None: for ever."""

    min_refresh: float = 5.0
    max_refresh: float = 300.0
    empty_hold: float | None = 30.0
    max_stale: float | None = None


DEFAULT_BOUNDS = Bounds()


class Refresh:
    """The set of endpoints that is believed in, and the due time of the next look-up, in monotonic seconds."""

    def __init__(self, bounds: Bounds, rng: Random) -> None:
        self.endpoints: tuple[Endpoint, ...] | None = None  # None: nothing is known yet
        self.due = -math.inf  # inf while a look-up is under way, and for ever after an answer without a ttl
        self.gives_up_at = math.inf  # when a stale set has been kept for long enough
        self.state: DiscoveryState = "starting"
        self.since: float | None = None  # when `state` was entered; None before the first look-up
        self.outcome = ""  # of the last look-up, in words
        self.last_error: BaseException | None = None  # None again after an answer
        self.ttl: float | None = None  # of the last answer, its addresses included
        self.records: int | None = None  # in the last answer
        self.generation = 0  # answers so far
        self._bounds = bounds
        self._rng = rng
        self._failures = 0  # in a row
        self._denials = 0  # in a row
        self._denied_since = 0.0  # the first of them
        self._unanswered_since: float | None = None  # the first look-up since the last answer
        self._started_at = -math.inf
        self._is_running = False

    @property
    def alarm(self) -> float:
        """When there is something to do next."""
        return min(self.due, self.gives_up_at)

    def started(self, now: float) -> None:
        """A look-up has begun. Exactly one of :meth:`answered`, :meth:`denied` and :meth:`failed` must follow."""
        if self._is_running:
            raise RuntimeError("a look-up is under way already")
        self._is_running = True
        self._started_at = now
        self.due = math.inf
        if self.since is None:
            self.since = now

    def given(self, resolution: Resolution, now: float) -> None:
        """Something is known before the first look-up, which is due at once unless that holds for ever."""
        self.started(now)
        self.answered(resolution, now)
        self.due = min(self.due, math.inf if resolution.ttl is None else now)

    def is_doubtful(self, resolution: Resolution) -> bool:
        """Say whether an answer loses so many endpoints that it should be asked for again before it is believed.

        Consul leaves records out of its datagrams without a word (its ``enable_truncate``); TCP brings them all.
        """
        known, named = self.endpoints or (), set(resolution.endpoints)
        if not named or len(known) < FEWEST_TO_DOUBT:
            return False
        return 2 * sum(endpoint not in named for endpoint in known) > len(known)

    def answered(self, resolution: Resolution, now: float) -> None:
        """The look-up was answered; without endpoints the service is decidedly not available."""
        self._finished(None, resolution.outcome or f"{len(resolution.endpoints)} endpoints", now)
        self.generation += 1
        self.endpoints = resolution.endpoints
        self.ttl, self.records = resolution.ttl, resolution.records
        self._enter("fresh" if resolution.endpoints else "unavailable", now)
        self.due = math.inf if resolution.ttl is None else now + self._interval(resolution.ttl)

    def denied(self, error: NoRecords, now: float) -> None:
        """The look-up told that there is no such name, or nothing of what was asked for."""
        self._finished(error, _in_words(error), now)
        if not self._denials:
            self._denied_since = now
        self._denials += 1
        if self._is_believed(now):
            self._give_up(now)
            self.due = now + self._interval_of_nothing(error.ttl)
            return
        if self.endpoints is not None:
            self._enter("held", now)
        hold = self._bounds.empty_hold
        self.due = now + max(self._bounds.min_refresh, HELD_REFRESH if hold is None else min(HELD_REFRESH, hold / 3))

    def failed(self, error: BaseException, now: float) -> None:
        """The look-up failed: what is known stays, and DNS is asked again with back-off."""
        failures = self._failures
        self._finished(error, _in_words(error), now)
        self._failures = failures + 1
        self.due = now + spread(dns_delay(failures), 0.8, 1.2, self._rng)
        if self.endpoints:
            self._enter("stale", now)
            if self._bounds.max_stale is not None and self._unanswered_since is not None:
                self.gives_up_at = self._unanswered_since + self._bounds.max_stale
                self.tick(now)

    def tick(self, now: float) -> None:
        """Give a stale set up when it has been kept for ``max_stale``."""
        if now >= self.gives_up_at:
            self._give_up(now)

    def ask(self, now: float) -> None:
        """Something suggests that the answer is out of date: look again soon.

        Not within ``min_refresh`` seconds of the last start, and not at all while a look-up is under way or the answer
        holds for ever.
        """
        if self.due != math.inf:
            self.due = min(self.due, max(now, self._started_at + self._bounds.min_refresh))

    def _is_believed(self, now: float) -> bool:
        hold = self._bounds.empty_hold
        if self.endpoints == () or hold == 0:
            return True  # there is nothing to lose, or nobody wants to wait
        return hold is not None and self._denials >= LOOKUPS_TO_BELIEVE and now - self._denied_since >= hold

    def _give_up(self, now: float) -> None:
        self.endpoints = ()
        self.gives_up_at = math.inf
        self._enter("empty", now)

    def _interval(self, ttl: float) -> float:
        # Later than the ttl, never earlier: a caching resolver would only give its old copy once more.
        return spread(max(self._bounds.min_refresh, min(ttl, self._bounds.max_refresh)), 1.0, 1.1, self._rng)

    def _interval_of_nothing(self, ttl: float | None) -> float:
        # Without an SOA record nobody may remember that there is nothing (RFC 2308, section 5).
        longest = spread(MAX_EMPTY_REFRESH, 0.9, 1.0, self._rng)
        return max(self._bounds.min_refresh, min(spread(ttl or 0.0, 1.0, 1.1, self._rng), longest))

    def _finished(self, error: BaseException | None, outcome: str, now: float) -> None:
        """Note the end of a look-up, and end all series but the one it may belong to."""
        if not self._is_running:
            raise RuntimeError("no look-up is under way")
        self._is_running = False
        self._failures = 0
        self.gives_up_at = math.inf
        self.last_error, self.outcome = error, outcome
        if not isinstance(error, NoRecords):
            self._denials = 0
        if error is None:
            self._unanswered_since = None
        elif self._unanswered_since is None:
            self._unanswered_since = now

    def _enter(self, state: DiscoveryState, now: float) -> None:
        if state != self.state:
            self.state = state
            self.since = now


def _in_words(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # it may be of the user's making
        return type(error).__name__
