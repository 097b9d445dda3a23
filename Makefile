# Each target sets up what it needs. Only Python >= 3.11 and make are asked for.
# The first of these that runs and is new enough: a name on PATH may be a shim with nothing behind.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := .venv/bin/python
WORKDIR ?= runs/fusion_div

# The tests start some hundreds of commands. Where a shell forbids to keep what Python compiles, each
# compiles all that it imports anew, which is more than half of its time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: env train test unit slow lint notebooks bench assets clean

env: .venv/ready

# The lock file constrains every package to one version; torch is not among those installed here.
# Python compiles what is imported; pip would compile all of every package, half of its time.
PIP := $(PY) -m pip --disable-pip-version-check --quiet install --no-compile --constraint requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "cosdiff_jax needs Python 3.11 or newer; name one with make PYTHON=..."; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "installing the locked dependencies into .venv (about a minute)"
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@

train: env
	$(PY) -m cosdiff_jax.train --config=configs/fusion_div.py --workdir=$(WORKDIR)

# Side by side: the checks use one core, and the tests leave some of two.
test: env
	$(MAKE) --jobs=2 lint unit
	$(MAKE) notebooks

unit: env
	$(PY) -m pytest

# What would make the tests last longer than a change can wait.
slow: env
	$(PY) -m pytest -m slow

# Every cell runs on the embedded models; what a notebook shows is not kept.
notebooks: .venv/notebooks
	$(PY) -m pytest -o addopts= -q -n 2 -p no:cacheprovider --nbmake --nbmake-timeout=600 notebooks

.venv/notebooks: .venv/ready
	@$(PIP) --no-build-isolation --editable ".[notebooks]"
	@touch $@

lint: env
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright
	.venv/bin/lint-imports

# On a CPU, XLA takes and frees the same large buffers in every step; glibc hands them back to the
# system by default, which then clears their pages anew. Keeping them saves a tenth of a step or
# more where a model is trained on latents (benchmarks/results/fuse_dit_step.json).
KEEP := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=100000000000

# Trains the embedded models anew, in the order they need one another, and puts them in place.
assets: env
	for name in scenes_llm scenes_vae scenes_clip scenes_clip_latents fusion_base fusion_reflow fusion_few; do \
	  $(KEEP) $(PY) -m cosdiff_jax.train --config=configs/$$name.py --workdir=runs/$$name || exit 1; \
	  test $$name = fusion_reflow && continue; \
	  mkdir -p cosdiff_jax/assets/$$name && cp runs/$$name/model/* cosdiff_jax/assets/$$name/; \
	done

bench: env
	$(KEEP) $(PY) benchmarks/fuse_dit_step.py

clean:
	rm -rf .venv runs datasets
