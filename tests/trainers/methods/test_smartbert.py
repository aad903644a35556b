"""SmartBERT: what each phase teaches, and what its gates and exits come to at every threshold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.modeling.exits import ExitClassifier
from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.routing.routes import as_route
from hadskip_export.trainers.methods import smartbert
from hadskip_export.trainers.methods.smartbert import Contrast, SmartBert
from hadskip_export.trainers.outcomes import find_outcomes
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.teacher import Teacher
from tests.modeling.random_models import CONFIG, random_classifier, randomise
from tests.trainers.datasets import alone, random_dataset
from tests.trainers.test_exits import session

LAYERS = CONFIG.num_layers


def random_student(seed: int = 0) -> ExitClassifier:
    """Its gates and exits differ from input to input."""
    model = ExitClassifier(random_classifier(seed), "attention", "entropy", gate_width=8, jumps=True)
    randomise(model.exits, seed + 1, std=0.1)
    randomise(model.gates, seed + 3, std=2)
    return model.eval()


def parts_of(model: ExitClassifier) -> dict[str, dict[str, torch.Tensor]]:
    parts = {"body": model.classifier, "gates": model.gates, "exits": model.exits}
    return {name: {key: tensor.clone() for key, tensor in part.state_dict().items()} for name, part in parts.items()}


def test_body_and_gates_learn_first_and_then_the_exits_alone(monkeypatch):
    here, seen = session("shared_epochs=2", "gate_lr=1e-2"), []
    (leg,) = SmartBert().path(here.recipe, 2.0, LAYERS)
    assert leg.epochs == 4
    real = smartbert.train_exits

    def watched(student, *arguments, **options):
        seen.append(parts_of(student))
        real(student, *arguments, **options)

    monkeypatch.setattr(smartbert, "train_exits", watched)
    student = SmartBert().learn(random_student(), Teacher(random_classifier(), here.data), leg, here)
    fresh = parts_of(SmartBert().begin(Teacher(random_classifier(), here.data), here))
    ((between),), after = seen, parts_of(student)

    def same(one: dict, other: dict) -> bool:
        return all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    assert [part for part in fresh if same(fresh[part], between[part])] == ["exits"]
    assert [part for part in fresh if same(between[part], after[part])] == ["body", "gates"]


def test_layers_are_weighed_by_their_gates_at_first_and_then_run_or_not(monkeypatch):
    here, seen = session("batch_size=16"), []

    def watch(name: str):
        real = getattr(smartbert, name)

        def watched(margin, drawn):
            seen.append((name, real(margin, drawn)))
            return seen[-1][1]

        monkeypatch.setattr(smartbert, name, watched)

    watch("_weigh")
    watch("_decide")
    SmartBert().learn(random_student(), Teacher(random_classifier(), here.data), Leg(4.0, 2.0, 10), here)
    names = [name for name, _ in seen]
    assert names == ["_weigh"] * (9 * LAYERS) + ["_decide"] * (6 * LAYERS)  # of 15 batches, three an epoch
    for name, share in seen:
        assert ((share == 0) | (share == 1)).all() == (name == "_decide" or bool((share == 1).all()))


def test_what_a_gate_decides_has_the_gradient_of_its_probability():
    margin = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    decided = smartbert._decide(margin, torch.ones(3))
    assert decided.tolist() == [0, 0, 1]
    decided.sum().backward()
    p = margin.detach().sigmoid()
    torch.testing.assert_close(margin.grad, p * (1 - p))


@torch.no_grad()
def test_contrast_tells_each_token_from_the_others_of_its_text():
    torch.manual_seed(0)
    contrast, states = Contrast(3, 6, 0.5), [torch.randn(2, 4, 6) for _ in range(3)]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = []
    for first in range(2):
        losses = []
        for row, length in enumerate((4, 2)):
            told = []
            for index in (first, first + 1):
                vectors = contrast.projections[index](states[index][row, :length])
                told.append(vectors / vectors.norm(dim=1, keepdim=True))
            for token in range(length):
                alike = [float(told[0][token] @ told[1][other]) / 0.5 for other in range(length)]
                losses.append(np.log(np.exp(alike).sum()) - alike[token])
        expected.append(np.mean(losses))
    assert contrast(states, mask).tolist() == pytest.approx(expected, abs=1e-5)
    assert len(Contrast(1, 6, 0.5)(states[:1], mask)) == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 4), quantile=st.floats(0, 1))
def test_outcomes_are_those_of_one_input_at_a_time(seed, quantile):
    model, data = random_student(seed), random_dataset(14, seed)
    outcomes = find_outcomes(model, data)
    threshold = float(np.quantile(outcomes.by_threshold.margins, quantile)) + 1e-4
    routes, ran = outcomes.by_threshold.routes(threshold), []
    logits = outcomes.logits(routes)
    for row in range(len(data)):
        expected, route, near = one_way(model, alone(data, row), threshold)
        ran.append(len(route))
        if near:
            return
        assert as_route(routes[row]) == route
        np.testing.assert_allclose(logits[row], expected, rtol=1e-4, atol=1e-5)
    assert outcomes.by_threshold.mean_layers(threshold) == pytest.approx(np.mean(ran))
    dealt = routes[::-1]  # of other inputs: not known yet
    for row, found in enumerate(outcomes.logits(dealt)):
        np.testing.assert_allclose(found, told(model, alone(data, row), as_route(dealt[row])), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def one_way(model: ExitClassifier, inputs, threshold: float) -> tuple[np.ndarray, tuple[int, ...], bool]:
    """Logits and route of one input, and whether something was near a tie."""
    route, near = [1], False
    for number in range(2, LAYERS + 1):
        doubt = CRITERIA["entropy"].look(told(model, inputs, tuple(route))[None], np.zeros((1, 0)))[0][0]
        gate = model.gates[number - 1].margin(state_after(model, inputs, route), inputs[1]).item()
        near |= min(abs(doubt - threshold), abs(gate)) < 1e-5
        if doubt <= threshold:
            break
        if gate > 0:
            route.append(number)
    return told(model, inputs, tuple(route)), tuple(route), near


@torch.no_grad()
def state_after(model: ExitClassifier, inputs, route) -> torch.Tensor:
    ids, _, types = inputs
    state = model.classifier.embeddings(ids, types)
    for number in route:
        state = model.classifier.layers[number - 1](state, torch.zeros(1, 1, 1, ids.shape[1]), None)[0]
    return state


@torch.no_grad()
def told(model: ExitClassifier, inputs, route: tuple[int, ...]) -> np.ndarray:
    leave = model.classifier.head if route[-1] == LAYERS else model.exits[route[-1] - 1]
    return leave(state_after(model, inputs, route), inputs[1])[0].numpy()


def test_routes_differ_and_jump():
    outcomes = find_outcomes(random_student(), random_dataset(40, 3))
    routes = outcomes.by_threshold.routes(-1.0)
    assert routes[:, 0].all() and len(np.unique(routes, axis=0)) > 3
    assert (routes[:, :-1] < routes[:, 1:]).any()
