"""The moves of the state machines are those that are drawn, in the pages and in the docstrings, and no others."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from geventconnpool import _queue, _slots
from geventconnpool.cluster import _members
from tests import test_members, test_slots
from tests.diagrams import PLOTS, files
from tests.moves import recorded, scripted


@pytest.fixture(scope="module")
def moves():
    """Return the moves of slots and of members that are made in a life with everything in it."""
    return scripted()


@pytest.mark.parametrize("name", ["states-slot.svg", "states-slot.csv", "states-member.svg", "states-member.csv"])
def test_what_is_drawn_is_what_is_recorded(name):
    # python -m tests.diagrams draws it anew.
    assert (PLOTS / name).read_text() == files()[name]


def moves_in(module, states):
    """Return the moves that the docstring of a module lists."""
    found = set()
    for before, after in re.findall(r"^    (\S+) +-> (.+)$", module.__doc__, re.MULTILINE):
        found.update((states[before], states[name]) for name in after.split(", "))
    return found


def test_the_docstring_lists_the_moves_of_a_connection(moves):
    names = ("CONNECTING", "IDLE", "IN_USE", "CHECKING", "CLOSING")
    states = {name: getattr(_queue, name) for name in names} | {"(free)": "free"}

    assert moves_in(_slots, states) == moves[0].keys()


def test_the_docstring_lists_the_moves_of_an_endpoint(moves):
    states = {name: getattr(_members, name) for name in ("ACTIVE", "EJECTED", "DRAINING")} | {"(gone)": "gone"}

    assert moves_in(_members, states) == moves[1].keys()


@pytest.mark.parametrize("machine", [test_slots.PoolLife, test_members.Life])
def test_no_other_move_is_made_whatever_happens_in_whatever_order(machine, moves):
    rules = settings(machine.TestCase.settings, database=None, suppress_health_check=list(HealthCheck))
    with recorded() as found:
        run_state_machine_as_test(machine, settings=settings(rules, phases=[Phase.generate]))

    for known, seen in zip(moves, found, strict=True):
        assert {(move, why) for move in seen for why in seen[move]} <= {(m, why) for m in known for why in known[m]}
    assert len(found[0]) >= 13


def test_what_is_recorded_is_put_back_afterwards(moves):
    assert type(_queue.Slot.state).__name__ == "member_descriptor"
    assert "state" not in _members.Member.__dict__
