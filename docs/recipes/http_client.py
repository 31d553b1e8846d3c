"""HTTP/1.1 through http.client of the standard library: one server, and a service."""

from http.client import HTTPConnection, HTTPException

from gevent import socket

from geventconnpool import ClusterPool, ConnectionPool


class Unavailable(Exception):
    """The server says that it cannot serve now (502, 503, 504): another may."""


ERRORS = (OSError, HTTPException, Unavailable)


class Connection(HTTPConnection):
    """Knows whether a response is still to come or to be read; never connects by itself."""

    auto_open = 0
    is_asked = False
    answer = None

    def putrequest(self, *args, **options):
        super().putrequest(*args, **options)
        self.is_asked = True

    def getresponse(self):
        self.answer = super().getresponse()
        self.is_asked = False
        return self.answer

    @property
    def is_at_rest(self):
        is_read = self.answer is None or self.answer.isclosed()
        return self.sock is not None and not self.is_asked and is_read

    def fileno(self):
        return self.sock.fileno()


def connect(sock, host, port, context):
    connection = Connection(host, port)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        connection.default_port = 443
        sock = secure(sock, context, host)
    connection.sock = sock
    return connection


def secure(sock, context, name):
    try:
        return context.wrap_socket(sock, server_hostname=name)
    except BaseException:
        sock.close()
        raise


def fetch(connection, method, path, body=None, headers=None):
    """Return (status, body) of a response that has been read to its end."""
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    content = response.read()
    if response.status in (502, 503, 504):
        raise Unavailable(f"{path}: {response.status} {response.reason}")
    return response.status, content


class Parts:
    """What both kinds of pool have in common."""

    def _keepalive(self, connection):
        fetch(connection, "HEAD", "/")

    def _close_connection(self, connection):
        connection.close()

    def _is_reusable(self, connection):
        return connection.is_at_rest


class HTTPPool(Parts, ConnectionPool):
    def __init__(self, host, port, size, keepalive=30, context=None, **options):
        super().__init__(size, ERRORS, keepalive, **options)
        self.context = context
        self.host = host
        self.port = port

    def _new_connection(self):
        sock = socket.create_connection((self.host, self.port), timeout=5)
        return connect(sock, self.host, self.port, self.context)


class HTTPCluster(Parts, ClusterPool):
    def __init__(self, service, size, keepalive=30, context=None, **options):
        super().__init__(service, size, ERRORS, keepalive, **options)
        self.context = context

    def _new_connection(self, endpoint):
        host = endpoint.domain or endpoint.name
        return connect(endpoint.connect(timeout=5), host, endpoint.port, self.context)
