"""Delays between repeated attempts: exponential, capped, jittered. Pure."""

from __future__ import annotations

from random import Random


def exponential(failures: int, *, base: float, factor: float, cap: float) -> float:
    """Return ``base * factor ** failures`` seconds, at most ``cap``, for any number of failures.

    A float power overflows after some 1,500 failures (half a day of outage at 30 s), so an overflow is the cap.
    """
    if not base:
        return 0.0
    try:
        return min(cap, base * factor**failures)
    except OverflowError:
        return cap


def dns_delay(failures: int) -> float:
    """Return how long a name server is left alone after so many failures in a row, in seconds, without jitter."""
    return exponential(failures, base=1.0, factor=1.6, cap=30.0)


def spread(seconds: float, low: float, high: float, rng: Random) -> float:
    """Return ``seconds`` times a factor drawn evenly from [low, high]: clients that failed together part ways."""
    return seconds * rng.uniform(low, high)
