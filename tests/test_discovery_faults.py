"""Discovery over real sockets against name servers that fail, lie, dawdle and change: what comes out, and from whom."""

from __future__ import annotations

import gc
import os
import random
import struct
import subprocess
import sys
from collections import Counter
from itertools import count, pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import DatagramServer, StreamServer

from geventconnpool import ClusterPool, Endpoint, events
from geventconnpool.cluster import DNSResolver, StaticResolver, _dns, _hosts
from geventconnpool.cluster._dns import Client, Nameserver, Question
from geventconnpool.cluster._endpoints import NoRecords, Resolution, ResolutionError
from geventconnpool.cluster._hosts import HostsFile
from geventconnpool.testing import DNSServer
from tests.servers import wait_until
from tests.switches import Interrupter

SERVICE = "_redis._tcp.example.test"
RIGHT = "127.0.0.1:6379"  # the endpoint in right answers of raw servers

# -- name servers ------------------------------------------------------------------------------------------------------


class Noting(DNSServer):
    """Keeps what it was asked, as (name, type, transport), and the greatest number of queries it had at once."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []
        self.most_at_once = self._at_once = 0

    def _answer(self, wire, over_tcp=False):
        question = dns.message.from_wire(wire).question[0]
        name = question.name.to_text().removesuffix(".")
        self.asked.append((name, dns.rdatatype.to_text(question.rdtype), "tcp" if over_tcp else "udp"))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return super()._answer(wire, over_tcp)
        finally:
            self._at_once -= 1

    def count(self, rdtype=None, transport=None):
        return sum(rdtype in (None, asked[1]) and transport in (None, asked[2]) for asked in self.asked)


class Raw:
    """A name server of raw bytes: ``datagrams(wire)`` gives the answers to one, ``talk(connection, wire)`` is for TCP.

    An answer is sent, or called with the address of the client.
    """

    def __init__(self, datagrams=None, talk=None):
        self.asked = Counter()
        self._datagrams = datagrams or (lambda wire: [truncated(wire)])
        self._talk = talk
        self._tcp = StreamServer(("127.0.0.1", 0), self._serve, spawn=Pool())
        self._tcp.start()
        self.address = ("127.0.0.1", self._tcp.server_port)
        self._udp = DatagramServer(self.address, self._handle, spawn=Pool())
        self._udp.start()

    def __enter__(self):
        return self

    def __exit__(self, *_exc_info):
        self._tcp.stop(timeout=0)
        self._udp.stop(timeout=0)

    def _handle(self, wire, client):
        self.asked["udp"] += 1
        for answer in self._datagrams(wire):
            if callable(answer):
                answer(client)
            else:
                self._udp.sendto(answer, client)

    def _serve(self, connection, _client):
        self.asked["tcp"] += 1
        with connection:
            try:
                (length,) = struct.unpack("!H", connection.recv(2))
                self._talk(connection, connection.recv(length))
            except OSError:
                pass  # the client has gone


def right(wire, target="127.0.0.1."):
    """Return the answer to a query for SRV."""
    response = dns.message.make_response(dns.message.from_wire(wire))
    response.flags |= dns.flags.AA
    response.answer.append(dns.rrset.from_text(response.question[0].name, 30, "IN", "SRV", f"0 1 6379 {target}"))
    return response.to_wire()


def truncated(wire):
    response = dns.message.make_response(dns.message.from_wire(wire))
    response.flags |= dns.flags.TC
    return response.to_wire()


def told(wire, text, rcode="NOERROR", flags="QR AA RD"):
    """Return an answer whose sections are in ``text``, with %s for the name that was asked for."""
    query = dns.message.from_wire(wire)
    name = query.question[0].name.to_text()
    rdtype = dns.rdatatype.to_text(query.question[0].rdtype)
    head = f"id {query.id}\nopcode QUERY\nrcode {rcode}\nflags {flags}\n;QUESTION\n{name} IN {rdtype}\n"
    return dns.message.from_text(head + text.replace("%s", name)).to_wire()


def with_length(wire):
    return struct.pack("!H", len(wire)) + wire


@pytest.fixture
def server():
    with Noting() as server:
        yield server


@pytest.fixture
def resolver(server):
    return quick(server)


@pytest.fixture
def one_bound(monkeypatch):
    """A machine that pauses does not have our own bound come before that of dnspython, which tells more."""
    monkeypatch.setattr(_dns, "_GRACE", 20.0)


def quick(*servers, timeout=0.1, lifetime=0.3, min_refresh=0.001, **options):
    """Return a resolver for name servers that may be silent."""
    addresses = [server.address for server in servers]
    return DNSResolver(addresses, timeout=timeout, lifetime=lifetime, min_refresh=min_refresh, **options)


def patient(*servers, **options):
    """Return a resolver for name servers that will answer, on however busy a machine."""
    return quick(*servers, timeout=30.0, lifetime=40.0, **options)


def add_service(server, *numbers, ttl=1, address_ttl=1):
    for number in numbers:
        server.add_srv(SERVICE, f"redis{number}.example.test", 6379, ttl=ttl)
        server.add_address(f"redis{number}.example.test", f"127.0.0.{number}", address_ttl)


def add_alias_service(server, *numbers, ttl=1, address_ttl=1):
    """Add targets whose addresses no server sends along, as they are aliases."""
    for number in numbers:
        server.add_srv(SERVICE, f"redis{number}.example.test", 6379, ttl=ttl)
        server.add(f"redis{number}.example.test", "CNAME", f"host{number}.example.test", address_ttl)
        server.add_address(f"host{number}.example.test", f"127.0.0.{number}", address_ttl)


def names(resolution):
    return sorted(str(endpoint) for endpoint in resolution.endpoints)


def addresses(resolution):
    return {endpoint.name.partition(".")[0]: endpoint.addresses for endpoint in resolution.endpoints}


def failure(resolver, service=SERVICE):
    with pytest.raises(ResolutionError) as raised:
        resolver.resolve(service)
    assert not isinstance(raised.value, NoRecords), raised.value
    return str(raised.value)


def denial(resolver, service=SERVICE):
    with pytest.raises(NoRecords) as raised:
        resolver.resolve(service)
    return raised.value


# -- datagrams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
def test_a_datagram_from_another_port_or_address_is_not_believed(source):
    with socket.socket(type=socket.SOCK_DGRAM) as attacker:
        attacker.bind((source, 0))

        def datagrams(wire):
            forged = right(wire, target="evil.test.")
            yield lambda client: attacker.sendto(forged, client)
            gevent.sleep(0.01)
            yield right(wire)

        with Raw(datagrams) as raw:
            assert names(patient(raw).resolve(SERVICE)) == [RIGHT]
            assert raw.asked == {"udp": 1}


def other_id(wire):
    return bytes([wire[0] ^ 1]) + right(wire, "evil.test.")[1:]


def other_question(wire):
    other = dns.message.make_query("_evil._tcp.example.test", "SRV")
    other.id = dns.message.from_wire(wire).id
    return right(other.to_wire(), "evil.test.")


def other_type(wire):
    other = dns.message.make_query(SERVICE, "A")
    other.id = dns.message.from_wire(wire).id
    return told(other.to_wire(), "", rcode="NXDOMAIN")


def no_question(wire):
    response = dns.message.from_wire(right(wire, "evil.test."))
    response.question.clear()
    return response.to_wire()


def two_questions(wire):
    response = dns.message.from_wire(right(wire, "evil.test."))
    response.question.append(response.question[0])
    return response.to_wire()


NO_ANSWERS = {
    "nothing": lambda wire: b"",
    "one octet": lambda wire: b"\0",
    "half a header": lambda wire: wire[:6],
    "noise": lambda wire: wire[:2] + b"\xff" * 50,
    "the query": lambda wire: wire,
    "an update": lambda wire: right(wire)[:2] + b"\xac" + right(wire)[3:],
    "another id": other_id,
    "another question": other_question,
    "another type": other_type,
    "no question": no_question,
    "two questions": two_questions,
    "cut short": lambda wire: right(wire)[:-1],
    "too long": lambda wire: right(wire) + b"\0",
}


@pytest.mark.parametrize("what", NO_ANSWERS)
def test_what_is_no_answer_does_not_end_the_wait_for_one(what):
    def datagrams(wire):
        yield NO_ANSWERS[what](wire)
        gevent.sleep(0.01)
        yield right(wire)

    with Raw(datagrams) as raw:
        assert names(patient(raw).resolve(SERVICE)) == [RIGHT]
        assert raw.asked == {"udp": 1}


@pytest.mark.usefixtures("one_bound")
def test_nothing_but_no_answers_is_no_answer():
    with Raw(lambda wire: [no_answer(wire) for no_answer in NO_ANSWERS.values()]) as raw:
        assert failure(quick(raw)) == f"{SERVICE} SRV: no answer from 127.0.0.1:{raw.address[1]}"


def test_an_endless_stream_of_noise_ends_with_the_lifetime():
    def noise(wire):
        while True:
            yield wire[:2] + os.urandom(30)
            gevent.sleep(0)

    with Raw(noise) as raw:
        began = monotonic()
        assert "no answer" in failure(quick(raw))
    assert monotonic() - began < 20.0


def test_an_answer_that_comes_late_is_not_taken_for_one_to_the_next_question():
    late = []

    def datagrams(wire):
        late.append(right(wire, "late.test."))
        if len(late) == 1:
            return []
        return [late[0], right(wire)]

    with Raw(datagrams) as raw:
        assert names(quick(raw, timeout=0.2, lifetime=10.0).resolve(SERVICE)) == [RIGHT]


def test_a_truncated_datagram_is_worth_nothing_but_the_way_to_tcp():
    def lying(wire):
        response = dns.message.from_wire(right(wire, "evil.test."))
        response.flags |= dns.flags.TC
        return [response.to_wire()[:-7]]

    with Raw(lying, lambda connection, wire: connection.sendall(with_length(right(wire)))) as raw:
        assert names(patient(raw).resolve(SERVICE)) == [RIGHT]
        assert raw.asked == {"udp": 1, "tcp": 1}


# -- TCP ---------------------------------------------------------------------------------------------------------------


def trickle(connection, wire):
    for octet in with_length(right(wire)):
        connection.sendall(bytes([octet]))
        gevent.sleep(0.001)


def test_an_answer_may_trickle_in():
    with Raw(talk=trickle) as raw:
        assert names(patient(raw).resolve(SERVICE)) == [RIGHT]


def reset(connection, wire):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hang(connection, wire):
    connection.recv(1)


def announce_more(connection, wire):
    connection.sendall(struct.pack("!H", 65535) + right(wire))
    hang(connection, wire)


def dawdle(connection, wire):
    for octet in with_length(right(wire)):
        connection.sendall(bytes([octet]))
        gevent.sleep(0.1)


def answer_with(change):
    return lambda connection, wire: connection.sendall(change(wire))


SAID_NO_ANSWER = "no answer"
SAID_CLOSED = "the name server closed the connection"
SAID_OTHER = "A DNS query response does not respond to the question asked."
BAD_TALK = {
    "closed at once": (lambda connection, wire: None, SAID_CLOSED),
    "closed in the length": (answer_with(lambda wire: b"\0"), SAID_CLOSED),
    "closed in the message": (answer_with(lambda wire: with_length(right(wire))[:-1]), SAID_CLOSED),
    "reset": (reset, "Connection reset by peer"),
    "silent": (hang, SAID_NO_ANSWER),
    "longer than it is": (announce_more, SAID_NO_ANSWER),
    "slower than the lifetime": (dawdle, SAID_NO_ANSWER),
    "shorter than it is": (answer_with(lambda wire: b"\0\x20" + right(wire)), "the message is cut short"),
    "empty": (answer_with(lambda wire: b"\0\0"), "the message is cut short"),
    "too long": (
        answer_with(lambda wire: with_length(right(wire) + b"x")),
        "the message does not end with its last record",
    ),
    "another id": (answer_with(lambda wire: with_length(other_id(wire))), SAID_OTHER),
    "another question": (answer_with(lambda wire: with_length(other_question(wire))), SAID_OTHER),
    "truncated": (answer_with(lambda wire: with_length(truncated(wire))), "an answer too large for any message"),
    "the query": (answer_with(with_length), "not a response to a query"),
}


@pytest.mark.usefixtures("one_bound")
@pytest.mark.parametrize("what", BAD_TALK)
def test_a_name_server_that_does_badly_over_tcp_has_failed_and_the_next_is_asked(what, server):
    server.add_srv(SERVICE, "127.0.0.1", 6379)
    talk, words = BAD_TALK[what]
    resolver_of = quick if words == SAID_NO_ANSWER else patient
    with Raw(talk=talk) as raw:
        assert failure(resolver_of(raw)) == f"{SERVICE} SRV: {words} from 127.0.0.1:{raw.address[1]}"
        before = raw.asked["tcp"]
        assert names(quick(raw, server, lifetime=20.0).resolve(SERVICE)) == [RIGHT]
        assert raw.asked["tcp"] > before


# -- answers that are none ---------------------------------------------------------------------------------------------

NS = ";AUTHORITY\nexample.test. 60 IN NS ns.example.test.\n;ADDITIONAL\nns.example.test. 60 IN A 127.0.0.9\n"
SOA = ";AUTHORITY\nexample.test. {ttl} IN SOA ns.example.test. a.example.test. 1 1 1 1 {minimum}\n"
ALIAS = ";ANSWER\n%s 20 IN CNAME other.example.test.\n"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        pytest.param(NS, "QR RD", id="a referral"),
        pytest.param(NS, "QR RD RA", id="a referral of one that could ask"),
        pytest.param("", "QR RD", id="nothing, from one that does not know"),
        pytest.param(ALIAS, "QR AA RD", id="an alias that is not followed"),
        pytest.param(ALIAS, "QR RD RA", id="an alias that is not followed by one that could ask"),
        pytest.param(ALIAS + NS, "QR AA RD", id="an alias and a referral"),
    ],
)
def test_an_answer_that_says_neither_yes_nor_no_is_a_failure_and_the_next_is_asked(text, flags, server):
    server.add_srv(SERVICE, "127.0.0.1", 6379)
    with Raw(lambda wire: [told(wire, text, flags=flags)]) as raw:
        words = failure(patient(raw))
        assert words == f"{SERVICE} SRV: no answer, but a referral from 127.0.0.1:{raw.address[1]}"
        assert names(patient(raw, server).resolve(SERVICE)) == [RIGHT]
        assert raw.asked == {"udp": 2}


def test_an_alias_without_end_is_no_answer():
    loop = ";ANSWER\n%s 20 IN CNAME other.example.test.\nother.example.test. 20 IN CNAME %s\n"
    with Raw(lambda wire: [told(wire, loop)]) as raw:
        assert "no answer" in failure(quick(raw))


@pytest.mark.parametrize(
    ("text", "rcode", "words", "ttl"),
    [
        (SOA.format(ttl=30, minimum=7), "NXDOMAIN", "no such name (NXDOMAIN)", 7),
        (SOA.format(ttl=4, minimum=7), "NXDOMAIN", "no such name (NXDOMAIN)", 4),
        (SOA.format(ttl=30, minimum=7), "NOERROR", "no such record (NODATA)", 7),
        (SOA.format(ttl=4, minimum=7), "NOERROR", "no such record (NODATA)", 4),
        ("", "NXDOMAIN", "no such name (NXDOMAIN)", 0),
        ("", "NOERROR", "no such record (NODATA)", 0),
        (ALIAS + SOA.format(ttl=30, minimum=40), "NOERROR", "no such record (NODATA)", 20),
        (ALIAS + SOA.format(ttl=30, minimum=40), "NXDOMAIN", "no such name (NXDOMAIN)", 20),
    ],
)
def test_a_denial_holds_as_long_as_its_soa_record_says_and_not_at_all_without(text, rcode, words, ttl):
    with Raw(lambda wire: [told(wire, text, rcode)]) as raw:
        error = denial(patient(raw))

    assert str(error) == f"{SERVICE} SRV: {words} from 127.0.0.1:{raw.address[1]}"
    assert error.ttl == ttl


def test_a_plain_name_is_denied_only_if_both_families_are(server):
    server.add("redis.example.test", "TXT", "nothing")
    server.negative_ttl = 9
    assert denial(patient(server), "redis.example.test:6379").ttl == 9

    server.fault = lambda query: "servfail" if query.question[0].rdtype == dns.rdatatype.AAAA else None
    assert "AAAA: SERVFAIL" in failure(patient(server), "redis.example.test:6379")


# -- several name servers ----------------------------------------------------------------------------------------------

FAULTS = ["drop", "garbage", "wrong_id", "truncate", "servfail", "refused", "formerr", "notimp", "referral", "lame"]


@pytest.mark.parametrize("fault", [*FAULTS, "closed"])
def test_a_name_server_that_fails_costs_no_answer(fault, server):
    add_alias_service(server, 1, 2)
    with Noting() as bad:
        if fault == "closed":
            bad.stop()
        else:
            bad.fault = fault
        resolution = quick(bad, server, lifetime=20.0).resolve(SERVICE)

    assert addresses(resolution) == {"redis1": ("127.0.0.1",), "redis2": ("127.0.0.2",)}
    assert bad.count() == 0 if fault == "closed" else bad.count() >= 5  # each question begins with the first server


@pytest.mark.usefixtures("one_bound")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_failure_of_all_name_servers_names_each(fault, server, wall_clock):
    def pass_time(_query):
        wall_clock.step += 10.0  # so that both are asked, and not much more often, however busy the machine is
        return fault

    with Noting() as other:
        server.fault = other.fault = pass_time
        words = failure(quick(server, other, lifetime=25.0))

    assert f"from 127.0.0.1:{server.address[1]}, " in words
    assert words.endswith(f"from 127.0.0.1:{other.address[1]}")


def test_a_denial_of_one_name_server_is_not_put_to_another(server):
    with Noting() as other:
        add_service(other, 1)
        denial(patient(server, other))

        assert (server.count(), other.count()) == (1, 0)


def test_a_name_server_may_have_a_port_of_its_own_and_be_on_ipv6():
    with Noting("::1") as server:
        server.add_srv(SERVICE, "127.0.0.1", 6379)
        resolution = DNSResolver(nameservers=[("::1", server.address[1])]).resolve(SERVICE)

    assert names(resolution) == [RIGHT]
    assert resolution.outcome == f"1 SRV records from [::1]:{server.address[1]}"


# -- resolv.conf -------------------------------------------------------------------------------------------------------


@pytest.fixture
def resolv_conf(server, tmp_path, monkeypatch):
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.1\n")
    monkeypatch.setattr(_dns, "_RESOLV_CONF", file)
    monkeypatch.setattr(_dns, "_PORT", server.address[1])
    return file


@pytest.fixture
def second(server):
    """Another name server, on the same port of another address."""
    with Noting("127.0.0.2", server.address[1]) as second:
        yield second


@pytest.fixture
def tries(monkeypatch):
    """The timeout of each try."""
    tries = []
    async_query = Nameserver.async_query

    async def note(self, request, timeout, *args, **options):
        tries.append(timeout)
        return await async_query(self, request, timeout, *args, **options)

    monkeypatch.setattr(Nameserver, "async_query", note)
    return tries


@pytest.mark.parametrize("first", ["drop", "refused", "servfail", "closed"])
def test_the_second_name_server_of_resolv_conf_is_asked_when_the_first_fails(first, resolv_conf, server, second):
    resolv_conf.write_text("nameserver 127.0.0.1\nnameserver 127.0.0.2\n")
    second.add_srv(SERVICE, "127.0.0.1", 6379)
    if first == "closed":
        server.stop()
    else:
        server.fault = first

    assert names(DNSResolver(timeout=0.1, lifetime=20.0).resolve(SERVICE)) == [RIGHT]
    assert second.count() >= 1


def test_name_servers_are_asked_in_their_order_or_by_turns_with_rotate(resolv_conf, server, second):
    for each in server, second:
        each.add_srv(SERVICE, "127.0.0.1", 6379)
    resolv_conf.write_text("nameserver 127.0.0.1\nnameserver 127.0.0.2\n")
    resolver = DNSResolver(timeout=10.0, lifetime=20.0)
    for _ in range(20):
        resolver.resolve(SERVICE)
    assert (server.count(), second.count()) == (20, 0)

    resolv_conf.write_text("options rotate\nnameserver 127.0.0.1\nnameserver 127.0.0.2\n")
    for _ in range(60):  # that all of them hit one server happens once in 10**18 runs
        resolver.resolve(SERVICE)
    assert server.count() > 20
    assert second.count() > 0


@pytest.mark.parametrize(
    ("ndots", "name", "asked"),
    [
        (1, "redis", ["redis.a.test", "redis.b.test", "redis"]),
        (1, "redis.x", ["redis.x", "redis.x.a.test", "redis.x.b.test"]),
        (2, "redis.x", ["redis.x.a.test", "redis.x.b.test", "redis.x"]),
        (5, "_redis._tcp.x.y", ["_redis._tcp.x.y.a.test", "_redis._tcp.x.y.b.test", "_redis._tcp.x.y"]),
        (3, "_redis._tcp.x.y", ["_redis._tcp.x.y", "_redis._tcp.x.y.a.test", "_redis._tcp.x.y.b.test"]),
        (5, "_redis._tcp.x.y.", ["_redis._tcp.x.y"]),
    ],
)
def test_the_search_list_is_tried_before_or_after_the_name_as_ndots_says(ndots, name, asked, resolv_conf, server):
    resolv_conf.write_text(f"search a.test b.test\noptions ndots:{ndots}\nnameserver 127.0.0.1\n")
    denial(DNSResolver(timeout=10.0, lifetime=20.0), name)

    assert [question for question, _type, _transport in server.asked] == asked


def test_a_name_that_is_nowhere_on_the_search_list_is_denied_for_the_shortest_time(resolv_conf, monkeypatch):
    ttls = {"_redis._tcp.a.test": 30, "_redis._tcp.b.test": 3, "_redis._tcp": 20}

    def datagrams(wire):
        name = dns.message.from_wire(wire).question[0].name.to_text().removesuffix(".")
        soa = f";AUTHORITY\n. 60 IN SOA . . 1 1 1 1 {ttls[name]}\n"
        return [told(wire, soa, "NXDOMAIN")]

    resolv_conf.write_text("search a.test b.test\noptions ndots:2\nnameserver 127.0.0.1\n")
    with Raw(datagrams) as raw:
        monkeypatch.setattr(_dns, "_PORT", raw.address[1])
        assert denial(DNSResolver(timeout=10.0, lifetime=20.0), "_redis._tcp").ttl == 3


def test_one_failure_on_the_search_list_is_a_failure(resolv_conf, server):
    resolv_conf.write_text("search a.test b.test\noptions ndots:2\nnameserver 127.0.0.1\n")
    server.fault = lambda query: "servfail" if "b.test" in query.question[0].name.to_text() else None

    words = failure(DNSResolver(timeout=10.0, lifetime=20.0), "_redis._tcp")

    assert words == f"_redis._tcp SRV: SERVFAIL from 127.0.0.1:{server.address[1]}"


@pytest.mark.parametrize(
    ("option", "given", "first_try"),
    [
        ("", {}, 2.0),
        ("options timeout:1", {}, 1.0),
        ("options timeout:3", {}, 3.0),
        ("options timeout:3", {"timeout": 2.5}, 2.5),
        ("options timeout:30", {"lifetime": 4.0}, 4.0),
        ("options timeout:0", {}, 1.0),  # as glibc understands it; 0 seconds would be no try at all
        ("options timeout:-1", {}, 1.0),
        ("options timeout:soon attempts:3 edns0 trust-ad", {}, 2.0),
    ],
)
def test_the_timeout_of_resolv_conf_takes_the_place_of_the_default_only(
    option, given, first_try, resolv_conf, server, tries
):
    server.add_srv(SERVICE, "127.0.0.1", 6379)
    resolv_conf.write_text(f"{option}\nnameserver 127.0.0.1\n")

    assert names(DNSResolver(**given).resolve(SERVICE)) == [RIGHT]
    assert tries[0] == pytest.approx(first_try, abs=0.9)
    assert tries[0] <= first_try


def test_the_timeout_of_resolv_conf_is_nothing_to_given_name_servers(resolv_conf, server, tries):
    resolv_conf.write_text("options timeout:4\nnameserver 127.0.0.1\n")
    server.add_srv(SERVICE, "127.0.0.1", 6379)
    DNSResolver([server.address]).resolve(SERVICE)

    assert tries[0] == 2.0


def test_resolv_conf_is_read_anew_when_it_has_changed(resolv_conf, server, second):
    server.add_srv(SERVICE, "127.0.0.1", 6379)
    second.add_srv(SERVICE, "127.0.0.2", 6379)
    resolver = DNSResolver(timeout=10.0, lifetime=20.0)
    assert names(resolver.resolve(SERVICE)) == [RIGHT]

    new = resolv_conf.with_name("new")
    new.write_text("nameserver 127.0.0.2\n")
    new.replace(resolv_conf)
    assert names(resolver.resolve(SERVICE)) == ["127.0.0.2:6379"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no nameservers"),
        (b"# nothing\nsearch a.test\n", "no nameservers"),
        (b"nameserver\n", "no nameservers"),
        (b"nameserver ns.example.test\nnameserver 127.0.0.1\n", "ns.example.test"),
        (b"search a..test\nnameserver 127.0.0.1\n", "empty"),
        (b"\xff\xfe\0\0", "no nameservers"),
        (b"nameserver \xff\n", "nameserver"),
    ],
)
def test_a_broken_resolv_conf_is_a_failure_until_it_is_mended(content, words, resolv_conf, server):
    server.add_srv(SERVICE, "127.0.0.1", 6379)
    resolver = DNSResolver(timeout=10.0, lifetime=20.0)
    whole = resolv_conf.read_text()
    resolv_conf.write_bytes(content)
    for _ in range(2):
        told = failure(resolver)
        assert told.startswith(f"{resolv_conf} cannot be used: ")
        assert words in told
    assert server.count() == 0

    resolv_conf.write_text(whole)
    assert names(resolver.resolve(SERVICE)) == [RIGHT]


def test_a_resolv_conf_that_is_no_file_is_a_failure(resolv_conf):
    resolv_conf.unlink()
    resolv_conf.mkdir()

    assert failure(DNSResolver()) == f"{resolv_conf} cannot be used: Is a directory"


# -- clocks ------------------------------------------------------------------------------------------------------------


class WallClock:
    """What dnspython takes for the time of day. It may step."""

    def __init__(self) -> None:
        self.step = 0.0

    def time(self):
        return 1.7e9 + monotonic() + self.step


@pytest.fixture
def wall_clock(monkeypatch):
    clock = WallClock()
    for module in (dns.resolver, dns.asyncresolver):
        monkeypatch.setattr(module, "time", clock)
    return clock


STEPS = [3600.0, -3600.0, 2.0, -2.0, -0.9]


@pytest.mark.parametrize("step", STEPS)
def test_an_answer_counts_though_the_wall_clock_has_stepped_while_it_was_on_its_way(step, server, wall_clock):
    add_alias_service(server, 1)

    def fault(_query):
        wall_clock.step += step

    server.fault = fault

    assert addresses(patient(server).resolve(SERVICE)) == {"redis1": ("127.0.0.1",)}
    assert server.count() == 3


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_wall_clock_costs_at_most_one_look_up_and_no_time(step, server, wall_clock):
    server.add_srv(SERVICE, "127.0.0.1", 6379)
    faults = iter([step])

    def fault(_query):
        for now in faults:
            wall_clock.step += now
            return "drop"
        return None

    server.fault = fault
    resolver = quick(server, timeout=0.1, lifetime=1.0)
    began = monotonic()
    try:
        told = names(resolver.resolve(SERVICE))
    except ResolutionError as error:
        told = str(error)

    assert monotonic() - began < 20.0
    from_it = f"from 127.0.0.1:{server.address[1]}"
    assert told in ([RIGHT], f"{SERVICE} SRV: no answer {from_it}", f"{SERVICE} SRV: no answer within 1.0 s {from_it}")
    assert names(patient(server).resolve(SERVICE)) == [RIGHT]


@pytest.fixture
def wall_clock_that_goes_back(wall_clock):
    times = count(1.7e9, -0.001)
    wall_clock.time = lambda: next(times)


@pytest.mark.usefixtures("wall_clock_that_goes_back")
def test_a_wall_clock_that_goes_back_and_back_does_not_prolong_a_look_up(server):
    server.fault = "drop"
    began = monotonic()
    words = failure(quick(server, timeout=0.1, lifetime=0.5))

    assert monotonic() - began < 20.0
    assert words == f"{SERVICE} SRV: no answer within 0.5 s from 127.0.0.1:{server.address[1]}"


@pytest.mark.usefixtures("wall_clock_that_goes_back")
def test_a_family_whose_answer_is_overdue_is_not_taken_for_denied(server):
    server.add("redis.example.test", "TXT", "nothing")
    server.fault = lambda query: "drop" if query.question[0].rdtype == dns.rdatatype.AAAA else None

    words = failure(quick(server, timeout=0.1, lifetime=0.5), "redis.example.test:6379")

    assert words == "redis.example.test: no usable address from anybody in time"


# -- the addresses of targets ------------------------------------------------------------------------------------------


def test_of_fifty_targets_at_most_four_questions_are_under_way(server):
    add_alias_service(server, *range(1, 51))
    server.delay = 0.002

    assert len(patient(server).resolve(SERVICE).endpoints) == 50
    assert server.most_at_once == 4
    assert (server.count("SRV", "tcp"), server.count("A"), server.count("AAAA")) == (1, 50, 50)


def test_targets_that_were_not_reached_in_time_are_asked_for_next_time_and_lose_nothing(server):
    add_alias_service(server, *range(1, 41), ttl=60, address_ttl=60)
    left = iter([None] * 31)
    server.fault = lambda query: next(left, "drop")
    resolver = quick(server, timeout=10.0, lifetime=3.0)
    first = resolver.resolve(SERVICE)
    assert 1 <= len(first.endpoints) < 40
    assert first.ttl == 0.0
    asked = Counter(server.asked)

    server.fault = None
    resolver = with_lifetime(resolver, 20.0)
    gevent.sleep(1.3)  # the back-off of the four that were under way
    second = resolver.resolve(SERVICE)

    assert len(second.endpoints) == 40
    assert addresses(second).items() >= addresses(first).items()
    reached = {name for name, rdtype, _ in asked if rdtype == "A"}
    assert {name for name, rdtype, _ in server.asked if rdtype == "A"} > reached


def with_lifetime(resolver, lifetime):
    resolver.client._lifetime = lifetime
    return resolver


def test_addresses_whose_look_up_is_cut_off_every_time_are_kept(server):
    add_alias_service(server, *range(1, 11), address_ttl=0)
    resolver = patient(server)
    first = resolver.resolve(SERVICE)

    def fault(query):
        with_lifetime(resolver, 0.05)  # for what is asked after this
        return None if query.question[0].rdtype == dns.rdatatype.SRV else "drop"

    server.fault = fault
    for _ in range(3):
        gevent.sleep(0.002)
        assert addresses(with_lifetime(resolver, 40.0).resolve(SERVICE)) == addresses(first)


@pytest.mark.parametrize("fault", ["servfail", "refused", "referral", "lame", "truncate", "nxdomain"])
def test_some_targets_without_an_address_do_not_keep_the_others_from_being_used(fault, server):
    add_alias_service(server, *range(1, 6), ttl=60, address_ttl=60)
    server.fault = lambda query: fault if query.question[0].name.to_text()[:6] in ("redis2", "redis4") else None
    resolution = patient(server).resolve(SERVICE)

    assert sorted(addresses(resolution)) == ["redis1", "redis3", "redis5"]
    assert resolution.ttl < 1.3  # the back-off of these two
    assert resolution.outcome == (f"5 SRV records from 127.0.0.1:{server.address[1]}, 2 without a known address")


def test_addresses_that_hold_longer_than_the_records_are_not_asked_for_again_before(server):
    add_alias_service(server, 1, 2, ttl=1, address_ttl=60)
    resolver = patient(server)
    for _ in range(4):
        assert len(resolver.resolve(SERVICE).endpoints) == 2

    each_once = {(f"redis{number}.example.test", rdtype, "udp"): 1 for number in (1, 2) for rdtype in ("A", "AAAA")}
    assert Counter(server.asked) == {(SERVICE, "SRV", "udp"): 4, **each_once}


def test_addresses_are_asked_for_again_when_their_time_is_over(server):
    add_alias_service(server, 1, ttl=60, address_ttl=0)
    resolver = patient(server)
    resolver.resolve(SERVICE)
    server.remove_address("host1.example.test", "127.0.0.1")
    server.add_address("host1.example.test", "127.0.0.9")
    gevent.sleep(0.002)

    assert addresses(resolver.resolve(SERVICE)) == {"redis1": ("127.0.0.9",)}


def test_addresses_that_come_along_are_not_asked_for_and_used_anew_each_time(server):
    add_service(server, 1, 2, 3, address_ttl=60)
    resolver = patient(server)
    resolver.resolve(SERVICE)
    server.add_address("redis2.example.test", "127.0.0.9", 60)

    assert addresses(resolver.resolve(SERVICE))["redis2"] == ("127.0.0.2", "127.0.0.9")
    assert server.asked == [(SERVICE, "SRV", "udp")] * 2


def test_the_hosts_file_comes_before_dns_and_before_what_comes_along(server, tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("127.0.0.77 redis1.example.test  # as it was\n")
    monkeypatch.setattr(_hosts, "_hosts_file", HostsFile(tmp_path / "hosts"))
    add_service(server, 1)
    add_alias_service(server, 2)

    assert addresses(patient(server).resolve(SERVICE)) == {"redis1": ("127.0.0.77",), "redis2": ("127.0.0.2",)}
    assert {name for name, _type, _transport in server.asked} == {SERVICE, "redis2.example.test"}


# -- a sudden shrink ---------------------------------------------------------------------------------------------------


class Cluster(ClusterPool[Any]):
    """Of connections that are never opened."""

    def __init__(self, service, resolver=None):
        self.heard = []
        super().__init__(service, 1, resolver=resolver, min_size=0, on_event=self.heard.append)

    def _new_connection(self, endpoint):
        raise AssertionError("nobody has asked for a connection")

    def becomes(self, state, generation=0):
        wait_until(lambda: self.stats().discovery.state == state and self.stats().discovery.generation >= generation)

    def heard_of(self, kind):
        return [event for event in self.heard if isinstance(event, kind)]


def test_confirm_asks_over_tcp_alone(server):
    add_service(server, *range(1, 11))
    server.fault = "trim"
    resolver = patient(server)

    assert len(resolver.resolve(SERVICE).endpoints) == 3
    assert len(resolver.confirm(SERVICE).endpoints) == 10
    assert (server.count("SRV", "udp"), server.count("SRV", "tcp")) == (1, 1)


def test_confirm_asks_for_the_addresses_of_a_plain_name_over_tcp(server):
    for number in range(1, 11):
        server.add_address("redis.example.test", f"127.0.0.{number}")
    server.fault = "trim"
    resolver = patient(server)

    assert len(resolver.resolve("redis.example.test:1").endpoints) == 3
    assert len(resolver.confirm("redis.example.test:1").endpoints) == 10
    assert (server.count(transport="udp"), server.count(transport="tcp")) == (2, 2)


def test_datagrams_that_leave_records_out_cost_no_endpoint_and_a_real_loss_does(server):
    add_service(server, *range(1, 11))
    with Cluster(SERVICE, patient(server, max_refresh=0.01)) as pool:
        wait_until(lambda: len(pool.pools) == 10)
        assert server.count(transport="tcp") == 0

        server.fault = "trim"
        pool.becomes("fresh", pool.stats().discovery.generation + 5)
        assert len(pool.pools) == 10
        assert server.count("SRV", "tcp") >= 4
        assert pool.heard_of(events.EndpointRemoved) == []

        for number in range(3, 11):
            server.remove_srv(SERVICE, f"redis{number}.example.test", 6379)
        wait_until(lambda: len(pool.pools) == 2, what="the loss")


# -- host names in a list ----------------------------------------------------------------------------------------------


def test_hosts_of_a_list_are_there_at_once_and_get_their_addresses_in_place(server):
    gate = Event()
    server.add_address("a.test", "127.0.0.5", 60)
    server.fault = lambda query: gate.wait() and None
    with Cluster(StaticResolver([("a.test", 1), ("127.0.0.9", 2)], resolver=patient(server))) as pool:
        (before,) = (endpoint for endpoint in pool.pools if endpoint.name == "a.test")
        inner = pool.pools[before]
        assert (before.address, len(pool.pools)) == (("a.test", 1), 2)
        assert pool.stats().discovery.state == "fresh"

        gate.set()
        pool.becomes("fresh", generation=2)
        wait_until(lambda: pool.heard_of(events.EndpointUpdated))
        (after,) = (endpoint for endpoint in pool.pools if endpoint.name == "a.test")
        assert after.address == ("127.0.0.5", 1)
        assert pool.pools[after] is inner
        assert [event.endpoint.addresses for event in pool.heard_of(events.EndpointUpdated)] == [("127.0.0.5",)]
        assert 50 < pool.stats().discovery.ttl <= 60
    assert sorted(server.asked) == [("a.test", "A", "udp"), ("a.test", "AAAA", "udp")]


def test_the_addresses_of_a_host_in_a_list_follow_dns_and_stay_when_that_fails(server):
    server.add_address("a.test", "127.0.0.5", 0)
    resolver = StaticResolver([("a.test", 1)], resolver=patient(server, max_refresh=0.01))
    with Cluster(resolver) as pool:

        def is_at(address):
            return [endpoint.host for endpoint in pool.pools] == [address]

        wait_until(lambda: is_at("127.0.0.5"))
        server.remove_address("a.test", "127.0.0.5")
        server.add_address("a.test", "127.0.0.6", 0)
        wait_until(lambda: is_at("127.0.0.6"))

        server.fault = "servfail"
        pool.becomes("stale")
        assert is_at("127.0.0.6")
        assert "SERVFAIL from 127.0.0.1:" in pool.stats().discovery.outcome
        server.remove_address("a.test", "127.0.0.6")
        server.add_address("a.test", "127.0.0.7", 0)
        server.fault = None
        wait_until(lambda: is_at("127.0.0.7"))
        pool.becomes("fresh")
        assert pool.heard_of(events.EndpointRemoved) == []


def test_a_host_in_a_list_that_no_longer_exists_keeps_its_addresses(server):
    server.add_address("a.test", "127.0.0.5", 0)
    resolver = StaticResolver([("a.test", 1)], resolver=patient(server))
    resolver.resolve(None)
    server.remove("a.test", "A")
    gevent.sleep(0.002)
    resolution = resolver.resolve(None)

    assert addresses(resolution) == {"a": ("127.0.0.5",)}
    assert "a.test A" in resolution.outcome
    assert "no such name (NXDOMAIN)" in resolution.outcome


def test_that_all_questions_for_a_list_fail_is_a_failure_and_that_some_do_is_not(server):
    server.add_address("b.test", "127.0.0.6", 60)
    resolver = StaticResolver([("a.test", 1), ("b.test", 1)], resolver=patient(server))
    server.fault = "refused"
    assert "REFUSED from 127.0.0.1:" in failure(resolver, None)
    assert [endpoint.addresses for endpoint in resolver.at_hand().endpoints] == [(), ()]

    gevent.sleep(1.3)  # the back-off
    server.fault = lambda query: "refused" if query.question[0].name.to_text() == "a.test." else None
    resolution = resolver.resolve(None)
    assert addresses(resolution) == {"a": (), "b": ("127.0.0.6",)}
    assert resolution.outcome.startswith("1 of 2 endpoints have an address; a.test A")


def test_addresses_that_the_user_gave_are_left_alone_and_nobody_is_asked(server):
    server.add_address("a.test", "127.0.0.5")
    mine = Endpoint("a.test", 1, ["127.0.0.1", "127.0.0.2"], priority=1, weight=3, domain="b.test")
    resolver = StaticResolver([mine, ("::1", 2)], resolver=patient(server))

    assert resolver.resolve(None) == Resolution((mine, Endpoint("::1", 2)), None)
    assert resolver.resolve(None).endpoints[0] is mine
    assert resolver.resolve(None).endpoints[0].addresses == ("127.0.0.1", "127.0.0.2")
    assert server.count() == 0


def test_a_host_in_a_list_with_several_ports_is_asked_for_once(server):
    server.add_address("a.test", "127.0.0.5", 60)
    resolver = StaticResolver([("a.test", 1), ("A.test.", 2)], resolver=patient(server))

    assert [endpoint.addresses for endpoint in resolver.resolve(None).endpoints] == [("127.0.0.5",)] * 2
    assert server.count() == 2


# -- interruptions -----------------------------------------------------------------------------------------------------


def open_files():
    return len(os.listdir("/proc/self/fd"))


def living_greenlets():
    gc.collect()
    return sum(isinstance(thing, gevent.Greenlet) and not thing.dead for thing in gc.get_objects())


class Bell(Exception):
    """A timeout of the caller's own class, which dnspython would take for the failure of a name server."""


