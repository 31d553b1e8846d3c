"""When ``@retry`` calls again, when it gives up, and what it tells."""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import time
from contextlib import suppress
from itertools import pairwise
from math import inf
from random import Random
from typing import Any

import gevent
import pytest

from geventconnpool import ConnectionPool, PoolClosed, PoolTimeout, PoolUnavailable, RetryBudget, _retry, retry
from geventconnpool._retry import Policy

BROKEN = OSError("broken")
NO_FILE = FileNotFoundError(2, "no such file", "/nowhere")


class Flaky:
    """A function that raises its failures one after another, then returns "done"; knows when it was called."""

    __name__ = "flaky"

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.times: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.times.append(time.monotonic())
        if self.failures:
            raise self.failures.pop(0)
        return (*args, kwargs) if args or kwargs else "done"

    @property
    def calls(self) -> int:
        return len(self.times)

    @property
    def pauses(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.times)]


class Pool(ConnectionPool[object]):
    def _new_connection(self):
        return object()


def give_up(function, kind: type[BaseException] = OSError) -> BaseException:
    """Return what ``function()`` raises."""
    with pytest.raises(kind) as caught:
        function()
    return caught.value


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


# -- how it is applied -------------------------------------------------------------------------------------------------


def test_it_decorates_without_parentheses():
    calls = []

    @retry
    def send():
        calls.append(1)
        if len(calls) < 3:
            raise OSError("broken")
        return "done"

    assert send() == "done"
    assert len(calls) == 3


@pytest.mark.parametrize(
    "decorate",
    [
        retry(),
        retry(None),
        retry(max_failures=5),
        retry(interval=0.001, backoff=2, jitter=0.5, max_interval=1, timeout=5),
        functools.partial(retry, max_failures=5),
        functools.partial(retry, max_failures=5)(interval=0),
        functools.partial(functools.partial(retry, max_failures=0), max_failures=5),
    ],
)
def test_it_decorates_with_options_and_through_partial(decorate):
    flaky = Flaky(BROKEN, BROKEN)

    assert decorate(flaky)() == "done"
    assert flaky.calls == 3


def test_arguments_and_results_pass_through():
    assert retry(Flaky(BROKEN))(1, 2, a=3) == (1, 2, {"a": 3})
    assert retry(lambda *, f, name, exc_classes: (f, name, exc_classes))(f=1, name=2, exc_classes=3) == (1, 2, 3)


def test_it_decorates_methods_of_every_kind():
    failures = [OSError("1"), OSError("2"), OSError("3")]

    class Client:
        @retry
        def method(self, x):
            if failures:
                raise failures.pop()
            return self, x

        @classmethod
        @retry(max_failures=3)
        def of_class(cls, x):
            return cls, x

        @staticmethod
        @retry
        def static(x):
            return x

    client = Client()
    assert client.method(1) == (client, 1)
    assert client.of_class(2) == (Client, 2)
    assert client.static(3) == Client.static(3) == 3
    assert failures == []


def test_the_function_keeps_its_name_docstring_and_signature():
    @retry(max_failures=1)
    def send(data: bytes, *, flag: bool = False) -> int:
        """Send it."""
        return 1

    assert (send.__name__, send.__doc__, send.__module__) == ("send", "Send it.", __name__)
    assert list(inspect.signature(send).parameters) == ["data", "flag"]
    assert send.__wrapped__(b"") == 1


def test_the_first_parameters_work_by_position_and_the_others_by_keyword_only():
    log = logging.getLogger("mine")
    flaky = Flaky(KeyError(), KeyError())

    give_up(retry(flaky, (KeyError,), log, logging.INFO, "retry {f}", 1, 0, logging.ERROR, "end {f}"), KeyError)
    assert flaky.calls == 2
    with pytest.raises(TypeError):
        retry(flaky, (KeyError,), log, logging.INFO, "retry {f}", 1, 0, logging.ERROR, "end {f}", 2.0)


def test_what_can_be_called_but_has_no_name_can_be_retried(caplog):
    caplog.set_level(logging.DEBUG, "geventconnpool")
    flaky = functools.partial(Flaky(BROKEN))

    assert retry(flaky)() == "done"
    assert "partial" in caplog.text


