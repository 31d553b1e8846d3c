"""Whatever a user does wrong, it costs him that call: no slot, no connection and no wake-up is lost to the others.

Every scene ends with ``survives``: the pool serves as many borrowers as ever, its counters agree, each connection that
was ever opened is closed once, and no greenlet of the pool is left.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any
from unittest import mock

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event
from gevent.pool import Group

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, PoolClosed, PoolTimeout, events, retry
from geventconnpool._worker import Worker
from tests import servers

# -- what the tests set up ---------------------------------------------------------------------------------------------

A, B = Endpoint("a.test", 1, ("10.0.0.1",)), Endpoint("b.test", 1, ("10.0.0.2",))
SIZE = 2  # connections that every pool here is to have
OPEN, KEEP, CLOSE, ABORT = "_new_connection", "_keepalive", "_close_connection", "_abort_connection"
JUDGE, REUSE = "_is_connection_error", "_is_reusable"
WORKING = [OPEN, KEEP, CLOSE, ABORT]  # hooks that run in a greenlet of the pool
DECIDING = [JUDGE, REUSE]  # hooks that run in the greenlet of the borrower
HOOKS = [*WORKING, *DECIDING]
USUAL: Any = object()  # what a step returns for the hook to go on as if there had been none
Step = Callable[[Any, Any], Any]  # called with the pool and what the hook was given


class Connection:
    """An object like no other."""


class Mine(Exception):
    """What the blocks of these tests raise; no connection error by itself."""


class Odd(BaseException):
    """No Exception, and nobody knows it."""


class Misused:
    """Hooks with a script: the n-th call of a hook runs its n-th step, what comes after the last goes well.

    ``ended`` are the connections that were given to a closing hook, ``workers`` the greenlets that pools have started,
    ``hub_errors`` the kinds of the errors that reached the hub's error handler.
    """

    workers: list[Any] = []
    hub_errors: list[Any] = []
    greenlets_may_die = False  # of an exception; else the test fails at once if one does

    def _prepare(self, script: dict[str, Iterable[Step]] | None) -> None:
        self.script = {hook: deque(steps) for hook, steps in (script or {}).items()}
        self.called: Counter[str] = Counter()
        self.ended: list[Any] = []

    def _step(self, hook: str, subject: Any, usual: Any = None) -> Any:
        self.called[hook] += 1
        steps = self.script.get(hook)
        result = steps.popleft()(self, subject) if steps else USUAL
        return usual if result is USUAL else result

    def _new_connection(self, endpoint: Endpoint | None = None) -> Any:
        return self._step(OPEN, endpoint, Connection())

    def _keepalive(self, c: Any) -> None:
        self._step(KEEP, c)

    def _close_connection(self, c: Any) -> None:
        self.ended.append(c)
        self._step(CLOSE, c)

    def _abort_connection(self, c: Any) -> None:
        self.ended.append(c)
        self._step(ABORT, c)

    def _is_connection_error(self, exc: BaseException) -> Any:
        return self._step(JUDGE, exc, isinstance(exc, OSError))


class Asks(Misused):
    """Without this hook a good return takes a shorter way."""

    def _is_reusable(self, c: Any) -> Any:
        return self._step(REUSE, c, True)


class Pool(Misused, ConnectionPool[Any]):
    def __init__(self, script: Any = None, **options: Any) -> None:
        self._prepare(script)
        super().__init__(SIZE, **options)


class Cluster(Misused, ClusterPool[Any]):
    """Two endpoints, which are never ejected, with one connection each."""

    def __init__(self, script: Any = None, **options: Any) -> None:
        self._prepare(script)
        super().__init__((A, B), 1, **{"outlier": None, **options})


class AskingPool(Asks, Pool):
    pass


class AskingCluster(Asks, Cluster):
    pass


KINDS: dict[str, tuple[Any, Any]] = {"pool": (Pool, AskingPool), "cluster": (Cluster, AskingCluster)}
Make = Callable[..., Any]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    """Make a pool, or a cluster, with the same number of connections; of each test there is one with either."""
    plain, asking = KINDS[request.param]

    def make_one(script: dict[str, Iterable[Step]] | None = None, **options: Any) -> Any:
        return (asking if REUSE in (script or {}) else plain)(script, **options)

    return make_one


@pytest.fixture(autouse=True)
def watched(monkeypatch) -> Iterator[None]:
    """Note the greenlets that pools start, and the kinds of the errors that reach the hub's error handler."""
    workers: list[Any] = []
    hub_errors: list[Any] = []
    hub, watching = gevent.get_hub(), [gevent.getcurrent()]

    def complain(worker: Any) -> None:
        while watching and not Misused.greenlets_may_die:
            watching.pop().throw(AssertionError(f"a greenlet of the pool died of {type(worker.exception)}"))

    class Noted(Worker):
        def __init__(self, run: Callable[[], None]) -> None:
            super().__init__(run)
            self.link_exception(lambda worker: hub.loop.run_callback(complain, worker))
            workers.append(self)

    monkeypatch.setattr("geventconnpool._engine.Worker", Noted)
    monkeypatch.setattr(hub, "handle_error", lambda context, kind, value, tb: hub_errors.append(kind))
    monkeypatch.setattr(Misused, "workers", workers)
    monkeypatch.setattr(Misused, "hub_errors", hub_errors)
    yield
    watching.clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Failed connects are repeated, and hooks that swallow their bound get it again, sooner than for users."""
    monkeypatch.setattr("geventconnpool._slots.FIRST_RETRY", 0.001)
    monkeypatch.setattr("geventconnpool._engine.BOUND_REPEAT", 0.01)


BOUND = 0.03
BOUNDS = {"open_timeout": BOUND, "keepalive_timeout": BOUND}


@pytest.fixture
def short_close(monkeypatch) -> None:
    """Hooks that close get no more time than BOUNDS gives to the others."""
    monkeypatch.setattr("geventconnpool._engine.CLOSE_TIMEOUT", BOUND)


@pytest.fixture
def blocked() -> Iterator[Event]:
    """An event to hang on, set when the test is over."""
    event = Event()
    yield event
    event.set()


def ready(pool: Any) -> Any:
    pool.wait(timeout=5)
    return pool


def wait_until(condition: Callable[[], Any], timeout: float = 30.0, what: str = "the condition") -> None:
    """Most of what is waited for here takes a few turns of the loop."""
    for _ in range(20):
        if condition():
            return
        gevent.sleep(0)
    servers.wait_until(condition, timeout, what)


def causes(pool: Any) -> dict[str, int]:
    return {cause: count for cause, count in pool.stats().discarded.items() if count}


def gauges(pool: Any) -> tuple[int, ...]:
    s = pool.stats()
    return s.open, s.idle, s.in_use, s.connecting, s.waiting


def survives(pool: Any, told: Iterable[type[BaseException]] = ()) -> None:
    """Assert that the misuse before has cost nobody else anything, and that the hub was told of these errors."""
    if not pool.closed:
        serves_all(pool)
    assert pool.close(5)
    is_at_its_end(pool)
    assert pool.hub_errors == list(told)


def serves_all(pool: Any) -> None:
    held = [pool.acquire(timeout=5) for _ in range(SIZE)]
    assert len({id(c) for c in held}) == SIZE
    assert gauges(pool) == (SIZE, 0, SIZE, 0, 0)
    for c in held:
        pool.release(c)
    wait_until(lambda: gauges(pool) == (SIZE, SIZE, 0, 0, 0), what=f"rest of {pool}")
    s = pool.stats()
    assert s.opened - s.closed == SIZE


def is_at_its_end(pool: Any) -> None:
    wait_until(lambda: pool.stats().closed == pool.stats().opened, what=f"the end of {pool}")
    assert gauges(pool) == (0, 0, 0, 0, 0)
    assert len(pool.ended) == len({id(c) for c in pool.ended}) == pool.stats().opened
    assert sum(pool.stats().discarded.values()) <= pool.stats().closed
    wait_until(lambda: all(worker.dead for worker in pool.workers), what=f"the end of the greenlets of {pool}")


def outcome_of(job: Callable[[], object]) -> object:
    """Return what the job returns or raises."""
    try:
        return job()
    except BaseException as error:
        return error


# -- making the pool call a hook ---------------------------------------------------------------------------------------


def replace_one(pool: Any) -> None:
    pool.discard(pool.acquire(timeout=5))


def fail_one(pool: Any) -> None:
    with pool.get(timeout=5):
        raise Mine


def use_one(pool: Any) -> None:
    with pool.get(timeout=5):
        pass


def close_all(pool: Any) -> None:
    ready(pool).close(5)


def sit_still(pool: Any) -> None:
    """Keepalives come by themselves."""


PROVOKE: dict[str, Callable[[Any], None]] = {
    OPEN: replace_one, KEEP: sit_still, CLOSE: close_all, ABORT: replace_one, JUDGE: fail_one, REUSE: use_one,
}  # fmt: skip


def has_called(pool: Any, hook: str, times: int) -> bool:
    """Say whether it has, or never will: what is closed keeps nothing alive."""
    return bool(pool.called[hook] >= times or (hook == KEEP and pool.closed))


def play(pool: Any, hook: str) -> list[BaseException]:
    """Have the pool call the hook until its script is over; return what came out of the blocks meanwhile."""
    raised: list[BaseException] = []
    while pool.script[hook] and not pool.closed:
        calls = pool.called[hook] + 1
        try:
            PROVOKE[hook](pool)
        except AssertionError:
            raise
        except BaseException as error:
            raised.append(error)
        wait_until(partial(has_called, pool, hook, calls), what=f"a call of {hook}")
    return raised


def options_for(hook: str, **options: Any) -> dict[str, Any]:
    return {"keepalive": 0.003, "keepalive_timeout": 30, **options} if hook == KEEP else options


def raising(error: BaseException) -> Step:
    def step(pool: Any, subject: Any) -> Any:
        raise error

    return step


# -- hooks that raise --------------------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("cannot be printed")

    __repr__ = __str__


class Demanding(Exception):
    """Cannot be made again from its ``args``."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__()
        self.reason = reason


