"""No file of a bundle is used that is damaged, leads out of it, or points out of it. How graphs are read is in
`test_graphs`."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from hadskip_export import build
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import ENGINES, engine_class
from hadskip_export.runtime.graphs import read_graph
from hadskip_export.runtime.integrity import FileInfo, check_files, inside, sha256
from hadskip_export.support.errors import BundleError, EngineError
from tests.runtime.editing import (
    change_manifest,
    change_piece,
    copy_of,
    piece_file,
    refused,
    rehash,
    reseal,
)
from tests.runtime.engines.host import ON_HOST

WEIGHTS = "model/weights/fp32.safetensors"


# Damage


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return copy_of(bundle, tmp_path)


FILES = [
    "model/layer_02.onnx", "model/tokenizer.json", "model/config.json", WEIGHTS, "golden/outputs.npz",
    "engines/ort-fp32-gates/report.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy: Path, name: str):
    (copy / name).unlink()
    refused(copy, name, "missing")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(copy: Path, name: str):
    os.truncate(copy / name, (copy / name).stat().st_size - 1)
    refused(copy, name, "bytes")


@pytest.mark.parametrize("name", FILES)
def test_an_edited_file_of_the_same_size_is_refused(copy: Path, name: str):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    refused(copy, name, "content")


def test_a_folder_in_place_of_a_file_is_refused(copy: Path):
    (copy / FILES[0]).unlink()
    (copy / FILES[0]).mkdir()
    refused(copy, FILES[0])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=50), data=st.data())
def test_any_change_of_any_byte_or_of_the_size_is_noticed(tmp_path: Path, content: bytes, data):
    file, listed = tmp_path / "file", FileInfo(len(content), "")
    file.write_bytes(content)
    listed = FileInfo(len(content), sha256(file))
    check_files(tmp_path, {"file": listed})
    other = data.draw(st.binary(max_size=60).filter(lambda other: other != content))
    file.write_bytes(other)
    with pytest.raises(BundleError, match="copy it again"):
        check_files(tmp_path, {"file": listed})


# Paths that leave the bundle


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../secret", "model/../../secret", "C:\\secret", "..\\secret", "C:secret"]
)
def test_a_listed_path_that_leaves_the_bundle_is_refused(copy: Path, name: str):
    (copy.parent / "secret").write_text("secret")
    change_manifest(copy, lambda plain: plain["files"].update({name: plain["files"][FILES[0]]}))
    assert "leaves the bundle" in refused(copy, repr(name))


@pytest.mark.parametrize("link_to", ["the file", "its folder", "the weights", "their folder"])
def test_a_link_that_leads_out_of_the_bundle_is_refused(copy: Path, link_to: str):
    outside = copy.parent / "outside"
    name = {"the file": FILES[0], "its folder": "model", "the weights": WEIGHTS, "their folder": "model/weights"}[
        link_to
    ]
    (copy / name).rename(outside)
    (copy / name).symlink_to(outside)
    refused(copy, "leaves the bundle")


def test_a_link_to_another_file_of_the_bundle_is_followed(copy: Path):
    (copy / "model" / "elsewhere").write_bytes((copy / FILES[0]).read_bytes())
    (copy / FILES[0]).unlink()
    (copy / FILES[0]).symlink_to("elsewhere")
    assert inside(copy, FILES[0]) == (copy / "model" / "elsewhere").resolve()
    read_bundle(copy)


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_a_copy_that_shares_its_files_with_another_is_served(openvino_bundle: Path, tmp_path: Path, engine: str):
    """As `cp -al` and backups make them: hard links, which not every reader of external data takes."""
    shutil.copytree(openvino_bundle, tmp_path / "linked", copy_function=os.link)
    with Predictor.load(tmp_path / "linked", engine=engine) as predictor:
        assert predictor("a good film").label


def test_a_bundle_that_is_itself_a_link_is_read(copy: Path):
    link = copy.parent / "current"
    link.symlink_to(copy)
    assert read_bundle(link).manifest == read_bundle(copy).manifest


def test_a_link_to_itself_is_refused(copy: Path):
    (copy / FILES[0]).unlink()
    (copy / FILES[0]).symlink_to(copy / FILES[0])
    refused(copy)


@pytest.mark.parametrize("name", ["model/\0", "x" * 5000, "", "."])
def test_a_listed_path_no_file_can_have_is_refused(copy: Path, name: str):
    change_manifest(copy, lambda plain: plain["files"].update({name: plain["files"][FILES[0]]}))
    refused(copy)


@pytest.mark.parametrize("name", ["/etc/hostname", "../../etc/hostname", "model/unlisted.onnx"])
def test_an_engine_file_that_is_not_listed_is_refused(copy: Path, name: str):
    (copy / "model" / "unlisted.onnx").write_bytes((copy / FILES[0]).read_bytes())
    change_manifest(copy, lambda plain: plain["engines"][0]["files"].update(head=name))
    refused(copy, name)


@pytest.mark.parametrize("what", ["tokenizer", "weights"])
@pytest.mark.parametrize("name", ["model/other", "../secret"])
def test_a_tokenizer_or_weights_that_are_not_listed_are_refused(copy: Path, what: str, name: str):
    (copy.parent / "secret").write_text("secret")
    (copy / "model" / "other").write_text("there, but not listed")
    change_manifest(copy, lambda plain: plain.update({what: name}))
    refused(copy, name)


# External data inside ONNX files


def point_to(**entries: str) -> Callable[[onnx.ModelProto], None]:
    """Has every tensor of a graph that lies outside of it lie elsewhere: `location`, `offset`, `length`."""

    def change(model: onnx.ModelProto) -> None:
        found = [tensor for tensor in model.graph.initializer if tensor.external_data]
        assert found
        for tensor in found:
            kept = {entry.key: entry.value for entry in tensor.external_data} | entries
            del tensor.external_data[:]
            for key, value in kept.items():
                tensor.external_data.add(key=key, value=value)

    return change


def change_graph(file: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Rewrites a graph, whose tensors stay where they are."""
    model = onnx.load(file, load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())