# -- what is called again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "exc_classes"),
    [
        (BROKEN, OSError),
        (ConnectionResetError(104, "reset"), (OSError,)),
        (TimeoutError(), OSError),
        (KeyError(), KeyError),
        (KeyError(), [ValueError, KeyError]),
        (NO_FILE, FileNotFoundError),
        (NO_FILE, (OSError, FileNotFoundError)),
        (gevent.Timeout(1), gevent.Timeout),
    ],
)
def test_what_is_one_of_exc_classes_is_called_again(failure, exc_classes):
    flaky = Flaky(failure)

    assert retry(flaky, exc_classes)() == "done"
    assert flaky.calls == 2


@pytest.mark.parametrize(
    ("failure", "exc_classes"),
    [
        (KeyError(), OSError),
        (BROKEN, KeyError),
        (NO_FILE, OSError),
        (NO_FILE, (OSError, ConnectionError)),
        (PoolTimeout(), OSError),
        (PoolClosed(), OSError),
        (PoolUnavailable(), OSError),
        (gevent.Timeout(1), OSError),
        (gevent.GreenletExit(), (OSError, Exception)),
        (KeyboardInterrupt(), Exception),
    ],
)
def test_anything_else_is_raised_as_it_is_at_once(failure, exc_classes):
    flaky = Flaky(failure)

    assert give_up(retry(flaky, exc_classes), BaseException) is failure
    assert flaky.calls == 1
    assert notes(failure) == ""


def test_the_default_is_socket_error_without_errors_about_files():
    assert retry(Flaky(BROKEN))() == "done"
    assert give_up(retry(Flaky(NO_FILE))) is NO_FILE


def test_another_failure_after_retries_is_raised_as_it_is():
    failure = KeyError("mine")
    flaky = Flaky(BROKEN, BROKEN, failure)

    assert give_up(retry(flaky), KeyError) is failure
    assert flaky.calls == 3


# -- when it gives up --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_max_failures_k_gives_k_plus_1_calls_and_raises_the_last_exception_itself(k):
    failures = [OSError(str(number)) for number in range(10)]
    flaky = Flaky(*failures)

    assert give_up(retry(flaky, max_failures=k)) is failures[k]
    assert flaky.calls == k + 1


def test_without_max_failures_it_goes_on():
    flaky = Flaky(*[OSError("broken")] * 1000)

    assert retry(flaky)() == "done"
    assert flaky.calls == 1001


def test_each_call_counts_its_own_failures():
    flaky = Flaky(*[OSError("broken")] * 3)
    retried = retry(flaky, max_failures=2)

    give_up(retried)
    assert retried() == "done"


def test_the_earlier_failures_are_in_a_note_of_the_last():
    error = give_up(retry(Flaky(OSError("first"), ConnectionResetError("second"), OSError("third")), max_failures=2))

    assert str(error) == "third"
    assert "OSError('first')" in notes(error)
    assert "ConnectionResetError('second')" in notes(error)
    assert "third" not in notes(error)


def test_a_failure_without_earlier_ones_has_no_note():
    assert notes(give_up(retry(Flaky(OSError("only")), max_failures=0))) == ""


def test_the_note_says_on_which_pool_an_attempt_failed():
    with Pool(2, name="the pool") as pool:

        @retry(max_failures=1)
        def call():
            with pool.get():
                raise OSError("broken")

        note = notes(give_up(call))
    assert note.count("the pool") == 1
    assert "OSError('broken')" in note


def test_a_failure_is_noted_in_every_enclosing_call():
    with Pool(2, name="the pool") as pool:

        @retry(max_failures=1)
        def inner():
            with pool.get():
                raise OSError("broken")

        @retry(max_failures=1)
        def outer():
            inner()

        note = notes(give_up(outer))

    # Of the second inner call its first attempt; of the outer one its first, in which the pool failed twice.
    assert note.count("attempt 1 failed") == 2
    assert note.count("the pool") == 3


