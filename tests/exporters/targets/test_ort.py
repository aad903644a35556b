"""ONNX Runtime's whole model is a plain ONNX file: whoever has an ONNX Runtime and nothing of ours runs it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hadskip_export import build
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines.openvino import OpenVinoEngine
from hadskip_export.runtime.engines.ort import OrtEngine
from hadskip_export.runtime.tokenization import pad
from hadskip_export.support.errors import EngineError
from tests.conftest import STATIC_ROUTE, sentences
from tests.exporters.changing import copy_of, run

TEXTS = ["", "good", *(text for text, _ in sentences(30, 8))]
FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
ALONE = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
with numpy.load(sys.argv[2]) as file:
    calls = [{name.partition("/")[2]: file[name] for name in file.files if name.startswith(f"{number}/")}
             for number in range(int(sys.argv[3]))]
found = {}
for number, call in enumerate(calls):
    found[f"{number}/logits"], found[f"{number}/layers_run"] = session.run(["logits", "layers_run"], call)
numpy.savez(sys.argv[4], **found)
assert not [name for name in sys.modules if name.startswith(("hadskip", "torch", "transformers"))]
"""


def alone(file: Path, calls: list[dict[str, np.ndarray]], folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """What a process that has never heard of this package makes of the file."""
    given = {f"{number}/{name}": array for number, call in enumerate(calls) for name, array in call.items()}
    np.savez(folder / "calls.npz", **given)
    arguments = [file, folder / "calls.npz", str(len(calls)), folder / "found.npz"]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True, cwd=folder)
    with np.load(folder / "found.npz") as found:
        return [(found[f"{number}/logits"], found[f"{number}/layers_run"]) for number in range(len(calls))]


