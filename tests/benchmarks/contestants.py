"""Who competes: the product as it comes, and the balancers of others, rebuilt from their sources.

Those others eject nobody, and choose through the protocol that a balancer of one's own would use, so that all that
differs is the choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import exp
from random import Random
from typing import Any, Protocol

from geventconnpool.cluster import Endpoint, LeastLoaded, OutlierDetection, PeakEWMA, RoundRobin
from geventconnpool.cluster._balancers import Balancer, C
from geventconnpool.testing._simulation import Client, Server, World

DECAY = 10.0  # seconds
UNKNOWN = 1e9  # cost of a call in flight where none has returned yet: beyond any that is known
DEFAULT_RTT = 1.0  # seconds
PENALTY = 5.0  # seconds


class Draw(Protocol):
    """Which of the candidates are looked at."""

    def __call__(self, candidates: Sequence[C], rng: Random) -> Sequence[C]: ...


@dataclass(frozen=True)
class Contestant:
    """A balancer, and whether failing endpoints are ejected."""

    name: str
    make: Callable[[Random], Balancer]
    outlier: OutlierDetection | None = None

    def client(self, world: World, servers: dict[Endpoint, Server], seed: object, **options: Any) -> Client:
        balancer = self.make(Random(f"{self.name} {seed}"))
        return Client(world, servers, balancer, seed=seed, outlier=self.outlier, **options)


# -- who is looked at --------------------------------------------------------------------------------------------------


def with_replacement(candidates: Sequence[C], rng: Random) -> Sequence[C]:
    """Two at random, which may be the same one twice (Envoy, gRPC A48)."""
    number = len(candidates)
    return [candidates[int(rng.random() * number)], candidates[int(rng.random() * number)]]


def distinct(candidates: Sequence[C], rng: Random) -> Sequence[C]:
    """Two different ones at random (Finagle, tower, YARP)."""
    number = len(candidates)
    if number == 1:
        return candidates
    first, second = int(rng.random() * number), int(rng.random() * (number - 1))
    return [candidates[first], candidates[second + (second >= first)]]


def everyone(candidates: Sequence[C], rng: Random) -> Sequence[C]:
    return candidates


# -- who is chosen -----------------------------------------------------------------------------------------------------


class Chance:
    """Anyone, in proportion to the weights."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, candidates: Sequence[C], now: float) -> C:
        return self._rng.choices(candidates, [c.weight for c in candidates])[0]


class FewestInFlight:
    """Of those drawn, the one with the fewest calls in flight."""

    def __init__(self, draw: Draw, rng: Random) -> None:
        self._draw = draw
        self._rng = rng

    def choose(self, candidates: Sequence[C], now: float) -> C:
        return min(self._draw(candidates, self._rng), key=lambda c: c.in_flight)


class PeakAverage:
    """An average of what is seen at uneven times, at once as high as any peak (Finagle's ``PeakEwma.Metric``)."""

    __slots__ = ("at", "value")

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.at = 0.0

    def observe(self, seconds: float, now: float) -> float:
        """Take note; 0 is what Finagle observes at every look, so that the average falls while nothing returns."""
        if seconds > self.value:
            self.value = seconds
        else:
            fade = exp((self.at - now) / DECAY)
            self.value = self.value * fade + seconds * (1.0 - fade)
        self.at = now
        return self.value

    def at_time(self, now: float) -> float:
        return self.value * exp((self.at - now) / DECAY)

    def peak(self, seconds: float, now: float) -> None:
        """Take note, after Linkerd: what has faded by now counts, not what was."""
        if seconds > self.at_time(now):
            self.value, self.at = seconds, now
        else:
            self.observe(seconds, now)


class FinaglePeakEWMA:
    """Of those drawn, the one with the least average latency times calls in flight, this one included."""

    def __init__(self, draw: Draw, rng: Random) -> None:
        self._draw = draw
        self._rng = rng
        self._average: dict[Hashable, PeakAverage] = defaultdict(PeakAverage)

    def choose(self, candidates: Sequence[C], now: float) -> C:
        return min(self._draw(candidates, self._rng), key=lambda c: self._cost(c.endpoint, c.in_flight, now))

    def _cost(self, endpoint: Hashable, in_flight: int, now: float) -> float:
        average = self._average[endpoint].observe(0.0, now)
        if average == 0.0 and in_flight:
            return UNKNOWN + in_flight
        return average * (in_flight + 1)

    def ended(self, endpoint: Hashable, seconds: float, is_good: bool, now: float) -> None:
        self._average[endpoint].observe(seconds, now)


class LinkerdPeakEWMA:
    """The same, but a call that failed makes it cost ``PENALTY`` seconds, decaying, if it would cost less.

    linkerd2-proxy, ``load-biaser``, where an answer that says "failed" is meant; here it is any call that fails.
    """

    def __init__(self, draw: Draw, rng: Random) -> None:
        self._draw = draw
        self._rng = rng
        self._average: dict[Hashable, PeakAverage] = defaultdict(lambda: PeakAverage(DEFAULT_RTT))
        self._penalty: dict[Hashable, PeakAverage] = defaultdict(PeakAverage)

    def choose(self, candidates: Sequence[C], now: float) -> C:
        return min(self._draw(candidates, self._rng), key=lambda c: self._cost(c.endpoint, c.in_flight, now))

    def _cost(self, endpoint: Hashable, in_flight: int, now: float) -> float:
        cost = self._average[endpoint].at_time(now) * (in_flight + 1)
        return max(cost, self._penalty[endpoint].at_time(now))

    def ended(self, endpoint: Hashable, seconds: float, is_good: bool, now: float) -> None:
        self._average[endpoint].peak(seconds, now)
        if not is_good:
            self._penalty[endpoint].peak(PENALTY, now)


ROUND_ROBIN = Contestant("round robin", lambda rng: RoundRobin())
RANDOM = Contestant("random", Chance)
P2C_REPLACING = Contestant("least loaded of 2, with replacement", lambda rng: FewestInFlight(with_replacement, rng))
P2C = Contestant("least loaded of 2", lambda rng: FewestInFlight(distinct, rng))
SCAN = Contestant("least loaded of all", LeastLoaded)
P2C_EWMA = Contestant("Peak EWMA of 2", lambda rng: FinaglePeakEWMA(distinct, rng))
SCAN_EWMA = Contestant("Peak EWMA of all", lambda rng: FinaglePeakEWMA(everyone, rng))
PENALISED = Contestant("Peak EWMA of 2, failures 5 s", lambda rng: LinkerdPeakEWMA(distinct, rng))
ROUND_ROBIN_EJECTING = Contestant("RoundRobin, ejecting", lambda rng: RoundRobin(), OutlierDetection())
LEAST_LOADED_EJECTING = Contestant("LeastLoaded, ejecting", LeastLoaded, OutlierDetection())
OURS = Contestant("ours", lambda rng: PeakEWMA(), OutlierDetection())

REFERENCES = (ROUND_ROBIN, RANDOM, P2C_REPLACING, P2C, SCAN, P2C_EWMA, SCAN_EWMA, PENALISED)
EVERYBODY = (*REFERENCES, OURS)