def test_of_many_places_where_one_attempt_failed_the_first_ten_are_told():
    with Pool(1, name="the pool") as pool:

        @retry(max_failures=1)
        def call():
            for _ in range(12):
                with suppress(OSError), pool.get():
                    raise OSError("broken")
            raise OSError("enough")

        note = notes(give_up(call))

    assert note == "attempt 1 failed: " + "the pool: " * 10 + "OSError('enough')"


def test_a_connection_lent_to_another_greenlet_is_not_noted():
    with Pool(2, name="the pool") as pool:

        def use():
            with pool.get():
                raise OSError("broken")

        @retry(max_failures=1)
        def call():
            spawned = gevent.Greenlet(use)
            spawned.report_error = lambda exc_info: None
            spawned.start()
            spawned.join()
            raise OSError("mine")

        note = notes(give_up(call))

    assert "mine" in note
    assert "the pool" not in note


def test_calls_beside_each_other_know_nothing_of_each_other():
    with Pool(1, name="first pool") as first, Pool(1, name="second pool") as second:

        @retry(max_failures=2)
        def call(pool):
            with pool.get():
                gevent.sleep(0.001)
                raise OSError("broken")

        found = [gevent.spawn(give_up, functools.partial(call, pool)) for pool in (first, second)]
        one, other = (notes(greenlet.get()) for greenlet in found)

    assert (one.count("first pool"), one.count("second pool")) == (2, 0)
    assert (other.count("first pool"), other.count("second pool")) == (0, 2)


def test_a_lease_of_another_greenlet_that_is_collected_during_a_call_is_not_noted_in_it():
    with Pool(2, name="the pool") as pool:

        def rows():
            with pool.get():
                yield

        forgotten = [rows()]
        gevent.spawn(next, forgotten[0]).join()

        @retry(max_failures=1)
        def call():
            forgotten.clear()
            gc.collect()
            raise OSError("mine")

        note = notes(give_up(call))

        assert pool.stats().discarded["interrupted"] == 1
    assert "the pool" not in note


def test_a_good_use_of_a_pool_is_not_noted():
    with Pool(2, name="the pool") as pool:

        @retry(max_failures=1)
        def call():
            with pool.get():
                pass
            raise OSError("after it")

        assert "the pool" not in notes(give_up(call))


def test_a_discarded_connection_is_noted():
    with Pool(2, name="the pool") as pool:

        @retry(max_failures=1)
        def call():
            pool.discard(pool.acquire())
            raise OSError("after it")

        assert notes(give_up(call)).count("the pool") == 1


def test_nothing_is_remembered_after_a_call_however_it_ended():
    retry(Flaky(BROKEN))()
    give_up(retry(Flaky(KeyError())), KeyError)
    give_up(retry(Flaky(BROKEN), max_failures=0))
    sleeper = gevent.spawn(retry(lambda: gevent.sleep(5)))
    gevent.sleep(0)
    assert len(_retry.calls) == 1
    sleeper.kill()

    assert _retry.calls == {}


def test_a_recursive_call_ends_and_remembers_nothing():
    @retry(max_failures=1)
    def down(depth):
        if depth == 0:
            raise OSError("bottom")
        down(depth - 1)

    give_up(lambda: down(3))
    assert _retry.calls == {}


# -- waiting -----------------------------------------------------------------------------------------------------------


def policy(**given: Any) -> Policy:
    numbers = {"interval": 0.0, "backoff": 1.0, "max_interval": inf, "jitter": 0.0, "timeout": inf, **given}
    line = (logging.INFO, "")
    log: Any = {"logger": logging.getLogger("mine"), "retry_log": line, "failure_log": line, "budget": None}
    return Policy(exc_classes=(OSError,), max_failures=None, **log, **numbers)


@pytest.mark.parametrize(
    ("options", "pauses"),
    [
        ({}, [0, 0, 0, 0]),
        ({"interval": 2.0}, [2, 2, 2, 2]),
        ({"interval": 1.0, "backoff": 2.0}, [1, 2, 4, 8]),
        ({"interval": 1.0, "backoff": 2.0, "max_interval": 3.0}, [1, 2, 3, 3]),
        ({"interval": 5.0, "max_interval": 3.0}, [3, 3, 3, 3]),
        ({"interval": 8.0, "backoff": 0.5}, [8, 4, 2, 1]),
    ],
)
def test_the_pause_is_interval_times_backoff_to_the_n_at_most_max_interval(options, pauses):
    assert [policy(**options).pause(n, Random(0)) for n in range(4)] == pauses


