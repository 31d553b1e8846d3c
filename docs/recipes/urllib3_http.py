"""HTTP/1.1 through urllib3: one HTTPConnectionPool of one connection in the place of each connection."""

import urllib3
from urllib3 import exceptions

from geventconnpool import ClusterPool, ConnectionPool


class Unavailable(Exception):
    """The server says that it cannot serve now (502, 503, 504): another may."""


ERRORS = (exceptions.ProtocolError, exceptions.TimeoutError, exceptions.SSLError, Unavailable)


def connect(host, port, name, context):
    options = {"maxsize": 1, "block": True, "retries": False, "timeout": urllib3.Timeout(connect=2, read=5)}
    options["headers"] = {"Host": name if port in (80, 443) else f"{name}:{port}"}
    if context is None:
        http = urllib3.HTTPConnectionPool(host, port, **options)
    else:
        http = urllib3.HTTPSConnectionPool(host, port, ssl_context=context, server_hostname=name, **options)
    http.request("HEAD", "/", pool_timeout=1)
    return http


def fetch(http, method, path, headers=None, **options):
    """Return the response, read to its end."""
    headers = {**http.headers, **(headers or {})}
    response = http.request(method, path, headers=headers, pool_timeout=1, **options)
    if response.status in (502, 503, 504):
        raise Unavailable(f"{path}: {response.status} {response.reason}")
    return response


def connection_in(http):
    """Return the only connection, None if somebody has it."""
    return http.pool.queue[-1] if http.pool is not None and http.pool.queue else None


class Parts:
    """What both kinds of pool have in common."""

    def _keepalive(self, http):
        fetch(http, "HEAD", "/")

    def _close_connection(self, http):
        http.close()

    def _is_reusable(self, http):
        connection = connection_in(http)
        return connection is not None and connection.sock is not None

    def _fileno(self, http):
        return connection_in(http).sock.fileno()


class HTTPPool(Parts, ConnectionPool):
    def __init__(self, host, port, size, keepalive=30, context=None, **options):
        super().__init__(size, ERRORS, keepalive, **options)
        self.context = context
        self.host = host
        self.port = port

    def _new_connection(self):
        return connect(self.host, self.port, self.host, self.context)


class HTTPCluster(Parts, ClusterPool):
    def __init__(self, service, size, keepalive=30, context=None, **options):
        super().__init__(service, size, ERRORS, keepalive, **options)
        self.context = context

    def _new_connection(self, endpoint):
        name = endpoint.domain or endpoint.name
        return connect(endpoint.host, endpoint.port, name, self.context)
