"""ONNX pieces joined into larger graphs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.routing.routes import Route
from hadskip_export.runtime.bundle import gate_name, layer_name
from hadskip_export.runtime.onnx_files import EXTERNAL_DATA_ABOVE
from hadskip_export.support.errors import EngineError, first_line, optional_import

HIDDEN_STATES, MASK = "hidden_states", "attention_mask"
SMALL = 1024  # bytes; a weight below stays inside its file


def fuse(layer: Path, gates: Path, first: int, out: Path) -> None:
    """A layer and, on what it gives, the gates that come after it: the fused layout.

    The new piece gives hidden_states float32 [b, s, H] and margins float32 [b, L], of which those of gates before
    `first` mean nothing.

    Args:
        layer: ONNX file.
        gates: ONNX file of all gates as one piece, see `GatesPiece`.
        first: index (from 0) of the first gate that is still to be asked.

    Raises:
        EngineError: `onnx` is not installed, or the files are not what they should be.
    """
    onnx: Any = optional_import("onnx", "build")
    try:
        body, asked = onnx.load(layer), onnx.load(gates)
        _leave_out(asked.graph, first, onnx.numpy_helper)
    except Exception as error:  # protobuf's and onnx's own exceptions have no common base
        raise EngineError(
            f"{layer}: cannot be fused with {gates.name} ({first_line(error)}); build it with --gates separate"
        ) from error
    nodes, weights, hidden = inlined(body, "layer", {})
    gate_nodes, gate_weights, margins = inlined(asked, "gates", {"hidden_states": hidden})
    outputs = [body.graph.output[0], asked.graph.output[0]]
    for output, name in zip(outputs, (hidden, margins), strict=True):
        output.name = name
    graph = onnx.helper.make_graph(nodes + gate_nodes, "fused", body.graph.input, outputs, weights + gate_weights)
    save(onnx.helper.make_model(graph, opset_imports=body.opset_import, ir_version=body.ir_version), out)


def _leave_out(graph: Any, gates: int, arrays: Any) -> None:
    """Takes the hidden layers of so many gates out of the graph of all gates."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    hidden, margins = (node for node in graph.node if node.op_type == "Gemm")
    num_gates, width = weights[margins.input[1]].dims  # [L, L w]
    rest = slice(gates * (width // num_gates), None)
    for node, place, kept in ((hidden, 1, rest), (hidden, 2, rest), (margins, 1, (slice(None), rest))):
        if place < len(node.input):  # the exporter leaves out a bias of zeros
            name = f"{node.input[place]}_rest"
            weight = np.ascontiguousarray(arrays.to_array(weights[node.input[place]])[kept])
            weights[name] = arrays.from_array(weight, name)
            node.input[place] = name
    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)


def join_layers(pieces: Mapping[str, Path], inputs: Sequence[str], out: Path) -> None:
    """Embeddings, layers and head in one graph that decides nothing: full BERT, logits float32 [b, classes].

    Args:
        pieces: ONNX file of each piece, layers in their order.
        inputs: of the new piece, in order.

    Raises:
        EngineError: see `fuse`.
    """
    onnx: Any = optional_import("onnx", "build")
    nodes: list[Any] = []
    weights: list[Any] = []
    found: dict[str, Any] = {}
    hidden = ""  # the embeddings take none
    try:
        for piece, file in pieces.items():
            model = onnx.load(file)
            found |= {one.name: one for one in model.graph.input}
            inside, piece_weights, hidden = inlined(model, piece, {HIDDEN_STATES: hidden}, {"logits": "logits"})
            nodes, weights = nodes + inside, weights + piece_weights
    except Exception as error:  # see `fuse`
        raise EngineError(f"{out.name}: the pieces cannot be joined ({first_line(error)})") from error
    outputs = model.graph.output  # the head's
    graph = onnx.helper.make_graph(nodes, "full", [found[name] for name in inputs], outputs, weights)
    save(onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), out)


