"""What a cluster knows of how one endpoint fares, and what it expects a call to it to cost. Pure.

The cost of a call is the time that it is expected to take, in seconds::

    (latency + FLOOR) * max(1, (in_flight + unit) / (level + unit))

``latency`` is an average over about ``DECAY`` seconds that is sensitive to peaks (after Finagle's Peak EWMA): a call
that takes ``SURPRISE`` times as long as the longest of late, and ``HICCUP`` more, is believed at once. ``FLOOR`` makes
little of differences in which there is more of the scheduler than of the server. ``level`` is how many other calls were
in flight when it was measured, or usually are at its peers if that is more: a latency that was seen under load is not
multiplied by that load again. ``unit`` is the weight over the mean weight: at twice the weight, twice as many calls in
flight make no difference. While a call is in flight for longer than ``latency``, its age stands for it, unless one that
began later has returned: what hangs is seen before it returns, and a long call among short ones is no hang.

An endpoint that gets no calls, because they are expected to take long, is tried with one: ``FIRST_TRIAL`` seconds after
its last, then after twice as long each time, up to ``TRIAL``; one that is as good as most gets its share without, and
is tried after ``TRIAL`` only. If that call is quick, what was known before is forgotten.
One whose weight still grows is taken for no quicker than the typical one: it has little to do.

A call that fails costs ``FAILURE_COST`` instead, or who refuses everything at once would look quick (Linkerd's balancer
biases its load in this way). That has to be taken off again, or it would outlive the fault::

             a call fails             a good call begun after it, or a keepalive begun ``pause`` after it
    (clear) -------------> (charged) --------------------------------------------------------------------> (clear)

Keepalives may pass where calls fail, so ``pause`` is doubled by the first failure after a clearing by keepalive; 20
good calls in a row make it ``FIRST_PAUSE`` again. A good call that began before the failure clears nothing: a server
that refuses what is new still finishes what is old.

Endpoints that are about equally good get their shares, in proportion to their weights: each call adds ``1 / unit`` to
what an endpoint has ``spent``, in rounds, and an endpoint that is a round ahead of the others is taken for ``STEP`` (a
logarithm) dearer than it is: stride scheduling (Waldspurger and Weihl 1995), but latency may bend the shares. It counts
for no more than ``EVEN`` in either direction, or ``WEIGHTED`` while weights differ, and one call: who is slower than
that gets less. ``EVEN`` is small, because what looks like noise in the latencies is news of queues that others fill.

What is compared is the ``key``: the cost, times a ``price`` of ``exp(STEP)`` for each round ahead. It stands in a list
with those of the others, so that the least is found by ``min``; a call changes its own endpoint's, twice. That has to
be quick, so it works with what was found out at the last look (``weigh``): averages are brought up to date at looks.
There is one within ``FINEST_LOOK`` of a call that took noticeably longer or less than usual (``NEWS``), or that ended
among more others than usual; and when a call becomes overdue. A failure, a surprise, an interruption, or the first
good call after one, is dealt with at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf
from operator import attrgetter
from typing import Any

DECAY = 10.0  # seconds after which a sample counts for 1/e
SURPRISE, HICCUP = 3.0, 0.025
STEADY = 25.0  # samples after which a surprise is the first of its kind
PRIOR = 5.0  # samples that the latency of its peers counts for with an endpoint that has none yet
FAILURE_COST = 5.0  # seconds
FIRST_PAUSE = 1.0  # seconds
FIRST_TRIAL, TRIAL = 2.0, 9.0  # seconds after which an endpoint is tried, whatever it costs: that is done within 10
INSTANT = 1e-6  # seconds: what is told of calls is that exact
TRIED_FIRST = -1e12  # makes the key of one that is due to be tried: below all others, those who wait longest first
FLOOR = 0.001  # seconds
FINEST_LOOK = 0.002  # seconds between two looks at what changes by itself
NEWS = 0.1  # of the cost: a call that takes that much longer or less than usual is looked at soon
STEP, EVEN, WEIGHTED = 0.04, 0.1, 0.5
GROWTH = exp(STEP)
STEEPEST = 300.0  # logarithm of the highest price: keys are numbers, whatever is told
LEAST_UNIT = 0.01  # a call adds no more than 100 rounds: who had one serves again if all who weigh more hang


class Peers:
    """What the loads of one priority of a cluster have in common, and are compared by."""

    __slots__ = (
        "is_even",
        "lag",
        "level",
        "look_at",
        "rounds",
        "start",
        "surprise",
        "turn",
        "typical",
        "usual",
        "weight",
    )

    def __init__(self) -> None:
        self.look_at = -inf  # when the key of any may change by itself, or calls have ended that are not in it yet
        self.rounds = 0.0  # played so far; in one, each of equal endpoints has one call
        self.start = 0.0  # in rounds: where being ahead is counted from, or the prices would grow for ever
        self.turn = 1.0  # how much of a round one call is
        self.weight = 1.0  # the mean
        self.is_even = True
        self.lag = EVEN / STEP  # how many rounds an endpoint may be ahead of the others, or behind
        self.typical = 0.0  # seconds: the median of the latencies, to be assumed where none is known
        self.usual = 0.0  # seconds: the median of the calls, that of who has most of them; no more than ``typical``
        self.level = 0.0  # the mean
        self.surprise = 0.0  # seconds: the median of what would be one

    def measure(self, loads: Sequence[Load], weights: Sequence[float], *, is_even: bool) -> None:
        """Take note of who is available now, with the full weight of each; say whether all now have the same."""
        number = len(weights)
        self.turn = 1.0 / number
        self.weight = sum(weights) / number
        self.is_even = is_even
        self.lag = (EVEN if is_even else WEIGHTED) / STEP
        if is_even:  # or who is chosen first after a change would not be as far ahead as the others, for many calls
            self.rounds = max(self.rounds, max(load.spent for load in loads) - self.lag - 1.0)
        self.compare(loads)

    def compare(self, loads: Sequence[Load]) -> None:
        """Take note of what is typical."""
        known = [load for load in loads if load.latency is not None]
        self.typical = _lower_median([load.latency or 0.0 for load in known])
        self.surprise = _lower_median([load.surprise for load in known])
        self.usual = min(self.typical, _median_of_calls(loads))
        self.level = sum([load.level for load in loads]) / len(loads)


def _lower_median(values: Sequence[float]) -> float:
    """Return the middle one, the lower of two: of two endpoints, the slow one is not typical. 0 if there is none."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0


