"""int8: layers and full BERT are quantised and nothing else, the answers stay close, and what is wrong is named."""

import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper

from hadskip_export import build, validate
from hadskip_export.exporters.assemble import Pieces
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.quantise import evened_out, quantise, quantise_weights
from hadskip_export.exporters.write import write_bundle
from hadskip_export.report import text
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import is_reduced
from hadskip_export.runtime.manifest import Tolerance
from hadskip_export.runtime.tokenization import Batch, Encoded
from hadskip_export.support.errors import EngineError
from hadskip_export.verification import parity
from hadskip_export.verification.parity import (
    LOGITS_TOLERANCE,
    NEAR_TIE_ERRORS,
    NEAR_TIE_SPREAD,
    ROUTE_EPSILON,
    ParityReport,
    compare,
    near_ties,
)
from hadskip_export.verification.references import OnnxReference, Trace
from tests.conftest import sentences
from tests.exporters.changing import add_to_weights, change_graph, copy_of, reseal

QUANTISED = [*(f"layer_0{number}" for number in range(1, 5)), "full"]
FP32 = ["embeddings", *(f"gate_0{number}" for number in range(1, 5)), "head"]
TEXTS = [text for text, _ in sentences(260, 61)]
COUNT = 200  # of texts whose label fp32 and int8 agree on, so that a point is two of them


@pytest.fixture(scope="module")
def built(source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParityReport]:
    """An int8 bundle of the model of `bundle`."""
    return written(source, tmp_path_factory.mktemp("int8") / "bundle")


def written(source, out: Path) -> tuple[Path, ParityReport]:
    report = write_bundle(source, out, EnginePlan("ort", "int8", "gates"))
    assert report is not None
    return out, report


def graph(bundle: Path, piece: str) -> onnx.ModelProto:
    return Pieces(bundle, {piece: f"model/{piece}.onnx"}).read_with_tensors(piece)


@pytest.fixture(scope="module")
def int8(built: tuple[Path, ParityReport]) -> Path:
    """Shared: copy it before damaging it."""
    return built[0]


@pytest.fixture(scope="module")
def reference(bundle: Path) -> OnnxReference:
    return OnnxReference(read_bundle(bundle))


def int8_file(bundle: Path, piece: str) -> Path:
    return bundle / "model" / f"{piece}.ort-int8.onnx"


def change_int8(bundle: Path, piece: str, change: Callable[[onnx.ModelProto], object]) -> None:
    """Rewrites one int8 piece and reseals the bundle."""
    change_graph(int8_file(bundle, piece), change)


# What a build writes


def test_a_build_passes_and_reports_what_int8_costs(built: tuple[Path, ParityReport]):
    out, report = built
    assert (report.engine, report.precision, report.parity, report.flips) == ("ort", "int8", "passed", 0)
    assert {piece.piece: piece.judged for piece in report.pieces} == {
        **dict.fromkeys(QUANTISED, "mean"), **dict.fromkeys(FP32, "largest"),
    }  # fmt: skip
    for piece in report.pieces:
        assert (piece.largest > 1e-4) == (piece.piece in QUANTISED)  # it is another computation, or the same one
    assert report.tolerance.logits == 2 * report.logits_largest > LOGITS_TOLERANCE
    assert min(report.tolerance.margins) >= ROUTE_EPSILON
    assert max(report.tolerance.margins) > ROUTE_EPSILON
    assert 0.9 < report.full_label_agreement <= 1
    assert any(line.strip().startswith("full BERT in int8: labels agree") for line in text.parity(report))
    engine = read_bundle(out).engine("ort-int8")
    assert (engine.precision, engine.parity, engine.tolerance) == ("int8", "passed", report.tolerance)


