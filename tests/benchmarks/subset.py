"""What 1,000 clients make of 1,000 endpoints when each chooses 20 by itself: how even that is, and what a change costs.

python -m tests.benchmarks.subset (half a minute)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from math import sqrt
from random import Random
from statistics import fmean, pstdev

from geventconnpool import Endpoint
from geventconnpool.cluster._subset import Subset

CLIENTS = 1000
ENDPOINTS = 1000
K = 20
SEEDS = range(1, 6)
SIZES = (5, 10, 20, 50, 100)
WEIGHTS = (0, 1, 2, 10)

Choice = dict[Endpoint, float]


def endpoints(number: int, weights: Sequence[int] = (1,)) -> list[Endpoint]:
    return [Endpoint(f"redis-{n:04}.example.test", 6379, weight=weights[n % len(weights)]) for n in range(number)]


def clients(seed: int, k: int = K) -> list[Subset]:
    rng = Random(seed)
    return [Subset(k, rng.randbytes(16)) for _ in range(CLIENTS)]


def choose(fleet: Iterable[Subset], among: list[Endpoint], unfit: Collection[Endpoint] = ()) -> list[Choice]:
    return [subset.choose(among, unfit) for subset in fleet]


def cost(before: list[Choice], after: list[Choice]) -> str:
    """Return in words how many pools all clients together open and close, and how many a single one at most."""
    pairs = [(one.keys(), other.keys()) for one, other in zip(before, after, strict=True)]
    opened = [len(other - one) for one, other in pairs]
    closed = [len(one - other) for one, other in pairs]
    return f"+{sum(opened)} -{sum(closed)} (1: +{max(opened)} -{max(closed)})"


def spread(chosen: list[Choice], among: list[Endpoint]) -> str:
    """Return in words how many clients have an endpoint, beside what pure chance would do."""
    number = Counter(endpoint for choice in chosen for endpoint in choice)
    values = [number[endpoint] for endpoint in among]
    mean = fmean(values)
    binomial = sqrt((1 - mean / CLIENTS) / mean)
    return f"{mean:>6.1f} {min(values):>4} {max(values):>4} {pstdev(values) / mean:>6.3f} {binomial:>9.3f}"


COLUMNS = f"{'mean':>6} {'min':>4} {'max':>4} {'cv':>6} {'binomial':>9}"


def changes() -> None:
    print(
        f"{CLIENTS} clients choose {K} of {ENDPOINTS} endpoints: clients per endpoint, and what one change costs: pools"
    )
    print(f"opened and closed by all of them ({CLIENTS * K // ENDPOINTS} are expected), and by a single one at most")
    print(f"{'seed':>4} {COLUMNS}   {'one leaves':20} {'one comes':20} one is ejected")
    *settled, newcomer = endpoints(ENDPOINTS + 1)
    for seed in SEEDS:
        fleet = clients(seed)
        one = settled[seed]
        before = choose(fleet, settled)
        left = cost(before, choose(fleet, [endpoint for endpoint in settled if endpoint != one]))
        came = cost(before, choose(fleet, [*settled, newcomer]))
        ejected = cost(before, choose(fleet, settled, [one]))
        print(f"{seed:>4} {spread(before, settled)}   {left:20} {came:20} {ejected}")


def sizes() -> None:
    print("\nThe same with more and with fewer, seed 1")
    print(f"{'k':>4} {COLUMNS}")
    among = endpoints(ENDPOINTS)
    for k in SIZES:
        print(f"{k:>4} {spread(choose(clients(1, k), among), among)}")


def fairness() -> None:
    print(
        "\nWith weights, all seeds: clients per endpoint, and its load as a part of what is fair for its weight, when"
    )
    print("the balancer honours the weights of the choice, and if it honoured those of DNS once more")
    print(f"{'weight':>6} {'clients':>8} {'choice':>7} {'DNS':>6}")
    among = endpoints(ENDPOINTS, WEIGHTS)
    chosen = [choice for seed in SEEDS for choice in choose(clients(seed), among)]
    loads = [_loads(chosen, lambda choice, e: choice[e]), _loads(chosen, lambda _, e: _own(e))]
    number = Counter(endpoint.weight for choice in chosen for endpoint in choice)
    total = sum(map(_own, among))
    for weight in WEIGHTS:
        alike = [endpoint for endpoint in among if endpoint.weight == weight]
        fair = len(chosen) * sum(map(_own, alike)) / total
        mean = number[weight] / len(alike) / len(SEEDS)
        print(f"{weight:>6} {mean:>8.2f} {loads[0][weight] / fair:>7.2f} {loads[1][weight] / fair:>6.2f}")


def _loads(chosen: list[Choice], weigh: Callable[[Choice, Endpoint], float]) -> Counter[int]:
    """Return the load by weight, where each client has a load of 1 to spread."""
    loads: Counter[int] = Counter()
    for choice in chosen:
        total = sum(weigh(choice, endpoint) for endpoint in choice)
        for endpoint in choice:
            loads[endpoint.weight] += weigh(choice, endpoint) / total  # type: ignore[assignment]  # they add up
    return loads


def _own(endpoint: Endpoint) -> float:
    return float(endpoint.weight) or 0.01


def main() -> None:
    changes()
    sizes()
    fairness()


if __name__ == "__main__":
    main()
