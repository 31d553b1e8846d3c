"""docs/recipes/http_client.py: http.client and nginx."""

from __future__ import annotations

import http.client
import platform
import ssl
from typing import Any

import pytest

from tests.recipes import http_scenes
from tests.recipes.description import REFUSES, Recipe, load
from tests.recipes.nginx import Nginx
from tests.recipes.scenes import PATIENCE, ask, running

module = load("http_client")


def get(c: Any, path: str) -> str:
    content: bytes = module.fetch(c, "GET", path)[1]
    return content.decode()


def get_status(c: Any, path: str) -> int:
    status: int = module.fetch(c, "GET", path)[0]
    return status


class HTTPClient(http_scenes.HTTPRecipe):
    pool_class = module.HTTPPool
    cluster_class = module.HTTPCluster
    errors = module.ERRORS
    refused = ConnectionRefusedError
    careless = REFUSES

    get = staticmethod(get)

    def client_version(self) -> str:
        return f"http.client of Python {platform.python_version()}"


RECIPE = HTTPClient()


def unread(recipe: Recipe) -> None:
    """Who leaves a response unread does not leave it to the next one."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        with pool.get(PATIENCE) as c:
            c.request("GET", "/echo?token=unread")
            assert c.getresponse().status == 200
        with pool.get(PATIENCE) as other:
            assert other is not c
            assert get(other, "/echo?token=other") == "other"
        assert pool.stats().discarded["not_reusable"] == 1


def cut_off(recipe: Recipe) -> None:
    """A body that ends too early is a connection error."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        with pytest.raises(http.client.IncompleteRead):
            with pool.get(PATIENCE) as c:
                c.request("GET", "/slow")
                response = c.getresponse()
                server.kill()
                response.read()
        assert pool.stats().discarded["error"] == 1


def second_request(recipe: Recipe) -> None:
    """A connection that the server has closed in the middle of a block is not opened again, to who knows where."""
    with Nginx(requests=1) as server, recipe.make_pool(server, 1) as pool:
        with pytest.raises(http.client.NotConnected):
            with pool.get(PATIENCE) as c:
                assert get(c, "/echo?token=first") == "first"
                get(c, "/echo?token=second")
        ask(pool, recipe)


def unavailable(recipe: Recipe) -> None:
    http_scenes.unavailable(recipe, module)


def last_request(recipe: Recipe) -> None:
    http_scenes.last_request(recipe)


def answered(recipe: Recipe) -> None:
    http_scenes.answered(recipe, get_status)


def https(recipe: Recipe) -> None:
    http_scenes.https(recipe, get, ssl.SSLCertVerificationError)


def host_header(recipe: Recipe) -> None:
    http_scenes.host_header(recipe, get)
