"""A page that shows how the pools of this process stand, as a WSGI application to mount where you like.

::

    from gevent.pywsgi import WSGIServer
    from geventconnpool.status import StatusApp

    WSGIServer(("127.0.0.1", 8080), StatusApp(redis, database)).start()
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from geventconnpool import events
from geventconnpool._check import show
from geventconnpool.pool import Borrowing
from geventconnpool.status import _html, _text
from geventconnpool.status._report import Reading, Report, plain, report_on
from geventconnpool.status._request import TYPES, Wish, wish

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from geventconnpool.cluster import ClusterPool
    from geventconnpool.pool import ConnectionPool

__all__ = ["StatusApp"]

METHODS = ("GET", "HEAD")


class StatusApp:
    """A WSGI application that shows ``pools``, each a :class:`ConnectionPool` or a :class:`ClusterPool`.

    It answers ``GET`` and ``HEAD`` at whatever path it is mounted, with a page for browsers, as JSON
    (``?format=json``, or ``Accept: application/json``) or as plain text (``?format=text``). ``?refresh=5`` has a
    browser load the page again every five seconds. It changes nothing, opens nothing, never switches greenlets, and
    asks nobody who he is: mount it where only those who may see the names of your servers can reach it.

    The pools are shown in the order in which they are given. They are held weakly: one that nobody else holds any
    more is collected as without this page, and no longer shown. In a native thread that is not the pool's, why each
    endpoint gets calls or not is left out, as only the pool's own thread may ask for that.

    Raises :class:`TypeError` for anything that is not a pool, or without any.
    """

    def __init__(self, *pools: ConnectionPool[Any] | ClusterPool[Any]) -> None:
        if not pools:
            raise TypeError("pools must be at least one ConnectionPool or ClusterPool")
        for number, pool in enumerate(pools):
            if not isinstance(pool, Borrowing):
                raise TypeError(f"pools[{number}] must be a ConnectionPool or a ClusterPool, not {show(pool)}")
        self._pools = tuple(map(weakref.ref, pools))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """Answer a request, as PEP 3333 says."""
        method = environ["REQUEST_METHOD"]
        status, headers, body = self._answer(method, environ)
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]

    def _answer(self, method: str, environ: WSGIEnvironment) -> tuple[str, list[tuple[str, str]], bytes]:
        if method not in METHODS:
            return "405 Method Not Allowed", [*_headers("text"), ("Allow", ", ".join(METHODS))], b"read only\n"
        try:
            wanted = wish(environ.get("QUERY_STRING", ""), environ.get("HTTP_ACCEPT", ""))
        except ValueError as error:
            return "400 Bad Request", _headers("text"), f"{error}\n".encode()
        readings = tuple(self._read())
        report = report_on(readings, os.getpid(), monotonic())
        return "200 OK", _headers(wanted.form), _render(report, wanted).encode()

    def _read(self) -> Iterator[Reading]:
        for reference in self._pools:
            pool = reference()
            if pool is not None:
                stats = pool.stats()
                yield Reading(stats, pool.closed, _explain(pool, stats))


def _explain(pool: Any, stats: events.PoolStats) -> Iterable[events.Explanation]:
    if not isinstance(stats, events.ClusterStats):
        return ()
    try:
        explanations: Iterable[events.Explanation] = pool.explain()
    except RuntimeError:  # this is not the thread of the pool
        return ()
    return explanations


def _render(report: Report, wanted: Wish) -> str:
    if wanted.form == "json":
        return json.dumps(report, default=plain) + "\n"
    return _text.render(report) if wanted.form == "text" else _html.render(report, wanted.refresh)


def _headers(form: str) -> list[tuple[str, str]]:
    return [
        ("Content-Type", TYPES[form] if form == "json" else f"{TYPES[form]}; charset=utf-8"),
        ("Content-Security-Policy", _html.POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
        ("Vary", "Accept"),
    ]
