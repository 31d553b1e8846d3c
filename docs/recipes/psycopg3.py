"""PostgreSQL through psycopg 3: a server, and replicas to read from before the primary."""

import os
import socket
from contextlib import suppress

import psycopg
from psycopg.pq import TransactionStatus

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, retry

ERRORS = (psycopg.OperationalError,)


def connect(conninfo, **where):
    return psycopg.connect(conninfo, autocommit=True, connect_timeout=5, **where)


def hang_up(c):
    """Close a connection, even one that another greenlet is waiting for."""
    if not c.closed:
        with suppress(OSError), socket.socket(fileno=os.dup(c.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)  # which wakes whoever is waiting
    with c.lock:  # who has left now
        c.close()


class Parts:
    """What both kinds of pool have in common."""

    def _is_connection_error(self, exc):
        if not isinstance(exc, psycopg.OperationalError):
            return False
        state = exc.sqlstate  # None: these are the words of the client library
        return state is None or state.startswith(("08", "57P"))

    def _keepalive(self, c):
        c.execute("")

    def _close_connection(self, c):
        c.close()

    def _abort_connection(self, c):
        try:
            if c.info.transaction_status is TransactionStatus.ACTIVE:
                c.cancel_safe(timeout=2)
        finally:
            hang_up(c)

    def _is_reusable(self, c):
        return c.info.transaction_status is TransactionStatus.IDLE


class PostgresPool(Parts, ConnectionPool):
    def __init__(self, conninfo, size, keepalive=30, **options):
        super().__init__(size, ERRORS, keepalive, **options)
        self._conninfo = conninfo

    def _new_connection(self):
        return connect(self._conninfo)


class PostgresReaders(Parts, ClusterPool):
    def __init__(self, conninfo, service, size, keepalive=5, **options):
        super().__init__(service, size, ERRORS, keepalive, **options)
        self._conninfo = conninfo

    def _new_connection(self, endpoint):
        return connect(self._conninfo, host=endpoint.name, hostaddr=endpoint.host, port=endpoint.port)


def tiers(replicas, primary):
    """The primary is asked only when no replica is available. Places are (host, port)."""
    return [*(Endpoint(*place, priority=0) for place in replicas), Endpoint(*primary, priority=1)]


@retry(exc_classes=ERRORS, max_failures=3, interval=0.05, backoff=2.0)
def fetch(pool, query, *parameters):
    """Read, and on another server if the first one fails."""
    with pool.get() as c:
        return c.execute(query, parameters).fetchall()
