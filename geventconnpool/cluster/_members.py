"""The endpoints of a cluster and how they fare. Pure: told what happened and what time it is.

A member is one endpoint with its pool, from the answer that first names it until its last connection is closed::

                       it is an outlier, within the limit
             +--------+ -----------------------------------> +---------+ --+ probe failed:
    added -->| ACTIVE |                                      | EJECTED |   | again in 1, 2, 4, 5, 5 ... s
             +--------+ <----------------------------------- +---------+ <-+
               |    ^          a probe was passed              |    ^
       removed |    | back in DNS                      removed |    | back in DNS
               v    |                                          v    |
             +--------------------------------------------------------+  last connection closed, or drain_timeout
             |                       DRAINING                         | ------------------------------------------>
             (gone)
             +--------------------------------------------------------+

All the moves there are (``tests/moves.py`` records them)::

    (gone)   -> ACTIVE
    ACTIVE   -> EJECTED, DRAINING
    EJECTED  -> ACTIVE, DRAINING
    DRAINING -> ACTIVE, EJECTED, (gone)

"Removed" is one that discovery no longer names, or that a choice among very many (``_subset``) leaves out again.
An ejected or draining member's pool is suspended. A member is available if it is ACTIVE; it is eligible if it is
available and has the lowest SRV priority that has an available member (RFC 2782). Only this module changes a member.
"""

from __future__ import annotations

import sys
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, cycle
from math import ceil, inf
from random import Random
from typing import Final, Literal, TypeVar

from geventconnpool import _queue, events
from geventconnpool._backoff import exponential, spread
from geventconnpool._check import show, without_traceback
from geventconnpool._queue import ERROR, IN_USE, INTERRUPTED, KEPT, Queue, Slot, Waiter, transition
from geventconnpool._slots import Slots
from geventconnpool.cluster._balancers import Balancer, PeakEWMA, effective_weight
from geventconnpool.cluster._endpoints import Endpoint, is_changed
from geventconnpool.cluster._load import KEY, LEAST_UNIT, Load, Peers, least
from geventconnpool.cluster._outliers import OutlierDetection, Tally, Window
from geventconnpool.errors import PoolClosed, PoolUnavailable

ACTIVE: Final = "active"
EJECTED: Final = "ejected"
DRAINING: Final = "draining"
CONNECTS: Final = "connects"
KEEPALIVES: Final = "keepalives"
CALLS: Final = "calls"

Change = Callable[[float], None]

R = TypeVar("R")

LOOKS_AT_MOST = 200_000  # of another thread: a fraction of a second, in which the hub gets on
SETS_REMEMBERED = 100  # of avoided endpoints
GOOD_CALLS_IN_A_ROW = 20  # after which a failure is no relapse
LONGEST_PAUSE = 60.0  # seconds a failure costs at most, where nothing is ejected
LEAST_SHARE = 0.1  # with which slow start begins
LOOKS_PER_RAMP = 30
DRAWS = 4  # of a large cluster
COMPARED = 100  # endpoints, with which one that fails now and then is compared
MIXED = 32  # of those that change places with others at each survey
FINEST_GLANCE, GLANCES = 0.01, 64  # seconds at least from one look over some of them to the next; how many at most
LONGEST_STRETCH = 2000.0  # rounds after which being ahead is counted from a later start
SURVEY = 1.0  # seconds after which endpoints are compared with each other again


class ClusterQueue(Queue):
    """The one queue of a cluster: waiters belong to no endpoint, but some may not use every endpoint."""

    members: Members

    def __init__(self, fail_after: float = inf, *, keeps_some: bool = True) -> None:
        super().__init__(fail_after, keeps_some=keeps_some)
        self.avoiding: Counter[frozenset[Endpoint]] = Counter()  # those who want no pool in particular

    def join(self, waiter: Waiter, *, again: bool = False) -> None:
        if waiter.only is None:
            self.avoiding[waiter.avoid] += 1
        super().join(waiter, again=again)

    def withdraw(self, waiter: Waiter) -> None:
        if waiter in self.waiting and waiter.only is None:
            self.avoiding[waiter.avoid] -= 1
            if not self.avoiding[waiter.avoid]:
                del self.avoiding[waiter.avoid]
        super().withdraw(waiter)

    def may_use(self, waiter: Waiter, pool: Slots) -> bool:
        """Say whether that endpoint is the one the waiter wants, or eligible for it."""
        if waiter.only is not None:
            return waiter.only is pool
        return self.members.is_eligible(pool.observer, waiter.avoid)

    @property
    def was_tried_in_vain(self) -> bool:
        """Whether who comes next will find only what has failed: an ejected endpoint says nothing of the others."""
        return bool(self.failing) and all(member.pool in self.failing for member in self.members.eligible())

    def planned(self, now: float) -> None:
        super().planned(now)
        self.members.grow(now)


