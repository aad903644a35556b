"""A bundle is read whole and sound, or refused in one line that names the file. What its files must be like is in
`test_integrity`."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from hadskip_export.exporters.seal import new_bundle, seal
from hadskip_export.routing.points import Point
from hadskip_export.runtime import Predictor
from hadskip_export.runtime import bundle as bundle_module
from hadskip_export.runtime.bundle import DIGEST, MANIFEST, Bundle, read_bundle
from hadskip_export.runtime.manifest import WHOLE, pieces_of
from hadskip_export.support.errors import BundleError, HadskipError
from tests.runtime.editing import (
    Refusal,
    change_manifest,
    copy_of,
    outcome,
    refused,
    reseal,
    set_value,
    write_manifest,
)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return copy_of(bundle, tmp_path)


# Damage


def test_a_sound_copy_is_read(copy: Path, bundle: Path):
    assert read_bundle(copy).manifest == read_bundle(bundle).manifest


@pytest.mark.parametrize("file", [MANIFEST, DIGEST])
def test_without_manifest_or_digest_it_is_no_bundle(copy: Path, file: str):
    (copy / file).unlink()
    refused(copy, "not a bundle", file)


TOLD = {
    "nothing": "no such folder; hadskip-export build RUN --out BUNDLE",
    "empty folder": "an empty folder, without manifest.json; hadskip-export build RUN --out BUNDLE",
    "other files": "a folder of other files, without manifest.json; hadskip-export build RUN --out BUNDLE",
    "file": "a file; give the whole folder",
    "run": "a run; hadskip-export build ",
    "model": "a model folder; teach it to skip layers with hadskip-export train --model ",
}


@pytest.mark.parametrize("what", TOLD)
def test_what_is_no_bundle_is_refused_with_what_it_is(tmp_path: Path, what: str):
    path = tmp_path / "bundle"
    if what == "file":
        path.write_text("a file")
    elif what != "nothing":
        path.mkdir()
    files = {"run": ["recipe.json", "config.json"], "model": ["config.json", "model.safetensors"], "other files": ["a"]}
    for file in files.get(what, []):
        (path / file).write_text("{}")
    refused(path, "not a bundle", TOLD[what])


@pytest.mark.parametrize("part", ["model", "model/weights", "golden", "manifest.json"])
def test_a_part_of_a_bundle_leads_to_the_whole(copy: Path, part: str):
    refused(copy / part, "not a bundle", "the whole folder" if part == "manifest.json" else str(copy))


@pytest.mark.parametrize("path", [None, 5, b"bundle", ["bundle"]], ids=repr)
def test_what_is_no_path_is_no_bundle(path):
    with pytest.raises(BundleError, match="expected the folder of a bundle, got "):
        read_bundle(path)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300], ids=len)
def test_a_place_that_cannot_be_is_no_bundle(path: str):
    with pytest.raises(BundleError, match="cannot be opened") as error:
        read_bundle(path)
    assert "\n" not in str(error.value) and "\0" not in str(error.value)


def test_an_edited_manifest_is_refused(copy: Path):
    manifest = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(manifest.replace('"default_budget": 2.0', '"default_budget": 3.0'))
    assert manifest != (copy / MANIFEST).read_text()
    refused(copy, MANIFEST, DIGEST)


@pytest.mark.parametrize("digest", [b"", b"0" * 64, b"\xff\xfe\x00 not a text", "№".encode()])
def test_an_edited_digest_is_refused(copy: Path, digest: bytes):
    (copy / DIGEST).write_bytes(digest)
    refused(copy, MANIFEST)


# Manifests that fit their digest and are wrong all the same


@pytest.mark.parametrize("version", [3, 0, "2", None, 1.5, [1]])
def test_another_format_is_refused(copy: Path, version):
    change_manifest(copy, lambda plain: plain.update(format=version, new_field={"a": 1}))
    refused(copy, MANIFEST, f"format {version}", "upgrade")


def test_a_format_before_operating_points_is_refused_by_name_with_the_command_that_makes_it_anew(copy: Path):
    """Whatever else it says: none of its fields need be those of today."""
    old = {
        "format": 1,
        "created_by": "hadskip-export 0.1.0",
        "router": {"kind": "gates", "threshold": 0.5, "budget": 2},
    }
    for content in (json.dumps(old).encode(), b'{"format": 1}'):
        write_manifest(copy, content)
        refused(copy, MANIFEST, "format 1", "hadskip-export build RUN --out BUNDLE")
        with pytest.raises(BundleError, match="format 1"):
            Predictor.load(copy)


def test_the_fields_of_a_newer_format_do_not_matter(copy: Path):
    write_manifest(copy, b'{"format": 3}')
    refused(copy, "upgrade")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b"not JSON", b'{"format": 2}', b'{"format": 2, "task": "\xff"}']
)
def test_a_manifest_that_is_none_is_refused(copy: Path, content: bytes):
    write_manifest(copy, content)
    refused(copy, MANIFEST)


@pytest.mark.parametrize(
    "change",
    [
        set_value("model", value="bert"),
        set_value("model", "layers", value="four"),
        set_value("model", "labels", value=["one"]),
        set_value("model", "labels", value=["one", "one"]),
        set_value("engines", value=[]),
        set_value("engines", value=None),
        set_value("engines", 0, "cut", value="sideways"),
        set_value("engines", 0, "parity", value="perfect"),
        set_value("router", "kind", value="dice"),
        set_value("points", value=2.0),
        set_value("points", 0, "thresholds", value="high"),
        set_value("points", 0, "thresholds", 1, value=None),
        set_value("default_budget", value="two"),
        set_value("files", "model/layer_02.onnx", value={"size": "big", "sha256": ""}),
        lambda plain: plain.pop("points"),
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
        *(
            set_value("model", "inputs", value=list(names))
            for names in [
                ("input_ids", "attention_mask", "word_ids"),
                ("input_ids", "attention_mask"),
                ("attention_mask", "input_ids", "token_type_ids"),
                ("input_ids", "attention_mask", "attention_mask"),
                (),
            ]
        ),
    ],
    ids=[
        "more layers",
        "negative layers",
        "no tokens",
        "negative tokens",
        "more labels",
        "unknown input",
        "an input too few",
        "another order",
        "an input twice",
        "no inputs",
    ],
)
def test_a_manifest_that_contradicts_the_pieces_is_refused(copy: Path, change):
    change_manifest(copy, change)
    with pytest.raises(HadskipError) as caught:
        Predictor.load(copy)("a good film")
    assert "\n" not in str(caught.value)


# Operating points


def point(budget: float, *thresholds: float) -> dict:
    return {"budget": budget, "thresholds": list(thresholds), "data": "a test", "mean_layers": budget}


def test_a_bundle_has_its_points_and_which_one_is_the_default(bundle: Path):
    manifest = read_bundle(bundle).manifest
    assert manifest.points == (Point(2.0, (0.0,) * 4, "evaluation", 2.0),)
    assert manifest.default_point is manifest.points[0]


@pytest.mark.parametrize(
    ("points", "default"),
    [
        ([], 2.0),
        ([point(2.0, 0, 0, 0, 0)], 3.0),
        ([point(3.0, 0, 0, 0, 0), point(2.0, 0, 0, 0, 0)], 2.0),
        ([point(2.0, 0, 0, 0, 0), point(2.0, 1, 1, 1, 1)], 2.0),
        ([point(2.0, 0, 0, 0)], 2.0),
        ([point(2.0, 0, 0, 0, 0), point(3.0)], 2.0),
        ([point(2.0, 0, 0, 0, 0, 0)], 2.0),
    ],
    ids=["none", "no default", "descending", "twice", "a gate too few", "no gate", "a gate too many"],
)
def test_points_that_make_no_sense_are_refused(copy: Path, points: list[dict], default: float):
    change_manifest(copy, lambda plain: plain.update(points=points, default_budget=default))
    refused(copy, MANIFEST, "point")


def test_several_points_in_order_are_read(copy: Path):
    points = [point(1.0, 2, 2, 2, 2), point(2.0, 0, 0, 0, 0), point(3.5, -1, -1, -1, -1)]
    change_manifest(copy, lambda plain: plain.update(points=points, default_budget=3.5))
    manifest = read_bundle(copy).manifest
    assert [one.budget for one in manifest.points] == [1.0, 2.0, 3.5]
    assert manifest.default_point.thresholds == (-1,) * 4


# Which pieces a cut needs


def test_every_cut_calls_its_own_pieces(bundle: Path, static_bundle: Path):
    gates, static = (read_bundle(path).manifest for path in (bundle, static_bundle))
    layers = [f"layer_0{number}" for number in range(1, 5)]
    assert pieces_of("gates", gates) == ["embeddings", *layers, *(f"gate_0{n}" for n in range(1, 5)), "head"]
    assert pieces_of("layers", gates) == ["embeddings", *layers, "gates", "head"]
    assert pieces_of("gates", static) == pieces_of("layers", static) == ["embeddings", "layer_01", "layer_03", "head"]
    assert pieces_of("whole", gates) == pieces_of("whole", static) == [WHOLE]


@pytest.mark.parametrize(
    ("which", "piece"),
    [("layers_bundle", "gates"), ("layers_bundle", "layer_02"), ("whole_bundle", "whole"), ("whole_bundle", "gate_02")],
)
def test_an_engine_that_lacks_a_piece_of_its_cut_is_refused(which: str, piece: str, tmp_path: Path, request):
    """A whole one is measured, and checked, piece by piece."""
    copy = copy_of(request.getfixturevalue(which), tmp_path)
    change_manifest(copy, lambda plain: plain["engines"][0]["files"].pop(piece))
    refused(copy, MANIFEST, f"has no {piece}")


def test_a_manifest_without_a_tolerance_for_each_gate_is_refused(copy: Path):
    change_manifest(copy, set_value("engines", 0, "tolerance", "margins", value=[0.001] * 3))
    refused(copy, MANIFEST, "ort-fp32-gates", "tolerance")


# Static routes


def route_is(*route: int):
    return set_value("router", "route", value=list(route))


def take_out(piece: str):
    """Of the ONNX pieces and of the engine."""
    return lambda plain: (plain["pieces"].pop(piece), plain["engines"][0]["files"].pop(piece))


def test_a_static_bundle_has_its_route_and_needs_no_other_layer(static_bundle: Path):
    manifest = read_bundle(static_bundle).manifest
    assert (manifest.router.kind, manifest.router.route) == ("static", (1, 3))
    assert manifest.default_point.thresholds == ()
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
        set_value("points", 0, "thresholds", value=[0.0] * 4),
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
    [route_is(1, 3), set_value("router", "kind", value="static"), set_value("points", 0, "thresholds", value=[])],
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


@pytest.fixture(scope="module")
def copies(bundle: Path, static_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, bytes]]:
    """Bundles of this file's own, with the manifests they came with."""
    made = [copy_of(one, tmp_path_factory.mktemp("fuzzed")) for one in (bundle, static_bundle)]
    return [(one, (one / MANIFEST).read_bytes()) for one in made]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_a_manifest_says_reading_it_gives_a_bundle_or_a_bundle_error(copies, data):
    folder, manifest = data.draw(st.sampled_from(copies))
    plain = json.loads(manifest)
    path = data.draw(st.sampled_from([path for path in leaves(plain) if path]))
    set_value(*path, value=data.draw(json_values))(plain)
    write_manifest(folder, json.dumps(plain).encode())
    found = outcome(read_bundle, folder)
    assert isinstance(found, Refusal) or found.manifest.format == 2


