"""docs/recipes/imap.py: imaplib and Dovecot, over TLS."""

from __future__ import annotations

import imaplib
import platform
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gevent

from geventconnpool import ClusterPool, ConnectionPool, PoolTimeout
from geventconnpool.cluster import Endpoint
from tests.recipes.certificates import NAME, trust
from tests.recipes.description import Recipe, load, version_of
from tests.recipes.mail import Dovecot
from tests.recipes.scenes import PATIENCE
from tests.servers import _Server

module = load("imap")
ALICE = "alice", "secret"


class IMAP(Recipe):
    errors = module.ERRORS
    refused = ConnectionRefusedError

    def make_server(self) -> Dovecot:
        return Dovecot()

    def make_pool(self, server: _Server, size: int, **options: Any) -> ConnectionPool[Any]:
        host, port = server.address
        pool: ConnectionPool[Any] = module.IMAPPool(host, *ALICE, trust(server), size, port=port, **options)
        return pool

    def make_cluster(self, servers: Sequence[_Server], size: int, **options: Any) -> ClusterPool[Any]:
        places = [server.address for server in servers]
        cluster: ClusterPool[Any] = module.IMAPCluster(places, *ALICE, trust(*servers), size, **options)
        return cluster

    def call(self, c: Any, token: str) -> str:
        # RFC 3501, 6.3.8: with an empty name, LIST returns the root of the reference that it is given.
        _, (line, *_) = c.list(f"{token}.", '""')
        reply: bytes = line.split()[-1].rstrip(b".")
        return reply.decode()

    def client_version(self) -> str:
        return f"imaplib of Python {platform.python_version()}"

    def server_version(self) -> str:
        return f"Dovecot {version_of('dovecot', '--version')}"


RECIPE = IMAP()


def idling(recipe: IMAP) -> None:
    """Whoever leaves a session in IDLE, interrupted or not, leaves it to nobody."""
    with recipe.make_server() as server, recipe.make_pool(server, 1) as pool:
        with suppress(gevent.Timeout), pool.get(timeout=PATIENCE) as first, gevent.Timeout(0.5):
            _idle(first)
            first.readline()
        with pool.get(timeout=PATIENCE) as second:
            _idle(second)
        with pool.get(timeout=PATIENCE) as third:
            assert third.noop()[0] == "OK"

        assert len({first, second, third}) == 3
        discarded = pool.stats().discarded
        assert (discarded["interrupted"], discarded["not_reusable"]) == (1, 1)


def _idle(c: Any) -> None:
    c.send(c._new_tag() + b" IDLE\r\n")
    assert c.readline() == b"+ idling\r\n"


def folders(recipe: IMAP) -> None:
    """A session with a folder open is not lent again; ``folder`` closes it; that there is none breaks no session."""
    with recipe.make_server() as server, recipe.make_pool(server, 1) as pool:
        with module.folder(pool, "INBOX", readonly=False) as first:
            first.append("INBOX", None, None, b"Subject: hello\r\n\r\nHello.\r\n")
        with suppress(imaplib.IMAP4.error), module.folder(pool, "nowhere"):
            raise AssertionError("there is no such folder")
        assert module.search(pool, "INBOX", "SUBJECT", "hello") == [b"1"]
        with pool.get(timeout=PATIENCE) as second:
            second.select("INBOX")
        with pool.get(timeout=PATIENCE) as third:
            assert third.state == "AUTH"

        assert second is first
        assert third is not first
        assert pool.stats().discarded["not_reusable"] == 1
        assert pool._is_connection_error(imaplib.IMAP4.abort("socket error: EOF"))
        assert not pool._is_connection_error(imaplib.IMAP4.readonly("mailbox status changed to READ-ONLY"))


def names(recipe: IMAP) -> None:
    """Connections lead to the address of an endpoint, and its name must be in the certificate."""
    with recipe.make_server() as server:
        assert _refusal(recipe, server, NAME) == ""
        assert "CERTIFICATE_VERIFY_FAILED" in _refusal(recipe, server, "other.example.test")


def _refusal(recipe: IMAP, server: Dovecot, name: str) -> str:
    """Return why there is no connection to an endpoint of this name; nothing if there is one."""
    service = [Endpoint(name, server.port, (server.address[0],))]
    with module.IMAPCluster(service, *ALICE, trust(server), 1) as pool:
        try:
            with pool.get(timeout=2) as c:
                assert recipe.call(c, "a") == "a"
        except PoolTimeout as error:
            return str(error)
    return ""
