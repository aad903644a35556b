"""The adaptive recipe and the rivals: each by itself on random models, then whole runs; texts without labels."""

import copy
import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hadskip_export.data.examples import read_examples
from hadskip_export.data.tasks import hold_out
from hadskip_export.modeling.checkpoint import load_classifier, load_student
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.families import Draw
from hadskip_export.routing.routes import Route, as_route
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.errors import BudgetError, BundleError, DataError, HadskipError, RecipeError
from hadskip_export.trainers import pipeline
from hadskip_export.trainers.batches import encode
from hadskip_export.trainers.evaluation import full_logits, logits_on_routes
from hadskip_export.trainers.methods import nested
from hadskip_export.trainers.methods.nested import Nested
from hadskip_export.trainers.methods.static import SEARCH_EPOCHS, Static
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.stages import distil
from hadskip_export.trainers.summary import Figures
from hadskip_export.trainers.teacher import Teacher
from tests.conftest import QUICK, sentences, write_csv
from tests.modeling.random_models import random_classifier, random_gated
from tests.trainers.datasets import OBJECTIVE, PROBLEM, random_dataset
from tests.trainers.oracle import above, predict_routed
from tests.trainers.runs import as_model, assert_bit_equal, read, repeat

# One budget of a random model


def session(log: list[dict[str, Any]], *settings: str) -> Session:
    settings = ("batch_size=16", "gate_width=8", "fit_steps=30", "body_lr=1e-3", "body=dedicated", *settings)
    recipe = load_recipe("adaptive", settings)
    return Session(
        data=random_dataset(96, 1), held_out=random_dataset(60, 2), recipe=recipe, seed=0, device="cpu",
        log=lambda **record: log.append(record), problem=PROBLEM, objective=OBJECTIVE,
        metric="accuracy",
    )  # fmt: skip


def alone_from(model: torch.nn.Module, layers: Route) -> list[str]:
    """Names of what `layers` do not touch."""
    idle = [f"layers.{index}." for index in range(4) if index + 1 not in layers]
    return [name for name in model.state_dict() if name.startswith(tuple(idle))]


@pytest.mark.parametrize("route", [(1, 2), (2, 4), (1, 2, 3, 4)], ids=str)
def test_a_fixed_route_is_learned_from_the_teacher_on_not_from_the_student_before(route):
    log: list[dict[str, Any]] = []
    here, model = session(log), random_classifier()
    teacher, students = Teacher(model, here.data), []
    for before in (random_gated(5), random_gated(6)):
        torch.manual_seed(0)
        students.append(Static(route).learn(before, teacher, Leg(4.0, float(len(route)), 2), here))
    assert_bit_equal(*students)
    body, taught = students[0].classifier.state_dict(), model.state_dict()
    idle = alone_from(model, route)
    assert {name for name in taught if torch.equal(taught[name], body[name])} == set(idle)
    assert students[0].fixed_route == route and not students[0].training
    assert_bit_equal(model, random_classifier())
    log = [record for record in log if "phase" in record]
    assert [record["epoch"] for record in log] == [1, 2, 1, 2]
    assert {record["phase"] for record in log} == {f"stage III, layers {' '.join(map(str, route))}"}


@pytest.mark.parametrize("budget", [1.0, 2.0, 3.0, 4.0])
def test_the_best_route_is_the_one_nearest_to_the_teacher_after_an_epoch_on_all_of_them(budget):
    log: list[dict[str, Any]] = []
    here, before, model = session(log), random_gated(5), random_classifier()
    teacher = Teacher(model, here.data)
    torch.manual_seed(0)
    found = Static().learn(before, teacher, Leg(4.0, budget, 2), here)

    # the search again: the same draws and dropout, each route by itself
    candidates = list(itertools.combinations((1, 2, 3, 4), int(budget)))
    torch.manual_seed(0)
    student = GatedClassifier(copy.deepcopy(model).requires_grad_(True), 8)
    distil(student, teacher, Draw(candidates, 0), session([]), epochs=SEARCH_EPOCHS, phase="search")
    answers = full_logits(model, here.held_out)
    costs = {}
    for route in candidates:
        rows = np.tile([layer in route for layer in (1, 2, 3, 4)], (60, 1))
        costs[str(route)] = OBJECTIVE.mean_divergence(answers, logits_on_routes(student, here.held_out, rows))
    (logged,) = [record["divergence"] for record in log if "divergence" in record]
    assert logged == pytest.approx(costs, abs=1e-5)
    assert str(found.fixed_route) == min(costs, key=costs.__getitem__)

    # and then by itself from the teacher on, not from the student that the search has spoiled
    epochs = [(record["phase"], record["epoch"]) for record in log if "epoch" in record and "phase" in record]
    name = f"stage III, layers {' '.join(map(str, found.fixed_route))}"
    assert epochs == [("search", 1), (name, 1), (name, 2)] and SEARCH_EPOCHS == 1
    taught, body = model.state_dict(), found.classifier.state_dict()
    assert all(torch.equal(taught[key], body[key]) for key in alone_from(model, found.fixed_route))


