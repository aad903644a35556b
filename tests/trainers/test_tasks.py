"""Where examples and class names come from; who is held out."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadskip_export.errors import DataError
from hadskip_export.tables import Columns, Examples
from hadskip_export.trainers.tasks import hold_out, label_names, load_task
from tests.conftest import write_csv

ANY = Columns()
FILE = Path("train.csv")


def refused(*names: str, **arguments) -> None:
    with pytest.raises(DataError) as caught:
        load_task(
            **(
                {
                    "task": None,
                    "data_dir": None,
                    "train": None,
                    "evaluation": None,
                    "columns": ANY,
                    "known_labels": None,
                }
                | arguments
            )
        )
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def examples(*labels: str) -> Examples:
    return Examples(["text"] * len(labels), list(labels))


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """GLUE's root, with SST-2 as it is downloaded: a header, no quoting, blanks at the end."""
    folder = tmp_path / "SST-2"
    folder.mkdir()
    (folder / "train.tsv").write_text(
        'sentence\tlabel\nhide new secretions \t0\na "great movie\t1\nit \'s fine , "really" \t1\n'
    )
    (folder / "dev.tsv").write_text("sentence\tlabel\nbleak and desperate \t0\n")
    return tmp_path


@pytest.mark.parametrize("below", ["SST-2", "."])
def test_glue_is_found_by_its_task_folder_or_its_root(below, glue):
    data = load_task("sst2", str(glue / below), None, None, ANY, None)
    assert (data.name, data.metric, data.labels) == ("sst2", "accuracy", ("0", "1"))
    assert data.train.texts == ["hide new secretions ", 'a "great movie', 'it \'s fine , "really" ']
    assert data.indices(data.train).tolist() == [0, 1, 1] and data.indices(data.train).dtype == np.int64
    assert data.evaluation.texts == ["bleak and desperate "]


def test_the_real_sst2_loads_if_it_is_at_hand():
    root = os.environ.get("GLUE_DIR")
    if root is None:
        pytest.skip("GLUE_DIR does not say where GLUE is")
    data = load_task("sst2", root, None, None, ANY, None)
    assert len(data.evaluation) == 872 and len(data.train) > 60_000 and data.labels == ("0", "1")


def test_two_labelled_files(csv_files):
    train, evaluation = map(str, csv_files)
    data = load_task(None, None, train, evaluation, ANY, None)
    assert (data.name, data.metric, data.labels) == ("train", "accuracy", ("negative", "positive"))
    assert len(data.train) == 240 and len(data.evaluation) == 80


def test_what_is_missing_in_the_request_is_named(glue, csv_files):
    train = str(csv_files[0])
    refused("--task", "--train")
    refused("--task", "--train", task="sst2", train=train)
    refused("nli", "sst2", task="nli", data_dir=str(glue))
    refused("--data-dir", task="sst2")
    refused("--eval", train=train)
    refused("train.tsv", "no such file", task="sst2", data_dir=str(glue / "nowhere"))


def test_an_evaluation_label_that_training_does_not_know_is_refused(tmp_path):
    train = write_csv(tmp_path / "train.csv", [("a", "no"), ("b", "yes")])
    evaluation = write_csv(tmp_path / "eval.csv", [("a", "yes"), ("b", "maybe")])
    refused("eval.csv", "row 2", "'maybe'", "no, yes", train=str(train), evaluation=str(evaluation))


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
    assert label_names(examples("no", "yes"), ("yes", "no", "maybe"), FILE) == ("yes", "no", "maybe")


@pytest.mark.parametrize("found", [("0", "1", "2"), ("1", "0"), ("2",)])
def test_generic_names_of_a_fine_tuned_model_become_the_files_numbers(found):
    generic = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert label_names(examples(*found), generic, FILE) == ("0", "1", "2")


def test_generic_names_stay_where_the_file_uses_them():
    assert label_names(examples("LABEL_1", "LABEL_0"), ("LABEL_0", "LABEL_1"), FILE) == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("known", "found"),
    [(("no", "yes"), "maybe"), (("LABEL_0", "LABEL_1"), "2"), (("no", "yes"), "1"), (("LABEL_1", "LABEL_0"), "1")],
)
def test_a_label_the_fine_tuned_model_does_not_know_is_refused(known, found):
    """Numbers are not matched to names: nobody could tell which is which."""
    with pytest.raises(DataError, match=f"'{found}'.*{known[0]}, {known[1]}"):
        label_names(examples(found), known, FILE)


def test_json_numbers_and_strings_are_one_label(tmp_path):
    for name in ("train", "eval"):
        rows = [{"text": "a", "label": 1}, {"text": "b", "label": "0"}, {"text": "c", "label": "1"}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_task(None, None, str(tmp_path / "train.jsonl"), str(tmp_path / "eval.jsonl"), ANY, None)
    assert data.labels == ("0", "1") and data.indices(data.train).tolist() == [1, 0, 1]


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


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="1 training rows"):
        hold_out(1, 0)
