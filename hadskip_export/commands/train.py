"""`train`: from labelled text to a run folder with a gated student for all budgets, or one for each."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from hadskip_export.data.columns import Columns
from hadskip_export.data.problems import RANKING, Problem, ProblemType, numbered
from hadskip_export.data.runs import Summary
from hadskip_export.data.tasks import TaskData, load_task
from hadskip_export.modeling.checkpoint import digest_of_model, longest_input, own_labels, read_config, resolve_model
from hadskip_export.routing.budgets import resolve_budget
from hadskip_export.routing.routes import Route
from hadskip_export.support.errors import BundleError, DataError, RecipeError, first_line
from hadskip_export.support.progress import say
from hadskip_export.support.seeds import check_seed
from hadskip_export.trainers.methods import create_method
from hadskip_export.trainers.pipeline import Plan, run_training
from hadskip_export.trainers.processes import joined
from hadskip_export.trainers.recipe import Recipe, load_recipe
from hadskip_export.trainers.run_folder import open_run
from hadskip_export.trainers.session import check_device, fixed_threads
from hadskip_export.trainers.settings import say_unread

DEFAULT_MAX_LENGTH = 128


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
    problem_type: ProblemType | None = None,
    metric: str | None = None,
    label_thresholds: Mapping[str, float] | None = None,
    method: str = "hadskip",
    route: Route | None = None,
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    seed: int = 0,
    device: str = "cpu",
    max_length: int | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Summary:
    """Runs HadSkip's three stages, or trains a rival, and writes the run folder.

    Args:
        model: a Hugging Face BERT, local folder or hub name.
        budget: layers per input on average; below 1 a share of the layers. Of a body for all budgets it is the
            default among the operating points.
        out: the run folder to write.
        task, data_dir: a GLUE task and its folder, from the hub if left out; or
        train, eval: labelled files (see `data.rows`), with `text_column`, `pair_column`, `label_column` where the
            names do not say.
        fine_tuned: `model` already is the classifier: stage I is skipped and it is the teacher. Neither file needs
            labels then: figures of an `eval` without any are the agreement with the teacher.
        problem_type: what the labels are, see `Problem`; that of a fine-tuned model, or several for each text where the
            training file has lists, else one.
        metric: a name in `data.metrics.METRICS`; the usual one of the task or the problem if left out.
        label_thresholds: of several labels at once, label -> the probability above which it is given; 0.5 if left out.
        method: one of `trainers.methods.METHODS`, or `hadskip`, which is the one that the recipe's `routing` names:
            `joint` or `nested`. The rivals are distilled alike from as many samples. Two run one route for all:
            `budgeted`, the first `budget` layers, and `static`, the best ones, whose search has an epoch of its own.
            The others have an exit after each layer, at which an input may leave (`methods.early_exit`).
        route: of `static`, the layers to run, from 1, instead of a search for the best.
        recipe, settings: a shipped recipe or a TOML file, and `key=value` overrides, see `load_recipe`.
        resume: go on where the same command was stopped, on one machine's CPU to the same weights, bit for bit; or
        force: remove the run that `out` is, and begin anew.
        max_length: tokens per input; what the model and its tokenizer take, but at most 128, if left out.

    Returns:
        summary.json.

    Raises:
        HadskipError: see `load_task`, `load_recipe`, `load_classifier`, `open_run`, `resolve_budget`.
        RecipeError: a seed that is none; labels missing and no loss left that could do without; see `create_method`.
    """
    check_seed(seed)
    if force:
        _check_force(Path(out), resume, {"--model": model, "--data-dir": data_dir, "--train": train, "--eval": eval})
    chosen = load_recipe(recipe, settings)
    columns = Columns(text_column, pair_column, label_column)
    folder, data = read_asked(
        model=model, fine_tuned=fine_tuned, task=task, data_dir=data_dir, train=train, eval=eval,
        problem_type=problem_type, metric=metric, columns=columns,
    )  # fmt: skip
    data = replace(data, problem=data.problem.with_thresholds(label_thresholds or {}))
    labels = data.problem.labels
    if not fine_tuned and _are_the_same(own_labels(folder), labels):
        say(
            f"{model} is a classifier of {', '.join(labels)} already, and its own classifier is replaced by a new"
            " one; give --fine-tuned to keep it"
        )
    if data.problem.type == RANKING and isinstance(data.train.texts[0], str):
        say("single texts, and no pairs: each is scored by itself; --pair-column names the documents of a query")
    config = read_config(folder, labels, data.problem.type)
    layers = resolve_budget(budget, config.num_layers)
    if layers == config.num_layers:
        say(f"--budget {budget:g} is all layers of the model: nothing will be skipped")
    longest = longest_input(folder, config)
    length = max_length or min(DEFAULT_MAX_LENGTH, longest)
    if max_length is None and longest < min(DEFAULT_MAX_LENGTH, config.most_tokens):
        say(f"{folder}: its tokenizer cuts texts at {longest} tokens (model_max_length), and so does the bundle")
    if max_length is not None and not 8 <= max_length <= config.most_tokens:
        raise DataError(f"--max-length {max_length}: expected 8 to {config.most_tokens}")
    check_teaching(data, chosen)
    learner = create_method(method, chosen, {"route": route})
    learner.check(chosen, layers, config)
    say_unread(settings, learner, chosen, fine_tuned=fine_tuned)
    identity: dict[str, Any] = {
        "model": str(model),
        "model_digest": digest_of_model(folder),
        "budget": layers,
        "method": method,
        "route": route,
        "task": data.name,
        "metric": data.metric,
        "labels": labels,
        "problem_type": data.problem.type,
        "label_thresholds": data.problem.thresholds,
        "train": train or data_dir,
        "eval": eval or data_dir,
        "data": data.digest(),
        "fine_tuned": fine_tuned,
        "seed": seed,
        "max_length": length,
        "recipe": asdict(chosen),
        "device": device,
        "threads": torch.get_num_threads(),
    }
    plan = Plan(
        model=folder, config=config, data=data, recipe=chosen, method=learner, method_name=method, budget=layers,
        seed=seed, device=device, max_length=length, fine_tuned=fine_tuned,
    )  # fmt: skip
    with joined(device) as processes, ExitStack() as opened:
        check_device(device)
        identity["processes"] = processes.count
        if processes.rank:
            copy = opened.enter_context(processes.copy_of(Path(out)))
            run = opened.enter_context(open_run(copy, identity, resume=True))
        else:
            run = opened.enter_context(open_run(Path(out), identity, resume, force))
            processes.let_copy()
        opened.enter_context(fixed_threads(run.threads))
        try:
            return run_training(replace(plan, processes=processes), run)
        except torch.OutOfMemoryError as error:
            raise RecipeError(
                f"--device {device}: too little memory ({first_line(error)}); if others use it, go on with --resume"
                f" when they are done, else train anew with batch_size below {chosen.batch_size} and accumulate=N to"
                " make up for it (--set)"
            ) from error


def read_asked(
    *,
    model: str,
    fine_tuned: bool,
    task: str | None,
    data_dir: str | None,
    train: str | None,
    eval: str | None,
    problem_type: ProblemType | None,
    metric: str | None,
    columns: Columns,
) -> tuple[Path, TaskData]:
    """The folder of the model and what is to be learned, see `train`."""
    folder = resolve_model(model)
    own = read_config(folder) if fine_tuned else None
    known = None if own is None else Problem(own.problem_type, own.labels)
    data = load_task(
        task=task, data_dir=data_dir, train=train, evaluation=eval, columns=columns, known=known,
        problem_type=problem_type, metric=metric,
    )  # fmt: skip
    return folder, data


def check_teaching(data: TaskData, recipe: Recipe) -> None:
    """
    Raises:
        RecipeError: neither labels nor a teacher to learn from.
    """
    if not data.train.labels and not recipe.alpha1:
        raise RecipeError("alpha1=0: training texts without labels are learned from the teacher's predictions alone")


def _check_force(out: Path, resume: bool, inputs: dict[str, str | None]) -> None:
    """
    Raises:
        BundleError: what is to be trained from lies in what `--force` would remove; or there is nothing to decide.
    """
    if resume:
        raise BundleError("--force: removes the run that --resume would go on with; leave one of them out")
    for option, given in inputs.items():
        if given is not None and Path(given).resolve().is_relative_to(out.resolve()):
            raise BundleError(f"{option} {given}: lies in {out}, which --force removes; choose another --out")


def _are_the_same(own: tuple[str, ...] | None, labels: tuple[str, ...]) -> bool:
    """Whether a model's own classes are those of the task, in any order."""
    return own is not None and set(numbered(own)) == set(numbered(labels))
