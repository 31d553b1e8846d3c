"""Every Python block of README.rst and of docs/ runs, in order, as one program per document.

The text runs as it stands, but for the names that lead to servers of ours in it: ``setting`` says to which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from geventconnpool import ClusterPool, ConnectionPool
from geventconnpool.testing import DNSServer
from tests.documents import blocks

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.rst") if "_build" not in path.parts)
DOCUMENTS = {path.relative_to(ROOT / "docs").as_posix(): path for path in PAGES} | {"README.rst": ROOT / "README.rst"}

# What the documents look up in the DNS of others.
SERVICES = (
    "_ping._tcp.example.org",
    "_redis._tcp.cache.default.svc.cluster.local",
    "_redis._tcp.service.consul",
    "redis.service.consul",
    "_redis._tcp.internal.example.org",
    "_redis._tcp.example.org",
)


@pytest.fixture
def setting(tcp_server) -> Iterator[dict[str, str]]:
    """What stands in the documents, and what is run instead."""
    with DNSServer() as dns:
        host, port = tcp_server.address
        for service in SERVICES:
            dns.add_srv(service, "host.example.org", port)
        dns.add_address("host.example.org", host)
        nameservers = f"nameservers=[{dns.address}]"
        resolver = f"resolver=DNSResolver({nameservers})"
        yield {
            '"test.example.org", 2485': f'"{host}", {port}',
            '("127.0.0.1", 8080)': '("127.0.0.1", 0)',
            'Pings("_ping._tcp.example.org", 10': f'Pings("_ping._tcp.example.org", 10, {resolver}',
            'nameservers=[("127.0.0.1", 8600)]': nameservers,
            '("127.0.0.1", 9200)': '("127.0.0.1", 0)',
            'nameservers=["192.0.2.53", "192.0.2.54"]': nameservers,
            "DNSResolver(empty_hold=": f"DNSResolver({nameservers}, empty_hold=",
            "DNSResolver(max_refresh=": f"DNSResolver({nameservers}, max_refresh=",
            "import ClusterPool\n": "import ClusterPool; from geventconnpool.cluster import DNSResolver\n",
        }


def run(path: Path, setting: dict[str, str]) -> dict[str, object]:
    """Run the blocks of a document in one namespace, which is returned."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, source in blocks(path.read_text()):
        if source.startswith("# locustfile.py"):
            continue  # needs locust: make test-runs
        for text, instead in setting.items():
            source = source.replace(text, instead)
        # The empty lines make tracebacks point into the document.
        exec(compile("\n" * line + source, str(path), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", [name for name, path in DOCUMENTS.items() if blocks(path.read_text())])
def test_every_python_block_runs(name, setting):
    namespace = run(DOCUMENTS[name], setting)

    for pool in namespace.values():
        if isinstance(pool, ConnectionPool | ClusterPool):
            assert pool.close(timeout=5)


def test_no_block_is_overlooked():
    texts = {name: path.read_text() for name, path in DOCUMENTS.items()}

    assert {name: text.count("code-block:: python") for name, text in texts.items()} == {
        name: len(blocks(text)) for name, text in texts.items()
    }
    assert len(blocks(texts["README.rst"])) >= 5
    assert len(blocks(texts["tutorial.rst"])) >= 8


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(name):
    text = DOCUMENTS[name].read_text()

    for target in re.findall(r"<(docs/[^>]+)>", text):
        assert (ROOT / target).exists()
    for target in re.findall(r":doc:`(?:[^`<]+<)?([^`>]+)>?`", text):
        folder = ROOT / "docs" if target.startswith("/") else DOCUMENTS[name].parent
        assert (folder / f"{target.lstrip('/')}.rst").exists()
