"""The report as a table of words: the same for eyes in a browser and in a terminal. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from geventconnpool.status._report import DiscoveryReport, EndpointReport, PoolReport, Report

COLUMNS = (
    *("Since", "In flight", "Idle", "Waiting", "Latency", "OK", "Failed", "Interrupted", "Ejections"),
    "Next",  # what happens by itself, and when
)
NOTHING = ""  # in a cell to which a column does not apply
TONES = {"stale": "care", "held": "care", "empty": "bad", "unavailable": "bad"}  # of discovery


@dataclass(frozen=True, slots=True)
class Note:
    """What takes a sentence. ``tone`` is ``"bad"`` for what is wrong now, ``"care"`` for what may become so."""

    title: str
    text: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A pool, a cluster or an endpoint (``kind``); ``cells`` are those of ``COLUMNS``."""

    kind: str
    name: str
    state: str
    verdict: str
    cells: tuple[str, ...]
    notes: tuple[Note, ...]


def rows(report: Report) -> tuple[Row, ...]:
    """Return a row for each pool, followed by those of its endpoints."""
    table: list[Row] = []
    for pool in report.pools:
        table.append(_pool_row(pool))
        table.extend(map(_endpoint_row, pool.endpoints or ()))
    return tuple(table)


def summary(report: Report) -> str:
    """Return in two sentences what there is, and what of it to look at."""
    kinds = Counter(pool.kind for pool in report.pools)
    there_are = ", ".join(_plural(kinds[kind], kind) for kind in ("cluster", "pool") if kinds[kind]) or "no pool"
    return f"Process {report.process}: {there_are}. {', '.join(_to_look_at(report)) or 'All is well'}."


def _to_look_at(report: Report) -> Iterable[str]:
    pools = Counter((pool.kind, pool.state) for pool in report.pools)
    yield from (f"{_plural(n, kind)} {state}" for (kind, state), n in pools.items() if state != "active")
    endpoints = Counter(entry.state for pool in report.pools for entry in pool.endpoints or ())
    yield from (f"{_plural(n, 'endpoint')} {state}" for state, n in endpoints.items() if state != "active")
    discoveries = Counter(pool.discovery.state for pool in report.pools if pool.discovery)
    yield from (f"discovery of {_plural(n, 'cluster')} {state}" for state, n in discoveries.items() if state != "fresh")


def _pool_row(pool: PoolReport) -> Row:
    lookup = pool.discovery.next_lookup_in_seconds if pool.discovery else None
    cells = (
        NOTHING,
        *(count(pool.in_flight), count(pool.idle), count(pool.waiting)),
        NOTHING,
        *(count(pool.ok), count(pool.failed), count(pool.interrupted)),
        NOTHING if pool.ejections is None else count(pool.ejections),
        NOTHING if lookup is None else f"look-up {soon(lookup)}",
    )
    return Row(pool.kind, pool.name, pool.state, "", cells, tuple(_pool_notes(pool)))


def _pool_notes(pool: PoolReport) -> Iterable[Note]:
    open_now = f"{count(pool.open)} of {count(pool.size)} open"
    rest = (
        (pool.connecting, f"{count(pool.connecting)} connecting"),
        (pool.timeouts, f"{_plural(pool.timeouts, 'get')} timed out"),
        (pool.refused, f"{_plural(pool.refused, 'get')} refused"),
    )
    yield Note("Connections", ", ".join((open_now, *(text for number, text in rest if number))))
    if pool.discovery:
        yield _discovery_note(pool.discovery)
    if pool.last_error and not pool.endpoints:  # else its endpoints tell it
        yield Note("Last error", pool.last_error, "bad" if pool.state == "unavailable" else "")


def _discovery_note(discovery: DiscoveryReport) -> Note:
    since = "" if discovery.since_seconds is None else f" for {duration(discovery.since_seconds)}"
    told = f": {discovery.outcome}" if discovery.outcome else ""
    # While it fails, the TTL of the last answer means nothing any more.
    is_of_use = discovery.state == "fresh" and discovery.ttl_seconds is not None
    ttl = f" (TTL {duration(discovery.ttl_seconds or 0.0)})" if is_of_use else ""
    return Note("Discovery", f"{discovery.state}{since}{told}{ttl}", TONES.get(discovery.state, ""))


def _endpoint_row(entry: EndpointReport) -> Row:
    cells = (
        duration(entry.since_seconds),
        *(count(entry.in_flight), count(entry.idle), count(entry.waiting)),
        NOTHING if entry.latency_seconds is None else milliseconds(entry.latency_seconds),
        *(count(entry.ok), count(entry.failed), count(entry.interrupted), count(entry.ejections)),
        _next(entry),
    )
    verdict = "" if entry.verdict is None or entry.verdict == entry.state else entry.verdict
    return Row("endpoint", entry.endpoint, entry.state, verdict, cells, tuple(_endpoint_notes(entry)))


def _next(entry: EndpointReport) -> str:
    if entry.next_probe_in_seconds is not None:
        return f"probe {soon(entry.next_probe_in_seconds)}"
    if entry.forced_close_in_seconds is not None:
        return f"closed {soon(entry.forced_close_in_seconds)}"
    return NOTHING


def _endpoint_notes(entry: EndpointReport) -> Iterable[Note]:
    tone = "bad" if entry.state == "ejected" else ""
    if entry.why:
        yield Note("Why", entry.why, tone)
    if entry.last_error and not (entry.why and tone):  # that tells the error, too
        yield Note("Last error", entry.last_error, tone)


def duration(seconds: float) -> str:
    """Return a time as people say it: in two units at most."""
    whole = int(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{max(whole, 10)} s"
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    if whole < 86400:
        return _two(whole // 3600, "h", whole // 60 % 60, "min")
    return _two(whole // 86400, "d", whole // 3600 % 24, "h")


def _two(much: int, unit: str, little: int, smaller: str) -> str:
    return f"{count(much)} {unit}{f' {little} {smaller}' if little else ''}"


def soon(seconds: float) -> str:
    return f"in {duration(seconds)}" if seconds else "now"


def milliseconds(seconds: float) -> str:
    """Return a time with the same number of decimals for all, so that they can be compared in a column."""
    return f"{seconds * 1000:,.2f} ms"


def count(number: int) -> str:
    return f"{number:,}"


def _plural(number: int, thing: str) -> str:
    return f"{count(number)} {thing}{'' if number == 1 else 's'}"
