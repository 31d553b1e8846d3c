"""uWSGI, which forks its workers without telling Python: each way in which it does that, one after the other.

``make test-runs``: no part of ``make test``, because it takes a compiler to install uWSGI.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import CONNECTIONS, WebServer
from tests.witness import Program

WARM = {"WARM_UP": "yes", "GEVENT_RESOLVER": "block"}  # see docs/where-it-runs.rst: a master that forks has no threads
WAYS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "preloaded": ((), {}),
    "preloaded, patched": (("--gevent-monkey-patch",), {}),
    "preloaded, hooks of Python": (("--py-call-osafterfork",), {}),
    "preloaded, warm": ((), WARM),
    "preloaded, patched, warm": (("--gevent-monkey-patch",), WARM),
    "lazy": (("--lazy-apps",), {}),
    "lazy, patched, warm": (("--lazy-apps", "--gevent-monkey-patch"), WARM),
}
CONNECTED_MASTERS = ["preloaded, warm", "preloaded, patched, warm"]
OTHER_MASTERS = [name for name in WAYS if name not in CONNECTED_MASTERS]


class Uwsgi(Program):
    runner = (str(Path(sys.executable).with_name("uwsgi")),)


class UWSGI(WebServer):
    """Its workers end after SIGHUP, when they have answered what they were asked."""

    listening = r"bound to TCP address 127.0.0.1:(\d+)"
    booted = r"[sS]pawned uWSGI worker \d+ \((?:new )?pid: (\d+)"
    end_of_worker = signal.SIGHUP

    def __init__(self, directory: Path, *options: str, **environment: str) -> None:
        super().__init__(directory)
        self._options = options
        self._environment = environment

    def start(self) -> Program:
        return Uwsgi(
            *("--http-socket", "127.0.0.1:0", "--master", "--processes", "2", "--gevent", "50", "--die-on-term"),
            *("--module", "tests.apps.uwsgi_app:application", "--virtualenv", sys.prefix, *self._options),
            log=self.directory / "log",
            witnesses=self.witnesses,
            **self._environment,
        )


@pytest.fixture(scope="module", params=WAYS)
def uwsgi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UWSGI]:
    options, environment = WAYS[request.param]
    run = UWSGI(tmp_path_factory.mktemp("uwsgi"), *options, **environment)
    run.tell()
    print(run.program.output())
    yield run
    run.stop()


def test_each_request_gets_the_answer_to_its_own_question(uwsgi):
    assert uwsgi.wrong == []


def test_no_two_processes_write_on_one_connection(uwsgi):
    assert uwsgi.shared() == []


def test_each_worker_serves_on_connections_that_it_opened_once(uwsgi):
    assert len(uwsgi.workers) == 3
    assert [len(uwsgi.opened_by(worker)) for worker in uwsgi.workers] == [CONNECTIONS] * 3


@pytest.mark.parametrize("uwsgi", OTHER_MASTERS, indirect=True)
def test_a_master_whose_hub_never_runs_does_not_connect(uwsgi):
    assert uwsgi.opened_by(uwsgi.master) == []


@pytest.mark.parametrize("uwsgi", CONNECTED_MASTERS, indirect=True)
def test_what_the_master_has_opened_outlives_every_worker_untouched(uwsgi):
    records = uwsgi.opened_by(uwsgi.master)

    assert len(records) == CONNECTIONS
    assert {pid for record in records for pid in record.pids} == {str(uwsgi.master)}
    assert all(record.ended > uwsgi.asked_to_end for record in records)


def test_an_orderly_end_leaves_nothing_and_says_goodbye_to_all_that_workers_had_open(uwsgi):
    records = [record for worker in uwsgi.workers for record in uwsgi.opened_by(worker)]

    assert uwsgi.exit_code == 0
    assert uwsgi.left == []
    assert uwsgi.open() == []
    assert [record.last_words for record in records] == [f"{record.opener} BYE" for record in records]
