"""The same rows packed, as Parquet, and as `datasets` saves them: read as they are from a plain file, or refused."""

import datetime
import gzip
import json
import sys
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hadskip_export.bulk.rows import as_json
from hadskip_export.data import columnar
from hadskip_export.data import rows as reading
from hadskip_export.data.columns import read_texts
from hadskip_export.data.examples import Examples, read_examples
from hadskip_export.data.rows import read_rows
from hadskip_export.support.errors import DataError, EngineError
from tests.data.test_reading import refused

texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
rows = st.lists(st.tuples(texts, st.sampled_from(["yes", "no"])), min_size=1, max_size=300)


def save(kind: str, folder: Path, table: dict[str, list]) -> Path:
    """A table in a file, or folder, of that kind."""
    place = folder / f"rows{kind}"
    if kind == ".parquet":
        pq.write_table(pa.table(table), place, row_group_size=50)
    elif kind == "":
        datasets.Dataset.from_dict(table).save_to_disk(str(place), num_shards=min(2, len(next(iter(table.values())))))
    else:
        objects = (dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True))
        lines = "".join(json.dumps(one) + "\n" for one in objects)
        place.write_bytes(gzip.compress(lines.encode()))
    return place


@pytest.mark.parametrize("kind", [".parquet", "", ".jsonl.gz"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows)
def test_any_text_survives(kind: str, rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory):
    columns = {"id": list(range(len(rows))), "text": [text for text, _ in rows], "label": [label for _, label in rows]}
    place = save(kind, tmp_path_factory.mktemp("any"), columns)
    expected = Examples(columns["text"], columns["label"])
    assert read_examples(place) == expected
    found = list(read_texts(place))
    assert [row.text for row in found] == columns["text"]
    assert [(row.line, row.others["id"]) for row in found] == list(enumerate(columns["id"], start=1))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "CSV"])
def test_a_packed_file_is_read_as_the_plain_one(suffix: str, tmp_path: Path):
    content = '{"text": "a", "label": 1}\n' if suffix == "jsonl" else "text,label\na,1\n".replace(
        ",", "\t" if suffix == "tsv" else ","
    )  # fmt: skip
    (tmp_path / f"a.{suffix}").write_text(content)
    (tmp_path / f"b.{suffix}.gz").write_bytes(gzip.compress(content.encode()))
    plain, packed = read_examples(tmp_path / f"a.{suffix}"), read_examples(tmp_path / f"b.{suffix}.gz")
    assert plain == packed == Examples(["a"], ["1"])


@pytest.mark.parametrize("kind", [".parquet", ".jsonl.gz", ".csv.gz"])
@pytest.mark.parametrize("damage", ["another file", "cut", "empty", "turned"])
def test_a_damaged_file_is_refused_by_its_name(kind: str, damage: str, tmp_path: Path):
    table = {"text": [f"words {number}" for number in range(900)]}
    place = save(kind, tmp_path, table)
    content = place.read_bytes()
    middle = len(content) // 2
    turned = content[:middle] + bytes(255 - byte for byte in content[middle : middle + 40]) + content[middle + 40 :]
    place.write_bytes({"another file": b"text\na\n", "cut": content[:middle], "empty": b"", "turned": turned}[damage])
    refused(lambda: list(read_texts(place)), str(place))


def test_a_damaged_folder_is_refused_by_its_name(tmp_path: Path):
    place = save("", tmp_path, {"text": ["a", "b"]})
    file = next(place.glob("*.arrow"))
    content = file.read_bytes()
    for damage in (content[:100], b"", b"text\na\n"):
        file.write_bytes(damage)
        refused(lambda: list(read_texts(place)), str(place))
    file.unlink()
    refused(lambda: list(read_texts(place)), str(place), "no such file")
    (place / "state.json").write_text("[]")
    refused(lambda: list(read_texts(place)), str(place))


def test_a_file_of_a_folder_lies_in_it(tmp_path: Path):
    outside = save("", tmp_path, {"text": ["secret"]})
    place = tmp_path / "place"
    place.mkdir()
    file = {"filename": f"../rows/{next(outside.glob('*.arrow')).name}"}
    (place / "state.json").write_text(json.dumps({"_data_files": [file]}))
    refused(lambda: list(read_texts(place)), str(place), "no such file")


def test_a_folder_of_splits_says_which_there_are(tmp_path: Path):
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "all"))
    refused(lambda: read_examples(tmp_path / "all"), "several splits", str(tmp_path / "all" / "train"))
    assert read_examples(tmp_path / "all" / "test").labels == ["x", "y"]
    refused(lambda: read_examples(tmp_path), str(tmp_path), "none that datasets has saved")


