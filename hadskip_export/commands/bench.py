"""`bench`: a bundle against full BERT on the same inputs, in interleaved turns, each system in its own process."""

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.benchmark.libraries import LIBRARIES, loaded_library
from hadskip_export.benchmark.measure import Contest, Figures, Workload
from hadskip_export.benchmark.race import PeerFigures, fastest_as_good, loaded_bundle, race
from hadskip_export.benchmark.systems import choose_calls
from hadskip_export.data.columns import Columns, check_used
from hadskip_export.data.examples import Examples, read_examples
from hadskip_export.data.metrics import METRICS, check_tells
from hadskip_export.data.problems import groups_of
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.report.plain import check_page
from hadskip_export.routing.routes import Route, as_route, statistics
from hadskip_export.runtime.bundle import Bundle, read_bundle
from hadskip_export.runtime.engines import Cut
from hadskip_export.runtime.manifest import EngineInfo
from hadskip_export.runtime.predictor import LoadOptions, Predictor
from hadskip_export.runtime.tokenization import Text
from hadskip_export.support.environment import busy_share, environment
from hadskip_export.support.errors import BundleError, DataError, first_line, optional_import
from hadskip_export.support.files import scratch
from hadskip_export.support.values import several
from hadskip_export.support.words import as_command, counted
from hadskip_export.verification.golden import check_golden, read_golden

EXAMPLES = 4
CLASSIFIER = "ForSequenceClassification"  # what the name of one ends with
EFFICIENT = 0.9  # from here on the calls between the pieces are not worth another build


@dataclass(frozen=True)
class Example:
    """A text, and the layers that it ran."""

    text: Text
    route: Route


@dataclass(frozen=True, kw_only=True)
class Row(Figures):
    """One measurement.

    Args:
        data: the file of the texts that are timed; None where they are the bundle's golden inputs, of which neither
            layers nor speed say anything about anybody's texts.
        mean_layers: mean layers per input over all of the texts; `layers_run`: of the timed calls.
        metric, full_metric: with gates and of full BERT, on all of the labelled data; None without labels.
        histogram: share of inputs that ran 0, 1, ..., L layers, over all of the data; `usage`: that ran each layer.
        examples: some of the texts that ran the fewest layers, and of those that ran the most; none of made-up ones.
        profile: mean milliseconds of a call by part, see `profile`; None where it was not asked for.
        hint: how it could be faster, see `faster_cut`; None where nobody knows.
    """

    data: str | None
    metric_name: str
    metric: float | None
    full_metric: float | None
    mean_layers: float
    histogram: tuple[float, ...]
    usage: tuple[float, ...]
    examples: tuple[Example, ...]
    profile: dict[str, float] | None
    hint: str | None


@dataclass(frozen=True)
class Benchmark:
    """What `bench` measured, a row per batch size, and the machine that it measured on. `peers`: the bundle, its full
    BERT and what they were held against, in that order."""

    environment: dict[str, Any]
    rows: tuple[Row, ...]
    peers: tuple[PeerFigures, ...] = ()

    @property
    def rival(self) -> PeerFigures | None:
        """The fastest of the others whose metric is as good as the bundle's or better."""
        return fastest_as_good(self.peers[0], self.peers[1:]) if self.peers else None


@dataclass(frozen=True)
class _Inputs:
    """What is timed: texts, tokens of each int [texts], their file, and what is to be answered, see `Problem.targets`;
    both None of golden inputs."""

    texts: list[Text]
    lengths: np.ndarray
    data: str | None
    targets: np.ndarray | None


