"""The programs that pools live in: gunicorn, which forks its workers, and Celery, which does so unless it has gevent.

Each is run for real, all at once, against servers that remember every byte of every connection. A run is one story,
told in its class; the tests look at what was seen of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from tests.hosts import CONNECTIONS, PATIENCE, Run, WebServer
from tests.servers import Redis, find, require
from tests.witness import Program

TASKS = 100


class Gunicorn(WebServer):
    listening = r"Listening at: http://127.0.0.1:(\d+)"
    booted = r"Booting worker with pid: (\d+)"

    def __init__(self, directory: Path, *options: str, **environment: str) -> None:
        super().__init__(directory)
        self._options = options
        self._environment = environment

    def start(self) -> Program:
        return Program(
            *("gunicorn", "-c", "tests/apps/gunicorn_conf.py", "tests.apps.wsgi:application", *self._options),
            log=self.directory / "log",
            witnesses=self.witnesses,
            CONTROL_SOCKET=str(self.directory / "control"),
            **self._environment,
        )


class Celery(Run):
    """A worker does 100 tasks."""

    def __init__(self, directory: Path, *options: str, **environment: str) -> None:
        super().__init__(directory)
        self._options = options
        self._environment = environment
        self.results: list[str] = []
        self.worker = 0

    def tell(self) -> None:
        with Redis() as redis:
            broker = f"redis://127.0.0.1:{redis.port}/0"
            worker = Program(
                *("celery", "-A", "tests.apps.tasks", "worker", *self._options),
                log=self.directory / "log",
                witnesses=self.witnesses,
                BROKER=broker,
                **self._environment,
            )
            with worker:
                self.worker = worker.pid
                self.results = self._send(broker)
                self.end(worker)

    def _send(self, broker: str) -> list[str]:
        arguments = ("tests.apps.send_tasks", str(TASKS))
        with Program(*arguments, log=self.directory / "results", witnesses=[], BROKER=broker) as sender:
            assert sender.wait(PATIENCE) == 0, sender.output()
            return sender.output().splitlines()


PATCHED, UNPATCHED = {"MASTER": "patched"}, {"MASTER": "unpatched"}
WARM = {"WARM_UP": "yes"}
GUNICORNS = {
    "unpatched master": ((), UNPATCHED),
    "patched master": ((), PATCHED),
    "unpatched master, preload": (("--preload",), UNPATCHED),
    "patched master, preload": (("--preload",), PATCHED),
    "unpatched master, preload, warm": (("--preload",), UNPATCHED | WARM),
    "patched master, preload, warm": (("--preload",), PATCHED | WARM),
}
# A master whose hub runs: after the application was loaded, or while it was.
CONNECTED_MASTERS = ["patched master, preload", "unpatched master, preload, warm", "patched master, preload, warm"]
OTHER_MASTERS = [name for name in GUNICORNS if name not in CONNECTED_MASTERS]
CELERIES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "gevent": (("-P", "gevent", "-c", "20"), {}),
    "prefork": (("-c", "2"), {}),
    "prefork, warm": (("-c", "2"), WARM),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Run, gevent.Greenlet[[], None]]]]:
    """All runs, begun at once, as most of their time is waiting."""
    runs: dict[str, Run] = {}
    for name, (options, environment) in GUNICORNS.items():
        runs[name] = Gunicorn(tmp_path_factory.mktemp("gunicorn"), *options, **environment)
    for name, (options, environment) in CELERIES.items() if find("redis-server") else ():
        runs[name] = Celery(tmp_path_factory.mktemp("celery"), *options, **environment)
    stories = {name: (run, gevent.spawn(run.tell)) for name, run in runs.items()}
    yield stories
    gevent.killall([story for _, story in stories.values()])
    for run in runs.values():
        run.stop()


@pytest.fixture(params=GUNICORNS)
def gunicorn(request, runs):
    run, story = runs[request.param]
    story.get(timeout=2 * PATIENCE)
    return run


@pytest.fixture(params=CELERIES)
def celery(request, runs):
    require("redis-server")
    run, story = runs[request.param]
    story.get(timeout=2 * PATIENCE)
    return run


def test_each_request_to_gunicorn_gets_the_answer_to_its_own_question(gunicorn):
    assert gunicorn.wrong == []


def test_no_two_processes_of_gunicorn_write_on_one_connection(gunicorn):
    assert gunicorn.shared() == []


def test_each_worker_of_gunicorn_opens_its_connections_once(gunicorn):
    assert len(gunicorn.workers) == 3
    assert [len(gunicorn.opened_by(worker)) for worker in gunicorn.workers] == [CONNECTIONS] * 3


@pytest.mark.parametrize("gunicorn", OTHER_MASTERS, indirect=True)
def test_a_master_of_gunicorn_whose_hub_never_runs_does_not_connect(gunicorn):
    assert gunicorn.opened_by(gunicorn.master) == []


@pytest.mark.parametrize("gunicorn", CONNECTED_MASTERS, indirect=True)
def test_what_the_master_of_gunicorn_has_opened_outlives_every_worker_untouched(gunicorn):
    records = gunicorn.opened_by(gunicorn.master)

    assert len(records) == CONNECTIONS
    assert {pid for record in records for pid in record.pids} == {str(gunicorn.master)}
    assert all(record.ended > gunicorn.asked_to_end for record in records)


def test_a_graceful_end_of_gunicorn_leaves_nothing_and_says_goodbye_to_all(gunicorn):
    assert gunicorn.exit_code == 0
    assert gunicorn.left == []
    assert gunicorn.open() == []
    assert [record.last_words for record in gunicorn.records] == [f"{record.opener} BYE" for record in gunicorn.records]


def test_each_task_of_celery_gets_the_answer_to_its_own_question(celery):
    assert [result.partition(" ")[2] for result in celery.results] == [f"token-{n} right" for n in range(TASKS)]


def test_no_two_processes_of_celery_write_on_one_connection(celery):
    assert celery.shared() == []


def test_each_process_of_celery_that_does_tasks_opens_its_connections_once(celery):
    processes = {int(result.partition(" ")[0]) for result in celery.results}

    assert [len(celery.opened_by(process)) for process in processes] == [CONNECTIONS] * len(processes)


@pytest.mark.parametrize("celery", ["gevent"], indirect=True)
def test_celery_with_gevent_does_all_tasks_in_one_process(celery):
    assert {record.opener for record in celery.records} == {str(celery.worker)}


@pytest.mark.parametrize("celery", ["prefork, warm"], indirect=True)
def test_what_the_parent_of_celerys_children_has_opened_is_not_touched_by_them(celery):
    records = celery.opened_by(celery.worker)

    assert len(records) == CONNECTIONS
    assert {pid for record in records for pid in record.pids} == {str(celery.worker)}
    assert all(record.ended > celery.asked_to_end for record in records)


def test_a_graceful_end_of_celery_leaves_nothing_and_says_goodbye_to_all(celery):
    assert celery.exit_code == 0
    assert celery.left == []
    assert celery.open() == []
    assert [record.last_words for record in celery.records] == [f"{record.opener} BYE" for record in celery.records]
