"""`optimize` on a tiny classifier: what it promises, measured again; how it goes on after a stop; what it refuses."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

from hadskip_export import optimize, validate
from hadskip_export.cli import main
from hadskip_export.commands import optimize as command
from hadskip_export.report import text
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.support.errors import BudgetError, BundleError, DataError, EngineError, HadskipError, RecipeError
from hadskip_export.tuning.loss import Loss
from hadskip_export.tuning.plan import MOST_EPOCHS
from tests.conftest import sentences, write_csv

LABELLED = list(dict(sentences(400, 21)).items())[:260]  # no text twice
TEXTS = [text for text, _ in LABELLED]
FAST = {
    "epochs": 2,
    "engines": ["ort-fp32"],
    "settings": ["fit_steps=50", "precision=fp32", "gate_width=8"],
    "max_length": 32,
}


@pytest.fixture(scope="module")
def model(run_folder: Path) -> Path:
    """A user's fine-tuned classifier."""
    return run_folder / "stage1"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", [(text,) for text in TEXTS], ("text",))


@pytest.fixture(scope="module")
def made(model: Path, file: Path, tmp_path_factory: pytest.TempPathFactory):
    """An optimisation for a loss, with the folder of its work."""
    folder = tmp_path_factory.mktemp("made")
    return optimize(model, file, folder / "bundle", max_loss=0.2, work=folder / "work", **FAST), folder


def chosen_on(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "work" / "chosen-on.jsonl").read_text().splitlines()]


def labels_of(bundle: Path, texts: list[str], **options) -> np.ndarray:
    with Predictor.load(bundle, **options) as predictor:
        return np.array([one.label for one in predictor(texts)])


def test_what_is_written_answers_as_was_promised(made, model: Path):
    """By `transformers` on the user's folder, which has no hand in what is measured."""
    found, folder = made
    texts, chosen = chosen_on(folder), found.chosen
    original = transformers.pipeline("text-classification", model=str(model), device="cpu")
    expected = np.array([one["label"] for one in original(texts, truncation=True, max_length=32)])
    assert np.mean(labels_of(folder / "bundle", texts) != expected) == pytest.approx(found.served.value)
    assert found.served == chosen.loss  # in fp32 a batch gives what single calls give
    assert chosen.loss.value <= chosen.loss.most <= 0.2 and found.loss_of == "agreement"
    assert validate(folder / "bundle").passed
    (info,) = read_bundle(folder / "bundle").manifest.engines
    assert info.name == chosen.engine


def test_the_operating_point_that_was_chosen_is_the_default(made):
    found, folder = made
    offered = next(one for one in found.candidates if one.router == "gates")
    assert offered.at is not None and offered.loss.most <= 0.2
    command._write(folder / "work" / "run", folder / "gates", offered, "texts of mine")
    manifest = read_bundle(folder / "gates").manifest
    assert manifest.default_budget == offered.at.budget and manifest.default_point.data == "texts of mine"
    with Predictor.load(folder / "gates") as predictor:
        layers = [len(one.layers) for one in predictor(chosen_on(folder))]
    assert np.mean(layers) == pytest.approx(offered.at.routes.mean_layers)
    assert len(manifest.points) > 1  # those of the training are there, too


def test_full_bert_becomes_a_bundle_that_runs_nothing_else(made, model: Path):
    """Whoever loads it has what was promised, without an option that could be forgotten."""
    found, folder = made
    full = found.candidates[0]
    assert full.router == "full" and full.loss == Loss(0.0, full.loss.most)
    command._write(folder / "work" / "run", folder / "full", full, "texts of mine")
    original = transformers.pipeline("text-classification", model=str(model), device="cpu")
    expected = [one["label"] for one in original(TEXTS, truncation=True, max_length=32)]
    assert labels_of(folder / "full", TEXTS).tolist() == expected
    assert validate(folder / "full").passed
    assert any("it runs every layer of your model" in line for line in text.optimization(replace(found, chosen=full)))


