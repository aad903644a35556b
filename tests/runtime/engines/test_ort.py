"""ONNX Runtime does what is asked of it, or says why not in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hadskip_export.errors import EngineError
from hadskip_export.runtime.engines import ENGINES, EngineOptions, engine_class, ort
from hadskip_export.runtime.engines.base import usable_cpus


def engine(bundle: Path, **options) -> ort.OrtEngine:
    files = {file.stem: file for file in (bundle / "pieces").iterdir()}
    return ort.OrtEngine(files, EngineOptions(**options))


def test_a_piece_runs_as_onnxruntime_runs_it(bundle: Path):
    hidden = np.random.default_rng(0).normal(size=(3, 5, 32)).astype(np.float32)
    mask = np.array([[1] * 5, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    session = onnxruntime.InferenceSession(bundle / "pieces" / "layer_01.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"hidden_states": hidden, "attention_mask": mask})[0]
    got = engine(bundle, threads=1).load("layer_01")(hidden, mask)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_provider_that_is_not_there_is_not_replaced_in_silence(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Asked for CUDA, onnxruntime for the CPU warns and goes on without; we do not."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr(ort, "PROVIDER", "CUDAExecutionProvider")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(EngineError, match="fell back") as error,
    ):
        engine(bundle).load("head")
    assert "head.onnx" in str(error.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path):
    file = tmp_path / "head.onnx"
    file.write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"head\.onnx: onnxruntime .* refuses it") as error:
        ort.OrtEngine({"head": file}, EngineOptions()).load("head")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "inputs",
    [
        (np.zeros((1, 2, 31), np.float32),),
        (np.zeros((1, 2, 32), np.float64),),
        (np.zeros((1, 2, 32), np.float32), np.ones((1, 2), np.int64)),
        (),
    ],
    ids=["size", "dtype", "one too many", "none"],
)
def test_inputs_that_do_not_fit_are_an_engine_error(bundle: Path, inputs):
    with pytest.raises(EngineError, match=r"head\.onnx") as error:
        engine(bundle).load("head")(*inputs)
    assert "\n" not in str(error.value)


def test_an_unknown_engine_is_refused_by_name():
    with pytest.raises(EngineError, match="'abacus'; there are ort"):
        engine_class("abacus")


def test_every_engine_in_the_table_exists():
    for name in ENGINES:
        assert callable(engine_class(name).versions)
    assert engine_class("ort").versions() == {"onnxruntime": onnxruntime.__version__}


def test_threads_are_those_asked_for_or_those_of_the_process():
    assert EngineOptions().thread_count == usable_cpus()
    assert EngineOptions(threads=3).thread_count == 3


def test_one_thread_means_no_pool_at_all(bundle: Path):
    """In a process of its own, since others here have pools: loading and calling with `threads=1` starts no thread."""
    code = f"""
import onnxruntime, psutil
from hadskip_export.runtime import Predictor
before = psutil.Process().num_threads()
predictor = Predictor.load({str(bundle)!r}, threads=1)
predictor(["a good film", "a bad film with a plot"] * 50)
predictor("a good film", router="full")
print(psutil.Process().num_threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0
