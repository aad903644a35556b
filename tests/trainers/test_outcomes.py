"""Outcomes against a scan of every threshold that makes a difference, one input at a time."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.modeling.encoder import attention_bias
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.families import nested
from hadskip_export.routing.routes import as_route
from hadskip_export.routing.thresholds import crossing, find_threshold
from hadskip_export.support.errors import RecipeError
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.outcomes import find_outcomes
from tests.modeling.random_models import random_fixed, random_gated
from tests.modeling.test_exits import random_exits
from tests.trainers.datasets import alone, random_dataset
from tests.trainers.oracle import above, always, hard_routes, predict_routed

ROWS, LAYERS = 30, 4


class Tree:
    """Each input's margins after every possible prefix of decisions, computed alone: what any threshold would do."""

    def __init__(self, model: GatedClassifier, data: Dataset):
        self.margins = [self._of_row(model, *alone(data, row)) for row in range(len(data))]

    @torch.no_grad()
    def _of_row(self, model, ids, mask, types) -> dict[tuple[bool, ...], float]:
        found = {}

        def walk(prefix: tuple[bool, ...], hidden) -> None:
            index = len(prefix)
            if index == len(model.gates):
                return
            found[prefix] = model.gates[index].margin(hidden, mask).item()
            walk((*prefix, False), hidden)
            walk((*prefix, True), model.classifier.layers[index](hidden, attention_bias(mask), None)[0])

        walk((), model.classifier.embeddings(ids, types))
        return found

    def path(self, row: int, threshold: float) -> tuple[list[float], int]:
        """The margins met at this threshold, and the layers run."""
        prefix, met = (), []
        for _ in range(LAYERS):
            met.append(self.margins[row][prefix])
            prefix += (met[-1] > threshold,)
        return met, sum(prefix)

    def layers(self, threshold: float) -> list[int]:
        return [self.path(row, threshold)[1] for row in range(len(self.margins))]

    def met(self, threshold: float) -> np.ndarray:
        """All margins met at this threshold, sorted."""
        return np.sort(np.concatenate([self.path(row, threshold)[0] for row in range(len(self.margins))]))

    @functools.cached_property
    def scan(self) -> list[tuple[float, float]]:
        """(threshold, mean layers) between every two neighbouring margins: the whole function."""
        steps = np.unique(np.concatenate([list(margins.values()) for margins in self.margins]))
        middles = [steps[0] - 1, *(steps[:-1] + steps[1:]) / 2, steps[-1] + 1]
        return [(float(t), float(np.mean(self.layers(t)))) for t in middles]


@functools.cache
def case(seed: int) -> tuple[GatedClassifier, Dataset, Tree]:
    model, data = random_gated(seed), random_dataset(ROWS, seed)
    return model, data, Tree(model, data)


def away_from_margins(tree: Tree, threshold: float) -> bool:
    return np.abs(tree.met(threshold) - threshold).min() > 1e-5


SEEDS = range(5)

# The threshold, as the trainer finds it, which knows all routes, and as who remembers routes asked for does.
FITS = {
    "every threshold": lambda model, data, budget: find_outcomes(model, data).threshold(budget),
    "remembered routes": lambda model, data, budget: find_threshold(hard_routes(model, data), budget),
}
fits = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(SEEDS), st.floats(-4, 4))
def test_routes_and_logits_at_any_threshold_are_those_of_the_gates(seed, threshold):
    model, data, tree = case(seed)
    if away_from_margins(tree, threshold):
        outcomes = known_outcomes(seed)
        logits, routes, _ = predict_routed(model, data, above(threshold))
        assert (outcomes.by_threshold.routes(threshold) == routes).all()
        assert outcomes.by_threshold.mean_layers(threshold) == pytest.approx(np.mean(tree.layers(threshold)))
        np.testing.assert_allclose(outcomes.logits(routes), logits, atol=1e-5)


@functools.cache
def known_outcomes(seed: int):
    return find_outcomes(*case(seed)[:2])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_pieces_of_an_input_cover_every_threshold_once(seed):
    known = known_outcomes(seed).by_threshold
    for row in range(ROWS):
        mine = known.rows == row
        low, high = np.sort(known.low[mine]), np.sort(known.high[mine])
        assert low[0] == -np.inf and high[-1] == np.inf and (low[1:] == high[:-1]).all()


