"""What ``--help`` says. The examples are run by tests, which compare what they print."""

from __future__ import annotations

NAME = (
    "the service as ClusterPool takes it: _redis._tcp.example.org (SRV records), redis.example.org:6379 (its "
    "addresses), or several HOST:PORT"
)
JSON = {
    "resolve": "write one JSON document",
    "check": "write one JSON document; times are in seconds",
    "watch": "write one JSON object per line",
    "demo": "play the scenes, and write one JSON object per line",
}

# Each: what it does in a line, more about it, and what comes last.
MAIN = (
    "What a service looks like from here, to a pool of geventconnpool.",
    """\
It asks DNS as a ClusterPool does: the same name servers and search list, the same rules, nothing remembered.""",
    """\
"geventconnpool COMMAND --help" has examples, and what the exit status means.

Results are written to the standard output, with colours if that is a terminal and NO_COLOR is not set.""",
)

RESOLVE = (
    "what would be connected to: priorities, weights, addresses, TTL",
    """\
Looks NAME up once. "share" is the part of the calls that an endpoint gets while calls go to its priority and all
endpoints of that are well. Addresses stand in the order in which a connection tries them.""",
    """\
examples:
  $ geventconnpool resolve _redis._tcp.example.org
  _redis._tcp.example.org: 4 SRV records from 127.0.0.1:53, 1 without a known address
  TTL 30 s: a pool asks again after 30 s, or up to 10 % later

  priority  endpoint                 weight    share  addresses
         0  redis1.example.org:6379       3   75.0 %  127.0.0.1
         0  redis2.example.org:6379       1   25.0 %  127.0.0.1
        10  redis3.example.org:6379       1  100.0 %  127.0.0.1

  All calls go to priority 0; only while nothing of it is available, to 10.

  not used:
    redis4.example.org:6379: redis4.example.org. A: no such name (NXDOMAIN) from 127.0.0.1:53

  $ geventconnpool resolve _nothing._tcp.example.org
  _nothing._tcp.example.org: nothing to connect to
  _nothing._tcp.example.org SRV: no such name (NXDOMAIN) from 127.0.0.1:53

exit status:
  0  there is something to connect to
  1  there is nothing, or DNS does not say
  2  bad usage""",
)
CHECK = (
    "connect to each endpoint, and measure how long that takes",
    "",
    "",
)
WATCH = ("changes of the set of endpoints, as a pool learns of them", "", "")
DEMO = ("a service in which everything goes wrong, and what callers see of it", "", "")
