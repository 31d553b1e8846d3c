from tests.recipes.five import FiveScenes


class TestSMTP(FiveScenes):
    recipe = "smtp"
    modules = ("aiosmtpd",)

    def test_a_refused_recipient_breaks_no_connection_but_421_does(self):
        self.play("answers")

    def test_a_session_in_which_a_mail_was_begun_is_not_lent_again(self):
        self.play("begun")

    def test_a_mail_that_may_have_been_taken_is_not_sent_again(self):
        self.play("in_doubt")

    def test_each_mail_is_taken_once_while_one_of_two_relays_dies(self):
        self.play("relays")

    def test_tls_and_login_and_the_certificate_has_to_have_the_name_of_the_endpoint(self):
        self.play("secured")
