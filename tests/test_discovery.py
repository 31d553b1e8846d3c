"""How a cluster uses what its resolver says: scripted resolvers, a DNS server, and slices that go on when told to."""

from __future__ import annotations

import gc
import logging
import weakref
from collections import Counter
from functools import partial
from itertools import pairwise
from math import inf
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue

from geventconnpool import Endpoint, PoolClosed, PoolTimeout, PoolUnavailable, _engine, _worker, events
from geventconnpool._worker import Slice
from geventconnpool.cluster import DNSResolver, NoRecords, Resolution, StaticResolver, _pool, _refresh
from geventconnpool.cluster._members import Members
from geventconnpool.events import DiscoveryStats
from geventconnpool.testing import DNSServer
from tests.servers import wait_until
from tests.test_cluster import Asked, Cluster, fail, greenlets, in_line, is_over, many, outcome, ready

A, B, C, D, E = (Endpoint(f"{name}.test", 1) for name in "abcde")
SERVICE = "_redis._tcp.example.test"
NO_NETWORK = OSError("no network")
NO_NAME = NoRecords("x: no such name")
GONE = Resolution((), ttl=0, outcome="not available")

# -- what the tests set up ---------------------------------------------------------------------------------------------


class Script:
    """A resolver that hangs until it is told what to say: a Resolution, an exception to raise, a function to call.

    ``most`` is how many look-ups were under way at once.
    """

    min_refresh = 0.001

    def __init__(self, *said: Any, **attributes: Any) -> None:
        self._said: Any = Queue()
        self.asked = self.running = self.most = 0
        vars(self).update(attributes)
        for one in said:
            self.tell(one)

    def tell(self, said: Any) -> None:
        self._said.put(said)

    def resolve(self, service):
        self.asked += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return self._say(self._said.get())
        finally:
            self.running -= 1

    def _say(self, said):
        if isinstance(said, BaseException):
            raise said
        return said() if callable(said) else said


class Doubted(Script):
    """Gives a second opinion."""

    def __init__(self, *said: Any, opinion: Any) -> None:
        super().__init__(*said)
        self.opinion = opinion
        self.doubts: list[Any] = []

    def confirm(self, service):
        self.doubts.append(service)
        return self._say(self.opinion)


def found(*endpoints, ttl=0):
    return Resolution(endpoints, ttl=ttl)


def told(pool):
    return pool.stats().discovery


def started_at(monkeypatch):
    """Return a list of when look-ups begin, as it is noted: who looks up may be late with that."""
    times = []
    started = _refresh.Refresh.started

    def note(self, now):
        times.append(now)
        started(self, now)

    monkeypatch.setattr(_refresh.Refresh, "started", note)
    return times


def hurry(pool):
    """Have it look again without the wait after a failure, as when an endpoint fails."""
    pool._lender.discovery.ask(monotonic())
    pool._lender.engine.act()


def learn(pool, *said):
    """Have one look-up end after the other, each with what is said."""
    resolver = pool._lender.discovery._resolver
    for one in said:
        wait_until(partial(is_looking_up, pool), what="the look-up")
        asked = resolver.asked
        resolver.tell(one)
        wait_until(partial(has_ended, resolver, asked), what=f"the end that is {one}")
        wait_until(partial(has_changed, pool), what="the end of its changes")


def has_ended(resolver, asked):
    return resolver.asked > asked or not resolver.running


def has_changed(pool):
    return look_up(pool) is None or pool._lender.discovery._resolver.running


def is_looking_up(pool):
    if not pool._lender.discovery._resolver.running:
        hurry(pool)
    return pool._lender.discovery._resolver.running


def look_up(pool):
    discovery = pool._lender.discovery
    return discovery._greenlet or discovery._applier


def changes(pool):
    return [(event.state, event.error and str(event.error)) for event in pool.kinds(events.DiscoveryChanged)]


def active(pool):
    return {entry.endpoint for entry in pool.stats().endpoints if entry.state == "active"}


class Pace:
    """Each change is a slice of its own, and after it the look-up rests until :meth:`go`."""

    def __init__(self) -> None:
        self.resting = 0  # how often it has begun to
        self.is_free = False
        self._next = Event()

    def rest(self, part: Any = None) -> None:
        if not self.is_free:
            self.resting += 1
            self._next.clear()
            self._next.wait()

    def go(self, slices: int = 1) -> None:
        for _ in range(slices):
            self.at_rest()
            self._next.set()
            wait_until(partial(self._is_past, self.resting), what="the end of the slice")

    def _is_past(self, resting: int) -> bool:
        return self.resting > resting

    def go_on(self) -> None:
        self.is_free = True
        self._next.set()

    def at_rest(self) -> None:
        wait_until(lambda: self.resting and not self._next.is_set(), what="the end of a slice")


@pytest.fixture
def pace(monkeypatch):
    pace = Pace()
    monkeypatch.setattr(_pool, "CHANGES_AT_ONCE", -1.0)
    monkeypatch.setattr(Slice, "rest", pace.rest)
    yield pace
    pace.go_on()


@pytest.fixture
def free_pace(monkeypatch):
    """Each change is a slice of its own, after which the others run for as long as they can."""
    monkeypatch.setattr(_pool, "CHANGES_AT_ONCE", -1.0)


@pytest.fixture(autouse=True)
def errors_of_the_hub(monkeypatch):
    kinds: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, tb: kinds.append(kind))
    yield kinds
    assert kinds == []


@pytest.fixture(autouse=True)
def nothing_is_left(errors_of_the_hub):
    """After each test its clusters are closed, every connection is closed once, and no greenlet is left."""
    before = greenlets()
    Cluster.alive.clear()
    yield
    for pool in Cluster.alive:
        if hasattr(pool, "closed"):
            pool.close(0)
            wait_until(partial(is_over, pool), what=f"the end of {pool}")
            assert all(c.ended for c in pool.made)
    Cluster.alive.clear()
    wait_until(lambda: greenlets() <= before, what="the end of all greenlets")


