"""The figures of a finished checkpoint and of a run."""

import numpy as np

from hadskip_export.data.runs import BudgetFigures
from hadskip_export.modeling.checkpoint import GateSettings
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.routes import RouteStatistics, statistics
from hadskip_export.trainers.evaluation import (
    above,
    always,
    fixed_routes,
    logits_on_routes,
    predict_fixed_routes,
    predict_routed,
)
from hadskip_export.trainers.session import Evaluation, Session

DEALS = 5


def budget_row(
    model: GatedClassifier, settings: GateSettings, evaluation: Evaluation, session: Session
) -> tuple[BudgetFigures, RouteStatistics]:
    """One row of summary.json, all of it on the evaluation data with hard gates, and the routes of the held-out slice.

    `metric` and all others that are: of texts without labels the share that has the teacher's label.
    `divergence`: from the teacher's predictions, in nats (`Objective.divergence`); it says more than a metric on few
    inputs.
    `shuffled_metric`, `shuffled_divergence`: the same routes dealt out to the inputs at random, mean of some deals:
    what the routes are worth when nobody chooses.
    `retained`: None where the teacher's metric is not above 0, for then a share of it says nothing.
    `static_metric`: the best fixed set of round(budget) layers (4.5: four) of the same weights, chosen on the held-out
    slice. `held_out_mean_layers`: at the threshold that meets the budget on the evaluation texts, if it was met there.
    `mismatched_metric`: only with `mismatched`, MNLI's second evaluation data.
    """
    score, divergence = session.score, session.objective.mean_divergence
    device, num_layers = session.device, len(model.gates)
    decide, data, held_out = above(settings.threshold), evaluation.data, session.held_out
    logits, routes, _ = predict_routed(model, data, decide, device)
    _, held_out_routes, _ = predict_routed(model, held_out, decide, device)
    seen, held = statistics(routes), statistics(held_out_routes)
    top_route, top_share = seen.commonest[0]
    size = min(max(1, round(settings.budget)), num_layers)
    candidates = predict_fixed_routes(
        model.classifier, held_out, fixed_routes(num_layers, size, [route for route, _ in held.commonest]), device
    )
    static_route = max(candidates, key=lambda route: score(candidates[route], held_out))
    static = predict_fixed_routes(model.classifier, data, [static_route], device)[static_route]
    top, _, _ = predict_routed(model, data, always(top_route, num_layers), device)
    teacher = evaluation.teacher_logits
    value, teacher_metric = score(logits, data), score(teacher, data)
    dealt = [logits_on_routes(model, data, deal, device) for deal in _deals(routes)] or [logits]
    row: BudgetFigures = {
        "budget": settings.budget,
        "mean_layers": seen.mean_layers,
        "mean_layers_se": seen.standard_error,
        "metric": value,
        "retained": value / teacher_metric if teacher_metric > 0 else None,
        "threshold": settings.threshold,
        "routes": seen.distinct,
        "route_entropy_bits": seen.entropy_bits,
        "top_route": top_route,
        "top_route_share": top_share,
        "top_route_metric": score(top, data),
        "static_route": static_route,
        "static_metric": score(static, data),
        "divergence": divergence(teacher, logits),
        "shuffled_metric": float(np.mean([score(deal, data) for deal in dealt])),
        "shuffled_divergence": float(np.mean([divergence(teacher, deal) for deal in dealt])),
        "commonest_routes": seen.commonest,
        "usage": seen.usage,
        "histogram": seen.histogram,
        "held_out_mean_layers": held.mean_layers,
    }
    if other := evaluation.mismatched:
        row["mismatched_metric"] = score(predict_routed(model, other, decide, device)[0], other)
    return row, held


def _deals(routes: np.ndarray) -> list[np.ndarray]:
    """The routes dealt out at random; nothing to deal where there is one route."""
    random = np.random.default_rng(0)
    count = DEALS if (routes != routes[0]).any() else 0
    return [routes[random.permutation(len(routes))] for _ in range(count)]
