"""The command line does what its help and its page say: real processes, real name servers, real terminals."""

from __future__ import annotations

import json
import pty
import re
import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gevent.server import StreamServer

from geventconnpool import Endpoint, events
from geventconnpool import _commands as commands
from geventconnpool._commands import _check
from geventconnpool._commands._check import Measured, how_far, status_of
from geventconnpool._commands._demo import is_interactive
from geventconnpool._commands._resolve import shares_of
from geventconnpool._commands._telling import told
from geventconnpool._commands._terminal import Column, Look, bar, bars, fit, look_of, table
from geventconnpool._commands._watch import document_of, how_it_stands
from geventconnpool.cluster import _dns
from geventconnpool.testing import DNSServer
from tests.console import ROOT, SERVICE, Service, Terminal, command, environment, examples, normal, plain, run, started
from tests.servers import Bind, require
from tests.test_demo import alive, pids_in

NAME = f"_redis._tcp.{Bind.zone}"
COMMANDS = ["resolve", "check", "watch", "demo"]


@pytest.fixture(scope="module")
def bind() -> Iterator[Bind]:
    require("named")
    with Bind() as bind:
        yield bind


@pytest.fixture
def zone(bind: Bind) -> Bind:
    """A BIND that knows of two endpoints, and of one for bad times."""
    bind.update(
        delete=[("_redis._tcp",), ("redis1",), ("redis2",), ("spare",)],
        add=[
            ("_redis._tcp", "SRV", "0 3 6379 redis1"),
            ("_redis._tcp", "SRV", "0 1 6380 redis2"),
            ("_redis._tcp", "SRV", "10 0 6379 spare"),
            ("redis1", "A", "127.0.0.1"),
            ("redis2", "A", "127.0.0.2"),
            ("redis2", "A", "127.0.0.3"),
            ("spare", "A", "127.0.0.4"),
        ],
        ttl=60,
    )
    return bind


@pytest.fixture
def dns() -> Iterator[DNSServer]:
    with DNSServer() as dns:
        yield dns


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as service:
        yield service


@pytest.fixture
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("authority"), tls=True) as service:
        yield service