class Member:
    """One endpoint of the cluster. Reports of its pool come in here; what they mean is decided by ``Members``."""

    def __init__(self, members: Members, endpoint: Endpoint, pool: Slots, now: float) -> None:
        self._members = members
        self.endpoint = endpoint
        self.pool = pool
        self.weight = members.weight_of(endpoint)
        self.state: Literal["active", "ejected", "draining"] = ACTIVE
        self.since = now  # when it became that
        self.was_ejected = False  # what a draining member goes back to
        self.until = inf  # next probe if ejected, forced close if draining
        self.failures: dict[events.Kind, int] = {CONNECTS: 0, KEEPALIVES: 0, CALLS: 0}
        self._tally = Tally()
        self._counted = 0  # good calls that are in it
        self._proven_at = GOOD_CALLS_IN_A_ROW  # number of good calls from which on a failure is no relapse
        self.last_error: BaseException | None = None
        self.ejections = 0
        self.ejection: events.EndpointEjected | None = None  # the last
        self.relapses = 0
        self.is_spared = False  # it would be ejected, were it not for the limit; until its next good call
        self.is_on_trial = False  # readmitted, and not yet proven by good calls in a row: a failure is a relapse
        self.failed_probes = 0
        self.is_probing = False
        self.is_cut = False  # calls were in flight when its time to drain was over
        self.load = Load(members.peers_of(endpoint), now, self, pool)
        self.slow_until = -inf  # its weight grows until then

    @property
    def in_flight(self) -> int:
        return self.pool.in_use

    @property
    def latency(self) -> float | None:
        return self.load.latency

    @property
    def full_weight(self) -> float:
        """Its weight without slow start."""
        return self._members.weight_of(self.endpoint)

    @property
    def is_unfit(self) -> bool:
        """Whether it is ejected, or should be; also while it drains, as it may be taken back as it is."""
        return self.is_spared or self.state is EJECTED or (self.state is DRAINING and self.was_ejected)

    @property
    def tally(self) -> Tally:
        """How its calls ended lately. A good call is counted by the load, and taken over from there when one looks."""
        self.load.take_over()
        tally, good = self._tally, self.load.good
        tally.good += good - self._counted
        self._counted = good
        return tally

    # What it would cost to use it.

    def weigh(self, now: float) -> None:
        load, pool = self.load, self.pool
        load.in_flight, load.coming = pool.in_use, pool.connecting + pool.waiting
        load.weigh(load.in_flight + load.coming, now)

    def look(self, now: float) -> None:
        """Weigh what changes by itself: the age of calls, slow start, and whether it is to be tried."""
        self.settle()
        load, pool = self.load, self.pool
        self.weight = self.full_weight * self._share(now)
        load.measure(max(LEAST_UNIT, self.weight / load.peers.weight))
        # Who has just begun is quick because it has little to do: that is no reason to give it more than its share.
        load.quickest = load.peers.typical if self.is_slow(now) else 0.0
        load.oldest = self._oldest_call() if pool.in_use else inf
        self.weigh(now)
        load.later = load.next_trial if load.next_trial > now else inf
        if self.is_slow(now):
            load.later = min(load.later, now + self._members.slow_start / LOOKS_PER_RAMP)
        load.look_at = min(load.later, load.overdue_at(now))

    def open_one(self, now: float) -> bool:
        """Open a connection, as it was chosen to. False if there is no getting through."""
        if self.pool.open_one(now):
            return True
        self.load.not_called()
        self.weigh(now)
        return False

    def _oldest_call(self) -> float:
        """Return when the call in flight began that began first of those that were not overtaken by another."""
        heard_at = self.load.heard_at
        return min((s.since for s in self.pool.slots if s.state is IN_USE and s.since > heard_at), default=inf)

    def is_slow(self, now: float) -> bool:
        """Say whether it does not have its full weight yet."""
        return self.slow_until > now

    def start_slowly(self, now: float) -> None:
        self.load.renew(now)
        self.slow_until = now + self._members.slow_start

    def _share(self, now: float) -> float:
        """Return how much of its weight counts during slow start: from a tenth to all of it, linearly (as in Envoy)."""
        left = self.slow_until - now
        return 1.0 if left <= 0.0 else 1.0 - (1.0 - LEAST_SHARE) * left / self._members.slow_start

    # Reports, as ``_queue.Observer`` says.

    def connected(self, now: float) -> None:
        self.failures[CONNECTS] = 0
        self.load.not_called()
        self.changed(now)

    def connect_failed(self, error: BaseException, now: float) -> None:
        self._members.failed(self, CONNECTS, error, now)
        self.load.not_called()
        self.weigh(now)

    def kept_alive(self, began: float, now: float) -> None:
        self.failures[CONNECTS] = self.failures[KEEPALIVES] = 0
        self.load.kept_alive(began)
        self.weigh(now)

    def keepalive_failed(self, error: BaseException, now: float) -> None:
        self._members.failed(self, KEEPALIVES, error, now)

    def call_ended(self, verdict: str | None, error: BaseException | None, seconds: float, now: float) -> None:
        load, pool = self.load, self.pool
        in_flight = pool.in_use
        if not in_flight:
            load.oldest = inf
        self.settle()
        if verdict is ERROR:
            load.failed(now, self._members.longest_pause)
            self._members.failed(self, CALLS, error, now)
        else:
            if load.latency is None and not load.peers.typical:
                self._members.survey_soon()  # something is known that others may be measured by
            if verdict is INTERRUPTED:
                load.given_up(seconds, in_flight, now)
            elif verdict is KEPT:
                load.raised(seconds, in_flight, now)
            else:
                load.answered(seconds, in_flight, now)
        if verdict is None:
            self._note_good_call(now - seconds)
        self.weigh(now)

    def probed(self, error: BaseException | None, now: float) -> None:
        self._members.probed(self, error, now)

    def hung_up(self, now: float) -> None:
        self.load.missed(now)

    def changed(self, now: float) -> None:
        in_use = self.pool.in_use
        if not in_use:
            self.load.oldest = inf  # what was handed out and not taken, or was dead, is no call that hangs
        elif in_use == 1 and self.load.oldest == inf:
            self.load.begin(now)
        self.weigh(now)

    def emptied(self) -> None:
        self._members.emptied(self)

    def forget_failures(self) -> None:
        failures = self.failures
        failures[CONNECTS] = failures[KEEPALIVES] = failures[CALLS] = 0

    def settle(self) -> None:
        """Take note of the good calls so far."""
        self.load.take_over()
        good = self.load.good
        while good >= self._proven_at:
            self._proven_at += GOOD_CALLS_IN_A_ROW
            self.is_on_trial = False
            self.relapses = max(0, self.relapses - 1)
            self.load.proven()

    def unproven(self) -> None:
        """From now on, it takes so many good calls in a row until a failure is no relapse."""
        self.settle()
        self._proven_at = self.load.good + GOOD_CALLS_IN_A_ROW

    def _note_good_call(self, began: float) -> None:
        load = self.load
        if load.is_troubled:
            self.forget_failures()
            load.succeeded(began)
            load.is_troubled = load.charged_at is not None or load.trial_at < inf
        if self.is_spared:
            self._members.spare(self, False)
        load.good += 1
        self.settle()


