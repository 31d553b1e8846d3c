import pytest

from tests.recipes.five import FiveScenes


class TestTLS(FiveScenes):
    recipe = "tls"
    modules = ("trustme",)

    @pytest.mark.parametrize("scene", ["healthy", "interrupted"])
    def test_it_needs_no_patching(self, scene):
        self.play(scene, "unpatched")

    def test_a_connection_is_not_reused_when_the_block_hides_that_it_was_interrupted(self):
        self.play("swallowed")

    def test_a_certificate_for_the_domain_of_the_service_is_right_for_tlscluster_alone(self):
        self.play("domain")

    def test_a_certificate_for_the_srv_target_is_right_for_tlsclusterofnames_alone(self):
        self.play("target")

    def test_a_certificate_for_somebody_else_is_refused(self):
        self.play("wrong_name")

    def test_a_certificate_of_an_unknown_authority_is_refused(self):
        self.play("unknown_authority")

    def test_a_connection_of_tls_1_3_that_was_never_used_is_alive(self):
        self.play("fresh")
