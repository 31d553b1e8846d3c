"""Metrics of pools, for Prometheus and for OpenTelemetry: read from ``stats()`` when somebody collects them.

``pip install 'geventconnpool[prometheus]'`` or ``'geventconnpool[otel]'`` brings the library; this module can be
imported without. What there is, and what it is good for, is in ``docs/metrics.rst``. Pools are known by weak
references: one that has been dropped or closed has no series any more. ``stats()`` may be read in any native thread, so
a collection may run in whichever it likes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from geventconnpool import __version__, events
from geventconnpool._check import show
from geventconnpool._series import CONVENTION, COUNTER, GAUGE, OPENTELEMETRY, PROMETHEUS, SUM, Metric, Sample, samples
from geventconnpool.pool import Borrowing

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from prometheus_client import Metric as Family

    from geventconnpool.cluster._endpoints import Endpoint

__all__ = ["Instrumentation", "PrometheusCollector", "create_time_recorder", "instrument"]

PREFIX = "db.client.connection"
OURS = "geventconnpool"
# Seconds. Those of the conventions for the duration of calls: they say nothing about connects, which take as long.
CREATE_TIME_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A pool that is looked at, and whether its single endpoints are."""

    name: str
    pool: ref[Borrowing[Any]]
    endpoints: bool


class _Watched:
    """Pools that are looked at, known weakly. No two of one name, or both would draw one curve."""

    def __init__(self) -> None:
        # In their order. By what they are and not by name, so that a thread that finds one gone takes out no other.
        self._known: dict[_Known, None] = {}

    def add(self, pools: Iterable[Borrowing[Any]], *, endpoints: bool) -> list[_Known]:
        """Add all or none, and return what was added."""
        if not isinstance(endpoints, bool):
            raise TypeError(f"endpoints must be True or False, not {show(endpoints)}")
        added: list[_Known] = []
        taken = {name for name, _, _ in self}
        for pool in pools:
            if not isinstance(pool, Borrowing):
                raise TypeError(f"pools must be ConnectionPools or ClusterPools, not {show(pool)}")
            name = _text(_stats(pool).name)
            if name in taken:
                raise ValueError(f"pools must have different names, but two are called {show(name)}")
            taken.add(name)
            added.append(_Known(name, ref(pool), endpoints))
        self._known.update(dict.fromkeys(added))
        return added

    def remove(self, known: Iterable[_Known]) -> None:
        for one in known:
            self._known.pop(one, None)

    def __iter__(self) -> Iterator[tuple[str, events.PoolStats, bool]]:
        """Yield the name of each that is in use, how it stands, and whether to tell of its endpoints; forget others."""
        for known in tuple(self._known):  # a copy: another thread may add some
            pool = known.pool()
            if pool is None or pool.closed:
                self.remove([known])
                continue
            stats = _stats(pool)
            del pool  # it is not kept alive while others look at what it said
            yield known.name, stats, known.endpoints


def _stats(pool: Any) -> events.PoolStats:
    stats: events.PoolStats = pool.stats()
    return stats


def _text(name: str) -> str:
    """Return what can be encoded: half a surrogate pair would be the end of every collection."""
    return name.encode("utf-8", "backslashreplace").decode()


def _need(module: str, what: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package}: pip install 'geventconnpool[{extra}]'") from error


# -- Prometheus --------------------------------------------------------------------------------------------------------


