"""Files of any size, in parts: what is written is what `predict` would have said, however often it was stopped."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hadskip_export
from hadskip_export import score
from hadskip_export.bulk.job import Job, Scored
from hadskip_export.data.columns import Columns
from hadskip_export.runtime import Predictor
from hadskip_export.support.files import replaced
from tests.conftest import sentences, write_csv
from tests.exporters.changing import copy_of
from tests.runtime.editing import change_manifest, outcome
from tests.test_cli import equal, lines, program, run, succeeded

TEXTS = [text for text, _ in sentences(57, 4)]


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Of several kinds, with other columns."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_csv(folder / "a.csv", [(text, f"a{number}") for number, text in enumerate(TEXTS[:20])], ("text", "id"))
    rows = [{"text": text, "id": f"b{number}", "when": None} for number, text in enumerate(TEXTS[20:37])]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"text": TEXTS[37:], "id": [f"c{n}" for n in range(20)]}), folder / "c.parquet")
    return sorted(folder.iterdir())


def parts(out: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(out.glob("*.jsonl"))}


def answers(out: Path, name: str) -> list[dict]:
    return [record for part, text in parts(out).items() if part.startswith(f"{name}-") for record in lines(text)]


def test_the_answers_are_those_of_predict_in_the_order_of_the_rows(bundle: Path, inputs: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    result = succeeded(run("score", bundle, inputs[0].parent, "--out", out, "--rows", 7))
    assert result.stdout.splitlines() == ["57 rows in 9 parts, 9 of them computed now", f"written: {out}"]
    assert len(parts(out)) == 9
    for file in inputs:
        assert equal(answers(out, file.name), [json.loads(line) for line in hadskip_export.predict(bundle, input=file)])


def test_a_folder_that_datasets_has_saved_is_one_input(bundle: Path, tmp_path: Path):
    saved = datasets.Dataset.from_dict({"text": TEXTS[:9]})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert score(bundle, [tmp_path / "saved"], tmp_path / "out", rows=5).rows == 9
    assert sorted(parts(tmp_path / "out")) == ["saved-000000.jsonl", "saved-000001.jsonl"]
    datasets.DatasetDict({"test": saved}).save_to_disk(str(tmp_path / "splits"))
    assert "has several splits" in outcome(lambda: score(bundle, [tmp_path / "splits"], tmp_path / "other"))


def test_called_again_it_computes_what_is_missing_and_nothing_else(bundle: Path, inputs, tmp_path: Path):
    out = tmp_path / "out"
    score(bundle, inputs, out, rows=7)
    wanted = parts(out)
    times = {file.name: file.stat().st_mtime_ns for file in out.glob("*.jsonl")}
    for name in ("a.csv-000001.jsonl", "c.parquet-000002.jsonl"):
        (out / name).unlink()
    assert score(bundle, inputs, out, rows=7) == Scored(rows=57, refused=0, parts=9, computed=2)
    assert parts(out) == wanted
    kept = {file.name for file in out.glob("*.jsonl") if times[file.name] == file.stat().st_mtime_ns}
    assert len(kept) == 7


def test_killed_again_and_again_it_ends_with_the_same_files(bundle: Path, tmp_path: Path):
    file = write_csv(tmp_path / "many.csv", [(text, "x") for text in TEXTS * 40], ("text", "id"))
    score(bundle, [file], tmp_path / "wanted", rows=50, threads=1)
    out = tmp_path / "out"
    command = ["score", bundle, file, "--out", out, "--rows", 50, "--threads", 1]
    killed = 0
    for moment in (0.05, 0.2, 0.4, 0.8):
        process = program(*command)
        while process.poll() is None and not list(out.glob("*.jsonl")):
            time.sleep(0.02)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed, "it was never in the middle of it"
    succeeded(run(*command))
    assert parts(out) == parts(tmp_path / "wanted")
    assert {file.name for file in out.iterdir()} == {"score.json", ".lock", *parts(out)}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 60), bad=st.sets(st.integers(0, 29)))
def test_each_row_has_an_answer_or_an_error_in_its_place(whole_bundle: Path, tmp_path: Path, rows: int, bad: set[int]):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    values = [None if number in bad else TEXTS[number] for number in range(30)]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    done = score(whole_bundle, [file], tmp_path / "out", rows=rows, on_error="skip", threads=1)
    found = answers(tmp_path / "out", "data.jsonl")
    assert [record["line"] for record in found] == list(range(1, 31))
    assert {record["line"] - 1 for record in found if "error" in record} == bad
    assert done.rows == 30 and done.refused == len(bad)


def test_a_bad_row_ends_it_and_the_mended_file_alone_is_computed_anew(bundle: Path, inputs, tmp_path: Path, capsys):
    out, second = tmp_path / "out", inputs[1]
    content = second.read_text()
    second.write_text(content + '{"id": 1}\n')
    assert f"{second}, line 18:" in outcome(lambda: score(bundle, inputs, out, rows=7))
    second.write_text(content)
    done = score(bundle, inputs, out, rows=7)
    assert "b.jsonl: another file than before" in capsys.readouterr().err
    assert done == Scored(rows=57, refused=0, parts=9, computed=6)
    score(bundle, inputs, tmp_path / "plain", rows=7)
    assert parts(out) == parts(tmp_path / "plain")


def test_answers_of_other_work_are_never_mixed(bundle: Path, inputs, tmp_path: Path):
    out = tmp_path / "out"
    score(bundle, inputs[:1], out, rows=7)
    other = copy_of(bundle, tmp_path)
    change_manifest(other, lambda plain: plain["points"][0].update(mean_layers=1.9))
    for attempt, what in (
        (lambda: score(other, inputs[:1], out, rows=7), "bundle"),
        (lambda: score(bundle, inputs[:1], out, rows=8), "rows"),
        (lambda: score(bundle, inputs[:1], out, rows=7, router="full"), "router"),
        (lambda: score(bundle, inputs[:1], out, rows=7, max_layers=1), "max_layers"),
        (lambda: score(bundle, inputs[:1], out, rows=7, gate_threshold=0.0), "gate_threshold"),
        (lambda: score(bundle, inputs[:1], out, rows=7, on_error="skip"), "on-error"),
    ):
        assert f"has answers of another {what};" in outcome(attempt)
    assert score(bundle, inputs[:1], out, rows=7, threads=1, router="gates", spinning=True).computed == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is no folder of answers" in outcome(lambda: score(bundle, inputs[:1], tmp_path / "full"))
    for content in ("{}", "not JSON", "[]"):
        (out / "score.json").write_text(content)
        assert "is not what score writes" in outcome(lambda: score(bundle, inputs[:1], out, rows=7))


def test_what_went_wrong_before_there_was_an_answer_binds_nobody(bundle: Path, inputs, tmp_path: Path):
    out = tmp_path / "out"
    assert "budget 99" in outcome(lambda: score(bundle, inputs, out, budget=99))
    inputs[0].write_text("words\ngood\n")
    assert "text" in outcome(lambda: score(bundle, inputs[:1], out))
    assert score(bundle, inputs[1:], out, rows=7).computed == 6


def test_answers_to_inputs_that_are_not_named_this_time_stay(bundle: Path, tmp_path: Path):
    names = ("a.csv", "a.csv-000000.csv")  # of which one begins as the other's answers do
    first, second = (write_csv(tmp_path / name, [(text,) for text in TEXTS], ("text",)) for name in names)
    out = tmp_path / "out"
    score(bundle, [first], out, rows=30)
    score(bundle, [second], out, rows=30)
    assert len(parts(out)) == 4
    write_csv(first, [(text,) for text in TEXTS[:20]], ("text",))
    assert score(bundle, [first, second], out, rows=30) == Scored(rows=77, parts=3, computed=1)
    assert len(parts(out)) == 3


def test_a_column_called_error_is_no_error(bundle: Path, tmp_path: Path):
    file = write_csv(tmp_path / "data.csv", [(text, "none") for text in TEXTS], ("text", "error"))
    score(bundle, [file], tmp_path / "out")
    found = answers(tmp_path / "out", "data.csv")
    assert all("error" not in record and record["input_error"] == "none" for record in found)


def test_a_file_whose_name_is_not_shown_as_it_is_has_its_bad_rows_named(bundle: Path, tmp_path: Path):
    file = write_csv(tmp_path / "data\u202f1.csv", [("good",), ("",)], ("text",))
    score(bundle, [file], tmp_path / "out", on_error="skip")
    assert [record.get("error") for record in answers(tmp_path / "out", file.name)] == [None, "the text is empty"]


def test_an_input_that_changes_meanwhile_ends_it(bundle: Path, inputs, tmp_path: Path):
    job = Job.of(bundle, {"a.csv": inputs[0]}, tmp_path / "out", 20, Columns(), skips=False)
    with Predictor.load(bundle, threads=1) as predictor, job.begun():
        [part] = job.parts("a.csv")
        inputs[0].write_text("text,id\nanother,1\n")
        assert "was changed meanwhile" in outcome(lambda: job.write(predictor, part))
        assert "another process is working there" in outcome(lambda: score(bundle, inputs, tmp_path / "out"))
    assert not parts(tmp_path / "out")


def test_whoever_finds_another_writing_the_same_part_waits_for_it(bundle: Path, inputs, tmp_path: Path):
    score(bundle, inputs[:1], tmp_path / "wanted", rows=20)
    out = tmp_path / "out"
    out.mkdir()
    job = Job.of(bundle, {"a.csv": inputs[0]}, out, 20, Columns(), skips=False)
    [part] = job.parts("a.csv")
    with Predictor.load(bundle, threads=1) as predictor, ThreadPoolExecutor() as pool:
        with replaced(part.place) as held:
            waiting = pool.submit(job.write, predictor, part)
            time.sleep(0.5)
            assert not waiting.done()
            held.write_text("what the other wrote\n")
        waiting.result(timeout=30)
        assert part.place.read_text() == "what the other wrote\n"
        part.place.unlink()
        job.write(predictor, part)
    assert parts(out) == parts(tmp_path / "wanted")


def test_a_file_more_is_only_more_work(bundle: Path, inputs, tmp_path: Path):
    score(bundle, inputs[:2], tmp_path / "out", rows=7)
    assert score(bundle, inputs, tmp_path / "out", rows=7).computed == 3


def test_an_input_without_a_row_is_named_and_no_reason_to_leave_out_others(bundle: Path, inputs, tmp_path: Path):
    inputs[0].write_text("text,id\n")
    out = tmp_path / "out"
    assert score(bundle, inputs, out) == Scored(rows=37, parts=2, computed=2, empty=("a.csv",))
    assert "without a row: a.csv" in succeeded(run("score", bundle, *inputs, "--out", out)).stdout


@pytest.mark.parametrize("skip", [False, True])
def test_a_column_that_is_not_there_is_no_row_without_text(bundle: Path, inputs, tmp_path: Path, skip: bool):
    options = {"text_column": "txt", "on_error": "skip" if skip else "stop"}
    assert "--text-column" in outcome(lambda: score(bundle, inputs, tmp_path / "out", **options))


def test_a_file_that_is_damaged_in_the_middle_is_not_left_out_in_silence(bundle: Path, tmp_path: Path):
    file = tmp_path / "data.csv.gz"
    rows = "".join(f"{text} {number}\n" for number, text in enumerate(TEXTS * 50))
    file.write_bytes(gzip.compress(f"text\n{rows}".encode())[:-2000])
    assert "no gzip file, or a damaged one" in outcome(
        lambda: score(bundle, [file], tmp_path / "out", rows=50, on_error="skip")
    )


def test_bad_rows_without_end_are_not_held(bundle: Path, tmp_path: Path):
    file = tmp_path / "data.csv"
    file.write_text("text,id\n" + "short\n" * 100_001)
    said = outcome(lambda: score(bundle, [file], tmp_path / "out", on_error="skip"))
    assert "line 100002: expected 2 columns, found 1; so were 100,000 rows before it" in said


def test_what_cannot_be_is_refused_before_anything_is_written(bundle: Path, inputs, tmp_path: Path):
    out, twin = tmp_path / "out", tmp_path / "twin"
    twin.mkdir()
    shutil.copy(inputs[0], twin)
    (tmp_path / "none").mkdir()
    refused = {
        "has the same name": lambda: score(bundle, [inputs[0], twin / "a.csv"], out),
        "no file to score": lambda: score(bundle, [tmp_path / "none"], out),
        "no such file": lambda: score(bundle, [tmp_path / "a.csv"], out),
        "expected .csv, .tsv, .jsonl, .parquet": lambda: score(bundle, [Path(__file__)], out),
        "--threads=0": lambda: score(bundle, inputs, out, threads=0),
        "--rows=0": lambda: score(bundle, inputs, out, rows=0),
        "--workers 2: goes with --ray": lambda: score(bundle, inputs, out, workers=2),
        "not a bundle": lambda: score(tmp_path, inputs, out),
    }
    for message, attempt in refused.items():
        assert message in outcome(attempt)
    assert not out.exists()


SCORE = """
import resource, sys
from hadskip_export import score
score(sys.argv[1], [sys.argv[2]], sys.argv[3], threads=1, rows=200)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(whole_bundle: Path, tmp_path: Path):
    peaks = []
    for factor in (1, 30):
        file = write_csv(tmp_path / f"{factor}.csv", [(text * 5, "x") for text in TEXTS * 10 * factor], ("text", "id"))
        command = [sys.executable, "-c", SCORE, whole_bundle, file, tmp_path / f"out{factor}"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, env=os.environ)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.1 * peaks[0]
