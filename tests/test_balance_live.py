"""What can befall the servers of a cluster, on real sockets: sinkholes, grey failures, servers that hang or are slow.

Redis where it can play the part, else :mod:`tests.backend`; each server is a process of its own. The calls are not
retried unless the test says so: what fails is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from math import inf
from time import monotonic
from typing import Literal, Self

import gevent
import pytest
from gevent import socket

from geventconnpool import ClusterPool, Endpoint, PoolError, PoolTimeout, events, retry
from geventconnpool.cluster import OutlierDetection
from tests.backend import Backend
from tests.servers import Redis, require, wait_until

SIZE = 10  # connections to each endpoint
GREENLETS = 30
PAUSE = 0.02  # seconds between two calls of a greenlet
PATIENCE = 30.0  # seconds for what a machine that is not busy does at once: a reply to a client, too
RECENT = 300  # calls, of which a share is told
STEADY = 0.01  # seconds that a call takes where latencies matter: more than the scheduler's part in it
WEIGHTS = 60, 30, 10
# Five failures in a row eject, and then there are at most so many calls in flight as the others of its connections.
MOST_FAILURES = 5 + SIZE - 1


class Client:
    """A connection that notices the reply to somebody else's call."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._replies = connection.makefile("rb")
        self.fileno = connection.fileno

    def ping(self) -> None:
        assert self._ask(b"PING") == b"+PONG"

    def echo(self, text: bytes) -> None:
        assert self._ask(b"ECHO " + text) == b"$%d" % len(text)
        assert self._line() == text

    def _ask(self, request: bytes) -> bytes:
        self._socket.sendall(request + b"\r\n")
        return self._line()

    def _line(self) -> bytes:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server hung up")
        return line.removesuffix(b"\r\n")

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


class Servers(ClusterPool[Client]):
    def _new_connection(self, endpoint: Endpoint) -> Client:
        return Client(endpoint.connect(timeout=PATIENCE))

    def _keepalive(self, c: Client) -> None:
        c.ping()


