"""A cluster with ``subset``: which pools it has, over sockets, while endpoints fail, return, come and go."""

from __future__ import annotations

from collections import Counter
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue
from gevent.server import StreamServer

from geventconnpool import ClusterPool, Endpoint, events
from geventconnpool._worker import Slice
from geventconnpool.cluster import OutlierDetection, Resolution, _pool
from tests.servers import wait_until

QUICK = OutlierDetection(consecutive_failures=2, base_ejection_time=0.05, jitter=0)
SLOW = OutlierDetection(consecutive_failures=2, base_ejection_time=30, jitter=0)


class Fleet(ClusterPool[Any]):
    """Counts by endpoint what it opens, and hears all events. Opens nothing while the event ``may_open`` is not set."""

    alive: list[Fleet] = []

    def __init__(self, service: Any, size: int = 1, **options: Any) -> None:
        self.opened: Counter[Endpoint] = Counter()
        self.may_open = Event()
        self.may_open.set()
        self.heard: list[Any] = []
        Fleet.alive.append(self)
        super().__init__(service, size, on_event=self.heard.append, **options)

    def _new_connection(self, endpoint):
        self.may_open.wait()
        connection = endpoint.connect(timeout=30)
        self.opened[endpoint] += 1
        return connection

    def call(self):
        """Use a connection, and return where it leads."""
        with self.get(timeout=30) as c:
            c.sendall(b"x")
            if not c.recv(1):
                raise OSError("it has hung up")
            return self.endpoint_of(c)

    def serves(self):
        """Return where calls go: 50, and more until each that is active had one, as one that hung has to wait."""
        served = {self.call() for _ in range(50)}
        active = {endpoint for endpoint, state in self.states().items() if state == "active"}
        wait_until(lambda: served.add(self.call()) or active <= served, what="a call to each")
        return served

    def fail(self, endpoint, times=1):
        for _ in range(times):
            with pytest.raises(OSError, match="mine"), self.pools[endpoint].get(timeout=5):
                raise OSError("mine")

    def states(self):
        return {entry.endpoint: entry.state for entry in self.stats().endpoints}

    def becomes(self, **states):
        """Wait until that many endpoints are active, ejected and draining, and no others there."""
        wait_until(lambda: Counter(self.states().values()) == states, what=f"{states}, not {self.states()}")

    def count(self, kind):
        return sum(isinstance(event, kind) for event in self.heard)

    @property
    def discovery(self):
        return self._lender.discovery

    def choice(self, unfit=()):
        """Return who is to have a pool."""
        return set(self.discovery._subset.choose(self.discovery._refresh.endpoints, unfit))


class Answer:
    """A resolver that gives the answer of the moment; asked again all the time."""

    min_refresh = 0.005

    def __init__(self, endpoints: Any) -> None:
        self.endpoints = tuple(endpoints)

    def resolve(self, service):
        return Resolution(self.endpoints, ttl=0)


class Told:
    """A resolver that hangs until it is told an answer."""

    min_refresh = 0.001

    def __init__(self, endpoints: Any, ttl: float = 0) -> None:
        self._answers: Any = Queue()
        self.tell(endpoints, ttl)

    def tell(self, endpoints: Any, ttl: float = 0) -> None:
        self._answers.put(Resolution(tuple(endpoints), ttl))

    def resolve(self, service):
        return self._answers.get()


def echo(connection, _address):
    with connection:
        while data := connection.recv(100):
            connection.sendall(data)


@pytest.fixture(autouse=True)
def all_goes_well_and_nothing_is_left_open(monkeypatch):
    """No error reaches the hub, and after each test its clusters are closed."""
    errors: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, tb: errors.append(kind))
    yield
    for pool in Fleet.alive:
        if hasattr(pool, "closed"):
            pool.close(0)
            wait_until(lambda pool=pool: pool.stats().open == 0 and pool.discovery._applier is None)
    Fleet.alive.clear()
    assert errors == []


def serve(port=0):
    server = StreamServer(("127.0.0.1", port), echo)
    server.start()
    return server


@pytest.fixture
def server():
    server = serve()
    yield server
    server.stop()


@pytest.fixture
def many(server):
    """A thousand endpoints, all at that server."""
    return [Endpoint(f"{n}.test", server.server_port, ("127.0.0.1",)) for n in range(1000)]


@pytest.fixture
def servers():
    """Five servers, by endpoint."""
    started = [serve() for _ in range(5)]
    servers = {Endpoint("127.0.0.1", server.server_port): server for server in started}
    yield servers
    for server in servers.values():
        server.stop()


