"""The addresses of hosts, each family for its own time to live, in virtual time."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from geventconnpool.cluster._addresses import FORGET_AFTER, AddressBook, Told

V4, OTHER_V4, V6 = "10.0.0.1", "10.0.0.2", "fd00::1"
FAILED = Told(failed=True)


class Dice(Random):
    """Always throws the same: 0.0 for the low end of a range, 0.5 for its middle."""

    def __init__(self, value: float = 0.5) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.fixture
def book():
    return AddressBook(5.0, 300.0, Dice())


def there(*addresses, ttl=60.0):
    return Told(addresses, ttl)


def nothing(ttl=60.0):
    return Told((), ttl)


def due_at(book, host, family, *, min_refresh=5.0):
    """Return when ``family`` of ``host`` is due: it is asked for along with others from ``min_refresh`` before that."""
    low, high = 0.0, 100_000.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if (host, family) in book.due([host], middle) else (middle, high)
    return round(low + min_refresh, 2)


# What is known


def test_of_an_unknown_host_nothing_is_known_and_everything_is_due(book):
    assert book.addresses("a") == ()
    assert book.due(["a", "b"], 0.0) == [("a", "A"), ("a", "AAAA"), ("b", "A"), ("b", "AAAA")]
    assert book.next_due(["a"]) == -math.inf


def test_without_hosts_nothing_is_ever_due(book):
    assert book.due([], 0.0) == []
    assert book.next_due([]) == math.inf


def test_both_families_are_known_together_ipv4_first(book):
    book.learned("a", {"AAAA": there(V6), "A": there(OTHER_V4, V4)}, 100.0)

    assert book.addresses("a") == (OTHER_V4, V4, V6)
    assert book.addresses("b") == ()


def test_what_is_told_of_one_family_leaves_the_other_alone(book):
    book.learned("a", {"A": there(V4), "AAAA": there(V6)}, 100.0)
    book.learned("a", {"A": there(OTHER_V4)}, 200.0)

    assert book.addresses("a") == (OTHER_V4, V6)


def test_a_family_that_is_denied_is_gone_while_there_is_the_other(book):
    book.learned("a", {"A": there(V4), "AAAA": there(V6)}, 100.0)
    book.learned("a", {"A": nothing()}, 200.0)

    assert book.addresses("a") == (V6,)


def test_a_family_whose_question_fails_stays(book):
    book.learned("a", {"A": there(V4), "AAAA": there(V6)}, 100.0)
    book.learned("a", {"A": FAILED, "AAAA": nothing()}, 200.0)

    assert book.addresses("a") == (V4,)


@pytest.mark.parametrize(
    "last_words",
    [
        {"A": nothing(), "AAAA": nothing()},
        {"A": FAILED, "AAAA": FAILED},
        {"A": FAILED, "AAAA": nothing()},
    ],
)
def test_a_host_that_has_lost_all_keeps_the_last_ones(book, last_words):
    book.learned("a", {"A": there(V4), "AAAA": nothing()}, 100.0)
    for now in range(200, 3000, 10):
        book.learned("a", last_words, float(now))

    assert book.addresses("a") == (V4,)


def test_one_family_lost_after_the_other_leaves_the_last_one_that_was_there(book):
    book.learned("a", {"A": there(V4), "AAAA": there(V6)}, 100.0)
    book.learned("a", {"A": nothing()}, 200.0)
    book.learned("a", {"AAAA": nothing()}, 300.0)

    assert book.addresses("a") == (V6,)


def test_what_comes_after_all_was_lost_takes_the_place_of_the_last_ones(book):
    book.learned("a", {"A": there(V4), "AAAA": nothing()}, 100.0)
    book.learned("a", {"A": nothing(), "AAAA": nothing()}, 200.0)
    book.learned("a", {"AAAA": there(V6)}, 300.0)

    assert book.addresses("a") == (V6,)


def test_what_nobody_has_named_for_long_is_forgotten(book):
    book.keep("abc", 100.0)
    for host in "abc":
        book.learned(host, {"A": there(V4), "AAAA": nothing()}, 100.0)
    book.keep("b", 100.0 + FORGET_AFTER)
    assert [book.addresses(host) for host in "abc"] == [(V4,), (V4,), (V4,)]

    book.keep("b", 100.1 + FORGET_AFTER)

    assert [book.addresses(host) for host in "abc"] == [(), (V4,), ()]
    assert book.due("ab", 100.0) == [("a", "A"), ("a", "AAAA")]


def test_what_is_given_without_dns_is_asked_for_at_once_when_it_is_given_no_longer_and_stays_until_then(book):
    book.learned("a", {"A": there(V4, ttl=1000.0), "AAAA": nothing(ttl=1000.0)}, 100.0)
    book.given("a", (V6,))

    assert book.addresses("a") == (V6,)
    assert book.due("a", 110.0) == [("a", "A"), ("a", "AAAA")]

    book.learned("a", {"A": nothing(), "AAAA": Told(failed=True)}, 110.0)

    assert book.addresses("a") == (V6,)


def test_what_did_not_come_along_proves_nothing(book):
    book.learned("a", {"A": there(V4), "AAAA": there(V6)}, 100.0)
    book.learned("a", {"A": there(V4), "AAAA": Told((), 60.0, is_left_out=True)}, 110.0)

    assert book.addresses("a") == (V4, V6)


def test_what_did_not_come_along_and_was_never_there_is_not_asked_for_before_the_rest(book):
    book.learned("a", {"A": there(V4), "AAAA": Told((), 60.0, is_left_out=True)}, 100.0)

    assert book.addresses("a") == (V4,)
    assert book.due("a", 101.0) == []


# When it is due


def test_each_family_has_its_own_time(book):
    book.learned("a", {"A": there(V4, ttl=20), "AAAA": there(V6, ttl=50)}, 100.0)

    assert book.due(["a"], 114.9) == []
    assert book.due(["a"], 115.1) == [("a", "A")]
    assert book.due(["a"], 145.1) == [("a", "A"), ("a", "AAAA")]
    assert book.next_due(["a"]) == 120.0


@pytest.mark.parametrize(("ttl", "held"), [(0, 5), (4.9, 5), (5, 5), (77, 77), (300, 300), (301, 300), (2**31, 300)])
def test_times_to_live_are_clamped(book, ttl, held):
    book.learned("a", {"A": there(V4, ttl=ttl), "AAAA": nothing(ttl)}, 100.0)

    assert book.next_due(["a"]) == 100.0 + held
    assert due_at(book, "a", "AAAA") == 100.0 + held


def test_a_family_that_there_is_none_of_is_asked_for_along_with_the_other_and_not_for_itself(book):
    book.learned("a", {"A": there(V4, ttl=100), "AAAA": nothing(ttl=10)}, 100.0)

    assert book.next_due(["a"]) == 200.0
    assert book.due(["a"], 120.0) == [("a", "AAAA")]


def test_the_first_of_several_hosts_says_when_to_ask_next(book):
    book.learned("a", {"A": there(V4, ttl=100)}, 100.0)
    book.learned("b", {"A": there(V4, ttl=30)}, 100.0)

    assert book.next_due(["a", "b"]) == 130.0
    assert book.next_due(["a"]) == 200.0
    assert book.next_due(["a", "b", "c"]) == -math.inf


def test_what_was_not_asked_for_in_time_is_still_due(book):
    book.learned("a", {"A": there(V4)}, 100.0)

    assert book.due(["a"], 100.0) == [("a", "AAAA")]
    assert book.next_due(["a"]) == 160.0


# Back-off


@pytest.mark.parametrize(("dice", "factor"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
def test_a_host_without_addresses_is_asked_about_with_back_off(dice, factor):
    book = AddressBook(0.1, 300.0, Dice(dice))
    pauses = []
    for _ in range(10):
        book.learned("a", {"A": nothing(), "AAAA": FAILED}, 100.0)
        pauses.append(round((book.next_due(["a"]) - 100.0) / factor, 2))

    assert pauses == [1.0, 1.6, 2.56, 4.1, 6.55, 10.49, 16.78, 26.84, 30.0, 30.0]


def test_after_thousands_of_failures_the_back_off_is_thirty_seconds(book):
    for _ in range(5000):  # a power of 1.6 overflows after 1,510
        book.learned("a", {"A": FAILED, "AAAA": FAILED}, 100.0)

    assert book.next_due(["a"]) == 130.0


def test_addresses_end_the_back_off(book):
    for _ in range(20):
        book.learned("a", {"A": FAILED, "AAAA": FAILED}, 100.0)
    book.learned("a", {"A": there(V4), "AAAA": nothing()}, 200.0)
    assert book.next_due(["a"]) == 260.0

    book.learned("a", {"A": FAILED}, 300.0)
    assert book.next_due(["a"]) == 301.0


def test_a_denial_that_leaves_the_other_family_is_no_failure(book):
    book.learned("a", {"A": there(V4, ttl=60), "AAAA": nothing(ttl=60)}, 100.0)

    assert due_at(book, "a", "AAAA") == 160.0


def test_a_failed_family_is_asked_for_again_though_the_other_is_there(book):
    book.learned("a", {"A": there(V4, ttl=60), "AAAA": FAILED}, 100.0)

    assert book.next_due(["a"]) == 101.0
    assert due_at(book, "a", "A") == 160.0


def test_a_family_that_always_fails_is_backed_off_from_however_often_the_other_is_there(book):
    for _ in range(10):
        book.learned("a", {"A": there(V4, ttl=5), "AAAA": FAILED}, 100.0)
    book.learned("a", {"A": there(V4, ttl=5)}, 100.0)
    book.learned("a", {"A": there(V4, ttl=5), "AAAA": FAILED}, 100.0)

    assert due_at(book, "a", "AAAA") == 130.0
    assert book.next_due(["a"]) == 105.0


# In any order


HOSTS, FAMILIES = ("a", "b"), ("A", "AAAA")
addresses = {"A": st.sets(st.sampled_from([V4, OTHER_V4]), min_size=1), "AAAA": st.just({V6})}
ttls = st.floats(0, 1000)


def news(family):
    return st.one_of(
        st.builds(lambda found, ttl: Told(tuple(found), ttl), addresses[family], ttls),
        st.builds(nothing, ttls),
        st.just(FAILED),
    )


class Model(RuleBasedStateMachine):
    """A second opinion: all that was ever told, looked through anew for each question."""

    def __init__(self) -> None:
        super().__init__()
        self.book = AddressBook(5.0, 300.0, Random(1))
        self.now = 1000.0
        self.told: dict[str, list[tuple[float, dict[str, Told]]]] = {host: [] for host in HOSTS}

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(host=st.sampled_from(HOSTS), found=st.fixed_dictionaries({}, optional={f: news(f) for f in FAMILIES}))
    def is_told(self, host, found):
        if found:
            self.book.learned(host, found, self.now)
            self.told[host].append((self.now, found))

    @invariant()
    def the_last_addresses_that_were_there_are_known(self):
        for host in HOSTS:
            both = [state["A"] + state["AAAA"] for state in self.states(host)]
            assert self.book.addresses(host) == next(filter(None, reversed(both)), ())

    @invariant()
    def each_family_is_due_in_its_time(self):
        for host in HOSTS:
            for family in FAMILIES:
                low, high, _ = self.bounds(host, family)
                if high > -math.inf:
                    assert low - 0.01 <= due_at(self.book, host, family) <= high + 0.01
                else:
                    assert (host, family) in self.book.due([host], -1e9)

    @invariant()
    def what_is_there_or_failed_says_when_to_ask_next(self):
        for host in filter(self.told.get, HOSTS):
            bounds = [self.bounds(host, family) for family in FAMILIES if self.states(host)[-1][family]]
            bounds += [bound for bound in (self.bounds(host, family) for family in FAMILIES) if bound[2]]
            low, high = min(bound[0] for bound in bounds), min(bound[1] for bound in bounds)
            assert low - 0.01 <= self.book.next_due([host]) <= high + 0.01

    def states(self, host):
        """Return the addresses of both families after each time something was told."""
        now, states = dict.fromkeys(FAMILIES, ()), []
        for _, found in self.told[host]:
            now = now | {family: told.addresses for family, told in found.items() if not told.failed}
            states.append(now)
        return states

    def bounds(self, host, family):
        """Return when it is due, at the earliest and at the latest, and how often it has failed in a row."""
        failures, low, high = 0, -math.inf, -math.inf
        for (at, found), state in zip(self.told[host], self.states(host), strict=True):
            told = found.get(family)
            if told is None:
                continue
            if told.failed or not any(state.values()):
                pause = min(30.0, 1.6**failures)
                failures, low, high = failures + 1, at + 0.8 * pause, at + 1.2 * pause
            else:
                ttl = max(5.0, min(told.ttl, 300.0))
                failures, low, high = 0, at + ttl, at + ttl
        return low, high, failures


TestAnyOrder = Model.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
