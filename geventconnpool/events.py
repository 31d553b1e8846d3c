"""What happened in a pool, and how it stands: frozen values. Pure.

An event is handed to ``on_event`` by a greenlet of the pool, in the order in which things happened. Every event carries
``pool``, the name of the pool or cluster; events about one endpoint carry it as ``endpoint`` (None in a lone pool).
Statistics are what ``stats()`` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from traceback import StackSummary

    from geventconnpool.cluster._endpoints import Endpoint

Kind = Literal["connects", "keepalives", "calls"]
Reason = Literal["consecutive_failures", "failure_percentage"]
Verdict = Literal["next", "eligible", "busy", "standby", "ejected", "draining"]
DiscoveryState = Literal["starting", "fresh", "stale", "held", "empty", "unavailable"]

__all__ = [
    "ClusterStats",
    "ConnectFailed",
    "ConnectionClosed",
    "ConnectionHeld",
    "ConnectionOpened",
    "DiscoveryChanged",
    "DiscoveryStats",
    "EndpointAdded",
    "EndpointDrained",
    "EndpointEjected",
    "EndpointReadmitted",
    "EndpointRemoved",
    "EndpointStats",
    "EndpointUpdated",
    "Event",
    "EventsDropped",
    "Explanation",
    "HookFailed",
    "KeepaliveFailed",
    "KeepaliveRecovered",
    "Kind",
    "NestedGet",
    "PoolStats",
    "ProbeFailed",
    "Reason",
    "Verdict",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the pool named ``pool``."""

    pool: str


@dataclass(frozen=True, slots=True)
class ConnectionOpened(Event):
    """``_new_connection`` returned a connection after ``seconds``."""

    endpoint: Endpoint | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionClosed(Event):
    """A connection has been closed. ``cause`` is a key of ``stats().discarded``, or None if it was not discarded."""

    endpoint: Endpoint | None
    cause: str | None


@dataclass(frozen=True, slots=True)
class ConnectFailed(Event):
    """``_new_connection`` failed, the ``failures``-th time in a row; ``error`` is what it raised."""

    endpoint: Endpoint | None
    error: BaseException
    failures: int


@dataclass(frozen=True, slots=True)
class KeepaliveFailed(Event):
    """``_keepalive`` raised ``error``; the connection is discarded."""

    endpoint: Endpoint | None
    error: BaseException


@dataclass(frozen=True, slots=True)
class KeepaliveRecovered(Event):
    """A keepalive succeeded after one that failed."""

    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class HookFailed(Event):
    """The method ``hook`` of the pool raised ``error`` where nothing should be raised, or outlived its time."""

    endpoint: Endpoint | None
    hook: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class ConnectionHeld(Event):
    """A connection has been borrowed for ``seconds``, longer than ``hold_warning``; told once per lease.

    ``stack`` is where the greenlet that borrowed it was at that moment; empty if it has ended.
    """

    endpoint: Endpoint | None
    seconds: float
    stack: StackSummary


@dataclass(frozen=True, slots=True)
class NestedGet(Event):
    """A greenlet that holds ``held`` connections of the pool waits for another: if all do, none ever gets one.

    Told once per connection held. ``stack`` is where it waits.
    """

    held: int
    stack: StackSummary


@dataclass(frozen=True, slots=True)
class EndpointAdded(Event):
    """Discovery named a new endpoint, one joined the ``subset``, or one that was draining came back."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class EndpointUpdated(Event):
    """The weight, priority or addresses of an endpoint changed from those of ``previous``."""

    endpoint: Endpoint
    previous: Endpoint


@dataclass(frozen=True, slots=True)
class EndpointRemoved(Event):
    """Discovery no longer names the endpoint, or it left the ``subset``: it drains from now on."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class EndpointDrained(Event):
    """The last connection to a removed endpoint is closed; ``forced`` if calls were cut by ``drain_timeout``."""

    endpoint: Endpoint
    forced: bool


@dataclass(frozen=True, slots=True)
class EndpointEjected(Event):
    """Too many failures of one ``kind``; first probed in ``seconds``. ``error`` is that of the last failure.

    ``reason`` is the option of :class:`OutlierDetection` that ejected it: ``"consecutive_failures"`` (in a row), or
    ``"failure_percentage"`` (far more of the calls than with the other endpoints).
    """

    endpoint: Endpoint
    kind: Kind
    seconds: float
    error: BaseException | None
    reason: Reason = "consecutive_failures"


