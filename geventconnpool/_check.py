"""Bad input gets a clear error at once, naming the parameter and the value. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

# CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR of the module inspect, which takes long to import.
RUNS_LATER = 0x20 | 0x80 | 0x200


def seconds(parameter: str, value: object, *, positive: bool = False) -> float:
    """Return ``value``; raise unless it is a finite number of seconds, 0 or more, or with ``positive`` more than 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{parameter} must be a number of seconds, not {show(value)}")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{parameter} must be {'more than 0' if positive else '0 or more'} seconds, not {show(value)}")
    return value


def seconds_or_none(parameter: str, value: object, *, positive: bool = False) -> float | None:
    return None if value is None else seconds(parameter, value, positive=positive)


def integer(parameter: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value``; raise unless it is an int between ``low`` and ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{parameter} must be an int, not {show(value)}")
    if value < low or (high is not None and value > high):
        raise ValueError(
            f"{parameter} must be {f'between {low} and {high}' if high else f'at least {low}'}, not {show(value)}"
        )
    return value


def number(parameter: str, value: object, low: float, high: float) -> float:
    """Return ``value``; raise unless it is a number between ``low`` and ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{parameter} must be a number, not {show(value)}")
    if not low <= value <= high:
        raise ValueError(f"{parameter} must be between {low:g} and {high:g}, not {show(value)}")
    return value


def factor(parameter: str, value: object) -> float:
    """Return ``value``; raise unless it is a finite number that is more than 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{parameter} must be a number, not {show(value)}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{parameter} must be a number above 0, not {show(value)}")
    return value


def iterable(parameter: str, value: object, of: str) -> None:
    """Raise :class:`TypeError` unless ``value`` can be gone through and is no text, which has only letters in it."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{parameter} must be an iterable of {of}, not {show(value)}")


def function(parameter: str, value: object) -> None:
    """Raise :class:`TypeError` unless ``value`` can be called, or is None."""
    if value is not None and not callable(value):
        raise TypeError(f"{parameter} must be callable, not {show(value)}")


def plain_function(parameter: str, value: object) -> None:
    """Raise :class:`TypeError` if ``value`` is a function that runs nothing when it is called: async, or with yield."""
    flags = getattr(getattr(value, "__code__", None), "co_flags", 0)
    if isinstance(flags, int) and flags & RUNS_LATER:
        raise TypeError(f"{parameter} must be a plain function, not one that is async or has a yield: {show(value)}")


def exception_classes(parameter: str, value: object) -> tuple[type[BaseException], ...]:
    """Return one exception class, or an iterable of them, as a tuple; raise TypeError if it is neither."""
    if isinstance(value, type):
        value = (value,)
    try:
        classes: tuple[Any, ...] = tuple(value)  # type: ignore[arg-type]  # whether it can be iterated is the question
    except TypeError:
        raise TypeError(f"{parameter} must be exception classes, not {show(value)}") from None
    if not classes:
        raise ValueError(f"{parameter} is empty: no exception would mean a broken connection")
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            what = value if isinstance(value, (str, bytes)) else item  # no user has written the letter "O"
            raise TypeError(f"{parameter} must hold exception classes, not {show(what)}")
    return classes


def without_traceback(error: BaseException) -> BaseException:
    """Return what looks like ``error`` but holds on to nothing: no frames, no other errors. Itself if that fails."""
    try:
        likeness = type(error).__new__(type(error), *error.args)
        if isinstance(likeness, OSError):
            OSError.__init__(likeness, *error.args)  # a subclass with an __init__ of its own leaves it to that
        likeness.args = error.args
        likeness.__dict__.update(error.__dict__)
    except BaseException:  # whatever the user's class raises here is not the caller's business
        return error
    return likeness


def show(value: object) -> str:
    """Return ``repr(value)``, or something like it for an object that cannot be shown."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"


def is_connection_error(exc: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    """Say whether ``exc`` is one of ``classes``, and not an OSError about a file.

    ``socket.error`` has been OSError since Python 3.3, so it matches what ``open()`` and ``os.stat()`` raise too.
    Those have a ``filename``; they are the application's, unless a proper subclass of OSError that they are instances
    of is named.
    """
    if not isinstance(exc, classes):
        return False
    if not isinstance(exc, OSError) or exc.filename is None:
        return True
    return any(isinstance(exc, c) for c in classes if c is not OSError and issubclass(c, OSError))
