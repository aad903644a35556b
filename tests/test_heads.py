"""Every head all the way: texts and what is said of them, a run, a bundle, the answers of `transformers`' pipeline."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from hadskip_export import bench, build, calibrate, inspect, train, validate
from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SINGLE
from hadskip_export.data.text import Text
from hadskip_export.runtime import BundleError, DataError, Predictor
from hadskip_export.trainers.methods import HADSKIP
from hadskip_export.trainers.settings import those_read
from tests.conftest import BAD, GOOD, QUICK, WORDS, make_source, write_cut
from tests.test_cli import lines, refused, run, succeeded

TEXTS: list[Text] = ["good film", "a bad plot", ("good film", "the plot is dull"), "", "very good " * 80]
LABELS = {SINGLE: ("no", "yes"), MULTI: ("bad", "good", "long"), REGRESSION: ("LABEL_0",), RANKING: ("LABEL_0",)}
heads = pytest.mark.parametrize("kind", [MULTI, REGRESSION, RANKING])


def rows_of(kind: str, count: int, seed: int) -> list[tuple[str, str, object]]:
    """Two texts, and what is to be said of them: which telling words are there and whether it is long; the share of
    good ones among them; whether the second has the first one's."""
    random, rows = np.random.default_rng(seed), []
    for _ in range(count):
        good, bad = random.integers(0, 4, size=2)
        words = [
            *random.choice(GOOD, good),
            *random.choice(BAD, bad),
            # of several labels, one of which is whether it is long: no near tie, which int8 might flip
            *random.choice(WORDS[10:], random.choice((1, 12)) if kind == MULTI else random.integers(1, 8)),
        ]
        text = " ".join(map(str, random.permutation(words)))
        query = str(random.choice(GOOD + BAD))
        said = {
            MULTI: [name for name, there in (("good", good), ("bad", bad), ("long", len(words) > 8)) if there],
            REGRESSION: float(10 * good / max(1, good + bad)),
            RANKING: float(query in words),
        }
        rows.append((query, text, said[kind]))
    return rows


def write_rows(kind: str, folder: Path, name: str, count: int, seed: int) -> Path:
    """JSONL of several labels; else CSV, of pairs where documents are ranked."""
    rows = rows_of(kind, count, seed)
    if kind == MULTI:
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps({"text": text, "labels": said}) for _, text, said in rows))
        return file
    file = folder / f"{name}.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        pairs = kind == RANKING
        writer.writerow(("text", *(["text_pair"] if pairs else []), "score"))
        writer.writerows((query, text, said) if pairs else (text, said) for query, text, said in rows)
    return file


