"""Endpoints out of a list and out of DNS: what an answer means, and what failures leave behind, which is nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import dns.flags
import dns.message
import dns.rrset
import gevent
import pytest
from gevent import socket
from gevent.server import DatagramServer

from geventconnpool.cluster import _dns, _hosts, _wire
from geventconnpool.cluster._dns import Client, Nameserver, Question
from geventconnpool.cluster._endpoints import Endpoint, Resolution, ResolutionError
from geventconnpool.cluster._hosts import HostsFile
from geventconnpool.cluster._resolvers import DNSResolver, StaticResolver
from geventconnpool.testing import DNSServer
from tests.servers import Bind, require, wait_until

SERVICE = "_redis._tcp.example.test"
TURN = 0.0005  # seconds


@pytest.fixture
def server():
    with DNSServer() as server:
        yield server


@pytest.fixture
def resolver(server):
    return patient(server)


def patient(server):
    """Return a resolver for a name server that will answer, on however busy a machine."""
    return DNSResolver([server.address], timeout=30.0, lifetime=40.0, min_refresh=0.001)


def quick(server):
    """Return a resolver for a name server that is silent."""
    return DNSResolver([server.address], timeout=0.1, lifetime=0.25, min_refresh=0.001)


@pytest.fixture
def one_bound(monkeypatch):
    """A machine that pauses does not have our own bound come before that of dnspython, which tells more."""
    monkeypatch.setattr(_dns, "_GRACE", 20.0)


@pytest.fixture(scope="module")
def bind():
    require("named")
    with Bind() as bind:
        yield bind


def add_service(server, *numbers):
    for number in numbers:
        server.add_srv(SERVICE, f"redis{number}.example.test", 6379)
        server.add_address(f"redis{number}.example.test", f"127.0.0.{number}")


def add_alias_service(server, *numbers, ttl=1):
    """Add targets whose addresses no server sends along, as they are aliases."""
    for number in numbers:
        server.add_srv(SERVICE, f"redis{number}.example.test", 6379)
        server.add(f"redis{number}.example.test", "CNAME", f"host{number}.example.test", ttl)
        server.add_address(f"host{number}.example.test", f"127.0.0.{number}", ttl)


def fails_for(name, fault="servfail"):
    return lambda query: fault if query.question[0].name.to_text() == f"{name}." else None


def found(resolution):
    """Return what was found in short: name, addresses, priority, weight."""
    return sorted((e.name.partition(".")[0], e.port, e.addresses, e.priority, e.weight) for e in resolution.endpoints)


def names(resolution):
    return sorted(str(endpoint) for endpoint in resolution.endpoints)


def failure(resolver, service=SERVICE):
    with pytest.raises(ResolutionError) as raised:
        resolver.resolve(service)
    return str(raised.value)


# A list


def test_a_static_resolver_always_tells_the_same():
    resolver = StaticResolver([Endpoint("Redis1.example.test", 6379, ["10.0.0.1"]), ("10.0.0.2", 6379)])

    resolution = resolver.resolve("anything")

    assert names(resolution) == ["10.0.0.2:6379", "redis1.example.test:6379"]
    assert resolution.ttl is None
    assert resolver.resolve(None) == resolution


@pytest.mark.parametrize(
    ("endpoints", "error", "message"),
    [
        ([], ValueError, "endpoints is empty"),
        ([("a.test", 1), Endpoint("A.test.", 1)], ValueError, "endpoints holds a.test:1 twice"),
        ([("a.test", 0)], ValueError, "port must be between 1 and 65535, not 0"),
        (["a.test:1"], TypeError, r"endpoints must hold Endpoint objects or \(host, port\), not 'a.test:1'"),
        ([("a.test", 1, 2)], TypeError, "endpoints must hold"),
        (5, TypeError, r"endpoints must be an iterable of Endpoint objects or \(host, port\), not 5"),
        ("a.test:1", TypeError, r"endpoints must be an iterable of .*, not 'a.test:1'"),
    ],
)
def test_a_bad_list_is_refused(endpoints, error, message):
    with pytest.raises(error, match=message):
        StaticResolver(endpoints)


# Options


def test_the_options_can_be_read():
    resolver = DNSResolver(["127.0.0.1", ("0:0::1", 8600)], timeout=1, lifetime=3, min_refresh=2, max_refresh=60)

    assert resolver.nameservers == (("127.0.0.1", 53), ("::1", 8600))
    assert (resolver.timeout, resolver.lifetime, resolver.min_refresh, resolver.max_refresh) == (1, 3, 2, 60)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nameservers": "127.0.0.1"}, TypeError, "nameservers must be a list .*'127.0.0.1'"),
        ({"nameservers": []}, ValueError, "nameservers is empty"),
        ({"nameservers": ["ns.example.test"]}, ValueError, "nameservers must hold IP addresses .*'ns.example.test'"),
        ({"nameservers": [5]}, TypeError, "nameservers must hold addresses .* not 5"),
        ({"nameservers": [("127.0.0.1", 0)]}, ValueError, "port in nameservers must be between 1 and 65535, not 0"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds, not 0"),
        ({"lifetime": None}, TypeError, "lifetime must be a number of seconds, not None"),
        ({"min_refresh": -1}, ValueError, "min_refresh must be more than 0 seconds, not -1"),
        ({"max_refresh": float("inf")}, ValueError, "max_refresh must be more than 0 seconds, not inf"),
        ({"max_refresh": 4}, ValueError, r"max_refresh must be at least min_refresh \(5.0\), not 4"),
        ({"retries": 3}, TypeError, "retries"),
    ],
)
def test_bad_options_are_refused_by_parameter_and_value(options, error, message):
    with pytest.raises(error, match=message):
        DNSResolver(**options)


@pytest.mark.parametrize(("service", "error"), [("a b", ValueError), ("_a._tcp.b:1", ValueError), (None, TypeError)])
def test_a_bad_service_is_refused_before_anything_is_asked(resolver, server, service, error):
    with pytest.raises(error, match="service"):
        resolver.resolve(service)

    assert server.queries == 0


# SRV: what an answer means


def test_targets_become_endpoints_with_the_addresses_that_came_along(resolver, server):
    server.add_srv(SERVICE, "Redis1.example.test", 6379, priority=1, weight=60, ttl=40)
    server.add_srv(SERVICE, "redis2.example.test", 6380, priority=2, weight=0, ttl=40)
    server.add_address("redis1.example.test", "127.0.0.2", ttl=50)
    server.add_address("redis1.example.test", "127.0.0.1", ttl=50)
    server.add_address("redis2.example.test", "127.0.0.3", ttl=50)

    resolution = resolver.resolve(SERVICE)

    assert found(resolution) == [
        ("redis1", 6379, ("127.0.0.1", "127.0.0.2"), 1, 60),
        ("redis2", 6380, ("127.0.0.3",), 2, 0),
    ]
    assert {endpoint.domain for endpoint in resolution.endpoints} == {"example.test"}
    assert resolution.ttl == 40.0
    assert server.queries == 1


def test_addresses_that_did_not_come_along_are_looked_up_and_their_ttl_counts(resolver, server):
    server.add_srv(SERVICE, "redis1.example.test", 6379, ttl=40)
    server.add("redis1.example.test", "CNAME", "host1.example.test", ttl=30)
    server.add_address("host1.example.test", "127.0.0.1", ttl=20)

    resolution = resolver.resolve(SERVICE)

    assert found(resolution) == [("redis1", 6379, ("127.0.0.1",), 0, 1)]
    assert resolution.ttl == 20.0
    assert server.queries == 3


@pytest.mark.parametrize("now", [510.3, 511.3])
def test_a_ttl_is_told_as_the_name_server_tells_it_whatever_the_clock_says(resolver, server, monkeypatch, now):
    assert (now + 20.0) - now != 20.0
    monkeypatch.setattr(_hosts, "monotonic", lambda: now)
    server.add_srv(SERVICE, "redis1.example.test", 6379, ttl=40)
    server.add_address("redis1.example.test", "127.0.0.1", ttl=20)

    assert resolver.resolve(SERVICE).ttl == 20.0


def test_at_most_four_questions_are_in_flight(resolver, server):
    in_flight, most = 0, 0

    def count(_query):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        gevent.sleep(0.002)
        in_flight -= 1

    add_alias_service(server, *range(1, 21))
    server.fault = count

    assert len(resolver.resolve(SERVICE).endpoints) == 20
    assert most == 4


def test_a_target_named_twice_is_one_endpoint_at_its_lowest_priority_with_the_weights_of_that_added_up(
    resolver, server
):
    add_service(server, 1)
    server.remove("_redis._tcp.example.test", "SRV")
    for priority, weight in ((2, 100), (1, 10), (1, 20), (3, 5)):
        server.add_srv(SERVICE, "redis1.example.test", 6379, priority, weight)

    assert found(resolver.resolve(SERVICE)) == [("redis1", 6379, ("127.0.0.1",), 1, 30)]


def test_added_up_weights_stay_weights(resolver, server):
    add_service(server, 1)
    server.add_srv(SERVICE, "redis1.example.test", 6379, weight=65535)

    assert resolver.resolve(SERVICE).endpoints[0].weight == 65535


def test_a_dot_alone_says_decidedly_that_there_is_nothing(resolver, server):
    server.add_srv(SERVICE, ".", 0, weight=0, ttl=70)

    assert resolver.resolve(SERVICE) == Resolution((), 70.0)


def test_a_dot_beside_others_and_port_0_are_ignored(resolver, server):
    add_service(server, 1, 2)
    server.add_srv(SERVICE, ".", 0)
    server.add_srv(SERVICE, "redis2.example.test", 0)

    assert names(resolver.resolve(SERVICE)) == ["redis1.example.test:6379", "redis2.example.test:6379"]


def test_a_target_that_is_no_host_name_is_ignored(resolver, server):
    add_service(server, 1)
    server.add_srv(SERVICE, r"my\032redis.example.test", 6379)

    assert names(resolver.resolve(SERVICE)) == ["redis1.example.test:6379"]


def test_a_target_that_is_an_address_is_taken_for_one(resolver, server):
    server.add_srv(SERVICE, "127.0.0.1", 6379, ttl=60)

    resolution = resolver.resolve(SERVICE)

    assert resolution == Resolution((Endpoint("127.0.0.1", 6379),), 60.0)
    assert server.queries == 1


def test_a_target_without_an_address_is_not_yet_an_endpoint(resolver, server):
    add_service(server, 1)
    server.add_srv(SERVICE, "redis2.example.test", 6379, ttl=300)

    resolution = resolver.resolve(SERVICE)

    assert names(resolution) == ["redis1.example.test:6379"]
    assert resolution.ttl < 1.3  # asked again with back-off


def test_only_targets_without_an_address_are_a_failure(resolver, server):
    server.add_srv(SERVICE, "redis2.example.test", 6379)
    failed = failure(resolver)

    assert failed.startswith(f"{SERVICE} SRV: none of 1 SRV records from 127.0.0.1:")
    assert " has a usable target and address: redis2.example.test. A" in failed
    assert "no such name (NXDOMAIN) from 127.0.0.1:" in failed


@pytest.mark.parametrize("fault", ["servfail", "refused", "drop"])
def test_a_target_whose_look_up_fails_keeps_its_last_addresses(resolver, server, fault):
    add_alias_service(server, 1, 2, ttl=0)
    resolver.resolve(SERVICE)
    gevent.sleep(0.002)
    fails = fails_for("redis2.example.test", fault)

    def hurry(query):
        resolver.client._lifetime = 0.25 if fault == "drop" else 40.0  # of the questions after this, the first
        return fails(query)

    server.fault = hurry

    resolution = resolver.resolve(SERVICE)

    assert found(resolution) == [("redis1", 6379, ("127.0.0.1",), 0, 1), ("redis2", 6379, ("127.0.0.2",), 0, 1)]
    assert server.queries > 5


def test_a_target_whose_addresses_are_gone_keeps_them_while_it_is_named(resolver, server):
    add_service(server, 1, 2)
    resolver.resolve(SERVICE)
    server.remove_address("redis2.example.test", "127.0.0.2")

    assert found(resolver.resolve(SERVICE))[1] == ("redis2", 6379, ("127.0.0.2",), 0, 1)
    assert found(resolver.resolve(SERVICE))[1] == ("redis2", 6379, ("127.0.0.2",), 0, 1)


def test_a_target_that_is_named_again_soon_has_the_addresses_it_had(resolver, server):
    # It may have been left out by mistake, or for somebody else who shares the resolver.
    add_service(server, 1, 2)
    resolver.resolve(SERVICE)
    server.remove_srv(SERVICE, "redis2.example.test", 6379)
    resolver.resolve(SERVICE)

    server.add_srv(SERVICE, "redis2.example.test", 6379)
    server.remove_address("redis2.example.test", "127.0.0.2")

    assert names(resolver.resolve(SERVICE)) == ["redis1.example.test:6379", "redis2.example.test:6379"]


def test_a_target_that_was_in_the_hosts_file_keeps_its_addresses_when_it_is_gone_from_there(
    resolver, server, tmp_path, monkeypatch
):
    server.add_srv(SERVICE, "redis1.example.test", 6379)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.9 redis1.example.test\n")
    monkeypatch.setattr(_hosts, "_hosts_file", HostsFile(hosts))
    before = found(resolver.resolve(SERVICE))
    hosts.write_text("# being written\n")

    assert before == [("redis1", 6379, ("127.0.0.9",), 0, 1)]
    assert found(resolver.resolve(SERVICE)) == before
    assert server.queries == 4  # A and AAAA, too, now


def test_an_alias_of_the_service_is_followed(resolver, server):
    add_service(server, 1)
    server.add("_cache._tcp.example.test", "CNAME", SERVICE)

    assert names(resolver.resolve("_cache._tcp.example.test")) == ["redis1.example.test:6379"]


def test_a_name_may_be_looked_up_both_ways(resolver, server):
    add_alias_service(server, 1)
    server.add("example.test", "SRV", "0 1 6379 redis1.example.test")
    server.add_address("example.test", "127.0.0.9")
    resolver.resolve("example.test")
    resolver.resolve("example.test:6379")
    server.fault = fails_for("redis1.example.test")

    assert names(resolver.resolve("example.test")) == ["redis1.example.test:6379"]


def test_two_look_ups_at_once_do_not_disturb_each_other(resolver, server):
    add_alias_service(server, 1, 2, 3)

    look_ups = [gevent.spawn(resolver.resolve, SERVICE) for _ in range(10)]

    assert {len(look_up.get().endpoints) for look_up in look_ups} == {3}


# A name with a port


def test_each_address_of_a_plain_name_is_an_endpoint(resolver, server):
    server.add_address("redis.example.test", "127.0.0.2", ttl=30)
    server.add_address("redis.example.test", "127.0.0.1", ttl=30)

    resolution = resolver.resolve("Redis.example.test.:6379")

    assert found(resolution) == [
        ("127", 6379, ("127.0.0.1",), 0, 1),
        ("127", 6379, ("127.0.0.2",), 0, 1),
    ]
    assert names(resolution) == ["127.0.0.1:6379", "127.0.0.2:6379"]
    assert {endpoint.domain for endpoint in resolution.endpoints} == {"redis.example.test"}
    assert resolution.ttl == 30.0


def test_ipv6_addresses_are_used_where_there_is_a_route_for_them(resolver, server):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        has_ipv6 = probe.connect_ex(("::1", 9)) == 0
    server.add_address("redis.example.test", "127.0.0.1")
    server.add_address("redis.example.test", "::1")
    server.add_address("redis.example.test", "fe80::1")  # link-local: no route without a scope

    expected = ["127.0.0.1:6379", "[::1]:6379"] if has_ipv6 else ["127.0.0.1:6379"]
    assert names(resolver.resolve("redis.example.test:6379")) == expected


@pytest.mark.usefixtures("one_bound")
def test_a_server_that_knows_no_ipv6_questions_does_not_hide_the_ipv4_addresses(resolver, server):
    server.add_address("redis.example.test", "127.0.0.1", ttl=30)
    server.fault = lambda query: "drop" if query.question[0].rdtype == dns.rdatatype.AAAA else None
    resolver.client._lifetime = 1.0

    resolution = resolver.resolve("redis.example.test:6379")

    assert names(resolution) == ["127.0.0.1:6379"]
    assert resolution.ttl < 1.3


def test_addresses_that_came_along_and_cannot_be_reached_are_left_out(resolver, server, monkeypatch):
    monkeypatch.setattr(_hosts, "_has_route", lambda address: False)
    for number in 1, 2:
        server.add_srv(SERVICE, f"redis{number}.example.test", 6379)
        server.add_address(f"redis{number}.example.test", f"2001:db8::{number}")
    server.add_address("redis1.example.test", "127.0.0.1")

    assert found(resolver.resolve(SERVICE)) == [("redis1", 6379, ("127.0.0.1",), 0, 1)]


def test_a_plain_name_that_does_not_resolve_any_more_is_a_failure(resolver, server):
    server.add_address("redis.example.test", "127.0.0.1")
    resolver.resolve("redis.example.test:6379")
    server.fault = "servfail"

    assert "A: SERVFAIL from 127.0.0.1" in failure(resolver, "redis.example.test:6379")


def test_a_plain_name_without_addresses_is_a_failure(resolver, server):
    server.add("redis.example.test", "TXT", "nothing")

    assert "no such record (NODATA) from 127.0.0.1:" in failure(resolver, "redis.example.test:6379")


def test_a_plain_name_with_only_addresses_out_of_reach_is_a_failure(resolver, server):
    server.add_address("redis.example.test", "fe80::1")  # link-local: no route without a scope

    assert failure(resolver, "redis.example.test:6379").startswith(
        "redis.example.test: no usable address from 127.0.0.1:"
    )


@pytest.mark.parametrize(("service", "name"), [("10.1.2.3:6379", "10.1.2.3"), ("[0::1]:6379", "::1")])
def test_an_address_needs_no_dns_and_holds_for_ever(resolver, server, service, name):
    assert resolver.resolve(service) == Resolution((Endpoint(name, 6379),), None)
    assert resolver.resolve(service).endpoints[0].domain == name
    assert server.queries == 0


def test_the_hosts_file_comes_before_dns(resolver, server, tmp_path, monkeypatch):
    hosts = tmp_path / "hosts"
    lines = ["127.0.0.9 other Redis.example.test # x", "127.0.0.8 xredis.example.test", "#127.0.0.7 redis.example.test"]
    hosts.write_text("\n".join(lines))
    monkeypatch.setattr(_hosts, "_hosts_file", HostsFile(hosts))

    resolution = resolver.resolve("redis.example.test:6379")

    assert names(resolution) == ["127.0.0.9:6379"]
    assert resolution.ttl == resolver.max_refresh
    assert server.queries == 0


def test_without_a_hosts_file_dns_is_asked(resolver, server, monkeypatch):
    server.add_address("redis.example.test", "127.0.0.1")
    monkeypatch.setattr(_hosts, "_hosts_file", HostsFile(Path("/nonexistent/hosts")))

    assert names(resolver.resolve("redis.example.test:6379")) == ["127.0.0.1:6379"]


# Failures, in words


@pytest.mark.usefixtures("one_bound")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("servfail", "SERVFAIL"),
        ("refused", "REFUSED"),
        ("truncate", "an answer too large for any message"),
        ("drop", "no answer"),
        ("garbage", "no answer"),
        ("wrong_id", "no answer"),
    ],
)
def test_a_failure_names_the_service_the_fault_and_the_name_server(server, fault, words):
    add_service(server, 1)
    server.fault = fault
    resolver = quick(server) if words == "no answer" else patient(server)

    assert failure(resolver) == f"{SERVICE} SRV: {words} from 127.0.0.1:{server.address[1]}"


def test_a_failure_that_dnspython_knows_best_is_told_in_its_words(resolver, server):
    server.fault = "yxdomain"

    assert failure(resolver) == (
        f"{SERVICE} SRV: The DNS query name is too long after DNAME substitution. from 127.0.0.1:{server.address[1]}"
    )


def test_an_answer_over_tcp_to_another_question_is_a_failure(resolver, server):
    add_service(server, 1)
    faults = iter(["truncate", "wrong_id"])
    server.fault = lambda query: next(faults)
    words = "A DNS query response does not respond to the question asked."

    assert failure(resolver) == f"{SERVICE} SRV: {words} from 127.0.0.1:{server.address[1]}"


def test_a_name_server_that_closes_in_the_middle_of_its_answer_has_failed():
    class Rude(DNSServer):
        def _serve_tcp(self, connection, _client):
            connection.recv(65535)
            connection.sendall(b"\0\x10half")

    with Rude() as server:
        server.fault = "truncate"
        words = failure(DNSResolver([server.address]))

    assert words == f"{SERVICE} SRV: the name server closed the connection from 127.0.0.1:{server.address[1]}"


def test_a_name_server_that_refuses_tcp_has_failed_and_leaves_no_socket(server):
    server.fault = "truncate"
    server._servers[0].stop()
    resolver = DNSResolver([server.address])
    words = failure(resolver)
    files = open_files()
    failure(resolver)

    assert words == f"{SERVICE} SRV: Connection refused from 127.0.0.1:{server.address[1]}"
    assert open_files() == files


def test_questions_that_are_not_reached_within_the_lifetime_are_not_answered(server):
    server.fault = "drop"
    questions = [Question(f"host{number}.example.test", "A") for number in range(5)]
    with DNSServer() as other:
        other.fault = "drop"
        answers = Client([server.address, other.address], timeout=0.2, lifetime=0.4).ask_all(questions)

    assert set(answers) == set(questions[:4])
    assert all(isinstance(answer, ResolutionError) for answer in answers.values())


def test_a_question_that_cannot_be_asked_is_a_failure_that_names_no_server(server):
    question = Question(f"{'x' * 64}.test", "A")
    answers = Client([server.address], timeout=1.0, lifetime=1.0).ask_all([question])

    assert str(answers[question]) == f"{question}: A DNS label is > 63 octets long."
    assert server.queries == 0


def test_a_question_that_nobody_answers_in_time_is_a_failure_that_names_all_servers(server, monkeypatch):
    monkeypatch.setattr(_dns, "_GRACE", -0.2)  # as a clock that steps would have it
    server.fault = "drop"
    resolver = DNSResolver([server.address], timeout=0.2, lifetime=0.3)

    assert failure(resolver) == f"{SERVICE} SRV: no answer within 0.3 s from 127.0.0.1:{server.address[1]}"


class Late(Client):
    """Has each of its answers when it is told to end."""

    given = 0

    def _answer(self, resolver, question, over_tcp):
        with suppress(gevent.GreenletExit):
            gevent.sleep(60)
        self.given += 1
        return ResolutionError(f"{question}: late")


def test_an_answer_that_comes_as_its_time_is_over_changes_no_result_that_somebody_reads():
    client = Late([("127.0.0.1", 53)], timeout=0.01, lifetime=0.01)
    answers = client.ask_all([Question("a.test", "A"), Question("b.test", "A")])
    wait_until(lambda: client.given == 2)

    assert answers == {}


@pytest.mark.parametrize("wrong", ["127.0.0.1", StaticResolver([("a", 1)])])
def test_hosts_of_a_list_are_looked_up_by_a_dns_resolver_only(wrong):
    with pytest.raises(TypeError, match="resolver must be a DNSResolver, not"):
        StaticResolver([("a", 1)], resolver=wrong)


def test_no_such_name_and_no_such_record_are_failures(resolver, server):
    server.add("_redis._tcp.example.test", "TXT", "nothing")
    address = f"127.0.0.1:{server.address[1]}"

    assert failure(resolver) == f"{SERVICE} SRV: no such record (NODATA) from {address}"
    assert failure(resolver, "_no._tcp.b.test") == f"_no._tcp.b.test SRV: no such name (NXDOMAIN) from {address}"


def test_a_closed_port_is_known_at_once(server):
    server.stop()
    before = time.monotonic()

    assert failure(patient(server)) == f"{SERVICE} SRV: Connection refused from 127.0.0.1:{server.address[1]}"
    assert time.monotonic() - before < 20.0


def test_a_silent_server_costs_no_more_than_the_lifetime(server):
    server.fault = "drop"
    resolver = DNSResolver([server.address], timeout=0.05, lifetime=0.3)
    before = time.monotonic()

    _words, turns = turns_of_others(lambda: failure(resolver))

    assert time.monotonic() - before >= 0.28
    assert turns * TURN < 0.6  # which a machine that pauses does not add to


@pytest.mark.parametrize("fault", ["servfail", "refused", "drop", "truncate"])
def test_the_next_name_server_is_asked_when_one_fails(server, fault):
    add_service(server, 1)
    with DNSServer() as bad:
        bad.fault = fault
        resolver = DNSResolver([bad.address, server.address], timeout=0.1, lifetime=20.0)

        assert names(resolver.resolve(SERVICE)) == ["redis1.example.test:6379"]
        assert bad.queries > 0


def test_a_server_that_is_older_than_edns_is_asked_without(resolver, server):
    add_service(server, 1)
    server.fault = lambda query: "formerr" if query.edns >= 0 else None

    assert names(resolver.resolve(SERVICE)) == ["redis1.example.test:6379"]
    assert server.queries == 2


def test_what_does_not_fit_into_a_datagram_comes_over_tcp(resolver, server):
    add_service(server, *range(1, 101))

    assert len(resolver.resolve(SERVICE).endpoints) == 100


def test_what_is_not_the_answer_is_ignored_and_the_wait_goes_on():
    class Crowd(DatagramServer):
        def handle(self, wire, client):
            right = dns.message.make_response(dns.message.from_wire(wire))
            forged = dns.message.make_response(dns.message.make_query("_forged._tcp.example.test", "SRV"))
            forged.id = right.id
            right.answer.append(dns.rrset.from_text(SERVICE + ".", 5, "IN", "SRV", "0 1 6379 127.0.0.1."))
            for answer in (b"garbage", wire, b"\0\0" + right.to_wire()[2:], forged.to_wire(), right.to_wire()):
                self.sendto(answer, client)

    crowd = Crowd(("127.0.0.1", 0))
    crowd.start()
    try:
        resolution = DNSResolver([("127.0.0.1", crowd.server_port)]).resolve(SERVICE)
    finally:
        crowd.stop()

    assert names(resolution) == ["127.0.0.1:6379"]


# resolv.conf


@pytest.fixture
def resolv_conf(server, tmp_path, monkeypatch):
    file = tmp_path / "resolv.conf"
    file.write_text("search nowhere.test example.test\nnameserver 127.0.0.1\noptions ndots:2\n")
    monkeypatch.setattr(_dns, "_RESOLV_CONF", file)
    monkeypatch.setattr(_dns, "_PORT", server.address[1])
    return file


def test_the_search_list_applies_to_the_name_servers_of_resolv_conf(resolv_conf, server):
    add_service(server, 1)
    server.add_address("redis.example.test", "127.0.0.1")

    srv = DNSResolver().resolve("_redis._tcp")

    assert names(srv) == ["redis1.example.test:6379"]
    assert srv.endpoints[0].domain is None
    assert names(DNSResolver().resolve("redis:6379")) == ["127.0.0.1:6379"]


def test_the_search_list_does_not_apply_to_a_final_name_or_to_given_name_servers(resolv_conf, resolver, server):
    add_service(server, 1)

    assert "NXDOMAIN" in failure(DNSResolver(), "_redis._tcp.")
    assert "NXDOMAIN" in failure(resolver, "_redis._tcp")


def test_resolv_conf_is_read_anew_and_of_no_use_is_a_failure(resolv_conf, server):
    add_service(server, 1)
    resolver = DNSResolver(timeout=10.0, lifetime=20.0)
    resolv_conf.rename(resolv_conf.with_name("away"))
    assert failure(resolver) == f"{resolv_conf} cannot be used: No such file or directory"

    resolv_conf.with_name("away").rename(resolv_conf)
    assert names(resolver.resolve(SERVICE)) == ["redis1.example.test:6379"]


@pytest.mark.usefixtures("no_thread_pool")
def test_a_name_server_with_a_zone_is_asked_without_the_hubs_thread_pool():
    interface = socket.if_nameindex()[0][1]
    (answer,) = Client([(f"fe80::1%{interface}", 53)], 0.05, 0.05).ask_all([Question("a.test", "A")]).values()

    assert isinstance(answer, ResolutionError)


# What dnspython is told


def test_a_name_server_is_of_the_common_kind_and_shown_with_its_port():
    servers = Nameserver("127.0.0.1", 53), Nameserver("::1", 8600)

    assert [server.kind() for server in servers] == ["Do53", "Do53"]
    assert [str(server) for server in servers] == ["127.0.0.1:53", "[::1]:8600"]


def test_the_backend_is_called_gevent():
    assert _dns._Backend(1.0).name() == "gevent"


def test_what_waits_for_another_event_loop_is_ended_and_an_error():
    ended = []

    async def foreign():
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="dnspython waits for something that gevent does not know"):
        _dns._run(foreign())

    assert ended == [True]


# Interruptions


def open_files():
    return len(os.listdir("/proc/self/fd"))


def living_greenlets():
    gc.collect()
    return sum(isinstance(thing, gevent.Greenlet) and not thing.dead for thing in gc.get_objects())


class Bell(Exception):
    """A timeout of the caller's own class, which dnspython would take for the failure of a name server."""


