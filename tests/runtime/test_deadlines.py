"""Deadlines: the largest operating point that is in time, by a clock of the test's own and by the machine's."""

from pathlib import Path

import numpy as np
import pytest

from hadskip_export import calibrate
from hadskip_export.routing.points import Point
from hadskip_export.runtime import Predictor, deadlines
from hadskip_export.runtime.deadlines import Pace, most_layers
from hadskip_export.support.errors import BudgetError
from tests.conftest import sentences, write_csv
from tests.exporters.changing import copy_of

TEXTS = [text for text, _ in sentences(80, 7)]


def point(budget: float, *routes: tuple[int, float]) -> Point:
    """Routes as (layers, share)."""
    return Point(budget, (0.0,) * 6, "", budget, tuple((tuple(range(1, n + 1)), share) for n, share in routes))


def pace(monkeypatch: pytest.MonkeyPatch, slower: float = 0.0) -> Pace:
    """Of a machine that takes 1 s, and for each of 6 layers 1 s for every 100 tokens."""
    clock = [0.0]

    def run(tokens: int, every: bool) -> None:
        clock[0] += 1 + (6 * tokens / 100 if every else 0)

    monkeypatch.setattr(deadlines.time, "perf_counter", lambda: clock[0])
    return Pace(run, 6, 200)


def test_a_call_is_as_long_as_its_tokens_and_layers_say(monkeypatch: pytest.MonkeyPatch):
    found = pace(monkeypatch)
    for tokens, layers in ((100, 3), (128, 6), (16, 0), (50, 2.5), (200, 1)):
        assert found.seconds([tokens], layers) == pytest.approx(1 + layers * tokens / 100)
    assert found.seconds([100, 50], 2) == pytest.approx(2 + 2 * 1.5)
    assert found.seconds([4], 0) == pytest.approx(1)  # shorter than any that was timed


def test_the_largest_point_is_chosen_at_which_95_of_100_are_in_time(monkeypatch: pytest.MonkeyPatch):
    found = pace(monkeypatch)
    points = [point(2, (2, 0.9), (3, 0.1)), point(3, (3, 0.96), (5, 0.04)), point(5, (4, 0.5), (6, 0.5))]
    assert [most_layers(one) for one in points] == [3, 3, 6]
    for seconds, budget in ((0.5, 2), (3.9, 2), (4.1, 3), (6.9, 3), (7.1, 5), (100, 5)):
        assert found.choose(points, [100], seconds).budget == budget
    assert found.choose(points, [50], 4.1).budget == 5  # a shorter one
    assert found.choose(points, [100, 100], 8.1).budget == 3  # two, one after the other


def test_routes_that_nobody_saw_count_as_all_layers():
    assert most_layers(point(3, (3, 0.5))) == most_layers(point(3)) == 6


@pytest.fixture(scope="module")
def with_points(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("points")
    copy = copy_of(bundle, folder)
    file = write_csv(folder / "texts.csv", [(text,) for text in TEXTS], ("text",))
    calibrate(copy, file, [1, 3, 4], write=True)
    return copy


def test_a_call_is_answered_as_at_the_point_that_its_deadline_gives(with_points: Path):
    """A year is enough for all layers, and a nanosecond for none: the least there is."""
    with Predictor.load(with_points) as predictor:
        for deadline, budget in ((3e10, 4), (1e-6, 1)):
            assert predictor(TEXTS, deadline_ms=deadline) == predictor(TEXTS, budget=budget)
            assert predictor(TEXTS[0], deadline_ms=deadline) == predictor(TEXTS[0], budget=budget)
        assert predictor([], deadline_ms=1.0) == []
        assert predictor(TEXTS, deadline_ms=1e-6, router="full") == predictor(TEXTS, router="full")


@pytest.mark.parametrize("wrong", [0, -1.0, np.nan, "8", True, None.__class__])
def test_a_deadline_that_is_none_is_refused(wrong, with_points: Path):
    with Predictor.load(with_points) as predictor, pytest.raises(BudgetError, match="deadline_ms"):
        predictor(TEXTS[0], deadline_ms=wrong)


def test_a_deadline_and_a_budget_are_one_too_many(with_points: Path):
    with Predictor.load(with_points) as predictor:
        for option in ({"budget": 2}, {"gate_threshold": 0.0}):
            with pytest.raises(BudgetError, match="chooses the budget; leave budget and gate_threshold out"):
                predictor(TEXTS[0], deadline_ms=5, **option)


def test_where_all_take_one_route_a_deadline_has_nothing_to_choose(static_bundle: Path):
    with Predictor.load(static_bundle) as predictor:
        assert predictor(TEXTS, deadline_ms=1e-6) == predictor(TEXTS)
