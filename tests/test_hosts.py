"""The programs that pools live in: gunicorn, which forks its workers, and Celery, which does so unless it has gevent.

Each is run for real, all at once, against servers that remember every byte of every connection. A run is one story,
told in its class; the tests look at what was seen of it.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from time import monotonic

import gevent
import pytest
from gevent import socket
from gevent.pool import Pool as Group

from tests.servers import Redis, find, require, wait_until
from tests.witness import Program, Record, Witness

REQUESTS, REQUESTS_AFTERWARDS = 300, 100
CONCURRENT = 30
TASKS = 100
CONNECTIONS = 7  # of each process that uses the pools: 3 of the pool, 2 to each of the two servers of the cluster
PATIENCE = 40.0  # all runs share the machine


class Run:
    """A program, one witness for its pool and two for its cluster."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.witnesses = [Witness() for _ in range(3)]
        self.asked_to_end = 0.0
        self.exit_code: int | None = None
        self.left: list[int] = []

    def tell(self) -> None:
        raise NotImplementedError

    @property
    def records(self) -> list[Record]:
        return [record for witness in self.witnesses for record in witness.records]

    def opened_by(self, pid: int) -> list[Record]:
        return [record for witness in self.witnesses for record in witness.opened_by(pid)]

    def shared(self) -> list[Record]:
        return [record for witness in self.witnesses for record in witness.shared()]

    def open(self) -> list[Record]:
        return [record for record in self.records if not record.ended]

    def end(self, program: Program) -> None:
        self.asked_to_end = monotonic()
        program.ask_to_end()
        self.exit_code = program.wait(PATIENCE)
        self.left = program.processes()
        wait_until(lambda: self.left or not self.open(), what="the end of what ended processes had open")

    def stop(self) -> None:
        for witness in self.witnesses:
            witness.stop()


class Gunicorn(Run):
    """Two workers answer 300 requests; one is ended, another takes its place, and they answer 100 more."""

    def __init__(self, directory: Path, *options: str, **environment: str) -> None:
        super().__init__(directory)
        self._numbers = count()
        self._options = options
        self._environment = environment
        self.wrong: list[str] = []
        self.program: Program

    def tell(self) -> None:
        self.program = Program(
            *("gunicorn", "-c", "tests/apps/gunicorn_conf.py", "tests.apps.wsgi:application", *self._options),
            log=self.directory / "log",
            witnesses=self.witnesses,
            CONTROL_SOCKET=str(self.directory / "control"),
            **self._environment,
        )
        with self.program:
            self._send(REQUESTS, workers=2)
            self._end_a_worker()
            self._send(REQUESTS_AFTERWARDS, workers=3)
            self.end(self.program)

    @property
    def master(self) -> int:
        return self.program.pid

    @property
    def workers(self) -> list[int]:
        """All so far, in the order of their start."""
        return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.program.output())]

    def _end_a_worker(self) -> None:
        victim = self.workers[0]
        os.kill(victim, signal.SIGTERM)
        wait_until(lambda: victim not in self.program.processes(), PATIENCE, "the end of a worker")

    def _send(self, requests: int, workers: int) -> None:
        wait_until(lambda: len(self.workers) == workers, PATIENCE, f"{workers} workers")
        silent = set(self.workers[-2:])
        while silent:
            silent.discard(self._request())
        group = Group(CONCURRENT)
        for _ in range(requests):
            group.spawn(self._request)
        group.join(timeout=PATIENCE, raise_error=True)

    def _request(self) -> int:
        """Send a request and return which worker has answered it."""
        token = f"token-{next(self._numbers)}"
        answer = self._get(f"/?{token}")
        worker, _, text = answer.partition(" ")
        if text != f"{token} right":
            self.wrong.append(answer)
        return int(worker)

    def _get(self, path: str) -> str:
        with socket.create_connection(("127.0.0.1", self._port()), timeout=PATIENCE) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
            with connection.makefile("r") as answer:
                return str(answer.read().partition("\n\n")[2])

    def _port(self) -> int:
        return int(re.findall(r"Listening at: http://127.0.0.1:(\d+)", self.program.output())[0])


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
