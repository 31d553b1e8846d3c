"""The addresses of host names: literals, then the hosts file, then what came along with an answer, then DNS.

Never through the hub's shared thread pool, where one slow name would hold up all look-ups of the program.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import inf
from pathlib import Path
from time import monotonic

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


class Hosts:
    """The addresses of some hosts, each looked up when it is time to."""

    def __init__(self, min_refresh: float, max_refresh: float) -> None:
        self._max_refresh = max_refresh
        self._book = AddressBook(min_refresh, max_refresh, random.Random())
        self._local: dict[str, tuple[str, ...]] = {}
        self._looked_at = 0.0

    def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of ``host``, the last ones known if there are none now."""
        return self._local.get(host) or self._book.addresses(host)

    def look_up(
        self,
        client: Client,
        hosts: Collection[str],
        came_along: Iterable[Record] = (),
        *,
        due_only: bool = True,
        over_tcp: bool = False,
    ) -> Answers:
        """Take what ``came_along``, and ask for the rest: what is due, or everything. Return the answers."""
        part = Slice()
        self._local = at_hand(hosts)
        part.breathe()
        remote = {host for host in hosts if host not in self._local}
        now = monotonic()
        self._learn(_told_along(remote, came_along), now, part)
        pairs = self._book.due(remote, now) if due_only else [(host, family) for host in remote for family in FAMILIES]
        questions = [Question(host, family) for host, family in pairs]
        # In another order each time: slow ones must not keep the same others from being asked within the lifetime. But
        # first those that nothing is known of.
        random.shuffle(questions)
        questions.sort(key=lambda question: bool(self._book.addresses(question.name)))
        part.breathe()
        answers = client.ask_all(questions, over_tcp)
        now = monotonic() if answers else now
        self._learn(_told(answers), now, part)
        self._book.keep_only(remote)
        self._looked_at = now
        return answers

    def ttl(self, hosts: Collection[str]) -> float:
        """Return for how many seconds the addresses of all ``hosts`` held when they were looked up."""
        remote = [host for host in hosts if host not in self._local]
        # The hosts file has no time to live. It is local: a look now and then finds a change.
        local = inf if all(map(canonical_ip, self._local)) else self._max_refresh
        return max(0.0, min(self._book.next_due(remote) - self._looked_at, local))

    def _learn(self, told: Mapping[str, Mapping[str, Told]], now: float, part: Slice) -> None:
        for host, news in part.through(told.items()):
            self._book.learned(host, news, now)


def look_up(host: str) -> tuple[str, ...]:
    """Return the addresses of ``host``, asking the name servers of resolv.conf.

    Raises :class:`socket.gaierror` if there are none (``EAI_NONAME``) or if nobody knows (``EAI_AGAIN``).
    """
    hosts = Hosts(0.0, 0.0)
    try:
        answers = hosts.look_up(Client(None, DEFAULT_TIMEOUT, DEFAULT_LIFETIME), [host])
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


def at_hand(hosts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the addresses of those for which nobody is to be asked: their own, or those in the hosts file."""
    own = {host: (ip,) for host in hosts if (ip := canonical_ip(host.removesuffix("."))) is not None}
    return {**_hosts_file.addresses(hosts), **own}


class HostsFile:
    """What a hosts file says, as of now."""

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, _lines)

    def addresses(self, hosts: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the usable addresses of those that are in the file; of none if there is no file."""
        try:
            text = self._file.read()
        except OSError:
            return {}
        found = ((host, _addresses_in(text, host.removesuffix("."))) for host in hosts)
        return {host: addresses for host, addresses in found if addresses}


def _addresses_in(text: str, name: str) -> tuple[str, ...]:
    # Some people block advertisements with a hundred thousand lines: split only those that may be meant.
    entries = (line.partition("#")[0].split() for line in _lines_with(name, text))
    addresses = (canonical_ip(words[0]) for words in entries if name in words[1:])
    return tuple(dict.fromkeys(usable(address for address in addresses if address is not None)))


def _lines(content: str) -> str:
    return f"\n{content.lower()}\n"


def _lines_with(name: str, text: str) -> Iterator[str]:
    at = text.find(name)
    while at >= 0:
        end = text.index("\n", at)
        yield text[text.rindex("\n", 0, at) + 1 : end]
        at = text.find(name, end)


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
        # Of the other family there are none, or none that the server thought worth the room.
        told = found.setdefault(owner, dict.fromkeys(FAMILIES, Told((), ttl)))
        told[family] = Told((*told[family].addresses, str(data)), min(told[family].ttl, ttl))
    return found


def _told(answers: Answers) -> dict[str, dict[str, Told]]:
    """Return what answers tell, by host and family."""
    told: dict[str, dict[str, Told]] = {}
    for question, answer in answers.items():
        told.setdefault(question.name, {})[question.rdtype] = _news(answer)
    return told


def _news(answer: Answer | ResolutionError) -> Told:
    if isinstance(answer, Answer):
        return Told(usable(answer.data), answer.ttl)
    if isinstance(answer, NoRecords):
        return Told((), answer.ttl or 0.0)
    return Told(failed=True)


_hosts_file = HostsFile(Path("/etc/hosts"))
