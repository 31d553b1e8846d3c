"""At the end, a table: which recipes ran, against which versions."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = _rows(terminalreporter.stats)
    if not rows:
        return
    terminalreporter.section("recipes")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())


def _rows(stats: dict[str, list[Any]]) -> list[tuple[str, ...]]:
    """Return (recipe, client, server, what became of its scenes), sorted."""
    versions: dict[str, dict[str, str]] = {}
    outcomes: dict[str, dict[str, int]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in stats.get(outcome, ()):
            told = {key: value for key, value in getattr(report, "user_properties", ()) if key == "recipe"}
            if told:
                name = told["recipe"]["recipe"]
                versions.setdefault(name, {}).update(told["recipe"])
                outcomes.setdefault(name, {}).setdefault(outcome, 0)
                outcomes[name][outcome] += 1
    return [
        (name, known.get("client", "-"), known.get("server", "-"), _counts(outcomes[name]))
        for name, known in sorted(versions.items())
    ]


def _counts(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
