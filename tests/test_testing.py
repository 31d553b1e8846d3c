"""The testing kit does what it says, and pools survive it.

The embedded DNS server is asked by dnspython's own blocking client in a thread; backends and proxies by plain sockets.
"""

from __future__ import annotations

import socket as plain
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from math import inf, nan
from random import Random

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import gevent
import pytest
import trustme
from gevent import socket, ssl

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, RetryBudget, events, retry
from geventconnpool.cluster import LeastLoaded, OutlierDetection, PeakEWMA, RoundRobin
from geventconnpool.testing import Backend, DNSServer, Proxy, SimpleCandidate, SimulatedServer, VirtualClock, play
from geventconnpool.testing._backend import GARBAGE
from tests.servers import Redis, require, wait_until


@pytest.fixture
def server():
    with DNSServer() as server:
        yield server


def ask(server, name, rdtype, over="udp", payload=1232, timeout=30.0):
    query = dns.message.make_query(name, rdtype, use_edns=payload > 512, payload=payload)
    function = getattr(dns.query, over)
    return gevent.get_hub().threadpool.apply(
        function, (query, server.address[0]), {"port": server.address[1], "timeout": timeout}
    )


def texts(rrsets):
    return sorted(f"{rrset.name} {rdata.to_text()}" for rrset in rrsets for rdata in rrset)


@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_an_srv_answer_brings_the_addresses_of_its_targets_along(server, over):
    server.add_srv("_redis._tcp.Example.test", "redis1.example.test", 6379, priority=1, weight=2, ttl=30)
    server.add_address("redis1.example.test", "127.0.0.1")
    server.add_address("redis1.example.test", "::1")

    response = ask(server, "_redis._tcp.example.test", "SRV", over)

    assert texts(response.answer) == ["_redis._tcp.example.test. 1 2 6379 redis1.example.test."]
    assert response.answer[0].ttl == 30
    assert texts(response.additional) == ["redis1.example.test. 127.0.0.1", "redis1.example.test. ::1"]
    assert response.flags & dns.flags.AA


def test_a_name_that_is_not_there_is_nxdomain_with_the_negative_ttl(server):
    server.negative_ttl = 7

    response = ask(server, "nobody.example.test", "A")

    assert response.rcode() == dns.rcode.NXDOMAIN
    assert (response.authority[0].ttl, response.authority[0][0].minimum) == (7, 7)


@pytest.mark.parametrize("name", ["redis1.example.test", "example.test"])
def test_a_name_without_the_wanted_type_or_above_others_is_no_data(server, name):
    server.add_address("redis1.example.test", "127.0.0.1")

    response = ask(server, name, "SRV")

    assert response.rcode() == dns.rcode.NOERROR
    assert response.answer == []
    assert len(response.authority) == 1


def test_aliases_are_followed(server):
    server.add("www.example.test", "CNAME", "web.example.test")
    server.add("web.example.test", "CNAME", "web1.example.test")
    server.add_address("web1.example.test", "127.0.0.1")

    assert texts(ask(server, "www.example.test", "A").answer) == [
        "web.example.test. web1.example.test.",
        "web1.example.test. 127.0.0.1",
        "www.example.test. web.example.test.",
    ]


def test_an_alias_of_itself_ends(server):
    server.add("www.example.test", "CNAME", "www.example.test")

    assert len(ask(server, "www.example.test", "A").answer) == 1


def test_records_can_be_removed_and_the_name_with_the_last(server):
    server.add_srv("_redis._tcp.example.test", "redis1.example.test", 6379, weight=5)
    server.add_srv("_redis._tcp.example.test", "redis1.example.test", 6380)
    server.remove_srv("_redis._tcp.example.test", "redis1.example.test", 6379)
    server.remove_srv("_redis._tcp.example.test", "redis9.example.test", 6379)
    assert len(ask(server, "_redis._tcp.example.test", "SRV").answer[0]) == 1

    server.remove_srv("_redis._tcp.example.test", "redis1.example.test", 6380)
    assert ask(server, "_redis._tcp.example.test", "SRV").rcode() == dns.rcode.NXDOMAIN

    server.add_address("redis1.example.test", "127.0.0.1")
    server.add_address("redis1.example.test", "127.0.0.2")
    server.remove_address("redis1.example.test", "127.0.0.1")
    assert texts(ask(server, "redis1.example.test", "A").answer) == ["redis1.example.test. 127.0.0.2"]

    server.remove("redis1.example.test", "A")
    server.remove("redis1.example.test", "A")
    assert ask(server, "redis1.example.test", "A").rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize(("payload", "longest"), [(512, 512), (1232, 1232)])
