from tests.recipes.five import FiveScenes


class TestRawSockets(FiveScenes):
    recipe = "raw_sockets"
