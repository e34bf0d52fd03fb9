# One word a habit. `make demo` and `make test` each install all that they need into .venv.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set, each of the hundreds of processes that the tests start would compile the package again.
export PYTHONDONTWRITEBYTECODE :=
# The tests' processes write as those of users do.
export PYTHONUNBUFFERED :=
# The tests' RabbitMQ and PgBouncer are there, or are installed, or they fail: only this leaves them out.
SKIPPED := $(if $(filter skip,$(RABBITMQ)),rabbitmq) $(if $(filter skip,$(PGBOUNCER)),pgbouncer) \
	$(if $(filter skip,$(NODE)),node) $(if $(filter skip,$(CHROMIUM)),chromium)
# What is run of the tests and tools knows the tests' kit.
RUN := PYTHONPATH=tests $(BIN)/python -m
PACKAGES := $(RUN) tools.packages $(if $(filter rabbitmq,$(SKIPPED)),,rabbitmq-server) \
	$(if $(filter pgbouncer,$(SKIPPED)),,pgbouncer)
# Each worker takes tests in their order, so what a module sets up is set up once or twice, not by every worker.
WORKERS := -n 4 --dist worksteal
EMPTY :=
MARKED := $(if $(strip $(SKIPPED)),-m "not ($(subst $(EMPTY) $(EMPTY), or ,$(strip $(SKIPPED))))")

# Not below /tmp, where somebody else may have made the folder. Root's own cache is one that the server's user can't enter.
CACHE := $(if $(filter 0,$(shell id -u)),/var/cache,$${XDG_CACHE_HOME:-$$HOME/.cache})
DEMO_HOME := OUTBOX_HOME=$${OUTBOX_HOME:-$(CACHE)/outbox-demo}

# What may differ in the wheel: its modules, SQL and entry point, the bundled server that it starts, the demo in it.
WHEEL_TESTS := $(addprefix tests/,project/test_structure.py database/test_migrations.py operations/test_look.py \
	commands/test_cli.py::test_every_command_has_help commands/test_cli.py::test_the_version_is_told \
	commands/test_cli.py::test_worker_drain_runs_what_is_due_and_exits_0_with_one_info_line_a_batch \
	database/test_embedded.py::test_commands_with_a_home_share_the_bundled_server_and_say_so_in_one_line \
	examples/test_demo_run.py::test_the_demo_survives_outage_and_kill_and_its_books_are_right)

# Every command's definition, what data, the driver and the clock are read with, and an ORM in a step.
LOWEST_TESTS := $(addprefix tests/,commands/test_cli.py::test_every_command_has_help commands/test_submit.py client/test_submit.py definition/test_waits.py \
	commands/test_waits.py database/test_session.py test_sqlalchemy.py)

.DEFAULT_GOAL := help
# Modules are compiled when they are imported: most of what is installed never is.
PIP := --quiet --no-compile
# What tests of a package that is installed need besides its extras.
PYTEST := pytest pytest-postgresql pytest-timeout pytest-xdist
DURATION ?= 180
N ?= 10
LOAD ?= 0
CHAOS := PYTHONPATH=tests $(BIN)/python -W ignore -m

.PHONY: help demo screens setup check test test-repeat chaos failovers mutants bench schema docs wheel-test lowest-test clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(STAMP) ## run the social media agent on a Postgres of its own; UI=1: with the page, on which you review; RELAY=1: and out to a RabbitMQ of its own
ifdef RELAY
	$(RUN) tools.packages rabbitmq-server
	$(DEMO_HOME) $(RUN) kit.broker $(BIN)/outbox demo --relay $(if $(UI),--ui) $(ARGS)
else
	$(DEMO_HOME) $(BIN)/outbox demo $(if $(UI),--ui) $(ARGS)
endif

screens: $(STAMP) ## write the pictures of docs/, of a run of the demo, by headless Chromium
	$(RUN) tools.packages chromium
	$(RUN) tools.screens docs/pictures

