"""The command line: parse, call one function, render what it returns. How a command ends: report/console.py."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from click.shell_completion import CompletionItem

import hadskip_export
from hadskip_export.comparison.entrants import NAMES
from hadskip_export.data.glue import GLUE_TASKS
from hadskip_export.data.metrics import AGREEMENT, METRICS
from hadskip_export.data.problems import PROBLEM_TYPES
from hadskip_export.report import text
from hadskip_export.report.console import Commands, json_option, show, verbose
from hadskip_export.runtime.bundle import MANIFEST
from hadskip_export.runtime.engines import ENGINES, PRECISIONS, Cut
from hadskip_export.serving.limits import Limits
from hadskip_export.support.progress import speaks
from hadskip_export.trainers.methods import HADSKIP, METHODS, REFUSED

COLUMNS = ("text", "pair", "label")
FILES = "CSV, TSV or JSONL, also .gz, Parquet, or a folder saved by datasets"
# Of PyTorch's threads, before they sleep: some 40 microseconds. By default it is milliseconds, and on a machine whose
# cores are busy a thread that waits so for another keeps that one from its core.
SPIN_COUNT = "1000"
NEVER_RUN = "Plans of trt-rtx were built and never run; trt was never built by us."


def _columns(*kinds: str) -> Any:
    """The options that name columns of a file."""

    def decorate(command: Any) -> Any:
        for kind in reversed(kinds):
            command = click.option(f"--{kind}-column", help=f"The {kind}'s column, where its name does not say.")(
                command
            )
        return command

    return decorate


def _check_router(options: Mapping[str, Any]) -> None:
    for name in ("max_layers", "gate_threshold", "budget"):
        if options["router"] == "full" and options.get(name) is not None:
            raise click.UsageError(f"--{name.replace('_', '-')}: --router full runs every layer; leave one of them out")


class _BundleEngine(click.ParamType):
    """The name of an engine, with its precision and cut or without; a bundle says itself which it has. Where the
    command line names one, a shell completes those."""

    name = "engine"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names = set(ENGINES)
        try:
            bundle = ctx.params["bundle"] or ctx.args[0]  # an option that still lacks its value ends the parsing
            manifest = json.loads((Path(bundle) / MANIFEST).read_bytes())
            names = {"-".join(info[part] for part in ("engine", "precision", "cut")) for info in manifest["engines"]}
        except (LookupError, TypeError, OSError, ValueError):  # no bundle: nobody is there to read a complaint
            pass
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


class _Method(click.Choice):
    """A method of training. Of a system that is none here, it says why."""

    def __init__(self) -> None:
        super().__init__([HADSKIP, *METHODS])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in REFUSED:
            self.fail(f"{value}: {REFUSED[value]}", param, ctx)
        return super().convert(value, param, ctx)


_precision = click.option(
    "--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="That it computes in."
)
_cut = click.option(
    "--cut", type=click.Choice(get_args(Cut)), help="How finely the model is cut; the engine's fastest if left out."
)


_label_thresholds = click.option(
    "--label-threshold",
    "label_thresholds",
    multiple=True,
    metavar="LABEL=P",
    help="Of several labels at once: give LABEL above this probability; 0.5, or as trained, if left out; repeatable.",
)


_budget = click.option(
    "--budget", type=float, help="Layers per input on average; the bundle's default point if left out."
)
_router = click.option("--router", type=click.Choice(["gates", "full"]), default="gates", show_default=True)
_verify = click.option("--verify", metavar="KEY", help="Refuse a bundle that this public key's holder did not sign.")


def _task(command: Any) -> Any:
    """The options that say what is trained on."""
    options = (
        click.option("--task", type=click.Choice(list(GLUE_TASKS)), help="A GLUE task."),
        click.option(
            "--data-dir", help="The task's folder (train.tsv, dev.tsv), or GLUE's root; the hub's if left out."
        ),
        click.option("--train", "train_file", help=f"Texts to train on: {FILES}; labelled, unless --fine-tuned."),
        click.option(
            "--eval",
            "eval_file",
            help="Texts to set the threshold on (labels unseen) and to report figures on; labelled, unless"
            " --fine-tuned.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _engine(command: Any) -> Any:
    """The options that choose one of a bundle's engines."""
    options = (
        click.option(
            "--engine",
            type=_BundleEngine(),
            help="One of the bundle's engines, as ort, ort-int8 or ort-int8-gates; the first if left out.",
        ),
        click.option("--precision", type=click.Choice(PRECISIONS), help="The one of this precision."),
        click.option("--cut", type=click.Choice(get_args(Cut)), help="The one that cuts the model so finely."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _layers(route: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, route.split(",")))
    except ValueError:
        raise click.UsageError(f"--route {route}: expected layers with commas between them, as 1,2,6") from None


def _thresholds(given: Sequence[str]) -> dict[str, float]:
    found = {}
    for one in given:
        try:
            label, probability = one.rsplit("=", 1)
            found[label] = float(probability)
        except ValueError:
            raise click.UsageError(f"--label-threshold {one}: expected a label and a number, as toxic=0.3") from None
    return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hadskip_export.__version__, prog_name="hadskip-export")
