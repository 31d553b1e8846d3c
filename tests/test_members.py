"""The endpoints of a cluster and how they fare, in virtual time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import exp, inf
from random import Random

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from geventconnpool import events
from geventconnpool._queue import (
    CHECKING,
    CLOSING,
    CONNECTING,
    ERROR,
    IDLE,
    IN_USE,
    INTERRUPTED,
    KEPT,
    NOT_REUSABLE,
    RUNNING,
    SUSPENDED,
    USER,
    Gate,
    Waiter,
)
from geventconnpool._slots import Slots
from geventconnpool.cluster import Endpoint, LeastLoaded, OutlierDetection
from geventconnpool.cluster._members import ClusterQueue, Members
from geventconnpool.errors import PoolClosed, PoolUnavailable
from tests.virtual import Dice, Ordered, Shell, assert_conserved, states

A, B, C, D = (Endpoint(name, 6379) for name in "abcd")
REFUSED = OSError("refused")
DEFAULT = OutlierDetection()


class First:
    """Prefers who comes first, and remembers among whom it chose."""

    def __init__(self):
        self.asked = []

    def choose(self, candidates, now):
        self.asked.append([candidate.endpoint for candidate in candidates])
        return candidates[0]


class Cluster:
    """Members with pools of their own, and a shell; jitter is in the middle: 1.25 s ejected, 0.75 s between probes."""

    def __init__(
        self,
        *endpoints,
        size=10,
        gate=64,
        dice=0.5,
        rng=None,
        outlier=DEFAULT,
        balancer=None,
        fail_after=inf,
        slow_start=0.0,
        **options,
    ):
        self.queue = ClusterQueue(fail_after, keeps_some=options.get("min_size", size) > 0)
        self.shell = Shell(self.queue)
        self.gone = []
        self.asked = []
        self.balancer = balancer or First()
        self.pools = {}
        self._options = {"size": size, "queue": self.queue, "gate": Gate(gate), "max_connecting": 10, **options}
        self.members = Members(
            "cluster",
            self.queue,
            self.balancer,
            open_pool=self._open_pool,
            closed_pool=self.gone.append,
            ask=self.asked.append,
            outlier=outlier,
            drain_timeout=30.0,
            rng=rng or Dice(dice),
            slow_start=slow_start,
        )
        if endpoints:
            self.update(*endpoints)

    def _open_pool(self, endpoint):
        pool = self.pools[endpoint] = Slots(name=f"cluster/{endpoint}", rng=Dice(), endpoint=endpoint, **self._options)
        pool.slots = Ordered()
        return pool

    def __getitem__(self, endpoint):
        return self.members.get(endpoint)

    def update(self, *endpoints):
        self.members.update(endpoints, self.shell.now)
        self.shell.act()

    def fill(self):
        """Carry out what is pending, well."""
        self.shell.settle_down()
        return self

    def close_all(self):
        for slot in list(self.shell.closing):
            self.shell.close(slot)

    def run_to(self, now):
        self.shell.run_to(now)

    def take(self, avoid=()):
        return self.members.take(avoid, self.shell.now)

    def ask(self, avoid=()):
        waiter = Waiter(self.shell.now, avoid=avoid)
        self.members.ask_for(waiter, self.shell.now)
        self.shell.act()
        return waiter

    def ask_for_one_of(self, endpoint):
        waiter = Waiter(self.shell.now, only=self.pools[endpoint])
        self.pools[endpoint].ask(waiter, self.shell.now)
        self.shell.act()
        return waiter

    def borrow(self, endpoint):
        """Take from just that endpoint, as its pool does."""
        slot = self.pools[endpoint].take(self.shell.now)
        assert slot is not None
        slot.pool.observer.changed(self.shell.now)
        return slot

    def end(self, slot, verdict=None, error=None):
        self.shell.end(slot, verdict, error)

    def call(self, endpoint, verdict=None, times=1):
        """Make calls that take no time and end so."""
        for _ in range(times):
            self.end(self.borrow(endpoint), verdict, REFUSED if verdict is ERROR else None)

    def fail(self, endpoint, times=5):
        """Let calls fail, one after the other, and have the connections replaced."""
        for _ in range(times):
            if self[endpoint].state == "active":
                self.call(endpoint, ERROR)
            if self[endpoint].state == "active":
                self.fill()

    def opening(self, endpoint):
        return [slot for slot in self.shell.opening if slot.pool is self.pools[endpoint]]

    def probe(self, endpoint, *, good):
        """Let time pass to the next probe of an ejected endpoint, and have it end so."""
        self.close_all()
        self.run_to(self[endpoint].until)
        (slot,) = self.opening(endpoint)
        assert slot.probe
        if good:
            self.shell.open(slot)
        else:
            self.shell.refuse(slot, REFUSED)

    def state_of(self, *endpoints):
        return [self[endpoint].state for endpoint in endpoints]

    def told(self, kind):
        """Return the news of a kind so far."""
        self.shell.act()
        return [event for event in self.shell.news if isinstance(event, kind)]

    def eligible(self, avoid=()):
        return [member.endpoint for member in self.members.eligible(avoid)]


def filled(*endpoints, **options):
    return Cluster(*endpoints, **options).fill()


# -- discovery ---------------------------------------------------------------------------------------------------------


def test_nothing_is_known_before_the_first_answer():
    cluster = Cluster()
    waiter = cluster.ask()

    assert (cluster.members.is_empty, len(cluster.members)) == (False, 0)
    assert not waiter.is_settled


def test_an_added_endpoint_gets_a_pool_that_fills_up():
    cluster = Cluster(A, size=3)

    assert states(cluster[A].pool) == {"connecting": 3}
    assert cluster.state_of(A) == ["active"]
    assert cluster.told(events.EndpointAdded) == [events.EndpointAdded("cluster", A)]


def test_who_waits_is_served_when_an_endpoint_is_added():
    cluster = Cluster()
    waiter = cluster.ask()
    cluster.update(A)
    cluster.fill()

    assert waiter.slot is not None
    assert waiter.slot.endpoint is A


def test_an_unchanged_endpoint_is_left_alone():
    cluster = filled(A, B)
    pool = cluster[A].pool
    cluster.shell.news.clear()
    cluster.update(Endpoint("a", 6379), B)

    assert cluster[A].pool is pool
    assert cluster.shell.news == []


def test_a_changed_weight_is_an_update_in_place():
    cluster = filled(A, size=2)
    pool = cluster[A].pool
    heavier = replace(A, weight=7)
    cluster.update(heavier)

    assert (cluster[A].weight, cluster[A].endpoint.weight, cluster[A].pool) == (7.0, 7, pool)
    assert [member.endpoint.weight for member in cluster.members] == [7]
    assert pool.endpoint.weight == 7
    assert states(pool) == {"idle": 2}
    assert cluster.told(events.EndpointUpdated) == [events.EndpointUpdated("cluster", heavier, A)]


def test_weight_0_is_a_hundredth():
    cluster = Cluster(replace(A, weight=0))

    assert cluster[A].weight == 0.01


def test_an_update_keeps_the_history_of_an_endpoint():
    cluster = filled(A, B)
    cluster.call(A, ERROR, times=3)
    cluster.update(replace(A, weight=7), B)

    assert cluster[A].failures == {"connects": 0, "keepalives": 0, "calls": 3}


def test_the_first_to_be_named_stays_first_when_it_is_updated():
    cluster = filled(A, B, C)
    cluster.update(A, replace(B, weight=7), C)

    assert [member.endpoint for member in cluster.members] == [A, B, C]


def test_a_connection_under_way_to_an_address_that_left_is_retired_when_it_is_open():
    cluster = Cluster(replace(A, addresses=("10.0.0.1",)), size=1)
    cluster.update(replace(A, addresses=("10.0.0.2",)))
    cluster.shell.open(cluster.shell.opening[0], "10.0.0.1")

    assert states(cluster[A].pool) == {"closing": 1}


def test_connections_to_an_address_that_left_are_retired():
    cluster = Cluster(replace(A, addresses=("10.0.0.1", "10.0.0.2")), size=2)
    for slot, peer in zip(list(cluster.shell.opening), ["10.0.0.1", "10.0.0.2"], strict=True):
        cluster.shell.open(slot, peer)
    cluster.update(replace(A, addresses=("10.0.0.2",)))

    assert [slot.peer for slot in cluster.shell.polite] == ["10.0.0.1"]
    assert [slot.peer for slot in cluster[A].pool.idle] == ["10.0.0.2"]


def test_a_removed_endpoint_drains():
    cluster = filled(A, B, size=2)
    slot = cluster.borrow(A)
    cluster.run_to(100.0)
    cluster.update(B)

    assert cluster.state_of(A, B) == ["draining", "active"]
    assert (cluster[A].until, cluster.members.alarm) == (130.0, 130.0)
    assert states(cluster[A].pool) == {"in use": 1, "closing": 1}
    assert cluster.eligible() == [B]
    assert cluster.told(events.EndpointRemoved) == [events.EndpointRemoved("cluster", A)]
    assert slot.doomed == "drained"


def test_an_endpoint_that_drains_is_gone_with_its_last_connection():
    cluster = filled(A, B, size=2)
    slot = cluster.borrow(A)
    cluster.update(B)
    cluster.close_all()
    assert cluster[A] is not None
    cluster.end(slot)
    cluster.close_all()

    assert cluster[A] is None
    assert cluster.gone == [cluster.pools[A]]
    assert cluster.members.leaving == []
    assert cluster.told(events.EndpointDrained) == [events.EndpointDrained("cluster", A, forced=False)]


def test_an_endpoint_without_any_connection_is_gone_at_once():
    cluster = Cluster(A, B, size=1)
    cluster.shell.refuse(cluster.opening(A)[0])
    cluster.update(B)

    assert cluster[A] is None
    assert cluster.gone == [cluster.pools[A]]


def test_a_removed_endpoint_is_not_removed_again_by_the_next_answer():
    cluster = filled(A, B)
    cluster.borrow(A)
    cluster.update(B)
    cluster.run_to(10.0)
    cluster.update(B)

    assert cluster[A].until == 30.0
    assert len(cluster.told(events.EndpointRemoved)) == 1


def test_calls_that_outlive_the_drain_are_cut():
    cluster = filled(A, B, size=2)
    slot = cluster.borrow(A)
    cluster.update(B)
    cluster.close_all()
    cluster.run_to(29.9)
    before = slot.state
    cluster.run_to(30.0)

    assert (before, slot.state) == (IN_USE, CLOSING)
    assert cluster[A] is None
    assert [member.pool for member in cluster.members.leaving] == [cluster.pools[A]]
    assert (cluster.gone, cluster.told(events.EndpointDrained)) == ([], [])
    cluster.close_all()
    assert cluster.told(events.EndpointDrained) == [events.EndpointDrained("cluster", A, forced=True)]
    assert (cluster.members.leaving, cluster.gone) == ([], [cluster.pools[A]])


def test_an_endpoint_that_comes_back_while_its_old_pool_is_leaving_gets_a_new_one():
    cluster = filled(A, B, size=1)
    slot = cluster.borrow(A)
    old = cluster.pools[A]
    cluster.update(B)
    cluster.run_to(30.0)
    cluster.update(A, B)
    cluster.end(slot, ERROR, REFUSED)
    cluster.fill()

    assert cluster[A].pool is not old
    assert cluster.gone == [old]
    assert cluster[A].failures["calls"] == 0
    assert cluster.state_of(A, B) == ["active", "active"]


def test_an_endpoint_that_comes_back_while_it_drains_keeps_pool_history_and_borrowed_connections():
    cluster = filled(A, B, size=2)
    cluster.call(A, ERROR, times=2)
    cluster.fill()
    slot, pool = cluster.borrow(A), cluster[A].pool
    cluster.update(B)
    cluster.fill()
    cluster.update(A, B)
    cluster.fill()
    kept = dict(cluster[A].failures)
    cluster.end(slot, KEPT)

    assert (cluster[A].pool, cluster[A].state, cluster[A].until) == (pool, "active", inf)
    assert kept["calls"] == 2
    assert states(pool) == {"idle": 2}


def test_an_ejected_endpoint_that_comes_back_while_it_drains_is_ejected_still_and_probed_at_once():
    cluster = filled(A, B)
    cluster.borrow(A)
    cluster.fail(A)
    cluster.close_all()
    cluster.update(B)
    assert cluster.state_of(A) == ["draining"]
    cluster.run_to(20.0)
    cluster.update(A, B)
    assert cluster.state_of(A) == ["ejected"]
    cluster.run_to(20.0)

    assert len(cluster.opening(A)) == 1
    assert cluster.eligible() == [B]


def test_a_probe_under_way_is_void_when_the_endpoint_is_removed():
    cluster = filled(A, B)
    cluster.fail(A)
    cluster.close_all()
    cluster.run_to(cluster[A].until)
    (slot,) = cluster.opening(A)
    cluster.update(B)
    cluster.update(A, B)
    cluster.shell.open(slot)

    assert cluster.state_of(A) == ["ejected"]
    assert slot.state is CLOSING


def test_known_to_be_empty_refuses_everybody():
    cluster = filled(A, size=1)
    cluster.borrow(A)
    waiter, pinned = cluster.ask(), cluster.ask_for_one_of(A)
    cluster.update()

    assert isinstance(waiter.error, PoolUnavailable)
    assert isinstance(pinned.error, PoolUnavailable)
    assert cluster.members.is_empty
    cluster.update(A)
    assert cluster.members.is_empty is False


def test_who_wants_just_one_endpoint_is_refused_when_that_is_gone():
    cluster = filled(A, B, size=1)
    slot = cluster.borrow(A)
    pinned = cluster.ask_for_one_of(A)
    cluster.update(B)
    assert not pinned.is_settled
    cluster.end(slot)
    cluster.close_all()

    assert isinstance(pinned.error, PoolClosed)


# -- choosing ----------------------------------------------------------------------------------------------------------

FALLBACK = replace(C, priority=1)


def test_only_the_lowest_priority_is_eligible():
    cluster = filled(A, B, FALLBACK)

    assert cluster.eligible() == [A, B]


def test_of_each_endpoint_it_is_told_whether_it_is_among_the_eligible():
    cluster = filled(A, B, D, FALLBACK)
    cluster.fail(A)
    cluster.borrow(D)
    cluster.update(A, B, FALLBACK)
    before = cluster.state_of(A, B, D, FALLBACK)
    told = {
        avoid: [cluster.members.is_eligible(cluster[endpoint], avoid) for endpoint in (A, B, D, FALLBACK)]
        for avoid in [(), (B,), (B, FALLBACK)]
    }

    assert before == ["ejected", "active", "draining", "active"]
    assert told == {
        (): [False, True, False, False],
        (B,): [False, False, False, True],
        (B, FALLBACK): [False, True, False, False],
    }


def test_calls_spill_over_to_the_next_priority_when_all_of_the_first_are_ejected_and_come_back():
    cluster = filled(A, FALLBACK)
    cluster.fail(A)
    spilled = cluster.eligible()
    cluster.probe(A, good=True)

    assert (spilled, cluster.eligible()) == ([C], [A])


def test_calls_do_not_spill_over_because_all_connections_are_borrowed():
    cluster = filled(A, FALLBACK, size=1)
    cluster.take()
    waiter = cluster.ask()

    assert cluster.take() is None
    assert not waiter.is_settled


def test_who_waits_gets_an_idle_connection_of_the_next_priority_when_the_first_is_ejected():
    cluster = filled(A, FALLBACK, size=1)
    cluster.fail(A, times=4)
    slot = cluster.take()
    first, second = cluster.ask(), cluster.ask()
    cluster.end(slot, ERROR, REFUSED)

    assert first.slot is not None
    assert first.slot.endpoint is FALLBACK
    assert second.slot is None


def test_a_better_priority_that_is_added_is_used_and_the_worse_no_more():
    cluster = filled(FALLBACK)
    cluster.update(A, FALLBACK)
    before = cluster.take()
    cluster.fill()

    assert before is None  # calls wait for the better one to be connected
    assert cluster.take().endpoint is A


def test_a_changed_priority_changes_who_is_eligible_and_serves_who_waits():
    cluster = filled(A, FALLBACK, size=1)
    cluster.take()
    waiter = cluster.ask()
    cluster.update(A, replace(FALLBACK, priority=0))

    assert cluster.eligible() == [A, C]
    assert waiter.slot.endpoint == C


def test_the_balancer_chooses_among_those_that_are_eligible_and_have_one_idle():
    cluster = filled(A, B, C, FALLBACK, size=1)
    cluster.update(A, B, replace(D, priority=1))
    cluster.borrow(A)
    cluster.balancer.asked.clear()
    cluster.take()

    assert cluster.balancer.asked == [[B]]


def test_a_returned_connection_goes_to_the_oldest_waiter_whatever_its_endpoint():
    cluster = filled(A, B, size=1)
    slots = [cluster.take(), cluster.take()]
    first, second = cluster.ask(), cluster.ask()
    cluster.end(slots[1])
    cluster.end(slots[0])

    assert (first.slot, second.slot) == (slots[1], slots[0])


def test_an_endpoint_that_is_avoided_is_not_used_while_another_is_available():
    cluster = filled(A, B, size=1)

    assert cluster.take(avoid=[A]).endpoint is B


def test_a_call_waits_for_another_rather_than_take_an_avoided_idle_one():
    cluster = filled(A, B, size=1)
    slot = cluster.borrow(B)
    waiter = cluster.ask(avoid=[A])
    assert not waiter.is_settled
    cluster.end(cluster.borrow(A))
    assert not waiter.is_settled
    cluster.end(slot)

    assert waiter.slot is slot


def test_a_younger_waiter_takes_what_the_older_avoids():
    cluster = filled(A, B, size=1)
    slots = [cluster.borrow(A), cluster.borrow(B)]
    older, younger = cluster.ask(avoid=[A]), cluster.ask()
    cluster.end(slots[0])
    cluster.end(slots[1])

    assert (older.slot, younger.slot) == (slots[1], slots[0])


def test_avoided_endpoints_are_used_again_if_no_other_is_available():
    cluster = filled(A, B, size=1)
    cluster.fail(B)

    assert cluster.take(avoid=[A]).endpoint is A
    assert cluster.eligible(avoid=[A, B]) == [A]


def test_who_avoids_gets_the_avoided_one_when_the_other_is_ejected_meanwhile():
    cluster = filled(A, B, size=1)
    cluster.fail(B, times=4)
    slot = cluster.borrow(B)
    waiter = cluster.ask(avoid=[A])
    cluster.end(slot, ERROR, REFUSED)

    assert waiter.slot.endpoint is A


def test_who_avoids_gets_the_avoided_one_when_the_other_is_removed_meanwhile():
    cluster = filled(A, B, size=1)
    cluster.borrow(B)
    waiter = cluster.ask(avoid=[A])
    cluster.update(A)

    assert waiter.slot.endpoint is A


def test_the_next_priority_serves_a_call_that_avoids_all_of_the_first():
    cluster = filled(A, FALLBACK)

    assert cluster.eligible(avoid=[A]) == [C]
    assert cluster.eligible(avoid=[C]) == [A]
    assert cluster.eligible(avoid=[A, C]) == [A]


def test_who_wants_just_one_endpoint_gets_only_that():
    cluster = filled(A, B, size=1)
    slots = [cluster.borrow(A), cluster.borrow(B)]
    pinned = cluster.ask_for_one_of(B)
    cluster.end(slots[0])
    assert pinned.slot is None
    cluster.end(slots[1])

    assert pinned.slot is slots[1]


def test_who_wants_just_one_endpoint_stands_in_the_same_queue():
    cluster = filled(A, B, size=1)
    slots = [cluster.borrow(A), cluster.borrow(B)]
    anyone, pinned = cluster.ask(), cluster.ask_for_one_of(B)
    cluster.end(slots[1])
    assert (anyone.slot, pinned.slot) == (slots[1], None)
    cluster.end(slots[1])

    assert pinned.slot is slots[1]


def test_who_wants_just_one_endpoint_gets_it_even_if_it_is_of_a_later_priority():
    cluster = filled(A, FALLBACK, size=1)
    slot = cluster.borrow(C)
    pinned = cluster.ask_for_one_of(C)
    cluster.end(slot)

    assert pinned.slot is slot


def test_who_comes_to_wait_makes_the_next_connect_of_every_endpoint_sooner():
    cluster = Cluster(A, B, size=1, outlier=None)
    for _ in range(12):
        for slot in list(cluster.shell.opening):
            cluster.shell.refuse(slot)
        cluster.run_to(cluster.shell.now + 40.0)
    for slot in list(cluster.shell.opening):
        cluster.shell.refuse(slot)
    failed_at = cluster.shell.now
    alone = [cluster[e].pool.alarm - failed_at for e in (A, B)]
    cluster.ask()

    assert alone == [30.0, 30.0]
    assert [cluster[e].pool.alarm - failed_at for e in (A, B)] == [5.0, 5.0]


def test_who_comes_to_wait_behind_one_that_wants_just_one_endpoint_makes_all_connects_sooner():
    cluster = Cluster(A, B, size=1, outlier=None)
    for _ in range(12):
        for slot in list(cluster.shell.opening):
            cluster.shell.refuse(slot)
        cluster.run_to(cluster.shell.now + 40.0)
    for slot in list(cluster.shell.opening):
        cluster.shell.refuse(slot)
    failed_at = cluster.shell.now
    cluster.ask_for_one_of(A)
    cluster.ask()

    assert [cluster[e].pool.alarm - failed_at for e in (A, B)] == [5.0, 5.0]


@pytest.mark.parametrize("choice", [ZeroDivisionError(), None, "a stranger"])
def test_a_balancer_that_raises_or_chooses_no_candidate_is_told_of_and_the_first_candidate_serves(choice):
    class Broken:
        def choose(self, candidates, now):
            if isinstance(choice, Exception):
                raise choice
            return choice

    cluster = filled(A, size=1, balancer=Broken())
    waiter = cluster.ask()

    assert list(cluster.queue.waiting) == []
    assert waiter.slot is not None
    assert states(cluster[A].pool) == {"in use": 1}
    assert [event.hook for event in cluster.told(events.HookFailed)] == ["choose"]


def test_an_ejected_endpoint_is_probed_even_if_the_balancer_raises_meanwhile():
    class Moody(First):
        is_broken = False

        def choose(self, candidates, now):
            if self.is_broken:
                raise ZeroDivisionError
            return super().choose(candidates, now)

    cluster = filled(A, FALLBACK, size=5, balancer=Moody())
    slots = [cluster.borrow(A) for _ in range(5)]
    cluster.ask()
    cluster.balancer.is_broken = True
    for slot in slots:
        with suppress(ZeroDivisionError):
            cluster.end(slot, ERROR, REFUSED)
    cluster.shell.act()

    assert cluster.state_of(A) == ["ejected"]
    assert cluster.members.alarm == cluster[A].until
    assert_conserved(cluster[A].pool)
    assert_conserved(cluster[C].pool)


# -- growing -----------------------------------------------------------------------------------------------------------


def sizes(cluster):
    """Return the states of the pools of all endpoints, by name."""
    return {endpoint.name: states(pool) for endpoint, pool in cluster.pools.items()}


def test_an_endpoint_opens_no_more_than_it_keeps_at_least_while_nobody_waits():
    cluster = filled(A, B, size=5, min_size=1)

    assert sizes(cluster) == {"a": {"idle": 1}, "b": {"idle": 1}}


def test_for_one_who_waits_one_endpoint_opens_one_connection():
    cluster = filled(A, B, C, size=5, min_size=0)
    cluster.ask()

    assert sizes(cluster) == {"a": {"connecting": 1}, "b": {}, "c": {}}


def test_no_more_connects_are_under_way_in_a_cluster_than_greenlets_wait():
    cluster = filled(A, B, C, size=5, min_size=0)
    for _ in range(4):
        cluster.ask()
    for member in cluster.members:
        member.pool.plan(0.0)

    assert sum(member.pool.connecting for member in cluster.members) == 4


def test_the_balancer_chooses_among_those_that_are_eligible_and_may_grow():
    cluster = filled(A, B, FALLBACK, size=1, min_size=0)
    cluster.ask()
    cluster.ask()

    assert cluster.balancer.asked == [[A, B], [B]]
    assert sizes(cluster) == {"a": {"connecting": 1}, "b": {"connecting": 1}, "c": {}}


def test_while_the_endpoint_that_was_to_grow_cannot_another_does():
    cluster = filled(A, B, size=5, min_size=0)
    cluster.ask()
    cluster.shell.refuse(cluster.opening(A)[0])

    assert sizes(cluster) == {"a": {}, "b": {"connecting": 1}}


def test_what_an_ejected_endpoint_was_to_open_is_opened_by_another():
    cluster = filled(A, B, size=5, min_size=0, outlier=OutlierDetection(consecutive_failures=1))
    waiter = cluster.ask()
    cluster.shell.refuse(cluster.opening(A)[0])
    assert cluster.state_of(A, B) == ["ejected", "active"]
    cluster.shell.open(cluster.opening(B)[0])

    assert waiter.slot.endpoint is B


def test_while_all_endpoints_fail_each_is_tried_again_in_its_time():
    cluster = filled(A, B, size=5, min_size=0, outlier=None)
    cluster.ask()
    cluster.shell.refuse(cluster.opening(A)[0])
    cluster.shell.refuse(cluster.opening(B)[0])

    assert (cluster[A].pool.alarm, cluster[B].pool.alarm) == (0.1, 0.1)
    cluster.run_to(0.1)
    assert [slot.endpoint for slot in cluster.shell.opening] == [A]


def test_connects_of_endpoints_that_are_not_eligible_serve_nobody_who_waits_for_any():
    cluster = Cluster(A, FALLBACK, size=3, min_size=1)
    cluster.shell.open(cluster.opening(A)[0])
    cluster.take()
    cluster.ask()

    assert sizes(cluster) == {"a": {"in use": 1, "connecting": 1}, "c": {"connecting": 1}}


def test_for_one_who_avoids_an_endpoint_another_opens_a_connection():
    cluster = filled(A, B, size=3, min_size=0)
    waiter = cluster.ask(avoid=[A])
    assert sizes(cluster) == {"a": {}, "b": {"connecting": 1}}
    cluster.fill()

    assert waiter.slot.endpoint is B


def test_for_one_who_avoids_an_endpoint_that_is_idle_another_opens_a_connection():
    cluster = filled(A, B, size=3, min_size=0)
    cluster.ask()
    cluster.fill()
    cluster.end(cluster.shell.woken[0].slot)
    cluster.ask(avoid=[A])

    assert sizes(cluster) == {"a": {"idle": 1}, "b": {"connecting": 1}}


def test_for_one_who_avoids_all_of_a_priority_the_next_opens_a_connection():
    cluster = filled(A, FALLBACK, size=3, min_size=0)
    cluster.ask(avoid=[A])

    assert sizes(cluster) == {"a": {}, "c": {"connecting": 1}}


def test_those_who_have_less_choice_do_not_wait_for_those_who_have_more():
    cluster = filled(A, B, size=3, min_size=0)
    anyone, picky = cluster.ask(), cluster.ask(avoid=[A])
    assert sizes(cluster) == {"a": {"connecting": 1}, "b": {"connecting": 1}}
    cluster.fill()

    assert (anyone.slot.endpoint, picky.slot.endpoint) == (A, B)


def test_one_connect_is_not_taken_for_two():
    cluster = filled(A, B, size=3, min_size=0)
    cluster.ask(avoid=[A])
    cluster.ask()

    assert sum(member.pool.connecting for member in cluster.members) == 2


def test_who_gave_up_is_not_counted_any_more():
    cluster = filled(A, B, size=3, min_size=0, gate=1)
    waiter = cluster.ask()
    for avoid in ([], [A], [B]):
        cluster.queue.withdraw(cluster.ask(avoid=avoid))
    cluster.fill()

    assert waiter.slot.endpoint is A
    assert sizes(cluster) == {"a": {"in use": 1}, "b": {}}
    assert cluster.queue.avoiding == {}


def test_who_wants_just_one_endpoint_makes_that_one_grow():
    cluster = filled(A, B, size=3, min_size=0)
    pinned = cluster.ask_for_one_of(B)
    assert sizes(cluster) == {"a": {}, "b": {"connecting": 1}}
    cluster.fill()

    assert pinned.slot.endpoint is B


def test_when_the_gate_opens_others_go_on_for_those_who_still_wait():
    cluster = Cluster(A, B, size=1, min_size=0, gate=1)
    waiters = [cluster.ask() for _ in range(2)]
    cluster.fill()

    assert {waiter.slot.endpoint for waiter in waiters} == {A, B}


def test_who_waits_for_a_number_of_open_connections_makes_a_cluster_grow_to_it():
    cluster = filled(A, B, size=5, min_size=1)
    cluster.members.warming.append(5)
    cluster.members.grow(0.0)
    cluster.shell.act()
    cluster.fill()

    assert sizes(cluster) == {"a": {"idle": 4}, "b": {"idle": 1}}


def test_every_endpoint_replaces_all_its_connections_at_a_reset():
    cluster = filled(A, B, size=2)
    slot = cluster.borrow(A)
    cluster.members.reset(0.0)
    cluster.shell.act()

    assert sizes(cluster) == {"a": {"in use": 1, "closing": 1}, "b": {"closing": 2}}
    assert slot.doomed == "reset"


def test_a_probe_goes_on_at_a_reset_and_is_replaced_when_it_has_told():
    cluster = filled(A, B)
    cluster.fail(A)
    cluster.close_all()
    cluster.run_to(cluster[A].until)
    (slot,) = cluster.opening(A)
    cluster.members.reset(cluster.shell.now)
    cluster.shell.act()
    cluster.shell.open(slot)

    assert cluster.state_of(A) == ["active"]
    assert (slot.state, slot.doomed) == ("closing", "reset")


def test_every_endpoint_is_resized():
    cluster = filled(A, B, size=3)
    cluster.members.resize(2, 1, 0.0)
    cluster.shell.act()

    assert sizes(cluster) == {"a": {"idle": 2, "closing": 1}, "b": {"idle": 2, "closing": 1}}
    assert [(m.pool.size, m.pool.min_size, m.pool.lifo) for m in cluster.members] == [(2, 1, True)] * 2


def test_a_probe_that_is_passed_while_there_are_too_many_connections_is_one_too_many():
    cluster = filled(A, B, size=2)
    cluster.borrow(A)
    cluster.fail(A)
    cluster.close_all()
    cluster.run_to(cluster[A].until)
    (slot,) = cluster.opening(A)
    cluster.members.resize(1, 1, cluster.shell.now)
    cluster.shell.open(slot)

    assert cluster.state_of(A) == ["active"]
    assert sizes(cluster)["a"] == {"in use": 1, "closing": 1}
    assert cluster.shell.cancelled == []


def test_a_cluster_is_down_when_no_endpoint_has_had_a_connection_for_fail_after_seconds():
    cluster = Cluster(A, B, size=1, fail_after=10.0)
    cluster.shell.open(cluster.opening(B)[0])
    cluster.run_to(20.0)
    waiter = cluster.ask()
    before = cluster.queue.is_down
    cluster.end(waiter.slot, ERROR)
    last = cluster.ask()
    cluster.run_to(30.0)

    assert (before, cluster.queue.is_down) == (False, True)
    assert last.error is not None


def probed_in_vain(*endpoints):
    """Return a cluster that keeps no connection, and whose first endpoint has been ejected for more than 20 seconds."""
    cluster = Cluster(*endpoints, min_size=0, fail_after=10.0, outlier=OutlierDetection(consecutive_failures=1))
    waiter = cluster.ask_for_one_of(endpoints[0])
    cluster.shell.refuse(cluster.opening(endpoints[0])[0], REFUSED)
    cluster.queue.withdraw(waiter)
    while cluster.shell.now < 20.0:
        cluster.probe(endpoints[0], good=False)
    return cluster


def test_a_cluster_that_keeps_none_is_not_down_while_there_is_an_endpoint_that_has_not_failed():
    cluster = probed_in_vain(A, B)
    before = cluster.queue.is_down
    waiter = cluster.ask()
    cluster.shell.open(cluster.opening(B)[0])

    assert (before, waiter.error) == (False, None)
    assert waiter.slot.pool is cluster.pools[B]


def test_a_cluster_that_keeps_none_is_bare_since_all_that_may_serve_have_failed():
    cluster = probed_in_vain(A, B)
    waiter = cluster.ask_for_one_of(B)
    cluster.shell.refuse(cluster.opening(B)[0], REFUSED)
    failed_at = cluster.shell.now
    cluster.queue.withdraw(waiter)
    cluster.run_to(failed_at + 9.9)
    before = cluster.queue.is_down
    cluster.run_to(failed_at + 10.0)

    assert (cluster.state_of(A, B), before, cluster.queue.is_down) == (["ejected", "active"], False, True)


def test_a_cluster_without_any_endpoint_is_down_after_fail_after_seconds():
    cluster = Cluster(fail_after=10.0)
    waiter = cluster.ask()
    cluster.run_to(10.0)

    assert cluster.queue.is_down
    assert waiter.error is not None


def test_a_probe_is_a_live_connection_only_when_it_has_passed():
    cluster = filled(A, B, size=1, has_keepalive=True)
    cluster.fail(A)
    cluster.close_all()
    cluster.run_to(cluster[A].until)
    (probe,) = cluster.opening(A)
    before = cluster.queue.live
    cluster.shell.open(probe)
    probing = cluster.queue.live
    cluster.shell.answer(probe)

    assert (before, probing, cluster.queue.live) == (1, 1, 2)


def test_a_cluster_is_bare_from_when_its_last_calls_were_cut():
    cluster = filled(A, B, size=1, fail_after=10.0)
    cluster.borrow(A)
    cluster.end(cluster.borrow(B), ERROR)
    cluster.close_all()
    cluster.update(B)
    cluster.run_to(30.0)

    assert (cluster.queue.live, cluster.queue.bare_since) == (0, 30.0)


def test_what_leads_to_an_address_that_left_is_replaced_at_once_if_there_is_room():
    before, after = Endpoint("a", 6379, ("10.0.0.1",)), Endpoint("a", 6379, ("10.0.0.2",))
    cluster = Cluster(before, size=2, min_size=1)
    cluster.shell.open(cluster.opening(before)[0], "10.0.0.1")
    cluster.update(after)

    assert states(cluster[after].pool) == {"closing": 1, "connecting": 1}


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_failed_call_counts_and_is_remembered():
    cluster = filled(A, B)
    error = OSError("reset")
    cluster.end(cluster.borrow(A), ERROR, error)

    assert cluster[A].failures == {"connects": 0, "keepalives": 0, "calls": 1}
    assert cluster[A].last_error is not error  # which holds on to the caller's frames
    assert repr(cluster[A].last_error) == repr(error)


def test_a_failed_connect_counts_and_is_remembered():
    cluster = Cluster(A, B, size=1)
    cluster.shell.refuse(cluster.opening(A)[0], REFUSED)

    assert cluster[A].failures == {"connects": 1, "keepalives": 0, "calls": 0}
    assert cluster[A].last_error is REFUSED


def test_a_failed_keepalive_counts_and_is_remembered():
    cluster = filled(A, B, size=1, keepalive=10.0)
    cluster.run_to(10.0)
    cluster.shell.hang_up(next(s for s in cluster.shell.checking if s.pool is cluster.pools[A]), REFUSED)

    assert cluster[A].failures == {"connects": 0, "keepalives": 1, "calls": 0}
    assert cluster[A].last_error is REFUSED


@pytest.mark.parametrize("verdict", [KEPT, INTERRUPTED, NOT_REUSABLE, USER])
def test_an_end_that_says_nothing_about_the_endpoint_counts_for_nothing(verdict):
    cluster = filled(A, B)
    cluster.call(A, ERROR, times=3)
    cluster.call(A, verdict)

    assert cluster[A].failures["calls"] == 3


def test_a_connection_discarded_inside_a_block_that_ends_well_counts_for_nothing():
    cluster = filled(A, B)
    cluster.call(A, ERROR, times=3)
    slot = cluster.borrow(A)
    slot.doomed = USER
    cluster.end(slot)

    assert cluster[A].failures["calls"] == 3


COUNTS = {"connects": 1, "keepalives": 2, "calls": 3}


@pytest.mark.parametrize("waiting", [False, True])
def test_a_good_call_zeroes_all_counts(waiting):
    cluster = filled(A, size=1)
    slot = cluster.borrow(A)
    if waiting:
        cluster.ask()
    for kind, times in COUNTS.items():
        for _ in range(times):
            cluster.members.failed(cluster[A], kind, REFUSED, 0.0)
    assert cluster[A].failures == COUNTS
    cluster.end(slot)

    assert cluster[A].failures == {"connects": 0, "keepalives": 0, "calls": 0}


def test_a_good_keepalive_zeroes_keepalives_and_connects():
    cluster = filled(A, size=1, keepalive=10.0)
    cluster.run_to(10.0)
    cluster[A].failures.update(COUNTS)
    cluster.shell.answer(cluster.shell.checking[0])

    assert cluster[A].failures == {"connects": 0, "keepalives": 0, "calls": 3}


def test_a_good_connect_zeroes_connects():
    cluster = Cluster(A, size=1)
    cluster[A].failures.update(COUNTS)
    cluster.fill()

    assert cluster[A].failures == {"connects": 0, "keepalives": 2, "calls": 3}


def test_a_failure_asks_discovery_to_look_again():
    cluster = Cluster(A, size=1)
    cluster.run_to(7.0)
    cluster.shell.refuse(cluster.shell.opening[0])

    assert cluster.asked == [7.0]


def test_latency_is_an_average_over_ten_seconds():
    cluster = filled(A, size=1)

    def call(start, seconds):
        cluster.run_to(start)
        slot = cluster.borrow(A)
        cluster.run_to(start + seconds)
        cluster.end(slot)

    assert cluster[A].latency is None
    call(100.0, 2.0)
    assert cluster[A].latency == 2.0
    call(109.0, 3.0)
    assert cluster[A].latency == pytest.approx((2.0 * exp(-1.0) + 3.0) / (exp(-1.0) + 1.0))


def test_an_interrupted_call_counts_for_the_latency():
    cluster = filled(A, size=1)
    slot = cluster.borrow(A)
    cluster.run_to(5.0)
    cluster.end(slot, INTERRUPTED)

    assert cluster[A].latency == 5.0


# -- ejection ----------------------------------------------------------------------------------------------------------


def test_five_failed_calls_in_a_row_eject():
    cluster = filled(A, B)
    cluster.run_to(100.0)
    cluster.call(A, ERROR, times=4)
    before = cluster.state_of(A)
    cluster.call(A, ERROR)

    assert (before, cluster.state_of(A)) == (["active"], ["ejected"])
    assert (cluster[A].until, cluster.members.alarm, cluster[A].ejections) == (101.25, 101.25, 1)
    assert [(e.endpoint, e.kind, e.seconds, repr(e.error)) for e in cluster.told(events.EndpointEjected)] == [
        (A, "calls", 1.25, repr(REFUSED))
    ]
    assert cluster.eligible() == [B]


def test_five_failed_connects_in_a_row_eject():
    cluster = Cluster(A, B, size=1)
    for _ in range(5):
        assert cluster.state_of(A) == ["active"]
        cluster.shell.refuse(cluster.opening(A)[0], REFUSED)
        cluster.run_to(cluster.shell.now + 5.0 if cluster[A].state == "active" else cluster.shell.now)

    assert cluster.state_of(A) == ["ejected"]
    assert cluster.told(events.EndpointEjected) == [events.EndpointEjected("cluster", A, "connects", 1.25, REFUSED)]


def test_five_failed_keepalives_in_a_row_eject():
    cluster = filled(A, B, size=20, keepalive=10.0)
    cluster.run_to(10.0)
    for number, slot in enumerate([s for s in cluster.shell.checking if s.pool is cluster.pools[A]]):
        assert (number, cluster.state_of(A)) == (number, ["active"])
        cluster.shell.hang_up(slot, REFUSED)

    assert cluster.state_of(A) == ["ejected"]
    assert cluster.told(events.EndpointEjected) == [events.EndpointEjected("cluster", A, "keepalives", 1.25, REFUSED)]


def test_failures_of_different_kinds_do_not_add_up():
    cluster = filled(A, B)
    cluster[A].failures.update({"connects": 4, "keepalives": 4})
    cluster.call(A, ERROR, times=4)

    assert cluster.state_of(A) == ["active"]


def test_a_good_call_begins_the_count_anew():
    cluster = filled(A, B)
    for _ in range(10):
        cluster.call(A, ERROR, times=4)
        cluster.call(A)
        cluster.fill()

    assert cluster.state_of(A) == ["active"]


def test_the_count_that_ejects_can_be_chosen():
    cluster = filled(A, B, outlier=OutlierDetection(consecutive_failures=1))
    cluster.call(A, ERROR)

    assert cluster.state_of(A) == ["ejected"]


def test_without_outlier_detection_nobody_is_ejected():
    cluster = filled(A, B, outlier=None)
    cluster.fail(A, times=50)

    assert cluster.state_of(A) == ["active"]


def test_an_ejected_endpoint_closes_what_is_idle_now_and_what_is_borrowed_at_its_return():
    cluster = filled(A, B, size=7)
    good = cluster.borrow(A)
    cluster.call(A, ERROR, times=5)
    before = states(cluster[A].pool)
    cluster.end(good)

    assert (before, states(cluster[A].pool)) == ({"in use": 1, "closing": 6}, {"closing": 7})
    cluster.close_all()
    assert cluster.opening(A) == []


@pytest.mark.parametrize("verdict", [None, KEPT, ERROR])
def test_what_a_connection_opened_before_the_ejection_tells_counts_for_nothing(verdict):
    cluster = filled(A, B)
    old = cluster.borrow(A)
    cluster.fail(A)
    cluster.probe(A, good=True)
    cluster.fill()
    cluster.call(A, ERROR, times=3)
    cluster[A].good_calls = 7
    cluster.end(old, verdict, REFUSED)

    assert cluster[A].failures["calls"] == 3
    assert cluster[A].good_calls == 7
    assert old.state is CLOSING


def test_what_a_connection_opened_before_the_ejection_tells_counts_for_nothing_if_its_user_discards_it():
    cluster = filled(A, B)
    old = cluster.borrow(A)
    cluster.fail(A)
    cluster.probe(A, good=True)
    cluster.fill()
    cluster.call(A, ERROR, times=3)
    old.doomed = USER  # as discard() inside the block does
    cluster.end(old)

    assert cluster[A].failures["calls"] == 3


def test_what_a_connect_begun_before_the_ejection_tells_counts_for_nothing():
    cluster = Cluster(A, B, size=2)
    first, second = cluster.opening(A)
    cluster.shell.open(first)
    cluster[A].failures["calls"] = 4
    cluster.call(A, ERROR)
    assert cluster.state_of(A) == ["ejected"]
    cluster.shell.refuse(second)

    assert cluster[A].failures == {"connects": 0, "keepalives": 0, "calls": 0}
    assert len(cluster.asked) == 1


def test_what_a_keepalive_begun_before_the_ejection_tells_counts_for_nothing():
    cluster = filled(A, B, size=10, keepalive=10.0)
    cluster.run_to(10.0)
    slots = [s for s in cluster.shell.checking if s.pool is cluster.pools[A]]
    cluster.call(A, ERROR, times=5)
    cluster.shell.hang_up(slots[0])
    cluster.shell.answer(slots[1])

    assert cluster[A].failures == {"connects": 0, "keepalives": 0, "calls": 0}
    assert cluster.state_of(A) == ["ejected"]


# (endpoints, how many of them may be ejected)
LIMITS = [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4), (8, 4), (9, 5), (10, 5)]


@pytest.mark.parametrize(("n", "limit"), LIMITS)
def test_no_more_than_half_and_never_the_last_is_ejected(n, limit):
    endpoints = [Endpoint(f"e{number}", 1) for number in range(n)]
    cluster = filled(*endpoints)
    for endpoint in endpoints:
        cluster.call(endpoint, ERROR, times=9 if cluster[endpoint].state == "active" and n == limit else 5)

    assert cluster.state_of(*endpoints) == ["ejected"] * limit + ["active"] * (n - limit)


def test_the_limit_is_that_of_one_priority():
    others = [Endpoint(f"e{number}", 1, priority=1) for number in range(2)]
    cluster = filled(A, B, *others)
    for endpoint in others:
        cluster.call(endpoint, ERROR, times=5)

    assert cluster.state_of(*others) == ["ejected", "active"]


def test_all_of_a_priority_may_be_ejected_while_a_later_one_has_an_available_endpoint():
    cluster = filled(A, B, FALLBACK)
    for endpoint in (A, B, C):
        cluster.call(endpoint, ERROR, times=5)

    assert cluster.state_of(A, B, C) == ["ejected", "ejected", "active"]
    assert cluster.eligible() == [C]


def test_the_last_of_the_first_priority_is_kept_if_the_later_ones_are_ejected():
    cluster = filled(A, FALLBACK, replace(D, priority=1))
    cluster.call(C, ERROR, times=5)
    cluster.call(D, ERROR, times=5)
    cluster.update(A, FALLBACK)  # leaves a later priority without an available endpoint
    cluster.call(A, ERROR, times=5)

    assert cluster.state_of(A, C) == ["active", "ejected"]


def test_endpoints_that_drain_do_not_count_for_the_limit():
    cluster = filled(A, B, C)
    cluster.borrow(C)
    cluster.update(A, B)
    cluster.call(A, ERROR, times=5)
    cluster.call(B, ERROR, times=5)

    assert cluster.state_of(A, B, C) == ["ejected", "active", "draining"]


def test_the_limit_gates_new_ejections_only():
    cluster = filled(A, B, C)
    cluster.fail(A)
    cluster.fail(B)
    cluster.update(A, B)

    assert cluster.state_of(A, B) == ["ejected", "ejected"]


def kept_by_the_limit():
    """A cluster where B was not ejected because A was, which is back."""
    cluster = filled(A, B)
    cluster.fail(A)
    cluster.call(B, ERROR, times=7)
    cluster.probe(A, good=True)
    cluster.fill()
    return cluster


def test_an_endpoint_kept_by_the_limit_is_ejected_by_its_next_failure_when_there_is_room():
    cluster = kept_by_the_limit()
    assert cluster.state_of(A, B) == ["active", "active"]
    cluster.call(B, ERROR)

    assert cluster.state_of(A, B) == ["active", "ejected"]


# -- return ------------------------------------------------------------------------------------------------------------


def test_an_ejected_endpoint_is_probed_when_its_time_is_over():
    cluster = filled(A, B)
    cluster.run_to(100.0)
    cluster.fail(A)
    cluster.close_all()
    cluster.run_to(101.24)
    before = cluster.opening(A)
    cluster.run_to(101.25)

    assert before == []
    assert [slot.probe for slot in cluster.opening(A)] == [True]
    assert cluster.eligible() == [B]


def test_an_endpoint_that_passes_its_probe_is_readmitted_and_refilled():
    cluster = filled(A, B, size=3)
    cluster.fail(A)
    cluster.probe(A, good=True)

    assert (cluster[A].state, cluster[A].until) == ("active", inf)
    assert states(cluster[A].pool) == {"idle": 1, "connecting": 2}
    assert cluster.told(events.EndpointReadmitted) == [events.EndpointReadmitted("cluster", A)]
    assert cluster.eligible() == [A, B]


def test_who_waits_is_served_by_the_connection_of_the_probe():
    cluster = filled(A, B, size=1)
    cluster.fail(A)
    cluster.borrow(B)
    waiter = cluster.ask()
    cluster.probe(A, good=True)

    assert waiter.slot.endpoint is A


def test_an_endpoint_is_readmitted_after_a_keepalive_if_it_has_one():
    cluster = filled(A, B, has_keepalive=True)
    cluster.fail(A)
    cluster.probe(A, good=True)
    before = cluster.state_of(A)
    cluster.shell.answer(cluster.shell.checking[0])

    assert (before, cluster.state_of(A)) == (["ejected"], ["active"])


def test_a_probe_whose_keepalive_fails_has_failed():
    cluster = filled(A, B, has_keepalive=True)
    cluster.fail(A)
    cluster.probe(A, good=True)
    cluster.shell.hang_up(cluster.shell.checking[0])

    assert cluster.state_of(A) == ["ejected"]
    assert cluster[A].until == cluster.shell.now + 0.75
    assert cluster[A].failures == {"connects": 0, "keepalives": 0, "calls": 0}


OLD, NEW = replace(A, addresses=("10.0.0.1",)), replace(A, addresses=("10.0.0.2",))


def test_a_probe_that_leads_to_an_address_which_left_meanwhile_is_not_the_last():
    cluster = filled(OLD, B)
    cluster.fail(A)
    cluster.close_all()
    cluster.run_to(cluster[A].until)
    (slot,) = cluster.opening(A)
    cluster.update(NEW, B)
    cluster.shell.open(slot, "10.0.0.1")
    for _ in range(3):
        cluster.fill()
        cluster.run_to(cluster.shell.now + 10.0)

    assert cluster.state_of(A) == ["active"]


@pytest.mark.parametrize("is_good", [True, False])
def test_a_probe_under_keepalive_whose_address_left_meanwhile_is_not_the_last(is_good):
    cluster = filled(OLD, B, has_keepalive=True)
    cluster.fail(A)
    cluster.close_all()
    cluster.run_to(cluster[A].until)
    (slot,) = cluster.opening(A)
    cluster.shell.open(slot, "10.0.0.1")
    cluster.update(NEW, B)
    if is_good:
        cluster.shell.answer(slot)
    else:
        cluster.shell.hang_up(slot)
    for _ in range(3):
        cluster.fill()
        cluster.run_to(cluster.shell.now + 10.0)

    assert cluster.state_of(A) == ["active"]


@pytest.mark.parametrize("is_good", [True, False])
def test_a_probe_from_before_a_drain_says_nothing_when_another_has_readmitted_the_endpoint(is_good):
    cluster = filled(A, B, size=2, has_keepalive=True)
    cluster.fail(A)
    cluster.probe(A, good=True)
    (old,) = cluster.shell.checking
    cluster.update(B)
    cluster.update(A, B)
    cluster.run_to(cluster.shell.now)
    cluster.shell.open(*cluster.opening(A))
    cluster.shell.answer(cluster.shell.checking[-1])
    before = cluster[A].state, cluster[A].last_error
    if is_good:
        cluster.shell.answer(old)
    else:
        cluster.shell.hang_up(old, OSError("too late"))

    assert before == ("active", cluster[A].last_error)
    assert (cluster[A].state, cluster[A].until, cluster[A].failures["keepalives"]) == ("active", inf, 0)
    assert len(cluster.told(events.EndpointReadmitted)) == 1
    assert cluster.told(events.ProbeFailed) == []
    assert states(cluster[A].pool) == ({"idle": 2} if is_good else {"idle": 1, "closing": 1})


def test_a_failed_probe_is_repeated_after_at_most_1_2_4_5_5_seconds():
    cluster = filled(A, B, dice=1.0)
    cluster.fail(A)
    waits = []
    for _ in range(6):
        cluster.probe(A, good=False)
        waits.append(cluster[A].until - cluster.shell.now)

    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert [event.seconds for event in cluster.told(events.ProbeFailed)] == waits
    assert cluster[A].ejections == 1


@pytest.mark.parametrize(("dice", "seconds"), [(0.0, 0.5), (1.0, 1.0)])
def test_the_time_to_the_next_probe_is_jittered(dice, seconds):
    cluster = filled(A, B, dice=dice)
    cluster.fail(A)
    cluster.probe(A, good=False)

    assert cluster[A].until - cluster.shell.now == pytest.approx(seconds)


def test_the_delays_of_probes_begin_anew_with_the_next_ejection():
    cluster = filled(A, B)
    cluster.fail(A)
    for good in (False, False, False, True):
        cluster.probe(A, good=good)
    cluster.fill()
    cluster.fail(A)
    cluster.probe(A, good=False)

    assert cluster[A].until - cluster.shell.now == 0.75


def test_if_none_is_available_all_ejected_ones_are_probed_at_once():
    cluster = filled(A, B, C)
    cluster.fail(A)
    cluster.fail(B)
    cluster.close_all()
    cluster.update(A, B)
    cluster.run_to(cluster.shell.now)

    assert [len(cluster.opening(endpoint)) for endpoint in (A, B)] == [1, 1]


def test_a_probe_under_way_is_not_doubled_if_none_is_available():
    cluster = filled(A, B)
    cluster.fail(A)
    cluster.close_all()
    cluster.run_to(cluster[A].until)
    cluster.update(A)
    cluster.run_to(cluster.shell.now)

    assert len(cluster.opening(A)) == 1


def test_who_waits_while_none_is_available_is_served_by_the_first_to_come_back():
    cluster = filled(A, B)
    cluster.fail(A)
    cluster.close_all()
    cluster.update(A)
    waiter = cluster.ask()
    assert not waiter.is_settled
    cluster.probe(A, good=True)

    assert waiter.slot is not None


def eject_and_readmit(cluster, endpoint=A):
    """Return for how long it was ejected (jitter in the middle: a quarter is added)."""
    cluster.fail(endpoint)
    seconds = (cluster[endpoint].until - cluster.shell.now) / 1.25
    cluster.probe(endpoint, good=True)
    cluster.fill()
    return seconds


def test_every_relapse_on_calls_doubles_the_ejection_time():
    cluster = filled(A, B)

    assert [eject_and_readmit(cluster) for _ in range(8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_twenty_good_calls_in_a_row_end_the_trial():
    cluster = filled(A, B)
    eject_and_readmit(cluster)
    cluster.call(A, times=20)

    assert eject_and_readmit(cluster) == 1.0


def test_nineteen_good_calls_do_not():
    cluster = filled(A, B)
    eject_and_readmit(cluster)
    cluster.call(A, times=19)

    assert eject_and_readmit(cluster) == 2.0


def test_good_calls_that_are_not_in_a_row_do_not_either():
    cluster = filled(A, B)
    eject_and_readmit(cluster)
    for _ in range(10):
        cluster.call(A, times=19)
        cluster.call(A, ERROR)
        cluster.fill()

    assert eject_and_readmit(cluster) == 2.0


def test_the_ejection_time_falls_back_with_health():
    cluster = filled(A, B)
    for _ in range(4):
        eject_and_readmit(cluster)
    cluster.call(A, times=60)
    cluster[A].settle()

    assert cluster[A].relapses == 0
    assert eject_and_readmit(cluster) == 1.0


def test_every_twenty_good_calls_take_one_doubling_back():
    cluster = filled(A, B)
    for _ in range(4):
        eject_and_readmit(cluster)
    cluster.call(A, times=20)

    assert eject_and_readmit(cluster) == 4.0


def test_good_calls_before_the_ejection_do_not_count_for_the_trial():
    cluster = filled(A, B)
    eject_and_readmit(cluster)
    cluster.call(A, times=19)
    cluster[A].failures["connects"] = 4
    cluster.end(cluster.borrow(A), INTERRUPTED)
    cluster.close_all()
    cluster.shell.refuse(cluster.opening(A)[0])
    cluster.probe(A, good=True)
    cluster.fill()
    cluster.call(A, times=1)

    assert eject_and_readmit(cluster) == 2.0


def test_a_relapse_on_connects_does_not_double_the_ejection_time():
    cluster = filled(A, B)
    eject_and_readmit(cluster)
    cluster[A].failures["connects"] = 4
    cluster.end(cluster.borrow(A), INTERRUPTED)
    cluster.close_all()
    cluster.shell.refuse(cluster.opening(A)[0])

    assert cluster.state_of(A) == ["ejected"]
    assert (cluster[A].until - cluster.shell.now) / 1.25 == 1.0


def test_many_relapses_are_forgotten_as_fast_as_those_that_still_made_a_difference():
    cluster = filled(A, B)
    for _ in range(30):
        eject_and_readmit(cluster)
    cluster.call(A, times=20 * 7)

    assert eject_and_readmit(cluster) == 1.0


# -- the end -----------------------------------------------------------------------------------------------------------


def closed():
    return PoolClosed("cluster is closed")


def test_closing_refuses_everybody_and_closes_every_pool():
    cluster = filled(A, B, size=1)
    slots = [cluster.take(), cluster.take()]
    waiters = [cluster.ask(), cluster.ask_for_one_of(A)]
    cluster.members.shut(closed)
    cluster.shell.act()
    for slot in slots:
        cluster.end(slot)
    cluster.fill()

    assert [type(waiter.error) for waiter in waiters] == [PoolClosed, PoolClosed]
    assert [states(pool) for pool in cluster.pools.values()] == [{}, {}]


def test_nothing_is_ejected_or_probed_after_the_end():
    cluster = filled(A, B, C)
    cluster.fail(C)
    slots = [cluster.borrow(A) for _ in range(6)]
    cluster.members.shut(closed)
    cluster.shell.act()
    for slot in slots[:5]:
        cluster.end(slot, ERROR, REFUSED)
    cluster.end(slots[5])
    polite = cluster.shell.polite[-1:]
    cluster.fill()
    cluster.run_to(100.0)

    assert [event.endpoint for event in cluster.told(events.EndpointEjected)] == [C]
    assert polite == slots[5:]
    assert cluster.shell.opening == []


# -- everything in any order -------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d", "e"]
ENDPOINTS = [Endpoint(name, 6379) for name in NAMES]
endpoints = st.builds(
    Endpoint,
    st.sampled_from(NAMES),
    st.just(6379),
    priority=st.integers(0, 1),
    weight=st.sampled_from([0, 1, 3]),
    addresses=st.sampled_from([("10.0.0.1",), ("10.0.0.1", "10.0.0.2"), ("10.0.0.2",)]),
)
answers = st.lists(endpoints, unique_by=lambda endpoint: endpoint.name, max_size=5)
avoided = st.sets(st.sampled_from(ENDPOINTS), max_size=5)


def fields_of(endpoint):
    return tuple(getattr(endpoint, name) for name in Endpoint.__slots__)


class Watchful:
    """Any balancer will do, if it is asked about the right ones."""

    def __init__(self, machine, seed):
        self._machine = machine
        self._balancer = LeastLoaded(Random(seed))

    def choose(self, candidates, now):
        assert candidates
        assert all(candidate.pool.idle or candidate.pool.may_grow(now) for candidate in candidates)
        assert all(candidate.state == "active" for candidate in candidates)
        assert len({candidate.endpoint.priority for candidate in candidates}) == 1
        return self._balancer.choose(candidates, now)


class Life(RuleBasedStateMachine):
    """A cluster through everything that can happen to it, in any order."""

    balancer = Watchful

    @initialize(
        size=st.integers(1, 3),
        least=st.integers(0, 3),
        keepalive=st.sampled_from([0.0, 3.0]),
        max_idle=st.sampled_from([inf, 5.0]),
        max_lifetime=st.sampled_from([inf, 20.0]),
        fail_after=st.sampled_from([inf, 6.0]),
        gate=st.integers(1, 6),
        failures=st.integers(1, 2),
        seed=st.integers(0, 3),
        slow_start=st.sampled_from([0.0, 3.0]),
        answer=answers,
    )
    def begin(
        self, size, least, keepalive, max_idle, max_lifetime, fail_after, gate, failures, seed, slow_start, answer
    ):
        self.cluster = Cluster(
            size=size,
            min_size=min(size, least),
            max_idle=max_idle,
            max_lifetime=max_lifetime,
            fail_after=fail_after,
            gate=gate,
            keepalive=keepalive,
            has_keepalive=bool(keepalive),
            outlier=OutlierDetection(consecutive_failures=failures),
            balancer=self.balancer(self, seed),
            slow_start=slow_start,
        )
        self.members = self.cluster.members
        self.members._rng = Random(seed)
        self.shell = self.cluster.shell
        self.queue = self.cluster.queue
        self.wanted = []
        self.told = [[]]  # what was heard last, and what is being changed into since
        self.changing = None
        self.waiting = []
        self.held = []
        self.handed = {}  # when a waiter got it
        self.served = 0
        self.all_pools = []
        self.gate = gate
        self.allowed = {}  # how many slots a pool may have, if there were more when it was made smaller
        self.old = set()  # slots from before a reset
        self.was_available = False
        open_pool = self.members._open_pool

        def remember(endpoint):
            pool = open_pool(endpoint)
            self.all_pools.append(pool)
            return pool

        self.members._open_pool = remember
        self.hear(answer)
        self.all_goes_well()

    def eligible(self, avoid):
        """Work out again who may serve a call."""
        active = [member for member in self.members if member.state == "active"]
        chosen = [member for member in active if member.endpoint not in avoid] or active
        lowest = min((member.endpoint.priority for member in chosen), default=0)
        return [member.pool for member in chosen if member.endpoint.priority == lowest]

    def may_use(self, waiter):
        return [waiter.only] if waiter.only is not None else self.eligible(waiter.avoid)

    def act(self):
        self.shell.act()
        for waiter in self.shell.woken[self.served :]:
            older = self.waiting[: self.waiting.index(waiter)]
            self.waiting.remove(waiter)
            if waiter.slot is not None:
                pool = waiter.slot.pool
                assert waiter.slot not in self.old, "from before a reset"
                assert waiter.only in (None, pool)
                assert not [w for w in older if pool in self.may_use(w)], "first come, first served"
                assert waiter.slot not in self.held, "lent twice"
                self.held.append(waiter.slot)
                self.handed[waiter.slot] = self.shell.now
        self.served = len(self.shell.woken)
        for pool in self.all_pools:
            self.allowed[pool] = max(pool.size, min(self.allowed.get(pool, 0), len(pool.slots)))

    def pick(self, items, number):
        return items[number % len(items)]

    def hear(self, answer):
        self.start_to_hear(answer)
        self.members.update(answer, self.shell.now)
        self.has_heard()
        self.act()

    def start_to_hear(self, answer):
        self.wanted = answer
        self.told.append(answer)
        self.changing = self.members.changes(answer)

    def has_heard(self):
        self.told = [self.wanted]
        self.changing = None
        self.was_available = False  # an answer may take the last one away

    @rule(answer=answers, count=st.integers(1, 4))
    def learn_in_slices(self, answer, count):
        """Begin to change; what was under way already has been killed."""
        self.start_to_hear(answer)
        self.go_on(count)

    @rule(count=st.integers(1, 4))
    @precondition(lambda self: self.changing is not None)
    def go_on(self, count):
        left = iter(range(count - 1, -1, -1))
        was_empty = self.members.is_empty
        if self.members.change(self.changing, self.shell.now, lambda: not next(left)):
            self.has_heard()
        else:
            assert was_empty or not self.members.is_empty
        self.was_available = False
        self.act()

    @rule(answer=answers)
    def learn(self, answer):
        self.hear(answer)

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.wanted)
    def lose_one(self, number):
        gone = self.pick(self.wanted, number)
        self.hear([endpoint for endpoint in self.wanted if endpoint != gone])

    @rule(endpoint=endpoints)
    def learn_of_one(self, endpoint):
        self.hear([known for known in self.wanted if known != endpoint] + [endpoint])

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: len(self.members) > 0)
    def fail_a_call(self, number):
        member = self.pick(list(self.members), number)
        slot = member.pool.take(self.shell.now)
        if slot is not None:
            self.shell.end(slot, ERROR, REFUSED)
            self.act()

    @rule(avoid=avoided)
    def borrow(self, avoid):
        slot = self.members.take(avoid, self.shell.now)
        self.act()
        if slot is None:
            assert not any(pool.idle for pool in self.eligible(avoid))
            return
        assert slot.pool in self.eligible(avoid)
        assert slot not in self.held, "lent twice"
        assert slot not in self.old, "from before a reset"
        assert not [w for w in self.waiting if slot.pool in self.may_use(w)], "barged in"
        self.held.append(slot)

    @rule(avoid=avoided)
    @precondition(lambda self: not self.members.is_empty and not self.queue.is_down)
    def ask(self, avoid):
        waiter = Waiter(self.shell.now, avoid=frozenset(avoid))
        self.waiting.append(waiter)
        self.members.ask_for(waiter, self.shell.now)
        self.act()
        self.handed.pop(waiter.slot, None)  # got it at once, so there was no wait to be interrupted

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: len(self.members) > 0 and not self.queue.is_down)
    def ask_for_one(self, number):
        pool = self.pick(list(self.members), number).pool
        waiter = Waiter(self.shell.now, only=pool)
        self.waiting.append(waiter)
        pool.ask(waiter, self.shell.now)
        self.act()
        self.handed.pop(waiter.slot, None)  # got it at once, so there was no wait to be interrupted

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.waiting)
    def give_up(self, number):
        waiter = self.pick(self.waiting, number)
        self.waiting.remove(waiter)
        waiter.is_late = True
        self.queue.withdraw(waiter)

    @rule(
        number=st.integers(0, 99),
        verdict=st.sampled_from([None, None, KEPT, ERROR, ERROR, ERROR, INTERRUPTED, USER]),
        by_the_collector=st.booleans(),
    )
    @precondition(lambda self: self.held)
    def give_back(self, number, verdict, by_the_collector):
        slot = self.pick(self.held, number)
        self.held.remove(slot)
        if by_the_collector:
            self.shell.orders.due.append(partial(self.shell.end, slot, verdict))
            self.members.update(self.wanted, self.shell.now)
            self.has_heard()
            if self.shell.orders.due:
                self.shell.orders.due.clear()
                self.shell.end(slot, verdict)
        else:
            self.shell.end(slot, verdict, REFUSED)
        self.act()

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.fresh())
    def pass_on(self, number):
        slot = self.pick(self.fresh(), number)
        self.held.remove(slot)
        slot.pool.pass_on(slot, self.shell.now)
        self.act()

    def fresh(self):
        """Return what was handed to waiters who have not run yet, and may be interrupted still."""
        return [slot for slot in self.held if self.handed.get(slot) == self.shell.now]

    @rule(number=st.integers(0, 99), good=st.booleans())
    @precondition(lambda self: self.shell.opening)
    def connect(self, number, good):
        slot = self.pick(self.shell.opening, number)
        if good:
            self.shell.open(slot, self.pick(slot.endpoint.addresses, number))
        else:
            self.shell.refuse(slot)
        self.act()

    @rule(number=st.integers(0, 99), good=st.booleans())
    @precondition(lambda self: self.shell.checking)
    def keep_alive(self, number, good):
        slot = self.pick(self.shell.checking, number)
        if good:
            self.shell.answer(slot)
        else:
            self.shell.hang_up(slot)
        self.act()

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.shell.closing)
    def close(self, number):
        self.shell.close(self.pick(self.shell.closing, number))
        self.act()

    @rule(number=st.integers(0, 99), good=st.booleans())
    @precondition(lambda self: any(member.state == "ejected" for member in self.members))
    def probe(self, number, good):
        member = self.pick([member for member in self.members if member.state == "ejected"], number)
        if member.until < inf:
            self.shell.run_to(member.until)
            self.act()
        for slot in [slot for slot in self.shell.opening if slot.pool is member.pool and slot.probe]:
            if good:
                self.shell.open(slot)
            else:
                self.shell.refuse(slot)
            self.act()

    @rule()
    def reset(self):
        self.members.reset(self.shell.now)
        for member in self.members:
            self.old.update(slot for slot in member.pool.slots if not slot.probe)
        self.act()
        self.old -= {slot for slot in self.shell.opening if slot.doomed is None}

    @rule(size=st.integers(1, 3), least=st.integers(0, 3))
    def resize(self, size, least):
        self.cluster._options.update(size=size, min_size=min(size, least))
        for pool in self.all_pools:
            self.allowed[pool] = max(self.allowed[pool], len(pool.slots))
        self.members.resize(size, min(size, least), self.shell.now)
        self.act()

    @rule(count=st.integers(1, 6))
    @precondition(lambda self: not self.members.warming)
    def warm(self, count):
        self.members.warming.append(count)
        self.members.grow(self.shell.now)
        self.act()

    @rule()
    @precondition(lambda self: self.members.warming)
    def cool(self):
        self.members.warming.clear()

    @rule()
    def all_goes_well(self):
        self.shell.settle_down()
        self.act()

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 3.0, 7.0, 40.0]))
    def pass_time(self, seconds):
        self.shell.run_to(self.shell.now + seconds)
        self.act()

    @rule()
    def tick_without_need(self):
        self.members.tick(self.shell.now)
        self.act()

    @invariant()
    def the_balancer_has_nothing_to_complain_of(self):
        assert not [event.error for event in self.shell.news if isinstance(event, events.HookFailed)]

    @invariant()
    def every_slot_is_in_one_state(self):
        for pool in self.all_pools:
            assert_conserved(pool, at_most=self.allowed[pool])
        slots = [slot for pool in self.all_pools for slot in pool.slots]
        of_use = [slot for slot in slots if slot.state in (IDLE, IN_USE, CHECKING) and not slot.probe]
        assert self.queue.live == len(of_use)
        for state, jobs in [
            (CONNECTING, self.shell.opening),
            (CHECKING, self.shell.checking),
            (CLOSING, self.shell.closing),
        ]:
            assert {slot for slot in slots if slot.state == state} == set(jobs)
        assert {slot for slot in slots if slot.state == IN_USE} <= set(self.held)
        assert self.queue.open == {id(slot.connection): slot for slot in slots if slot.state is not CONNECTING}

    @invariant()
    def nobody_waits_beside_an_idle_connection_that_he_may_use(self):
        assert list(self.queue.waiting) == self.waiting
        for waiter in self.waiting:
            assert not [pool for pool in self.may_use(waiter) if pool.idle]

    @invariant()
    def members_are_what_was_last_heard_and_what_drains(self):
        by_state = {state: [m for m in self.members if m.state == state] for state in ("active", "ejected", "draining")}
        named = {fields_of(m.endpoint) for m in by_state["active"] + by_state["ejected"]}
        if self.changing is None:
            assert named == set(map(fields_of, self.wanted))
        else:  # what all answers name alike is there, and nothing that none of them named
            answers = [set(map(fields_of, answer)) for answer in self.told]
            assert set.intersection(*answers) <= named <= set.union(*answers)
        assert self.members.is_empty == (not named) or self.changing is not None
        assert sum(map(len, by_state.values())) == len(self.members)
        assert all(m.pool.mode is RUNNING for m in by_state["active"])
        assert all(m.pool.mode is SUSPENDED for m in by_state["ejected"] + by_state["draining"])
        assert all(m.pool.slots for m in by_state["draining"]), "else it would be gone"
        assert all(member.pool.slots for member in self.members.leaving)
        assert all(m.pool.observer is m and self.members.get(m.endpoint) is m for m in self.members)
        here = [m.pool for m in (*self.members, *self.members.leaving)]
        gone = [pool for pool in self.all_pools if pool not in here]
        assert set(gone) == set(self.cluster.gone)
        assert len(gone) == len(self.cluster.gone)

    @invariant()
    def failures_alone_never_take_the_last_one_away(self):
        available = any(member.state == "active" for member in self.members)
        assert available or not self.was_available
        self.was_available = available

    @invariant()
    def every_ejected_endpoint_is_being_probed_or_has_an_alarm(self):
        for member in self.members:
            if member.state == "active":
                assert member.until == inf
            elif member.state == "ejected" and member.is_probing:
                under_way = [s for s in self.shell.opening + self.shell.checking if s.pool is member.pool and s.probe]
                assert under_way or len(member.pool.slots) >= member.pool.size or self.shell.opening
            else:
                assert self.members.alarm <= member.until
                assert (self.members.alarm, self.members) in self.shell.alarms

    @invariant()
    def what_becomes_due_has_an_alarm(self):
        now = self.shell.now
        for member in self.members:
            pool = member.pool
            if member.state != "active":
                continue
            if pool.failures and pool._wants_one and not pool.connecting and not self.shell.opening:
                assert pool.alarm <= max(now, pool.retry_at)
            if pool.keepalive and not pool.checking:
                assert all(pool.alarm <= slot.alive_at + pool.keepalive for slot in pool.idle)

    @invariant()
    def free_capacity_is_used(self):
        for member in self.members:
            pool = member.pool
            if member.state != "active" or pool.failures or len(pool.slots) >= pool.size:
                continue
            if pool.open + pool.connecting < pool.min_size:
                assert len(self.shell.opening) == self.gate, "something fills the gate, or this would be connecting"

    @invariant()
    def nobody_waits_in_vain(self):
        for waiter in self.waiting:
            pools = self.may_use(waiter)
            if len(self.shell.opening) == self.gate or any(pool.connecting for pool in pools):
                continue
            pools = [pool for pool in pools if pool.mode is RUNNING and len(pool.slots) < pool.size]
            assert all(pool.failures for pool in pools)
            assert all(pool.alarm <= pool.retry_at for pool in pools)

    @invariant()
    def it_is_known_since_when_there_is_none(self):
        queue = self.queue
        if queue.live:
            assert (queue.bare_since, queue.is_down) == (inf, False)
        elif queue.waiting or queue.keeps_some:
            assert queue.bare_since <= self.shell.now
            assert queue.is_down or queue.fail_after == inf or queue.alarm <= queue.bare_since + queue.fail_after
        elif not all(pool.failures for pool in self.eligible(())):
            assert queue.is_down or queue.bare_since == inf
        assert not (queue.is_down and self.waiting)

    @invariant()
    def connections_lead_where_they_should(self):
        for member in self.members:
            if member.state == "active":
                assert all(s.peer in {None, *member.endpoint.addresses} for s in member.pool.idle)

    def teardown(self):
        if not hasattr(self, "members"):
            return
        while self.changing is not None:
            self.go_on(1)
        for _ in range(20):
            while self.held:
                self.shell.end(self.held.pop())
                self.act()
            self.shell.settle_down()
            self.act()
            self.shell.run_to(self.shell.now + 10.0)
            self.act()

        assert {m.endpoint for m in self.members} == set(self.wanted)
        assert all(member.state == "active" for member in self.members), "every ejection ends in a probe"
        assert self.members.leaving == []
        assert not self.waiting or not self.wanted
        self.members.shut(closed)
        self.act()
        self.shell.settle_down()
        assert self.queue.open == {}
        assert all(not pool.slots for pool in self.all_pools)
        assert sum(pool.opened_total for pool in self.all_pools) == self.shell.opened_total
        assert sum(pool.closed_total for pool in self.all_pools) == self.shell.opened_total


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=140, stateful_step_count=50, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink)
)


# -- what would have crept up on its users -----------------------------------------------------------------------------


def test_a_long_outage_with_retries_does_not_fill_the_memory():
    cluster = filled(A, B, C)
    for n in range(1000):
        cluster.members.eligible({Endpoint(f"{n}", 1)})

    assert len(cluster.members._eligible_but) <= 100


def test_a_connection_to_an_address_that_left_does_not_come_back_with_its_endpoint():
    before, after = Endpoint("a", 6379, ("10.0.0.1",)), Endpoint("a", 6379, ("10.0.0.2",))
    cluster = filled(before, B, size=1)
    slot = cluster.borrow(before)
    slot.peer = "10.0.0.1"
    cluster.update(B)
    cluster.update(after, B)
    cluster.end(slot)

    assert cluster.state_of(after) == ["active"]
    assert slot.state is CLOSING
