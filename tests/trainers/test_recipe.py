"""Recipes: defaults, TOML, `--set`, and refusals that name the setting."""

import dataclasses

import pytest

from hadskip_export.errors import RecipeError
from hadskip_export.trainers.recipe import Recipe, load_recipe


def refused(settings=(), file=None, *names: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, settings)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def test_without_anything_it_is_the_default():
    assert load_recipe() == Recipe()


def test_a_setting_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('batch_size = 8\nbeta = 2\nestimator = "ste"\ngate_bias = -1.5\n')
    recipe = load_recipe(file, ["batch_size=4", " alpha3 = 0 ", "stage1_lr=1e-4", "alpha3=0.5"])
    changed = {"batch_size": 4, "beta": 2.0, "estimator": "ste", "gate_bias": -1.5, "alpha3": 0.5, "stage1_lr": 1e-4}
    assert recipe == dataclasses.replace(Recipe(), **changed)
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
    "margin_limit=0", "warmup=1.5", "glide=2",
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
    for content in (b"batch_size = ", b"\xff\xfe", b"batch_size = 1\nbatch_size = 2"):
        (tmp_path / "bad.toml").write_bytes(content)
        refused((), tmp_path / "bad.toml", "bad.toml", "TOML")
