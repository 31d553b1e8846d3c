"""Where the endpoints of a service come from: a fixed list, or DNS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from operator import is_
from typing import NamedTuple, Protocol

from geventconnpool import _check
from geventconnpool._worker import Slice
from geventconnpool.cluster._addresses import FAMILIES
from geventconnpool.cluster._dns import DEFAULT_LIFETIME, DEFAULT_TIMEOUT, Answer, Answers, Client, Question
from geventconnpool.cluster._endpoints import (
    Endpoint,
    NoRecords,
    Resolution,
    ResolutionError,
    canonical_ip,
    check_unique,
    domain_of,
    is_host,
    parse_service,
)
from geventconnpool.cluster._hosts import Hosts, failure_of
from geventconnpool.cluster._refresh import DEFAULT_BOUNDS, Bounds

_DNS_PORT = 53


class Resolver(Protocol):
    """Anything that knows the endpoints of a service.

    It may say how patient one is with it, by the attributes ``min_refresh``, ``max_refresh``, ``empty_hold`` and
    ``max_stale`` of :class:`DNSResolver`, else its defaults hold. If it has a method ``confirm`` like its ``resolve``,
    that is asked for a second opinion when an answer would cost more than half of three endpoints or more.
    """

    def resolve(self, service: str | None, /) -> Resolution:
        """Return the endpoints of ``service``; none at all is believed at once.

        Raising anything is a failed look-up: the last good answer stays. What may pass, such as a name that DNS does
        not know, is told by raising :class:`NoRecords`. Called in a greenlet of the cluster's; it may switch but should
        not block the hub.
        """


def bounds_of(resolver: Resolver) -> Bounds:
    """Return how patient one is with ``resolver``. Raises ValueError or TypeError, naming attribute and value."""
    usual = DEFAULT_BOUNDS
    most = getattr(resolver, "max_refresh", usual.max_refresh)
    _check.seconds("the resolver's max_refresh", most, positive=True)
    least = getattr(resolver, "min_refresh", min(usual.min_refresh, most))
    _check.seconds("the resolver's min_refresh", least, positive=True)
    if most < least and hasattr(resolver, "max_refresh"):
        raise ValueError(f"the resolver's max_refresh must be at least its min_refresh ({least!r}), not {most!r}")
    hold, stale = getattr(resolver, "empty_hold", usual.empty_hold), getattr(resolver, "max_stale", usual.max_stale)
    return Bounds(
        min_refresh=least,
        max_refresh=max(least, most),
        empty_hold=_check.seconds_or_none("the resolver's empty_hold", hold),
        max_stale=_check.seconds_or_none("the resolver's max_stale", stale),
    )


class StaticResolver:
    """A fixed set of endpoints, each an :class:`Endpoint` or ``(host, port)``.

    The addresses of a host name that is given without are looked up, and again when their time to live is over, by
    ``resolver``, default :class:`DNSResolver`. Until there are any, ``host`` is the name.

    Raises :class:`ValueError` for duplicates, or if there is none; :class:`ValueError` or :class:`TypeError` for what
    is no endpoint.
    """

    def __init__(self, endpoints: Iterable[Endpoint | tuple[str, int]], *, resolver: DNSResolver | None = None) -> None:
        _check.iterable("endpoints", endpoints, "Endpoint objects or (host, port)")
        self.endpoints: tuple[Endpoint, ...] = tuple(map(_as_endpoint, endpoints))
        if not self.endpoints:
            raise ValueError("endpoints is empty")
        check_unique("endpoints", self.endpoints)
        if resolver is not None and not isinstance(resolver, DNSResolver):
            raise TypeError(f"resolver must be a DNSResolver, not {_check.show(resolver)}")
        self._resolver = resolver or DNSResolver()
        self._hosts = Hosts(self._resolver.min_refresh, self._resolver.max_refresh)
        self._failed: dict[Question, ResolutionError] = {}  # the last time it was asked
        self._names = {endpoint.name for endpoint in self.endpoints if not endpoint.addresses}
        self.min_refresh: float = self._resolver.min_refresh
        self.max_refresh: float = self._resolver.max_refresh

    def at_hand(self) -> Resolution:
        """Return all endpoints, with the addresses known so far: for ever, if no host is to be looked up."""
        endpoints = tuple(map(self._completed, self.endpoints))
        with_address = sum(bool(endpoint.addresses) for endpoint in endpoints)
        outcome = f"{with_address} of {len(endpoints)} endpoints have an address"
        return Resolution(endpoints, 0.0 if self._names else None, outcome=outcome)

    def resolve(self, service: str | None) -> Resolution:
        """Return all endpoints, whatever the service, with their addresses of now, or the last ones known.

        Raises :class:`ResolutionError` if no question for a host was answered.
        """
        answers, ttl, at_hand = self._hosts.look_up(self._resolver.client, self._names)
        failures = self._failures(answers, self._names.difference(at_hand))
        if self._names and failures.keys() == self._names:
            raise next(iter(failures.values()))
        found = self.at_hand()
        if not self._names:
            return found
        # That a host has addresses of one family only is no trouble.
        with_address = {question.name for question, answer in answers.items() if isinstance(answer, Answer)}
        denials = [a for q, a in answers.items() if isinstance(a, NoRecords) and q.name not in with_address]
        outcome = "; ".join([found.outcome, *map(str, (list(failures.values()) or denials)[:1])])
        return replace(found, ttl=ttl, outcome=outcome)

    def _failures(self, answers: Answers, names: Iterable[str]) -> dict[str, ResolutionError]:
        """Return the last failure of each of which no question was answered, now or before it was due again."""
        for question, answer in answers.items():
            if isinstance(answer, ResolutionError) and not isinstance(answer, NoRecords):
                self._failed[question] = answer
            else:
                self._failed.pop(question, None)
        failed = {name for name in names if all(Question(name, family) in self._failed for family in FAMILIES)}
        return {question.name: error for question, error in self._failed.items() if question.name in failed}

    def _completed(self, endpoint: Endpoint) -> Endpoint:
        addresses = self._hosts.addresses(endpoint.name) if endpoint.name in self._names else endpoint.addresses
        return endpoint if addresses == endpoint.addresses else replace(endpoint, addresses=addresses)


class DNSResolver:
    """Looks services up in DNS, without ever blocking the hub, patched or not. Pools of one hub may share it.

    ``nameservers`` are addresses or ``(address, port)``; by default those of resolv.conf, with its search list and
    options. ``timeout`` is for one try at one server (an option of resolv.conf takes the place of the default),
    ``lifetime`` for all tries at one set of questions, in seconds; a look-up asks one set, or a second one for
    addresses that did not come along.

    How a cluster takes what it hears is up to the rest, in seconds: ``min_refresh`` and ``max_refresh`` bound how soon
    and how late it asks again. That there is no such name, or no such record, is believed when it has lasted for
    ``empty_hold`` and three look-ups (0: at once; None: never). While look-ups fail, what is known is kept for
    ``max_stale`` (None: for ever).

    Raises :class:`ValueError` or :class:`TypeError`, naming parameter and value.
    """

    def __init__(
        self,
        nameservers: Iterable[str | tuple[str, int]] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        lifetime: float = DEFAULT_LIFETIME,
        min_refresh: float = 5.0,
        max_refresh: float = 300.0,
        empty_hold: float | None = 30.0,
        max_stale: float | None = None,
    ) -> None:
        self.nameservers: tuple[tuple[str, int], ...] | None = (
            None if nameservers is None else _nameservers(nameservers)
        )
        self.timeout: float = _check.seconds("timeout", timeout, positive=True)
        self.lifetime: float = _check.seconds("lifetime", lifetime, positive=True)
        self.min_refresh: float = _check.seconds("min_refresh", min_refresh, positive=True)
        self.max_refresh: float = _check.seconds("max_refresh", max_refresh, positive=True)
        self.empty_hold: float | None = _check.seconds_or_none("empty_hold", empty_hold)
        self.max_stale: float | None = _check.seconds_or_none("max_stale", max_stale)
        if max_refresh < min_refresh:
            raise ValueError(f"max_refresh must be at least min_refresh ({min_refresh!r}), not {max_refresh!r}")
        self.client: Client = Client(self.nameservers, self.timeout, self.lifetime)
        self._services: dict[str, _Service] = {}  # what is remembered of each that was asked for

    def resolve(self, service: str | None) -> Resolution:
        """Return the endpoints of ``service``: SRV for a name without a port, else each address of the name.

        Raises :class:`NoRecords` if DNS knows of none, :class:`ResolutionError` if it cannot be asked, whose messages
        are fit for a user: what was asked for, the failure in words, the name server. :class:`ValueError` or
        :class:`TypeError` for what is no name.
        """
        return self._resolve(service, over_tcp=False)

    def confirm(self, service: str | None) -> Resolution:
        """Do the same as :meth:`resolve` over TCP, which leaves nothing out."""
        return self._resolve(service, over_tcp=True)

    def _resolve(self, service: str | None, over_tcp: bool) -> Resolution:
        if service is None:
            raise TypeError("service must be a str, not None: DNS needs a name")
        name, port = parse_service(service)
        known = self._services.setdefault(service, _Service(self.min_refresh, self.max_refresh))
        if port is None:
            return self._resolve_srv(name, known, over_tcp)
        return self._resolve_addresses(name, port, known, over_tcp)

    def _resolve_addresses(self, name: str, port: int, known: _Service, over_tcp: bool) -> Resolution:
        if canonical_ip(name) is not None:
            return Resolution((Endpoint(name, port, domain=name),), outcome="an address needs no look-up")
        answers, ttl, at_hand = known.hosts.look_up(self.client, [name], due_only=False, over_tcp=over_tcp)
        told = answers.values()
        denials = [answer for answer in told if isinstance(answer, NoRecords)]
        if len(denials) == len(FAMILIES):  # not those that were answered in time: the other may have addresses
            raise NoRecords(str(denials[0]), min(denial.ttl or 0.0 for denial in denials))
        found = [answer for answer in told if isinstance(answer, Answer)]
        addresses = known.hosts.addresses(name)
        if not at_hand and not (found and addresses):
            failures = (answer for answer in told if isinstance(answer, ResolutionError) and answer not in denials)
            servers = found[0].server if found else "anybody in time"
            raise next(failures, None) or ResolutionError(f"{name}: no usable address from {servers}")
        endpoints = known.endpoints(_Source(_Record(address, port, 0, 1), (address,), name) for address in addresses)
        outcome = f"{len(endpoints)} addresses from {found[0].server if found else 'the hosts file'}"
        return Resolution(endpoints, ttl, outcome=outcome, records=len(endpoints))

    def _resolve_srv(self, service: str, known: _Service, over_tcp: bool) -> Resolution:
        question = Question(service, "SRV")
        answer = self.client.ask(question, over_tcp)
        records = [_Record(rr.target, rr.port, rr.priority, rr.weight) for rr in answer.data]
        outcome = f"{len(records)} SRV records from {answer.server}"
        if all(record.is_none for record in records):
            # RFC 2782: "the service is decidedly not available at this domain".
            return Resolution((), answer.ttl, outcome=f"{outcome}: the service is not available", records=len(records))
        usable = _merged(record for record in records if record.is_usable)
        targets = {record.target for record in usable}
        answers, ttl, _ = known.hosts.look_up(self.client, targets, answer.additional)
        domain, addresses = domain_of(service), known.hosts.addresses
        endpoints = known.endpoints(_Source(record, addresses(record.target), domain) for record in usable)
        if not endpoints:
            why = f": {failure}" if (failure := failure_of(answers)) else ""
            raise ResolutionError(f"{question}: none of {outcome} has a usable target and address{why}")
        if len(endpoints) < len(usable):
            outcome += f", {len(usable) - len(endpoints)} without a known address"
        return Resolution(endpoints, min(answer.ttl, ttl), outcome=outcome, records=len(records))


class _Service:
    """What is remembered of a service from one look-up to the next."""

    def __init__(self, min_refresh: float, max_refresh: float) -> None:
        self.hosts = Hosts(min_refresh, max_refresh)
        self._made: dict[_Source, Endpoint] = {}
        self._last: tuple[Endpoint, ...] = ()

    def endpoints(self, sources: Iterable[_Source]) -> tuple[Endpoint, ...]:
        """Return one endpoint for each source with an address; the same tuple as last time if nothing has changed.

        Making endpoints out of a thousand records takes a while, hence in slices, and only of what is new.
        """
        made = {}
        for source in Slice().through(sources):
            if source.addresses:
                made[source] = self._made.get(source) or source.endpoint()
        found = tuple(made.values())
        if len(found) != len(self._last) or not all(map(is_, found, self._last)):
            self._last = found
        self._made = made
        return self._last


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


def _merged(records: Iterable[_Record]) -> list[_Record]:
    """Return one record per target and port, at its lowest priority, its weights added up; always in one order."""
    merged: dict[tuple[str, int], _Record] = {}
    for record in sorted(records):
        key = record.target, record.port
        one = merged.setdefault(key, record)
        if one is not record and one.priority == record.priority:
            merged[key] = one._replace(weight=min(one.weight + record.weight, 65535))
    return list(merged.values())


class _Source(NamedTuple):
    """What an endpoint is made of."""

    record: _Record
    addresses: tuple[str, ...]
    domain: str | None

    def endpoint(self) -> Endpoint:
        name, port, priority, weight = self.record
        return Endpoint(name, port, self.addresses, priority, weight, self.domain)


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
