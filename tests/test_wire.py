"""DNS responses read from their bytes: rule by rule, and side by side with dnspython over messages gone wrong.

dnspython may only understand more than we do as told by ``theirs`` and ``is_known_refusal``; we may only understand
more than dnspython does where it has read, and found wrong, the data of a type of record that we skip.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from random import Random
from struct import pack, pack_into

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.version
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventconnpool.cluster import _wire
from geventconnpool.cluster._wire import SRV, Chain, Malformed, Question, Record, RRType, follow, parse, parse_header

# More for once: MUTANTS=200000 pytest -s tests/test_wire.py
MUTANTS = int(os.environ.get("MUTANTS", "10000"))

NAME = "_redis._tcp.example.test."
RESPONSE = 0x8180
IN = dns.rdataclass.IN
READ = frozenset(map(int, RRType))


# Messages, made by dnspython


def response(*answers, question=f"{NAME} SRV", authority=(), additional=(), rcode=0, flags="QR RD RA", options=None):
    """Return a response; records are text: ``owner ttl [class] type data``."""
    name, rdtype = question.split()
    message = dns.message.make_query(name, rdtype, id=7, use_edns=-1 if options is None else 0, options=options)
    message.flags = dns.flags.from_text(flags)
    for section, records in zip(message.sections[1:], (answers, authority, additional), strict=True):
        for number, record in enumerate(records):
            section.append(rrset(record, number))
    message.set_rcode(rcode)
    return message


def rrset(record, number=0):
    owner, ttl, rdtype, data = record.split(maxsplit=3)
    made = dns.rrset.from_text(owner, 0, "IN", rdtype, data)
    made.ttl = int(ttl)
    return made


def wire_of(*answers, **options):
    return response(*answers, **options).to_wire(max_size=65535)


def message(*counts, question=b"", rest=b"", flags=RESPONSE):
    """Return a message made by hand."""
    return pack("!HHHHHH", 7, flags, *counts) + question + rest


def record(owner=b"\0", rdtype=1, rdclass=1, ttl=60, data=b"\x0a\0\0\1", size=None):
    return owner + pack("!HHIH", rdtype, rdclass, ttl, len(data) if size is None else size) + data


def labels(*texts):
    return b"".join(bytes([len(text)]) + text for text in texts)


def question_named(name):
    return message(1, 0, 0, 0, question=name + b"\0\x21\0\1")


def name_at(wire):
    return parse_header(wire).question[0].name


def refusal(function, argument):
    with pytest.raises(Malformed) as raised:
        function(argument)
    return str(raised.value)


# Header and question


def test_a_response_is_read():
    reply = parse(
        wire_of(
            f"{NAME} 60 SRV 1 2 6379 Redis1.Example.test.",
            authority=["example.test. 30 NS ns.example.test."],
            additional=["redis1.example.test. 20 A 10.0.0.1", "redis1.example.test. 10 AAAA 2001:db8::1"],
            options=[],
        )
    )

    assert (reply.id, reply.rcode, reply.is_truncated) == (7, 0, False)
    assert reply.question == (Question(NAME, RRType.SRV, _wire.IN),)
    assert reply.answers == [Record(NAME, RRType.SRV, 60, SRV(1, 2, 6379, "redis1.example.test."))]
    assert reply.authority == [Record("example.test.", 2, 30, None)]
    assert reply.additional == [
        Record("redis1.example.test.", RRType.A, 20, "10.0.0.1"),
        Record("redis1.example.test.", RRType.AAAA, 10, "2001:db8::1"),
    ]


def test_a_header_is_read_whatever_follows():
    wire = wire_of(f"{NAME} 60 SRV 1 2 6379 redis1.example.test.", flags="QR TC")[:-5]

    header = parse_header(wire)

    assert (header.id, header.question, header.is_truncated) == (7, (Question(NAME, RRType.SRV, _wire.IN),), True)
    assert refusal(parse, wire) == "the message is cut short"


def test_a_truncated_message_is_read_if_it_is_whole():
    assert parse(wire_of(flags="QR TC")).is_truncated


@pytest.mark.parametrize("length", range(12 + len(NAME) + 1 + 4))
def test_nothing_is_read_of_half_a_question(length):
    wire = wire_of()[:length]

    assert refusal(parse_header, wire) == "the message is cut short"


@pytest.mark.parametrize("flags", [0x0100, 0x0000, 0x9000, 0xA800, 0xF800], ids=hex)
def test_what_is_no_response_to_a_query_is_refused(flags):
    assert refusal(parse_header, message(0, 0, 0, 0, flags=flags)) == "not a response to a query"


def test_every_question_is_read():
    header = parse_header(message(2, 0, 0, 0, question=labels(b"a") + b"\0\0\1\0\1" + b"\xc0\x0c\0\x1c\0\3"))

    assert header.question == (Question("a.", 1, 1), Question("a.", 28, 3))


# Names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"\0", "."),
        (labels(b"WWW", b"Example") + b"\0", "www.example."),
        (labels(b"a.b", b"c") + b"\0", r"a\.b.c."),
        (labels(b'"();@$\\') + b"\0", r"\"\(\)\;\@\$\\."),
        (labels(b"\0 \x1f\x7f\xff~!") + b"\0", r"\000\032\031\127\255~!."),
        (labels(b"X" * 31, b"Y" * 32, b"z" * 63) + b"\0", f"{'x' * 31}.{'y' * 32}.{'z' * 63}."),
        # Lengths that are printable, content that looks like the length of a label.
        (labels(b"a", b"b" * 20 + b"\1" + b"c" * 22) + b"\0", rf"a.{'b' * 20}\001{'c' * 22}."),
    ],
    ids=repr,
)
def test_names_are_absolute_lower_case_and_escaped_like_those_of_dnspython(name, text):
    wire = question_named(name)

    assert name_at(wire) == text
    assert name_at(wire) == dns.message.from_wire(wire).question[0].name.to_text().lower()


def test_a_name_has_255_octets_at_most():
    longest = labels(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61) + b"\0"

    assert len(name_at(question_named(longest))) == 254
    assert refusal(parse, question_named(longest[:192] + labels(b"d" * 62) + b"\0")) == "a name is too long"


def test_a_name_has_255_octets_at_most_behind_pointers_too():
    wire = message(2, 0, 0, 0, question=labels(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61) + b"\0" + b"\0\1\0\1")

    assert refusal(parse, wire + b"\1e\xc0\x0c\0\1\0\1") == "a name is too long"


@pytest.mark.parametrize("size", [64, 127, 128, 191])
def test_labels_of_other_types_are_refused(size):
    assert refusal(parse, question_named(bytes([size]) + bytes(200))) == "a label of unknown type"


def pointing(*targets):
    """Return a message whose questions' names are "a." and then pointers, each 6 octets behind the other, from 19."""
    questions = b"".join(pack("!HHH", 0xC000 | target, 1, 1) for target in targets)
    return message(1 + len(targets), 0, 0, 0, question=b"\1a\0\0\1\0\1" + questions)


