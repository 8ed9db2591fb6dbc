# Everything sets itself up in .venv; only Python 3.11-3.13 and make are needed.
PYTHON ?= python3
# Without an NVIDIA driver the CPU build of torch is asked for first; TORCH="torch==2.11.0" picks another version.
TORCH ?= torch==2.13.0
# What the tests of the DALI loader need, on a CPU too; without it they are skipped. make DALI= leaves it out (199 MB).
DALI ?= nvidia-dali-cuda130>=2.0
BIN := .venv/bin
# The stack of the GPU machine, which its tests run on without a GPU: 5.6 GB.
PYTHON_GPU ?= python3.12
GPU_STACK := torch==2.11.0 triton==3.6.0 'numpy==2.5.*' cupy-cuda13x==14.2.0

.PHONY: demo test test-all test-long test-gpu-stack lint bench audit docs setup env-gpu clean
setup: .venv/ready

.venv/ready: pyproject.toml setup.py Makefile $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"cinema-fast needs Python 3.11-3.13, $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@if command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install -q '$(TORCH)'; \
	else $(BIN)/pip install -q '$(TORCH)+cpu' 2>/dev/null || $(BIN)/pip install -q '$(TORCH)'; fi
	$(BIN)/pip install -q -e '.[test]'
	@touch $@

env-gpu: .venv-gpu/ready

.venv-gpu/ready: pyproject.toml setup.py Makefile $(wildcard csrc/*)
	@$(PYTHON_GPU) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null \
	|| { echo 'env-gpu needs Python 3.12, which "$(PYTHON_GPU)" is not: make env-gpu PYTHON_GPU=/path/to/python3.12'; exit 1; }
	$(PYTHON_GPU) -m venv .venv-gpu
	.venv-gpu/bin/pip install -q $(GPU_STACK) -e '.[test]'
	@touch $@

# --no-deps: what decodes JPEG and the like is of no use here
.venv/dali: .venv/ready
	@if [ -z '$(DALI)' ]; then echo 'DALI is left out: its tests are skipped'; \
	elif $(BIN)/pip install -q optree astunparse gast six packaging nvtx makefun 'libcst~=1.8' \
	&& $(BIN)/pip install -q --no-deps '$(DALI)'; then touch $@; \
	else echo 'DALI cannot be had here: its tests are skipped'; fi

demo: setup
	rm -rf demo
	$(BIN)/cinema-fast demo --out demo

# the last line of the tests, so that a green run does not hide what it left out
define say_skipped
@$(BIN)/python -c 'import nvidia.dali' 2>/dev/null || echo 'NOT TESTED: the DALI loader. DALI is not installed here, its tests were skipped'
endef

test: setup .venv/dali
	$(BIN)/ruff check .
	tests/run.sh $(BIN)/python -m "not slow and not long" --durations=20
	$(say_skipped)

test-all: setup .venv/dali
	$(BIN)/ruff check .
	tests/run.sh $(BIN)/python -m "not long" --durations=20
	$(say_skipped)

# what takes longer than all of these: the tutorials, the whole audit, every planted fault (tests/mutants)
test-long: setup .venv/dali
	$(BIN)/pip install -q -e '.[docs]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m long --durations=0 tests
	$(say_skipped)

# of the kernels: the files that import them
test-gpu-stack: env-gpu
	CINEMA_TEST_FILES="$$(grep -rlE '^from cinema_fast(\.kernels| import .*kernels)' tests --include='test_*.py' | tr '\n' ' ')" \
	tests/run.sh .venv-gpu/bin/python -m "not slow and not long"

lint: setup
	$(BIN)/ruff check .

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

# registers, spills, shared memory and instructions of every kernel for sm_80, sm_90 and sm_100, without a GPU; by
# .venv's Triton and by the GPU machine's, where its environment was made
audit: setup
	@wrong=0; for python in $(BIN)/python .venv-gpu/bin/python; do \
	if [ ! -x $$python ]; then echo "NOT AUDITED AGAIN: what the GPU machine's Triton makes (make env-gpu)"; \
	else OMP_NUM_THREADS=1 $$python benchmarks/audit/audit.py || wrong=1; fi; done; exit $$wrong

# the documentation as a site, site/index.html; searching in it needs a server: python -m http.server -d site
docs: setup
	$(BIN)/pip install -q -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-gpu build dist *.egg-info demo site
