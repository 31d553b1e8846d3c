"""The documentation as a whole: it can be built without a warning, and says all there is to be said."""

from __future__ import annotations

import ast
import importlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import geventconnpool
from geventconnpool import _log, _retry, events

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "geventconnpool"


def require(package: str) -> None:
    """Skip the test if ``package`` is not installed; with CI=true fail instead."""
    if find_spec(package) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{package} is not installed")
        pytest.skip(f"{package} is not installed")


# -- Sphinx ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the directory of the built pages, and what Sphinx said."""
    for package in ("sphinx", "furo"):
        require(package)
    target = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(target)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=150)
    return target, run.returncode, run.stdout + run.stderr


@pytest.mark.bound(180)
def test_the_pages_are_built_without_a_warning(built):
    _, code, said = built

    assert (code, said) == (0, "")


@pytest.mark.bound(180)
def test_every_link_between_pages_leads_to_a_place_that_is_there(built):
    html, _, _ = built
    pages = {path.relative_to(html).as_posix(): path.read_text() for path in html.rglob("*.html")}
    places = {name: {"", *re.findall(r'\bid="([^"]+)"', page)} for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        for link in re.findall(r'href="(?!https?:|mailto:|data:)([^"]+)"', page):
            path, _, place = re.sub(r"\?[^#]*", "", link).partition("#")
            target = (html / name).parent / path if path else html / name
            found = os.path.relpath(target, html)
            if not target.exists() or (found in places and place not in places[found]):
                broken.append((name, link))

    assert "reference.html" in pages
    assert broken == []


@pytest.mark.bound(180)
def test_no_page_shows_an_error_to_its_readers(built):
    html, _, _ = built
    # Of what Sphinx has nothing against the theme has, and says so on the page.
    wrong = [path.name for path in html.rglob("*.html") if re.search(r"ERROR: |system-message", path.read_text())]

    assert wrong == []


@pytest.fixture(scope="module")
def described(built):
    """Return the full names of all that the pages describe."""
    html, _, _ = built
    inventory = importlib.import_module("sphinx.util.inventory").InventoryFile
    with (html / "objects.inv").open("rb") as file:
        entries = inventory.load(file, "", lambda uri, name: name)
    return {name for kind, names in entries.items() if kind.startswith("py:") for name in names}


MODULES = ("geventconnpool", "geventconnpool.cluster", "geventconnpool.events", "geventconnpool.testing")


def public_names(module: str) -> Iterator[tuple[str, object]]:
    """Yield what is public in a module: what ``__all__`` says or, without one, what is made there."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None) or [
        name for name, value in vars(loaded).items() if getattr(value, "__module__", None) == module
    ]
    yield from ((name, getattr(loaded, name)) for name in names if not name.startswith("_"))


@pytest.mark.bound(180)
@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module, described):
    names = dict(public_names(module))
    missing = {name for name, value in names.items() if not _is_described(module, name, value, described)}

    assert names
    assert missing == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_that_can_have_a_docstring_has_one_of_its_own(module):
    kinds = {name: value for name, value in public_names(module) if callable(value) and hasattr(value, "__module__")}
    ours = {name: value for name, value in kinds.items() if value.__module__.startswith("geventconnpool")}
    # dataclass() writes one itself, which is the signature.
    mute = {name for name, value in ours.items() if not value.__doc__ or value.__doc__.startswith(f"{name}(")}

    assert ours
    assert mute == set()


def _is_described(module, name, value, described):
    # The same under another public name will do: ClusterPool is both geventconnpool's and geventconnpool.cluster's.
    homes = [other for other in MODULES if getattr(importlib.import_module(other), name, None) is value]
    return any(f"{home}.{name}" in described for home in (module, *homes))


HOOKS = {"_new_connection", "_keepalive", "_close_connection", "_abort_connection", "_is_connection_error"}
HOOKS |= {"_is_reusable", "_fileno"}


@pytest.mark.bound(180)
@pytest.mark.parametrize(
    ("name", "hooks"),
    [
        ("geventconnpool.ConnectionPool", HOOKS),
        ("geventconnpool.ClusterPool", {"_new_connection"}),
        ("geventconnpool.RetryBudget", set()),
        ("geventconnpool.cluster.DNSResolver", set()),
        ("geventconnpool.testing.DNSServer", set()),
    ],
)
def test_every_public_method_is_in_the_reference(name, hooks, described):
    module, _, last = name.rpartition(".")
    kind = getattr(importlib.import_module(module), last)
    ours = [base for base in kind.__mro__ if base.__module__.startswith("geventconnpool")]
    methods = {key for base in ours for key, value in vars(base).items() if not key.startswith("_") and _is_code(value)}
    # What both kinds of pool have is described once.
    homes = [name, "geventconnpool.ConnectionPool"] if kind is geventconnpool.ClusterPool else [name]
    missing = {method for method in methods | hooks if not described & {f"{home}.{method}" for home in homes}}

    assert methods
    assert missing == set()


def _is_code(value):
    return isinstance(value, property) or (callable(value) and not isinstance(value, type))


# -- log lines and events ----------------------------------------------------------------------------------------------


def without_formats(text: str) -> str:
    """Return the first line of a text to be filled in, its fields by their names only."""
    return re.sub(r"\{(\w+)[^}]*\}", r"{\1}", text.partition("\n")[0])


def rows_of_the_page() -> set[tuple[str, str, str, str | None]]:
    page = (DOCS / "log-lines.rst").read_text()
    found: set[tuple[str, str, str, str | None]] = set()
    sections = re.split(r"^(geventconnpool\.\w+)\n-+\n", page, flags=re.MULTILINE)
    row = re.compile(
        r"^   \* - ``(.+)``\n\n       ([A-Z]+), (?:no event|:class:`~geventconnpool\.events\.(\w+)`)$", re.M
    )
    for logger, text in zip(sections[1::2], sections[2::2], strict=True):
        found.update((logger, line, level, event or None) for line, level, event in row.findall(text))
    return found


def rows_of_the_source() -> set[tuple[str, str, str, str | None]]:
    """Return the lines that are written in the package, but for the demonstration, which is a program."""
    told: set[tuple[str, str, str, str | None]] = {
        (log.name, without_formats(text), logging.getLevelName(level), event)
        for event, (log, level, text) in _log._LINES.items()
    }
    # What stands in LogWriter for what an event turns out to be.
    told |= {
        ("geventconnpool.pool", "connects again, in {seconds} s", "INFO", "ConnectionOpened"),
        ("geventconnpool.discovery", "discovery is {state}: {outcome}", "INFO", "DiscoveryChanged"),
    }
    for message in (_retry.RETRY_MESSAGE, _retry.FAILURE_MESSAGE):
        told.add(("geventconnpool.retry", without_formats(message), "DEBUG", None))
    return told | {
        ("geventconnpool.pool", "{consumer} is too slow, {count} events dropped", "WARNING", None),
        ("geventconnpool.pool", "{consumer} raised for {event}", "ERROR", None),
    }


def test_every_log_line_is_explained_and_no_other():
    assert rows_of_the_page() == rows_of_the_source()


def test_every_event_is_explained():
    kinds = {
        kind.__name__ for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)
    }

    assert {event for _, _, _, event in rows_of_the_page()} - {None} == kinds - {"Event"}
    assert kinds <= set(events.__all__)


def texts_in(tree: ast.AST) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = ast.unparse(node.func.value).rpartition(".")[2]
                if of in {"log", "logger", "_log", "_pool", "_cluster", "_discovery", "logging"}:
                    yield path.name, node


def _writes(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in WRITES


def _place_of_text(call: ast.Call) -> int:
    return -1 if ast.unparse(call.func).endswith(".log") else 0


WRITES = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def test_the_source_writes_to_the_log_where_this_test_looks():
    written = {(name, ast.unparse(call.args[_place_of_text(call)])) for name, call in log_calls() if _writes(call)}

    assert written == {
        ("_engine.py", "'%s: %s raised for %r'"),
        ("_engine.py", "'%s: %s is too slow, %d events dropped'"),
        ("_log.py", "text.format(**fields)"),
        ("_retry.py", "message"),
    }


def test_the_texts_of_a_log_writer_are_those_this_test_knows():
    (writer,) = [
        node
        for node in ast.parse((PACKAGE / "_log.py").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "LogWriter"
    ]
    texts = {without_formats(text) for text in texts_in(writer) if re.search(r"\w \{", text)}

    assert texts == {"connects again, in {seconds} s", "discovery is {state}: {outcome}"}


# -- single pages ------------------------------------------------------------------------------------------------------


def test_the_modules_that_the_design_notes_name_are_there():
    page = (DOCS / "design-notes.rst").read_text()
    table, _, _ = page.partition("A connection is handed over")
    named = set(re.findall(r"``((?:cluster/)?_?[a-z]+)``[:,]", table))
    missing = {name for name in named if not (PACKAGE / f"{name}.py").exists()}

    assert len(named) >= 25
    assert missing == set()


def test_the_readme_is_rendered_without_a_warning():
    require("docutils")
    publish_parts = importlib.import_module("docutils.core").publish_parts
    # What PyPI refuses is an error here: nothing may be read from files, no raw HTML, no warning.
    said: list[str] = []
    stream = type("Stream", (), {"write": lambda _self, text: said.append(text)})()
    settings = {
        "warning_stream": stream,
        "report_level": 1,
        "file_insertion_enabled": False,
        "raw_enabled": False,
    }
    html = publish_parts((ROOT / "README.rst").read_text(), writer="html5", settings_overrides=settings)["html_body"]

    assert "When not to use it" in html
    assert said == []


def test_code_in_the_pages_is_in_blocks_that_are_run():
    """What looks like Python stands in a block that ``test_readme`` runs; other blocks are what programs print."""
    suspicious = []
    for path in (ROOT / "README.rst", *sorted(DOCS.rglob("*.rst"))):
        lines = path.read_text().splitlines()
        language = None
        for number, line in enumerate(lines, 1):
            directive = re.match(r"\s*\.\. (code|code-block|sourcecode|literalinclude|doctest)::\s*(\S*)", line)
            if directive:
                language = directive[2]
            elif line and not line.startswith(" "):
                language = None
            looks_like_python = re.match(r" +(from \S+ import \w|import \w+$|(def|class|with) .*:$|>>> )", line)
            if looks_like_python and language != "python":
                suspicious.append((path.name, number, line))

    assert suspicious == []
