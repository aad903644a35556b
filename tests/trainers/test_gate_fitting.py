"""What routes do to inputs against one input at a time, and gates fitted to evidence whose right answer is known."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hadskip_export.modeling.encoder import attention_bias
from hadskip_export.modeling.gated import FIXED_MARGIN, GatedClassifier, pooled
from hadskip_export.routing.families import FAMILIES
from hadskip_export.routing.routes import Route
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.gate_fitting import Evidence, fit_gates, observe, run_so_far
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.session import Session
from tests.modeling.random_models import random_classifier, random_gated
from tests.trainers.datasets import OBJECTIVE, PROBLEM, alone, random_dataset
from tests.trainers.oracle import always

LAYERS, SIZE = 4, 16
SESSION = Session(
    data=random_dataset(1), held_out=random_dataset(1), recipe=load_recipe("adaptive"), seed=0, device="cpu", log=print,
    problem=PROBLEM, objective=OBJECTIVE, metric="accuracy",
)  # fmt: skip
EVERY = [route for size in range(1, 5) for route in itertools.combinations(range(1, 5), size)]


# Observing


@torch.no_grad()
def assert_true(evidence: Evidence, model: GatedClassifier, teacher: Tensor, data: Dataset, rows, family) -> None:
    """Every figure of `rows`, computed again alone: no batch, no padding, no work shared between routes."""
    prefixes = {tuple(layer for layer in route if layer <= index) for route in family for index in range(LAYERS)}
    assert evidence.states.keys() == prefixes and evidence.divergence.keys() == set(family)
    assert all(state.shape == (len(data), SIZE) for state in evidence.states.values())
    assert all(found.shape == (len(data),) for found in evidence.divergence.values())
    for row in rows:
        ids, mask, types = alone(data, row)
        for route in family:
            logits = model.route(ids, mask, types, always(route, LAYERS)).logits[0]
            wanted = F.kl_div(logits.log_softmax(0), teacher[row].softmax(0), reduction="sum")
            torch.testing.assert_close(evidence.divergence[route][row], wanted, atol=2e-6, rtol=1e-4)
        for ran in prefixes:
            hidden = model.classifier.embeddings(ids, types)
            for layer in ran:
                hidden = model.classifier.layers[layer - 1](hidden, attention_bias(mask), None)[0]
            mean = hidden[0].mean(dim=0)
            wanted = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
            torch.testing.assert_close(evidence.states[ran][row], wanted, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(wanted, pooled(hidden, mask)[0], atol=1e-4, rtol=1e-4)


def test_what_is_observed_is_what_each_route_does_to_each_input():
    data = random_dataset(150)  # more than two batches
    model, teacher = random_gated(dropout=0.5), torch.randn(150, 3, generator=torch.Generator().manual_seed(0))
    evidence = observe(model.train(), teacher, data, EVERY, SESSION)
    assert_true(evidence, model, teacher, data, range(0, 150, 10), EVERY)
    assert torch.stack(list(evidence.divergence.values())).std(dim=0).min() > 1e-3  # routes do differ


def test_gates_that_are_asked_at_once_are_fitted_to_what_they_will_see():
    """Whatever has run: what the embeddings give."""
    model, data = random_gated(), random_dataset(20)
    model.upfront = True
    found = observe(model, torch.zeros(20, 3), data, EVERY, SESSION).states
    model.upfront = False
    first = observe(model, torch.zeros(20, 3), data, EVERY, SESSION).states[()]
    assert len(found) > 3 and all(torch.equal(states, first) for states in found.values())


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(EVERY), min_size=1, max_size=5, unique=True), st.integers(1, 6), st.integers(0, 100))
def test_of_any_family(family, count, seed):
    data, model = random_dataset(count, seed, longest=8), random_gated(seed)
    teacher = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    assert_true(observe(model, teacher, data, family, SESSION), model, teacher, data, range(count), family)


def test_a_teacher_that_says_what_the_student_says_is_not_diverged_from():
    model, data = random_gated(), random_dataset(20)
    with torch.no_grad():
        said = torch.cat([model.classifier(*alone(data, row)).logits for row in range(20)])
    found = observe(model, said + 3, data, EVERY, SESSION).divergence  # a constant on all logits changes no prediction
    assert found[(1, 2, 3, 4)].abs().max() < 1e-6 < found[(1,)].min()


def test_work_is_shared_between_routes_that_begin_alike():
    model, calls = random_gated(), []
    for index, layer in enumerate(model.classifier.layers, start=1):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    observe(model, torch.zeros(5, 3), random_dataset(5), FAMILIES["nested"]([2, 3, 4], 4), SESSION)
    assert sorted(calls) == [1, 2, 3, 4, 4, 4]  # not 2 + 3 + 4


# Fitting. Evidence is made up: what a gate sees are numbers, and the first of them say what is right.

RECIPE = load_recipe("adaptive", ["fit_steps=400", "fit_lr=1e-2", "fit_dropout=0", "gate_width=16"])


def seen_by_gates(ran: Route, latent: Tensor) -> Tensor:
    """The inputs' own numbers and the layers run so far, as a real state would show both."""
    state = torch.zeros(len(latent), SIZE)
    state[:, : latent.shape[1]] = latent
    for layer in ran:
        state[:, SIZE - layer] = 2.0
    return state


