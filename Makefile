# Two commands do everything: `make repro` and `make test`. Each sets up what it needs in .venv/.

PYTHON ?= python3
VENV   := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
READY  := $(VENV)/.ready
# Progress bars are text on purpose: no word that widgets are missing.
export PYTHONWARNINGS := ignore:IProgress not found
TOUR   := scratch/0_tour.ipynb
PYTEST := python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help repro test test-slow test-gpu tour lab repro-from-scratch rehearsal strip push check
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

repro: $(READY)  ## bring figures/ and results/ up to date, print the results; BASES=retrain: stale bases too
	@python -m workflow.repro $(if $(BASES),--$(BASES)-bases)

test: $(READY)  ## run the tests
	@$(PYTEST)

test-slow: $(READY)  ## run those that take longer: two processes, killed runs, all model types
	@$(PYTEST) -m "slow and not gpu and not network"

test-gpu: $(READY)  ## run those that need a GPU
	@python -m pytest -m gpu

tour: $(READY)  ## execute the tour live, about two minutes
	@python -m workflow.repro --fetch
	@python -m workflow.execute 0_tour $(TOUR)
	@echo "executed: $(TOUR) (read it in JupyterLab: make lab)"

lab: $(READY)  ## JupyterLab at the root of the repository, with the tour in view
	@python -m workflow.repro --fetch
	@jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/0_tour.ipynb

repro-from-scratch: $(READY)  ## recompute all; MODEL=vit-glyphs: only it; BASES=keep: not the bases
	@python -m workflow.repro $(if $(filter keep,$(BASES)),--keep-bases) --from-scratch $(MODEL)

rehearsal: $(READY)  ## what the real run of MODEL=gpt2-large will cost here: random weights, no network
	@TQDM_DISABLE=1 TORCHDYNAMO_DISABLE=1 TRANSFORMERS_VERBOSITY=error python -m study.rehearsal $(MODEL)

strip: $(READY)  ## clear the outputs of the source notebooks, before a commit
	@jupyter nbconvert --clear-output --inplace notebooks/*.ipynb

push: $(READY)  ## put new base models and permutations into .dvc/store, before a commit
	@dvc push

check: $(READY)  ## name the stages whose results are older than their code; run nothing
	@python -m workflow.repro --check
	@ruff check -q . && ruff format -q --check . && echo "ruff is clean"

# The environment is complete when .ready is newer than the pins.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) -V); valid is Python 3.11 (make PYTHON=python3.11)"; exit 2; }
	@echo "setting up $(VENV) (once, some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
