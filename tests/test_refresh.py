"""What a look-up does to the set of endpoints, and when the next one is due, in virtual time."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from geventconnpool.cluster import Endpoint
from geventconnpool.cluster._endpoints import NoRecords, Resolution
from geventconnpool.cluster._refresh import Bounds, Refresh

A, B, C, D = (Endpoint(f"{name}.test", 1) for name in "abcd")
TIMEOUT = OSError("no answer")


class Dice(Random):
    """Always throws the same: 0.0 for the low end of a range, 0.5 for its middle."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.fixture
def refresh():
    return make()


def make(dice=0.0, **bounds):
    return Refresh(Bounds(**bounds), Dice(dice))


def answer(refresh, now, *endpoints, ttl=60.0):
    refresh.started(now)
    refresh.answered(Resolution(endpoints or (A, B), ttl), now)


def answer_none(refresh, now, ttl=60.0):
    refresh.started(now)
    refresh.answered(Resolution((), ttl), now)


def fail(refresh, now, times=1):
    for _ in range(times):
        refresh.started(now)
        refresh.failed(TIMEOUT, now)


def deny(refresh, now, ttl=None):
    refresh.started(now)
    refresh.denied(NoRecords("no such name", ttl), now)


def deny_until_believed(refresh, now, ttl=None):
    while refresh.state != "empty":
        deny(refresh, now, ttl)
        now = refresh.due
    return refresh.since


# The first look-up


def test_the_first_look_up_is_due_at_once(refresh):
    assert refresh.due <= 0.0
    assert (refresh.state, refresh.since, refresh.generation, refresh.endpoints) == ("starting", None, 0, None)


def test_nothing_is_due_while_a_look_up_is_under_way(refresh):
    refresh.started(100.0)

    assert refresh.alarm == math.inf
    assert (refresh.state, refresh.since) == ("starting", 100.0)


def test_while_the_first_look_ups_fail_nothing_is_known(refresh):
    fail(refresh, 100.0)
    fail(refresh, 101.0)

    assert (refresh.state, refresh.since, refresh.endpoints) == ("starting", 100.0, None)
    assert refresh.last_error is TIMEOUT


def test_that_there_is_no_such_name_at_the_start_is_believed_as_late_as_later_on(refresh):
    deny(refresh, 100.0)
    assert (refresh.state, refresh.endpoints, refresh.due) == ("starting", None, 105.0)

    since = deny_until_believed(refresh, refresh.due)

    assert (since, refresh.endpoints) == (130.0, ())


# An answer


@pytest.mark.parametrize(("ttl", "due"), [(60.0, 160.0), (0.0, 105.0), (1.0, 105.0), (86400.0, 400.0)])
def test_an_answer_holds_for_its_ttl_within_bounds(refresh, ttl, due):
    answer(refresh, 100.0, ttl=ttl)

    assert refresh.due == due
    assert (refresh.state, refresh.since, refresh.generation, refresh.ttl) == ("fresh", 100.0, 1, ttl)
    assert refresh.endpoints == (A, B)


@pytest.mark.parametrize(("dice", "due"), [(0.5, 163.0), (1.0, 166.0)])
def test_the_next_look_up_is_up_to_a_tenth_later_never_earlier(dice, due):
    refresh = make(dice)

    answer(refresh, 100.0, ttl=60.0)

    assert refresh.due == pytest.approx(due)


def test_look_ups_of_pools_that_started_together_part_ways():
    rng = Random(1)
    all_due = []
    for _ in range(200):
        refresh = Refresh(Bounds(), rng)
        answer(refresh, 100.0, ttl=50.0)
        all_due.append(refresh.due)

    assert 150.0 <= min(all_due) < 150.2
    assert 154.8 < max(all_due) <= 155.0


def test_an_answer_without_a_ttl_holds_for_ever_whatever_is_asked(refresh):
    answer(refresh, 100.0, ttl=None)
    refresh.ask(1e9)

    assert refresh.alarm == math.inf


