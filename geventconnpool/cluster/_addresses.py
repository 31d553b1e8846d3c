"""The addresses of hosts: each for its time to live, and the last ones known where none can be learned. Pure.

IPv4 and IPv6 addresses are two sets with times, and failures, of their own. A host that has lost both keeps what it
had: that DNS knows no address of a target which it still names is a mistake far more often than a decision. It is asked
about again with back-off, as is a set whose question failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from random import Random
from typing import NamedTuple

from geventconnpool._backoff import dns_delay, spread

FAMILIES = ("A", "AAAA")
FORGET_AFTER = 600.0  # seconds, at least


class Told(NamedTuple):
    """What a question for the addresses of a host brought, for ``ttl`` seconds; ``failed``: nothing is known.

    ``is_left_out``: no addresses came along with an answer, which proves nothing (RFC 2181, section 9).
    """

    addresses: tuple[str, ...] = ()
    ttl: float = 0.0
    failed: bool = False
    is_left_out: bool = False


class _Host:
    def __init__(self) -> None:
        self.addresses: dict[str, tuple[str, ...]] = dict.fromkeys(FAMILIES, ())  # by family
        self.due: dict[str, float] = dict.fromkeys(FAMILIES, -inf)
        self.last: tuple[str, ...] = ()  # of both families, when there were any
        self.named_at = -inf
        # In a row. By family: one that is never answered must not be asked for whenever the other is due.
        self.failures = dict.fromkeys(FAMILIES, 0)

    def next_due(self) -> float:
        # That there are none of the other family need not be heard anew all the time: it is asked along with this one.
        wanted = (family for family in FAMILIES if self.addresses[family] or self.failures[family])
        return min((self.due[family] for family in wanted), default=-inf)


class AddressBook:
    """``min_refresh`` and ``max_refresh`` bound the times to live, in seconds."""

    def __init__(self, min_refresh: float, max_refresh: float, rng: Random) -> None:
        self._min_refresh = min_refresh
        self._max_refresh = max_refresh
        self._memory = max(FORGET_AFTER, 2 * max_refresh)
        self._rng = rng
        self._hosts: dict[str, _Host] = {}

    def addresses(self, host: str) -> tuple[str, ...]:
        """Return all addresses of ``host``, or the last ones known."""
        known = self._hosts.get(host)
        return () if known is None else known.last

    def due(self, hosts: Iterable[str], now: float) -> list[tuple[str, str]]:
        """Return what is to be asked for: pairs of host and family."""
        new = _Host()
        # What is due before the next look-up can be is asked for in this one.
        soon = now + self._min_refresh
        return [(host, f) for host in hosts for f, at in self._hosts.get(host, new).due.items() if at < soon]

    def next_due(self, hosts: Iterable[str]) -> float:
        """Return when the first of these is due: of a host that has addresses, those, and what could not be learned."""
        return min((self._hosts[host].next_due() if host in self._hosts else -inf for host in hosts), default=inf)

    def learned(self, host: str, told: Mapping[str, Told], now: float) -> None:
        """Note what was told of ``host``, by family."""
        known = self._hosts.setdefault(host, _Host())
        told = {f: news for f, news in told.items() if not (news.is_left_out and known.addresses[f])}
        for family, news in told.items():
            if not news.failed:
                known.addresses[family] = news.addresses
        there = tuple(address for family in FAMILIES for address in known.addresses[family])
        is_lost = not there
        known.last = there or known.last
        jitter = spread(1.0, 0.8, 1.2, self._rng)
        for family, news in told.items():
            if is_lost or news.failed:
                pause = dns_delay(known.failures[family]) * jitter
                known.failures[family] += 1
            else:
                pause = max(self._min_refresh, min(news.ttl, self._max_refresh))
                known.failures[family] = 0
            known.due[family] = now + pause

    def given(self, host: str, addresses: tuple[str, ...]) -> None:
        """Note addresses that need no DNS. It is asked at once when they are given no longer; till then they stay."""
        known = self._hosts.setdefault(host, _Host())
        known.last = addresses
        known.due = dict.fromkeys(FAMILIES, -inf)

    def keep(self, hosts: Iterable[str], now: float) -> None:
        """Remember these hosts, and forget those that nobody has named for long.

        Not at once: an answer may leave hosts out by mistake, and others may ask for other hosts of the same service.
        """
        for host in hosts:
            self._hosts.setdefault(host, _Host()).named_at = now
        self._hosts = {host: known for host, known in self._hosts.items() if now - known.named_at <= self._memory}
