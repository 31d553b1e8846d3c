"""When a service is looked up again, in virtual time."""

from __future__ import annotations

import math
from random import Random

import pytest

from geventconnpool.cluster._refresh import Refresh


class Dice(Random):
    """Always throws the same: 0.0 for the low end of a range, 0.5 for its middle."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.fixture
def refresh():
    return Refresh(min_refresh=5.0, max_refresh=300.0, rng=Dice())


def answer(refresh, now, ttl=60.0, empty=False):
    refresh.started(now)
    refresh.succeeded(ttl, empty, now)


def fail(refresh, now, times=1):
    for _ in range(times):
        refresh.started(now)
        refresh.failed(OSError("no answer"), now)


def test_the_first_look_up_is_due_at_once(refresh):
    assert refresh.due <= 0.0
    assert (refresh.state, refresh.since, refresh.generation) == ("starting", None, 0)


def test_nothing_is_due_while_a_look_up_is_under_way(refresh):
    refresh.started(100.0)

    assert refresh.due == math.inf
    assert (refresh.state, refresh.since) == ("starting", 100.0)


@pytest.mark.parametrize(("ttl", "due"), [(60.0, 160.0), (0.0, 105.0), (1.0, 105.0), (86400.0, 400.0)])
def test_an_answer_holds_for_its_ttl_within_bounds(refresh, ttl, due):
    answer(refresh, 100.0, ttl)

    assert refresh.due == due
    assert (refresh.state, refresh.since, refresh.generation) == ("fresh", 100.0, 1)


def test_the_next_look_up_is_up_to_a_tenth_later_never_earlier():
    refresh = Refresh(5.0, 300.0, Dice(0.5))

    answer(refresh, 100.0, ttl=60.0)

    assert refresh.due == pytest.approx(163.0)


def test_an_answer_without_a_ttl_holds_for_ever_whatever_is_asked(refresh):
    answer(refresh, 100.0, ttl=None)
    refresh.ask(1e9)

    assert refresh.due == math.inf


def test_failures_back_off_to_half_a_minute(refresh):
    delays = []
    for _ in range(10):
        fail(refresh, 0.0)
        delays.append(round(refresh.due / 0.8, 3))

    assert delays == [1.0, 1.6, 2.56, 4.096, 6.554, 10.486, 16.777, 26.844, 30.0, 30.0]


def test_failing_clients_part_ways():
    earliest, latest = Refresh(5.0, 300.0, Dice(0.0)), Refresh(5.0, 300.0, Dice(1.0))

    fail(earliest, 100.0)
    fail(latest, 100.0)

    assert earliest.due == pytest.approx(100.8)
    assert latest.due == pytest.approx(101.2)


def test_thousands_of_failures_do_no_harm(refresh):
    fail(refresh, 0.0, times=5000)

    assert refresh.due == pytest.approx(24.0)


def test_a_success_forgets_the_failures(refresh):
    fail(refresh, 0.0, times=50)
    answer(refresh, 100.0)
    fail(refresh, 200.0)

    assert refresh.due == pytest.approx(200.8)


def test_a_failure_before_the_first_answer_leaves_it_starting(refresh):
    fail(refresh, 100.0)
    fail(refresh, 101.0)

    assert (refresh.state, refresh.since) == ("starting", 100.0)
    assert str(refresh.last_error) == "no answer"


def test_the_last_answer_is_stale_from_the_first_failure_to_the_next_answer(refresh):
    answer(refresh, 100.0)
    fail(refresh, 160.0)
    fail(refresh, 161.0)
    assert (refresh.state, refresh.since, refresh.generation) == ("stale", 160.0, 1)

    answer(refresh, 163.0)
    assert (refresh.state, refresh.since, refresh.generation) == ("fresh", 163.0, 2)
    assert refresh.last_error is None


def test_an_empty_answer_stays_empty_while_dns_fails(refresh):
    answer(refresh, 100.0, empty=True)
    fail(refresh, 160.0)

    assert (refresh.state, refresh.since) == ("empty", 100.0)
    assert str(refresh.last_error) == "no answer"


def test_an_answer_like_the_last_does_not_change_since_when(refresh):
    answer(refresh, 100.0)
    answer(refresh, 160.0)

    assert (refresh.state, refresh.since) == ("fresh", 100.0)


def test_a_question_long_after_the_last_start_is_due_at_once(refresh):
    answer(refresh, 100.0)

    refresh.ask(130.0)

    assert refresh.due == 130.0


def test_questions_are_coalesced_to_one_per_min_refresh(refresh):
    answer(refresh, 100.0)

    refresh.ask(101.0)
    refresh.ask(102.0)

    assert refresh.due == 105.0


def test_a_question_never_delays_what_is_due_sooner(refresh):
    fail(refresh, 100.0)

    refresh.ask(100.1)

    assert refresh.due == pytest.approx(100.8)


def test_a_question_during_a_look_up_waits_for_its_answer(refresh):
    refresh.started(100.0)
    refresh.ask(100.1)

    assert refresh.due == math.inf


def test_moves_that_are_not_in_the_drawing_raise_and_change_nothing(refresh):
    with pytest.raises(RuntimeError, match="no look-up is under way"):
        refresh.succeeded(60.0, False, 100.0)
    with pytest.raises(RuntimeError, match="no look-up is under way"):
        refresh.failed(OSError(), 100.0)
    refresh.started(100.0)
    with pytest.raises(RuntimeError, match="a look-up is under way already"):
        refresh.started(101.0)

    assert (refresh.state, refresh.since, refresh.generation, refresh.last_error) == ("starting", 100.0, 0, None)
