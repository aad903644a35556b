"""Each piece as a file: names, shapes, operators, numbers, and nothing of the machine it was made on."""

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.exporters import onnx as exporter
from hadskip_export.exporters.onnx import OPSET, Template, bound, template_of, tensors_as_stored
from hadskip_export.exporters.pieces import LastLayerPiece, LayerPiece, Part, Piece, cut, cut_full
from hadskip_export.exporters.weights import read_places, write_tensors
from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.support.errors import EngineError
from tests.exporters.changing import initializers, run, saved
from tests.modeling.random_models import CONFIG, random_classifier, random_gated

PIECES = [
    "embeddings",
    *(f"{kind}_{i:02d}" for kind in ("layer", "gate") for i in (1, 2, 3, 4)),
    "gates",
    "head",
]
NAMES = [*PIECES, "full"]
IDS, STATES = ("int64", ["batch", "length"]), ("float32", ["batch", "length", 32])
INPUTS = {
    "embeddings": {"input_ids": IDS, "token_type_ids": IDS},
    "layer": {"hidden_states": STATES, "attention_mask": IDS},
    "gate": {"hidden_states": STATES, "attention_mask": IDS},
    "gates": {"hidden_states": STATES, "attention_mask": IDS},
    "head": {"hidden_states": STATES},
    "full": {"input_ids": IDS, "attention_mask": IDS, "token_type_ids": IDS},
}
OUTPUT = {
    "embeddings": ("hidden_states", ["batch", "length", 32]),
    "layer": ("layer_output", ["batch", "length", 32]),
    "layer_04": ("layer_output", ["batch", 1, 32]),  # the head reads no other token
    "gate": ("margin", ["batch"]),
    "gates": ("margins", ["batch", 4]),
    "head": ("logits", ["batch", 2]),
    "full": ("logits", ["batch", 2]),
}
RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout",
}  # fmt: skip


def kind(piece: str) -> str:
    return piece.partition("_")[0]


@pytest.fixture(scope="module")
def pieces(source) -> dict[str, Piece]:
    return {piece.name: piece for piece in cut(source.model)}


def test_a_bundle_has_these_pieces(bundle: Path, pieces):
    assert list(pieces) == PIECES
    assert {file.stem for file in (bundle / "model").glob("*.onnx")} == set(NAMES)


def described(values) -> dict[str, tuple[str, list]]:
    """name -> (dtype, axes): a number for a fixed axis, a name for a dynamic one."""
    result = {}
    for value in values:
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        result[value.name] = (dtype, [axis.dim_param or axis.dim_value for axis in tensor.shape.dim])
    return result


@pytest.mark.parametrize("name", NAMES)
def test_names_dtypes_and_axes_are_those_of_the_design(bundle: Path, name: str):
    model = onnx.load(bundle / "model" / f"{name}.onnx")
    onnx.checker.check_model(bundle / "model" / f"{name}.onnx", full_check=True)
    assert described(model.graph.input) == INPUTS[kind(name)]
    assert list(described(model.graph.input)) == list(INPUTS[kind(name)])
    output, shape = OUTPUT.get(name, OUTPUT[kind(name)])
    assert described(model.graph.output) == {output: ("float32", shape)}
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == OPSET


@pytest.mark.parametrize("name", NAMES)
def test_no_operator_is_random_or_foreign(bundle: Path, name: str):
    model = onnx.load(bundle / "model" / f"{name}.onnx")
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    assert nodes
    assert {node.op_type for node in nodes} & RANDOM == set()
    assert {node.domain for node in nodes} <= {""}