def evidence_of(family: Sequence[Route], latent: Tensor, cost: Callable[[Route], Tensor]) -> Evidence:
    prefixes = {ran for index in range(LAYERS) for ran in run_so_far(family, index)}
    return Evidence({ran: seen_by_gates(ran, latent) for ran in prefixes}, {route: cost(route) for route in family})


def latents(count: int, seed: int, width: int = 4) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def fitted(evidence: Evidence, price: float = 0.0, recipe=RECIPE, model=None, seed: int = 0):
    model = model or GatedClassifier(random_classifier(), recipe.gate_width, recipe.gate_bias).eval()
    torch.manual_seed(seed)
    fit_gates(model, evidence, replace(recipe, layer_price=price), "gates")
    assert not any(gate.training for gate in model.gates)
    return model


@torch.no_grad()
def margins(model: GatedClassifier, index: int, ran: Route, latent: Tensor) -> Tensor:
    logits = model.gates[index].decide(seen_by_gates(ran, latent))
    return logits[:, 0] - logits[:, 1]


def routes_taken(model: GatedClassifier, latent: Tensor) -> list[Route]:
    """Each input by itself through the gates, the first one first."""
    taken = []
    for row in range(len(latent)):
        ran: Route = ()
        for index in range(LAYERS):
            if margins(model, index, ran, latent[row : row + 1]) > 0:
                ran = (*ran, index + 1)
        taken.append(ran)
    return taken


NESTED = [(1, 4), (1, 2, 4), (1, 2, 3, 4)]


def where_positive(latent: Tensor) -> Callable[[Route], Tensor]:
    """The right route of an input is said by its first two numbers: layer 2 if the first is positive, layer 3 if both
    are. A layer too few costs 1, a layer too many nothing but its price."""
    needed = 2 + (latent[:, 0] > 0).long() + ((latent[:, 0] > 0) & (latent[:, 1] > 0)).long()
    return lambda route: (needed > len(route)).float() * (needed - len(route))


def test_gates_take_the_decision_that_the_state_tells_for_inputs_never_seen_too():
    train, fresh = latents(4000, 0), latents(400, 1)
    model = fitted(evidence_of(NESTED, train, where_positive(train)), price=0.5)  # so both mistakes cost alike
    clear = (fresh[:, :2].abs() > 0.1).all(dim=1).numpy()
    taken = routes_taken(model, fresh)
    wanted = [NESTED[int(u > 0) + int(u > 0 and v > 0)] for u, v in fresh[:, :2].tolist()]
    right = np.array([a == b for a, b in zip(taken, wanted, strict=True)])
    assert right[clear].mean() > 0.97 and set(taken) == set(NESTED)


def test_layers_that_all_routes_run_or_none_are_fixed():
    """Whatever the gate sees, and as far from 0 as the gates of a fixed route."""
    family, latent = [(1, 2, 4), (1, 4)], latents(500, 0)
    model = fitted(evidence_of(family, latent, lambda route: latent[:, 0] * len(route)))
    anything = 10 * latents(50, 1)
    for index, margin in ((0, FIXED_MARGIN), (2, -FIXED_MARGIN), (3, FIXED_MARGIN)):
        for ran in ((), (1,), (1, 2), (2, 3)):
            assert (margins(model, index, ran, anything) == margin).all()
    assert FIXED_MARGIN == 20 and margins(model, 1, (1,), anything).abs().max() < FIXED_MARGIN


def test_the_value_of_a_branch_is_that_under_the_gates_fitted_before_not_of_hindsight():
    """Behind the first gate lies either a sure cost of .3, or a choice between 0 and 1 that nothing visible tells:
    in hindsight the choice always costs nothing, but the gate that must make it is wrong four times in ten."""
    family, latent = [(1,), (1, 2), (2,)], latents(4000, 0)
    coin = (torch.rand(4000, generator=torch.Generator().manual_seed(1)) < 0.6).float()
    costs = {(1, 2): 1 - coin, (1,): coin, (2,): torch.full((4000,), 0.3)}
    assert torch.minimum(costs[(1,)], costs[(1, 2)]).max() == 0  # hindsight would run layer 1 for all
    model = fitted(evidence_of(family, latent, costs.__getitem__))
    fresh = latents(300, 2)
    assert (margins(model, 0, (), fresh) < 0).float().mean() > 0.97

    # the same choice where the state does tell: then it is worth having
    told = (latent[:, 0] > 0).float()
    costs = {(1, 2): 1 - told, (1,): told, (2,): costs[(2,)]}
    model = fitted(evidence_of(family, latent, costs.__getitem__))
    assert (margins(model, 0, (), fresh) > 0).float().mean() > 0.97