def test_an_answer_that_does_not_fit_is_truncated_and_comes_over_tcp(server, payload, longest):
    for number in range(100):
        server.add_address("many.example.test", f"127.0.1.{number}")

    truncated = ask(server, "many.example.test", "A", payload=payload)
    whole = ask(server, "many.example.test", "A", "tcp")

    assert truncated.flags & dns.flags.TC
    assert len(truncated.to_wire()) <= longest
    assert len(whole.answer[0]) == 100
    assert not whole.flags & dns.flags.TC


@pytest.mark.parametrize(
    ("fault", "rcode"),
    [("servfail", dns.rcode.SERVFAIL), ("refused", dns.rcode.REFUSED), ("formerr", dns.rcode.FORMERR)],
)
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_an_error_code(server, fault, rcode, over):
    server.fault = fault

    assert ask(server, "a.test", "A", over).rcode() == rcode


@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_silence(server, over):
    server.fault = "drop"

    with pytest.raises(dns.exception.Timeout):
        ask(server, "a.test", "A", over, timeout=1.0)  # with time to ask at all
    wait_until(lambda: server.queries == 1)


@pytest.mark.parametrize(
    ("fault", "error"), [("garbage", dns.exception.DNSException), ("wrong_id", dns.query.BadResponse)]
)
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_an_answer_that_is_none(server, fault, error, over):
    server.fault = fault

    with pytest.raises(error):
        ask(server, "a.test", "A", over)


@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_an_answer_too_large_for_any_message(server, over):
    server.add_address("a.test", "127.0.0.1")
    server.fault = "truncate"

    response = ask(server, "a.test", "A", over)

    assert response.flags & dns.flags.TC
    assert response.answer == []


@pytest.mark.parametrize(("over", "records"), [("udp", 3), ("tcp", 5)])
def test_a_fault_may_be_a_datagram_that_leaves_records_out_without_a_word(server, over, records):
    for number in range(5):
        server.add_srv("_a._tcp.b.test", f"a{number}.test", 1, ttl=7)
        server.add_address(f"a{number}.test", "127.0.0.1")
    server.fault = "trim"

    response = ask(server, "_a._tcp.b.test", "SRV", over)

    assert len(response.answer[0]) == records
    assert response.answer[0].ttl == 7
    assert bool(response.additional) == (over == "tcp")
    assert not response.flags & dns.flags.TC


@pytest.mark.parametrize(("fault", "others"), [("referral", [". ns.invalid."]), ("lame", [])])
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_a_server_that_does_not_know(server, fault, others, over):
    server.add_address("a.test", "127.0.0.1")
    server.fault = fault

    response = ask(server, "a.test", "A", over)

    assert (response.rcode(), response.answer) == (dns.rcode.NOERROR, [])
    assert texts(response.authority) == others
    assert not response.flags & (dns.flags.AA | dns.flags.RA)


def test_a_fault_may_depend_on_the_query(server):
    server.add_address("a.test", "127.0.0.1")
    server.fault = lambda query: "refused" if query.question[0].name.to_text() == "a.test." else None

    assert ask(server, "a.test", "A").rcode() == dns.rcode.REFUSED
    assert ask(server, "b.test", "A").rcode() == dns.rcode.NXDOMAIN


def test_garbage_is_not_answered_and_does_no_harm(server, capsys):
    client = gevent.socket.socket(type=gevent.socket.SOCK_DGRAM)
    with client:
        client.sendto(b"garbage", server.address)
        client.sendto(bytes(12), server.address)  # a query that asks for nothing
        answer = dns.message.make_response(dns.message.make_query("a.test", "A"))
        client.sendto(answer.to_wire(), server.address)

        assert ask(server, "a.test", "A").rcode() == dns.rcode.NXDOMAIN
    assert server.queries == 1
    assert capsys.readouterr().err == ""


def test_an_answer_may_be_delayed(server):
    server.delay = 5

    with pytest.raises(dns.exception.Timeout):
        ask(server, "a.test", "A", timeout=0.05)


def test_a_server_that_is_started_again_keeps_its_port_and_records(server):
    server.add_address("a.test", "127.0.0.1")
    before = server.address
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(server, "a.test", "A", "tcp")

    server.start()
    server.start()

    assert server.address == before
    assert len(ask(server, "a.test", "A").answer) == 1


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(server):
    other = DNSServer(port=server.address[1])

    with pytest.raises(OSError, match="in use"):
        other.start()
    server.stop()

    with other:
        assert ask(other, "a.test", "A").rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("fault", ["dorp", "", 3, b"drop"])
