"""``check``: does every endpoint accept connections, and how long does that take?"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

import gevent
from gevent import socket, ssl
from gevent.pool import Pool

from geventconnpool._commands._lookup import Found, look_up
from geventconnpool._commands._output import Output
from geventconnpool._commands._terminal import Column, Look, bars, count_of, milliseconds, table
from geventconnpool.cluster import Endpoint
from geventconnpool.cluster._endpoints import is_host

AT_ONCE = 8  # endpoints: few enough that their connects hardly delay each other
TRY = 2.0  # seconds, at most, for one connection with its TLS handshake
LOOKUP = 5.0  # seconds, at most, for one set of questions to DNS

Context = ssl.SSLContext | None


@dataclass
class Measured:
    """What the connections to one endpoint were like. Times are in seconds."""

    endpoint: str
    good: int = 0  # connections that could have been used
    connects: list[float] = field(default_factory=list)
    handshakes: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    is_done: bool = False

    @property
    def is_good(self) -> bool:
        return self.is_done and not self.errors

    @property
    def tries(self) -> int:
        return self.good + len(self.errors)


def run(options: argparse.Namespace, output: Output) -> int:
    """Connect to every endpoint. Returns 0 if all are well, 1 if some fail, 2 if there is none that works."""
    name, end = " ".join(options.name), monotonic() + options.timeout
    context = _context(options)
    measured: list[Measured] = []
    with output.progress(lambda: how_far(name, measured)):
        found = _look_up(options, end)
        measured += [Measured(str(endpoint)) for endpoint in found.endpoints]
        _measure(list(zip(measured, found.endpoints, strict=True)), options, context, end)
    for left in found.left_out:
        if left.is_trouble:
            measured.append(Measured(left.endpoint, errors=[left.why]))
    for one in measured:
        if not one.is_done and not one.errors:
            one.errors.append(f"not done within {options.timeout:g} s")
    status = status_of(measured)
    if output.as_json:
        output.document(document(name, found, measured, status))
    else:
        for line in text(name, found, measured, context is not None, output.look):
            output.line(line)
    return status


def _context(options: argparse.Namespace) -> Context:
    if not options.tls:
        for option in ("tls_name", "ca_file"):
            if getattr(options, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')} is of no use without --tls")
        return None
    if options.tls_name is not None and not is_host(options.tls_name.lower()):
        raise ValueError(f"--tls-name {options.tls_name!r} is no name of a host")
    # Not create_default_context, which makes one whose handshakes block the hub where nothing is patched.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if options.ca_file is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(options.ca_file)
    except OSError as error:
        raise ValueError(f"--ca-file {options.ca_file!r} cannot be used: {in_words(error)}") from error
    return context


def _look_up(options: argparse.Namespace, end: float) -> Found:
    try:
        with gevent.Timeout(max(0.0, end - monotonic())):
            return look_up(options.name, options.nameserver, min(LOOKUP, options.timeout))
    except gevent.Timeout:
        late = f"no answer from DNS within {options.timeout:g} s"
        return Found(late, (), None, (), nameserver=None, seconds=options.timeout, error=late)


def _measure(
    todo: Sequence[tuple[Measured, Endpoint]], options: argparse.Namespace, context: Context, end: float
) -> None:
    """Measure all, a few at once, until ``end``."""
    workers = Pool(AT_ONCE)
    try:
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(max(0.0, end - monotonic())):
            for measured, endpoint in todo:
                workers.spawn(_measure_one, measured, endpoint, options, context)
            workers.join(raise_error=True)
    finally:
        workers.kill()


def _measure_one(measured: Measured, endpoint: Endpoint, options: argparse.Namespace, context: Context) -> None:
    for _ in range(options.count):
        try:
            _connect(measured, endpoint, name_to_verify(endpoint, options.tls_name), context)
        except OSError as error:
            measured.errors.append(in_words(error))
    measured.is_done = True


def _connect(measured: Measured, endpoint: Endpoint, name: str, context: Context) -> None:
    """Open and close a connection, and note how long it took."""
    begun = monotonic()
    with gevent.Timeout(TRY, TimeoutError(f"no answer within {TRY:g} s")), endpoint.connect(TRY) as connection:
        connected = monotonic()
        measured.connects.append(connected - begun)
        if context is not None:
            _shake_hands(context, connection, name)
            measured.handshakes.append(monotonic() - connected)
    measured.good += 1


def _shake_hands(context: ssl.SSLContext, connection: socket.socket, name: str) -> None:
    with context.wrap_socket(connection, server_hostname=name):
        """Closed at once."""


def name_to_verify(endpoint: Endpoint, wanted: str | None) -> str:
    """Return the name that the certificate has to be for: ``"domain"`` (or None), ``"target"``, or any other."""
    if wanted in (None, "domain"):
        return endpoint.domain or endpoint.name  # of a list of hosts there is no other
    return endpoint.name if wanted == "target" else wanted


def in_words(error: OSError) -> str:
    """Return what went wrong in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {error.reason or error}"
    return error.strerror or str(error) or type(error).__name__