def test_jitter_takes_off_up_to_its_part_of_the_pause():
    drawn = [policy(interval=10.0, jitter=0.25).pause(0, Random(seed)) for seed in range(500)]

    assert 7.5 <= min(drawn) < 7.6
    assert 9.9 < max(drawn) <= 10


def test_jitter_of_1_takes_off_up_to_all():
    drawn = [policy(interval=10.0, jitter=1.0).pause(0, Random(seed)) for seed in range(500)]

    assert 0 <= min(drawn) < 0.1
    assert 9.9 < max(drawn) <= 10


@pytest.mark.parametrize("n", [1_023, 1_024, 5_000, 1_000_000])
def test_the_pause_stays_within_bounds_after_any_number_of_failures(n):
    assert policy(interval=1.0, backoff=2.0, max_interval=30.0).pause(n, Random(0)) == 30
    assert policy(interval=1.0, backoff=0.5).pause(n + 100, Random(0)) == pytest.approx(0)
    assert policy(interval=0.0, backoff=2.0, max_interval=30.0).pause(n, Random(0)) == 0
    assert policy(interval=0.0, backoff=2.0).pause(n, Random(0)) == 0


def test_it_sleeps_between_calls():
    flaky = Flaky(BROKEN, BROKEN)
    retry(flaky, interval=0.03, backoff=2)()

    assert 0.029 <= flaky.pauses[0] < 10
    assert 0.059 <= flaky.pauses[1] < 10


def test_it_does_not_sleep_before_the_final_raise():
    started = time.monotonic()
    give_up(retry(Flaky(BROKEN), interval=5, max_failures=0))

    assert time.monotonic() - started < 4


def test_an_interval_of_0_lets_other_greenlets_run():
    ran = []
    gevent.spawn(ran.append, "other")

    retry(Flaky(BROKEN))()
    assert ran == ["other"]


def test_a_call_that_succeeds_at_once_does_not_switch():
    ran = []
    other = gevent.spawn(ran.append, "other")

    retry(Flaky())()
    assert ran == []
    other.join()


def test_an_interruption_of_the_pause_goes_through():
    with pytest.raises(gevent.Timeout) as caught:
        with gevent.Timeout(0.01) as mine:
            retry(Flaky(BROKEN), interval=5, exc_classes=(OSError, gevent.Timeout))()

    assert caught.value is mine


def test_no_pause_ends_after_the_timeout():
    def calls():
        flaky = Flaky(*[BROKEN] * 100)
        started = time.monotonic()
        error = give_up(retry(flaky, interval=0.08, timeout=0.2))
        assert flaky.calls <= 3
        assert flaky.times[-1] - started < 0.21
        assert error is BROKEN
        return flaky.calls

    assert any(calls() >= 2 for _ in range(10))  # on a busy machine a pause may last until all is over


def test_a_pause_that_would_end_after_the_timeout_is_not_begun():
    started = time.monotonic()
    give_up(retry(Flaky(BROKEN), interval=5, timeout=1))

    assert time.monotonic() - started < 4


def test_no_attempt_starts_after_the_timeout():
    flaky = Flaky(*[OSError("broken")] * 100)
    gevent.spawn(time.sleep, 0.1)  # blocks the hub, so that the pause of 0 takes longer than the timeout
    error = give_up(retry(flaky, timeout=0.05))

    assert flaky.calls == 1
    assert str(error) == "broken"


def test_with_a_timeout_of_0_there_is_one_attempt():
    flaky = Flaky(*[BROKEN] * 3)
    give_up(retry(flaky, timeout=0))

    assert flaky.calls == 1


def test_a_running_attempt_is_not_interrupted_by_the_timeout():
    @retry(timeout=0.01)
    def slow():
        gevent.sleep(0.03)
        return "done"

    assert slow() == "done"


