"""The CUDA kernels on a machine without a GPU: the same source as plain C++, whose threads take turns. Slow, exact in
what it indexes and where it waits, silent about races. Needs g++."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from hadskip_export.runtime.engines.torch_cuda.kernels import NAMES, NUMBERS, SOURCE, CudaKernels, packed_arguments

COMPILER = shutil.which("g++")
# name -> its parameters in C, as `kernels.cu` declares them.
DECLARED = {
    name: [" ".join(one.split()) for one in parameters.split(",")]
    for name, parameters in re.findall(
        r"__global__ void (?:__launch_bounds__\(\d+\)\s)?(\w+)\((.*?)\)", SOURCE.read_text(), re.DOTALL
    )
}
AROUND = r"""
#include <cmath>
#include <cstring>
#include <algorithm>
#include <ucontext.h>
#include <vector>
using std::max; using std::min;
#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(n)
struct float4 { float x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static float rsqrtf(float x) { return 1 / sqrtf(x); }
static void __threadfence() {}
static int atomicAdd(int* at, int x) { const int before = *at; *at += x; return before; }

// Threads of a block take turns: each runs until it waits for others.
struct Index { unsigned x, y; };
static Index threadIdx, blockIdx, blockDim, gridDim;
alignas(16) static float room_[64 * 1024];
static ucontext_t turn[1024], scheduler;
static int arrived[33], passed[33];  // at the barriers of 32 warps, and of the block
static float shown[1024];
static void wait_for(int barrier, int many) {
    const int me = threadIdx.x, pass = passed[barrier];
    if (++arrived[barrier] == many) { arrived[barrier] = 0; ++passed[barrier]; return; }
    while (passed[barrier] == pass) { swapcontext(&turn[me], &scheduler); threadIdx.x = me; }
}
static void __syncthreads() { wait_for(32, blockDim.x); }
static float __shfl_xor_sync(unsigned, float x, int offset) {
    shown[threadIdx.x] = x;
    wait_for(threadIdx.x / 32, 32);
    const float y = shown[threadIdx.x ^ offset];
    wait_for(threadIdx.x / 32, 32);
    return y;
}
static unsigned __ballot_sync(unsigned, bool mine) {
    shown[threadIdx.x] = mine;
    wait_for(threadIdx.x / 32, 32);
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= (unsigned)(shown[threadIdx.x / 32 * 32 + i] != 0) << i;
    wait_for(threadIdx.x / 32, 32);
    return all;
}
static int __popc(unsigned x) { return __builtin_popcount(x); }
static void __syncwarp() { wait_for(threadIdx.x / 32, 32); }
static int __ffs(unsigned x) { return __builtin_ffs(x); }
struct half;
static float widen(half x);
static void narrow(float x, half& y);
"""
AFTER = r"""
static float widen(half x) { _Float16 y; memcpy(&y, &x, 2); return (float)y; }
static void narrow(float x, half& y) { const _Float16 z = (_Float16)x; memcpy(&y, &z, 2); }

typedef void (*Body)();
static Body body;
static bool over[1024];
static void one_thread() { body(); over[threadIdx.x] = true; swapcontext(&turn[threadIdx.x], &scheduler); }
static void run_blocks(int grid_x, int grid_y, int threads, Body what) {
    static std::vector<char> stacks(1024 * 32768);
    body = what, blockDim = {(unsigned)threads, 1}, gridDim = {(unsigned)grid_x, (unsigned)grid_y};
    for (int y = 0; y < grid_y; ++y) for (int x = 0; x < grid_x; ++x) {
        blockIdx = {(unsigned)x, (unsigned)y};
        memset(arrived, 0, sizeof arrived);
        memset(room_, 0xff, sizeof room_);
        for (int i = 0; i < threads; ++i) {
            over[i] = false;
            getcontext(&turn[i]);
            turn[i].uc_stack.ss_sp = &stacks[(size_t)i * 32768], turn[i].uc_stack.ss_size = 32768, turn[i].uc_link = 0;
            makecontext(&turn[i], one_thread, 0);
        }
        for (bool all = false; !all;) {
            all = true;
            for (int i = threads - 1; i >= 0; --i) if (!over[i]) {  // the last first, as good an order as any
                threadIdx = {(unsigned)i, 0};
                swapcontext(&scheduler, &turn[i]);
                all = all && over[i];
            }
        }
    }
}
"""


def compile_kernels(dtype: torch.dtype, folder: Path) -> ctypes.CDLL:
    """The library of all kernels, `run_<name>(grid x, grid y, threads, arguments...)`."""
    source = SOURCE.read_text().replace("extern __shared__ float4 room[];", "float4* room = (float4*)room_;")
    runs = [_run_of(name, [_type_of(one) for one in parameters]) for name, parameters in DECLARED.items()]
    file, library = folder / f"kernels-{NAMES[dtype]}.cpp", folder / f"kernels-{NAMES[dtype]}.so"
    file.write_text("\n".join([AROUND, source, AFTER, *runs]))
    defined = [f"-D{name}={value}" for name, value in (NUMBERS | {"LAYERS": NAMES[dtype]}).items()]
    command = [str(COMPILER), "-O2", "-w", "-shared", "-fPIC", "-std=c++17", *defined, str(file), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def _type_of(parameter: str) -> str:
    return parameter.rpartition(" ")[0].replace("const ", "").replace("volatile ", "")


def _run_of(name: str, types: list[str]) -> str:
    """Keeps the arguments where every thread finds them."""
    kept = "".join(f"static {kind} {name}_{i};" for i, kind in enumerate(types))
    taken = ", ".join(f"{kind} a{i}" for i, kind in enumerate(types))
    put = "".join(f"{name}_{i} = a{i};" for i in range(len(types)))
    call = f"[] {{ {name}({', '.join(f'{name}_{i}' for i in range(len(types)))}); }}"
    return f'{kept}\nextern "C" void run_{name}(int x, int y, int n, {taken}) {{ {put} run_blocks(x, y, n, {call}); }}'


class HostCudaKernels(CudaKernels):
    """`CudaKernels` whose launches run here, on tensors of the host."""

    def __init__(self, dtype: torch.dtype, folder: Path):
        self._library = compile_kernels(dtype, folder)
        self._lowest = torch.finfo(dtype).min

    def _launch(self, name: str, grid: tuple[int, int], threads: int, *arguments: Any, shared: int = 0) -> None:
        values, kinds = packed_arguments(arguments)
        assert threads % 32 == 0 and threads <= 1024 and shared <= 48 * 1024
        getattr(self._library, f"run_{name}")(
            *grid, threads, *(kind(value) for kind, value in zip(kinds, values, strict=True))
        )