def test_a_pointer_leads_to_a_name_or_the_rest_of_one():
    assert [name for name, _, _ in parse(pointing(12, 14, 19)).question] == ["a.", "a.", ".", "a."]


@pytest.mark.parametrize("target", [19, 20, 25, 16000], ids=["itself", "into itself", "ahead", "beyond the end"])
def test_a_pointer_that_does_not_lead_back_is_refused(target):
    refusal(parse, pointing(target, 12))


def test_what_a_pointer_leads_to_ends_before_the_name_with_the_pointer():
    # Both lead to 16. There the first finds a label, the second a pointer (to the root at 4) with its own first octet.
    label = message(2, 0, 0, 0, question=b"\0\0\1\0\1" + b"\1\0\xc0\x10\0\1\0\1")
    pointer = message(2, 0, 0, 0, question=b"\0\0\1\0\xc0" + b"\4name\xc0\x10\0\1\0\1")

    assert refusal(parse, label) == "a pointer to what does not end before it"
    assert refusal(parse, pointer) == "a pointer to what does not end before it"


def test_a_pointer_reaches_16_kilobytes():
    padding = record(rdtype=16, data=bytes(16383 - 12 - 11))

    assert parse(message(0, 3, 0, 0, rest=padding + record(b"\1a\0") + record(b"\xff\xff"))).answers[2].owner == "a."