@verbose
def main() -> None:
    """Train a BERT classifier to skip the layers an input does not need, and serve it so that they are not computed."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


@main.command()
@click.option("--model", required=True, help="A Hugging Face BERT: a local folder or a hub name.")
@click.option("--budget", type=float, required=True, help="Layers per input on average, by default; below 1 a share.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run folder to write.")
@_task
@click.option("--fine-tuned", is_flag=True, help="MODEL already is the classifier: skip stage I, it is the teacher.")
@click.option(
    "--problem-type",
    type=click.Choice(PROBLEM_TYPES),
    help="What the labels are; the fine-tuned model's own, else several where rows have lists, one where not.",
)
@click.option("--metric", type=click.Choice([name for name in METRICS if name != AGREEMENT]), help="What is reported.")
@_label_thresholds
@click.option(
    "--method",
    type=_Method(),
    default=HADSKIP,
    show_default=True,
    help="hadskip (as the recipe has it), joint or nested; or a rival, trained alike: of one route (budgeted, static)"
    " or of exits (the others), see docs/method.md.",
)
@click.option("--route", help="The layers of --method static, as 1,2,6, instead of a search.")
@click.option("--recipe", help="paper, adaptive or a TOML file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one recipe setting; repeatable.")
@click.option("--resume", is_flag=True, help="Go on after the last finished stage of the same command.")
@click.option("--force", is_flag=True, help="Remove the run that --out is, and begin anew.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where torch computes.")
@click.option("--max-length", type=int, help="Tokens per input; 128 (or what the model reads, if less) if left out.")
@_columns(*COLUMNS)
@json_option
def train(
    *,
    train_file: str | None,
    eval_file: str | None,
    route: str | None,
    label_thresholds: Sequence[str],
    json_file: Path | None,
    **options: Any,
) -> None:
    """Teach a BERT to skip layers, as the recipe has it; write a run folder."""
    layers = None if route is None else _layers(route)
    summary = hadskip_export.train(
        train=train_file, eval=eval_file, route=layers, label_thresholds=_thresholds(label_thresholds), **options
    )
    if speaks():
        show([*text.training(summary), f"written: {options['out']}"], summary, json_file)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--engine", type=click.Choice(list(ENGINES)), help=f"Of a run, ort if left out. {NEVER_RUN}")
@_precision
@click.option("--out", type=click.Path(path_type=Path), help="The bundle to write; where SOURCE is a run.")
@click.option(
    "--budget", type=float, help="The default among the run's budgets; the one asked for in training if left out."
)
@_cut
@click.option("--golden", type=click.Path(path_type=Path), help="Texts, one a line, to keep as golden inputs.")
@click.option("--no-full", is_flag=True, help="Leave the fine-tuned BERT out (no kill switch, no bench).")
@click.option("--force", is_flag=True, help="Replace a bundle that --out is.")
@click.option("--sign", metavar="KEY", help="Sign it with this private key (PEM); of a bundle, also without --engine.")
@json_option
def build(no_full: bool, json_file: Path | None, **options: Any) -> None:
    """Export the pieces of a run (SOURCE), check them against PyTorch, write a bundle.

    Of a bundle (SOURCE): add another engine to it, made from its pieces and checked against them.
    """
    report = hadskip_export.build(full=not no_full, **options)
    checked = [] if report is None else text.parity(report)
    show([*checked, f"written: {options['out'] or options['source']}"], report, json_file)
    sys.exit(0 if report is None or report.parity == "passed" else 1)


@main.command()
@click.option("--model", required=True, help="A fine-tuned classifier: a local folder or a hub name.")
@click.option("--data", required=True, help=f"Texts like those to be served ({FILES}), with labels or without.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle to write.")
@click.option("--max-loss", type=float, help="The most of the metric that may be lost; 0.01 if neither is given.")
@click.option("--p50", type=float, help="Milliseconds that half of the calls may take; what loses least is chosen.")
@click.option("--minutes", type=float, default=30, show_default=True, help="What all of it may take, about.")
@click.option("--engine", "engines", multiple=True, help="To try, as ort-int8; repeatable. By measuring if left out.")
@click.option("--epochs", type=int, help="How long to train; what fits into the minutes if left out.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one recipe setting; repeatable.")
@click.option("--work", type=click.Path(path_type=Path), help="Keep what is trained there, for another goal.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where torch trains.")
@click.option("--max-length", type=int, help="Tokens per input; what the model reads if left out.")
@_columns(*COLUMNS)
@json_option
def optimize(json_file: Path | None, **options: Any) -> None:
    """From a classifier and texts to the fastest bundle that loses little enough here."""
    found = hadskip_export.optimize(**options)
    show(text.optimization(found), found, json_file)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for all that may ask.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--token", help="What clients must send as their bearer token; else what HADSKIP_TOKEN says, if set.")
@_budget
@click.option("--least-budget", type=float, help="While requests queue, lower the budget step by step, down to this.")
@_router
@click.option("--threads", type=int, help="The most threads a batch is computed with; all CPUs if left out.")
@click.option("--inputs", default=Limits.inputs, show_default=True, help="The most of one request.")
@click.option("--queue", default=Limits.queue, show_default=True, help="Inputs not answered yet; 429 for more.")
@click.option("--batch-tokens", default=Limits.batch_tokens, show_default=True, help="Computed together.")
@click.option("--body", default=Limits.body, show_default=True, help="The most bytes of a request.")
@click.option("--timeout", default=Limits.timeout, show_default=True, help="Seconds until a request is given up.")
@click.option("--traces", is_flag=True, help="Send OpenTelemetry traces to where OTEL_EXPORTER_OTLP_ENDPOINT says.")
@_label_thresholds
@_verify
@_engine
def serve(label_thresholds: Sequence[str], token: str | None, **options: Any) -> None:
    """Serve a bundle over HTTP, by the routes that clients of text-embeddings-inference and Hugging Face know."""
    token = os.environ.get("HADSKIP_TOKEN") if token is None else token  # not click's: empty, it would be none
    hadskip_export.serve(label_thresholds=_thresholds(label_thresholds), token=token, **options)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--pair", help="The second text of a pair; with one TEXT.")
@click.option("--input", help=f"Classify the rows of a file ({FILES}), whose other columns are passed on.")
@click.option("--output", help="Write the answers there, to a .jsonl or .csv file, instead of printing them.")
@click.option("--force", is_flag=True, help="Replace an --output that exists.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="At a bad row of the file: stop and write nothing, or name it on stderr and do the others.",
)
@_budget
@click.option("--gate-threshold", type=float, help="Run a layer where its margin is above this; instead of --budget.")
@click.option("--max-layers", type=int, help="The most layers an input may run.")
@_router
@_label_thresholds
@_verify
@_engine
@_columns("text", "pair")
def predict(
    bundle: Path, texts: tuple[str, ...], pair: str | None, label_thresholds: Sequence[str], **options: Any
) -> None:
    """Classify TEXTS, or a file, or the lines of standard input (-); prints a JSON line each."""
    if texts == ("-",) and options["input"] is None:
        texts, options["input"] = (), "-"
    if "-" in texts:
        raise click.UsageError("-: standard input goes alone; leave the other TEXTS or --input out")
    if not texts and options["input"] is None:
        raise click.UsageError("nothing to classify: give a TEXT, - or --input FILE")
    if texts and options["input"] is not None:
        raise click.UsageError(f"--input {options['input']}: leave it or the TEXTS out")
    if pair is not None and len(texts) != 1:
        raise click.UsageError("--pair goes with exactly one TEXT")
    _check_router(options)
    inputs = [(texts[0], pair)] if pair is not None else list(texts)
    for line in hadskip_export.predict(bundle, inputs, label_thresholds=_thresholds(label_thresholds), **options):
        click.echo(line)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder of answers.")
@click.option("--rows", type=int, default=10_000, show_default=True, help="Of a part, which is computed whole or not.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="At a bad row: stop, or give it an error for an answer and go on.",
)
@click.option("--ray", is_flag=True, help="On a cluster of Ray's: RAY_ADDRESS, or this machine alone.")
@click.option(
    "--workers", type=int, help="Of Ray, the most predictors at a time; all that there is room for if left out."
)
@click.option("--threads", type=int, help="The most threads a predictor computes with; all CPUs, 1 with Ray.")
@_budget
@_router
@_label_thresholds
@_verify
@_engine
@_columns("text", "pair")
@json_option
def score(label_thresholds: Sequence[str], json_file: Path | None, **options: Any) -> None:
    """Answer files of any size (INPUTS, or folders of them); called again, it goes on where it was stopped."""
    _check_router(options)
    done = hadskip_export.score(label_thresholds=_thresholds(label_thresholds), **options)
    show(text.scored(done, options["out"]), done, json_file)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", help=f"Labelled texts ({FILES}) to compare on and to measure the metric on.")
@_verify
@_engine
@_columns(*COLUMNS)
@json_option
def validate(json_file: Path | None, **options: Any) -> None:
    """Check a bundle on this machine: golden files, every piece, routes, labels. An engine that was never checked is
    marked in the bundle as what it is found to be."""
    validation = hadskip_export.validate(**options)
    show(text.validation(validation), validation, json_file)
    sys.exit(0 if validation.passed else 1)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, help=f"Texts like those to be served ({FILES}); labels are not needed.")
@click.option(
    "--budget", "budgets", type=float, multiple=True, help="Mean layers; repeatable; the bundle's if left out."
)
@click.option("--max-loss", type=float, help="Instead: the smallest budget that loses no more of the metric.")
@click.option("--p50", type=float, help="Instead: the largest budget at which half of the calls take so many ms.")
@click.option("--write", is_flag=True, help="Add what was found to the bundle as operating points.")
@_engine
@_columns(*COLUMNS)
@json_option
def calibrate(json_file: Path | None, **options: Any) -> None:
    """Find the thresholds at which a bundle keeps a budget, a loss or a time on your own texts."""
    calibration = hadskip_export.calibrate(**options)
    show(text.calibration(calibration), calibration, json_file)


@main.command()
@click.option("--model", required=True, help="A Hugging Face BERT: a local folder or a hub name.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder for runs and results.")
@click.option("--budget", "budgets", type=float, multiple=True, required=True, help="Mean layers; repeatable.")
@click.option(
    "--method",
    "methods",
    type=click.Choice(NAMES),
    multiple=True,
    default=NAMES,
    help="A recipe of HadSkip or a rival; repeatable. The first is held against the others. All if left out.",
)
@click.option("--seeds", type=int, default=1, show_default=True, help="How many trainings of each.")
@click.option("--published", is_flag=True, help="Let rivals also learn without a teacher, as most were published.")
@_task
@click.option("--fine-tuned", is_flag=True, help="MODEL already is the classifier and the teacher of all.")
@click.option("--problem-type", type=click.Choice(PROBLEM_TYPES), help="What the labels are, see train.")
@click.option("--metric", type=click.Choice([name for name in METRICS if name != AGREEMENT]), help="What is reported.")
@click.option("--recipe", help="Of the rivals: paper, adaptive or a TOML file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one recipe setting; repeatable.")
@click.option("--device", default="cpu", show_default=True, help="Where torch computes.")
@click.option("--max-length", type=int, help="Tokens per input; 128 (or what the model reads, if less) if left out.")
@click.option("--engine", type=click.Choice(list(ENGINES)), default="ort", show_default=True, help="To time calls on.")
@_precision
@click.option("--no-timing", is_flag=True, help="Only train: time no calls.")
@click.option("--keep", is_flag=True, help="Keep the weights of every run.")
@click.option("--report", type=click.Path(path_type=Path), help="Write an HTML page with the table and a picture.")
@_columns(*COLUMNS)
@json_option
def compare(
    *,
    train_file: str | None,
    eval_file: str | None,
    no_timing: bool,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Train HadSkip and its rivals on a task, time them, and print one table; the same command goes on when stopped."""
    comparison = hadskip_export.compare(train=train_file, eval=eval_file, timing=not no_timing, **options)
    show(text.comparison(comparison), comparison, json_file)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The model repository, new or not.")
