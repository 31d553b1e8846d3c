"""What is written to the log: state changes, failures at most once per 30 s and series, nothing per check-out.

The logger is ``geventconnpool`` with the children ``.pool``, ``.cluster``, ``.discovery`` and ``.retry``. Records
carry the pool's name as ``pool`` and, where there is one, the endpoint as ``endpoint``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from geventconnpool._check import show

if TYPE_CHECKING:
    from geventconnpool import events
else:
    from geventconnpool._late import events

logger = logging.getLogger("geventconnpool")
logger.addHandler(logging.NullHandler())
_pool, _cluster, _discovery = (logger.getChild(name) for name in ("pool", "cluster", "discovery"))

REPEAT_AFTER = 30.0  # seconds

# Name of the event, logger, level, text; the text is formatted with the event's fields.
_LINES: dict[str, tuple[logging.Logger, int, str]] = {
    "ConnectionOpened": (_pool, logging.DEBUG, "opened a connection in {seconds:.3f} s"),
    "ConnectionClosed": (_pool, logging.DEBUG, "closed a connection (cause: {cause})"),
    "ConnectFailed": (_pool, logging.WARNING, "cannot connect ({failures} in a row): {error}"),
    "KeepaliveFailed": (_pool, logging.WARNING, "keepalive failed, connection discarded: {error}"),
    "KeepaliveRecovered": (_pool, logging.INFO, "keepalive succeeds again"),
    "HookFailed": (_pool, logging.WARNING, "{hook} failed: {error}"),
    "ConnectionHeld": (_pool, logging.WARNING, "a connection is held for {seconds:.1f} s already, by\n{stack}"),
    "NestedGet": (
        _pool,
        logging.WARNING,
        "possible deadlock: a greenlet that holds {held} waits for one more, at\n{stack}",
    ),
    "EndpointAdded": (_cluster, logging.INFO, "added"),
    "EndpointUpdated": (_cluster, logging.INFO, "updated from {previous!r}"),
    "EndpointRemoved": (_cluster, logging.INFO, "removed, drains"),
    "EndpointDrained": (_cluster, logging.INFO, "drained (forced: {forced})"),
    "EndpointEjected": (
        _cluster,
        logging.WARNING,
        "ejected for {seconds:.1f} s, too many failed {kind} ({reason}): {error}",
    ),
    "ProbeFailed": (_cluster, logging.INFO, "still out, next probe in {seconds:.1f} s: {error}"),
    "EndpointReadmitted": (_cluster, logging.INFO, "readmitted"),
    "DiscoveryChanged": (_discovery, logging.WARNING, "discovery is {state}: {error}"),
    "EventsDropped": (_pool, logging.DEBUG, "{count} lines are missing here"),
}
# What ends a series of failures.
_ENDS: dict[str, str] = {
    "ConnectionOpened": "ConnectFailed",
    "KeepaliveRecovered": "KeepaliveFailed",
}
_SERIES = ("ConnectFailed", "KeepaliveFailed", "HookFailed")


class LogWriter:
    """Writes events to the log; told each in order."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._warned: dict[tuple[Any, ...], float] = {}  # the series that are on, and when they were last told of

    def __call__(self, event: events.Event) -> None:
        kind = type(event).__name__
        log, level, text = _LINES[kind]
        endpoint = getattr(event, "endpoint", None)
        error = getattr(event, "error", None)
        if kind == "EndpointDrained":
            self._warned = {series: at for series, at in self._warned.items() if series[1] != endpoint}
        if kind in _SERIES and not self._is_news((kind, endpoint, getattr(event, "hook", None))):
            return
        if getattr(error, "is_told", False) and kind != "HookFailed":
            level = logging.DEBUG  # of a hook that took too long one warning is enough
        is_recovery = self._warned.pop((_ENDS.get(kind), endpoint, None), 0.0) > 0
        if kind == "ConnectionOpened" and is_recovery:
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
            traceback = error if kind in _SERIES else None
            log.log(level, "%s: %s", where, text.format(**fields), extra=extra, exc_info=traceback)

    def _is_news(self, series: tuple[Any, ...]) -> bool:
        now = self._clock()
        if now - self._warned.get(series, -REPEAT_AFTER) < REPEAT_AFTER:
            return False
        self._warned[series] = now
        return True
