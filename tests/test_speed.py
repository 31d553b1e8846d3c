"""The benchmark of speed: it runs, in small, and tells what it found; the figures of such runs mean nothing."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from tests.benchmarks import checkout, end_to_end, failover, pinging, speed, speed_plots
from tests.benchmarks.rounds import alternate, compare
from tests.benchmarks.standins import Cluster, Floor, Recipe, Wire, places
from tests.benchmarks.svg import Axis, Bar, bars
from tests.servers import Redis, require

DOCS = Path(__file__).parent.parent / "docs"
ALONE = ("checkout", "parts", "contended", "growth", "import")  # groups that need nothing but us
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What a quick run of the groups that need no servers has printed, written and returned."""
    folder = tmp_path_factory.mktemp("plots")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = speed.main([*ALONE, "--quick", "--write", str(folder)])
    return SimpleNamespace(
        status=status,
        printed=printed.getvalue(),
        folder=folder,
        written=json.loads((folder / "speed.json").read_text()),
    )


# -- a quick run -------------------------------------------------------------------------------------------------------


def test_each_group_prints_a_table(quick):
    for name in ALONE:
        assert speed.GROUPS[name] in quick.printed
    assert re.search(r"^textbook recipe \(2013\) +\d", quick.printed, re.M)
    assert re.search(r"^ours, a switch in the block +\d", quick.printed, re.M)
    assert re.search(r"^waiters, 20 +\d", quick.printed, re.M)
    assert re.search(r"^geventconnpool +\d", quick.printed, re.M)


def test_each_target_of_the_groups_is_judged(quick):
    wanted = [target.text for target in speed.TARGETS if target.group in ALONE]

    assert [judged["target"] for judged in quick.written["targets"]] == wanted
    assert re.search(r"^ConnectionPool / textbook recipe +<= 0.55 +\d.*(met|MISSED)$", quick.printed, re.M)
    assert re.search(r"^1,000 endpoints, min_size=0: greenlets at rest +<= 5 +not measured$", quick.printed, re.M)


def test_the_exit_status_tells_whether_targets_were_missed(quick):
    assert quick.status == (1 if "MISSED" in quick.printed else 0)


def test_all_rounds_are_written(quick):
    rows = quick.written["groups"]["checkout"]["rows"]

    assert len(rows["ours"]["us"]) == len(rows["ours, cluster of 3"]["of the recipe"]) == 2
    assert rows["textbook recipe (2013)"]["of the recipe"] == [1.0, 1.0]
    assert min(rows["bare with over a deque (the floor)"]["us"]) > 0
    assert quick.written["setup"].keys() >= {"machine", "Python", "gevent"}


