"""Which endpoint the next call goes to."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

import pytest

from geventconnpool.cluster._balancers import LeastLoaded, PeakEWMA, RoundRobin
from geventconnpool.cluster._load import Load, Peers
from tests.virtual import Dice

HARDLY_EVER = 0.01


@dataclass
class Candidate:
    endpoint: str
    weight: float = 1.0
    in_flight: int = 0
    latency: float | None = None


def candidates(*weights):
    return [Candidate(name, weight) for name, weight in zip("ABCDEFGH", weights, strict=False)]


def least_loaded():
    return LeastLoaded(Random(3))


def draw(balancer, several, times):
    """Choose many times, one call after the other, and return the order."""
    return [balancer.choose(several, 0.0).endpoint for _ in range(times)]


def shares(chosen):
    """Return the share of each in per cent."""
    return {name: 100 * count / len(chosen) for name, count in sorted(Counter(chosen).items())}


def under_load(balancer, several, times, concurrency):
    """Choose many times while so many calls are always in flight, each as long as any other."""
    running: deque[Candidate] = deque()
    chosen = []
    for _ in range(times):
        if len(running) >= concurrency:
            running.popleft().in_flight -= 1
        candidate = balancer.choose(several, 0.0)
        candidate.in_flight += 1
        running.append(candidate)
        chosen.append(candidate.endpoint)
    return chosen


BOTH = pytest.mark.parametrize("make", [least_loaded, RoundRobin])


IN_PROPORTION = pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 1), {"A": 50, "B": 50}),
        ((3, 1), {"A": 75, "B": 25}),
        ((1, 2, 5), {"A": 12.5, "B": 25, "C": 62.5}),
        ((60, 30, 10, 100), {"A": 30, "B": 15, "C": 5, "D": 50}),
        ((65535, 65535), {"A": 50, "B": 50}),
    ],
)


@BOTH
def test_a_single_candidate_is_chosen(make):
    (only,) = candidates(1)

    assert make().choose([only], 0.0) is only


@BOTH
@IN_PROPORTION
def test_calls_one_after_the_other_are_shared_in_proportion_to_the_weights(make, weights, expected):
    found = shares(draw(make(), candidates(*weights), 10_000))

    assert found == {name: pytest.approx(share, abs=2) for name, share in expected.items()}


@BOTH
def test_weight_0_is_chosen_hardly_ever_but_not_never(make):
    found = shares(draw(make(), candidates(1, 1, HARDLY_EVER), 10_000))

    assert 0 < found["C"] < 1


@BOTH
@pytest.mark.parametrize("concurrency", [2, 3, 10, 50])
def test_weight_0_is_chosen_hardly_ever_by_calls_at_the_same_time_too(make, concurrency):
    found = shares(under_load(make(), candidates(1, 1, HARDLY_EVER), 10_000, concurrency))

    assert found.get("C", 0) < 2


@BOTH
@pytest.mark.parametrize("concurrency", [1, 4, 8, 40])
def test_calls_at_the_same_time_are_shared_in_proportion_to_the_weights(make, concurrency):
    found = shares(under_load(make(), candidates(3, 1), 10_000, concurrency))

    assert found == {"A": pytest.approx(75, abs=2), "B": pytest.approx(25, abs=2)}


def test_the_least_loaded_for_its_weight_is_chosen():
    one, other = candidates(1, 4)
    one.in_flight, other.in_flight = 2, 4

    assert least_loaded().choose([one, other], 0.0) is other


def test_an_endpoint_that_hangs_gets_no_more_calls_than_the_others_have_in_flight():
    fast, hangs = candidates(1, 1)
    hangs.in_flight = 1
    chosen = draw(least_loaded(), [fast, hangs], 1000)

    assert set(chosen) == {"A"}


def test_equally_loaded_candidates_are_not_chosen_in_the_order_of_the_list():
    firsts = {LeastLoaded(Random(seed)).choose(candidates(1, 1, 1), 0.0).endpoint for seed in range(50)}

    assert firsts == {"A", "B", "C"}


def test_a_draw_at_the_very_end_of_the_weights_is_the_last_of_the_equally_loaded():
    balancer = LeastLoaded(Dice(1.0))

    assert balancer.choose(candidates(1.0, 2.0, 0.5), 0.0).endpoint == "C"


def test_round_robin_takes_one_after_the_other():
    chosen = draw(RoundRobin(), candidates(1, 1, 1), 9)

    assert "".join(chosen) == "ABCABCABC"


def test_round_robin_is_smooth():
    chosen = draw(RoundRobin(), candidates(5, 1, 1), 14)

    assert "".join(chosen) == "AABACAAAABACAA"


def test_round_robin_never_strays_from_its_share_by_more_than_one_call_each():
    several = candidates(7, 3, 2, 1)
    counts: Counter[str] = Counter()
    balancer = RoundRobin()
    for calls in range(1, 2000):
        counts[balancer.choose(several, 0.0).endpoint] += 1
        for candidate in several:
            assert abs(counts[candidate.endpoint] - calls * candidate.weight / 13) <= 1.0


def test_round_robin_goes_on_where_it_was_when_an_endpoint_comes_back():
    one, two, three = candidates(1, 1, 1)
    balancer = RoundRobin()
    without = draw(balancer, [one, two], 100)
    with_all = draw(balancer, [one, two, three], 300)

    assert shares(without) == {"A": 50, "B": 50}
    assert shares(with_all) == {name: pytest.approx(100 / 3, abs=2) for name in "ABC"}


def test_round_robin_forgets_endpoints_that_are_gone():
    balancer = RoundRobin()
    for number in range(10_000):
        balancer.choose([Candidate(f"{number}-{index}") for index in range(3)], 0.0)

    assert len(balancer._credit) < 5000


@pytest.mark.parametrize("idle", [5, 20, 60])
def test_round_robin_is_fair_in_a_large_cluster_of_which_few_are_idle(idle):
    everybody = [Candidate(str(number)) for number in range(200)]
    rng, balancer = Random(5), RoundRobin()
    got = Counter[str]()
    for _ in range(20_000):
        some = [everybody[number] for number in sorted(rng.sample(range(200), idle))]
        got[balancer.choose(some, 0.0).endpoint] += 1

    # Each was a candidate as often as any other, so each is to have 100 calls.
    assert max(got.values()) < 150
    assert min(got[candidate.endpoint] for candidate in everybody) > 50


def test_round_robin_is_not_thrown_by_one_that_is_hardly_ever_a_candidate():
    one, two, rare = candidates(1, 1, 1)
    rng, balancer = Random(5), RoundRobin()
    chosen = [
        balancer.choose([one, two, rare] if rng.random() < 0.05 else [one, two], 0.0).endpoint for _ in range(5000)
    ]

    assert 1 < shares(chosen)["C"] < 7
    assert shares(chosen)["A"] == pytest.approx(shares(chosen)["B"], abs=2)


# -- the least expected latency ----------------------------------------------------------------------------------------


class Measured:
    """A candidate that keeps account of its load, as the members of a cluster do."""

    def __init__(self, name, weight, peers):
        self.endpoint = name
        self.weight = weight
        self.in_flight = 0
        self.load = Load(peers, 0.0, self)

    @property
    def latency(self):
        return self.load.latency


class Service:
    """Endpoints that take so many seconds for a call each, whatever their load."""

    def __init__(self, weights, latencies):
        peers = Peers()
        self.took = dict(zip("ABCDEFGH", latencies, strict=False))
        self.candidates = [Measured(name, weight, peers) for name, weight in zip("ABCDEFGH", weights, strict=False)]
        self.now = 0.0
        self.balancer = PeakEWMA()
        self._running: list[tuple[float, int, Measured]] = []
        self._compare()

    def _compare(self):
        loads = [c.load for c in self.candidates]
        weights = [c.weight for c in self.candidates]
        loads[0].peers.measure(loads, weights, is_even=len(set(weights)) == 1)
        for c in self.candidates:
            c.load.measure(c.weight / c.load.peers.weight)
            c.load.weigh(c.in_flight, self.now)

    def calls(self, times, per_second):
        """Make calls at equal distances, and return where they went."""
        chosen = []
        for number in range(times):
            self.now += 1 / per_second
            while self._running and self._running[0][0] <= self.now:
                self._end(*heappop(self._running))
            self._compare()
            candidate = self.balancer.choose(self.candidates, self.now)
            candidate.in_flight += 1
            candidate.load.called(self.now)
            heappush(self._running, (self.now + self.took[candidate.endpoint], number, candidate))
            chosen.append(candidate.endpoint)
        return chosen

    def _end(self, when, number, candidate):
        candidate.in_flight -= 1
        candidate.load.answered(self.took[candidate.endpoint], candidate.in_flight, when)


# Calls one after the other, and a hundred at a time.
LOADS = pytest.mark.parametrize("per_second", [8, 1000])


@LOADS
@IN_PROPORTION
def test_endpoints_that_are_equally_quick_share_the_calls_in_proportion_to_their_weights(per_second, weights, expected):
    found = shares(Service(weights, [0.1] * 4).calls(2000, per_second))

    assert found == {name: pytest.approx(share, abs=2) for name, share in expected.items()}


@LOADS
def test_weight_0_is_hardly_ever_the_least_expected_latency_but_not_never(per_second):
    found = shares(Service((1, 1, HARDLY_EVER), [0.1] * 3).calls(2000, per_second))

    assert 0 < found["C"] < 2


@LOADS
def test_an_endpoint_that_is_a_tenth_slower_gets_less_and_one_that_is_twice_as_slow_hardly_anything(per_second):
    found = shares(Service((1, 1, 1), (0.1, 0.115, 0.2)).calls(2000, per_second))

    assert found["A"] > 49
    assert found["B"] < 40
    assert found["C"] < 5


@pytest.mark.parametrize("per_second", [8, 100])
def test_endpoints_that_were_slow_for_a_moment_have_their_shares_again_soon_even_if_most_of_them_were(per_second):
    service = Service((1, 1, 1), [0.001] * 3)
    service.calls(10 * per_second, per_second)
    service.took.update(A=0.5, B=0.5)
    service.calls(2 * per_second, per_second)
    service.took.update(A=0.001, B=0.001)
    service.calls(10 * per_second, per_second)

    assert shares(service.calls(300, per_second)) == {name: pytest.approx(100 / 3, abs=2) for name in "ABC"}


def test_equals_are_chosen_in_turn_beginning_with_the_first():
    chosen = Service((1, 1, 1), [0.1] * 3).calls(9, per_second=1)

    assert "".join(chosen) == "ABCABCABC"


def test_the_same_calls_go_to_the_same_endpoints_every_time():
    one, other = (Service((1, 2, 3), (0.1, 0.12, 0.15)).calls(500, per_second=40) for _ in range(2))

    assert one == other


def test_an_endpoint_that_fails_at_once_is_not_the_quickest():
    service = Service((1, 1), (0.1, 0.1))
    service.calls(10, per_second=5)
    service.candidates[0].load.failed(service.now, 60.0)

    assert set(service.calls(8, per_second=5)) == {"B"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Candidate("A", latency=0.2), Candidate("B", latency=0.1)),
        (Candidate("A", in_flight=1), Candidate("B", in_flight=0)),
        (Candidate("A", weight=1.0, in_flight=1), Candidate("B", weight=4.0, in_flight=3)),
        (Candidate("A", latency=0.1, in_flight=3), Candidate("B", latency=0.19, in_flight=1)),
        (Candidate("A", latency=0.1), Candidate("B", latency=None)),
    ],
)
def test_of_candidates_without_an_account_the_one_with_the_least_latency_for_its_weight_and_load_is_chosen(
    first, second
):
    assert PeakEWMA().choose([first, second], 0.0) is second
    assert PeakEWMA().choose([second, first], 0.0) is second


def test_of_equal_candidates_without_an_account_the_first_is_chosen():
    several = candidates(1, 1)

    assert PeakEWMA().choose(several, 0.0) is several[0]


def test_a_candidate_that_has_a_load_of_another_kind_is_one_without_an_account():
    one, other = candidates(1, 1)
    one.load, other.load, one.latency, other.latency = 0.3, 0.5, 2.0, 1.0

    assert PeakEWMA().choose([one, other], 0.0) is other
