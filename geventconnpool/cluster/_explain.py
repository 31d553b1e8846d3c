"""How endpoints stand, in words: for the errors of gets, and why one would be chosen now and another not. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite

from geventconnpool import events
from geventconnpool._check import show
from geventconnpool._slots import Slots
from geventconnpool.cluster._load import FAILURE_COST, Load
from geventconnpool.cluster._members import Member, Members

REASONS: dict[events.Reason, str] = {
    "consecutive_failures": "too many {kind} in a row failed",
    "failure_percentage": "far more of its {kind} failed than of those to the others",
}


def describe(member: Member, now: float) -> str:
    """Return how an endpoint stands, for a message that lists several."""
    text = f"{member.endpoint} {member.state}, in use {member.in_flight}"
    if member.last_error is not None:
        text += f", last failure {show(member.last_error)}"
    if isfinite(member.until) and member.state == "ejected":
        return f"{text}, next probe in {max(0.0, member.until - now):.1f} s"
    if member.state == "active" and member.pool.failures and not member.pool.open:
        return f"{text}, {_next_connect(member.pool, now)}"
    return text


def _next_connect(pool: Slots, now: float) -> str:
    return "connecting now" if pool.connecting else f"next connect in {max(0.0, pool.retry_at - now):.1f} s"


def explain(members: Members, now: float) -> Iterator[events.Explanation]:
    """Yield why each endpoint would, or would not, be chosen now: who is eligible first, best first."""
    ranking = members.ranking(now)
    has_next = members.is_ranked
    for member in ranking:
        load, is_idle = member.load, bool(member.pool.idle)
        verdict: events.Verdict = ("next" if has_next else "eligible") if is_idle else "busy"
        has_next = has_next and not is_idle
        cost = load.cost if members.has_costs and load.key > 0.0 else None
        why = _costly(member, cost, now) if members.has_costs else _plain(member)
        yield events.Explanation(member.endpoint, verdict, "; ".join([*why, *_limits(member, now)]), cost)
    told = set(ranking)
    for member in members:
        if member not in told:
            yield _not_eligible(member, ranking, now)


def _plain(member: Member) -> Iterator[str]:
    """Yield what a balancer other than ours may go by."""
    yield from _speed(member.load)
    yield f"{member.in_flight} in flight, weight {member.weight:.3g}"


def _costly(member: Member, cost: float | None, now: float) -> Iterator[str]:
    """Yield what the cost is made of."""
    load = member.load
    if cost is not None:
        yield f"a call counts as {_time(cost)}"
    yield from _speed(load)
    yield from _crowd(load)
    yield from _trouble(load, now)
    ahead = (load.spent - load.peers.rounds) * load.unit
    if abs(ahead) >= 1.0:
        yield f"{abs(ahead):.1f} calls {'ahead of' if ahead > 0.0 else 'behind'} its share"


def _limits(member: Member, now: float) -> Iterator[str]:
    if not member.pool.idle:
        yield f"no connection is idle: {_occupied(member.pool, now)}"
    if member.is_slow(now):
        share = member.weight / member.full_weight
        yield f"slow start: {share:.0%} of its weight, all of it in {_time(member.slow_until - now)}"
    if member.is_spared:
        yield "it would be ejected, but no more of them may be (max_ejection_percent)"


def _occupied(pool: Slots, now: float) -> str:
    text = f"{pool.in_use} of {pool.size} in use, {pool.connecting} connecting"
    if not pool.failures:
        return text
    return f"{text}, connects failed in a row: {pool.failures}, {_next_connect(pool, now)}"


def _speed(load: Load) -> Iterator[str]:
    if load.latency is not None:
        yield f"calls take {_time(load.latency)}"
    elif load.peers.typical:
        yield f"no call has ended yet, so they are taken for the typical {_time(load.peers.typical)}"
    else:
        yield "no call has ended yet"


def _crowd(load: Load) -> Iterator[str]:
    text = f"{load.in_flight} in flight"
    if load.coming:
        text += f", {load.coming} to come"
    yield f"{text}, where {load.calm:.1f} is usual" if load.in_flight + load.coming > load.calm else text


def _trouble(load: Load, now: float) -> Iterator[str]:
    """Yield what makes it dearer than its latency."""
    if load.key < 0.0:
        yield f"to be tried, whatever that costs: no call for {_time(now - load.tried_at)}"
    if load.charged_at is not None:
        left = load.charged_at + load.pause - now
        until = (
            f"until a good call or a good keepalive{f' that begins in {_time(left)} or later' if left > 0.0 else ''}"
        )
        yield f"the last call failed {_time(now - load.charged_at)} ago: counts as {_time(FAILURE_COST)} {until}"
    if load.was_given_up:
        yield "the last call was given up: counts twice"
    if load.heard_at < load.oldest < inf and now - load.oldest > (load.latency or load.peers.typical):
        yield f"a call has not returned for {_time(now - load.oldest)}"


def _not_eligible(member: Member, ranking: Sequence[Member], now: float) -> events.Explanation:
    since = f"for {_time(now - member.since)}"
    if member.state == "draining":
        left = f"{member.in_flight} in flight may finish within {_time(max(0.0, member.until - now))}"
        return events.Explanation(member.endpoint, "draining", f"{since}: it left DNS, or the subset; {left}", None)
    if member.state == "ejected":
        return events.Explanation(member.endpoint, "ejected", f"{since}: {'; '.join(_ejected(member, now))}", None)
    why = (
        f"priority {member.endpoint.priority}: serves when none of priority {ranking[0].endpoint.priority} is available"
    )
    return events.Explanation(member.endpoint, "standby", f"{why}, of which {len(ranking)} are", None)


def _ejected(member: Member, now: float) -> Iterator[str]:
    ejection = member.ejection
    assert ejection is not None
    yield REASONS[ejection.reason].format(kind=ejection.kind)
    if member.last_error is not None:
        yield f"last failure {show(member.last_error)}"
    if member.failed_probes:
        yield f"probes failed: {member.failed_probes}"
    yield "being probed now" if member.is_probing else f"next probe in {_time(max(0.0, member.until - now))}"


def _time(seconds: float) -> str:
    """Return a time as one says it: with a unit, and not more digits than mean something."""
    if seconds < 0.0995:
        return f"{seconds * 1000.0:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
