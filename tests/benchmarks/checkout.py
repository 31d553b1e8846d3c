"""Check-out and return, when a connection is idle and nobody waits: processor time per ``with`` block."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import repeat
from typing import Any

from tests.benchmarks.peers import PEERS, Missing
from tests.benchmarks.rounds import QUICK_ROUNDS, ROUNDS, Loop, compare, timed
from tests.benchmarks.standins import KEEPALIVE, Cluster, Floor, Pool, Recipe, allow_descriptors, places

SIZE, FEW = 10, 2  # connections; few to each of 1,000 endpoints
SECONDS = 0.05  # for each contestant in each round
FLOOR, RECIPE = "bare with over a deque (the floor)", "textbook recipe (2013)"
SINGLE, CLUSTER, CLUSTER_1000 = "ours", "ours, cluster of 3", "ours, cluster of 1,000"
RELATIVE = "of the recipe"


def floor() -> Loop:
    lease = Floor(SIZE)

    def loop(number: int) -> None:
        for _ in repeat(None, number):
            with lease:
                pass

    return loop


def through(pool: Any) -> Loop:
    def loop(number: int) -> None:
        for _ in repeat(None, number):
            with pool.get():
                pass

    return loop


def pool(stack: ExitStack) -> Any:
    pool = stack.enter_context(Pool(SIZE, keepalive=KEEPALIVE))
    pool.wait(timeout=30)
    return pool


def cluster(stack: ExitStack, endpoints: int) -> Any:
    """Return a cluster with all options as they are by default, and keepalive."""
    pool = stack.enter_context(Cluster(places(endpoints), SIZE if endpoints < 100 else FEW, keepalive=KEEPALIVE))
    pool.wait(timeout=60)
    return pool


def peers(stack: ExitStack) -> tuple[dict[str, Loop], list[str]]:
    """Return the pools of others, and who of them is left out."""
    loops, left_out = {}, []
    for name, make in PEERS.items():
        try:
            loops[name] = make(stack)
        except Missing as reason:
            left_out.append(f"{name}: {reason}")
        else:
            loops[name](2)  # it connects
    return loops, left_out


def measure(is_quick: bool) -> dict[str, Any]:
    allow_descriptors(8192)
    with ExitStack() as stack:
        theirs, left_out = peers(stack)  # before us: geventhttpclient takes a descriptor above 1023 for a dead one
        loops = {
            FLOOR: floor(),
            RECIPE: through(Recipe(SIZE)),
            SINGLE: through(pool(stack)),
            CLUSTER: through(cluster(stack, 3)),
            CLUSTER_1000: through(cluster(stack, 40 if is_quick else 1000)),
            **theirs,
        }
        rows = timed(loops, QUICK_ROUNDS if is_quick else ROUNDS, SECONDS / 40 if is_quick else SECONDS)
    compare(rows, RECIPE, "us", RELATIVE)
    return {"rows": rows, "left_out": left_out}