@pytest.fixture
def nothing_left():
    """Compare what is open and alive before and after: the test calls it when its servers are at rest."""
    before = []

    def look():
        if not before:
            before.extend((open_files(), living_greenlets()))
            return
        wait_until(lambda: open_files() <= before[0], what="the end of all sockets")
        wait_until(lambda: living_greenlets() <= before[1], what="the end of all greenlets")

    return look


def look_ups(server):
    """Return look-ups of every kind, over UDP and TCP, each with a resolver that knows nothing."""
    static = [("redis1.example.test", 1), ("redis2.example.test", 1)]
    return {
        "srv": lambda: patient(server).resolve(SERVICE),
        "confirm": lambda: patient(server).confirm(SERVICE),
        "plain": lambda: patient(server).resolve("redis1.example.test:1"),
        "static": lambda: StaticResolver(static, resolver=patient(server)).resolve(None),
    }


def test_two_hundred_look_ups_that_are_interrupted_at_any_time_leave_nothing(server, nothing_left):
    add_alias_service(server, 1, 2, 3)
    rng = random.Random(20)
    wholes = {}
    for kind, look_up in look_ups(server).items():
        times = [monotonic()]
        for _ in range(5):
            look_up()
            times.append(monotonic())
        wholes[kind] = min(after - before for before, after in pairwise(times))
    wait_until(lambda: not server._at_once)
    nothing_left()
    interrupted = 0

    for number in range(200):
        kind, look_up = rng.choice(sorted(look_ups(server).items()))
        patience = rng.uniform(0, wholes[kind])
        server.fault = rng.choice([None, None, "drop"])
        if number % 2:
            greenlet = gevent.spawn(look_up)
            gevent.sleep(patience)
            interrupted += not greenlet.dead
            greenlet.kill()
        else:
            try:
                with gevent.Timeout(patience, rng.choice([Bell, None])):
                    look_up()
            except (Bell, gevent.Timeout):
                interrupted += 1
    nothing_left()
    server.fault = None

    assert interrupted > 50
    assert len(patient(server).resolve(SERVICE).endpoints) == 3


