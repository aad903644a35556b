"""Exits that have gates, as one graph: beside PyTorch, beside the pieces, and in a program that knows nothing of us."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hadskip_export import build
from hadskip_export.commands.bench import faster_cut
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.runtime import EngineError, Predictor
from hadskip_export.runtime.bundle import read_bundle
from tests.runtime.editing import copy_of
from tests.test_exits import TEXTS, Made, Plain, answered_as_plainly

# Of this module, for those of another one are not shared.
made = pytest.fixture(scope="module")(
    lambda model_folder, csv_files, tmp_path_factory: Made(model_folder, csv_files, tmp_path_factory.mktemp("whole"))
)


@pytest.fixture(scope="module")
def bundle(made: Made) -> Path:
    assert build(made.bundle("judged"), engine="ort").cut == "whole"  # the fastest
    return made.bundle("judged")


def test_it_answers_as_pytorch_does_alone_and_in_batches(made, bundle):
    plain, layers = Plain(made.run("judged"), bundle), set()
    medians = np.median([plain.margins(text)[0] for text in TEXTS], axis=0)
    with Predictor.load(bundle, engine="ort-fp32-whole") as predictor:
        for threshold in (*(medians + 1e-3), -1e30, 1e30):
            layers |= answered_as_plainly(predictor, plain, threshold)
        capped = predictor(TEXTS, gate_threshold=-1e30, max_layers=2)
        assert [(one.label, one.layers) for one in capped] == [plain(text, -1e30, 2)[:2] for text in TEXTS]
    assert layers == {1, 2, 3}


@pytest.mark.parametrize(("engine", "precision"), [("ort", "int8"), ("openvino", "fp32"), ("openvino", "int8")])
def test_every_engine_that_has_it_answers_as_its_own_pieces_do(bundle, tmp_path, engine, precision):
    mine = copy_of(bundle, tmp_path)
    found = build(mine, engine=engine, precision=precision)
    assert (found.parity, found.cut) == ("passed", "whole")
    assert "whole" in {piece.piece for piece in found.pieces}
    assert build(mine, engine=engine, precision=precision, cut="gates").parity == "passed"
    name = f"{engine}-{precision}"
    routes = np.random.default_rng(0).integers(1, 4, len(TEXTS))[:, None] > np.arange(3)
    with Predictor.load(mine, engine=f"{name}-whole") as one, Predictor.load(mine, engine=f"{name}-gates") as pieces:
        encoded = one.tokenizer.encode(TEXTS)
        (logits, ran), (right, _) = (predictor.run(encoded, routes=routes) for predictor in (one, pieces))
    assert np.array_equal(ran, routes)
    np.testing.assert_allclose(logits, right, atol=1e-4 if precision == "fp32" else 0.1)


def test_another_program_runs_the_file_at_the_default_point(bundle):
    """With nothing but token ids and a mask, for it has defaults for the rest."""
    session = onnxruntime.InferenceSession(bundle / "model" / "model.onnx")
    with Predictor.load(bundle, engine="ort-fp32-whole") as predictor:
        for text, answer in zip(TEXTS, predictor(TEXTS), strict=True):
            (encoded,) = predictor.tokenizer.encode([text])
            values = (encoded.ids, np.ones_like(encoded.ids), encoded.type_ids)
            names = predictor.bundle.manifest.model.inputs
            arrays = [np.asarray(value, np.int64)[None] for value in values]
            logits, ran = session.run(None, dict(zip(names, arrays, strict=False)))
            assert ran.dtype == bool and (np.flatnonzero(ran[0]) + 1).tolist() == list(answer.layers)
            assert predictor.labels[int(logits[0].argmax())] == answer.label


def test_where_an_engine_has_no_such_graph_it_takes_the_next_cut_and_says_which_there_are(made, bundle, tmp_path):
    with pytest.raises(EngineError, match="--cut whole: not of a model with such exits, which has layers, gates"):
        build(made.run("berxit"), out=tmp_path / "bundle", cut="whole")
    with pytest.raises(EngineError, match="of a model with such exits in openvino bf16, which has layers, gates"):
        build(bundle, engine="openvino", precision="bf16", cut="whole")
    router = read_bundle(bundle).manifest.router
    assert EnginePlan.of("openvino", "bf16", router=router).cut == "layers"
    assert EnginePlan.of("openvino", "int8", router=router).cut == "whole"


def test_bench_tells_to_build_a_cut_that_there_is(made, bundle, tmp_path):
    judged, others = read_bundle(bundle), read_bundle(copy_of(made.bundle("berxit"), tmp_path))
    assert "--cut whole" in faster_cut(judged, judged.engine(cut="gates"), 0.5)
    assert "--cut layers" in faster_cut(others, others.engine(cut="gates"), 0.5)


def test_each_row_may_have_most_layers_and_thresholds_of_its_own(bundle):
    info = next(info for info in read_bundle(bundle).manifest.engines if info.cut == "whole")
    session = onnxruntime.InferenceSession(bundle / info.files["whole"])
    with Predictor.load(bundle, engine="ort-fp32-whole") as predictor:
        encoded = predictor.tokenizer.encode([TEXTS[0]] * 4)
        names = predictor.bundle.manifest.model.inputs
    ids = np.array([one.ids for one in encoded], np.int64)
    arrays = dict(zip(names, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=False))
    open_, shut = np.full(3, -1e30, np.float32), np.full(3, 1e30, np.float32)
    for thresholds, most, layers in (
        ([open_], [3], [3, 3, 3, 3]),
        ([open_], [1, 2, 3, 9], [1, 2, 3, 3]),
        ([open_, shut, open_, shut], [2], [2, 1, 2, 1]),
        ([open_, shut, open_, open_], [3, 3, 2, 1], [3, 1, 2, 1]),
    ):
        more = {"gate_thresholds": np.stack(thresholds), "max_layers": np.array(most, np.int64)}
        logits, ran = session.run(["logits", "layers_run"], arrays | more)
        assert ran.sum(axis=1).tolist() == layers
        for row, count in enumerate(layers):  # each as it is alone
            alone = {name: array[row : row + 1] for name, array in arrays.items()}
            least = {"gate_thresholds": open_[None], "max_layers": np.array([count], np.int64)}
            np.testing.assert_allclose(session.run(["logits"], alone | least)[0][0], logits[row], atol=1e-5)
