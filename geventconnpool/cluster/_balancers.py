"""Which endpoint the next call goes to. Pure; the rng is a constructor parameter.

A balancer chooses among candidates that have an idle connection, or room to open one: the call then takes the best of
those that have. RFC 2782 asks for a share in proportion to the weight; weight 0 means "hardly ever", not "never".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import inf
from random import Random
from typing import TYPE_CHECKING, Protocol, TypeVar

from geventconnpool._check import show
from geventconnpool.cluster._load import FLOOR, least

if TYPE_CHECKING:
    from geventconnpool.cluster._endpoints import Endpoint

HARDLY_EVER = 0.01  # the weight that stands for 0: RFC 2782 gives it "a very small chance of being selected"


def effective_weight(weight: int) -> float:
    """Return what a weight of DNS counts for."""
    return float(weight) or HARDLY_EVER


class Candidate(Protocol):
    """An endpoint that can serve a call: what a balancer may know about it.

    ``weight`` is above 0 (weight 0 in DNS is a hundredth); ``latency`` is the average of its calls in seconds, None
    before the first; ``in_flight`` is the number of calls under way.
    """

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def weight(self) -> float: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def latency(self) -> float | None: ...


C = TypeVar("C", bound=Candidate)

REMEMBERED = 1000  # endpoints whose credit a round robin keeps while they are no candidates


class Balancer(Protocol):
    """Anything with this one method; called at every check-out, with at least one candidate; must not switch."""

    def choose(self, candidates: Sequence[Candidate], now: float, /) -> Candidate: ...


def make_balancer(factory: Callable[[], Balancer]) -> Balancer:
    """Return the balancer that ``factory`` makes; raise TypeError if it makes none."""
    if not callable(factory):
        raise TypeError(f"balancer must be a class or another callable without arguments, not {show(factory)}")
    balancer = factory()
    if not callable(getattr(balancer, "choose", None)):
        raise TypeError(f"balancer must make an object with a method choose, not {show(balancer)}")
    return balancer


class PeakEWMA:
    """The candidate whose next call is expected to take the least time; ``cluster._load`` says how that is worked out.

    Candidates of somebody else's making, which keep no account of their load, are compared by ``latency`` times calls
    in flight over ``weight``.
    """

    sample = 32  # of a cluster with more endpoints than that, a few at random are candidates

    def choose(self, candidates: Sequence[C], now: float) -> C:
        """Return the candidate for the next call, at ``now`` in seconds of ``time.monotonic()``."""
        try:
            load = least([c.load for c in candidates])  # type: ignore[attr-defined]
        except AttributeError:
            return min(candidates, key=_expected)
        chosen: C = load.member
        load.chosen(chosen.in_flight + 1, now)
        return chosen


def _expected(candidate: Candidate) -> float:
    """Return what can be told of a candidate that keeps no account of its load."""
    return ((candidate.latency or 0.0) + FLOOR) * (candidate.in_flight + 1) / candidate.weight


class LeastLoaded:
    """The candidate with the fewest calls in flight for its weight; equals are drawn in proportion to their weights."""

    def __init__(self, rng: Random | None = None) -> None:
        self._rng = rng or Random()

    def choose(self, candidates: Sequence[C], now: float) -> C:
        """Return the candidate for the next call, at ``now`` in seconds of ``time.monotonic()``."""
        least = inf
        lightest: list[C] = []
        for c in candidates:
            load = c.in_flight / c.weight
            if load < least:
                least = load
                lightest = [c]
            elif load == least:
                lightest.append(c)
        if len(lightest) == 1:
            return self._unless_hardly_ever(lightest[0], candidates, now)
        return self._draw(lightest)

    def _draw(self, lightest: Sequence[C]) -> C:
        left = self._rng.random() * sum([c.weight for c in lightest])
        for c in lightest:
            left -= c.weight
            if left < 0:
                return c
        return lightest[-1]

    def _unless_hardly_ever(self, lightest: C, candidates: Sequence[C], now: float) -> C:
        """Being idle while all others are busy is no reason to choose weight 0."""
        if lightest.weight > HARDLY_EVER or self._rng.random() < HARDLY_EVER:
            return lightest
        others = [c for c in candidates if c.weight > HARDLY_EVER]
        return self.choose(others, now) if others else lightest


class RoundRobin:
    """One after the other, in proportion to the weights and without bursts.

    The smooth weighted round robin of nginx: everybody gains its weight, the richest is chosen and pays for all.
    """

    def __init__(self) -> None:
        self._credit: dict[Hashable, float] = {}

    def choose(self, candidates: Sequence[C], now: float) -> C:
        """Return the candidate for the next call, at ``now`` in seconds of ``time.monotonic()``."""
        credit = self._credit
        for c in candidates:
            credit[c.endpoint] = credit.pop(c.endpoint, 0.0) + c.weight  # to the end: the longest unseen comes first
        best = max(candidates, key=lambda c: credit[c.endpoint])
        credit[best.endpoint] -= sum(c.weight for c in candidates)
        while len(credit) > len(candidates) + REMEMBERED:
            del credit[next(iter(credit))]
        return best