@pytest.mark.parametrize("exc", [gevent.GreenletExit, Bell, gevent.Timeout])
@pytest.mark.parametrize("kind", ["srv", "confirm", "plain", "static"])
def test_a_look_up_can_be_hit_at_every_switch_of_its_caller(kind, exc, server, nothing_left):
    add_alias_service(server, 1, 2)
    look_up = look_ups(server)[kind]
    look_up()
    nothing_left()
    hits = 0
    while is_hit(look_up, hits + 1, exc()):
        hits += 1
    nothing_left()

    assert hits >= 1
    assert len(patient(server).resolve(SERVICE).endpoints) == 2


def is_hit(look_up, k, exc):
    """Throw ``exc`` into the caller at its k-th switch; out comes just that, or the operation was over before."""
    raised = []

    def victim():
        interrupter.watch()
        try:
            look_up()
        except BaseException as error:
            raised.append(error)
        interrupter.leave()

    with Interrupter(k, exc) as interrupter:
        gevent.spawn(victim).join()
    assert raised == ([exc] if interrupter.hit else [])
    return interrupter.hit


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_the_greenlet_that_asks_can_be_killed_at_every_switch(transport, server, nothing_left, monkeypatch):
    add_service(server, 1)
    client = Client([server.address], 10.0, 20.0)
    question = Question(SERVICE, "SRV")
    client.ask(question, transport == "tcp")
    work = Client._work
    hits, is_over = 0, False
    nothing_left()
    while not is_over:
        with Interrupter(hits + 1, gevent.GreenletExit()) as interrupter:

            def watched(*args, interrupter=interrupter):
                interrupter.watch()
                work(*args)
                interrupter.leave()

            with monkeypatch.context() as patch:
                patch.setattr(Client, "_work", watched)
                answers = client.ask_all([question], transport == "tcp")
        is_over = not interrupter.hit
        hits += interrupter.hit
        assert list(answers) == ([question] if is_over else [])
        assert len(client.ask(question, transport == "tcp").data) == 1
    nothing_left()

    assert hits >= {"udp": 1, "tcp": 2}[transport]


