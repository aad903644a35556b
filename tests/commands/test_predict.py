"""Files through a bundle: what a bad row costs, what is left behind, and how much is held at a time."""

import csv
import gzip
import json
import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hadskip_export
from hadskip_export.commands.predict import CHUNK
from hadskip_export.runtime import Predictor
from hadskip_export.support.errors import DataError
from tests.runtime.editing import change_manifest, copy_of
from tests.test_cli import equal, lines, program, refused, run, shown, succeeded


def test_one_text_is_no_list_of_letters(bundle: Path):
    for texts in ("good", ("good", "bad"), {"good": 1}):
        with pytest.raises(DataError, match="list"):
            list(hadskip_export.predict(bundle, texts))
    assert len(list(hadskip_export.predict(bundle, [("good", "bad")]))) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_has_no_number_for_is_null(value: float, bundle: Path, tmp_path: Path):
    pq.write_table(pa.table({"text": ["good"], "price": [value], "list": [[1.0, value]]}), tmp_path / "a.parquet")
    (line,) = hadskip_export.predict(bundle, input=tmp_path / "a.parquet")
    found = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert (found["price"], found["list"]) == (None, [1.0, None])


BAD_ROWS = {
    "data.csv": (
        'text,label\ngood,1\nshort\n"open,1\n"two\nlines",2\n,3\nbad,4\n',
        {2: "good", 5: "two\nlines", 8: "bad"},
        [3, 4, 7],
    ),
    "data.tsv": ('text\tlabel\n"good\t1\nshort\na\tb\tc\n\t2\nbad"\t3\n', {2: '"good', 6: 'bad"'}, [3, 4, 5]),
    "data.jsonl": (
        '{"text": "good"}\n{"id": 1}\n{\n{"text": null}\n{"text": "\\ud800"}\n{"text": "bad"}\n',
        {1: "good", 6: "bad"},
        [2, 3, 4, 5],
    ),
}


def answers(bundle: Path, texts: Iterable[str]) -> list[dict]:
    with Predictor.load(bundle) as predictor:
        return json.loads(json.dumps([shown(prediction) for prediction in predictor(list(texts))]))


@pytest.mark.parametrize("to_file", [False, True], ids=["printed", "written"])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_skip_answers_the_good_rows_and_names_the_others(bundle: Path, tmp_path: Path, name: str, to_file: bool):
    content, good, bad = BAD_ROWS[name]
    file, output = tmp_path / name, tmp_path / "answers.jsonl"
    file.write_text(content)
    to = ("--output", output) if to_file else ()
    result = succeeded(run("predict", bundle, "--input", file, "--on-error", "skip", *to))
    found = lines(output.read_text() if to_file else result.stdout)
    labels = [record.pop("input_label", None) for record in found]
    wanted = [{"line": line, **answer} for line, answer in zip(good, answers(bundle, good.values()), strict=True)]
    assert equal(found, wanted)
    assert all(labels) == (name != "data.jsonl")
    *skipped, last = result.stderr.splitlines()
    assert [line.split(": ")[1] for line in skipped] == [f"{file}, line {number}" for number in bad]
    assert last == f"{len(good)} rows done, {len(bad)} skipped"


def test_a_row_with_a_token_that_the_model_does_not_know_costs_no_other_row(bundle: Path, tmp_path: Path):
    copy, file = copy_of(bundle, tmp_path), tmp_path / "data.csv"
    change_manifest(copy, lambda plain: plain["model"].update(vocab_size=plain["model"]["vocab_size"] - 1))
    file.write_text("text\ngood\naz\nbad\n")  # of which the second ends with the last token
    result = succeeded(run("predict", copy, "--input", file, "--on-error", "skip"))
    wanted = [{"line": line, **answer} for line, answer in zip((2, 4), answers(bundle, ("good", "bad")), strict=True)]
    assert equal(lines(result.stdout), wanted)
    assert f"skipped: {file}, line 3: the token '##z' has the id" in result.stderr
    assert result.stderr.splitlines()[-1] == "2 rows done, 1 skipped"
    refused(run("predict", copy, "--input", file), f"{file}, line 3: the token '##z'", "--on-error skip")
    refused(run("predict", copy, "az"), "input 1: the token '##z'")


