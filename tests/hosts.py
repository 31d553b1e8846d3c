"""What the runs of real programs that pools live in have in common: witnesses, requests, an orderly end."""

from __future__ import annotations

import os
import re
import signal
from itertools import count
from pathlib import Path
from time import monotonic

from gevent import socket
from gevent.pool import Pool as Group

from tests.servers import wait_until
from tests.witness import Program, Record, Witness

REQUESTS, REQUESTS_AFTERWARDS = 300, 100
CONCURRENT = 30
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


class WebServer(Run):
    """Two workers answer 300 requests; one is ended, another takes its place, and they answer 100 more."""

    listening = ""  # how it says where it listens, a regular expression with a group for the port
    booted = ""  # how it says which worker it has started, with a group for the process
    end_of_worker = signal.SIGTERM

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._numbers = count()
        self.wrong: list[str] = []
        self.program: Program

    def start(self) -> Program:
        raise NotImplementedError

    def tell(self) -> None:
        self.program = self.start()
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
        return [int(pid) for pid in re.findall(self.booted, self.program.output())]

    def _end_a_worker(self) -> None:
        victim = self.workers[0]
        os.kill(victim, self.end_of_worker)
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
        return int(re.findall(self.listening, self.program.output())[0])
