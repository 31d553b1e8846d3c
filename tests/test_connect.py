"""A socket to the first address of an endpoint that accepts, within one bound: Happy Eyeballs."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import greenlet
import pytest
from gevent import GreenletExit, socket
from hypothesis import given
from hypothesis import strategies as st

from geventconnpool.cluster import _connect, _dns
from geventconnpool.cluster._endpoints import Endpoint
from geventconnpool.cluster._race import ATTEMPT_DELAY, Race, interleaved
from geventconnpool.testing import DNSServer
from tests.servers import free_port, wait_until
from tests.switches import Interrupter

KINDS = [gevent.Timeout, GreenletExit, RuntimeError, ConnectionRefusedError]  # the last looks like a failed attempt
every_kind = pytest.mark.parametrize("kind", KINDS)
LONG = 60.0  # seconds: what waits for it fails the test

ROOT = Path(__file__).parent.parent


# -- what is decided ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ("", ""),
        ("1.1.1.1 2.2.2.2", "1.1.1.1 2.2.2.2"),
        ("::1 ::2", "::1 ::2"),
        ("1.1.1.1 ::1", "::1 1.1.1.1"),
        ("1.1.1.1 2.2.2.2 3.3.3.3 ::1", "::1 1.1.1.1 2.2.2.2 3.3.3.3"),
        ("1.1.1.1 ::1 ::2 ::3", "::1 1.1.1.1 ::2 ::3"),
        ("1.1.1.1 2.2.2.2 ::2 ::1", "::2 1.1.1.1 ::1 2.2.2.2"),
        ("fe80::1%eth0 ::ffff:1.1.1.1 1.1.1.1", "fe80::1%eth0 1.1.1.1 ::ffff:1.1.1.1"),
    ],
)
def test_the_families_take_turns_and_ipv6_begins(addresses, expected):
    assert interleaved(addresses.split()) == expected.split()


@given(st.lists(st.ip_addresses().map(str)))
def test_interleaving_keeps_all_addresses_and_the_order_within_each_family(addresses):
    found = interleaved(addresses)

    for is_ipv6 in (True, False):
        assert [a for a in found if (":" in a) is is_ipv6] == [a for a in addresses if (":" in a) is is_ipv6]
    assert len(found) == len(addresses)


def race(*addresses: str, deadline: float = math.inf) -> Race:
    return Race(addresses, deadline)


def test_an_attempt_that_is_silent_gets_the_next_beside_it_after_250_ms():
    a_race = race("1.1.1.1", "2.2.2.2", "3.3.3.3")

    told = [(now, a_race.next(now), a_race.next(now), a_race.patience(now)) for now in (7.0, 7.125, 7.25, 7.5, 60.0)]

    assert told == [
        (7.0, "1.1.1.1", None, 0.25),
        (7.125, None, None, 0.125),
        (7.25, "2.2.2.2", None, 0.25),
        (7.5, "3.3.3.3", None, None),
        (60.0, None, None, None),
    ]


def test_the_delay_counts_from_the_attempt_and_not_from_when_it_was_due():
    a_race = race("1.1.1.1", "2.2.2.2", "3.3.3.3")
    a_race.next(0.0)

    assert a_race.next(10.0) == "2.2.2.2"
    assert a_race.next(10.2) is None
    assert a_race.next_attempt_at == 10.25


def test_a_failure_makes_one_more_attempt_due_at_once():
    a_race = race("1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4")
    a_race.next(0.0)
    a_race.next(0.25)

    a_race.failed(OSError())
    a_race.failed(OSError())  # in the same turn

    assert a_race.patience(0.3) == 0
    assert (a_race.next(0.3), a_race.next(0.3)) == ("3.3.3.3", None)
    assert a_race.next_attempt_at == 0.55


def test_nobody_waits_beyond_the_deadline():
    a_race = race("1.1.1.1", "2.2.2.2", deadline=1.0)

    assert (a_race.next(0.5), a_race.patience(0.5)) == ("1.1.1.1", 0.25)
    assert (a_race.next(0.875), a_race.patience(0.875)) == ("2.2.2.2", 0.125)
    assert a_race.patience(2.0) == 0


def test_a_race_is_lost_when_all_attempts_have_failed():
    a_race = race("1.1.1.1", "2.2.2.2")
    errors = [OSError("one"), OSError("two")]
    seen = [a_race.is_lost]

    for now, error in enumerate(errors):
        a_race.next(now)
        seen.append(a_race.is_lost)
        a_race.failed(error)
        seen.append(a_race.is_lost)

    assert seen == [False, False, False, False, True]
    assert a_race.last_error is errors[1]


# -- what is done ------------------------------------------------------------------------------------------------------


class Listener:
    """Listens on some addresses, on one port: "accepting" ones, and "full" ones that never answer."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.port = 0
        self.accepting = self.add("127.0.0.1")
        self.port = self.accepting.getsockname()[1]

    def add(self, address: str, backlog: int = 5) -> socket.socket:
        listener = self._stack.enter_context(self._socket(address))
        listener.bind((address, self.port))
        listener.listen(backlog)
        return listener

    def add_full(self, address: str) -> socket.socket:
        """Linux drops every SYN to a socket whose queue of unaccepted connections is full."""
        listener = self.add(address, 0)
        for _ in range(4):
            filler = self._stack.enter_context(self._socket(address))
            filler.setblocking(False)
            filler.connect_ex((address, self.port))
        return listener

    def endpoint(self, *addresses: str) -> Endpoint:
        return Endpoint("a.test", self.port, addresses)

    def close(self) -> None:
        self._stack.close()

    def _socket(self, address: str) -> socket.socket:
        return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


