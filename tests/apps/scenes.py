"""What may go on in a program when it forks: each scene is given how to fork and how to tell."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from gevent.monkey import get_original

from geventconnpool import Endpoint, PoolTimeout
from geventconnpool.cluster import Resolution
from tests.apps.client import TIMEOUT, Client, Cluster, Pool, witnesses

Fork = Callable[[Callable[[], object]], None]
Say = Callable[[str], None]

FIRST, *OTHERS = witnesses()
SIZE = 2
KEEPALIVE = 0.1  # seconds
HASTE = 0.3  # seconds that a hasty waiter waits
_select: Any = get_original("select", "select")


def until(condition: Callable[[], object], seconds: float = TIMEOUT) -> bool:
    """Let the hub run until a condition holds; say whether it does, in the end."""
    deadline = monotonic() + seconds
    while not condition() and monotonic() < deadline:
        gevent.sleep(0.001)
    return bool(condition())


def let_pass(seconds: float) -> None:
    """Let the hub run so long that timers which were set before must have rung."""
    until(lambda: False, seconds)


def make(keepalive: float | None = None) -> tuple[Pool, Cluster]:
    """Open a pool of two connections and a cluster of two servers with one connection each."""
    places = (
        Pool(FIRST, SIZE, keepalive=keepalive, keepalive_timeout=TIMEOUT),
        Cluster(OTHERS, 1, keepalive=keepalive, keepalive_timeout=TIMEOUT),
    )
    for place in places:
        place.wait(timeout=TIMEOUT)
    return places


def ask(*places: Pool | Cluster, size: int = SIZE) -> list[int]:
    """Borrow all connections at once and use them; return their numbers."""
    with ExitStack() as stack:
        clients = [stack.enter_context(place.get(timeout=TIMEOUT)) for place in places for _ in range(size)]
        return sorted(client.ask("ASK") for client in clients)


def close(*places: Pool | Cluster) -> None:
    for place in places:
        assert place.close(TIMEOUT)


def idle(fork: Fork, say: Say) -> None:
    """Connections are idle, their keepalive is due soon."""
    places = make(KEEPALIVE)
    numbers = ask(*places)
    fork(partial(_live_on, *places))
    assert ask(*places) == numbers
    close(*places)


def _live_on(*places: Pool | Cluster) -> None:
    """Use inherited pools until connections of this process have been kept alive, which inherited timers precede."""
    numbers = ask(*places)
    pings = [place.pings for place in places]
    assert until(lambda: all(place.pings >= before + SIZE for place, before in zip(places, pings, strict=True)))
    gc.collect()
    assert ask(*places) == numbers
    close(*places)


def generations(fork: Fork, say: Say) -> None:
    """The child forks, too."""
    places = make(KEEPALIVE)
    numbers = ask(*places)
    fork(partial(_fork_again, fork, *places))
    assert ask(*places) == numbers
    close(*places)


def _fork_again(fork: Fork, *places: Pool | Cluster) -> None:
    numbers = ask(*places)
    fork(partial(_live_on, *places))
    assert ask(*places) == numbers
    close(*places)


class Asking:
    """A resolver that asks the first witness, over a connection of its own."""

    min_refresh = max_refresh = KEEPALIVE

    def resolve(self, service: str | None) -> Resolution:
        client = Client(FIRST)
        try:
            client.ask("RESOLVE")
        finally:
            client.close()
        return Resolution(tuple(Endpoint(host, port) for host, port in OTHERS), ttl=0)


def unused(fork: Fork, say: Say) -> None:
    """The child lets its hub run for five times the interval of keepalives and look-ups before it uses a pool."""
    places = Pool(FIRST, SIZE, keepalive=KEEPALIVE, keepalive_timeout=TIMEOUT), Cluster(Asking(), 1)
    for place in places:
        place.wait(timeout=TIMEOUT)
    numbers = ask(*places)
    fork(partial(_use_late, *places))
    assert ask(*places) == numbers
    close(*places)


def _use_late(*places: Pool | Cluster) -> None:
    let_pass(5 * KEEPALIVE)
    Client(FIRST).ask("MARK")
    ask(*places)
    close(*places)


def waiting(fork: Fork, say: Say) -> None:
    """The only connection is lent, one greenlet waits for ever and one not for long."""
    pool = Pool(FIRST, 1)
    held = pool.acquire(timeout=TIMEOUT)
    patient = gevent.spawn(_wait_in_line, pool, say, None)
    hasty = gevent.spawn(_wait_in_line, pool, say, HASTE)
    assert until(lambda: pool.stats().waiting == 2)
    fork(partial(_borrow_beside_waiters, pool))
    hasty.join(timeout=TIMEOUT)
    pool.release(held)
    patient.join(timeout=TIMEOUT)
    close(pool)


def _wait_in_line(pool: Pool, say: Say, timeout: float | None) -> None:
    try:
        with pool.get(timeout=timeout) as client:
            say(f"is served {client.ask('SERVED')}")
    except PoolTimeout:
        say("gives up")


def _borrow_beside_waiters(pool: Pool) -> None:
    with pool.get(timeout=TIMEOUT) as client:
        let_pass(HASTE + KEEPALIVE)
        client.ask("ASK")
    let_pass(KEEPALIVE)  # the connection is free: nobody who waits in the parent may take it here
    close(pool)


def lent(fork: Fork, say: Say) -> None:
    """Leases of every kind are open; the child ends each of them in another way."""
    pool = Pool(FIRST, 5)
    leases = [pool.get(timeout=TIMEOUT) for _ in range(2)]
    clients = [lease.__enter__() for lease in leases] + [pool.acquire(timeout=TIMEOUT) for _ in range(2)]
    enough = Event()
    holder = gevent.spawn(_hold, pool, enough)
    assert until(lambda: pool.stats().in_use == 5)
    fork(partial(_end_leases, pool, leases, clients[2:], holder))
    numbers = [client.ask("ASK") for client in clients]
    enough.set()
    holder.get(timeout=TIMEOUT)
    for lease in leases:
        lease.__exit__(None, None, None)
    for client in clients[2:]:
        pool.release(client)
    assert set(ask(pool, size=5)) > set(numbers)
    close(pool)


def _hold(pool: Pool, enough: Event) -> None:
    with pool.get(timeout=TIMEOUT) as client:
        enough.wait()
        client.ask("HELD")


def _end_leases(
    pool: Pool, leases: list[Any], by_hand: list[Client], holder: gevent.Greenlet[[Pool, Event], None]
) -> None:
    leases[0].__exit__(None, None, None)
    leases[1].__exit__(OSError, OSError("the child's"), None)
    with suppress(ValueError):
        pool.release(by_hand[0])
    with suppress(ValueError):
        pool.discard(by_hand[1])
    holder.kill()
    gc.collect()
    ask(pool, size=5)
    close(pool)


def connecting(fork: Fork, say: Say) -> None:
    """Connects are under way: the server has not answered the hello yet."""
    pool = Pool(FIRST, SIZE)
    assert until(lambda: len(_pending("HELLO")) == SIZE)
    fork(partial(_live_beside_hooks, pool, say, _pending("HELLO")))
    pool.wait(timeout=TIMEOUT)
    ask(pool)
    close(pool)


def checking(fork: Fork, say: Say) -> None:
    """A keepalive is under way."""
    pool = Pool(FIRST, SIZE, keepalive=KEEPALIVE, keepalive_timeout=TIMEOUT)
    assert until(lambda: _pending("PING"))
    fork(partial(_live_beside_hooks, pool, say, _pending("PING")))
    ask(pool)
    close(pool)


def looking_up(fork: Fork, say: Say) -> None:
    """A look-up of discovery is under way."""
    cluster = Cluster(Asking(), 1)
    assert until(lambda: _pending("RESOLVE"))
    fork(partial(_live_beside_hooks, cluster, say, _pending("RESOLVE")))
    cluster.wait(timeout=TIMEOUT)
    assert cluster.stats().discovery.last_error is None
    ask(cluster)
    close(cluster)


def _pending(word: str) -> list[Client]:
    return [client for client in Client.alive if client.pending == word]


def _live_beside_hooks(place: Pool | Cluster, say: Say, inherited: list[Client]) -> None:
    """Leave the hooks that run in the parent every opportunity to go on here, with the answers they wait for.

    What is there to be read stays there until the parent reads it, and must not keep the hub of this process busy.
    """
    say("is beside hooks")
    until(lambda: all(map(_is_readable, inherited)))
    with gevent.Timeout(TIMEOUT, AssertionError("the hub does not come to rest")):
        for _ in range(3):
            gevent.idle()
    ask(place)
    gc.collect()
    close(place)


def _is_readable(client: Client) -> bool:
    return client.is_open and bool(_select([client], [], [], 0)[0])


def leaving(fork: Fork, say: Say) -> None:
    """The program forks inside a block, and the child leaves through it, and through the end of the interpreter."""
    pool, cluster = make()
    with pool.get() as client:
        number = client.number
        fork(partial(ask, cluster))
        assert client.ask("ASK") == number
    assert number in ask(pool, cluster)
    close(pool, cluster)


def exiting(fork: Fork, say: Say) -> None:
    """The child touches nothing, and goes through the end of the interpreter."""
    places = make()
    numbers = ask(*places)
    fork(lambda: None)
    assert ask(*places) == numbers
    close(*places)


def sharing(fork: Fork, say: Say) -> None:
    """What must not be: no pool, just a connection that both use and the child closes."""
    client = Client(FIRST)
    fork(partial(_use_and_close, client))
    with suppress(OSError):
        client.ask("ASK")
        say("has its connection")


def _use_and_close(client: Client) -> None:
    client.ask("ASK")
    client.close()