def test_fifty_interrupted_look_ups_leave_no_socket_and_no_greenlet(server):
    add_alias_service(server, *range(1, 9))
    server.delay = 0.001
    resolver = DNSResolver([server.address])
    whole = min(seconds_of(lambda: resolver.resolve(SERVICE)) for _ in range(5))
    wait_until(lambda: len(server._servers[1].pool) == 0)
    files, greenlets = open_files(), living_greenlets()

    for number in range(25):
        look_up = gevent.spawn(resolver.resolve, SERVICE)
        gevent.sleep(whole * number / 25)
        look_up.kill()
        with pytest.raises(Bell):
            with gevent.Timeout(max(whole * number / 30, 0.0001), Bell):
                while True:
                    resolver.resolve(SERVICE)

    wait_until(lambda: open_files() == files, what="the end of all sockets")
    wait_until(lambda: living_greenlets() == greenlets, what="the end of all greenlets")


def seconds_of(work):
    before = time.monotonic()
    work()
    return time.monotonic() - before


@pytest.mark.parametrize("fault", ["drop", "truncate"])
def test_an_interruption_is_never_taken_for_a_failure_of_dns(server, fault):
    server.fault = fault
    server.delay = 0.1

    with pytest.raises(Bell):
        with gevent.Timeout(0.05, Bell):
            DNSResolver([server.address]).resolve(SERVICE)


