# Each target sets up what it needs. `make demo` and `make test` are all that a fresh clone asks of you.

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DO_NOT_TRACK := 1
# A run starts dozens of Pythons: where bytecode is not kept, each compiles Great Expectations or torch anew, for 10 s.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test test-ceph bench soak lint format constraints clean

help:
	@echo "make demo         the whole pipeline once, on handwritten digits: a release, its grid, its numbers"
	@echo "make test         the tests"
	@echo "make test-ceph    those that talk to S3 once more, to a Ceph gateway; wants ceph-mon, ceph-osd and radosgw"
	@echo "make bench        how fast training, sampling and delivery are here, in some minutes; wants idle cores"
	@echo "make soak         what 200 scheduled runs leave behind and what a run costs, held to limits, in half an hour"
	@echo "make lint         ruff, mypy, the import contracts"
	@echo "make format       ruff's formatting and its safe corrections"
	@echo "make constraints  compile infra/constraints.txt afresh"

demo: $(VENV)/installed-train
	forgeline run

test: $(VENV)/installed-dev
	pytest -n 2 --dist loadfile --no-loadscope-reorder

test-ceph: $(VENV)/installed-dev
	FORGELINE_TEST_S3=ceph pytest tests/delivery tests/sources/test_files.py \
		tests/flows/test_mirror.py tests/flows/test_scheduled.py tests/flows/test_handover.py

bench: $(VENV)/installed-dev
	python tests/bench/speed.py
	python tests/bench/delivery.py

soak: $(VENV)/installed-dev
	python tests/bench/overhead.py
	python tests/bench/soak.py

lint: $(VENV)/installed-dev
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: $(VENV)/installed-dev
	ruff check --fix .
	ruff format .

constraints: $(VENV)/installed-dev
	uv pip compile --quiet --universal --python-version 3.11 --extra train --extra workers --extra dev \
		--no-annotate --no-header --no-emit-index-url --upgrade --output-file infra/constraints.txt pyproject.toml

clean:
	rm -rf $(VENV)

# The virtual environment, pinned by infra/constraints.txt; made anew when either file changes.
$(VENV)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: $$($(PYTHON) --version) is too old; needed 3.11 or newer, named by PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
		|| { echo "make: Python's venv is incomplete; mend it with: sudo apt install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint infra/constraints.txt uv

$(VENV)/installed-train: $(VENV)/bin/uv pyproject.toml infra/constraints.txt
	@echo "make: installs the pinned packages into $(VENV), 6 GB; the first time takes minutes"
	uv pip install --quiet --python $(VENV)/bin/python --constraint infra/constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/uv pyproject.toml infra/constraints.txt
	@echo "make: installs the pinned packages into $(VENV), 6 GB; the first time takes minutes"
	uv pip install --quiet --python $(VENV)/bin/python --constraint infra/constraints.txt --editable '.[train,dev]'
	uv pip install --quiet --python $(VENV)/bin/python --constraint infra/constraints.txt --target $(VENV)/workers \
		prefect-aws prefect-kubernetes prefect-docker==0.7.4
	@touch $@ $(VENV)/installed-train
