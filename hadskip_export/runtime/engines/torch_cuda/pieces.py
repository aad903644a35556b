"""The pieces of the engine `torch-cuda`, and of those of the chain which inputs each puts into a bucket, which step it
records there, and what it takes out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.engines.torch_cuda.ahead import Ahead, Full
from hadskip_export.runtime.engines.torch_cuda.model import Bucket, DeviceTensor, Model
from hadskip_export.runtime.engines.torch_cuda.recorder import Program

Step = Callable[[Bucket], None]


class TorchPiece:
    """
    Args:
        step: what it computes, recorded once for each bucket.
        put: takes a call's inputs to the bucket.
        take: (bucket, rows, length) -> what the piece gives.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        step: Step,
        put: Callable[..., None],
        take: Callable[[Bucket, int, int], Any],
    ):
        self._model, self._name = model, name
        self._step, self._put, self._take = step, put, take

    def __call__(self, *inputs: Any) -> Any:
        with self._model.running(self._name), self._model.recorder.in_order():
            arrays = [self._checked(given) for given in inputs]
            rows, length = arrays[0].shape[:2]
            bucket = self._model.bucket(rows, length)
            program = bucket.program(self._name, self._record)
            self._put(bucket, *arrays)
            program()
            return self._take(bucket, rows, length)

    def _record(self, bucket: Bucket) -> Program:
        return self._model.recorder.record(partial(self._step, bucket))

    def _checked(self, given: Any) -> Any:
        """hidden_states as a tensor on the device, any other array as torch reads it.

        Raises:
            ValueError: hidden_states of another size or dtype.
        """
        if isinstance(given, DeviceTensor):
            return given.value
        if given.ndim < 3:
            return np.ascontiguousarray(given)
        if given.dtype != np.float32 or given.shape[2] != self._model.hidden_size:
            raise ValueError(f"{given.dtype} {given.shape} are no hidden_states of this model")
        return torch.from_numpy(np.ascontiguousarray(given)).to(self._model.device)


def open_piece(model: Model, name: str) -> Piece:
    """The piece; its weights are on the device then.

    Raises:
        EngineError: the file has no such piece.
    """
    return _OPEN[name.partition("_")[0]](model, name)


def _embeddings(model: Model, name: str) -> TorchPiece:
    part = model.part(name)
    return TorchPiece(model, name, lambda bucket: bucket.embed(part), Bucket.put_ids, Bucket.states)


def _layer(model: Model, name: str) -> TorchPiece:
    part, last = model.part(name), name == model.last_layer
    return TorchPiece(
        model,
        name,
        lambda bucket: bucket.run_layer(part, last),
        Bucket.put_states,
        lambda bucket, rows, length: bucket.states(rows, 1 if last else length),
    )


def _gates(model: Model, name: str) -> TorchPiece:
    part, columns = model.part(name), slice(None) if name == "gates" else 0
    return TorchPiece(
        model,
        name,
        lambda bucket: bucket.ask(part),
        Bucket.put_states,
        lambda bucket, rows, _: bucket.margins[:rows, columns].cpu().numpy().copy(),
    )


def _head(model: Model, name: str) -> TorchPiece:
    part = model.part(name)
    return TorchPiece(
        model,
        name,
        lambda bucket: bucket.classify(part),
        Bucket.put_hidden,
        lambda bucket, rows, _: bucket.logits[:rows].cpu().numpy().copy(),
    )


_OPEN: dict[str, Callable[[Model, str], Piece]] = {
    "embeddings": _embeddings,
    "layer": _layer,
    "gate": _gates,
    "gates": _gates,
    "head": _head,
    "full": Full,
    "whole": Ahead,
}