class Boastful(Exception):
    """Has every attribute there is."""

    def __getattr__(self, name):
        return self


class Secretive(Exception):
    def __getattr__(self, name):
        raise RuntimeError(f"{name} is nobody's business")


@dataclass(frozen=True)
class Frozen(Exception):
    """Nothing can be set on it, not even a traceback from Python code."""

    code: int


class Uncaused(Exception):
    """Has no past."""

    @property
    def __cause__(self):
        raise RuntimeError("who knows")

    @property
    def __context__(self):
        raise RuntimeError("who knows")


class Faceless(Exception):
    @property  # type: ignore[misc]  # that it can be set nobody needs
    def __class__(self):
        raise RuntimeError("has no class")


ORDINARY: list[Callable[[], BaseException]] = [
    lambda: ValueError("bug"),
    lambda: OSError("no"),
    lambda: FileNotFoundError(2, "no", "/nowhere"),
    lambda: StopIteration(),
    lambda: PoolTimeout("of another pool"),
    lambda: AssertionError(),
    lambda: MemoryError(),
    lambda: RecursionError(),
    lambda: ExceptionGroup("several", [OSError("no"), ValueError("bug")]),
    Unprintable,
    lambda: Demanding(1, reason="so"),
    Boastful,
    Secretive,
]
EXITS: list[Callable[[], BaseException]] = [
    gevent.GreenletExit,
    lambda: gevent.Timeout(1),
    lambda: gevent.Timeout(None, False),  # type: ignore[arg-type]  # it ends in silence
    GeneratorExit,
    asyncio.CancelledError,
    lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), OSError("no")]),
    Odd,
]
SYSTEM: list[Callable[[], BaseException]] = [KeyboardInterrupt, SystemExit, lambda: SystemExit(0)]
HOSTILE: list[Callable[[], BaseException]] = [lambda: Frozen(1), Uncaused]
FACELESS = pytest.param(Faceless, id="Faceless")


def kind_of(make_error: Callable[[], BaseException]) -> str:
    return type(make_error()).__name__


def kinds_told(error: BaseException, times: int) -> list[type[BaseException]]:
    """Return what the hub is to hear of an error that a hook raises that often."""
    return [type(error)] * times if type(error) in (KeyboardInterrupt, SystemExit) else []


@pytest.mark.parametrize("make_error", [*ORDINARY, *EXITS, *SYSTEM], ids=kind_of)
@pytest.mark.parametrize("hook", WORKING)
def test_whatever_a_hook_raises_in_a_greenlet_of_the_pool_nobody_but_the_hub_gets_it(make, hook, make_error):
    error = make_error()
    pool = make({hook: [raising(error)] * 2}, **options_for(hook))

    assert play(pool, hook) == []
    survives(pool, told=kinds_told(error, 2))


@pytest.mark.parametrize("make_error", [*HOSTILE, Faceless], ids=kind_of)
@pytest.mark.parametrize("hook", WORKING)
def test_an_exception_that_cannot_be_touched_costs_no_slot(make, hook, make_error):
    pool = make({hook: [raising(make_error())] * 2}, **options_for(hook))

    assert play(pool, hook) == []
    survives(pool)


def test_the_last_error_keeps_nothing_of_what_the_factory_had_open_though_it_is_a_group(make):
    class HalfOpen:
        """A socket to one of several addresses."""

    def connect() -> OSError:
        half_open = [HalfOpen()]
        try:
            raise OSError(f"{len(half_open)} refused")
        except OSError as error:
            return error

    def connect_to_all(pool: Any, subject: Any) -> Any:
        raise ExceptionGroup("all refused", [connect(), connect()])  # as socket.create_connection(all_errors=True)

    pool = ready(make({OPEN: [connect_to_all]}))
    survives(pool)

    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is HalfOpen]


@pytest.mark.parametrize("make_error", [*ORDINARY, *SYSTEM, *HOSTILE, FACELESS], ids=kind_of)
@pytest.mark.parametrize("hook", DECIDING)
def test_if_a_deciding_hook_raises_the_connection_is_replaced_and_the_block_ends_as_it_would(make, hook, make_error):
    error = make_error()
    pool = ready(make({hook: [raising(error)] * 2}))

    assert [type(outcome) for outcome in play(pool, hook)] == ([Mine] * 2 if hook == JUDGE else [])
    assert causes(pool) == {"error" if hook == JUDGE else "not_reusable": 2}
    survives(pool, told=kinds_told(error, 2))


@pytest.mark.parametrize("make_error", EXITS, ids=kind_of)
@pytest.mark.parametrize("hook", DECIDING)
def test_an_interruption_of_a_deciding_hook_goes_through_and_its_connection_is_replaced(make, hook, make_error):
    error = make_error()
    pool = ready(make({hook: [raising(error)] * 2}))

    assert play(pool, hook) == [error, error]
    assert causes(pool) == {"interrupted": 2}
    survives(pool)


# -- hooks that hang, and hooks that swallow their bound ---------------------------------------------------------------


def hanging(event: Event) -> Step:
    def step(pool: Any, subject: Any) -> Any:
        event.wait(30)
        return USUAL

    return step


def swallowing(event: Event, times: int | None) -> Step:
    """Hang until that many exceptions, or all of them, are swallowed, or until the event."""

    def step(pool: Any, subject: Any) -> Any:
        swallowed = 0
        while not event.is_set() and swallowed != times:
            try:
                event.wait(30)
            except:  # noqa: E722  # as users write it
                swallowed += 1
        return USUAL

    return step


@pytest.mark.parametrize("hook", WORKING)
def test_a_hook_that_hangs_is_ended_by_its_bound(make, hook, blocked, short_close):
    pool = make({hook: [hanging(blocked)] * 2}, **options_for(hook, **BOUNDS))

    assert play(pool, hook) == []
    survives(pool)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("hook", WORKING)
def test_a_hook_that_swallows_its_bound_and_goes_on_has_done_its_work(make, hook, times, blocked, short_close):
    heard: list[Any] = []
    script = {hook: [swallowing(blocked, times)]}
    pool = make(script, **options_for(hook, **BOUNDS, on_event=heard.append))

    assert play(pool, hook) == []
    survives(pool)
    assert pool.stats().open_errors == 0
    wait_until(lambda: heard)
    assert [event.hook for event in heard if isinstance(event, events.HookFailed)] == [hook]


