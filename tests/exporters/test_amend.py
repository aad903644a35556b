"""`build BUNDLE`: an engine more, checked, without torch; and whatever happens on the way, the bundle stays one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hadskip_export import build, validate
from hadskip_export.exporters import amend as adding
from hadskip_export.exporters.quantise import quantise_weights
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime import bundle as bundles
from hadskip_export.support.errors import BundleError, EngineError
from hadskip_export.verification import parity
from tests.conftest import BF16, needs_bf16, sentences
from tests.runtime.editing import copy_of

TEXTS = [text for text, _ in sentences(60, 5)]
LAYERS = [*(f"layer_0{number}" for number in range(1, 5)), "full"]
ADDED = [("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("ort", "int8")]
IN_BF16 = pytest.param("openvino-bf16", marks=needs_bf16)
MOVED = 5e-4  # of a probability; below it an answer has stayed
# An input alone is run by another engine there, whose states are bf16.
ALONE = {"openvino-bf16": 5e-3}


@pytest.fixture
def mine(bundle: Path, tmp_path: Path) -> Path:
    return copy_of(bundle, tmp_path)


@pytest.fixture(scope="module")
def full_house(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every engine that this machine can add."""
    out = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("full_house") / "bundle"))
    for engine, precision in ADDED:
        if precision != "bf16" or BF16:
            assert build(out, engine=engine, precision=precision).parity == "passed"
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# What is added


def test_engines_come_in_the_order_they_were_added_and_each_is_found_by_name(full_house: Path):
    opened = read_bundle(full_house)
    names = ["ort-fp32", *(f"{e}-{p}" for e, p in ADDED if p != "bf16" or BF16)]
    assert [info.name for info in opened.manifest.engines] == names
    assert opened.engine().name == opened.engine("ort").name == "ort-fp32"
    assert opened.engine("openvino").name == "openvino-fp32"
    for name in names:
        info = opened.engine(name)
        report = json.loads((full_house / "engines" / name / "report.json").read_text())
        assert (info.folder, info.parity) == (f"engines/{name}", "passed")
        assert report["first_bad_piece"] is None and info.chip and info.versions
        assert f"engines/{name}/report.json" in opened.manifest.files


def test_only_what_is_int8_or_joined_is_a_file_of_its_own(full_house: Path, bundle: Path):
    manifest = read_bundle(full_house).manifest
    for info in manifest.engines:
        own = {piece: file for piece, file in info.files.items() if file != manifest.pieces.get(piece)}
        with_gates = LAYERS[:3] if info.gates == "fused" else []
        whole = ["graph", "rows"] if info.engine == "openvino" else []
        assert set(own) == {*(LAYERS if info.precision == "int8" else with_gates), *whole}
        for piece, file in own.items():
            assert file == f"{info.folder}/{piece}{'_gates' * (piece in with_gates)}.onnx"
    assert [info.gates for info in manifest.engines if info.precision != "bf16"] == [
        "separate",
        "separate",
        "separate",
        "fused",
    ]
    before, after = files_of(bundle), files_of(full_house)
    assert {name for name in before if before[name] != after.get(name)} == {"manifest.json", "manifest.sha256"}


@pytest.mark.parametrize("engine", ["openvino-fp32", IN_BF16, "openvino-int8", "ort-int8"])
def test_an_added_engine_answers_as_the_first_one_does(full_house: Path, engine: str):
    near = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.03}[engine.rpartition("-")[2]]
    with Predictor.load(full_house) as first, Predictor.load(full_house, engine=engine) as other:
        assert other.engine_info.name == engine
        for options in ({}, {"router": "full"}, {"gate_threshold": -1e9}):
            pairs = list(zip(first(TEXTS, **options), other(TEXTS, **options), strict=True))
            same = [(a, b) for a, b in pairs if a.layers == b.layers]
            assert len(same) >= (0.9 if near > 1e-5 else 1) * len(TEXTS)
            distances = [abs(a.probabilities["yes"] - b.probabilities["yes"]) for a, b in same]
            assert max(distances) < near
            assert (max(distances) > 1e-5) == (near > 1e-5)  # it is another precision indeed
    assert validate(full_house, engine=engine).passed


def moved_by_batch_mates(bundle: Path, engine: str) -> tuple[int, float]:
    """(texts that take the same layers alone and in a batch, largest difference of a probability among them)."""
    with Predictor.load(bundle, engine=engine) as predictor:
        together, alone = predictor(TEXTS, batch_size=32), [predictor(text) for text in TEXTS]
    same = [(a, b) for a, b in zip(together, alone, strict=True) if a.layers == b.layers]
    return len(same), max(abs(a.probabilities["yes"] - b.probabilities["yes"]) for a, b in same)