# -- threads -----------------------------------------------------------------------------------------------------------

_CHILD = """
import sys
if sys.argv[1] == "patched":
    from gevent import monkey
    monkey.patch_all()
from pathlib import Path
import gevent
from gevent.server import StreamServer
from geventconnpool import ClusterPool, Endpoint
from geventconnpool.cluster import DNSResolver, StaticResolver, _dns, _hosts
from geventconnpool.cluster._endpoints import ResolutionError
from geventconnpool.testing import DNSServer

def pooled():
    return gevent.get_hub()._threadpool is not None

class Pool(ClusterPool):
    def _new_connection(self, endpoint):
        return endpoint.connect(timeout=20)

told = []
with DNSServer() as dns:
    echo = StreamServer(("127.0.0.1", 0), lambda connection, _: connection.recv(1))
    echo.start()
    dns.add_srv("_a._tcp.b.test", "a1.b.test", echo.server_port)
    dns.add_srv("_a._tcp.b.test", "a2.b.test", echo.server_port)
    dns.add("a2.b.test", "CNAME", "a1.b.test")
    dns.add_address("a1.b.test", "127.0.0.1")
    dns.add_address("a1.b.test", "::1")
    hosts = Path(sys.argv[2])
    hosts.write_text("fe80::1%lo zone.test\\nfe80::1%nosuch zone.test\\n127.0.0.1 file.test\\n")
    _hosts._hosts_file = _hosts.HostsFile(hosts)
    conf = hosts.with_name("resolv.conf")
    conf.write_text("nameserver fe80::1%lo\\nnameserver 127.0.0.1\\nsearch b.test\\n")
    _dns._RESOLV_CONF, _dns._PORT = conf, dns.address[1]
    resolver = DNSResolver([dns.address])
    services = {
        "srv": ("_a._tcp.b.test", resolver),
        "srv by resolv.conf": ("_a._tcp", DNSResolver()),
        "plain": ("a2.b.test:%d" % echo.server_port, resolver),
        "plain in the hosts file": ("file.test:%d" % echo.server_port, resolver),
        "static": (StaticResolver([("a1.b.test", echo.server_port)], resolver=resolver), None),
    }
    for what, (service, using) in services.items():
        with Pool(service, 1, resolver=using) as pool:
            with pool.get(timeout=20) as c:
                c.getpeername()
        told.append(f"{what}: {pooled()}")
    for host in ("a1.b.test", "a1", "file.test"):
        Endpoint(host, echo.server_port).connect(20).close()
        told.append(f"connect to {host}: {pooled()}")
    for what in ("dns", "server", "zone.test"):
        try:
            if what == "dns":
                DNSResolver([("fe80::1%lo", 53), ("fe80::1%nosuch", 53)], lifetime=1).resolve("_a._tcp.b.test")
            elif what == "server":
                Endpoint("zone", 1, ["fe80::1%lo"]).connect(1)
            else:
                Endpoint(what, 1).connect(1)
        except (OSError, ResolutionError):
            told.append(f"{what}: {pooled()}")
print("\\n".join(told))
"""


