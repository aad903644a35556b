"""Results as lines for a person: what each command prints of the dataclass that its function returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hadskip_export.data.metrics import AGREEMENT
from hadskip_export.data.problems import SINGLE, Problem
from hadskip_export.support.words import counted

if TYPE_CHECKING:  # estimate's module brings torch, which a machine that serves has not
    from pathlib import Path

    from hadskip_export.benchmark.measure import Figures
    from hadskip_export.bulk.job import Scored
    from hadskip_export.commands.bench import Benchmark, Row
    from hadskip_export.commands.calibrate import Calibration
    from hadskip_export.commands.compare import Comparison
    from hadskip_export.commands.demo import Demo, Example
    from hadskip_export.commands.doctor import Diagnosis
    from hadskip_export.commands.estimate import Estimate
    from hadskip_export.commands.inspect import Inspection
    from hadskip_export.commands.optimize import Optimization
    from hadskip_export.commands.validate import Validation
    from hadskip_export.comparison.table import Interval
    from hadskip_export.data.runs import BudgetFigures, Summary
    from hadskip_export.routing.drift import Drift
    from hadskip_export.routing.points import Point
    from hadskip_export.runtime.manifest import EngineInfo, Manifest, RouterInfo
    from hadskip_export.tuning.search import Calibrated
    from hadskip_export.tuning.trial import Candidate
    from hadskip_export.verification.golden import GoldenCheck
    from hadskip_export.verification.labels import ClassScore, DataCheck
    from hadskip_export.verification.parity import ParityReport

Lines = list[str]
NO_SKIPPING = (
    "it runs every layer of your model for every input: no operating point may lose so little and is faster; allow"
    " more with --max-loss, or give more texts"
)

MOST_FLIPS = 10  # listed; the others are counted
EVALUATION = "the evaluation data"  # of runs that do not say its name
MADE_UP = "made-up texts (the bundle's golden inputs)"
YOURS_DIFFER = "your texts run more layers or fewer, and are as much slower or faster; give --data FILE to time them"
OVER_ALL = (
    "  over 100%: the ideal is made of pieces timed one by one, which each cost a call of their own; take it for 100%"
)


# Training


def training(summary: Summary) -> Lines:
    """A run's summary.json: a row per budget. Of texts without labels, how often the student says what its teacher
    says, and how far its probabilities are from the teacher's, in place of a metric and of the share of it."""
    metric, teacher = summary["metric"], summary["teacher"]
    unlabelled = metric == AGREEMENT
    measured = "agreement with the teacher" if unlabelled else metric
    columns = [metric, "divergence" if unlabelled else "retained"]
    told = "" if unlabelled else f"; teacher {teacher['metric']:.4f}"
    if "mismatched_metric" in teacher:
        told += f" (mismatched {teacher['mismatched_metric']:.4f})"
        columns.insert(1, "mismatched")
    headings = ["budget", "layers", *columns, "routes", "top share", "top alone", "static", "skill"]
    rows = [_trained(row, unlabelled) for row in summary["budgets"]]
    widths = [max(7, *map(len, column)) for column in zip(headings, *rows, strict=True)]
    return [
        f"{summary['task']}: {measured} on {summary.get('evaluated_on', EVALUATION)} by budget{told} with all"
        f" {counted(summary['layers'], 'layer')}",
        *(" ".join(map(str.rjust, cells, widths)) for cells in (headings, *rows)),
    ]


def _trained(row: BudgetFigures, unlabelled: bool) -> list[str]:
    kept = "" if row["retained"] is None else f"{row['retained']:.1%}"
    return [
        f"{row['budget']:g}",
        f"{row['mean_layers']:.2f}",
        f"{row['metric']:.4f}",
        *([f"{row['mismatched_metric']:.4f}"] if "mismatched_metric" in row else []),
        f"{row['divergence']:.4f}" if unlabelled else kept,
        str(row["routes"]),
        f"{row['top_route_share']:.1%}",
        f"{row['top_route_metric']:.4f}",
        f"{row['static_metric']:.4f}",
        "" if (skill := row.get("skill")) is None else f"{skill:.0%}",
    ]


# Checks