def test_sixteen_pointers_may_follow_each_other():
    targets = [12, *range(19, 19 + 6 * 15, 6)]

    assert parse(pointing(*targets)).question[-1].name == "a."
    assert refusal(parse, pointing(*targets, 19 + 6 * 15)) == "too many pointers"


# Data


@pytest.mark.parametrize(
    "address",
    [
        *("::", "::1", "::ffff:1.2.3.4", "::1.2.3.4", "::ffff:0:1.2.3.4", "64:ff9b::102:304", "2001:db8:0:1:2:3:4:5"),
        *("1:0:0:2:0:0:0:3", "0:0:1:0:0:1:1:1", "1:0:0:2:0:0:3:4", "0:1:2:3:4:5:6:7", "1:2:3:4:5:6:7:0"),
    ],
)
def test_addresses_are_in_canonical_text(address):
    (found,) = parse(message(0, 1, 0, 0, rest=record(rdtype=28, data=ip_address(address).packed))).answers

    assert found.data == str(ip_address(address))


@pytest.mark.parametrize(
    ("rdtype", "data"),
    [
        (RRType.A, b"\x0a\0\0\1"),
        (RRType.AAAA, bytes(16)),
        (RRType.CNAME, b"\1a\0"),
        (RRType.SRV, b"\0\1\0\2\0\3\1a\0"),
        (RRType.SOA, b"\1a\0\1b\0" + bytes(20)),
    ],
)
def test_data_is_exactly_as_long_as_it_says(rdtype, data):
    def wire(size):
        return message(0, 1, 0, 0, rest=record(rdtype=rdtype, data=data, size=size) + bytes(max(0, size - len(data))))

    assert len(parse(wire(len(data))).answers) == 1
    for size in (0, len(data) - 1, len(data) + 1, 65535):
        assert refusal(parse, wire(size)) == "the data of a record is not as long as that says"


@pytest.mark.parametrize("rdclass", [3, 254, 255, 1232])
def test_records_of_other_classes_are_skipped(rdclass):
    assert parse(message(0, 1, 0, 0, rest=record(rdclass=rdclass, data=b"what"))).answers == []
    assert refusal(parse, message(0, 1, 0, 0, rest=record(rdclass=rdclass, data=b"what", size=5)))


def test_data_of_other_types_is_skipped():
    assert parse(message(0, 1, 0, 0, rest=record(rdtype=15, data=b"?"))).answers == [Record(".", 15, 60, None)]


@pytest.mark.parametrize(("ttl", "read"), [(0, 0), (2**31 - 1, 2**31 - 1), (2**31, 0), (2**32 - 1, 0)])
def test_a_ttl_beyond_31_bits_is_zero(ttl, read):
    assert parse(message(0, 1, 0, 0, rest=record(ttl=ttl))).answers[0].ttl == read


@pytest.mark.parametrize("rest", [b"", record() + b"\0", record()[:-1], record() * 2])
def test_there_are_as_many_records_as_the_header_says(rest):
    refusal(parse, message(0, 1, 0, 0, rest=rest))


# OPT and TSIG


def test_an_opt_record_extends_the_response_code():
    reply = parse(wire_of(rcode=dns.rcode.BADVERS, options=[]))

    assert (reply.rcode, reply.additional) == (16, [])


