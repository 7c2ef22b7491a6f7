# Each command does all the set-up it needs, in a .venv of its own making.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test wheels lint clean

demo: $(STAMP)
	$(BIN)/tinytl-edge demo --out build/demo-$$(date +%Y%m%d-%H%M%S)

test: $(STAMP)
	$(BIN)/python -m pytest

wheels: $(STAMP)
	$(BIN)/python wheels/build.py --out dist

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed && cp -r tinytl_edge build/typed/
	cp -r export runtime devices build/typed/tinytl_edge/
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p tinytl_edge

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || \
		{ echo "Python 3.11 is needed (onnxruntime-training has no wheel for a newer one): set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build