@click.option("--name", help="The model's; that of the bundle's folder if left out.")
@_budget
@_router
@click.option("--threads", type=int, help="The most threads a batch is computed with; all CPUs if left out.")
@click.option("--max-batch", type=int, default=32, show_default=True, help="The most inputs computed together.")
@click.option("--force", is_flag=True, help="Replace a model of that name that this command wrote.")
@_engine
def triton(**options: Any) -> None:
    """Make a bundle a model of Triton Inference Server, whose Python then needs this package."""
    click.echo(f"written: {hadskip_export.triton(**options)}")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repository")
@click.option("--bench", help="What bench --json wrote of this bundle, for the page.")
@click.option("--private", is_flag=True, help="Make the repository a private one, if there is none yet.")
@click.option("--dry-run", is_flag=True, help="Only print the page that it would have.")
def push(bundle: Path, repository: str, **options: Any) -> None:
    """Put a bundle on the Hugging Face hub (REPOSITORY, as organisation/name), with a page that says what it is."""
    done = hadskip_export.push(bundle, repository, **options)
    click.echo(done.card if done.url is None else done.url)


@main.command()
@click.argument("repository")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle to write.")
@click.option("--revision", help="A branch, a tag or a commit; the newest if left out.")
def pull(repository: str, **options: Any) -> None:
    """Fetch a bundle from the Hugging Face hub, and check it."""
    hadskip_export.pull(repository, **options)
    click.echo(f"written: {options['out']}")


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--plots", type=click.Path(path_type=Path), help="Draw a run's figures there, as SVG and PNG.")
@click.option("--report", type=click.Path(path_type=Path), help="Write a run's figures and pictures as an HTML page.")
@click.option("--drift", help="Answers that predict --output wrote: are the inputs still what they were?")
@click.option("--budget", type=float, help="The operating point of these answers; the default one if left out.")
@json_option
def inspect(json_file: Path | None, **options: Any) -> None:
    """Say what a bundle or a run folder is; as JSON the manifest or the summary, or with --drift the drift. Exit code 1
    means that much has changed."""
    inspection = hadskip_export.inspect(**options)
    show(text.inspection(inspection), inspection.drift or inspection.content, json_file)
    sys.exit(1 if inspection.drift is not None and inspection.drift.is_much else 0)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", help=f"Labelled texts ({FILES}) to time and to measure the metric on; made-up ones if left out."
)
@click.option("--batch", type=int, multiple=True, default=(1,), show_default=True, help="Inputs per call; repeatable.")
@click.option("--max-layers", type=int, help="The most layers an input may run.")
@click.option("--profile", is_flag=True, help="Split a call into tokeniser, embeddings, layers, gates, head, Python.")
@click.option(
    "--against",
    multiple=True,
    metavar="[LIBRARY:]FOLDER",
    help="Another classifier of the same labels, with all of its layers in the same engine, or in optimum,"
    " optimum-int8, torch-compile or openvino-full, which are installed by themselves; repeatable.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Write an HTML page with tables and pictures.")
