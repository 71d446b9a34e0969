# Everything runs inside .venv, which is made on first use. Only Python (3.10 or newer) and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
CONSTRAINTS ?= constraints.txt
DOCS   := .venv-docs
DOCS_READY := $(DOCS)/.ready
BROWSER := build/browser
WEB := .venv-runtimes/node/node_modules/onnxruntime-web/dist
SAMPLE ?= tests/zoo/sample-requirements.txt

.PHONY: demo test test-long test-documents test-libraries test-mnist runtimes browser browser-driver browser-files browser-test quick check format lint types wheel zoo compaction-sweep properties hostile torch-matrix bench bench-peers gallery docs docs-serve docs-screens clean
docs docs-serve: export NO_MKDOCS_2_WARNING = 1

demo: $(READY)          ## the whole story on one page: demo-output/index.html
	$(BIN)/bensemble demo --output demo-output

test: $(READY)          ## every test of the code that needs no data set and no other library's networks
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not data and not libraries and not documents and not long"

test-long: $(READY)      ## processes that are started and killed, compiled networks, wheels, many samples
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "long and not documents and not data and not libraries"

test-documents: $(READY)  ## what takes long of what documents, examples and the demo show
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "documents and not data and not libraries"

test-libraries: $(READY)  ## real networks of torchvision, timm and transformers, and real trainers
	$(BIN)/python -m pytest -n auto --dist loadgroup -m libraries

test-mnist: $(READY)    ## the recipes on a pretrained network and MNIST; BENSEMBLE_MNIST names an npz file of it
	$(BIN)/python -m pytest -n auto --dist loadgroup -m data

quick: $(READY)         ## the tests that take seconds
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow and not long and not data and not libraries"

check: lint types test test-long test-documents  ## what has to pass before a change lands

format: $(READY)        ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

wheel: $(READY)         ## build both wheels and try each in an empty environment
	$(BIN)/python tests/wheel_smoke.py
	$(BIN)/python tests/runtime_wheel_smoke.py

zoo:                    ## convert and check every model of torchvision, timm, transformers and others; takes hours
	test -x .venv-zoo/bin/python || $(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/pip install --quiet --constraint constraints.txt --editable ".[io,onnx]"
	.venv-zoo/bin/pip install --quiet --no-deps --requirement tests/zoo/requirements.txt
	.venv-zoo/bin/python -m tests.zoo

compaction-sweep:       ## compact real architectures with zeroed channels, heads and neurons; needs the environment of `make zoo`
	.venv-zoo/bin/python -m tests.graph.sweep

properties: $(READY)    ## thousands of random networks through the whole chain, and the faults that it must notice
	PYTHONPATH=tests $(BIN)/python -m properties

hostile: $(READY)       ## 20,000 damaged files through every loader, and 50 kills; half an hour
	$(BIN)/python -m tests.hostile 20000
	BENSEMBLE_KILLS=50 $(BIN)/python -m pytest -q tests/hostile/test_kills.py tests/hostile/test_faults.py

runtimes: $(READY)      ## a fixed set of ONNX files in every client: old and new ONNX Runtime, OpenVINO, tract, node, web, Chromium
	$(BIN)/python -W ignore -m tests.runtimes

browser: browser-files  ## a page where a network says what it does not know about your drawings; needs npm
	@echo "Open http://127.0.0.1:8000 (end with Ctrl-C)"
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory $(BROWSER)

browser-test: browser-files browser-driver  ## draws on that page in Chromium, which has to be installed
	PYTHONPATH=$(BROWSER)-driver $(BIN)/python -m pytest tests/browser

browser-driver: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --target $(BROWSER)-driver playwright==1.65.2

browser-files: $(BROWSER)/digits.onnx
	mkdir -p .venv-runtimes/node
	test -d $(WEB) || npm install --silent --ignore-scripts --prefix .venv-runtimes/node onnxruntime-web@1.30
	cp $(WEB)/ort.wasm.min.mjs $(WEB)/ort-wasm-simd-threaded.mjs $(WEB)/ort-wasm-simd-threaded.wasm $(BROWSER)
	cp examples/browser/*.html examples/browser/*.css examples/browser/*.js $(BROWSER)

$(BROWSER)/digits.onnx: $(READY) examples/browser/train.py
	$(BIN)/python examples/browser/train.py $(BROWSER)

torch-matrix: $(READY)  ## the suite on the oldest and the newest torch and Python; many gigabytes, hours
	$(BIN)/python -m tests.torch_matrix

bench: $(READY)         ## ratios to the deterministic network; needs a quiet machine
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/kl.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/environment.py
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/onnx_uncertainty.py
	$(BIN)/python benchmarks/onnx_draws.py
	$(BIN)/python benchmarks/exporting.py
	$(BIN)/python benchmarks/deployment.py
	$(BIN)/python benchmarks/prediction.py

bench-peers: $(READY)   ## the same training steps with other libraries, installed beside this one
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/peers --requirement benchmarks/libraries/requirements.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/published bensemble==0.2.2
	$(BIN)/python benchmarks/peers.py --peers $(VENV)/peers --published $(VENV)/published

gallery: $(READY)       ## run every example, write its page, figure and notebook, and run the notebooks
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/notebooks nbclient ipykernel
	PYTHONPATH=. $(BIN)/python docs/site_gallery.py
	PYTHONPATH=$(CURDIR)/$(VENV)/notebooks $(BIN)/python -m pytest tests/documents/test_gallery.py

docs: $(DOCS_READY)     ## the documentation as a site: build/site/index.html
	$(DOCS)/bin/mkdocs build --strict

docs-screens: docs demo browser-driver  ## the site and the demo as pictures, wide and narrow, light and dark; needs Chromium
	PYTHONPATH=$(BROWSER)-driver $(BIN)/python -m tests.browser.screens --demo demo-output

docs-serve: $(DOCS_READY)  ## the same on a local address, built again after every change
	$(DOCS)/bin/mkdocs serve

clean:
	rm -rf $(VENV) .venv-zoo .venv-matrix .venv-runtimes $(DOCS) build dist demo-output

$(READY): pyproject.toml $(CONSTRAINTS) tests/real/requirements.txt tests/trainers/requirements.txt $(SAMPLE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/real/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/trainers --requirement tests/trainers/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/zoo --requirement $(SAMPLE)
	touch $(READY)

# The sources are read, not imported, so this environment needs no torch. Its names are those of the `docs` extra.
$(DOCS_READY): pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt mkdocs mkdocs-material mkdocstrings mkdocstrings-python ruff
	touch $(DOCS_READY)
