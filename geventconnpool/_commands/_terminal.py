"""What commands show, as text: tables, bars, colours, lines that fit. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

GAP = "  "  # between two columns
LEAST_BAR = 10  # columns that a bar has at its longest, however narrow the terminal is
NARROW, DEFAULT_WIDTH, DEFAULT_HEIGHT = 20, 80, 24

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36", "reverse": "7"}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_RESET = "\x1b[0m"


@dataclass(frozen=True)
class Look:
    """What a terminal can show: colours, more than ASCII, and how many columns."""

    has_colours: bool = False
    has_blocks: bool = False
    width: int = DEFAULT_WIDTH

    def paint(self, text: str, *styles: str) -> str:
        """Return ``text`` in a style such as ``"red"`` or ``"bold"``, as it is where there are no colours."""
        if not self.has_colours or not styles or not text:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}{_RESET}"

    @property
    def blocks(self) -> str:
        """What bars are made of: one character for each part of a bar."""
        return "█▒" if self.has_blocks else "#="


PLAIN = Look()


def look_of(is_terminal: bool, encoding: str | None, columns: int, environment: Mapping[str, str]) -> Look:
    """Return how to write to a stream. Colours are for terminals, and NO_COLOR (no-color.org) switches them off."""
    is_able = is_terminal and environment.get("TERM") != "dumb"
    return Look(
        has_colours=is_able and not environment.get("NO_COLOR"),
        has_blocks=_can_encode("█▒", encoding or "ascii"),
        width=max(NARROW, columns) if is_terminal else DEFAULT_WIDTH,
    )


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def width_of(text: str) -> int:
    """Return how many columns a text takes, colours not counted."""
    return len(_ESCAPE.sub("", text))


def fit(line: str, width: int) -> str:
    """Return as much of a line as ``width`` columns show, and no colour that goes on after it."""
    if width_of(line) <= width:
        return line
    shown, left = [], max(0, width)
    for part in re.split(f"({_ESCAPE.pattern})", line):
        is_escape = part.startswith("\x1b")
        shown.append(part if is_escape else part[:left])
        left -= 0 if is_escape else len(shown[-1])
    return "".join(shown)


@dataclass(frozen=True)
class Column:
    """A column of a table: numbers stand at its right. A ``least`` width keeps it calm when its content changes."""

    title: str
    is_number: bool = False
    least: int = 0


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a line of headings and a line for each row, of cells that may be coloured."""
    lines = [[column.title for column in columns], *rows]
    widths = [max(column.least, *(width_of(line[place]) for line in lines)) for place, column in enumerate(columns)]
    for line in lines:
        cells = zip(line, columns, widths, strict=True)
        yield GAP.join(_padded(cell, width, at_right=column.is_number) for cell, column, width in cells).rstrip()


def _padded(text: str, width: int, *, at_right: bool) -> str:
    room = " " * (width - width_of(text))
    return room + text if at_right else text + room


def bars(rows: Sequence[tuple[str, Sequence[float], str]], look: Look = PLAIN) -> Iterator[str]:
    """Yield a line for each row of (label, values, what to write behind it): its values as parts of one bar.

    All bars have the same scale; the longest takes what the terminal has left.
    """
    label = max((width_of(row[0]) for row in rows), default=0)
    behind = max((width_of(row[2]) for row in rows), default=0)
    room = max(LEAST_BAR, look.width - label - behind - 2 * len(GAP))
    longest = max((sum(values) for _, values, _ in rows), default=0.0)
    for name, values, text in rows:
        drawn = bar(values, longest, room, look.blocks)
        yield f"{_padded(name, label, at_right=False)}{GAP}{drawn}{GAP if drawn else ''}{text}".rstrip()


def bar(values: Iterable[float], longest: float, room: int, blocks: str) -> str:
    """Return the values one after the other, each in its block, where ``longest`` takes ``room`` columns.

    What is more than nothing is seen: the whole bar has a column at least.
    """
    drawn, total = "", 0.0
    for value, block in zip(values, blocks, strict=False):
        total += value
        end = math.floor(total / longest * room + 0.5) if longest > 0 else 0
        drawn += block * (max(end, 1 if total > 0 else 0) - len(drawn))
    return drawn


def milliseconds(seconds: float | None, digits: int = 1) -> str:
    """Return a time in ms, ``-`` for None."""
    return "-" if seconds is None else f"{seconds * 1000:.{digits}f}"


def count_of(number: int, noun: str) -> str:
    """Return ``1 endpoint`` or ``3 endpoints``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