def test_gates_embeddings_and_head_are_the_fp32_files(int8: Path, bundle: Path):
    manifest = read_bundle(int8).manifest
    files = manifest.engines[0].files
    assert set(files) == {*QUANTISED, *FP32}
    for piece in FP32:
        assert files[piece] == manifest.pieces[piece]
    for piece in QUANTISED:
        assert files[piece] == f"model/{piece}.ort-int8.onnx"
    assert sorted(file.name.partition(".")[0] for file in (int8 / "model").glob("*.ort-int8.onnx")) == sorted(QUANTISED)
    for file in manifest.pieces.values():
        assert (int8 / file).read_bytes() == (bundle / file).read_bytes()


def test_gates_fused_with_int8_layers_are_held_to_fp32(int8: Path, tmp_path: Path):
    mine = copy_of(int8, tmp_path)
    report = build(mine, engine="ort", precision="int8", cut="layers")
    info = read_bundle(mine).engine("ort-int8-layers")
    assert report.parity == "passed"
    fused = [piece for piece in report.pieces if piece.piece.startswith("gates in ")]
    assert [piece.piece for piece in fused] == ["gates in layer_01", "gates in layer_02", "gates in layer_03"]
    assert all((piece.judged, piece.tolerance) == ("largest", ROUTE_EPSILON) for piece in fused)
    assert {piece: file for piece, file in info.files.items() if "ort-int8" in file} == {
        **{f"layer_0{number}": f"model/layer_0{number}_gates.ort-int8.onnx" for number in (1, 2, 3)},
        "layer_04": "model/layer_04.ort-int8.onnx", "full": "model/full.ort-int8.onnx",
    }  # fmt: skip
    with Predictor.load(mine, cut="layers") as fused_one, Predictor.load(int8) as separate:
        pairs = list(zip(fused_one(TEXTS), separate(TEXTS), strict=True))
    same = [(ours, theirs) for ours, theirs in pairs if ours.layers == theirs.layers]
    assert len(same) > 0.9 * len(TEXTS)
    for ours, theirs in same:  # a rounding that falls the other way is worth one step of int8
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=0.01)


@pytest.mark.parametrize("piece", QUANTISED)
def test_weights_are_int8_by_channel_and_products_of_activations_are_not(int8: Path, bundle: Path, piece: str):
    before, after = onnx.load(bundle / "model" / f"{piece}.onnx").graph, onnx.load(int8_file(int8, piece)).graph
    weights = {tensor.name: tensor for tensor in before.initializer}
    products = [node for node in before.node if node.op_type in ("MatMul", "Gemm")]
    constant = [node for node in products if node.input[1] in weights]
    layers = 4 if piece == "full" else 1
    assert len(products) - len(constant) == 2 * layers  # of attention
    operators = [node.op_type for node in after.node]
    assert operators.count("MatMulInteger") == len(constant)
    assert operators.count("MatMul") + operators.count("Gemm") == 2 * layers
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.initializer}
    for node in after.node:
        if node.op_type == "MatMulInteger":
            weight = tensors[node.input[1]]
            assert weight.dtype == np.int8
            scales = [tensor for name, tensor in tensors.items() if name == node.input[1].replace("quantized", "scale")]
            assert [scale.shape for scale in scales] == [(weight.shape[1],)]


@pytest.mark.parametrize(
    ("piece", "own"),
    [("layer_01", True), ("layer_12", True), ("full", True), ("embeddings", False), ("gate_01", False),
     ("gates", False), ("head", False)],
)  # fmt: skip
def test_layers_and_full_bert_are_quantised(piece: str, own: bool):
    assert is_reduced(piece) is own


# What it answers


def test_answers_are_close_to_those_of_fp32(int8: Path, bundle: Path):
    with Predictor.load(int8) as ours, Predictor.load(bundle) as theirs:
        for options in ({}, {"router": "full"}, {"gate_threshold": -1e9}):
            got, expected = ours(TEXTS, **options), theirs(TEXTS, **options)
            same = [(a, b) for a, b in zip(got, expected, strict=True) if a.layers == b.layers]
            assert len(same) > 0.9 * len(TEXTS)
            differences = [abs(a.probabilities["yes"] - b.probabilities["yes"]) for a, b in same]
            assert max(differences) < 0.02
            assert max(differences) > 1e-5  # it is int8 indeed
            assert np.mean([a.label == b.label for a, b in same]) > 0.95


