"""Programs on an NVIDIA GPU: CUDA graphs, as torch captures them."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch

from hadskip_export.runtime.engines.torch_cuda.kernels import checked
from hadskip_export.runtime.engines.torch_cuda.recorder import Program
from hadskip_export.support.errors import optional_import

WARM_UPS = 3  # runs before capture: libraries choose kernels and allocate workspaces in the first ones
_ORDER = threading.RLock()  # of all engines of the process: what one records, another must not run into


@cache
def own_stream(beside: bool = False) -> torch.cuda.Stream:
    """The stream on which all of this happens, and the one for what happens beside it. None of torch's: those are few,
    and the host may have been given the same one. Ask for it with the lock held."""
    runtime: Any = optional_import("cuda.bindings.runtime", "torch-cuda")
    (stream,) = checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
    return torch.cuda.ExternalStream(int(stream))


@contextmanager
def no_collection() -> Iterator[None]:
    """Garbage may hold graphs and memory of the device, and to free them ends a capture. For the whole process: the few
    milliseconds of one."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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


class Captured:
    """A program as torch captured it. Started on `own_stream`, whatever stream is current: to make that one current
    takes longer than to start."""

    def __init__(self, graph: torch.cuda.CUDAGraph):
        driver: Any = optional_import("cuda.bindings.driver", "torch-cuda")
        runtime: Any = optional_import("cuda.bindings.runtime", "torch-cuda")
        self._graph = graph  # and the memory that it uses
        (self._executable,) = checked(driver.cuGraphInstantiate(driver.CUgraph(graph.raw_cuda_graph()), 0))
        self._start, self._stream = runtime.cudaGraphLaunch, own_stream().cuda_stream  # gives new threads a context
        self._destroy = driver.cuGraphExecDestroy

    def __call__(self) -> None:
        checked(self._start(self._executable, self._stream))

    def __del__(self) -> None:
        if hasattr(self, "_destroy"):
            self._destroy(self._executable)


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
                captured = torch.cuda.graph(graph, self._pool, own_stream(), capture_error_mode="thread_local")
                with no_collection(), captured:
                    step()
            except BaseException:
                self._pool = torch.cuda.graph_pool_handle()  # torch may think that the old one is still captured into
                raise
            finally:
                torch._C._cuda_clearCublasWorkspaces()  # nobody else may go on in the pool
            return Captured(graph)

    @contextmanager
    def parted(self) -> Iterator[None]:
        here, other = torch.cuda.current_stream(), own_stream(beside=True)
        other.wait_stream(here)
        try:
            yield
        finally:  # nothing can be captured any more if a capture ends parted
            here.wait_stream(other)

    def beside(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(own_stream(beside=True))

    def alone(self) -> AbstractContextManager[Any]:
        return _ORDER

    @contextmanager
    def in_order(self) -> Iterator[None]:
        with _ORDER, torch.cuda.stream(own_stream()), torch.inference_mode(False):  # buffers outlive the caller's mode
            yield

    def wait(self) -> None:
        own_stream().synchronize()

    def at_rest(self) -> bool:
        return own_stream().query()
