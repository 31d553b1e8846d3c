"""What a service consists of: endpoints, what a look-up found, and how two sets of endpoints differ. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

from geventconnpool import _check

if TYPE_CHECKING:
    from gevent.socket import socket

# RFC 1123 letters, digits and hyphens, plus the underscore of RFC 2782 and of many a private zone.
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place a service runs at. Equal, and hashed, by ``(name, port)``, whatever the other fields are.

    ``name`` is an SRV target, a host of the user's, or an IP address, kept in lower case without a trailing dot (an
    address in its canonical text). ``addresses`` are its IP addresses, kept sorted, IPv4 first; an IP address given
    as ``name`` is its own. ``priority`` and ``weight`` mean what RFC 2782 says: lowest priority first, load in
    proportion to the weight. ``domain`` is the name that was asked for, without its ``_service._proto`` labels: the
    name to verify in TLS by RFC 9525, where ``name`` was learned from an insecure DNS.

    Raises :class:`ValueError` or :class:`TypeError`, naming parameter and value.
    """

    name: str
    port: int
    addresses: tuple[str, ...] = field(default=(), compare=False)
    priority: int = field(default=0, compare=False)
    weight: int = field(default=1, compare=False)
    domain: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        name = _host("name", self.name)
        _set(self, "name", name)
        _check.integer("port", self.port, 1, 65535)
        _set(self, "addresses", _addresses(self.addresses) or _own_address(name))
        _check.integer("priority", self.priority, 0, 65535)
        _check.integer("weight", self.weight, 0, 65535)
        if self.domain is not None:
            _set(self, "domain", _host("domain", self.domain))

    @property
    def host(self) -> str:
        """The first address, or the name where no address is known."""
        return self.addresses[0] if self.addresses else self.name

    @property
    def address(self) -> tuple[str, int]:
        """``(host, port)``, as :func:`socket.create_connection` and most client libraries take it."""
        return self.host, self.port

    def connect(self, timeout: float | None = None) -> socket:
        """Return a gevent TCP socket to the first of the addresses that accepts, by RFC 8305 (Happy Eyeballs).

        They are tried by turns of their family, beginning with IPv6. One that is silent for 250 ms gets the next beside
        it. ``timeout`` bounds all attempts together, in seconds, and stays set on the socket; None means no bound.
        Raises the last :class:`OSError`, or :class:`TimeoutError` when the time is over; :class:`ValueError` or
        :class:`TypeError` for a ``timeout`` that is no number above 0.
        """
        from geventconnpool.cluster._connect import connect

        return connect(self, timeout)

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class ResolutionError(Exception):
    """A look-up failed; the message names what was asked for, the failure in words, and the name server."""


class NoRecords(ResolutionError):
    """A name server says that there is no such name, or nothing of what was asked for.

    ``ttl`` is for how many seconds it says so, None if it does not (RFC 2308). A resolver of your own may raise it for
    what may pass; what is certain it tells by a :class:`Resolution` without endpoints.
    """

    ttl: float | None = None

    def __init__(self, message: str, ttl: float | None = None) -> None:
        super().__init__(message)
        self.ttl = _check.seconds_or_none("ttl", ttl)


