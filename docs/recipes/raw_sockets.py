"""A protocol of your own over TCP sockets: here lines, each answered by one line."""

from gevent import socket

from geventconnpool import ClusterPool, ConnectionPool

ERRORS = (OSError,)


class Session:
    """A socket, and what has been read from it but not been used yet."""

    def __init__(self, sock):
        self.sock = sock
        self.lines = sock.makefile("rb")

    def ask(self, line):
        self.sock.sendall(line + b"\n")
        reply = self.lines.readline()
        if not reply.endswith(b"\n"):
            raise OSError("the server has hung up")
        return reply[:-1]

    def fileno(self):
        return self.sock.fileno()

    def close(self):
        self.lines.close()
        self.sock.close()


class Parts:
    """What both kinds of pool have in common."""

    def _keepalive(self, session):
        if session.ask(b"PING") != b"PONG":
            raise OSError("something else was answered to PING")

    def _close_connection(self, session):
        session.sock.sendall(b"QUIT\n")
        session.close()

    def _abort_connection(self, session):
        session.close()


class LinePool(Parts, ConnectionPool):
    def __init__(self, host, port, size, keepalive=30, **options):
        super().__init__(size, ERRORS, keepalive, **options)
        self.address = host, port

    def _new_connection(self):
        return Session(socket.create_connection(self.address, timeout=5))


class LineCluster(Parts, ClusterPool):
    def __init__(self, service, size, keepalive=30, **options):
        super().__init__(service, size, ERRORS, keepalive, **options)

    def _new_connection(self, endpoint):
        return Session(endpoint.connect(timeout=5))
