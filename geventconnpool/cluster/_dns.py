"""Questions to DNS servers, asked by greenlets: dnspython decides, gevent sockets carry, ``_wire`` reads.

dnspython's asynchronous resolver decides which names to ask for, which server, and how often. It is run with name
servers of our own, whose coroutines never suspend but switch greenlets inside, so that one ``send(None)`` runs it to
its end and nothing blocks the hub, patched or not. Its messages are ours, since its own take 70 us a record to read.
All names used of dnspython are public.

It measures its lifetimes by the wall clock. Where that steps in the middle of a look-up, that may fail too early, or be
ended by our own bound, which is monotonic; an answer that arrives counts all the same.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.OPT  # else imported by the first question, from disk and in the hub
import dns.resolver
import gevent
from gevent import socket

from geventconnpool._worker import Slice, Worker
from geventconnpool.cluster import _wire
from geventconnpool.cluster._connect import sockaddr
from geventconnpool.cluster._endpoints import NoRecords, ResolutionError

T = TypeVar("T")

_RESOLV_CONF = Path("/etc/resolv.conf")
_PORT = 53  # of the name servers in it
# The datagrams that pass everywhere without fragments (DNS flag day 2020); what is larger comes over TCP.
_EDNS_PAYLOAD = 1232
# After these the question may be missing.
_ERRORS = {dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED}
# Four at a time keep the hub free for others, and a name server unburdened, at a thousand questions in a row.
_QUESTIONS_IN_FLIGHT = 4
# Seconds by which dnspython may be late, as it reads the wall clock, before it is stopped.
_GRACE = 0.2


DEFAULT_TIMEOUT = 2.0  # seconds for one try, if resolv.conf has no option
DEFAULT_LIFETIME = 5.0  # seconds for all tries


class Question(NamedTuple):
    """A name, which is final if it ends in a dot and else subject to the search list, and a record type."""

    name: str
    rdtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.rdtype}"


class Answer(NamedTuple):
    """The data of the records that were asked for, for how many seconds they hold, what came along, and from whom."""

    data: Sequence[Any]
    ttl: float
    additional: Sequence[_wire.Record]
    server: Nameserver | None


Answers = dict[Question, Answer | ResolutionError]


class Lame(dns.exception.FormError):
    """A name server does not know the answer and says who might: it is of no use to those who want an answer."""

    msg = "no answer, but a referral"


class Reply(dns.message.QueryMessage):
    """A response as dnspython's resolver wants to see it. Its records, in ``read``, are none of dnspython's."""

    def __init__(self, read: _wire.Reply) -> None:
        super().__init__(read.id)
        self.flags = dns.flags.Flag(read.flags)
        self.read = read
        self.chain = _wire.Chain("", (), 0, has_soa=False)
        if read.rcode in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            self.chain = _wire.follow(read)
        if read.rcode == dns.rcode.NOERROR and not self.chain.data:
            self._refuse_referral()

    def _refuse_referral(self) -> None:
        """Raise :class:`Lame` for an empty answer that does not say "no data" (RFC 2308, section 2.2).

        That is one with name servers in place of an SOA record, one that ends in an alias, which a server of no
        recursion does not follow out of its zones, or one of a server that neither knows nor asks others.
        """
        names_others = any(record.rdtype == dns.rdatatype.NS for record in self.read.authority)
        has_a_say = self.flags & (dns.flags.AA | dns.flags.RA)
        if not self.chain.has_soa and (names_others or self.read.answers or not has_a_say):
            raise Lame

    def rcode(self) -> dns.rcode.Rcode:
        return dns.rcode.Rcode.make(self.read.rcode)

    def resolve_chaining(self) -> dns.message.ChainingResult:
        return dns.message.ChainingResult(dns.name.root, None, 0, [])  # all that matters of it is in `chain`


class WatchedFile(Generic[T]):
    """What ``parse`` makes of a file, read again when it has changed. :class:`OSError` if it cannot be read."""

    def __init__(self, path: Path, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        self._seen: tuple[int, int, int] | None = None
        self._value: T

    def read(self) -> T:
        status = os.stat(self._path)
        seen = status.st_mtime_ns, status.st_ino, status.st_size
        if seen != self._seen:
            self._value = self._parse(self._path.read_text(errors="replace"))
            self._seen = seen
        return self._value


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

    def _ask(self, request: dns.message.QueryMessage, over_tcp: bool) -> Reply:
        ask = self._ask_over_tcp if over_tcp else self._ask_over_udp
        response = ask(request)
        if response.rcode() == dns.rcode.FORMERR and request.edns >= 0:
            # RFC 6891, section 7: the server may be older than EDNS.
            question = request.question[0]
            return ask(dns.message.make_query(question.name, question.rdtype, question.rdclass))
        return response

    def _ask_over_udp(self, request: dns.message.QueryMessage) -> Reply:
        with self._connect(socket.SOCK_DGRAM) as connection:
            connection.send(request.to_wire())
            while True:
                response = _accepted(request, connection.recv(65535))
                if response is not None:
                    return response

    def _ask_over_tcp(self, request: dns.message.QueryMessage) -> Reply:
        with self._connect(socket.SOCK_STREAM) as connection:
            wire = request.to_wire()
            connection.sendall(struct.pack("!H", len(wire)) + wire)
            (length,) = struct.unpack("!H", _read(connection, 2))
            response = _read(connection, length)
            try:
                if _is_response(request, response):
                    # A set too large for any message comes truncated and empty: that is not "no data".
                    return _parsed(response)
            except _wire.Malformed as error:
                raise dns.exception.FormError(str(error)) from error  # type: ignore[no-untyped-call]
            raise dns.query.BadResponse

    def _connect(self, kind: int) -> socket.socket:
        connection = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET, kind)
        try:
            connection.connect(sockaddr(self.address, self.port))
        except BaseException:
            connection.close()
            raise
        return connection


class Client:
    """Asks name servers, given or those of resolv.conf, which is read anew when it has changed.

    ``timeout`` is for one try at one server, ``lifetime`` for all tries, in seconds. The search list, and an option
    ``timeout`` in the place of the default, apply only to the name servers of resolv.conf.
    """

    def __init__(self, nameservers: Sequence[tuple[str, int]] | None, timeout: float, lifetime: float) -> None:
        self._timeout = timeout
        self._lifetime = lifetime
        self._of_this_machine = WatchedFile(_RESOLV_CONF, _resolver_of_this_machine)
        self._given: dns.asyncresolver.Resolver | None = None
        if nameservers is not None:
            self._given = dns.asyncresolver.Resolver(configure=False)
            self._given.nameservers = [Nameserver(*server) for server in nameservers]

    def ask(self, question: Question, over_tcp: bool = False) -> Answer:
        """Return the answer. Raises :class:`NoRecords` if there is none, :class:`ResolutionError` if nobody knows."""
        answer = self.ask_all([question], over_tcp).get(question)
        if answer is None:
            raise self._too_late(question)
        if isinstance(answer, ResolutionError):
            raise answer
        return answer

    def ask_all(self, questions: Collection[Question], over_tcp: bool = False) -> Answers:
        """Ask several questions in their order, all within ``lifetime``; what is not reached is not in the result.

        This is done in greenlets of its own, so that an exception thrown into the caller, whatever its class, is not
        taken for an answer by dnspython. They end with the call, however that ends. Raises :class:`ResolutionError` if
        resolv.conf is of no use.
        """
        answers: Answers = {}
        if not questions:
            return answers
        waiting = deque(questions)
        work = partial(self._work, self._resolver(), waiting, answers, over_tcp, Slice())
        self._join([Worker(work) for _ in range(min(_QUESTIONS_IN_FLIGHT, len(waiting)))])
        return answers.copy()  # whoever is only now told to end may have an answer yet

    def _join(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.start()
        try:
            gevent.joinall(workers, timeout=self._lifetime + _GRACE)
        finally:
            gevent.killall(workers, block=False)

    def _resolver(self) -> dns.asyncresolver.Resolver:
        resolver = self._given
        if resolver is None:
            try:
                resolver = self._of_this_machine.read()
            except (dns.exception.DNSException, OSError, ValueError) as error:
                raise ResolutionError(f"{_RESOLV_CONF} cannot be used: {_failure_in_words(error)}") from error
        if self._given is not None or self._timeout != DEFAULT_TIMEOUT:
            resolver.timeout = self._timeout
        resolver.use_edns(0, 0, _EDNS_PAYLOAD)
        return resolver

    def _work(
        self,
        resolver: dns.asyncresolver.Resolver,
        waiting: deque[Question],
        answers: Answers,
        over_tcp: bool,
        part: Slice,
    ) -> None:
        while waiting:
            question = waiting.popleft()
            answers[question] = self._answer(resolver, question, over_tcp)
            if waiting:
                # A name server on this machine may have answered before one begins to wait, again and again.
                part.breathe()

    def _answer(
        self, resolver: dns.asyncresolver.Resolver, question: Question, over_tcp: bool
    ) -> Answer | ResolutionError:
        backend = _Backend(self._lifetime)
        look_up = partial(resolver.resolve, lifetime=self._lifetime, raise_on_no_answer=False, backend=backend)
        try:
            reply = _run(look_up(question.name, question.rdtype, tcp=over_tcp)).response
        except dns.resolver.NXDOMAIN as error:
            ttl = min(response.chain.ttl for response in error.kwargs["responses"].values())
            return NoRecords(f"{question}: no such name (NXDOMAIN) from {backend.asked}", ttl)
        except (dns.exception.DNSException, OSError) as error:
            return ResolutionError(f"{question}: {_in_words(error, backend.asked)}")
        assert isinstance(reply, Reply)
        server = backend.asked
        if not reply.chain.data:
            return NoRecords(f"{question}: no such record (NODATA) from {server}", reply.chain.ttl)
        return Answer(reply.chain.data, reply.chain.ttl, reply.read.additional, server)

    def _too_late(self, question: Question) -> ResolutionError:
        servers = ", ".join(map(str, self._resolver().nameservers))
        return ResolutionError(f"{question}: no answer within {self._lifetime} s from {servers}")


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


def _resolver_of_this_machine(resolv_conf: str) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(StringIO(resolv_conf))
    resolver.use_search_by_default = True
    resolver.timeout = max(1, resolver.timeout)  # as glibc understands `timeout:0`
    resolver.nameservers = [Nameserver(str(address), _PORT) for address in resolver.nameservers]
    return resolver


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _accepted(request: dns.message.QueryMessage, wire: bytes) -> Reply | None:
    """Return the response in a datagram, None for anything else: whoever guessed our port must guess the id as well.

    Raises :class:`dns.message.Truncated`, which dnspython takes as "ask again over TCP", and :class:`Lame`.
    """
    try:
        return _parsed(wire) if _is_response(request, wire) else None
    except _wire.Malformed:
        return None


def _is_response(request: dns.message.QueryMessage, wire: bytes) -> bool:
    """Say whether these bytes begin like an answer to ``request``."""
    header = _wire.parse_header(wire)
    if header.id != request.id:
        return False
    if not header.question and header.flags & 0xF in _ERRORS:
        return True  # it may not have understood the question
    asked = request.question[0]
    return header.question == (_wire.Question(asked.name.to_text().lower(), asked.rdtype, asked.rdclass),)


def _parsed(wire: bytes) -> Reply:
    header = _wire.parse_header(wire)
    if header.is_truncated:
        raise dns.message.Truncated
    return Reply(_wire.parse(wire))


def _read(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError("the name server closed the connection")
        data += part
    return data


def _in_words(error: Exception, server: Nameserver | None) -> str:
    if server is None:
        return _failure_in_words(error)  # nobody was asked
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