def parity(report: ParityReport) -> Lines:
    """An engine beside its reference: a row per piece, then end to end, then the verdict."""
    lines = [
        f"{report.engine}-{report.precision}-{report.cut} against {report.reference}, {counted(report.texts, 'text')}"
    ]
    lines += [
        f"  {piece.piece:<17} largest {piece.largest:.1e}  mean {piece.mean:.1e}  tolerance {piece.tolerance:.0e}"
        f"{'' if piece.judged == 'largest' else ' of the mean'}{'' if piece.passed else '  FAILED'}"
        for piece in report.pieces
    ]
    lines.append(
        f"  end to end: routes agree {report.route_agreement:.2%} ({counted(report.flips, 'flip')} not in a near tie),"
        f" labels agree {report.label_agreement:.2%}, logits differ by at most {report.logits_largest:.1e}"
    )
    if report.full_label_agreement is not None and report.precision != "fp32":
        lines.append(f"  full BERT in {report.precision}: labels agree {report.full_label_agreement:.2%} with its fp32")
    verdict = "passed" if report.first_bad_piece is None else f"FAILED at {report.first_bad_piece}"
    return [*lines, f"  parity {verdict}"]


def golden(check: GoldenCheck) -> str:
    """How far an engine is from the answers recorded at the build."""
    return (
        f"{counted(check.texts, 'text')}, {counted(check.flips, 'flip')}, logits differ by at most"
        f" {check.logits_largest:.1e}, tolerance {check.logits_tolerance:.0e}"
        f"{'' if check.labels_agree else ', labels other than when it was built'}"
    )


def validation(found: Validation) -> Lines:
    """Golden answers, parity and, where there was labelled data, what the bundle does with it."""
    verdict = "passed" if found.golden.passed else "FAILED"
    labelled = [] if found.data is None else labelled_data(found.data)
    return [f"golden: {golden(found.golden)} ({verdict})", *parity(found.parity), *_marked(found), *labelled]


def _marked(found: Validation) -> Lines:
    if found.failed_at is None:
        return []
    here = "; the texts compared on here do not show it" if found.parity.parity == "passed" else ""
    return [
        f"  FAILED at {found.failed_at} when it was built, and is marked so: predict and Predictor.load refuse it"
        f"{here}",
        "  build another precision, or load it all the same with allow_failed=True",
    ]


def labelled_data(check: DataCheck) -> Lines:
    """The metric, a row per label, and the first of the inputs whose label is no longer full BERT's."""
    reached = f"{check.metric} {check.value:.4f} at {check.routes.mean_layers:.2f} layers"
    lines = [f"data: {counted(check.texts, 'text')}, {reached}"]
    if check.full_value is not None:
        lines.append(f"  full BERT {check.full_value:.4f}; {_agreement(check)}")
    if check.classes:
        lines += _per_label(check)
    if check.flips is None:
        return lines
    lines.append(
        f"  labels that differ from full BERT's: {len(check.flips)}, {check.better} for the better,"
        f" {check.worse} for the worse"
    )
    lines += [
        f"    line {flip.line}: {flip.full} -> {flip.gates}, truly {flip.expected}: {flip.text}"
        for flip in check.flips[:MOST_FLIPS]
    ]
    if len(check.flips) > MOST_FLIPS:
        lines.append(f"    and {len(check.flips) - MOST_FLIPS} more; --json FILE has them all")
    return lines


def _agreement(check: DataCheck) -> str:
    if check.classes:
        return f"the same answer for {check.label_agreement:.2%}"
    return f"the two correlate at {check.label_agreement:.4f}"


def _per_label(check: DataCheck) -> Lines:
    width = max(len("label"), *(len(score.label) for score in check.classes))
    rows = [f"  {'label':<{width}}  support  precision  recall     F1"]
    rows += [f"  {score.label:<{width}}  {score.support:>7}  {_score(score)}" for score in check.classes]
    if check.full_classes is not None:
        rows[0] += "  full BERT: precision  recall     F1"
        full = ["             " + _score(score) for score in check.full_classes]
        rows[1:] = map(str.__add__, rows[1:], full)
    return rows


def _score(score: ClassScore) -> str:
    shown = ("-" if value is None else f"{value:.3f}" for value in (score.precision, score.recall, score.f1))
    return "{:>9}  {:>6}  {:>5}".format(*shown)


