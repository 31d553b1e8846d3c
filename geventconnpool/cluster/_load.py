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
its last, then after twice as long each time, up to ``TRIAL``. If that one is quick, what was known before is forgotten.
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
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log
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
STEP, EVEN, WEIGHTED = 0.04, 0.1, 0.5
LEAST_UNIT = 0.01  # a call adds no more than 100 rounds: who had one serves again if all who weigh more hang


class Peers:
    """What the loads of one cluster have in common, and are compared by."""

    __slots__ = ("is_even", "lag", "level", "rounds", "turn", "typical", "weight")

    def __init__(self) -> None:
        self.rounds = 0.0  # played so far; in one, each of equal endpoints has one call
        self.turn = 1.0  # how much of a round one call is
        self.weight = 1.0  # the mean
        self.is_even = True
        self.lag = EVEN / STEP  # how many rounds an endpoint may be ahead of the others, or behind
        self.typical = 0.0  # seconds: the median of the latencies, to be assumed where none is known
        self.level = 0.0  # the mean

    def measure(self, loads: Sequence[Load], weights: Sequence[float], *, is_even: bool) -> None:
        """Take note of who is available now, with the full weight of each; say whether all now have the same."""
        number = len(weights)
        self.turn = 1.0 / number
        self.weight = sum(weights) / number
        self.is_even = is_even
        self.lag = (EVEN if is_even else WEIGHTED) / STEP
        if is_even:  # or who is chosen first after a change would not be as far ahead as the others, for many calls
            self.rounds = max(self.rounds, max(load.spent for load in loads) - self.lag - 1.0)
        latencies = sorted(load.latency for load in loads if load.latency is not None)
        # The lower one of two: of two endpoints, the slow one is not typical.
        self.typical = latencies[(len(latencies) - 1) // 2] if latencies else 0.0
        self.level = sum(load.level for load in loads) / number


class Load:
    """How one endpoint fares. ``key`` is what is compared: the logarithm of the cost, and how far it is ahead."""

    __slots__ = (
        "_at",
        "_is_doubtful",
        "_is_trial",
        "_samples",
        "_surprise",
        "called_at",
        "charged_at",
        "heard_at",
        "key",
        "latency",
        "level",
        "member",
        "oldest",
        "patience",
        "pause",
        "peers",
        "quickest",
        "spent",
        "trial_at",
        "tried_at",
        "unit",
    )

    def __init__(self, peers: Peers, now: float, member: Any = None) -> None:
        self.peers = peers
        self.member = member  # whose load it is
        self.latency: float | None = None
        self.level = 0.0
        self.unit = 1.0
        self.spent = peers.rounds
        self.key = 0.0
        self.tried_at = now  # when it was chosen last
        self.called_at = now  # when it was chosen last, and there was a connection for the call
        self._is_trial = False  # it was chosen because it was to be tried
        self.quickest = 0.0  # seconds: what it is taken for if it is quicker
        self.trial_at = inf  # when a call went there to find out how it fares, that has not returned yet
        self.patience = FIRST_TRIAL  # seconds after which one does
        self.heard_at = -inf  # when the call began that began last of all that have returned
        self.oldest = inf  # when the call in flight began that began first after that; as of the last look
        self.charged_at: float | None = None  # when the last call failed, if nothing has cleared that
        self.pause = FIRST_PAUSE
        self._at = now  # of the last sample
        self._samples = 0.0  # that ``latency`` rests on
        self._surprise = 0.0
        self._is_doubtful = False  # cleared by a keepalive, and not proven since

    def measured(self, seconds: float, level: int, now: float) -> None:
        """A call took so long, or was interrupted after so many seconds, with so many others in flight at its end."""
        silence = now - self._at
        self._at = now
        if self.latency is None:
            silence = 0.0  # what is assumed is news
            self._assume()
        if seconds >= self._surprise:
            self._believe(seconds, 1.0)
            self.level = float(level)
            return
        fade = exp(-silence / DECAY)
        samples = self._samples = self._samples * fade + 1.0
        share = max(1.0 / samples, 1.0 - fade)
        latency = self.latency or 0.0
        self.latency = latency = latency + (seconds - latency) * share
        self.level += (level - self.level) * share
        self._surprise = max(SURPRISE * seconds + HICCUP, latency + (self._surprise - latency) * fade)

    def _assume(self) -> None:
        """Begin with what is typical, if anything is: one quick call makes nobody the quickest."""
        if self.peers.typical:
            self._believe(self.peers.typical, PRIOR)
        else:
            self._surprise = 0.0

    def _believe(self, latency: float, samples: float) -> None:
        """Take a latency for what it is from now on, as if it rested on so many samples."""
        if self._samples >= STEADY:
            self.patience = FIRST_TRIAL
        self.latency = latency
        self._samples = samples
        self._surprise = SURPRISE * latency + HICCUP

    def _passed_trial(self, seconds: float) -> None:
        """A call that was to find out how it fares now has returned: if it was quick, what was before is forgotten."""
        self.trial_at = inf
        latency = max(seconds, self.peers.typical)
        if self.latency is not None and latency < self.latency:
            self._believe(latency, PRIOR)

    def renew(self, now: float) -> None:
        """What was is no guide to what will be: it counts as the typical one, and has nothing to catch up with."""
        self.tried_at = self.called_at = now
        self.heard_at = now  # calls that began before are the past, and so is their age
        self.patience = FIRST_TRIAL
        self.latency = None
        self.level = 0.0
        self.spent = self.peers.rounds
        self._clear()

    # -- the cost of failures ------------------------------------------------------------------------------------------

    def failed(self, now: float, longest_pause: float) -> None:
        """A call failed."""
        if self._is_doubtful:
            self._is_doubtful = False
            self.pause = min(2.0 * self.pause, longest_pause)
        self.charged_at = now

    def answered(self, seconds: float, in_flight: int, now: float) -> None:
        """A call has returned after so many seconds, and not because its caller lost patience."""
        began = now - seconds
        if began >= self.trial_at:
            self._passed_trial(seconds)
        self.measured(seconds, in_flight, now)
        if began > self.heard_at:
            self.heard_at = began

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
        """When it is to be tried, if no call goes there before."""
        return self.tried_at + (self.patience if self.charged_at is None else TRIAL)

    def weigh(self, in_flight: int, now: float) -> None:
        """Work out the key."""
        if now >= self.tried_at + FIRST_TRIAL and now >= self.next_trial:
            self.key = TRIED_FIRST + self.tried_at
            return
        latency = self.peers.typical if self.latency is None else self.latency
        if latency < self.quickest:
            latency = self.quickest
        if self.oldest > self.heard_at and now - self.oldest > latency:
            latency = now - self.oldest
        if self.charged_at is not None and latency < FAILURE_COST:
            latency = FAILURE_COST
        unit = self.unit
        level = self.peers.level * unit
        if level < self.level:
            level = self.level
        latency += FLOOR
        if in_flight > level:
            latency *= (in_flight + unit) / (level + unit)
        self.key = log(latency) + STEP * self.spent

    def is_behind(self) -> bool:
        """Say whether it stood for less than it may; then that is put right."""
        peers = self.peers
        behind = peers.rounds - peers.lag - self.spent
        if behind <= 0.0 or self.key < 0.5 * TRIED_FIRST:
            return False
        self.spent += behind
        self.key += STEP * behind
        return True

    def chosen(self, in_flight: int, now: float) -> None:
        """A call goes there, where so many are in flight with it."""
        self.tried_at = now
        self._is_trial = self.key < 0.5 * TRIED_FIRST
        peers = self.peers
        rounds, lag, spent = peers.rounds, peers.lag, self.spent
        if spent < rounds - lag:
            spent = rounds - lag
        elif spent > rounds + lag:
            if peers.is_even or self._is_trial:
                spent = rounds + lag
            else:  # while some get no calls, the others are ahead of the mean, but not of each other
                rounds = spent - lag
        self.spent = spent + 1.0 / self.unit
        peers.rounds = rounds + peers.turn
        self.weigh(in_flight, now)

    def called(self, now: float) -> None:
        """There was a connection for that call."""
        self.tried_at = self.called_at = now
        if self._is_trial:
            self._is_trial = False
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


_KEY = attrgetter("key")


def least(loads: Sequence[Load]) -> Load:
    """Return the load with the least key.

    This is one pass at the speed of C. How far an endpoint is behind with its share changes with every call that goes
    elsewhere; so that is looked at when one would be chosen for it, and then of all, or it would take a pass for each.
    """
    load = min(loads, key=_KEY)
    if not load.is_behind():
        return load
    for each in loads:
        each.is_behind()
    return min(loads, key=_KEY)
