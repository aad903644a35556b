"""The loops, each by itself on random models: what learns, what stays, what is kept."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.families import Draw
from hadskip_export.routing.routes import Route
from hadskip_export.trainers.batches import shuffled_batches
from hadskip_export.trainers.evaluation import full_logits, logits_on_routes
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.stages import distil, fine_tune, initialise_gates, train_jointly
from hadskip_export.trainers.teacher import Teacher
from tests.modeling.random_models import random_classifier, random_gated
from tests.trainers.datasets import OBJECTIVE, PROBLEM, random_dataset


def session(log: list[dict[str, Any]] | None = None, **settings) -> Session:
    recipe = replace(load_recipe("paper"), **({"batch_size": 16, "gate_width": 8} | settings))

    def write(**record: Any) -> None:
        if log is not None:
            log.append(record)

    data, held_out = random_dataset(96, 1), random_dataset(60, 2)
    return Session(
        data=data, held_out=held_out, recipe=recipe, seed=0, device="cpu", log=write,
        problem=PROBLEM, objective=OBJECTIVE, metric="accuracy",
    )  # fmt: skip


def teacher_of(here: Session, model: Classifier | None = None) -> Teacher:
    return Teacher(model or random_classifier(), here.data, here.device)


def unlabelled(here: Session) -> Session:
    data = replace(here.data, targets=None)
    return replace(here, data=data)


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
        kept = np.mean(full_logits(model, here.held_out).argmax(-1) == here.held_out.targets)
        assert len(values) == 6 and kept == pytest.approx(max(values)) and not model.training
        last_was_best.append(values[-1] == max(values))
    assert not all(last_was_best)


def test_stage_one_learns():
    log: list[dict[str, Any]] = []
    fine_tune(random_classifier(dropout=0.0, attention_dropout=0.0), session(log, stage1_lr=3e-3, stage1_epochs=12))
    losses = [record["task"] for record in log if "task" in record]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 6, 100])
def test_accumulated_gradients_are_those_of_a_plain_loop(accumulate: int):
    """Six batches an epoch: where they do not come out even, the last step is made of what is left."""
    here = session(stage1_epochs=1, stage1_lr=1e-3, accumulate=accumulate)
    ours, plain = (random_classifier(dropout=0.0, attention_dropout=0.0) for _ in range(2))
    before = full_logits(plain, here.held_out)
    fine_tune(ours, here)
    batches = list(shuffled_batches(here.data, 16, here.seed + 1))
    assert len(batches) == 6
    groups = [batches[start : start + accumulate] for start in range(0, 6, accumulate)]
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=here.recipe.weight_decay)
    plain.train()
    for number, group in enumerate(groups):
        # The recipe's warm-up, a tenth of the steps, is one step here; from then on the rate falls to zero.
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (len(groups) - number) / max(1, len(groups) - 1))
        optimizer.zero_grad()
        loss = sum(F.cross_entropy(plain(*batch.inputs).logits, batch.targets) for batch in group) / len(group)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), here.recipe.max_grad_norm)
        optimizer.step()
    # Not the weights: a key's bias changes no answer, so its gradient is noise, which AdamW scales up.
    expected = full_logits(plain.eval(), here.held_out)
    np.testing.assert_allclose(full_logits(ours, here.held_out), expected, atol=1e-5)
    assert np.abs(expected - before).max() > 1e-2


def test_stage_two_teaches_the_gates_alone_and_without_dropout():
    model = GatedClassifier(random_classifier(dropout=0.5), 8, 1.0)
    body = state(model.classifier)
    gates = state(model.gates)
    here = session()
    teacher = teacher_of(here)
    torch.manual_seed(0)
    initialise_gates(model, teacher, here)
    assert changed(body, model.classifier) == set() and changed(gates, model.gates) == set(gates)
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model.training

    again = GatedClassifier(random_classifier(dropout=0.0), 8, 1.0)
    again.classifier.load_state_dict(body)
    again.gates.load_state_dict(gates)
    torch.manual_seed(0)
    initialise_gates(again, teacher, here)
    assert changed(state(model.gates), again.gates) == set()  # dropout made no difference


def test_stage_two_learns_from_the_teacher_where_there_are_no_labels():
    """From its predictions: the gates learn to run what the teacher's answer needs, and not at all the labels."""
    log: list[dict[str, Any]] = []
    here = session(log, stage2_epochs=8, gate_lr=2e-2)
    model = GatedClassifier(random_classifier(), 8, 1.0)
    body, gates = state(model.classifier), state(model.gates)
    torch.manual_seed(0)
    initialise_gates(model, teacher_of(here), unlabelled(here))
    assert changed(body, model.classifier) == set() and changed(gates, model.gates) == set(gates)
    records = [record for record in log if "layers" in record]
    assert records[-1]["layers"] > records[0]["layers"]  # with every layer run it is the teacher
    assert records[-1]["task"] < 0.7 * records[0]["task"]


