"""`build`: a run becomes a bundle that answers as the run was measured to, or nothing is left."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hadskip_export import build, validate
from hadskip_export.exporters import write as building
from hadskip_export.exporters.seal import new_bundle
from hadskip_export.modeling.checkpoint import load_student, save_student
from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.report import text
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.manifest import RouterInfo
from hadskip_export.runtime.tokenization import pad
from hadskip_export.support.digests import DIGESTS, write_digests
from hadskip_export.support.errors import BudgetError, BundleError, DataError, EngineError
from hadskip_export.verification import parity
from tests.conftest import STATIC_ROUTE, make_source


@pytest.fixture(scope="module")
def built(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle built with nothing but defaults."""
    out = tmp_path_factory.mktemp("built") / "bundle"
    assert build(run_folder, out=out).parity == "passed"
    return out


@pytest.fixture(scope="module")
def golden_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("golden") / "golden.txt"
    text = "\ufeffmy own good sentence\r\n\nmy own bad sentence, with a comma\n\u2028a line\x0c in itself\n"
    file.write_text(text, encoding="utf-8", newline="")
    return file


@pytest.fixture(scope="module")
def built_otherwise(run_folder: Path, golden_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle built with everything but defaults."""
    out = tmp_path_factory.mktemp("otherwise") / "bundle"
    report = build(
        run_folder, out=out, engine="ort", precision="fp32", budget=2, cut="gates", golden=golden_file, full=False
    )
    assert report.parity == "passed"
    return out


@pytest.fixture
def one_layer(model_folder: Path, tmp_path: Path):
    """A source that is built quickly."""
    source = make_source(model_folder, tmp_path, layers=1)
    return replace(source, full=None, points=(replace(source.points[0], budget=1.0),), budget=1.0)


def row(run_folder: Path, budget: float) -> dict:
    rows = json.loads((run_folder / "summary.json").read_text())["budgets"]
    return next(row for row in rows if row["budget"] == budget)


def rows_of(file: Path) -> list[list[str]]:
    with file.open(newline="") as lines:
        return list(csv.reader(lines))[1:]


def settings_of(run_folder: Path, budget: str) -> dict:
    return json.loads((run_folder / "budgets" / budget / "config.json").read_text())["hadskip"]


# A fixed route


def test_a_run_whose_checkpoint_has_a_fixed_route_becomes_a_static_bundle(run_folder: Path, tmp_path: Path):
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    checkpoint = run / "budgets" / "2"
    model, settings = load_student(checkpoint)
    fixed = GatedClassifier(model.classifier, fixed_route=(1, 3))
    save_student(fixed, replace(settings, threshold=25.0), checkpoint)  # of a threshold it knows nothing
    (checkpoint / DIGESTS).unlink()
    write_digests(checkpoint)
    out = tmp_path / "bundle"
    assert build(run, out=out, budget=2, cut="gates").parity == "passed"
    manifest = read_bundle(out).manifest
    assert manifest.router == RouterInfo("static", (1, 3))
    assert (manifest.default_budget, manifest.default_point.thresholds) == (2.0, ())
    assert validate(out).passed
    with Predictor.load(out) as predictor:
        logits, routes = predictor.run(predictor.tokenizer.encode(["a good film"]))
        ids = pad(predictor.tokenizer.encode(["a good film"]))
    inputs = (torch.from_numpy(array) for array in (ids.input_ids, ids.attention_mask, ids.token_type_ids))
    assert routes.tolist() == [[True, False, True]]
    expected = model.follow(*inputs, [(1, 3)])[0].logits.detach()
    assert logits == pytest.approx(expected.numpy(), abs=1e-4)


def test_of_a_fixed_route_only_its_layers_are_written_and_no_gate(static_bundle: Path):
    written = sorted(file.stem for file in (static_bundle / "model").glob("*.onnx"))
    assert written == sorted(["embeddings", *(f"layer_0{layer}" for layer in STATIC_ROUTE), "head", "full"])


# What a build writes

PIECES = ["embeddings", "layer_01", "layer_02", "layer_03", "gate_01", "gate_02", "gate_03", "gates", "head"]


def test_the_files_are_those_of_the_design(built: Path, built_otherwise: Path):
    beside = {
        "manifest.json", "manifest.sha256", "golden/inputs.jsonl", "golden/outputs.npz", "model/tokenizer.json",
        "model/tokenizer_config.json", "model/config.json", "model/weights/fp32.safetensors",
    }  # fmt: skip
    for bundle, pieces, cut in ((built, [*PIECES, "full", "model"], "whole"), (built_otherwise, PIECES, "gates")):
        files = {file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()}
        own = {f"engines/ort-fp32-{cut}/report.json"}
        assert files == beside | own | {f"model/{piece}.onnx" for piece in pieces}
        assert list(bundle.parent.iterdir()) == [bundle]
        digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
        assert (bundle / "manifest.sha256").read_text().strip() == digest


def test_the_manifest_tells_what_the_run_was(built: Path, run_folder: Path):
    manifest = read_bundle(built).manifest
    assert manifest.format == 2
    assert manifest.task == "train"
    assert manifest.metric == "accuracy"
    assert manifest.opset == 20
    model = manifest.model
    assert (model.family, model.layers, model.hidden_size, model.max_length) == ("bert", 3, 32, 32)
    assert model.labels == ("negative", "positive")
    assert manifest.router.kind == "gates"
    (point,) = manifest.points
    assert manifest.default_point == point and point.budget == manifest.default_budget == 1.5
    assert point.thresholds == (settings_of(run_folder, "1.5")["gate_threshold"],) * 3
    assert (point.mean_layers, point.metric) == (row(run_folder, 1.5)["mean_layers"], row(run_folder, 1.5)["metric"])
    summary = json.loads((run_folder / "summary.json").read_text())
    assert point.full_metric == summary["teacher"]["metric"]
    (engine,) = manifest.engines
    assert (engine.name, engine.parity) == ("ort-fp32-whole", "passed")
    assert set(engine.files) == {*PIECES, "full", "whole"} - {"gates"}
    assert "onnxruntime" in engine.versions
    assert engine.chip


def test_the_bundle_answers_as_the_run_was_measured(built: Path, run_folder: Path, csv_files):
    found = validate(built, data=csv_files[1])
    summary = json.loads((run_folder / "summary.json").read_text())
    measured = row(run_folder, 1.5)
    assert found.passed
    assert found.data.value == measured["metric"]
    assert found.data.routes.mean_layers == pytest.approx(measured["mean_layers"])
    assert found.data.routes.distinct == measured["routes"]
    assert found.data.full_value == summary["teacher"]["metric"]


def test_the_report_covers_the_run_s_real_texts(built: Path, run_folder: Path):
    report = json.loads((built / "engines" / "ort-fp32-whole" / "report.json").read_text())
    assert report["texts"] == 24 + 80  # the held-out slice and, since that is fewer than 500, the evaluation data
    assert {piece["piece"] for piece in report["pieces"]} == {*PIECES, "full", "whole"} - {"gates"}
    for piece in report["pieces"]:
        assert 0 <= piece["mean"] <= piece["largest"] <= piece["tolerance"]
    assert report["flips"] == 0
    assert report["label_agreement"] == report["route_agreement"] == 1


def test_a_bundle_holds_none_of_the_user_s_sentences_nor_paths(built: Path, run_folder: Path, csv_files):
    sentences = [text for file in csv_files for text, _ in rows_of(file) if len(text.split()) >= 5]
    assert len(sentences) > 100
    for file in (file for file in built.rglob("*") if file.is_file()):
        content = file.read_bytes()
        assert not [sentence for sentence in sentences if sentence.encode() in content]
        for path in (run_folder, csv_files[0].parent, Path.home() / ""):
            assert str(path).encode() not in content


def test_other_options_are_followed(built_otherwise: Path, run_folder: Path, csv_files):
    manifest = read_bundle(built_otherwise).manifest
    assert manifest.default_budget == 2
    assert manifest.default_point.thresholds == (settings_of(run_folder, "2")["gate_threshold"],) * 3
    assert manifest.engines[0].cut == "gates"
    assert set(manifest.engines[0].files) == {*PIECES} - {"gates"}
    found = validate(built_otherwise, data=csv_files[1])
    assert found.passed
    assert found.data.value == row(run_folder, 2)["metric"]
    assert found.data.routes.mean_layers == pytest.approx(row(run_folder, 2)["mean_layers"])
    assert found.data.full_value is None
    with pytest.raises(BundleError, match="no-full"):
        Predictor.load(built_otherwise, router="full")


def test_golden_texts_of_the_user_s_own_are_kept(built_otherwise: Path):
    lines = (built_otherwise / "golden" / "inputs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        "my own good sentence", "my own bad sentence, with a comma", "\u2028a line\x0c in itself",
    ]  # fmt: skip


def test_a_share_names_a_budget_too(run_folder: Path):
    assert building.load_source(run_folder, 0.5, full=False).budget == 1.5
    assert building.load_source(run_folder, 1.5, full=False).budget == 1.5
    assert building.load_source(run_folder, None, full=False).budget == 1.5
    assert building.load_source(run_folder, 3, full=False).budget == 3


# One body for all budgets


def test_a_bundle_of_one_body_answers_at_every_budget_as_the_run_was_measured_to(
    shared_run: Path, csv_files: tuple[Path, Path], tmp_path: Path
):
    out, rows = tmp_path / "bundle", json.loads((shared_run / "summary.json").read_text())["budgets"]
    assert build(shared_run, out=out).parity == "passed"
    manifest = read_bundle(out).manifest
    assert [point.budget for point in manifest.points] == [1.5, 2, 3] and manifest.default_budget == 1.5
    with csv_files[1].open() as lines:
        evaluation = list(csv.DictReader(lines))
    with Predictor.load(out) as predictor:
        for point in manifest.points:
            row = next(row for row in rows if row["budget"] == point.budget)
            assert point.thresholds == (row["threshold"],) * 3 and point.metric == row["metric"]
            answers = predictor([one["text"] for one in evaluation], batch_size=16, budget=point.budget)
            assert sum(len(one.layers) for one in answers) / len(answers) == pytest.approx(row["mean_layers"])
            right = [one.label == wanted["label"] for one, wanted in zip(answers, evaluation, strict=True)]
            assert sum(right) / len(right) == pytest.approx(row["metric"])


def test_another_budget_of_one_body_is_another_default_of_the_same_weights(shared_run: Path):
    first, other = (building.load_source(shared_run, budget, full=False) for budget in (None, 3))
    assert (first.budget, other.budget) == (1.5, 3) and first.points == other.points
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])


def test_a_budget_that_the_gates_do_not_keep_is_no_point_unless_it_is_asked_for(shared_run: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shared_run, tmp_path / "run"))
    summary = json.loads((copy / "summary.json").read_text())
    next(row for row in summary["budgets"] if row["budget"] == 2)["mean_layers"] = 2.1
    (copy / "summary.json").write_text(json.dumps(summary))
    assert [point.budget for point in building.load_source(copy, None, full=False).points] == [1.5, 3]
    assert [point.budget for point in building.load_source(copy, 2, full=False).points] == [1.5, 2, 3]


# What it refuses, leaving nothing


def refused(
    error: type[Exception] | tuple[type[Exception], ...], out: Path, source: Path, *parts: str, **options
) -> None:
    before = set(out.parent.iterdir())
    with pytest.raises(error) as caught:
        build(source, out=out, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert set(out.parent.iterdir()) == before


@pytest.mark.parametrize("budget", [2.5, 1, 0.9])
def test_a_budget_the_run_has_no_checkpoint_for_is_refused(run_folder: Path, tmp_path: Path, budget: float):
    refused(BudgetError, tmp_path / "out", run_folder, "--budget", "3, 2, 1.5", budget=budget)


@pytest.mark.parametrize("budget", [0, -1, 3.5, float("nan"), float("inf")])
def test_a_budget_the_model_cannot_have_is_refused(run_folder: Path, tmp_path: Path, budget: float):
    refused(BudgetError, tmp_path / "out", run_folder, "--budget", "3 layers", budget=budget)


def test_what_is_no_finished_run_is_refused(run_folder: Path, bundle: Path, tmp_path: Path):
    out = tmp_path / "out"
    refused(BundleError, out, tmp_path / "missing", "missing", "not a run folder")
    refused(BundleError, out, tmp_path, "not a run folder")
    refused(BundleError, out, bundle, str(bundle), "--out: ", "is a bundle", "leave it out")
    unfinished = Path(shutil.copytree(run_folder, tmp_path / "unfinished"))
    (unfinished / "summary.json").unlink()
    refused(BundleError, out, unfinished, "unfinished", "not finished", "--resume")


@pytest.mark.parametrize("file", ["recipe.json", "summary.json", "budgets/1.5/config.json"])
@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_a_run_with_damaged_json_is_refused(run_folder: Path, tmp_path: Path, file: str, content: str):
    damaged = Path(shutil.copytree(run_folder, tmp_path / "damaged"))
    (damaged / file).write_text(content)
    refused(BundleError, tmp_path / "out", damaged, "damaged")


@pytest.mark.parametrize(
    "file",
    ["budgets/1.5/model.safetensors", "stage1/model.safetensors", "tokenizer/tokenizer.json", "state/texts.jsonl"],
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_run_with_damaged_files_is_refused(run_folder: Path, tmp_path: Path, file: str, damage: str):
    damaged = Path(shutil.copytree(run_folder, tmp_path / "damaged"))
    if damage == "missing":
        (damaged / file).unlink()
    else:
        os.truncate(damaged / file, (damaged / file).stat().st_size // 2)
    error = (BundleError, OSError) if damage == "missing" else BundleError
    refused(error, tmp_path / "out", damaged, str(Path("damaged") / Path(file).parent))


def test_an_existing_out_is_refused(run_folder: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    refused(BundleError, tmp_path / "out", run_folder, "exists already", "--out")
    refused(BundleError, tmp_path / "out" / "mine", run_folder, "exists already")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_an_unknown_engine_precision_or_golden_file_is_refused(run_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    refused(EngineError, out, run_folder, "--engine abacus", "ort", engine="abacus")
    refused(EngineError, out, run_folder, "--precision int7", "fp32", precision="int7")
    refused(EngineError, out, run_folder, "--cut thin", "gates, layers, whole", cut="thin")
    refused(DataError, out, run_folder, "--golden", "missing.txt", golden=tmp_path / "missing.txt")


def test_a_missing_engine_library_is_found_before_the_work(run_folder: Path, tmp_path: Path, monkeypatch):
    """`None` in `sys.modules` is how Python itself marks a module that must not be imported."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(building, "template_of", lambda *_: pytest.fail("work began"))
    refused(EngineError, tmp_path / "out", run_folder, "hadskip-export[ort]")


# What goes wrong on the way


@pytest.mark.parametrize(
    "error", [EngineError("layer_02: torch cannot export it"), OSError(28, "No space left"), KeyboardInterrupt]
)
def test_nothing_half_written_is_left_when_the_export_stops(run_folder: Path, tmp_path: Path, monkeypatch, error):
    exported = []

    def place(folder, graph, stem):
        exported.append(stem)
        if len(exported) == 3:
            raise error
        return really(folder, graph, stem)

    really = building.place_graph
    monkeypatch.setattr(building, "place_graph", place)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        build(run_folder, out=tmp_path / "out", full=False)
    assert exported == PIECES[:3]
    assert list(tmp_path.iterdir()) == []


def test_full_bert_may_be_of_another_configuration(model_folder: Path, tmp_path: Path):
    """What was traced of the student's pieces has its heads, activation and eps in it."""
    source = make_source(model_folder, tmp_path, layers=2)
    config = replace(source.full.config, num_heads=2, activation="relu", layer_norm_eps=0.1)
    full = Classifier(config).init_weights(std=0.1)
    assert building.write_bundle(replace(source, full=full), tmp_path / "bundle").parity == "passed"


def test_a_bundle_that_misses_parity_is_written_marked_and_refused(one_layer, tmp_path: Path, monkeypatch):
    out = tmp_path / "here" / "bundle"
    with monkeypatch.context() as patch:
        patch.setitem(parity.PIECE_TOLERANCE, "head", -1.0)  # no difference is small enough
        report = building.write_bundle(one_layer, out)
    assert report.parity == "failed"
    assert report.first_bad_piece == "head"
    assert text.parity(report)[-1].strip() == "parity FAILED at head"
    engine = read_bundle(out).engine()
    assert (engine.parity, engine.first_bad_piece) == ("failed", "head")
    assert json.loads((out / "engines" / "ort-fp32-whole" / "report.json").read_text())["first_bad_piece"] == "head"
    with pytest.raises(BundleError, match=r"failed its parity check at head"):
        Predictor.load(out)
    with Predictor.load(out, allow_failed=True) as predictor:
        assert predictor("good").label in ("no", "yes")
    found = validate(out)  # with the tolerance as it is, nothing is wrong; and yet `predict` refuses it
    assert found.parity.parity == "passed" and (found.passed, found.failed_at) == (False, "head")


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_loads(run_folder: Path, tmp_path: Path):
    out = tmp_path / "here" / "bundle"
    code = "import sys, hadskip_export; hadskip_export.build(sys.argv[1], out=sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", code, run_folder, out], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.rglob("layer_01.onnx")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    (left,) = out.parent.iterdir()
    with pytest.raises(BundleError, match="not a bundle"):
        read_bundle(left)
    with new_bundle(out) as folder:  # and the name is free for the next attempt
        (folder / "file").write_text("content")
    assert (out / "file").is_file()
