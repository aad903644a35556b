"""What only OpenVINO's whole graphs have: one for inputs alone, and gates without matrix products in bf16."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export import build
from hadskip_export.exporters.assemble import Pieces
from hadskip_export.exporters.targets.openvino import without_products
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines.base import EngineOptions
from hadskip_export.runtime.engines.openvino import OpenVinoEngine
from tests.conftest import needs_bf16, sentences
from tests.exporters.changing import copy_of, run

TEXTS = [text for text, _ in sentences(30, 11)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.booleans(), st.integers(0, 1000))
def test_a_gate_without_products_gives_the_same_margin(bundle: Path, tmp_path_factory, gate, lengths, openvino, seed):
    """In OpenVINO too, which made something else of an earlier one for several rows."""
    name = f"gate_0{gate}"
    file, mine = bundle / "model" / f"{name}.onnx", tmp_path_factory.mktemp("gate") / "gate.onnx"
    pieces = Pieces(bundle, read_bundle_files(bundle))
    onnx.save(without_products(pieces, name, padded=len(lengths) > 1), mine)
    hidden = np.random.default_rng(seed).normal(size=(len(lengths), max(lengths), 32)).astype(np.float32)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    (expected,) = run(file, {"hidden_states": hidden, "attention_mask": mask})
    if openvino:
        margin = OpenVinoEngine({"gate": mine}, "fp32", EngineOptions()).load("gate")(hidden, mask)
    else:
        (margin,) = run(mine, {"hidden_states": hidden, "attention_mask": mask})
    np.testing.assert_allclose(margin, expected, rtol=1e-5, atol=1e-5)


def read_bundle_files(bundle: Path) -> dict[str, str]:
    return {file.stem: f"model/{file.name}" for file in (bundle / "model").glob("*.onnx")}


@pytest.mark.parametrize("precision", ["fp32", "int8", pytest.param("bf16", marks=needs_bf16)])
def test_the_graph_for_inputs_alone_has_branches_and_the_other_takes_rows(bundle: Path, tmp_path: Path, precision: str):
    mine = copy_of(bundle, tmp_path)
    assert build(mine, engine="openvino", precision=precision).parity == "passed"
    files = read_bundle(mine).engine("openvino").files
    kinds = {}
    for piece in ("whole", "whole_alone"):
        onnx.checker.check_model(mine / files[piece])
        model = onnx.load(mine / files[piece], load_external_data=False)
        assert [one.name for one in model.graph.input] == [
            "input_ids", "attention_mask", "token_type_ids", "gate_thresholds", "max_layers",
        ]  # fmt: skip
        kinds[piece] = [node.op_type for node in model.graph.node]
        products = [n for n in model.graph.node if n.name.startswith("gate_") and n.op_type in ("MatMul", "Gemm")]
        assert bool(products) == (precision != "bf16")
    assert (kinds["whole"].count("If"), kinds["whole"].count("ScatterND")) == (0, 4)
    assert (kinds["whole_alone"].count("If"), kinds["whole_alone"].count("ScatterND")) == (4, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8),
    st.floats(-4, 4),
    st.one_of(st.none(), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(0, 1000)),
)
def test_as_one_engine_it_answers_as_piece_by_piece(both, texts, threshold: float, most, seed):
    routes = None if seed is None else np.random.default_rng(seed).random((len(texts), 4)) < 0.5
    answers = [p(texts, gate_threshold=threshold, max_layers=most, routes=routes) for p in both]
    for one, other in zip(*answers, strict=True):
        assert (one.label, one.layers) == (other.label, other.layers)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.fixture(scope="module", params=["openvino_bundle", "whole_bundle"])
def both(request: pytest.FixtureRequest, bundle: Path):
    engine = "openvino" if request.param == "openvino_bundle" else "ort"
    with (
        Predictor.load(request.getfixturevalue(request.param), engine=engine) as ours,
        Predictor.load(bundle) as theirs,
    ):
        assert (ours.engine_info.cut, theirs.engine_info.cut) == ("whole", "gates")
        yield ours, theirs


@needs_bf16
def test_in_bf16_gates_are_not_fused(bundle: Path, tmp_path: Path):
    mine = copy_of(bundle, tmp_path)
    assert build(mine, engine="openvino", precision="bf16", cut="layers").parity == "passed"
    manifest = read_bundle(mine).manifest
    files = read_bundle(mine).engine("openvino").files
    assert all(file == manifest.pieces[piece] for piece, file in files.items()) and "gates" in files