@pytest.mark.parametrize("name", ALONE)
def test_tables_and_plots_are_written(quick, name):
    with (quick.folder / f"speed-{name}.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    drawn = ElementTree.parse(quick.folder / f"speed-{name}.svg")

    assert [line[0] for line in lines] == ["", *quick.written["groups"][name]["rows"]]
    assert len({len(line) for line in lines}) == 1
    assert drawn.findall(f"{SVG}polyline") or drawn.findall(f"{SVG}rect")


def test_a_cluster_at_rest_has_no_greenlets(quick):
    row = quick.written["groups"]["growth"]["rows"]["endpoints without connections, 20"]

    assert row["greenlets"] == [0]
    assert row["timers"] == [1]


# -- what is told ------------------------------------------------------------------------------------------------------


def rows_of(**figures):
    return {"rows": {name.replace("_", " "): {"us": values} for name, values in figures.items()}, "left_out": []}


def one(judged, text):
    return next(j for j in judged if j["target"] == text)


def test_a_ratio_is_taken_in_each_round_and_its_median_counts():
    rows = {checkout.SINGLE: {"us": [1.0, 4.0, 1.2]}, checkout.RECIPE: {"us": [2.0, 8.0, 2.0]}}
    found = one(speed.judge({"checkout": {"rows": rows}}), "ConnectionPool / textbook recipe")

    assert (found["values"], found["found"], found["met"]) == ([0.5, 0.5, 0.6], 0.5, True)


def test_a_missed_target_fails_a_missed_stretch_does_not():
    rows = {checkout.CLUSTER: {"us": [1.2]}, checkout.RECIPE: {"us": [1.0]}}
    judged = speed.judge({"checkout": {"rows": rows}})

    assert one(judged, "ClusterPool of 3 / textbook recipe")["met"] is True
    assert one(judged, "the same, stretch")["met"] is False
    assert speed.is_well(judged)
    rows[checkout.CLUSTER]["us"] = [1.3]
    assert not speed.is_well(speed.judge({"checkout": {"rows": rows}}))


def test_what_was_left_out_is_told_and_not_judged():
    result = {"rows": {"ours": {"us": [1.0, 1.5, 2.0]}}, "left_out": ["urllib3: urllib3 cannot be imported"]}
    judged = speed.judge({"checkout": result})

    assert {j["met"] for j in judged} == {None}
    assert speed.is_well(judged)
    assert "left out: urllib3: urllib3 cannot be imported" in speed.tell("checkout", result)
    assert "1.500 (1.000..2.000)" in speed.tell("checkout", result)


def test_of_failed_calls_the_worst_round_counts():
    row = {failover.FAILED: [0.0, 0.0, 1.0], failover.LONGEST_CALL: [0.5, 0.55, 0.7], failover.LEFT: [0.0, 0.1, 0.2]}
    theirs = {**row, failover.LEFT: [1.0, 1.0, 0.0]}
    rows = {pinging.CLUSTER + failover.KILLED: row, pinging.HAPROXY + failover.KILLED: theirs}
    judged = speed.judge({"failover": {"rows": rows}})

    assert one(judged, "one killed: failed calls, worst round")["met"] is False
    assert one(judged, "one killed: longest call, s")["met"] is True
    # Less than the pause between two calls is as good as that: nobody is infinitely better.
    assert one(judged, "one killed: time until traffic has left / HAProxy")["values"] == [0.02, 0.1, 10.0]


def test_writing_one_group_keeps_the_others(tmp_path):
    group = {"rows": {"nothing": {"ms": [1.0]}, "gevent": {"ms": [2.0]}}, "left_out": []}
    speed.write(tmp_path, {"import": group})
    speed.write(tmp_path, {"checkout": rows_of(ours=[1.0], textbook_recipe=[2.0])})

    written = json.loads((tmp_path / "speed.json").read_text())
    assert set(written["groups"]) == {"checkout", "import"}
    assert written["groups"]["import"] == group


def test_an_unknown_group_is_refused(capsys):
    with pytest.raises(SystemExit):
        speed.main(["checkuot"])

    assert "no such group: checkuot" in capsys.readouterr().err


def test_quick_figures_are_kept_out_of_the_documents(capsys):
    with pytest.raises(SystemExit):
        speed.main(["import", "--quick", "--write"])

    assert "name another folder" in capsys.readouterr().err


# -- how it is measured ------------------------------------------------------------------------------------------------


def test_contestants_take_turns_and_another_one_begins_each_round():
    order = []

    def contestant(name):
        def run():
            order.append(name)
            return {"us": float(len(order))}

        return run

    rows = alternate({name: contestant(name) for name in "abc"}, 3)

    assert "".join(order) == "abcbcacab"
    assert rows["a"] == {"us": [1.0, 6.0, 8.0]}


def test_rows_are_compared_round_by_round():
    rows = {"a": {"us": [1.0, 2.0]}, "b": {"us": [3.0, 8.0]}}
    compare(rows, "a", "us", "of a")

    assert rows["b"]["of a"] == [3.0, 4.0]


@pytest.mark.parametrize("lease", [Floor(1), Recipe(1).get()], ids=["floor", "recipe"])
def test_what_we_compare_with_lends_a_connection(lease):
    with lease as c:
        assert isinstance(c, Wire)
        assert c.fileno() > 0
        c.close()


def test_the_cluster_that_is_measured_has_the_options_of_a_user_and_keepalive():
    with Cluster(places(3), 1, keepalive=5) as pool:
        pool.wait(timeout=30)

        assert sorted(map(str, pool.pools)) == ["10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379"]
        assert pool.stats().open == 3


def test_pings_are_counted_end_to_end():
    require("redis-server")
    with contextlib.ExitStack() as stack:
        servers = pinging.start_redis(stack, 2)
        pool = pinging.open_pool(pinging.CLUSTER, servers, 2, 5.0, stack)
        latencies: list[float] = []
        figures = end_to_end.run(pinging.caller(pool), 4, 0.1, latencies)

        assert pool.stats().gets == len(latencies) >= 4
        assert 0 < figures[end_to_end.P50] <= figures[end_to_end.P99]


def test_a_server_that_is_killed_and_restarted_is_seen_by_attempts_and_not_by_calls(monkeypatch):
    require("redis-server")
    monkeypatch.setattr(pinging, "READ_TIMEOUT", 20.0)
    monkeypatch.setattr(failover, "BEFORE", 0.1)
    monkeypatch.setattr(failover, "QUIET", 0.2)
    monkeypatch.setattr(failover, "DOWN", 0.1)
    with Redis() as one, Redis() as other:
        points: list[tuple[float, float]] = []
        figures = failover.run(pinging.CLUSTER, [one, other], failover.restart, points)

        assert one.pid
    assert figures[failover.FAILED] == 0
    assert 0 < figures[failover.LONGEST_CALL] < 20
    assert points[0][0] < 0 < points[-1][0]


# -- plots -------------------------------------------------------------------------------------------------------------


def test_bars_have_names_lengths_and_a_spread():
    drawn = ElementTree.fromstring(
        bars(
            "A & B",
            Axis("us", 0.0, 2.0, [0, 1, 2]),
            [Bar("ours", 1.0, 0.5, 2.0, is_ours=True), Bar("b", 2.0, 2.0, 2.0)],
        )
    )

    assert {text.text for text in drawn.iter(f"{SVG}text")} == {"A & B", "us", "ours", "b", "0", "1", "2"}
    lengths = {rect.get("class"): rect.get("width") for rect in drawn.iter(f"{SVG}rect")}
    assert lengths == {"page": "720", "ours": "225.0", "other": "450.0"}
    spreads = [(line.get("x1"), line.get("x2")) for line in drawn.iter(f"{SVG}line") if line.get("class") == "spread"]
    assert spreads == [("362.5", "700.0"), ("700.0", "700.0")]


def test_failover_and_latencies_are_drawn_without_haproxy_as_well():
    stopped = {pinging.CLUSTER + failover.STOPPED: [(-0.3, 0.001), (0.2, 0.5)]}
    tails = {kind + end_to_end.MANY: [(10.0, 100.0), (900.0, 0.1)] for kind in (pinging.DIRECT, pinging.CLUSTER)}
    plots = speed_plots.PLOTS["failover"]({"over time": stopped}), speed_plots.PLOTS["end-to-end"]({"tails": tails})

    lines = [len(list(ElementTree.fromstring(plot).iter(f"{SVG}polyline"))) for plot in plots]
    assert lines == [1, 2]


def test_the_document_shows_all_tables_and_plots():
    text = (DOCS / "performance.rst").read_text()

    assert set(re.findall(r"plots/speed-(\S+)\.svg", text)) == set(speed.GROUPS)
    assert set(re.findall(r":file: plots/speed-(\S+)\.csv", text)) == {*speed.GROUPS, "targets", "setup"}
    assert all((DOCS / name).exists() for name in re.findall(r"plots/\S+\.(?:svg|csv)", text))
    assert "make bench" in text
