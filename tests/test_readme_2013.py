"""The examples of the README of 2013, in the Python of today (bytes, ``ssl.SSLContext``), against real servers.

Whoever wrote a pool after that README finds it working, line by line.
"""

from __future__ import annotations

import functools
import imaplib
import logging
import os
import socketserver
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import trustme
from gevent import socket, ssl
from gevent.server import StreamServer

from geventconnpool import ConnectionPool, retry
from tests.servers import wait_until

MY_LOGIN_NAME, MY_PASS = "alice", "secret"
log = logging.getLogger("tests.readme")


@pytest.fixture
def make_pool(tcp_server):
    """``MyPool`` of the quickstart."""

    class MyPool(ConnectionPool):
        def _new_connection(self):
            return socket.create_connection(tcp_server.address)

    return MyPool


def ping(pool):
    with pool.get() as c:
        c.send(b"PING\n")
        if c.recv(5) != b"PONG\n":
            raise socket.error("something awful happened")
    return c


# Quickstart


def test_a_pool_of_20_keeps_20_connections_open(make_pool, tcp_server):
    with make_pool(20) as pool:
        wait_until(lambda: tcp_server.open == 20)
        for _ in range(50):
            ping(pool)

        assert tcp_server.opened == 20


def test_a_block_that_ends_with_socket_error_discards_its_connection_and_a_new_one_is_opened(make_pool, tcp_server):
    with make_pool(3) as pool:
        wait_until(lambda: tcp_server.open == 3)
        tcp_server.answers = False
        with pytest.raises(socket.error, match="something awful happened"):
            with pool.get() as c:
                raise socket.error("something awful happened")
        tcp_server.answers = True

        wait_until(lambda: (tcp_server.opened, tcp_server.closed) == (4, 1))
        assert all(ping(pool) is not c for _ in range(6))


def test_a_block_that_ends_with_any_other_exception_keeps_its_connection(make_pool, tcp_server):
    with make_pool(1) as pool:
        with pytest.raises(KeyError):
            with pool.get() as c:
                raise KeyError("has no special meaning")

        assert ping(pool) is c
        assert tcp_server.opened == 1


# exc_classes, with imaplib


class ImapSession(socketserver.StreamRequestHandler):
    """Says just what ``imaplib`` needs to hear to log in and to select a folder."""

    server: ImapServer

    def handle(self) -> None:
        self.server.sessions += 1
        self._say(b"* OK ready")
        for line in self.rfile:
            tag, command, *_ = line.split()
            self._say(*self.server.answer(command.upper(), tag))
            if command.upper() == b"LOGOUT":
                return

    def _say(self, *lines: bytes) -> None:
        self.wfile.write(b"".join(line + b"\r\n" for line in lines))


class ImapServer(socketserver.ThreadingTCPServer):
    """In native threads, because ``imaplib`` blocks the hub unless it is patched."""

    daemon_threads = True
    UNTAGGED = {b"CAPABILITY": b"* CAPABILITY IMAP4rev1", b"SELECT": b"* 3 EXISTS", b"LOGOUT": b"* BYE"}

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ImapSession)
        self.sessions = 0
        self.refusals = 0

    def answer(self, command: bytes, tag: bytes) -> list[bytes]:
        if command == b"SELECT" and self.refusals > 0:
            self.refusals -= 1
            return [tag + b" BAD out of order"]
        untagged = [self.UNTAGGED[command]] if command in self.UNTAGGED else []
        return [*untagged, tag + b" OK done"]


@pytest.fixture
def imap_server():
    with ImapServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def make_imap_pool(imap_server):
    class ImapPool(ConnectionPool):
        def _new_connection(self):
            c = imaplib.IMAP4(*imap_server.server_address)
            c.login(MY_LOGIN_NAME, MY_PASS)
            return c

        def _close_connection(self, c):
            c.shutdown()

    return ImapPool


def test_an_exception_of_exc_classes_discards_the_connection(make_imap_pool, imap_server):
    with make_imap_pool(1, exc_classes=(socket.error, imaplib.IMAP4.error)) as pool:
        imap_server.refusals = 1
        with pytest.raises(imaplib.IMAP4.error, match="out of order"):
            with pool.get() as c:
                c.select("INBOX")

        with pool.get() as another:
            assert another is not c
            assert another.select("INBOX") == ("OK", [b"3"])


def test_an_exception_outside_exc_classes_keeps_the_connection(make_imap_pool, imap_server):
    with make_imap_pool(1) as pool:
        imap_server.refusals = 1
        with pytest.raises(imaplib.IMAP4.error):
            with pool.get() as c:
                c.select("INBOX")

        with pool.get() as same:
            assert same is c


