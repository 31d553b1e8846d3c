"""The set-ups of the load balancing benchmark: who calls whom, how often, and what goes wrong.

Each function runs its set-up once, in virtual time, and returns figures of the calls; where there is a plot to be made,
another one returns the calls themselves. The endpoint that fares differently is always the first, ``e0``. Calls begin
at 0, and all connections are open by then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from random import Random

from geventconnpool.cluster import Endpoint
from geventconnpool.testing._simulation import Call, Server, World
from tests.benchmarks.contestants import Contestant
from tests.benchmarks.simulator import closed_loop, evenly, poisson, quantile

Figures = dict[str, float]
Draw = Callable[[], float]
Span = tuple[float, float]

OPENING = 0.1  # seconds for all connections to open
PATIENCE = 10.0  # seconds after the last call for all to return
NEVER = inf, inf
PING = 0.0005  # seconds that a keepalive takes
AT_ONCE = 0.0001  # seconds that a failure takes
ODD = "e0"

# The latencies of Finagle's benchmark (``real_latencies.data``, 86,333 recorded calls), in milliseconds, by quantile.
# The file is not at hand: these are its published quantiles, and we draw from the straight lines between them.
RECORDED = ((0.0, 164.1), (0.5, 167.5), (0.9, 176.7), (0.99, 192.3), (1.0, 200.0))


class Backend:
    """A server without a queue: however much is in flight, a call takes what is drawn."""

    def __init__(
        self,
        draw: Draw,
        *,
        slow: Span = NEVER,
        slowed: Callable[[float], float] = lambda seconds: seconds,
        fails: Span = NEVER,
        is_grey: bool = False,
    ) -> None:
        self._draw = draw
        self._slow = slow
        self._slowed = slowed
        self._fails = fails
        self._is_grey = is_grey  # keepalives pass where calls fail

    def call(self, now: float) -> tuple[float, bool]:
        if _is_within(self._fails, now):
            return AT_ONCE, False
        seconds = self._draw()
        return (self._slowed(seconds) if _is_within(self._slow, now) else seconds), True

    def ping(self, now: float) -> tuple[float, bool]:
        return PING, self._is_grey or not _is_within(self._fails, now)

    def connect(self, now: float) -> bool:
        return True


class SingleBackend:
    """A server that serves one call at a time, first come, first served."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._free_at = 0.0

    def call(self, now: float) -> tuple[float, bool]:
        self._free_at = max(self._free_at, now) + self._draw()
        return self._free_at - now, True

    def ping(self, now: float) -> tuple[float, bool]:
        return PING, True

    def connect(self, now: float) -> bool:
        return True


def _is_within(span: Span, now: float) -> bool:
    return span[0] <= now < span[1]


def recorded(rng: Random) -> float:
    """Draw one of the recorded latencies, in seconds."""
    share = rng.random()
    at = max(1, bisect_left(RECORDED, (share, 0.0)))
    (low, least), (high, most) = RECORDED[at - 1 : at + 1]
    return (least + (most - least) * (share - low) / (high - low)) / 1000


def _dice(seed: object, server: int) -> Random:
    """One per server: the n-th call to it takes as long whoever chose it."""
    return Random(f"{seed} {server}")


def _endpoints(number: int) -> list[Endpoint]:
    return [Endpoint(f"e{i}", 1) for i in range(number)]


def _arrivals(seed: object) -> Random:
    return Random(f"arrivals {seed}")


def _open_world() -> World:
    return World(-OPENING)


# -- figures -----------------------------------------------------------------------------------------------------------


def between(calls: Iterable[Call], begin: float, end: float) -> list[Call]:
    """Return the calls that were made in that time."""
    return [call for call in calls if begin <= call.at < end]


def share(calls: list[Call], is_so: Callable[[Call], bool]) -> float:
    """Return of how many per cent of the calls something is true."""
    return 100 * sum(map(is_so, calls)) / len(calls)


def went_to(name: str) -> Callable[[Call], bool]:
    return lambda call: call.place == name


def failed(call: Call) -> bool:
    return not call.is_good


