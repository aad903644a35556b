"""What exits are observed to say against one input at a time, and gates fitted to costs whose right answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hadskip_export.modeling.exits import ATTENTION_WIDTH as SEEN
from hadskip_export.modeling.gated import Gate
from hadskip_export.trainers import judging
from hadskip_export.trainers.evaluation import exit_answers
from hadskip_export.trainers.gate_fitting import margin_of
from hadskip_export.trainers.judging import fit_judges, fit_to_deviations, observe
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.teacher import Teacher
from tests.modeling.random_models import random_classifier
from tests.modeling.test_exits import random_exits
from tests.trainers.datasets import OBJECTIVE, PROBLEM, alone, random_dataset

RECIPE = load_recipe("adaptive", ["fit_steps=400", "fit_lr=1e-2", "gate_width=16", "gate_bias=0"])


def session(rows: int, **changes) -> Session:
    return Session(
        data=random_dataset(rows, 1), held_out=random_dataset(1), recipe=replace(RECIPE, **changes), seed=0,
        device="cpu", log=print, problem=PROBLEM, objective=OBJECTIVE, metric="accuracy",
    )  # fmt: skip


def latents(count: int, seed: int, told: int = SEEN) -> Tensor:
    """What gates see: some numbers of the input's own, and zeros."""
    return F.pad(torch.randn(count, told, generator=torch.Generator().manual_seed(seed)), (0, SEEN - told))


@torch.no_grad()
def test_what_is_observed_is_what_each_exit_says_of_each_input_alone():
    model, data = random_exits("judged", dropout=0.5), random_dataset(150)  # more than two batches
    teacher = torch.randn(150, 3, generator=torch.Generator().manual_seed(0))
    seen, divergence = observe(model.train(), teacher, data, session(1))
    assert seen.shape == (3, 150, SEEN) and divergence.shape == (4, 150)
    for row in range(0, 150, 10):
        ids, mask, types = alone(data, row)
        states = model.classifier(ids, mask, types, keep_states=True).hidden_states[1:]
        for index, answer in enumerate(model(ids, mask, types)):
            wanted = F.kl_div(answer[0, :3].log_softmax(0), teacher[row].softmax(0), reduction="sum")
            torch.testing.assert_close(divergence[index, row], wanted, atol=2e-6, rtol=1e-4)
            if index < 3:
                read = model.exits[index].read(states[index], mask)[0]
                torch.testing.assert_close(seen[index, row], read, atol=1e-4, rtol=1e-4)


def test_a_gate_sees_small_differences_between_large_numbers():
    """And answers to them as they are; what never differs says nothing, and harms nothing."""
    torch.manual_seed(0)
    gate, latent = Gate(SEEN, RECIPE.gate_width), latents(4000, 0)
    scale, place = torch.logspace(-3, 1, SEEN), torch.linspace(-5, 5, SEEN)

    def seen(latent: Tensor) -> Tensor:
        return torch.cat(((latent * scale + place)[:, :-1], torch.full((len(latent), 1), 3.0)), dim=1)

    fit_to_deviations(gate, seen(latent), torch.where(latent[:, 0] > 0, -1.0, 1.0), RECIPE)
    fresh = latents(400, 1)
    clear = fresh[:, 0].abs() > 0.1
    assert ((margin_of(gate, seen(fresh)) > 0) == (fresh[:, 0] > 0))[clear].float().mean() > 0.97
    assert all(parameter.isfinite().all() for parameter in gate.parameters())


@pytest.mark.parametrize("told", [False, True])
def test_the_value_of_going_on_is_that_under_the_later_gates_not_of_hindsight(monkeypatch, told):
    """The first exit costs .3. Of the second and the head one costs 0 and one 1: where nothing visible tells which, the
    second gate is wrong four times in ten, and it is better to leave; where the input tells, to go on."""
    model, latent, fresh = random_exits("judged", num_layers=3), latents(4000, 0, 4), latents(300, 2, 4)
    coin = torch.rand(4000, generator=torch.Generator().manual_seed(1)) < 0.6
    head = (latent[:, 0] > 0 if told else coin).float()
    costs = torch.stack((torch.full((4000,), 0.3), 1 - head, head))
    monkeypatch.setattr(judging, "observe", lambda *_: (latent.expand(2, -1, -1), costs))
    torch.manual_seed(0)
    here = session(1, layer_price=0.0)
    fit_judges(model, Teacher(random_classifier(num_layers=3), here.data), here, "gates")
    goes_on = (margin_of(model.exits[0].gate, fresh) > 0).float().mean()
    assert goes_on > 0.97 if told else goes_on < 0.03


@pytest.mark.parametrize(("price", "layers"), [(10.0, {1}), (0.0, None)])
def test_the_price_of_a_layer_is_what_going_on_has_to_be_worth(price, layers):
    model, here = random_exits("judged"), session(300, layer_price=price)
    teacher = Teacher(random_classifier(9), here.data)
    torch.manual_seed(0)
    fit_judges(model, teacher, here, "gates")
    (answers, _), (seen, divergence) = exit_answers(model, here.data), observe(model, teacher.logits(), here.data, here)
    margins = answers[:-1, :, -1]
    for exit_number, leave in enumerate(model.exits):  # what a served exit says is what was fitted
        np.testing.assert_allclose(margins[exit_number], margin_of(leave.gate, seen[exit_number]), atol=1e-4)
    left = np.concatenate((margins <= 0, np.ones((1, 300), bool))).argmax(axis=0)
    if layers is not None:
        assert {int(index) + 1 for index in left} == layers
    else:
        reached = divergence.gather(0, torch.from_numpy(left)[None]).mean()
        assert reached < divergence.mean(dim=1).min()  # better than any one exit for all


def test_as_many_rows_as_the_recipe_says_are_looked_at(monkeypatch):
    seen, model, here = [], random_exits("judged"), session(40, fit_rows=17)
    real = judging.observe
    monkeypatch.setattr(judging, "observe", lambda *args: seen.append((args[1], args[2])) or real(*args))
    teacher = Teacher(random_classifier(9), here.data)
    fit_judges(model, teacher, here, "gates")
    ((logits, data),) = seen
    assert len(data) == 17
    for row in range(17):  # each with its own logits
        with torch.no_grad():
            torch.testing.assert_close(logits[row], teacher.model(*alone(data, row)).logits[0], atol=1e-4, rtol=1e-4)
