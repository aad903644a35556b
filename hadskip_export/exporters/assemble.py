"""Graphs of pieces -> larger graphs. Only `whole_exits` joins graphs, too.

`full` has no decisions in it, `fuse` puts the gates that come after a layer into the layer's graph, `fuse_exit` its
exit, and `whole` is the gated model as one graph. Weights stay where they lie: graphs point into the bundle's files of
tensors.

A whole graph takes

    input_ids, attention_mask[, token_type_ids]  int64 [b, s]
    gate_thresholds  float32 [1 or b, L]  of each gate
    max_layers       int64 [1 or b]       the most layers that a row runs

and gives logits float32 [b, classes] and layers_run [b, L]. Where it is `portable`, the last two inputs have defaults
inside the file and layers_run is bool: any program with an ONNX Runtime runs it.

What lives from layer to layer in it is used by each of them (thresholds are an input, the layers that ran a sum): an
engine gives memory that is free to whatever comes next, and what is small and used at the end would hold what a layer's
states were in, so that each layer takes new memory (OpenVINO: twice as much in all).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.exporters.weights import content_of, rows_of
from hadskip_export.routing.routes import Route
from hadskip_export.runtime.manifest import MODEL, ModelInfo, gate_name, layer_name
from hadskip_export.support.errors import EngineError, first_line, optional_import

HIDDEN_STATES, MASK = "hidden_states", "attention_mask"
THRESHOLDS, MOST, RAN = "gate_thresholds", "max_layers", "layers_run"


@dataclass(frozen=True)
class Pieces:
    """The pieces' graphs of a bundle, in one precision.

    Args:
        bundle: its folder.
        files: piece -> file, relative to it.
    """

    bundle: Path
    files: Mapping[str, str]

    def read(self, piece: str) -> Any:
        """A piece's graph, whose tensors stay in their files.

        Raises:
            EngineError: `onnx` is not installed, or the file is not what it should be.
        """
        onnx: Any = optional_import("onnx", "build")
        file = self.bundle / self.files[piece]
        try:
            return onnx.load(file, load_external_data=False)
        except Exception as error:  # protobuf's and onnx's own exceptions have no common base
            raise EngineError(f"{file}: onnx cannot read it ({first_line(error)}); build the bundle again") from error

    def read_with_tensors(self, piece: str) -> Any:
        """The same, with its tensors in it."""
        onnx: Any = optional_import("onnx", "build")
        model = self.read(piece)
        onnx.external_data_helper.load_external_data_for_model(model, str(self.bundle / MODEL))
        return model


def full(pieces: Mapping[str, Any], inputs: Sequence[str]) -> Any:
    """Embeddings, layers and head in one graph that decides nothing: full BERT, logits float32 [b, classes].

    Args:
        pieces: graph of each piece, layers in their order.
        inputs: of the new graph, in order.
    """
    joined = Joined(next(iter(pieces.values())))
    found: dict[str, Any] = {}
    hidden = ""  # the embeddings take none
    for name, piece in pieces.items():
        found |= {one.name: one for one in piece.graph.input}
        hidden = joined.add(piece, name, {HIDDEN_STATES: hidden}, {"logits": "logits"})
        output = piece.graph.output[0]  # in the end the head's
    return joined.model("full", [found[name] for name in inputs], [output])


def fuse(layer: Any, gates: Any, first: int, bundle: Path) -> Any:
    """A layer and, on what it gives, the gates that come after it.

    The new piece gives hidden_states float32 [b, s, H] and margins float32 [b, L], of which those of gates before
    `first` mean nothing.

    Args:
        layer: its graph.
        gates: the graph of all gates as one piece, see `GatesPiece`.
        first: index (from 0) of the first gate that is still to be asked.
        bundle: its folder, where the gates' tensors are.
    """
    _leave_out(gates.graph, first, bundle)
    return _asked_by(layer, gates, "gates")


def fuse_exit(layer: Any, leave: Any) -> Any:
    """A layer and, on what it gives, its exit. The new piece gives hidden_states float32 [b, s, H] and the exit's
    answers."""
    return _asked_by(layer, leave, "exit")


def _asked_by(layer: Any, after: Any, name: str) -> Any:
    """A layer and what is asked about the states that it gives, in one graph of two outputs."""
    outputs = [layer.graph.output[0], after.graph.output[0]]
    joined = Joined(layer)
    outputs[0].name = joined.add(layer, "layer", {})
    outputs[1].name = joined.add(after, name, {HIDDEN_STATES: outputs[0].name})
    return joined.model("fused", list(layer.graph.input), outputs)


def _leave_out(graph: Any, gates: int, bundle: Path) -> None:
    """Takes the hidden layers of so many gates out of the graph of all gates."""
    onnx: Any = optional_import("onnx", "build")
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    hidden, margins = (node for node in graph.node if node.op_type == "Gemm")
    num_gates, width = tensors[margins.input[1]].dims  # [L, L w]
    rest = slice(gates * (width // num_gates), None)
    for place in (1, 2):
        name = hidden.input[place]
        tensors[name] = rows_of(tensors[name], rest, name, bundle)
    weight = np.ascontiguousarray(content_of(tensors[margins.input[1]], bundle)[:, rest])
    tensors[margins.input[1]] = onnx.numpy_helper.from_array(weight, margins.input[1])
    del graph.initializer[:]
    graph.initializer.extend(tensors.values())


@dataclass(frozen=True)
class Form:
    """What a whole graph is like, which engines differ in.

    Args:
        rows: it takes any number of rows, and each layer those that run it; else one row without padding, and each
            layer is a branch of an `If`.
        portable: see this module's text.
        bf16_states: states are bfloat16 from layer to layer.
        gate: what gives the graph of a gate by its name, an engine's own perhaps, which it computes in fp32 whatever it
            does elsewhere.
    """

    rows: bool = True
    portable: bool = False
    bf16_states: bool = False
    gate: Callable[[Pieces, str], Any] = Pieces.read


@dataclass(frozen=True)
class Decided:
    """Who decides in a whole graph: gates by their thresholds, float [L], or a route for all. `once`: gates that see
    what the embeddings give."""

    thresholds: tuple[float, ...]
    route: Route | None = None
    once: bool = False

    @property
    def defaults(self) -> np.ndarray:
        """float32 [1, L]; of a route those at which a margin of 0 runs its layers."""
        if self.route is None:
            return np.array([self.thresholds], np.float32)
        return np.array(
            [[-1 if layer in self.route else 1 for layer in range(1, len(self.thresholds) + 1)]], np.float32
        )


def whole(pieces: Pieces, model: ModelInfo, decided: Decided, form: Form) -> Any:
    """The gated model as one graph, see this module's text."""
    onnx: Any = optional_import("onnx", "build")
    node, kinds, arrays = onnx.helper.make_node, onnx.TensorProto, onnx.numpy_helper
    embeddings = pieces.read("embeddings")
    joined = Joined(embeddings)
    state = hidden = embedded = joined.add(embeddings, "embeddings", {})
    joined.hold(layers_axis=np.zeros(1, np.int64), nothing=np.float32(0), ran_0=np.zeros((model.layers, 1), np.float32))
    joined.nodes.append(node("Cast", [MOST], ["most"], to=kinds.FLOAT))
    if form.bf16_states:
        state = f"{hidden}/narrow"
        joined.nodes.append(node("Cast", [hidden], [state], to=kinds.BFLOAT16))
    if decided.route is not None:
        joined.hold(tokens_axis=np.ones(1, np.int64))
        joined.nodes += [
            node("ReduceSum", [MASK, "tokens_axis"], ["lengths"], keepdims=0),
            node("Cast", ["lengths"], ["lengths/float"], to=kinds.FLOAT),
            node("Mul", ["lengths/float", "nothing"], ["no_margin"]),
        ]
    ran = "ran_0"
    for index in range(model.layers):
        layer, gate = layer_name(index), gate_name(index)
        if layer not in pieces.files:  # not on the route
            continue
        margin = "no_margin"
        if decided.route is None:
            margin = joined.add(form.gate(pieces, gate), gate, {HIDDEN_STATES: embedded if decided.once else hidden})
        more = f"ran_{index + 1}"
        joined.hold(**{f"{gate}/index": np.int64(index)})
        joined.hold(**{f"{layer}/one": np.eye(model.layers, dtype=np.float32)[:, [index]]})
        joined.nodes += [
            node("Gather", [THRESHOLDS, f"{gate}/index"], [f"{gate}/threshold"], axis=1),
            node("Greater", [margin, f"{gate}/threshold"], [f"{gate}/fires"]),
            node("ReduceSum", [ran, "layers_axis"], [f"{layer}/done"], keepdims=0),
            node("Less", [f"{layer}/done", "most"], [f"{layer}/may"]),
            node("And", [f"{gate}/fires", f"{layer}/may"], [f"{layer}/run"]),
            node("Where", [f"{layer}/run", f"{layer}/one", "nothing"], [f"{layer}/ran"]),
            node("Add", [ran, f"{layer}/ran"], [more]),  # [L, b]
        ]
        add = _on_rows if form.rows else _skippable
        ran, state = more, add(joined, pieces.read(layer), layer, state, form.bf16_states)
        hidden = state
        if form.bf16_states:
            hidden = f"{state}/wide"
            joined.nodes.append(node("Cast", [state], [hidden], to=kinds.FLOAT))
    logits = joined.add(pieces.read("head"), "head", {HIDDEN_STATES: hidden}, {"logits": "logits"})
    rows, terms = ("batch", "rows") if form.rows else (1, 1)
    inputs = [onnx.helper.make_tensor_value_info(name, kinds.INT64, [rows, "length"]) for name in model.inputs]
    inputs.append(onnx.helper.make_tensor_value_info(THRESHOLDS, kinds.FLOAT, [terms, model.layers]))
    inputs.append(onnx.helper.make_tensor_value_info(MOST, kinds.INT64, [terms]))
    if form.portable:
        joined.tensors.append(arrays.from_array(decided.defaults, THRESHOLDS))
        joined.tensors.append(arrays.from_array(np.array([model.layers], np.int64), MOST))
        joined.nodes += [node("Transpose", [ran], ["layers_ran"]), node("Cast", ["layers_ran"], [RAN], to=kinds.BOOL)]
    else:
        joined.nodes.append(node("Transpose", [ran], [RAN]))
    kind = kinds.BOOL if form.portable else kinds.FLOAT
    outputs = [
        onnx.helper.make_tensor_value_info(logits, kinds.FLOAT, [rows, len(model.labels)]),
        onnx.helper.make_tensor_value_info(RAN, kind, [rows, model.layers]),
    ]
    return joined.model("whole", inputs, outputs)


