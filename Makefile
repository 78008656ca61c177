# make repro · make test · make test-all · make runs · make ui · make lint · make techniques · make torture   (each sets up what it needs)
#
# PYTHON       interpreter that makes the virtual environment (3.11 or later)
# VENV         where the virtual environment is
# CONSTRAINTS  pinned versions; `make repro CONSTRAINTS=/dev/null` takes what is installed (a GPU machine's own torch)
#
# `make clean` deletes the environment and .state: unfinished training, tuning studies, the finished runs of a scaling
# ladder, and what an MLflow server that was down has not got yet. Data, models and mlflow.db stay.

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt

# Absolute, so that DVC's temporary workspaces find the same Python.
export PATH := $(abspath $(VENV))/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

N ?= 200

# The commits that experiments began from, beside the present one: DVC shows none of an earlier commit unasked.
BEGUN = git for-each-ref --format='%(refname)' refs/exps | sed -nE 's,^refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/.*,--rev \1\2,p' | sort -u

.PHONY: repro test test-all torture techniques lint runs ui setup clean

repro: $(VENV)/.run
	@python -m llm sources
	@dvc --wait-for-lock repro
	@echo "Report: metrics/report/report.html     Compare runs: make ui"

PYTEST = OMP_NUM_THREADS=1 python -m pytest --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Every promise once: without the tests marked `slow`, each of which names its faster sibling. One
# process more than there are cores, since a test often waits for a process that it started.
test: $(VENV)/.dev
	@LLM_KILLS=10 $(PYTEST) -n $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )) -m 'not slow'

test-all: $(VENV)/.dev
	@$(PYTEST) -n logical

torture: $(VENV)/.dev
	@LLM_KILLS=$(N) python -m pytest tests/pipeline/test_kill.py --timeout 36000

techniques: $(VENV)/.dev
	@dvc repro -R techniques
	@dvc repro --single-item --force report

lint: $(VENV)/.dev
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports --no-cache

runs: $(VENV)/.run
	@dvc exp show --only-changed --drop 'Created|Executor|(constraints|data|llm|metrics|models|stages)[./].*' --rev HEAD $$($(BEGUN))

ui: $(VENV)/.run
	@python -m llm ui

setup: $(VENV)/.dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (a minute or two, about 2 GB) ..."
	@python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e .
	@python -m llm dvc-plots
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev,peers,qlora,export,serve,fast,scale,s3,postgres,tune]'
	@touch $@

clean:
	@[ ! -e $(VENV) ] || [ -f $(VENV)/pyvenv.cfg ] || { echo "$(VENV) is no virtual environment; it stays." >&2; exit 1; }
	rm -rf $(VENV) .state .pytest_cache .ruff_cache .mypy_cache