def ready(pool):
    pool.wait(timeout=30)
    return pool


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, Answer])
def test_of_a_thousand_endpoints_only_those_of_the_subset_get_pools_and_connections(kind, many):
    with Fleet(kind(many), size=2, subset=5) as pool:
        ready(pool)
        gevent.sleep(0.02)
        seen = (len(pool.pools), pool.count(events.EndpointAdded), sorted(pool.opened.values()))

        assert seen == (5, 5, [2, 2, 2, 2, 2])
        assert pool.serves() == set(pool.pools)


def test_a_subset_as_large_as_the_service_has_them_all(servers):
    with Fleet(list(servers), subset=5) as pool, Fleet(list(servers), subset=2**70) as other:
        assert set(ready(pool).pools) == set(ready(other).pools) == set(servers)


def test_each_pool_makes_a_choice_of_its_own(many):
    with Fleet(many, subset=5) as one, Fleet(many, subset=5) as other:
        assert set(one.pools) != set(other.pools)


def test_each_priority_has_its_subset(many):
    tiers = [Endpoint(e.name, e.port, e.addresses, priority=n % 3) for n, e in enumerate(many)]
    with Fleet(tiers, subset=4) as pool:
        ready(pool)

        assert Counter(endpoint.priority for endpoint in pool.pools) == {0: 4, 1: 4, 2: 4}
        assert {pool.call().priority for _ in range(20)} == {0}


def test_the_balancer_has_the_weights_of_the_choice(many):
    asked = []

    class Asked:
        def choose(self, candidates, now):
            asked.append({candidate.endpoint.weight: candidate.weight for candidate in candidates})
            return candidates[0]

    weighty = [Endpoint(e.name, e.port, e.addresses, weight=1 + n % 2) for n, e in enumerate(many)]
    with Fleet(weighty, subset=30, balancer=Asked) as pool:
        ready(pool)
        pool.call()

    weights = asked[-1]
    assert set(weights) == {1, 2}
    assert 1.8 < weights[1] < weights[2] == 2.0


# -- failures ----------------------------------------------------------------------------------------------------------


def test_another_stands_in_for_one_that_is_ejected_until_it_is_readmitted(servers):
    with Fleet(list(servers), subset=2, outlier=QUICK) as pool:
        before = set(ready(pool).pools)
        lost = next(iter(before))
        servers[lost].stop(timeout=0)
        pool.fail(lost)  # and its connects are refused
        pool.becomes(active=2, ejected=1)
        during = set(pool.pools)
        served = pool.serves()
        servers[lost] = serve(lost.port)
        pool.becomes(active=2)

        assert before < during
        assert served == during - {lost}
        assert set(pool.pools) == before
        assert pool.serves() == before
        assert pool.states() == dict.fromkeys(before, "active")
        (stand_in,) = during - before
        wait_until(lambda: pool.count(events.EndpointDrained))
        told = [type(event).__name__ for event in pool.heard if getattr(event, "endpoint", None) == stand_in]
        assert told == [
            *("EndpointAdded", "ConnectionOpened", "EndpointRemoved", "ConnectionClosed", "EndpointDrained"),
        ]


def test_a_stand_in_finishes_the_call_it_is_in(servers):
    with Fleet(list(servers), subset=1, outlier=QUICK) as pool:
        (one,) = ready(pool).pools
        servers[one].stop(timeout=0)
        pool.fail(one)
        pool.becomes(active=1, ejected=1)
        with pool.get(timeout=5) as c:
            stand_in = pool.endpoint_of(c)
            servers[one] = serve(one.port)
            pool.becomes(active=1, draining=1)
            c.sendall(b"late")
            answer = c.recv(100)
            states = pool.states()
        pool.becomes(active=1)

        assert answer == b"late"
        assert states == {one: "active", stand_in: "draining"}


def test_while_all_fail_there_are_at_most_twice_as_many_and_never_none(servers):
    with Fleet(list(servers), subset=2, outlier=SLOW) as pool:
        ready(pool)
        for server in servers.values():
            server.stop(timeout=0)
        for endpoint in pool.pools:
            pool.fail(endpoint)
        pool.becomes(active=2, ejected=2)
        wait_until(lambda: len(pool._lender.members.unfit) == 4)
        gevent.sleep(0.05)

        assert Counter(pool.states().values()) == {"active": 2, "ejected": 2}
        assert set(pool.pools) == pool.choice(pool.pools)