OPT = record(rdtype=41, rdclass=1232, ttl=0, data=b"")


@pytest.mark.parametrize(
    "wire",
    [
        message(0, 1, 0, 0, rest=OPT),
        message(0, 0, 1, 0, rest=OPT),
        message(0, 0, 0, 2, rest=OPT * 2),
        message(0, 0, 0, 1, rest=b"\1a" + OPT),
    ],
    ids=["answers", "authority", "twice", "owned"],
)
def test_an_opt_record_out_of_place_is_refused(wire):
    assert refusal(parse, wire) == "an OPT record out of place"


@pytest.mark.parametrize("rdclass", [1, 255])
def test_a_signature_is_refused(rdclass):
    # As dnspython does without a key; none is ever asked for.
    wire = message(0, 0, 0, 1, rest=record(rdtype=250, rdclass=rdclass, data=b""))

    assert refusal(parse, wire) == "a signature that was not asked for"


# Answers


def chain_of(*answers, **options):
    return follow(parse(wire_of(*answers, **options)))


def test_an_answer_has_every_record_once_and_their_least_ttl():
    chain = chain_of(
        f"{NAME} 60 SRV 0 1 2 b.test.", f"{NAME} 30 SRV 0 1 2 a.test.", f"{NAME.upper()} 90 SRV 0 1 2 B.test."
    )

    assert chain == Chain(NAME, (SRV(0, 1, 2, "b.test."), SRV(0, 1, 2, "a.test.")), 30, has_soa=False)


def aliases(number):
    return [f"a{n}.test. {90 - n} CNAME a{n + 1}.test." for n in range(number)]


def test_aliases_are_followed():
    chain = chain_of("a3.test. 300 A 10.0.0.1", *aliases(3), "a9.test. 1 A 10.0.0.9", question="a0.test. A")

    assert chain == Chain("a3.test.", ("10.0.0.1",), 88, has_soa=False)


def test_sixteen_aliases_are_too_many():
    assert chain_of(*aliases(15), question="a0.test. A").name == "a15.test."
    assert refusal(follow, parse(wire_of(*aliases(16), question="a0.test. A"))) == "the chain of aliases is too long"


def test_aliases_in_a_circle_are_refused():
    wire = wire_of("a.test. 9 CNAME b.test.", "b.test. 9 CNAME a.test.", question="a.test. A")

    assert refusal(follow, parse(wire)) == "the chain of aliases is too long"


def test_of_several_aliases_the_last_counts_and_the_least_ttl():
    chain = chain_of(
        *("a.test. 9 CNAME b.test.", "a.test. 20 CNAME c.test.", "b.test. 60 A 10.0.0.2", "c.test. 60 A 10.0.0.3"),
        question="a.test. A",
    )

    assert chain == Chain("c.test.", ("10.0.0.3",), 9, has_soa=False)


def test_an_alias_that_was_asked_for_is_not_followed():
    assert chain_of(*aliases(2), question="a0.test. CNAME") == Chain("a0.test.", ("a1.test.",), 90, has_soa=False)


@pytest.mark.parametrize(("ttl", "minimum", "holds"), [(60, 20, 20), (20, 60, 20), (2**31, 60, 0), (60, 2**32 - 1, 60)])
def test_an_absence_holds_as_long_as_the_soa_record_says(ttl, minimum, holds):
    soa = f"test. {ttl} SOA ns.test. root.test. 1 2 3 4 {minimum}"

    assert chain_of(authority=[soa], rcode=3) == Chain(NAME, (), holds, has_soa=True)