# The hub, patched and not

_CHILD = """
import sys
patched, look_up = sys.argv[1:]
if patched == "patched":
    from gevent import monkey
    monkey.patch_all()
import os, time, gevent
from geventconnpool.cluster._dns import ResolutionError
from geventconnpool.cluster._resolvers import DNSResolver
from geventconnpool.testing import DNSServer

gaps = []

def tick():
    last = time.perf_counter()
    while True:
        gevent.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now

with DNSServer() as server:
    server.add_srv("_a._tcp.b.test", "127.0.0.1", server.address[1])
    server.add_address("b.test", "127.0.0.1")
    patient = DNSResolver([server.address], lifetime=20.0)
    resolver = DNSResolver([server.address], timeout=0.2, lifetime=0.5)
    for service in ("_a._tcp.b.test", "b.test:%d" % server.address[1]):
        (endpoint,) = patient.resolve(service).endpoints
        endpoint.connect(20).close()
    server.fault = "drop"
    ticker = gevent.spawn(tick)
    end = time.perf_counter() + 1.2
    while time.perf_counter() < end:
        if look_up == "idle":
            gevent.sleep(0.1)
            continue
        for service in ("_a._tcp.b.test", "b.test:1"):
            try:
                resolver.resolve(service)
            except ResolutionError as error:
                assert "no answer" in str(error), error
print(max(gaps) * 1000, len(os.listdir("/proc/self/task")))
"""


