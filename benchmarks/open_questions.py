"""What might make routes worth more, beside the recipe `adaptive`: the study's open questions (docs/method.md).

    python benchmarks/open_questions.py run --glue GLUE_FOLDER --runs FOLDER [--seed 0] cola sst2-8000
    python benchmarks/open_questions.py run ... --refit cola                # settings of the gates' fit instead
    python benchmarks/open_questions.py table                               # from the summaries in open_questions/

Everything starts from the study's teacher and goes straight to 3 of 6 layers. After `adaptive` (the study's
`adaptive-direct`: three epochs on routes drawn from its family, then the gates' fit) come, each from there, two rounds
of an epoch with the same batches and rates:

- `longer`: on drawn routes, then gates fitted anew, for comparison;
- `iterated`: on the routes that the gates choose (of rows that they were fitted on), then gates fitted anew;
- `reinmax`: body and gates together, as in the paper's stage III, from the fitted gates, the budget held throughout;

and, from the teacher again, `searched`: as `adaptive`, on a family found by an epoch on all sets of 2 to 4 layers: the
set of each size that is nearest to the teacher on the held-out slice.

`hindsight` is what the dev inputs would come to if each had the best of its routes: of a body's own three, and of all
fifty sets and the three chosen ones of the body that was searched, which had that one epoch.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from study import PRECISION, Run, data_folder, teacher_folder

from hadskip_export.data.tasks import hold_out, load_task
from hadskip_export.modeling.checkpoint import GateSettings, load_classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.families import Draw, every_route, nested, sizes_around
from hadskip_export.routing.routes import Route
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.trainers.batches import encode
from hadskip_export.trainers.evaluation import above, full_logits, predict_fixed_routes, predict_routed
from hadskip_export.trainers.gate_fitting import Evidence, fit_gates, observe
from hadskip_export.trainers.methods.static import SEARCH_EPOCHS
from hadskip_export.trainers.objective import Objective
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.run_folder import write_json
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Evaluation, Session
from hadskip_export.trainers.stages import distil, train_jointly
from hadskip_export.trainers.summary import budget_row
from hadskip_export.trainers.teacher import Teacher
from hadskip_export.trainers.threshold import fit_threshold

BUDGET, LAYERS, SPREAD, EPOCHS, MORE = 3, 6, 1, 3, 2
MAX_LENGTH = 128
PRICES = (0.01, 0.03)
SETTINGS = (
    "gate_width=16", "gate_width=256", "fit_rows=1000", "fit_rows=4000", "fit_steps=500", "fit_steps=4500",
    "fit_lr=5e-4", "fit_lr=8e-3", "fit_weight_decay=0", "fit_weight_decay=0.5", "fit_dropout=0", "fit_dropout=0.3",
    "layer_price=0.003", "layer_price=0.3",
)  # fmt: skip
SUMMARIES = Path(__file__).parent / "open_questions"


class Questions:
    """One task and seed: its data, its teacher, and what a student comes to."""

    def __init__(self, task: str, data: Path, teacher: Path, seed: int):
        examples = load_task(task=task, data_dir=str(data))
        tokenizer = Tokenizer(teacher / "tokenizer.json", MAX_LENGTH)
        rows, held_rows = (examples.train[chosen.tolist()] for chosen in hold_out(len(examples.train), seed))
        training, held_out, evaluation = (
            encode(tokenizer, part.texts, examples.problem.targets(part.labels))
            for part in (rows, held_rows, examples.evaluation)
        )
        recipe = load_recipe("adaptive", (PRECISION,))
        self.session = Session(
            data=training, held_out=held_out, recipe=recipe, seed=seed, device="cpu", log=lambda **_: None,
            metric=examples.metric, problem=examples.problem, objective=Objective(examples.problem.type),
        )  # fmt: skip
        self.teacher = Teacher(load_classifier(teacher), training)
        self.evaluation = Evaluation(data=evaluation, teacher_logits=full_logits(self.teacher.model, evaluation))

    def student(self) -> GatedClassifier:
        torch.manual_seed(self.session.seed + 1)
        body = copy.deepcopy(self.teacher.model).requires_grad_(True)
        return GatedClassifier(body, self.session.recipe.gate_width, self.session.recipe.gate_bias)

    def distil(self, model: GatedClassifier, family: Sequence[Route], epochs: int, name: str) -> None:
        self.reseed()
        draw = Draw(family, LAYERS, self.session.seed)
        distil(model, self.teacher, draw, self.session, epochs=epochs, label=name)

    def reseed(self) -> None:
        """As `train` does before a budget."""
        torch.manual_seed(self.session.seed + 2 + round(100 * BUDGET))

    def evidence(self, model: GatedClassifier, family: Sequence[Route], fit_rows: int) -> Evidence:
        session = self.session
        rows = np.random.default_rng(session.seed).permutation(len(session.data))[:fit_rows]
        return observe(model, self.teacher.logits()[torch.from_numpy(rows)], session.data.subset(rows), family, session)

    def fit(self, model: GatedClassifier, family: Sequence[Route]) -> None:
        recipe = self.session.recipe
        fit_gates(model, self.evidence(model, family, recipe.fit_rows), recipe, "gates")

    def rounds(self) -> Iterator[Session]:
        """One for each epoch after the first three: other batches than theirs, the same for everybody."""
        for again in range(1, MORE + 1):
            yield replace(self.session, seed=self.session.seed + 100 * again)

    def row(self, model: GatedClassifier, family: Sequence[Route] | None) -> dict[str, Any]:
        """The figures at a mean of exactly `BUDGET` layers, as `train` has them."""
        threshold = fit_threshold(model, self.evaluation.data, BUDGET)
        settings = GateSettings(self.session.recipe.gate_width, threshold, BUDGET)
        row, _ = budget_row(model, settings, self.evaluation, self.session)
        return {"family": family, **row}

    def hindsight(self, model: GatedClassifier, family: Sequence[Route]) -> dict[str, Any]:
        """Every dev input on the best of its routes: at a price per layer, at the one that gives a mean of `BUDGET`
        layers, and the cheapest that agrees with the teacher (all layers where none does)."""
        data, answers = self.evaluation.data, self.evaluation.teacher_logits
        found = observe(model, torch.from_numpy(answers), data, family, self.session).divergence
        divergence = np.stack([found[route].numpy() for route in family])
        layers = np.array([len(route) for route in family])
        bound: dict[str, Any] = {"routes": len(family)}

        def at(price: float) -> dict[str, float]:
            best = (divergence + price * layers[:, None]).argmin(axis=0)
            chosen = divergence[best, np.arange(len(best))]
            return {"layers": float(layers[best].mean()), "divergence": float(chosen.mean())}

        low, high = 0.0, 10.0  # nats; mean layers falls as the price rises
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle)["layers"] > BUDGET else (low, middle)
        bound |= {f"price {price:g}": at(price) for price in PRICES} | {"budget": at(high)}
        predicted = predict_fixed_routes(model.classifier, data, list(family))
        agrees = np.stack([predicted[route].argmax(-1) == answers.argmax(-1) for route in family])
        cheapest = np.where(agrees, layers[:, None], LAYERS).min(axis=0)
        return bound | {"agreeing layers": float(cheapest.mean()), "none agrees": float((~agrees).all(axis=0).mean())}


def answer(questions: Questions) -> Iterator[tuple[str, dict[str, Any]]]:
    """(variant, figures), one after the other."""
    session, sizes = questions.session, sizes_around(BUDGET, SPREAD, LAYERS)
    family = nested(sizes, LAYERS)
    adaptive = questions.student()
    questions.distil(adaptive, family, EPOCHS, "adaptive")
    questions.fit(adaptive, family)
    yield "adaptive", questions.row(adaptive, family)
    yield "hindsight, adaptive", questions.hindsight(adaptive, family)

    model = copy.deepcopy(adaptive)
    questions.reseed()
    for again, more in enumerate(questions.rounds(), 1):
        distil(
            model, questions.teacher, Draw(family, LAYERS, more.seed), more, epochs=1, label=f"longer, round {again}"
        )
        questions.fit(model, family)
        yield f"longer, round {again}", questions.row(model, family)

    model = copy.deepcopy(adaptive)
    questions.reseed()
    for again, more in enumerate(questions.rounds(), 1):
        threshold = fit_threshold(model, session.held_out, BUDGET)
        _, routes, _ = predict_routed(model, session.data, above(threshold))
        distil(model, questions.teacher, _those_of(routes), more, epochs=1, label=f"iterated, round {again}")
        questions.fit(model, family)
        yield f"iterated, round {again}", questions.row(model, family)

    model = copy.deepcopy(adaptive)
    _shift(model, fit_threshold(model, session.held_out, BUDGET))
    questions.reseed()
    for again, more in enumerate(questions.rounds(), 1):
        held = replace(more, recipe=replace(more.recipe, glide=0.0))  # gates are not made to explore again
        train_jointly(model, questions.teacher, Leg(BUDGET, BUDGET, 1), held)
        yield f"reinmax, round {again}", questions.row(model, None)

    every = every_route(sizes, LAYERS)
    model = questions.student()
    questions.distil(model, every, SEARCH_EPOCHS, "search")
    logits = torch.from_numpy(full_logits(questions.teacher.model, session.held_out))
    found = observe(model, logits, session.held_out, every, session).divergence
    family = [min((r for r in every if len(r) == size), key=lambda r: float(found[r].mean())) for size in sizes]
    yield "hindsight, all sets", questions.hindsight(model, every)
    yield "hindsight, three sets", questions.hindsight(model, family)
    model = questions.student()
    questions.distil(model, family, EPOCHS, "searched")
    questions.fit(model, family)
    yield "searched", questions.row(model, family)
    yield "hindsight, searched", questions.hindsight(model, family)


def refit(questions: Questions) -> Iterator[tuple[str, dict[str, Any]]]:
    """(setting, figures) of the gates of one body, fitted anew with one setting changed."""
    family = nested(sizes_around(BUDGET, SPREAD, LAYERS), LAYERS)
    body = questions.student()
    questions.distil(body, family, EPOCHS, "adaptive")
    evidence: dict[int, Evidence] = {}
    for setting in (None, *SETTINGS):
        recipe = load_recipe("adaptive", () if setting is None else (setting,))
        torch.manual_seed(questions.session.seed)
        model = GatedClassifier(body.classifier, recipe.gate_width, recipe.gate_bias)
        if recipe.fit_rows not in evidence:
            evidence[recipe.fit_rows] = questions.evidence(model, family, recipe.fit_rows)
        fit_gates(model, evidence[recipe.fit_rows], recipe, "gates")
        yield setting or "as it is", questions.row(model, family)


def _those_of(routes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: routes[rows]


@torch.no_grad()
def _shift(model: GatedClassifier, threshold: float) -> None:
    """Moves all margins so that the hard gates' threshold is 0, where the estimator draws."""
    for gate in model.gates:
        gate.logits.bias += torch.tensor([-threshold / 2, threshold / 2])


