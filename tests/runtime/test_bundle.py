"""A bundle is read whole and sound, or refused in one line that names the file."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from hadskip_export.runtime import Predictor
from hadskip_export.runtime import bundle as bundle_module
from hadskip_export.runtime.bundle import DIGEST, MANIFEST, HeldOut, new_bundle, read_bundle, seal
from hadskip_export.support.errors import BundleError, HadskipError
from tests.runtime.editing import Refusal, change_manifest, change_piece, copy_of, outcome, reseal, write_manifest


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return copy_of(bundle, tmp_path)


def refused(bundle: Path, *names: str) -> str:
    """Checks that the bundle is refused in one line that has all of `names`; returns the line."""
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    message = str(caught.value)
    assert "\n" not in message
    for name in (str(bundle), *names):
        assert name in message
    return message


# Damage


def test_a_sound_copy_is_read(copy: Path, bundle: Path):
    assert read_bundle(copy).manifest == read_bundle(bundle).manifest


@pytest.mark.parametrize("file", [MANIFEST, DIGEST])
def test_without_manifest_or_digest_it_is_no_bundle(copy: Path, file: str):
    (copy / file).unlink()
    refused(copy, "not a bundle", file)


@pytest.mark.parametrize("what", ["nothing", "empty folder", "file"])
def test_what_is_no_bundle_is_refused(tmp_path: Path, what: str):
    path = tmp_path / "bundle"
    if what == "empty folder":
        path.mkdir()
    elif what == "file":
        path.write_text("a file")
    refused(path, "not a bundle")


def test_an_edited_manifest_is_refused(copy: Path):
    manifest = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(manifest.replace('"threshold": 0.0', '"threshold": 9.0'))
    assert manifest != (copy / MANIFEST).read_text()
    refused(copy, MANIFEST, DIGEST)


@pytest.mark.parametrize("digest", [b"", b"0" * 64, b"\xff\xfe\x00 not a text", "№".encode()])
def test_an_edited_digest_is_refused(copy: Path, digest: bytes):
    (copy / DIGEST).write_bytes(digest)
    refused(copy, MANIFEST)


FILES = ["pieces/layer_02.onnx", "tokenizer/tokenizer.json", "golden/outputs.npz", "engines/ort-fp32/report.json"]


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


# Paths that leave the bundle


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../secret", "pieces/../../secret", "C:\\secret", "..\\secret", "C:secret"]
)
def test_a_listed_path_that_leaves_the_bundle_is_refused(copy: Path, name: str):
    (copy.parent / "secret").write_text("secret")
    change_manifest(copy, lambda plain: plain["files"].update({name: plain["files"][FILES[0]]}))
    assert "leaves the bundle" in refused(copy, repr(name))


@pytest.mark.parametrize("link_to", ["the file", "its folder"])
def test_a_link_that_leads_out_of_the_bundle_is_refused(copy: Path, link_to: str):
    outside = copy.parent / "outside"
    inside = copy / "pieces" if link_to == "its folder" else copy / FILES[0]
    inside.rename(outside)
    inside.symlink_to(outside)
    refused(copy, "leaves the bundle")


def test_a_bundle_that_is_itself_a_link_is_read(copy: Path):
    link = copy.parent / "current"
    link.symlink_to(copy)
    assert read_bundle(link).manifest == read_bundle(copy).manifest


def test_a_link_to_itself_is_refused(copy: Path):
    (copy / FILES[0]).unlink()
    (copy / FILES[0]).symlink_to(copy / FILES[0])
    refused(copy)


@pytest.mark.parametrize("name", ["pieces/\0", "x" * 5000, "", "."])
def test_a_listed_path_no_file_can_have_is_refused(copy: Path, name: str):
    change_manifest(copy, lambda plain: plain["files"].update({name: plain["files"][FILES[0]]}))
    refused(copy)


@pytest.mark.parametrize("name", ["/etc/hostname", "../../etc/hostname", "pieces/unlisted.onnx"])
def test_an_engine_file_that_is_not_listed_is_refused(copy: Path, name: str):
    (copy / "pieces" / "unlisted.onnx").write_bytes((copy / FILES[0]).read_bytes())
    change_manifest(copy, lambda plain: plain["engines"][0]["files"].update(head=name))
    refused(copy, name)


def test_a_tokenizer_that_is_not_listed_is_refused(copy: Path):
    change_manifest(copy, lambda plain: plain.update(tokenizer="tokenizer/other.json"))
    refused(copy, "tokenizer/other.json")


# External data inside ONNX files


def keep_outside(location: str, file: Path):
    """Moves the matrices of a model to `file` and has the model call that file `location`."""

    def change(model: onnx.ModelProto) -> None:
        content = b""
        for weight in (w for w in model.graph.initializer if len(w.dims) == 2):
            raw = numpy_helper.to_array(weight).tobytes()
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            for key, value in {"location": location, "offset": len(content), "length": len(raw)}.items():
                weight.external_data.add(key=key, value=str(value))
            content += raw
        assert content
        file.write_bytes(content)

    return change


@pytest.mark.parametrize("where", ["up one", "up two", "absolute"])
def test_weights_outside_the_bundle_are_refused(copy: Path, where: str):
    """Up one folder is still inside the bundle; but ONNX knows no folder above the model's own, so neither do we."""
    outside = (copy if where == "up one" else copy.parent) / "outside.bin"
    location = {"up one": "../outside.bin", "up two": "../../outside.bin", "absolute": str(outside)}[where]
    change_piece(copy, "layer_02", keep_outside(location, outside))
    refused(copy, "layer_02.onnx", location)


