"""Where the endpoints of a service come from: a fixed list, or DNS."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import dns.name
import dns.rdatatype
import dns.resolver
from gevent import socket

from geventconnpool import _check
from geventconnpool.cluster._dns import Answers, Client, Question, ResolutionError, server_of
from geventconnpool.cluster._endpoints import (
    Endpoint,
    Resolution,
    canonical_ip,
    check_unique,
    domain_of,
    is_host,
    parse_service,
)

_DNS_PORT = 53
_HOSTS_FILE = Path("/etc/hosts")


class Resolver(Protocol):
    """Anything that knows the endpoints of a service."""

    def resolve(self, service: str | None) -> Resolution:
        """Return the endpoints of ``service``. Raising anything is a failed look-up: the last good answer stays.

        Called in a greenlet of the cluster's; it may switch but should not block the hub.
        """


class StaticResolver:
    """A fixed set of endpoints, each an :class:`Endpoint` or ``(host, port)``. Raises ValueError on duplicates."""

    def __init__(self, endpoints: Iterable[Endpoint | tuple[str, int]]) -> None:
        self.endpoints = tuple(map(_as_endpoint, endpoints))
        if not self.endpoints:
            raise ValueError("endpoints is empty")
        check_unique("endpoints", self.endpoints)

    def resolve(self, service: str | None) -> Resolution:
        """Return all endpoints, whatever the service: they hold for ever."""
        return Resolution(self.endpoints)


class DNSResolver:
    """Looks services up in DNS, without ever blocking the hub, patched or not.

    ``nameservers`` are addresses or ``(address, port)``; by default those of resolv.conf, read at each look-up, with
    its search list. ``timeout`` is for one try at one server, ``lifetime`` for all tries at one set of questions, in
    seconds; a look-up asks one set, or a second one for addresses that did not come along. ``min_refresh`` and
    ``max_refresh``, in seconds, bound how soon and how late a cluster asks again.
    """

    def __init__(
        self,
        nameservers: Iterable[str | tuple[str, int]] | None = None,
        *,
        timeout: float = 2.0,
        lifetime: float = 5.0,
        min_refresh: float = 5.0,
        max_refresh: float = 300.0,
    ) -> None:
        self.nameservers = None if nameservers is None else _nameservers(nameservers)
        self.timeout = _check.seconds("timeout", timeout, positive=True)
        self.lifetime = _check.seconds("lifetime", lifetime, positive=True)
        self.min_refresh = _check.seconds("min_refresh", min_refresh, positive=True)
        self.max_refresh = _check.seconds("max_refresh", max_refresh, positive=True)
        if max_refresh < min_refresh:
            raise ValueError(f"max_refresh must be at least min_refresh ({min_refresh!r}), not {max_refresh!r}")
        self._known: dict[Question, dict[str, _Found]] = {}  # by what was asked: its hosts, as they were last known

    def resolve(self, service: str | None) -> Resolution:
        """Return the endpoints of ``service``: SRV for a name without a port, else each address of the name.

        Raises :class:`ResolutionError`, whose message is fit for a user: what was asked for, the failure in words, the
        name server.
        """
        if service is None:
            raise TypeError("service must be a str, not None: DNS needs a name")
        name, port = parse_service(service)
        if port is None:
            return self._resolve_srv(name)
        return self._resolve_addresses(name, port)

    def _resolve_addresses(self, name: str, port: int) -> Resolution:
        if canonical_ip(name) is not None:
            return Resolution((Endpoint(name, port, domain=name),))
        found = self._addresses_of(name)
        return Resolution(tuple(Endpoint(address, port, domain=name) for address in found.addresses), found.ttl)

    def _addresses_of(self, name: str) -> _Found:
        addresses = _in_hosts_file(name.removesuffix("."))
        if addresses:
            # The file has no time to live. It is tiny and local: reading it now and then finds a change.
            return _Found(addresses, self.max_refresh)
        question = Question(name, "A")
        answers = self._client().ask_all([question, Question(name, "AAAA")])
        found = _found(name, answers)
        if not found.addresses:
            raise _no_address(name, answers)
        return self._remembered(question, {name: found})[name]

    def _resolve_srv(self, service: str) -> Resolution:
        client, question = self._client(), Question(service, "SRV")
        answer = client.ask(question)
        records, ttl = _srv_records(answer), float(answer.chaining_result.minimum_ttl)
        if all(record.is_none for record in records):
            return Resolution((), ttl)  # RFC 2782: "the service is decidedly not available at this domain"
        usable = [record for record in records if record.is_usable]
        found = self._remembered(question, _hosts(client, answer, {record.target for record in usable}))
        endpoints = _endpoints(usable, found, domain_of(service))
        if not endpoints:
            raise ResolutionError(f"{question}: none of {len(records)} records has a usable target and address")
        return Resolution(endpoints, min(ttl, *(host.ttl for host in found.values())))

    def _remembered(self, question: Question, found: Mapping[str, _Found]) -> dict[str, _Found]:
        """Return ``found``, completed by what was known before, and remember it for the next time."""
        before = self._known.get(question, {})
        known = {host: now.completed(before.get(host)) for host, now in found.items()}
        self._known[question] = known
        return known

    def _client(self) -> Client:
        return Client(self.nameservers, self.timeout, self.lifetime)


class _Found(NamedTuple):
    """The addresses of one host; ``failed`` are the record types whose question was not answered."""

    addresses: tuple[str, ...]
    ttl: float
    failed: frozenset[str] = frozenset()

    def completed(self, before: _Found | None) -> _Found:
        """Return this with the addresses known ``before`` in place of those that could not be learned."""
        if before is None:
            return self
        kept = (address for address in before.addresses if not self.addresses or _rdtype(address) in self.failed)
        return self._replace(addresses=(*self.addresses, *kept))


class _Record(NamedTuple):
    target: str  # in lower case, with its trailing dot: no search list applies to it
    port: int
    priority: int
    weight: int

    @property
    def is_none(self) -> bool:
        return self.target == "."

    @property
    def is_usable(self) -> bool:
        return self.port != 0 and is_host(self.target.removesuffix("."))


def _srv_records(answer: dns.resolver.Answer) -> list[_Record]:
    return [_Record(rr.target.to_text().lower(), rr.port, rr.priority, rr.weight) for rr in answer]


def _hosts(client: Client, answer: dns.resolver.Answer, hosts: Collection[str]) -> dict[str, _Found]:
    """Return the addresses of SRV targets: from the additional section (RFC 2782), else by asking."""
    came_along = {**_additional(answer), **_literal(hosts)}
    found = {host: came_along[host] for host in hosts if host in came_along}
    missing = [host for host in hosts if host not in found]
    questions = [Question(host, rdtype) for host in missing for rdtype in ("A", "AAAA")]
    # In another order each time: slow ones must not keep the same others from being asked within the lifetime.
    random.shuffle(questions)
    answers = client.ask_all(questions)
    found.update((host, _found(host, answers)) for host in missing)
    return found


def _endpoints(records: Iterable[_Record], found: Mapping[str, _Found], domain: str | None) -> tuple[Endpoint, ...]:
    """Return one endpoint per target and port that has an address, at its lowest priority, its weights added up."""
    merged: dict[tuple[str, int], _Record] = {}
    for record in records:
        key = record.target, record.port
        merged[key] = _merged(merged[key], record) if key in merged else record
    return tuple(
        Endpoint(target, port, found[target].addresses, record.priority, record.weight, domain)
        for (target, port), record in merged.items()
        if found[target].addresses
    )


def _merged(one: _Record, other: _Record) -> _Record:
    if one.priority != other.priority:
        return min(one, other, key=lambda record: record.priority)
    return one._replace(weight=min(one.weight + other.weight, 65535))


def _literal(hosts: Iterable[str]) -> dict[str, _Found]:
    """Return the targets that are addresses. RFC 2782 wants host names; what is meant is plain all the same."""
    addresses = ((host, canonical_ip(host.removesuffix("."))) for host in hosts)
    return {host: _Found((address,), math.inf) for host, address in addresses if address is not None}


def _additional(answer: dns.resolver.Answer) -> dict[str, _Found]:
    """Return the usable addresses that came along with an answer, by host."""
    found: dict[str, _Found] = {}
    for rrset in answer.response.additional:
        addresses = _usable(rr.address for rr in rrset if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA))
        if addresses:
            host = rrset.name.to_text().lower()
            known = found.get(host, _Found((), float(rrset.ttl)))
            found[host] = _Found((*known.addresses, *addresses), min(known.ttl, float(rrset.ttl)))
    return found


def _found(host: str, answers: Answers) -> _Found:
    """Return what the two questions for ``host`` told, with TTL 0 where that is not all there is to know."""
    addresses: list[str] = []
    ttls: list[float] = []
    failed = set()
    for rdtype in ("A", "AAAA"):
        answer = answers[Question(host, rdtype)]
        if isinstance(answer, ResolutionError):
            failed.add(rdtype)
        elif usable := _usable(rr.address for rr in answer):
            addresses += usable
            ttls.append(float(answer.chaining_result.minimum_ttl))
    return _Found(tuple(addresses), 0.0 if failed or not ttls else min(ttls), frozenset(failed))


def _no_address(host: str, answers: Answers) -> ResolutionError:
    """Return the reason why neither of the two questions for ``host`` brought an address."""
    told = [answers[Question(host, rdtype)] for rdtype in ("A", "AAAA")]
    for answer in told:
        if isinstance(answer, ResolutionError):
            return answer
    servers = {server_of(answer) for answer in told if not isinstance(answer, ResolutionError)}
    return ResolutionError(f"{host}: no usable address from {', '.join(sorted(servers))}")


def _usable(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(address for address in addresses if ":" not in address or _has_route(address))


def _has_route(address: str) -> bool:
    """Tell whether the machine could send to an IPv6 address. Nothing is sent: connecting a datagram socket looks."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
    except OSError:
        return False
    return True


