"""The five scenes that every recipe has to go through, against the real server, in a process of its own, patched.

Each raises if anything is not as it should be. Nothing here waits for luck: a call is interrupted when the kernel says
that the request lies unread before a server that was stopped (SIGSTOP), so its reply is certain to come afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from time import monotonic
from typing import Any

import gevent
import pytest

from geventconnpool import PoolTimeout, retry
from tests.recipes.description import CROSS_TALK, HEALS, REFUSES, Recipe
from tests.recipes.servers import clients_of, unread_by
from tests.servers import _Server, wait_until

SIZE = 3
PATIENCE = 20  # seconds for what should be there soon
_numbers = count(1)


def token() -> str:
    """Return what nobody else asks for."""
    return f"token-{next(_numbers):06}"


def ask(pool: Any, recipe: Recipe) -> None:
    """Make a call that must get the reply to itself."""
    question = token()
    with pool.get(timeout=PATIENCE) as c:
        reply = recipe.call(c, question)

    assert reply == question, f"{question} was answered {reply}"


def ask_at_once(pool: Any, recipe: Recipe, callers: int, calls: int = 1) -> None:
    """Have several greenlets make several calls each."""
    greenlets = [gevent.spawn(_ask_often, pool, recipe, calls) for _ in range(callers)]
    gevent.joinall(greenlets, timeout=PATIENCE, raise_error=True)
    assert all(greenlet.successful() for greenlet in greenlets)


def _ask_often(pool: Any, recipe: Recipe, calls: int) -> None:
    for _ in range(calls):
        ask(pool, recipe)


@contextmanager
def running(recipe: Recipe, n: int) -> Iterator[list[_Server]]:
    """Run ``n`` servers."""
    with ExitStack() as stack:
        yield [stack.enter_context(recipe.make_server()) for _ in range(n)]


def count_keepalives(pool: Any) -> list[object]:
    """Return a list of the connections that are kept alive from now on, as they are."""
    kept = []
    original = type(pool)._keepalive

    def keepalive(self: Any, c: Any) -> None:
        original(self, c)
        kept.append(c)

    type(pool)._keepalive = keepalive
    return kept


def healthy(recipe: Recipe) -> None:
    """Callers share connections and get what they asked for; keepalives find nothing amiss; close closes all."""
    with running(recipe, 1) as (server,):
        pool = recipe.make_pool(server, SIZE, keepalive=0.3, keepalive_timeout=PATIENCE)
        kept = count_keepalives(pool)
        ask_at_once(pool, recipe, callers=5, calls=20)
        wait_until(lambda: len(kept) >= SIZE, what="a keepalive of each connection")
        ask_at_once(pool, recipe, callers=5, calls=5)
        stats = pool.stats()

        assert (stats.gets, stats.opened, sum(stats.discarded.values())) == (125, SIZE, 0), stats
        wait_until(lambda: clients_of(server) == SIZE, what="as many clients as connections")
        assert pool.close(PATIENCE)
        wait_until(lambda: clients_of(server) == 0, what="the end of all connections")


def interrupted(recipe: Recipe) -> None:
    """A call is cut off while its reply is under way: the next caller gets the reply to his own."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        for interrupt in (interrupted_by_timeout, interrupted_by_kill):
            ask(pool, recipe)
            interrupt(lambda: ask(pool, recipe), server)
            for _ in range(5):
                ask(pool, recipe)
        stats = pool.stats()

        assert (stats.discarded["interrupted"], stats.opened) == (2, 3), stats
        wait_until(lambda: clients_of(server) == 1, what="the end of the interrupted connections")
        assert _carelessly(pool, recipe, server) == recipe.careless


def interrupted_by_timeout(call: Callable[[], object], server: _Server, is_hidden: bool = False) -> None:
    """Make a call and have ``gevent.Timeout`` end it when it has been sent and cannot be answered yet."""
    timeout = gevent.Timeout()
    with _paused(server):
        greenlet = gevent.spawn(_expect, timeout, call)
        _wait_for_request(server)
        greenlet.kill(timeout, block=False)
        assert greenlet.get(timeout=PATIENCE) is not is_hidden


def _expect(timeout: gevent.Timeout, call: Callable[[], object]) -> bool:
    try:
        call()
    except gevent.Timeout as error:
        return error is timeout
    return False


def interrupted_by_kill(call: Callable[[], object], server: _Server) -> None:
    with _paused(server):
        greenlet = gevent.spawn(call)
        _wait_for_request(server)
        greenlet.kill(timeout=PATIENCE)
        assert isinstance(greenlet.value, gevent.GreenletExit)


@contextmanager
def _paused(server: _Server) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


def _wait_for_request(server: _Server) -> None:
    wait_until(lambda: unread_by(server) > 0, what="a request that is not answered")


def _carelessly(pool: Any, recipe: Recipe, server: _Server) -> str:
    """Interrupt a call, but use the connection again: the proof that the scene above would notice."""
    c = pool.acquire(PATIENCE)
    try:
        first, second = token(), token()
        interrupted_by_timeout(lambda: recipe.call(c, first), server)
        reply = _reply_or_error(recipe, c, second)
    finally:
        pool.discard(c)
    return {first: CROSS_TALK, second: HEALS}.get(reply, reply)


def _reply_or_error(recipe: Recipe, c: Any, question: str) -> str:
    try:
        with gevent.Timeout(PATIENCE, AssertionError("no reply")):
            return recipe.call(c, question)
    except AssertionError:
        raise
    except Exception as error:
        print(f"a connection that was interrupted raises {error!r}")
        return REFUSES


