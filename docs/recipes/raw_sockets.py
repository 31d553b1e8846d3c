"""A protocol of your own over TCP sockets: here lines, each answered by one line."""

from gevent import socket

from geventconnpool import ClusterPool, ConnectionPool

ERRORS = (OSError,)


class Session:
    """A socket, what has been read from it but not been used, and how many replies are still to come."""

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


class Parts:
    """What both kinds of pool have in common."""

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
