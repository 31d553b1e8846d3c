"""What one needs to test what a program does when its servers, or its DNS, fail.

Everything here runs in the process of the test, on 127.0.0.1, without root, and is changed while it runs. The servers
answer in the greenlets of whoever starts them: the hub has to run.
"""

from geventconnpool.testing._backend import Backend, Proxy
from geventconnpool.testing._clock import SimpleCandidate, VirtualClock
from geventconnpool.testing._dns import DNSServer
from geventconnpool.testing._simulation import SimulatedCall, SimulatedServer, Story, play

__all__ = [
    "Backend",
    "DNSServer",
    "Proxy",
    "SimpleCandidate",
    "SimulatedCall",
    "SimulatedServer",
    "Story",
    "VirtualClock",
    "play",
]
