"""What is told of a pool to those who draw curves: one table, whoever reads it. Pure.

A metric is a name, and how it is read from what ``stats()`` returns. It has one series for each pool, endpoint or
discovery it is ``of``; with a ``label``, one for each value of that. The names are those of ``stats()``. What they are
called elsewhere, and in which units, follows from the table: seconds are ``"s"``, as in the Unified Code for Units of
Measure that OpenTelemetry uses; what is counted stands in braces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, get_args

from geventconnpool import events

if TYPE_CHECKING:
    from geventconnpool.cluster._endpoints import Endpoint

COUNTER: Literal["counter"] = "counter"  # never goes back
SUM: Literal["sum"] = "sum"  # adds up over pools and processes
GAUGE: Literal["gauge"] = "gauge"  # does not

# Of what: a place is what connections lead to, an endpoint of a cluster or a lone pool.
Of = Literal["pool", "cluster", "endpoint", "discovery", "place"]

Value = float | Mapping[str, float] | None  # by label if there is one; None for what is not known

ENDPOINT_STATES = ("active", "ejected", "draining")


@dataclass(frozen=True, slots=True)
class Metric:
    """One name, and how to read its series: an attribute, or what a function says that is told the time."""

    name: str
    kind: Literal["counter", "sum", "gauge"]
    unit: str
    help: str
    of: Of
    read: str | Callable[[Any, float], Value]
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One value. ``endpoint`` is None if it is of a pool as a whole, ``label`` if the metric has none."""

    endpoint: Endpoint | None
    label: str | None
    value: float


def samples(metric: Metric, stats: events.PoolStats, now: float, *, endpoints: bool) -> Iterator[Sample]:
    """Yield what ``stats`` say about ``metric``; nothing about single ``endpoints`` unless wanted."""
    read = metric.read
    for endpoint, subject in _subjects(metric.of, stats, endpoints):
        value: Value = attrgetter(read)(subject) if isinstance(read, str) else read(subject, now)
        if isinstance(value, Mapping):
            yield from (Sample(endpoint, label, number) for label, number in value.items())
        elif value is not None:
            yield Sample(endpoint, None, value)


def _subjects(of: Of, stats: events.PoolStats, endpoints: bool) -> Iterator[tuple[Endpoint | None, Any]]:
    """Yield what a metric is read from, and the endpoint that this is about."""
    cluster = stats if isinstance(stats, events.ClusterStats) else None
    entries = cluster.endpoints if cluster is not None and endpoints else ()
    if of == "endpoint":
        yield from ((entry.endpoint, entry) for entry in entries)
    elif of == "place" and cluster is not None and endpoints:
        yield from ((entry.endpoint, entry.pool) for entry in entries)
    elif of in ("pool", "place"):
        yield None, stats
    elif cluster is not None:
        yield None, cluster.discovery if of == "discovery" else cluster


def _connections(s: events.PoolStats, _now: float) -> Mapping[str, float]:
    # From another thread a pool may be seen in the middle of a change: no state has fewer than no connections then.
    kept_alive = s.open - s.idle - s.in_use
    states = {"idle": s.idle, "in_use": s.in_use, "keepalive": kept_alive, "connecting": s.connecting}
    return {state: max(0, number) for state, number in states.items()}


def _idle_or_used(s: events.PoolStats, _now: float) -> Mapping[str, float]:
    return {"idle": max(0, s.open - s.in_use), "used": max(0, s.in_use)}


def _connections_to(e: events.EndpointStats, now: float) -> Mapping[str, float]:
    return _connections(e.pool, now)


def _endpoints(s: events.ClusterStats, _now: float) -> Mapping[str, float]:
    states: list[str] = [entry.state for entry in s.endpoints]
    return {state: states.count(state) for state in ENDPOINT_STATES}


def _is_up(e: events.EndpointStats, _now: float) -> int:
    return int(e.state == "active")


def _state_age(s: events.EndpointStats | events.DiscoveryStats, now: float) -> float | None:
    return None if s.since is None else max(0.0, now - s.since)  # it may have begun after ``now``, in another thread


def _one_of(states: tuple[str, ...]) -> Callable[[Any, float], Mapping[str, float]]:
    """Read a state as 1, and all others as 0: a curve for each shows when it was which."""
    return lambda s, _now: {state: int(state == s.state) for state in states}


