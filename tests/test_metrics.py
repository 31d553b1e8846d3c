"""What Prometheus and OpenTelemetry are told is what ``stats()`` says, and nothing is kept alive for it."""

from __future__ import annotations

import gc
import re
import sys
import textwrap
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import gevent
import pytest
from gevent.pywsgi import WSGIServer
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app, start_http_server
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.registry import Collector

from geventconnpool import ClusterPool, ConnectionPool, Endpoint, PoolTimeout
from geventconnpool._series import CONVENTION, OPENTELEMETRY, PROMETHEUS
from geventconnpool.cluster import DNSResolver, Resolution
from geventconnpool.metrics import PrometheusCollector, create_time_recorder, instrument, label_names, prometheus_name
from geventconnpool.testing import DNSServer
from tests.conftest import LineServer
from tests.servers import free_port, wait_until
from tests.test_layout import ROOT, run
from tests.witness import Program

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Lines(ConnectionPool[Any]):
    """Connections to a LineServer."""

    def __init__(self, server: LineServer, size: int, **options: Any) -> None:
        self._server = server
        super().__init__(size, **options)

    def _new_connection(self) -> Any:
        return gevent.socket.create_connection(self._server.address)


class ManyLines(ClusterPool[Any]):
    def _new_connection(self, endpoint: Endpoint) -> Any:
        return endpoint.connect(timeout=30)


class Told:
    """A resolver that says what it has been told to."""

    min_refresh = max_refresh = 0.001
    empty_hold = 0.0

    def __init__(self, *endpoints: Endpoint) -> None:
        self.endpoints = endpoints
        self.is_silent = False

    def resolve(self, _service: str | None) -> Resolution:
        if self.is_silent:
            raise TimeoutError("no answer")
        return Resolution(self.endpoints, ttl=0.001)


def ask(pool: Any) -> None:
    with pool.get(timeout=30) as c:
        c.sendall(b"PING\n")
        assert c.recv(5) == b"PONG\n"


def endpoint_of(server: LineServer) -> Endpoint:
    return Endpoint(*server.address)


def registry_of(*pools: Any, **options: Any) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(collector_of(*pools, **options))
    return registry


def collector_of(*pools: Any, **options: Any) -> Collector:
    return PrometheusCollector(*pools, **options)


def series_in(text: str) -> Series:
    """Return the series of an exposition by name and labels, each of which must be there once."""
    found: Series = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def series_of(*pools: Any, **options: Any) -> Series:
    return series_in(generate_latest(registry_of(*pools, **options)).decode())


def fetch(url: str) -> str:
    """Get it from a native thread, as a client elsewhere would."""

    def read() -> str:
        with urlopen(url, timeout=30) as response:
            text: str = response.read().decode()
            return text

    text: str = gevent.get_hub().threadpool.apply(read)
    return text


def value(series: Series, metric: str, **labels: str) -> float:
    return series[f"geventconnpool_{metric}", frozenset(labels.items())]


def names(series: Series) -> set[str]:
    return {name.removeprefix("geventconnpool_") for name, _ in series}


@pytest.fixture
def lone(tcp_server: LineServer) -> Iterator[Lines]:
    with Lines(tcp_server, 3, name="lone", timeout=5) as pool:
        pool.wait(timeout=30)
        yield pool


@pytest.fixture
def two_servers() -> Iterator[list[LineServer]]:
    servers = [LineServer(), LineServer()]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def cluster(two_servers: list[LineServer]) -> Iterator[ManyLines]:
    with ManyLines(Told(*map(endpoint_of, two_servers)), 2, name="cluster", timeout=5) as pool:
        pool.wait(4, timeout=30)
        wait_until(lambda: pool.stats().discovery.state == "fresh")
        yield pool


@pytest.fixture
def dns_cluster(tcp_server: LineServer) -> Iterator[ManyLines]:
    """A cluster of which all there is to know is known."""
    with DNSServer() as dns:
        dns.add_srv("_lines._tcp.example.org", "host.example.org", tcp_server.address[1])
        dns.add_address("host.example.org", tcp_server.address[0])
        resolver = DNSResolver(nameservers=[dns.address])
        with ManyLines("_lines._tcp.example.org", 2, name="dns", timeout=5, resolver=resolver) as pool:
            pool.wait(2, timeout=30)
            wait_until(lambda: pool.stats().discovery.state == "fresh")
            ask(pool)
            yield pool


# -- Prometheus --------------------------------------------------------------------------------------------------------