# -- the states, as stats() tells them ---------------------------------------------------------------------------------


def test_before_the_first_answer_nothing_is_known_but_when_it_began():
    before = monotonic()
    pool = Cluster(Script())
    since = told(pool).since

    assert before <= since <= monotonic()
    assert told(pool) == DiscoveryStats("starting", since, "", None, None, None, 0, None)


def test_failures_before_the_first_answer_leave_it_starting_and_tell_why_and_when_it_is_asked_again():
    pool = Cluster(Script())
    since = told(pool).since
    learn(pool, OSError("first"))
    began = monotonic()
    learn(pool, NO_NETWORK)
    due, ended = told(pool).next_lookup, monotonic()

    assert told(pool) == DiscoveryStats("starting", since, "no network", NO_NETWORK, None, None, 0, due)
    assert began + 1.28 <= due <= ended + 1.92  # the second failure in a row: 1.6 s +-20 %


def test_an_answer_of_a_name_server_tells_all_there_is_to_tell():
    with DNSServer() as dns:
        for n in 1, 2:
            dns.add_srv(SERVICE, f"{n}.example.test", n, ttl=100)
            dns.add_address(f"{n}.example.test", "127.0.0.1", ttl=50)
        before = monotonic()
        pool = ready(Cluster(SERVICE, resolver=DNSResolver([dns.address])))
        stats = told(pool)
        server = f"127.0.0.1:{dns.address[1]}"

    assert (stats.state, stats.outcome, stats.last_error) == ("fresh", f"2 SRV records from {server}", None)
    assert (stats.ttl, stats.records, stats.generation) == (50, 2, 1)
    assert before <= stats.since <= monotonic()
    assert 50 <= stats.next_lookup - stats.since <= 55.1


def test_a_failure_after_an_answer_makes_it_stale_and_what_is_known_of_the_answer_stays():
    pool = Cluster(Script(Resolution((A,), ttl=0, outcome="it was there", records=7)))
    learn(pool, NO_NETWORK)
    stale = told(pool)
    learn(pool, OSError("other words"))

    assert (stale.state, stale.outcome, stale.last_error) == ("stale", "no network", NO_NETWORK)
    assert (stale.ttl, stale.records, stale.generation) == (0, 7, 1)
    assert 0.7 < stale.next_lookup - stale.since < 1.25
    assert (told(pool).state, told(pool).since, told(pool).outcome) == ("stale", stale.since, "other words")
    assert active(pool) == {A}


def test_that_there_is_no_such_name_is_held_and_what_was_known_stays():
    pool = Cluster(Script(Resolution((A,), ttl=0, records=7), empty_hold=9.0))
    learn(pool, NO_NAME)
    held = told(pool)

    assert (held.state, held.outcome, held.last_error) == ("held", "x: no such name", NO_NAME)
    assert (held.ttl, held.records, held.generation) == (0, 7, 1)
    assert held.next_lookup - held.since == pytest.approx(3.0)
    assert pool.call() == A


def test_what_is_believed_to_be_gone_is_empty_and_asked_for_again_by_the_negative_time_to_live():
    pool = Cluster(Script(found(A), empty_hold=0))
    learn(pool, NoRecords("x: no such name", ttl=20.0))
    empty = told(pool)

    assert (empty.state, empty.outcome, empty.generation) == ("empty", "x: no such name", 1)
    assert str(empty.last_error) == "x: no such name"
    assert 20.0 <= empty.next_lookup - empty.since <= 22.0


def test_a_service_that_says_that_it_is_not_there_is_unavailable():
    pool = Cluster(Script(found(A)))
    learn(pool, Resolution((), ttl=100, outcome="not available", records=1))
    stats = told(pool)

    assert (stats.state, stats.outcome, stats.last_error) == ("unavailable", "not available", None)
    assert (stats.ttl, stats.records, stats.generation) == (100, 1, 2)
    assert 100 <= stats.next_lookup - stats.since <= 110


def test_while_a_look_up_is_under_way_no_next_one_is_named_and_after_the_close_neither():
    pool = Cluster(Script(found(A, ttl=0)))
    wait_until(lambda: pool._lender.discovery._resolver.asked == 2)
    under_way = told(pool).next_lookup
    learn(pool, found(A, ttl=100))
    known = told(pool).next_lookup
    pool.close()

    assert (under_way, told(pool).next_lookup) == (None, None)
    assert known is not None


# -- one event and one line of the log per change ----------------------------------------------------------------------

WALK: list[Any] = [
    NO_NETWORK,
    OSError("other words"),
    NO_NETWORK,
    found(A),
    found(B),
    found(B, C),
    NO_NETWORK,
    OSError("other words"),
    TimeoutError("silent"),
    NO_NAME,
    NoRecords("nothing of that"),
    NO_NETWORK,
    NO_NAME,
    found(A),
    GONE,
    GONE,
    OSError("down"),
    OSError("down still"),
    NO_NAME,
    NO_NETWORK,
    GONE,
    found(A),
]
STEPS = [
    ("WARNING", "starting", "no network"),
    ("INFO", "fresh", None),
    ("WARNING", "stale", "no network"),
    ("WARNING", "held", "x: no such name"),
    ("WARNING", "stale", "no network"),
    ("WARNING", "held", "x: no such name"),
    ("INFO", "fresh", None),
    ("WARNING", "unavailable", None),
    ("WARNING", "unavailable", "down"),
    ("WARNING", "empty", "x: no such name"),
    ("WARNING", "unavailable", None),
    ("INFO", "fresh", None),
]


def test_each_change_of_state_is_one_event_and_one_line_and_a_try_is_none(caplog):
    caplog.set_level(logging.DEBUG, "geventconnpool.discovery")
    pool = Cluster(Script(), name="redis")
    learn(pool, *WALK)
    wait_until(lambda: len(changes(pool)) >= len(STEPS))
    gevent.idle()
    lines = [(r.levelname, r.getMessage(), r.pool) for r in caplog.records if r.name == "geventconnpool.discovery"]

    assert changes(pool) == [(state, error) for _, state, error in STEPS]
    assert [(level, pool) for level, _, pool in lines] == [(level, "redis") for level, _, _ in STEPS]
    for (_, line, _), (_, state, error) in zip(lines, STEPS, strict=True):
        assert line.startswith(f"redis: discovery is {state}: ")
        assert error is None or error in line
    assert lines[7][1] == "redis: discovery is unavailable: not available"


