"""Every tensor of a bundle lies once, under the name of the model's parameter."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.numpy import load_file

from hadskip_export import build, validate
from hadskip_export.exporters.onnx import CONSTANTS
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.weights import (
    OwnTensors,
    Place,
    free_name,
    place_graph,
    place_of,
    point,
    read_places,
    rows_of,
    write_tensors,
)
from hadskip_export.exporters.write import write_bundle
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.runtime import read_bundle
from hadskip_export.runtime.manifest import ABOUT
from hadskip_export.support.errors import EngineError
from tests.conftest import STATIC_ROUTE, make_source
from tests.exporters.changing import CUTS, WEIGHTS, copy_of, initializers

SMALL = 1024


# What the file of weights has


def expected(classifier, route=None, prefix: str = "") -> dict[str, np.ndarray]:
    """Our modules' own weights; of the last layer that runs query apart from key and value."""
    layers, found = route or range(1, len(classifier.layers) + 1), {}
    for name, value in classifier.state_dict().items():
        room, *rest = name.split(".")
        if room == "layers" and int(rest[0]) + 1 not in layers:
            continue
        if room == "layers" and int(rest[0]) + 1 == max(layers) and rest[1] == "query_key_value":
            size = classifier.config.hidden_size
            start = f"{prefix}layers.{rest[0]}."
            found[f"{start}query.{rest[2]}"] = value[:size]
            found[f"{start}key_value.{rest[2]}"] = value[size:]
        else:
            found[f"{prefix}{name}"] = value
    return {name: value.numpy() for name, value in found.items()}


def gates_of(gates) -> dict[str, np.ndarray]:
    """All gates' hidden layers as one matrix, each margin from its own part of them."""
    width = gates[0].hidden.out_features
    margins = torch.zeros(len(gates), len(gates) * width)
    for index, gate in enumerate(gates):
        margins[index, index * width : (index + 1) * width] = gate.logits.weight[0] - gate.logits.weight[1]
    return {
        "gates.hidden.weight": torch.cat([gate.hidden.weight for gate in gates]).detach().numpy(),
        "gates.hidden.bias": torch.cat([gate.hidden.bias for gate in gates]).detach().numpy(),
        "gates.margins.weight": margins.detach().numpy(),
        "gates.margins.bias": torch.stack([g.logits.bias[0] - g.logits.bias[1] for g in gates]).detach().numpy(),
    }


def assert_is_exactly(bundle: Path, wanted: dict[str, np.ndarray]) -> dict[str, str]:
    """Compares and returns the other metadata."""
    with safe_open(bundle / WEIGHTS, "np") as file:
        about = json.loads(file.metadata()[ABOUT])
    transposed, found = about.pop("transposed").split(), load_file(bundle / WEIGHTS)
    assert {name for name in found if not name.startswith(f"{CONSTANTS}.")} == set(wanted)
    assert transposed
    for name, value in wanted.items():
        room, kind = name.split(".")[-2:]
        got = found[name].T if kind == "weight" and room in transposed else found[name]
        np.testing.assert_array_equal(got, value, err_msg=name)
    return about


def test_it_has_exactly_the_model_s_parameters_by_their_names(bundle: Path, source):
    wanted = expected(source.model.classifier) | expected(source.full, prefix="full.") | gates_of(source.model.gates)
    about = assert_is_exactly(bundle, wanted)
    config = source.config
    assert float(about.pop("eps")) == config.layer_norm_eps
    said = {"num_layers": "4", "num_heads": "4", "activation": "gelu", "family": "bert", "segments": "yes"}
    assert about == said


def test_of_a_fixed_route_it_has_the_layers_on_it_and_no_gates(static_bundle: Path, static_source):
    student = expected(static_source.model.classifier, STATIC_ROUTE)
    assert_is_exactly(static_bundle, student | expected(static_source.full, prefix="full."))