@pytest.mark.parametrize("hook", [OPEN, KEEP, ABORT])
def test_a_hook_that_swallows_every_bound_holds_its_slot_and_no_other(make, hook, blocked, short_close):
    script = {hook: [swallowing(blocked, None)]}
    pool = make(script, **options_for(hook, **BOUNDS))
    PROVOKE[hook](pool)
    wait_until(lambda: pool.called[hook])
    for _ in range(5):
        use_one(pool)
        replace_one(pool)

    assert not pool.script[hook]
    assert pool.stats().opened - pool.stats().closed <= SIZE
    blocked.set()
    survives(pool)


@pytest.mark.parametrize("hook", WORKING)
def test_a_hook_that_swallows_every_bound_does_not_hold_up_close_beyond_its_time(make, hook, blocked, short_close):
    pool = make({hook: [swallowing(blocked, None)]}, **options_for(hook, **BOUNDS))
    if hook == CLOSE:
        ready(pool)
    else:
        PROVOKE[hook](pool)
        wait_until(lambda: pool.called[hook])
    started = time.monotonic()
    pool.close(0.05)

    assert 0.04 < time.monotonic() - started < 10
    blocked.set()
    survives(pool)


@pytest.mark.parametrize("hook", DECIDING)
def test_a_deciding_hook_that_hangs_is_ended_by_its_borrowers_timeout(make, hook, blocked):
    pool = ready(make({hook: [hanging(blocked)]}))
    with pytest.raises(gevent.Timeout) as caught:
        with gevent.Timeout(BOUND) as mine:
            PROVOKE[hook](pool)

    assert caught.value is mine
    assert causes(pool) == {"interrupted": 1}
    survives(pool)


@pytest.mark.parametrize("hook", DECIDING)
def test_what_hangs_in_a_deciding_hook_is_cut_by_close_and_ends_in_silence(make, hook, blocked):
    pool = ready(make({hook: [hanging(blocked)]}))
    user = gevent.spawn(play, pool, hook)
    wait_until(lambda: pool.called[hook])

    assert pool.close(0.01) is False
    blocked.set()
    user.join(5)
    assert [type(outcome) for outcome in user.value] == ([Mine] if hook == JUDGE else [])
    assert pool.close(0) is False
    is_at_its_end(pool)


# -- hooks that switch, and hooks that kill ----------------------------------------------------------------------------


def sleeping(seconds: float) -> Step:
    def step(pool: Any, subject: Any) -> Any:
        gevent.sleep(seconds)
        return USUAL

    return step


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_may_switch_and_nobody_is_lost_among_many_users(make, hook):
    script = {hook: [sleeping(0), sleeping(0.001)] * 50}
    pool = make(script, **options_for(hook))

    def live(number):
        for turn in range(5):
            with suppress(Mine):
                [use_one, replace_one, fail_one][(number + turn) % 3](pool)

    gevent.joinall([gevent.spawn(live, number) for number in range(10)], raise_error=True)
    survives(pool)


def suicidal(*, block: bool, seconds: float | None) -> Step:
    """Kill the greenlet one is in, and go on for as long as one can."""

    def step(pool: Any, subject: Any) -> Any:
        me: Any = gevent.getcurrent()
        me.kill(block=block)
        if seconds is not None:
            gevent.sleep(seconds)
        return USUAL

    return step


@pytest.mark.parametrize("seconds", [None, 0, 0.001])
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_kills_its_own_greenlet_costs_no_slot(make, hook, block, seconds):
    pool = make({hook: [suicidal(block=block, seconds=seconds)] * 2}, **options_for(hook))
    for _ in range(2):
        gevent.spawn(play, pool, hook).join(30)

    assert not pool.script[hook]
    survives(pool)


def killing_all(pool: Any, subject: Any) -> Any:
    """Kill every other greenlet of the pool."""
    gevent.killall([worker for worker in pool.workers if worker is not gevent.getcurrent()], block=False)
    return USUAL


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_kills_the_other_greenlets_of_the_pool_costs_no_slot(make, hook):
    pool = make({hook: [killing_all] * 2}, **options_for(hook))
    play(pool, hook)

    survives(pool)


def test_whoever_kills_all_greenlets_of_the_pool_again_and_again_costs_no_slot(make):
    pool = make({OPEN: [sleeping(0.001)] * 50, ABORT: [sleeping(0.001)] * 50}, keepalive=0.01)
    for _ in range(50):
        gevent.killall(list(pool.workers), block=False)
        with suppress(PoolTimeout):
            pool.discard(pool.acquire(timeout=0.001))

    survives(pool)


# -- hooks and handlers that use their pool ----------------------------------------------------------------------------


def borrowing(pool: Any, subject: Any) -> None:
    with suppress(PoolTimeout), pool.get(timeout=0.01):
        gevent.sleep(0)


def borrowing_at_once(pool: Any, subject: Any) -> None:
    with suppress(PoolTimeout):
        pool.release(pool.acquire(timeout=0))


def borrowing_for_ever(pool: Any, subject: Any) -> None:
    pool.release(pool.acquire())


def replacing(pool: Any, subject: Any) -> None:
    with suppress(PoolTimeout):
        pool.discard(pool.acquire(timeout=0.01))


def looking(pool: Any, subject: Any) -> None:
    assert pool.stats().open <= SIZE
    assert repr(pool)


def waiting(pool: Any, subject: Any) -> None:
    with suppress(PoolTimeout):
        pool.wait(timeout=0.01)


def waiting_for_ever(pool: Any, subject: Any) -> None:
    pool.wait(SIZE)


def releasing_its_subject(pool: Any, subject: Any) -> None:
    pool.release(subject)


def discarding_its_subject(pool: Any, subject: Any) -> None:
    pool.discard(subject)


def closing_now(pool: Any, subject: Any) -> None:
    pool.close(0)


def closing(pool: Any, subject: Any) -> None:
    pool.close()


def closing_elsewhere(pool: Any, subject: Any) -> None:
    gevent.spawn(pool.close)


def closing_by_leaving(pool: Any, subject: Any) -> None:
    with pool:
        raise Mine


USES = [
    borrowing, borrowing_at_once, borrowing_for_ever, replacing, looking, waiting, waiting_for_ever,
    releasing_its_subject, discarding_its_subject, closing_now, closing, closing_elsewhere, closing_by_leaving,
]  # fmt: skip
ON_ITS_SUBJECT = [releasing_its_subject, discarding_its_subject]
# In the borrower's greenlet nothing bounds these but the borrower.
UNBOUND = [borrowing_for_ever, waiting_for_ever]


def then_as_usual(use: Callable[[Any, Any], None]) -> Step:
    def step(pool: Any, subject: Any) -> Any:
        use(pool, subject)
        return USUAL

    return step


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("hook", WORKING)
def test_a_hook_may_use_its_pool_and_what_it_does_wrong_is_a_failure_of_its_own(make, hook, use, short_close):
    pool = make({hook: [then_as_usual(use)] * 2}, **options_for(hook, **BOUNDS))
    outcomes = play(pool, hook)

    assert all(isinstance(outcome, PoolClosed) for outcome in outcomes)
    assert pool.closed or not outcomes
    survives(pool)


@pytest.mark.parametrize("use", [use for use in USES if use not in UNBOUND], ids=lambda use: use.__name__)
@pytest.mark.parametrize("hook", DECIDING)
def test_a_deciding_hook_may_use_its_pool_and_the_block_ends_as_it_would(make, hook, use):
    pool = ready(make({hook: [then_as_usual(use)]}))

    assert [type(outcome) for outcome in play(pool, hook)] == ([Mine] if hook == JUDGE else [])
    survives(pool)


@pytest.mark.parametrize("use", UNBOUND, ids=lambda use: use.__name__)
@pytest.mark.parametrize("hook", DECIDING)
def test_a_deciding_hook_that_waits_for_its_own_connection_ends_with_its_borrowers_timeout(make, hook, use):
    pool = ready(make({hook: [then_as_usual(use)]}))
    other = pool.acquire(timeout=5)
    if use is waiting_for_ever:
        pool.discard(other)  # and the hook waits until that is replaced
    with gevent.Timeout(BOUND, False), suppress(Mine):
        PROVOKE[hook](pool)
    if use is borrowing_for_ever:
        pool.release(other)

    survives(pool)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_a_handler_of_events_may_use_the_pool_and_what_it_does_wrong_is_logged(make, use, caplog):
    uses = [use] * 2

    def handle(event):
        if uses:
            uses.pop()(pool, event)

    pool = make(on_event=handle)
    wait_until(lambda: pool.closed if "closing" in use.__name__ else not uses)

    survives(pool)
    assert ("on_event raised" in caplog.text) == (use in (*ON_ITS_SUBJECT, closing_by_leaving))


