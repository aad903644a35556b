"""A run folder for who reads it: what lies where, and what its training came to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from hadskip_export.data.problems import ProblemType
from hadskip_export.data.text import Text
from hadskip_export.routing.budgets import budget_name, keeps, resolve_budget
from hadskip_export.routing.routes import Route
from hadskip_export.support.digests import check_digests
from hadskip_export.support.errors import BudgetError, BundleError


class TeacherFigures(TypedDict):
    """Full BERT's metric on the evaluation data, and on MNLI's second ones."""

    metric: float
    mismatched_metric: NotRequired[float]


class BudgetFigures(TypedDict):
    """A budget's row of summary.json, see `trainers.summary.Figures.row`. Routes are layers numbered from 1."""

    budget: float
    mean_layers: float
    mean_layers_se: float
    metric: float
    retained: float | None
    threshold: float
    routes: int
    route_entropy_bits: float
    top_route: Route
    top_route_share: float
    top_route_metric: float
    static_route: Route
    static_metric: float
    divergence: float
    exact_metric: NotRequired[float | None]
    exact_divergence: NotRequired[float | None]
    shuffled_metric: float
    shuffled_divergence: float
    hindsight_divergence: NotRequired[float | None]
    skill: NotRequired[float | None]
    commonest_routes: list[tuple[Route, float]]
    usage: list[float]
    histogram: list[float]
    held_out_mean_layers: float
    mismatched_metric: NotRequired[float]
    student: NotRequired[float]  # the budget whose name its checkpoint has; its own if left out


class Summary(TypedDict):
    """summary.json, the figures of a run: a row for every budget on the way. `metric` is `AGREEMENT`, that with the
    teacher, where the evaluation texts had no labels."""

    task: str
    metric: str
    evaluated_on: NotRequired[str]
    labels: tuple[str, ...]
    problem_type: NotRequired[ProblemType]
    label_thresholds: NotRequired[tuple[float, ...]]
    method: str
    layers: int
    max_length: int
    teacher: TeacherFigures
    budgets: list[BudgetFigures]


@dataclass(frozen=True)
class RunPaths:
    """Paths inside a run folder."""

    path: Path

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer" / "tokenizer.json"

    @property
    def recipe(self) -> Path:
        """Everything the result depends on, written before the training begins."""
        return self.path / "recipe.json"

    @property
    def summary(self) -> Path:
        """The figures, written when the training has finished."""
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def stage1(self) -> Path:
        """The fine-tuned BERT."""
        return self.path / "stage1"

    @property
    def stage2(self) -> Path:
        return self.path / "stage2"

    @property
    def texts(self) -> Path:
        """Real texts for the parity check of a build: the held-out slice, topped up from the evaluation data."""
        return self.path / "state" / "texts.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where phases that have begun are; gone when the training has finished."""
        return self.path / "state" / "checkpoints"

    def student(self, budget: float) -> Path:
        """The checkpoint that was trained for a budget, in layers."""
        return self.path / "budgets" / budget_name(budget)