def keep_outside(location: str, file: Path):
    """Moves the matrices of a model to `file` and has the model call that file `location`."""

    def change(model: onnx.ModelProto) -> None:
        content = b""
        for weight in (w for w in model.graph.initializer if len(w.dims) == 2):
            raw = numpy_helper.to_array(weight).tobytes()
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            del weight.external_data[:]
            for key, value in {"location": location, "offset": len(content), "length": len(raw)}.items():
                weight.external_data.add(key=key, value=str(value))
            content += raw
        assert content
        file.write_bytes(content)

    return change


@pytest.mark.parametrize("piece", ["layer_02", "gate_01", "full"])
@pytest.mark.parametrize("where", ["up one", "up two", "absolute"])
def test_a_graph_that_points_out_of_the_bundle_is_refused(copy: Path, where: str, piece: str):
    """Up one folder is still inside the bundle; but ONNX knows no folder above the model's own, so neither do we."""
    outside = (copy if where == "up one" else copy.parent) / "outside.bin"
    shutil.copyfile(copy / WEIGHTS, outside)
    location = {"up one": "../outside.bin", "up two": "../../outside.bin", "absolute": str(outside)}[where]
    change_graph(piece_file(copy, piece), point_to(location=location))
    rehash(copy)
    refused(copy, f"{piece}.onnx", repr(location))
    reseal(copy)  # which lists it, too
    refused(copy, "leaves the bundle")


@pytest.mark.parametrize(
    "location", ["weights/../../../outside.bin", "weights/../weights/fp32.safetensors", "/", "", "."]
)
def test_a_path_that_only_a_file_system_makes_sense_of_is_refused(copy: Path, location: str):
    shutil.copyfile(copy / WEIGHTS, copy.parent / "outside.bin")
    change_graph(piece_file(copy, "layer_02"), point_to(location=location))
    rehash(copy)
    refused(copy, "layer_02.onnx", repr(location))


def test_weights_behind_a_link_that_leads_out_are_refused(copy: Path):
    outside = copy.parent / "outside.bin"
    (copy / "model" / "layer_02.bin").symlink_to(outside)
    change_piece(copy, "layer_02", keep_outside("layer_02.bin", outside))
    refused(copy, "layer_02.bin")


def test_weights_in_an_unlisted_file_are_refused(copy: Path):
    change_piece(copy, "layer_02", keep_outside("layer_02.bin", copy / "model" / "layer_02.bin"))
    read_bundle(copy)
    change_manifest(copy, lambda plain: plain["files"].pop("model/layer_02.bin"))
    refused(copy, "layer_02.onnx", "layer_02.bin")


