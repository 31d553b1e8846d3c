"""How the endpoints of a cluster are weighed against each other, in virtual time."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from functools import partial
from math import exp, inf, isfinite
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from geventconnpool import events
from geventconnpool._queue import CONNECTING, ERROR, IN_USE, INTERRUPTED, KEPT
from geventconnpool.cluster import Endpoint, OutlierDetection, PeakEWMA, RoundRobin
from geventconnpool.cluster._load import FAILURE_COST, FIRST_TRIAL, FLOOR, LEAST_UNIT, STEEPEST, STEP
from geventconnpool.testing._simulation import Client, World
from tests.benchmarks.simulator import evenly, poisson
from tests.test_members import FALLBACK, REFUSED, A, B, C, Cluster, D, First, Life
from tests.virtual import Dice, Ordered, states


def many(n, *, weight=1, priority=0, prefix="e"):
    return [Endpoint(f"{prefix}{i}", 6379, weight=weight, priority=priority) for i in range(n)]


def filled(*endpoints, balancer=PeakEWMA, **options):
    return Cluster(*endpoints, balancer=balancer(), **options).fill()


def call(cluster, seconds=0.001, verdict=None, avoid=()):
    """Make a call that takes so long, and return where it went."""
    slot = cluster.take(avoid)
    cluster.shell.run_to(cluster.shell.now + seconds)
    cluster.end(slot, verdict, REFUSED if verdict is ERROR else None)
    if verdict is ERROR:
        cluster.fill()
    return slot.endpoint


def calls(cluster, times, seconds=0.001, **options):
    """Count where so many calls go, one after the other."""
    return Counter(call(cluster, seconds, **options) for _ in range(times))


def took(cluster, endpoint, seconds, times=1):
    """Have calls to one endpoint that take so long."""
    for _ in range(times):
        slot = cluster.borrow(endpoint)
        cluster.shell.run_to(cluster.shell.now + seconds)
        cluster.end(slot)


def cost(cluster, endpoint):
    """Return what a call to it is expected to take, whatever share it had."""
    cluster.members.survey_soon()
    cluster.members._look(cluster.shell.now)
    load = cluster[endpoint].load
    return load.cost


class Answers:
    """A server that is slow, or fails, or hangs, as it was told; from some time on it is well."""

    def __init__(self, kind, rng, well_at):
        self._kind = kind
        self._rng = rng
        self._well_at = well_at

    def call(self, now):
        usual = self._rng.uniform(0.001, 0.003)
        if now >= self._well_at:
            return usual, True
        return {
            "well": (usual, True),
            "slow": (0.5, True),
            "moody": (usual if self._rng.random() < 0.7 else 0.3, True),
            "fails": (usual, False),
            "hangs": (inf, True),
        }[self._kind]

    def ping(self, now):
        return 0.001, True

    def connect(self, now):
        return True


class Steady(Answers):
    """A server that takes about as long for each call."""

    def call(self, now):
        return self._rng.uniform(0.009, 0.011), True


# -- what is told of a call --------------------------------------------------------------------------------------------


def test_a_call_whose_connection_goes_straight_to_one_who_waits_took_as_long_as_any_other():
    cluster = filled(A, size=1)
    slot = cluster.take()
    cluster.ask()
    cluster.run_to(2.0)
    cluster.end(slot)

    assert cluster[A].latency == 2.0


def test_a_good_call_from_before_a_failure_clears_nothing_when_its_connection_goes_to_one_who_waits():
    cluster = filled(A, size=2)
    old, bad = cluster.take(), cluster.take()
    cluster.run_to(1.0)
    cluster.ask()
    cluster.end(bad, ERROR, REFUSED)
    cluster.run_to(2.0)
    cluster.end(old)

    assert cluster[A].load.charged_at == 1.0


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize(("failed", "is_cleared"), [(9.0, True), (9.5, False), (11.0, False)])
def test_a_keepalive_clears_a_failure_if_it_began_a_second_after_it_whoever_gets_the_connection(
    waiting, failed, is_cleared
):
    cluster = filled(A, size=1, keepalive=10.0, has_keepalive=True)
    cluster.run_to(10.0)
    (slot,) = cluster.shell.checking
    cluster[A].load.failed(failed, 60.0)
    if waiting:
        cluster.ask()
    cluster.run_to(13.0)
    cluster.shell.answer(slot)

    assert (cluster[A].load.charged_at is None) == is_cleared


def test_calls_that_are_queued_make_no_endpoint_look_quicker_than_one_that_has_connections_to_spare():
    cluster = filled(A, size=1)
    slots = [cluster.take()]
    for _ in range(20):
        waiter = cluster.ask()
        cluster.run_to(cluster.shell.now + 0.1)
        cluster.end(slots.pop())
        slots.append(waiter.slot)

    assert cluster[A].latency == pytest.approx(0.1)


# -- hung calls --------------------------------------------------------------------------------------------------------


def test_a_hung_endpoint_is_seen_before_its_call_returns():
    cluster = filled(A, B)
    calls(cluster, 20)
    hung = cluster.take()
    cluster.run_to(cluster.shell.now + 0.5)

    assert cost(cluster, hung.endpoint) > 0.5
    assert hung.endpoint not in calls(cluster, 100)


def test_a_long_call_among_short_ones_is_no_hang():
    cluster = filled(A, B)
    calls(cluster, 20)
    long = cluster.take()
    took(cluster, long.endpoint, 0.001, times=20)

    assert cluster.shell.now - long.since > 0.019
    assert cost(cluster, long.endpoint) < 0.005


def test_an_interrupted_call_is_no_sign_that_others_do_not_hang():
    cluster = filled(A, B)
    calls(cluster, 20)
    hung = cluster.borrow(A)
    cluster.run_to(cluster.shell.now + 0.5)
    cluster.end(cluster.borrow(A), INTERRUPTED)
    cluster.fill()

    assert cost(cluster, A) > 0.5
    assert hung.state is IN_USE


def test_a_connection_that_opens_beside_a_hung_call_makes_it_no_younger():
    cluster = filled(A, B, size=2, min_size=1)
    calls(cluster, 20)
    hung = cluster.take()
    cluster.run_to(cluster.shell.now + 5.0)
    cost(cluster, hung.endpoint)
    cluster[hung.endpoint].pool.open_one(cluster.shell.now)
    cluster.shell.act()
    cluster.fill()
    load = cluster[hung.endpoint].load

    assert load.cost > 4.0 or load.key < 0.0
    assert load.oldest == hung.since


def test_a_call_from_before_an_ejection_is_no_hang_of_the_endpoint_that_is_back():
    cluster = filled(A, B, outlier=OutlierDetection(consecutive_failures=1))
    calls(cluster, 20)
    hung = cluster.borrow(A)
    cluster.run_to(20.0)
    cluster.fail(A)
    cluster.fill()
    cluster.probe(A, good=True)
    cluster.fill()
    cluster.run_to(cluster.shell.now + 1.0)

    assert hung.state is IN_USE
    assert cluster.state_of(A) == ["active"]
    assert cost(cluster, A) < 0.01


class Struck(Ordered):
    """Slots that are gone through while the collector ends a lease."""

    strike = None

    def __iter__(self):
        for slot in super().__iter__():
            if self.strike is not None:
                strike, self.strike = self.strike, None
                strike()
            yield slot


@pytest.mark.parametrize("others", [[], many(40)], ids=["small", "large"])
def test_the_collector_may_end_a_lease_while_endpoints_are_looked_at(others):
    cluster = filled(A, B, *others, size=3, min_size=1, rng=Dice(0.0))
    lost = cluster.borrow(A)
    slots = cluster[A].pool.slots = Struck(cluster[A].pool.slots)
    slots.strike = partial(cluster.end, lost, ERROR, REFUSED)
    cluster.run_to(5.0)
    slot = cluster.take()
    cluster.shell.act()

    assert slot.endpoint != A
    assert slots.strike is None
    assert states(cluster[A].pool) == {"closing": 1, "connecting": 1}
    assert not cluster.queue.busy


class Changed(list[float]):
    """Keys that change between the look for the least and the look for its place."""

    def index(self, key, *args):
        self[:] = [other + 1.0 for other in self]
        return super().index(key, *args)


def test_the_collector_may_end_a_lease_while_the_least_key_is_looked_for():
    cluster = filled(*many(5))
    calls(cluster, 5)
    members = cluster.members
    members._keys = Changed(members._keys)

    assert members.take_idle(cluster.shell.now) is None
    assert cluster.take() is not None


# -- who is compared with whom -----------------------------------------------------------------------------------------


def test_what_endpoints_of_a_later_priority_weigh_is_nothing_to_those_that_serve():
    cluster = filled(replace(A, weight=3), replace(B, weight=1), *many(10, weight=100, priority=1))

    assert calls(cluster, 400) == {A: 300, B: 100}


def test_endpoints_are_looked_at_however_many_there_are_of_a_later_priority():
    cluster = filled(replace(A, weight=3), replace(B, weight=1), *many(40, priority=1))
    assert calls(cluster, 400) == {A: 300, B: 100}
    cluster.call(A, ERROR)
    cluster.fill()
    found = calls(cluster, 1000, seconds=0.01)

    assert found[A] > 10


def test_weights_are_honoured_among_those_that_serve_only_who_avoids_a_whole_priority():
    cluster = filled(A, replace(B, weight=3, priority=1), replace(C, weight=1, priority=1))
    calls(cluster, 100)
    found = calls(cluster, 400, avoid=[A])

    assert found == {B: pytest.approx(300, abs=12), C: pytest.approx(100, abs=12)}


def test_of_many_that_are_due_to_be_looked_at_those_with_an_idle_connection_serve():
    cluster = filled(*many(40), size=1)
    held = [cluster.take() for _ in range(30)]
    cluster.run_to(20.0)
    served = {call(cluster).name for _ in range(200)}

    assert served == {f"e{i}" for i in range(40)} - {slot.endpoint.name for slot in held}


def test_of_many_some_may_be_avoided():
    endpoints = many(50)
    cluster = filled(*endpoints)
    calls(cluster, 100)
    found = calls(cluster, 500, avoid=endpoints[:10])

    assert not found.keys() & set(endpoints[:10])
    assert len(found) == 40


def test_an_endpoint_whose_priority_changes_has_its_share_among_those_that_have_the_new_one():
    cluster = filled(A, B, replace(C, priority=1))
    calls(cluster, 1000)
    cluster.update(A, B, C)

    assert calls(cluster, 30) == {A: 10, B: 10, C: 10}


def test_an_endpoint_that_serves_only_who_avoids_others_is_tried_again_too():
    cluster = filled(A, *many(2, priority=1), outlier=None)
    calls(cluster, 10, avoid=[A])
    bad = many(1)[0]
    cluster.call(bad, ERROR)
    cluster.fill()
    found = [call(cluster, 0.1, avoid=[A]) for _ in range(120)]

    assert 80 <= found.index(bad) <= 100


def test_of_two_endpoints_the_slow_one_is_not_typical():
    cluster = filled(A, B)
    took(cluster, A, 0.1)
    took(cluster, B, 3.0)
    cost(cluster, A)

    assert cluster[A].load.peers.typical == pytest.approx(0.1)


def test_a_new_endpoint_costs_what_is_typical_of_the_others():
    cluster = filled(A, B, C)
    for endpoint, seconds in ((A, 0.1), (B, 0.2), (C, 0.9)):
        took(cluster, endpoint, seconds)
    cluster.update(A, B, C, D)
    cluster.fill()

    assert cost(cluster, D) == pytest.approx(0.201)


def test_an_endpoint_that_is_back_costs_what_is_typical_of_the_others():
    cluster = filled(A, B, C)
    for endpoint, seconds in ((A, 0.1), (B, 0.2), (C, 0.9)):
        took(cluster, endpoint, seconds)
    cluster.fail(C)
    cluster.probe(C, good=True)
    cluster.fill()

    assert cost(cluster, C) == pytest.approx(cluster[A].latency + FLOOR)


def test_weights_are_honoured_among_those_that_are_well_while_others_are_slow():
    world = World()
    endpoints = [replace(A, weight=3), B, *many(8)]
    servers = {e: Steady("well", Random(f"{e}"), 0.0) for e in endpoints[:2]}
    servers |= {e: Answers("slow", Random(f"{e}"), inf) for e in endpoints[2:]}
    client = Client(world, servers, PeakEWMA(), size=50)
    world.run(until=0.1)
    evenly(world, 200.0, 10.0, client.call)
    world.run()
    found = Counter(c.place for c in client.calls if c.at > 3.0)

    assert found["a"] / found["b"] == pytest.approx(3.0, abs=0.2)
    assert found["a"] + found["b"] > 1300


def test_when_weights_become_equal_nobody_is_called_many_times_in_a_row():
    cluster = filled(replace(A, weight=3), *many(7))
    calls(cluster, 500)
    cluster.update(A, *many(7))
    found = calls(cluster, 80)

    assert max(found.values()) <= 20


def test_a_weight_that_changes_in_dns_counts_from_the_next_call_on():
    cluster = filled(A, B)
    calls(cluster, 100)
    cluster.update(replace(A, weight=3), B)

    assert calls(cluster, 400)[A] == pytest.approx(300, abs=3)


def test_who_weighs_hardly_anything_serves_again_after_a_call_if_the_others_hang():
    cluster = filled(replace(A, weight=60000), replace(B, weight=1), size=300, outlier=None)
    took(cluster, B, 0.001)
    calls(cluster, 300)
    cluster.run_to(cluster.shell.now + 5.0)
    while call_or_hang(cluster) != B:
        pass
    served = Counter(call_or_hang(cluster) for _ in range(200))

    assert served[B] > 100


def call_or_hang(cluster):
    """Call where A never answers."""
    slot = cluster.take()
    cluster.shell.run_to(cluster.shell.now + 0.001)
    if slot.endpoint != A:
        cluster.end(slot)
    return slot.endpoint


@pytest.mark.parametrize("weight", [0, 1, 100])
def test_the_first_calls_of_many_processes_do_not_all_go_to_the_same_endpoint(weight):
    endpoints = [replace(endpoint, weight=weight) for endpoint in many(4)]
    firsts = Counter(filled(*endpoints, rng=Random(seed)).take().endpoint.name for seed in range(200))

    assert sorted(firsts) == ["e0", "e1", "e2", "e3"]
    assert min(firsts.values()) > 30


def test_where_all_have_weight_0_the_first_calls_of_a_process_are_spread_over_all():
    cluster = filled(*(replace(endpoint, weight=0) for endpoint in (A, B, C)), rng=Random(0))

    assert calls(cluster, 12) == {A: 4, B: 4, C: 4}


def test_the_first_calls_of_many_processes_go_mostly_to_who_weighs_most():
    endpoints = [replace(A, weight=8), replace(B, weight=1), replace(C, weight=1)]
    firsts = Counter(filled(*endpoints, rng=Random(seed)).take().endpoint.name for seed in range(200))

    assert sorted(firsts) == ["a", "b", "c"]
    assert firsts["a"] > 140


class Weights(First):
    """Notes the weights of the candidates."""

    def choose(self, candidates, now):
        self.weights = {candidate.endpoint: candidate.weight for candidate in candidates}
        return super().choose(candidates, now)


# -- what is under way -------------------------------------------------------------------------------------------------


def test_connects_under_way_are_load():
    cluster = filled(A, B, size=4)
    calls(cluster, 10)
    cluster[A].pool.reset(cluster.shell.now)
    cluster.shell.act()
    cluster.close_all()
    cluster.shell.open(cluster.opening(A)[0])

    assert cluster[A].pool.connecting == 3
    assert calls(cluster, 20) == {B: 20}


@pytest.mark.parametrize("balancer", [PeakEWMA, Weights])
def test_connects_under_way_are_load_when_a_call_begins_and_when_it_ends(balancer):
    cluster = Cluster(A, size=4, balancer=balancer())
    cluster.shell.open(cluster.opening(A)[0])
    load = cluster[A].load
    slot = cluster.take()
    during = load.cost
    cluster.end(slot)

    assert during == pytest.approx(0.001 * 5)
    assert load.cost == pytest.approx(0.001 * 4)


def test_the_end_of_a_connect_says_nothing_about_when_an_endpoint_was_tried():
    cluster = filled(A, B)
    calls(cluster, 100, 0.05)
    before = [cluster[endpoint].load.tried_at for endpoint in (A, B)]
    for endpoint in (A, B):
        cluster[endpoint].connected(cluster.shell.now)

    assert [cluster[endpoint].load.tried_at for endpoint in (A, B)] == before
    assert min(before) > cluster.shell.now - 1.0


def test_what_opens_for_many_who_wait_is_spread():
    cluster = filled(*many(4), size=10, min_size=0)
    for _ in range(8):
        cluster.ask()

    assert [pool.connecting for pool in cluster.pools.values()] == [2, 2, 2, 2]


def test_a_connection_that_is_passed_on_unused_is_no_load():
    cluster = filled(A, B, size=1)
    slots = [cluster.take(), cluster.take()]
    waiter = cluster.ask()
    cluster.end(slots[0])
    load = cluster[slots[0].endpoint].load
    load._level = 0.0
    load.weigh(1, cluster.shell.now)
    busy = load.key
    waiter.slot.pool.pass_on(waiter.slot, cluster.shell.now)

    assert busy / load.key == pytest.approx(2.0)


def test_a_connection_that_was_found_dead_is_no_load():
    cluster = filled(A, B, size=2)
    calls(cluster, 10)
    slot = cluster.take()
    load = cluster[slot.endpoint].load
    slot.pool.hung_up(slot, cluster.shell.now)
    cluster.shell.act()
    cluster.fill()

    assert load.key < min(each.load.key for each in cluster.members if each.load is not load) * 1.2


@pytest.mark.parametrize("others", [0, 1, 2])
def test_connections_that_are_coming_count_as_calls_in_flight_when_a_call_begins_and_when_it_ends(others):
    cluster = filled(A, size=4)
    calls(cluster, 10)
    held = [cluster.take() for _ in range(others)]
    dead = cluster.take()
    dead.pool.hung_up(dead, cluster.shell.now)
    cluster.shell.act()
    cluster.shell.close(dead)
    cluster.shell.act()
    slot = cluster.take()
    began = cluster[A].load.key, expected_key(cluster[A], 0)
    cluster.end(slot)
    ended = cluster[A].load.key, expected_key(cluster[A], 0)

    assert (cluster[A].pool.connecting, cluster[A].pool.in_use) == (1, len(held))
    assert began[0] == pytest.approx(began[1])
    assert ended[0] == pytest.approx(ended[1])
    assert began[0] > ended[0] * 1.1


def test_an_endpoint_that_answers_at_once_with_errors_is_not_preferred_for_it():
    cluster = filled(A, B, C)
    for endpoint in (A, B, C):
        took(cluster, endpoint, 0.02, times=10)
    found = Counter()
    for _ in range(300):
        slot = cluster.take()
        found[slot.endpoint] += 1
        is_ill = slot.endpoint == A
        cluster.shell.run_to(cluster.shell.now + (0.0001 if is_ill else 0.02))
        cluster.end(slot, KEPT if is_ill else None)

    assert found[A] < 130


# -- trials ------------------------------------------------------------------------------------------------------------


def tried(cluster, endpoint, until, seconds=0.01):
    """Call until then, and return when calls went to that endpoint."""
    found = []
    while cluster.shell.now < until:
        slot = cluster.take()
        if slot is not None:
            if slot.endpoint == endpoint:
                found.append(cluster.shell.now)
            cluster.shell.act()
        cluster.run_to(cluster.shell.now + seconds)
        cluster.fill()
        if slot is not None and slot.endpoint == endpoint:
            cluster.end(slot, ERROR, REFUSED)
        elif slot is not None:
            cluster.end(slot)
        cluster.fill()
    return found


def longest_gap(times, begin, end):
    return max(b - a for a, b in zip([begin, *times], [*times, end], strict=True))


def test_an_endpoint_that_always_fails_is_tried_within_10_seconds():
    cluster = filled(A, B, outlier=None)
    cluster.call(B, ERROR)
    cluster.fill()
    found = tried(cluster, B, until=60.0)

    assert 8.0 < longest_gap(found, 0.0, 60.0) <= 10.0
    assert len(found) <= 8


def test_an_endpoint_whose_unused_connections_are_closed_is_tried_within_10_seconds():
    cluster = filled(A, B, size=3, min_size=0, max_idle=5.0, outlier=None)
    for endpoint in (A, B):
        waiter = cluster.ask_for_one_of(endpoint)
        cluster.fill()
        cluster.end(waiter.slot, ERROR if endpoint is B else None)
    cluster.fill()
    found = tried(cluster, B, until=60.0)

    assert longest_gap(found, 0.0, 60.0) <= 10.0
    assert len(found) <= 8


def test_to_try_an_endpoint_takes_one_connect_not_as_many_as_there_are_calls_meanwhile():
    cluster = filled(A, B, size=20, min_size=0, outlier=None)
    waiters = [cluster.ask_for_one_of(A) for _ in range(10)]
    cluster.fill()
    for waiter in waiters:
        cluster.end(waiter.slot)
    cluster[B].load.failed(0.0, 60.0)
    cluster.run_to(20.0)
    for _ in range(10):
        cluster.take()

    assert cluster[B].pool.connecting == 1


def test_an_endpoint_that_was_to_be_tried_but_could_not_be_connected_to_is_to_be_tried_still():
    cluster = filled(A, B, size=1, min_size=0, outlier=None)
    waiter = cluster.ask_for_one_of(A)
    cluster.fill()
    cluster.end(waiter.slot)
    cluster[B].load.failed(0.0, 60.0)
    cluster.run_to(20.0)
    for _ in range(2):
        cluster.end(cluster.take())
        cluster.shell.act()
    cluster.shell.refuse(cluster.opening(B)[0])
    cluster.run_to(20.5)
    cluster.end(cluster.take())
    cluster.shell.act()

    assert cluster[B].pool.connecting == 1


def test_while_there_is_no_getting_through_to_an_endpoint_that_is_to_be_tried_another_serves_and_it_is_tried_later():
    cluster = filled(A, B, size=3, min_size=0, gate=1, outlier=None)
    for _ in range(3):
        waiter = cluster.ask_for_one_of(A)
        cluster.fill()
    cluster.end(waiter.slot)
    cluster[B].load.failed(0.0, 60.0)
    cluster.run_to(20.0)
    cluster.end(cluster.take())
    cluster[B].pool._gate.enter(cluster.pools[A])
    slot = cluster.take()
    assert slot.endpoint is A
    assert cluster[B].pool.connecting == 0
    cluster.end(slot)
    cluster[B].pool._gate.leave(cluster.shell.now)
    cluster.end(cluster.take())
    cluster.shell.act()

    assert cluster[B].pool.connecting == 1
    cluster.fill()
    assert cluster.take().endpoint is B


def test_dead_connections_do_not_stand_in_for_a_trial():
    cluster = filled(A, B, size=5, outlier=None)
    calls(cluster, 20)
    cluster[B].load.failed(cluster.shell.now, 60.0)
    cluster.run_to(cluster.shell.now + 9.5)
    dead = set(cluster[B].pool.slots)
    found = []
    for _ in range(6):
        slot = cluster.take()
        found.append(slot.endpoint)
        if slot in dead:
            slot.pool.hung_up(slot, cluster.shell.now)
            cluster.shell.act()
            cluster.close_all()
            for connect in cluster.opening(B):
                cluster.shell.open(connect)
        else:
            cluster.end(slot)

    assert found == [A, B, B, B, B, B] or found == [B] * 6


@pytest.mark.parametrize("n", [33, 40, 100])
@pytest.mark.parametrize("least", [2, 1])
def test_of_many_endpoints_each_gets_its_turn_to_be_looked_at(n, least):
    cluster = filled(*many(n), size=2, min_size=least, rng=Dice(0.0))
    found = calls(cluster, 4 * n)

    assert len(found) == n


@pytest.mark.parametrize("n", [32, 33])
def test_one_of_many_that_was_slow_has_its_share_again_when_it_has_been_tried(n):
    cluster = filled(*many(n), size=1)

    def play(until, seconds):
        found = Counter()
        while cluster.shell.now < until:
            slot = cluster.take()
            found[slot.endpoint.name] += 1
            cluster.run_to(cluster.shell.now + (seconds if slot.endpoint.name == "e3" else 0.0005))
            cluster.end(slot)
        return found

    slow = play(4.0, 0.05)
    play(12.0, 0.0005)
    well = play(14.0, 0.0005)

    assert slow["e3"] < 10
    assert well["e3"] > 0.5 * well["e4"]


def test_for_whom_of_many_it_is_time_is_seen_in_a_second_though_there_are_few_calls():
    cluster = filled(*many(400), size=1)
    cluster.run_to(20.0)
    for _ in range(12):
        cluster.run_to(cluster.shell.now + 0.1)
        call(cluster)

    assert all(member.load.key < 0.0 or member.load.tried_at >= 20.0 for member in cluster.members)


# -- slow start --------------------------------------------------------------------------------------------------------


def weights_after(cluster, *seconds):
    found = []
    for wait in seconds:
        cluster.run_to(cluster.shell.now + wait)
        call(cluster, 0.0)
        found.append({endpoint.name: round(weight, 2) for endpoint, weight in cluster.balancer.weights.items()})
    return found


def test_an_endpoint_that_is_new_among_others_gets_its_weight_bit_by_bit():
    cluster = filled(replace(A, weight=2), balancer=Weights, slow_start=10.0)
    calls(cluster, 3)
    cluster.update(replace(A, weight=2), replace(B, weight=4))
    cluster.fill()

    assert [found["b"] for found in weights_after(cluster, 0.0, 5.0, 4.0, 1.0, 5.0)] == [0.4, 2.2, 3.64, 4.0, 4.0]
    assert cluster.balancer.weights[A] == 2.0


def test_where_every_endpoint_is_new_nobody_starts_slowly():
    cluster = filled(A, B, balancer=Weights, slow_start=10.0)
    cluster.update(A, B, C)
    cluster.fill()

    assert weights_after(cluster, 0.0) == [{"a": 1.0, "b": 1.0, "c": 1.0}]


def test_where_an_answer_is_applied_in_slices_every_endpoint_of_the_first_is_new():
    cluster = Cluster(balancer=Weights(), slow_start=10.0)
    changes = cluster.members.changes([A, B, C])
    for _ in range(3):
        cluster.members.change(changes, cluster.shell.now, lambda: True)
        cluster.shell.act()
        cluster.fill()
        call(cluster)
    cluster.members.change(changes, cluster.shell.now)

    assert weights_after(cluster, 0.0) == [{"a": 1.0, "b": 1.0, "c": 1.0}]


def test_one_that_is_new_while_all_others_are_ejected_serves_at_once():
    cluster = filled(A, FALLBACK, balancer=Weights, slow_start=10.0)
    calls(cluster, 3)
    cluster.fail(A)
    cluster.update(A, B)
    cluster.fill()

    assert weights_after(cluster, 0.0) == [{"b": 1.0}]


def test_an_endpoint_that_is_back_starts_slowly_and_so_it_does_after_a_relapse():
    cluster = filled(A, B, balancer=Weights, slow_start=10.0)
    found = []
    for _ in range(2):
        cluster.fail(A)
        cluster.probe(A, good=True)
        cluster.fill()
        found += [weights["a"] for weights in weights_after(cluster, 0.0, 5.0)]

    assert found == [0.1, 0.55, 0.1, 0.55]


def test_without_slow_start_it_has_its_weight_at_once():
    cluster = filled(A, B, balancer=Weights)
    calls(cluster, 3)
    cluster.update(A, B, C)
    cluster.fill()

    assert weights_after(cluster, 0.0) == [{"a": 1.0, "b": 1.0, "c": 1.0}]


@pytest.mark.parametrize("balancer", [PeakEWMA, RoundRobin])
@pytest.mark.parametrize(
    ("n", "expected"), [(3, [18, 33, 47, 59, 70, 75]), (40, [19, 37, 54, 72, 89, 98])], ids=["small", "large"]
)
def test_the_share_of_a_new_endpoint_grows_from_a_tenth(n, expected, balancer):
    cluster = filled(*many(n), balancer=balancer, slow_start=10.0, rng=Random(1))
    calls(cluster, 10 * n)
    cluster.update(*many(n), D)
    cluster.fill()
    shares = [calls(cluster, 100 * n, seconds=0.02 / n)[D] for _ in range(5)]
    shares.append(calls(cluster, 100 * n, seconds=0.02 / n)[D])

    assert shares == pytest.approx(expected, abs=8)


class Server:
    """Has so many workers; a call takes one of them so long."""

    def __init__(self, rng, mean, workers=4):
        self._rng = rng
        self._mean = mean
        self._free = [0.0] * workers

    def call(self, now):
        first = min(self._free)
        self._free.remove(first)
        end = max(first, now) + self._rng.expovariate(1 / self._mean)
        self._free.append(end)
        return end - now, True

    def ping(self, now):
        return 0.001, True

    def connect(self, now):
        return True


@pytest.mark.parametrize("times_as_quick", [1, 5, 20])
def test_a_new_endpoint_is_not_flooded_because_it_is_idle_while_the_others_are_not(times_as_quick):
    endpoints = many(4)
    servers = {e: Server(Random(f"{e}"), 0.01) for e in endpoints[:3]}
    world = World()
    client = Client(world, servers, PeakEWMA(), size=100)
    poisson(world, Random(7), 960.0, 7.0, client.call)
    world.run(until=5.0)
    servers[endpoints[3]] = Server(Random(9), 0.01 / times_as_quick)
    client.members.update(endpoints, world.now)
    client._act()
    world.run(until=7.0)
    first = [c.place for c in client.calls if 5.0 <= c.at < 5.5]
    second = [c.place for c in client.calls if 5.5 <= c.at < 6.0]

    assert first.count("e3") / len(first) < 0.12
    assert second.count("e3") / len(second) < 0.2


# -- the cost of failures ----------------------------------------------------------------------------------------------


def test_an_endpoint_that_refuses_everything_at_once_gets_one_call():
    cluster = filled(A, B, outlier=None)
    calls(cluster, 20)
    cluster.call(A, ERROR)
    cluster.fill()

    assert calls(cluster, 100) == {B: 100}


def keep_alive(cluster, *, to=0.001):
    """Carry out the keepalives that are due, well, each after so many seconds."""
    for slot in list(cluster.shell.checking):
        cluster.run_to(cluster.shell.now + to)
        cluster.shell.answer(slot)


def test_a_grey_failure_gets_fewer_and_fewer_calls():
    cluster = filled(A, B, size=2, keepalive=0.5, has_keepalive=True, outlier=None)
    failed = []
    while cluster.shell.now < 200.0:
        slot = cluster.take()
        cluster.run_to(cluster.shell.now + 0.05)
        if slot.endpoint is A:
            failed.append(cluster.shell.now)
        cluster.end(slot, ERROR if slot.endpoint is A else None, REFUSED)
        cluster.fill()
        keep_alive(cluster)
    gaps = [b - a for a, b in itertools.pairwise(failed)]

    assert gaps[:4] == [pytest.approx(pause, abs=1.2) for pause in (1.0, 2.0, 4.0, 8.0)]
    assert max(gaps) <= 10.0
    assert len(failed) <= 30


def test_twenty_good_calls_in_a_row_make_the_pause_short_again():
    cluster = filled(A, B, outlier=None)
    load = cluster[A].load
    for now in (1.0, 3.0, 6.0):
        cluster.run_to(now)
        cluster.call(A, ERROR)
        cluster.fill()
        load.kept_alive(now + load.pause)
    assert load.pause == 4.0
    cluster.call(A, times=20)
    cluster.call(A, ERROR)

    assert load.pause == 1.0


def test_the_pause_is_not_longer_than_an_ejection():
    cluster = filled(A, B, outlier=OutlierDetection(max_ejection_time=3.0, consecutive_failures=100))
    load = cluster[A].load
    for n in range(6):
        load.failed(10.0 * n, cluster.members.longest_pause)
        load.kept_alive(10.0 * n + 9.0)

    assert load.pause == 3.0


def test_an_endpoint_that_is_back_costs_nothing_for_what_was_before():
    cluster = filled(A, B)
    cluster.fail(A)
    cluster.probe(A, good=True)
    cluster.fill()

    assert cluster[A].load.charged_at is None


# -- large clusters ----------------------------------------------------------------------------------------------------


def test_of_many_endpoints_a_few_are_candidates():
    class Watched(PeakEWMA):
        def choose(self, candidates, now):
            self.number = len(candidates)
            return super().choose(candidates, now)

    small, large = filled(*many(32), balancer=Watched), filled(*many(33), balancer=Watched, rng=Random(2))
    call(small)
    call(large)

    assert small.balancer.number == 32
    assert 2 <= large.balancer.number <= 5


def test_an_attribute_of_a_users_balancer_is_not_taken_for_that_of_ours():
    class Mine(First):
        sample = 0.5

    cluster = filled(A, B, C, balancer=Mine)
    cluster.take()

    assert cluster.balancer.asked == [[A, B, C]]


@pytest.mark.parametrize(("weights", "expected"), [((39, 1), 0.5), ((9, 1), 9 / 48), ((1000, 1), 1000 / 1039)])
def test_weights_are_honoured_in_a_large_cluster(weights, expected):
    heavy, light = weights
    cluster = filled(*many(1, weight=heavy, prefix="h"), *many(39, weight=light), rng=Random(3))
    found = calls(cluster, 4000)

    assert found[many(1, prefix="h")[0]] / 4000 == pytest.approx(expected, abs=0.03)
    assert len(found) >= 30


def test_the_first_call_of_each_endpoint_is_no_reason_to_look_at_all_the_others():
    cluster = filled(*many(100), size=1, rng=Random(4))
    surveys = []
    survey = cluster.members._survey
    cluster.members._survey = lambda eligible, now: surveys.append(now) or survey(eligible, now)
    calls(cluster, 300, seconds=0.0001)

    assert len(surveys) <= 3


def test_when_none_of_those_drawn_has_an_idle_connection_another_serves():
    cluster = filled(*many(40), size=1, rng=Dice(0.0))
    slots = [cluster.take() for _ in range(40)]

    assert len({slot.endpoint for slot in slots}) == 40
    assert cluster.take() is None


# -- growing -----------------------------------------------------------------------------------------------------------


class Prefers:
    """A balancer with a favourite."""

    def __init__(self):
        self.asked = []

    def choose(self, candidates, now):
        self.asked.append([candidate.endpoint for candidate in candidates])
        return next((c for c in candidates if c.endpoint == B), candidates[0])


def growing(balancer):
    """Return a cluster where A has an idle connection, and B none but room for some."""
    cluster = filled(A, B, size=2, min_size=0, balancer=balancer)
    waiter = cluster.ask_for_one_of(A)
    cluster.fill()
    cluster.end(waiter.slot)
    return cluster


def test_if_the_preferred_endpoint_has_none_idle_it_opens_one_and_the_best_that_has_one_serves():
    cluster = growing(Prefers)
    slot = cluster.take()
    cluster.shell.act()

    assert slot.endpoint is A
    assert cluster[B].pool.connecting == 1
    assert cluster.balancer.asked == [[A, B], [A]]
    cluster.end(slot)
    cluster.fill()
    assert cluster.take().endpoint is B


def test_who_is_preferred_but_has_no_room_opens_none():
    cluster = growing(Prefers)
    cluster.ask_for_one_of(B)
    cluster.ask_for_one_of(B)

    assert cluster.take().endpoint is A
    assert cluster[B].pool.connecting == 2


@pytest.mark.parametrize("broken", [{1}, {2}, {1, 2}])
def test_a_balancer_that_raises_while_an_endpoint_might_grow_is_told_of_and_the_call_is_served(broken):
    class Moody(Prefers):
        def choose(self, candidates, now):
            chosen = super().choose(candidates, now)
            if len(self.asked) in broken:
                raise ZeroDivisionError
            return chosen

    cluster = growing(Moody)
    cluster.balancer.asked.clear()
    slot = cluster.take()

    assert slot.endpoint is A
    assert {event.hook for event in cluster.told(events.HookFailed)} == {"choose"}
    assert not cluster.queue.busy


def test_a_closed_cluster_does_not_grow():
    cluster = growing(Prefers)
    cluster.members.is_shut = True

    assert cluster.take().endpoint is A
    assert cluster[B].pool.connecting == 0


# -- anything in any order ---------------------------------------------------------------------------------------------


kinds = st.sampled_from(["well", "well", "slow", "moody", "fails", "hangs"])


def longest_wait(kinds, weights, *, seed, keepalive, seconds=21.0):
    """Have ten calls per second for each endpoint; return how long one with an idle connection waited for a call."""
    endpoints = [Endpoint(f"e{n}", 6379, weight=weight) for n, weight in enumerate(weights)]
    servers = {e: Answers(kind, Random(f"{e} {seed}"), 13.0) for e, kind in zip(endpoints, kinds, strict=True)}
    world = World()
    client = Client(world, servers, PeakEWMA(), seed=seed, size=50, keepalive=keepalive)
    world.run(until=0.1)
    since = {member.endpoint.name: world.now for member in client.members}
    waits = []

    def arrive():
        since.update((m.endpoint.name, world.now) for m in client.members if not m.pool.idle)
        client.call()
        since[client.calls[-1].place] = world.now
        waits.append(world.now - min(since.values()))

    since[""] = inf  # where calls are that wait
    evenly(world, 10.0 * len(endpoints), seconds, arrive)
    world.run(until=seconds)
    assert all(isfinite(member.load.key) for member in client.members)
    return max(waits)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    servers=st.lists(st.tuples(kinds, st.sampled_from([0, 1, 1, 10, 60000])), min_size=2, max_size=6),
    seed=st.integers(0, 9),
    keepalive=st.sampled_from([0.0, 1.0]),
)
def test_every_endpoint_with_an_idle_connection_is_tried_within_10_seconds(servers, seed, keepalive):
    assert longest_wait(*zip(*servers, strict=True), seed=seed, keepalive=keepalive) <= 10.0


@pytest.mark.parametrize("seed", [1, 2])
def test_every_endpoint_of_a_large_cluster_with_an_idle_connection_is_tried_within_10_seconds(seed):
    rng = Random(seed)
    kinds = [rng.choice(["well", "well", "slow", "fails", "hangs"]) for _ in range(36)]

    assert longest_wait(kinds, [rng.choice([1, 1, 10, 0]) for _ in range(36)], seed=seed, keepalive=0.0) <= 10.0


@pytest.mark.parametrize(("n", "per_second"), [(2, 20.0), (3, 1000.0), (10, 2000.0), (40, 2000.0)])
def test_equal_endpoints_have_equal_shares(n, per_second):
    world = World()
    servers = {e: Steady("well", Random(f"{e}"), 0.0) for e in many(n)}
    client = Client(world, servers, PeakEWMA(), size=50)
    world.run(until=0.1)
    poisson(world, Random(n), per_second, 0.1 + 6000 / per_second, client.call)
    world.run()
    found = Counter(c.place for c in client.calls)

    assert len(found) == n
    assert max(found.values()) < 1.2 * 6000 / n
    assert min(found.values()) > 0.8 * 6000 / n


def test_a_connection_that_whom_it_was_handed_to_did_not_take_is_no_call_that_hangs():
    cluster = Cluster(A, size=1, balancer=PeakEWMA())
    waiter = cluster.ask()
    cluster.fill()
    cluster.members.reset(cluster.shell.now)
    slot = waiter.slot
    slot.pool.pass_on(slot, cluster.shell.now)
    cluster.shell.act()
    cluster.run_to(1.0)
    cluster.fill()

    assert cluster[A].in_flight == 0
    assert cluster[A].load.cost == pytest.approx(0.001)


class Strict:
    """The least expected latency, asked about the right ones."""

    def __init__(self):
        self._balancer = PeakEWMA()

    def choose(self, candidates, now):
        assert candidates
        assert all(c.pool.idle or c.pool.may_grow(now) for c in candidates)
        assert all(c.state == "active" for c in candidates)
        assert len({c.endpoint.priority for c in candidates}) == 1
        assert len(set(candidates)) == len(candidates)
        assert all(isfinite(c.load.key) for c in candidates)
        return self._balancer.choose(candidates, now)


def expected_key(member, waiting):
    """Work out again what a member's key is, but for the age of its calls and whether it is to be tried.

    Calls that have ended since the last look are not in the average yet.
    """
    load, peers, slots = member.load, member.load.peers, member.pool.slots
    in_flight = sum(slot.state in (IN_USE, CONNECTING) for slot in slots) + waiting
    latency = peers.typical if load._latency is None else load._latency
    latency *= 2.0 if load.was_given_up else 1.0
    latency = max(latency, load.quickest, 0.0 if load.charged_at is None else FAILURE_COST)
    level = max(load._level, peers.level * load.unit)
    crowd = max(1.0, (in_flight + load.unit) / (level + load.unit))
    return (latency + FLOOR) * crowd * exp(min(STEP * (load.spent - peers.start), STEEPEST))


class Weighed(Life):
    """The same life with the least expected latency."""

    most_waiting = 0  # so far, for a connection of just one pool: who gives up is not missed before the next weighing

    @staticmethod
    def balancer(machine, seed):
        return PeakEWMA() if seed % 2 else Strict()

    @invariant()
    def keys_are_what_is_the_case(self):
        now = self.shell.now
        self.most_waiting = max([self.most_waiting, *(member.pool.waiting for member in self.members)])
        for member in self.members:
            load = member.load
            assert isfinite(load.key)
            assert load.in_flight == member.pool.in_use
            is_old = any(slot.state is IN_USE and slot.since < now for slot in member.pool.slots)
            # Who was not eligible when all were compared is looked at, and weighed anew, before it can be chosen.
            is_left_out = load.look_at == -inf
            if load.key < 0.0:
                assert now >= load.tried_at + FIRST_TRIAL  # it may have become as good as most since it was due
            elif not (is_old or is_left_out) and member in self.members.eligible():
                keys = (expected_key(member, waiting) for waiting in range(self.most_waiting + 1))
                assert any(load.key == pytest.approx(key, rel=1e-9) for key in keys)

    @rule()
    def look(self):
        """A look leaves nothing to find."""
        now = self.shell.now
        self.members.survey_soon()
        self.members._look(now)
        eligible = self.members.eligible()
        mean = sum(member.full_weight for member in eligible) / len(eligible) if eligible else 1.0
        for member in eligible:
            key = member.load.key
            member.weigh(now)
            assert member.load.key == key
            assert member.load.unit == max(LEAST_UNIT, member.weight / mean)
            assert now < member.load.look_at


TestWeighed = Weighed.TestCase
TestWeighed.settings = settings(
    max_examples=90, stateful_step_count=50, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink)
)