def test_the_timeout_counts_from_the_call_not_from_the_decoration():
    flaky = Flaky(BROKEN)
    retried = retry(flaky, timeout=0.05)
    gevent.sleep(0.06)

    assert retried() == "done"


# -- the budget --------------------------------------------------------------------------------------------------------


def spent(**options: Any) -> RetryBudget:
    """Return a budget from which the retries of its first second are taken, so that little is left."""
    budget = RetryBudget(**options)
    now = time.monotonic()
    budget.deposit(now)
    while budget.withdraw(now):
        pass
    return budget


def test_when_the_budget_is_spent_a_failure_goes_to_the_caller_at_once_as_it_is():
    failures = [OSError("first"), OSError("second"), OSError("third")]
    flaky = Flaky(*failures)
    budget = RetryBudget(ratio=1, min_per_second=0)
    started = time.monotonic()

    assert give_up(retry(flaky, budget=budget)) is failures[1]
    assert give_up(retry(Flaky(BROKEN), budget=spent(ratio=0, min_per_second=0), interval=5)) is BROKEN
    assert flaky.calls == 2
    assert time.monotonic() - started < 4


def test_the_note_says_that_the_budget_is_spent_after_the_earlier_failures():
    budget = RetryBudget(ratio=1, min_per_second=0)
    error = give_up(retry(Flaky(OSError("first"), OSError("second")), budget=budget))
    alone = give_up(retry(Flaky(OSError("only")), budget=RetryBudget(0, 0)))

    assert error.__notes__ == [
        "attempt 1 failed: OSError('first')\nnot retried: RetryBudget(ratio=1, min_per_second=0) is spent"
    ]
    assert alone.__notes__ == ["not retried: RetryBudget(ratio=0, min_per_second=0) is spent"]


def test_a_failure_that_the_budget_does_not_retry_is_logged_as_the_end(caplog):
    caplog.set_level(logging.DEBUG)
    give_up(
        retry(
            Flaky(BROKEN),
            budget=RetryBudget(0, 0),
            logger=logging.getLogger("mine"),
            max_failure_log_level=logging.CRITICAL,
            max_failure_log_message="enough of {f}",
        )
    )

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("CRITICAL", "enough of flaky")]


def test_functions_share_a_budget():
    budget = RetryBudget(ratio=0.5, min_per_second=0)
    good, bad = retry(Flaky(), budget=budget), Flaky(*[OSError("broken")] * 9)
    for _ in range(7):
        good()
    give_up(retry(bad, budget=budget))  # the eighth call

    assert bad.calls == 1 + 4


def test_each_call_earns_once_however_often_it_is_retried():
    budget = RetryBudget(ratio=1, min_per_second=0)
    flaky = Flaky(*[OSError("broken")] * 100)
    for _ in range(10):
        give_up(retry(flaky, budget=budget))

    assert flaky.calls == 20


@pytest.mark.parametrize(("shared", "attempts"), [(True, 4), (False, 2)])
def test_a_nested_call_is_a_call_too_but_earns_nothing_within_a_retry_that_its_budget_paid(shared, attempts):
    budget = RetryBudget(ratio=1, min_per_second=0)
    inner = retry(Flaky(), budget=budget if shared else RetryBudget(ratio=1, min_per_second=0))
    between = retry(lambda: (inner(), inner()))
    tried = []

    @retry(budget=budget)
    def outer():
        tried.append(between())
        raise OSError("broken")

    give_up(outer)
    assert len(tried) == attempts


def test_a_nested_call_earns_within_a_retry_that_another_budget_paid():
    mine, others = RetryBudget(ratio=1, min_per_second=0), RetryBudget(ratio=2, min_per_second=0)
    inner = retry(Flaky(), budget=mine)

    @retry(budget=others)
    def outer():
        inner()
        raise OSError("broken")

    give_up(outer)
    assert mine.balance(time.monotonic()) == 3


