from tests.recipes.five import FiveScenes


class TestRedisPy(FiveScenes):
    recipe = "redis_py"
    programs = ("redis-server",)
    modules = ("redis",)

    def test_a_connection_is_not_reused_when_the_block_hides_that_it_was_interrupted(self):
        self.play("swallowed")

    def test_a_refused_connect_is_told_at_once(self):
        self.play("quick_refusal")

    def test_a_pipeline_opens_no_connection_beside_the_one_of_the_pool(self):
        self.play("pipelines")

    def test_a_transaction_that_was_left_open_is_not_handed_on(self):
        self.play("left_open")

    def test_an_error_that_is_an_answer_leaves_the_connection_in_the_pool(self):
        self.play("wrong_command")

    def test_replicas_found_in_dns_serve_reads_without_one_of_them_and_without_the_primary(self):
        self.play("replicas")
