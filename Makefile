# make demo   the page on http://127.0.0.1:7860 (PORT=..., HOST=...)
# make test   the whole test suite, browser included
# make train  the whole way on phantoms, or on DATA=folder (MODALITY=ct, VARIANT=mobilenetv2_100)
# make test-fast  what neither trains nor opens a browser, in about a minute
# make check  lint, format and types of the package
# make node   transformers.js and ONNX Runtime Web (0.5 GB), for the tests that otherwise skip for want of them
# Each makes its own environment in .venv on first use and reuses it afterwards.
PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 7860
MODALITY ?= ct
VARIANT ?= covid_cnn_1
DATA ?=
RUN ?= runs/$(MODALITY)-$(VARIANT)
BIN := $(VENV)/bin

.PHONY: demo test test-fast train check browser node clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python demo/app.py --host $(HOST) --port $(PORT)

test: $(VENV)/.full browser
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/.full
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

train: $(VENV)/.full
	$(if $(DATA),,$(BIN)/python -m train phantom --out data/phantoms --n 200)
	$(BIN)/python -m train fit --data $(or $(DATA),data/phantoms) --modality $(MODALITY) --variant $(VARIANT) --out $(RUN)
	$(BIN)/python -m train evaluate $(RUN) --data $(or $(DATA),data/phantoms)

check: $(VENV)/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

browser:
	@sh .ci/browser $(BIN)/python

node:
	npm install --prefix tests/node --ignore-scripts --no-audit --no-fund --no-package-lock
	npm install --no-save --no-audit --no-fund --ignore-scripts --no-package-lock --prefix . \
	  onnxruntime-web@$$(sed -n 's/.*"onnxruntime-web": "\(.*\)".*/\1/p' train/release/static_space/package.json)

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "covid-xct needs Python 3.11 or newer; $(PYTHON) is older. Say: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	touch $@

$(VENV)/.full: pyproject.toml $(VENV)/.venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,track,demo,dev]'
	touch $@ $(VENV)/.demo
