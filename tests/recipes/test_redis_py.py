from tests.recipes.five import FiveScenes


class TestRedisPy(FiveScenes):
    recipe = "redis_py"
    programs = ("redis-server",)
    modules = ("redis",)
