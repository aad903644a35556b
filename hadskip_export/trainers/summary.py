"""The figures of a finished checkpoint and of a run, and the table a person reads."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hadskip_export.data.metrics import METRICS
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.routes import RouteStatistics, statistics
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.evaluation import (
    above,
    always,
    divergence,
    fixed_routes,
    logits_on_routes,
    predict_fixed_routes,
    predict_routed,
)

DEALS = 5
MARGIN_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class HeldOutFigures:
    """What the bundle's manifest keeps of the held-out slice."""

    routes: RouteStatistics
    margin_quantiles: list[list[float]]  # per gate, at MARGIN_QUANTILES


def budget_row(
    model: GatedClassifier,
    threshold: float,
    budget: float,
    teacher: np.ndarray,
    metric: str,
    held_out: Dataset,
    evaluation: Dataset,
    mismatched: Dataset | None,
    device: str,
) -> tuple[dict[str, Any], HeldOutFigures]:
    """One row of summary.json, all of it on the evaluation data with hard gates, and the held-out figures.

    Args:
        teacher: its logits for the evaluation data, float32 [n, classes].

    `divergence`: KL divergence from the teacher's predictions, in nats; it says more than a metric on few inputs.
    `shuffled_metric`, `shuffled_divergence`: the same routes dealt out to the inputs at random, mean of some deals:
    what the routes are worth when nobody chooses.
    `retained`: None where the teacher's metric is not above 0, for then a share of it says nothing.
    `static_metric`: the best fixed set of round(budget) layers (4.5: four) of the same weights, chosen on the held-out
    slice. `held_out_mean_layers`: at the threshold that meets the budget on the evaluation texts, if it was met there.
    `mismatched_metric`: only with `mismatched`, MNLI's second evaluation data.
    """
    score = METRICS[metric]
    num_layers = len(model.gates)
    predicted, routes, _ = predict_routed(model, evaluation, above(threshold), device)
    _, held_out_routes, margins = predict_routed(model, held_out, above(threshold), device)
    seen, held = statistics(routes), statistics(held_out_routes)
    top_route, top_share = seen.commonest[0]
    size = min(max(1, round(budget)), num_layers)
    candidates = predict_fixed_routes(
        model.classifier, held_out, fixed_routes(num_layers, size, [route for route, _ in held.commonest]), device
    )
    static_route = max(candidates, key=lambda route: score(candidates[route], held_out.labels))
    static = predict_fixed_routes(model.classifier, evaluation, [static_route], device)[static_route]
    top, _, _ = predict_routed(model, evaluation, always(top_route, num_layers), device)
    value, teacher_metric = score(predicted, evaluation.labels), score(teacher.argmax(-1), evaluation.labels)
    logits = logits_on_routes(model, evaluation, routes, device)
    dealt = [logits_on_routes(model, evaluation, deal, device) for deal in _deals(routes)] or [logits]
    row = {
        "budget": budget,
        "mean_layers": seen.mean_layers,
        "mean_layers_se": seen.standard_error,
        "metric": value,
        "retained": value / teacher_metric if teacher_metric > 0 else None,
        "threshold": threshold,
        "routes": seen.distinct,
        "route_entropy_bits": seen.entropy_bits,
        "top_route": top_route,
        "top_route_share": top_share,
        "top_route_metric": score(top, evaluation.labels),
        "static_route": static_route,
        "static_metric": score(static, evaluation.labels),
        "divergence": divergence(teacher, logits),
        "shuffled_metric": float(np.mean([score(deal.argmax(-1), evaluation.labels) for deal in dealt])),
        "shuffled_divergence": float(np.mean([divergence(teacher, deal) for deal in dealt])),
        "usage": seen.usage,
        "histogram": seen.histogram,
        "held_out_mean_layers": held.mean_layers,
    }
    if mismatched:
        row["mismatched_metric"] = score(
            predict_routed(model, mismatched, above(threshold), device)[0], mismatched.labels
        )
    quantiles = np.quantile(margins, MARGIN_QUANTILES, axis=0).T.tolist()
    return row, HeldOutFigures(held, quantiles)


def _deals(routes: np.ndarray) -> list[np.ndarray]:
    """The routes dealt out at random; nothing to deal where there is one route."""
    random = np.random.default_rng(0)
    count = DEALS if (routes != routes[0]).any() else 0
    return [routes[random.permutation(len(routes))] for _ in range(count)]


def table(summary: dict[str, Any]) -> str:
    """summary.json as a person reads it."""
    metric, teacher = summary["metric"], summary["teacher"]
    has_mismatched = "mismatched_metric" in teacher
    other, column = "", ""
    if has_mismatched:
        other, column = f" (mismatched {teacher['mismatched_metric']:.4f})", f" {'mismatched':>10}"
    lines = [
        f"{summary['task']}: {metric}, teacher {teacher['metric']:.4f}{other} with all {summary['layers']} layers",
        f"{'budget':>7} {'layers':>7} {metric:>9}{column} {'retained':>9} {'routes':>7} {'entropy':>8}"
        f" {'top share':>10} {'top alone':>10} {'static':>7}",
    ]
    for row in summary["budgets"]:
        retained = "" if row["retained"] is None else f"{row['retained']:.1%}"
        other = f" {row['mismatched_metric']:>10.4f}" if has_mismatched else ""
        lines.append(
            f"{row['budget']:>7g} {row['mean_layers']:>7.2f} {row['metric']:>9.4f}{other} {retained:>9}"
            f" {row['routes']:>7} {row['route_entropy_bits']:>8.2f} {row['top_route_share']:>10.1%}"
            f" {row['top_route_metric']:>10.4f} {row['static_metric']:>7.4f}"
        )
    return "\n".join(lines)