# -- handlers of events, and of the log --------------------------------------------------------------------------------


@pytest.mark.parametrize("make_error", [*ORDINARY, *EXITS, *SYSTEM, *HOSTILE], ids=kind_of)
def test_whatever_a_handler_of_events_raises_it_gets_the_next_one_and_only_the_hub_is_told(
    make, make_error, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("geventconnpool"), "propagate", False)  # pytest's own cannot show them all
    error = make_error()
    heard = []

    def handle(event):
        heard.append(event)
        if len(heard) <= 2:
            raise error

    pool = make(on_event=handle)
    wait_until(lambda: len(heard) >= 2)
    replace_one(pool)
    wait_until(lambda: any(isinstance(event, events.ConnectionClosed) for event in heard))

    survives(pool, told=kinds_told(error, 2))


@pytest.mark.parametrize("seconds", [None, 0, 0.001])
@pytest.mark.parametrize("block", [False, True])
def test_a_handler_of_events_that_kills_its_own_greenlet_is_told_of_the_next_event(make, block, seconds):
    kill = suicidal(block=block, seconds=seconds)
    heard = []

    def handle(event):
        heard.append(event)
        if len(heard) <= 3:
            kill(None, event)

    pool = make(on_event=handle)
    for _ in range(3):
        replace_one(pool)
    survives(pool)

    wait_until(lambda: sum(isinstance(event, events.ConnectionClosed) for event in heard) == 3 + SIZE)


def test_a_handler_of_events_that_hangs_holds_up_nobody_and_is_all_that_is_left(make, blocked):
    heard = []

    def handle(event):
        heard.append(event)
        blocked.wait(30)

    pool = make(on_event=handle)
    for _ in range(20):
        replace_one(pool)
    serves_all(pool)

    assert pool.close(5)
    wait_until(lambda: sum(not worker.dead for worker in pool.workers) == 1)
    assert len(heard) == 1
    blocked.set()
    is_at_its_end(pool)
    wait_until(lambda: sum(isinstance(event, events.ConnectionClosed) for event in heard) == 20 + SIZE)


class Nuisance(logging.Handler):
    """Does something else with each record than to write it."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(logging.DEBUG)
        self.act = act

    def emit(self, record: logging.LogRecord) -> None:
        self.act()


@pytest.fixture
def log_to(caplog) -> Iterator[Callable[[logging.Handler], None]]:
    """Return what makes a handler get all that the package logs."""
    caplog.set_level(logging.DEBUG, "geventconnpool")
    logger = logging.getLogger("geventconnpool")
    before = list(logger.handlers)
    yield logger.addHandler
    logger.handlers[:] = before


def fail_to_log() -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("act", [partial(gevent.sleep, 0), lambda: suicidal(block=True, seconds=None)(None, None)])
def test_a_handler_of_the_log_that_switches_or_kills_costs_no_slot(make, act, log_to):
    log_to(Nuisance(act))
    pool = make({OPEN: [raising(OSError("no"))] * 2, ABORT: [raising(Mine())] * 2}, on_event=fail_on)
    for _ in range(5):
        replace_one(pool)

    survives(pool)


def fail_on(event: object) -> None:
    raise Mine


def test_a_handler_of_the_log_that_raises_costs_no_slot_and_the_hub_is_told(make, log_to, monkeypatch):
    log_to(Nuisance(fail_to_log))
    monkeypatch.setattr(Misused, "greenlets_may_die", True)
    pool = make({OPEN: [raising(OSError("no"))] * 2})
    replace_one(pool)
    serves_all(pool)

    assert pool.close(5)
    is_at_its_end(pool)
    assert set(pool.hub_errors) == {OSError}


# -- blocks that end with an exception which lies about itself ---------------------------------------------------------


class Liar(Exception):
    """Says that it is an OSError."""

    @property  # type: ignore[misc]  # that it can be set nobody needs
    def __class__(self):
        return OSError


class Exit(BaseException):
    """Says that it is an Exception."""

    @property  # type: ignore[misc]  # that it can be set nobody needs
    def __class__(self):
        return Exception


class Nosy(type):
    """Wants to see what is compared with it, and cannot bear it."""

    def __instancecheck__(cls, instance):
        raise RuntimeError("do not compare")

    __subclasscheck__ = __instancecheck__


class Touchy(OSError, metaclass=Nosy):
    pass


class Everything(type):
    def __instancecheck__(cls, instance):
        return True

    __subclasscheck__ = __instancecheck__


class Anything(Exception, metaclass=Everything):
    pass


class Fileless(OSError):
    @property
    def filename(self):
        raise RuntimeError("no file")


class Unequal(OSError):
    """Cannot be compared, counted, or asked whether it is true."""

    def __eq__(self, other):
        raise RuntimeError("no equal")

    def __bool__(self):
        raise RuntimeError("no truth")

    def __len__(self):
        raise RuntimeError("no length")

    __hash__ = None  # type: ignore[assignment]


class Once(OSError):
    """Of which there is one: it cannot be made a second time."""

    made = 0
    refusal: BaseException = RuntimeError("once")

    def __new__(cls, *args: Any) -> Any:
        cls.made += 1
        if cls.made > 1:
            raise cls.refusal
        return super().__new__(cls, *args)

    @classmethod
    def the_first(cls) -> Any:
        cls.made = 0
        return cls()


class Argumentative(OSError):
    @property
    def args(self):
        raise RuntimeError("no arguments")


# What ends the block, the exc_classes, and the cause of the discard, if it is one.
LIARS: list[Any] = [
    (Liar, OSError, "error"),
    (Exit, OSError, "interrupted"),  # whatever it says it is
    (lambda: Mine(), Touchy, "error"),
    (lambda: Mine(), (ValueError, Touchy), "error"),
    (lambda: Mine(), Anything, "error"),
    (lambda: gevent.Timeout(1), Anything, "error"),
    (gevent.GreenletExit, Anything, "error"),
    (lambda: gevent.Timeout(1), Touchy, "error"),
    (Fileless, OSError, "error"),
    (Unequal, OSError, "error"),
    (Unequal, KeyError, None),
    (lambda: Once.the_first(), OSError, "error"),
    (Argumentative, OSError, "error"),
    (lambda: Frozen(1), Frozen, "error"),
    (lambda: Frozen(1), OSError, None),
    (Uncaused, Uncaused, "error"),
    (Unprintable, Unprintable, "error"),
    (Boastful, Boastful, "error"),
    (Secretive, Secretive, "error"),
    (lambda: Demanding(1, reason="so"), Demanding, "error"),
    (lambda: OSError(2, "no", "/nowhere"), (OSError, Touchy), "error"),
]


def end_block_with(pool: Any, error: BaseException | None) -> object:
    """Return what came out of a block that was ended with the error."""

    def fail() -> None:
        with pool.get(timeout=5):
            if error is not None:
                raise error

    return outcome_of(fail)


class Unoverridden:
    """The pool's own view of what is a connection error."""

    _is_connection_error = ConnectionPool._is_connection_error


@pytest.fixture(params=KINDS)
def make_plain(request) -> Make:
    """Make a pool or a cluster that asks nobody what is a connection error."""
    plain, _ = KINDS[request.param]
    kind = type(plain.__name__, (Unoverridden, plain), {})
    return lambda **options: ready(kind(**options))


@pytest.mark.parametrize(("make_error", "exc_classes", "cause"), LIARS)
def test_a_block_may_end_with_an_exception_that_lies_about_itself(make_plain, make_error, exc_classes, cause):
    pool = make_plain(exc_classes=exc_classes)
    error = make_error()
    outcome = end_block_with(pool, error)

    assert outcome is error
    assert causes(pool) == ({cause: 1} if cause else {})
    survives(pool)


def test_a_block_may_end_with_an_exception_that_has_no_class(make_plain):
    pool = make_plain()
    error = Faceless()
    is_same = end_block_with(pool, error) is error

    assert is_same
    survives(pool)


