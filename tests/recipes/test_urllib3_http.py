from tests.recipes.five import FiveScenes


class TestUrllib3(FiveScenes):
    recipe = "urllib3_http"
    programs = ("nginx",)
    modules = ("urllib3",)

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

    def test_a_url_that_cannot_be_is_no_connection_error(self):
        self.play("bad_url")

    def test_the_servers_of_a_service_need_a_certificate_for_its_domain(self):
        self.play("https")

    def test_session_tickets_of_tls_1_3_do_not_make_it_connect_for_each_request(self):
        self.play("one_connection")
