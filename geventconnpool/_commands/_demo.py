"""``demo``: a service in which things go wrong, by a script or by your keys."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from signal import SIGCONT, SIGSTOP
from time import monotonic

import gevent
from gevent.queue import Empty

from geventconnpool import demo, events
from geventconnpool._commands._output import Output
from geventconnpool._commands._screen import Screen
from geventconnpool._commands._telling import style_of, told
from geventconnpool._commands._terminal import Column, Look, bars, milliseconds, table, width_of
from geventconnpool.cluster import Endpoint

FRAME = 0.2  # seconds between two pictures
PART, PARTS = 0.5, 6  # seconds of a window, and how many of them rates and percentiles are taken over
REMEMBERED = 50  # lines of news
HELP = "1-4 choose  k kill  h hang  r revive  d remove from DNS  a add to DNS  q quit"
# Those on the right are left out where there is no room for them.
COLUMNS = (
    Column("   backend"),
    Column("process", least=7),
    Column("DNS", least=3),
    Column("state", least=8),
    *(Column(title, is_number=True) for title in ("calls/s", "errors", "in flight", "p50 ms", "p99 ms", "ejections")),
)
LEAST_COLUMNS = 6


class Quit(Exception):  # nothing is wrong
    """The key q, or the end of the input."""


def run(options: argparse.Namespace, output: Output) -> int:
    """Play the scenes, or let the user do so. Returns 0 if no caller saw a failure and all that was to be seen was."""
    if output.as_json:
        return demo.main(teller=demo.Json())
    if options.play or not is_interactive():
        return demo.main()
    return direct(output)


def is_interactive() -> bool:
    """Say whether somebody sees what is drawn, and has keys."""
    streams = (sys.stdin, sys.stdout)
    return all(stream is not None and stream.isatty() for stream in streams) and os.environ.get("TERM") != "dumb"


def direct(output: Output) -> int:
    """Show the table, and do what the keys say, until ``q``."""
    load = demo.Load()
    live, screen = Live(load), Screen(sys.stdin, sys.stdout)
    try:
        with screen.on():
            screen.draw(lambda _columns, _lines: ["starting four backends ..."])
            with live.on(first=4):
                live.run(screen, output.look)
    except Quit:
        pass
    except demo.NotSeenError as error:
        output.line(f"FAILED: {error}")
        return 1
    output.line(f"{load.calls} calls, {load.failures} failures seen by callers")
    return 1 if load.failures else 0


class Live(demo.Stage):
    """The stage with a director at the keyboard."""

    def __init__(self, load: demo.Load) -> None:
        super().__init__(load)
        self.chosen = 0
        self.conditions = ["runs"] * len(self.backends)  # of their processes
        self.published: set[str] = set()  # names of backends
        self.news: deque[tuple[datetime, str, str]] = deque(maxlen=REMEMBERED)  # time of day, what, more
        self.errors: Counter[Endpoint] = Counter()  # failed attempts since the start
        self._windows: deque[demo.Window] = deque(maxlen=PARTS)
        self._begun = monotonic()

    def run(self, screen: Screen, look: Look) -> None:
        """Draw, and act on keys. Ends by :class:`Quit`."""
        due = monotonic()
        while True:
            if monotonic() >= due:
                due = monotonic() + FRAME
                self.look_at_calls()
                screen.draw(lambda columns, lines: frame(self, columns, lines, look))
            try:
                self.act(screen.keys.get(timeout=max(0.0, due - monotonic())))
            except Empty:
                continue
            due = monotonic()  # what a key does is seen at once

    def look_at_calls(self) -> None:
        """Begin a new window when it is time to."""
        window = self.load.window
        if monotonic() - window.since >= PART:
            self.errors.update(window.errors)
            self._windows.append(window)
            self.load.window = demo.Window()

    @property
    def recent(self) -> demo.Window:
        """What callers have measured lately; its errors are those since the start."""
        whole = merged([*self._windows, self.load.window])
        whole.errors = self.errors + self.load.window.errors
        return whole

    def act(self, key: str | None) -> None:
        """Do what a key says."""
        if key is None or key in "qQ\x04":
            raise Quit
        if key in "1234":
            self.chosen = int(key) - 1
        elif deed := self.deeds.get(key):
            deed(self.backends[self.chosen])

    @property
    def deeds(self) -> dict[str, Callable[[demo.Backend], None]]:
        return {"k": self.kill, "h": self.hang, "r": self.revive, "d": self.remove, "a": self.add}

    def kill(self, backend: demo.Backend) -> None:
        if self.condition(backend) in ("runs", "hangs"):  # while it starts, somebody waits for its port
            backend.kill()
            self._now(backend, "killed", "its process is gone")

    def hang(self, backend: demo.Backend) -> None:
        if self.condition(backend) == "runs":
            backend.signal(SIGSTOP)
            self._now(backend, "hangs", "connections stay open, nothing comes back")

    def revive(self, backend: demo.Backend) -> None:
        if self.condition(backend) == "hangs":
            backend.signal(SIGCONT)
            self._now(backend, "runs", "it goes on")
        elif self.condition(backend) == "killed":
            self._now(backend, "starts", "on the port that it had")
            gevent.spawn(self._restart, backend)

    def _restart(self, backend: demo.Backend) -> None:
        try:
            self.start(backend)
        except demo.NotSeenError as error:
            self._now(backend, "killed", str(error))
        else:
            self._now(backend, "runs", "it is there again")

    def remove(self, backend: demo.Backend) -> None:
        if backend.name in self.published:
            self.withdraw(backend)
            self._tell("DNS", f"{backend} is removed")

    def add(self, backend: demo.Backend) -> None:
        if backend.name not in self.published:
            self.publish(backend)
            self._tell("DNS", f"{backend} is added")

    def condition(self, backend: demo.Backend) -> str:
        return self.conditions[self.backends.index(backend)]

    def publish(self, backend: demo.Backend) -> None:
        super().publish(backend)
        self.published.add(backend.name)

    def withdraw(self, backend: demo.Backend) -> None:
        super().withdraw(backend)
        self.published.discard(backend.name)

    def _now(self, backend: demo.Backend, condition: str, more: str) -> None:
        self.conditions[self.backends.index(backend)] = condition
        self._tell(condition, f"{backend}: {more}")

    def note(self, event: events.Event) -> None:
        # Probes that fail, again and again, would leave no room for what has been done.
        if not isinstance(event, events.ProbeFailed) and (words := told(event)):
            what, whom, more = words
            self._tell(what, f"{whom}: {more}")

    def _tell(self, what: str, more: str) -> None:
        self.news.append((datetime.now(), what, more))

    @property
    def seconds(self) -> float:
        """Since the start."""
        return monotonic() - self._begun


def merged(windows: Sequence[demo.Window]) -> demo.Window:
    """Return what has been measured in several windows, the oldest first."""
    whole = demo.Window(since=windows[0].since)
    for window in windows:
        for endpoint, seconds in window.seconds.items():
            whole.seconds[endpoint] += seconds
        whole.errors.update(window.errors)
        whole.slowest = max(whole.slowest, window.slowest)
    return whole


def frame(live: Live, columns: int, lines: int, look: Look) -> list[str]:
    """Return the picture for a terminal of that size: what matters most is at its top, and the keys at its end."""
    look = Look(look.has_colours, look.has_blocks, columns)
    stats = live.pool.stats()
    state = stats.discovery.state
    rows = {row.endpoint: row for row in demo.rows_of(stats, live.recent, monotonic())}
    shown = [rows.get(str(backend.endpoint)) for backend in live.backends]
    top = [
        *heading(live, look),
        "",
        *backends(live, shown, look),
        "",
        *load_of(shown, look),
        "",
        f"discovery is {look.paint(state, *style_of(state))}: {stats.discovery.outcome}",
        "",
    ]
    room = max(0, lines - len(top) - 2)
    news = [f"{at:%H:%M:%S}  {look.paint(f'{what:<10}', *style_of(what))}  {more}" for at, what, more in live.news]
    below = [*news[-room:], *[""] * (room - len(news))] if room else []
    return [*top, *below, "", look.paint(HELP, "dim")] if room else [*top[: lines - 1], look.paint(HELP, "dim")]


def heading(live: Live, look: Look) -> Iterator[str]:
    """Yield what is always in view: how many failures callers have seen."""
    minutes, seconds = divmod(int(live.seconds), 60)
    title, clock = f"geventconnpool demo: {demo.CALLERS} callers, one name in DNS", f"{minutes}:{seconds:02}"
    yield look.paint(title, "bold") + " " * max(1, look.width - width_of(title) - len(clock)) + clock
    load, failed = live.load, live.recent.errors.total()
    seen = look.paint(f"failures seen by callers: {load.failures}", "bold", "red" if load.failures else "green")
    yield f"{seen}   {load.calls} calls, {failed} attempts failed and were retried"
    if load.examples:
        yield look.paint(f"the first: {load.examples[0]!r}", "red")


def backends(live: Live, rows: Iterable[demo.Row | None], look: Look) -> list[str]:
    """Return the table, without the columns for which there is no room."""
    lines = [list(_cells(live, number, row, look)) for number, row in enumerate(rows)]
    drawn: list[str] = []
    for count in range(len(COLUMNS), LEAST_COLUMNS - 1, -1):
        drawn = list(table(COLUMNS[:count], (line[:count] for line in lines)))
        if max(map(width_of, drawn)) <= look.width:
            break
    return drawn


def _cells(live: Live, number: int, row: demo.Row | None, look: Look) -> Iterator[str]:
    backend, condition = live.backends[number], live.conditions[number]
    is_chosen = number == live.chosen
    yield look.paint(f"{'>' if is_chosen else ' '}{number + 1} {backend.endpoint}", *(("bold",) if is_chosen else ()))
    yield look.paint(condition, *(() if condition == "runs" else ("red",)))
    yield "yes" if backend.name in live.published else look.paint("no", "yellow")
    if row is None:
        yield from ("-", "0", "0", "0", "-", "-", "0")
        return
    styles = {"active": ("green",), "ejected": ("red",), "draining": ("yellow",)}
    yield look.paint(row.state, *styles.get(row.state, ()))
    yield f"{row.calls_per_second:.0f}"
    yield look.paint(str(row.errors), *(("red",) if row.errors else ()))
    yield str(row.in_flight)
    yield milliseconds(row.p50)
    yield milliseconds(row.p99)
    yield str(row.ejections)


def load_of(rows: Iterable[demo.Row | None], look: Look) -> Iterator[str]:
    """Yield a bar for each backend: how many calls it gets."""
    yield "calls/s"
    rates = [0.0 if row is None else row.calls_per_second for row in rows]
    yield from bars([(f" {n}", [rate], f"{rate:.0f}") for n, rate in enumerate(rates, 1)], look)