def calibration(found: Calibration) -> Lines:
    """A row per budget, and how to serve at the one that was looked for."""
    chosen, asked = found.chosen, found.rows[1]
    metric = "" if found.rows[0].metric is None else f"{found.metric:>11}"
    loss = "" if asked.loss is None else f"{'loss':>9}{'at most':>9}"
    time = "" if asked.p50_ms is None else f"{'p50 ms':>9}"
    option = f"budget={chosen.budget:g}" if found.written else f"gate_threshold={chosen.threshold:.6g}"
    flag = f"--budget {chosen.budget:g}" if found.written else f"--gate-threshold {chosen.threshold:.6g}"
    return [
        f"layers run by budget on {counted(found.texts, 'text')}, {found.engine}",
        f"{'budget':>8} {'threshold':>10} {'layers':>7} {'commonest':>10}{metric}{loss}{time}",
        *map(_calibrated, found.rows),
        *([f"loss: of {found.loss_of} against full BERT; at most: with 95 % confidence"] if loss else []),
        *([f"the default is now {chosen.budget:g}"] if found.default else []),
        f"for {chosen.budget:g}: Predictor.load({found.bundle!r}, engine={found.engine!r}, {option})",
        f"or hadskip-export predict {found.bundle} --engine {found.engine} {flag}",
    ]


def _calibrated(row: Calibrated) -> str:
    name = "as built" if row.budget is None else f"{row.budget:g}"
    metric = "" if row.metric is None else f"{row.metric:>11.4f}"
    loss = "" if row.loss is None else f"{row.loss.value:>9.4f}{row.loss.most:>9.4f}"
    time = "" if row.p50_ms is None else f"{row.p50_ms:>9.2f}"
    share, met = row.routes.commonest[0][1], row.routes.mean_layers
    note = "" if row.keeps_budget else "  these gates come no nearer"
    threshold = "by gate" if row.threshold is None else f"{row.threshold:+.4f}"
    return f"{name:>8} {threshold:>10} {met:>7.2f} {share:>10.1%}{metric}{loss}{time}{note}"


def optimization(found: Optimization) -> Lines:
    """All that ran, the choice and what it gains; of a dry run what would be done."""
    plan, goal, chosen = found.plan, found.goal, found.chosen
    within = "" if plan.training_minutes is None else f", some {plan.training_minutes:.0f} minutes"
    lines = [
        f"learn from {counted(plan.learned, 'text')}, choose on {plan.chosen_on} others",
        f"train for {counted(plan.epochs, 'epoch')}{within}; then try {', '.join(plan.engines)}",
    ]
    if chosen is None:
        return lines
    first, asked = found.candidates[0], []
    if goal.max_loss is not None:
        asked.append(f"a loss of at most {goal.max_loss:g}")
    if goal.p50_ms is not None:
        asked.append(f"{goal.p50_ms:g} ms")
    lines += [
        f"{'':<26}{'layers':>7}{'p50 ms':>9}{'p90 ms':>9}{'loss':>9}{'at most':>9}",
        *(_candidate(one, found) for one in found.candidates),
        f"loss: of {found.loss_of} against full BERT; at most: with 95 % confidence",
        f"chosen for {' in '.join(asked)}: {_way(chosen)}, {first.p50_ms / chosen.p50_ms:.2f} times as fast as"
        f" {_way(first)}",
    ]
    if found.served is not None and goal.max_loss is not None:
        served = found.served
        lines.append(f"as it is served, one text a call: loss {served.value:.4f}, at most {served.most:.4f}")
    if found.next_best is not None:
        lines.append(f"next best: {_way(found.next_best)}")
    minutes = found.minutes or {}
    parts = ", ".join(f"{part} {taken:.1f}" for part, taken in minutes.items())
    return [
        *lines,
        *([NO_SKIPPING] if chosen.at is None and goal.p50_ms is None else []),
        f"{sum(minutes.values()):.0f} minutes: {parts}",
        f"Predictor.load({found.bundle!r})",
    ]


