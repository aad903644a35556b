"""Labelled files as people have them, and refusals that name the file, the line and the column."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hadskip_export.data import columns
from hadskip_export.data import rows as reading
from hadskip_export.data.columns import Columns, read_texts
from hadskip_export.data.examples import Examples, read_examples
from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SINGLE, Problem
from hadskip_export.data.rows import read_rows
from hadskip_export.support.errors import DataError

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
    rows = list(read_rows(tmp_path / "a.csv"))
    assert [row["text"] for row in rows] == NASTY and {row["label"] for row in rows} == {"x"}


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
    good = [text for text in texts if text.strip()]
    for name in ("a.csv", "a.jsonl"):
        if len(good) == len(rows):
            assert read_examples(tmp_path / name) == Examples(texts, labels)
        else:
            refused(lambda: read_examples(tmp_path / name), name, "the text is empty")  # noqa: B023 run at once
        if good:
            assert [row.text for row in read_texts(tmp_path / name, refuse=[].append)] == good


def test_a_row_has_the_number_of_the_line_it_begins_on(tmp_path):
    file = write(tmp_path, "a.csv", 'text,label\n"one\ntwo\n\nthree",x\nplain,x\n"again\nand",x\nlast,x\n')
    assert [row.line for row in read_rows(file)] == [2, 6, 7, 9]


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
        '"a" b',
        "comma, comma",
        "back\\slash",
        " blanks ",
    ]
    file = write(tmp_path, "dev.tsv", "sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    assert read_examples(file) == Examples(texts, ["1"] * len(texts))


@pytest.mark.parametrize("field", ['""', '"quoted"', '"he said ""no"" and left"'])
def test_a_field_of_a_tsv_in_quotation_marks_could_be_either_and_is_refused(field, tmp_path):
    """pandas writes such; GLUE's own reader takes GLUE's files as they are."""
    refused(lambda: read_examples(write(tmp_path, "a.tsv", f"text\tlabel\na\t1\n{field}\t1\n")), "line 3", ".csv")
    header = write(tmp_path, "b.tsv", '"text"\t"label"\na\t1\n')
    refused(lambda: read_examples(header), "b.tsv: column names in quotation marks", ".csv")


def test_a_ragged_line_of_a_tsv_is_named(tmp_path):
    refused(
        lambda: read_examples(write(tmp_path, "a.tsv", "sentence\tlabel\na\t1\nb\tc\t1\n")),
        "a.tsv",
        "line 3",
        "2 columns",
    )


# JSONL


def test_json_values_of_a_label_are_named_as_json_writes_them(tmp_path):
    labels = ["yes", 1, 0, -1, 1.5, "True story"]
    file = write(
        tmp_path, "a.jsonl", "\n".join(json.dumps({"text": f"t{i}", "label": v}) for i, v in enumerate(labels))
    )
    assert read_examples(file).labels == ["yes", "1", "0", "-1", "1.5", "True story"]
    file.write_text('{"text": "a", "label": true}\n{"text": "b", "label": false}')
    assert read_examples(file).labels == ["true", "false"]
    file.write_text('{"text": "a", "label": true}\n{"text": "b", "label": 1}')
    refused(lambda: read_examples(file), "line 2", "'1' and 'true' (line 1)")


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
    assert next(stream)[:2] == (1, "a")
    refused(lambda: next(stream), "a.jsonl", "line 2", "text")


def test_a_second_text_or_a_label_that_comes_late_is_not_lost(tmp_path):
    """Writers leave out fields that are null, so the first object may not have all."""
    rows = [{"text": "a"}, {"text": "b", "text_pair": "B"}, {"text": "c"}]
    file = write(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    refused(lambda: read_examples(file, unlabelled=True), "a.jsonl", "line 2", "'text_pair'", "no second text")
    refused(lambda: list(read_texts(file)), "a.jsonl", "line 2", "'text_pair'", "no second text")
    errors: list[DataError] = []
    assert [row[:2] for row in read_texts(file, refuse=errors.append)] == [(1, "a"), (3, "c")] and len(errors) == 1
    nulls = [{"text": "a", "text_pair": None, "label": None}, {"text": "b"}, {"text": "c", "text2": None}]
    file = write(tmp_path, "c.jsonl", "".join(json.dumps(row) + "\n" for row in nulls))
    assert [row.text for row in read_texts(file)] == read_examples(file, unlabelled=True).texts == ["a", "b", "c"]
    for label in ('"x"', "[]"):
        file = write(tmp_path, "b.jsonl", f'{{"text": "a"}}\n{{"text": "b", "label": {label}}}\n')
        refused(lambda: read_examples(file, unlabelled=True), "b.jsonl", "line 2", "'label'", "no label")  # noqa: B023
    assert len(list(read_texts(file))) == 2


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
    ],
)
def test_columns_are_found_by_their_names(header, text, pair, label, tmp_path):
    fields = [f"f{column}" for column in range(header.count(",") + 1)]
    file = write(tmp_path, "a.csv", f"{header}\n{','.join(fields)}\n")
    wanted = fields[text] if pair is None else (fields[text], fields[pair])
    assert read_examples(file) == Examples([wanted], [fields[label]])
    assert [row[:2] for row in read_texts(file)] == [(2, wanted)]


def test_named_columns_win(tmp_path):
    file = write(tmp_path, "a.csv", "text,label,body,title,kind\nt,l,b,ti,k\n")
    assert read_examples(file, Columns("body", "title", "kind")) == Examples([("b", "ti")], ["k"])
    assert read_examples(file, Columns(text="body")) == Examples(["b"], ["l"])
    assert [row.text for row in read_texts(file, Columns(pair="title"))] == [("t", "ti")]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_named_as_the_text_is_not_its_pair_too(kind, tmp_path):
    """Whatever its name."""
    content = {
        "csv": "question1,question2,label\na,b,l\n",
        "jsonl": '{"question1": "a", "question2": "b", "label": "l"}\n',
    }
    file = write(tmp_path, f"a.{kind}", content[kind])
    assert read_examples(file, Columns(text="question2")) == Examples(["b"], ["l"])
    assert read_examples(file, Columns("question2", "question1")) == Examples([("b", "a")], ["l"])
    assert read_examples(file, Columns(text="question1")) == Examples([("a", "b")], ["l"])


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
    rows = read_texts(write(tmp_path, "a.csv", "text\nhello\nagain\n"))
    assert [row[:2] for row in rows] == [(2, "hello"), (3, "again")]


def test_two_columns_of_one_name_are_refused(tmp_path):
    """Else the second silently wins."""
    file = write(tmp_path, "a.csv", "text,text,label\na,b,x\n")
    refused(lambda: read_examples(file), "a.csv", "'text'")


def test_known_labels_are_checked(tmp_path):
    file = write(tmp_path, "a.csv", "text,label\na,x\nb,y\n")
    assert read_examples(file, known=Problem(SINGLE, ("y", "x"))).labels == ["x", "y"]
    refused(lambda: read_examples(file, known=Problem(SINGLE, ("x", "z"))), "a.csv", "line 3", "'y'", "x, z")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("label", ["", " ", "nan", "NaN"])
def test_a_row_that_nobody_labelled_is_no_class_of_its_own(kind, label, tmp_path):
    rows = [("a good one", "yes"), ("a bad one", "no"), ("one more", label)]
    file = write(tmp_path, f"a.{kind}", numbered_rows(rows, "label", kind))
    refused(lambda: read_examples(file), str(file), f"line {3 if kind == 'jsonl' else 4}", "no label in 'label'")


@pytest.mark.parametrize("key", ["text", "label"])
def test_json_s_not_a_number_is_neither_text_nor_label(key, tmp_path):
    row = json.dumps({"text": "a", "label": "x"} | {key: float("nan")})
    file = write(tmp_path, "a.jsonl", '{"text": "a", "label": "x"}\n' + row)
    refused(lambda: read_examples(file), "a.jsonl, line 2", repr(key))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("pair", [("", "b"), ("b", " "), ("", "")])
def test_an_empty_text_is_refused_with_its_line_wherever_it_is_read(kind, pair, tmp_path):
    rows = [{"text": "a", "text2": "b", "label": "x"}, {"text": pair[0], "text2": pair[1], "label": "y"}]
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
        lines = [",".join(row) for row in [rows[0].keys(), *(row.values() for row in rows)]]
    file = write(tmp_path, f"a.{kind}", "\n".join(lines))
    for read in (read_examples, lambda file: list(read_texts(file))):
        refused(lambda: read(file), f"line {len(lines)}: the text is empty")  # noqa: B023 run at once


@pytest.mark.parametrize("labels", [("yes", "yes "), ("yes", "Yes"), ("1", "1.0"), ("1", "01"), ("not ok", "not  ok")])
def test_labels_that_differ_in_spelling_alone_are_refused_with_both_lines(labels, tmp_path):
    rows = [("a", labels[0]), ("b", "other"), ("c", labels[1])]
    file = write(tmp_path, "a.csv", numbered_rows(rows, "label", "csv"))
    refused(lambda: read_examples(file), "a.csv, line 4", *map(repr, labels), "(line 2)")


# Texts without labels


def numbered_rows(rows: list[tuple[str, str]], label_column: str, kind: str) -> str:
    if kind == "jsonl":
        return "".join(json.dumps({"text": text, label_column: label}) + "\n" for text, label in rows)
    mark = "," if kind == "csv" else "\t"
    return "\n".join(mark.join(row) for row in [("text", label_column), *rows]) + "\n"


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("column", [*columns.LABEL_COLUMNS, "Label", "CLASS", "notes", "labelled by", "id"])
def test_labels_are_read_where_a_column_looks_like_them_and_left_out_where_none_does(kind, column, tmp_path):
    rows = [("good", "x"), ("bad", "y"), ("fine", "x")]
    file = write(tmp_path, f"a.{kind}", numbered_rows(rows, column, kind))
    examples = read_examples(file, unlabelled=True)
    assert examples.texts == ["good", "bad", "fine"] and examples.lines == [1, 2, 3] if kind == "jsonl" else [2, 3, 4]
    if column.lower() in columns.LABEL_COLUMNS:
        assert examples == read_examples(file) and examples.labels == ["x", "y", "x"]
    else:
        assert examples.labels == [] and len(examples) == 3
        refused(lambda: read_examples(file), f"a.{kind}", repr(column), "--label-column")
        named = read_examples(file, Columns(label=column), unlabelled=True)
        assert named.labels == ["x", "y", "x"]  # named is named


def test_pairs_may_be_without_labels_too(tmp_path):
    file = write(tmp_path, "a.csv", "premise,hypothesis\na,b\nc,d\n")
    assert read_examples(file, unlabelled=True) == Examples([("a", "b"), ("c", "d")], [])


def test_texts_without_labels_suit_any_known_ones(tmp_path):
    file = write(tmp_path, "a.csv", "text\ngood\n")
    assert read_examples(file, known=Problem(SINGLE, ("x", "y")), unlabelled=True).labels == []


def test_what_is_wrong_is_refused_without_labels_as_well(tmp_path):
    file = write(tmp_path, "a.csv", "text,notes\na,b\n")
    refused(lambda: read_examples(file, Columns(label="answer"), unlabelled=True), "'answer'", "--label-column")
    refused(lambda: read_examples(file, Columns(text="body"), unlabelled=True), "'body'", "--text-column")
    refused(lambda: read_examples(write(tmp_path, "b.csv", "text\n"), unlabelled=True), "b.csv", "no rows")
    rows = '{"text": "a", "label": "x"}\n{"text": "b"}\n'  # where some have labels, all must
    refused(lambda: read_examples(write(tmp_path, "c.jsonl", rows), unlabelled=True), "c.jsonl", "line 2", "'label'")


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=6), st.data())
def test_examples_without_labels_are_as_many_and_can_be_picked(rows, data):
    texts = [text for text, _ in rows]
    bare, labelled = Examples(texts, []), Examples(texts, [label for _, label in rows], list(range(len(rows))))
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    assert len(bare) == len(labelled) == len(rows) and len(bare[picked]) == len(picked)
    assert bare[picked] == Examples([texts[row] for row in picked], []) and bare[picked].lines == []
    assert labelled[picked] == Examples(bare[picked].texts, [rows[row][1] for row in picked])
    assert labelled[picked].lines == picked


# Files


@pytest.mark.parametrize("name", ["none.csv", "none.tsv", "none.jsonl"])
def test_a_missing_file_is_refused(name, tmp_path):
    refused(lambda: read_examples(tmp_path / name), name, "no such file")
    refused(lambda: list(read_texts(str(tmp_path / name))), name, "no such file")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.json", "a.gz", "a.csv.zip"])
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


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_row_that_is_not_utf8_is_refused_with_its_line_and_the_byte(kind, tmp_path):
    content = {
        "csv": b"text\ngood\ncaf\xe9\nbad\n",
        "jsonl": b'{"text": "good"}\n\n{"text": "\xe9"}\n{"text": "bad"}\n',
    }
    file = write(tmp_path, f"a.{kind}", content.get(kind, content["csv"]))
    refused(lambda: list(read_texts(file)), f"a.{kind}, line 3: not UTF-8 (byte 0xe9)")
    errors: list[DataError] = []
    assert [row.text for row in read_texts(file, refuse=errors.append)] == ["good", "bad"]
    assert len(errors) == 1


def test_utf16_is_refused(tmp_path):
    refused(lambda: read_examples(write(tmp_path, "a.csv", "text,label\na,x\n".encode("utf-16"))), "a.csv", "not UTF-8")


def test_examples_can_be_picked_by_row():
    examples = Examples(["a", ("b", "c"), "d"], ["x", "y", "z"])
    assert examples[[2, 0, 0]] == Examples(["d", "a", "a"], ["z", "x", "x"]) and len(examples) == 3


def test_examples_know_their_lines(tmp_path):
    examples = read_examples(write(tmp_path, "a.csv", 'text,label\n"a\nb",x\n\nc,y\nd,x\n'))
    assert examples.lines == [2, 5, 6]
    assert examples[[2, 0]].lines == [6, 2]


# Bad rows


BAD_ROWS = {
    "short and long": ("a.csv", "text,label\ngood,1\nshort\nfine,2\na,b,c\nlast,3\n", "2 good|4 fine|6 last", [3, 5]),
    "lines in quotes": ("a.csv", 'text,label\n"a\nb"\nfine,2\n"c\nd",3\n', "4 fine|5 c\nd", [2]),
    "quoting": ("a.csv", 'text,label\n"x"y,1\n"a ""b""",2\n', '3 a "b"', [2]),
    "open quote": ("a.csv", 'text,label\n"open,1\nfine,2\nlast,3\n', "3 fine|4 last", [2]),
    "open quote that another one ends": ("a.csv", 'text,label\n"open,1\nfine,2\n"last",3\n', "3 fine|4 last", [2]),
    "open quotes": ("a.csv", 'text,label\n"open,1\n"open,2\nfine,3\n"open,4', "4 fine", [2, 3, 5]),
    "Windows": ("a.csv", '\ufefftext,label\r\n"a\r\nb",1\r\n\r\nshort\r\nlast,2\r\n', "2 a\r\nb|6 last", [5]),
    "tsv": ("a.tsv", 'text\tlabel\n"open\t1\nshort\na\tb\tc\nlast"\t3\n', '2 "open|5 last"', [3, 4]),
    "empty texts": ("a.csv", 'text,label\n,1\n"",2\n  ,3\nlast,4\n', "5 last", [2, 3, 4]),
    "empty second text": ("a.csv", "text,text2\na,\n,b\n", "", [2, 3]),
    "not JSON": ("a.jsonl", '{"text": "a"}\n{\n\n[1]\n"b"\n{"text": "c"}', "1 a|6 c", [2, 4, 5]),
    "JSON that Python gives up on": ("a.jsonl", f'{"[" * 100_000}\n{"1" * 5000}\n{{"text": "c"}}', "3 c", [1, 2]),
    "JSON values": (
        "a.jsonl", '{"text": null}\n{"text": ["a"]}\n{"text": ""}\n{"text": 7}\n{"id": 1}\n', "4 7", [1, 2, 3, 5],
    ),
    "half a character": ("a.jsonl", '{"text": "\\ud800"}\n{"text": "\\ud83d\\ude42", "id": "\\ud800"}', "2 🙂", [1]),
    "first object": ("a.jsonl", '{"id": 1}\n{"id": 2}\n{"text": "a"}\n', "3 a", [1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_costs_no_other_row(case, tmp_path):
    name, content, good, bad = BAD_ROWS[case]
    file = write(tmp_path, name, content)
    errors: list[DataError] = []
    rows = read_texts(file, refuse=errors.append)
    if good:
        assert "|".join(f"{row.line} {row.text}" for row in rows) == good
    else:
        refused(lambda: list(rows), "a.csv", "no rows")
    for line, error in zip(bad, errors, strict=True):
        assert str(error).startswith(f"{file}, line {line}: ")
        assert "\n" not in str(error)
    assert str(errors[0]) == refused(lambda: list(read_texts(file)))  # and it stops, unless told otherwise


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", '"text,label\na,1\n', "header"),
        ("a.csv", "text,text\na,1\n", "same name"),
        ("a.csv", "words\na\n", "--text-column"),
        ("a.csv", "caf\udce9\na\n", "not UTF-8"),
        ("a.jsonl", '{"words": "a"}\n' * 5000, "--text-column"),
        ("a.csv", "text,label\n" + "short\n" * 5, "no rows"),
    ],
)
def test_what_is_no_rows_fault_stops_all_the_same(name, content, message, tmp_path):
    file = write(tmp_path, name, content.encode(errors="surrogateescape"))
    errors: list[DataError] = []
    refused(lambda: list(read_texts(file, refuse=errors.append)), name, message)
    assert len(errors) <= 5


