"""What the pools under one roof share: when all is down, and which leases last too long."""

from __future__ import annotations

from math import inf

import pytest

from geventconnpool._queue import ERROR, Holds, Queue, Waiter
from tests.test_slots import make
from tests.virtual import Shell


def unavailable():
    return RuntimeError("none could be opened")


def begun(size=1, *, fail_after=10.0, **options):
    """Return a pool that has just begun to connect, which is down after 10 s without a connection, and its shell."""
    queue = Queue(fail_after, keeps_some=options.get("min_size") != 0)
    queue.unavailable = unavailable
    pool = make(size, queue=queue, **options)
    shell = Shell(queue)
    pool.plan(0.0)
    shell.act()
    return pool, shell


def ask(pool, shell):
    waiter = Waiter(shell.now, only=pool)
    pool.ask(waiter, shell.now)
    shell.act()
    return waiter


def fail_until(pool, shell, until):
    """Refuse every connect, each at once, up to that time; return when each was made."""
    attempts = []
    while True:
        for slot in list(shell.opening):
            attempts.append(round(shell.now, 3))
            shell.refuse(slot)
        if shell.next_due > until:
            shell.run_to(until)
            return attempts
        shell.run_to(shell.next_due)


# -- down --------------------------------------------------------------------------------------------------------------


def test_a_pool_that_has_no_connection_is_bare_from_the_start():
    pool, _ = begun()

    assert (pool.queue.bare_since, pool.queue.is_down, pool.queue.alarm) == (0.0, False, 10.0)


def test_a_pool_that_never_gives_up_needs_no_alarm_for_that():
    pool, shell = begun(fail_after=inf)

    assert (pool.queue.alarm, shell.alarms) == (inf, [])


def test_an_open_connection_ends_it():
    pool, shell = begun()
    shell.run_to(9.0)
    shell.open(shell.opening[0])
    shell.run_to(100.0)

    assert (pool.queue.bare_since, pool.queue.is_down, pool.queue.live) == (inf, False, 1)


def test_a_connection_that_is_in_use_is_live():
    pool, shell = begun()
    shell.open(shell.opening[0])
    pool.take(0.0)
    shell.run_to(100.0)

    assert pool.queue.is_down is False


def test_after_fail_after_seconds_without_a_connection_everybody_who_waits_is_refused():
    pool, shell = begun()
    first = ask(pool, shell)
    shell.run_to(9.0)
    second = ask(pool, shell)
    shell.run_to(9.999)
    before = [first.is_settled, second.is_settled]
    shell.run_to(10.0)

    assert before == [False, False]
    assert (str(first.error), str(second.error)) == ("none could be opened", "none could be opened")
    assert first.error is not second.error
    assert (pool.queue.is_down, shell.woken) == (True, [first, second])


def test_a_pool_whose_last_connection_breaks_is_bare_from_then_on():
    pool, shell = begun()
    shell.open(shell.opening[0])
    slot = pool.take(0.0)
    shell.run_to(50.0)
    shell.end(slot, ERROR)
    before = pool.queue.bare_since
    shell.run_to(59.9)
    assert pool.queue.is_down is False
    shell.run_to(60.0)

    assert (before, pool.queue.is_down) == (50.0, True)


def test_an_alarm_from_before_a_recovery_does_not_shorten_the_time():
    pool, shell = begun()
    shell.run_to(5.0)
    shell.open(shell.opening[0])
    shell.run_to(8.0)
    shell.end(pool.take(8.0), ERROR)
    shell.run_to(17.9)
    before = pool.queue.is_down
    shell.run_to(18.0)

    assert (before, pool.queue.is_down) == (False, True)


def test_while_all_is_down_the_pool_goes_on_trying():
    pool, shell = begun()

    assert fail_until(pool, shell, 45.0) == [0.0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7, 25.5]


def test_the_first_connection_ends_a_time_of_refusal():
    pool, shell = begun()
    fail_until(pool, shell, 25.0)
    before = pool.queue.is_down
    shell.run_to(26.0)
    shell.open(shell.opening[0])

    assert (before, pool.queue.is_down, pool.queue.bare_since) == (True, False, inf)


def test_after_a_recovery_it_takes_as_long_again():
    pool, shell = begun()
    shell.run_to(30.0)
    shell.open(shell.opening[0])
    shell.end(pool.take(30.0), ERROR)
    shell.run_to(39.9)
    before = pool.queue.is_down
    shell.run_to(40.0)

    assert (before, pool.queue.is_down) == (False, True)


def test_a_pool_that_keeps_none_is_not_bare_while_nobody_waits():
    pool, shell = begun(min_size=0)
    shell.run_to(1000.0)

    assert (pool.queue.bare_since, pool.queue.is_down) == (inf, False)


def test_a_pool_that_keeps_none_is_bare_since_somebody_waits():
    pool, shell = begun(min_size=0)
    shell.run_to(100.0)
    waiter = ask(pool, shell)
    shell.run_to(105.0)
    ask(pool, shell)
    before = pool.queue.bare_since
    shell.run_to(110.0)

    assert (before, pool.queue.is_down) == (100.0, True)
    assert waiter.error is not None


def test_a_pool_that_keeps_none_is_bare_no_more_when_the_last_gave_up():
    pool, shell = begun(min_size=0)
    first, second = ask(pool, shell), ask(pool, shell)
    shell.run_to(5.0)
    pool.queue.withdraw(first)
    one_waits = pool.queue.bare_since
    pool.queue.withdraw(second)
    nobody_waits = pool.queue.bare_since
    shell.run_to(6.0)
    ask(pool, shell)
    shell.run_to(15.9)

    assert (one_waits, nobody_waits) == (0.0, inf)
    assert (pool.queue.bare_since, pool.queue.is_down) == (6.0, False)


