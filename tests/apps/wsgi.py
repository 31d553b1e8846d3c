"""A WSGI application with pools at module level, as most have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from tests.apps.client import open_pools

pool, cluster = open_pools()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    token = environ["QUERY_STRING"]
    answer = f"{os.getpid()} {token} {verdict(token)}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


def verdict(token: str) -> str:
    """Borrow from both pools and say whether the answers were to what was asked."""
    try:
        for place in (pool, cluster):
            with place.get(timeout=30) as c:
                c.ask("ASK", token)
    except Exception as error:
        return repr(error)
    return "right"


def close() -> None:
    pool.close(5)
    cluster.close(5)