def quantiles(calls: Iterable[Call], *asked: float, unit: str = "ms") -> Figures:
    scale = {"ms": 1e3, "us": 1e6}[unit]
    seconds = sorted(call.seconds for call in calls)
    return {f"p{100 * q:g} {unit}": scale * quantile(seconds, q) for q in asked}


# -- the set-ups -------------------------------------------------------------------------------------------------------


def linkerd_calls(contestant: Contestant, seed: int, seconds: float = 60.0) -> list[Call]:
    world, slow = _open_world(), (15.0, 45.0)
    draws = [partial(recorded, _dice(seed, i)) for i in range(11)]
    first = Backend(draws[0], slow=slow, slowed=lambda usual: 2.0)
    servers: list[Server] = [first, *map(Backend, draws[1:])]
    client = contestant.client(world, dict(zip(_endpoints(11), servers, strict=True)), seed, size=200)
    world.run(0.0)
    evenly(world, 1000, seconds, client.call)
    world.run(seconds + PATIENCE)
    return client.calls


def linkerd(contestant: Contestant, seed: int, seconds: float = 60.0) -> Figures:
    """Beyond Round Robin: Load Balancing for Latency (linkerd.io, March 2016).

    One client, 11 servers that replay recorded latencies, 1000 calls a second for 60 s; from 15 to 45 s one of them
    takes 2 s for every call. A call is a success if it is answered within 1 s.
    """
    calls = linkerd_calls(contestant, seed, seconds)
    return {
        "within 1 s %": share(calls, lambda call: call.seconds <= 1.0),
        **quantiles(calls, 0.95, 0.99, 0.999),
        "to the slow one": sum(call.place == ODD for call in between(calls, 15.0, 45.0)),
    }


def brpc(contestant: Contestant, seed: int, seconds: float = 8.0) -> Figures:
    """brpc's issue 3340 and its pull request 3367 (2026): why the better of two is not enough in a small cluster.

    Four servers, of which none, one or two take 5 ms longer; 4000 calls a second. There it was four processes and 15 s;
    here a call takes 0.15 to 0.35 ms, which is our assumption, for 8 s.
    """
    figures: Figures = {}
    for slow in (0, 1, 2):
        calls = _some_slow_of_four(contestant, seed, slow, seconds)
        figures |= {f"{name}, {slow} slow": us for name, us in quantiles(calls, 0.99, 0.999, unit="us").items()}
    return figures


def _some_slow_of_four(contestant: Contestant, seed: int, slow: int, seconds: float) -> list[Call]:
    world = _open_world()

    def draw(rng: Random, extra: float) -> float:
        return rng.uniform(0.00015, 0.00035) + extra

    draws = [partial(draw, _dice(seed, i), 0.005 if i < slow else 0.0) for i in range(4)]
    servers: dict[Endpoint, Server] = dict(zip(_endpoints(4), map(Backend, draws), strict=True))
    client = contestant.client(world, servers, seed)
    world.run(0.0)
    poisson(world, _arrivals(seed), 4000, seconds, client.call)
    world.run(seconds + PATIENCE)
    return client.calls


def tower(contestant: Contestant, seed: int, total: int = 50_000) -> Figures:
    """tower's pull request 76 (2018): servers that differ by a factor of a thousand.

    50 callers make 50,000 calls, one after the other, to 10 servers whose latencies are uniform from 0 to 1 ms (one),
    10 ms (four), 100 ms (four) and 1 s (one). No latency depends on the load: that flatters who uses only the best.
    """
    world = _open_world()
    longest = (0.001, *4 * (0.01,), *4 * (0.1,), 1.0)
    draws = [partial(_dice(seed, i).uniform, 0.0, most) for i, most in enumerate(longest)]
    servers: dict[Endpoint, Server] = dict(zip(_endpoints(10), map(Backend, draws), strict=True))
    client = contestant.client(world, servers, seed, size=50)
    world.run(0.0)
    world.run(is_over=closed_loop(client, 50, total))
    return {"wall s": world.now, **quantiles(client.calls, 0.5, 0.9, 0.95, 0.99, 0.999)}


OUTAGE = 8.0, 18.0


