"""What every engine promises the runtime, whichever library computes; and that a file and a line in the table are all
that one more takes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest

from hadskip_export import build
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.targets import target_of
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import ENGINES, Cut, Engine, EngineOptions, engine_class
from hadskip_export.runtime.manifest import pieces_of
from hadskip_export.support.errors import EngineError
from tests.conftest import sentences
from tests.runtime.editing import change_manifest, copy_of, piece_file, piece_files
from tests.runtime.engines import added
from tests.runtime.engines.here import assert_same_answers, engine_params
from tests.runtime.engines.host import ON_HOST

PIECES = ["embeddings", "layer_01", "layer_04", "gate_01", "gates", "head", "full"]
OURS = {**ON_HOST, "added": added.LINE}
TEXTS = [text for text, _ in sentences(24, 17)]


@pytest.fixture(params=[*engine_params(), *OURS])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for engine, line in OURS.items():
        monkeypatch.setitem(ENGINES, engine, line)
    return request.param


def engine_of(bundle: Path, name: str, **options) -> Engine:
    files = piece_files(bundle)
    if engine_class(name).reads == "weights":
        files = dict.fromkeys(files, bundle / read_bundle(bundle).manifest.weights)
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
    session = onnxruntime.InferenceSession(piece_file(bundle, piece), options, providers=["CPUExecutionProvider"])
    return session.run(None, {given.name: array for given, array in zip(session.get_inputs(), inputs, strict=True)})[0]


# Pieces


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_gives_what_its_file_says_at_any_size(bundle: Path, name: str, piece: str):
    """One after the other on the same piece: nothing may stay from the call before."""
    run = engine_of(bundle, name).load(piece)
    for seed, (rows, length) in enumerate([(1, 1), (3, 5), (2, 32), (1, 7), (3, 5), (16, 2)]):
        inputs = inputs_of(piece, rows, length, seed)
        got, expected = np.asarray(run(*inputs)), oracle(bundle, piece, inputs)
        assert got.dtype == np.float32 and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_piece_of_two_outputs_gives_both_at_any_size(layers_bundle: Path, name: str):
    """A layer with the gates that come after it, on engines that read graphs."""
    if engine_class(name).reads != "onnx":
        pytest.skip("has no graphs")
    file = piece_file(layers_bundle, "layer_02_gates")
    run = engine_class(name)({"layer_02": file}, "fp32", EngineOptions()).load("layer_02")
    for seed, (rows, length) in enumerate([(1, 1), (3, 5), (32, 32), (1, 7)]):
        inputs = inputs_of("layer_02", rows, length, seed)
        hidden, margins = run(*inputs)
        expected = oracle(layers_bundle, "layer_02", inputs)
        np.testing.assert_allclose(np.asarray(hidden), expected, atol=1e-5)
        alone = oracle(layers_bundle, "gates", [expected, inputs[1]])
        np.testing.assert_allclose(np.asarray(margins)[:, 2:], alone[:, 2:], atol=1e-4)


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


# Bundles


def cuts_of(name: str) -> tuple[Cut, ...]:
    return target_of(name).cuts


@pytest.mark.parametrize("cut", get_args(Cut))
def test_it_is_built_in_every_cut_that_it_says_it_has_and_refused_in_others(
    bundle: Path, tmp_path: Path, name: str, cut: Cut
):
    mine = copy_of(bundle, tmp_path)
    if cut not in cuts_of(name):
        with pytest.raises(EngineError, match=f"--cut {cut}: not to be had with {name}; there are "):
            build(mine, engine=name, cut=cut)
        return
    report = build(mine, engine=name, cut=cut)
    assert (report.parity, report.engine, report.cut) == ("passed", name, cut), report
    opened = read_bundle(mine)
    info = opened.engine(f"{name}-fp32-{cut}")
    assert info.parity == "passed" and info.versions == engine_class(name).versions()
    assert set(pieces_of(cut, opened.manifest)) | {"full"} <= set(info.files)
    with Predictor.load(mine, engine=name, cut=cut) as ours, Predictor.load(bundle) as theirs:
        assert type(ours.engine) is engine_class(name)
        for options in ({}, {"gate_threshold": 0.7}, {"max_layers": 1}, {"batch_size": 5}):
            assert_same_answers((ours, theirs), TEXTS, **options)
        assert_same_answers((ours, theirs), TEXTS, router="full")
        assert_same_answers((ours, theirs), TEXTS[:1])


def test_left_out_the_cut_is_its_fastest(bundle: Path, name: str):
    assert EnginePlan.of(name).cut == cuts_of(name)[0]


def test_every_engine_tells_its_precisions_cuts_and_versions(name: str):
    target = target_of(name)
    assert target.precisions[0] == "fp32" and len(set(target.precisions)) == len(target.precisions)
    assert {"gates"} <= set(target.cuts) <= set(get_args(Cut)) and len(set(target.cuts)) == len(target.cuts)
    engine = engine_class(name)
    assert engine.versions() and engine.chip() and engine.reads in ("onnx", "plans", "weights")
    assert engine.most_padding > 0 and isinstance(engine.portable, bool)


def test_every_engine_of_the_table_has_both_halves():
    """Also those that cannot run here."""
    for name in ENGINES:
        assert {"portable", "reads", "most_padding", "load", "close", "versions", "chip", "why_not_here"} <= set(
            dir(engine_class(name))
        )
        assert callable(target_of(name).build) and target_of(name).precisions and "gates" in cuts_of(name)


# Those that are not in the table


def test_an_unknown_engine_is_refused_by_name():
    with pytest.raises(EngineError, match="'abacus'; there are ort"):
        engine_class("abacus")


def test_one_more_engine_takes_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path):
    """Without the line nobody knows it; with it, it is built, found, served and refused as the others are."""
    mine = copy_of(bundle, tmp_path)
    with pytest.raises(EngineError, match=r"--engine added: not known; there are ort, .*trt-rtx$"):
        build(mine, engine="added")
    monkeypatch.setitem(ENGINES, "added", added.LINE)
    assert build(mine, engine="added").parity == "passed"
    info = read_bundle(mine).engine("added")
    assert (info.name, info.chip) == ("added-fp32-layers", "any")
    with Predictor.load(mine, engine="added") as ours, Predictor.load(mine, engine="ort") as theirs:
        before = ours.engine.calls["head"]
        assert_same_answers((ours, theirs), TEXTS)
        assert ours.engine.calls["head"] > before  # it was this engine that computed
    with pytest.raises(EngineError, match="--precision int8: not to be had with added; there are fp32"):
        build(mine, engine="added", precision="int8")
    monkeypatch.delitem(ENGINES, "added")
    with pytest.raises(EngineError, match="no engine 'added'; there are ort"):
        Predictor.load(mine, engine="added")
    with Predictor.load(mine, engine="ort") as theirs:  # a version that does not know it reads the rest
        assert theirs("a good film").label


@pytest.mark.parametrize("what", ["chip", "versions"])
def test_one_that_is_tied_to_its_machine_is_refused_on_another_with_the_command_that_makes_it_anew(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    monkeypatch.setitem(ENGINES, "added", added.LINE)
    monkeypatch.setattr(added.AddedEngine, "portable", False)
    mine = copy_of(bundle, tmp_path)
    build(mine, engine="added", cut="whole")
    other = {"chip": "another", "versions": {"onnxruntime": "an older one"}}[what]
    change_manifest(mine, lambda plain: plain["engines"][1].update({what: other}))
    with pytest.raises(EngineError) as error:
        Predictor.load(mine, engine="added")
    message = str(error.value)
    assert f"hadskip-export build {mine} --engine added --precision fp32 --cut whole" in message
    assert ("another" if what == "chip" else "an older one") in message and "\n" not in message
    build(mine, engine="added", cut="whole")  # beside the old one, which may fit another machine
    assert len(read_bundle(mine).manifest.engines) == 3
    with Predictor.load(mine, engine="added") as predictor:  # and is found, though it comes after the other
        assert predictor("a good film").label