def test_what_was_told_can_be_read():
    refresh = make()
    refresh.started(1.0)

    refresh.answered(Resolution((A,), 60.0, outcome="1 SRV records from 127.0.0.1:53", records=1), 1.5)

    assert (refresh.outcome, refresh.records, refresh.ttl) == ("1 SRV records from 127.0.0.1:53", 1, 60.0)


def test_the_outcome_of_a_resolver_that_says_nothing_is_the_number_of_endpoints(refresh):
    answer(refresh, 1.0)

    assert refresh.outcome == "2 endpoints"


# An answer that loses more than half


@pytest.mark.parametrize(
    ("known", "named", "doubtful"),
    [
        ((A, B, C), (A,), True),
        ((A, B, C), (A, B), False),
        ((A, B, C, D), (A, B), False),
        ((A, B, C, D), (A,), True),
        ((A, B, C), (D,), True),
        ((A, B, C, D), (A, B, Endpoint("e.test", 1)), False),
        ((A, B), (A,), False),
        ((A, B), (C,), False),
        ((A, B, C), (), False),  # "." is decided, and believed at once
    ],
)
def test_an_answer_that_loses_more_than_half_of_three_or_more_is_doubtful(refresh, known, named, doubtful):
    answer(refresh, 100.0, *known)

    assert refresh.is_doubtful(Resolution(named)) is doubtful


def test_the_first_answer_is_not_doubtful(refresh):
    assert not refresh.is_doubtful(Resolution((A,)))


# Decidedly not available


def test_a_service_that_is_not_available_is_emptied_at_once(refresh):
    answer(refresh, 100.0)
    answer_none(refresh, 160.0, ttl=7.0)

    assert (refresh.state, refresh.since, refresh.endpoints, refresh.due) == ("unavailable", 160.0, (), 167.0)
    assert refresh.last_error is None


def test_a_service_that_is_not_available_stays_so_while_dns_fails(refresh):
    answer_none(refresh, 100.0)
    fail(refresh, 160.0)

    assert (refresh.state, refresh.since, refresh.endpoints, refresh.last_error) == ("unavailable", 100.0, (), TIMEOUT)


def test_it_is_empty_at_once_when_its_name_goes_as_there_is_nothing_to_lose(refresh):
    answer_none(refresh, 100.0)
    deny(refresh, 160.0)

    assert (refresh.state, refresh.since) == ("empty", 160.0)


# No such name, no data


def test_what_is_denied_is_held_for_half_a_minute_to_the_second(refresh):
    answer(refresh, 100.0)
    times = []
    now = 160.0
    while refresh.state != "empty":
        deny(refresh, now)
        times.append((now, refresh.state, refresh.endpoints))
        now = refresh.due

    held = [(160.0 + 5 * n, "held", (A, B)) for n in range(6)]
    assert times == [*held, (190.0, "empty", ())]
    assert refresh.since == 190.0


def test_the_held_state_says_since_when_and_why(refresh):
    answer(refresh, 100.0)
    deny(refresh, 160.0)
    deny(refresh, 165.0)

    assert (refresh.state, refresh.since, refresh.outcome) == ("held", 160.0, "no such name")
    assert isinstance(refresh.last_error, NoRecords)


def test_time_alone_is_not_enough_it_takes_three_look_ups(refresh):
    answer(refresh, 100.0)
    deny(refresh, 160.0)
    deny(refresh, 200.0)
    assert refresh.state == "held"

    deny(refresh, 205.0)

    assert (refresh.state, refresh.endpoints) == ("empty", ())


def test_three_look_ups_alone_are_not_enough_it_takes_the_time(refresh):
    answer(refresh, 100.0)
    for now in (160.0, 161.0, 162.0, 189.9):
        deny(refresh, now)

    assert (refresh.state, refresh.endpoints) == ("held", (A, B))