def test_a_layer_is_computed_once_for_all_thresholds_that_lead_to_it_alike(monkeypatch):
    """As often as there are different beginnings of routes, and not once more for logits that are known."""
    model, data, tree = case(2)
    computed = []
    for layer in model.classifier.layers:
        forward = layer.forward
        monkeypatch.setattr(layer, "forward", lambda h, *a, f=forward: computed.append(len(h)) or f(h, *a))
    outcomes = find_outcomes(model, data)
    beginnings = {(row, ran) for row in range(ROWS) for t, _ in tree.scan for ran in prefixes_of(tree, row, t)}
    assert sum(computed) == len(beginnings)
    for threshold, _ in tree.scan[::7]:
        outcomes.logits(outcomes.by_threshold.routes(threshold))
    assert sum(computed) == len(beginnings)
    outcomes.on((1, 2, 3, 4))
    done = sum(computed)
    outcomes.on((1, 2, 3, 4))
    assert sum(computed) == done


def prefixes_of(tree: Tree, row: int, threshold: float) -> set[tuple[int, ...]]:
    """What was run whenever a layer was, the layer included."""
    met, _ = tree.path(row, threshold)
    ran = as_route(margin > threshold for margin in met)
    return {ran[: index + 1] for index in range(len(ran))}


def test_routes_of_a_family_are_known_for_every_input():
    model, data, _ = case(0)
    family = nested([2, 3, 4], LAYERS)
    outcomes = find_outcomes(model, data, family)
    assert outcomes.family == tuple(family)
    assert not any(np.isnan(outcomes.logits_on[route]).any() for route in family)
    for route in family:
        apart, _, _ = predict_routed(model, data, always(route, LAYERS))
        np.testing.assert_allclose(outcomes.on(route), apart, atol=1e-5)
    same = known_outcomes(0).by_threshold
    for threshold in (-1.0, 0.0, 1.0):
        assert (outcomes.by_threshold.routes(threshold) == same.routes(threshold)).all()


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_logits_of_any_routes_each_input_along_its_own(seed):
    model, data, _ = case(3)
    routes = np.random.default_rng(seed).random((ROWS, LAYERS)) < 0.5
    wanted = np.stack([predict_routed(model, data.subset(np.array([row])), always(as_route(route), LAYERS))[0][0]
                       for row, route in enumerate(routes)])  # fmt: skip
    np.testing.assert_allclose(known_outcomes(3).logits(routes), wanted, atol=1e-5)


def test_of_a_fixed_route_there_is_one_piece():
    model, data = random_fixed((1, 3)), random_dataset(ROWS)
    outcomes = find_outcomes(model, data)
    assert list(outcomes.logits_on) == [(1, 3)] and len(outcomes.by_threshold.rows) == ROWS
    assert {as_route(row) for row in outcomes.by_threshold.routes(0.0)} == {(1, 3)}


def test_margins_that_are_no_numbers_say_that_training_diverged():
    model, data = random_gated(0), random_dataset(ROWS)
    model.gates[2].logits.weight.data.fill_(float("nan"))
    with pytest.raises(RecipeError, match="margins are no numbers; lower fit_lr"):
        find_outcomes(model, data)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(SEEDS), st.lists(st.floats(-4, 4), min_size=1, max_size=8))
def test_remembered_routes_equal_direct_evaluation(seed, thresholds):
    """Whatever was asked before, in whatever order."""
    model, data, tree = case(seed)
    routes = hard_routes(model, data)
    for threshold in thresholds:
        if away_from_margins(tree, threshold):
            assert routes.layers(threshold).tolist() == tree.layers(threshold)
            assert routes.mean_layers(threshold) == pytest.approx(np.mean(tree.layers(threshold)))


def test_the_extremes_run_everything_and_nothing():
    model, data, _ = case(0)
    routes = hard_routes(model, data)
    assert routes.layers(-1e6).tolist() == [LAYERS] * ROWS and routes.layers(1e6).tolist() == [0] * ROWS