def test_nested_routes_first_teach_the_body_then_fit_the_gates_to_it(monkeypatch):
    """On the training rows that the recipe allows, with the teacher's answers for them."""
    log: list[dict[str, Any]] = []
    here, model = session(log, "fit_rows=40"), random_gated()
    teacher = Teacher(random_classifier(1), here.data)
    seen: dict[str, Any] = {}

    def observing(student, logits, data, family, here):
        seen.update(body=student.classifier.state_dict()["head.pooler.weight"].clone(), logits=logits, data=data)
        seen.update(family=family)
        return observe(student, logits, data, family, here)

    observe = nested.observe
    monkeypatch.setattr(nested, "observe", observing)
    before = model.classifier.state_dict()["head.pooler.weight"].clone()
    student = Nested().learn(model, teacher, Leg(4.0, 2.0, 2), here)
    assert not torch.equal(seen["body"], before)
    assert torch.equal(seen["body"], student.classifier.state_dict()["head.pooler.weight"])
    places = {id(encoded): row for row, encoded in enumerate(here.data.encoded)}
    rows = [places[id(encoded)] for encoded in seen["data"].encoded]
    assert len(set(rows)) == 40 and sorted(rows) != list(range(40))  # some of all
    assert torch.equal(seen["logits"], teacher.logits()[rows])
    assert seen["family"] == [(4,), (1, 4), (1, 2, 4)]
    assert [record["epoch"] for record in log if "phase" in record] == [1, 2]
    _, _, margins = predict_routed(student, here.held_out, above(0.0))
    assert (margins[:, 2] == -20).all() and (margins[:, 3] == 20).all()  # layer 3 in no route, layer 4 in all
    assert (np.abs(margins[:, :2]) < 20).all() and student.fixed_route is None and not student.training


@pytest.mark.parametrize(("family", "spread"), [("prefix", 1), ("all", 0), ("nested", 0)])
@pytest.mark.parametrize("budget", [0.5, 1.5, 3.0, 4.0])
def test_every_family_and_budget_can_be_learned(family, spread, budget):
    here = session([], f"family={family}", f"family_spread={spread}")
    student = Nested().learn(random_gated(), Teacher(random_classifier(1), here.data), Leg(4.0, budget, 1), here)
    _, routes, margins = predict_routed(student, here.held_out, above(0.0))
    assert np.isfinite(margins).all()
    if budget == 4 and spread == 0:
        assert routes.all()


def test_after_a_budget_that_left_a_gate_no_choice_it_gets_one():
    """On the way down, as `schedule=homotopic` goes: at four layers and no spread all gates are fixed."""
    here = session([], "family_spread=0")
    teacher = Teacher(random_classifier(1), here.data)
    student = Nested().learn(random_gated(), teacher, Leg(4.0, 4.0, 1), here)
    assert (predict_routed(student, here.data, above(0.0))[2] == 20).all()
    student = Nested().learn(student, teacher, Leg(4.0, 2.5, 1), here)  # two or three layers: layer 2 is a choice
    margins = predict_routed(student, here.data, above(0.0))[2]
    assert (margins[:, [0, 3]] == 20).all() and (margins[:, 2] == -20).all()
    assert (np.abs(margins[:, 1]) < 10).all() and margins[:, 1].std() > 0


# Whole runs from the user's own classifier

