# Everything a developer types. Each target sets up what it needs from a bare clone and may be run again.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

BIN := .venv/bin
# Pyright comes whole with its wheel; without this it asks a registry for a newer one at every run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

CHECKS := check-format check-lint check-layers check-mypy check-pyright check-unit
TESTS := test-unit test-rest test-alone

.PHONY: help setup demo demo-video demo-prewarm up compose-up compose-key compose-down compose-test test test-engine check format bench constraints clean $(CHECKS) $(TESTS)

help: ## say what there is
	@echo "algomesh: make TARGET, where TARGET is one of"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/  \1\t\2/p' Makefile | expand -t 16

setup: ## create .venv with everything in it (nothing to do when it is up to date)
	@.ci/setup

demo: setup ## a pipeline of separate services classifies real posts; POSTS=FILE takes yours, one a line
	@exec $(BIN)/python -m algomesh_services.demo $(if $(POSTS),--posts "$(POSTS)")

demo-video: setup ## a film is split, painted in another manner and joined by separate services; see demo-video/
	@exec $(BIN)/python -m algomesh_services.demo_video $(ARGS)

demo-prewarm: setup ## four cold services in a row, without and with the pre-warmer; see demo-prewarm.png
	@exec $(BIN)/python -m algomesh_services.demo_prewarm $(ARGS)

up: setup ## run a mesh on this machine until Ctrl-C; ARGS='--port 9000' for options
	@exec $(BIN)/algomesh up $(ARGS)

compose-up: ## run a mesh in containers, and say how to call it; GPU=1 with the machine's GPUs
	@exec deploy/compose/up

compose-key: ## print the administrator's key of the mesh in containers
	@exec deploy/compose/compose exec -T registry cat /var/lib/algomesh/secrets/admin.key

compose-down: ## stop the mesh in containers; its data stay, unless ARGS=-v
	@exec deploy/compose/down $(ARGS)

compose-test: setup ## build, run, kill, scale and upgrade the mesh in containers, on the real engine
	@ALGOMESH_COMPOSE_TEST=1 exec $(BIN)/pytest tests/compose -s -q -x --timeout 840 $(PYTEST)

# REPORTS=DIR keeps pytest's junit files there; PYTEST='-k parked' passes options on.
test: setup ## all tests: unit tests first, then those with real servers
	@$(MAKE) --keep-going -j1 $(TESTS)

test-unit: ; @$(BIN)/pytest tests/unit -n 2 $(if $(REPORTS),--junitxml="$(REPORTS)/unit.xml") $(PYTEST)
# Three beside each other, on two cores too: more than half of their time tests wait. tests/conftest.py says which begin.
test-rest: ; @$(BIN)/pytest tests --ignore=tests/unit -m "not alone and not engine" -n 3 --dist loadfile --no-loadscope-reorder $(if $(REPORTS),--junitxml="$(REPORTS)/rest.xml") $(PYTEST)
test-engine: setup ## the tests that start containers; they need a container engine
	@$(BIN)/pytest tests/integration -m engine $(if $(REPORTS),--junitxml="$(REPORTS)/engine.xml") $(PYTEST)
test-alone: ; @$(BIN)/pytest tests --ignore=tests/unit -m alone $(if $(REPORTS),--junitxml="$(REPORTS)/alone.xml") $(PYTEST)

check: setup ## format, lint, layers, types, unit tests; a failing one does not hide the next
	@$(MAKE) --keep-going -j1 $(CHECKS)

check-format: ; @.ci/step "ruff format" $(BIN)/ruff format --check .
check-lint:   ; @.ci/step "ruff check" $(BIN)/ruff check .
check-layers: ; @.ci/step "lint-imports" $(BIN)/lint-imports
check-mypy:   ; @.ci/step "mypy" $(BIN)/mypy
check-pyright: ; @.ci/step "pyright" $(BIN)/pyright
check-unit:   ; @.ci/step "unit tests" $(BIN)/pytest -q -n 2 tests/unit

format: setup ## format the code and repair what ruff can repair
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup ## print the figures with the machine they were measured on; ARGS=NAME for one benchmark
	@exec $(BIN)/python -m benchmarks $(ARGS)

constraints: setup ## resolve the dependencies anew and write constraints.txt
	@$(BIN)/python .ci/constraints.py

clean: ## remove .venv, caches and reports
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
