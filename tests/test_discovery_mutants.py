"""Tens of thousands of answers that went wrong on their way: whatever is made of them, it is one of few things.

They are valid answers with a few octets changed, cut out, put in or doubled, the same ones in each run.
"""

from __future__ import annotations

import random
import struct

import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from gevent import socket
from gevent.pool import Pool
from gevent.server import DatagramServer, StreamServer

from geventconnpool.cluster import DNSResolver
from geventconnpool.cluster._dns import Lame, Nameserver, Reply, _accepted, _parsed
from geventconnpool.cluster._endpoints import NoRecords, Resolution, ResolutionError, canonical_ip
from geventconnpool.cluster._wire import Malformed

SERVICE = "_redis._tcp.example.test"

HEAD = "id 0\nopcode QUERY\nrcode {rcode}\nflags {flags}\n;QUESTION\n_redis._tcp.example.test. IN SRV\n"
SOA = ";AUTHORITY\nexample.test. 60 IN SOA ns.example.test. a.example.test. 1 2 3 4 50\n"
MESSAGES = {
    "with addresses": (
        ";ANSWER\n_redis._tcp.example.test. 30 IN SRV 0 1 6379 redis1.example.test.\n"
        "_redis._tcp.example.test. 30 IN SRV 1 0 6380 redis2.example.test.\n"
        "_redis._tcp.example.test. 30 IN SRV 0 65535 6379 10.0.0.7.\n"
        ";ADDITIONAL\nredis1.example.test. 20 IN A 10.0.0.1\nredis1.example.test. 20 IN AAAA ::1\n"
        "redis2.example.test. 0 IN A 10.0.0.2\n"
    ),
    "without": ";ANSWER\n_redis._tcp.example.test. 30 IN SRV 0 1 6379 redis1.example.test.\n",
    "of an alias": (
        ";ANSWER\n_redis._tcp.example.test. 30 IN CNAME one.example.test.\n"
        "one.example.test. 9 IN CNAME two.example.test.\ntwo.example.test. 30 IN SRV 0 1 6379 redis1.example.test.\n"
    ),
    "a dot": ";ANSWER\n_redis._tcp.example.test. 30 IN SRV 0 0 0 .\n",
    "no such name": SOA,
    "no data": SOA,
    "an alias to nowhere": ";ANSWER\n_redis._tcp.example.test. 30 IN CNAME one.example.test.\n" + SOA,
    "a referral": ";AUTHORITY\nexample.test. 9 IN NS ns.example.test.\n;ADDITIONAL\nns.example.test. 9 IN A 10.0.0.9\n",
    "a failure": "",
    "truncated": "",
}
FLAGS = {"a referral": "QR RD", "truncated": "QR AA TC RD"}
RCODES = {"no such name": "NXDOMAIN", "a failure": "SERVFAIL"}
VALID = [
    dns.message.from_text(
        HEAD.format(rcode=RCODES.get(what, "NOERROR"), flags=FLAGS.get(what, "QR AA RD")) + sections
    ).to_wire()
    for what, sections in MESSAGES.items()
]
EXTREMES = (
    b"\0",
    b"\xff",
    b"\xc0",
    b"\x80",
    b"\x3f",
    b"\0\0",
    b"\xff\xff",
    b"\xc0\x0c",
    b"\x7f\xff\xff\xff",
    b"\0\x21",
)