def test_an_unknown_fault_of_dns_is_refused_at_once(server, fault):
    with pytest.raises(ValueError, match=f"^fault must be None, an error code of DNS, or one of drop, .*{fault!r}$"):
        server.fault = fault

    assert server.fault is None


def test_a_function_that_returns_no_fault_of_dns_is_told_so(server, capsys):
    server.fault = lambda query: "dorp"

    with pytest.raises(dns.exception.Timeout):
        ask(server, "a.test", "A", timeout=1.0)
    assert "ValueError: fault must be None, an error code of DNS, or one of drop" in capsys.readouterr().err


def test_a_delay_of_dns_is_a_number_of_seconds(server):
    with pytest.raises(ValueError, match="^delay must be 0 or more seconds, not -1$"):
        server.delay = -1

    assert server.delay == 0


# -- backends and proxies ----------------------------------------------------------------------------------------------


@contextmanager
def backend_alone():
    with Backend() as backend:
        yield backend


@contextmanager
def proxy_before_a_backend():
    with Backend() as backend, Proxy(backend.address) as proxy:
        yield proxy


@pytest.fixture(params=[backend_alone, proxy_before_a_backend], ids=["backend", "proxy"])
def place(request):
    with request.param() as place:
        yield place


class Client:
    """A plain socket."""

    def __init__(self, place, timeout=30.0):
        self.socket = socket.create_connection(place.address, timeout=timeout)

    def ask(self, line=b"hello\n"):
        self.socket.sendall(line)
        return self.hear()

    def hear(self):
        """Return what comes up to the end of a line, or of the connection."""
        heard = b""
        while not heard.endswith(b"\n") and (chunk := self.socket.recv(100)):
            heard += chunk
        return heard

    def __enter__(self):
        return self

    def __exit__(self, *_exc_info):
        self.socket.close()


@pytest.fixture(params=["new", "existing"])
def client_at(request, place):
    """Return who makes ``place`` faulty and returns a client: one that connects after that, or has done before."""
    clients = []

    def client_at(fault):
        if request.param == "new":
            place.fault = fault
        clients.append(Client(place))
        if request.param == "existing":
            assert clients[-1].ask() == b"hello\n"
            place.fault = fault
        return clients[-1]

    yield client_at
    for client in clients:
        client.socket.close()


def test_lines_come_back_and_all_is_counted(place):
    with Client(place) as one, Client(place) as other:
        assert one.ask(b"a\n") == b"a\n"
        assert one.ask(b"b\n") == b"b\n"
        assert other.ask(b"c\n") == b"c\n"
        assert (place.connections, place.accepted, place.requests) == (2, 2, 3)
    wait_until(lambda: place.connections == 0)

    assert (place.accepted, place.requests) == (2, 3)


def test_who_hangs_takes_requests_and_never_answers_them(place, client_at):
    client = client_at("hang")
    client.socket.settimeout(0.1)
    asked = place.requests + 1

    with pytest.raises(TimeoutError):
        client.ask()
    wait_until(lambda: place.requests == asked)
    place.fault = None
    with pytest.raises(TimeoutError):
        client.ask()
    with Client(place) as another:
        assert another.ask() == b"hello\n"
    assert place.requests == asked + 1
    client.socket.close()
    wait_until(lambda: place.connections == 0)


def test_what_is_asked_of_one_who_hangs_reaches_nobody():
    heard = []

    def listen(connection):
        while chunk := connection.recv(100):
            heard.append(chunk)

    with Backend(listen) as backend, Client(backend) as client:
        backend.fault = "hang"
        client.socket.sendall(b"one\n")
        wait_until(lambda: backend.requests == 1)
        backend.fault = None
        client.socket.sendall(b"two\n")
        client.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: backend.connections == 0)

        assert heard == []


def test_who_hangs_does_not_hang_up():
    def answer_once(connection):
        connection.sendall(connection.recv(100))

    with Backend(answer_once) as backend, Client(backend, timeout=0.3) as client:
        backend.delay = 0.1
        client.socket.sendall(b"hello\n")
        wait_until(lambda: backend.requests == 1)
        backend.fault = "hang"

        with pytest.raises(TimeoutError):
            client.hear()


def test_a_reply_that_is_due_when_it_begins_to_hang_does_not_come(place):
    place.delay = 0.1
    with Client(place, timeout=0.3) as client:
        client.socket.sendall(b"hello\n")
        gevent.sleep(0.05)
        place.fault = "hang"

        with pytest.raises(TimeoutError):
            client.hear()


