"""The status page where it is mounted, with real sockets: pywsgi, Flask, Django, a thread, the child of a fork."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import gevent
import pytest
from gevent import socket
from gevent.pywsgi import WSGIServer
from gevent.threadpool import ThreadPool

from geventconnpool import ClusterPool, Endpoint
from geventconnpool.cluster import OutlierDetection
from geventconnpool.status import StatusApp
from tests.browser import Connection
from tests.documents import blocks
from tests.servers import HOST, free_port, wait_until

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "status-page.rst"


class Lines(ClusterPool[socket.socket]):
    def _new_connection(self, endpoint: Endpoint) -> socket.socket:
        return endpoint.connect(timeout=30)


@pytest.fixture
def dead() -> Endpoint:
    """Return where nobody listens."""
    return Endpoint(HOST, free_port())


@pytest.fixture
def lines(tcp_server, dead):
    """Yield a cluster of which one endpoint is well and the other ejected."""
    patient = OutlierDetection(base_ejection_time=60, jitter=0)
    with Lines([tcp_server.address, dead.address], 2, name="lines", outlier=patient) as pool:
        wait_until(lambda: "ejected" in {entry.state for entry in pool.stats().endpoints})
        with pool.get(timeout=30) as c:
            c.sendall(b"PING\n")
            assert c.recv(5) == b"PONG\n"
        yield pool


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: str) -> None:
        self.status = status
        self.headers = headers
        self.body = body


def ask(server: WSGIServer, path: str, method: str = "GET", **headers: str) -> Response:
    connection = Connection(HOST, server.server_port)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return Response(response.status, dict(response.getheaders()), body)


@pytest.fixture
def serve():
    servers: list[WSGIServer] = []

    def start(application) -> WSGIServer:
        server = WSGIServer((HOST, 0), application, log=None, error_log=None)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def test_an_endpoint_that_is_dead_is_shown_with_its_error_and_its_next_probe(serve, lines, tcp_server, dead):
    answer = ask(serve(StatusApp(lines)), "/?format=json")

    (pool,) = json.loads(answer.body)["pools"]
    entries = {entry["endpoint"]: entry for entry in pool["endpoints"]}
    well, ill = entries[str(Endpoint(*tcp_server.address))], entries[str(dead)]
    assert pool["state"] == "active"
    assert (well["state"], well["verdict"], well["ok"], well["failed"]) == ("active", "next", 1, 0)
    assert 0 < well["latency_seconds"] < 30
    assert (ill["state"], ill["verdict"], ill["ejections"], ill["open"]) == ("ejected", "ejected", 1, 0)
    assert ill["last_error"] == "ConnectionRefusedError: [Errno 111] Connection refused"
    assert ill["why"].startswith("for ")
    assert 0 < ill["next_probe_in_seconds"] <= 60
    assert 0 <= ill["since_seconds"] < 60


def test_the_page_for_browsers_shows_the_same(serve, lines, dead):
    page = ask(serve(StatusApp(lines)), "/").body

    row = page.partition(f'<th scope="row">{dead}</th>')[2].partition("</tbody>")[0]
    assert row.startswith('<td class="state"><span class="badge ejected">ejected</span></td>')
    assert 'data-label="Next">probe ' in row
    assert "ConnectionRefusedError(111, " in page


def test_head_over_http_is_answered_without_a_body(serve, lines):
    answer = ask(serve(StatusApp(lines)), "/", "HEAD")

    assert (answer.status, answer.body) == (200, "")
    assert int(answer.headers["Content-Length"]) > 3000


def test_a_post_over_http_is_refused(serve, lines):
    answer = ask(serve(StatusApp(lines)), "/", "POST")

    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def documented(module: str) -> str:
    """Return the block of the docs that imports from a module."""
    (block,) = [source for _, source in blocks(DOCS.read_text()) if f"from {module} import" in source]
    return block


def flask(lines: Lines, *modules: str) -> Any:
    """Return the Flask application of the docs."""
    namespace: dict[str, Any] = {"__name__": "shop", "status": StatusApp(lines)}
    for module in modules:
        exec(documented(module), namespace)
    return namespace["app"]


def test_flask_has_it_as_a_view(serve, lines):
    server = serve(flask(lines, "flask"))

    assert ">lines <small>cluster</small>" in ask(server, "/internal/pools").body
    assert ask(server, "/internal/pools", "HEAD").body == ""
    assert ask(server, "/internal/pools?format=xml").status == 400
    assert ask(server, "/internal/pools").headers["Cache-Control"] == "no-store"


def test_flask_has_it_beside_its_own_pages(serve, lines):
    app = flask(lines, "flask", "werkzeug.middleware.dispatcher")
    app.add_url_rule("/", view_func=lambda: "the shop")
    server = serve(app)

    assert ask(server, "/").body == "the shop"
    assert ">lines <small>cluster</small>" in ask(server, "/internal/status").body
    assert ask(server, "/internal/status/?format=text").body.startswith("Process ")
    assert ask(server, "/internal/status", Accept="application/json").headers["Content-Type"] == "application/json"


def test_a_thread_that_is_not_the_pools_gets_all_but_the_reasons(lines, dead):
    app = StatusApp(lines)

    def elsewhere() -> bytes:
        environ: dict[str, object] = {"QUERY_STRING": "format=json"}
        setup_testing_defaults(environ)
        return b"".join(app(environ, lambda *_said: lambda _data: None))

    threads = ThreadPool(1)
    try:
        (pool,) = json.loads(threads.spawn(elsewhere).get(timeout=30))["pools"]
    finally:
        threads.kill()

    states = {entry["endpoint"]: (entry["state"], entry["verdict"], entry["why"]) for entry in pool["endpoints"]}
    assert states[str(dead)] == ("ejected", None, None)


FORK = """
import os, sys
import gevent
from gevent.monkey import get_original
from geventconnpool import ClusterPool, ConnectionPool
from geventconnpool.status import StatusApp
from wsgiref.util import setup_testing_defaults

