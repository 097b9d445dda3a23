# Each target sets up what it needs. Only Python >= 3.11 and make are asked for.
PYTHON ?= $(shell command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3)
PY := .venv/bin/python
WORKDIR ?= runs/fusion_div

.PHONY: env train test lint bench assets clean

env: .venv/ready

# The lock file constrains every package to one version; torch is not among those installed here.
PIP := $(PY) -m pip --disable-pip-version-check --quiet install --constraint requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "cosdiff_jax needs Python 3.11 or newer; name one with make PYTHON=..."; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "installing the locked dependencies into .venv (about a minute)"
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@

train: env
	$(PY) -m cosdiff_jax.train --config=configs/fusion_div.py --workdir=$(WORKDIR)

test: env lint
	$(PY) -m pytest

lint: env
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright
	.venv/bin/lint-imports

# Trains the embedded models anew, in the order they need one another, and puts them in place.
assets: env
	for name in scenes_llm scenes_vae scenes_clip fusion_base; do \
	  $(PY) -m cosdiff_jax.train --config=configs/$$name.py --workdir=runs/$$name || exit 1; \
	  mkdir -p cosdiff_jax/assets/$$name && cp runs/$$name/model/* cosdiff_jax/assets/$$name/; \
	done

bench: env
	$(PY) benchmarks/fuse_dit_step.py

clean:
	rm -rf .venv runs datasets