def test_the_soa_record_of_the_closest_zone_counts():
    zones = [r".", "test.", r"b.test.", r"x\.b.test.", r"a.x\.b.test.", "c.b.test."]
    authority = [f"{zone} {ttl} SOA . . 1 2 3 4 99" for ttl, zone in enumerate(zones)]

    assert chain_of(authority=authority, question=r"y.x\.b.test. A").ttl == 3
    assert chain_of(authority=authority, question=r"x\\.b.test. A").ttl == 2
    assert chain_of(authority=authority, question=r"y\.b.test. A").ttl == 1
    assert chain_of(authority=authority, question="example. A").ttl == 0


def test_an_absence_nobody_answers_for_does_not_hold():
    assert chain_of(authority=["else. 60 SOA . . 1 2 3 4 60"]) == Chain(NAME, (), 0, has_soa=False)
    assert chain_of("a.test. 9 CNAME b.test.", question="a.test. A") == Chain("b.test.", (), 0, has_soa=False)


def test_a_name_that_does_not_exist_has_no_records():
    wire = wire_of(f"{NAME} 60 SRV 0 0 0 .", rcode=dns.rcode.NXDOMAIN)

    assert refusal(follow, parse(wire)) == "a name that does not exist has records"


@pytest.mark.parametrize(
    "wire",
    [message(0, 0, 0, 0), pointing(12), message(1, 0, 0, 0, question=b"\0\0\1\0\3"), wire_of(question="a.test. TXT")],
    ids=["none", "two", "class CH", "type TXT"],
)
def test_only_one_question_that_can_be_answered_is(wire):
    assert refusal(follow, parse(wire)) == "not one question for a known type of record"


# Side by side with dnspython


def ours(wire):
    """Return what we understand, None if nothing."""
    try:
        reply = parse(wire)
    except Malformed:
        return None
    sections = {}
    for number, records in enumerate((reply.answers, reply.authority, reply.additional)):
        for owner, rdtype in dict.fromkeys((r.owner, r.rdtype) for r in records if r.data is not None):
            sections[number, owner, rdtype] = _wire._rrset(records, owner, rdtype)
    assert parse_header(wire).question == reply.question
    return reply.id, reply.flags, reply.rcode, reply.question, sections, answer(reply)


def answer(reply):
    try:
        return follow(reply)
    except Malformed:
        return None


def theirs(wire):
    """Return what dnspython understands, in our terms, None if nothing or if it would not take it for a response."""
    try:
        message = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return None
    if not message.flags & dns.flags.QR or message.opcode() != dns.opcode.QUERY:
        return None
    sections = {
        (number, text(rrset.name), int(rrset.rdtype)): (tuple(map(data, rrset)), rrset.ttl)
        for number, section in enumerate(message.sections[1:])
        for rrset in section
        if rrset.rdclass == IN and rrset.rdtype in READ
    }
    question = tuple((text(rrset.name), int(rrset.rdtype), int(rrset.rdclass)) for rrset in message.question)
    return message.id, int(message.flags), int(message.rcode()), question, sections, their_answer(message)


def their_answer(message):
    # We answer but one question, for what we read.
    if [(rrset.rdclass, rrset.rdtype in READ) for rrset in message.question] != [(IN, True)]:
        return None
    try:
        result = message.resolve_chaining()
    except dns.exception.DNSException:
        return None
    if result.answer is not None:
        return text(result.canonical_name), tuple(map(data, result.answer)), result.minimum_ttl, False
    zones = {rrset.name for rrset in message.authority if (rrset.rdclass, rrset.rdtype) == (IN, RRType.SOA)}
    has_soa = any(result.canonical_name.is_subdomain(zone) for zone in zones)
    # Without an SOA record dnspython makes a TTL up, we do not.
    return text(result.canonical_name), (), result.minimum_ttl if has_soa else 0, has_soa


def text(name):
    return name.to_text().lower()


def data(rd):
    if rd.rdtype == RRType.SRV:
        return SRV(rd.priority, rd.weight, rd.port, text(rd.target))
    if rd.rdtype == RRType.CNAME:
        return text(rd.target)
    return rd.minimum if rd.rdtype == RRType.SOA else str(ip_address(rd.address))


