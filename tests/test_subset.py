"""Which endpoints a process has pools for: examples of each rule, what holds for all, and what becomes of the members.

What 1,000 clients make of 1,000 endpoints is in ``benchmarks.subset``.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from geventconnpool.cluster import Endpoint, OutlierDetection
from geventconnpool.cluster._subset import Subset
from tests.test_members import Cluster

SALT = b"a process"
TEN = [Endpoint(f"{name}.test", 6379) for name in "abcdefghij"]
BACKUP = [Endpoint(f"{name}.test", 6379, priority=1) for name in "klmnopqrst"]


def choice(endpoints=TEN, k=3, unfit=(), salt=SALT):
    """Return the names of those who are chosen, in their order."""
    return [endpoint.name[0] for endpoint in Subset(k, salt).choose(endpoints, unfit)]


def rank(endpoints=TEN, salt=SALT):
    """Return all endpoints, in the order in which they would be chosen."""
    return list(Subset(len(endpoints), salt).choose(endpoints, ()))


# -- who is chosen -----------------------------------------------------------------------------------------------------


def test_so_many_are_chosen_and_a_salt_makes_the_same_choice_everywhere_and_for_ever():
    assert choice() == ["f", "i", "h"]


def test_the_order_in_which_discovery_names_them_makes_no_difference():
    assert choice(TEN[::-1]) == choice()


def test_where_there_are_no_more_all_are_chosen_with_their_own_weights():
    endpoints = [Endpoint("a", 1, weight=0), Endpoint("b", 1, weight=7), Endpoint("c", 1, weight=1)]

    assert Subset(3, SALT).choose(endpoints, ()) == dict(zip(endpoints, [0.01, 7.0, 1.0], strict=True))
    assert Subset(10, SALT).choose(endpoints, ()) == dict(zip(endpoints, [0.01, 7.0, 1.0], strict=True))


def test_nothing_is_chosen_of_nothing():
    assert Subset(3, SALT).choose((), ()) == {}


def test_without_a_salt_each_subset_chooses_for_itself():
    assert len({frozenset(Subset(5).choose(TEN, ())) for _ in range(50)}) > 10


def test_ports_of_one_host_are_endpoints_of_their_own():
    ports = [Endpoint("::1", port) for port in range(1, 100)]

    assert len({rank(ports, bytes([n]))[0] for n in range(20)}) > 10


def test_what_else_changes_at_an_endpoint_moves_nothing():
    moved = [Endpoint(e.name, e.port, ("10.0.0.1",), domain="x.test") for e in TEN]

    assert choice(moved) == choice()


# -- who comes and goes ------------------------------------------------------------------------------------------------


def test_the_place_of_one_that_leaves_is_filled_by_the_next_in_rank_and_nothing_else_changes():
    order = rank()
    subset = Subset(3, SALT)

    assert list(subset.choose(TEN, ())) == order[:3]
    assert list(subset.choose(order[1:], ())) == order[1:4]
    assert list(subset.choose(TEN, ())) == order[:3]


def test_one_that_comes_takes_one_place_if_its_rank_is_high_enough_and_none_else():
    order = rank()

    assert list(Subset(3, SALT).choose(order[1:], ())) == order[1:4]
    assert set(order[:3]) - set(order[1:4]) == {order[0]}
    assert list(Subset(3, SALT).choose([*order[:3], *order[4:]], ())) == order[:3]


def test_a_draw_is_made_once_and_forgotten_when_its_endpoint_is_gone():
    subset = Subset(3, SALT)
    subset.choose(TEN, ())
    draws = dict(subset._draws)
    subset.choose(TEN, ())
    subset.choose(TEN[:4], ())

    assert set(draws) == set(TEN)
    assert subset._draws == {endpoint: draws[endpoint] for endpoint in TEN[:4]}


def test_who_is_interrupted_while_he_goes_through_the_endpoints_changes_nothing():
    def interrupted():
        yield from TEN[:2]
        raise KeyboardInterrupt

    subset = Subset(3, SALT)
    before = subset.choose(TEN, ())
    with pytest.raises(KeyboardInterrupt):
        subset.choose(interrupted(), ())

    assert len(subset._draws) == 10
    assert subset.choose(TEN, ()) == before


# -- who is unfit ------------------------------------------------------------------------------------------------------


def test_the_next_in_rank_stands_in_for_one_that_is_unfit_and_that_keeps_its_place():
    order = rank()

    assert list(Subset(3, SALT).choose(TEN, {order[1]})) == order[:4]


def test_another_stands_in_for_a_stand_in():
    order = rank()

    assert list(Subset(3, SALT).choose(TEN, {order[1], order[3]})) == order[:5]


def test_a_stand_in_that_is_unfit_leaves_when_nobody_needs_it():
    order = rank()

    assert list(Subset(3, SALT).choose(TEN, {order[3]})) == order[:3]


@pytest.mark.parametrize("unfit", [3, 4, 5, 6, 10])
def test_there_are_never_more_than_twice_as_many(unfit):
    order = rank()

    assert list(Subset(3, SALT).choose(TEN, set(order[:unfit]))) == order[:6]


def test_who_is_unfit_elsewhere_makes_no_difference():
    assert choice(unfit={rank()[7], *BACKUP}) == choice()


# -- priorities --------------------------------------------------------------------------------------------------------


def test_each_priority_has_its_own_choice_the_lowest_first():
    both = choice(BACKUP + TEN)

    assert both == choice() + choice(BACKUP)
    assert len(both) == 6


def test_who_is_unfit_has_a_stand_in_of_its_own_priority():
    order, backup = rank(), rank(BACKUP)

    assert list(Subset(2, SALT).choose(TEN + BACKUP, {order[0]})) == order[:3] + backup[:2]


def test_one_that_changes_its_priority_takes_a_place_there_and_gives_its_own_up():
    order, backup = rank(), rank(BACKUP)
    moved = Endpoint(order[0].name, 6379, priority=1)
    ranked = rank([*BACKUP, moved])
    chosen = list(Subset(2, SALT).choose([moved, *order[1:], *BACKUP], ()))

    assert chosen == order[1:3] + ranked[:2]
    assert [endpoint for endpoint in ranked if endpoint != moved] == backup


# -- weights -----------------------------------------------------------------------------------------------------------


def fleet(weights, k, clients=4000):
    """Return, by weight, how many of the clients choose such an endpoint, and its load as a part of its fair share."""
    endpoints = [Endpoint(f"{n}.test", 1, weight=weight) for n, weight in enumerate(weights)]
    chosen: Counter[int] = Counter()
    load: Counter[int] = Counter()
    for n in range(clients):
        choice = Subset(k, n.to_bytes(4)).choose(endpoints, ())
        for endpoint, weight in choice.items():
            chosen[endpoint.weight] += 1
            load[endpoint.weight] += weight / sum(choice.values())
    own = {weight: weight or 0.01 for weight in weights}
    fair = {weight: own[weight] * weights.count(weight) / sum(own[w] for w in weights) for weight in own}
    return (
        {weight: chosen[weight] / clients / weights.count(weight) for weight in own},
        {weight: load[weight] / clients / fair[weight] for weight in own},
    )


def test_the_first_is_drawn_in_proportion_to_the_weights():
    chosen, load = fleet([1, 1, 1, 1, 2, 2, 8], 1)

    assert chosen == {
        1: pytest.approx(1 / 16, rel=0.1),
        2: pytest.approx(1 / 8, rel=0.1),
        8: pytest.approx(0.5, rel=0.05),
    }
    assert load == {1: pytest.approx(1, rel=0.1), 2: pytest.approx(1, rel=0.1), 8: pytest.approx(1, rel=0.05)}


def test_few_of_many_are_chosen_in_proportion_to_their_weights():
    chosen, _ = fleet([1] * 100 + [3] * 100, 4, clients=1500)

    assert chosen[3] / chosen[1] == pytest.approx(3, rel=0.05)
    assert chosen[3] + chosen[1] == pytest.approx(0.04)


@pytest.mark.parametrize("k", [2, 5, 10, 19])
def test_over_all_clients_the_load_is_in_proportion_to_the_weights_and_not_to_their_squares(k):
    _, load = fleet([1] * 10 + [3] * 9 + [20], k)

    assert load == {1: pytest.approx(1, abs=0.08), 3: pytest.approx(1, abs=0.08), 20: pytest.approx(1, abs=0.08)}


def test_weight_0_is_chosen_hardly_ever():
    chosen, load = fleet([1, 1, 1, 1, 0], 3, clients=20_000)

    assert 0 < chosen[0] < 0.02
    assert 0.5 < load[0] < 1.5


def test_equal_weights_stay_what_they_are():
    endpoints = [Endpoint(f"{n}.test", 1, weight=30) for n in range(100)]

    assert set(Subset(7, SALT).choose(endpoints, ()).values()) == {30.0}


def test_the_weights_are_those_of_a_choice_also_where_all_of_it_is_unfit():
    endpoints = [Endpoint(f"{n}.test", 1, weight=1 + n % 2) for n in range(1000)]
    weights = Subset(5, SALT).choose(endpoints, endpoints)

    assert len(weights) == 10
    assert max(weights.values()) == 2.0
    assert min(weights.values()) > 1.9


def test_the_heaviest_keeps_its_weight_and_few_of_many_weigh_about_the_same():
    endpoints = [Endpoint(f"{n}.test", 1, weight=1 + n % 2) for n in range(1000)]
    weights = Subset(10, SALT).choose(endpoints, ())

    assert {endpoint.weight for endpoint in weights} == {1, 2}
    assert max(weights.values()) == 2.0
    assert min(weights.values()) > 1.9


# -- what holds for all ------------------------------------------------------------------------------------------------

endpoints_of_any_kind = st.lists(
    st.builds(
        Endpoint,
        name=st.sampled_from("abcdefghijklmnopqrstuvwxyz"),
        port=st.integers(1, 3),
        priority=st.integers(0, 2),
        weight=st.sampled_from([0, 1, 2, 100, 65535]),
    ),
    max_size=40,
    unique=True,
)
salts = st.binary(max_size=64)
number = st.integers(1, 12)
steadily = settings(deadline=None, derandomize=True, max_examples=150)


def by_priority(endpoints):
    tiers: dict[int, set[Endpoint]] = {0: set(), 1: set(), 2: set()}
    for endpoint in endpoints:
        tiers[endpoint.priority].add(endpoint)
    return tiers


@steadily
@given(endpoints=endpoints_of_any_kind, k=number, salt=salts, data=st.data())
def test_one_that_leaves_is_replaced_by_one_of_its_priority_and_one_that_comes_displaces_one(endpoints, k, salt, data):
    subset = Subset(k, salt)
    everybody = set(subset.choose(endpoints, ()))
    if not endpoints:
        return
    leaver = data.draw(st.sampled_from(endpoints))
    others = [endpoint for endpoint in endpoints if endpoint != leaver]
    without = set(subset.choose(others, ()))
    come, gone = without - everybody, everybody - without

    assert gone == {leaver} & everybody
    assert len(come) == (leaver in everybody and len(by_priority(endpoints)[leaver.priority]) > k)
    assert {endpoint.priority for endpoint in come} <= {leaver.priority}
    assert set(subset.choose(endpoints, ())) == everybody


@steadily
@given(endpoints=endpoints_of_any_kind, k=number, salt=salts, data=st.data())
def test_whoever_is_unfit_each_priority_has_as_many_fit_ones_as_there_can_be_within_the_bound(endpoints, k, salt, data):
    unfit = data.draw(st.sets(st.sampled_from(endpoints))) if endpoints else set()
    subset = Subset(k, salt)
    well, chosen = by_priority(subset.choose(endpoints, ())), by_priority(subset.choose(endpoints, unfit))

    for priority, there in by_priority(endpoints).items():
        tier = chosen[priority]
        assert well[priority] <= tier, "who is unfit keeps its place"
        assert len(well[priority]) == min(k, len(there))
        assert len(tier) <= min(2 * k, len(there))
        assert len(tier - unfit) <= k
        assert len(tier - unfit) == k or len(tier) == min(2 * k, len(there))


@steadily
@given(endpoints=endpoints_of_any_kind, k=number, salt=salts)
def test_a_weight_is_above_0_and_at_most_that_of_the_heaviest_that_is_chosen_and_the_heavier_weighs_no_less(
    endpoints, k, salt
):
    weights = Subset(k, salt).choose(endpoints, ())
    for tier in by_priority(weights).values():
        own = {endpoint: endpoint.weight or 0.01 for endpoint in tier}
        in_order = [weights[endpoint] for endpoint in sorted(tier, key=own.__getitem__)]

        assert in_order == sorted(in_order)
        assert all(own[endpoint] <= weights[endpoint] * (1 + 1e-9) for endpoint in tier)
        assert not tier or in_order[-1] == max(own.values())


# -- with the members, which are ejected and readmitted ----------------------------------------------------------------


class Fleeting(RuleBasedStateMachine):
    """Endpoints fail, pass their probes, come and go; the choice is made anew some time later."""

    @initialize(
        k=st.integers(1, 4),
        percent=st.sampled_from([10, 50, 100]),
        failures=st.integers(1, 2),
        salt=salts,
        seed=st.integers(0, 3),
        answer=endpoints_of_any_kind,
    )
    def begin(self, k, percent, failures, salt, seed, answer):
        outlier = OutlierDetection(consecutive_failures=failures, max_ejection_percent=percent)
        self.cluster = Cluster(size=2, outlier=outlier)
        self.members = self.cluster.members
        self.members._rng = Random(seed)
        self.k = k
        self.subset = Subset(k, salt)
        self.believed = answer
        self.was_available = False
        self.choose_anew()
        self.cluster.fill()

    def active(self):
        return [member for member in self.members if member.state == "active"]

    def take_from(self, member):
        """Take from just that endpoint, as its pool does: it says so, as nobody of the cluster has chosen it."""
        slot = member.pool.take(self.cluster.shell.now)
        if slot is not None:
            member.changed(self.cluster.shell.now)
        return slot

    @rule()
    def choose_anew(self):
        chosen = self.subset.choose(self.believed, self.members.unfit)
        self.members.reweigh(chosen)
        self.cluster.update(*chosen)
        self.turns = self.members.turns

    @rule(answer=endpoints_of_any_kind)
    def learn(self, answer):
        self.believed = answer
        self.was_available = False  # an answer may take the last one away
        self.choose_anew()

    @rule(endpoint=st.integers(0, 99))
    @precondition(lambda self: self.believed)
    def lose_one(self, endpoint):
        gone = self.believed[endpoint % len(self.believed)]
        self.learn([endpoint for endpoint in self.believed if endpoint != gone])

    @rule(number=st.integers(0, 99), times=st.integers(1, 4))
    @precondition(lambda self: self.active())
    def fail_calls(self, number, times):
        self.cluster.fill()
        active = self.active()
        for _ in range(times):
            slot = self.take_from(active[number % len(active)])
            if slot is not None:
                self.cluster.end(slot, "error", OSError("refused"))

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.active())
    def make_a_good_call(self, number):
        self.cluster.fill()
        active = self.active()
        member = active[number % len(active)]
        slot = self.take_from(member)
        if slot is not None:
            self.cluster.end(slot)
            assert not member.is_spared

    @rule(number=st.integers(0, 99), good=st.booleans())
    @precondition(lambda self: any(member.state == "ejected" for member in self.members))
    def probe(self, number, good):
        ejected = [member for member in self.members if member.state == "ejected"]
        member = ejected[number % len(ejected)]
        shell = self.cluster.shell
        self.cluster.close_all()
        if not member.is_probing:
            self.cluster.run_to(max(shell.now, member.until))
        for slot in [slot for slot in shell.opening if slot.pool is member.pool and slot.probe]:
            if good:
                shell.open(slot)
            else:
                shell.refuse(slot, OSError("refused"))

    @rule()
    def hold_one(self):
        self.cluster.take()  # who is used drains for as long as that

    @invariant()
    def there_are_at_most_twice_as_many_of_a_priority(self):
        tiers = by_priority(member.endpoint for member in self.members if member.state != "draining")
        assert all(len(tier) <= 2 * self.k for tier in tiers.values())

    @invariant()
    def neither_failures_nor_a_new_choice_take_the_last_one_away(self):
        assert self.active() or not self.was_available
        self.was_available = bool(self.active())

    @invariant()
    def whoever_becomes_unfit_or_fit_is_told(self):
        if self.turns == self.members.turns:
            there = {member.endpoint for member in self.members if member.state != "draining"}
            assert there == set(self.subset.choose(self.believed, self.members.unfit))

    def teardown(self):
        if not hasattr(self, "members"):
            return
        for _ in range(30):
            self.cluster.fill()
            self.choose_anew()
            self.cluster.run_to(self.cluster.shell.now + 31.0)
            for member in self.active():
                slot = self.take_from(member)
                if slot is not None:
                    self.cluster.end(slot)

        there = {member.endpoint for member in self.members if member.state == "active"}
        assert there == set(Subset(self.k, self.subset._salt).choose(self.believed, ())), "as if nothing had happened"


TestFleeting = Fleeting.TestCase
TestFleeting.settings = settings(
    max_examples=140, stateful_step_count=40, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink)
)


def chosen_members(cluster, subset, believed):
    """Make the choice anew, and return who is there then, with their states."""
    cluster.update(*subset.choose(believed, cluster.members.unfit))
    cluster.fill()
    return [(member.endpoint, member.state) for member in cluster.members]


def test_one_after_the_other_is_ejected_and_replaced_until_half_of_twice_as_many_are_and_no_further():
    order, cluster, subset = rank(), Cluster(), Subset(2, SALT)
    chosen_members(cluster, subset, TEN)
    seen = []
    for endpoint in order[:4]:
        cluster.fail(endpoint, times=6)
        seen.append([state for _, state in chosen_members(cluster, subset, TEN)])

    assert seen == [
        ["ejected", "active", "active"],
        ["ejected", "ejected", "active", "active"],
        ["ejected", "ejected", "active", "active"],
        ["ejected", "ejected", "active", "active"],
    ]


def test_the_only_one_is_replaced_before_it_is_ejected():
    a, b, *_ = rank()
    cluster, subset = Cluster(), Subset(1, SALT)
    chosen_members(cluster, subset, TEN)
    cluster.fail(a, times=5)

    assert cluster.members.unfit == {a}
    assert chosen_members(cluster, subset, TEN) == [(a, "active"), (b, "active")]

    cluster.fail(a, times=1)

    assert chosen_members(cluster, subset, TEN) == [(a, "ejected"), (b, "active")]

    cluster.probe(a, good=True)

    assert chosen_members(cluster, subset, TEN) == [(a, "active")]


def test_one_that_was_only_spared_is_fit_again_after_a_good_call():
    a, *_ = rank()
    cluster, subset = Cluster(), Subset(1, SALT)
    chosen_members(cluster, subset, TEN)
    cluster.fail(a, times=5)
    chosen_members(cluster, subset, TEN)
    turns = cluster.members.turns
    cluster.call(a)
    cluster.call(a)

    assert cluster.members.turns == turns + 1
    assert chosen_members(cluster, subset, TEN) == [(a, "active")]


def test_one_that_is_spared_is_told_of_once():
    a, *_ = rank()
    cluster, subset = Cluster(), Subset(1, SALT)
    chosen_members(cluster, subset, [a])
    cluster.fail(a, times=4)
    before = cluster.members.turns
    cluster.fail(a, times=10)

    assert (before, cluster.members.turns) == (0, 1)
    assert cluster.state_of(a) == ["active"]


def test_one_that_drains_and_was_ejected_is_still_unfit():
    a, b, c, *_ = rank()
    cluster, subset = Cluster(), Subset(2, SALT)
    chosen_members(cluster, subset, [a, b, c])
    held = cluster.borrow(b)
    cluster.fail(b)
    cluster.update(a, c)

    assert cluster.state_of(b) == ["draining"]
    assert chosen_members(cluster, subset, TEN) == [(a, "active"), (b, "ejected"), (c, "active")]

    cluster.end(held)


def test_the_weights_of_a_choice_are_those_for_the_balancer():
    light, heavy = Endpoint("a", 1, weight=1), Endpoint("b", 1, weight=2)
    cluster = Cluster(light, heavy)
    cluster.members.reweigh({light: 1.5})

    assert (cluster[light].weight, cluster[heavy].weight) == (1.5, 2.0)

    cluster.members.reweigh({light: 1.5, heavy: 3.0, TEN[0]: 0.5})
    cluster.update(Endpoint("a", 1, weight=10), heavy, TEN[0])

    assert [member.weight for member in cluster.members] == [1.5, 3.0, 0.5]
