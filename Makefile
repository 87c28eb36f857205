# Every target but `help` and `clean` first makes the virtual environment, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
EXTRAS ?=
ARGS   ?=
# tests of a file share fixtures, so one worker runs them all; the longest files begin; many wait, so three keep two cores busy
PYTEST := -m pytest -n 3 --dist=loadfile --no-loadscope-reorder
# what `make test-versions` tries: a Python, and which of the packages that pyproject.toml allows
VERSIONS ?= 3.11:lowest-direct 3.12:highest 3.13:highest
# of a command, what concerns the data alone
SOURCE  = $(filter --config-dir=% allowed_packages=% data=% data.% export=% sheet=%,$(ARGS))

# where Python may not keep what it has compiled, each process compiles torch anew: 10 seconds
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup data train speedrun sweep report tensorboard check test test-versions benchmark benchmark-full benchmark-peers benchmark-gpu equality faults mutants audit lint format lock wheel clean

help: ## this list
	@echo 'usage: make TARGET [ARGS="key=value ..."]'
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target text; do \
		printf '  %-15s %s\n' "$$target" "$$text"; done

setup: $(READY) ## make .venv from requirements.lock; EXTRAS="search ray" adds the packages of these extras
	$(if $(EXTRAS),$(BIN)/python requirements.py $(EXTRAS))

$(READY): requirements.lock requirements.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'vggexp needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo 'this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 2; }
	$(BIN)/python requirements.py
	@touch $@

$(DEV): $(READY)
	$(BIN)/python requirements.py dev
	@touch $@

data: $(READY) ## obtain and verify Fashion-MNIST, or ARGS="data=NAME", and say what is in it
	$(BIN)/vggexp data $(SOURCE)

train: $(READY) ## train; without ARGS the quickstart: VGG-11, ratio 4, 40 px
	$(BIN)/vggexp train $(or $(ARGS),experiment=quickstart)

speedrun: $(READY) ## train to 94 % as fast as it can, five seeds or ARGS="--seeds 20"; is the mark met?
	$(BIN)/python -m benchmarks.record $(ARGS)

sweep: $(READY) ## train every combination, e.g. ARGS="data.resize=32,64 optimizer.lr=1e-3,3e-4"
	$(BIN)/vggexp train --multirun $(ARGS)

report: $(READY) ## put the last sweep's runs side by side, or ARGS="FOLDER ..."
	$(BIN)/vggexp report $(ARGS)

tensorboard: $(READY) ## look at all runs under outputs/ on localhost
	$(BIN)/vggexp tensorboard $(ARGS)

check: lint ## lint and the quick tests, for before each commit (1 to 3 minutes)
	$(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

test: $(DEV) ## run the test suite (17 minutes on two cores of an AMD EPYC, Zen 3)
	$(BIN)/python $(PYTEST) $(ARGS)

test-versions: $(DEV) ## run the quick tests with the oldest packages allowed, and with newer Pythons
	@set -e; for each in $(VERSIONS); do \
		python=$${each%:*} venv=$(VENV)/versions/$${each%:*}-$${each#*:}; \
		$(BIN)/uv venv --quiet --clear --python $$python $$venv; \
		VIRTUAL_ENV=$$PWD/$$venv $(BIN)/uv pip install --quiet --resolution $${each#*:} --editable '.[dev]'; \
		echo "Python $$python, $${each#*:} versions"; \
		$$venv/bin/python $(PYTEST) -q -m "not slow" $(ARGS); \
	done
	UV_PROJECT_ENVIRONMENT=$(VENV)/versions/sync $(BIN)/uv sync --quiet
	$(VENV)/versions/sync/bin/vggexp --version
	$(BIN)/uvx --from . vggexp --version

benchmark: data ## measure training at 96 px against other loops (about 15 minutes); benchmark-full: at 224 px, too
	$(BIN)/python -m benchmarks.compare $(ARGS)

benchmark-full: data # the same at 224 px, then scaling and start-up (about 25 minutes)
	$(BIN)/python -m benchmarks.compare --size 224 $(ARGS)
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.startup

benchmark-peers: data ## the same against Keras, flax, a compiled loop and what PEERS=FOLDER holds
	$(BIN)/python -m benchmarks.peers $(ARGS)

benchmark-gpu: data ## measure whole epochs on one GPU, the table last
	$(BIN)/python -m benchmarks.gpu

equality: $(DEV) ## prove that a change alters no number: ARGS="make FOLDER" before and after, ARGS="compare ONE OTHER"
	$(BIN)/python -m benchmarks.equality $(ARGS)

faults: $(DEV) ## run every trial of the fault harness (about two hours; several hosts take more than one)
	$(BIN)/python -m pytest tests/faults --full $(ARGS)

mutants: $(DEV) ## break the code in 40 small places, one at a time, and name those that no test notices (more than an hour)
	@test -x $(VENV)/mutants/bin/cosmic-ray || { $(PYTHON) -m venv $(VENV)/mutants && $(VENV)/mutants/bin/pip install --quiet cosmic-ray; }
	$(VENV)/mutants/bin/python tests/mutants.py --python $(BIN)/python $(ARGS)

audit: $(DEV) ## look the locked packages up in the database of known vulnerabilities
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement requirements.lock

lint: $(DEV) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(DEV) ## renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --annotate --no-header --extra dev pyproject.toml --output-file requirements.lock

wheel: $(READY) ## build dist/vggexp-*.whl
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache
