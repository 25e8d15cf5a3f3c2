# Everything starts from nothing: `make compare` measures, `make test` proves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml | cksum | cut -d' ' -f1)
UV := $(shell command -v uv 2>/dev/null)
# Many images forbid to keep compiled modules: each of the many processes would compile all that it imports, for a second.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install compare test scenarios faults prove prove-faults prove-gate docs lint format bench up down clean
help:
	@echo "make install   make .venv with loadgen and its libraries: docs/tutorial.md goes on from there"
	@echo "make compare   measure RabbitMQ against Kafka on this machine, and write the report"
	@echo "make test      run the tests, on real brokers (at most 20 minutes)"
	@echo "make test-long run those that take longest and have a shorter relative in make test (at most 20 minutes)"
	@echo "make scenarios run every scenario in short on both brokers, and look at the verdicts (at most 25 minutes)"
	@echo "make faults    break brokers and clients under load in every class, and look at what was promised (at most 30 minutes)"
	@echo "make prove-faults  kill leaders, transactions' processors and young queues, again and again (at most 90 minutes)"
	@echo "make prove     measure what is known from elsewhere, and write docs/method.md (at most 30 minutes)"
	@echo "make prove-gate  the gate on recorded trials, and on brokers whose settings are made worse (at most 25 minutes)"
	@echo "make docs      build the documentation as a site, docs/_build/html; a warning is an error"
	@echo "make lint      ruff and mypy        make bench    the speed bars of docs/performance.md"
	@echo "make up|down   start or stop the brokers        make clean    remove what was installed"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "loadgen needs Python 3.11 or newer; $$($(PYTHON) --version) was found. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 69; }
ifeq ($(UV),)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 -m venv failed: install it (apt-get install python3-venv) or install uv" >&2; exit 69; }
	@echo "installing loadgen and its libraries into $(VENV) ..." >&2
	@$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install -q --no-compile -e . --group dev
else
	@test -x $(BIN)/python || uv venv -q --python "$(PYTHON)" $(VENV)
	@echo "installing loadgen and its libraries into $(VENV) ..." >&2
	@uv pip install -q --python $(BIN)/python -e . --group dev
endif
	@rm -f $(VENV)/.installed-* && touch $@

install: $(STAMP)

compare: $(STAMP)
	@$(BIN)/loadgen compare --profile quick

test: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -c 'import browser; browser.need()'
ifdef TESTS
	@$(BIN)/python -m pytest $(TESTS)
else
	@$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not alone and not long"
	@$(BIN)/python -m pytest -n 1 -m "alone and not long"
endif

test-long: $(STAMP)
	@$(BIN)/python -m pytest -m long

scenarios: $(STAMP)
	@$(BIN)/python bench/all_scenarios.py

faults: $(STAMP)
	@$(BIN)/python bench/faults.py

prove-faults: $(STAMP)
	@$(BIN)/python bench/faults.py --kills 50
	@$(BIN)/python bench/faults.py --matrix scenarios/faults/exactly_once.py
	@$(BIN)/python bench/faults.py --transactions 200
	@$(BIN)/python bench/faults.py --young 10

prove: $(STAMP)
	@PYTHONPATH=bench $(BIN)/python -m prove

prove-gate: $(STAMP)
	@$(BIN)/python bench/gate.py recorded
	@$(BIN)/python bench/gate.py broker

docs: $(STAMP)
	@$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(STAMP)
	@$(BIN)/python bench/run.py

up down: $(STAMP)
	@$(BIN)/loadgen $@

clean:
	@test ! -x $(BIN)/loadgen || $(BIN)/loadgen down || true
	rm -rf .venv .brokers .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
