"""What a call to an endpoint is expected to cost."""

from __future__ import annotations

from math import exp, inf, isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventconnpool.cluster._load import FINEST_LOOK, FLOOR, STEP, Load, Peers, least

LONGEST = 60.0


def make(latency=None, *, now=100.0, peers=None, level=0):
    """Return the load of an endpoint to which one call was made, or none."""
    load = Load(peers or Peers(), now)
    if latency is not None:
        load.measured(latency, level, now)
    return load


def several(*latencies, now=100.0):
    """Return the loads of endpoints of one cluster that have been compared with each other."""
    peers = Peers()
    loads = [make(latency, peers=peers, now=now) for latency in latencies]
    compare(loads)
    weigh(loads, now)
    return loads


def compare(loads, weights=None):
    weights = weights or [1.0] * len(loads)
    peers = loads[0].peers
    peers.measure(loads, weights, is_even=len(set(weights)) == 1)
    for load, weight in zip(loads, weights, strict=True):
        load.measure(weight / peers.weight)


def weigh(loads, now, in_flight=0):
    for load in loads:
        load.weigh(in_flight, now)


def cost(load, in_flight=0, now=100.0):
    """Return what is expected of a call, in seconds, whatever share the endpoint had."""
    load.weigh(in_flight, now)
    return load.cost


def call(load, now, in_flight=0):
    load.chosen(in_flight + 1, now)
    load.called(now)


def shares(loads, times, now=100.0):
    """Return how often each is chosen by calls one after the other that tell nothing new."""
    counts = [0] * len(loads)
    for _ in range(times):
        load = least(loads)
        load.chosen(1, now)
        load.weigh(0, now)
        counts[loads.index(load)] += 1
    return counts


# -- latency -----------------------------------------------------------------------------------------------------------


def test_the_first_call_is_all_that_is_known():
    assert make(0.2).latency == 0.2


def test_calls_at_one_time_count_alike():
    load = make(0.2)
    load.measured(0.1, 0, 100.0)
    load.measured(0.3, 0, 100.0)

    assert load.latency == pytest.approx(0.2)


def test_what_was_ten_seconds_ago_counts_for_a_third():
    load = make(2.0)
    load.measured(1.0, 0, 110.0)

    assert load.latency == pytest.approx((2.0 * 0.3679 + 1.0) / 1.3679, abs=1e-4)


def test_after_a_long_silence_only_the_newest_call_counts():
    load = make(2.0)
    load.measured(1.0, 0, 1000.0)

    assert load.latency == pytest.approx(1.0)


def test_a_call_that_takes_three_times_as_long_and_25_milliseconds_is_believed_at_once():
    load = make(0.1)
    for _ in range(9):
        load.measured(0.1, 0, 100.0)
    load.measured(0.33, 0, 100.0)

    assert load.latency == 0.33


def test_a_call_that_takes_hardly_less_than_that_is_one_of_many():
    load = make(0.1)
    for _ in range(8):
        load.measured(0.1, 0, 100.0)
    load.measured(0.3, 0, 100.0)

    assert load.latency == pytest.approx(0.12)


def test_a_hiccup_of_a_quick_endpoint_is_no_surprise():
    load = make(0.0001)
    for _ in range(98):
        load.measured(0.0001, 0, 100.0)
    load.measured(0.02, 0, 100.0)

    assert load.latency == pytest.approx(0.000299)


def test_after_a_peak_only_a_higher_one_is_a_surprise_until_it_is_forgotten():
    load = make(0.1)
    for n in range(100):
        load.measured(0.25 if n == 50 else 0.1, 0, 100.0)
    load.measured(0.5, 0, 100.0)
    assert load.latency < 0.11
    load.measured(0.1, 0, 200.0)
    load.measured(0.5, 0, 200.0)

    assert load.latency == 0.5


def test_calls_that_take_no_time_and_a_clock_that_stands_still_are_no_trouble():
    load = make(0.0)
    for _ in range(10):
        load.measured(0.0, 0, 100.0)

    assert load.latency == 0.0
    assert cost(load) == pytest.approx(0.001)


def test_where_little_more_than_the_scheduler_is_measured_differences_are_small():
    assert cost(make(0.0002)) / cost(make(0.0001)) == pytest.approx(12 / 11)


# -- what others tell of one that is new -------------------------------------------------------------------------------


def test_one_of_which_nothing_is_known_costs_what_is_typical():
    loads = several(0.1, 0.3, 0.2, None)

    assert cost(loads[3]) == pytest.approx(0.201)


def test_while_nothing_is_known_of_any_all_cost_the_least():
    loads = several(None, None)

    assert cost(loads[0]) == cost(loads[1]) == pytest.approx(0.001)


def test_one_quick_call_makes_nobody_the_quickest():
    loads = several(0.1, 0.1, None)
    loads[2].measured(0.01, 0, 100.0)

    assert loads[2].latency == pytest.approx((5 * 0.1 + 0.01) / 6)


def test_what_is_typical_counts_for_as_much_when_the_first_call_comes_late():
    loads = several(0.1, 0.1, None)
    loads[2].measured(0.01, 0, 160.0)

    assert loads[2].latency == pytest.approx((5 * 0.1 + 0.01) / 6)


def test_a_slow_first_call_is_a_surprise():
    loads = several(0.1, 0.1, None)
    loads[2].measured(0.4, 0, 100.0)

    assert loads[2].latency == 0.4


def test_what_is_no_surprise_to_the_others_is_none_to_one_that_is_new():
    loads = several(0.1, 0.1, 0.1, None)
    for load in loads[:3]:
        load.measured(0.3, 0, 100.0)  # each may take that long: only 0.925 s would be a surprise
    compare(loads)
    loads[3].measured(0.6, 0, 100.0)

    assert loads[3].latency == pytest.approx((5 * 0.2 + 0.6) / 6)


def test_what_surprises_the_others_surprises_one_that_is_new():
    loads = several(0.1, 0.1, 0.1, None)
    for load in loads[:3]:
        load.measured(0.3, 0, 100.0)
    compare(loads)
    loads[3].measured(0.95, 0, 100.0)

    assert loads[3].latency == 0.95


def test_one_that_is_renewed_is_as_new():
    loads = several(0.1, 0.2, 5.0)
    old = loads[2]
    old.failed(100.0, LONGEST)
    old.oldest = 90.0
    old.renew(200.0)

    assert old.latency is None
    assert cost(old, now=200.0) == pytest.approx(0.201)
    assert old.spent == old.peers.rounds
    assert old.next_trial == 202.0


def test_one_that_is_renewed_believes_its_first_calls_no_more_than_a_new_one():
    loads = several(0.1, 0.1, 0.1)
    loads[2].renew(160.0)
    loads[2].measured(0.01, 0, 160.5)

    assert loads[2].latency == pytest.approx((5 * 0.1 + 0.01) / 6)


def test_who_begins_slowly_is_taken_for_no_quicker_than_told():
    load = make(0.01)
    load.quickest = 0.1

    assert cost(load) == pytest.approx(0.101)
    assert cost(load, now=101.0) == pytest.approx(0.101)


def test_who_begins_slowly_may_well_be_slower():
    load = make(0.3)
    load.quickest = 0.1

    assert cost(load) == pytest.approx(0.301)


def test_who_is_as_good_as_most_is_tried_only_when_nobody_has_called_there_for_long():
    loads = several(0.1, 0.1, 0.3)

    assert [load.next_trial for load in loads] == [109.0, 109.0, 102.0]


# -- calls in flight ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("in_flight", "expected"), [(0, 0.101), (4, 0.101), (9, 0.202), (49, 1.01)])
def test_a_latency_seen_with_four_others_in_flight_counts_in_full_up_to_four(in_flight, expected):
    assert cost(make(0.1, level=4), in_flight) == pytest.approx(expected)


def test_the_level_is_an_average_like_the_latency():
    load = make(0.1, level=4)
    load.measured(0.1, 0, 100.0)

    assert load.level == pytest.approx(2.0)


def test_the_level_of_a_surprise_is_where_it_was_seen():
    load = make(0.1, level=4)
    load.measured(1.0, 8, 100.0)

    assert load.level == 8.0


def test_what_is_usually_in_flight_at_the_others_makes_nobody_dearer():
    peers = Peers()
    loads = [make(0.1, peers=peers, level=level) for level in (0, 4, 8)]
    compare(loads)

    assert peers.level == 4.0
    assert [cost(load, 4) for load in loads] == pytest.approx([0.101, 0.101, 0.101])
    assert [cost(load, 9) for load in loads] == pytest.approx([0.202, 0.202, 0.101 * 10 / 9])


def test_at_twice_the_weight_twice_as_many_in_flight_make_no_difference():
    peers = Peers()
    light, heavy = (make(0.1, peers=peers) for _ in range(2))
    compare([light, heavy], [1.0, 2.0])

    assert [cost(heavy, n) for n in (2, 4, 8)] == pytest.approx([cost(light, n) for n in (1, 2, 4)])


# -- age ---------------------------------------------------------------------------------------------------------------


def test_a_call_in_flight_for_longer_than_usual_counts_with_its_age():
    load = make(0.1)
    load.oldest = 100.0

    assert cost(load, 1, now=100.1) == pytest.approx(0.202)
    assert cost(load, 1, now=101.0) == pytest.approx(2.002)


def test_a_call_that_was_overtaken_is_just_long():
    load = make(0.1)
    load.oldest = 99.0
    load.answered(0.1, 1, 100.0)

    assert cost(load, 1, now=101.0) == pytest.approx(0.101 * 4 / 3)


def test_an_interrupted_call_overtakes_nobody():
    load = make(0.1)
    load.oldest = 99.0
    load.measured(0.1, 1, 100.0)

    assert cost(load, 1, now=101.0) > 2.0


# -- trials ------------------------------------------------------------------------------------------------------------


def is_due(load, now):
    load.weigh(0, now)
    return load.key < 0.0


def trials(load, until):
    """Call whenever it is due, without an answer; return when that was."""
    found = []
    now = 100.0
    while now < until:
        if is_due(load, now):
            call(load, now)
            found.append(now)
        now += 0.125
    return found


def test_one_that_gets_no_calls_is_tried_after_2_and_4_and_8_and_9_seconds():
    assert trials(make(0.1), 135.0) == [102.0, 106.0, 114.0, 123.0, 132.0]


def test_a_call_for_another_reason_puts_the_trial_off():
    load = make(0.1)
    call(load, 101.5)

    assert not is_due(load, 103.25)
    assert is_due(load, 103.5)


def test_one_that_failed_is_tried_after_9_seconds():
    load = make(0.1)
    load.failed(100.0, LONGEST)

    assert not is_due(load, 108.75)
    assert is_due(load, 109.0)


@pytest.mark.parametrize("began", [0.0, 1e-3, 1e5, 1e9])
def test_of_those_that_are_due_the_one_that_has_waited_longest_is_first(began):
    loads = [Load(Peers(), began + n * 0.001) for n in range(3)]
    weigh(loads, began + 20.0)

    assert [load.key < 0.0 for load in loads] == [True, True, True]
    assert least(loads[::-1]) is loads[0]
    call(loads[0], began + 20.0)
    assert least(loads[::-1]) is loads[1]


def test_if_there_was_no_connection_for_the_call_the_trial_is_still_to_come():
    load = make(0.1)
    load.weigh(0, 102.0)
    load.chosen(1, 102.0)
    assert not is_due(load, 102.0)
    load.not_called()

    assert is_due(load, 102.0)
    assert load.patience == 2.0


