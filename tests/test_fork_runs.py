"""Programs that fork: a child lives on connections of its own, and its parent notices nothing.

Each scene is a program of its own, in ``tests.apps.scenes``, so that the process of the tests never forks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import wait_until
from tests.witness import Program, Record, Witness

PATCHED = {"PATCHED": "yes"}
REINIT = {"REINIT": "yes"}  # gevent asks for it in a child that was not forked by gevent

# How to fork, and in which program. Of a fork by libc Python knows nothing: its hooks do not run.
WAYS = {
    "multiprocessing, patched": ("multiprocessing", PATCHED),
    "multiprocessing": ("multiprocessing", REINIT),
    "libc": ("libc", REINIT),
}
# Here the child leaves through the end of the interpreter; that of multiprocessing does not.
EXITS = {
    "os.fork, patched": ("os", PATCHED),
    "os.fork": ("os", REINIT),
    "libc": ("libc", REINIT),
}
NO_REINIT: dict[str, tuple[str, dict[str, str]]] = {
    "multiprocessing": ("multiprocessing", {}),
    "libc": ("libc", {}),
}

every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
every_exit = pytest.mark.parametrize("way", EXITS.values(), ids=EXITS)


class Scene:
    """A program that forks, one witness for its pool and two for its cluster."""

    def __init__(self, log: Path) -> None:
        self.witnesses = [Witness() for _ in range(3)]
        self._log = log
        self._exit_code: int | None = None
        self.program: Program

    def play(self, way: tuple[str, dict[str, str]], name: str) -> None:
        """Play to the end, and answer what is held back when the child is ready for it."""
        how, environment = way
        arguments = ("tests.apps.forking", how, name)
        with Program(*arguments, log=self._log, witnesses=self.witnesses, **environment) as self.program:
            wait_until(lambda: "child is beside hooks" in self.output() or self._is_over(), what="the child")
            for witness in self.witnesses:
                witness.release()
            self._exit_code = self.program.wait()
        wait_until(self._is_heard_out, what="the end of all connections")

    def _is_over(self) -> bool:
        return self.program.pid not in self.program.processes()

    def _is_heard_out(self) -> bool:
        return all(record.ended for witness in self.witnesses for record in witness.records)

    def output(self) -> str:
        return self.program.output()

    def said(self, who: str) -> list[str]:
        """What a process printed."""
        return [line.removeprefix(f"{who} ") for line in self.output().splitlines() if line.startswith(f"{who} ")]

    def pid(self, who: str) -> str:
        return str(self.program.pid) if who == "parent" else self.said(who)[0].removeprefix("is ")

    def opened_by(self, who: str) -> list[Record]:
        return [record for witness in self.witnesses for record in witness.opened_by(self.pid(who))]

    def check(self, *family: str) -> None:
        """Assert that all did what they should, and that nobody wrote on a connection that he had not opened."""
        assert [record for witness in self.witnesses for record in witness.shared()] == []
        assert self._exit_code == 0, self.output()
        assert [self.said(who)[-1] for who in family] == ["is done" for _ in family], self.output()

    def check_connections(self, number: int, *family: str) -> None:
        """Assert, too, that each opened so many, replaced none, and said goodbye to its own, itself."""
        self.check(*family)
        for who in family:
            last_words = [record.last_words for record in self.opened_by(who)]
            assert last_words == [f"{self.pid(who)} BYE"] * number, who


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "output")
    yield scene
    for witness in scene.witnesses:
        witness.stop()


@every_way
def test_a_child_opens_connections_of_its_own_and_the_parent_keeps_its_own(scene, way):
    scene.play(way, "idle")

    scene.check_connections(4, "parent", "child")


@pytest.mark.parametrize("way", NO_REINIT.values(), ids=NO_REINIT)
def test_a_child_need_not_know_that_gevent_wants_to_be_reinitialized(scene, way):
    scene.play(way, "idle")

    scene.check_connections(4, "parent", "child")


@every_way
def test_each_generation_has_connections_of_its_own(scene, way):
    scene.play(way, "generations")

    scene.check_connections(4, "parent", "child", "grandchild")


@every_way
def test_a_child_that_has_not_used_its_pools_yet_says_nothing(scene, way):
    scene.play(way, "unused")

    scene.check("parent", "child")
    lines = [line for line in scene.witnesses[0].lines if line.startswith(scene.pid("child"))]
    assert [line.split()[1] for line in lines[:2]] == ["HELLO", "MARK"]


@every_way
def test_who_waits_in_the_parent_is_served_or_gives_up_in_the_parent_only(scene, way):
    scene.play(way, "waiting")

    scene.check_connections(1, "parent", "child")
    assert scene.said("parent") == ["gives up", "is served 1", "is done"]
    assert scene.said("child")[1:] == ["is done"]


@every_way
def test_a_lease_of_the_parent_ends_in_the_parent_only(scene, way):
    scene.play(way, "lent")

    scene.check_connections(5, "parent", "child")


@every_way
def test_a_connect_of_the_parent_goes_on_in_the_parent_only(scene, way):
    scene.witnesses[0].hold("HELLO")

    scene.play(way, "connecting")

    scene.check_connections(2, "parent", "child")


@every_way
def test_a_keepalive_of_the_parent_goes_on_in_the_parent_only(scene, way):
    scene.witnesses[0].hold("PING")

    scene.play(way, "checking")

    scene.check_connections(2, "parent", "child")


@every_way
def test_a_look_up_of_the_parent_goes_on_in_the_parent_only(scene, way):
    scene.witnesses[0].hold("RESOLVE")

    scene.play(way, "looking_up")

    scene.check("parent", "child")


@every_exit
def test_a_child_that_leaves_a_block_of_the_parent_and_exits_says_no_goodbye(scene, way):
    scene.play(way, "leaving")

    scene.check("parent", "child")
    assert len(scene.opened_by("parent")) == 4


@every_exit
def test_a_child_that_just_exits_says_nothing(scene, way):
    scene.play(way, "exiting")

    scene.check_connections(4, "parent")
    assert scene.said("child")[1:] == ["is done"]


@every_exit
def test_two_processes_on_one_connection_do_not_escape_the_witness(scene, way):
    """The test of the tests: no pool is in this program."""
    scene.play(way, "sharing")

    (record,) = scene.witnesses[0].shared()
    assert record.words_of(scene.pid("parent")) == ["HELLO"]
    assert record.words_of(scene.pid("child")) == ["ASK", "BYE"]
    assert record.ended
    assert scene.said("parent") == ["is done"]
