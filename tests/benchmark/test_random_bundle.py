"""A bundle of random weights: cut as asked, no two layers alike, far from a tie."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle, write_tokenizer
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.verification.parity import ParityReport

CONFIG = EncoderConfig(
    vocab_size=50, hidden_size=32, num_layers=5, num_heads=4, intermediate_size=64, max_positions=10,
    type_vocab_size=2, labels=("no", "yes"),
)  # fmt: skip
LAYERS, GATES = ([f"{kind}_0{number}" for number in range(1, 6)] for kind in ("layer", "gate"))


@pytest.fixture(scope="module", params=["gates", "layers", "whole"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParityReport]:
    """Of a model that takes fewer tokens than the Predictor would warm up with."""
    out = tmp_path_factory.mktemp("random") / "folder" / "bundle"
    return out, write_random_bundle(out, CONFIG, EnginePlan("ort", "fp32", request.param))


def test_it_is_cut_as_asked_and_passes_parity_like_any_other(made: tuple[Path, ParityReport]):
    out, report = made
    assert report.parity == "passed"
    engine = read_bundle(out).engine()
    assert (engine.name, engine.parity) == (f"ort-fp32-{report.cut}", "passed")


def test_every_layer_and_every_gate_has_weights_of_its_own(made: tuple[Path, ParityReport]):
    """Equal ones an engine would keep once, and find in its cache."""
    bundle = read_bundle(made[0])
    assert len({bundle.manifest.pieces[piece] for piece in (*LAYERS, *GATES)}) == 10
    tensors = load_file(bundle.file(bundle.manifest.weights))
    matrices = {name: tensor.tobytes() for name, tensor in tensors.items() if sorted(tensor.shape) == [32, 64]}
    keys_and_values = 1  # of the last layer, whose query is apart
    assert len(set(matrices.values())) == len(matrices) == 2 * (2 * CONFIG.num_layers + keys_and_values)  # full BERT's


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
