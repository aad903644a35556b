"""Drift: the index against what it is defined as, and what is chance and what is not."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hadskip_export.routing.drift import FEWEST, RECENT, DriftWatch, drift_from, expected_layers, stability_index
from hadskip_export.routing.points import Point

POINT = Point(
    3, (0.0,) * 6, "", 3.0, (((1, 6), 0.3), ((1, 2, 6), 0.25), ((1, 3, 6), 0.15), ((1, 2, 3, 6), 0.2), ((2, 6), 0.1))
)
THEN = {2: 0.4, 3: 0.4, 4: 0.2}


def drawn(shares: dict[int, float], count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).choice(list(shares), size=count, p=list(shares.values())).tolist()


def test_routes_of_as_many_layers_are_one_kind():
    assert expected_layers(POINT) == pytest.approx(THEN)


def test_of_routes_that_are_not_nearly_all_nothing_is_taken_for_drift():
    """A point has its ten commonest routes; the shares of layers run say what the others ran."""
    some = replace(POINT, routes=POINT.routes[:3])
    assert expected_layers(some) == {} and drift_from(some, drawn(THEN, 500, 0)) is None
    known = replace(some, layers_run=(0, 0, 0.4, 0.4, 0.2, 0, 0))
    assert expected_layers(known) == pytest.approx(THEN)
    assert drift_from(known, drawn(THEN, 500, 0)).index < 0.1


def test_the_index_is_0_of_what_is_alike_and_the_same_in_both_directions():
    now = {2: 0.1, 3: 0.5, 5: 0.4}
    assert stability_index(THEN, THEN) == 0
    assert stability_index(THEN, now) == pytest.approx(stability_index(now, THEN))
    assert stability_index(THEN, now) > 0
    assert stability_index({1: 0.5, 2: 0.5}, {1: 0.6, 2: 0.4}) == pytest.approx(
        0.1 * math.log(0.6 / 0.5) - 0.1 * math.log(0.4 / 0.5)
    )


@pytest.mark.parametrize("seed", range(20))
def test_inputs_like_those_of_then_have_not_drifted_and_others_have(seed: int):
    alike, others = (drift_from(POINT, drawn(shares, 500, seed)) for shares in (THEN, {2: 0.1, 3: 0.3, 4: 0.6}))
    assert alike.index < 0.1 and not alike.is_much
    assert others.is_much and (others.inputs, others.budget) == (500, 3)


def test_few_inputs_and_a_point_without_routes_say_nothing():
    assert drift_from(POINT, [3] * (FEWEST - 1)) is None and drift_from(POINT, [3] * FEWEST) is not None
    assert drift_from(Point(3, (0.0,) * 6, "", 3.0), [3] * 500) is None


def test_a_service_looks_at_its_last_inputs_and_says_once_that_they_are_others():
    watch, said = DriftWatch(POINT), []
    for shares in (THEN, {4: 1.0}, THEN, {4: 1.0}):
        for number in range(40):
            found = watch.saw(drawn(shares, RECENT // 20, number))
            said.append(found is not None and watch.turned(found))
    assert [any(said[first : first + 40]) for first in range(0, 160, 40)] == [False, True, False, True]
    assert sum(said) == 2
