"""A bundle of random weights: one layer and one gate on disk, as many as asked for in the manifest, far from a tie."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle, write_tokenizer
from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import Single
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.verification.parity import ParityReport

CONFIG = EncoderConfig(
    vocab_size=50, hidden_size=32, num_layers=5, num_heads=4, intermediate_size=64, max_positions=10,
    type_vocab_size=2, labels=("no", "yes"),
)  # fmt: skip
LAYERS, GATES = ([f"{kind}_0{number}" for number in range(1, 6)] for kind in ("layer", "gate"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParityReport]:
    """Of a model that takes fewer tokens than the Predictor would warm up with."""
    out = tmp_path_factory.mktemp("random") / "folder" / "bundle"
    return out, write_random_bundle(out, CONFIG, gates="lookahead")


def test_it_passes_parity_like_any_other(made: tuple[Path, ParityReport]):
    out, report = made
    assert report.parity == "passed"
    engine = read_bundle(out).engine()
    assert (engine.engine, engine.precision, engine.gates, engine.parity) == ("ort", "fp32", "lookahead", "passed")


def test_all_layers_but_the_last_are_one_file_and_so_are_all_gates(made: tuple[Path, ParityReport]):
    bundle = read_bundle(made[0])
    for files in (bundle.manifest.pieces, bundle.engine().files):
        assert [files[layer] for layer in LAYERS] == ["pieces/layer_01.onnx"] * 4 + ["pieces/layer_05.onnx"]
        assert {files[gate] for gate in GATES} == {"pieces/gate_01.onnx"}
    written = {file.stem for file in (made[0] / "pieces").iterdir()}
    assert written == {"embeddings", "layer_01", "layer_05", "gate_01", "gates", "head", "full"}


def test_each_layer_is_loaded_for_itself(made: tuple[Path, ParityReport]):
    with Predictor.load(made[0]) as predictor:
        assert len({id(layer) for layer in predictor.gated.layers.values()}) == 5


def matrices(graph: onnx.GraphProto) -> list[bytes]:
    """Of the feed-forward parts of all layers, those inside branches too."""
    branches = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    weights = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    found = [weight.tobytes() for weight in weights if sorted(weight.shape) == [32, 64]]
    return found + [weight for branch in branches for weight in matrices(branch)]


@pytest.mark.parametrize(("single", "layers"), [("chain", 5), ("graph", 2)])
def test_in_one_file_every_layer_is_its_own(
    made: tuple[Path, ParityReport], tmp_path: Path, single: Single, layers: int
):
    """Weights that are equal an engine would keep once, and find in its cache."""
    out = made[0] if single == "chain" else tmp_path / "bundle"
    if single == "graph":
        assert write_random_bundle(out, replace(CONFIG, num_layers=layers), single="graph").parity == "passed"
    bundle = read_bundle(out)
    assert bundle.engine().single == single
    found = matrices(onnx.load(bundle.file(bundle.engine().files["full" if single == "chain" else "graph"])).graph)
    a_layer = 2 if single == "chain" else 3  # its gate is as wide
    keys_and_values = 1  # of the last layer, whose query is apart
    assert len(found) == len(set(found)) == a_layer * layers + keys_and_values


def test_gates_and_labels_are_far_from_a_tie(made: tuple[Path, ParityReport]):
    with Predictor.load(made[0]) as predictor:
        inputs = predictor.tokenizer.encode([text_of(length) for length in range(2, 11)])
        logits, routes = predictor.run(inputs)
        assert routes.all()
        assert not predictor.run(inputs, gate_threshold=2.0)[1].any()
        full, _ = predictor.run(inputs, router="full")
    for found in (logits, full):
        assert np.diff(found, axis=1).max() < -5


@given(st.integers(2, 300))
def test_a_text_has_just_as_many_tokens(tmp_path_factory: pytest.TempPathFactory, tokens: int):
    file = tmp_path_factory.getbasetemp() / "one_word.json"
    if not file.exists():
        write_tokenizer(file)
    (encoded,) = Tokenizer(file, 512).encode([text_of(tokens)])
    assert len(encoded) == tokens
    assert encoded.ids.tolist() == [2, *[4] * (tokens - 2), 3]  # no word is unknown
    assert not encoded.truncated
