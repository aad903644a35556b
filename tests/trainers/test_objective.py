"""The losses of every problem against loops in plain Python, and torch's own."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hadskip_export.data.problems import MULTI, PROBLEM_TYPES, RANKING, REGRESSION, SINGLE
from hadskip_export.trainers.objective import Objective


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got: Tensor, wanted: float) -> None:
    assert got.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_the_divergence_of_classes_is_that_of_their_distributions():
    student, teacher = random(3, 4, seed=1), random(3, 4, seed=2)
    each = []
    for row in range(3):
        p, q = teacher[row].softmax(0).tolist(), student[row].softmax(0).tolist()
        each.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    objective = Objective(SINGLE)
    assert objective.divergence(student, teacher).tolist() == pytest.approx(each)
    close(objective.prediction_loss(student, teacher), sum(each) / 3)
    close(objective.prediction_loss(teacher + 5, teacher), 0)


@pytest.mark.parametrize(("kind", "labels"), [(MULTI, 4), (RANKING, 1)])
def test_the_divergence_of_labels_is_the_mean_of_theirs_each_given_or_not(kind, labels: int):
    student, teacher = random(3, labels, seed=1), random(3, labels, seed=2)
    each = []
    for row in range(3):
        total = 0.0
        for label in range(labels):
            p, q = teacher[row, label].sigmoid().item(), student[row, label].sigmoid().item()
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        each.append(total / labels)
    assert Objective(kind).divergence(student, teacher).tolist() == pytest.approx(each)


def test_the_divergence_of_numbers_is_that_of_normal_distributions_of_their_variance():
    student, teacher = random(3, 1, seed=1), random(3, 1, seed=2)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(teacher, 7**0.5), normal(student, 7**0.5))[:, 0]
    torch.testing.assert_close(Objective(REGRESSION, 7.0).divergence(student, teacher), wanted)


def test_the_tasks_loss_is_torchs():
    several, one, numbers = random(5, 3, seed=1), random(5, 1, seed=2), random(5, seed=3)
    classes, given = torch.tensor([0, 2, 1, 1, 0]), (random(5, 3, seed=4) > 0).double()
    close(Objective(SINGLE).task_loss(several, classes), F.cross_entropy(several, classes).item())
    close(Objective(MULTI).task_loss(several, given), torch.nn.BCEWithLogitsLoss()(several, given).item())
    close(Objective(RANKING).task_loss(one, given[:, 0]), torch.nn.BCEWithLogitsLoss()(one[:, 0], given[:, 0]).item())
    close(Objective(REGRESSION, 4.0).task_loss(one, numbers), torch.nn.MSELoss()(one[:, 0], numbers).item() / 4)


def test_the_unit_of_a_regressions_numbers_changes_no_loss():
    student, teacher, targets = random(6, 1, seed=1), random(6, 1, seed=2), random(6, seed=3)
    one, scaled = (Objective.of(REGRESSION, scale * targets.numpy()) for scale in (1, 100))
    close(scaled.task_loss(100 * student, 100 * targets), one.task_loss(student, targets).item())
    close(scaled.prediction_loss(100 * student, 100 * teacher), one.prediction_loss(student, teacher).item())


def test_where_numbers_are_all_one_their_errors_are_taken_as_they_are():
    assert Objective.of(REGRESSION, np.full(5, 3.0)) == Objective(REGRESSION, 1.0)
    for kind in PROBLEM_TYPES:
        assert Objective.of(kind, None) == Objective(kind)


@pytest.mark.parametrize("kind", PROBLEM_TYPES)
def test_far_logits_give_no_infinity(kind: str):
    objective, far = Objective(kind), torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert objective.divergence(far, -far).isfinite().all() and (objective.divergence(far, far) == 0).all()
