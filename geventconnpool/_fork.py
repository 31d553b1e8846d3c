"""Noticing that this process is the child of a fork, and keeping the child's hands off what is its parent's.

A child has copies of everything: connections that share their sockets with the parent, greenlets that wait on them,
timers. It must not use any, and not even let them be collected: the ``__del__`` of many a client object says goodbye,
on the parent's socket.

Three things see to that. ``stamp[0]`` is another number in a child, however it was forked: it is in a page that the
kernel wipes (``MADV_WIPEONFORK``, Linux 4.14), and where there is none it goes by the process id. Everything of ours
compares it with the number it began with, before it acts; who lends looks at a mark of the same kind that is quicker to
read, ``life()[0]``. What was inherited is buried: kept, untouched, until the process ends, and then not finalized
either. It is held from before the fork on: a forgotten pool whose cycle nobody has collected yet would be finalized,
connections and all, if the collector came in a hook of somebody else, before ours.
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
    """What differs between a process and its children, at ``[0]``."""

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


def make_page() -> mmap.mmap | None:
    """Return bytes that are zero in a child, or None where the kernel cannot do that."""
    if sys.platform == "linux":
        with suppress(OSError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_MADV_WIPEONFORK)
            return page
    return None


def make_stamp() -> Stamp:
    """Return a number, zero now, that is so in every child, whatever it becomes here."""
    page = make_page()
    return OwnNumber() if page is None else memoryview(page).cast("Q")


class _Life:
    """One native thread of this process: ``mark[0]`` is 1 while it lives, zero afterwards and in a child.

    By its ident alone it could not be told: the system uses those again. A byte of a page is what is read quickest.
    """

    def __init__(self) -> None:
        self.mark: Stamp = make_page() or OwnNumber()
        self.mark[0] = 1

    def __del__(self) -> None:
        self.mark[0] = 0


def life() -> Stamp:
    """Return what is 1, at ``[0]``, while this thread of this process lives, and zero afterwards and in a child."""
    if getattr(_here, "life", None) is None or not _here.life.mark[0]:
        _here.life = _Life()
    mark: Stamp = _here.life.mark
    return mark


get_ident: Any = get_original("_thread", "get_ident")  # of the native thread, patched or not
_here: Any = get_original("_thread", "_local")()  # of each native thread
stamp = make_stamp()
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
