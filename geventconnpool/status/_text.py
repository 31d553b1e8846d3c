"""The status page for a terminal: aligned columns, and below each line what takes a sentence. Pure."""

from __future__ import annotations

from geventconnpool.status._report import Report
from geventconnpool.status._table import COLUMNS, Row, rows, summary

INDENT = "  "  # of an endpoint under its cluster


def render(report: Report) -> str:
    """Return the page; ends with a newline."""
    table = rows(report)
    if not table:
        return f"{summary(report)}\n"
    lines = [("", "State", *COLUMNS), *map(_cells, table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    page = [summary(report), "", _line(lines[0], widths)]
    for row, cells in zip(table, lines[1:], strict=True):
        if row.kind != "endpoint":
            page.append("")
        page.append(_line(cells, widths))
        page.extend(f"{_indent(row)}{INDENT}{note.title}: {note.text}" for note in row.notes)
    return "\n".join(page) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    return (_indent(row) + row.name, f"{row.state}, {row.verdict}" if row.verdict else row.state, *row.cells)


def _indent(row: Row) -> str:
    return INDENT if row.kind == "endpoint" else ""


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Align words to the left and numbers to the right."""
    padded = [
        cell.ljust(width) if number in (0, 1, len(cells) - 1) else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
