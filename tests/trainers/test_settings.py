"""What methods say they read of a recipe against what a training did read, attribute by attribute."""

import dataclasses
import sys
from pathlib import Path

import pytest

from hadskip_export import train
from hadskip_export.commands import train as command
from hadskip_export.trainers import recipe as recipes
from hadskip_export.trainers.methods import HADSKIP, METHODS, create_method
from hadskip_export.trainers.recipe import Recipe, load_recipe
from hadskip_export.trainers.settings import GATES, read_by, say_unread

NAMES = [field.name for field in dataclasses.fields(Recipe)]
SHORT = (
    "stage1_epochs=1",
    "fit_steps=5",
    "fit_rows=50",
    "gate_width=4",
    "shared_epochs=1",
    "epochs=1",
    "last_epochs=1",
)
OTHERS = [name for name in METHODS if name not in ("joint", "nested")]
NO_EFFECT = {"routing"} | GATES  # that are read by all: to name a method, and for gates that are then thrown away


def recording(recipe: Recipe, read: set[str]) -> Recipe:
    """The same recipe, which notes what trainers ask of it; not what is written to disk, or checked."""

    class Recording(Recipe):
        def __getattribute__(self, name: str):
            caller = sys._getframe(1).f_code
            by_itself = caller.co_filename == recipes.__file__ and caller.co_name != "distils_states"
            if name in NAMES and "/trainers/" in caller.co_filename and not by_itself:
                read.add(name)
            return super().__getattribute__(name)

    return Recording(**dataclasses.asdict(recipe))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "recipe", "setting"),
    [
        *((HADSKIP, *rest) for rest in (("adaptive", "stage2_epochs=1"), ("paper", "stage2_epochs=1"))),
        *((name, "adaptive", "body=shared") for name in (HADSKIP, *OTHERS)),
        *((name, "adaptive", "body=dedicated") for name in (HADSKIP, "upfront", "judged")),
        *((name, "paper", "routing=joint") for name in (HADSKIP, "upfront", "static", "smartbert")),
    ],
)
def test_a_method_reads_what_it_says_and_nothing_else(
    method, recipe, setting, model_folder, csv_files, tmp_path, monkeypatch
):
    read = set[str]()
    chosen = recording(load_recipe(recipe, (*SHORT, setting)), read)
    monkeypatch.setattr(command, "load_recipe", lambda *_: chosen)
    texts, evaluation = map(str, csv_files)
    train(
        model=str(model_folder), budget=2, out=tmp_path / "run", train=texts, eval=evaluation, method=method,
        max_length=32,
    )  # fmt: skip
    said = read_by(create_method(method, chosen, {}), chosen, fine_tuned=False)
    assert said - read <= {"routing"} and read - said <= NO_EFFECT


@pytest.mark.parametrize(
    ("method", "recipe", "setting"),
    [
        ("fastbert", "adaptive", "fit_dropout=0.3"),
        ("fastbert", "adaptive", "body_lr=1e-4"),
        ("hadskip", "adaptive", "estimator=ste"),
        ("hadskip", "adaptive", "family_spread=2"),
        ("hadskip", "paper", "layer_price=0.1"),
        ("static", "adaptive", "gate_width=8"),
    ],
)
def test_a_setting_that_changes_nothing_is_named(method, recipe, setting, capsys):
    settings = ("batch_size=8", setting, "precision=fp32")
    chosen = load_recipe(recipe, settings)
    say_unread(settings, create_method(method, chosen, {}), chosen, fine_tuned=False)
    name = setting.partition("=")[0]
    assert capsys.readouterr().err == f"--set {name}: changes nothing with this method and recipe\n"


def test_stage_i_has_no_settings_where_the_model_is_fine_tuned(capsys):
    settings = ("stage1_lr=1e-4", "weight_decay=0", " stage1_epochs = 1", "schedule=direct", "schedule=direct")
    chosen = load_recipe(None, settings)
    method = create_method(HADSKIP, chosen, {})
    say_unread(settings[:3], method, chosen, fine_tuned=False)
    assert capsys.readouterr().err == ""
    say_unread(settings, method, chosen, fine_tuned=True)
    assert capsys.readouterr().err.splitlines() == [
        "--set stage1_lr, stage1_epochs: change nothing with --fine-tuned, where there is no stage I",
        "--set schedule: changes nothing with this method and recipe",
    ]


def test_one_line_of_settings_does_for_trainings_of_every_kind(model_folder, csv_files, tmp_path, capsys):
    """The run is the one without them."""
    weights = []
    for name, settings in (("plain", ()), ("with", ("epochs=1", "last_epochs=1", "schedule=direct"))):
        train(
            model=str(model_folder), budget=2, out=tmp_path / name, train=str(csv_files[0]), eval=str(csv_files[1]),
            settings=("stage1_epochs=1", "shared_epochs=1", "fit_steps=5", "gate_width=4", *settings), max_length=32,
        )  # fmt: skip
        said = "--set epochs, last_epochs, schedule: change nothing with this method and recipe"
        assert (said in capsys.readouterr().err) == bool(settings)
        (file,) = (tmp_path / name / "budgets").glob("*/*.safetensors")
        weights.append(file.read_bytes())
    assert weights[0] == weights[1]


def test_files_may_name_what_a_method_does_not_read(tmp_path: Path, capsys):
    """A recipe is for several methods."""
    (tmp_path / "own.toml").write_text("estimator = 'ste'\n")
    chosen = load_recipe(tmp_path / "own.toml")
    say_unread((), create_method(HADSKIP, chosen, {}), chosen, fine_tuned=False)
    assert capsys.readouterr().err == ""
