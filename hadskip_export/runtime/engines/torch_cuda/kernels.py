"""What PyTorch has no kernel for, or too many: gates that decide on the device, which rows' states a layer may
replace, sums that are normalised as they are made. In CUDA C (`kernels.cu`), compiled for the device at hand by
NVIDIA's run-time compiler.

`Kernels` says what each of them computes. All start on the current stream and write to tensors they are given.
"""

import ctypes
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hadskip_export.runtime.engines import nvidia
from hadskip_export.runtime.engines.torch_cuda.lane import PARTS, Lane
from hadskip_export.runtime.engines.torch_cuda.layers import Part
from hadskip_export.support.errors import EngineError, optional_import

ROWS_PER_BLOCK, UNITS_PER_WARP = 8, 4  # weights are read once for so many rows, and rows once for so many units
SHARED_BYTES = 47 * 1024
MOST_COLUMNS = SHARED_BYTES // 4
MOST_COLUMNS_ALONE, MOST_LAYERS_ALONE = 4096, 32  # of a row: a block pools it, a lane looks at each layer
NUMBERS = {
    "ROWS_PER_BLOCK": ROWS_PER_BLOCK,
    "UNITS_PER_WARP": UNITS_PER_WARP,
    "PARTS": PARTS,
}
NAMES = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}
SOURCE = Path(__file__).with_suffix(".cu")


class Kernels(Protocol):
    """What runs on the device beside torch's own."""

    def add_norm(self, part: Part, name: str, one: Tensor, other: Tensor) -> Tensor:
        """The normalisation `name` of a sum [b, s, H]."""
        ...

    def begin(self, part: Part, lane: Lane) -> None:
        """Embeddings to `states`, and all else that a call begins with, from what was sent."""
        ...

    def decide(self, part: Part, lane: Lane, layer: int, num_slots: int) -> None:
        """`margins` of all gates on `states`, in fp32, and from them which layer each row runs next; those in `slots`
        for which it is `layer` are marked in `writes` and count as having run it. What is planned for all after that,
        and the rows with the lowest such layer, `listed`. Last the report."""
        ...

    def gather(self, lane: Lane, num_slots: int) -> tuple[Tensor, Tensor]:
        """The rows that are `listed` to `slots`; their states, and attention's bias for them, in this order."""
        ...

    def replace(self, part: Part, name: str, one: Tensor, other: Tensor, lane: Lane) -> None:
        """`add_norm` of what lies in slots, [slots, s, H], or [slots, 1, H] of the first tokens alone, to the states of
        the rows that are marked in `writes`."""
        ...

    def reply(self, part: Part, states: Tensor, lane: Lane) -> None:
        """The head's logits in fp32, and which layers ran, as the call's answer."""
        ...


