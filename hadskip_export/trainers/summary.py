"""The figures of a finished checkpoint at an operating point."""

import numpy as np

from hadskip_export.data.runs import BudgetFigures
from hadskip_export.routing.hindsight import hindsight
from hadskip_export.routing.routes import Route, RouteStatistics, statistics
from hadskip_export.routing.thresholds import crossing
from hadskip_export.trainers.outcomes import Outcomes, find_outcomes
from hadskip_export.trainers.session import Evaluation, Session

DEALS = 5
NOTHING_TO_WIN = 1e-6  # nats between dealing routes out and the best in hindsight: skill would be noise


class Figures:
    """What a student does with the evaluation data and the held-out slice, at any threshold.

    Args:
        on_evaluation, held_out: its outcomes, of all inputs on the routes that its body was taught.
    """

    def __init__(self, on_evaluation: Outcomes, held_out: Outcomes, evaluation: Evaluation, session: Session):
        self._outcomes, self._held_out = on_evaluation, held_out
        self._evaluation, self._session = evaluation, session
        other = evaluation.mismatched
        self._mismatched = None if other is None else find_outcomes(on_evaluation.model, other, (), session.device)

    def row(self, budget: float, threshold: float) -> tuple[BudgetFigures, RouteStatistics]:
        """One row of summary.json, all of it on the evaluation data with hard gates, and the routes of the held-out
        slice.

        `metric` and all others that are: of texts without labels the share that has the teacher's label.
        `divergence`: from the teacher's predictions, in nats (`Objective.divergence`); it says more than a metric on
        few inputs.
        `exact_metric`, `exact_divergence`: where the evaluation texts run `budget` layers on average, see `_exactly`.
        `shuffled_metric`, `shuffled_divergence`: the same routes dealt out to the inputs at random, mean of some deals:
        what the routes are worth when nobody chooses.
        `hindsight_divergence`: the least that the routes which the body was taught allow at as many layers, were each
        input's best one known; `skill`: how much of the way there from dealing out at random the gates come. None where
        there are no such routes; skill also where all take one route or there is nothing to win.
        `retained`: None where the teacher's metric is not above 0, for then a share of it says nothing.
        `static_metric`: the best fixed set of at most round(budget) layers (4.5: four) of the same weights, chosen on
        the held-out slice from those that the body was taught and the commonest of the gates'.
        `held_out_mean_layers`: at the threshold that meets the budget on the evaluation texts, if it was met there.
        `mismatched_metric`: only with `mismatched`, MNLI's second evaluation data.
        """
        evaluation, divergence = self._evaluation, self._session.objective.mean_divergence
        teacher, outcomes = evaluation.teacher_logits, self._outcomes

        def score(logits: np.ndarray) -> float:
            return self._session.score(logits, evaluation.data)

        routes, held_out_routes = outcomes.by_threshold.routes(threshold), self._held_out.by_threshold.routes(threshold)
        logits, seen, held = outcomes.logits(routes), statistics(routes), statistics(held_out_routes)
        top_route, top_share = seen.commonest[0]
        static_route = self._best_fixed(round(budget), [route for route, _ in held.commonest])
        value, teacher_metric = score(logits), score(teacher)
        dealt = [outcomes.logits(deal) for deal in _deals(routes)] or [logits]
        shuffled = float(np.mean([divergence(teacher, deal) for deal in dealt]))
        own = divergence(teacher, logits)
        least, skill = self._skill(seen.mean_layers, own, shuffled)
        exact_metric, exact_divergence = self._exactly(budget)
        row: BudgetFigures = {
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
            "top_route_metric": score(outcomes.on(top_route)),
            "static_route": static_route,
            "static_metric": score(outcomes.on(static_route)),
            "divergence": own,
            "exact_metric": exact_metric,
            "exact_divergence": exact_divergence,
            "shuffled_metric": float(np.mean([score(deal) for deal in dealt])),
            "shuffled_divergence": shuffled,
            "hindsight_divergence": least,
            "skill": skill if seen.distinct > 1 else None,
            "commonest_routes": seen.commonest,
            "usage": seen.usage,
            "histogram": seen.histogram,
            "held_out_mean_layers": held.mean_layers,
        }
        if self._mismatched is not None:
            other = self._mismatched.logits(self._mismatched.by_threshold.routes(threshold))
            row["mismatched_metric"] = self._session.score(other, self._mismatched.data)
        return row, held

    def _exactly(self, budget: float) -> tuple[float | None, float | None]:
        """Metric and divergence at exactly as many layers as the budget has, for comparisons: at the threshold that
        comes to it on the evaluation texts. Labels have no part in it. Where mean layers jump over the budget, what
        both sides have, in the shares that make up for it (of accuracy and divergence a mixture has just that); None
        where they never come to it."""
        outcomes = self._outcomes
        curve, near = outcomes.by_threshold, 0
        if outcomes.model.fixed_route is None:
            steps, means = curve.steps()
            near = int(np.searchsorted(steps, outcomes.threshold(budget), "right")) - 1
        else:
            steps, means = np.zeros(1), np.array([curve.mean_layers(0.0)])
        sides = crossing(means, budget, near)
        if sides is None:
            return None, None
        values = []
        for side in sides:
            logits = outcomes.logits(curve.routes(float(steps[side])))
            divergence = self._session.objective.mean_divergence(self._evaluation.teacher_logits, logits)
            values.append(np.array([self._session.score(logits, self._evaluation.data), divergence]))
        low, high = means[list(sides)]
        share = 0.0 if low == high else (budget - low) / (high - low)
        metric, divergence = ((1 - share) * values[0] + share * values[1]).tolist()
        return metric, divergence

    def _best_fixed(self, size: int, common: list[Route]) -> Route:
        """Where none of them is as short, the shortest."""
        candidates = list(dict.fromkeys([*self._outcomes.family, *common]))
        most = max(size, min(map(len, candidates)))
        fitting = [route for route in candidates if len(route) <= most]
        return max(fitting, key=lambda route: self._session.score(self._held_out.on(route), self._held_out.data))

    def _skill(self, mean_layers: float, own: float, shuffled: float) -> tuple[float | None, float | None]:
        taught = self._outcomes.family
        if len(taught) < 2 or mean_layers < min(map(len, taught)):
            return None, None
        each, teacher = self._session.objective.each_divergence, self._evaluation.teacher_logits
        cost = np.stack([each(teacher, self._outcomes.on(route)) for route in taught])
        least = hindsight(cost, np.array(list(map(len, taught))), mean_layers)
        room = shuffled - least
        return least, (shuffled - own) / room if room > NOTHING_TO_WIN else None


def _deals(routes: np.ndarray) -> list[np.ndarray]:
    """The routes dealt out at random; nothing to deal where there is one route."""
    random = np.random.default_rng(0)
    count = DEALS if (routes != routes[0]).any() else 0
    return [routes[random.permutation(len(routes))] for _ in range(count)]
