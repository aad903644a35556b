"""The control of the budget, by itself: when it lowers, when it raises, and that it does not swing."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.serving.load import CALM, DOWN_AFTER, MOST_UP_AFTER, UP_AFTER, LoadControl

BUDGETS = (6.0, 4.0, 3.0, 2.0)
TOO_LONG, FINE = 0.2, 0.0


def control() -> LoadControl:
    return LoadControl(BUDGETS, most_wait=0.05)


def told(load: LoadControl, waited: float, begin: float, seconds: float, step: float = 0.05) -> float:
    """Batches every `step` seconds, all of which waited as long; returns when it ended."""
    now = begin
    while now <= begin + seconds:
        load.saw(waited, now)
        now += step
    return now


def test_a_single_long_wait_changes_nothing():
    load = control()
    load.saw(TOO_LONG, 10.0)
    load.saw(FINE, 10.3)
    load.saw(TOO_LONG, 10.6)
    assert load.budget == 6.0


def test_waits_that_last_lower_it_step_by_step_to_the_floor_and_no_further():
    load, seen, now = control(), [], 100.0
    for _ in range(40):
        now = told(load, TOO_LONG, now, 0.0)
        seen.append(load.budget)
    assert seen[0] == 6.0 and [budget for i, budget in enumerate(seen) if budget not in seen[:i]] == list(BUDGETS)
    assert now - 100.0 >= 3 * DOWN_AFTER and load.budget == 2.0


def test_it_returns_when_requests_wait_no_longer_step_by_step():
    load = control()
    now = told(load, TOO_LONG, 100.0, 2.0)
    begun = now
    while load.level:
        now = told(load, FINE, now, 0.0)
    assert now - begun >= 3 * UP_AFTER * 0.95


def test_a_wait_between_the_two_changes_nothing_however_long_it_lasts():
    load = control()
    now = told(load, TOO_LONG, 100.0, 2 * DOWN_AFTER)
    level = load.level
    assert level > 0
    told(load, (CALM + 1) / 2 * load.most_wait, now, 100.0)
    assert load.level == level


def test_under_a_load_that_only_fewer_layers_bear_raises_become_ever_rarer():
    """Requests wait too long at 4 layers and more, and not at 3 and fewer: it must not go up and down forever."""
    load, now, raised = control(), 100.0, []
    before = load.level
    while now < 700.0:
        load.saw(TOO_LONG if load.budget >= 4 else FINE, now)
        if load.level < before:
            raised.append(now)
        before, now = load.level, now + 0.05
    assert 3 < len(raised) < 16
    gaps = [later - earlier for earlier, later in itertools.pairwise(raised)]
    assert gaps[-1] >= MOST_UP_AFTER > 4 * gaps[0]


def test_time_without_requests_is_calm_and_what_was_before_is_over():
    load = control()
    now = told(load, TOO_LONG, 100.0, 2.0)
    assert load.budget == 2.0
    load.begins(now + 1.5 * UP_AFTER)
    assert load.budget == 3.0
    load.begins(now + 3600.0)
    assert load.budget == 6.0
    load.saw(TOO_LONG, now + 3601.0)
    load.begins(now + 7200.0)
    load.saw(TOO_LONG, now + 7200.5)  # an hour after the other: that did not last
    assert load.budget == 6.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 10)), max_size=200))
def test_whatever_comes_the_budget_is_one_of_them_and_moves_one_level_at_a_time(batches):
    load, now = control(), 0.0
    for waited, passed in batches:
        before, now = load.level, now + passed
        load.saw(waited, now)
        assert load.budget in BUDGETS and abs(load.level - before) <= 1


def test_without_a_floor_it_stays_whatever_happens():
    load = LoadControl((None,))
    told(load, TOO_LONG, 0.0, 10.0)
    assert load.budget is None
