"""The weights found in ONNX pieces, against those of the model that was exported."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hadskip_export.exporters.weights import arrays_of, linear_maps, pack
from hadskip_export.runtime import read_bundle
from hadskip_export.support.errors import EngineError


def packed(bundle: Path, out: Path) -> Path:
    manifest = read_bundle(bundle).manifest
    pack({piece: bundle / file for piece, file in manifest.pieces.items()}, manifest.model.layers, out)
    return out


def expected(classifier, prefix: str = "") -> dict[str, torch.Tensor]:
    """Our modules' own weights under the names of the file."""
    found = {}
    for name, value in classifier.state_dict().items():
        room, *rest = name.split(".")
        if room == "layers":
            found[f"{prefix}layer_{int(rest[0]) + 1:02d}.{'.'.join(rest[1:])}"] = value
        else:
            found[f"{prefix}{room}.{'.'.join(rest)}"] = value
    return found


def test_every_weight_is_found_by_its_place(bundle: Path, source, tmp_path: Path):
    found = load_file(packed(bundle, tmp_path / "weights.safetensors"))
    wanted = expected(source.model.classifier) | expected(source.full, "full.")
    for index, gate in enumerate(source.model.gates, 1):
        logits = gate.logits
        wanted |= {
            f"gate_{index:02d}.hidden.weight": gate.hidden.weight,
            f"gate_{index:02d}.hidden.bias": gate.hidden.bias,
            f"gate_{index:02d}.margins.weight": logits.weight[:1] - logits.weight[1:],
            f"gate_{index:02d}.margins.bias": logits.bias[:1] - logits.bias[1:],
        }
    together = {name for name in found if name.startswith("gates.")}
    assert set(found) == set(wanted) | together and len(together) == 4
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        said = file.metadata()
    config = source.model.classifier.config
    assert float(said.pop("eps")) == pytest.approx(config.layer_norm_eps)
    assert said == {"num_layers": "4", "num_heads": "4", "activation": "gelu"}


def test_of_a_fixed_route_there_are_its_layers_and_no_gates(static_bundle: Path, tmp_path: Path):
    found = load_file(packed(static_bundle, tmp_path / "weights.safetensors"))
    pieces = {name.partition(".")[0] for name in found}
    assert pieces == {"embeddings", "layer_01", "layer_03", "head", "full"}


def linear(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.GraphProto:
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    return onnx.helper.make_graph(list(nodes), "linear", [], [], tensors)


def test_a_linear_map_is_found_however_it_is_written():
    """[2 out, 3 in], biases of zeros left out or not."""
    node, weight, bias = onnx.helper.make_node, np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([7, 8])
    product, with_bias = node("MatMul", ["x", "w"], ["p"]), {"w": weight.T, "b": bias}
    for graph, expected_bias in [
        (linear(node("Gemm", ["x", "w", "b"], ["y"], transB=1), w=weight, b=bias), bias),
        (linear(node("Gemm", ["x", "w", "b"], ["y"]), **with_bias), bias),
        (linear(node("Gemm", ["x", "w"], ["y"]), w=weight.T), 0),
        (linear(product, w=weight.T), 0),
        (linear(product, node("Add", ["p", "b"], ["y"]), **with_bias), bias),
        (linear(product, node("Add", ["b", "p"], ["y"]), **with_bias), bias),
    ]:
        ((found, found_bias),) = linear_maps(graph, arrays_of(graph))
        np.testing.assert_array_equal(found, weight)
        np.testing.assert_array_equal(found_bias, np.zeros(2) + expected_bias)
    graph = linear(node("Gemm", ["x", "w"], ["y"], alpha=0.5), w=weight.T)
    with pytest.raises(EngineError, match="a linear map with a factor"):
        list(linear_maps(graph, arrays_of(graph)))


def test_a_file_that_is_no_piece_is_named(tmp_path: Path):
    (tmp_path / "head.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"head\.onnx: its weights cannot be told apart \(.+\)") as error:
        pack({"head": tmp_path / "head.onnx"}, 4, tmp_path / "out.safetensors")
    assert "\n" not in str(error.value) and not (tmp_path / "out.safetensors").exists()
