"""The figures of a checkpoint with every metric, and the lines made of them."""

import numpy as np
import pytest

from hadskip_export.data.metrics import METRICS
from hadskip_export.data.problems import SINGLE, Problem
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.report import text
from hadskip_export.routing.families import every_route
from hadskip_export.routing.hindsight import hindsight
from hadskip_export.routing.routes import statistics
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.evaluation import full_logits, logits_on_routes
from hadskip_export.trainers.outcomes import Outcomes, find_outcomes
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.session import Evaluation, Session
from hadskip_export.trainers.summary import DEALS, Figures
from tests.modeling.random_models import random_classifier, random_fixed, random_gated
from tests.modeling.test_exits import random_exits
from tests.trainers.datasets import OBJECTIVE, random_dataset
from tests.trainers.oracle import above, predict_fixed_routes, predict_routed

OF_CLASSES = [name for name, metric in METRICS.items() if SINGLE in metric.problems]
THRESHOLD = 3.0  # here both classes are predicted
MODEL, LABELLED = random_gated(labels=("0", "1")), Problem(SINGLE, ("0", "1"))
HELD_OUT, EVALUATION, MISMATCHED = (random_dataset(count, seed) for count, seed in ((60, 0), (70, 1), (80, 2)))
for data in (HELD_OUT, EVALUATION, MISMATCHED):
    np.minimum(data.targets, 1, out=data.targets)


def answers_right(share: float) -> np.ndarray:
    """Logits of a teacher that is right about this share of the evaluation data, wrong evenly."""
    right = np.random.default_rng(0).permutation(np.arange(len(EVALUATION)) < share * len(EVALUATION))
    predicted = np.where(right, EVALUATION.targets, 1 - EVALUATION.targets)
    return np.where(np.arange(2) == predicted[:, None], 1.0, -0.5).astype(np.float32)


def row_of(
    metric: str, teacher: np.ndarray, mismatched=None, model: GatedClassifier = MODEL, family=(), threshold=THRESHOLD
) -> dict:
    evaluation = Evaluation(data=EVALUATION, teacher_logits=teacher, mismatched=mismatched)
    session = Session(
        data=HELD_OUT,
        held_out=HELD_OUT,
        recipe=load_recipe("paper"),
        seed=0,
        device="cpu",
        log=print,
        problem=LABELLED,
        objective=OBJECTIVE,
        metric=metric,
    )
    of = [find_outcomes(model, data, family) for data in (EVALUATION, HELD_OUT)]
    return Figures(*of, evaluation, session).row(2.0, threshold)[0]


@pytest.mark.parametrize("metric", OF_CLASSES)
def test_every_figure_is_in_the_tasks_metric(metric):
    teacher = answers_right(0.8)

    def score(logits: np.ndarray, data: Dataset = EVALUATION) -> float:
        return METRICS[metric](LABELLED, logits, data.targets, data.groups)

    row, reference = row_of(metric, teacher), score(teacher)
    value = score(predict_routed(MODEL, EVALUATION, above(THRESHOLD))[0])
    assert 0 < reference < 1 and row["metric"] == value and row["retained"] == value / reference
    assert "mismatched_metric" not in row
    taken = statistics(predict_routed(MODEL, HELD_OUT, above(THRESHOLD))[1]).commonest
    short = [route for route, _ in taken if len(route) <= 2]
    held_out = predict_fixed_routes(MODEL, HELD_OUT, short)
    assert score(held_out[row["static_route"]], HELD_OUT) == max(score(found, HELD_OUT) for found in held_out.values())
    static = predict_fixed_routes(MODEL, EVALUATION, [row["static_route"]])[row["static_route"]]
    assert row["static_metric"] == score(static)


@pytest.mark.parametrize("answers", [np.tile([[1.0, 0.0]], (70, 1)), answers_right(0.3)], ids=["one class", "wrong"])
def test_of_a_teacher_that_is_no_better_than_chance_no_share_is_retained(answers):
    row = row_of("matthews", answers.astype(np.float32))
    value = METRICS["matthews"](LABELLED, answers, EVALUATION.targets, EVALUATION.groups)
    assert row["retained"] is None and value <= 0
    summary = {"task": "cola", "metric": "matthews", "layers": 4, "teacher": {"metric": value}, "budgets": [row]}
    first, header, line = text.training(summary)
    assert f"teacher {value:.4f} with all 4 layers" in first
    assert len(header) == len(line) and "%" not in line[: header.index("routes")]