def test_an_error_is_one_line_whatever_it_quotes(copy: Path):
    change_manifest(copy, lambda plain: plain["engines"][0]["files"].update(head="model/a\nb"))
    refused(copy, "model/a b")


# Writing


def test_what_is_sealed_is_what_is_read(bundle: Path, tmp_path: Path):
    manifest = read_bundle(bundle).manifest
    points = (
        Point(0.5, (2.0, 1.5, 1e-9, 3e38), "Daten", 0.25, (((1, 2), 0.75), ((), 0.25)), 0.5, 1.0),
        *manifest.points,
    )
    folder = copy_of(bundle, tmp_path)
    sealed = seal(folder, replace(manifest, points=points, default_budget=0.5, task="Überprüfung 🙂"))
    assert read_bundle(folder).manifest == sealed
    assert sealed.points == points and sealed.default_point is points[0]
    on_disk = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert set(sealed.files) == on_disk - {MANIFEST, DIGEST}


def test_every_file_of_an_engine_is_listed_whatever_its_name(copy: Path):
    """Only the two files at the top are not listed; a file of that name further down is like any other."""
    (copy / "engines" / "ort-fp32-gates" / MANIFEST).write_text("{}")
    reseal(copy)
    assert f"engines/ort-fp32-gates/{MANIFEST}" in read_bundle(copy).manifest.files