def test_who_refuses_serves_the_connections_there_are(place):
    address = place.address
    with Client(place) as client:
        client.ask()
        place.fault = "refuse"

        assert client.ask() == b"hello\n"
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                Client(place)
        place.fault = None
        with Client(place) as another:
            assert another.ask() == b"hello\n"
        assert place.address == address


def test_a_reset_is_seen_at_once(client_at):
    client = client_at("reset")

    with pytest.raises(ConnectionResetError):
        client.hear()


def test_a_reset_hits_a_call_under_way(place):
    place.delay = 5
    with Client(place) as client:
        client.socket.sendall(b"hello\n")
        wait_until(lambda: place.requests == 1)
        place.fault = "reset"

        with pytest.raises(ConnectionResetError):
            client.hear()


def test_a_reply_that_is_cut_ends_in_its_middle_with_a_reset(client_at):
    client = client_at("cut")
    client.socket.sendall(b"hello!\n")

    assert client.socket.recv(100) == b"hel"
    with pytest.raises(ConnectionResetError):
        client.hear()


def test_who_closes_does_so_at_once_and_in_an_orderly_way(client_at):
    assert client_at("close").hear() == b""


def test_garbage_comes_once_for_each_reply(place, client_at):
    client = client_at("garbage")

    assert client.ask() == GARBAGE
    assert client.ask() == GARBAGE
    place.fault = None
    assert client.ask() == b"hello\n"


def test_garbage_takes_the_place_of_a_reply_in_pieces():
    replies = []

    def in_pieces(connection):
        while connection.recv(100):
            connection.sendall(b"one ")
            gevent.sleep(0.02)
            connection.sendall(b"two\n")
            replies.append("one two")

    with Backend(in_pieces) as backend, Client(backend) as client:
        backend.fault = "garbage"
        assert client.ask() == GARBAGE
        wait_until(lambda: replies)
        gevent.idle()  # the rest of it has passed
        backend.fault = None

        assert client.ask() == b"one two\n"


def test_replies_are_delayed(place):
    place.delay = 0.2
    with Client(place, timeout=0.05) as client:
        with pytest.raises(TimeoutError):
            client.ask()

        client.socket.settimeout(30)
        assert client.hear() == b"hello\n"


def test_idle_connections_can_be_closed_without_those_that_wait_for_a_reply(place):
    with Client(place) as idle, Client(place) as busy:
        idle.ask()
        place.delay = 0.1
        busy.socket.sendall(b"hello\n")
        wait_until(lambda: place.requests == 2)
        place.close_idle()

        assert idle.hear() == b""
        assert busy.hear() == b"hello\n"


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("hang", TimeoutError),
        ("reset", ConnectionResetError),
        ("close", b""),
        ("garbage", GARBAGE),
        (None, b"call\n"),
    ],
)
def test_a_fault_may_depend_on_the_request(place, fault, outcome):
    place.fault = lambda request: None if request == b"PING\n" else fault
    with Client(place) as client:
        assert client.ask(b"PING\n") == b"PING\n"
        client.socket.settimeout(0.2 if fault == "hang" else 30)

        if isinstance(outcome, bytes):
            assert client.ask(b"call\n") == outcome
        else:
            with pytest.raises(outcome):
                client.ask(b"call\n")


def test_a_fault_that_depends_on_the_request_is_over_when_another_is_set(place):
    place.delay = 0.1
    place.fault = lambda request: "garbage"
    with Client(place) as client:
        client.socket.sendall(b"hello\n")
        wait_until(lambda: place.requests == 1)
        place.fault = None

        assert client.hear() == b"hello\n"


@pytest.mark.parametrize("word", ["reset", "close"])
def test_a_fault_that_depends_on_the_request_is_that_of_the_reply_too(place, word):
    place.delay = 0.05
    with Client(place) as client:
        client.ask()
        client.socket.sendall(b"hello\n")
        wait_until(lambda: place.requests == 2)
        place._fault = word  # as if it had been set between the reply and its delivery

        with suppress(ConnectionResetError):
            assert client.hear() == b""


def test_a_function_that_returns_no_fault_ends_the_connection(place, capsys):
    place.fault = lambda request: "refuse"
    with Client(place) as client:
        assert client.ask() == b""

    assert "ValueError: fault must be None or one of hang, reset, cut, close, garbage, not 'refuse'" in (
        capsys.readouterr().err
    )


def test_a_place_that_is_stopped_closes_everything_and_keeps_its_port(place):
    before = place.address
    with Client(place) as client:
        client.ask()
        place.stop()
        place.stop()

        assert client.hear() == b""
        with pytest.raises(ConnectionRefusedError):
            Client(place)

    place.start()
    place.start()
    with Client(place) as client:
        assert client.ask() == b"hello\n"
    assert place.address == before


