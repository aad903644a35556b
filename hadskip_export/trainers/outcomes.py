"""What a gated model comes to on a set of inputs, at every threshold at once.

Sampled gates meet the budget in training, hard gates can miss it by up to a layer: a threshold mends that, and one set
of gates keeps many budgets by as many thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hadskip_export.modeling.exits import ExitClassifier, Student
from hadskip_export.modeling.gated import FIXED_MARGIN, GatedClassifier
from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.routing.routes import Route, as_route, as_row
from hadskip_export.routing.thresholds import EveryThreshold, find_threshold
from hadskip_export.support.errors import RecipeError
from hadskip_export.support.progress import track
from hadskip_export.trainers.batches import Dataset, TrainingBatch, count_batches, ordered_batches
from hadskip_export.trainers.evaluation import exit_answers, logits_on_routes
from hadskip_export.trainers.walk import prefixes, walk

BATCH = 64


@dataclass
class Outcomes:
    """Every input's routes by threshold, and its logits on each route that was ever asked for.

    Below its margin a gate runs its layer, from there on it does not. So the thresholds fall into pieces in each of
    which an input has one route, and one walk finds them all: a layer is computed once for all thresholds that lead an
    input to it alike.

    Args:
        by_threshold: the routes that the gates choose.
        logits_on: a route -> float32 [n, labels], NaN where an input was not asked yet.
        family: routes that are known for every input.
    """

    model: Student
    data: Dataset
    device: str
    by_threshold: EveryThreshold
    logits_on: dict[Route, np.ndarray]
    family: tuple[Route, ...]

    def __len__(self) -> int:
        return len(self.data)

    def threshold(self, budget: float) -> float:
        """The one at which the inputs run `budget` layers on average, see `find_threshold`."""
        return find_threshold(self.by_threshold, budget)

    def logits(self, routes: np.ndarray) -> np.ndarray:
        """float32 [n, labels], of inputs that run the layers they are told to, bool [n, L]. What is not known yet is
        computed, and known from then on."""
        distinct, which = np.unique(routes, axis=0, return_inverse=True)
        kinds = [(as_route(row), np.flatnonzero(which.ravel() == kind)) for kind, row in enumerate(distinct)]
        labels = len(self.model.classifier.config.labels)
        found = np.zeros((len(self), labels), np.float32)
        for route, rows in kinds:
            known = self.logits_on.setdefault(route, np.full((len(self), labels), np.nan, np.float32))
            found[rows] = known[rows]
        unknown = np.flatnonzero(np.isnan(found).any(axis=1))
        if len(unknown):
            found[unknown] = logits_on_routes(self.model, self.data.subset(unknown), routes[unknown], self.device)
            for route, rows in kinds:
                self.logits_on[route][rows] = found[rows]
        return found

    def on(self, route: Route) -> np.ndarray:
        """float32 [n, labels], of one route for all inputs."""
        return self.logits(np.tile(as_row(route, len(self.model.classifier.layers)), (len(self), 1)))


def find_outcomes(model: Student, data: Dataset, family: Sequence[Route] = (), device: str = "cpu") -> Outcomes:
    """
    Args:
        family: routes to know for every input, whatever gates decide. Of exits alone all are known that there are.

    Raises:
        RecipeError: margins that are no numbers: training has diverged.
    """
    if isinstance(model, ExitClassifier):
        return _of_exits(model, data, family, device)
    return _of_gates(model, data, family, device)


def _of_exits(model: ExitClassifier, data: Dataset, family: Sequence[Route], device: str) -> Outcomes:
    """A layer runs below the least margin of the exits before it, and an input leaves from the next such one on."""
    (answers, runs), classes = exit_answers(model, data, device), len(model.classifier.config.labels)
    if not np.isfinite(answers[:, :, :classes]).all():
        raise RecipeError("the exits' logits are no numbers; lower body_lr or exit_lr (--set)")
    if not all(parameter.isfinite().all() for parameter in model.gates.parameters()):
        raise RecipeError("the gates' weights are no numbers; lower gate_lr (--set)")
    margins = CRITERIA[model.criterion].margins(answers[:-1], runs)
    if np.isnan(margins).any():
        raise RecipeError("what the exits tell beside logits is no number; lower fit_lr, exit_lr or body_lr (--set)")
    high, low = np.minimum.accumulate(margins, axis=1), np.empty_like(margins)  # [n, L]
    following = np.full(len(data), -np.inf, np.float32)
    for index in reversed(range(len(answers))):
        low[:, index], following = following, np.where(runs[:, index], high[:, index], following)
    here = runs & (low < high)
    routes = runs[:, None] & np.tri(len(answers), dtype=bool)  # [n, L, L], of who leaves after each
    by_threshold = EveryThreshold(len(data), here.nonzero()[0], low[here], high[here], routes[here], margins[:, 1:])
    logits_on: dict[Route, np.ndarray] = {}
    for index, answer in enumerate(answers[:, :, :classes]):
        ran = runs[:, index].nonzero()[0]
        distinct, which = np.unique(routes[ran, index], axis=0, return_inverse=True)
        for kind, row in enumerate(distinct):
            rows = ran[which.ravel() == kind]
            logits_on[as_route(row)] = known = np.full((len(data), classes), np.nan, np.float32)
            known[rows] = answer[rows]
    return Outcomes(model, data, device, by_threshold, logits_on, tuple(family))


@torch.no_grad()
def _of_gates(model: GatedClassifier, data: Dataset, family: Sequence[Route], device: str) -> Outcomes:
    model.eval()
    num_layers, labels = len(model.gates), len(model.classifier.config.labels)
    wanted = prefixes(list(family), num_layers)
    logits_on: dict[Route, np.ndarray] = {}
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    margins: list[np.ndarray] = []
    batches = ordered_batches(data, BATCH, device)
    for batch in track(batches, count_batches(data, BATCH), "routes by threshold"):
        gates = _Thresholds(model, batch, wanted)
        for route, rows, logits in walk(model, batch, gates.branch):
            low, high = (bound.cpu().numpy() for bound in gates.at(route, num_layers, rows))
            asked = batch.rows[rows.cpu().numpy()]
            logits_on.setdefault(route, np.full((len(data), labels), np.nan, np.float32))[asked] = logits.cpu().numpy()
            here = low < high
            ran = np.tile(as_row(route, num_layers), (int(here.sum()), 1))
            pieces.append((asked[here], low[here], high[here], ran))
        margins += gates.margins
    rows, low, high, layers = (np.concatenate(column) for column in zip(*pieces, strict=True))
    by_threshold = EveryThreshold(len(data), rows, low, high, layers, np.concatenate(margins))
    return Outcomes(model, data, device, by_threshold, logits_on, tuple(family))


class _Thresholds:
    """How the gates split the thresholds on the way through a batch.

    Args:
        wanted: where every row is to come by, see `walk.prefixes`.
    """

    def __init__(self, model: GatedClassifier, batch: TrainingBatch, wanted: set[tuple[int, Route]]):
        self._model, self._mask, self._wanted = model, batch.attention_mask, wanted
        # A model of one route has no threshold to set; all below its margins, which are +-FIXED_MARGIN, is one piece.
        bound = float("inf") if model.fixed_route is None else FIXED_MARGIN
        start = torch.full((len(self._mask),), bound, device=self._mask.device)
        self._bounds: dict[tuple[int, Route], tuple[Tensor, Tensor]] = {(0, ()): (-start, start)}
        self.margins: list[np.ndarray] = []

    def at(self, ran: Route, index: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The thresholds low <= t < high, float32 [m] each, at which rows come before gate `index` having run `ran`;
        none where low is not below high."""
        low, high = self._bounds[index, ran]
        return low[rows], high[rows]

    def branch(self, index: int, ran: Route, rows: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """See `walk.Branch`."""
        low, high = self.at(ran, index, rows)
        if index == 0:
            self._embedded = hidden
        seen = self._embedded[rows] if self._model.upfront else hidden
        margin = self._model.gates[index].margin(seen, self._mask[rows])
        if not margin.isfinite().all():
            raise RecipeError("the gates' margins are no numbers; lower fit_lr, body_lr or gate_lr (--set)")
        self.margins.append(margin[low < high].cpu().numpy())
        run = self._come((*ran, index + 1), index + 1, rows, low, torch.minimum(high, margin))
        return run, self._come(ran, index + 1, rows, torch.maximum(low, margin), high)

    def _come(self, ran: Route, index: int, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Which rows come there, bool [m]."""
        bounds = torch.zeros((2, len(self._mask)), device=self._mask.device)  # of other rows none: not below each other
        bounds[0, rows], bounds[1, rows] = low, high
        self._bounds[index, ran] = bounds[0], bounds[1]
        return torch.ones_like(rows, dtype=torch.bool) if (index, ran) in self._wanted else low < high