def _rdtype(address: str) -> str:
    return "AAAA" if ":" in address else "A"


def _in_hosts_file(name: str) -> tuple[str, ...]:
    try:
        text = _HOSTS_FILE.read_text(errors="replace").lower()
    except OSError:
        return ()
    # Some people block advertisements with a hundred thousand lines: split only those that may be meant.
    lines = (line.partition("#")[0].split() for line in text.splitlines() if name in line) if name in text else ()
    addresses = (canonical_ip(words[0]) for words in lines if name in words[1:])
    return tuple(dict.fromkeys(_usable(address for address in addresses if address is not None)))


def _as_endpoint(value: object) -> Endpoint:
    if isinstance(value, Endpoint):
        return value
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"endpoints must hold Endpoint objects or (host, port), not {_check.show(value)}")
    return Endpoint(*value)


def _nameservers(nameservers: Iterable[str | tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    if isinstance(nameservers, str) or not isinstance(nameservers, Iterable):
        raise TypeError(f"nameservers must be a list of addresses or (address, port), not {_check.show(nameservers)}")
    servers = tuple(map(_nameserver, nameservers))
    if not servers:
        raise ValueError("nameservers is empty")
    return servers


def _nameserver(value: object) -> tuple[str, int]:
    address, port = value if isinstance(value, tuple) and len(value) == 2 else (value, _DNS_PORT)
    if not isinstance(address, str):
        raise TypeError(f"nameservers must hold addresses or (address, port), not {_check.show(value)}")
    canonical = canonical_ip(address)
    if canonical is None:
        raise ValueError(f"nameservers must hold IP addresses or (address, port), not {_check.show(value)}")
    return canonical, _check.integer("the port in nameservers", port, 1, 65535)
