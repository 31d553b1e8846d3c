"""What docs/tuning.rst reckons is what the classes that a pool decides with do, in virtual time."""

from __future__ import annotations

import re
from math import ceil, inf
from random import Random

import pytest

from geventconnpool import retry
from geventconnpool._queue import Gate, Queue
from geventconnpool._retry import Policy
from geventconnpool._slots import Slots
from geventconnpool.cluster import Endpoint, OutlierDetection, PeakEWMA, Resolution
from geventconnpool.cluster._members import LEAST_SHARE, ClusterQueue, Members
from geventconnpool.cluster._refresh import Bounds, Refresh
from geventconnpool.testing._simulation import Client, World
from tests.benchmarks.simulator import evenly, poisson
from tests.documents import ROOT, blocks
from tests.virtual import Dice, Shell

A, B, C = (Endpoint(name, 6379) for name in "abc")
TEXT = (ROOT / "docs" / "tuning.rst").read_text()


@pytest.fixture(scope="module")
def page():
    """Return the functions of the page."""
    namespace: dict[str, object] = {}
    for _, source in blocks(TEXT):
        exec(source, namespace)
    return namespace


def says(text: str) -> bool:
    """Look into the page, wherever its lines end."""
    return text in re.sub(r"\s+", " ", TEXT)


class Server:
    """Answers in ``seconds``, or if there is a ``rng`` in as many on average; from ``silent_from`` on, nothing."""

    def __init__(self, seconds: float, rng: Random | None = None, *, read: float = 0.5, patience: float = 5.0) -> None:
        self.silent_from = inf
        self.pings = 0
        self._seconds = seconds
        self._rng = rng
        self._read, self._patience = read, patience  # how long is waited for an answer to a call, and to a keepalive

    def call(self, now):
        if now >= self.silent_from:
            return self._read, False
        return (self._rng.expovariate(1 / self._seconds) if self._rng else self._seconds), True

    def ping(self, now):
        self.pings += 1
        return (self._patience, False) if now >= self.silent_from else (0.001, True)

    def connect(self, now):
        return True


def simulated(*servers, **options):
    """Return the world and a client of so many servers, with all connections open."""
    world = World()
    client = Client(world, dict(zip((A, B, C), servers, strict=False)), PeakEWMA(), **options)
    world.run(1.0)
    return world, client


def seconds_until_ejected(world, client, endpoint):
    begin = world.now
    while client.members.get(endpoint).state == "active" and world.now < begin + 300:
        world.run(world.now + 0.01)
    return world.now - begin


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [25, 30])
def test_as_many_calls_wait_as_the_formula_says(page, size):
    world, client = simulated(Server(0.010, Random(1)), size=size)
    calls, waited = 0, 0
    begin = client._begin

    def count(slot, call, done):
        nonlocal calls, waited
        calls += 1
        waited += world.now > call.at
        begin(slot, call, done)

    client._begin = count
    poisson(world, Random(2), 2000, 21.0, client.call)
    world.run(25.0)

    assert calls > 39_000
    assert waited / calls == pytest.approx(page["share_that_waits"](2000, 0.010, size), abs=0.02)


def test_as_many_connections_are_in_use_as_littles_law_says(page):
    world, client = simulated(Server(0.010, Random(1)), size=100)
    poisson(world, Random(2), 2000, 21.0, client.call)
    seen = []
    for n in range(1, 2000):
        world.run(1.0 + n / 100)
        seen.append(client.members.get(A).in_flight)

    assert sum(seen) / len(seen) == pytest.approx(page["in_use"](2000, 0.010), rel=0.05)


def test_the_loss_of_one_of_three_is_half_as_much_again_for_the_others():
    world, client = simulated(*(Server(0.010) for _ in "abc"), size=100, outlier=OutlierDetection())
    evenly(world, 1500, 9.0, client.call)
    world.run(4.0)
    before = sum(call.place == "b" for call in client.calls if call.at >= 2.0)
    client.members.update([B, C], world.now)
    client._act()
    world.run(6.0)
    after = sum(call.place == "b" for call in client.calls if call.at >= 4.0)

    assert after / before == pytest.approx(3 / 2, rel=0.05)
    assert says("half as much again for three")


def test_a_queue_is_served_in_the_time_that_the_page_reckons(page):
    world, client = simulated(Server(0.010), size=20)
    calls = page["max_waiting"](0.5, 0.010, 20)
    for _ in range(20 + calls):
        client.call()
    world.run(world.now + 10)

    assert calls == 1000
    assert max(call.seconds - 0.010 for call in client.calls) == pytest.approx(0.5)


# -- timeouts ----------------------------------------------------------------------------------------------------------


def policy_of(**options) -> Policy:
    """Return what ``retry`` makes of its options."""
    (policy,) = (
        cell.cell_contents
        for cell in retry(max_failures=3, **options)(print).__closure__
        if isinstance(cell.cell_contents, Policy)
    )
    return policy


def test_the_pauses_are_those_of_retry(page):
    options = {"interval": 0.05, "backoff": 2.0, "max_interval": 0.15}
    policy = policy_of(**options)

    assert [policy.pause(n, Random()) for n in range(3)] == page["pauses"](3, **options) == [0.05, 0.1, 0.15]


# -- keepalive ---------------------------------------------------------------------------------------------------------


def test_as_many_keepalives_are_sent_as_the_page_reckons(page):
    servers = [Server(0.005) for _ in "abc"]
    world, _ = simulated(*servers, size=10, keepalive=5)
    world.run(1000.0)

    assert sum(server.pings for server in servers) / 1000 == pytest.approx(
        page["keepalives_per_second"](30, 5), rel=0.02
    )


