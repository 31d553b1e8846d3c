"""How many retries a budget allows, in virtual time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import accumulate
from threading import Thread
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from geventconnpool import RetryBudget
from tests.benchmarks.budget import load, retry_load


def calls(budget: RetryBudget, count: int, now: float) -> None:
    for _ in range(count):
        budget.deposit(now)


def retries(budget: RetryBudget, now: float, *, at_most: int = 10_000) -> int:
    """Take what there is, and return how many retries that were."""
    return next(count for count in range(at_most + 1) if count == at_most or not budget.withdraw(now))


# -- what calls earn, and time -----------------------------------------------------------------------------------------


def test_each_call_earns_its_ratio_of_a_retry():
    budget = RetryBudget(ratio=0.1, min_per_second=0)
    earned = []
    for _ in range(5):
        calls(budget, 10, now=100)
        earned.append(retries(budget, now=100))

    assert earned == [1, 1, 1, 1, 1]


def test_the_parts_of_a_retry_that_calls_earn_add_up():
    budget = RetryBudget(ratio=0.25, min_per_second=0)
    allowed = []
    for now in range(8):
        budget.deposit(now)
        allowed.append(budget.withdraw(now))

    assert allowed == [False, False, False, True, False, False, False, True]


def test_a_ratio_above_1_pays_several_retries_of_each_call():
    budget = RetryBudget(ratio=3, min_per_second=0)
    calls(budget, 1, now=0)

    assert retries(budget, now=0) == 3


def test_each_second_earns_min_per_second():
    budget = RetryBudget(ratio=0, min_per_second=4)
    calls(budget, 1, now=0)
    retries(budget, now=0)

    assert [retries(budget, now) for now in (1.0, 2.0, 2.25, 2.375, 2.5, 4.5)] == [0, 4, 1, 0, 1, 8]


def test_the_share_of_the_first_second_is_there_at_the_first_call_and_no_more_before_that_second_is_over():
    budget = RetryBudget(ratio=0, min_per_second=10)
    calls(budget, 1, now=1000)

    assert [retries(budget, now) for now in (1000, 1000.9, 1001, 1001.1)] == [10, 0, 0, 1]


def test_the_first_second_begins_with_the_first_call_not_with_the_budget():
    budget = RetryBudget()

    assert budget.balance(5000) == 10
    calls(budget, 1, now=5000)
    assert budget.balance(5000) == 10


def test_with_neither_ratio_nor_min_per_second_nothing_is_retried():
    budget = RetryBudget(ratio=0, min_per_second=0)
    calls(budget, 1000, now=0)

    assert retries(budget, now=1e6) == 0


def test_a_refusal_takes_nothing():
    budget = RetryBudget(ratio=0.5, min_per_second=0)
    budget.deposit(0)
    refused = [budget.withdraw(0) for _ in range(3)]
    budget.deposit(0)

    assert refused == [False] * 3
    assert budget.withdraw(0)


def test_a_clock_reading_that_comes_late_from_another_thread_earns_nothing_twice():
    budget = RetryBudget(ratio=0, min_per_second=10)
    calls(budget, 1, now=0)
    retries(budget, now=2)

    assert [retries(budget, now) for now in (1.5, 2, 1.5, 2, 2.1)] == [0, 0, 0, 0, 1]


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_per_second", "reserve"), [(10, 100), (1.5, 15), (1, 10), (0.5, 10), (0, 10), (100, 1000)]
)
def test_what_is_not_spent_is_kept_for_ten_seconds_of_min_per_second_at_least_ten_retries(min_per_second, reserve):
    budget = RetryBudget(ratio=1, min_per_second=min_per_second)
    for now in range(100):
        calls(budget, 1000, now)

    assert budget.reserve == reserve
    assert budget.balance(1e6) == reserve
    assert retries(budget, now=1e6) == reserve


def test_a_program_with_one_call_a_second_retries_every_failure_three_times_at_once():
    budget = RetryBudget()
    allowed = []
    for now in range(60):
        budget.deposit(now)
        allowed.append(retries(budget, now + 0.01, at_most=3))

    assert allowed == [3] * 60


def test_the_calls_that_a_dead_server_fails_at_once_are_all_retried():
    budget = RetryBudget()
    for tick in range(12_000):
        budget.deposit(tick / 200)

    assert retries(budget, now=60, at_most=100) == 100


# -- the bounds --------------------------------------------------------------------------------------------------------

# Floats that are exact however they are added, so that the bounds can be, too.
gaps = st.sampled_from([0.0, 0.0, 0.125, 0.5, 1.0, 3.0, 60.0, 86_400.0])
steps = st.lists(st.tuples(gaps, st.integers(1, 300), st.integers(0, 300)), min_size=1, max_size=40)
budgets = {
    "ratio": st.sampled_from([0, 0.125, 0.25, 1, 2.5]),
    "min_per_second": st.sampled_from([0, 0.5, 1, 8, 10, 200]),
}


def run(budget: RetryBudget, pattern: Any) -> Iterator[tuple[float, int, int]]:
    """Yield (time, calls, retries) per step: so many calls begin, and so many of what has failed asks for a retry."""
    now = 0.0
    for gap, begun, failed in pattern:
        now += gap
        calls(budget, begun, now)
        yield now, begun, retries(budget, now, at_most=failed)


@given(pattern=steps, **budgets)
@example(pattern=[(0.0, 0, 300)], ratio=0.25, min_per_second=10)  # before any call
@example(pattern=[(0.0, 1, 300), (0.5, 300, 300), (0.5, 1, 300)], ratio=0.25, min_per_second=10)  # the first second
@example(pattern=[(0.0, 1, 300), (86_400.0, 1, 300)], ratio=0.25, min_per_second=10)  # a pause
@example(pattern=[(0.0, 300, 0), (0.0, 300, 300)] * 20, ratio=0.25, min_per_second=10)  # a burst
def test_from_the_first_call_on_no_more_is_retried_than_calls_and_seconds_earn(pattern, ratio, min_per_second):
    history = list(run(RetryBudget(ratio, min_per_second), pattern))
    begin = history[0][0]
    begun = accumulate(count for _, count, _ in history)
    retried = accumulate(count for _, _, count in history)

    for (now, _, _), all_calls, all_retries in zip(history, begun, retried, strict=True):
        assert all_retries <= ratio * all_calls + min_per_second * max(1.0, now - begin)


@given(pattern=steps, **budgets)
def test_in_any_stretch_of_time_no_more_than_that_and_the_reserve_is_retried(pattern, ratio, min_per_second):
    budget = RetryBudget(ratio, min_per_second)
    history = list(run(budget, pattern))

    for first, (begin, _, _) in enumerate(history):
        all_calls = all_retries = 0
        for now, begun, retried in history[first:]:
            all_calls, all_retries = all_calls + begun, all_retries + retried
            assert all_retries <= ratio * all_calls + min_per_second * (now - begin) + budget.reserve


@given(pattern=steps, **budgets)
def test_a_retry_is_refused_only_where_it_would_be_one_too_many_for_a_bound(pattern, ratio, min_per_second):
    budget = RetryBudget(ratio, min_per_second)
    first = last = pattern[0][0]
    left = min_per_second  # the least that any stretch of time which ends now leaves of its bound
    for (now, begun, retried), (_, _, asked) in zip(run(budget, pattern), pattern, strict=True):
        left = min(budget.reserve, left + min_per_second * (max(now, first + 1) - max(last, first + 1)))
        left = min(budget.reserve, left + ratio * begun)
        last = now

        assert retried == min(asked, int(left))
        left -= retried
        assert budget.balance(now) == int(left)


@pytest.mark.parametrize("seed", range(3))
def test_when_all_calls_fail_the_load_is_at_most_what_the_budget_says(seed):
    assert 1.24 < retry_load(seed) <= 1.25
    assert 3.9 < load(seed, budget=None) <= 4.0


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty_threads():
    """CPython changes threads as often as it may."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_native_threads_neither_lose_nor_invent_retries(hasty_threads):
    budget = RetryBudget(ratio=1, min_per_second=1000)
    paid = []

    def use():
        for _ in range(10_000):
            budget.deposit(0.0)
            paid.append(budget.withdraw(0.0))

    threads = [Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert paid == [True] * 40_000
    assert retries(budget, now=0.0) == 1000


# -- what can be given, and seen ---------------------------------------------------------------------------------------

BAD = [
    ("ratio", -0.1, ValueError),
    ("ratio", 10.5, ValueError),
    ("ratio", float("nan"), ValueError),
    ("ratio", "0.2", TypeError),
    ("ratio", None, TypeError),
    ("ratio", True, TypeError),
    ("min_per_second", -1, ValueError),
    ("min_per_second", float("inf"), ValueError),
    ("min_per_second", [], TypeError),
]


@pytest.mark.parametrize(("option", "value", "kind"), BAD)
def test_a_bad_option_is_refused_with_its_name_and_value(option, value, kind):
    given: dict[str, Any] = {option: value}
    with pytest.raises(kind) as caught:
        RetryBudget(**given)

    assert option in str(caught.value)
    assert repr(value) in str(caught.value)


def test_it_shows_its_options():
    assert repr(RetryBudget()) == "RetryBudget(ratio=0.2, min_per_second=10)"
    assert repr(RetryBudget(1, 0.5)) == "RetryBudget(ratio=1, min_per_second=0.5)"


def test_the_balance_is_how_many_retries_could_begin_now_and_looking_takes_nothing():
    budget = RetryBudget(ratio=0.25, min_per_second=10)
    calls(budget, 6, now=0)

    assert [budget.balance(now) for now in (0, 1, 2, 2, 1000)] == [11, 11, 21, 21, 100]
    assert retries(budget, now=2) == 21
    assert budget.balance(2) == 0
