"""TensorRT engines are built for real, by TensorRT for RTX, which needs no GPU; to run they need one, and say so.

`make trt` installs the library and runs this file; elsewhere what needs it is skipped.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from hadskip_export import build
from hadskip_export.exporters.assemble import Pieces
from hadskip_export.exporters.half import halved
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.targets.tensorrt import build_plan
from hadskip_export.exporters.write import write_bundle
from hadskip_export.modeling.exits import EXIT_KINDS, TOLD, ExitClassifier
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import built_elsewhere, engine_class
from hadskip_export.runtime.engines.nvidia import why_no_device
from hadskip_export.support.errors import EngineError
from tests.conftest import make_source, write_cut
from tests.exporters.changing import copy_of, files_of, reseal
from tests.families import write_model

NO_DRIVER = why_no_device()


def graph(bundle: Path, piece: str) -> onnx.ModelProto:
    return Pieces(bundle, {piece: f"model/{piece}.onnx"}).read_with_tensors(piece)


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx_bindings")


@pytest.fixture(scope="module")
def built(trt, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = copy_of(bundle, tmp_path_factory.mktemp("trt"))
    for precision in ("fp32", "fp16"):
        assert build(out, engine="trt-rtx", precision=precision, cut="gates") is None
    return out


def network_of(trt, model: onnx.ModelProto):
    """Parsed again by itself: (name, dtype, rank) of every input and output."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString())
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    return [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in tensors]


# What is built


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_piece_has_an_engine_and_the_bundle_lists_it_unverified(built: Path, precision: str):
    manifest = read_bundle(built).manifest
    (info,) = [info for info in manifest.engines if info.name == f"trt-rtx-{precision}-gates"]
    assert info.parity == "unverified"
    pieces = [piece for piece in manifest.pieces if piece != "gates"]
    assert info.files == {piece: f"engines/trt-rtx-{precision}-gates/{piece}.engine" for piece in pieces}
    for file in info.files.values():
        assert manifest.files[file].size > 1000
    assert set(info.versions) == {"trt-rtx", "system"} and "Turing" in info.chip
    assert not (built / info.folder / "report.json").exists()


@pytest.mark.parametrize("family", ["roberta", "electra", "distilbert", "modernbert"])
def test_every_shape_of_model_can_be_built(trt, family: str, tmp_path: Path):
    source = make_source(write_model(family, tmp_path / "model"), tmp_path, layers=2)
    bundle = write_cut(source, tmp_path, "whole")
    assert build(bundle, engine="trt-rtx", precision="fp16", cut="gates") is None
    assert [info.parity for info in read_bundle(bundle).manifest.engines] == ["passed", "unverified"]


@pytest.mark.parametrize("kind", [*EXIT_KINDS, "gated", "upfront"])
def test_rivals_can_be_built(trt, kind: str, model_folder: Path, tmp_path: Path):
    source = make_source(model_folder, tmp_path, layers=3)
    if kind == "upfront":
        source.model.upfront = True
    else:
        shape = "attention" if kind == "gated" else kind
        criterion = TOLD.get(shape, "entropy")
        model = ExitClassifier(source.model.classifier, shape, criterion, gate_width=8, jumps=kind == "gated")
        source = replace(source, model=model.eval())
    assert write_bundle(source, tmp_path / "bundle", EnginePlan.of(cut="gates", router=source.router))
    for cut in ("gates", "layers"):
        assert build(tmp_path / "bundle", engine="trt-rtx", precision="fp16", cut=cut) is None
    *_, gates, layers = read_bundle(tmp_path / "bundle").manifest.engines
    assert gates.parity == layers.parity == "unverified"  # nothing here can run it
    assert ("gate_02" in gates.files) == (kind in ("gated", "upfront")) and ("gate_01" in gates.files) == (
        kind == "upfront"
    )
    assert ("gates" in layers.files) == (kind == "upfront") and ("exit_02" in gates.files) == (kind != "upfront")


def test_in_fp16_layers_and_full_bert_are_smaller_and_the_rest_is_as_it_is(built: Path):
    sizes = {
        precision: {
            file.stem: file.stat().st_size for file in (built / "engines" / f"trt-rtx-{precision}-gates").iterdir()
        }
        for precision in ("fp32", "fp16")
    }
    for piece, size in sizes["fp32"].items():
        if piece.startswith(("layer", "full")):
            assert sizes["fp16"][piece] != size
        else:
            single, half = (built / "engines" / f"trt-rtx-{p}-gates" / f"{piece}.engine" for p in ("fp32", "fp16"))
            assert single.read_bytes() == half.read_bytes()


def test_what_a_network_takes_and_gives_is_what_the_piece_says(trt, bundle: Path):
    single, whole = trt.DataType.FLOAT, trt.DataType.INT64
    states, mask = ("hidden_states", single, 3), ("attention_mask", whole, 2)
    ids, types = ("input_ids", whole, 2), ("token_type_ids", whole, 2)
    expected = {
        "embeddings": [ids, types, states], "layer_01": [states, mask, ("layer_output", single, 3)],
        "gate_01": [states, mask, ("margin", single, 1)], "gates": [states, mask, ("margins", single, 2)],
        "head": [states, ("logits", single, 2)], "full": [ids, mask, types, ("logits", single, 2)],
    }  # fmt: skip
    for piece, tensors in expected.items():
        assert network_of(trt, graph(bundle, piece)) == tensors