def test_a_header_may_come_after_blank_lines(tmp_path):
    assert list(read_texts(write(tmp_path, "a.csv", "\n\ntext,label\na,1\n"))) == [(4, "a", {"label": "1"})]


@pytest.mark.parametrize(
    ("kind", "bad"), [(".csv", '"open\n'), (".csv", f"{'long' * 5000}\n"), (".tsv", f"{'long' * 5000}\n")]
)
def test_a_field_without_end_does_not_take_the_file_into_memory(kind, bad, monkeypatch):
    monkeypatch.setattr(reading, "MOST_CHARACTERS", 10_000)
    errors: list[DataError] = []
    lines = iter(["text\n", bad, *["good\n"] * 50_000])
    rows = reading._table_rows(Path("a"), lines, kind, errors.append)
    assert next(rows).line == 3
    assert len(list(lines)) > 45_000  # not taken yet
    assert len(errors) == 1 and "line 2" in str(errors[0])


def test_a_line_without_end_does_not_take_the_file_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_CHARACTERS", 1000)
    long = "x" * 5000
    for name, content in {
        "a.jsonl": f'{{"text": "good"}}\n{{"text": "{long}"}}\n{{"text": "bad"}}\n',
        "a.csv": f"text\ngood\n{long}\nbad\n",
        "a.tsv": f"text\ngood\n{long}\nbad\n",
    }.items():
        errors: list[DataError] = []
        rows = list(read_texts(write(tmp_path, name, content), refuse=errors.append))
        last = content.count("\n")
        assert [(row.line, row.text) for row in rows] == [(last - 2, "good"), (last, "bad")]
        assert len(errors) == 1 and f"line {last - 1}: a row of more than 1,000 characters" in str(errors[0])


