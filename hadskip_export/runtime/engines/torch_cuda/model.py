"""What the engine `torch-cuda` keeps on the device: weights, and for each size of input buffers and programs.

A recorded program reads and writes fixed addresses, so sizes are rounded up: to lanes, where the whole model runs, and
to buckets, where a piece of the chain does. One call at a time uses the device.
"""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import torch
from torch import Tensor

from hadskip_export.runtime.engines.torch_cuda.kernels import MOST_COLUMNS, Kernels
from hadskip_export.runtime.engines.torch_cuda.lane import Lane, Sizes
from hadskip_export.runtime.engines.torch_cuda.layers import Part, attention_bias, embeddings, layer, logits, margins
from hadskip_export.runtime.engines.torch_cuda.recorder import Program, Recorder
from hadskip_export.runtime.engines.torch_cuda.takes import why_not
from hadskip_export.runtime.manifest import ABOUT, layer_name
from hadskip_export.support.errors import EngineError, first_line

Size = tuple[int, int]  # rows, tokens
Room = TypeVar("Room")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LENGTH_STEP = 16  # tokens
MOST_LANES = 128  # four for each length up to 512 tokens
MOST_TOKENS = 1 << 19  # in all buckets: 1.6 GB of a BERT-base; every size up to 32 rows of 128 tokens takes half of it
MOST_ROWS = 1 << 15  # that a report has room for, and a kernel's grid


class DeviceTensor:
    """hidden_states float32 [b, s, H] on the device, as the chain uses an array: it takes rows out and puts them in."""

    def __init__(self, value: Tensor, recorder: Recorder):
        self.value = value
        self._recorder = recorder

    def __len__(self) -> int:
        return len(self.value)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with self._recorder.in_order():
            return self.value.cpu().numpy().astype(dtype or np.float32)

    def __getitem__(self, rows: Any) -> "DeviceTensor":
        with self._recorder.in_order():
            return DeviceTensor(self.value[rows], self._recorder)

    def __setitem__(self, rows: Any, new: Any) -> None:
        with self._recorder.in_order():
            self.value[rows] = new.value if isinstance(new, DeviceTensor) else new


