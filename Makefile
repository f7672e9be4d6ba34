# make demo   from a fresh machine to the report of the demo      make test   the tests
# make lint   style and types                                make lock   new constraints.txt
# make docs   the documentation as a site, in site/         make coverage   lines and branches that tests run
SHELL := /bin/bash
VENV  ?= .venv
PY    := $(VENV)/bin/python
PYTHON ?= python3
# Build of torch on machines with internet: auto (looks for a GPU), cpu, cu126, cu128, cu130 …
TORCH ?= auto
# A folder of wheels, when pip is configured with one, offers its own build of torch and is taken instead.
FIND_LINKS := $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
TORCH_SOURCE := $(if $(FIND_LINKS),UV_FIND_LINKS="$(FIND_LINKS)",UV_TORCH_BACKEND=$(TORCH))
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
# Without .pyc files every command spends seconds compiling the same libraries again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test coverage lint lock docs
.SILENT:

demo: $(VENV)/.installed
	$(VENV)/bin/maescreen run configs/demo.yaml

test: $(VENV)/.installed
	$(PY) -m pytest -q -n 2 --dist loadfile

# TESTS=tests/store looks at a part, of which no share is asked.
coverage: $(VENV)/.installed
	rm -f .coverage .coverage.*
	$(PY) -m coverage run -m pytest -q -n 2 --dist loadfile $(TESTS)
	$(PY) -m coverage combine -q
	$(PY) -m coverage report $(if $(TESTS),--fail-under=0)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check

docs: $(VENV)/.docs
	$(PY) docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(TORCH_SOURCE) $(VENV)/bin/uv pip install -q --python $(PY) -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check 'uv>=0.8,<1'
	$(TORCH_SOURCE) $(VENV)/bin/uv pip install -q --python $(PY) -c constraints.txt -e '.[dev,cluster,onnx,dicom-node]'
	touch $@

# Pins that fit every platform: packages of one torch build are left out, so that any build can be taken.
TORCH_VERSION ?= 2.13.0
lock: $(VENV)/.installed
	$(TORCH_SOURCE) $(VENV)/bin/uv pip compile -q --universal --no-header --no-annotate --all-extras --python-version 3.11 \
	  -c <(echo torch==$(TORCH_VERSION)) --no-emit-index-url --no-emit-find-links pyproject.toml \
	  | grep -Ev '^(nvidia-|cuda-|triton)' | sed -E 's/^torch==([0-9.]+)[^ ]*( .*)?$$/torch==\1/' | sort -u > constraints.txt
