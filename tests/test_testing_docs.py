"""The page about testing is a file for pytest, and its tests pass."""

from __future__ import annotations

import sys

from gevent import subprocess

from tests.documents import ROOT, blocks
from tests.servers import die_with_parent
from tests.test_readme import DOCUMENTS


def test_the_examples_of_the_page_pass_as_one_file(tmp_path, tcp_server):
    source = "\n".join(source for _, source in blocks(DOCUMENTS["testing.rst"].read_text()))
    source = source.replace('"127.0.0.1", 6379', str(tcp_server.address)[1:-1])
    assert ", 6379" not in source
    (tmp_path / "test_failover.py").write_text(source)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "error"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, preexec_fn=die_with_parent,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout
    assert f"\n{source.count('def test_') + 3} passed in " in done.stdout, done.stdout