@pytest.fixture(scope="module")
def built(whole_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = copy_of(whole_bundle, tmp_path_factory.mktemp("ort"))
    assert build(out, engine="ort", precision="int8", cut="whole").parity == "passed"
    return out


@pytest.fixture(scope="module")
def built_static(static_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = copy_of(static_bundle, tmp_path_factory.mktemp("ort_static"))
    for precision in FILES:
        assert build(out, engine="ort", precision=precision, cut="whole").parity == "passed"
    return out


def inputs_of(predictor: Predictor, texts: list[str]) -> dict[str, np.ndarray]:
    batch = pad(predictor.tokenizer.encode(texts))
    return {name: getattr(batch, name) for name in predictor.bundle.manifest.model.inputs}


@pytest.mark.parametrize("precision", list(FILES))
@pytest.mark.parametrize("kind", ["gates", "static"])
def test_without_the_optional_inputs_it_answers_as_the_predictor_does(
    request: pytest.FixtureRequest, tmp_path: Path, precision: str, kind: str
):
    """All texts in one ragged batch, and each alone."""
    bundle = request.getfixturevalue("built" if kind == "gates" else "built_static")
    with Predictor.load(bundle, engine="ort", precision=precision, cut="whole") as predictor:
        assert predictor.bundle.file(predictor.engine_info.files["whole"]).name == FILES[precision]
        batches = [TEXTS, *([text] for text in TEXTS)]
        calls = [inputs_of(predictor, texts) for texts in batches]
        predictor._most_padding = 10**9  # int8 is scaled by the batch: it must be the same one
        expected = [predictor.run(predictor.tokenizer.encode(texts)) for texts in batches]
    routes = set()
    for (logits, ran), (wanted, route) in zip(
        alone(bundle / "model" / FILES[precision], calls, tmp_path), expected, strict=True
    ):
        assert ran.dtype == bool and logits.dtype == np.float32
        np.testing.assert_array_equal(ran, route)
        np.testing.assert_allclose(logits, wanted, atol=1e-5)
        routes |= {tuple(row) for row in ran.tolist()}
    assert len(routes) > 3 if kind == "gates" else routes == {tuple(n in STATIC_ROUTE for n in range(1, 5))}


def plain_loop(bundle: Path, precision: str, inputs: dict[str, np.ndarray], thresholds: np.ndarray, most: int):
    """One input through the pieces one after the other, each a file run by ONNX Runtime."""
    folder, mask = bundle / "model", inputs["attention_mask"]
    own = ".ort-int8" if precision == "int8" else ""
    (state,) = run(folder / "embeddings.onnx", {n: inputs[n] for n in ("input_ids", "token_type_ids")})
    ran: list[bool] = []
    for number, threshold in enumerate(thresholds, 1):
        feed = {"hidden_states": state, "attention_mask": mask}
        (margin,) = run(folder / f"gate_0{number}.onnx", feed)
        ran.append(bool(margin[0] > threshold and sum(ran) < most))
        if ran[-1]:
            (state,) = run(folder / f"layer_0{number}{own}.onnx", feed)
    return run(folder / "head.onnx", {"hidden_states": state})[0], ran


@pytest.mark.parametrize("precision", list(FILES))
def test_with_them_it_answers_as_a_plain_loop_over_the_pieces(built: Path, tmp_path: Path, precision: str):
    """Thresholds [1, L] for all rows or [b, L] for each, the most layers [1] or [b]; int8 one input at a time."""
    random = np.random.default_rng(0)
    file = built / "model" / FILES[precision]
    with Predictor.load(built) as predictor:
        rows = 1 if precision == "int8" else 6
        texts = [list(random.choice(TEXTS, rows)) for _ in range(24)]
        calls, terms = [inputs_of(predictor, chosen) for chosen in texts], []
        singles = [[inputs_of(predictor, [text]) for text in chosen] for chosen in texts]
    for number, call in enumerate(calls):
        each = number % 2
        thresholds = random.normal(size=(rows if each else 1, 4)).astype(np.float32)
        most = random.integers(0, 5, rows if number % 4 < 2 else 1)
        call |= {"gate_thresholds": thresholds, "max_layers": most}
        if number % 6 == 5:
            call["gate_thresholds"] = thresholds = np.float32([[-np.inf, np.inf, -np.inf, -np.inf]])
        terms.append((np.broadcast_to(thresholds, (rows, 4)), np.broadcast_to(most, rows)))
    seen = set()
    for (logits, ran), single, (thresholds, most) in zip(alone(file, calls, tmp_path), singles, terms, strict=True):
        for row, inputs in enumerate(single):
            expected, layers = plain_loop(built, precision, inputs, thresholds[row], int(most[row]))
            assert ran[row].tolist() == layers
            np.testing.assert_allclose(logits[row : row + 1], expected, atol=1e-5 if precision == "fp32" else 1e-4)
            seen.add(tuple(layers))
    assert len(seen) > 5


@pytest.mark.parametrize("precision", list(FILES))
def test_of_a_static_route_fewer_layers_can_be_asked_for(built_static: Path, tmp_path: Path, precision: str):
    with Predictor.load(
        built_static, engine="ort", precision=precision, cut="gates" if precision == "fp32" else None
    ) as p:
        call = inputs_of(p, TEXTS[2:3])
        expected, _ = p.run(p.tokenizer.encode(TEXTS[2:3]), max_layers=1)
    calls = [call | {"max_layers": np.array([1])}, call | {"gate_thresholds": np.float32([[-1, 1, 1, 1]])}]
    for logits, ran in alone(built_static / "model" / FILES[precision], calls, tmp_path):
        assert ran.tolist() == [[True, False, False, False]]
        np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("precision", list(FILES))
def test_it_is_a_sound_model_whose_inputs_and_outputs_are_those_it_says(built: Path, precision: str):
    file = built / "model" / FILES[precision]
    onnx.checker.check_model(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    ids = ("tensor(int64)", ["batch", "length"])
    assert [(one.name, (one.type, one.shape)) for one in session.get_inputs()] == [
        ("input_ids", ids), ("attention_mask", ids), ("token_type_ids", ids),
    ]  # fmt: skip
    optional = {one.name: (one.type, one.shape) for one in session.get_overridable_initializers()}
    assert set(optional) == {"gate_thresholds", "max_layers"}
    assert optional["gate_thresholds"][0] == "tensor(float)" and optional["max_layers"][0] == "tensor(int64)"
    outputs = {one.name: (one.type, one.shape[1:]) for one in session.get_outputs()}
    assert outputs == {"logits": ("tensor(float)", [2]), "layers_run": ("tensor(bool)", [4])}


def test_its_defaults_are_the_default_point_s_thresholds(built: Path):
    manifest = read_bundle(built).manifest
    model = onnx.load(built / "model" / "model.onnx", load_external_data=False)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
            if tensor.name in ("gate_thresholds", "max_layers")}  # fmt: skip
    np.testing.assert_array_equal(held["gate_thresholds"], np.float32([manifest.default_point.thresholds]))
    assert held["max_layers"].tolist() == [4]


def test_what_other_programs_look_for_lies_beside_it(built: Path):
    folder = built / "model"
    assert {"config.json", "tokenizer.json", "model.onnx", "model_int8.onnx"} <= {f.name for f in folder.iterdir()}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 4, 32)
    assert tuple(config.id2label.values()) == read_bundle(built).manifest.model.labels


def test_what_lies_in_the_current_directory_is_not_in_the_way(whole_bundle: Path, tmp_path: Path, monkeypatch):
    """A file by the name that graphs call the tensors."""
    (tmp_path / "weights").mkdir()
    for name in ("fp32", "ort-int8"):
        (tmp_path / "weights" / f"{name}.safetensors").write_text("mine")
    monkeypatch.chdir(tmp_path)
    mine = copy_of(whole_bundle, tmp_path)
    for cut in ("whole", "layers"):
        assert build(mine, engine="ort", precision="int8", cut=cut).parity == "passed"
    assert (tmp_path / "weights" / "fp32.safetensors").read_text() == "mine"


# As the Predictor loads it


def test_many_threads_get_their_own_answers(whole_bundle: Path, bundle: Path):
    with Predictor.load(whole_bundle) as ours, Predictor.load(bundle) as theirs, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ours, TEXTS * 4))
        for one, other in zip(answers, [theirs(text) for text in TEXTS] * 4, strict=True):
            assert (one.label, one.layers) == (other.label, other.layers)


