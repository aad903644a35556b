"""What a person reads holds the figures that were found, and says what is wrong with them."""

from dataclasses import fields, replace

import numpy as np
import pytest

from hadskip_export.benchmark.measure import Figures
from hadskip_export.commands.calibrate import Calibration
from hadskip_export.commands.demo import Demo, Example
from hadskip_export.commands.estimate import Estimate
from hadskip_export.commands.validate import Validation
from hadskip_export.report import text
from hadskip_export.routing.routes import statistics
from hadskip_export.runtime.answers import Prediction
from hadskip_export.runtime.manifest import Tolerance
from hadskip_export.tuning.loss import Loss
from hadskip_export.tuning.search import Calibrated
from hadskip_export.verification.golden import GoldenCheck
from hadskip_export.verification.labels import ClassScore, DataCheck, Flip
from hadskip_export.verification.parity import ParityReport, PieceParity
from tests.report.results import BENCHMARK, BUDGET, ROW, SUMMARY

PIECES = (PieceParity("embeddings", 1e-6, 1e-7, 1e-4), PieceParity("head", 2e-2, 1e-7, 1e-4))
REPORT = ParityReport(
    "ort", "fp32", "gates", "PyTorch fp32", 40, PIECES, Tolerance((1e-3,), 1e-4), 1, 0, 1, None, 2e-2, "head"
)
GOLDEN = GoldenCheck(64, 3, 2e-2, 1e-4, labels_agree=True)


# Checks


def test_a_piece_that_failed_is_marked_and_the_verdict_names_it():
    first, embeddings, head, _, verdict = text.parity(REPORT)
    assert first == "ort-fp32-gates against PyTorch fp32, 40 texts"
    assert "FAILED" not in embeddings and head.endswith("FAILED")
    assert verdict.strip() == "parity FAILED at head"


def test_below_fp32_full_bert_s_own_agreement_is_told():
    lines = text.parity(replace(REPORT, precision="int8", full_label_agreement=0.975, first_bad_piece=None))
    assert lines[-2:] == ["  full BERT in int8: labels agree 97.50% with its fp32", "  parity passed"]


def test_a_validation_begins_with_golden_answers():
    lines = text.validation(Validation(False, None, GOLDEN, REPORT, None))
    assert lines[0] == "golden: 64 texts, 3 flips, logits differ by at most 2.0e-02, tolerance 1e-04 (FAILED)"
    assert lines[1:] == text.parity(REPORT)


def test_the_mark_of_a_check_that_failed_before_is_told_whatever_is_found_now():
    passed = replace(REPORT, first_bad_piece=None)
    lines = text.validation(Validation(False, "labels", GOLDEN, passed, None))
    assert lines[: len(lines) - 2] == [lines[0], *text.parity(passed)]
    assert lines[-2].startswith("  FAILED at labels when it was built") and "predict" in lines[-2]
    assert "do not show it" in lines[-2] and "another precision" in lines[-1]
    assert "do not show it" not in text.validation(Validation(False, "head", GOLDEN, REPORT, None))[-2]


def check(flips: int) -> DataCheck:
    scores = (ClassScore("no", None, 0.0, 0.0, 7), ClassScore("surely", 0.5, 1.0, 2 / 3, 5))
    listed = tuple(Flip(line, f"text {line}", "no", "surely", "no") for line in range(2, 2 + flips))
    routes = statistics(np.ones((12, 3), bool))
    return DataCheck(12, "accuracy", 0.5, routes, scores, 0.75, scores[::-1], 0.5, listed, 0, flips)


@pytest.mark.parametrize(("flips", "listed", "more"), [(0, 0, []), (10, 10, []), (25, 10, ["15 more"])])
def test_ten_flips_are_listed_and_the_others_counted(flips: int, listed: int, more: list[str]):
    lines = text.labelled_data(check(flips))
    assert f"labels that differ from full BERT's: {flips}, 0 for the better, {flips} for the worse" in "\n".join(lines)
    shown = [line for line in lines if "no -> surely, truly no: text" in line]
    assert [line.split()[1] for line in shown] == [f"{line}:" for line in range(2, 2 + listed)]
    assert [part for part in more if part in lines[-1]] == more
    assert ("more" in lines[-1]) == bool(more)


