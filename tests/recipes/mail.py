"""An IMAP server and a mail relay for the recipes: Dovecot, and aiosmtpd in a process of its own."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd

from gevent import socket, ssl

from tests import servers
from tests.recipes.certificates import ensure_certificate, trust
from tests.recipes.databases import tool
from tests.recipes.servers import PythonServer, Tree


def greeting(address: tuple[str, int], tls: ssl.SSLContext | None = None) -> bytes:
    """Return what a server says first; nothing if it cannot be reached."""
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1) as connection:
        if tls is None:
            return connection.recv(100)
        with tls.wrap_socket(connection, server_hostname=address[0]) as wrapped:
            return wrapped.recv(100)
    return b""


class Dovecot(Tree):
    """``dovecot`` for IMAP over TLS: whoever has the password ``secret`` has a mailbox."""

    program = "dovecot"

    def _command(self) -> list[str]:
        ensure_certificate(self.directory)
        identity = servers._as_nobody(self.directory)
        uid, gid = identity.get("user", os.getuid()), identity.get("group", os.getgid())
        text = _DOVECOT_CONF.format(
            directory=self.directory,
            port=self.port,
            user=pwd.getpwuid(uid).pw_name,
            group=grp.getgrgid(gid).gr_name,
        )
        (self.directory / "dovecot.conf").write_text(text)
        return [tool("dovecot"), "-F", "-c", str(self.directory / "dovecot.conf")]

    def _is_answering(self) -> bool:
        return b"Dovecot" in greeting(self.address, trust(self))


# Without root nothing can be put into a chroot, nor run as another user.
_DOVECOT_CONF = """\
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
protocols = imap
listen = 127.0.0.1
ssl = required
ssl_cert = <{directory}/certificate.pem
ssl_key = <{directory}/key.pem
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
service imap-login {{
  chroot =
  inet_listener imap {{
    port = 0
  }}
  inet_listener imaps {{
    port = {port}
    ssl = yes
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={directory}/mail/%u
}}
mail_location = maildir:~/Maildir
mail_fsync = never
"""


class Relay(PythonServer):
    """aiosmtpd, which takes mail and delivers it nowhere. With ``login``, (user, password), it wants STARTTLS, too."""

    script = "relay.py"

    def __init__(self, login: tuple[str, str] | None = None) -> None:
        super().__init__()
        self._login = login

    def arguments(self) -> list[str]:
        if self._login is None:
            return []
        ensure_certificate(self.directory)
        return ["certificate.pem", "key.pem", *self._login]

    @property
    def mails(self) -> list[dict[str, str]]:
        """What it has taken so far: sender, recipients, subject."""
        path = self.directory / "mails"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _is_answering(self) -> bool:
        return greeting(self.address).startswith(b"220 relay ")