@pytest.mark.parametrize("kind", [".parquet", ""])
def test_numbers_of_classes_are_the_names_that_datasets_knows(kind: str, tmp_path: Path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    place = tmp_path / f"rows{kind}"
    data.to_parquet(str(place)) if kind else data.save_to_disk(str(place))
    assert [row.values["label"] for row in read_rows(place)] == ["yes", "no", None]
    refused(lambda: read_examples(place), "line 3")  # as in every file, one that nobody has labelled


@pytest.mark.parametrize("kind", [".parquet", ""])
@pytest.mark.parametrize("classes", [True, False])
def test_lists_are_the_labels_of_a_text(classes: bool, kind: str, tmp_path: Path):
    item = datasets.ClassLabel(names=["no", "yes"]) if classes else datasets.Value("string")
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(item)})
    several = [[1, 0], [], [0]] if classes else [["yes", "no"], [], ["no"]]
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "labels": several}, features=features)
    place = tmp_path / f"rows{kind}"
    data.to_parquet(str(place)) if kind else data.save_to_disk(str(place))
    assert read_examples(place).labels == [("yes", "no"), (), ("no",)]


def test_shuffled_rows_are_read_in_the_order_that_datasets_gives(tmp_path: Path):
    data = datasets.Dataset.from_dict({"text": [str(number) for number in range(50)]}).shuffle(seed=3)
    data.save_to_disk(str(tmp_path / "saved"))
    assert [row.text for row in read_texts(tmp_path / "saved")] == data["text"][:]


def test_rows_chosen_by_a_list_are_refused_for_it_would_be_passed_over(tmp_path: Path):
    place = save("", tmp_path, {"text": ["a"]})
    state = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    refused(lambda: list(read_texts(place)), "flatten_indices")


def test_labels_may_be_numbers_or_booleans_and_a_missing_one_is_named(tmp_path: Path):
    for values, labels in ([[True, False], ["true", "false"]], [[1, 0], ["1", "0"]], [[0.5, 1.0], ["0.5", "1.0"]]):
        assert read_examples(save(".parquet", tmp_path, {"text": ["a", "b"], "label": values})).labels == labels
    refused(lambda: read_examples(save(".parquet", tmp_path, {"text": ["a", "b"], "label": [1, None]})), "line 2")


def test_other_columns_are_passed_on_as_json(tmp_path: Path):
    table = {
        "text": ["a"], "day": [datetime.date(2026, 11, 28)], "price": [Decimal("1.50")], "raw": [b"\xff"],
        "tags": [["x", "y"]], "none": [None], "image": [{"bytes": b"\x01\x02", "when": datetime.date(2026, 11, 30)}],
    }  # fmt: skip
    (row,) = read_texts(save(".parquet", tmp_path, table))
    expected = {"day": "2026-11-28", "price": "1.50", "raw": "/w==", "tags": ["x", "y"], "none": None}
    expected["image"] = {"bytes": "AQI=", "when": "2026-11-30"}
    assert json.loads(as_json(row.others)) == expected


@pytest.mark.parametrize("column", ["text", "label"])
def test_bytes_are_neither_a_text_nor_a_label(column: str, tmp_path: Path):
    file = save(".parquet", tmp_path, {"text": ["a"], "label": ["x"]} | {column: [b"soup"]})
    refused(lambda: read_examples(file), "line 1", f"bytes, and no text or number in {column!r}")


def test_a_row_that_is_too_large_costs_no_other_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "MOST_CHARACTERS", 100)
    table = {"text": ["a", "b" * 90, "c"], "more": [None, "d" * 20, "e"]}
    for kind in (".parquet", ""):
        place, errors = save(kind, tmp_path, table), []
        assert [(row.line, row.text) for row in read_texts(place, refuse=errors.append)] == [(1, "a"), (3, "c")]
        (error,) = errors
        assert str(error) == f"{place}, line 2: a row of more than 100 characters"


def test_two_columns_of_one_name_are_refused(tmp_path: Path):
    file = tmp_path / "twice.parquet"
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), file)
    refused(lambda: list(read_texts(file)), str(file), "same name")


def test_without_pyarrow_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = save(".parquet", tmp_path, {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(EngineError, match=r"hadskip-export\[parquet\]"):
        list(read_texts(place))


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        list(columnar.read_parquet(tmp_path / "none.parquet", 100))
    with pytest.raises(DataError, match="no such file"):
        list(read_texts(tmp_path / "none.csv.gz"))