def test_validate_passes_it_on_the_machine_it_was_built_on(int8: Path):
    found = validate(int8)
    assert found.passed
    assert found.parity.precision == "int8"
    assert found.golden.logits_tolerance == read_bundle(int8).engine().tolerance.logits


@pytest.fixture(scope="module")
def built_static(static_source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParityReport]:
    return written(static_source, tmp_path_factory.mktemp("static_int8") / "bundle")


def test_a_static_route_in_int8(built_static: tuple[Path, ParityReport], static_bundle: Path):
    out, report = built_static
    assert (report.parity, report.route_agreement, report.flips) == ("passed", 1.0, 0)
    assert {piece.piece: piece.judged for piece in report.pieces} == {
        "embeddings": "largest", "layer_01": "mean", "layer_03": "mean", "head": "largest", "full": "mean",
    }  # fmt: skip
    assert report.tolerance.margins == (ROUTE_EPSILON,) * 4  # there is no near tie
    own = {file.name.partition(".")[0] for file in (out / "model").glob("*.ort-int8.onnx")}
    assert own == {"full", "layer_01", "layer_03"}
    assert validate(out).passed
    with Predictor.load(out) as ours, Predictor.load(static_bundle) as theirs:
        got, expected = ours(TEXTS), theirs(TEXTS)
    assert {prediction.layers for prediction in got} == {(1, 3)}
    differences = [abs(a.probabilities["yes"] - b.probabilities["yes"]) for a, b in zip(got, expected, strict=True)]
    assert 1e-5 < max(differences) < 0.02


def test_a_wrong_int8_layer_of_a_static_route_fails_and_is_named(
    built_static: tuple[Path, ParityReport], tmp_path: Path
):
    copy = copy_of(built_static[0], tmp_path)
    shutil.copyfile(int8_file(copy, "layer_01"), int8_file(copy, "layer_03"))
    reseal(copy)
    found = validate(copy)
    assert not found.golden.passed
    assert found.parity.first_bad_piece == "layer_03"


# What parity says


def compared(reference, bundle: Path, texts: list[str] = TEXTS[:20]) -> ParityReport:
    with Predictor.load(bundle, threads=1, allow_failed=True) as predictor:
        return compare(reference, predictor, predictor.tokenizer.encode(texts))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_wrong_layer_fails_and_is_named(int8: Path, tmp_path: Path, reference, number: int):
    copy = copy_of(int8, tmp_path)
    shutil.copyfile(int8_file(copy, f"layer_0{number % 4 + 1}"), int8_file(copy, f"layer_0{number}"))
    reseal(copy)
    report = compared(reference, copy)
    assert report.parity == "failed"
    assert report.first_bad_piece == f"layer_0{number}"
    assert [piece.piece for piece in report.pieces if not piece.passed] == [f"layer_0{number}"]
    assert not validate(copy).passed


def test_a_wrong_full_model_fails_and_is_named(int8: Path, tmp_path: Path, reference):
    copy = copy_of(int8, tmp_path)
    change_int8(copy, "full", add_to_weights(1.0))
    assert compared(reference, copy).first_bad_piece == "full"


def test_gates_are_held_to_fp32(int8: Path, tmp_path: Path, reference):
    copy = copy_of(int8, tmp_path)
    change_graph(copy / "model" / "gate_02.onnx", add_to_weights(5e-3))
    assert compared(reference, copy).first_bad_piece == "gate_02"


