"""A whole training: stage I, stage II, then stage III and its figures at each budget on the way.

What a stopped run has finished is read from its folder instead of being done again.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from hadskip_export.data.examples import Examples, names_in
from hadskip_export.data.problems import RANKING, SINGLE, Label, Problem, groups_of
from hadskip_export.data.runs import BudgetFigures, Summary, TeacherFigures, read_json
from hadskip_export.data.tasks import TaskData, hold_out
from hadskip_export.modeling.checkpoint import (
    StudentSettings,
    load_classifier,
    load_student,
    load_tokenizer,
    save_classifier,
    save_student,
    save_tokenizer,
)
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.exits import Student
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.budgets import budget_name
from hadskip_export.routing.routes import RouteStatistics
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.progress import say
from hadskip_export.support.words import counted
from hadskip_export.trainers.batches import Dataset, count_batches, encode
from hadskip_export.trainers.checkpoints import Checkpoints
from hadskip_export.trainers.display import Display
from hadskip_export.trainers.evaluation import full_logits
from hadskip_export.trainers.methods.base import Method
from hadskip_export.trainers.objective import Objective
from hadskip_export.trainers.outcomes import find_outcomes
from hadskip_export.trainers.processes import Processes
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.run_folder import RunFolder, finished_folder, is_finished, write_json, write_texts
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Evaluation, Session
from hadskip_export.trainers.stages import fine_tune, initialise_gates
from hadskip_export.trainers.summary import Figures
from hadskip_export.trainers.teacher import Teacher
from hadskip_export.verification.original import check_same_as_original

PARITY_TEXTS = 500


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be trained.

    Args:
        model: the folder of the pretrained model or, where `fine_tuned`, of the user's own classifier.
        config: of that model, with the task's labels.
        method_name: as it was asked for, for the summary.
        budget: in layers.
        max_length: tokens per input.
    """

    model: Path
    config: EncoderConfig
    data: TaskData
    recipe: Recipe
    method: Method
    method_name: str
    budget: float
    seed: int
    device: str
    max_length: int
    fine_tuned: bool
    processes: Processes = field(default_factory=Processes)

    @property
    def path(self) -> list[Leg]:
        return self.method.path(self.recipe, self.budget, self.config.num_layers)


def run_training(plan: Plan, run: RunFolder) -> Summary:
    """Carries out `plan` in `run`, or what is left of it to do, and returns summary.json."""
    data, device = plan.data, plan.device
    session, inputs, mismatched = _tokenise(plan, run)
    classifier = _classifier(plan, session, run).to(device)
    if not data.train.labels:
        say("the training texts have no labels: the student learns from the teacher alone")
        session = _taught(classifier, session)
    logits = full_logits(classifier, inputs, device)
    if not data.evaluation.labels:
        say(f"{data.evaluated_on} has no labels: the figures say how often the student agrees with the teacher")
        inputs = replace(inputs, targets=data.problem.decide(logits))
    evaluation = Evaluation(data=inputs, teacher_logits=logits, mismatched=mismatched)
    figures = _teacher_figures(classifier, evaluation, session)
    if data.evaluation.labels:
        say(f"teacher: {data.metric} {figures['metric']:.4f}")
    teacher, num_layers = Teacher(classifier, session.data, device), len(classifier.layers)
    model = _initial_gates(teacher, session, run, stage2=plan.method.initialises_gates).to(device)
    stage3 = _Stage3(method=plan.method, teacher=teacher, session=session, evaluation=evaluation, run=run)
    summary: Summary = {
        "task": data.name,
        "metric": data.metric,
        "evaluated_on": data.evaluated_on,
        "labels": data.problem.labels,
        "problem_type": data.problem.type,
        "label_thresholds": data.problem.thresholds,
        "method": plan.method_name,
        "layers": num_layers,
        "max_length": plan.max_length,
        "teacher": figures,
        "budgets": stage3.train(model, plan.path),
    }
    write_json(run.summary, summary)
    session.checkpoints.clear()  # of a phase after which it was stopped
    return summary