@pytest.mark.parametrize("engine", ["ort-fp32", "openvino-fp32", IN_BF16, "openvino-int8"])
def test_an_answer_does_not_depend_on_who_shares_the_batch(full_house: Path, engine: str):
    same, moved = moved_by_batch_mates(full_house, engine)
    assert same == len(TEXTS)
    assert moved < (1e-5 if engine.endswith("fp32") else ALONE.get(engine, MOVED))


@pytest.mark.parametrize("engine", ["openvino-fp32", IN_BF16, "openvino-int8"])
def test_through_the_chain_not_even_below_fp32(mine: Path, engine: str):
    name, _, precision = engine.rpartition("-")
    build(mine, engine=name, precision=precision, single="chain")
    same, moved = moved_by_batch_mates(mine, engine)
    assert same == len(TEXTS) and moved < 1e-6


def test_onnxruntime_s_int8_depends_on_it(full_house: Path):
    """It scales activations by the tensor: the test above can tell."""
    assert moved_by_batch_mates(full_house, "ort-int8")[1] > MOVED


def test_a_static_bundle_takes_engines_too(static_bundle: Path, tmp_path: Path):
    mine = copy_of(static_bundle, tmp_path)
    assert build(mine, engine="openvino").parity == "passed"
    assert read_bundle(mine).engine("openvino").gates == "none"
    with Predictor.load(mine) as first, Predictor.load(mine, engine="openvino") as other:
        for a, b in zip(first(TEXTS), other(TEXTS), strict=True):
            assert a.layers == b.layers and a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_the_gate_layout_is_the_engine_s_own(mine: Path):
    build(mine, engine="openvino", gates="lookahead")
    opened = read_bundle(mine)
    assert (opened.engine("ort").gates, opened.engine("openvino").gates) == ("separate", "lookahead")
    with Predictor.load(mine) as first, Predictor.load(mine, engine="openvino") as other:
        assert [p.layers for p in first(TEXTS)] == [p.layers for p in other(TEXTS)]


def test_a_layout_that_an_engine_has_not_is_refused_before_any_work(mine: Path):
    before = files_of(mine)
    with pytest.raises(EngineError, match="--gates fused: not to be had with openvino-bf16; there are lookahead, sep"):
        build(mine, engine="openvino", precision="bf16", gates="fused")
    assert {name for name in files_of(mine) if name != ".lock"} == set(before)


def test_an_engine_made_anew_takes_the_place_of_the_old_one(mine: Path):
    build(mine, engine="openvino", precision="int8")
    build(mine, engine="openvino")
    before = read_bundle(mine)
    build(mine, engine="openvino", precision="int8", gates="lookahead")
    after = read_bundle(mine)
    assert [info.name for info in after.manifest.engines] == ["ort-fp32", "openvino-int8", "openvino-fp32"]
    assert after.engine("openvino-int8").gates == "lookahead"
    old, new = before.engine("openvino-int8").folder, after.engine("openvino-int8").folder
    assert old != new and (mine / new).is_dir()
    assert not any(name.startswith(f"{old}/") for name in after.manifest.files)
    build(mine, engine="ort")  # the first one as well
    assert read_bundle(mine).engine().name == "ort-fp32"
    assert (mine / old).exists()  # somebody may be serving it
    os.utime(mine / old, (0, time.time() - adding.SERVED_SECONDS - 1))
    build(mine, engine="ort")
    assert not (mine / old).exists()


def test_a_predictor_in_service_goes_on_while_an_engine_is_made_anew(mine: Path):
    build(mine, engine="openvino", precision="int8")
    with Predictor.load(mine, engine="openvino") as predictor:
        before = predictor(TEXTS)
        for _ in range(2):  # the second one finds it replaced
            build(mine, engine="openvino", precision="int8")
        assert predictor(TEXTS) == before
        assert predictor(TEXTS[0], router="full").layers == (1, 2, 3, 4)  # loaded only now


def test_it_needs_no_torch(mine: Path):
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # how Python marks a module that must not be imported
from hadskip_export import build
for precision in ("fp32", "int8"):
    print(build({str(mine)!r}, engine="openvino", precision=precision).parity)
print(build({str(mine)!r}, engine="ort", precision="int8").parity)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["passed"] * 3


# The int8 weights that OpenVINO takes


@pytest.mark.parametrize("piece", ["layer_01", "full", "head"])
def test_weights_are_int8_by_channel_within_half_a_step(bundle: Path, tmp_path: Path, piece: str):
    source, out = bundle / "pieces" / f"{piece}.onnx", tmp_path / "out.onnx"
    quantise_weights(source, out)
    before, after = onnx.load(source).graph, onnx.load(out).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.initializer}
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.initializer}
    onnx.checker.check_model(onnx.load(out), full_check=True)
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