@pytest.mark.parametrize("piece", QUANTISED)
def test_a_layer_of_nan_fails_and_leaves_a_tolerance_that_a_manifest_can_hold(
    int8: Path, tmp_path: Path, reference, piece: str
):
    copy = copy_of(int8, tmp_path)
    change_int8(copy, piece, add_to_weights(math.nan))
    report = compared(reference, copy)
    assert report.first_bad_piece == piece
    assert msgspec.json.decode(msgspec.json.encode(report.tolerance), type=Tolerance) == report.tolerance


def test_where_no_route_agrees_there_are_no_logits_to_pass_on(int8: Path, reference, monkeypatch: pytest.MonkeyPatch):
    """Even if each of the differences is a near tie."""
    monkeypatch.setattr(parity, "near_ties", lambda margins, errors: np.full(4, 1e9))
    with Predictor.load(int8, threads=1) as predictor:
        run = predictor.run_as_built

        def flipped(*arguments, **options):
            logits, routes = run(*arguments, **options)
            return logits, routes ^ np.array([True, False, False, False])

        predictor.run_as_built = flipped
        report = compare(reference, predictor, predictor.tokenizer.encode(TEXTS[:5]))
    assert (report.route_agreement, report.flips) == (0, 0)
    assert report.first_bad_piece == "logits"
    assert math.isfinite(report.tolerance.logits)


class _Changed:
    """A reference whose answers are altered.

    Args:
        full: full BERT's labels are the other ones for that many inputs; None: there is no full BERT.
    """

    name = "altered"

    def __init__(self, reference: OnnxReference, full: int | None):
        self._reference, self._full = reference, full

    def trace(self, batch: Batch, thresholds: np.ndarray) -> Trace:
        trace = self._reference.trace(batch, thresholds)
        if self._full is None:
            return replace(trace, full_logits=None)
        self._full -= 1
        return replace(trace, full_logits=trace.full_logits[:, ::-1]) if self._full >= 0 else trace


@pytest.fixture(scope="module")
def agreed(int8: Path, bundle: Path) -> list[Encoded]:
    """Inputs with the same labels in int8 and fp32, of full BERT too."""
    with Predictor.load(int8) as ours, Predictor.load(bundle) as theirs:
        inputs = ours.tokenizer.encode(TEXTS)
        same = np.ones(len(inputs), bool)
        for router in ("gates", "full"):
            labels = [predictor.run(inputs, router=router)[0].argmax(axis=1) for predictor in (ours, theirs)]
            same &= labels[0] == labels[1]
    assert same.sum() >= COUNT
    return [encoded for encoded, keep in zip(inputs, same, strict=True) if keep][:COUNT]


@pytest.mark.parametrize("full", [None, 0, 1, 3])
def test_labels_may_differ_as_often_as_full_bert_s_and_a_point_more(int8: Path, reference, agreed, full: int | None):
    def report(different: int) -> ParityReport:
        with Predictor.load(int8, threads=1) as predictor:
            run = predictor.run_as_built

            def answers(*arguments, **options):
                logits, routes = run(*arguments, **options)
                logits[:different] = logits[:different, ::-1]
                return logits, routes

            predictor.run_as_built = answers
            return compare(_Changed(reference, full), predictor, agreed)

    allowed = COUNT // 100 + (full or 0)
    enough, too_many = report(allowed), report(allowed + 1)
    assert enough.label_agreement == pytest.approx(1 - allowed / COUNT)
    assert enough.full_label_agreement == (None if full is None else pytest.approx(1 - full / COUNT))
    assert enough.parity == "passed"
    assert too_many.first_bad_piece == "labels"


# Near ties


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 4))
def test_near_ties_are_those_of_a_slow_loop(data, inputs: int, layers: int):
    shape = (inputs, layers)
    margins = data.draw(arrays.arrays(np.float64, shape, elements=st.floats(-10, 10)))
    errors = data.draw(arrays.arrays(np.float64, shape, elements=st.floats(-1, 1) | st.floats(-1e-3, 1e-3)))

    def quantile(values: list[float], share: float) -> float:
        position = share * (len(values) - 1)
        low = math.floor(position)
        ordered = sorted(values)
        return ordered[low] + (position - low) * (ordered[min(low + 1, len(values) - 1)] - ordered[low])

    for layer, got in enumerate(near_ties(margins, errors)):
        measured = NEAR_TIE_ERRORS * quantile([abs(error) for error in errors[:, layer]], 0.99)
        most = NEAR_TIE_SPREAD * (quantile(margins[:, layer], 0.99) - quantile(margins[:, layer], 0.01))
        assert got == pytest.approx(max(ROUTE_EPSILON, min(measured, most)))


