"""The gevent shell round the pure state: clock, timer, greenlets, user hooks.

One engine serves a lone pool, or a whole cluster. It owns

* one timer of the hub, set for the earliest alarm, at whose ring it calls ``tick`` (no greenlet rests for that);
* a worker greenlet per connection that is being opened, kept alive or closed right now; user hooks run there and
  nowhere else, but for the two that decide how a lease ends;
* a greenlet per consumer of events (the log, ``on_event``) while there are any.

It knows the user's pool by a weak reference only: nothing of ours keeps a forgotten pool, or its sockets. And it is for
one process: in the child of a fork it does nothing at all, nor do the greenlets that the child inherited.

What may happen between two switches: a transition and the ``act`` behind it never switch, so nothing sees what lies
between. A greenlet that waits in ``park`` may be interrupted by any exception, at the switch and nowhere else;
whoever parks undoes what it asked for. The loop itself switches to who is to be woken, and whoever leaves ``park``
stops the callback that would. No code of ours runs in between: a signal strikes the woken greenlet, which passes on
what it was handed, and not the way to it.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from time import monotonic
from traceback import StackSummary, walk_stack, walk_tb
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from gevent import GreenletExit, Timeout, get_hub, getcurrent, sleep
from gevent.socket import socket

from geventconnpool import _fork
from geventconnpool._check import RUNS_LATER, show
from geventconnpool._fork import get_ident, stamp
from geventconnpool._late import load
from geventconnpool._liveness import descriptor_of, make_poller, plain_twin, wake_user
from geventconnpool._log import LogWriter, logger
from geventconnpool._queue import (
    ABORT,
    ALARM,
    CANCEL,
    CHECK,
    CLOSE,
    HELD,
    INTERRUPTED,
    NESTED,
    OPEN,
    WAKE,
    Queue,
    Slot,
    Timed,
    Waiter,
)
from geventconnpool._worker import Worker

if TYPE_CHECKING:
    from geventconnpool import events
else:
    from geventconnpool._late import events

R = TypeVar("R")

CLOSE_TIMEOUT = 5.0  # seconds for _close_connection and _abort_connection
PARTING_TIME, PARTING_TURNS = 0.1, 20  # seconds for a user under whom is closed, once he has been woken; and looks
PEER_TIMEOUT = 1.0  # seconds for a client object to say where it leads
BOUND_REPEAT = 1.0  # seconds until a hook that swallowed its bound gets it again
EVENTS_KEPT = 10_000  # that a slow consumer may be behind

SYSTEM = (KeyboardInterrupt, SystemExit)
log = logger.getChild("pool")


class HookTimeout(Timeout):
    """Thrown into a hook that outlives its time, again every second until it ends."""

    def __init__(self, hook: str, endpoint: Any, seconds: float) -> None:
        super().__init__(None)
        self.hook = hook
        self.endpoint = endpoint
        self.bound = seconds
        self.is_told = False

    def __str__(self) -> str:
        return f"{self.hook} took longer than {self.bound:g} s"

    __repr__ = __str__


class Watch:
    """A greenlet that waits until ``is_done()``, asked in each turn of the loop in which something has changed."""

    def __init__(self, is_done: Callable[[], bool]) -> None:
        self.is_done = is_done
        self.is_late = False
        self.greenlet: Any = None
        self.waking: Any = None

    @property
    def is_settled(self) -> bool:
        return self.is_late or self.is_done()


class Feed:
    """A consumer of events with a greenlet of its own, which lives while there are any. The oldest are dropped."""

    def __init__(self, consume: Callable[[events.Event], object], name: str, pool: str) -> None:
        self._consume = consume
        self._name = name
        self._pool = pool
        self._events: deque[events.Event] = deque()
        self._dropped = 0
        self._is_running = False
        self._stamp = stamp[0]

    def put(self, event: events.Event) -> None:
        if len(self._events) >= EVENTS_KEPT:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        if not self._is_running:
            self._start()

    def _start(self) -> None:
        self._is_running = True
        greenlet = Worker(self._run)
        greenlet.rawlink(self._ended)
        greenlet.start()

    def _ended(self, greenlet: Any) -> None:
        """It is done, or somebody killed it."""
        self._is_running = False
        if self._events and stamp[0] == self._stamp:
            self._start()

    def _run(self) -> None:
        while self._events and stamp[0] == self._stamp:  # what is told may fork
            event = self._next()
            try:
                self._consume(event)
            except BaseException as error:  # whatever it is, the next event is told all the same
                log.exception("%s: %s raised for %r", self._pool, self._name, event, extra={"pool": self._pool})
                pass_on_system_error(get_hub(), error)

    def _next(self) -> events.Event:
        if not self._dropped:
            return self._events.popleft()
        dropped, self._dropped = self._dropped, 0
        log.warning(
            "%s: %s is too slow, %d events dropped", self._pool, self._name, dropped, extra={"pool": self._pool}
        )
        return events.EventsDropped(self._pool, dropped)


class Engine:
    """Does what the pure state says is to be done; see the module."""

    def __init__(
        self,
        hooks: Any,
        queue: Queue,
        *,
        name: str,
        open_timeout: float,
        keepalive_timeout: float,
        on_event: Callable[[events.Event], object] | None,
        default_fileno: Callable[..., object],
    ) -> None:
        load()
        self.queue = queue
        self.hub = get_hub()
        self.thread = get_ident()
        self.stamp = _fork.current()  # of the process
        self.hooks = weakref.ref(hooks)  # the user's pool
        self.workers: set[Worker] = set()
        self._is_abandoned = False
        self._default_fileno = default_fileno  # asks the object, and that can be asked again at any time
        self._name = name
        self._open_timeout = open_timeout
        self._keepalive_timeout = keepalive_timeout
        self._feeds = [Feed(LogWriter(), "the log", name)]
        if on_event is not None:
            self._feeds.append(Feed(on_event, "on_event", name))
        self._watches: list[Watch] = []
        self._watching: Any = None  # the callback that sees to them
        self._is_acting = False
        self._heap: list[tuple[float, int, Timed]] = []
        self._order = count()
        self._timer: Any = None
        self._timer_due = inf
        self._deeds: dict[str, Callable[[Any], None]] = {
            OPEN: self._start_opening,
            CHECK: self._start_checking,
            CLOSE: partial(self._start_closing, "_close_connection"),
            ABORT: partial(self._start_closing, "_abort_connection"),
            CANCEL: self._cancel,
            HELD: self._report,
            NESTED: self._report_nested,
            WAKE: self.wake_soon,
            ALARM: self._set_alarm,
        }
        _fork.enrol(self)

    @property
    def is_inherited(self) -> bool:
        """Whether this is the child of the process it belongs to."""
        return stamp[0] != self.stamp

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to be done any more: in another process, and when the user's pool is forgotten."""
        return self._is_abandoned or stamp[0] != self.stamp

    def property(self) -> Any:
        """Return what a child must not touch, nor let go of."""
        return self.queue, self.workers

    def abandon(self) -> None:
        """The user's pool is forgotten. Nobody can borrow or return any more, so what is open goes with it."""
        self._is_abandoned = True
        connections = [slot.connection for slot in self.queue.open.values()]
        for slot in self.queue.open.values():
            slot.connection = None
        self.queue.open.clear()
        if get_ident() == self.thread:
            self.stop_alarms()
        else:  # the collector runs wherever garbage is made; sockets are closed where they belong
            self.hub.loop.run_callback_threadsafe(self._let_go, connections)

    def _let_go(self, connections: list[Any]) -> None:
        if self.is_inherited:
            _fork.keep(list(connections))
        connections.clear()

    # -- acting --------------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Do what the transitions just made have left to do. Never switches."""
        queue = self.queue
        if queue.busy or self._is_acting or self.is_over or sys.is_finalizing():
            return  # the collector ended a lease in the middle of it, who began will see to the end; or nobody will
        self._is_acting = True
        try:
            while queue.todo or queue.news:
                while queue.todo:
                    deed, subject = queue.todo.popleft()
                    self._deeds[deed](subject)
                self._tell()
        finally:
            self._is_acting = False
        if self._watches and (self._watching is None or not self._watching.pending):
            self._watching = self.hub.loop.run_callback(self._see_watches)

    def _see_watches(self) -> None:
        """See who has what he waits for: once in a turn of the loop, as that may be a question of all endpoints."""
        if self.is_over:
            return
        for watch in self._watches:
            if watch.is_settled:
                self.wake_soon(watch)

    def _tell(self) -> None:
        if self.queue.news:
            event = self.queue.news.popleft()
            if type(event) is events.HookFailed and event.hook == "choose":  # asked in the middle of a transition
                self.pass_on_system_error(event.error)
            for feed in self._feeds:
                feed.put(event)

    def refuse_thread(self) -> NoReturn:
        """Raise: greenlets, timers and sockets belong to a hub, and a hub to its native thread."""
        raise RuntimeError(f"{self._name} belongs to the native thread {self.thread}, this is {get_ident()}")

    def end_later(self, slot: Slot, error: BaseException | None) -> None:
        """Have a lease that came to its end in another native thread end in ours."""
        self.queue.late.append((slot, INTERRUPTED, error, monotonic()))
        self.hub.loop.run_callback_threadsafe(self._end_late, slot)

    def _end_late(self, slot: Slot) -> None:
        pool = self.hooks()  # held, see _ring
        if pool is None:
            return
        slot.owner = None
        slot.pool.plan(monotonic())  # any transition: leases that ended late are dealt with at its end
        self.act()

    def park(self, sleeper: Waiter | Watch, timeout: float | None) -> None:
        """Switch away until ``sleeper`` is settled, at most ``timeout`` seconds; then it ``is_late``."""
        me = getcurrent()
        if me is self.hub:
            raise RuntimeError(f"{self._name}: a callback of the hub cannot wait")
        sleeper.greenlet = me
        timer = None
        try:
            if timeout is not None:
                timer = self.hub.loop.timer(timeout)
                timer.start(self._expire, sleeper, update=True)
            while not sleeper.is_settled or self.is_inherited:  # the turn of the loop may be a child's
                self.hub.switch()
        finally:
            sleeper.greenlet = None
            if sleeper.waking is not None:
                sleeper.waking.stop()
            if timer is not None:
                timer.close()

    def _expire(self, sleeper: Waiter | Watch) -> None:
        if not sleeper.is_settled and not self.is_over and sleeper.greenlet is not None:
            sleeper.is_late = True
            if isinstance(sleeper, Waiter):
                self.queue.withdraw(sleeper)
            sleeper.greenlet.switch()

    def wake_soon(self, sleeper: Waiter | Watch) -> None:
        """Switch to who is parked, in the next turn of the loop, unless he has left by then."""
        greenlet = sleeper.greenlet
        if greenlet is not None and (sleeper.waking is None or not sleeper.waking.pending):
            sleeper.waking = self.hub.loop.run_callback(greenlet.switch)

    def wait_until(self, is_done: Callable[[], bool], timeout: float | None) -> bool:
        """Wait for a condition that only transitions change, at most ``timeout`` seconds; say whether it holds."""
        if is_done() or timeout == 0:
            return is_done()
        watch = Watch(is_done)
        self._watches.append(watch)
        try:
            self.park(watch, timeout)
        finally:
            self._watches.remove(watch)
        return is_done()

    # -- alarms --------------------------------------------------------------------------------------------------------

    def _set_alarm(self, item: Timed) -> None:
        heappush(self._heap, (item.alarm, next(self._order), item))
        self._wind()

    def _wind(self) -> None:
        """Set the timer for the earliest alarm."""
        if not self._heap or self._heap[0][0] >= self._timer_due:
            return
        if self._timer is not None:
            self._timer.close()
        self._timer_due = self._heap[0][0]
        self._timer = self.hub.loop.timer(max(0.0, self._timer_due - monotonic()))
        self._timer.start(_ring, weakref.ref(self), update=True)

    def stop_alarms(self) -> None:
        """The pool is closed: nothing becomes due any more, and nothing of ours keeps the loop alive."""
        self._heap.clear()
        self._timer_due = -inf  # the earliest there can be: no other is ever set
        if self._timer is not None:
            self._timer.close()

    def ring(self) -> None:
        """The timer has run out: start what is due."""
        self._timer_due = inf
        now = monotonic()
        if self.is_over:
            return
        try:
            while self._heap and self._heap[0][0] <= now:
                due, _, item = heappop(self._heap)
                if item.alarm == due:  # else it was moved forward, and stands in the heap again
                    item.alarm = inf
                    item.tick(now)
            self.act()
        finally:
            self._wind()

    # -- workers -------------------------------------------------------------------------------------------------------

    def spawn(self, job: Callable[[], None], abandoned: Callable[[BaseException], None]) -> Any:
        """Run ``job`` in a greenlet of ours; ``abandoned`` is called if somebody kills that before it starts."""
        started: list[bool] = []

        def run() -> None:
            started.append(True)
            if not self.is_over:
                job()

        def look(greenlet: Any) -> None:
            self.workers.discard(greenlet)
            pool = self.hooks()  # held, see _ring
            if not started and pool is not None:
                abandoned(GreenletExit())

        worker = Worker(run)
        self.workers.add(worker)
        worker.rawlink(look)
        worker.start()
        return worker

    def _conclude(self, slot: Slot, transition: Callable[..., None], *result: Any) -> None:
        """End a worker's job: nothing may interrupt between the hook's last act and this."""
        slot.worker = None
        if self.is_over:
            return
        transition(slot, *result, monotonic())
        self.act()

    def _start_opening(self, slot: Slot) -> None:
        failed = partial(self._conclude, slot, slot.pool.connect_failed)
        slot.worker = self.spawn(partial(self._open, slot, failed), failed)

    def _open(self, slot: Slot, failed: Callable[[BaseException], None]) -> None:
        arguments = () if slot.endpoint is None else (slot.endpoint,)
        hooks: Any = None
        hook: Any = None
        connection: Any = None
        try:
            hooks = self.hooks()
            hook = hooks._new_connection
            connection = self.bounded(self._open_timeout, "_new_connection", slot.endpoint, hook, *arguments)
            if connection is None or connection is False:  # ``bool()`` of some client objects raises
                raise ValueError(f"_new_connection returned {connection!r}")
            slot.peer = None if slot.endpoint is None else self._peer_of(connection, slot) or slot.endpoint.host
            self._watch(connection, slot, hooks)
            if id(connection) in self.queue.open:
                raise ValueError(f"_new_connection returned an object that is in the pool already: {show(connection)}")
        except BaseException as error:
            forget_locals(error)
            failed(error)
            self.pass_on_system_error(error)
        else:
            self._conclude(slot, slot.pool.opened, connection)
        finally:
            hooks = hook = connection = None  # the frames of an error lead here, too

    def _peer_of(self, connection: Any, slot: Slot) -> str | None:
        """Return the address a connection leads to, None if that cannot be told, or not soon."""
        try:
            return self.bounded(PEER_TIMEOUT, "getpeername", slot.endpoint, _peer_of, connection)
        except BaseException as error:  # a kill, too: the connection is there, and must be taken or closed
            self.pass_on_system_error(error)
            return None

    def _watch(self, connection: Any, slot: Slot, hooks: Any) -> None:
        """Have the connection looked at when it has been idle, if it has a descriptor."""
        hook = hooks._fileno
        try:
            descriptor = self.bounded(PEER_TIMEOUT, "_fileno", slot.endpoint, hook, connection)
        except BaseException as error:  # as above
            descriptor = None
            forget_locals(error)
            if type(error) not in (HookTimeout, GreenletExit):  # bounded() has told, or the pool is closed
                self.queue.news.append(events.HookFailed(self._name, slot.endpoint, "_fileno", error))
            self.pass_on_system_error(error)
        asks_object = getattr(hook, "__func__", None) is self._default_fileno
        slot.poller = make_poller(descriptor, asks_object=asks_object)

    def _start_checking(self, slot: Slot) -> None:
        failed = partial(self._conclude, slot, slot.pool.keepalive_failed)
        slot.worker = self.spawn(partial(self._check, slot, failed), failed)

    def _check(self, slot: Slot, failed: Callable[[BaseException], None]) -> None:
        hooks: Any = self.hooks()
        try:
            self.bounded(self._keepalive_timeout, "_keepalive", slot.endpoint, hooks._keepalive, slot.connection)
            if slot.poller is None or not slot.poller.asks_object:
                self._watch(slot.connection, slot, hooks)
        except BaseException as error:
            forget_locals(error)
            failed(error)
            self.pass_on_system_error(error)
        else:
            self._conclude(slot, slot.pool.kept_alive)
        finally:
            del hooks

    def _start_closing(self, hook: str, slot: Slot, error: BaseException | None = None) -> None:
        """Start to close; again, if somebody killed the greenlet before it had begun."""
        slot.worker = self.spawn(partial(self._close, hook, slot), partial(self._start_closing, hook, slot))

    def _close(self, hook: str, slot: Slot) -> None:
        hooks: Any = self.hooks()
        try:
            self.bounded(CLOSE_TIMEOUT, hook, slot.endpoint, getattr(hooks, hook), slot.connection)
        except BaseException as error:
            forget_locals(error)
            if type(error) is not HookTimeout:  # of which bounded() has told
                self.queue.news.append(events.HookFailed(self._name, slot.endpoint, hook, error))
            self.pass_on_system_error(error)
        self._conclude(slot, slot.pool.closed)
        del hooks

    def let_user_go(self, connection: Any) -> None:
        """Have who is using a connection that is to be closed stop waiting for it, before its descriptor is closed.

        libev ends the process if a descriptor is closed that it watches. gevent's sockets see to that themselves; a
        client library in C, such as libpq, that waits by its descriptor does not.
        """
        cut = self.queue.cut
        if id(connection) not in cut or isinstance(connection, socket) or not self._wake_user(connection):
            return
        with suppress(BaseException):  # whoever kills this greenlet, it is there to close
            for _ in range(PARTING_TURNS):  # of the loop: a process that is held up meanwhile has them, too
                if id(connection) not in cut:
                    break
                sleep(PARTING_TIME / PARTING_TURNS)

    def _wake_user(self, connection: Any) -> bool:
        """Do that, if the object says by which descriptor; not for long, as its user may hold a lock that it wants."""
        try:
            return self.bounded(PEER_TIMEOUT, "fileno", self.queue.cut[id(connection)].endpoint, wake_user, connection)
        except BaseException as error:  # whatever it is, the connection is to be closed
            self.pass_on_system_error(error)
            return False

    def _cancel(self, slot: Slot) -> None:
        """Make a connect that nobody wants any more end soon."""
        if slot.worker is not None:
            slot.worker.kill(block=False)

    def _report(self, slot: Slot) -> None:
        """Tell of a lease that is held for too long, with what its holder is doing right now."""
        seconds = monotonic() - slot.since
        self.queue.news.append(events.ConnectionHeld(self._name, slot.endpoint, seconds, stack_of(slot.owner)))

    def _report_nested(self, found: tuple[Any, int]) -> None:
        """Tell of a greenlet that waits while it holds so many."""
        greenlet, held = found
        self.queue.news.append(events.NestedGet(self._name, held, stack_of(greenlet)))

    def pass_on_system_error(self, error: BaseException) -> None:
        pass_on_system_error(self.hub, error)

    def bounded(self, seconds: float, name: str, endpoint: Any, hook: Callable[..., R], *args: Any) -> R:
        """Call ``hook``; after ``seconds``, and every second until it ends, :class:`HookTimeout` is thrown into it."""
        timer = self.hub.loop.timer(seconds, BOUND_REPEAT)
        timer.start(self._throw, timer, getcurrent(), HookTimeout(name, endpoint, seconds), update=True)
        try:
            return hook(*args)
        finally:
            timer.close()
            del hook, args  # the frames of an error lead here, and it may be kept

    def _throw(self, timer: Any, greenlet: Any, bound: HookTimeout) -> None:
        if self.is_inherited:
            timer.stop()
            return
        pool = self.hooks()  # held, see _ring
        if not bound.is_told and pool is not None:
            bound.is_told = True
            self.queue.news.append(events.HookFailed(self._name, bound.endpoint, bound.hook, bound))
            self.act()
        greenlet.throw(bound)


