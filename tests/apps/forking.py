"""A program that forks in the middle of a scene: ``python -m tests.apps.forking os|multiprocessing|libc SCENE``.

With PATCHED in the environment it is patched. Else, with REINIT, the child does what gevent asks of one that was not
forked by gevent. Parent, child and grandchild print what they do as ``<who> <what>``.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable

NAMES = ("parent", "child", "grandchild")
generation = 0
_close = os.close  # where patched, it closes when the hub runs


def say(text: str) -> None:
    os.write(1, f"{NAMES[generation]} {text}\n".encode())  # at once: a buffer would be inherited


def fork(child: Callable[[], object]) -> None:
    """Run ``child`` in another process, and block, the hub with it, until that has ended.

    So whatever comes in meanwhile is there for inherited greenlets to take, if they were to run in the child.
    """
    reading, writing = os.pipe()
    WAYS[sys.argv[1]](lambda: _live(child))
    _close(writing)
    os.read(reading, 1)  # the end: all who had the other side are gone
    _close(reading)


def _live(child: Callable[[], object]) -> None:
    global generation
    generation += 1
    say(f"is {os.getpid()}")
    try:
        _reinitialize()
        child()
    except Exception:
        say(f"failed: {traceback.format_exc()}")
    else:
        say("is done")


def _reinitialize() -> None:
    if os.environ.get("REINIT") and not os.environ.get("PATCHED"):
        import gevent

        gevent.reinit()


def by_os(child: Callable[[], None]) -> None:
    """Fork as ``os`` does, or gevent for it where that is patched; the child leaves as a program does."""
    if os.fork() == 0:
        child()
        sys.exit()


def by_multiprocessing(child: Callable[[], None]) -> None:
    multiprocessing.get_context("fork").Process(target=child).start()


def by_libc(child: Callable[[], None]) -> None:
    """Fork behind the back of Python, which calls none of its hooks; the child leaves as a program does.

    Nor does Python make its interpreter lock anew in the child: if another native thread waits for that at the moment
    of the fork, the child, in which there is no such thread, soon waits for it for ever. So here there is none.
    """
    assert len(os.listdir("/proc/self/task")) == 1
    if ctypes.PyDLL(None).fork() == 0:
        child()
        sys.exit()


WAYS: dict[str, Callable[[Callable[[], None]], None]] = {
    "os": by_os,
    "multiprocessing": by_multiprocessing,
    "libc": by_libc,
}


def main() -> None:
    if os.environ.get("PATCHED"):
        from gevent import monkey

        monkey.patch_all()
    if sys.argv[1] == "libc":
        os.environ["GEVENT_RESOLVER"] = "block"  # the default has native threads, see by_libc
    from tests.apps import scenes

    getattr(scenes, sys.argv[2])(fork, say)
    say("is done")


if __name__ == "__main__":
    main()
