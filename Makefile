# make demo   the page on http://127.0.0.1:7860 (PORT=..., HOST=...)
# make test   the whole test suite, browser included
# make train  the whole way on phantoms, or on DATA=folder (MODALITY=ct, VARIANT=mobilenetv2_100)
# make test-fast  what neither trains nor opens a browser, in about a minute
# make check  lint, format and types of the package
# make audit  hold the installed packages against known vulnerabilities; says so where none can be asked
# make sbom   sbom.json: what `pip install covid-xct` installs, as CycloneDX; written at release
# make test-lowest  the light set in the lowest versions that pyproject.toml allows, and the tests of reading with it
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
# tests that need the light set alone
LOWEST := hub_model/test_archives.py hub_model/test_dicom.py hub_model/test_images.py hub_model/test_codecs.py \
  hub_model/test_whole.py hub_model/test_folders.py hub_model/test_small_files.py

.PHONY: demo test test-fast train check audit sbom test-lowest browser node clean
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

audit: $(VENV)/.full $(VENV)/.tools
	@sh .ci/audit $(BIN)/python $(VENV)/tools/bin/python

sbom: $(VENV)/.tools
	$(VENV)/tools/bin/python -m pip install --quiet --dry-run --ignore-installed --report $(VENV)/resolved.json .
	$(VENV)/tools/bin/python .ci/pins $(VENV)/resolved.json > $(VENV)/resolved.txt
	$(VENV)/tools/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  --of JSON -o sbom.json $(VENV)/resolved.txt
	$(VENV)/tools/bin/python .ci/sbom sbom.json $(VENV)/resolved.json

test-lowest: $(VENV)/.tools
	$(VENV)/tools/bin/uv venv --quiet --clear --python $(PYTHON) $(VENV)/lowest
	$(VENV)/tools/bin/uv pip install --quiet --python $(VENV)/lowest/bin/python --resolution lowest-direct \
	  --only-binary :all: --no-binary covid-xct \
	  '.[parquet]' 'pytest>=9.0'
	cd tests && ../$(VENV)/lowest/bin/python -m pytest --rootdir .. -p no:cacheprovider \
	  --override-ini pythonpath=.. $(LOWEST)

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

$(VENV)/.tools: $(VENV)/.venv
	$(BIN)/python -m venv $(VENV)/tools
	$(VENV)/tools/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25' cyclonedx-bom pip-audit uv
	touch $@

# without byte code: Python compiles the third that is used on first use, and nobody waits for the rest
$(VENV)/.demo: pyproject.toml $(VENV)/.venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[demo]'
	touch $@

$(VENV)/.full: pyproject.toml $(VENV)/.venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,track,demo,dev]'
	touch $@ $(VENV)/.demo