def test_if_the_connection_for_the_trial_was_dead_the_trial_is_still_to_come():
    load = make(0.1)
    load.weigh(0, 102.0)
    call(load, 102.0)
    load.missed(102.0)

    assert is_due(load, 102.0)


def test_if_the_connection_for_any_other_call_was_dead_there_is_no_trial():
    load = make(0.1)
    call(load, 101.0)
    load.missed(101.0)

    assert not is_due(load, 101.0)


def test_if_a_trial_is_quick_what_was_known_before_is_forgotten():
    quick, slow = several(0.1, 5.0)
    slow.weigh(0, 102.0)
    call(slow, 102.0)
    slow.answered(0.05, 0, 102.05)

    assert slow.latency == pytest.approx(0.09, abs=0.005)
    assert quick.latency == 0.1


def test_a_trial_that_is_slow_is_one_call_of_many():
    _, slow = several(0.1, 5.0)
    slow.weigh(0, 102.0)
    call(slow, 102.0)
    slow.answered(5.5, 0, 107.5)

    assert 5.0 < slow.latency < 5.5


def test_an_answer_to_a_call_from_before_the_trial_forgets_nothing():
    _, slow = several(0.1, 5.0)
    slow.weigh(0, 102.0)
    call(slow, 102.0)
    slow.answered(4.0, 1, 102.5)

    assert slow.latency > 4.0


# -- the cost of failures ----------------------------------------------------------------------------------------------


def charged(now=100.0):
    load = make(0.1)
    load.failed(now, LONGEST)
    return load


@pytest.mark.parametrize(("seconds", "is_news"), [(0.1, False), (0.105, False), (0.2, True), (0.05, True)])
def test_the_end_of_a_call_is_news_if_it_took_longer_or_less_than_usual_also_when_it_was_overdue(seconds, is_news):
    load = make(0.1)
    load.in_flight = 1
    load.oldest = 100.0
    load.weigh(1, 100.2)
    load.look_at = load.later = 200.0
    load.returned(100.2 - seconds, 100.2)

    assert load.look_at == pytest.approx(100.2 + FINEST_LOOK if is_news else 200.0)


def test_the_news_of_a_call_is_not_forgotten_for_the_next_that_is_none():
    load = make(0.1)
    load.in_flight = 2
    load.weigh(2, 100.0)
    load.look_at = load.later = 200.0
    load.returned(99.7, 100.0)
    load.returned(99.9002, 100.0002)

    assert load.look_at == pytest.approx(100.0 + FINEST_LOOK)


@pytest.mark.parametrize(("seconds", "factor"), [(0.05, 1.0), (0.5, 2.0)])
def test_a_call_that_was_given_up_late_would_have_taken_longer(seconds, factor):
    load = make(0.1)
    load.peers.typical = 0.1
    load.given_up(seconds, 0, 100.0)
    load.weigh(0, 100.0)
    before = load.cost
    load.answered(load.latency, 0, 101.0)
    load.weigh(0, 101.0)

    assert before == pytest.approx(factor * load.latency + FLOOR)
    assert load.cost == pytest.approx(load.latency + FLOOR)


def test_a_failed_call_costs_five_seconds():
    assert cost(charged()) == pytest.approx(5.001)


def test_who_is_slower_than_that_is_no_quicker_for_it():
    load = make(8.0)
    load.failed(100.0, LONGEST)

    assert cost(load) == pytest.approx(8.001)


def test_a_good_call_that_began_after_the_failure_clears_it():
    load = charged()
    load.succeeded(100.5)

    assert cost(load) == pytest.approx(0.101)


def test_a_good_call_that_began_before_the_failure_does_not():
    load = charged()
    load.succeeded(99.5)

    assert cost(load) == pytest.approx(5.001)