@dataclass(frozen=True, slots=True)
class ProbeFailed(Event):
    """An ejected endpoint did not pass its probe; the next one is in ``seconds``."""

    endpoint: Endpoint
    seconds: float
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class EndpointReadmitted(Event):
    """An ejected endpoint passed its probe and serves again."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class DiscoveryChanged(Event):
    """Discovery went from one state to another; ``error`` says why it failed, if it did, ``outcome`` what was told."""

    state: DiscoveryState
    error: BaseException | None
    outcome: str


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """``on_event`` was too slow: the oldest ``count`` events were dropped."""

    count: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """How a pool stands, and what it has done since it was made.

    ``open`` connections are idle, in use or under keepalive. ``wait_seconds`` is the time spent waiting by all gets
    that had to wait. ``closed`` counts every end of a connection, ``discarded`` those with a cause.
    """

    name: str
    size: int
    min_size: int
    open: int
    idle: int
    in_use: int
    connecting: int
    waiting: int
    gets: int
    waits: int
    wait_seconds: float
    timeouts: int
    refused: int
    opened: int
    open_errors: int
    closed: int
    discarded: Mapping[str, int]
    last_error: BaseException | None


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """How one endpoint of a cluster stands.

    ``latency`` is the average of its calls in seconds, hand-out to return (None before the first). ``failures`` are the
    failures in a row per kind. ``since`` and ``until`` are in ``time.monotonic()`` seconds: ``since`` is when the
    present ``state`` began, ``until`` the next probe of an ejected endpoint, the forced close of a draining one, else
    None.
    """

    endpoint: Endpoint
    state: Literal["active", "ejected", "draining"]
    in_flight: int
    latency: float | None
    failures: Mapping[Kind, int]
    ejections: int
    until: float | None
    last_error: BaseException | None
    pool: PoolStats
    since: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an endpoint would, or would not, be chosen for a call that comes now. ``str()`` of it is one line.

    ``verdict``: ``"next"`` would be chosen; ``"eligible"`` is compared with that one, and another is preferred;
    ``"busy"`` is eligible, but has no connection idle; ``"standby"`` is available, in a priority that is not needed;
    ``"ejected"`` and ``"draining"`` get no calls. ``why`` is that in words, with the numbers that decide. ``cost`` is
    what a call there counts for when :class:`PeakEWMA` compares, in seconds: the time that it is expected to take, and
    a millisecond (:doc:`balancing`). None with other balancers, of who is not eligible, and while an endpoint is due to
    be tried whatever that costs.
    """

    endpoint: Endpoint
    verdict: Verdict
    why: str
    cost: float | None

    def __str__(self) -> str:
        return f"{self.endpoint}: {self.verdict}: {self.why}"


@dataclass(frozen=True, slots=True)
class DiscoveryStats:
    """How discovery stands, and what the last look-up told.

    ``state`` is ``"starting"`` (nothing is known yet), ``"fresh"``, ``"stale"`` (the last look-up failed), ``"held"``
    (DNS says there is nothing, which is not yet believed), ``"empty"`` (it is now) or ``"unavailable"`` (the service
    says that it is); ``since`` is when that began, None before the first look-up. ``outcome`` is the last look-up in
    words, with the name server that gave it; ``last_error`` its error, None after an answer. ``ttl`` in seconds and
    the number of ``records`` are of the last answer, ``generation`` is the number of answers. Times are
    ``time.monotonic()`` seconds; ``next_lookup`` is None while a look-up is under way or if there is none.
    """

    state: DiscoveryState
    since: float | None
    outcome: str
    last_error: BaseException | None
    ttl: float | None
    records: int | None
    generation: int
    next_lookup: float | None


@dataclass(frozen=True, slots=True)
class ClusterStats(PoolStats):
    """Totals over all endpoints under the names of :class:`PoolStats`, then each endpoint, then discovery."""

    endpoints: tuple[EndpointStats, ...]
    discovery: DiscoveryStats