@dataclass
class Call:
    endpoint: Endpoint
    began: float
    ended: float = inf
    outcome: Literal["good", "failed", "interrupted"] = "interrupted"

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Scene:
    """A cluster, greenlets that call it (for ``patience`` seconds each, if given), and what they saw."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        size: int = SIZE,
        greenlets: int = GREENLETS,
        pause: float = PAUSE,
        patience: float | None = None,
        max_failures: int = 0,
        **options,
    ) -> None:
        self.calls: list[Call] = []  # in the order in which they began
        self.errors: list[Exception] = []  # that the callers saw
        self.reports: list[tuple[float, events.Event]] = []
        self._pause, self._patience = pause, patience
        self._retried = retry(max_failures=max_failures)(self._call)
        self._numbers = count()
        self._is_on = True
        options = {"keepalive_timeout": PATIENCE, **options}
        self.pool = Servers(endpoints, size, keepalive=1, on_event=self._report, **options)
        self.pool.wait(timeout=PATIENCE)
        self._greenlets = [gevent.spawn(self._run) for _ in range(greenlets)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._is_on = False
        gevent.joinall(self._greenlets, timeout=PATIENCE, raise_error=True)
        assert self.pool.close(PATIENCE)

    def calls_to(self, endpoint: Endpoint, since: float = -inf, until: float = inf) -> list[Call]:
        """The calls to an endpoint that began between two moments."""
        return [call for call in self.calls if call.endpoint == endpoint and since < call.began < until]

    def number(self, outcome: str) -> int:
        return sum(call.outcome == outcome for call in self.calls)

    def share(self, endpoint: Endpoint, recent: int = RECENT) -> float:
        """The share that an endpoint has in so many calls that began last."""
        calls = self.calls[-recent:]
        return sum(call.endpoint == endpoint for call in calls) / len(calls) if calls else 0.0

    def state(self, endpoint: Endpoint) -> str:
        return next(entry.state for entry in self.pool.stats().endpoints if entry.endpoint == endpoint)

    def ejections(self, endpoint: Endpoint, since: float = -inf) -> list[events.EndpointEjected]:
        ejections = [(at, e) for at, e in self.reports if isinstance(e, events.EndpointEjected)]
        return [e for at, e in ejections if e.endpoint == endpoint and at > since]

    def when(self, kind: type[events.Event], endpoint: Endpoint) -> list[float]:
        """When events of a kind were reported of an endpoint."""
        return [at for at, e in self.reports if isinstance(e, kind) and getattr(e, "endpoint", None) == endpoint]

    def await_calls(self, number: int) -> None:
        """Wait for so many calls more."""
        wanted = len(self.calls) + number
        wait_until(lambda: len(self.calls) >= wanted, what=f"{number} calls")

    def _report(self, event: events.Event) -> None:
        self.reports.append((monotonic(), event))

    def _run(self) -> None:
        while self._is_on:
            try:
                gevent.with_timeout(self._patience, self._retried, b"%d" % next(self._numbers), timeout_value=None)
            except (OSError, PoolError) as error:
                self.errors.append(error)
            gevent.sleep(self._pause)

    def _call(self, text: bytes) -> None:
        with self.pool.get(timeout=PATIENCE) as c:
            call = Call(self.pool.endpoint_of(c), monotonic())
            self.calls.append(call)
            try:
                c.echo(text)
                call.outcome = "good"
            except OSError:
                call.outcome = "failed"
                raise
            finally:
                call.ended = monotonic()


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Backend]]:
    running = [Backend(f"127.0.0.{n}") for n in (1, 2, 3)]
    yield running
    for backend in running:
        backend.close()


@pytest.fixture
def backends(processes: list[Backend]) -> list[Backend]:
    for backend in processes:
        backend.becomes("well")
    return processes


@pytest.fixture
def redises() -> Iterator[list[Redis]]:
    require("redis-server")
    running = [Redis().start() for _ in range(3)]
    yield running
    for server in running:
        server.close()


# -- sinkhole and grey failure -----------------------------------------------------------------------------------------

QUICK = {"outlier": OutlierDetection(base_ejection_time=0.2), "slow_start": 0.5}


# After the fault: at most 5 s to the next probe, slow start, and the calls that the share is taken of. Where the fault
# is short, the probes that failed are few, and the next one is at most 2 s away. Ten seconds more are for the machine.
@pytest.mark.parametrize(("options", "fault", "most_seconds"), [(QUICK, 1, 15), ({}, 3, 22)], ids=["quick", "defaults"])
def test_a_sinkhole_gets_few_calls_and_has_its_share_again_when_it_is_well(backends, options, fault, most_seconds):
    victim = backends[0].endpoint
    with Scene([backend.endpoint for backend in backends], **options) as scene:
        scene.await_calls(RECENT)
        backends[0].becomes("sinkhole")
        began = len(scene.calls)
        gevent.sleep(fault)
        scene.await_calls(RECENT)
        during = scene.calls[began:]
        backends[0].becomes("well")
        is_over = monotonic()
        wait_until(lambda: scene.share(victim) > 0.2, timeout=most_seconds, what="a fair share")
        seconds = monotonic() - is_over
        state = scene.state(victim)
    failed = [call for call in scene.calls if call.outcome == "failed"]
    ejected_at = scene.when(events.EndpointEjected, victim)[0]
    print(f"failed: {len(failed)} of {len(during)} calls during the fault; {seconds:.1f} s after it a fair share")

    assert len(failed) <= MOST_FAILURES
    assert len(failed) == len(scene.errors)
    assert {call.endpoint for call in failed} == {victim}
    assert len(failed) < 0.1 * len(during)
    assert scene.calls_to(victim, ejected_at, is_over) == []
    assert (state, len(scene.ejections(victim))) == ("active", 1)


def test_where_keepalives_pass_and_calls_fail_each_return_costs_few_calls_and_the_pauses_between_them_grow(backends):
    victim = backends[0].endpoint
    endpoints = [backend.endpoint for backend in backends]
    with Scene(endpoints) as ejecting, Scene(endpoints, size=30, greenlets=10, outlier=None) as charging:
        ejecting.await_calls(RECENT)
        charging.await_calls(RECENT)
        backends[0].becomes("grey")
        wait_until(lambda: len(ejecting.ejections(victim)) >= 3, what="the third ejection")  # after some 5 s
        wait_until(lambda: len(bursts_of_failures(charging)) > 1, what="a failure after a pause")
    bursts, ejections = bursts_of_failures(charging), ejecting.ejections(victim)
    print(f"{ejecting.number('failed')} of {len(ejecting.calls)} calls failed in {len(ejections)} stays")
    print(f"not ejected: {[len(burst) for burst in bursts]} of {len(charging.calls)} calls failed")
    gaps = [after[0] - before[-1] for before, after in pairwise(bursts)]

    assert ejecting.number("failed") <= len(ejections) * MOST_FAILURES
    assert {e.kind for e in ejections} == {"calls"}
    for e, least in zip(ejections, (1, 2, 4, 8), strict=False):
        assert least <= e.seconds <= 1.5 * least
    # Who has failed knows of it, and has a connection to another: one failure for each caller and return.
    assert max(map(len, bursts)) <= 10
    assert all(gap >= least for gap, least in zip(gaps, (1, 2, 4, 8), strict=False))


def bursts_of_failures(scene: Scene) -> list[list[float]]:
    """Return when calls began that failed, grouped by pauses of half a second and more."""
    bursts: list[list[float]] = []
    for call in scene.calls:
        if call.outcome != "failed":
            continue
        if bursts and call.began - bursts[-1][-1] < 0.5:
            bursts[-1].append(call.began)
        else:
            bursts.append([call.began])
    return bursts


# -- servers that hang, and slow ones ----------------------------------------------------------------------------------


def test_a_server_that_hangs_gets_hardly_a_call_before_any_has_returned_and_serves_again_when_it_goes_on(redises):
    endpoints = [Endpoint(*redis.address) for redis in redises]
    victim = endpoints[0]
    # With more connections than callers some are idle, and kept alive, when all callers hang.
    options = {"size": GREENLETS + 10, "slow_start": 0.5, "keepalive_timeout": 1}
    with Scene(endpoints, **options) as patient, Scene(endpoints, **options, patience=0.5) as impatient:
        scenes = patient, impatient
        for scene in scenes:
            wait_until(lambda scene=scene: scene.share(victim) > 0.2, what="a fair share")
        redises[0].pause()
        hung_at = monotonic()
        for scene in scenes:
            wait_until(lambda scene=scene: scene.ejections(victim, since=hung_at), what="the ejection")
        redises[0].resume()
        goes_on = monotonic()
        for scene in scenes:
            wait_until(lambda scene=scene: serves(scene, victim, goes_on), what="20 good calls")
    reached = [[call.began for call in scene.calls_to(victim, hung_at, goes_on)] for scene in scenes]
    late = [began for began in reached[0] if began > reached[0][0] + 1]
    discarded = impatient.pool.stats().discarded
    print(f"hung for {goes_on - hung_at:.1f} s: {[*map(len, reached)]} calls reached it, {len(late)} after a second")

    assert max(map(len, reached)) <= GREENLETS
    assert len(late) <= 3
    assert {e.kind for scene in scenes for e in scene.ejections(victim)} == {"keepalives"}
    # Who is interrupted gives up a connection, but is no failure of the server.
    assert impatient.number("interrupted") == discarded["interrupted"]
    assert (impatient.number("failed"), impatient.errors, discarded["error"]) == (0, [], 0)


def serves(scene: Scene, endpoint: Endpoint, since: float) -> bool:
    """Whether an endpoint has had 20 good calls: what it takes to be no longer on trial."""
    return sum(call.outcome == "good" for call in scene.calls_to(endpoint, since)) >= 20


def test_a_server_that_is_twenty_times_slower_is_hardly_used_and_tried_every_ten_seconds(backends):
    for backend, seconds in zip(backends, (20 * STEADY, STEADY, STEADY), strict=True):
        backend.becomes("well", seconds)
    slow = backends[0].endpoint
    # With less than a connection for each caller, some would have to take the slow server when the others are busy.
    with Scene([backend.endpoint for backend in backends], size=GREENLETS) as scene:
        scene.await_calls(RECENT)
        first = len(scene.calls)
        gevent.sleep(11.5)
        calls = scene.calls[first:]
        # Where the machine pauses, all look slow for a while: it is calls without that which are waited for.
        wait_until(lambda: scene.share(slow, recent=3000) < 0.03, what="a small share")
    absence = longest_absence(calls, slow)
    print(f"share {sum(call.endpoint == slow for call in calls) / len(calls):.2%}, not tried for {absence:.2f} s")

    assert absence < 10.5


def longest_absence(calls: Sequence[Call], endpoint: Endpoint) -> float:
    """Return for how many seconds no call went to an endpoint, where the machine did not pause and others had calls."""
    longest = absence = 0.0
    for before, call in pairwise(calls):
        absence += min(call.began - before.began, 0.1)
        longest = max(longest, absence)
        if call.endpoint == endpoint:
            absence = 0.0
    return longest


# -- weights and priorities --------------------------------------------------------------------------------------------


# A hiccup of the machine while a server has a call makes it look slow, and costs it its share for two seconds: then it
# is tried again. So it is calls without one that are waited for.
@pytest.mark.parametrize(("greenlets", "calls"), [(1, 200), (30, 1000)])
def test_servers_that_are_equally_quick_get_shares_in_proportion_to_their_weights(backends, greenlets, calls):
    for backend in backends:
        backend.becomes("well", STEADY)
    endpoints = [replace(backend.endpoint, weight=weight) for backend, weight in zip(backends, WEIGHTS, strict=True)]
    with Scene(endpoints, size=GREENLETS, greenlets=greenlets, pause=0.005) as scene:
        scene.await_calls(calls)
        wait_until(lambda: farthest_from_its_weight(scene.calls[-calls:]) <= 5, what="shares as the weights")
        called = len(scene.calls)
    print(f"{greenlets} greenlets: {called} calls; of all {farthest_from_its_weight(scene.calls):.1f} points off")

    assert scene.number("good") == len(scene.calls)
    assert scene.errors == []


def farthest_from_its_weight(calls: Sequence[Call]) -> float:
    """Return how far at most the share of an endpoint is from its weight, in points; the weights are 100 together."""
    counts = Counter(call.endpoint.weight for call in calls)
    return max(abs(100 * counts[weight] / len(calls) - weight) for weight in WEIGHTS)


def test_calls_spill_over_to_the_next_priority_and_come_back_and_two_retries_are_enough(redises):
    first, second, spare = (
        Endpoint(*redis.address, priority=priority) for redis, priority in zip(redises, (0, 0, 1), strict=True)
    )
    with Scene([first, second, spare], max_failures=2) as scene:
        scene.await_calls(RECENT)
        before = scene.share(spare)
        for redis in redises[:2]:
            redis.kill()
        wait_until(lambda: scene.share(spare) == 1, what="calls to the spare alone")
        wait_until(lambda: {scene.state(first), scene.state(second)} == {"ejected"}, what="both ejections")
        for redis in redises[:2]:
            redis.start()
        wait_until(lambda: scene.share(spare) == 0, what="the return of the calls")
    back_at = min(scene.when(events.EndpointReadmitted, first) + scene.when(events.EndpointReadmitted, second))

    assert before == 0
    assert scene.errors == []
    # No more than had been handed a connection just before, and had not run yet.
    assert len(scene.calls_to(spare, since=back_at)) <= SIZE


# -- none available ----------------------------------------------------------------------------------------------------


def test_when_none_serves_calls_wait_for_the_first_that_is_back_and_the_error_tells_when_each_is_tried_next(redises):
    endpoints = [Endpoint(*redis.address) for redis in redises]
    detection = OutlierDetection(consecutive_failures=2)
    pool = Servers(endpoints, SIZE, keepalive=1, keepalive_timeout=PATIENCE, outlier=detection)
    pool.wait(timeout=PATIENCE)
    for redis in redises:
        redis.kill()
    wait_until(lambda: [e.state for e in pool.stats().endpoints].count("ejected") == 2, what="two ejections")
    wait_until(lambda: pool.stats().open == 0, what="the end of all connections")
    error = wait_until(lambda: told_while_none_is_probed(pool), what="a timeout between two probes")
    text = str(error)
    waiting = [gevent.spawn(call, pool) for _ in range(30)]
    back = next(i for i, entry in enumerate(pool.stats().endpoints) if entry.state == "ejected")
    redises[back].start()
    gevent.joinall(waiting, timeout=PATIENCE, raise_error=True)
    served_by = {greenlet.value for greenlet in waiting}

    failure = r"in use 0, last failure \w+Error\([^;]*"
    ejected = re.findall(rf"ejected, {failure}, next probe in \d+\.\d s", text)
    active = re.findall(rf"active, {failure}, (?:next connect in \d+\.\d s|connecting now)", text)
    assert (len(ejected), len(active)) == (2, 1), text  # the last one is never ejected
    assert all(str(endpoint) in text for endpoint in endpoints)
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert served_by == {endpoints[back]}
    assert pool.close(PATIENCE)


def told_while_none_is_probed(pool: Servers) -> PoolTimeout | None:
    """Return the error of a call, unless there is a probe under way, whose time has come: it names no next one."""
    with pytest.raises(PoolTimeout) as caught:
        pool.acquire(timeout=0.5)
    is_probed = any(entry.state == "ejected" and entry.until is None for entry in pool.stats().endpoints)
    return None if is_probed else caught.value


def call(pool: Servers) -> Endpoint:
    with pool.get(timeout=PATIENCE) as c:
        c.echo(b"at-last")
        return pool.endpoint_of(c)
