"""How many retries a program may add to its calls. Pure.

Retries help when few calls fail. When all fail, three retries of each call are four times the load, just when there is
too much of it, and keep a service down that would come up again. A number of retries per call cannot tell these apart;
a budget that all calls share can: calls earn what retries spend (Brooker 2022, "Fixing retries with token buckets and
circuit breakers").

The parameters and their defaults are those of Finagle's RetryBudget and of tower's TpsBudget: a call earns ``ratio``
of a retry, and each second ``min_per_second`` of them, for programs with few calls. Both of these keep a window of ten
seconds. Here it is a token bucket, two floats whatever the load, that holds what ten seconds earn::

      a call begins: + ratio                              a retry: - 1
      time passes: + min_per_second each second               ^
                 |                                            | refused if less than one is there
                 v                                            |
          +------------------------------------------------------+
          |  tokens, at most reserve = 10 s * min_per_second     | ----> what is beyond is lost
          |  (at least 10)                                       |
          +------------------------------------------------------+

Nothing is earned but by calls and by time, so two bounds hold, whatever comes when and whatever of it fails:

* from the first call on: ``retries <= ratio * calls + min_per_second * max(1, seconds)``. The budget starts with the
  share of its first second, and time earns nothing before that is over. So a new program may retry its first failures,
  and the bound has no constant from the first second on.
* in any stretch of time: ``retries <= ratio * calls + min_per_second * seconds + reserve``. A pause, or an hour without
  failures, hoards no more than that.

The reserve is for failures that come together: a server that dies fails all calls in flight on it at once, one for
each connection of its pool, and these are the retries that help. It is Finagle's and tower's: ten seconds of
``min_per_second``, 100 by default. What comes together in larger numbers needs a larger ``min_per_second``. The floor
of 10 is for budgets that live on calls alone.
"""

from __future__ import annotations

from math import inf

from geventconnpool import _check

WINDOW = 10.0  # seconds of min_per_second that are kept
FLOOR = 10.0  # tokens that any budget can keep
ADVANCE = 1.0  # seconds of min_per_second that are there at the first call
TINY = 1e-9  # what rounding may lack of a token: ten times 0.1 are less than 1


class RetryBudget:
    """What :func:`~geventconnpool.retry` may add to the load, for all functions that are given this budget together.

    A call earns ``ratio`` (0 to 10) of a retry, a second ``min_per_second`` of them; a retry costs one. When nothing
    is left, a failure goes to its caller at once. So if all calls fail, the load is at most
    ``1 + ratio + min_per_second / (calls per second)`` times the calls, from the first second on. What is not spent is
    kept up to ``reserve`` retries, for failures that come together: ten times ``min_per_second``, at least 10.

    It may be shared by greenlets, hubs and native threads. A child process goes on with a copy of its own. Raises
    :class:`ValueError` or :class:`TypeError`, naming parameter and value.
    """

    __slots__ = ("_paid_until", "_tokens", "min_per_second", "ratio", "reserve")

    def __init__(self, ratio: float = 0.2, min_per_second: float = 10) -> None:
        self.ratio: float = _check.number("ratio", ratio, 0, FLOOR)
        self.min_per_second: float = _check.number("min_per_second", min_per_second, 0, 1e6)
        self.reserve: float = max(FLOOR, WINDOW * min_per_second)
        self._tokens = ADVANCE * min_per_second
        self._paid_until = inf  # the time up to which _tokens has its share; inf: there was no call yet

    def deposit(self, now: float) -> None:
        """A call begins: its first attempt, at ``now`` in seconds of ``time.monotonic()``.

        For who retries by other means than :func:`~geventconnpool.retry`.
        """
        self._book(self.ratio, now)

    def withdraw(self, now: float) -> bool:
        """Take what a retry costs, at ``now``, and say whether it was there; if not, nothing is taken."""
        return self._book(-1.0, now)

    def balance(self, now: float) -> int:
        """Return how many retries could begin at ``now``, without taking anything."""
        earned = max(0.0, now - self._paid_until) * self.min_per_second
        return int(min(self.reserve, self._tokens + earned) + TINY)

    def _book(self, amount: float, now: float) -> bool:
        # Native threads share budgets without a lock: one that waits for a lock holds up its hub. CPython changes
        # threads, and collects garbage, at calls and at loops: there are none below. (An interpreter without a global
        # lock might now and then forget what another thread has booked meanwhile.)
        tokens, paid_until = self._tokens, self._paid_until
        if paid_until == inf:
            paid_until = now + ADVANCE
        elif now > paid_until:  # else the first second, or another thread that has read the clock later
            tokens += (now - paid_until) * self.min_per_second
            paid_until = now
            if tokens > self.reserve:
                tokens = self.reserve
        tokens += amount
        if tokens < -TINY:
            return False
        self._tokens = tokens if tokens < self.reserve else self.reserve
        self._paid_until = paid_until
        return True

    def __repr__(self) -> str:
        return f"RetryBudget(ratio={self.ratio}, min_per_second={self.min_per_second})"
