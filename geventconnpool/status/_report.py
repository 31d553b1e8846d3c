"""What the status page tells: plain values in the words of ``stats()``, with times in seconds from now. Pure.

The report is made once for all forms of the page; as JSON it is the page. Names and errors come from DNS and from
servers, so all text in it is one line of printable characters. To escape it for HTML is up to who writes HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from geventconnpool import events
from geventconnpool._check import show

if TYPE_CHECKING:
    from geventconnpool.cluster import Endpoint

PoolState = Literal["active", "starting", "unavailable", "closed"]

LONGEST_TEXT = 500  # characters: an error may hold a whole page that a server sent


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read from one pool: ``explanations`` is empty where nobody may ask for them."""

    stats: events.PoolStats
    closed: bool = False
    explanations: Iterable[events.Explanation] = ()


@dataclass(frozen=True, slots=True)
class EndpointReport:
    """One endpoint of a cluster; ``why`` and its like are None in a native thread that is not the cluster's."""

    endpoint: str
    addresses: tuple[str, ...]
    priority: int
    weight: int
    state: str
    since_seconds: float
    verdict: str | None
    why: str | None
    cost_seconds: float | None
    size: int
    open: int
    in_flight: int
    idle: int
    connecting: int
    waiting: int
    latency_seconds: float | None
    ok: int
    failed: int
    interrupted: int
    ejections: int
    last_error: str | None
    next_probe_in_seconds: float | None
    forced_close_in_seconds: float | None


@dataclass(frozen=True, slots=True)
class DiscoveryReport:
    state: str
    since_seconds: float | None
    outcome: str
    last_error: str | None
    ttl_seconds: float | None
    records: int | None
    generation: int
    next_lookup_in_seconds: float | None


@dataclass(frozen=True, slots=True)
class PoolReport:
    """A lone pool, for which ``discovery`` and ``endpoints`` are None, or a cluster with the totals of its pools."""

    kind: Literal["pool", "cluster"]
    name: str
    state: PoolState
    size: int
    open: int
    in_flight: int
    idle: int
    connecting: int
    waiting: int
    ok: int
    failed: int
    interrupted: int
    timeouts: int
    refused: int
    ejections: int | None
    last_error: str | None
    discovery: DiscoveryReport | None
    endpoints: tuple[EndpointReport, ...] | None


@dataclass(frozen=True, slots=True)
class Report:
    """All pools of the process with the number ``process``."""

    process: int
    pools: tuple[PoolReport, ...]


def plain(value: Any) -> Any:
    """Return what JSON has instead of a report: ``dataclasses.asdict`` takes five times as long."""
    return {name: getattr(value, name) for name in value.__match_args__}


def report_on(readings: Iterable[Reading], process: int, now: float) -> Report:
    """Return how pools stand that were read at ``now``, in ``time.monotonic()`` seconds."""
    return Report(process, tuple(_pool(reading, now) for reading in readings))


def printable(text: object) -> str:
    """Return ``str(text)`` as one line, not too long, in which nothing moves the cursor or turns the direction."""
    line = str(text)[: 4 * LONGEST_TEXT]
    if not line.isprintable():
        line = "".join(map(_visible, " ".join(line.split())))
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 1]}…"


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _pool(reading: Reading, now: float) -> PoolReport:
    stats = reading.stats
    cluster = stats if isinstance(stats, events.ClusterStats) else None
    return PoolReport(
        kind="cluster" if cluster else "pool",
        name=printable(stats.name),
        state="closed" if reading.closed else _state(stats),
        size=stats.size,
        open=stats.open,
        in_flight=stats.in_use,
        idle=stats.idle,
        connecting=stats.connecting,
        waiting=stats.waiting,
        timeouts=stats.timeouts,
        refused=stats.refused,
        **_calls(stats),
        ejections=sum(entry.ejections for entry in cluster.endpoints) if cluster else None,
        last_error=_error(stats.last_error),
        discovery=_discovery(cluster.discovery, now) if cluster else None,
        endpoints=_endpoints(cluster.endpoints, reading.explanations, now) if cluster else None,
    )