@pytest.mark.parametrize(("began", "expected"), [(99.0, 5.001), (100.9, 5.001), (101.0, 0.101)])
def test_a_keepalive_that_began_a_second_after_the_failure_clears_it(began, expected):
    load = charged()
    load.kept_alive(began)

    assert cost(load) == pytest.approx(expected)


def pauses_of(load, failures):
    """Fail whenever a keepalive has cleared the cost; return how long that took."""
    found = []
    now = 200.0
    for _ in range(failures):
        load.failed(now, LONGEST)
        found.append(load.pause)
        load.kept_alive(now + load.pause - 0.001)
        assert load.charged_at == now
        now += load.pause
        load.kept_alive(now)
        assert load.charged_at is None
    return found


def test_who_fails_again_and_again_after_good_keepalives_is_believed_after_twice_as_long_up_to_a_minute():
    assert pauses_of(make(0.1), 8) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_one_clearing_doubles_but_once():
    load = charged()
    load.kept_alive(101.0)
    for n in range(3):
        load.failed(102.0 + n, LONGEST)

    assert load.pause == 2.0


def test_a_failure_after_a_good_call_alone_doubles_nothing():
    load = charged()
    load.succeeded(100.5)
    load.failed(101.0, LONGEST)

    assert load.pause == 1.0


def test_a_good_call_does_not_prove_that_the_keepalive_was_right():
    load = charged()
    load.kept_alive(101.0)
    load.succeeded(102.0)
    load.failed(103.0, LONGEST)

    assert load.pause == 2.0


def test_twenty_good_calls_prove_it():
    load = make(0.1)
    pauses_of(load, 4)
    load.proven()
    load.failed(300.0, LONGEST)

    assert load.pause == 1.0


def test_a_good_keepalive_while_nothing_failed_means_nothing():
    load = make(0.1)
    load.kept_alive(100.0)
    load.failed(101.0, LONGEST)

    assert load.pause == 1.0


# -- shares ------------------------------------------------------------------------------------------------------------


def test_equal_endpoints_are_called_in_turn():
    loads = several(0.1, 0.1, 0.1)
    order = []
    for _ in range(9):
        load = least(loads)
        order.append(loads.index(load))
        load.chosen(1, 100.0)
        load.weigh(0, 100.0)

    assert order == [0, 1, 2] * 3


@pytest.mark.parametrize("weights", [(3.0, 1.0), (1.0, 2.0, 5.0), (60.0, 30.0, 10.0), (65535.0, 65535.0)])
def test_equal_endpoints_get_their_shares_in_proportion_to_their_weights(weights):
    peers = Peers()
    loads = [make(0.1, peers=peers) for _ in weights]
    compare(loads, list(weights))
    weigh(loads, 100.0)
    found = shares(loads, 1000)

    assert found == pytest.approx([1000 * weight / sum(weights) for weight in weights], abs=3)


def test_who_is_a_little_slower_gets_its_share_of_the_calls_all_the_same():
    assert shares(several(0.1, 0.105), 1000) == pytest.approx([500, 500], abs=5)


def test_who_is_clearly_slower_gets_none():
    assert shares(several(0.1, 0.15), 1000)[1] <= 1


def test_while_weights_differ_who_is_a_little_slower_gets_its_share():
    peers = Peers()
    loads = [make(latency, peers=peers) for latency in (0.1, 0.14)]
    compare(loads, [3.0, 1.0])
    weigh(loads, 100.0)

    assert shares(loads, 1000) == pytest.approx([750, 250], abs=20)


def test_a_trial_of_one_that_weighs_little_is_no_measure_for_the_others():
    peers = Peers()
    loads = [make(0.1, peers=peers) for _ in range(3)]
    compare(loads, [100.0, 100.0, 1.0])
    weigh(loads, 100.0)
    loads[2].chosen(1, 100.0)
    loads[2].chosen(1, 100.0)
    before = peers.rounds
    loads[2].weigh(0, 120.0)
    loads[2].chosen(1, 120.0)

    assert before > 40.0
    assert peers.rounds - before < 1.0