# Automatic retrying


def test_a_bare_retry_repeats_the_call_on_another_connection(make_pool, tcp_server):
    with make_pool(2) as pool:
        used = []

        @retry
        def senddata(data):
            with pool.get() as c:
                used.append(c)
                c.send(data)
                if c.recv(2) != b"OK" or len(used) < 3:
                    raise socket.error("something awful happened")
                return len(used)

        assert senddata(b"some data\n") == 3
        assert len(set(used)) == 3
        assert tcp_server.lines == [b"some data"] * 3


def test_retry_takes_its_options_where_it_decorates(make_imap_pool, imap_server, caplog):
    caplog.set_level(logging.INFO)
    exc_classes = (socket.error, imaplib.IMAP4.error)
    with make_imap_pool(1, exc_classes=exc_classes) as pool:

        @retry(exc_classes=exc_classes, logger=log, max_failures=5, interval=0.001)
        def select():
            with pool.get() as c:
                return c.select("INBOX")

        imap_server.refusals = 5
        assert select() == ("OK", [b"3"])
        assert imap_server.refusals == 0
        assert [r.levelno for r in caplog.records if r.name == log.name] == [logging.INFO] * 5
        assert all("select" in r.getMessage() for r in caplog.records if r.name == log.name)


def test_max_failures_5_gives_six_calls_and_raises_the_last_exception(caplog):
    caplog.set_level(logging.INFO)
    raised = []

    @retry(logger=log, max_failures=5, interval=0.001)
    def fail():
        raised.append(socket.error(f"failure {len(raised)}"))
        raise raised[-1]

    with pytest.raises(socket.error) as caught:
        fail()

    assert len(raised) == 6
    assert caught.value is raised[-1]
    assert caplog.records[-1].levelno == logging.ERROR


def test_options_of_retry_can_be_kept_in_a_functools_partial():
    calls = []
    my_retry = functools.partial(retry, exc_classes=(socket.error, imaplib.IMAP4.error), logger=log, max_failures=2)

    @my_retry
    def fail():
        calls.append(1)
        raise imaplib.IMAP4.error("again")

    with pytest.raises(imaplib.IMAP4.error):
        fail()

    assert len(calls) == 3


# Advanced connection examples: STARTTLS and a login


class LoginServer:
    """Answers ``STARTTLS`` with ``tls_answers`` in turn, then takes name and password and says OK or not."""

    def __init__(self, tls_answers: list[bytes]) -> None:
        self.tls_answers = tls_answers
        self.logins: list[tuple[str, bool]] = []
        self.authority = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("test.example.org").configure_cert(self._context)
        self._server = StreamServer(("127.0.0.1", 0), self._serve)

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_exc_info):
        self._server.stop()

    @property
    def address(self):
        return "127.0.0.1", self._server.server_port

    def _serve(self, connection, _address):
        assert connection.recv(9) == b"STARTTLS\n"
        answer = self.tls_answers.pop(0) if len(self.tls_answers) > 1 else self.tls_answers[0]
        connection.send(answer)
        if answer == b"OK\n":
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection, connection.makefile("rb") as lines:
            for name in lines:
                self._log_in(connection, name, next(lines))

    def _log_in(self, connection, name, password):
        is_right = (name, password) == (b"LOGIN: alice\n", b"PASS: secret\n")
        self.logins.append((connection.version() if hasattr(connection, "version") else "plain", is_right))
        connection.send(b"OK" if is_right else b"NO")


def make_login_pool(server, password=MY_PASS):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.authority.configure_trust(context)

    class MyPool(ConnectionPool):
        def _new_connection(self):
            s = socket.create_connection(server.address)
            s.send(b"STARTTLS\n")
            res = s.recv(3)
            if res == b"OK\n":
                s = context.wrap_socket(s, server_hostname="test.example.org")
            elif res == b"NO\n":
                pass
            else:
                raise socket.error("invalid response to STARTTLS")

            s.send(b"LOGIN: %s\n" % MY_LOGIN_NAME.encode())
            s.send(b"PASS: %s\n" % password.encode())
            res = s.recv(2)
            if res != b"OK":
                raise socket.error("authentication failed")
            return s

    return MyPool(1)


def test_a_connection_switches_to_tls_and_logs_in_before_anybody_gets_it():
    with LoginServer([b"OK\n"]) as server, make_login_pool(server) as pool:
        with pool.get() as c:
            assert c.version() == "TLSv1.3"
            assert server.logins == [("TLSv1.3", True)]


