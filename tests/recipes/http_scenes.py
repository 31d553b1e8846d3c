"""What HTTP clients have to go through beside the five scenes, whichever they are. ``fetch`` is the recipe's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trustme
from gevent import ssl

from geventconnpool import retry
from geventconnpool.cluster import DNSResolver
from geventconnpool.testing import DNSServer
from tests.recipes.description import Recipe, version_of
from tests.recipes.nginx import Nginx
from tests.recipes.scenes import PATIENCE, Callers, ask, cause_of_timeout, running
from tests.servers import _Server

Get = Callable[[Any, str], str]  # the body at a path, by GET


class HTTPRecipe(Recipe):
    """A recipe whose server is nginx."""

    get: Get

    def make_server(self) -> _Server:
        return Nginx()

    def call(self, c: Any, token: str) -> str:
        return self.get(c, f"/echo?token={token}")

    def server_version(self) -> str:
        return f"nginx {version_of('nginx', '-v')}"


def unavailable(recipe: Recipe, module: Any) -> None:
    """A server that says 503 is not asked any more; when none can serve, that is the error."""
    with running(recipe, 2) as servers:
        with recipe.make_cluster(servers, 2) as cluster:
            cluster.wait(timeout=PATIENCE)
            servers[0].set_unavailable(True)  # type: ignore[attr-defined]
            callers = Callers(cluster, recipe)
            callers.more(50)
            callers.stop()
            assert callers.failures > 0

            servers[1].set_unavailable(True)  # type: ignore[attr-defined]
            with pytest.raises(module.Unavailable, match="503"):
                retry(ask, exc_classes=recipe.errors, max_failures=1)(cluster, recipe)


def last_request(recipe: Recipe) -> None:
    """A server that closes the connection with a response, as it says in that, is not asked on it again."""
    with Nginx(requests=3) as server, recipe.make_pool(server, 1) as pool:
        for _ in range(10):
            ask(pool, recipe)
        stats = pool.stats()

        assert stats.discarded["not_reusable"] >= 3
        assert stats.discarded["error"] == 0


def answered(recipe: Recipe, get_status: Callable[[Any, str], int]) -> None:
    """An error that is an answer leaves the connection in the pool."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        with pool.get(PATIENCE) as c:
            assert get_status(c, "/no-such-page") == 404
        with pool.get(PATIENCE) as other:
            assert other is c


def https(recipe: Recipe, get: Get, refusal: type[Exception]) -> None:
    """A server has to have a certificate for what was looked up, whatever its own name is."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    for name, is_right in (("shop.example.test", True), ("node1.example.test", False)):
        with Nginx(certificate=authority.issue_cert(name)) as server, DNSServer() as dns:
            dns.add_srv("_https._tcp.shop.example.test", "node1.example.test", server.port)
            dns.add_address("node1.example.test", "127.0.0.1")
            options = {"resolver": DNSResolver([dns.address]), "context": context}
            with recipe.cluster_class("_https._tcp.shop.example.test", 1, **options) as cluster:
                if is_right:
                    with cluster.get(PATIENCE) as c:
                        assert get(c, "/echo?token=secret") == "secret"
                else:
                    assert isinstance(cause_of_timeout(cluster), refusal)


def host_header(recipe: Recipe, get: Get) -> None:
    """Servers that DNS names are asked for what was looked up."""
    with running(recipe, 1) as (server,), DNSServer() as dns:
        dns.add_srv("_http._tcp.shop.example.test", "node1.example.test", server.port)
        dns.add_address("node1.example.test", "127.0.0.1")
        options = {"resolver": DNSResolver([dns.address])}
        with recipe.cluster_class("_http._tcp.shop.example.test", 1, **options) as cluster:
            with cluster.get(PATIENCE) as c:
                assert get(c, "/host") == f"shop.example.test:{server.port}"