def _tokenise(plan: Plan, run: RunFolder) -> tuple[Session, Dataset, Dataset | None]:
    """The session, the evaluation data and MNLI's second ones; tokenizer and texts for the parity check are kept."""
    if not is_finished(run.tokenizer.parent):
        with finished_folder(run.tokenizer.parent) as part:
            save_tokenizer(plan.model, part / run.tokenizer.name)
    data, tokenizer = plan.data, _tokenizer(plan, run)

    def encoded(examples: Examples) -> Dataset:
        return encode(tokenizer, examples.texts, data.problem.targets(examples.labels))

    groups = groups_of(data.train.texts) if data.problem.type == RANKING else None
    training, held_out = (data.train[rows.tolist()] for rows in hold_out(len(data.train), plan.seed, groups))
    missing = max(0, PARITY_TEXTS - len(held_out))
    write_texts(run.texts, held_out.texts + data.evaluation.texts[:missing])
    dataset = encoded(training)
    session = Session(
        data=dataset, held_out=encoded(held_out), recipe=plan.recipe, seed=plan.seed, device=plan.device,
        log=run.log, problem=data.problem, objective=Objective.of(data.problem.type, dataset.targets),
        metric=data.metric, checkpoints=Checkpoints(run.checkpoints, saves=not plan.processes.rank),
        display=Display(_epochs_left(plan, run) * count_batches(dataset, plan.recipe.batch_size)),
        processes=plan.processes,
    )  # fmt: skip
    inputs, mismatched = encoded(data.evaluation), encoded(data.mismatched) if data.mismatched else None
    say(f"{counted(len(training), 'text')} to train on, {len(held_out)} held out, {len(inputs)} to evaluate on")
    if data.train.labels:
        say(_about_labels(data.problem, data.train.labels))
    return session, inputs, mismatched


def _epochs_left(plan: Plan, run: RunFolder) -> int:
    """Of all phases that are not finished."""
    recipe = plan.recipe
    stage1 = 0 if plan.fine_tuned or run.stage1.is_dir() else recipe.stage1_epochs
    stage2 = 0 if not plan.method.initialises_gates or run.stage2.is_dir() else recipe.stage2_epochs
    return stage1 + stage2 + sum(leg.epochs for leg in plan.path if not run.student(leg.budget).is_dir())


def _about_labels(problem: Problem, labels: Sequence[Label]) -> str:
    if problem.is_score:
        numbers = np.array(labels, np.float64)
        return f"{problem.type}: {numbers.min():g} to {numbers.max():g}, mean {numbers.mean():.3g}"
    counts = Counter(name for label in labels for name in names_in(label))
    kind = "classes" if problem.type == SINGLE else "labels"
    without = "" if problem.type == SINGLE else f", without any {sum(not label for label in labels)}"
    return f"{kind}: {', '.join(f'{label} {counts[label]}' for label in problem.labels)}{without}"


def _taught(classifier: Classifier, session: Session) -> Session:
    """Of texts without labels: with the teacher's answers as those of the held-out slice."""
    logits = full_logits(classifier, session.held_out, session.device)
    held_out = replace(session.held_out, targets=session.problem.decide(logits))
    return replace(session, held_out=held_out, objective=Objective.of(session.problem.type, held_out.targets))


def _teacher_figures(classifier: Classifier, evaluation: Evaluation, session: Session) -> TeacherFigures:
    figures: TeacherFigures = {"metric": session.score(evaluation.teacher_logits, evaluation.data)}
    if other := evaluation.mismatched:
        figures["mismatched_metric"] = session.score(full_logits(classifier, other, session.device), other)
    return figures


def _classifier(plan: Plan, session: Session, run: RunFolder) -> Classifier:
    """Stage I, or the user's own fine-tuned classifier; either way it then lies in stage1/."""
    if is_finished(run.stage1):
        say("stage I: done before")
        return load_classifier(run.stage1)
    labels, kind = plan.data.problem.labels, plan.data.problem.type
    model = load_classifier(plan.model, None if plan.fine_tuned else labels, plan.seed, kind)
    check_same_as_original(
        plan.model, _tokenizer(plan, run), model, plan.data.evaluation.texts, fine_tuned=plan.fine_tuned
    )
    if not plan.fine_tuned:
        fine_tune(model.to(session.device), session)
    elif model.config.labels != labels:
        model.config = replace(model.config, labels=labels)
    with finished_folder(run.stage1) as part:  # a model folder like any other
        save_classifier(model, part)
        load_tokenizer(plan.model).save_pretrained(part)
    session.checkpoints.clear()
    return model


