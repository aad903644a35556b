"""Gates that are all asked once, before the first layer: trained, built by every engine that can, beside PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hadskip_export import build, calibrate, inspect
from hadskip_export.data.columns import Columns
from hadskip_export.data.examples import read_examples
from hadskip_export.data.runs import read_run
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.write import write_bundle
from hadskip_export.modeling.checkpoint import StudentSettings, load_student, save_student
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.report import text
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.support.errors import EngineError
from tests.conftest import make_source, needs_bf16, sentences, write_csv
from tests.trainers.runs import QUICKEST, repeat

TEXTS = [sentence for sentence, _ in sentences(40, 8)]
CUTS = ("gates", "layers", "whole")


@pytest.fixture(scope="module")
def source(model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Of random weights, whose gates differ from input to input."""
    found = make_source(model_folder, tmp_path_factory.mktemp("source"))
    found.model.upfront = True
    return found


@pytest.fixture(scope="module")
def bundle(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("upfront") / "bundle"
    report = write_bundle(source, out, EnginePlan.of(cut="gates", router=source.router))
    assert report is not None and report.parity == "passed"
    for engine, cut in (("ort", "layers"), ("ort", "whole"), ("openvino", "layers"), ("openvino", "whole")):
        assert build(out, engine=engine, cut=cut).parity == "passed"
    return out


@torch.no_grad()
def plainly(model: GatedClassifier, predictor: Predictor, given: str) -> tuple[np.ndarray, list[bool], float]:
    """The logits and the route of one text, the gates asked first of all, and the margin nearest to 0."""
    (encoded,) = predictor.tokenizer.encode([given])
    ids, types = (torch.from_numpy(values)[None].long() for values in (encoded.ids, encoded.type_ids))
    mask, body = torch.ones_like(ids), model.classifier
    hidden = body.embeddings(ids, types)
    margins = [gate.margin(hidden, mask).item() for gate in model.gates]
    bias = torch.zeros(1, 1, 1, ids.shape[1])
    for layer, margin in zip(body.layers, margins, strict=True):
        hidden = layer(hidden, bias, None)[0] if margin > 0 else hidden
    return body.head(hidden, mask).numpy()[0], [margin > 0 for margin in margins], min(map(abs, margins))


@pytest.mark.parametrize(
    "engine", [*(f"ort-fp32-{cut}" for cut in CUTS), "openvino-fp32-layers", "openvino-fp32-whole"]
)
def test_it_answers_as_a_plain_loop_does(source, bundle, engine):
    with Predictor.load(bundle, engine=engine) as predictor:
        encoded = predictor.tokenizer.encode(TEXTS)
        for batch_size in (1, 7):
            logits, routes = predictor.run(encoded, batch_size)
            for row, given in enumerate(TEXTS):
                expected, route, near = plainly(source.model, predictor, given)
                assert near < 1e-4 or routes[row].tolist() == route
                assert near < 1e-4 or np.abs(logits[row] - expected).max() < 1e-3
        assert len({tuple(route) for route in routes.tolist()}) > 2


def test_gates_are_asked_once_a_call_and_before_any_layer(bundle):
    with Predictor.load(bundle, engine="ort-fp32-layers") as predictor:
        called: list[str] = []

        def watch(name, piece):
            return lambda *inputs: called.append(name) or piece(*inputs)

        predictor.gated = predictor.load_chain().wrapped(watch)
        predictor(TEXTS[:5], batch_size=5)
    assert called[:2] == ["embeddings", "gates"] and called.count("gates") == 1 and called[-1] == "head"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", pytest.param("bf16", marks=needs_bf16)])
def test_lower_precision_passes_its_check(bundle, precision, tmp_path):
    engine = "ort" if precision == "int8" else "openvino"
    assert build(bundle, engine=engine, precision=precision).parity == "passed"


def test_an_engine_with_code_of_its_own_says_that_it_has_none_for_this(bundle):
    with pytest.raises(EngineError, match="--engine torch-cuda: has no code for gates that read the embeddings"):
        build(bundle, engine="torch-cuda")


def test_the_checkpoint_remembers(source, tmp_path):
    save_student(source.model, StudentSettings(8, 0.0, 2.0), tmp_path / "student")
    assert load_student(tmp_path / "student")[0].upfront
    write_bundle(source, tmp_path / "bundle")
    assert read_bundle(tmp_path / "bundle").manifest.router.kind == "upfront"


@pytest.fixture(scope="module")
def run(model_folder: Path, csv_files, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    repeat(model_folder, csv_files, out, method="upfront", budget=2, settings=(*QUICKEST, "fit_steps=200"), recipe=None)
    return out


def test_a_run_meets_its_budgets_and_can_be_built(run, tmp_path):
    rows = read_run(run).summary["budgets"]
    assert [row["budget"] for row in rows][-1] == 2 and all(row["mean_layers"] <= row["budget"] + 0.5 for row in rows)
    assert build(run, out=tmp_path / "bundle").parity == "passed"
    shown = "\n".join(text.inspection(inspect(tmp_path / "bundle")))
    assert "upfront" in shown


def test_a_bundle_meets_other_budgets_on_other_texts(bundle, tmp_path):
    found = calibrate(bundle, write_csv(tmp_path / "texts.csv", [(one,) for one in TEXTS], ("text",)), [1.5])
    with Predictor.load(bundle) as predictor:
        layers = [len(answer.layers) for answer in predictor(TEXTS, gate_threshold=found.chosen.threshold)]
    assert abs(np.mean(layers) - 1.5) < 0.3


def test_a_run_says_of_its_texts_what_the_served_model_does(run, csv_files, tmp_path):
    """Its thresholds are of margins on the embeddings, as those that are asked later."""
    assert build(run, out=tmp_path / "bundle", cut="gates").parity == "passed"
    texts = read_examples(csv_files[1], Columns()).texts
    rows = {row["budget"]: row for row in read_run(run).summary["budgets"]}
    with Predictor.load(tmp_path / "bundle") as predictor:
        for point in predictor.bundle.manifest.points:
            layers = [len(answer.layers) for answer in predictor(texts, budget=point.budget)]
            assert np.mean(layers) == pytest.approx(rows[point.budget]["mean_layers"], abs=1.5 / len(texts))


def test_margins_are_of_the_embeddings_alone(run):
    """Whatever the layers are: of a body of other layers they are the same."""
    model, _ = load_student(read_run(run).checkpoint().folder)
    ids = torch.arange(5, 25).reshape(2, 10)
    inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    margins = model.route(*inputs, lambda _, margin: margin > 0).margins
    for layer in model.classifier.layers:
        torch.nn.init.normal_(layer.query_key_value.weight)
    torch.testing.assert_close(model.route(*inputs, lambda _, margin: margin > 0).margins, margins)
    assert not torch.allclose(margins[0], margins[1])
    model.upfront = False
    assert not torch.allclose(model.route(*inputs, lambda _, margin: margin > -99).margins, margins)