def _median_of_calls(loads: Sequence[Load]) -> float:
    """Return the latency of the endpoint that has the middle one of the calls of late, ordered by those latencies."""
    known = sorted((load.latency, load._samples) for load in loads if load.latency is not None)
    left = sum(samples for _, samples in known) / 2.0
    for latency, samples in known:
        left -= samples
        if left <= 0.0:
            return latency
    return 0.0


class _EachCall:
    """What each call goes through, side by side: of many, every line of the cache that it touches counts."""

    __slots__ = (
        "_crowd",
        "_ended",
        "_high",
        "_last",
        "_longest",
        "_low",
        "_seconds",
        "base",
        "called_at",
        "calm",
        "coming",
        "growth",
        "heard_at",
        "in_flight",
        "is_troubled",
        "keys",
        "later",
        "look_at",
        "peers",
        "place",
        "pool",
        "price",
        "relief",
        "room",
        "spent",
        "step",
        "surprise",
        "tried_at",
        "unit",
    )


class Load(_EachCall):
    """How one endpoint fares."""

    __slots__ = (
        "_at",
        "_is_doubtful",
        "_is_trial",
        "_latency",
        "_level",
        "_samples",
        "charged_at",
        "good",
        "member",
        "oldest",
        "patience",
        "pause",
        "quickest",
        "trial_at",
        "was_given_up",
    )

    def __init__(self, peers: Peers, now: float, member: Any = None, pool: Any = None) -> None:
        self.peers = peers
        self.member, self.pool = member, pool  # whose load it is
        self.look_at = -inf  # when the age of its calls, its slow start or a trial may change the key
        self.later = -inf  # when slow start or a trial may
        # What calls took, of those that are in the average, and of those that have ended since the last look.
        self._latency: float | None = None
        self._level = 0.0
        self._at = now  # of the last sample
        self._samples = 0.0  # that the average rests on
        self.surprise = 0.0  # what takes that long is
        self._low = self._high = 0.0  # what takes less or more is noticeable
        self._ended = 0
        self._seconds = self._longest = 0.0
        self._crowd = 0  # the sum of how many others were in flight
        self._last = now
        # What is in flight.
        self.in_flight = 0  # calls, as of the last weighing, and those since that have begun and ended as usual
        self.coming = 0  # connects under way, and who waits for just this endpoint
        self.heard_at = -inf  # when the call began that began last of all that have returned
        self.oldest = inf  # when the call in flight began that began first after that; as of the last look
        # The key, and what it is made of; but for what has just changed, as of the last weighing.
        self.keys = [0.0]
        self.place = 0  # where in those, with the keys of others, its own is
        self.base = FLOOR  # seconds: the cost, if there were no crowd
        self.calm = 0.0  # how many in flight are none
        self.room = 0  # the same, in whole calls, less what is coming
        self.relief = 1.0  # one over the cost of that
        self.price = 1.0  # by what it is multiplied for being ahead
        self.unit = self.step = 1.0
        self.growth = GROWTH  # of the price, with each call
        self.spent = peers.rounds
        self.quickest = 0.0  # seconds: what it is taken for if it is quicker
        # Trials.
        self.tried_at = now  # when it was chosen last
        self.called_at = now  # when it was chosen last, and there was a connection for the call
        self._is_trial = False  # it was chosen because it was to be tried
        self.trial_at = inf  # when a call went there to find out how it fares, that has not returned yet
        self.patience = FIRST_TRIAL  # seconds after which one does
        # Failures.
        self.charged_at: float | None = None  # when the last call failed, if nothing has cleared that
        self.pause = FIRST_PAUSE
        self._is_doubtful = False  # cleared by a keepalive, and not proven since
        self.was_given_up = False  # the last call; it would have taken longer than its time
        self.is_troubled = False  # the next good call is news: it follows a failure, a trial, or one that was given up
        self.good = 0  # calls, of those that are in the average

    @property
    def key(self) -> float:
        return self.keys[self.place]

    @property
    def cost(self) -> float:
        """What a call is expected to take, in seconds; of no meaning while it is due to be tried."""
        return self.key / self.price

    @property
    def latency(self) -> float | None:
        """The average, in seconds; None before the first call has ended."""
        self.take_over()
        return self._latency

    @property
    def latency_now(self) -> float | None:
        """The same, but nothing is taken note of: for other threads, which may look in the middle of anything."""
        latency, ended, seconds = self._latency, self._ended, self._seconds
        if latency is None or not ended:
            return latency
        _, _, share = self._fading(ended, self._last)
        return latency + (seconds / ended - latency) * share

    @property
    def level(self) -> float:
        """How many others were in flight, in the same average."""
        self.take_over()
        return self._level

    def measure(self, unit: float) -> None:
        """Take note of the weight, over the mean."""
        if unit != self.unit:
            self.unit, self.step, self.growth = unit, 1.0 / unit, exp(min(STEP / unit, STEEPEST))

    def join(self, peers: Peers) -> None:
        """It is compared with others from now on."""
        self.peers = peers
        self.spent = peers.rounds

    def measured(self, seconds: float, level: int, now: float) -> None:
        """A call took so long, or was interrupted after so many seconds, with so many others in flight at its end."""
        self.take_over()
        if self._latency is None:
            self._at = now  # what is assumed is news
            self._assume()
        if seconds >= self.surprise:
            self._at = now
            self._believe(seconds, 1.0)
            self._level = float(level)
        else:
            self._average(1, seconds, seconds, level, now)

    def take_over(self) -> None:
        """Have the calls in the average that have ended since that was done."""
        if self._ended:
            ended, self._ended = self._ended, 0
            self.good += ended
            self._average(ended, self._seconds / ended, self._longest, self._crowd / ended, self._last)
            self._seconds = self._longest = 0.0
            self._crowd = 0

    def _average(self, ended: int, seconds: float, longest: float, level: float, now: float) -> None:
        """Add so many calls, of about one time, that took so long on average, and at most so long."""
        fade, self._samples, share = self._fading(ended, now)
        self._at = now
        latency = self._latency or 0.0
        self._latency = latency = latency + (seconds - latency) * share
        self._level += (level - self._level) * share
        self.surprise = max(SURPRISE * longest + HICCUP, latency + (self.surprise - latency) * fade)

    def _fading(self, ended: int, now: float) -> tuple[float, float, float]:
        """Return what is left of the average when so many calls are added, on how many it rests then, their share."""
        fade = exp((self._at - now) / DECAY)
        samples = self._samples * fade + ended
        return fade, samples, max(ended / samples, 1.0 - fade)

    def _assume(self) -> None:
        """Begin with what is typical, if anything is: one quick call makes nobody the quickest, nor a slow one slow."""
        if self.peers.typical:
            self._believe(self.peers.typical, PRIOR)
            self.surprise = max(self.surprise, self.peers.surprise)
        else:
            self.surprise = 0.0

    def _believe(self, latency: float, samples: float) -> None:
        """Take a latency for what it is from now on, as if it rested on so many samples."""
        if self._samples >= STEADY:
            self.patience = FIRST_TRIAL
        self._latency = latency
        self._samples = samples
        self.surprise = SURPRISE * latency + HICCUP

    def _passed_trial(self, seconds: float) -> None:
        """A call that was to find out how it fares now has returned: if it was quick, what was before is forgotten.

        One call makes nobody quicker than is usual. What is typical may be what most of them were in a bad moment, and
        to be believed no better than that they would have to be tried for a minute.
        """
        self.trial_at = inf
        latency, known = max(seconds, self.peers.usual), self.latency
        if known is not None and latency < known:
            self._believe(latency, PRIOR)

    def renew(self, now: float) -> None:
        """What was is no guide to what will be: it counts as the typical one, and has nothing to catch up with."""
        self.tried_at = self.called_at = now
        self.heard_at = now  # calls that began before are the past, and so is their age
        self.patience = FIRST_TRIAL
        self._ended = 0
        self.was_given_up = False
        self._latency = None
        self.surprise = 0.0  # the next call is one, whatever it takes
        self._level = 0.0
        self.spent = self.peers.rounds
        self._clear()

    # -- the cost of failures ------------------------------------------------------------------------------------------

    def failed(self, now: float, longest_pause: float) -> None:
        """A call failed."""
        self.is_troubled = True
        if self._is_doubtful:
            self._is_doubtful = False
            self.pause = min(2.0 * self.pause, longest_pause)
        self.charged_at = now

    def returned(self, began: float, now: float) -> None:
        """A call was good. Each has to go through this; what it means for the average is seen at the next look."""
        seconds = now - began
        if seconds >= self.surprise or self.is_troubled:
            self.member.call_ended(None, None, seconds, now)
            return
        self._ended += 1
        in_flight = self.in_flight = self.in_flight - 1
        if not in_flight:
            self.look_at = self.later
        if not self._low <= seconds <= self._high:
            self._look_soon(now)
        self._seconds += seconds
        self._crowd += in_flight
        self._last = now
        if seconds > self._longest:
            self._longest = seconds
        if began > self.heard_at:
            self.heard_at = began
        key = self.base * self.price
        if in_flight > self.room:
            if in_flight > self.calm:
                self._look_soon(now)
            key *= (in_flight + self.coming + self.unit) * self.relief
        self.keys[self.place] = key

    def _look_soon(self, now: float) -> None:
        self.later = min(self.later, now + FINEST_LOOK)
        self.look_by(self.later)

    def answered(self, seconds: float, in_flight: int, now: float) -> None:
        """A call has returned after so many seconds, and not because its caller lost patience."""
        began = now - seconds
        self.was_given_up = False
        if began >= self.trial_at:
            self._passed_trial(seconds)
        self.measured(seconds, in_flight, now)
        if began > self.heard_at:
            self.heard_at = began

    def given_up(self, seconds: float, in_flight: int, now: float) -> None:
        """A call was interrupted: it would have taken longer than that, and nobody knows by how much."""
        self.measured(seconds, in_flight, now)
        if seconds > self.peers.typical > 0.0:
            self.was_given_up = self.is_troubled = True

    def raised(self, seconds: float, in_flight: int, now: float) -> None:
        """A call has ended with an error that is an answer. To be quick with that is nothing to be preferred for."""
        latency = self.latency
        if latency is None or seconds >= latency:
            self.answered(seconds, in_flight, now)
        else:
            self.heard_at = max(self.heard_at, now - seconds)

    def succeeded(self, began: float) -> None:
        """A call was good; one that began before the failure says nothing about what came after it."""
        if self.charged_at is not None and began >= self.charged_at:
            self.charged_at = None

    def kept_alive(self, began: float) -> None:
        """A keepalive passed."""
        if self.charged_at is not None and began >= self.charged_at + self.pause:
            self._clear()

    def _clear(self) -> None:
        if self.charged_at is not None:
            self.charged_at = None
            self._is_doubtful = True

    def proven(self) -> None:
        """Many calls in a row were good."""
        self.pause = FIRST_PAUSE
        self._is_doubtful = False

    # -- the cost of a call --------------------------------------------------------------------------------------------

    @property
    def next_trial(self) -> float:
        """When it is to be tried, if no call goes there before. Who is as good as most is not passed over: later."""
        if self.charged_at is not None or (self._latency is not None and self._latency <= self.peers.typical):
            return self.tried_at + TRIAL
        return self.tried_at + self.patience

    def weigh(self, in_flight: int, now: float) -> None:
        """Work out the key."""
        self.take_over()
        if now >= self.tried_at + FIRST_TRIAL and now >= self.next_trial:
            self.keys[self.place] = TRIED_FIRST + self.tried_at
            self.room = int(self.calm) - self.coming
            return
        peers = self.peers
        latency = peers.typical if self._latency is None else self._latency
        news = NEWS * (latency + FLOOR)
        self._low, self._high = latency - news, latency + news
        if self.was_given_up:
            latency *= 2.0
        if latency < self.quickest:
            latency = self.quickest
        if self.oldest > self.heard_at and now - self.oldest > latency:
            latency = now - self.oldest
        if self.charged_at is not None and latency < FAILURE_COST:
            latency = FAILURE_COST
        unit = self.unit
        calm = self.calm = max(peers.level * unit, self._level)
        self.room = int(calm) - self.coming
        self.relief = 1.0 / (calm + unit)
        self.base = latency + FLOOR
        self._set_price()
        key = self.base * self.price
        if in_flight > calm:
            key *= (in_flight + unit) * self.relief
        self.keys[self.place] = key

    def overdue_at(self, now: float) -> float:
        """Return when the oldest call will have been in flight for longer than usual, or noticeably longer than now."""
        latency = self.latency
        usual = self.peers.typical if latency is None else latency
        age = now - self.oldest  # -inf if there is none
        return now + max(FINEST_LOOK, usual - age, 0.1 * age)

    def begin(self, now: float) -> None:
        """The only call in flight begins: look again when it is overdue."""
        self.oldest = now
        self.look_by(now + self.base)

    def look_by(self, due: float) -> None:
        if due < self.look_at:
            self.look_at = due
            if due < self.peers.look_at:
                self.peers.look_at = due

    @property
    def _behind(self) -> float:
        """How many rounds it stands for less than it may."""
        peers = self.peers
        return 0.0 if self.key < 0.0 else max(0.0, peers.rounds - peers.lag - self.spent)

    @property
    def next_key(self) -> float:
        """The key that counts for the next choice: what stands for less than it may is put right before."""
        behind = self._behind
        return self.key * (self._price_of(self.spent + behind) / self.price) if behind else self.key

    def is_behind(self) -> bool:
        """Say whether it stood for less than it may; then that is put right."""
        behind = self._behind
        if not behind:
            return False
        self.spent += behind
        before = self.price
        self._set_price()
        self.keys[self.place] *= self.price / before
        return True

    def _set_price(self) -> None:
        self.price = self._price_of(self.spent)

    def _price_of(self, spent: float) -> float:
        return exp(min(max(STEP * (spent - self.peers.start), -STEEPEST), STEEPEST))

    def chosen(self, in_flight: int, now: float) -> None:
        """A call goes there, where so many are in flight with it."""
        self.tried_at = now
        self._is_trial = self.key < 0.0
        self.charge()
        self.weigh(in_flight, now)

    def charge(self) -> None:
        """Count a call."""
        peers = self.peers
        rounds, lag, spent = peers.rounds, peers.lag, self.spent
        if spent < rounds - lag:
            spent = rounds - lag
        elif spent > rounds + lag:
            if peers.is_even or self._is_trial:
                spent = rounds + lag
            else:  # while some get no calls, the others are ahead of the mean, but not of each other
                rounds = spent - lag
        self.spent = spent + self.step
        peers.rounds = rounds + peers.turn
        self._set_price()

    def called(self, now: float) -> None:
        """There was a connection for that call."""
        self.tried_at = self.called_at = now
        if self._is_trial:
            self._is_trial = False
            self.is_troubled = True
            self.trial_at = now - INSTANT
            self.patience = min(2.0 * self.patience, TRIAL)

    def not_called(self) -> None:
        """There was none: if it was to be tried, it is to be tried still."""
        self._is_trial = False
        self.tried_at = self.called_at

    def missed(self, now: float) -> None:
        """The connection for the last call was dead: if that was to try it, it is to be tried by the next."""
        if self.trial_at < inf:
            self.trial_at = inf
            self.tried_at = self.called_at = now - TRIAL


KEY = attrgetter("key")


def least(loads: Sequence[Load]) -> Load:
    """Return the load with the least key.

    This is one pass at the speed of C. How far an endpoint is behind with its share changes with every call that goes
    elsewhere; so that is looked at when one would be chosen for it, and then of all, or it would take a pass for each.
    """
    load = min(loads, key=KEY)
    if not load.is_behind():
        return load
    for each in loads:
        each.is_behind()
    return min(loads, key=KEY)
