"""The experiments with client-side load balancing: ours beside the balancers of others, in virtual time.

python -m tests.benchmarks.balance [--seeds N] [--json FILE] [--plots FOLDER] [NAME...]

Each set-up is run with the same seeds for all, so that they meet the same arrivals and the same servers. Printed are
the mean, and in brackets the least and the most, over all seeds; then what was aimed at, and whether it is met. The
exit status is 1 if anything is not. All of it takes about four minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

from tests.benchmarks import scenarios
from tests.benchmarks.budget import load, retry_load
from tests.benchmarks.contestants import (
    EVERYBODY,
    LEAST_LOADED_EJECTING,
    OURS,
    P2C,
    P2C_EWMA,
    PENALISED,
    RANDOM,
    ROUND_ROBIN,
    ROUND_ROBIN_EJECTING,
    SCAN,
    SCAN_EWMA,
    Contestant,
)
from tests.benchmarks.plots import PLOTS
from tests.benchmarks.scenarios import WEIGHTS, Figures
from tests.benchmarks.telling import Bound, around, table, verdict

SEEDS, MANY_SEEDS = 5, 100
FOLDER = Path(__file__).parents[2] / "docs" / "plots"

Run = Callable[[int], Figures]
Row = dict[str, list[float]]  # by figure, one value per seed
Rows = dict[str, Row]


@dataclass(frozen=True)
class Setup:
    title: str
    rows: dict[str, Run]
    published: dict[str, str]
    many_seeds: frozenset[str] = frozenset()  # rows that take more seeds, because so much is luck

    def measure(self, label: str, seeds: int) -> Row:
        if label in self.many_seeds:
            seeds = max(seeds, MANY_SEEDS)
        runs = []
        for seed in range(seeds):
            runs.append(self.rows[label](seed))
            gc.collect()
        return {figure: [run[figure] for run in runs] for figure in runs[0]}


@dataclass(frozen=True)
class Target(Bound):
    setup: str
    text: str
    value: Callable[[Rows], float]


# -- the set-ups -------------------------------------------------------------------------------------------------------


def against(
    title: str,
    scenario: Callable[[Contestant, int], Figures],
    contestants: Iterable[Contestant],
    published: dict[Contestant, str] | None = None,
) -> Setup:
    """Return a set-up with a row for each contestant, and what was published of some."""
    rows: dict[str, Run] = {contestant.name: partial(scenario, contestant) for contestant in contestants}
    return Setup(title, rows, {contestant.name: text for contestant, text in (published or {}).items()})


FAILING = ROUND_ROBIN, SCAN, PENALISED, ROUND_ROBIN_EJECTING, LEAST_LOADED_EJECTING, OURS  # who meets failures


def _with_keepalive() -> Setup:
    rows: dict[str, Run] = {}
    for contestant in FAILING:
        rows[contestant.name] = partial(scenarios.sinkhole, contestant, keepalive=1.0)
    rows["ours, slow_start=0"] = partial(scenarios.sinkhole, OURS, keepalive=1.0, slow_start=0.0)
    rows["ours, 100 seeds"] = rows[OURS.name]
    rows["ours, slow_start=0, 100 seeds"] = rows["ours, slow_start=0"]
    title = "Sinkhole with a keepalive every 1 s (fair share: 33.3 %)"
    return Setup(title, rows, {}, frozenset({"ours, 100 seeds", "ours, slow_start=0, 100 seeds"}))


RATES, KINDS = (20, 100, 300, 1000), ("exponential", "uniform")


def _weights() -> Setup:
    rows: dict[str, Run] = {}
    for rate in (3, *RATES):
        rows[f"chance alone, {rate}/s"] = partial(scenarios.weights, RANDOM, rate=rate, kind="uniform")
        for kind in KINDS:
            rows[f"ours, {rate}/s {kind}"] = partial(scenarios.weights, OURS, rate=rate, kind=kind)
    return Setup("Weights 60, 30 and 10, for 30 s", rows, {})


def _dead_of_two() -> Setup:
    rows: dict[str, Run] = {}
    for contestant in (RANDOM, P2C, OURS):
        rows[f"{contestant.name}, may repeat"] = partial(scenarios.dead_of_two, contestant, avoids=False)
        rows[contestant.name] = partial(scenarios.dead_of_two, contestant, avoids=True)
    return Setup("One of two is dead, one retry", rows, {"random, may repeat": "75 % (by arithmetic)"})


def _budget() -> Setup:
    rows: dict[str, Run] = {
        "no budget": lambda seed: {"attempts per call": load(seed, None)},
        "ours": lambda seed: {"attempts per call": retry_load(seed)},
    }
    return Setup("Everything fails: 200 calls/s, each retried up to three times", rows, {})


SETUPS = {
    "linkerd": against(
        "Linkerd 2016: 11 servers, one takes 2 s from 15 to 45 s",
        scenarios.linkerd,
        EVERYBODY,
        {
            ROUND_ROBIN: "95 %",
            P2C: "99 %",
            P2C_EWMA: "99.9 %",
        },
    ),
    "brpc": against(
        "brpc 2026: none, one or two of four servers are 5 ms slower",
        scenarios.brpc,
        (ROUND_ROBIN, P2C, SCAN, P2C_EWMA, SCAN_EWMA, OURS),
        {
            ROUND_ROBIN: "p99 410, 6474, 7696 us",
            P2C_EWMA: "p99 387, 337, 7676 us",
            SCAN_EWMA: "p99 539, 334, 307 us",
        },
    ),
    "tower": against(
        "tower 2018: latencies from 1 ms to 1 s, 50 callers",
        scenarios.tower,
        (ROUND_ROBIN, P2C, SCAN, P2C_EWMA, SCAN_EWMA, OURS),
        {
            ROUND_ROBIN: "72 s: 9 98 496 906 988",
            P2C: "18 s: 5 57 80 98 857",
            P2C_EWMA: "15 s: 5 56 78 96 105",
        },
    ),
    "sinkhole": against("Sinkhole: one of three fails at once (fair share: 33.3 %)", scenarios.sinkhole, EVERYBODY),
    "sinkhole-keepalive": _with_keepalive(),
    "grey": against(
        "Grey failure: keepalives pass, calls fail",
        partial(scenarios.sinkhole, keepalive=1.0, is_grey=True),
        FAILING,
    ),
    "many": against(
        "20 clients, 20 servers that serve one call at a time, 90 % busy",
        scenarios.many,
        (RANDOM, ROUND_ROBIN, P2C, SCAN, OURS),
    ),
    "weights": _weights(),
    "dead-of-two": _dead_of_two(),
    "budget": _budget(),
    "cold-start": against(
        "Finagle's cold start: one of ten is 5 times slower until 10 s (fair share: 10 %)",
        scenarios.cold_start,
        (ROUND_ROBIN, P2C_EWMA, OURS),
    ),
    "slow-middle": against(
        "Finagle's slow middle: one of ten is 10 times slower from 15 to 45 s",
        scenarios.slow_middle,
        (ROUND_ROBIN, P2C_EWMA, OURS),
    ),
    "temporary-failure": against(
        "Finagle's temporary failure: one of ten fails from 10 to 25 s (fair share: 10 %)",
        scenarios.temporary_failure,
        (ROUND_ROBIN, PENALISED, OURS),
    ),
    "permanent-failure": against(
        "Finagle's permanent failure: one of ten fails from 10 s on",
        scenarios.permanent_failure,
        (ROUND_ROBIN, PENALISED, OURS),
    ),
}


# -- the targets -------------------------------------------------------------------------------------------------------


def ours(figure: str, label: str = "ours") -> Callable[[Rows], float]:
    return lambda rows: mean(rows[label][figure])


def ratio(one: tuple[str, str], other: tuple[str, str]) -> Callable[[Rows], float]:
    """Return what one figure is by another; each is given by row and figure."""
    return lambda rows: mean(rows[one[0]][one[1]]) / mean(rows[other[0]][other[1]])


def off_by(label: str) -> Callable[[Rows], float]:
    """Return by how many points the mean of any share is off."""
    return lambda rows: max(abs(mean(rows[label][f"of {weight} %"]) - weight) for weight in WEIGHTS)


TWO_SLOW, NONE_SLOW = "p99 us, 2 slow", "p99 us, 0 slow"
FAILED, AFTER = "failed in the outage %", "share after it %"

TARGETS = (
    Target("linkerd", "Linkerd: calls answered within 1 s, %", ours("within 1 s %"), least=99.96),
    Target(
        "brpc", "brpc: p99 with 2 slow, by that with none", ratio(("ours", TWO_SLOW), ("ours", NONE_SLOW)), most=1.1
    ),
    Target("tower", "tower: seconds for all calls", ours("wall s"), most=10.0),
    Target("tower", "tower: p99.9, ms", ours("p99.9 ms"), most=105.0),
    Target("sinkhole-keepalive", "sinkhole: failed in the outage, %", ours(FAILED), most=0.1),
    Target("sinkhole-keepalive", "sinkhole: share in the 10 s after, %", ours(AFTER, "ours, 100 seeds"), least=24.0),
    Target(
        "sinkhole-keepalive",
        "the same, slow_start=0, %",
        ours(AFTER, "ours, slow_start=0, 100 seeds"),
        least=28.0,
    ),
    Target("grey", "grey failure: failed in the outage, %", ours(FAILED), most=0.3),
    Target(
        "many", "20 by 20: p99 by that of least loaded of 2", ratio(("ours", "p99 ms"), (P2C.name, "p99 ms")), most=0.9
    ),
    *(
        Target("weights", f"weights, {rate}/s {kind}: points off", off_by(f"ours, {rate}/s {kind}"), most=2.0)
        for rate in RATES
        for kind in KINDS
    ),
    Target("dead-of-two", "one dead of two, one retry: success, %", ours("success %"), least=100.0),
    Target("budget", "everything fails, with a budget: attempts per call", ours("attempts per call"), most=1.25),
)


# -- telling -----------------------------------------------------------------------------------------------------------


def cell(values: Sequence[float]) -> str:
    return around(mean(values), values)


def tell(setup: Setup, rows: Rows) -> str:
    figures = list(next(iter(rows.values())))
    lines = [["", *figures, "published"]]
    for label, row in rows.items():
        lines.append([label, *(cell(row[figure]) for figure in figures), setup.published.get(label, "")])
    if not setup.published:
        lines = [line[:-1] for line in lines]
    return f"{setup.title}\n\n{table(lines)}\n"


def judge(results: dict[str, Rows]) -> list[dict[str, Any]]:
    """Return for each target of the set-ups that were run what was asked, what was found, and whether that is met."""
    judged = []
    for target in TARGETS:
        if target.setup in results:
            value = target.value(results[target.setup])
            judged.append({"target": target.text, "asked": target.bound, "found": value, "met": target.is_met(value)})
    return judged


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.balance")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"a set-up; without any: all of {', '.join(SETUPS)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"runs of each row; {SEEDS} by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all seeds there as well")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", default=FOLDER, help="where plots are written to")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(SETUPS):
        parser.error(f"no such set-up: {', '.join(sorted(unknown))}; there are {', '.join(SETUPS)}")
    results: dict[str, Rows] = {}
    for name in options.names or SETUPS:
        results[name] = {label: SETUPS[name].measure(label, options.seeds) for label in SETUPS[name].rows}
        print(tell(SETUPS[name], results[name]), flush=True)
        draw(name, options.plots)
    judged = judge(results)
    print(verdict(judged))
    print(f"\n{process_time():.0f} s of processor time")
    if options.json is not None:
        options.json.write_text(json.dumps({"set-ups": results, "targets": judged}, indent=1) + "\n")
    return 0 if all(j["met"] for j in judged) else 1


def draw(name: str, folder: Path) -> None:
    if name in PLOTS:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.svg").write_text(PLOTS[name]())


if __name__ == "__main__":
    gc.disable()  # a run drops nothing before its end; after it, we collect
    sys.exit(main(sys.argv[1:]))
