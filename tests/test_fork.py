"""A child of fork() leaves the connections of its parent alone, whatever it does, and has its own when it wants them.

Each way to fork and each kind of pool is one program, ``forking``, that goes through all scenes and reports on them;
the server it connects to keeps what was said, and by which process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.recorder import Recorder, Seen

ROOT = Path(__file__).parent.parent
KINDS = ["lone", "cluster", "resolved"]
HOOKED = ["os", "gevent", "patched"]  # forks that Python knows of
HOWS = [*HOOKED, "libc"]
PIDS = ["os-pid", "libc-pid"]  # as if the kernel could not wipe pages

MAIN = ["uses", "never_uses", "looks", "drops", "drops_what_is_lent", "exits", "gives_back", "has_just_been_served"]
REST = [
    *("drops_after_use", "exits_after_use", "exits_a_pool_block", "exits_by_an_error_in_a_block", "ends_a_block"),
    *("ends_a_block_after_use", "is_closed", "closes_unused", "has_a_grandchild", "has_a_waiter_with_a_timeout"),
    *("is_about_to_be_told", "is_about_to_let_go", "looks_up", "is_busy", "exits_while_busy", "drops_while_busy"),
    *("polls_in_a_keepalive", "forks_as_it_is_served"),
]
KNOWN_TO_PYTHON = [
    *("drops_a_cycle", "drops_in_a_thread", "forks_in_a_hook", "goes_on_in_a_hook", "forks_in_a_handler"),
    *("runs_processes", "forks_in_a_thread", "has_dropped_a_cycle"),
]
OF_LONE_POOLS = ["forks_often", "takes_its_time"]
OF_CLUSTERS = ["chooses", "keeps_an_endpoint_pool", "takes_an_endpoint_pool"]
OF_LOOK_UPS = ["looks_up", "is_between_slices", "asks_dns", "is_busy"]


def scenes_of(how: str, kind: str) -> list[str]:
    """Return what is gone through: everything once per kind and per way to fork, the main claims by all of them."""
    scenes = list(MAIN)
    if (how in HOWS and kind == "lone") or (how, kind) == ("os", "cluster"):
        scenes += REST
        scenes += KNOWN_TO_PYTHON if how in HOOKED else []
    if how in HOWS and kind == "lone":
        scenes += OF_LONE_POOLS
    if how in HOWS and kind == "resolved":
        scenes += OF_LOOK_UPS
    return scenes + (OF_CLUSTERS if kind != "lone" else [])


PROGRAMS = [(how, kind) for how in (*HOWS, *PIDS) for kind in KINDS if how not in PIDS or kind != "resolved"]


@dataclass
class Report:
    told: dict[str, Any]
    stderr: str
    status: int
    seen: list[Seen]


def run(how: str, kind: str) -> Report:
    server = Recorder()
    command = [sys.executable, "-m", "tests.forking", how, kind, str(server.address[1]), *scenes_of(how, kind)]
    try:
        program = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    finally:
        server.stop()
    lines = map(json.loads, program.stdout.splitlines())
    return Report({line["scene"]: line["told"] for line in lines}, program.stderr, program.returncode, server.seen)


@pytest.fixture(scope="module")
def reports() -> Iterator[Callable[[str, str], Report]]:
    """Run all programs side by side: they wait more than they work."""
    with ThreadPoolExecutor(6) as executor:
        running = {program: executor.submit(run, *program) for program in PROGRAMS}
        yield lambda how, kind: running[how, kind].result()
        for program in running.values():
            program.cancel()


@pytest.fixture
def told(reports, how, kind, request):
    """What the scene named by the test's mark told."""
    (scene,) = request.node.get_closest_marker("scene").args
    return reports(how, kind).told[scene]


def scene(name: str) -> Callable[[Any], Any]:
    """Have a test look at what one scene told, in each program that has it."""
    programs = [program for program in PROGRAMS if name in scenes_of(*program)]

    def mark(test: Any) -> Any:
        return pytest.mark.scene(name)(pytest.mark.parametrize(("how", "kind"), programs)(test))

    return mark