def bench(
    bundle: str | Path,
    *,
    engine: str | None = None,
    precision: str | None = None,
    cut: Cut | None = None,
    data: str | Path | None = None,
    batch: Sequence[int] = (1,),
    max_layers: int | None = None,
    profile: bool = False,
    against: Sequence[str | Path] = (),
    report: str | Path | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Benchmark:
    """Times a bundle against full BERT.

    Args:
        engine, precision, cut: which of the bundle's engines, see `Predictor.load`.
        data: labelled texts to time and to measure the metric on; the golden texts if left out.
        batch: inputs per call; one row for each.
        max_layers: the most layers an input may run.
        profile: split a call into its parts, too.
        against: folders of other classifiers of the same labels, smaller ones perhaps: each is built for the engine
            with all of its layers, which needs torch, and timed in turns with the bundle. `optimum:folder`,
            `optimum-int8:`, `torch-compile:` and `openvino-full:` serve it by another library, in an environment that
            is made for it. Needs labelled `data`.
        report: an HTML file to write, with tables and pictures.

    Raises:
        BundleError: see `read_bundle`; a bundle without its full model; an engine that was never checked, or does not
            give the answers it gave when it was built, for the speed of wrong answers is worth nothing.
        BudgetError: `max_layers` is not between 1 and the number of layers.
        EngineError: another library cannot be installed, or cannot serve a folder.
        DataError: see `read_examples`; a folder of other labels; a label the model does not
            know; a batch below 1, or of more than all texts.
    """
    batch, against = several("batch", batch), several("against", against)
    if any(size < 1 for size in batch):
        raise DataError("--batch: expected at least 1")
    if report is not None:
        check_page(Path(report))
    if against and data is None:
        raise DataError("--against: give labelled --data, for the fastest of several is of no use where it is wrong")
    columns, others = Columns(text_column, pair_column, label_column), _others(against)
    check_used(columns, data is not None)
    before, busy = environment(), busy_share()
    opened = read_bundle(bundle)
    info = opened.engine(engine, precision, cut)
    _check_comparable(opened, info)
    examples = None
    if data is not None:
        examples = read_examples(data, columns, opened.manifest.model.problem)
    inputs = _checked_inputs(opened, info, examples, None if data is None else Path(data).name)
    for size in batch:
        if size > len(inputs.texts):
            raise DataError(
                f"--batch {size}: more than the {counted(len(inputs.texts), 'text')} there; give more with --data"
            )
    with Contest(opened, info, inputs.texts, options={"max_layers": max_layers}, busy=busy) as contest:
        rows = tuple(_row(contest, opened, info, inputs, size=size, profile=profile) for size in batch)
    peers = _peers(opened, info, inputs, others, max_layers) if others else ()
    found = Benchmark(before | {"load_after": environment()["load"]}, rows, peers)
    if report is not None:
        command = as_command(
            "bench", bundle, engine=engine, precision=precision, cut=cut, data=data, batch=batch, max_layers=max_layers,
            profile=profile, against=against, text_column=text_column, pair_column=pair_column,
            label_column=label_column, report=report,
        )  # fmt: skip
        _write_report(found, opened, info, Path(report), command)
    return found


def _write_report(found: Benchmark, bundle: Bundle, info: EngineInfo, file: Path, command: str) -> None:
    from hadskip_export import __version__
    from hadskip_export.report.page import write_benchmark

    manifest, about = bundle.manifest, found.environment
    point = manifest.default_point
    write_benchmark(
        found,
        bundle.path.resolve().name,
        file,
        {
            "command": command,
            "hadskip-export": __version__,
            "engine": f"{info.name}, parity {info.parity}",
            "operating point": f"{point.budget:g} of {manifest.model.layers} layers, met on {point.data}",
            "chip": about["chip"],
            "CPUs": about["cpus"],
            "versions": [f"{library} {version}" for library, version in about["versions"].items()],
        },
    )


def _peers(
    bundle: Bundle, info: EngineInfo, inputs: _Inputs, others: Sequence[tuple[str | None, Path]], max_layers: int | None
) -> tuple[PeerFigures, ...]:
    """The bundle, its full BERT and other classifiers with all of their layers, in the bundle's engine or as another
    library serves them."""
    manifest, plan = bundle.manifest, EnginePlan.of(info.engine, info.precision)
    labels, problem, groups = manifest.model.labels, manifest.model.problem, groups_of(inputs.texts)

    def score(logits: np.ndarray) -> float:
        assert inputs.targets is not None
        return METRICS[manifest.metric](problem, logits, inputs.targets, groups)

    with scratch() as place, ExitStack() as stack:
        every, texts = tuple(range(len(labels))), inputs.texts
        skip: dict[str, Any] = {"engine": info.name, "max_layers": max_layers}
        full: dict[str, Any] = {"engine": info.name, "router": "full"}
        starting = [
            loaded_bundle("hadskip", bundle.path, skip, every, texts),
            loaded_bundle("full BERT", bundle.path, full, every, texts),
        ]
        for number, (library, folder) in enumerate(others):
            out = place / f"peer-{number}"
            if library is not None:
                starting.append(loaded_library(library, folder, manifest.model, texts, out))
            else:
                optional_import("torch", "train")
                from hadskip_export.benchmark.peers import loaded_peer

                starting.append(loaded_peer(folder, manifest, plan, texts, out))
        return race([stack.enter_context(one) for one in starting], texts, score)


def _others(against: Sequence[str | Path]) -> list[tuple[str | None, Path]]:
    """The library and the folder of each `optimum:folder`; no library of `folder`.

    Raises:
        DataError, BundleError: two of one name, or a folder without a classifier; before anything is timed, for its
            library may be long in the making.
    """
    others: list[tuple[str | None, Path]] = []
    called: list[tuple[str | None, str]] = [(None, "hadskip"), (None, "full BERT")]
    for given in against:
        name, _, rest = str(given).partition(":")
        library, folder = (name, Path(rest).resolve()) if name in LIBRARIES else (None, Path(given).resolve())
        others.append((library, folder))
        called.append((library, folder.name))
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise DataError(f"--against: several are called {twice[1]}; rename a folder")
    for given, (library, folder) in zip(against, others, strict=True):
        _check_classifier(given, folder, unnamed="" if library else CLASSIFIER)
    return others


def _check_classifier(given: str | Path, folder: Path, unnamed: str) -> None:
    """
    Args:
        unnamed: what one is that config.json does not name. Our own weights tell; other libraries make a new classifier
            where there is none.
    """
    if not (folder / "config.json").is_file():
        what = "no config.json there" if folder.is_dir() else "no such folder"
        raise DataError(f"--against {given}: {what}; name the folder of a fine-tuned classifier")
    try:
        config = json.loads((folder / "config.json").read_bytes())
        architecture = str(next(iter(config.get("architectures") or ()), unnamed))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"--against {given}: its config.json cannot be read ({first_line(error)})") from error
    if not architecture.endswith(CLASSIFIER):
        what = architecture or "a model of no named architecture"
        raise BundleError(
            f"--against {given}: {what} has no classifier of its own; name the folder of a fine-tuned one"
        )


