"""What the scenes have to know of a recipe: how to make its pools, how to run its server, how to put a question.

A recipe NAME is ``docs/recipes/NAME.py``, which users copy; ``tests/recipes/NAME.py`` describes it by ``RECIPE``, an
object of a subclass of :class:`Recipe`, and may have scenes of its own, functions that are given the recipe;
``tests/recipes/test_NAME.py`` has pytest play them.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geventconnpool import ClusterPool, ConnectionPool
from tests.servers import _Server, find

RECIPES = Path(__file__).parent.parent.parent / "docs" / "recipes"

# What becomes of a connection on which a call was interrupted, if it is used all the same.
CROSS_TALK = "the next caller gets the reply to the one before"
REFUSES = "the client raises"
HEALS = "the client has noticed and connects anew"


def load(name: str) -> Any:
    """Return the module that ``docs/recipes/NAME.py`` is; under another name, as some are called like a library."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def version_of(program: str, flag: str) -> str:
    """Return the first number with dots that a program prints with ``flag``."""
    path = find(program)
    assert path is not None, f"{program} is not installed"
    printed = subprocess.run([path, flag], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", printed.stdout + printed.stderr)
    assert found is not None, f"{program} {flag} tells no version"
    return found[0]


class Recipe:
    """Override all that has no default. ``call`` must put one question and return the reply as it is."""

    pool_class: Any  # the recipe's ConnectionPool, made as (host, port, size, **options)
    cluster_class: Any  # the recipe's ClusterPool, made as (service, size, **options)
    errors: tuple[type[BaseException], ...]  # that mean a broken connection: what the recipe gives to its pools
    refused: type[BaseException]  # what opening a connection raises when nobody listens
    careless: str = CROSS_TALK  # or REFUSES or HEALS, see there

    def make_server(self) -> _Server:
        """Return a server, not started yet; :class:`tests.recipes.servers.Tree` if it has child processes."""
        raise NotImplementedError

    def make_pool(self, server: _Server, size: int, **options: Any) -> ConnectionPool[Any]:
        pool: ConnectionPool[Any] = self.pool_class(*server.address, size, **options)
        return pool

    def make_cluster(self, servers: Sequence[_Server], size: int, **options: Any) -> ClusterPool[Any]:
        cluster: ClusterPool[Any] = self.cluster_class([server.address for server in servers], size, **options)
        return cluster

    def call(self, c: Any, token: str) -> str:
        """Have the server say ``token`` and return what it says: so a reply to somebody else shows."""
        raise NotImplementedError

    def hang_up(self, server: _Server) -> None:
        """Have the server close all connections; it accepts new ones when this returns."""
        server.restart()

    def client_version(self) -> str:
        """As in "redis-py 8.1.0"."""
        raise NotImplementedError

    def server_version(self) -> str:
        """As in "Redis 7.0.15"."""
        raise NotImplementedError
