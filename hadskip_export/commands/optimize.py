"""`optimize`: a classifier and texts -> the fastest bundle that loses little enough on this machine, or the one that
loses least in a given time.

What the other commands do one by one, with the choices made by measuring: which engines to try by a layer of the model,
how long to train by a few batches, each engine's operating point on texts that the training did not see, and the engine
by a race.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.commands.build import build
from hadskip_export.commands.doctor import engines_here, features, layer_times
from hadskip_export.commands.train import train
from hadskip_export.data.columns import Columns
from hadskip_export.data.examples import Examples, read_examples
from hadskip_export.data.metrics import USUAL, check_tells
from hadskip_export.data.problems import RANKING, Problem, groups_of
from hadskip_export.data.tasks import label_names
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.write import load_source, write_bundle
from hadskip_export.modeling.checkpoint import digest_of_model, longest_input, read_config, resolve_model
from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.points import Point, with_point
from hadskip_export.runtime.bundle import read_bundle
from hadskip_export.support.environment import environment
from hadskip_export.support.errors import BudgetError, BundleError, DataError, EngineError
from hadskip_export.support.files import new_folder
from hadskip_export.support.progress import say
from hadskip_export.support.seeds import check_seed
from hadskip_export.support.values import several
from hadskip_export.support.words import counted, printable
from hadskip_export.trainers.methods import HADSKIP, create_method
from hadskip_export.trainers.probe import seconds_per_text, tokens_of
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.session import check_device
from hadskip_export.trainers.settings import read_by, say_unread, those_read
from hadskip_export.tuning.engines import plans_of, worth_trying
from hadskip_export.tuning.loss import Judge, Loss
from hadskip_export.tuning.plan import Plan, held_back, read_plan, what_fits, write_plan
from hadskip_export.tuning.texts import digest_of, share_out, to_choose_from, write_examples
from hadskip_export.tuning.trial import Candidate, Goal, candidates_of, judge_of, loss_served, race, ranked
from hadskip_export.verification.parity import ParityReport

RECIPE = "adaptive"
FEWEST_TOKENS = 8  # of the text that a layer is measured on
MAX_LOSS, MINUTES = 0.01, 30.0
LEARNED, CHOSEN_ON, RUN, BUNDLE = "learned.jsonl", "chosen-on.jsonl", "run", "bundle"


@dataclass(frozen=True)
class Optimization:
    """What came of it; of a dry run the plan alone.

    Args:
        bundle: what was written.
        candidates: all that ran, in the order of their trials: full BERT in the first engine is what others are
            compared with.
        chosen, next_best: of these; None where nothing else meets the goal.
        served: what the bundle lost when it was asked for one text after the other.
        loss_of: what losses are counted in.
        minutes: what each part took.
    """

    environment: dict[str, Any]
    plan: Plan
    goal: Goal
    bundle: str | None = None
    candidates: tuple[Candidate, ...] = ()
    chosen: Candidate | None = None
    served: Loss | None = None
    next_best: Candidate | None = None
    loss_of: str | None = None
    minutes: dict[str, float] | None = None


def optimize(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    max_loss: float | None = None,
    p50: float | None = None,
    minutes: float = MINUTES,
    engines: Sequence[str] = (),
    epochs: int | None = None,
    settings: Sequence[str] = (),
    max_length: int | None = None,
    work: str | Path | None = None,
    dry_run: bool = False,
    seed: int = 0,
    device: str = "cpu",
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Optimization:
    """Trains, builds, measures and chooses. The same command goes on where it was stopped.

    Args:
        model: a fine-tuned classifier, a local folder or a hub name.
        data: texts like those to be served, a few thousand, with labels or without. Some of them are held back, and
            what is promised was measured on these.
        out: the bundle to write.
        max_loss: the most of the metric that may be lost against `model`, with 95 % confidence for each engine by
            itself; 0.01 if neither this nor `p50` is given. Without labels, the share of texts that get another answer;
            of scores, 1 less their correlation with the model's. See `tuning.loss.Judge`.
        p50: milliseconds that half of the calls of one text may take; what loses least in that time is chosen.
        minutes: what all of it may take, about; texts are left out where one epoch takes too long.
        engines: as `ort-int8`, in place of those that are worth a trial by what a layer of the model takes in each.
        epochs: how long to train, in place of what fits into the minutes.
        settings: recipe overrides, `key=value`.
        work: a folder for what is trained and tried, which then stays, so that another goal needs no new training
            (unless as many texts cannot show it). Beside `out`, and removed in the end, if left out.
        dry_run: only say what would be done.
        device: where torch trains.
        max_length: tokens of an input; what the model reads, if left out.

    Raises:
        BudgetError: nothing meets the goal; what was trained stays.
        BundleError: no model, one that is not supported, or `out` exists; `work` belongs to something else.
        DataError: see `read_examples`; texts too few; a time or a loss that is none.
        HadskipError: see `train`, `build`.
    """
    check_seed(seed)
    goal = _goal(max_loss, p50)
    _check_length(minutes, epochs)
    settings, engines = several("settings", settings), several("engines", engines)
    if any(setting.partition("=")[0].strip() == "shared_epochs" for setting in settings):
        raise DataError("--set shared_epochs: is what --epochs says; leave it out")
    recipe = load_recipe(RECIPE, _recipe_of(1, settings))
    method = create_method(HADSKIP, recipe, {})
    if "shared_epochs" not in read_by(method, recipe, fine_tuned=True):
        raise DataError("--set routing, body: a body of all budgets at once is what optimize trains; leave them out")
    say_unread(settings, method, recipe, fine_tuned=True)
    settings = those_read(settings, HADSKIP, RECIPE, fine_tuned=True)
    check_device(device)
    bundle = Path(out).resolve()
    folder = (bundle.with_name(f"{bundle.name}.work") if work is None else Path(work)).resolve()
    _check_places(bundle, folder)
    source = resolve_model(model)
    config = read_config(source)
    if max_length is not None and not 8 <= max_length <= config.most_tokens:
        raise DataError(f"--max-length {max_length}: expected 8 to {config.most_tokens}")
    length = max_length or longest_input(source, config)  # what the model itself reads: it is held against that
    examples, problem = _read(Path(data), Columns(text_column, pair_column, label_column), config)
    units = len(to_choose_from(examples))
    queries = "queries of documents of different relevance" if examples.labels else "queries"
    what = queries if config.problem_type == RANKING else "different texts"
    learned, chosen_on = share_out(examples, held_back(units, goal.max_loss, what), seed)
    if goal.max_loss is not None:
        _check_enough(chosen_on, problem, goal.max_loss)
    asked = {
        "model": str(source.resolve()), "content of --model": digest_of_model(source), "data": digest_of(examples),
        "minutes": minutes, "engines": list(engines), "epochs": epochs, "settings": list(settings),
        "max_length": length, "seed": seed, "device": device,
        "number of texts held back": len(chosen_on),
    }  # fmt: skip
    watch = _Watch()
    plan = read_plan(folder, asked)
    if plan is None:
        plan = _plan(source, (learned, chosen_on), asked)
    if dry_run:
        return Optimization(environment(), plan, goal)
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(folder, asked, plan)
    few = np.random.default_rng(seed).permutation(len(learned))[: plan.learned]
    write_examples(folder / LEARNED, learned[np.sort(few).tolist()])
    write_examples(folder / CHOSEN_ON, chosen_on)
    watch.lap("plan")
    train(
        model=str(source.resolve()), budget=config.num_layers, out=folder / RUN, train=str(folder / LEARNED),
        eval=str(folder / CHOSEN_ON), fine_tuned=True, recipe=RECIPE, settings=_recipe_of(plan.epochs, settings),
        resume=True, seed=seed, device=device, max_length=length,
    )  # fmt: skip
    watch.lap("training")
    names = _build_all(folder, plans_of(plan.engines))
    watch.lap("engines")
    judge = judge_of(folder / BUNDLE, names[0], chosen_on)
    found = [one for name in names for one in candidates_of(folder / BUNDLE, name, chosen_on, judge, goal)]
    watch.lap("operating points")
    found = race(folder / BUNDLE, found, chosen_on.texts)
    watch.lap("race")
    fit = ranked(found, goal)
    if not fit:
        raise BudgetError(f"{_why_none(found, goal)}; what was trained is in {folder}, for another goal with --work")
    texts = f"{counted(len(chosen_on), 'text')} of {printable(Path(data).name)}"
    fit, served = _write_best(folder, bundle, fit, texts, lambda path: _check_served(path, chosen_on, judge, goal))
    watch.lap("bundle")
    if work is None:
        shutil.rmtree(folder)
    return Optimization(
        environment=environment(), plan=plan, goal=goal, bundle=str(out), candidates=tuple(found), chosen=fit[0],
        served=served, next_best=fit[1] if len(fit) > 1 else None, loss_of=judge.measure, minutes=watch.minutes,
    )  # fmt: skip


def _check_places(bundle: Path, folder: Path) -> None:
    """
    Raises:
        BundleError: a place that is taken, lies in the other one, or cannot be.
    """
    if bundle.exists():
        raise BundleError(f"--out {bundle}: exists; remove it, or choose another")
    if bundle.is_relative_to(folder) or folder.is_relative_to(bundle):
        raise BundleError(f"--work {folder}: one of it and --out {bundle} lies in the other; choose another")
    for place in (bundle, folder):
        nearest = next(parent for parent in (place, *place.parents) if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise BundleError(f"{place}: {nearest} is no folder that can be written to; choose another")


def _read(file: Path, columns: Columns, config: EncoderConfig) -> tuple[Examples, Problem]:
    """The texts, their labels if they are the model's, and how these are called. Others are left alone, unless they
    were named.

    Raises:
        DataError: see `read_examples`, `label_names`.
    """
    examples = read_examples(file, columns, problem_type=config.problem_type, unlabelled=True)
    problem = Problem(config.problem_type, config.labels)
    if not examples.labels:
        return examples, problem
    try:
        named = replace(problem, labels=label_names(examples, problem, file))
        check_tells(USUAL[named.type], named.targets(examples.labels), groups_of(examples.texts), str(file))
        return examples, named
    except DataError as error:
        if columns.label is not None:
            raise
        say(f"{error}; so they are not used")
        return replace(examples, labels=[]), problem


def _check_enough(chosen_on: Examples, problem: Problem, max_loss: float) -> None:
    """Before anything is trained; of what full BERT answers nothing has to be known for it.

    Raises:
        DataError: see `Judge.check_enough`.
    """
    answers = np.zeros((len(chosen_on), len(problem.labels)), np.float32)
    targets, groups = problem.targets(chosen_on.labels), groups_of(chosen_on.texts)
    Judge(problem, USUAL[problem.type], answers, targets, groups).check_enough(max_loss)


def _goal(max_loss: float | None, p50: float | None) -> Goal:
    """
    Raises:
        DataError: a time that is none; see `held_back` for the loss.
    """
    if p50 is not None and not p50 > 0:
        raise DataError(f"--p50 {p50:g}: expected milliseconds above 0")
    return Goal(MAX_LOSS if max_loss is None and p50 is None else max_loss, p50)


def _check_length(minutes: float, epochs: int | None) -> None:
    """
    Raises:
        DataError: no time, or no epochs.
    """
    if not 0 < minutes < math.inf:
        raise DataError(f"--minutes {minutes:g}: expected minutes above 0")
    if epochs is not None and epochs < 1:
        raise DataError(f"--epochs {epochs}: expected at least 1")


def _plan(source: Path, texts: tuple[Examples, Examples], asked: dict[str, Any]) -> Plan:
    """Engines by what a layer of such a model takes on a text of the usual length, epochs by a few batches."""
    learned, chosen_on = texts
    engines = plans_of(asked["engines"])
    if not engines:
        say("measuring a layer of the model on each engine")
        ready = [name for name, lack in engines_here().items() if lack is None]
        tokens = int(np.median(tokens_of(source, learned.texts, asked["max_length"])))
        engines = worth_trying(layer_times(ready, read_config(source), max(tokens, FEWEST_TOKENS))[0])
    epochs = asked["epochs"]
    if epochs is None:
        recipe = load_recipe(RECIPE, _recipe_of(1, asked["settings"]))
        seconds = seconds_per_text(source, learned.texts, recipe, asked["max_length"], asked["device"])
        count, epochs, training = what_fits(asked["minutes"], len(learned), seconds)
        return Plan(tuple(plan.tag for plan in engines), count, len(chosen_on), epochs, training)
    return Plan(tuple(plan.tag for plan in engines), len(learned), len(chosen_on), epochs, None)


def _recipe_of(epochs: int, settings: Sequence[str]) -> tuple[str, ...]:
    """In bf16 where the chip has instructions for it; the user's own settings last."""
    chip = features() or {}
    precision = "bf16" if chip.get("BF16") or chip.get("AMX") else "fp32"
    return (f"shared_epochs={epochs}", f"precision={precision}", *settings)