def test_open_quotes_cost_time_in_proportion_to_the_file(tmp_path, monkeypatch):
    """Counted in lines that are looked at, and not in seconds."""
    seen = 0
    check = reading._check_line

    def count(line: str, characters: int) -> None:
        nonlocal seen
        seen += 1
        check(line, characters)

    monkeypatch.setattr(reading, "_check_line", count)
    for content in ('a","b\n', '"open,1\n\n', '"a\n"b\n'):
        seen, errors = 0, []
        rows = read_texts(write(tmp_path, "a.csv", "text,label\n" + content * 5000), refuse=errors.append)
        refused(lambda: list(rows), "no rows")  # noqa: B023
        assert errors and seen < 5001 * content.count("\n") * (reading.MOST_LINES_AGAIN + 2)


def test_what_follows_an_open_quote_is_read_however_far_it_reaches(tmp_path):
    """Rows of several lines among them."""
    good = '"two\nlines",x\n' * 100
    errors: list[DataError] = []
    rows = read_texts(write(tmp_path, "a.csv", f'text,label\n"open\n{good}'), refuse=errors.append)
    assert [row.text for row in rows] == ["two\nlines"] * 100
    assert len(errors) == 1


def test_the_other_columns_come_along(tmp_path):
    (csv_row,) = read_texts(write(tmp_path, "a.csv", "id,text,label,text2\n7,a,x,b\n"))
    assert csv_row == (2, ("a", "b"), {"id": "7", "label": "x"})
    (json_row,) = read_texts(write(tmp_path, "a.jsonl", '{"id": 7, "text": "a", "tags": ["x", null]}\n'))
    assert json_row == (1, "a", {"id": 7, "tags": ["x", None]})


