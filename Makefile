# Two commands: `make book` builds the site, `make test` checks everything. Each works on its own.
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PORT ?= 8000
BIN := $(VENV)/bin
HOMEWORK := .venv-homework
STAMP := $(VENV)/.installed
CHECKS := _build/checks

# One thread per process, as several run side by side.
export OMP_NUM_THREADS = 1
export MKL_NUM_THREADS = 1
export OPENBLAS_NUM_THREADS = 1

# $(call stage,NAME,COMMAND) runs a stage, says what it took and stops at a failure.
stage = @echo "==> $(1)"; start=$$(date +%s); \
	( $(2) ) || { echo "==> $(1): failed after $$(( $$(date +%s) - start )) s"; exit 1; }; \
	echo "==> $(1): $$(( $$(date +%s) - start )) s"
pytest = $(BIN)/pytest -q --junitxml=$(CHECKS)/$(1).xml

.NOTPARALLEL:
.PHONY: homework test-homework bench-grading stability slides help install book test fresh lint types unit fast quick claims nbval site browser check faults paper readme bench serve clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) JOBS=$(JOBS) PORT=$(PORT)"

install: $(STAMP) ## Make the virtual environment with the versions in constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "constraints.txt needs Python 3.11 or later: make PYTHON=python3.11 ..."; exit 1; }
	$(call stage,virtual environment,$(PYTHON) -m venv $(VENV))
	$(call stage,install,$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[book$(comma)test]")
	@touch $@

comma := ,

book: quick ## Run every notebook's quick preset and build the site in _build/html
	$(call stage,site,$(BIN)/fabook build)
	@echo "The site: $(CURDIR)/_build/html/index.html (make serve shows it)"

test: fresh lint types browser unit claims nbval site ## Run every check, cheap ones first
	@$(BIN)/python .ci/total.py $(CHECKS)

fresh:
	@rm -rf $(CHECKS)

lint: $(STAMP) ## Lint and format check, notebooks' code cells included
	$(call stage,ruff check,$(BIN)/ruff check .)
	$(call stage,ruff format,$(BIN)/ruff format --check .)
	$(call stage,notebooks,$(call pytest,notebooks) tests/bookkit/test_notebooks.py)

types: $(STAMP)
	$(call stage,mypy,$(BIN)/mypy)

unit: $(STAMP) browser
	$(call stage,doctests,$(call pytest,doctests) --doctest-modules fabook book/bookkit)
	$(call stage,tests,$(call pytest,unit) -n $(JOBS) tests --ignore=tests/bookkit/test_notebooks.py --ignore=tests/bookkit/test_site.py --ignore=tests/bookkit/test_pdf.py --ignore=tests/test_explorables.py)

# Without what starts kernels or a browser, builds the site or grades homeworks.
SLOW = bookkit/test_execute bookkit/test_sweep bookkit/test_standard_tools bookkit/test_build bookkit/test_new \
	bookkit/test_notebooks bookkit/test_lab bookkit/test_pdf bookkit/test_site test_explorables

check: lint types fast ## The inner loop: lint, types and the fast tests, two minutes

fast: $(STAMP)
	$(call stage,fast tests,$(call pytest,check) -n $(JOBS) tests --ignore=tests/homework $(SLOW:%=--ignore=tests/%.py))

# Fifty kills and more, an hour and a half: each fault is counted into the book's page.
faults: $(STAMP) homework ## Kill, fill the disk, damage files: count what is promised, into the book
	@rm -f $(CHECKS)/faults.xml; $(BIN)/pytest -q --junitxml=$(CHECKS)/faults.xml -m fault --kills 10 --otter tests; \
	$(BIN)/python .ci/promises.py $(CHECKS)/faults.xml

quick: $(STAMP)
	$(call stage,quick preset,$(BIN)/fabook run --preset quick --jobs $(JOBS))

# A second run of the same notebooks must print the same text. It works on a copy.
nbval: quick
	@rm -rf $(CHECKS)/quick; $(BIN)/fabook list --json | $(BIN)/python -c \
	'import json, sys; print(*(row["name"] for row in json.load(sys.stdin)), sep="\n")' | \
	while read -r name; do copy=$(CHECKS)/quick/$$name.ipynb; mkdir -p "$${copy%/*}"; \
	cp "_build/notebooks/quick/$$name.ipynb" "$$copy" || exit 1; done
	$(call stage,nbval,TQDM_DISABLE=1 $(call pytest,nbval) --nbval --nbval-current-env -n $(JOBS) --dist loadfile $(CHECKS)/quick)

claims: quick
	$(call stage,claims,$(BIN)/python .ci/verdicts.py)

site: quick browser
	$(call stage,site,$(BIN)/fabook build)
	$(call stage,site in a browser,$(call pytest,site) -n $(JOBS) --dist loadfile tests/bookkit/test_site.py tests/bookkit/test_pdf.py tests/test_explorables.py)

browser:
	@if { command -v chromium || command -v google-chrome; } >/dev/null \
	&& command -v chromedriver >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then root=; elif sudo -n true 2>/dev/null; then root="sudo -n"; else root=none; fi; \
	if [ "$$root" = none ] || ! command -v apt-get >/dev/null; then \
	echo "make test needs chromium and chromedriver on the PATH."; \
	echo "Debian: apt-get install chromium chromium-driver (as root), then again."; exit 1; fi; \
	echo "==> browser: chromium, chromium-driver"; \
	$$root apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive $$root apt-get install -y -qq --no-install-recommends chromium chromium-driver

paper: $(STAMP) ## Run every notebook's paper preset: hours, and real data
	$(call stage,paper preset,$(BIN)/fabook run --preset paper --jobs $(JOBS))

homework: $(HOMEWORK)/.installed ## Build the homeworks: student notebooks, autograders, solutions
	$(call stage,homework,$(HOMEWORK)/bin/python -m bookkit.otter_worker build \
	notebooks/homework/hw*.md _build/homework)

# otter-grader's Sphinx is newer than the book's: an environment of its own.
$(HOMEWORK)/.installed: pyproject.toml constraints-homework.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "constraints-homework.txt needs Python 3.11 or later: make PYTHON=python3.11 ..."; exit 1; }
	$(call stage,homework environment,$(PYTHON) -m venv $(HOMEWORK))
	$(call stage,install,$(HOMEWORK)/bin/python -m pip install --quiet \
	-c constraints-homework.txt -e ".[grading]")
	@touch $@

