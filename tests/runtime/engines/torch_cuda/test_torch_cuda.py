"""The engine whose programs are recorded: on the host, where a recorded program is a plain function, against ONNX
Runtime; without a GPU it is built and refused."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export import build
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import ENGINES, EngineOptions
from hadskip_export.runtime.engines.torch_cuda import TorchCudaEngine
from hadskip_export.runtime.engines.torch_cuda.ahead import Ahead, Full
from hadskip_export.runtime.engines.torch_cuda.lane import Lane
from hadskip_export.runtime.engines.torch_cuda.layers import layer
from hadskip_export.runtime.engines.torch_cuda.model import DeviceTensor, Model, round_rows
from hadskip_export.runtime.engines.torch_cuda.pieces import open_piece
from hadskip_export.support.errors import EngineError
from tests.conftest import sentences
from tests.runtime.editing import copy_of
from tests.runtime.engines.here import assert_same_answers
from tests.runtime.engines.host import ON_HOST, PlainLoop, TorchHostEngine, TorchKernels

TEXTS = [text for text, _ in sentences(40, 17)]
NO_GPU = TorchCudaEngine.why_not_here()
CUTS = ["whole", "layers", "gates"]


@pytest.fixture(scope="module", autouse=True)
def _engines():
    with pytest.MonkeyPatch.context() as patch:
        for name, place in ON_HOST.items():
            patch.setitem(ENGINES, name, place)
        yield


ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))]
DEVICES = ["torch-host", pytest.param("torch-cuda", marks=ON_GPU)]


@pytest.fixture(scope="module", params=DEVICES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=CUTS)
def both(request: pytest.FixtureRequest, engine: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    """A bundle on a device, or on the host as if it were one, and on ONNX Runtime, one piece after the other."""
    mine = copy_of(bundle, tmp_path_factory.mktemp("torch"))
    assert build(mine, engine=engine, cut=request.param).parity == "passed"
    assert read_bundle(mine).engine(engine).cut == request.param
    with Predictor.load(mine, engine=engine) as ours, Predictor.load(bundle) as theirs:
        yield ours, theirs


def model_of(bundle: Path, kernels=TorchKernels) -> Model:
    return Model(bundle / read_bundle(bundle).manifest.weights, "fp32", "cpu", PlainLoop(), lambda dtype: kernels())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9),
    st.integers(1, 9),
    st.floats(-4, 4),
    st.none() | st.integers(1, 4),
)
def test_it_answers_as_the_cpu_does(both, texts: list[str], batch_size: int, threshold: float, most: int | None):
    assert_same_answers(both, texts, batch_size=batch_size, gate_threshold=threshold, max_layers=most)


def test_rows_take_routes_of_their_own(both):
    routes = np.random.default_rng(0).random((len(TEXTS), 4)) < 0.5
    assert len({tuple(route) for route in routes.tolist()}) > 8
    encoded = both[0].tokenizer.encode(TEXTS)
    for batch_size in (1, 8, 32):
        answers = [one.run(encoded, routes=routes, batch_size=batch_size) for one in both]
        np.testing.assert_allclose(answers[0][0], answers[1][0], atol=1e-5)
        np.testing.assert_array_equal(answers[0][1], routes)


@pytest.mark.parametrize("both", ["whole"], indirect=True)  # the chain has no such programs
def test_the_program_of_the_last_layer_ends_a_call(both, monkeypatch: pytest.MonkeyPatch):
    ours, _ = both
    started, start = [], Lane.start
    monkeypatch.setattr(Lane, "start", lambda lane, key, record: started.append(key[2]) or start(lane, key, record))
    for rows in (1, 5):
        encoded = ours.tokenizer.encode(TEXTS[:rows])
        for route in ([True, False, True, True], [True, False, True, False]):
            routes = np.tile(route, (rows, 1))
            ours.run(encoded, routes=routes)  # which records
            started.clear()
            np.testing.assert_array_equal(ours.run(encoded, routes=routes)[1], routes)
            assert started.count(4) == (not route[-1]), started


def test_the_last_layer_computes_the_first_token_alone(bundle: Path):
    tokens = []

    class Watched(TorchKernels):
        def replace(self, part, name, one, other, lane):
            tokens.append(one.shape[1])
            super().replace(part, name, one, other, lane)

        def reply(self, part, states, lane):
            tokens.append(states.shape[1])
            super().reply(part, states, lane)

    model = model_of(bundle, Watched)
    whole, full = Ahead(model, "whole"), Full(model, "full")
    for rows in (1, 3):
        ids, mask = np.ones((rows, 16), np.int64), np.ones((rows, 16), np.int64)
        for _ in range(2):  # the first call records
            tokens.clear()
            whole(ids, mask, ids, np.full((rows, 4), -np.inf, np.float32), np.full(rows, 4))
        assert tokens == [16, 16, 16, 1, 16]  # the last one is what the head reads its first tokens from
        full(ids, mask, ids)
        assert tokens[-1] == 1
    hidden = np.random.default_rng(0).normal(size=(2, 16, 32)).astype(np.float32)
    shapes = [open_piece(model, f"layer_0{number}")(hidden, mask[:2]).shape for number in (3, 4)]
    assert shapes == [(2, 16, 32), (2, 1, 32)]
    part, states, bias = model.part("layer_02"), torch.from_numpy(hidden), torch.randn(2, 1, 1, 16)
    every, first = (layer(part, states, bias, TorchKernels().add_norm, last=last) for last in (False, True))
    torch.testing.assert_close(first, every[:, :1], atol=1e-6, rtol=0)


def test_the_full_model_too(both):
    encoded = both[0].tokenizer.encode(TEXTS)
    for batch_size in (1, 8):
        answers = [one.run(encoded, router="full", batch_size=batch_size)[0] for one in both]
        np.testing.assert_allclose(*answers, atol=1e-5)


def test_many_threads_get_their_own_answers(both):
    ours, _ = both
    expected = ours(TEXTS, batch_size=1)
    with ThreadPoolExecutor(8) as threads:
        for got in (list(threads.map(ours, TEXTS)) for _ in range(3)):
            for a, b in zip(got, expected, strict=True):
                assert a.layers == b.layers and a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


@pytest.mark.parametrize(("cut", "gates"), [("whole", ["gate_01", "gate_04"]), ("layers", ["gates"])])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_below_fp32_only_layers_are(engine: str, bundle: Path, tmp_path: Path, precision: str, cut, gates: list[str]):
    mine = copy_of(bundle, tmp_path)
    report = build(mine, engine=engine, precision=precision, cut=cut)
    assert report.parity == "passed", report
    errors = {piece.piece: piece.largest for piece in report.pieces}
    assert max(errors[piece] for piece in ("embeddings", "head", *gates)) < 1e-5
    assert min(errors["layer_01"], errors["full"]) > 1e-5


def test_what_a_call_left_in_a_buffer_does_not_reach_the_next_one(engine: str, bundle: Path, tmp_path: Path):
    """Buffers are larger than most calls, and a weight of zero times what is no number is none."""
    mine = copy_of(bundle, tmp_path)
    build(mine, engine=engine, cut="layers")
    with Predictor.load(mine, engine=engine) as predictor:
        layer, mask = predictor.engine.load("layer_01"), np.ones((2, 12), np.int64)
        layer(np.full((2, 12, 32), np.nan, np.float32), mask)
        hidden = np.random.default_rng(0).normal(size=(1, 5, 32)).astype(np.float32)
        assert np.isfinite(np.asarray(layer(hidden, np.ones((1, 5), np.int64)))).all()


def test_all_pieces_share_one_copy_of_the_weights(both):
    """On the device, whatever a piece is part of: a whole model and the chain of its pieces, too."""
    ours, _ = both
    ours.load_chain()
    (model,) = ours.engine._models.values()
    parts = [part for name, part in model._parts.items() if not name.startswith("gate_")]
    stored = {weight.data_ptr() for part in parts for weight in part.weights.values()}
    assert len(stored) == sum(len(part.weights) for part in parts)
    assert {"layer_01", "head"} <= set(model._parts)


@pytest.mark.xfail(
    strict=True, reason="each gate keeps all gates' weights on the device: it is a view of a copy of them"
)
def test_gates_one_by_one_take_no_more_memory_than_all_of_them(bundle: Path):
    def held(*pieces: str) -> int:
        model = model_of(bundle)
        storages = [weight.untyped_storage() for piece in pieces for weight in model.part(piece).weights.values()]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    assert held(*(f"gate_0{number}" for number in range(1, 5))) <= held("gates")


def test_a_part_has_the_parameters_of_the_model_as_torch_has_them(
    bundle: Path, source, static_bundle: Path, static_source
):
    """Linear maps are turned back, and what the file has apart is put together."""
    student, model = source.model, model_of(bundle)
    encoders = [("", student.classifier), ("full.", source.full)]
    compared = 0
    for prefix, classifier in encoders:
        state = classifier.state_dict()
        for piece, within in [("embeddings", "embeddings"), ("head", "head"), *layers_of(range(4))]:
            for name, weight in model.part(prefix + piece).weights.items():
                torch.testing.assert_close(weight, state[f"{within}.{name}"], atol=0, rtol=0)
                compared += 1
    assert compared == 2 * len(source.full.state_dict())
    fixed, state = model_of(static_bundle), static_source.model.classifier.state_dict()
    assert fixed.last_layer == "layer_03"
    for piece, within in layers_of([0, 2]):
        part = fixed.part(piece).weights
        assert {f"{within}.{name}" for name in part} == {name for name in state if name.startswith(f"{within}.")}
        for name, weight in part.items():
            torch.testing.assert_close(weight, state[f"{within}.{name}"], atol=0, rtol=0)


def layers_of(indices) -> list[tuple[str, str]]:
    return [(f"layer_{index + 1:02d}", f"layers.{index}") for index in indices]


@given(st.integers(1, 5000))
def test_rows_are_rounded_up_by_an_eighth_at_most(rows: int):
    rounded = round_rows(rows)
    assert rows <= rounded <= 1.125 * rows and round_rows(rounded) == rounded
    assert len({round_rows(number) for number in range(1, 65)}) == 32  # each holds buffers and programs


def test_a_device_tensor_is_an_array_as_far_as_the_chain_goes():
    start = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensor = DeviceTensor(torch.from_numpy(start.copy()), PlainLoop())
    assert len(tensor) == 2
    np.testing.assert_array_equal(np.asarray(tensor), start)
    tensor[[1], :2] = DeviceTensor(-torch.from_numpy(start[1:, :2]), PlainLoop())
    np.testing.assert_array_equal(np.asarray(tensor[[1], :2]), -start[1:, :2])
    np.testing.assert_array_equal(np.asarray(tensor[[0]]), start[:1])
    kept = np.array(tensor)
    tensor[:] = 0
    assert kept.any() and not np.asarray(tensor).any()
    assert np.asarray(tensor, np.float64).dtype == np.float64


@pytest.mark.parametrize(
    "inputs",
    [
        (np.zeros((2, 5, 32), np.float32), np.ones((1, 5), np.int64)),
        (np.zeros((2, 5, 32), np.float32), np.ones((2, 5), np.int32)),
    ],
    ids=["one mask for two", "dtype"],
)
def test_a_mask_that_does_not_fit_is_refused(both, inputs):
    layer = both[0].engine.load("layer_01")
    with pytest.raises(EngineError, match=r"fp32\.safetensors: layer_01: expected int64 \[2, 5\]"):
        layer(*inputs)


def test_a_file_without_a_piece_is_refused(bundle: Path):
    file = bundle / read_bundle(bundle).manifest.weights
    engine = TorchHostEngine({"layer_09": file}, "fp32", EngineOptions())
    with pytest.raises(EngineError, match=r"fp32\.safetensors: has no weights of layer_09; build it again"):
        engine.load("layer_09")


# Without a GPU


@pytest.mark.skipif(NO_GPU is None, reason="this machine has a GPU and a torch for it")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_cannot_run_here_is_built_and_says_so(
    bundle: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
):
    mine = copy_of(bundle, tmp_path)
    assert build(mine, engine="torch-cuda", precision=precision) is None
    assert f"torch-cuda-{precision}-whole: built, parity unverified: " in capsys.readouterr().err
    info = read_bundle(mine).engine("torch-cuda")
    assert (info.parity, info.precision, info.cut) == ("unverified", precision, "whole")
    with pytest.raises(EngineError, match=r"torch-cuda: .*(NVIDIA|CUDA)"):
        Predictor.load(mine, engine="torch-cuda")
    with Predictor.load(mine) as predictor:
        assert predictor("a good film").label


def test_buffers_outlive_the_mode_they_were_made_in(engine: str, bundle: Path, tmp_path: Path):
    mine = copy_of(bundle, tmp_path)
    build(mine, engine=engine)
    with torch.inference_mode():
        predictor = Predictor.load(mine, engine=engine)
        expected = predictor(TEXTS[:3])
    with predictor:
        assert predictor(TEXTS[:3]) == expected
        assert len(predictor(TEXTS, batch_size=5)) == len(TEXTS)


def test_a_closed_predictor_holds_no_weights(bundle: Path, tmp_path: Path):
    mine = copy_of(bundle, tmp_path)
    build(mine, engine="torch-host", cut="layers")
    gc.disable()  # which would free them too, some day
    try:
        predictor = Predictor.load(mine, engine="torch-host")
        weights = [weakref.ref(model) for model in predictor.engine._models.values()]
        predictor.close()
        assert weights and not any(one() for one in weights)
    finally:
        gc.enable()


@pytest.mark.parametrize("cut", ["whole", "layers"])
def test_sizes_make_room_for_one_another(
    engine: str, cut: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hadskip_export.runtime.engines.torch_cuda.model.MOST_LANES", 2)
    monkeypatch.setattr("hadskip_export.runtime.engines.torch_cuda.model.MOST_TOKENS", 64)
    mine = copy_of(bundle, tmp_path)
    build(mine, engine=engine, cut=cut)
    with Predictor.load(mine, engine=engine) as ours, Predictor.load(bundle, engine="ort") as theirs:
        for rows in (1, 2, 3, 1, 7, 2, 1, 1):
            assert_same_answers((ours, theirs), TEXTS[:rows])
        (model,) = ours.engine._models.values()
        if cut == "whole":
            assert len(model._lanes) == 2
        else:
            assert model._buckets and sum(rows * length for rows, length in model._buckets) <= 64


@pytest.mark.parametrize("both", ["whole"], indirect=True)  # the chain waits for each of its pieces
def test_a_call_that_was_broken_off_is_waited_for(both, monkeypatch: pytest.MonkeyPatch):
    ours, _ = both
    waits = []
    recorder = type(next(iter(ours.engine._models.values())).recorder)
    wait = recorder.wait
    monkeypatch.setattr(recorder, "wait", lambda self: waits.append(1) or wait(self))
    assert_same_answers(both, TEXTS[:1])
    usual, reported = len(waits), Lane.reported

    def broken_off(lane: Lane):
        reported(lane)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "reported", broken_off)
        with pytest.raises(KeyboardInterrupt):
            ours(TEXTS[:1])
    waits.clear()
    assert_same_answers(both, TEXTS[:1])
    assert len(waits) == usual + 1


@pytest.mark.parametrize("both", ["whole"], indirect=True)  # the chain has no report
def test_more_rows_than_a_report_has_room_for_are_refused(both):
    ours, _ = both
    arrays = [np.ones((40_000, 2), np.int64)] * 3
    with pytest.raises(EngineError, match="whole: more than 32768 inputs at once; lower batch_size"):
        ours.gated.several(*arrays, np.zeros((40_000, 4), np.float32), np.full(40_000, 4))


def test_a_length_that_the_model_does_not_take_is_refused(both):
    full = both[0].engine.load("full")
    arrays = [np.ones((1, 400), np.int64)] * 3
    with pytest.raises(EngineError, match=r"full: 400 tokens; the model takes \d+"):
        full(*arrays)


NO_GATES = "of the cut `whole`, this engine's fastest, it asks a bundle without gates for their weights"


@pytest.mark.parametrize(
    "cut", [pytest.param("whole", marks=pytest.mark.xfail(strict=True, reason=NO_GATES)), *CUTS[1:]]
)
def test_a_fixed_route_is_run_in_every_cut(static_bundle: Path, tmp_path: Path, cut):
    mine = copy_of(static_bundle, tmp_path)
    assert build(mine, engine="torch-host", cut=cut).parity == "passed"
    with Predictor.load(mine, engine="torch-host") as ours, Predictor.load(static_bundle) as theirs:
        for options in ({}, {"max_layers": 1}, {"batch_size": 3}):
            assert_same_answers((ours, theirs), TEXTS, **options)
