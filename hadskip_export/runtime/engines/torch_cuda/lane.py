"""Where a call lives on the device: what the host sends, states and decisions, what it is told; and the programs
recorded on these buffers. A recorded program reads and writes fixed addresses, so there is a lane for each size."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadskip_export.runtime.engines.torch_cuda.recorder import Program, Recorder
from hadskip_export.support.errors import EngineError

PARTS = 2  # of a margin, made apart
POLLS = 2000  # before the host asks whether the device is still at work


@dataclass(frozen=True)
class Sizes:
    """Of a model, as far as buffers go. `dtype`: of its layers."""

    num_layers: int
    num_classes: int
    hidden_size: int
    dtype: torch.dtype
    device: str


class Lane:
    """Buffers for calls of at most so many rows and tokens. Rows and tokens beyond those of a call are padding: rows
    that run no layer, whose first token counts as real, so that no row is without one.

    Attributes:
        states: hidden_states [rows, length, H] in the layers' precision. Of a row that ran the last layer only the
            first token's is that layer's.
        at, done: of each row the last layer it ran, from 0, -1 before any, and how many.
        next, planned: the layer it runs next (L: none), and, where the program at work runs that one, the one after it
            if its margins stay as they are.
        slots, listed: the rows that a program works on, -1 where there is none, and those that the next one should.
        report: the next program's layer in the lower half of a number, in the upper half how many rows are listed for
            it; then how often this was written in the call. In the host's memory, as `answer` and all that is sent.
        arrived_deciding, arrived_replying: how many of a kernel's blocks are done, while it runs.
    """

    def __init__(self, sizes: Sizes, rows: int, length: int, recorder: Recorder):
        self._recorder, self._num_classes = recorder, sizes.num_classes
        self._programs: dict[tuple[Any, ...], Program] = {}
        num_layers, pinned = sizes.num_layers, sizes.device == "cuda"  # the device reads and writes there by itself

        def on_device(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=sizes.device)

        def on_host(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device="cpu", pin_memory=pinned)

        self.sent_ids = on_host(3, rows, length, dtype=torch.int64)
        self.sent_terms = on_host(rows, num_layers + 1)
        self.ids = on_device(3, rows, length, dtype=torch.int64)
        self.states = on_device(rows, length, sizes.hidden_size, dtype=sizes.dtype)
        self.mask = on_device(rows, length)
        self.bias = on_device(rows, 1, 1, length, dtype=sizes.dtype)
        self.terms = on_device(rows, num_layers + 1)
        self.pooled = on_device(rows, sizes.hidden_size)
        self.parts = on_device(rows, num_layers, PARTS)
        self.margins, self.ran = (on_device(rows, num_layers) for _ in range(2))
        self.at, self.done, self.next, self.planned = (on_device(rows, dtype=torch.int32) for _ in range(4))
        self.slots, self.listed, self.writes = (on_device(rows, dtype=torch.int32) for _ in range(3))
        self.count, self.arrived_deciding, self.arrived_replying = (on_device(1, dtype=torch.int32) for _ in range(3))
        self.report = on_host(2, dtype=torch.int32)
        self.units = on_device(rows, sizes.hidden_size)
        self.answer = on_host(rows, sizes.num_classes + num_layers)
        # The same memory, to which numpy writes in a tenth of the time.
        self._ids, self._terms, self._answered = self.sent_ids.numpy(), self.sent_terms.numpy(), self.answer.numpy()
        self._told = memoryview(self.report.numpy().view(np.uint32))
        self._busy = False  # with a call
        self._reports = 0

    def send(self, ids: Sequence[np.ndarray], mask: np.ndarray, thresholds: np.ndarray | None, most: int) -> None:
        """A call's inputs, int64 [b, s] each, and its rows' terms: thresholds float32 [b, L], and the most layers."""
        rows, length = mask.shape
        for array in (*ids, mask):
            if array.dtype != np.int64 or array.shape != (rows, length):
                raise ValueError(f"expected int64 [{rows}, {length}], got {array.dtype} {list(array.shape)}")
        if self._busy:  # the call before this one was interrupted
            self._recorder.wait()
        self._busy = True
        if self._ids.shape[1:] != mask.shape:
            self._ids.fill(0)
            self._ids[2, :, 0] = 1
        for place, array in zip(self._ids, ids, strict=False):
            place[:rows, :length] = array
        self._ids[2, :rows, :length] = mask
        if thresholds is not None:
            self._terms[rows:, -1] = 0
            self._terms[:rows, :-1] = thresholds
            self._terms[:rows, -1] = most

    def start(self, key: tuple[Any, ...], record: Callable[..., Program]) -> bool:
        """Starts a program. If there was none there is one now, made by `record` of the lane and all but the first of
        `key`, and False is returned: recording ran over whatever lay here, so that the call must begin anew."""
        program = self._programs.get(key)
        if program is None:
            self._programs[key] = record(self, *key[1:])
            return False
        program()
        return True

    def expect(self) -> None:
        """Reports are counted from 0, as `begin` does too; the device is at rest."""
        self._told[1] = self._reports = 0

    def reported(self) -> tuple[int, int]:
        """The next report: the layer of the program that should follow, and how many rows it should run.

        Raises:
            EngineError: the device is done and has reported nothing.
        """
        self._reports += 1
        told, wanted, polls = self._told, self._reports, 0
        while told[1] != wanted:
            polls += 1
            if polls % POLLS == 0:
                if self._recorder.at_rest() and told[1] != wanted:
                    raise EngineError("the device reports nothing")
                time.sleep(0)  # to whoever else wants to run
        return told[0] & 0xFFFF, told[0] >> 16

    def answered(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits [b, classes] and the layers that ran [b, L]."""
        self._recorder.wait()
        self._busy = False
        answer = self._answered[:rows].copy()
        return answer[:, : self._num_classes], answer[:, self._num_classes :]
