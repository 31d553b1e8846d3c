"""What the simulated benchmarks and tests share beside the simulation itself: arrivals, and quantiles."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from geventconnpool.testing._simulation import Call, Client, World


def poisson(world: World, rng: Random, rate: float, until: float, arrive: Callable[..., None]) -> None:
    """Have calls arrive at so many per second, independently of each other (an open loop)."""
    when = world.now
    while (when := when + rng.expovariate(rate)) < until:
        world.at(when, arrive)


def evenly(world: World, rate: float, until: float, arrive: Callable[..., None]) -> None:
    """Have calls arrive one by one at equal distances."""
    for n in range(int(rate * (until - world.now))):
        world.at(world.now + n / rate, arrive)


def closed_loop(client: Client, callers: int, total: int) -> Callable[[], bool]:
    """Have so many callers call one time after the other, ``total`` calls in all; return whether they have."""
    done = 0

    def again(call: Call | None = None) -> None:
        nonlocal done
        done += call is not None
        if len(client.calls) < total:
            client.call(again)

    for _ in range(callers):
        client.world.at(client.world.now, again)
    return lambda: done >= total


def quantile(values: list[float], q: float) -> float:
    """Return the smallest value that a share ``q`` of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(q * len(ordered) + 0.5) - 1))]
