"""What every method of the table keeps to, and how little a new one takes."""

import inspect
import textwrap
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hadskip_export import train
from hadskip_export.cli import main
from hadskip_export.data.runs import read_run
from hadskip_export.modeling.checkpoint import load_student
from hadskip_export.modeling.exits import ExitClassifier
from hadskip_export.support.errors import BudgetError, RecipeError
from hadskip_export.trainers.methods import HADSKIP, METHODS, REFUSED, create_method
from hadskip_export.trainers.methods.base import Method
from hadskip_export.trainers.recipe import Recipe, load_recipe
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.teacher import Teacher
from tests.modeling.random_models import CONFIG, random_classifier, random_gated
from tests.trainers.datasets import OBJECTIVE, PROBLEM, random_dataset
from tests.trainers.oracle import above, predict_routed
from tests.trainers.runs import QUICKEST, assert_bit_equal, repeat

LAYERS = CONFIG.num_layers
RECIPES = ("paper", "adaptive")


def recipe_of(name: str = "adaptive", *settings: str) -> Recipe:
    return load_recipe(
        name, ("batch_size=16", "gate_width=8", "fit_steps=20", "last_epochs=1", "shared_epochs=2", *settings)
    )


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


@pytest.fixture
def method(name: str) -> Method:
    return create_method(name, recipe_of(), {})


def session(recipe: Recipe) -> Session:
    return Session(
        data=random_dataset(48, 1), held_out=random_dataset(30, 2), recipe=recipe, seed=0, device="cpu",
        log=lambda **_: None, problem=PROBLEM, objective=OBJECTIVE, metric="accuracy",
    )  # fmt: skip


def test_it_is_a_frozen_dataclass_with_the_members_of_the_contract(method):
    assert is_dataclass(method)
    with pytest.raises(FrozenInstanceError):
        method.anything = 1
    members = [member for member in vars(Method) if not member.startswith("_")] + list(Method.__annotations__)
    assert {"check", "settings", "path", "family", "learn", "initialises_gates", "fits_threshold"} <= set(members)
    for member in ("check", "settings", "path", "family", "learn"):
        assert inspect.signature(getattr(type(method), member)) == inspect.signature(getattr(Method, member))
    assert isinstance(method.initialises_gates, bool) and isinstance(method.fits_threshold, bool)


def test_its_fields_are_options_of_train(method):
    assert {field.name for field in fields(method)} <= inspect.signature(train).parameters.keys()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("way", ["body=shared", "body=dedicated", "schedule=direct", "schedule_step=0.5"])
@pytest.mark.parametrize("budget", [1.0, 2.0, 4.0])
def test_its_path_ends_at_the_budget_and_takes_the_epochs_of_the_recipe(recipe, way, budget, method):
    chosen = recipe_of(recipe, way)
    method.check(chosen, budget, CONFIG)
    path = method.path(chosen, budget, LAYERS)
    assert path[-1].budget == budget and path[0].previous == LAYERS
    assert [leg.previous for leg in path[1:]] == [leg.budget for leg in path[:-1]]
    assert all(leg.budget <= leg.previous and leg.epochs >= 1 for leg in path)
    hadskip = create_method(HADSKIP, chosen, {}).path(chosen, budget, LAYERS)
    if not method.fits_threshold:  # a rival
        assert sum(leg.epochs for leg in path) == sum(leg.epochs for leg in hadskip)


def test_a_budget_between_two_layers_is_met_by_a_threshold_or_refused(method):
    if method.fits_threshold:
        method.check(recipe_of(), 2.5, CONFIG)
    else:
        with pytest.raises(BudgetError, match=r"--budget 2\.5"):
            method.check(recipe_of(), 2.5, CONFIG)