def _state(stats: events.PoolStats) -> PoolState:
    """Say in a word what statistics leave to the reader: whether a call could be served."""
    if isinstance(stats, events.ClusterStats) and all(entry.state != "active" for entry in stats.endpoints):
        return "starting" if stats.discovery.state == "starting" else "unavailable"
    if stats.open or not (stats.min_size or stats.waiting):
        return "active"
    return "starting" if stats.last_error is None else "unavailable"


def _calls(stats: events.PoolStats) -> dict[str, int]:
    """Return how calls ended. Those that discarded a connection for another cause were good enough for their caller."""
    failed, interrupted = stats.discarded["error"], stats.discarded["interrupted"]
    ended = stats.gets - stats.in_use
    return {"ok": max(0, ended - failed - interrupted), "failed": failed, "interrupted": interrupted}


def _endpoints(
    entries: Iterable[events.EndpointStats], explanations: Iterable[events.Explanation], now: float
) -> tuple[EndpointReport, ...]:
    """Return them in an order that stays, whoever comes and goes."""
    by_endpoint = {explanation.endpoint: explanation for explanation in explanations}
    ordered = sorted(entries, key=lambda entry: _rank(entry.endpoint))
    return tuple(_endpoint(entry, by_endpoint, now) for entry in ordered)


def _rank(endpoint: Endpoint) -> tuple[int, str, int]:
    return endpoint.priority, endpoint.name, endpoint.port


def _endpoint(
    entry: events.EndpointStats, explanations: Mapping[Endpoint, events.Explanation], now: float
) -> EndpointReport:
    endpoint, pool, explanation = entry.endpoint, entry.pool, explanations.get(entry.endpoint)
    return EndpointReport(
        endpoint=printable(endpoint),
        addresses=tuple(map(printable, endpoint.addresses)),
        priority=endpoint.priority,
        weight=endpoint.weight,
        state=entry.state,
        since_seconds=max(0.0, round(now - entry.since, 3)),
        verdict=printable(explanation.verdict) if explanation else None,
        why=printable(explanation.why) if explanation else None,
        cost_seconds=_rounded(explanation.cost) if explanation else None,
        size=pool.size,
        open=pool.open,
        in_flight=entry.in_flight,
        idle=pool.idle,
        connecting=pool.connecting,
        waiting=pool.waiting,
        latency_seconds=_rounded(entry.latency),
        **_calls(pool),
        ejections=entry.ejections,
        last_error=_error(entry.last_error),
        next_probe_in_seconds=_until(entry.until, now) if entry.state == "ejected" else None,
        forced_close_in_seconds=_until(entry.until, now) if entry.state == "draining" else None,
    )


def _discovery(stats: events.DiscoveryStats, now: float) -> DiscoveryReport:
    return DiscoveryReport(
        state=stats.state,
        since_seconds=None if stats.since is None else max(0.0, round(now - stats.since, 3)),
        outcome=printable(stats.outcome),
        last_error=_error(stats.last_error),
        ttl_seconds=_rounded(stats.ttl),
        records=stats.records,
        generation=stats.generation,
        next_lookup_in_seconds=_until(stats.next_lookup, now),
    )


def _error(error: BaseException | None) -> str | None:
    if error is None:
        return None
    try:
        message = str(error)
    except Exception:  # it is the user's, as its class is
        message = show(error)
    name = type(error).__name__
    return printable(f"{name}: {message}" if message else name)


def _until(moment: float | None, now: float) -> float | None:
    return None if moment is None else max(0.0, round(moment - now, 3))


def _rounded(seconds: float | None) -> float | None:
    """Return microseconds as the last that counts; JSON has no infinity."""
    return round(seconds, 6) if seconds is not None and isfinite(seconds) else None
