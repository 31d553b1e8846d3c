"""Sends as many tasks as the argument says and prints what each returned or raised."""

from __future__ import annotations

import os
import sys

from celery import Celery  # type: ignore[import-untyped]  # it has no annotations

app = Celery(broker=os.environ["BROKER"], backend=os.environ["BROKER"])

if __name__ == "__main__":
    results = [app.send_task("ask", [f"token-{n}"]) for n in range(int(sys.argv[1]))]
    for result in results:
        print(result.get(timeout=30, propagate=False))