def test_a_pool_that_keeps_none_goes_on_trying_while_all_is_down():
    pool, shell = begun(3, min_size=0)
    ask(pool, shell)
    attempts = fail_until(pool, shell, 45.0)

    assert attempts == [0.0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7, 25.5]
    assert (pool.queue.is_down, list(pool.queue.waiting)) == (True, [])


def test_a_pool_that_keeps_none_opens_one_after_it_was_down_and_rests():
    pool, shell = begun(3, min_size=0)
    ask(pool, shell)
    fail_until(pool, shell, 25.0)
    shell.run_to(26.0)
    shell.open(shell.opening[0])
    shell.run_to(1000.0)

    assert (pool.queue.is_down, len(pool.idle), shell.opening) == (False, 1, [])


def test_a_pool_that_is_to_keep_none_any_more_is_not_bare_while_nobody_waits():
    pool, shell = begun(2)
    pool.resize(2, 0, 5.0)
    shell.act()
    shell.run_to(100.0)

    assert (pool.queue.bare_since, pool.queue.is_down) == (inf, False)


def test_a_pool_that_is_to_keep_some_is_bare_from_then_on():
    pool, shell = begun(2, min_size=0)
    shell.run_to(5.0)
    pool.resize(2, 1, 5.0)
    shell.act()
    shell.run_to(14.9)
    before = pool.queue.is_down
    shell.run_to(15.0)

    assert (before, pool.queue.is_down) == (False, True)


def test_pools_under_one_roof_are_down_only_if_none_of_them_has_a_connection():
    one, shell = begun()
    other = make(1, queue=one.queue)
    other.plan(0.0)
    shell.act()
    shell.open(next(slot for slot in shell.opening if slot.pool is other))
    shell.run_to(50.0)
    before = (one.queue.is_down, one.queue.live)
    shell.end(other.take(50.0), ERROR)
    shell.run_to(60.0)

    assert (before, one.queue.is_down) == ((False, 1), True)


@pytest.mark.parametrize("state", ["idle", "in use", "checking", "connecting", "closing"])
def test_what_can_be_used_now_or_soon_is_live(state):
    pool, shell = begun(keepalive=5.0)
    if state != "connecting":
        shell.open(shell.opening[0])
    if state == "in use":
        pool.take(0.0)
    elif state == "checking":
        shell.run_to(5.0)
    elif state == "closing":
        shell.end(pool.take(0.0), ERROR)

    assert [slot.state for slot in pool.slots] == [state]
    assert pool.queue.live == (state not in ("connecting", "closing"))


# -- leases that last too long -----------------------------------------------------------------------------------------


def watched(size=3, *, seconds=10.0):
    """Return a full pool whose leases should be over after 10 s, and its shell."""
    pool, shell = begun(size, fail_after=inf)
    shell.settle_down()
    Holds(pool.queue, seconds, shell.now)
    shell.act()
    return pool, shell


def borrow(pool, shell, now):
    shell.run_to(now)
    return pool.take(now)


def test_a_lease_that_lasts_for_too_long_is_told_of_when_it_is_due():
    pool, shell = watched()
    slot = borrow(pool, shell, 3.0)
    shell.run_to(12.999)
    before = list(shell.held)
    shell.run_to(13.0)

    assert (before, shell.held) == ([], [(13.0, slot)])


def test_a_lease_is_told_of_once():
    pool, shell = watched()
    slot = borrow(pool, shell, 3.0)
    shell.run_to(1000.0)

    assert shell.held == [(13.0, slot)]


def test_every_lease_is_due_in_its_own_time():
    pool, shell = watched()
    one = borrow(pool, shell, 1.0)
    two = borrow(pool, shell, 2.5)
    three = borrow(pool, shell, 10.5)
    shell.run_to(1000.0)

    assert shell.held == [(11.0, one), (12.5, two), (20.5, three)]


def test_a_lease_that_ended_in_time_is_not_told_of():
    pool, shell = watched()
    slot = borrow(pool, shell, 3.0)
    shell.run_to(12.9)
    shell.end(slot)
    shell.run_to(1000.0)

    assert shell.held == []


def test_the_next_lease_of_the_same_connection_is_told_of_again():
    pool, shell = watched(1)
    slot = borrow(pool, shell, 3.0)
    shell.run_to(20.0)
    shell.end(slot)
    borrow(pool, shell, 25.0)
    shell.run_to(1000.0)

    assert shell.held == [(13.0, slot), (35.0, slot)]


def test_a_lease_begins_when_the_connection_is_handed_over():
    pool, shell = watched(1)
    slot = borrow(pool, shell, 3.0)
    ask(pool, shell)
    shell.run_to(9.0)
    shell.end(slot)
    shell.run_to(1000.0)

    assert shell.held == [(19.0, slot)]


def test_borrowing_and_returning_give_no_orders_to_look():
    pool, shell = watched(1)
    for _ in range(5):
        slot = pool.take(shell.now)
        pool.returned(slot, shell.now)

    assert list(pool.queue.todo) == []


def test_while_nothing_is_lent_there_is_one_look_per_time():
    _, shell = watched()
    looks = []
    while shell.now < 50.0:
        shell.run_to(shell.next_due)
        looks.append(shell.now)

    assert looks == [10.0, 20.0, 30.0, 40.0, 50.0]