def test_the_event_of_a_change_comes_after_those_of_the_endpoints_it_is_about():
    pool = Cluster(Script(found(A, B), GONE, found(C)))
    wait_until(lambda: len(changes(pool)) == 3)
    kinds = pool.kinds(events.DiscoveryChanged, events.EndpointAdded, events.EndpointRemoved)

    assert [type(event).__name__ for event in kinds] == [
        *("EndpointAdded", "EndpointAdded", "DiscoveryChanged"),
        *("EndpointRemoved", "EndpointRemoved", "DiscoveryChanged"),
        *("EndpointAdded", "DiscoveryChanged"),
    ]
    assert pool.kinds(events.DiscoveryChanged)[1].outcome == "not available"


# -- who waits, and who comes ------------------------------------------------------------------------------------------


def test_before_the_first_answer_each_get_waits_for_its_own_time_and_the_failure_is_the_cause():
    pool = Cluster(Script(NO_NETWORK))
    wait_until(lambda: told(pool).last_error)
    began = monotonic()
    times = [0.05, 0.2]
    waiting = [gevent.spawn(outcome, partial(pool.call, seconds)) for seconds in times]
    ends = []
    for greenlet in waiting:
        greenlet.join()
        ends.append(monotonic() - began)
    errors = [greenlet.value for greenlet in waiting]

    assert [type(error) for error in errors] == [PoolTimeout, PoolTimeout]
    assert all(late >= seconds for late, seconds in zip(ends, times, strict=True))
    assert ends[0] < ends[1]
    assert all("discovery fails: OSError('no network')" in str(error) for error in errors)
    assert all(error.__cause__ is NO_NETWORK for error in errors)


def test_that_there_is_no_such_name_at_the_start_lets_gets_wait_until_it_is_believed():
    pool = Cluster(Script(empty_hold=None))
    learn(pool, NO_NAME, NO_NAME, NO_NAME, NO_NAME)
    with pytest.raises(PoolTimeout, match="no such name") as caught:
        pool.call(0.01)

    assert caught.value.__cause__ is NO_NAME
    assert told(pool).state == "starting"


@pytest.mark.parametrize(
    ("said", "attributes", "state"),
    [
        (GONE, {}, "unavailable"),
        (NO_NAME, {"empty_hold": 0}, "empty"),
        (NO_NETWORK, {"max_stale": 0}, "empty"),
    ],
)
def test_where_there_is_nothing_who_waits_and_who_comes_is_refused_at_once_until_there_is(said, attributes, state):
    pool = Cluster(Script(found(A), **attributes))
    held = pool.acquire(5)
    waiting = in_line(pool, partial(pool.call, None), partial(pool.pools[A].acquire, None))
    learn(pool, said)
    gevent.joinall(waiting, 5)
    with pytest.raises(PoolUnavailable, match="no endpoints"):
        pool.call(None)
    seen = told(pool).state
    pool.release(held)  # a call under way may finish
    learn(pool, found(B))

    assert [type(greenlet.value) for greenlet in waiting] == [PoolUnavailable, PoolUnavailable]
    assert seen == state
    assert pool.call() == B


# -- no such name ------------------------------------------------------------------------------------------------------


def test_a_name_that_is_gone_is_held_then_drained_and_serves_when_it_is_back():
    with DNSServer() as dns:
        dns.add_srv(SERVICE, "1.example.test", 1, ttl=0)
        dns.add_address("1.example.test", "127.0.0.1", ttl=0)
        pool = ready(Cluster(SERVICE, resolver=DNSResolver([dns.address], min_refresh=0.02, empty_hold=0.3)))
        dns.remove("1.example.test", "A")
        dns.remove(SERVICE, "SRV")
        wait_until(lambda: told(pool).state == "held")
        held = told(pool)
        served = pool.call().name
        wait_until(lambda: told(pool).state == "empty")
        empty = told(pool)
        with pytest.raises(PoolUnavailable):
            pool.call()
        dns.add_srv(SERVICE, "1.example.test", 1, ttl=0)
        dns.add_address("1.example.test", "127.0.0.1", ttl=0)
        wait_until(lambda: told(pool).state == "fresh")
        served_again = pool.call(5).name

    assert empty.since - held.since >= 0.3
    assert "NXDOMAIN" in held.outcome
    assert f"127.0.0.1:{dns.address[1]}" in held.outcome
    wait_until(lambda: len(changes(pool)) >= 4)
    assert [state for state, _ in changes(pool)] == ["fresh", "held", "empty", "fresh"]
    assert (served, served_again) == ("1.example.test", "1.example.test")


def test_a_failure_in_between_begins_the_hold_anew():
    pool = Cluster(Script(found(A), empty_hold=0.2))
    learn(pool, NO_NAME, NO_NAME)
    first = told(pool).since
    learn(pool, NO_NETWORK)
    wait_until(lambda: monotonic() > first + 0.25)
    learn(pool, NO_NAME, NO_NAME)
    seen = told(pool).state, active(pool)
    second = told(pool).since
    while told(pool).state != "empty":
        learn(pool, NO_NAME)

    assert seen == ("held", {A})
    assert told(pool).since - second >= 0.2
    assert active(pool) == set()


@pytest.mark.parametrize(("hold", "state"), [(None, "held"), (0, "empty")])
def test_that_there_is_nothing_is_believed_never_or_at_once_where_the_resolver_says_so(hold, state):
    pool = Cluster(Script(found(A), empty_hold=hold))
    learn(pool, *[NO_NAME] * (1 if hold == 0 else 6))

    assert told(pool).state == state
    assert active(pool) == ({A} if hold is None else set())


