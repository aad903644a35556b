"""The kernels: each step of a call against the plainest means, on a GPU, and without one in plain C++; and what of them
a compiler can say. `make cuda` installs NVIDIA's."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hadskip_export.runtime import read_bundle
from hadskip_export.runtime.engines.torch_cuda import TorchCudaEngine
from hadskip_export.runtime.engines.torch_cuda.ahead import Ahead, Full
from hadskip_export.runtime.engines.torch_cuda.kernels import NAMES, CudaKernels, checked, compiled, packed_arguments
from hadskip_export.runtime.engines.torch_cuda.lane import Lane, Sizes
from hadskip_export.runtime.engines.torch_cuda.layers import Part
from hadskip_export.runtime.engines.torch_cuda.model import Model
from hadskip_export.support.errors import EngineError
from tests.runtime.engines.host import PlainLoop, TorchKernels
from tests.runtime.engines.torch_cuda.cuda_on_host import COMPILER, DECLARED, HostCudaKernels

NO_GPU = TorchCudaEngine.why_not_here()
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))]
ON_HOST = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="there is no g++")]
DTYPES = list(NAMES)
# rows, tokens, columns, units of a gate, layers; larger ones where many threads take no turns
SMALL = [(1, 16, 32, 4, 32), (1, 7, 320, 40, 5), (1, 5, 32, 3, 33), (3, 20, 96, 7, 5), (9, 3, 136, 36, 6)]
ALONE = [(1, 128, 768, 64, 12), (1, 300, 4096, 5, 5), (1, 9, 4100, 5, 5)]
LARGE = [*ALONE, (40, 24, 1056, 64, 5), (32, 128, 768, 64, 12), (2, 300, 4096, 5, 5)]
SIZES = [
    *(pytest.param("cpu", size, marks=ON_HOST, id=f"cpu-{size}") for size in SMALL),
    *(pytest.param("cuda", size, marks=ON_GPU, id=f"cuda-{size}") for size in SMALL + LARGE),
]
IN_C = {torch.float32: "float", torch.float16: "T", torch.int32: "int", torch.int64: "long long"}


@pytest.fixture(scope="module", params=DTYPES, ids=NAMES.get)
def kernels_by_device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    made = {}

    def kernels_of(device: str):
        if device not in made:
            folder = tmp_path_factory.mktemp("kernels")
            made[device] = HostCudaKernels(request.param, folder) if device == "cpu" else CudaKernels(request.param)
        return request.param, made[device]

    return kernels_of


@pytest.mark.parametrize(("device", "size"), SIZES)
def test_each_step_of_a_call_is_what_the_plainest_means_make_of_it(kernels_by_device, device: str, size):
    dtype, kernels = kernels_by_device(device)
    rows, length, hidden_size, width, num_layers = size
    random = np.random.default_rng(rows)

    def drawn(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.from_numpy(random.normal(size=shape).astype(np.float32)).to(device, of)

    def part(of: torch.dtype = torch.float32, **shapes: tuple[int, ...]) -> Part:
        return Part({name.replace("_", "."): drawn(*shape, of=of) for name, shape in shapes.items()}, 4, 1e-12, "gelu")

    sizes = Sizes(num_layers, num_classes=3, hidden_size=hidden_size, dtype=dtype, device=device)
    ours, plain = (Lane(sizes, rows, length, PlainLoop()) for _ in range(2))
    systems = [(kernels, ours), (TorchKernels(), plain)]
    tables = {"word": 9, "position": length, "segment": 2}
    norm = {"norm_weight": (hidden_size,), "norm_bias": (hidden_size,)}
    words = part(**{f"{name}_weight": (count, hidden_size) for name, count in tables.items()}, **norm)
    low = part(of=dtype, **norm)
    units = num_layers * width
    gates = part(hidden_weight=(units, hidden_size), hidden_bias=(units,), margins_bias=(num_layers,))
    gates.weights["hidden.weight"].div_(hidden_size**0.5)
    gates.weights["margins.weight"] = torch.block_diag(*drawn(num_layers, 1, width))
    head = part(
        pooler_weight=(hidden_size, hidden_size),
        pooler_bias=(hidden_size,),
        classifier_weight=(3, hidden_size),
        classifier_bias=(3,),
    )
    for name in ("pooler", "classifier"):
        head.weights[f"{name}.weight"].div_(hidden_size**0.5)
    ids, types = random.integers(9, size=(rows, length)), random.integers(2, size=(rows, length))
    mask = (np.arange(length) < random.integers(1, length + 1, (rows, 1))).astype(np.int64)
    close = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 0.1}[dtype]

    def assert_same(*names: str, atol: float = 0) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        for name in names:
            got, expected = getattr(ours, name).float(), getattr(plain, name).float()
            assert bool(got.isfinite().all()), name
            torch.testing.assert_close(got, expected, atol=atol, rtol=0, msg=lambda said, name=name: f"{name}: {said}")

    for system, lane in systems:
        lane.send([ids, types], mask, np.zeros((rows, num_layers), np.float32), 3)
        lane.expect()
        system.begin(words, lane)
    assert_same("states", atol=close)
    assert_same("mask", "bias", "terms", "ran", "at", "done", "count")
    ran = 0
    for layer in (-1, 0, 1, 1, 2, num_layers - 1, num_layers):
        states, thresholds = drawn(rows, length, hidden_size, of=dtype), drawn(rows, num_layers) - 1
        thresholds[:, 0] -= 20  # so that some row surely runs it
        listed = random.permutation(rows)[: 0 if layer == num_layers else max(1, rows // 2)]
        gathered = []
        for system, lane in systems:
            lane.states.copy_(states)
            lane.terms[:, :num_layers] = thresholds
            if len(listed):
                lane.listed.fill_(-1)
                lane.listed[: len(listed)] = torch.from_numpy(listed)
                gathered.append(system.gather(lane, len(listed)))
            system.decide(gates, lane, layer, len(listed))
        assert_same("margins", atol=1e-4)  # which waits for a device, as this lane's recorder does not
        assert ours.reported() == plain.reported()
        assert_same("slots", "ran", "at", "done", "next", "planned", "listed", "writes", "report")
        if len(listed):
            for got, expected in zip(*gathered, strict=True):
                torch.testing.assert_close(got, expected, atol=0, rtol=0)
            tokens = 1 if layer == num_layers - 1 else length
            one, other = (drawn(len(listed), tokens, hidden_size, of=dtype) for _ in range(2))
            sums = [system.add_norm(low, "norm", one, other) for system, _ in systems]
            torch.testing.assert_close(*sums, atol=close, rtol=0.02)
            for system, lane in systems:
                system.replace(low, "norm", one, other, lane)
            ran += int(ours.writes[: len(listed)].sum())
            assert_same("states", atol=5 * close)
        for system, lane in systems:
            system.reply(head, states, lane)
        assert_same("answer", atol=1e-4)
    assert int(ours.report[-1]) == 7 and int(ours.ran.sum()) == ran > 0


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
def test_running_ahead_on_them_gives_what_it_gives_on_the_plainest_means(bundle: Path, tmp_path: Path):
    file = bundle / read_bundle(bundle).manifest.weights
    kinds = (lambda dtype: HostCudaKernels(dtype, tmp_path)), (lambda dtype: TorchKernels())
    models = [Model(file, "fp32", "cpu", PlainLoop(), kind) for kind in kinds]
    pieces = [(Ahead(model, "whole"), Full(model, "full")) for model in models]
    random = np.random.default_rng(0)
    for rows, most in ((1, 4), (5, 4), (1, 1), (3, 2)):
        ids, types = random.integers(1, 20, (rows, 9)), random.integers(2, size=(rows, 9))
        mask = (np.arange(9) < random.integers(1, 10, (rows, 1))).astype(np.int64)
        thresholds = random.normal(size=(rows, 4)).astype(np.float32)
        thresholds[0, 1] = -np.inf
        answers = [ahead(ids, mask, types, thresholds, np.full(rows, most)) for ahead, _ in pieces]
        np.testing.assert_array_equal(answers[0][1], answers[1][1])
        np.testing.assert_allclose(answers[0][0], answers[1][0], atol=1e-5)
        np.testing.assert_allclose(*(full(ids, mask, types) for _, full in pieces), atol=1e-5)


# NVIDIA's compiler


@pytest.fixture
def nvrtc():
    return pytest.importorskip("cuda.bindings.nvrtc")


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("dtype", NAMES.values())
def test_they_compile_for_every_chip_since_turing(nvrtc, architecture: str, dtype: str):
    code = compiled(architecture, dtype)
    assert code[:4] == b"\x7fELF" and all(name.encode() in code for name in DECLARED)


def test_an_architecture_that_the_compiler_does_not_know_is_an_engine_error(nvrtc):
    with pytest.raises(EngineError, match="CUDA: NVRTC_ERROR_INVALID_OPTION"):
        compiled("sm_1", "float")


def test_a_status_that_is_an_error_is_one(nvrtc):
    driver = pytest.importorskip("cuda.bindings.driver")
    assert checked((nvrtc.nvrtcResult.NVRTC_SUCCESS, 5)) == (5,)
    with pytest.raises(EngineError, match=r"CUDA: CUDA_ERROR_NOT_SUPPORTED; "):
        checked((driver.CUresult.CUDA_ERROR_NOT_SUPPORTED, None))


def test_arguments_are_what_the_kernels_declare(monkeypatch: pytest.MonkeyPatch):
    """In number, order and type, tensors by their dtype: nothing else would notice a wrong one."""
    launched = {}

    def launch(self, name, grid, threads, *arguments, shared=0):
        launched[name] = arguments

    monkeypatch.setattr(CudaKernels, "_launch", launch)
    monkeypatch.setattr(CudaKernels, "_lowest", -65504.0, raising=False)
    kernels = object.__new__(CudaKernels)
    sizes = Sizes(num_layers=5, num_classes=3, hidden_size=64, dtype=torch.float16, device="cpu")
    lane = Lane(sizes, 2, 16, PlainLoop())
    names = ["word", "position", "segment", "norm", "hidden", "margins", "pooler", "classifier"]
    shapes = {"weight": (5, 64), "bias": (5,)}
    weights = {f"{name}.{kind}": torch.zeros(shape) for name in names for kind, shape in shapes.items()}
    low = {name: weight.half() for name, weight in weights.items()}
    kernels.begin(Part(weights, 4, 1e-12, "gelu"), lane)
    kernels.gather(lane, 2)
    kernels.decide(Part(weights, 4, 1e-12, "gelu"), lane, 1, 2)
    kernels.decide(Part(weights, 4, 1e-12, "gelu"), Lane(sizes, 1, 16, PlainLoop()), 1, 1)
    kernels.replace(Part(low, 4, 1e-12, "gelu"), "norm", lane.states, lane.states, lane)
    kernels.reply(Part(weights, 4, 1e-12, "gelu"), lane.states, lane)
    assert launched.keys() == DECLARED.keys()
    for name, arguments in launched.items():
        found = [f"{IN_C[one.dtype]}*" if isinstance(one, torch.Tensor) else type(one).__name__ for one in arguments]
        declared = [re.sub(r"\b(const|volatile) ", "", one).rpartition(" ")[0] for one in DECLARED[name]]
        assert found == declared, name


def test_pointers_are_addresses():
    tensor = torch.zeros(3)
    values, _ = packed_arguments((tensor, 2, 0.5, None))
    assert values == (tensor.data_ptr(), 2, 0.5, 0)
