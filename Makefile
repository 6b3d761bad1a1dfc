# Two commands do everything: `make repro` and `make test`. Each sets up what it needs in .venv/.

PYTHON ?= python3
VENV   := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
READY  := $(VENV)/.ready

.PHONY: help repro test tour lab repro-from-scratch strip push check
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

repro: $(READY)  ## bring figures/ and results/ up to date (dvc repro), print the results
	@python -m workflow.repro

test: $(READY)  ## run all tests
	@python -m pytest

tour: $(READY)  ## execute the tour live, about two minutes
	@python -m workflow.repro --fetch
	@python -m workflow.execute 0_tour models/0_tour.ipynb
	@echo "executed: models/0_tour.ipynb (read it in JupyterLab: make lab)"

lab: $(READY)  ## JupyterLab in notebooks/
	@python -m workflow.repro --fetch
	@jupyter lab notebooks

repro-from-scratch: $(READY)  ## recompute all; MODEL=vit-glyphs: only it; BASES=keep: not the bases
	@python -m workflow.repro --from-scratch $(MODEL) $(if $(filter keep,$(BASES)),--keep-bases)

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
