"""What is promised of a loss, against what other texts of the same kind then lose."""

import math

import numpy as np
import pytest

from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SINGLE, Problem
from hadskip_export.support.errors import DataError
from hadskip_export.tuning.loss import Judge, fewest_texts, most_of_a_share

TWO = Problem(SINGLE, ("no", "yes"))


def logits_of(answers: np.ndarray) -> np.ndarray:
    """float32 [n, 2], whose larger one is the answer."""
    return np.eye(2, dtype=np.float32)[answers]


def judge(full: np.ndarray, targets: np.ndarray | None, problem: Problem = TWO, metric: str = "accuracy", groups=None):
    return Judge(problem, metric, full, targets, np.zeros(len(full), int) if groups is None else groups)


@pytest.mark.parametrize("share", [0.001, 0.003, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("count", [20, 300, 1000])
def test_a_share_is_within_its_bound_in_95_of_100_cases(share: float, count: int):
    """Exactly: over all that can be seen, by how likely it is."""
    likely = [math.comb(count, seen) * share**seen * (1 - share) ** (count - seen) for seen in range(count + 1)]
    held = sum(chance for seen, chance in enumerate(likely) if most_of_a_share(seen, count) >= share)
    assert held >= 0.95


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.5])
def test_the_fewest_texts_are_those_that_just_show_it(share: float):
    need = fewest_texts(share)
    assert most_of_a_share(0, need) <= share < most_of_a_share(0, need - 1)


def test_without_labels_a_loss_is_the_share_of_other_answers():
    full, other = np.zeros(400, int), np.zeros(400, int)
    other[:6] = 1
    found = judge(logits_of(full), None).loss(logits_of(other))
    assert (found.value, found.most) == (pytest.approx(6 / 400), most_of_a_share(6, 400))


def test_no_labels_of_these_texts_could_lose_more_accuracy_than_answers_are_others():
    random = np.random.default_rng(0)
    full, other = random.integers(0, 2, 300), random.integers(0, 2, 300)
    changed = judge(logits_of(full), None).loss(logits_of(other)).value
    for seed in range(20):
        targets = np.random.default_rng(seed).integers(0, 2, 300)
        assert judge(logits_of(full), targets).loss(logits_of(other)).value <= changed


def test_a_loss_of_accuracy_holds_on_texts_of_the_same_kind():
    """Full BERT right on 92 %, and 4 % of all texts answered otherwise, three of four of them wrongly then."""

    def draw(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        changed, was_right = random.random(count) < 0.04, random.random(count) < 0.75
        right = np.where(changed, was_right, random.random(count) < 0.927)
        return right.astype(int), np.where(changed, 1 - right, right).astype(int)

    truth = 0.04 * (0.75 - 0.25)
    held = []
    for seed in range(200):
        full, ours = draw(seed, 500)
        found = judge(logits_of(full), np.ones(500, int)).loss(logits_of(ours))
        assert found.value == pytest.approx((full.sum() - ours.sum()) / 500) and found.most >= found.value
        held.append(found.most >= truth)
    assert np.mean(held) >= 0.9


def test_documents_of_a_query_are_drawn_together():
    """Of ten queries of which one is lost entirely, another ten may have none or four; its rows by themselves would
    promise that it is always there."""
    groups, problem = np.repeat(np.arange(10), 30), Problem(RANKING, ("score",))
    targets = np.tile(np.eye(30, dtype=np.float32)[0], 10)
    full = targets[:, None].copy()
    ours = full.copy()
    ours[:30] *= -1
    found = judge(full, targets, problem, "mrr", groups).loss(ours)
    assert found.value == pytest.approx((1 - 1 / 30) / 10)
    assert found.most == pytest.approx((1 - 1 / 30) * 0.3, abs=0.05)  # 95 of 100 draws have it at most three times


@pytest.mark.parametrize(
    ("problem", "metric", "labels"),
    [
        (Problem(MULTI, ("a", "b", "c")), "accuracy", 3), (Problem(REGRESSION, ("x",)), "pearson", 1),
        (TWO, "matthews", 2), (TWO, "f1", 2),
    ],
)  # fmt: skip
def test_every_kind_of_answer_can_be_judged_with_labels_and_without(problem: Problem, metric: str, labels: int):
    random = np.random.default_rng(0)
    full = random.normal(size=(300, labels)).astype(np.float32)
    ours = full + random.normal(size=full.shape).astype(np.float32)
    decided = problem.decide(full)
    targets = decided.astype(np.float32) if problem.type == MULTI else decided
    for given in (targets, None):
        one = judge(full, given, problem, metric)
        assert one.loss(full).value == 0 < one.loss(ours).value < one.loss(ours).most
    assert one.measure == "agreement"


def test_a_loss_that_so_few_texts_cannot_show_is_refused():
    judge(np.zeros((299, 2), np.float32), None).check_enough(0.01)
    with pytest.raises(DataError, match=r"--max-loss 0.01: 298 texts cannot show it.* at least 299"):
        judge(np.zeros((298, 2), np.float32), None).check_enough(0.01)
    with pytest.raises(DataError, match=r"10 queries cannot show it"):
        judge(
            np.zeros((500, 2), np.float32), None, problem=Problem(RANKING, ("score",)), groups=np.arange(500) % 10
        ).check_enough(0.01)
    for wrong in (0.0, -0.1, 1.0, 5.0, math.nan):
        with pytest.raises(DataError, match="expected a part of the metric"):
            judge(np.zeros((500, 2), np.float32), None).check_enough(wrong)