@pytest.mark.parametrize(("how", "kind"), PROGRAMS)
def test_no_child_says_anything_on_a_connection_of_its_parent(reports, how, kind):
    report = reports(how, kind)

    assert {len(seen.processes) for seen in report.seen} == {1}
    assert {line[0] for seen in report.seen for line in seen.lines} != set()


@pytest.mark.parametrize(("how", "kind"), PROGRAMS)
def test_no_child_shuts_a_connection_of_its_parent_down(reports, how, kind):
    # Whoever closes one says goodbye before, and not a word after; keepalives in other scenes come in between.
    report = reports(how, kind)

    assert [seen.lines for seen in report.seen if "QUIT" in seen.words[:-1]] == []


@pytest.mark.parametrize(("how", "kind"), PROGRAMS)
def test_no_hook_and_no_finalizer_gets_to_see_a_connection_of_its_parent(reports, how, kind):
    report = reports(how, kind)

    assert report.stderr == ""
    assert report.status == 0
    assert sorted(report.told) == sorted(scenes_of(how, kind))


@scene("uses")
def test_a_child_that_uses_its_pool_fills_it_anew_and_counts_from_nothing(told):
    child, parent = told

    assert child == [True, [True, "PING"], 1, 2, 2, ["PING", "PING"], True]
    assert parent == ["PING", "PING"]


@scene("never_uses")
def test_a_child_that_never_uses_its_pool_opens_keeps_alive_and_closes_nothing(told):
    child, parent = told

    assert child == []
    assert parent == ["PING", "PING"]


@scene("looks")
def test_a_look_at_the_pool_in_a_child_neither_switches_nor_connects(told, kind):
    (seen, switches, calls), is_unchanged, parent = told
    cluster = [] if kind == "lone" else [True, True, "127.0.0.1", True]

    assert seen == [True, False, 2, True, True, 0.0, *cluster]
    assert (switches, calls) == (0, [])
    assert is_unchanged is True
    assert parent == ["PING", "PING"]


@scene("drops")
def test_a_child_that_drops_its_pool_is_not_warned_and_leaves_the_connections(told):
    child, parent = told

    assert child == []
    assert parent == ["PING", "PING"]


@scene("drops_after_use")
def test_a_child_that_drops_its_pool_after_use_is_warned_of_its_own_connections(told):
    child, parent = told

    assert child == [[True, "PING"], ["2 connections were open"]]
    assert parent == ["PING", "PING"]


@scene("drops_a_cycle")
def test_a_child_that_drops_a_pool_in_a_cycle_leaves_the_connections(told):
    child, parent = told

    assert child is None
    assert parent == ["PING", "PING"]


@scene("has_dropped_a_cycle")
def test_connections_of_a_pool_that_waits_for_the_collector_are_collected_in_the_parent_alone(told):
    child, parent = told

    assert child is None
    assert parent == ["__del__", "__del__"]


@scene("drops_what_is_lent")
def test_a_child_in_which_leases_of_its_parent_are_collected_leaves_the_connections(told):
    child, before, parent = told

    assert child == []
    assert before == [1, 2, 0]
    assert parent == ["PING", "PING", "PING"]


@scene("drops_in_a_thread")
def test_a_child_in_which_leases_of_its_parent_are_collected_in_a_thread_leaves_the_connections(told):
    child, parent = told

    assert child == [[], [True, "PING"], [], 0, 1, 0, 0]
    assert parent == ["PING", "PING"]


@scene("exits")
def test_a_child_that_exits_as_a_program_does_leaves_the_connections(told):
    assert told == [None, True, ["PING", "PING"]]


@scene("exits_after_use")
def test_a_child_that_exits_after_it_has_used_its_pool_leaves_the_connections(told):
    assert told == [[True, "PING"], ["PING", "PING"]]


@scene("exits_a_pool_block")
def test_a_child_that_exits_through_the_block_of_the_pool_closes_nothing(told):
    assert told == [None, ["PING", "PING"]]


@scene("exits_by_an_error_in_a_block")
def test_a_child_that_leaves_a_block_of_its_parent_by_an_error_and_exits_leaves_the_connection(told):
    assert told == [None, "PING", ["PING", "PING"]]