def test_a_port_that_is_taken_is_an_error(place):
    other = Backend(port=place.port)

    with pytest.raises(OSError, match="in use"):
        other.start()
    place.close()
    with other, Client(other) as client:
        assert client.ask() == b"hello\n"


def test_a_place_that_is_stopped_has_its_port_until_it_is_closed(place):
    place.stop()
    with socket.socket() as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(place.address)

        place.close()
        place.close()
        other.bind(place.address)


@pytest.mark.parametrize("is_stopped_first", [True, False])
def test_who_connects_just_when_it_is_stopped_is_not_served(is_stopped_first):
    with Backend() as backend, plain.socket() as client:
        trigger, pulled = socket.socketpair()

        def stop():
            pulled.recv(1)
            backend.stop()

        stopper = gevent.spawn(stop)
        gevent.sleep(0.01)  # a turn of the loop, from which on both are watched
        deeds = [partial(trigger.sendall, b"!"), partial(client.connect, backend.address)]  # none of them switches
        for deed in deeds if is_stopped_first else reversed(deeds):
            deed()
        stopper.join(5)

        client.settimeout(5)
        with suppress(ConnectionError):
            client.sendall(b"hello\n")
            gevent.sleep(0.05)
            assert client.recv(100) == b""
        assert backend.connections == 0


def test_who_refuses_from_the_start_has_the_port_that_it_will_serve_at():
    backend = Backend()
    backend.fault = "refuse"
    with backend:
        place = backend.address
        with pytest.raises(ConnectionRefusedError):
            Client(backend)
        backend.fault = None

        assert backend.address == place
        with Client(backend) as client:
            assert client.ask() == b"hello\n"


def test_what_refuses_before_it_is_started_refuses_after(place):
    place.stop()
    place.fault = "refuse"
    place.start()

    with pytest.raises(ConnectionRefusedError):
        Client(place)


def test_a_handler_may_greet_its_clients_and_hang_up():
    def greet(connection):
        connection.sendall(b"welcome\n")
        assert connection.recv(100) == b"quit\n"

    with Backend(greet) as backend, Client(backend) as client:
        assert client.hear() == b"welcome\n"
        assert client.ask(b"quit\n") == b""
        wait_until(lambda: backend.connections == 0)


def test_a_handler_that_is_at_work_ends_with_the_backend():
    ended = []

    def work(connection):
        try:
            gevent.sleep(60)
        finally:
            ended.append(connection)

    with Backend(work) as backend, Client(backend) as client:
        client.socket.sendall(b"go\n")
        wait_until(lambda: backend.requests == 1)

    wait_until(lambda: len(ended) == 1)


def test_a_client_that_has_said_all_hears_the_answer():
    def answer_at_the_end(connection):
        heard = b""
        while chunk := connection.recv(100):
            heard += chunk
        connection.sendall(heard.upper())

    with Backend(answer_at_the_end) as backend, Proxy(Endpoint(*backend.address)) as proxy, Client(proxy) as client:
        client.socket.sendall(b"hello")
        client.socket.shutdown(socket.SHUT_WR)

        assert client.hear() == b"HELLO"


def test_an_address_of_the_other_family_will_do():
    try:
        backend = Backend(host="::1")
        backend.start()
    except OSError:
        pytest.skip("no IPv6 here")
    with backend, Client(backend) as client:
        assert client.ask() == b"hello\n"


def test_a_proxy_resets_who_connects_while_its_target_is_not_there():
    with Backend() as backend, Proxy(backend.address) as proxy:
        backend.stop()
        with Client(proxy) as client:
            with pytest.raises(ConnectionResetError):
                client.hear()
        backend.start()

        with Client(proxy) as client:
            assert client.ask() == b"hello\n"


def test_a_proxy_that_is_stopped_no_longer_waits_for_a_target_that_is_silent():
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for other in (first, second):  # there is no room for more in the queue: who comes now hears nothing
            other.setblocking(False)
            other.connect_ex(silent.getsockname())
        with Proxy(silent.getsockname()) as proxy, Client(proxy) as client:
            wait_until(lambda: proxy.connections == 1)
            proxy.stop()

            assert client.hear() == b""
            wait_until(lambda: proxy.connections == 0)


def test_a_proxy_may_turn_to_another_target():
    with Backend() as one, Backend() as other, Proxy(one.address) as proxy:
        with Client(proxy) as client:
            client.ask()
        proxy.target = other.address
        with Client(proxy) as client:
            client.ask()

        assert (proxy.target, one.requests, other.requests) == (other.address, 1, 1)


