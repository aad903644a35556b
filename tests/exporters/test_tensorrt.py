"""TensorRT engines are built for real, by TensorRT for RTX, which needs no GPU; to run they need one, and say so.

`make trt` installs the library and runs this file; elsewhere what needs it is skipped.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from hadskip_export import build, estimate
from hadskip_export.benchmark.random_bundle import write_random_bundle
from hadskip_export.commands.estimate import SIZES
from hadskip_export.exporters.tensorrt import build_engine
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import built_elsewhere, engine_class
from hadskip_export.runtime.engines.nvidia import why_no_device
from hadskip_export.support.errors import EngineError
from tests.runtime.editing import change_manifest, copy_of

NO_DRIVER = why_no_device()


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx_bindings")


@pytest.fixture(scope="module")
def built(trt, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = copy_of(bundle, tmp_path_factory.mktemp("trt"))
    for precision in ("fp32", "fp16"):
        assert build(out, engine="trt-rtx", precision=precision) is None
    return out


def network_of(trt, file: Path):
    """Parsed again by itself: (name, dtype, rank) of every input and output."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(file))
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    return [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in tensors]


# What is built


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_piece_has_an_engine_and_the_bundle_lists_it_unverified(built: Path, precision: str):
    manifest = read_bundle(built).manifest
    (info,) = [info for info in manifest.engines if info.name == f"trt-rtx-{precision}"]
    assert info.parity == "unverified"
    assert info.files == {piece: f"engines/trt-rtx-{precision}/{piece}.engine" for piece in manifest.pieces}
    for file in info.files.values():
        assert manifest.files[file].size > 1000
    assert set(info.versions) == {"trt-rtx", "system"} and "Turing" in info.chip
    assert not (built / info.folder / "report.json").exists()


def test_in_fp16_layers_and_full_bert_are_smaller_and_the_rest_is_as_it_is(built: Path):
    sizes = {
        precision: {file.stem: file.stat().st_size for file in (built / "engines" / f"trt-rtx-{precision}").iterdir()}
        for precision in ("fp32", "fp16")
    }
    for piece, size in sizes["fp32"].items():
        if piece.startswith(("layer", "full")):
            assert sizes["fp16"][piece] != size
        else:
            single, half = (built / "engines" / f"trt-rtx-{p}" / f"{piece}.engine" for p in ("fp32", "fp16"))
            assert single.read_bytes() == half.read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_layer_of_the_size_of_bert_base(trt, tmp_path: Path, precision: str):
    config = SIZES["bert-base"]
    small = type(config)(**{**config.__dict__, "num_layers": 1, "vocab_size": 64})
    write_random_bundle(tmp_path / "bundle", small)
    source = tmp_path / "bundle" / "pieces" / "layer_01.onnx"
    build_engine("trt-rtx", precision, source, tmp_path / "out.engine", 512, True)
    weights = sum(tensor.ByteSize() for tensor in onnx.load(source).graph.initializer)
    share = (tmp_path / "out.engine").stat().st_size / weights
    assert (0.95 < share < 1.2) if precision == "fp32" else (0.45 < share < 0.7)


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
        assert network_of(trt, bundle / "pieces" / f"{piece}.onnx") == tensors


