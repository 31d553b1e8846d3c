"""The status page in a real browser, Chromium: what it logs, requests, computes and lays out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer

from geventconnpool import ConnectionPool
from geventconnpool.status import StatusApp, _html
from tests.browser import PROGRAMS, Browser
from tests.servers import require, wait_until
from tests.status_scene import incident

pytestmark = pytest.mark.bound(150)  # a browser on a busy machine
PHONE, DESK = (360, 740), (1280, 800)

# Elements with text of their own whose contrast with the nearest ground that is painted is below 4.5 (WCAG 2.2, 1.4.3).
PALE = """
    const channel = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const rgb = color => color.match(/[\\d.]+/g).map(Number);
    const luminance = color => {
        const [r, g, b] = rgb(color).map(c => channel(c / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = element => {
        const color = getComputedStyle(element).backgroundColor;
        return rgb(color)[3] === 0 ? ground(element.parentElement) : color;
    };
    const texts = [...document.body.querySelectorAll('*')].filter(
        element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    );
    const contrast = element => {
        const [dark, light] = [getComputedStyle(element).color, ground(element)].map(luminance).sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    return [texts.length, Math.min(...texts.map(contrast)),
            texts.filter(element => contrast(element) < 4.5).map(element => element.outerHTML)];
"""
# How far the page, and each of its parts, goes beyond the right edge of the screen.
OVERHANG = """
    const width = document.documentElement.clientWidth;
    const parts = [document.documentElement, ...document.body.querySelectorAll('*')].filter(
        element => !element.closest('thead') && element.getBoundingClientRect().right > width + 0.5
    );
    return [width, document.documentElement.scrollWidth, parts.map(element => element.outerHTML.slice(0, 200))];
"""


class Quiet(ConnectionPool[object]):
    def _new_connection(self) -> object:
        return object()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    for program in PROGRAMS:
        require(program)
    with Browser() as browser:
        yield browser


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[WSGIServer] = []

    def start(application: Any) -> str:
        servers.append(WSGIServer(("127.0.0.1", 0), application, log=None, error_log=None))
        servers[-1].start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.stop()


def fixed(report: Any) -> Any:
    """Return an application that shows a report that is made up."""

    def application(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html"), ("Content-Security-Policy", _html.POLICY)])
        return [_html.render(report).encode()]

    return application


def test_the_page_needs_nothing_from_elsewhere_and_breaks_no_rule(browser, serve):
    with Quiet(2, name="<script>document.title = 'hacked'</script>") as pool:
        url = serve(StatusApp(pool)) + "/internal/pools"
        browser.show(*DESK)
        browser.log(), browser.requests()

        browser.open(url)

        assert browser.run("return document.title") == "Connection pools"
        assert browser.run("return document.scripts.length") == 0
        assert browser.run("return document.querySelector('tbody th').textContent").startswith("<script>")
        assert browser.run("return getComputedStyle(document.querySelector('.badge')).fontWeight") == "600"  # styled
        assert browser.log() == []
        assert browser.requests() == [url]


def test_a_violation_would_have_been_seen(browser, serve):
    asked: list[str] = []

    def careless(environ, start_response):
        asked.append(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Type", "text/html"), ("Content-Security-Policy", _html.POLICY)])
        return [b"<!DOCTYPE html><p style='color: red'>a<script>document.title = 'b'</script><img src=/c.png>"]

    url = serve(careless)
    browser.log(), browser.requests()

    browser.open(url)

    violations = [entry for entry in browser.log() if "Content Security Policy" in entry]
    assert len(violations) == 3
    assert url + "/c.png" in browser.requests()
    assert asked == ["/"]
    assert browser.run("return document.title") == ""


def test_links_stay_where_the_page_is_mounted(browser, serve):
    with Quiet(2, name="quiet") as pool:
        url = serve(StatusApp(pool)) + "/any/prefix"
        browser.open(url)

        links = browser.run("return [...document.links].map(link => link.href)")

        assert links == [f"{url}?refresh=5", f"{url}?format=json", f"{url}?format=text"]


def test_the_page_is_loaded_again_only_if_it_was_asked_to(browser, serve):
    with Quiet(2, name="quiet") as pool:
        url = serve(StatusApp(pool)) + "/?refresh=1"
        browser.requests()

        browser.open(url)

        loads: list[str] = []
        wait_until(lambda: loads.extend(browser.requests()) or loads.count(url) >= 2, 60, "the page, again")
        browser.open("about:blank")
        assert browser.log() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_every_text_can_be_read(browser, serve, scheme, size):
    browser.show(*size, scheme)
    browser.open(serve(fixed(incident())))

    texts, least, pale = browser.run(PALE)

    assert pale == []
    assert texts > 100
    assert 4.5 <= least < 21
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 24, 26)"}[scheme]


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1089, 1280])
def test_nobody_has_to_scroll_sideways(browser, serve, width):
    browser.show(width, 740)
    browser.open(serve(fixed(incident())))

    assert browser.run(OVERHANG) == [width, width, []]


def test_not_even_for_names_and_errors_without_a_place_to_break(browser, serve):
    with Quiet(2, name="x" * 400) as pool:
        browser.show(*PHONE)
        browser.open(serve(StatusApp(pool)))

        assert browser.run(OVERHANG) == [360, 360, []]


def test_on_a_phone_each_number_has_its_name(browser, serve):
    browser.show(*PHONE)
    browser.open(serve(fixed(incident())))

    names = browser.run(
        "return [...document.querySelectorAll('tbody.endpoint')[0].querySelectorAll('td.n')]"
        ".filter(cell => cell.offsetParent).map(cell => getComputedStyle(cell, '::before').content)"
    )

    assert names == [
        *('"Since"', '"In flight"', '"Idle"', '"Waiting"', '"Latency"'),
        *('"OK"', '"Failed"', '"Interrupted"', '"Ejections"'),
    ]


def test_a_state_is_told_by_a_word_and_a_sign_besides_its_colour(browser, serve):
    browser.show(*DESK)
    browser.open(serve(fixed(incident())))

    badges = browser.run(
        "return [...document.querySelectorAll('.endpoint .badge')]"
        ".map(badge => [badge.textContent, getComputedStyle(badge, '::before').content, getComputedStyle(badge).color])"
    )

    assert [badge[0] for badge in badges] == ["active", "active", "ejected", "draining", "active", "active"]
    assert len({tuple(badge) for badge in badges}) == 3
    assert len({badge[1] for badge in badges}) == 3


def test_numbers_of_a_column_end_at_one_edge(browser, serve):
    browser.show(*DESK)
    browser.open(serve(fixed(incident())))

    edges = browser.run("""
        const range = document.createRange();
        return [...document.querySelectorAll('td[data-label="OK"]')].map(cell => {
            range.selectNodeContents(cell);
            return Math.round(range.getBoundingClientRect().right);
        });
    """)

    assert len(edges) == 9
    assert len(set(edges)) == 1