class Model:
    """One file of weights, on the device as far as pieces need them, and the buckets of sizes seen so far.

    Args:
        file: the fp32 tensors of the bundle.
        kernels: those for layers of a dtype.
    """

    def __init__(
        self,
        file: Path,
        precision: str,
        device: str,
        recorder: Recorder,
        kernels: Callable[[torch.dtype], Kernels],
    ):
        self.file = file
        self.device = device
        self.dtype = DTYPES[precision]
        self.recorder = recorder
        self._parts: dict[str, Part] = {}
        self._buckets: dict[Size, Bucket] = {}
        self._lanes: dict[Size, Lane] = {}
        with safetensors.safe_open(file, "pt") as opened:
            said, self._names = json.loads(opened.metadata()[ABOUT]), list(opened.keys())
            self.max_positions, self.hidden_size = opened.get_slice("embeddings.position.weight").get_shape()
            self.num_classes = opened.get_slice("head.classifier.bias").get_shape()[0]
        if lack := why_not(said):
            raise EngineError(f"{file}: torch-cuda has no code for {lack}; the other engines run it")
        self._shape = int(said["num_heads"]), float(said["eps"]), said["activation"]
        self._transposed = set(said["transposed"].split())
        self.num_layers = int(said["num_layers"])
        present = {int(name.split(".")[1]) for name in self._names if name.startswith("layers.")}
        self.last_layer = layer_name(max(present))  # of a static route not the L-th
        if self.hidden_size % 4 or self.hidden_size > MOST_COLUMNS:
            raise EngineError(f"{file}: hidden size {self.hidden_size}, expected a multiple of 4 up to {MOST_COLUMNS}")
        self.kernels = kernels(self.dtype)
        self._sizes = Sizes(self.num_layers, self.num_classes, self.hidden_size, self.dtype, device)

    def part(self, piece: str) -> Part:
        """A piece's weights. Those of layers are in the model's precision, all others in fp32."""
        if piece not in self._parts:
            prefix, dtype = _tensors_of(piece), self.dtype if "layer_" in piece else torch.float32
            weights = {}
            with safetensors.safe_open(self.file, "pt", device=self.device) as opened:
                for name in self._names:
                    if name.startswith(f"{prefix}."):
                        weights[name[len(prefix) + 1 :]] = self._as_linear(name, opened.get_tensor(name)).to(dtype)
            if not weights:
                raise EngineError(f"{self.file}: has no weights of {piece}; build it again")
            if piece.startswith("gate_"):
                weights = _one_gate(weights, int(piece.removeprefix("gate_")) - 1)
            self._parts[piece] = Part(_with_one_projection(weights), *self._shape)
        return self._parts[piece]

    def _as_linear(self, name: str, tensor: Tensor) -> Tensor:
        """[out, in], as torch has the weight of a linear map; the file has it as ONNX multiplies, [in, out]."""
        module, _, kind = name.rpartition(".")
        turned = kind == "weight" and module.rpartition(".")[2] in self._transposed
        return tensor.t().contiguous() if turned else tensor

    def layers(self, prefix: str = "") -> list[Part]:
        """All of them; full BERT's by the prefix `full.`."""
        return [self.part(prefix + layer_name(index)) for index in range(self.num_layers)]

    @contextmanager
    def running(self, piece: str) -> Iterator[None]:
        """Whatever goes wrong within is an error of this piece: torch raises what it likes, and a caller may bring
        anything.

        Raises:
            EngineError: something did.
        """
        try:
            yield
        except Exception as error:
            raise EngineError(f"{self.file}: {piece}: {first_line(error)}") from error

    def bucket(self, rows: int, length: int) -> "Bucket":
        """The smallest one that has room for so many rows and tokens."""
        size = self._rounded(rows, length)
        return self._kept(self._buckets, size, _too_many_tokens, lambda: Bucket(self, *size))

    def lane(self, rows: int, length: int) -> Lane:
        """Likewise.

        Raises:
            ValueError: too many rows.
        """
        if rows > MOST_ROWS:
            raise ValueError(f"more than {MOST_ROWS} inputs at once; lower batch_size")
        size = self._rounded(rows, length)
        return self._kept(self._lanes, size, _too_many, lambda: Lane(self._sizes, *size, self.recorder))

    def _kept(
        self, kept: dict[Size, Room], size: Size, full: Callable[[Collection[Size]], bool], make: Callable[[], Room]
    ) -> Room:
        """What was made for a size, or is made now; what was not used for longest makes room, with its programs."""
        room = kept.pop(size, None)
        if room is None:
            while kept and full([*kept, size]):
                self.recorder.wait()  # a call may have been interrupted
                kept.pop(next(iter(kept)))
            with self.recorder.in_order():
                room = make()
        kept[size] = room
        return room

    def _rounded(self, rows: int, length: int) -> tuple[int, int]:
        if length > self.max_positions:
            raise ValueError(f"{length} tokens; the model takes {self.max_positions}")
        return round_rows(rows), max(length, min(_round_up(length, LENGTH_STEP), self.max_positions))


