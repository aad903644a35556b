"""Where examples and class names come from; who is held out."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadskip_export.data.columns import Columns
from hadskip_export.data.examples import Examples
from hadskip_export.data.problems import SINGLE, Problem
from hadskip_export.data.tasks import TaskData, hold_out, label_names, load_task
from hadskip_export.support.errors import DataError
from tests.conftest import write_csv

FILE = Path("train.csv")


def refused(*names: str, **arguments) -> None:
    with pytest.raises(DataError) as caught:
        load_task(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def examples(*labels: str) -> Examples:
    return Examples(["text"] * len(labels), list(labels))


def test_two_labelled_files(csv_files):
    train, evaluation = map(str, csv_files)
    data = load_task(train=train, evaluation=evaluation)
    assert (data.name, data.metric, data.labels) == ("train", "accuracy", ("negative", "positive"))
    assert len(data.train) == 240 and len(data.evaluation) == 80 and data.mismatched is None


def test_what_is_missing_in_the_request_is_named(tmp_path, csv_files):
    train = str(csv_files[0])
    refused("--task", "--train")
    refused("--task", "--train", task="sst2", train=train)
    refused("nli", "sst2, rte, cola, mrpc, qnli, qqp, mnli", task="nli", data_dir=str(tmp_path))
    refused("--eval", train=train)
    refused("train.tsv", "no such file", "--data-dir", task="sst2", data_dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--eval", {"task": "sst2", "evaluation": "dev.csv"}),
        ("--text-column", {"task": "sst2", "columns": Columns(text="words")}),
        ("--label-column", {"task": "sst2", "data_dir": "SST-2", "columns": Columns(label="answer")}),
        ("--data-dir", {"train": "train.csv", "evaluation": "dev.csv", "data_dir": "SST-2"}),
    ],
)
def test_what_would_be_ignored_is_refused(option: str, given: dict[str, object]):
    with pytest.raises(DataError, match=f"{option}: goes with --.*; leave it out"):
        load_task(**given)


@pytest.mark.parametrize("pairs", ["train", "eval"])
def test_pairs_and_single_texts_do_not_go_together(pairs, tmp_path):
    files = {name: write_csv(tmp_path / f"{name}.csv", [("a", "yes"), ("b", "no")]) for name in ("train", "eval")}
    write_csv(files[pairs], [("a", "b", "yes"), ("c", "d", "no")], ("text", "text2", "label"))
    single = "eval.csv" if pairs == "train" else "train.csv"
    arguments = {"train": str(files["train"]), "evaluation": str(files["eval"])}
    refused("--pair-column", f"{single}: has single texts", **arguments)


def test_an_evaluation_label_that_training_does_not_know_is_refused(tmp_path):
    train = write_csv(tmp_path / "train.csv", [("a", "no"), ("b", "yes")])
    evaluation = write_csv(tmp_path / "eval.csv", [("a", "yes"), ("b", "maybe")])
    refused("eval.csv", "line 3", "'maybe'", "no, yes", train=str(train), evaluation=str(evaluation))


# Class names in class order


@pytest.mark.parametrize(
    ("found", "ordered"),
    [
        (["10", "2", "0", "1"], ("0", "1", "2", "10")),
        (["1", "-1", "0"], ("-1", "0", "1")),
        (["10.0", "2.0", "1.0"], ("1.0", "2.0", "10.0")),
        (["b", "10", "a", "2"], ("10", "2", "a", "b")),
        (["yes", "no", "No"], ("No", "no", "yes")),
        (["--1", "1"], ("--1", "1")),
    ],
    ids=lambda value: ",".join(value),
)
def test_numbers_are_ordered_by_value_and_names_by_alphabet(found, ordered):
    assert label_names(examples(*found, *found), None, FILE) == ordered


def test_one_label_is_not_enough():
    with pytest.raises(DataError, match=r"'yes'.*at least two"):
        label_names(examples("yes", "yes"), None, FILE)


def test_a_fine_tuned_models_labels_keep_their_order():
    assert label_names(examples("no", "yes"), Problem(SINGLE, ("yes", "no", "maybe")), FILE) == ("yes", "no", "maybe")


@pytest.mark.parametrize("found", [("0", "1", "2"), ("1", "0"), ("2",)])
def test_generic_names_of_a_fine_tuned_model_become_the_files_numbers(found):
    generic = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert label_names(examples(*found), Problem(SINGLE, generic), FILE) == ("0", "1", "2")


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_generic_names_become_those_of_the_numbers_in_a_dataset(kind: str, tmp_path: Path):
    """A classifier that was trained on such a column knows its classes by these numbers."""
    classes = datasets.ClassLabel(names=["positive", "negative"])
    rows = {"text": ["good", "bad", "fine"], "label": [0, 1, 0]}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(text=datasets.Value("string"), label=classes))
    place = tmp_path / ("a.parquet" if kind == "parquet" else "a")
    made.to_parquet(place) if kind == "parquet" else made.save_to_disk(place)
    generic = Problem(SINGLE, ("LABEL_0", "LABEL_1"))
    data = load_task(train=str(place), evaluation=str(place), known=generic)
    assert data.labels == ("positive", "negative") and data.problem.targets(data.train.labels).tolist() == [0, 1, 0]
    for known in (("LABEL_0", "LABEL_1", "LABEL_2"), ("LABEL_1", "LABEL_0"), ("a", "b")):
        refused("'positive'", train=str(place), evaluation=str(place), known=Problem(SINGLE, known))


def test_generic_names_stay_where_the_file_uses_them():
    assert label_names(examples("LABEL_1", "LABEL_0"), Problem(SINGLE, ("LABEL_0", "LABEL_1")), FILE) == (
        "LABEL_0",
        "LABEL_1",
    )


@pytest.mark.parametrize(
    ("known", "found"),
    [(("no", "yes"), "maybe"), (("LABEL_0", "LABEL_1"), "2"), (("no", "yes"), "1"), (("LABEL_1", "LABEL_0"), "1")],
)
def test_a_label_the_fine_tuned_model_does_not_know_is_refused(known, found):
    """Numbers are not matched to names: nobody could tell which is which."""
    with pytest.raises(DataError, match=f"'{found}'.*{known[0]}, {known[1]}"):
        label_names(examples(found), Problem(SINGLE, known), FILE)


def test_json_numbers_and_strings_are_one_label(tmp_path):
    for name in ("train", "eval"):
        rows = [{"text": "a", "label": 1}, {"text": "b", "label": "0"}, {"text": "c", "label": "1"}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_task(train=str(tmp_path / "train.jsonl"), evaluation=str(tmp_path / "eval.jsonl"))
    assert data.labels == ("0", "1") and data.problem.targets(data.train.labels).tolist() == [1, 0, 1]


# Texts without labels


@given(st.lists(st.sampled_from(["no", "yes", "maybe"]), min_size=1, max_size=9))
def test_texts_without_labels_have_no_class_and_others_that_of_their_label(found):
    labels = ("yes", "no", "maybe")
    data = TaskData("task", "accuracy", Problem(SINGLE, labels), examples(*found), "eval.csv", examples(*found))
    assert data.problem.targets(data.train.labels).tolist() == [labels.index(label) for label in found]
    assert data.problem.targets([]) is None


def test_only_a_fine_tuned_model_can_do_without_labels(tmp_path):
    train = write_csv(tmp_path / "train.csv", [("a",), ("b",)], header=("text",))
    evaluation = write_csv(tmp_path / "eval.csv", [("a", "yes"), ("b", "no")])
    data = load_task(train=str(train), evaluation=str(evaluation), known=Problem(SINGLE, ("yes", "no", "maybe")))
    assert (data.train.labels, data.labels) == ([], ("yes", "no", "maybe"))
    assert data.problem.targets(data.evaluation.labels).tolist() == [0, 1]
    refused("train.csv", "--label-column", train=str(train), evaluation=str(evaluation))
    refused("train.csv", "--label-column", train=str(evaluation), evaluation=str(train))
    known = ("no", "maybe")
    refused("eval.csv", "line 2", "'yes'", train=str(train), evaluation=str(evaluation), known=Problem(SINGLE, known))


@pytest.mark.parametrize(
    ("found", "labels"),
    [(("0", "1"), ("0", "1")), (("LABEL_1", "LABEL_0"), ("LABEL_0", "LABEL_1")), (("1", "1"), ("0", "1"))],
    ids=str,
)
def test_without_labels_to_train_on_the_evaluation_file_names_generic_classes(found, labels, tmp_path):
    train = write_csv(tmp_path / "train.csv", [("a",), ("b",)], header=("text",))
    evaluation = write_csv(tmp_path / "eval.csv", [("text", label) for label in found])
    data = load_task(train=str(train), evaluation=str(evaluation), known=Problem(SINGLE, ("LABEL_0", "LABEL_1")))
    assert data.labels == labels and data.problem.targets(data.evaluation.labels).tolist() == [
        labels.index(x) for x in found
    ]


# The held-out slice


@given(st.integers(2, 50_000), st.integers(0, 1000))
def test_a_tenth_at_most_2000_is_held_out_of_every_row_once(n, seed):
    trained, held = hold_out(n, seed)
    assert sorted([*trained, *held]) == list(range(n))
    assert len(held) == min(2000, max(1, round(n / 10)))
    assert (np.diff(trained) > 0).all() and (np.diff(held) > 0).all()


def test_the_seed_decides_who_is_held_out():
    one, same, other = (hold_out(1000, seed)[1].tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert len(np.unique(np.diff(one))) > 10  # scattered, for files are often sorted


@given(st.lists(st.integers(0, 30), min_size=2, max_size=200), st.integers(0, 100))
def test_groups_are_held_out_whole(found, seed):
    groups = np.array(found)
    trained, held = hold_out(len(found), seed, groups)
    assert sorted([*trained, *held]) == list(range(len(found))) and len(trained) and len(held)
    if len(set(found)) > 1:
        assert not {found[row] for row in trained} & {found[row] for row in held}
        last = max(found.count(group) for group in set(found))
        assert len(held) < max(1, round(len(found) / 10)) + last  # no more than it takes
    else:
        assert [part.tolist() for part in hold_out(len(found), seed)] == [trained.tolist(), held.tolist()]


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="1 training rows"):
        hold_out(1, 0)


def test_of_a_fine_tuned_model_neither_file_needs_labels(tmp_path: Path):
    bare, labelled = tmp_path / "bare.csv", tmp_path / "labelled.csv"
    write_csv(bare, [("good",), ("bad",)], ("text",))
    write_csv(labelled, [("good", "yes"), ("bad", "no")])
    for known in (("yes", "no"), ("LABEL_0", "LABEL_1")):
        data = load_task(train=str(bare), evaluation=str(bare), known=Problem(SINGLE, known))
        assert (data.metric, data.labels, data.evaluated_on) == ("agreement", known, "bare.csv")
        assert data.train.labels == data.evaluation.labels == []
    data = load_task(train=str(labelled), evaluation=str(bare), known=Problem(SINGLE, ("yes", "no")))
    assert (data.metric, data.train.labels, data.evaluation.labels) == ("agreement", ["yes", "no"], [])
    data = load_task(train=str(bare), evaluation=str(labelled), known=Problem(SINGLE, ("yes", "no")))
    assert (data.metric, data.evaluation.labels) == ("accuracy", ["yes", "no"])
    refused("bare.csv", train=str(labelled), evaluation=str(bare))