@contextmanager
def other_data_skipped() -> Iterator[None]:
    """Make dnspython read no more data than we do."""
    read = dns.rdata.get_rdata_class

    def read_by_us(rdclass, rdtype, *args):
        return read(rdclass, rdtype, *args) if rdclass == IN and rdtype in READ else dns.rdata.GenericRdata

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dns.rdata, "get_rdata_class", read_by_us)
        yield


def is_known_refusal(wire):
    """Tell whether we refuse ``wire`` for its pointers, of which older dnspython accepts more."""
    return (dns.version.MAJOR, dns.version.MINOR) < (2, 9) and "pointer" in refusal(parse, wire)


def compare(wire):
    """Return how the two have understood ``wire``, after seeing that they agree."""
    we, they = ours(wire), theirs(wire)
    if we == they:
        return "refused" if we is None else "understood, no answer" if we[-1] is None else "understood, an answer"
    if we is None:
        assert is_known_refusal(wire), f"refused by us only: {wire.hex()}"
        return "refused by us, and by dnspython since 2.9"
    assert they is None, f"not understood alike: {wire.hex()}"
    with other_data_skipped():
        assert we == theirs(wire), f"understood by us only, or not alike: {wire.hex()}"
    return "understood, where dnspython refuses what we skip"


def corpus():
    srv = [f"{NAME} 60 SRV {n % 2} {n} 6379 Redis{n}.example.test." for n in range(4)]
    addresses = [f"redis{n}.example.test. {9 + n} A 10.0.0.{n}" for n in range(4)]
    soa = "example.test. 90 SOA ns.example.test. root.example.test. 1 2 3 4 30"
    options = [
        dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"client00"),
        dns.edns.EDEOption(18, "Prohibited"),
        dns.edns.ECSOption("::", 0),
    ]
    yield wire_of(*srv, additional=[*addresses, "redis0.example.test. 9 AAAA ::ffff:1.2.3.4"], options=[])
    yield wire_of(*srv[:1], options=options)
    yield wire_of(*aliases(3), "a3.test. 5 A 10.0.0.1", "a3.test. 4 AAAA 2001:db8::1", question="A0.test. A")
    yield wire_of(*aliases(16), question="a0.test. AAAA")
    yield wire_of("a.test. 5 CNAME b.test.", question="a.test. CNAME")
    yield wire_of("a.test. 5 A 1.2.3.4", "a.test. 2147483648 A 1.2.3.4", "a.test. 3 A 1.2.3.5", question="a.test. A")
    yield wire_of(authority=[soa], rcode=3, options=options[:1])
    yield wire_of("a.test. 5 CNAME a.example.test.", authority=[soa, soa], question="a.test. AAAA")
    yield wire_of(soa, question="example.test. SOA")
    yield wire_of(flags="QR TC AA", options=[])
    yield wire_of(rcode=dns.rcode.BADVERS, options=[])
    yield wire_of(authority=["test. 9 NS ns.test."], additional=["ns.test. 9 A 10.0.0.1"])
    yield wire_of(*(f"{NAME} 4294967295 SRV 0 0 0 {name}." for name in (r"a\.b", r"\000\255", r"\"\\\$", "x" * 63, "")))
    yield wire_of(
        f"{NAME} 5 TXT one two", f"{NAME} 9 MX 1 mx.test.", f"{NAME} 9 CAA 0 issue ca", question=f"{NAME} TXT"
    )
    yield message(
        1, 3, 0, 1, question=b"\1a\0\0\1\0\1", rest=record(b"\xc0\x0c", rdclass=3) + record(b"\xc0\x0c") * 2 + OPT
    )
    yield message(1, 2, 0, 0, question=b"\1a\0\0\5\0\1", rest=record(b"\xc0\x0c", 5, data=b"\1b\xc0\x0c") * 2)


