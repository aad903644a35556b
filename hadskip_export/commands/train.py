"""`train`: from labelled text to a run folder with one gated checkpoint per budget."""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hadskip_export.data.metrics import METRICS
from hadskip_export.data.tables import Columns
from hadskip_export.data.tasks import TaskData, hold_out, load_task
from hadskip_export.modeling.checkpoint import (
    GateSettings,
    load_classifier,
    load_gated,
    read_config,
    resolve_model,
    save_classifier,
    save_gated,
    save_tokenizer,
)
from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.budgets import budget_name, resolve_budget
from hadskip_export.routing.routes import Route, is_route
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.errors import BudgetError, DataError, HadskipError, RecipeError, first_line
from hadskip_export.support.progress import say
from hadskip_export.trainers.batches import Dataset, encode
from hadskip_export.trainers.evaluation import full_logits, predict_full
from hadskip_export.trainers.methods import METHODS, Learn, learn_best_fixed, learn_fixed, learn_jointly, learn_nested
from hadskip_export.trainers.recipe import Recipe, load_recipe
from hadskip_export.trainers.run_folder import RunFolder, finished_folder, open_run, write_json, write_texts
from hadskip_export.trainers.schedule import homotopy
from hadskip_export.trainers.stages import Session, fine_tune, initialise_gates
from hadskip_export.trainers.summary import budget_row
from hadskip_export.trainers.teacher import Teacher
from hadskip_export.trainers.threshold import fit_threshold

PARITY_TEXTS = 500


