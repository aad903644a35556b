"""`train`: from labelled text to a run folder with one gated checkpoint per budget."""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from hadskip_export.errors import DataError, HadskipError, first_line
from hadskip_export.metrics import METRICS
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
from hadskip_export.progress import say
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.tables import Columns
from hadskip_export.trainers.batches import Dataset, encode
from hadskip_export.trainers.evaluation import predict_full
from hadskip_export.trainers.recipe import Recipe, load_recipe
from hadskip_export.trainers.run_folder import RunFolder, finished_folder, open_run, write_json, write_texts
from hadskip_export.trainers.schedule import budget_name, homotopy, resolve_budget
from hadskip_export.trainers.stages import Session, fine_tune, initialise_gates, train_jointly
from hadskip_export.trainers.summary import budget_row
from hadskip_export.trainers.tasks import TaskData, hold_out, load_task
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
    """Runs HadSkip's three stages and writes the run folder.

    Args:
        model: a Hugging Face BERT, local folder or hub name.
        budget: layers per input on average; below 1 a share of the layers.
        out: the run folder to write.
        task, data_dir: a GLUE task and its folder, from the hub if left out; or
        train, eval: labelled CSV, TSV or JSONL files, with `text_column`, `pair_column`, `label_column` where the
            names do not say.
        fine_tuned: `model` already is the classifier: stage I is skipped and it is the teacher.
        recipe, settings: a TOML file and `key=value` overrides, see `Recipe`.
        resume: go on after the last finished stage or budget of the same command.
        max_length: tokens per input; the model's maximum, but at most 128, if left out.

    Returns:
        summary.json as a dictionary.

    Raises:
        HadskipError: see `load_task`, `load_recipe`, `load_classifier`, `open_run`, `resolve_budget`.
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
    check_device(device)
    identity = {
        "model": str(model),
        "budget": layers,
        "task": data.name,
        "metric": data.metric,
        "labels": data.labels,
        "train": train or data_dir,
        "eval": eval or data_dir,
        "fine_tuned": fine_tuned,
        "seed": seed,
        "max_length": length,
        "recipe": asdict(chosen),
    }
    with open_run(Path(out), identity, resume) as run:
        return _run(run, folder, data, chosen, layers, seed, device, length, fine_tuned)


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

    teacher = _teacher(run, source, data, session, fine_tuned, seed).to(device)
    score = METRICS[data.metric]
    teacher_metric = score(predict_full(teacher, evaluation, device), evaluation.labels)
    say(f"teacher: {data.metric} {teacher_metric:.4f}")
    model = _initial_gates(run, teacher, session).to(device)
    summary: dict[str, Any] = {
        "task": data.name,
        "metric": data.metric,
        "labels": data.labels,
        "layers": len(teacher.layers),
        "max_length": length,
        "teacher": {"metric": teacher_metric},
        "budgets": [],
    }
    if mismatched:
        predicted = predict_full(teacher, mismatched, device)
        summary["teacher"]["mismatched_metric"] = score(predicted, mismatched.labels)
    path = homotopy(budget, len(teacher.layers))
    for previous, step in zip([path[0], *path], path, strict=False):
        model, row = _one_budget(
            run, model, teacher, previous, step, step == budget, session, evaluation, mismatched, teacher_metric
        )
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


def _initial_gates(run: RunFolder, teacher: Classifier, session: Session) -> GatedClassifier:
    """Stage II on a copy of the teacher."""
    recipe = session.recipe
    if run.stage2.is_dir():
        say("stage II: done before")
        return load_gated(run.stage2)[0]
    torch.manual_seed(session.seed + 1)
    model = GatedClassifier(copy.deepcopy(teacher), recipe.gate_width, recipe.gate_bias).to(session.device)
    initialise_gates(model, session)
    with finished_folder(run.stage2) as part:
        save_gated(model, GateSettings(recipe.gate_width, 0.0, len(model.gates)), part)
    return model


def _one_budget(
    run: RunFolder,
    model: GatedClassifier,
    teacher: Classifier,
    previous: float,
    budget: float,
    last: bool,
    session: Session,
    evaluation: Dataset,
    mismatched: Dataset | None,
    teacher_metric: float,
) -> tuple[GatedClassifier, dict[str, Any]]:
    """Stage III at one budget, its threshold and its figures."""
    recipe, device, folder = session.recipe, session.device, run.budget(budget)
    if folder.is_dir():
        say(f"stage III, budget {budget_name(budget)}: done before")
        return load_gated(folder)[0].to(device), json.loads((folder / "metrics.json").read_text())["evaluation"]
    torch.manual_seed(session.seed + 2 + round(100 * budget))
    epochs = recipe.last_epochs if last else recipe.epochs
    train_jointly(model, teacher, previous, budget, epochs, session)
    threshold = fit_threshold(model, session.held_out, budget, device)
    row, held_out = budget_row(
        model, threshold, budget, teacher_metric, session.metric, session.held_out, evaluation, mismatched, device
    )
    with finished_folder(folder) as part:
        save_gated(model, GateSettings(recipe.gate_width, threshold, budget), part)
        write_json(part / "metrics.json", {"evaluation": row, "held_out": asdict(held_out)})
    run.log(phase="evaluation", **row)
    say(
        f"budget {budget_name(budget)}: {session.metric} {row['metric']:.4f} (teacher {teacher_metric:.4f}) at"
        f" {row['mean_layers']:.2f} layers, {row['routes']} routes"
    )
    return model, row
