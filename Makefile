# make demo works on a fresh clone: the first call installs into .venv (Python >= 3.11), later calls start at once.
#   make demo MODEL="Qwen/Qwen3-0.6B"     another model: a hub name, a folder, or organism:NAME
#   make PYTHON=python3.12 test           another Python
#   make VENV="$CONDA_PREFIX" test        an environment of your own; it is used as it is and never changed
VENV := .venv
MODEL ?=
PYTHON ?=
export PYTHON
unexport MODEL
# As it was typed: a $ in it is no variable of make.
export MODEL_TYPED := $(value MODEL)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lab lint types bench gpu docs clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@sed -n '2,4s/^# *//p' Makefile | sed 's/^/  /'

setup:  ## install into .venv, if that is not done yet
ifeq ($(origin VENV),file)
	@scripts/setup.sh
endif

# Values reach the shell through the environment, so that spaces and quotes in them stay what they are.
demo: setup  ## read a small model and write its figures and its page [MODEL=...]
	@if [ -n "$$MODEL_TYPED" ]; then set -- --model "$$MODEL_TYPED"; fi; exec "$(VENV)/bin/workbench" demo "$$@"

# A process for each core and one thread in each: models this small only wait for a second thread.  Tests in a browser
# come after, alone: they wait for what is drawn.
test: lint types  ## lint, type check, and all tests
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest -q -n auto --maxprocesses 4 --dist loadfile --ignore=tests/browser
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest -q tests/browser

lint: setup  ## ruff
	"$(VENV)/bin/ruff" check .

types: setup  ## pyright
	"$(VENV)/bin/pyright" --pythonpath "$(VENV)/bin/python"

lab: setup  ## JupyterLab, here
	"$(VENV)/bin/jupyter" lab

bench: setup  ## every benchmark; each prints its ratio against a named peer or floor
	@for script in benchmarks/*.py; do \
	    [ -e "$$script" ] || { echo "no benchmarks yet"; break; }; \
	    echo "== $$script"; "$(VENV)/bin/python" "$$script" || exit 1; \
	done

# make gpu ARGS=--rehearse tries it without a GPU; VENV=... is an environment that is there already (nothing is installed).
gpu: setup  ## on a CUDA machine: tests marked gpu and benchmarks, in eight minutes, resumable
	@"$(VENV)/bin/python" scripts/gpu.py $(ARGS)

# mkdocs.yml makes every warning an error; the variable silences a notice of the theme about its successor.
docs: setup  ## the documentation, into build/docs; nothing is fetched
	@NO_MKDOCS_2_WARNING=1 "$(VENV)/bin/python" -m mkdocs build --quiet
	@echo "build/docs/index.html"

clean:  ## remove what programs left behind; keeps .venv and out/
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist
	find workbench lenses probes tests -name __pycache__ -type d -prune -exec rm -rf {} +
