"""The fp16 form of a piece, on ONNX Runtime's CPU, which computes it as the file says."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hadskip_export.exporters.half import halve, halved
from hadskip_export.support.errors import EngineError


def test_fp16_answers_nearly_as_fp32_and_masks_as_before(bundle: Path):
    """Hidden tokens must stay without effect."""
    file = bundle / "pieces" / "layer_01.onnx"
    half = halved(file)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    products = [node.input[1] for node in half.graph.node if node.op_type == "MatMul" and node.input[1] in kinds]
    assert len(products) == 4 and {kinds[name] for name in products} == {onnx.TensorProto.FLOAT16}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
                for content in (file.read_bytes(), half.SerializeToString())]  # fmt: skip
    hidden = np.random.default_rng(0).normal(size=(2, 9, 32)).astype(np.float32)
    mask = np.array([[1] * 9, [1] * 4 + [0] * 5])
    single, low = (session.run(None, {"hidden_states": hidden, "attention_mask": mask})[0] for session in sessions)
    assert low.dtype == np.float32 and 1e-6 < np.abs(single - low)[mask == 1].max() < 0.01
    changed = hidden.copy()
    changed[1, 4:] += 5
    again = sessions[1].run(None, {"hidden_states": changed, "attention_mask": mask})[0]
    np.testing.assert_array_equal(again[mask == 1], low[mask == 1])


def test_what_stays_fp32_has_weights_that_do(bundle: Path):
    """One that is shared, as equal ones are in a model of random weights, would become fp16 and be cast back."""
    model = onnx.load(bundle / "pieces" / "layer_01.onnx")
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    (bias,) = {node.input[2] for node in norms}
    assert bias in {name for node in model.graph.node if node not in norms for name in node.input}
    half = halved(bundle / "pieces" / "layer_01.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in half.initializer}
    kept = [name for node in half.node if node.op_type == "LayerNormalization" for name in node.input[1:]]
    assert [kinds[name] for name in kept] == 4 * [onnx.TensorProto.FLOAT]
    assert len({node.name for node in half.node}) == len(half.node)
    assert {name for node in half.node for name in node.input} >= set(kinds)


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
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "single.onnx")
    halve(tmp_path / "single.onnx", tmp_path / "half.onnx")
    hidden = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    single, low = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"]).run(
            None, {"hidden_states": hidden}
        )[0]
        for name in ("single", "half")
    )
    np.testing.assert_allclose(low, single, atol=0.02)


def test_it_is_written_as_a_file_that_loads_and_the_source_stays(bundle: Path, tmp_path: Path):
    source = bundle / "pieces" / "layer_02.onnx"
    before = source.read_bytes()
    halve(source, tmp_path / "half.onnx")
    assert onnxruntime.InferenceSession(tmp_path / "half.onnx", providers=["CPUExecutionProvider"]).get_inputs()
    assert source.read_bytes() == before
    assert (tmp_path / "half.onnx").stat().st_size < 0.75 * len(before)


def test_what_cannot_be_converted_is_named(tmp_path: Path):
    (tmp_path / "layer_01.onnx").write_bytes(b"junk")
    with pytest.raises(EngineError, match=r"layer_01\.onnx: onnxruntime cannot write it in fp16 \(.+\)") as error:
        halve(tmp_path / "layer_01.onnx", tmp_path / "out.onnx")
    assert "\n" not in str(error.value)
