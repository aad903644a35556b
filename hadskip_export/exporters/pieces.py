"""A model cut into pieces, each a module with plain tensors in and one tensor out, and the names they bear.

Shapes: `b` batch, `s` length, both dynamic. Dtypes: ids and mask int64, everything else float32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadskip_export.modeling.encoder import Classifier, Layer, attention_bias
from hadskip_export.modeling.exits import ExitClassifier, Student
from hadskip_export.modeling.gated import Gate, GatedClassifier, pooled
from hadskip_export.runtime.manifest import SEGMENTS, STATES, exit_name, gate_name, layer_name


@dataclass(frozen=True)
class Part:
    """A parameter of a piece, in the tensor of the bundle that it is, or is a part of.

    Args:
        tensor: the tensor's name in the bundle's weights.
        start: elements of the tensor before the part.
    """

    tensor: str
    start: int = 0


@dataclass(frozen=True)
class Piece:
    """A module to export.

    Args:
        inputs: its inputs by name, in order.
        output: the name of its one output.
        weights: where in the bundle's weights the module's parameters lie; those it does not use are left out.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    output: str
    weights: dict[str, Part] = field(default_factory=dict)


class LayerPiece(nn.Module):
    """A layer that computes the states of all tokens.

    Args:
        distances: what the model's `Distances` give; their queries and keys are then parameters of the piece.
    """

    def __init__(self, layer: Layer, distances: Tensor | None = None):
        super().__init__()
        self.layer = layer
        if distances is not None:
            queries, keys = layer.of_distances(distances)
            self.distance_queries, self.distance_keys = nn.Parameter(queries.detach()), nn.Parameter(keys.detach())

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        query, key, value = self.layer.heads(self.layer.query_key_value(self.layer.read(hidden_states)), 3)
        return self.attend(hidden_states, (query, key, value), attention_mask)

    def attend(self, hidden_states: Tensor, query_key_value: tuple[Tensor, ...], attention_mask: Tensor) -> Tensor:
        of_distances = (self.distance_queries, self.distance_keys) if self.layer.distances is not None else None
        bias = attention_bias(attention_mask, hidden_states.dtype)
        return self.layer.attend(hidden_states, query_key_value, bias, of_distances)[0]


class LastLayerPiece(LayerPiece):
    """The last layer that an input may run. The head reads the first token alone, and no gate comes after it: so only
    that token's state is computed, [b, 1, H], from the keys and values of all."""

    def __init__(self, layer: Layer, distances: Tensor | None = None):
        super().__init__(layer, distances)
        hidden_size = layer.query_key_value.in_features
        self.query = _rows_of(layer.query_key_value, slice(hidden_size))
        self.key_value = _rows_of(layer.query_key_value, slice(hidden_size, None))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        first = hidden_states[:, 0][:, None]
        read = self.layer.read(hidden_states)
        query = self.layer.heads(self.query(read[:, 0][:, None]), 1)[0]
        key, value = self.layer.heads(self.key_value(read), 2)
        return self.attend(first, (query, key, value), attention_mask)


def _rows_of(linear: nn.Linear, rows: slice) -> nn.Linear:
    """Those outputs of a linear map, as one of its own."""
    weight = linear.weight[rows].detach()
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None, device="meta")
    part.weight = nn.Parameter(weight.clone())
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias[rows].detach().clone())
    return part


