"""OpenVINO on the CPU. Compiles the ONNX pieces when they are loaded, a tenth of a second for a layer of BERT-base.

Five facts, all measured (notebook/), shape this file. A compiled piece keeps scratch memory for the largest
call it has seen: twelve layers would hold twelve times as much as full BERT does, and each would find its own cold. So
large calls are made in parts, and a layer gives its scratch back, which the next one is given while it is in the cache.
Where a layer is a branch of one graph it has scratch of its own, too; where it takes no rows instead of being skipped,
all layers share it: so single inputs and batches have a graph each.
A piece in bf16 converts what is fp32 on its way in and out: so hidden_states are bfloat16 between the pieces, too. And
bf16 is a wish: a chip without it computes in fp32 and says so only when asked.
OpenVINO makes kernels for each shape it meets, and keeps them: 5,000 for each graph and each branch of one, and oneDNN
below it 1,024 more. Texts of all lengths in batches of all sizes would fill gigabytes. Both keep the latest few here.
"""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.runtime.engines.base import EngineOptions, OnThisProcessor, Piece, is_reduced
from hadskip_export.runtime.engines.bfloat16 import Bfloat16States
from hadskip_export.runtime.forks import never_destroy
from hadskip_export.support.errors import EngineError, first_line, optional_import

MOST_TOKENS = {"fp32": 1024, "bf16": 1024, "int8": 512}  # computed at once, which takes 24 kB of scratch a token
MOST_ROUTED = 2048  # the same where layers take the rows that run them, which are fewer, and share the scratch
GROUP = 128  # channels of a token that share a scale in int8; 32 is a fifth slower and a tenth nearer
HIDDEN_STATES_RANK = 3
KERNELS = 128  # that each graph keeps, up to half a MB each; a chain of twelve layers with 32 was 24 to 75 % slower
ONEDNN_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
BUSY = "busy state"  # in OpenVINO's message where memory cannot be given back yet
_SMALL = ("gate_", "exit_", "head")  # pieces too small to share between threads; all gates in one are not
_core_lock = threading.Lock()
_core: Any = None
_used_in: int | None = None  # the process that loaded OpenVINO


class OpenVinoEngine(OnThisProcessor):
    """See `Engine`. Its threads do not spin, whatever the options say."""

    reads = "onnx"

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions):
        self._openvino = optional_import("openvino", "openvino")
        _check_process()
        self._core = _core_of_this_process(self._openvino)
        self._files = files
        self._precision = precision
        self._options = options

    def load(self, piece: str) -> Piece:
        file = self._files[piece]
        wanted = "bf16" if self._precision == "bf16" and is_reduced(piece) else "f32"
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": 1 if piece.startswith(_SMALL) else self._options.thread_count,
            "INFERENCE_PRECISION_HINT": wanted,
            "CPU_RUNTIME_CACHE_CAPACITY": KERNELS,
        }
        if self._precision == "int8" and is_reduced(piece):
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP
        try:
            model = str(file) if self._precision != "bf16" else self._with_bfloat16_states(file)
            compiled = self._core.compile_model(model, "CPU", settings)
            used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except RuntimeError as error:
            raise EngineError(f"{file}: openvino {self._openvino.__version__} refuses it ({_reason(error)})") from error
        if used != wanted:
            raise EngineError(f"{file}: this chip computes {wanted} as {used}; use --engine openvino-fp32 here")
        most = MOST_ROUTED if piece == "whole" else MOST_TOKENS[self._precision]
        return OpenVinoPiece(self._openvino, compiled, file, most, piece.startswith("layer"))

    def _with_bfloat16_states(self, file: Path) -> Any:
        """The piece's model, whose hidden_states, if it takes or gives any, are bfloat16."""
        model = self._core.read_model(file)
        types = self._openvino.preprocess.PrePostProcessor(model)
        for ports, typed in ((model.inputs, types.input), (model.outputs, types.output)):
            for index, port in enumerate(ports):
                if port.partial_shape.rank.get_length() == HIDDEN_STATES_RANK:
                    typed(index).tensor().set_element_type(self._openvino.Type.bf16)
        return types.build()

    @staticmethod
    def versions() -> dict[str, str]:
        version = optional_import("openvino", "openvino").__version__
        return {"openvino": version.partition("-")[0]}  # without its build number and branch


