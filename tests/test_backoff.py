"""Delays between repeated attempts."""

from __future__ import annotations

from random import Random

import pytest

from geventconnpool._backoff import exponential, spread
from tests.virtual import Dice


def test_delays_grow_by_the_factor_up_to_the_cap():
    delays = [exponential(failures, base=0.5, factor=3.0, cap=10.0) for failures in range(5)]

    assert delays == [0.5, 1.5, 4.5, 10.0, 10.0]


def test_a_factor_of_one_makes_all_delays_equal():
    assert [exponential(failures, base=2.0, factor=1.0, cap=10.0) for failures in (0, 1, 5000)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("failures", [1023, 1024, 1500, 10**6])
def test_no_number_of_failures_overflows(failures):
    assert exponential(failures, base=0.1, factor=2.0, cap=30.0) == 30.0


@pytest.mark.parametrize(("dice", "seconds"), [(0.0, 5.0), (0.5, 7.5), (1.0, 10.0)])
def test_a_delay_is_spread_evenly_between_its_bounds(dice, seconds):
    assert spread(10.0, 0.5, 1.0, Dice(dice)) == seconds


def test_clients_that_failed_together_part_ways():
    rng = Random(7)
    delays = [spread(10.0, 0.5, 1.0, rng) for _ in range(100)]

    assert len(set(delays)) == 100
    assert 5.0 <= min(delays) < 5.5
    assert 9.5 < max(delays) <= 10.0