def test_the_table_has_a_row_per_label():
    heading, first, second = text.labelled_data(check(0))[2:5]
    assert heading.split() == [
        "label",
        "support",
        *["precision", "recall", "F1"],
        "full",
        "BERT:",
        *heading.split()[2:5],
    ]
    assert first.split() == ["no", "7", "-", "0.000", "0.000", "0.500", "1.000", "0.667"]
    assert second.split() == ["surely", "5", "0.500", "1.000", "0.667", "-", "0.000", "0.000"]
    assert len({len(heading), len(first), len(second)}) == 1


def calibration(rows: tuple[Calibrated, ...], **others) -> Calibration:
    """Whose last row is what was asked for."""
    values = {"loss_of": None, "chosen": rows[-1], "written": False, "default": False} | others
    return Calibration("b", "ort-fp32-gates", 12, "accuracy", rows=rows, **values)


def test_of_a_loss_it_says_what_is_counted_and_what_was_chosen():
    routes = statistics(np.ones((12, 3), bool))
    rows = (
        Calibrated(None, 0.0, routes, None),
        Calibrated(3.0, -0.5, routes, None, Loss(0.0, 0.01)),
        Calibrated(2.5, 0.5, routes, None, Loss(0.02, 0.05)),
    )
    lines = text.calibration(calibration(rows, chosen=rows[1], loss_of="agreement", written=True, default=True))
    assert lines[1].split()[-3:] == ["loss", "at", "most"] and lines[4].split()[4:6] == ["0.0200", "0.0500"]
    assert "loss: of agreement against full BERT; at most: with 95 % confidence" in lines
    assert "the default is now 3" in lines and lines[-1].endswith("--budget 3")


def test_a_budget_that_was_not_met_is_told():
    routes = statistics(np.ones((12, 3), bool))
    rows = (
        Calibrated(None, 0.0, routes, None),
        Calibrated(3.0, -0.5, routes, None),
        Calibrated(2.0, 0.5, routes, None),
    )
    found = calibration(rows)
    lines = text.calibration(found)
    assert ["no nearer" in line for line in lines[2:5]] == [False, False, True]
    assert lines[-1] == "or hadskip-export predict b --engine ort-fp32-gates --gate-threshold 0.5"
    written = text.calibration(replace(found, written=True))
    assert written[:-2] == lines[:-2]  # what was found is the same, and to be had by another option
    assert written[-2:] == [
        "for 2: Predictor.load('b', engine='ort-fp32-gates', budget=2)",
        "or hadskip-export predict b --engine ort-fp32-gates --budget 2",
    ]


def test_of_a_default_point_with_a_threshold_for_each_gate_no_single_one_is_shown():
    routes = statistics(np.ones((12, 3), bool))
    rows = (Calibrated(None, None, routes, None), Calibrated(3.0, -0.5, routes, None))
    lines = text.calibration(calibration(rows))
    assert lines[2].split()[:4] == ["as", "built", "by", "gate"]


# Measurements


def test_a_row_of_a_benchmark_has_its_figures():
    lines = "\n".join(text.bench_row(ROW))
    for part in (
        "ort-fp32-gates, batch 1",
        "full BERT",
        "hadskip",
        "speedup 2.00x",
        "1.90 to 2.10",
        "ideal 2.50x",
        "efficiency 80%",
        "accuracy",
    ):
        assert part in lines
    assert "layers run by share of inputs: 2: 50%, 4: 50%" in lines
    assert "texts of dev.csv" in lines
    assert not any(part in lines for part in ("to make it faster", "do not trust", "where a call's time goes"))


def test_what_is_not_known_is_left_out():
    lines = "\n".join(text.bench_row(replace(ROW, ideal=None, efficiency=None, metric=None, full_metric=None)))
    assert not any(part in lines for part in ("ideal", "accuracy"))


def test_of_made_up_texts_no_figure_is_told_that_would_be_taken_for_one_of_the_user_s_own():
    lines = text.bench_row(replace(ROW, data=None, metric=None, full_metric=None))
    assert "made-up texts (the bundle's golden inputs)" in lines[0]
    assert not any(part in "\n".join(lines[1:]) for part in ("ideal", "efficiency", "3.00", "50%"))
    assert lines[1].split() == ["p50", "ms", "p90", "ms", "p99", "ms"]
    assert lines[3].split() == ["hadskip", "4.00", "4.50", "5.00"]
    assert "speedup 2.00x" in lines[4] and "--data FILE" in lines[5]