@pytest.fixture(autouse=True)
def _no_socket_is_closed_by_being_forgotten(monkeypatch) -> None:
    remembered: list[socket.socket] = []

    class Socket(socket.socket):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            remembered.append(self)

    class Module:
        def __getattr__(self, name: str) -> Any:
            return Socket if name == "socket" else getattr(socket, name)

    monkeypatch.setattr(_connect, "socket", Module())


@pytest.fixture
def set_delay(monkeypatch) -> Callable[[float], None]:
    """Returns what sets the Connection Attempt Delay, in seconds."""
    return lambda seconds: monkeypatch.setattr("geventconnpool.cluster._race.ATTEMPT_DELAY", seconds)


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """The addresses that attempts were made at, in their order."""
    addresses: list[str] = []
    connecting = _connect._connecting

    def note(address: str, port: int) -> socket.socket:
        addresses.append(address)
        return connecting(address, port)

    monkeypatch.setattr(_connect, "_connecting", note)
    return addresses


@pytest.fixture
def patient_clock(monkeypatch) -> None:
    """Time passes only for who waits for it, however busy the machine is."""
    now = 0.0
    ended = _connect._Attempts._ended

    def wait(attempts: Any, seconds: Any) -> list[socket.socket]:
        nonlocal now
        found = ended(attempts, seconds)
        now += 0 if found else seconds
        return found

    monkeypatch.setattr(_connect._Attempts, "_ended", wait)
    monkeypatch.setattr(_connect, "time", SimpleNamespace(monotonic=lambda: now))


@pytest.fixture
def decided_at_once(monkeypatch) -> None:
    """Every attempt has ended before it is first looked at."""
    connecting = _connect._connecting

    def connect(address: str, port: int) -> socket.socket:
        attempt = connecting(address, port)
        poll = select.poll()  # which blocks
        poll.register(attempt, select.POLLOUT)
        poll.poll()
        return attempt

    monkeypatch.setattr(_connect, "_connecting", connect)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def what_is_left() -> tuple[int, int]:
    """How many descriptors are open, and how many watchers and timers are active in the loop."""
    return open_files(), gevent.get_hub().loop.activecnt


def test_the_addresses_are_tried_in_order(listener, tried):
    with listener.endpoint("127.0.0.3", "127.0.0.0", "127.0.0.1", "127.0.0.2").connect(LONG) as connection:
        assert connection.getpeername() == ("127.0.0.1", listener.port)

    assert tried == ["127.0.0.0", "127.0.0.1"]


@needs_ipv6
def test_ipv6_is_tried_first(listener, tried):
    listener.add("::1")

    with listener.endpoint("127.0.0.1", "::1").connect(LONG) as connection:
        assert connection.getpeername()[:2] == ("::1", listener.port)

    assert tried == ["::1"]


def test_the_socket_is_a_gevent_one_with_the_timeout_and_without_delay(listener):
    with Endpoint("127.0.0.1", listener.port).connect(2) as connection:
        assert isinstance(connection, socket.socket)
        assert connection.gettimeout() == 2
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_without_a_timeout_the_socket_has_none(listener):
    with Endpoint("127.0.0.1", listener.port).connect() as connection:
        assert connection.gettimeout() is None