def _build_all(folder: Path, plans: Sequence[EnginePlan]) -> list[str]:
    """A bundle with every engine, made or completed; the names of those whose answers are right.

    Raises:
        EngineError: none is.
    """
    path = folder / BUNDLE
    for plan in plans:
        say(f"building {plan.tag}")
        try:
            if not path.is_dir():
                build(folder / RUN, out=path, engine=plan.engine, precision=plan.precision, cut=plan.cut)
            elif f"{plan.tag}-{plan.cut}" not in {info.name for info in read_bundle(path).manifest.engines}:
                build(path, engine=plan.engine, precision=plan.precision, cut=plan.cut)
        except EngineError as error:
            say(f"{plan.tag}: {error}; left out")
    if not path.is_dir():
        raise EngineError(f"{folder}: none of {', '.join(plan.tag for plan in plans)} could be built")
    right = []
    for info in read_bundle(path).manifest.engines:
        if info.parity == "passed":
            right.append(info.name)
        else:
            say(f"{info.name}: its answers are not the model's (first at {info.first_bad_piece}); left out")
    if not right:
        raise EngineError(f"{path}: no engine gives the model's answers; hadskip-export validate says more")
    return right


def _write_best(
    folder: Path, out: Path, fit: list[Candidate], texts: str, check: Callable[[Path], Loss | None]
) -> tuple[list[Candidate], Loss]:
    """Writes the bundle of the first that passes its checks, and returns those from there on, and what it loses. An
    engine was checked at all layers and judged by batches; now it is at its operating point, and as it is served.

    Args:
        check: what a bundle loses; None if that is too much.

    Raises:
        EngineError: none passes.
    """
    part = folder / "written"
    while fit:
        shutil.rmtree(part, ignore_errors=True)  # of one that did not pass, or was stopped
        report = _write(folder / RUN, part, fit[0], texts)
        if report is not None and report.parity == "passed" and (served := check(part)) is not None:
            with new_folder(out) as place:
                shutil.copytree(part, place, dirs_exist_ok=True)
            shutil.rmtree(part)
            return fit, served
        say(f"{fit[0].engine}: fails its check at the operating point that was chosen; the next best instead")
        fit = fit[1:]
    raise EngineError(f"{out}: no engine passes its check at the operating point that meets the goal; allow another")


