"""ONNX Runtime does what is asked of it, or says why not in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hadskip_export.runtime.engines import EngineOptions, ort
from hadskip_export.support.cpus import usable_cpus
from hadskip_export.support.errors import EngineError
from tests.runtime.editing import piece_files


def engine(bundle: Path, **options) -> ort.OrtEngine:
    return ort.OrtEngine(piece_files(bundle), "fp32", EngineOptions(**options))


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


def test_threads_are_those_asked_for_or_those_of_the_process():
    assert EngineOptions().thread_count == usable_cpus()
    assert EngineOptions(threads=1).thread_count == 1
    assert EngineOptions(threads=1_000_000).thread_count == usable_cpus()


@pytest.mark.parametrize("cut", ["bundle", "layers_bundle", "whole_bundle"])
def test_one_thread_means_no_pool_at_all(cut: str, request: pytest.FixtureRequest):
    """In a process of its own, since others here have pools: loading and calling with `threads=1` starts no thread."""
    code = f"""
import onnxruntime, psutil
from hadskip_export.runtime import Predictor
before = psutil.Process().num_threads()
predictor = Predictor.load({str(request.getfixturevalue(cut))!r}, threads=1)
predictor(["a good film", "a bad film with a plot"] * 50)
predictor("a good film", router="full")
print(psutil.Process().num_threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0


def test_an_input_that_has_a_default_in_the_file_is_taken_after_the_others(whole_bundle: Path):
    """As the thresholds and the most layers of a whole model have: they are the caller's here."""
    piece = ort.OrtEngine({"whole": whole_bundle / "model" / "model.onnx"}, "fp32", EngineOptions()).load("whole")
    ids, mask = np.full((2, 5), 7), np.ones((2, 5), np.int64)
    shut, open_ = (np.full((2, 4), value, np.float32) for value in (np.inf, -np.inf))
    for thresholds, most, expected in ((shut, 4, 0), (open_, 4, 4), (open_, 1, 1)):
        logits, ran = piece(ids, mask, np.zeros_like(ids), thresholds, np.full(2, most))
        assert logits.shape == (2, 2) and ran.sum(axis=1).tolist() == [expected] * 2
    with pytest.raises(EngineError, match=r"model\.onnx: "):
        piece(ids, mask, np.zeros_like(ids))