class Bucket:
    """Buffers for a piece of the chain at most so many rows and tokens large, and the programs recorded on them; what
    a piece gave is copied out of them. Rows and tokens beyond those of a call are padding; the first token of a row
    counts as real, so that no row is without one."""

    def __init__(self, model: Model, rows: int, length: int):
        self._dtype, self._add_norm, self._recorder = model.dtype, model.kernels.add_norm, model.recorder
        self._programs: dict[str, Program] = {}

        def on_device(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=model.device)

        self.ids = on_device(2, rows, length, dtype=torch.int64)
        self.mask = on_device(rows, length, dtype=torch.int64)
        self.bias = on_device(rows, 1, 1, length, dtype=model.dtype)
        self.hidden = on_device(rows, length, model.hidden_size)
        self.margins = on_device(rows, model.num_layers)
        self.logits = on_device(rows, model.num_classes)
        self._mask_of: np.ndarray | None = None  # whose mask lies in the buffer

    def program(self, name: str, record: Callable[["Bucket"], Program]) -> Program:
        """The program of this name, recorded when it is first needed: before a call's inputs are put where it reads,
        for recording runs it."""
        if name not in self._programs:
            self._programs[name] = record(self)
            self._mask_of = None
        return self._programs[name]

    # What a call brings

    def put_ids(self, *arrays: np.ndarray) -> None:
        """input_ids and, where the model has them, token_type_ids, int64 [b, s]."""
        rows, length = arrays[0].shape
        for place, array in zip(self.ids, arrays, strict=False):
            place.zero_()
            place[:rows, :length] = _tensor(array, rows, length)

    def put_hidden(self, hidden: Tensor) -> None:
        rows, length = hidden.shape[:2]
        self.hidden[:rows, :length] = hidden
        self.hidden[:, length:] = 0  # what is left there may be no number, and a weight of zero does not help with that

    def put_states(self, hidden: Tensor, mask: np.ndarray) -> None:
        rows, length = hidden.shape[:2]
        self.put_hidden(hidden)
        if mask is not self._mask_of:
            self.mask.zero_()
            self.mask[:, 0] = 1
            self.mask[:rows, :length] = _tensor(mask, rows, length)
            self.bias.copy_(attention_bias(self.mask, self._dtype))
            self._mask_of = mask  # and keeps it, so that no other array can be the same object

    # Steps: from buffers to buffers

    def embed(self, part: Part) -> None:
        self.hidden.copy_(embeddings(part, self.ids[0], self.ids[1]))

    def run_layer(self, part: Part, last: bool) -> None:
        """In the model's precision; between pieces hidden_states are fp32, as everywhere."""
        new = layer(part, self.hidden.to(self._dtype), self.bias, self._add_norm, last=last)
        self.hidden[:, : new.shape[1]] = new

    def ask(self, part: Part) -> None:
        found = margins(part, self.hidden, self.mask)
        self.margins[:, : found.shape[1]] = found

    def classify(self, part: Part) -> None:
        self.logits.copy_(logits(part, self.hidden))

    # What a call takes

    def states(self, rows: int, length: int) -> DeviceTensor:
        return DeviceTensor(self.hidden[:rows, :length].clone(), self._recorder)


def _tensors_of(piece: str) -> str:
    """What the names of a piece's tensors begin with in the file: `layers.0` for `layer_01`."""
    before, _, name = piece.rpartition(".")
    kind, _, number = name.partition("_")
    if kind == "gate":
        return "gates"
    inside = f"layers.{int(number) - 1}" if kind == "layer" else name
    return f"{before}.{inside}" if before else inside


def _one_gate(weights: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Of the tensors of all gates, those of one."""
    width = len(weights["hidden.bias"]) // len(weights["margins.bias"])
    units = slice(index * width, (index + 1) * width)
    return {
        "hidden.weight": weights["hidden.weight"][units],
        "hidden.bias": weights["hidden.bias"][units],
        "margins.weight": weights["margins.weight"][index : index + 1, units].contiguous(),
        "margins.bias": weights["margins.bias"][index : index + 1],
    }


def _with_one_projection(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A last layer's query, which the file has apart from key and value, together with them again."""
    if "query.weight" not in weights:
        return weights
    both = {
        f"query_key_value.{kind}": torch.cat([weights.pop(f"query.{kind}"), weights.pop(f"key_value.{kind}")])
        for kind in ("weight", "bias")
    }
    return weights | both


def _too_many(sizes: Collection[Size]) -> bool:
    return len(sizes) > MOST_LANES


def _too_many_tokens(sizes: Collection[Size]) -> bool:
    return sum(rows * length for rows, length in sizes) > MOST_TOKENS


def round_rows(rows: int) -> int:
    """Up to 16 as they are, then in steps of a sixteenth to an eighth: 18, 20, ... 32, 36. Half the rows of a batch,
    give or take a few, must not cost as much as all of them."""
    return _round_up(rows, 1 << max(0, (rows - 1).bit_length() - 4))


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _tensor(array: np.ndarray, rows: int, length: int) -> Tensor:
    """ids or a mask.

    Raises:
        ValueError: not int64 [rows, length], which torch would cast or repeat.
    """
    if array.dtype != np.int64 or array.shape != (rows, length):
        raise ValueError(f"expected int64 [{rows}, {length}], got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array)