def feed(name: str, batch: int, length: int) -> dict[str, np.ndarray]:
    """Random inputs; the mask leaves every row at least one real token."""
    random = np.random.default_rng(batch * 100 + length)
    real = random.integers(1, length + 1, batch)
    arrays = {
        "hidden_states": random.normal(size=(batch, length, 32)).astype(np.float32),
        "attention_mask": (np.arange(length) < real[:, None]).astype(np.int64),
        "input_ids": random.integers(0, 90, (batch, length)),
        "token_type_ids": random.integers(0, 2, (batch, length)),
    }
    return {name: arrays[name] for name in INPUTS[kind(name)]}


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 17), (2, 7), (5, 2), (1, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_any_batch_and_length_gives_what_pytorch_gives(
    bundle: Path, source, pieces, name: str, batch: int, length: int
):
    session = onnxruntime.InferenceSession(bundle / "model" / f"{name}.onnx", providers=["CPUExecutionProvider"])
    inputs = feed(name, batch, length)
    module = pieces[name].module if name in pieces else lambda *ids: source.full(*ids).logits
    with torch.no_grad():
        expected = module(*(torch.from_numpy(array) for array in inputs.values())).numpy()
    (got,) = session.run(None, inputs)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_the_last_layer_gives_the_first_token_of_what_the_whole_layer_gives(heads: int, lengths: list[int], seed: int):
    layer = random_classifier(seed, num_heads=heads).layers[0]
    hidden, rows = torch.randn(len(lengths), max(lengths), 16), torch.arange(max(lengths))
    mask = (rows < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        whole, first = LayerPiece(layer)(hidden, mask), LastLayerPiece(layer)(hidden, mask)
    torch.testing.assert_close(first, whole[:, :1], rtol=0, atol=1e-5)


def test_of_a_fixed_route_the_last_layer_on_it_is_the_last(source):
    static = GatedClassifier(source.model.classifier, fixed_route=(1, 3))
    kinds = {piece.name: type(piece.module) for piece in cut(static) if piece.name.startswith("layer")}
    assert kinds == {"layer_01": LayerPiece, "layer_03": LastLayerPiece}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_tells_nothing_of_the_machine_it_was_made_on(bundle: Path, name: str):
    content = (bundle / "model" / f"{name}.onnx").read_bytes()
    root = Path(__file__).parents[2]
    for trace in (
        str(root),
        "site-packages",
        sys.prefix,
        str(Path.home()),
        "Traceback",
        ".py",
        "stack_trace",
        "hadskip_export",
    ):
        assert trace.encode() not in content


# One trace for a kind


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> dict:
    """As if nothing had been traced in this process."""
    traced: dict = {}
    monkeypatch.setattr(exporter, "_traced", traced)
    return traced


@pytest.mark.parametrize("kind", ["layer", "gate"])
def test_pieces_of_a_kind_have_one_template(source, pieces, kind: str):
    templates = [template_of(pieces[f"{kind}_0{number}"], source.config) for number in (1, 2, 3)]
    assert templates[0] is templates[1] is templates[2]
    last = template_of(pieces["layer_04"], source.config)
    assert last is not templates[0]


@pytest.mark.slow
def test_a_model_of_any_depth_is_traced_as_often_and_a_second_one_not_at_all(untraced: dict):
    kinds = len({type(piece.module) for piece in cut(random_gated())})
    for layers, count in ((2, kinds), (5, kinds + 1)):  # the piece of all gates has another shape
        for seed in range(2):
            for piece in cut(random_gated(seed, num_layers=layers)):
                template_of(piece, CONFIG)
        assert len(untraced) == count


@pytest.mark.parametrize("change", [{"num_heads": 4}, {"layer_norm_eps": 0.5}, {"activation": "relu"}])
def test_what_weights_do_not_tell_makes_another_kind(change: dict):
    (first, *_), (other, *_) = (
        [piece for piece in cut(random_gated(**changes)) if piece.name == "layer_01"] for changes in ({}, change)
    )
    one, two = template_of(first, CONFIG), template_of(other, replace(CONFIG, **change))
    assert one is not two
    assert one.model.graph.SerializeToString() != two.model.graph.SerializeToString()


def test_a_template_holds_no_content_of_a_parameter(source, pieces):
    for piece in pieces.values():
        template = template_of(piece, source.config)
        named = {tensor.name: tensor for tensor in template.model.graph.initializer}
        assert set(template.parameters.values()) == set(piece.weights)
        assert all(not named[name].raw_data and not named[name].float_data for name in template.parameters)


def test_binding_changes_the_template_in_nothing(bundle: Path, source, pieces):
    template = template_of(pieces["layer_01"], source.config)
    before = template.model.SerializeToString()
    stored = read_places(bundle, "model/weights/fp32.safetensors")
    one, two = (bound(pieces[name], template, stored) for name in ("layer_01", "layer_02"))
    assert template.model.SerializeToString() == before
    assert one.SerializeToString() != two.SerializeToString()


# By name, not by content


def graphs_of(folder: Path, pieces: list[Piece], config) -> Iterator[tuple[Piece, Path]]:
    """Writes tensors and graphs of some pieces as a build does."""
    templates: list[tuple[Piece, Template]] = [(piece, template_of(piece, config)) for piece in pieces]
    stored = read_places(folder, write_tensors(folder, "fp32", tensors_as_stored(templates), {}))
    for piece, template in templates:
        yield piece, saved(bound(piece, template, stored), folder, f"{piece.name}.onnx")


def every_weight(model: torch.nn.Module, how: str) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if how == "zeros":
                parameter.zero_()
            elif how == "equal":
                parameter.fill_(0.05)
            elif how == "equal within a shape":
                parameter.copy_(torch.linspace(-0.3, 0.4, parameter.numel()).reshape(parameter.shape))
            elif number % 2:
                parameter.zero_()


@pytest.mark.parametrize(
    "how",
    [
        "zeros and others",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("zeros", "equal", "equal within a shape")),
    ],
)
def test_weights_that_no_content_tells_apart_are_still_each_its_own(tmp_path: Path, how: str):
    """The outputs are PyTorch's; then one parameter after the other is made to differ, in its file alone."""
    gated = random_gated(3, num_layers=3)
    every_weight(gated, how)
    full = Classifier(gated.classifier.config).eval()
    every_weight(full, how)
    random = np.random.default_rng(0)
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2])
    arrays = {
        "hidden_states": random.normal(size=(2, 6, 16)).astype(np.float32), "attention_mask": mask,
        "input_ids": random.integers(0, 50, (2, 6)), "token_type_ids": random.integers(0, 2, (2, 6)),
    }  # fmt: skip
    for number, pieces in enumerate((list(cut(gated)), list(cut_full(full)))):
        for piece, file in graphs_of(tmp_path / str(number), pieces, CONFIG):
            feed = {name: arrays[name] for name in piece.inputs}
            with torch.no_grad():
                expected = piece.module(*map(torch.from_numpy, feed.values())).numpy()
            np.testing.assert_allclose(run(file, feed)[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["layer_01", "layer_03", "gate_02", "gates", "head", "embeddings"])
def test_of_equal_weights_each_is_read_from_its_own_place(tmp_path: Path, kind: str):
    """Of a model whose weights are all equal one parameter alone changes: the graph must notice, as PyTorch does."""
    gated = random_gated(3, num_layers=3)
    every_weight(gated, "equal")
    (piece,) = (piece for piece in cut(gated) if piece.name == kind)
    random = np.random.default_rng(0)
    arrays = {
        "hidden_states": random.normal(size=(2, 6, 16)).astype(np.float32), "attention_mask": np.ones((2, 6), int),
        "input_ids": random.integers(0, 50, (2, 6)), "token_type_ids": random.integers(0, 2, (2, 6)),
    }  # fmt: skip
    feed = {name: arrays[name] for name in piece.inputs}
    named = dict(piece.module.named_parameters())
    for number, name in enumerate(piece.weights):
        with torch.no_grad():
            before = named[name].clone()
            named[name].copy_(torch.linspace(-1, 1, before.numel()).reshape(before.shape))
            expected = piece.module(*map(torch.from_numpy, feed.values())).numpy()
            alone = replace(piece, weights={one: Part(part.tensor) for one, part in piece.weights.items()})
            ((_, file),) = graphs_of(tmp_path / str(number), [alone], CONFIG)
            np.testing.assert_allclose(run(file, feed)[0], expected, atol=1e-5, err_msg=name)
            named[name].copy_(before)


def test_no_tensor_of_a_piece_lies_in_its_graph_but_small_constants(bundle: Path):
    for name in NAMES:
        model = onnx.load(bundle / "model" / f"{name}.onnx", load_external_data=False)
        sizes = [tensor.ByteSize() for tensor in initializers(model.graph) if not tensor.external_data]
        assert max(sizes) < 256


@pytest.mark.parametrize(
    "kind",
    ["embeddings", "layer_01", "layer_02", "head", "gate_01", "gates"],
)
def test_a_wide_model_s_graphs_hold_small_constants_too(kind: str):
    gated = random_gated(hidden_size=512, intermediate_size=16, num_layers=2, max_positions=300)
    (piece,) = (piece for piece in cut(gated) if piece.name == kind)
    template = template_of(piece, gated.classifier.config)
    elsewhere = template.parameters.keys() | template.constants.keys()
    constants = [one for one in template.model.graph.initializer if one.name not in elsewhere]
    assert max(len(one.raw_data) for one in constants) < 1024


# The exporter as a guest


def test_export_is_silent_and_repeatable(source, bundle: Path, untraced, pieces, capfd, recwarn, caplog):
    stored = read_places(bundle, "model/weights/fp32.safetensors")
    graph = bound(pieces["gate_02"], template_of(pieces["gate_02"], source.config), stored)
    assert len(untraced) == 1
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
    written = (bundle / "model" / "gate_02.onnx").read_bytes()
    assert graph.SerializeToString(deterministic=True) == written


def test_tracing_does_not_touch_the_model(untraced, pieces, source):
    before = {name: value.clone() for name, value in pieces["head"].module.state_dict().items()}
    template_of(pieces["head"], source.config)
    for name, value in pieces["head"].module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_what_torch_cannot_export_is_an_engine_error_that_names_the_piece():
    class Undecided(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states if hidden_states.sum() > 0 else -hidden_states

    piece = Piece("layer_07", Undecided(), ("hidden_states",), "logits")
    with pytest.raises(EngineError, match="layer_07: torch cannot export it") as error:
        template_of(piece, CONFIG)
    assert "\n" not in str(error.value)


def test_a_parameter_that_is_no_longer_there_is_an_error_and_not_a_guess(untraced):
    class Folded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(16))

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states * (self.weight + 1)

    piece = Piece("layer_07", Folded(), ("hidden_states",), "out", {"weight": Part("layers.6.weight")})
    with pytest.raises(EngineError, match="layer_07: torch's exporter has folded its weight into something else"):
        template_of(piece, CONFIG)


def test_a_module_left_in_training_mode_is_exported_without_dropout(pieces, bundle: Path, source, untraced):
    piece = replace(pieces["head"], module=copy.deepcopy(pieces["head"].module).train())
    stored = read_places(bundle, "model/weights/fp32.safetensors")
    graph = bound(piece, template_of(piece, source.config), stored)
    assert graph.SerializeToString(deterministic=True) == (bundle / "model" / "head.onnx").read_bytes()