def mutant(rng, wire):
    """Return ``wire`` after up to three accidents; those that hit the id, or the header at all, are rare."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
        at = rng.randrange(rng.choice((2, 4, 12, 12, 40, 40, 40)) if len(wire) > 50 else 2, max(3, len(wire)))
        what = rng.randrange(7)
        if what == 0:
            wire = wire[:at] + bytes([rng.randrange(256)]) + wire[at + 1 :]
        elif what == 1:
            wire = wire[:at] + bytes([wire[at] ^ 1 << rng.randrange(8)]) + wire[at + 1 :] if at < len(wire) else wire
        elif what == 2:
            extreme = rng.choice(EXTREMES)
            wire = wire[:at] + extreme + wire[at + len(extreme) :]
        elif what == 3:
            wire = wire[:at] + struct.pack("!H", 0xC000 | rng.randrange(len(wire) + 3)) + wire[at + 2 :]
        elif what == 4:
            wire = wire[:at] + wire[at + rng.randrange(8) :]
        elif what == 5:
            wire = wire[:at] + wire[at : at + rng.randrange(30)] + wire[at:]
        else:
            wire = wire[:at] + rng.choice(VALID)[rng.randrange(12, 60) :] if rng.random() < 0.3 else wire[:at]
    return wire


def answer_to(rng, query):
    """Return an answer to ``query``, wholesome or not."""
    question = query[12:-11]  # without the OPT record at the end
    is_for_srv = question[-4:-2] == b"\0\x21"
    answer = query[:2] + (rng.choice(VALID) if is_for_srv else answer_for_addresses(rng, question))[2:]
    return mutant(rng, answer) if rng.random() < 0.9 else answer


def answer_for_addresses(rng, question):
    data = {b"\0\x01": b"\x0a\0\0\x63", b"\0\x1c": b"\0" * 15 + b"\x01"}[question[-4:-2]]
    answers = rng.randrange(3)
    record = b"\xc0\x0c" + question[-4:] + struct.pack("!IH", 60, len(data)) + data
    return struct.pack("!HHHHHH", 0, 0x8400, 1, answers, 0, 0) + question + record * answers


def test_a_datagram_that_went_wrong_is_taken_refused_or_ignored():
    rng = random.Random(1)
    request = dns.message.make_query(SERVICE, "SRV")
    outcomes = {"taken": 0, "ignored": 0, Lame: 0, dns.message.Truncated: 0}
    for number in range(40_000):
        wire = mutant(rng, request.id.to_bytes(2, "big") + rng.choice(VALID)[2:])
        try:
            reply = _accepted(request, wire)
        except (Lame, dns.message.Truncated) as error:
            outcomes[type(error)] += 1
        except Exception as error:
            raise AssertionError(f"message {number}: {wire.hex()}") from error
        else:
            assert reply is None or type(reply) is Reply
            outcomes["ignored" if reply is None else "taken"] += 1

    assert min(outcomes.values()) > 100, outcomes


def test_a_message_that_went_wrong_is_taken_or_malformed():
    rng = random.Random(2)
    outcomes = {"taken": 0, Malformed: 0}
    for number in range(20_000):
        wire = mutant(rng, rng.choice(VALID))
        try:
            _parsed(wire)
            outcomes["taken"] += 1
        except Malformed:
            outcomes[Malformed] += 1
        except (Lame, dns.message.Truncated):
            pass
        except Exception as error:
            raise AssertionError(f"message {number}: {wire.hex()}") from error

    assert min(outcomes.values()) > 1000, outcomes


class Answers:
    """The answers in one look-up, which depend on its number and the question alone, and what they name."""

    def __init__(self, number):
        self._number = number
        self.wires = []

    def to(self, query, transport):
        rng = random.Random(f"{self._number} {transport} {query[12:].hex()}")
        self.wires.append(answer_to(rng, query))
        return self.wires[-1]

    def check(self, endpoints):
        """See that dnspython finds them all in the answers, each with its port and addresses."""
        records = list(self._records())
        targets = {(rr.target.to_text().lower(), rr.port) for rr in records if rr.rdtype == dns.rdatatype.SRV}
        addresses = {canonical_ip(rr.address) for rr in records if rr.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)}
        for endpoint in endpoints:
            assert (f"{endpoint.name}.", endpoint.port) in targets
            assert endpoint.addresses == (endpoint.name,) or addresses.issuperset(endpoint.addresses)
            assert endpoint.addresses

    def _records(self):
        for wire in self.wires:
            if len(wire) < 12:
                continue
            # It reads the data of types that nobody has asked for as well, and minds what is wrong there.
            message = dns.message.from_wire(wire, continue_on_error=True)
            for rrset in (*message.answer, *message.additional):
                if rrset.rdclass == dns.rdataclass.IN:
                    yield from rrset


def outcome_of(answers, nameserver, over_tcp):
    """Return what a look-up brings, in one word. Anything but the three outcomes that are promised is an error."""
    resolver = DNSResolver([nameserver], timeout=10.0, lifetime=20.0)
    look_up = resolver.confirm if over_tcp else resolver.resolve
    try:
        told = look_up(SERVICE)
    except ResolutionError as error:
        told = error
    if isinstance(told, ResolutionError):
        assert str(told).startswith(f"{SERVICE} SRV: ")
        assert " from 127.0.0.1:" in str(told)
        assert not isinstance(told, NoRecords) or 0 <= told.ttl < 2**31
        return "denied" if isinstance(told, NoRecords) else "failed"
    assert isinstance(told, Resolution)
    assert 0 <= told.ttl < 2**31
    if told.endpoints:
        answers.check(told.endpoints)
    return "found" if told.endpoints else "unavailable"


class Wire:
    """A socket that brings an answer at once, and nothing more: the port is closed then, or the connection."""

    def __init__(self, answers, kind):
        self._answers = answers
        self._is_stream = kind == socket.SOCK_STREAM
        self._coming = b""
        self._is_over = False

    def __enter__(self):
        return self

    def __exit__(self, *_exc_info):
        pass

    def send(self, wire):
        self._coming = self._answers.to(wire, "udp")

    def sendall(self, wire):
        answer = self._answers.to(wire[2:], "tcp")
        self._coming = struct.pack("!H", len(answer)) + answer

    def recv(self, size):
        if self._is_over and not self._is_stream:
            raise ConnectionRefusedError("nothing more")
        self._is_over = True
        part, self._coming = self._coming[:size], self._coming[size:]
        return part


@pytest.mark.parametrize("over_tcp", [False, True])
def test_a_look_up_that_gets_wrong_answers_finds_denies_or_fails(over_tcp, monkeypatch):
    outcomes = dict.fromkeys(("found", "unavailable", "denied", "failed"), 0)
    for number in range(4_000):
        answers = Answers(number)
        monkeypatch.setattr(Nameserver, "_connect", lambda self, kind, answers=answers: Wire(answers, kind))
        try:
            outcomes[outcome_of(answers, ("127.0.0.1", 53), over_tcp)] += 1
        except Exception as error:
            raise AssertionError(f"look-up {number}: {[wire.hex() for wire in answers.wires]}") from error

    assert min(outcomes.values()) > 50, outcomes


class Mutants:
    """A name server whose answers may be wrong, each datagram followed by one that is right, and a failure."""

    def __init__(self):
        self.answers = Answers(0)
        self._tcp = StreamServer(("127.0.0.1", 0), self._serve, spawn=Pool())
        self._tcp.start()
        self.address = ("127.0.0.1", self._tcp.server_port)
        self._udp = DatagramServer(self.address, self._handle, spawn=Pool())
        self._udp.start()

    def stop(self):
        self._tcp.stop(timeout=0)
        self._udp.stop(timeout=0)

    def _handle(self, query, client):
        self._udp.sendto(self.answers.to(query, "udp"), client)
        response = dns.message.make_response(dns.message.from_wire(query))
        response.set_rcode(dns.rcode.SERVFAIL)
        self._udp.sendto(response.to_wire(), client)

    def _serve(self, connection, _client):
        with connection:
            try:
                (length,) = struct.unpack("!H", connection.recv(2))
                answer = self.answers.to(connection.recv(length), "tcp")
                connection.sendall(struct.pack("!H", len(answer)) + answer)
            except OSError:
                pass  # the client has gone


@pytest.mark.parametrize("over_tcp", [False, True])
def test_wrong_answers_on_real_sockets_are_no_worse(over_tcp):
    outcomes = dict.fromkeys(("found", "unavailable", "denied", "failed"), 0)
    server = Mutants()
    try:
        for number in range(300):
            server.answers = Answers(number)
            outcomes[outcome_of(server.answers, server.address, over_tcp)] += 1
    finally:
        server.stop()

    assert min(outcomes.values()) > 3, outcomes