def test_what_is_sent_and_received_waits_as_on_any_socket(listener):
    with listener.endpoint("127.0.0.1").connect(LONG) as connection:
        peer, _ = listener.accepting.accept()
        with peer:
            answer = gevent.spawn(connection.recv, 9)
            gevent.sleep(0)
            peer.sendall(b"answer")
            assert answer.get() == b"answer"


def test_a_server_that_accepts_and_is_silent_is_a_success(listener, tried):
    with listener.endpoint("127.0.0.1", "127.0.0.2").connect(LONG) as connection:
        assert connection.getpeername() == ("127.0.0.1", listener.port)

    assert tried == ["127.0.0.1"]


# -- attempts beside each other ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [pytest.param("::1", marks=needs_ipv6), "127.0.0.2"])
def test_the_next_is_used_when_one_is_silent_for_250_ms(listener, silent, tried):
    listener.add_full(silent)
    listener.add("127.0.0.3")
    before = time.monotonic()

    with listener.endpoint(silent, "127.0.0.3").connect(LONG) as connection:
        elapsed = time.monotonic() - before
        assert connection.getpeername() == ("127.0.0.3", listener.port)

    assert tried == [silent, "127.0.0.3"]
    assert ATTEMPT_DELAY == 0.25 <= elapsed < LONG / 4


@pytest.mark.usefixtures("patient_clock")
def test_no_other_is_tried_while_the_delay_lasts(listener, set_delay, tried):
    set_delay(LONG)
    listener.add_full("127.0.0.2")
    listener.add("127.0.0.3")

    with pytest.raises(TimeoutError):
        listener.endpoint("127.0.0.2", "127.0.0.3").connect(0.1)

    assert tried == ["127.0.0.2"]


def test_a_refusal_starts_the_next_at_once(listener, set_delay, tried):
    set_delay(LONG)
    listener.add("127.0.0.4")

    with listener.endpoint("127.0.0.2", "127.0.0.3", "127.0.0.4").connect(LONG / 2) as connection:
        assert connection.getpeername() == ("127.0.0.4", listener.port)

    assert tried == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]


@needs_ipv6
@pytest.mark.parametrize("unusable", ["fe80::1", "fe80::1%nosuch"])  # Linux: EINVAL without a zone
def test_an_address_that_is_of_no_use_to_this_machine_starts_the_next_at_once(listener, set_delay, unusable):
    set_delay(LONG)

    with listener.endpoint("127.0.0.1", unusable).connect(LONG / 2) as connection:
        assert connection.getpeername() == ("127.0.0.1", listener.port)


def test_a_refusal_beside_one_that_is_silent_starts_the_next_at_once(listener, set_delay, tried):
    listener.add_full("127.0.0.2")
    listener.add("127.0.0.4")
    set_delay(0.01)
    attempt = gevent.spawn(listener.endpoint("127.0.0.2", "127.0.0.3", "127.0.0.4").connect, LONG / 2)
    gevent.sleep(0)
    set_delay(LONG)  # between the second attempt and the third

    with attempt.get() as connection:
        assert connection.getpeername() == ("127.0.0.4", listener.port)

    assert tried == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]


def test_the_first_may_still_win_when_others_were_started(listener, set_delay, tried):
    set_delay(0.01)
    late = listener.add_full("127.0.0.2")
    listener.add_full("127.0.0.3")
    before = open_files()
    attempt = gevent.spawn(listener.endpoint("127.0.0.2", "127.0.0.3").connect, LONG)
    wait_until(lambda: open_files() == before + 2)

    answering = gevent.spawn(accept_all, late)  # the kernel sends its SYN again after a second

    with attempt.get() as connection:
        assert connection.getpeername() == ("127.0.0.2", listener.port)
        answering.kill()
        assert open_files() == before + 1
    assert tried == ["127.0.0.2", "127.0.0.3"]


def accept_all(listener: socket.socket) -> None:
    while True:
        listener.accept()[0].close()


def test_those_that_lose_are_closed(listener, set_delay):
    set_delay(0.001)
    for n in range(2, 7):
        listener.add_full(f"127.0.0.{n}")
    listener.add("127.0.0.7")
    before = what_is_left()

    with listener.endpoint(*(f"127.0.0.{n}" for n in range(2, 8))).connect(LONG):
        assert open_files() == before[0] + 1

    assert what_is_left() == before


