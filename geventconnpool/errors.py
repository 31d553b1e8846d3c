"""What the pool itself raises.

None of these is an :class:`OSError` or :class:`TimeoutError`: an exhausted inner pool must not make an outer pool throw
its connection away, and :func:`~geventconnpool.retry` must not feed an overloaded queue.
"""

from __future__ import annotations


class PoolError(Exception):
    """Base of every error that a pool raises on its own account."""


class PoolTimeout(PoolError):
    """No connection within the time allowed. ``__cause__`` is the last connect error, if there was one."""


class PoolFull(PoolError):
    """As many callers wait as may."""


class PoolClosed(PoolError):
    """The pool has been closed."""


class PoolUnavailable(PoolError):
    """There is nothing to wait for: no connection for ``fail_after`` seconds, or a service without endpoints.

    ``__cause__`` is the last connect error, if there was one.
    """
