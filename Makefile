# Every verb sets up what it needs: a virtual environment outside the checkout, keyed by constraints.txt, so that
# checkouts and CI share it and a fresh machine builds it once (about two minutes, several GB with torch).
PYTHON ?= python3.11
VENVS ?= $(HOME)/.cache/wellhouse
VENV := $(VENVS)/venv-$(shell sha256sum constraints.txt | cut -c1-12)
# Installed again when the dependencies change, and pointed at this checkout when another one used it last.
STAMP := $(VENV)/installed-$(shell (pwd; cat pyproject.toml) | sha256sum | cut -c1-12)
BIN := $(VENV)/bin
DEMO ?= demo

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast lint format proofs learning-proof bench real-screen clean

help: ## Show the verbs.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the path: install Python 3.11, or give PYTHON=…" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,extract,train,dev]'
	rm -f $(VENV)/installed-*
	touch $(STAMP)

install: $(STAMP) ## Set up the environment and link it as .venv.
	@ln -sfn $(VENV) .venv
	@echo "wellhouse is in .venv/bin: source .venv/bin/activate"

demo: install ## Make a synthetic screen and take it from pixels to nearest treatments.
	$(BIN)/python -m cli demo $(DEMO)

# Two workers with one thread each: threads of two workers that wait for each other on two cores cost more than they do.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 POLARS_MAX_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install ## Run all tests.
	$(PYTEST) --durations=10

test-fast: install ## Run the tests that take less than about ten seconds each.
	$(PYTEST) -m "not slow"

lint: install ## Check style, types and SQL.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint --disable-progress-bar sql schema

format: install ## Bring the code into its one format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proofs: install ## The long forms: 50 kills on each kind of lake, 4 writers x 25 plates, scib-metrics, training (about an hour).
	WELLHOUSE_LONG=1 OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 $(BIN)/python -m pytest -n 0 -s --durations=20 \
		tests/test_night_kills.py tests/test_team.py tests/test_lake.py tests/test_batch_effects.py tests/test_sphering.py \
		tests/test_places.py tests/test_training.py tests/test_learning_proof.py tests/test_docs.py

learning-proof: install ## Each trained method against transfer, shuffled labels and real crops: prints its tables (about an hour).
	$(BIN)/python -m benchmarks.proof_learning

bench: install ## Measure speed and memory as ratios, and write benchmarks/RESULTS.md.
	$(BIN)/python -m benchmarks.run

real-screen: install ## Follow docs/real_screen.md on real data (WELLHOUSE_TEST_DATA, else ../shared/data).
	WELLHOUSE_LONG=1 $(BIN)/python -m pytest -n 0 -s tests/test_docs.py -k real_screen

clean: ## Remove what the verbs made in this checkout; the shared environment stays.
	rm -rf $(DEMO) .venv .pytest_cache .ruff_cache .mypy_cache build dist
