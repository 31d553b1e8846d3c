"""What gunicorn serves for ``test_metrics``: each answer begins with a line that says which worker gave it."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from geventconnpool import ConnectionPool
from geventconnpool.metrics import PrometheusCollector


class Things(ConnectionPool[object]):
    def _new_connection(self) -> object:
        return object()


pool = Things(2, name="metered")
requests = Counter("requests", "Requests that were answered.")


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Use the pool, or tell how it is used."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Connection", "close")])
    who = b"%d\n" % os.getpid()
    if environ["PATH_INFO"] != "/":
        return [who, exposition(with_collector=environ["PATH_INFO"].endswith("-and-collector"))]
    requests.inc()
    with pool.get():
        return [who]


def exposition(*, with_collector: bool) -> bytes:
    registry: Any = CollectorRegistry()
    MultiProcessCollector(registry)
    if with_collector:
        registry.register(PrometheusCollector(pool))
    return generate_latest(registry)
