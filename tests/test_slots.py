"""The state of one pool, in virtual time."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

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
    MOVED,
    NOT_REUSABLE,
    USER,
    Gate,
    Queue,
    Slot,
    Waiter,
)
from geventconnpool._slots import Slots
from geventconnpool.errors import PoolClosed
from tests.life import Life
from tests.virtual import Bench, Connection, Dice, Shell, assert_conserved, states


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


def test_for_one_who_gets_an_idle_connection_at_once_no_other_is_opened_though_connects_fail():
    pool, shell = started(2, min_size=0)
    ask(pool, shell)
    ask(pool, shell)
    shell.act()
    first, second = shell.opening
    shell.open(first)
    shell.refuse(second)
    pool.queue.withdraw(next(iter(pool.queue.waiting)))
    shell.end(first)
    shell.run_to(60.0)
    waiter = ask(pool, shell)
    shell.act()

    assert (waiter.slot, pool.failures) == (first, 1)
    assert states(pool) == {"in use": 1}


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


# -- growing -----------------------------------------------------------------------------------------------------------


def wait_for(pool, shell, count=1):
    """Have greenlets come to wait, and carry out what that leads to."""
    waiters = [ask(pool, shell) for _ in range(count)]
    shell.act()
    return waiters


def borrowed(pool, count):
    return [pool.take(0.0) for _ in range(count)]


def test_a_pool_opens_no_more_than_it_keeps_at_least_while_nobody_waits():
    pool, shell = filled(10, min_size=2)
    shell.run_to(1000.0)

    assert states(pool) == {"idle": 2}


def test_who_waits_makes_a_pool_grow():
    pool, shell = filled(10, min_size=2)
    borrowed(pool, 2)
    (waiter,) = wait_for(pool, shell)
    assert states(pool) == {"in use": 2, "connecting": 1}
    shell.open(shell.opening[0])

    assert waiter.slot is not None
    assert states(pool) == {"in use": 3}


def test_a_pool_with_min_size_0_opens_nothing_until_somebody_waits():
    pool, shell = filled(3, min_size=0)
    before = states(pool)
    wait_for(pool, shell)

    assert (before, states(pool)) == ({}, {"connecting": 1})


def test_no_more_connects_are_under_way_than_greenlets_wait():
    pool, shell = filled(10, min_size=0, max_connecting=8)
    wait_for(pool, shell, 3)
    pool.plan(shell.now)

    assert states(pool) == {"connecting": 3}


def test_a_pool_grows_by_at_most_max_connecting_at_a_time():
    pool, shell = filled(10, min_size=0, max_connecting=4)
    wait_for(pool, shell, 7)
    before = states(pool)
    shell.open(shell.opening[0])

    assert (before, states(pool)) == ({"connecting": 4}, {"connecting": 4, "in use": 1})


def test_a_pool_grows_up_to_its_size():
    pool, shell = filled(3, min_size=1)
    borrowed(pool, 1)
    wait_for(pool, shell, 5)
    shell.settle_down()

    assert states(pool) == {"in use": 3}
    assert len(pool.queue.waiting) == 3


def test_while_connects_fail_a_pool_grows_one_at_a_time():
    pool, shell = filled(10, min_size=0)
    wait_for(pool, shell, 3)
    for slot in list(shell.opening):
        shell.refuse(slot)
    before = states(pool)
    shell.run_to(1.0)
    assert (before, states(pool)) == ({}, {"connecting": 1})
    shell.open(shell.opening[0])

    assert states(pool) == {"in use": 1, "connecting": 2}


def test_those_who_gave_up_are_served_by_no_further_connect():
    pool, shell = filled(10, min_size=0, max_connecting=1)
    first, second, third = wait_for(pool, shell, 3)
    pool.queue.withdraw(second)
    pool.queue.withdraw(third)
    shell.settle_down()

    assert first.slot is not None
    assert (states(pool), pool.opened_total) == ({"in use": 1}, 1)


def test_a_connect_that_nobody_waits_for_any_more_is_not_tried_again():
    pool, shell = filled(10, min_size=0)
    (waiter,) = wait_for(pool, shell)
    pool.queue.withdraw(waiter)
    shell.refuse(shell.opening[0])
    shell.run_to(1000.0)

    assert (states(pool), pool.open_errors) == ({}, 1)


def test_a_connect_that_nobody_waits_for_any_more_is_kept_when_it_is_open():
    pool, shell = filled(10, min_size=0)
    (waiter,) = wait_for(pool, shell)
    pool.queue.withdraw(waiter)
    shell.open(shell.opening[0])

    assert states(pool) == {"idle": 1}


def test_who_is_served_by_a_return_needs_no_further_connect():
    pool, shell = filled(3, min_size=1)
    (slot,) = borrowed(pool, 1)
    (waiter,) = wait_for(pool, shell)
    shell.end(slot)
    shell.open(shell.opening[0])

    assert waiter.slot is slot
    assert states(pool) == {"in use": 1, "idle": 1}


def test_a_full_pool_replaces_a_broken_connection_when_it_is_closed():
    pool, shell = filled(2)
    shell.end(pool.take(0.0), ERROR)
    before = states(pool)
    shell.close(shell.closing[0])

    assert (before, states(pool)) == ({"idle": 1, "closing": 1}, {"idle": 1, "connecting": 1})


def test_a_pool_below_its_size_replaces_a_broken_connection_while_that_is_still_closing():
    pool, shell = filled(3, min_size=2)
    shell.end(pool.take(0.0), ERROR)

    assert states(pool) == {"idle": 1, "closing": 1, "connecting": 1}


def test_a_broken_connection_above_min_size_is_not_replaced():
    pool, shell = filled(3, min_size=1)
    borrowed(pool, 1)
    (waiter,) = wait_for(pool, shell)
    shell.settle_down()
    shell.end(waiter.slot, ERROR)
    shell.settle_down()

    assert states(pool) == {"in use": 1}


def test_who_waits_for_a_number_of_open_connections_makes_a_pool_grow_to_it():
    pool, shell = filled(5, min_size=1)
    pool.warming += [3, 2]
    pool.plan(0.0)
    shell.act()
    assert states(pool) == {"idle": 1, "connecting": 2}
    shell.settle_down()

    assert states(pool) == {"idle": 3}


def test_who_waits_for_open_connections_adds_to_those_who_wait_to_borrow():
    pool, shell = filled(6, min_size=1, max_connecting=6)
    borrowed(pool, 1)
    pool.warming.append(3)
    wait_for(pool, shell, 2)

    assert states(pool) == {"in use": 1, "connecting": 4}


# -- shrinking ---------------------------------------------------------------------------------------------------------


def grown(size, *, min_size, to=None, **options):
    """Return a pool of which somebody needed ``to`` connections, and now nobody does; and its shell."""
    pool, shell = filled(size, min_size=min_size, **options)
    pool.warming.append(size if to is None else to)
    pool.plan(shell.now)
    shell.act()
    shell.settle_down()
    pool.warming.clear()
    return pool, shell


def test_what_is_above_min_size_and_not_used_for_max_idle_is_closed():
    pool, shell = grown(5, min_size=2, max_idle=60.0)
    shell.run_to(59.9)
    before = states(pool)
    shell.run_to(60.0)

    assert (before, states(pool)) == ({"idle": 5}, {"idle": 2, "closing": 3})
    assert shell.polite == shell.closing
    assert pool.discarded == dict.fromkeys(CAUSES, 0) | {"idle": 3}


def test_a_pool_with_min_size_0_closes_all_that_is_not_used():
    pool, shell = grown(3, min_size=0, max_idle=60.0)
    shell.run_to(60.0)
    shell.settle_down()
    shell.run_to(1000.0)

    assert states(pool) == {}


def test_a_pool_that_is_always_full_closes_nothing_for_want_of_use():
    pool, shell = filled(3, max_idle=60.0)
    shell.run_to(1000.0)

    assert (states(pool), shell.alarms) == ({"idle": 3}, [])


def test_what_is_in_use_counts_for_min_size():
    pool, shell = grown(5, min_size=2, max_idle=60.0)
    borrowed(pool, 2)
    shell.run_to(60.0)

    assert states(pool) == {"in use": 2, "closing": 3}


@pytest.mark.parametrize("lifo", [True, False])
def test_what_was_not_used_for_longest_goes_first(lifo):
    pool, shell = grown(3, min_size=2, max_idle=60.0, lifo=lifo)
    one, two, three = borrowed(pool, 3)
    for now, slot in [(10.0, two), (20.0, one), (30.0, three)]:
        shell.run_to(now)
        shell.end(slot)
    shell.run_to(70.0)

    assert shell.closing == [two]
    assert {*pool.idle} == {one, three}


@pytest.mark.parametrize("lifo", [True, False])
def test_a_keepalive_is_no_use(lifo):
    pool, shell = grown(2, min_size=1, max_idle=60.0, keepalive=25.0, lifo=lifo)
    used, other = borrowed(pool, 2)
    shell.run_to(1.0)
    shell.end(other)
    shell.run_to(2.0)
    shell.end(used)
    for now in [26.0, 27.0, 51.0, 52.0]:
        shell.run_to(now)
        shell.settle_down()
    shell.run_to(61.0)

    assert (other.kept, other.seen) == (51.0, 1.0)
    assert shell.closing == [other]


def test_a_connection_that_is_used_now_and_then_stays():
    pool, shell = grown(2, min_size=1, max_idle=60.0)
    for _ in range(20):
        shell.run_to(shell.now + 30.0)
        slot = pool.take(shell.now)
        shell.end(slot)
        shell.settle_down()

    assert list(pool.idle) == [slot]
    assert pool.opened_total == 2


def test_what_comes_back_rests_for_max_idle_from_then_on():
    pool, shell = grown(2, min_size=1, max_idle=60.0)
    slot, other = borrowed(pool, 2)
    shell.run_to(45.0)
    shell.end(other)
    shell.run_to(50.0)
    shell.end(slot)
    shell.run_to(104.9)
    before = list(shell.closing)
    shell.run_to(105.0)

    assert (before, shell.closing) == ([], [other])


@pytest.mark.parametrize("start", [0.0, 1000.0])
def test_what_has_rested_for_long_enough_when_its_keepalive_ends_is_closed_then(start):
    pool, shell = grown(2, min_size=1, max_idle=60.0, keepalive=59.0, now=start)
    other = pool.take(start)
    shell.run_to(start + 30.0)
    shell.end(other)
    shell.run_to(start + 61.0)
    (slot,) = shell.checking
    shell.answer(slot)

    assert slot is not other
    assert shell.closing == [slot]


# -- age ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dice", "due"), [(1.0, 100.0), (0.5, 87.5), (0.0, 75.0)])
def test_a_connection_lives_for_its_lifetime_less_up_to_a_quarter(dice, due):
    pool, shell = filled(1, max_lifetime=100.0, dice=dice)
    shell.run_to(due - 0.001)
    before = states(pool)
    shell.run_to(due)

    assert (before, states(pool)) == ({"idle": 1}, {"closing": 1})
    assert shell.polite == shell.closing
    assert pool.discarded == dict.fromkeys(CAUSES, 0) | {"lifetime": 1}


def test_a_connection_that_was_too_old_is_replaced():
    pool, shell = filled(1, max_lifetime=100.0)
    shell.run_to(100.0)
    shell.settle_down()
    shell.run_to(199.9)
    before = states(pool)
    shell.run_to(200.0)

    assert (before, states(pool)) == ({"idle": 1}, {"closing": 1})


@pytest.mark.parametrize("max_connecting", [1, 4])
def test_old_age_interrupts_no_user_and_is_seen_to_at_the_return(max_connecting):
    pool, shell = filled(1, max_lifetime=100.0, max_connecting=max_connecting)
    slot = pool.take(0.0)
    shell.run_to(150.0)
    before = (slot.state, slot.doomed)
    shell.end(slot)

    assert before == (IN_USE, "lifetime")
    assert (shell.polite, pool.discarded["lifetime"]) == ([slot], 1)


def test_an_old_connection_whose_call_failed_is_aborted_for_that():
    pool, shell = filled(1, max_lifetime=100.0)
    slot = pool.take(0.0)
    shell.run_to(150.0)
    shell.end(slot, ERROR)

    assert (shell.closing, shell.polite) == ([slot], [])
    assert (pool.discarded["error"], pool.discarded["lifetime"]) == (1, 0)


def test_a_connection_that_grows_old_under_keepalive_goes_after_it():
    pool, shell = filled(1, max_lifetime=100.0, keepalive=99.5)
    shell.run_to(100.0)
    before = states(pool)
    shell.answer(shell.checking[0])

    assert (before, states(pool)) == ({"checking": 1}, {"closing": 1})


def test_at_most_max_connecting_are_replaced_for_their_age_at_once():
    pool, shell = filled(10, max_lifetime=100.0, max_connecting=3)
    shell.run_to(100.0)
    assert states(pool) == {"idle": 7, "closing": 3}
    shell.close(shell.closing[0])
    assert states(pool) == {"idle": 7, "closing": 2, "connecting": 1}
    shell.open(shell.opening[0])

    assert states(pool) == {"idle": 7, "closing": 3}


def test_one_that_came_back_too_old_while_enough_are_replaced_is_looked_at_again():
    pool, shell = filled(2, max_lifetime=100.0, max_connecting=1)
    slot = pool.take(0.0)
    shell.run_to(100.0)
    (first,) = shell.closing
    shell.end(slot)
    assert (slot.state, slot.doomed) == (IDLE, None)
    shell.close(first)
    assert slot.state is IDLE
    shell.open(shell.opening[0])

    assert shell.closing == [slot]


def test_nothing_goes_for_its_age_while_connects_fail():
    pool, shell = filled(3, max_lifetime=100.0)
    shell.run_to(50.0)
    shell.end(pool.take(50.0), ERROR)
    shell.close(shell.closing[0])
    shell.refuse(shell.opening[0])
    while shell.now < 200.0:
        shell.run_to(shell.now + 10.0)
        for slot in list(shell.opening):
            shell.refuse(slot)
    assert (states(pool), pool.discarded["lifetime"]) == ({"idle": 2}, 0)
    shell.run_to(300.0)
    shell.open(shell.opening[0])

    assert states(pool) == {"idle": 1, "closing": 2}


def test_a_pool_that_connects_without_end_has_an_alarm_for_age_only():
    pool, shell = filled(2, max_lifetime=100.0)

    assert pool.alarm == 100.0
    assert shell.alarms == [(100.0, pool)]


# -- the order of use --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_size", "lifo", "is_lifo"),
    [(3, None, False), (2, None, True), (0, None, True), (3, True, True), (2, False, False)],
)
def test_a_pool_that_shrinks_is_last_in_first_out_unless_it_is_told_otherwise(min_size, lifo, is_lifo):
    assert make(3, min_size=min_size, lifo=lifo).lifo is is_lifo


def test_last_in_first_out_the_connection_that_came_back_last_is_lent_first():
    pool, shell = filled(3, lifo=True)
    one, two, three = borrowed(pool, 3)
    for slot in [two, three, one]:
        shell.end(slot)

    assert borrowed(pool, 3) == [one, three, two]


def test_last_in_first_out_the_surplus_is_left_alone():
    pool, shell = grown(5, min_size=1, max_idle=60.0)
    slots = set()
    for _ in range(59):
        shell.run_to(shell.now + 1.0)
        slot = pool.take(shell.now)
        slots.add(slot)
        shell.end(slot)
    shell.run_to(60.0)

    assert len(slots) == 1
    assert states(pool) == {"idle": 1, "closing": 4}


def test_last_in_first_out_what_was_kept_alive_goes_behind_what_was_used():
    pool, shell = filled(8, lifo=True, keepalive=10.0)
    slots = list(pool.idle)
    hot = pool.take(0.0)
    shell.run_to(5.0)
    shell.end(hot)
    shell.run_to(10.0)
    shell.settle_down()

    assert slots[-1] is hot
    assert list(pool.idle) == [*slots[:-1], hot]
    assert [slot.kept for slot in pool.idle] == [10.0] * 7 + [0.0]


def test_last_in_first_out_the_oldest_sign_of_life_decides_what_is_kept_alive_next():
    pool, shell = filled(4, lifo=True, keepalive=10.0)
    one, two, three, four = borrowed(pool, 4)
    for now, slot in [(1.0, one), (2.0, two), (8.0, three), (9.0, four)]:
        shell.run_to(now)
        shell.end(slot)
    kept = []
    while shell.now < 29.0:
        shell.run_to(min(at for at, _ in shell.alarms))
        kept += [(shell.now, slot) for slot in shell.checking]
        shell.settle_down()

    assert kept == [
        (11.0, one), (12.0, two), (18.0, three), (19.0, four), (21.0, one), (22.0, two), (28.0, three), (29.0, four),
    ]  # fmt: skip


def test_last_in_first_out_a_kept_alive_connection_that_is_used_is_hot_again():
    pool, shell = filled(3, lifo=True, keepalive=10.0)
    shell.run_to(10.0)
    shell.settle_down()
    slots = borrowed(pool, 3)
    shell.run_to(12.0)
    for slot in slots:
        shell.end(slot)
    shell.run_to(22.0)
    (checked,) = shell.checking

    assert checked is slots[0]
    assert pool.take(22.0) is slots[2]


def test_last_in_first_out_an_unused_connection_is_passed_on_to_where_it_was():
    pool, shell = filled(3, lifo=True, keepalive=10.0)
    cold = pool.idle[0]
    shell.run_to(10.0)
    shell.answer(cold)
    shell.settle_down()
    order = list(pool.idle)
    slots = borrowed(pool, 3)
    for slot in reversed(slots):
        pool.pass_on(slot, 10.0)

    assert list(pool.idle) == order


def test_a_pool_that_becomes_one_that_shrinks_lends_what_was_used_last():
    pool, shell = filled(3, keepalive=10.0)
    used, *others = borrowed(pool, 3)
    for slot in others:
        shell.end(slot)
    shell.run_to(9.0)
    shell.end(used)
    shell.run_to(10.0)
    shell.settle_down()
    assert list(pool.idle) == [used, *others]
    pool.resize(4, 2, 10.0)

    assert list(pool.idle) == [*others, used]
    assert pool.take(10.0) is used


def test_a_pool_that_becomes_one_that_is_always_full_lends_the_oldest_sign_of_life():
    pool, shell = filled(4, min_size=3, keepalive=10.0)
    used, *others = borrowed(pool, 3)
    for slot in others:
        shell.end(slot)
    shell.run_to(9.0)
    shell.end(used)
    shell.run_to(10.0)
    shell.settle_down()
    assert list(pool.idle) == [*others, used]
    pool.resize(3, 3, 10.0)

    assert list(pool.idle) == [used, *others]


# -- is it still there? ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("silent", "is_suspect"), [(0.999, False), (1.0, True), (50.0, True)])
def test_a_connection_that_was_silent_for_a_second_is_suspect(silent, is_suspect):
    pool, _ = filled(1)
    (slot,) = pool.idle

    assert slot.is_suspect(silent) is is_suspect


def test_a_keepalive_clears_a_connection_of_suspicion():
    pool, shell = filled(1, keepalive=10.0)
    shell.run_to(10.0)
    shell.settle_down()
    (slot,) = pool.idle

    assert slot.is_suspect(10.5) is False


def test_nothing_is_suspect_for_troubles_before_its_last_sign_of_life():
    pool, shell = started(2)
    shell.now = 1.0
    shell.refuse(shell.opening[0])
    shell.open(shell.opening[0])
    (slot,) = pool.idle

    assert pool.trouble_at == 1.0
    assert slot.is_suspect(1.5) is False


def trouble(pool, shell, what):
    """At 0.5: a connect, a keepalive or a call fails, a call is interrupted, or a connection is found closed."""
    slot = pool.take(0.0)
    shell.now = 0.5
    if what == "connect":
        shell.end(slot, INTERRUPTED)
        shell.close(slot)
        shell.refuse(shell.opening[0])
    elif what == "keepalive":
        shell.end(slot)
        shell.run_to(1.0)
        shell.hang_up(shell.checking[0])
    elif what == "hung up":
        pool.hung_up(slot, 0.5)
    else:
        shell.end(slot, what)


@pytest.mark.parametrize(
    ("what", "at"),
    [("connect", 0.5), ("keepalive", 1.0), (ERROR, 0.5), ("hung up", 0.5)]
    + [(verdict, -inf) for verdict in (INTERRUPTED, NOT_REUSABLE, USER, KEPT, None)],
)
def test_a_connection_is_suspect_when_something_failed_since_its_last_sign_of_life(what, at):
    pool, shell = filled(2, keepalive=1.0 if what == "keepalive" else 0.0)
    other = pool.idle[1]
    trouble(pool, shell, what)

    assert pool.trouble_at == at
    assert other.is_suspect(shell.now) is (what == "keepalive" or at == 0.5)


def test_a_connection_that_is_found_closed_is_stale_and_replaced():
    pool, shell = filled(1)
    slot = pool.take(5.0)
    pool.hung_up(slot, 5.0)
    shell.act()
    assert (shell.closing, shell.polite) == ([slot], [])
    shell.close(slot)

    assert pool.discarded == dict.fromkeys(CAUSES, 0) | {"stale": 1}
    assert shell.news[-1] == events.ConnectionClosed("pool", None, "stale")
    assert (states(pool), pool.trouble_at) == ({"connecting": 1}, 5.0)


def test_a_connection_that_was_cut_is_not_found_closed():
    pool, shell = filled(1)
    slot = pool.take(5.0)
    pool.shut(closed)
    pool.cut()
    pool.hung_up(slot, 5.0)
    shell.act()

    assert pool.discarded["stale"] == 0
    assert (states(pool), pool.queue.cut) == ({"closing": 1}, {})


# -- reset -------------------------------------------------------------------------------------------------------------


def reset(pool, shell):
    pool.reset(shell.now)
    shell.act()


def test_a_reset_replaces_what_is_idle_now():
    pool, shell = filled(3)
    before = list(pool.idle)
    reset(pool, shell)
    assert shell.closing == shell.polite == before
    shell.settle_down()

    assert states(pool) == {"idle": 3}
    assert not {*before} & {*pool.idle}
    assert pool.discarded == dict.fromkeys(CAUSES, 0) | {"reset": 3}


def test_a_reset_replaces_what_is_borrowed_when_it_comes_back():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    reset(pool, shell)
    before = (slot.state, slot.doomed)
    shell.end(slot)

    assert before == (IN_USE, "reset")
    assert (shell.polite, pool.discarded["reset"]) == ([slot], 1)


def test_a_connection_from_before_a_reset_goes_to_nobody_who_waits():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    (waiter,) = wait_for(pool, shell)
    reset(pool, shell)
    shell.end(slot)
    assert waiter.slot is None
    shell.settle_down()

    assert waiter.slot is not None
    assert waiter.slot is not slot


def test_a_connection_under_keepalive_is_replaced_after_it_by_a_reset():
    pool, shell = filled(1, keepalive=10.0)
    shell.run_to(10.0)
    reset(pool, shell)
    shell.answer(shell.checking[0])

    assert (states(pool), pool.discarded["reset"]) == ({"closing": 1}, 1)


def test_a_reset_cancels_the_connects_under_way_and_repeats_them():
    pool, shell = started(2)
    first, second = shell.opening
    reset(pool, shell)
    assert {*shell.cancelled} == {first, second}
    shell.refuse(first)
    shell.refuse(second)

    assert (states(pool), pool.failures, pool.open_errors) == ({"connecting": 2}, 0, 0)
    assert not any(slot.doomed for slot in shell.opening)


def test_a_connect_that_a_reset_could_not_stop_is_closed():
    pool, shell = started(1)
    (slot,) = shell.opening
    reset(pool, shell)
    shell.open(slot)

    assert (shell.closing, pool.discarded["reset"]) == ([slot], 1)


def test_a_reset_leaves_a_probe_alone():
    pool, shell = filled(1)
    pool.suspend(EJECTED)
    shell.act()
    shell.settle_down()
    pool.probe(2.0)
    shell.act()
    reset(pool, shell)

    assert (shell.cancelled, shell.opening[0].doomed) == ([], None)


def test_a_reset_forgets_that_one_was_to_wait_before_the_next_attempt():
    pool, shell = started(1)
    fail_in_a_row(pool, shell, 10)
    shell.refuse(shell.opening[0])
    before = states(pool)
    reset(pool, shell)

    assert (before, states(pool)) == ({}, {"connecting": 1})


def test_a_reset_does_nothing_to_a_pool_that_is_shut():
    pool, shell = filled(1)
    slot = pool.take(0.0)
    pool.shut(closed)
    reset(pool, shell)
    shell.end(slot)

    assert (pool.discarded["reset"], states(pool)) == (0, {"closing": 1})


@pytest.mark.parametrize(("mark", "after"), [("lifetime", "reset"), ("resized", "reset"), (DRAINED, "reset")])
def test_a_reset_comes_before_reasons_that_may_pass(mark, after):
    pool, shell = filled(1)
    slot = pool.take(0.0)
    slot.doomed = mark
    reset(pool, shell)

    assert slot.doomed == after


@pytest.mark.parametrize("mark", [USER, EJECTED, "moved"])
def test_a_reset_changes_no_other_reason(mark):
    pool, shell = filled(1)
    slot = pool.take(0.0)
    slot.doomed = mark
    reset(pool, shell)

    assert slot.doomed == mark


# -- resize ------------------------------------------------------------------------------------------------------------


def resize(pool, shell, size, min_size=None):
    pool.resize(size, size if min_size is None else min_size, shell.now)
    shell.act()


def test_a_pool_that_is_made_larger_grows_at_once():
    pool, shell = filled(2)
    resize(pool, shell, 5)

    assert states(pool) == {"idle": 2, "connecting": 3}


def test_a_pool_that_is_made_larger_serves_who_waits():
    pool, shell = filled(1)
    pool.take(0.0)
    (waiter,) = wait_for(pool, shell)
    resize(pool, shell, 2, 1)
    shell.settle_down()

    assert waiter.slot is not None


def test_a_pool_that_is_made_smaller_closes_first_what_has_rested_longest():
    pool, shell = filled(4)
    one, two, three, four = borrowed(pool, 4)
    for now, slot in [(1.0, three), (2.0, one), (3.0, two)]:
        shell.run_to(now)
        shell.end(slot)
    resize(pool, shell, 2)

    assert shell.closing == shell.polite == [three, one]
    assert (list(pool.idle), four.doomed) == ([two], None)
    assert sum(pool.discarded.values()) == 0


def test_a_pool_that_is_made_smaller_closes_the_rest_when_it_comes_back():
    pool, shell = filled(3)
    one, two, three = borrowed(pool, 3)
    resize(pool, shell, 2)
    shell.end(two)
    shell.end(one)
    shell.end(three)

    assert shell.polite == [two]
    assert list(pool.idle) == [one, three]


def test_a_pool_that_is_made_smaller_serves_nobody_with_what_is_too_many():
    pool, shell = filled(2)
    one, two = borrowed(pool, 2)
    (waiter,) = wait_for(pool, shell)
    resize(pool, shell, 1)
    shell.end(one)
    before = waiter.slot
    shell.end(two)

    assert (before, waiter.slot) == (None, two)


def test_a_pool_that_is_made_smaller_cancels_connects_before_it_closes_anything():
    pool, shell = filled(2)
    resize(pool, shell, 4)
    resize(pool, shell, 3)
    assert len(shell.cancelled) == 1
    resize(pool, shell, 2)
    assert len({*shell.cancelled}) == 2
    shell.settle_down()

    assert (states(pool), pool.closed_total, pool.failures) == ({"idle": 2}, 0, 0)


def test_a_connect_that_could_not_be_cancelled_is_one_too_many():
    pool, shell = filled(2)
    resize(pool, shell, 3)
    (slot,) = shell.opening
    resize(pool, shell, 2)
    shell.open(slot)

    assert states(pool) == {"idle": 2, "closing": 1}


def test_a_connect_that_could_not_be_cancelled_is_welcome_if_there_is_room_again():
    pool, shell = filled(2)
    resize(pool, shell, 3)
    (slot,) = shell.opening
    resize(pool, shell, 2)
    resize(pool, shell, 3, 0)
    shell.open(slot)

    assert states(pool) == {"idle": 3}


def test_what_was_to_go_may_stay_if_the_pool_is_made_larger_again():
    pool, shell = filled(2)
    one, two = borrowed(pool, 2)
    resize(pool, shell, 1)
    before = [one.doomed, two.doomed]
    resize(pool, shell, 2)
    shell.end(one)
    shell.end(two)

    assert before == ["resized", "resized"]
    assert list(pool.idle) == [one, two]


def test_a_connection_that_was_to_go_for_its_age_and_cannot_goes_if_there_are_too_many():
    pool, shell = filled(3, max_lifetime=100.0, max_connecting=1)
    one, two, _ = borrowed(pool, 3)
    shell.run_to(100.0)
    shell.end(one)  # the one that is replaced now
    resize(pool, shell, 1)
    shell.end(two)

    assert states(pool) == {"closing": 2, "in use": 1}


def test_a_connection_that_grows_old_while_it_was_to_go_for_another_reason_goes_for_its_age():
    pool, shell = filled(2, max_lifetime=100.0)
    one, _ = borrowed(pool, 2)
    resize(pool, shell, 1)
    resize(pool, shell, 2)
    shell.run_to(100.0)
    shell.end(one)

    assert (shell.closing, pool.discarded["lifetime"]) == ([one], 1)


def test_a_connection_that_may_stay_still_grows_old():
    pool, shell = filled(2, max_lifetime=100.0)
    one, two = borrowed(pool, 2)
    resize(pool, shell, 1)
    shell.end(one)
    shell.end(two)
    shell.settle_down()
    assert (list(pool.idle), pool.alarm) == ([two], 100.0)
    shell.run_to(100.0)

    assert shell.closing == [two]


def test_a_connection_that_may_stay_does_not_if_its_address_left():
    pool, shell = filled(2)
    one, two = borrowed(pool, 2)
    one.peer = two.peer = "10.0.0.1"
    resize(pool, shell, 1)
    pool.endpoint = "updated"
    pool.moved(["10.0.0.1"], ["10.0.0.2"])
    resize(pool, shell, 2)
    shell.end(one)

    assert shell.closing == [one]


def test_a_drained_pool_that_is_made_smaller_keeps_as_many_when_it_resumes():
    pool, shell = filled(3)
    one, two, three = borrowed(pool, 3)
    pool.suspend(DRAINED)
    resize(pool, shell, 2)
    pool.resume(0.0)
    for slot in (one, two, three):
        shell.end(slot)

    assert (shell.closing, list(pool.idle)) == ([one], [two, three])


def test_min_size_is_at_most_size():
    pool, shell = filled(5)
    resize(pool, shell, 3, 5)

    assert (pool.size, pool.min_size, pool.lifo) == (3, 3, False)


def test_a_smaller_min_size_is_reached_by_what_is_not_used():
    pool, shell = filled(5, max_idle=60.0)
    shell.run_to(50.0)
    resize(pool, shell, 5, 2)
    assert pool.lifo
    shell.run_to(60.0)

    assert states(pool) == {"idle": 2, "closing": 3}


def test_a_larger_min_size_is_reached_at_once():
    pool, shell = filled(5, min_size=0)
    resize(pool, shell, 5, 2)

    assert states(pool) == {"connecting": 2}


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


class Struck(Queue):
    """A queue in which the collector also strikes when somebody joins, and when it is asked who may use what."""

    def judge(self, now):
        self.todo.strike()
        super().judge(now)

    def may_use(self, waiter, pool):
        self.todo.strike()
        return super().may_use(waiter, pool)


class StruckGate(Gate):
    """A gate at which the collector strikes once."""

    end = None

    def enter(self, pool):
        end, self.end = self.end, None
        if end is not None:
            end()
        return super().enter(pool)


def test_a_lease_that_the_collector_ends_while_a_new_connection_is_handed_over_serves_the_next_waiter():
    pool, shell = filled(2, queue=Struck())
    shell.end(pool.take(0.0), ERROR)
    shell.close(shell.closing[0])
    other = pool.take(0.0)
    first, second = wait_for(pool, shell, 2)
    (slot,) = shell.opening
    shell.orders.due.append(lambda: shell.end(other))
    shell.open(slot)

    assert (first.slot, second.slot) == (slot, other)
    assert_conserved(pool)


def test_a_lease_that_the_collector_ends_while_another_is_passed_on_serves_the_next_waiter():
    pool, shell = filled(2, queue=Struck())
    one, other = borrowed(pool, 2)
    first, second = wait_for(pool, shell, 2)
    shell.orders.due.append(lambda: shell.end(other))
    pool.pass_on(one, 1.0)

    assert (first.slot, second.slot) == (one, other)
    assert_conserved(pool)


def test_a_lease_that_the_collector_ends_while_somebody_asks_leaves_him_with_one_connection():
    pool, shell = filled(2, queue=Struck())
    other = pool.take(0.0)
    (slot,) = pool.idle
    shell.orders.due.append(lambda: shell.end(other))
    waiter = ask(pool, shell)

    assert (waiter.slot, list(pool.idle)) == (slot, [other])
    assert_conserved(pool)


def test_a_lease_that_the_collector_ends_while_one_is_opened_for_a_waiter_opens_none_too_many():
    gate = StruckGate(4)
    pool, shell = grown(2, min_size=0, to=1, gate=gate)
    other = pool.take(0.0)
    pool.warming.append(2)
    gate.end = lambda: shell.end(other, ERROR)
    pool.open_one(0.0)
    shell.act()

    assert states(pool) == {"closing": 1, "connecting": 1}


def test_a_lease_that_the_collector_ends_during_a_reset_is_replaced_after_it():
    pool, shell = filled(3, min_size=2)
    one, other = borrowed(pool, 2)
    shell.end(one, ERROR)
    shell.close(shell.closing[0])
    shell.orders.due.append(lambda: shell.end(other, ERROR))
    reset(pool, shell)

    assert (len(shell.cancelled), pool.discarded["error"]) == (1, 2)
    assert_conserved(pool)


def test_a_lease_that_the_collector_ends_while_a_pool_is_made_smaller_is_one_too_many():
    pool, shell = filled(3)
    _, other = borrowed(pool, 2)
    shell.orders.due.append(lambda: shell.end(other))
    resize(pool, shell, 1)

    assert states(pool) == {"in use": 1, "closing": 2}


# -- what tells neighbours apart ---------------------------------------------------------------------------------------


class Told:
    """Keeps what a pool tells its observer."""

    def __init__(self, pool):
        self.told = []
        pool.observer = self

    def changed(self, now):
        """Of numbers, which anybody can see."""

    def __getattr__(self, name):
        return lambda *_: self.told.append(name)


def test_the_time_that_a_connect_took_is_counted_from_its_start():
    pool, shell = filled(1, now=100.0)
    shell.end(pool.take(100.0), ERROR)
    shell.close(shell.closing[0])
    shell.now = 103.0
    shell.open(shell.opening[0])

    assert shell.news[-1] == events.ConnectionOpened("pool", None, 3.0)


def test_a_keepalive_that_succeeds_after_one_that_failed_is_news_once():
    _pool, shell = filled(3, keepalive=10.0)
    shell.run_to(10.0)
    shell.hang_up(shell.checking[0])
    shell.news.clear()
    shell.settle_down()
    shell.run_to(30.0)
    shell.settle_down()

    assert [event for event in shell.news if "Keepalive" in type(event).__name__] == [
        events.KeepaliveRecovered("pool", None)
    ]


def test_after_a_reset_the_delays_between_attempts_begin_anew():
    pool, shell = started(1)
    fail_in_a_row(pool, shell, 10)
    shell.refuse(shell.opening[0])
    reset(pool, shell)

    assert fail_in_a_row(pool, shell, 3) == [0.1, 0.2, 0.4]


def test_no_more_than_max_connecting_are_opened_at_a_time_where_the_gate_allows_more():
    pool = make(10, max_connecting=2, gate=Gate(10))
    pool.plan(0.0)

    assert states(pool) == {"connecting": 2}


def test_one_is_opened_for_somebody_who_waits_unless_there_is_no_getting_through():
    gate = Gate(1)
    pool = make(3, min_size=0, gate=gate)

    assert pool.open_one(0.0) is True
    assert pool.open_one(0.0) is False
    assert states(pool) == {"connecting": 1}


@pytest.mark.parametrize("mark", [DRAINED, EJECTED])
def test_a_suspended_pool_opens_none_for_anybody_who_waits(mark):
    pool, shell = filled(2, min_size=0)
    pool.suspend(mark)
    shell.act()

    assert (pool.may_grow(0.0), pool.open_one(0.0)) == (False, False)


@pytest.mark.parametrize("mark", [DRAINED, EJECTED])
def test_a_suspended_pool_asks_for_no_alarm(mark):
    pool, shell = started(2, max_connecting=1, keepalive=10.0)
    shell.refuse(shell.opening[0])
    shell.alarms.clear()
    pool.alarm = inf
    pool.suspend(mark)
    pool.plan(shell.now)
    pool.await_retry()
    shell.act()

    assert shell.next_due == inf


def test_the_next_attempt_is_awaited_by_a_pool_that_failed_and_has_room():
    pool, shell = started(2, min_size=0, max_connecting=1)
    pool.await_retry()
    assert deeds(pool) == []
    pool.open_one(0.0)
    shell.act()
    pool.await_retry()
    assert deeds(pool) == []
    shell.refuse(shell.opening[0])
    assert pool.alarm == inf
    pool.await_retry()

    assert (deeds(pool), pool.alarm) == (["alarm"], 0.1)


@pytest.mark.parametrize(("mark", "told"), [(DRAINED, ["call_ended"]), (EJECTED, [])])
def test_what_was_lent_before_an_ejection_tells_nothing_and_before_a_drain_it_does(mark, told):
    pool, shell = filled(1)
    slot = pool.take(0.0)
    observer = Told(pool)
    pool.suspend(mark)
    shell.end(slot, ERROR)

    assert observer.told == told


def test_only_a_suspended_pool_tells_that_it_is_empty():
    pool, shell = filled(1)
    observer = Told(pool)
    shell.end(pool.take(0.0), ERROR)
    pool.size = 0  # nothing comes after it
    shell.settle_down()
    assert observer.told == ["call_ended"]
    pool.suspend(DRAINED)

    assert observer.told == ["call_ended", "emptied"]


def test_a_connection_to_what_has_become_an_address_stays():
    pool, shell = started(1)
    shell.open(shell.opening[0], "10.0.0.2")
    pool.endpoint = "updated"
    pool.moved(["10.0.0.1"], ["10.0.0.1", "10.0.0.2"])

    assert states(pool) == {"idle": 1}


def test_a_pool_that_is_made_larger_cancels_and_marks_nothing():
    pool, shell = filled(2)
    slot = pool.take(0.0)
    resize(pool, shell, 5)
    resize(pool, shell, 6)

    assert (shell.cancelled, slot.doomed) == ([], None)
    assert states(pool) == {"in use": 1, "idle": 1, "connecting": 4}


def test_a_pool_that_is_made_smaller_spares_what_is_under_keepalive_while_there_are_idle_ones():
    pool, shell = filled(3, keepalive=10.0)
    shell.run_to(10.0)
    (slot,) = shell.checking
    resize(pool, shell, 2)

    assert (slot.doomed, states(pool)) == (None, {"checking": 1, "idle": 1, "closing": 1})


def test_what_was_to_go_after_its_keepalive_may_stay_if_there_is_room_again():
    pool, shell = filled(2, keepalive=10.0)
    other = pool.take(0.0)
    shell.run_to(10.0)
    (slot,) = shell.checking
    resize(pool, shell, 1)
    assert slot.doomed == "resized"
    resize(pool, shell, 2)
    shell.answer(slot)

    assert (slot.state, other.state) == (IDLE, IN_USE)


def test_a_connect_that_could_not_be_cancelled_is_closed_when_more_than_it_are_too_many():
    pool, shell = filled(2)
    borrowed(pool, 2)
    resize(pool, shell, 3)
    (slot,) = shell.opening
    resize(pool, shell, 1)
    shell.open(slot)

    assert states(pool) == {"in use": 2, "closing": 1}


# -- when it is looked for what is too old, or not used ----------------------------------------------------------------


def test_what_a_pool_grew_by_later_is_closed_when_it_was_not_used_for_max_idle():
    pool, shell = grown(3, min_size=1, max_idle=60.0, now=1000.0)
    shell.run_to(1059.9)
    before = states(pool)
    shell.run_to(1060.0)

    assert (before, states(pool)) == ({"idle": 3}, {"idle": 1, "closing": 2})


def test_what_was_in_use_at_every_look_rests_for_max_idle_from_its_return_on():
    pool, shell = grown(3, min_size=1, max_idle=60.0)
    slots = borrowed(pool, 3)
    shell.run_to(130.0)
    for slot in slots:
        shell.end(slot)
    shell.run_to(189.9)
    before = states(pool)
    shell.run_to(190.0)

    assert (before, states(pool)) == ({"idle": 3}, {"idle": 1, "closing": 2})


def test_what_is_needed_for_min_size_stays_however_long_it_rests():
    pool, shell = grown(3, min_size=2, max_idle=60.0)
    one, two, _ = borrowed(pool, 3)
    shell.end(one, ERROR)
    shell.end(two, ERROR)
    for slot in list(shell.closing):
        shell.close(slot)
    shell.end(next(slot for slot in pool.slots if slot.state is IN_USE))
    while shell.now < 200.0:
        for slot in list(shell.opening):
            shell.refuse(slot)
        shell.run_to(shell.now + 10.0)

    assert states(pool)["idle"] == 1
    assert pool.discarded["idle"] == 0


def test_who_is_late_for_an_alarm_finds_all_the_same_what_has_grown_old_in_use():
    pool, _shell = filled(1, max_lifetime=100.0)
    slot = pool.take(0.0)
    pool.plan(100.5)

    assert slot.doomed == "lifetime"


@pytest.mark.parametrize("size", [3, 4])
def test_one_that_comes_back_too_old_goes_if_no_other_is_missing(size):
    pool, shell = filled(size, max_lifetime=100.0, max_connecting=1)
    for other in list(pool.idle)[1:]:
        other.expires = inf
    slot = pool.take(0.0)
    shell.run_to(100.0)
    shell.end(slot)

    assert slot.state is CLOSING


@pytest.mark.parametrize(("max_connecting", "failed", "closing"), [(2, 2, 1), (4, 3, 3)])
def test_what_closes_and_what_connects_counts_for_how_many_are_replaced_at_once(max_connecting, failed, closing):
    pool, shell = grown(6, min_size=1, max_lifetime=100.0, max_connecting=max_connecting)
    shell.run_to(99.0)
    for slot in borrowed(pool, failed):
        shell.end(slot, ERROR)
    shell.close(shell.closing[0])
    pool.open_one(99.0)
    shell.act()
    assert states(pool) == {"idle": 6 - failed, "closing": failed - 1, "connecting": 1}
    shell.run_to(100.0)

    assert states(pool)["closing"] == closing


def test_nothing_goes_for_its_age_while_more_than_max_connecting_are_missing():
    pool, shell = filled(5, max_lifetime=100.0, max_connecting=2)
    shell.run_to(99.0)
    for slot in borrowed(pool, 3):
        shell.end(slot, ERROR)
    shell.run_to(100.0)

    assert states(pool) == {"idle": 2, "closing": 3}


def failing(size, *, min_size, opened):
    """Return a pool of ``opened`` connections that live for 100 s and a connect that failed; and its shell."""
    pool, shell = grown(size, min_size=min_size, to=opened, max_lifetime=100.0)
    held = borrowed(pool, opened)
    (waiter,) = wait_for(pool, shell)
    shell.refuse(shell.opening[0])
    pool.queue.withdraw(waiter)
    for slot in held:
        shell.end(slot)
    shell.run_to(99.0)
    assert (pool.failures, states(pool)) == (1, {"idle": opened})
    return pool, shell


@pytest.mark.parametrize("now", [100.0, 100.5])
def test_where_connects_fail_one_is_had_in_advance_of_the_end_of_an_old_one(now):
    pool, shell = failing(3, min_size=1, opened=1)
    (old,) = pool.idle
    shell.now = now  # the alarm may be late
    pool.plan(now)
    shell.act()
    assert states(pool) == {"idle": 1, "connecting": 1}
    shell.open(shell.opening[0])

    assert old.state is CLOSING


def test_where_connects_fail_none_is_had_in_advance_of_what_is_not_old_yet():
    pool, shell = failing(3, min_size=1, opened=1)
    pool.resize(4, 1, 99.0)
    shell.act()

    assert states(pool) == {"idle": 1}


def test_where_connects_fail_what_is_above_min_size_goes_for_its_age():
    pool, shell = failing(4, min_size=1, opened=2)
    shell.run_to(100.0)

    assert states(pool)["closing"] == 1


def test_where_connects_fail_an_old_one_goes_if_there_is_no_room_for_another_in_advance():
    pool, shell = failing(2, min_size=1, opened=1)
    resize(pool, shell, 1)
    shell.run_to(100.0)

    assert states(pool) == {"closing": 1}


def test_what_comes_back_after_an_alarm_is_kept_alive_in_time():
    pool, shell = filled(1, keepalive=10.0, dice=0.0)
    slot = pool.take(0.0)
    shell.run_to(9.0)
    assert pool.alarm == 18.0
    shell.end(slot)
    shell.run_to(18.0)

    assert shell.checking == [slot]


# -- last in, first out ------------------------------------------------------------------------------------------------


def test_last_in_first_out_what_comes_back_with_an_error_of_the_application_is_lent_next():
    pool, shell = filled(3, lifo=True, keepalive=10.0)
    shell.run_to(5.0)
    slot = pool.take(5.0)
    shell.end(slot, KEPT)

    assert pool.take(5.0) is slot


@pytest.mark.parametrize("seed", range(30))
def test_last_in_first_out_no_connection_is_kept_alive_before_one_with_an_older_sign_of_life(seed):
    rng = Random(seed)
    pool, shell = filled(12, lifo=rng.choice([True, None]), min_size=11, keepalive=10.0)
    held = []
    for _ in range(150):
        step = rng.choice(["borrow", "return", "return", "answer", "wait", "wait", "resize", "fail"])
        if step == "borrow" and pool.idle:
            held.append(pool.take(shell.now))
        elif step == "return" and held:
            shell.end(held.pop(rng.randrange(len(held))), rng.choice([None, KEPT]))
        elif step == "answer" and shell.checking:
            shell.answer(rng.choice(shell.checking))
        elif step == "fail" and held:
            shell.end(held.pop(), ERROR)
            shell.settle_down()
        elif step == "resize":
            resize(pool, shell, rng.randint(10, 14), rng.randint(9, 10))
        elif step == "wait":
            resting = {*pool.idle}
            checking = {*shell.checking}
            shell.run_to(min(shell.now + rng.uniform(0.0, 3.0), shell.next_due))
            started = {*shell.checking} - checking
            assert all(one.alive_at <= other.alive_at for one in started for other in resting - started)


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


class PoolLife(Life):
    """The pure state of one pool, which may be one of a cluster's, with a look at what users do not see."""

    def make(self, options):
        queue = Queue(options.fail_after, keeps_some=options.min_size > 0)
        self.pool = Slots(
            options.size,
            name="pool",
            queue=queue,
            gate=Gate(options.max_connecting),
            rng=Random(options.seed),
            keepalive=options.keepalive,
            max_connecting=options.max_connecting,
            has_keepalive=options.seed % 2 == 0,
            min_size=options.min_size,
            max_lifetime=options.max_lifetime,
            max_idle=options.max_idle,
            lifo=options.lifo,
        )
        self.ejected = set()  # connects that were cancelled by an ejection
        self.is_ejected = False
        return Bench(self.pool, hold_warning=options.hold_warning)

    @property
    def queue(self):
        return self.pool.queue

    def is_spared(self, what):
        slot = what if isinstance(what, Slot) else self.driver.slot_of(what)
        return slot.probe or slot in self.ejected

    def is_probe(self, connection):
        return self.driver.slot_of(connection).probe

    # -- what happens to the pool of an endpoint -----------------------------------------------------------------------

    @rule()
    def tick_without_need(self):
        self.pool.tick(self.now)
        self.driver.act()
        self.observe()

    @rule(mark=st.sampled_from([DRAINED, EJECTED]))
    @precondition(lambda self: not self.is_shut)
    def suspend(self, mark):
        self.observe()
        self.is_running = False
        self.is_ejected = mark == EJECTED
        if self.is_ejected:
            for known in self.known.values():
                known.cause = known.cause or EJECTED
            self.ejected.update(attempt for attempt in self.driver.connecting if attempt not in self.spoilt)
        self.pool.suspend(mark)
        self.queue.judge(self.now)
        self.driver.act()
        self.observe()

    @property
    def is_probed(self):
        return self.pool._probe_wanted or any(slot.probe for slot in self.pool.slots)

    @rule()
    @precondition(lambda self: not self.is_shut and not self.is_probed)  # no cluster does that before it has ended
    def resume(self):
        self.observe()
        self.is_running = True
        self.is_ejected = False
        for connection, known in self.known.items():
            if known.must_go and self.driver.slot_of(connection).doomed is DRAINED:
                known.cause = known.cause or MOVED  # for good, even if its address comes back
        self.pool.resume(self.now)
        self.driver.act()
        self.observe(resized=True)

    @rule()
    @precondition(lambda self: self.is_ejected)
    def probe(self):
        self.pool.probe(self.now)
        self.driver.act()
        self.observe()

    @rule(there_and_back=st.booleans())
    @precondition(lambda self: not self.is_shut)
    def move(self, there_and_back):
        self.observe()
        for connection, known in self.known.items():
            slot = self.driver.slot_of(connection)
            slot.peer = "10.0.0.1"
            if slot.doomed is None and not slot.probe:
                known.cause = known.cause or MOVED
            elif not slot.probe:
                known.must_go = not there_and_back  # which is found out when it comes back
        self.pool.endpoint = object()
        self.pool.moved(["10.0.0.1"], ["10.0.0.2"])
        if there_and_back:
            self.pool.moved(["10.0.0.2"], ["10.0.0.1"])
        self.pool.plan(self.now)
        self.driver.act()
        self.observe()

    # -- what users do not see -----------------------------------------------------------------------------------------

    @invariant()
    def every_slot_is_in_one_state(self):
        assert_conserved(self.pool, at_most=self.slots_allowed)
        assert not self.queue.busy
        assert not self.queue.late
        assert list(self.queue.waiting) == self.waiting
        assert self.pool.waiting == len(self.waiting)

    @invariant()
    def every_state_has_its_worker_or_borrower(self):
        shell = self.driver.shell
        by_state = {CONNECTING: shell.opening, CHECKING: shell.checking, CLOSING: shell.closing}
        for state, slots in by_state.items():
            assert {s for s in self.pool.slots if s.state == state} == set(slots)
        in_use = {s.connection for s in self.pool.slots if s.state == IN_USE}
        assert in_use == {c for c in (*self.held, *self.collected) if c in self.known}
        assert {s.connection for s in self.queue.cut.values()} - {*self.collected} == {*self.cut}

    @invariant()
    def what_is_idle_is_not_doomed(self):
        assert all(slot.doomed is None for slot in self.pool.idle)

    @invariant()
    def the_coldest_has_the_oldest_sign_of_life(self):
        idle = self.pool.idle
        if idle:
            assert idle[self.pool._coldest()].alive_at == min(slot.alive_at for slot in idle)

    @invariant()
    def what_becomes_due_has_an_alarm(self):
        pool = self.pool
        if self.is_running and pool.failures and pool._wants_one and not pool.connecting:
            assert self.now <= pool.alarm <= pool.retry_at
        for timed in (pool, self.queue):
            assert timed.alarm == inf or (timed.alarm, timed) in self.driver.shell.alarms

    @invariant()
    def open_connections_are_known(self):
        slots = self.pool.slots
        assert self.queue.open == {id(s.connection): s for s in slots if s.state is not CONNECTING}
        probes = sum(slot.probe for slot in slots if slot.state is CHECKING)
        assert self.queue.live == self.pool.open - probes

    @invariant()
    def what_is_counted_is_news(self):
        told = [event.cause for event in self.driver.shell.news if isinstance(event, events.ConnectionClosed)]
        closing = [slot.doomed for slot in self.driver.shell.closing]
        assert len(told) == self.pool.closed_total
        assert self.pool.discarded == {cause: (told + closing).count(cause) for cause in CAUSES}


TestLife = PoolLife.TestCase
TestLife.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink)
)


def test_the_states_of_a_slot_have_names_of_their_own():
    names = [_queue.CONNECTING, _queue.IDLE, _queue.IN_USE, _queue.CHECKING, _queue.CLOSING]

    assert len(set(names)) == 5