def test_who_was_left_out_for_long_has_no_more_to_catch_up_with_than_a_few_calls():
    loads = several(0.1, 0.5)
    shares(loads, 1000)
    loads[1].measured(0.1, 0, 1000.0)
    loads[1]._latency = 0.1
    weigh(loads, 100.0)
    found = shares(loads, 20)

    assert found[1] <= 15
    assert shares(loads, 100) == pytest.approx([50, 50], abs=3)


def test_it_is_the_same_every_time():
    assert shares(several(0.1, 0.11, 0.09, None), 77) == shares(several(0.1, 0.11, 0.09, None), 77)


class Counted(list[Load]):
    """Loads that are gone through so many times."""

    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


def test_if_many_are_behind_they_are_not_gone_through_once_for_each():
    loads = Counted(several(*[0.1] * 300))
    loads[0].peers.rounds = 1e6

    assert least(loads) in loads
    assert loads.times <= 4


# -- anything in any order ---------------------------------------------------------------------------------------------

seconds = st.sampled_from([0.0, 1e-9, 1e-4, 0.1, 1.0, 1e3, 1e8])
report = st.tuples(
    st.sampled_from(["answered", "measured", "failed", "succeeded", "kept_alive", "renew", "chosen", "not", "missed"]),
    seconds,
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.0, 1e-6, 0.5, 3.0, 100.0]),
)


def tell(load, kind, took, in_flight, now):
    if kind in ("answered", "measured"):
        getattr(load, kind)(took, in_flight, now)
    elif kind in ("succeeded", "kept_alive"):
        getattr(load, kind)(now - took)
    elif kind == "failed":
        load.failed(now, LONGEST)
    elif kind == "chosen":
        call(load, now, in_flight)
    elif kind == "not":
        load.chosen(in_flight + 1, now)
        load.not_called()
    else:
        getattr(load, kind)(now)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    began=st.sampled_from([0.0, 1e5, 1e9]),
    weights=st.lists(st.sampled_from([0.001, 0.01, 1.0, 65535.0]), min_size=2, max_size=3),
    reports=st.lists(st.tuples(st.integers(0, 2), report), max_size=40),
)
def test_the_key_is_a_number_whatever_happens_and_rises_with_what_is_in_flight(began, weights, reports):
    peers = Peers()
    loads = [Load(peers, began) for _ in weights]
    now = began
    for who, (kind, took, in_flight, pause) in reports:
        load = loads[who % len(loads)]
        tell(load, kind, took, in_flight, now)
        now += pause
        compare(loads, weights)
        load.oldest = now - took
        weigh(loads, now, in_flight)
        assert all(isfinite(each.key) for each in loads)
        assert load.latency is None or 0.0 <= load.latency <= 1e8
        assert load.level >= 0.0
        assert 1.0 <= load.pause <= LONGEST
        chosen = least(loads)
        assert chosen.key == min(each.key for each in loads)
        before = load.key
        load.weigh(in_flight + 1, now)
        assert load.key >= before


@settings(max_examples=150, deadline=None, derandomize=True)
@given(weight=st.sampled_from([0.1, 1.0, 7.0]), calls=st.lists(st.integers(0, 2), max_size=60))
def test_nobody_is_ever_further_ahead_than_the_others_can_make_up_for(weight, calls):
    peers = Peers()
    loads = [Load(peers, 0.0) for _ in range(3)]
    compare(loads, [1.0, 1.0, weight])
    for who in calls:
        loads[who].chosen(1, 0.0)

        ahead = [load.spent - peers.rounds - 1.0 / load.unit for load in loads]
        assert max(ahead) <= peers.lag + 1e-9


def test_the_cost_is_worked_out_from_latency_and_share():
    load = make(0.1)
    load.spent = 3.0
    load.weigh(0, 100.0)

    assert load.key == (0.1 + FLOOR) * exp(3.0 * STEP)
    assert load.oldest == inf
