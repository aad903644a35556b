"""The fp16 form of a piece, on ONNX Runtime's CPU, which computes it as the file says."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hadskip_export.exporters.assemble import Pieces
from hadskip_export.exporters.half import halved
from hadskip_export.support.errors import EngineError
from tests.exporters.changing import run


def piece(bundle: Path, name: str) -> onnx.ModelProto:
    return Pieces(bundle, {name: f"model/{name}.onnx"}).read_with_tensors(name)


def test_fp16_answers_nearly_as_fp32_and_masks_as_before(bundle: Path, tmp_path: Path):
    """Hidden tokens must stay without effect."""
    file = bundle / "model" / "layer_01.onnx"
    half = halved(piece(bundle, "layer_01"))
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    products = [node.input[1] for node in half.graph.node if node.op_type == "MatMul" and node.input[1] in kinds]
    assert len(products) == 4 and {kinds[name] for name in products} == {onnx.TensorProto.FLOAT16}
    files = [file, tmp_path / "half.onnx"]
    onnx.save(half, files[1])
    hidden = np.random.default_rng(0).normal(size=(2, 9, 32)).astype(np.float32)
    mask = np.array([[1] * 9, [1] * 4 + [0] * 5])
    single, low = (run(one, {"hidden_states": hidden, "attention_mask": mask})[0] for one in files)
    assert low.dtype == np.float32 and 1e-6 < np.abs(single - low)[mask == 1].max() < 0.01
    changed = hidden.copy()
    changed[1, 4:] += 5
    again = run(files[1], {"hidden_states": changed, "attention_mask": mask})[0]
    np.testing.assert_array_equal(again[mask == 1], low[mask == 1])


def test_what_stays_fp32_has_weights_that_do(bundle: Path):
    """One that is shared would become fp16 and be cast back."""
    model = piece(bundle, "layer_01")
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    others = [node for node in model.graph.node if node.op_type == "Add"]
    shared = norms[0].input[2]
    size = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    taker = next(node for node in others if size.get(node.input[1]) == size[shared])
    taker.input[1] = shared
    half = halved(model).graph
    kinds = {tensor.name: tensor.data_type for tensor in half.initializer}
    kept = [name for node in half.node if node.op_type == "LayerNormalization" for name in node.input[1:]]
    assert [kinds[name] for name in kept] == 4 * [onnx.TensorProto.FLOAT]
    assert len({node.name for node in half.node}) == len(half.node)


def test_a_weight_that_one_node_takes_twice_is_copied_twice(tmp_path: Path):
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("LayerNormalization", ["hidden_states", "weight", "weight"], ["normed"]),
        node("LayerNormalization", ["normed", "weight", "weight"], ["again"]),
        node("Add", ["again", "weight"], ["out"]),
    ]
    ends = [value(name, onnx.TensorProto.FLOAT, [2, 4]) for name in ("hidden_states", "out")]
    weight = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "weight")
    graph = onnx.helper.make_graph(nodes, "norms", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "single.onnx")
    onnx.save(halved(model), tmp_path / "half.onnx")
    hidden = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    single, low = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"]).run(
            None, {"hidden_states": hidden}
        )[0]
        for name in ("single", "half")
    )
    np.testing.assert_allclose(low, single, atol=0.02)


def test_what_cannot_be_converted_is_named():
    model = onnx.ModelProto()
    model.graph.name = "layer_01"
    model.graph.node.add().op_type = "MatMul"
    model.graph.node[0].input.append("")
    model.graph.initializer.add().name = ""
    model.graph.initializer[0].data_type = onnx.TensorProto.FLOAT
    model.graph.initializer[0].dims.append(3)  # which it does not have
    with pytest.raises(EngineError, match=r"onnxruntime cannot write layer_01 in fp16 \(.+\)") as error:
        halved(model)
    assert "\n" not in str(error.value)
