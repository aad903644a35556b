"""The three loops, each by itself on random models: what learns, what stays, what is kept."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.trainers.evaluation import predict_full
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.stages import Session, fine_tune, initialise_gates, train_jointly
from tests.modeling.random_models import random_classifier, random_gated
from tests.trainers.datasets import random_dataset


def session(log: list[dict[str, Any]] | None = None, **settings) -> Session:
    recipe = Recipe(**({"batch_size": 16, "gate_width": 8} | settings))

    def write(**record: Any) -> None:
        if log is not None:
            log.append(record)

    return Session(random_dataset(96, 1), random_dataset(60, 2), recipe, 0, "cpu", write, "accuracy")


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def changed(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def test_stage_one_keeps_the_epoch_that_is_best_on_the_held_out_slice():
    """Labels are random and the rate is high, so that the last epoch is seldom the best."""
    last_was_best = []
    for seed in range(3):
        log: list[dict[str, Any]] = []
        here, model = session(log, stage1_lr=1e-2, stage1_epochs=6), random_classifier(seed)
        torch.manual_seed(seed)
        fine_tune(model, here)
        values = [record["held_out"] for record in log if "held_out" in record]
        kept = np.mean(predict_full(model, here.held_out) == here.held_out.labels)
        assert len(values) == 6 and kept == pytest.approx(max(values)) and not model.training
        last_was_best.append(values[-1] == max(values))
    assert not all(last_was_best)


def test_stage_one_learns():
    log: list[dict[str, Any]] = []
    fine_tune(random_classifier(dropout=0.0, attention_dropout=0.0), session(log, stage1_lr=3e-3, stage1_epochs=12))
    losses = [record["task"] for record in log if "task" in record]
    assert losses[-1] < 0.75 * losses[0]


def test_stage_two_teaches_the_gates_alone_and_without_dropout():
    model = GatedClassifier(random_classifier(dropout=0.5), 8, 1.0)
    body = state(model.classifier)
    gates = state(model.gates)
    torch.manual_seed(0)
    initialise_gates(model, session())
    assert changed(body, model.classifier) == set() and changed(gates, model.gates) == set(gates)
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model.training

    again = GatedClassifier(random_classifier(dropout=0.0), 8, 1.0)
    again.classifier.load_state_dict(body)
    again.gates.load_state_dict(gates)
    torch.manual_seed(0)
    initialise_gates(again, session())
    assert changed(state(model.gates), again.gates) == set()  # dropout made no difference


def test_stage_three_teaches_everything_but_the_teacher():
    teacher, model = random_classifier(), random_gated()
    before, frozen = state(model), state(teacher)
    train_jointly(model, teacher, 4.0, 3.0, 1, session())
    assert changed(before, model) == set(before) and changed(frozen, teacher) == set()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert not model.training


@pytest.mark.parametrize("estimator", ["reinmax", "ste"])
@pytest.mark.parametrize("budget", [1.0, 2.5, 3.5])
def test_the_penalty_brings_the_sampled_layers_to_the_budget(budget, estimator):
    log: list[dict[str, Any]] = []
    alone = {"alpha1": 0.0, "alpha2": 0.0, "alpha3": 0.0, "alpha4": 0.0, "beta": 10.0}
    here = session(log, gate_lr=2e-2, estimator=estimator, body_lr=1e-4, glide=0.2, **alone)
    torch.manual_seed(0)
    train_jointly(random_gated(), random_classifier(), 4.0, budget, 12, here)
    layers = [record["layers"] for record in log if "layers" in record]
    assert len(layers) == 12
    assert abs(np.mean(layers[-4:]) - budget) < 0.2


def test_without_the_penalty_the_budget_does_not_bind():
    log: list[dict[str, Any]] = []
    model = GatedClassifier(random_classifier(), 8, 3.0)
    torch.manual_seed(0)
    train_jointly(model, random_classifier(), 4.0, 1.0, 4, session(log, beta=0.0, gate_lr=2e-2))
    assert [record["layers"] for record in log if "layers" in record][-1] > 2.5


def test_the_literal_penalty_is_weaker_by_the_square_of_the_layers():
    """In the log: the same outputs, two units."""
    terms = {}
    for unit in ("layers", "share"):
        log: list[dict[str, Any]] = []
        torch.manual_seed(0)
        here = session(log, penalty_unit=unit, batch_size=96, body_lr=0.0, gate_lr=0.0, weight_decay=0.0)
        train_jointly(random_gated(), random_classifier(), 4.0, 1.0, 1, here)
        terms[unit] = next(record["budget"] for record in log if "task" in record)
    assert terms["layers"] == pytest.approx(16 * terms["share"], rel=1e-5)