def status_of(measured: Sequence[Measured]) -> int:
    """Return the exit status."""
    if not any(one.good for one in measured):
        return 2
    return 0 if all(one.is_good for one in measured) else 1


def how_far(name: str, measured: Sequence[Measured]) -> str:
    """Return how far it is."""
    if not measured:
        return f"looking up {name}"
    return f"{sum(one.is_done for one in measured)} of {count_of(len(measured), 'endpoint')} done"


def document(name: str, found: Found, measured: Sequence[Measured], status: int) -> dict[str, object]:
    """Return what was measured, to be written as JSON. Times are in seconds."""
    return {
        "name": name,
        "status": status,
        "outcome": found.outcome,
        "error": found.error,
        "nameserver": found.nameserver,
        "lookup": round(found.seconds, 6),
        "endpoints": [
            {
                "endpoint": one.endpoint,
                "ok": one.is_good,
                "connect": [round(seconds, 6) for seconds in one.connects],
                "tls": [round(seconds, 6) for seconds in one.handshakes],
                "errors": one.errors,
            }
            for one in measured
        ],
    }


def text(name: str, found: Found, measured: Sequence[Measured], with_tls: bool, look: Look) -> Iterator[str]:
    """Yield the lines that tell what was measured: first, for monitors, how it stands."""
    yield headline(name, found, measured, look)
    if any(one.connects for one in measured):
        yield f"{found.outcome}, within {milliseconds(found.seconds)} ms"
        yield ""
        yield from table(_columns(with_tls), (_row(one, with_tls, look) for one in measured))
        yield ""
        yield from plot(measured, with_tls, look)
    troubles = [(one.endpoint, error, n) for one in measured for error, n in Counter(one.errors).items()]
    if troubles:
        yield ""
        for endpoint, error, n in troubles:
            yield f"{look.paint(endpoint, 'red')}: {error}{f' ({n} times)' if n > 1 else ''}"


def headline(name: str, found: Found, measured: Sequence[Measured], look: Look) -> str:
    """Return the first line, which says all if there is room for one line only."""
    status, good = status_of(measured), sum(one.is_good for one in measured)
    word = look.paint(("OK", "WARNING", "CRITICAL")[status], "bold", ("green", "yellow", "red")[status])
    if not measured:
        return f"{word}: {name}: nothing to connect to: {found.outcome}"
    return f"{word}: {name}: {good} of {count_of(len(measured), 'endpoint')} well"


def _columns(with_tls: bool) -> tuple[Column, ...]:
    titles = ["ok", "connect ms", "median", "worst", *(["TLS ms", "median", "worst"] if with_tls else [])]
    return Column("endpoint"), *(Column(title, is_number=True) for title in titles)


def _row(one: Measured, with_tls: bool, look: Look) -> Sequence[str]:
    ok = f"{one.good}/{one.tries}" if one.connects or one.is_done else "-"
    times = [*_times(one.connects), *(_times(one.handshakes) if with_tls else [])]
    return one.endpoint, look.paint(ok, "green" if one.is_good else "red"), *times


def _times(seconds: Sequence[float]) -> list[str]:
    """Return the best, the median and the worst."""
    if not seconds:
        return ["-"] * 3
    return [milliseconds(value, 2) for value in (min(seconds), statistics.median(seconds), max(seconds))]


def plot(measured: Sequence[Measured], with_tls: bool, look: Look) -> Iterator[str]:
    """Yield a bar for each endpoint that could be connected to."""
    parts = zip(look.blocks, ("connect", "TLS"), strict=True)
    legend = "  ".join(f"{block} {part}" for block, part in parts if part != "TLS" or with_tls)
    yield f"median in ms: {legend}"
    rows = []
    for one in measured:
        medians = [statistics.median(seconds) for seconds in (one.connects, one.handshakes) if seconds]
        if medians:
            rows.append((one.endpoint, medians, milliseconds(sum(medians), 2)))
    yield from bars(rows, look)
