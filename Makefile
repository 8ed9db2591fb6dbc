# Everything sets itself up in .venv; only Python 3.11-3.13 and make are needed.
PYTHON ?= python3
# Without an NVIDIA driver the CPU build of torch is asked for first; TORCH="torch==2.11.0" picks another version.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test test-all lint bench audit setup clean
setup: .venv/ready

.venv/ready: pyproject.toml setup.py Makefile $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"cinema-fast needs Python 3.11-3.13, $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@if command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install -q '$(TORCH)'; \
	else $(BIN)/pip install -q '$(TORCH)+cpu' 2>/dev/null || $(BIN)/pip install -q '$(TORCH)'; fi
	$(BIN)/pip install -q -e '.[test]'
	@touch $@

demo: setup
	rm -rf demo
	$(BIN)/cinema-fast demo --out demo

# one thread: with more, tiny operations on a busy machine mostly wait for each other
test: setup
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow"
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -m "not slow"

test-all: setup
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -q

lint: setup
	$(BIN)/ruff check .

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

# registers, spills, shared memory and instructions of every kernel for sm_80, sm_90 and sm_100, without a GPU
audit: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/audit.py

clean:
	rm -rf .venv build dist *.egg-info demo
