"""What of the CUDA graphs can be checked without a GPU: the kernel compiles, and its arguments are where it reads them.
`make cuda` installs what these need; with a GPU the contract tests of `torch-cuda` run it all."""

import ctypes

import pytest
import torch

from hadskip_export.errors import EngineError
from hadskip_export.runtime.engines.torch_cuda.model import Decisions

driver = pytest.importorskip("cuda.bindings.driver")
nvrtc = pytest.importorskip("cuda.bindings.nvrtc")

from hadskip_export.runtime.engines.torch_cuda.graphs import SOURCE, checked, compile_kernel, kernel_params  # noqa: E402


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_the_kernel_compiles_for_every_chip_since_turing(architecture: str):
    code = compile_kernel(architecture)
    assert code[:4] == b"\x7fELF" and b"decide" in code


def test_an_architecture_that_the_compiler_does_not_know_is_an_engine_error():
    with pytest.raises(EngineError, match="CUDA: NVRTC_ERROR_INVALID_OPTION"):
        compile_kernel("sm_1")


def test_its_arguments_are_where_it_reads_them():
    on = Decisions(torch.zeros(1, 3), torch.zeros(4), torch.zeros(1, 3))
    params = kernel_params(0, 7, on, 2, 3)
    assert (params.gridDimX, params.blockDimX, params.sharedMemBytes) == (1, 1, 0)
    kinds = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    table = ctypes.cast(int(params.kernelParams), ctypes.POINTER(ctypes.c_void_p * len(kinds))).contents
    got = [ctypes.cast(place, ctypes.POINTER(kind)).contents.value for place, kind in zip(table, kinds, strict=True)]
    assert got == [7, on.margins.data_ptr(), on.terms.data_ptr(), on.ran.data_ptr(), 2, 3]
    declared = SOURCE.partition("decide(")[2].partition(")")[0].split(",")
    names = [one.split()[-1].lstrip("*") for one in declared]
    assert names == ["handle", "margins", "terms", "ran", "index", "num_layers"]


def test_a_status_that_is_an_error_is_one():
    assert checked((nvrtc.nvrtcResult.NVRTC_SUCCESS, 5)) == (5,)
    with pytest.raises(EngineError, match=r"CUDA: CUDA_ERROR_NOT_SUPPORTED; .*--single chain"):
        checked((driver.CUresult.CUDA_ERROR_NOT_SUPPORTED, None))
