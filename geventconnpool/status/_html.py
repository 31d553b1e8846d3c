"""The status page for a browser: one table, which on a narrow screen becomes a list of cards. Pure.

No script, and nothing from outside; the style is part of the page, and ``POLICY`` allows just that. Every text goes
through ``escape``, as names and errors may be what an attacker has chosen.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

from geventconnpool.status._report import Report
from geventconnpool.status._table import COLUMNS, Note, Row, rows, summary

REFRESH = 5  # seconds that the link on the page offers
LABELS = tuple(map(escape, COLUMNS))

# The colours have a contrast of 4.5 or more (WCAG AA) on all grounds they stand on, which a test measures.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --band: #f1f3f4; --line: #dadce0; --ink: #1f1f1f; --soft: #5a5e63;
  --good: #146c36; --bad: #b3261e; --care: #8f4a00; --link: #0b57d0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #17181a; --band: #232528; --line: #3c3f44; --ink: #e8eaed; --soft: #b4b8bd;
    --good: #6dd58c; --bad: #f2958e; --care: #fbb65c; --link: #8ab4f8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem; max-width: 84rem; background: var(--page); color: var(--ink);
  font: 0.875rem/1.45 -apple-system, "Segoe UI", Roboto, system-ui, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; -webkit-text-size-adjust: 100%;
}
header { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: baseline; margin-bottom: 1rem; }
h1 { margin: 0; font-size: 1.25rem; font-weight: 600; }
header p { margin: 0.25rem 0; flex: 1 1 20rem; color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 0 1rem; }
a { color: var(--link); }
main { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: 0.375rem 0.5rem; text-align: right; vertical-align: baseline; font-weight: 400; }
thead th { border-bottom: 1px solid var(--line); color: var(--soft); font-size: 0.75rem; white-space: nowrap; }
th:first-child, th:nth-child(2), td.state, td.notes, th:last-child, tr:not(.notes) td:last-child { text-align: left; }
td.n { white-space: nowrap; }
td.zero { color: var(--soft); }
tbody th { min-width: 9rem; }
tbody { border-bottom: 1px solid var(--line); }
tbody:not(.endpoint) { background: var(--band); border-top: 1px solid var(--line); }
tbody:not(.endpoint) th { font-weight: 600; }
.endpoint th, .endpoint td.notes { padding-left: 1.25rem; }
td.notes { padding-top: 0; color: var(--soft); font-size: 0.8125rem; }
td.notes p { margin: 0 0 0.125rem; max-width: 120ch; }
td.notes b { font-weight: 600; }
td.notes .bad { color: var(--bad); }
td.notes .care { color: var(--care); }
small { color: var(--soft); font-size: 0.75rem; font-weight: 400; }
.badge { white-space: nowrap; font-weight: 600; }
.badge::before { display: inline-block; width: 1.25em; }
.active::before { content: "\\25CF"; }
.ejected::before, .unavailable::before { content: "\\25B2"; }
.draining::before { content: "\\25C6"; }
.starting::before { content: "\\25CB"; }
.closed::before { content: "\\25A0"; }
.badge.active { color: var(--good); }
.badge.ejected, .badge.unavailable { color: var(--bad); }
.badge.draining, .badge.starting { color: var(--care); }
.badge.closed { color: var(--soft); }
@media (max-width: 68rem) {
  body { padding: 1rem; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, td.notes { display: block; }
  tbody { margin-bottom: 0.5rem; padding: 0.625rem 0.75rem; border: 1px solid var(--line); border-radius: 0.5rem; }
  tbody:not(.endpoint) { margin-top: 1.5rem; }
  tr:not(.notes) {
    display: grid; grid-template-columns: repeat(auto-fill, minmax(5.75rem, 1fr)); gap: 0.25rem 0.75rem;
  }
  .endpoint th, .endpoint td.notes, th, td { padding: 0; }
  tbody th, tbody td, td.n { text-align: left; }
  tbody th { grid-column: 1 / -1; font-weight: 600; }
  td.state { grid-column: 1 / -1; margin-bottom: 0.125rem; }
  td.n::before { content: attr(data-label); display: block; color: var(--soft); font-size: 0.75rem; }
  td.n.none { display: none; }
  td.notes { margin-top: 0.5rem; }
}
"""


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# Nor may a browser ask for /favicon.ico, which would be an error in the log of whoever mounts the page.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_hash(STYLE)}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render(report: Report, refresh: int | None = None) -> str:
    """Return the page, which asks the browser to load it again after ``refresh`` seconds (None: not)."""
    table = rows(report)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{_refresh(refresh)}<title>Connection pools</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>Connection pools</h1>
<p>{escape(summary(report))}</p>
<nav>{_links(refresh)}</nav>
</header>
<main>
{_table(table) if table else "<p>The pools that were to be shown here are gone.</p>"}
</main>
</body>
</html>
"""


def _refresh(seconds: int | None) -> str:
    return "" if seconds is None else f'<meta http-equiv="refresh" content="{seconds}">\n'


def _links(refresh: int | None) -> str:
    """Return relative links: they lead to wherever the page is mounted."""
    reload = f'<a href="?refresh={REFRESH}">Refresh every {REFRESH} s</a>'
    if refresh is not None:
        reload = f'<a href="?">Stop refreshing every {refresh} s</a>'
    return f'{reload} <a href="?format=json">JSON</a> <a href="?format=text">Text</a>'


def _table(table: tuple[Row, ...]) -> str:
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in ("Name", "State", *COLUMNS))
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n{''.join(map(_row, table))}</table>"


def _row(row: Row) -> str:
    cells = "".join(map(_cell, LABELS, row.cells))
    verdict = f" <small>{escape(row.verdict)}</small>" if row.verdict else ""
    kind = f" <small>{escape(row.kind)}</small>" if row.kind != "endpoint" else ""
    state = f'<span class="badge {escape(row.state)}">{escape(row.state)}</span>{verdict}'
    return (
        f'<tbody class="{escape(row.kind)}">\n'
        f'<tr><th scope="row">{escape(row.name)}{kind}</th><td class="state">{state}</td>{cells}</tr>\n'
        f"{_notes(row.notes)}</tbody>\n"
    )


def _cell(label: str, text: str) -> str:
    weight = {"": " none", "0": " zero"}.get(text, "")
    return f'<td class="n{weight}" data-label="{label}">{escape(text)}</td>'


def _notes(notes: tuple[Note, ...]) -> str:
    if not notes:
        return ""
    lines = "".join(f'<p class="{escape(n.tone)}"><b>{escape(n.title)}</b> {escape(n.text)}</p>' for n in notes)
    return f'<tr class="notes"><td class="notes" colspan="{len(COLUMNS) + 2}">{lines}</td></tr>\n'