class Joined:
    """A graph that grows piece by piece. `like`: a piece, whose versions it takes."""

    def __init__(self, like: Any):
        self._like = like
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def add(self, piece: Any, prefix: str, given: dict[str, str], kept: dict[str, str] | None = None) -> str:
        """Adds a piece, see `inlined`, and returns what its output is called."""
        nodes, tensors, output = inlined(piece, prefix, given, kept)
        self.nodes += nodes
        self.tensors += tensors
        return output

    def hold(self, **constants: np.ndarray | np.generic) -> None:
        """Adds constants by their names."""
        arrays: Any = optional_import("onnx", "build").numpy_helper
        self.tensors += [arrays.from_array(np.asarray(value), name) for name, value in constants.items()]

    def model(self, name: str, inputs: list[Any], outputs: list[Any]) -> Any:
        helper: Any = optional_import("onnx", "build").helper
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.tensors)
        return helper.make_model(
            graph,
            opset_imports=self._like.opset_import,
            ir_version=self._like.ir_version,
            producer_name="hadskip-export",
        )


def inlined(
    piece: Any, prefix: str, given: dict[str, str], kept: dict[str, str] | None = None
) -> tuple[list[Any], list[Any], str]:
    """A piece as part of a larger graph: (nodes, tensors, name of its output), every name of its own prefixed.

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


def _skippable(joined: Joined, piece: Any, layer: str, state: str, narrow: bool) -> str:
    """Adds a layer as an `If`, for one row, and returns the name of the state after it.

    Where the layer does not run the branch gives next to nothing, and the state is taken again behind the `If`: engines
    copy what goes into a branch and what comes out of it. After a layer that gives the first token alone it is that of
    the state before.

    Args:
        narrow: states are bfloat16 and the layer float32.
    """
    onnx: Any = optional_import("onnx", "build")
    helper, kinds, run = onnx.helper, onnx.TensorProto, f"{layer}/run"
    kind = kinds.BFLOAT16 if narrow else piece.graph.output[0].type.tensor_type.elem_type
    kept = _tokens_given(joined, piece, layer, state)
    inside, tensors, output = _between_states(piece, layer, {HIDDEN_STATES: state}, narrow)
    nothing = helper.make_tensor(f"{layer}/nothing", kind, [1, 1, 1], [0.0])
    new, none = (helper.make_tensor_value_info(name, kind, [1, None, None]) for name in (output, f"{layer}/none"))
    skip = helper.make_graph([helper.make_node("Constant", [], [none.name], value=nothing)], "skip", [], [none])
    then = helper.make_graph(inside, layer, [], [new], tensors)
    joined.nodes += [
        helper.make_node("If", [run], [f"{layer}/new"], f"{layer}/if", then_branch=then, else_branch=skip),
        helper.make_node("Where", [run, f"{layer}/new", kept], [f"{layer}/out"], f"{layer}/taken"),
    ]
    return f"{layer}/out"


def _on_rows(joined: Joined, piece: Any, layer: str, state: str, narrow: bool) -> str:
    """Adds a layer that takes the rows that run it, and returns the name of the state after it.

    Where no row does, its operators have nothing to do. Unlike branches, layers then share an engine's scratch memory.

    Args:
        narrow: states are bfloat16 and the layer float32.
    """
    onnx: Any = optional_import("onnx", "build")
    node = onnx.helper.make_node
    few, mask = f"{layer}/few", f"{layer}/few_mask"
    joined.nodes += [
        node("NonZero", [f"{layer}/run"], [f"{layer}/found"], f"{layer}/found"),  # [1, rows]
        node("Transpose", [f"{layer}/found"], [f"{layer}/places"], f"{layer}/places"),
        node("GatherND", [state, f"{layer}/places"], [few], few),
        node("GatherND", [MASK, f"{layer}/places"], [mask], mask),
    ]
    inside, tensors, output = _between_states(piece, layer, {HIDDEN_STATES: few, MASK: mask}, narrow)
    joined.nodes += inside
    joined.tensors += tensors
    kept = _tokens_given(joined, piece, layer, state)
    joined.nodes.append(
        node("ScatterND", [kept, f"{layer}/places", output], [f"{layer}/out"], f"{layer}/put"),
    )
    return f"{layer}/out"


def _between_states(piece: Any, layer: str, given: dict[str, str], narrow: bool) -> tuple[list[Any], list[Any], str]:
    """`inlined`, with conversions around it where states are narrow."""
    if not narrow:
        return inlined(piece, layer, given)
    onnx: Any = optional_import("onnx", "build")
    node, kinds = onnx.helper.make_node, onnx.TensorProto
    wide, output = f"{layer}/state", f"{layer}/narrow"
    inside, tensors, computed = inlined(piece, layer, given | {HIDDEN_STATES: wide})
    widen = node("Cast", [given[HIDDEN_STATES]], [wide], f"{layer}/widen", to=kinds.FLOAT)
    return [widen, *inside, node("Cast", [computed], [output], output, to=kinds.BFLOAT16)], tensors, output


def _tokens_given(joined: Joined, piece: Any, layer: str, state: str) -> str:
    """The name of the state before, of the tokens that a layer gives: all, or the first."""
    if piece.graph.output[0].type.tensor_type.shape.dim[1].dim_value != 1:
        return state
    onnx: Any = optional_import("onnx", "build")
    index, old = f"{layer}/index", f"{layer}/old"
    joined.nodes += [
        onnx.helper.make_node("Constant", [], [index], index, value_ints=[0]),
        onnx.helper.make_node("Gather", [state, index], [old], old, axis=1),
    ]
    return old