def test_a_good_call_sends_the_stand_in_of_one_that_was_spared_away(many):
    # Nothing else happens after it: no keepalive, no look-up, nobody who waits.
    with Fleet(many, subset=1, outlier=SLOW) as pool:
        (one,) = ready(pool).pools
        pool.fail(one, times=2)
        pool.becomes(active=2)
        pool.wait(2, timeout=30)
        with pool.pools[one].get(timeout=5):
            pass
        pool.becomes(active=1)

        assert set(pool.pools) == {one}


def test_without_a_subset_nobody_stands_in(servers):
    with Fleet(list(servers), outlier=SLOW) as pool:
        for endpoint in ready(pool).pools:
            pool.fail(endpoint, times=2)
        gevent.sleep(0.02)

        assert Counter(pool.states().values()) == {"active": 2, "ejected": 3}
        assert pool.count(events.EndpointRemoved) == 0


# -- discovery ---------------------------------------------------------------------------------------------------------


def test_one_that_leaves_is_replaced_and_displaces_who_replaced_it_when_it_is_back(many):
    names = Answer(many)
    with Fleet(names, subset=4) as pool:
        before = set(ready(pool).pools)
        one = next(iter(before))
        names.endpoints = tuple(endpoint for endpoint in many if endpoint != one)
        wait_until(lambda: one not in pool.pools)
        ready(pool)
        without = set(pool.pools)
        names.endpoints = tuple(many)
        wait_until(lambda: one in pool.pools and len(pool.pools) == 4)
        ready(pool)

        assert (len(without), len(before & without)) == (4, 3)
        assert set(pool.pools) == before
        assert [pool.opened[endpoint] for endpoint in before & without] == [1, 1, 1]


def test_what_others_do_changes_nothing(many):
    names = Answer(many)
    with Fleet(names, subset=4) as pool:
        chosen = set(ready(pool).pools)
        others = [endpoint for endpoint in many if endpoint not in chosen]
        names.endpoints = (*chosen, *others[:100])
        generation = pool.stats().discovery.generation
        wait_until(lambda: pool.stats().discovery.generation > generation + 1)

        assert set(pool.pools) == chosen
        assert pool.count(events.EndpointAdded) == 4
        assert pool.count(events.EndpointRemoved) == 0


def test_a_service_that_loses_all_its_endpoints_is_empty(many):
    names = Answer(many)
    with Fleet(names, subset=4) as pool:
        ready(pool)
        names.endpoints = ()
        wait_until(lambda: pool.stats().discovery.state == "unavailable")

        assert not pool.pools
        assert pool._lender.members.is_empty


# -- one step at a time ------------------------------------------------------------------------------------------------


class Pace:
    """Every change, and every draw, is a slice of its own; after so many more the work rests until told to go on."""

    def __init__(self) -> None:
        self.left: float = float("inf")
        self.is_resting = False
        self._go_on = Event()

    def rest(self, part: Any = None) -> None:
        self.left -= 1
        if self.left < 0:
            self.is_resting = True
            self._go_on.clear()
            self._go_on.wait()
            self.is_resting = False

    def stop_after(self, slices: int) -> None:
        self.left = slices

    def stopped(self) -> None:
        wait_until(lambda: self.is_resting)

    def go_on(self) -> None:
        self.left = float("inf")
        self._go_on.set()


@pytest.fixture
def pace(monkeypatch):
    pace = Pace()
    monkeypatch.setattr(_pool, "CHANGES_AT_ONCE", -1.0)
    monkeypatch.setattr(Slice, "rest", pace.rest)
    yield pace
    pace.go_on()


def choosing_anew(pace, endpoints, slices):
    """Return a cluster that is about to replace two that were ejected, and rests after so many slices of that."""
    pool = ready(Fleet(endpoints, subset=3, outlier=SLOW))
    pace.stop_after(slices)
    ejected = list(pool.pools)[:2]
    for endpoint in ejected:
        pool.fail(endpoint, times=2)
    pace.stopped()
    return pool, ejected


