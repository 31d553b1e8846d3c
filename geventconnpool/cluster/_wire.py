"""What a DNS response says, read from its bytes: fast, strict, and no more than discovery needs. Pure.

dnspython reads every type of record there is, at some 70 us per SRV record: a service of 1,100 targets would stall the
hub for 75 ms whenever it is looked up. This takes a twenty-fifth of that. What is refused, and how the rest is
understood, is the same; tests/test_wire.py holds the two side by side. Messages and names are those of RFC 1035,
section 4, SRV records of RFC 2782, negative answers of RFC 2308, extended response codes of RFC 6891. The data of other
types of record is skipped unread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address
from socket import AF_INET6, inet_ntoa, inet_ntop
from struct import Struct, error
from typing import NamedTuple, cast

IN = 1
NXDOMAIN = 3
_OPT, _TSIG = 41, 250
_QR_AND_OPCODE, _RESPONSE_TO_QUERY, _TC = 0xF800, 0x8000, 0x0200
_MAX_TTL = 2**31 - 1  # what is more means 0 (RFC 2181, section 8)
_MAX_NAME = 255
_MAX_POINTERS = 16  # in one name
_MAX_ALIASES = 16
# Octets of names behind pointers, which reach 16 KB. No sane message spells those out four times; one that is made to
# cost time points at each of them.
_MAX_SPELT = 4 << 14

_header_fields = Struct("!HHHHHH").unpack_from
_question_fields = Struct("!HH").unpack_from
_record_fields = Struct("!HHIH").unpack_from
_a_fields = Struct("!4s").unpack_from
_aaaa_fields = Struct("!16s").unpack_from
_srv_fields = Struct("!HHH").unpack_from
_soa_fields = Struct("!16xI").unpack_from
# Named tuples without the call of a Python function that makes them: a quarter of all time.
_new = tuple.__new__

# The text of each octet of a label, in lower case, escaped as dnspython does it.
_TEXT = [
    f"\\{chr(octet)}" if octet in b'"().;\\@$' else chr(octet).lower() if 0x20 < octet < 0x7F else f"\\{octet:03}"
    for octet in range(256)
]
# The same for whole names, where what needs more than a character, as do lengths below 32, becomes a dot.
_TEXT_OR_DOT = bytes(ord(text) if len(text) == 1 else ord(".") for text in _TEXT)


class Malformed(ValueError):
    """This is no well-formed response to a query; the message says why."""


class RRType(IntEnum):
    """The types of record whose data is read."""

    A = 1
    CNAME = 5
    SOA = 6
    AAAA = 28
    SRV = 33


class SRV(NamedTuple):
    """The data of an SRV record."""

    priority: int
    weight: int
    port: int
    target: str


Data = str | SRV | int | None


class Record(NamedTuple):
    """A record of class IN. Names are absolute, in lower case, and escaped as dnspython does it.

    ``data`` is the canonical text of an address (A, AAAA), a name (CNAME), an :class:`SRV`, or the minimum of an SOA;
    None for other types.
    """

    owner: str
    rdtype: int
    ttl: int
    data: Data


class Question(NamedTuple):
    """What was asked for."""

    name: str
    rdtype: int
    rdclass: int


@dataclass(frozen=True, slots=True)
class Header:
    """The beginning of a response: what it answers, and whether the rest is worth reading."""

    id: int
    flags: int
    question: tuple[Question, ...]

    @property
    def is_truncated(self) -> bool:
        """Whether there is more to say than fits: to be asked again over TCP."""
        return bool(self.flags & _TC)


@dataclass(frozen=True, slots=True)
class Reply(Header):
    """A response. An OPT record is not among the ``additional``; its part of the ``rcode`` is in that."""

    rcode: int
    answers: list[Record]
    authority: list[Record]
    additional: list[Record]


class Chain(NamedTuple):
    """The answer to a question: the data found at the end of the chain of aliases, each once, and how long it holds.

    Without ``data`` that is how long its absence holds (RFC 2308, section 5): not at all unless an SOA record says so.
    """

    name: str
    data: tuple[Data, ...]
    ttl: int
    has_soa: bool


def parse_header(wire: bytes) -> Header:
    """Return the header and question of a response, whatever follows. Raises :class:`Malformed`."""
    try:
        return _header(_Names(wire))[0]
    except (IndexError, error):
        raise Malformed("the message is cut short") from None


def parse(wire: bytes) -> Reply:
    """Return all that a response says. Raises :class:`Malformed`, also for one that is truncated amid a record."""
    try:
        return _reply(_Names(wire))
    except (IndexError, error):
        raise Malformed("the message is cut short") from None


def follow(reply: Reply) -> Chain:
    """Return the answer to the question, which must be one, of class IN, and for a type whose data is read.

    Raises :class:`Malformed` if it is not, and for aliases without end or records of a name that does not exist.
    """
    if len(reply.question) != 1 or reply.question[0].rdclass != IN or reply.question[0].rdtype not in _READERS:
        raise Malformed("not one question for a known type of record")
    name, rdtype, _ = reply.question[0]
    ttl = _MAX_TTL
    for _ in range(_MAX_ALIASES):
        data, at_most = _rrset(reply.answers, name, rdtype)
        if data and reply.rcode == NXDOMAIN:
            raise Malformed("a name that does not exist has records")
        if data:
            return Chain(name, data, min(ttl, at_most), has_soa=False)
        alias, at_most = _rrset(reply.answers, name, RRType.CNAME)
        if not alias:
            minimum = _negative_ttl(reply.authority, name)
            return Chain(name, (), min(ttl, minimum or 0), minimum is not None)
        name, ttl = cast(str, alias[0]), min(ttl, at_most)
    raise Malformed("the chain of aliases is too long")


def _rrset(records: Sequence[Record], owner: str, rdtype: int) -> tuple[tuple[Data, ...], int]:
    """Return the data, each once, and the least TTL, though all should be the same (RFC 2181, section 5.2)."""
    found = [record for record in records if record.owner == owner and record.rdtype == rdtype]
    ttl = min((record.ttl for record in found), default=_MAX_TTL)
    if rdtype in (RRType.CNAME, RRType.SOA):  # of which there is one: the last, as dnspython has it
        del found[:-1]
    return tuple(dict.fromkeys(record.data for record in found)), ttl


def _negative_ttl(authority: Sequence[Record], name: str) -> int | None:
    """Return for how long there is no such name or type, by the SOA record closest above it."""
    zones = {record.owner for record in authority if record.rdtype == RRType.SOA}
    while name not in zones:
        if name == ".":
            return None
        name = _parent(name)
    (minimum,), ttl = _rrset(authority, name, RRType.SOA)
    return min(ttl, cast(int, minimum))


def _parent(name: str) -> str:
    dot = name.index(".")
    while (dot - len(name[:dot].rstrip("\\"))) % 2:  # it is escaped: part of the label
        dot = name.index(".", dot + 1)
    return name[dot + 1 :] or "."


# The text; where it ends, or its first pointer does; the length without compression; how many pointers led to its end.
_Name = tuple[str, int, int, int]


class _Names:
    """The names in a message. What pointers lead to is spelt once."""

    __slots__ = ("_spelt", "_targets", "wire")

    def __init__(self, wire: bytes) -> None:
        self.wire = wire
        self._targets: dict[int, _Name] = {}
        self._spelt = 0

    def read(self, at: int, depth: int = 0) -> _Name:
        """Return the name at ``at``, or the rest of one that ``depth`` pointers have led to."""
        wire, start, labels = self.wire, at, 0
        while 0 < (size := wire[at]) < 64:
            at += 1 + size
            labels += 1 if size < 32 else 1000  # whose length becomes no dot below, where these shall not add up
        name, end, length, pointers = self._behind(at, start, depth) if size else (".", at + 1, 1, 0)
        if labels:
            length += at - start
            if length > _MAX_NAME:
                raise Malformed("a name is too long")
            text = wire[start + 1 : at].translate(_TEXT_OR_DOT).decode()
            if text.count(".") != labels - 1:  # one for each length but the first: nothing else became a dot
                text = _escaped(wire[start:at])
            name = f"{text}.{name}" if name != "." else f"{text}."
        return name, end, length, pointers

    def _behind(self, at: int, start: int, depth: int) -> _Name:
        """Return what the pointer at ``at`` leads to, in a name, or the rest of one, that begins at ``start``."""
        size, low = self.wire[at], self.wire[at + 1]
        if size < 192:
            raise Malformed("a label of unknown type")
        target = (size & 63) << 8 | low
        if target not in self._targets:
            if depth == _MAX_POINTERS or self._spelt > _MAX_SPELT:
                raise Malformed("too many pointers")
            self._targets[target] = self.read(target, depth + 1)
            self._spelt += self._targets[target][2]
        name, end, length, pointers = self._targets[target]
        if end > start:
            raise Malformed("a pointer to what does not end before it")
        if depth + pointers >= _MAX_POINTERS:
            raise Malformed("too many pointers")
        return name, at + 2, length, pointers + 1


def _escaped(labels: bytes) -> str:
    texts = []
    while labels:
        end = 1 + labels[0]
        texts.append("".join([_TEXT[octet] for octet in labels[1:end]]))
        labels = labels[end:]
    return ".".join(texts)


def _header(names: _Names) -> tuple[Header, Sequence[int], int]:
    """Return the header with the question, how many records each section has, and where they begin."""
    number, flags, questions, *counts = _header_fields(names.wire)
    if flags & _QR_AND_OPCODE != _RESPONSE_TO_QUERY:
        raise Malformed("not a response to a query")
    at, question = 12, []
    for _ in range(questions):
        name, at, _, _ = names.read(at)
        question.append(Question(name, *_question_fields(names.wire, at)))
        at += 4
    return Header(number, flags, tuple(question)), counts, at


def _reply(names: _Names) -> Reply:
    header, counts, at = _header(names)
    opt: list[int] = []
    sections = []
    for count, may_have_opt in zip(counts, (None, None, opt), strict=True):
        records, at = _records(names, at, count, may_have_opt)
        sections.append(records)
    if at != len(names.wire):
        raise Malformed("the message does not end with its last record")
    # What is the TTL elsewhere begins with the upper eight of twelve bits (RFC 6891, section 6.1.3).
    upper = opt[0] >> 24 if opt else 0
    return Reply(header.id, header.flags, header.question, upper << 4 | header.flags & 0xF, *sections)


def _records(names: _Names, at: int, count: int, opt: list[int] | None) -> tuple[list[Record], int]:
    """Return the records of a section and where it ends. Where there may be an OPT record, its TTL goes to ``opt``."""
    records = []
    for _ in range(count):
        owner, at, _, _ = names.read(at)
        rdtype, rdclass, ttl, size = _record_fields(names.wire, at)
        at += 10
        end = at + size
        if rdtype == _OPT:
            if opt is None or opt or owner != ".":
                raise Malformed("an OPT record out of place")
            opt.append(ttl)
        elif rdtype == _TSIG:
            raise Malformed("a signature that was not asked for")
        elif rdclass == IN:
            reader = _READERS.get(rdtype)
            data, at = reader(names, at) if reader else (None, end)
            if at != end:
                raise Malformed("the data of a record is not as long as that says")
            records.append(_new(Record, (owner, rdtype, ttl if ttl <= _MAX_TTL else 0, data)))
        at = end
    return records, at


def _read_a(names: _Names, at: int) -> tuple[str, int]:
    return inet_ntoa(*_a_fields(names.wire, at)), at + 4


def _read_aaaa(names: _Names, at: int) -> tuple[str, int]:
    (packed,) = _aaaa_fields(names.wire, at)
    text = inet_ntop(AF_INET6, packed)
    # Which zeros it leaves out, and what it writes like an IPv4 address, is up to the C library.
    return str(IPv6Address(packed)) if ":0" in text or "." in text else text, at + 16


def _read_cname(names: _Names, at: int) -> tuple[str, int]:
    name, end, _, _ = names.read(at)
    return name, end


def _read_soa(names: _Names, at: int) -> tuple[int, int]:
    _, at, _, _ = names.read(at)
    _, at, _, _ = names.read(at)
    return _soa_fields(names.wire, at)[0], at + 20


def _read_srv(names: _Names, at: int) -> tuple[SRV, int]:
    priority, weight, port = _srv_fields(names.wire, at)
    target, end, _, _ = names.read(at + 6)
    return _new(SRV, (priority, weight, port, target)), end


_READERS: dict[int, Callable[[_Names, int], tuple[Data, int]]] = {
    RRType.A: _read_a,
    RRType.CNAME: _read_cname,
    RRType.SOA: _read_soa,
    RRType.AAAA: _read_aaaa,
    RRType.SRV: _read_srv,
}
