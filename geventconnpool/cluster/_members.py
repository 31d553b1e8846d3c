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

"Removed" is one that discovery no longer names, or that a choice among very many (``_subset``) leaves out again.
An ejected or draining member's pool is suspended. A member is available if it is ACTIVE; it is eligible if it is
available and has the lowest SRV priority that has an available member (RFC 2782). Only this module changes a member.
"""

from __future__ import annotations

import sys
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import inf
from random import Random
from typing import Final, Literal

from geventconnpool import _queue, events
from geventconnpool._backoff import exponential, spread
from geventconnpool._check import show, without_traceback
from geventconnpool._queue import ERROR, IN_USE, INTERRUPTED, Queue, Slot, Waiter, transition
from geventconnpool._slots import Slots
from geventconnpool.cluster._balancers import Balancer, PeakEWMA, effective_weight
from geventconnpool.cluster._endpoints import Endpoint, is_changed
from geventconnpool.cluster._load import LEAST_UNIT, Load, Peers, least
from geventconnpool.cluster._outliers import OutlierDetection, Tally, Window
from geventconnpool.errors import PoolClosed, PoolUnavailable

ACTIVE: Final = "active"
EJECTED: Final = "ejected"
DRAINING: Final = "draining"
CONNECTS: Final = "connects"
KEEPALIVES: Final = "keepalives"
CALLS: Final = "calls"

Change = Callable[[float], None]

SETS_REMEMBERED = 100  # of avoided endpoints
GOOD_CALLS_IN_A_ROW = 20  # after which a failure is no relapse
LONGEST_PAUSE = 60.0  # seconds a failure costs at most, where nothing is ejected
LEAST_SHARE = 0.1  # with which slow start begins
FINEST_LOOK = 0.001  # seconds between two looks at what changes by itself
LOOKS_PER_RAMP = 30
DRAWS = 4  # of a large cluster
SURVEY = 1.0  # seconds after which endpoints are compared with each other again


class ClusterQueue(Queue):
    """The one queue of a cluster: waiters belong to no endpoint, but some may not use every endpoint."""

    members: Members

    def __init__(self, fail_after: float = inf, *, keeps_some: bool = True) -> None:
        super().__init__(fail_after, keeps_some=keeps_some)
        self.avoiding: Counter[frozenset[Endpoint]] = Counter()  # those who want no pool in particular

    def join(self, waiter: Waiter, now: float, *, again: bool = False) -> None:
        if waiter.only is None:
            self.avoiding[waiter.avoid] += 1
        super().join(waiter, now, again=again)

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
        self.was_ejected = False  # what a draining member goes back to
        self.until = inf  # next probe if ejected, forced close if draining
        self.failures: dict[events.Kind, int] = {CONNECTS: 0, KEEPALIVES: 0, CALLS: 0}
        self.tally = Tally()
        self.has_failed = False  # since they were forgotten
        self.last_error: BaseException | None = None
        self.ejections = 0
        self.relapses = 0
        self.is_spared = False  # it would be ejected, were it not for the limit; until its next good call
        self.is_on_trial = False  # readmitted, and not yet proven by good calls in a row: a failure is a relapse
        self.good_calls = 0  # in a row
        self.failed_probes = 0
        self.is_probing = False
        self.is_cut = False  # calls were in flight when its time to drain was over
        self.load = Load(members.peers, now, self)
        self.look_at = -inf  # when the age of its calls, its slow start or a trial may change the key of its load
        self._slow_until = -inf  # its weight grows until then

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

    # What it would cost to use it.

    def weigh(self, now: float) -> None:
        pool = self.pool
        self.load.weigh(pool.in_use + pool.connecting + pool.waiting, now)

    def look(self, now: float) -> None:
        """Weigh what changes by itself: the age of calls, slow start, and whether it is to be tried."""
        load, pool = self.load, self.pool
        self.weight = self.full_weight * self._share(now)
        load.unit = max(LEAST_UNIT, self.weight / load.peers.weight)
        # Who has just begun is quick because it has little to do: that is no reason to give it more than its share.
        load.quickest = load.peers.typical if self.is_slow(now) else 0.0
        load.oldest = self._oldest_call() if pool.in_use else inf
        self.weigh(now)
        self.look_at = min(self._overdue_at(now), load.next_trial if load.next_trial > now else inf)
        if self.is_slow(now):
            self.look_at = min(self.look_at, now + self._members.slow_start / LOOKS_PER_RAMP)

    def _overdue_at(self, now: float) -> float:
        """Return when the oldest call will have been in flight for longer than usual, or noticeably longer than now."""
        load = self.load
        usual = load.peers.typical if load.latency is None else load.latency
        age = now - load.oldest  # -inf if there is none
        return now + max(FINEST_LOOK, usual - age, 0.1 * age)

    def begin(self, now: float) -> None:
        """The only call in flight begins: look again when it is overdue."""
        self.load.oldest = now
        due = self._overdue_at(now)
        if due < self.look_at:
            self.look_at = due
        if due < self._members.look_at:
            self._members.look_at = due

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
        return self._slow_until > now

    def start_slowly(self, now: float) -> None:
        self.load.renew(now)
        self._slow_until = now + self._members.slow_start

    def _share(self, now: float) -> float:
        """Return how much of its weight counts during slow start: from a tenth to all of it, linearly (as in Envoy)."""
        left = self._slow_until - now
        return 1.0 if left <= 0.0 else 1.0 - (1.0 - LEAST_SHARE) * left / self._members.slow_start

    # Reports, as ``_queue.Observer`` says.

    def connected(self, now: float) -> None:
        self.failures[CONNECTS] = 0
        self.load.not_called()
        if self.pool.in_use == 1 and self.load.oldest == inf:
            self.begin(now)
        self.weigh(now)

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
        if verdict is ERROR:
            self.good_calls = 0
            load.failed(now, self._members.longest_pause)
            self._members.failed(self, CALLS, error, now)
        else:
            if load.latency is None and not load.peers.typical:
                self._members.survey_soon()  # something is known that others may be measured by
            if verdict is INTERRUPTED:
                load.measured(seconds, in_flight, now)
            else:
                load.answered(seconds, in_flight, now)
        if verdict is None:
            if load.charged_at is not None:
                load.succeeded(now - seconds)
            self._note_good_call()
        load.weigh(in_flight + pool.connecting + pool.waiting, now)

    def probed(self, error: BaseException | None, now: float) -> None:
        self._members.probed(self, error, now)

    def hung_up(self, now: float) -> None:
        self.load.missed(now)

    def changed(self, now: float) -> None:
        self.weigh(now)

    def emptied(self) -> None:
        self._members.emptied(self)

    def forget_failures(self) -> None:
        self.has_failed = False
        failures = self.failures
        failures[CONNECTS] = failures[KEEPALIVES] = failures[CALLS] = 0

    def _note_good_call(self) -> None:
        if self.has_failed:
            self.forget_failures()
        self.tally.good += 1
        if self.is_spared:
            self._members.spare(self, False)
        self.good_calls += 1
        if self.good_calls % GOOD_CALLS_IN_A_ROW == 0:
            self.is_on_trial = False
            self.relapses = max(0, self.relapses - 1)
            self.load.proven()


class Members:
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
        self.peers = Peers()
        self._sample = balancer.sample if isinstance(balancer, PeakEWMA) else sys.maxsize
        self._next_drawn = 0  # who of many is looked at next
        self._surveyed: Sequence[Member] = ()  # who was eligible at the last survey
        self._cumulated: list[float] = []  # their weights
        self.look_at = -inf  # when a key or a weight may change by itself
        self._survey_at = -inf  # when all are compared with each other again
        self._window = Window(outlier.interval) if outlier else Window()
        self._drain_timeout = drain_timeout
        self._rng = rng
        self._members: dict[tuple[str, int], Member] = {}  # by what makes endpoints equal
        self.leaving: list[Member] = []  # gone, but for the last connections that are being closed
        self.last_error: BaseException | None = None
        self._eligible: tuple[Member, ...] = ()
        self._loads: tuple[Load, ...] = ()  # of those, or nothing
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
        if now >= self.look_at:
            self._look(now)
        if self._loads and not avoid:  # the usual case in few words
            load = least(self._loads)
            pool: Slots = load.member.pool
            if pool.idle:
                if not pool.in_use:
                    load.member.begin(now)
                load.chosen(pool.in_use + pool.connecting + pool.waiting + 1, now)
                load.called(now)
                return pool.take(now)
        eligible = self.eligible(avoid)
        some = self._some(eligible, now)
        candidates = [m for m in some if m.pool.idle] or [m for m in eligible if m.pool.idle]
        if not candidates:
            return None
        if self._grows and not self.is_shut:
            chosen = self._choose_or_grow(some, candidates, now)
        else:
            chosen = self._choose(candidates, now)
        if not chosen.pool.in_use:
            chosen.begin(now)
        slot = chosen.pool.take(now)
        chosen.load.called(now)
        chosen.weigh(now)
        return slot

    def _see_loads(self) -> None:
        """Have the loads at hand, where it is only a matter of them who is chosen."""
        is_plain = type(self._balancer) is PeakEWMA and not self._grows and len(self._eligible) <= self._sample
        self._loads = tuple(member.load for member in self._eligible) if is_plain else ()

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
            due = [member for member in some if now >= member.look_at]
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
        self.look_at = self._survey_at = -inf

    @transition
    def _look(self, now: float) -> None:
        """See what has changed by itself. Of many, only who is drawn is looked at in detail.

        A transition: the slots of a pool must not change while they are gone through, whatever the collector ends.
        """
        eligible = self._eligible
        if not eligible:
            return
        if now >= self._survey_at:
            self._survey(eligible, now)
        self.look_at = self._survey_at
        if len(eligible) > self._sample:
            return
        for member in eligible:
            if now >= member.look_at:
                member.look(now)
            if member.look_at < self.look_at:
                self.look_at = member.look_at

    @transition
    def _look_at(self, members: Iterable[Member], now: float) -> None:
        for member in members:
            member.look(now)

    def _survey(self, eligible: Sequence[Member], now: float) -> None:
        """Compare those who are eligible: what the others weigh, or how many they are, is nothing to them."""
        weights = [member.full_weight for member in eligible]
        is_even = min(weights) == max(weights) and not any(member.is_slow(now) for member in eligible)
        self.peers.measure([member.load for member in eligible], weights, is_even=is_even)
        self._surveyed, self._cumulated = eligible, list(accumulate(weights))
        self._survey_at = now + SURVEY
        for member in self._members.values():
            member.look_at = -inf

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

    @transition
    def ask_for(self, waiter: Waiter, now: float, *, again: bool = False) -> None:
        """Hand an idle connection to the caller, or queue it: at the end, or ``again`` where it was."""
        self.queue.join(waiter, now, again=again)
        slot = self.take(waiter.avoid, now)
        if slot is not None:
            self.queue.settle(waiter, slot=slot)
        else:
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
        # The first calls of many processes that know nothing yet must not all go to the one that DNS names first.
        member.load.spent += self._rng.random() / member.weight
        if self._has_served:
            member.start_slowly(now)
        pool.observer = member
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
        self.survey_soon()
        member.pool.endpoint = endpoint
        self.queue.news.append(events.EndpointUpdated(self.name, endpoint, previous))
        member.pool.moved(previous.addresses, endpoint.addresses)
        member.pool.plan(now)

    def _drain(self, member: Member, now: float) -> None:
        if member.state is DRAINING:
            return
        member.was_ejected = member.state is EJECTED
        member.state = DRAINING
        member.is_probing = False
        member.until = now + self._drain_timeout
        self.queue.news.append(events.EndpointRemoved(self.name, member.endpoint))
        member.pool.suspend(_queue.DRAINED)

    def _return_from_drain(self, member: Member, now: float) -> None:
        self.queue.news.append(events.EndpointAdded(self.name, member.endpoint))
        if member.was_ejected:
            member.state = EJECTED
            member.until = now
        else:
            self._activate(member, now)

    def emptied(self, member: Member) -> None:
        """The last connection to an endpoint that drains, or is gone already, is closed."""
        if member in self.leaving:
            self.leaving.remove(member)
            self._part(member, forced=member.is_cut)
        elif member.state is DRAINING and self.get(member.endpoint) is member:
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
        member.has_failed = True
        if kind is CALLS:
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
        priority = member.endpoint.priority
        others = (
            other.tally
            for other in self._members.values()
            if other is not member and other.state is ACTIVE and other.endpoint.priority == priority
        )
        return "failure_percentage" if outlier.is_worse(member.tally, others) else None

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
        member.state = EJECTED
        member.is_spared = False
        member.ejections += 1
        member.failed_probes = 0
        member.until = now + seconds
        member.forget_failures()
        self.queue.news.append(
            events.EndpointEjected(self.name, member.endpoint, kind, seconds, member.last_error, reason)
        )
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
        member.good_calls = 0
        member.forget_failures()
        member.start_slowly(now)
        self.queue.news.append(events.EndpointReadmitted(self.name, member.endpoint))
        self._activate(member, now)
        self._turn()
        self._eligibility_changed(now)

    def _activate(self, member: Member, now: float) -> None:
        member.state = ACTIVE
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
        self._see_loads()
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