def _candidate(one: Candidate, found: Optimization) -> str:
    mark = "*" if one == found.chosen else " " if one.meets(found.goal) else "-"
    layers = "all" if one.layers_run is None else f"{one.layers_run:.2f}"
    return (
        f"{mark} {_way(one):<24}{layers:>7}{one.p50_ms:>9.2f}{one.p90_ms:>9.2f}{one.loss.value:>9.4f}"
        f"{one.loss.most:>9.4f}"
    )


def _way(one: Candidate) -> str:
    return f"{one.engine}, full" if one.at is None else f"{one.engine}, {one.at.budget:g}"


# Measurements


def benchmark(result: Benchmark) -> Lines:
    """A block per batch size, with an empty line between two."""
    lines: Lines = []
    for row in result.rows:
        lines += [*([""] if lines else []), *bench_row(row)]
    return [*lines, *([] if not result.peers else ["", *_peers(result)])]


def _peers(result: Benchmark) -> Lines:
    """The bundle beside what could be run instead, and how much faster it is than the fastest that is as good."""
    metric, peers, rival = result.rows[0].metric_name, result.peers, result.rival
    wide = max(len(peer.name) for peer in peers)
    lines = [
        f"{'':<{wide}} {metric[:10]:>10} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {'texts/s':>8} {'disk MB':>8}"
        f" {'memory MB':>10}  engine",
        *(
            f"{peer.name:<{wide}} {peer.metric:>10.4f} {peer.p50:>8.2f} {peer.p90:>8.2f} {peer.p99:>8.2f}"
            f" {peer.throughput:>8.0f} {peer.disk_mb:>8.1f} {peer.memory_mb:>10.0f}  {peer.engine}"
            for peer in peers
        ),
    ]
    if rival is None:
        return [*lines, f"none of the others has as good a {metric}"]
    times = f"{rival.p50 / peers[0].p50:.2f} times"
    return [*lines, f"{rival.name}, the fastest of those that are as good or better, takes {times} as long"]


def bench_row(row: Row) -> Lines:
    """Full BERT and the gated model beside each other, the speedup, and what to distrust. Of made-up texts neither the
    layers that they run nor what follows from them."""
    quality, layers, name = ["", "", ""], ["", "", ""], f"{row.engine}-{row.precision}-{row.cut}"
    if row.metric is not None:
        quality = [f" {row.metric_name:>10}", f" {row.full_metric:>10.4f}", f" {row.metric:>10.4f}"]
    if row.data is not None:
        layers = [f" {'layers':>7}", f" {row.layers:>7.2f}", f" {row.mean_layers:>7.2f}"]
    texts = MADE_UP if row.data is None else f"texts of {row.data}"
    return [
        f"{name}, batch {row.batch}, {row.seq:.0f} tokens per input on average, {texts}",
        f"{'':<12}{layers[0]} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8}{quality[0]}",
        f"{'full BERT':<12}{layers[1]} {row.full_p50_ms:>8.2f} {row.full_p90_ms:>8.2f} {row.full_p99_ms:>8.2f}"
        f"{quality[1]}",
        f"{'hadskip':<12}{layers[2]} {row.p50:>8.2f} {row.p90:>8.2f} {row.p99:>8.2f}{quality[2]}",
        f"speedup {row.speedup:.2f}x (95 % interval {row.speedup_low:.2f} to {row.speedup_high:.2f}), full BERT's"
        f" threads {row.full_setting.removeprefix('full, threads ')}",
        *([YOURS_DIFFER] if row.data is None else _of_their_layers(row)),
        *(f"do not trust this: {warning}" for warning in row.warnings),
        *([] if row.hint is None else [f"to make it faster: {row.hint}"]),
        *([] if row.profile is None else _profile(row.profile)),
    ]


def _of_their_layers(row: Row) -> Lines:
    """What the layers that the user's own texts run make possible, and how they are spread."""
    ran = ", ".join(f"{count}: {share:.0%}" for count, share in enumerate(row.histogram) if share)
    lines = [f"layers run by share of inputs: {ran}"]
    if row.ideal is None or row.efficiency is None:
        return lines
    ideal = f"ideal {row.ideal:.2f}x at {row.layers_run:.2f} layers run, efficiency {row.efficiency:.0%}"
    return [*([f"{ideal}"]), *([OVER_ALL] if row.efficiency > 1 else []), *lines]


