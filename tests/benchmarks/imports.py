"""What ``import geventconnpool`` costs a program that has gevent anyway: fresh interpreters, processor time of each."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.rounds import QUICK_ROUNDS, ROUNDS, Figures, alternate, compare

ROOT = Path(__file__).parents[2]
BARE, GEVENT, OURS, CLUSTER = "nothing", "gevent", "geventconnpool", "geventconnpool, and ClusterPool used"
PROGRAMS = {
    BARE: "pass",
    GEVENT: "import gevent",
    OURS: "import geventconnpool",
    CLUSTER: "from geventconnpool import ClusterPool",
}
PLAIN, NET = "of import gevent", "of import gevent, start taken off"


def run(program: str) -> Figures:
    # Compiled, as it is where it is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = _seconds()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
    return {"ms": 1000 * (_seconds() - before)}


def _seconds() -> float:
    """Return the processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(is_quick: bool) -> dict[str, Any]:
    run(PROGRAMS[CLUSTER])  # now all of it is compiled
    contestants = {name: partial(run, program) for name, program in PROGRAMS.items()}
    rows = alternate(contestants, QUICK_ROUNDS if is_quick else ROUNDS)
    compare(rows, GEVENT, "ms", PLAIN)
    start = median(rows[BARE]["ms"])
    for row in rows.values():
        row["ms, start taken off"] = [value - start for value in row["ms"]]
    compare(rows, GEVENT, "ms, start taken off", NET)
    return {"rows": rows, "left_out": []}
