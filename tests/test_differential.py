"""The pool of 2013 and this one, side by side: what users of the old one rely on is the same, what is not is listed.

Each scene is played with both and returns what a user sees of it. A scene that is not in the table of differences must
come out the same; one that is must come out as the table says, on both sides. So nothing changes unnoticed, and nothing
is listed that has not changed.
"""

from __future__ import annotations

import functools
import gc
import imaplib
import logging
import socket as plain_socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import geventconnpool
from geventconnpool import _slots
from geventconnpool._queue import Gate, Queue
from tests import textbook
from tests.servers import wait_until
from tests.virtual import Shell

# -- the two worlds ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """One way to have pools; ``idle`` says how many connections of a pool are at rest.

    After ``patience``, in seconds, nothing comes any more: what comes in this pool may do so late on a busy machine.
    """

    name: str
    base: Any
    retry: Any
    idle: Callable[[Any], int]
    patience: float

    def __repr__(self) -> str:
        return self.name


OLD = World("then", textbook.ConnectionPool, textbook.retry, lambda pool: len(pool.conn), 0.5)
NEW = World("now", geventconnpool.ConnectionPool, geventconnpool.retry, lambda pool: pool.stats().idle, 30.0)

WAITS, SERVED = "waits for ever", "is served"
KEPT, REPLACED = "kept", "replaced"


class Connection:
    """Knows the how manieth it is, and whether it was closed."""

    is_closed = False

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        self.is_closed = True


class Numbered:
    """Opens connections with the numbers 1, 2, ... after what ``steps`` say: exceptions are raised, others returned."""

    SPAWN_FREQUENCY = REPLACE_AFTER = 0.0
    FIRST_PAUSE = LONGEST_PAUSE = 0.001
    is_over = False
    steps: Any = ()
    calls = 0
    alive: list[Any] = []

    def __init__(self, *args: Any, **options: Any) -> None:
        self.steps = deque(self.steps)
        self.made: list[Connection] = []
        Numbered.alive.append(self)
        super().__init__(*args, **options)

    def _new_connection(self) -> Any:
        self.calls += 1
        if self.steps and not self.is_over:
            step = self.steps.popleft()
            if isinstance(step, BaseException):
                raise step
            return step
        self.made.append(Connection(len(self.made) + 1))
        return self.made[-1]


def make(world: World, size: int = 1, *args: Any, steps: Any = (), **options: Any) -> Any:
    """Return a pool of numbered connections."""
    return type("Mine", (Numbered, world.base), {"steps": steps})(size, *args, **options)


def full(world: World, pool: Any, lent: int = 0) -> Any:
    """Return the pool when all connections but those lent are at rest, which mostly takes a few turns of the loop."""
    for _ in range(20):
        if world.idle(pool) == pool.size - lent:
            return pool
        gevent.sleep(0)
    wait_until(lambda: world.idle(pool) == pool.size - lent, what=f"a full pool, {world}")
    return pool


def borrow(pool: Any) -> int:
    """Return the number of the connection that is lent next."""
    with pool.get() as c:
        return int(c.number)


def attempt(job: Callable[[], Any], seconds: float = 0.1) -> Any:
    """Return what a job returns, the name of what it raises, or that it waits for ever."""
    try:
        with gevent.Timeout(seconds) as bound:
            return job()
    except gevent.Timeout as timeout:
        return WAITS if timeout is bound else "Timeout"
    except BaseException as error:
        return type(error).__name__


@pytest.fixture(autouse=True)
def hub_errors(monkeypatch) -> None:
    """What dies in the greenlets of old pools need not be printed."""
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *details: None)


PAUSES = {name: getattr(_slots, name) for name in ("FIRST_RETRY", "LONGEST_RETRY", "LONGEST_RETRY_IDLE")}


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """This pool tries again as soon as the old one does here."""
    for name in PAUSES:
        monkeypatch.setattr(_slots, name, Numbered.FIRST_PAUSE)


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    end_all()


def end_all() -> None:
    for pool in Numbered.alive:
        pool.is_over = True
        if isinstance(pool, NEW.base) and hasattr(pool, "closed"):
            NEW.base.close(pool, 0)  # which the user may have overridden
    Numbered.alive.clear()
    for greenlet in textbook.running:
        if greenlet is not None:  # of a scene in which time is not let go by
            greenlet.kill(block=False)
    textbook.running.clear()
    gevent.sleep(0)


# -- the scenes --------------------------------------------------------------------------------------------------------

SCENES: dict[str, Callable[[World], Any]] = {}


def scene(play: Callable[[World], Any]) -> Callable[[World], Any]:
    """Have a function played with both, under its name in plain words."""
    SCENES[play.__name__.replace("_", " ")] = play
    return play


# How a pool is made.


def read(pool: Any) -> tuple[Any, ...]:
    return pool.size, pool.exc_classes, pool.keepalive


class AlsoKept(Numbered):
    def _keepalive(self, c: Any) -> None:
        """All is well."""


def make_kept(world: World, *args: Any, **options: Any) -> Any:
    return type("Mine", (AlsoKept, world.base), {})(*args, **options)


@scene
def the_options_by_position(world):
    return read(make_kept(world, 2, (KeyError,), 30))


@scene
def the_options_by_keyword(world):
    return read(make_kept(world, keepalive=30, exc_classes=(KeyError,), size=2))


@scene
def the_options_from_a_dict_as_the_registrar_does(world):
    return read(make_kept(world, size=1, keepalive=60, exc_classes=(ValueError, OSError)))


@scene
def the_size_alone(world):
    pool = make(world, 3)
    return pool.size, pool.exc_classes


@scene
def the_keepalive_of_a_pool_without(world):
    return make(world, 1).keepalive


@scene
def no_size(world):
    return attempt(lambda: make_kept(world, exc_classes=(KeyError,)))


@scene
def a_fourth_argument_by_position(world):
    return attempt(lambda: make_kept(world, 1, (KeyError,), 30, 5.0))


@scene
def an_unknown_option(world):
    return attempt(lambda: make_kept(world, 1, colour="red"))


@scene
def exc_classes_of_every_iterable_kind(world):
    kinds = [KeyError, OSError]
    forms = [kinds, tuple(kinds), iter(kinds), (kind for kind in kinds), dict.fromkeys(kinds)]
    return [make(world, 1, exc_classes=form).exc_classes for form in forms]


@scene
def exc_classes_of_one_class(world):
    return attempt(lambda: make(world, 1, KeyError).exc_classes)


@scene
def exc_classes_of_none(world):
    return attempt(lambda: make(world, 1, ()).exc_classes)


@scene
def a_size_of_nothing(world):
    return attempt(lambda: make(world, 0).size)


@scene
def a_size_below_nothing(world):
    return attempt(lambda: make(world, -1))


@scene
def a_size_in_letters(world):
    return attempt(lambda: make(world, "2"))


@scene
def a_keepalive_without_its_hook(world):
    return attempt(lambda: make(world, 1, keepalive=30).size)


@scene
def no_factory(world):
    return attempt(lambda: type("Mine", (world.base,), {})(1).size)


@scene
def the_constructor_returns_before_the_first_connect(world):
    class Late(Numbered, world.base):
        def __init__(self):
            super().__init__(2)
            self.host = "set after super().__init__()"

        def _new_connection(self):
            return SimpleNamespace(host=self.host)

    pool = Late()
    with pool.get() as c:
        return pool.calls, c.host


# What the classes that are out there call their own attributes and methods.
ATTRIBUTES = [
    "host", "port", "server", "version", "log", "logger", "debug", "account", "account_id", "readonly", "credential",
    "provider_name", "email_address", "sync_state", "client_cls", "greenlets", "spawn_frequency", "buckets", "_client",
    "_login", "_new_conn_lock",
]  # fmt: skip
METHODS = [
    "_create_socket", "_set_account_info", "close_all", "get_connections", "kill_all_connections",
    "populate_all_connections", "get_bucket", "return_bucket",
]  # fmt: skip


@scene
def attributes_set_before_the_constructor(world):
    class Mine(Numbered, world.base):
        def __init__(self):
            for name in ATTRIBUTES:
                setattr(self, name, f"my {name}")
            super().__init__(1)

    pool = Mine()
    return borrow(pool), [getattr(pool, name) for name in ATTRIBUTES]


@scene
def attributes_set_after_the_constructor(world):
    pool = make(world)
    for name in ATTRIBUTES:
        setattr(pool, name, f"my {name}")
    return borrow(pool), [getattr(pool, name) for name in ATTRIBUTES]


@scene
def attributes_of_the_class(world):
    pool = type("Mine", (Numbered, world.base), dict.fromkeys(ATTRIBUTES, "mine"))(1)
    return borrow(pool), [getattr(pool, name) for name in ATTRIBUTES]


@scene
def methods_of_the_users_own(world):
    def answer(self, *args):
        return borrow(self)

    pool = type("Mine", (Numbered, world.base), dict.fromkeys(METHODS, answer))(1)
    return [getattr(pool, name)() for name in METHODS]


@scene
def methods_that_this_pool_has_too(world):
    def answer(self):
        return "mine"

    names = ["close", "stats", "acquire", "release", "discard", "wait", "closed"]
    pool = type("Mine", (Numbered, world.base), dict.fromkeys(names, answer))(1)
    numbers = [borrow(pool), borrow(pool)]
    return numbers, [getattr(pool, name)() for name in names]


@scene
def a_with_statement_of_the_users_own(world):
    class Mine(Numbered, world.base):
        def __enter__(self):
            return self._new_connection()

        def __exit__(self, *exc_info):
            self.is_left = True

    with Mine(1) as c:
        pass
    return isinstance(c, Connection)


@scene
def a_get_of_the_users_own_round_the_pools(world):
    class Counting(Numbered, world.base):
        gets = 0

        def get(self):
            self.gets += 1
            return super().get()

    pool = Counting(1)
    return borrow(pool), borrow(pool), pool.gets


@scene
def a_constructor_that_forgets_the_pools(world):
    class Forgetful(world.base):
        def __init__(self):
            self.size = 1

    return attempt(lambda: Forgetful().get().__enter__())


@scene
def private_parts(world):
    return [name for name in ("conn", "lock") if hasattr(make(world), name)]


@scene
def options_changed_later(world):
    pool = make_kept(world, 1)
    return [attempt(functools.partial(setattr, pool, *change)) for change in [("size", 2), ("keepalive", 5)]]


# What is lent.


@scene
def the_object_itself(world):
    class Raw(Numbered, world.base):
        def _new_connection(self):
            self.made.append(object())
            return self.made[-1]

    pool = Raw(1)
    with pool.get() as c:
        return [c is one for one in pool.made]


@scene
def what_the_user_sets_on_it_is_there_next_time(world):
    pool = make(world)
    with pool.get() as c:
        c.used = True
    with pool.get() as c:
        return c.used


@scene
def an_object_that_takes_no_attributes(world):
    class Slotted:
        __slots__ = ()

    pool = make(world, steps=[Slotted()])
    return type(take(pool)).__name__, world.idle(pool)


@scene
def an_object_used_after_its_block(world):
    pool = make(world)
    with pool.get() as c:
        pass
    return c.number, c.is_closed


@scene
def an_object_that_is_a_context_manager_of_its_own(world):
    log = []

    class Session:
        def __enter__(self):
            log.append("entered")
            return self

        def __exit__(self, kind, exc, tb):
            log.append(kind)
            return True

    pool = make(world, steps=[Session()])
    for exc in (None, OSError("swallowed by the session"), KeyError("swallowed, too")):
        with pool.get() as c:
            with c:
                if exc is not None:
                    raise exc
    with pool.get() as again:
        return log, again is c


@scene
def objects_of_every_true_kind(world):
    things = [1, "a connection", [0], {"a": 1}, (None,), len, Connection, gevent, object, 1.5, True]
    return [attempt(lambda thing=thing: take(make(world, steps=[thing])) == thing) for thing in things]


def take(pool: Any) -> Any:
    with pool.get() as c:
        return c


FALSE = [0, "", (), [], {}, 0.0, b""]


@scene
def objects_that_are_false(world):
    return [attempt(lambda thing=thing: take(make(world, steps=[thing] * 100)) == thing) for thing in FALSE]


@scene
def an_object_without_truth(world):
    class Database:
        """As of pymongo."""

        def __bool__(self):
            raise NotImplementedError("compare with None instead")

    return attempt(lambda: type(take(make(world, steps=[Database()]))).__name__)


@scene
def a_lease_that_is_not_entered(world):
    pool = full(world, make(world, 2))
    leases = [pool.get() for _ in range(5)]
    return len(leases), world.idle(pool)


@scene
def a_lease_that_is_entered_by_hand_and_forgotten(world):
    pool = make(world)
    pool.get().__enter__()
    gc.collect()
    return attempt(lambda: isinstance(borrow(pool), int))


@scene
def a_lease_for_a_second_block(world):
    pool = make(world)
    lease = pool.get()
    with lease:
        pass
    return "refused" if attempt(lease.__enter__) in ("RuntimeError", "AttributeError") else "lent"


@scene
def a_lease_as_a_decorator(world):
    return "works" if callable(make(world).get()) else "does not"


@scene
def a_time_to_wait(world):
    return attempt(lambda: borrow_within(make(world), 1))


def borrow_within(pool: Any, seconds: float) -> int:
    with pool.get(timeout=seconds) as c:
        return int(c.number)


@scene
def ways_out_of_a_block(world):
    pool = make(world, 2)

    def leave_by_return():
        with pool.get() as c:
            return c.number

    numbers = []
    for _ in range(3):
        with pool.get() as c:
            numbers.append(c.number)
            continue
    while True:
        with pool.get() as c:
            numbers.append(c.number)
            break
    return leave_by_return(), numbers, world.idle(pool)


@scene
def two_pools_in_one_request(world):
    redis, sphinx = make(world), make(world)
    with redis.get() as r, sphinx.get() as s:
        return r.number, s.number


# In which order.


@scene
def a_full_pool_goes_round(world):
    pool = full(world, make(world, 3))
    return [borrow(pool) for _ in range(10)]


@scene
def what_is_returned_first_is_lent_first(world):
    pool = full(world, make(world, 4))
    first, second, third = (pool.get() for _ in range(3))
    for lease in (first, second, third):
        lease.__enter__()
    for lease in (second, third, first):
        lease.__exit__(None, None, None)
    return [borrow(pool) for _ in range(4)]


@scene
def those_who_wait_are_served_in_the_order_in_which_they_came(world):
    pool = full(world, make(world))
    served: list[int] = []

    def serve(number):
        with pool.get():
            served.append(number)
            gevent.sleep(0)

    with pool.get():
        greenlets = [gevent.spawn(serve, number) for number in range(5)]
        gevent.sleep(0.01)
    gevent.joinall(greenlets)
    return served


@scene
def who_returns_and_asks_again_lets_others_go_first(world):
    pool = full(world, make(world))
    turns = {"a": 0, "b": 0}

    def loop(who):
        while sum(turns.values()) < 100:
            with pool.get():
                gevent.sleep(0)
            turns[who] += 1

    greenlets = [gevent.spawn(loop, who) for who in turns]
    gevent.joinall(greenlets[:1], timeout=5)
    gevent.killall(greenlets)
    return "in turns" if min(turns.values()) > 40 else "starves the other"


@scene
def who_holds_one_and_waits_for_another_that_he_can_never_get(world):
    pool = full(world, make(world))
    with pool.get():
        return attempt(lambda: borrow_within(pool, 0.01) if world is NEW else borrow(pool))


# How a block ends.


def end(world: World, exc: BaseException, exc_classes: Any) -> str:
    """Return what becomes of a connection whose block is ended by an exception, which must come out as it is."""
    pool = full(world, make(world, 1, exc_classes))
    try:
        with pool.get():
            raise exc
    except BaseException as error:
        if error is not exc:
            return f"{type(error).__name__} in its place"
    full(world, pool)
    return KEPT if borrow(pool) == 1 else REPLACED


class Refused(OSError):
    pass


ENDINGS: dict[str, Callable[[], BaseException]] = {
    "OSError": lambda: OSError("broken"),
    "ConnectionResetError": lambda: ConnectionResetError(104, "reset"),
    "socket.timeout": lambda: TimeoutError("timed out"),
    "gaierror": lambda: plain_socket.gaierror(-2, "unknown"),
    "an OSError of the user's": lambda: Refused("no"),
    "IMAP4.error": lambda: imaplib.IMAP4.error("BAD"),
    "IMAP4.abort": lambda: imaplib.IMAP4.abort("BYE"),
    "KeyError": lambda: KeyError("mine"),
    "ValueError": lambda: ValueError("no matter"),
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "RuntimeError": lambda: RuntimeError("generator didn't stop"),
    "AssertionError": AssertionError,
    "ExceptionGroup": lambda: ExceptionGroup("several", [OSError("broken")]),
}
FILES: dict[str, Callable[[], BaseException]] = {
    "FileNotFoundError": lambda: FileNotFoundError(2, "no", "/nowhere"),
    "PermissionError": lambda: PermissionError(13, "no", "/root"),
    "OSError about a file": lambda: OSError(5, "no", "/dev/sda"),
}
INTERRUPTIONS: dict[str, Callable[[], BaseException]] = {
    "gevent.Timeout": lambda: gevent.Timeout(1),
    "GreenletExit": gevent.GreenletExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": SystemExit,
    "GeneratorExit": GeneratorExit,
    "BaseException": lambda: BaseException("odd"),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [KeyboardInterrupt()]),
}
CLASSES: dict[str, Any] = {
    "OSError": (OSError,),
    "OSError and IMAP4.error": (OSError, imaplib.IMAP4.error),
    "KeyError": [KeyError],
    "Exception": (Exception,),
    "BaseException": (BaseException,),
    "OSError and Timeout": (OSError, gevent.Timeout),
    "FileNotFoundError": (FileNotFoundError,),
    "ConnectionError": (ConnectionError, ValueError),
}


def add_ending(ending: str, make_error: Callable[[], BaseException], named: str) -> None:
    SCENES[f"{ending} with exc_classes of {named}"] = lambda world: end(world, make_error(), CLASSES[named])


for _ending, _make_error in {**ENDINGS, **FILES, **INTERRUPTIONS}.items():
    for _named in CLASSES:
        add_ending(_ending, _make_error, _named)


@scene
def the_exception_with_all_it_carries(world):
    pool = make(world)
    cause, exc = KeyError("cause"), ValueError("mine", 1)
    try:
        with pool.get():
            try:
                raise cause
            except KeyError:
                raise exc from cause
    except ValueError as error:
        return (
            error is exc,
            error.args,
            error.__cause__ is cause,
            error.__context__ is cause,
            error.__suppress_context__,
        )


@scene
def the_tree_of_the_users_own_timeouts(world):
    pool = full(world, make(world, 1, (gevent.Timeout,)))
    with gevent.Timeout(30) as outer, pytest.raises(gevent.Timeout) as caught:
        with gevent.Timeout(0.01) as inner:
            with pool.get():
                gevent.sleep(5)
    return caught.value is inner, caught.value is outer


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


@scene
def an_exception_on_which_nothing_can_be_set(world):
    return end(world, Frozen(1), (OSError,))


@scene
def a_generator_that_is_closed_in_its_block(world):
    pool = full(world, make(world))

    def rows():
        with pool.get():
            yield 1

    generator = rows()
    next(generator)
    generator.close()
    full(world, pool)
    return KEPT if borrow(pool) == 1 else REPLACED


@scene
def a_greenlet_that_is_killed_in_its_block(world):
    pool = full(world, make(world))
    user = gevent.spawn(lambda: hold(pool))
    wait_until(lambda: world.idle(pool) == 0)
    user.kill()
    full(world, pool)
    return KEPT if borrow(pool) == 1 else REPLACED


def hold(pool: Any) -> None:
    with pool.get():
        gevent.sleep(30)


@scene
def the_reply_to_somebody_who_timed_out(world):
    answers = Event()

    class Server:
        """Answers in order, some time later."""

        def __init__(self):
            self.replies = deque()

        def ask(self, question):
            self.replies.append(f"reply to {question}")
            answers.wait()
            return self.replies.popleft()

    pool = full(world, make(world, steps=[Server(), Server()]))
    with gevent.Timeout(0.001, False):
        with pool.get() as c:
            c.ask("alice")
    answers.set()
    with pool.get() as c:
        return c.ask("bob")


# Discarding.


def break_one(pool: Any) -> int:
    """End a block by a connection error; return the number of the connection."""
    with suppress(OSError):
        with pool.get() as c:
            raise OSError("broken")
    return int(c.number)


@scene
def what_is_discarded_is_replaced_and_the_rest_stays(world):
    pool = full(world, make(world, 3))
    broken = [break_one(pool), break_one(pool)]
    full(world, pool)
    return broken, sorted(borrow(pool) for _ in range(3)), len(pool.made)


@scene
def what_is_discarded_is_closed(world):
    pool = full(world, make(world, 2))
    break_one(pool)
    full(world, pool)
    gevent.sleep(0)
    return [c.is_closed for c in pool.made]


@scene
def what_is_discarded_is_replaced_at_once(world):
    class Patient(Numbered, world.base):
        REPLACE_AFTER = textbook.ConnectionPool.REPLACE_AFTER

    pool = full(world, Patient(1))
    break_one(pool)
    return attempt(lambda: borrow(pool), seconds=0.5)


@scene
def what_is_kept_is_never_closed(world):
    pool = full(world, make(world, 2))
    for exc in (KeyError("mine"), ValueError("mine"), None) * 3:
        with suppress(KeyError, ValueError):
            with pool.get():
                if exc is not None:
                    raise exc
    return [c.is_closed for c in pool.made]


# Connects that fail.


@scene
def none_and_false_mean_not_yet(world):
    pool = make(world, 2, steps=[None, False, None])
    full(world, pool)
    return pool.calls, sorted(borrow(pool) for _ in range(2))


@scene
def while_there_is_none_yet_everybody_waits(world):
    return attempt(lambda: borrow(make(world, steps=[None] * 1000)))


@scene
def a_connect_that_raises_what_the_readme_says_it_may(world):
    return attempt(lambda: borrow(make(world, steps=[OSError("authentication failed")])))


@scene
def a_connect_that_raises_something_else(world):
    return attempt(lambda: borrow(make(world, steps=[KeyError("no such account")])), seconds=world.patience)


@scene
def a_pool_that_lost_a_connect_to_an_error(world):
    pool = make(world, 2, steps=[OSError("once")])
    for _ in range(10):
        gevent.sleep(0.005)
    return world.idle(pool)


@scene
def a_pool_fills_at_once(world):
    class Staggered(Numbered, world.base):
        SPAWN_FREQUENCY = textbook.ConnectionPool.SPAWN_FREQUENCY * 50

    pool = Staggered(4)
    wait_until(lambda: pool.made)
    for _ in range(10):
        gevent.sleep(0)
    return len(pool.made)


@scene
def the_longest_pause_between_two_connects(world):
    with pytest.MonkeyPatch.context() as patch:
        pauses = pauses_then(patch) if world is OLD else pauses_now(patch)
    return "minutes" if max(pauses) > 60 else "half a minute"


class Slept(BaseException):
    """The end of a greenlet that has slept enough."""


def pauses_then(patch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []

    class Refused(textbook.ConnectionPool):
        def _new_connection(self) -> Any:
            if len(pauses) == 15:
                raise Slept
            return None

    patch.setattr(textbook, "gevent", SimpleNamespace(sleep=pauses.append, spawn_later=lambda *args: None))
    with suppress(Slept):
        Refused(1)._open_one()
    return pauses


def pauses_now(patch: pytest.MonkeyPatch) -> list[float]:
    for name, seconds in PAUSES.items():
        patch.setattr(_slots, name, seconds)
    slots = _slots.Slots(1, name="pool", queue=Queue(), gate=Gate(1), rng=Random(1))
    shell = Shell(slots.queue)
    slots.plan(0.0)
    shell.act()
    pauses = []
    for _ in range(15):
        failed_at = shell.now
        shell.refuse(shell.opening[0])
        while not shell.opening:
            shell.run_to(min(at for at, _ in shell.alarms))
        pauses.append(shell.now - failed_at)
    return pauses


# Keepalive.


class Kept(Numbered):
    """Notes whom it keeps alive; ``answers`` are raised, or called, in turn."""

    answers: Any = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        self.kept: list[int] = []
        self.answers = deque(self.answers)
        super().__init__(*args, **options)

    def _keepalive(self, c: Any) -> None:
        if self.is_over:
            raise gevent.GreenletExit
        self.kept.append(c.number)
        answer = self.answers.popleft() if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        if answer is not None:
            answer()


def keep(world: World, size: int = 1, keepalive: Any = 0.02, answers: Any = (), **options: Any) -> Any:
    return full(world, type("Mine", (Kept, world.base), {"answers": answers})(size, keepalive=keepalive, **options))


@scene
def each_connection_is_kept_alive_in_its_turn(world):
    pool = keep(world, 4, keepalive=0.04)
    wait_until(lambda: len(pool.kept) >= 12)
    return sorted(set(pool.kept)), len(pool.made)


@scene
def no_keepalive(world):
    pools = [keep(world, keepalive=off) for off in (None, 0)]
    gevent.sleep(0.02)
    return [pool.kept for pool in pools]


@scene
def a_keepalive_of_what_is_in_use(world):
    pool = keep(world)
    with pool.get():
        before = len(pool.kept)
        gevent.sleep(0.06)
        return len(pool.kept) - before


@scene
def a_keepalive_of_what_is_used_all_the_time(world):
    for _ in range(20):
        pool = keep(world, keepalive=0.3)
        used = [time.monotonic()]
        while used[-1] < used[0] + 0.5:
            borrow(pool)
            gevent.sleep(0.001)
            used.append(time.monotonic())
        if max(later - earlier for earlier, later in pairwise(used)) < 0.2:  # else a busy machine let it rest
            break
    return bool(pool.kept)


@scene
def a_keepalive_that_raises_what_the_readme_says_it_should(world):
    pool = keep(world, answers=[OSError("no PONG")])
    wait_until(lambda: len(pool.kept) >= 3)
    return pool.kept[:3]


@scene
def a_keepalive_that_raises_something_else(world):
    pool = keep(world, answers=[KeyError("bug")])
    wait_until(lambda: pool.kept)
    for _ in range(20):
        gevent.sleep(0.01)
    return "goes on" if len(pool.kept) > 1 else "is over"


@scene
def a_keepalive_that_hangs(world):
    pool = keep(world, answers=[Event().wait])
    wait_until(lambda: pool.kept)
    return SERVED if isinstance(attempt(lambda: borrow(pool), seconds=world.patience), int) else WAITS


# The end of it all.


@scene
def a_pool_that_is_forgotten(world):
    pool = keep(world, keepalive=30)
    Numbered.alive.remove(pool)
    forgotten = weakref.ref(pool)
    del pool
    gevent.sleep(0.01)
    gc.collect()
    return "is gone" if forgotten() is None else "is there"


FORK = """
import os, sys
import gevent, gevent.os
from tests.test_differential import NEW, OLD, keep
pool = keep({"then": OLD, "now": NEW}[sys.argv[1]], 2, keepalive=0.05)
inherited = set(map(id, pool.made))
if gevent.os.fork() == 0:
    pool._keepalive = lambda c: id(c) in inherited and os.write(1, b"kept ")
    gevent.sleep(0.3)
    os._exit(0)
