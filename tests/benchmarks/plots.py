"""The plots of the load balancing benchmark."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from tests.benchmarks.contestants import OURS, P2C, P2C_EWMA, PENALISED, RANDOM, ROUND_ROBIN, SCAN, Contestant
from tests.benchmarks.scenarios import ODD, OUTAGE, between, linkerd_calls, many_calls, share, sinkhole_calls, went_to
from tests.benchmarks.simulator import quantile
from tests.benchmarks.svg import Axis, Band, Line, chart


def linkerd(seconds: float = 60.0) -> str:
    def late(contestant: Contestant) -> Line:
        times = [call.at for call in linkerd_calls(contestant, 0, seconds) if call.seconds > 1.0]
        steps = [when / 4 for when in range(int(4 * seconds) + 1)]
        so_far = [(when, float(sum(at <= when for at in times))) for when in steps]
        return Line(contestant.name, [(when, number) for when, number in so_far if number])

    return chart(
        "Linkerd 2016: calls that took longer than 1 s, of 60,000",
        Axis("seconds", 0.0, seconds, range(0, int(seconds) + 1, 10)),
        Axis("late calls so far", 1.0, 4000.0, [1, 10, 100, 1000], is_log=True),
        [late(contestant) for contestant in (OURS, ROUND_ROBIN, P2C, P2C_EWMA)],
        Band("one of 11 servers takes 2 s", 15.0, 45.0),
    )


def sinkhole(seeds: int = 20) -> str:
    def shares(contestant: Contestant) -> Line:
        runs = [sinkhole_calls(contestant, seed, keepalive=1.0) for seed in range(seeds)]
        seconds = [when / 2 for when in range(60)]
        at = {when: mean(share(between(calls, when, when + 0.5), went_to(ODD)) for calls in runs) for when in seconds}
        return Line(contestant.name, [(when + 0.25, part) for when, part in at.items()])

    return chart(
        f"Sinkhole: where calls go when one of three servers refuses at once (mean of {seeds} runs)",
        Axis("seconds", 0.0, 30.0, range(0, 31, 5)),
        Axis("share of that server, %", 0.0, 100.0, [0, 20, 40, 60, 80, 100]),
        [*map(shares, (OURS, SCAN, PENALISED)), Line("fair share", [(0.0, 100 / 3), (30.0, 100 / 3)])],
        Band("it refuses every call", *OUTAGE),
    )


def many(seconds: float = 12.0) -> str:
    parts = [10 ** (-n / 20) for n in range(61)]  # from all calls to one in a thousand

    def latencies(contestant: Contestant) -> Line:
        milliseconds = sorted(1000 * call.seconds for call in many_calls(contestant, 0, seconds))
        return Line(contestant.name, [(quantile(milliseconds, 1.0 - part), 100 * part) for part in parts])

    return chart(
        "20 clients that share 20 servers, 90 % busy: how long calls take",
        Axis("milliseconds", 0.0, 500.0, range(0, 501, 100)),
        Axis("calls that take longer, %", 0.1, 100.0, [0.1, 1, 10, 100], is_log=True),
        [latencies(contestant) for contestant in (OURS, RANDOM, ROUND_ROBIN, P2C, SCAN)],
    )


PLOTS: dict[str, Callable[[], str]] = {"linkerd": linkerd, "sinkhole-keepalive": sinkhole, "many": many}
