"""A layer with gates in it gives what the layer gives, and what the gates make of that."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export import build
from hadskip_export.exporters.joining import fuse, join_layers
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.support.errors import EngineError
from hadskip_export.verification.parity import compare
from hadskip_export.verification.references import OnnxReference
from tests.conftest import sentences
from tests.runtime.editing import copy_of, reseal

LAYERS = 4


def run(file: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.fixture(scope="module")
def fused(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    """Every layer that gates come after, with every number of them taken out."""
    folder, pieces = tmp_path_factory.mktemp("fused"), bundle / "pieces"
    files = {}
    for layer in range(1, LAYERS):
        for first in range(LAYERS):
            file = files[layer, first] = folder / f"{layer}_{first}.onnx"
            fuse(pieces / f"layer_0{layer}.onnx", pieces / "gates.onnx", first, file)
    return files


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, LAYERS - 1), st.integers(0, LAYERS - 1), st.integers(1, 5), st.integers(1, 12), st.integers(0, 99)
)
def test_it_gives_what_the_two_give(bundle: Path, fused, layer: int, first: int, rows: int, length: int, seed: int):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(rows, length, 32)).astype(np.float32)
    mask = (np.arange(length) < random.integers(1, length + 1, (rows, 1))).astype(np.int64)
    feed = {"hidden_states": hidden, "attention_mask": mask}
    (expected,) = run(bundle / "pieces" / f"layer_0{layer}.onnx", feed)
    (margins,) = run(bundle / "pieces" / "gates.onnx", feed | {"hidden_states": expected})
    got, got_margins = run(fused[layer, first], feed)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got_margins.shape == margins.shape
    np.testing.assert_allclose(got_margins[:, first:], margins[:, first:], atol=1e-4)


def test_it_is_a_sound_model_that_carries_no_gate_too_many(fused):
    sizes = []
    for first in range(LAYERS):
        onnx.checker.check_model(onnx.load(fused[2, first]), full_check=True)
        sizes.append(fused[2, first].stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == LAYERS


def test_a_gate_that_is_wrong_in_one_layer_only_is_named(fused_bundle: Path, tmp_path: Path):
    mine = copy_of(fused_bundle, tmp_path)
    file = mine / "engines" / "ort-fp32" / "layer_02_gates.onnx"
    model = onnx.load(file)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "gates/weight_rest")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    file.write_bytes(model.SerializeToString())
    reseal(mine)
    with Predictor.load(mine) as predictor:
        encoded = predictor.tokenizer.encode([text for text, _ in sentences(12, 3)])
        report = compare(OnnxReference(read_bundle(fused_bundle)), predictor, encoded)
    assert [piece.piece for piece in report.pieces if not piece.passed] == ["gates in layer_02"]
    assert report.first_bad_piece == "gates in layer_02"


def test_files_that_are_something_else_are_refused_in_one_line(bundle: Path, tmp_path: Path):
    pieces = bundle / "pieces"
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    for layer, gates in (("layer_01", "layer_02"), ("layer_01", "embeddings"), (tmp_path / "junk", "gates")):
        with pytest.raises(EngineError, match=r"\.onnx: cannot be fused with .*--gates separate") as error:
            fuse(pieces / f"{layer}.onnx", pieces / f"{gates}.onnx", 1, tmp_path / "out.onnx")
        assert "\n" not in str(error.value)


def test_what_is_joined_and_no_piece_is_refused_in_one_line(bundle: Path, tmp_path: Path):
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    pieces = {"embeddings": bundle / "pieces" / "embeddings.onnx", "layer_01": tmp_path / "junk.onnx"}
    with pytest.raises(EngineError, match=r"^full\.onnx: the pieces cannot be joined") as error:
        join_layers(pieces, ("input_ids", "attention_mask"), tmp_path / "full.onnx")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "full.onnx").exists()


def test_without_onnx_nothing_is_added_and_the_message_names_the_extra(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mine = copy_of(bundle, tmp_path)
    before = (mine / "manifest.json").read_bytes()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EngineError, match=r"needs onnx.*hadskip-export\[build\]"):
        build(mine, engine="openvino")
    assert (mine / "manifest.json").read_bytes() == before
    assert [folder.name for folder in (mine / "engines").iterdir()] == ["ort-fp32"]
    assert build(mine, engine="openvino", gates="separate", single="chain").parity == "passed"  # which needs none
