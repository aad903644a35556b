"""Programs on an NVIDIA GPU: CUDA graphs, and graphs whose nodes run only if the device decides so.

Each program is captured by torch. `conditional` puts captured ones together through CUDA's own API: before each layer
a kernel of one thread compares the gate's margin with its threshold and sets the condition of an IF node, in whose body
the layer lies. So a whole call is one launch, and the host reads nothing until it has the answer. Needs CUDA 12.4.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, cast

import torch

from hadskip_export.errors import EngineError, optional_import
from hadskip_export.runtime.engines import nvidia
from hadskip_export.runtime.engines.torch_cuda.model import Decisions, Program

WARM_UPS = 3  # runs before capture: libraries choose kernels and allocate workspaces in the first ones
# margins: of the input, after the last layer that ran. terms: L thresholds, then the most layers to run.
SOURCE = """
extern "C" __device__ __cudart_builtin__ void CUDARTAPI
cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned int value);

extern "C" __global__ void decide(cudaGraphConditionalHandle handle, const float* margins, const float* terms,
                                  float* ran, int index, int num_layers) {
    float done = 0;
    for (int i = 0; i < index; ++i) done += ran[i];
    const bool run = margins[index] > terms[index] && done < terms[num_layers];
    ran[index] = run;
    cudaGraphSetConditional(handle, run);
}
"""


@dataclass(frozen=True)
class Captured:
    """A program as torch captured it, on the current device."""

    graph: torch.cuda.CUDAGraph

    def __call__(self) -> None:
        self.graph.replay()


_ORDER = threading.RLock()  # of all engines of the process: what one records, another must not run into


@cache
def own_stream() -> torch.cuda.Stream:
    """The stream on which all of this happens. None of torch's: those are few, and the host may have been given the
    same one. Ask for it with the lock held."""
    runtime: Any = optional_import("cuda.bindings.runtime", "torch-cuda")
    (stream,) = checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
    return torch.cuda.ExternalStream(int(stream))


@contextmanager
def exactly() -> Iterator[None]:
    """Whatever the host wants of its own arithmetic: no lower precision than asked for, no gradients."""
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "ieee"
    try:
        with torch.autocast("cuda", enabled=False), torch.no_grad():
            yield
    finally:
        products.fp32_precision = before


class CudaGraphs:
    """See `Recorder`. All programs share one pool of memory for what they make on the way: they run one after another,
    and nothing in it is read after a program has ended. cuBLAS's workspace comes from there too, for torch may free the
    one outside whenever somebody else captures or compiles."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Callable[[], None]) -> Program:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with self.in_order(), exactly():
            for _ in range(WARM_UPS):
                step()
            torch.cuda.synchronize()
            torch._C._cuda_clearCublasWorkspaces()
            try:
                # Other threads of the host may use CUDA meanwhile.
                with torch.cuda.graph(graph, self._pool, own_stream(), capture_error_mode="thread_local"):
                    step()
            finally:
                torch._C._cuda_clearCublasWorkspaces()  # nobody else may go on in the pool
        return Captured(graph)

    def conditional(self, start: Program, layers: Sequence[Program], finish: Program, on: Decisions) -> Program:
        """
        Raises:
            EngineError: `cuda-bindings` is not installed, or this driver knows no conditional nodes.
        """
        return ConditionalGraph(cast(list[Captured], [start, *layers, finish]), on, self._decide)

    @contextmanager
    def in_order(self) -> Iterator[None]:
        with _ORDER, torch.cuda.stream(own_stream()):
            yield

    def wait(self) -> None:
        own_stream().synchronize()

    @cached_property
    def _decide(self) -> Any:
        """The kernel, compiled for this device; its module is never unloaded."""
        driver: Any = optional_import("cuda.bindings.driver", "torch-cuda")
        major, minor = torch.cuda.get_device_capability()
        (module,) = checked(driver.cuModuleLoadData(compile_kernel(f"sm_{major}{minor}")))
        (kernel,) = checked(driver.cuModuleGetFunction(module, b"decide"))
        return kernel