def gaps_beside_an_idle_process():
    """Return the largest gap of a 1 ms ticker in ms, and the number of threads, per process."""
    children = {
        case: subprocess.Popen(
            [sys.executable, "-c", _CHILD, *case], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
        )
        for case in (("unpatched", "idle"), ("patched", "looking up"), ("unpatched", "looking up"))
    }
    told = {case: child.communicate(timeout=30)[0].split() for case, child in children.items()}
    return {case: (float(gap), int(threads)) for case, (gap, threads) in told.items()}


def test_a_silent_name_server_never_blocks_the_hub_patched_or_not():
    least: dict[tuple[str, str], float] = {}
    for _attempt in range(4):  # the machine may be busy; what blocks does so every time, for hundreds of ms
        told = gaps_beside_an_idle_process()
        allowed = told["unpatched", "idle"][0] + 15
        assert {threads for _gap, threads in told.values()} == {1}  # nothing goes through the hub's thread pool
        least = {case: min(gap, least.get(case, gap)) for case, (gap, _threads) in told.items()}
        if all(gap <= allowed for gap in least.values()):
            return
    pytest.fail(f"largest gaps in ms, and threads: {told}, the least of each: {least}")


class Prompt(Nameserver):
    """Has answered before anybody can wait for it, as a server on the same machine may have."""

    def _ask_over_udp(self, request):
        response = dns.message.make_response(request)
        response.flags |= dns.flags.AA
        response.answer.append(dns.rrset.from_text(request.question[0].name, 60, "IN", "A", "127.0.0.1"))
        return _dns._parsed(response.to_wire())