class Moves:
    """Endpoints on their way out: for a moment one is in two lists, or in none, which other threads must not see.

    They cannot wait for a lock that is held by the hub, nor the hub for them. So they look, and look again if something
    has moved meanwhile.
    """

    __slots__ = ("begun", "ended")

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def __enter__(self) -> None:
        self.begun += 1

    def __exit__(self, *_: object) -> None:
        self.ended += 1

    def between(self, look: Callable[[], R]) -> R:
        """Return what ``look`` sees while nothing moves; if that does not end, what can be seen."""
        for _ in range(LOOKS_AT_MOST):
            ended = self.ended
            seen = look()
            if self.begun == ended:
                return seen
        return look()


class _EachCall:
    """What each call goes through: to find it in a slot takes less than in a dict of many."""

    __slots__ = ("_firsts", "_grows", "_keys", "_loads", "_sample", "has_looked", "peers")


class Members(_EachCall):
    """The set of members, who of them is eligible, and what is due for them.

    ``open_pool`` makes the pool of a new endpoint; ``closed_pool`` is told when the last connection of one that is
    gone is closed; ``ask`` is called when an endpoint fails, so that discovery looks again; ``turned`` when one becomes
    unfit to serve or fit again, so that others are chosen where there is a choice.
    """

    def __init__(
        self,
        name: str,
        queue: ClusterQueue,
        balancer: Balancer,
        *,
        open_pool: Callable[[Endpoint], Slots],
        closed_pool: Callable[[Slots], None],
        ask: Callable[[float], None],
        turned: Callable[[], None] = lambda: None,
        outlier: OutlierDetection | None,
        drain_timeout: float,
        rng: Random,
        slow_start: float = 0.0,
    ) -> None:
        self.name = name
        self.queue = queue
        self.alarm = inf
        self.is_shut = False
        self.warming: list[int] = []  # how many open connections others wait for
        self._is_updating = False  # endpoints come and go, and who may grow is seen when they have
        self._has_served = False  # one that was there before they did, and had its full weight
        self.is_partial = False  # more of them will
        self._grows = False  # whether pools open more than they keep
        self.is_empty = False  # an answer named no endpoint (those that drain are the past)
        self.reason = ""  # for that, in words
        self._balancer = balancer
        self._open_pool = open_pool
        self._closed_pool = closed_pool
        self._ask = ask
        self._turned = turned
        self.turns = 0  # how often that was called
        self._weights: Mapping[Endpoint, float] = {}  # that are not those of DNS
        self._outlier = outlier
        self.longest_pause = LONGEST_PAUSE if outlier is None else outlier.max_ejection_time
        self.slow_start = slow_start
        self._tiers: dict[int, Peers] = defaultdict(Peers)  # by priority: who avoids all of one chooses among another
        self.peers = Peers()  # of those who are eligible
        self._sample = balancer.sample if isinstance(balancer, PeakEWMA) else sys.maxsize
        self._next_drawn = 0  # who of many is looked at next
        self.has_looked = False  # which takes a while, and is none of the call's: who asks has to tell the time again
        self._firsts: Iterator[int] = iter(())  # places of the first of the next few of many
        self._next_glance, self._glanced_at = 0, -inf  # at whom of them, and when that was done last
        self._surveyed: Sequence[Member] = ()  # who was eligible at the last survey
        self._cumulated: list[float] = []  # their weights
        self._survey_at = -inf  # when all are compared with each other again
        self._window = Window(outlier.interval) if outlier else Window()
        self._drain_timeout = drain_timeout
        self._rng = rng
        self._members: dict[tuple[str, int], Member] = {}  # by what makes endpoints equal
        self.leaving: list[Member] = []  # gone, but for the last connections that are being closed
        self.moves = Moves()
        self.last_error: BaseException | None = None
        self._eligible: tuple[Member, ...] = ()
        self._loads: list[Load] = []  # of those, or nothing
        self._keys: list[float] = []  # theirs
        self._eligible_but: dict[frozenset[Endpoint], tuple[Member, ...]] = {}  # by what is avoided
        queue.members = self

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def get(self, endpoint: object) -> Member | None:
        return self._members.get(_key(endpoint)) if isinstance(endpoint, Endpoint) else None

    # -- choosing ------------------------------------------------------------------------------------------------------

    @property
    def available(self) -> list[Member]:
        return [member for member in self._members.values() if member.state is ACTIVE]

    def eligible(self, avoid: Collection[Endpoint] = ()) -> Sequence[Member]:
        """Return who may serve a call that would rather avoid some endpoints; if all are avoided, none is."""
        if not avoid:
            return self._eligible
        key = frozenset(avoid)
        if key not in self._eligible_but:
            if len(self._eligible_but) >= SETS_REMEMBERED:
                self._eligible_but.clear()
            others = [member for member in self.available if member.endpoint not in key]
            self._eligible_but[key] = tuple(_lowest_priority(others)) or self._eligible
        return self._eligible_but[key]

    def is_eligible(self, member: object, avoid: Collection[Endpoint]) -> bool:
        """Say whether a member may serve such a call, without looking at all the others."""
        eligible = self.eligible(avoid)
        if not isinstance(member, Member) or member.state is not ACTIVE or not eligible:
            return False
        # All who are eligible have one priority, and either none of them is to be avoided or, as a last resort, all.
        one = eligible[0].endpoint
        return member.endpoint.priority == one.priority and (member.endpoint not in avoid or one in avoid)

    def take(self, avoid: Collection[Endpoint], now: float) -> Slot | None:
        """Choose an eligible member with an idle connection and hand that out: one step. None if there is none."""
        if not avoid:
            slot = self.take_idle(now)
            if slot is not None:
                return slot
        elif now >= self.peers.look_at:
            self._look(now)
        eligible = self.eligible(avoid)
        some = self._some(eligible, now)
        candidates = [m for m in some if m.pool.idle] or [m for m in eligible if m.pool.idle]
        if not candidates:
            return None
        if self._grows and not self.is_shut:
            chosen = self._choose_or_grow(some, candidates, now)
        else:
            chosen = self._choose(candidates, now)
        return self._take_from(chosen, now)

    def _take_from(self, chosen: Member, now: float) -> Slot | None:
        """Hand out a connection of one that was chosen, and has one."""
        if not chosen.pool.in_use:
            chosen.load.begin(now)
        slot = chosen.pool.take(now)
        chosen.load.called(now)
        chosen.weigh(now)
        return slot

    def _try_out(self, member: Member, now: float) -> Slot | None:
        """Hand out a connection of one that is to be tried, and has one."""
        member.load.chosen(member.load.in_flight + member.load.coming + 1, now)
        return self._take_from(member, now)

    def take_idle(self, now: float) -> Slot | None:  # noqa: C901 - a call of a function takes as long as all of a branch
        """Do the same in the usual case, without calling others; None if this is another.

        Each call has to go through this. It says again what ``least``, ``Load.chosen`` and ``Slots.take`` say, but for
        what is as it was at the last look.
        """
        peers = self.peers
        if now >= peers.look_at:
            self._look(now)
        keys = self._keys
        if not keys:
            return None
        # One call changes one key: to find the least of them takes one pass at the speed of C.
        number, first = len(keys), 0
        if number == 3:  # the usual number; min() takes four times as long
            a, b, c = keys
            load = self._loads[(0 if a <= c else 2) if a <= b else 1 if b <= c else 2]
        elif number > self._sample:  # as ``_least_of_a_few`` has it
            loads = self._loads
            first = place = next(self._firsts)
            a, b, c, d = keys[first : first + DRAWS]
            if b < a:
                a, place = b, first + 1
            if c < a:
                a, place = c, first + 2
            if d < a:
                place = first + 3
            load = loads[place]
            if now >= load.look_at:
                load = self._looked_at(loads, first, now)
        else:
            try:
                load = self._loads[keys.index(min(keys))]
            except ValueError:  # the collector has ended a lease in between
                return None
        if load.spent < peers.rounds - peers.lag:
            load = self._catch_up(load, first)
        if not load.pool.idle and not self._grows:
            load = self._idle_one(load, now)
        pool: Slots = load.pool
        idle = pool.idle
        if not idle:
            return None
        if load.keys[load.place] < 0.0:
            return self._try_out(load.member, now)
        in_flight, base = load.in_flight, load.base
        if not in_flight:  # as ``Load.begin`` has it
            overdue = now + base
            if overdue < load.look_at:
                load.look_at = overdue
                if overdue < peers.look_at:
                    peers.look_at = overdue
        # As ``Load.chosen`` and ``Load.called`` have it.
        load.tried_at = load.called_at = now
        spent, rounds = load.spent, peers.rounds
        if spent <= rounds + peers.lag:
            load.spent = spent + load.step
            load.price *= load.growth
            peers.rounds = rounds + peers.turn
        else:
            load.charge()
        load.in_flight = in_flight = in_flight + 1
        key = base * load.price
        if in_flight > load.room:
            key *= (in_flight + load.coming + load.unit) * load.relief
        load.keys[load.place] = key
        # As ``Slots.take`` has it.
        slot = idle.pop() if pool.lifo else idle.popleft()
        slot.state = IN_USE
        slot.since = now
        return slot

    def _idle_one(self, load: Load, now: float) -> Load:
        """Choose among those that have a connection idle: the one chosen has none. Of many, look at the next few."""
        if self._is_large:
            for _ in range(DRAWS):
                load = self._least_of_a_few(now)
                if load.pool.idle:
                    break
            return load
        idle = [other for other in self._loads if other.pool.idle]
        return least(idle) if idle else load

    def _catch_up(self, load: Load, first: int) -> Load:
        """Put right what stands for less than it may, and choose again: of many, among the few that it stands with."""
        if not self._is_large:
            return least(self._loads)
        load.is_behind()
        return min(self._loads[first : first + DRAWS], key=KEY)

    def _see_loads(self) -> None:
        """Have the keys at hand, where it is only a matter of them who is chosen."""
        for number, load in enumerate(self._loads):
            load.keys, load.place = [self._keys[number]], 0
        self._loads = []
        if self.has_costs and (not self._is_large or self._has_one_weight):
            self._loads = [member.load for member in self._eligible]
        if self._is_large:
            self._rng.shuffle(self._loads)
            ends = len(self._loads) - DRAWS + 1
            self._firsts = cycle(chain.from_iterable(range(shift, ends, DRAWS) for shift in range(DRAWS)))
        self._keys = [load.key for load in self._loads]
        for number, load in enumerate(self._loads):
            load.keys, load.place = self._keys, number

    def peers_of(self, endpoint: Endpoint) -> Peers:
        return self._tiers[endpoint.priority]

    @property
    def _is_large(self) -> bool:
        """Whether there are too many to look at them all."""
        return len(self._eligible) > self._sample

    @property
    def _has_one_weight(self) -> bool:
        return len({member.full_weight for member in self._eligible}) <= 1

    def _least_of_a_few(self, now: float) -> Load:
        """Return the one with the least key of the next few of many, in no order.

        They are other neighbours the next time round.
        """
        loads = self._loads
        first = next(self._firsts)
        load = min(loads[first : first + DRAWS], key=KEY)
        return load if now < load.look_at else self._looked_at(loads, first, now)

    def _looked_at(self, loads: list[Load], first: int, now: float) -> Load:
        """Look at these few, and return the one with the least key then.

        ``loads`` is the list that the place is from: the collector may end leases in here, and so eject endpoints.
        """
        some = loads[first : first + DRAWS]
        self._look_at([load.member for load in some], now)
        return min(some, key=KEY)

    def _choose_or_grow(self, some: Sequence[Member], candidates: Sequence[Member], now: float) -> Member:
        """Choose; if one that has none idle is preferred, have it open one, and choose among the others."""
        able = [member for member in some if not member.pool.idle and member.pool.may_grow(now)]
        chosen = self._choose([*candidates, *able], now)
        if chosen.pool.idle:
            return chosen
        chosen.open_one(now)
        return self._choose(candidates, now)

    def _some(self, eligible: Sequence[Member], now: float) -> Sequence[Member]:
        """Return all of a few; of many, a few at random, and whose turn it is. All of them have been looked at."""
        some = eligible
        if len(eligible) > self._sample:
            self._next_drawn = (self._next_drawn + 1) % len(eligible)
            some = [eligible[i] for i in {self._next_drawn, *self._draw(eligible)}]
        if some is not self._eligible:
            due = [member for member in some if now >= member.load.look_at]
            if due:
                self._look_at(due, now)
        return some

    def _draw(self, eligible: Sequence[Member]) -> list[int]:
        """Return a few of many, in proportion to the weights: who is to have half of the calls is there as often."""
        draws = [self._rng.random() for _ in range(DRAWS)]
        if eligible is not self._surveyed:
            return [int(draw * len(eligible)) for draw in draws]
        total, last = self._cumulated[-1], len(eligible) - 1
        return [min(bisect(self._cumulated, draw * total), last) for draw in draws]

    def survey_soon(self) -> None:
        """What endpoints are compared by has changed."""
        self.peers.look_at = self._survey_at = -inf

    @transition
    def _look(self, now: float) -> None:
        """See what has changed by itself. Of many, only who is drawn is looked at at once, and the others by turns.

        A transition: the slots of a pool must not change while they are gone through, whatever the collector ends.
        """
        eligible = self._eligible
        if not eligible:
            return
        self.has_looked = True
        if now >= self._survey_at or self.peers.rounds > self.peers.start + LONGEST_STRETCH:
            self._survey(eligible, now)
        look_at = self._survey_at
        if not self._is_large:
            for member in eligible:
                if now >= member.load.look_at:
                    member.look(now)
                if member.load.look_at < look_at:
                    look_at = member.load.look_at
        elif self._loads:
            self._glance(now)
            look_at = min(look_at, now + FINEST_GLANCE)
        self.peers.look_at = look_at

    def _glance(self, now: float) -> None:
        """See for whom of many it is time, drawn or not: of all of them from one survey to the next."""
        loads = self._loads
        number = ceil(min(GLANCES, len(loads) * (now - self._glanced_at) / SURVEY))
        self._glanced_at = now
        for place in range(self._next_glance, self._next_glance + number):
            load = loads[place % len(loads)]
            if now >= load.look_at:
                load.member.look(now)
        self._next_glance = (self._next_glance + number) % len(loads)

    @transition
    def _look_at(self, members: Iterable[Member], now: float) -> None:
        self.has_looked = True
        for member in members:
            member.look(now)

    def _survey(self, eligible: Sequence[Member], now: float) -> None:
        """Compare those of each priority: what the others weigh, or how many they are, is nothing to them."""
        is_stretched = self.peers.rounds > self.peers.start + LONGEST_STRETCH
        if self._is_large and self._survey_at > -inf and not is_stretched and self._loads:
            self.peers.compare(self._loads[: self._sample])  # of many, some are as good as all
            self._mix()
            self._survey_at = now + SURVEY
            return
        tiers: dict[int, list[Member]] = defaultdict(list)
        for member in self.available:
            tiers[member.endpoint.priority].append(member)
        for tier in tiers.values():
            weights = [member.full_weight for member in tier]
            is_even = min(weights) == max(weights) and not any(member.is_slow(now) for member in tier)
            peers = tier[0].load.peers
            peers.measure([member.load for member in tier], weights, is_even=is_even)
            if is_stretched or not self._is_large:
                peers.start = peers.rounds
        self._surveyed, self._cumulated = eligible, list(accumulate(member.full_weight for member in eligible))
        self._survey_at = now + SURVEY
        for member in self._members.values():
            member.load.look_at = -inf
        if is_stretched:
            for member in eligible:
                member.look(now)

    def _mix(self) -> None:
        """Have some of many stand elsewhere."""
        keys, loads = self._keys, self._loads
        for one in range(MIXED):
            other = int(self._rng.random() * len(loads))
            keys[one], keys[other] = keys[other], keys[one]
            loads[one], loads[other] = loads[other], loads[one]
            loads[one].place, loads[other].place = one, other

    def _choose(self, candidates: Sequence[Member], now: float) -> Member:
        """Ask the balancer, which may be the user's and is asked inside transitions: they must not break with it."""
        try:
            chosen = self._balancer.choose(candidates, now)
            if type(chosen) is Member and chosen in candidates:  # not what is only equal to one
                return chosen
            raise ValueError(f"choose returned {show(chosen)}, which is no candidate")
        except BaseException as error:
            if not self.queue.busy and not isinstance(error, Exception):
                raise  # it switched, and its caller was interrupted
            self.queue.news.append(events.HookFailed(self.name, None, "choose", error))
            return candidates[0]

    def ranking(self, now: float) -> list[Member]:
        """Return who is eligible, who is to be chosen first at first; in any order if that is not a matter of keys."""
        if now >= self.peers.look_at:
            self._look(now)
        if self.is_ranked:
            return sorted(self._eligible, key=lambda member: member.load.next_key)
        return list(self._eligible)

    @property
    def has_costs(self) -> bool:
        """Whether the keys decide."""
        return type(self._balancer) is PeakEWMA

    @property
    def is_ranked(self) -> bool:
        """Whether they do among all who are eligible, and not among a few of them at a time."""
        return self.has_costs and not self._is_large

    @transition
    def ask_for(self, waiter: Waiter, now: float, *, again: bool = False) -> None:
        """Hand an idle connection to the caller, or queue it: at the end, or ``again`` where it was."""
        self.queue.join(waiter, again=again)
        slot = self.take(waiter.avoid, now)
        if slot is not None:
            self.queue.settle(waiter, slot=slot)
        else:
            self.queue.hurry(now)
            self.grow(now)

    @transition
    def grow(self, now: float) -> None:
        """Have endpoints that may open more than they keep do so while somebody waits, as the balancer prefers.

        A connect under way is for those who want just that endpoint, then for those who avoid the most.
        """
        if not self._grows or self.is_shut or self._is_updating or not (self.queue.avoiding or self.warming):
            return
        available = self.available
        spare = {m: m.pool.connecting - m.pool.waiting for m in available if m.pool.connecting > m.pool.waiting}
        for avoid in sorted(self.queue.avoiding, key=len, reverse=True):
            eligible = self.eligible(avoid)
            wanted = self.queue.avoiding[avoid]
            for member in eligible:
                used = min(wanted, spare.get(member, 0))
                if used:
                    spare[member] -= used
                    wanted -= used
            self._open(eligible, wanted, now)
        there = sum(m.pool.open + m.pool.connecting for m in available)
        self._open(self._eligible, max(self.warming, default=0) - there, now)

    def _open(self, eligible: Sequence[Member], wanted: int, now: float) -> None:
        """Open so many, each where the balancer prefers; for what there is no room now, look again when there is."""
        while wanted > 0 and (candidates := [m for m in eligible if m.pool.may_grow(now)]):
            if not self._choose(candidates, now).open_one(now):
                return  # the gate is shut: whoever stands before it goes on when it opens
            wanted -= 1
        if wanted > 0:
            for member in eligible:
                member.pool.await_retry()

    def _eligibility_changed(self, now: float) -> None:
        """Recompute who is eligible, and serve waiters who may now use what is idle, oldest first."""
        available = self.available
        self._eligible = tuple(_lowest_priority(available))
        if self._eligible:
            self.peers = self._eligible[0].load.peers
        self._see_loads()
        self._eligible_but.clear()
        self.survey_soon()
        waiting = list(self.queue.waiting) if any(member.pool.idle for member in available) else ()
        for waiter in waiting:
            slot = None if waiter.only is not None else self.take(waiter.avoid, now)
            if slot is not None:
                self.queue.settle(waiter, slot=slot)
        self.grow(now)

    # -- discovery -----------------------------------------------------------------------------------------------------

    def update(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """Apply what discovery says, in one go."""
        self.change(self.changes(endpoints), now)

    def changes(self, endpoints: Iterable[Endpoint]) -> Iterator[Change | None]:
        """Yield what turns the members into ``endpoints``: add, update in place, take back what still drains, drain.

        One change each, or None for what stays as it is; :meth:`change` makes them, before the next one is asked for.
        What is new comes first, so that there is no time without any endpoint.
        """
        wanted = {_key(endpoint): endpoint for endpoint in endpoints}
        for key, endpoint in wanted.items():
            member = self._members.get(key)
            if member is None:
                yield partial(self._add, endpoint)
            elif member.state is DRAINING or is_changed(member.endpoint, endpoint):
                yield partial(self._renew, member, endpoint)
            else:
                yield None
        for key, member in list(self._members.items()):
            yield partial(self._drain, member) if key not in wanted else None

    @transition
    def change(self, changes: Iterator[Change | None], now: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Make changes until there are none left (True) or ``enough`` for now (False): to be continued."""
        if not self.is_partial:
            self._has_served = any(m.latency is not None and not m.is_slow(now) for m in self.available)
        self._is_updating = self.is_partial = True
        for change in changes:
            if change is not None:
                change(now)
            if enough():
                break
        else:
            self.is_partial = False
        self._is_updating = False
        self._eligibility_changed(now)
        is_empty = not any(member.state is not DRAINING for member in self._members.values())
        self.is_empty = is_empty and (self.is_empty or not self.is_partial)
        if self.is_empty:
            self.queue.refuse(self.unavailable)
        if not self._eligible:
            self._probe_all(now)
        self.set_alarm()
        self.queue.judge(now)
        return not self.is_partial

    def unavailable(self) -> PoolUnavailable:
        """Return the error for who wants a connection while there is no endpoint."""
        reason = f": {self.reason}" if self.reason else ""
        return PoolUnavailable(f"{self.name}: the service has no endpoints{reason}")

    @property
    def unfit(self) -> set[Endpoint]:
        return {member.endpoint for member in self._members.values() if member.is_unfit}

    def reweigh(self, weights: Mapping[Endpoint, float]) -> None:
        """Have the balancer use these weights instead of those of DNS."""
        self._weights = weights
        for member in self._members.values():
            member.weight = member.full_weight
        self.survey_soon()

    def weight_of(self, endpoint: Endpoint) -> float:
        given = self._weights.get(endpoint) if self._weights else None
        return given or effective_weight(endpoint.weight)

    def _add(self, endpoint: Endpoint, now: float) -> None:
        pool = self._open_pool(endpoint)
        member = Member(self, endpoint, pool, now)
        # The first calls of many processes that know nothing yet must not all go to the one that DNS names first. By
        # weight, but at most a round: where all have weight 0, a few would otherwise be a hundred calls behind.
        member.load.spent += self._rng.random() / max(1.0, member.weight)
        if self._has_served:
            member.start_slowly(now)
        pool.observer, pool.load = member, member.load
        self._grows = pool.min_size < pool.size
        self._members[_key(endpoint)] = member
        self._window.restart()
        self.queue.news.append(events.EndpointAdded(self.name, endpoint))
        pool.plan(now)

    def _renew(self, member: Member, endpoint: Endpoint, now: float) -> None:
        # In one go: a member that drains may be gone when somebody else has run.
        if is_changed(member.endpoint, endpoint):
            self._replace(member, endpoint, now)
        if member.state is DRAINING:
            self._return_from_drain(member, now)

    def _replace(self, member: Member, endpoint: Endpoint, now: float) -> None:
        previous, member.endpoint = member.endpoint, endpoint
        member.weight = member.full_weight
        if endpoint.priority != previous.priority:
            member.load.join(self.peers_of(endpoint))
        self.survey_soon()
        member.pool.endpoint = endpoint
        self.queue.news.append(events.EndpointUpdated(self.name, endpoint, previous))
        member.pool.moved(previous.addresses, endpoint.addresses)
        member.pool.plan(now)

    def _drain(self, member: Member, now: float) -> None:
        if member.state is DRAINING:
            return
        member.was_ejected = member.state is EJECTED
        self._enter(member, DRAINING, now)
        member.is_probing = False
        member.until = now + self._drain_timeout
        self.queue.news.append(events.EndpointRemoved(self.name, member.endpoint))
        member.pool.suspend(_queue.DRAINED)

    def _return_from_drain(self, member: Member, now: float) -> None:
        self.queue.news.append(events.EndpointAdded(self.name, member.endpoint))
        if member.was_ejected:
            self._enter(member, EJECTED, now)
            member.until = now
        else:
            self._activate(member, now)

    def emptied(self, member: Member) -> None:
        """The last connection to an endpoint that drains, or is gone already, is closed."""
        if member in self.leaving:
            with self.moves:
                self.leaving.remove(member)
                self._part(member, forced=member.is_cut)
        elif member.state is DRAINING and self.get(member.endpoint) is member:
            with self.moves:
                self._forget(member)
                self._part(member, forced=False)

    def _forget(self, member: Member) -> None:
        del self._members[_key(member.endpoint)]
        member.pool.shut(lambda: PoolClosed(f"{self.name}: {member.endpoint} has been removed"))

    def _part(self, member: Member, *, forced: bool) -> None:
        self.queue.news.append(events.EndpointDrained(self.name, member.endpoint, forced))
        self._closed_pool(member.pool)

    # -- ejection and return -------------------------------------------------------------------------------------------

    def failed(self, member: Member, kind: events.Kind, error: BaseException | None, now: float) -> None:
        """A connect, keepalive or call failed: count it, eject if it is one too many.

        Only that endpoint, and only now: one that was kept by the limit stays until it fails again, even if another is
        readmitted. That one is on trial, and may soon be the worse of the two.
        """
        member.failures[kind] += 1
        member.load.is_troubled = True
        if kind is CALLS:
            member.unproven()
            self._window.turn((other.tally for other in self._members.values()), now)
            member.tally.failed += 1
        # A call's error is still on its way through the caller's frames, and would keep all they hold alive.
        member.last_error = error if kind is not CALLS or error is None else without_traceback(error)
        if kind is CONNECTS:
            self.last_error = error
            self._ask(now)
            self.grow(now)
        outlier = self._outlier
        if outlier is None or self.is_shut or member.state is not ACTIVE:
            return
        reason = self._reason_to_eject(member, kind, outlier)
        if reason is None:
            return
        if self._may_eject(member, outlier):
            self._eject(member, kind, reason, outlier, now)
        elif not member.is_spared:
            self.spare(member, True)

    def _reason_to_eject(self, member: Member, kind: events.Kind, outlier: OutlierDetection) -> events.Reason | None:
        if member.failures[kind] >= outlier.consecutive_failures:
            return "consecutive_failures"
        if kind is not CALLS:
            return None
        others = (other.tally for other in self._compared(member) if other is not member)
        return "failure_percentage" if outlier.is_worse(member.tally, others) else None

    def _compared(self, member: Member) -> Iterable[Member]:
        """Return the available ones of its priority; of very many, some: when all fail, this is for every call."""
        priority, eligible = member.endpoint.priority, self._eligible
        if not eligible or eligible[0].endpoint.priority != priority:
            return [other for other in self.available if other.endpoint.priority == priority]
        if len(eligible) <= COMPARED:
            return eligible
        first = int(self._rng.random() * (len(eligible) - COMPARED))
        return eligible[first : first + COMPARED]

    def _may_eject(self, member: Member, outlier: OutlierDetection) -> bool:
        priority = member.endpoint.priority
        if any(other.endpoint.priority > priority for other in self.available):
            return True
        peers = [m for m in self._members.values() if m.endpoint.priority == priority and m.state is not DRAINING]
        ejected = sum(m.state is EJECTED for m in peers)
        return ejected < outlier.limit(len(peers))

    def spare(self, member: Member, is_spared: bool) -> None:
        """Keep one that should be ejected, or have it be as any other again."""
        member.is_spared = is_spared
        self._turn()

    def _turn(self) -> None:
        self.turns += 1
        self._turned()

    def _eject(
        self, member: Member, kind: events.Kind, reason: events.Reason, outlier: OutlierDetection, now: float
    ) -> None:
        if kind is CALLS and member.is_on_trial and not outlier.is_longest(member.relapses):
            member.relapses += 1
        seconds = outlier.ejection_time(member.relapses, self._rng)
        self._enter(member, EJECTED, now)
        member.is_spared = False
        member.ejections += 1
        member.failed_probes = 0
        member.until = now + seconds
        member.forget_failures()
        member.ejection = events.EndpointEjected(self.name, member.endpoint, kind, seconds, member.last_error, reason)
        self.queue.news.append(member.ejection)
        member.pool.suspend(_queue.EJECTED)
        self._turn()
        self._ask(now)
        self._eligibility_changed(now)
        self.set_alarm()
        self.queue.judge(now)

    def _probe_all(self, now: float) -> None:
        """Nobody is available: find out at once who is back."""
        for member in self._members.values():
            if member.state is EJECTED and not member.is_probing:
                member.until = now

    def probed(self, member: Member, error: BaseException | None, now: float) -> None:
        """A probe has ended: readmit the endpoint, or try again later."""
        if member.state is not EJECTED or not member.is_probing:
            return
        member.is_probing = False
        if error is None:
            self._readmit(member, now)
            return
        seconds = spread(exponential(member.failed_probes, base=1.0, factor=2.0, cap=5.0), 0.5, 1.0, self._rng)
        member.failed_probes += 1
        member.last_error = self.last_error = error
        member.until = now + seconds
        self.queue.news.append(events.ProbeFailed(self.name, member.endpoint, seconds, error))
        self._ask(now)
        self.set_alarm()

    def _readmit(self, member: Member, now: float) -> None:
        member.is_on_trial = True
        member.unproven()
        member.forget_failures()
        member.start_slowly(now)
        self.queue.news.append(events.EndpointReadmitted(self.name, member.endpoint))
        self._activate(member, now)
        self._turn()
        self._eligibility_changed(now)

    def _enter(self, member: Member, state: Literal["active", "ejected", "draining"], now: float) -> None:
        member.state, member.since = state, now

    def _activate(self, member: Member, now: float) -> None:
        self._enter(member, ACTIVE, now)
        member.until = inf
        self._window.restart()
        member.pool.resume(now)

    @transition
    def reset(self, now: float) -> None:
        """Replace every connection, and find out at once which ejected endpoints are back."""
        for member in self._members.values():
            member.pool.reset(now)
            if member.state is EJECTED and not member.is_probing:
                member.until = now
        self.set_alarm()

    @transition
    def resize(self, size: int, min_size: int, now: float) -> None:
        """Have so many connections to each endpoint."""
        self.queue.keeps_some = min_size > 0
        self._grows = min_size < size
        for member in self._members.values():
            member.pool.resize(size, min_size, now)
        self.queue.planned(now)

    @transition
    def shut(self, error: Callable[[], BaseException]) -> None:
        """Close for good: every waiter gets an ``error``, nothing is opened or probed any more."""
        self.is_shut = True
        self.queue.refuse(error)
        for member in self._members.values():
            member.pool.shut(error)

    # -- maintenance ---------------------------------------------------------------------------------------------------

    @transition
    def tick(self, now: float) -> None:
        """Time has come to ``alarm``: probe who is due, close who has drained for too long."""
        for member in list(self._members.values()):
            if member.until > now or member.is_probing or self.is_shut:
                continue
            if member.state is EJECTED:
                member.is_probing = True
                member.pool.probe(now)
            else:  # it drains: one that is active has no such time
                self._end_drain(member)
        self.set_alarm()
        self.queue.judge(now)

    def _end_drain(self, member: Member) -> None:
        """Cut what is left; the member is gone now, its connections close behind it."""
        member.is_cut = member.in_flight > 0
        with self.moves:
            self.leaving.append(member)
            self._forget(member)
        member.pool.cut()

    def set_alarm(self) -> None:
        due = min((m.until for m in self._members.values() if not m.is_probing), default=inf)
        if not self.is_shut:
            self.queue.ring_at(due, self)


def _key(endpoint: Endpoint) -> tuple[str, int]:
    return endpoint.name, endpoint.port


def _lowest_priority(members: Collection[Member]) -> list[Member]:
    lowest = min((member.endpoint.priority for member in members), default=0)
    return [member for member in members if member.endpoint.priority == lowest]
