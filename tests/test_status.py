"""The status page without a server: what is read from pools, what is made of it, and what requests are answered."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import re
import textwrap
import weakref
from dataclasses import fields, is_dataclass, replace
from html import unescape
from pathlib import Path
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import gevent
import greenlet
import pytest

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, events
from geventconnpool.status import StatusApp, _html, _request, _text
from geventconnpool.status._report import EndpointReport, Reading, printable, report_on
from geventconnpool.status._table import duration, summary
from tests.status_scene import NOW, cluster, endpoint, incident, pool_values

DISCOVERY = events.DiscoveryStats("fresh", NOW - 60, "1 endpoint", None, 30.0, 1, 1, NOW + 12)
SCRIPT = "<script>alert('&\"')</script>"


def lone(**values) -> events.PoolStats:
    return events.PoolStats(**pool_values("lone", size=5, min_size=5, **values))


def told(stats, closed=False, explanations=()):
    """Return what is reported of one pool."""
    return report_on([Reading(stats, closed, explanations)], 1, NOW).pools[0]


def one(member, discovery=DISCOVERY) -> EndpointReport:
    """Return what is reported of the only endpoint of a cluster."""
    pool = report_on([cluster("c", discovery, member)], 1, NOW).pools[0]
    assert pool.endpoints is not None
    return pool.endpoints[0]


# -- the report --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"open": 1}, "active"),
        ({"connecting": 1}, "starting"),
        ({"last_error": OSError("refused")}, "unavailable"),
        ({"last_error": OSError("refused"), "open": 1}, "active"),
        ({"last_error": OSError("refused"), "min_size": 0}, "active"),  # nobody wants a connection
        ({"last_error": OSError("refused"), "min_size": 0, "waiting": 1}, "unavailable"),
    ],
)
def test_a_pool_is_unavailable_when_somebody_wants_a_connection_and_there_is_none(values, state):
    assert told(replace(lone(), **values)).state == state


def test_a_closed_pool_is_closed_however_it_stands():
    assert told(lone(open=1), closed=True).state == "closed"


@pytest.mark.parametrize(
    ("endpoint_state", "discovery_state", "state"),
    [("active", "stale", "active"), ("ejected", "fresh", "unavailable"), ("draining", "starting", "starting")],
)
def test_a_cluster_is_as_available_as_its_endpoints(endpoint_state, discovery_state, state):
    member = endpoint("a:1", endpoint_state, 1, 0.1, ("next", ""), open=1)

    pool = report_on([cluster("c", replace(DISCOVERY, state=discovery_state), member)], 1, NOW).pools[0]

    assert pool.state == state


def test_a_call_is_ok_when_it_ended_and_neither_failed_nor_was_interrupted():
    pool = told(lone(gets=100, in_use=3, failed=7, interrupted=2))

    assert (pool.ok, pool.failed, pool.interrupted) == (88, 7, 2)


def test_what_ended_before_it_was_counted_makes_no_number_negative():
    assert told(lone(gets=1, in_use=3)).ok == 0


def test_times_are_seconds_from_now():
    ejected = one(endpoint("a:1", "ejected", 42, 0.00041, ("ejected", ""), until=3.25))
    draining = one(endpoint("a:1", "draining", 9, 0.00041, ("draining", ""), until=21.0))

    assert (ejected.since_seconds, ejected.latency_seconds) == (42.0, 0.00041)
    assert (ejected.next_probe_in_seconds, ejected.forced_close_in_seconds) == (3.25, None)
    assert (draining.next_probe_in_seconds, draining.forced_close_in_seconds) == (None, 21.0)


def test_what_is_overdue_is_due_now():
    assert one(endpoint("a:1", "ejected", 1, 0.1, ("ejected", ""), until=-5)).next_probe_in_seconds == 0.0


def test_discovery_is_told_with_its_times():
    pool = report_on([cluster("c", replace(DISCOVERY, last_error=OSError("servfail")))], 1, NOW).pools[0]

    assert pool.discovery is not None
    assert pool.discovery.since_seconds == 60.0
    assert pool.discovery.next_lookup_in_seconds == 12.0
    assert pool.discovery.ttl_seconds == 30.0
    assert pool.discovery.last_error == "OSError: servfail"


def test_discovery_that_has_not_begun_has_no_times():
    unknown = events.DiscoveryStats("starting", None, "", None, None, None, 0, None)

    pool = report_on([cluster("c", unknown)], 1, NOW).pools[0]

    assert pool.discovery is not None
    assert pool.discovery.since_seconds is None
    assert pool.discovery.next_lookup_in_seconds is None


def test_endpoints_have_an_order_that_stays():
    members = [endpoint(f"{name}:{port}", "active", 1, 0.1, ("next", "")) for name, port in ("b1", "a2", "a1")]

    pool = report_on([cluster("c", DISCOVERY, *members)], 1, NOW).pools[0]

    assert [entry.endpoint for entry in pool.endpoints or ()] == ["a:1", "a:2", "b:1"]


def test_an_explanation_goes_with_its_endpoint():
    (a, _), (b, _) = (endpoint(f"{name}:1", "active", 1, 0.1, ("next", "")) for name in "ab")
    stats = cluster("c", DISCOVERY, (a, None), (b, None)).stats
    explanations = [events.Explanation(b.endpoint, "next", "the best", 0.0123)]

    first, second = told(stats, explanations=explanations).endpoints or ()

    assert (first.verdict, first.why, first.cost_seconds) == (None, None, None)
    assert (second.verdict, second.why, second.cost_seconds) == ("next", "the best", 0.0123)


@pytest.mark.parametrize("cost", [float("inf"), float("nan"), None])
def test_json_has_no_number_that_is_none(cost):
    (entry, _) = endpoint("a:1", "active", 1, 0.1, ("next", ""))
    stats = cluster("c", DISCOVERY, (entry, None)).stats
    explanation = events.Explanation(entry.endpoint, "next", "", cost)

    (reported,) = told(stats, explanations=[explanation]).endpoints or ()

    assert reported.cost_seconds is None


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, None),
        (OSError(111, "refused"), "ConnectionRefusedError: [Errno 111] refused"),
        (EOFError(), "EOFError"),
        (Unspeakable("x"), "Unspeakable: Unspeakable('x')"),
    ],
)
def test_an_error_is_told_by_its_class_and_what_it_says(error, text):
    assert told(lone(last_error=error)).last_error == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\r\n lines\t", "two lines"),
        ("\x1b[2Jgone\x07", "\\x1b[2Jgone\\x07"),
        ("a\u202eb", "a\\u202eb"),  # would turn the direction of what follows
        ("\udce9", "\\udce9"),  # cannot be sent as UTF-8
        ("x" * 501, "x" * 499 + "…"),
        ("grün", "grün"),
    ],
)
def test_text_is_one_printable_line_of_a_bounded_length(text, line):
    assert printable(text) == line


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (187, "3 min 7 s"),
        (15_131, "4 h 12 min"),
        (266_400, "3 d 2 h"),
        (86_400_000, "1,000 d"),
    ],
)
def test_a_time_is_told_in_two_units_at_most(seconds, words):
    assert duration(seconds) == words


def test_the_summary_names_what_is_not_as_it_should_be():
    assert summary(incident()) == (
        "Process 4711: 2 clusters, 1 pool. 1 endpoint ejected, 1 endpoint draining, discovery of 1 cluster stale."
    )
    assert summary(report_on([Reading(lone(open=5), False)], 1, NOW)) == "Process 1: 1 pool. All is well."
    assert summary(report_on([Reading(lone(), True)] * 2, 1, NOW)) == "Process 1: 2 pools. 2 pools closed."


def test_the_page_for_terminals_is_aligned():
    report = report_on(
        [cluster("names", DISCOVERY, *TWO), Reading(lone(open=5, idle=5, refused=1, connecting=2))], 7, NOW
    )

    assert _text.render(report) == TEXT


TWO = (
    endpoint("a:1", "active", 12, 0.00041, ("next", "it is best"), open=5, idle=3, in_use=2, gets=345),
    endpoint("b:1", "ejected", 42, 0.5, ("ejected", "it fails"), until=3, ejections=2, gets=9, failed=5),
)
TEXT = """\
Process 7: 1 cluster, 1 pool. 1 endpoint ejected.

       State         Since  In flight  Idle  Waiting    Latency   OK  Failed  Interrupted  Ejections  Next