@pytest.fixture
def perform(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Do what a command does in this process: for what would take a process each."""
    monkeypatch.setattr(_check, "TRY", 20.0)

    def perform(*arguments: str) -> SimpleNamespace:
        status: object
        try:
            status = commands.perform(arguments)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return perform


def at(server: Bind | DNSServer) -> str:
    return "--nameserver={}:{}".format(*server.address)


# resolve


def test_resolve_tells_what_bind_knows(zone):
    result = run("resolve", NAME, at(zone))

    assert result.out == (
        f"_redis._tcp.example.test: 3 SRV records from 127.0.0.1:{zone.port}\n"
        "TTL 60 s: a pool asks again after 60 s, or up to 10 % later\n"
        "\n"
        "priority  endpoint                  weight    share  addresses\n"
        "       0  redis1.example.test:6379       3   75.0 %  127.0.0.1\n"
        "       0  redis2.example.test:6380       1   25.0 %  127.0.0.2, 127.0.0.3\n"
        "      10  spare.example.test:6379        0  100.0 %  127.0.0.4\n"
        "\n"
        "All calls go to priority 0; only while nothing of it is available, to 10.\n"
    )
    assert (result.status, result.err) == (0, "")


def test_resolve_writes_one_json_document(zone):
    result = run("resolve", NAME, at(zone), "--json")
    document = json.loads(result.out)

    assert 0 < document.pop("seconds") < 30
    assert 50 < document.pop("ttl") <= 60
    assert 50 < document.pop("refresh") <= 60
    assert document == {
        "name": "_redis._tcp.example.test",
        "outcome": f"3 SRV records from 127.0.0.1:{zone.port}",
        "error": None,
        "nameserver": f"127.0.0.1:{zone.port}",
        "endpoints": [
            {
                "endpoint": "redis1.example.test:6379",
                "name": "redis1.example.test",
                "port": 6379,
                "priority": 0,
                "weight": 3,
                "share": 0.75,
                "addresses": ["127.0.0.1"],
                "domain": "example.test",
            },
            {
                "endpoint": "redis2.example.test:6380",
                "name": "redis2.example.test",
                "port": 6380,
                "priority": 0,
                "weight": 1,
                "share": 0.25,
                "addresses": ["127.0.0.2", "127.0.0.3"],
                "domain": "example.test",
            },
            {
                "endpoint": "spare.example.test:6379",
                "name": "spare.example.test",
                "port": 6379,
                "priority": 10,
                "weight": 0,
                "share": 1.0,
                "addresses": ["127.0.0.4"],
                "domain": "example.test",
            },
        ],
        "left_out": [],
    }
    assert result.status == 0


def test_a_name_with_a_port_is_each_of_its_addresses(perform, zone):
    result = perform("resolve", "redis2.example.test:7000", at(zone), "--json")

    endpoints = json.loads(result.out)["endpoints"]
    assert [(one["endpoint"], one["domain"]) for one in endpoints] == [
        ("127.0.0.2:7000", "redis2.example.test"),
        ("127.0.0.3:7000", "redis2.example.test"),
    ]


def test_of_several_hosts_those_without_an_address_are_named(perform, zone):
    result = perform("resolve", "redis2.example.test:7000", "nobody.example.test:7000", at(zone))

    assert result.status == 0
    assert "\n       0  redis2.example.test:7000       1  100.0 %  127.0.0.2, 127.0.0.3\n" in result.out
    assert "not used:\n  nobody.example.test:7000: nobody.example.test A" in result.out
    assert "no such name (NXDOMAIN)" in result.out


def test_an_address_needs_no_name_server(
    perform,
):
    result = perform("resolve", "[::1]:6379", "--nameserver=127.0.0.1:1")

    assert result.status == 0
    assert "an address needs no look-up\nholds for ever: a pool does not ask again\n" in result.out


def test_resolve_says_what_of_an_answer_is_not_used(perform, zone):
    zone.update(
        add=[
            ("_redis._tcp", "SRV", "0 1 6379 lost"),
            ("_redis._tcp", "SRV", "0 1 0 redis1"),
            ("_redis._tcp", "SRV", "0 1 6379 ."),
        ]
    )
    result = perform("resolve", NAME, at(zone), "--json")

    left_out = {left["endpoint"]: left["why"] for left in json.loads(result.out)["left_out"]}
    assert left_out.pop("lost.example.test:6379") in [
        f"lost.example.test. {family}: no such name (NXDOMAIN) from 127.0.0.1:{zone.port}" for family in ("A", "AAAA")
    ]
    assert left_out == {
        ".": 'the target "." says that there is none',
        "redis1.example.test:0": "there is no port 0",
    }
    assert result.status == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (None, "_x._tcp.example.org SRV: no such name (NXDOMAIN) from {server}"),
        ("servfail", "_x._tcp.example.org SRV: SERVFAIL from {server}"),
        ("refused", "_x._tcp.example.org SRV: REFUSED from {server}"),
        ("drop", "_x._tcp.example.org SRV: no answer from {server}"),
        ("garbage", "_x._tcp.example.org SRV: no answer from {server}"),
        ("truncate", "_x._tcp.example.org SRV: an answer too large for any message from {server}"),
        ("referral", "_x._tcp.example.org SRV: no answer, but a referral from {server}"),
    ],
)
def test_trouble_with_dns_is_told_in_words(monkeypatch, perform, dns, fault, words):
    monkeypatch.setattr(_dns, "_GRACE", 20.0)  # where the machine pauses, the words would be others
    dns.fault = fault
    server = "{}:{}".format(*dns.address)
    patience = 0.5 if fault in ("drop", "garbage") else 20
    result = perform("resolve", "_x._tcp.example.org", at(dns), f"--timeout={patience}")

    assert result.out == f"_x._tcp.example.org: nothing to connect to\n{words.format(server=server)}\n"
    assert (result.status, result.err) == (1, "")


def test_a_target_that_says_no_and_one_without_an_address_are_told_apart(perform, dns):
    dns.add("_no._tcp.example.org", "SRV", "0 0 0 .")
    dns.add_srv("_lost._tcp.example.org", "lost.example.org", 6379)
    no, lost = (perform("resolve", name, at(dns)) for name in ("_no._tcp.example.org", "_lost._tcp.example.org"))

    assert "the service is not available\n" in no.out
    assert "not used:\n  lost.example.org:6379: lost.example.org. A" in lost.out
    assert (no.status, lost.status) == (1, 1)


def test_who_forgets_the_port_is_told_what_that_means(perform, dns):
    dns.add_address("redis.example.org", "127.0.0.1")
    result = perform("resolve", "redis.example.org", at(dns))

    assert result.out.splitlines()[1:] == [
        "redis.example.org SRV: no such record (NODATA) from {}:{}".format(*dns.address),
        "A name without a port is looked up as SRV records. Did you mean redis.example.org:PORT, its addresses?",
    ]
    assert result.status == 1


def test_a_target_that_is_no_host_is_told_so(perform, dns):
    dns.add_srv("_x._tcp.example.org", "no+host.example.org", 1)
    dns.add_srv("_x._tcp.example.org", "127.0.0.1", 1)
    result = perform("resolve", "_x._tcp.example.org", at(dns))

    assert result.out.endswith("not used:\n  no+host.example.org:1: that is no name of a host\n")


# check


def test_check_measures_every_endpoint(service):
    result = run("check", SERVICE, "--nameserver", service.nameserver, "--json", "--count=3")
    document = json.loads(result.out)

    assert (result.status, document["status"], document["error"]) == (0, 0, None)
    ports = service.ports
    assert [
        (one["endpoint"], one["ok"], len(one["connect"]), one["tls"], one["errors"]) for one in document["endpoints"]
    ] == [
        (f"redis1.example.org:{ports[0]}", True, 3, [], []),
        (f"redis2.example.org:{ports[1]}", True, 3, [], []),
        (f"redis3.example.org:{ports[2]}", True, 3, [], []),
    ]
    assert all(0 < seconds < 20 for one in document["endpoints"] for seconds in one["connect"])


def test_check_warns_of_one_that_fails_and_is_critical_if_all_do(perform, service):
    service.servers[2].stop()
    some = perform("check", SERVICE, "--nameserver", service.nameserver, "--count=2")
    for server in service.servers:
        server.stop()
    none = perform("check", SERVICE, "--nameserver", service.nameserver, "--count=2")

    port = service.ports[2]
    assert some.out.startswith("WARNING: _redis._tcp.example.org: 2 of 3 endpoints well\n")
    assert some.out.endswith(f"\n\nredis3.example.org:{port}: Connection refused (2 times)\n")
    assert none.out.startswith("CRITICAL: _redis._tcp.example.org: 0 of 3 endpoints well\n")
    assert (some.status, none.status) == (1, 2)


def test_check_without_anything_to_connect_to_is_critical(dns):
    result = run("check", "_x._tcp.example.org", at(dns))

    server = "{}:{}".format(*dns.address)
    assert result.out == (
        "CRITICAL: _x._tcp.example.org: nothing to connect to: "
        f"_x._tcp.example.org SRV: no such name (NXDOMAIN) from {server}\n"
    )
    assert result.status == 2


def test_a_target_without_an_address_fails_the_check(perform, service):
    service.dns.add_srv(SERVICE, "lost.example.org", 6379)
    result = perform("check", SERVICE, "--nameserver", service.nameserver)

    assert result.out.startswith("WARNING: _redis._tcp.example.org: 3 of 4 endpoints well\n")
    assert "\nlost.example.org:6379: lost.example.org. A" in result.out
    assert result.status == 1


def test_what_dns_leaves_out_on_purpose_is_no_trouble(perform, service):
    service.dns.add(SERVICE, "SRV", "0 0 0 redis1.example.org")
    result = perform("check", SERVICE, "--nameserver", service.nameserver)

    assert result.out.startswith("OK: _redis._tcp.example.org: 3 of 3 endpoints well\n")
    assert result.status == 0


@pytest.mark.parametrize("silent", ["dns", "server"])
def test_check_ends_in_time(perform, service, silent):
    if silent == "dns":
        service.dns.fault = "drop"
    # Servers that speak no TLS say nothing to a client that begins.
    result = perform("check", SERVICE, "--nameserver", service.nameserver, "--timeout=1.5", "--tls", "--json")
    document = json.loads(result.out)

    assert result.status == 2
    if silent == "dns":
        assert "no answer" in document["error"]
    else:
        assert [one["errors"][-1] for one in document["endpoints"]] == ["not done within 1.5 s"] * 3


def check_tls(perform, service, *options):
    return perform("check", SERVICE, "--nameserver", service.nameserver, "--count=2", "--json", "--tls", *options)


def test_certificates_are_verified_for_the_name_that_is_wanted(perform, secure):
    trusted = f"--ca-file={secure.ca_file}"
    domain, target, one, other = (
        check_tls(perform, secure, trusted, *options)
        for options in ([], ["--tls-name=target"], ["--tls-name=redis2.example.org"], ["--tls-name=x.example.org"])
    )

    assert [result.status for result in (domain, target, one, other)] == [0, 0, 1, 2]
    endpoints = json.loads(target.out)["endpoints"]
    assert [(len(one["connect"]), len(one["tls"]), one["errors"]) for one in endpoints] == [(2, 2, [])] * 3
    assert (
        json.loads(other.out)["endpoints"][0]["errors"]
        == ["its certificate is refused: Hostname mismatch, certificate is not valid for 'x.example.org'"] * 2
    )
    assert [one["ok"] for one in json.loads(one.out)["endpoints"]] == [False, True, False]


def test_what_speaks_no_tls_is_told_so(perform, dns):
    with _Plain() as server:
        result = perform("check", f"127.0.0.1:{server.port}", "--tls", "--count=1", "--json")

    assert json.loads(result.out)["endpoints"][0]["errors"] == ["no TLS: WRONG_VERSION_NUMBER"]


class _Plain:
    """A server that greets in plain text."""

    def __enter__(self):
        self._server = StreamServer(("127.0.0.1", 0), lambda connection, _: connection.sendall(b"220 at your service"))
        self._server.start()
        self.port = self._server.server_port
        return self

    def __exit__(self, *_exc_info):
        self._server.stop()


def test_a_certificate_of_an_authority_that_is_not_trusted_is_refused(perform, secure):
    result = check_tls(perform, secure)

    assert result.status == 2
    assert "its certificate is refused: " in json.loads(result.out)["endpoints"][0]["errors"][0]


def test_times_of_connect_and_tls_stand_side_by_side(perform, secure):
    result = perform("check", SERVICE, "--nameserver", secure.nameserver, "--tls", f"--ca-file={secure.ca_file}")

    lines = result.out.splitlines()
    assert lines[3].split() == ["endpoint", "ok", "connect", "ms", "median", "worst", "TLS", "ms", "median", "worst"]
    assert [line.split()[1] for line in lines[4:7]] == ["5/5"] * 3
    assert lines[8] == "median in ms: █ connect  ▒ TLS"
    assert all("▒" in line for line in lines[9:12])
    assert max(map(len, lines)) <= 80


# watch


def test_watch_sees_what_is_changed_in_bind(zone):
    fast = ["--min-refresh=0.1", "--max-refresh=0.1", "--json"]
    with started("watch", NAME, at(zone), *fast) as watch:
        lines = partial(next, map(json.loads, iter(watch.stdout.readline, "")))
        first = [lines() for _ in range(4)]
        zone.update(
            delete=[("_redis._tcp", "SRV", "0 3 6379 redis1"), ("_redis._tcp", "SRV", "10 0 6379 spare")],
            add=[("_redis._tcp", "SRV", "0 7 6379 redis1")],
        )
        updated, removed = lines(), lines()
        watch.send_signal(signal.SIGINT)
        rest, errors = watch.communicate(timeout=30)

    assert [(line["event"], line.get("endpoint", line.get("state"))) for line in first] == [
        ("added", "redis1.example.test:6379"),
        ("added", "redis2.example.test:6380"),
        ("added", "spare.example.test:6379"),
        ("discovery", "fresh"),
    ]
    assert updated.pop("time")[10] == "T"
    assert updated == {
        "event": "updated",
        "endpoint": "redis1.example.test:6379",
        "name": "redis1.example.test",
        "port": 6379,
        "priority": 0,
        "weight": 7,
        "addresses": ["127.0.0.1"],
        "domain": "example.test",
        "previous": {
            "endpoint": "redis1.example.test:6379",
            "name": "redis1.example.test",
            "port": 6379,
            "priority": 0,
            "weight": 3,
            "addresses": ["127.0.0.1"],
            "domain": "example.test",
        },
    }
    assert (removed["event"], removed["endpoint"]) == ("removed", "spare.example.test:6379")
    assert (watch.returncode, rest, errors) == (130, "", "")


def test_watch_ends_when_its_time_is_over_and_says_whether_there_is_anything(perform, service):
    good = perform("watch", SERVICE, "--nameserver", service.nameserver, "--for=2")
    bad = perform("watch", "_x._tcp.example.org", "--nameserver", service.nameserver, "--for=2", "--empty-hold=0")

    assert [line.split()[1] for line in good.out.splitlines()] == ["added", "added", "added", "fresh"]
    assert "empty        discovery: _x._tcp.example.org SRV: no such name (NXDOMAIN)" in bad.out
    assert (good.status, bad.status) == (0, 1)


def test_watch_of_hosts_sees_that_they_get_addresses(perform, dns):
    dns.add_address("one.example.org", "127.0.0.1")
    result = perform("watch", "one.example.org:1", "two.example.org:2", at(dns), "--for=2")

    words = [line.split()[1:3] for line in result.out.splitlines()]
    assert words[:2] == [["added", "one.example.org:1:"], ["added", "two.example.org:2:"]]
    assert ["updated", "one.example.org:1:"] in words
    assert "addresses none -> 127.0.0.1" in result.out
    assert result.status == 0


# The demo in a terminal


def row_of(text: str, number: int) -> list[str]:
    """Return the cells of a backend: process, DNS, state, calls/s, errors, in flight."""
    line = next(line for line in text.splitlines() if line[1:3] == f"{number} ")
    return line[3:].split()[1:]


def is_(number: int, **cells: str):
    """Say whether the table shows that of a backend."""

    def is_seen(text: str) -> bool:
        if "process" not in text:
            return False
        process, published, state, rate, *_ = row_of(text, number)
        seen = {"process": process, "dns": published, "state": state, "serves": str(rate != "0")}
        return all(seen[name] == value for name, value in cells.items())

    return is_seen


@pytest.mark.bound(120)
def test_the_demo_does_what_keys_say_and_no_caller_sees_a_failure():
    with Terminal(command("demo")) as terminal:
        see = terminal.see
        see(is_(3, process="runs", dns="yes", state="active", serves="True"))
        terminal.type("2k")
        see(is_(2, process="killed", dns="yes", state="ejected"))
        terminal.type("3h")
        see(is_(3, process="hangs", dns="yes", state="ejected"))
        terminal.type("1d4a")
        see(is_(1, process="runs", dns="no", state="gone"))
        see(is_(4, process="runs", dns="yes", state="active", serves="True"))
        terminal.type("2r")
        see(is_(2, process="runs", state="active"))
        terminal.type("3r1a")
        see(is_(3, process="runs", state="active"))
        text = see(is_(1, dns="yes", state="active", serves="True"))
        terminal.type("\x1b[A")  # is no key of ours
        terminal.type("q")
        status = terminal.wait()

        assert "failures seen by callers: 0" in text
        assert len(text.splitlines()) == 24
        assert max(map(len, text.splitlines())) <= 80
        assert text.splitlines()[-1] == "1-4 choose  k kill  h hang  r revive  d remove from DNS  a add to DNS  q quit"
        assert status == 0
        assert plain(terminal.written).splitlines()[-1].endswith(" calls, 0 failures seen by callers")
        assert terminal.is_restored


def test_the_picture_fits_whatever_the_terminal_is():
    with Terminal(command("demo"), columns=60, lines=10) as terminal:
        small = terminal.see(is_(1, state="active"))
        terminal.resize(130, 40)
        large = terminal.see("p99 ms")
        terminal.type("\x03")
        status = terminal.wait()

        assert len(small.splitlines()) == 10
        assert max(map(len, small.splitlines())) <= 60
        assert "failures seen by callers: 0" in small
        assert len(large.splitlines()) == 40
        assert status == 130
        assert terminal.is_restored


def test_a_terminal_that_does_not_know_its_size_has_the_usual_one():
    with Terminal(command("demo"), columns=0, lines=0) as terminal:
        text = terminal.see(is_(1, state="active"))
        terminal.type("q")

        assert len(text.splitlines()) == 24
        assert max(map(len, text.splitlines())) <= 80
        assert terminal.wait() == 0


def test_a_backend_that_starts_is_started_once_whatever_keys_come():
    with Terminal(command("demo"), lines=50) as terminal:
        terminal.see(is_(1, process="runs", state="active"))
        terminal.type("1k" + "rk" * 5 + "r")
        text = terminal.see("it is there again")
        terminal.type("q")

        assert terminal.wait() == 0
        assert text.count("a.example.test: on the port that it had") == 1
        assert text.count("a.example.test: its process is gone") == 1
        assert "Traceback" not in terminal.written


BROKEN = """
import sys
from geventconnpool._commands import _demo, main
def frame(*_):
    raise RuntimeError("a slip")
_demo.frame = frame
sys.exit(main(["demo"]))
"""


@pytest.mark.parametrize("how", ["SIGTERM", "error"])
def test_the_terminal_is_restored_whatever_ends_the_demo(how):
    with Terminal([sys.executable, "-c", BROKEN] if how == "error" else command("demo")) as terminal:
        if how == "SIGTERM":
            terminal.see("starting four backends")
            terminal.process.send_signal(signal.SIGTERM)
        status = terminal.wait()

        assert status == (143 if how == "SIGTERM" else 1)
        assert terminal.is_restored
        assert terminal.written.count("\x1b[?1049h") == terminal.written.count("\x1b[?1049l") == 1
        assert terminal.written.count("\x1b[?25l") == terminal.written.count("\x1b[?25h") == 1
        assert ("RuntimeError: a slip" in terminal.written) == (how == "error")


QUICK = """
import sys
from geventconnpool import demo
from geventconnpool._commands import main
demo.CALM = demo.ABSENCE = 0.1
demo.PATIENCE = 30.0
sys.exit(main(["demo", "--json"]))
"""


def test_the_scenes_are_told_in_json_and_end_with_whoever_reads_them():
    process = subprocess.Popen(
        [sys.executable, "-c", QUICK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    first = json.loads(process.stdout.readline())
    process.stdout.close()
    errors = process.stderr.read()

    assert process.wait(60) == 141
    assert errors == ""
    assert (first["step"], first["title"]) == (1, "All is well: the load is spread over three backends.")
    assert [seen["what"] for seen in first["seen"]] == ["all connections are open", "all backends serve"]
    assert [(row["endpoint"].partition(":")[0], row["state"], row["ejections"]) for row in first["endpoints"]] == [
        ("a.example.test", "active", 0),
        ("b.example.test", "active", 0),
        ("c.example.test", "active", 0),
    ]
    assert (first["failed_attempts"], first["failures"]) == (0, 0)


def test_without_a_terminal_the_demo_plays():
    process = subprocess.Popen(
        [sys.executable, "-m", "geventconnpool", "demo"], stdout=subprocess.PIPE, text=True, env=environment()
    )
    told = ""
    while "all backends serve" not in told:
        line = process.stdout.readline()
        assert line, told
        told += line
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()

    assert process.wait(30) == 130
    assert "\x1b" not in told + rest
    assert alive(pids_in(told)) == []


# What all have in common


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "geventconnpool: error: the following arguments are required: COMMAND"),
        (["resolve"], "geventconnpool resolve: error: the following arguments are required: NAME"),
        (["resolve", "a b"], "geventconnpool resolve: error: service 'a b' is neither a name nor a name with a port"),
        (["resolve", "a:0"], "geventconnpool resolve: error: service 'a:0' has a port that is not between 1 and 65535"),
        (
            ["check", "a:1", "b"],
            "geventconnpool check: error: of several names each needs a port, which 'b' has not",
        ),
        (["check", "a:1", "a:1"], "geventconnpool check: error: endpoints holds a:1 twice"),
        (
            ["check", "a", "--count=0"],
            "geventconnpool check: error: argument --count: '0' is not a number from 1 to 1000",
        ),
        (["check", "a", "--tls-name=b"], "geventconnpool check: error: --tls-name is of no use without --tls"),
        (
            ["check", "a", "--tls", "--tls-name=a b"],
            "geventconnpool check: error: --tls-name 'a b' is no name of a host",
        ),
        (
            ["check", "a", "--tls", "--ca-file=/nowhere"],
            "geventconnpool check: error: --ca-file '/nowhere' cannot be used: No such file or directory",
        ),
        (
            ["watch", "a", "--nameserver=b"],
            "geventconnpool watch: error: argument --nameserver: 'b' is not an IP address, with or without a port",
        ),
        (
            ["watch", "a", "--timeout=0"],
            "geventconnpool watch: error: argument --timeout: '0' is not a number of seconds above 0",
        ),
        (["watch", "a", "--for=x"], "geventconnpool watch: error: argument --for: 'x' is not a number of seconds"),
        (
            ["watch", "a", "--max-refresh=1"],
            "geventconnpool watch: error: max_refresh must be at least min_refresh (5.0), not 1.0",
        ),
    ],
)
def test_bad_usage_is_told_in_one_line(perform, arguments, message):
    result = perform(*arguments)

    help_of = " ".join(["geventconnpool", *arguments[:1]])
    assert result.err == f"{message} ({help_of} --help tells more)\n"
    assert (result.status, result.out) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "first"),
    [(["resolve", SERVICE], "_redis._tcp.example.org: 3 SRV"), (["demo"], "   a.example.test is")],
)
def test_nobody_who_stops_reading_sees_a_traceback(service, arguments, first):
    if arguments[0] == "resolve":
        arguments = [*arguments, "--nameserver", service.nameserver]
    result = gevent.subprocess.run(
        ["bash", "-c", '"$@" | head -n 1', "-", *command(*arguments)], capture_output=True, text=True, env=environment()
    )

    assert result.stdout.startswith(first)
    assert result.stderr == ""


def test_watch_ends_when_nobody_reads_it_though_nothing_happens(service):
    with started("watch", SERVICE, "--nameserver", service.nameserver) as watch:
        lines = [watch.stdout.readline() for _ in range(4)]
        watch.stdout.close()

        assert watch.wait(30) == 141
        assert watch.stderr.read() == ""
        assert [line.split()[1] for line in lines] == ["added", "added", "added", "fresh"]


def test_a_disk_that_is_full_is_an_error_in_one_line():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    with full.open("w") as stdout:
        result = subprocess.run(
            command("resolve", "127.0.0.1:1"), stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment()
        )

    assert (result.returncode, result.stderr) == (2, "geventconnpool: error: No space left on device\n")


def test_who_wants_no_output_gets_none():
    shell = '"$@" >&-'
    result = gevent.subprocess.run(
        ["bash", "-c", shell, "-", *command("resolve", "127.0.0.1:1")], capture_output=True, env=environment()
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("arguments", "status"), [("check 127.0.0.1:{port} --count=1", 0), ("watch 127.0.0.1:1 --for=0", 0)]
)
def test_what_a_command_finds_does_not_depend_on_whether_errors_can_be_written(service, arguments, status):
    line = command(*arguments.format(port=service.ports[0]).split())
    result = gevent.subprocess.run(["bash", "-c", '"$@" 2>&-', "-", *line], capture_output=True, env=environment())

    assert result.returncode == status
    assert result.stdout != b""


def test_nobody_directs_the_demo_who_cannot_see_it(monkeypatch):
    master, keyboard = pty.openpty()
    with open(master), open(keyboard) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", None)  # as with >&-

        assert not is_interactive()


TWO_SIGNALS = """
import os, signal, gevent
from geventconnpool._commands._output import end_with_signals
end_with_signals()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    gevent.sleep(30)
finally:
    os.kill(os.getpid(), signal.SIGINT)
    gevent.sleep(0.1)
    print("put away")
"""


def test_what_is_done_at_the_end_is_not_interrupted():
    result = gevent.subprocess.run([sys.executable, "-c", TWO_SIGNALS], capture_output=True, env=environment())

    assert (result.returncode, result.stdout, result.stderr) == (143, b"put away\n", b"")


def test_colours_are_for_terminals_that_want_them(service):
    arguments = command("resolve", SERVICE, "--nameserver", service.nameserver)
    written = []
    for changes in ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"}):
        with Terminal(arguments, **changes) as terminal:
            assert terminal.wait() == 0
            written.append(terminal.written)

    assert "\x1b[1m_redis._tcp.example.org\x1b[0m: 3 SRV records" in written[0]
    assert ["\x1b" in text for text in written] == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "progress", "last"),
    [
        (["resolve", "_x._tcp.example.org", "--timeout=1"], "looking up _x._tcp.example.org", "nothing to connect to"),
        (["check", SERVICE, "--tls", "--timeout=3"], "0 of 3 endpoints done", "CRITICAL"),
        (["watch", SERVICE, "--for=3"], "3 endpoints, fresh, next look-up in ", "fresh"),
    ],
)
def test_who_waits_at_a_terminal_is_told_for_what(service, arguments, progress, last):
    service.dns.fault = lambda query: "drop" if "_x." in str(query.question[0]) else None
    with Terminal(command(*arguments, "--nameserver", service.nameserver)) as terminal:
        terminal.wait()

        assert progress in terminal.written
        # Nothing of it is left, and results stand on lines of their own.
        lines = [line.rpartition("\x1b[K")[2] for line in terminal.written.split("\n")]
        assert last in plain("\n".join(lines))
        assert progress not in "\n".join(lines)


def test_without_more_than_ascii_bars_are_made_of_ascii(service):
    result = run("check", SERVICE, "--nameserver", service.nameserver, PYTHONUTF8="0", PYTHONIOENCODING="ascii")

    assert "median in ms: # connect\n" in result.out
    assert result.out.isascii()


def test_the_version_says_what_else_counts():
    result = run("--version")

    words = result.out.split()
    assert words[0] == "geventconnpool"
    assert [word.strip("(,") for word in words[2::2]] == ["gevent", "dnspython", "Python"]
    assert result.status == 0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("192.0.2.53:5353", ("192.0.2.53", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
    ],
)
def test_a_name_server_may_be_given_with_a_port(text, address):
    assert commands.nameserver(text) == address


@pytest.mark.parametrize("text", ["", "ns.example.org", "ns.example.org:53", "192.0.2.53:0", "192.0.2.53:x", "[::1"])
def test_a_name_server_is_an_address(text):
    with pytest.raises(ArgumentTypeError, match="is not an IP address, with or without a port"):
        commands.nameserver(text)


def test_importing_the_package_loads_nothing_of_the_commands():
    unwanted = "{'argparse', 'geventconnpool._commands', 'geventconnpool.demo'}"
    program = f"import sys, geventconnpool, geventconnpool.cluster; print({unwanted} & {{*sys.modules}})"

    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True) == "set()\n"


# What help and docs show


def shown(perform, name: str) -> list[tuple[str, str]]:
    text = (ROOT / "docs" / "command-line.rst").read_text() if name == "docs" else perform(name, "--help").out
    return examples(text)


@pytest.mark.parametrize("name", ["resolve", "check", "docs"])
def test_examples_show_what_commands_print(perform, monkeypatch, name, service, secure):
    found = [example for example in shown(perform, name) if not example[0].startswith(("watch", "demo", "--"))]

    assert len(found) >= 2
    monkeypatch.chdir(secure.ca_file.parent)
    for arguments, output in found:
        one = secure if "--tls" in arguments else service
        result = perform(*arguments.split(), "--nameserver", one.nameserver)
        assert normal(result.out) == normal(output), arguments


@pytest.mark.parametrize("name", ["watch", "docs"])
def test_the_example_of_watch_shows_what_it_prints(perform, name, service):
    output = next(output for arguments, output in shown(perform, name) if arguments == f"watch {SERVICE}")
    dns, second, third = service.dns, service.ports[1], service.ports[2]
    fast = ["--min-refresh=0.1", "--max-refresh=0.1"]
    with started("watch", SERVICE, "--nameserver", service.nameserver, *fast) as watch:
        printed = [watch.stdout.readline() for _ in range(4)]
        dns.remove_srv(SERVICE, "redis3.example.org", third)
        dns.remove_srv(SERVICE, "redis2.example.org", second)
        dns.add_srv(SERVICE, "redis2.example.org", second, 0, 3)
        printed += [watch.stdout.readline() for _ in range(2)]
        dns.fault = "servfail"
        printed.append(watch.stdout.readline())
        dns.fault = None
        printed.append(watch.stdout.readline())

    assert normal("".join(printed)) == normal(output)


def test_the_page_shows_the_help_as_it_is(
    perform,
):
    page = (ROOT / "docs" / "command-line.rst").read_text()

    for name in COMMANDS:
        statuses = perform(name, "--help").out.partition("exit status")[2].partition(":\n")[2]
        for line in statuses.strip().splitlines():
            number, _, meaning = line.strip().partition(" ")
            assert f"* ``{number}``: {meaning.strip()}" in page, name


def names_in(page: str, name: str) -> set[str]:
    """Return what the page says that the JSON of a command has."""
    about = page.partition(f"* ``{name}``: ``")[2].partition("\n* ")[0].partition("\n\n")[0]
    return set(re.findall("``([a-z_]+)``", f"``{about}"))


def test_the_page_names_all_that_is_in_json(perform, service):
    page = (ROOT / "docs" / "command-line.rst").read_text()
    for name in ("resolve", "check"):
        document = json.loads(perform(name, SERVICE, "--nameserver", service.nameserver, "--json").out)

        inner = {key for value in document.values() if isinstance(value, list) for one in value for key in one}
        assert names_in(page, name) == {*document, *inner, *(["why"] if name == "resolve" else [])}


# What they are made of


def test_a_column_is_as_wide_as_its_content_and_numbers_stand_at_the_right():
    columns = [Column("name"), Column("n", is_number=True), Column("state", least=7)]

    assert list(table(columns, [["a", "1", "ok"], ["longer", "\x1b[31m1000\x1b[0m", "out"]])) == [
        "name       n  state",
        "a          1  ok",
        "longer  \x1b[31m1000\x1b[0m  out",
    ]


def test_bars_share_a_scale_and_what_is_more_than_nothing_is_seen():
    rows = [("a", [2.0, 2.0], "4"), ("bb", [1.0, 0.0], "1"), ("c", [0.001], "0"), ("d", [0.0], "none")]

    assert list(bars(rows, Look(width=22))) == [
        "a   " + "######======" + "  4",
        "bb  " + "###" + "  1",
        "c   " + "#" + "  0",
        "d   none",
    ]
    assert bar([0.0], 0.0, 10, "#") == ""


def test_a_line_is_cut_where_the_terminal_ends_but_not_its_colours():
    assert fit("\x1b[31mred\x1b[0m and more", 5) == "\x1b[31mred\x1b[0m a"
    assert fit("short", 5) == "short"
    assert fit("\x1b[1mlonger\x1b[0m", 3) == "\x1b[1mlon\x1b[0m"
    assert fit("none", 0) == ""


@pytest.mark.parametrize(
    ("is_terminal", "encoding", "variables", "expected"),
    [
        (True, "utf-8", {}, Look(has_colours=True, has_blocks=True, width=132)),
        (True, "utf-8", {"NO_COLOR": "1"}, Look(has_colours=False, has_blocks=True, width=132)),
        (True, "utf-8", {"NO_COLOR": ""}, Look(has_colours=True, has_blocks=True, width=132)),
        (True, "latin-1", {"TERM": "dumb"}, Look(has_colours=False, has_blocks=False, width=132)),
        (False, "utf-8", {}, Look(has_colours=False, has_blocks=True, width=80)),
        (False, None, {}, Look(has_colours=False, has_blocks=False, width=80)),
        (False, "no such encoding", {}, Look(has_colours=False, has_blocks=False, width=80)),
    ],
)
def test_how_to_write_depends_on_the_stream_and_the_environment(is_terminal, encoding, variables, expected):
    assert look_of(is_terminal, encoding, 132, variables) == expected


def test_weight_0_gets_hardly_any_call_and_only_those_of_its_priority_count():
    one, two, never, spare = (
        Endpoint("a", 1, weight=3),
        Endpoint("b", 1),
        Endpoint("c", 1, weight=0),
        Endpoint("d", 1, priority=1),
    )
    shares = shares_of([one, two, never, spare])

    assert [round(shares[endpoint], 4) for endpoint in (one, two, never, spare)] == [0.7481, 0.2494, 0.0025, 1.0]


@pytest.mark.parametrize(
    ("measured", "status"),
    [
        ([Measured("a", 5, is_done=True)], 0),
        ([Measured("a", 5, is_done=True), Measured("b", errors=["no"], is_done=True)], 1),
        ([Measured("a", 4, errors=["no"], is_done=True)], 1),
        ([Measured("a", 0, connects=[0.1], errors=["no TLS"], is_done=True)], 2),
        ([Measured("a", errors=["no"], is_done=True)], 2),
        ([Measured("a", errors=["no address"])], 2),
        ([], 2),
    ],
)
def test_the_status_is_that_of_a_monitoring_plugin(measured, status):
    assert status_of(measured) == status


def test_how_far_it_is_is_told_in_words():
    discovery = SimpleNamespace(state="stale", next_lookup=None)

    assert how_far("a", []) == "looking up a"
    assert how_far("a", [Measured("a", is_done=True), Measured("b")]) == "1 of 2 endpoints done"
    assert how_it_stands(SimpleNamespace(endpoints=(1,), discovery=discovery), now=1.0) == "1 endpoint, stale"


def test_what_happens_is_told_in_words():
    a, b = Endpoint("a", 1), Endpoint("a", 1, ("127.0.0.1",), priority=1, weight=2, domain="example.org")

    assert told(events.EndpointUpdated("p", b, a)) == (
        "updated",
        "a:1",
        "priority 0 -> 1, weight 1 -> 2, addresses none -> 127.0.0.1, domain None -> example.org",
    )
    assert told(events.EndpointEjected("p", a, "calls", 1.25, None)) == (
        "ejected",
        "a:1",
        "failed calls, probe in 1.2 s",
    )
    assert told(events.EndpointDrained("p", a, forced=True)) == ("drained", "a:1", "calls were cut")
    assert document_of(events.EventsDropped("p", 3)) == {"event": "missed", "count": 3}
    assert document_of(events.EndpointDrained("p", a, forced=False)) is None
    assert told(events.EventsDropped("p", 3)) == ("missed", "3", "events, which came too fast")
    assert told(events.ConnectionOpened("p", a, 0.1)) is None
