import pytest

from tests.recipes.five import FiveScenes


@pytest.mark.extra_recipe
class TestMySQL(FiveScenes):
    recipe = "mysql"
    programs = ("mariadbd",)
    modules = ("pymysql",)

    def test_a_connection_that_is_in_a_transaction_is_not_lent_again(self):
        self.play("transactions")

    def test_only_some_operational_errors_are_connection_errors(self):
        self.play("errors_by_code")

    def test_the_certificate_has_to_have_the_name_of_the_endpoint(self):
        self.play("names")
