"""Sphinx configuration: ``pip install -e '.[docs]'``, then ``sphinx-build -W docs docs/_build``."""

import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation

project = "geventconnpool"
author = "the geventconnpool contributors"
html_theme = "furo"
html_title = "geventconnpool"
html_show_copyright = False  # LICENSE says it
exclude_patterns = ["_build"]
extensions = ["sphinx.ext.autodoc"]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 100

# Whatever a page or a docstring refers to has to be there. Not ours: what is the standard library's, gevent's and
# dnspython's, whose lists of names a build without a network cannot have.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections|contextlib|dataclasses|dns|gevent|logging|random|socket|time|traceback|typing)\..*"),
    (
        "py:.*",
        r"(\w*Error|\w*Exception|\w*Warning|Callable|Iterable|Mapping|Sequence|Hashable|StackSummary|TracebackType)",
    ),
    (
        "py:.*",
        r"(bool|bytes|float|int|object|str|tuple|type|dict|list|set|Any|Literal|Protocol|Random|Generic|Self|socket)",
    ),
    # Words in a signature that are explained beside it.
    ("py:.*", r"(.*\.)?(C|P|R|Lease|Unset|Logger|Balancer|Candidate|EndpointPool|Fault)"),
]


def refer_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Lead to the one thing of that name: docstrings use short names, and annotations those of private modules."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rpartition(".")[2]
    objects = env.domains.python_domain.objects
    places = {(entry.docname, entry.node_id) for name, entry in objects.items() if name.rpartition(".")[2] == last}
    if len(places) != 1:
        return None
    ((page, target),) = places
    return make_refnode(app.builder, node["refdoc"], page, target, content)


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", refer_by_last_name)