def _check_served(bundle: Path, chosen_on: Examples, judge: Judge, goal: Goal) -> Loss | None:
    loss = loss_served(bundle, chosen_on, judge)
    return loss if goal.max_loss is None or loss.most <= goal.max_loss else None


def _write(run: Path, out: Path, chosen: Candidate, texts: str) -> ParityReport | None:
    """The bundle of the chosen engine alone, with its operating point as the default; where full BERT was chosen, one
    that runs all layers of it for every input and has no gates."""
    source = load_source(run, None, full=True)
    figures = {"metric": chosen.metric, "full_metric": chosen.full_metric}
    if (at := chosen.at) is not None:
        assert at.budget is not None and at.threshold is not None
        point = Point.met(at.budget, (at.threshold,) * source.config.num_layers, texts, at.routes, **figures)
        source = replace(source, points=with_point(source.points, point), budget=at.budget)
    else:
        assert source.full is not None
        layers = source.config.num_layers
        route = tuple(range(1, layers + 1))
        point = Point(layers, (), texts, layers, ((route, 1.0),), chosen.metric, chosen.full_metric)
        model = GatedClassifier(source.full, fixed_route=route)
        source = replace(source, model=model, points=(point,), budget=point.budget)
    engine, precision, _ = chosen.engine.rsplit("-", 2)
    return write_bundle(source, out, EnginePlan.of(engine, precision))


def _why_none(found: Sequence[Candidate], goal: Goal) -> str:
    least, fastest = (min(found, key=key) for key in (lambda one: one.loss.most, lambda one: one.p50_ms))
    return (
        f"nothing meets the goal: {least.engine} may lose {least.loss.most:.4f} in {least.p50_ms:.2f} ms, and the"
        f" fastest, {fastest.engine}, takes {fastest.p50_ms:.2f} ms and may lose {fastest.loss.most:.4f}"
    )


class _Watch:
    """Minutes of each part."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.minutes: dict[str, float] = {}

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.minutes[part], self._last = (now - self._last) / 60, now