def test_tls_goes_through_both():
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("secret.example.test").configure_cert(theirs)
    authority.configure_trust(ours)

    def whisper(connection):
        with theirs.wrap_socket(connection, server_side=True) as secure:
            secure.sendall(secure.recv(100))

    with Backend(whisper) as backend, Proxy(backend.address) as proxy, Client(proxy) as client:
        client.socket = ours.wrap_socket(client.socket, server_hostname="secret.example.test")

        assert client.ask() == b"hello\n"


@pytest.mark.parametrize("fault", ["hang", "reset", "cut", "close", "garbage"])
def test_a_proxy_stands_before_a_real_server(fault):
    require("redis-server")

    def ping(pool):
        with pool.get(timeout=30) as client:
            if client.ask(b"PING\r\n") != b"+PONG\r\n":
                raise OSError("that is no answer")

    with Redis() as redis, Proxy(redis.address) as proxy, OnePlace(proxy, 2) as pool:
        retry(ping, interval=0.01, timeout=20)(pool)  # its clients have little patience
        proxy.fault = fault
        with pytest.raises(OSError):  # noqa: PT011 - of the kind that the fault is seen as
            ping(pool)
        proxy.fault = None

        retry(ping, interval=0.01, timeout=20)(pool)
        pool.wait(2, timeout=20)


@pytest.mark.parametrize("fault", ["hnag", "", 3])
def test_an_unknown_fault_is_refused_at_once(place, fault):
    words = "hang, refuse, reset, cut, close, garbage"
    with pytest.raises(ValueError, match=f"^fault must be None or one of {words}, not {fault!r}$"):
        place.fault = fault

    assert place.fault is None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Backend(3), TypeError, "handler must be callable, not 3"),  # type: ignore[arg-type]
        (lambda: Backend(port=65536), ValueError, "port must be between 0 and 65535, not 65536"),
        (lambda: setattr(Backend(), "delay", -1), ValueError, "delay must be 0 or more seconds, not -1"),
        (lambda: Proxy("127.0.0.1:1"), TypeError, "target must be an Endpoint or (host, port), not '127.0.0.1:1'"),  # type: ignore[arg-type]
        (lambda: Proxy(("127.0.0.1", 0)), ValueError, "port must be between 1 and 65535, not 0"),
        (lambda: DNSServer(port=65536), ValueError, "port must be between 0 and 65535, not 65536"),
        (lambda: setattr(DNSServer(), "delay", nan), ValueError, "delay must be 0 or more seconds, not nan"),
        (
            lambda: DNSServer().add_srv("a.test", "b.test", 65536),
            ValueError,
            "port must be between 0 and 65535, not 65536",
        ),
        (
            lambda: DNSServer().add_srv("a..test", "b.test", 1),
            ValueError,
            "name must be a name of DNS, not 'a..test': A DNS label is empty.",
        ),
        (
            lambda: DNSServer().add_address("a.test", "127.0.0.256"),
            ValueError,
            "data must be that of a record of type A, not '127.0.0.256': Text input is malformed.",
        ),
        (lambda: DNSServer().add_address("a.test", None), TypeError, "ip must be a str, not None"),  # type: ignore[arg-type]
        (
            lambda: DNSServer().add_address("a.test", "127.0.0.1", ttl=-1),
            ValueError,
            f"ttl must be between 0 and {2**31 - 1}, not -1",
        ),
        (lambda: DNSServer().remove("a.test", "ADRESS"), ValueError, "rdtype must be a type of record, not 'ADRESS'"),
        (lambda: VirtualClock(nan), ValueError, "now must be 0 or more seconds, not nan"),
        (lambda: VirtualClock().advance(-1), ValueError, "seconds must be 0 or more seconds, not -1"),
        (lambda: VirtualClock().advance(inf), ValueError, "seconds must be 0 or more seconds, not inf"),
    ],
)
def test_bad_input_is_refused_at_once(make, error, message):
    with pytest.raises(error) as caught:
        make()

    assert str(caught.value) == message


# -- pools survive it --------------------------------------------------------------------------------------------------


def exchange(pool):
    with pool.get(timeout=30) as client:
        if client.ask(b"a call\n") != b"a call\n":
            raise OSError("that is no answer")


class OnePlace(ConnectionPool[Client]):
    def __init__(self, place, size, **options):
        self.place = place
        super().__init__(size, **options)

    def _new_connection(self):
        return Client(self.place, timeout=0.2)

    def _close_connection(self, client):
        client.socket.close()

    def _fileno(self, client):
        return client.socket.fileno()