gevent.sleep(0.5)
"""


@scene
def the_connections_of_the_parent_in_a_child(world):
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", FORK, world.name]
    run = subprocess.run(command, cwd=root, capture_output=True, timeout=60, check=True)
    return "are kept alive there too" if b"kept" in run.stdout else "are left alone"


# Calling again.


class Lines(list[tuple[int, str]]):
    """A logger of those that have nothing but ``log``, as of structlog."""

    def log(self, level: int, event: str, *args: Any, **fields: Any) -> None:
        self.append((level, event % args if args else event))


def flaky(*failures: BaseException) -> Any:
    """Return a function that raises each of these once, then returns how often it was called."""
    left = list(failures)
    calls: list[int] = []

    def send():
        """Send."""
        calls.append(1)
        if left:
            raise left.pop(0)
        return len(calls)

    send.func_name = "send"  # type: ignore[attr-defined]  # what functions of Python 2 had
    send.calls = calls  # type: ignore[attr-defined]  # for the scenes
    return send


BROKEN = OSError("broken")


@scene
def retry_without_parentheses(world):
    send = world.retry(flaky(BROKEN, BROKEN))
    return send(), send.__name__, send.__doc__, send.__wrapped__.__name__


@scene
def retry_by_partial(world):
    mine = functools.partial(world.retry, exc_classes=[KeyError, OSError], max_failures=5, interval=0.001)
    return mine(flaky(BROKEN, KeyError("again"), BROKEN))()


@scene
def retry_with_its_function_and_options_at_once(world):
    return world.retry(flaky(KeyError(1)), exc_classes=(KeyError,))(), world.retry(flaky(BROKEN), (OSError,))()


@scene
def retry_with_options_where_it_decorates_as_the_readme_has_it(world):
    return attempt(lambda: world.retry(exc_classes=(KeyError,))(flaky(KeyError("once")))())


@scene
def retry_of_methods_with_arguments(world):
    class Client:
        def __init__(self):
            self.failures = [OSError("once")]

        @world.retry
        def send(self, data, *, flags=0):
            if self.failures:
                raise self.failures.pop()
            return data, flags

    return Client().send("data", flags=1)


@scene
def k_failures_give_k_plus_1_calls(world):
    counts = []
    for k in range(5):
        send = flaky(*[OSError(number) for number in range(9)])
        name = attempt(world.retry(send, max_failures=k))
        counts.append((name, len(send.calls)))
    return counts


@scene
def without_a_maximum_it_goes_on(world):
    return world.retry(flaky(*[BROKEN] * 50))()


@scene
def the_last_exception_itself(world):
    errors = [OSError(number) for number in range(3)]
    try:
        world.retry(flaky(*errors), max_failures=2)()
    except OSError as error:
        return error is errors[-1], error.args


@scene
def notes_on_the_last_exception(world):
    try:
        world.retry(flaky(OSError(1), OSError(2)), max_failures=1)()
    except OSError as error:
        return getattr(error, "__notes__", [])


@scene
def other_exceptions_are_not_for_retry(world):
    outcomes = []
    for exc in (KeyError("mine"), gevent.Timeout(1), gevent.GreenletExit(), KeyboardInterrupt()):
        send = flaky(exc)
        outcomes.append((attempt(world.retry(send)), len(send.calls)))
    return outcomes


@scene
def interruptions_if_they_are_named(world):
    return world.retry(flaky(gevent.Timeout(1), gevent.Timeout(1)), exc_classes=(gevent.Timeout,))()


@scene
def errors_about_files(world):
    send = flaky(FileNotFoundError(2, "no", "/nowhere"))
    return attempt(world.retry(send)), len(send.calls)


@scene
def a_file_error_that_is_named(world):
    return world.retry(flaky(FileNotFoundError(2, "no", "/nowhere")), exc_classes=(FileNotFoundError,))()


@scene
def others_run_while_it_waits_for_nothing(world):
    turns = []
    other = gevent.spawn(turns.append, "other")
    world.retry(flaky(BROKEN))()
    other.join()
    return turns


def logged(world: World, **options: Any) -> Lines:
    lines = Lines()
    send = flaky(OSError("first"), OSError("second"), OSError("third"))
    attempt(world.retry(send, logger=lines, **options))
    return lines


TEMPLATES = {"retry_log_message": "{f}: again after {e}", "max_failure_log_message": "{f}: no more after {e!r}"}


@scene
def lines_of_the_log_of_a_success(world):
    return logged(world, **TEMPLATES)


@scene
def lines_of_the_log_of_a_failure(world):
    return logged(world, max_failures=2, **TEMPLATES)


@scene
def lines_of_the_log_at_other_levels(world):
    return logged(
        world, max_failures=1, retry_log_level=logging.WARNING, max_failure_log_level=logging.CRITICAL, **TEMPLATES
    )


@scene
def lines_of_the_log_without_templates(world):
    return [(level, "send" in text, "first" in text) for level, text in logged(world, max_failures=1)]


@scene
def templates_that_use_only_one_field_or_none(world):
    return [logged(world, retry_log_message=text) for text in ("again", "{f}", "{e}", "{e!s:>10}", "100 %s")]


@scene
def a_template_with_what_the_exception_was_made_of(world):
    return attempt(lambda: logged(world, retry_log_message="{e.args[0]}"))


@scene
def a_template_with_another_field(world):
    return attempt(lambda: world.retry(flaky(BROKEN), logger=Lines(), retry_log_message="{f} {nothing}")())


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


@scene
def a_logger_of_the_standard_library(world):
    logger, records = logging.getLogger(f"tests.{world}"), Records()
    logger.setLevel(logging.INFO)
    logger.addHandler(records)
    world.retry(flaky(BROKEN), logger=logger, **TEMPLATES)()
    logger.removeHandler(records)
    return records.lines


@scene
def a_logger_for_a_function_of_python_3(world):
    lines = Lines()
    send = flaky(BROKEN)
    del send.func_name
    return attempt(world.retry(send, logger=lines)), bool(lines)


@scene
def a_logger_that_is_none(world):
    return attempt(lambda: callable(world.retry(flaky(BROKEN), logger="mine")))


@scene
def one_class_to_retry(world):
    return attempt(lambda: world.retry(flaky(KeyError("once")), exc_classes=KeyError)())


@scene
def fewer_than_no_failures(world):
    return attempt(lambda: world.retry(flaky(BROKEN), max_failures=-1)())


@scene
def each_attempt_of_a_retried_call_has_a_connection_of_its_own(world):
    pool = full(world, make(world, 2))
    used = []

    @world.retry
    def send():
        with pool.get() as c:
            used.append(c.number)
            if len(used) < 4:
                raise OSError("broken")

    send()
    return used


# -- the differences ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    old: Any
    new: Any
    because: str


DIFFERENCES: dict[str, Difference] = {
    # S1 to S13 are the faults that were measured in the pool of 2013.
    "who returns and asks again lets others go first": Difference(
        "starves the other", "in turns", "S1: a semaphore lets who releases it have it again, whoever waits"
    ),
    "a connect that raises what the readme says it may": Difference(
        WAITS, 1, "S2: the README said that the pool would try again, and the slot was lost"
    ),
    "a connect that raises something else": Difference(WAITS, 1, "S2: any exception is a failure that is tried again"),
    "a pool that lost a connect to an error": Difference(1, 2, "S2: it never was full again"),
    "the reply to somebody who timed out": Difference(
        "reply to alice", "reply to bob", "S3: nobody knows what is on the wire of a connection that was interrupted"
    ),
    "a greenlet that is killed in its block": Difference(KEPT, REPLACED, "S3: a kill is an interruption, too"),
    "a generator that is closed in its block": Difference(KEPT, REPLACED, "S3: and so is the end of a generator"),
    "retry with options where it decorates as the readme has it": Difference(
        "TypeError", 2, "S4: the README showed it, and it has never worked"
    ),
    "a logger for a function of python 3": Difference(
        ("AttributeError", False), (2, True), "S4: a function's name was asked for as in Python 2"
    ),
    "what is discarded is closed": Difference(
        [False] * 3, [True, False, False], "S5: it was left to the collector, and its server to wait for that"
    ),
    "what is discarded is replaced at once": Difference(WAITS, 2, "S5: a second later, by when somebody waits"),
    "errors about files": Difference(
        (2, 2), ("FileNotFoundError", 1), "S6: in Python 3 socket.error is OSError, and it was tried for ever"
    ),
    "a keepalive that raises something else": Difference("is over", "goes on", "S7: there was none after it"),
    "a keepalive that hangs": Difference(WAITS, SERVED, "S8: it held its users' slot for ever"),
    "a pool that is forgotten": Difference("is there", "is gone", "S10: its keepalive held it"),
    "who holds one and waits for another that he can never get": Difference(
        WAITS, "PoolTimeout", "S11: a deadlock in silence; now the wait can be bounded"
    ),
    "a pool fills at once": Difference(1, 4, "S12: one connection in a tenth of a second, however fast its server"),
    "the longest pause between two connects": Difference(
        "minutes", "half a minute", "S12: a service was back for minutes before the pool looked"
    ),
    # How a pool is made.
    "exc classes of one class": Difference("TypeError", (KeyError,), "one class was a trap; now it is one class"),
    "exc classes of none": Difference((), "ValueError", "no connection would ever be replaced"),
    "a size of nothing": Difference(0, "ValueError", "a pool that can never lend anything is a slip"),
    "a keepalive without its hook": Difference(1, "TypeError", "it failed in the background, without a word"),
    "no factory": Difference(1, "TypeError", "it failed in the background, without a word"),
    "the keepalive of a pool without": Difference(None, 0.0, "seconds are floats, and 0 has always meant off"),
    "private parts": Difference(["conn", "lock"], [], "there is neither a deque nor a semaphore to show"),
    "options changed later": Difference(
        [None, None], ["AttributeError"] * 2, "to set them had no effect on the pool, and is refused now"
    ),
    # What is lent.
    "objects that are false": Difference([WAITS] * len(FALSE), [True] * len(FALSE), "only None and False say not yet"),
    "an object without truth": Difference(WAITS, "Database", "the same: nobody is asked for his truth"),
    "a lease as a decorator": Difference("works", "does not", "an accident of contextlib, unknown in 2013"),
    "a time to wait": Difference("TypeError", 1, "get() takes a timeout now"),
    "an exception on which nothing can be set": Difference(
        "FrozenInstanceError in its place", KEPT, "contextlib sets a traceback on what goes through it"
    ),
    "a keepalive of what is used all the time": Difference(True, False, "to be used is a sign of life"),
    # Calling again.
    "one class to retry": Difference("TypeError", 2, "as for pools"),
    "notes on the last exception": Difference([], ["attempt 1 failed: OSError(1)"], "earlier failures are not lost"),
    "a template with another field": Difference("KeyError", "ValueError", "told where it is given, not at a failure"),
    "a logger that is none": Difference(True, "TypeError", "told where it is given, not at a failure"),
    "fewer than no failures": Difference("OSError", "ValueError", "a slip"),
}  # fmt: skip
# S3: any exception that is no Exception interrupts; S6: an error about a file is no connection error.
NAMES_INTERRUPTIONS = {("gevent.Timeout", "OSError and Timeout"), *((name, "BaseException") for name in INTERRUPTIONS)}
NAMES_FILES = {("FileNotFoundError", "FileNotFoundError")}
MATCHES_FILES = ("OSError", "OSError and IMAP4.error", "OSError and Timeout", "Exception", "BaseException")
DIFFERENCES |= {
    f"{ending} with exc_classes of {named}": Difference(KEPT, REPLACED, "S3: nobody knows what is on the wire")
    for ending in INTERRUPTIONS
    for named in CLASSES
    if (ending, named) not in NAMES_INTERRUPTIONS
}
DIFFERENCES |= {
    f"{ending} with exc_classes of {named}": Difference(REPLACED, KEPT, "S6: the socket is well")
    for ending in FILES
    for named in MATCHES_FILES
    if (ending, named) not in NAMES_FILES
}
DIFFERENCES["the connections of the parent in a child"] = Difference(
    "are kept alive there too", "are left alone", "S9: two processes on one connection"
)
# Then, the collector gave the connection back, and whoever had entered the lease by hand went on using it.
DIFFERENCES["a lease that is entered by hand and forgotten"] = Difference(
    True, "waits for ever", "nobody knows whether it is in use; hold_warning tells who has it"
)


@pytest.mark.parametrize("name", [name for name in SCENES if name not in DIFFERENCES])
def test_what_is_not_listed_is_as_it_was(name):
    play = SCENES[name]

    assert play(NEW) == play(OLD)


def assert_differs(name: str, listed: Difference) -> None:
    play = SCENES[name]
    assert (play(OLD), play(NEW)) == (listed.old, listed.new), listed.because


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_is_listed_differs_as_listed(name):
    assert_differs(name, DIFFERENCES[name])


def test_the_list_holds_nothing_but_differences_between_scenes():
    listed = DIFFERENCES

    assert [name for name in listed if name not in SCENES] == []
    assert [name for name, difference in listed.items() if difference.old == difference.new] == []
    assert [name for name, difference in listed.items() if not difference.because] == []


# -- what cannot be told in a scene ------------------------------------------------------------------------------------


def test_what_could_be_imported_can_be_imported():
    assert geventconnpool.pool.ConnectionPool is geventconnpool.ConnectionPool
    assert geventconnpool.pool.retry is geventconnpool.retry
    assert (plain_socket.error,) == geventconnpool.pool.DEFAULT_EXC_CLASSES
    assert isinstance(geventconnpool.__version__, str)


def test_connections_are_kept_alive_about_as_often_as_they_were():
    then, now = (keep(world, 4, keepalive=0.2) for world in (OLD, NEW))
    before = len(now.kept) - len(then.kept)
    wait_until(lambda: len(then.kept) >= 12)

    # Three rounds; the jitter of this pool makes them up to a tenth shorter.
    assert 8 <= len(now.kept) - before <= 18


# -- scripts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Borrow, do what is inside, end as ``ending`` says: None, or a key of ENDINGS or INTERRUPTIONS."""

    ending: str | None
    inside: tuple[Any, ...] = ()


