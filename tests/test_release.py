"""What has to agree before anything is released; ``make dist`` builds it and tries it out."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

import geventconnpool
from tests.release import SOURCES, check_names, version

ROOT = Path(__file__).parent.parent


def test_the_version_is_a_literal_that_the_build_can_read_without_importing_anything():
    assert version() == geventconnpool.__version__


def test_the_changes_begin_with_this_version():
    headings = re.findall(r"^(\d\S+) \(.+\)\n-+$", (ROOT / "docs/changes.rst").read_text(), re.MULTILINE)

    assert headings[0] == geventconnpool.__version__


@pytest.mark.parametrize("name", SOURCES)
def test_what_has_to_be_in_the_source_distribution_is_there(name):
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("name", ["docs/__pycache__/conf.pyc", "dist/a.whl", "tests/apps/__pycache__/x.pyc", "a.so"])
def test_what_has_been_made_is_no_source(name):
    with pytest.raises(AssertionError):
        check_names([PurePosixPath("README.rst"), PurePosixPath(name)])
