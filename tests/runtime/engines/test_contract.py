"""What every engine promises the runtime, whichever library computes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest

from hadskip_export.exporters.compile import check_engine
from hadskip_export.exporters.weights import pack
from hadskip_export.runtime.engines import ENGINES, Engine, EngineOptions, GateLayout, Single, engine_class
from hadskip_export.support.errors import EngineError
from tests.runtime.engines.here import engine_params
from tests.runtime.engines.host import ON_HOST

PIECES = ["embeddings", "layer_01", "gate_01", "gates", "head", "full"]


@pytest.fixture(params=[*engine_params(), *ON_HOST])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for engine, place in ON_HOST.items():
        monkeypatch.setitem(ENGINES, engine, place)
    return request.param


def engine_of(bundle: Path, name: str, **options) -> Engine:
    files = {file.stem: file for file in (bundle / "pieces").iterdir()}
    if engine_class(name).reads == "weights":
        packed = bundle.parent / "weights.safetensors"
        if not packed.is_file():
            pack(files, 4, packed)
        files = dict.fromkeys(files, packed)
    return engine_class(name)(files, "fp32", EngineOptions(**options))


def inputs_of(piece: str, rows: int, length: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    ids = random.integers(1, 20, (rows, length))
    types = random.integers(0, 2, (rows, length))
    mask = (np.arange(length) < random.integers(1, length + 1, (rows, 1))).astype(np.int64)
    hidden = random.normal(size=(rows, length, 32)).astype(np.float32)
    return {"embeddings": [ids, types], "full": [ids, mask, types], "head": [hidden]}.get(piece, [hidden, mask])


def oracle(bundle: Path, piece: str, inputs: list[np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    file = bundle / "pieces" / f"{piece}.onnx"
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {given.name: array for given, array in zip(session.get_inputs(), inputs, strict=True)})[0]


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_gives_what_its_file_says_at_any_size(bundle: Path, name: str, piece: str):
    """One after the other on the same piece: nothing may stay from the call before."""
    run = engine_of(bundle, name).load(piece)
    for seed, (rows, length) in enumerate([(1, 1), (3, 5), (2, 32), (1, 7), (3, 5), (16, 2)]):
        inputs = inputs_of(piece, rows, length, seed)
        got, expected = np.asarray(run(*inputs)), oracle(bundle, piece, inputs)
        assert got.dtype == np.float32 and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_piece_of_two_outputs_gives_both_at_any_size(fused_bundle: Path, name: str):
    """A layer with the gates that come after it."""
    if "fused" not in engine_class(name).layouts("fp32"):
        with pytest.raises(EngineError, match=f"--gates fused: not to be had with {name}-fp32"):
            check_engine(name, "fp32", "fused")
        return
    file = next((fused_bundle / "engines").rglob("layer_02_gates.onnx"))
    run = engine_class(name)({"layer_02": file}, "fp32", EngineOptions()).load("layer_02")
    for seed, (rows, length) in enumerate([(1, 1), (3, 5), (64, 32), (1, 7)]):  # OpenVINO makes the third in parts
        inputs = inputs_of("layer_02", rows, length, seed)
        hidden, margins = run(*inputs)
        expected = oracle(fused_bundle, "layer_02", inputs)
        np.testing.assert_allclose(hidden, expected, atol=1e-5)
        alone = oracle(fused_bundle, "gates", [expected, inputs[1]])
        np.testing.assert_allclose(margins[:, 2:], alone[:, 2:], atol=1e-4)


def test_an_answer_stays_what_it_was_and_inputs_are_left_alone(bundle: Path, name: str):
    run = engine_of(bundle, name).load("layer_01")
    hidden, mask = inputs_of("layer_01", 2, 6)
    before = hidden.copy(), mask.copy()
    first = run(hidden, mask)
    kept = np.array(first)
    for seed in range(3):
        run(*inputs_of("layer_01", 2, 6, seed + 1))
    assert (np.asarray(first) == kept).all() and (hidden == before[0]).all() and (mask == before[1]).all()
    first[:] = 0  # the caller's own: the chain writes into it
    assert (np.asarray(run(hidden, mask)) == kept).all()


def test_arrays_may_lie_in_memory_as_they_like(bundle: Path, name: str):
    run = engine_of(bundle, name).load("layer_01")
    hidden, mask = inputs_of("layer_01", 4, 6)
    wide = np.asfortranarray(np.repeat(hidden, 2, axis=2))
    got = np.asarray(run(wide[::-1, :, ::2], np.asfortranarray(mask)[::-1]))
    np.testing.assert_allclose(got[::-1], run(hidden, mask), atol=1e-6)


def test_many_threads_get_their_own_answers(bundle: Path, name: str):
    run = engine_of(bundle, name, threads=2).load("layer_01")
    work = [inputs_of("layer_01", 1 + seed % 4, 3 + seed % 7, seed) for seed in range(64)]
    alone = [run(*inputs) for inputs in work]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            together = list(threads.map(lambda inputs: run(*inputs), work))
            for got, expected in zip(together, alone, strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, name: str):
    file = tmp_path / "head.onnx"
    file.write_bytes(b"not a model")
    library = next(iter(engine_class(name).versions()))
    with pytest.raises(EngineError, match=rf"head\.onnx: {library} .* refuses it \(.+\)") as error:
        engine_class(name)({"head": file}, "fp32", EngineOptions()).load("head")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "inputs",
    [
        (np.zeros((1, 2, 31), np.float32),),
        (np.zeros((1, 2, 32), np.float64),),
        (np.zeros((1, 2, 32), np.float32), np.ones((1, 2), np.int64)),
        (np.zeros((2, 32), np.float32),),
        (),
    ],
    ids=["size", "dtype", "one too many", "dimensions", "none"],
)
def test_inputs_that_do_not_fit_are_an_engine_error_and_the_next_ones_are_served(bundle: Path, name: str, inputs):
    run = engine_of(bundle, name).load("head")
    with pytest.raises(EngineError, match=r"head(\.onnx)?: .+") as error:
        run(*inputs)
    assert "\n" not in str(error.value)
    fitting = inputs_of("head", 2, 3)
    np.testing.assert_allclose(run(*fitting), oracle(bundle, "head", fitting), atol=1e-5)


def test_an_unknown_engine_is_refused_by_name():
    with pytest.raises(EngineError, match="'abacus'; there are ort"):
        engine_class("abacus")


def test_every_engine_tells_its_precisions_layouts_and_versions(name: str):
    assert engine_class(name).precisions[0] == "fp32"
    for precision in engine_class(name).precisions:
        assert {"separate", "lookahead"} <= set(engine_class(name).layouts(precision)) <= set(get_args(GateLayout))
        assert {"chain"} <= set(engine_class(name).singles(precision)) <= set(get_args(Single))
    assert engine_class(name).versions()
