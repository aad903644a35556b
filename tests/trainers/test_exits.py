"""What exits learn, of what, and what they come to at every threshold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hadskip_export.modeling.exits import ExitClassifier
from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.routing.families import prefixes
from hadskip_export.routing.routes import as_route
from hadskip_export.support.errors import BudgetError, RecipeError
from hadskip_export.trainers import exits
from hadskip_export.trainers.batches import ordered_batches
from hadskip_export.trainers.evaluation import exit_answers
from hadskip_export.trainers.exits import Passed, train_exits
from hadskip_export.trainers.methods import METHODS, create_method
from hadskip_export.trainers.methods.early_exit import EarlyExit
from hadskip_export.trainers.methods.leebert import LearnedWeights, LeeBert
from hadskip_export.trainers.outcomes import find_outcomes
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.teacher import Teacher
from tests.modeling.random_models import CONFIG, random_classifier
from tests.modeling.test_exits import random_exits
from tests.trainers.datasets import OBJECTIVE, PROBLEM, alone, random_dataset

LAYERS = CONFIG.num_layers
KINDS = {"entropy": "head", "doubt": "head", "normalised-entropy": "attention", "uncertainty": "certain",
         "patience": "linear", "patient-entropy": "head", "worth": "judged"}  # fmt: skip


def session(*settings: str, log=lambda **_: None) -> Session:
    return Session(
        data=random_dataset(48, 1), held_out=random_dataset(30, 2), seed=0, device="cpu", log=log, problem=PROBLEM,
        recipe=load_recipe("adaptive", ("batch_size=16", "body_lr=1e-3", "exit_lr=1e-3", *settings)),
        objective=OBJECTIVE, metric="accuracy",
    )  # fmt: skip


def methods() -> list[EarlyExit]:
    made = [create_method(name, load_recipe(), {}) for name in METHODS]
    return [method for method in made if isinstance(method, EarlyExit)]


def taught(method: EarlyExit, *settings: str) -> tuple[ExitClassifier, torch.nn.Module]:
    """A student, and the teacher's model."""
    here, model = session("shared_epochs=2", *settings), random_classifier()
    (leg,) = method.path(here.recipe, 2.0, LAYERS)
    return method.learn(random_exits(), Teacher(model, here.data), leg, here), model


# Methods


@pytest.mark.parametrize("method", methods(), ids=repr)
def test_the_body_learns_or_stays_as_the_method_has_it(method):
    student, model = taught(method)
    before, after = model.state_dict(), student.classifier.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert bool(changed) == method.body_learns
    fresh = ExitClassifier(random_classifier(), method.kind, method.criterion).exits.state_dict()
    moved = [name for name, tensor in student.exits.state_dict().items() if not torch.equal(tensor, fresh[name])]
    assert {name.split(".")[0] for name in moved} == {str(index) for index in range(LAYERS - 1)}  # none is left out


@pytest.mark.parametrize("name", ["pabee", "deebert", "fastbert", "judged"])
def test_exits_beside_a_body_that_stays_have_a_rate_of_their_own(monkeypatch, name):
    method, rates = create_method(name, load_recipe(), {}), []
    real = exits.train_epochs
    monkeypatch.setattr(exits, "train_epochs", lambda *given, **more: rates.extend(given[1]) or real(*given, **more))
    taught(method, "body_lr=1e-4", "exit_lr=2e-3")
    assert [rate for _, rate in rates] == [1e-4 if method.body_learns else 2e-3]


@pytest.mark.parametrize("method", methods(), ids=repr)
def test_it_keeps_every_number_of_layers_by_one_body(method):
    (leg,) = method.path(load_recipe(), 2.5, LAYERS)
    assert leg.kept == (4.0, 3.0, 2.5, 2.0, 1.0)
    assert method.family(load_recipe(), leg, LAYERS) == ([] if method.jumps else prefixes([1, 2, 3, 4], LAYERS))
    with pytest.raises(BudgetError, match=r"--budget 0\.5"):
        method.check(load_recipe(), 0.5, CONFIG)
    with pytest.raises(RecipeError, match="one layer"):
        method.check(load_recipe(), 1, replace(CONFIG, num_layers=1))


