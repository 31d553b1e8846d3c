"""A real browser for the tests: Chromium without a window, told what to do through chromedriver (W3C WebDriver).

It asks nobody but whom it is told to, and takes everything it has written with it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Literal, Self

import gevent
from gevent import socket

from tests.servers import die_with_parent, find, wait_until

PROGRAMS = ("chromium", "chromedriver")
PATIENCE = 60.0  # seconds: a browser that starts beside other tests on two cores takes its time
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--disable-lcd-text",  # coloured fringes make pictures larger
)


class Connection(HTTPConnection):
    """One that lets other greenlets run, among which may be the server."""

    def connect(self) -> None:
        self.sock = socket.create_connection((self.host, self.port), PATIENCE)


class Browser:
    """A browser with one page. What a page logs, requests and violates is remembered until asked for."""

    def __init__(self) -> None:
        self._port = 0
        self._session = ""  # its path

    def __enter__(self) -> Self:
        self._directory = tempfile.mkdtemp(prefix="test-chromium-")
        log = Path(self._directory, "log")
        with log.open("wb") as output:
            self._driver = subprocess.Popen(
                [find("chromedriver") or "chromedriver", "--port=0"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self._directory,
                env={**os.environ, "HOME": self._directory}, preexec_fn=die_with_parent, process_group=0,
            )  # fmt: skip
        try:
            port = wait_until(
                lambda: re.search(r"started successfully on port (\d+)", log.read_text()), PATIENCE, "chromedriver"
            )
            self._port = int(port[1])
            self._session = f"/session/{self._ask('POST', '/session', self._wishes())['sessionId']}"
            self.open("about:blank")  # instead of the page that new windows have
            self.log(), self.requests()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc_info: object) -> None:
        with contextlib.suppress(Exception):
            self._ask("DELETE", "")  # ends the browser
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def show(self, width: int, height: int, scheme: Literal["light", "dark"] = "light") -> None:
        """Have a screen of so many CSS pixels, and a user who prefers that scheme."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", screen)
        preference = {"name": "prefers-color-scheme", "value": scheme}
        self._devtools("Emulation.setEmulatedMedia", {"features": [preference]})

    def open(self, url: str) -> None:
        """Load a page, to the end."""
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Return what the body of a function returns that runs in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def log(self) -> list[str]:
        """Return what the console of the page has been told since the last call, violations of its policy included."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def screenshot(self) -> bytes:
        """Return the screen as PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def _wishes(self) -> dict[str, Any]:
        options = {
            "binary": find("chromium"),
            "args": [*OPTIONS, f"--user-data-dir={self._directory}/profile"],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        return {"capabilities": {"alwaysMatch": wanted}}

    def _devtools(self, command: str, parameters: dict[str, Any]) -> None:
        self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = Connection("127.0.0.1", self._port)
        with gevent.Timeout(PATIENCE), contextlib.closing(connection):
            connection.request(
                method,
                self._session + path,
                None if body is None else json.dumps(body),
                {"Content-Type": "application/json"},
            )
            value = json.loads(connection.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{value['error']}: {value['message']}")
        return value