def test_warm_is_every_layer_of_it(whole_bundle: Path, openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """An engine prepares what it runs when it first runs it; for inputs alone another graph, where there is one."""
    for bundle, engine, kind, rows in (
        (whole_bundle, "ort", OrtEngine, [1]),
        (openvino_bundle, "openvino", OpenVinoEngine, [1, 2]),
    ):
        ran: list[tuple] = []

        def recording(self, piece: str, load=kind.load, ran=ran):
            loaded = load(self, piece)
            return (lambda *inputs: ran.append(loaded(*inputs)) or ran[-1]) if piece.startswith("whole") else loaded

        monkeypatch.setattr(kind, "load", recording)
        Predictor.load(bundle, engine=engine).close()
        assert [len(routes) for _, routes in ran] == rows
        assert all(np.array(routes).all() for _, routes in ran)


def test_its_pieces_are_loaded_only_for_whoever_asks_for_them(whole_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Who is answered by one engine needs no second copy of the weights."""
    load, loaded = OrtEngine.load, []
    monkeypatch.setattr(OrtEngine, "load", lambda engine, piece: loaded.append(piece) or load(engine, piece))
    with Predictor.load(whole_bundle) as predictor:
        assert len(predictor(TEXTS)) == len(TEXTS) and predictor(TEXTS[1]).label
        assert loaded == ["whole"]
        chain = predictor.load_chain()
        assert {"embeddings", "layer_01", "layer_04", "gate_01", "head"} < set(loaded)
        before = len(loaded)
        assert predictor.load_chain() is chain and len(loaded) == before
    with pytest.raises(EngineError, match="closed"):
        predictor.load_chain()


def test_what_could_not_be_loaded_once_is_not_left_out_from_then_on(whole_bundle: Path, monkeypatch):
    with Predictor.load(whole_bundle, router="full", warm_up=False) as ours:
        load = ours.engine.load

        def fails(piece: str):
            if piece == "whole":
                raise EngineError("not now")
            return load(piece)

        monkeypatch.setattr(ours.engine, "load", fails)
        for _ in range(2):
            with pytest.raises(EngineError, match="not now"):
                ours(TEXTS[1], router="gates")
        monkeypatch.undo()
        assert ours(TEXTS[1], router="gates").label
