"""A model whose exits have gates as one graph: an exit answers for its rows, and the layers after it take those whom it
does not let go.

It takes what every whole graph takes, at least one layer at most, and gives the same, see `assemble`. What a later exit
says of a row replaces what an earlier one said.
"""

from typing import Any

import numpy as np

from hadskip_export.exporters.assemble import HIDDEN_STATES, MASK, MOST, RAN, THRESHOLDS, Joined, Pieces
from hadskip_export.runtime.manifest import ModelInfo, exit_name, layer_name
from hadskip_export.support.errors import optional_import

LEFT = ("state", "mask", "places", "thresholds")  # what there is of each row that has not left


def whole_exits(pieces: Pieces, model: ModelInfo, defaults: np.ndarray | None) -> Any:
    """
    Args:
        defaults: of the thresholds, float32 [1, L], where the graph is to be `portable`, see `assemble`.
    """
    onnx: Any = optional_import("onnx", "build")
    node, info, kinds = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    embeddings = pieces.read("embeddings")
    joined, labels, last = Joined(embeddings), len(model.labels), model.layers - 1
    left = {"state": joined.add(embeddings, "embeddings", {}), "mask": MASK} | _begin(joined, model)
    for index in range(model.layers):
        layer, leave = layer_name(index), "head" if index == last else exit_name(index)
        left["state"] = joined.add(pieces.read(layer), layer, {HIDDEN_STATES: left["state"], MASK: left["mask"]})
        said = joined.add(pieces.read(leave), leave, {HIDDEN_STATES: left["state"], MASK: left["mask"]})
        answered = f"answers_{index}"
        if index == last:  # the head says nothing of going on
            answered = "logits_before"
            joined.nodes.append(node("Slice", [f"answers_{index}", "zero", "labels", "one"], [answered]))
        joined.hold(**{f"{layer}/number": np.int64(index + 1)})
        joined.nodes += [
            node("ScatterND", [answered, left["places"], said], [f"answers_{index + 1}"]),
            node("Shape", [left["places"]], [f"{layer}/rows"]),
            node("Expand", [f"{layer}/number", f"{layer}/rows"], [f"{layer}/depth"]),
            node("ScatterND", [f"depth_{index}", left["places"], f"{layer}/depth"], [f"depth_{index + 1}"]),
        ]
        if index < last:
            left = _those_who_stay(joined, leave, said, f"{layer}/number", left)
    ran = f"{RAN}/bool" if defaults is None else RAN
    joined.nodes += [
        node("Identity", [f"answers_{model.layers}"], ["logits"]),
        node("Greater", [f"depth_{model.layers}", "indices"], [ran]),
    ]
    if defaults is None:
        joined.nodes.append(node("Cast", [ran], [RAN], to=kinds.FLOAT))
    else:
        joined.hold(**{THRESHOLDS: defaults, MOST: np.array([model.layers], np.int64)})
    inputs = [info(name, kinds.INT64, ["batch", "length"]) for name in model.inputs]
    inputs += [info(THRESHOLDS, kinds.FLOAT, ["rows", model.layers]), info(MOST, kinds.INT64, ["rows"])]
    kind = kinds.FLOAT if defaults is None else kinds.BOOL
    outputs = [info("logits", kinds.FLOAT, ["batch", labels]), info(RAN, kind, ["batch", model.layers])]
    return joined.model("whole", inputs, outputs)


def _begin(joined: Joined, model: ModelInfo) -> dict[str, str]:
    """Adds what each row has before the first layer, and what it has been answered: nothing, after 0 layers. No margin
    is above the threshold of a layer beyond the most layers; both are inputs, for all rows or for each."""
    onnx: Any = optional_import("onnx", "build")
    node, tensor, kinds = onnx.helper.make_node, onnx.helper.make_tensor, onnx.TensorProto
    joined.hold(
        zero=np.zeros(1, np.int64),
        one=np.ones(1, np.int64),
        labels=np.array([len(model.labels)], np.int64),
        margin=np.int64(len(model.labels)),
        answers=np.array([len(model.labels) + 1], np.int64),
        indices=np.arange(model.layers)[None],
        never=np.float32(np.inf),
    )
    ones, zeros = (tensor(name, kinds.INT64, [1], [value]) for name, value in (("one", 1), ("zero", 0)))
    joined.nodes += [
        node("Shape", [MASK], ["rows"], end=1),
        node("ConstantOfShape", ["rows"], ["all"], value=ones),
        node("NonZero", ["all"], ["places_across"]),
        node("Transpose", ["places_across"], ["places"]),  # [b, 1]
        node("Unsqueeze", [MOST, "one"], ["most"]),
        node("Greater", ["most", "indices"], ["may"]),
        node("Where", ["may", THRESHOLDS, "never"], ["limits"]),
        node("Concat", ["rows", "one"], ["column"], axis=0),
        node("ConstantOfShape", ["column"], ["nothing"]),
        node("Add", ["limits", "nothing"], ["thresholds"]),  # [b, L]
        node("ConstantOfShape", ["column"], ["depth_0"], value=zeros),
        node("Concat", ["rows", "answers"], ["answered"], axis=0),
        node("ConstantOfShape", ["answered"], ["answers_0"]),
    ]
    return {name: name for name in ("places", "thresholds")}


def _those_who_stay(joined: Joined, leave: str, said: str, after: str, left: dict[str, str]) -> dict[str, str]:
    """Adds what an exit decides, and returns what `LEFT` is called of those it does not let go. `after`: the constant
    that counts the layers before it, and so is the place of the next one's threshold."""
    node = optional_import("onnx", "build").helper.make_node
    joined.nodes += [
        node("Gather", [said, "margin"], [f"{leave}/margins"], axis=1),
        node("Gather", [left["thresholds"], after], [f"{leave}/limits"], axis=1),
        node("Greater", [f"{leave}/margins", f"{leave}/limits"], [f"{leave}/stays"]),
        *(node("Compress", [left[name], f"{leave}/stays"], [f"{leave}/{name}"], axis=0) for name in LEFT),
    ]
    return {name: f"{leave}/{name}" for name in LEFT}
