"""Endpoints are values; two sets of them differ in what was added, updated and removed; services have names."""

from __future__ import annotations

import dataclasses

import pytest

from geventconnpool.cluster._endpoints import Endpoint, Resolution, domain_of, is_changed, parse_service

A = Endpoint("a.test", 1, ("10.0.0.1",))
B = Endpoint("b.test", 1, ("10.0.0.2",))
C = Endpoint("c.test", 1, ("10.0.0.3",))


def test_endpoints_are_equal_by_name_and_port_whatever_else_differs():
    one = Endpoint("redis1.example.org", 6379, ["10.0.0.1"], priority=1, weight=5, domain="example.org")
    other = Endpoint("redis1.example.org", 6379)

    assert one == other
    assert hash(one) == hash(other)
    assert one != Endpoint("redis1.example.org", 6380)
    assert one != Endpoint("redis2.example.org", 6379)


def test_an_endpoint_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        A.weight = 2


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Redis1.Example.ORG.", "redis1.example.org"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("redis_1", "redis_1"),
        ("1234", "1234"),
    ],
)
def test_a_name_is_kept_in_one_form(given, kept):
    assert Endpoint(given, 1).name == kept


def test_addresses_are_kept_sorted_once_each_and_ipv4_first():
    endpoint = Endpoint("a", 1, ["::2", "10.0.0.10", "10.0.0.9", "0:0::1", "10.0.0.9"])

    assert endpoint.addresses == ("10.0.0.9", "10.0.0.10", "::1", "::2")


def test_the_host_is_the_first_address():
    endpoint = Endpoint("redis1.example.org", 6379, ["10.0.0.2", "10.0.0.1"])

    assert endpoint.host == "10.0.0.1"
    assert endpoint.address == ("10.0.0.1", 6379)


def test_without_an_address_the_host_is_the_name():
    assert Endpoint("redis1.example.org", 6379).addresses == ()
    assert Endpoint("redis1.example.org", 6379).address == ("redis1.example.org", 6379)


def test_an_ip_literal_is_its_own_address():
    assert Endpoint("0:0::1", 1).addresses == ("::1",)


def test_an_endpoint_reads_like_a_location():
    assert str(Endpoint("redis1.example.org", 6379, ["10.0.0.1"])) == "redis1.example.org:6379"
    assert str(Endpoint("::1", 6379)) == "[::1]:6379"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": ""}, ValueError, "name is neither a host name nor an IP address: ''"),
        ({"name": "a b"}, ValueError, "name .*: 'a b'"),
        ({"name": "a..b"}, ValueError, "name .*: 'a..b'"),
        ({"name": "10.0.0.256"}, ValueError, r"name .*: '10\.0\.0\.256'"),
        ({"name": "x" * 64}, ValueError, "name .*: 'xxx"),
        ({"name": ".".join(["x" * 63] * 4)}, ValueError, "name .*: 'xxx"),
        ({"name": "bücher.example"}, ValueError, "name .*: 'bücher.example'"),
        ({"name": None}, TypeError, "name must be a str, not None"),
        ({"port": 0}, ValueError, "port must be between 1 and 65535, not 0"),
        ({"port": 65536}, ValueError, "port must be between 1 and 65535, not 65536"),
        ({"port": "1"}, TypeError, "port must be an int, not '1'"),
        ({"port": True}, TypeError, "port must be an int, not True"),
        ({"addresses": "10.0.0.1"}, TypeError, r"addresses must be an iterable of IP addresses, not '10\.0\.0\.1'"),
        ({"addresses": 5}, TypeError, "addresses must be an iterable of IP addresses, not 5"),
        ({"addresses": ["a.test"]}, ValueError, "addresses must hold IP addresses, not 'a.test'"),
        ({"addresses": [1]}, ValueError, "addresses must hold IP addresses, not 1"),
        ({"priority": -1}, ValueError, "priority must be between 0 and 65535, not -1"),
        ({"weight": 65536}, ValueError, "weight must be between 0 and 65535, not 65536"),
        ({"weight": 1.5}, TypeError, "weight must be an int, not 1.5"),
        ({"domain": "a/b"}, ValueError, "domain is neither a host name nor an IP address: 'a/b'"),
    ],
)
def test_bad_input_is_refused_by_parameter_and_value(arguments, error, message):
    with pytest.raises(error, match=message):
        Endpoint(**{"name": "a.test", "port": 1, **arguments})


