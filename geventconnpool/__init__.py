"""A pool of connections for gevent, and a cluster of pools over what DNS says a service consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geventconnpool._budget import RetryBudget
from geventconnpool._retry import retry
from geventconnpool.errors import PoolClosed, PoolError, PoolFull, PoolTimeout, PoolUnavailable
from geventconnpool.pool import ConnectionPool

if TYPE_CHECKING:
    from geventconnpool.cluster import ClusterPool, Endpoint
else:  # type checkers would take every name for one that is here

    def __getattr__(name: str) -> Any:
        """Load what needs dnspython on first use."""
        if name in ("ClusterPool", "Endpoint"):
            from geventconnpool import cluster

            return getattr(cluster, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ClusterPool",
    "ConnectionPool",
    "Endpoint",
    "PoolClosed",
    "PoolError",
    "PoolFull",
    "PoolTimeout",
    "PoolUnavailable",
    "RetryBudget",
    "retry",
]

__version__ = "1.0.0rc1"
