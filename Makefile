# Each command does all the set-up it needs, in a .venv of its own making.
# Any CPython from 3.10 to 3.14: 3.11 first, the newest for which there is onnxruntime-training to compare with.
PYTHONS := python3.11 python3 python3.13 python3.12 python3.14 python3.10
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in $(PYTHONS); do $$p -c "$(FITS)" >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TRAINER := $(VENV)/trainer-built
# What `make test` runs: all, or the files named.
TESTS :=

.PHONY: demo check test wheels lint clean

demo: $(TRAINER)
	$(BIN)/tinytl-edge demo --out build/demo-$$(date +%Y%m%d-%H%M%S)

# What has to pass before every commit, in two minutes.
check: lint $(TRAINER)
	$(BIN)/python -m pytest --quiet -m "not slow" $(TESTS)

test: $(TRAINER)
	$(BIN)/python -m pytest $(TESTS)

wheels: $(STAMP)
	$(BIN)/python wheels/build.py --out dist

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c "$(FITS)" || { echo "Python 3.10 to 3.14 is needed: set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@$(BIN)/python -m pip show --quiet onnxruntime-training 2>/dev/null || \
		echo "onnxruntime-training has no wheel for this Python or processor: it is left out, and its tests are skipped."
	@touch $@

# What was built of older sources is built again. Without a C++ compiler there is none, which the tests say.
$(TRAINER): $(STAMP) $(wildcard runtime/native/*.* runtime/native/*/*)
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@$(BIN)/python -c "import sys, tinytl_edge.runtime.workers.native_worker as w; sys.exit(not w.find_trainer())" || \
		! command -v c++ >/dev/null || { echo "The native trainer does not compile: $(BIN)/python -m pip install --verbose --editable . says why."; \
		exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) build
