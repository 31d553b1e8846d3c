"""A terminal that is drawn on and whose keys are read one by one, and left as it was found, whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import gevent
from gevent import socket
from gevent.queue import Queue

from geventconnpool._commands._terminal import DEFAULT_HEIGHT, DEFAULT_WIDTH, fit, width_of

# The other screen, without a cursor, and lines that are cut at the edge instead of going on in the next.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_END_OF_LINE, _END_OF_SCREEN, _HOME = "\x1b[K", "\x1b[J", "\x1b[H"
_IFLAG = 0  # of what tcgetattr returns
_NAMED_KEY = re.compile(r"\x1b(?:\[[0-9;]*[@-~]|O[@-~])?")  # arrows and the like


class Screen:
    """The terminal that ``keyboard`` reads from and ``stream`` writes to; to be used in a ``with`` block.

    Keys are in the queue ``keys``, None for the end of the input.
    """

    def __init__(self, keyboard: TextIO, stream: TextIO) -> None:
        self.keys: Queue[str | None] = Queue()
        self._fd = keyboard.fileno()
        self._stream = stream

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Have the screen for as long as the block lasts."""
        before = termios.tcgetattr(self._fd)
        reader = gevent.spawn(self._read)
        stopper = gevent.signal_handler(signal.SIGTSTP, self._stop, before)
        try:
            self._enter()
            yield
        finally:
            stopper.cancel()
            reader.kill()
            self._leave(before)

    def draw(self, frame: Callable[[int, int], Sequence[str]]) -> None:
        """Show the lines that ``frame`` returns for so many columns and lines, no more than there is room for."""
        size = os.get_terminal_size(self._stream.fileno())  # of now: windows change
        # Of a serial line and the like, 0 says that nobody knows.
        columns, lines = size.columns or DEFAULT_WIDTH, size.lines or DEFAULT_HEIGHT
        # The cursor stands on the last column of a line that is full, not behind it: nothing is to be erased there.
        shown = [
            f"{fit(line, columns)}{_END_OF_LINE if width_of(line) < columns else ''}"
            for line in frame(columns, lines)[:lines]
        ]
        self._write(_HOME + "\r\n".join(shown) + _END_OF_SCREEN)

    def _enter(self) -> None:
        tty.setcbreak(self._fd, termios.TCSANOW)
        settings = termios.tcgetattr(self._fd)
        settings[_IFLAG] &= ~termios.IXON  # Ctrl-S would stop the whole program at its next line
        termios.tcsetattr(self._fd, termios.TCSANOW, settings)
        self._write(_ENTER)

    def _leave(self, before: list[object]) -> None:
        # The terminal may be gone. What was typed and not read is not for the shell.
        with contextlib.suppress(OSError):
            self._write(_LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._fd, termios.TCSAFLUSH, before)  # type: ignore[arg-type]  # what it has returned

    def _stop(self, before: list[object]) -> None:
        """Ctrl-Z: the shell gets its terminal, and then we get it back."""
        self._leave(before)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()

    def _read(self) -> None:
        while True:
            socket.wait_read(self._fd)
            try:
                typed = os.read(self._fd, 1024).decode(errors="replace")
            except OSError:
                typed = ""
            if not typed:
                self.keys.put(None)
                return
            for key in _NAMED_KEY.sub("", typed):
                self.keys.put(key)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
