"""docs/recipes/memcached.py: pymemcache and memcached."""

from __future__ import annotations

from typing import Any

import pymemcache
import pytest

from tests.recipes.description import Recipe, load, version_of
from tests.recipes.scenes import PATIENCE, interrupted_by_timeout, running, token
from tests.recipes.servers import accepts
from tests.servers import HOST, _Server, find

module = load("memcached")


class Memcached(_Server):
    program = "memcached"

    def _command(self) -> list[str]:
        program = find("memcached")
        assert program is not None, "memcached is not installed"
        return [program, "-l", HOST, "-p", str(self.port), "-U", "0", "-t", "2"]

    def _is_answering(self) -> bool:
        return accepts(self)


class Pymemcache(Recipe):
    pool_class = module.MemcachedPool
    cluster_class = module.MemcachedCluster
    errors = module.ERRORS
    refused = ConnectionRefusedError

    def make_server(self) -> _Server:
        return Memcached()

    def call(self, c: Any, token: str) -> str:
        # Nothing in the reply says whose it is, as always where a number is asked for.
        prefix, _, number = token.partition("-")
        c.set(token, number)
        return f"{prefix}-{c.incr(token, 0):06}"

    def client_version(self) -> str:
        return f"pymemcache {pymemcache.__version__}"

    def server_version(self) -> str:
        return f"memcached {version_of('memcached', '--version')}"


RECIPE = Pymemcache()


def strangers_value(recipe: Recipe) -> None:
    """A client that is used on after an interruption: what it raises then may be nothing that a pool would notice."""
    with running(recipe, 1) as (server,):
        client = module.connect(*server.address)
        client.set("mine", token())
        interrupted_by_timeout(lambda: client.get("mine"), server)
        with pytest.raises(KeyError):
            client.get("other")

        client = module.connect(*server.address)
        interrupted_by_timeout(lambda: client.get("nothing"), server)
        with pytest.raises(pymemcache.MemcacheUnknownError, match="END"):
            client.set("other", token(), noreply=False)


def closed_by_the_server(recipe: Recipe) -> None:
    """The error for this is pymemcache's own."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        pool.wait(timeout=PATIENCE)
        server.restart()
        with pytest.raises(pymemcache.MemcacheUnexpectedCloseError):
            with pool.get() as c:
                c.version()
        assert pool.stats().discarded["error"] == 1


def closed_by_the_client(recipe: Recipe) -> None:
    """pymemcache closes its socket after any error, and would connect anew in the next call: the pool does that."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        with pytest.raises(pymemcache.MemcacheClientError):
            with pool.get(PATIENCE) as c:
                c.set("number", "none")
                c.incr("number", 1)
        assert c.sock is None
        with pool.get(PATIENCE) as other:
            assert other is not c
        assert pool.stats().discarded["not_reusable"] == 1
