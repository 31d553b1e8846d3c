"""When an endpoint is an outlier, and for how long it is ejected."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from random import Random

import pytest

from geventconnpool.cluster import OutlierDetection
from tests.virtual import Dice


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


def test_the_policy_is_a_frozen_value():
    assert OutlierDetection() == OutlierDetection(5, 1.0, 60.0, 0.5, 50)
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
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name_and_value(parameter, value):
    with pytest.raises(TypeError, match=parameter) as refused:
        OutlierDetection(**{parameter: value})

    assert repr(value) in str(refused.value)


def test_a_longest_ejection_shorter_than_the_first_is_refused():
    with pytest.raises(ValueError, match=r"base_ejection_time.*max_ejection_time=5.0.*10.0"):
        OutlierDetection(base_ejection_time=10.0, max_ejection_time=5.0)


@pytest.mark.parametrize("option", ["failure_percentage", "interval", "success_rate"])
def test_an_unknown_option_is_refused(option):
    with pytest.raises(TypeError, match=option):
        OutlierDetection(**{option: 1})
