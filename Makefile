# Each target sets up what it needs. Only Python >= 3.11 and make are asked for.
PYTHON ?= $(shell command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3)
PY := .venv/bin/python
WORKDIR ?= runs/fusion_div

.PHONY: env train test lint bench assets clean

env: .venv/ready

# The lock file is installed as it stands (--no-deps): nothing is resolved, nothing drifts.
.venv/ready: requirements.lock pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cosdiff_jax needs Python 3.11 or newer"; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
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

clean:
	rm -rf .venv runs datasets