class Places(ClusterPool[Client]):
    """Has no patience with the first place."""

    def __init__(self, places, size, **options):
        self.first = places[0]
        super().__init__(places, size, **options)

    def _new_connection(self, endpoint):
        return Client(endpoint, timeout=0.2 if endpoint.address == self.first else 30)

    _close_connection = OnePlace._close_connection
    _fileno = OnePlace._fileno


@pytest.mark.parametrize("fault", ["hang", "refuse", "reset", "cut", "close", "garbage"])
def test_a_pool_survives_every_fault(place, fault):
    with OnePlace(place, 2) as pool:
        pool.wait(timeout=30)
        place.fault = fault
        place.close_idle()
        seen = []
        with suppress(OSError, gevent.Timeout), gevent.Timeout(0.3):
            exchange(pool)
            seen.append("an answer")
        place.fault = None

        retry(exchange, interval=0.01, timeout=20)(pool)
        pool.wait(2, timeout=20)
        assert seen == []
        assert (pool.stats().open, pool.stats().in_use, pool.stats().waiting) == (2, 0, 0)


@pytest.mark.parametrize("fault", ["hang", "refuse", "reset", "cut", "close", "garbage"])
def test_callers_of_a_cluster_see_nothing_of_any_fault_of_one_endpoint(place, fault):
    call = retry(exchange, max_failures=1)
    with Backend() as healthy, Places([place.address, healthy.address], 2, balancer=LeastLoaded) as pool:
        pool.wait(timeout=30)
        place.fault = fault
        place.close_idle()
        for _ in range(20):
            call(pool)
        place.fault = None
        asked = place.requests
        with gevent.Timeout(30):
            while place.requests == asked:
                call(pool)

        assert pool.stats().in_use == 0


# -- virtual time ------------------------------------------------------------------------------------------------------


def test_a_clock_goes_on_when_it_is_told_to():
    clock = VirtualClock(100)

    assert (clock.now, clock(), clock.advance(0.5), clock.now, clock()) == (100, 100, 100.5, 100.5, 100.5)
    assert repr(clock) == "VirtualClock(now=100.5)"


def test_a_budget_can_be_tried_without_waiting():
    clock, budget = VirtualClock(), RetryBudget(ratio=0, min_per_second=2)
    budget.deposit(clock())

    spent = [budget.withdraw(clock()) for _ in range(3)]
    clock.advance(1.5)
    assert spent == [True, True, False]
    assert budget.balance(clock()) == 1


def test_balancers_choose_among_candidates_of_the_tests_making():
    near = SimpleCandidate(Endpoint("a", 1), latency=0.001)
    far = SimpleCandidate(Endpoint("b", 1), latency=0.1, weight=3.0)

    assert PeakEWMA().choose([far, near], 0.0) is near
    assert [RoundRobin().choose([far, near], 0.0) for _ in range(1)] == [far]
    near.in_flight = 1
    assert LeastLoaded().choose([near, far], 0.0) is far


A, B, C = (Endpoint(name, 1) for name in "abc")
SOUND = [SimulatedServer(A), SimulatedServer(B)]


def told(story, kind):
    return [(round(at, 3), event.endpoint) for at, event in story.events if isinstance(event, kind)]


def test_a_play_shows_an_endpoint_that_fails_for_a_while():
    story = play([*SOUND, SimulatedServer(C, fails=[(3, 8)])], seconds=20, rate=200, retries=1)

    (ejected, which), *later = told(story, events.EndpointEjected)
    [(readmitted, _)] = told(story, events.EndpointReadmitted)
    assert (which, later) == (C, [])
    assert 3 < ejected < 8 <= readmitted < 13
    assert len(story.calls) == 4000
    assert all(call.is_good for call in story.calls)
    assert {call.failed_on for call in story.calls} == {(), (C,)}
    assert not [call for call in story.calls if call.endpoint == C and ejected < call.at < readmitted]
    assert [call for call in story.calls if call.endpoint == C and call.at > readmitted]


def test_a_play_is_the_same_every_time():
    def run(seed):
        servers = [*SOUND, SimulatedServer(C, latency=lambda now: 0.001 if now < 5 else 0.1, fails=[(1, 2), (3, 4)])]
        return play(servers, seconds=10, balancer=lambda: LeastLoaded(Random(1)), seed=seed)

    assert run(1).calls == run(1).calls
    assert told(run(1), events.EndpointReadmitted) == told(run(1), events.EndpointReadmitted)
    assert told(run(1), events.EndpointReadmitted) != told(run(2), events.EndpointReadmitted)