class Scribe:
    """Writes messages out of few names, with pointers to wherever a name or a rest of one is, and other types."""

    def __init__(self, random):
        self.random = random
        self.wire = bytearray(12)
        self.places = []

    def name(
        self,
        pieces=(b"a", b"a", b"A", b"b", b"b", b"b", b"c", b"a.b", b"\0\xff", b"Q" * 31, b"q" * 40, b"!" * 63, b"x\1y"),
    ):
        before = self.places[:4] if self.random.random() < 0.9 else self.places[:]
        for _ in range(self.random.choice((0, 0, 1, 1, 1, 2, 3, self.random.randrange(20)))):
            self.places.append(len(self.wire))
            self.wire += labels(self.random.choice(pieces))
        if before and self.random.random() < 0.8:
            self.places.append(len(self.wire))
            self.wire += pack("!H", 0xC000 | self.random.choice(before))
        else:
            self.wire += b"\0"

    def record(self):
        self.name()
        rdtype = self.random.choice((1, 1, 5, 5, 6, 28, 33, 33, 16, 2))
        self.wire += pack(
            "!HHIH", rdtype, self.random.choice((1,) * 9 + (3,)), self.random.choice((0, 5, 60, 2**31)), 0
        )
        start = len(self.wire)
        getattr(self, f"data_{rdtype}", self.name)()
        pack_into("!H", self.wire, start - 2, len(self.wire) - start)

    def data_1(self):
        self.wire += bytes([10, 0, 0, self.random.randrange(3)])

    def data_28(self):
        self.wire += bytes(self.random.choice((0, 0, 0, 1, 255)) for _ in range(16))

    def data_33(self):
        self.wire += bytes(self.random.choice((0, 1)) for _ in range(6))
        self.name()

    def data_6(self):
        self.name()
        self.name()
        self.wire += self.random.randbytes(20)

    def data_16(self):
        self.wire += b"\2hi"

    def message(self):
        self.name()
        self.wire += pack("!HH", self.random.choice((1, 5, 6, 28, 33)), 1)
        counts = [self.random.choice((0, 1, 1, 3)) for _ in range(3)]
        for _ in range(sum(counts)):
            self.record()
        if self.random.random() < 0.3:
            counts[2] += 1
            self.wire += record(rdtype=41, rdclass=1232, ttl=self.random.choice((0, 1 << 24)), data=b"")
        pack_into("!HHHHHH", self.wire, 0, 7, RESPONSE | self.random.choice((0, 0, 3)), 1, *counts)
        return bytes(self.wire)


def mutated(random, wire, others):
    """Return ``wire`` with something done to it."""
    at = random.randrange(len(wire) + 1)
    to = min(len(wire), at + random.randrange(1, 12))
    other = random.choice(others)
    return random.choice(
        (
            lambda: (
                wire[:at] + bytes([wire[at] ^ 1 << random.randrange(8)]) + wire[at + 1 :] if at < len(wire) else wire
            ),
            lambda: wire[:at] + random.choice((b"\0", b"\1", b"\x3f", b"\x40", b"\xc0", b"\xff")) + wire[at + 1 :],
            lambda: wire[:at] + pack("!H", 0xC000 | random.randrange(len(wire) + 2)) + wire[at + 2 :],
            lambda: wire[:at] + pack("!H", random.choice((0, 1, 4, 5, 6, 16, 28, 33, 41, 250, 255))) + wire[at + 2 :],
            lambda: wire[: 4 + at % 8] + random.choice((b"\0", b"\1", b"\2", b"\3", b"\xff")) + wire[5 + at % 8 :],
            lambda: wire[:at],
            lambda: wire[:at] + wire[to:],
            lambda: wire[:at] + random.randbytes(to - at) + wire[at:],
            lambda: wire[:at] + wire[at:to] + wire[at:],
            lambda: wire[:at] + other[at:],
            lambda: wire[:at] + other[random.randrange(len(other)) :],
        )
    )()


