"""Which of very many endpoints one process has pools for. Pure, but for the salt.

1,000 processes with 10 connections to each of 1,000 endpoints are 10,000,000 connections, 10,000 at every endpoint. So
each process chooses a few, by itself: nobody numbers the workers of a gunicorn. This is rendezvous hashing (Thaler and
Ravishankar, 1998) with a salt per process, as gRPC does it (gRFC A68, random_subsetting): the hash of salt and endpoint
is a draw of which the lowest ``k`` are chosen. Who comes or goes moves no other draw, so one that comes takes the place
of one at most, and only the place of one that goes is filled. As nobody knows of the others, the number of processes
that choose an endpoint is binomial.

*Weights.* The draw is exponential: -ln(u) / weight (Schindelhauer and Schomaker, 2005), so that an endpoint is chosen
first in proportion to its weight. If the balancer then honoured the weights once more, twice the weight would be four
times the load. Given the first draw that is *not* chosen, t, each other had the probability 1 - exp(-weight * t) to be
below it, whatever the rest drew; weight over probability is an unbiased estimate of what it stands for (Cohen and
Kaplan, "Summarizing Data using Bottom-k Sketches", 2007). That is the weight for the balancer: the same for all while
few are chosen of many, their own when all are. Over all processes the load is in proportion to the weights.

*Tiers.* Each SRV priority has its own ``k``, or there would be nothing to spill over to.

*Ejections.* One that is unfit keeps its place: it is to be probed, and to serve when it is well. For each of them the
next in rank joins until it is, up to ``2 * k`` of a priority in all: if those fail, too, the fault is hardly theirs.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from hashlib import blake2b
from heapq import nsmallest
from math import expm1, inf, log

from geventconnpool.cluster._balancers import effective_weight
from geventconnpool.cluster._endpoints import Endpoint

Ranked = list[tuple[float, str, int, Endpoint]]  # the lowest draws first; the names are for equal ones


class Subset:
    """A choice of ``k`` endpoints of each priority. The same ``salt``, of up to 64 bytes, makes the same choice."""

    def __init__(self, k: int, salt: bytes | None = None) -> None:
        self._k = k
        self._salt = os.urandom(16) if salt is None else salt
        self._draws: dict[Endpoint, float] = {}  # of all endpoints that were there the last time

    def choose(self, endpoints: Iterable[Endpoint], unfit: Collection[Endpoint]) -> dict[Endpoint, float]:
        """Return those of ``endpoints`` to have pools for, each with its weight among those of its priority.

        For those that are ``unfit`` to serve there are others. It may take as long as it likes to go through
        ``endpoints``: nothing has changed before.
        """
        draws: dict[Endpoint, float] = {}
        tiers: dict[int, Ranked] = defaultdict(list)
        for endpoint in endpoints:
            draw = draws[endpoint] = self._draws.get(endpoint) or self._draw(endpoint)
            tiers[endpoint.priority].append(
                (draw / effective_weight(endpoint.weight), endpoint.name, endpoint.port, endpoint)
            )
        self._draws = draws
        chosen: dict[Endpoint, float] = {}
        for priority in sorted(tiers):
            ranked = nsmallest(2 * self._k + 1, tiers[priority])
            chosen |= _weighed(ranked, self._count(ranked, unfit))
        return chosen

    def _draw(self, endpoint: Endpoint) -> float:
        """Return what is drawn from the exponential distribution: always the same for this endpoint."""
        digest = blake2b(str(endpoint).encode(), digest_size=8, key=self._salt).digest()
        # 52 bits: the middle of the last of so many parts is still a float below 1.
        return -log(((int.from_bytes(digest) >> 12) + 0.5) / 2**52)

    def _count(self, ranked: Ranked, unfit: Collection[Endpoint]) -> int:
        """Return how many of the first it takes for ``k`` that are fit."""
        most = ranked[: 2 * self._k]
        left = self._k
        for count, (*_, endpoint) in enumerate(most, 1):
            left -= endpoint not in unfit
            if not left:
                return count
        return len(most)


def _weighed(ranked: Ranked, count: int) -> dict[Endpoint, float]:
    """Return the first ``count`` with what they weigh for the balancer; the heaviest keeps its weight."""
    chosen = [endpoint for *_, endpoint in ranked[:count]]
    first_out = ranked[count][0] if count < len(ranked) else inf
    weights = {endpoint: effective_weight(endpoint.weight) for endpoint in chosen}
    most = -expm1(-max(weights.values()) * first_out)
    return {endpoint: weight * (most / -expm1(-weight * first_out)) for endpoint, weight in weights.items()}