# Several labels, and numbers

SEVERAL = [("one", ("a", "b c")), ("none", ()), ("the other", ("b c",))]


@pytest.mark.parametrize("style", ["jsonl", "json in csv", "python in csv"])
def test_a_list_is_the_labels_of_a_text(style: str, tmp_path):
    if style == "jsonl":
        rows = [json.dumps({"text": text, "labels": labels}) for text, labels in SEVERAL]
        file = write(tmp_path, "a.jsonl", "\n".join(rows))
    else:
        shown = json.dumps if "json" in style else repr
        file = tmp_path / "a.csv"
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows(
                [("text", "labels"), *((text, shown(list(labels))) for text, labels in SEVERAL)]
            )
    examples = read_examples(file)
    assert examples == Examples([text for text, _ in SEVERAL], [labels for _, labels in SEVERAL], problem_type=MULTI)
    assert examples[[2, 0]].labels == [("b c",), ("a", "b c")] and examples[[1]].problem_type == MULTI
    known = Problem(MULTI, ("a", "b c"))
    assert read_examples(file, known=known) == examples
    refused(lambda: read_examples(file, known=Problem(MULTI, ("a", "d"))), "'b c'", "a, d")
    if style == "jsonl":
        refused(lambda: read_examples(file, problem_type=SINGLE), "line 1", "'labels' is a list")


