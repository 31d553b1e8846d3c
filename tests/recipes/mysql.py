"""docs/recipes/mysql.py: PyMySQL and MariaDB."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import gevent

from geventconnpool import ClusterPool, ConnectionPool, PoolTimeout
from geventconnpool.cluster import Endpoint
from tests.recipes.certificates import NAME, trust
from tests.recipes.databases import MariaDB
from tests.recipes.description import REFUSES, Recipe, load, version_of
from tests.recipes.scenes import PATIENCE
from tests.servers import _Server, wait_until

module = load("mysql")
pymysql = module.pymysql


class MySQL(Recipe):
    errors = module.ERRORS
    refused = pymysql.OperationalError
    careless = REFUSES

    def make_server(self) -> MariaDB:
        return MariaDB()

    def make_pool(self, server: _Server, size: int, **options: Any) -> ConnectionPool[Any]:
        where = {"host": server.address[0], "port": server.port, "user": "root"}
        pool: ConnectionPool[Any] = module.MySQLPool(where, size, **options)
        return pool

    def make_cluster(self, servers: Sequence[_Server], size: int, **options: Any) -> ClusterPool[Any]:
        places = [server.address for server in servers]
        cluster: ClusterPool[Any] = module.MySQLReaders({"user": "root"}, places, size, **options)
        return cluster

    def call(self, c: Any, token: str) -> str:
        with c.cursor() as cursor:
            cursor.execute("SELECT %s", (token,))
            (reply,) = cursor.fetchone()
        return str(reply)

    def hang_up(self, server: _Server) -> None:
        assert isinstance(server, MariaDB)
        others = "SELECT id FROM information_schema.processlist WHERE user = 'root' AND id <> CONNECTION_ID()"
        server.sql("".join(f"KILL {number};" for number in server.sql(others).split()))
        wait_until(lambda: not server.sql(others), what="the end of the connections")

    def client_version(self) -> str:
        return f"PyMySQL {version('PyMySQL')}"  # its __version__ is the one of mysqlclient that it stands in for

    def server_version(self) -> str:
        return f"MariaDB {version_of('mariadbd', '--version')}"


RECIPE = MySQL()


def transactions(recipe: MySQL) -> None:
    """A connection that comes back in a transaction, seen or unseen, is not lent again."""
    with recipe.make_server() as server, recipe.make_pool(server, 1) as pool:
        server.sql("CREATE DATABASE d; CREATE TABLE d.t (n INT PRIMARY KEY)")
        with pool.get(timeout=PATIENCE) as first, module.transaction(first):
            recipe.call(first, "a")
        with pool.get(timeout=PATIENCE) as second:
            second.begin()
        with pool.get(timeout=PATIENCE) as third:
            third.autocommit(False)
            with third.cursor() as cursor:
                cursor.execute("SELECT * FROM d.t")
            assert server.sql("SELECT COUNT(*) FROM information_schema.innodb_trx") == "1"
            assert third.server_status == 0  # and that does not tell
        with pool.get(timeout=PATIENCE) as fourth:
            assert fourth.get_autocommit()

        assert second is first
        assert len({first, third, fourth}) == 3
        assert pool.stats().discarded["not_reusable"] == 2


def errors_by_code(recipe: MySQL) -> None:
    """A deadlock leaves both connections as they are; that a user is unknown is why there is no connection."""
    with recipe.make_server() as server, recipe.make_pool(server, 2) as pool:
        server.sql(
            "CREATE DATABASE d; CREATE TABLE d.t (n INT PRIMARY KEY, m INT); INSERT INTO d.t VALUES (1, 0), (2, 0)"
        )
        locked: list[int] = []
        both = [gevent.spawn(_lock, pool, locked, *rows) for rows in ((1, 2), (2, 1))]
        gevent.joinall(both, timeout=PATIENCE, raise_error=True)

        assert {greenlet.value for greenlet in both} == {0, 1213}
        assert sum(pool.stats().discarded.values()) == 0
        assert _why_none(module.MySQLPool({"host": server.address[0], "port": server.port, "user": "x"}, 1)) == 1045
    verdicts = {code: pool._is_connection_error(pymysql.OperationalError(code, "")) for code in CODES}
    assert verdicts == CODES


CODES = {1045: False, 1053: True, 1205: False, 1213: False, 1927: True, 2003: True, 2006: True, 2013: True}


def _lock(pool: Any, locked: list[int], ours: int, others: int) -> int:
    """Lock a row, and one that somebody else has locked; return the code of the error."""
    try:
        with pool.get(timeout=PATIENCE) as c, module.transaction(c), c.cursor() as cursor:
            cursor.execute("UPDATE d.t SET m = m + 1 WHERE n = %s", (ours,))
            locked.append(ours)
            wait_until(lambda: len(locked) == 2, what="the lock of the other")
            cursor.execute("UPDATE d.t SET m = m + 1 WHERE n = %s", (others,))
    except pymysql.OperationalError as error:
        return int(error.args[0])
    return 0


def _why_none(pool: Any) -> int:
    """Return the code with which connecting has failed."""
    with pool:
        try:
            pool.acquire(timeout=1)
        except PoolTimeout as error:
            return int(getattr(error.__cause__, "args", [0])[0])
        return 0


def names(recipe: MySQL) -> None:
    """Connections lead to the address of an endpoint, and its name must be in the certificate."""
    with recipe.make_server() as server:
        assert _refusal(server, NAME) == ""
        assert "CERTIFICATE_VERIFY_FAILED" in _refusal(server, "other.example.test")


def _refusal(server: MariaDB, name: str) -> str:
    """Return why there is no connection to an endpoint of this name; nothing if there is one."""
    service = [Endpoint(name, server.port, (server.address[0],))]
    with module.MySQLReaders({"user": "root", "ssl": trust(server)}, service, 1, timeout=2) as pool:
        try:
            ((cipher,),) = module.fetch(
                pool, "SELECT variable_value FROM information_schema.session_status WHERE variable_name = 'SSL_CIPHER'"
            )
            assert cipher
        except PoolTimeout as error:
            return str(error)
    return ""