@pytest.mark.usefixtures("decided_at_once")
def test_of_two_that_accept_in_the_same_turn_the_first_is_taken_and_the_other_closed(listener, set_delay, tried):
    set_delay(0)
    other = listener.add("127.0.0.2")
    before = open_files()

    with listener.endpoint("127.0.0.1", "127.0.0.2").connect(LONG) as connection:
        assert tried == ["127.0.0.1", "127.0.0.2"]
        assert connection.getpeername() == ("127.0.0.1", listener.port)
        assert open_files() == before + 1
        with other.accept()[0] as peer:
            assert peer.recv(1) == b""


@pytest.mark.usefixtures("decided_at_once")
def test_one_that_accepts_in_the_turn_in_which_another_refuses_is_taken(listener, set_delay, tried):
    set_delay(0)
    before = open_files()

    with listener.endpoint("127.0.0.0", "127.0.0.1").connect(LONG) as connection:
        assert tried == ["127.0.0.0", "127.0.0.1"]
        assert connection.getpeername() == ("127.0.0.1", listener.port)
        assert open_files() == before + 1


@pytest.mark.usefixtures("patient_clock")
def test_one_that_accepted_while_the_hub_was_busy_beyond_the_bound_is_taken(listener):
    attempt = gevent.spawn(listener.endpoint("127.0.0.1").connect, 0.05)
    gevent.sleep(0)

    time.sleep(0.1)

    attempt.get().close()


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1200, reason="as few files may be open here")
def test_descriptors_beyond_what_select_can_look_at_are_fine(listener, set_delay):
    set_delay(0.001)
    listener.add_full("127.0.0.2")
    listener.add("127.0.0.4")

    with file_limit(lambda soft: max(soft, 1200)), contextlib.ExitStack() as stack:
        while stack.enter_context(open(os.devnull)).fileno() < 1024:
            pass
        with listener.endpoint("127.0.0.2", "127.0.0.3", "127.0.0.4").connect(LONG) as connection:
            assert connection.fileno() > 1024


