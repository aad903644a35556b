"""Recipes: those that ship, TOML, `--set`, and refusals that name the setting."""

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from hadskip_export.support.errors import RecipeError
from hadskip_export.trainers.recipe import DEFAULT, SHIPPED, Recipe, load_recipe


def refused(settings=(), file=None, *names: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, settings)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


# The recipes that ship


def shipped(name: str) -> str:
    return resources.files("hadskip_export.trainers").joinpath("recipes", f"{name}.toml").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_lists_every_setting_once_and_as_what_it_is(name):
    """So that the file is all the documentation of its values, and a copy of it a complete recipe."""
    values = tomllib.loads(shipped(name))  # which refuses a key that comes twice
    fields = {field.name: field for field in dataclasses.fields(Recipe)}
    assert sorted(values) == sorted(fields)
    assert Recipe(**values) == load_recipe(name) == load_recipe(Path(name))
    assert {key for key, field in fields.items() if field.type is int} == {
        key for key, value in values.items() if type(value) is int
    }
    assert all(field.default is dataclasses.MISSING for field in fields.values())  # no second place for a value


def test_there_is_a_file_for_every_shipped_recipe_and_no_other():
    names = [file.name for file in (resources.files("hadskip_export.trainers") / "recipes").iterdir()]
    assert sorted(names) == sorted(f"{name}.toml" for name in SHIPPED)


def test_the_recipes_differ_in_how_routes_come_about():
    assert {name: load_recipe(name).routing for name in SHIPPED} == {"paper": "joint", "adaptive": "nested"}
    assert load_recipe("paper").distils_states and not load_recipe("adaptive").distils_states


def test_without_anything_it_is_the_default():
    assert load_recipe() == load_recipe(DEFAULT)


# Files and settings


@pytest.mark.parametrize("base", SHIPPED)
def test_a_file_changes_the_recipe_that_it_extends(base, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(f'extends = "{base}"\nbeta = 2.5\n')
    assert load_recipe(file) == dataclasses.replace(load_recipe(base), beta=2.5) == load_recipe(str(file))


def test_a_file_that_says_nothing_else_extends_the_default(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("beta = 2.5\n")
    assert load_recipe(file) == dataclasses.replace(load_recipe(), beta=2.5)


def test_a_copy_of_a_shipped_recipe_is_that_recipe_whatever_the_default_is(tmp_path):
    for name in SHIPPED:
        file = tmp_path / f"{name}.toml"
        file.write_text(shipped(name))
        assert load_recipe(file) == load_recipe(name)


@pytest.mark.parametrize("base", ['"mine"', '"paper.toml"', "3", '["paper"]', "{ name = 1 }", '""', "false"])
def test_a_file_cannot_extend_what_does_not_ship(base, tmp_path):
    (tmp_path / "recipe.toml").write_text(f"extends = {base}\n")
    refused((), tmp_path / "recipe.toml", "recipe.toml", "extends", *SHIPPED)


@pytest.mark.parametrize("name", ["papr", "Paper", "no/such/recipe"])
def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(name):
    refused((), name, name, "--recipe", *SHIPPED)


def test_a_setting_cannot_extend():
    refused(["extends=adaptive"], None, "'extends'")


def test_a_setting_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('batch_size = 8\nbeta = 2\nestimator = "ste"\ngate_bias = -1.5\n')
    recipe = load_recipe(file, ["batch_size=4", " alpha3 = 0 ", "stage1_lr=1e-4", "alpha3=0.5"])
    changed = {"batch_size": 4, "beta": 2.0, "estimator": "ste", "gate_bias": -1.5, "alpha3": 0.5, "stage1_lr": 1e-4}
    assert recipe == dataclasses.replace(load_recipe(), **changed)
    assert type(recipe.batch_size) is int and type(recipe.beta) is float


def test_the_literal_form_of_the_paper_and_an_unlimited_margin_can_be_had():
    recipe = load_recipe(settings=["penalty_unit=share", "margin_limit=inf", "stage2_epochs=0"])
    assert (recipe.penalty_unit, recipe.margin_limit, recipe.stage2_epochs) == ("share", float("inf"), 0)


def test_a_recipe_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe().beta = 2.0


def test_an_unknown_setting_is_refused_and_the_known_ones_are_listed(tmp_path):
    refused(["batchsize=3"], None, "'batchsize'", "batch_size", "alpha4")
    (tmp_path / "recipe.toml").write_text("[stage1]\nlr = 1\n")
    refused((), tmp_path / "recipe.toml", "'stage1'")


WRONG_KIND = ["batch_size=many", "batch_size=2.5", "batch_size=", "beta=big", "beta=", "stage1_epochs=true"]
OUT_OF_RANGE = [
    "batch_size=0", "epochs=0", "last_epochs=-1", "stage1_epochs=0", "gate_width=0", "stage2_epochs=-1", "beta=-1",
    "stage1_lr=-1e-3", "weight_decay=-0.1", "alpha2=-1", "estimator=reinforce", "penalty_unit=tokens",
    "stage1_lr=nan", "beta=nan", "gate_bias=nan", "body_lr=inf", "alpha1=inf",
    "margin_limit=0", "warmup=1.5", "glide=2", "routing=random", "schedule=slow", "threshold_on=training",
    "schedule_step=0", "schedule_step=-1",
    "schedule_step=inf", "schedule_step=nan", "family=tree", "family_spread=-1", "family_spread=0.5", "fit_rows=0",
    "fit_steps=0", "fit_dropout=1", "fit_dropout=-0.1", "fit_dropout=nan", "layer_price=-1", "layer_price=nan",
]  # fmt: skip


@pytest.mark.parametrize("setting", WRONG_KIND + OUT_OF_RANGE)
def test_a_value_of_the_wrong_kind_or_range_is_refused_by_name(setting):
    refused([setting], None, setting.partition("=")[0])


@pytest.mark.parametrize(
    "line", ["batch_size = true", "batch_size = 2.5", "batch_size = [1]", "estimator = 3", "beta = 1979-05-27"]
)
def test_a_value_of_the_wrong_kind_in_a_file_is_refused_by_name(line, tmp_path):
    (tmp_path / "recipe.toml").write_text(line)
    refused((), tmp_path / "recipe.toml", line.partition(" ")[0])


@pytest.mark.parametrize("setting", ["batch_size", "", "batch_size 3"])
def test_a_setting_without_a_value_is_refused(setting):
    refused([setting], None, "key=value")


def test_a_file_that_is_missing_or_no_toml_is_refused(tmp_path):
    refused((), tmp_path / "none.toml", "none.toml")
    for content in (
        b"batch_size = ",
        b"\xff\xfe",
        b"batch_size = 1\nbatch_size = 2",
        b"batch_size = " + b"[" * 10_000,
        b"a = " + b"9" * 5000,
    ):
        (tmp_path / "bad.toml").write_bytes(content)
        refused((), tmp_path / "bad.toml", "bad.toml", "TOML")
