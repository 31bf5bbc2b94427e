# Everything runs from .venv with the versions of constraints.txt. Paths are relative and programs are called as
# `python -m`, so a checkout whose path contains a space works (a console script's first line would not).
#
#   make demo    distil all-MiniLM-L6-v2 into a small decoder on this machine, with a scorecard
#   make test    the tests            make check   lint, types, architecture
#   make bench   the benchmarks       make clean   remove .venv and caches (runs/ stays)
#
# PYTHON=python3.12 chooses the interpreter, TEST_ARGS="-k pooling" goes to pytest. EYAS_DATA, PYTHONPATH and pip's
# own variables pass through.

PYTHON ?= python3
TEST_WORKERS ?= 2
TEST_ARGS ?=
EXTRAS := eval,demo,clean,wandb,mine,documents,lora,dev
RUN := .venv/bin/python
INSTALLED := .venv/installed

.PHONY: demo test check bench clean install

demo: $(INSTALLED)
	$(RUN) -m launch demo

# One thread per worker: the tests are many and small, and two cores are enough for them.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(RUN) -m pytest -n $(TEST_WORKERS) --dist loadfile $(TEST_ARGS)

check: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -q tests/test_architecture.py

bench: $(INSTALLED)
	$(RUN) -m benchmarks

install: $(INSTALLED)

# torch comes first and pinned: pip then never considers another build of it while it resolves the rest.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -c constraints.txt torch
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $(INSTALLED)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
