"""Calling again after a connection error, and what a retried call remembers of its failures.

A retried call belongs to the greenlet it runs in: greenlets it spawns, and calls beside it, know nothing of it. It
may contain other retried calls; a failure is noted in all of them. The memory is a dict by ``id`` of the greenlet,
not a context variable, because gevent hands a greenlet's context on to those it spawns; and an ``id``, because a dict
that held the greenlet would keep a forgotten one alive. The entry lives exactly as long as the outermost call.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial, wraps
from math import inf
from random import Random
from time import monotonic
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, overload

import gevent
from gevent import getcurrent

from geventconnpool import _check
from geventconnpool._backoff import exponential, spread
from geventconnpool._budget import RetryBudget
from geventconnpool._check import show

P = ParamSpec("P")
R = TypeVar("R")

calls: dict[int, Call] = {}  # that are being retried, by id of their greenlet
_rng = Random()
_log = logging.getLogger("geventconnpool.retry")

REMEMBERED = 10  # first, and last, failures that are listed; also the places told of one attempt
RETRY_MESSAGE = "Retrying {f}() after {e!r}"
FAILURE_MESSAGE = "Giving up on {f}() after {e!r}"


class Logger(Protocol):
    """Anything with ``log``: loggers of the standard library and of structlog."""

    def log(self, level: int, msg: str) -> Any: ...


class Call:
    """One retried call: where its attempts failed (to be avoided), and where the present one did (to be told)."""

    __slots__ = ("avoided", "blamed", "outer", "paid_by")

    def __init__(self, outer: Call | None) -> None:
        self.outer = outer
        self.avoided: dict[object, set[Any]] = {} if outer is None else outer.avoided
        self.blamed: list[str] = []
        self.paid_by: RetryBudget | None = None  # of the present attempt; a first one costs nothing

    def earns(self, budget: RetryBudget) -> bool:
        """Say whether this is a call to the budget, and no part of a retry that it paid: those must not multiply."""
        call = self.outer
        while call is not None and call.paid_by is not budget:
            call = call.outer
        return call is None


def note_failure(borrower: object, memory: object, place: object) -> None:
    """Remember in every retried call of the borrowing greenlet that a lease of ``place`` went wrong.

    ``memory`` is whose place it is, so that several clusters may be used in one call.
    """
    call = calls.get(id(borrower)) if calls else None
    if call is not None:
        call.avoided.setdefault(memory, set()).add(place)
    while call is not None:
        if len(call.blamed) < REMEMBERED:
            call.blamed.append(str(place))
        call = call.outer


def places_to_avoid(memory: object) -> Collection[Any]:
    """Return where attempts of the retried call that this greenlet is in, with all that is nested, have failed."""
    call = calls.get(id(getcurrent())) if calls else None
    return () if call is None else call.avoided.get(memory, ())


class Policy(NamedTuple):
    """When to call again, checked; see :func:`retry`."""

    exc_classes: tuple[type[BaseException], ...]
    logger: Logger
    retry_log: tuple[int, str]
    failure_log: tuple[int, str]
    max_failures: int | None
    interval: float
    backoff: float
    max_interval: float
    jitter: float
    timeout: float
    budget: RetryBudget | None

    def run(self, function: Callable[[], R], name: str) -> R:
        """Call ``function`` until it succeeds, raises something else, or the policy says that it is enough."""
        me = id(getcurrent())
        outer = calls.get(me)
        call = Call(outer)
        if self.budget is not None and call.earns(self.budget):
            self.budget.deposit(monotonic())
        calls[me] = call
        try:
            return self._attempts(function, name, call)
        finally:
            if outer is None:
                del calls[me]
            else:
                calls[me] = outer

    def _attempts(self, function: Callable[[], R], name: str, call: Call) -> R:
        deadline = monotonic() + self.timeout
        history: list[str] = []
        failures = 0
        while True:
            call.blamed.clear()
            try:
                return function()
            except self.exc_classes as error:
                if not _check.is_connection_error(error, self.exc_classes):
                    raise
                now, pause = monotonic(), self.pause(failures, _rng)
                if self.goes_on(failures + 1, now + pause, deadline) and self.pay(now, history):
                    self._log(self.retry_log, name, error)
                    gevent.sleep(pause)
                    if monotonic() <= deadline:
                        failures, call.paid_by = failures + 1, self.budget
                        _remember(history, f"attempt {failures} failed: " + ": ".join([*call.blamed, show(error)]))
                        continue
                self._log(self.failure_log, name, error)
                _tell(error, history)
                raise

    def pause(self, earlier: int, rng: Random) -> float:
        """Return how many seconds to wait after a failure that ``earlier`` ones came before."""
        seconds = exponential(earlier, base=self.interval, factor=self.backoff, cap=self.max_interval)
        return spread(seconds, 1.0 - self.jitter, 1.0, rng)

    def goes_on(self, failures: int, next_attempt: float, deadline: float) -> bool:
        return (self.max_failures is None or failures <= self.max_failures) and next_attempt <= deadline

    def pay(self, now: float, history: list[str]) -> bool:
        """Take the next attempt out of the budget; if that is spent, say so in what is told, and return False."""
        if self.budget is None or self.budget.withdraw(now):
            return True
        history.append(f"not retried: {self.budget} is spent")
        return False

    def _log(self, line: tuple[int, str], name: str, error: BaseException) -> None:
        level, template = line
        try:
            message = template.format(f=name, e=error)
        except Exception:  # what cannot be formatted must not hide the error
            message = f"{name}: {show(error)}"
        self.logger.log(level, message)


def _check_template(parameter: str, template: object) -> None:
    """Raise unless the text can be formatted: at the first failure it would hide that."""
    if not isinstance(template, str):
        raise TypeError(f"{parameter} must be a str, not {show(template)}")
    try:
        template.format(f="f", e=Exception(*"arguments"))
    except (LookupError, ValueError) as error:
        raise ValueError(f"{parameter} may use {{f}} and {{e}}, {show(template)} does not: {error!r}") from None
    except Exception:  # an attribute that the exceptions to come may have
        return


def _checked(budget: object) -> RetryBudget | None:
    if budget is None or isinstance(budget, RetryBudget):
        return budget
    raise TypeError(f"budget must be a RetryBudget, not {show(budget)}")


def _tell(error: BaseException, history: list[str]) -> None:
    if history:
        with suppress(Exception):  # an exception that takes no note is raised without
            error.add_note("\n".join(history))


def _remember(history: list[str], line: str) -> None:
    """Keep the first and the last few of what may be endless."""
    if len(history) == 2 * REMEMBERED:
        del history[REMEMBERED]
    history.append(line)


@overload
def retry(
    f: Callable[P, R],
    exc_classes: type[BaseException] | Iterable[type[BaseException]] = ...,
    logger: Logger | None = ...,
    retry_log_level: int = ...,
    retry_log_message: str = ...,
    max_failures: int | None = ...,
    interval: float = ...,
    max_failure_log_level: int = ...,
    max_failure_log_message: str = ...,
    *,
    backoff: float = ...,
    max_interval: float | None = ...,
    jitter: float = ...,
    timeout: float | None = ...,
    budget: RetryBudget | None = ...,
) -> Callable[P, R]: ...
@overload
def retry(
    f: None = None,
    exc_classes: type[BaseException] | Iterable[type[BaseException]] = ...,
    logger: Logger | None = ...,
    retry_log_level: int = ...,
    retry_log_message: str = ...,
    max_failures: int | None = ...,
    interval: float = ...,
    max_failure_log_level: int = ...,
    max_failure_log_message: str = ...,
    *,
    backoff: float = ...,
    max_interval: float | None = ...,
    jitter: float = ...,
    timeout: float | None = ...,
    budget: RetryBudget | None = ...,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def retry(
    f: Any = None,
    exc_classes: type[BaseException] | Iterable[type[BaseException]] = (socket.error,),
    logger: Logger | None = None,
    retry_log_level: int = logging.INFO,
    retry_log_message: str = RETRY_MESSAGE,
    max_failures: int | None = None,
    interval: float = 0,
    max_failure_log_level: int = logging.ERROR,
    max_failure_log_message: str = FAILURE_MESSAGE,
    *,
    backoff: float = 1.0,
    max_interval: float | None = None,
    jitter: float = 0.0,
    timeout: float | None = None,
    budget: RetryBudget | None = None,
) -> Any:
    """Call a function again when it raises one of ``exc_classes`` (an OSError about a file is not one: see the docs).

    Usable as ``@retry``, as ``@retry(...)`` and through ``functools.partial(retry, ...)``, for functions and methods.

    ``max_failures``
        after that many failures the next one is raised, so ``k`` gives ``k + 1`` calls; None: try for ever.
    ``interval``, ``backoff``, ``max_interval``, ``jitter``
        after the n-th failure wait ``interval * backoff**(n - 1)`` seconds, at most ``max_interval``, less up to
        ``jitter`` (0 to 1) of it. An interval of 0 still lets other greenlets run.
    ``timeout``
        seconds after which no attempt starts, and no sleep ends; a running attempt is not interrupted.
    ``budget``
        a :class:`~geventconnpool.RetryBudget`, shared by any number of functions, that each call adds to and each
        retry takes from; when it is spent, the failure is raised at once. A retried call inside another is a call too,
        unless it is part of a retry.
    ``logger``, ``*_log_level``, ``*_log_message``
        each retry and the final failure are logged there, ``{f}`` being the function's name and ``{e}`` the exception;
        without a logger at level DEBUG to ``geventconnpool.retry``.

    The first limit that is reached ends the call. When it gives up it raises the last exception itself, with a note
    that lists the earlier failures (and says so if the budget is spent). In one retried call, endpoints of a cluster on
    which an attempt failed are avoided as long as there is another.

    Raises :class:`ValueError` or :class:`TypeError`, naming the option, when the function is decorated.
    """
    _check.function("f", f)
    if isinstance(f, type) and issubclass(f, BaseException):  # which could be called, too, but hardly is meant to be
        raise TypeError(f"f must be a function, not {show(f)}: what is to be retried goes to exc_classes")
    _check.function("logger.log", getattr(logger, "log", logger))
    _check.integer("retry_log_level", retry_log_level, 0)
    _check.integer("max_failure_log_level", max_failure_log_level, 0)
    _check_template("retry_log_message", retry_log_message)
    _check_template("max_failure_log_message", max_failure_log_message)
    policy = Policy(
        exc_classes=_check.exception_classes("exc_classes", exc_classes),
        logger=_log if logger is None else logger,
        retry_log=(logging.DEBUG if logger is None else retry_log_level, retry_log_message),
        failure_log=(logging.DEBUG if logger is None else max_failure_log_level, max_failure_log_message),
        max_failures=None if max_failures is None else _check.integer("max_failures", max_failures, 0),
        interval=_check.seconds("interval", interval),
        backoff=_check.factor("backoff", backoff),
        max_interval=inf if max_interval is None else _check.seconds("max_interval", max_interval),
        jitter=_check.number("jitter", jitter, 0, 1),
        timeout=inf if timeout is None else _check.seconds("timeout", timeout),
        budget=_checked(budget),
    )

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if not callable(function):
            raise TypeError(f"retry cannot call {show(function)}")
        _check.plain_function("f", function)

        name = getattr(function, "__name__", None) or repr(function)

        @wraps(function)
        def retrying(*args: P.args, **kwargs: P.kwargs) -> R:
            return policy.run(partial(function, *args, **kwargs), name)

        return retrying

    return decorate if f is None else decorate(f)