@pytest.mark.parametrize(
    ("bounds", "pause"),
    [
        ({}, 5.0),
        ({"empty_hold": 6.0, "min_refresh": 1.0}, 2.0),
        ({"empty_hold": 6.0}, 5.0),
        ({"empty_hold": 600.0, "min_refresh": 1.0}, 5.0),
        ({"empty_hold": 30.0, "min_refresh": 7.0}, 7.0),
        ({"empty_hold": None, "min_refresh": 1.0}, 5.0),
    ],
)
def test_while_it_is_held_dns_is_asked_often_enough_to_believe_in_time(bounds, pause):
    refresh = make(**bounds)
    answer(refresh, 100.0)
    deny(refresh, 160.0)

    assert refresh.due == 160.0 + pause


def test_with_no_hold_a_denial_is_believed_at_once():
    refresh = make(empty_hold=0)
    answer(refresh, 100.0)
    deny(refresh, 160.0)

    assert (refresh.state, refresh.endpoints) == ("empty", ())


def test_with_a_hold_without_end_it_never_is():
    refresh = make(empty_hold=None)
    answer(refresh, 100.0)
    for n in range(10_000):
        deny(refresh, 160.0 + 5 * n)

    assert (refresh.state, refresh.since, refresh.endpoints) == ("held", 160.0, (A, B))


def test_an_answer_in_between_ends_the_hold(refresh):
    answer(refresh, 100.0)
    for now in (160.0, 165.0, 185.0):
        deny(refresh, now)
    answer(refresh, 186.0)
    deny(refresh, 190.0)

    assert (refresh.state, refresh.since, refresh.endpoints) == ("held", 190.0, (A, B))


def test_a_failure_in_between_begins_the_hold_anew(refresh):
    answer(refresh, 100.0)
    for now in (160.0, 165.0, 185.0):
        deny(refresh, now)
    fail(refresh, 190.0)
    assert (refresh.state, refresh.endpoints) == ("stale", (A, B))

    since = deny_until_believed(refresh, 191.0)

    assert since == 221.0


@pytest.mark.parametrize(("ttl", "pause"), [(7.0, 7.0), (0.0, 5.0), (None, 5.0), (3600.0, 27.0), (28.0, 27.0)])
def test_what_is_believed_is_asked_for_again_after_the_negative_ttl_at_most_half_a_minute(refresh, ttl, pause):
    answer(refresh, 100.0)
    since = deny_until_believed(refresh, 160.0, ttl)

    assert refresh.due == since + pause


def test_jitter_never_makes_that_longer_than_half_a_minute():
    refresh = make(1.0, empty_hold=0)
    deny(refresh, 100.0, ttl=3600.0)

    assert refresh.due == 130.0


def test_min_refresh_comes_before_half_a_minute():
    refresh = make(empty_hold=0, min_refresh=60.0)
    deny(refresh, 100.0, ttl=3600.0)

    assert refresh.due == 160.0


def test_an_empty_service_is_back_with_the_first_answer(refresh):
    deny_until_believed(refresh, 100.0)
    answer(refresh, 200.0)

    assert (refresh.state, refresh.since, refresh.endpoints) == ("fresh", 200.0, (A, B))


def test_an_empty_service_stays_so_while_dns_fails_and_while_it_is_denied(refresh):
    since = deny_until_believed(refresh, 100.0)
    fail(refresh, 200.0)
    deny(refresh, 210.0)

    assert (refresh.state, refresh.since, refresh.endpoints) == ("empty", since, ())


# Failures


def test_failures_back_off_to_half_a_minute(refresh):
    delays = []
    for _ in range(10):
        fail(refresh, 0.0)
        delays.append(round(refresh.due / 0.8, 3))

    assert delays == [1.0, 1.6, 2.56, 4.096, 6.554, 10.486, 16.777, 26.844, 30.0, 30.0]


