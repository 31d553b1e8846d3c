"""PostgreSQL and MariaDB for the recipes: real servers on loopback, in temporary directories, as nobody.

What they keep is not to last, so nothing is synchronised with the disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from gevent import socket

from tests import servers
from tests.recipes.certificates import ensure_certificate
from tests.recipes.servers import Tree
from tests.servers import HOST


def tool(name: str) -> str:
    """Return the path of a program."""
    path = servers.find(name)
    assert path is not None, f"{name} is not installed"
    return path


def run_in(directory: Path, *command: str) -> str:
    """Run a program in ``directory``, as nobody if we are root (some refuse root); return what it says."""
    identity = servers._as_nobody(directory)
    done = subprocess.run(
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **identity
    )
    printed: str = done.stdout
    assert done.returncode == 0, f"{command[0]}: {printed}{done.stderr}"
    return printed.strip()


class PostgreSQL(Tree):
    """``postgres`` with the superuser ``app``, who needs no password, and the database ``postgres``.

    With ``primary``, one that runs, it is a streaming replica of that: a hot standby, which serves reads.
    """

    program = "postgres"

    def __init__(self, primary: PostgreSQL | None = None, port: int | None = None) -> None:
        super().__init__(port)
        self._primary = primary

    def sql(self, statement: str) -> str:
        """Run a statement over a connection of its own; return the result as bare text."""
        return run_in(self.directory, tool("psql"), "-XAtq", *self._here(), "-d", "postgres", "-c", statement)

    def stop(self) -> None:
        """End in an orderly way that does not wait for clients (SIGINT)."""
        self.resume()
        self._end(signal.SIGINT)

    def _here(self) -> list[str]:
        return ["-h", HOST, "-p", str(self.port), "-U", "app"]

    def _command(self) -> list[str]:
        if not (self.directory / "data").exists():
            self._make()
        settings = [*_POSTGRESQL, f"port={self.port}", f"listen_addresses={HOST}"]
        return [tool("postgres"), "-D", "data", *(f"--{setting}" for setting in settings)]

    def _make(self) -> None:
        ensure_certificate(self.directory)
        if self._primary is None:
            options = ["-U", "app", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8", "--no-instructions"]
            run_in(self.directory, tool("initdb"), "-D", "data", *options)
        else:
            options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--wal-method=stream"]
            run_in(self.directory, tool("pg_basebackup"), "-D", "data", *self._primary._here(), *options)

    def _is_answering(self) -> bool:
        return subprocess.run([tool("pg_isready"), "-q", *self._here()], check=False).returncode == 0


_POSTGRESQL = (
    "unix_socket_directories=",
    "ssl=on",
    "ssl_cert_file=../certificate.pem",
    "ssl_key_file=../key.pem",
    "fsync=off",
    "shared_buffers=8MB",
    "max_connections=40",
    "autovacuum=off",
    "wal_keep_size=64MB",  # a replica that was away finds what it has missed
    "wal_retrieve_retry_interval=100ms",
)


class MariaDB(servers._Server):
    """``mariadbd`` with the user ``root``, who needs no password, and the databases that it comes with."""

    program = "mariadbd"

    def sql(self, statement: str) -> str:
        """Run a statement over a connection of its own; return the result as bare text."""
        client = [tool("mariadb"), "--no-defaults", "-h", HOST, "-P", str(self.port), "-u", "root", "-BN"]
        return run_in(self.directory, *client, "-e", statement)

    def _command(self) -> list[str]:
        if not (self.directory / "data").exists():
            self._make()
        # The directory's path is short enough for that of a socket, 107 bytes.
        where = [f"--datadir={self.directory}/data", f"--tmpdir={self.directory}", f"--socket={self.directory}/socket"]
        return [tool("mariadbd"), "--no-defaults", *where, f"--port={self.port}", *self._tls(), *_MARIADB]

    def _tls(self) -> list[str]:
        return [f"--ssl-cert={self.directory}/certificate.pem", f"--ssl-key={self.directory}/key.pem"]

    def _make(self) -> None:
        ensure_certificate(self.directory)
        options = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        where = [f"--datadir={self.directory}/data", f"--tmpdir={self.directory}"]
        run_in(self.directory, tool("mariadb-install-db"), "--no-defaults", *where, *options)

    def _is_answering(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=1) as connection:
            return b"MariaDB" in connection.recv(100) and os.path.exists(self.directory / "socket")
        return False


_MARIADB = (
    f"--bind-address={HOST}",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--innodb-buffer-pool-size=8M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
)