@pytest.mark.parametrize(
    ("shown", "labels"),
    [
        ("['a' 'b c']", ("a", "b c")),
        ("['a'\n 'b']", ("a", "b")),
        ("""["it's" 'x']""", ("it's", "x")),
        ("[1 2]", ("1", "2")),
    ],
)
def test_a_list_as_numpy_writes_it_has_no_commas(shown: str, labels: tuple[str, ...], tmp_path):
    """Which pandas writes for a column that came out of Parquet; Python reads it as one text."""
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("text", "labels"), ("first", shown), ("second", "[]")])
    assert read_examples(file) == Examples(["first", "second"], [labels, ()], problem_type=MULTI)


@pytest.mark.parametrize("second", [[0, 1], [0], []], ids=repr)
@pytest.mark.parametrize("kind", [int, float, bool])
def test_a_0_or_1_for_each_label_is_refused(second: list, kind: type, tmp_path):
    rows = [{"text": "first", "labels": [kind(1), kind(0)]}, {"text": "second", "labels": [*map(kind, second)]}]
    file = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    refused(lambda: read_examples(file), "rows of the labels 0 and 1")


@pytest.mark.parametrize(
    "header",
    ["text,premise,hypothesis", "sentence,sentence1,sentence2", "text,question1,question2", "Text,text,other"],
)
def test_which_of_several_texts_is_meant_is_asked(header: str, tmp_path):
    file = write(tmp_path, "a.csv", f"{header},label\na,b,c,l\n")
    refused(lambda: read_examples(file), "--text-column")
    first, second, third = header.split(",")
    assert read_examples(file, Columns(first)).texts[0] in ("a", ("a", "c"))
    assert read_examples(file, Columns(second, third)).texts == [("b", "c")]