@pytest.mark.parametrize("arguments", [(), ("--on-error", "stop")], ids=["left out", "stop"])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_stop_names_the_first_bad_row_and_writes_nothing(bundle: Path, tmp_path: Path, name: str, arguments: tuple):
    content, _, bad = BAD_ROWS[name]
    file = tmp_path / name
    file.write_text(content)
    result = run("predict", bundle, "--input", file, "--output", tmp_path / "answers.jsonl", *arguments)
    refused(result, f"{file}, line {bad[0]}: ", "--on-error skip")
    assert os.listdir(tmp_path) == [name]


def test_one_bad_text_costs_no_other_of_its_batch(bundle: Path, tmp_path: Path):
    file = tmp_path / "data.jsonl"
    texts = ["good"] * 2 * CHUNK
    texts[CHUNK + 7] = "\ud800"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    result = succeeded(run("predict", bundle, "--input", file, "--on-error", "skip"))
    wanted = [line for line in range(1, 2 * CHUNK + 1) if line != CHUNK + 8]
    assert [record["line"] for record in lines(result.stdout)] == wanted
    assert f"{file}, line {CHUNK + 8}: 'text' is not valid Unicode" in result.stderr


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_records_have_the_same_fields_whatever_is_done_about_bad_rows(bundle: Path, tmp_path: Path, on_error: str):
    file = tmp_path / "data.csv"
    file.write_text("text\ngood\nbad\n")
    result = succeeded(run("predict", bundle, "--input", file, "--on-error", on_error))
    records = lines(result.stdout)
    assert [record["line"] for record in records] == [2, 3]
    for record in records:
        assert list(record) == ["line", "label", "probabilities", "layers", "truncated"]
    assert result.stderr == ("2 rows done, 0 skipped\n" if on_error == "skip" else "")


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("none.csv", None, (), "no such file"),
        ("a.csv", b"caf\xe9\ngood\n", (), "not UTF-8"),
        ("a.csv", b"text\ngood\n", ("--text-column", "words"), "--text-column"),
        ("a.csv", b"text\n", (), "no rows"),
        ("a.csv", b"text,label\nshort\n", (), "no rows"),
    ],
)
def test_what_is_no_rows_fault_stops_all_the_same(bundle: Path, tmp_path: Path, name, content, arguments, message):
    file, output = tmp_path / name, tmp_path / "answers.jsonl"
    if content is not None:
        file.write_bytes(content)
    result = run("predict", bundle, "--input", file, "--output", output, "--on-error", "skip", *arguments)
    refused(result, str(file), message)
    assert set(os.listdir(tmp_path)) <= {name}


def test_an_output_that_cannot_be_is_refused_before_the_bundle_is_read(tmp_path: Path):
    file = tmp_path / "data.csv"
    file.write_text("text\ngood\n")
    (tmp_path / "link.csv").symlink_to(file)
    (tmp_path / "old.jsonl").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    for output, message in [
        (file, "is the input"),
        (tmp_path / "link.csv", "is the input"),
        (tmp_path / "pipe", "not a file"),  # a device, /dev/null for instance, would be replaced by the file
        (tmp_path, "not a file"),
        (tmp_path / "missing" / "answers.jsonl", "no folder"),
        (tmp_path / "answers.parquet", "expected a name that ends with .jsonl or .csv"),
        (tmp_path / "old.jsonl", "exists already; name another file, or replace it with --force"),
    ]:
        refused(run("predict", tmp_path / "bundle", "--input", file, "--output", output), f"--output {output}", message)
    assert file.read_text() == "text\ngood\n"


def test_an_output_that_is_a_link_stays_one(bundle: Path, tmp_path: Path):
    link, target = tmp_path / "link.jsonl", tmp_path / "answers.jsonl"
    link.symlink_to(target)
    succeeded(run("predict", bundle, "good", "--output", link))
    assert link.is_symlink()
    assert equal(lines(target.read_text()), answers(bundle, ["good"]))


