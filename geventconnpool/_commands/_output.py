"""Where a command writes: results to one stream, and how far it is to the other, if that is a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

import gevent

from geventconnpool._commands._terminal import PLAIN, Look, fit, look_of

PATIENCE = 0.4  # seconds: what takes no longer needs no word about how far it is
INTERVAL = 0.2  # seconds between two of these words
_CLEAR = "\r\x1b[K"


class Output:
    """The two streams of a command, and how to write to them. With ``as_json`` there is no line but of JSON."""

    def __init__(
        self, stdout: TextIO, stderr: TextIO, *, as_json: bool = False, environment: Mapping[str, str] = os.environ
    ) -> None:
        self.stdout = stdout
        self.as_json = as_json
        self.look = PLAIN if as_json else _look_of(stdout, environment)
        self._stderr = stderr
        self._tells_progress = stderr.isatty() and environment.get("TERM") != "dumb"
        self._is_telling = False

    def line(self, text: str = "") -> None:
        """Write a line at once. Raises :class:`OSError`, such as BrokenPipeError if nobody reads any more."""
        self._clear()
        print(text, file=self.stdout, flush=True)

    def document(self, value: object) -> None:
        """Write a value as one line of JSON."""
        self.line(json.dumps(value))

    @property
    def is_unread(self) -> bool:
        """Whether whoever read has closed the pipe, which else is only seen at the next line."""
        poll = select.poll()
        try:
            poll.register(self.stdout.fileno(), 0)
        except (OSError, ValueError):
            return False  # not a file of the system
        return any(event & select.POLLERR for _, event in poll.poll(0))

    @contextlib.contextmanager
    def progress(self, tell: Callable[[], str]) -> Iterator[None]:
        """While the block lasts, show what ``tell`` returns: to those who sit at a terminal."""
        if not self._tells_progress:
            yield
            return
        teller = gevent.spawn(self._tell, tell)
        try:
            yield
        finally:
            teller.kill(block=False)  # it is not to have another word before what was there is cleared
            self._clear()

    def _tell(self, tell: Callable[[], str]) -> None:
        gevent.sleep(PATIENCE)
        while True:
            self._stderr.write(_CLEAR + fit(tell(), shutil.get_terminal_size().columns - 1))
            self._stderr.flush()
            self._is_telling = True
            gevent.sleep(INTERVAL)

    def _clear(self) -> None:
        if self._is_telling:
            self._stderr.write(_CLEAR)
            self._stderr.flush()
            self._is_telling = False


def _look_of(stream: TextIO, environment: Mapping[str, str]) -> Look:
    return look_of(stream.isatty(), stream.encoding, shutil.get_terminal_size().columns, environment)


def end_with_signals() -> None:
    """Have signals that end a program raise :class:`SystemExit` in the greenlet that calls this, 128 + the number.

    Not a KeyboardInterrupt, which strikes whatever greenlet runs just then. One is enough: what is done at the end is
    not to be interrupted. Those that are ignored (nohup) stay so.
    """
    me = gevent.getcurrent()
    ended: list[int] = []

    def end(number: int) -> None:
        if not ended:
            ended.append(number)
            gevent.kill(me, SystemExit(128 + number))

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    for number in [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]:
        gevent.signal_handler(number, end, number)