# -- what is stale -----------------------------------------------------------------------------------------------------


def test_a_stale_set_is_given_up_when_its_time_is_over_and_not_at_the_next_look_up(monkeypatch):
    monkeypatch.setattr(_refresh, "dns_delay", lambda failures: 60.0)
    resolver = Script(found(A), max_stale=0.2)
    pool = Cluster(resolver)
    held = pool.acquire(5)
    waiting = in_line(pool, partial(pool.call, None))
    learn(pool, NO_NETWORK)
    stale, asked = told(pool), resolver.asked
    wait_until(lambda: told(pool).state == "empty" and pool.state(A) == "draining")
    empty = told(pool)
    waiting[0].join(5)
    wait_until(lambda: len(changes(pool)) == 3)

    assert (stale.state, asked, resolver.asked) == ("stale", 2, 2)
    assert 0.19 <= empty.since - stale.since < empty.next_lookup - stale.since
    assert (empty.last_error, empty.outcome) == (NO_NETWORK, "no network")
    assert type(waiting[0].value) is PoolUnavailable
    assert changes(pool)[1:] == [("stale", "no network"), ("empty", "no network")]
    pool.release(held)


def test_a_stale_set_is_given_up_in_time_while_a_look_up_is_under_way():
    resolver = Script(found(A), max_stale=0.2)
    pool = Cluster(resolver)
    learn(pool, NO_NETWORK)
    stale = told(pool)
    hurry(pool)
    wait_until(lambda: resolver.running)
    wait_until(lambda: told(pool).state == "empty" and active(pool) == set())
    empty = told(pool)

    assert (stale.state, resolver.running) == ("stale", 1)
    assert empty.since - stale.since >= 0.19
    learn(pool, found(B))
    assert (told(pool).state, active(pool)) == ("fresh", {B})


def test_an_answer_that_comes_while_a_stale_set_is_given_up_is_what_counts(pace):
    resolver = Script(found(*many(6)), max_stale=0.05)
    pace.is_free = True
    pool = Cluster(resolver)
    learn(pool, NO_NETWORK)
    hurry(pool)
    wait_until(lambda: resolver.running)
    pace.is_free = False
    pace.at_rest()
    resolver.tell(found(*many(4), ttl=100))
    wait_until(lambda: not resolver.running)
    pace.go_on()
    wait_until(lambda: told(pool).state == "fresh")

    assert active(pool) == set(many(4))


def test_an_answer_in_time_keeps_what_was_about_to_be_given_up():
    pool = Cluster(Script(found(A), max_stale=0.1))
    learn(pool, NO_NETWORK, found(A, ttl=100))
    fresh = told(pool)
    gevent.sleep(0.15)

    assert told(pool) == fresh
    assert fresh.state == "fresh"


def test_without_a_bound_a_stale_set_is_kept_and_has_no_alarm():
    pool = Cluster(Script(found(A)))
    learn(pool, NO_NETWORK)

    assert pool._lender.discovery._refresh.gives_up_at == inf


# -- resolvers of the user's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "kind", "message"),
    [
        ({"min_refresh": 0}, ValueError, "min_refresh must be more than 0 seconds, not 0"),
        ({"min_refresh": -1}, ValueError, "min_refresh .*not -1"),
        ({"min_refresh": inf}, ValueError, "min_refresh .*not inf"),
        ({"min_refresh": None}, TypeError, "min_refresh .*not None"),
        ({"min_refresh": True}, TypeError, "min_refresh .*not True"),
        ({"max_refresh": 0}, ValueError, "max_refresh must be more than 0 seconds, not 0"),
        ({"max_refresh": "5"}, TypeError, "max_refresh .*not '5'"),
        ({"min_refresh": 9, "max_refresh": 8}, ValueError, "max_refresh must be at least its min_refresh .9., not 8"),
        ({"empty_hold": -1}, ValueError, "empty_hold .*not -1"),
        ({"empty_hold": "0"}, TypeError, "empty_hold .*not '0'"),
        ({"max_stale": -0.1}, ValueError, "max_stale .*not -0.1"),
        ({"max_stale": float("nan")}, ValueError, "max_stale .*not nan"),
    ],
)
def test_bounds_that_make_no_sense_are_refused_at_once_with_their_name_and_value(attributes, kind, message):
    resolver = Script(**attributes)
    with pytest.raises(kind, match=f"the resolver's {message}"):
        Cluster(resolver)

    assert resolver.asked == 0


@pytest.mark.parametrize(("attributes", "pause"), [({"min_refresh": 400}, 400), ({"max_refresh": 1}, 1)])
def test_one_bound_beyond_the_default_of_the_other_moves_that(attributes, pause):
    pool = ready(Cluster(Asked(found(A, ttl=0), **attributes)))

    assert pause <= told(pool).next_lookup - told(pool).since <= 1.1 * pause + 0.1


def test_a_resolver_may_be_made_of_anything_that_can_be_called():
    class Made:
        pass

    resolver: Any = Made()
    resolver.resolve = partial(lambda which, service: found(which, ttl=None), B)

    assert Cluster(resolver).call() == B


def test_an_empty_answer_of_a_resolver_is_believed_at_once():
    pool = Cluster(Script(found(A), found(), empty_hold=None))
    wait_until(lambda: told(pool).state == "unavailable")

    assert active(pool) == set()


@pytest.mark.parametrize("error", [gevent.Timeout(1), gevent.GreenletExit(), BaseException("odd"), StopIteration()])
def test_whatever_a_resolver_raises_is_a_failure_and_it_is_asked_again(error):
    pool = Cluster(Script(found(A)))
    learn(pool, error)
    seen = told(pool)
    learn(pool, found(B))

    assert (seen.state, seen.last_error) == ("stale", error)
    assert (told(pool).state, active(pool)) == ("fresh", {B})


