"""The state of one pool, in virtual time."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from geventconnpool import _queue, events
from geventconnpool._queue import (
    CAUSES,
    CHECKING,
    CLOSING,
    CONNECTING,
    DRAINED,
    EJECTED,
    ERROR,
    IDLE,
    IN_USE,
    INTERRUPTED,
    KEPT,
    NOT_REUSABLE,
    USER,
    Gate,
    Queue,
    Waiter,
)
from geventconnpool._slots import Slots
from geventconnpool.errors import PoolClosed
from tests.virtual import Connection, Dice, Shell, assert_conserved, states


def make(size=1, *, queue=None, gate=None, dice=1.0, **options):
    """Return a pool that has not begun yet; jitter is at its high end unless ``dice`` says otherwise."""
    gate = gate or Gate(options.get("max_connecting", 4))
    return Slots(size, name="pool", queue=queue or Queue(), gate=gate, rng=Dice(dice), **options)


def filled(size=1, *, now=0.0, **options):
    """Return a pool whose connections are all open and idle, and its shell."""
    pool = make(size, **options)
    shell = Shell(pool.queue, now)
    pool.plan(now)
    shell.act()
    shell.settle_down()
    return pool, shell


def started(size=1, **options):
    """Return a pool whose first connects are under way, and its shell."""
    pool = make(size, **options)
    shell = Shell(pool.queue)
    pool.plan(0.0)
    shell.act()
    return pool, shell


def ask(pool, shell):
    waiter = Waiter(shell.now, only=pool)
    pool.ask(waiter, shell.now)
    return waiter


def deeds(pool):
    return [deed for deed, _ in pool.queue.todo]


def closed():
    return PoolClosed("pool is closed")


# -- opening -----------------------------------------------------------------------------------------------------------


def test_a_new_pool_opens_all_its_connections():
    pool = make(3)

    pool.plan(0.0)

    assert deeds(pool) == ["open", "open", "open"]
    assert states(pool) == {"connecting": 3}


def test_no_more_than_max_connecting_are_opened_at_a_time():
    pool, shell = started(10, max_connecting=4)
    shell.open(shell.opening[0])

    assert states(pool) == {"connecting": 4, "idle": 1}


def test_a_connection_that_is_open_is_idle_and_known_by_its_identity():
    pool, shell = started(1)
    slot = shell.opening[0]
    connection = shell.open(slot)

    assert (slot.state, slot.connection, slot.seen) == (IDLE, connection, 0.0)
    assert pool.queue.open == {id(connection): slot}
    assert (pool.opened_total, pool.open) == (1, 1)


def test_an_open_connection_is_news_with_the_time_it_took():
    pool, shell = started(1)

    pool.opened(shell.opening[0], Connection(), 0.25)

    assert list(pool.queue.news) == [events.ConnectionOpened("pool", None, 0.25)]


def fail_in_a_row(pool, shell, times):
    """Fail connect after connect as soon as each is tried; return the seconds between failure and next attempt."""
    waits = []
    for _ in range(times):
        (slot,) = shell.opening
        shell.refuse(slot)
        failed_at = shell.now
        assert pool.alarm < inf
        while not shell.opening:
            shell.run_to(min(at for at, _ in shell.alarms))
        waits.append(round(shell.now - failed_at, 6))
    return waits


def test_a_failed_connect_is_tried_again_after_delays_that_double_up_to_30_seconds():
    pool, shell = started(1)

    assert fail_in_a_row(pool, shell, 11) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    assert (pool.failures, pool.open_errors) == (11, 11)


def test_while_somebody_waits_the_delays_end_at_5_seconds():
    pool, shell = started(1)
    ask(pool, shell)
    shell.act()

    assert fail_in_a_row(pool, shell, 8) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_jitter_takes_up_to_half_of_a_delay():
    pool, shell = started(1, dice=0.0)

    assert fail_in_a_row(pool, shell, 4) == [0.05, 0.1, 0.2, 0.4]


def test_who_comes_to_wait_makes_the_next_attempt_sooner():
    pool, shell = started(1)
    fail_in_a_row(pool, shell, 10)
    shell.refuse(shell.opening[0])
    failed_at = shell.now
    alone = pool.alarm - failed_at
    ask(pool, shell)

    assert (alone, pool.alarm - failed_at) == (30.0, 5.0)
    assert deeds(pool) == ["alarm"]


def test_after_a_long_pause_who_comes_to_wait_starts_the_attempt_at_once():
    pool, shell = started(1)
    fail_in_a_row(pool, shell, 10)
    shell.refuse(shell.opening[0])
    shell.run_to(shell.now + 6.0)
    ask(pool, shell)

    assert deeds(pool) == ["open"]


def test_half_a_day_of_failures_does_not_overflow():
    pool, shell = started(1)
    pool.failures = pool._series = 5000
    shell.refuse(shell.opening[0])

    assert pool.alarm == 30.0


def test_while_connects_fail_one_is_tried_at_a_time():
    pool, shell = started(10, max_connecting=4)
    shell.now = 1.0
    for slot in list(shell.opening):
        shell.refuse(slot)
    assert shell.opening == []
    shell.run_to(50.0)

    assert states(pool) == {"connecting": 1}


def test_attempts_that_were_made_side_by_side_count_once_for_the_delay():
    pool, shell = started(4, max_connecting=4)
    for number, slot in enumerate(list(shell.opening)):
        shell.now = 1.0 + number / 8
        shell.refuse(slot)

    assert pool.failures == 4
    assert pool.alarm == 1.375 + 0.1


def test_after_the_first_success_all_are_opened_at_full_speed():
    pool, shell = started(10, max_connecting=4)
    shell.now = 1.0
    for slot in list(shell.opening):
        shell.refuse(slot)
    shell.run_to(2.0)
    shell.open(shell.opening[0])

    assert states(pool) == {"idle": 1, "connecting": 4}
    assert pool.failures == 0


def test_a_failed_connect_is_news_with_the_number_of_failures_in_a_row():
    pool, shell = started(1)
    error = OSError("refused")
    pool.connect_failed(shell.opening[0], error, 0.0)

    assert list(pool.queue.news) == [events.ConnectFailed("pool", None, error, 1)]
    assert pool.last_error is error


# -- borrowing and returning -------------------------------------------------------------------------------------------


def test_the_connection_that_has_been_idle_for_longest_is_lent_first():
    pool, shell = filled(3)
    first, second, third = pool.idle
    assert pool.take(1.0) is first
    assert pool.take(1.0) is second
    shell.end(second)
    shell.end(first)

    assert list(pool.idle) == [third, second, first]


def test_a_borrowed_connection_is_in_use_since_then():
    pool, _ = filled(2)

    slot = pool.take(7.0)

    assert slot is not None
    assert (slot.state, slot.since) == (IN_USE, 7.0)
    assert states(pool) == {"idle": 1, "in use": 1}


def test_an_exhausted_pool_has_nothing_to_take():
    pool, _ = filled(1)
    pool.take(0.0)

    assert pool.take(0.0) is None


def test_a_good_return_rests_and_needs_no_order():
    pool, _ = filled(1)
    slot = pool.take(1.0)

    assert pool.returned(slot, 3.0) is True
    assert deeds(pool) == []
    assert (slot.state, slot.seen, list(pool.idle)) == (IDLE, 3.0, [slot])


def test_there_is_more_to_a_return_while_somebody_waits():
    pool, shell = filled(1)
    slot = pool.take(1.0)
    ask(pool, shell)

    assert pool.returned(slot, 3.0) is False
    assert slot.state is IN_USE


def test_there_is_more_to_the_return_of_a_doomed_connection():
    pool, _ = filled(1)
    slot = pool.take(1.0)
    slot.doomed = USER

    assert pool.returned(slot, 3.0) is False
    assert slot.state is IN_USE


def test_a_connection_that_comes_back_goes_to_the_oldest_waiter():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    first, second = ask(pool, shell), ask(pool, shell)
    pool.ended(slot, None, None, 4.0)

    assert (first.slot, second.slot) == (slot, None)
    assert list(pool.queue.todo) == [("wake", first)]
    assert (slot.state, slot.since, slot.seen) == (IN_USE, 4.0, 4.0)


def test_a_waiter_that_gave_up_is_passed_by():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    first, second = ask(pool, shell), ask(pool, shell)
    pool.queue.withdraw(first)
    pool.queue.withdraw(first)
    shell.end(slot)

    assert (first.slot, second.slot) == (None, slot)


def test_who_asks_while_one_is_idle_gets_it_at_once():
    pool, shell = filled(2)
    slot = pool.idle[0]
    waiter = ask(pool, shell)

    assert waiter.slot is slot
    assert list(pool.queue.todo) == [("wake", waiter)]
    assert list(pool.queue.waiting) == []


def test_who_waits_gets_what_is_opened():
    pool, shell = started(1)
    waiter = ask(pool, shell)
    shell.open(shell.opening[0])

    assert waiter.slot is not None
    assert states(pool) == {"in use": 1}
    assert shell.woken == [waiter]


def test_a_connection_handed_to_one_who_was_interrupted_is_passed_on():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    first, second = ask(pool, shell), ask(pool, shell)
    pool.ended(slot, None, None, 1.0)
    pool.pass_on(slot, 1.5)

    assert second.slot is slot
    assert [order for order in pool.queue.todo if order[0] == "wake"] == [("wake", first), ("wake", second)]


def test_a_doomed_connection_is_not_passed_on():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    waiter = ask(pool, shell)
    shell.end(slot)
    pool.suspend(DRAINED)
    pool.pass_on(waiter.slot, 1.5)

    assert (slot.state, deeds(pool)) == (CLOSING, ["close"])


@pytest.mark.parametrize("verdict", [None, KEPT])
def test_a_connection_goes_back_after_a_good_call_and_after_an_error_of_the_application(verdict):
    pool, _shell = filled(1)
    slot = pool.take(0.0)
    pool.ended(slot, verdict, None, 1.0)

    assert (slot.state, slot.seen, deeds(pool)) == (IDLE, 1.0, [])
    assert sum(pool.discarded.values()) == 0


@pytest.mark.parametrize("verdict", [ERROR, INTERRUPTED, NOT_REUSABLE, USER])
def test_a_connection_that_may_be_dirty_is_aborted_and_counted_by_cause(verdict):
    pool, _shell = filled(1)
    slot = pool.take(0.0)
    pool.ended(slot, verdict, None, 1.0)

    assert list(pool.queue.todo) == [("abort", slot)]
    assert (slot.state, pool.closing, pool.open) == (CLOSING, 1, 0)
    assert pool.discarded == dict.fromkeys(CAUSES, 0) | {verdict: 1}


@pytest.mark.parametrize(("verdict", "cause"), [(ERROR, "error"), (USER, "user"), (None, None)])
@pytest.mark.parametrize("mark", [DRAINED, EJECTED, USER])
def test_the_news_of_a_close_names_the_cause_that_is_counted(mark, verdict, cause):
    pool, shell = filled(1)
    slot = pool.take(0.0)
    slot.doomed = mark
    shell.end(slot, verdict)
    shell.close(slot)
    cause = cause or (USER if mark is USER else None)

    assert shell.news[-1] == events.ConnectionClosed("pool", None, cause)
    assert {cause for cause, count in pool.discarded.items() if count} == {cause} - {None}


def test_a_connection_that_may_be_dirty_goes_to_nobody_who_waits():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    waiter = ask(pool, shell)
    shell.end(slot, INTERRUPTED)

    assert waiter.slot is None
    assert shell.closing == [slot]


def test_a_connection_discarded_inside_its_block_is_aborted_at_its_end():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    slot.doomed = USER
    shell.end(slot)

    assert shell.closing == [slot]
    assert shell.polite == []
    assert pool.discarded["user"] == 1


def test_a_slot_counts_until_its_connection_is_closed_and_is_filled_again_then():
    pool, shell = filled(1)
    shell.end(pool.take(0.0), ERROR)
    before = states(pool)
    shell.close(shell.closing[0])

    assert (before, states(pool)) == ({"closing": 1}, {"connecting": 1})
    assert (pool.closed_total, pool.queue.open) == (1, {})


# -- keepalive ---------------------------------------------------------------------------------------------------------


def test_without_keepalive_there_is_nothing_to_wake_up_for():
    pool, shell = filled(3)

    assert (pool.alarm, shell.alarms) == (inf, [])


@pytest.mark.parametrize(("dice", "due"), [(1.0, 110.0), (0.5, 109.5), (0.0, 109.0)])
def test_an_idle_connection_is_kept_alive_when_its_time_less_up_to_a_tenth_has_passed(dice, due):
    pool, shell = filled(1, now=100.0, keepalive=10.0, dice=dice)
    shell.run_to(due - 0.001)
    before = states(pool)
    shell.run_to(due)

    assert (before, states(pool)) == ({"idle": 1}, {"checking": 1})


def test_a_connection_that_is_used_is_not_kept_alive():
    pool, shell = filled(1, keepalive=10.0)
    pool.take(0.0)
    shell.run_to(100.0)

    assert shell.checking == []


def test_a_return_is_a_sign_of_life():
    pool, shell = filled(1, keepalive=10.0)
    slot = pool.take(0.0)
    shell.run_to(6.0)
    shell.end(slot)
    shell.run_to(15.9)
    before = list(shell.checking)
    shell.run_to(16.0)

    assert (before, shell.checking) == ([], [slot])


@pytest.mark.parametrize(("size", "at_once"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2), (10, 2), (40, 10)])
def test_a_quarter_of_the_pool_is_kept_alive_at_once_and_at_least_one(size, at_once):
    _, shell = filled(size, keepalive=10.0)
    shell.run_to(10.0)

    assert len(shell.checking) == at_once


def test_the_next_is_kept_alive_when_one_is_done():
    _pool, shell = filled(4, keepalive=10.0)
    shell.run_to(10.0)
    first = shell.checking[0]
    shell.answer(first)

    assert len(shell.checking) == 1
    assert shell.checking[0] is not first
    assert (first.state, first.alive_at) == (IDLE, 10.0)


def test_a_connection_that_was_kept_alive_goes_to_who_came_to_wait_meanwhile():
    pool, shell = filled(1, keepalive=10.0)
    shell.run_to(10.0)
    waiter = ask(pool, shell)
    shell.answer(shell.checking[0])

    assert waiter.slot is not None
    assert states(pool) == {"in use": 1}


def test_a_connection_whose_keepalive_fails_is_aborted_counted_and_replaced():
    pool, shell = filled(1, keepalive=10.0)
    shell.run_to(10.0)
    slot = shell.checking[0]
    error = OSError("hung up")
    pool.keepalive_failed(slot, error, 10.0)

    assert deeds(pool) == ["abort"]
    assert pool.discarded["keepalive"] == 1
    shell.checking.clear()
    shell.act()
    shell.close(slot)
    assert shell.news[-2:] == [
        events.KeepaliveFailed("pool", None, error),
        events.ConnectionClosed("pool", None, "keepalive"),
    ]
    assert states(pool) == {"connecting": 1}


def test_a_connection_that_is_passed_on_unused_is_as_old_as_before():
    pool, shell = filled(2, keepalive=10.0)
    old, young = pool.take(0.0), pool.take(0.0)
    shell.run_to(1.0)
    shell.end(old)
    shell.run_to(9.0)
    shell.end(young)
    assert pool.take(9.0) is old
    pool.pass_on(old, 9.0)
    shell.run_to(11.0)

    assert shell.checking == [old]


# -- suspended, resumed, shut ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mark", "deed"), [(DRAINED, "close"), (EJECTED, "abort")])
def test_a_suspended_pool_closes_what_is_idle_and_cancels_what_connects(mark, deed):
    pool, shell = started(3)
    idle, connecting, used = shell.opening
    shell.open(idle)
    shell.open(used)
    assert pool.take(0.0) is idle
    pool.suspend(mark)

    assert list(pool.queue.todo) == [(deed, used), ("cancel", connecting)]
    assert (idle.state, idle.doomed, connecting.state) == (IN_USE, mark, CONNECTING)


def test_a_suspended_pool_opens_and_keeps_nothing():
    pool, shell = filled(2, keepalive=10.0)
    slot = pool.take(0.0)
    pool.suspend(DRAINED)
    shell.act()
    shell.settle_down()
    shell.run_to(100.0)
    shell.end(slot)
    shell.settle_down()

    assert states(pool) == {}
    assert pool.open == 0


def test_a_cancelled_connect_that_fails_counts_for_nothing():
    pool, shell = started(1)
    pool.suspend(DRAINED)
    shell.act()
    shell.refuse(shell.opening[0])

    assert (pool.failures, pool.open_errors, pool.last_error) == (0, 0, None)
    assert states(pool) == {}


def test_a_cancelled_connect_that_succeeds_all_the_same_is_closed():
    pool, shell = started(1)
    (slot,) = shell.opening
    pool.suspend(DRAINED)
    shell.act()
    shell.open(slot)

    assert shell.closing == shell.polite == [slot]


def test_a_resumed_pool_fills_up_and_keeps_what_was_only_drained():
    pool, shell = filled(3)
    slot = pool.take(0.0)
    pool.suspend(DRAINED)
    shell.act()
    shell.settle_down()
    pool.resume(2.0)
    shell.act()
    shell.end(slot)

    assert states(pool) == {"idle": 1, "connecting": 2}


def test_a_resumed_pool_does_not_keep_what_was_opened_before_an_ejection():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    pool.suspend(EJECTED)
    pool.resume(2.0)
    shell.end(slot)

    assert shell.closing == [slot]


def test_a_connect_cancelled_by_draining_stays_cancelled_when_the_pool_resumes():
    pool, shell = started(1)
    (slot,) = shell.opening
    pool.suspend(DRAINED)
    pool.resume(2.0)
    shell.act()
    shell.refuse(slot)

    assert pool.failures == 0
    assert len(shell.opening) == 1


def test_a_running_pool_is_not_resumed():
    pool, _ = filled(1)
    pool.resume(1.0)

    assert deeds(pool) == []


def test_a_probe_opens_one_connection_of_a_suspended_pool():
    pool, shell = filled(3)
    pool.suspend(EJECTED)
    shell.act()
    shell.settle_down()
    pool.probe(2.0)
    shell.act()

    assert states(pool) == {"connecting": 1}
    assert shell.opening[0].probe


def test_a_probe_waits_for_no_backoff():
    pool, shell = started(1)
    fail_in_a_row(pool, shell, 10)
    shell.refuse(shell.opening[0])
    pool.suspend(EJECTED)
    pool.probe(shell.now)

    assert deeds(pool)[-1] == "open"


def test_a_probe_that_fails_is_one_more_failure_in_a_row():
    pool, shell = started(1)
    fail_in_a_row(pool, shell, 10)
    shell.refuse(shell.opening[0])
    pool.suspend(EJECTED)
    pool.probe(shell.now)
    shell.act()
    before = pool.failures
    shell.refuse(shell.opening[0])

    assert pool.failures == before + 1


def test_a_probe_that_waits_for_a_slot_is_given_up_when_the_pool_is_suspended_again():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    pool.suspend(EJECTED)
    pool.probe(2.0)
    pool.suspend(DRAINED)
    shell.end(slot)
    shell.close(slot)

    assert states(pool) == {}


def test_a_running_pool_is_not_probed():
    pool, _ = filled(1)
    pool.probe(1.0)

    assert deeds(pool) == []


def test_a_probe_waits_until_a_slot_is_free():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    pool.suspend(EJECTED)
    pool.probe(2.0)
    assert deeds(pool) == []
    shell.end(slot)
    shell.close(slot)

    assert states(pool) == {"connecting": 1}


@pytest.mark.parametrize(("has_keepalive", "after"), [(False, {"closing": 1}), (True, {"checking": 1})])
def test_a_probe_is_kept_alive_once_if_the_pool_can_do_that(has_keepalive, after):
    pool, shell = filled(1, has_keepalive=has_keepalive)
    pool.suspend(EJECTED)
    shell.act()
    shell.settle_down()
    pool.probe(2.0)
    shell.act()
    shell.open(shell.opening[0])

    assert states(pool) == after  # with nobody to readmit it, it has no use


def test_a_shut_pool_refuses_who_waits_and_closes_what_is_not_borrowed():
    pool, shell = filled(2)
    slot, other = pool.take(0.0), pool.take(0.0)
    waiter = ask(pool, shell)
    shell.end(other, KEPT)
    second = ask(pool, shell)
    shell.act()
    pool.shut(closed)
    shell.act()

    assert waiter.slot is other
    assert isinstance(second.error, PoolClosed)
    assert states(pool) == {"in use": 2}
    shell.end(slot)
    shell.end(other, ERROR)
    assert (shell.closing, shell.polite) == ([slot, other], [slot])


def test_a_shut_pool_closes_what_connects_and_opens_nothing_more():
    pool, shell = started(2)
    first, second = shell.opening
    pool.shut(closed)
    shell.act()
    assert shell.cancelled == [first, second] or shell.cancelled == [second, first]
    shell.open(first)
    shell.refuse(second)
    shell.settle_down()
    pool.resume(1.0)
    pool.probe(1.0)
    pool.tick(1.0)

    assert (states(pool), deeds(pool)) == ({}, [])
    assert (pool.opened_total, pool.closed_total) == (1, 1)


def test_each_who_waits_is_refused_with_an_error_of_its_own():
    pool, shell = started(1)
    first, second = ask(pool, shell), ask(pool, shell)
    pool.shut(closed)

    assert first.error is not second.error
    assert [w for deed, w in pool.queue.todo if deed == "wake"] == [first, second]


def test_shutting_twice_is_shutting_once():
    pool, shell = filled(1)
    pool.shut(closed)
    shell.act()
    pool.shut(closed)

    assert deeds(pool) == []


def test_a_shut_pool_that_is_suspended_still_says_goodbye():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    pool.shut(closed)
    pool.suspend(EJECTED)
    shell.end(slot)

    assert shell.polite == [slot]


def test_what_is_cut_is_closed_under_its_user_whose_return_has_no_effect():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    pool.shut(closed)
    pool.cut()
    shell.act()
    assert (shell.closing, pool.queue.cut) == ([slot], {id(slot.connection): slot})
    shell.end(slot)

    assert shell.closing == [slot]
    assert pool.queue.cut == {}
    assert states(pool) == {"closing": 1}


def test_a_return_after_a_cut_connection_is_closed_has_no_effect_either():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    pool.shut(closed)
    pool.cut()
    shell.act()
    shell.close(slot)
    shell.end(slot, ERROR)

    assert (states(pool), pool.in_use, pool.queue.cut) == ({}, 0, {})
    assert pool.discarded["error"] == 0


def test_what_one_greenlet_borrowed_is_spared_by_its_own_cut():
    pool, _ = filled(2)
    mine, other = pool.take(0.0), pool.take(0.0)
    me = object()
    mine.owner = me
    pool.shut(closed)
    pool.cut(spare=me)

    assert (mine.state, other.state) == (IN_USE, CLOSING)


def test_connections_to_an_address_that_left_are_retired_at_their_return():
    pool, shell = started(4)
    for slot, peer in zip(list(shell.opening), ["10.0.0.1", "10.0.0.2", "10.0.0.1", None], strict=True):
        shell.open(slot, peer)
    used_gone, used_staying, idle_gone, unknown = pool.idle
    assert [pool.take(0.0), pool.take(0.0)] == [used_gone, used_staying]
    pool.endpoint = "updated"
    pool.moved(["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.3"])
    assert list(pool.queue.todo) == [("close", idle_gone)]
    shell.end(used_gone)
    shell.end(used_staying)

    assert shell.polite == [idle_gone, used_gone]
    assert list(pool.idle) == [unknown, used_staying]


def test_a_connection_to_what_never_was_an_address_of_the_endpoint_has_not_left():
    pool, shell = started(2)
    before, after = shell.opening
    shell.open(before, "127.0.0.1")  # through a proxy
    pool.moved(["10.0.0.1"], ["10.0.0.2"])
    shell.open(after, "127.0.0.1")

    assert states(pool) == {"idle": 2}


def test_a_connection_under_keepalive_to_an_address_that_left_is_retired_after_it():
    pool, shell = started(1, keepalive=10.0)
    shell.open(shell.opening[0], "10.0.0.1")
    shell.run_to(10.0)
    pool.endpoint = "updated"
    pool.moved(["10.0.0.1"], ["10.0.0.2"])
    shell.answer(shell.checking[0])

    assert states(pool) == {"closing": 1}


# -- what breaks in ----------------------------------------------------------------------------------------------------


def test_a_lease_that_the_collector_ends_inside_a_transition_is_applied_after_it():
    pool, _shell = filled(2)
    slot = pool.take(0.0)
    pool.queue.busy = True
    assert pool.returned(slot, 3.0) is False
    pool.ended(slot, None, None, 3.0)
    assert slot.state is IN_USE
    pool.queue.busy = False
    pool.plan(4.0)

    assert (slot.state, slot.seen) == (IDLE, 3.0)
    assert list(pool.queue.late) == []


def test_a_lease_that_the_collector_ends_while_a_pool_is_shut_is_closed():
    pool, shell = filled(2)
    slot = pool.take(0.0)
    shell.orders.due.append(lambda: shell.end(slot))
    pool.shut(closed)
    shell.act()

    assert states(pool) == {"closing": 2}
    assert len(shell.closing) == 2


def test_a_lease_that_the_collector_ends_while_another_is_handed_over_serves_the_next_waiter():
    pool, shell = filled(2)
    one, other = pool.take(0.0), pool.take(0.0)
    first, second = ask(pool, shell), ask(pool, shell)
    shell.orders.due.append(lambda: shell.end(other))
    shell.end(one)

    assert (first.slot, second.slot) == (one, other)
    assert shell.woken == [first, second]


def test_any_number_of_leases_may_be_ended_by_the_collector_at_once():
    pool, _ = filled(2000, max_connecting=2000)
    slots = [pool.take(0.0) for _ in range(2000)]
    pool.queue.busy = True
    for slot in slots:
        pool.ended(slot, None, None, 1.0)
    pool.queue.busy = False
    pool.plan(2.0)

    assert states(pool) == {"idle": 2000}


# -- the gate ----------------------------------------------------------------------------------------------------------


def several(count, size=1, *, limit=1, **options):
    """Return pools that share a queue and a gate, and their shell; the first to be named was first at the gate."""
    queue, gate = Queue(), Gate(limit)
    pools = [make(size, queue=queue, gate=gate, **options) for _ in range(count)]
    shell = Shell(queue)
    for pool in pools:
        pool.plan(0.0)
    shell.act()
    return pools, shell


def test_no_more_connects_than_the_gate_allows_are_under_way():
    pools, _ = several(5, 4, limit=6)

    assert [pool.connecting for pool in pools] == [4, 2, 0, 0, 0]


def test_who_found_the_gate_shut_goes_on_in_order():
    pools, shell = several(4)
    order = []
    while shell.opening:
        (slot,) = shell.opening
        order.append(pools.index(slot.pool))
        shell.open(slot)

    assert order == [0, 1, 2, 3]


def test_a_failed_connect_opens_the_gate_for_the_next():
    pools, shell = several(3)
    shell.refuse(shell.opening[0])

    assert [pool.connecting for pool in pools] == [0, 1, 0]


def test_a_blocked_pool_that_has_no_use_for_its_turn_any_more_passes_it_on():
    pools, shell = several(3)
    pools[1].suspend(DRAINED)
    shell.open(shell.opening[0])

    assert [pool.connecting for pool in pools] == [0, 0, 1]


def test_a_probe_that_found_the_gate_shut_gets_its_turn():
    pools, shell = several(2)
    pools[1].suspend(EJECTED)
    pools[1].probe(0.0)
    shell.open(shell.opening[0])

    assert [slot.probe for slot in shell.opening] == [True]
    assert pools[1].connecting == 1


def test_a_pool_whose_next_attempt_is_due_while_the_gate_is_shut_does_not_spin():
    pools, shell = several(2)
    shell.refuse(shell.opening[0])  # the second pool goes through the gate, and hangs there
    shell.run_to(60.0)
    assert [pool.connecting for pool in pools] == [0, 1]
    shell.open(shell.opening[0])

    assert [pool.connecting for pool in pools] == [1, 0]


def test_a_waiter_that_wants_one_pool_is_served_by_no_other():
    (one, other), shell = several(2, limit=2)

    class Strict(Queue):
        def may_use(self, waiter, pool):
            return waiter.only is pool

    one.queue.__class__ = Strict
    waiter = ask(one, shell)
    shell.act()
    shell.open(other.queue and next(s for s in shell.opening if s.pool is other))
    assert (waiter.slot, len(other.idle)) == (None, 1)
    shell.open(shell.opening[0])

    assert waiter.slot is not None
    assert waiter.slot.pool is one


# -- everything in any order -------------------------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """One pool through everything that can happen to it, in any order, against a simple model."""

    @initialize(
        size=st.integers(1, 9), keepalive=st.sampled_from([0.0, 3.0]), limit=st.integers(1, 4), seed=st.integers(0, 3)
    )
    def begin(self, size, keepalive, limit, seed):
        queue = Queue()
        self.pool = Slots(
            size,
            name="pool",
            queue=queue,
            gate=Gate(limit),
            rng=Random(seed),
            keepalive=keepalive,
            max_connecting=limit,
            has_keepalive=seed % 2 == 0,
        )
        self.limit = limit
        self.shell = Shell(queue)
        self.queue = queue
        self.waiting = []  # as the model has it, oldest first
        self.held = []  # slots, each by one borrower
        self.handed = {}  # when a waiter got it
        self.served = 0
        self.cut = []  # slots closed under their borrowers
        self.mode = "running"
        self.pool.plan(0.0)
        self.shell.act()

    def act(self):
        """After a transition: who was woken was the oldest, and nobody is handed what somebody holds."""
        self.shell.act()
        for waiter in self.shell.woken[self.served :]:
            assert waiter is self.waiting.pop(0), "first come, first served"
            if waiter.slot is not None:
                assert waiter.slot not in self.held, "lent twice"
                self.held.append(waiter.slot)
                self.handed[waiter.slot] = self.shell.now
        self.served = len(self.shell.woken)

    def pick(self, items, number):
        return items[number % len(items)]

    @rule()
    def borrow(self):
        slot = self.pool.take(self.shell.now)
        if slot is None:
            return
        assert not self.waiting
        assert slot not in self.held, "lent twice"
        assert slot.doomed is None
        self.held.append(slot)

    @rule()
    @precondition(lambda self: self.mode != "shut")
    def ask(self):
        waiter = Waiter(self.shell.now, only=self.pool)
        self.waiting.append(waiter)
        self.pool.ask(waiter, self.shell.now)
        self.act()
        self.handed.pop(waiter.slot, None)  # got it at once, so there was no wait to be interrupted

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.waiting)
    def give_up(self, number):
        waiter = self.pick(self.waiting, number)
        self.waiting.remove(waiter)
        waiter.is_late = True
        self.queue.withdraw(waiter)

    @rule(
        number=st.integers(0, 99),
        verdict=st.sampled_from([None, None, None, KEPT, ERROR, INTERRUPTED, NOT_REUSABLE, USER]),
        discard=st.booleans(),
        by_the_collector=st.booleans(),
    )
    @precondition(lambda self: self.held)
    def give_back(self, number, verdict, discard, by_the_collector):
        slot = self.pick(self.held, number)
        self.held.remove(slot)
        if discard:
            slot.doomed = slot.doomed or USER
        if by_the_collector:
            self.shell.orders.due.append(lambda: self.shell.end(slot, verdict))
            self.shell.orders.append(("alarm", self.pool))  # some order, so that it happens
            self.shell.orders.pop()
        else:
            self.shell.end(slot, verdict)
        self.act()

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.held)
    def collect_inside_the_next_transition(self, number):
        slot = self.pick(self.held, number)
        self.held.remove(slot)
        self.queue.busy = True
        self.shell.end(slot, None)
        self.queue.busy = False
        assert slot.state in (IN_USE, CLOSING)
        self.pool.plan(self.shell.now)
        self.act()

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.fresh())
    def pass_on(self, number):
        slot = self.pick(self.fresh(), number)
        self.held.remove(slot)
        slot.pool.pass_on(slot, self.shell.now)
        self.act()

    def fresh(self):
        """Return what was handed to waiters who have not run yet, and may be interrupted still."""
        return [slot for slot in self.held if self.handed.get(slot) == self.shell.now]

    @rule(number=st.integers(0, 99), good=st.booleans())
    @precondition(lambda self: self.shell.opening)
    def connect(self, number, good):
        slot = self.pick(self.shell.opening, number)
        if good:
            self.shell.open(slot)
        else:
            self.shell.refuse(slot)
        self.act()

    @rule(number=st.integers(0, 99), good=st.booleans())
    @precondition(lambda self: self.shell.checking)
    def keep_alive(self, number, good):
        slot = self.pick(self.shell.checking, number)
        if good:
            self.shell.answer(slot)
        else:
            self.shell.hang_up(slot)
        self.act()

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.shell.closing)
    def close(self, number):
        self.shell.close(self.pick(self.shell.closing, number))
        self.act()

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3, 1.0, 3.0, 7.0, 40.0]))
    def pass_time(self, seconds):
        self.shell.run_to(self.shell.now + seconds)
        self.act()

    @rule()
    def tick_without_need(self):
        self.pool.tick(self.shell.now)
        self.act()

    @rule(mark=st.sampled_from([DRAINED, EJECTED]))
    @precondition(lambda self: self.mode != "shut")
    def suspend(self, mark):
        self.pool.suspend(mark)
        self.mode = "suspended"
        self.act()

    @rule()
    @precondition(lambda self: self.mode == "suspended")
    def resume(self):
        self.pool.resume(self.shell.now)
        self.mode = "running"
        self.act()

    @rule()
    def probe(self):
        self.pool.probe(self.shell.now)
        self.act()

    @rule(there_and_back=st.booleans())
    def move(self, there_and_back):
        for slot in self.pool.slots:
            slot.peer = "10.0.0.1"
        self.pool.endpoint = object()
        self.pool.moved(["10.0.0.1"], ["10.0.0.2"])
        if there_and_back:
            self.pool.moved(["10.0.0.2"], ["10.0.0.1"])
        self.act()

    @rule()
    @precondition(lambda self: len(self.shell.woken) > 3)
    def shut(self):
        self.pool.shut(closed)
        self.mode = "shut"
        self.act()
        assert self.waiting == []

    @rule()
    @precondition(lambda self: self.mode == "shut")
    def cut_off(self):
        self.pool.cut()
        self.act()

    @invariant()
    def every_slot_is_in_one_state(self):
        assert_conserved(self.pool)
        assert not self.queue.busy
        assert not self.queue.late

    @invariant()
    def every_state_has_its_worker_or_borrower(self):
        by_state = {CONNECTING: self.shell.opening, CHECKING: self.shell.checking, CLOSING: self.shell.closing}
        for state, slots in by_state.items():
            assert {s for s in self.pool.slots if s.state == state} == set(slots)
        in_use = {s for s in self.pool.slots if s.state == IN_USE}
        assert in_use == set(self.held) - {s for s in self.held if s.state is CLOSING or s not in self.pool.slots}
        assert set(self.queue.cut.values()) == set(self.held) - in_use

    @invariant()
    def nobody_waits_beside_an_idle_connection(self):
        assert list(self.queue.waiting) == self.waiting
        assert not (self.queue.waiting and self.pool.idle)

    @invariant()
    def what_is_idle_is_clean(self):
        assert all(slot.doomed is None for slot in self.pool.idle)

    @invariant()
    def free_capacity_is_used(self):
        pool = self.pool
        if self.mode == "running" and len(pool.slots) < pool.size and not pool.failures:
            assert pool.connecting == self.limit

    @invariant()
    def what_becomes_due_has_an_alarm(self):
        pool = self.pool
        if self.mode != "running":
            return
        if pool.failures and len(pool.slots) < pool.size and not pool.connecting:
            cap = 5.0 if self.waiting else 30.0
            assert self.shell.now <= pool.alarm <= self.shell.now + cap
        if pool.keepalive and pool.checking < max(1, pool.size // 4):
            assert all(pool.alarm <= slot.alive_at + pool.keepalive for slot in pool.idle)
        if pool.alarm < inf:
            assert (pool.alarm, pool) in self.shell.alarms

    @invariant()
    def no_keepalive_is_early(self):
        now = self.shell.now
        assert all(now >= s.seen + 0.9 * self.pool.keepalive or s.probe for s in self.pool.slots if s.state is CHECKING)

    @invariant()
    def open_connections_are_known(self):
        assert self.queue.open == {id(s.connection): s for s in self.pool.slots if s.state is not CONNECTING}
        assert self.pool.opened_total - self.pool.closed_total == len(self.queue.open)
        assert self.pool.opened_total == self.shell.opened_total

    @invariant()
    def what_is_counted_is_news(self):
        told = [event.cause for event in self.shell.news if isinstance(event, events.ConnectionClosed)]
        closing = sum(slot.state is CLOSING for slot in self.pool.slots)
        assert self.pool.closed_total == len(told)
        assert all(told.count(cause) <= count for cause, count in self.pool.discarded.items())
        assert sum(self.pool.discarded.values()) <= len(told) - told.count(None) + closing

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        self.pool.shut(closed)
        self.act()
        assert self.waiting == []
        for slot in self.held:
            self.shell.end(slot)
        self.shell.settle_down()

        assert states(self.pool) == {}
        assert self.queue.open == self.queue.cut == {}
        assert self.pool.opened_total == self.pool.closed_total == self.shell.opened_total
        assert list(self.queue.todo) == []
        told = [event.cause for event in self.shell.news if isinstance(event, events.ConnectionClosed)]
        assert {cause: told.count(cause) for cause in CAUSES} == self.pool.discarded


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink)
)


def test_the_states_of_a_slot_have_names_of_their_own():
    names = [_queue.CONNECTING, _queue.IDLE, _queue.IN_USE, _queue.CHECKING, _queue.CLOSING]

    assert len(set(names)) == 5