@contextlib.contextmanager
def file_limit(of: Callable[[int], int]) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (of(soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- addresses with a zone, and none at all ----------------------------------------------------------------------------


@needs_ipv6
@pytest.mark.parametrize("zone", ["lo", "1"])
def test_an_address_with_a_zone_is_reached(listener, zone):
    listener.add("::1")

    with listener.endpoint(f"::1%{zone}").connect(2) as connection:
        assert connection.getpeername()[:2] == ("::1", listener.port)


def test_a_zone_is_told_to_the_kernel_as_a_number():
    number = socket.if_nametoindex("lo")

    for zone in ("lo", number):
        assert _connect.sockaddr(f"fe80::1%{zone}", 80) == ("fe80::1", 80, 0, number)


def test_a_host_without_addresses_is_left_to_the_system(listener):
    with Endpoint("localhost", listener.port).connect(2) as connection:
        assert connection.getpeername()[1] == listener.port


@pytest.fixture
def dns(tmp_path, monkeypatch):
    """A name server, the one of this machine."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1\n")
    with DNSServer() as server:
        monkeypatch.setattr(_dns, "_RESOLV_CONF", tmp_path / "resolv.conf")
        monkeypatch.setattr(_dns, "_PORT", server.address[1])
        yield server


@pytest.mark.usefixtures("no_thread_pool")
def test_all_addresses_that_dns_knows_of_a_host_are_tried(dns, listener, tried):
    dns.add_address("a.test", "127.0.0.1")
    dns.add_address("a.test", "127.0.0.3")
    with pytest.raises(ConnectionRefusedError):
        Endpoint("a.test", free_port()).connect(2)
    assert sorted(tried) == ["127.0.0.1", "127.0.0.3"]

    with Endpoint("a.test", listener.port).connect(2) as connection:
        assert connection.getpeername()[1] == listener.port


def test_the_bound_holds_for_the_look_up_too_and_leaves_nothing_behind(dns):
    dns.fault = "drop"
    before = what_is_left()

    with pytest.raises(TimeoutError, match=r"a\.test:80 did not accept a connection within 0\.05 s"):
        Endpoint("a.test", 80).connect(0.05)

    gevent.idle()
    assert what_is_left() == before


@pytest.mark.parametrize(
    ("fault", "number", "words"), [(None, socket.EAI_NONAME, "NXDOMAIN"), ("refused", socket.EAI_AGAIN, "REFUSED")]
)
def test_the_error_of_the_look_up_is_one_of_the_system_with_the_reason(dns, fault, number, words):
    dns.fault = fault

    with pytest.raises(socket.gaierror, match=rf"a\.test A.*{words}\)? from 127\.0\.0\.1") as raised:
        Endpoint("a.test", 80).connect(LONG)

    assert raised.value.errno == number


def test_without_name_servers_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_dns, "_RESOLV_CONF", tmp_path / "none")

    with pytest.raises(socket.gaierror, match="none cannot be used: No such file"):
        Endpoint("a.test", 80).connect(LONG)


@pytest.mark.usefixtures("dns")
def test_addresses_out_of_reach_are_no_addresses(dns):
    dns.add_address("a.test", "fe80::1")  # link-local: no route without a scope

    with pytest.raises(socket.gaierror, match="a.test A: no such record"):
        Endpoint("a.test", 80).connect(LONG)


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["127.0.0.2", pytest.param("fe80::1", marks=needs_ipv6)])
def test_when_nobody_accepts_the_last_error_is_raised(other, listener, tried):
    listener.close()
    before = what_is_left()

    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        listener.endpoint(other, "127.0.0.3").connect(LONG)

    assert tried == [other, "127.0.0.3"]
    assert what_is_left() == before


@pytest.mark.usefixtures("patient_clock")
def test_a_refusal_that_comes_while_another_is_silent_is_not_the_end(listener, set_delay):
    set_delay(0.001)
    listener.add_full("127.0.0.2")

    with pytest.raises(TimeoutError):
        listener.endpoint("127.0.0.2", "127.0.0.3").connect(0.1)


def test_one_bound_holds_for_all_addresses(listener):
    listener.add_full("127.0.0.2")
    listener.add_full("127.0.0.3")
    before, left = time.monotonic(), what_is_left()

    with pytest.raises(TimeoutError, match=r"a\.test:\d+ did not accept a connection within 0\.3 s") as raised:
        listener.endpoint("127.0.0.2", "127.0.0.3").connect(0.3)

    assert time.monotonic() - before >= 0.3
    assert raised.value.__cause__ is None
    assert what_is_left() == left


@pytest.mark.usefixtures("patient_clock")
def test_the_error_at_the_bound_has_the_last_refusal_as_its_cause(listener):
    listener.add_full("127.0.0.3")

    with pytest.raises(TimeoutError) as raised:
        listener.endpoint("127.0.0.2", "127.0.0.3").connect(0.1)

    assert isinstance(raised.value.__cause__, ConnectionRefusedError)


def test_without_a_descriptor_to_be_had_that_is_the_error(listener):
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)

    with file_limit(lambda _soft: lowest_free), pytest.raises(OSError, match="Too many open files"):
        listener.endpoint("127.0.0.1", "127.0.0.2").connect(2)


@pytest.mark.parametrize("address", ["127.0.0.2", "fe80::1%nosuch"])
def test_an_error_does_not_refer_to_itself(listener, address):
    def errors() -> int:
        return sum(issubclass(type(found), OSError) for found in gc.get_objects())

    gc.collect()
    before = errors()
    gc.disable()
    try:
        with contextlib.suppress(OSError):
            listener.endpoint(address).connect(2)
        assert errors() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "2"])
def test_a_bad_timeout_is_refused(timeout):
    with pytest.raises((ValueError, TypeError), match=f"timeout must be .*{timeout!r}"):
        Endpoint("127.0.0.1", 1).connect(timeout)


# -- interruptions -----------------------------------------------------------------------------------------------------


def outcome_of(connect: Callable[[], socket.socket]) -> BaseException | None:
    """Connect, and close what comes of it; return what was raised."""
    try:
        connect().close()
    except BaseException as error:
        return error.with_traceback(None)
    return None


def hit_at(k: int, kind: type[BaseException], connect: Callable[[], socket.socket]) -> bool:
    """Connect, hit at the ``k``-th switch, and return whether there was one."""

    def attempt() -> BaseException | None:
        interrupter.watch()
        outcome = outcome_of(connect)
        interrupter.leave()
        return outcome

    with Interrupter(k, kind()) as interrupter:
        assert gevent.spawn(attempt).get() is interrupter.outcome
    return interrupter.hit


@pytest.mark.usefixtures("patient_clock")
@every_kind
def test_an_interruption_at_any_switch_passes_through_and_leaves_nothing(listener, set_delay, kind):
    set_delay(0.005)
    listener.add_full("127.0.0.2")
    listener.add_full("127.0.0.4")
    listener.add("127.0.0.5")
    endpoint = listener.endpoint("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")  # the second refuses
    before = what_is_left()

    for k in count(1):
        is_hit = hit_at(k, kind, lambda: endpoint.connect(LONG))
        assert what_is_left() == before
        if not is_hit:
            break

    assert k > 4  # waits: beside the first, the second, the third, the last


@every_kind
def test_an_interruption_of_the_look_up_passes_through_and_leaves_nothing(dns, kind):
    dns.fault = "drop"
    before = what_is_left()

    assert hit_at(1, kind, lambda: Endpoint("a.test", 80).connect(LONG))

    gevent.idle()
    assert what_is_left() == before


@pytest.mark.usefixtures("decided_at_once")
@every_kind
def test_an_interruption_in_the_turn_of_the_success_passes_through_and_leaves_nothing(listener, kind):
    before = what_is_left()
    exc = kind()
    ours, theirs = socket.socketpair()
    ours.send(b"ready to be read")
    trap = gevent.get_hub().loop.io(
        theirs.fileno(), 1
    )  # called after the watcher of the attempt, whose priority is high

    def strike() -> None:
        trap.stop()
        attempt.throw(exc)

    def connect() -> Any:
        trap.start(strike)
        return listener.endpoint("127.0.0.1").connect(LONG)

    attempt = gevent.spawn(outcome_of, connect)

    assert attempt.get() is exc
    trap.close()
    ours.close()
    theirs.close()
    assert what_is_left() == before


def test_a_timeout_or_a_kill_leaves_no_socket_open(listener):
    endpoint = listener.endpoint("127.0.0.2")
    listener.add_full("127.0.0.2")
    before = what_is_left()

    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.05):
            endpoint.connect(LONG)
    attempt = gevent.spawn(endpoint.connect, LONG)
    gevent.sleep(0)
    assert open_files() == before[0] + 1
    attempt.kill()

    assert isinstance(attempt.value, GreenletExit)
    assert what_is_left() == before


# -- the hub -----------------------------------------------------------------------------------------------------------


def test_who_waits_sleeps_until_there_is_something_to_do(listener):
    listener.add_full("127.0.0.2")
    listener.add_full("127.0.0.3")
    switches = []
    previous = greenlet.settrace(lambda _event, switch: switches.append(switch))

    try:
        with pytest.raises(TimeoutError):
            listener.endpoint("127.0.0.2", "127.0.0.3").connect(0.3)
    finally:
        greenlet.settrace(previous)

    assert len(switches) <= 8  # there and back, for two waits; a timer may be early by a fraction of a millisecond


def test_no_greenlet_is_made(listener, set_delay):
    set_delay(0.001)
    listener.add_full("127.0.0.2")
    listener.add("127.0.0.4")
    seen = set()
    previous = greenlet.settrace(lambda _event, switch: seen.update(switch))

    try:
        listener.endpoint("127.0.0.2", "127.0.0.3", "127.0.0.4").connect(LONG).close()
    finally:
        greenlet.settrace(previous)

    assert seen == {gevent.getcurrent(), gevent.get_hub()}


PROGRAM = """
import gevent
from gevent import socket
from geventconnpool import Endpoint
from tests.test_connect import Listener

listener = Listener()
listener.add_full("127.0.0.2")
listener.add("127.0.0.4")
connection = listener.endpoint("::1%lo", "127.0.0.2", "127.0.0.3", "127.0.0.4").connect(30)
print(type(connection) is socket.socket, connection.getpeername()[0], gevent.get_hub()._threadpool)
"""


@pytest.mark.parametrize(
    "prelude", ["", "from gevent.monkey import patch_all; patch_all()"], ids=["unpatched", "patched"]
)
def test_an_ip_address_leaves_the_thread_pool_of_the_hub_alone(prelude):
    run = subprocess.run(
        [sys.executable, "-c", prelude + PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=LONG / 2
    )

    assert (run.stdout.split(), run.stderr) == (["True", "127.0.0.4", "None"], "")