@pytest.mark.parametrize("garbage", [None, [A], "a.test", Resolution, lambda: Resolution((A, A)), lambda: found("x")])
def test_garbage_is_a_failure_and_the_last_answer_stays(garbage):
    pool = Cluster(Script(found(A)))
    learn(pool, garbage)

    assert told(pool).state == "stale"
    assert isinstance(told(pool).last_error, (TypeError, ValueError))
    assert active(pool) == {A}


def test_a_look_up_that_hangs_is_ended_after_its_time_and_repeated(monkeypatch):
    monkeypatch.setattr(_pool, "LOOKUP_TIMEOUT", 0.05)
    pool = Cluster(Script())
    wait_until(lambda: pool.kinds(events.HookFailed))
    seen = told(pool)
    with pytest.raises(PoolTimeout, match=r"discovery fails: resolve took longer than 0\.05 s"):
        pool.call(0)
    learn(pool, found(A))

    assert (seen.state, seen.outcome) == ("starting", "resolve took longer than 0.05 s")
    assert {event.hook for event in pool.kinds(events.HookFailed)} == {"resolve"}
    assert pool.call() == A


def test_a_look_up_that_swallows_its_end_gets_it_again(monkeypatch):
    monkeypatch.setattr(_pool, "LOOKUP_TIMEOUT", 0.02)
    monkeypatch.setattr(_engine, "BOUND_REPEAT", 0.02)
    swallowed = []

    def swallow():
        while len(swallowed) < 3:
            try:
                gevent.sleep(60)
            except gevent.Timeout as bound:
                swallowed.append(bound)
        return found(A)

    pool = Cluster(Script(swallow))

    assert pool.call() == A
    assert len(swallowed) == 3
    assert len(pool.kinds(events.HookFailed)) == 1


def test_a_resolver_may_use_the_pool_it_resolves_for():
    seen = []

    def look():
        seen.append((pool.stats().discovery.state, len(pool.pools), repr(pool).count("0 active")))
        with pytest.raises(PoolTimeout, match="discovery has not answered yet"):
            pool.call(0.01)
        hurry(pool)
        return found(A)

    def borrow():
        seen.append(pool.call())
        pool.reset()
        return found(A, B)

    pool: Any = Cluster(Script(look, borrow))
    wait_until(lambda: active(pool) == {A, B})

    assert seen == [("starting", 0, 1), A]


def test_a_get_without_end_inside_of_the_look_up_it_waits_for_ends_with_the_look_up(monkeypatch):
    monkeypatch.setattr(_pool, "LOOKUP_TIMEOUT", 0.05)
    pool: Any = Cluster(Script(lambda: pool.call(None)))
    wait_until(lambda: told(pool).last_error)

    assert "took longer" in told(pool).outcome
    assert pool.stats().waiting == 0


def test_a_resolver_may_close_the_pool():
    closed = []
    resolver = Script(found(A), lambda: closed.append(outcome(pool.close)))
    pool: Any = Cluster(resolver)
    wait_until(lambda: pool.closed and not resolver.running)
    with pytest.raises(PoolClosed):
        pool.call()

    assert pool._lender.discovery.alarm == inf
    assert told(pool).next_lookup is None


# -- an answer that loses more than half -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opinion", "state", "known"),
    [
        (found(A), "fresh", {A}),
        (found(A, B, C, D), "fresh", {A, B, C, D}),
        (found(B, C), "fresh", {B, C}),
        (GONE, "unavailable", set()),
        (NO_NETWORK, "stale", {A, B, C}),
        (NO_NAME, "held", {A, B, C}),
        (5, "stale", {A, B, C}),
        (BaseException("odd"), "stale", {A, B, C}),
    ],
)
def test_the_second_opinion_counts_when_more_than_half_would_be_lost(opinion, state, known):
    resolver = Doubted(found(A, B, C), opinion=opinion)
    pool = Cluster("redis", resolver=resolver)
    learn(pool, found(A))

    assert resolver.doubts == ["redis"]
    assert (told(pool).state, active(pool)) == (state, known)


def test_nobody_is_asked_twice_when_at_most_half_or_everything_is_lost():
    resolver = Doubted(found(A, B, C, D), found(A, B), found(A), found(A, B, C), found(), opinion=NO_NETWORK)
    pool = Cluster(resolver)
    wait_until(lambda: told(pool).state == "unavailable")

    assert resolver.doubts == []


@pytest.mark.parametrize("confirm", [None, True, "yes"])
def test_what_cannot_be_called_is_no_second_opinion(confirm):
    pool = Cluster(Script(found(A, B, C), found(A), confirm=confirm))
    wait_until(lambda: told(pool).generation == 2)

    assert (told(pool).state, active(pool)) == ("fresh", {A})


def test_a_second_opinion_that_hangs_is_ended_after_its_time(monkeypatch):
    def lose_two():
        monkeypatch.setattr(_pool, "LOOKUP_TIMEOUT", 0.05)  # for the second opinion
        return found(A)

    pool = Cluster(Doubted(found(A, B, C), opinion=lambda: gevent.sleep(60)))
    learn(pool, lose_two)

    assert (told(pool).state, told(pool).outcome) == ("stale", "confirm took longer than 0.05 s")
    assert active(pool) == {A, B, C}


# -- asked by endpoints that fail --------------------------------------------------------------------------------------


def test_many_failures_at_once_are_one_look_up_and_the_next_comes_after_min_refresh(monkeypatch):
    times = started_at(monkeypatch)
    pool = Cluster(Asked(found(*many(30), ttl=100), min_refresh=0.15), dead=many(30), outlier=None)
    wait_until(lambda: len(times) == 3)
    failed = len(pool.attempts)

    assert failed >= 30
    assert min(late - early for early, late in pairwise(times)) >= 0.149


def test_failures_while_a_look_up_is_under_way_ask_for_nothing_more():
    resolver = Script(found(A, ttl=0))
    pool = Cluster(resolver)
    wait_until(lambda: resolver.asked == 2 and pool.made)
    for _ in range(5):
        hurry(pool)
    resolver.tell(found(A, ttl=100))
    wait_until(lambda: not resolver.running and told(pool).next_lookup)

    assert told(pool).next_lookup - monotonic() > 90
    assert resolver.asked == 2


