"""OpenVINO: computed in the precision asked for, gates in fp32, memory given back, nothing copied."""

import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from hadskip_export.exporters.assemble import Decided, Form, Pieces, whole
from hadskip_export.exporters.targets.openvino import TARGET
from hadskip_export.runtime import read_bundle
from hadskip_export.runtime.engines import EngineOptions
from hadskip_export.runtime.engines.bfloat16 import Bfloat16States
from hadskip_export.runtime.engines.openvino import OpenVinoEngine
from hadskip_export.runtime.manifest import WHOLE, WHOLE_ALONE
from hadskip_export.support.errors import EngineError
from tests.conftest import needs_bf16
from tests.runtime.editing import copy_of, piece_files

openvino = pytest.importorskip("openvino")


def engine(bundle: Path, precision: str = "fp32", **options) -> OpenVinoEngine:
    return OpenVinoEngine(piece_files(bundle), precision, EngineOptions(**options))


def setting(piece, name: str):
    return piece._compiled.get_property(name)


@needs_bf16
def test_layers_and_full_bert_compute_in_bf16_and_the_rest_in_fp32(bundle: Path):
    here = engine(bundle, "bf16")
    used = {piece: setting(here.load(piece), "INFERENCE_PRECISION_HINT").to_string() for piece in here._files}
    assert {piece for piece, precision in used.items() if precision == "bf16"} == {
        "full", "layer_01", "layer_02", "layer_03", "layer_04",
    }  # fmt: skip
    assert set(used.values()) == {"bf16", "f32"}


def joined(bundle: Path, form: Form, name: str) -> Path:
    """The bundle's whole model as one graph of that form, beside its weights."""
    manifest = read_bundle(bundle).manifest
    graph = whole(Pieces(bundle, manifest.pieces), manifest.model, Decided((0.0,) * 4), form)
    file = bundle / "model" / name
    file.write_bytes(graph.SerializeToString())
    return file