_all_fields = attrgetter(*Endpoint.__slots__)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a look-up found: every endpoint of the service, each once, and for how many seconds that holds.

    ``ttl=None`` means for ever: not asked again. Without ``endpoints`` the service is decidedly not available.
    ``outcome`` and ``records``, what was found in words and how many records that took, are for ``stats()``.
    """

    endpoints: tuple[Endpoint, ...]
    ttl: float | None = None
    outcome: str = field(default="", kw_only=True, compare=False)
    records: int | None = field(default=None, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        _check.iterable("endpoints", self.endpoints, "Endpoint objects")
        endpoints = tuple(self.endpoints)
        check_unique("endpoints", endpoints)
        _set(self, "endpoints", endpoints)
        if self.ttl is not None:
            _check.seconds("ttl", self.ttl)


def is_changed(old: Endpoint, new: Endpoint) -> bool:
    """Say whether anything differs between two values of an endpoint: they are equal, but every field counts."""
    return _all_fields(old) != _all_fields(new)


def parse_service(service: str) -> tuple[str, int | None]:
    """Split ``service`` into a name and a port: ``"redis.example.org:6379"``, ``"[::1]:6379"``.

    Without a port (None) the name is to be looked up as SRV. The name comes in lower case; a trailing dot stays, as it
    says that no search list applies. Raises :class:`TypeError` or :class:`ValueError`, naming ``service``.
    """
    if not isinstance(service, str):
        raise TypeError(f"service must be a str, not {_check.show(service)}")
    if canonical_ip(service.strip("[]")) is not None:
        raise ValueError(f"service {_check.show(service)} is an IP address without a port")
    if "/" in service:
        raise ValueError(f"service {_check.show(service)} looks like a URL or a path; a name, or host:port, is wanted")
    host, colon, port = service.rpartition(":") if ":" in service else (service, "", "")
    name = _service_name(service, host)
    if not colon:
        return name, None
    if name.startswith("_"):
        raise ValueError(f"service {_check.show(service)} is an SRV name, whose ports come from DNS, with a port")
    return name, _service_port(service, port)


def domain_of(name: str) -> str | None:
    """Return ``name`` without its leading ``_service._proto`` labels and trailing dot, None if nothing is left."""
    labels = name.rstrip(".").split(".")
    while labels and labels[0].startswith("_"):
        del labels[0]
    return ".".join(labels) or None


def canonical_ip(text: str) -> str | None:
    """Return the one canonical text of an IP address, None if ``text`` is none."""
    if ":" not in text and not text[-1:].isdigit():
        return None  # a quick way out for names: a look-up may bring a thousand
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def is_host(name: str) -> bool:
    """Tell whether ``name``, in lower case and without a trailing dot, is a host name or an IP address."""
    if canonical_ip(name) is not None:
        return True
    labels = name.split(".")
    # No top-level domain is a number (RFC 3696): "10.0.0.256" is a slip of the pen, not a host.
    is_number = len(labels) > 1 and labels[-1].isdigit()
    return len(name) <= 253 and not is_number and all(map(_LABEL.fullmatch, labels))


def check_unique(parameter: str, endpoints: Iterable[Endpoint]) -> None:
    """Raise :class:`ValueError` if two of ``endpoints`` are equal, :class:`TypeError` if one is no endpoint."""
    seen = set()
    for endpoint in endpoints:
        if not isinstance(endpoint, Endpoint):
            raise TypeError(f"{parameter} must hold Endpoint objects, not {_check.show(endpoint)}")
        if endpoint in seen:
            raise ValueError(f"{parameter} holds {endpoint} twice")
        seen.add(endpoint)


def _set(target: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass while it is being made."""
    object.__setattr__(target, name, value)


def _host(parameter: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{parameter} must be a str, not {_check.show(value)}")
    name = canonical_ip(value) or value.lower().removesuffix(".")
    if not is_host(name):
        raise ValueError(f"{parameter} is neither a host name nor an IP address: {_check.show(value)}")
    return name


def _addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    _check.iterable("addresses", addresses, "IP addresses")
    return tuple(sorted({_address(text) for text in addresses}, key=_address_order))


def _address(text: object) -> str:
    address = canonical_ip(text) if isinstance(text, str) else None
    if address is None:
        raise ValueError(f"addresses must hold IP addresses, not {_check.show(text)}")
    return address


def _address_order(text: str) -> tuple[int, int, str]:
    address = ipaddress.ip_address(text)
    return address.version, int(address), text


def _own_address(name: str) -> tuple[str, ...]:
    return (name,) if canonical_ip(name) else ()


def _service_name(service: str, host: str) -> str:
    bracketed = host.startswith("[") and host.endswith("]")
    name = canonical_ip(host[1:-1] if bracketed else host) or host.lower()
    if not is_host(name.removesuffix(".")) or bracketed != (":" in name):
        raise ValueError(f"service {_check.show(service)} is neither a name nor a name with a port")
    return name


def _service_port(service: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"service {_check.show(service)} has a port that is not between 1 and 65535")
    return int(text)
