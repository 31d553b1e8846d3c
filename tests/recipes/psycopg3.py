"""docs/recipes/psycopg3.py: psycopg 3 and PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gevent

from geventconnpool import ClusterPool, ConnectionPool, PoolTimeout
from geventconnpool.cluster import Endpoint
from tests.recipes.certificates import NAME, authority_of
from tests.recipes.databases import PostgreSQL
from tests.recipes.description import REFUSES, Recipe, load, version_of
from tests.recipes.scenes import PATIENCE
from tests.recipes.servers import clients_of
from tests.servers import _Server, wait_until

module = load("psycopg3")
psycopg = module.psycopg
APP = "dbname=postgres user=app"


class Postgres(Recipe):
    errors = module.ERRORS
    refused = psycopg.OperationalError
    careless = REFUSES

    def make_server(self) -> PostgreSQL:
        return PostgreSQL()

    def make_pool(self, server: _Server, size: int, **options: Any) -> ConnectionPool[Any]:
        host, port = server.address
        pool: ConnectionPool[Any] = module.PostgresPool(f"{APP} host={host} port={port}", size, **options)
        return pool

    def make_cluster(self, servers: Sequence[_Server], size: int, **options: Any) -> ClusterPool[Any]:
        places = [server.address for server in servers]
        cluster: ClusterPool[Any] = module.PostgresReaders(APP, places, size, **options)
        return cluster

    def call(self, c: Any, token: str) -> str:
        (reply,) = c.execute("SELECT %s::text", (token,)).fetchone()
        return str(reply)

    def hang_up(self, server: _Server) -> None:
        assert isinstance(server, PostgreSQL)
        server.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name <> 'psql'")

    def client_version(self) -> str:
        libpq = psycopg.pq.version()
        return f"psycopg {psycopg.__version__}, libpq {libpq // 10000}.{libpq % 10000}"

    def server_version(self) -> str:
        return f"PostgreSQL {version_of('postgres', '--version')}"


RECIPE = Postgres()


def cancelled(recipe: Postgres) -> None:
    """What an interrupted call was waiting for does not go on at the server."""
    with recipe.make_server() as server, recipe.make_pool(server, 1) as pool:
        with suppress(gevent.Timeout), pool.get(timeout=PATIENCE) as c, gevent.Timeout(0.5):
            c.execute("SELECT pg_sleep(600)")

        running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(600)' AND state = 'active'"
        wait_until(lambda: server.sql(running) == "0", what="the end of the query")
        assert pool.stats().discarded["interrupted"] == 1


def closed_under_its_user(recipe: Postgres) -> None:
    """A pool that is closed at once ends the queries that are under way, whether or not the server still answers.

    libpq's descriptor must not be closed while gevent watches it: libev would end the process.
    """
    with recipe.make_server() as server:
        for interfere in (lambda: None, server.pause):
            pool = recipe.make_pool(server, 1)
            user = gevent.spawn(_sleep, pool)
            wait_until(lambda: pool.stats().in_use, what="the beginning of the query")  # noqa: B023
            interfere()
            assert not pool.close(0)
            assert user.get(timeout=PATIENCE) is not None
            wait_until(lambda: clients_of(server) == 0, what="the end of the connection")
        server.resume()


class Plain(ConnectionPool[Any]):
    """A pool that says no more than it has to."""

    def __init__(self, conninfo: str) -> None:
        self.conninfo = conninfo
        super().__init__(1, psycopg.OperationalError)

    def _new_connection(self) -> Any:
        return psycopg.connect(self.conninfo)


def closed_under_its_user_without_a_hook(recipe: Postgres) -> None:
    """The same goes for a pool without the recipe, but for what the server is still busy with."""
    with recipe.make_server() as server:
        for interfere in (lambda: None, server.pause):
            host, port = server.address
            pool = Plain(f"{APP} host={host} port={port}")
            user = gevent.spawn(_sleep, pool)
            wait_until(lambda: pool.stats().in_use, what="the beginning of the query")  # noqa: B023
            interfere()
            assert not pool.close(0)
            assert user.get(timeout=PATIENCE) is not None
            wait_until(lambda: pool.stats().closed == 1, what="the end of the connection")  # noqa: B023
        server.resume()


def _sleep(pool: Any) -> str | None:
    """Return what ends a query of ten minutes."""
    try:
        with pool.get(timeout=PATIENCE) as c:
            c.execute("SELECT pg_sleep(600)")
    except psycopg.OperationalError as error:
        return str(error)
    return None


def in_transaction(recipe: Postgres) -> None:
    """A connection that comes back in a transaction, good or failed, is not lent again; one that ended it, is."""
    with recipe.make_server() as server, recipe.make_pool(server, 1) as pool:
        with pool.get(timeout=PATIENCE) as first, first.transaction():
            first.execute("SELECT 1")
        with pool.get(timeout=PATIENCE) as second:
            second.execute("BEGIN")
        with pool.get(timeout=PATIENCE) as third:
            third.execute("BEGIN")
            with suppress(psycopg.DataError):
                third.execute("SELECT 1 / 0")
        with pool.get(timeout=PATIENCE) as fourth:
            status = fourth.info.transaction_status

        assert second is first
        assert len({first, third, fourth}) == 3
        assert status is psycopg.pq.TransactionStatus.IDLE
        assert pool.stats().discarded["not_reusable"] == 2


def errors_of_statements(recipe: Postgres) -> None:
    """What is wrong with a statement is not wrong with the connection, OperationalError or not."""
    with recipe.make_server() as server, recipe.make_pool(server, 1) as pool:
        with pool.get(timeout=PATIENCE) as c:
            c.execute("SET statement_timeout = 1000")  # ms
        for statement, error in (
            ("SELECT pg_sleep(60)", psycopg.errors.QueryCanceled),  # an OperationalError
            ("SELECT 1 / 0", psycopg.errors.DivisionByZero),
            ("SELECT", psycopg.InterfaceError),
        ):
            assert _raises(pool, c, statement) is error, statement
        assert sum(pool.stats().discarded.values()) == 0

        assert _raises(pool, c, f"SELECT pg_terminate_backend({c.info.backend_pid})") is psycopg.errors.AdminShutdown
        assert pool.stats().discarded["error"] == 1
        verdicts = {name: pool._is_connection_error(getattr(psycopg.errors, name)()) for name in OPERATIONAL}
        assert verdicts == OPERATIONAL


# Each of them is an OperationalError.
OPERATIONAL = {
    "AdminShutdown": True,
    "CannotConnectNow": True,
    "ConnectionFailure": True,
    "CrashShutdown": True,
    "IdleSessionTimeout": True,
    "DeadlockDetected": False,
    "DiskFull": False,
    "LockNotAvailable": False,
    "QueryCanceled": False,
    "SerializationFailure": False,
    "TooManyConnections": False,
}


def _raises(pool: Any, expected: Any, statement: str) -> type[Exception] | None:
    """Run a statement on the connection that is ``expected``; return what is raised."""
    try:
        with pool.get(timeout=PATIENCE) as c:
            assert c is expected
            cursor = c.execute(statement)
            cursor.close()
            cursor.fetchone()
    except psycopg.Error as error:
        return type(error)
    return None


def replica_first(recipe: Postgres) -> None:
    """Reads go to the replica; while it is away they go to the primary, and nobody sees an error."""
    with PostgreSQL() as primary, PostgreSQL(primary) as replica:
        with module.PostgresReaders(APP, module.tiers([replica.address], primary.address), 2) as pool:
            pool.wait(timeout=PATIENCE)
            assert _readers(pool, 50) == {"replica": 50}

            replica.kill()
            assert _readers(pool, 50) == {"primary": 50}

            replica.start()
            wait_until(lambda: "replica" in _readers(pool, 1), what="the return of the replica")
            assert _readers(pool, 50) == {"replica": 50}
            assert primary.sql("CREATE TABLE t (); SELECT pg_is_in_recovery()") == "f"
            assert replica.sql("SELECT pg_is_in_recovery()") == "t"


def _readers(pool: Any, calls: int) -> Counter[str]:
    """Say who has answered, and how often."""
    answers = [module.fetch(pool, "SELECT pg_is_in_recovery()") for _ in range(calls)]
    return Counter("replica" if is_replica else "primary" for ((is_replica,),) in answers)


def names(recipe: Postgres) -> None:
    """Connections lead to the address of an endpoint, and its name must be in the certificate."""
    with recipe.make_server() as server:
        assert _refusal(server, NAME) == ""
        assert "certificate" in _refusal(server, "other.example.test")


def _refusal(server: PostgreSQL, name: str) -> str:
    """Return why there is no connection to an endpoint of this name; nothing if there is one."""
    service = [Endpoint(name, server.port, (server.address[0],))]
    conninfo = f"{APP} sslmode=verify-full sslrootcert={authority_of(server)}"
    with module.PostgresReaders(conninfo, service, 1, timeout=2) as pool:
        wait_until(lambda: pool.stats().opened or pool.stats().open_errors, what="the end of a connect")
        try:
            module.fetch(pool, "SELECT 1")
        except PoolTimeout as error:
            return str(error)
    return ""
