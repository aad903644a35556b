"""Labelled files as people have them, and refusals that name the file, the line and the column."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hadskip_export.errors import DataError
from hadskip_export.tables import Columns, Examples, read_examples, read_rows, read_texts

NASTY = [
    'a "quoted" word',
    "comma, comma",
    "two\nlines",
    "two\r\nlines",
    " blanks ",
    "",
    "ünïcode 日本",
    "tab\there",
    '"',
    "'",
]
LABEL_OF = ["yes", "no"]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def refused(action: Callable[[], object], *names: str) -> str:
    """The action raises a one-line DataError that has all of `names`."""
    with pytest.raises(DataError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message
    return message


# CSV


def test_csv_quoting_as_the_standard_library_writes_it(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "x") for text in NASTY)])
    assert read_examples(tmp_path / "a.csv") == Examples(NASTY, ["x"] * len(NASTY))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.sampled_from(LABEL_OF)),
        min_size=1,
        max_size=8,
    )
)
def test_any_text_survives_csv_and_jsonl(tmp_path, rows):
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="")
    for name in ("a.csv", "a.jsonl"):
        assert read_examples(tmp_path / name) == Examples(texts, labels)
        assert list(read_texts(tmp_path / name)) == texts


def test_line_numbers_count_lines_inside_quotes(tmp_path):
    file = write(tmp_path, "a.csv", 'text,label\n"one\ntwo\n\nthree",x\nplain,x\n"again\nand",x\nlast,x\n')
    assert [row.line for row in read_rows(file)] == [5, 6, 8, 9]


def test_a_ragged_row_is_named_by_its_line(tmp_path):
    head = 'text,label\n"one\ntwo",x\n'
    refused(lambda: read_examples(write(tmp_path, "long.csv", head + "a,b,c\n")), "long.csv", "line 4", "2 columns")
    refused(
        lambda: read_examples(write(tmp_path, "short.csv", head + "fine,x\nalone\n")),
        "short.csv",
        "line 5",
        "2 columns",
    )
    refused(lambda: read_examples(write(tmp_path, "first.csv", "text,label\na,b,c\n")), "first.csv", "line 2")


def test_broken_quoting_is_named_by_its_line(tmp_path):
    head = 'text,label\n"one\ntwo",x\n'
    refused(lambda: read_examples(write(tmp_path, "a.csv", head + '"x"y,x\n')), "a.csv", "line 4")
    refused(lambda: read_examples(write(tmp_path, "b.csv", head + '"never closed,x\n')), "b.csv", "line 4")


def test_windows_files_with_a_byte_order_mark(tmp_path):
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        content = f"text{separator}label\r\na b{separator}x\r\nc{separator}y\r\n"
        assert read_examples(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode())) == Examples(
            ["a b", "c"], ["x", "y"]
        )
    jsonl = b'\xef\xbb\xbf{"text": "a", "label": "x"}\r\n\r\n{"text": "b", "label": "y"}\r\n'
    assert read_examples(write(tmp_path, "a.jsonl", jsonl)) == Examples(["a", "b"], ["x", "y"])


def test_blank_lines_are_no_rows(tmp_path):
    file = write(tmp_path, "a.csv", "text,label\n\na,x\n\n\nb,y\n\n")
    assert [row.line for row in read_rows(file)] == [3, 6]


def test_a_long_text_is_read(tmp_path):
    text = "word " * 100_000
    assert read_examples(write(tmp_path, "a.csv", f"text,label\n{text},x\n")).texts == [text]


# TSV


def test_tsv_has_no_quoting(tmp_path):
    """GLUE's sentences begin with, end with and contain single quotation marks that close nothing."""
    texts = [
        '"opened and never closed',
        "it's",
        'he said "no"',
        '""',
        '"a" b',
        "comma, comma",
        "back\\slash",
        " blanks ",
    ]
    file = write(tmp_path, "dev.tsv", "sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    assert read_examples(file) == Examples(texts, ["1"] * len(texts))


def test_a_ragged_line_of_a_tsv_is_named(tmp_path):
    refused(
        lambda: read_examples(write(tmp_path, "a.tsv", "sentence\tlabel\na\t1\nb\tc\t1\n")),
        "a.tsv",
        "line 3",
        "2 columns",
    )


# JSONL


def test_json_values_of_a_label_are_named_as_json_writes_them(tmp_path):
    labels = ["yes", 1, 0, -1, 1.5, True, False]
    file = write(
        tmp_path, "a.jsonl", "\n".join(json.dumps({"text": f"t{i}", "label": v}) for i, v in enumerate(labels))
    )
    assert read_examples(file).labels == ["yes", "1", "0", "-1", "1.5", "true", "false"]


@pytest.mark.parametrize("value", ["null", '["a", "b"]', '{"a": 1}'])
@pytest.mark.parametrize("key", ["text", "label"])
def test_a_json_value_that_is_no_text_is_refused_with_its_line(key, value, tmp_path):
    """Else a missing text is classified as the word `null`, and a list as its brackets."""
    other = {"text": "label", "label": "text"}[key]
    file = write(tmp_path, "a.jsonl", f'{{"text": "a", "label": "x"}}\n{{"{key}": {value}, "{other}": "x"}}\n')
    refused(lambda: read_examples(file), "a.jsonl", "line 2")


def test_malformed_json_is_named_by_its_line(tmp_path):
    good = '{"text": "a", "label": "x"}\n'
    refused(
        lambda: read_examples(write(tmp_path, "a.jsonl", good + "\n" + '{"text": "b"\n')),
        "a.jsonl",
        "line 3",
        "not JSON",
    )
    refused(lambda: read_examples(write(tmp_path, "b.jsonl", good + '["b", "x"]\n')), "b.jsonl", "line 2", "object")


@pytest.mark.parametrize("missing", ["text", "label"])
def test_a_field_that_is_missing_is_named_with_its_line(missing, tmp_path):
    row = {"text": "b", "label": "x"}
    del row[missing]
    file = write(tmp_path, "a.jsonl", '{"text": "a", "label": "x"}\n' + json.dumps(row) + "\n")
    refused(lambda: read_examples(file), "a.jsonl", "line 2", missing)


def test_a_later_row_without_the_text_stops_the_stream_with_its_line(tmp_path):
    file = write(tmp_path, "a.jsonl", '{"text": "a"}\n{"body": "b"}\n')
    stream = read_texts(file)
    assert next(stream) == "a"
    refused(lambda: next(stream), "a.jsonl", "line 2", "text")


# Columns


@pytest.mark.parametrize(
    ("header", "text", "pair", "label"),
    [
        ("sentence,label", 0, None, 1),
        ("label,Text", 1, None, 0),
        ("idx,sentence1,sentence2,label", 1, 2, 3),
        ("premise,hypothesis,gold_label", 0, 1, 2),
        ("id,question1,question2,target", 1, 2, 3),
        ("Quality,#1 ID,#2 ID,#1 String,#2 String", 3, 4, 0),
        ("sentence,text,label", 1, None, 2),  # the likelier name
        ("index,question,sentence,label", 2, None, 3),
    ],
)
def test_columns_are_found_by_their_names(header, text, pair, label, tmp_path):
    fields = [f"f{column}" for column in range(header.count(",") + 1)]
    file = write(tmp_path, "a.csv", f"{header}\n{','.join(fields)}\n")
    wanted = fields[text] if pair is None else (fields[text], fields[pair])
    assert read_examples(file) == Examples([wanted], [fields[label]])
    assert list(read_texts(file)) == [wanted]


def test_named_columns_win(tmp_path):
    file = write(tmp_path, "a.csv", "text,label,body,title,kind\nt,l,b,ti,k\n")
    assert read_examples(file, Columns("body", "title", "kind")) == Examples([("b", "ti")], ["k"])
    assert read_examples(file, Columns(text="body")) == Examples(["b"], ["l"])
    assert list(read_texts(file, Columns(pair="title"))) == [("t", "ti")]


@pytest.mark.parametrize(
    ("columns", "option"),
    [
        (Columns(text="boddy"), "--text-column"),
        (Columns(pair="boddy"), "--pair-column"),
        (Columns(label="boddy"), "--label-column"),
    ],
)
def test_a_column_that_is_not_there_is_refused_and_those_there_are_listed(columns, option, tmp_path):
    file = write(tmp_path, "a.csv", "text,label,body\nt,l,b\n")
    refused(lambda: read_examples(file, columns), "a.csv", "'boddy'", option, "'text', 'label', 'body'")


def test_columns_that_cannot_be_told_are_refused_with_the_option(tmp_path):
    refused(lambda: read_examples(write(tmp_path, "a.csv", "x,label\n1,2\n")), "a.csv", "'x', 'label'", "--text-column")
    refused(lambda: read_examples(write(tmp_path, "b.csv", "text,y\n1,2\n")), "b.csv", "'text', 'y'", "--label-column")


def test_texts_need_no_labels(tmp_path):
    assert list(read_texts(write(tmp_path, "a.csv", "text\nhello\nagain\n"))) == ["hello", "again"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    """Else the second silently wins."""
    file = write(tmp_path, "a.csv", "text,text,label\na,b,x\n")
    refused(lambda: read_examples(file), "a.csv", "'text'")


def test_known_labels_are_checked(tmp_path):
    file = write(tmp_path, "a.csv", "text,label\na,x\nb,y\n")
    assert read_examples(file, known=("y", "x")).labels == ["x", "y"]
    refused(lambda: read_examples(file, known=("x", "z")), "a.csv", "row 2", "'y'", "x, z")


# Files


@pytest.mark.parametrize("name", ["none.csv", "none.tsv", "none.jsonl"])
def test_a_missing_file_is_refused(name, tmp_path):
    refused(lambda: read_examples(tmp_path / name), name, "no such file")
    refused(lambda: list(read_texts(str(tmp_path / name))), name, "no such file")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.json", "a.parquet", "a.csv.gz"])
def test_another_type_of_file_is_refused(name, tmp_path):
    refused(lambda: read_examples(write(tmp_path, name, "text,label\na,x\n")), name, ".csv, .tsv or .jsonl")


def test_the_suffix_may_be_in_capitals(tmp_path):
    assert len(read_examples(write(tmp_path, "A.CSV", "text,label\na,x\n"))) == 1


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "a.csv").mkdir()
    refused(lambda: read_examples(tmp_path / "a.csv"), "a.csv")


@pytest.mark.parametrize("content", ["", "text,label\n", "text,label", "\n\n"])
def test_a_file_without_rows_is_refused(content, tmp_path):
    refused(lambda: read_examples(write(tmp_path, "a.csv", content)), "a.csv", "no rows")
    refused(lambda: read_examples(write(tmp_path, "a.jsonl", "\n")), "a.jsonl", "no rows")


@pytest.mark.parametrize("rows_before", [0, 10_000])
def test_a_file_that_is_not_utf8_is_refused_with_the_byte(rows_before, tmp_path):
    before = b"text,label\n" + b"a,x\n" * rows_before
    file = write(tmp_path, "a.csv", before + b"caf\xe9,x\n")
    assert f"byte {len(before) + 3})" in refused(lambda: read_examples(file), "a.csv", "not UTF-8")


def test_utf16_is_refused(tmp_path):
    refused(lambda: read_examples(write(tmp_path, "a.csv", "text,label\na,x\n".encode("utf-16"))), "a.csv", "not UTF-8")


def test_examples_can_be_picked_by_row():
    examples = Examples(["a", ("b", "c"), "d"], ["x", "y", "z"])
    assert examples[[2, 0, 0]] == Examples(["d", "a", "a"], ["z", "x", "x"]) and len(examples) == 3
