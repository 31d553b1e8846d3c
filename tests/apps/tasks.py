"""Celery tasks that use pools at module level."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals  # type: ignore[import-untyped]  # it has no annotations

from tests.apps.client import open_pools

app = Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
pool, cluster = open_pools()


@app.task(name="ask")
def ask(token: str) -> str:
    for place in (pool, cluster):
        with place.get(timeout=30) as c:
            c.ask("ASK", token)
    return f"{os.getpid()} {token} right"


@signals.worker_shutdown.connect
@signals.worker_process_shutdown.connect
def close(**_: Any) -> None:
    """Say goodbye: in the worker, and in each of its children if it is one that forks."""
    pool.close(5)
    cluster.close(5)
