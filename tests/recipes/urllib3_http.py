"""docs/recipes/urllib3_http.py: urllib3 and nginx."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import trustme
import urllib3
from gevent import ssl

from tests.recipes import http_scenes
from tests.recipes.description import HEALS, Recipe, load
from tests.recipes.nginx import Nginx
from tests.recipes.scenes import PATIENCE, running
from tests.servers import HOST

module = load("urllib3_http")


def get(c: Any, path: str) -> str:
    content: bytes = module.fetch(c, "GET", path, headers={"X-Of-The-Caller": "1"}).data
    return content.decode()


def get_status(c: Any, path: str) -> int:
    status: int = module.fetch(c, "GET", path).status
    return status


class Urllib3(http_scenes.HTTPRecipe):
    pool_class = module.HTTPPool
    cluster_class = module.HTTPCluster
    errors = module.ERRORS
    refused = urllib3.exceptions.NewConnectionError
    careless = HEALS

    get = staticmethod(get)

    def client_version(self) -> str:
        return f"urllib3 {version('urllib3')}"


RECIPE = Urllib3()


def unread(recipe: Recipe) -> None:
    """Who leaves a response unread does not leave it to the next one, who would wait for the connection."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        with pool.get(PATIENCE) as c:
            response = c.request("GET", "/echo?token=unread", preload_content=False)
            assert response.status == 200
        with pool.get(PATIENCE) as other:
            assert other is not c
            assert get(other, "/echo?token=other") == "other"
        assert pool.stats().discarded["not_reusable"] == 1


def cut_off(recipe: Recipe) -> None:
    """A body that ends too early is a connection error."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        with pytest.raises(urllib3.exceptions.ProtocolError):
            with pool.get(PATIENCE) as c:
                response = c.request("GET", "/slow", preload_content=False)
                server.kill()
                response.read()
        assert pool.stats().discarded["error"] == 1


def bad_url(recipe: Recipe) -> None:
    """What urllib3 refuses to send says nothing about the connection."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        try:
            with pool.get(PATIENCE) as c:
                c.request("GET", "http://[", pool_timeout=1)
        except urllib3.exceptions.LocationParseError:
            pass
        with pool.get(PATIENCE) as other:
            assert other is c


def unavailable(recipe: Recipe) -> None:
    http_scenes.unavailable(recipe, module)


def last_request(recipe: Recipe) -> None:
    http_scenes.last_request(recipe)


def answered(recipe: Recipe) -> None:
    http_scenes.answered(recipe, get_status)


def https(recipe: Recipe) -> None:
    http_scenes.https(recipe, get, urllib3.exceptions.SSLError)


def one_connection(recipe: Recipe) -> None:
    """urllib3 takes a connection for closed on which there is something to be read, as session tickets of TLS 1.3."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    with Nginx(certificate=authority.issue_cert(HOST)) as server:
        with module.HTTPPool(*server.address, 1, context=context) as pool, pool.get(PATIENCE) as c:
            assert [get(c, "/echo?token=a") for _ in range(5)] == ["a"] * 5

            assert c.num_connections == 1


def host_header(recipe: Recipe) -> None:
    http_scenes.host_header(recipe, get)