class ConditionalGraph:
    """Start, layers each in the body of an IF node, finish, as one graph.

    Args:
        programs: start, the layers, finish; kept as long as this is, for their memory is used.
    """

    def __init__(self, programs: Sequence[Captured], on: Decisions, decide: Any):
        self._driver: Any = optional_import("cuda.bindings.driver", "torch-cuda")
        self._runtime: Any = optional_import("cuda.bindings.runtime", "torch-cuda")  # gives new threads a context
        self._programs = programs
        driver, (start, *layers, finish) = self._driver, programs
        add_node = getattr(driver, "cuGraphAddNode_v2", driver.cuGraphAddNode)  # its name in the bindings of CUDA 12
        (graph,) = checked(driver.cuGraphCreate(0))
        try:
            last = self._child(graph, None, start)
            for index, layer in enumerate(layers):
                (context,) = checked(driver.cuCtxGetCurrent())
                (handle,) = checked(driver.cuGraphConditionalHandleCreate(graph, context, 0, 0))
                params = kernel_params(decide, int(handle), on, index, len(layers))
                (asked,) = checked(driver.cuGraphAddKernelNode(graph, [last], 1, params))
                branch = driver.CUgraphNodeParams()
                branch.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
                branch.conditional.handle = handle
                branch.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF
                branch.conditional.size = 1
                branch.conditional.ctx = context
                (last,) = checked(add_node(graph, [asked], None, 1, branch))
                self._child(branch.conditional.phGraph_out[0], None, layer)
            self._child(graph, last, finish)
            (self._executable,) = checked(driver.cuGraphInstantiate(graph, 0))
        finally:
            driver.cuGraphDestroy(graph)  # the executable is on its own

    def _child(self, graph: Any, after: Any, program: Captured) -> Any:
        captured = self._driver.CUgraph(program.graph.raw_cuda_graph())
        dependencies = [] if after is None else [after]
        (node,) = checked(self._driver.cuGraphAddChildGraphNode(graph, dependencies, len(dependencies), captured))
        return node

    def __call__(self) -> None:
        checked(self._runtime.cudaGraphLaunch(self._executable, own_stream().cuda_stream))

    def __del__(self) -> None:
        if hasattr(self, "_executable"):
            self._driver.cuGraphExecDestroy(self._executable)


def kernel_params(kernel: Any, handle: int, on: Decisions, index: int, num_layers: int) -> Any:
    """A launch of `decide` as a node."""
    driver: Any = optional_import("cuda.bindings.driver", "torch-cuda")
    params = driver.CUDA_KERNEL_NODE_PARAMS()
    params.func = kernel
    params.gridDimX = params.gridDimY = params.gridDimZ = 1
    params.blockDimX = params.blockDimY = params.blockDimZ = 1
    arrays = on.margins, on.terms, on.ran
    values = handle, *(array.data_ptr() for array in arrays), index, num_layers
    params.kernelParams = values, (ctypes.c_uint64, *(ctypes.c_void_p,) * 3, ctypes.c_int, ctypes.c_int)
    return params


def compile_kernel(architecture: str) -> bytes:
    """`decide` as machine code for an architecture such as `sm_90`. Needs no device.

    Raises:
        EngineError: `cuda-bindings` or NVIDIA's run-time compiler is not installed, or the latter is too old for this.
    """
    nvrtc: Any = optional_import("cuda.bindings.nvrtc", "torch-cuda")
    try:
        (program,) = checked(nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"decide.cu", 0, [], []))
        checked(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture={architecture}".encode()]))
        (size,) = checked(nvrtc.nvrtcGetCUBINSize(program))
        code = bytes(size)
        checked(nvrtc.nvrtcGetCUBIN(program, code))
        checked(nvrtc.nvrtcDestroyProgram(program))
    except RuntimeError as error:  # of cuda-bindings, where it cannot load the compiler's library
        raise EngineError(f"torch-cuda: {error}; install nvidia-cuda-nvrtc") from error
    return code


checked = partial(nvidia.checked, remedy="; needs CUDA 12.4, or build with --single chain")