def test_every_tensor_starts_where_an_engine_may_map_it(bundle: Path):
    """A float's own alignment at least."""
    assert {stored.place.offset % 4 for stored in read_places(bundle, WEIGHTS).values()} == {0}


# Each tensor once


@pytest.fixture(scope="module")
def every_cut(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every cut of ONNX Runtime and OpenVINO in fp32, and full BERT."""
    out = copy_of(bundle, tmp_path_factory.mktemp("every_cut"))
    for engine in ("ort", "openvino"):
        for cut in CUTS:
            assert build(out, engine=engine, cut=cut).parity == "passed"
    assert len(read_bundle(out).manifest.engines) == 6
    return out


@pytest.fixture(scope="module")
def every_precision(every_cut: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those, and every cut in int8, and of ONNX Runtime for GPUs in fp16."""
    out = copy_of(every_cut, tmp_path_factory.mktemp("every_precision"))
    for cut in CUTS:
        for engine in ("ort", "openvino"):
            build(out, engine=engine, precision="int8", cut=cut)
        build(out, engine="ort-cuda", precision="fp16", cut=cut)
    return out


def contents(bundle: Path) -> list[tuple[str, str, int]]:
    """(digest, file and name, bytes) of every tensor in the files of weights."""
    found = []
    for file in sorted((bundle / "model" / "weights").iterdir()):
        for name, array in load_file(file).items():
            about = f"{array.dtype} {array.shape}".encode()
            found.append((hashlib.sha256(about + array.tobytes()).hexdigest(), f"{file.name} {name}", array.nbytes))
    return found


@pytest.mark.parametrize("what", ["every_cut", pytest.param("every_precision", marks=pytest.mark.slow)])
def test_no_tensor_lies_in_a_graph_and_none_lies_twice(request: pytest.FixtureRequest, what: str):
    bundle = request.getfixturevalue(what)
    graphs = list((bundle / "model").glob("*.onnx"))
    assert len(graphs) > 15
    for file in graphs:
        for tensor in initializers(onnx.load(file, load_external_data=False).graph):
            size = numpy_helper.to_array(tensor, base_dir=str(file.parent)).nbytes
            assert tensor.external_data or size < SMALL, (file.name, tensor.name)
    seen: dict[str, str] = {}
    for digest, name, size in contents(bundle):
        if size > SMALL:
            assert digest not in seen, (seen[digest], name)
            seen[digest] = name


def test_all_cuts_of_fp32_share_one_file(every_cut: Path):
    assert [file.name for file in (every_cut / "model" / "weights").iterdir()] == ["fp32.safetensors"]
    held = sum(array.nbytes for array in load_file(every_cut / WEIGHTS).values())
    graphs = [file.stat().st_size for file in (every_cut / "model").glob("*.onnx")]
    header = 200 * len(load_file(every_cut / WEIGHTS))
    assert (every_cut / WEIGHTS).stat().st_size < held + header
    assert max(graphs) < 60_000  # of names and operators, as many as a graph of any width has


def test_weights_that_are_wide_are_not_copied_into_fused_graphs(model_folder: Path, tmp_path: Path):
    """The gates' last layer as well, of which a layer takes a part."""
    source = make_source(model_folder, tmp_path)
    wide = GatedClassifier(source.model.classifier, gate_width=64).eval()
    write_bundle(replace(source, model=wide), tmp_path / "bundle", EnginePlan("ort", "fp32", "layers"))
    for file in (tmp_path / "bundle" / "model").glob("*.onnx"):
        for tensor in initializers(onnx.load(file, load_external_data=False).graph):
            assert tensor.external_data or len(tensor.raw_data) < SMALL, (file.name, tensor.name)


@pytest.mark.slow
def test_below_fp32_all_cuts_share_one_more_file(every_precision: Path):
    names = {file.name for file in (every_precision / "model" / "weights").iterdir()}
    assert names == {f"{name}.safetensors" for name in ("fp32", "ort-int8", "openvino-int8", "ort-cuda-fp16")}


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_cut_after_cut_adds_what_it_has_of_its_own_and_nothing_else(bundle: Path, tmp_path: Path, engine: str):
    mine, added = copy_of(bundle, tmp_path), {}
    for cut in CUTS:
        before = {file.relative_to(mine / "model").as_posix() for file in (mine / "model").rglob("*.*")}
        build(mine, engine=engine, precision="int8", cut=cut)
        after = {file.relative_to(mine / "model").as_posix() for file in (mine / "model").rglob("*.*")}
        added[cut] = after - before
    tag = f"{engine}-int8"
    layers = {f"layer_0{number}.{tag}.onnx" for number in range(1, 5)}
    assert added["gates"] == {*layers, f"full.{tag}.onnx", f"weights/{tag}.safetensors"}
    assert added["layers"] == {f"layer_0{number}_gates.{tag}.onnx" for number in range(1, 4)}
    assert added["whole"] == (
        {"model_int8.onnx"} if engine == "ort" else {f"whole.{tag}.onnx", f"whole_alone.{tag}.onnx"}
    )


# Files of tensors


def test_what_is_written_is_found_in_its_place(tmp_path: Path):
    random = np.random.default_rng(0)
    arrays = {
        "a.weight": random.normal(size=(3, 5)).astype(np.float32),
        "b": random.integers(-9, 9, (7,)).astype(np.int8),
        "c.d": random.normal(size=(2, 2, 2)).astype(np.float16),
        "e": random.normal(size=(4, 6)).astype(np.float32).T,  # not contiguous
        "f": random.integers(0, 9, (1, 3)).astype(np.uint8),
    }
    name = write_tensors(tmp_path, "mine", arrays, {"about": "it"})
    assert name == "model/weights/mine.safetensors"
    content, found = (tmp_path / name).read_bytes(), read_places(tmp_path, name)
    assert set(found) == set(arrays)
    for key, stored in found.items():
        assert stored.place.location == "weights/mine.safetensors"
        raw = content[stored.place.offset : stored.place.offset + stored.place.length]
        assert raw == arrays[key].tobytes() and stored.dtype == arrays[key].dtype and stored.shape == arrays[key].shape


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path):
    names = [write_tensors(tmp_path, "mine", {"a": np.full(3, number, np.float32)}, {}) for number in range(3)]
    assert [Path(name).stem for name in names] == ["mine", "mine-2", "mine-3"]
    assert [load_file(tmp_path / name)["a"][0] for name in names] == [0, 1, 2]
    assert free_name(tmp_path / "model" / "weights", "other", ".safetensors").name == "other.safetensors"


