PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest chaos bench lint docs release clean

help:
	@echo "make demo         install into .venv, then distill the digits dataset into runs/digits"
	@echo "make test         run the tests on the newest versions (PYTEST_ARGS='-k pool' picks some)"
	@echo "make test-oldest  run the tests marked core on the oldest versions, in .venv-oldest"
	@echo "make chaos        run the tests that take minutes: failures at random moments, and a smoke run of every config"
	@echo "make bench        time the parts of a run, alternating with PyTorch, in .venv-bench (BENCH_ARGS='--cases digits' picks some)"
	@echo "make lint         check style, format and types"
	@echo "make docs         build the site in docs/_build/html, check its links and run its examples, in .venv-docs"
	@echo "make release      build and check the source distribution and the wheel in dist/, in .venv-release"
	@echo "make clean        remove the environments, caches and builds; runs/ stays"

demo: .venv/installed
	.venv/bin/python -m ssdd_jax.main --config configs/digits.py --workdir runs/digits

test: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Here and in `make chaos` programs are compiled as users' are; in `make test` quickly, see tests/conftest.py.
# A file stays with one worker, since jax 0.5 has no cache on disk from which the other could read what the first has compiled.
test-oldest: .venv-oldest/installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-oldest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m core $(PYTEST_ARGS)

chaos: .venv/installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --chaos -m chaos $(PYTEST_ARGS)

bench: .venv-bench/installed
	.venv-bench/bin/python -m experiments.bench $(BENCH_ARGS)

lint: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

# Twice the same pages: as HTML, and for the examples in them and in docstrings.
docs: .venv-docs/installed
	JAX_PLATFORMS=cpu .venv-docs/bin/python -m sphinx -q -W --keep-going -c docs -d docs/_build/doctrees -b html . docs/_build/html
	JAX_PLATFORMS=cpu .venv-docs/bin/python -m sphinx -q -W --keep-going -c docs -d docs/_build/doctrees -b doctest . docs/_build/doctest
	.venv-docs/bin/python docs/check_links.py docs/_build/html

release: .venv-release/installed
	PYTHON=$(PYTHON) .ci/release

# The stamp is written last, so an interrupted installation starts again.
.venv/installed: requirements/newest.txt
.venv-oldest/installed: requirements/oldest.txt
.venv-bench/installed: requirements/newest.txt requirements/bench.txt
.venv-docs/installed: requirements/docs.txt
.venv-release/installed: requirements/release.txt
.venv/installed .venv-oldest/installed .venv-bench/installed .venv-docs/installed .venv-release/installed: setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("ssdd_jax needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=<another>" % v[:2])'
	@echo "Installing $(filter requirements/%,$^) into $(@D) (a few minutes the first time)"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(patsubst %,-r %,$(filter requirements/%,$^))
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

clean:
	rm -rf .venv .venv-oldest .venv-bench .venv-docs .venv-release .pytest_cache .ruff_cache .hypothesis build dist docs/_build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
