"""Each piece as a file: names, shapes, operators, numbers, and nothing of the machine it was made on."""

import copy
import sys
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
from hadskip_export.exporters.onnx import OPSET, export
from hadskip_export.exporters.pieces import LastLayerPiece, LayerPiece, Piece, cut
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.runtime.onnx_files import external_data_files
from hadskip_export.support.errors import EngineError
from tests.modeling.random_models import random_classifier

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
    assert {file.name for file in (bundle / "pieces").iterdir()} == {f"{name}.onnx" for name in NAMES}


@pytest.mark.parametrize("name", ["layer_03", "gate_02"])
def test_a_piece_from_the_trace_of_another_is_the_one_of_its_own(pieces, tmp_path: Path, name: str):
    """But for the names of values in between."""
    traced = {}
    for made in (f"{kind(name)}_01", name):
        export(pieces[made], 32, tmp_path / f"{made}.onnx", traced)
    assert len(traced) == 1
    export(pieces[name], 32, tmp_path / "alone.onnx")
    found, alone = (onnx.load(tmp_path / f"{made}.onnx").graph for made in (name, "alone"))
    assert [node.op_type for node in found.node] == [node.op_type for node in alone.node]
    for got, expected in zip(found.initializer, alone.initializer, strict=True):
        assert got.raw_data == expected.raw_data
    one, other = (described([*graph.input, *graph.output]) for graph in (found, alone))
    assert one == other
    random = np.random.default_rng(0)
    inputs = {
        "hidden_states": random.normal(size=(3, 5, 32)).astype(np.float32),
        "attention_mask": np.ones((3, 5), int),
    }
    answers = [
        onnxruntime.InferenceSession(tmp_path / f"{made}.onnx", providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for made in (name, "alone")
    ]
    np.testing.assert_array_equal(*answers)


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
    model = onnx.load(bundle / "pieces" / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert described(model.graph.input) == INPUTS[kind(name)]
    assert list(described(model.graph.input)) == list(INPUTS[kind(name)])
    output, shape = OUTPUT.get(name, OUTPUT[kind(name)])
    assert described(model.graph.output) == {output: ("float32", shape)}
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == OPSET


@pytest.mark.parametrize("name", NAMES)
def test_no_operator_is_random_or_foreign(bundle: Path, name: str):
    model = onnx.load(bundle / "pieces" / f"{name}.onnx")
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
    session = onnxruntime.InferenceSession(bundle / "pieces" / f"{name}.onnx", providers=["CPUExecutionProvider"])
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
    content = (bundle / "pieces" / f"{name}.onnx").read_bytes()
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


def test_export_is_silent_and_repeatable(pieces, bundle: Path, tmp_path: Path, capfd, recwarn, caplog):
    file = tmp_path / "layer_02.onnx"
    export(pieces["layer_02"], 32, file)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
    assert file.read_bytes() == (bundle / "pieces" / "layer_02.onnx").read_bytes()


def test_weights_too_large_for_one_file_lie_beside_it(pieces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exporter, "EXTERNAL_DATA_ABOVE", 0)
    folder = tmp_path / "made"
    folder.mkdir()
    export(pieces["layer_01"], 32, folder / "layer_01.onnx")
    (beside,) = external_data_files(folder / "layer_01.onnx")
    assert {file.name for file in folder.iterdir()} == {"layer_01.onnx", beside}
    moved = folder.rename(tmp_path / "moved")
    inputs = feed("layer_01", 2, 5)
    session = onnxruntime.InferenceSession(moved / "layer_01.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = pieces["layer_01"].module(*map(torch.from_numpy, inputs.values())).numpy()
    np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-5)


def test_what_torch_cannot_export_is_an_engine_error_that_names_the_piece(tmp_path: Path):
    class Undecided(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states if hidden_states.sum() > 0 else -hidden_states

    piece = Piece("layer_07", Undecided(), ("hidden_states",), "logits")
    with pytest.raises(EngineError, match="layer_07: torch cannot export it") as error:
        export(piece, 32, tmp_path / "layer_07.onnx")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_module_left_in_training_mode_is_exported_without_dropout(pieces, bundle: Path, tmp_path: Path):
    piece = replace(pieces["head"], module=copy.deepcopy(pieces["head"].module).train())
    export(piece, 32, tmp_path / "head.onnx")
    assert (tmp_path / "head.onnx").read_bytes() == (bundle / "pieces" / "head.onnx").read_bytes()