def test_an_index_without_a_name_is_no_text(tmp_path):
    """As pandas writes one."""
    file = write(tmp_path, "a.csv", ",text,text_pair,label\n0,a,b,l\n")
    assert read_examples(file).texts == [("a", "b")]


def test_a_text_is_not_its_own_pair(tmp_path):
    file = write(tmp_path, "a.csv", "text,label\na,l\n")
    refused(lambda: read_examples(file, Columns("text", "text")), "--pair-column text")


@pytest.mark.parametrize(
    "labels", [("100000000000000001", "100000000000000002"), ("1_0", "10"), ("nan1", "nan2"), ("inf", "-inf")]
)
def test_labels_that_only_look_like_one_number_are_two(labels, tmp_path):
    file = write(tmp_path, "a.csv", f"text,label\na,{labels[0]}\nb,{labels[1]}\n")
    assert read_examples(file).labels == list(labels)


def test_numbers_that_name_labels_are_names(tmp_path):
    rows = [{"text": "first", "labels": [1, 0]}, {"text": "second", "labels": [2]}]
    file = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_examples(file).labels == [("1", "0"), ("2",)]


@pytest.mark.parametrize("other", ["cafe\u0301", "caf\u00e9\u200b", "\ufeffcaf\u00e9"], ids=ascii)
def test_labels_that_look_alike_are_refused(other: str, tmp_path):
    file = write(tmp_path, "a.csv", f"text,label\na,caf\u00e9\nb,tea\nc,{other}\n")
    refused(lambda: read_examples(file), "line 4", "differ only in spelling")