def _tokenizer(plan: Plan, run: RunFolder) -> Tokenizer:
    return Tokenizer(run.tokenizer, plan.max_length, plan.config.vocab_size, plan.config.type_vocab_size)


def _initial_gates(teacher: Teacher, session: Session, run: RunFolder, stage2: bool) -> GatedClassifier:
    """A copy of the teacher with gates, which have learned by themselves where the recipe has a stage II."""
    recipe = session.recipe
    if is_finished(run.stage2):
        say("stage II: done before")
        return load_student(run.stage2)[0]
    torch.manual_seed(session.seed + 1)
    body = copy.deepcopy(teacher.model).requires_grad_(True)
    model = GatedClassifier(body, recipe.gate_width, recipe.gate_bias).to(session.device)
    if not stage2 or not recipe.stage2_epochs:
        return model.eval()
    initialise_gates(model, teacher, session)
    with finished_folder(run.stage2) as part:
        save_student(model, StudentSettings(recipe.gate_width, 0.0, len(model.gates)), part)
    session.checkpoints.clear()
    return model


@dataclass(frozen=True, kw_only=True)
class _Stage3:
    """Stage III: what stays the same from one budget to the next."""

    method: Method
    teacher: Teacher
    session: Session
    evaluation: Evaluation
    run: RunFolder

    def train(self, model: Student, path: Sequence[Leg]) -> list[BudgetFigures]:
        """Trains along the path and returns the figures of every budget that a student of it keeps."""
        rows: list[BudgetFigures] = []
        for leg in path:
            model, kept = self._train_student(model, leg)
            rows += kept
        return rows

    def _train_student(self, model: Student, leg: Leg) -> tuple[Student, list[BudgetFigures]]:
        """A student, its thresholds and its figures."""
        session, folder = self.session, self.run.student(leg.budget)
        if is_finished(folder):
            say(f"{leg.name}: done before")
            done: list[BudgetFigures] = read_json(folder / "metrics.json")["evaluation"]
            return load_student(folder)[0].to(session.device), done
        model = self.method.learn(model, self.teacher, leg, session)
        rows, held_out = self._figures(model, leg)
        threshold = next(row["threshold"] for row in rows if row["budget"] == leg.budget)
        with finished_folder(folder) as part:
            save_student(model, StudentSettings(session.recipe.gate_width, threshold, leg.budget), part)
            write_json(part / "metrics.json", {"evaluation": rows, "held_out": {"routes": held_out}})
        session.checkpoints.clear()
        for row in rows:
            self.run.log(phase="evaluation", **row)
            say(
                f"budget {budget_name(row['budget'])}: {session.metric} {row['metric']:.4f} at"
                f" {row['mean_layers']:.2f} layers, {counted(row['routes'], 'route')}"
            )
        return model, rows

    def _figures(self, model: Student, leg: Leg) -> tuple[list[BudgetFigures], list[RouteStatistics]]:
        """Of every budget that the student keeps."""
        session = self.session
        family = self.method.family(session.recipe, leg, len(model.classifier.layers))
        of = {
            "evaluation": find_outcomes(model, self.evaluation.data, family, session.device),
            "held-out": find_outcomes(model, session.held_out, family, session.device),
        }
        figures = Figures(of["evaluation"], of["held-out"], self.evaluation, session)
        meets = of[session.recipe.threshold_on]
        thresholds = [meets.threshold(budget) if self.method.fits_threshold else 0.0 for budget in leg.kept]
        found = [figures.row(*at) for at in zip(leg.kept, thresholds, strict=True)]
        rows: list[BudgetFigures] = [{**row, "student": leg.budget} for row, _ in found]
        return rows, [held_out for _, held_out in found]