def test_one_that_fails_its_check_at_its_operating_point_gives_way_to_the_next(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    found, folder = made
    write, bad, lost = command.write_bundle, ["routes", None, None], [None, Loss(0.0, 0.1)]

    def judged(*arguments):
        return replace(write(*arguments), first_bad_piece=bad.pop(0))

    monkeypatch.setattr(command, "write_bundle", judged)
    fit = [*found.candidates, found.candidates[0]]
    assert command._write_best(folder / "work", tmp_path / "bundle", fit, "texts", lambda _: lost.pop(0)) == (
        fit[2:], Loss(0.0, 0.1),
    )  # fmt: skip
    assert "fails its check at the operating point" in capsys.readouterr().err
    assert validate(tmp_path / "bundle").passed
    bad += ["routes"] * 3
    with pytest.raises(EngineError, match="no engine passes its check"):
        command._write_best(folder / "work", tmp_path / "none", fit, "texts", lambda _: Loss(0.0, 0.1))
    assert [place.name for place in tmp_path.iterdir()] == ["bundle"]


def test_texts_that_it_chose_on_were_not_learned_from(made):
    _, folder = made
    learned = [json.loads(line)["text"] for line in (folder / "work" / "learned.jsonl").read_text().splitlines()]
    assert sorted([*learned, *chosen_on(folder)]) == sorted(TEXTS)
    assert len(chosen_on(folder)) == 78  # three in ten


def test_another_goal_needs_no_new_training(made, model: Path, file: Path, capsys: pytest.CaptureFixture):
    """And of all that keeps a time what loses least is chosen."""
    _, folder = made
    found = optimize(model, file, folder / "slow", p50=1e9, work=folder / "work", **FAST)
    assert "epoch 1 of" not in capsys.readouterr().err
    assert found.chosen.loss.most == min(one.loss.most for one in found.candidates)
    with pytest.raises(BudgetError, match=r"nothing meets the goal: .* may lose .*; what was trained is in .*--work"):
        optimize(model, file, folder / "never", p50=1e-6, work=folder / "work", **FAST)
    assert not (folder / "never").exists()


def test_another_classifier_in_the_same_place_is_another_optimisation(made, model: Path, file: Path):
    _, folder = made
    before = (model / "config.json").read_text()
    (model / "config.json").write_text(before + "\n")
    try:
        with pytest.raises(BundleError, match="an optimisation with another content of --model"):
            optimize(model, file, folder / "other", p50=1e9, work=folder / "work", **FAST)
    finally:
        (model / "config.json").write_text(before)


def test_one_that_was_stopped_goes_on_and_leaves_nothing(
    made, model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def stopped(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "race", stopped)
        with pytest.raises(KeyboardInterrupt):
            optimize(model, file, tmp_path / "bundle", max_loss=0.2, **FAST)
    assert [place.name for place in tmp_path.iterdir()] == ["bundle.work"]
    with pytest.raises(BundleError, match=r"holds an optimisation with another epochs; .* --work"):
        optimize(model, file, tmp_path / "bundle", max_loss=0.2, **(FAST | {"epochs": 3}))
    capsys.readouterr()
    found = optimize(model, file, tmp_path / "bundle", max_loss=0.2, **FAST)
    assert "epoch 1 of" not in capsys.readouterr().err
    assert [place.name for place in tmp_path.iterdir()] == ["bundle"]
    before, _ = made
    for one, other in zip(found.candidates, before.candidates, strict=True):
        assert replace(one, p50_ms=0, p90_ms=0) == replace(other, p50_ms=0, p90_ms=0)


def test_labels_are_learned_from_and_the_loss_is_of_the_metric(model: Path, tmp_path: Path):
    labelled = write_csv(tmp_path / "labelled.csv", LABELLED)
    found = optimize(model, labelled, tmp_path / "bundle", max_loss=0.2, **FAST)
    assert found.loss_of == "accuracy"
    full, gates = found.candidates
    assert gates.loss.value == pytest.approx(full.metric - gates.metric)
    assert 0.8 < full.metric == full.full_metric == gates.full_metric


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As long as fits into the minutes, by what a few batches took; engines by what a layer took."""
    known = {"ort-fp32": 3.0, "openvino-fp32": 2.9, "openvino-int8": 1.0, "ort-int8": 2.8}
    monkeypatch.setattr(command, "layer_times", lambda *_: (known, True))
    monkeypatch.setattr(command, "seconds_per_text", lambda *_: 0.5)
    few, many = (
        optimize(model, file, tmp_path / "bundle", minutes=minutes, max_loss=0.2, dry_run=True, max_length=32).plan
        for minutes in (10, 20)
    )
    assert list(tmp_path.iterdir()) == []
    assert few.engines == ("openvino-fp32", "openvino-int8")
    assert few.learned + few.chosen_on == len(TEXTS)
    epoch = few.learned * 0.5 / 60
    assert few.epochs == int(0.6 * 10 / epoch - 1.5) and many.epochs == int(0.6 * 20 / epoch - 1.5)
    assert few.training_minutes <= 6 and many.training_minutes <= 12
    least = optimize(
        model, file, tmp_path / "bundle", minutes=4, max_loss=0.2, dry_run=True, engines=["ort-fp32"], max_length=32
    ).plan
    assert (least.learned, least.epochs) == (int(0.6 * 4 * 60 / (2.5 * 0.5)), 1)


def test_how_fast_it_trains_is_measured(model: Path, file: Path, tmp_path: Path):
    options = FAST | {"epochs": None, "minutes": 1000}
    plan = optimize(model, file, tmp_path / "bundle", max_loss=0.2, dry_run=True, **options).plan
    assert plan.epochs == MOST_EPOCHS and 0 < plan.training_minutes < 600


@pytest.mark.parametrize(
    "kind",
    [
        "multi_label_classification",
        pytest.param("regression", marks=pytest.mark.slow),
        pytest.param("ranking", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_answer_can_be_optimised(kind: str, model_folder: Path, tmp_path: Path):
    """With what it measures by itself left to it: how fast it trains."""
    labels = ("a", "b", "c") if kind == "multi_label_classification" else ("LABEL_0",)
    folder = fine_tuned(model_folder, tmp_path / "model", labels, kind)
    file = tmp_path / "texts.csv"
    if kind == "ranking":
        rows = [(f"{one} {number // 2}", two) for number, (one, two) in enumerate(itertools.pairwise(TEXTS))]
        write_csv(file, rows, ("text", "text_pair"))
    else:
        write_csv(file, [(text,) for text in TEXTS], ("text",))
    options = FAST | {"epochs": None, "minutes": 5}
    found = optimize(folder, file, tmp_path / "bundle", p50=1e6, **options)
    assert found.loss_of == "agreement" and found.chosen.loss.value <= 0.01
    assert validate(tmp_path / "bundle").passed


def fine_tuned(model_folder: Path, folder: Path, labels: tuple[str, ...], kind: str) -> Path:
    """As `transformers` saves a classifier of random weights."""
    torch.manual_seed(0)
    own = {"problem_type": kind} if kind != "ranking" else {}
    config = transformers.AutoConfig.from_pretrained(
        model_folder, id2label=dict(enumerate(labels)), label2id={label: row for row, label in enumerate(labels)}, **own
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_what_the_model_reads_is_what_it_is_held_against(model: Path, tmp_path: Path):
    """Texts longer than 32 tokens here: without an option none is cut shorter than `transformers` cuts it."""
    long = write_csv(tmp_path / "long.csv", [(f"{text} {'three ' * 40}",) for text in TEXTS], ("text",))
    options = {name: value for name, value in FAST.items() if name != "max_length"}
    optimize(model, long, tmp_path / "bundle", p50=1e6, **options)
    assert read_bundle(tmp_path / "bundle").manifest.model.max_length == 64
    original = transformers.pipeline("text-classification", model=str(model), device="cpu")
    texts = [f"{text} {'three ' * 40}" for text in TEXTS]
    expected = [one["label"] for one in original(texts, truncation=True)]
    assert labels_of(tmp_path / "bundle", texts).tolist() == expected


def test_labels_that_are_not_the_models_are_not_used_unless_they_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    file = write_csv(tmp_path / "texts.csv", [(text, "drama") for text in TEXTS], ("text", "category"))
    plan = optimize(model, file, tmp_path / "bundle", max_loss=0.2, dry_run=True, **FAST).plan
    assert plan.learned == 182 and "'drama' is not known; the model has" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"texts.csv, line 2: label 'drama' is not known"):
        optimize(model, file, tmp_path / "bundle", max_loss=0.2, label_column="category", **FAST)
    assert [place.name for place in tmp_path.iterdir()] == ["texts.csv"]


def test_too_few_of_a_label_for_a_loss_of_its_metric_is_said_before_the_training(model_folder: Path, tmp_path: Path):
    folder = fine_tuned(model_folder, tmp_path / "model", ("a", "b", "c"), "multi_label_classification")
    rows = [(text, '["a", "b", "c"]' if number % 40 == 0 else '["a", "b"]') for number, text in enumerate(TEXTS)]
    file = write_csv(tmp_path / "texts.csv", rows)
    with pytest.raises(DataError, match=r"--max-loss 0.2: \d of the rarest label cannot show it"):
        optimize(folder, file, tmp_path / "bundle", max_loss=0.2, **FAST)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["model", "texts.csv"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"settings": ["shared_epochs=3"]}, "--set shared_epochs"),
        ({"settings": ["body=dedicated"]}, "--set routing, body: a body of all budgets"),
        ({"settings": ["routing=joint"]}, "--set routing, body: a body of all budgets"),
        ({"device": "abacus"}, "abacus"),
        ({"out": "texts.csv"}, "exists"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(model: Path, file: Path, tmp_path: Path, options: dict, why: str):
    taken = write_csv(tmp_path / "texts.csv", [("a",)], ("text",))
    out = taken if options.pop("out", None) else tmp_path / "bundle"
    with pytest.raises(HadskipError, match=why):
        optimize(model, file, out, max_loss=0.2, dry_run=True, **(FAST | options))


def test_how_a_place_is_written_makes_no_difference(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)

    def stopped(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "race", stopped)
        with pytest.raises(KeyboardInterrupt):
            optimize(model, file, "bundle/", max_loss=0.2, **FAST)
    capsys.readouterr()
    optimize(model, file, tmp_path / "bundle", max_loss=0.2, **FAST)
    assert "epoch 1 of" not in capsys.readouterr().err and [place.name for place in tmp_path.iterdir()] == ["bundle"]


def test_an_engine_that_cannot_be_built_is_left_out(
    made, model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    build = command.build

    def broken(source, **options):
        if options["engine"] == "openvino":
            raise EngineError("this graph is not for me")
        return build(source, **options)

    monkeypatch.setattr(command, "build", broken)
    options = FAST | {"engines": ["openvino-fp32", "ort-fp32"]}
    found = optimize(model, file, tmp_path / "bundle", max_loss=0.2, **options)
    assert {one.engine for one in found.candidates} == {"ort-fp32-whole"}
    assert "openvino-fp32: this graph is not for me; left out" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_anything_is_done(model: Path, file: Path, tmp_path: Path):
    (tmp_path / "there").mkdir()
    for error, reason, out, options in [
        (BundleError, "exists; remove it", "there", {}),
        (
            DataError,
            r"260 different texts are too few: 299 of them are held back to show a loss of 0.01 .* at least 399",
            "b",
            {},
        ),
        (DataError, r"--max-loss 2: expected a part", "b", {"max_loss": 2.0}),
        (DataError, "--p50 0: expected milliseconds above 0", "b", {"p50": 0.0}),
        (DataError, "--minutes 0: expected minutes above 0", "b", {"minutes": 0.0, "max_loss": 0.2}),
        (DataError, "--epochs 0: expected at least 1", "b", {"epochs": 0, "max_loss": 0.2}),
        (DataError, "--max-length 4: expected 8 to 64", "b", {"max_length": 4, "max_loss": 0.2}),
        (RecipeError, "fitsteps", "b", {"settings": ["fitsteps=50"], "max_loss": 0.2}),
        (BundleError, "one of it and --out .* lies in the other", "b", {"work": tmp_path / "b" / "w", "max_loss": 0.2}),
        (BundleError, "one of it and --out .* lies in the other", "w/b", {"work": tmp_path / "w", "max_loss": 0.2}),
        (BundleError, "no folder that can be written to", file / "b", {"max_loss": 0.2}),
        (EngineError, "--engine ort: expected an engine and its precision", "b", {"engines": ["ort"], "max_loss": 0.2}),
        (EngineError, "--engine ort-fp32: given twice", "b", {"engines": ["ort-fp32"] * 2, "max_loss": 0.2}),
        (EngineError, "--precision fp8: not to be had", "b", {"engines": ["ort-fp8"], "max_loss": 0.2}),
    ]:
        with pytest.raises(error, match=reason):
            optimize(model, file, tmp_path / out, **(FAST | options))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine").touch()
    with pytest.raises(BundleError, match="not of an optimisation; remove it, or name another with --work"):
        optimize(model, file, tmp_path / "b", max_loss=0.2, work=tmp_path / "work", **FAST)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["there", "work"]


def test_the_command_says_what_it_chose_and_how_to_load_it(model: Path, file: Path, tmp_path: Path):
    options = [
        "--max-loss",
        "0.2",
        "--engine",
        "ort-fp32",
        "--epochs",
        "1",
        "--max-length",
        "32",
        "--set",
        "fit_steps=20",
    ]
    arguments = ["optimize", "--model", str(model), "--data", str(file), "--out", str(tmp_path / "bundle"), *options]
    plan = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert plan.exit_code == 0 and plan.stdout.splitlines() == [
        "learn from 182 texts, choose on 78 others", "train for 1 epoch; then try ort-fp32",
    ]  # fmt: skip
    done = CliRunner().invoke(main, [*arguments, "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.output
    assert "chosen for a loss of at most 0.2: ort-fp32" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["chosen"] in found["candidates"] and found["minutes"].keys() >= {"training", "engines", "race"}
    load = done.stdout.splitlines()[-2]
    with eval(load, {"Predictor": Predictor}) as predictor:
        assert predictor(TEXTS[0]).label in ("negative", "positive")