class GatesPiece(nn.Module):
    """Gates on the same states, margins [b, L], asked all at once in the cut `layers`.

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


def cut(model: Student, prefix: str = "") -> Iterator[Piece]:
    """The pieces of a model, gates one by one and all in one; of a fixed route its layers, no gates; of one with exits
    these, and gates one by one if it has any.

    Args:
        prefix: of the names that its tensors have in the bundle's weights.
    """
    body, route = model.classifier, model.fixed_route
    last, first_alone = len(body.layers) if route is None else max(route), body.config.pooling == "cls"
    weights, distances = _of_module(body.embeddings, f"{prefix}embeddings"), body.distances()
    ids = ("input_ids", SEGMENTS) if body.config.has_segments else ("input_ids",)
    yield Piece("embeddings", body.embeddings, ids, "hidden_states", weights)
    for index, layer in enumerate(body.layers):
        if route is None or index + 1 in route:
            kind = LastLayerPiece if index + 1 == last and first_alone else LayerPiece
            module = kind(layer, distances)
            named = _of_module(module, f"{prefix}layers.{index}")
            yield Piece(layer_name(index), module, STATES, "layer_output", named)
    if isinstance(model, ExitClassifier):
        for index, gate in list(enumerate(model.gates))[1:]:  # of the first layer it is fixed
            module = GatePiece(gate)
            parts = {name: Part(f"{prefix}gates.{index}.{name}") for name, _ in module.named_parameters()}
            yield Piece(gate_name(index), module, STATES, "margin", parts)
        yield from _exits(model, prefix)
    elif route is None:
        yield from _gates(model, prefix)
    head = _of_module(body.head, f"{prefix}head")
    yield Piece("head", body.head, STATES[:1] if first_alone else STATES, "logits", head)


def _gates(model: GatedClassifier, prefix: str) -> Iterator[Piece]:
    for index, gate in enumerate(model.gates):
        yield Piece(gate_name(index), GatePiece(gate), STATES, "margin", _of_gate(index, model.gates, prefix))
    every = {name: Part(tensor) for name, tensor in _gate_tensors(prefix).items()}
    yield Piece("gates", GatesPiece(list(model.gates)), STATES, "margins", every)


def _exits(model: ExitClassifier, prefix: str) -> Iterator[Piece]:
    """Exits may have parameters in common, with each other or with the head: then these are one tensor."""
    known = {id(parameter): f"{prefix}head.{name}" for name, parameter in model.classifier.head.named_parameters()}
    for index, leave in enumerate(model.exits):
        parts = {}
        for name, parameter in leave.named_parameters():
            parts[name] = Part(known.setdefault(id(parameter), f"{prefix}exits.{index}.{name}"))
        yield Piece(exit_name(index), leave, exit_inputs(model), "logits", parts)


def exit_inputs(model: ExitClassifier) -> tuple[str, ...]:
    return STATES if model.exits_take_mask else STATES[:1]


def cut_full(model: Classifier) -> Iterator[Piece]:
    """Those of BERT with every layer, to be joined again. Its last layer is as in the gated model: what that is
    compared with has the same advantage."""
    every_layer = tuple(range(1, len(model.layers) + 1))
    return cut(GatedClassifier(model, fixed_route=every_layer), "full.")


def _of_module(module: nn.Module, prefix: str) -> dict[str, Part]:
    """The parameters that a piece uses, by the names that they have in the model. (A last layer has its own query, key
    and value.)"""
    names = [name for name, _ in module.named_parameters()]
    if isinstance(module, LastLayerPiece):
        names = [name for name in names if not name.startswith("layer.query_key_value")]
    return {name: Part(f"{prefix}.{name.removeprefix('layer.')}") for name in names}


def _gate_tensors(prefix: str) -> dict[str, str]:
    names = ("hidden_weight", "hidden_bias", "weight", "bias")
    tensors = ("hidden.weight", "hidden.bias", "margins.weight", "margins.bias")
    return {name: f"{prefix}gates.{tensor}" for name, tensor in zip(names, tensors, strict=True)}


def _of_gate(index: int, gates: nn.ModuleList, prefix: str) -> dict[str, Part]:
    """A gate's share of the tensors that the piece of all gates has."""
    width, hidden_size = gates[index].hidden.weight.shape
    starts = (index * width * hidden_size, index * width, index * (len(gates) + 1) * width, index)
    tensors = _gate_tensors(prefix)
    return {name: Part(tensor, start) for (name, tensor), start in zip(tensors.items(), starts, strict=True)}