def test_an_exception_that_runs_code_when_it_is_copied_breaks_no_transition(make_plain):
    class Reporting(OSError):
        def __new__(cls, *args: Any) -> Any:
            gevent.sleep(0.001)  # as one that tells a server of itself does
            return super().__new__(cls, *args)

    pool = make_plain()

    def fail():
        for _ in range(3):
            with suppress(Reporting):
                with pool.get(timeout=5):
                    raise Reporting

    gevent.joinall([gevent.spawn(fail) for _ in range(10)], raise_error=True)
    assert causes(pool) == {"error": 30}
    survives(pool)


@pytest.mark.parametrize("refusal", [gevent.GreenletExit(), KeyboardInterrupt()], ids=repr)
def test_an_exception_that_raises_an_exit_when_it_is_copied_goes_on_as_itself(make_plain, refusal, request):
    class Deadly(Once):
        pass

    Deadly.refusal = refusal
    pool = make_plain()
    error = Deadly.the_first()
    outcome = end_block_with(pool, error)

    assert outcome is error
    survives(pool)


# -- factories that return strange things ------------------------------------------------------------------------------


class Answering:
    """Any attribute is a call to its server."""

    def __getattr__(self, name):
        return lambda *args, **options: self


class Mute:
    """No attribute may be asked for."""

    def __getattribute__(self, name):
        raise RuntimeError(f"{name} is nobody's business")


class Impostor:
    """Says that it is None."""

    @property  # type: ignore[misc]  # that it can be set nobody needs
    def __class__(self):
        return type(None)


class Classless:
    @property  # type: ignore[misc]  # that it can be set nobody needs
    def __class__(self):
        raise RuntimeError("has no class")


class Slotted:
    """No attribute can be set, and no weak reference made."""

    __slots__ = ()


class Contrary:
    """Raises at every question that an object can be asked in silence."""

    def refuse(self, *args: object) -> Any:
        raise RuntimeError("no answer")

    __bool__ = __len__ = __eq__ = __ne__ = __lt__ = __hash__ = __repr__ = __str__ = refuse
    __iter__ = __contains__ = __getitem__ = __index__ = __int__ = __format__ = __sizeof__ = refuse


class Same:
    """Equal to everything."""

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1


class Mortal:
    """Its end is loud."""

    def __del__(self):
        raise RuntimeError("never")


