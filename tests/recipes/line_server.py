"""A server that answers lines: ``line_server.py HOST PORT [CERTIFICATE_AND_KEY]``.

``PING`` is answered ``PONG``, ``QUIT`` ends the connection, any other line is answered by itself.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from gevent import ssl
from gevent.server import StreamServer


def answer(connection: Any, _address: object) -> None:
    with suppress(OSError), connection.makefile("rb") as lines:
        for line in lines:
            if line == b"QUIT\n":
                return
            connection.sendall(b"PONG\n" if line == b"PING\n" else line)


def main(host: str, port: str, *certificates: str) -> None:
    options: dict[str, Any] = {}
    for certificate in certificates:
        options["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        options["ssl_context"].load_cert_chain(certificate)
    StreamServer((host, int(port)), answer, **options).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
