"""Makes the pictures in docs/screenshots: what a terminal shows, as SVG.

Run ``python -m tests.console_pictures`` when the commands show something else than before.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

from tests.console import SERVICE, Service, Terminal, command
from tests.servers import wait_until

SCREENSHOTS = Path(__file__).parent.parent / "docs" / "screenshots"
COLUMN, LINE, MARGIN = 8.0, 18.0, 14.0  # pixels
PAGE, INK = "#1b1f24", "#d7dce2"
COLOURS = {31: "#ff7b72", 32: "#56d364", 33: "#e3b341", 36: "#76e3ea"}
STYLE = "text { font: 13.3px 'DejaVu Sans Mono', Menlo, Consolas, monospace; white-space: pre; }"


@dataclass(frozen=True)
class Pen:
    colour: str = INK
    is_bold: bool = False
    is_dim: bool = False

    def after(self, codes: str) -> Pen:
        pen = self
        for code in map(int, codes.split(";") if codes else ["0"]):
            if code == 0:
                pen = Pen()
            elif code in COLOURS:
                pen = replace(pen, colour=COLOURS[code])
            else:
                pen = replace(pen, is_bold=pen.is_bold or code == 1, is_dim=pen.is_dim or code == 2)
        return pen


def svg(text: str, columns: int) -> str:
    """Return a picture of some lines with escape sequences for colours."""
    lines = text.replace("\r", "").rstrip("\n").split("\n")
    width, height = columns * COLUMN + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN
    drawn = "\n".join(shape for number, line in enumerate(lines) for shape in shapes(line, MARGIN + number * LINE))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}">\n<style>{STYLE}</style>\n'
        f'<rect width="100%" height="100%" rx="8" fill="{PAGE}"/>\n{drawn}\n</svg>\n'
    )


def shapes(line: str, top: float) -> Iterator[str]:
    pen, left = Pen(), MARGIN
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z])", line):
        if part.startswith("\x1b"):
            pen = pen.after(part[2:-1]) if part.endswith("m") else pen
            continue
        for run in re.findall(r"█+|▒+|[^█▒]+", part):
            if run.strip():
                yield shape(run, pen, left, top)
            left += len(run) * COLUMN


def shape(run: str, pen: Pen, left: float, top: float) -> str:
    width = len(run) * COLUMN
    if run[0] in "█▒":
        opacity = 0.85 if run[0] == "█" else 0.4
        place = f'x="{left:g}" y="{top + 2:g}" width="{width:g}" height="{LINE - 4:g}"'
        return f'<rect {place} fill="{INK}" opacity="{opacity}"/>'
    weight = ' font-weight="bold"' if pen.is_bold else ""
    opacity_of = ' opacity="0.6"' if pen.is_dim else ""
    # The length keeps columns where they are, whatever the font.
    return (
        f'<text x="{left:g}" y="{top + 13:g}" textLength="{width:g}" fill="{pen.colour}"{weight}{opacity_of} '
        f'xml:space="preserve">{escape(run)}</text>'
    )


def demo() -> str:
    """A backend killed, another that hangs; a third removed from DNS, and the fourth added."""
    with Terminal(command("demo")) as terminal:
        terminal.see("active")
        wait_until(lambda: terminal.text.count(" active ") == 3)
        terminal.type("4a")
        wait_until(lambda: terminal.text.count(" active ") == 4)
        terminal.type("2k3h")
        wait_until(lambda: len(re.findall(r" ejected +0 ", terminal.text)) == 2)
        frame = terminal.frame
        terminal.type("q")
        terminal.wait()
    return svg(frame, 80)


def check() -> str:
    """Three servers with TLS, of which one is not there."""
    with tempfile.TemporaryDirectory() as directory, Service(Path(directory), tls=True) as service:
        service.servers[2].stop()
        options = ["--tls", "--ca-file", "ca.pem"]
        arguments = command("check", SERVICE, *options, "--nameserver", service.nameserver)
        with Terminal(arguments, columns=84, lines=30, directory=directory) as terminal:
            terminal.wait()
            written = terminal.written
        shown = f"$ geventconnpool check {SERVICE} {' '.join(options)}\n{written}"
        return svg(shown.replace(service.nameserver, "127.0.0.1:53"), 84)


if __name__ == "__main__":
    SCREENSHOTS.mkdir(exist_ok=True)
    for make in (demo, check):
        if len(sys.argv) == 1 or make.__name__ in sys.argv[1:]:
            (SCREENSHOTS / f"{make.__name__}.svg").write_text(make())