def decisive(file: Path, precision: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The thresholds at which a whole model's gates change their mind while no other layer runs: margins [b, L]."""
    piece = OpenVinoEngine({WHOLE: file}, precision, EngineOptions()).load(WHOLE)
    found = np.zeros((len(ids), 4))
    for index in range(4):
        low, high = (np.full(len(ids), value, np.float32) for value in (-100, 100))
        for _ in range(30):
            thresholds = np.full((len(ids), 4), np.inf, np.float32)
            thresholds[:, index] = middle = (low + high) / 2
            _, ran = piece(ids, mask, np.zeros_like(ids), thresholds, np.full(len(ids), 4))
            low, high = np.where(ran[:, index], middle, low), np.where(ran[:, index], high, middle)
        found[:, index] = low
    return found


@needs_bf16
@pytest.mark.parametrize("lengths", [[12], [12, 7, 1]])
def test_the_gates_of_a_whole_model_in_bf16_decide_in_fp32(bundle: Path, tmp_path: Path, lengths: list[int]):
    copy, alone = copy_of(bundle, tmp_path), len(lengths) == 1
    ids, farthest = np.random.default_rng(0).integers(5, 50, (len(lengths), 12)), {}
    mask = (np.arange(12) < np.array(lengths)[:, None]).astype(np.int64)
    forms = {
        "as built": TARGET.whole_forms("bf16")[WHOLE_ALONE if alone else WHOLE],
        "with products": Form(rows=not alone, bf16_states=True),
    }
    for name, form in forms.items():
        file = joined(copy, form, f"{name}.onnx")
        one, other = (decisive(file, precision, ids, mask) for precision in ("bf16", "fp32"))
        farthest[name] = np.abs(np.subtract(one, other)).max()
    assert farthest["as built"] < 1e-5
    assert farthest["with products"] > 1e-3


def test_a_chip_without_bf16_is_told_apart(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """What OpenVINO does on such a chip, as its documentation has it: it takes the wish and computes in f32."""
    real = openvino.Core.compile_model

    def compile_model(core, model, device, settings):
        return real(core, model, device, settings | {"INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    with pytest.raises(
        EngineError, match=r"layer_01\.onnx: this chip computes bf16 as f32; use --engine openvino-fp32"
    ):
        engine(bundle, "bf16").load("layer_01")
    engine(bundle, "bf16").load("gate_01")


def test_threads_are_those_asked_for_and_small_pieces_have_one(bundle: Path):
    here = engine(bundle, threads=2)
    pieces = "layer_01", "gates", "gate_01", "head"
    assert {piece: setting(here.load(piece), "INFERENCE_NUM_THREADS") for piece in pieces} == {
        "layer_01": 2, "gates": 2, "gate_01": 1, "head": 1,
    }  # fmt: skip


def test_a_piece_writes_where_the_answer_lies(bundle: Path):
    piece = engine(bundle).load("layer_01")
    hidden, mask = np.ones((1, 4, 32), np.float32), np.ones((1, 4), np.int64)
    got = piece(hidden, mask)
    (request,) = piece._idle
    assert request.get_output_tensor(0).data.ctypes.data == got.ctypes.data


def test_a_call_that_fails_leaves_no_request_behind(bundle: Path):
    piece = engine(bundle).load("head")
    with pytest.raises(EngineError):
        piece(np.zeros((1, 2, 31), np.float32))
    assert piece._idle == []


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("most", [1, 5, 12, 23, 1000])
def test_a_large_call_is_made_in_parts_that_add_up_to_it(bundle: Path, most: int, precision: str):
    random = np.random.default_rng(0)
    hidden = random.normal(size=(7, 5, 32)).astype(np.float32)
    mask = (np.arange(5) < random.integers(1, 6, (7, 1))).astype(np.int64)
    for name in ("layer_01", "gate_01", "gates"):
        piece = engine(bundle, precision).load(name)
        piece._most_tokens = 10**6
        expected = piece(hidden, mask)
        piece._most_tokens = most
        np.testing.assert_allclose(piece(hidden, mask), expected, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("most", [1, 12, 23, 1000])
def test_so_is_one_of_a_whole_model(bundle: Path, tmp_path: Path, most: int, precision: str):
    random = np.random.default_rng(1)
    file = joined(copy_of(bundle, tmp_path), TARGET.whole_forms(precision)[WHOLE], "rows.onnx")
    rows = OpenVinoEngine({WHOLE: file}, precision, EngineOptions()).load(WHOLE)
    assert rows._most_tokens == 2048
    ids = random.integers(5, 30, (7, 5))
    mask = (np.arange(5) < random.integers(2, 6, (7, 1))).astype(np.int64)
    routes = random.random((7, 4)) < 0.5
    thresholds = np.where(routes, -np.inf, np.inf).astype(np.float32)
    inputs = ids, mask, ids * 0, thresholds, np.array([4, 4, 1, 2, 3, 4, 4])
    logits, ran = rows(*inputs)
    np.testing.assert_array_equal(ran, routes & (routes.cumsum(axis=1) <= inputs[-1][:, None]))
    rows._most_tokens = most
    for got, expected in zip(rows(*inputs), (logits, ran), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


class Counted:
    """A compiled model, and how often its scratch memory was given back."""

    def __init__(self, compiled):
        self._compiled, self.given_back = compiled, 0

    def __getattr__(self, name: str):
        return getattr(self._compiled, name)

    def release_memory(self) -> None:
        self.given_back += 1
        self._compiled.release_memory()


def test_a_layer_gives_its_scratch_memory_back_and_full_bert_only_that_of_a_large_call(bundle: Path):
    ids, mask = np.full((2, 3), 7), np.ones((2, 3), np.int64)
    layer, full = engine(bundle).load("layer_01"), engine(bundle).load("full")
    for piece in (layer, full):
        piece._compiled = Counted(piece._compiled)
    expected = layer(np.ones((2, 3, 32), np.float32), mask)
    np.testing.assert_array_equal(layer(np.ones((2, 3, 32), np.float32), mask), expected)
    assert layer._compiled.given_back == 2
    full(ids, mask, np.zeros_like(ids))
    assert full._compiled.given_back == 0
    full._most_tokens = 3
    full(ids, mask, np.zeros_like(ids))
    assert full._compiled.given_back == 1


@pytest.mark.parametrize(("message", "told"), [("the model is in a busy state", False), ("no such memory", True)])
def test_memory_that_another_call_still_needs_is_given_back_by_that_one(bundle: Path, message: str, told: bool):
    class Refusing(Counted):
        def release_memory(self) -> None:
            raise RuntimeError(message)

    layer = engine(bundle).load("layer_01")
    layer._compiled = Refusing(layer._compiled)
    with pytest.raises(EngineError, match=message) if told else nullcontext():
        layer(np.ones((2, 3, 32), np.float32), np.ones((2, 3), np.int64))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize(
    ("states", "mask"),
    [
        (np.zeros((2, 3, 31), np.float32), np.ones((2, 3), np.int64)),
        (np.zeros((2, 3, 32), np.float64), np.ones((2, 3), np.int64)),
        (np.zeros((2, 3, 32), np.int64), np.ones((2, 3), np.int64)),
        (np.zeros((2, 3, 32), np.float32), np.ones((1, 3), np.int64)),
        (np.zeros((2, 3, 32), np.float32), np.ones((2, 2), np.int64)),
    ],
    ids=["size", "float64", "int64", "rows of the mask", "tokens of the mask"],
)
def test_states_and_masks_that_do_not_fit_are_refused(bundle: Path, precision: str, states, mask):
    """OpenVINO would cast or repeat some of them."""
    layer = engine(bundle, precision).load("layer_01")
    with pytest.raises(EngineError, match=r"layer_01\.onnx: .+"):
        layer(states, mask)
    fitting = layer(np.ones((2, 3, 32), np.float32), np.ones((2, 3), np.int64))
    assert np.isfinite(np.asarray(fitting)).all()


@needs_bf16
def test_hidden_states_are_bfloat16_between_the_pieces_of_bf16_whose_gates_and_head_stay_fp32(bundle: Path):
    ids, mask = np.random.default_rng(0).integers(5, 50, (3, 6)), np.ones((3, 6), np.int64)
    exact, half = engine(bundle), engine(bundle, "bf16")
    states = half.load("embeddings")(ids, np.zeros_like(ids))
    assert isinstance(states, Bfloat16States) and states.bits.shape == (3, 6, 32)
    np.testing.assert_allclose(states, exact.load("embeddings")(ids, np.zeros_like(ids)), rtol=2**-7)  # it cuts
    after = half.load("layer_01")(states, mask)
    assert isinstance(after, Bfloat16States)
    np.testing.assert_array_equal(half.load("layer_01")(np.asarray(states), mask), after)
    np.testing.assert_allclose(after, exact.load("layer_01")(np.asarray(states), mask), atol=0.05)
    for piece in ("gates", "gate_01"):
        margins = half.load(piece)(states, mask)
        assert margins.dtype == np.float32
        np.testing.assert_allclose(margins, exact.load(piece)(np.asarray(states), mask), atol=1e-5)
    np.testing.assert_allclose(half.load("head")(states), exact.load("head")(np.asarray(states)), atol=1e-5)


LIMITED = """
import os, sys
from pathlib import Path
from hadskip_export.runtime import Predictor
import numpy as np
before = dict(os.environ)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
with Predictor.load(sys.argv[1], engine="openvino", threads=1) as predictor:
    assert dict(os.environ) == before
    gate = predictor.load_chain().gates[0]
    shapes = [(inputs, tokens) for inputs in range(1, 17) for tokens in range(2, 32)]
    found = []
    for some in (shapes[-100:], shapes[:-100]):
        for inputs, tokens in some:
            gate(np.ones((inputs, tokens, 32), np.float32), np.ones((inputs, tokens), np.int64))
        found.append(resident())
print(found[1] - found[0])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell")
def test_few_kernels_are_kept_for_shapes_seen(openvino_bundle: Path):
    """A gate's products are made anew for each shape: kept for all of these they took 216 MB. In a process of its own,
    since the first engine of a process sets how many; the environment is as it was."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(openvino_bundle)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30


def test_without_openvino_the_message_names_the_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"needs openvino.*hadskip-export\[openvino\]"):
        OpenVinoEngine.versions()


def test_serving_with_openvino_imports_no_other_engine_and_no_torch(openvino_bundle: Path):
    code = f"""
import sys
from hadskip_export.runtime import Predictor
Predictor.load({str(openvino_bundle)!r}, engine="openvino")("a good film")
print(sorted({{"onnxruntime", "torch", "onnx", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_signal_is_handled_whichever_predictor_went_first(openvino_bundle: Path):
    """OpenVINO gives the thread that loads it a stack for signals: once it was freed memory."""
    code = f"""
        import faulthandler, signal
        from hadskip_export.runtime import Predictor
        faulthandler.enable()
        signal.signal(signal.SIGTERM, lambda *_: print("handled"))
        serving = Predictor.load({str(openvino_bundle)!r}, engine="openvino")
        for _ in range(2):
            old, serving = serving, Predictor.load({str(openvino_bundle)!r}, engine="openvino")
            old.close()
            signal.raise_signal(signal.SIGTERM)
        serving.close()
        del old, serving
        signal.raise_signal(signal.SIGTERM)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n" * 3), done.stderr
