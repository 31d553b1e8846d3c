"""The speed benchmark: ours beside what users would pick instead, in processor time and on real sockets.

python -m tests.benchmarks.speed [--quick] [--write [FOLDER]] [GROUP...]

Each group runs in a process of its own, that gevent has patched, and contestants take turns in it. Printed is the
median of all rounds, and in brackets the least and the most. A ratio that a target speaks of is taken in each round,
and it is the median of these that counts. What cannot be measured here (a peer, redis-server or haproxy is missing) is
left out and named. The exit status is 1 if a target is missed; a stretch may be. All of it takes about five minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from tests.benchmarks import checkout, contended, end_to_end, failover, growth, imports, peers, pinging
from tests.benchmarks.rounds import Rows
from tests.benchmarks.speed_plots import PLOTS
from tests.benchmarks.telling import Bound, around, table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "plots"
LIMIT = 240.0  # seconds for a group; it takes a minute or two
DIGITS = 5  # in JSON

GROUPS = {
    "checkout": "Check-out and return, one greenlet, processor time of a call",
    "parts": "What a check-out of ours is made of, processor time",
    "contended": "1,000 greenlets over 20 connections, processor time of a call",
    "end-to-end": "PING to three redis-servers",
    "failover": "One of three redis-servers fails, read timeout 0.5 s, retried",
    "growth": "More endpoints, more connections, more waiters; and at rest",
    "import": "python -c 'import ...', processor time of the process",
}
MODULES = {"import": "imports"}
PACKAGES = (
    *("gevent", "greenlet", "psycopg_pool", "SQLAlchemy", "redis", "urllib3", "pymemcache"),
    *("geventhttpclient", "elastic-transport"),
)


# -- the targets -------------------------------------------------------------------------------------------------------

Values = Callable[[Rows], list[float]]  # one per round


@dataclass(frozen=True)
class Target(Bound):
    group: str
    text: str
    values: Values
    is_stretch: bool = False
    is_worst: bool = False  # it is the worst round that counts

    def stands(self, values: Sequence[float]) -> float:
        return max(values) if self.is_worst else median(values)


def figure(row: str, name: str) -> Values:
    return lambda rows: rows[row][name]


def ratio(one: str, other: str, name: str, least: float = 0.0) -> Values:
    """Return what a figure of one row is by that of another, round by round; what is below ``least`` counts as that."""
    return lambda rows: [max(a, least) / max(b, least) for a, b in zip(rows[one][name], rows[other][name], strict=True)]


def _by_peers(text: str, ours: str, others: Iterable[str]) -> list[Target]:
    return [Target("checkout", f"{text} / {peer}", ratio(ours, peer, "us"), most=1.0) for peer in others]


def _failover(fault: str, *, is_luck: bool = False) -> list[Target]:
    """Traffic that leaves within the pause between two calls of a caller leaves at once: nobody could tell."""
    ours, haproxy, text = pinging.CLUSTER + fault, pinging.HAPROXY + fault, fault.strip(", ")
    left = ratio(ours, haproxy, failover.LEFT, least=failover.PAUSE)
    return [
        Target("failover", f"{text}: failed calls, worst round", figure(ours, failover.FAILED), most=0, is_worst=True),
        Target("failover", f"{text}: longest call, s", figure(ours, failover.LONGEST_CALL), most=0.6),
        Target("failover", f"{text}: time until traffic has left / HAProxy", left, most=0.5, is_stretch=is_luck),
    ]


SINGLE, CLUSTER, CLUSTER_1000, RECIPE = checkout.SINGLE, checkout.CLUSTER, checkout.CLUSTER_1000, checkout.RECIPE
MANY_BARE = growth.label(growth.BARE, 1000)

TARGETS = (
    Target("checkout", "ConnectionPool / textbook recipe", ratio(SINGLE, RECIPE, "us"), most=0.55),
    Target("checkout", "ClusterPool of 3 / textbook recipe", ratio(CLUSTER, RECIPE, "us"), most=1.25),
    Target("checkout", "the same, stretch", ratio(CLUSTER, RECIPE, "us"), most=1.0, is_stretch=True),
    Target("checkout", "ClusterPool of 1,000 / of 3", ratio(CLUSTER_1000, CLUSTER, "us"), most=1.3),
    *_by_peers("ConnectionPool", SINGLE, peers.CHECKING),
    *_by_peers("ClusterPool of 3", CLUSTER, (peers.ELASTIC, *peers.CHECKING[:4])),
    *_by_peers("ClusterPool of 1,000", CLUSTER_1000, (peers.ELASTIC_1000,)),
    Target(
        "contended",
        "contended, a switch in the block / textbook recipe",
        figure(contended.SINGLE + contended.SWITCH, contended.RELATIVE),
        most=1.6,
    ),
    Target(
        "contended",
        "contended, none / textbook recipe",
        figure(contended.SINGLE + contended.NONE, contended.RELATIVE),
        most=1.0,
    ),
    Target("contended", "fairness", figure(contended.SINGLE + contended.SWITCH, contended.FAIRNESS), least=0.9),
    Target(
        "end-to-end",
        "30 greenlets: calls/s, ClusterPool / round robin over three",
        ratio(pinging.CLUSTER + end_to_end.MANY, pinging.NAIVE + end_to_end.MANY, end_to_end.CALLS),
        least=0.95,
    ),
    Target(
        "end-to-end",
        "1 greenlet: p50, ClusterPool / HAProxy",
        ratio(pinging.CLUSTER + end_to_end.ALONE, pinging.HAPROXY + end_to_end.ALONE, end_to_end.P50),
        most=0.7,
    ),
    Target(
        "end-to-end",
        "the same, one socket without any pool",
        ratio(end_to_end.BARE + end_to_end.ALONE, pinging.HAPROXY + end_to_end.ALONE, end_to_end.P50),
        most=0.7,
        is_stretch=True,  # what a pool has no part in
    ),
    *_failover(failover.KILLED, is_luck=True),  # both see the end of the connection at once
    *_failover(failover.STOPPED),
    Target("growth", "1,000 endpoints, min_size=0: greenlets at rest", figure(MANY_BARE, growth.GREENLETS), most=5),
    Target(
        "growth", "1,000 endpoints, min_size=0: KB each, aim", figure(MANY_BARE, growth.KB), most=4.0, is_stretch=True
    ),
    Target("import", "import geventconnpool / import gevent", figure(imports.OURS, imports.PLAIN), most=1.6),
)


def judge(groups: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each target of the groups that were run what was asked, what was found, and whether that is met.

    ``met`` is None where the rows to tell it are missing.
    """
    return [
        {"target": target.text, "asked": target.bound, **_find(target, groups[target.group]["rows"])}
        for target in TARGETS
        if target.group in groups
    ]


