# serinus: everything from a bare clone. `make help` lists what there is.
#
# Needs Python 3.10 to 3.13, make and a package index; no root, nothing installed outside this folder.
# Two environments: .venv (serinus with every runtime, tests, linters) and .venv-mlserver (MLServer cannot share one with
# KServe). Each is made once and again when pyproject.toml or constraints.txt change.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3,10) <= sys.version_info < (3,14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
# uv does not read pip's own variable for a folder of wheels.
# Without such a folder PyTorch comes from its own index of CPU builds: the package index's default carries gigabytes of CUDA.
WHEELS = $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend cpu)
UV_INSTALL = $(UV) pip install -q --python $(BIN)/python $(WHEELS) -c constraints.txt
NATIVE := $(shell find runtimes/serinus/native -name '*.[ch]' -o -name '*.inc')
DIST ?= dist
UV_BUILD = $(UV) build -q --python $(BIN)/python --build-constraints constraints.txt -o "$(DIST)"

SERVICE ?= fraud
RUN_EXTRAS := fraud,xgboost_server,local,grpc_native,uvicorn
TEST_EXTRAS := $(RUN_EXTRAS),lightgbm_server,sklearn_server,catboost_server,classic_server,mlflow_server,onnx_server,torch_server,tensorflow_server,image_pixels,recommender_features,tuning,predict,otel
# The fraud service needs no framework but XGBoost and PyTorch; the others' demos take the whole environment.
SERVICE_ENVIRONMENT = $(VENV)/$(if $(filter fraud,$(SERVICE)),.run,.test)

PYTEST ?= $(BIN)/python -m pytest
# More processes than cores, since tests wait for servers (tests/conftest.py, which begins the longest files first); a file stays
# with one process, since its tests share servers.
ALL_CORES := -n auto --dist loadfile --no-loadscope-reorder
# Where the environment forbids it (as in images), each process that a test or a demo starts would compile its packages anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z0-9_%-]+:.*## / {printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/uv:
	@if [ -z "$(PYTHON)" ]; then echo "serinus: no Python 3.10 to 3.13 found; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi
	echo "serinus: making $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv

$(VENV)/.run: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/uv
	@echo "serinus: installing what serving needs (a minute the first time)"
	$(UV_INSTALL) -e ".[$(RUN_EXTRAS)]"
	touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "serinus: installing what tests and linters need"
	$(UV_INSTALL) -e ".[$(TEST_EXTRAS)]" --group test --group lint
	touch $@

# Without a wheel of atheris for this Python, the targets are fuzzed by mutators of our own, which follow no coverage, and say so.
$(VENV)/.fuzz: $(VENV)/.test
	@$(UV_INSTALL) --group fuzz || echo "serinus: no atheris for this Python: fuzzing without coverage"
	touch $@

$(VENV)/.bench: $(VENV)/.test
	@$(UV_INSTALL) --group bench
	touch $@

.PHONY: setup
setup: $(VENV)/.test ## Make the environment for development

.PHONY: environment
environment:
	@$(MAKE) -s $(SERVICE_ENVIRONMENT)

$(VENV)/.mutants: $(VENV)/.test
	@$(UV_INSTALL) --group mutants
	touch $@

.PHONY: demo
demo: environment ## Score transactions with the fraud InferenceService, end to end; or SERVICE=vision, recommender
	@$(BIN)/python inferenceservices/$(SERVICE)/demo.py $(ARGS)

.PHONY: up
up: environment ## Run an InferenceService on this machine: make up SERVICE=fraud [FORM=split|graph]
	@$(BIN)/serinus up $(if $(wildcard inferenceservices/$(SERVICE)/$(or $(FORM),fused)),inferenceservices/$(SERVICE)/$(or $(FORM),fused),inferenceservices/$(SERVICE)) $(ARGS)

.PHONY: down
down: $(VENV)/.run ## Stop what `make up` started
	@$(BIN)/serinus down $(ARGS)

$(VENV)/.mlserver: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/uv
	@echo "serinus: making .venv-mlserver, for the tests of MLServer's classes"
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-mlserver
	$(UV) pip install -q --python .venv-mlserver/bin/python -e ".[mlserver,grpc_native,lightgbm_server,onnx_server]" mlserver-xgboost==1.7.1 onnx httpx pytest pytest-asyncio pytest-timeout
	touch $@

.PHONY: test
test: $(VENV)/.test $(VENV)/.mlserver ## Run every test, on all cores: make test ARGS="-k batcher -n0"; DEEP=1: with all cases of each sweep, as CI does
	@some() { "$$@" || [ $$? = 5 ]; } # 5: ARGS choose none of these
	export DEEP_TESTS=$(DEEP)
	some $(PYTEST) -q -m "not alone" $(ALL_CORES) $(ARGS)
	some $(PYTEST) -q -m alone $(ARGS) -n 0

.PHONY: test-quick
test-quick: $(VENV)/.test ## Run the tests that take no more than a few seconds each
	@export QUICK_TESTS=1
	$(PYTEST) -q -m "not slow and not alone" $(ALL_CORES) $(ARGS) || [ $$? = 5 ]

