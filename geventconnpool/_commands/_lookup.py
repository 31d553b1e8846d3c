"""One look-up as a pool makes it, and all that was heard on the way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from geventconnpool.cluster import DNSResolver, Endpoint, Resolution, Resolver, StaticResolver
from geventconnpool.cluster._addresses import FAMILIES
from geventconnpool.cluster._dns import Answer, Answers, Client, Question
from geventconnpool.cluster._endpoints import ResolutionError, canonical_ip, is_host, parse_service
from geventconnpool.cluster._hosts import failure_of

Nameservers = Sequence[tuple[str, int]] | None


class LeftOut(NamedTuple):
    """What DNS names and no call goes to; ``is_trouble`` unless somebody may have meant it so."""

    endpoint: str
    why: str
    is_trouble: bool


@dataclass(frozen=True)
class Found:
    """What a look-up found: endpoints in the order of their priorities, what was left out, and the error if it failed.

    ``outcome`` is all of that in words. ``ttl`` and ``seconds``, which it took, are in seconds.
    """

    outcome: str
    endpoints: tuple[Endpoint, ...]
    ttl: float | None
    left_out: tuple[LeftOut, ...]
    nameserver: str | None
    seconds: float
    error: str | None


def resolver_of(names: Sequence[str], resolver: DNSResolver) -> tuple[Resolver, str | None]:
    """Return whom to ask for what, as a ClusterPool would: one name, or several ``host:port``.

    Raises :class:`ValueError` for a name that cannot be looked up.
    """
    if len(names) == 1:
        parse_service(names[0])
        return resolver, names[0]
    return StaticResolver(list(map(_host_and_port, names)), resolver=resolver), None


def _host_and_port(name: str) -> tuple[str, int]:
    host, port = parse_service(name)
    if port is None:
        raise ValueError(f"of several names each needs a port, which {name!r} has not")
    return host, port


def look_up(names: Sequence[str], nameservers: Nameservers, timeout: float) -> Found:
    """Look up once. ``timeout`` is for all tries at one set of questions, in seconds. Never raises what DNS does."""
    resolver = DNSResolver(nameservers, timeout=min(2.0, timeout), lifetime=timeout)
    resolver.client = client = Listening(resolver.nameservers, resolver.timeout, resolver.lifetime)
    asked, service = resolver_of(names, resolver)
    begun, error = monotonic(), None
    try:
        resolution = asked.resolve(service)
    except ResolutionError as failure:
        error = str(failure)
        resolution = Resolution((), outcome=error)
    seconds = monotonic() - begun
    endpoints = sorted(resolution.endpoints, key=lambda e: (e.priority, -e.weight, e.name, e.port))
    with_address = tuple(endpoint for endpoint in endpoints if endpoint.addresses)
    left_out = (*client.left_out(with_address), *_without_address(endpoints, client.heard))
    return Found(resolution.outcome, with_address, resolution.ttl, left_out, client.nameserver, seconds, error)


class Listening(Client):
    """Asks as a resolver's client does, and keeps what it heard."""

    def __init__(self, nameservers: Nameservers, timeout: float, lifetime: float) -> None:
        super().__init__(nameservers, timeout, lifetime)
        self.heard: Answers = {}

    def ask_all(self, questions: Collection[Question], over_tcp: bool = False) -> Answers:
        answers = super().ask_all(questions, over_tcp)
        self.heard.update(answers)
        return answers

    @property
    def nameserver(self) -> str | None:
        """Who has answered first."""
        servers = (answer.server for answer in self.heard.values() if isinstance(answer, Answer))
        return next((str(server) for server in servers if server), None)

    def left_out(self, endpoints: Collection[Endpoint]) -> Iterator[LeftOut]:
        """Yield the SRV records that none of ``endpoints`` is made of."""
        known = {(endpoint.name, endpoint.port) for endpoint in endpoints}
        for answer in (answer for question, answer in self.heard.items() if question.rdtype == "SRV"):
            for record in answer.data if isinstance(answer, Answer) else ():
                name = record.target.removesuffix(".")
                place = canonical_ip(name) or name, record.port
                if place not in known:
                    known.add(place)
                    yield _left_out(record.target, record.port, self.heard)


def _left_out(target: str, port: int, heard: Answers) -> LeftOut:
    name = target.removesuffix(".")
    if target == ".":
        return LeftOut(".", 'the target "." says that there is none', is_trouble=False)
    if port == 0:
        return LeftOut(f"{name}:0", "there is no port 0", is_trouble=False)
    if not is_host(name):
        return LeftOut(f"{name}:{port}", "that is no name of a host", is_trouble=True)
    return LeftOut(f"{name}:{port}", _why_without_address(target, heard), is_trouble=True)


def _without_address(endpoints: Sequence[Endpoint], heard: Answers) -> Iterator[LeftOut]:
    """Yield hosts of the user's that have none."""
    for endpoint in endpoints:
        if not endpoint.addresses:
            yield LeftOut(str(endpoint), _why_without_address(endpoint.name, heard), is_trouble=True)


def _why_without_address(name: str, heard: Answers) -> str:
    questions = [Question(name, family) for family in FAMILIES]
    failure = failure_of({question: heard[question] for question in questions if question in heard})
    return str(failure) if failure else f"{name}: no address that this machine could use"