def test_mean_layers_is_not_monotone_in_these_cases():
    """Else the scan would be no harder than a bisection."""
    assert any(np.any(np.diff([mean for _, mean in case(seed)[2].scan]) > 0) for seed in SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("budget", [1, 1.5, 2, 2.7, 3, 3.5, 4])
@fits
def test_the_fit_is_as_near_to_the_budget_as_the_best_of_the_scan_give_or_take_one_layer_of_one_input(
    seed, budget, fit
):
    model, data, tree = case(seed)
    threshold = fit(model, data, budget)
    best = min(abs(mean - budget) for _, mean in tree.scan)
    reached = abs(np.mean(tree.layers(threshold)) - budget)
    assert reached <= best + 1 / ROWS + 1e-9


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("budget", [1, 1.5, 2, 2.7, 3, 3.5, 4])
@fits
def test_the_fit_lies_in_the_middle_between_margins(seed, budget, fit):
    """On a margin the last bit would decide a route; here nothing changes half-way to either neighbour."""
    model, data, tree = case(seed)
    threshold = fit(model, data, budget)
    assert threshold == float(np.float32(threshold))  # as it will be stored and compared
    met = tree.met(threshold)
    below, above_it = met[met <= threshold], met[met > threshold]
    gaps = [threshold - below[-1]] if len(below) else []
    gaps += [above_it[0] - threshold] if len(above_it) else []
    assert min(gaps) > 1e-6
    if len(gaps) == 2:
        assert gaps[0] == pytest.approx(gaps[1], abs=1e-5)
    else:
        assert min(gaps) >= 1 - 1e-5  # no margin on the other side: a distance of one logit
    for nudge in (-0.4 * min(gaps), 0.4 * min(gaps)):
        assert tree.layers(threshold + nudge) == tree.layers(threshold)


@pytest.mark.parametrize("seed", SEEDS)
@fits
def test_what_the_fit_promises_is_what_evaluation_finds(seed, fit):
    model, data, tree = case(seed)
    threshold = fit(model, data, 2.0)
    _, routes, _ = predict_routed(model, data, above(threshold))
    assert routes.sum(axis=1).tolist() == tree.layers(threshold)


@pytest.mark.parametrize(("budget", "layers"), [(LAYERS, LAYERS), (0.001, 0)])
@fits
def test_budgets_at_the_ends_run_everything_and_nothing(budget, layers, fit):
    model, data, tree = case(1)
    assert tree.layers(fit(model, data, budget)) == [layers] * ROWS


@fits
def test_a_model_with_one_route_still_gets_a_threshold_off_its_margins(fit):
    """It cannot reach 2.5; the nearest it can do, and no margin on the threshold."""
    model, data = random_gated(0), random_dataset(ROWS)
    for gate, margin in zip(model.gates, (2.0, -1.0, 1.0, -2.0), strict=True):
        gate.logits.weight.data.zero_()
        gate.logits.bias.data.copy_(torch.tensor([margin, 0.0]))
    threshold = fit(model, data, 2.5)
    assert abs(hard_routes(model, data).mean_layers(threshold) - 2.5) == 0.5
    assert min(abs(threshold - margin) for margin in (2.0, -1.0, 1.0, -2.0)) >= 0.5


@fits
def test_one_input_is_enough(fit):
    model, data, _ = case(0)
    one = data.subset(np.array([3]))
    assert hard_routes(model, one).mean_layers(fit(model, one, 4)) == 4


@pytest.mark.parametrize(
    "model",
    [random_gated(3), random_exits(seed=2), random_exits("linear", 3, "patience")],
    ids=lambda model: type(model).__name__,
)
def test_steps_are_where_mean_layers_change(model):
    curve = find_outcomes(model, random_dataset(25, 6)).by_threshold
    steps, means = curve.steps()
    assert steps[0] == -np.inf and (np.diff(steps) > 0).all()
    for low, high, mean in zip(steps, [*steps[1:], np.float32(1e30)], means, strict=True):
        for threshold in (low, np.nextafter(np.float32(high), np.float32(-np.inf))):
            assert curve.mean_layers(float(threshold)) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("means", "budget", "near", "sides"),
    [
        ([4, 3, 2, 1], 2.0, 0, (2, 2)),
        ([4, 3, 2, 1], 2.5, 3, (1, 2)),
        ([3, 1, 3, 1], 2.0, 0, (0, 1)),
        ([3, 1, 3, 1], 2.0, 3, (2, 3)),
        ([3, 2, 1], 3.5, 0, None),
        ([3, 2, 1], 0.5, 0, None),
        ([2], 2.0, 0, (0, 0)),
        ([2], 3.0, 0, None),
    ],
)
def test_a_budget_is_crossed_between_two_neighbours(means, budget, near, sides):
    assert crossing(np.array(means, float), budget, near) == sides