def test_weights_behind_a_link_that_leads_out_are_refused(copy: Path):
    outside = copy.parent / "outside.bin"
    (copy / "pieces" / "layer_02.bin").symlink_to(outside)
    change_piece(copy, "layer_02", keep_outside("layer_02.bin", outside))
    refused(copy, "layer_02.bin")


def test_weights_in_an_unlisted_file_are_refused(copy: Path):
    change_piece(copy, "layer_02", keep_outside("layer_02.bin", copy / "pieces" / "layer_02.bin"))
    change_manifest(copy, lambda plain: plain["files"].pop("pieces/layer_02.bin"))
    refused(copy, "layer_02.onnx", "layer_02.bin")


@pytest.mark.parametrize("location", ["layer_02.bin", "weights/layer_02.bin", "./layer_02.bin"])
def test_listed_weights_beside_a_piece_are_read_and_used(copy: Path, bundle: Path, location: str):
    file = copy / "pieces" / location
    file.parent.mkdir(exist_ok=True)
    change_piece(copy, "layer_02", keep_outside(location, file))
    assert "pieces/" + location.removeprefix("./") in read_bundle(copy).manifest.files
    text = "a good film with a bad plot"
    with Predictor.load(copy, gate_threshold=-1e9) as ours, Predictor.load(bundle, gate_threshold=-1e9) as theirs:
        assert ours(text) == theirs(text)


def test_every_file_an_engine_runs_is_looked_into_whatever_its_name(copy: Path):
    """The engine reads the file the manifest names: a name that does not end in .onnx must not spare it the check."""
    change_piece(copy, "head", keep_outside("../../outside.bin", copy.parent / "outside.bin"))
    (copy / "pieces" / "head.onnx").rename(copy / "pieces" / "head.model")
    for files in (lambda plain: plain["pieces"], lambda plain: plain["engines"][0]["files"]):
        change_manifest(copy, lambda plain, files=files: files(plain).update(head="pieces/head.model"))
    reseal(copy)
    refused(copy, "head.model", "outside.bin")


def test_a_resealed_piece_that_is_no_onnx_file_is_refused(copy: Path):
    (copy / FILES[0]).write_bytes(b"no model at all")
    reseal(copy)
    refused(copy, FILES[0], "ONNX")


# Manifests that fit their digest and are wrong all the same