def test_an_answer_that_holds_for_ever_is_not_asked_for_again_whatever_fails():
    resolver = Asked(found(A, ttl=None), min_refresh=0.001)
    pool = ready(Cluster(resolver, dead={B}))
    for _ in range(3):
        fail(pool, A, 1)
        hurry(pool)

    assert told(pool).next_lookup is None
    assert len(resolver.times) == 1


# -- static host names -------------------------------------------------------------------------------------------------


def test_the_addresses_of_static_hosts_are_looked_up_at_once_and_kept_up_to_date_in_place():
    with DNSServer() as dns:
        dns.add_address("db.example.test", "127.0.0.1", ttl=0)
        resolver = DNSResolver([dns.address], min_refresh=0.3)
        pool = Cluster(StaticResolver([("db.example.test", 7), ("127.0.0.9", 8)], resolver=resolver))
        (db, literal) = pool.pools
        unknown = db.addresses
        kept = pool.pools[db]

        def addresses():
            return next(iter(pool.pools)).addresses

        wait_until(lambda: told(pool).generation == 2, what="the first answer")
        first = addresses()
        dns.add_address("db.example.test", "127.0.0.2", ttl=0)
        wait_until(lambda: addresses() == ("127.0.0.1", "127.0.0.2"), what="the second address")
        dns.fault = "servfail"
        wait_until(lambda: told(pool).state == "stale")

        assert unknown == ()
        assert first == ("127.0.0.1",)
        assert pool.pools[db] is kept
        assert list(pool.pools) == [db, literal]
        assert addresses() == ("127.0.0.1", "127.0.0.2")
        assert len(pool.kinds(events.EndpointAdded)) == 2
        assert [e.endpoint.addresses for e in pool.kinds(events.EndpointUpdated)] == [
            ("127.0.0.1",),
            ("127.0.0.1", "127.0.0.2"),
        ]


def test_static_hosts_are_looked_up_at_once_also_if_they_are_asked_for_seldom():
    with DNSServer() as dns:
        dns.add_address("db.example.test", "127.0.0.1", ttl=600)
        pool = Cluster(StaticResolver([("db.example.test", 7)], resolver=DNSResolver([dns.address], min_refresh=200)))
        wait_until(lambda: told(pool).generation == 2)

        assert next(iter(pool.pools)).addresses == ("127.0.0.1",)


# -- a look-up that somebody kills -------------------------------------------------------------------------------------


def test_a_look_up_that_is_killed_before_it_begins_is_a_failed_one():
    resolver = Script()
    pool = Cluster(resolver)
    look_up(pool).kill()
    wait_until(lambda: told(pool).last_error)
    seen = told(pool), resolver.asked
    learn(pool, found(A))

    assert (seen[0].state, seen[0].outcome, seen[1]) == ("starting", "GreenletExit", 0)
    assert (told(pool).state, active(pool)) == ("fresh", {A})


def test_a_look_up_that_is_killed_is_a_failed_one():
    resolver = Script(found(A))
    pool = Cluster(resolver)
    wait_until(lambda: resolver.asked == 2)
    look_up(pool).kill()
    seen = told(pool)
    learn(pool, found(B))

    assert (seen.state, seen.outcome) == ("stale", "GreenletExit")
    assert (told(pool).state, active(pool)) == ("fresh", {B})


def test_who_gives_a_stale_set_up_and_is_killed_before_he_begins_is_made_good_for_by_the_next_look_up():
    resolver = Script(found(A), max_stale=0)
    pool = Cluster(resolver)
    learn(pool, found(A))
    discovery = pool._lender.discovery
    discovery._refresh.gives_up_at = 0.0
    wait_until(lambda: resolver.running)
    resolver.tell(found(A, ttl=100))
    wait_until(lambda: not resolver.running and look_up(pool) is None)
    discovery._refresh.gives_up_at = 0.0
    discovery.tick(monotonic())
    look_up(pool).kill()
    seen = told(pool).state, active(pool)
    hurry(pool)
    learn(pool, GONE)

    assert seen == ("fresh", {A})  # what is told is so
    assert active(pool) == set()


def test_changes_that_are_cut_off_by_a_kill_go_on_though_nothing_is_asked_again(pace):
    resolver = Script(Resolution((A, B, C), ttl=None))
    pool = Cluster(resolver)
    pace.at_rest()
    look_up(pool).kill(block=False)
    pace.go_on()
    wait_until(lambda: active(pool) == {A, B, C})

    assert resolver.asked == 1


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Bare(NoRecords):
    def __init__(self):
        pass


@pytest.mark.parametrize(
    "error", [Wordless, Bare, lambda: NoRecords("gone", -1.0), lambda: NoRecords("gone", float("nan"))]
)
def test_whatever_is_raised_is_a_failed_look_up_and_not_the_last_one(error):
    def fail():
        raise error()

    resolver = Script(found(A), empty_hold=0)
    pool = Cluster(resolver)
    learn(pool, fail)
    seen = told(pool)
    learn(pool, found(B))

    assert seen.state in ("stale", "empty")
    assert (told(pool).state, active(pool)) == ("fresh", {B})


@pytest.mark.parametrize("slices", range(1, 7))
@pytest.mark.parametrize("last", [(A, B, C), (C, D, E), (B,), ()])
def test_changes_that_are_cut_off_by_a_kill_are_made_good_for_by_the_next_answer(slices, last, pace):
    # That may be the one of before, which the members are no longer like.
    before = found(A, B, C, ttl=0)
    resolver = Script()
    pace.is_free = True
    pool = Cluster(resolver)
    learn(pool, before)
    pace.is_free = False
    resolver.tell(found(C, D, E))
    pace.at_rest()
    pace.go(slices - 1)
    half = set(active(pool))
    look_up(pool).kill()
    pace.is_free = True
    answer = before if last == (A, B, C) else found(*last)
    learn(pool, answer)

    assert half not in ({A, B, C}, {C, D, E}) or slices in (1, 5, 6)
    assert active(pool) == set(last)
    assert {e.endpoint for e in pool.stats().endpoints if e.state == "draining"} <= {A, B, C, D, E} - set(last)