class Cluster(ClusterPool):
    def _new_connection(self, endpoint):
        return endpoint.connect(timeout=30)

class Pool(ConnectionPool):
    def _new_connection(self):
        return gevent.socket.create_connection(address)

address = ("127.0.0.1", int(sys.argv[1]))
cluster, pool = Cluster([address], 2, name="cluster"), Pool(2, name="pool")
cluster.wait(timeout=30)
pool.wait(timeout=30)
app = StatusApp(cluster, pool)
if get_original("os", "fork")() == 0:
    environ = {"QUERY_STRING": "format=json"}
    setup_testing_defaults(environ)
    print(b"".join(app(environ, lambda *said: None)).decode(), flush=True)
    gevent.sleep(0.2)  # time enough to connect for whoever wanted to
    os._exit(0)
print(os.wait()[1])
"""


def test_a_child_shows_pools_that_have_not_begun_and_does_not_begin_them(tcp_server):
    program = gevent.get_hub().threadpool.apply(run, (FORK, tcp_server.address[1]))

    document, _, status = program.stdout.rpartition("}\n")
    states = {
        pool["name"]: (pool["state"], pool["open"], pool["endpoints"]) for pool in json.loads(document + "}")["pools"]
    }
    assert (program.stderr, status) == ("", "\n0\n")
    assert states == {"cluster": ("starting", 0, []), "pool": ("starting", 0, None)}
    assert tcp_server.opened == 4  # by the parent


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)


DJANGO = """
import json
import django
from django.conf import settings

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"], MIDDLEWARE=[
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.gzip.GZipMiddleware",
])
django.setup()

from django.core.wsgi import get_wsgi_application
from django.test import Client
from django.urls import path
from geventconnpool import ConnectionPool
from geventconnpool.status import StatusApp

class Pool(ConnectionPool):
    def _new_connection(self):
        return object()

pool = Pool(2, name="accounts")
pool.wait(timeout=10)
status = StatusApp(pool)

{view}

urlpatterns = [path("internal/pools", pools)]
get_wsgi_application()
client = Client()
page = client.get("/internal/pools")
print(json.dumps({
    "page": [page.status_code, page["Content-Security-Policy"][:18], page.content.decode().count(">accounts <")],
    "json": client.get("/internal/pools?format=json").json()["pools"][0]["idle"],
    "accept": client.get("/internal/pools", HTTP_ACCEPT="application/json")["Content-Type"],
    "head": len(client.head("/internal/pools").content),
    "post": [client.post("/internal/pools").status_code, client.post("/internal/pools")["Allow"]],
    "bad": client.get("/internal/pools?format=xml").status_code,
}))
"""


def test_django_has_it_as_a_view():
    program = gevent.get_hub().threadpool.apply(run, (DJANGO.replace("{view}", documented("django.http")),))

    assert program.stderr == ""
    assert json.loads(program.stdout) == {
        "page": [200, "default-src 'none'", 1],
        "json": 2,
        "accept": "application/json",
        "head": 0,
        "post": [405, "GET, HEAD"],
        "bad": 400,
    }


def test_whoever_imports_the_package_does_not_pay_for_the_page():
    program = run("import geventconnpool, sys; print([m for m in sys.modules if 'geventconnpool.status' in m])")

    assert (program.stdout, program.stderr) == ("[]\n", "")


def test_the_page_of_lone_pools_needs_no_dns():
    program = run("import geventconnpool.status, sys; print([m for m in sys.modules if m.split('.')[0] == 'dns'])")

    assert (program.stdout, program.stderr) == ("[]\n", "")
