"""An nginx that repeats what it is asked for."""

from __future__ import annotations

import trustme

from tests.recipes.servers import accepts
from tests.servers import HOST, _Server, find


class Nginx(_Server):
    """Answers ``/echo?token=...`` with the token, ``/slow`` in 40 s. Closes a connection after ``requests`` on it."""

    program = "nginx"

    def __init__(self, requests: int = 1000, certificate: trustme.LeafCert | None = None) -> None:
        super().__init__()
        self._requests = requests
        self._certificate = certificate

    def set_unavailable(self, is_unavailable: bool) -> None:
        """Have it answer 503 to everything, or no longer."""
        sign = self.directory / "unavailable"
        if is_unavailable:
            sign.touch()
        else:
            sign.unlink()

    def _command(self) -> list[str]:
        program = find("nginx")
        assert program is not None, "nginx is not installed"
        conf = self.directory / "nginx.conf"
        (self.directory / "slow").write_text("slow" * 10_000)
        names = {"host": HOST, "port": self.port, "directory": self.directory, "requests": self._requests}
        conf.write_text(_CONF.format(**names, temporary=_TEMPORARY, tls=self._tls()))
        return [program, "-p", str(self.directory), "-c", str(conf), "-e", "stderr"]

    def _tls(self) -> str:
        if self._certificate is None:
            return ";"
        path = self.directory / "certificate.pem"
        self._certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
        return f" ssl; ssl_certificate {path}; ssl_certificate_key {path};"

    def _is_answering(self) -> bool:
        return accepts(self)


_TEMPORARY = "".join(
    f"    {what}_temp_path temporary;\n" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
# One process: it is paused and killed as a whole, and does not outlive the tests.
_CONF = """\
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
{temporary}
    keepalive_requests {requests};
    server {{
        listen {host}:{port}{tls}
        root {directory};
        default_type text/plain;
        if (-f $document_root/unavailable) {{ return 503; }}
        location = / {{ return 200 ""; }}
        location = /echo {{ return 200 "$arg_token"; }}
        location = /slow {{ limit_rate 1000; }}
        location = /host {{ return 200 "$http_host"; }}
    }}
}}
"""