@settings(max_examples=25, deadline=None)
@given(content=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.binary(max_size=30), min_size=1, max_size=4))
def test_any_files_survive_seal_and_read(bundle, tmp_path_factory, content: dict[str, bytes]):
    folder = copy_of(bundle, tmp_path_factory.mktemp("sealed"))
    for name, value in content.items():
        (folder / "golden" / name).write_bytes(value)
    reseal(folder)
    files = read_bundle(folder).manifest.files
    sizes = {name: files[f"golden/{name}"].size for name in content}
    assert sizes == {name: len(value) for name, value in content.items()}


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


def test_the_second_of_two_builds_of_one_name_is_refused(tmp_path: Path):
    out = tmp_path / "bundle"
    with new_bundle(out) as first:
        (first / "file").write_text("first")
        with pytest.raises(BundleError, match=f"{out}: another process is writing it"), new_bundle(out):
            pytest.fail("work began")
    assert (out / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]


# Which engine


def engines(bundle: Path, *names: str) -> Bundle:
    """The bundle as if it had just these engines."""
    opened = read_bundle(bundle)
    (ours,) = opened.manifest.engines
    infos = []
    for name in names:
        engine, precision, cut = name.rsplit("-", 2)
        infos.append(replace(ours, engine=engine, precision=precision, cut=cut))
    return replace(opened, manifest=replace(opened.manifest, engines=tuple(infos)))


