"""The table by hand, and its intervals against a paired t test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hadskip_export.comparison.figures import Figures, Latency, Result, figures_of, read_result, write_result
from hadskip_export.comparison.table import lines
from hadskip_export.support.errors import BundleError


def figures(budget: float, metric: float, divergence: float = 0.2, p50: float | None = None, **changes) -> Figures:
    latency = None if p50 is None else Latency("ort-fp32", p50, 8.0, 8.0 / p50, 1.0, 3.0)
    plain = {"mean_layers": budget, "metric": metric, "retained": metric / 0.9, "divergence": divergence}
    plain |= {"metric_at": metric, "divergence_at": divergence}
    return Figures(budget=budget, latency=latency, **plain | changes)


def result(name: str, seed: int, *found: Figures, published: bool = False) -> Result:
    return Result(name, published, seed, 0.9, 1.0, found)


def test_by_hand():
    table = lines(
        [
            result("adaptive", 0, figures(3, 0.80, 0.1, 2.0), figures(6, 0.88, 0.05, 4.0)),
            result("pabee", 0, figures(3, 0.70, 0.2, 4.0)),
            result("adaptive", 1, figures(3, 0.84, 0.3, 2.2), figures(6, 0.90, 0.05)),
            result("pabee", 1, figures(3, 0.78, 0.4, 4.4)),
            result("pabee", 0, figures(3, 0.60, 0.5), published=True),
        ],
        [3, 6],
    )
    assert [(line.system, line.budget, line.seeds) for line in table] == [
        ("adaptive", 3, 2), ("pabee", 3, 2), ("pabee, as published", 3, 1), ("adaptive", 6, 2),
    ]  # fmt: skip
    ours, theirs, alone, six = table
    assert (ours.metric, ours.divergence, ours.p50_ms) == pytest.approx((0.82, 0.2, 2.1))
    assert ours.above is None and ours.less_divergence is None
    assert (theirs.metric, theirs.retained, theirs.speedup) == pytest.approx((0.74, 0.74 / 0.9, (2 + 8 / 4.4) / 2))
    assert (theirs.above.mean, theirs.less_divergence.mean) == pytest.approx((0.08, (0.5 + 0.25) / 2))
    half = 12.7062 * np.std([0.1, 0.06], ddof=1) / 2**0.5
    assert (theirs.above.low, theirs.above.high) == pytest.approx((0.08 - half, 0.08 + half), abs=1e-5)
    assert (alone.above.mean, alone.above.low, alone.p50_ms) == (pytest.approx(0.2), None, None)
    assert (theirs.above.pairs, alone.above.pairs) == (2, 1)
    assert six.p50_ms == 4.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 1), st.floats(0.5, 1)), min_size=2, max_size=12))
def test_intervals_are_those_of_a_paired_t_test(pairs):
    differences = [one - other for one, other in pairs]
    results = [result("adaptive", seed, figures(3, one)) for seed, (one, _) in enumerate(pairs)]
    results += [result("static", seed, figures(3, other)) for seed, (_, other) in enumerate(pairs)]
    found = lines(results, [3])[1].above
    if np.std(differences) < 1e-9:
        return
    test = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((test.low, test.high), abs=1e-9)


def test_pairs_are_of_one_seed_and_of_what_is_known_at_as_many_layers():
    results = [
        result("adaptive", 0, figures(3, 0.8)), result("adaptive", 1, figures(3, 0.9)),
        result("static", 1, figures(3, 0.7)), result("static", 2, figures(3, 0.1)),
        result("budgeted", 0, figures(3, 0.5, metric_at=None, divergence_at=None)),
    ]  # fmt: skip
    _, static, budgeted = lines(results, [3])
    assert (static.seeds, static.above.pairs, static.above.mean) == (2, 1, pytest.approx(0.2))
    assert budgeted.above is None


# Figures


def test_figures_are_those_of_the_budgets_that_a_run_keeps():
    row = {"budget": 3, "mean_layers": 3.5, "metric": 0.7, "retained": None, "divergence": 0.3}
    found = figures_of(
        {"budgets": [row | {"exact_metric": 0.65, "exact_divergence": 0.35}, row | {"budget": 4}]}, [3, 4, 5]
    )
    assert list(found) == [3, 4] and found[3][0]["mean_layers"] == found[3][1].mean_layers == 3.5
    assert (found[3][1].metric, found[3][1].metric_at, found[3][1].divergence_at) == (0.7, 0.65, 0.35)
    assert found[4][1].metric_at is found[4][1].divergence_at is None  # of a run of an earlier version


def test_results_come_back_as_they_were(tmp_path):
    written = result("pabee", 2, figures(3, 0.1 + 0.2, p50=1.5), published=True)
    write_result(tmp_path / "result.json", written)
    assert read_result(tmp_path / "result.json") == written
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(BundleError, match="damaged"):
        read_result(tmp_path / "result.json")