@pytest.mark.parametrize(
    ("limits", "calls"),
    [
        ({"max_failures": 2}, 3),
        ({"max_failures": 9}, 6),
        ({"timeout": 0}, 1),
        ({"timeout": 50}, 6),
        ({"max_failures": 2, "timeout": 50}, 3),
        ({"max_failures": 2, "timeout": 0}, 1),
    ],
)
def test_of_max_failures_timeout_and_budget_the_first_that_is_reached_ends_it(limits, calls):
    flaky = Flaky(*[OSError("broken")] * 10)
    give_up(retry(flaky, budget=RetryBudget(ratio=5, min_per_second=0), **limits))

    assert flaky.calls == calls


def test_a_retry_that_another_limit_forbids_is_not_paid():
    budget = RetryBudget(ratio=5, min_per_second=0)
    give_up(retry(Flaky(BROKEN), budget=budget, max_failures=0))
    give_up(retry(Flaky(BROKEN), budget=budget, timeout=1, interval=5))
    with pytest.raises(KeyError):
        retry(Flaky(KeyError()), budget=budget)()

    assert budget.balance(time.monotonic()) == 10


def test_without_a_budget_nothing_is_limited_and_budgets_know_nothing_of_each_other():
    one, other = RetryBudget(ratio=1, min_per_second=0), RetryBudget(ratio=2, min_per_second=0)
    flaky = [Flaky(*[OSError("broken")] * 5) for _ in range(3)]
    give_up(retry(flaky[0], budget=one))
    give_up(retry(flaky[1], budget=other))
    retry(flaky[2])()

    assert [f.calls for f in flaky] == [2, 3, 6]


def test_when_all_fails_the_load_stays_within_the_bound():
    budget = RetryBudget()
    flaky = Flaky(*[OSError("broken")] * 10_000)
    ask = retry(flaky, budget=budget, max_failures=3)
    for _ in range(1_000):
        give_up(ask)
    seconds = flaky.times[-1] - flaky.times[0]

    assert 1_200 < flaky.calls <= 1_000 + 0.2 * 1_000 + 10 * max(1.0, seconds)


# -- the log -----------------------------------------------------------------------------------------------------------


def test_without_a_logger_all_goes_to_the_packages_at_debug(caplog):
    caplog.set_level(logging.DEBUG)
    give_up(retry(Flaky(BROKEN, BROKEN), max_failures=1, max_failure_log_level=logging.CRITICAL))

    assert [(record.name, record.levelname) for record in caplog.records] == [("geventconnpool.retry", "DEBUG")] * 2


def test_a_logger_gets_each_retry_at_info_and_the_end_at_error(caplog):
    caplog.set_level(logging.DEBUG)
    give_up(retry(Flaky(BROKEN, BROKEN, BROKEN), max_failures=2, logger=logging.getLogger("mine")))

    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "ERROR"]
    assert {record.name for record in caplog.records} == {"mine"}
    assert all("flaky" in record.getMessage() and "broken" in record.getMessage() for record in caplog.records)


def test_the_packages_own_logger_given_explicitly_is_a_logger_like_any_other(caplog):
    caplog.set_level(logging.DEBUG)
    give_up(retry(Flaky(BROKEN), max_failures=0, logger=logging.getLogger("geventconnpool.retry")))

    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_levels_and_templates_can_be_chosen(caplog):
    caplog.set_level(logging.DEBUG)
    retried = retry(
        Flaky(OSError("one"), OSError("100% of it")),
        logger=logging.getLogger("mine"),
        max_failures=1,
        retry_log_level=logging.WARNING,
        retry_log_message="again {f} because {e}",
        max_failure_log_level=logging.CRITICAL,
        max_failure_log_message="enough of {f}: {e!r}",
    )
    give_up(retried)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "again flaky because one"),
        ("CRITICAL", "enough of flaky: OSError('100% of it')"),
    ]


def test_a_template_may_use_what_only_the_exceptions_to_come_have(caplog):
    caplog.set_level(logging.DEBUG)
    retried = retry(
        Flaky(OSError(5, "broken"), BROKEN),
        exc_classes=Exception,
        logger=logging.getLogger("mine"),
        max_failures=1,
        retry_log_message="again {f} because of {e.errno}",
        max_failure_log_message="enough of {f}: {e.nothing}",
    )
    give_up(retried)

    assert [record.getMessage() for record in caplog.records] == [
        "again flaky because of 5",
        "flaky: OSError('broken')",  # what cannot be formatted is told all the same
    ]