@pytest.fixture(scope="module", params=[MULTI, REGRESSION, RANKING])
def bundle_of(request, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Of random weights, checked against PyTorch."""
    kind = request.param
    folder = tmp_path_factory.mktemp("head")
    source = make_source(model_folder, folder, layers=2, labels=LABELS[kind], problem_type=kind)
    return kind, write_cut(source, folder, "whole")


def assert_as_pipeline(folder: Path, predictor: Predictor, kind: str, max_length: int) -> None:
    """Of full BERT: what `transformers` says of the user's own folder."""
    classify = pipeline("text-classification", model=str(folder), top_k=None, truncation=True, max_length=max_length)
    for text, prediction in zip(TEXTS, predictor(TEXTS, router="full"), strict=True):
        given = text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
        (found,) = [classify([given])[0]]
        wanted = {item["label"]: item["score"] for item in found}
        best = max(found, key=lambda item: item["score"])
        assert (prediction.label, prediction.score) == (best["label"], pytest.approx(best["score"], abs=1e-5))
        if kind == MULTI:
            assert prediction.probabilities == pytest.approx(wanted, abs=1e-5)
            assert prediction.labels == tuple(name for name, score in prediction.probabilities.items() if score > 0.5)
        else:
            assert prediction.probabilities == {} and prediction.labels == () and len(wanted) == 1


def test_a_bundle_says_what_its_model_answers_and_does(bundle_of: tuple[str, Path]):
    kind, bundle = bundle_of
    manifest = inspect(bundle).content
    assert manifest.model.problem_type == kind and manifest.model.label_thresholds == (0.5,) * 3 * (kind == MULTI)
    with Predictor.load(bundle) as predictor:
        single, many = [predictor(text) for text in TEXTS], predictor(TEXTS)
        logits, _ = predictor.run(predictor.tokenizer.encode(TEXTS))
        for alone, answer, row in zip(single, many, logits, strict=True):
            assert alone.layers == answer.layers and alone.score == pytest.approx(answer.score, abs=1e-5)
            wanted = row if kind == REGRESSION else 1 / (1 + np.exp(-row))
            assert answer.score == pytest.approx(wanted.max(), abs=1e-6)
    (shown,) = lines(succeeded(run("predict", bundle, "a good film")).stdout)
    own = ["labels", "probabilities"] if kind == MULTI else ["score"]
    assert list(shown) == [*own, "layers", "truncated"]
    assert kind in succeeded(run("inspect", bundle)).stdout


def test_a_file_is_answered_as_a_table(bundle_of: tuple[str, Path], tmp_path: Path):
    kind, bundle = bundle_of
    file, out = write_rows(kind, tmp_path, "texts", 5, 3), tmp_path / "answers.csv"
    succeeded(run("predict", bundle, "--input", file, "--output", out))
    with out.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    with Predictor.load(bundle) as predictor:
        texts = [(query, text) if kind == RANKING else text for query, text, _ in rows_of(kind, 5, 3)]
        for row, answer in zip(rows, predictor(texts), strict=True):
            assert "label" not in row
            if kind == MULTI:
                assert json.loads(row["labels"]) == list(answer.labels)
                assert float(row["probability_good"]) == pytest.approx(answer.probabilities["good"], abs=1e-5)
            else:
                assert float(row["score"]) == pytest.approx(answer.score, abs=1e-5)
                assert "input_score" in row  # the file's own


def test_thresholds_of_labels_can_be_set_where_it_serves(bundle_of: tuple[str, Path]):
    kind, bundle = bundle_of
    if kind != MULTI:
        with pytest.raises(DataError, match=f"label thresholds: .*{kind}"):
            Predictor.load(bundle, label_thresholds={"LABEL_0": 0.3})
        return
    with Predictor.load(bundle, label_thresholds={"bad": 0.01, "good": 0.99}) as predictor:
        for answer in predictor(TEXTS):
            assert "bad" in answer.labels and "good" not in answer.labels
    with pytest.raises(DataError, match="'worse'"):
        Predictor.load(bundle, label_thresholds={"worse": 0.3})
    (shown,) = lines(succeeded(run("predict", bundle, "good", "--label-threshold", "bad=0.01")).stdout)
    assert "bad" in shown["labels"]
    refused(run("predict", bundle, "good", "--label-threshold", "worse=0.01"), "'worse'", "bad, good, long")


def test_documents_are_ranked_as_each_pair_is_scored(bundle_of: tuple[str, Path]):
    kind, bundle = bundle_of
    documents = [text for _, text, _ in rows_of(RANKING, 40, 7)]
    documents += documents[:2]  # equal ones stay in their order
    with Predictor.load(bundle) as predictor:
        if kind == MULTI:
            with pytest.raises(BundleError, match=MULTI):
                predictor.rank("good", documents)
            return
        found = predictor.rank("good", iter(documents))
        answers = predictor([("good", document) for document in documents])
        assert sorted(one.index for one in found) == list(range(42))
        for one in found:
            answer = answers[one.index]
            assert (one.document, one.layers, one.truncated) == (documents[one.index], answer.layers, answer.truncated)
            assert one.score == answer.score
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)
        assert found.index(next(one for one in found if one.index == 0)) < [one.index for one in found].index(40)
        assert predictor.rank("good", documents, top=3) == found[:3]
        assert predictor.rank("good", documents, 3, router="full")[0].layers == (1, 2)
        assert predictor.rank("good", []) == []
        with pytest.raises(DataError, match="input 2"):
            predictor.rank("good", ["a", 3])  # type: ignore[list-item]
        for top in (0, -1, 1.5, "3", True):
            with pytest.raises(Exception, match="top="):
                predictor.rank("good", documents, top)  # type: ignore[arg-type]


def test_a_model_of_classes_ranks_nothing(bundle: Path):
    with Predictor.load(bundle) as predictor, pytest.raises(BundleError, match="gives labels"):
        predictor.rank("good", ["a"])


