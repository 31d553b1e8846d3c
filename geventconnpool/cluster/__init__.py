"""A pool over all endpoints of a service."""

from geventconnpool.cluster._balancers import Balancer, Candidate, LeastLoaded, PeakEWMA, RoundRobin
from geventconnpool.cluster._endpoints import Endpoint, NoRecords, Resolution, ResolutionError
from geventconnpool.cluster._outliers import OutlierDetection
from geventconnpool.cluster._pool import ClusterPool
from geventconnpool.cluster._resolvers import DNSResolver, Resolver, StaticResolver

__all__ = [
    "Balancer",
    "Candidate",
    "ClusterPool",
    "DNSResolver",
    "Endpoint",
    "LeastLoaded",
    "NoRecords",
    "OutlierDetection",
    "PeakEWMA",
    "Resolution",
    "ResolutionError",
    "Resolver",
    "RoundRobin",
    "StaticResolver",
]