def _profile(parts: dict[str, float]) -> Lines:
    total = sum(parts.values())
    rows = [f"  {part:<12} {ms:>8.3f} ms {ms / total:>6.1%}" for part, ms in parts.items()]
    return ["where a call's time goes, on average:", *rows]


def estimate(result: Estimate) -> Lines:
    """A row per workload, then what to distrust."""
    first = result.rows[0]
    return [
        f"{first.engine}-{first.precision}-{first.cut}, random weights, {first.layers_run:g} of"
        f" {counted(first.layers, 'layer')} run, what decides overruled; full BERT in {first.full_engine}",
        f"{'tokens':>6} {'batch':>5} {'layers':>6} {'full p50':>10} {'skip p50':>10} {'skip p99':>10}  "
        f"{'speedup':<20} {'ideal':>5} {'efficiency':>10}",
        *map(_estimated, result.rows),
        *([OVER_ALL] if any((row.efficiency or 0) > 1 for row in result.rows) else []),
        *(f"do not trust {row.seq:.0f} x {row.batch}: {warning}" for row in result.rows for warning in row.warnings),
    ]


def _estimated(row: Figures) -> str:
    line = (
        f"{row.seq:>6.0f} {row.batch:>5} {row.routing:>6} {row.full_p50_ms:>7.2f} ms {row.p50:>7.2f} ms"
        f" {row.p99:>7.2f} ms  {row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
    )
    return line if row.ideal is None else f"{line}  {row.ideal:>5.2f} {row.efficiency:>10.1%}"


# What there is


def inspection(found: Inspection) -> Lines:
    """A bundle or a run, in a screenful; or how far its answers have drifted."""
    if found.drift is not None:
        return _drift(found.drift)
    lines = training(found.content) if isinstance(found.content, dict) else _manifest(found.content)
    return [*lines, *(f"written: {file}" for file in found.plots)]


def _drift(drift: Drift) -> Lines:
    verdict = "much has changed; calibrate on texts of today" if drift.is_much else "within what is usual"
    return [
        f"layers run by {drift.inputs} inputs at a budget of {drift.budget:g}, and when the point was met",
        f"{'layers':>8} {'then':>7} {'now':>7}",
        *(
            f"{layers:>8} {drift.expected.get(layers, 0):>7.1%} {drift.seen.get(layers, 0):>7.1%}"
            for layers in sorted({*drift.expected, *drift.seen})
        ),
        f"population stability index {drift.index:.3f}: {verdict}",
    ]


def _manifest(manifest: Manifest) -> Lines:
    model = manifest.model
    size = sum(file.size for file in manifest.files.values())
    return [
        f"{manifest.task}: {model.family}, {counted(model.layers, 'layer')} of {model.hidden_size}",
        f"tokens: {model.max_length} at most, longer inputs are cut",
        f"labels: {_labels(model.problem)}",
        f"router: {_routing(manifest.router)}",
        f"files: {len(manifest.files)}, {size / 1e6:.1f} MB, opset {manifest.opset}, made by {manifest.created_by}",
        *map(_engine, manifest.engines),
        "operating points:",
        *(line for point in manifest.points for line in _point(point, manifest)),
    ]


def _routing(router: RouterInfo) -> str:
    if router.route is not None:
        return f"static, layers {' '.join(map(str, router.route))}"
    return f"{router.kind.replace('-', ' ')}, by {router.criterion}" if router.has_exits else router.kind


def _labels(problem: Problem) -> str:
    """Their names, and what an answer is where it is not one of them."""
    if problem.is_score:
        return f"none, a score ({problem.type})"
    if problem.type == SINGLE:
        return ", ".join(problem.labels)
    thresholds = zip(problem.labels, problem.thresholds, strict=True)
    return f"{', '.join(f'{label} from {threshold:g}' for label, threshold in thresholds)} ({problem.type})"


def _engine(engine: EngineInfo) -> str:
    built = ", ".join(f"{library} {version}" for library, version in engine.versions.items())
    return f"engine {engine.name}: parity {engine.parity}, {built}, {engine.chip}"


