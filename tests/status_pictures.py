"""The pictures of docs/status-page.rst: the page as it is, on a day when not all is well.

    python -m tests.status_pictures

Needs Chromium, chromedriver and the font Roboto (Debian: fonts-roboto-unhinted; another would do, but change the
pictures). What is on the page is made up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from gevent.pywsgi import WSGIServer

from geventconnpool.status import _html
from tests.browser import Browser
from tests.status_scene import incident

DIRECTORY = Path(__file__).parent.parent / "docs" / "screenshots"
LARGEST = 150_000  # bytes
SCREENS: tuple[tuple[str, int, int, Literal["light", "dark"]], ...] = (
    ("light", 1280, 780, "light"),
    ("dark", 1280, 780, "dark"),
    ("narrow", 390, 1240, "light"),
)


def page(_environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/html"), ("Content-Security-Policy", _html.POLICY)])
    return [_html.render(incident()).encode()]


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    server = WSGIServer(("127.0.0.1", 0), page, log=None)
    server.start()
    with Browser() as browser:
        for name, width, height, scheme in SCREENS:
            browser.show(width, height, scheme)
            browser.open(f"http://127.0.0.1:{server.server_port}/")
            picture = browser.screenshot()
            (DIRECTORY / f"status-{name}.png").write_bytes(picture)
            print(f"status-{name}.png: {len(picture):,} bytes")
            assert len(picture) < LARGEST
    server.stop()


if __name__ == "__main__":
    main()