def _check_comparable(bundle: Bundle, info: EngineInfo) -> None:
    """
    Raises:
        BundleError: no full model, or an engine that was never checked.
    """
    if "full" not in info.files:
        raise BundleError(
            f"{bundle.path}: carries no full model to compare with (built with --no-full); build it again"
        )
    if info.parity == "unverified":
        raise BundleError(
            f"{bundle.path}: {info.name} was never checked; run hadskip-export validate on this machine first"
        )


def _checked_inputs(bundle: Bundle, info: EngineInfo, examples: Examples | None, data: str | None) -> _Inputs:
    """The user's texts, or the golden ones, once the engine has given its golden answers.

    Raises:
        BundleError: it gives others.
        DataError: see `check_tells`.
    """
    recorded = read_golden(bundle)
    texts = recorded.texts if examples is None else examples.texts
    with Predictor(bundle, LoadOptions(info.name)) as predictor:
        check = check_golden(predictor, recorded)
        lengths = np.array([len(encoded) for encoded in predictor.tokenizer.encode(texts)])
    if not check.passed:
        numbers = f"{counted(check.flips, 'flip')} of routes, logits differ by up to {check.logits_largest:.1e}"
        raise BundleError(
            f"{bundle.path}: on this machine {info.name} does not give its golden answers"
            f" ({numbers if check.labels_agree else 'its labels are others'}); run hadskip-export validate"
        )
    if examples is None:
        return _Inputs(texts, lengths, None, None)
    targets = bundle.manifest.model.problem.targets(examples.labels)
    check_tells(bundle.manifest.metric, targets, groups_of(texts), str(data))
    return _Inputs(texts, lengths, data, targets)


def _row(contest: Contest, bundle: Bundle, info: EngineInfo, inputs: _Inputs, *, size: int, profile: bool) -> Row:
    """Times batches of one size, and answers all texts in such batches for the metric and the layers run."""
    manifest = bundle.manifest
    answers = contest.skip.ask("answers", batch_size=size)
    routes = np.array(answers["routes"])
    found = statistics(routes)
    metric = full_metric = None
    if inputs.targets is not None:
        full_answers = next(iter(contest.full.values())).ask("answers", batch_size=size)
        score, problem, groups = METRICS[manifest.metric], manifest.model.problem, groups_of(inputs.texts)
        metric, full_metric = (
            score(problem, np.array(given["logits"]), inputs.targets, groups) for given in (answers, full_answers)
        )
    calls = choose_calls(len(inputs.texts), size)
    figures = contest.measure(Workload(calls, inputs.lengths, routes, "data", f"batch {size}"))
    parts = contest.skip.ask("profile", calls=[call.tolist() for call in calls])["parts"] if profile else None
    shown = [] if inputs.data is None else easiest_and_hardest(inputs.texts, routes.sum(axis=1))
    return Row(
        **vars(figures),
        data=inputs.data,
        metric_name=manifest.metric,
        metric=metric,
        full_metric=full_metric,
        mean_layers=found.mean_layers,
        histogram=tuple(found.histogram),
        usage=tuple(found.usage),
        examples=tuple(Example(inputs.texts[row], as_route(routes[row])) for row in shown),
        profile=parts and {part: seconds * 1e3 for part, seconds in parts.items()},
        hint=None if figures.warnings else faster_cut(bundle, info, figures.efficiency),
    )


def easiest_and_hardest(texts: Sequence[Text], layers_run: np.ndarray) -> list[int]:
    """Positions of different texts, at most `EXAMPLES` that ran the fewest layers and as many that ran the most, by
    layers run; none where all ran as many."""
    if layers_run.min() == layers_run.max():
        return []
    first: dict[Text, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    order = sorted(first.values(), key=lambda row: layers_run[row])
    few = min(EXAMPLES, len(order) // 2)
    return order[:few] + order[len(order) - few :]


def faster_cut(bundle: Bundle, info: EngineInfo, efficiency: float | None) -> str | None:
    """The command that builds the engine's fastest cut, where the calls between the pieces cost a small model much."""
    fastest = EnginePlan.of(info.engine, info.precision, router=bundle.manifest.router).cut
    if info.cut == fastest or efficiency is None or efficiency >= EFFICIENT:
        return None
    command = ["hadskip-export", "build", str(bundle.path), "--engine", info.engine, "--precision", info.precision]
    return shlex.join([*command, "--cut", fastest])
