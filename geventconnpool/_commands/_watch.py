"""``watch``: what a pool learns from DNS, as it learns it.

A pool is what watches, one that never opens a connection. So what is told here is what pools do, and when.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from math import inf
from time import monotonic

from gevent.queue import Empty, Queue

from geventconnpool import events
from geventconnpool._commands._lookup import resolver_of
from geventconnpool._commands._output import Output
from geventconnpool._commands._resolve import fields_of
from geventconnpool._commands._telling import style_of, told
from geventconnpool._commands._terminal import count_of
from geventconnpool.cluster import ClusterPool, DNSResolver, Endpoint, Resolver

GLANCE = 1.0  # seconds between two looks at whether anybody still reads

Heard = tuple[datetime, events.Event]


class Watched(ClusterPool[None]):
    """A pool of which only discovery is of interest: with ``min_size=0`` and nobody to call, it connects to nobody."""

    def _new_connection(self, endpoint: Endpoint) -> None:
        """Never called."""


def run(options: argparse.Namespace, output: Output) -> int:
    """Tell what happens until the time is over. Returns 0 if there is something to connect to then, else 1."""
    heard: Queue[Heard] = Queue()
    bounds = {"min_refresh": options.min_refresh, "max_refresh": options.max_refresh, "empty_hold": options.empty_hold}
    dns = DNSResolver(options.nameserver, timeout=min(2.0, options.timeout), lifetime=options.timeout, **bounds)
    resolver, service = resolver_of(options.name, dns)

    def note(event: events.Event) -> None:
        heard.put((datetime.now().astimezone(), event))

    end = inf if options.seconds is None else monotonic() + options.seconds
    with _pool(resolver, service, note) as pool, output.progress(lambda: how_it_stands(pool.stats(), monotonic())):
        while True:
            if output.is_unread:
                raise BrokenPipeError
            left = end - monotonic()
            try:
                tell(*heard.get(timeout=max(0.0, min(GLANCE, left))), output)
            except Empty:
                if left <= 0:
                    break
        return 0 if any(entry.endpoint.addresses for entry in pool.stats().endpoints) else 1


def _pool(resolver: Resolver, service: str | None, note: Callable[[events.Event], object]) -> Watched:
    if service is None:
        return Watched(resolver, 1, min_size=0, on_event=note)
    return Watched(service, 1, min_size=0, on_event=note, resolver=resolver)


def tell(at: datetime, event: events.Event, output: Output) -> None:
    """Write a line about an event, if it is of interest."""
    document, words = document_of(event), told(event)
    if document is None or words is None:
        return  # that an endpoint is drained, which is at once where there are no calls
    if output.as_json:
        output.document({"time": at.isoformat(timespec="milliseconds"), **document})
        return
    what, whom, more = words
    painted = output.look.paint(f"{what:<11}", *style_of(what))
    output.line(f"{at:%H:%M:%S}  {painted}  {whom}: {more}")


def document_of(event: events.Event) -> dict[str, object] | None:
    """Return an event, to be written as JSON; None if it is of no interest."""
    if isinstance(event, events.EndpointUpdated):
        return {"event": "updated", **fields_of(event.endpoint), "previous": fields_of(event.previous)}
    if isinstance(event, events.EndpointAdded | events.EndpointRemoved):
        return {"event": type(event).__name__.removeprefix("Endpoint").lower(), **fields_of(event.endpoint)}
    if isinstance(event, events.DiscoveryChanged):
        return {"event": "discovery", "state": event.state, "outcome": event.outcome}
    return {"event": "missed", "count": event.count} if isinstance(event, events.EventsDropped) else None


def how_it_stands(stats: events.ClusterStats, now: float) -> str:
    """Return how discovery stands and when it asks again."""
    discovery = stats.discovery
    number = count_of(len(stats.endpoints), "endpoint")
    if discovery.next_lookup is None:
        return f"{number}, {discovery.state}"
    return f"{number}, {discovery.state}, next look-up in {max(0.0, discovery.next_lookup - now):.0f} s"
