"""The states of a connection and of an endpoint, and how they follow each other: drawn from what was recorded.

``python -m tests.diagrams`` writes ``docs/plots/states-*.svg`` and ``.csv`` anew. What is drawn, and what is said about
it, stands here; a move that is recorded and not drawn, or drawn and not recorded, is an error, and so is a reason
without words.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from tests.benchmarks.svg import DARK, LIGHT, _text
from tests.moves import FREE, GONE, Moves, scripted

PLOTS = Path(__file__).parent.parent / "docs" / "plots"

Place = tuple[float, float]
Move = tuple[str, str]


@dataclass(frozen=True)
class Arrow:
    """A move: the line it is drawn as, and a word or two at a place."""

    line: Sequence[Place]
    word: str
    at: Place
    anchor: str = "middle"


@dataclass(frozen=True)
class Drawing:
    """What is drawn, and in which words its reasons are told."""

    title: str
    height: int
    states: Mapping[str, Place]
    outside: str  # what is no state
    arrows: Mapping[Move, Arrow]
    words: Mapping[tuple[str, str], str]  # by the state that is entered, and the transition or the cause


WIDTH = 720
BOX = (104, 36)

SLOT = Drawing(
    title="One connection",
    height=420,
    states={
        FREE: (72, 130),
        "connecting": (232, 130),
        "idle": (432, 130),
        "in use": (640, 130),
        "checking": (432, 250),
        "closing": (232, 360),
    },
    outside=FREE,
    arrows={
        (FREE, "connecting"): Arrow([(124, 122), (180, 122)], "wanted", (152, 112)),
        ("connecting", FREE): Arrow([(180, 138), (124, 138)], "failed", (152, 156)),
        ("connecting", "idle"): Arrow([(284, 130), (380, 130)], "opened", (332, 122)),
        ("connecting", "in use"): Arrow([(232, 112), (270, 60), (602, 60), (640, 112)], "somebody waits", (436, 52)),
        ("connecting", "checking"): Arrow([(268, 148), (384, 232)], "a probe", (334, 206), "end"),
        ("connecting", "closing"): Arrow([(222, 148), (222, 342)], "not wanted", (216, 240), "end"),
        ("idle", "in use"): Arrow([(484, 122), (588, 122)], "lent", (536, 114)),
        ("in use", "idle"): Arrow([(588, 138), (484, 138)], "returned", (536, 156)),
        ("idle", "checking"): Arrow([(424, 148), (424, 232)], "silent", (418, 180), "end"),
        ("checking", "idle"): Arrow([(440, 232), (440, 148)], "alive", (446, 212), "start"),
        ("checking", "in use"): Arrow([(484, 240), (606, 148)], "somebody waits", (536, 226), "start"),
        ("checking", "closing"): Arrow([(392, 268), (276, 342)], "failed", (346, 314), "start"),
        ("idle", "closing"): Arrow([(392, 148), (246, 342)], "old, unused...", (322, 262), "end"),
        ("in use", "closing"): Arrow([(648, 148), (648, 360), (284, 360)], "error, interrupted...", (466, 352)),
        ("closing", FREE): Arrow([(180, 360), (64, 360), (64, 148)], "closed", (122, 352)),
    },
    words={
        ("connecting", "plan"): "one is wanted",
        ("connecting", "open_one"): "somebody waits, and the balancer prefers this endpoint",
        (FREE, "connect_failed"): "the connect failed, or was cancelled",
        (FREE, "closed"): "it is closed",
        ("idle", "opened"): "it is open",
        ("in use", "opened"): "it is open, and somebody waits",
        ("checking", "opened"): "a probe: it is kept alive once",
        ("idle", "kept_alive"): "it was kept alive",
        ("in use", "kept_alive"): "it was kept alive, and somebody waits",
        ("checking", "plan"): "it was silent for ``keepalive`` seconds",
        ("in use", "take"): "lent",
        ("in use", "take_idle"): "lent",
        ("idle", "returned"): "returned",
        ("idle", "end"): "returned",
        ("idle", "pass_on"): "the waiter it was handed to was interrupted",
        ("closing", "error"): "a connection error",
        ("closing", "interrupted"): "an interruption",
        ("closing", "user"): "``discard``",
        ("closing", "not_reusable"): "``_is_reusable`` says no",
        ("closing", "stale"): "its peer has closed it",
        ("closing", "keepalive"): "``_keepalive`` failed",
        ("closing", "lifetime"): "older than ``max_lifetime``",
        ("closing", "idle"): "unused for ``max_idle``",
        ("closing", "reset"): "``reset``",
        ("closing", "resized"): "one too many after ``resize``",
        ("closing", "moved"): "its address left the endpoint",
        ("closing", "drained"): "its endpoint drains",
        ("closing", "ejected"): "its endpoint is ejected",
        ("closing", "closed"): "the pool is closed",
        ("closing", "cut"): "the time of ``close``, or of ``drain_timeout``, is over",
    },
)

MEMBER = Drawing(
    title="One endpoint of a service",
    height=300,
    states={GONE: (72, 80), "active": (260, 80), "ejected": (620, 80), "draining": (440, 230)},
    outside=GONE,
    arrows={
        (GONE, "active"): Arrow([(124, 80), (208, 80)], "in DNS", (166, 72)),
        ("active", "ejected"): Arrow([(312, 72), (568, 72)], "an outlier", (440, 64)),
        ("ejected", "active"): Arrow([(568, 88), (312, 88)], "a probe passed", (440, 106)),
        ("active", "draining"): Arrow([(262, 98), (388, 222)], "left DNS", (312, 164), "end"),
        ("draining", "active"): Arrow([(404, 212), (290, 98)], "back", (366, 162), "start"),
        ("ejected", "draining"): Arrow([(618, 98), (492, 222)], "left DNS", (566, 164), "start"),
        ("draining", "ejected"): Arrow([(476, 212), (590, 98)], "back", (514, 162), "end"),
        ("draining", GONE): Arrow([(388, 238), (72, 238), (72, 98)], "last call ended, or drain_timeout", (230, 230)),
    },
    words={
        ("active", "change"): "DNS names it",
        ("active", "probed"): "a probe passed",
        ("ejected", "failed"): "too many failures",
        ("ejected", "change"): "DNS names it again: it is probed at once",
        ("draining", "change"): "DNS no longer names it",
        (GONE, "emptied"): "its last connection is closed",
        (GONE, "tick"): "``drain_timeout`` is over",
    },
)


def check(drawing: Drawing, moves: Moves) -> None:
    """Raise AssertionError unless just what was recorded is drawn and has words."""
    assert moves.keys() == drawing.arrows.keys()
    reasons = {(to, reason) for (_, to), found in moves.items() for reason in found}
    assert reasons == drawing.words.keys()


def svg(drawing: Drawing) -> str:
    """Return a whole SVG file."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {drawing.height}" role="img" width="{WIDTH}">',
        f"<title>{escape(drawing.title)}</title>",
        f"<style>{_style(LIGHT[0], '#1f1f1f', '#ffffff', '#5f6368')}",
        f"@media (prefers-color-scheme: dark) {{{_style(DARK[0], '#e8eaed', '#17181a', '#bdc1c6')}}}</style>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 10 5 0 10z"/></marker></defs>',
        f'<rect class="page" width="{WIDTH}" height="{drawing.height}" rx="6"/>',
        _text(16, 24, drawing.title, kind="title"),
    ]
    for arrow in drawing.arrows.values():
        line = "M" + " L".join(f"{x} {y}" for x, y in arrow.line)
        parts.append(f'<path class="arrow" d="{line}" marker-end="url(#head)"/>')
    parts += [_text(*arrow.at, arrow.word, anchor=arrow.anchor) for arrow in drawing.arrows.values()]
    for name, (x, y) in drawing.states.items():
        kind = "outside" if name == drawing.outside else "state"
        left, top = x - BOX[0] / 2, y - BOX[1] / 2
        parts.append(f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{BOX[0]}" height="{BOX[1]}" rx="8"/>')
        parts.append(_text(x, y + 4, name, anchor="middle", kind="name"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _style(ours: str, ink: str, page: str, grey: str) -> str:
    return (
        f"text {{ font: 12px system-ui, sans-serif; fill: {ink}; }} .page {{ fill: {page}; }} "
        ".title { font-size: 14px; font-weight: 600; } .name { font-weight: 600; } "
        f".label {{ fill: {ink}; stroke: {page}; stroke-width: 4; paint-order: stroke; }} "
        f".arrow {{ fill: none; stroke: {grey}; stroke-width: 1.5; }} .head {{ fill: {grey}; }} "
        f".state {{ fill: {page}; stroke: {ours}; stroke-width: 2; }} "
        f".outside {{ fill: {page}; stroke: {grey}; stroke-width: 1.5; stroke-dasharray: 4 3; }}"
    )


def table(drawing: Drawing, moves: Moves) -> str:
    """Return a CSV file of all moves and why they are made."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["from", "to", "why"])
    for move in drawing.arrows:  # in the order in which they stand above
        told = {words: None for (to, reason), words in drawing.words.items() if to == move[1] and reason in moves[move]}
        rows.writerow([*move, "; ".join(told)])
    return out.getvalue()


def files() -> dict[str, str]:
    """Return name and contents of each file that is made here."""
    made: dict[str, str] = {}
    for name, drawing, moves in zip(("slot", "member"), (SLOT, MEMBER), scripted(), strict=True):
        check(drawing, moves)
        made |= {f"states-{name}.svg": svg(drawing), f"states-{name}.csv": table(drawing, moves)}
    return made


if __name__ == "__main__":
    for name, contents in files().items():
        (PLOTS / name).write_text(contents)
        print(PLOTS / name)