def test_stage_three_teaches_everything_but_the_teacher():
    teacher, model, here = random_classifier(), random_gated(), session()
    before, frozen = state(model), state(teacher)
    train_jointly(model, teacher_of(here, teacher), Leg(4.0, 3.0, 1), here)
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
    train_jointly(random_gated(), teacher_of(here), Leg(4.0, budget, 12), here)
    layers = [record["layers"] for record in log if "layers" in record]
    assert len(layers) == 12
    assert abs(np.mean(layers[-4:]) - budget) < 0.2


def test_without_the_penalty_the_budget_does_not_bind():
    log: list[dict[str, Any]] = []
    model = GatedClassifier(random_classifier(), 8, 3.0)
    here = session(log, beta=0.0, gate_lr=2e-2)
    torch.manual_seed(0)
    train_jointly(model, teacher_of(here), Leg(4.0, 1.0, 4), here)
    assert [record["layers"] for record in log if "layers" in record][-1] > 2.5


def test_the_literal_penalty_is_weaker_by_the_square_of_the_layers():
    """In the log: the same outputs, two units."""
    terms = {}
    for unit in ("layers", "share"):
        log: list[dict[str, Any]] = []
        torch.manual_seed(0)
        here = session(log, penalty_unit=unit, batch_size=96, body_lr=0.0, gate_lr=0.0, weight_decay=0.0)
        train_jointly(random_gated(), teacher_of(here), Leg(4.0, 1.0, 1), here)
        terms[unit] = next(record["budget"] for record in log if "task" in record)
    assert terms["layers"] == pytest.approx(16 * terms["share"], rel=1e-5)


@pytest.mark.parametrize("states", [0.0, 1.0], ids=["predictions", "states too"])
def test_stage_three_learns_from_the_teacher_alone_where_there_are_no_labels(states):
    log: list[dict[str, Any]] = []
    here = unlabelled(session(log, alpha2=states, alpha3=states, alpha4=states))
    model = random_gated(1)
    before = state(model)
    train_jointly(model, teacher_of(here), Leg(4.0, 3.0, 1), here)
    assert changed(before, model) == set(before)
    assert log[0].keys() >= {"prediction", "budget", "layers"} and "task" not in log[0]
    assert all(np.isfinite(value) for value in log[0].values() if isinstance(value, float))


# Distillation along routes given from outside

ROUTES: list[Route] = [(1, 4), (1, 2, 4)]  # no route runs layer 3


def distilled(model: GatedClassifier, here: Session, epochs: int = 1, routes=ROUTES, teacher=None) -> GatedClassifier:
    torch.manual_seed(0)
    distil(model, teacher or teacher_of(here), Draw(routes, here.seed), here, epochs=epochs, phase="distillation")
    return model


@pytest.mark.parametrize("states", [0.0, 1.0], ids=["predictions", "states too"])
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
def test_distillation_teaches_the_layers_that_routes_run_and_nothing_else(states, labelled):
    """Weight decay is high: it must not reach a layer that never ran, for nothing holds against it there."""
    log: list[dict[str, Any]] = []
    here = session(log, alpha2=states, alpha3=states, alpha4=states, weight_decay=10.0)
    here = here if labelled else unlabelled(here)
    teacher, model = random_classifier(1), random_gated()
    before, frozen = state(model), state(teacher)
    distilled(model, here, teacher=teacher_of(here, teacher))
    body = {name for name in before if name.startswith("classifier.")}
    idle = {name for name in body if name.startswith("classifier.layers.2.")}
    assert changed(before, model) == body - idle and len(idle) == 12
    assert changed(frozen, teacher) == set() and not model.training
    terms = {"prediction"} | ({"task"} if labelled else set())
    terms |= {"hidden", "attention", "embedding"} if states else set()
    assert log[0].keys() == {"phase", "epoch"} | terms


