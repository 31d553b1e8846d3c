"""What retries add to the load of a service that is down: 200 calls a second, each retried up to three times.

python -m tests.benchmarks.budget
"""

from __future__ import annotations

import logging
from heapq import heapify, heappop, heappush
from math import inf
from random import Random

from geventconnpool import RetryBudget
from geventconnpool._retry import Policy

RATE, SECONDS = 200, 60.0
LATENCY = 0.001, 0.1  # seconds until a failure is seen


def policy(budget: RetryBudget | None) -> Policy:
    line = logging.DEBUG, ""
    return Policy(
        exc_classes=(OSError,),
        logger=logging.getLogger("benchmark"),
        retry_log=line,
        failure_log=line,
        max_failures=3,
        interval=0.01,
        backoff=2.0,
        max_interval=inf,
        jitter=0.5,
        timeout=inf,
        budget=budget,
    )


def load(seed: int, budget: RetryBudget | None) -> float:
    """Return how many attempts a call costs if all fail, in virtual time, as the policy of ``retry`` decides."""
    rng = Random(seed)
    rules = policy(budget)
    begun = 0
    # (time, failures so far, does an attempt begin or fail)
    due = [((number + rng.random()) / RATE, 0, True) for number in range(int(RATE * SECONDS))]
    heapify(due)
    while due[0][0] < SECONDS:
        now, failures, begins = heappop(due)
        if begins:
            begun += 1
            if budget is not None and not failures:
                budget.deposit(now)
            heappush(due, (now + rng.uniform(*LATENCY), failures + 1, False))
        else:
            pause = rules.pause(failures - 1, rng)
            if rules.goes_on(failures, now + pause, inf) and rules.pay(now, []):
                heappush(due, (now + pause, failures, True))
    return begun / (RATE * SECONDS)


def retry_load(seed: int) -> float:
    """Return how many attempts a call costs with the default budget: without failures it is 1."""
    return load(seed, RetryBudget())


def main() -> None:
    for seed in range(5):
        print(f"seed {seed}: load {load(seed, None):.4f} without a budget, {retry_load(seed):.4f} with one")


if __name__ == "__main__":
    main()