def test_a_text_of_several_lines_in_a_column_alone_is_refused(tmp_path):
    """As pandas writes one; where there are more columns their number tells."""
    file = write(tmp_path, "a.tsv", 'text\none\n"two\nlines"\nthree "four\n')
    bad = []
    assert [row.text for row in read_texts(file, refuse=bad.append)] == ["one", 'lines"', 'three "four']
    assert "line 3" in str(bad[0]) and "quotation marks" in str(bad[0])


@pytest.mark.parametrize(
    "header",
    ["question,sentence", "sentence,question", "query,text", "question,content", "question,answer", "query,passage"],
)
def test_a_question_beside_a_text_is_not_left_out_unsaid(header: str, tmp_path):
    file = write(tmp_path, "a.csv", f"{header},label\na,b,l\n")
    refused(lambda: read_examples(file), "may be a pair", "--pair-column")
    first, second = header.split(",")
    assert read_examples(file, Columns(first, second)) == Examples([("a", "b")], ["l"])
    assert read_examples(file, Columns(second)) == Examples(["b"], ["l"])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("a", "no list of labels in 'label'"), (None, "no list of labels"), (3, "no list of labels"),
        (["a", "a"], "a label twice"), ([0, 1, 0], "a label twice"), (["a", ""], "'' among the labels"),
        (["a", None], "no text or number"), ([["a"]], "no text or number"), (["a", " NaN"], "' NaN' among"),
        (["a", "A"], "differ only in spelling"), (["\ud800"], "not valid Unicode"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_list_that_cannot_be_is_refused_with_its_line(label: object, message: str, tmp_path):
    rows = [{"text": "first", "label": ["a", "b"]}, {"text": "second", "label": label}]
    file = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    refused(lambda: read_examples(file), "line 2", message)


@pytest.mark.parametrize("text", ["[" * 9000, "[1, 2", "[__import__('os')]", "[a]", "[" + "9" * 5000 + "]"])
def test_what_only_begins_like_a_list_is_a_label_like_any_other_and_nothing_is_run(text: str, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": "x", "label": label}) for label in (text, "b")))
    assert read_examples(file).labels == [text, "b"]
    refused(lambda: read_examples(file, problem_type=MULTI), "line 1", "no list of labels")


@pytest.mark.parametrize("column", ["label", "score", "similarity", "relevance"])
def test_numbers_are_scores_where_they_are_asked_for(column: str, tmp_path):
    file = write(tmp_path, "a.csv", f"text,{column}\na,0.5\nb,1\nc,1e-2\n")
    for kind in (REGRESSION, RANKING):
        assert read_examples(file, problem_type=kind).labels == [0.5, 1.0, 0.01]
    if column == "label":
        assert read_examples(file).labels == ["0.5", "1", "1e-2"]
    else:
        refused(lambda: read_examples(file), "--label-column")


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        (REGRESSION, "good", "'good': regression needs numbers"), (REGRESSION, "inf", "needs finite numbers"),
        (REGRESSION, "", "no label"), (RANKING, "1.5", "from 0 to 1"), (RANKING, "-1", "from 0 to 1"),
        (REGRESSION, "nan", "no label"),
    ],
)  # fmt: skip
def test_what_is_no_score_is_refused_with_its_line(kind, label: str, message: str, tmp_path):
    file = write(tmp_path, "a.csv", f"text,label\na,0.5\nb,{label}\n")
    refused(lambda: read_examples(file, problem_type=kind), "line 3", message)
