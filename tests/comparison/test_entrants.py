"""Who takes part, and in which order."""

import pytest

from hadskip_export.comparison.entrants import NAMES, UNTAUGHT, Entrant, entrants
from hadskip_export.support.errors import BudgetError, RecipeError
from hadskip_export.trainers.methods import METHODS
from hadskip_export.trainers.recipe import SHIPPED, load_recipe


def test_every_recipe_and_every_rival_may_take_part():
    assert set(NAMES) == {*SHIPPED, *METHODS} - {"joint", "nested"} and NAMES[0] == "adaptive"


def test_a_method_of_one_body_is_trained_once_and_one_of_one_budget_for_each():
    found = entrants(["adaptive", "budgeted", "pabee"], [2, 3], 2, None, published=False)
    assert [one.file for one in found] == [
        "adaptive-s0", "budgeted-s0-2", "budgeted-s0-3", "pabee-s0",
        "adaptive-s1", "budgeted-s1-2", "budgeted-s1-3", "pabee-s1",
    ]  # fmt: skip
    assert [(one.method, one.recipe("mine.toml")) for one in found[:3:2]] == [
        ("hadskip", "adaptive"),
        ("budgeted", "mine.toml"),
    ]


def test_a_rival_as_published_learns_without_a_teacher():
    found = entrants(NAMES, [2], 1, None, published=True)
    alone = [one for one in found if one.published]
    assert {one.name for one in alone} == set(NAMES) - {"adaptive", "paper", "upfront", "static", "fastbert", "judged"}
    recipe = load_recipe(None, alone[0].settings(("batch_size=8",)))
    assert (recipe.alpha1, recipe.alpha2, recipe.alpha3, recipe.alpha4, recipe.batch_size) == (0, 0, 0, 0, 8)
    assert alone[0].settings(())[1:] == UNTAUGHT and recipe.threshold_on == "held-out"
    assert load_recipe(None, found[0].settings(("threshold_on=evaluation",))).threshold_on == "evaluation"
    assert Entrant("pabee", True, 3).system == "pabee, as published"
    assert Entrant("pabee", True, 3).file == "pabee-published-s3"
    assert len({one.file for one in found}) == len(found)


@pytest.mark.parametrize(
    ("names", "budgets", "seeds", "kind", "message"),
    [
        (["magic"], [2], 1, RecipeError, "--method magic: not known; there are adaptive, paper, upfront, budgeted"),
        (["pabee", "pabee"], [2], 1, RecipeError, "once"),
        ([], [2], 1, RecipeError, "once"),
        (["pabee"], [2], 0, RecipeError, "--seeds 0"),
        (["pabee"], [], 1, BudgetError, "whole numbers"),
        (["pabee"], [2.5], 1, BudgetError, "whole numbers"),
        (["pabee"], [2, 3, 2], 1, BudgetError, "each once"),
        (["pabee"], [0.5], 1, BudgetError, "whole numbers"),
        (["pabee"], [float("nan")], 1, BudgetError, "whole numbers"),
    ],
)
def test_what_nobody_can_be_asked_for_is_refused_by_name(names, budgets, seeds, kind, message):
    with pytest.raises(kind, match=message):
        entrants(names, budgets, seeds, None, published=False)
