"""Users of locust that borrow from pools at module level. ``--processes`` forks after this was imported."""

from __future__ import annotations

from itertools import count
from time import perf_counter
from typing import Any

from locust import User, constant, events, task  # type: ignore[import-not-found]  # in .venv-runs only

from tests.apps.client import Cluster, Pool, open_pools

pool, cluster = open_pools()
numbers = count()


class Caller(User):  # type: ignore[misc]  # what is not installed has no types
    wait_time = constant(0.01)

    @task
    def ask_the_server(self) -> None:
        self.call("server", pool)

    @task
    def ask_the_service(self) -> None:
        self.call("service", cluster)

    def call(self, name: str, place: Pool | Cluster) -> None:
        """Do as locust's own clients do: tell how long it took, and what it raised."""
        error = None
        began = perf_counter()
        try:
            with place.get(timeout=30) as c:
                c.ask("ASK", f"token-{next(numbers)}")
        except Exception as exception:
            error = exception
        milliseconds = 1000 * (perf_counter() - began)
        self.environment.events.request.fire(
            request_type="ASK", name=name, response_time=milliseconds, response_length=0, exception=error
        )


@events.quitting.add_listener
def close(**_: Any) -> None:
    """Say goodbye: in each worker, and in the master if it has connected."""
    pool.close(5)
    cluster.close(5)