# 20 draws, then a change for each of five who are to be there: after 24 rests, the first substitute has just joined.
@pytest.mark.parametrize("slices", [0, 10, 20, 23, 24])
def test_what_is_believed_stays_what_is_told_while_another_choice_is_made(slices, pace, many):
    class Patient(Told):
        min_refresh = 50  # also after a failure

    pool, _ = choosing_anew(pace, Patient(many[:20], ttl=100), slices)
    during = pool.stats().discovery
    pace.go_on()
    pool.becomes(active=3, ejected=2)
    after = pool.stats().discovery

    assert (during.state, during.generation, during.ttl) == ("fresh", 1, 100)
    assert during.next_lookup is not None
    assert after == during
    assert pool.count(events.DiscoveryChanged) == 1


def test_who_stands_in_stays_if_the_one_that_is_back_fails_again_before_it_has_gone(pace, many):
    pool = ready(Fleet(many[:20], subset=1, outlier=QUICK))
    (one,) = pool.pools
    pool.fail(one, times=2)
    pool.becomes(active=2)
    pool.wait(2, timeout=30)
    pool.may_open.clear()  # the probe, too, waits
    pool.fail(one)
    wait_until(lambda: not pool.discovery._is_behind and pool.discovery._applier is None)
    pace.stop_after(10)
    pool.may_open.set()
    pace.stopped()
    pool.fail(one, times=2)
    states = sorted(pool.states().values())
    pace.go_on()
    wait_until(lambda: pool.count(events.EndpointReadmitted) == 2)
    pool.becomes(active=1)

    assert states == ["active", "ejected"]
    assert pool.count(events.EndpointAdded) == 2
    assert pool.count(events.EndpointRemoved) == 1


def test_it_is_not_ready_before_all_are_there_who_were_chosen_anew(pace, many):
    pool, _ = choosing_anew(pace, many[:20], 24)
    there = len(pool.pools)
    pool.wait(2, timeout=30)
    was_ready = pool._lender.is_ready(None)
    pace.go_on()
    ready(pool)

    assert (there, was_ready) == (4, False)
    assert len(pool.opened) == 5


@pytest.mark.parametrize("slices", [0, 10, 20, 23, 24])
def test_a_choice_that_is_cut_off_by_a_kill_is_made_all_the_same(slices, pace, many):
    pool, ejected = choosing_anew(pace, many[:20], slices)
    pool.discovery._applier.kill(block=False)
    pace.go_on()
    pool.becomes(active=3, ejected=2)

    assert set(pool.pools) == pool.choice(ejected)


@pytest.mark.parametrize("slices", [0, 10, 20, 23, 24])
def test_who_fails_while_a_choice_is_made_has_a_stand_in_too(slices, pace, many):
    pool, ejected = choosing_anew(pace, many[:20], slices)
    third = next(endpoint for endpoint, state in pool.states().items() if state == "active")
    pool.fail(third, times=2)
    pace.go_on()
    wait_until(lambda: set(pool.pools) == pool.choice({*ejected, third}))
    states = Counter(pool.states().values())
    pool.fail(third)  # of six, three may be ejected

    assert states == {"active": 4, "ejected": 2}
    assert Counter(pool.states().values()) == {"active": 3, "ejected": 3}


@pytest.mark.parametrize("slices", [0, 10, 20, 23, 24])
def test_who_is_closed_while_a_choice_is_made_opens_nothing_more(slices, pace, many):
    pool, _ = choosing_anew(pace, many[:20], slices)
    there = set(pool.pools)
    closed = pool.close(5)
    pace.go_on()
    gevent.idle()

    assert closed
    assert set(pool.pools) == there
    wait_until(lambda: pool.stats().open == 0 and pool.discovery._applier is None)


@pytest.mark.parametrize("slices", [0, 10, 20, 23, 24])
def test_an_answer_that_comes_while_a_choice_is_made_is_what_counts(slices, pace, many):
    names = Told(many[:20])
    pool, ejected = choosing_anew(pace, names, slices)
    names.tell(many[20:40])
    wait_until(lambda: pool.discovery._refresh.generation == 2)
    pace.go_on()
    wait_until(lambda: set(pool.pools) == pool.choice() and len(pool.pools) == 3)

    assert not pool.choice() & set(ejected)
    assert pool.choice() < set(many[20:40])


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (0, ValueError, "subset must be at least 1, not 0"),
        (-3, ValueError, "subset must be at least 1, not -3"),
        (2.0, TypeError, "subset must be an int, not 2.0"),
        (True, TypeError, "subset must be an int, not True"),
        ("5", TypeError, "subset must be an int, not '5'"),
    ],
)
def test_a_subset_that_makes_no_sense_is_refused_at_once(value, kind, message, many):
    with pytest.raises(kind, match=message):
        Fleet(many, subset=value)