def test_others_may_read_it(tmp_path: Path):
    """The library writes for its owner alone."""
    file, plain = tmp_path / write_tensors(tmp_path, "mine", {"a": np.zeros(3, np.float32)}, {}), tmp_path / "plain"
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode


def test_a_graph_of_the_same_content_is_taken_as_it_is_and_no_other_is_written_over(tmp_path: Path):
    def graph(value: float) -> onnx.ModelProto:
        tensor = numpy_helper.from_array(np.float32([value]), "t")
        return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))

    assert [place_graph(tmp_path, graph(value), "layer") for value in (1, 1, 2)] == [
        "model/layer.onnx", "model/layer.onnx", "model/layer-2.onnx",
    ]  # fmt: skip
    assert onnx.load(tmp_path / "model" / "layer.onnx") == graph(1)


# Tensors of graphs


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("rows", [slice(2, 5), slice(3, None), slice(0, 0)])
def test_rows_of_a_tensor_are_those_of_numpy(tmp_path: Path, rows: slice, outside: bool):
    array = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    tensor = numpy_helper.from_array(array, "whole")
    if outside:
        name = write_tensors(tmp_path, "mine", {"first": array[:2] * 2, "whole": array}, {})
        place = read_places(tmp_path, name)["whole"].place
        point(tensor, place)
        assert not tensor.raw_data and place_of(tensor) == place
    (tmp_path / "model").mkdir(exist_ok=True)
    part = rows_of(tensor, rows, "part", tmp_path)
    assert part.name == "part" and bool(part.external_data) == outside
    if array[rows].size:  # onnx cannot read a part of no bytes from a file
        np.testing.assert_array_equal(numpy_helper.to_array(part, base_dir=str(tmp_path / "model")), array[rows])
    assert list(part.dims) == list(array[rows].shape)


