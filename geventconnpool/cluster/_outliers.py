"""When an endpoint is an outlier, and for how long it is ejected. Pure.

The words are those of Envoy and gRPC (gRFC A50); the arithmetic counts the endpoint about to be ejected, so that it
works for clusters of two and three, where a percentage of ten silently never ejects anybody (Envoy #34666).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from random import Random

from geventconnpool import _check
from geventconnpool._backoff import exponential, spread


@dataclass(frozen=True)
class OutlierDetection:
    """Eject an endpoint after ``consecutive_failures`` failures of one kind (connects, keepalives, calls) in a row.

    ``base_ejection_time`` (seconds) doubles with every relapse up to ``max_ejection_time``; up to ``jitter`` of it is
    added. At most ``max_ejection_percent`` of the endpoints of one priority are ejected, never the last one, unless a
    later priority can take over. Raises ValueError or TypeError, naming the parameter, for values that make no sense.
    """

    consecutive_failures: int = 5
    base_ejection_time: float = 1.0
    max_ejection_time: float = 60.0
    jitter: float = 0.5
    max_ejection_percent: float = 50

    def __post_init__(self) -> None:
        _check.integer("consecutive_failures", self.consecutive_failures, 1)
        _check.seconds("base_ejection_time", self.base_ejection_time, positive=True)
        _check.seconds("max_ejection_time", self.max_ejection_time)
        _check.number("jitter", self.jitter, 0, 1)
        _check.number("max_ejection_percent", self.max_ejection_percent, 0, 100)
        if self.base_ejection_time > self.max_ejection_time:
            raise ValueError(
                f"base_ejection_time must be at most max_ejection_time={self.max_ejection_time!r}, "
                f"not {self.base_ejection_time!r}"
            )

    def limit(self, n: int) -> int:
        """Return how many of a priority's ``n`` endpoints may be ejected: 1:0, 2:1, 3:2, 4:2, 5:3, 10:5 at 50 %."""
        return min(n - 1, ceil(n * self.max_ejection_percent / 100))

    def is_longest(self, relapses: int) -> bool:
        """Say whether another relapse would make the ejection no longer."""
        return self.base_ejection_time * 2.0**relapses >= self.max_ejection_time

    def ejection_time(self, relapses: int, rng: Random) -> float:
        """Return for how many seconds to eject an endpoint that came back and failed again ``relapses`` times."""
        seconds = exponential(relapses, base=self.base_ejection_time, factor=2.0, cap=self.max_ejection_time)
        return spread(seconds, 1.0, 1.0 + self.jitter, rng)
