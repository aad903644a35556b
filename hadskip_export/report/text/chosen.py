"""Operating points, and the bundle that was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hadskip_export.support.words import counted

if TYPE_CHECKING:
    from hadskip_export.commands.calibrate import Calibration
    from hadskip_export.commands.optimize import Optimization
    from hadskip_export.tuning.search import Calibrated
    from hadskip_export.tuning.trial import Candidate

NO_SKIPPING = (
    "it runs every layer of your model for every input: no operating point may lose so little and is faster; allow"
    " more with --max-loss, or give more texts"
)


def calibration(found: Calibration) -> list[str]:
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


def optimization(found: Optimization) -> list[str]:
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
