"""The one-file graph answers as the Predictor does, one input at a time, and computes only the layers that run."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hadskip_export import build, inspect
from hadskip_export.exporters import graph as graphs
from hadskip_export.exporters import joining
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.tokenization import pad
from hadskip_export.support.errors import BundleError, EngineError
from tests.conftest import STATIC_ROUTE, sentences
from tests.runtime.editing import add_to_weights, change_piece, copy_of

TEXTS = ["", "good", *(text for text, _ in sentences(40, 8))]
FILE = "graph/model.onnx"


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = copy_of(bundle, tmp_path_factory.mktemp("graph"))
    assert build(out, graph=True) is None
    return out


def session_of(bundle: Path, profile: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nodes keep their names
    return onnxruntime.InferenceSession(bundle / FILE, options, providers=["CPUExecutionProvider"])


def feed(predictor: Predictor, text: str) -> dict[str, np.ndarray]:
    batch = pad(predictor.tokenizer.encode([text]))
    return {name: getattr(batch, name) for name in predictor.bundle.manifest.model.inputs}


@pytest.mark.parametrize("threshold", [None, -1e9, 1e9, -0.5, 0.3])
def test_it_answers_as_the_predictor_does(built: Path, threshold: float | None):
    session = session_of(built)
    given = {} if threshold is None else {"gate_threshold": np.array(threshold, np.float32)}
    routes = set()
    with Predictor.load(built) as predictor:
        for text in TEXTS:
            logits, ran = session.run(None, feed(predictor, text) | given)
            expected, route = predictor.run(predictor.tokenizer.encode([text]), gate_threshold=threshold)
            assert (ran == route).all()
            np.testing.assert_allclose(logits, expected, atol=1e-5)
            routes.add(tuple(ran[0]))
    assert len(routes) > (1 if threshold is None else 0)


def test_it_is_a_sound_model_whose_inputs_and_outputs_are_those_it_says(built: Path):
    onnx.checker.check_model(built / FILE, full_check=True)
    session = session_of(built)
    assert {one.name: (one.type, one.shape) for one in session.get_inputs()} == {
        "input_ids": ("tensor(int64)", [1, "length"]), "attention_mask": ("tensor(int64)", [1, "length"]),
        "token_type_ids": ("tensor(int64)", [1, "length"]),
    }  # fmt: skip
    assert [one.name for one in session.get_overridable_initializers()] == ["gate_threshold"]
    assert {one.name: (one.type, one.shape) for one in session.get_outputs()} == {
        "logits": ("tensor(float)", [1, 2]), "layers_run": ("tensor(bool)", [1, 4]),
    }  # fmt: skip


def test_layers_that_are_skipped_are_not_computed(built: Path, tmp_path: Path):
    with Predictor.load(built) as predictor:
        for number, text in enumerate(TEXTS[1:6]):
            session = session_of(built, tmp_path / str(number))
            _, (ran,) = session.run(None, feed(predictor, text))
            events = json.loads(Path(session.end_profiling()).read_text())
            computed = {name for event in events if (name := event["name"]).startswith("layer_") and "/" in name}
            layers = {int(name.partition("/")[0].removeprefix("layer_")) for name in computed if "MatMul" in name}
            assert layers == {index + 1 for index in np.flatnonzero(ran)}


def test_a_batch_is_refused(built: Path):
    with Predictor.load(built) as predictor:
        one = feed(predictor, "a good film")
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        session_of(built).run(None, {name: np.concatenate([array, array]) for name, array in one.items()})


def test_of_a_fixed_route_it_is_a_plain_chain_for_any_batch(static_bundle: Path, tmp_path: Path):
    mine = copy_of(static_bundle, tmp_path)
    build(mine, graph=True)
    session = session_of(mine)
    assert session.get_overridable_initializers() == []
    with Predictor.load(mine) as predictor:
        batch = pad(predictor.tokenizer.encode(TEXTS[:5]))
        logits, ran = session.run(None, {name: getattr(batch, name) for name in predictor.bundle.manifest.model.inputs})
        expected, _ = predictor.run(predictor.tokenizer.encode(TEXTS[:5]))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert ran.tolist() == [[layer in STATIC_ROUTE for layer in range(1, 5)]]


def test_a_run_is_built_with_it_at_once(run_folder: Path, tmp_path: Path):
    assert build(run_folder, out=tmp_path / "bundle", graph=True, full=False).parity == "passed"
    assert read_bundle(tmp_path / "bundle").manifest.graph == FILE


def test_the_bundle_lists_it_and_checks_it(built: Path, tmp_path: Path):
    assert FILE in read_bundle(built).manifest.files
    damaged = copy_of(built, tmp_path)
    with (damaged / FILE).open("ab") as file:
        file.write(b"!")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        read_bundle(damaged)


def test_inspect_tells_of_it(built: Path, bundle: Path):
    line = f"one-file graph: {FILE}"
    assert line in inspect(built)[1] and line not in inspect(bundle)[1]


def test_asked_for_again_nothing_is_done(built: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(graphs, "inlined", lambda *_: pytest.fail("work began"))
    before = (built / "manifest.json").read_bytes()
    build(built, graph=True)
    assert (built / "manifest.json").read_bytes() == before


def test_with_an_engine_both_are_added(bundle: Path, tmp_path: Path):
    mine = copy_of(bundle, tmp_path)
    (mine / "graph").mkdir()  # a killed build left it
    (mine / "graph" / "junk").write_text("junk")
    assert build(mine, engine="openvino", graph=True).engine == "openvino"
    manifest = read_bundle(mine).manifest
    assert manifest.graph == FILE and [info.name for info in manifest.engines] == ["ort-fp32", "openvino-fp32"]
    assert [file.name for file in (mine / "graph").iterdir()] == ["model.onnx"]


def test_weights_too_large_for_one_file_lie_beside_it(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mine = copy_of(bundle, tmp_path)
    monkeypatch.setattr(joining, "EXTERNAL_DATA_ABOVE", 0)
    build(mine, graph=True)
    assert {FILE, f"{FILE}.data"} <= set(read_bundle(mine).manifest.files)
    assert (mine / FILE).stat().st_size < (mine / f"{FILE}.data").stat().st_size
    with Predictor.load(mine) as predictor:
        logits, _ = session_of(mine).run(None, feed(predictor, TEXTS[3]))
        np.testing.assert_allclose(logits, predictor.run(predictor.tokenizer.encode(TEXTS[3:4]))[0], atol=1e-5)


def test_of_a_build_whose_graph_fails_nothing_is_left(run_folder: Path, bundle: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(graphs, "check_graph", lambda *_: stop())
    with pytest.raises(EngineError, match="it answers otherwise"):
        build(run_folder, out=tmp_path / "bundle", full=False, graph=True)
    assert list(tmp_path.iterdir()) == []
    mine = copy_of(bundle, tmp_path)
    with pytest.raises(EngineError, match="it answers otherwise"):
        build(mine, engine="openvino", graph=True)
    assert read_bundle(mine).manifest == read_bundle(bundle).manifest


def test_an_engine_that_is_not_to_be_had_is_refused_before_the_graph_is_made(bundle: Path, tmp_path: Path):
    mine = copy_of(bundle, tmp_path)
    with pytest.raises(EngineError, match="--precision fp8"):
        build(mine, engine="openvino", precision="fp8", graph=True)
    assert read_bundle(mine).manifest.graph is None


def stop() -> None:
    raise EngineError("it answers otherwise")


def test_a_file_that_onnxruntime_refuses_is_said_in_one_line(tmp_path: Path, bundle: Path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"model\.onnx: onnxruntime .* refuses it"):
        graphs.check_graph(file, read_bundle(bundle), None, [])


def test_a_graph_that_answers_otherwise_is_not_kept(bundle: Path, tmp_path: Path):
    """The pieces are not those that the golden answers were made with."""
    mine = copy_of(bundle, tmp_path)
    change_piece(mine, "head", add_to_weights(0.5))
    with pytest.raises(EngineError, match="does not give the golden answers"):
        build(mine, graph=True)
    assert not (mine / "graph").exists() and read_bundle(mine).manifest.graph is None
