"""A mail relay: ``python relay.py HOST PORT [CERTIFICATE KEY USER PASSWORD]``, with the latter STARTTLS and a login.

It delivers nowhere and appends a line for each mail to the file ``mails``. It refuses recipients at ``nowhere.example``
(550), hangs up when one is at ``closing.example`` (421), and hangs up without a reply when it has taken a mail whose
subject is ``lost``.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from email import message_from_string
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword


class Handler:
    """The names and the arguments are those that aiosmtpd calls: server, session, envelope, and what there is more."""

    async def handle_RCPT(self, server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:  # noqa: N802
        if address.endswith("@nowhere.example"):
            return "550 no such place"
        if address.endswith("@closing.example"):
            asyncio.get_running_loop().call_soon(server.transport.close)
            return "421 closing"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_VRFY(self, _server: Any, _session: Any, _envelope: Any, address: str) -> str:  # noqa: N802
        return f"252 {address} may be here"

    async def handle_DATA(self, server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        mail = message_from_string(envelope.content.decode())
        line = {"sender": envelope.mail_from, "recipients": envelope.rcpt_tos, "subject": mail["subject"]}
        with open("mails", "a") as mails:
            mails.write(json.dumps(line) + "\n")
        if mail["subject"] == "lost":
            server.transport.abort()
        return "250 taken"


def security(certificate: str, key: str, user: str, password: str) -> dict[str, Any]:
    """Return the options with which a server wants STARTTLS and a login."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    expected = LoginPassword(user.encode(), password.encode())
    return {
        "tls_context": tls,
        "require_starttls": True,
        "auth_required": True,
        "authenticator": lambda *given: AuthResult(success=given[-1] == expected, handled=False),
    }


async def serve(host: str, port: str, *secrets: str) -> None:
    options = security(*secrets) if secrets else {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Handler(), hostname="relay", **options), host, int(port))
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    async with server:
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