def test_others_run_while_a_thousand_questions_are_answered_before_one_can_wait():
    client = Client([("127.0.0.1", 53)], timeout=10.0, lifetime=30.0)
    client._given.nameservers = [Prompt("127.0.0.1", 53)]
    questions = [Question(f"host{number}.example.test.", "A") for number in range(1000)]

    answers, turns = turns_of_others(lambda: client.ask_all(questions))

    assert len(answers) == 1000
    assert turns > 10


def test_others_run_while_the_addresses_of_thousands_are_looked_at():
    addresses = [_wire.Record(f"host{number}.example.test.", 1, 60, "127.0.0.1") for number in range(5000)]
    hosts = _hosts.Hosts(5.0, 300.0)
    book_of = {address.owner for address in addresses}
    hosts.look_up(Nobody(), book_of, addresses)

    _answers, turns = turns_of_others(lambda: hosts.look_up(Nobody(), book_of, addresses))

    assert hosts.addresses("host4999.example.test.") == ("127.0.0.1",)
    assert turns > 3


class Nobody:
    """A client that has no answers."""

    def ask_all(self, questions, over_tcp=False):
        return {}


def turns_of_others(work):
    """Return what ``work()`` returns, and how often another greenlet had its turn meanwhile."""
    turns = 0

    def count():
        nonlocal turns
        while True:
            gevent.sleep(TURN)
            turns += 1

    other = gevent.spawn(count)
    gevent.sleep(0.001)
    before = turns
    try:
        return work(), turns - before
    finally:
        other.kill()