def test_whole_messages_are_understood_as_dnspython_does():
    assert {compare(wire)[:10] for wire in corpus()} == {"understood"}


@pytest.mark.bound(60 + MUTANTS // 200)
def test_messages_gone_wrong_are_understood_or_refused_as_dnspython_does():
    random, whole, found = Random(2782), list(corpus()), Counter()
    for number in range(MUTANTS):
        wire = random.choice(whole) if number % 3 else Scribe(random).message()
        for _ in range(random.choice((0, 1, 1, 1, 2, 3)) if number % 3 else random.choice((0, 0, 1, 2))):
            wire = mutated(random, wire, whole)
        found[compare(wire)] += 1
    print(f"of {MUTANTS}: {', '.join(f'{count} {kind}' for kind, count in sorted(found.items()))}")

    # None of these is too rare to say anything.
    assert found["refused"] > MUTANTS / 5
    assert found["understood, an answer"] > MUTANTS / 10
    assert found["understood, no answer"] > MUTANTS / 100
    assert found["understood, where dnspython refuses what we skip"] > MUTANTS / 500


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.lists(st.integers(0, 3), min_size=4, max_size=4), st.booleans())
def test_any_octets_are_understood_or_refused(octets, counts, have_header):
    compare(message(*counts, rest=octets) if have_header else octets)


# Made to cost time


def pointers_everywhere(size=1, count=5000):
    """Return a message in which many a place in 16 KB is pointed to, of which nearly each begins a long name."""
    names = (bytes([size]) * (250 - size) + bytes(1 + size)) * 60
    pointers = b"".join(record(pack("!H", 0xC000 | 23 + 3 * n), 16, data=b"") for n in range(count))
    return message(0, 1 + count, 0, 0, rest=record(rdtype=16, data=names) + pointers)


def chain_of_pointers():
    """Return a message with 8,000 pointers, each to the one before."""
    pointers = b"".join(pack("!H", 0xC000 | at - 2) for at in range(24, 16000, 2))
    return message(0, 2, 0, 0, rest=record(rdtype=16, data=b"\0" + pointers) + record(b"\xfe\x70"))


def many(one, section=1, question=b"\1a"):
    count = (65535 - 300) // len(one)
    counts = [count if number == section else 0 for number in (1, 2, 3)]
    return message(1, *counts, question=question + b"\0\0\1\0\1", rest=one * count)


HOSTILE = {
    "pointers to short labels": pointers_everywhere(),
    "pointers to long labels": pointers_everywhere(31),
    "pointers to longest labels": pointers_everywhere(63),
    "not too many pointers": pointers_everywhere(count=450),
    "chain of pointers": chain_of_pointers(),
    "pointer to itself": many(record(b"\xc0\x13")),
    "tiny records": many(record(rdtype=16, data=b"")),
    "records by pointer": many(record(b"\xc0\x0c")),
    "circle": many(record(b"\xc0\x0c", 5, data=b"\xc0\x0c")),
    "zones": many(record(b"\1a\0", 6, data=bytes(22)), section=2, question=labels(*[b"."] * 126)),
    "unprintable owners": many(record(labels(*[b"\xff" * 60] * 4) + b"\0", data=b"\0" * 4)),
    "counts": message(65535, 65535, 65535, 65535),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_message_takes_long(kind):
    started = time.thread_time()  # which goes on only while we do
    try:
        follow(parse(HOSTILE[kind]))
    except Malformed as reason:
        print(f"{kind}: refused: {reason}")
    took = time.thread_time() - started
    print(f"{kind}: {len(HOSTILE[kind])} octets in {1000 * took:.1f} ms")

    assert took < 0.5


def test_pointers_that_spell_out_the_message_over_and_over_are_refused():
    assert refusal(parse, HOSTILE["pointers to short labels"]) == "too many pointers"