@pytest.mark.parametrize(("efficiency", "told"), [(0.97, False), (1.0, False), (1.07, True)])
def test_an_efficiency_above_all_is_explained_where_it_is_printed(efficiency: float, told: bool):
    row = replace(ROW, efficiency=efficiency)
    lines = text.bench_row(row)
    at = next(number for number, line in enumerate(lines) if f"efficiency {efficiency:.0%}" in line)
    assert lines[at + 1].startswith("  over 100%: the ideal is made of pieces") == told
    figures = Figures(**{field.name: getattr(row, field.name) for field in fields(Figures)})
    assert any("over 100%" in line for line in text.estimate(Estimate({}, (figures,)))) == told


# Trainings


def test_a_training_is_a_table_that_says_what_was_measured_on_what():
    heading, columns, row = text.training(SUMMARY)
    assert heading == "t: accuracy on dev.csv by budget; teacher 0.8000 with all 4 layers"
    assert len(columns) == len(row)
    assert columns.split()[:4] == ["budget", "layers", "accuracy", "retained"]
    assert row.split() == ["2", "2.00", "0.7500", "93.8%", "3", "50.0%", "0.7000", "0.7000", "40%"]
    before = {name: value for name, value in SUMMARY.items() if name != "evaluated_on"}  # a run of an older version
    assert text.training(before)[0].startswith("t: accuracy on the evaluation data by budget")


def test_of_texts_without_labels_agreement_and_divergence_are_told():
    summary = SUMMARY | {"metric": "agreement", "teacher": {"metric": 1.0}}
    heading, columns, row = text.training(summary)
    assert heading == "t: agreement with the teacher on dev.csv by budget with all 4 layers"
    assert columns.split()[2:4] == ["agreement", "divergence"]
    assert row.split()[2:4] == ["0.7500", "0.1250"]


def test_a_second_evaluation_has_a_column():
    summary = SUMMARY | {"teacher": {"metric": 0.8, "mismatched_metric": 0.7}}
    summary["budgets"] = [BUDGET | {"mismatched_metric": 0.6}]
    heading, columns, row = text.training(summary)
    assert "teacher 0.8000 (mismatched 0.7000)" in heading
    assert columns.split()[3] == "mismatched" and row.split()[3] == "0.6000"


@pytest.mark.parametrize(("number", "told"), [(0, "0 flips"), (1, "1 flip"), (2, "2 flips")])
def test_one_thing_is_not_several(number: int, told: str):
    assert f", {told}, " in text.golden(replace(GOLDEN, flips=number))
    assert f"({told} not" in text.parity(replace(REPORT, flips=number))[-2]
    assert text.parity(replace(REPORT, texts=1))[0].endswith(" 1 text")


def test_hint_warnings_and_profile_are_printed():
    profile = {"embeddings": 1.0, "python": 3.0}
    lines = text.bench_row(replace(ROW, hint="do this", warnings=("it was busy",), profile=profile))
    assert {"to make it faster: do this", "do not trust this: it was busy"} <= set(lines)
    assert [line.split() for line in lines[-2:]] == [
        ["embeddings", "1.000", "ms", "25.0%"],
        ["python", "3.000", "ms", "75.0%"],
    ]


def test_rows_of_a_benchmark_have_an_empty_line_between_them():
    lines = text.benchmark(replace(BENCHMARK, rows=(ROW, ROW)))
    assert lines == [*text.bench_row(ROW), "", *text.bench_row(ROW)]


# The demo


def test_the_demo_tells_of_every_step_and_where_things_are(tmp_path):
    validation = Validation(True, None, GOLDEN, replace(REPORT, first_bad_piece=None), check(3))
    run, bundle, figures = (tmp_path / name for name in ("run", "bundle", "bench.json"))
    easy = Example(
        "fine", Prediction("yes", {"no": 0.1, "yes": 0.9}, (), False, ("yes",), 0.9), ("embeddings", "gate_01", "head")
    )
    hard = Example(
        "not so", Prediction("no", {"no": 0.9, "yes": 0.1}, (1, 2), False, ("no",), 0.9), ("embeddings", "layer_01")
    )
    lines = text.demo(Demo(run, bundle, figures, SUMMARY, validation, BENCHMARK, (easy, hard)))
    assert lines[:3] == text.training(SUMMARY)
    assert "  parity passed" in lines
    assert text.labelled_data(check(3))[0] in lines
    assert set(text.bench_row(ROW)) <= set(lines)
    at = lines.index("  'fine': yes, layers none")
    assert lines[at : at + 4] == [
        "  'fine': yes, layers none",
        "    embeddings > gate_01 > head",
        "  'not so': no, layers 1, 2",
        "    embeddings > layer_01",
    ]
    assert f"bundle: {bundle}" in lines and f"figures: {figures}" in lines