def test_errors_that_are_no_number_make_no_near_tie():
    margins = np.random.default_rng(0).normal(size=(50, 2))
    errors = np.full((50, 2), 0.01)
    errors[:, 1] = math.nan
    near = near_ties(margins, errors)
    assert near[0] == pytest.approx(0.03)
    assert near[1] == ROUTE_EPSILON


# The quantiser as a guest


def logging_state() -> tuple:
    root = logging.root
    return root.manager.disable, root.level, list(root.handlers), list(root.filters)


@pytest.mark.parametrize("disabled", [logging.NOTSET, logging.INFO, logging.CRITICAL])
@pytest.mark.parametrize("sound", [True, False])
def test_the_host_s_logging_is_left_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, disabled: int, sound: bool
):
    import onnxruntime.quantization as quantization

    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root.manager, "disable", disabled)
    during: list[int] = []
    theirs = quantization.quantize_dynamic
    monkeypatch.setattr(
        quantization, "quantize_dynamic", lambda *a, **k: (during.append(logging.root.manager.disable), theirs(*a, **k))
    )
    before = logging_state()
    if sound:
        quantise(graph(bundle, "layer_01"))
    else:
        with pytest.raises(EngineError):
            quantise(onnx.ModelProto())
    assert logging_state() == before
    assert min(during) >= max(disabled, logging.WARNING)  # what the host silenced stays silent


def product(rows: int, columns: int, seed: int = 0) -> onnx.ModelProto:
    """A layer's product with weights, and nothing else."""
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    tensor = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["states", "weight"], ["product"], "product")], "layer_01",
        [tensor("states", onnx.TensorProto.FLOAT, ["b", "s", rows])],
        [tensor("product", onnx.TensorProto.FLOAT, ["b", "s", columns])],
        [numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    return onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def given_by(model: onnx.ModelProto, states: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"states": states})[0]


@settings(max_examples=20)
@given(seed=st.integers(0, 99), large=st.sampled_from([1.0, 30.0, 1e4]), where=st.integers(0, 4))
def test_a_token_of_large_activations_costs_the_others_nothing(seed: int, large: float, where: int):
    """As the first token often has. Without it one scale serves all, and the others lose what they have."""
    model = product(64, 16, seed)
    alike = np.random.default_rng(seed).normal(size=(1, 5, 64)).astype(np.float32)
    states = alike.copy()
    states[0, where] *= large
    others = [token for token in range(5) if token != where]
    exact, quantised = given_by(model, states), quantise(product(64, 16, seed))
    assert np.abs(given_by(evened_out(model), states) - exact).max() < 1e-5 * (1 + np.abs(exact).max())
    ours, before = given_by(quantised, states)[0], given_by(quantised, alike)[0]
    np.testing.assert_allclose(ours[others], before[others], atol=1e-5)
    np.testing.assert_allclose(ours[where], large * before[where], rtol=1e-4, atol=1e-4 * large)
    assert np.sqrt(np.mean((before - given_by(model, alike)[0]) ** 2)) < 0.15  # of numbers of about 8
    if large > 1e3:  # one scale for all
        plain = given_by(quantise(product(64, 65, seed)), states)  # it is no feed-forward network's second
        exact = given_by(product(64, 65, seed), states)
        assert np.abs(plain - exact)[0, others].max() > 1


