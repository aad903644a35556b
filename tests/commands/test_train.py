"""A whole run, small: what it leaves, whether its figures are true, and whether a stopped run ends up the same."""

import copy
import csv
import itertools
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import pipeline as pipeline_of_transformers

import hadskip_export.commands.train as training
from hadskip_export import build, inspect, validate
from hadskip_export.data.examples import Examples, read_examples
from hadskip_export.data.runs import read_texts
from hadskip_export.data.tasks import hold_out
from hadskip_export.modeling.checkpoint import load_classifier, load_student, save_classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.report import text as report
from hadskip_export.runtime import read_bundle
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.errors import BudgetError, BundleError, DataError, RecipeError
from hadskip_export.trainers import pipeline
from hadskip_export.trainers.batches import Dataset, encode
from hadskip_export.trainers.evaluation import full_logits
from tests.conftest import QUICK, sentences, write_csv
from tests.trainers.datasets import alone
from tests.trainers.oracle import above, always, predict_fixed_routes, predict_routed
from tests.trainers.runs import QUICKEST, as_model, assert_bit_equal, read, repeat

BUDGETS = ("3", "2", "1.5")


@pytest.fixture(scope="module")
def slices(run_folder: Path, csv_files: tuple[Path, Path]) -> tuple[Dataset, Dataset]:
    """(held-out slice, evaluation data), read and encoded again."""
    tokenizer = Tokenizer(run_folder / "tokenizer" / "tokenizer.json", 32)

    def encoded(rows: Examples) -> Dataset:
        return encode(tokenizer, rows.texts, np.array([("negative", "positive").index(label) for label in rows.labels]))

    training = read_examples(csv_files[0])
    return encoded(training[hold_out(len(training), 0)[1].tolist()]), encoded(read_examples(csv_files[1]))


# What a run leaves


def test_the_run_folder_has_what_the_design_says(run_folder):
    files = {str(file.relative_to(run_folder)) for file in run_folder.rglob("*") if file.is_file()}
    checkpoints = {"stage1", "stage2", *(f"budgets/{budget}" for budget in BUDGETS)}
    wanted = {
        "recipe.json",
        "metrics.jsonl",
        "summary.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/SHA256SUMS",
        "stage1/tokenizer.json",
        "stage1/tokenizer_config.json",
        "state/texts.jsonl",
        "state/lock",
    }
    wanted |= {
        f"{folder}/{file}" for folder in checkpoints for file in ("model.safetensors", "config.json", "SHA256SUMS")
    }
    wanted |= {f"budgets/{budget}/metrics.json" for budget in BUDGETS}
    assert files == wanted


def test_the_fine_tuned_model_loads_in_transformers_from_text_to_label(run_folder):
    classify = pipeline_of_transformers("text-classification", str(run_folder / "stage1"), device="cpu")
    tokenizer = Tokenizer(run_folder / "tokenizer" / "tokenizer.json", 32)
    model, texts = load_classifier(run_folder / "stage1"), [text for text, _ in sentences(20, 4)]
    ours = full_logits(model, encode(tokenizer, texts, np.zeros(20, np.int64))).argmax(-1)
    assert [model.config.labels[index] for index in ours] == [answer["label"] for answer in classify(texts)]


def test_the_summary_is_the_frontier_in_the_order_of_the_path(run_folder):
    summary = read(run_folder / "summary.json")
    assert (summary["task"], summary["metric"], summary["layers"], summary["max_length"]) == (
        "train",
        "accuracy",
        3,
        32,
    )
    assert summary["labels"] == ["negative", "positive"]
    assert [row["budget"] for row in summary["budgets"]] == [3, 2, 1.5]
    for row, budget in zip(summary["budgets"], BUDGETS, strict=True):
        assert [row] == read(run_folder / "budgets" / budget / "metrics.json")["evaluation"]
        assert row["retained"] == pytest.approx(row["metric"] / summary["teacher"]["metric"])


def test_the_recipe_holds_all_the_result_depends_on(run_folder, model_folder, csv_files):
    recipe = read(run_folder / "recipe.json")
    assert recipe["model"] == str(model_folder) and recipe["budget"] == 1.5 and recipe["seed"] == 0
    assert (recipe["train"], recipe["eval"]) == tuple(map(str, csv_files))
    assert recipe["recipe"]["stage1_lr"] == 3e-3 and recipe["recipe"]["beta"] == 1.0