@scene("ends_a_block")
def test_a_block_of_the_parent_that_ends_in_a_child_however_it_does_has_no_effect(told):
    nothing = [[], 0, 0, 0]  # no hook is called, nothing is counted

    assert told == [*[nothing] * 3, ["PING"], *[nothing] * 3, ["PING"]]


@scene("ends_a_block_after_use")
def test_a_block_of_the_parent_that_ends_in_a_child_after_use_has_no_effect(told):
    assert told == [[[True, "PING"], 1, 0, 1], ["PING"], [[True, "PING"], 1, 0, 1], ["PING"]]


@scene("gives_back")
def test_what_the_parent_borrowed_is_released_and_discarded_in_a_child_without_effect(told):
    child, parent = told

    assert child == [0, 0, 0, [True, "PING"]]
    assert parent == ["PING", "PING", "PING"]


@scene("is_closed")
def test_a_closed_pool_is_closed_in_a_child_too(told):
    child, parent = told

    assert child == [[True, True, True, "refused"], True]
    assert parent is True


@scene("closes_unused")
def test_a_child_that_closes_a_pool_it_never_used_waits_for_nobody_and_closes_no_connection(told):
    child, parent = told

    assert child == [True, True, []]
    assert parent == ["PING", "PING"]


@scene("has_a_grandchild")
def test_a_grandchild_leaves_alone_what_is_of_the_child_and_of_the_parent(told):
    grandchild = [True, [True, "PING"], 1]

    assert told[0] == told[1] == [[True, "PING"], grandchild, ["PING", "PING"]]
    assert told[2] == grandchild
    assert told[3] == ["PING", "PING"]


@scene("is_busy")
def test_nothing_that_the_parent_has_begun_goes_on_in_a_child(told):
    child, parent = told

    assert child == {
        "is idle": True,
        "answers waiting": [True, True],
        "hooks": [],
        "events": 0,
        "served": [],
        "uses": [True, "PING"],
    }
    assert parent == [[0, True], ["PING", "PING", "PING"]]


@scene("exits_while_busy")
def test_a_child_may_exit_while_its_parent_connects_keeps_alive_and_waits(told):
    child, (served, works) = told

    assert child is None
    assert len(served) == 2
    assert works == ["PING", "PING", "PING"]


@scene("drops_while_busy")
def test_a_child_may_drop_the_pool_while_its_parent_connects_keeps_alive_and_waits(told):
    child, (served, works) = told

    assert child == []
    assert len(served) == 2
    assert works == ["PING", "PING", "PING"]


@scene("has_just_been_served")
def test_who_is_handed_a_connection_in_the_parent_does_not_get_it_in_a_child(told):
    child, parent, works = told

    assert child == []
    assert parent == [[True, True]]
    assert works == ["PING"]


@scene("forks_as_it_is_served")
def test_of_two_who_are_served_at_once_the_second_does_not_run_in_the_child_of_the_first(told):
    child, parent, works = told

    assert child == [[]]
    assert parent == [[True, True]]
    assert len(works) == 2


@scene("is_about_to_be_told")
def test_events_of_the_parent_are_told_in_the_parent_only(told):
    assert told == [0, True, ["PING"]]


@scene("is_about_to_let_go")
def test_what_another_thread_has_dropped_in_the_parent_is_not_closed_by_a_child(told):
    assert told == [None, ["__del__", "__del__"]]


@scene("has_a_waiter_with_a_timeout")
def test_who_waited_in_the_parent_counts_for_nothing_in_a_child(told):
    child, parent = told

    assert child == [[True, "PING"], 1, 0, 0, True]
    assert parent == ["PING"]


@scene("polls_in_a_keepalive")
def test_a_keepalive_of_the_parent_that_waits_in_select_does_not_make_a_child_spin(told):
    assert told == [True, ["PING"]]


@scene("forks_in_a_hook")
def test_a_hook_that_forks_goes_on_in_the_child_and_may_switch_and_borrow_there(told):
    works = [True, "PING"]

    assert told == ["_new_connection", works, "_keepalive", works, "_abort_connection", works]


