"""Which address of an endpoint to try, and when: Happy Eyeballs, RFC 8305. Pure: told the time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import chain, zip_longest

# Seconds for which an attempt may be silent before the next is started beside it: the default of RFC 8305, section 8.
ATTEMPT_DELAY = 0.25


def interleaved(addresses: Iterable[str]) -> list[str]:
    """Return IP addresses by turns of their family, the first IPv6, each family in the order it came in.

    That is RFC 8305, section 4, with a First Address Family Count of 1: a family that does not work costs one attempt.
    """
    families: tuple[list[str], list[str]] = [], []
    for address in addresses:
        families[":" not in address].append(address)
    return [address for address in chain.from_iterable(zip_longest(*families)) if address is not None]


class Race:
    """Attempts to connect to ``addresses``, by RFC 8305, section 5. All times are monotonic seconds.

    Who acts asks for addresses with :meth:`next`, tells with :meth:`failed` which attempts came to nothing, and stops
    at the first that succeeds, when :attr:`is_lost`, or at ``deadline``.
    """

    def __init__(self, addresses: Iterable[str], deadline: float) -> None:
        self.deadline = deadline
        self.next_attempt_at = -math.inf
        self.last_error: OSError | None = None
        self._left = deque(interleaved(addresses))
        self._under_way = 0

    @property
    def is_lost(self) -> bool:
        """Whether every attempt has failed and none is left to be made."""
        return not self._left and not self._under_way

    def next(self, now: float) -> str | None:
        """Return the address to try now, None if none is due. The attempt counts as under way until it failed."""
        if not self._left or now < self.next_attempt_at:
            return None
        self.next_attempt_at = now + ATTEMPT_DELAY
        self._under_way += 1
        return self._left.popleft()

    def failed(self, error: OSError) -> None:
        """An attempt has failed: the next need not wait, as the delay is for those that are silent."""
        self._under_way -= 1
        self.last_error = error
        self.next_attempt_at = -math.inf

    def patience(self, now: float) -> float | None:
        """Return for how many seconds to wait for the attempts under way, None: until one of them has ended."""
        until = min(self.deadline, self.next_attempt_at if self._left else math.inf)
        return None if until == math.inf else max(0.0, until - now)
