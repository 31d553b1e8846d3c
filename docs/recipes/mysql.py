"""MariaDB and MySQL through PyMySQL: a server, and replicas to read from."""

from contextlib import contextmanager

import pymysql
from pymysql.constants import ER, SERVER_STATUS

from geventconnpool import ClusterPool, ConnectionPool, retry

ERRORS = (pymysql.OperationalError, pymysql.InterfaceError)
TIMEOUTS = {"connect_timeout": 5, "read_timeout": 30, "write_timeout": 30}
CLOSING = {ER.SERVER_SHUTDOWN, 1927}  # the server says so: it is being shut down; MariaDB: the connection was killed


class Parts:
    """What both kinds of pool have in common."""

    def _is_connection_error(self, exc):
        if not isinstance(exc, ERRORS):
            return False
        code = exc.args[0]
        return code == 0 or 2000 <= code < 3000 or code in CLOSING

    def _keepalive(self, c):
        c.ping(reconnect=False)

    def _close_connection(self, c):
        if c.open:
            c.close()

    def _is_reusable(self, c):
        flags = SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT | SERVER_STATUS.SERVER_STATUS_IN_TRANS
        return c.open and c.server_status & flags == SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT

    def _fileno(self, c):
        return c._sock.fileno()


class MySQLPool(Parts, ConnectionPool):
    def __init__(self, parameters, size, keepalive=30, **options):
        super().__init__(size, ERRORS, keepalive, **options)
        self._parameters = {**TIMEOUTS, **parameters, "autocommit": True}

    def _new_connection(self):
        return pymysql.connect(**self._parameters)


class MySQLReaders(Parts, ClusterPool):
    def __init__(self, parameters, service, size, keepalive=5, **options):
        super().__init__(service, size, ERRORS, keepalive, **options)
        self._parameters = {**TIMEOUTS, **parameters, "autocommit": True}

    def _new_connection(self, endpoint):
        c = pymysql.connect(host=endpoint.name, port=endpoint.port, defer_connect=True, **self._parameters)
        c.connect(endpoint.connect(timeout=5))
        return c


@contextmanager
def transaction(c):
    """Commit what the block does, or roll it back if it raises; an interrupted one ends with its connection."""
    c.begin()
    try:
        yield
    except Exception:
        if c.open:
            c.rollback()
        raise
    c.commit()


@retry(exc_classes=ERRORS, max_failures=3, interval=0.05, backoff=2.0)
def fetch(pool, query, *parameters):
    """Read, and on another server if the first one fails."""
    with pool.get() as c, c.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall()