@pytest.mark.parametrize(
    "change", [{"addresses": ("10.0.0.9",)}, {"priority": 3}, {"weight": 3}, {"domain": "other.test"}]
)
def test_equal_endpoints_are_changed_if_any_field_differs(change):
    changed = dataclasses.replace(A, **change)

    assert changed == A
    assert is_changed(A, changed)


def test_an_endpoint_written_in_another_way_is_not_changed():
    assert not is_changed(A, Endpoint("A.test.", 1, ["10.0.0.1"]))


def test_a_resolution_takes_any_iterable_of_endpoints():
    assert Resolution(iter([A, B]), 5).endpoints == (A, B)
    assert Resolution([]) == Resolution((), None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([A, A],), ValueError, "endpoints holds a.test:1 twice"),
        (([("a", 1)],), TypeError, r"endpoints must hold Endpoint objects, not \('a', 1\)"),
        ((5,), TypeError, "endpoints must be an iterable of Endpoint objects, not 5"),
        (("a.test:1",), TypeError, "endpoints must be an iterable of Endpoint objects, not 'a.test:1'"),
        (([A], -1), ValueError, "ttl must be 0 or more seconds, not -1"),
        (([A], float("nan")), ValueError, "ttl must be 0 or more seconds, not nan"),
        (([A], "5"), TypeError, "ttl must be a number of seconds, not '5'"),
        (([A], True), TypeError, "ttl must be a number of seconds, not True"),
    ],
)
def test_a_bad_resolution_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Resolution(*arguments)


@pytest.mark.parametrize(
    ("service", "name", "port"),
    [
        ("_redis._tcp.example.org", "_redis._tcp.example.org", None),
        ("_Redis._TCP.Example.org.", "_redis._tcp.example.org.", None),
        ("redis.service.consul", "redis.service.consul", None),
        ("_redis._tcp", "_redis._tcp", None),
        ("redis.example.org:6379", "redis.example.org", 6379),
        ("Redis.Example.org.:6379", "redis.example.org.", 6379),
        ("localhost:1", "localhost", 1),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("[0:0::1]:6379", "::1", 6379),
    ],
)
def test_a_service_is_a_name_to_look_up_as_srv_or_a_name_with_a_port(service, name, port):
    assert parse_service(service) == (name, port)


@pytest.mark.parametrize(
    "service",
    [
        "", ".", ":6379", "redis:", "redis:0", "redis:65536", "redis:http", "redis:6379 ", "redis:-1", "redis:٣",
        "my redis", "redis..org", "http://redis", "redis\n", "x" * 64, ".".join(["x" * 63] * 4), "10.0.0.256:6379",
        "10.0.0.1", "::1", "::1:6379", "[::1]", "[10.0.0.1]:6379", "[redis]:6379", "_redis._tcp.example.org:6379",
    ],
)  # fmt: skip
def test_what_is_no_service_is_refused_by_name_and_value(service):
    with pytest.raises(ValueError, match=r"^service ") as refusal:
        parse_service(service)

    assert repr(service) in str(refusal.value)


@pytest.mark.parametrize("service", ["http://redis", "redis://redis.example.org:6379", "redis.example.org:6379/0"])
def test_a_url_is_told_to_be_one(service):
    with pytest.raises(ValueError, match=f"service {service!r} looks like a URL or a path; a name, or host:port, is"):
        parse_service(service)


def test_an_address_in_brackets_lacks_a_port_as_one_without_does():
    with pytest.raises(ValueError, match=r"service '\[::1\]' is an IP address without a port"):
        parse_service("[::1]")


@pytest.mark.parametrize("service", [None, 5, b"redis.example.org:6379"])
def test_a_service_that_is_no_str_is_a_type_error(service):
    with pytest.raises(TypeError, match=f"service must be a str, not {service!r}"):
        parse_service(service)


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("_redis._tcp.Example.org".lower(), "example.org"),
        ("_redis._tcp.example.org.", "example.org"),
        ("redis.service.consul", "redis.service.consul"),
        ("_redis._tcp", None),
    ],
)
def test_the_domain_is_what_was_asked_for_without_service_and_protocol(name, domain):
    assert domain_of(name) == domain
