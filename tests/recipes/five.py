"""What pytest does with a recipe: it has a process of its own play each scene."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from tests.servers import require

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 120  # seconds


class Playing:
    """Derive to have scenes of a recipe played. ``programs`` are the servers it needs, ``modules`` the clients."""

    recipe: ClassVar[str]
    programs: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture(autouse=True)
    def _tell(self, record_property):
        self._record = record_property
        self._record("recipe", {"recipe": self.recipe})
        for program in self.programs:
            require(program)
        for module in self.modules:
            require_module(module)

    def play(self, scene: str, *options: str) -> None:
        played = subprocess.run(
            [sys.executable, "-m", "tests.recipes.run", self.recipe, scene, *options],
            cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        print(played.stdout, played.stderr)

        assert played.returncode == 0, played.stderr
        assert "Traceback" not in played.stderr  # of a greenlet that nobody waits for
        self._record("recipe", json.loads(played.stdout.splitlines()[-1]))


class FiveScenes(Playing):
    """Derive to have the five scenes played."""

    def test_each_caller_gets_the_reply_to_its_own_call(self):
        self.play("healthy")

    def test_nobody_gets_the_reply_to_a_call_that_was_interrupted(self):
        self.play("interrupted")

    def test_a_connection_that_the_server_closed_while_it_was_idle_is_not_handed_out(self):
        self.play("dropped")

    def test_a_refused_connect_is_the_cause_of_the_timeout_and_the_server_may_come_back(self):
        self.play("refused")

    def test_retry_hides_that_one_of_two_servers_dies(self):
        self.play("failover")


def require_module(name: str) -> None:
    """Skip the test if a client is not installed. With CI=true it fails instead."""
    if importlib.util.find_spec(name) is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"the Python module {name} is not installed")
    pytest.skip(f"the Python module {name} is not installed")


class HTTPScenes(FiveScenes):
    """The five, and those of every HTTP client, against nginx."""

    programs = ("nginx",)

    def test_a_connection_is_not_reused_when_the_block_hides_that_it_was_interrupted(self):
        self.play("swallowed")

    def test_a_response_that_was_left_unread_is_not_handed_on(self):
        self.play("unread")

    def test_a_body_that_ends_too_early_is_a_connection_error(self):
        self.play("cut_off")

    def test_a_server_that_says_503_is_not_asked_while_another_can_serve(self):
        self.play("unavailable")

    def test_a_connection_that_ends_with_its_response_is_replaced(self):
        self.play("last_request")

    def test_an_error_that_is_an_answer_leaves_the_connection_in_the_pool(self):
        self.play("answered")

    def test_the_servers_of_a_service_are_asked_for_its_domain(self):
        self.play("host_header")

    def test_the_servers_of_a_service_need_a_certificate_for_its_domain(self):
        self.play("https")
