# Two commands from nothing: `make study` runs the main job, `make test` passes the tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := VIRTUAL_ENV=$(VENV) $(BIN)/uv
STAMP := $(VENV)/.ready
PORT ?= 5000
STUDY_FLAGS ?=
# Containers often set it; then each of a study's processes compiles Ray, torch and MLflow anew, which is most of its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup study test test-long ui cluster-check audit lint format lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install the pinned dependencies (skipped when nothing changed)

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.txt > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	$(UV) pip sync --quiet --require-hashes requirements.txt
	$(UV) pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $(STAMP)

study: $(STAMP) ## run the main job: search, train, log and report on the embedded digits
	$(BIN)/python search/run.py --space spaces/vit_to_mlp.py $(STUDY_FLAGS)

test: $(STAMP) ## pass the tests
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(STAMP) ## pass the tests that take minutes each
	$(BIN)/python -m pytest -m long -n 2 --dist worksteal

ui: $(STAMP) ## open MLflow's UI on the default store (PORT=5000)
	@echo "open http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning"
	@$(BIN)/python -c "from search.tracking.store import connect; connect('sqlite:///runs/mlflow.db')"
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	  $(BIN)/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db --port $(PORT) --workers 1

cluster-check: $(STAMP) ## check the cluster descriptions (FILES=…: your own), asking no cloud
	$(BIN)/python -m search.cluster_check $(FILES)

audit: $(STAMP) ## look the pinned packages up among the known vulnerabilities
	$(BIN)/python .ci/audit.py

lint: $(STAMP) ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP) ## apply style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock: $(STAMP) ## pin the newest allowed versions with their hashes
	$(UV) pip compile --quiet --generate-hashes --no-header --python-version 3.11 --group dev --all-extras pyproject.toml --output-file requirements.txt
