"""What a GPU is to run in fp16: here, whether it opens, and answers about as fp32 does."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from hadskip_export import build
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.tokenization import pad
from tests.conftest import sentences
from tests.exporters.changing import copy_of, run

TEXTS = [text for text, _ in sentences(6, 11)]


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = copy_of(bundle, tmp_path_factory.mktemp("ort_cuda"))
    for cut in ("layers", "whole"):
        build(out, engine="ort-cuda", precision="fp16", cut=cut)
    return out


def test_the_whole_graph_is_one_that_engines_take(built: Path, bundle: Path):
    manifest = read_bundle(built).manifest
    file = built / read_bundle(built).engine("ort-cuda", cut="whole").files["whole"]
    onnx.checker.check_model(file)
    route = np.array([[True, False, True, True]])
    with Predictor.load(bundle) as predictor:
        encoded = predictor.tokenizer.encode(TEXTS)
        expected, _ = predictor.run(encoded, routes=np.repeat(route, len(TEXTS), axis=0))
    batch = pad(encoded)
    feed = {name: getattr(batch, name) for name in manifest.model.inputs}
    feed |= {"gate_thresholds": np.where(route, -np.inf, np.inf).astype(np.float32), "max_layers": np.array([4])}
    logits, ran = run(file, feed)
    np.testing.assert_array_equal(ran > 0, np.repeat(route, len(TEXTS), axis=0))
    assert 1e-6 < np.abs(logits - expected).max() < 2e-2


def test_layers_with_gates_in_them_keep_these_in_fp32(built: Path):
    info = read_bundle(built).engine("ort-cuda", cut="layers")
    for number in (1, 2, 3):
        model = onnx.load(built / info.files[f"layer_0{number}"])
        kinds = {t.name: t.data_type for t in model.graph.initializer if len(t.dims) == 2}
        gates = {kind for name, kind in kinds.items() if name.startswith("gates/")}
        layers = {kind for name, kind in kinds.items() if name.startswith("layer/")}
        assert gates == {onnx.TensorProto.FLOAT} and layers == {onnx.TensorProto.FLOAT16}


def test_in_fp32_it_has_no_tensor_of_its_own(bundle: Path, tmp_path: Path):
    mine = copy_of(bundle, tmp_path)
    for cut in ("gates", "layers", "whole"):
        build(mine, engine="ort-cuda", cut=cut)
    assert [file.name for file in (mine / "model" / "weights").iterdir()] == ["fp32.safetensors"]
