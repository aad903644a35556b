"""`compare`: HadSkip and its rivals on one's own task, from the same teacher, in one table."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hadskip_export.commands import train as training
from hadskip_export.commands.build import build
from hadskip_export.comparison.entrants import NAMES, Entrant, entrants
from hadskip_export.comparison.figures import Figures, Result, figures_of, read_result, write_result
from hadskip_export.comparison.folder import ComparisonFolder
from hadskip_export.comparison.table import Line, lines
from hadskip_export.comparison.timing import Served, time_calls
from hadskip_export.data.columns import Columns
from hadskip_export.data.problems import ProblemType
from hadskip_export.data.runs import BudgetFigures, read_json, read_run
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.modeling.checkpoint import digest_of_model, read_config
from hadskip_export.report.plain import check_page
from hadskip_export.routing.budgets import budget_name, resolve_budget
from hadskip_export.runtime.bundle import read_manifest
from hadskip_export.support.environment import environment
from hadskip_export.support.errors import EngineError
from hadskip_export.support.files import scratch
from hadskip_export.support.progress import say
from hadskip_export.support.words import as_command
from hadskip_export.trainers.methods import create_method
from hadskip_export.trainers.recipe import load_recipe, names_of
from hadskip_export.trainers.session import check_device

ASKED = ("model", "fine_tuned", "task", "data_dir", "train", "eval", "problem_type", "metric")


@dataclass(frozen=True)
class Comparison:
    """Of systems on a task.

    Args:
        metric: its name.
        engine: that calls were timed on; None where they were not.
        threshold_on: whose texts budgets were met on, `held-out` or `evaluation`.
        teacher: full BERT's metric, mean over seeds.
        lines: by budget; of a budget the first system is the one that the others are compared with.
    """

    task: str
    metric: str
    layers: int
    engine: str | None
    threshold_on: str
    teacher: float
    lines: tuple[Line, ...]
    results: tuple[Result, ...]


def compare(
    *,
    model: str,
    out: str | Path,
    budgets: Sequence[float],
    methods: Sequence[str] = NAMES,
    seeds: int = 1,
    published: bool = False,
    task: str | None = None,
    data_dir: str | None = None,
    train: str | None = None,
    eval: str | None = None,
    fine_tuned: bool = False,
    problem_type: ProblemType | None = None,
    metric: str | None = None,
    recipe: str | None = None,
    settings: Sequence[str] = (),
    device: str = "cpu",
    max_length: int | None = None,
    engine: str = "ort",
    precision: str = "fp32",
    timing: bool = True,
    keep: bool = False,
    report: str | Path | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Comparison:
    """Trains every method, builds and times it, and says how far the first is above the others. The same call goes on
    where it was stopped; with more methods or seeds it does what is missing.

    Args:
        model: see `train`; unless it is `fine_tuned`, the first run of a seed fine-tunes it, for all that follow.
        out: the folder for runs and results.
        budgets: whole numbers of layers.
        methods: recipes of HadSkip and rivals, see `comparison.entrants.NAMES`; the first is what the others are
            compared with.
        seeds: how many, from 0.
        published: let rivals also learn without a teacher, as most of their authors had it.
        task, data_dir, train, eval, problem_type, metric, device, max_length, text_column, pair_column, label_column:
            see `train`.
        engine, precision: that calls are timed on, each system in its fastest cut.
        timing: whether they are.
        recipe: of the rivals; HadSkip's own are named by the recipe.
        settings: `key=value`, of all that read it; it is said where some do not.
        keep: keep the weights of runs that are done, which takes room.
        report: an HTML file to write, with the table and a picture.

    Raises:
        HadskipError: see `train` and `build`.
        RecipeError, BudgetError: see `entrants`.
        BundleError: `out` is of another comparison, or another process is at work in it.
        EngineError: calls cannot be timed here.
    """
    if report is not None:
        check_page(Path(report))
    todo = entrants(methods, budgets, seeds, recipe, published)
    plan = EnginePlan.of(engine, precision).check_measurable() if timing else None
    shared = {
        "model": model, "task": task, "data_dir": data_dir, "train": train, "eval": eval, "fine_tuned": fine_tuned,
        "problem_type": problem_type, "metric": metric, "recipe": recipe, "settings": list(settings),
        "device": device, "max_length": max_length, "text_column": text_column, "pair_column": pair_column,
        "label_column": label_column,
    }  # fmt: skip
    folder = ComparisonFolder(Path(out))
    contents = _check(todo, shared, budgets)
    tag, wanted = None if plan is None else plan.tag, sorted(budgets)
    with folder.begun(shared | contents | {"budgets": wanted, "engine": tag}):
        work, results = _Work(folder, shared, wanted, plan), []
        for number, entrant in enumerate(todo, 1):
            if not (file := folder.result(entrant)).is_file():
                say(f"{number} of {len(todo)}: {entrant.system}, seed {entrant.seed}")
                write_result(file, work.result(entrant))
            results.append(read_result(file))
            if not keep:
                folder.leave_figures(entrant)
        summary = read_run(folder.run(todo[0])).summary
    found = Comparison(
        task=summary["task"],
        metric=summary["metric"],
        layers=summary["layers"],
        engine=tag,
        threshold_on=load_recipe(None, ("threshold_on=held-out", *settings)).threshold_on,
        teacher=sum(result.teacher for result in results) / len(results),
        lines=lines(results, wanted),
        results=tuple(results),
    )
    if report is not None:
        given = {option: value for option, value in shared.items() if option != "settings"}
        command = as_command(
            "compare", **given, set=settings, out=out, budget=budgets, method=methods, seeds=seeds, published=published,
            engine=engine, precision=precision, no_timing=not timing, keep=keep, report=report,
        )  # fmt: skip
        _write_report(found, Path(report), command)
    return found


def _write_report(found: Comparison, file: Path, command: str) -> None:
    from hadskip_export import __version__
    from hadskip_export.report.page import write_comparison

    about = {"command": command, "hadskip-export": __version__, "chip": environment()["chip"]}
    write_comparison(found, file, about)


@dataclass(frozen=True)
class _Work:
    """What is the same for all entrants. `shared`: arguments of `train`; `plan`: None where nothing is timed."""

    folder: ComparisonFolder
    shared: Mapping[str, Any]
    budgets: Sequence[float]
    plan: EnginePlan | None

    def result(self, entrant: Entrant) -> Result:
        """Trains an entrant, or does what is left of it, and times it. The first of a seed leaves its teacher to the
        others."""
        given, run = dict(self.shared), self.folder.run(entrant)
        if teacher := self.folder.teacher_for(entrant):
            given |= {"model": str(teacher), "fine_tuned": True}
            if (run / "recipe.json").is_file() and read_json(run / "recipe.json")["model"] != str(teacher):
                say(f"{run}: had begun with a teacher of its own, and begins anew")
                shutil.rmtree(run)
        settings = entrant.settings(given["recipe"], given["settings"], fine_tuned=given["fine_tuned"])
        given |= {"recipe": entrant.recipe(given["recipe"]), "settings": settings}
        started, resumed = time.monotonic(), run.is_dir()
        wanted = self.budgets if entrant.budget is None else [entrant.budget]
        summary = training.train(
            **given, method=entrant.method, budget=min(wanted), seed=entrant.seed, out=run, resume=True
        )  # fmt: skip
        seconds = None if resumed else round(time.monotonic() - started, 1)
        if not self.shared["fine_tuned"]:
            self.folder.keep_teacher(entrant)
        found = figures_of(summary, wanted)
        figures = [one for _, one in found.values()] if self.plan is None else self._timed(run, found, self.plan)
        metric = summary["teacher"]["metric"]
        return Result(entrant.name, entrant.published, entrant.seed, metric, seconds, tuple(figures))

    def _timed(
        self, run: Path, found: Mapping[float, tuple[BudgetFigures, Figures]], plan: EnginePlan
    ) -> list[Figures]:
        """The figures with what calls take. Budgets may have students of their own, and so bundles."""
        with scratch() as place:
            served, bundles = {}, dict[float, Path]()
            for budget, (row, _) in found.items():
                student = row.get("student", budget)
                if student not in bundles:
                    bundles[student] = place / budget_name(student)
                    report = build(
                        run, out=bundles[student], engine=plan.engine, precision=plan.precision, budget=student
                    )
                    if report is None or report.parity != "passed":
                        raise EngineError(
                            f"{run}: {plan.tag} does not give PyTorch's answers, and its speed is worth nothing; choose"
                            " another --engine or --precision, or --no-timing"
                        )
                decides = read_manifest(bundles[student]).router.decides
                served[budget] = Served(bundles[student], row["threshold"] if decides else None)
            latencies = time_calls(served, plan.tag, read_run(run).texts(), f"{run.name}: calls")
        return [replace(figures, latency=latencies[budget]) for budget, (_, figures) in found.items()]


def _check(todo: Sequence[Entrant], shared: Mapping[str, Any], budgets: Sequence[float]) -> dict[str, str]:
    """What each training would refuse, before any of them; returns digests of what they all learn from.

    Raises:
        HadskipError: see `train`.
    """
    check_device(shared["device"])
    asked = {name: shared[name] for name in ASKED}
    columns = Columns(shared["text_column"], shared["pair_column"], shared["label_column"])
    folder, data = training.read_asked(**asked, columns=columns)
    config = read_config(folder, data.problem.labels, data.problem.type)
    readers = {name: set[str]() for name in names_of(shared["settings"])}
    for entrant in todo:
        settings = entrant.settings(shared["recipe"], shared["settings"], fine_tuned=shared["fine_tuned"])
        for name in readers.keys() & set(names_of(settings)):
            readers[name].add(entrant.name)
        recipe = load_recipe(entrant.recipe(shared["recipe"]), settings)
        method = create_method(entrant.method, recipe, {})
        for budget in budgets if entrant.budget is None else [entrant.budget]:
            method.check(recipe, resolve_budget(budget, config.num_layers), config)
        training.check_teaching(data, recipe)
    everyone = {entrant.name for entrant in todo}
    for name, some in readers.items():
        if some != everyone:
            changed = f"{', '.join(sorted(some))} alone" if some else "none of these methods"
            say(f"--set {name}: changes {changed}")
    return {"content of --model": digest_of_model(folder), "data": data.digest()}
