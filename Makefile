# Two commands: `make demo` trains a small model on this machine; `make test` runs all tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Without a GPU, a build of torch without CUDA is enough, and gigabytes smaller.
CONSTRAINTS := $(shell nvidia-smi -L >/dev/null 2>&1 || echo -c constraints-cpu.txt)

.PHONY: demo test lint components clean

demo: $(VENV)/.installed corpus/tokens/manifest.json
	$(BIN)/python -m harness.launch +exp=tiny cluster=local follow=true
	@echo && $(BIN)/python -m harness.status tiny
	@echo && echo "Next: look into runs/tiny (events.jsonl, metrics.jsonl, attempts/), or watch a run live:" && \
	echo "  $(BIN)/python -m harness.monitor up          # Prometheus and its alerts, where installed" && \
	echo "  $(BIN)/python -m harness.launch +exp=tiny run.name=second train.steps=400" && \
	echo "  $(BIN)/python -m harness.status second"

# Those that start daemons or whole runs have the machine to themselves.
ALONE := slurm or prometheus or e2e

test: $(VENV)/.installed-test components
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not ($(ALONE))"
	$(BIN)/python -m pytest -m "$(ALONE)"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

components:
	tests/install_components.sh

corpus/SOURCES.txt: | $(VENV)/.installed
	$(BIN)/python -m harness.data corpus --output corpus

corpus/tokens/manifest.json: | corpus/SOURCES.txt
	$(BIN)/python -m harness.data prepare --input corpus/text --output corpus/tokens --format text --vocab-size 4096

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "needs Python 3.11 or newer: make PYTHON=python3.12" && false)
	@$(PYTHON) -m venv $(VENV) || (rm -rf $(VENV); echo "can't make a virtual environment: apt-get install python3-venv" && false)

$(VENV)/.installed: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e . && touch $@

$(VENV)/.installed-test: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[test]' && touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) corpus runs
