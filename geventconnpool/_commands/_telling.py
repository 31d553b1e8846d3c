"""What happens in a cluster, in words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from geventconnpool import events

if TYPE_CHECKING:
    from geventconnpool.cluster._endpoints import Endpoint

_STYLES = {
    "added": ("green",),
    "readmitted": ("green",),
    "fresh": ("green",),
    "updated": ("cyan",),
    "removed": ("yellow",),
    "held": ("yellow",),
    "stale": ("yellow",),
    "ejected": ("red",),
    "empty": ("red",),
    "unavailable": ("red",),
}


# Of events about an endpoint: the word for it, and more about it.
_ABOUT: dict[type[events.Event], tuple[str, Callable[[Any], str]]] = {
    events.EndpointAdded: ("added", lambda event: described(event.endpoint)),
    events.EndpointUpdated: ("updated", lambda event: ", ".join(differences(event.previous, event.endpoint))),
    events.EndpointRemoved: ("removed", lambda _event: "no new calls; those in flight may end"),
    events.EndpointDrained: ("drained", lambda event: "calls were cut" if event.forced else "the last call has ended"),
    events.EndpointEjected: (
        "ejected",
        lambda event: f"failed {event.kind}, probe in {event.seconds:.1f} s",
    ),
    events.ProbeFailed: ("still out", lambda event: f"next probe in {event.seconds:.1f} s"),
    events.EndpointReadmitted: ("readmitted", lambda _event: "its probe has succeeded"),
}


def style_of(word: str) -> tuple[str, ...]:
    """Return how to paint one of the words that :func:`told` returns."""
    return _STYLES.get(word, ())


def told(event: events.Event) -> tuple[str, str, str] | None:
    """Return (what happened, to whom, more about it), None for what is of no interest to somebody who looks on."""
    if isinstance(event, events.DiscoveryChanged):
        return event.state, "discovery", event.outcome
    if isinstance(event, events.EventsDropped):
        return "missed", str(event.count), "events, which came too fast"
    about = _ABOUT.get(type(event))
    if about is None:
        return None
    word, more = about
    return word, str(getattr(event, "endpoint")), more(event)  # noqa: B009  # all that are in the table have one


def described(endpoint: Endpoint) -> str:
    """Return priority, weight and addresses in words."""
    addresses = ", ".join(endpoint.addresses) or "no address yet"
    return f"priority {endpoint.priority}, weight {endpoint.weight}, {addresses}"


def differences(previous: Endpoint, now: Endpoint) -> Iterator[str]:
    """Yield what has changed."""
    for field in ("priority", "weight", "addresses", "domain"):
        old, new = getattr(previous, field), getattr(now, field)
        if old != new:
            yield f"{field} {_in_words(old)} -> {_in_words(new)}"


def _in_words(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)
