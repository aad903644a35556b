"""How TensorRT's engines are run: addresses, shapes, whose memory lives how long. On the host, where ONNX Runtime
computes behind TensorRT's interface and memory is written over when it is given back; and whether the real library has
all of that interface."""

import gc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export import build
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.engines import ENGINES, engine_class, tensorrt
from hadskip_export.runtime.engines.cuda_memory import KEPT
from hadskip_export.support.errors import EngineError
from hadskip_export.verification.parity import compare
from hadskip_export.verification.references import OnnxReference
from tests.conftest import sentences
from tests.runtime.editing import copy_of
from tests.runtime.engines.here import assert_same_answers
from tests.runtime.engines.host import ON_HOST, HostContext, HostDevice, HostPlan

TEXTS = [text for text, _ in sentences(40, 17)]


@pytest.fixture(scope="module", params=["gates", "layers"])
def both(request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    """The same model behind TensorRT's interface, and on ONNX Runtime."""
    mine = copy_of(bundle, tmp_path_factory.mktemp("plans"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "trt-host", ON_HOST["trt-host"])
        assert build(mine, engine="trt-host", cut=request.param).parity == "passed"
        with Predictor.load(mine, engine="trt-host") as ours, Predictor.load(bundle) as theirs:
            assert ours.engine_info.cut == request.param
            yield ours, theirs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9), st.integers(1, 9), st.floats(-4, 4))
def test_it_answers_as_the_cpu_does(both, texts: list[str], batch_size: int, threshold: float):
    assert_same_answers(both, texts, batch_size=batch_size, gate_threshold=threshold)


def test_parity_takes_its_arrays(both):
    ours, theirs = both
    report = compare(OnnxReference(theirs.bundle), ours, ours.tokenizer.encode(TEXTS[:8]))
    assert report.parity == "passed", report


def test_no_memory_is_kept_from_call_to_call(both):
    """But the scratch that all share, and the last mask of this thread."""
    ours, _ = both
    device: HostDevice = ours.engine._device
    ours(TEXTS)
    gc.collect()
    before = len(device.held)
    for _ in range(3):
        ours(TEXTS, batch_size=5)
        ours(TEXTS[0])
    gc.collect()
    assert len(device.held) <= before <= 2 + 2 * 3  # ids, types and masks of this thread's last batch


def test_more_rows_than_it_was_built_for_are_refused(both):
    ours, theirs = both
    texts = [TEXTS[0]] * (tensorrt.MOST_ROWS + 1)
    with pytest.raises(EngineError, match=r"embeddings\.onnx: input_ids \(33, \d+\) is not what .* at most 32 rows"):
        ours(texts, batch_size=64)
    assert len(ours(texts)) == len(texts) == len(theirs(texts, batch_size=64))


def test_the_scratch_is_as_large_as_the_greediest_piece_needs():
    device = HostDevice()
    scratch = tensorrt.Scratch(device)
    for size, expected in ((100, 100), (50, 100), (4000, 4000)):
        scratch.grow(size)
        assert scratch.size == expected and scratch.pointer in device.held
    assert len(device.held) == 1


def test_the_real_library_has_all_of_the_interface():
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    for ours, theirs in ((HostPlan, trt.ICudaEngine), (HostContext, trt.IExecutionContext)):
        wanted = {name for name in vars(ours) if not name.startswith("_")}
        assert wanted and wanted <= set(dir(theirs))
    assert hasattr(trt.ICudaEngine, "num_io_tensors") and hasattr(trt.Runtime, "deserialize_cuda_engine")
    assert "USER_MANAGED" in trt.ExecutionContextAllocationStrategy.__members__
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)
    assert set(tensorrt._NUMPY) <= set(trt.DataType.__members__)


def test_the_bindings_have_what_memory_needs():
    cuda = pytest.importorskip("cuda.bindings.runtime")
    names = "cudaMemPoolCreate", "cudaMallocFromPoolAsync", "cudaFreeAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"
    assert all(callable(getattr(cuda, name)) for name in names) and cuda.cudaStreamNonBlocking == 1
    place = cuda.cudaMemPoolProps()
    place.allocType = cuda.cudaMemAllocationType.cudaMemAllocationTypePinned
    place.location.type, place.location.id = cuda.cudaMemLocationType.cudaMemLocationTypeDevice, 0
    assert "cudaMemPoolAttrReleaseThreshold" in cuda.cudaMemPoolAttr.__members__
    assert int(pytest.importorskip("cuda.bindings.driver").cuuint64_t(KEPT)) == KEPT
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(cuda.cudaMemcpyKind.__members__)


def test_a_chip_that_tensorrt_for_rtx_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.setattr(tensorrt, "why_no_device", lambda: None)
    monkeypatch.setattr(tensorrt, "compute_capability", lambda: (9, 0))
    assert engine_class("trt-rtx").why_not_here() == "TensorRT for RTX does not know this chip (SM90); use --engine trt"
    monkeypatch.setattr(tensorrt, "compute_capability", lambda: (8, 9))
    assert engine_class("trt-rtx").why_not_here() is None