def join_route(pieces: Mapping[str, Path], num_layers: int, route: Route, out: Path) -> None:
    """Embeddings, the layers of a route and the head in one graph, which also asks every gate about the state that it
    sees on this route: a guess, which the margins confirm or not (see `Speculation`).

    The new piece takes what the embeddings take and the attention_mask, and gives logits float32 [b, classes], margins
    float32 [b, L] and hidden_states float32 [b, s, H] of the embeddings and after each layer of the route; after the
    model's last one [b, 1, H].

    Args:
        pieces: ONNX file of each piece, gates one by one.
        route: layers, numbered from 1.

    Raises:
        EngineError: see `fuse`.
    """
    onnx: Any = optional_import("onnx", "build")
    helper = onnx.helper
    try:
        embeddings = onnx.load(pieces["embeddings"])
        nodes, weights, hidden = inlined(embeddings, "embeddings", {})
        inputs, margins = {one.name: one for one in embeddings.graph.input}, []
        states = [named(embeddings.graph.output[0], hidden)]
        for index in range(num_layers):
            gate = onnx.load(pieces[gate_name(index)])
            inputs |= {one.name: one for one in gate.graph.input if one.name != HIDDEN_STATES}
            asked, gate_weights, margin = inlined(gate, gate_name(index), {HIDDEN_STATES: hidden})
            margins.append(f"{margin}/column")
            nodes += [*asked, helper.make_node("Unsqueeze", [margin, "columns"], [margins[-1]])]
            weights += gate_weights
            if index + 1 in route:
                layer = onnx.load(pieces[layer_name(index)])
                inside, layer_weights, hidden = inlined(layer, layer_name(index), {HIDDEN_STATES: hidden})
                nodes, weights = nodes + inside, weights + layer_weights
                states.append(named(layer.graph.output[0], hidden))
        head = onnx.load(pieces["head"])
        last, head_weights, logits = inlined(head, "head", {HIDDEN_STATES: hidden})
    except Exception as error:  # see `fuse`
        raise EngineError(f"{out.name}: the pieces cannot be joined ({first_line(error)})") from error
    nodes += [*last, helper.make_node("Concat", margins, ["margins"], axis=1)]
    weights += [*head_weights, onnx.numpy_helper.from_array(np.ones(1, np.int64), "columns")]
    outputs = [
        named(head.graph.output[0], logits),
        helper.make_tensor_value_info("margins", onnx.TensorProto.FLOAT, [None, num_layers]),
        *states,
    ]
    graph = helper.make_graph(nodes, "guess", list(inputs.values()), outputs, weights)
    save(helper.make_model(graph, opset_imports=embeddings.opset_import, ir_version=embeddings.ir_version), out)


def named(output: Any, name: str) -> Any:
    """An output of a piece, described under another name."""
    copy = type(output)()
    copy.CopyFrom(output)
    copy.name = name
    return copy


def skippable(piece: Any, layer: str, state: str, run: str, narrow: bool = False) -> tuple[list[Any], str]:
    """A layer as an `If`, for one input: (nodes, name of the state after it).

    Where the layer does not run the branch gives next to nothing, and the state is taken again behind the `If`: engines
    copy what goes into a branch and what comes out of it. After a layer that gives the first token alone it is that of
    the state before.

    Args:
        run: name of what decides, bool of one element.
        narrow: states are bfloat16 and the layer float32.
    """
    onnx: Any = optional_import("onnx", "build")
    helper, kinds = onnx.helper, onnx.TensorProto
    kind = kinds.BFLOAT16 if narrow else piece.graph.output[0].type.tensor_type.elem_type
    inside, weights, output = _between_states(piece, layer, {HIDDEN_STATES: state}, narrow)
    nothing = helper.make_tensor(f"{layer}/nothing", kind, [1, 1, 1], [0.0])
    new, none = (helper.make_tensor_value_info(name, kind, [1, None, None]) for name in (output, f"{layer}/none"))
    skip = helper.make_graph([helper.make_node("Constant", [], [none.name], value=nothing)], "skip", [], [none])
    then = helper.make_graph(inside, layer, [], [new], weights)
    nodes = [helper.make_node("If", [run], [f"{layer}/new"], f"{layer}/if", then_branch=then, else_branch=skip)]
    read, state = _tokens_given(piece, layer, state)
    taken = helper.make_node("Where", [run, f"{layer}/new", state], [f"{layer}/out"], f"{layer}/taken")
    return [*nodes, *read, taken], f"{layer}/out"


