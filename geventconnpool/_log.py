"""What is written to the log: state changes, failures at most once per 30 s and series, nothing per check-out.

The logger is ``geventconnpool`` with the children ``.pool``, ``.cluster``, ``.discovery`` and ``.retry``. Records
carry the pool's name as ``pool`` and, where there is one, the endpoint as ``endpoint``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from geventconnpool import events
from geventconnpool._check import show

logger = logging.getLogger("geventconnpool")
logger.addHandler(logging.NullHandler())
_pool, _cluster, _discovery = (logger.getChild(name) for name in ("pool", "cluster", "discovery"))

REPEAT_AFTER = 30.0  # seconds

# Event, logger, level, text; the text is formatted with the event's fields.
_LINES: dict[type[events.Event], tuple[logging.Logger, int, str]] = {
    events.ConnectionOpened: (_pool, logging.DEBUG, "opened a connection in {seconds:.3f} s"),
    events.ConnectionClosed: (_pool, logging.DEBUG, "closed a connection (cause: {cause})"),
    events.ConnectFailed: (_pool, logging.WARNING, "cannot connect ({failures} in a row): {error}"),
    events.KeepaliveFailed: (_pool, logging.WARNING, "keepalive failed, connection discarded: {error}"),
    events.KeepaliveRecovered: (_pool, logging.INFO, "keepalive succeeds again"),
    events.HookFailed: (_pool, logging.WARNING, "{hook} failed: {error}"),
    events.ConnectionHeld: (_pool, logging.WARNING, "a connection is held for {seconds:.1f} s already, by\n{stack}"),
    events.NestedGet: (
        _pool,
        logging.WARNING,
        "possible deadlock: a greenlet that holds {held} waits for one more, at\n{stack}",
    ),
    events.EndpointAdded: (_cluster, logging.INFO, "added"),
    events.EndpointUpdated: (_cluster, logging.INFO, "updated from {previous!r}"),
    events.EndpointRemoved: (_cluster, logging.INFO, "removed, drains"),
    events.EndpointDrained: (_cluster, logging.INFO, "drained (forced: {forced})"),
    events.EndpointEjected: (
        _cluster,
        logging.WARNING,
        "ejected for {seconds:.1f} s, too many failed {kind} ({reason}): {error}",
    ),
    events.ProbeFailed: (_cluster, logging.INFO, "still out, next probe in {seconds:.1f} s: {error}"),
    events.EndpointReadmitted: (_cluster, logging.INFO, "readmitted"),
    events.DiscoveryChanged: (_discovery, logging.WARNING, "discovery is {state}: {error}"),
    events.EventsDropped: (_pool, logging.DEBUG, "{count} lines are missing here"),
}
# What ends a series of failures.
_ENDS: dict[type[events.Event], type[events.Event]] = {
    events.ConnectionOpened: events.ConnectFailed,
    events.KeepaliveRecovered: events.KeepaliveFailed,
}
_SERIES = (events.ConnectFailed, events.KeepaliveFailed, events.HookFailed)


class LogWriter:
    """Writes events to the log; told each in order."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._warned: dict[tuple[Any, ...], float] = {}  # the series that are on, and when they were last told of

    def __call__(self, event: events.Event) -> None:
        log, level, text = _LINES[type(event)]
        endpoint = getattr(event, "endpoint", None)
        error = getattr(event, "error", None)
        if isinstance(event, events.EndpointDrained):
            self._warned = {series: at for series, at in self._warned.items() if series[1] != endpoint}
        if isinstance(event, _SERIES) and not self._is_news((type(event), endpoint, getattr(event, "hook", None))):
            return
        if getattr(error, "is_told", False) and not isinstance(event, events.HookFailed):
            level = logging.DEBUG  # of a hook that took too long one warning is enough
        is_recovery = self._warned.pop((_ENDS.get(type(event)), endpoint, None), 0.0) > 0
        if isinstance(event, events.ConnectionOpened) and is_recovery:
            level, text = logging.INFO, "connects again, in {seconds:.3f} s"
        if isinstance(event, events.DiscoveryChanged) and error is None:
            level = logging.INFO if event.state == "fresh" else logging.WARNING
            text = "discovery is {state}: {outcome}"
        if log.isEnabledFor(level):
            fields = {name: getattr(event, name) for name in event.__dataclass_fields__}
            fields["error"] = show(error)
            if "stack" in fields:
                fields["stack"] = "".join(fields["stack"].format()).rstrip() or "  a greenlet that has ended"
            where = event.pool if endpoint is None else f"{event.pool}: {endpoint}"
            extra = {"pool": event.pool, "endpoint": endpoint}
            traceback = error if isinstance(event, _SERIES) else None
            log.log(level, "%s: %s", where, text.format(**fields), extra=extra, exc_info=traceback)

    def _is_news(self, series: tuple[Any, ...]) -> bool:
        now = self._clock()
        if now - self._warned.get(series, -REPEAT_AFTER) < REPEAT_AFTER:
            return False
        self._warned[series] = now
        return True
