"""IMAP over TLS through imaplib: a server, or several that have the same mailboxes."""

import imaplib
from contextlib import contextmanager

from geventconnpool import ClusterPool, ConnectionPool, retry

ERRORS = (imaplib.IMAP4.abort, OSError)


def log_in(c, user, password):
    try:
        c.login(user, password)
    except BaseException:
        c.shutdown()
        raise
    return c


class Session(imaplib.IMAP4_SSL):
    """Leads to the addresses of an endpoint, and verifies its name."""

    def __init__(self, endpoint, tls):
        self._endpoint = endpoint
        super().__init__(endpoint.name, endpoint.port, ssl_context=tls, timeout=10)

    def _create_socket(self, timeout):
        return self.ssl_context.wrap_socket(self._endpoint.connect(timeout), server_hostname=self.host)


class Parts:
    """What both kinds of pool have in common."""

    def _is_connection_error(self, exc):
        if isinstance(exc, imaplib.IMAP4.readonly):
            return False  # that is the folder's state; imaplib derives it from abort
        return super()._is_connection_error(exc)

    def _keepalive(self, c):
        status, answer = c.noop()
        if status != "OK":
            raise imaplib.IMAP4.abort(answer)

    def _close_connection(self, c):
        c.logout()

    def _abort_connection(self, c):
        c.shutdown()

    def _is_reusable(self, c):
        return c.state == "AUTH" and not c.tagged_commands

    def _fileno(self, c):
        return c.socket().fileno()


class IMAPPool(Parts, ConnectionPool):
    def __init__(self, host, user, password, tls, size, keepalive=300, *, port=993, **options):
        super().__init__(size, ERRORS, keepalive, **options)
        self._place = host, port
        self._login = user, password
        self._tls = tls

    def _new_connection(self):
        return log_in(imaplib.IMAP4_SSL(*self._place, ssl_context=self._tls, timeout=10), *self._login)


class IMAPCluster(Parts, ClusterPool):
    def __init__(self, service, user, password, tls, size, keepalive=300, **options):
        super().__init__(service, size, ERRORS, keepalive, **options)
        self._login = user, password
        self._tls = tls

    def _new_connection(self, endpoint):
        return log_in(Session(endpoint, self._tls), *self._login)


@contextmanager
def folder(pool, name, readonly=True):
    """Borrow a session in which a folder is open."""
    with pool.get() as c:
        status, answer = c.select(name, readonly)
        if status != "OK":
            raise imaplib.IMAP4.error(answer)
        yield c
        c.unselect()


@retry(exc_classes=ERRORS, max_failures=3, interval=0.05, backoff=2.0)
def search(pool, name, *criteria):
    """Return the numbers of the mails in a folder, and from another server if the first one fails."""
    with folder(pool, name) as c:
        _, (numbers,) = c.search(None, *criteria)
        return numbers.split()