def test_the_log_follows_the_stages(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    phases = [phase for phase, _ in itertools.groupby(line["phase"] for line in lines if "phase" in line)]
    stage3 = [[f"stage III, budget {budget}", "evaluation"] for budget in BUDGETS]
    assert phases == ["stage I", "stage II", *itertools.chain(*stage3)]
    assert all(math.isfinite(v) for line in lines for v in line.values() if isinstance(v, float))
    assert [line["epoch"] for line in lines if line.get("phase") == "stage III, budget 1.5"] == [1, 2, 3]


def test_texts_for_the_parity_check_are_the_held_out_ones_then_those_of_evaluation(run_folder, csv_files):
    training, evaluation = map(read_examples, csv_files)
    held_out = training[hold_out(len(training), 0)[1].tolist()]
    assert read_texts(run_folder / "state" / "texts.jsonl") == held_out.texts + evaluation.texts


# What the stages did


def test_stage_one_kept_its_best_epoch_on_the_held_out_slice(run_folder, slices):
    held_out, _ = slices
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    values = [line["held_out"] for line in lines if line.get("stage") == "1"]
    assert len(values) == 4
    teacher = load_classifier(run_folder / "stage1")
    assert np.mean(full_logits(teacher, held_out).argmax(-1) == held_out.targets) == pytest.approx(max(values))
    assert max(values) > 0.8  # it has learned; half is chance


def test_stage_two_changed_the_gates_and_nothing_else(run_folder):
    teacher = load_classifier(run_folder / "stage1")
    model, settings = load_student(run_folder / "stage2")
    assert_bit_equal(model.classifier, teacher)
    assert (settings.width, settings.threshold, settings.budget) == (8, 0.0, 3)
    torch.manual_seed(1)
    fresh = GatedClassifier(copy.deepcopy(teacher), 8, 1.0)
    for trained, untrained in zip(model.gates, fresh.gates, strict=True):
        assert trained.logits.bias.shape == untrained.logits.bias.shape
        assert not torch.equal(trained.hidden.weight, untrained.hidden.weight)
        torch.testing.assert_close(trained.hidden.weight, untrained.hidden.weight, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("before", "after"), [("stage2", "budgets/3"), ("budgets/3", "budgets/2"), ("budgets/2", "budgets/1.5")]
)
def test_stage_three_teaches_everything_from_the_weights_before(before, after, run_folder):
    old, new = (load_student(run_folder / folder)[0].state_dict() for folder in (before, after))
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert not torch.equal(tensor, new[name]), name
        assert (tensor - new[name]).abs().mean() < 0.05, name


@pytest.mark.parametrize("budget", BUDGETS)
def test_mean_layers_on_the_evaluation_data_meet_the_budget(budget, run_folder):
    metrics = read(run_folder / "budgets" / budget / "metrics.json")
    (row,), (routes,) = metrics["evaluation"], metrics["held_out"]["routes"]
    assert abs(row["mean_layers"] - float(budget)) <= max(0.03 * float(budget), 2 * row["mean_layers_se"])
    assert row["held_out_mean_layers"] == routes["mean_layers"]


# Who may look at what


@pytest.mark.parametrize("threshold_on", ["held-out", "evaluation"])
@pytest.mark.parametrize("slice_", ["held-out", "evaluation"])
def test_no_gradient_sees_the_slice(slice_, threshold_on, model_folder, csv_files, tmp_path):
    """All weights are bit-equal with other sentences and labels in the slice. (One epoch, so that none is chosen.)"""
    rows, evaluation = (list(zip(data.texts, data.labels, strict=True)) for data in map(read_examples, csv_files))
    other_rows, other_evaluation = list(rows), list(evaluation)
    if slice_ == "held-out":
        for row, new in zip(hold_out(len(rows), 0)[1], sentences(len(rows), 9), strict=False):
            other_rows[row] = new
    else:
        other_evaluation = sentences(len(evaluation), 9)
    runs = []
    for name, data in {"as it is": (rows, evaluation), "other": (other_rows, other_evaluation)}.items():
        folder = tmp_path / name
        folder.mkdir()
        files = write_csv(folder / "train.csv", data[0]), write_csv(folder / "eval.csv", data[1])
        repeat(model_folder, files, folder / "run", budget=2, settings=(*QUICKEST, f"threshold_on={threshold_on}"))
        runs.append(folder / "run")

    for checkpoint in ("stage1", "stage2", "budgets/3", "budgets/2"):
        weights, same = (run / checkpoint / "model.safetensors" for run in runs)
        assert weights.read_bytes() == same.read_bytes(), checkpoint
    thresholds = [load_student(run / "budgets" / "2")[1].threshold for run in runs]
    assert (thresholds[0] == thresholds[1]) == (slice_ != threshold_on)  # it is fitted on this slice alone
    assert read(runs[0] / "summary.json")["budgets"] != read(runs[1] / "summary.json")["budgets"]


def test_the_threshold_does_not_see_labels(model_folder, csv_files, tmp_path):
    rows = read_examples(csv_files[1])
    swapped = {"positive": "negative", "negative": "positive"}
    other = write_csv(
        tmp_path / "other.csv", [(t, swapped[label]) for t, label in zip(rows.texts, rows.labels, strict=True)]
    )
    thresholds = []
    for name, evaluation in (("as it is", csv_files[1]), ("swapped", other)):
        repeat(model_folder, (csv_files[0], evaluation), tmp_path / name, budget=2, settings=QUICKEST)
        thresholds.append(load_student(tmp_path / name / "budgets" / "2")[1].threshold)
    assert thresholds[0] == thresholds[1]


# Whether the figures are true


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_figures_are_those_of_the_checkpoint(budget, run_folder, slices):
    """Computed again from the files, one input at a time."""
    held_out, evaluation = slices
    (row,) = read(run_folder / "budgets" / budget / "metrics.json")["evaluation"]
    model, settings = load_student(run_folder / "budgets" / budget)
    assert settings.budget == row["budget"] == float(budget) and settings.threshold == row["threshold"]

    def run(decide, data: Dataset) -> tuple[float, list[tuple[int, ...]]]:
        right, routes = [], []
        for index in range(len(data)):
            output = model.route(*alone(data, index), decide)
            right.append(output.logits.argmax().item() == data.targets[index])
            routes.append(tuple(layer for layer in (1, 2, 3) if output.gates[0, layer - 1]))
        return float(np.mean(right)), routes

    metric, routes = run(above(settings.threshold), evaluation)
    layers, counts = [len(route) for route in routes], Counter(routes)
    shares = [count / len(routes) for count in counts.values()]
    assert row["metric"] == pytest.approx(metric)
    assert row["mean_layers"] == pytest.approx(np.mean(layers))
    assert row["mean_layers_se"] == pytest.approx(np.std(layers) / math.sqrt(len(layers)))
    assert row["routes"] == len(counts)
    assert row["route_entropy_bits"] == pytest.approx(-sum(share * math.log2(share) for share in shares), abs=1e-12)
    assert row["top_route_share"] == pytest.approx(max(shares))
    assert counts[tuple(row["top_route"])] == max(counts.values())
    assert row["top_route_metric"] == pytest.approx(run(always(tuple(row["top_route"]), 3), evaluation)[0])
    shares = {tuple(route): share for route, share in row["commonest_routes"]}
    assert shares == {route: pytest.approx(count / len(routes)) for route, count in counts.items()}
    assert row["commonest_routes"][0] == [row["top_route"], row["top_route_share"]]
    assert row["usage"] == pytest.approx([np.mean([layer in route for route in routes]) for layer in (1, 2, 3)])
    assert row["histogram"] == pytest.approx([np.mean([n == k for n in layers]) for k in range(4)])
    assert row["held_out_mean_layers"] == pytest.approx(
        np.mean([len(r) for r in run(above(settings.threshold), held_out)[1]])
    )


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_static_route_is_the_best_of_the_commonest_that_are_short_enough_on_the_held_out_slice(
    budget, run_folder, slices
):
    held_out, evaluation = slices
    (row,) = read(run_folder / "budgets" / budget / "metrics.json")["evaluation"]
    (taken,) = read(run_folder / "budgets" / budget / "metrics.json")["held_out"]["routes"]
    model = load_student(run_folder / "budgets" / budget)[0]
    routes = [tuple(route) for route, _ in taken["commonest"] if len(route) <= round(float(budget))]
    seen = {
        route: np.mean(p.argmax(-1) == held_out.targets)
        for route, p in predict_fixed_routes(model, held_out, routes).items()
    }
    chosen = tuple(row["static_route"])
    assert seen[chosen] == max(seen.values())
    on_evaluation = predict_fixed_routes(model, evaluation, [chosen])[chosen]
    assert row["static_metric"] == pytest.approx(np.mean(on_evaluation.argmax(-1) == evaluation.targets))
    assert row["skill"] is row["hindsight_divergence"] is None  # nothing is known of routes that nobody taught


def test_the_teachers_figure_is_that_of_stage_one(run_folder, slices):
    _, evaluation = slices
    predicted = full_logits(load_classifier(run_folder / "stage1"), evaluation).argmax(-1)
    assert read(run_folder / "summary.json")["teacher"]["metric"] == pytest.approx(
        np.mean(predicted == evaluation.targets)
    )


# Going on after a stop


@pytest.mark.parametrize(
    "lost",
    [("summary.json", "budgets/1.5"), ("summary.json", "budgets", "stage2")],
    ids=["in the last budget", "in stage II"],
)
def test_a_stopped_run_ends_with_the_very_weights_and_figures(lost, run_folder, model_folder, csv_files, tmp_path):
    out = shutil.copytree(run_folder, tmp_path / "run")
    for name in lost:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    (out / "budgets" / ".1.5.part").mkdir(parents=True)  # what a kill leaves
    summary = repeat(model_folder, csv_files, out, resume=True)
    assert json.loads(json.dumps(summary)) == read(run_folder / "summary.json") == read(out / "summary.json")
    for folder in ("stage1", "stage2", *(f"budgets/{budget}" for budget in BUDGETS)):
        for file in ("model.safetensors", "config.json"):
            assert (out / folder / file).read_bytes() == (run_folder / folder / file).read_bytes(), folder
    assert not list(out.rglob("*.part"))


def test_resuming_a_finished_run_trains_nothing(run_folder, model_folder, csv_files, tmp_path):
    out = shutil.copytree(run_folder, tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    repeat(model_folder, csv_files, out, resume=True)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before
    assert read(out / "summary.json") == read(run_folder / "summary.json")


@pytest.mark.parametrize(
    "changes",
    [{"budget": 2}, {"seed": 1}, {"settings": (*QUICK, "beta=2")}, {"max_length": 16}],
    ids=lambda changes: next(iter(changes)),
)
def test_resuming_with_another_command_is_refused(changes, run_folder, model_folder, csv_files, tmp_path):
    out = shutil.copytree(run_folder, tmp_path / "run")
    with pytest.raises(BundleError, match="--resume"):
        repeat(model_folder, csv_files, out, resume=True, **changes)


def test_resuming_with_another_file_of_the_same_name_is_refused(run_folder, model_folder, csv_files):
    """Other rows would be held out, some of which the run has learned from."""
    train_file, _ = csv_files
    before = train_file.read_text()
    train_file.write_text("".join(before.splitlines(keepends=True)[:-1]))
    try:
        with pytest.raises(BundleError, match="the texts of --train or --eval have changed since that run began"):
            repeat(model_folder, csv_files, run_folder, resume=True)
    finally:
        train_file.write_text(before)


def test_resuming_when_the_models_files_have_changed_is_refused(run_folder, model_folder, csv_files):
    """What is served would be of neither model."""
    weights = model_folder / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(BundleError, match="the files of --model have changed since that run began"):
            repeat(model_folder, csv_files, run_folder, resume=True)
    finally:
        weights.write_bytes(before)


def test_the_folder_of_a_run_is_refused_without_resume(run_folder, model_folder, csv_files):
    with pytest.raises(BundleError, match="not empty"):
        repeat(model_folder, csv_files, run_folder)


# The user's own classifier


def test_a_fine_tuned_model_is_the_teacher(run_folder, csv_files, tmp_path):
    """Its labels come in another order than the file's; read in the file's order it would nearly always be wrong."""
    model = as_model(tmp_path / "model", run_folder, ("negative", "positive"))
    swapped = load_classifier(model)
    swapped.config = type(swapped.config)(**{**swapped.config.__dict__, "labels": ("positive", "negative")})
    with torch.no_grad():
        swapped.head.classifier.weight.copy_(swapped.head.classifier.weight.flip(0))
        swapped.head.classifier.bias.copy_(swapped.head.classifier.bias.flip(0))
    save_classifier(swapped, model)

    summary = repeat(model, csv_files, tmp_path / "run", fine_tuned=True, budget=3, settings=QUICKEST)
    assert_bit_equal(load_classifier(tmp_path / "run" / "stage1"), swapped)
    assert (
        tuple(summary["labels"])
        == load_classifier(tmp_path / "run" / "stage1").config.labels
        == ("positive", "negative")
    )
    assert summary["teacher"]["metric"] == read(run_folder / "summary.json")["teacher"]["metric"]
    assert_bit_equal(load_student(tmp_path / "run" / "stage2")[0].classifier, swapped)
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"stage I"' not in log and '"stage II"' in log


def test_a_fine_tuned_model_with_generic_labels_takes_the_files_numbers(run_folder, csv_files, tmp_path):
    model = as_model(tmp_path / "model", run_folder, ("LABEL_0", "LABEL_1"))
    files = []
    for file in csv_files:
        rows = read_examples(file)
        numbered = [
            (text, str(("negative", "positive").index(label)))
            for text, label in zip(rows.texts, rows.labels, strict=True)
        ]
        files.append(write_csv(tmp_path / file.name, numbered[:60]))
    summary = repeat(model, files, tmp_path / "run", fine_tuned=True, budget=3, settings=QUICKEST)
    assert summary["labels"] == ("0", "1") and summary["teacher"]["metric"] > 0.8
    assert load_student(tmp_path / "run" / "budgets" / "3")[0].classifier.config.labels == ("0", "1")


def test_of_texts_without_labels_figures_are_the_agreement_with_the_teacher(run_folder, csv_files, tmp_path, capsys):
    model = as_model(tmp_path / "model", run_folder, ("negative", "positive"))
    texts = read_examples(csv_files[1]).texts
    files = csv_files[0], write_csv(tmp_path / "served.csv", [(text,) for text in texts], ("text",))
    summary = repeat(model, files, tmp_path / "run", fine_tuned=True, budget=2, settings=QUICKEST)
    assert (summary["metric"], summary["evaluated_on"], summary["teacher"]) == (
        "agreement", "served.csv", {"metric": 1.0},
    )  # fmt: skip
    assert "served.csv has no labels" in capsys.readouterr().err
    teacher, student = load_classifier(tmp_path / "run" / "stage1"), load_student(tmp_path / "run" / "budgets" / "2")[0]
    row = summary["budgets"][-1]
    data = encode(Tokenizer(run_folder / "tokenizer" / "tokenizer.json", 32), texts, np.zeros(len(texts), np.int64))
    says, said = (
        predict_routed(student, data, above(row["threshold"]))[0].argmax(-1),
        full_logits(teacher, data).argmax(-1),
    )
    assert row["metric"] == row["retained"] == np.mean(says == said)
    assert row["divergence"] > 0
    # What is made of such a run: no metric is claimed, and whoever has labels later measures accuracy.
    assert "agreement with the teacher on served.csv" in report.inspection(inspect(tmp_path / "run"))[0]
    assert len(inspect(tmp_path / "run", plots=tmp_path / "plots").plots) > 3
    build(tmp_path / "run", out=tmp_path / "bundle", full=False)
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert (manifest.metric, manifest.default_point.metric, manifest.default_point.full_metric) == (
        "accuracy", None, None,
    )  # fmt: skip
    assert manifest.default_point.mean_layers == row["mean_layers"]
    measured = validate(tmp_path / "bundle", data=csv_files[1]).data
    assert measured.metric == "accuracy" and measured.texts == len(texts)


@pytest.mark.parametrize(
    ("labels", "fine_tuned", "told"),
    [(("positive", "negative"), False, True), (("negative", "positive"), True, False), (("bad", "good"), False, False)],
    ids=str,
)
def test_a_classifier_that_is_replaced_is_told_of(
    run_folder, csv_files, tmp_path, capsys, monkeypatch, labels, fine_tuned: bool, told: bool
):
    model = as_model(tmp_path / "model", run_folder, labels)
    monkeypatch.setattr(training, "run_training", lambda plan, run: None)
    repeat(model, csv_files, tmp_path / "run", fine_tuned=fine_tuned, budget=3)
    said = capsys.readouterr().err
    assert ("its own classifier is replaced" in said and "give --fine-tuned to keep it" in said) == told


def test_an_encoder_is_no_classifier_to_replace(model_folder, csv_files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "run_training", lambda plan, run: None)
    repeat(model_folder, csv_files, tmp_path / "run", budget=3)
    assert "--fine-tuned" not in capsys.readouterr().err


def test_an_encoder_is_no_fine_tuned_model(model_folder, csv_files, tmp_path):
    with pytest.raises(BundleError, match="BertModel has no classifier of its own; leave out --fine-tuned"):
        repeat(model_folder, csv_files, tmp_path / "run", fine_tuned=True)


# Pairs


def test_pairs_of_texts_train_too(model_folder, tmp_path):
    random = np.random.default_rng(0)
    for name in ("train", "eval"):
        rows = []
        for _ in range(60):
            first, second = random.choice(["good", "bad"], size=2)
            rows.append((f"a {first} film", f"it was {second}", "same" if first == second else "other"))
        write_csv(tmp_path / f"{name}.csv", rows, header=("premise", "hypothesis", "label"))
    summary = repeat(
        model_folder, (tmp_path / "train.csv", tmp_path / "eval.csv"), tmp_path / "run", budget=0.9, settings=QUICKEST
    )
    assert summary["labels"] == ("other", "same")
    assert [row["budget"] for row in summary["budgets"]] == [3, pytest.approx(2.7)]
    texts = read_texts(tmp_path / "run" / "state" / "texts.jsonl")
    assert len(texts) == 66 and all(isinstance(text, tuple) and len(text) == 2 for text in texts)


# What goes wrong on the way


@pytest.mark.parametrize("rate", ["stage1_lr", "body_lr"])
def test_a_loss_that_is_no_number_ends_the_training(rate: str, model_folder, csv_files, tmp_path):
    with pytest.raises(RecipeError, match=r"^stage I.*, epoch 1: the loss is no longer a number; train anew at a "):
        repeat(model_folder, csv_files, tmp_path / "run", settings=[*QUICKEST, f"{rate}=1e30"])
    assert (tmp_path / "run" / "stage1").is_dir() == (rate == "body_lr")  # what was learned before stays
    assert (tmp_path / "run").exists() == (rate == "body_lr")


def test_a_device_that_is_too_small_is_said(model_folder, csv_files, tmp_path, monkeypatch: pytest.MonkeyPatch):
    def fine_tune(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 0 bytes")

    monkeypatch.setattr(pipeline, "fine_tune", fine_tune)
    with pytest.raises(RecipeError, match=r"^--device cpu: too little memory \(CUDA out of memory.* GiB\.\)"):
        repeat(model_folder, csv_files, tmp_path / "run", settings=QUICKEST)
    assert not (tmp_path / "run").exists()


# Requests that cannot be met leave nothing behind


@pytest.mark.parametrize(
    ("changes", "error", "name"),
    [
        ({"budget": 0}, BudgetError, "--budget 0"),
        ({"budget": 3.5}, BudgetError, "--budget 3.5"),
        ({"max_length": 7}, DataError, "--max-length 7"),
        ({"max_length": 0}, DataError, "--max-length 0"),
        ({"max_length": 65}, DataError, "--max-length 65"),
        ({"device": "abacus"}, RecipeError, "leave --device out"),
        ({"settings": ("beta",)}, RecipeError, "key=value"),
        ({"model": "no such model !"}, BundleError, "no such model !"),
        ({"text_column": "body"}, DataError, "'body'"),
        ({"eval": None}, DataError, "--eval"),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else None,
)
def test_an_impossible_request_is_refused_and_writes_nothing(changes, error, name, model_folder, csv_files, tmp_path):
    with pytest.raises(error) as caught:
        repeat(model_folder, csv_files, tmp_path / "run", **changes)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_texts_in_parquet_and_in_a_folder_of_datasets_train_to_the_same_weights(
    run_folder, model_folder, csv_files, tmp_path
):
    paths = [tmp_path / "train.parquet", tmp_path / "eval"]
    for source, place in zip(csv_files, paths, strict=True):
        with source.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        data = datasets.Dataset.from_list(rows)
        data.to_parquet(str(place)) if place.suffix else data.save_to_disk(str(place))
    training.train(
        model=str(model_folder), budget=1.5, out=tmp_path / "run", train=str(paths[0]), eval=str(paths[1]),
        recipe="paper", settings=QUICK, max_length=32,
    )  # fmt: skip
    weights = "budgets/1.5/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (run_folder / weights).read_bytes()
