"""What a package index is told about the project: README.rst, its links into docs/ being the names of the files.

Beside the code these links work. On the page of an index they would lead nowhere, as the files are not there; they are
in the source distribution, under the names that remain.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"`[^`<]*<(docs/[^>]+)>`_")


class Readme(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.rst").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/x-rst", "text": LINK.sub(r"``\1``", text)}
