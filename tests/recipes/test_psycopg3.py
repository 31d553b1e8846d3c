from tests.recipes.five import FiveScenes


class TestPsycopg3(FiveScenes):
    recipe = "psycopg3"
    programs = ("postgres",)
    modules = ("psycopg",)

    def test_what_an_interrupted_call_has_asked_for_does_not_go_on_at_the_server(self):
        self.play("cancelled")

    def test_a_connection_that_is_in_a_transaction_is_not_lent_again(self):
        self.play("in_transaction")

    def test_an_error_of_a_statement_breaks_no_connection(self):
        self.play("errors_of_statements")

    def test_reads_go_to_the_replica_and_while_it_is_away_to_the_primary(self):
        self.play("replica_first")

    def test_the_certificate_has_to_have_the_name_of_the_endpoint(self):
        self.play("names")

    def test_a_pool_that_is_closed_at_once_ends_its_queries_and_not_the_process(self):
        self.play("closed_under_its_user")

    def test_a_pool_without_hooks_that_is_closed_at_once_does_not_end_the_process(self):
        self.play("closed_under_its_user_without_a_hook")