def sinkhole_calls(
    contestant: Contestant,
    seed: int,
    *,
    keepalive: float = 0.0,
    is_grey: bool = False,
    slow_start: float = 3.0,
    seconds: float = 30.0,
) -> list[Call]:
    world = _open_world()
    draws = [partial(_dice(seed, i).expovariate, 1 / 0.05) for i in range(3)]
    first = Backend(draws[0], fails=OUTAGE, is_grey=is_grey)
    servers: list[Server] = [first, *map(Backend, draws[1:])]
    client = contestant.client(
        world,
        dict(zip(_endpoints(3), servers, strict=True)),
        seed,
        size=20,
        keepalive=keepalive,
        slow_start=slow_start,
    )
    world.run(0.0)
    poisson(world, _arrivals(seed), 150, seconds, client.call)
    world.run(seconds + PATIENCE)
    return client.calls


def sinkhole(
    contestant: Contestant, seed: int, *, keepalive: float = 0.0, is_grey: bool = False, slow_start: float = 3.0
) -> Figures:
    """The endpoint that fails at once and so looks quick (``lb-sinkholing`` of Marc Brooker's stability-sim).

    Three servers, exponential latencies with a mean of 50 ms, 20 connections to each, 150 calls a second; one refuses
    every call from 8 to 18 s. Grey: its keepalives pass nevertheless. In a fair share it has a third of the calls.
    """
    calls = sinkhole_calls(contestant, seed, keepalive=keepalive, is_grey=is_grey, slow_start=slow_start)
    end = OUTAGE[1]
    return {
        "failed in the outage %": share(between(calls, *OUTAGE), failed),
        "share after it %": share(between(calls, end, end + 10.0), went_to(ODD)),
    }


def many_calls(contestant: Contestant, seed: int, seconds: float = 12.0, number: int = 20) -> list[Call]:
    world = _open_world()
    draws = [partial(_dice(seed, i).expovariate, 1 / 0.01) for i in range(number)]
    servers: dict[Endpoint, Server] = dict(zip(_endpoints(number), map(SingleBackend, draws), strict=True))
    clients = [contestant.client(world, servers, f"{seed} {n}", size=30) for n in range(number)]
    world.run(0.0)
    for n, client in enumerate(clients):
        poisson(world, _arrivals(f"{seed} {n}"), 0.9 / 0.01, seconds, client.call)
    world.run(seconds + PATIENCE)
    return [call for client in clients for call in between(client.calls, 3.0, seconds)]


def many(contestant: Contestant, seed: int, seconds: float = 12.0, number: int = 20) -> Figures:
    """Clients that know nothing of each other: does each flock to where it has seen least?

    20 clients share 20 servers that serve one call at a time, exponentially distributed with a mean of 10 ms; 90 % of
    what they can do is asked of them. The first 3 s do not count.
    """
    return quantiles(many_calls(contestant, seed, seconds, number), 0.5, 0.99, 0.999)


WEIGHTS = 60, 30, 10


def weights(contestant: Contestant, seed: int, rate: float, kind: str, seconds: float = 30.0) -> Figures:
    """Weights 60, 30 and 10 as in SRV records; latencies with a mean of 50 ms, exponential or uniform within 20 %."""
    world = _open_world()
    endpoints = [Endpoint(f"e{i}", 1, weight=weight) for i, weight in enumerate(WEIGHTS)]

    def draw(rng: Random) -> float:
        return rng.expovariate(1 / 0.05) if kind == "exponential" else rng.uniform(0.04, 0.06)

    servers: dict[Endpoint, Server] = {e: Backend(partial(draw, _dice(seed, i))) for i, e in enumerate(endpoints)}
    client = contestant.client(world, servers, seed, size=200)
    world.run(0.0)
    poisson(world, _arrivals(seed), rate, seconds, client.call)
    world.run(seconds + PATIENCE)
    shares = [share(client.calls, went_to(endpoint.name)) for endpoint in endpoints]
    off = max(abs(found - weight) for found, weight in zip(shares, WEIGHTS, strict=True))
    return {**{f"of {weight} %": found for weight, found in zip(WEIGHTS, shares, strict=True)}, "off by, points": off}