@_engine
@_columns(*COLUMNS)
@json_option
def bench(json_file: Path | None, **options: Any) -> None:
    """Time a bundle against full BERT on the same inputs, in interleaved turns."""
    benchmark = hadskip_export.bench(**options)
    show(text.benchmark(benchmark), benchmark, json_file)


@main.command()
@click.option(
    "--model", required=True, help="bert-base, bert-large, minilm, a model folder, its config.json, a hub name."
)
@click.option("--layers-run", type=float, required=True, help="Layers that each input runs; below 1 a share of them.")
@click.option(
    "--method",
    type=_Method(),
    default=HADSKIP,
    show_default=True,
    help="Or a rival's structure.",
)
@click.option("--engine", type=click.Choice(list(ENGINES)), default="ort", show_default=True, help=NEVER_RUN)
@_precision
@_cut
@click.option("--seq", type=int, multiple=True, default=(64, 128), show_default=True, help="Tokens; repeatable.")
@click.option("--batch", type=int, multiple=True, default=(1,), show_default=True, help="Inputs per call; repeatable.")
@click.option(
    "--routing",
    type=click.Choice(["same", "mixed"]),
    multiple=True,
    help="The same layers for all inputs, or each its own; repeatable. Both, above batch 1, if left out.",
)
@click.option("--against", help="Full BERT's engine, as ort-fp32, where it is to be another one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the routes.")
@json_option
def estimate(json_file: Path | None, **options: Any) -> None:
    """The speedup this machine would give, before anyone trains: random weights, forced gates."""
    found = hadskip_export.estimate(**options)
    show(text.estimate(found), found, json_file)


@main.command()
@click.option("--fresh", is_flag=True, help="Measure again, even if this machine was measured before.")
@json_option
def doctor(fresh: bool, json_file: Path | None) -> None:
    """Say what this machine can run, what it lacks, and which engine is the fastest on it."""
    diagnosis = hadskip_export.doctor(fresh=fresh)
    show(text.diagnosis(diagnosis), diagnosis, json_file)
    sys.exit(0 if diagnosis.healthy else 1)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where run, bundle and bench.json go.")
@click.option("--sentences", type=int, default=4000, show_default=True, help="How many to train on.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one recipe setting; repeatable.")
@json_option
def demo(json_file: Path | None, **options: Any) -> None:
    """Train, build, validate and benchmark on real sentences with a real pretrained BERT."""
    done = hadskip_export.demo(**options)
    show(text.demo(done), done, json_file)