class PrometheusCollector:
    """A custom collector for ``prometheus_client``: ``REGISTRY.register(PrometheusCollector(pool))``.

    ``endpoints=False`` leaves out the series of single endpoints, for clusters of very many. A registry takes one
    collector, which takes any number of pools, later ones by :meth:`add`. Raises :class:`ImportError` if
    ``prometheus_client`` is missing, :class:`TypeError` for what is no pool, :class:`ValueError` for a second pool of
    the same name. It may be collected in any native thread.
    """

    def __init__(self, *pools: Borrowing[Any], endpoints: bool = True) -> None:
        self._library = _need("prometheus_client.core", "PrometheusCollector", "prometheus")
        self._endpoints = endpoints
        self._watched = _Watched()
        self.add(*pools)

    def add(self, *pools: Borrowing[Any]) -> None:
        """Look at these pools, too. Raises as the constructor does, and adds none then."""
        self._watched.add(pools, endpoints=self._endpoints)

    def describe(self) -> Iterator[Family]:
        """Yield all families, without series: a registry takes each name once."""
        yield from map(self._family, PROMETHEUS)

    def collect(self) -> Iterator[Family]:
        """Yield the families that have series now."""
        now = monotonic()
        pools = tuple(self._watched)
        for metric in PROMETHEUS:
            family = self._family(metric)
            for name, stats, endpoints in pools:
                for sample in samples(metric, stats, now, endpoints=endpoints):
                    family.add_metric(_label_values(name, sample), sample.value)
            if family.samples:
                yield family

    def _family(self, metric: Metric) -> Any:
        kind = self._library.CounterMetricFamily if metric.kind is COUNTER else self._library.GaugeMetricFamily
        return kind(prometheus_name(metric), metric.help, labels=label_names(metric))


def prometheus_name(metric: Metric) -> str:
    """Return the name as Prometheus wants it: with the base unit, counters with ``_total``."""
    name = f"geventconnpool_{metric.name.replace('.', '_')}"
    return f"{name}{'_seconds' if metric.unit == 's' else ''}{'_total' if metric.kind is COUNTER else ''}"


def label_names(metric: Metric) -> list[str]:
    labels = ["pool", "endpoint"] if metric.of == "endpoint" else ["pool"]
    return labels if metric.label is None else [*labels, metric.label]


def _label_values(pool: str, sample: Sample) -> list[str]:
    values = (pool, None if sample.endpoint is None else str(sample.endpoint), sample.label)
    return [value for value in values if value is not None]


# -- OpenTelemetry -----------------------------------------------------------------------------------------------------


class Instrumentation:
    """What :func:`instrument` has begun, until :meth:`stop`. It need not be kept for that."""

    def __init__(self, watched: _Watched, known: list[_Known]) -> None:
        self._watched = watched
        self._known = known

    def stop(self) -> None:
        """End the series of these pools: the next collection has none. Idempotent; in any native thread."""
        self._watched.remove(self._known)


def instrument(
    *pools: Borrowing[Any], meter_provider: MeterProvider | None = None, prefix: str = PREFIX, endpoints: bool = True
) -> Instrumentation:
    """Have OpenTelemetry observe these pools, with instruments that are read when its reader collects.

    ``meter_provider`` is the global one if None, even if that is set later. Names and attributes of the semantic
    conventions begin with ``prefix``, the others with ``geventconnpool``. ``endpoints=False`` leaves single endpoints
    out: totals only. May be called any number of times. Raises :class:`ImportError` if ``opentelemetry-api`` is
    missing, :class:`TypeError` for what is no pool or no meter provider, :class:`ValueError` for a second pool of the
    same name, or for a prefix that no instrument may have.
    """
    api = _need("opentelemetry.metrics", "instrument", "otel")
    provider = _provider(api, meter_provider)
    _check_prefix(prefix)
    watched = _observatory(api, provider).watched(provider, prefix)
    return Instrumentation(watched, watched.add(pools, endpoints=endpoints))


def create_time_recorder(
    meter_provider: MeterProvider | None = None, prefix: str = PREFIX
) -> Callable[[events.Event], None]:
    """Return an ``on_event`` for pools that records how long each connect took: the histogram ``<prefix>.create_time``.

    Connects that failed are not in it. Raises :class:`ImportError`, :class:`TypeError` and :class:`ValueError` as
    :func:`instrument` does.
    """
    provider = _provider(_need("opentelemetry.metrics", "create_time_recorder", "otel"), meter_provider)
    _check_prefix(prefix)
    histogram = _meter(provider).create_histogram(
        f"{prefix}.create_time",
        unit="s",
        description="The time it took to create a new connection.",
        explicit_bucket_boundaries_advisory=CREATE_TIME_BUCKETS,
    )

    def record(event: events.Event) -> None:
        if isinstance(event, events.ConnectionOpened):
            histogram.record(event.seconds, _attributes(prefix, _text(event.pool), event.endpoint))

    return record