@pytest.mark.parametrize(("dice", "delay"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
def test_failures_are_spread_by_a_fifth(dice, delay):
    refresh = make(dice)
    fail(refresh, 0.0)

    assert refresh.due == pytest.approx(delay)


def test_thousands_of_failures_are_no_problem(refresh):
    answer(refresh, 0.0)
    fail(refresh, 100.0, times=5000)

    assert refresh.due == 124.0
    assert (refresh.state, refresh.since, refresh.endpoints) == ("stale", 100.0, (A, B))


@pytest.mark.parametrize("end", [answer, answer_none, deny])
def test_whatever_dns_tells_ends_the_back_off(refresh, end):
    fail(refresh, 0.0, times=9)
    end(refresh, 10.0)
    fail(refresh, 100.0)

    assert refresh.due == 100.8


def test_a_failure_keeps_the_set_for_ever_and_says_why(refresh):
    answer(refresh, 0.0)
    fail(refresh, 100.0)
    fail(refresh, 1e9)

    assert (refresh.state, refresh.since, refresh.endpoints) == ("stale", 100.0, (A, B))
    assert (refresh.last_error, refresh.outcome, refresh.gives_up_at) == (TIMEOUT, "no answer", math.inf)


def test_an_error_without_words_is_told_by_its_class(refresh):
    refresh.started(1.0)
    refresh.failed(KeyError(), 1.0)

    assert refresh.outcome == "KeyError"


def test_an_answer_ends_the_stale_state(refresh):
    answer(refresh, 0.0)
    fail(refresh, 100.0)
    answer(refresh, 101.0)

    assert (refresh.state, refresh.since, refresh.last_error, refresh.generation) == ("fresh", 101.0, None, 2)


# Staleness that has an end


def test_a_stale_set_is_kept_for_max_stale_to_the_second():
    refresh = make(max_stale=50.0)
    answer(refresh, 0.0)
    fail(refresh, 100.0)
    refresh.tick(149.9)
    assert (refresh.state, refresh.gives_up_at, refresh.alarm) == ("stale", 150.0, 100.8)

    refresh.tick(150.0)

    assert (refresh.state, refresh.since, refresh.endpoints, refresh.gives_up_at) == ("empty", 150.0, (), math.inf)


def test_a_failure_that_comes_late_gives_up_itself():
    refresh = make(max_stale=50.0)
    answer(refresh, 0.0)
    fail(refresh, 100.0)
    fail(refresh, 160.0)

    assert (refresh.state, refresh.since, refresh.endpoints) == ("empty", 160.0, ())


def test_nothing_is_given_up_while_a_look_up_is_under_way_or_has_succeeded():
    refresh = make(max_stale=50.0)
    answer(refresh, 0.0)
    fail(refresh, 100.0)
    answer(refresh, 120.0)
    refresh.tick(1000.0)

    assert refresh.endpoints == (A, B)


def test_denials_in_between_do_not_prolong_it():
    refresh = make(max_stale=50.0)
    answer(refresh, 0.0)
    fail(refresh, 100.0)
    deny(refresh, 120.0)
    assert refresh.gives_up_at == math.inf  # that is for the hold to decide

    fail(refresh, 130.0)

    assert refresh.gives_up_at == 150.0


def test_with_no_staleness_a_failure_empties_at_once():
    refresh = make(max_stale=0)
    answer(refresh, 0.0)
    fail(refresh, 100.0)

    assert (refresh.state, refresh.endpoints) == ("empty", ())


# Asked soon


def test_an_ask_brings_the_next_look_up_forward_but_not_within_min_refresh_of_the_last(refresh):
    answer(refresh, 100.0)
    refresh.ask(101.0)
    assert refresh.due == 105.0

    refresh.ask(103.0)

    assert refresh.due == 105.0


def test_an_ask_later_than_that_is_heard_at_once(refresh):
    answer(refresh, 100.0)
    refresh.ask(130.0)

    assert refresh.due == 130.0


def test_an_ask_never_delays(refresh):
    fail(refresh, 100.0)
    refresh.ask(100.1)

    assert refresh.due == 100.8


def test_asks_while_a_look_up_is_under_way_are_answered_by_it(refresh):
    refresh.started(100.0)
    refresh.ask(101.0)
    assert refresh.due == math.inf

    refresh.answered(Resolution((A,), 60.0), 102.0)

    assert refresh.due == 162.0


# Misuse


def test_look_ups_do_not_overlap(refresh):
    refresh.started(0.0)

    with pytest.raises(RuntimeError, match="under way already"):
        refresh.started(1.0)


@pytest.mark.parametrize(
    "end",
    [
        lambda refresh: refresh.answered(Resolution((A,)), 0.0),
        lambda refresh: refresh.denied(NoRecords("gone"), 0.0),
        lambda refresh: refresh.failed(TIMEOUT, 0.0),
    ],
)
def test_only_a_look_up_that_has_begun_can_end(refresh, end):
    with pytest.raises(RuntimeError, match="no look-up is under way"):
        end(refresh)

    assert (refresh.state, refresh.endpoints, refresh.due) == ("starting", None, -math.inf)


# Any history


class History(RuleBasedStateMachine):
    """Everything that may be told, in any order, at any time, with what must hold whatever came before."""

    def __init__(self):
        super().__init__()
        self.bounds = Bounds(min_refresh=5.0, max_refresh=300.0, empty_hold=30.0, max_stale=90.0)
        self.refresh = Refresh(self.bounds, Random(7))
        self.now = 0.0
        self.log = []  # (what, when)

    def _note(self, what):
        self.log.append((what, self.now))

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 4.9, 5.0, 12.0, 31.0, 100.0]))
    def wait(self, seconds):
        self.now += seconds
        self.refresh.tick(self.now)

    @rule()
    def wait_until_due(self):
        if math.isfinite(self.refresh.alarm):
            self.now = max(self.now, self.refresh.alarm)
            self.refresh.tick(self.now)

    @rule()
    def ask(self):
        self.refresh.ask(self.now)

    @rule(endpoints=st.sets(st.sampled_from([A, B, C, D]), min_size=1), ttl=st.sampled_from([0.0, 20.0, 1e6]))
    def answered(self, endpoints, ttl):
        self.refresh.started(self.now)
        self.refresh.answered(Resolution(tuple(endpoints), ttl), self.now)
        self._note("answer")
        assert set(self.refresh.endpoints) == endpoints
        usual = max(5.0, min(ttl, 300.0))
        assert usual - 1e-6 <= self.refresh.due - self.now <= 1.1 * usual + 1e-6

    @rule()
    def not_available(self):
        self.refresh.started(self.now)
        self.refresh.answered(Resolution((), 20.0), self.now)
        self._note("answer")
        assert (self.refresh.endpoints, self.refresh.state) == ((), "unavailable")

    @rule(ttl=st.sampled_from([None, 0.0, 20.0, 1e6]))
    def denied(self, ttl):
        before = self.refresh.endpoints
        self.refresh.started(self.now)
        self.refresh.denied(NoRecords("no", ttl), self.now)
        self._note("denial")
        series = []
        for what, when in reversed(self.log):
            if what != "denial":
                break
            series.append(when)
        believed = before == () or (len(series) >= 3 and self.now - series[-1] >= 30.0)
        assert self.refresh.endpoints == (() if believed else before)
        assert 5.0 - 1e-6 <= self.refresh.due - self.now <= 30.0 + 1e-6

    @rule()
    def failed(self):
        before = self.refresh.endpoints
        self.refresh.started(self.now)
        self.refresh.failed(TIMEOUT, self.now)
        self._note("failure")
        unanswered = [when for what, when in self.log]
        for index in range(len(self.log) - 1, -1, -1):
            if self.log[index][0] == "answer":
                unanswered = [when for _, when in self.log[index + 1 :]]
                break
        too_old = bool(before) and self.now - unanswered[0] >= 90.0
        assert self.refresh.endpoints == (() if too_old else before)
        assert 0.8 - 1e-6 <= self.refresh.due - self.now <= 36.0 + 1e-6

    @precondition(lambda self: self.log)
    @invariant()
    def what_can_be_read_is_consistent(self):
        refresh = self.refresh
        assert (refresh.endpoints is None) == (refresh.state == "starting")
        assert (refresh.endpoints == ()) == (refresh.state in ("empty", "unavailable"))
        assert (refresh.last_error is None) == (self.log[-1][0] == "answer")
        assert refresh.since is not None
        assert refresh.since <= self.now
        assert refresh.gives_up_at == math.inf or refresh.state == "stale"
        assert refresh.due < math.inf  # somebody always looks again


TestHistory = History.TestCase
