"""``watch``: what a pool learns from DNS, as it learns it.

A pool is what watches, one that never opens a connection. So what is told here is what pools do, and when.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from math import inf
from time import monotonic
from typing import NoReturn

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


class Watched(ClusterPool[NoReturn]):
    """A pool of which only discovery is of interest: with ``min_size=0`` and nobody to call, it connects to nobody."""

    def _new_connection(self, endpoint: Endpoint) -> NoReturn:
        raise NotImplementedError


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
        while not output.is_unread:
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
    if isinstance(event, events.EndpointDrained):
        return  # where there are no calls, that is at once
    if output.as_json:
        if document := document_of(event):
            output.document({"time": at.isoformat(timespec="milliseconds"), **document})
    elif words := told(event):
        what, whom, more = words
        painted = output.look.paint(f"{what:<11}", *style_of(what))
        output.line(f"{at:%H:%M:%S}  {painted}  {whom}: {more}")


def document_of(event: events.Event) -> dict[str, object] | None:
    """Return an event, to be written as JSON; None if it is of no interest."""
    match event:
        case events.EndpointAdded(endpoint=endpoint):
            return {"event": "added", **fields_of(endpoint)}
        case events.EndpointUpdated(endpoint=endpoint, previous=previous):
            return {"event": "updated", **fields_of(endpoint), "previous": fields_of(previous)}
        case events.EndpointRemoved(endpoint=endpoint):
            return {"event": "removed", **fields_of(endpoint)}
        case events.DiscoveryChanged(state=state, outcome=outcome):
            return {"event": "discovery", "state": state, "outcome": outcome}
        case events.EventsDropped(count=count):
            return {"event": "missed", "count": count}
    return None


def how_it_stands(stats: events.ClusterStats, now: float) -> str:
    """Return how discovery stands and when it asks again."""
    discovery = stats.discovery
    number = count_of(len(stats.endpoints), "endpoint")
    if discovery.next_lookup is None:
        return f"{number}, {discovery.state}"
    return f"{number}, {discovery.state}, next look-up in {max(0.0, discovery.next_lookup - now):.0f} s"