def test_a_mistake_counts_for_what_it_costs():
    """Running layer 2 saves a little on most inputs and costs much on a few that look alike: on the whole it costs."""
    family, latent = [(1, 4), (1, 2, 4)], latents(4000, 0)
    few = torch.rand(4000, generator=torch.Generator().manual_seed(1)) < 0.3
    costs = {(1, 4): torch.full((4000,), 0.5), (1, 2, 4): torch.where(few, 1.5, 0.4)}
    model = fitted(evidence_of(family, latent, costs.__getitem__))
    assert (margins(model, 1, (1,), latents(300, 2)) < 0).float().mean() > 0.97


def test_decisions_that_the_family_forces_are_kept():
    """Layer 3 only after layer 2, though by its cost it should always run."""
    train, fresh = latents(4000, 0), latents(300, 1)
    model = fitted(evidence_of(NESTED, train, where_positive(train)))
    assert (margins(model, 2, (1,), fresh) < 0).float().mean() > 0.99
    assert np.mean([route in NESTED for route in routes_taken(model, fresh)]) > 0.99


def test_gates_without_any_choice_learn_which_way_they_are_forced():
    """Layer 2 belongs to layer 1, and layer 3 to neither: only the first gate has a choice."""
    family = [(1, 2), (3,)]
    train, fresh = latents(3000, 0), latents(300, 1)
    cost = {(1, 2): (train[:, 0] < 0).float(), (3,): (train[:, 0] > 0).float()}
    model = fitted(evidence_of(family, train, cost.__getitem__))
    taken = routes_taken(model, fresh)
    assert set(taken) == set(family)
    clear = (fresh[:, 0].abs() > 0.1).numpy()
    right = np.array([(route == (1, 2)) == (u > 0) for route, u in zip(taken, fresh[:, 0].tolist(), strict=True)])
    assert right[clear].mean() > 0.97


@pytest.mark.parametrize("sizes", [[1, 2], [2, 3]], ids=str)
def test_gates_of_any_family_come_near_the_best_that_can_be_done(sizes):
    """All sets of so many layers, each of which is worth a number of the input's own; what an exact plan reaches is the
    cheapest route of each input, as the state tells everything."""
    family, price = FAMILIES["all"](sizes, LAYERS), 0.3
    train, fresh = latents(4000, 0), latents(300, 1)

    def costs(latent: Tensor) -> Callable[[Route], Tensor]:
        return lambda route: 3 - sum(latent[:, layer - 1] for layer in route)

    recipe = load_recipe("adaptive", ["fit_steps=800", "fit_lr=1e-2", "fit_dropout=0", "gate_width=32"])
    model = fitted(evidence_of(family, train, costs(train)), price, recipe)
    total = {route: costs(fresh)(route) + price * len(route) for route in family}
    taken = routes_taken(model, fresh)
    kept = np.array([route in total for route in taken])
    assert kept.mean() > 0.93
    best = torch.stack(list(total.values())).min(dim=0).values.numpy()
    reached = np.array([total[route][row].item() if kept[row] else np.nan for row, route in enumerate(taken)])
    fixed = min(found.mean().item() for found in total.values())
    assert np.nanmean(reached - best) < 0.1 * (fixed - best.mean())


def test_a_higher_price_runs_fewer_layers():
    train, fresh = latents(3000, 0), latents(300, 1)
    gain = 0.5 * train[:, :1].sigmoid().squeeze(1)  # what every layer beyond the second is worth, 0 to .5
    evidence = evidence_of(NESTED, train, lambda route: 1 - gain * (len(route) - 2))
    mean_layers = []
    for price in (0.0, 0.15, 0.25, 0.35, 0.6):
        taken = routes_taken(fitted(evidence, price), fresh)
        mean_layers.append(np.mean([len(route) for route in taken]))
    assert mean_layers[0] > 3.9 and mean_layers[-1] < 2.1
    assert all(more > less for more, less in itertools.pairwise(mean_layers))


def test_gates_are_fitted_to_the_body_whatever_they_were_before():
    """A gate that had been fixed would otherwise stay so: twenty logits are far for a small rate."""
    train = latents(2000, 0)
    evidence = evidence_of(NESTED, train, where_positive(train))
    one_route = evidence_of(NESTED[-1:], train, lambda route: torch.zeros(2000))
    before = fitted(one_route)
    assert [margins(before, index, (), train).unique().tolist() for index in range(LAYERS)] == [[20.0]] * LAYERS
    after, anew = fitted(evidence, model=before), fitted(evidence)
    for index in range(LAYERS):
        assert torch.equal(margins(after, index, (1,), train), margins(anew, index, (1,), train))


def test_the_seed_decides_and_neither_body_nor_evidence_is_touched():
    train = latents(500, 0)
    evidence = evidence_of(NESTED, train, where_positive(train))
    kept = {ran: state.clone() for ran, state in evidence.states.items()}
    short = load_recipe("adaptive", ["fit_steps=20", "gate_width=8"])
    one, same, other = (fitted(evidence, recipe=short, seed=seed) for seed in (0, 0, 1))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
        if name.startswith("classifier."):
            assert torch.equal(tensor, random_classifier().state_dict()[name.removeprefix("classifier.")])
    assert not torch.equal(one.gates[1].hidden.weight, other.gates[1].hidden.weight)
    assert all(torch.equal(state, kept[ran]) for ran, state in evidence.states.items())