@click.group()
def main() -> None:
    """The study's open questions."""


@main.command("run")
@click.option("--glue", type=click.Path(path_type=Path, exists=True), required=True, help="GLUE's root folder.")
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="The study's, where its teachers are.")
@click.option("--seed", default=0, show_default=True)
@click.option("--refit", "refits", is_flag=True, help="The gates' fit with one setting changed, of one body.")
@click.argument("names", nargs=-1, required=True)
def run_all(glue: Path, runs: Path, seed: int, refits: bool, names: tuple[str, ...]) -> None:
    """Answer for what has no summary yet: NAMES such as cola, sst2-8000."""
    SUMMARIES.mkdir(exist_ok=True)
    for name in names:
        task, _, rows = name.partition("-")
        kept = SUMMARIES / f"{name}{'-refit' if refits else ''}-s{seed}.json"
        if kept.is_file():
            continue
        run = Run(task, int(rows) if rows else None, seed, "open", BUDGET)
        data = data_folder(glue, runs, run)
        started = time.time()
        questions = Questions(task, data, teacher_folder(data, runs, run), seed)
        variants = {}
        for variant, figures in (refit if refits else answer)(questions):
            variants[variant] = figures
            click.echo(_line(name, seed, variant, figures))
        summary = {"metric": questions.session.metric, "seconds": round(time.time() - started), "variants": variants}
        write_json(kept, summary)