def train(
    *,
    model: str,
    budget: float,
    out: str | Path,
    task: str | None = None,
    data_dir: str | None = None,
    train: str | None = None,
    eval: str | None = None,
    fine_tuned: bool = False,
    method: str = "hadskip",
    route: Route | None = None,
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    seed: int = 0,
    device: str = "cpu",
    max_length: int | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> dict[str, Any]:
    """Runs HadSkip's three stages, or trains a rival, and writes the run folder.

    Args:
        model: a Hugging Face BERT, local folder or hub name.
        budget: layers per input on average; below 1 a share of the layers.
        out: the run folder to write.
        task, data_dir: a GLUE task and its folder, from the hub if left out; or
        train, eval: labelled CSV, TSV or JSONL files, with `text_column`, `pair_column`, `label_column` where the
            names do not say.
        fine_tuned: `model` already is the classifier: stage I is skipped and it is the teacher.
        method: `hadskip`; or a rival of one route, distilled alike from as many samples: `budgeted`, the first
            `budget` layers, or `static`, the best ones, whose search has an epoch of its own.
        route: of `static`, the layers to run, from 1, instead of a search for the best.
        recipe, settings: a shipped recipe or a TOML file, and `key=value` overrides, see `load_recipe`.
        resume: go on after the last finished stage or budget of the same command.
        max_length: tokens per input; the model's maximum, but at most 128, if left out.

    Returns:
        summary.json as a dictionary.

    Raises:
        HadskipError: see `load_task`, `load_recipe`, `load_classifier`, `open_run`, `resolve_budget`.
        RecipeError: labels missing and no loss left that could do without, see also `_method`.
    """
    chosen = load_recipe(recipe, settings)
    folder = resolve_model(model)
    known = read_config(folder).labels if fine_tuned else None
    data = load_task(task, data_dir, train, eval, Columns(text_column, pair_column, label_column), known)
    config = read_config(folder, data.labels)
    layers = resolve_budget(budget, config.num_layers)
    length = min(max_length or 128, config.max_positions)
    if max_length is not None and not 8 <= max_length <= config.max_positions:
        raise DataError(f"--max-length {max_length}: expected 8 to {config.max_positions}")
    if not data.train.labels and not chosen.alpha1:
        raise RecipeError("alpha1=0: training texts without labels are learned from the teacher's predictions alone")
    learn = _method(method, route, layers, config.num_layers, chosen)
    check_device(device)
    identity = {
        "model": str(model),
        "budget": layers,
        "method": method,
        "route": route,
        "task": data.name,
        "metric": data.metric,
        "labels": data.labels,
        "train": train or data_dir,
        "eval": eval or data_dir,
        "data": data.digest(),
        "fine_tuned": fine_tuned,
        "seed": seed,
        "max_length": length,
        "recipe": asdict(chosen),
    }
    with open_run(Path(out), identity, resume) as run:
        try:
            return _run(run, folder, data, chosen, layers, method, learn, seed, device, length, fine_tuned)
        except torch.OutOfMemoryError as error:
            raise RecipeError(
                f"--device {device}: too little memory ({first_line(error)}); if others use it, go on with --resume"
                f" when they are done, else train anew with batch_size below {chosen.batch_size} and accumulate=N to"
                " make up for it (--set)"
            ) from error


def _method(method: str, route: Route | None, budget: float, num_layers: int, recipe: Recipe) -> Learn:
    """
    Raises:
        RecipeError: no such method, or a route that it has no use for.
        BudgetError: a rival with a budget that is no whole number of layers, or not that of its route.
    """
    if method not in METHODS:
        raise RecipeError(f"--method {method}: not known; there are {', '.join(METHODS)}")
    if route is not None and method != "static":
        raise RecipeError(f"--route goes with --method static, not with {method}")
    if method == "hadskip":
        return learn_jointly if recipe.routing == "joint" else learn_nested
    if not float(budget).is_integer():
        raise BudgetError(
            f"--budget {budget:g}: --method {method} runs the same layers for all, a whole number of them"
        )
    if method == "budgeted":
        return learn_fixed(tuple(range(1, int(budget) + 1)))
    if route is None:
        return learn_best_fixed
    if len(route) != budget or not is_route(route, num_layers):
        raise BudgetError(f"--route {','.join(map(str, route))}: expected {budget:g} of the layers 1 to {num_layers}")
    return learn_fixed(route)


def _path(recipe: Recipe, method: str, budget: float, num_layers: int) -> list[tuple[float, int]]:
    """(budget, epochs) one after the other. A rival goes straight to its budget, with the epochs of the whole way."""
    path = [budget] if recipe.schedule == "direct" else homotopy(budget, num_layers, recipe.schedule_step)
    steps = [(passed, recipe.epochs) for passed in path[:-1]] + [(budget, recipe.last_epochs)]
    return steps if method == "hadskip" else [(budget, sum(epochs for _, epochs in steps))]


def check_device(device: str) -> None:
    """
    Raises:
        HadskipError: torch cannot compute on `device` here.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HadskipError(f"--device {device}: {first_line(error)}") from error


def _run(
    run: RunFolder,
    source: Path,
    data: TaskData,
    recipe: Recipe,
    budget: float,
    method: str,
    learn: Learn,
    seed: int,
    device: str,
    length: int,
    fine_tuned: bool,
) -> dict[str, Any]:
    save_tokenizer(source, run.tokenizer)
    tokenizer = Tokenizer(run.tokenizer, length)
    rows, held_rows = hold_out(len(data.train), seed)
    held_examples = data.train[held_rows.tolist()]
    missing = max(0, PARITY_TEXTS - len(held_examples))
    write_texts(run.texts, held_examples.texts + data.evaluation.texts[:missing])
    training = data.train[rows.tolist()]
    held_out = encode(tokenizer, held_examples.texts, data.indices(held_examples))
    evaluation = encode(tokenizer, data.evaluation.texts, data.indices(data.evaluation))
    other = data.mismatched
    mismatched = encode(tokenizer, other.texts, data.indices(other)) if other else None
    session = Session(
        encode(tokenizer, training.texts, data.indices(training)), held_out, recipe, seed, device, run.log, data.metric
    )
    say(f"{len(session.data)} sentences to train on, {len(held_out)} held out, {len(evaluation)} to evaluate on")

    classifier = _teacher(run, source, data, session, fine_tuned, seed).to(device)
    score = METRICS[data.metric]
    if not data.train.labels:
        say("the training texts have no labels: the student learns from the teacher alone")
        held_out = replace(held_out, labels=predict_full(classifier, held_out, device))
        session = replace(session, held_out=held_out)
    answers = full_logits(classifier, evaluation, device)
    teacher_metric = score(answers.argmax(-1), evaluation.labels)
    say(f"teacher: {data.metric} {teacher_metric:.4f}")
    teacher = Teacher(classifier, session.data, device)
    model = _initial_gates(run, teacher, session, stage2=method == "hadskip").to(device)
    summary: dict[str, Any] = {
        "task": data.name,
        "metric": data.metric,
        "labels": data.labels,
        "method": method,
        "layers": len(classifier.layers),
        "max_length": length,
        "teacher": {"metric": teacher_metric},
        "budgets": [],
    }
    if mismatched:
        predicted = predict_full(classifier, mismatched, device)
        summary["teacher"]["mismatched_metric"] = score(predicted, mismatched.labels)
    previous = float(len(classifier.layers))
    for passed, epochs in _path(recipe, method, budget, len(classifier.layers)):
        model, row = _one_budget(
            run, learn, model, teacher, previous, passed, epochs, session, evaluation, mismatched, answers
        )
        previous = passed
        summary["budgets"].append(row)
    write_json(run.summary, summary)
    return summary


def _teacher(run: RunFolder, source: Path, data: TaskData, session: Session, fine_tuned: bool, seed: int) -> Classifier:
    """Stage I, or the user's own fine-tuned classifier; either way it then lies in stage1/."""
    if run.stage1.is_dir():
        say("stage I: done before")
        return load_classifier(run.stage1)
    if fine_tuned:
        model = load_classifier(source)
        if model.config.labels != data.labels:
            model.config = replace(model.config, labels=data.labels)
    else:
        model = load_classifier(source, data.labels, seed).to(session.device)
        torch.manual_seed(seed)
        fine_tune(model, session)
    with finished_folder(run.stage1) as part:
        save_classifier(model, part)
    return model


def _initial_gates(run: RunFolder, teacher: Teacher, session: Session, stage2: bool) -> GatedClassifier:
    """A copy of the teacher with gates, which have learned by themselves where the recipe has a stage II."""
    recipe = session.recipe
    if run.stage2.is_dir():
        say("stage II: done before")
        return load_gated(run.stage2)[0]
    torch.manual_seed(session.seed + 1)
    body = copy.deepcopy(teacher.model).requires_grad_(True)
    model = GatedClassifier(body, recipe.gate_width, recipe.gate_bias).to(session.device)
    if not stage2 or not recipe.stage2_epochs:
        return model.eval()
    initialise_gates(model, teacher, session)
    with finished_folder(run.stage2) as part:
        save_gated(model, GateSettings(recipe.gate_width, 0.0, len(model.gates)), part)
    return model


def _one_budget(
    run: RunFolder,
    learn: Learn,
    model: GatedClassifier,
    teacher: Teacher,
    previous: float,
    budget: float,
    epochs: int,
    session: Session,
    evaluation: Dataset,
    mismatched: Dataset | None,
    answers: np.ndarray,
) -> tuple[GatedClassifier, dict[str, Any]]:
    """Stage III at one budget, its threshold and its figures."""
    recipe, device, folder = session.recipe, session.device, run.budget(budget)
    if folder.is_dir():
        say(f"stage III, budget {budget_name(budget)}: done before")
        return load_gated(folder)[0].to(device), json.loads((folder / "metrics.json").read_text())["evaluation"]
    torch.manual_seed(session.seed + 2 + round(100 * budget))
    model = learn(model, teacher, previous, budget, epochs, session)
    texts = evaluation if recipe.threshold_on == "evaluation" else session.held_out
    threshold = 0.0 if model.fixed_route else fit_threshold(model, texts, budget, device)
    row, held_out = budget_row(
        model, threshold, budget, answers, session.metric, session.held_out, evaluation, mismatched, device
    )
    with finished_folder(folder) as part:
        save_gated(model, GateSettings(recipe.gate_width, threshold, budget), part)
        write_json(part / "metrics.json", {"evaluation": row, "held_out": asdict(held_out)})
    run.log(phase="evaluation", **row)
    say(
        f"budget {budget_name(budget)}: {session.metric} {row['metric']:.4f} at"
        f" {row['mean_layers']:.2f} layers, {row['routes']} routes"
    )
    return model, row