def test_a_part_of_a_place_lies_in_it():
    assert Place("f", 100, 50).part(10, 5) == Place("f", 110, 5)


def model_of(**tensors: np.ndarray) -> onnx.ModelProto:
    made = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], made))


def read(model: onnx.ModelProto, bundle: Path) -> dict[str, np.ndarray]:
    base = str(bundle / "model")
    return {tensor.name: numpy_helper.to_array(tensor, base_dir=base) for tensor in model.graph.initializer}


def test_own_tensors_are_taken_once_and_what_the_bundle_has_is_only_pointed_to(tmp_path: Path):
    random = np.random.default_rng(0)
    known, new, other = (random.normal(size=(30, 30)).astype(np.float32) for _ in range(3))
    small = np.ones(4, np.float32)
    write_tensors(tmp_path, "fp32", {"known": known}, {})
    own = OwnTensors(tmp_path, "mine")
    models = [model_of(k=known, n=new, s=small), model_of(n=new, o=other, halves=new.astype(np.float16))]
    expected = [read(model, tmp_path) for model in models]
    for number, model in enumerate(models):
        own.take(model, f"layer_0{number + 1}")
    own.write()
    for model, wanted in zip(models, expected, strict=True):
        found = read(model, tmp_path)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
        assert all(bool(tensor.external_data) == (tensor.name != "s") for tensor in model.graph.initializer)
    mine = load_file(tmp_path / "model" / "weights" / "mine.safetensors")
    assert set(mine) == {"layer_01.n", "layer_02.o", "layer_02.halves"}
    again = OwnTensors(tmp_path, "mine")  # as for another cut: there is nothing to write
    model = model_of(n=new, o=other)
    again.take(model, "layer_01")
    again.write()
    np.testing.assert_array_equal(read(model, tmp_path)["o"], other)
    assert len(list((tmp_path / "model" / "weights").iterdir())) == 2


def test_one_content_in_two_shapes_is_two_tensors(tmp_path: Path):
    own, array = OwnTensors(tmp_path, "mine"), np.arange(400, dtype=np.float32)
    model = model_of(flat=array, square=array.reshape(20, 20))
    own.take(model, "layer_01")
    own.write()
    assert {name: one.shape for name, one in read(model, tmp_path).items()} == {"flat": (400,), "square": (20, 20)}


def test_tensors_of_branches_are_taken_too(tmp_path: Path):
    array = np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32)
    inside = onnx.helper.make_graph([], "then", [], [], [numpy_helper.from_array(array, "deep")])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inside, else_branch=inside)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    own = OwnTensors(tmp_path, "mine")
    own.take(model, "whole")
    own.write()
    for tensor in initializers(model.graph):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor, base_dir=str(tmp_path / "model")), array)
        assert tensor.external_data


def test_a_tensor_of_another_type_is_refused_by_name(tmp_path: Path):
    with pytest.raises(EngineError, match="layer_01: t is float64, which a bundle's weights have no room for"):
        OwnTensors(tmp_path, "mine").take(model_of(t=np.zeros(999)), "layer_01")


def test_a_bundle_that_was_moved_is_as_good(every_cut: Path, tmp_path: Path):
    moved = Path(shutil.copytree(every_cut, tmp_path / "elsewhere"))
    for cut in CUTS:
        assert validate(moved, engine="openvino", cut=cut).passed