@pytest.mark.parametrize("method", methods(), ids=repr)
def test_a_criterion_of_classes_refuses_a_score_or_several_labels_before_anything_is_trained(method):
    for kind in ("regression", "multi_label_classification", "ranking"):
        config = replace(CONFIG, problem_type=kind)
        if CRITERIA[method.criterion].of_gate:
            method.check(load_recipe(), 2.0, config)
            continue
        with pytest.raises(RecipeError, match=kind):
            method.check(load_recipe(), 2.0, config)


WEIGHTS = {  # of four exits: of the first and of the second batch of many, and at the end
    "branchynet": ([1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]),
    "shallow-deep": ([0.01, 0.01, 0.01, 1], [0.01, 0.01, 0.01, 1], [0.25, 0.5, 0.75, 1]),
    "pabee": ([0.1, 0.2, 0.3, 0.4],) * 3,
    "pcee": ([0.1, 0.2, 0.3, 0.4],) * 3,
    "leebert": ([1, 1, 1, 1],) * 3,
    "berxit": ([0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]),
    "deebert": ([1, 1, 1, 0],) * 3,
    "fastbert": ([1, 1, 1, 0],) * 3,
    "judged": ([1, 1, 1, 0],) * 3,
    "smartbert": ([1, 1, 1, 0],) * 3,
}


def test_every_method_is_weighed_here():
    assert set(WEIGHTS) == {name for name in METHODS if isinstance(create_method(name, load_recipe(), {}), EarlyExit)}


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_exits_weigh_what_their_authors_let_them_weigh(name):
    method = create_method(name, load_recipe(), {})
    for (done, number), expected in zip([(0.0, 0), (0.0, 1), (0.999, 1001)], WEIGHTS[name], strict=True):
        assert method.weights(LAYERS, done, number).tolist() == pytest.approx(expected)
    if name == "shallow-deep":
        assert method.weights(LAYERS, 0.5, 7).tolist() == pytest.approx([0.135, 0.26, 0.385, 1])


# The loss


def step_losses(monkeypatch, model: ExitClassifier, weigh, labels: bool, *settings: str) -> list[float]:
    """Of each batch of an epoch without dropout, before anything is learned."""
    seen, batches, here = [], [], session("body_lr=0", "weight_decay=0", *settings)

    def epochs(module, groups, step, session, *, alter, epochs, phase):
        module.eval()
        for number, batch in enumerate(ordered_batches(here.data, 16)):
            batches.append(batch)
            seen.append(step(batch, number)[0].item())
        yield 1

    monkeypatch.setattr(exits, "train_epochs", epochs)
    train_exits(
        model, Teacher(random_classifier(9), here.data), weigh, here, labels=labels, rate=1e-3, epochs=1, phase="x"
    )
    return seen


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("labels", [True, False])
def test_the_loss_of_each_exit_is_that_of_labels_and_teacher_and_they_are_weighed(monkeypatch, alpha, labels):
    model, weights = random_exits(), torch.tensor([1.0, 0.5, 0.25, 2.0])
    got = step_losses(monkeypatch, model, lambda *_: weights, labels, f"alpha1={alpha}")
    data, teacher = random_dataset(48, 1), random_classifier(9)
    for batch, loss in zip(ordered_batches(data, 16), got, strict=True):
        expected = 0.0
        with torch.no_grad():
            theirs = teacher(*batch.inputs).logits.softmax(-1)
            for weight, logits in zip(weights, model(*batch.inputs), strict=True):
                cross_entropy = F.cross_entropy(logits, batch.targets).item() if labels else 0
                divergence = (theirs * (theirs.log() - logits.log_softmax(-1))).sum(-1).mean().item()
                expected += weight.item() * (cross_entropy + alpha * divergence)
        assert loss == pytest.approx(expected, abs=1e-4)


def test_exits_learn_when_they_are_right_while_all_of_them_learn(monkeypatch):
    model = random_exits("certain")

    def weigh(num_exits: int, done: float, number: int):
        return torch.zeros(num_exits) if number % 2 else torch.tensor([0.0, 0.0, 0.0, 1e-9])

    def all_of_them(num_exits: int, done: float, number: int):
        return torch.full((num_exits,), 1e-9)

    assert step_losses(monkeypatch, model, weigh, True, "alpha1=0") == pytest.approx([0, 0, 0], abs=1e-6)
    got = step_losses(monkeypatch, model, all_of_them, True, "alpha1=0")
    for batch, loss in zip(ordered_batches(random_dataset(48, 1), 16), got, strict=True):
        errors = []
        with torch.no_grad():
            for answer in model(*batch.inputs)[:-1]:
                for row, target in zip(answer.tolist(), batch.targets.tolist(), strict=True):
                    right = float(row[:3].index(max(row[:3])) == target)
                    errors.append((1 / (1 + np.exp(-row[3])) - right) ** 2)
        assert loss == pytest.approx(np.sum(errors) / len(batch.rows), abs=1e-5)