def test_an_interrupt_leaves_nothing(bundle: Path, tmp_path: Path):
    """It comes while more rows are awaited; many are written by then."""
    pipe, output = tmp_path / "data.jsonl", tmp_path / "answers.jsonl"
    os.mkfifo(pipe)
    process = program("predict", bundle, "--input", pipe, "--output", output)
    with pipe.open("w") as rows:
        rows.write('{"text": "good"}\n' * 3 * CHUNK)
        rows.flush()
        while process.poll() is None and not any(file.stat().st_size for file in tmp_path.glob("*.part")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr == "Error: interrupted\n"
    assert os.listdir(tmp_path) == ["data.jsonl"]


def test_no_more_than_a_chunk_of_rows_is_held(bundle: Path, tmp_path: Path):
    """The input is a pipe: what its writer got rid of has been read, or is in a buffer that holds a few rows."""
    pipe, written, buffered = tmp_path / "data.jsonl", 0, 64
    os.mkfifo(pipe)

    def write() -> None:
        nonlocal written
        row = json.dumps({"text": "good", "ballast": "x" * 8000}) + "\n"
        with pipe.open("w") as rows:
            for written in range(1, 8 * CHUNK + 1):  # noqa: B007
                rows.write(row)

    writer = threading.Thread(target=write)
    writer.start()
    for done, _ in enumerate(hadskip_export.predict(bundle, input=pipe), start=1):
        chunks = -(-done // CHUNK)
        assert written <= chunks * CHUNK + buffered
    writer.join()
    assert done == written == 8 * CHUNK


# Standard input


def test_standard_input_is_classified_line_by_line(bundle: Path):
    result = succeeded(run("predict", bundle, "-", input="good\r\nbad film\n"))
    wanted = [{"line": line, **answer} for line, answer in enumerate(answers(bundle, ["good", "bad film"]), start=1)]
    assert equal(lines(result.stdout), wanted)
    refused(run("predict", bundle, "-", input="good\n\nbad\n"), "standard input, line 2: the text is empty")
    skipping = succeeded(run("predict", bundle, "-", "--on-error", "skip", input="good\n\nbad\n"))
    assert [record["line"] for record in lines(skipping.stdout)] == [1, 3]
    refused(run("predict", bundle, "-", input=""), "standard input: no text on it")


def test_standard_input_goes_alone_and_so_do_texts(bundle: Path, tmp_path: Path):
    assert "standard input goes alone" in run("predict", bundle, "-", "good").stderr
    assert "leave it or the TEXTS out" in run("predict", bundle, "good", "--input", tmp_path / "a.csv").stderr
    refused(run("predict", bundle, "good", " "), "text 2 is empty")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["good", "--text-column", "x"], "--text-column: names a column of the file that --input gives"),
        (["-", "--pair-column", "x"], "--pair-column: names a column of the file that --input gives"),
        (["good", "--on-error", "skip"], "--on-error skip: goes with --input"),
        (["good", "--force"], "--force: goes with --output"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(bundle: Path, arguments: list[str], option: str):
    refused(run("predict", bundle, *arguments), option)


# What else is in the file


def test_other_columns_are_passed_on(bundle: Path, tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"id": 7, "text": "good", "label": "x", "tags": [1, null]}\n{"text": "bad", "id": "\\ud800"}\n')
    one, other = lines(succeeded(run("predict", bundle, "--input", file)).stdout)
    first, second = answers(bundle, ["good", "bad"])
    assert equal([one], [{"line": 1, "id": 7, "input_label": "x", "tags": [1, None], **first}])
    assert equal([other], [{"line": 2, "id": "\ud800", **second}])


def test_a_table_has_a_column_for_each_class(bundle: Path, tmp_path: Path):
    file, output = tmp_path / "data.csv", tmp_path / "answers.csv"
    file.write_text('id,text,note\n7,good,"a, ""b""\nc"\n8,bad,\n')
    succeeded(run("predict", bundle, "--input", file, "--output", output))
    with output.open(newline="") as table:
        rows = list(csv.DictReader(table))
    for row, answer in zip(rows, answers(bundle, ["good", "bad"]), strict=True):
        assert row["label"] == answer["label"] and row["truncated"] == "false"
        assert row["layers"].split() == [str(layer) for layer in answer["layers"]]
        assert {name: float(row[f"probability_{name}"]) for name in answer["probabilities"]} == pytest.approx(
            answer["probabilities"], abs=1e-6
        )
    assert [(row["line"], row["id"], row["note"]) for row in rows] == [("2", "7", 'a, "b"\nc'), ("4", "8", "")]


def test_answers_may_be_asked_about_again(bundle: Path, tmp_path: Path):
    first, second, third = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv"
    first.write_text("text,note,label,input_label\ngood,1,mine,yours\n")
    succeeded(run("predict", bundle, "--input", first, "--output", second))
    succeeded(run("predict", bundle, "--input", second, "--output", third, "--text-column", "note"))
    with second.open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert (row["input_input_label"], row["input_label"]) == ("mine", "yours")
    with third.open(newline="") as table:
        (row,) = csv.DictReader(table)
    values = list(row.values())
    assert {"mine", "yours"} <= set(values) and "input_probability_yes" in row and row["input_line"] == "2"


def test_a_table_does_not_lose_what_its_first_row_has_not(bundle: Path, tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "good"}\n{"text": "bad", "id": 1}\n')
    refused(run("predict", bundle, "--input", file, "--output", tmp_path / "a.csv"), "line 2: has 'id'", ".jsonl")
    assert os.listdir(tmp_path) == ["data.jsonl"]


def test_an_output_is_replaced_only_when_told_to(bundle: Path, tmp_path: Path):
    output = tmp_path / "answers.jsonl"
    output.write_text("old")
    refused(run("predict", bundle, "good", "--output", output), f"--output {output}: exists already", "--force")
    assert output.read_text() == "old"
    succeeded(run("predict", bundle, "good", "--output", output, "--force"))
    assert equal(lines(output.read_text()), answers(bundle, ["good"]))


# As a function


def test_the_function_skips_too(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "data.csv"
    file.write_text("text,label\ngood,1\nshort\n")
    found = list(map(json.loads, hadskip_export.predict(bundle, input=file, on_error="skip")))
    assert [record["line"] for record in found] == [2]
    assert f"{file}, line 3" in capsys.readouterr().err
    with pytest.raises(DataError, match="line 3"):
        list(hadskip_export.predict(bundle, input=file))


def test_the_function_writes_when_it_is_called(bundle: Path, tmp_path: Path):
    output = tmp_path / "answers.jsonl"
    assert list(hadskip_export.predict(bundle, ["good"], output=output)) == []
    assert len(lines(output.read_text())) == 1
    output.unlink()
    hadskip_export.predict(bundle, ["good"], output=output)
    assert len(lines(output.read_text())) == 1


def test_the_function_refuses_another_way_of_going_on(bundle: Path):
    with pytest.raises(DataError, match="on_error='ignore': expected 'stop' or 'skip'"):
        hadskip_export.predict(bundle, ["good"], on_error="ignore")


@pytest.mark.parametrize("kind", ["data.parquet", "data.csv.gz", "saved"])
def test_packed_and_columnar_files_are_classified_like_others(bundle: Path, tmp_path: Path, kind: str):
    table = {"number": [7, 8, 9], "text": ["a good film", "dull", "the plot"]}
    place, out = tmp_path / kind, tmp_path / "out.jsonl"
    if kind == "data.parquet":
        pq.write_table(pa.table(table), place)
    elif kind == "saved":
        datasets.Dataset.from_dict(table).save_to_disk(str(place))
    else:
        content = "number,text\n" + "".join(f"{number},{text}\n" for number, text in zip(*table.values(), strict=True))
        place.write_bytes(gzip.compress(content.encode()))
    succeeded(run("predict", bundle, "--input", place, "--output", out))
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["label"] for record in records] == [found["label"] for found in answers(bundle, table["text"])]
    assert [int(record["number"]) for record in records] == table["number"]