def test_the_mismatched_figure_stands_beside_the_matched_one():
    row = row_of("accuracy", answers_right(0.5), MISMATCHED)
    predicted = predict_routed(MODEL, MISMATCHED, above(THRESHOLD))[0]
    assert row["mismatched_metric"] == np.mean(predicted.argmax(-1) == MISMATCHED.targets) != row["metric"]
    teacher = {"metric": 0.5, "mismatched_metric": 0.25}
    summary = {"task": "mnli", "metric": "accuracy", "layers": 4, "teacher": teacher, "budgets": [row]}
    first, header, line = text.training(summary)
    assert "0.5000 (mismatched 0.2500)" in first
    end = header.index("mismatched") + len("mismatched")
    assert line[:end].split()[-2:] == [f"{row['metric']:.4f}", f"{row['mismatched_metric']:.4f}"]
    assert len(header) == len(line)


# What routes are worth


def test_divergence_from_the_teacher_is_that_of_the_routes_taken():
    teacher = full_logits(random_classifier(labels=("0", "1")), EVALUATION)
    _, routes, _ = predict_routed(MODEL, EVALUATION, above(THRESHOLD))
    found = row_of("accuracy", teacher)["divergence"]
    wanted = OBJECTIVE.mean_divergence(teacher, logits_on_routes(MODEL, EVALUATION, routes))
    assert found == pytest.approx(wanted) and found > 0.001


def test_routes_that_suit_their_inputs_lose_by_being_shuffled():
    _, routes, _ = predict_routed(MODEL, EVALUATION, above(THRESHOLD))
    row = row_of("accuracy", logits_on_routes(MODEL, EVALUATION, routes))  # nothing suits this teacher better
    assert row["divergence"] == pytest.approx(0, abs=1e-6) and row["shuffled_divergence"] > 0.001


@pytest.mark.parametrize("metric", OF_CLASSES)
def test_shuffled_figures_are_means_over_deals_of_the_same_routes_to_other_inputs(metric, monkeypatch):
    teacher, asked = answers_right(0.8), []

    def listening(outcomes, routes):
        if outcomes.data is EVALUATION:
            asked.append((routes, logits_on_routes(MODEL, EVALUATION, routes)))
        return looked_up(outcomes, routes)

    looked_up = Outcomes.logits
    monkeypatch.setattr(Outcomes, "logits", listening)
    row = row_of(metric, teacher)
    _, own, _ = predict_routed(MODEL, EVALUATION, above(THRESHOLD))
    dealt = sorted(map(tuple, own))
    deals = [
        (routes, logits) for routes, logits in asked if (routes != own).any() and sorted(map(tuple, routes)) == dealt
    ]
    assert len(deals) == DEALS > 1 and len(np.unique(own, axis=0)) > 3
    assert len({routes.tobytes() for routes, _ in deals}) == DEALS
    scores = [METRICS[metric](LABELLED, logits, EVALUATION.targets, EVALUATION.groups) for _, logits in deals]
    assert row["shuffled_metric"] == pytest.approx(np.mean(scores))
    assert row["shuffled_divergence"] == pytest.approx(
        np.mean([OBJECTIVE.mean_divergence(teacher, logits) for _, logits in deals])
    )
    assert row == row_of(metric, teacher)  # dealt out the same each time


@pytest.mark.parametrize("route", [(1, 3), (1, 2, 3, 4)], ids=str)
def test_of_one_route_there_is_nothing_to_shuffle(route):
    model = random_fixed(route, labels=("0", "1"))
    row = row_of("accuracy", answers_right(0.8), model=model)
    assert row["routes"] == 1 and row["top_route"] == route and row["mean_layers"] == len(route)
    assert row["shuffled_divergence"] == row["divergence"]
    assert row["shuffled_metric"] == row["metric"] == row["top_route_metric"]


