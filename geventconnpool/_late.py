"""The module ``events``, loaded when the first pool is made: to import it takes as long as half of all the rest."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Late:
    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module("geventconnpool.events"), name)
        setattr(self, name, value)
        return value


events: Any = _Late()


def load() -> None:
    """Have it loaded, by somebody who has the time."""
    import_module("geventconnpool.events")
