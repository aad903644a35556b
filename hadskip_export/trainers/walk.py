"""Routes that begin alike, run together."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hadskip_export.modeling.encoder import attention_bias
from hadskip_export.modeling.exits import Student
from hadskip_export.routing.routes import Route
from hadskip_export.trainers.batches import TrainingBatch

# (a layer's index from 0, the layers run before it, rows of the batch int [m], their states float32 [m, s, H]) ->
# which of them are to run it and which to skip it, bool [m] each; a row may do both
Branch = Callable[[int, Route, Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def walk(model: Student, batch: TrainingBatch, branch: Branch) -> Iterator[tuple[Route, Tensor, Tensor]]:
    """Follows every decision that `branch` lets a row take, each layer computed once for what came before it.

    Depth first, so that no more states are held than there are layers.

    Yields:
        A route, the rows of the batch that came to its end, int [m], and their logits, float32 [m, labels].
    """
    input_ids, attention_mask, token_type_ids = batch.inputs
    body = model.classifier
    hidden = body.embeddings(input_ids, token_type_ids)
    bias, distances = attention_bias(attention_mask, hidden.dtype), body.distances()

    def follow(ran: Route, index: int, rows: Tensor, hidden: Tensor) -> Iterator[tuple[Route, Tensor, Tensor]]:
        if index == len(body.layers):
            yield ran, rows, model.answer(ran, hidden, attention_mask[rows])
            return
        run, skip = branch(index, ran, rows, hidden)
        if skip.any():
            yield from follow(ran, index + 1, rows[skip], hidden[skip])
        if run.any():
            hidden, rows = hidden[run], rows[run]
            yield from follow((*ran, index + 1), index + 1, rows, body.layers[index](hidden, bias[rows], distances)[0])

    yield from follow((), 0, torch.arange(len(hidden), device=hidden.device), hidden)


def prefixes(family: list[Route], num_layers: int) -> set[tuple[int, Route]]:
    """Every (index from 0, layers run before it) that a route of the family comes by, its end among them."""
    return {
        (index, tuple(layer for layer in route if layer <= index))
        for route in family
        for index in range(num_layers + 1)
    }
