from tests.recipes.five import HTTPScenes


class TestUrllib3(HTTPScenes):
    recipe = "urllib3_http"
    modules = ("urllib3",)

    def test_a_url_that_cannot_be_is_no_connection_error(self):
        self.play("bad_url")

    def test_session_tickets_of_tls_1_3_do_not_make_it_connect_for_each_request(self):
        self.play("one_connection")
