"""Noticing that this process is the child of a fork, and keeping the child's hands off what is its parent's.

A child has copies of everything: connections that share their sockets with the parent, greenlets that wait on them,
timers. It must not use any, and not even let them be collected: the ``__del__`` of many a client object says goodbye,
on the parent's socket.

Three things see to that. ``stamp[0]`` is another number in a child, however it was forked: it is in a page that the
kernel wipes (``MADV_WIPEONFORK``, Linux 4.14), and where there is none it goes by the process id. Everything of ours
compares it with the number it began with, before it acts. What was inherited is buried: kept, untouched, until the
process ends, and then not finalized either. It is held from before the fork on: a forgotten pool whose cycle nobody has
collected yet would be finalized, connections and all, if the collector came in a hook of somebody else, before ours.
"""

from __future__ import annotations

import atexit
import mmap
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

from gevent.monkey import get_original

_MADV_WIPEONFORK = 18  # asm-generic/mman-common.h; the mmap module has no name for it


class Stamp(Protocol):
    """What differs between a process and its children: compare ``stamp[0]``."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, number: int, /) -> None: ...


class OwnNumber:
    """A number that is zero in a child until it is set there, where the kernel wipes no pages: slower, and as good."""

    def __init__(self) -> None:
        self[0] = 0

    def __getitem__(self, index: int, /) -> int:
        return self._number if os.getpid() == self._process else 0

    def __setitem__(self, index: int, number: int, /) -> None:
        self._process, self._number = os.getpid(), number


class Heir(Protocol):
    """What has inherited property: asked for what must not be touched in a child."""

    def property(self) -> Any: ...


def make_page() -> memoryview | None:
    """Return numbers that are zero in a child, or None where the kernel cannot do that."""
    if sys.platform == "linux":
        with suppress(OSError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_MADV_WIPEONFORK)
            return memoryview(page).cast("Q")
    return None


def make_number() -> Stamp:
    """Return a number, zero now, that is so in every child, whatever it becomes here."""
    global _rest
    if _rest is None or not len(_rest):
        _rest = make_page()
    if _rest is None:
        return OwnNumber()
    number, _rest = _rest[:1], _rest[1:]
    return number


class _Place:
    """One native thread of this process: ``number[0]`` is its ident while it lives, zero afterwards and in a child.

    By its ident alone it could not be told: the system uses those again.
    """

    def __init__(self) -> None:
        self.number = make_number()
        self.number[0] = get_ident()

    def __del__(self) -> None:
        self.number[0] = 0


def place() -> Stamp:
    """Return what belongs to this thread of this process: who is elsewhere has a ``get_ident()`` that is no ``[0]``."""
    if getattr(_here, "place", None) is None or _here.place.number[0] != get_ident():
        _here.place = _Place()
    number: Stamp = _here.place.number
    return number


get_ident: Any = get_original("_thread", "get_ident")  # of the native thread, patched or not
_here: Any = get_original("_thread", "_local")()  # of each native thread
_rest = make_page()  # of a page, not used yet
stamp = make_number()
_generation = 0  # of processes, counted along one line of descent
_living: WeakSet[Any] = WeakSet()
_graveyard: list[Any] = []
_held: dict[int, Any] = {}  # by the native thread that is forking just now


def current() -> int:
    """Return the stamp of this process; the first to ask in a child gives it a new one."""
    global _generation
    if not stamp[0]:
        _generation += 1
        stamp[0] = _generation
    return stamp[0]


def enrol(heir: Heir) -> None:
    """Have what ``heir`` has got buried in every child, even in one that never uses it."""
    _living.add(heir)


def bury(heir: Heir) -> None:
    """Keep what was inherited, untouched, until the process ends."""
    _living.discard(heir)
    keep(heir.property())


def keep(inherited: Any) -> None:
    """Keep something inherited until the process ends."""
    _graveyard.append(inherited)


def after_in_child(call: Callable[[], None]) -> None:
    """Have something called in each child, where Python knows of it, as soon as it runs."""
    if _register is not None:
        _register(after_in_child=call)


# These run in fork(), before it and before whatever parent and child do: no lock, no log, no switch.


def _hold_all() -> None:
    _held[get_ident()] = [heir.property() for heir in list(_living)]


def _let_go() -> None:
    _held.pop(get_ident(), None)


def _bury_all() -> None:
    for heir in list(_living):
        bury(heir)
    for held in _held.values():
        keep(held)
    _held.clear()


def _leave_unfinalized() -> None:
    """The interpreter is about to end, and would finalize what is in the graveyard: have it believe that it may not."""
    for heir in list(_living):
        if heir.is_inherited:
            bury(heir)
    if _graveyard:
        import ctypes  # only here: it takes 3 ms, and few processes are a child that ends in this way

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_graveyard))


current()
_register: Callable[..., None] | None = getattr(os, "register_at_fork", None)
if _register is not None:
    _register(before=_hold_all, after_in_parent=_let_go, after_in_child=_bury_all)
atexit.register(_leave_unfinalized)