def test_it_learns_a_student_and_leaves_the_teacher(method):
    here, taught = session(recipe_of()), random_classifier()
    teacher = Teacher(taught, here.data)
    leg = method.path(here.recipe, 2.0, LAYERS)[-1]
    torch.manual_seed(0)
    student = method.learn(random_gated(5), teacher, leg, here)
    assert_bit_equal(taught, random_classifier())
    assert not student.training and student.classifier is not taught
    if isinstance(student, ExitClassifier):
        assert len(student.exits) == LAYERS - 1
        return
    assert len(student.gates) == LAYERS
    assert (student.fixed_route is None) == method.fits_threshold
    _, routes, margins = predict_routed(student, here.held_out, above(0.0))
    assert np.isfinite(margins).all()
    if student.fixed_route is not None:
        assert (routes.sum(axis=1) == leg.budget).all()


def test_an_option_is_taken_or_refused_with_the_methods_that_take_it(name, method):
    if "route" in {field.name for field in fields(method)}:
        assert create_method(name, recipe_of(), {"route": (1, 2)}).route == (1, 2)
    else:
        with pytest.raises(RecipeError, match=f"--route goes with --method static, not with {name}"):
            create_method(name, recipe_of(), {"route": (1, 2)})


@pytest.mark.parametrize(("recipe", "routing"), [("paper", "joint"), ("adaptive", "nested")])
def test_hadskip_is_the_method_that_the_recipe_names(recipe, routing):
    chosen = recipe_of(recipe)
    assert create_method(HADSKIP, chosen, {}) == create_method(routing, chosen, {})


@pytest.mark.parametrize("name", REFUSED)
def test_a_system_that_has_no_place_here_is_refused_by_name_with_the_reason(name):
    with pytest.raises(RecipeError, match=f"--method {name}: its windows"):
        create_method(name, recipe_of(), {})
    done = CliRunner().invoke(main, ["train", "--model", "m", "--budget", "2", "--out", "o", "--method", name])
    assert done.exit_code == 2 and "branchynet" in done.output
    assert name not in METHODS


FAKE = '''
    """Every input runs the layers that --route names, untrained."""
    import copy
    from dataclasses import dataclass
    from hadskip_export.modeling.gated import GatedClassifier
    from hadskip_export.trainers.schedule import Leg

    @dataclass(frozen=True)
    class Untrained:
        route: tuple[int, ...] = (1,)
        initialises_gates = False
        fits_threshold = False

        def check(self, recipe, budget, config):
            pass

        def settings(self, recipe):
            return frozenset()

        def path(self, recipe, budget, num_layers):
            return [Leg(num_layers, num_layers, 1), Leg(num_layers, budget, 1)]

        def family(self, recipe, leg, num_layers):
            return []

        def learn(self, model, teacher, leg, session):
            route = self.route if leg.budget < leg.previous else tuple(range(1, int(leg.budget) + 1))
            return GatedClassifier(copy.deepcopy(teacher.model), fixed_route=route).eval()
'''


def test_a_new_method_is_a_file_and_a_line(model_folder, csv_files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "untrained.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "untrained", "untrained:Untrained")

    def trained(out: str, **changes: Any) -> dict[str, Any]:
        arguments = {"method": "untrained", "route": (2, 3), "budget": 2, "settings": QUICKEST}
        return repeat(model_folder, csv_files, tmp_path / out, **(arguments | changes))

    summary = trained("run")
    assert summary["method"] == "untrained" and not (tmp_path / "run" / "stage2").exists()
    run = read_run(tmp_path / "run")
    assert [(checkpoint.budget, checkpoint.routes) for checkpoint in run.checkpoints] == [
        (3, (((1, 2, 3), 1.0),)),
        (2, (((2, 3), 1.0),)),
    ]
    model, settings = load_student(run.checkpoint().folder)
    assert model.fixed_route == (2, 3) and (settings.threshold, settings.budget) == (0, 2)
    assert summary["budgets"][0]["metric"] == summary["teacher"]["metric"]
    with pytest.raises(RecipeError, match="--route goes with --method static or untrained, not with budgeted"):
        trained("other", method="budgeted")
    with pytest.raises(RecipeError, match=r"there are hadskip, .*, static, .*, untrained"):
        trained("other", method="magic")