def pass_on_system_error(hub: Any, error: BaseException) -> None:
    """Let KeyboardInterrupt and SystemExit out of a hook end the program, as the hub does, and no loop of ours."""
    if issubclass(type(error), SYSTEM):  # isinstance() may ask the object for its class, and get any answer
        hub.loop.run_callback(hub.handle_error, None, type(error), error, error.__traceback__)


def stack_of(greenlet: Any) -> StackSummary:
    """Return where a greenlet that is switched away, or the current one, is; empty if it has ended."""
    frame = None if greenlet is None else sys._getframe() if greenlet is getcurrent() else greenlet.gr_frame
    # Lines of source are read where it is written down, not here.
    return StackSummary.extract(reversed(list(walk_stack(frame))) if frame else (), lookup_lines=False)


def _ring(engine: weakref.ref[Engine]) -> None:
    """The timer knows its engine by a weak reference only, so that a forgotten pool can go."""
    alive = engine()
    pool = None if alive is None else alive.hooks()  # held: it must not be collected in the middle of what follows
    if alive is not None and pool is not None:
        alive.ring()


def _peer_of(connection: Any) -> str | None:
    """Return the address that a connection, or its descriptor, leads to; None if it cannot tell.

    Methods are looked up on the class: for some client objects any attribute is a call to their server.
    """
    kind = type(connection)
    with suppress(Exception):  # a client object may do anything here, and most have no such method
        return str(kind.getpeername(connection)[0])
    with plain_twin(descriptor_of(connection)) as plain, suppress(OSError, IndexError):  # without such a peer
        return None if plain is None else str(plain.getpeername()[0])
    return None


