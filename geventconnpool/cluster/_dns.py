"""Questions to DNS servers, asked by greenlets: dnspython decides, gevent sockets carry.

dnspython's asynchronous resolver decides which server to ask, how often, and what an answer means. It is run with
name servers of our own, whose coroutines never suspend but switch greenlets inside, so that one ``send(None)`` runs
it to its end and nothing blocks the hub, patched or not. All names used of dnspython are public.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.message
import dns.nameserver
import dns.query
import dns.rcode
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.NS
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV  # these, else imported by the first answer that needs them, from disk and in the hub
import dns.resolver
import gevent
from gevent import socket

from geventconnpool._worker import Worker

_RESOLV_CONF = "/etc/resolv.conf"
_PORT = 53  # of the name servers in it
# The datagrams that pass everywhere without fragments (DNS flag day 2020); what is larger comes over TCP.
_EDNS_PAYLOAD = 1232
# Four at a time keep the hub free for others, and a name server unburdened, at a thousand questions in a row.
_QUESTIONS_IN_FLIGHT = 4
# Seconds by which dnspython may be late, as it reads the wall clock, before it is stopped.
_GRACE = 0.2


class ResolutionError(Exception):
    """A look-up failed; the message names what was asked for, the failure in words, and the name server."""


class Question(NamedTuple):
    """A name, which is final if it ends in a dot and else subject to the search list, and a record type."""

    name: str
    rdtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.rdtype}"


# Without a record of the wanted type an answer has `rrset` None.
Answers = dict[Question, dns.resolver.Answer | ResolutionError]


class Nameserver(dns.nameserver.AddressAndPortNameserver):
    """A name server asked over gevent sockets: a fresh, connected one per question.

    Fresh: the port of each question is as hard to guess as its id (RFC 5452). Connected: the kernel drops what others
    send, and a closed port is known at once instead of after a timeout.
    """

    def kind(self) -> str:
        return "Do53"

    def __str__(self) -> str:
        return _host_and_port(self.address, self.port)

    async def async_query(  # type: ignore[override]  # the parameters not named here do not concern us
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,
        source_port: int,
        max_size: bool,
        backend: dns.asyncbackend.Backend,  # type: ignore[name-defined]  # documented, if not re-exported
        **_options: bool,
    ) -> dns.message.Message:
        assert isinstance(backend, _Backend)
        backend.asked = self
        with gevent.Timeout(timeout, dns.exception.Timeout):
            return self._ask(request, over_tcp=max_size)

    def _ask(self, request: dns.message.QueryMessage, over_tcp: bool) -> dns.message.Message:
        ask = self._ask_over_tcp if over_tcp else self._ask_over_udp
        response = ask(request)
        if response.rcode() == dns.rcode.FORMERR and request.edns >= 0:
            # RFC 6891, section 7: the server may be older than EDNS.
            question = request.question[0]
            return ask(dns.message.make_query(question.name, question.rdtype, question.rdclass))
        return response

    def _ask_over_udp(self, request: dns.message.QueryMessage) -> dns.message.Message:
        with self._connect(socket.SOCK_DGRAM) as connection:
            connection.send(request.to_wire())
            while True:
                response = _accepted(request, connection.recv(65535))
                if response is not None:
                    return response

    def _ask_over_tcp(self, request: dns.message.QueryMessage) -> dns.message.Message:
        with self._connect(socket.SOCK_STREAM) as connection:
            wire = request.to_wire()
            connection.sendall(struct.pack("!H", len(wire)) + wire)
            (length,) = struct.unpack("!H", _read(connection, 2))
            # A set too large for any message comes truncated and empty: not "no data", but a server that cannot answer.
            response = dns.message.from_wire(_read(connection, length), raise_on_truncation=True)
            if not request.is_response(response):
                raise dns.query.BadResponse
            return response

    def _connect(self, kind: int) -> socket.socket:
        connection = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET, kind)
        try:
            connection.connect((self.address, self.port))
        except BaseException:
            connection.close()
            raise
        return connection


class Client:
    """Asks name servers, given or those of resolv.conf, which is read anew each time one is made.

    ``timeout`` is for one try at one server, ``lifetime`` for all tries, in seconds. The search list applies only to
    the name servers of resolv.conf. Raises :class:`ResolutionError` if resolv.conf is of no use.
    """

    def __init__(self, nameservers: Sequence[tuple[str, int]] | None, timeout: float, lifetime: float) -> None:
        if nameservers is None:
            self._resolver = _resolver_of_this_machine()
            nameservers = [(str(address), _PORT) for address in self._resolver.nameservers]
        else:
            self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.nameservers = [Nameserver(*server) for server in nameservers]
        self._resolver.timeout = timeout
        self._resolver.use_edns(0, 0, _EDNS_PAYLOAD)
        self._lifetime = lifetime

    def ask(self, question: Question) -> dns.resolver.Answer:
        """Return the answer; raises :class:`ResolutionError`, also if there is no record of the wanted type."""
        answer = self.ask_all([question])[question]
        if isinstance(answer, ResolutionError):
            raise answer
        if answer.rrset is None:
            raise ResolutionError(f"{question}: no such record (NODATA) from {server_of(answer)}")
        return answer

    def ask_all(self, questions: Collection[Question]) -> Answers:
        """Ask several questions in their order, all within ``lifetime``; what is not reached is an error, too.

        This is done in greenlets of its own, so that an exception thrown into the caller, whatever its class, is not
        taken for an answer by dnspython. They end with the call, however that ends.
        """
        answers: Answers = {}
        waiting = deque(questions)
        work = partial(self._work, waiting, answers)
        workers = [Worker(work) for _ in range(min(_QUESTIONS_IN_FLIGHT, len(waiting)))]
        for worker in workers:
            worker.start()
        try:
            gevent.joinall(workers, timeout=self._lifetime + _GRACE)
        finally:
            gevent.killall(workers, block=False)
        answers.update((question, self._too_late(question)) for question in questions if question not in answers)
        return answers

    def _work(self, waiting: deque[Question], answers: Answers) -> None:
        while waiting:
            question = waiting.popleft()
            answers[question] = self._answer(question)

    def _answer(self, question: Question) -> dns.resolver.Answer | ResolutionError:
        backend = _Backend(self._lifetime)
        try:
            return _run(self._resolve(question, backend))
        except (dns.exception.DNSException, OSError) as error:
            return ResolutionError(f"{question}: {_in_words(error, backend.asked)}")

    async def _resolve(self, question: Question, backend: _Backend) -> dns.resolver.Answer:
        return await self._resolver.resolve(
            question.name, question.rdtype, raise_on_no_answer=False, lifetime=self._lifetime, backend=backend
        )

    def _too_late(self, question: Question) -> ResolutionError:
        servers = ", ".join(map(str, self._resolver.nameservers))
        return ResolutionError(f"{question}: no answer within {self._lifetime} s from {servers}")


def server_of(answer: dns.resolver.Answer) -> str:
    """Return the name server that gave ``answer``, as messages show it."""
    return _host_and_port(str(answer.nameserver), answer.port or _PORT)


class _Backend(dns.asyncbackend.Backend):  # type: ignore[name-defined,misc]  # documented, if not re-exported
    """All that dnspython asks of a backend here: to sleep between tries. One per question."""

    def __init__(self, lifetime: float) -> None:
        self.asked: Nameserver | None = None
        self._deadline = time.monotonic() + lifetime

    def name(self) -> str:
        return "gevent"

    async def sleep(self, interval: float) -> None:
        # Bounded: dnspython's own lifetime is only checked after the sleep.
        gevent.sleep(max(0.0, min(interval, self._deadline - time.monotonic())))


def _run(coroutine: Coroutine[Any, Any, dns.resolver.Answer]) -> dns.resolver.Answer:
    try:
        coroutine.send(None)
    except StopIteration as end:
        answer: dns.resolver.Answer = end.value
        return answer
    coroutine.close()
    raise RuntimeError("dnspython waits for something that gevent does not know")


def _resolver_of_this_machine() -> dns.asyncresolver.Resolver:
    try:
        resolver = dns.asyncresolver.Resolver(_RESOLV_CONF)
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise ResolutionError(f"{_RESOLV_CONF} cannot be used: {error}") from error
    resolver.use_search_by_default = True
    return resolver


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _accepted(request: dns.message.QueryMessage, wire: bytes) -> dns.message.Message | None:
    """Return the response in a datagram, None for anything else: whoever guessed our port must guess the id as well.

    Raises :class:`dns.message.Truncated`, which dnspython takes as "ask again over TCP".
    """
    try:
        if not request.is_response(dns.message.from_wire(wire, question_only=True)):
            return None
        return dns.message.from_wire(wire, raise_on_truncation=True)
    except dns.message.Truncated:
        raise
    except dns.exception.DNSException:
        return None


def _read(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError("the name server closed the connection")
        data += part
    return data


def _in_words(error: Exception, server: Nameserver | None) -> str:
    if isinstance(error, dns.resolver.NXDOMAIN):
        return f"no such name (NXDOMAIN) from {server}"
    if not isinstance(error, (dns.resolver.NoNameservers, dns.resolver.LifetimeTimeout)):
        return f"{_failure_in_words(error)} from {server}"
    tries: Iterable[Any] = error.kwargs.get("errors") or ()
    # The last failure of each server: earlier ones were tried again.
    failures = {server: _failure_in_words(failure) for server, _tcp, _port, failure, _response in tries}
    return ", ".join(f"{failure} from {server}" for server, failure in failures.items()) or str(error)


def _failure_in_words(failure: Exception | str | None) -> str:
    if isinstance(failure, dns.exception.Timeout):
        return "no answer"
    if isinstance(failure, dns.message.Truncated):
        return "an answer too large for any message"
    if isinstance(failure, OSError):
        return failure.strerror or type(failure).__name__
    return str(failure) or type(failure).__name__
