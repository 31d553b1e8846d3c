"""Made-up statistics of pools: what the status page shows in tests, and in the pictures of the docs."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from geventconnpool import Endpoint, events
from geventconnpool.cluster import ResolutionError
from geventconnpool.status._report import Reading, Report, report_on

NOW = 100_000.0


def pool_values(name: str, **values: Any) -> dict[str, Any]:
    """Return the fields of PoolStats, 0 but for those given; ``failed`` and ``interrupted`` are of ``discarded``."""
    discarded = {"error": values.pop("failed", 0), "interrupted": values.pop("interrupted", 0)}
    numbers: dict[str, Any] = dict.fromkeys(events.PoolStats.__match_args__, 0)
    given = {"wait_seconds": 0.0, "last_error": None, "name": name, "discarded": MappingProxyType(discarded)}
    return {**numbers, **given, **values}


def endpoint(
    name: str,
    state: Any,
    since: float,
    latency: float,
    why: tuple[events.Verdict, str],
    *,
    ejections: int = 0,
    until: float | None = None,
    error: BaseException | None = None,
    **numbers: int,
) -> tuple[events.EndpointStats, events.Explanation]:
    """Return how an endpoint stands, ``since`` seconds ago and ``until`` seconds from now, and an explanation."""
    pool = events.PoolStats(**pool_values(name, size=10, min_size=10, last_error=error, **numbers))
    host, _, port = name.partition(":")
    where = Endpoint(host, int(port))
    entry = events.EndpointStats(
        endpoint=where,
        state=state,
        since=NOW - since,
        in_flight=pool.in_use,
        latency=latency,
        failures=MappingProxyType({"connects": 0, "keepalives": 0, "calls": 0}),
        ejections=ejections,
        until=None if until is None else NOW + until,
        last_error=error,
        pool=pool,
    )
    verdict, text = why
    return entry, events.Explanation(where, verdict, text, None)


def cluster(
    name: str,
    discovery: events.DiscoveryStats,
    *members: tuple[events.EndpointStats, events.Explanation | None],
    **numbers: int,
) -> Reading:
    pools = [entry.pool for entry, _ in members]
    gauges = ("size", "min_size", "open", "idle", "in_use", "connecting", "gets")
    sums = {field: sum(getattr(pool, field) for pool in pools) for field in gauges}
    sums["failed"] = sum(pool.discarded["error"] for pool in pools)
    sums["interrupted"] = sum(pool.discarded["interrupted"] for pool in pools)
    stats = events.ClusterStats(
        **pool_values(name, **{**sums, **numbers}),
        endpoints=tuple(entry for entry, _ in members),
        discovery=discovery,
    )
    return Reading(stats, False, [explanation for _, explanation in members if explanation])


def sessions() -> Reading:
    refused = ConnectionRefusedError(111, "Connection refused")
    reset = ConnectionResetError(104, "Connection reset by peer")
    used = "a call counts as 1.4 ms; calls take 0.41 ms; 3 in flight, where 2.6 is usual"
    ahead = "a call counts as 1.5 ms; calls take 0.44 ms; 2 in flight; 1.2 calls ahead of its share"
    failed = (
        f"for 42 s: too many calls in a row failed; last failure {refused!r}; probes failed: 7; next probe in 3.2 s"
    )
    gone = "for 9 s: it left DNS, or the subset; 2 in flight may finish within 21 s"
    return cluster(
        "sessions",
        events.DiscoveryStats("fresh", NOW - 15_131, "4 SRV records from 10.0.0.2:53", None, 30.0, 4, 507, NOW + 12.3),
        endpoint(
            *("cache1.shop.example:6379", "active", 15_131, 0.00041, ("next", used)),
            open=10, idle=7, in_use=3, gets=1_904_312, error=reset, failed=2, interrupted=5,
        ),
        endpoint(
            *("cache2.shop.example:6379", "active", 15_131, 0.00044, ("eligible", ahead)),
            open=10, idle=8, in_use=2, gets=1_871_020, interrupted=3,
        ),
        endpoint(
            *("cache3.shop.example:6379", "ejected", 42, 0.00052, ("ejected", failed)),
            until=3.2, ejections=3, error=refused, gets=1_702_655, failed=23, interrupted=4,
        ),
        endpoint(
            *("cache4.shop.example:6379", "draining", 9, 0.00047, ("draining", gone)),
            until=21, open=2, in_use=2, gets=1_866_204, interrupted=4,
        ),
        timeouts=17,
    )  # fmt: skip


def accounts() -> Reading:
    outcome = "_ldap._tcp.shop.example SRV: SERVFAIL from 10.0.0.3:53"
    return cluster(
        "accounts",
        events.DiscoveryStats("stale", NOW - 184, outcome, ResolutionError(outcome), 60.0, 2, 88, NOW + 21.4),
        endpoint(
            *("ldap-a.shop.example:636", "active", 262_740, 0.0124),
            ("next", "a call counts as 13 ms; calls take 12 ms; 1 in flight"),
            open=10, idle=9, in_use=1, gets=48_210, interrupted=1,
        ),
        endpoint(
            *("ldap-b.shop.example:636", "active", 187, 0.0139),
            ("eligible", "a call counts as 15 ms; calls take 14 ms; 0 in flight"),
            ejections=1, error=TimeoutError("timed out"), open=10, idle=10, gets=31_006, failed=8, interrupted=2,
        ),
    )  # fmt: skip


def registry() -> Reading:
    values = pool_values("registry", size=5, min_size=5, open=5, in_use=5, waiting=3, gets=7_204, waits=388, timeouts=2)
    return Reading(events.PoolStats(**values), False)


def incident() -> Report:
    return report_on([sessions(), accounts(), registry()], 4711, NOW)
