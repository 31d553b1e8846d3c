"""Nobody gets the reply to another: calls cut off between send and receive, by the thousand, over a real Redis.

Every call has Redis echo a token of its own, so a reply to anybody else's shows. A proxy between pool and Redis delays
what goes either way, and withholds the reply to a call that is to be interrupted until that has ended. So each
interruption hits after the send and before the receive, and the reply to nobody comes right behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import gevent
import pytest
from gevent import GreenletExit, socket
from gevent.event import Event
from gevent.queue import Queue
from gevent.server import StreamServer

from geventconnpool import ClusterPool, ConnectionPool, Endpoint
from tests.servers import HOST, Redis, require, wait_until

CALLERS, CONNECTIONS = 20, 5
LONGEST_DELAY = 0.003  # seconds in the proxy, each way
TOKEN = b"%016d"
REQUEST = b"*2\r\n$4\r\nECHO\r\n$16\r\n%s\r\n"
REPLY = b"$16\r\n%s\r\n"
REPLY_LENGTH = len(REPLY % (TOKEN % 0))


class Cancelled(BaseException):
    """What frameworks throw into greenlets: neither an ``Exception`` nor anything that gevent knows."""


KINDS: list[type[BaseException]] = [gevent.Timeout, GreenletExit, Cancelled]


def read_reply(c: Any) -> bytes:
    """Return the next reply on a connection as it comes, whoever it is for."""
    reply = b""
    while len(reply) < REPLY_LENGTH:
        chunk = c.recv(REPLY_LENGTH - len(reply))
        if not chunk:
            raise OSError("the server hung up")
        reply += chunk
    return reply


# -- what is between clients and server --------------------------------------------------------------------------------


class Proxy:
    """Passes on, late, what clients and a server say; a reply in ``withheld`` not before its event is set.

    Counts connections ``opened``, and ``closed`` by the clients.
    """

    def __init__(self, target: tuple[str, int], withheld: dict[bytes, Event], rng: Random) -> None:
        self.opened = self.closed = 0
        self._target = target
        self._withheld = withheld
        self._rng = rng
        self._server = StreamServer((HOST, 0), self._serve)
        self._server.start()
        self.address: tuple[str, int] = self._server.socket.getsockname()

    def stop(self) -> None:
        self._server.stop()

    def _serve(self, client: Any, _address: object) -> None:
        self.opened += 1
        with socket.create_connection(self._target) as server:
            replies = gevent.spawn(self._pass_replies, server, client)
            with suppress(OSError):  # a client that leaves unread data behind resets the connection
                self._pass_requests(client, server)
            self.closed += 1
            replies.kill()

    def _pass_requests(self, client: Any, server: Any) -> None:
        while chunk := client.recv(4096):
            self._delay()
            server.sendall(chunk)

    def _pass_replies(self, server: Any, client: Any) -> None:
        with suppress(OSError):
            while True:
                reply = read_reply(server)
                self._delay()
                if reply in self._withheld:
                    self._withheld[reply].wait()
                client.sendall(reply)

    def _delay(self) -> None:
        gevent.sleep(self._rng.uniform(0, LONGEST_DELAY))


# -- who calls ---------------------------------------------------------------------------------------------------------


class Call:
    """One ECHO of a token of its own; a ``gevent.Timeout`` given as ``interruption`` is its own, from the send on."""

    def __init__(self, number: int, interruption: BaseException | None) -> None:
        self.token = TOKEN % number
        self.expected = REPLY % self.token
        self.interruption = interruption
        self.is_sent = Event()
        self.reply: bytes | None = None
        self.outcome: BaseException | None = None

    def __repr__(self) -> str:
        return f"<{self.token!r} got {self.reply!r}, {self.outcome!r}>"

    @property
    def is_crossed(self) -> bool:
        """Whether it got what another was to get."""
        return self.reply is not None and self.reply != self.expected

    def make(self, pool: Any) -> None:
        try:
            self._echo(pool)
        except BaseException as error:
            self.outcome = error
        finally:
            if isinstance(self.interruption, gevent.Timeout):
                self.interruption.close()

    def _echo(self, pool: Any) -> None:
        with pool.get() as c:
            c.sendall(REQUEST % self.token)
            self.is_sent.set()
            if isinstance(self.interruption, gevent.Timeout):
                self.interruption.start()
            self.reply = read_reply(c)


class Scene:
    """A Redis behind proxies, and callers of whom some are interrupted; whatever is random comes from one seed."""

    def __init__(self, server: Redis, proxies: int = 1) -> None:
        self.rng = Random(0)
        self.calls: list[Call] = []
        self._withheld: dict[bytes, Event] = {}
        self.proxies = [Proxy(server.address, self._withheld, self.rng) for _ in range(proxies)]

    def play(self, pool: Any, undisturbed: int, interrupted: int) -> None:
        """Make that many calls over a pool, by many callers at a time, in any order."""
        kinds = [KINDS[number % len(KINDS)] for number in range(interrupted)]
        plan = [*kinds, *[None] * undisturbed]
        self.rng.shuffle(plan)
        gevent.joinall([gevent.spawn(self._live, pool, plan) for _ in range(CALLERS)], raise_error=True)

    def stop(self) -> None:
        for proxy in self.proxies:
            proxy.stop()

    def _live(self, pool: Any, plan: list[type[BaseException] | None]) -> None:
        while plan:
            kind = plan.pop()
            # As long as a reply takes to where it is withheld: some hits come before that, some after.
            delay = self.rng.uniform(0, 2 * LONGEST_DELAY)
            call = Call(len(self.calls), None if kind is None else kind(delay))
            self.calls.append(call)
            if call.interruption is None:
                call.make(pool)
            else:
                self._interrupt(call, pool, delay)

    def _interrupt(self, call: Call, pool: Any, delay: float) -> None:
        answered = self._withheld[call.expected] = Event()
        victim: Any = gevent.spawn(call.make, pool)
        done: list[Any] = [call.is_sent, victim]
        gevent.wait(done, count=1)
        if not isinstance(call.interruption, gevent.Timeout):
            gevent.sleep(delay)
            victim.kill(call.interruption, block=False)
        victim.join()
        del self._withheld[call.expected]
        answered.set()

    @property
    def interrupted(self) -> list[Call]:
        return [call for call in self.calls if call.interruption is not None]

    @property
    def undisturbed(self) -> list[Call]:
        return [call for call in self.calls if call.interruption is None]

    @property
    def crossed(self) -> list[Call]:
        return [call for call in self.calls if call.is_crossed]

    def check(self) -> None:
        """Assert that all who were left alone got their own reply, and all others what they were interrupted with."""
        assert self.crossed == []
        assert [call.outcome for call in self.undisturbed] == [None] * len(self.undisturbed)
        assert [call.reply for call in self.undisturbed] == [call.expected for call in self.undisturbed]
        assert [call.outcome for call in self.interrupted] == [call.interruption for call in self.interrupted]
        assert [call.reply for call in self.interrupted] == [None] * len(self.interrupted)


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    require("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def scene(redis: Redis, request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = Scene(redis, proxies=getattr(request, "param", 1))
    yield scene
    scene.stop()


# -- the pools ---------------------------------------------------------------------------------------------------------


class Pool(ConnectionPool[socket.socket]):
    def __init__(self, address: tuple[str, int], size: int) -> None:
        self.address = address
        super().__init__(size)

    def _new_connection(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=30)


class Cluster(ClusterPool[socket.socket]):
    def _new_connection(self, endpoint: Endpoint) -> socket.socket:
        return endpoint.connect(timeout=30)


class Careless:
    """What one writes in an afternoon: however its block ends, a connection goes back."""

    def __init__(self, address: tuple[str, int], size: int) -> None:
        self._all = [socket.create_connection(address, timeout=30) for _ in range(size)]
        self._idle: Any = Queue(items=self._all)

    @contextmanager
    def get(self) -> Iterator[socket.socket]:
        c = self._idle.get()
        try:
            yield c
        finally:
            self._idle.put(c)

    def close(self) -> None:
        for c in self._all:
            c.close()


def check_counters(pool: Any, proxies: list[Proxy], size: int, interrupted: int) -> None:
    """Assert that the pool is full again, lost a connection per interruption and no other, and closes every one."""
    wait_until(lambda: (pool.stats().idle, pool.stats().closed) == (size, interrupted), what=f"the refill of {pool!r}")
    stats = pool.stats()
    assert {cause: count for cause, count in stats.discarded.items() if count} == {"interrupted": interrupted}
    assert (stats.open, stats.in_use, stats.connecting, stats.waiting) == (size, 0, 0, 0)
    assert (stats.opened, stats.closed, stats.open_errors) == (size + interrupted, interrupted, 0)
    wait_until(lambda: sum(p.closed for p in proxies) == interrupted, what="the end of the interrupted connections")

    assert pool.close(5)
    wait_until(lambda: all(p.closed == p.opened for p in proxies), what="the end of all connections")
    assert sum(p.opened for p in proxies) == size + interrupted


def test_nobody_sees_the_chat_of_another_when_calls_are_cancelled_between_send_and_receive(scene: Scene) -> None:
    pool = Pool(scene.proxies[0].address, CONNECTIONS)

    scene.play(pool, undisturbed=1000, interrupted=1000)

    scene.check()
    assert pool.stats().gets == 2000
    check_counters(pool, scene.proxies, CONNECTIONS, interrupted=1000)


@pytest.mark.parametrize("scene", [2], indirect=True, ids=["two endpoints"])
def test_nobody_sees_the_chat_of_another_on_any_endpoint_of_a_cluster_and_no_endpoint_is_blamed(scene: Scene) -> None:
    cluster = Cluster([proxy.address for proxy in scene.proxies], CONNECTIONS)

    scene.play(cluster, undisturbed=200, interrupted=200)

    scene.check()
    entries = cluster.stats().endpoints
    assert [(entry.state, entry.ejections, sum(entry.failures.values())) for entry in entries] == [("active", 0, 0)] * 2
    assert all(entry.pool.discarded["interrupted"] > 0 for entry in entries)
    assert sum(entry.pool.gets for entry in entries) == 400
    check_counters(cluster, scene.proxies, 2 * CONNECTIONS, interrupted=200)


def test_a_pool_that_takes_every_connection_back_lets_callers_see_the_chat_of_another(scene: Scene) -> None:
    """This is the proof that the tests above would notice."""
    pool = Careless(scene.proxies[0].address, CONNECTIONS)

    scene.play(pool, undisturbed=50, interrupted=50)

    assert len(scene.crossed) > 10
    others = {call.expected for call in scene.calls}
    assert all(call.reply in others for call in scene.crossed)  # whole replies, of real calls
    pool.close()