def _provider(api: Any, given: MeterProvider | None) -> MeterProvider:
    if given is not None and not isinstance(given, api.MeterProvider):
        raise TypeError(f"meter_provider must be a MeterProvider or None, not {show(given)}")
    provider: MeterProvider = api.get_meter_provider() if given is None else given
    return provider


def _check_prefix(prefix: object) -> None:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, not {show(prefix)}")
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_./-]{0,150}[A-Za-z0-9])?", prefix):  # 255 with what follows it
        raise ValueError(f"prefix must be the beginning of a name of OpenTelemetry, not {show(prefix)}")


def _meter(provider: MeterProvider) -> Meter:
    return provider.get_meter(OURS, __version__)


class _Observatory:
    """The instruments of one meter provider, made once: of a second one of a name, the SDK would drop the callback.

    It cannot be told to forget one either. So the instruments stay, and look at the pools there are.
    """

    def __init__(self, observation: type[Observation]) -> None:
        self._observation = observation
        self._watched: dict[str, _Watched] = {}  # by prefix
        self._names: list[str] = []  # of all instruments
        self._ready: dict[str, list[Observation]] = {}  # by instrument, of those that have not been asked yet

    def watched(self, provider: MeterProvider, prefix: str) -> _Watched:
        """Return the pools with this prefix; see that there are instruments for them."""
        meter = _meter(provider)
        if not self._watched:
            self._make(meter, OURS, OPENTELEMETRY)
        if prefix not in self._watched:
            self._make(meter, prefix, CONVENTION)
        return self._watched.setdefault(prefix, _Watched())

    def _make(self, meter: Meter, head: str, metrics: Iterable[Metric]) -> None:
        make = {
            COUNTER: meter.create_observable_counter,
            SUM: meter.create_observable_up_down_counter,
            GAUGE: meter.create_observable_gauge,
        }
        for metric in metrics:
            name = f"{head}.{metric.name}"
            self._names.append(name)
            make[metric.kind](name, [partial(self._observe, name)], metric.unit, metric.help)

    def _observe(self, name: str, _options: CallbackOptions) -> Iterable[Observation]:
        """Answer one instrument. All are asked, one after the other: who is asked again begins a new round.

        So all numbers of a round are of one moment, and ``stats()`` is called once. What that returned is not kept: an
        error in it has a traceback, which holds on to the pool.
        """
        if name not in self._ready:
            self._ready = self._look_round()
        return self._ready.pop(name, ())

    def _look_round(self) -> dict[str, list[Observation]]:
        now = monotonic()
        ready: dict[str, list[Observation]] = {name: [] for name in self._names}
        for prefix, watched in tuple(self._watched.items()):
            for pool, stats, endpoints in watched:
                for head, metric in _instruments(prefix):
                    observations = ready[f"{head}.{metric.name}"]
                    for sample in samples(metric, stats, now, endpoints=endpoints):
                        attributes = _attributes(prefix, pool, sample.endpoint)
                        if sample.label is not None:
                            attributes[f"{head}.{metric.label}"] = sample.label
                        observations.append(self._observation(sample.value, attributes))
        return ready


def _instruments(prefix: str) -> Iterator[tuple[str, Metric]]:
    """Yield each metric of a pool, with what its name and its attribute begin with."""
    yield from ((prefix, metric) for metric in CONVENTION)
    yield from ((OURS, metric) for metric in OPENTELEMETRY)


def _attributes(prefix: str, pool: str, endpoint: Endpoint | None) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {f"{prefix}.pool.name": pool}
    if endpoint is not None:
        attributes |= {"server.address": endpoint.name, "server.port": endpoint.port}
    return attributes


_observatories: WeakKeyDictionary[MeterProvider, _Observatory] = WeakKeyDictionary()


def _observatory(api: Any, provider: MeterProvider) -> _Observatory:
    """Return the one of this provider, or of its stand-in: that is the global provider before it has been set."""
    found = _observatories.get(provider)
    if found is None and provider is api.get_meter_provider():
        stand_ins = (known for known in _observatories if hasattr(known, "on_set_meter_provider"))
        found = next(map(_observatories.get, stand_ins), None)
    return _observatories.setdefault(provider, found or _Observatory(api.Observation))
