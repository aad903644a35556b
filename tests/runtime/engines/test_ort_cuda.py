"""hidden_states that stay on a device, and the engine that keeps them there: on the host, or refused without a GPU."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export import build
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.engines import ENGINES, EngineOptions, engine_class
from hadskip_export.runtime.engines.device import DeviceArray
from hadskip_export.support.errors import EngineError
from hadskip_export.verification.parity import compare
from hadskip_export.verification.references import OnnxReference
from tests.conftest import sentences
from tests.runtime.editing import copy_of
from tests.runtime.engines.here import assert_same_answers
from tests.runtime.engines.host import ON_HOST, OrtHostEngine

TEXTS = [text for text, _ in sentences(40, 17)]
NO_GPU = engine_class("ort-cuda").why_not_here()
FOR_THE_CPU = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


BUNDLES = ["bundle", "layers_bundle", "whole_bundle"]


def on_host(bundle: Path) -> Predictor:
    opened = read_bundle(bundle)
    (info,) = opened.manifest.engines
    return Predictor(Bundle(bundle, replace(opened.manifest, engines=(replace(info, engine="ort-host"),))))


@pytest.fixture(scope="module", params=BUNDLES)
def both(request: pytest.FixtureRequest):
    """The same bundle on the host as if it were a device, and on ONNX Runtime's own terms."""
    bundle = request.getfixturevalue(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "ort-host", ON_HOST["ort-host"])
        with on_host(bundle) as ours, Predictor.load(bundle) as theirs:
            yield ours, theirs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9), st.integers(1, 9), st.floats(-4, 4))
def test_it_answers_as_the_cpu_does(both, texts: list[str], batch_size: int, threshold: float):
    assert_same_answers(both, texts, batch_size=batch_size, gate_threshold=threshold)


def test_parity_takes_its_arrays(both):
    ours, theirs = both
    report = compare(OnnxReference(theirs.bundle), ours, ours.tokenizer.encode(TEXTS[:8]))
    assert report.parity == "passed", report


def test_alone_hidden_states_stay_on_the_device_and_the_mask_goes_there_once(both, monkeypatch: pytest.MonkeyPatch):
    ours, _ = both
    downloads, uploads = [], []
    original, upload = DeviceArray.__array__, onnxruntime.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(DeviceArray, "__array__", lambda array, *rest: downloads.append(1) or original(array, *rest))
    monkeypatch.setattr(
        onnxruntime.OrtValue, "ortvalue_from_numpy", lambda *given: uploads.append(given[0].dtype) or upload(*given)
    )
    ours(TEXTS[0], gate_threshold=-1e9)
    assert not downloads
    terms = [np.float32, np.int64] if ours.engine_info.cut == "whole" else []
    assert uploads == [np.int64, np.int64, np.int64, *terms]  # two kinds of ids, the mask


def test_rows_of_a_batch_go_through_the_host(both):
    routes = np.random.default_rng(0).random((len(TEXTS), 4)) < 0.5
    assert len({tuple(route) for route in routes.tolist()}) > 8
    encoded = both[0].tokenizer.encode(TEXTS)
    np.testing.assert_allclose(*(one.run(encoded, routes=routes)[0] for one in both), atol=1e-5)


def test_many_threads_do_not_share_a_mask(both):
    ours, _ = both
    expected = ours(TEXTS, batch_size=1)
    with ThreadPoolExecutor(8) as threads:
        for got in (list(threads.map(ours, TEXTS)) for _ in range(3)):
            for a, b in zip(got, expected, strict=True):
                assert a.layers == b.layers and a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_a_device_array_is_an_array_as_far_as_the_chain_goes():
    start = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(start.copy(), "cpu", 0)
    array = DeviceArray(value)
    assert len(array) == 2 and array.on_device is value
    np.testing.assert_array_equal(np.asarray(array), start)
    rows = np.array([False, True])
    np.testing.assert_array_equal(array[rows, :2], start[1:, :2])
    array[rows, :2] = DeviceArray(onnxruntime.OrtValue.ortvalue_from_numpy(-start[1:, :2].copy(), "cpu", 0))
    assert len(array) == 2 and array.on_device is None  # what is on the device is no longer what it is
    expected = start.copy()
    expected[1, :2] *= -1
    np.testing.assert_array_equal(np.asarray(array), expected)
    np.testing.assert_array_equal(value.numpy(), start)
    kept = np.array(array)
    array[:] = 0
    np.testing.assert_array_equal(kept, expected)


def test_cuda_is_looked_for_where_pip_puts_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("no libcudnn.so.9"))
    OrtHostEngine({}, "fp32", EngineOptions())
    assert capsys.readouterr() == ("", "no libcudnn.so.9\n")


# Without a GPU


@pytest.mark.skipif(NO_GPU is None, reason="this machine has a GPU and an onnxruntime for it")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_cannot_run_here_is_built_and_says_so(
    bundle: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
):
    mine = copy_of(bundle, tmp_path)
    assert build(mine, engine="ort-cuda", precision=precision) is None
    assert f"ort-cuda-{precision}-layers: built, parity unverified: " in capsys.readouterr().err
    info = read_bundle(mine).engine("ort-cuda")
    assert (info.parity, info.precision, info.cut) == ("unverified", precision, "layers")
    with pytest.raises(EngineError, match=r"ort-cuda: .*(ort-gpu|NVIDIA)"):
        Predictor.load(mine, engine="ort-cuda")
    with Predictor.load(mine) as predictor:
        assert predictor("a good film").label


@pytest.mark.skipif(not FOR_THE_CPU, reason="this onnxruntime is the one for GPUs")
def test_an_onnxruntime_for_the_cpu_is_refused_with_the_extra_to_install():
    assert engine_class("ort-cuda").why_not_here().endswith("install hadskip-export[ort-gpu]")