def agrees(series: Series, stats: Any) -> bool:
    """Say whether what was scraped of a pool is what its ``stats()`` say; assert the part that is easily wrong."""
    counters = ("gets", "waits", "timeouts", "refused", "opened", "open_errors", "closed")
    pool = stats.name
    assert value(series, "wait_time_seconds_total", pool=pool) == pytest.approx(stats.wait_seconds)
    causes = {cause: value(series, "discarded_total", pool=pool, cause=cause) for cause in stats.discarded}
    return (
        {name: value(series, f"{name}_total", pool=pool) for name in counters}
        == {name: getattr(stats, name) for name in counters}
        and {state: value(series, "connections", pool=pool, state=state) for state in ("idle", "in_use", "connecting")}
        == {"idle": stats.idle, "in_use": stats.in_use, "connecting": stats.connecting}
        and value(series, "connections_max", pool=pool) == stats.size
        and value(series, "connections_min", pool=pool) == stats.min_size
        and value(series, "waiting", pool=pool) == stats.waiting
        and causes == dict(stats.discarded)
    )


def test_a_scrape_under_pywsgi_says_of_a_pool_what_its_stats_say(lone):
    server = WSGIServer(("127.0.0.1", 0), make_wsgi_app(registry_of(lone)), log=None)
    server.start()
    for _ in range(3):
        ask(lone)
    with pytest.raises(ConnectionResetError), lone.get():
        raise ConnectionResetError
    wait_until(lambda: lone.stats().open == 3)

    with lone.get(), lone.get(), lone.get():
        with pytest.raises(PoolTimeout):
            lone.acquire(timeout=0.01)
        waiter = gevent.spawn(ask, lone)
        gevent.sleep(0)
        busy = series_in(fetch(f"http://127.0.0.1:{server.server_port}/metrics"))
    waiter.get(timeout=30)
    quiet = series_in(fetch(f"http://127.0.0.1:{server.server_port}/metrics"))
    server.stop()

    assert value(busy, "connections", pool="lone", state="in_use") == 3
    assert value(busy, "waiting", pool="lone") == 1
    assert value(busy, "timeouts_total", pool="lone") == 1
    assert agrees(quiet, lone.stats())
    assert value(quiet, "gets_total", pool="lone") == 8
    assert value(quiet, "waits_total", pool="lone") == 2
    assert value(quiet, "wait_time_seconds_total", pool="lone") > 0.01
    assert value(quiet, "opened_total", pool="lone") == 4
    assert value(quiet, "discarded_total", pool="lone", cause="error") == 1
    assert value(quiet, "connections", pool="lone", state="idle") == 3
    assert value(quiet, "connections_max", pool="lone") == 3


def test_scrapes_by_native_threads_while_pools_work_are_right_and_harmless(lone, cluster):
    server, thread = start_http_server(0, "127.0.0.1", registry_of(lone, cluster))
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    users = [gevent.spawn(lambda pool=pool: [ask(pool) for _ in range(200)]) for pool in (lone, cluster) * 4]

    scrapes = [series_in(fetch(url)) for _ in range(20)]
    gevent.joinall(users, timeout=30, raise_error=True)
    last = series_in(fetch(url))
    server.shutdown()
    server.server_close()
    thread.join()

    assert agrees(last, lone.stats())
    assert agrees(last, cluster.stats())
    assert value(last, "gets_total", pool="lone") == value(last, "gets_total", pool="cluster") == 800
    gets = [value(series, "gets_total", pool="cluster") for series in scrapes]
    assert gets == sorted(gets)


def test_each_endpoint_of_a_cluster_has_series_of_its_own(cluster, two_servers):
    for _ in range(20):
        ask(cluster)

    with cluster.get() as c:
        used = str(cluster.endpoint_of(c))
        series = series_of(cluster)

    for entry in cluster.stats().endpoints:
        labels = {"pool": "cluster", "endpoint": str(entry.endpoint)}
        assert value(series, "endpoint_up", **labels) == 1
        assert value(series, "endpoint_state", **labels, state="active") == 1
        assert value(series, "endpoint_state", **labels, state="ejected") == 0
        assert 0 <= value(series, "endpoint_state_age_seconds", **labels) < 30
        assert value(series, "endpoint_gets_total", **labels) == entry.pool.gets
        assert 0 < value(series, "endpoint_latency_seconds", **labels) < 30
        assert value(series, "endpoint_connections_max", **labels) == 2
        assert value(series, "endpoint_failures_in_row", **labels, kind="calls") == 0
        assert value(series, "endpoint_ejections_total", **labels) == 0
        assert value(series, "endpoint_in_flight", **labels) == (labels["endpoint"] == used)
        assert value(series, "endpoint_connections", **labels, state="in_use") == (labels["endpoint"] == used)
    assert value(series, "endpoints", pool="cluster", state="active") == 2
    assert value(series, "connections_max", pool="cluster") == 4
    assert value(series, "discovery_state", pool="cluster", state="fresh") == 1
    assert value(series, "discovery_state", pool="cluster", state="stale") == 0
    assert value(series, "discovery_ttl_seconds", pool="cluster") == 0.001
    assert value(series, "discovery_answers_total", pool="cluster") >= 1


