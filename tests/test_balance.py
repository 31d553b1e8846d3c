"""The experiments with load balancing: in small, what they find holds; and they find the same every time."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from math import exp
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest

from tests.benchmarks import balance, plots, scenarios
from tests.benchmarks.contestants import (
    EVERYBODY,
    OURS,
    P2C,
    RANDOM,
    ROUND_ROBIN,
    SCAN,
    SCAN_EWMA,
    PeakAverage,
    distinct,
    with_replacement,
)
from tests.benchmarks.svg import Axis, Band, Line, chart
from tests.virtual import Dice

DOCS = Path(__file__).parent.parent / "docs"


# -- the set-ups, in small ---------------------------------------------------------------------------------------------


def run(contestant, seed):
    """Return where each call of a short run went, and how long it took."""
    return [(call.place, call.seconds) for call in scenarios.sinkhole_calls(contestant, seed, seconds=10.0)]


@pytest.mark.parametrize("contestant", EVERYBODY, ids=lambda contestant: contestant.name)
def test_a_run_is_the_same_whenever_it_is_made(contestant):
    first = run(contestant, 7)

    assert len(first) == pytest.approx(1500, rel=0.1)
    assert run(contestant, 7) == first


def test_contestants_meet_the_same_arrivals():
    one, other, third = (
        [call.at for call in scenarios.sinkhole_calls(contestant, seed, seconds=5.0)]
        for contestant, seed in ((ROUND_ROBIN, 3), (OURS, 3), (OURS, 4))
    )

    assert one == other != third


def test_a_slow_endpoint_costs_round_robin_its_share_of_all_calls_and_us_those_that_were_under_way():
    ours, theirs = (scenarios.linkerd(contestant, 0, seconds=16.5) for contestant in (OURS, ROUND_ROBIN))

    assert ours["within 1 s %"] >= 99.85  # 16,500 calls
    assert ours["to the slow one"] <= 25
    assert ours["p99.9 ms"] < 200
    assert theirs["within 1 s %"] == pytest.approx(100 - 100 * 1.5 / 16.5 / 11, abs=0.02)
    assert theirs["p99.9 ms"] == pytest.approx(2000)


def test_recorded_latencies_have_the_quantiles_that_were_published():
    milliseconds = [1000 * scenarios.recorded(Dice(q)) for q in (0.0, 0.25, 0.5, 0.9, 0.99, 1.0)]

    assert milliseconds == pytest.approx([164.1, 165.8, 167.5, 176.7, 192.3, 200.0])


def test_two_slow_endpoints_of_four_are_no_slower_than_none():
    ours, theirs = scenarios.brpc(OURS, 0, seconds=1.0), scenarios.brpc(P2C, 0, seconds=1.0)

    assert ours["p99 us, 2 slow"] <= 1.1 * ours["p99 us, 0 slow"] <= 400
    assert theirs["p99 us, 2 slow"] > 5000


def test_the_quickest_of_ten_endpoints_is_found():
    ours, theirs = scenarios.tower(OURS, 0, total=3000), scenarios.tower(ROUND_ROBIN, 0, total=3000)

    assert ours["p95 ms"] <= 1.0
    assert ours["wall s"] <= 1.0  # one call to the slowest
    assert theirs["wall s"] > 3.0


def test_an_endpoint_that_fails_at_once_attracts_all_but_us():
    ours, scan, robin = (scenarios.sinkhole(contestant, 0) for contestant in (OURS, SCAN, ROUND_ROBIN))

    assert ours["failed in the outage %"] <= 0.2
    assert scan["failed in the outage %"] >= 60
    assert robin["failed in the outage %"] == pytest.approx(100 / 3, abs=0.2)
    assert robin["share after it %"] == pytest.approx(100 / 3, abs=0.2)


def test_keepalives_that_lie_cost_little():
    figures = scenarios.sinkhole(OURS, 0, keepalive=1.0, is_grey=True)

    assert 0 < figures["failed in the outage %"] <= 0.5


def test_an_endpoint_that_is_back_has_its_share_again():
    runs = [scenarios.sinkhole(OURS, seed, keepalive=1.0) for seed in range(5)]

    assert sum(figures["share after it %"] for figures in runs) / 5 >= 15


def test_clients_that_know_nothing_of_each_other_do_not_flock():
    ours, theirs = (scenarios.many(contestant, 0, seconds=6.0, number=8) for contestant in (OURS, RANDOM))

    assert 10 < ours["p50 ms"] < theirs["p50 ms"]
    assert ours["p99 ms"] < theirs["p99 ms"]


@pytest.mark.parametrize("kind", ["exponential", "uniform"])
def test_weights_are_kept(kind):
    figures = scenarios.weights(OURS, 0, rate=300, kind=kind, seconds=8.0)

    assert figures["of 60 %"] + figures["of 30 %"] + figures["of 10 %"] == pytest.approx(100)
    assert figures["off by, points"] <= 2


def test_a_retry_that_avoids_the_dead_one_of_two_always_succeeds():
    repeated = scenarios.dead_of_two(RANDOM, 0, avoids=False, seconds=10.0)
    avoided = scenarios.dead_of_two(RANDOM, 0, avoids=True, seconds=10.0)

    assert repeated["success %"] == pytest.approx(75, abs=4)
    assert avoided["success %"] == 100
    assert avoided["attempts per call"] == pytest.approx(1.5, abs=0.05)
    assert scenarios.dead_of_two(OURS, 0, avoids=True, seconds=10.0)["success %"] == 100


def test_an_endpoint_that_is_cold_or_slow_gets_less():
    cold = scenarios.cold_start(OURS, 0, seconds=20.0, rate=100)
    slow = scenarios.slow_middle(OURS, 0, seconds=20.0, rate=100)

    assert cold["share while cold %"] < 5 < 10 < 100 / cold["share after %"]
    assert slow["share while slow %"] < 2
    assert scenarios.slow_middle(ROUND_ROBIN, 0, seconds=20.0, rate=100)["share while slow %"] == 10


def test_failures_of_an_endpoint_are_few():
    passing = scenarios.temporary_failure(OURS, 0, seconds=35.0, rate=50)
    lasting = scenarios.permanent_failure(OURS, 0, seconds=30.0, rate=100)

    assert 1 <= passing["failed calls"] <= 5
    assert passing["share in the 10 s after %"] > 1
    assert 1 <= lasting["failed calls"] <= 20
    assert scenarios.permanent_failure(ROUND_ROBIN, 0, seconds=30.0, rate=100)["failed in it %"] == 10


# -- the balancers of others -------------------------------------------------------------------------------------------


def test_two_are_drawn_evenly_and_the_same_one_twice_only_with_replacement():
    rng = Random(5)
    pairs = Counter("".join(distinct("ABC", rng)) for _ in range(6000))
    repeated = Counter("".join(with_replacement("ABC", rng)) for _ in range(9000))

    assert pairs == {pair: pytest.approx(1000, rel=0.1) for pair in ("AB", "AC", "BA", "BC", "CA", "CB")}
    assert {pair: repeated[pair] for pair in ("AA", "AB", "BB")} == {
        pair: pytest.approx(1000, rel=0.1) for pair in ("AA", "AB", "BB")
    }
    assert distinct("A", rng) == "A"


def test_a_peak_is_believed_at_once_and_forgotten_in_time():
    average = PeakAverage()
    average.observe(0.1, 0.0)
    average.observe(2.0, 1.0)

    assert average.value == 2.0
    assert average.at_time(11.0) == pytest.approx(2.0 * exp(-1))
    assert average.observe(0.1, 11.0) == pytest.approx(2.0 * exp(-1) + 0.1 * (1 - exp(-1)))


def test_a_penalty_fades_from_its_peak():
    penalty = PeakAverage()
    penalty.peak(5.0, 0.0)
    penalty.peak(5.0, 10.0)

    assert penalty.at_time(20.0) == pytest.approx(5.0 * exp(-1))


def test_unknown_endpoints_are_tried_one_by_one():
    calls = scenarios.linkerd_calls(SCAN_EWMA, 0, seconds=0.01)

    assert sorted(call.place for call in calls) == sorted(f"e{i}" for i in range(10))


# -- what is told ------------------------------------------------------------------------------------------------------


def test_a_target_is_met_or_missed_by_the_mean_over_all_seeds():
    met = balance.judge({"budget": {"ours": {"attempts per call": [1.2, 1.3]}}})
    missed = balance.judge({"budget": {"ours": {"attempts per call": [1.2, 1.32]}}})

    assert met == [
        {"target": "everything fails, with a budget: attempts per call", "asked": "<= 1.25", "found": 1.25, "met": True}
    ]
    assert [judged["met"] for judged in missed] == [False]
    assert "MISSED" in balance.verdict(missed)


def test_weights_are_judged_by_the_share_that_is_off_most():
    row = {"of 60 %": [57.0, 58.0], "of 30 %": [30.0, 30.0], "of 10 %": [13.0, 12.0]}

    assert balance.off_by("ours")({"ours": row}) == pytest.approx(2.5)


@pytest.mark.parametrize("target", balance.TARGETS, ids=lambda target: target.text)
def test_a_target_asks_for_rows_that_there_are(target):
    asked: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [1.0]))
    target.value(asked)

    assert "ours" in " ".join(asked)
    assert set(asked) <= set(balance.SETUPS[target.setup].rows)


def test_figures_and_targets_are_printed_and_written(tmp_path, capsys):
    path = tmp_path / "figures.json"
    status = balance.main(["budget", "--seeds", "2", "--json", str(path), "--plots", str(tmp_path)])

    assert status == 0
    assert re.search(r"no budget +3\.99", capsys.readouterr().out)
    written = json.loads(path.read_text())
    assert len(written["set-ups"]["budget"]["ours"]["attempts per call"]) == 2
    assert [target["met"] for target in written["targets"]] == [True]


def test_an_unknown_set_up_is_refused(capsys):
    with pytest.raises(SystemExit):
        balance.main(["brcp"])

    assert "no such set-up: brcp" in capsys.readouterr().err


# -- plots -------------------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def test_a_chart_has_its_axes_lines_and_names():
    x = Axis("seconds", 0.0, 10.0, [0, 5, 10])
    y = Axis("calls <late>", 1.0, 100.0, [1, 10, 100], is_log=True)
    drawn = ElementTree.fromstring(chart("A & B", x, y, [Line("ours", [(0.0, 1.0), (10.0, 100.0)])], Band("out", 2, 4)))

    texts = {element.text for element in drawn.iter(f"{SVG}text")}
    assert texts == {"A & B", "seconds", "calls <late>", "ours", "out", "0", "5", "10", "1", "100"}
    assert [line.get("points") for line in drawn.iter(f"{SVG}polyline")] == ["64.0,348.0 700.0,76.0"]
    assert "prefers-color-scheme: dark" in "".join(drawn.itertext())


def test_a_logarithmic_axis_gives_each_power_the_same_room():
    axis = Axis("calls", 1.0, 1000.0, [], is_log=True)

    assert [axis.part(value) for value in (1, 10, 100, 1000, 5000)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


def test_a_plot_is_drawn():
    drawn = ElementTree.fromstring(plots.sinkhole(seeds=1))

    assert {"ours", "fair share", "it refuses every call"} <= {text.text for text in drawn.iter(f"{SVG}text")}
    assert [len((line.get("points") or "").split()) for line in drawn.iter(f"{SVG}polyline")] == [2, 60, 60, 60]


def test_the_documents_show_plots_that_there_are():
    shown = [name for path in DOCS.glob("*.rst") for name in re.findall(r"^\.\. image:: (\S+)", path.read_text(), re.M)]

    assert {f"plots/{name}.svg" for name in plots.PLOTS} <= set(shown)
    assert all((DOCS / name).exists() for name in shown)