def _find(target: Target, rows: Rows) -> dict[str, Any]:
    try:
        values = target.values(rows)
    except KeyError:  # left out
        return {"found": None, "values": [], "met": None, "stretch": target.is_stretch}
    found = target.stands(values)
    return {"found": found, "values": values, "met": target.is_met(found), "stretch": target.is_stretch}


# -- telling -----------------------------------------------------------------------------------------------------------


def cell(values: Sequence[float] | None) -> str:
    return around(median(values), values) if values else ""


def lines_of(rows: Rows) -> list[list[str]]:
    figures = list(dict.fromkeys(figure for row in rows.values() for figure in row))
    return [["", *figures], *([label, *(cell(row.get(figure)) for figure in figures)] for label, row in rows.items())]


def tell(name: str, result: dict[str, Any]) -> str:
    left_out = "".join(f"\nleft out: {reason}" for reason in result["left_out"])
    return f"{GROUPS[name]}\n\n{table(lines_of(result['rows']))}{left_out}\n"


def verdict_lines(judged: Iterable[dict[str, Any]]) -> list[list[str]]:
    lines = [["target", "asked", "found", ""]]
    for j in judged:
        found = around(j["found"], j["values"]) if j["values"] else ""
        missed = "missed (stretch)" if j["stretch"] else "MISSED"
        lines.append([j["target"], j["asked"], found, {True: "met", False: missed, None: "not measured"}[j["met"]]])
    return lines


def is_well(judged: Iterable[dict[str, Any]]) -> bool:
    return all(j["met"] is not False or j["stretch"] for j in judged)


def setup() -> dict[str, str]:
    """Return what it was measured on, and with which versions."""
    found = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write(folder: Path, groups: dict[str, Any]) -> None:
    """Write figures, tables and plots. Groups that were not run now stay as they were."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "speed.json"
    before = json.loads(path.read_text())["groups"] if path.exists() else {}
    known = {name: groups.get(name) or before.get(name) for name in GROUPS}
    groups = {name: result for name, result in known.items() if result}
    judged = judge(groups)
    path.write_text(json.dumps(_rounded({"setup": setup(), "groups": groups, "targets": judged}), indent=1) + "\n")
    _write_table(folder / "speed-targets.csv", verdict_lines(judged))
    _write_table(folder / "speed-setup.csv", map(list, setup().items()))
    for name, result in groups.items():
        _write_table(folder / f"speed-{name}.csv", lines_of(result["rows"]))
        if result["rows"]:
            (folder / f"speed-{name}.svg").write_text(PLOTS[name](result))


def _write_table(path: Path, lines: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


# -- running -----------------------------------------------------------------------------------------------------------


def run(name: str, is_quick: bool) -> dict[str, Any]:
    """Measure a group in a process of its own, which has an end, and with it all that it has started."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "tests.benchmarks.measure", MODULES.get(name, name), str(path)]
        subprocess.run([*command, *(["--quick"] if is_quick else [])], cwd=ROOT, check=True, timeout=LIMIT)
        result: dict[str, Any] = json.loads(path.read_text())
    return result


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed")
    parser.add_argument("names", nargs="*", metavar="GROUP", help=f"without any: all of {', '.join(GROUPS)}")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds of little: does it run? The figures mean nothing"
    )
    parser.add_argument(
        *("--write", "-w"), nargs="?", type=Path, const=FOLDER, metavar="FOLDER", help="write JSON, tables and plots"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if options.quick and options.write == FOLDER:
        parser.error("the figures of a quick run are not for the documents: name another folder to write to")
    started = monotonic()
    results: dict[str, Any] = {}
    for name in options.names or GROUPS:
        results[name] = run(name, options.quick)
        print(tell(name, results[name]), flush=True)
    judged = judge(results)
    print(table(verdict_lines(judged)))
    print(f"\n{monotonic() - started:.0f} s")
    if options.write is not None:
        write(options.write, results)
    return 0 if is_well(judged) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
