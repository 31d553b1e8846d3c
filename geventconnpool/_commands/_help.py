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
DNS is asked as a ClusterPool does it: the same name servers, search list and hosts file, the same rules.""",
    """\
"geventconnpool COMMAND --help" has examples, and says what the exit status means.

Results go to the standard output, in colours if that is a terminal and NO_COLOR is not set.""",
)

RESOLVE = (
    "What would be connected to: priorities, weights, addresses, TTL.",
    """\
Looks NAME up once. "share" is the part of the calls that an endpoint gets while calls go to its priority and all of
that are well. Addresses stand in the order in which a connection tries them.""",
    """\
examples:
  $ geventconnpool resolve _redis._tcp.example.org
  _redis._tcp.example.org: 3 SRV records from 127.0.0.1:53
  TTL 30 s: a pool asks again after 30 s, or up to 10 % later

  priority  endpoint                 weight    share  addresses
         0  redis1.example.org:6379       3   75.0 %  127.0.0.1
         0  redis2.example.org:6379       1   25.0 %  127.0.0.1
        10  redis3.example.org:6379       1  100.0 %  127.0.0.1

  All calls go to priority 0; only while nothing of it is available, to 10.

  $ geventconnpool resolve _typo._tcp.example.org
  _typo._tcp.example.org: nothing to connect to
  _typo._tcp.example.org SRV: no such name (NXDOMAIN) from 127.0.0.1:53

exit status:
  0    there is something to connect to
  1    there is nothing, or DNS does not say
  2    bad usage""",
)

CHECK = (
    "Does every endpoint accept connections, and how long does that take?",
    """\
Looks NAME up, then opens and closes --count connections to each endpoint, a few endpoints at a time. A connection that
takes more than 2 s has failed. The first line says how it stands, as monitors want it.""",
    """\
examples:
  $ geventconnpool check _redis._tcp.example.org
  OK: _redis._tcp.example.org: 3 of 3 endpoints well
  3 SRV records from 127.0.0.1:53, within 4.2 ms

  endpoint                  ok  connect ms  median  worst
  redis1.example.org:6379  5/5        0.06    0.08   0.31
  redis2.example.org:6379  5/5        0.06    0.12   0.28
  redis3.example.org:6379  5/5        0.05    0.06   0.20

  median in ms: # connect
  redis1.example.org:6379  ################################  0.08
  redis2.example.org:6379  #################################################  0.12
  redis3.example.org:6379  ########################  0.06

  $ geventconnpool check redis1.example.org:6380
  CRITICAL: redis1.example.org:6380: 0 of 1 endpoint well

  127.0.0.1:6380: Connection refused (5 times)

exit status, as of a monitoring plugin:
  0    OK: every endpoint took every connection
  1    WARNING: some did not, or a target of SRV records has no address
  2    CRITICAL: none did, or there is nothing to connect to; also bad usage""",
)

WATCH = (
    "Changes of the set of endpoints, as a pool learns of them.",
    """\
Runs a pool that never connects, and tells what its discovery finds, until Ctrl-C or for SECONDS: endpoints that are
added, updated or removed, and how discovery stands: fresh, stale (DNS fails, the last answer holds), held (DNS says
that there is nothing, which is not yet believed), empty, unavailable.""",
    """\
examples:
  $ geventconnpool watch _redis._tcp.example.org
  12:03:07  added        redis1.example.org:6379: priority 0, weight 3, 127.0.0.1
  12:03:07  added        redis2.example.org:6379: priority 0, weight 1, 127.0.0.1
  12:03:07  added        redis3.example.org:6379: priority 10, weight 1, 127.0.0.1
  12:03:07  fresh        discovery: 3 SRV records from 127.0.0.1:53
  12:03:38  updated      redis2.example.org:6379: weight 1 -> 3
  12:03:38  removed      redis3.example.org:6379: no new calls; those in flight may end
  12:04:10  stale        discovery: _redis._tcp.example.org SRV: SERVFAIL from 127.0.0.1:53
  12:04:11  fresh        discovery: 2 SRV records from 127.0.0.1:53

exit status:
  0    the time is over, and there is something to connect to
  1    the time is over, and there is not
  2    bad usage
  130  Ctrl-C""",
)

DEMO = (
    "A service in which things go wrong, and what its callers see of it.",
    """\
Four backends in processes of their own, a DNS server that names three of them, and 30 callers; no root, no network.
In a terminal you direct: kill, hang, revive, remove from DNS or add there whichever backend you like, and see where the
calls go. Else, or with --play, it plays seven scenes in about twenty seconds.""",
    """\
keys:
  1-4  choose a backend
  k    kill it: kill -9                    r    revive it: start it again, or let it go on
  h    have it hang: SIGSTOP               d    remove it from DNS
  q    quit                                a    add it to DNS

exit status:
  0    no caller saw a failure, and each scene showed what it should
  1    otherwise
  130  Ctrl-C""",
)