@pytest.mark.parametrize("version", [2, 0, "1", None, 1.5])
def test_another_format_is_refused(copy: Path, version):
    change_manifest(copy, lambda plain: plain.update(format=version, new_field={"a": 1}))
    refused(copy, MANIFEST, f"format {version}")


def test_the_fields_of_a_newer_format_do_not_matter(copy: Path):
    write_manifest(copy, b'{"format": 2}')
    refused(copy, "upgrade")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b"not JSON", b'{"format": 1}', b'{"format": 1, "task": "\xff"}']
)
def test_a_manifest_that_is_none_is_refused(copy: Path, content: bytes):
    write_manifest(copy, content)
    refused(copy, MANIFEST)


def set_value(*path, value):
    def change(plain):
        for key in path[:-1]:
            plain = plain[key]
        plain[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_value("model", value="bert"),
        set_value("model", "layers", value="four"),
        set_value("model", "labels", value=["one"]),
        set_value("model", "labels", value=["one", "one"]),
        set_value("engines", value=[]),
        set_value("engines", value=None),
        set_value("engines", 0, "gates", value="sideways"),
        set_value("engines", 0, "parity", value="perfect"),
        set_value("router", "kind", value="dice"),
        set_value("router", "threshold", value="high"),
        set_value("files", FILES[0], value={"size": "big", "sha256": ""}),
        lambda plain: plain.pop("router"),
    ],
)
def test_values_of_the_wrong_type_are_refused(copy: Path, change):
    change_manifest(copy, change)
    refused(copy, MANIFEST)


@pytest.mark.parametrize("piece", ["embeddings", "layer_03", "gate_01", "head"])
def test_an_engine_that_lacks_a_piece_is_refused(copy: Path, piece: str):
    change_manifest(copy, lambda plain: plain["engines"][0]["files"].pop(piece))
    with pytest.raises(BundleError, match=piece):
        Predictor.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        set_value("model", "layers", value=5),
        set_value("model", "layers", value=-1),
        set_value("model", "max_length", value=0),
        set_value("model", "max_length", value=-5),
        set_value("model", "labels", value=["one", "two", "three"]),
        set_value("model", "inputs", value=["input_ids", "attention_mask", "word_ids"]),
    ],
    ids=["more layers", "negative layers", "no tokens", "negative tokens", "more labels", "unknown input"],
)
def test_a_manifest_that_contradicts_the_pieces_is_refused(copy: Path, change):
    change_manifest(copy, change)
    with pytest.raises(HadskipError) as caught:
        Predictor.load(copy)("a good film")
    assert "\n" not in str(caught.value)


# Static routes


def route_is(*route: int):
    return set_value("router", "route", value=list(route))


def take_out(piece: str):
    """Of the ONNX pieces and of the engine."""
    return lambda plain: (plain["pieces"].pop(piece), plain["engines"][0]["files"].pop(piece))


def test_a_static_bundle_has_its_route_and_needs_no_other_layer(static_bundle: Path):
    manifest = read_bundle(static_bundle).manifest
    assert (manifest.router.kind, manifest.router.route, manifest.engines[0].gates) == ("static", (1, 3), "none")
    assert manifest.reachable_layers == [0, 2]
    assert list(manifest.pieces) == ["embeddings", "layer_01", "layer_03", "head", "full"]


def test_a_bundle_of_gates_has_no_route_and_may_run_any_layer(bundle: Path):
    manifest = read_bundle(bundle).manifest
    assert manifest.router.route is None
    assert manifest.reachable_layers == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "change",
    [
        *(route_is(*route) for route in [(), (0, 1), (1, 5), (-1, 1), (3, 1), (1, 1), (1, 3, 3)]),
        *(set_value("router", "route", value=value) for value in (None, 1, "1 3", ["1"], [1.5], [True, 3])),
        set_value("router", "kind", value="gates"),
        lambda plain: plain["router"].pop("route"),
        set_value("engines", 0, "gates", value="separate"),
        set_value("engines", 0, "gates", value="lookahead"),
    ],
)
def test_a_static_manifest_that_makes_no_sense_is_refused(static_bundle: Path, tmp_path: Path, change):
    copy = copy_of(static_bundle, tmp_path)
    change_manifest(copy, change)
    refused(copy, MANIFEST)