@pytest.mark.parametrize("patched", ["patched", "unpatched"])
def test_nothing_that_discovery_does_uses_the_threads_of_the_hub(patched, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, patched, tmp_path / "hosts"],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip

    assert child.stderr == ""
    assert child.stdout.splitlines() == [
        "srv: False",
        "srv by resolv.conf: False",
        "plain: False",
        "plain in the hosts file: False",
        "static: False",
        "connect to a1.b.test: False",
        "connect to a1: False",
        "connect to file.test: False",
        "dns: False",
        "server: False",
        "zone.test: False",
    ]


def test_what_a_trimmed_datagram_left_out_keeps_its_addresses_when_they_cannot_be_asked_for(server):
    for number in range(8):
        server.add_srv(SERVICE, f"h{number}.test", 1)
        server.add(f"h{number}.test", "CNAME", f"a{number}.test")  # so that no address comes along
        server.add_address(f"a{number}.test", f"127.0.0.{number + 1}", 300)
    with Cluster(SERVICE, resolver=patient(server)) as pool:
        wait_until(lambda: len(pool.pools) == 8)
        server.fault = lambda query: "trim" if query.question[0].rdtype == dns.rdatatype.SRV else "servfail"
        seen = pool.stats().discovery.generation
        wait_until(lambda: pool.stats().discovery.generation > seen + 2)

        assert len(pool.pools) == 8
        assert pool.heard_of(events.EndpointRemoved) == []


def test_a_list_of_which_no_host_is_known_stays_stale_when_nothing_is_due(server):
    server.fault = "servfail"
    resolver = StaticResolver([("a.test", 1), ("b.test", 1)], resolver=patient(server))
    with pytest.raises(ResolutionError):
        resolver.resolve(None)
    asked = len(server.asked)

    with pytest.raises(ResolutionError, match="SERVFAIL"):
        resolver.resolve(None)

    assert len(server.asked) == asked  # their back-off is not over


def test_one_host_of_a_list_in_the_hosts_file_is_enough_for_an_answer(server, tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("127.0.0.5 a.test\n")
    monkeypatch.setattr(_hosts, "_hosts_file", HostsFile(tmp_path / "hosts"))
    server.fault = "servfail"
    resolver = StaticResolver([("a.test", 1), ("b.test", 1)], resolver=patient(server))

    resolution = resolver.resolve(None)

    assert [endpoint.addresses for endpoint in resolution.endpoints] == [("127.0.0.5",), ()]
    assert "b.test" in resolution.outcome
    assert "SERVFAIL" in resolution.outcome
