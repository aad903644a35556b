"""A model cut into pieces, each a module with plain tensors in and one tensor out, and the names they bear.

Shapes: `b` batch, `s` length, both dynamic. Dtypes: ids and mask int64, everything else float32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadskip_export.modeling.encoder import Classifier, Layer, attention_bias
from hadskip_export.modeling.gated import Gate, GatedClassifier, pooled
from hadskip_export.runtime.bundle import gate_name, layer_name


@dataclass(frozen=True)
class Piece:
    """A module to export. `inputs`: its inputs by name, in order; `output`: the name of its one output."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    output: str


class LayerPiece(nn.Module):
    def __init__(self, layer: Layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layer(hidden_states, attention_bias(attention_mask, hidden_states.dtype))[0]


class LastLayerPiece(nn.Module):
    """The last layer that an input may run. The head reads the first token alone, and no gate comes after it: so only
    that token's state is computed, [b, 1, H], from the keys and values of all."""

    def __init__(self, layer: Layer):
        super().__init__()
        self.layer = layer
        hidden_size = layer.query_key_value.in_features
        self.query = _rows_of(layer.query_key_value, slice(hidden_size))
        self.key_value = _rows_of(layer.query_key_value, slice(hidden_size, None))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        first = hidden_states[:, 0][:, None]
        query = self.layer.heads(self.query(first), 1)[0]
        key, value = self.layer.heads(self.key_value(hidden_states), 2)
        return self.layer.attend(first, query, key, value, attention_bias(attention_mask, hidden_states.dtype))[0]


def _rows_of(linear: nn.Linear, rows: slice) -> nn.Linear:
    """Those outputs of a linear map, as one of its own."""
    weight, bias = linear.weight[rows].detach(), linear.bias[rows].detach()
    part = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    part.weight, part.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return part


class GatesPiece(nn.Module):
    """Gates on the same states, margins [b, L]: for the layouts that look ahead.

    All hidden layers are one matrix, and the two logits are subtracted in the weights: one gate then costs ten small
    operators, and so do twelve.
    """

    def __init__(self, gates: Sequence[Gate]):
        super().__init__()
        self.hidden_weight = nn.Parameter(torch.cat([gate.hidden.weight for gate in gates]).detach())  # [L w, H]
        self.hidden_bias = nn.Parameter(torch.cat([gate.hidden.bias for gate in gates]).detach())  # [L w]
        difference = [gate.logits.weight[0] - gate.logits.weight[1] for gate in gates]
        self.weight = nn.Parameter(torch.block_diag(*difference).detach())  # [L, L w]
        self.bias = nn.Parameter(torch.stack([gate.logits.bias[0] - gate.logits.bias[1] for gate in gates]).detach())

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(pooled(hidden_states, attention_mask), self.hidden_weight, self.hidden_bias))
        return F.linear(hidden, self.weight, self.bias)


class GatePiece(GatesPiece):
    """One gate, margin [b]."""

    def __init__(self, gate: Gate):
        super().__init__([gate])

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(hidden_states, attention_mask)[:, 0]


def cut(model: GatedClassifier) -> Iterator[Piece]:
    """The pieces of a model, gates one by one and all in one; of a fixed route its layers, no gates. Layers that are
    one module stay one, but for the last, which is a piece of its own kind."""
    states = ("hidden_states", "attention_mask")
    body = model.classifier
    layers = {layer: LayerPiece(layer) for layer in body.layers}
    route = model.fixed_route
    last = len(body.layers) if route is None else max(route)
    yield Piece("embeddings", body.embeddings, ("input_ids", "token_type_ids"), "hidden_states")
    for index, layer in enumerate(body.layers):
        if route is None or index + 1 in route:
            module = LastLayerPiece(layer) if index + 1 == last else layers[layer]
            yield Piece(layer_name(index), module, states, "layer_output")
    if route is None:
        gates = {gate: GatePiece(gate) for gate in model.gates}
        for index, gate in enumerate(model.gates):
            yield Piece(gate_name(index), gates[gate], states, "margin")
        yield Piece("gates", GatesPiece(list(model.gates)), states, "margins")
    yield Piece("head", body.head, ("hidden_states",), "logits")


def cut_full(model: Classifier) -> Iterator[Piece]:
    """Those of BERT with every layer, to be joined again. Its last layer is as in the chain: what that is compared with
    has the same advantage."""
    return cut(GatedClassifier(model, fixed_route=tuple(range(1, len(model.layers) + 1))))
