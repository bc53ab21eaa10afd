# The two commands that matter: `make lab` to read the book, `make test` to check it.
# Everything lives in .venv; another environment works too: make lab VENV="$CONDA_PREFIX"

VENV   ?= .venv
python  = $(VENV)/bin/python
pip     = $(python) -m pip --disable-pip-version-check
reader  = $(VENV)/.rlcourse-reader
dev     = $(VENV)/.rlcourse-dev
build   = $(python) -m rlcourse.bookmaking.build

.DEFAULT_GOAL := help
.PHONY: help venv setup lab reset test book site stale pockets bench gpu evidence elsewhere falsify reproduce

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

venv: $(python)  ## an empty .venv, to choose your own build of PyTorch before `make setup`

setup: $(reader)  ## the reader's packages in .venv, at the tested versions

lab: setup  ## open the book in JupyterLab, in your own copy: workbook/
	@$(python) -m rlcourse.bookmaking.workbook
	@$(python) -m jupyterlab --allow-root --ip=127.0.0.1 --ServerApp.root_dir=workbook \
	    --LabApp.default_url=/lab/tree/index.ipynb --LabApp.news_url=None \
	    --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

reset: setup  ## NOTEBOOK=chapters/13_grpo.ipynb: the book's version again; yours stays beside it
	@$(python) -m rlcourse.bookmaking.workbook --reset "$(NOTEBOOK)"

test: export OMP_NUM_THREADS = 1
test: $(dev)  ## every check: style, notebook sources, library, and all notebooks executed
	$(python) -m ruff check .
	$(build) --check
	$(python) -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests rlcourse
	$(python) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 300 -n 2 --dist loadfile book/

book: $(dev)  ## execute the notebooks whose source or code changed; NOTEBOOK=book/chapters/13_grpo.md for one
	@$(build) $(if $(NOTEBOOK),"$(NOTEBOOK)",--stale-only)

site: $(dev)  ## the book as web pages in site/, and site/rlcourse.epub; needs npm the first time
	@$(python) -m rlcourse.bookmaking.site

stale: setup  ## list notebooks and evidence made by other code than today's
	@$(python) -m rlcourse.bookmaking.stale

pockets: setup  ## pretrain the pocket models from nothing
	$(python) -m rlcourse.bookmaking.pretrain

bench: $(dev)  ## seconds a step and memory, beside TRL; with a GPU, on the GPU
	$(python) benchmarks/speed.py

gpu: $(dev)  ## everything that only a GPU can show: the model lab, its runs, speed (ten minutes, restartable)
	$(python) benchmarks/gpu.py --out runs/gpu --record

evidence: $(dev)  ## run again, over all seeds, what the chapters claim (some three hours)
	$(python) benchmarks/grpo_evidence.py
	$(python) benchmarks/critic_evidence.py
	$(python) benchmarks/dapo_evidence.py
	$(python) benchmarks/gspo_evidence.py
	$(python) benchmarks/arena.py --record
	$(python) benchmarks/reward_model_evidence.py
	$(python) benchmarks/dpo_evidence.py
	$(python) benchmarks/kto_evidence.py
	$(python) benchmarks/growth.py --record
	$(python) benchmarks/speed.py --record

elsewhere: $(dev)  ## numeric tests and notebooks under other roundings and seeds (hours; it may be stopped at any time)
	$(python) benchmarks/elsewhere.py

falsify: $(dev)  ## take the line that a chapter is about out of its method: which of its claims fail?
	$(python) benchmarks/falsify.py

reproduce: $(dev)  ## after a change that should change no number: does the evidence come out to the same digits?
	$(python) benchmarks/reproduce.py

.PHONY: mutants
mutants: $(dev)  ## after a change of the library or its tests: which mistake would no test notice? (restartable)
	$(python) benchmarks/mutants.py

.PHONY: peers
peers: .venv-peers/.ready $(dev)  ## compute again, with verl, what the tests compare ours with
	.venv-peers/bin/python benchmarks/peers.py
	$(python) benchmarks/peers_config.py

# verl wants another transformers than we do, so it lives apart (1.4 GB, two minutes)
.venv-peers/.ready: tests/peers/requirements.txt | $(python)
	$(python) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check install -r tests/peers/requirements.txt
	.venv-peers/bin/python -m pip --disable-pip-version-check install --no-deps verl==0.9.1
	@touch $@

# The first of these that runs and is new enough makes the environment.
$(python):
	@for candidate in python3.11 python3 python3.12 python3.13; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$candidate"; \
	        $$candidate -m venv $(VENV) && exit; \
	        rm -f $(python); exit 1; \
	    fi; \
	done; \
	echo "rlcourse needs Python 3.11 or newer, and found: $$(python3 --version 2>&1)."; \
	echo "Install one (python.org, Homebrew, your distribution) and run make again."; exit 1

$(reader): pyproject.toml constraints.txt | $(python)
	@echo "Installing the reader's packages (a few minutes the first time)"
	$(pip) install -e . -c constraints.txt
	@$(VENV)/bin/jupyter labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements
	@touch $@

$(dev): $(reader)
	@echo "Installing the developer's packages too"
	$(pip) install -e '.[dev,site]' -c constraints.txt
	@touch $@
