"""What may happen to a pool, in any order, and a simple model of what that must lead to.

The rules know a pool by a ``Driver`` only: one drives the pure state in virtual time, another a whole pool with its
greenlets and a scripted server. Both must do as the model says. Connections are told apart by identity.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from geventconnpool._queue import ERROR, INTERRUPTED, KEEPALIVE, KEPT, NOT_REUSABLE, RESET, STALE, USER

SERVED, REFUSED, PUT_BACK = "served", "refused", "put back"  # what may become of one who waits

DEFINITE = (ERROR, INTERRUPTED, STALE, KEEPALIVE, USER, RESET, NOT_REUSABLE)  # causes that the model can foresee


@dataclass(frozen=True)
class Options:
    """What a pool is made with."""

    size: int
    min_size: int
    max_connecting: int = 4
    keepalive: float = 0.0
    max_idle: float = inf
    max_lifetime: float = inf
    lifo: bool | None = None
    fail_after: float = inf
    hold_warning: float = inf
    seed: int = 0


@dataclass(frozen=True)
class Gauges:
    """How many there are of what; ``closing`` of them count as slots, too."""

    idle: int
    in_use: int
    checking: int
    connecting: int
    closing: int
    waiting: int
    is_down: bool

    @property
    def open(self) -> int:
        return self.idle + self.in_use + self.checking

    @property
    def slots(self) -> int:
        return self.open + self.connecting + self.closing


class Driver(Protocol):
    """A pool with its borrowers, its server, and the time."""

    now: float
    connecting: list[Any]  # attempts under way, as the server sees them
    checking: list[Any]  # connections under keepalive
    closing: list[Any]  # connections that are being closed
    settled: list[tuple[Any, str, Any]]  # who waits, was served, refused or put back, and the connection; in this order
    told: list[tuple[float, Any]]  # leases reported as held for too long, when and of which connection

    def borrow(self) -> Any:
        """Return a connection if one can be had at once, else None."""

    def ask(self) -> Any:
        """Wait for a connection: return who does."""

    def give_up(self, waiter: Any) -> None: ...
    def has_run(self, waiter: Any) -> bool:
        """Say whether one that was handed a connection has it, and is past being interrupted."""

    def interrupt(self, waiter: Any, connection: Any) -> None:
        """Interrupt one that was handed a connection, before he ran."""

    def possible(self, connection: Any, verdict: str | None, discard: bool, collect: bool) -> tuple[Any, bool, bool]:
        """Return the end nearest to that one which the lease of this connection can have."""

    def give_back(self, connection: Any, verdict: str | None) -> None: ...
    def collect(self, connection: Any, verdict: str | None) -> None:
        """Have the collector end the lease in the middle of whatever is done next."""

    def flush(self) -> None:
        """Nothing was done next in the middle of which it could have done so: now."""

    def discard(self, connection: Any) -> None: ...
    def accept(self, attempt: Any) -> Any:
        """The server accepts: return the connection."""

    def refuse(self, attempt: Any) -> None: ...
    def is_cancelled(self, attempt: Any) -> bool: ...
    def answer(self, connection: Any, *, good: bool) -> None: ...
    def hang_up(self, connection: Any) -> None:
        """The server closes a connection."""

    def end_close(self, connection: Any) -> None: ...
    def next_due(self) -> float: ...
    def run_to(self, now: float) -> None: ...
    def reset(self) -> None: ...
    def resize(self, size: int, min_size: int) -> None: ...
    def warm(self, count: int) -> None: ...
    def cool(self, count: int) -> None: ...
    def warmed(self) -> list[int]:
        """Return for how many open connections nobody waits any more, since they are there."""

    def shut(self) -> None: ...
    def cut(self) -> None: ...
    def gauges(self) -> Gauges: ...
    def counters(self) -> dict[str, int]: ...
    def discarded(self) -> dict[str, int]: ...


@dataclass(eq=False)
class Known:
    """What the model knows of an open connection."""

    opened: float
    used: float  # when it was opened, or came back from its last user
    kept: float  # when it was opened, or last kept alive
    cause: str | None = None  # why it will be closed, where that is certain
    is_gone: bool = False  # its peer has closed it
    must_go: bool = False  # it will be closed, for this cause or another
    may_go: bool = False  # it may be closed for a reason of which the model does not know

    @property
    def alive(self) -> float:
        return max(self.used, self.kept)

    @property
    def is_clean(self) -> bool:
        return self.cause is None and not self.must_go


@st.composite
def options(draw):
    size = draw(st.integers(1, 6))
    return Options(
        size=size,
        min_size=draw(st.sampled_from(sorted({0, 1, size // 2, size}))),
        max_connecting=draw(st.integers(1, 4)),
        keepalive=draw(st.sampled_from([0.0, 3.0])),
        max_idle=draw(st.sampled_from([inf, 5.0, 20.0])),
        max_lifetime=draw(st.sampled_from([inf, 10.0, 50.0])),
        lifo=draw(st.sampled_from([None, True, False])),
        fail_after=draw(st.sampled_from([inf, 4.0, 30.0])),
        hold_warning=draw(st.sampled_from([inf, 6.0])),
        seed=draw(st.integers(0, 3)),
    )


number = st.integers(0, 99)
verdict = st.sampled_from([None, None, None, None, KEPT, ERROR, INTERRUPTED, NOT_REUSABLE, USER])


def pick(items, number):
    return items[number % len(items)]


class Life(RuleBasedStateMachine):
    """One pool through everything that can happen to it, in any order."""

    def make(self, options: Options) -> Driver:
        raise NotImplementedError

    @initialize(options=options())
    def begin(self, options):
        self.options = options
        self.size, self.min_size = options.size, options.min_size
        self.known = {}  # open connections, until they begin to close
        self.waiting = []  # oldest first
        self.came = []  # all who ever waited, in the order in which they came
        self.held = {}  # borrowed connections, and since when
        self.collected = []  # those whose lease the collector will end
        self.cut = []  # closed under their borrowers
        self.handed = {}  # who was handed what when, and may be interrupted before he runs
        self.leases = []  # when each began, when it ended, of which connection
        self.warming = []
        self.in_passing = 0  # how many asked who would not wait
        self.spoilt = set()  # attempts from before a reset
        self.attempts = set()
        self.closing = set()
        self.counts = Counter()
        self.causes = Counter()
        self.unforeseen = 0  # closed for age, or for want of use, or of room
        self.failures = 0
        self.trouble_at = -inf
        self.bare_since = inf
        self.is_down = False
        self.is_shut = False
        self.is_running = True
        self.slots_allowed = options.size
        self.excess = 0
        self.surplus_since = inf
        self.driver = self.make(options)
        self.observe()

    # -- what the model makes of it ------------------------------------------------------------------------------------

    @property
    def now(self):
        return self.driver.now

    @property
    def idle(self):
        busy = [*self.held, *self.collected, *self.driver.checking]
        return [c for c in self.known if c not in busy]

    @property
    def is_lifo(self):
        return self.min_size < self.size if self.options.lifo is None else self.options.lifo

    def observe(self, *, resized: bool = False) -> None:
        """After each move: look at what the pool has done."""
        self.driver.flush()
        for count in self.driver.warmed():
            self.warming.remove(count)
        late = len(self.collected)
        for connection in self.collected:
            self.came_back(connection)
        self.collected.clear()
        self.see_who_was_served()
        self.see_what_closes(late, resized=resized)
        self.see_what_connects(late)
        self.see_whether_it_is_down()
        self.see_sizes()

    def came_back(self, connection) -> None:
        if connection in self.known:
            self.known[connection].used = self.now
            if self.known[connection].cause is ERROR:
                self.trouble_at = self.now

    def lend(self, connection) -> None:
        assert connection not in self.held, "lent twice"
        assert connection in self.known, "closed, and lent"
        assert self.known[connection].is_clean, "not clean, and lent"
        self.held[connection] = self.now
        self.leases.append([self.now, inf, connection])

    def unlend(self, connection) -> None:
        del self.held[connection]
        self.handed.pop(connection, None)
        for lease in self.leases:
            if lease[2] is connection and lease[1] == inf:
                lease[1] = self.now

    def see_who_was_served(self) -> None:
        settled, self.driver.settled = self.driver.settled, []
        for waiter, what, connection in settled:
            if what is PUT_BACK:
                self.put_back(waiter, connection)
                continue
            assert waiter is self.waiting.pop(0), "first come, first served"
            if what is SERVED:
                if connection not in self.known:
                    raise AssertionError("handed a connection that is not open")
                self.came_back(connection)
                self.lend(connection)
                self.handed[connection] = (waiter, self.now)
            else:
                assert self.is_shut or self.now >= self.bare_since + self.options.fail_after

    def put_back(self, waiter, connection) -> None:
        """He was handed what was no good any more when he ran: he waits again, where he did."""
        assert not self.known[connection].is_clean or self.is_shut, "nothing was wrong with it"
        self.unlend(connection)
        self.waiting.append(waiter)
        self.waiting.sort(key=self.came.index)

    def see_what_closes(self, late: int, *, resized: bool) -> None:
        closing = set(self.driver.closing)
        new = closing - self.closing
        tried = [a for a in self.driver.connecting if a in self.attempts and not self.driver.is_cancelled(a)]
        opened = len(self.known) - sum(c in self.known and self.known[c].cause is None for c in new)
        for connection in new:
            assert connection not in self.held or connection in self.cut, "closed under its user"
            known = self.known.pop(connection)
            if connection in self.cut:
                continue
            if known.cause is not None:
                self.causes[known.cause] += 1
            if known.cause in DEFINITE:
                continue
            self.unforeseen += 1
            if self.is_shut or resized or self.excess > 0 or not self.is_running or known.may_go or not known.is_clean:
                continue
            if self.now >= known.used + self.options.max_idle and opened >= self.min_size:
                continue
            assert self.now >= known.opened + 0.75 * self.options.max_lifetime - 1e-9, "closed without a reason"
            assert not (self.failures and tried), "closed for its age while no other can be had"
            assert late or self.min_size - len(self.known) <= self.options.max_connecting, "too many at once"
        self.closing = closing

    def see_what_connects(self, late: int) -> None:
        attempts = set(self.driver.connecting)
        new = attempts - self.attempts
        self.attempts = attempts
        if not new or not self.is_running:
            return
        gauges = self.driver.gauges()
        assert not self.is_shut
        assert gauges.slots <= self.size
        assert gauges.connecting <= self.options.max_connecting
        assert not self.failures or gauges.connecting == 1, "one at a time while connects fail"
        least = self.min_size or self.is_down or self.would_be_down
        asked = self.deficit(gauges) + self.in_passing + late
        wanted = gauges.open + gauges.connecting <= least or gauges.connecting <= asked
        assert wanted or self.has_to_try(gauges), "a connect that nobody needs"

    def has_to_try(self, gauges):
        """Say whether one that is too old has to stay until it is known that another can be had."""
        ages = [self.now - self.known[c].opened for c in self.idle]
        is_old = max(ages, default=0.0) >= 0.75 * self.options.max_lifetime - 1e-9
        return self.failures and is_old and gauges.open <= self.min_size

    @property
    def would_be_down(self):
        return self.now >= self.bare_since + self.options.fail_after

    def deficit(self, gauges):
        return len(self.waiting) + max(0, max(self.warming, default=0) - gauges.open)

    def see_whether_it_is_down(self) -> None:
        if not all(map(self.is_probe, self.known)):
            self.bare_since, self.is_down = inf, False
        elif self.min_size or self.waiting or self.is_down or self.failures:
            self.bare_since = min(self.bare_since, self.now)
        elif self.would_be_down and self.driver.gauges().is_down:
            pass  # those who waited were refused
        else:
            self.bare_since = inf
        if self.would_be_down:
            self.is_down = True

    def see_sizes(self) -> None:
        gauges = self.driver.gauges()
        self.slots_allowed = max(self.size, min(self.slots_allowed, gauges.slots))
        fresh = sum(not self.driver.is_cancelled(attempt) for attempt in self.driver.connecting)
        self.excess = gauges.open + fresh - self.size
        if gauges.open <= self.min_size:
            self.surplus_since = inf
        else:
            self.surplus_since = min(self.surplus_since, self.now)

    def is_spared(self, what) -> bool:
        """Say whether an attempt, or a connection, has a purpose of its own: no reset concerns it."""
        return False

    def is_probe(self, connection) -> bool:
        """Say whether a connection is there to find something out, and of use to nobody until it has."""
        return False

    # -- what borrowers do ---------------------------------------------------------------------------------------------

    @rule()
    def borrow(self):
        idle = self.idle
        connection = self.driver.borrow()
        self.see_who_was_dead(idle)
        if connection is None:
            assert not idle
            self.in_passing = 1
        else:
            assert not self.waiting, "barged in"
            assert not (self.known[connection].is_gone and self.is_suspect(connection))
            self.check_order(connection, idle)
            self.lend(connection)
        self.observe()
        self.in_passing = 0

    def see_who_was_dead(self, idle) -> None:
        found = [c for c in idle if c in self.driver.closing]
        for dead in found:
            assert self.known[dead].is_gone, "closed though its peer was there"
            self.known[dead].cause = STALE
            self.trouble_at = self.now
            idle.remove(dead)
        if found:  # in the middle of that the collector has struck: there is more to choose from
            for connection in self.collected:
                self.came_back(connection)
            idle.extend(c for c in self.collected if c in self.known and c not in self.driver.closing)

    def is_suspect(self, connection):
        alive = self.known[connection].alive
        return self.now - alive >= 1.0 or alive < self.trouble_at

    def check_order(self, connection, idle) -> None:
        def warmth(c):
            known = self.known[c]
            return (known.kept <= known.used, known.alive) if self.is_lifo else (True, -known.alive)

        assert warmth(connection) == max(map(warmth, idle))

    @rule()
    @precondition(lambda self: not self.is_shut)
    def ask(self):
        idle = self.idle
        waiter = self.driver.ask()
        self.see_who_was_dead(idle)
        if waiter is None:
            assert self.is_down
            return
        assert not self.is_down
        self.waiting.append(waiter)
        self.came.append(waiter)
        at_once = [c for w, _, c in self.driver.settled if w is waiter]
        used = {c: self.known[c].used for c in at_once if c in idle}
        self.observe()
        for connection in at_once:
            self.known[connection].used = used.get(connection, self.now)  # it was idle, or has just come back
            self.handed.pop(connection, None)

    @rule(number=number)
    @precondition(lambda self: self.waiting)
    def give_up(self, number):
        waiter = pick(self.waiting, number)
        self.waiting.remove(waiter)
        self.driver.give_up(waiter)
        self.observe()

    def fresh(self):
        """Return what was handed to waiters who have not run yet, and may be interrupted still."""
        handed = [c for c, (who, at) in self.handed.items() if at == self.now and not self.driver.has_run(who)]
        return [c for c in handed if c in self.held and c not in self.cut]

    @rule(number=number)
    @precondition(lambda self: self.fresh())
    def interrupt(self, number):
        connection = pick(self.fresh(), number)
        waiter, _ = self.handed[connection]
        self.unlend(connection)
        self.driver.interrupt(waiter, connection)
        self.observe()

    @rule(number=number, verdict=verdict, discard=st.booleans(), by_the_collector=st.booleans())
    @precondition(lambda self: self.held)
    def give_back(self, number, verdict, discard, by_the_collector):
        connection = pick(list(self.held), number)
        verdict, discard, by_the_collector = self.driver.possible(connection, verdict, discard, by_the_collector)
        self.unlend(connection)
        if connection in self.cut:
            self.cut.remove(connection)
        else:
            self.foresee(connection, verdict, discard=discard)
        if discard:
            self.driver.discard(connection)
        if by_the_collector:
            self.driver.collect(connection, verdict)
            self.collected.append(connection)
            return
        self.driver.give_back(connection, verdict)
        self.came_back(connection)
        self.observe()

    def foresee(self, connection, verdict, *, discard) -> None:
        known = self.known[connection]
        if verdict not in (None, KEPT):
            known.cause = verdict
        elif discard:
            known.cause = USER

    @rule(size=st.integers(1, 6), least=st.integers(0, 6))
    def resize(self, size, least):
        if self.is_shut:
            return
        self.observe()
        self.size, self.min_size = size, min(least, size)
        self.surplus_since = self.now
        self.driver.resize(size, self.min_size)
        self.observe(resized=True)

    @rule()
    def reset(self):
        self.observe()
        if not self.is_shut:
            for connection, known in self.known.items():
                if not self.is_spared(connection):
                    known.cause = known.cause or RESET
            self.spoilt.update(attempt for attempt in self.driver.connecting if not self.is_spared(attempt))
        self.driver.reset()
        self.observe()
        gauges = self.driver.gauges()
        if self.is_running and self.failures and gauges.slots < self.size and self.deficit(gauges):
            assert gauges.connecting, "it does not wait any more"

    @rule(count=st.integers(1, 6))
    @precondition(lambda self: len(self.warming) < 2)
    def warm(self, count):
        count = min(count, self.size)
        self.warming.append(count)
        self.driver.warm(count)
        self.observe()

    @rule(number=number)
    @precondition(lambda self: self.warming)
    def cool(self, number):
        count = pick(self.warming, number)
        self.warming.remove(count)
        self.driver.cool(count)
        self.observe()

    @rule()
    @precondition(lambda self: self.counts["opened"] > 8)
    def shut(self):
        self.observe()
        self.is_shut = True
        self.is_running = False
        self.driver.shut()
        self.observe()
        assert self.waiting == []

    @rule()
    @precondition(lambda self: self.is_shut)
    def cut_off(self):
        self.observe()
        self.cut.extend(c for c in self.held if c not in self.cut)
        self.end_leases()
        self.driver.cut()
        self.observe()

    def end_leases(self) -> None:
        """From now on, nobody is told for how long they last."""
        for lease in self.leases:
            lease[1] = min(lease[1], self.now)

    # -- what the server does ------------------------------------------------------------------------------------------

    @rule(number=number, good=st.sampled_from([True, True, False]))
    @precondition(lambda self: self.driver.connecting)
    def connect(self, number, good):
        attempt = pick(self.driver.connecting, number)
        if good:
            self.accept(attempt)
        else:
            self.refuse(attempt)
        self.observe()

    def accept(self, attempt) -> None:
        is_cancelled = self.driver.is_cancelled(attempt)
        self.failures = 0
        self.counts["opened"] += 1
        connection = self.driver.accept(attempt)
        known = Known(self.now, self.now, self.now, may_go=is_cancelled)
        if attempt in self.spoilt:
            known.cause = RESET
        self.known[connection] = known

    def refuse(self, attempt) -> None:
        if not self.driver.is_cancelled(attempt):
            self.failures += 1
            self.counts["open_errors"] += 1
            self.trouble_at = self.now
        self.driver.refuse(attempt)

    @rule()
    def accept_all(self):
        while self.driver.connecting:
            self.accept(self.driver.connecting[0])
            self.observe()

    @rule(number=number, good=st.booleans())
    @precondition(lambda self: self.driver.checking)
    def keep_alive(self, number, good):
        connection = pick(self.driver.checking, number)
        known = self.known[connection]
        if good:
            known.kept = self.now
        else:
            known.cause = KEEPALIVE
            self.trouble_at = self.now
        self.driver.answer(connection, good=good)
        self.observe()

    @rule(number=number)
    @precondition(lambda self: self.known)
    def hang_up(self, number):
        connection = pick(list(self.known), number)
        self.known[connection].is_gone = True
        self.driver.hang_up(connection)

    @rule()
    @precondition(lambda self: self.known)
    def restart(self):
        for connection, known in self.known.items():
            known.is_gone = True
            self.driver.hang_up(connection)

    @rule(number=number)
    @precondition(lambda self: self.driver.closing)
    def end_close(self, number):
        self.counts["closed"] += 1
        self.driver.end_close(pick(self.driver.closing, number))
        self.observe()

    # -- time ----------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3, 1.0, 3.0, 7.0, 40.0]))
    def pass_time(self, seconds):
        self.run_to(self.now + seconds)

    def run_to(self, until):
        self.observe()
        while (due := self.driver.next_due()) < until:
            self.driver.run_to(due)
            self.observe()
        self.driver.run_to(until)
        self.observe()

    @rule(seconds=st.sampled_from([1.0, 4.0, 12.0, 60.0]))
    def pass_good_time(self, seconds):
        until = self.now + seconds
        self.let_all_be_well()
        while (due := self.driver.next_due()) < until:
            self.run_to(due)
            self.let_all_be_well()
        self.run_to(until)

    @rule()
    def let_all_be_well(self):
        for _ in range(100):
            self.observe()
            if self.driver.closing:
                self.end_close(0)
            elif self.driver.checking:
                self.keep_alive(0, True)
            elif self.driver.connecting:
                self.connect(0, not self.driver.is_cancelled(self.driver.connecting[0]))
            else:
                return
        raise AssertionError("it never rests")

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def gauges_are_as_the_model_says(self):
        gauges = self.driver.gauges()
        in_use = [c for c in (*self.held, *self.collected) if c in self.known]
        assert gauges.in_use == len(in_use)
        assert gauges.open == len(self.known)
        assert gauges.checking == len(self.driver.checking)
        assert gauges.connecting == len(self.driver.connecting)
        assert gauges.closing == len(self.driver.closing)
        assert gauges.waiting == len(self.waiting)

    @invariant()
    def there_are_no_more_slots_than_allowed(self):
        gauges = self.driver.gauges()
        assert gauges.slots <= self.slots_allowed
        if self.excess > 0 and self.is_running:
            assert gauges.idle == 0, "what rests goes first"
            assert gauges.in_use + gauges.checking == self.size + self.excess, "no connect, either"

    @invariant()
    def nobody_waits_beside_an_idle_connection(self):
        assert not (self.waiting and self.idle)

    @invariant()
    def what_is_idle_is_clean(self):
        assert all(self.known[c].is_clean for c in self.idle)

    @invariant()
    def free_capacity_is_used_when_it_is_wanted(self):
        gauges = self.driver.gauges()
        if not self.is_running or self.failures or gauges.slots >= self.size:
            return
        if gauges.open + gauges.connecting < self.min_size or self.deficit(gauges) > gauges.connecting:
            assert gauges.connecting >= self.options.max_connecting

    @invariant()
    def while_connects_fail_one_is_tried_or_will_be(self):
        gauges = self.driver.gauges()
        if not self.is_running or not self.failures or gauges.slots >= self.size or gauges.connecting:
            return
        if gauges.open < (self.min_size or self.is_down) or self.deficit(gauges):
            assert self.driver.next_due() <= self.now + (5.0 if self.waiting else 30.0)

    @invariant()
    def it_is_down_when_it_has_been_bare_for_too_long(self):
        if not self.is_shut and self.is_running and not self.collected:
            assert self.driver.gauges().is_down == self.is_down
            assert not (self.is_down and self.waiting)

    @invariant()
    def every_long_lease_is_told_of_once_and_in_time(self):
        seconds = self.options.hold_warning
        past = [lease for lease in self.leases if lease[0] + seconds < self.now]
        told = [entry for entry in self.driver.told if entry[0] < self.now]
        must = [(since + seconds, c) for since, until, c in past if until > since + seconds]
        may = [(since + seconds, c) for since, until, c in past if until >= since + seconds]
        assert len(told) == len({*told})
        assert {*must} <= {*told} <= {*may}

    @invariant()
    def what_is_too_old_goes_when_others_may_take_its_place(self):
        if not self.is_running or self.collected:
            return
        gauges = self.driver.gauges()
        if self.failures or gauges.closing + gauges.connecting >= self.options.max_connecting:
            return
        assert all(self.now <= self.known[c].opened + self.options.max_lifetime for c in self.idle)

    @invariant()
    def what_is_not_used_goes(self):
        if self.min_size == self.size or not self.is_running or self.collected:
            return
        rested = max(0.0, self.now - self.options.max_idle)
        gauges = self.driver.gauges()
        is_busy = gauges.closing + gauges.connecting >= self.options.max_connecting  # it looks again when one ends
        if self.surplus_since < rested and not is_busy:
            assert all(self.known[c].used >= rested for c in self.idle)

    @invariant()
    def what_is_idle_is_kept_alive_in_time(self):
        options = self.options
        if options.keepalive and self.is_running and len(self.driver.checking) < max(1, self.size // 4):
            assert all(self.now <= self.known[c].alive + options.keepalive for c in self.idle)

    @invariant()
    def no_keepalive_is_early(self):
        for connection in self.driver.checking:
            due = self.known[connection].alive + 0.9 * self.options.keepalive - 1e-9
            assert self.now >= due or self.is_spared(connection)

    @invariant()
    def counters_agree(self):
        counts = self.driver.counters()
        assert counts == {key: self.counts[key] for key in counts}
        assert counts["opened"] - counts["closed"] == len(self.known) + len(self.driver.closing)

    @invariant()
    def causes_agree(self):
        discarded = self.driver.discarded()
        assert {cause: discarded[cause] for cause in DEFINITE} == {cause: self.causes[cause] for cause in DEFINITE}
        assert discarded["lifetime"] + discarded["idle"] <= self.unforeseen
        assert not discarded["lifetime"] or self.options.max_lifetime < inf
        assert not discarded["idle"] or self.options.max_idle < inf

    # -- the end -------------------------------------------------------------------------------------------------------

    def teardown(self):
        if not hasattr(self, "driver"):
            return
        self.shut()
        for connection in list(self.held):
            self.give_back(list(self.held).index(connection), None, False, False)
        while self.driver.connecting or self.driver.checking or self.driver.closing:
            self.let_all_be_well()

        assert self.known == {}
        assert self.counts["opened"] == self.counts["closed"]