def test_a_server_without_tls_is_used_in_the_clear():
    with LoginServer([b"NO\n"]) as server, make_login_pool(server) as pool:
        with pool.get():
            assert server.logins == [("plain", True)]


def test_an_invalid_answer_to_starttls_is_a_failed_connect_and_tried_again():
    with LoginServer([b"???", b"OK\n"]) as server, make_login_pool(server) as pool:
        with pool.get():
            assert server.logins == [("TLSv1.3", True)]
        assert pool.stats().open_errors == 1


def test_a_refused_login_is_tried_again_for_ever_and_named_to_those_who_wait():
    with LoginServer([b"OK\n"]) as server, make_login_pool(server, password="wrong") as pool:
        wait_until(lambda: len(server.logins) >= 3)
        with pytest.raises(Exception, match="no connection within") as caught:
            with pool.get(timeout=0.05):
                raise AssertionError("there is no connection to be had")

        assert str(caught.value.__cause__) == "authentication failed"


# Advanced connection examples: boto


def test_a_connection_may_be_any_object_such_as_a_table_of_boto(monkeypatch):
    class NoAuthHandler(Exception):
        pass

    class DynamoDB:
        connects = 0

        def get_table(self, name):
            return f"table {name}"

    def connect_dynamodb(_key_id, _secret_key):
        DynamoDB.connects += 1
        if DynamoDB.connects == 1:
            raise NoAuthHandler("not yet")
        return DynamoDB()

    exception = types.ModuleType("boto.exception")
    exception.NoAuthHandler = NoAuthHandler
    module = types.ModuleType("boto")
    module.connect_dynamodb = connect_dynamodb
    monkeypatch.setitem(sys.modules, "boto", module)
    monkeypatch.setitem(sys.modules, "boto.exception", exception)

    import boto  # type: ignore[import-not-found]  # the stand-in above
    from boto.exception import NoAuthHandler  # type: ignore[import-not-found]

    class UsersPool(ConnectionPool):
        def _new_connection(self):
            try:
                c = boto.connect_dynamodb("MY_AWS_KEY_ID", "MY_AWS_SECRET_KEY")
                return c.get_table("users")
            except:  # noqa: E722  as the README has it
                raise socket.error("error connecting to AWS")  # noqa: B904  as the README has it

    with UsersPool(1) as pool:
        with pool.get() as users:
            assert users == "table users"
        assert DynamoDB.connects == 2


# Keepalive


def test_tcp_keepalive_is_switched_on_where_the_connection_is_made(tcp_server):
    class MyPool(ConnectionPool):
        def _new_connection(self):
            s = socket.create_connection(tcp_server.address)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return s

    with MyPool(2) as pool, pool.get() as c:
        assert c.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0


@pytest.fixture
def make_kept_alive_pool(tcp_server):
    class MyPool(ConnectionPool):
        def _new_connection(self):
            return socket.create_connection(tcp_server.address)

        def _keepalive(self, c):
            c.send(b"PING\n")
            if c.recv(5) != b"PONG\n":
                raise socket.error

    return MyPool


def test_an_application_level_keepalive_runs_for_each_idle_connection(make_kept_alive_pool, tcp_server):
    with make_kept_alive_pool(4, keepalive=0.05, keepalive_timeout=30) as pool:
        wait_until(lambda: tcp_server.lines.count(b"PING") >= 12)

        assert pool.stats().open == 4
        assert tcp_server.opened == 4


def test_a_keepalive_that_raises_has_its_connection_replaced(make_kept_alive_pool, tcp_server):
    with make_kept_alive_pool(4, keepalive=0.05, keepalive_timeout=30) as pool:
        wait_until(lambda: tcp_server.open == 4)
        tcp_server.close_all()

        wait_until(lambda: tcp_server.closed == 4 and tcp_server.open == 4)
        wait_until(lambda: pool.stats().idle == 4)
        assert ping(pool) is not None


# Patched


@pytest.mark.skipif("GEVENTCONNPOOL_TEST_PATCHED" in os.environ, reason="this is the patched run")
def test_all_of_this_holds_after_monkey_patch_all():
    patched = "import sys; from gevent import monkey; monkey.patch_all(); import pytest; sys.exit(pytest.main())"
    run = subprocess.run(
        [sys.executable, "-c", patched, "-q", "-p", "no:cacheprovider", __file__],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "GEVENTCONNPOOL_TEST_PATCHED": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
