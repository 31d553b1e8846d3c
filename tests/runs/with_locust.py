"""locust, whose users borrow from pools at module level: in one process, and in two that it forks (``make test-runs``).

It ends its users by killing them, some in the middle of a call. What such a user had borrowed is closed without a
goodbye, and replaced if there is time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import blocks
from tests.hosts import CONNECTIONS, PATIENCE, Run
from tests.servers import wait_until
from tests.witness import ROOT, Program, Record

WARM = {"WARM_UP": "yes"}
FORKING = ("--processes", "2")
WAYS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "one process": ((), {}),
    "one process, warm": ((), WARM),
    "two processes": (FORKING, {}),
    "two processes, warm": (FORKING, WARM),
}
WITH_WORKERS = [name for name, (options, _) in WAYS.items() if options]
ALONE = [name for name in WAYS if name not in WITH_WORKERS]


class Locust(Run):
    """20 users ask for three seconds."""

    def __init__(self, directory: Path, *options: str, **environment: str) -> None:
        super().__init__(directory)
        self._options = options
        self._environment = environment
        self.program: Program

    def tell(self) -> None:
        self.program = Program(
            *("locust", "-f", "tests/apps/locustfile.py", "--headless", "--only-summary"),
            *("--users", "20", "--spawn-rate", "20", "--run-time", "3s", *self._options),
            log=self.directory / "log",
            witnesses=self.witnesses,
            **self._environment,
        )
        with self.program:
            self.exit_code = self.program.wait(PATIENCE)
            self.left = self.program.processes()
            wait_until(lambda: self.left or not self.open(), what="the end of what ended processes had open")

    def asked_by(self, pid: str) -> list[Record]:
        """The connections on which a process has put questions."""
        return [record for record in self.records if "ASK" in record.words_of(pid)]

    @property
    def main(self) -> str:
        return str(self.program.pid)

    @property
    def asked(self) -> Counter[str]:
        """How many questions each process has put."""
        return Counter(
            line.partition(" ")[0] for witness in self.witnesses for line in witness.lines if " ASK " in line
        )


@pytest.fixture(scope="module", params=WAYS)
def locust(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locust]:
    options, environment = WAYS[request.param]
    run = Locust(tmp_path_factory.mktemp("locust"), *options, **environment)
    run.tell()
    print(run.program.output())
    yield run
    run.stop()


def test_no_call_fails_and_each_gets_the_answer_to_its_own_question(locust):
    assert locust.exit_code == 0  # 1 if locust has been told of a failure
    assert "0(0.00%)" in locust.program.output()


def test_no_two_processes_write_on_one_connection(locust):
    assert locust.shared() == []


@pytest.mark.parametrize("locust", ALONE, indirect=True)
def test_alone_one_process_asks_on_connections_that_it_opened_once(locust):
    assert set(locust.asked) == {locust.main}
    assert [record.opener for record in locust.asked_by(locust.main)] == [locust.main] * CONNECTIONS


@pytest.mark.parametrize("locust", WITH_WORKERS, indirect=True)
def test_each_worker_asks_on_connections_that_it_opened_once(locust):
    workers = set(locust.asked)

    assert len(workers) == 2
    assert locust.main not in workers
    assert min(locust.asked.values()) >= 100
    assert [[record.opener for record in locust.asked_by(worker)] for worker in workers] == [
        [worker] * CONNECTIONS for worker in workers
    ]


@pytest.mark.parametrize("locust", WITH_WORKERS, indirect=True)
def test_what_the_master_has_opened_outlives_its_workers_untouched(locust):
    masters = locust.opened_by(int(locust.main))
    workers = [record for worker in locust.asked for record in locust.asked_by(worker)]

    assert len(masters) == CONNECTIONS
    assert {pid for record in masters for pid in record.pids} == {locust.main}
    assert [record.last_words for record in masters] == [f"{locust.main} BYE"] * CONNECTIONS
    assert min(record.ended for record in masters) > max(record.ended for record in workers)


APPLICATION = """\
from gevent import socket

from geventconnpool import ConnectionPool

class Pings(ConnectionPool):
    def _new_connection(self):
        return socket.create_connection({address})

pool = Pings(3)
"""


def test_the_locustfile_in_the_documents_runs(tmp_path, tcp_server):
    (tmp_path / "myapplication.py").write_text(APPLICATION.format(address=tcp_server.address))
    document = (ROOT / "docs/where-it-runs.rst").read_text()
    sources = [source for _, source in blocks(document) if source.startswith("# locustfile.py")]
    (tmp_path / "locustfile.py").write_text(sources[0])
    program = Program(
        *("locust", "-f", str(tmp_path / "locustfile.py"), "--headless", "--only-summary"),
        *("--users", "5", "--run-time", "1s", *FORKING),
        log=tmp_path / "log",
        witnesses=[],
    )
    with program:
        exit_code = program.wait(PATIENCE)

    assert exit_code == 0, program.output()
    assert "0(0.00%)" in program.output()
    assert tcp_server.lines.count(b"PING") >= 100
    assert tcp_server.opened >= 2 * 3


def test_nothing_is_left_and_no_connection_was_forgotten(locust):
    assert locust.left == []
    assert locust.open() == []
    assert [record for record in locust.records if record.last_words.endswith(" GONE")] == []
