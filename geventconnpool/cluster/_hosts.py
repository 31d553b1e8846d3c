"""The addresses of host names: literals, then the hosts file, then what came along with an answer, then DNS.

Never through the hub's shared thread pool, where one slow name would hold up all look-ups of the program.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from math import inf
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from gevent import socket

from geventconnpool._worker import Slice
from geventconnpool.cluster._addresses import FAMILIES, AddressBook, Told
from geventconnpool.cluster._connect import sockaddr
from geventconnpool.cluster._dns import (
    DEFAULT_LIFETIME,
    DEFAULT_TIMEOUT,
    Answer,
    Answers,
    Client,
    Question,
    WatchedFile,
)
from geventconnpool.cluster._endpoints import NoRecords, ResolutionError, canonical_ip
from geventconnpool.cluster._wire import Record

_FAMILY_OF = {1: "A", 28: "AAAA"}  # by the number that a record bears


class Found(NamedTuple):
    """What a look-up brought: the answers, for how many seconds all addresses hold, and hosts that need no answer."""

    answers: Answers
    ttl: float
    at_hand: Collection[str]


class Hosts:
    """The addresses of some hosts, each looked up when it is time to."""

    def __init__(self, min_refresh: float, max_refresh: float) -> None:
        self._max_refresh = max_refresh
        self._book = AddressBook(min_refresh, max_refresh, random.Random())

    def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of ``host``, the last ones known if there are none now."""
        return self._book.addresses(host)

    def look_up(
        self,
        client: Client,
        hosts: Collection[str],
        came_along: Iterable[Record] = (),
        *,
        due_only: bool = True,
        over_tcp: bool = False,
    ) -> Found:
        """Take what is at hand and what ``came_along``, and ask for the rest: what is due, or everything."""
        part = Slice()
        self._book.keep(hosts, monotonic())
        local = _at_hand(part.through(hosts))
        for host, addresses in local.items():
            self._book.given(host, addresses)
        remote = {host for host in hosts if host not in local}
        now = monotonic()
        self._learn(_told_along(remote, part.through(came_along)), now, part)
        answers = client.ask_all(self._questions(remote, now, due_only), over_tcp)
        now = monotonic() if answers else now
        self._learn(_told(part.through(answers.items())), now, part)
        # The hosts file has no time to live. It is local: a look now and then finds a change.
        ttl = min(self._book.next_due(remote) - now, self._max_refresh if local else inf)
        # The clock has fewer digits left for fractions than the sum of its time and a TTL may need.
        return Found(answers, max(0.0, round(ttl, 6)), local)

    def _questions(self, hosts: Iterable[str], now: float, due_only: bool) -> list[Question]:
        pairs = self._book.due(hosts, now) if due_only else [(host, family) for host in hosts for family in FAMILIES]
        questions = [Question(host, family) for host, family in pairs]
        # In another order each time: slow ones must not keep the same others from being asked within the lifetime. But
        # first those that nothing is known of.
        random.shuffle(questions)
        questions.sort(key=lambda question: bool(self._book.addresses(question.name)))
        return questions

    def _learn(self, told: Mapping[str, Mapping[str, Told]], now: float, part: Slice) -> None:
        for host, news in part.through(told.items()):
            self._book.learned(host, news, now)


def addresses_of(host: str) -> tuple[str, ...]:
    """Return the addresses of ``host``, asking the name servers of resolv.conf.

    Raises :class:`socket.gaierror` if there are none (``EAI_NONAME``) or if nobody knows (``EAI_AGAIN``).
    """
    hosts = Hosts(0.0, 0.0)
    try:
        answers = hosts.look_up(Client(None, DEFAULT_TIMEOUT, DEFAULT_LIFETIME), [host]).answers
    except ResolutionError as error:
        raise socket.gaierror(socket.EAI_AGAIN, str(error)) from error
    if addresses := hosts.addresses(host):
        return addresses
    failure = failure_of(answers) or f"{host}: no usable address"
    raise socket.gaierror(socket.EAI_NONAME if isinstance(failure, NoRecords) else socket.EAI_AGAIN, str(failure))


def failure_of(answers: Answers) -> ResolutionError | None:
    """Return one of the reasons why there is no address; one that may pass before one that says there is none."""
    errors = [answer for answer in answers.values() if isinstance(answer, ResolutionError)]
    return min(errors, key=lambda error: isinstance(error, NoRecords), default=None)


def _at_hand(hosts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the addresses of those for which nobody is to be asked: their own, or those in the hosts file."""
    file = _hosts_file.entries()
    found = {}
    for host in hosts:
        name = host.removesuffix(".")
        own = canonical_ip(name)
        addresses = usable(dict.fromkeys(file.get(name, ()))) if own is None else (own,)
        if addresses:
            found[host] = addresses
    return found


class HostsFile:
    """What a hosts file says, as of now."""

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, _entries)

    def entries(self) -> dict[str, list[str]]:
        """Return the addresses in the file by name; none if it cannot be read."""
        try:
            return self._file.read()
        except OSError:
            return {}


def _entries(content: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in content.lower().splitlines():
        words = line.partition("#")[0].split()
        address = canonical_ip(words[0]) if words else None
        if address is not None:
            for name in words[1:]:
                found.setdefault(name, []).append(address)
    return found


def usable(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``addresses`` that this machine could send to."""
    return tuple(address for address in addresses if ":" not in address or _has_route(address))


def _has_route(address: str) -> bool:
    """Tell whether the machine could send to an IPv6 address. Nothing is sent: connecting a datagram socket looks."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(sockaddr(address, 9))
    except OSError:
        return False
    return True


def _told_along(hosts: Collection[str], records: Iterable[Record]) -> dict[str, dict[str, Told]]:
    """Return the usable addresses that came along with an answer, by host and family."""
    found: dict[str, dict[str, Told]] = {}
    for owner, rdtype, ttl, data in records:
        family = _FAMILY_OF.get(rdtype)
        if family is None or owner not in hosts or not usable([str(data)]):
            continue
        told = found.setdefault(owner, dict.fromkeys(FAMILIES, Told((), ttl, is_left_out=True)))
        told[family] = Told((*told[family].addresses, str(data)), min(told[family].ttl, ttl))
    return found


def _told(answers: Iterable[tuple[Question, Answer | ResolutionError]]) -> dict[str, dict[str, Told]]:
    """Return what answers tell, by host and family."""
    told: dict[str, dict[str, Told]] = {}
    for question, answer in answers:
        told.setdefault(question.name, {})[question.rdtype] = _news(answer)
    return told


def _news(answer: Answer | ResolutionError) -> Told:
    if isinstance(answer, Answer):
        return Told(usable(answer.data), answer.ttl)
    if isinstance(answer, NoRecords):
        return Told((), answer.ttl or 0.0)
    return Told(failed=True)


_hosts_file = HostsFile(Path("/etc/hosts"))
