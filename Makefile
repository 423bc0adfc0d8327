# Every target sets up .venv by itself, with the python3 at hand or with another: PYTHON=python3.12 make test
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
SUPPORTED := 3.10 3.11 3.12 3.13
BIN := .venv/bin
READY := .venv/ready-$(VERSION)
BOOK := .venv/book-$(VERSION)
COPY := _proc/copy

.PHONY: reproduce test test-all sync readme book

# Processes: JOBS=8; the full grid: FULL=1; anything else of the command: ARGS="table_3 -p num_modified 8"
# Results go to _runs/figures/synthetic and are compared with figures/synthetic; to replace these: REFRESH=1
JOBS ?= 2

reproduce: $(READY)
	$(BIN)/modmem reproduce --jobs $(JOBS) $(if $(FULL),--full) $(if $(REFRESH),--refresh) $(ARGS)

test-all: $(BOOK)
test-all: PYTEST_OPTIONS := --run-slow
# Notebooks run among the tests (tests/test_notebooks.py), as nbdev_test would run them: what takes long is spread over all processes.
test test-all: sync
	$(BIN)/python -m pytest tests -n $(JOBS) --dist worksteal $(PYTEST_OPTIONS)

# Cleaning and exporting must change nothing; a copy is cleaned, so that a test never touches the tree.
sync: $(READY)
	@rm -rf $(COPY) && mkdir -p $(COPY) && cp -R settings.ini nbs modmem $(COPY)
	cd $(COPY) && "$(CURDIR)/$(BIN)/nbdev_clean" && "$(CURDIR)/$(BIN)/nbdev_export"
	@diff -r -x .ipynb_checkpoints nbs $(COPY)/nbs && diff -r -x __pycache__ modmem $(COPY)/modmem || \
	{ echo "nbs/ and modmem/ are out of step: run nbdev_clean and nbdev_export, commit what changes"; exit 1; }

# The book, in _site/: open _site/index.html. Notebooks are executed on committed rows; the second time, only what changed is built.
book: $(BOOK)
	$(BIN)/python nbs/_book/build.py --jobs $(JOBS)

readme: $(READY)
	$(BIN)/python tests/readme.py

# Without its stamp, an environment is half made or another Python's: it starts anew.
$(READY): settings.ini setup.py constraints.txt
ifeq ($(filter $(VERSION),$(SUPPORTED)),)
	$(error modmem needs Python 3.10 to 3.13, and $(PYTHON) is $(or $(VERSION),not there))
endif
	@echo "Setting up .venv with Python $(VERSION): some minutes, once"
	test -e $@ || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --use-pep517 -e '.[dev]'
	@touch $@

$(BOOK): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --use-pep517 -e '.[book]'
	@touch $@