@pytest.mark.parametrize(
    ("change", "name"),
    [(route_is(1, 2, 3), "layer_02"), (take_out("layer_03"), "layer_03"), (take_out("head"), "head")],
    ids=["a layer that was never built", "a layer on the route", "head"],
)
def test_a_static_bundle_that_lacks_a_piece_is_refused(static_bundle: Path, tmp_path: Path, change, name: str):
    copy = copy_of(static_bundle, tmp_path)
    change_manifest(copy, change)
    refused(copy, MANIFEST, name)


@pytest.mark.parametrize(
    "change",
    [route_is(1, 3), set_value("router", "kind", value="static"), set_value("engines", 0, "gates", value="none")],
)
def test_gates_with_something_of_a_static_route_are_refused(copy: Path, change):
    change_manifest(copy, change)
    refused(copy, MANIFEST)


# Anything at all


def leaves(value, path=()):
    """Paths of everything in JSON data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from leaves(part, (*path, key))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_a_manifest_says_reading_it_gives_a_bundle_or_a_bundle_error(
    bundle, static_bundle, tmp_path_factory, data
):
    bundle = data.draw(st.sampled_from([bundle, static_bundle]))
    plain = json.loads((bundle / MANIFEST).read_bytes())
    path = data.draw(st.sampled_from([path for path in leaves(plain) if path]))
    set_value(*path, value=data.draw(json_values))(plain)
    folder = tmp_path_factory.mktemp("fuzzed")
    ours = shutil.ignore_patterns(MANIFEST, DIGEST)
    shutil.copytree(bundle, folder, copy_function=os.link, ignore=ours, dirs_exist_ok=True)  # only the manifest is new
    write_manifest(folder, json.dumps(plain).encode())
    found = outcome(read_bundle, folder)
    assert isinstance(found, Refusal) or found.manifest.format == 1


def test_an_error_is_one_line_whatever_it_quotes(copy: Path):
    change_manifest(copy, lambda plain: plain["engines"][0]["files"].update(head="pieces/a\nb"))
    refused(copy, "pieces/a b")


# Writing


def test_what_is_sealed_is_what_is_read(bundle: Path, tmp_path: Path):
    manifest = read_bundle(bundle).manifest
    held_out = HeldOut(1.5, (((1, 2), 0.75), ((), 0.25)), (0.25, 0.0, 0.75), ((-1.0, 2.0), (0.0, 0.5)), (0.1, 0.9))
    folder = copy_of(bundle, tmp_path)
    sealed = seal(folder, replace(manifest, held_out=held_out, task="Überprüfung 🙂"))
    assert read_bundle(folder).manifest == sealed
    assert sealed.held_out == held_out
    on_disk = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert set(sealed.files) == on_disk - {MANIFEST, DIGEST}


def test_every_file_in_a_bundle_is_listed_whatever_its_name(copy: Path):
    """Only the two files at the top are not listed; a file of that name further down is like any other."""
    (copy / "engines" / "ort-fp32" / MANIFEST).write_text("{}")
    reseal(copy)
    assert f"engines/ort-fp32/{MANIFEST}" in read_bundle(copy).manifest.files


@settings(max_examples=25, deadline=None)
@given(content=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.binary(max_size=30), min_size=1, max_size=4))
def test_any_files_survive_seal_and_read(bundle, tmp_path_factory, content: dict[str, bytes]):
    folder = copy_of(bundle, tmp_path_factory.mktemp("sealed"))
    for name, value in content.items():
        (folder / name).write_bytes(value)
    reseal(folder)
    files = read_bundle(folder).manifest.files
    assert {name: files[name].size for name in content} == {name: len(value) for name, value in content.items()}


def test_a_new_bundle_takes_its_name_at_the_end(tmp_path: Path):
    out = tmp_path / "deep" / "bundle"
    with new_bundle(out) as folder:
        (folder / "file").write_text("content")
        assert not out.exists()
    assert (out / "file").read_text() == "content"
    assert list(out.parent.iterdir()) == [out]


def test_a_new_bundle_may_take_the_place_of_an_empty_folder(tmp_path: Path):
    out = tmp_path / "bundle"
    out.mkdir()
    with new_bundle(out) as folder:
        (folder / "file").write_text("content")
    assert (out / "file").read_text() == "content"


def test_a_new_bundle_takes_the_place_of_what_a_link_leads_to(tmp_path: Path):
    (tmp_path / "real").mkdir()
    out = tmp_path / "link"
    out.symlink_to(tmp_path / "real")
    with new_bundle(out) as folder:
        (folder / "file").write_text("content")
    assert out.is_symlink() and (tmp_path / "real" / "file").read_text() == "content"


@pytest.mark.parametrize("where", ["the current folder", "a mount"])
def test_what_nothing_can_take_the_place_of_is_refused_before_any_work(tmp_path: Path, monkeypatch, where: str):
    out = tmp_path / "out"
    out.mkdir()
    if where == "a mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == out)
    else:
        monkeypatch.chdir(out)
    with (
        pytest.raises(BundleError, match=r"a mount or .* the current folder; name one in it"),
        new_bundle(out if where == "a mount" else Path(".")),
    ):
        pytest.fail("the block must not run")
    with new_bundle(out / "bundle") as folder:
        (folder / "file").write_text("content")
    assert (out / "bundle" / "file").is_file()


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_new_bundle_overwrites_nothing(tmp_path: Path, what: str):
    out = tmp_path / "bundle"
    mine = out / "mine" if what == "folder" else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(BundleError, match="exists already"), new_bundle(out):
        pytest.fail("the block must not run")
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_new_bundle_that_fails_leaves_nothing(tmp_path: Path, error):
    def stop() -> None:
        with new_bundle(tmp_path / "bundle") as folder:
            (folder / "file").write_text("content")
            raise error

    with pytest.raises(error):
        stop()
    assert list(tmp_path.iterdir()) == []


def test_two_builds_of_one_name_do_not_mix(tmp_path: Path):
    out = tmp_path / "bundle"

    def build_twice() -> None:
        with new_bundle(out) as first:
            (first / "file").write_text("first")
            with new_bundle(out) as second:
                (second / "file").write_text("second")

    with pytest.raises((BundleError, OSError)):
        build_twice()
    assert (out / "file").read_text() == "second"
    assert list(tmp_path.iterdir()) == [out]


def test_an_engine_is_found_by_either_of_its_names(bundle: Path):
    opened = read_bundle(bundle)
    assert opened.engine() == opened.engine("ort") == opened.engine("ort-fp32")
    with pytest.raises(BundleError, match="no engine 'trt', only ort-fp32"):
        opened.engine("trt")


def test_an_engine_that_was_built_elsewhere_is_not_replaced_by_one_of_another_name(bundle: Path, monkeypatch):
    """Only by the same one, built for this machine: a GPU's engine must not quietly become the processor's."""
    opened = read_bundle(bundle)
    (ours,) = opened.manifest.engines
    abroad = replace(ours, engine="openvino", chip="another")
    here = replace(abroad, chip="this")
    monkeypatch.setattr(
        bundle_module, "built_elsewhere", lambda engine, versions, chip: "elsewhere" if chip == "another" else None
    )
    for engines, expected in [((abroad, ours), abroad), ((abroad, ours, here), here), ((ours, abroad), ours)]:
        several = replace(opened, manifest=replace(opened.manifest, engines=engines))
        assert several.engine() == expected
        assert several.engine("openvino") == (here if here in engines else abroad)


def test_no_pickle_in_a_bundle(bundle: Path):
    with np.load(bundle / "golden" / "outputs.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays)
    for piece in (bundle / "pieces").iterdir():
        assert all(numpy_helper.to_array(w).size for w in onnx.load(piece).graph.initializer)
