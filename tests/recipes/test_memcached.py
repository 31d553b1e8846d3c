import pytest

from tests.recipes.five import FiveScenes


@pytest.mark.extra_recipe
class TestMemcached(FiveScenes):
    recipe = "memcached"
    programs = ("memcached",)
    modules = ("pymemcache",)

    def test_a_client_used_on_after_an_interruption_raises_key_error_or_unknown_error(self):
        self.play("strangers_value")

    def test_a_connection_that_the_server_has_closed_is_given_up(self):
        self.play("closed_by_the_server")

    def test_a_client_that_has_closed_its_socket_is_replaced(self):
        self.play("closed_by_the_client")