def dead_of_two(contestant: Contestant, seed: int, *, avoids: bool, seconds: float = 30.0) -> Figures:
    """One of two endpoints fails every call, and a call that fails is tried once more (Envoy's issue 27317).

    Where the second attempt may go to the same endpoint, and chance decides, a quarter of all calls fails. 200 calls a
    second; the failing endpoint accepts connections.
    """
    world = _open_world()
    draws = [partial(_dice(seed, i).uniform, 0.005, 0.015) for i in range(2)]
    servers: list[Server] = [Backend(draws[0], fails=(0.0, inf)), Backend(draws[1])]
    client = contestant.client(
        world, dict(zip(_endpoints(2), servers, strict=True)), seed, size=20, retries=1, avoids=avoids
    )
    world.run(0.0)
    poisson(world, _arrivals(seed), 200, seconds, client.call)
    world.run(seconds + PATIENCE)
    attempts = sum(1 + len(call.failed_on) for call in client.calls)
    return {
        "success %": 100 - share(client.calls, failed),
        "attempts per call": attempts / len(client.calls),
    }


# -- the scenarios of Finagle's balancersim ----------------------------------------------------------------------------


def _ten(
    contestant: Contestant,
    seed: int,
    first: Callable[[Draw], Server],
    seconds: float,
    rate: float,
    *,
    size: int = 250,
    keepalive: float = 0.0,
) -> list[Call]:
    world = _open_world()
    draws = [partial(recorded, _dice(seed, i)) for i in range(10)]
    servers: list[Server] = [first(draws[0]), *map(Backend, draws[1:])]
    named = dict(zip(_endpoints(10), servers, strict=True))
    client = contestant.client(world, named, seed, size=size, keepalive=keepalive)
    world.run(0.0)
    evenly(world, rate, seconds, client.call)
    world.run(seconds + PATIENCE)
    return client.calls


def cold_start(contestant: Contestant, seed: int, seconds: float = 45.0, rate: float = 1250.0) -> Figures:
    """Ten servers with recorded latencies, 1250 calls a second for 45 s; one is five times slower for its first 10 s.

    (Finagle has an eleventh, which warms up gradually and is slow once more.)
    """
    first = partial(Backend, slow=(0.0, 10.0), slowed=lambda usual: 5 * usual)
    calls = _ten(contestant, seed, first, seconds, rate)
    return {
        **quantiles(calls, 0.99, 0.999),
        "share while cold %": share(between(calls, 0.0, 10.0), went_to(ODD)),
        "share after %": share(between(calls, 10.0, 20.0), went_to(ODD)),
    }


def slow_middle(contestant: Contestant, seed: int, seconds: float = 45.0, rate: float = 1250.0) -> Figures:
    """The same servers and calls; one is ten times slower from 15 to 45 s."""
    span = 15.0, 45.0
    first = partial(Backend, slow=span, slowed=lambda usual: 10 * usual)
    calls = _ten(contestant, seed, first, seconds, rate)
    return {**quantiles(calls, 0.99, 0.999), "share while slow %": share(between(calls, *span), went_to(ODD))}


def temporary_failure(contestant: Contestant, seed: int, seconds: float = 45.0, rate: float = 1250.0) -> Figures:
    """The same servers and calls; one fails every call, and every keepalive, from 10 to 25 s. Keepalives every 1 s."""
    span = 10.0, 25.0
    calls = _ten(contestant, seed, partial(Backend, fails=span), seconds, rate, size=60, keepalive=1.0)
    return {
        "failed in it %": share(between(calls, *span), failed),
        "failed calls": sum(map(failed, calls)),
        "share in the 10 s after %": share(between(calls, 25.0, 35.0), went_to(ODD)),
    }


def permanent_failure(contestant: Contestant, seed: int, seconds: float = 45.0, rate: float = 1250.0) -> Figures:
    """The same servers and calls; one fails every call from 10 s on, but accepts connections. No keepalives."""
    span = 10.0, inf
    calls = _ten(contestant, seed, partial(Backend, fails=span), seconds, rate, size=60)
    return {"failed in it %": share(between(calls, *span), failed), "failed calls": sum(map(failed, calls))}
