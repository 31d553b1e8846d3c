"""Why an endpoint would, or would not, be chosen now, in words and numbers."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from gevent import get_hub

from geventconnpool import ClusterPool
from geventconnpool._queue import ERROR, INTERRUPTED
from geventconnpool.cluster import Endpoint, LeastLoaded, OutlierDetection, PeakEWMA, RoundRobin
from geventconnpool.cluster._explain import explain
from tests.test_balancing import call, took
from tests.test_members import REFUSED, A, B, C, Cluster


def filled(*endpoints, balancer=PeakEWMA, **options):
    return Cluster(*endpoints, balancer=balancer(), **options).fill()


def explained(cluster):
    """Return the explanations by endpoint, in their order."""
    return {each.endpoint: each for each in explain(cluster.members, cluster.shell.now)}


def verdicts(cluster):
    return {endpoint.name: each.verdict for endpoint, each in explained(cluster).items()}


def why(cluster, endpoint):
    return explained(cluster)[endpoint].why


def test_who_is_expected_to_take_the_least_time_is_next_and_the_others_follow_in_order():
    cluster = filled(A, B, C)
    for endpoint, seconds in ((A, 0.02), (B, 0.04), (C, 0.01)):
        took(cluster, endpoint, seconds, times=5)

    assert list(verdicts(cluster).items()) == [("c", "next"), ("a", "eligible"), ("b", "eligible")]
    assert [round(each.cost, 4) for each in explained(cluster).values()] == [0.011, 0.021, 0.041]
    assert str(explained(cluster)[C]) == "c:6379: next: a call counts as 11 ms; calls take 10 ms; 0 in flight"


def test_before_the_first_call_it_says_that_nothing_is_known():
    cluster = filled(A, B)

    assert why(cluster, A) == "a call counts as 1 ms; no call has ended yet; 0 in flight"


def test_who_has_had_no_call_is_taken_for_the_typical_one():
    cluster = filled(A, B)
    took(cluster, A, 0.03)

    assert "no call has ended yet, so they are taken for the typical 30 ms" in why(cluster, B)


def test_the_numbers_of_a_crowd():
    cluster = filled(A, B)
    took(cluster, A, 0.01)
    took(cluster, B, 0.01)
    for _ in range(3):
        cluster.borrow(A)

    assert "; 3 in flight, where 0.0 is usual" in why(cluster, A)
    assert explained(cluster)[A].cost == pytest.approx(4 * 0.011)


def test_a_connect_under_way_is_to_come():
    cluster = filled(A, B, min_size=0, size=2)
    cluster.ask()

    assert "; 0 in flight, 1 to come, where 0.0 is usual" in why(cluster, A)


def test_a_failed_call_costs_until_something_good_comes():
    cluster = filled(A, B)
    took(cluster, A, 0.01)
    cluster.call(A, ERROR)
    cluster.fill()
    cluster.run_to(cluster.shell.now + 0.25)

    assert verdicts(cluster) == {"b": "next", "a": "eligible"}
    assert why(cluster, A).startswith("a call counts as 5 s; calls take 10 ms; ")
    assert "the last call failed 0.25 s ago: counts as 5 s until a good call or a good keepalive that begins" in why(
        cluster, A
    )
    assert why(cluster, A).endswith(" begins in 0.75 s or later")


def test_after_its_pause_any_keepalive_will_do():
    cluster = filled(A, B)
    cluster.call(A, ERROR)
    cluster.fill()
    cluster.run_to(cluster.shell.now + 1.5)

    assert why(cluster, A).endswith("until a good call or a good keepalive")


def test_a_call_that_hangs_is_told_with_its_age_even_one_that_was_borrowed_from_just_that_endpoint():
    cluster = filled(A, B)
    took(cluster, A, 0.01)
    took(cluster, B, 0.01)
    cluster.borrow(A)
    cluster.run_to(cluster.shell.now + 0.5)

    assert "a call has not returned for 0.5 s" in why(cluster, A)
    assert explained(cluster)[A].cost == pytest.approx(2 * 0.501)


def test_a_call_that_was_given_up_counts_twice():
    cluster = filled(A, B)
    took(cluster, A, 0.01)
    took(cluster, B, 0.01)
    cluster.run_to(1.0)
    assert verdicts(cluster) == {"a": "next", "b": "eligible"}
    slot = cluster.borrow(A)
    cluster.run_to(1.2)
    cluster.end(slot, INTERRUPTED)
    cluster.fill()

    assert "the last call was given up: counts twice" in why(cluster, A)
    assert explained(cluster)[A].cost == pytest.approx(0.401)


def test_one_that_is_due_for_a_trial_is_next_whatever_it_costs():
    cluster = filled(A, B)
    took(cluster, A, 1.0)
    took(cluster, B, 0.01)
    for _ in range(20):
        cluster.run_to(cluster.shell.now + 0.2)
        if verdicts(cluster)["a"] == "next":
            break
        assert call(cluster) == B

    assert explained(cluster)[A].cost is None
    assert "to be tried, whatever that costs: no call for 2" in why(cluster, A)
    assert call(cluster) == A


def test_slow_start_is_told_in_per_cent_and_seconds():
    cluster = filled(A, B, slow_start=3.0)
    took(cluster, A, 0.01)
    took(cluster, B, 0.01)
    cluster.fail(B)
    cluster.probe(B, good=True)
    cluster.fill()
    cluster.run_to(cluster.shell.now + 1.0)

    assert "slow start: 40% of its weight, all of it in 2 s" in why(cluster, B)


def test_who_had_more_than_its_share_is_ahead_and_who_had_less_behind():
    cluster = filled(replace(A, weight=3), B)
    for _ in range(2):
        took(cluster, A, 0.01)
        took(cluster, B, 0.01)
    assert verdicts(cluster) == {"a": "next", "b": "eligible"}
    for _ in range(12):
        cluster[A].load.charge()
    cluster[A].weigh(cluster.shell.now)

    assert why(cluster, A).endswith("; 0 in flight; 3.3 calls ahead of its share")
    assert why(cluster, B).endswith("; 0 in flight; 2.8 calls behind its share")


def test_one_without_an_idle_connection_is_busy_and_the_next_best_is_next():
    cluster = filled(A, B, size=1)
    took(cluster, A, 0.01)
    took(cluster, B, 0.05)
    cluster.borrow(A)

    assert verdicts(cluster) == {"a": "busy", "b": "next"}
    assert why(cluster, A).endswith("no connection is idle: 1 of 1 in use, 0 connecting")


def test_one_that_cannot_be_connected_says_when_it_is_tried_next():
    cluster = Cluster(A, balancer=PeakEWMA(), size=1)
    cluster.shell.refuse(cluster.shell.opening[0], REFUSED)

    assert verdicts(cluster) == {"a": "busy"}
    assert why(cluster, A).endswith("0 of 1 in use, 0 connecting, connects failed in a row: 1, next connect in 0.1 s")


def test_one_that_the_limit_keeps_is_named():
    cluster = filled(A, B, outlier=OutlierDetection(max_ejection_percent=0))
    cluster.fail(A)

    assert "it would be ejected, but no more of them may be (max_ejection_percent)" in why(cluster, A)


def test_an_ejected_endpoint_tells_why_and_when_it_is_probed():
    cluster = filled(A, B)
    cluster.fail(B)
    cluster.run_to(cluster.shell.now + 0.25)

    assert verdicts(cluster) == {"a": "next", "b": "ejected"}
    assert why(cluster, B) == (
        "for 0.25 s: too many calls in a row failed; last failure OSError('refused'); next probe in 1 s"
    )


def test_failures_without_an_exception_have_none_to_tell_of():
    cluster = filled(A, B, outlier=OutlierDetection(consecutive_failures=1))
    cluster.end(cluster.borrow(B), ERROR, None)

    assert why(cluster, B) == "for 0 ms: too many calls in a row failed; next probe in 1.2 s"


def test_an_ejected_endpoint_tells_of_its_probes():
    cluster = filled(A, B)
    cluster.fail(B)
    cluster.probe(B, good=False)

    assert why(cluster, B).endswith("last failure OSError('refused'); probes failed: 1; next probe in 0.75 s")
    cluster.close_all()
    cluster.run_to(cluster[B].until)
    assert why(cluster, B).endswith("probes failed: 1; being probed now")


def test_an_endpoint_of_a_later_priority_stands_by():
    cluster = filled(A, B, replace(C, priority=10))

    assert verdicts(cluster) == {"a": "next", "b": "eligible", "c": "standby"}
    assert why(cluster, C) == "priority 10: serves when none of priority 0 is available, of which 2 are"


def test_a_draining_endpoint_tells_how_long_its_calls_have():
    cluster = filled(A, B)
    cluster.borrow(B)
    cluster.update(A)
    cluster.run_to(cluster.shell.now + 10.0)

    assert why(cluster, B) == "for 10 s: it left DNS, or the subset; 1 in flight may finish within 20 s"


def test_a_drain_whose_time_is_over_has_none_left():
    cluster = filled(A, B)
    cluster.borrow(B)
    cluster.update(A)
    _, late = explain(cluster.members, cluster.shell.now + 30.5)

    assert late.why.endswith("1 in flight may finish within 0 ms")


@pytest.mark.parametrize("balancer", [RoundRobin, LeastLoaded])
def test_with_another_balancer_it_tells_what_that_may_go_by(balancer):
    cluster = filled(A, replace(B, weight=3), balancer=balancer)
    took(cluster, A, 0.01)

    assert verdicts(cluster) == {"a": "eligible", "b": "eligible"}
    assert explained(cluster)[A].cost is None
    assert why(cluster, A) == "calls take 10 ms; 0 in flight, weight 1"
    assert why(cluster, B) == "no call has ended yet, so they are taken for the typical 10 ms; 0 in flight, weight 3"


def test_of_many_nobody_is_said_to_be_next():
    cluster = filled(*[Endpoint(f"e{i}", 6379) for i in range(40)])

    assert {each.verdict for each in explained(cluster).values()} == {"eligible"}


def play(seed, *, look):
    """Make calls to an unlucky cluster, and return where they went, and who was said to be next, if asked."""
    rng = Random(seed)
    cluster = filled(A, replace(B, weight=2), C, rng=rng, slow_start=3.0)
    went, said = [], []
    for _ in range(300):
        cluster.run_to(cluster.shell.now + rng.expovariate(20.0))
        if look:
            said.append(next((each.endpoint for each in explained(cluster).values() if each.verdict == "next"), None))
        slot = cluster.take()
        went.append(slot.endpoint)
        cluster.run_to(cluster.shell.now + rng.expovariate(100.0))
        cluster.end(slot, ERROR if rng.random() < 0.1 else None, REFUSED)
        cluster.fill()
    return went, said


@pytest.mark.parametrize("seed", range(5))
def test_who_is_said_to_be_next_is_chosen(seed):
    went, said = play(seed, look=True)

    assert said == went


@pytest.mark.parametrize("seed", range(5))
def test_who_is_said_to_be_next_is_chosen_where_the_best_are_busy_and_others_behind_their_shares(seed):
    rng = Random(seed)
    cluster = filled(A, B, C, Endpoint("d", 6379), rng=rng, size=2)
    went, said, lent = [], [], []
    for _ in range(300):
        cluster.run_to(cluster.shell.now + rng.expovariate(100.0))
        if len(lent) == 6 or (lent and rng.random() < 0.4):
            cluster.end(lent.pop(rng.randrange(len(lent))), ERROR if rng.random() < 0.1 else None, REFUSED)
            cluster.fill()
        said += [each.endpoint for each in explained(cluster).values() if each.verdict == "next"]
        lent.append(cluster.take())
        went.append(lent[-1].endpoint)

    assert said == went


@pytest.mark.parametrize("seed", range(5))
def test_to_ask_changes_nothing(seed):
    assert play(seed, look=True)[0] == play(seed, look=False)[0]


class Idle(ClusterPool[object]):
    def _new_connection(self, endpoint):
        return object()


def test_a_pool_explains_without_switching():
    with Idle([("127.0.0.1", 1), ("127.0.0.1", 2)], 1) as pool:
        pool.wait()
        switches = []
        get_hub().loop.run_callback(switches.append, "switched")

        assert [each.verdict for each in pool.explain()] == ["next", "eligible"]
        assert switches == []


def test_a_pool_that_is_used_for_the_first_time_explains_that_it_connects():
    with Idle([("127.0.0.1", 1)], 2) as pool:
        assert [str(each) for each in pool.explain()] == [
            "127.0.0.1:1: busy: a call counts as 3 ms; no call has ended yet; 0 in flight, 2 to come, "
            "where 0.0 is usual; no connection is idle: 0 of 2 in use, 2 connecting"
        ]


def test_there_is_nothing_to_tell_of_a_pool_that_is_closed():
    pool = Idle([("127.0.0.1", 1)], 1)
    pool.close()

    assert pool.explain() == ()


def test_another_thread_may_not_ask():
    with Idle([("127.0.0.1", 1)], 1) as pool:
        with pytest.raises(RuntimeError, match="thread"):
            get_hub().threadpool.apply(pool.explain)