def forget_locals(error: BaseException) -> None:
    """Drop what the frames of a failed hook hold, and our own frames: the error is kept as last_error, in logs and
    events, a half-open socket or a whole pool should not be.
    """
    traceback = _traceback_of(error)
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    BaseException.with_traceback(error, traceback)
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            chain += (_cause_of(link), _context_of(link), *_members_of(link))
            _clear_frames(_traceback_of(link))


# An exception of the user's may refuse any attribute, or answer with anything. These ask the object itself.
_traceback_of: Callable[[BaseException], TracebackType | None] = BaseException.__dict__["__traceback__"].__get__
_cause_of: Callable[[BaseException], BaseException | None] = BaseException.__dict__["__cause__"].__get__
_context_of: Callable[[BaseException], BaseException | None] = BaseException.__dict__["__context__"].__get__


def _members_of(error: BaseException) -> tuple[BaseException, ...]:
    if not issubclass(type(error), BaseExceptionGroup):
        return ()
    members: tuple[BaseException, ...] = BaseExceptionGroup.__dict__["exceptions"].__get__(error)
    return members


def _clear_frames(traceback: TracebackType | None) -> None:
    for frame, _ in walk_tb(traceback):
        if not frame.f_code.co_flags & RUNS_LATER:  # to clear these would end a generator of the user's
            with suppress(RuntimeError):  # it still runs
                frame.clear()
