"""A DNS server: in this process, on 127.0.0.1, without root, changed while it runs.

::

    with DNSServer() as dns:
        dns.add_srv("_redis._tcp.example.test", "redis1.example.test", 6379)
        dns.add_address("redis1.example.test", "127.0.0.1")
        pool = Redis("_redis._tcp.example.test", 10, resolver=DNSResolver([dns.address], min_refresh=1))
        ...
        dns.fault = "drop"      # and now DNS is silent

It speaks DNS through dnspython over gevent servers, UDP and TCP, in the greenlets of whoever starts it: the hub has to
run for it to answer. What it shows is how a client fares; what real name servers do is for tests with real ones.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.server import DatagramServer, StreamServer

from geventconnpool import _check

Fault = str | Callable[[dns.message.Message], str | None] | None

_FAULTS = ("drop", "garbage", "wrong_id", "truncate", "trim", "referral", "lame")
_EDNS_PAYLOAD = 1232
_LONGEST_CNAME_CHAIN = 8
_TRIMMED = 3  # records
_LONGEST_TTL = 2**31 - 1  # seconds, RFC 2181
_ROOT = dns.name.root


class DNSServer:
    """A name server with authority for every name there is.

    ``host`` and ``port`` are what it listens on, TCP and UDP; port 0, the default, lets the system choose one, which
    stays the same when the server is stopped and started again. Names are absolute, with or without a trailing dot.

    ``fault`` says what goes wrong: None; ``"drop"``: no answer; ``"garbage"``: no DNS message; ``"wrong_id"``: an
    answer to another question; ``"truncate"``: truncated and empty, over TCP too, like a set too large for any message;
    ``"trim"``: at most three records in a datagram without a word about the others, as Consul does; ``"referral"``:
    the names of others that may know, ``"lame"``: nothing at all, from a server that does not know either; or an error
    code such as ``"servfail"``, ``"refused"``, ``"formerr"``. A function is given each query, a
    :class:`dns.message.Message`, and returns one of these. ``delay`` is the time before each answer, in seconds;
    ``queries`` counts what was asked; ``negative_ttl`` is how long a resolver may remember that there is nothing.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.address: tuple[str, int] = (host, _check.integer("port", port, 0, 65535))
        self._fault: Fault = None
        self._delay = 0.0
        self.queries: int = 0
        self.negative_ttl: int = 1
        self._rrsets: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], dns.rrset.RRset] = {}
        self._servers: list[StreamServer | DatagramServer] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()

    @property
    def fault(self) -> Fault:
        """What goes wrong from now on, None for nothing. Setting it raises ValueError for an unknown word."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault if callable(fault) else _checked(fault)

    @property
    def delay(self) -> float:
        """Seconds before each answer. Setting it raises ValueError or TypeError if it is no such number."""
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._delay = _check.seconds("delay", seconds)

    def start(self) -> None:
        """Begin to answer; does nothing if it does already. Raises :class:`OSError` if the port is taken."""
        if self._servers:
            return
        try:
            self._listen()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Close the port and all connections; what is asked from now on is refused by the system. Idempotent."""
        while self._servers:
            self._servers.pop().stop(timeout=0)

    def add_srv(self, name: str, target: str, port: int, priority: int = 0, weight: int = 1, ttl: int = 1) -> None:
        """Add an SRV record (RFC 2782). To change priority or weight, remove the old one as well.

        Raises ValueError or TypeError, naming parameter and value, as all do that change records.
        """
        for parameter, value in (("port", port), ("priority", priority), ("weight", weight)):
            _check.integer(parameter, value, 0, 65535)
        self.add(name, "SRV", f"{priority} {weight} {port} {target}", ttl)

    def remove_srv(self, name: str, target: str, port: int) -> None:
        """Remove the SRV records of ``name`` for ``target`` and ``port``, if any."""
        wanted = _named("target", target), port
        rrset = self._rrsets.get((_named("name", name), dns.rdatatype.SRV))
        for record in [record for record in rrset or () if (record.target, record.port) == wanted]:
            self.remove(name, "SRV", record.to_text())

    def add_address(self, name: str, ip: str, ttl: int = 1) -> None:
        """Add an A or AAAA record."""
        self.add(name, _address_type(ip), ip, ttl)

    def remove_address(self, name: str, ip: str) -> None:
        """Remove an A or AAAA record, if it is there."""
        self.remove(name, _address_type(ip), ip)

    def add(self, name: str, rdtype: str, data: str, ttl: int = 1) -> None:
        """Add a record of any type, as in ``add("www.example.test", "CNAME", "web.example.test")``.

        ``data`` is as in a zone file. A set of records has one TTL, in seconds: the lowest of them.
        """
        _check.integer("ttl", ttl, 0, _LONGEST_TTL)
        rdata = _rdata(rdtype, data)
        key = _named("name", name), rdata.rdtype
        if key not in self._rrsets:
            self._rrsets[key] = dns.rrset.RRset(key[0], dns.rdataclass.IN, rdata.rdtype)
        self._rrsets[key].add(rdata, ttl)

    def remove(self, name: str, rdtype: str, data: str | None = None) -> None:
        """Remove a record, or without ``data`` all of that type; a name that has no record left no longer exists."""
        key = _named("name", name), _type(rdtype)
        rrset = self._rrsets.get(key)
        if rrset is not None and data is not None:
            rrset.discard(_rdata(rdtype, data))  # type: ignore[no-untyped-call]
        if not rrset or data is None:
            self._rrsets.pop(key, None)

    def _listen(self) -> None:
        over_tcp = StreamServer(self.address, self._serve_tcp, spawn=Pool())
        self._servers.append(over_tcp)
        over_tcp.start()
        self.address = self.address[0], over_tcp.socket.getsockname()[1]
        over_udp = _UDPServer(self.address, self._answer)
        self._servers.append(over_udp)
        over_udp.start()

    def _serve_tcp(self, connection: socket.socket, _client: tuple[str, int]) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while len(prefix := stream.read(2)) == 2:
                answer = self._answer(stream.read(*struct.unpack("!H", prefix)), over_tcp=True)
                if answer is not None:
                    connection.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, wire: bytes, over_tcp: bool = False) -> bytes | None:
        """Return the wire form of the answer, None for silence."""
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if not query.question or query.flags & dns.flags.QR:  # the answer of somebody is no question
            return None
        self.queries += 1
        gevent.sleep(self.delay)
        fault = _checked(self.fault(query)) if callable(self.fault) else self.fault
        if fault == "drop":
            return None
        if fault == "garbage":
            return wire[:2] + b"\xff" * 20
        response = self._response(query, fault)
        if fault == "trim" and not over_tcp:
            _trim(response)
        payload = query.payload if query.edns >= 0 else 512
        return response.to_wire(max_size=65535 if over_tcp else payload, prefer_truncation=True)

    def _response(self, query: dns.message.Message, fault: str | None) -> dns.message.Message:
        response = dns.message.make_response(query, our_payload=_EDNS_PAYLOAD)
        response.flags |= dns.flags.AA
        if fault == "truncate":
            response.flags |= dns.flags.TC
        elif fault in ("referral", "lame"):
            _refer(response, fault == "referral")
        elif fault not in (None, "wrong_id", "trim"):
            response.set_rcode(dns.rcode.from_text(fault))
        else:
            self._fill(response)
        if fault == "wrong_id":
            response.id ^= 1
        return response

    def _fill(self, response: dns.message.Message) -> None:
        question = response.question[0]
        name = question.name
        for rrset in self._chain(name, question.rdtype):
            response.answer.append(rrset)
            name = rrset[0].target if rrset.rdtype == dns.rdatatype.CNAME else rrset.name
        if response.answer and response.answer[-1].rdtype == question.rdtype:
            response.additional.extend(self._addresses_of_targets(response.answer[-1]))
            return
        if not self._exists(name):
            response.set_rcode(dns.rcode.NXDOMAIN)
        # RFC 2308: without it nobody may remember that there is nothing.
        soa = f". . 1 3600 600 86400 {self.negative_ttl}"
        response.authority.append(dns.rrset.from_text(_ROOT, self.negative_ttl, "IN", "SOA", soa))

    def _chain(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Iterator[dns.rrset.RRset]:
        for _ in range(_LONGEST_CNAME_CHAIN):
            rrset = self._rrsets.get((name, rdtype))
            if rrset is not None:
                yield rrset
                return
            alias = self._rrsets.get((name, dns.rdatatype.CNAME))
            if alias is None:
                return
            yield alias
            name = alias[0].target

    def _addresses_of_targets(self, rrset: dns.rrset.RRset) -> Iterator[dns.rrset.RRset]:
        targets = dict.fromkeys(rdata.target for rdata in rrset if rdata.rdtype == dns.rdatatype.SRV)
        for target in targets:
            for rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                if (target, rdtype) in self._rrsets:
                    yield self._rrsets[target, rdtype]

    def _exists(self, name: dns.name.Name) -> bool:
        # RFC 8020: a name above others exists, though it may have no records.
        return any(owner.is_subdomain(name) for owner, _rdtype in self._rrsets)


class _UDPServer(DatagramServer):
    def __init__(self, address: tuple[str, int], answer: Callable[[bytes], bytes | None]) -> None:
        super().__init__(address, spawn=Pool())
        self._answer = answer

    def handle(self, wire: bytes, client: tuple[str, int]) -> None:  # type: ignore[override]  # not (socket, address)
        answer = self._answer(wire)
        if answer is not None:
            self.sendto(answer, client)


def _checked(fault: str | None) -> str | None:
    """Return the word; raise ValueError if it is neither one of ours nor an error code."""
    if fault is None or fault in _FAULTS:
        return fault
    with contextlib.suppress(dns.exception.DNSException, ValueError, TypeError, AttributeError):
        dns.rcode.from_text(fault)
        return fault
    words = ", ".join(_FAULTS)
    raise ValueError(f"fault must be None, an error code of DNS, or one of {words}, not {_check.show(fault)}")


def _trim(response: dns.message.Message) -> None:
    for number, rrset in enumerate(response.answer):
        response.answer[number] = dns.rrset.from_rdata_list(rrset.name, rrset.ttl, list(rrset)[:_TRIMMED])
    response.additional.clear()


def _refer(response: dns.message.Message, to_others: bool) -> None:
    response.flags &= ~dns.flags.AA
    if to_others:
        response.authority.append(dns.rrset.from_text(_ROOT, 1, "IN", "NS", "ns.invalid."))


def _rdata(rdtype: str, data: str) -> dns.rdata.Rdata:
    try:
        return dns.rdata.from_text(dns.rdataclass.IN, _type(rdtype), data, origin=_ROOT, relativize=False)
    except dns.exception.DNSException as error:
        raise ValueError(f"data must be that of a record of type {rdtype}, not {_check.show(data)}: {error}") from None


def _type(rdtype: str) -> dns.rdatatype.RdataType:
    try:
        return dns.rdatatype.from_text(_text("rdtype", rdtype))
    except (dns.exception.DNSException, ValueError):
        raise ValueError(f"rdtype must be a type of record, not {_check.show(rdtype)}") from None


def _named(parameter: str, name: str) -> dns.name.Name:
    try:
        return dns.name.from_text(_text(parameter, name))
    except dns.exception.DNSException as error:
        raise ValueError(f"{parameter} must be a name of DNS, not {_check.show(name)}: {error}") from None


def _text(parameter: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{parameter} must be a str, not {_check.show(value)}")
    return value


def _address_type(ip: str) -> str:
    return "AAAA" if ":" in _text("ip", ip) else "A"