@scene("goes_on_in_a_hook")
def test_a_hook_that_returns_in_the_child_it_has_forked_changes_nothing_there(told):
    child = [True, [True, "PING"], [1, 0, 0]]
    hooks, parent = told

    assert hooks == ["_new_connection", child, "_keepalive", child, "_abort_connection", child]
    assert parent == ["PING"]


@scene("forks_in_a_handler")
def test_a_handler_of_events_that_forks_goes_on_in_the_child_and_may_switch_and_borrow_there(told):
    assert told == [["on_event", [True, "PING"]], ["PING"]]


@scene("forks_in_a_thread")
def test_a_child_of_another_native_thread_has_a_pool_in_that_thread(told):
    child = [True, [True, "PING"], ["PING", "PING"], True]

    assert told == [[child, child], ["PING", "PING"]]


@scene("looks_up")
def test_a_look_up_of_the_parent_ends_in_the_parent_and_a_child_makes_its_own(told):
    child, is_asked_once, parent = told

    assert child == [1, [True, "PING"], 2, 1]
    assert is_asked_once is True
    assert parent == ["PING"]


@scene("is_between_slices")
def test_changes_that_the_parent_is_making_are_finished_by_the_parent_and_a_child_makes_its_own(told):
    child, seen, finally_, parent = told

    assert child == [0, 3, [True, "PING"], 10, 2]
    assert (seen, finally_) == ([3, 3, 1], 10)
    assert parent == ["PING"]


@scene("asks_dns")
def test_no_name_server_is_asked_in_a_child_for_its_parent(told):
    is_idle, asked = told

    assert is_idle is True
    assert asked == 0


@scene("chooses")
def test_each_child_chooses_other_endpoints_than_its_parent_and_its_parent_keeps_its_own(told):
    children, chosen, is_kept, parent = told
    choices = [chosen, *(ports for _, _, ports in children)]

    assert [child[:2] for child in children] == [[[], [True, "PING"]]] * 3
    assert [len(set(ports)) for ports in choices] == [3, 3, 3, 3]
    assert len(set(map(tuple, choices))) == 4
    assert is_kept is True
    assert parent == ["PING"]


@scene("keeps_an_endpoint_pool")
def test_the_pool_of_an_endpoint_kept_from_before_the_fork_takes_leases_back_and_lends_none(told):
    child, parent = told

    assert child == [0, False, True, "PoolClosed", "PoolClosed", [True, "PING"]]
    assert parent == ["PING", "PING"]


@scene("takes_an_endpoint_pool")
def test_a_cluster_has_no_pools_in_a_child_before_it_is_used_there(told):
    assert told == [[False], ["PING", "PING"]]


@scene("runs_processes")
def test_the_processes_of_multiprocessing_have_pools_of_their_own(told):
    child, parent = told

    assert child == [[True, "PING"]] * 4
    assert parent == ["PING", "PING"]


@scene("forks_often")
def test_a_parent_that_forks_often_keeps_nothing_of_it(told):
    assert told == [True, True, 0, ["PING", "PING"]]


@scene("takes_its_time")
def test_a_fork_with_a_thousand_connections_takes_no_longer_and_switches_to_nobody(told):
    assert told == [0, True]


HANDS_OVER = """
import os, sys
import gevent
from geventconnpool import ConnectionPool

parent = os.getpid()

class Connection:
    def __init__(self):
        self.made_by = os.getpid()

class Pool(ConnectionPool):
    def _new_connection(self):
        gevent.sleep(0.2 if os.getpid() != parent else 0)
        return Connection()

pool = Pool(1)
pool.wait()
got = []

def get():
    with pool.get() as c:
        got.append(c.made_by)

with pool.get():
    gevent.spawn(get)
    gevent.sleep(0.01)
    child = os.fork()
    if not child:
        waiter = gevent.spawn(get)
        gevent.sleep(0.01)
if not child:
    waiter.join(30)
    os._exit(got != [os.getpid()])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_who_waits_in_a_child_is_not_handed_what_a_block_of_the_parent_gives_back_there():
    done = subprocess.run([sys.executable, "-c", HANDS_OVER], cwd=Path(__file__).parents[1], timeout=60, check=False)

    assert done.returncode == 0
