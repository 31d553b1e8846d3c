"""How long an answer of SRV records takes to read, and thus holds up the hub: dnspython beside ``cluster._wire``.

python -m tests.benchmarks.parse
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import dns.flags
import dns.message
import dns.rrset

from geventconnpool.cluster import _wire

SERVICE = "_redis._tcp.example.test."
SIZES = (3, 500, 1100)
RUNS = 31


def answer(records: int) -> bytes:
    """Return an answer with targets of 33 bytes, as names of servers in a data centre tend to have."""
    response = dns.message.make_response(dns.message.make_query(SERVICE, "SRV"))
    response.flags |= dns.flags.AA
    data = [f"0 1 6379 redis-{number:04}.rack-07.example.test." for number in range(records)]
    response.answer.append(dns.rrset.from_text_list(SERVICE, 5, "IN", "SRV", data))
    return response.to_wire(max_size=65535)


def milliseconds(read: Callable[[bytes], object], wire: bytes) -> float:
    """Return what reading costs by itself: the quickest of all runs."""
    times = []
    for _ in range(RUNS):
        begin = perf_counter()
        read(wire)
        times.append(1000 * (perf_counter() - begin))
    return min(times)


def ours(wire: bytes) -> object:
    return _wire.follow(_wire.parse(wire))


def main() -> None:
    print(f"{'records':>8} {'bytes':>7} {'dnspython':>11} {'_wire':>9} {'ratio':>6}")
    for records in SIZES:
        wire = answer(records)
        theirs, mine = milliseconds(dns.message.from_wire, wire), milliseconds(ours, wire)
        print(f"{records:>8} {len(wire):>7} {theirs:>8.2f} ms {mine:>6.2f} ms {theirs / mine:>6.0f}")


if __name__ == "__main__":
    main()