def test_a_success_is_not_logged(caplog):
    caplog.set_level(logging.DEBUG)
    retry(Flaky(), logger=logging.getLogger("mine"))()

    assert caplog.records == []


def test_anything_with_a_log_method_is_a_logger():
    class Lines(list[Any]):
        def log(self, level: int, message: str) -> None:
            self.append((level, message))

    lines = Lines()
    retry(Flaky(BROKEN), logger=lines, retry_log_message="{f} {e}")()

    assert lines == [(logging.INFO, "flaky broken")]


# -- bad input ---------------------------------------------------------------------------------------------------------

NAN = float("nan")
NO_SECONDS = [(-1, ValueError), (NAN, ValueError), ("5", TypeError), (True, TypeError), ([], TypeError)]
BAD: dict[str, list[tuple[Any, type[Exception]]]] = {
    "f": [(5, TypeError), ("flaky", TypeError), (OSError, TypeError)],
    "exc_classes": [(5, TypeError), (None, TypeError), ("OSError", TypeError), ([OSError, 5], TypeError)],
    "max_failures": [(-1, ValueError), (1.5, TypeError), ("5", TypeError), (True, TypeError)],
    "interval": [*NO_SECONDS, (None, TypeError), (inf, ValueError)],
    "backoff": [(0, ValueError), (-1, ValueError), (NAN, ValueError), ("2", TypeError), (None, TypeError)],
    "max_interval": NO_SECONDS,
    "jitter": [(-0.1, ValueError), (1.1, ValueError), (NAN, ValueError), ("1", TypeError), (None, TypeError)],
    "timeout": NO_SECONDS,
    "budget": [(0.2, TypeError), (RetryBudget, TypeError), (True, TypeError)],
    "retry_log_level": [("INFO", TypeError)],
    "max_failure_log_level": [(None, TypeError)],
    "retry_log_message": [(5, TypeError), ("{nothing}", ValueError)],
    "max_failure_log_message": [("{0}", ValueError)],
    "logger": [("mine", TypeError)],
}  # fmt: skip


@pytest.mark.parametrize(("option", "value", "kind"), [(o, v, k) for o, bad in BAD.items() for v, k in bad])
def test_a_bad_option_is_refused_with_its_name_and_value(option, value, kind):
    with pytest.raises(kind) as caught:
        retry(**{option: value})

    text = str(caught.value)
    assert option in text
    assert repr(value) in text or (option == "exc_classes" and any(repr(item) in text for item in value))


def test_backoff_is_a_number_and_no_time():
    with pytest.raises(ValueError, match="backoff must be a number above 0, not -2"):
        retry(backoff=-2)


@pytest.mark.parametrize("option", ["tries", "max_retries"])
def test_an_unknown_option_is_refused_with_its_name(option):
    with pytest.raises(TypeError, match=option):
        retry(**{option: 1})


def test_what_cannot_be_called_cannot_be_retried():
    with pytest.raises(TypeError, match="'send'"):
        retry(max_failures=1)("send")


def yielding():
    yield 1


async def awaited():
    return 1


async def both():
    yield 1


@pytest.mark.parametrize("function", [yielding, awaited, both])
def test_what_runs_only_after_the_call_cannot_be_retried(function):
    for use in retry, retry(max_failures=1):
        with pytest.raises(
            TypeError, match=f"f must be a plain function, not one that is async or has a yield: <.*{function.__name__}"
        ):
            use(function)


def test_of_endless_failures_the_first_and_the_last_are_listed():
    @retry(max_failures=1000)
    def call():
        raise OSError("again")

    with pytest.raises(OSError, match="again") as caught:
        call()
    lines = caught.value.__notes__[0].splitlines()

    assert [line.split()[1] for line in lines] == [str(n) for n in (*range(1, 11), *range(991, 1001))]