setup: $(STAMP) ## make .venv with everything for development

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Outbox needs Python 3.11 or newer; none was found on PATH" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP) --editable '.[dev]'
	@touch $@

test: $(STAMP) ## run the tests on a real Postgres and RabbitMQ that they start; RABBITMQ=skip PGBOUNCER=skip NODE=skip CHROMIUM=skip leave them out
	$(PACKAGES) $(if $(filter node,$(SKIPPED)),,npm) $(if $(filter chromium,$(SKIPPED)),,chromium)
	$(BIN)/python -m pytest $(WORKERS) $(MARKED) $(ARGS)

test-repeat: $(STAMP) ## run them N=10 times beside LOAD=0 busy loops; counts the runs that fail; ARGS="tests/engine/test_limits.py"
	$(PACKAGES)
	$(BIN)/python -m tools.repeat --times $(N) --load $(LOAD) -- $(WORKERS) $(MARKED) $(ARGS)

check: $(STAMP) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

chaos: $(STAMP) ## torture it: each configuration for DURATION=180 seconds of faults, SEED=… to repeat a run
	$(PACKAGES)
	$(CHAOS) chaos --duration $(DURATION) $(if $(SEED),--seed $(SEED)) --migrations 100 $(ARGS)

failovers: $(STAMP) ## fail over N=10 times beside a light load, in all ways; count what is lost, and how soon all works again
	$(PACKAGES)
	$(CHAOS) chaos.failovers $(N) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: $(STAMP) ## break the engine in each of the ways that others were broken, and see it caught
	$(PACKAGES)
	$(CHAOS) chaos.mutants $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(STAMP) ## measure all, with pictures, into build/bench (an hour and more); ARGS="throughput --quick": one of them, for a look
	$(BIN)/python -m bench $(ARGS)

schema: $(STAMP) ## write sql/schema.sql, and add to sql/history.txt which functions and views have changed
	$(RUN) tools.schema --history
	$(RUN) tools.schema > sql/schema.sql.new && mv sql/schema.sql.new sql/schema.sql

docs: $(STAMP) ## write docs/cli.md from the commands' help, and docs/bad-inputs.md from its table
	mkdir -p docs && $(RUN) tools.cli_reference > docs/cli.md.new && mv docs/cli.md.new docs/cli.md
	$(RUN) tools.bad_inputs > docs/bad-inputs.md.new && mv docs/bad-inputs.md.new docs/bad-inputs.md

wheel-test: $(STAMP) ## run what may differ against the built wheel, without the source on the path; RABBITMQ as above
	$(PACKAGES)
	rm -rf build/lib build/bdist.* build/wheel .venv-wheel && mkdir -p build/wheel
	$(BIN)/python -m build --quiet --wheel --outdir build/wheel .
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install $(PIP) "$$(ls build/wheel/*.whl)[embedded,rabbitmq,demo]" $(PYTEST)
	cp -r tests tools bench docs Makefile pyproject.toml README.md build/wheel/
	cd build/wheel && ../../.venv-wheel/bin/python -c "import outbox; assert 'site-packages' in outbox.__file__, outbox"
	cd build/wheel && ../../.venv-wheel/bin/python -m pytest $(WORKERS) $(MARKED) $(WHEEL_TESTS) $(ARGS)

lowest-test: $(STAMP) ## run a few of the tests with the lowest versions of the dependencies that pyproject.toml allows
	mkdir -p build && $(BIN)/python -m tools.lowest > build/lowest.txt
	rm -rf .venv-lowest && $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install $(PIP) --constraint build/lowest.txt --editable '.[embedded,rabbitmq,sqlalchemy,alembic]' $(PYTEST)
	PYTHONPATH=tests .venv-lowest/bin/python -m pytest $(WORKERS) $(LOWEST_TESTS) $(ARGS)

clean: ## remove what make has made
	rm -rf $(VENV) .venv-wheel .venv-lowest build dist *.egg-info