FITTING = ("fit_steps=300", "fit_lr=1e-2", "last_epochs=2", "shared_epochs=3")
COMMANDS: dict[str, dict[str, Any]] = {
    "adaptive": {"recipe": "adaptive", "budget": 2},
    "adaptive, fraction": {"recipe": "adaptive", "budget": 1.5},
    "adaptive, dedicated": {"recipe": "adaptive", "budget": 1.5, "settings": (*QUICK, *FITTING, "body=dedicated")},
    "budgeted": {"method": "budgeted", "budget": 2},
    "static": {"method": "static", "route": (1, 3), "budget": 2},
    "search": {"method": "static", "budget": 2},
}
ADAPTIVE, RIVALS = list(COMMANDS)[:3], list(COMMANDS)[3:]
BUDGETS = {"adaptive": "3 2", "adaptive, fraction": "3 2 1.5", "adaptive, dedicated": "3 2 1.5"}


@dataclass(frozen=True)
class Trained:
    """A finished run, and the command that made it."""

    name: str
    out: Path
    arguments: dict[str, Any]
    summary: dict[str, Any]

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    @property
    def folders(self) -> list[Path]:
        return [self.out / "stage1", *sorted((self.out / "budgets").iterdir())]


@pytest.fixture(scope="module")
def teacher(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned model, as a user has it."""
    return as_model(tmp_path_factory.mktemp("teacher") / "model", run_folder, ("negative", "positive"))


@pytest.fixture(scope="module", params=COMMANDS)
def trained(request, teacher: Path, csv_files, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("methods") / "run"
    arguments = {"fine_tuned": True, "settings": (*QUICK, *FITTING)} | COMMANDS[request.param]
    return Trained(request.param, out, arguments, repeat(teacher, csv_files, out, **arguments))


def encoded(trained: Trained, file: Path):
    """(all rows of a file, tokenised), read again."""
    rows = read_examples(file)
    labels = np.array([("negative", "positive").index(label) for label in rows.labels])
    return encode(Tokenizer(trained.out / "tokenizer" / "tokenizer.json", 32), rows.texts, labels)


def held_out(trained: Trained, csv_files):
    data = encoded(trained, csv_files[0])
    return data.subset(hold_out(len(data), 0)[1])


def test_a_run_has_a_checkpoint_for_each_budget_and_a_summary(trained):
    budgets = BUDGETS.get(trained.name, "2").split()
    students = budgets if "dedicated" in trained.name else budgets[-1:]
    names = [file.name for file in trained.folders]
    assert names == ["stage1", *sorted(students)] and not (trained.out / "stage2").exists()
    assert json.loads(json.dumps(trained.summary)) == read(trained.out / "summary.json")
    assert trained.summary["method"] == trained.arguments.get("method", "hadskip")
    assert [row["budget"] for row in trained.summary["budgets"]] == [float(budget) for budget in budgets]
    assert all(np.isfinite(v) for row in trained.summary["budgets"] for v in row.values() if isinstance(v, float))
    recipe = read(trained.out / "recipe.json")
    route = trained.arguments.get("route")
    assert recipe["method"] == trained.summary["method"] and recipe["route"] == (list(route) if route else None)
    assert not list(trained.out.rglob("*.part"))


def test_the_figures_are_those_of_the_checkpoint_on_the_evaluation_data(trained, csv_files):
    evaluation = encoded(trained, csv_files[1])
    answers = full_logits(load_classifier(trained.out / "stage1"), evaluation)
    for row in trained.summary["budgets"]:
        model, settings = load_student(trained.out / "budgets" / f"{row['student']:g}")
        predicted, routes, _ = predict_routed(model, evaluation, above(row["threshold"]))
        if settings.budget == row["budget"]:
            assert settings.threshold == row["threshold"]
        assert row["metric"] == pytest.approx(np.mean(predicted.argmax(-1) == evaluation.targets))
        assert row["mean_layers"] == pytest.approx(routes.sum(axis=1).mean())
        assert row["divergence"] == pytest.approx(
            OBJECTIVE.mean_divergence(answers, logits_on_routes(model, evaluation, routes)), abs=1e-6
        )
        assert row["retained"] == pytest.approx(row["metric"] / trained.summary["teacher"]["metric"])
    assert trained.summary["teacher"]["metric"] == pytest.approx(np.mean(answers.argmax(-1) == evaluation.targets))


def test_the_teacher_is_the_users_model_untouched(trained, teacher):
    assert_bit_equal(load_classifier(trained.out / "stage1"), load_classifier(teacher))
    phases = {record.get("phase", "") for record in trained.log}
    assert not phases & {"stage I", "stage II"}


@pytest.mark.parametrize("trained", ADAPTIVE, indirect=True)
def test_an_adaptive_run_routes_within_its_family_at_the_budget(trained, csv_files):
    """Of three layers and two in the budget: the last one, the first and the last, or all."""
    model, settings = load_student(trained.out / "budgets" / f"{trained.arguments['budget']:g}")
    assert model.fixed_route is None
    data = encoded(trained, csv_files[0])
    _, routes, margins = predict_routed(model, data, above(0.0))
    assert (margins[:, 2] == 20).all() and margins[:, 0].std() > 0
    family = {(3,), (1, 3)} if "dedicated" in trained.name else {(3,), (1, 3), (1, 2, 3)}
    assert np.mean([as_route(route) in family for route in routes]) > 0.95
    row = trained.summary["budgets"][-1]
    assert abs(row["mean_layers"] - trained.arguments["budget"]) < 0.1
    _, routes, _ = predict_routed(model, held_out(trained, csv_files), above(settings.threshold))
    assert routes.sum(axis=1).mean() == pytest.approx(row["held_out_mean_layers"])


@pytest.mark.parametrize("trained", RIVALS, indirect=True)
def test_a_rival_runs_one_route_for_all_and_has_nothing_to_shuffle(trained, csv_files):
    (row,) = trained.summary["budgets"]
    model, settings = load_student(trained.out / "budgets" / "2")
    wanted = {"budgeted": (1, 2), "static": (1, 3)}.get(trained.name, model.fixed_route)
    assert model.fixed_route == wanted == tuple(row["top_route"]) and len(wanted) == 2 and settings.threshold == 0
    assert (row["routes"], row["mean_layers"], row["held_out_mean_layers"], row["top_route_share"]) == (1, 2, 2, 1)
    assert row["shuffled_metric"] == row["metric"] and row["shuffled_divergence"] == row["divergence"]
    _, routes, _ = predict_routed(model, encoded(trained, csv_files[1]), above(settings.threshold))
    assert {as_route(route) for route in routes} == {wanted}
    taught, body = load_classifier(trained.out / "stage1").state_dict(), model.classifier.state_dict()
    same = {name for name in taught if torch.equal(taught[name], body[name])}
    (idle,) = {1, 2, 3} - set(wanted)
    assert same == {name for name in taught if name.startswith(f"layers.{idle - 1}.")}


@pytest.mark.parametrize("trained", RIVALS, indirect=True)
def test_a_rival_goes_straight_to_its_budget_in_the_time_of_the_whole_way(trained):
    """Which of the paper's recipe is, to 2 of 3 layers, an epoch at 3, then two (`last_epochs`)."""
    epochs = [record for record in trained.log if record.get("phase", "").startswith("stage III")]
    assert [record["epoch"] for record in epochs] == [1, 2, 3] and len({record["phase"] for record in epochs}) == 1
    searches = [record for record in trained.log if record.get("phase") == "search"]
    assert len(searches) == (2 if trained.name == "search" else 0)
    if searches:
        costs = searches[1]["divergence"]
        route = load_student(trained.out / "budgets" / "2")[0].fixed_route
        assert len(costs) == 3 and min(costs, key=costs.__getitem__) == str(route)


@pytest.mark.parametrize("recipe", ["paper", "adaptive"])
@pytest.mark.parametrize(
    "way", [(), ("body=dedicated",), ("body=dedicated", "schedule=direct"), ("body=dedicated", "schedule_step=0.5")]
)
def test_a_rival_has_as_many_epochs_as_the_recipe_at_any_budget(recipe, way, teacher, csv_files, tmp_path):
    epochs = {}
    settings = (*QUICK, "fit_steps=1", "stage2_epochs=0", "last_epochs=2", "shared_epochs=4", "batch_size=128", *way)
    for method in ("hadskip", "budgeted"):
        out = tmp_path / method
        arguments = {"method": method, "budget": 1, "recipe": recipe, "settings": settings}
        repeat(teacher, csv_files, out, fine_tuned=True, **arguments)
        log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        epochs[method] = sum(r.get("phase", "").startswith("stage III") and "epoch" in r for r in log)
    assert epochs["hadskip"] == epochs["budgeted"]
    budgets = 1 if "schedule=direct" in way else 5 if "schedule_step=0.5" in way else 3
    assert epochs["budgeted"] == (4 if recipe == "adaptive" and not way else budgets - 1 + 2)


def test_a_stopped_run_ends_with_the_very_weights_and_figures(trained, teacher, csv_files, tmp_path):
    out = Path(shutil.copytree(trained.out, tmp_path / "run"))
    (out / "summary.json").unlink()
    last = out / "budgets" / f"{trained.arguments['budget']:g}"
    shutil.rmtree(last)
    last.with_name(f".{last.name}.part").mkdir()  # what a kill leaves
    summary = repeat(teacher, csv_files, out, resume=True, **trained.arguments)
    assert json.loads(json.dumps(summary)) == read(trained.out / "summary.json") == read(out / "summary.json")
    for folder in trained.folders:
        for file in ("model.safetensors", "config.json"):
            again = out / folder.relative_to(trained.out) / file
            assert again.read_bytes() == (folder / file).read_bytes(), again
    assert not list(out.rglob("*.part"))
    files = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    repeat(teacher, csv_files, out, resume=True, **trained.arguments)
    assert read(out / "summary.json") == read(trained.out / "summary.json")
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == files


def test_resuming_as_another_method_is_refused(trained, teacher, csv_files):
    other = {"method": "static", "route": (2, 3)} if "adaptive," not in trained.name else {"seed": 5}
    with pytest.raises(BundleError, match="--resume with another"):
        repeat(teacher, csv_files, trained.out, resume=True, **(trained.arguments | other))


# Requests that cannot be met leave nothing behind


@pytest.mark.parametrize(
    ("changes", "error", "names"),
    [
        ({"method": "magic"}, RecipeError, ["--method magic", "hadskip, joint, nested, upfront, budgeted, static"]),
        ({"route": (1, 2)}, RecipeError, ["--route", "static"]),
        ({"route": (1, 2), "method": "budgeted"}, RecipeError, ["--route", "static", "budgeted"]),
        ({"method": "budgeted", "budget": 1.5}, BudgetError, ["--budget 1.5", "budgeted"]),
        ({"method": "static", "budget": 0.5}, BudgetError, ["--budget 1.5", "static"]),
        ({"method": "static", "budget": 4}, BudgetError, ["--budget 4"]),
        ({"method": "static", "route": (1,)}, BudgetError, ["--route 1", "2 of the layers 1 to 3"]),
        ({"method": "static", "route": (1, 2, 3)}, BudgetError, ["--route 1,2,3", "2 of"]),
        ({"method": "static", "route": (2, 1)}, BudgetError, ["--route 2,1"]),
        ({"method": "static", "route": (2, 2)}, BudgetError, ["--route 2,2"]),
        ({"method": "static", "route": (0, 1)}, BudgetError, ["--route 0,1"]),
        ({"method": "static", "route": (1, 4)}, BudgetError, ["--route 1,4", "1 to 3"]),
        ({"method": "static", "route": ()}, BudgetError, ["--route"]),
        ({"recipe": "adaptiv"}, RecipeError, ["adaptiv", "paper, adaptive"]),
        ({"settings": ("family=tree",)}, RecipeError, ["family"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_an_impossible_method_is_refused_and_writes_nothing(changes, error, names, teacher, csv_files, tmp_path):
    with pytest.raises(error) as caught:
        repeat(teacher, csv_files, tmp_path / "run", **({"budget": 2, "fine_tuned": True} | changes))
    assert isinstance(caught.value, HadskipError) and "\n" not in str(caught.value)
    for name in names:
        assert name in str(caught.value)
    assert not (tmp_path / "run").exists()


# Texts without labels


def without_labels(file: Path, folder: Path, count: int | None = None) -> Path:
    rows = read_examples(file)
    return write_csv(folder / "texts.csv", [(text,) for text in rows.texts[:count]], header=("text",))


@pytest.mark.parametrize(
    "command",
    [
        {"recipe": "adaptive"},
        {"settings": (*QUICK, "last_epochs=1")},  # the paper's, with its stage II
        {"method": "static", "route": (2, 3), "settings": (*QUICK, "last_epochs=1")},
    ],
    ids=["adaptive", "paper", "static"],
)
def test_texts_without_labels_are_learned_from_the_teacher_alone(command, teacher, csv_files, tmp_path):
    files = without_labels(csv_files[0], tmp_path), csv_files[1]
    arguments = {"fine_tuned": True, "budget": 2, "settings": (*QUICK, *FITTING)} | command
    summary = repeat(teacher, files, tmp_path / "run", **arguments)
    assert summary["labels"] == ("negative", "positive") and summary["teacher"]["metric"] > 0.8
    row = summary["budgets"][-1]
    assert row["metric"] > 0.7 and row["mean_layers"] == pytest.approx(2, abs=0.35)
    run = Trained("", tmp_path / "run", arguments, summary)
    stage3 = [r for r in run.log if r.get("phase", "").startswith("stage III")]
    assert stage3 and all("prediction" in record and "task" not in record for record in stage3)


def test_without_labels_the_held_out_slice_has_the_teachers_answers(teacher, csv_files, tmp_path, monkeypatch):
    """What it decides, as the best fixed route of the weights, is decided by them."""
    seen = []

    def listening(on_evaluation, held_out, *others):
        seen.append(held_out.data)
        return Figures(on_evaluation, held_out, *others)

    monkeypatch.setattr(pipeline, "Figures", listening)
    texts = write_csv(tmp_path / "texts.csv", [(text,) for text, _ in sentences(400, 5)], header=("text",))
    arguments = {"fine_tuned": True, "method": "budgeted", "budget": 3, "settings": (*QUICK, "last_epochs=1")}
    repeat(teacher, (texts, csv_files[1]), tmp_path / "run", **arguments)
    (held,) = seen
    assert len(held) == 40 and held.targets.tolist() == full_logits(load_classifier(teacher), held).argmax(-1).tolist()
    assert set(held.targets) == {0, 1}


def test_a_file_with_labels_still_teaches_them(trained):
    stage3 = [r for r in trained.log if r.get("phase", "").startswith("stage III") and "epoch" in r]
    assert stage3 and all("task" in record and "prediction" in record for record in stage3)


def test_without_labels_and_without_a_teacher_there_is_nothing_to_learn(model_folder, csv_files, tmp_path):
    texts = without_labels(csv_files[0], tmp_path)
    with pytest.raises(DataError, match="--label-column"):
        repeat(model_folder, (texts, csv_files[1]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_figures_need_labels_or_a_teacher(model_folder, csv_files, tmp_path):
    texts = without_labels(csv_files[1], tmp_path)
    with pytest.raises(DataError, match=r"texts\.csv.*--label-column"):
        repeat(model_folder, (csv_files[0], texts), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["paper", "adaptive"])
def test_without_labels_the_teachers_predictions_must_count(recipe, teacher, csv_files, tmp_path):
    texts = without_labels(csv_files[0], tmp_path, 40)
    arguments = {"fine_tuned": True, "recipe": recipe, "settings": ("alpha1=0",), "budget": 2}
    with pytest.raises(RecipeError, match="alpha1") as caught:
        repeat(teacher, (texts, csv_files[1]), tmp_path / "run", **arguments)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("names", "labels"), [("numbers", ("0", "1")), ("generic", ("LABEL_0", "LABEL_1"))])
def test_the_evaluation_file_says_what_a_model_of_generic_labels_calls_them(
    names, labels, run_folder, csv_files, tmp_path
):
    model = as_model(tmp_path / "model", run_folder, ("LABEL_0", "LABEL_1"))
    rows = read_examples(csv_files[1])
    evaluation = write_csv(
        tmp_path / "eval.csv",
        [(t, labels[label == "positive"]) for t, label in zip(rows.texts, rows.labels, strict=True)],
    )
    files = without_labels(csv_files[0], tmp_path, 60), evaluation
    arguments = {"fine_tuned": True, "budget": 3, "method": "budgeted", "settings": (*QUICK, "last_epochs=1")}
    summary = repeat(model, files, tmp_path / "run", **arguments)
    assert summary["labels"] == labels and summary["teacher"]["metric"] > 0.8