# -- the end, in the middle of it --------------------------------------------------------------------------------------


def test_a_close_in_the_middle_of_a_look_up_ends_it_at_once_and_nothing_comes_of_it():
    resolver = Script(found(A))
    pool = Cluster(resolver)
    wait_until(lambda: resolver.asked == 2 and pool.made)
    heard = len(changes(pool))
    closed = pool.close(5)
    gevent.idle()

    assert closed
    assert (resolver.running, resolver.asked) == (0, 2)
    assert len(changes(pool)) == heard


def test_a_close_between_two_slices_ends_them_and_closes_what_they_have_opened(pace):
    pool = Cluster(Script(found(*many(1000))))
    pace.go(9)
    wait_until(lambda: len(pool.made) == 10)
    closed = pool.close(5)
    gevent.idle()

    assert closed
    assert len(pool.pools) == 10
    assert {c.ended for c in pool.made} == {"closed"}
    assert len(pool.attempts) == 10
    assert look_up(pool) is None


def dropped(pool):
    """Let go of a pool; say whether it is dead at once."""
    ghost = weakref.ref(pool[0])
    Cluster.alive.clear()
    gc.disable()
    try:
        pool.clear()
        return ghost() is None
    finally:
        gc.enable()


def test_a_pool_that_is_dropped_in_the_middle_of_a_look_up_is_gone_at_once_and_nothing_comes_of_it(recwarn):
    resolver, attempts = Script(), []
    pool = [Cluster(resolver, connect=attempts.append, on_event=None)]
    wait_until(lambda: resolver.running)
    is_dead = dropped(pool)
    resolver.tell(found(A))
    wait_until(lambda: not resolver.running)
    gevent.idle()

    assert is_dead
    assert attempts == []
    assert resolver.asked == 1


def test_a_pool_that_is_dropped_between_two_slices_is_gone_at_once_and_so_are_its_changes(pace):
    attempts: list[Any] = []
    pool = [Cluster(Script(found(*many(1000))), connect=attempts.append, on_event=None)]
    pace.go(5)
    gevent.idle()
    opened = len(attempts)
    greenlet, members = look_up(pool[0]), pool[0]._lender.members
    with pytest.warns(ResourceWarning, match=f"{opened} connections were open"):
        is_dead = dropped(pool)
    pace.go_on()
    greenlet.join(5)
    gevent.idle()

    assert is_dead
    assert greenlet.successful()
    assert (opened, len(attempts), len(members)) == (6, 6, 6)


# -- large differences -------------------------------------------------------------------------------------------------


def test_while_many_come_who_waits_is_served_by_those_who_are_there(pace):
    resolver = Script()
    pool = Cluster(resolver)
    waiting = in_line(pool, *[pool.call] * 3)
    resolver.tell(found(*many(1000)))
    pace.at_rest()
    gevent.joinall(waiting, 5)

    assert [greenlet.value for greenlet in waiting] == many(1) * 3
    assert len(pool.pools) == 1
    assert told(pool).state == "starting"


def test_while_all_are_replaced_there_is_always_one_and_calls_on_those_that_leave_finish(pace):
    old, new = many(20), [Endpoint(f"new{n}.test", 1) for n in range(20)]
    pace.is_free = True
    resolver = Script()
    pool = Cluster(resolver, size=1)
    learn(pool, found(*old))
    ready(pool)
    held = [pool.acquire(5) for _ in old]
    waiting = in_line(pool, *[partial(pool.call, None)] * 5)
    pace.is_free = False
    resolver.tell(found(*new, ttl=100))
    seen = []
    for _ in range(39):
        pace.at_rest()
        seen.append(consistent(pool))
        pace.go()
    pace.go_on()
    gevent.joinall(waiting, 5)
    wait_until(lambda: look_up(pool) is None)
    still = [c.ended for c in held]
    for c in held:
        pool.release(c)
    wait_until(lambda: set(pool.pools) == set(new))

    assert all(greenlet.value in new for greenlet in waiting)
    assert min(seen) >= 20
    assert still == [None] * 20
    assert [type(e).__name__ for e in pool.kinds(events.EndpointDrained) if e.forced] == []


def consistent(pool):
    """Compare all that can be seen of a cluster between two slices; return how many endpoints are active."""
    stats = pool.stats()
    endpoints = [entry.endpoint for entry in stats.endpoints]
    assert list(pool.pools) == endpoints
    assert len(set(endpoints)) == len(endpoints)
    for name in "open", "idle", "in_use", "connecting", "size":
        assert getattr(stats, name) == sum(getattr(entry.pool, name) for entry in stats.endpoints)
    assert not (stats.waiting and [e for e in stats.endpoints if e.state == "active" and e.pool.idle])
    return len([entry for entry in stats.endpoints if entry.state == "active"])


def test_a_connection_that_comes_back_between_two_slices_goes_to_who_waits(pace):
    pace.is_free = True
    resolver = Script()
    pool = Cluster(resolver)
    learn(pool, found(A))
    held = pool.acquire(5)
    waiting = in_line(pool, pool.call)
    pool.dead = {B, C, D, E}
    pace.is_free = False
    resolver.tell(found(A, B, C, D, E))
    pace.go(2)
    pool.release(held)
    waiting[0].join(5)

    assert waiting[0].value == A
    assert len(pool.pools) == 3


def test_one_that_drains_and_is_named_again_is_back_whatever_happens_between_two_slices(pace):
    pace.is_free = True
    resolver = Script()
    pool = Cluster(resolver)
    learn(pool, found(A, B))
    held = pool.pools[A].acquire(5)
    learn(pool, found(B))
    pool.becomes(A, "draining")
    pace.is_free = False
    resolver.tell(found(A, B, ttl=100))
    for _ in range(2):  # after each change the call on A may be over
        pace.at_rest()
        if held is not None and pace.resting == 1:
            pool.discard(held)
            wait_until(lambda: held.ended)
        pace.go()
    pace.go_on()
    wait_until(lambda: look_up(pool) is None)

    assert active(pool) == {A, B}
    assert pool.call(to=A) == A