names  active                       2     3        0             347       5            0          2  look-up in 12 s
  Connections: 5 of 20 open
  Discovery: fresh for 1 min: 1 endpoint (TTL 30 s)
  a:1  active, next   12 s          2     3        0    0.41 ms  343       0            0          0
    Why: it is best
  b:1  ejected        42 s          0     0        0  500.00 ms    4       5            0          2  probe in 3.0 s
    Why: it fails

lone   active                       0     5        0               0       0            0
  Connections: 5 of 5 open, 2 connecting, 1 get refused
"""


def test_the_docs_show_a_page_as_it_is():
    orders = Reading(events.PoolStats(**pool_values("orders", size=20, min_size=20, open=20, idle=20)))

    page = textwrap.indent(_text.render(report_on([orders], 4711, NOW)), "    ")

    assert page in (Path(__file__).parent.parent / "docs" / "status-page.rst").read_text()


def test_the_last_error_is_told_where_nobody_may_ask_why():
    (entry, _) = endpoint("b:1", "ejected", 42, 0.5, ("ejected", ""), until=3, error=OSError("refused"))

    page = _text.render(report_on([Reading(cluster("c", DISCOVERY, (entry, None)).stats)], 1, NOW))

    assert "    Last error: OSError: refused\n" in page


def test_an_error_of_the_past_is_not_told_as_one_of_now():
    well = _html.render(report_on([Reading(lone(open=5, last_error=OSError("refused")))], 1, NOW))
    unwell = _html.render(report_on([Reading(lone(last_error=OSError("refused")))], 1, NOW))

    assert '<p class=""><b>Last error</b> OSError: refused</p>' in well
    assert '<p class="bad"><b>Last error</b> OSError: refused</p>' in unwell


def test_without_pools_the_page_says_so():
    nothing = report_on([], 1, NOW)

    assert _text.render(nothing) == "Process 1: no pool. All is well.\n"
    assert "<p>The pools that were to be shown here are gone.</p>" in _html.render(nothing)


# -- HTML --------------------------------------------------------------------------------------------------------------


def poisoned(value):
    """Return a report with a script in each of its texts, whether it can get there or not."""
    if isinstance(value, str):
        return SCRIPT
    if isinstance(value, tuple):
        return tuple(map(poisoned, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: poisoned(getattr(value, field.name)) for field in fields(value)})
    return value


def test_no_text_of_a_report_becomes_markup():
    report = poisoned(incident())

    page = _html.render(report)

    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 50
    tags = set(re.findall(r"<(\w+)", page))
    assert tags == set(re.findall(r"<(\w+)", _html.render(incident())))


def test_what_comes_from_elsewhere_is_escaped_wherever_it_comes_in():
    error = OSError(SCRIPT)
    entry, _ = endpoint("a:1", "active", 1, 0.1, ("next", ""), open=1, error=error)
    hostile = entry.endpoint
    object.__setattr__(hostile, "name", SCRIPT)  # which Endpoint itself refuses
    discovery = replace(DISCOVERY, outcome=SCRIPT, last_error=error)
    stats = replace(cluster("c", discovery, (entry, None)).stats, name=SCRIPT, last_error=error)
    explanations = [events.Explanation(hostile, "next", SCRIPT, 0.1)]

    page = _html.render(report_on([Reading(stats, False, explanations), Reading(replace(lone(), name=SCRIPT))], 1, NOW))

    assert "<script" not in page
    assert unescape(page).count(SCRIPT) == 6  # two pools, discovery, endpoint, why, last error


def test_nothing_on_the_page_leads_elsewhere_or_does_anything():
    page = _html.render(incident(), refresh=5)

    assert re.findall(r'(?:href|src|action)="([^"]*)"', page) == ["?", "?format=json", "?format=text"]
    assert re.findall(r"<script|<form|<iframe|<object| on\w+=| style=|url\(|@import", page) == []


def test_the_policy_allows_the_style_of_the_page_and_nothing_else():
    (style,) = re.findall("<style>(.*)</style>", _html.render(incident()), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    assert _html.POLICY.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]


def test_the_page_is_loaded_again_only_if_that_was_asked_for():
    assert "http-equiv" not in _html.render(incident())
    assert '<meta http-equiv="refresh" content="7">' in _html.render(incident(), refresh=7)


def test_an_endpoint_of_which_there_is_no_more_to_tell_has_one_line():
    (entry, _) = endpoint("a:1", "active", 1, 0.1, ("next", ""), open=1)

    page = _html.render(report_on([Reading(cluster("c", DISCOVERY, (entry, None)).stats)], 1, NOW))

    assert page.partition('<tbody class="endpoint">')[2].partition("</tbody>")[0].count("<tr") == 1


def test_each_cell_says_what_it_is_for_screens_without_room_for_columns():
    page = _html.render(incident())

    assert '<td class="n" data-label="In flight">3</td>' in page
    assert '<td class="n zero" data-label="Waiting">0</td>' in page
    assert '<td class="n none" data-label="Latency"></td>' in page


# -- what is asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "accept", "form"),
    [
        ("", "", "html"),
        ("", "*/*", "html"),
        ("", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"),
        ("", "application/json", "json"),
        ("", "Application/JSON; charset=utf-8", "json"),
        ("", "text/html;q=0.5, application/json;q=0.9", "json"),
        ("", "application/*, text/html;q=0.1", "json"),
        ("", "text/plain", "text"),
        ("", "text/*;q=0.3, text/html;q=0", "text"),
        ("", "text/html;q=lots, text/plain;level=1;q=0.1", "text"),
        ("", "image/png", "html"),  # better than nothing
        ("format=text", "application/json", "text"),
        ("refresh=5&format=html", "application/json", "html"),
    ],
)
def test_the_form_is_the_one_that_is_named_or_most_welcome(query, accept, form):
    assert _request.wish(query, accept).form == form


@pytest.mark.parametrize(("query", "seconds"), [("", None), ("refresh=1", 1), ("refresh=3600", 3600)])
def test_how_often_is_up_to_the_reader(query, seconds):
    assert _request.wish(query, "").refresh == seconds


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("format=xml", "format must be html, json or text, not 'xml'"),
        ("format=", "format must be html, json or text, not ''"),
        ("refresh=0", "refresh must be between 1 and 3600 seconds, not '0'"),
        ("refresh=3601", "refresh must be between 1 and 3600 seconds, not '3601'"),
        ("refresh=-1", "refresh must be between 1 and 3600 seconds, not '-1'"),
        ("refresh=1;url=//evil.example", "refresh must be between 1 and 3600 seconds, not '1;url=//evil.example'"),
        ("refresh=%D9%A3", "refresh must be between 1 and 3600 seconds, not '٣'"),
    ],
)
def test_what_there_is_not_is_refused_with_its_name(query, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _request.wish(query, "")


# -- the application ---------------------------------------------------------------------------------------------------


class Quiet(ConnectionPool[object]):
    def _new_connection(self) -> object:
        return object()


class QuietCluster(ClusterPool[object]):
    def _new_connection(self, endpoint: Endpoint) -> object:
        return object()


@pytest.fixture
def pool():
    with Quiet(2, name="quiet") as pool:
        pool.wait(timeout=5)
        yield pool


@pytest.fixture
def quiet_cluster():
    with QuietCluster([("127.0.0.1", 1), ("127.0.0.1", 2)], 2, name="many") as pool:
        pool.wait(timeout=5)
        yield pool


class Answer:
    """What a WSGI application answers, under the eyes of a validator."""

    def __init__(self, app, method="GET", query="", **environ) -> None:
        environ.update(REQUEST_METHOD=method, QUERY_STRING=query)
        setup_testing_defaults(environ)
        parts = validator(app)(environ, self._start)
        self.body = b"".join(parts).decode()
        parts.close()  # type: ignore[attr-defined]

    def _start(self, status, headers, _exc_info=None):
        self.status, self.headers = status, dict(headers)
        return lambda _data: None


def test_a_page_is_answered_with_headers_that_keep_it_to_itself(pool):
    answer = Answer(StatusApp(pool))

    assert answer.status == "200 OK"
    assert answer.headers == {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": _html.POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Vary": "Accept",
        "Content-Length": str(len(answer.body.encode())),
    }
    assert ">quiet <small>pool</small></th>" in answer.body


def test_json_is_the_report(pool, quiet_cluster):
    with pool.get(), quiet_cluster.get():
        answer = Answer(StatusApp(pool, quiet_cluster), HTTP_ACCEPT="application/json")

    assert answer.headers["Content-Type"] == "application/json"
    lone, many = json.loads(answer.body)["pools"]
    assert (lone["kind"], lone["name"], lone["in_flight"], lone["idle"]) == ("pool", "quiet", 1, 1)
    assert (many["kind"], many["name"], many["in_flight"], many["idle"]) == ("cluster", "many", 1, 3)
    assert [entry["endpoint"] for entry in many["endpoints"]] == ["127.0.0.1:1", "127.0.0.1:2"]
    assert sorted(entry["verdict"] for entry in many["endpoints"]) == ["eligible", "next"]


def test_text_is_for_terminals(pool):
    answer = Answer(StatusApp(pool), query="format=text")

    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "\nquiet  active" in answer.body


def test_a_pool_comes_to_the_page_with_what_it_is_called(pool):
    with Quiet(1, name=SCRIPT) as hostile:
        answer = Answer(StatusApp(hostile))

    assert "<script" not in answer.body
    assert SCRIPT in unescape(answer.body)


def test_what_is_closed_is_shown_as_long_as_it_is_held(pool, quiet_cluster):
    app = StatusApp(pool, quiet_cluster)
    pool.close()
    quiet_cluster.close()

    answer = Answer(app, query="format=json")

    assert [(pool["state"], pool["open"]) for pool in json.loads(answer.body)["pools"]] == [("closed", 0)] * 2
    assert ": 1 cluster, 1 pool. 1 pool closed, 1 cluster closed.</p>" in Answer(app).body


@pytest.mark.parametrize("query", ["", "format=json", "format=text", "format=xml"])
def test_head_is_get_without_a_body(pool, query):
    app = StatusApp(pool)

    head, get = Answer(app, "HEAD", query), Answer(app, "GET", query)

    assert head.body == ""
    assert head.status == get.status
    assert head.headers.keys() == get.headers.keys()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get"])
def test_whoever_wants_to_change_something_is_told_that_nobody_can(pool, method):
    status = []

    environ = {"REQUEST_METHOD": method}
    body = StatusApp(pool)(environ, lambda *said: status.extend(said))

    assert status[0] == "405 Method Not Allowed"
    assert dict(status[1])["Allow"] == "GET, HEAD"
    assert body == [b"read only\n"]


def test_an_unknown_form_is_a_bad_request(pool):
    answer = Answer(StatusApp(pool), query=f"format={SCRIPT.replace('&', '%26')}")

    assert answer.status == "400 Bad Request"
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body.startswith("format must be html, json or text, not ")


def test_what_is_not_a_pool_is_refused_at_once(pool):
    with pytest.raises(TypeError, match=r"pools\[1\] must be a ConnectionPool or a ClusterPool, not 'redis'"):
        StatusApp(pool, "redis")
    with pytest.raises(TypeError, match=r"pools\[0\] must be a ConnectionPool or a ClusterPool, not \["):
        StatusApp([pool])
    with pytest.raises(TypeError, match="pools must be at least one ConnectionPool or ClusterPool"):
        StatusApp()


def test_the_pool_of_an_endpoint_may_be_shown_by_itself(quiet_cluster):
    (first, _) = quiet_cluster.pools.values()

    assert "\nmany/127.0.0.1:1  active" in Answer(StatusApp(first), query="format=text").body


def test_a_pool_that_nobody_else_holds_is_collected_and_no_longer_shown(pool):
    short_lived = Quiet(1, name="short-lived")
    app, reference = StatusApp(pool, short_lived), weakref.ref(short_lived)
    before = Answer(app, query="format=text").body

    del short_lived
    gc.collect()
    after = Answer(app, query="format=text").body

    assert reference() is None
    assert "short-lived" in before
    assert "short-lived" not in after
    assert "quiet" in after


def test_no_page_lets_another_greenlet_run(pool, quiet_cluster):
    switches: list[str] = []
    app = StatusApp(pool, quiet_cluster)
    gevent.spawn(switches.append, "another greenlet")
    previous = greenlet.settrace(lambda event, _switch: switches.append(event))

    try:
        for form in ("html", "json", "text"):
            Answer(app, query=f"format={form}")
    finally:
        greenlet.settrace(previous)

    assert switches == []
    gevent.sleep(0)
    assert switches == ["another greenlet"]
