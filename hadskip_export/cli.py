"""The command line: parse, call one function, print.

Exit codes: 0 done; 1 done, and the answer is no; 2 the request, the files or the machine are at fault.
"""

import errno
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

import hadskip_export
from hadskip_export.runtime.engines import ENGINES, GateLayout, Single
from hadskip_export.support.errors import HadskipError

COLUMN_OPTIONS = ("text", "pair", "label")


class _Commands(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except HadskipError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads has had enough: click ends quietly
                raise
            click.echo(f"Error: {error.filename or 'the system'}: {error.strerror or error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("Error: interrupted", err=True)
            sys.exit(130)


def _columns(*kinds: str) -> Any:
    def decorate(command: Any) -> Any:
        for kind in reversed(kinds):
            command = click.option(f"--{kind}-column", help=f"The {kind}'s column, where its name does not say.")(
                command
            )
        return command

    return decorate


def _layers(route: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, route.split(",")))
    except ValueError:
        raise click.UsageError(f"--route {route}: expected layers with commas between them, as 1,2,6") from None


def _check_place(json_file: Path | None) -> None:
    """Before the work is done, not after."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise click.UsageError(f"--json {json_file}: no folder {json_file.parent}; make it first")
    if json_file is not None and json_file.is_dir():
        raise click.UsageError(f"--json {json_file}: is a folder; name a file")


def _write_json(json_file: Path | None, result: Any) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
        click.echo(f"written: {json_file}")


engine_option = click.option("--engine", help="One of the bundle's engines, ort or ort-fp32; the first if left out.")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hadskip_export.__version__, prog_name="hadskip-export")
@click.option("-v", "--verbose", count=True, help="Log what is done; twice for more.")
def main(verbose: int) -> None:
    """Train a BERT classifier to skip the layers an input does not need, and serve it so that they are not computed."""
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        logger = logging.getLogger("hadskip_export")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)


@main.command()
@click.option("--model", required=True, help="A Hugging Face BERT: a local folder or a hub name.")
@click.option("--budget", type=float, required=True, help="Layers per input on average; below 1 a share of the layers.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run folder to write.")
@click.option("--task", help="A GLUE task: sst2, rte, cola, mrpc, qnli, qqp or mnli.")
@click.option("--data-dir", help="The task's folder (train.tsv, dev.tsv), or GLUE's root; the hub's if left out.")
@click.option("--train", "train_file", help="Texts to train on: CSV, TSV or JSONL; labelled, unless --fine-tuned.")
@click.option(
    "--eval", "eval_file", help="Labelled texts to set the threshold on (labels unseen) and to report figures on."
)
@click.option("--fine-tuned", is_flag=True, help="MODEL already is the classifier: skip stage I, it is the teacher.")
@click.option(
    "--method",
    default="hadskip",
    show_default=True,
    help="Or a rival of one route, trained alike: budgeted (the first layers) or static (the best ones).",
)
@click.option("--route", help="The layers of --method static, as 1,2,6, instead of a search.")
@click.option("--recipe", help="paper, adaptive or a TOML file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one recipe setting; repeatable.")
@click.option("--resume", is_flag=True, help="Go on after the last finished stage of the same command.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where torch computes.")
@click.option("--max-length", type=int, help="Tokens per input; 128 (or the model's maximum) if left out.")
@_columns(*COLUMN_OPTIONS)
def train(train_file: str | None, eval_file: str | None, route: str | None, **options: Any) -> None:
    """Teach a BERT to skip layers, as the recipe has it; write a run folder."""
    layers = None if route is None else _layers(route)
    summary = hadskip_export.train(train=train_file, eval=eval_file, route=layers, **options)
    from hadskip_export.trainers.summary import table

    click.echo(table(summary))
    click.echo(f"written: {options['out']}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--engine", help=f"One of {', '.join(ENGINES)}; of a run, ort if left out.")
@click.option("--precision", default="fp32", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="The bundle to write; where SOURCE is a run.")
@click.option("--budget", type=float, help="Which of the run's budgets; the last if left out.")
@click.option(
    "--gates", type=click.Choice(get_args(GateLayout)), help="Their layout; the engine's fastest if left out."
)
@click.option("--golden", type=click.Path(path_type=Path), help="Texts, one a line, to keep as golden inputs.")
@click.option("--no-full", is_flag=True, help="Leave the fine-tuned BERT out (no kill switch, no bench).")
@click.option("--graph", is_flag=True, help="Add the whole model as one ONNX file, for programs without Python.")
@click.option(
    "--single",
    type=click.Choice(get_args(Single)),
    help="How inputs that come alone run: like a batch; the commonest route tried first; as one engine, as"
    " most engines then run batches, too. Left out: the engine's own way.",
)
def build(no_full: bool, **options: Any) -> None:
    """Export the pieces of a run (SOURCE), check them against PyTorch, write a bundle.

    Of a bundle (SOURCE): add another engine to it, or the graph, made from its pieces and checked against them.
    """
    report = hadskip_export.build(full=not no_full, **options)
    for line in [] if report is None else report.lines():
        click.echo(line)
    click.echo(f"written: {options['out'] or options['source']}")
    sys.exit(0 if report is None or report.parity == "passed" else 1)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--pair", help="The second text of a pair; with one TEXT.")
@click.option("--input", help="Classify the rows of a CSV, TSV or JSONL file.")
@click.option("--output", help="Write the answers there instead of printing them.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="At a bad row of the file: stop and write nothing, or name it on stderr and do the others.",
)
@click.option(
    "--gate-threshold", type=float, help="Run a layer where its margin is above this; the fitted value if left out."
)
@click.option("--max-layers", type=int, help="The most layers an input may run.")
@click.option("--router", type=click.Choice(["gates", "full"]), default="gates", show_default=True)
@engine_option
@_columns("text", "pair")
def predict(bundle: Path, texts: tuple[str, ...], pair: str | None, **options: Any) -> None:
    """Classify TEXTS, or a file; prints a JSON line each."""
    if not texts and options["input"] is None:
        raise click.UsageError("nothing to classify: give a TEXT or --input FILE")
    if pair is not None and len(texts) != 1:
        raise click.UsageError("--pair goes with exactly one TEXT")
    for name in ("max_layers", "gate_threshold"):
        if options["router"] == "full" and options[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')}: --router full runs every layer; leave one of them out")
    inputs = [(texts[0], pair)] if pair is not None else list(texts)
    for line in hadskip_export.predict(bundle, inputs, **options):
        click.echo(line)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", help="Labelled texts (CSV, TSV, JSONL) to compare on and to measure the metric on.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all of it there, every flip.")
@engine_option
@_columns(*COLUMN_OPTIONS)
def validate(json_file: Path | None, **options: Any) -> None:
    """Check a bundle on this machine: golden files, every piece, routes, labels. An engine that was never checked is
    marked in the bundle as what it is found to be."""
    _check_place(json_file)
    validation = hadskip_export.validate(**options)
    click.echo("\n".join(validation.lines()))
    _write_json(json_file, validation.plain())
    sys.exit(0 if validation.passed else 1)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Texts like those to be served (CSV, TSV, JSONL); labels are not needed.")
@click.option(
    "--budget", "budgets", type=float, multiple=True, help="Mean layers; repeatable; the bundle's if left out."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write it there, too.")
@engine_option
@_columns(*COLUMN_OPTIONS)
def calibrate(json_file: Path | None, **options: Any) -> None:
    """Find the thresholds at which a bundle keeps a budget on your own texts."""
    _check_place(json_file)
    calibration = hadskip_export.calibrate(**options)
    click.echo("\n".join(calibration.lines()))
    _write_json(json_file, asdict(calibration))


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest or summary as JSON.")
@click.option("--plots", type=click.Path(path_type=Path), help="Draw a run's figures there, as SVG and PNG.")
def inspect(as_json: bool, **options: Any) -> None:
    """Say what a bundle or a run folder is."""
    plain, lines = hadskip_export.inspect(**options)
    click.echo(json.dumps(plain, indent=2) if as_json else "\n".join(lines))


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", help="Labelled texts (CSV, TSV, JSONL) to time and to measure the metric on.")
@click.option("--batch", type=int, multiple=True, default=(1,), show_default=True, help="Inputs per call; repeatable.")
@click.option("--against", default="full", show_default=True, help="What to compare with, separated by commas.")
@click.option("--max-layers", type=int, help="The most layers an input may run.")
@click.option("--profile", is_flag=True, help="Split a call into tokeniser, embeddings, layers, gates, head, Python.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures and raw samples there.")
@engine_option
@_columns(*COLUMN_OPTIONS)
def bench(json_file: Path | None, against: str, **options: Any) -> None:
    """Time a bundle against full BERT on the same inputs, in interleaved turns."""
    _check_place(json_file)
    result = hadskip_export.bench(against=tuple(against.split(",")), **options)
    from hadskip_export.commands.bench import Row

    click.echo("\n\n".join("\n".join(Row(**row).lines()) for row in result["rows"]))
    _write_json(json_file, result)


@main.command()
@click.option(
    "--model", required=True, help="bert-base, bert-large, minilm, a model folder, its config.json, a hub name."
)
@click.option("--layers-run", type=float, required=True, help="Layers that each input runs; below 1 a share of them.")
@click.option("--engine", default="ort", show_default=True, help=f"One of {', '.join(ENGINES)}.")
@click.option("--precision", default="fp32", show_default=True)
@click.option("--seq", type=int, multiple=True, default=(64, 128), show_default=True, help="Tokens; repeatable.")
@click.option("--batch", type=int, multiple=True, default=(1,), show_default=True, help="Inputs per call; repeatable.")
@click.option(
    "--routing",
    type=click.Choice(["same", "mixed"]),
    multiple=True,
    help="The same layers for all inputs, or each its own; repeatable. Both, above batch 1, if left out.",
)
@click.option(
    "--gates", type=click.Choice(get_args(GateLayout)), help="Their layout; the engine's fastest if left out."
)
@click.option(
    "--single",
    type=click.Choice([way for way in get_args(Single) if way != "guess"]),
    help="How inputs that come alone run, see build. Left out: the chain with --gates, else the engine's own way.",
)
@click.option("--against", help="Full BERT's engine, as ort-fp32, where it is to be another one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the routes.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures and raw samples there.")
def estimate(json_file: Path | None, **options: Any) -> None:
    """The speedup this machine would give, before anyone trains: random weights, forced gates."""
    _check_place(json_file)
    result = hadskip_export.estimate(**options)
    from hadskip_export.commands.estimate import table

    click.echo("\n".join(table(result["rows"])))
    _write_json(json_file, result)


@main.command()
@click.option("--fresh", is_flag=True, help="Measure again, even if this machine was measured before.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def doctor(fresh: bool, as_json: bool) -> None:
    """Say what this machine can run, what it lacks, and which engine is the fastest on it."""
    diagnosis = hadskip_export.doctor(fresh=fresh)
    click.echo(json.dumps(asdict(diagnosis), indent=2) if as_json else "\n".join(diagnosis.lines()))
    sys.exit(0 if diagnosis.healthy else 1)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where run, bundle and bench.json go.")
@click.option("--sentences", type=int, default=4000, show_default=True, help="How many to train on.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one recipe setting; repeatable.")
def demo(**options: Any) -> None:
    """Train, build, validate and benchmark on real sentences with a real pretrained BERT."""
    for line in hadskip_export.demo(**options):
        click.echo(line)