def on_rows(piece: Any, layer: str, state: str, runs: str, narrow: bool = False) -> tuple[list[Any], list[Any], str]:
    """A layer that takes the rows that run it, for a batch: (nodes, weights, name of the state after it).

    Where no row does, its operators have nothing to do. Unlike branches, layers then share an engine's scratch memory.

    Args:
        runs: name of what decides, bool [b].
        narrow: states are bfloat16 and the layer float32.
    """
    onnx: Any = optional_import("onnx", "build")
    node = onnx.helper.make_node
    few, mask = f"{layer}/few", f"{layer}/few_mask"
    inside, weights, output = _between_states(piece, layer, {HIDDEN_STATES: few, MASK: mask}, narrow)
    read, kept = _tokens_given(piece, layer, state)
    nodes = [
        node("NonZero", [runs], [f"{layer}/found"], f"{layer}/found"),  # [1, rows]
        node("Transpose", [f"{layer}/found"], [f"{layer}/places"], f"{layer}/places"),
        node("GatherND", [state, f"{layer}/places"], [few], few),
        node("GatherND", [MASK, f"{layer}/places"], [mask], mask),
        *inside,
        *read,
        node("ScatterND", [kept, f"{layer}/places", output], [f"{layer}/out"], f"{layer}/put"),
    ]
    return nodes, weights, f"{layer}/out"


def _between_states(piece: Any, layer: str, given: dict[str, str], narrow: bool) -> tuple[list[Any], list[Any], str]:
    """`inlined`, with conversions around it where states are narrow."""
    if not narrow:
        return inlined(piece, layer, given)
    onnx: Any = optional_import("onnx", "build")
    node, kinds = onnx.helper.make_node, onnx.TensorProto
    wide, output = f"{layer}/state", f"{layer}/narrow"
    inside, weights, computed = inlined(piece, layer, given | {HIDDEN_STATES: wide})
    widen = node("Cast", [given[HIDDEN_STATES]], [wide], f"{layer}/widen", to=kinds.FLOAT)
    return [widen, *inside, node("Cast", [computed], [output], output, to=kinds.BFLOAT16)], weights, output


def _tokens_given(piece: Any, layer: str, state: str) -> tuple[list[Any], str]:
    """(nodes, name) of the state before, of the tokens that a layer gives: all, or the first."""
    if piece.graph.output[0].type.tensor_type.shape.dim[1].dim_value != 1:
        return [], state
    onnx: Any = optional_import("onnx", "build")
    index, old = f"{layer}/index", f"{layer}/old"
    constant = onnx.helper.make_node("Constant", [], [index], index, value_ints=[0])
    return [constant, onnx.helper.make_node("Gather", [state, index], [old], old, axis=1)], old


def inlined(
    piece: Any, prefix: str, given: dict[str, str], kept: dict[str, str] | None = None
) -> tuple[list[Any], list[Any], str]:
    """A piece as part of a larger graph: (nodes, initializers, name of its output), every name of its own prefixed.

    Args:
        given: what its inputs are called there; those that are left out keep their names.
        kept: outputs whose names are to stay.
    """
    graph = piece.graph
    names = {one.name: given.get(one.name, one.name) for one in graph.input} | (kept or {})

    def rename(name: str) -> str:
        return names.get(name, f"{prefix}/{name}") if name else name  # an optional input left out is nameless

    for node in graph.node:
        node.name = f"{prefix}/{node.name}"
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    return list(graph.node), list(graph.initializer), rename(graph.output[0].name)


def save(model: Any, out: Path, beside: bool = False, shared: Path | None = None) -> None:
    """Writes an ONNX file, with its weights beside it if told so or where they would not fit in it.

    Engines map what lies beside: of weights inside a file that are used in branches they keep a copy more.

    Args:
        shared: an ONNX file in the same folder, of the same pieces: what lies beside that is not written again.
    """
    onnx: Any = optional_import("onnx", "build")
    weights = list(_weights(model.graph))
    written = _weights(onnx.load(shared, load_external_data=False).graph) if shared else ()
    there = {weight.name: weight for weight in written if weight.external_data}
    for weight in weights:
        other = there.get(weight.name)
        if other is not None and (other.dims, other.data_type) == (weight.dims, weight.data_type):
            weight.CopyFrom(other)
    # The model's own `ByteSize` fails where it is more than 2 GiB.
    if beside or sum(len(weight.raw_data) for weight in weights) > EXTERNAL_DATA_ABOVE:
        for weight in weights:  # `onnx.save` would look for what it is to write in the current directory
            if len(weight.raw_data) >= SMALL:
                onnx.external_data_helper.set_external_data(weight, f"{out.name}.data")
    onnx.save(model, out)


def _weights(graph: Any) -> Iterator[Any]:
    """The initializers of a graph and of its branches."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _weights(attribute.g)