def swallowed(recipe: Recipe) -> None:
    """A caller hides from the pool that it was interrupted: the next one gets the reply to his own all the same.

    For recipes whose client knows that a reply is still to come.
    """
    with running(recipe, 1) as (server,), recipe.make_pool(server, 1) as pool:
        ask(pool, recipe)
        interrupted_by_timeout(lambda: _swallow(pool, recipe), server, is_hidden=True)
        for _ in range(5):
            ask(pool, recipe)
        wait_until(lambda: clients_of(server) == 1, what="the end of the interrupted connection")


def _swallow(pool: Any, recipe: Recipe) -> None:
    with pool.get(timeout=PATIENCE) as c:
        with suppress(gevent.Timeout):
            recipe.call(c, token())


def dropped(recipe: Recipe) -> None:
    """The server closes idle connections: who comes later sees nothing of it, who comes at once one error at most."""
    with running(recipe, 1) as (server,), recipe.make_pool(server, SIZE) as pool:
        pool.wait(timeout=PATIENCE)
        ask_at_once(pool, recipe, callers=SIZE)
        used_at = monotonic()
        recipe.hang_up(server)
        # From one second on, the pool looks before it hands out.
        wait_until(lambda: monotonic() > used_at + 1.1)
        ask_at_once(pool, recipe, callers=2 * SIZE)
        stats = pool.stats()

        assert stats.discarded["stale"] == SIZE, stats
        pool.wait(SIZE, timeout=PATIENCE)
        recipe.hang_up(server)
        again = retry(ask, exc_classes=recipe.errors, max_failures=1)
        for _ in range(2 * SIZE):
            again(pool, recipe)


def refused(recipe: Recipe) -> None:
    """While the server is down, the error says why there is no connection; when it is back, so is the pool."""
    with running(recipe, 1) as (server,):
        server.kill()
        with recipe.make_pool(server, SIZE) as pool:
            _expect_refusal(pool, recipe)
            server.start()
            ask_at_once(pool, recipe, callers=SIZE)
            pool.wait(SIZE, timeout=PATIENCE)  # what connects as the server goes may still be let in by the system
            server.kill()
            wait_until(lambda: not _is_open(pool, recipe), what="the failure of each connection")
            _expect_refusal(pool, recipe)
            server.start()
            ask_at_once(pool, recipe, callers=SIZE)


def _expect_refusal(pool: Any, recipe: Recipe) -> None:
    cause = cause_of_timeout(pool)

    assert isinstance(cause, recipe.refused), repr(cause)


def cause_of_timeout(pool: Any) -> Any:
    """Return what calls are told of why there is no connection, as soon as that is known."""
    return wait_until(lambda: _timeout_of(pool).__cause__, what="the cause of a timeout")


def _timeout_of(pool: Any) -> PoolTimeout:
    with pytest.raises(PoolTimeout) as caught, pool.get(timeout=0.5):
        pass
    return caught.value


def _is_open(pool: Any, recipe: Recipe) -> bool:
    """Use a connection, if there is one, to a server that is gone; say whether there is another."""
    with suppress(PoolTimeout, *recipe.errors):
        with pool.get(timeout=0.1) as c:
            recipe.call(c, token())
    return bool(pool.stats().open)


class Callers:
    """Greenlets that call without a pause, through ``retry``, until told to stop."""

    def __init__(self, pool: Any, recipe: Recipe, callers: int = 4) -> None:
        self.calls = self.failures = 0  # calls that ended well, and attempts that did not
        self._is_over = False
        self._pool, self._recipe = pool, recipe
        self._call = retry(self._attempt, exc_classes=recipe.errors, max_failures=2, interval=0.05)
        self._greenlets = [gevent.spawn(self._run) for _ in range(callers)]

    def more(self, calls: int) -> None:
        """Let them make so many more calls."""
        target = self.calls + calls
        self.until(lambda: self.calls >= target)

    def until(self, condition: Callable[[], object]) -> None:
        wait_until(lambda: condition() or self._has_failed(), what="what the callers were to see")
        assert not self._has_failed(), [greenlet.exception for greenlet in self._greenlets]

    def stop(self) -> None:
        self._is_over = True
        gevent.joinall(self._greenlets, timeout=PATIENCE, raise_error=True)

    def _has_failed(self) -> bool:
        return any(greenlet.ready() for greenlet in self._greenlets)

    def _run(self) -> None:
        while not self._is_over:
            self._call()
            self.calls += 1
            gevent.sleep(0.001)

    def _attempt(self) -> None:
        try:
            ask(self._pool, self._recipe)
        except self._recipe.errors:
            self.failures += 1
            raise


def failover(recipe: Recipe) -> None:
    """One of two servers is killed with a call in hand, and comes back: every call gets its reply."""
    with running(recipe, 2) as servers:
        with recipe.make_cluster(servers, 2) as cluster:
            cluster.wait(timeout=PATIENCE)
            callers = Callers(cluster, recipe)
            callers.until(lambda: min(_gets(cluster)) >= 10)
            servers[0].pause()
            _wait_for_request(servers[0])
            servers[0].kill()
            callers.more(100)
            assert callers.failures > 0

            before = _gets(cluster)[0]
            servers[0].start()
            callers.until(lambda: _gets(cluster)[0] >= before + 10)
            callers.stop()
        servers[0].kill()
        with recipe.make_cluster(servers, 2) as cluster:
            callers = Callers(cluster, recipe)
            callers.more(50)
            callers.stop()

            assert _gets(cluster)[0] == 0


def _gets(cluster: Any) -> list[int]:
    return [entry.pool.gets for entry in cluster.stats().endpoints]


FIVE = (healthy, interrupted, dropped, refused, failover)
