"""Measures one group of the speed benchmark, in a process of its own that gevent has patched, and writes JSON.

python -m tests.benchmarks.measure GROUP FILE [--quick]
"""

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()  # before anything else is imported: some pools of others need it, ours does not mind

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path


def main(arguments: Sequence[str]) -> None:
    group, file, *flags = arguments
    module = import_module(f"tests.benchmarks.{group.replace('-', '_')}")
    Path(file).write_text(json.dumps(module.measure(flags == ["--quick"])))


if __name__ == "__main__":
    main(sys.argv[1:])