test-homework: $(STAMP) homework browser ## Grade every homework's known answers with otter, and the grader
	$(call stage,homework answers,$(call pytest,homework) --otter tests/homework tests/bookkit/test_grading.py)

bench-grading: $(STAMP) homework ## Grade 200 generated submissions: minutes and memory, into the book
	@$(BIN)/python tests/bench_grading.py --jobs $(JOBS) --page

slides: $(STAMP) ## Make the slides of the first hour: _build/slides
	@mkdir -p _build/slides
	$(call stage,slides,$(BIN)/jupytext --quiet --to ipynb book/teach/slides.md \
	-o _build/slides/slides.ipynb && $(BIN)/python -W ignore -m nbconvert --log-level WARN --execute --to slides --no-prompt \
	$(if $(REVEAL),--SlidesExporter.reveal_url_prefix=$(REVEAL)) --TagRemovePreprocessor.enabled=True \
	--TagRemovePreprocessor.remove_input_tags=remove-input _build/slides/slides.ipynb)

readme: $(STAMP) ## Rewrite the README's scorecard from the committed results
	@$(BIN)/python .ci/readme.py

# 290 runs, about two hours on one core; it goes on where it was stopped.
stability: $(STAMP) ## Run the quick preset with ten other seeds, and write the book's page of verdicts
	@$(BIN)/python .ci/stability.py --jobs $(JOBS)

# BioTorch pins an old torch: it is installed without that, in a folder of its own.
bench: $(STAMP) ## Measure speed and memory, beside BioTorch; BENCH=--page writes the book's page
	@[ -d _build/peer ] || $(BIN)/python -m pip install --quiet --no-deps --target _build/peer biotorch==0.0.16
	@$(BIN)/python tests/bench.py --peer _build/peer $(BENCH)

serve: ## Show the built site on localhost
	@$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

clean: ## Remove what was built; the virtual environment stays
	rm -rf _build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
