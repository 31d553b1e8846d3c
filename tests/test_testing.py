"""The embedded DNS server answers as a name server does, asked by dnspython's own blocking client in a thread."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import gevent
import pytest

from geventconnpool.testing import DNSServer


@pytest.fixture
def server():
    with DNSServer() as server:
        yield server


def ask(server, name, rdtype, over="udp", payload=1232, timeout=5.0):
    query = dns.message.make_query(name, rdtype, use_edns=payload > 512, payload=payload)
    function = getattr(dns.query, over)
    return gevent.get_hub().threadpool.apply(
        function, (query, server.address[0]), {"port": server.address[1], "timeout": timeout}
    )


def texts(rrsets):
    return sorted(f"{rrset.name} {rdata.to_text()}" for rrset in rrsets for rdata in rrset)


@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_an_srv_answer_brings_the_addresses_of_its_targets_along(server, over):
    server.add_srv("_redis._tcp.Example.test", "redis1.example.test", 6379, priority=1, weight=2, ttl=30)
    server.add_address("redis1.example.test", "127.0.0.1")
    server.add_address("redis1.example.test", "::1")

    response = ask(server, "_redis._tcp.example.test", "SRV", over)

    assert texts(response.answer) == ["_redis._tcp.example.test. 1 2 6379 redis1.example.test."]
    assert response.answer[0].ttl == 30
    assert texts(response.additional) == ["redis1.example.test. 127.0.0.1", "redis1.example.test. ::1"]
    assert response.flags & dns.flags.AA


def test_a_name_that_is_not_there_is_nxdomain_with_the_negative_ttl(server):
    server.negative_ttl = 7

    response = ask(server, "nobody.example.test", "A")

    assert response.rcode() == dns.rcode.NXDOMAIN
    assert (response.authority[0].ttl, response.authority[0][0].minimum) == (7, 7)


@pytest.mark.parametrize("name", ["redis1.example.test", "example.test"])
def test_a_name_without_the_wanted_type_or_above_others_is_no_data(server, name):
    server.add_address("redis1.example.test", "127.0.0.1")

    response = ask(server, name, "SRV")

    assert response.rcode() == dns.rcode.NOERROR
    assert response.answer == []
    assert len(response.authority) == 1


def test_aliases_are_followed(server):
    server.add("www.example.test", "CNAME", "web.example.test")
    server.add("web.example.test", "CNAME", "web1.example.test")
    server.add_address("web1.example.test", "127.0.0.1")

    assert texts(ask(server, "www.example.test", "A").answer) == [
        "web.example.test. web1.example.test.",
        "web1.example.test. 127.0.0.1",
        "www.example.test. web.example.test.",
    ]


def test_an_alias_of_itself_ends(server):
    server.add("www.example.test", "CNAME", "www.example.test")

    assert len(ask(server, "www.example.test", "A").answer) == 1


def test_records_can_be_removed_and_the_name_with_the_last(server):
    server.add_srv("_redis._tcp.example.test", "redis1.example.test", 6379, weight=5)
    server.add_srv("_redis._tcp.example.test", "redis1.example.test", 6380)
    server.remove_srv("_redis._tcp.example.test", "redis1.example.test", 6379)
    server.remove_srv("_redis._tcp.example.test", "redis9.example.test", 6379)
    assert len(ask(server, "_redis._tcp.example.test", "SRV").answer[0]) == 1

    server.remove_srv("_redis._tcp.example.test", "redis1.example.test", 6380)
    assert ask(server, "_redis._tcp.example.test", "SRV").rcode() == dns.rcode.NXDOMAIN

    server.add_address("redis1.example.test", "127.0.0.1")
    server.add_address("redis1.example.test", "127.0.0.2")
    server.remove_address("redis1.example.test", "127.0.0.1")
    assert texts(ask(server, "redis1.example.test", "A").answer) == ["redis1.example.test. 127.0.0.2"]

    server.remove("redis1.example.test", "A")
    server.remove("redis1.example.test", "A")
    assert ask(server, "redis1.example.test", "A").rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize(("payload", "longest"), [(512, 512), (1232, 1232)])
def test_an_answer_that_does_not_fit_is_truncated_and_comes_over_tcp(server, payload, longest):
    for number in range(100):
        server.add_address("many.example.test", f"127.0.1.{number}")

    truncated = ask(server, "many.example.test", "A", payload=payload)
    whole = ask(server, "many.example.test", "A", "tcp")

    assert truncated.flags & dns.flags.TC
    assert len(truncated.to_wire()) <= longest
    assert len(whole.answer[0]) == 100
    assert not whole.flags & dns.flags.TC


@pytest.mark.parametrize(
    ("fault", "rcode"),
    [("servfail", dns.rcode.SERVFAIL), ("refused", dns.rcode.REFUSED), ("formerr", dns.rcode.FORMERR)],
)
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_an_error_code(server, fault, rcode, over):
    server.fault = fault

    assert ask(server, "a.test", "A", over).rcode() == rcode


@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_silence(server, over):
    server.fault = "drop"

    with pytest.raises(dns.exception.Timeout):
        ask(server, "a.test", "A", over, timeout=0.05)
    assert server.queries == 1


@pytest.mark.parametrize(
    ("fault", "error"), [("garbage", dns.exception.DNSException), ("wrong_id", dns.query.BadResponse)]
)
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_an_answer_that_is_none(server, fault, error, over):
    server.fault = fault

    with pytest.raises(error):
        ask(server, "a.test", "A", over)


@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_an_answer_too_large_for_any_message(server, over):
    server.add_address("a.test", "127.0.0.1")
    server.fault = "truncate"

    response = ask(server, "a.test", "A", over)

    assert response.flags & dns.flags.TC
    assert response.answer == []


@pytest.mark.parametrize(("over", "records"), [("udp", 3), ("tcp", 5)])
def test_a_fault_may_be_a_datagram_that_leaves_records_out_without_a_word(server, over, records):
    for number in range(5):
        server.add_srv("_a._tcp.b.test", f"a{number}.test", 1, ttl=7)
        server.add_address(f"a{number}.test", "127.0.0.1")
    server.fault = "trim"

    response = ask(server, "_a._tcp.b.test", "SRV", over)

    assert len(response.answer[0]) == records
    assert response.answer[0].ttl == 7
    assert bool(response.additional) == (over == "tcp")
    assert not response.flags & dns.flags.TC


@pytest.mark.parametrize(("fault", "others"), [("referral", [". ns.invalid."]), ("lame", [])])
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_fault_may_be_a_server_that_does_not_know(server, fault, others, over):
    server.add_address("a.test", "127.0.0.1")
    server.fault = fault

    response = ask(server, "a.test", "A", over)

    assert (response.rcode(), response.answer) == (dns.rcode.NOERROR, [])
    assert texts(response.authority) == others
    assert not response.flags & (dns.flags.AA | dns.flags.RA)


def test_a_fault_may_depend_on_the_query(server):
    server.add_address("a.test", "127.0.0.1")
    server.fault = lambda query: "refused" if query.question[0].name.to_text() == "a.test." else None

    assert ask(server, "a.test", "A").rcode() == dns.rcode.REFUSED
    assert ask(server, "b.test", "A").rcode() == dns.rcode.NXDOMAIN


def test_garbage_is_not_answered_and_does_no_harm(server):
    client = gevent.socket.socket(type=gevent.socket.SOCK_DGRAM)
    with client:
        client.sendto(b"garbage", server.address)
        client.sendto(bytes(12), server.address)  # a query that asks for nothing

        assert ask(server, "a.test", "A").rcode() == dns.rcode.NXDOMAIN
    assert server.queries == 1


def test_an_answer_may_be_delayed(server):
    server.delay = 0.2

    with pytest.raises(dns.exception.Timeout):
        ask(server, "a.test", "A", timeout=0.05)


def test_a_server_that_is_started_again_keeps_its_port_and_records(server):
    server.add_address("a.test", "127.0.0.1")
    before = server.address
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(server, "a.test", "A", "tcp")

    server.start()
    server.start()

    assert server.address == before
    assert len(ask(server, "a.test", "A").answer) == 1


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(server):
    other = DNSServer(port=server.address[1])

    with pytest.raises(OSError, match="in use"):
        other.start()
    server.stop()

    with other:
        assert ask(other, "a.test", "A").rcode() == dns.rcode.NXDOMAIN
