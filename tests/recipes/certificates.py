"""Certificates for servers, each from an authority of its own."""

from __future__ import annotations

from pathlib import Path

import trustme
from gevent import ssl

from tests.servers import HOST, _Server

NAME = "server.example.test"


def ensure_certificate(directory: Path) -> None:
    """Write ``authority.pem``, ``certificate.pem`` and ``key.pem``, unless there: for 127.0.0.1 and ``NAME``."""
    key = directory / "key.pem"
    if key.exists():
        return
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST, NAME)
    authority.cert_pem.write_to_path(directory / "authority.pem")
    certificate.cert_chain_pems[0].write_to_path(directory / "certificate.pem")
    certificate.private_key_pem.write_to_path(key)
    key.chmod(0o600)


def authority_of(server: _Server) -> str:
    """Return the file with the certificate of the authority."""
    return str(server.directory / "authority.pem")


def trust(*servers: _Server) -> ssl.SSLContext:
    """Return what trusts the authorities of these servers, and nobody else."""
    context: ssl.SSLContext = ssl.create_default_context(cafile=authority_of(servers[0]))
    for server in servers[1:]:
        context.load_verify_locations(authority_of(server))
    return context
