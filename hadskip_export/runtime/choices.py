"""What a call may choose, held against the bundle: which model answers, and who decides over its layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import numpy as np

from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.loading import policy_of
from hadskip_export.runtime.manifest import Manifest
from hadskip_export.runtime.policies import CappedPolicy, ForcedPolicy, Policy
from hadskip_export.support.errors import BudgetError, BundleError
from hadskip_export.support.values import real_number, whole_number

RouterName = Literal["gates", "full"]
ROUTERS = get_args(RouterName)


class CallOptions(TypedDict, total=False):
    """What one call may ask for.

    Args:
        batch_size: the most inputs computed together (32); inputs of similar length share a batch, and where lengths
            differ much a batch is parted.
        router, budget, gate_threshold, max_layers: for this call only, see `Predictor.load`.
        deadline_ms: milliseconds in which to answer, instead of a budget: the largest of the bundle's operating points
            that is fast enough on this machine, by what calls of such lengths take here and what texts run there; the
            smallest where none is. Several inputs count as one after the other, and a static route has nothing to
            choose. What is measured for that is measured in the first such call, which so is late.
        routes: bool [n, L], run just these layers whatever the gates say, which are asked all the same. For
            measurements: what would other routes cost, and answer? Not for a static route, as `gate_threshold` is not.
    """

    batch_size: int
    router: RouterName | None
    budget: float | None
    gate_threshold: float | None
    max_layers: int | None
    deadline_ms: float | None
    routes: np.ndarray | None


@dataclass(frozen=True)
class Choice:
    """How a call is answered.

    Args:
        router: who answers, the bundle's own gates (or exits, or its static route) or full BERT.
        thresholds: of each gate, [L].
        max_layers: the most that an input may run.
        routes: bool [n, L], the layers of each input, whatever its gates say.
    """

    router: RouterName
    thresholds: Sequence[float]
    max_layers: int | None = None
    routes: np.ndarray | None = None

    def policy(self, manifest: Manifest, rows: Sequence[int]) -> Policy:
        """Of these of the call's inputs."""
        forced = None if self.routes is None else ForcedPolicy(self.routes[list(rows)])
        policy = forced or policy_of(manifest, self.thresholds)
        return policy if self.max_layers is None else CappedPolicy(policy, self.max_layers)


class Choices:
    """What calls of one bundle choose. What a call leaves out is as it was chosen when the bundle was loaded.

    Args:
        has_full: whether full BERT is there.
        router, budget, gate_threshold, max_layers: what was chosen then, see `Predictor.load`.

    Raises:
        BudgetError, BundleError: see `Predictor.load`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        has_full: bool,
        router: RouterName = "gates",
        budget: float | None = None,
        gate_threshold: float | None = None,
        max_layers: int | None = None,
    ):
        self._bundle, self._has_full = bundle, has_full
        self.built = self.loaded = Choice("gates", bundle.manifest.default_point.thresholds)
        self.loaded = self.choose(router, budget, gate_threshold, max_layers)

    def choose(
        self,
        router: RouterName | None = None,
        budget: float | None = None,
        gate_threshold: float | None = None,
        max_layers: int | None = None,
    ) -> Choice:
        """
        Raises:
            BudgetError, BundleError: see `Predictor.load`.
        """
        thresholds = self._thresholds(budget, gate_threshold)
        router = self.loaded.router if router is None else router
        if not isinstance(router, str) or router not in ROUTERS:
            raise BudgetError(f"router={router!r}: expected {' or '.join(map(repr, ROUTERS))}")
        if router == "full" and not self._has_full:
            raise BundleError(f"{self._bundle.path}: carries no full model (built with --no-full); build it again")
        if max_layers is None:
            return Choice(router, thresholds, self.loaded.max_layers)
        return Choice(router, thresholds, whole_number("max_layers", max_layers, self._bundle.manifest.model.layers))

    def check_routes(self, routes: np.ndarray, inputs: int) -> np.ndarray:
        """Those told to so many inputs.

        Raises:
            BudgetError: they are no array of that shape, or this bundle's layers cannot run so.
        """
        router, shape = self._bundle.manifest.router, (inputs, self._bundle.manifest.model.layers)
        self._check_decides("routes")
        if not (isinstance(routes, np.ndarray) and routes.dtype == bool and routes.shape == shape):
            raise BudgetError(f"routes: expected a bool array {shape}, inputs by layers")
        if router.has_exits and not routes[:, 0].all():
            raise BudgetError("routes: with exits, every input runs the first layer")
        if router.has_exits and not router.jumps_to_exits and (routes[:, :-1] < routes[:, 1:]).any():
            raise BudgetError("routes: with exits, an input runs the first layers, and no others")
        return routes

    def _thresholds(self, budget: float | None, gate_threshold: float | None) -> Sequence[float]:
        """Of every gate, [L], as one of the two has it."""
        manifest = self._bundle.manifest
        given = {name for name, value in (("budget", budget), ("gate_threshold", gate_threshold)) if value is not None}
        if not given:
            return self.loaded.thresholds
        if len(given) > 1:
            raise BudgetError(
                f"budget={budget}, gate_threshold={gate_threshold}: each sets the thresholds; leave one out"
            )
        self._check_decides(*given)
        if gate_threshold is None:
            return manifest.thresholds_at(real_number("budget", budget))
        threshold = real_number("gate_threshold", gate_threshold)
        if math.isnan(threshold):
            raise BudgetError("gate_threshold=nan: expected a number; every layer would be skipped")
        return [threshold] * manifest.model.layers

    def _check_decides(self, option: str) -> None:
        if not self._bundle.manifest.router.decides:
            raise BudgetError(
                f"{option}: {self._bundle.path} has a static route and no gates; leave it out, or use max_layers"
            )
