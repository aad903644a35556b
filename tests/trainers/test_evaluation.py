"""Whole datasets against one input at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hadskip_export.modeling.encoder import attention_bias
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.routes import Route, as_route
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.evaluation import full_logits, gated_logits, logits_on_routes
from tests.modeling.random_models import random_gated
from tests.trainers.datasets import OBJECTIVE, alone, random_dataset
from tests.trainers.oracle import above, always, predict_routed

DATA = random_dataset(150)  # more than two batches


@torch.no_grad()
def logits_along(model: GatedClassifier, data: Dataset, row: int, route: Route) -> torch.Tensor:
    ids, mask, types = alone(data, row)
    hidden = model.classifier.embeddings(ids, types)
    for layer in route:
        hidden = model.classifier.layers[layer - 1](hidden, attention_bias(mask), None)[0]
    return model.classifier.head(hidden)[0]


def assert_answers(logits: np.ndarray, model: GatedClassifier, data: Dataset, routes: list[Route]) -> None:
    """Each row's are those along its route."""
    assert logits.dtype == np.float32
    wanted = [logits_along(model, data, row, route).numpy() for row, route in enumerate(routes)]
    np.testing.assert_allclose(logits, np.stack(wanted), atol=1e-5)


def test_logits_with_every_layer():
    model = random_gated(dropout=0.5)
    logits = full_logits(model.classifier.train(), DATA)
    assert logits.shape == (150, 3) and logits.dtype == np.float32
    wanted = torch.stack([logits_along(model, DATA, row, (1, 2, 3, 4)) for row in range(len(DATA))])
    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-5)


def test_logits_where_the_gates_decide():
    model = random_gated(dropout=0.5).train()
    logits = gated_logits(model, DATA)
    routes = [as_route(row) for row in predict_routed(model, DATA, above(0.0))[1]]
    assert len(set(routes)) > 1
    assert_answers(logits, model, DATA, routes)


# Routes given from outside


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 8), st.integers(0, 1000), st.data())
def test_logits_on_any_routes_are_those_of_each_input_along_its_own(count, seed, data):
    rows = st.lists(st.booleans(), min_size=4, max_size=4)
    routes = np.array(data.draw(st.lists(rows, min_size=count, max_size=count)))
    model, inputs = random_gated(seed, dropout=0.5), random_dataset(count, seed, longest=8)
    logits = logits_on_routes(model.train(), inputs, routes)
    wanted = [logits_along(model.eval(), inputs, row, as_route(route)).numpy() for row, route in enumerate(routes)]
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, np.stack(wanted), atol=1e-5)


def test_on_the_gates_own_routes_they_are_the_gates_predictions():
    model = random_gated()
    gated, routes, _ = predict_routed(model, DATA, above(0.0))
    logits = logits_on_routes(model, DATA, routes)
    np.testing.assert_allclose(gated, logits, atol=1e-5)
    other = logits_on_routes(model, DATA, routes[::-1])  # the order of the routes is that of the inputs
    assert np.abs(other - logits).max() > 0.01


@given(st.integers(1, 20), st.integers(2, 5), st.integers(0, 1000), st.sampled_from([0.1, 1.0, 10.0]))
def test_divergence_is_the_mean_of_what_torch_says_of_each_input(count, classes, seed, scale):
    random = np.random.default_rng(seed)
    teacher, student = (scale * random.normal(size=(2, count, classes))).astype(np.float32)
    each = [
        F.kl_div(torch.tensor(student[row]).double().log_softmax(0), torch.tensor(teacher[row]).double().softmax(0),
                 reduction="sum").item()
        for row in range(count)
    ]  # fmt: skip
    assert OBJECTIVE.mean_divergence(teacher, student) == pytest.approx(np.mean(each), rel=1e-4, abs=1e-5)
    assert OBJECTIVE.mean_divergence(teacher, teacher) == OBJECTIVE.mean_divergence(student, student) == 0
    assert OBJECTIVE.mean_divergence(teacher, teacher + 2) == pytest.approx(0, abs=1e-5)  # the same prediction


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 1.0])
def test_routes_margins_and_predictions_with_hard_gates(threshold):
    model = random_gated()
    logits, routes, margins = predict_routed(model.train(), DATA, above(threshold))
    assert len({as_route(route) for route in routes}) > 3
    for row in range(0, len(DATA), 10):
        output = model.route(*alone(DATA, row), above(threshold))
        if (output.margins - threshold).abs().min() > 1e-4:
            assert np.array_equal(routes[row], output.gates[0].numpy())
            np.testing.assert_allclose(margins[row], output.margins[0].numpy(), atol=1e-5)
    assert_answers(logits, model, DATA, [as_route(route) for route in routes])


def test_a_margin_on_the_threshold_does_not_fire():
    decide = above(0.5)
    assert decide(0, torch.tensor([0.4, 0.5, 0.6])).tolist() == [False, False, True]


@pytest.mark.parametrize("route", [(), (1,), (2, 4), (1, 2, 3, 4)])
def test_one_route_for_every_input(route):
    model = random_gated()
    logits, routes, _ = predict_routed(model, DATA, always(route, 4))
    assert {as_route(row) for row in routes} == {route}
    assert_answers(logits, model, DATA, [route] * len(DATA))