class CudaKernels:
    """`Kernels` for layers of this dtype, compiled for the device at hand.

    Raises:
        EngineError: `cuda-bindings` or NVIDIA's run-time compiler is not installed.
    """

    def __init__(self, dtype: torch.dtype):
        self._driver: Any = optional_import("cuda.bindings.driver", "torch-cuda")
        self._module = _loaded(NAMES[dtype])
        self._lowest = torch.finfo(dtype).min

    def add_norm(self, part: Part, name: str, one: Tensor, other: Tensor) -> Tensor:
        out = torch.empty_like(one)
        self._add_norm(part, name, (one, other), out)
        return out

    def replace(self, part: Part, name: str, one: Tensor, other: Tensor, lane: Lane) -> None:
        self._add_norm(part, name, (one, other), lane.states, places=(lane.slots, lane.writes))

    def _add_norm(
        self,
        part: Part,
        name: str,
        terms: tuple[Tensor, Tensor],
        out: Tensor,
        *,
        places: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        rows, length, H = terms[0].shape  # noqa: N806 (the paper's letters)
        weights = part.weights[f"{name}.weight"], part.weights[f"{name}.bias"]
        arrays = *(term.contiguous() for term in terms), *weights, out, *places
        self._launch("add_norm", (rows * length, 1), threads_for(H), *arrays, length, out.shape[1], H, part.eps)

    def begin(self, part: Part, lane: Lane) -> None:
        rows, length, H = lane.states.shape  # noqa: N806
        names = "word.weight", "position.weight", "segment.weight", "norm.weight", "norm.bias"
        ids = lane.sent_ids if rows == 1 else lane.ids.copy_(lane.sent_ids, non_blocking=True)  # few are read in place
        sent = ids, lane.sent_terms, *(part.weights[name] for name in names)
        made = lane.states, lane.mask, lane.bias, lane.terms, lane.ran, lane.at, lane.done, lane.count
        sizes = rows, length, H, lane.ran.shape[1]
        self._launch("begin", (rows * length, 1), threads_for(H), *sent, *made, *sizes, part.eps, self._lowest)

    def decide(self, part: Part, lane: Lane, layer: int, num_slots: int) -> None:
        rows, length, H = lane.states.shape  # noqa: N806
        names = "hidden.weight", "hidden.bias", "margins.weight", "margins.bias"
        *weights, bias = (part.weights[name] for name in names)
        num_gates = len(bias)
        width, here, blocks = len(weights[1]) // num_gates, rows_per_block(rows, H), num_gates * PARTS
        way = lane.at, lane.done, lane.next, lane.planned, lane.slots, lane.listed, lane.writes, lane.count, lane.report
        decided = bias, lane.margins, lane.terms, lane.ran, *way, layer, num_slots
        if rows == 1 and H <= MOST_COLUMNS_ALONE and num_gates <= MOST_LAYERS_ALONE:
            given = lane.states, lane.mask, *weights, lane.parts, lane.arrived_deciding, *decided
            sizes = length, H, width, num_gates
            self._launch("decide_alone", (blocks, 1), 1024, *given, *sizes, shared=4 * (4 * 1024 + H))
            return
        self._launch("pool", (-(-H // 64), rows), 512, lane.states, lane.mask, lane.pooled, length, H)
        given = lane.pooled, *weights, lane.parts, rows, here, H, width, num_gates
        self._launch("gates", (blocks, -(-rows // here)), 256, *given, shared=4 * here * H)
        self._launch("decide", (1, 1), 256, lane.parts, *decided, rows, num_gates)

    def gather(self, lane: Lane, num_slots: int) -> tuple[Tensor, Tensor]:
        _, length, H = lane.states.shape  # noqa: N806
        listed = lane.states.new_empty(num_slots, length, H), lane.bias.new_empty(num_slots, 1, 1, length)
        arrays = lane.listed, lane.slots, lane.states, lane.bias, *listed
        self._launch("gather", (num_slots * length, 1), threads_for(H), *arrays, length, H)
        return listed

    def reply(self, part: Part, states: Tensor, lane: Lane) -> None:
        rows, length, H = states.shape  # noqa: N806
        (num_classes,) = part.weights["classifier.bias"].shape
        first, last = (
            [part.weights[f"{name}.{kind}"] for kind in ("weight", "bias")] for name in ("pooler", "classifier")
        )
        here, units = rows_per_block(rows, H), 1 if rows == 1 else UNITS_PER_WARP
        arrays = states, *first, lane.units, lane.arrived_replying, *last, lane.ran, lane.answer
        sizes = rows, here, units, length, H, num_classes, lane.ran.shape[1]
        self._launch("reply", (-(-H // (8 * units)), -(-rows // here)), 256, *arrays, *sizes, shared=4 * here * H)

    def _launch(
        self, name: str, grid: tuple[int, int], threads: int, *arguments: Tensor | int | float | None, shared: int = 0
    ) -> None:
        (kernel,) = checked(self._driver.cuModuleGetFunction(self._module, name.encode()))
        stream = torch.cuda.current_stream().cuda_stream
        packed = packed_arguments(arguments)
        checked(self._driver.cuLaunchKernel(kernel, *grid, 1, threads, 1, 1, shared, stream, packed, 0))


@cache
def _loaded(dtype: str) -> Any:
    """The kernels' module; once for the process, never unloaded."""
    driver: Any = optional_import("cuda.bindings.driver", "torch-cuda")
    major, minor = torch.cuda.get_device_capability()
    torch.cuda.current_stream()  # a context, before anything is loaded
    (module,) = checked(driver.cuModuleLoadData(compiled(f"sm_{major}{minor}", dtype)))
    return module


def threads_for(hidden_size: int) -> int:
    """A thread for each four columns, in whole warps."""
    return min(1024, -(-hidden_size // 128) * 32)


def rows_per_block(rows: int, hidden_size: int) -> int:
    """As many as fit into what a block's threads share."""
    return min(rows, ROWS_PER_BLOCK, SHARED_BYTES // (4 * hidden_size))


def packed_arguments(arguments: tuple[Tensor | int | float | None, ...]) -> Any:
    """As `cuda-bindings` takes them: values and what they are in C. Pinned memory has one address on both sides."""
    values = tuple(one.data_ptr() if isinstance(one, Tensor) else one or 0 for one in arguments)
    kinds = {int: ctypes.c_int, float: ctypes.c_float}
    return values, tuple(kinds.get(type(one), ctypes.c_void_p) for one in arguments)


@cache
def compiled(architecture: str, dtype: str) -> bytes:
    """The kernels as machine code for an architecture such as `sm_90`. Needs no device.

    Args:
        dtype: of the layers, as in `NAMES`.

    Raises:
        EngineError: `cuda-bindings` or NVIDIA's run-time compiler is not installed, or the latter is too old for this.
    """
    nvrtc: Any = optional_import("cuda.bindings.nvrtc", "torch-cuda")
    defined = NUMBERS | {"LAYERS": dtype}
    options = (
        f"--gpu-architecture={architecture}",
        *(f"--define-macro={name}={value}" for name, value in defined.items()),
    )
    try:
        (program,) = checked(nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], []))
        checked(nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options]))
        (size,) = checked(nvrtc.nvrtcGetCUBINSize(program))
        code = bytes(size)
        checked(nvrtc.nvrtcGetCUBIN(program, code))
        checked(nvrtc.nvrtcDestroyProgram(program))
    except RuntimeError as error:  # of cuda-bindings, where it cannot load the compiler's library
        raise EngineError(f"torch-cuda: {error}; install nvidia-cuda-nvrtc") from error
    return code


checked = partial(nvidia.checked, remedy="; see the extra torch-cuda")
