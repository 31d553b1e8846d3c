"""The Python in README.rst and in docs/."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^\.\. code-block:: python\n\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)


def blocks(text: str) -> list[tuple[int, str]]:
    """Return (number of lines before it, source) for each Python block."""
    return [(text[: match.start(1)].count("\n"), textwrap.dedent(match[1])) for match in BLOCK.finditer(text)]