def test_skill_is_how_far_the_gates_come_from_chance_to_hindsight():
    family = every_route([1, 2, 3, 4], 4)
    teacher = full_logits(random_classifier(labels=("0", "1")), EVALUATION)
    row = row_of("accuracy", teacher, family=family)
    each = np.stack([OBJECTIVE.each_divergence(teacher, logits)
                     for logits in predict_fixed_routes(MODEL, EVALUATION, family).values()])  # fmt: skip
    least = hindsight(each, np.array(list(map(len, family))), row["mean_layers"])
    assert row["hindsight_divergence"] == pytest.approx(least, abs=1e-6)
    room = row["shuffled_divergence"] - least
    assert room > 0.001
    assert row["skill"] == pytest.approx((row["shuffled_divergence"] - row["divergence"]) / room, abs=1e-4)
    assert row_of("accuracy", teacher)["skill"] is None
    everything = row_of("accuracy", teacher, family=family, threshold=-100.0)
    assert everything["mean_layers"] == 4 and everything["skill"] is None  # nobody chooses


# At exactly the budget


@pytest.mark.parametrize("budget", [1.0, 2.0, 2.5, 3.2])
def test_exact_figures_are_of_a_mixture_that_runs_the_budget(budget):
    teacher = full_logits(random_classifier(labels=("0", "1")), EVALUATION)
    found = exact(MODEL, teacher, budget)
    thresholds = np.unique(find_outcomes(MODEL, EVALUATION).by_threshold.margins)
    curve = {}
    for threshold in [thresholds[0] - 1, *thresholds]:
        _, routes, _ = predict_routed(MODEL, EVALUATION, above(threshold))
        logits = logits_on_routes(MODEL, EVALUATION, routes)
        right = (logits.argmax(axis=1) == EVALUATION.targets).mean()
        curve.setdefault(routes.sum(axis=1).mean(), []).append((right, OBJECTIVE.mean_divergence(teacher, logits)))
    low, high = max(mean for mean in curve if mean <= budget), min(mean for mean in curve if mean >= budget)
    share = 0 if low == high else (budget - low) / (high - low)
    mixtures = [(1 - share) * np.array(one) + share * np.array(other) for one in curve[low] for other in curve[high]]
    assert any(np.allclose(found, one, atol=1e-5) for one in mixtures)


def exact(model, teacher: np.ndarray, budget: float) -> tuple:
    evaluation = Evaluation(data=EVALUATION, teacher_logits=teacher)
    of = [find_outcomes(model, data) for data in (EVALUATION, HELD_OUT)]
    session = Session(
        data=HELD_OUT, held_out=HELD_OUT, recipe=load_recipe("paper"), seed=0, device="cpu", log=print,
        problem=LABELLED, objective=OBJECTIVE, metric="accuracy",
    )  # fmt: skip
    row, _ = Figures(*of, evaluation, session).row(budget, 0.0)
    return row["exact_metric"], row["exact_divergence"]


def test_of_one_route_the_exact_figures_are_its_own_or_none():
    teacher = answers_right(0.8)
    row = row_of("accuracy", teacher, model=random_fixed((1, 3), labels=("0", "1")))  # of two layers
    assert (row["exact_metric"], row["exact_divergence"]) == (row["metric"], row["divergence"])
    other = row_of("accuracy", teacher, model=random_fixed((1, 2, 3), labels=("0", "1")))
    assert other["exact_metric"] is other["exact_divergence"] is None


def test_agreement_comes_in_steps_and_between_them_is_a_mixture():
    model = random_exits("linear", 3, "patience", labels=("0", "1"))
    teacher = full_logits(random_classifier(labels=("0", "1")), EVALUATION)
    curve = find_outcomes(model, EVALUATION).by_threshold
    steps = sorted({curve.mean_layers(threshold) for threshold in (-1.0, 0.3, 0.4, 0.6, 1.1)})
    low, middle, high = (exact(model, teacher, budget)[1] for budget in (steps[1], (steps[1] + steps[2]) / 2, steps[2]))
    assert len(steps) > 3 and middle == pytest.approx((low + high) / 2)