def test_there_is_one_look_up_at_a_time_and_none_while_changes_are_made(pace):
    resolver = Script(found(*many(10), ttl=0))
    pool = Cluster(resolver, dead=many(5), outlier=None)
    for _ in range(9):
        pace.at_rest()
        hurry(pool)
        gevent.sleep(0.002)  # the next one is due, and there are failures, too
        pool._lender.discovery.tick(monotonic())
        assert resolver.asked == 1
        pace.go()
    asked = resolver.asked
    pace.go_on()
    wait_until(lambda: resolver.asked == 2)

    assert asked == 1
    assert resolver.most == 1


def test_an_outage_in_the_middle_of_large_changes_has_no_look_ups_beside_each_other(free_pace):
    resolver = Script()
    pool = Cluster(resolver)
    learn(pool, found(*many(50)), NO_NETWORK, found(*many(20)), GONE, found(*many(30)), NO_NAME, found(A))

    assert active(pool) == {A}
    assert resolver.most == 1


@pytest.fixture
def slices(monkeypatch):
    """What each slice has changed, and how much it leaves to do; a look at the clock of slices takes 0.1 ms."""
    seen = []
    clock = iter(range(10**9))
    change = Members.change

    def spy(self, changes, now, enough=lambda: False):
        before = len(self.queue.news)
        is_done = change(self, changes, now, enough)
        kinds = Counter(type(event).__name__ for event in list(self.queue.news)[before:])
        seen.append((kinds, Counter(deed for deed, _ in self.queue.todo)))
        return is_done

    monkeypatch.setattr(Members, "change", spy)
    monkeypatch.setattr(_worker, "monotonic", lambda: next(clock) / 10_000)
    monkeypatch.setattr(_worker, "REST", 0)
    return seen


def test_a_slice_makes_few_changes_and_leaves_few_connects_and_closes_to_do(slices):
    resolver = Script()
    pool = Cluster(resolver, on_event=None)
    learn(pool, found(*many(1000)))
    ready(pool)
    come = list(slices)
    slices.clear()
    learn(pool, found(*many(100)))
    go = list(slices)
    slices.clear()
    learn(pool, found(*many(100, weight=2)))

    assert sum(kinds["EndpointAdded"] for kinds, _ in come) == 1000
    assert sum(kinds["EndpointRemoved"] for kinds, _ in go) == 900
    assert sum(kinds["EndpointUpdated"] for kinds, _ in slices) == 100
    for kinds, deeds in come + go + slices:
        assert sum(kinds.values()) <= 6
        assert deeds["open"] + deeds["close"] <= _pool.DEEDS_AT_ONCE + 1


def test_a_thousand_that_stay_as_they_are_are_gone_through_in_slices_too(slices):
    pool = Cluster(Script())
    learn(pool, found(*many(1000)))
    slices.clear()
    learn(pool, found(*many(1000)))

    assert len(slices) > 100
    assert sum(sum(kinds.values()) for kinds, _ in slices) == 0


def test_however_fast_a_slice_is_it_leaves_few_connects_and_closes_to_do(slices, monkeypatch):
    monkeypatch.setattr(_worker, "monotonic", lambda: 0.0)
    pool = Cluster(Script(), on_event=None)
    learn(pool, found(*many(60)))
    ready(pool)
    learn(pool, found(*many(1)))
    adding = [deeds["open"] for kinds, deeds in slices if kinds["EndpointAdded"]]
    removing = [deeds["close"] for kinds, deeds in slices if kinds["EndpointRemoved"]]

    assert (sum(adding), sum(removing)) == (60, 59)
    assert max(adding + removing) == _pool.DEEDS_AT_ONCE


def test_an_answer_that_is_the_very_same_is_not_gone_through_again(slices):
    answer = found(A, B)
    pool = Cluster(Script())
    learn(pool, answer)
    gone_through = len(slices)
    learn(pool, answer, NO_NETWORK, NO_NAME, answer)

    assert len(slices) == gone_through > 0


def test_others_run_between_two_slices(free_pace):
    order = []
    pool = Cluster(Script(found(*many(50))))

    def tick():
        while len(pool.pools) < 50:
            order.append(len(pool.pools))
            gevent.sleep(0)

    gevent.spawn(tick).join()

    assert set(order) >= set(range(1, 50))


# -- many pools, many endpoints ----------------------------------------------------------------------------------------


def test_look_ups_of_pools_that_started_together_part_ways():
    pools = [Cluster(Asked(found(A, ttl=100))) for _ in range(50)]
    wait_until(lambda: all(told(pool).next_lookup for pool in pools))
    pauses = sorted(told(pool).next_lookup - told(pool).since for pool in pools)

    assert 100 <= pauses[0] < 102.5
    assert 107.5 < pauses[-1] <= 110.1
    assert len(set(pauses)) == 50


def test_look_ups_that_failed_together_part_ways():
    pools = [Cluster(Asked(NO_NETWORK)) for _ in range(50)]
    wait_until(lambda: all(told(pool).last_error for pool in pools))
    pauses = sorted(told(pool).next_lookup - pool._lender.discovery._resolver.times[0] for pool in pools)

    assert 0.8 <= pauses[0] < 0.9
    assert 1.1 < pauses[-1] < 10


def test_a_cluster_of_a_thousand_rests_without_a_greenlet_when_it_has_been_looked_up():
    before = greenlets()
    pool = ready(Cluster(Asked(found(*many(1000), ttl=100))))
    wait_until(lambda: pool.stats().connecting == 0 and look_up(pool) is None)
    gevent.idle()

    assert greenlets() - before == set()
    assert len(pool.pools) == 1000