def test_profiles_span_batch_and_length(trt, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    seen = {}
    real = trt.Builder.create_optimization_profile

    def create(builder):
        profile = real(builder)

        def set_shape(name, *shapes):
            seen[name] = shapes
            profile.set_shape(name, *shapes)

        return SimpleNamespace(set_shape=set_shape, real=profile)

    monkeypatch.setattr(trt.Builder, "create_optimization_profile", create)
    adding = trt.IBuilderConfig.add_optimization_profile
    monkeypatch.setattr(trt.IBuilderConfig, "add_optimization_profile", lambda config, p: adding(config, p.real))
    build_plan("trt-rtx", graph(bundle, "layer_01"), 32)
    assert seen == {
        "hidden_states": ([1, 1, 32], [1, 32, 32], [32, 32, 32]), "attention_mask": ([1, 1], [1, 32], [32, 32]),
    }  # fmt: skip


def test_building_twice_gives_the_same_bytes(trt, bundle: Path):
    one, two = (build_plan("trt-rtx", graph(bundle, "gate_01"), 32) for _ in range(2))
    assert one == two


def test_half_the_weights_half_the_plan(trt, bundle: Path):
    single, half = (
        build_plan("trt-rtx", model, 32) for model in (graph(bundle, "full"), halved(graph(bundle, "full")))
    )
    assert len(half) < len(single)


def test_the_layers_cut_has_all_gates_as_one_plan(trt, bundle: Path, tmp_path: Path):
    mine = copy_of(bundle, tmp_path)
    assert build(mine, engine="trt-rtx") is None
    info = read_bundle(mine).engine("trt-rtx")
    assert info.cut == "layers" and "gates" in info.files and "gate_01" not in info.files


def test_what_the_bundle_had_is_not_changed(built: Path, bundle: Path):
    before, after = files_of(bundle), files_of(built)
    assert {name for name in before if before[name] != after[name]} == {"manifest.json", "manifest.sha256"}


def test_from_a_run_too(trt, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert build(run_folder, out=tmp_path / "bundle", engine="trt-rtx", precision="fp16", full=False) is None
    assert read_bundle(tmp_path / "bundle").engine().parity == "unverified"
    assert "trt-rtx-fp16-layers: built, parity unverified: " in capsys.readouterr().err


# What is refused


def test_what_is_no_network_is_refused(trt, bundle: Path):
    model = graph(bundle, "head")
    model.graph.name = "head"
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unheard", "com.example"
    with pytest.raises(EngineError, match=r"tensorrt_rtx_bindings cannot parse head \(.+\)") as error:
        build_plan("trt-rtx", model, 32)
    assert "\n" not in str(error.value)


def test_a_piece_that_cannot_be_built_leaves_the_bundle_as_it_was(trt, bundle: Path, tmp_path: Path, monkeypatch):
    mine = copy_of(bundle, tmp_path)
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(EngineError, match=r"tensorrt_rtx_bindings cannot build "):
        build(mine, engine="trt-rtx")
    assert [folder.name for folder in (mine / "engines").iterdir()] == ["ort-fp32-gates"]
    assert [info.name for info in read_bundle(mine).manifest.engines] == ["ort-fp32-gates"]


@pytest.mark.parametrize(("name", "module"), [("trt", "tensorrt"), ("trt-rtx", "tensorrt_rtx_bindings")])
def test_without_the_library_the_message_names_the_extra(bundle: Path, monkeypatch, name: str, module: str):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=rf"needs {module}.*hadskip-export\[{name}\]"):
        build(bundle, engine=name)


@pytest.mark.skipif(NO_DRIVER is None, reason="this machine has a GPU")
def test_tensorrt_itself_is_not_touched_without_a_gpu(bundle: Path, monkeypatch):
    """Its builder raises a TypeError there, its runtime crashes."""
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.13"))
    with pytest.raises(EngineError, match="--engine trt: builds on the GPU that will run it, and there is no NVIDIA"):
        build_plan("trt", graph(bundle, "head"), 32)


@pytest.mark.skipif(NO_DRIVER is None, reason="this machine has a GPU")
def test_an_engine_that_cannot_run_here_says_why(built: Path):
    with pytest.raises(EngineError, match="trt-rtx: there is no NVIDIA driver"):
        Predictor.load(built, engine="trt-rtx")
    with pytest.raises(EngineError, match="trt-rtx-fp32: cannot be measured here: there is no NVIDIA driver"):
        EnginePlan.of("trt-rtx").check_measurable()
    with Predictor.load(built) as predictor:  # the others are as they were
        assert predictor("a good film").label


def test_a_stale_engine_is_refused_with_the_command_that_makes_it_anew(built: Path, tmp_path: Path):
    mine = copy_of(built, tmp_path)

    def age(plain):
        plain["engines"][1]["versions"]["trt-rtx"] = "1.0.0"

    reseal(mine, age)
    with pytest.raises(EngineError) as error:
        Predictor.load(mine, engine="trt-rtx-fp32")
    assert f"hadskip-export build {mine} --engine trt-rtx --precision fp32 --cut gates" in str(error.value)
    assert "trt-rtx 1.0.0" in str(error.value) and engine_class("trt-rtx").versions()["trt-rtx"] in str(error.value)
    build(mine, engine="trt-rtx", cut="gates")  # beside the old one, which may fit another machine
    manifest = read_bundle(mine).manifest
    assert [info.name for info in manifest.engines] == [
        "ort-fp32-gates",
        *(f"trt-rtx-{p}-gates" for p in ("fp32", "fp16", "fp32")),
    ]
    assert read_bundle(mine).engine("trt-rtx-fp32").versions == engine_class("trt-rtx").versions()


def test_what_runs_the_onnx_files_is_never_stale():
    assert built_elsewhere("ort", {"onnxruntime": "0.1"}, "another chip") is None
    assert built_elsewhere("openvino", {"openvino": "0.1"}, "another chip") is None


def test_a_report_is_json_where_there_is_one(built: Path):
    assert json.loads((built / "engines" / "ort-fp32-gates" / "report.json").read_text())["engine"] == "ort"
