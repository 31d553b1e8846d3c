"""What a request asks for: which form of the page, and how often again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from geventconnpool._check import show
from geventconnpool.status._report import printable

TYPES: Final = {"html": "text/html", "json": "application/json", "text": "text/plain"}
LONGEST_REFRESH = 3600  # seconds


@dataclass(frozen=True, slots=True)
class Wish:
    """``form`` is a key of ``TYPES``, ``refresh`` the seconds after which the page is to be loaded again."""

    form: str
    refresh: int | None


def wish(query: str, accept: str) -> Wish:
    """Return what a query string and an ``Accept`` header ask for; raise :class:`ValueError` for what there is not."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    return Wish(_form(options.get("format"), accept), _refresh(options.get("refresh")))


def _form(name: str | None, accept: str) -> str:
    if name is None:
        return max(TYPES, key=lambda form: quality(accept, TYPES[form]))  # of equals the first
    if name not in TYPES:
        raise ValueError(f"format must be html, json or text, not {printable(show(name))}")
    return name


def _refresh(text: str | None) -> int | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= LONGEST_REFRESH:
        return int(text)
    raise ValueError(f"refresh must be between 1 and {LONGEST_REFRESH} seconds, not {printable(show(text))}")


def quality(accept: str, media_type: str) -> float:
    """Return how welcome a media type is: the weight of the range that names it most closely (RFC 9110, 12.5.1)."""
    closest, weight = 0, 0.0
    ranges = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name in ranges and ranges.index(name) >= closest:
            closest, weight = ranges.index(name), _weight(parameters)
    return weight


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
