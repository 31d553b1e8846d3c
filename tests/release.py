"""Is what is released what was meant? ``python -m tests.release dist``, after ``python -m build`` (``make dist``).

Looks into the wheel and the source distribution, then does with each what a new user does: an empty environment, pip,
the first programs of README.rst. There is no compiler on the way, and no package is built but this one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath
from shutil import which
from time import monotonic
from zipfile import ZipFile

from tests.documents import ROOT, blocks

CACHES = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".venv", "build", "dist"}
SOURCES = (
    *("Makefile", "README.rst", "CONTRIBUTING.rst", "LICENSE"),
    *("pyproject.toml", "hatch_build.py", "docs/index.rst"),
)
NEEDED = ["dnspython", "gevent"]
LENIENT = 300.0  # seconds for a command: pip may have to fetch

# The programs after the first talk to a server: here is one.
SERVER = """\
from gevent.server import StreamServer

def _answer(connection, _address):
    for _line in connection.makefile("rb"):
        connection.sendall(b"PONG\\n")

_server = StreamServer(("127.0.0.1", 0), _answer)
_server.start()
"""
WHERE, HERE = '("test.example.org", 2485)', "_server.address"
FIRST_PROGRAMS = 4  # the one with servers of its own; those of a pool of one endpoint
WHERE_FROM = "import geventconnpool as _package; print(_package.__file__, _package.__version__)\n"


def version() -> str:
    """Return what the package says it is."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "geventconnpool/__init__.py").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def one_of(directory: Path, pattern: str) -> Path:
    """Return the only file there that ``pattern`` matches; it has the version of the package in its name."""
    files = list(directory.glob(pattern))
    assert len(files) == 1, f"{pattern} matches {files}"
    assert f"-{version()}" in files[0].name, f"{files[0].name} is not of {version()}"
    return files[0]


def look_into_wheel(path: Path) -> None:
    with ZipFile(path) as wheel:
        names = {name: wheel.read(name) for name in wheel.namelist()}
    metadata = Parser().parsestr(next(text for name, text in names.items() if name.endswith("/METADATA")).decode())
    packaged = {name for name in names if ".dist-info/" not in name}

    assert packaged == {str(file.relative_to(ROOT)) for file in package_files()}, packaged
    assert "geventconnpool/py.typed" in packaged
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    check_metadata(metadata)
    print(f"{path.name}: {path.stat().st_size:,} bytes, {len(names)} files, {sum(map(len, names.values())):,} unpacked")


def package_files() -> list[Path]:
    return [f for f in (ROOT / "geventconnpool").rglob("*") if f.is_file() and "__pycache__" not in f.parts]


def check_metadata(metadata: Message) -> None:
    """The index shows what it should, no link leads to a file that is not there, and there is no third dependency."""
    text = str(metadata.get_payload())
    needed = [str(line) for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]

    assert metadata["Version"] == version()
    assert metadata["License-Expression"] == "MIT"
    assert sorted(re.split(r"[<>=!~ ]", line)[0] for line in needed) == NEEDED
    assert text.lstrip().startswith("geventconnpool\n====")
    assert [link for link in re.findall(r"<([^<>\s]+)>`_", text) if not link.startswith("https://")] == []
    assert "docs/tutorial.rst" in text


def look_into_source(path: Path) -> None:
    with tarfile.open(path) as archive:
        names = [PurePosixPath(*PurePosixPath(member.name).parts[1:]) for member in archive if member.isfile()]

    check_names(names)
    assert {*map(PurePosixPath, SOURCES)} <= {*names}
    assert {PurePosixPath(file.relative_to(ROOT)) for file in package_files()} <= {*names}
    print(f"{path.name}: {path.stat().st_size:,} bytes, {len(names)} files")


def check_names(names: Iterable[PurePosixPath]) -> None:
    bad = [name for name in names if CACHES & {*name.parts} or name.suffix in (".pyc", ".so")]
    assert bad == []


class NewUser:
    """An empty environment in a directory of its own, from which no compiler can be found."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.python = directory / "env/bin/python"
        empty = directory / "empty"
        empty.mkdir()
        self.environ = {**os.environ, "PATH": str(empty), "CC": "false", "PYTHONPATH": ""}
        assert not any(which(compiler, path=str(empty)) for compiler in ("cc", "gcc", "clang"))
        venv.create(directory / "env", with_pip=False)  # Debian's python3 lacks ensurepip

    def install(self, what: Path) -> float:
        began = monotonic()
        self.run(sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet",
                 "--only-binary", "gevent,dnspython,greenlet,zope.interface,zope.event", what)  # fmt: skip
        return monotonic() - began

    def run_program(self, name: str, source: str) -> tuple[float, str]:
        """Run it away from the checkout; return how many seconds it took, and what it printed."""
        (self.directory / name).write_text(source)
        began = monotonic()
        output = self.run(self.python, "-I", self.directory / name)
        return monotonic() - began, output

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=self.directory, env=self.environ, capture_output=True, text=True, timeout=LENIENT, check=False
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def tell_size(self) -> None:
        packages = next(self.directory.glob("env/lib/python*/site-packages"))
        found = sorted(path.name.partition("-")[0] for path in packages.glob("*.dist-info"))
        files = [file for file in packages.rglob("*") if file.is_file()]
        ours = [file for file in files if file.relative_to(packages).parts[0].startswith("geventconnpool")]
        print(f"  packages: {', '.join(found)}")
        print(f"  site-packages: {size(files):,} bytes, {size(ours):,} of them ours, compiled files included")


def size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def try_out(what: Path) -> None:
    """Do what the README says, from nothing to the last of its first programs."""
    first, *others = [source for _, source in blocks((ROOT / "README.rst").read_text())][:FIRST_PROGRAMS]
    rest = "".join(others)
    assert WHERE in rest
    with tempfile.TemporaryDirectory() as directory:
        began = monotonic()
        user = NewUser(Path(directory))
        installing = user.install(what)
        running, answers = user.run_program("first.py", first + "\n" + WHERE_FROM)
        total = monotonic() - began
        user.run_program("others.py", SERVER + rest.replace(WHERE, HERE))

        *counts, where_from = answers.splitlines()
        assert where_from.startswith(str(user.directory / "env")), where_from
        assert where_from.endswith(version()), where_from
        assert ["one" in line for line in counts] == [True, False]
        print(f"{what.name}: installed in {installing:.1f} s, first program done in {running:.1f} s")
        print(f"  from nothing to balanced calls: {total:.1f} s; it printed {' and '.join(counts)}")
        user.tell_size()


def main() -> None:
    directory = Path(sys.argv[1]).resolve()
    wheel, source = one_of(directory, "*.whl"), one_of(directory, "*.tar.gz")
    look_into_wheel(wheel)
    look_into_source(source)
    for what in (wheel, source):
        try_out(what)


if __name__ == "__main__":
    main()
