"""Play a scene of a recipe: ``python -m tests.recipes.run NAME SCENE [unpatched]``, such as ``redis_py interrupted``.

Patches first, as a program does that uses these libraries under gevent. The last line says what it ran against.
"""

import sys

if "unpatched" not in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import importlib
import json

from tests.recipes import scenes
from tests.recipes.description import Recipe


def main(name: str, scene: str) -> None:
    description = importlib.import_module(f"tests.recipes.{name}")
    recipe: Recipe = description.RECIPE
    play = getattr(description, scene, None) or getattr(scenes, scene)
    versions = {"recipe": name, "client": recipe.client_version(), "server": recipe.server_version()}
    play(recipe)
    print(json.dumps(versions))


if __name__ == "__main__":
    main(*sys.argv[1:3])
