import pytest

from tests.recipes.five import FiveScenes


@pytest.mark.extra_recipe
class TestIMAP(FiveScenes):
    recipe = "imap"
    programs = ("dovecot",)

    def test_a_session_that_is_in_idle_is_not_lent_again(self):
        self.play("idling")

    def test_a_session_with_an_open_folder_is_not_lent_again(self):
        self.play("folders")

    def test_the_certificate_has_to_have_the_name_of_the_endpoint(self):
        self.play("names")
