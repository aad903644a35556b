"""The parts of a call add up to the call, each is what it takes, and the Predictor is left as it was."""

import time
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from hadskip_export.benchmark.profile import profile
from hadskip_export.runtime import Predictor
from hadskip_export.support.errors import DataError, EngineError
from tests.conftest import sentences

TEXTS = [text for text, _ in sentences(12, 81)]
CALLS = [[TEXTS[0]], [TEXTS[1]], TEXTS[2:5], [("a good film", "a bad plot")]]
LAYERS = [f"layer_0{number}" for number in range(1, 5)]
CHAIN = ["embeddings", *LAYERS, "gates", "head"]
NAP = 0.02


@pytest.fixture(scope="module", params=["bundle", "layers_bundle", "whole_bundle"])
def predictor(request: pytest.FixtureRequest) -> Iterator[Predictor]:
    with Predictor.load(request.getfixturevalue(request.param), threads=1) as loaded:
        yield loaded


def tired(piece):
    """A piece that sleeps before it works."""

    def run(*inputs):
        time.sleep(NAP)
        return piece(*inputs)

    return run


def test_parts_are_named_and_add_up_to_the_calls(predictor: Predictor):
    started = time.perf_counter()
    parts = profile(predictor, CALLS)
    elapsed = time.perf_counter() - started
    engines = {"gates": CHAIN, "layers": CHAIN, "whole": ["whole"]}[predictor.engine_info.cut]
    assert list(parts) == ["tokeniser", *engines, "python"]
    assert min(parts.values()) >= 0
    assert min(seconds for part, seconds in parts.items() if part not in LAYERS) > 0
    assert sum(parts.values()) * len(CALLS) < elapsed


@pytest.mark.parametrize("part", ["embeddings", "layers", "gates", "head"])
def test_what_is_slow_is_what_takes_long(bundle: Path, part: str):
    with Predictor.load(bundle, threads=1, gate_threshold=-1e9) as predictor:
        piece = getattr(predictor.gated, part)
        if part in ("layers", "gates"):
            slow = copy(piece)
            slow[0] = tired(piece[0])
        else:
            slow = tired(piece)
        predictor.gated = replace(predictor.gated, **{part: slow})
        found = profile(predictor, CALLS)
    name = "layer_01" if part == "layers" else part
    assert found[name] >= NAP
    assert max(found, key=lambda key: found[key]) == name


def test_of_an_engine_with_one_piece_for_inputs_that_come_alone_both_are_timed(whole_bundle: Path):
    with Predictor.load(whole_bundle, threads=1) as predictor:
        whole = predictor.gated
        predictor.gated = replace(whole, several=tired(whole.several), alone=whole.several)
        parts = profile(predictor, CALLS)
    assert set(parts) == {"tokeniser", "whole", "whole, alone", "python"}
    batches = sum(len(call) > 1 for call in CALLS)
    assert parts["whole"] >= NAP * batches / len(CALLS)
    assert 0 < parts["whole, alone"] < parts["whole"]


def test_a_layer_counts_with_the_share_of_calls_that_run_it(bundle: Path):
    with Predictor.load(bundle, threads=1) as predictor:
        calls = [[text] for text in TEXTS]
        share = sum(2 in predictor(text).layers for text in TEXTS) / len(TEXTS)
        assert 0 < share < 1
        layers = predictor.gated.layers
        predictor.gated = replace(predictor.gated, layers=layers | {1: tired(layers[1])})
        assert profile(predictor, calls)["layer_02"] >= share * NAP
    with Predictor.load(bundle, threads=1, gate_threshold=1e9) as predictor:
        parts = profile(predictor, calls)
    assert [parts[layer] for layer in LAYERS] == [0.0] * 4


def test_a_static_route_has_its_layers_and_no_gates(static_bundle: Path):
    with Predictor.load(static_bundle, threads=1) as predictor:
        layers = predictor.gated.layers
        predictor.gated = replace(predictor.gated, layers=layers | {2: tired(layers[2])})
        parts = profile(predictor, CALLS)
    assert list(parts) == ["tokeniser", "embeddings", "layer_01", "layer_03", "head", "python"]
    assert parts["layer_03"] >= NAP > parts["layer_01"]


def test_the_predictor_is_left_as_it_was(predictor: Predictor):
    chain, tokenizer = predictor.gated, predictor.tokenizer
    expected = predictor(TEXTS)
    profile(predictor, CALLS)
    assert predictor.gated is chain
    assert predictor.tokenizer is tokenizer
    assert predictor(TEXTS) == expected


@pytest.mark.parametrize("calls", [[[5]], [[TEXTS[0]], [TEXTS[1], None]]], ids=["the first call", "a later call"])
def test_after_an_input_it_cannot_use_too(predictor: Predictor, calls: list):
    chain, tokenizer = predictor.gated, predictor.tokenizer
    with pytest.raises(DataError):
        profile(predictor, calls)
    assert predictor.gated is chain
    assert predictor.tokenizer is tokenizer


def test_after_a_piece_that_fails_too(predictor: Predictor):
    def fail(*_: object) -> None:
        raise EngineError("out of order")

    sound = predictor.gated
    last = "several" if predictor.engine_info.cut == "whole" else "head"
    broken = predictor.gated = replace(sound, **{last: fail})
    try:
        with pytest.raises(EngineError, match="out of order"):
            profile(predictor, CALLS)
        assert predictor.gated is broken
    finally:
        predictor.gated = sound