# LeeBERT: exits learn from each other


def batch_of(rows: int = 8):
    return next(iter(ordered_batches(random_dataset(rows, 4), rows)))


def test_what_an_exit_learns_is_a_mean_of_labels_and_the_other_exits():
    model, batch, among = random_exits("linear", criterion="patience"), batch_of(), LearnedWeights(LAYERS, OBJECTIVE)
    assert among.scores.softmax(1).diagonal().tolist() == pytest.approx([0.5] * LAYERS)
    torch.nn.init.normal_(among.scores)
    answers, own = model(*batch.inputs), torch.tensor([4.0, 3.0, 2.0, 1.0])
    got = among(model, own, Passed(batch, [], answers))
    for exit_number, learned in enumerate(got.tolist()):
        shares = among.scores[exit_number].softmax(0).tolist()
        expected = 0.0
        for other, share in enumerate(shares):
            theirs, ours = answers[other].detach().softmax(-1), answers[exit_number].detach().log_softmax(-1)
            divergence = (theirs * (theirs.log() - ours)).sum(-1).mean().item()
            expected += share * (own[exit_number].item() if other == exit_number else divergence)
        assert learned == pytest.approx(expected, abs=1e-4)


def test_an_exit_teaches_another_without_learning_from_it():
    model, batch, among = random_exits("linear", criterion="patience"), batch_of(), LearnedWeights(LAYERS, OBJECTIVE)
    learned = among(model, torch.zeros(LAYERS), Passed(batch, [], model(*batch.inputs)))
    grads = torch.autograd.grad(learned[0], [model.exits[number].classifier.weight for number in (0, 2)])
    assert grads[0].abs().max() > 0 and (grads[1] == 0).all()


def test_the_weights_learn_what_makes_the_losses_of_other_texts_smaller():
    """The finite difference against autograd's own two gradients."""
    model, batch, among = random_exits("linear", criterion="patience"), batch_of(), LearnedWeights(LAYERS, OBJECTIVE)
    rows = torch.arange(8)
    mine, others = batch.part(rows[::2]), batch.part(rows[1::2])
    parameters = list(model.parameters())
    loss = sum(OBJECTIVE.task_loss(answer, others.targets) for answer in model(*others.inputs))
    slope = torch.autograd.grad(loss, parameters)
    answers = model(*mine.inputs)
    expected = torch.zeros(LAYERS, LAYERS)
    for one in range(LAYERS):
        for other in range(LAYERS):
            term = OBJECTIVE.prediction_loss(answers[one], answers[other].detach())
            if one == other:
                term = OBJECTIVE.task_loss(answers[one], mine.targets)
            grads = torch.autograd.grad(term, parameters, allow_unused=True, retain_graph=True)
            expected[one, other] = -sum((s * g).sum() for s, g in zip(slope, grads, strict=True) if g is not None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    got = among.worth(model, batch)
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.005 * float(expected.abs().max()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_weights_move(monkeypatch):
    made, real = [], LeeBert.among
    monkeypatch.setattr(LeeBert, "among", lambda *arguments: made.append(real(*arguments)) or made[-1])
    taught(LeeBert())
    assert (made[0].scores - LearnedWeights(LAYERS, OBJECTIVE).scores).abs().max() > 1e-4


@pytest.mark.parametrize(("alpha", "altered"), [(0.0, False), (1.0, True)])
def test_texts_lose_words_only_where_the_teacher_says_what_is_left_of_them(monkeypatch, alpha, altered):
    seen = []
    monkeypatch.setattr(exits, "drop_words", lambda batch: seen.append(batch) or batch)
    taught(create_method("branchynet", load_recipe(), {}), f"alpha1={alpha}")
    assert bool(seen) == altered


def test_exits_that_learn_from_the_teacher_alone_need_it_to_be_heard():
    with pytest.raises(RecipeError, match="alpha1=0"):
        create_method("fastbert", load_recipe(), {}).check(load_recipe(None, ("alpha1=0",)), 2.0, CONFIG)


# What they come to


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 4), quantile=st.floats(0, 1))
def test_outcomes_are_those_of_one_input_at_a_time(criterion, seed, quantile):
    model, data = random_exits(KINDS[criterion], seed, criterion), random_dataset(12, seed)
    outcomes = find_outcomes(model, data, prefixes(list(range(1, LAYERS + 1)), LAYERS))
    margins = outcomes.by_threshold.margins
    threshold = float(np.quantile(margins, quantile)) + 1e-4
    if np.abs(margins - threshold).min() < 1e-5:
        return
    routes = outcomes.by_threshold.routes(threshold)
    logits = outcomes.logits(routes)
    ran = []
    for row in range(len(data)):
        with torch.no_grad():
            answers = [answer.numpy() for answer in model(*alone(data, row))]
        met = CRITERIA[criterion].margins(answers[:-1])[0]
        left = next((k for k in range(1, LAYERS) if met[k] <= threshold), LAYERS)
        assert as_route(routes[row]) == tuple(range(1, left + 1))
        np.testing.assert_allclose(logits[row], answers[left - 1][0, :3], atol=1e-5)
        ran.append(left)
    assert outcomes.by_threshold.mean_layers(threshold) == pytest.approx(np.mean(ran))


