"""The figures of a checkpoint with every metric, and the table made of them."""

import numpy as np
import pytest

from hadskip_export.metrics import METRICS
from hadskip_export.trainers.evaluation import above, fixed_routes, predict_fixed_routes, predict_routed
from hadskip_export.trainers.summary import budget_row, table
from tests.modeling.random_models import random_gated
from tests.trainers.datasets import random_dataset

THRESHOLD = 3.0  # here both classes are predicted
MODEL = random_gated(labels=("0", "1"))
HELD_OUT, EVALUATION, MISMATCHED = (random_dataset(count, seed) for count, seed in ((60, 0), (70, 1), (80, 2)))
for data in (HELD_OUT, EVALUATION, MISMATCHED):
    np.minimum(data.labels, 1, out=data.labels)


def row_of(metric: str, teacher: float, mismatched=None) -> dict:
    return budget_row(MODEL, THRESHOLD, 2, teacher, metric, HELD_OUT, EVALUATION, mismatched, "cpu")[0]


@pytest.mark.parametrize("metric", METRICS)
def test_every_figure_is_in_the_tasks_metric(metric):
    score, row = METRICS[metric], row_of(metric, 0.5)
    value = score(predict_routed(MODEL, EVALUATION, above(THRESHOLD))[0], EVALUATION.labels)
    assert row["metric"] == value and row["retained"] == value / 0.5 and "mismatched_metric" not in row
    routes = fixed_routes(4, 2, [])
    held_out = predict_fixed_routes(MODEL.classifier, HELD_OUT, routes)
    best = max(score(predicted, HELD_OUT.labels) for predicted in held_out.values())
    assert score(held_out[row["static_route"]], HELD_OUT.labels) == best
    static = predict_fixed_routes(MODEL.classifier, EVALUATION, [row["static_route"]])[row["static_route"]]
    assert row["static_metric"] == score(static, EVALUATION.labels)


@pytest.mark.parametrize("teacher", [0.0, -0.2])
def test_of_a_teacher_that_is_no_better_than_chance_no_share_is_retained(teacher):
    row = row_of("matthews", teacher)
    assert row["retained"] is None
    summary = {"task": "cola", "metric": "matthews", "layers": 4, "teacher": {"metric": teacher}, "budgets": [row]}
    first, header, line = table(summary).splitlines()
    assert f"teacher {teacher:.4f} with all 4 layers" in first
    assert len(header) == len(line) and "%" not in line[: header.index("routes")]


def test_the_mismatched_figure_stands_beside_the_matched_one():
    row = row_of("accuracy", 0.5, MISMATCHED)
    predicted = predict_routed(MODEL, MISMATCHED, above(THRESHOLD))[0]
    assert row["mismatched_metric"] == np.mean(predicted == MISMATCHED.labels) != row["metric"]
    teacher = {"metric": 0.5, "mismatched_metric": 0.25}
    summary = {"task": "mnli", "metric": "accuracy", "layers": 4, "teacher": teacher, "budgets": [row]}
    first, header, line = table(summary).splitlines()
    assert "0.5000 (mismatched 0.2500)" in first
    end = header.index("mismatched") + len("mismatched")
    assert line[:end].split()[-2:] == [f"{row['metric']:.4f}", f"{row['mismatched_metric']:.4f}"]
    assert len(header) == len(line)
