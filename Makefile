# make train: install, train on the lecture's text, print a sample.
# make test: install, run all tests.
# Every target uses the active virtual environment, or creates one in .venv.

VENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),.venv)
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.gpt-kernels-installed

.PHONY: train test bench prove ledger mutants lint

train: $(INSTALLED)
	$(PYTHON) train.py $(ARGS)

test: $(INSTALLED)
	$(PYTHON) -m pytest --numprocesses=auto $(ARGS)

bench: $(INSTALLED)
	$(PYTHON) -m pytest bench $(ARGS)

prove: $(INSTALLED)
	$(PYTHON) -m bench.prove $(ARGS)

ledger: $(INSTALLED)
	$(PYTHON) -m bench.ledger --check $(ARGS)

mutants: $(INSTALLED)
	$(PYTHON) -m tests.mutants $(ARGS)

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m codespell_lib
	$(PYTHON) -m mypy gpt kernels train.py sample.py
	$(VENV)/bin/lint-imports
	$(PYTHON) -m tests.structure
	$(PYTHON) -m tests.mutants --check

$(INSTALLED): setup.py constraints.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -e ".[test]" -c constraints.txt
	touch $@