@pytest.mark.parametrize("location", ["layer_02.bin", "weights/layer_02.bin", "./layer_02.bin"])
def test_listed_weights_beside_a_piece_are_read_and_used(copy: Path, bundle: Path, location: str):
    file = copy / "model" / location
    change_piece(copy, "layer_02", keep_outside(location, file))
    assert "model/" + location.removeprefix("./") in read_bundle(copy).manifest.files
    text = "a good film with a bad plot"
    with Predictor.load(copy, gate_threshold=-1e9) as ours, Predictor.load(bundle, gate_threshold=-1e9) as theirs:
        assert ours(text) == theirs(text)


@pytest.mark.parametrize("name", ["model/head.ort", "model/head.xml", "model/head", "model/head.onnx.model"])
def test_a_graph_of_another_name_is_refused(copy: Path, name: str):
    """An engine chooses by the name how it reads a file: what it reads as another format, we have not looked into."""
    (copy / "model" / "head.onnx").rename(copy / name)

    def change(plain):
        for files in (plain["pieces"], plain["engines"][0]["files"]):
            files.update(head=name)
        plain["files"][name] = plain["files"].pop("model/head.onnx")

    change_manifest(copy, change)
    refused(copy, name, "does not end in .onnx")


def test_a_location_that_is_an_address_to_an_engine_is_refused_even_if_there_is_such_a_file(copy: Path):
    location = "*/_ORT_MEM_ADDR_/*"
    (copy / "model" / location).parent.mkdir(parents=True)
    shutil.copyfile(copy / WEIGHTS, copy / "model" / location)
    change_graph(piece_file(copy, "layer_02"), point_to(location=location))
    reseal(copy)
    refused(copy, "layer_02.onnx", repr(location))


def test_a_whole_graph_that_points_out_of_the_bundle_is_refused(whole_bundle: Path, tmp_path: Path):
    copy = copy_of(whole_bundle, tmp_path)
    shutil.copyfile(copy / WEIGHTS, tmp_path / "outside.bin")
    change_graph(copy / "model" / "model.onnx", point_to(location="../../outside.bin"))
    rehash(copy)
    refused(copy, "model.onnx", "../../outside.bin")


def test_a_piece_that_is_no_onnx_file_is_refused(copy: Path):
    (copy / FILES[0]).write_bytes(b"no model at all")
    rehash(copy)
    refused(copy, FILES[0], "ONNX")


@pytest.mark.parametrize("damage", ["offset", "length", "weights cut off"])
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_a_graph_that_points_past_the_end_of_its_weights_is_an_engine_error(
    bundle: Path, openvino_bundle: Path, tmp_path: Path, engine: str, damage: str
):
    """Whoever writes the digests anew gets past them; no engine may read what lies behind a file."""
    copy = copy_of(bundle if engine == "ort" else openvino_bundle, tmp_path)
    size = (copy / WEIGHTS).stat().st_size
    if damage == "weights cut off":
        os.truncate(copy / WEIGHTS, 2000)
    else:
        graphs = [file for file in (copy / "model").glob("*.onnx") if read_graph(file).locations]
        for file in graphs:
            change_graph(file, point_to(**{damage: str(size)}))
    reseal(copy)
    read_bundle(copy)
    with pytest.raises(EngineError, match=r"\.onnx: (onnxruntime|openvino) .* refuses it") as error:
        Predictor.load(copy, engine=engine)
    assert "\n" not in str(error.value)


def test_an_engine_that_reads_the_weights_itself_refuses_those_that_were_cut_off(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, place in ON_HOST.items():
        monkeypatch.setitem(ENGINES, name, place)
    copy = copy_of(bundle, tmp_path)
    build(copy, engine="torch-host")
    assert engine_class("torch-host").reads == "weights"
    os.truncate(copy / WEIGHTS, (copy / WEIGHTS).stat().st_size - 4)
    refused(copy, WEIGHTS)
    reseal(copy)
    with pytest.raises(EngineError, match=r"fp32\.safetensors: torch .* refuses it") as error:
        Predictor.load(copy, engine="torch-host")
    assert "\n" not in str(error.value)