@pytest.mark.parametrize(
    ("size", "keepalive", "timeout"), [(10, 5, 5), (10, 5, 1), (20, 1, 1), (4, 5, 5), (10, 30, 10)]
)
@pytest.mark.parametrize("seed", range(5))
def test_a_silent_endpoint_of_an_idle_cluster_is_ejected_in_the_time_that_the_page_reckons(
    page, size, keepalive, timeout, seed
):
    servers = [Server(0.005, patience=timeout) for _ in "abc"]
    world, client = simulated(*servers, size=size, keepalive=keepalive, outlier=OutlierDetection(), seed=seed)
    world.run(50.0 + seed)
    servers[0].silent_from = world.now
    most = page["until_ejected"](size, keepalive, timeout)

    assert most - keepalive - 0.1 <= seconds_until_ejected(world, client, A) <= most + 0.1


@pytest.mark.parametrize(("rate", "lost"), [(300, 2), (3000, 8)])
@pytest.mark.parametrize("read", [0.5, 2.0])
def test_as_many_calls_are_lost_to_an_endpoint_that_falls_silent_as_the_page_says(rate, lost, read):
    servers = [Server(0.005, read=read) for _ in "abc"]
    world, client = simulated(*servers, size=20, keepalive=5, outlier=OutlierDetection())
    poisson(world, Random(2), rate, 24.0, client.call)
    world.run(10.0)
    servers[0].silent_from = world.now
    world.run(30.0)

    assert sum(not call.is_good for call in client.calls) == pytest.approx(lost, abs=max(1, lost // 3))
    assert says("at 300 calls a second, 2 calls are lost, and at 3,000 calls a second 8")


# -- ejection ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("open_timeout", "ejected_after"), [(10.0, 20.0), (2.0, 4.0)])
def test_an_endpoint_that_swallows_connects_is_ejected_after_twice_the_open_timeout(open_timeout, ejected_after):
    queue, gate = ClusterQueue(), Gate(64)
    shell = Shell(queue)
    members = Members(
        "cluster",
        queue,
        PeakEWMA(),
        open_pool=lambda endpoint: Slots(
            10, name="a pool", queue=queue, gate=gate, rng=Dice(), max_connecting=4, endpoint=endpoint
        ),
        closed_pool=lambda pool: None,
        ask=lambda now: None,
        outlier=OutlierDetection(),
        drain_timeout=30.0,
        rng=Dice(),
    )
    members.update([A, B], 0.0)
    shell.act()
    began: dict[object, float] = {}
    while members.get(A).state == "active":
        for slot in [slot for slot in shell.opening if slot.endpoint == B]:
            shell.open(slot)
        began |= {slot: shell.now for slot in shell.opening if slot not in began}
        over = [slot for slot in shell.opening if shell.now >= began[slot] + open_timeout]
        if over:
            shell.refuse(over[0])
        else:
            shell.run_to(shell.now + 0.01)

    assert shell.now == pytest.approx(ejected_after, abs=0.2)
    assert says(f"{ejected_after:g} s with")


def test_an_endpoint_that_is_back_gets_the_share_that_the_page_reckons(page):
    queue = ClusterQueue()
    shell = Shell(queue)
    members = Members(
        "cluster",
        queue,
        PeakEWMA(),
        open_pool=lambda endpoint: Slots(1, name="a pool", queue=queue, gate=Gate(9), rng=Dice(), endpoint=endpoint),
        closed_pool=lambda pool: None,
        ask=lambda now: None,
        outlier=OutlierDetection(),
        drain_timeout=30.0,
        rng=Dice(),
        slow_start=3.0,
    )
    members.update([A], 0.0)
    shell.act()
    member = members.get(A)
    member.start_slowly(0.0)

    assert [member._share(t) for t in (0.0, 1.0, 2.5, 3.0, 9.0)] == pytest.approx(
        [page["share"](t) for t in (0.0, 1.0, 2.5, 3.0, 9.0)]
    )
    assert LEAST_SHARE == 0.1


# -- DNS and recycling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0, 30, 3600])
def test_dns_is_asked_again_in_the_time_that_the_page_reckons(page, ttl):
    waits = []
    for seed in range(200):
        refresh = Refresh(Bounds(), Random(seed))
        refresh.started(0.0)
        refresh.answered(Resolution((A,), ttl), 0.0)
        waits.append(refresh.due)

    assert page["seen_after"](ttl) * 0.99 < max(waits) <= page["seen_after"](ttl)
    if ttl <= 30:
        assert 1000 / (sum(waits) / len(waits)) == pytest.approx(page["questions_per_second"](1000, ttl), rel=0.02)


def test_connections_are_replaced_as_often_as_the_page_reckons(page):
    pool = Slots(30, name="pool", queue=Queue(), gate=Gate(4), rng=Random(1), max_lifetime=3600.0)
    shell = Shell(pool.queue)
    pool.plan(0.0)
    shell.act()
    shell.settle_down()
    while shell.now < 100 * 3600:
        shell.run_to(shell.next_due)
        shell.settle_down()

    assert pool.closed_total / shell.now == pytest.approx(page["connects_per_second"](30, 3600), rel=0.02)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_memory_is_that_of_the_last_measurement(page):
    import csv

    with (ROOT / "docs" / "plots" / "speed-growth.csv").open() as file:
        kilobytes = {row[0]: row[3].split(" ")[0] for row in csv.reader(file)}

    connection, endpoint = float(kilobytes["connections, 1,000"]), float(kilobytes["endpoints, 1,000"])
    assert page["kilobytes"](1000, 1) / 1000 == pytest.approx(endpoint + connection, rel=0.2)
    assert ceil(2 * connection) / 2 == 0.5
