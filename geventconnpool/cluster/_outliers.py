"""When an endpoint is an outlier, and for how long it is ejected. Pure.

The words are those of Envoy and gRPC (gRFC A50); the arithmetic counts the endpoint about to be ejected, so that it
works for clusters of two and three, where a percentage of ten silently never ejects anybody (Envoy #34666).

**Two reasons to eject.** Failures in a row find an endpoint that is dead. One that fails every third call never has
five in a row, which is what percentages are for. With A50's figures (85 % of 50 calls in 10 s, five hosts) they are
inert in a small cluster: five in a row come long before. A low threshold alone would eject the innocent when a request
is bad, or the database behind all servers is down: A50 looks at each endpoint by itself. The calls that an ejected
endpoint loses go to the others, so it is ejected only if they do clearly better. Of the calls that ended within one
and the same time, at most ``interval`` seconds long (30, as Finagle has it: in A50's 10 s a small cluster sees little),

* at least ``failure_percentage_threshold`` percent failed (YARP has 30 as well, Finagle and Linkerd 20), of at least
  ``failure_percentage_request_volume`` calls;
* with it, ``failure_percentage_minimum_hosts`` available endpoints of its priority had as many calls (so Envoy, and
  A50 since grpc/proposal #322); those with less are not looked at, for one failed call of one is 100 %
  (apple/servicetalk #3551);
* its share of failed calls is more than ``TIMES`` that of these others, taken together (at most 100 of them, or a
  failure of all would cost the more time the more there are): of two that are ill, none should go for being a little
  worse;
* and the difference is at least ``DEVIATIONS`` standard deviations of what chance would make of one common share (the
  two-proportion z-test): ten calls prove little, and it is looked at with every failed call.

When all fail alike, chance remains: ten endpoints with a call a second each, of which 5 % or 30 % fail, have two
ejections per hour by percentage (and at 30 % sixty by five failures in a row). An endpoint that fails a third of its
calls is found after some 30 of them if it is one of two, after 15 if it is one of more.

**Counting.** A good call is the hot path: it adds one, and looks at no clock. Time passes when a call fails
(:class:`Window`), for all endpoints at once: what is compared was seen in the same time. So the first failure after a
quiet time begins a new count, and a fault that begins now is not hidden by a good past. Who joins (new, or readmitted)
begins a new count for all, for it has not seen what the others have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, inf
from random import Random
from typing import Final

from geventconnpool import _check
from geventconnpool._backoff import exponential, spread

TIMES: Final = 2
DEVIATIONS: Final = 3.5


class Tally:
    """How the calls to one endpoint ended lately: in this half of the interval, and in the one before."""

    __slots__ = ("_failed_before", "_good_before", "failed", "good")

    def __init__(self) -> None:
        self.good: int = 0
        self.failed: int = 0
        self._good_before = self._failed_before = 0

    @property
    def failures(self) -> int:
        return self._failed_before + self.failed

    @property
    def calls(self) -> int:
        return self._good_before + self.good + self.failures

    def turn(self, *, keeps: bool) -> None:
        """Go on to the next half: the one that ends is kept or forgotten, what is older is forgotten."""
        self._good_before, self._failed_before = (self.good, self.failed) if keeps else (0, 0)
        self.good = self.failed = 0


class Window:
    """The time that is looked at: the half of ``interval`` seconds that it is, and the half before.

    It has no timer: it is told ``now`` before a failed call is counted. What ended since the last time counts for the
    half which that was in, so nothing is taken for younger than it is. If a whole half has passed without a failed
    call, nobody knows what is of when, and all is forgotten.
    """

    def __init__(self, interval: float = inf) -> None:
        self._interval = interval
        self._half = -inf

    def turn(self, tallies: Iterable[Tally], now: float) -> None:
        """Go on to the half that ``now`` is in. An older ``now``, of a call that was late, is of no consequence."""
        half = 2 * now // self._interval
        if half <= self._half:
            return
        keeps = half == self._half + 1
        for tally in tallies:
            tally.turn(keeps=keeps)
        self._half = half

    def restart(self) -> None:
        """Begin a new count with the next failed call."""
        self._half = -inf


@dataclass(frozen=True)
class OutlierDetection:
    """Eject an endpoint after ``consecutive_failures`` failures of one kind (connects, keepalives, calls) in a row.

    ``base_ejection_time`` (seconds) doubles with every relapse up to ``max_ejection_time``; up to ``jitter`` of it is
    added. At most ``max_ejection_percent`` of the endpoints of one priority are ejected, never the last one, unless a
    later priority can take over. An endpoint that is kept by this limit is ejected by its next failure for which there
    is room, never by the return of another: that brings nothing new about it.

    One whose calls fail now and then is ejected, too: if at least ``failure_percentage_threshold`` percent of at least
    ``failure_percentage_request_volume`` calls that ended in the last ``interval`` seconds have failed, and those to
    the other endpoints of its priority do clearly better. Together at least ``failure_percentage_minimum_hosts`` must
    have had so many calls. When all fail alike, the fault is not theirs, and nobody is ejected for a percentage.
    ``failure_percentage_threshold=None`` switches that off.

    A call fails if its block ends with a connection error. Timeouts of the pool, interruptions and other exceptions are
    neither good nor failed. Raises ValueError or TypeError, naming the parameter, for values that make no sense.
    """

    consecutive_failures: int = 5
    base_ejection_time: float = 1.0
    max_ejection_time: float = 60.0
    jitter: float = 0.5
    max_ejection_percent: float = 50
    failure_percentage_threshold: float | None = 30
    failure_percentage_minimum_hosts: int = 2
    failure_percentage_request_volume: int = 10
    interval: float = 30.0

    def __post_init__(self) -> None:
        _check.integer("consecutive_failures", self.consecutive_failures, 1)
        _check.seconds("base_ejection_time", self.base_ejection_time, positive=True)
        _check.seconds("max_ejection_time", self.max_ejection_time)
        _check.number("jitter", self.jitter, 0, 1)
        _check.number("max_ejection_percent", self.max_ejection_percent, 0, 100)
        if self.failure_percentage_threshold is not None:
            _check.number("failure_percentage_threshold", self.failure_percentage_threshold, 0, 100)
        _check.integer("failure_percentage_minimum_hosts", self.failure_percentage_minimum_hosts, 2)
        _check.integer("failure_percentage_request_volume", self.failure_percentage_request_volume, 1)
        _check.seconds("interval", self.interval, positive=True)
        if self.base_ejection_time > self.max_ejection_time:
            raise ValueError(
                f"base_ejection_time must be at most max_ejection_time={self.max_ejection_time!r}, "
                f"not {self.base_ejection_time!r}"
            )

    def limit(self, n: int) -> int:
        """Return how many of a priority's ``n`` endpoints may be ejected: 1:0, 2:1, 3:2, 4:2, 5:3, 10:5 at 50 %."""
        return min(n - 1, ceil(n * self.max_ejection_percent / 100))

    def is_worse(self, tally: Tally, others: Iterable[Tally]) -> bool:
        """Say whether so many calls failed, and so few of those to the ``others``, that the endpoint is to be ejected.

        O(1) while too few failed: then the others are not looked at.
        """
        threshold, volume = self.failure_percentage_threshold, self.failure_percentage_request_volume
        if threshold is None or tally.calls < volume or tally.failures * 100 < threshold * tally.calls:
            return False
        compared = [other for other in others if other.calls >= volume]
        if len(compared) + 1 < self.failure_percentage_minimum_hosts:
            return False
        failures, calls = sum(other.failures for other in compared), sum(other.calls for other in compared)
        return _is_clearly_more(tally.failures, tally.calls, failures, calls)

    def is_longest(self, relapses: int) -> bool:
        """Say whether another relapse would make the ejection no longer."""
        return self._doubled(relapses) >= self.max_ejection_time

    def ejection_time(self, relapses: int, rng: Random) -> float:
        """Return for how many seconds to eject an endpoint that came back and failed again ``relapses`` times."""
        return spread(self._doubled(relapses), 1.0, 1.0 + self.jitter, rng)

    def _doubled(self, relapses: int) -> float:
        return exponential(relapses, base=self.base_ejection_time, factor=2.0, cap=self.max_ejection_time)


def _is_clearly_more(failures: int, calls: int, others_failures: int, others_calls: int) -> bool:
    """Say whether ``failures`` of ``calls`` are more than twice the share of the others, and not by chance."""
    mine, theirs = failures * others_calls, others_failures * calls
    if mine <= TIMES * theirs:
        return False
    # z = (p - q) / sqrt(r * (1 - r) * (1 / n + 1 / m)), r the share of all, without its divisions.
    failed, everything = failures + others_failures, calls + others_calls
    chance = calls * others_calls * failed * (everything - failed)
    return (mine - theirs) ** 2 * everything >= DEVIATIONS**2 * chance
