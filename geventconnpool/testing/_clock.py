"""Time that passes when a test says so, and candidates of its own making: for what is told ``now``. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from geventconnpool import _check
from geventconnpool.cluster._endpoints import Endpoint


class VirtualClock:
    """A clock that only :meth:`advance` moves; call it to read it, as ``time.monotonic``.

    ``now`` is what it shows, in seconds. For everything that is told the time, such as ``Balancer.choose`` and
    ``RetryBudget``, and for code of yours that takes a clock. Pools and ``@retry`` go by the real one.
    """

    def __init__(self, now: float = 0.0) -> None:
        self._now = _check.seconds("now", now)

    @property
    def now(self) -> float:
        """What it shows, in seconds."""
        return self._now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Let so many seconds pass, and return what it shows then. Raises ValueError for less than 0."""
        self._now += _check.seconds("seconds", seconds)
        return self._now

    def __repr__(self) -> str:
        return f"VirtualClock(now={self._now})"


@dataclass(slots=True)
class SimpleCandidate:
    """What a balancer is given to choose from, as a plain value: see :class:`~geventconnpool.cluster.Candidate`."""

    endpoint: Endpoint
    weight: float = 1.0
    in_flight: int = 0
    latency: float | None = None
