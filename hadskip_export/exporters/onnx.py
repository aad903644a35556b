"""One kind of piece -> one ONNX graph whose weights are named, not held.

Layers differ in their weights alone, and so do gates. So each kind is traced once, with random weights in the place of
the model's, and every initializer of the optimised graph is recognised by its content: a parameter, or a parameter
transposed. A piece's graph is then the kind's, told where its own tensors lie.
"""

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from hadskip_export.data.problems import SINGLE
from hadskip_export.exporters.pieces import Piece
from hadskip_export.exporters.weights import SMALL, Stored, point
from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.support.errors import EngineError, first_line
from hadskip_export.support.silence import silenced

CONSTANTS = "constants"  # what the names of tensors that are no parameters begin with
OPSET = 20  # the first with Gelu as an operator of its own
BATCH, LENGTH = 2, 7  # of the traced example; neither is 0 or 1, which the exporter would take for constants


@dataclass(frozen=True)
class Template:
    """The graph of all pieces of a kind.

    Args:
        model: whose parameters have a name, a type and a shape, and no content.
        parameters: name in the graph -> the module's parameter.
        transposed: parameters that the graph holds as [in, out], where PyTorch has [out, in].
        constants: name in the graph -> one of `CONSTANTS` and its values, where it is too large to stay inside.
    """

    model: onnx.ModelProto
    parameters: dict[str, str]
    transposed: frozenset[str]
    constants: dict[str, tuple[str, np.ndarray]]


_traced: dict[tuple[Any, ...], Template] = {}  # tracing is nearly all of an export's time


def template_of(piece: Piece, config: EncoderConfig) -> Template:
    """The template of a piece's kind: its class and the shapes of its weights, and what of the model's configuration
    these do not tell. Traced when it is first asked for.

    Raises:
        EngineError: torch cannot export it, or has folded a parameter into something else.
    """
    shapes = tuple((name, tuple(weight.shape)) for name, weight in piece.module.named_parameters())
    about = replace(config, num_layers=0, labels=(), problem_type=SINGLE)
    layer = getattr(piece.module, "layer", None)
    kind = type(piece.module), shapes, about, getattr(layer, "base", None), getattr(layer, "window", None)
    if kind not in _traced:
        _traced[kind] = _trace(piece, config.hidden_size)
    return _traced[kind]


def bound(piece: Piece, template: Template, stored: Mapping[str, Stored]) -> onnx.ModelProto:
    """The piece's graph, whose weights lie where `stored` says."""
    model = onnx.ModelProto()
    model.CopyFrom(template.model)
    for tensor in model.graph.initializer:
        parameter, constant = template.parameters.get(tensor.name), template.constants.get(tensor.name)
        if constant is not None:
            point(tensor, stored[constant[0]].place)
        if parameter is not None:
            part = piece.weights[parameter]
            item = stored[part.tensor].dtype.itemsize
            place = stored[part.tensor].place.part(part.start * item, math.prod(tensor.dims) * item)
            point(tensor, place)
    return model


def tensors_as_stored(pieces: Iterable[tuple[Piece, Template]]) -> dict[str, np.ndarray]:
    """What the bundle's file of weights has of these pieces, by name, as their graphs read it. Where one piece has a
    part of a tensor and another all of it, all of it."""
    found: dict[str, np.ndarray] = {}
    for piece, template in pieces:
        parameters = dict(piece.module.named_parameters())
        for name, part in piece.weights.items():
            array = parameters[name].detach().float().numpy()
            array = array.T if name in template.transposed else array
            if part.tensor not in found or found[part.tensor].size < array.size:
                found[part.tensor] = array
        found |= dict(template.constants.values())
    return found


def _trace(piece: Piece, hidden_size: int) -> Template:
    """Traces `piece` with dynamic batch and length."""
    module = copy.deepcopy(piece.module).eval()
    weights = _randomise(module)
    example = {
        name: torch.randn(BATCH, LENGTH, hidden_size)
        if name == "hidden_states"
        else torch.ones(BATCH, LENGTH, dtype=torch.int64)
        for name in piece.inputs
    }
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with silenced():
        try:
            program = torch.onnx.export(
                module,
                tuple(example.values()),
                input_names=list(example),
                output_names=[piece.output],
                dynamic_shapes=tuple(dynamic for _ in example),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                optimize=False,
            )
            assert program is not None
            program.optimize()
            _forget_origin(program.model)
            model = ir.to_proto(program.model)
        except Exception as error:  # the exporter wraps whatever went wrong inside it
            raise EngineError(f"{piece.name}: torch cannot export it ({first_line(error)})") from error
    return _as_template(model, weights, piece)


def _randomise(module: nn.Module) -> dict[str, np.ndarray]:
    """Makes the content of every parameter its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}


def _as_template(model: onnx.ModelProto, weights: dict[str, np.ndarray], piece: Piece) -> Template:
    by_content = {_content(array): (name, False) for name, array in weights.items()}
    by_content |= {_content(array.T): (name, True) for name, array in weights.items() if array.ndim == 2}
    parameters, transposed, constants = {}, set(), {}
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        found = by_content.get(_content(array))
        if found is not None:
            parameters[tensor.name] = found[0]
            transposed |= {found[0]} if found[1] else set()
            tensor.ClearField("raw_data")
        elif array.nbytes >= SMALL:
            digest = hashlib.blake2b(array.tobytes(), digest_size=4).hexdigest()
            constants[tensor.name] = f"{CONSTANTS}.{digest}", array
    lost = set(piece.weights) - set(parameters.values())
    if lost:
        raise EngineError(f"{piece.name}: torch's exporter has folded its {min(lost)} into something else")
    return Template(model, parameters, frozenset(transposed), constants)


def _content(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype.str, array.shape, array.tobytes()


def _forget_origin(model: Any) -> None:
    """Drops the stack traces and source paths of this machine that the exporter notes on every node and value."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
