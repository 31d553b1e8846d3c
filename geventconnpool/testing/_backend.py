"""A server, and a proxy before a server of others, that fail on command: while they run, as often as a test likes.

Both are one thing: bytes pass from clients to somebody who answers (a function, or a real server) and back again, and
on the way everything can happen to them that can happen to a call. What they say is of no concern here, but for whose
turn it is: what a client sends after it has connected, or after the last answer, is a request, and what comes back is
the reply to it.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import gevent
from gevent import socket
from gevent.pool import Group
from gevent.server import StreamServer

from geventconnpool import _check
from geventconnpool.cluster._endpoints import Endpoint

Fault = str | Callable[[bytes], str | None] | None

FAULTS = ("hang", "refuse", "reset", "cut", "close", "garbage")
GARBAGE = b"\xff\xfe\x00 no answer to anything \xff\r\n"
PARTING = 1.0  # seconds in which a client that has shut down its side hears what is still to be said
_CHUNK = 65536
_BACKLOG = 256
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close discards what is under way, and says so


class Server(ABC):
    """A port of this machine behind which things go wrong: what :class:`Backend` and :class:`Proxy` have in common."""

    def __init__(self, host: str, port: int) -> None:
        self.address: tuple[str, int] = (host, _check.integer("port", port, 0, 65535))
        self.accepted: int = 0
        self.requests: int = 0
        self._fault: Fault = None
        self._delay = 0.0
        self._is_started = False
        self._listener: StreamServer | None = None
        self._place: socket.socket | None = None  # has the port while nobody listens
        self._connections: set[_Connection] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port; 0 before the first start, if the system is to choose."""
        return self.address[1]

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def fault(self) -> Fault:
        """What goes wrong from now on, None for nothing. Setting it raises ValueError for an unknown word."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault if callable(fault) else _checked(fault, FAULTS)
        self._listen_or_not()
        if fault in ("reset", "close"):
            self._end_all(str(fault))

    @property
    def delay(self) -> float:
        """Seconds before each reply. Setting it raises ValueError or TypeError if it is no such number."""
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._delay = _check.seconds("delay", seconds)

    def start(self) -> None:
        """Begin to serve; does nothing if it does already. Raises :class:`OSError` if the port is taken."""
        self._is_started = True
        self._listen_or_not()

    def stop(self) -> None:
        """Refuse new connections and close all there are, as a process does that ends. Idempotent.

        The port is kept for the next :meth:`start`: nobody who asks the system for any port gets it.
        """
        self._is_started = False
        self._listen_or_not()
        self._end_all("close")

    def close(self) -> None:
        """Stop for good, and give up the port. Idempotent."""
        self.stop()
        if self._place is not None:
            self._place.close()
            self._place = None

    def close_idle(self) -> None:
        """Close the connections on which no request is unanswered, as servers do after a while."""
        self._end_all("close", idle_only=True)

    @abstractmethod
    def _reach(self) -> socket.socket:
        """Return a socket to who answers."""

    def _listen_or_not(self) -> None:
        if self._is_started and self._listener is None:
            self._place = self._place or _bound(self.address)
            self.address = self.address[0], self._place.getsockname()[1]
        wanted = self._is_started and self._fault != "refuse"
        if wanted and self._place is not None:
            self._place.listen(_BACKLOG)
            self._listener, self._place = StreamServer(self._place, self._serve), None
            self._listener.start()
        elif not wanted and self._listener is not None:
            self._listener.stop(timeout=0)
            self._listener = None
            # Or a client that connects again and again gets it for its own end, in the end, and talks to itself.
            self._place = _bound(self.address)

    def _serve(self, client: socket.socket, _address: object) -> None:
        self.accepted += 1
        connection = _Connection(self, client)
        if not self._is_started:  # stopped when this was accepted, and had not yet begun to run
            connection.end("close")
            return
        self._connections.add(connection)
        try:
            if self._fault in ("reset", "close"):
                connection.end(str(self._fault))
            else:
                connection.run(self._reach)
        finally:
            self._connections.discard(connection)
            connection.end("close")

    def _end_all(self, word: str, *, idle_only: bool = False) -> None:
        for connection in list(self._connections):
            if not (idle_only and connection.is_asking):
                connection.end(word)


class _Connection:
    """One client, and who answers it."""

    def __init__(self, owner: Server, client: socket.socket) -> None:
        self.is_asking = False  # a request was not answered yet
        self._owner = owner
        self._client = client
        self._server: socket.socket | None = None
        self._reaching: Any = None  # the greenlet that waits for the server, which may take minutes
        self._is_lost = False  # something was left unanswered: what comes later would be taken for the answer to it
        self._is_turn = True  # of the server: what it says is the beginning of a reply, or a greeting
        self._told: str | None = None  # by a fault that is a function, of this request

    def run(self, reach: Callable[[], socket.socket]) -> None:
        self._reaching = gevent.getcurrent()
        try:
            server = self._server = reach()
        except OSError:
            self.end("reset")
            return
        finally:
            self._reaching = None
        replies = gevent.spawn(self._pass_replies, server)
        with suppress(OSError):  # the client, or somebody here, has ended it
            self._pass_requests(server)
            server.shutdown(socket.SHUT_WR)
            replies.join(0 if self._is_lost else PARTING)
        replies.kill(block=False)

    def end(self, word: str) -> None:
        """Close it in an orderly way, or ``"reset"`` it. Idempotent."""
        with suppress(OSError):
            if word == "reset":
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                self._client.shutdown(socket.SHUT_RDWR)
        self._client.close()
        if self._server is not None:
            self._server.close()
        if self._reaching not in (None, gevent.getcurrent()):
            gevent.kill(self._reaching)  # does not switch

    @property
    def _word(self) -> str | None:
        fault = self._owner.fault
        return self._told if callable(fault) else fault

    def _pass_requests(self, server: socket.socket) -> None:
        while chunk := self._client.recv(_CHUNK):
            if not self.is_asking:
                self._begin(chunk)
            if self._word in ("reset", "close"):
                self.end(str(self._word))
            elif self._word == "hang":
                self._is_lost = True
            elif not self._is_lost:
                server.sendall(chunk)

    def _begin(self, request: bytes) -> None:
        self._owner.requests += 1
        self.is_asking = self._is_turn = True
        fault = self._owner.fault
        self._told = _checked(fault(request), FAULTS, but="refuse") if callable(fault) else None

    def _pass_replies(self, server: socket.socket) -> None:
        with suppress(OSError):
            while chunk := server.recv(_CHUNK):
                if self._is_turn:
                    gevent.sleep(self._owner.delay)
                self._reply(chunk)
                self.is_asking = self._is_turn = False
            if not self._is_lost:
                self.end("close")

    def _reply(self, chunk: bytes) -> None:
        word = self._word
        if word == "hang":
            self._is_lost = True
        if self._is_lost or (word == "garbage" and not self._is_turn):
            return
        if word == "garbage":
            chunk = GARBAGE
        elif word == "cut":
            chunk = chunk[: len(chunk) // 2]
        if word not in ("reset", "close"):
            self._client.sendall(chunk)
        if word in ("reset", "cut", "close"):
            self.end("close" if word == "close" else "reset")


class Backend(Server):
    """A server in this process, in the greenlets of whoever starts it: the hub has to run for it to answer.

    ``handler`` is called with a socket to each client, in a greenlet of its own; when it returns, the connection is
    closed. By default each line is sent back as it came. ``host`` and ``port`` are what it listens on; port 0 lets the
    system choose one, which stays the same when the server is stopped and started again.

    ``fault`` says what goes wrong, with new connections and with those there are, from the moment it is set:

    * None: nothing;
    * ``"hang"``: connections are accepted and requests read, and nothing is ever answered: not later either;
    * ``"refuse"``: nobody can connect; who is connected is served;
    * ``"reset"``: connections are reset at once;
    * ``"cut"``: they are reset when half of a reply has been sent;
    * ``"close"``: they are closed at once, in an orderly way;
    * ``"garbage"``: the reply is something that no protocol knows, with an end of line.

    A function is given each request, as bytes, and returns one of these words (but ``"refuse"``) or None, for just
    that request: some calls fail, keepalives pass. ``delay`` is the time before each reply, in seconds.

    ``connections`` is the number of those open, ``accepted`` counts all there were; ``requests`` counts how often a
    client has spoken after it had connected, or had heard the last answer: requests sent together are one.
    """

    def __init__(
        self, handler: Callable[[socket.socket], object] | None = None, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        _check.function("handler", handler)
        super().__init__(host, port)
        self._handler = handler or _echo_lines
        self._handlers = Group()

    def stop(self) -> None:
        super().stop()
        self._handlers.kill(block=False)

    def _reach(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._handlers.spawn(self._handle, theirs)
        return ours

    def _handle(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self._handler(connection)


class Proxy(Server):
    """Stands before a real server, and does to its clients what a :class:`Backend` does: the same ``fault`` words.

    ``target`` is ``(host, port)`` or an :class:`Endpoint`; it may change while this runs, for new connections. If it
    cannot be reached, the connection is reset. TLS goes through, as bytes that mean nothing here.
    """

    def __init__(self, target: Endpoint | tuple[str, int], *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host, port)
        self.target = target

    @property
    def target(self) -> Endpoint | tuple[str, int]:
        """Who answers. Setting it raises ValueError or TypeError if that is no place."""
        return self._target

    @target.setter
    def target(self, target: Endpoint | tuple[str, int]) -> None:
        self._endpoint = _endpoint(target)
        self._target: Endpoint | tuple[str, int] = target

    def _reach(self) -> socket.socket:
        return socket.create_connection(self._endpoint.address, timeout=None)


def _echo_lines(connection: socket.socket) -> None:
    with connection.makefile("rb") as lines:
        for line in lines:
            connection.sendall(line)


def _checked(word: str | None, words: tuple[str, ...], *, but: str = "") -> str | None:
    """Return the word; raise ValueError if it is none of these."""
    known = [one for one in words if one != but]
    if word is None or word in known:
        return word
    raise ValueError(f"fault must be None or one of {', '.join(known)}, not {_check.show(word)}")


def _endpoint(target: object) -> Endpoint:
    if isinstance(target, Endpoint):
        return target
    if not isinstance(target, tuple) or len(target) != 2:
        raise TypeError(f"target must be an Endpoint or (host, port), not {_check.show(target)}")
    return Endpoint(*target)


def _bound(address: tuple[str, int]) -> socket.socket:
    place = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except BaseException:
        place.close()
        raise
    return place
