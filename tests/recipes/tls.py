"""docs/recipes/tls.py: gevent's ssl and a server of lines, with certificates made on the spot."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import gevent
import trustme

from geventconnpool import ClusterPool, ConnectionPool
from geventconnpool.cluster import DNSResolver
from geventconnpool.testing import DNSServer
from tests.recipes.description import Recipe, load
from tests.recipes.raw_sockets import LineServer
from tests.recipes.scenes import PATIENCE, SIZE, ask, ask_at_once, cause_of_timeout, running
from tests.servers import HOST, _Server, wait_until

module = load("tls")
authority = trustme.CA()
context = module.make_context()
authority.configure_trust(context)

SERVICE, DOMAIN, TARGET = "_lines._tcp.lines.example.test", "lines.example.test", "host1.example.test"


class SecureLineServer(LineServer):
    """Has a certificate for ``name``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._certificate = authority.issue_cert(name)

    def arguments(self) -> list[str]:
        path = self.directory / "certificate.pem"
        self._certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
        return [str(path)]


class TLS(Recipe):
    errors = module.ERRORS
    refused = ConnectionRefusedError

    def make_server(self) -> _Server:
        return SecureLineServer(HOST)

    def make_pool(self, server: _Server, size: int, **options: Any) -> ConnectionPool[Any]:
        pool: ConnectionPool[Any] = module.TLSPool(*server.address, size, context=context, **options)
        return pool

    def make_cluster(self, servers: Sequence[_Server], size: int, **options: Any) -> ClusterPool[Any]:
        addresses = [server.address for server in servers]
        cluster: ClusterPool[Any] = module.TLSCluster(addresses, size, context=context, **options)
        return cluster

    def call(self, c: Any, token: str) -> str:
        reply: bytes = c.ask(token.encode())
        return reply.decode()

    def client_version(self) -> str:
        return f"gevent {gevent.__version__}, {ssl.OPENSSL_VERSION}"

    def server_version(self) -> str:
        return "a line server of the tests"


RECIPE = TLS()


@contextmanager
def service_with_certificate_for(name: str, cluster_class: Any):
    """A service of one server, in DNS under SERVICE, and a cluster for it."""
    with SecureLineServer(name) as server, DNSServer() as dns:
        dns.add_srv(SERVICE, TARGET, server.port)
        dns.add_address(TARGET, HOST)
        with cluster_class(SERVICE, 1, context=context, resolver=DNSResolver([dns.address])) as cluster:
            yield cluster


def expect_refusal(cluster: Any) -> None:
    cause = cause_of_timeout(cluster)

    assert isinstance(cause, ssl.SSLCertVerificationError), repr(cause)
    assert cause.verify_code == 62  # X509_V_ERR_HOSTNAME_MISMATCH


def domain(recipe: Recipe) -> None:
    """A certificate for the name that was looked up."""
    with service_with_certificate_for(DOMAIN, module.TLSCluster) as cluster:
        ask(cluster, recipe)
    with service_with_certificate_for(DOMAIN, module.TLSClusterOfNames) as cluster:
        expect_refusal(cluster)


def target(recipe: Recipe) -> None:
    """A certificate for the name that DNS told."""
    with service_with_certificate_for(TARGET, module.TLSClusterOfNames) as cluster:
        ask(cluster, recipe)
    with service_with_certificate_for(TARGET, module.TLSCluster) as cluster:
        expect_refusal(cluster)


def wrong_name(recipe: Recipe) -> None:
    """A certificate for somebody else."""
    for cluster_class in (module.TLSCluster, module.TLSClusterOfNames):
        with service_with_certificate_for("other.example.test", cluster_class) as cluster:
            expect_refusal(cluster)


def unknown_authority(recipe: Recipe) -> None:
    """A certificate that nobody vouches for, to a pool that was given no context of its own."""
    with running(recipe, 1) as (server,), module.TLSPool(*server.address, 1) as pool:
        assert isinstance(cause_of_timeout(pool), ssl.SSLCertVerificationError)


def fresh(recipe: Recipe) -> None:
    """Connections that were never used have something to be read, the session tickets of TLS 1.3, and are alive."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, SIZE) as pool:
        pool.wait(timeout=PATIENCE)
        opened_at = monotonic()
        # From one second on, the pool looks before it hands out.
        wait_until(lambda: monotonic() > opened_at + 1.1)
        with pool.get() as c:
            assert c.sock.version() == "TLSv1.3"
        ask_at_once(pool, recipe, callers=2 * SIZE)
        stats = pool.stats()

        assert (stats.opened, sum(stats.discarded.values())) == (SIZE, 0), stats
