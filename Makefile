# Every target sets up .venv by itself, with the versions in requirements.lock; `make PYTHON=...` chooses
# the interpreter, `make test ARGS=...` passes more to pytest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTHON ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
CPP_FILES := $(wildcard csrc/*.cpp csrc/*.cu csrc/*.h csrc/*.cuh)
TEST_CPP_FILES := $(wildcard $(foreach end,cpp h cuh,tests/*.$(end) tests/*/*.$(end)))

help:
	@echo "make demo    train a small model on synthetic scenes and look at the result"
	echo "make test    run the tests"
	echo "make lint    check style: ruff, clang-format, banned constructs"
	echo "make bench   time the kernels"
	echo "make clean   remove everything that make has made, .venv included"

demo: $(VENV)/.installed
	@$(BIN)/pix2pixhd-fast demo

test: $(VENV)/.installed
	@$(BIN)/pytest $(ARGS)

bench: $(VENV)/.installed
	@$(BIN)/pytest bench --benchmark-only $(ARGS)

lint: $(VENV)/.dependencies
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES) $(TEST_CPP_FILES)
	if grep -rnE 'use_fast_math|torch/(extension|all)\.h' csrc kernels pix2pixhd_fast setup.py \
	    --include='*.py' --include='*.cpp' --include='*.cu' --include='*.h' --include='*.cuh' ||
	    grep -n 'cuda\.is_available' setup.py; then
	    echo "make lint: these lines are banned (CONTRIBUTING.md, Style)" >&2
	    exit 1
	fi

clean:
	@rm -rf $(VENV) build dist *.egg-info pix2pixhd_fast/_C.* .benchmarks .hypothesis .pytest_cache .ruff_cache
	find pix2pixhd_fast kernels tests bench -name __pycache__ -prune -exec rm -rf {} +

# Without ensurepip (Debian's python3-venv) the environment is made by virtualenv, which brings its own pip.
$(VENV)/.created:
	@python=
	for candidate in $(or $(PYTHON),python3.11 python3); do
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	        python=$$candidate
	        break
	    fi
	done
	if [ -z "$$python" ]; then
	    echo "make: Python 3.11 or newer is needed, and $(or $(PYTHON),python3) is not: use make PYTHON=/path/to/python" >&2
	    exit 1
	fi
	rm -rf $(VENV)
	if ! $$python -m venv $(VENV) >/dev/null 2>&1; then
	    rm -rf $(VENV)
	    tools=$$(mktemp -d)
	    trap 'rm -rf "$$tools"' EXIT
	    if ! { $$python -m pip install -qq --target "$$tools" -c requirements.lock virtualenv &&
	        PYTHONPATH=$$tools $$python -m virtualenv -q $(VENV); }; then
	        rm -rf $(VENV)
	        echo "make: $$python cannot make a virtual environment: install Debian's package python3-venv" >&2
	        exit 1
	    fi
	fi
	touch $@

$(VENV)/.dependencies: $(VENV)/.created pyproject.toml requirements.lock
	@echo "make: installing the dependencies into $(VENV) (with PyTorch, some minutes the first time)"
	$(BIN)/python -m pip install -qq -r requirements.lock
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies setup.py pix2pixhd_fast/_toolchain.py csrc $(CPP_FILES)
	@echo "make: building pix2pixhd_fast"
	log=$(VENV)/build.log
	if ! $(BIN)/python -m pip install -v --no-build-isolation -c requirements.lock -e '.[dev]' >$$log 2>&1; then
	    tail -n 40 $$log >&2
	    echo "make: the whole story is in $$log" >&2
	    exit 1
	fi
	if grep -o 'pix2pixhd_fast: no C++ kernels.*' $$log | tail -n 1; then
	    echo "make: the whole story is in $$log"
	fi
	touch $@