def test_a_channel_of_zeros_stays_one(bundle: Path, tmp_path: Path):
    model = onnx.load(bundle / "pieces" / "layer_01.onnx")
    name = next(node.input[1] for node in model.graph.node if node.op_type == "MatMul")
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, 3] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    onnx.save(model, tmp_path / "in.onnx")
    quantise_weights(tmp_path / "in.onnx", tmp_path / "out.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert (tensors[f"{name}_int8"][:, 3] == 0).all() and np.isfinite(tensors[f"{name}_scale"]).all()


def test_what_onnx_cannot_read_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "in.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"in\.onnx: onnx cannot read it"):
        quantise_weights(tmp_path / "in.onnx", tmp_path / "out.onnx")


# What goes wrong


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, BundleError, "--engine: .* is a bundle; say what to add"),
        ({"engine": "abacus"}, EngineError, "--engine abacus: not known"),
        ({"engine": "openvino", "precision": "int7"}, EngineError, "--precision int7: not to be had with openvino"),
        ({"engine": "ort", "precision": "bf16"}, EngineError, "--precision bf16: not to be had with ort"),
        ({"out": "somewhere"}, BundleError, "--out: .* is a bundle"),
        ({"budget": 2}, BundleError, "--budget: .* is a bundle"),
        ({"golden": "texts.txt"}, BundleError, "--golden: .* is a bundle"),
        ({"full": False}, BundleError, "--no-full: .* is a bundle"),
    ],
    ids=str,
)
def test_what_cannot_be_added_is_refused_and_nothing_changes(mine: Path, options, error, message: str):
    before = files_of(mine)
    with pytest.raises(error, match=message):
        build(mine, **options)
    assert files_of(mine) == before


def test_a_damaged_bundle_is_refused(mine: Path):
    (mine / "pieces" / "head.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"head\.onnx"):
        build(mine, engine="openvino")


def test_without_onnxruntime_there_is_nothing_to_compare_with(mine: Path, monkeypatch: pytest.MonkeyPatch):
    before = files_of(mine)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"hadskip-export\[ort\]"):
        build(mine, engine="openvino")
    assert files_of(mine).keys() - {".lock"} == before.keys()


@pytest.mark.parametrize("error", [EngineError("no"), OSError(28, "No space left"), KeyboardInterrupt])
@pytest.mark.parametrize("where", ["compare", "amend"])
def test_nothing_is_left_of_an_engine_that_was_not_finished(mine: Path, monkeypatch, where: str, error):
    before = files_of(mine)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(adding, where, fail)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        build(mine, engine="openvino", precision="int8")
    after = files_of(mine)
    after.pop(".lock", None)
    assert after == before


def test_an_engine_that_misses_parity_is_there_and_marked(mine: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setitem(parity.PIECE_TOLERANCE, "head", -1.0)
        report = build(mine, engine="openvino")
    assert (report.parity, report.first_bad_piece) == ("failed", "head")
    with pytest.raises(BundleError, match="openvino-fp32 failed its parity check at head"):
        Predictor.load(mine, engine="openvino")
    Predictor.load(mine).close()  # the others are as they were


def test_two_at_once_are_one_after_the_other(mine: Path):
    with filelock.FileLock(mine / ".lock"), pytest.raises(BundleError, match="another process is adding"):
        build(mine, engine="openvino")
    assert build(mine, engine="openvino").parity == "passed"


@pytest.mark.parametrize("step", range(3))
def test_whoever_is_killed_while_the_manifest_changes_leaves_a_bundle_that_loads(mine: Path, step: int):
    """Killed for real, before the first step, before the second, or not at all."""
    build(mine, engine="openvino", precision="int8")
    code = f"""
import os, signal
from hadskip_export import build
from hadskip_export.runtime import bundle
left = {step}
real = os.replace
def replace(source, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(source, target)
bundle.os.replace = replace
build({str(mine)!r}, engine="openvino", precision="int8", gates="lookahead")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if step < 2 else 0), done.stderr
    opened = read_bundle(mine)
    assert opened.engine("openvino").gates == ("lookahead" if step >= 2 else "separate")
    with Predictor.load(mine, engine="openvino") as predictor:
        predictor(TEXTS[:3])
    for folder in (mine / "engines").iterdir():
        os.utime(folder, (0, 0))
    build(mine, engine="openvino")  # engines can be added as before, and what was left is cleared up
    folders = {folder.relative_to(mine).as_posix() for folder in (mine / "engines").iterdir()}
    assert folders == {info.folder for info in read_bundle(mine).manifest.engines}


def test_a_reader_in_between_finds_one_bundle_or_the_other(mine: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    real = os.replace

    def watched(source, target):
        seen.append(len(read_bundle(mine).manifest.engines))
        real(source, target)
        seen.append(len(read_bundle(mine).manifest.engines))

    monkeypatch.setattr(bundles.os, "replace", watched)
    build(mine, engine="openvino")
    assert seen == [1, 1, 1, 2]


def test_a_digest_of_some_other_manifest_is_no_digest(mine: Path):
    build(mine, engine="openvino")
    manifest = read_bundle(mine).manifest
    content = bundles._encode(replace(manifest, task="another"))
    (mine / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match="does not match"):
        read_bundle(mine)
