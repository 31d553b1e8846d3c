"""Noticing that this process is the child of a fork, and keeping the child's hands off what is its parent's.

A child has copies of everything: connections that share their sockets with the parent, greenlets that wait on them,
timers. It must not use any, and not even let them be collected: the ``__del__`` of many a client object says goodbye,
on the parent's socket.

Three things see to that. ``stamp[0]`` is another number in a child, however it was forked: it is in a page that the
kernel wipes (``MADV_WIPEONFORK``, Linux 4.14), and where there is none it is the process id. Everything of ours
compares it with the number it began with, before it acts. What was inherited is buried: kept, untouched, until the
process ends, and then not finalized either.
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

_MADV_WIPEONFORK = 18  # asm-generic/mman-common.h; the mmap module has no name for it


class Stamp(Protocol):
    """What differs between a process and its children: compare ``stamp[0]``."""

    def __getitem__(self, index: int, /) -> int: ...


class ProcessId:
    """The stamp where the kernel wipes no pages: eight times slower, and as good."""

    def __getitem__(self, index: int, /) -> int:
        return os.getpid()


class Heir(Protocol):
    """What has inherited property: asked for what must not be touched in a child."""

    def property(self) -> Any: ...


def make_stamp() -> Stamp:
    """Return a number in a page that is zero in a child, or the process id where the kernel cannot do that."""
    if sys.platform == "linux":
        with suppress(OSError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_MADV_WIPEONFORK)
            return memoryview(page).cast("Q")
    return ProcessId()


stamp = make_stamp()
_generation = 0  # of processes, counted along one line of descent
_living: WeakSet[Any] = WeakSet()
_graveyard: list[Any] = []


def current() -> int:
    """Return the stamp of this process; the first to ask in a child gives it a new one."""
    global _generation
    if isinstance(stamp, memoryview) and not stamp[0]:
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


def _bury_all() -> None:
    # Runs between fork() and whatever the child does: no lock, no log, no switch.
    for heir in list(_living):
        bury(heir)


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
    _register(after_in_child=_bury_all)
atexit.register(_leave_unfinalized)