class Plug:
    """Says no useful thing about its socket."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def say(self) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    fileno = getpeername = say


class Uncloseable:
    close = None


class Costly:
    def close(self, price):
        raise AssertionError("nobody pays")


class Secluded:
    @property
    def close(self):
        raise OSError("no")


class Awaited:
    def close(self):
        return self.later()

    async def later(self):
        """Nobody waits for this."""


def generator() -> Generator[int]:
    yield 1


class ClosesByDefault(Misused):
    """Closes as if no hook had been overridden."""

    def _close_connection(self, c: Any) -> None:
        self.ended.append(c)
        default: Any = ConnectionPool._close_connection
        default(self, c)

    _abort_connection: Any = ConnectionPool._abort_connection


@pytest.fixture(params=KINDS)
def make_default(request) -> Make:
    """Make a pool or a cluster that closes its connections as if no hook had been overridden."""
    plain, _ = KINDS[request.param]
    return type(plain.__name__, (ClosesByDefault, plain), {})


STRANGE: dict[str, Callable[[], Any]] = {
    "unhashable": list, "empty dict": dict, "empty set": set, "empty bytes": bytearray,
    "number": lambda: int("1" + "0" * 30), "nan": lambda: float("1e999") - 1, "generator": generator,
    "function": lambda: lambda: None, "partial": lambda: partial(print), "class": lambda: type("Lost", (), {}),
    "exception": Mine, "interruption": lambda: gevent.Timeout(1), "greenlet": Greenlet, "group": Group, "event": Event,
    "mock": mock.MagicMock, "answers everything": Answering, "answers nothing": Mute, "says it is None": Impostor,
    "no class": Classless, "no attributes": Slotted, "contrary": Contrary, "equal to all": Same,
    "fileno None": lambda: Plug(None), "fileno -1": lambda: Plug(-1), "fileno huge": lambda: Plug(10**30),
    "fileno taken": lambda: Plug(0), "fileno text": lambda: Plug("0"), "fileno raises": lambda: Plug(Mine()),
    "fileno exits": lambda: Plug(gevent.GreenletExit()), "peer empty": lambda: Plug(()),
    "peer contrary": lambda: Plug(Contrary()),
    "close None": Uncloseable, "close with price": Costly, "close raises": Secluded,
}  # fmt: skip


@pytest.mark.parametrize("what", STRANGE)
def test_whatever_object_a_factory_returns_is_lent_as_it_is_and_closed_at_the_end(make_default, what):
    made: list[Any] = []

    def strange(pool: Any, subject: Any) -> Any:
        made.append(STRANGE[what]())
        return made[-1]

    pool = ready(make_default({OPEN: [strange] * 4}))
    for exc in (None, Mine(), OSError("broken"), gevent.Timeout(1)):
        with suppress(Mine, OSError, gevent.Timeout):
            with pool.get(timeout=5) as c:
                assert any(c is one for one in made)
                if exc is not None:
                    raise exc
        ready(pool)

    assert len(made) == 4
    assert pool.stats().open_errors == 0
    survives(pool)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_system_exception_out_of_a_connection_that_is_asked_for_its_peer_goes_to_the_hub(kind):
    cluster = ready(Cluster({OPEN: [lambda pool, subject: Plug(kind())]}))

    survives(cluster, told=[kind] * 2)  # once by its getpeername, once by its fileno


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("what", [Awaited, lambda: Awaited().later()], ids=["close is a coroutine", "a coroutine"])
def test_what_should_be_awaited_is_lent_and_let_go_like_any_object(make_default, what):
    def step(pool: Any, subject: Any) -> Any:
        return what()

    pool = ready(make_default({OPEN: [step] * 2}))
    replace_one(pool)
    survives(pool)
    del pool
    gc.collect()


def test_an_object_whose_end_is_loud_costs_no_slot(monkeypatch):
    heard: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: heard.append(unraisable.exc_type))

    class MortalPool(ConnectionPool[Any]):
        def _new_connection(self):
            return Mortal()

    with MortalPool(SIZE) as pool:
        for _ in range(3):
            replace_one(pool)
        ready(pool)

    assert pool.stats().closed == pool.stats().opened == 3 + SIZE
    wait_until(lambda: (gc.collect(), len(heard) == 3 + SIZE)[1])
    assert set(heard) == {RuntimeError}


SINGLE = [0, 1, "", b"", (), True, frozenset(), NotImplemented, ..., print, logging, int]


@pytest.mark.parametrize("single", SINGLE, ids=repr)
def test_what_there_is_only_one_of_in_the_world_can_be_a_connection_once(make_default, single):
    pool = ready(make_default({OPEN: [lambda pool, subject: single] * 3}))
    held = [pool.acquire(timeout=5) for _ in range(SIZE)]

    assert sum(c is single for c in held) == 1
    assert pool.stats().open_errors == 2
    for c in held:
        pool.release(c)
    survives(pool)


@pytest.mark.parametrize("nothing", [None, False])
def test_none_and_false_mean_not_yet_to_a_cluster_too(make, nothing):
    pool = ready(make({OPEN: [lambda pool, subject: nothing] * 3}))

    assert pool.stats().open_errors == 3
    assert repr(nothing) in str(pool.stats().last_error)
    survives(pool)


def idle(pool: Any, blocked: Event) -> Any:
    use_one(pool)
    c, other = pool.acquire(timeout=5), pool.acquire(timeout=5)
    pool.release(c)
    pool.discard(other)
    return c


def in_use(pool: Any, blocked: Event) -> Any:
    c, other = pool.acquire(timeout=5), pool.acquire(timeout=5)
    pool.discard(other)
    return c


def under_keepalive(pool: Any, blocked: Event) -> Any:
    pool.script[KEEP].append(hanging(blocked))
    wait_until(lambda: not pool.script[KEEP])
    other = pool.acquire(timeout=5)
    (c,) = [c for c in pool.made if c is not other]
    pool.discard(other)
    return c


def closing_slowly(pool: Any, blocked: Event) -> Any:
    pool.script[ABORT].append(hanging(blocked))
    c, other = pool.acquire(timeout=5), pool.acquire(timeout=5)
    pool.discard(c)
    wait_until(lambda: pool.called[ABORT])
    pool.discard(other)
    return c


@pytest.mark.parametrize("state", [idle, in_use, under_keepalive, closing_slowly], ids=lambda state: state.__name__)
def test_an_object_that_is_in_the_pool_in_whatever_state_is_refused_and_left_alone(make, state, blocked):
    same: list[Any] = []

    def make_once(pool: Any, subject: Any) -> Any:
        pool.made.append(Connection())
        return pool.made[-1]

    def make_again(pool: Any, subject: Any) -> Any:
        return same[0]

    options = options_for(KEEP if state is under_keepalive else OPEN, keepalive_timeout=30)
    pool = make({OPEN: [make_once] * SIZE + [make_again] * 3, KEEP: (), ABORT: ()}, **options)
    pool.made = []
    ready(pool)
    same.append(state(pool, blocked))
    wait_until(lambda: pool.stats().open_errors == 3)

    assert "already" in str(pool.stats().last_error)
    assert sum(c is same[0] for c in pool.ended) == (state is closing_slowly)
    blocked.set()
    if state is in_use:
        pool.release(same[0])
    survives(pool)


def test_a_factory_that_always_returns_the_same_object_lends_it_to_one_at_a_time_and_the_error_says_why(make):
    shared = [Connection()]

    def share(pool: Any, subject: Any) -> Any:
        if not shared:
            return USUAL
        pool.script[OPEN].append(share)
        return shared[0]

    pool = make({OPEN: [share]})
    with pool.get(timeout=5) as c:
        assert c is shared[0]
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(timeout=0.05)
    shared.clear()

    assert "already" in str(caught.value.__cause__)
    survives(pool)


# -- connections that are given back in the wrong way ------------------------------------------------------------------

refused = partial(pytest.raises, ValueError)


class OneEndpoint(Misused, ClusterPool[Any]):
    def __init__(self, **options: Any) -> None:
        self._prepare({})
        super().__init__((A,), SIZE, outlier=None, **options)


@pytest.fixture(params=["pool", "cluster", "endpoint"])
def placed(request) -> tuple[Any, Any]:
    """A pool, and the place to borrow from: the pool, the cluster, or the pool of its one endpoint."""
    pool = ready({"pool": Pool, "cluster": Cluster, "endpoint": OneEndpoint}[request.param]())
    return pool, (pool.pools[A] if request.param == "endpoint" else pool)


def released_twice(place: Any) -> None:
    c = place.acquire(timeout=5)
    place.release(c)
    with refused():
        place.release(c)


def released_and_discarded(place: Any) -> None:
    c = place.acquire(timeout=5)
    place.release(c)
    with refused():
        place.discard(c)


def discarded_and_released(place: Any) -> None:
    c = place.acquire(timeout=5)
    place.discard(c)
    with refused():
        place.release(c)


def discarded_twice(place: Any) -> None:
    c = place.acquire(timeout=5)
    place.discard(c)
    with refused():
        place.discard(c)


def discarded_and_released_when_it_is_closed(place: Any) -> None:
    c = place.acquire(timeout=5)
    place.discard(c)
    wait_until(lambda: place.stats().closed)
    for verb in place.release, place.discard:
        with refused():
            verb(c)


def released_when_somebody_else_has_it(place: Any) -> None:
    c = place.acquire(timeout=5)
    place.release(c)
    others = [place.get(timeout=5) for _ in range(SIZE)]
    with ExitStack() as stack:
        for other in others:
            stack.enter_context(other)
        with refused():
            place.release(c)


def released_in_its_block(place: Any) -> None:
    with place.get(timeout=5) as c:
        with refused():
            place.release(c)


def released_after_its_block(place: Any) -> None:
    with place.get(timeout=5) as c:
        pass
    for verb in place.release, place.discard:
        with refused():
            verb(c)


def discarded_in_its_block_and_released(place: Any) -> None:
    with place.get(timeout=5) as c:
        place.discard(c)
        for verb in place.release, place.discard:
            with refused():
                verb(c)
    for verb in place.release, place.discard:
        with refused():
            verb(c)


def returned_by_an_equal_object(place: Any) -> None:
    c = place.acquire(timeout=5)
    for verb in place.release, place.discard:
        for impostor in Same(), mock.ANY, id(c), str(c):
            with refused():
                verb(impostor)
    place.release(c)


def returned_by_an_object_that_answers_nothing(place: Any) -> None:
    for verb in place.release, place.discard:
        for impostor in Contrary(), Mute(), Classless(), Answering():
            with refused():
                verb(impostor)


def returned_to_another_pool(place: Any) -> None:
    stranger = ready(Pool())
    c, foreign = place.acquire(timeout=5), stranger.acquire(timeout=5)
    for verb in place.release, place.discard:
        with refused():
            verb(foreign)
    for verb in stranger.release, stranger.discard:
        with refused():
            verb(c)
    place.release(c)
    stranger.release(foreign)
    assert stranger.close(0)


def returned_by_many_at_once(place: Any) -> None:
    c = place.acquire(timeout=5)
    refusals = []

    def give_back(verb):
        try:
            verb(c)
        except ValueError as error:
            refusals.append(error)

    gevent.joinall([gevent.spawn(give_back, verb) for verb in [place.release, place.discard] * 5], raise_error=True)
    assert len(refusals) == 9


def left_without_being_entered(place: Any) -> None:
    lease = place.get(timeout=5)
    with pytest.raises((RuntimeError, AttributeError)):
        lease.__exit__(None, None, None)


def left_twice(place: Any) -> None:
    lease = place.get(timeout=5)
    with lease:
        pass
    with pytest.raises((RuntimeError, AttributeError)):
        lease.__exit__(None, None, None)


def left_in_its_own_block(place: Any) -> None:
    lease = place.get(timeout=5)
    with pytest.raises((RuntimeError, AttributeError)):
        with lease:
            lease.__exit__(None, None, None)


def entered_in_its_own_block(place: Any) -> None:
    lease = place.get(timeout=5)
    with lease:
        with pytest.raises(RuntimeError):
            lease.__enter__()


def forgotten_leases(place: Any) -> None:
    """Borrowed are they only when entered."""
    for _ in range(10):
        place.get()
    with pytest.raises(TypeError):
        list(place.get())
    with pytest.raises(AttributeError):
        place.get().send(b"PING")


MISRETURNS = [
    released_twice, released_and_discarded, discarded_and_released, discarded_twice,
    discarded_and_released_when_it_is_closed, released_when_somebody_else_has_it, released_in_its_block,
    released_after_its_block, discarded_in_its_block_and_released, returned_by_an_equal_object,
    returned_by_an_object_that_answers_nothing, returned_to_another_pool, returned_by_many_at_once,
    left_without_being_entered, left_twice, left_in_its_own_block, entered_in_its_own_block, forgotten_leases,
]  # fmt: skip


@pytest.mark.parametrize("misreturn", MISRETURNS, ids=lambda misreturn: misreturn.__name__)
def test_a_wrong_return_is_refused_and_changes_nothing(placed, misreturn):
    pool, place = placed
    misreturn(place)

    survives(pool)


@pytest.mark.parametrize("verb", ["release", "discard"])
def test_the_pool_of_an_endpoint_takes_back_what_leads_there_and_nothing_else(verb):
    cluster = ready(Cluster())
    for c in [cluster.acquire(timeout=5) for _ in range(SIZE)]:
        right = cluster.endpoint_of(c)
        wrong = B if right == A else A
        with refused():
            getattr(cluster.pools[wrong], verb)(c)
        getattr(cluster.pools[right], verb)(c)
        with refused():
            getattr(cluster, verb)(c)

    survives(cluster)


@pytest.mark.parametrize("again", ["release", "discard"])
@pytest.mark.parametrize("verb", ["release", "discard"])
def test_what_was_closed_under_its_user_can_be_returned_once(make, verb, again):
    pool = ready(make())
    c = pool.acquire(timeout=5)
    gevent.spawn(pool.close, 0).join(5)
    getattr(pool, verb)(c)
    with refused():
        getattr(pool, again)(c)

    assert pool.close(5) is False
    is_at_its_end(pool)


@pytest.mark.parametrize("verb", ["release", "discard"])
@pytest.mark.parametrize("hook", [OPEN, KEEP, ABORT])
def test_what_a_hook_has_in_its_hands_cannot_be_returned_by_another(make, hook, verb, blocked):
    seen: list[Any] = []

    def show(pool: Any, subject: Any) -> Any:
        c = Connection() if hook == OPEN else subject
        seen.append(c)
        blocked.wait(5)
        return c if hook == OPEN else None

    pool = make({hook: [show]}, **options_for(hook))
    PROVOKE[hook](pool)
    wait_until(lambda: seen)
    with refused():
        getattr(pool, verb)(seen[0])

    blocked.set()
    survives(pool)


# -- closing at the wrong moment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 5, 0])
@pytest.mark.parametrize("exc", [None, Mine, OSError, gevent.Timeout])
def test_closing_inside_a_block_closes_its_connection_at_the_end_of_the_block(make, timeout, exc):
    pool = ready(make())
    with suppress(Mine, OSError, gevent.Timeout):
        with pool.get(timeout=5) as c:
            assert pool.close(timeout)
            assert not any(one is c for one in pool.ended)
            with pytest.raises(PoolClosed):
                use_one(pool)
            if exc is not None:
                raise exc

    survives(pool)


def test_many_may_close_at_once_with_users_waiters_and_connects_under_way(make):
    pool = ready(make({OPEN: [sleeping(0.001)] * 20}))

    def live(number):
        with suppress(PoolClosed):
            while True:
                [use_one, replace_one][number % 2](pool)
                gevent.sleep(0)

    users = [gevent.spawn(live, number) for number in range(10)]
    gevent.sleep(0.005)
    closers = [gevent.spawn(pool.close, timeout) for timeout in [None, 5, None, 5]]
    gevent.joinall(users + closers, raise_error=True)

    assert [closer.value for closer in closers] == [True] * 4
    survives(pool)


def test_a_close_that_is_interrupted_has_closed_the_pool_and_another_can_finish_it(make):
    pool = ready(make())
    c = gevent.spawn(pool.acquire).get()
    with gevent.Timeout(0.01) as mine, pytest.raises(gevent.Timeout) as caught:
        pool.close()

    assert caught.value is mine
    assert pool.closed
    pool.release(c)
    survives(pool)


def test_close_in_a_callback_of_the_hub_cannot_wait_but_refuses_everybody_from_then_on(make):
    pool = ready(make())
    c = gevent.spawn(pool.acquire).get()
    caught: list[BaseException] = []

    def close():
        try:
            pool.close()
        except RuntimeError as error:
            caught.append(error)

    gevent.get_hub().loop.run_callback(close)
    wait_until(lambda: caught)

    assert "callback" in str(caught[0])
    assert pool.closed
    pool.release(c)
    survives(pool)


def test_a_closed_pool_refuses_all_there_is_to_refuse_and_calls_no_hook(make):
    pool = ready(make(keepalive=0.01))
    assert pool.close(5)
    called = dict(pool.called)
    for use in pool.acquire, pool.get().__enter__, pool.wait, partial(pool.acquire, 0):
        with pytest.raises(PoolClosed):
            use()
    for verb in pool.release, pool.discard:
        with refused():
            verb(pool.ended[0])
    with pool:
        gevent.sleep(0.02)

    assert dict(pool.called) == called
    survives(pool)


# -- classes that are no good ------------------------------------------------------------------------------------------


class BarePool(ConnectionPool[Any]):
    def _new_connection(self):
        return Connection()

    def _keepalive(self, c):
        """All is well."""


class BareCluster(ClusterPool[Any]):
    def _new_connection(self, endpoint):
        return Connection()

    def _keepalive(self, c):
        """All is well."""


NO_HOOKS = [None, 5, lambda: None, lambda *args: 1 / 0, lambda *args, missing: None, Mine]


@pytest.mark.parametrize("garbage", NO_HOOKS, ids=["None", "number", "no argument", "raises", "keyword", "class"])
@pytest.mark.parametrize("hook", [OPEN, KEEP, JUDGE, REUSE])
def test_a_hook_that_cannot_be_called_fails_like_one_that_raises_until_it_is_mended(make, hook, garbage):
    pool = ready(make({hook: ()}, **options_for(hook)))
    setattr(pool, hook, garbage)
    with suppress(Mine):
        PROVOKE[hook](pool)
    with suppress(Mine, PoolTimeout):
        pool.release(pool.acquire(timeout=0.02))
    delattr(pool, hook)

    survives(pool)


@pytest.mark.parametrize("garbage", NO_HOOKS, ids=["None", "number", "no argument", "raises", "keyword", "class"])
@pytest.mark.parametrize("hook", [CLOSE, ABORT])
def test_a_closing_hook_that_cannot_be_called_leaves_the_connection_to_its_fate_and_its_slot_free(make, hook, garbage):
    pool = ready(make())
    setattr(pool, hook, garbage)
    for _ in range(3):
        replace_one(pool)
    serves_all(pool)

    assert pool.close(5)
    wait_until(lambda: pool.stats().closed == pool.stats().opened == 3 + SIZE)


async def awaited(self, *args):
    return Connection()


def yielding(self, *args):
    yield Connection()


@pytest.mark.parametrize("function", [awaited, yielding])
@pytest.mark.parametrize("hook", [*HOOKS, "_fileno"])
@pytest.mark.parametrize("kind", [BarePool, BareCluster])
def test_a_hook_that_nobody_would_ever_run_is_refused_by_name(kind, hook, function):
    wrong = type("Wrong", (kind,), {hook: function})

    with pytest.raises(TypeError, match=f"Wrong.{hook} must be a plain function, .* <function {function.__name__}"):
        wrong((A,), 1) if kind is BareCluster else wrong(1)
    assert Misused.workers == []


@pytest.mark.parametrize("kind", [ConnectionPool, ClusterPool])
def test_a_pool_whose_constructor_was_not_called_can_do_nothing_and_says_so(kind):
    class Forgetful(kind):
        def __init__(self):
            self.host = "db"

        def _new_connection(self, *args):
            return Connection()

    pool = Forgetful()
    for use in pool.get, pool.acquire, pool.close, pool.stats, pool.wait, pool.__enter__().get:
        with pytest.raises(AttributeError, match=r"^Forgetful.__init__ must call super\(\).__init__\("):
            use()


class ContraryPool(Contrary, BarePool):
    """Cannot be compared, counted, printed or asked whether it is true."""


class AnsweringPool(Answering, BarePool):
    """Hands on whatever it is asked for and does not have."""


@pytest.mark.parametrize("kind", [ContraryPool, AnsweringPool])
def test_a_pool_of_a_strange_class_is_a_pool(kind):
    pool = kind(SIZE, keepalive=0.003)
    pool.wait(timeout=5)
    for exc in (None, Mine(), OSError("broken"), gevent.Timeout(1)):
        assert outcome_of(partial(end_block_with, pool, exc)) is exc
    pool.release(pool.acquire(timeout=5))

    assert pool.close(5)
    assert pool.stats().opened == pool.stats().closed == SIZE + 2


@pytest.mark.parametrize("name", ["100 %s", "{pool}", "%(name)s {", "a\nb", "", " "])
def test_a_pool_may_have_any_text_for_a_name(make, name, caplog):
    caplog.set_level(logging.DEBUG, "geventconnpool")
    pool = make({OPEN: [raising(OSError("no"))], ABORT: [raising(Mine())]}, name=name, on_event=fail_on)
    replace_one(pool)
    survives(pool)

    assert pool.stats().name == name or not name
    assert name in caplog.text


@pytest.mark.parametrize("signature", [lambda self: 1, lambda self, a, b: 1], ids=["too few", "too many"])
def test_a_factory_with_the_wrong_arguments_is_named_to_whoever_waits(signature):
    pool = type("Wrong", (ClusterPool,), {OPEN: signature})((A,), 1)
    with pytest.raises(PoolTimeout) as caught:
        pool.acquire(timeout=0.02)

    assert isinstance(caught.value.__cause__, TypeError)
    assert pool.close(5)


class Chooser:
    """Does as it is told until it is to be good."""

    def __init__(self) -> None:
        self.act: Callable[[Any], Any] | None = None

    def choose(self, candidates: Any, now: float) -> Any:
        return self.act(candidates) if self.act else candidates[0]


def choose_raising(error: BaseException) -> Callable[[Any], Any]:
    def act(candidates: Any) -> Any:
        raise error

    return act


CHOICES: list[Any] = [
    lambda candidates: candidates, lambda candidates: "a.test", lambda candidates: Contrary(),
    lambda candidates: candidates[0].endpoint, lambda candidates: candidates[len(candidates)],
    *map(choose_raising, [Unprintable(), Secretive(), Frozen(1), Uncaused(), StopIteration()]),
    lambda candidates: Same(), lambda candidates: mock.ANY,
]  # fmt: skip


@pytest.mark.parametrize("act", CHOICES)
def test_whatever_a_balancer_chooses_the_call_is_served(act):
    chooser = Chooser()
    cluster = ready(Cluster(balancer=lambda: chooser))
    chooser.act = act
    for _ in range(3):
        use_one(cluster)
        replace_one(cluster)

    survives(cluster)


@pytest.mark.parametrize("make_error", [*EXITS, *SYSTEM], ids=kind_of)
def test_an_interruption_out_of_a_balancer_goes_to_the_borrower_and_costs_nobody_else_anything(make_error):
    chooser = Chooser()
    cluster = ready(Cluster(balancer=lambda: chooser))
    error = make_error()
    chooser.act = choose_raising(error)
    outcome = outcome_of(partial(use_one, cluster))
    chooser.act = None

    assert outcome is error
    survives(cluster)


# -- arguments ---------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
NO_TIME: list[Any] = [-1, -0.001, NAN, INF, -INF, "5", b"5", True, [], 1j, Decimal(5), Fraction(5), object, ...]
NO_COUNT: list[Any] = [-1, 1.5, 1.0, "2", True, [], NAN, Decimal(1)]
# What a lone pool says to these is in test_pool.py, but for methods that are not there.
ARGUMENTS: list[tuple[str, str, list[Any]]] = [
    ("get", "timeout", NO_TIME), ("acquire", "timeout", NO_TIME), ("wait", "timeout", NO_TIME), ("wait", "n", NO_COUNT),
    ("close", "timeout", NO_TIME),
]  # fmt: skip


@pytest.mark.parametrize(("method", "parameter", "values"), ARGUMENTS)
def test_a_bad_argument_of_a_method_is_refused_with_its_name_and_value_and_changes_nothing(
    placed, method, parameter, values
):
    pool, place = placed
    for value in values:
        with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
            getattr(place, method)(**{parameter: value})
        if isinstance(caught.value, RuntimeError):
            assert (place is not pool, method) == (True, "close")  # which the pool of an endpoint cannot do at all
        else:
            assert str(caught.value).startswith(parameter)
            assert repr(value) in str(caught.value)

    assert not pool.closed
    survives(pool)


EMPTY = [(), [], {}, set(), "", b"", range(0)]
NO_CLASSES = [
    5,
    None,
    True,
    "OSError",
    b"OSError",
    OSError("no"),
    (OSError, "OSError"),
    (OSError, None),
    int,
    [[OSError]],
]
CLASSES = [Mine, [Mine], (Mine, Mine), {Mine: "count the keys"}, frozenset([Mine]), BaseException, Touchy, Anything]


@pytest.mark.parametrize("through", [lambda given: given, iter, lambda given: (kind for kind in given)])
@pytest.mark.parametrize("given", CLASSES)
def test_exc_classes_of_a_cluster_may_be_a_class_or_anything_that_yields_classes(given, through):
    classes = (given,) if isinstance(given, type) else tuple(given)
    cluster = Cluster(exc_classes=given if isinstance(given, type) else through(given))

    assert cluster.exc_classes == classes
    assert all(pool.exc_classes == classes for pool in cluster.pools.values())
    survives(cluster)


@pytest.mark.parametrize("given", EMPTY)
def test_no_exc_classes_at_all_are_refused_because_no_connection_would_ever_be_replaced(make, given):
    for nothing in given, iter(given), (kind for kind in given):
        with pytest.raises(ValueError, match="exc_classes"):
            make(exc_classes=nothing)


@pytest.mark.parametrize("given", ["OSError", b"OSError"])
def test_a_name_for_exc_classes_is_refused_whole(make, given):
    with pytest.raises(TypeError, match=f"exc_classes must hold exception classes, not {given!r}"):
        make(exc_classes=given)


@pytest.mark.parametrize("given", NO_CLASSES)
def test_exc_classes_that_are_none_are_refused_by_name(make, given):
    with pytest.raises(TypeError, match="exc_classes"):
        make(exc_classes=given)


NO_TEXT: list[Any] = [5, b"mine", ["mine"], True, object()]
NO_FUNCTION: list[Any] = [5, "print", [], True, object()]
OPTIONS: dict[str, list[Any]] = {
    "size": [0, None, *NO_COUNT], "exc_classes": [5, None, OSError(), [5]], "keepalive": NO_TIME, "timeout": NO_TIME,
    "max_connecting": [0, None, *NO_COUNT], "open_timeout": [0, 0.0, None, *NO_TIME],
    "keepalive_timeout": [0, 0.0, *NO_TIME], "name": NO_TEXT, "on_event": NO_FUNCTION,
}  # fmt: skip
CLUSTER_OPTIONS: dict[str, list[Any]] = {
    "drain_timeout": [None, *NO_TIME], "outlier": [5, "never", True, object()],
    "balancer": [None, 5, "fair", object, int], "subset": [0, *NO_COUNT],
}  # fmt: skip
ALL_OPTIONS = [(o, v) for options in (OPTIONS, CLUSTER_OPTIONS) for o, values in options.items() for v in values]


def make_bare(kind: str, **options: Any) -> Any:
    options = {"size": 1, **options}
    return BarePool(**options) if kind == "pool" else BareCluster((A,), **options)


@pytest.mark.parametrize(("option", "value"), ALL_OPTIONS)
def test_a_bad_option_of_a_cluster_is_refused_with_its_name_and_value_and_nothing_is_started(option, value):
    with pytest.raises((ValueError, TypeError)) as caught:
        make_bare("cluster", **{option: value})

    assert option in str(caught.value)
    shown = [repr(value), *map(repr, value)] if isinstance(value, (list, tuple)) else [repr(value)]
    assert any(text in str(caught.value) for text in shown) or option == "balancer"
    assert Misused.workers == []


class Unshown:
    def __repr__(self):
        raise RuntimeError("cannot be printed")


UNPRINTABLE = [(option, kind) for kind in KINDS for option in OPTIONS]
UNPRINTABLE += [(option, "cluster") for option in (*CLUSTER_OPTIONS, "resolver")]


@pytest.mark.parametrize(("option", "kind"), UNPRINTABLE)
def test_a_bad_option_that_cannot_be_printed_is_refused_by_name(option, kind):
    with pytest.raises((ValueError, TypeError), match=option):
        make_bare(kind, **{option: Unshown()})


# -- attempts that are no good -----------------------------------------------------------------------------------------

# An OSError about a file is the application's, whatever is retried.
RETRIED = [make_error for make_error in (*ORDINARY, *EXITS, *SYSTEM) if kind_of(make_error) != "FileNotFoundError"]
WITHOUT_NOTES = [Boastful, Secretive]
UNNOTED = [lambda: Frozen(1), *WITHOUT_NOTES]


def give_up_on(pool: Any, errors: list[BaseException]) -> object:
    """Return what comes out of a retried call whose attempts raise these."""
    left = iter(errors)

    @retry(exc_classes=BaseException, max_failures=len(errors) - 1)
    def fail():
        with pool.get(timeout=5):
            raise next(left)

    return outcome_of(fail)


@pytest.mark.parametrize("make_error", [one for one in RETRIED if one not in WITHOUT_NOTES], ids=kind_of)
def test_a_retried_call_gives_up_with_the_last_exception_itself_whatever_it_is(make_plain, make_error):
    pool = make_plain(exc_classes=BaseException)
    errors = [make_error() for _ in range(3)]
    outcome = give_up_on(pool, errors)

    assert outcome is errors[-1]
    survives(pool)


@pytest.mark.parametrize("make_error", UNNOTED, ids=kind_of)
def test_a_retried_call_gives_up_with_the_last_exception_itself_though_that_takes_no_note(make_plain, make_error):
    pool = make_plain(exc_classes=BaseException)
    errors = [make_error() for _ in range(3)]
    is_last = give_up_on(pool, errors) is errors[-1]

    assert is_last
    survives(pool)