def test_distillation_brings_the_student_nearer_to_the_teacher_on_its_routes():
    here = unlabelled(session(alpha2=0.0, alpha3=0.0, alpha4=0.0, body_lr=2e-3))
    teacher, model = random_classifier(1), random_gated()
    answers, routes = full_logits(teacher, here.data), np.tile([True, True, False, True], (len(here.data), 1))
    before = OBJECTIVE.mean_divergence(answers, logits_on_routes(model, here.data, routes))
    distilled(model, here, 8, teacher=teacher_of(here, teacher))
    assert OBJECTIVE.mean_divergence(answers, logits_on_routes(model, here.data, routes)) < 0.5 * before


def test_distillation_learns_the_task_too():
    log: list[dict[str, Any]] = []
    here = session(log, alpha1=0.0, alpha2=0.0, alpha3=0.0, alpha4=0.0, body_lr=3e-3)
    distilled(random_gated(dropout=0.0, attention_dropout=0.0), here, 24)
    losses = [record["task"] for record in log if "task" in record]
    assert len(losses) == 24 and losses[-1] < 0.5 * losses[0]


def test_a_fixed_route_can_be_distilled():
    here = session()
    model = GatedClassifier(random_classifier(1), fixed_route=(1, 4))
    before = state(model)
    distilled(model, here, routes=[(1, 4)])
    idle = ("classifier.layers.1.", "classifier.layers.2.")
    assert changed(before, model) == {name for name in before if not name.startswith(idle)}


# Mixed precision


@pytest.mark.parametrize("loop", ["fine_tune", "initialise_gates", "train_jointly", "distil"])
def test_in_bf16_only_the_products_of_training_are(loop):
    """The terms are those of fp32 but for rounding; weights and what losses see stay fp32."""
    still = {"body_lr": 0.0, "stage1_lr": 0.0, "gate_lr": 0.0, "weight_decay": 0.0, "stage1_epochs": 1}
    terms = {}
    for precision in ("fp32", "bf16"):
        log: list[dict[str, Any]] = []
        here, seen = session(log, precision=precision, **still), set()
        model = random_gated(dropout=0.0, attention_dropout=0.0)
        teacher = teacher_of(here, random_classifier(1))

        def note(module, inputs, output, seen=seen):
            seen.add((type(module).__name__, module.training, output.dtype))

        body = model.classifier
        for module in (body.layers[0].up, body.layers[0].output_norm, body.head, model.gates[0].logits):
            module.register_forward_hook(note)
        torch.manual_seed(0)
        if loop == "distil":
            distil(model, teacher, Draw(ROUTES, 0), here, epochs=1, phase="distillation")
        elif loop == "train_jointly":
            train_jointly(model, teacher, Leg(4.0, 3.0, 1), here)
        elif loop == "fine_tune":
            fine_tune(body, here)
        else:
            initialise_gates(model, teacher, here)
        products = torch.bfloat16 if precision == "bf16" else torch.float32
        trained = {(name, dtype) for name, training, dtype in seen if training or loop == "initialise_gates"}
        assert {dtype for name, dtype in trained if name == "Linear"} == {products}
        assert {dtype for name, dtype in trained if name in ("LayerNorm", "Head")} == {torch.float32}
        assert {dtype for _, training, dtype in seen if not training and loop == "fine_tune"} <= {torch.float32}
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
        terms[precision] = next(record for record in log if "task" in record)
    for name, value in terms["fp32"].items():
        if isinstance(value, float):
            assert terms["bf16"][name] == pytest.approx(value, rel=0.05, abs=1e-4), name
    assert terms["bf16"]["task"] != terms["fp32"]["task"]
