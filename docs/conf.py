"""Sphinx configuration: ``pip install -e '.[docs]'``, then ``sphinx-build docs docs/_build``."""

project = "geventconnpool"
author = "the geventconnpool contributors"
html_theme = "furo"
exclude_patterns = ["_build"]
