"""``resolve``: what a pool would connect to."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence

from geventconnpool._commands._lookup import Found, look_up
from geventconnpool._commands._output import Output
from geventconnpool._commands._terminal import Column, Look, table
from geventconnpool.cluster import Endpoint
from geventconnpool.cluster._balancers import effective_weight
from geventconnpool.cluster._race import interleaved
from geventconnpool.cluster._refresh import DEFAULT_BOUNDS

COLUMNS = (
    Column("priority", is_number=True),
    Column("endpoint"),
    Column("weight", is_number=True),
    Column("share", is_number=True),
    Column("addresses"),
)


def run(options: argparse.Namespace, output: Output) -> int:
    """Look a service up once, and tell what was found. Returns 0 if there is something to connect to, else 1."""
    name = " ".join(options.name)
    with output.progress(lambda: f"looking up {name}"):
        found = look_up(options.name, options.nameserver, options.timeout)
    if output.as_json:
        output.document(document(name, found))
    else:
        for line in text(name, found, output.look):
            output.line(line)
    return 0 if found.endpoints else 1


def document(name: str, found: Found) -> dict[str, object]:
    """Return what was found, to be written as JSON."""
    shares = shares_of(found.endpoints)
    return {
        "name": name,
        "outcome": found.outcome,
        "error": found.error,
        "nameserver": found.nameserver,
        "seconds": round(found.seconds, 6),
        "ttl": found.ttl if found.ttl is None else round(found.ttl, 3),
        "refresh": refresh_of(found),
        "endpoints": [{**fields_of(endpoint), "share": round(shares[endpoint], 6)} for endpoint in found.endpoints],
        "left_out": [{"endpoint": left.endpoint, "why": left.why} for left in found.left_out],
    }


def fields_of(endpoint: Endpoint) -> dict[str, object]:
    """Return an endpoint for JSON; its addresses in the order in which they are tried."""
    return {
        "endpoint": str(endpoint),
        "name": endpoint.name,
        "port": endpoint.port,
        "priority": endpoint.priority,
        "weight": endpoint.weight,
        "addresses": interleaved(endpoint.addresses),
        "domain": endpoint.domain,
    }


def text(name: str, found: Found, look: Look) -> Iterator[str]:
    """Yield the lines that tell what was found."""
    if not found.endpoints:
        yield look.paint(f"{name}: nothing to connect to", "bold", "red")
        yield found.outcome
        if found.error and not name.startswith("_") and ":" not in name:
            yield f"A name without a port is looked up as SRV records. Did you mean {name}:PORT, its addresses?"
    else:
        yield f"{look.paint(name, 'bold')}: {found.outcome}"
        yield how_long(found)
        yield ""
        yield from table(COLUMNS, rows_of(found.endpoints))
        yield ""
        yield in_which_order(found.endpoints)
    if found.left_out:
        yield ""
        yield "not used:"
        for left in found.left_out:
            yield f"  {look.paint(left.endpoint, 'yellow')}: {left.why}"


def how_long(found: Found) -> str:
    """Say how long that holds, and when a pool with the defaults of DNSResolver asks again."""
    refresh = refresh_of(found)
    if found.ttl is None or refresh is None:
        return "holds for ever: a pool does not ask again"
    bound = " (min_refresh)" if refresh > found.ttl else " (max_refresh)" if refresh < found.ttl else ""
    return f"TTL {found.ttl:.0f} s: a pool asks again after {refresh:.0f} s{bound}, or up to 10 % later"


def refresh_of(found: Found) -> float | None:
    """Return after how many seconds a pool asks again, None for never."""
    if found.ttl is None:
        return None
    return max(DEFAULT_BOUNDS.min_refresh, min(round(found.ttl, 3), DEFAULT_BOUNDS.max_refresh))


def rows_of(endpoints: Sequence[Endpoint]) -> Iterator[Sequence[str]]:
    shares = shares_of(endpoints)
    for endpoint in endpoints:
        share, addresses = f"{100 * shares[endpoint]:.1f} %", ", ".join(interleaved(endpoint.addresses))
        yield str(endpoint.priority), str(endpoint), str(endpoint.weight), share, addresses


def shares_of(endpoints: Sequence[Endpoint]) -> dict[Endpoint, float]:
    """Return the share of the calls that each gets while calls go to its priority, all of which is well."""
    total: defaultdict[int, float] = defaultdict(float)
    for endpoint in endpoints:
        total[endpoint.priority] += effective_weight(endpoint.weight)
    return {endpoint: effective_weight(endpoint.weight) / total[endpoint.priority] for endpoint in endpoints}


def in_which_order(endpoints: Sequence[Endpoint]) -> str:
    """Say which priority is used when."""
    first, *others = sorted({endpoint.priority for endpoint in endpoints})
    if not others:
        return f"All calls go to priority {first}."
    rest = ", then ".join(map(str, others))
    return f"All calls go to priority {first}; only while nothing of it is available, to {rest}."