@main.command()
def table() -> None:
    """Print every kept summary."""
    for file in sorted(SUMMARIES.glob("*.json")):
        name, _, seed = file.stem.rpartition("-s")
        for variant, figures in json.loads(file.read_text())["variants"].items():
            click.echo(_line(name, int(seed), variant, figures))


def _line(name: str, seed: int, variant: str, figures: dict[str, Any]) -> str:
    start = f"{name:<16} {seed:>2} {variant:<22}"
    if "routes" in figures and "metric" not in figures:
        at = (*(f"price {price:g}" for price in PRICES), "budget")
        priced = ", ".join(f"{figures[a]['layers']:.2f} layers KL {figures[a]['divergence']:.4f} ({a})" for a in at)
        agreeing = f"agreeing with the teacher {figures['agreeing layers']:.2f} (none {figures['none agrees']:.1%})"
        return f"{start} {figures['routes']} routes: {priced}; {agreeing}"
    family = ", ".join(" ".join(map(str, route)) for route in figures["family"] or []) or "all sets"
    return (
        f"{start} metric {figures['metric']:.4f} KL {figures['divergence']:.4f}"
        f" shuffled {figures['shuffled_metric']:.4f} KL {figures['shuffled_divergence']:.4f}"
        f" layers {figures['mean_layers']:.2f} routes {figures['routes']}"
        f" ({figures['route_entropy_bits']:.2f} bits, commonest {figures['top_route_share']:.2f}) of {family}"
    )


if __name__ == "__main__":
    main()