def test_a_token_of_zeros_gives_zeros():
    states = np.zeros((2, 3, 64), np.float32)
    states[0, 1] = 1.0
    found = given_by(quantise(product(64, 16)), states)
    assert np.isfinite(found).all() and not found[1].any() and not found[0, [0, 2]].any()


def test_only_what_narrows_is_evened_out():
    for rows, columns, narrows in ((64, 16, True), (64, 64, False), (16, 64, False)):
        assert (evened_out(product(rows, columns)) != product(rows, columns)) is narrows


def test_it_says_nothing_and_leaves_what_it_is_given(bundle: Path, capfd: pytest.CaptureFixture[str]):
    model = graph(bundle, "layer_01")
    before = model.SerializeToString()
    quantise(model)
    assert capfd.readouterr() == ("", "")
    assert model.SerializeToString() == before


def test_a_full_disk_is_named_and_no_temporary_file_is_left(bundle: Path, tmp_path: Path):
    """The limit of a file's size stands for the disk's."""
    code = f"""
import onnx, resource, tempfile
from hadskip_export.exporters.quantise import quantise
model = onnx.load({str(bundle / "model" / "layer_01.onnx")!r})
tempfile.tempdir = {str(tmp_path)!r}
quantise(model)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    quantise(model)
except OSError as error:
    print(error.filename.startswith(tempfile.tempdir), error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True File too large\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_cannot_be_quantised_is_named_in_one_line():
    model = onnx.ModelProto()
    model.graph.name = "layer_01"
    with pytest.raises(EngineError, match=r"onnxruntime cannot quantise layer_01 \(.+\)") as error:
        quantise(model)
    assert "\n" not in str(error.value)


def test_an_error_without_words_goes_by_its_name(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    fake = SimpleNamespace(quantize_dynamic=refuse, QuantType=SimpleNamespace(QInt8=None))
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", fake)
    with pytest.raises(EngineError, match=r"cannot quantise .* \(AssertionError\)"):
        quantise(graph(bundle, "layer_01"))


@pytest.mark.parametrize("convert", [quantise, quantise_weights])
def test_without_onnx_the_message_names_the_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch, convert):
    model = graph(bundle, "layer_01")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EngineError, match=r"needs onnx.*hadskip-export\[build\]"):
        convert(model)


# The int8 weights that OpenVINO takes


@pytest.mark.parametrize("piece", ["layer_01", "layer_04", "full", "head"])
def test_weights_are_int8_by_channel_within_half_a_step(bundle: Path, piece: str):
    before, model = graph(bundle, piece).graph, quantise_weights(graph(bundle, piece))
    after = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.initializer}
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.initializer}
    onnx.checker.check_model(model, full_check=True)
    nodes = {node.output[0]: node for node in after.node if node.op_type == "DequantizeLinear"}
    products = {node.input[1]: node for node in before.node if node.op_type in ("MatMul", "Gemm")}
    assert set(nodes) == set(products) & set(weights)
    assert [node for node in after.node if node.op_type != "DequantizeLinear"] == list(before.node)
    for name, node in nodes.items():
        whole, scale = (tensors[given] for given in node.input)
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        transposed = any(attribute.name == "transB" and attribute.i for attribute in products[name].attribute)
        assert whole.dtype == np.int8 and scale.shape == (whole.shape[axis],) and axis == (0 if transposed else 1)
        step = np.expand_dims(scale, 1 - axis)
        assert (np.abs(whole * step - weights[name]) <= step / 1.99).all()
        assert (np.abs(whole.astype(int)).max(axis=1 - axis) == 127).all()


def test_a_channel_of_zeros_stays_one(bundle: Path):
    model = graph(bundle, "layer_01")
    name = next(node.input[1] for node in model.graph.node if node.op_type == "MatMul")
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, 3] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    tensors = {t.name: numpy_helper.to_array(t) for t in quantise_weights(model).graph.initializer}
    assert (tensors[f"{name}_int8"][:, 3] == 0).all() and np.isfinite(tensors[f"{name}_scale"]).all()
