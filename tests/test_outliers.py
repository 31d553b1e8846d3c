"""When an endpoint is an outlier, and for how long it is ejected."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from itertools import product
from random import Random
from typing import ClassVar

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from geventconnpool import events
from geventconnpool._queue import ERROR, INTERRUPTED, KEPT, NOT_REUSABLE, USER
from geventconnpool.cluster import Endpoint, LeastLoaded, OutlierDetection, RoundRobin
from geventconnpool.cluster._outliers import Tally, Window
from tests.test_members import Cluster, eject_and_readmit, filled, kept_by_the_limit
from tests.virtual import Dice

A, B, C, D = (Endpoint(name, 6379) for name in "abcd")


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "limit"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4), (8, 4), (9, 5), (10, 5)]
)
def test_half_of_a_priority_may_be_ejected_rounded_up_but_never_all_of_it(n, limit):
    assert OutlierDetection().limit(n) == limit


@pytest.mark.parametrize(
    ("percent", "limits"),
    [(0, [0, 0, 0, 0, 0]), (10, [0, 1, 1, 1, 1]), (100, [0, 1, 2, 3, 4]), (0.5, [0, 1, 1, 1, 1])],
)
def test_the_limit_follows_the_percentage(percent, limits):
    outlier = OutlierDetection(max_ejection_percent=percent)

    assert [outlier.limit(n) for n in range(1, 6)] == limits


PERCENTAGES = [0, 1, 10, 34, 50, 66, 100]


@pytest.mark.parametrize("percent", PERCENTAGES)
def test_the_limit_is_that_of_the_contract(percent):
    outlier = OutlierDetection(max_ejection_percent=percent)

    assert [outlier.limit(n) for n in range(1, 11)] == [
        min(n - 1, math.ceil(Fraction(n * percent, 100))) for n in range(1, 11)
    ]


@pytest.mark.parametrize("percent", PERCENTAGES)
@pytest.mark.parametrize("others", [(), (1,), (3,), (1, 2)])
def test_of_every_number_in_every_priority_as_many_are_ejected_as_may_be(percent, others):
    for n in range(1, 11):
        sizes = (n, *others)
        known = [Endpoint(f"e{p}-{i}", 1, priority=p) for p, size in enumerate(sizes) for i in range(size)]
        outlier = OutlierDetection(consecutive_failures=1, max_ejection_percent=percent)
        cluster = filled(*known, size=1, outlier=outlier, balancer=LeastLoaded())
        Random(n).shuffle(known)
        for endpoint in known + known[::-1]:
            active = {m.endpoint for m in cluster.members if m.state == "active"}
            if endpoint not in active:
                continue
            size = sizes[endpoint.priority]
            ejected = size - sum(other.priority == endpoint.priority for other in active)
            is_room = ejected < min(size - 1, math.ceil(Fraction(size * percent, 100)))
            is_replaced = any(other.priority > endpoint.priority for other in active)
            cluster.fail(endpoint, times=1)

            assert cluster.state_of(endpoint) == (["ejected"] if is_room or is_replaced else ["active"])
            assert cluster.eligible()


@pytest.mark.parametrize("n", range(1, 11))
def test_what_drains_is_not_counted_whatever_the_number(n):
    stay = [Endpoint(f"e{number}", 1) for number in range(n)]
    leave = [Endpoint(f"d{number}", 1) for number in range(10)]
    cluster = filled(*stay, *leave, size=1, outlier=OutlierDetection(consecutive_failures=1))
    for endpoint in leave:
        cluster.borrow(endpoint)
    cluster.update(*stay)
    for endpoint in stay:
        cluster.call(endpoint, ERROR)

    assert cluster.state_of(*stay).count("ejected") == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5][n - 1]
    assert cluster.state_of(*leave) == ["draining"] * 10


def test_the_return_of_one_does_not_eject_another_that_was_kept_by_the_limit():
    cluster = kept_by_the_limit()

    assert cluster.state_of(A, B) == ["active", "active"]
    assert cluster[B].failures["calls"] == 7


def test_one_that_was_kept_by_the_limit_and_is_well_again_is_not_ejected():
    cluster = kept_by_the_limit()
    cluster.call(B)
    cluster.call(B, ERROR, times=4)

    assert cluster.state_of(A, B) == ["active", "active"]


# -- for how long ------------------------------------------------------------------------------------------------------


def test_the_ejection_time_doubles_with_every_relapse_up_to_the_longest():
    times = [OutlierDetection().ejection_time(relapses, Dice(0.0)) for relapses in range(8)]

    assert times == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_jitter_is_added_to_the_ejection_time_never_taken_from_it():
    outlier = OutlierDetection()
    drawn = [outlier.ejection_time(0, rng) for rng in [Random(1)] for _ in range(1000)]

    assert (outlier.ejection_time(0, Dice(1.0)), outlier.ejection_time(6, Dice(1.0))) == (1.5, 90.0)
    assert 1.0 <= min(drawn) < 1.02
    assert 1.48 < max(drawn) <= 1.5


def test_without_jitter_the_ejection_time_is_exact():
    outlier = OutlierDetection(base_ejection_time=3.0, max_ejection_time=10.0, jitter=0)

    assert [outlier.ejection_time(n, Random(1)) for n in range(4)] == [3.0, 6.0, 10.0, 10.0]


def test_any_number_of_relapses_is_survived():
    assert OutlierDetection().ejection_time(100_000, Dice(0.0)) == 60.0
    assert OutlierDetection().is_longest(100_000)


# -- the value ---------------------------------------------------------------------------------------------------------


def test_the_policy_is_a_frozen_value():
    assert OutlierDetection() == OutlierDetection(5, 1.0, 60.0, 0.5, 50, 30, 2, 10, 30.0)
    assert len({OutlierDetection(), OutlierDetection(jitter=0.5)}) == 1
    with pytest.raises(FrozenInstanceError):
        OutlierDetection().jitter = 1.0


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("consecutive_failures", 0),
        ("consecutive_failures", -1),
        ("base_ejection_time", 0),
        ("base_ejection_time", -1.0),
        ("base_ejection_time", math.inf),
        ("base_ejection_time", math.nan),
        ("max_ejection_time", -1.0),
        ("max_ejection_time", math.inf),
        ("jitter", -0.1),
        ("jitter", 1.1),
        ("jitter", math.nan),
        ("max_ejection_percent", -1),
        ("max_ejection_percent", 101),
        ("failure_percentage_threshold", -1),
        ("failure_percentage_threshold", 100.5),
        ("failure_percentage_threshold", math.nan),
        ("failure_percentage_minimum_hosts", 0),
        ("failure_percentage_minimum_hosts", 1),
        ("failure_percentage_request_volume", 0),
        ("interval", 0),
        ("interval", -30.0),
        ("interval", math.inf),
        ("interval", math.nan),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_value(parameter, value):
    with pytest.raises(ValueError, match=parameter) as refused:
        OutlierDetection(**{parameter: value})

    assert repr(value) in str(refused.value)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("consecutive_failures", 2.5),
        ("consecutive_failures", True),
        ("consecutive_failures", "5"),
        ("base_ejection_time", "1"),
        ("base_ejection_time", None),
        ("max_ejection_time", True),
        ("jitter", "half"),
        ("max_ejection_percent", None),
        ("failure_percentage_threshold", "30"),
        ("failure_percentage_threshold", True),
        ("failure_percentage_minimum_hosts", 2.0),
        ("failure_percentage_minimum_hosts", None),
        ("failure_percentage_request_volume", "10"),
        ("failure_percentage_request_volume", False),
        ("interval", None),
        ("interval", "30 s"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name_and_value(parameter, value):
    with pytest.raises(TypeError, match=parameter) as refused:
        OutlierDetection(**{parameter: value})

    assert repr(value) in str(refused.value)


def test_a_longest_ejection_shorter_than_the_first_is_refused():
    with pytest.raises(ValueError, match=r"base_ejection_time.*max_ejection_time=5.0.*10.0"):
        OutlierDetection(base_ejection_time=10.0, max_ejection_time=5.0)


@pytest.mark.parametrize("option", ["failure_percentage", "enforcement_percentage", "success_rate"])
def test_an_unknown_option_is_refused(option):
    with pytest.raises(TypeError, match=option):
        OutlierDetection(**{option: 1})


# -- what is counted ---------------------------------------------------------------------------------------------------


def counted(tally):
    return tally.failures, tally.calls


def test_what_is_counted_is_of_this_half_of_the_interval_and_the_one_before():
    window, tally = Window(30.0), Tally()
    seen = []
    for now in (100.0, 104.9, 105.0, 119.9, 120.0, 135.0, 149.9):  # the halves begin at 90, 105, 120, 135
        window.turn([tally], now)
        tally.failed += 1
        seen.append(tally.failures)

    assert seen == [1, 2, 3, 4, 3, 2, 3]


def test_a_half_without_a_failure_leaves_nothing():
    window, tally = Window(30.0), Tally()
    for now in (104.9, 120.0):
        window.turn([tally], now)
        tally.failed += 1
        tally.good += 50

    assert counted(tally) == (1, 51)


def test_the_first_failure_after_a_quiet_time_begins_anew():
    window, tally = Window(30.0), Tally()
    tally.good += 1_000_000
    window.turn([tally], 3600.0)
    tally.failed += 1

    assert counted(tally) == (1, 1)


def test_good_calls_after_the_last_failure_are_not_taken_for_younger_than_they_may_be():
    window, tally = Window(30.0), Tally()
    window.turn([tally], 100.0)
    tally.good += 10
    window.turn([tally], 119.0)  # they came at some time since 100
    before = counted(tally)
    window.turn([tally], 120.0)

    assert (before, counted(tally)) == ((0, 10), (0, 0))


def test_all_endpoints_are_counted_from_the_same_moment():
    window, tallies = Window(30.0), [Tally(), Tally()]
    for tally in tallies:
        tally.good += 7
    window.turn(tallies, 100.0)
    window.turn(tallies, 101.0)

    assert [counted(tally) for tally in tallies] == [(0, 0), (0, 0)]


def test_a_call_that_is_told_of_late_turns_nothing_back():
    window, tally = Window(30.0), Tally()
    window.turn([tally], 106.0)
    tally.failed += 1
    window.turn([tally], 104.0)

    assert counted(tally) == (1, 1)


def test_a_restart_begins_anew_with_the_next_failure():
    window, tally = Window(30.0), Tally()
    window.turn([tally], 100.0)
    tally.good += 5
    window.restart()
    before = counted(tally)
    window.turn([tally], 100.1)

    assert (before, counted(tally)) == ((0, 5), (0, 0))


@pytest.mark.parametrize("interval", [5e-324, 1e-9, 1e9, math.inf])
@pytest.mark.parametrize("now", [0.0, 1e-300, 12345.678, 1e12])
def test_no_interval_is_too_short_or_too_long_to_count(interval, now):
    window, tally = Window(interval), Tally()
    window.turn([tally], now)
    tally.failed += 1
    window.turn([tally], now)

    assert counted(tally) == (1, 1)


steps = st.lists(
    st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from([0, 0, 0, 1, 3, 7, 8, 15, 16, 31])), max_size=60
)


@given(steps=steps, start=st.integers(0, 40))
def test_failures_of_this_half_and_the_one_before_count_and_nothing_older_than_the_interval(steps, start):
    window, tallies, now = Window(16.0), [Tally() for _ in range(3)], start
    calls: list[tuple[int, int, bool]] = []
    failed_at: list[int] = []
    for number, is_good, pause in steps:
        now += pause
        calls.append((now, number, is_good))
        if is_good:
            tallies[number].good += 1
            continue
        window.turn(tallies, now)
        tallies[number].failed += 1
        failed_at.append(now)
        halves = {at // 8 for at in failed_at}
        lasting = next(h for h in range(now // 8, -2, -1) if h not in halves) + 1  # the first half of an unbroken row
        since = max(8 * (now // 8 - 1), min(at for at in failed_at if at // 8 >= lasting))
        for which, tally in enumerate(tallies):
            at_most = [(at, good) for at, n, good in calls if n == which and at > now - 16]
            at_least = [
                (at, good) for at, n, good in calls if n == which and at // 8 == now // 8 and at > failed_at[-1]
            ]

            assert tally.failures <= sum(not good for _, good in at_most)
            assert tally.calls <= len(at_most)
            assert len(at_least) <= tally.calls
            # Failures tell the time, so they are counted to the second.
            assert tally.failures == sum(not good for at, n, good in calls if n == which and at >= since)


# -- who is worse ------------------------------------------------------------------------------------------------------


def tally(failures, calls):
    made = Tally()
    made.failed, made.good = failures, calls - failures
    return made


def is_worse(mine, *others, **options):
    return OutlierDetection(**options).is_worse(tally(*mine), [tally(*other) for other in others])


@pytest.mark.parametrize(
    ("mine", "others", "expected"),
    [
        ((7, 10), [(0, 10)], False),  # ten calls prove little,
        ((8, 10), [(0, 10)], True),
        ((10, 30), [(0, 30)], False),
        ((11, 33), [(0, 33)], True),  # the more there are, the less must fail
        ((5, 15), [(0, 15)] * 3, True),  # and others are more, together
        ((5, 15), [(0, 15)] * 9, True),
        ((4, 14), [(0, 1000)], False),  # less than 30 %
        ((30, 100), [(0, 1000)], True),
        ((29, 100), [(0, 1000)], False),
        ((9, 9), [(0, 1000)], False),  # less than ten calls
        ((10, 10), [(0, 9)], False),
        ((10, 10), [(0, 9)] * 9, False),  # nobody to be compared with
        ((10, 10), [], False),
        ((600, 1000), [(300, 1000)], False),  # twice as often is not more than that
        ((601, 1000), [(300, 1000)], True),
        ((600, 1000), [(600, 1000), (0, 1000)], False),  # two of three are ill
        ((601, 1000), [(601, 1000), (0, 1000), (0, 1000)], True),  # two of four: the two that are well do better
        ((1000, 1000), [(1000, 1000)], False),
        ((500, 1000), [(499, 1000)], False),
    ],
)
def test_an_endpoint_is_worse_if_it_fails_often_and_the_others_clearly_less(mine, others, expected):
    assert is_worse(mine, *others) is expected


def test_the_threshold_can_be_chosen_or_left_out():
    verdicts = [
        is_worse((50, 100), (0, 100), failure_percentage_threshold=percent) for percent in (0, 50, 50.1, 100, None)
    ]

    assert verdicts == [True, True, False, False, False]


def test_a_difference_of_just_so_many_standard_deviations_is_enough():
    verdicts = [is_worse((failed, 294), (0, 294), failure_percentage_threshold=0) for failed in (11, 12)]  # 12: z = 3.5

    assert verdicts == [False, True]


def test_how_many_calls_there_must_be_can_be_chosen():
    verdicts = [is_worse((20, 20), (0, 19), failure_percentage_request_volume=volume) for volume in (1, 19, 20, 21)]

    assert verdicts == [True, True, False, False]


def test_how_many_endpoints_there_must_be_can_be_chosen():
    verdicts = [
        is_worse((20, 20), (0, 20), (0, 20), (0, 3), failure_percentage_minimum_hosts=hosts) for hosts in (2, 3, 4)
    ]

    assert verdicts == [True, True, False]


def test_who_has_few_calls_is_left_out_of_the_comparison():
    assert is_worse((20, 40), (9, 9), (0, 40))


def test_the_others_are_not_looked_at_while_too_few_calls_have_failed():
    def others():
        raise AssertionError("a thousand of them")
        yield

    outlier = OutlierDetection()

    assert not outlier.is_worse(tally(2, 9), others())
    assert not outlier.is_worse(tally(2, 10), others())


tallies = st.tuples(st.integers(0, 2000), st.integers(0, 2000)).map(lambda counts: (counts[0], sum(counts)))


def is_far(failures, calls, others_failures, others_calls):
    """The two-proportion z-test, as in the textbooks, in fractions: z is at least 3.5."""
    p, q = Fraction(failures, calls), Fraction(others_failures, others_calls)
    r = Fraction(failures + others_failures, calls + others_calls)
    variance = r * (1 - r) * (Fraction(1, calls) + Fraction(1, others_calls))
    return p > 2 * q and (p - q) ** 2 >= Fraction(49, 4) * variance


@given(mine=tallies, others=st.lists(tallies, max_size=9))
def test_the_verdict_is_that_of_the_textbooks(mine, others):
    compared = [other for other in others if other[1] >= 10]
    failures, calls = sum(f for f, _ in compared), sum(n for _, n in compared)
    expected = mine[1] >= 10 and 10 * mine[0] >= 3 * mine[1] and calls > 0 and is_far(*mine, failures, calls)

    assert is_worse(mine, *others) == expected


@given(
    share=st.fractions(0, 1, max_denominator=50),
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=10),
    threshold=st.sampled_from([0, 30, 100]),
)
def test_nobody_is_worse_when_all_fail_alike(share, sizes, threshold):
    all_of_them = [(share.numerator * size, share.denominator * size) for size in sizes]

    assert not is_worse(*all_of_them, failure_percentage_threshold=threshold, failure_percentage_request_volume=1)


# -- in a cluster ------------------------------------------------------------------------------------------------------

ILL, WELL = "x..", "..."  # every third call fails


def serve(cluster, times=1, **patterns):
    """Make calls to the endpoints in turn: x fails, . is good; as long as all of them are active."""
    for results in list(zip(*patterns.values(), strict=True)) * times:
        for name, result in zip(patterns, results, strict=True):
            if cluster[Endpoint(name, 6379)].state != "active":
                return
            if result == "x":
                cluster.fail(Endpoint(name, 6379), times=1)
            else:
                cluster.call(Endpoint(name, 6379))


def test_an_endpoint_of_two_that_fails_every_third_call_is_ejected_after_31_calls():
    cluster = filled(A, B)
    serve(cluster, times=10, a=ILL, b=WELL)
    before = cluster.state_of(A, B), cluster[A].tally.calls
    serve(cluster, a=ILL, b=WELL)

    assert before == (["active", "active"], 30)
    assert cluster.state_of(A, B) == ["ejected", "active"]
    (event,) = cluster.told(events.EndpointEjected)
    assert (event.kind, event.reason, event.seconds) == ("calls", "failure_percentage", 1.25)
    assert repr(event.error) == "OSError('refused')"


def test_an_endpoint_of_three_or_four_that_fails_every_third_call_is_ejected_sooner():
    three, four = filled(A, B, C), filled(A, B, C, D)
    serve(three, times=20, a=ILL, b=WELL, c=WELL)
    serve(four, times=20, a=ILL, b=WELL, c=WELL, d=WELL)

    assert (three[A].tally.calls, four[A].tally.calls) == (16, 13)
    assert three.state_of(A, B, C) == ["ejected", "active", "active"]
    assert four.state_of(A, B, C, D) == ["ejected", "active", "active", "active"]


def test_five_in_a_row_are_told_as_such():
    cluster = filled(A, B)
    cluster.fail(A)

    assert [event.reason for event in cluster.told(events.EndpointEjected)] == ["consecutive_failures"]


def test_when_all_fail_alike_nobody_is_ejected():
    cluster = filled(A, B, C)
    serve(cluster, times=300, a="xx.", b=".xx", c="x.x")

    assert cluster.state_of(A, B, C) == ["active"] * 3
    assert [cluster[e].tally.failures for e in (A, B, C)] == [600, 600, 600]


def test_without_a_threshold_nobody_is_ejected_for_a_percentage():
    cluster = filled(A, B, outlier=OutlierDetection(failure_percentage_threshold=None))
    serve(cluster, times=300, a="xxxx.", b=".....")

    assert cluster.state_of(A, B) == ["active", "active"]


def test_an_endpoint_that_is_alone_in_its_priority_has_nobody_to_be_compared_with():
    later = replace(B, priority=1)
    cluster = filled(A, later)
    serve(cluster, times=100, a=ILL, b=WELL)

    assert cluster.state_of(A, later) == ["active", "active"]


class Counting(OutlierDetection):
    """Notes with how many an endpoint was compared."""

    seen: ClassVar[list[int]] = []

    def is_worse(self, tally, others):
        others = list(others)
        self.seen.append(len(others))
        return super().is_worse(tally, others)


@pytest.mark.parametrize(("number", "compared"), [(100, {99}), (101, {99, 100}), (300, {99, 100})])
def test_one_of_very_many_is_compared_with_a_hundred_of_the_others(number, compared):
    Counting.seen.clear()
    endpoints = [Endpoint(f"e{i}", 6379) for i in range(number)]
    cluster = filled(*endpoints, size=1, outlier=Counting())
    cluster.fail(endpoints[0], times=1)  # begins the count
    for endpoint in endpoints:
        cluster.call(endpoint, times=10)
    serve(cluster, times=20, e0=ILL, e1=WELL)

    assert set(Counting.seen) <= compared
    assert cluster.state_of(*endpoints[:2]) == ["ejected", "active"]


def test_who_drains_is_not_compared_with():
    cluster = filled(A, B)
    cluster.borrow(B)
    cluster.call(B, times=100)
    cluster.update(A)
    serve(cluster, times=100, a=ILL)

    assert cluster.state_of(A, B) == ["active", "draining"]


def test_who_is_ejected_is_not_compared_with():
    cluster = filled(A, B, C)
    serve(cluster, times=5, a=WELL, b=ILL, c="xx.")
    cluster.fail(A)
    serve(cluster, times=100, b=ILL, c="xx.")  # a was well, before

    assert cluster.state_of(A, B, C) == ["ejected", "active", "active"]


def test_an_endpoint_that_fails_too_many_calls_is_kept_by_the_limit_until_it_fails_when_there_is_room():
    cluster = filled(A, B, C, D)
    for gone in (C, D):
        cluster.fail(gone)
    serve(cluster, times=40, a=ILL, b=WELL)
    before = cluster.state_of(A)
    cluster.probe(D, good=True)
    cluster.fill()
    returned = cluster.state_of(A)
    serve(cluster, times=20, a=ILL, b=WELL)

    assert (before, returned, cluster.state_of(A)) == (["active"], ["active"], ["ejected"])


@pytest.mark.parametrize("verdict", [KEPT, INTERRUPTED, NOT_REUSABLE, USER])
def test_a_call_that_says_nothing_about_the_endpoint_is_neither_good_nor_failed(verdict):
    cluster = filled(A, B)
    serve(cluster, times=3, a=ILL, b=WELL)
    cluster.call(A, verdict, times=5)

    assert counted(cluster[A].tally) == (3, 9)


@pytest.mark.parametrize("kind", ["connects", "keepalives"])
def test_what_is_no_call_has_no_part_in_percentages(kind):
    cluster = filled(A, B)
    serve(cluster, times=10, a=ILL, b=WELL)
    cluster[A].tally.failed = 30  # more than enough, had a call failed
    cluster.members.failed(cluster[A], kind, OSError(), 0.0)

    assert cluster.state_of(A) == ["active"]


def test_calls_of_long_ago_do_not_count():
    cluster = filled(A, B)
    serve(cluster, times=10, a=ILL, b=WELL)
    cluster.run_to(30.0)
    serve(cluster, times=10, a=ILL, b=WELL)

    assert cluster.state_of(A) == ["active"]
    assert counted(cluster[A].tally) == (10, 30)


def test_a_fault_that_begins_is_not_hidden_by_a_good_past():
    cluster = filled(A, B)
    for endpoint in (A, B):
        cluster.call(endpoint, times=5000)
    serve(cluster, times=11, a=ILL, b=WELL)

    assert cluster.state_of(A) == ["ejected"]


def test_who_joins_is_compared_by_what_all_have_done_since():
    cluster = filled(A, B)
    cluster.fail(A, times=1)
    for endpoint in (A, B):
        cluster.call(endpoint, times=2000)
    cluster.update(A, B, C)
    cluster.fill()
    serve(cluster, times=30, a=ILL, b=".x.", c="..x")  # from now on, what is behind them fails

    assert cluster.state_of(A, B, C) == ["active", "active", "active"]
    assert [counted(cluster[e].tally) for e in (A, B, C)] == [(30, 90)] * 3


def test_who_comes_back_is_compared_by_what_all_have_done_since():
    cluster = filled(A, B, C)
    cluster.fail(C)
    for endpoint in (A, B):
        cluster.call(endpoint, times=2000)
    cluster.probe(C, good=True)
    cluster.fill()
    serve(cluster, times=30, a=ILL, b=".x.", c="..x")

    assert cluster.state_of(A, B, C) == ["active", "active", "active"]


def test_calls_before_an_ejection_do_not_count_after_the_return():
    cluster = filled(A, B)
    serve(cluster, times=11, a=ILL, b=WELL)
    cluster.probe(A, good=True)
    cluster.fill()
    serve(cluster, times=10, a=ILL, b=WELL)
    before = cluster.state_of(A)
    serve(cluster, a=ILL, b=WELL)

    assert (before, cluster.state_of(A)) == (["active"], ["ejected"])


def test_the_ejection_time_of_an_endpoint_that_fails_every_third_call_doubles_and_it_comes_back():
    cluster = filled(A, B)
    times = []
    for _ in range(9):
        serve(cluster, times=12, a=ILL, b=WELL)
        times.append((cluster[A].until - cluster.shell.now) / 1.25)
        cluster.probe(A, good=True)
        cluster.fill()

    assert times == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert cluster.state_of(A) == ["active"]


def test_the_ejection_time_of_an_endpoint_that_was_ill_falls_back_with_health():
    cluster = filled(A, B)
    for _ in range(5):
        serve(cluster, times=12, a=ILL, b=WELL)
        cluster.probe(A, good=True)
        cluster.fill()
    cluster.call(A, times=100)

    assert eject_and_readmit(cluster) == 1.0


@pytest.mark.parametrize("balancer", [RoundRobin, lambda: LeastLoaded(Random(2))], ids=["RoundRobin", "LeastLoaded"])
def test_by_chance_alone_hardly_anybody_is_ejected_for_a_percentage(balancer):
    rng = Random(1)
    known = [Endpoint(f"e{number}", 1) for number in range(5)]
    cluster = filled(*known, size=1, balancer=balancer(), outlier=OutlierDetection(consecutive_failures=1000))
    for number in range(20_000):  # 100 s
        cluster.run_to(number * 0.005)
        slot = cluster.take()
        if rng.random() < 0.4:
            cluster.end(slot, ERROR, OSError())
            cluster.fill()
        else:
            cluster.end(slot)

    assert cluster.told(events.EndpointEjected) == []


# -- any calls, in any order -------------------------------------------------------------------------------------------


class Known:
    """What is to be expected of one endpoint, by the words of the contract."""

    def __init__(self) -> None:
        self.is_ejected = self.is_on_trial = False
        self.in_a_row = self.good_in_a_row = self.relapses = 0


class Outliers(RuleBasedStateMachine):
    """Endpoints of up to three priorities, some of which fail now and then, beside a model of who is to be ejected."""

    @initialize(
        sizes=st.lists(st.sampled_from([3, 2, 4, 1]), min_size=1, max_size=3),
        in_a_row=st.sampled_from([100, 5, 2]),
        percent=st.sampled_from(PERCENTAGES[::-1]),
        threshold=st.sampled_from([30, 0, 50]),
        hosts=st.integers(2, 3),
        volume=st.integers(1, 10),
        interval=st.sampled_from([4.0, 30.0]),
        seed=st.integers(0, 9),
    )
    def begin(self, sizes, in_a_row, percent, threshold, hosts, volume, interval, seed):
        self.outlier = OutlierDetection(
            consecutive_failures=in_a_row,
            max_ejection_time=8.0,
            max_ejection_percent=percent,
            failure_percentage_threshold=threshold,
            failure_percentage_minimum_hosts=hosts,
            failure_percentage_request_volume=volume,
            interval=interval,
        )
        known = [Endpoint(f"e{p}-{i}", 1, priority=p) for p, size in enumerate(sizes) for i in range(size)]
        self.cluster = Cluster(*known, size=1, outlier=self.outlier, balancer=LeastLoaded(Random(seed)))
        self.cluster.members._rng = Random(seed)
        self.cluster.fill()
        self.known = {endpoint: Known() for endpoint in known}
        self.half = None
        self.calls = []  # (the half of the interval that the last failure was in, endpoint, whether it failed)

    @property
    def now(self):
        return self.cluster.shell.now

    def peers(self, endpoint):
        return [other for other in self.known if other.priority == endpoint.priority]

    def active(self):
        return [endpoint for endpoint, known in self.known.items() if not known.is_ejected]

    def is_worse(self, endpoint):
        counts = {
            other: [failed for _, who, failed in self.calls if who == other]
            for other in self.peers(endpoint)
            if not self.known[other].is_ejected
        }
        mine, threshold = counts[endpoint], self.outlier.failure_percentage_threshold
        enough = [c for c in counts.values() if len(c) >= self.outlier.failure_percentage_request_volume]
        if threshold is None or mine not in enough or len(enough) < self.outlier.failure_percentage_minimum_hosts:
            return False
        others = sum(map(sum, enough)) - sum(mine), sum(map(len, enough)) - len(mine)
        return 100 * sum(mine) >= threshold * len(mine) and is_far(sum(mine), len(mine), *others)

    def may_be_ejected(self, endpoint):
        if any(other.priority > endpoint.priority for other in self.active()):
            return True
        peers = self.peers(endpoint)
        limit = min(len(peers) - 1, math.ceil(Fraction(len(peers) * self.outlier.max_ejection_percent, 100)))
        return sum(self.known[other].is_ejected for other in peers) < limit

    def note(self, endpoint, *, failed):
        """Tell the model of a call; return for how long the endpoint is to be ejected, None if it is not."""
        known = self.known[endpoint]
        if not failed:
            self.calls.append((self.half, endpoint, False))
            known.in_a_row = 0
            known.good_in_a_row += 1
            if known.good_in_a_row % 20 == 0:
                known.is_on_trial, known.relapses = False, max(0, known.relapses - 1)
            return None
        half = int(2 * self.now / self.outlier.interval)
        if half != self.half:
            self.calls = [call for call in self.calls if call[0] == half - 1 and self.half is not None]
            self.half = half
        self.calls.append((half, endpoint, True))
        known.in_a_row += 1
        known.good_in_a_row = 0
        is_outlier = known.in_a_row >= self.outlier.consecutive_failures or self.is_worse(endpoint)
        if not is_outlier or not self.may_be_ejected(endpoint):
            return None
        known.relapses = min(3, known.relapses + known.is_on_trial)  # 1, 2, 4, 8 s
        known.is_ejected = True
        return 2.0**known.relapses

    def end(self, slot, *, failed):
        endpoint = slot.endpoint
        seconds = self.note(endpoint, failed=failed)
        self.cluster.end(slot, ERROR if failed else None, OSError() if failed else None)
        if seconds is not None:
            assert self.cluster[endpoint].state == "ejected"
            assert seconds <= self.cluster[endpoint].until - self.now <= 1.5 * seconds
        self.cluster.fill()

    @rule(number=st.integers(0, 99), results=st.lists(st.booleans(), min_size=1, max_size=12))
    def call_one(self, number, results):
        endpoint = list(self.known)[number % len(self.known)]
        for failed in results:
            if not self.known[endpoint].is_ejected:
                self.end(self.cluster.borrow(endpoint), failed=failed)

    @rule(number=st.integers(0, 99), of=st.sampled_from([3, 2, 1, 5]), times=st.sampled_from([40, 12, 5]))
    def call_all_while_one_is_ill(self, number, of, times):
        ill = list(self.known)[number % len(self.known)]
        for turn, endpoint in product(range(times), self.known):
            if not self.known[endpoint].is_ejected:
                self.end(self.cluster.borrow(endpoint), failed=endpoint is ill and turn % of == 0)

    @rule(times=st.integers(1, 25))
    def all_is_well(self, times):
        for _, endpoint in product(range(times), self.active()):
            self.end(self.cluster.borrow(endpoint), failed=False)

    @rule(failed=st.booleans())
    def call_whom_the_balancer_likes(self, failed):
        slot = self.cluster.take()
        lowest = min(endpoint.priority for endpoint in self.active())

        assert (slot.endpoint.priority, self.known[slot.endpoint].is_ejected) == (lowest, False)
        self.end(slot, failed=failed)

    @rule(seconds=st.sampled_from([0.1, 1.0, 1.9, 3.0, 15.0, 40.0]), good=st.booleans())
    def pass_time(self, seconds, good):
        end = self.now + seconds
        while (due := min((self.cluster[e].until for e in self.known), default=end)) <= end:
            self.cluster.run_to(due)
            for slot in list(self.cluster.shell.opening):
                assert slot.probe
                self.probe(slot, good=good)
        self.cluster.run_to(end)

    def probe(self, slot, *, good):
        endpoint = slot.endpoint
        if not good:
            self.cluster.shell.refuse(slot)
            assert 0.5 <= self.cluster[endpoint].until - self.now <= 5.0
            return
        self.cluster.shell.open(slot)
        known = self.known[endpoint]
        known.is_ejected, known.is_on_trial, known.in_a_row, known.good_in_a_row = False, True, 0, 0
        self.half = None

    @invariant()
    def those_are_ejected_who_should_be(self):
        for endpoint, known in self.known.items():
            assert self.cluster.state_of(endpoint) == (["ejected"] if known.is_ejected else ["active"])
            assert known.is_ejected == (self.cluster[endpoint].until < math.inf)
            assert self.cluster[endpoint].failures["calls"] == (0 if known.is_ejected else known.in_a_row)
        assert self.active(), "never the last"

    def teardown(self):
        if not hasattr(self, "cluster"):
            return
        began = self.now
        while len(self.active()) < len(self.known):
            self.pass_time(1.0, good=True)

        assert self.now - began <= 8.0 * 1.5 + 1.0


TestOutliers = Outliers.TestCase
TestOutliers.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink)
)
