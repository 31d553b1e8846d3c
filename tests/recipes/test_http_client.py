import pytest

from tests.recipes.five import HTTPScenes


class TestHTTPClient(HTTPScenes):
    recipe = "http_client"

    @pytest.mark.parametrize("scene", ["healthy", "interrupted"])
    def test_it_needs_no_patching(self, scene):
        self.play(scene, "unpatched")

    def test_a_connection_that_is_closed_does_not_connect_by_itself(self):
        self.play("second_request")
