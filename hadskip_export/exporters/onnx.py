"""One piece -> one ONNX file."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from hadskip_export.exporters.pieces import Piece
from hadskip_export.exporters.silence import silenced
from hadskip_export.runtime.onnx_files import EXTERNAL_DATA_ABOVE
from hadskip_export.support.errors import EngineError, first_line

OPSET = 20  # the first with Gelu as an operator of its own


def export(piece: Piece, hidden_size: int, file: Path, traced: dict[tuple[Any, ...], Any] | None = None) -> None:
    """Writes `piece` to `file` with dynamic batch and length; weights beside it only where they would not fit in it.

    Args:
        traced: what torch has traced so far of the pieces of models of one configuration, to be filled in: a layer
            differs from the next one, a gate too, in its weights alone, and tracing is nearly all of an export's time.

    Raises:
        EngineError: torch cannot export it.
    """
    traced = {} if traced is None else traced
    batch, length = 2, 7  # neither is 0 or 1, which the exporter would take for constants
    example = {
        name: torch.randn(batch, length, hidden_size)
        if name == "hidden_states"
        else torch.ones(batch, length, dtype=torch.int64)
        for name in piece.inputs
    }
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    weights = piece.module.state_dict()
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    kind = type(piece.module), tuple((name, weight.shape) for name, weight in weights.items())
    with silenced():
        try:
            program = traced.get(kind)
            if program is None:
                program = torch.onnx.export(
                    piece.module.eval(),
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
            as_traced = program.model
            traced[kind] = program
            program.apply_weights(weights)
            program.model = ir.from_proto(ir.to_proto(as_traced))  # others of the kind may come: optimise a copy
            program.optimize()
            _forget_origin(program.model)
            program.save(file, external_data=size > EXTERNAL_DATA_ABOVE)
            program.model = as_traced
        except Exception as error:  # the exporter wraps whatever went wrong inside it
            raise EngineError(f"{piece.name}: torch cannot export it ({first_line(error)})") from error


def _forget_origin(model) -> None:
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