# A real name server


def test_records_are_found_as_they_come_change_and_go(bind):
    resolver = patient(bind)
    records = [("_a._tcp", "SRV", f"1 {10 * n} 6379 a{n}") for n in (1, 2)]
    addresses = [(f"a{n}", "A", f"127.0.0.{n}") for n in (1, 2)]

    bind.update(add=records + addresses, ttl=20)
    first = resolver.resolve("_a._tcp.example.test")
    bind.update(delete=[records[0]], add=[("_a._tcp", "SRV", "0 7 6380 a2")])
    second = resolver.resolve("_a._tcp.example.test")

    assert found(first) == [("a1", 6379, ("127.0.0.1",), 1, 10), ("a2", 6379, ("127.0.0.2",), 1, 20)]
    assert first.ttl == 20.0
    assert found(second) == [("a2", 6379, ("127.0.0.2",), 1, 20), ("a2", 6380, ("127.0.0.2",), 0, 7)]
    assert second.ttl == 1.0


def test_the_last_record_gone_is_nxdomain_or_no_data_and_a_dot_is_empty(bind):
    resolver = patient(bind)
    assert "no such name (NXDOMAIN)" in failure(resolver, "_b._tcp.example.test")

    bind.update(add=[("_b._tcp", "TXT", "nothing")])
    assert "no such record (NODATA)" in failure(resolver, "_b._tcp.example.test")

    bind.update(add=[("_b._tcp", "SRV", "0 0 0 .")])
    assert resolver.resolve("_b._tcp.example.test") == Resolution((), 1.0)


