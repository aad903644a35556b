"""Figures from samples whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.benchmark import statistics
from hadskip_export.benchmark.statistics import PieceTimes, ideal_speedup, percentiles, speedup


def samples(ratio: float, calls: int, seed: int, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of a baseline and of a candidate that is `ratio` times faster, with noise and now and then a hiccup."""
    random = np.random.default_rng(seed)
    length = random.uniform(1, 3, (calls, 1))  # some inputs are longer, for both

    def noisy(seconds: np.ndarray) -> np.ndarray:
        measured = seconds * random.lognormal(0, noise, (calls, 5))
        return np.where(random.random((calls, 5)) < 0.02, measured * 5, measured)

    return noisy(length), noisy(length / ratio)


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.7, 4.0])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(ratio: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 300)
    covered = 0
    for seed in range(40):
        found = speedup(*samples(ratio, 60, seed))
        assert found.low < found.value < found.high
        assert found.value == pytest.approx(ratio, rel=0.06)
        covered += found.low <= ratio <= found.high
    assert covered >= 34


def test_more_calls_give_a_narrower_interval(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 200)

    def width(calls: int) -> float:
        found = [speedup(*samples(2.0, calls, seed)) for seed in range(20)]
        return float(np.mean([ratio.high - ratio.low for ratio in found]))

    assert width(5) > 1.5 * width(20) > 2 * width(80)


def test_of_two_calls_and_much_drift_too_the_figure_lies_in_its_interval(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 100)
    found = [speedup(*samples(1.5, 2, seed, noise=0.8)) for seed in range(300)]
    assert all(ratio.low <= ratio.value <= ratio.high for ratio in found)


def test_samples_without_noise_give_the_ratio_itself():
    found = speedup(np.full((10, 5), 3.0), np.full((10, 5), 2.0))
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_one_disturbed_turn_of_a_call_does_not_count():
    baseline, candidate = np.full((10, 5), 2.0), np.full((10, 5), 1.0)
    baseline[:, 2] = 100
    candidate[3, 0] = 50
    assert speedup(baseline, candidate).value == pytest.approx(2.0)


@settings(max_examples=5, deadline=None)
@given(st.floats(0.2, 5), st.integers(0, 1000))
def test_the_ratio_does_not_depend_on_the_unit(scale: float, seed: int):
    baseline, candidate = samples(2.0, 4, seed)
    once, again = speedup(baseline, candidate), speedup(baseline * scale, candidate * scale)
    assert (once.value, once.low, once.high) == pytest.approx((again.value, again.low, again.high))


@given(st.lists(st.lists(st.floats(1e-6, 10), min_size=3, max_size=3), min_size=1, max_size=20))
def test_percentiles_are_numpy_s_in_milliseconds(seconds):
    flat = np.array(seconds).ravel()
    expected = [float(np.percentile(flat, q)) * 1000 for q in (50, 90, 99)]
    assert percentiles(np.array(seconds)) == pytest.approx(expected)


def ideal(pieces: tuple[float, float, float, float], layers: int, layers_run: float, last_run: float) -> float | None:
    return ideal_speedup(PieceTimes(*pieces), layers=layers, layers_run=layers_run, last_run=last_run)


def test_ideal_is_the_formula_of_the_design():
    assert ideal((1.0, 2.0, 2.0, 0.5), 12, 6.0, 0.3) == pytest.approx((1.5 + 24) / (1.5 + 12))
    assert ideal((1.0, 2.0, 0.5, 0.5), 12, 12.0, 1.0) == 1.0
    assert ideal((0.0, 1.0, 1.0, 0.0), 12, 3.0, 1.0) == 4.0
    assert ideal((0.0, 1.0, 0.25, 0.0), 6, 3.0, 1.0) == 5.25 / 2.25
    assert ideal((0.0, 1.0, 0.25, 0.0), 6, 3.0, 0.0) == 5.25 / 3


def test_where_only_the_last_layer_was_timed_there_is_no_ideal():
    found = ideal_speedup(PieceTimes(1.0, None, 0.5, 0.5), layers=2, layers_run=1.0, last_run=1.0)
    assert found is None


@given(st.floats(0, 10), st.floats(0.01, 10), st.floats(0, 1), st.floats(0, 10), st.integers(1, 24), st.data())
def test_ideal_is_full_bert_s_cost_over_that_of_the_layers_that_ran(e, layer, share, h, layers, data):
    """Summed layer by layer, over inputs of which each has a route of its own."""
    routes = data.draw(st.lists(st.lists(st.booleans(), min_size=layers, max_size=layers), min_size=1, max_size=5))
    cost = [layer] * (layers - 1) + [share * layer]
    spent = [e + h + sum(c for c, ran in zip(cost, route, strict=True) if ran) for route in routes]
    run, last = (np.mean([f(route) for route in routes]) for f in (sum, lambda route: route[-1]))
    if np.mean(spent) > 1e-3:
        found = ideal((e, layer, share * layer, h), layers, run, last)
        assert found == pytest.approx((e + h + sum(cost)) / np.mean(spent), rel=1e-6)
        assert found is not None and found >= 1 - 1e-9
