"""Dependencies point one way: deciding is pure, acting is thin, and nobody pays for what is not used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "geventconnpool"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}

LEAVES = {"errors", "events", "_backoff", "_late", "_check"}
CLUSTER_LEAVES = {"cluster._endpoints", "cluster._outliers", "cluster._load"}
# What the pure modules may import of ours.
PURE = {
    **{name: set[str]() for name in LEAVES},
    "_budget": {"_check"},
    **{name: {"_backoff", "_late", "_check"} for name in CLUSTER_LEAVES},
    "_queue": LEAVES | {"cluster._endpoints"},
    "_slots": LEAVES | {"_queue", "cluster._endpoints"},
    "_series": {"events"},
    "cluster._balancers": {"_check", "cluster._load"},
    "cluster._race": LEAVES,
    "cluster._addresses": {"_backoff"},
    "cluster._wire": set(),
    "cluster._refresh": LEAVES | {"cluster._endpoints"},
    "cluster._subset": {"cluster._balancers", "cluster._endpoints", "cluster._load"},
    "status._report": {"events", "_check"},
    "status._request": {"_check", "status._report"},
    "status._table": {"status._report"},
    **{f"status.{name}": {"status._report", "status._table"} for name in ("_html", "_text")},
    "cluster._explain": {"_check", "_slots", "events", "cluster._load", "cluster._members"},
    "_commands._terminal": set(),
    "_commands._telling": {"events"},
    "_commands._help": set(),
    "testing._clock": {"_check", "cluster._endpoints"},
    "testing._simulation": LEAVES
    | CLUSTER_LEAVES
    | {"_queue", "_slots", "cluster._balancers", "cluster._members", "cluster._endpoints"},
    "cluster._members": LEAVES | CLUSTER_LEAVES | {"_queue", "_slots", "cluster._balancers"},
}
# Functions of packages that are not pure, which are.
PURE_FUNCTIONS = {f"socket.{name}" for name in ("AF_INET6", "inet_ntoa", "inet_ntop")}
WITH_GEVENT = {
    *("_commands._output", "_commands._screen", "_commands._check", "_commands._watch", "_commands._demo"),
    *("_engine", "_fork", "_lease", "_liveness", "_worker", "_retry", "_lender", "pool", "demo"),
    *("testing._backend", "testing._dns"),
    *("cluster._connect", "cluster._dns", "cluster._hosts", "cluster._resolvers", "cluster._pool"),
}
WITH_DNSPYTHON = {"cluster._dns", "cluster._resolvers", "testing._dns", "demo"}


def module_level_imports(path: Path) -> Iterator[str]:
    """Yield the names imported when the module is, that is outside functions and ``if TYPE_CHECKING``."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo.extend(ast.iter_child_nodes(node))


def imports_of(name: str) -> tuple[set[str], set[str]]:
    """Return (our modules, packages of others) that the module ``name`` of ours imports."""
    ours, others = set(), set()
    for imported in module_level_imports(MODULES[f"geventconnpool.{name}"]):
        if imported in PURE_FUNCTIONS:
            continue
        if not imported.startswith("geventconnpool."):
            others.add(imported.partition(".")[0])
        else:
            while imported not in MODULES and f"{imported}.__init__" not in MODULES:
                imported = imported.rpartition(".")[0]
            ours.add(imported.removeprefix("geventconnpool."))
    return ours, others


NAMES = [name.removeprefix("geventconnpool.") for name in MODULES]


@pytest.mark.parametrize("name", NAMES)
def test_a_pure_module_imports_no_more_than_the_drawing_allows(name):
    ours, others = imports_of(name)

    if name in PURE:
        assert ours <= PURE[name]
        assert others <= sys.stdlib_module_names - {"socket", "select", "time", "threading", "logging"}


@pytest.mark.parametrize("name", NAMES)
def test_only_the_shell_imports_gevent_and_only_discovery_dnspython(name):
    _, others = imports_of(name)

    assert "gevent" not in others or name in WITH_GEVENT
    assert "dns" not in others or name in WITH_DNSPYTHON


@pytest.mark.parametrize("name", NAMES)
def test_nothing_inside_imports_the_cluster_pool(name):
    ours, _ = imports_of(name)

    assert "cluster._pool" not in ours or name in {"cluster.__init__", "demo"}


def run(program: str) -> str:
    """Run ``program`` in an interpreter of its own and return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    ).stdout.strip()


def loaded(imports: str, package: str) -> str:
    return run(f"{imports}\nimport sys; print(sorted(m for m in sys.modules if m.split('.')[0] == {package!r}))")


def test_the_pool_of_one_endpoint_and_retry_do_not_load_dnspython():
    assert loaded("import geventconnpool; from geventconnpool import ConnectionPool, RetryBudget, retry", "dns") == "[]"


def test_the_cluster_is_loaded_on_first_use():
    print_cluster = "import sys; print('geventconnpool.cluster._pool' in sys.modules)"

    assert run(f"import geventconnpool; {print_cluster}; geventconnpool.ClusterPool; {print_cluster}") == "False\nTrue"


def test_lazy_names_are_the_ones_of_the_cluster_package():
    assert (
        run(
            "import geventconnpool as g, geventconnpool.cluster as c;"
            "print(g.ClusterPool is c.ClusterPool, g.Endpoint is c.Endpoint)"
        )
        == "True True"
    )


def test_pure_modules_load_no_gevent():
    # Through their files, as importing the package itself brings the pool and with it gevent.
    program = "; ".join(f"import geventconnpool.{name}" for name in sorted(LEAVES))

    bare_package = "import sys, types; p = sys.modules['geventconnpool'] = types.ModuleType('geventconnpool')"

    assert loaded(f"{bare_package}; p.__path__ = ['geventconnpool']; {program}", "gevent") == "[]"


def test_a_name_that_is_not_there_is_an_import_error():
    assert run("try:\n    from geventconnpool import NoSuchName\nexcept ImportError: print('absent')") == "absent"


def test_public_names_of_the_package_are_sorted_and_exist():
    import geventconnpool

    public = geventconnpool.__all__
    assert list(public) == sorted(public)
    assert all(hasattr(geventconnpool, name) for name in public)


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
