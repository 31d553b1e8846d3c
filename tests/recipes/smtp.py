"""docs/recipes/smtp.py: smtplib and aiosmtpd."""

from __future__ import annotations

import platform
import smtplib
from collections.abc import Sequence
from email.message import EmailMessage
from importlib.metadata import version
from typing import Any

from geventconnpool import ClusterPool, ConnectionPool, PoolTimeout
from geventconnpool.cluster import Endpoint
from tests.recipes.certificates import NAME, trust
from tests.recipes.description import Recipe, load
from tests.recipes.mail import Relay
from tests.recipes.scenes import PATIENCE
from tests.servers import _Server, wait_until

module = load("smtp")
OURSELVES = "app.example.org"


class SMTP(Recipe):
    errors = module.ERRORS
    refused = ConnectionRefusedError

    def make_server(self) -> Relay:
        return Relay()

    def make_pool(self, server: _Server, size: int, **options: Any) -> ConnectionPool[Any]:
        pool: ConnectionPool[Any] = module.SMTPPool(*server.address, OURSELVES, size, **options)
        return pool

    def make_cluster(self, servers: Sequence[_Server], size: int, **options: Any) -> ClusterPool[Any]:
        places = [server.address for server in servers]
        cluster: ClusterPool[Any] = module.SMTPRelays(places, OURSELVES, size, **options)
        return cluster

    def call(self, c: Any, token: str) -> str:
        _, reply = c.verify(token)
        first: bytes = reply.split()[0]
        return first.decode()

    def client_version(self) -> str:
        return f"smtplib of Python {platform.python_version()}"

    def server_version(self) -> str:
        return f"aiosmtpd {version('aiosmtpd')}"


RECIPE = SMTP()


def mail(subject: str, recipient: str = "bob@example.org") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "alice@example.org", recipient, subject
    message.set_content("Hello.")
    return message


def subjects(*relays: Relay) -> list[str]:
    """Return the subjects of the mails that relays have taken."""
    return [line["subject"] for relay in relays for line in relay.mails]


def answers(recipe: SMTP) -> None:
    """A refused recipient is an answer; 421 is the end of the connection, which was not the mail's fault."""
    with recipe.make_server() as server, recipe.make_pool(server, 1) as pool:
        with pool.get(timeout=PATIENCE) as first:
            first.send_message(mail("one"))
        for to, error in (
            ("bob@nowhere.example", smtplib.SMTPRecipientsRefused),  # an OSError
            ("bob@closing.example", smtplib.SMTPServerDisconnected),
        ):
            try:
                with pool.get(timeout=PATIENCE) as second:
                    assert second is first
                    second.send_message(mail("two", to))
            except error:
                continue
            raise AssertionError(f"{to} was accepted")
        with pool.get(timeout=PATIENCE) as third:
            third.send_message(mail("three"))

        assert third is not first
        assert pool.stats().discarded["error"] == sum(pool.stats().discarded.values()) == 1
        assert subjects(server) == ["one", "three"]


def begun(recipe: SMTP) -> None:
    """A session in which a mail was begun is not lent again, unless it was reset."""
    with recipe.make_server() as server, recipe.make_pool(server, 1) as pool:
        with pool.get(timeout=PATIENCE) as first:
            first.mail("alice@example.org")
            first.rset()
        with pool.get(timeout=PATIENCE) as second:
            second.mail("alice@example.org")
        with pool.get(timeout=PATIENCE) as third:
            third.send_message(mail("one"))

        assert second is first
        assert third is not first
        assert pool.stats().discarded["not_reusable"] == 1
        assert subjects(server) == ["one"]


def in_doubt(recipe: SMTP) -> None:
    """Of a mail that was given away, but not acknowledged, nobody knows: it is not given to another relay."""
    with recipe.make_server() as one, recipe.make_server() as other:
        with recipe.make_cluster([one, other], 1) as pool:
            try:
                module.send(pool, mail("lost"))
            except module.InDoubt:
                pass
            else:
                raise AssertionError("the relay has not answered")

            assert pool.stats().discarded["error"] == 1
            assert subjects(one, other) == ["lost"]


def relays(recipe: SMTP) -> None:
    """One of two relays dies between two mails: each mail is taken, and once."""
    with recipe.make_server() as one, recipe.make_server() as other:
        with recipe.make_cluster([one, other], 2) as pool:
            pool.wait(4, timeout=PATIENCE)
            for number in range(20):
                module.send(pool, mail(f"{number:02}"))
            assert min(len(one.mails), len(other.mails)) > 0

            one.kill()
            for number in range(20, 40):
                module.send(pool, mail(f"{number:02}"))

            assert sorted(subjects(one, other)) == [f"{number:02}" for number in range(40)]


def secured(recipe: SMTP) -> None:
    """With STARTTLS and a login, to the address of an endpoint whose name must be in the certificate."""
    login = "app", "secret"
    with Relay(login) as server:
        options = {"tls": trust(server), "login": login}
        with module.SMTPPool(*server.address, OURSELVES, 1, **options) as pool:
            module.send(pool, mail("one"))
        assert _refusal(server, NAME, options) == ""
        assert "CERTIFICATE_VERIFY_FAILED" in _refusal(server, "other.example.test", options)
        assert "535" in _refusal(server, NAME, {**options, "login": ("app", "wrong")})
        assert subjects(server) == ["one", "two"]


def _refusal(server: Relay, name: str, options: dict[str, Any]) -> str:
    """Send a mail to an endpoint of this name; return why there was no connection to it, nothing if there was one."""
    service = [Endpoint(name, server.port, (server.address[0],))]
    with module.SMTPRelays(service, OURSELVES, 1, timeout=2, **options) as pool:
        wait_until(lambda: pool.stats().opened or pool.stats().open_errors, what="the end of a connect")
        try:
            module.send(pool, mail("two"))
        except PoolTimeout as error:
            return str(error)
    return ""