HAS = [
    "ort-fp32-gates", "ort-cuda-fp16-layers", "ort-int8-gates", "ort-fp32-whole", "openvino-int8-whole",
    "ort-int8-layers",
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, 0),
        ({"name": "ort"}, 0),
        ({"name": "ort-fp32"}, 0),
        ({"name": "ort-fp32-whole"}, 3),
        ({"name": "ort-cuda"}, 1),  # not the engine `ort` in a precision `cuda`
        ({"name": "ort", "precision": "int8"}, 2),
        ({"name": "ort", "precision": "int8", "cut": "layers"}, 5),
        ({"name": "ort-int8", "cut": "layers"}, 5),
        ({"cut": "whole"}, 3),
        ({"precision": "int8"}, 2),
        ({"precision": "int8", "cut": "whole"}, 4),
        ({"name": "openvino"}, 4),
        ({"name": "ort-int8-layers", "precision": "int8", "cut": "layers"}, 5),
    ],
    ids=str,
)
def test_the_first_engine_that_is_as_asked_is_found(bundle: Path, asked: dict, found: int):
    opened = engines(bundle, *HAS)
    assert opened.engine(**asked) is opened.manifest.engines[found]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"name": "trt"}, "engine='trt'"),
        ({"name": "ort-fp32", "precision": "int8"}, "engine='ort-fp32' precision='int8'"),
        ({"name": "ort-fp32-gates", "cut": "whole"}, "engine='ort-fp32-gates' cut='whole'"),
        ({"precision": "bf16"}, "precision='bf16'"),
        ({"name": "openvino", "cut": "layers"}, "engine='openvino' cut='layers'"),
        ({"name": "ort-whole"}, "engine='ort-whole'"),
        ({"name": ""}, "engine=''"),
    ],
    ids=str,
)
def test_an_engine_that_is_not_there_is_refused_with_those_that_are(bundle: Path, asked: dict, named: str):
    message = outcome(lambda: engines(bundle, *HAS).engine(**asked))
    assert isinstance(message, Refusal)
    assert f"no engine with {named}, only {', '.join(HAS)}; hadskip-export build {bundle} adds one" in message


parts = st.tuples(
    st.sampled_from(["ort", "openvino"]), st.sampled_from(["fp32", "int8"]), st.sampled_from(["gates", "whole"])
)


@settings(max_examples=200, deadline=None)
@given(
    has=st.lists(parts, min_size=1, max_size=6, unique=True),
    asked=parts,
    named=st.integers(0, 3),
    by_option=st.sets(st.sampled_from([1, 2])),
)
def test_whoever_is_found_is_the_first_of_those_that_fit(bundle, has, asked, named, by_option):
    """Asked for by as many parts in the name as you like, and by the other two options or not."""
    opened = engines(bundle, *("-".join(one) for one in has))
    options = {("precision", "cut")[part - 1]: asked[part] for part in by_option}
    fitting = [one for one in has if all(one[part] == asked[part] for part in {*range(named), *by_option})]
    found = outcome(lambda: opened.engine("-".join(asked[:named]) or None, **options))
    if fitting:
        assert (found.engine, found.precision, found.cut) == fitting[0]
    else:
        assert isinstance(found, Refusal)


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
    graphs = list((bundle / "model").glob("*.onnx"))
    assert graphs
    for graph in graphs:
        assert all(numpy_helper.to_array(w).size for w in onnx.load(graph).graph.initializer)
