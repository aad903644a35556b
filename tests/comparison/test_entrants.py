"""Who takes part, and in which order."""

import pytest

from hadskip_export.comparison.entrants import NAMES, Entrant, entrants
from hadskip_export.support.errors import BudgetError, RecipeError
from hadskip_export.trainers.methods import METHODS, create_method
from hadskip_export.trainers.recipe import SHIPPED, load_recipe
from hadskip_export.trainers.settings import DISTILLED


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
    for one in alone:
        recipe = load_recipe("paper", one.settings("paper", ("batch_size=8",), fine_tuned=False))
        read = create_method(one.method, recipe, {}).settings(recipe)
        assert all(getattr(recipe, name) == 0 for name in DISTILLED & read) and "alpha1" in read
        assert (recipe.batch_size, recipe.threshold_on) == (8, "held-out")
    settings = found[0].settings(None, ("threshold_on=evaluation",), fine_tuned=True)
    assert load_recipe(None, settings).threshold_on == "evaluation"


def test_each_has_of_the_settings_those_that_it_reads():
    asked = ("gate_width=8", "exit_lr=1e-3", "body_lr=1e-3", "stage1_lr=1e-3")
    read = {
        one.name: one.settings(None, asked, fine_tuned=one.name == "pabee")[1:]
        for one in entrants(["adaptive", "pabee", "fastbert", "judged"], [2], 1, None, published=False)
    }
    assert read == {
        "adaptive": (asked[0], asked[2], asked[3]),
        "pabee": (asked[2],),
        "fastbert": (asked[1], asked[3]),
        "judged": (asked[0], asked[1], asked[3]),
    }


def test_files_of_entrants_are_their_own():
    found = entrants(NAMES, [2], 1, None, published=True)
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