def test_a_play_follows_weights_and_priorities():
    servers = [SimulatedServer(Endpoint(name, 1, weight=weight)) for name, weight in (("a", 1), ("b", 3))]
    servers.append(SimulatedServer(Endpoint("c", 1, priority=1)))

    story = play(servers, seconds=10, balancer=RoundRobin)

    assert Counter(call.endpoint.name for call in story.calls) == {"a": 250, "b": 750}
    assert {round(call.seconds, 6) for call in story.calls} == {0.005}


def test_a_play_begins_when_all_connections_are_open():
    story = play(SOUND, seconds=1, rate=10)

    assert story.events == ()
    assert [round(call.at, 6) for call in story.calls] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_a_play_goes_by_the_outlier_detection_it_is_given():
    servers = [*SOUND, SimulatedServer(C, fails=[(0, inf)])]

    def ejected(outlier):
        return told(play(servers, seconds=5, balancer=RoundRobin, outlier=outlier), events.EndpointEjected)

    assert ejected(None) == []
    assert {which for _, which in ejected(OutlierDetection(consecutive_failures=3))} == {C}


def test_keepalives_of_a_play_find_what_no_call_has_found():
    servers = [*SOUND, SimulatedServer(C, fails=[(3, 8)])]

    def ejected(keepalive):
        return told(play(servers, seconds=10, rate=0, size=5, keepalive=keepalive), events.EndpointEjected)

    assert ejected(None) == []
    [(at, which)] = ejected(1)
    assert which == C
    assert 3 < at < 8


def test_a_server_of_a_play_that_hangs_costs_its_callers_the_timeout():
    servers = [*SOUND, SimulatedServer(C, latency=lambda now: inf if now >= 3 else 0.005)]

    story = play(servers, seconds=10, balancer=RoundRobin, timeout=0.5, retries=1, size=5)

    assert all(call.is_good for call in story.calls)
    assert {round(call.seconds, 6) for call in story.calls} == {0.005, 0.505}
    assert {call.failed_on for call in story.calls if call.seconds > 0.1} == {(C,)}


def test_callers_of_a_play_that_nobody_ever_serves_wait_for_ever():
    story = play([SimulatedServer(A, fails=[(0, inf)])], seconds=1, rate=10, size=1, outlier=None)

    first, *others = story.calls
    assert (first.is_good, first.endpoint, first.seconds < 1) == (False, A, True)
    assert {(call.is_good, call.endpoint, call.seconds) for call in others} == {(False, None, inf)}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: play([], seconds=1), ValueError, "servers is empty"),
        (lambda: play(SOUND * 2, seconds=1), ValueError, "servers holds a:1 twice"),
        (lambda: play(SOUND, seconds=0), ValueError, "seconds must be more than 0 seconds, not 0"),
        (lambda: play(SOUND, seconds=1, rate=-1), ValueError, "rate must be between 0 and 1e+06, not -1"),
        (lambda: play(SOUND, seconds=1, retries=-1), ValueError, "retries must be at least 0, not -1"),
        (lambda: play([A], seconds=1), TypeError, f"servers must hold SimulatedServer, not {A!r}"),  # type: ignore[list-item]
        (
            lambda: play(SOUND, seconds=1, balancer=int),  # type: ignore[arg-type]
            TypeError,
            "balancer must make an object with a method choose, not 0",
        ),
        (
            lambda: play(SOUND, seconds=1, outlier=5),  # type: ignore[arg-type]
            TypeError,
            "outlier must be an OutlierDetection or None, not 5",
        ),
        (
            lambda: play([SimulatedServer(A, lambda now: nan)], seconds=1),
            ValueError,
            "what latency returns must be between 0 and inf, not nan",
        ),
        (lambda: SimulatedServer("a:1"), TypeError, "endpoint must be an Endpoint, not 'a:1'"),  # type: ignore[arg-type]
        (lambda: SimulatedServer(A, fails=[3, 8]), TypeError, "fails must hold (begin, end), not 3"),  # type: ignore[list-item]
        (lambda: SimulatedServer(A, -1), ValueError, "latency must be 0 or more seconds, not -1"),
        (
            lambda: SimulatedServer(A, fails=[(3, 2)]),
            ValueError,
            "the end of a span in fails must be between 3 and inf, not 2",
        ),
    ],
)
def test_a_play_that_makes_no_sense_is_refused_at_once(make, error, message):
    with pytest.raises(error) as caught:
        make()

    assert str(caught.value) == message