def test_another_zone_is_refused(bind):
    assert "REFUSED" in failure(patient(bind), "_a._tcp.example.org")


def test_many_records_come_over_tcp_and_too_many_are_a_failure_not_an_empty_set(bind):
    resolver = patient(bind)
    bind.update(add=[("c", "A", "127.0.0.1"), *(("_c._tcp", "SRV", f"0 1 {n + 1} c") for n in range(300))])
    assert len(resolver.resolve("_c._tcp.example.test").endpoints) == 300

    # 1,320 times 51 bytes do not fit into 65,535; for the server it is a set like any other.
    targets = [f"{'x' * 13}-{n:04}" for n in range(1320)]
    for some in (targets[:700], targets[700:]):
        bind.update(add=[("_d._tcp", "SRV", f"0 1 6379 {target}") for target in some])
    assert "an answer too large for any message" in failure(resolver, "_d._tcp.example.test")


def test_addresses_of_both_families_come_with_a_plain_name(bind):
    bind.update(add=[("both", "A", "127.0.0.1"), ("both", "AAAA", "::1"), ("alias", "CNAME", "both")])

    assert "127.0.0.1:6379" in names(patient(bind).resolve("alias.example.test:6379"))


def test_a_name_server_may_stop_be_killed_and_come_back(bind):
    bind.update(add=[("_e._tcp", "SRV", "0 1 6379 e"), ("e", "A", "127.0.0.1")])
    resolver = patient(bind)

    bind.pause()
    assert "no answer" in failure(quick(bind), "_e._tcp.example.test")
    bind.resume()
    assert names(resolver.resolve("_e._tcp.example.test")) == ["e.example.test:6379"]
    bind.kill()
    assert "Connection refused" in failure(resolver, "_e._tcp.example.test")
    bind.start()
    assert names(resolver.resolve("_e._tcp.example.test")) == ["e.example.test:6379"]