.PHONY: lint
lint: $(VENV)/.test ## Check style, types and the layers' arrows
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	printf '3.10\n3.13\n' | xargs -P 2 -I{} $(BIN)/pyright --pythonversion {}
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m serinus.native.build --check
	$(BIN)/serinus lint $$(find inferenceservices -name 'inference*.yaml' -exec dirname {} \; | sort -u) $(wildcard manifests/overlays/*)

.PHONY: format
format: $(VENV)/.test ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: native
native: $(VENV)/.run ## Compile the kernels again
	@$(BIN)/python -m serinus.native.build

# Wheels are built from the sdist, so that it is known to hold all that they need.
.PHONY: wheel
wheel: $(BIN)/uv ## Build the sdist and wheels: manylinux2014 for x86_64 and aarch64, and one without kernels (dist/)
	@rm -f "$(DIST)"/serinus-*.whl "$(DIST)"/serinus-*.tar.gz
	$(UV_BUILD) --sdist
	for machine in x86_64 aarch64; do SERINUS_WHEEL_MACHINE=$$machine $(UV_BUILD) --wheel "$(DIST)"/serinus-*.tar.gz; done
	SERINUS_PURE=1 $(UV_BUILD) --wheel "$(DIST)"/serinus-*.tar.gz
	ls -1 "$(DIST)"/serinus-*

.PHONY: release
release: $(VENV)/.test ## Make a release: make release VERSION=0.2.0 [ARGS=--dry-run]: version, changelog, images' tags, wheels, a commit, a git tag
	@$(BIN)/python .ci/release.py "$(VERSION)" $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.fuzz ## Fuzz what reads untrusted bytes: make fuzz SECONDS=60 (each of the targets; clang and gcc for the kernels)
	@status=0
	$(BIN)/python tests/native/fuzz/run.py --seconds $(or $(SECONDS),60) $(ARGS) || status=1
	$(BIN)/python tests/reliability/fuzz/run.py --seconds $(or $(SECONDS),60) $(ARGS) || status=1
	exit $$status

.PHONY: mutants
mutants: $(VENV)/.mutants ## See whether a room's tests notice changes of a module: make mutants MODULE=serinus.dataplane.plane [SAMPLE=40] [SEED=1]
	@PYTHONPATH=tests $(BIN)/python -m mutants $(MODULE) --sample $(or $(SAMPLE),40) --seed $(or $(SEED),1) $(ARGS)

.PHONY: metrics-table
metrics-table: $(VENV)/.test ## Write the table of all metrics again (runtimes/serinus/METRICS.md)
	@PYTHONPATH=tests/support $(BIN)/python -m metrics_table

.PHONY: dashboards
dashboards: $(VENV)/.test ## Write Grafana's dashboards again (manifests/monitoring/dashboards); needs Python 3.11
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "serinus: Grafana\x27s SDK needs Python 3.11 or later")'
	$(BIN)/python manifests/monitoring/dashboards/generate.py

.PHONY: models
models: $(VENV)/.models ## Train the demo models again and write their held-out data
	@.venv-models/bin/python -m fraud_features.training --output inferenceservices/fraud --seed 42

.PHONY: novelty
novelty: $(VENV)/.models ## Measure what the fraud ensemble catches of kinds of fraud that it has never seen (~3 minutes)
	@.venv-models/bin/python -m fraud_features.novelty --output inferenceservices/fraud --seed 42

.PHONY: models-vision
models-vision: $(VENV)/.test ## Make the vision models and fetch its photographs into .cache/vision
	@$(UV_INSTALL) --group vision_models
	$(BIN)/python -m image_pixels.models --output .cache/vision $(ARGS)

.PHONY: models-recommender
models-recommender: $(VENV)/.test ## Fetch MovieLens 100K and train both recommenders (~1 minute, .cache/recommender)
	@$(BIN)/python -m recommender_features.training --output .cache/recommender --seed 42

$(VENV)/.models: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "serinus: making .venv-models"
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-models
	$(UV) pip install -q --python .venv-models/bin/python $(WHEELS) -c constraints.txt -e ".[fraud]" --group models
	touch $@

.PHONY: bench
bench: $(VENV)/.bench ## Measure against KServe, MLServer, Triton and others (~20 minutes, a quiet machine)
	@PYTHONPATH=tests $(BIN)/python -m benchmarks $(ARGS)

# A dash joins a model's image and the transformer in front of it in one process; serinus_base has no runtime.
IMAGES := serinus_base xgboost_server lightgbm_server sklearn_server catboost_server classic_server mlflow_server onnx_server torch_server tensorflow_server \
  ensemble_server ensemble_server-trees \
  fraud_features image_pixels recommender_features \
  ensemble_server-fraud_features ensemble_server-trees-fraud_features tensorflow_server-image_pixels torch_server-recommender_features
GPU_IMAGES := torch_server-gpu onnx_server-gpu tensorflow_server-gpu
TAG ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' runtimes/serinus/__init__.py)
DOCKER ?= docker
# The layers of each folder's extra (runtimes/images), of those that an image may have. A test holds both to pyproject.toml.
# WITH: layers beside them, as in `make image/xgboost_server WITH=model_signing`.
WITH ?=
LAYERS := torch tensorflow onnxruntime scipy lightgbm xgboost pandas sklearn catboost mlflow kserve pillow redis model_signing
layers_serinus_base :=
layers_xgboost_server := scipy xgboost
layers_lightgbm_server := scipy lightgbm
layers_sklearn_server := scipy pandas sklearn
layers_catboost_server := scipy pandas catboost
layers_classic_server := onnxruntime scipy lightgbm xgboost pandas sklearn catboost
layers_mlflow_server := $(layers_classic_server) mlflow
layers_onnx_server := onnxruntime
layers_torch_server := torch
layers_tensorflow_server := tensorflow
layers_ensemble_server := torch scipy xgboost pandas kserve
layers_ensemble_server_trees := scipy xgboost pandas kserve
layers_fraud_features := pandas kserve redis
layers_image_pixels := pandas kserve pillow
layers_recommender_features := pandas kserve
variant_of = $(filter gpu trees,$(subst -, ,$(1)))
folders_of = $(filter-out gpu trees,$(subst -, ,$(1)))
layers_of = $(sort $(foreach folder,$(folders_of),$(layers_$(folder)$(if $(filter ensemble_server,$(folder)),$(addprefix _,$(filter trees,$(variant_of)))))) $(WITH))
layer_flags = $(foreach layer,$(filter $(layers_of),$(LAYERS)),--build-arg $(layer)=$(layer)$(if $(filter gpu,$(variant_of)),$(if $(filter torch tensorflow onnxruntime,$(layer)),-gpu)))
REVISION = $(shell git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null)
# The repository's address where it is one that others can read, without a password that stands in it.
SOURCE ?= $(shell git config --get remote.origin.url 2>/dev/null | sed -n 's|^https://\([^/@]*@\)\{0,1\}|https://|p')
PIP_FLAGS = $(foreach name,PIP_INDEX_URL PIP_EXTRA_INDEX_URL,$(if $($(name)),--build-arg $(name)))

.PHONY: images
images: $(addprefix image/,$(IMAGES)) ## Build every image (DOCKER=docker or podman)

.PHONY: images-gpu
images-gpu: $(addprefix image/,$(GPU_IMAGES)) ## Build the images with CUDA libraries

image/%: ## Build one image: make image/xgboost_server
	@echo "serinus: building $*:$(TAG)" >&2
	$(DOCKER) build -q -f runtimes/Dockerfile --build-arg APP=$(firstword $(call folders_of,$*)) --build-arg TRANSFORMER=$(word 2,$(call folders_of,$*)) \
	  --build-arg VARIANT=$(call variant_of,$*) $(call layer_flags,$*) $(if $(filter serinus_base,$*),--target serinus_base) \
	  --build-arg VERSION="$(TAG)" --build-arg REVISION="$(REVISION)" --build-arg SOURCE="$(SOURCE)" $(PIP_FLAGS) $(DOCKER_ARGS) -t "$*:$(TAG)" .

.PHONY: locks
locks: $(VENV)/.run ## Write the locks of the images' packages again (runtimes/images/locks)
	@$(BIN)/python runtimes/images/locks.py $(ARGS)

.PHONY: sbom
sbom: ## Copy the images' SBOMs and lists of licences to build/sbom
	@for name in $(IMAGES); do
	  mkdir -p "build/sbom/$$name"
	  made=$$($(DOCKER) create "$$name:$(TAG)")
	  $(DOCKER) cp "$$made:/usr/share/serinus/." "build/sbom/$$name"; $(DOCKER) rm "$$made" >/dev/null
	  ls "build/sbom/$$name"/*
	done

.PHONY: image-table
image-table: $(VENV)/.test ## Build and measure the images; writes the table in runtimes/README.md
	@PYTHONPATH=tests/support DOCKER=$(DOCKER) $(BIN)/python tests/images/measure.py $(ARGS)

.PHONY: render
render: $(VENV)/.run ## Render every kustomization with kubectl into build/rendered
	@for folder in $$(find inferenceservices manifests -name kustomization.yaml -exec dirname {} \; | sort); do
	  grep -q '^kind: Component' "$$folder/kustomization.yaml" && continue
	  mkdir -p "build/rendered/$$folder"; $(BIN)/kubectl kustomize "$$folder" > "build/rendered/$$folder/all.yaml"; echo "build/rendered/$$folder/all.yaml"
	done

.PHONY: e2e
e2e: $(VENV)/.test ## Test on the cluster of KUBECONFIG, which has KServe (E2E_CONTROL_PLANE_ONLY=1: no nodes needed)
	@E2E=1 $(PYTEST) tests/e2e $(ARGS)

.PHONY: kind
kind: ## Make a kind cluster with KServe and our images: make kind ARGS="--service inferenceservices/fraud/fused" (needs kind, helm)
	@manifests/kind/up.sh $(ARGS)

.PHONY: clean
clean: ## Remove the environments and everything built
	@rm -rf .venv .venv-mlserver .venv-models build dist .cache .serinus .pytest_cache .ruff_cache .hypothesis
