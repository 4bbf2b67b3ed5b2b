PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-faults bench docs docs-check gallery check lint format clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

install: .venv/installed  ## Create .venv with this package and everything it needs

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -W ignore -m compileall -q -j 0 .venv/lib > .venv/compiled || true  # pip uses one core
	touch $@

demo: install  ## Train a network, sample 10 000 points from it, and list the pictures
	$(BIN)/ncsn-train dataset=song_ermon_2d schedule.sigma_max=20 schedule.sigma_min=0.5
	$(BIN)/ncsn-sample checkpoint=latest
	@echo; echo "Pictures, and pages to open in a browser:"
	@for run in "$$(ls -d outputs/train/runs/* | tail -n 1)" "$$(ls -d outputs/sample/runs/* | tail -n 1)"; do \
	  find "$$run" -name '*.png' -o -name '*.gif' -o -name report.html -o -name live.html | sort; done
	@echo; echo "To go on by hand: source .venv/bin/activate"

test: install  ## Run the tests that every change needs (2 to 4 minutes)
	$(BIN)/pytest -n 2 --dist worksteal

test-slow: install  ## Run the other tests (8 to 20 minutes)
	$(BIN)/pytest -n 2 --dist worksteal -m slow

test-faults: install  ## Kill, starve, damage and attack runs, and print a table (under 45 minutes)
	$(BIN)/pytest -n 2 --dist worksteal -m 'slow or not slow' tests/faults tests/cli/test_sweep.py --all-trials

bench: install  ## Measure speed, and the quality of the default network and every sampler (hours)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/quality.py presets
	$(BIN)/python benchmarks/quality.py small_mode
	$(BIN)/python -m benchmarks.referee run
	$(BIN)/python -m benchmarks.referee report
	$(BIN)/python -m benchmarks.referee flow
	$(BIN)/python benchmarks/presets.py

docs: install  ## Build the documents as a site in outputs/site (offline, strict)
	$(BIN)/python docs/options.py
	$(BIN)/mkdocs build --quiet --strict -f .mkdocs.yml
	@echo "open outputs/site/index.html"

docs-check: install  ## Run the commands of the pages, and compare what they give (15 minutes)
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python docs/check.py

gallery: install  ## Draw the pictures of README and docs/ again (minutes)
	$(BIN)/python docs/gallery.py

check: lint test  ## Run the linter and the short tests

lint: install  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and all caches; outputs/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
