import pytest

from tests.recipes.five import FiveScenes


class TestRawSockets(FiveScenes):
    recipe = "raw_sockets"

    @pytest.mark.parametrize("scene", ["healthy", "interrupted"])
    def test_it_needs_no_patching(self, scene):
        self.play(scene, "unpatched")

    def test_a_connection_is_not_reused_when_the_block_hides_that_it_was_interrupted(self):
        self.play("swallowed")