def test_an_ejected_endpoint_is_down_and_a_failing_discovery_is_stale(two_servers):
    told = Told(*map(endpoint_of, two_servers))
    with ManyLines(told, 2, name="cluster") as pool:
        pool.wait(4, timeout=30)
        told.is_silent = True
        two_servers[0].stop()
        pool.reset()
        wait_until(lambda: pool.stats().discovery.state == "stale")
        wait_until(lambda: "ejected" in [entry.state for entry in pool.stats().endpoints])
        series = series_of(pool)

    down = {"pool": "cluster", "endpoint": str(endpoint_of(two_servers[0]))}
    assert value(series, "endpoint_up", **down) == 0
    assert value(series, "endpoint_state", **down, state="ejected") == 1
    assert value(series, "endpoint_ejections_total", **down) == 1
    assert value(series, "endpoint_open_errors_total", **down) >= 5
    assert value(series, "endpoints", pool="cluster", state="ejected") == 1
    assert value(series, "discovery_state", pool="cluster", state="stale") == 1
    assert 0 < value(series, "discovery_state_age_seconds", pool="cluster") < 30


def test_an_endpoint_that_is_gone_has_no_series_and_what_it_did_stays_in_the_totals(two_servers):
    here, there = map(endpoint_of, two_servers)
    told = Told(here)
    with ManyLines(told, 2, name="cluster", timeout=5) as pool:
        pool.wait(2, timeout=30)
        registry = registry_of(pool)
        seen = []
        for endpoints in [(here, there), (there,), (here, there), (here,)]:
            told.endpoints = endpoints
            wanted = {str(endpoint) for endpoint in endpoints}
            wait_until(lambda wanted=wanted: {str(e.endpoint) for e in pool.stats().endpoints} == wanted)
            for _ in range(20):
                ask(pool)
            series = series_in(generate_latest(registry).decode())
            told_of = {dict(labels)["endpoint"] for name, labels in series if "endpoint_up" in name}
            assert told_of == wanted
            seen.append(series)

    totals = [{key: number for key, number in s.items() if is_total(key)} for s in seen]
    assert all(before[key] <= after[key] for before, after in pairwise(totals) for key in before)
    assert [value(series, "gets_total", pool="cluster") for series in seen] == [20, 40, 60, 80]
    assert value(seen[-1], "endpoint_gets_total", pool="cluster", endpoint=str(here)) < 80


def is_total(key: tuple[str, frozenset[tuple[str, str]]]) -> bool:
    return key[0].endswith("_total") and "endpoint" not in dict(key[1])


def test_without_endpoints_there_are_totals_only(cluster):
    series = series_of(cluster, endpoints=False)

    assert {name for name in names(series) if name.startswith("endpoint_")} == set()
    assert value(series, "endpoints", pool="cluster", state="active") == 2
    assert value(series, "connections", pool="cluster", state="idle") == 4


def test_a_pool_of_one_endpoint_has_no_series_of_endpoints_and_discovery(lone):
    assert {name for name in names(series_of(lone)) if name.startswith(("endpoint", "discovery"))} == set()


def test_connections_under_keepalive_are_neither_idle_nor_in_use(tcp_server):
    class Checked(Lines):
        def _keepalive(self, c: Any) -> None:
            checking.set()
            go_on.wait()

    checking, go_on = gevent.event.Event(), gevent.event.Event()
    with Checked(tcp_server, 1, keepalive=0.01, keepalive_timeout=30, name="checked") as pool:
        assert checking.wait(timeout=5)
        series = series_of(pool)
        go_on.set()

    assert value(series, "connections", pool="checked", state="keepalive") == 1
    assert value(series, "connections", pool="checked", state="idle") == 0


def test_failures_in_a_row_are_told_by_kind(two_servers):
    with ManyLines([endpoint_of(two_servers[0])], 2, name="cluster") as pool:
        pool.wait(timeout=30)
        for _ in range(3):
            with pytest.raises(ConnectionResetError), pool.get(timeout=5):
                raise ConnectionResetError
        series = series_of(pool)

    place = {"pool": "cluster", "endpoint": str(endpoint_of(two_servers[0]))}
    kinds = ("connects", "keepalives", "calls")
    assert [value(series, "endpoint_failures_in_row", **place, kind=kind) for kind in kinds] == [0, 0, 3]
    assert value(series, "endpoint_discarded_total", **place, cause="error") == 3


