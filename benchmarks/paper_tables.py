"""The paper's Tables 1, 2 and 4 and its Figures 2 to 6, of the runs that `study.py` kept, beside what the paper has.

    python benchmarks/paper_tables.py                    # tables
    python benchmarks/paper_tables.py --figures FOLDER   # figures of every run of twelve layers too

Each cell is the share that is retained of the teacher's metric, the mean of as many seeds as it says; the paper's is of
its BERT-base. No pretrained RoBERTa is to be had without a hub, so there is no Table 3.
"""

from pathlib import Path

import click
import numpy as np
from study import ABLATIONS, EVIDENCE, PAPER, SEEDS, SUMMARIES, TWELVE, Run, kept, print_row, student

from hadskip_export.data.runs import read_json
from hadskip_export.report.plots import write_plots

WHOLE = 59.4  # BERT-base on CoLA
ABLATED = {  # CoLA at 3 of 12, Table 2
    "": ("whole", 35.6),
    "no-gate-initialisation": ("without gate initialisation", 34.4),
    "no-homotopy": ("without homotopy", 5.1),
    "no-distillation": ("without distillation", 17.9),
    "predictions-only": ("distillation of predictions alone", 29.6),
}
SMALL = {3: 35.5 / 42.8, 4: 40.5 / 42.8}  # CoLA, TinyBERT of 6 layers, Table 4


@click.command()
@click.option("--summaries", type=click.Path(path_type=Path), default=SUMMARIES, help="Where summaries are kept.")
@click.option("--figures", type=click.Path(path_type=Path), help="A folder to draw them in.")
def main(summaries: Path, figures: Path | None) -> None:
    """Print the tables; draw the figures."""
    click.echo("Table 1: 12 layers, what is retained\n")
    _head("data, layers", "paper, HadSkip", "adaptive, one body", "budgeted", "static")
    for task, rows in TWELVE:
        for layers, share in zip((3, 6, 9), PAPER[task], strict=True):
            whos = {"shared": 6, "budgeted": layers, "static": layers}  # and the budget that names its run
            cells = [_mean(_twelve(task, rows, *of), layers, summaries) for of in whos.items()]
            if any(cells):
                print_row(f"{task}, {layers} of 12", f"{share:.1%}", *cells)
    click.echo("\nTable 2: CoLA without parts of the recipe `paper`; 3 of 12 in the paper, 3 of 6 here\n")
    _head("recipe", "paper", "here")
    for name, (what, metric) in ABLATED.items():
        runs = [student("cola", None, seed, "paper", 3, *ABLATIONS.get(name, ()), name=name) for seed in range(2)]
        print_row(what, f"{metric / WHOLE:.1%}", _mean(runs, 3, summaries))
    click.echo("\nTable 4: CoLA, 6 layers; the paper's TinyBERT, here MiniLM\n")
    _head("layers", "paper, HadSkip", "adaptive, a body each", "paper", "budgeted", "static")
    for layers, share in SMALL.items():
        seeds = next(count for task, _, count in EVIDENCE if task == "cola")
        whos = ("adaptive", "paper", "budgeted", "static")
        cells = [_mean(_six(who, layers, seeds), layers, summaries) for who in whos]
        print_row(f"{layers} of 6", f"{share:.1%}", *cells)
    for file in sorted(summaries.glob("12-*-shared-*.json")) if figures else []:
        write_plots(read_json(file), figures / file.stem)
        click.echo(f"\nFigures 2 to 6 of {file.stem}: {figures / file.stem}")


def _twelve(task: str, rows: int | None, who: str, budget: float) -> list[Run]:
    return [student(task, rows, seed, who, budget, layers=12) for seed in range(SEEDS)]


def _six(who: str, layers: int, seeds: int) -> list[Run]:
    """`paper` went down to 2 in one run."""
    return [student("cola", None, seed, who, 2 if who == "paper" else layers) for seed in range(seeds)]


def _mean(runs: list[Run], budget: float, summaries: Path) -> str:
    found = [row for run in runs if (row := kept(run, budget, summaries))]
    return f"{np.mean([row['retained'] for row in found]):.1%} ({len(found)})" if found else ""


def _head(*cells: str) -> None:
    print_row(*cells)
    print_row(*["---"] * len(cells))


if __name__ == "__main__":
    main()