@dataclass(frozen=True)
class NotYet:
    """The next connects return these."""

    answers: tuple[bool | None, ...]


@dataclass(frozen=True)
class Script:
    size: int
    named: str  # a key of CLASSES
    steps: tuple[Any, ...]


def endings_of(named: str) -> list[str | None]:
    """Return the endings that mean the same to both."""
    every = [*ENDINGS, *FILES, *INTERRUPTIONS]
    return [None, *(ending for ending in every if f"{ending} with exc_classes of {named}" not in DIFFERENCES)]


def steps(named: str, depth: int) -> st.SearchStrategy[tuple[Any, ...]]:
    """Draw what is done in a row; blocks are nested at most ``depth`` deep, or they would wait for themselves."""
    refusals = st.builds(NotYet, st.lists(st.sampled_from([None, False]), min_size=1, max_size=3).map(tuple))
    if depth == 0:
        return st.just(())
    blocks = st.builds(Block, st.sampled_from(endings_of(named)), steps(named, depth - 1))
    return st.lists(blocks | refusals, max_size=4).map(tuple)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    size = draw(st.integers(1, 4))
    named = draw(st.sampled_from(list(CLASSES)))
    return Script(size, named, draw(steps(named, size)))


class Player:
    """Plays a script in one world, and notes what happens.

    Before each lease it waits until what was discarded is replaced: to whom a new connection goes that somebody waits
    for depends on how many are opened at a time while connects fail.
    """

    def __init__(self, world: World, script: Script) -> None:
        self.world = world
        self.trace: list[Any] = []
        self.pool = make(world, script.size, CLASSES[script.named])
        self.perform(script.steps, lent=0)
        full(world, self.pool)
        self.trace.append(("calls of the factory", self.pool.calls))
        self.at_rest = [borrow(self.pool) for _ in range(script.size)]
        self.closed = {c.number for c in self.pool.made if c.is_closed}

    def perform(self, steps: tuple[Any, ...], lent: int) -> None:
        for step in steps:
            full(self.world, self.pool, lent)
            if isinstance(step, NotYet):
                self.pool.steps.extend(step.answers)
            else:
                self.borrow(step, lent)

    def borrow(self, block: Block, lent: int) -> None:
        exc = {**ENDINGS, **FILES, **INTERRUPTIONS}[block.ending]() if block.ending else None
        try:
            with self.pool.get() as c:
                self.trace.append(("lent", c.number))
                self.perform(block.inside, lent + 1)
                if exc is not None:
                    raise exc
        except BaseException as error:
            if error is not exc:
                raise
            self.trace.append((block.ending, c.number))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(scripts())
@example(Script(2, "OSError", (Block("OSError"), Block(None), Block(None), Block(None))))
@example(
    Script(2, "OSError", (Block(None, (Block("OSError"), Block("KeyError"))), NotYet((None, False)), Block("OSError")))
)
@example(Script(3, "KeyError", (Block("KeyError", (Block("KeyError", (Block("KeyError"),)),)), Block(None))))
def test_whatever_is_done_in_a_row_both_lend_the_same_and_end_the_same(script):
    try:
        then, now = Player(OLD, script), Player(NEW, script)
    finally:
        end_all()

    assert (now.trace, now.at_rest) == (then.trace, then.at_rest)
    # S5: what was discarded is closed now, and nothing else is.
    assert then.closed == set()
    assert now.closed == {c.number for c in now.pool.made} - set(now.at_rest)
