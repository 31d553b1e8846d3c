# make demo, make test: all that is needed is python3 with pip, and make.
#
# The environment is made without ensurepip, which Debian's python3 lacks, and filled by the pip outside it. It is filled again only when
# pyproject.toml has changed, so that a second run needs no network.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
BENCH = .venv-bench
DIST = .venv-dist
RUNS = .venv-runs
PEERS = tests/benchmarks/peers.txt
RELEASE = tests/release.txt
PROGRAMS = tests/runs/programs.txt
RECIPE_SERVERS = redis-server nginx memcached postgresql mariadb-server dovecot-imapd
SECONDS = 600
PYRIGHT = PATH="$(CURDIR)/$(BIN):$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test test-recipes coverage soak bench bench-balance test-runs dist clean venv package

help:
	@echo "make demo      three servers, one service name, everything goes wrong: watch what callers see"
	@echo "make test      linters, types and all tests (but for the recipes whose servers or clients only the next one installs)"
	@echo "make test-recipes  the recipes of docs/recipes/, all of them, each against the real server, with a table of versions"
	@echo "make coverage  are all branches tested? (what is left out is explained in pyproject.toml)"
	@echo "make soak      ten minutes of trouble (SECONDS=600), with an eye on memory and descriptors"
	@echo "make bench     how fast it is, beside the pools of others and against the targets (five minutes)"
	@echo "make bench-balance  who gets the calls: ours beside the balancers of others, against the targets (four minutes)"
	@echo "make test-runs  uWSGI and locust, run for real; needs a C compiler (one minute)"
	@echo "make dist      wheel and source distribution, looked into, installed without a compiler, tried out"
	@echo "make clean     remove what these have made"

venv:
	@$(BIN)/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(VENV)

package: venv
	@cmp -s pyproject.toml $(VENV)/installed-test || cmp -s pyproject.toml $(VENV)/installed-demo || { \
	    echo "installing into $(VENV)"; \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet --editable . && \
	    cp pyproject.toml $(VENV)/installed-demo; }

demo: package
	$(BIN)/python -m geventconnpool.demo

test: venv
	@cmp -s pyproject.toml $(VENV)/installed-test || { \
	    echo "installing what the tests need into $(VENV)"; \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet --editable ".[test]" && \
	    cp pyproject.toml $(VENV)/installed-test; }
	@sh tests/install_servers.sh
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(PYRIGHT)
	$(PYRIGHT) --verifytypes geventconnpool --ignoreexternal
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not extra_recipe"

test-recipes: venv
	@cmp -s pyproject.toml $(VENV)/installed-recipes || { \
	    echo "installing what the recipes need into $(VENV)"; \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet --editable ".[test,recipes]" && \
	    cp pyproject.toml $(VENV)/installed-recipes && cp pyproject.toml $(VENV)/installed-test; }
	@sh tests/install_servers.sh $(RECIPE_SERVERS)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/recipes

coverage: venv
	@cmp -s pyproject.toml $(VENV)/installed-test || { echo "make test first"; exit 1; }
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -q -m "not extra_recipe"
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

soak: package
	$(BIN)/python -m tests.soak $(SECONDS)

# The pools of others are in an environment of their own: nothing here depends on them.
bench:
	@$(BENCH)/bin/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(BENCH)
	@cat pyproject.toml $(PEERS) | cmp -s - $(BENCH)/installed || { \
	    echo "installing the pools of others into $(BENCH)"; \
	    $(PYTHON) -m pip --python $(BENCH)/bin/python install --quiet --editable . --requirement $(PEERS) && \
	    cat pyproject.toml $(PEERS) >$(BENCH)/installed; }
	@sh tests/install_servers.sh redis-server haproxy
	$(BENCH)/bin/python -m tests.benchmarks.speed --write

bench-balance: package
	$(BIN)/python -m tests.benchmarks.balance

test-runs:
	@$(RUNS)/bin/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(RUNS)
	@cat pyproject.toml $(PROGRAMS) | cmp -s - $(RUNS)/installed || { \
	    echo "installing uWSGI and locust into $(RUNS)"; \
	    $(PYTHON) -m pip --python $(RUNS)/bin/python install --quiet --editable . --requirement $(PROGRAMS) && \
	    cat pyproject.toml $(PROGRAMS) >$(RUNS)/installed; }
	$(RUNS)/bin/python -m pytest tests/runs/with_uwsgi.py tests/runs/with_locust.py

dist:
	@$(DIST)/bin/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(DIST)
	@cmp -s $(RELEASE) $(DIST)/installed || { \
	    echo "installing what builds and checks into $(DIST)"; \
	    $(PYTHON) -m pip --python $(DIST)/bin/python install --quiet --requirement $(RELEASE) && \
	    cp $(RELEASE) $(DIST)/installed; }
	@rm -rf dist
	$(DIST)/bin/python -m build --no-isolation
	$(DIST)/bin/python -m twine check --strict dist/*
	$(DIST)/bin/python -m tests.release dist

clean:
	rm -rf $(VENV) $(BENCH) $(DIST) $(RUNS) .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find geventconnpool tests docs -name __pycache__ -prune -exec rm -rf {} +