def test_names_and_units_are_as_prometheus_wants_them(lone, cluster):
    text = generate_latest(registry_of(lone, cluster)).decode()

    assert series_in(text)
    families = list(parse(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert re.fullmatch(r"geventconnpool(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert sample.labels["pool"] in ("lone", "cluster")
    by_name = {prometheus_name(metric): metric for metric in PROMETHEUS}
    assert len(by_name) == len(PROMETHEUS)
    assert {name for name in by_name if "seconds" in name} == {
        name for name, metric in by_name.items() if metric.unit == "s"
    }


def test_the_stricter_parser_of_openmetrics_takes_it_too(lone, dns_cluster):
    text = generate_openmetrics(registry_of(lone, dns_cluster)).decode()

    assert {family.name for family in parse_openmetrics(text)} == {
        prometheus_name(metric).removesuffix("_total") for metric in PROMETHEUS
    }


@pytest.mark.parametrize("name", ['say "hi"', "a\nb", "back\\slash\\n", "{pool='x'} 1", "später ☃", "half \udc80"])
def test_a_hostile_name_is_one_label_and_no_more(tcp_server, name):
    with Lines(tcp_server, 1, name=name) as pool, Lines(tcp_server, 1, name="plain") as plain:
        hostile, usual = series_of(pool), series_of(plain)

    assert {dict(labels)["pool"] for _, labels in hostile} == {name.replace("\udc80", "\\udc80")}
    assert [name for name, _ in hostile] == [name for name, _ in usual]


def test_a_second_pool_of_a_name_is_refused_and_none_is_added(lone, tcp_server):
    with Lines(tcp_server, 1, name="lone") as namesake, Lines(tcp_server, 1, name="other") as other:
        collector = collector_of(lone)

        with pytest.raises(ValueError, match="pools must have different names, but two are called 'lone'"):
            PrometheusCollector(lone, namesake)
        with pytest.raises(ValueError, match="two are called 'lone'"):
            collector.add(other, namesake)
        assert {dict(s.labels)["pool"] for family in collector.collect() for s in family.samples} == {"lone"}


def test_a_name_is_free_again_when_its_pool_is_closed_or_dropped(tcp_server):
    first = Lines(tcp_server, 1, name="one")
    collector = PrometheusCollector(first)
    first.close()
    second = Lines(tcp_server, 1, name="one")
    collector.add(second)
    second.wait(timeout=5)
    gevent.idle()  # what still opens connections holds on to it
    with pytest.warns(ResourceWarning):
        del second
    third = Lines(tcp_server, 1, name="one")
    collector.add(third)

    assert third.close(timeout=5)


def test_what_is_no_pool_is_refused(lone):
    with pytest.raises(TypeError, match="pools must be ConnectionPools or ClusterPools, not 'lone'"):
        PrometheusCollector("lone")
    with pytest.raises(TypeError, match="not None"):
        instrument(lone, None, meter_provider=MeterProvider())
    with pytest.raises(TypeError, match="endpoints must be True or False, not 'no'"):
        PrometheusCollector(lone, endpoints="no")


def test_a_registry_takes_one_collector(lone, cluster):
    registry = registry_of(lone)

    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(collector_of(cluster))


def test_a_pool_that_is_closed_has_no_series(tcp_server):
    pool = Lines(tcp_server, 1)
    registry = registry_of(pool)
    pool.close()

    assert generate_latest(registry) == b""


class Refusing(ConnectionPool[Any]):
    """Its last error has a traceback that leads to it."""

    def _new_connection(self) -> Any:
        raise ConnectionRefusedError("nobody is there")


def test_a_pool_is_not_kept_alive_by_those_who_look_at_it(two_servers):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    pool: Any = Refusing(1, name="refusing")
    alive = weakref.ref(pool)
    wait_until(lambda: alive().stats().open_errors)
    registry = registry_of(pool)
    instrument(pool, meter_provider=provider)
    assert generate_latest(registry) != b""
    assert collect(reader) != {}

    del pool
    gc.collect()

    assert alive() is None
    assert generate_latest(registry) == b""
    assert collect(reader) == {}
    provider.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_native_thread_may_be_the_last_to_hold_a_pool(tcp_server):
    pool: Any = Lines(tcp_server, 2)
    pool.wait(timeout=30)
    gevent.idle()
    collector = PrometheusCollector(pool)
    known = next(iter(collector._watched._known)).pool
    held, dropped = threading.Event(), threading.Event()

    def hold() -> None:
        held_here = known()
        held.set()
        dropped.wait()
        del held_here

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    del pool
    dropped.set()
    thread.join()

    assert known() is None
    assert list(collector.collect()) == []
    wait_until(lambda: tcp_server.open == 0)


# -- OpenTelemetry -----------------------------------------------------------------------------------------------------


def collect(reader: InMemoryMetricReader) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Return the values and attributes of each instrument; no attributes may be there twice."""
    data = reader.get_metrics_data()
    found: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            assert scope.scope.name == "geventconnpool"
            for metric in scope.metrics:
                assert metric.name not in found
                points = [(getattr(p, "value", None) or 0, dict(p.attributes or {})) for p in metric.data.data_points]
                assert len({frozenset(attributes.items()) for _, attributes in points}) == len(points)
                found[metric.name] = points
    return found


def observed(data: dict[str, list[tuple[float, dict[str, Any]]]], name: str, **attributes: Any) -> float:
    """Return the sum of the values with these attributes, whose dots are written as two underscores."""
    wanted = {key.replace("__", "."): value for key, value in attributes.items()}
    values = [value for value, found in data[name] if wanted.items() <= found.items()]
    assert values
    return sum(values)


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider([reader])
    yield provider
    provider.shutdown()


def test_opentelemetry_is_told_what_the_stats_of_a_pool_say(lone, provider, reader):
    instrument(lone, meter_provider=provider)
    for _ in range(3):
        ask(lone)

    with lone.get():
        data = collect(reader)

    assert sorted(data["db.client.connection.count"], key=str) == [
        (1, {"db.client.connection.pool.name": "lone", "db.client.connection.state": "used"}),
        (2, {"db.client.connection.pool.name": "lone", "db.client.connection.state": "idle"}),
    ]
    assert data["db.client.connection.max"] == [(3, {"db.client.connection.pool.name": "lone"})]
    assert data["db.client.connection.idle.max"] == [(3, {"db.client.connection.pool.name": "lone"})]
    assert data["db.client.connection.idle.min"] == [(3, {"db.client.connection.pool.name": "lone"})]
    assert data["db.client.connection.pending_requests"] == [(0, {"db.client.connection.pool.name": "lone"})]
    assert data["db.client.connection.timeouts"] == [(0, {"db.client.connection.pool.name": "lone"})]
    assert data["geventconnpool.gets"] == [(4, {"db.client.connection.pool.name": "lone"})]
    assert observed(data, "geventconnpool.discarded", geventconnpool__cause="error") == 0


def test_opentelemetry_is_told_of_each_endpoint(cluster, provider, reader, two_servers):
    instrument(cluster, meter_provider=provider)
    for _ in range(20):
        ask(cluster)

    with cluster.get() as c:
        used = cluster.endpoint_of(c)
        data = collect(reader)

    count, state = "db.client.connection.count", {"db__client__connection__state": "used"}
    for endpoint in map(endpoint_of, two_servers):
        place = {"server__address": "127.0.0.1", "server__port": endpoint.port}
        assert observed(data, count, **place, **state) == (endpoint == used)
        assert observed(data, count, **place) == 2
        assert observed(data, "geventconnpool.endpoint.up", **place) == 1
        assert observed(data, "geventconnpool.endpoint.state", **place, geventconnpool__state="ejected") == 0
    assert observed(data, "geventconnpool.endpoint.gets") == observed(data, "geventconnpool.gets") == 21
    assert observed(data, "geventconnpool.discovery.state", geventconnpool__state="fresh") == 1
    assert observed(data, "db.client.connection.max") == 4


def test_names_and_attributes_of_the_convention_follow_the_prefix(dns_cluster, lone, provider, reader):
    instrument(dns_cluster, meter_provider=provider, prefix="epp.connection", endpoints=False)
    instrument(lone, meter_provider=provider)

    data = collect(reader)

    assert sorted(data["epp.connection.count"], key=str) == [
        (0, {"epp.connection.pool.name": "dns", "epp.connection.state": "used"}),
        (2, {"epp.connection.pool.name": "dns", "epp.connection.state": "idle"}),
    ]
    assert data["geventconnpool.gets"] == [
        (1, {"epp.connection.pool.name": "dns"}),
        (0, {"db.client.connection.pool.name": "lone"}),
    ]
    names_of_lone = {f"db.client.connection.{metric.name}" for metric in CONVENTION}
    assert {name for name in data if not name.startswith("geventconnpool.")} == names_of_lone | {
        f"epp.connection.{metric.name}" for metric in CONVENTION
    }
    ours = {f"geventconnpool.{metric.name}" for metric in OPENTELEMETRY if metric.of != "endpoint"}
    assert {name for name in data if name.startswith("geventconnpool.")} == ours


def test_each_collection_looks_anew_whoever_collects(lone, reader):
    second = InMemoryMetricReader()
    provider = MeterProvider([reader, second])
    instrument(lone, meter_provider=provider)

    gets = []
    for one in (reader, second, reader, reader, second):
        ask(lone)
        gets.append(observed(collect(one), "geventconnpool.gets"))
    provider.shutdown()

    assert gets == [1, 2, 3, 4, 5]


def test_pools_may_come_later_and_go_again(lone, cluster, provider, reader):
    first = instrument(lone, meter_provider=provider)
    second = instrument(cluster, meter_provider=provider)
    assert {a["db.client.connection.pool.name"] for _, a in collect(reader)["geventconnpool.gets"]} == {
        "lone",
        "cluster",
    }

    first.stop()
    first.stop()
    assert {a["db.client.connection.pool.name"] for _, a in collect(reader)["geventconnpool.gets"]} == {"cluster"}
    second.stop()
    assert collect(reader) == {}
    instrument(lone, meter_provider=provider)
    first.stop()
    assert {a["db.client.connection.pool.name"] for _, a in collect(reader)["geventconnpool.gets"]} == {"lone"}


def test_a_pool_is_instrumented_once(lone, provider):
    instrument(lone, meter_provider=provider)

    with pytest.raises(ValueError, match="two are called 'lone'"):
        instrument(lone, meter_provider=provider)


def test_endpoints_that_are_gone_are_not_observed_and_totals_do_not_go_back(two_servers, provider, reader):
    here, there = map(endpoint_of, two_servers)
    told = Told(here, there)
    with ManyLines(told, 2, name="cluster", timeout=5) as pool:
        instrument(pool, meter_provider=provider)
        pool.wait(4, timeout=30)
        for _ in range(20):
            ask(pool)
        before = collect(reader)
        told.endpoints = (there,)
        wait_until(lambda: len(pool.stats().endpoints) == 1)
        after = collect(reader)

    assert observed(before, "geventconnpool.gets") == observed(after, "geventconnpool.gets") == 20
    assert {a["server.port"] for _, a in before["geventconnpool.endpoint.up"]} == {here.port, there.port}
    assert {a["server.port"] for _, a in after["geventconnpool.endpoint.up"]} == {there.port}


def test_an_exporter_in_a_native_thread_collects_while_pools_work(lone, cluster):
    class Exported:
        """What an exporter gets."""

        _preferred_temporality: Any = None
        _preferred_aggregation: Any = None

        def __init__(self) -> None:
            self.gets: list[dict[str, float]] = []
            self.threads: set[int] = set()

        def export(self, data: Any, **_options: Any) -> Any:
            self.threads.add(threading.get_ident())
            metrics = {m.name: m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
            points = metrics["geventconnpool.gets"].data.data_points
            self.gets.append({p.attributes["db.client.connection.pool.name"]: p.value for p in points})

        def shutdown(self, **_options: Any) -> None:
            """Nothing to do."""

        force_flush = shutdown

    exported: Any = Exported()
    provider = MeterProvider([PeriodicExportingMetricReader(exported, export_interval_millis=10)])
    instrument(lone, cluster, meter_provider=provider)
    users = [gevent.spawn(lambda pool=pool: [ask(pool) for _ in range(200)]) for pool in (lone, cluster) * 4]
    gevent.joinall(users, timeout=30, raise_error=True)
    wait_until(lambda: exported.gets[-1:] == [{"lone": 800, "cluster": 800}])
    threads = set(exported.threads)
    provider.shutdown()

    assert threads
    assert threading.get_ident() not in threads
    for pool in ("lone", "cluster"):
        gets = [told[pool] for told in exported.gets]
        assert gets == sorted(gets)


def test_connects_are_timed_by_a_handler_of_events(tcp_server, provider, reader):
    with Lines(tcp_server, 3, name="timed", on_event=create_time_recorder(provider, prefix="epp.connection")) as pool:
        pool.wait(timeout=30)
        wait_until(lambda: reader_count(collect_points(reader, "epp.connection.create_time")) == 3)
        (point,) = collect_points(reader, "epp.connection.create_time")

    assert dict(point.attributes) == {"epp.connection.pool.name": "timed"}
    assert 0 < point.sum < 30
    assert point.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


def collect_points(reader: InMemoryMetricReader, name: str) -> list[Any]:
    data = reader.get_metrics_data()
    metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data is not None else []
    return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


def reader_count(points: list[Any]) -> int:
    return sum(point.count for point in points)


def test_connects_of_a_cluster_are_timed_by_endpoint(two_servers, provider, reader):
    endpoints = [endpoint_of(server) for server in two_servers]
    with ManyLines(endpoints, 2, name="cluster", on_event=create_time_recorder(provider)) as pool:
        pool.wait(4, timeout=30)
        wait_until(lambda: reader_count(collect_points(reader, "db.client.connection.create_time")) == 4)
        points = collect_points(reader, "db.client.connection.create_time")

    assert sorted((p.attributes["server.port"], p.count) for p in points) == sorted((e.port, 2) for e in endpoints)


@pytest.mark.parametrize("prefix", ["", "1st", "a b", "trailing.", "ä", "x" * 200])
def test_a_prefix_that_no_instrument_may_have_is_refused(lone, provider, prefix):
    with pytest.raises(ValueError, match="prefix must be"):
        instrument(lone, meter_provider=provider, prefix=prefix)


def test_what_is_no_prefix_or_no_provider_is_refused(lone, provider):
    with pytest.raises(TypeError, match="prefix must be a str, not 1"):
        create_time_recorder(provider, prefix=1)
    with pytest.raises(TypeError, match="meter_provider must be a MeterProvider or None, not 'sdk'"):
        instrument(lone, meter_provider="sdk")


def test_the_global_provider_may_be_set_later():
    program = """
from geventconnpool import ConnectionPool
from geventconnpool.metrics import instrument
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

class Pool(ConnectionPool):
    def _new_connection(self):
        return object()

before, after = Pool(1, name="before"), Pool(1, name="after")
instrument(before)
reader = InMemoryMetricReader()
set_meter_provider(MeterProvider([reader]))
instrument(after)
(resource,) = reader.get_metrics_data().resource_metrics
points = [m for m in resource.scope_metrics[0].metrics if m.name == "db.client.connection.max"][0].data.data_points
print(sorted(point.attributes["db.client.connection.pool.name"] for point in points))
before.close(), after.close()
"""

    assert run(program) == "['after', 'before']"


# -- both --------------------------------------------------------------------------------------------------------------


def test_nobody_pays_for_metrics_who_does_not_want_them():
    look = "import sys; print([m for m in ('geventconnpool.metrics', 'prometheus_client', 'opentelemetry')"
    look += " if m in sys.modules])"

    assert run(f"import geventconnpool, geventconnpool.cluster; {look}") == "[]"
    assert run(f"import geventconnpool.metrics; {look}") == "['geventconnpool.metrics']"


@pytest.mark.parametrize(
    ("missing", "begin", "message"),
    [
        (
            "prometheus_client",
            PrometheusCollector,
            "PrometheusCollector needs prometheus_client: pip install 'geventconnpool[prometheus]'",
        ),
        ("opentelemetry", instrument, "instrument needs opentelemetry: pip install 'geventconnpool[otel]'"),
        (
            "opentelemetry",
            create_time_recorder,
            "create_time_recorder needs opentelemetry: pip install 'geventconnpool[otel]'",
        ),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_the_extra_that_brings_it(monkeypatch, missing, begin, message):
    for module in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(ImportError, match=re.escape(message)):
        begin()


# -- docs/metrics.rst --------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "metrics.rst").read_text()
INSTEAD = {
    "connections": "[count, connecting]",
    "connections.max": "[max, idle.max]",
    "connections.min": "[idle.min]",
    "waiting": "[pending_requests]",
    "timeouts": "[timeouts]",
    "endpoint.connections": "[count, connecting]",
    "endpoint.connections.max": "[max, idle.max]",
    "endpoint.in_flight": "[count]",
}


def csv_table(header: str, rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["   " + ", ".join(f'"{cell}"' for cell in row) for row in rows]
    return "\n".join([".. csv-table::", f"   :header: {header}", "", *lines, ""])


def table_of_all() -> str:
    """Return the first table of the page, as it has to be."""
    rows = [
        (
            f"``{prometheus_name(metric)}``",
            ", ".join(label_names(metric)),
            f"``geventconnpool.{metric.name}``" if metric in OPENTELEMETRY else INSTEAD[metric.name],
            metric.help,
        )
        for metric in PROMETHEUS
    ]
    return csv_table("Prometheus, labels, OpenTelemetry, what it is", rows)


def table_of_the_convention() -> str:
    """Return the second one: what OpenTelemetry has, and Prometheus has not."""
    heads = [("db.client.connection", CONVENTION), ("geventconnpool", OPENTELEMETRY)]
    metrics = [(head, metric) for head, some in heads for metric in some if metric not in PROMETHEUS]
    kinds = {"counter": "Counter", "sum": "UpDownCounter", "gauge": "Gauge"}
    rows = [
        (f"``{head}.{m.name}``", kinds[m.kind], m.unit, f"{head}.{m.label}" if m.label else "", m.help)
        for head, m in metrics
    ]
    rows.append(("``db.client.connection.create_time``", "Histogram", "s", "", "Time it took to open a connection."))
    return csv_table("OpenTelemetry, instrument, unit, attribute, what it is", rows)


def test_the_page_lists_what_there_is():
    assert table_of_all() in PAGE
    assert table_of_the_convention() in PAGE


def test_whatever_the_page_mentions_exists():
    exist = {prometheus_name(metric) for metric in PROMETHEUS}

    mentioned = {name for name in re.findall(r"geventconnpool_[a-z_]+", PAGE) if not name.endswith("_")}

    assert mentioned
    assert mentioned - exist == set()


def test_the_names_of_the_convention_are_those_of_the_convention():
    from opentelemetry.semconv._incubating.attributes import db_attributes, server_attributes
    from opentelemetry.semconv._incubating.metrics import db_metrics

    theirs = {value for name, value in vars(db_metrics).items() if name.startswith("DB_CLIENT_CONNECTION_")}

    assert {f"db.client.connection.{metric.name}" for metric in CONVENTION} | {
        f"db.client.connection.{name}" for name in ("create_time", "use_time", "wait_time")
    } == theirs
    assert db_attributes.DB_CLIENT_CONNECTION_POOL_NAME == "db.client.connection.pool.name"
    assert db_attributes.DB_CLIENT_CONNECTION_STATE == "db.client.connection.state"
    assert (server_attributes.SERVER_ADDRESS, server_attributes.SERVER_PORT) == ("server.address", "server.port")


def test_a_patched_program_is_scraped_and_exports():
    program = """
from gevent import monkey; monkey.patch_all()
import gevent
from urllib.request import urlopen
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from prometheus_client import CollectorRegistry, start_http_server
from geventconnpool import ConnectionPool
from geventconnpool.metrics import PrometheusCollector, instrument

class Pool(ConnectionPool):
    def _new_connection(self):
        return object()

class Exporter(MetricExporter):
    def export(self, data, **options):
        exported.set()
        return MetricExportResult.SUCCESS

    def shutdown(self, **options):
        pass

    force_flush = shutdown

exported = gevent.event.Event()
pool = Pool(1, name="mine")
with pool.get():
    pass
registry = CollectorRegistry()
registry.register(PrometheusCollector(pool))
server, thread = start_http_server(0, "127.0.0.1", registry)
provider = MeterProvider([PeriodicExportingMetricReader(Exporter(), export_interval_millis=10)])
instrument(pool, meter_provider=provider)
text = urlopen(f"http://127.0.0.1:{server.server_port}/metrics").read().decode()
print('geventconnpool_gets_total{pool="mine"} 1.0' in text, exported.wait(30))
provider.shutdown()
server.shutdown()
pool.close()
"""

    assert run(program) == "True True"


# -- several processes -------------------------------------------------------------------------------------------------


class Workers:
    """Two workers of gunicorn with the configuration of the page, in the multiprocess mode of prometheus_client."""

    def __init__(self, directory: Path) -> None:
        ports = [free_port() for _ in range(4)]
        *_, hook = re.findall(r"code-block:: python\n\n((?:(?: {4}.*)?\n)+)", PAGE)
        hook = (
            textwrap.dedent(hook)
            .replace("range(9200, 9210)", str(ports))
            .replace("myapplication", "tests.apps.metered")
        )
        control = directory / "control"
        (directory / "conf.py").write_text(f"{hook}\ncontrol_socket = {str(control)!r}\n")
        (directory / "multi").mkdir()
        options = ("-k", "gevent", "-w", "2", "-b", "127.0.0.1:0", "-c", str(directory / "conf.py"))
        program = Program(
            *("gunicorn", *options, "tests.apps.metered:application"),
            log=directory / "log",
            witnesses=[],
            PROMETHEUS_MULTIPROC_DIR=str(directory / "multi"),
        )
        with program:
            listening = wait_until(lambda: re.search(r"Listening at: (\S+) ", program.output()))
            self._url = listening[1]
            self.answered: Counter[int] = Counter()
            wait_until(self._both_have_answered, what="an answer of each worker")
            self.alone = self._get("/multiprocess")[1]
            self.beside: dict[int, Series] = {}
            wait_until(self._both_have_told, what="a scrape of each worker")
            self.by_port = [series_in(text) for port in ports if 'pool="metered"' in (text := self._try(port))]
            program.ask_to_end()
            self.exit_code = program.wait(30)

    def _both_have_answered(self) -> bool:
        self.answered[self._get("/")[0]] += 1
        return len(self.answered) == 2 and self.answered.total() >= 10

    def _both_have_told(self) -> bool:
        worker, series = self._get("/multiprocess-and-collector")
        self.beside[worker] = series
        return len(self.beside) == 2

    def _get(self, path: str) -> tuple[int, Series]:
        """Return which worker has answered, and what."""
        worker, _, text = fetch(self._url + path).partition("\n")
        return int(worker), series_in(text)

    @staticmethod
    def _try(port: int) -> str:
        try:
            return fetch(f"http://127.0.0.1:{port}/metrics")
        except URLError:
            return ""


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Workers:
    return Workers(tmp_path_factory.mktemp("gunicorn"))


def test_the_multiprocess_mode_has_the_counters_of_all_workers_and_nothing_of_collectors(workers):
    assert workers.alone == {("requests_total", frozenset()): workers.answered.total()}


def test_a_collector_beside_it_tells_of_the_worker_that_happens_to_answer(workers):
    told = {worker: value(series, "gets_total", pool="metered") for worker, series in workers.beside.items()}

    assert told == workers.answered


def test_with_a_port_for_each_worker_all_is_told(workers):
    gets = [value(series, "gets_total", pool="metered") for series in workers.by_port]

    assert sorted(gets) == sorted(workers.answered.values())
    assert len(gets) == 2
    assert workers.exit_code == 0
