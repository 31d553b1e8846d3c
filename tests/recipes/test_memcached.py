import pytest

from tests.recipes.five import FiveScenes


@pytest.mark.extra_recipe
class TestMemcached(FiveScenes):
    recipe = "memcached"
    programs = ("memcached",)
    modules = ("pymemcache",)

    def test_an_interrupted_get_would_make_the_next_one_a_key_error(self):
        self.play("strangers_value")

    def test_a_client_that_has_closed_its_socket_is_replaced(self):
        self.play("closed_by_the_client")
