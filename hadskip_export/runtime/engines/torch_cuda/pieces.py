"""The pieces of the engine `torch-cuda`: which inputs each puts into a bucket, which steps it records there, and what
it takes out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from hadskip_export.errors import EngineError, first_line
from hadskip_export.runtime.engines.torch_cuda.layers import Part
from hadskip_export.runtime.engines.torch_cuda.model import Bucket, Decisions, DeviceTensor, Model, Program

Step = Callable[[Bucket], None]


class TorchPiece:
    """
    Args:
        record: makes its program, once for each bucket.
        put: takes a call's inputs to the bucket.
        take: (bucket, rows, length) -> what the piece gives.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        record: Callable[[Bucket], Program],
        put: Callable[..., None],
        take: Callable[[Bucket, int, int], Any],
    ):
        self._model, self._name = model, name
        self._record, self._put, self._take = record, put, take

    def __call__(self, *inputs: Any) -> Any:
        try:
            with self._model.recorder.in_order():
                arrays = [self._checked(given) for given in inputs]
                rows, length = arrays[0].shape[:2]
                bucket = self._model.bucket(rows, length)
                program = bucket.program(self._name, self._record)
                self._put(bucket, *arrays)
                program()
                return self._take(bucket, rows, length)
        except Exception as error:  # torch raises whatever went wrong inside it, and a caller may bring anything
            raise EngineError(f"{self._model.file}: {self._name}: {first_line(error)}") from error

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


def open_piece(model: Model, name: str) -> TorchPiece:
    """The piece; its weights are on the device then.

    Raises:
        EngineError: the file has no such piece.
    """
    return _OPEN[name.partition("_")[0]](model, name)


def _recorded(model: Model, *steps: Step) -> Callable[[Bucket], Program]:
    def run(bucket: Bucket) -> None:
        for step in steps:
            step(bucket)

    return lambda bucket: model.recorder.record(partial(run, bucket))


def _embed(part: Part) -> Step:
    return lambda bucket: bucket.embed(part)


def _run(*layers: Part) -> Step:
    return lambda bucket: bucket.run_layers(*layers)


def _ask(part: Part, first: int = 0) -> Step:
    return lambda bucket: bucket.ask(part, first)


def _classify(part: Part) -> Step:
    return lambda bucket: bucket.classify(part)


def _keep(place: int) -> Step:
    return lambda bucket: bucket.keep(place)


def _embeddings(model: Model, name: str) -> TorchPiece:
    return TorchPiece(model, name, _recorded(model, _embed(model.part(name))), Bucket.put_ids, Bucket.states)


def _layer(model: Model, name: str) -> TorchPiece:
    return TorchPiece(model, name, _recorded(model, _run(model.part(name))), Bucket.put_states, Bucket.states)


def _gates(model: Model, name: str) -> TorchPiece:
    columns = slice(None) if name == "gates" else 0
    return TorchPiece(
        model,
        name,
        _recorded(model, _ask(model.part(name))),
        Bucket.put_states,
        lambda bucket, rows, _: bucket.margins[:rows, columns].cpu().numpy().copy(),
    )


def _head(model: Model, name: str) -> TorchPiece:
    return TorchPiece(
        model,
        name,
        _recorded(model, _classify(model.part(name))),
        Bucket.put_hidden,
        lambda bucket, rows, _: bucket.logits[:rows].cpu().numpy().copy(),
    )


def _full(model: Model, name: str) -> TorchPiece:
    layers = model.layers(range(1, model.num_layers + 1), "full.")
    steps = _embed(model.part("full.embeddings")), _run(*layers), _classify(model.part("full.head"))
    return TorchPiece(
        model,
        name,
        _recorded(model, Bucket.fetch, *steps, Bucket.reply_routes),
        lambda bucket, ids, mask, *types: bucket.send([ids, *types], mask),
        lambda bucket, rows, _: bucket.replied(rows)[0],
    )


def _graph(model: Model, name: str) -> TorchPiece:
    """The whole gated model for one input, see `Conditional`."""
    embeddings, head, gates = (model.part(part) for part in ("embeddings", "head", "gates"))
    layers = model.layers(range(1, model.num_layers + 1))
    start = _recorded(model, Bucket.fetch, _embed(embeddings), _ask(gates))
    bodies = [_recorded(model, _run(layer), _ask(gates, done)) for done, layer in enumerate(layers[:-1], 1)]
    bodies.append(_recorded(model, _run(layers[-1])))
    finish = _recorded(model, _classify(head), Bucket.reply_routes)

    def record(bucket: Bucket) -> Program:
        on = Decisions(bucket.margins, bucket.terms, bucket.ran)
        return model.recorder.conditional(start(bucket), [body(bucket) for body in bodies], finish(bucket), on)

    def put(bucket: Bucket, *inputs: np.ndarray) -> None:
        *ids, mask, thresholds, most = inputs
        bucket.send(ids, mask, np.append(thresholds[0], most))

    return TorchPiece(model, name, record, put, lambda bucket, rows, _: bucket.replied(rows))


def _guess(model: Model, name: str) -> TorchPiece:
    """The commonest route and every gate on it, see `Speculation`."""
    gates, route = model.part("gates"), model.guess
    steps = [Bucket.fetch, _embed(model.part("embeddings")), _keep(0), _ask(gates)]
    for place, (number, layer) in enumerate(zip(route, model.layers(route), strict=True), 1):
        steps += [_run(layer), _keep(place), _ask(gates, number)]

    def take(bucket: Bucket, rows: int, length: int) -> tuple[Any, ...]:
        logits, margins = bucket.replied(rows)
        return logits, margins, *(DeviceTensor(kept[:rows, :length].clone(), model.recorder) for kept in bucket.kept)

    return TorchPiece(
        model,
        name,
        _recorded(model, *steps, _classify(model.part("head")), Bucket.reply_margins),
        lambda bucket, *inputs: bucket.send(inputs[:-1], inputs[-1]),
        take,
    )


_OPEN: dict[str, Callable[[Model, str], TorchPiece]] = {
    "embeddings": _embeddings,
    "layer": _layer,
    "gate": _gates,
    "gates": _gates,
    "head": _head,
    "full": _full,
    "graph": _graph,
    "guess": _guess,
}