@dataclass(frozen=True)
class Checkpoint:
    """A student at a budget, and what it does with the evaluation data there.

    Args:
        folder: of its weights; several budgets may have the same.
        threshold: of the gates' margins, in logits; 0 where there are no gates.
        threshold_on: whose texts met the budget at the threshold, `evaluation` or `held-out`.
        mean_layers, metric, routes: on the evaluation data. Of the routes at most ten with their shares, the commonest
            first.
    """

    folder: Path
    budget: float
    threshold: float
    threshold_on: str
    mean_layers: float
    metric: float
    routes: tuple[tuple[Route, float], ...]
    layers_run: tuple[float, ...] = ()

    @property
    def keeps_budget(self) -> bool:
        return keeps(self.budget, self.mean_layers)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        budget: the one that was asked for, in layers.
        checkpoints: one for each budget, in the order they were trained, and of one student from all layers down.
        summary: summary.json as it is.
    """

    paths: RunPaths
    task: str
    metric: str
    teacher_metric: float
    layers: int
    max_length: int
    budget: float
    checkpoints: tuple[Checkpoint, ...]
    summary: Summary

    def checkpoint(self, budget: float | None = None) -> Checkpoint:
        """The checkpoint of a budget, as `resolve_budget` takes it; of the one asked for in training if left out.

        Raises:
            BudgetError: the run has none for it, or the model cannot have it.
            BundleError: a file of it is damaged.
        """
        wanted = self.budget if budget is None else resolve_budget(budget, self.layers)
        for checkpoint in self.checkpoints:
            if checkpoint.budget == wanted and checkpoint.folder.is_dir():
                check_digests(checkpoint.folder)
                return checkpoint
        have = ", ".join(budget_name(checkpoint.budget) for checkpoint in self.checkpoints)
        raise BudgetError(
            f"--budget {wanted:g}: {self.paths.path} has checkpoints for {have}; give one of these, or train a run with"
            f" --budget {wanted:g}"
        )

    def points(self, checkpoint: Checkpoint) -> list[Checkpoint]:
        """All budgets that the checkpoint's student keeps, ascending: its own, and others that it comes near to."""
        kept = [other for other in self.checkpoints if other.folder == checkpoint.folder]
        return sorted((one for one in kept if one is checkpoint or one.keeps_budget), key=lambda one: one.budget)

    @property
    def label_thresholds(self) -> tuple[float, ...]:
        """Of a model of several labels at once, in the order of its labels; else none."""
        return tuple(map(float, self.summary.get("label_thresholds", ())))

    def texts(self) -> list[Text]:
        """See `RunPaths.texts`."""
        return read_texts(self.paths.texts)


def read_run(path: Path) -> Run:
    """
    Raises:
        BundleError: not a run folder, its training has not finished, or a damaged file.
    """
    paths = RunPaths(path)
    if not paths.recipe.is_file():
        raise BundleError(f"{path}: not a run folder (no recipe.json); make one with hadskip-export train --out")
    if not paths.summary.is_file():
        raise BundleError(f"{path}: its training has not finished; go on with hadskip-export train --resume")
    recipe, summary = read_json(paths.recipe), read_json(paths.summary)
    try:
        threshold_on = str(recipe["recipe"]["threshold_on"])
        return Run(
            paths=paths,
            task=str(summary["task"]),
            metric=str(summary["metric"]),
            teacher_metric=float(summary["teacher"]["metric"]),
            layers=int(summary["layers"]),
            max_length=int(summary["max_length"]),
            budget=float(recipe["budget"]),
            checkpoints=tuple(_checkpoint(paths, row, threshold_on) for row in summary["budgets"]),
            summary=cast(Summary, summary),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: damaged run folder ({error}); train again into another folder") from error


def _checkpoint(paths: RunPaths, row: dict[str, Any], threshold_on: str) -> Checkpoint:
    kept = "commonest_routes" in row  # runs of version 0.1 have only the first of them
    routes = row["commonest_routes"] if kept else [(row["top_route"], row["top_route_share"])]
    return Checkpoint(
        folder=paths.student(row.get("student", row["budget"])),
        budget=float(row["budget"]),
        threshold=float(row["threshold"]),
        threshold_on=threshold_on,
        mean_layers=float(row["mean_layers"]),
        metric=float(row["metric"]),
        routes=tuple((tuple(map(int, route)), float(share)) for route, share in routes),
        layers_run=tuple(map(float, row.get("histogram", ()))),
    )


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON file of a run.

    Raises:
        BundleError: it is damaged.
    """
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise BundleError(f"{file}: damaged ({error}); train again into another folder") from error


def read_texts(file: Path) -> list[Text]:
    """Reads texts, or pairs as lists of two, one JSON value a line.

    Raises:
        BundleError: the file is damaged.
    """
    try:
        values = list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))
        return [value if isinstance(value, str) else (value[0], value[1]) for value in values]
    except (ValueError, TypeError, LookupError) as error:
        raise BundleError(f"{file}: damaged ({error}); train again into another folder") from error