def _point(point: Point, manifest: Manifest) -> Iterator[str]:
    """A budget, what was seen at it, and the commonest routes there."""
    default = ", the default" if point.budget == manifest.default_budget else ""
    metric = "" if point.metric is None else f", {manifest.metric} {point.metric:.4f}"
    full = "" if point.full_metric is None else f", full BERT's {point.full_metric:.4f}"
    met = f"{point.mean_layers:.2f} on {point.data}{metric}{full}"
    yield f"  {point.budget:g} of {counted(manifest.model.layers, 'layer')}{default}: {met}"
    for route, share in point.routes:
        yield f"    {share:>6.1%}  {', '.join(map(str, route)) or 'none'}"


def comparison(found: Comparison) -> Lines:
    """Systems by budget: what they run, take and keep of the teacher, and how far the first is above each."""
    first, budget = found.lines[0].system, None
    told = [f"{found.task}: full BERT, {counted(found.layers, 'layer')}, {found.metric} {found.teacher:.4f}"]
    for line in found.lines:
        if line.budget != budget:
            budget = line.budget
            told += ["", f"{budget:g} of {counted(found.layers, 'layer')}"]
            told.append(
                f"  {'':<26} {'layers':>6} {found.metric[:8]:>8} {'exact':>6} {'kept':>6} {'KL':>6}"
                f" {'p50 ms':>7} {'faster':>6}  {first} above, at as many layers"
            )
        told.append(
            f"  {line.system:<26} {line.mean_layers:>6.2f} {line.metric:>8.4f} {_number(line.exact, 4):>6}"
            f" {_share(line.retained):>6} {line.divergence:>6.3f} {_number(line.p50_ms, 2):>7}"
            f" {_number(line.speedup, 2):>6}  {_interval(line.above)}"
        )
    timed = "calls were not timed" if found.engine is None else f"one text a call, {found.engine}"
    met = f"budgets met on the {found.threshold_on} texts"
    return [*told, "", f"means over seeds, intervals of 95 %; {met}; {timed}"]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f}), {counted(found.pairs, 'seed')}"


def scored(done: Scored, out: Path) -> Lines:
    """Of `score`."""
    lines = [f"{done.rows:,} rows in {counted(done.parts, 'part')}, {done.computed:,} of them computed now"]
    if done.empty:
        lines.append(f"without a row: {', '.join(done.empty)}")
    if done.refused:
        lines.append(f"{done.refused:,} of these have an error for an answer")
    return [*lines, f"written: {out}"]


def diagnosis(found: Diagnosis) -> Lines:
    """The machine, what is ready on it or what that lacks, and what to build."""
    about, told = found.environment, "not told by this system"
    if found.features is not None:
        told = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in found.features.items())
    lacks = {f"engine {name}": lack for name, lack in found.engines.items()} | {"training and build": found.training}
    return [
        f"chip: {about['chip']}, {counted(about['cpus'], 'CPU')}",
        f"features: {told}",
        "versions: " + ", ".join(f"{library} {version}" for library, version in about["versions"].items()),
        *(f"{name}: {'ready' if lack is None else lack}" for name, lack in lacks.items()),
        *(
            f"{name}: {ms:.2f} ms for a BERT-base layer of {found.tokens} tokens"
            for name, ms in (found.layer_ms or {}).items()
        ),
        f"recommended: {found.recommendation}",
    ]


def demo(done: Demo) -> Lines:
    """The whole way: what training, validation and benchmark found, and where everything is."""
    checked = [] if done.validation.data is None else labelled_data(done.validation.data)[:2]
    return [
        *training(done.summary),
        "",
        *parity(done.validation.parity)[-1:],
        *checked,
        "",
        *benchmark(done.benchmark),
        "",
        "at work, every layer and every gate an engine of its own:",
        *(line for example in done.examples for line in _at_work(example)),
        "",
        f"run: {done.run}",
        f"bundle: {done.bundle}",
        f"figures: {done.figures}",
        f'try: hadskip-export predict {done.bundle} "a gripping film"',
    ]


def _at_work(example: Example) -> Lines:
    """Which engines one text called, in their order; a layer that was skipped is left out."""
    return [
        f"  {example.text!r}: {example.prediction.label}, layers"
        f" {', '.join(map(str, example.prediction.layers)) or 'none'}",
        f"    {' > '.join(example.engines)}",
    ]
