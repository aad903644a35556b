"""What is promised of a loss, against what other texts of the same kind then lose."""

import math

import numpy as np
import pytest

from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SINGLE, Problem
from hadskip_export.support.errors import DataError
from hadskip_export.tuning.loss import Judge, Loss, fewest_texts, most_lost, most_of_a_share

TWO = Problem(SINGLE, ("no", "yes"))


def logits_of(answers: np.ndarray) -> np.ndarray:
    """float32 [n, 2], whose larger one is the answer."""
    return np.eye(2, dtype=np.float32)[answers]


def judge(full: np.ndarray, targets: np.ndarray | None, problem: Problem = TWO, metric: str = "accuracy", groups=None):
    return Judge(problem, metric, full, targets, np.zeros(len(full), int) if groups is None else groups)


@pytest.mark.parametrize("share", [0.001, 0.003, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("count", [20, 300, pytest.param(1000, marks=pytest.mark.slow)])
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


def test_queries_of_which_nothing_can_be_lost_show_no_loss():
    """Of one document, or of documents that are all alike, every order is as good."""
    random, ranking = np.random.default_rng(0), Problem(RANKING, ("LABEL_0",))
    groups = np.concatenate((np.repeat(np.arange(8), 20), np.arange(8, 1008)))
    targets = random.integers(0, 2, len(groups)).astype(np.float32)
    full = random.normal(size=(len(groups), 1)).astype(np.float32)
    for metric in ("ndcg", "mrr"):
        mixed = judge(full, targets, ranking, metric, groups)
        few = judge(full[:160], targets[:160], ranking, metric, groups[:160])
        assert mixed.loss(full).most == few.loss(full[:160]).most > 0.3
        right = targets[:, None] + full / 9
        value = judge(right, targets, ranking, metric, groups).loss(-right).value
        assert value == judge(right[:160], targets[:160], ranking, metric, groups[:160]).loss(-right[:160]).value > 0.1
        assert judge(right, targets, ranking, metric, groups).loss(-right).most > 0.3
        for one in (mixed, few):
            with pytest.raises(DataError, match="8 queries"):
                one.check_enough(0.1)


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
    """Of a hundred queries of which ten are lost, another hundred may have none or twenty; rows by themselves would
    promise that it is always ten."""
    groups, problem = np.repeat(np.arange(100), 30), Problem(RANKING, ("score",))
    targets = np.tile(np.eye(30, dtype=np.float32)[0], 100)
    full = targets[:, None].copy()
    ours = full.copy()
    ours[:300] *= -1
    found = judge(full, targets, problem, "mrr", groups).loss(ours)
    assert found.value == pytest.approx((1 - 1 / 30) / 10)
    assert found.most == pytest.approx((1 - 1 / 30) * 0.15, abs=0.015)  # 95 of 100 draws have 15 of them at most


@pytest.mark.parametrize(
    ("count", "lost", "gained"),
    [
        (402, 0.0102, 0.0),
        (600, 0.02, 0.01),
        (600, 0.012, 0.002),
        (1200, 0.0101, 0.0),
        (141, 0.031, 0.0),
        (2000, 0.03, 0.02),
    ],
)
def test_what_is_lost_at_most_of_pairs_holds_in_95_of_100_cases(count: int, lost: float, gained: float):
    """Where a bootstrap of few losses would hold in 75."""
    random = np.random.default_rng(0)
    seen = random.multinomial(count, [lost, gained, 1 - lost - gained], 2000)[:, :2].tolist()
    known = {pair: most_lost(*pair, count) for pair in set(map(tuple, seen))}
    assert np.mean([known[tuple(pair)] >= lost - gained for pair in seen]) >= 0.94


def test_the_score_bound_is_what_tango_gives():
    """By a plain search over both shares of the likelihood, instead of the closed form."""
    for lost, gained, count in ((12, 5, 300), (9, 9, 400), (30, 10, 1000)):
        found = most_lost(lost, gained, count)
        shares = np.linspace(1e-6, 0.2, 400_000)
        likely = lost * np.log(shares + found) + gained * np.log(shares)
        likely += (count - lost - gained) * np.log1p(-2 * shares - found)
        share = shares[likely.argmax()]
        score = (lost - gained - count * found) / np.sqrt(count * (2 * share + found * (1 - found)))
        assert score == pytest.approx(-1.6449, abs=1e-3)


def test_few_of_a_label_leave_much_unsure_of_a_metric_that_is_about_it():
    """Of three texts of a rare label nobody knows much, however many others there are."""
    targets = np.zeros(3000, int)
    targets[:3] = 1
    found = judge(logits_of(targets), targets, metric="f1").loss(logits_of(targets))
    assert found == Loss(0.0, most_of_a_share(0, 3))
    with pytest.raises(DataError, match="3 of the rarest label cannot show it"):
        judge(logits_of(targets), targets, metric="macro_f1").check_enough(0.05)


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
        assert one.loss(full).value == 0 < one.loss(full).most
        assert 0 < one.loss(ours).value < one.loss(ours).most
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