# fmt: off
_EVERYWHERE = (
    Metric("gets", COUNTER, "{get}", "Calls that got a connection.", "pool", "gets"),
    Metric("waits", COUNTER, "{get}", "Calls that had to wait for a connection.", "pool", "waits"),
    Metric("wait_time", COUNTER, "s", "Time that calls have spent waiting, all together.", "pool", "wait_seconds"),
    Metric("refused", COUNTER, "{get}", "Calls refused at once, with PoolFull.", "pool", "refused"),
    Metric("opened", COUNTER, "{connection}", "Connections opened.", "pool", "opened"),
    Metric("open_errors", COUNTER, "{error}", "Attempts to connect that failed.", "pool", "open_errors"),
    Metric("closed", COUNTER, "{connection}", "Connections closed, for whatever reason.", "pool", "closed"),
    Metric("discarded", COUNTER, "{connection}", "Connections discarded, by cause.", "pool", "discarded", "cause"),

    Metric("endpoints", SUM, "{endpoint}", "Endpoints of a cluster, by state.", "cluster", _endpoints, "state"),

    Metric("endpoint.up", GAUGE, "1", "1 if it is active, 0 if it is ejected or draining.", "endpoint", _is_up),
    Metric("endpoint.state", GAUGE, "1", "1 for the state it is in, 0 for the others.", "endpoint",
           _one_of(ENDPOINT_STATES), "state"),
    Metric("endpoint.state_age", GAUGE, "s", "For how long it has been in its state.", "endpoint", _state_age),
    Metric("endpoint.latency", GAUGE, "s", "Average time of a call, hand-out to return, as the balancer sees it.",
           "endpoint", "latency"),
    Metric("endpoint.failures_in_row", GAUGE, "{failure}", "Failures in a row, by kind.", "endpoint", "failures",
           "kind"),
    Metric("endpoint.ejections", COUNTER, "{ejection}", "How often it was ejected.", "endpoint", "ejections"),
    Metric("endpoint.gets", COUNTER, "{get}", "Calls that got a connection to it.", "endpoint", "pool.gets"),
    Metric("endpoint.open_errors", COUNTER, "{error}", "Attempts to connect to it that failed.", "endpoint",
           "pool.open_errors"),
    Metric("endpoint.discarded", COUNTER, "{connection}", "Connections to it that were discarded, by cause.",
           "endpoint", "pool.discarded", "cause"),

    Metric("discovery.state", GAUGE, "1", "1 for the state it is in, 0 for the others.", "discovery",
           _one_of(get_args(events.DiscoveryState)), "state"),
    Metric("discovery.state_age", GAUGE, "s", "For how long it has been in its state.", "discovery", _state_age),
    Metric("discovery.ttl", GAUGE, "s", "For how long the last answer holds, as that says.", "discovery", "ttl"),
    Metric("discovery.records", GAUGE, "{record}", "Records in the last answer.", "discovery", "records"),
    Metric("discovery.answers", COUNTER, "{answer}", "Look-ups that were answered.", "discovery", "generation"),
)

PROMETHEUS = (
    Metric("connections", SUM, "{connection}", "Connections, by state.", "pool", _connections, "state"),
    Metric("connections.max", SUM, "{connection}", "How many connections there may be.", "pool", "size"),
    Metric("connections.min", SUM, "{connection}", "How many connections are kept at least.", "pool", "min_size"),
    Metric("waiting", SUM, "{get}", "Calls that wait for a connection.", "pool", "waiting"),
    Metric("timeouts", COUNTER, "{get}", "Calls that got PoolTimeout.", "pool", "timeouts"),
    Metric("endpoint.connections", SUM, "{connection}", "Connections to it, by state.", "endpoint",
           _connections_to, "state"),
    Metric("endpoint.connections.max", SUM, "{connection}", "How many connections to it there may be.", "endpoint",
           "pool.size"),
    Metric("endpoint.in_flight", SUM, "{call}", "Calls in flight to it.", "endpoint", "in_flight"),
    *_EVERYWHERE,
)

# What the semantic conventions of OpenTelemetry know about has the names that these give it, after a prefix.
CONVENTION = (
    Metric("count", SUM, "{connection}", "Connections in the state that the attribute says.", "place", _idle_or_used,
           "state"),
    Metric("max", SUM, "{connection}", "How many connections there may be.", "place", "size"),
    Metric("idle.max", SUM, "{connection}", "How many connections may be idle.", "place", "size"),
    Metric("idle.min", SUM, "{connection}", "How many connections are kept at least.", "place", "min_size"),
    Metric("pending_requests", SUM, "{request}", "Calls that wait for a connection.", "pool", "waiting"),
    Metric("timeouts", COUNTER, "{timeout}", "Calls that got PoolTimeout.", "pool", "timeouts"),
)
OPENTELEMETRY = (
    Metric("connecting", SUM, "{connection}", "Connections being opened.", "place", "connecting"),
    *_EVERYWHERE,
)
# fmt: on
