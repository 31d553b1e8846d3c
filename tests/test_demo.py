"""The demo tells what it sees, fails when it does not see it, and leaves no process behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace

import pytest

from geventconnpool import Endpoint
from geventconnpool.demo import Row, Window, percentile, rows_of, table

ROOT = Path(__file__).parent.parent
STEPS = [
    "1. All is well",
    "2. A backend dies: kill -9",
    "3. It is started again",
    "4. Another one hangs: SIGSTOP",
    "5. It goes on: SIGCONT",
    "6. A backend is taken out of DNS",
    "7. A new backend is started and entered into DNS",
]
Starter = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Start an interpreter with the arguments, and end it whatever happens."""
    demos = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, *arguments]
        pipe = subprocess.PIPE
        demos.append(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True))
        return demos[-1]

    yield start
    for demo in demos:
        with demo:
            demo.terminate()  # the demo ends its backends


def told_until(demo, text):
    """Read what the demo tells up to the line with ``text``."""
    lines = []
    while not lines or text not in lines[-1]:
        lines.append(demo.stdout.readline())
        assert lines[-1], f"the demo has ended: {''.join(lines)}"
    return "".join(lines)


def pids_in(output):
    return [int(pid) for pid in re.findall(r"is process (\d+)", output)]


def alive(pids):
    return [pid for pid in pids if is_running(pid)]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan whose new parent does not look after it stays as a zombie.
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_for_the_end_of(pids, seconds=30.0):
    end = monotonic() + seconds
    while alive(pids) and monotonic() < end:
        sleep(0.02)
    return alive(pids)


@pytest.mark.bound(140)
def test_the_demo_shows_every_step_and_no_caller_sees_a_failure(start):
    begun = monotonic()
    demo = start("-m", "geventconnpool.demo")
    output, _ = demo.communicate(timeout=130)
    seconds = monotonic() - begun

    assert demo.returncode == 0, output
    assert seconds < 120
    assert re.fullmatch(r"\d{4,} calls, 0 failures seen by callers", output.splitlines()[-1])
    headings = [line for line in output.splitlines() if re.match(r"\d\. ", line)]
    assert [told.startswith(step) for told, step in zip(headings, STEPS, strict=True)] == [True] * 7
    assert output.count("p50 ms") == 7
    assert max(map(len, output.splitlines())) <= 100
    assert output.isascii()
    assert len(pids_in(output)) == 5  # four backends, one of them twice
    assert alive(pids_in(output)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_ends_its_backends_and_exits_as_one_that_was(start, number):
    demo = start("-m", "geventconnpool.demo")
    output = told_until(demo, "all backends serve")
    demo.send_signal(number)
    rest = demo.stdout.read()

    assert demo.wait(20) == 128 + number
    assert rest == ""
    assert len(pids_in(output)) == 3
    assert alive(pids_in(output)) == []


def test_backends_do_not_outlive_a_demo_that_is_killed(start):
    demo = start("-m", "geventconnpool.demo")
    pids = pids_in(told_until(demo, "all backends serve"))
    if sys.platform == "linux":
        os.kill(pids[0], signal.SIGSTOP)
    demo.kill()
    demo.wait(20)

    assert len(pids) == 3
    assert wait_for_the_end_of(pids) == []


def run(start, program):
    demo = start("-c", f"import sys; from geventconnpool import demo\n{program}")
    output, _ = demo.communicate(timeout=50)
    return demo.returncode, output


def test_a_backend_whose_demo_has_ended_ends_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        command = [sys.executable, "-m", "geventconnpool.demo", "--backend", "a", "0"]
        ended = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=nobody, stderr=subprocess.PIPE, check=False
        )

    assert (ended.returncode, ended.stderr) == (0, b"")


def test_the_demo_fails_and_names_the_step_that_it_did_not_see_in_time(start):
    status, output = run(start, "sys.exit(demo.main(deadline=0))")

    assert status == 1
    assert "FAILED: step 1. All is well" in output
    assert "not seen within 0 s: all connections are open" in output
    assert re.fullmatch(r"\d+ calls, 0 failures seen by callers", output.splitlines()[-1])
    assert alive(pids_in(output)) == []


def test_the_demo_fails_if_a_killed_backend_is_not_ejected(start):
    program = """
demo.CALM = demo.ABSENCE = 0.1
Backends = demo.Backends
demo.Backends = lambda *args, **options: Backends(*args, outlier=None, **options)
killed = demo.Scene.killed
def killed_and_soon_over(scene):
    scene.deadline = 2
    killed(scene)
killed_and_soon_over.__doc__ = killed.__doc__
demo.Scene.killed = killed_and_soon_over
sys.exit(demo.main(deadline=40))
"""
    status, output = run(start, program)

    assert status == 1
    assert "FAILED: step 2. A backend dies: kill -9.\n   not seen within 2 s: b.example.test is ejected" in output
    assert alive(pids_in(output)) == []


def test_the_demo_fails_if_callers_see_failures(start):
    program = """
demo.CALM = demo.ABSENCE = 0.1
def serve_wrongly(self, request): raise ValueError("not yours")
demo.Client.ask = serve_wrongly
sys.exit(demo.main(deadline=5))
"""
    status, output = run(start, program)

    assert status == 1
    assert "a caller saw ValueError('not yours')" in output
    assert re.fullmatch(r"\d+ calls, [1-9]\d* failures seen by callers", output.splitlines()[-1])


def test_a_reply_to_another_request_is_a_failure_seen_by_a_caller(start):
    program = """
demo.CALM = demo.ABSENCE = 0.1
ask = demo.Client.ask
demo.Client.ask = lambda self, request: ask(self, b"1")
sys.exit(demo.main(deadline=5))
"""
    status, output = run(start, program)

    assert status == 1
    assert re.search(r"a caller saw ValueError\(.the reply of .\.example\.test:\d+ to request \d+ is b'1 ", output)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([7.0], 99, 7.0), ([3.0, 1.0, 2.0], 50, 2.0), (list(range(1, 101)), 99, 99), ([1, 2], 0, 1)],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values, percent, expected):
    assert percentile(values, percent) == expected


def test_the_table_has_a_line_per_endpoint_under_its_headings():
    rows = [
        Row("a.example.test:65535", "active", 4, 711.4, 0, 0, 0.0029, 0.0101),
        Row("b.example.test:1", "ejected", 0, 0.0, 12, 1, None, None),
    ]

    assert "\n".join(table(rows)) == (
        "endpoint              state     in flight  calls/s  errors  ejections  p50 ms  p99 ms\n"
        "a.example.test:65535  active            4      711       0          0     2.9    10.1\n"
        "b.example.test:1      ejected           0        0      12          1       -       -"
    )


def test_an_endpoint_that_has_left_is_shown_as_gone_with_what_it_served():
    stays, left = Endpoint("a", 1), Endpoint("b", 2)
    entry = SimpleNamespace(endpoint=stays, state="active", in_flight=3, ejections=1)
    window = Window(since=100.0)
    window.seconds[left] = [0.25, 0.5, 0.5, 0.75]
    window.errors[left] = 2

    assert list(rows_of(SimpleNamespace(endpoints=(entry,)), window, now=102.0)) == [
        Row("a:1", "active", 3, 0.0, 0, 1, None, None),
        Row("b:2", "gone", 0, 2.0, 2, 0, 0.5, 0.75),
    ]
