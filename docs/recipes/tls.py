"""TLS over gevent sockets: to one host, to a service, and which name the certificate has to be for."""

from gevent import socket, ssl

from geventconnpool import ClusterPool, ConnectionPool

ERRORS = (OSError,)


class Session:
    """Lines over a socket, as in raw_sockets.py."""

    def __init__(self, sock):
        self.sock = sock
        self.rest = b""
        self.unanswered = 0

    def ask(self, line):
        self.unanswered += 1
        self.sock.sendall(line + b"\n")
        while b"\n" not in self.rest:
            data = self.sock.recv(4096)
            if not data:
                raise ConnectionResetError("the server has hung up")
            self.rest += data
        reply, _, self.rest = self.rest.partition(b"\n")
        self.unanswered -= 1
        return reply

    def fileno(self):
        return self.sock.fileno()

    def close(self):
        self.sock.close()


def make_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # gevent's class, whether patched or not
    context.load_default_certs()
    return context


def secure(sock, context, name):
    try:
        return Session(context.wrap_socket(sock, server_hostname=name))
    except BaseException:
        sock.close()
        raise


class Parts:
    """What all of these pools have in common."""

    context = None

    def _keepalive(self, session):
        if session.ask(b"PING") != b"PONG":
            raise OSError("the answer to PING is not PONG")

    def _close_connection(self, session):
        session.sock.sendall(b"QUIT\n")
        session.close()

    def _abort_connection(self, session):
        session.close()

    def _is_reusable(self, session):
        return session.unanswered == 0 and not session.rest


class TLSPool(Parts, ConnectionPool):
    def __init__(self, host, port, size, keepalive=30, context=None, **options):
        super().__init__(size, ERRORS, keepalive, **options)
        self.address = host, port
        self.context = context or make_context()

    def _new_connection(self):
        sock = socket.create_connection(self.address, timeout=5)
        return secure(sock, self.context, self.address[0])


class TLSCluster(Parts, ClusterPool):
    """Verifies the name that was asked for: all servers have a certificate for that."""

    def __init__(self, service, size, keepalive=30, context=None, **options):
        super().__init__(service, size, ERRORS, keepalive, **options)
        self.context = context or make_context()

    def _new_connection(self, endpoint):
        return secure(endpoint.connect(timeout=5), self.context, self._verified_name(endpoint))

    def _verified_name(self, endpoint):
        return endpoint.domain or endpoint.name


class TLSClusterOfNames(TLSCluster):
    """Verifies the names that DNS tells: each server has a certificate for its own."""

    def _verified_name(self, endpoint):
        return endpoint.name