def test_figures_on_labelled_texts_are_of_the_models_kind(bundle_of: tuple[str, Path], tmp_path: Path):
    kind, bundle = bundle_of
    file = write_rows(kind, tmp_path, "dev", 40, 5)
    checked = validate(bundle, data=file)
    found = checked.data
    assert checked.passed and found is not None and 0 <= found.label_agreement <= 1
    assert found.metric == {MULTI: "macro_f1", REGRESSION: "pearson", RANKING: "ndcg"}[kind]
    (row,) = bench(bundle, data=file).rows
    assert (row.metric, row.full_metric) == (
        pytest.approx(found.value, abs=1e-4),
        pytest.approx(found.full_value, abs=1e-4),
    )
    first = calibrate(bundle, file).rows[0]
    assert first.metric == pytest.approx(found.value, abs=1e-4)
    if kind == MULTI:
        assert [score.label for score in found.classes] == list(LABELS[MULTI]) and found.flips is not None
        truth = rows_of(kind, 40, 5)
        assert [score.support for score in found.classes] == [
            sum(label in said for *_, said in truth) for label in LABELS[MULTI]
        ]
    else:
        assert found.classes == () and found.flips is None
    said = succeeded(run("validate", bundle, "--data", file)).stdout
    assert f"{found.metric} {found.value:.4f}" in said


def test_scores_have_no_label_thresholds_and_labels_no_loss_of_another_kind(csv_files, model_folder, tmp_path: Path):
    common = ("train", "--model", model_folder, "--budget", 1, "--out", tmp_path / "run")
    files = ("--train", csv_files[0], "--eval", csv_files[1])
    refused(run(*common, *files, "--problem-type", REGRESSION), "line 2", "needs numbers")
    refused(run(*common, *files, "--label-threshold", "positive=0.3"), MULTI, SINGLE)
    refused(run(*common, *files, "--metric", "ndcg"), "--metric ndcg", "accuracy")
    assert run(*common, *files, "--label-threshold", "positive").exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "adaptive"])
@heads
def test_a_head_is_trained_built_for_every_engine_and_answers_as_transformers(
    kind: str, recipe: str, model_folder: Path, tmp_path: Path
):
    files = [
        write_rows(kind, tmp_path, name, count, seed) for name, count, seed in (("train", 600, 0), ("dev", 160, 1))
    ]
    options: dict = {"label_thresholds": {"long": 0.4}} if kind == MULTI else {"problem_type": kind}
    summary = train(
        model=str(model_folder), budget=1.5, out=tmp_path / "run", train=str(files[0]), eval=str(files[1]),
        recipe=recipe, settings=(*QUICK, "stage1_epochs=8"), max_length=32, **options,
    )  # fmt: skip
    assert summary["teacher"]["metric"] > 0.6, summary["teacher"]  # it has learned something
    stage1, bundle = tmp_path / "run" / "stage1", tmp_path / "bundle"
    again = train(  # from the classifier that now lies there
        model=str(stage1), fine_tuned=True, budget=1.5, out=tmp_path / "again", train=str(files[0]),
        eval=str(files[1]), recipe=recipe, max_length=32,
        settings=those_read((*QUICK, "last_epochs=1", "shared_epochs=1"), HADSKIP, recipe, fine_tuned=True),
    ) if recipe == "paper" and kind != MULTI else summary  # fmt: skip
    assert again["teacher"]["metric"] == pytest.approx(summary["teacher"]["metric"])
    assert build(tmp_path / "run", out=bundle).parity == "passed"
    for engine in ("ort", "openvino"):
        for cut in ("gates", "layers", "whole"):
            if (engine, cut) != ("ort", "whole"):
                assert build(bundle, engine=engine, cut=cut).parity == "passed"
        if recipe == "paper":
            assert build(bundle, engine=engine, precision="int8").parity == "passed"
    for engine in ("ort-fp32-whole", "ort-fp32-gates", "openvino-fp32-layers"):
        with Predictor.load(bundle, engine=engine) as predictor:
            assert predictor.problem.thresholds == ((0.5, 0.5, 0.4) if kind == MULTI else ())
        usual = {"long": 0.5} if kind == MULTI else None
        with Predictor.load(bundle, engine=engine, label_thresholds=usual) as predictor:
            assert_as_pipeline(stage1, predictor, kind, 32)