@pytest.mark.parametrize("seed", range(3))
def test_with_two_classes_branchynet_and_shallow_deep_have_one_curve(seed):
    """On the same exits: at every threshold of the one, some threshold of the other gives every input its route."""
    by_entropy, by_doubt = (
        random_exits("head", seed, criterion, labels=("no", "yes")) for criterion in ("entropy", "doubt")
    )
    data = random_dataset(40, seed)
    curves = [find_outcomes(model, data).by_threshold for model in (by_entropy, by_doubt)]
    assert all(torch.equal(*pair) for pair in zip(by_entropy.parameters(), by_doubt.parameters(), strict=True))
    for quantile in np.linspace(0, 1, 50):
        middles = []
        for curve in curves:
            met = np.unique(curve.margins)
            place = int(quantile * (len(met) - 2))
            middles.append((met[place] + met[place + 1]) / 2)
        np.testing.assert_array_equal(curves[0].routes(middles[0]), curves[1].routes(middles[1]))


def test_every_threshold_has_one_route_for_each_input():
    outcomes = find_outcomes(random_exits("linear", 3, "patience"), random_dataset(20, 3))
    for threshold in np.linspace(-0.5, 1.5, 41):
        routes = outcomes.by_threshold.routes(float(threshold))
        assert routes[:, 0].all() and (routes[:, :-1] >= routes[:, 1:]).all()


def test_a_training_that_has_diverged_is_said_to_have():
    model = random_exits()
    with torch.no_grad():
        model.exits[1].classifier.weight.fill_(float("nan"))
    with pytest.raises(RecipeError, match="no numbers"):
        find_outcomes(model, random_dataset(5))


@pytest.mark.parametrize("kind", ["judged", "certain"])
def test_what_exits_tell_beside_logits_has_to_be_a_number(kind):
    model = random_exits(kind)
    told = model.exits[1].gate.logits if kind == "judged" else model.exits[1].certainty
    with torch.no_grad():
        told.bias.fill_(float("nan"))
    with pytest.raises(RecipeError, match="beside logits is no number; lower fit_lr"):
        find_outcomes(model, random_dataset(5))


def test_answers_of_a_dataset_are_those_of_its_inputs():
    model, data = random_exits("certain"), random_dataset(70, 5)
    found, runs = exit_answers(model, data)
    assert runs.shape == (70, LAYERS) and runs.all()
    assert found.shape == (LAYERS, 70, 4) and np.isnan(found[-1, :, 3]).all()
    for row in (0, 33, 69):
        with torch.no_grad():
            alone_answers = model(*alone(data, row))
        for got, expected in zip(found[:, row], alone_answers, strict=True):
            np.testing.assert_allclose(got[: expected.shape[1]], expected[0], atol=1e-5)