class OpenVinoPiece:
    """A compiled model and its infer requests. One request serves one call at a time, so each call takes an idle one
    or makes another. Inputs are read, and outputs are written, where the arrays lie, without a copy.

    Args:
        most_tokens: computed at once.
        gives_back: its scratch memory, after each call, not only after one made in parts.
    """

    def __init__(self, openvino: Any, compiled: Any, file: Path, most_tokens: int, gives_back: bool):
        self._compiled = compiled
        self._file = file
        self._most_tokens, self._gives_back = most_tokens, gives_back
        self._inputs, self._outputs = (
            [Port(openvino, port) for port in ports] for ports in (compiled.inputs, compiled.outputs)
        )
        self._idle: list[Any] = []  # pop and append are atomic

    def __call__(self, *inputs: Any) -> Any:
        try:
            arrays = [port.read(given) for port, given in zip(self._inputs, inputs, strict=True)]
            rows, length = arrays[0].shape[:2]
            if any(len(array) != rows for array in arrays):
                raise ValueError(f"inputs of {', '.join(str(len(array)) for array in arrays)} rows")
            outputs = [port.empty(arrays[0].shape) for port in self._outputs]
            request = self._request()
            step = max(1, self._most_tokens // max(1, length))
            for part in (slice(first, first + step) for first in range(0, rows, step)):
                for index, (port, array) in enumerate(zip(self._inputs, arrays, strict=True)):
                    request.set_input_tensor(index, port.tensor(array[part]))
                for index, (port, array) in enumerate(zip(self._outputs, outputs, strict=True)):
                    request.set_output_tensor(index, port.tensor(array[part]))
                request.infer()
        except (RuntimeError, ValueError, IndexError) as error:
            raise EngineError(f"{self._file}: {_reason(error)}") from error
        self._idle.append(request)
        if self._gives_back or rows > step:
            self._give_back()
        given = [port.given(array) for port, array in zip(self._outputs, outputs, strict=True)]
        return given[0] if len(given) == 1 else tuple(given)

    def _give_back(self) -> None:
        """Its scratch memory, unless another call is at work in this piece: then the last one does for all."""
        try:
            self._compiled.release_memory()
        except RuntimeError as error:
            if BUSY not in str(error):
                raise EngineError(f"{self._file}: {_reason(error)}") from error

    def _request(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._compiled.create_infer_request()


class Port:
    """What a compiled model takes or gives in one place, and the array for it."""

    def __init__(self, openvino: Any, port: Any):
        self._openvino = openvino
        self._bf16 = port.element_type == openvino.Type.bf16
        self._shape = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]

    def read(self, given: Any) -> np.ndarray:
        if self._bf16:
            given = (given if isinstance(given, Bfloat16States) else Bfloat16States.nearest(given)).bits
        return np.ascontiguousarray(given)

    def empty(self, like: tuple[int, ...]) -> np.ndarray:
        """For an output. What of its shape is not fixed is the batch, then the length, as in every input, `like`."""
        shape = [size or like[axis] for axis, size in enumerate(self._shape)]
        return np.empty(shape, np.uint16 if self._bf16 else np.float32)

    def tensor(self, array: np.ndarray) -> Any:
        """On the array's own memory."""
        if self._bf16:
            return self._openvino.Tensor(array, list(array.shape), self._openvino.Type.bf16)
        return self._openvino.Tensor(array, shared_memory=True)

    def given(self, array: np.ndarray) -> Any:
        return Bfloat16States(array) if self._bf16 else array


def _check_process() -> None:
    """
    Raises:
        EngineError: this process was forked from one that has used OpenVINO, and might wait forever for threads that
            stayed there.
    """
    global _used_in
    if _used_in not in (None, os.getpid()):
        raise EngineError(
            "OpenVINO was used by the process that this one was forked from, and its threads stayed there; load the"
            " first predictor after the fork, in each process (gunicorn: leave --preload out)"
        )
    _used_in = os.getpid()


def _core_of_this_process(openvino: Any) -> Any:
    """One for all predictors, and never destroyed. Each gives its thread a stack for signals and, at its end, puts back
    the one it found: of two whose lives overlap that is freed memory, and the next SIGTERM a segmentation fault."""
    global _core
    with _core_lock:
        if _core is None:
            core = openvino.Core()
            never_destroy(core)
            _keep_few_onednn_kernels(openvino, core)
            _core = core
    return _core


def _keep_few_onednn_kernels(openvino: Any, core: Any) -> None:
    """OpenVINO's oneDNN reads from the environment how many it may keep, when it makes the first one of the process:
    here, of a model that is a softmax. PyTorch has a oneDNN, too, so the environment is left as it was."""
    if ONEDNN_KERNELS in os.environ:
        return
    os.environ[ONEDNN_KERNELS] = str(KERNELS)
    try:
        data = openvino.opset8.parameter([1, 2], np.float32)
        core.compile_model(openvino.Model([openvino.opset8.softmax(data, 1)], [data]), "CPU", {})
    finally:
        del os.environ[ONEDNN_KERNELS]


def _reason(error: Exception) -> str:
    """The last line of its message that says something: the first ones are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
