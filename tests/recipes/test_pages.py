"""The pages of docs/recipes/ answer the same five questions, and their code is that of the recipe that is tested."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recipes.description import RECIPES

HERE = Path(__file__).parent
PAGES = {path.stem: path for path in sorted(RECIPES.glob("*.rst")) if path.stem != "index"}
PARTS = ["Make one", "Errors", "Keepalive", "Close", "Reusable?"]
TITLE = re.compile(r"^(.+)\n-{3,}$", re.MULTILINE)
INCLUDE = re.compile(r"^\.\. literalinclude:: (.*)\n((?: {3}:.*\n)*)", re.MULTILINE)
OPTION = re.compile(r" {3}:([a-z-]+): *(.*)")


def includes(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file, options) of each literalinclude."""
    for file, options in INCLUDE.findall(text):
        yield file, dict(OPTION.findall(options))


def objects(source: str) -> Iterator[str]:
    """Yield the names that :pyobject: may have."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
            inside = (one for one in ast.iter_child_nodes(node) if isinstance(one, ast.FunctionDef))
            yield from (f"{node.name}.{one.name}" for one in inside)


def test_every_recipe_has_its_page_and_its_scenes():
    names = {path.stem for path in RECIPES.glob("*.py")}

    assert set(PAGES) == names
    assert all((HERE / f"{name}.py").exists() and (HERE / f"test_{name}.py").exists() for name in names)
    assert names >= {"raw_sockets", "tls", "redis_py", "memcached", "http_client", "urllib3_http"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_answers_the_five_questions_in_order_and_shows_the_whole_file(name):
    text = PAGES[name].read_text()

    titles = TITLE.findall(text)
    assert (titles[:5], titles[-1]) == (PARTS, "All of it")
    assert list(includes(text))[-1] == (f"{name}.py", {})


@pytest.mark.parametrize("name", PAGES)
def test_all_code_on_a_page_is_that_of_its_recipe(name):
    text = PAGES[name].read_text()
    source = (RECIPES / f"{name}.py").read_text()

    assert "code-block" not in text
    for file, options in includes(text):
        assert file == f"{name}.py"
        assert set(options) <= {"pyobject", "start-at", "end-at", "end-before", "dedent"}
        assert options.get("pyobject") in {None, *objects(source)}
        assert all(options[key] in source for key in {"start-at", "end-at", "end-before"} & set(options))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_it_ran_against(name):
    assert re.search(r"^Ran with .*\d+\.\d+", PAGES[name].read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["index", *PAGES])
def test_links_of_a_page_lead_somewhere(name):
    text = (RECIPES / f"{name}.rst").read_text()

    for target in re.findall(r":doc:`([^`]+)`", text):
        base = RECIPES.parent if target.startswith("/") else RECIPES
        assert (base / f"{target.lstrip('/')}.rst").exists()