def test_profiles_span_batch_and_length(trt, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
    build_engine("trt-rtx", "fp32", bundle / "pieces" / "layer_01.onnx", tmp_path / "out", 32, True)
    assert seen == {
        "hidden_states": ([1, 1, 32], [1, 32, 32], [32, 32, 32]), "attention_mask": ([1, 1], [1, 32], [32, 32]),
    }  # fmt: skip


def test_building_twice_gives_the_same_bytes(trt, bundle: Path, tmp_path: Path):
    for name in ("one", "two"):
        build_engine("trt-rtx", "fp32", bundle / "pieces" / "gate_01.onnx", tmp_path / name, 32, False)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_piece_on_disk_is_not_changed_by_fp16(built: Path, bundle: Path):
    for file in (bundle / "pieces").iterdir():
        assert (built / "pieces" / file.name).read_bytes() == file.read_bytes()


def test_from_a_run_too(trt, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert build(run_folder, out=tmp_path / "bundle", engine="trt-rtx", precision="fp16", full=False) is None
    assert read_bundle(tmp_path / "bundle").engine().parity == "unverified"
    assert "trt-rtx-fp16: built, parity unverified: " in capsys.readouterr().err


# What is refused


def test_what_is_no_network_is_refused(trt, tmp_path: Path, bundle: Path):
    model = onnx.load(bundle / "pieces" / "head.onnx")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unheard", "com.example"
    onnx.save(model, tmp_path / "head.onnx")
    with pytest.raises(EngineError, match=r"head\.onnx: tensorrt_rtx_bindings cannot parse it \(.+\)") as error:
        build_engine("trt-rtx", "fp32", tmp_path / "head.onnx", tmp_path / "out", 32, False)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_piece_that_cannot_be_built_leaves_the_bundle_as_it_was(trt, bundle: Path, tmp_path: Path, monkeypatch):
    mine = copy_of(bundle, tmp_path)
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(EngineError, match=r"embeddings\.onnx: tensorrt_rtx_bindings cannot build it"):
        build(mine, engine="trt-rtx")
    assert [folder.name for folder in (mine / "engines").iterdir()] == ["ort-fp32"]
    assert [info.name for info in read_bundle(mine).manifest.engines] == ["ort-fp32"]


@pytest.mark.parametrize(("name", "module"), [("trt", "tensorrt"), ("trt-rtx", "tensorrt_rtx_bindings")])
def test_without_the_library_the_message_names_the_extra(bundle: Path, monkeypatch, name: str, module: str):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=rf"needs {module}.*hadskip-export\[{name}\]"):
        build(bundle, engine=name)


@pytest.mark.skipif(NO_DRIVER is None, reason="this machine has a GPU")
def test_tensorrt_itself_is_not_touched_without_a_gpu(bundle: Path, tmp_path: Path, monkeypatch):
    """Its builder raises a TypeError there, its runtime crashes."""
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.13"))
    with pytest.raises(EngineError, match="--engine trt: builds on the GPU that will run it, and there is no NVIDIA"):
        build_engine("trt", "fp32", bundle / "pieces" / "head.onnx", tmp_path / "out", 32, False)


@pytest.mark.skipif(NO_DRIVER is None, reason="this machine has a GPU")
def test_an_engine_that_cannot_run_here_says_why(built: Path):
    with pytest.raises(EngineError, match="trt-rtx: there is no NVIDIA driver"):
        Predictor.load(built, engine="trt-rtx")
    with pytest.raises(EngineError, match="trt-rtx-fp32: cannot be measured here: there is no NVIDIA driver"):
        estimate("minilm", layers_run=3, engine="trt-rtx", seq=(5,))
    with Predictor.load(built) as predictor:  # the others are as they were
        assert predictor("a good film").label


def test_a_stale_engine_is_refused_with_the_command_that_makes_it_anew(built: Path, tmp_path: Path):
    mine = copy_of(built, tmp_path)

    def age(plain):
        plain["engines"][1]["versions"]["trt-rtx"] = "1.0.0"

    change_manifest(mine, age)
    with pytest.raises(EngineError) as error:
        Predictor.load(mine, engine="trt-rtx-fp32")
    assert f"hadskip-export build {mine} --engine trt-rtx --precision fp32" in str(error.value)
    assert "trt-rtx 1.0.0" in str(error.value) and engine_class("trt-rtx").versions()["trt-rtx"] in str(error.value)
    build(mine, engine="trt-rtx")  # beside the old one, which may fit another machine
    manifest = read_bundle(mine).manifest
    assert [info.name for info in manifest.engines] == ["ort-fp32", "trt-rtx-fp32", "trt-rtx-fp16", "trt-rtx-fp32"]
    assert read_bundle(mine).engine("trt-rtx-fp32").versions == engine_class("trt-rtx").versions()


def test_what_runs_the_onnx_files_is_never_stale():
    assert built_elsewhere("ort", {"onnxruntime": "0.1"}, "another chip") is None
    assert built_elsewhere("openvino", {"openvino": "0.1"}, "another chip") is None


def test_a_report_is_json_where_there_is_one(built: Path):
    assert json.loads((built / "engines" / "ort-fp32" / "report.json").read_text())["engine"] == "ort"
