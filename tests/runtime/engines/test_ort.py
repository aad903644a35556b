"""ONNX Runtime does what is asked of it, or says why not in one line."""

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from hadskip_export.runtime.engines import EngineOptions, ort
from hadskip_export.runtime.engines.base import usable_cpus
from hadskip_export.support.errors import EngineError


def engine(bundle: Path, **options) -> ort.OrtEngine:
    files = {file.stem: file for file in (bundle / "pieces").iterdir()}
    return ort.OrtEngine(files, "fp32", EngineOptions(**options))


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
