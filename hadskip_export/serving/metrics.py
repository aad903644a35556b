"""What Prometheus is told."""

from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hadskip_export.runtime.predictor import Predictor

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
INPUTS = tuple(2.0**power for power in range(11))


class Metrics:
    """Of one service, in a registry of its own."""

    def __init__(self, layers: int):
        self._registry = own = CollectorRegistry()
        self.requests = Counter("hadskip_requests", "Requests answered", ("route", "status"), registry=own)
        self.seconds = Histogram(
            "hadskip_request_seconds", "Until the answer", ("route",), buckets=SECONDS, registry=own
        )
        self.waiting = Gauge("hadskip_queue_inputs", "Inputs of requests that are not answered yet", registry=own)
        self.batch = Histogram("hadskip_batch_inputs", "Inputs computed together", buckets=INPUTS, registry=own)
        self._num_layers, self.layers = layers, _layers_run(layers, own)
        self.runs = Counter("hadskip_layer_runs", "Inputs that ran the layer", ("layer",), registry=own)
        self.truncated = Counter("hadskip_truncated", "Inputs whose end was not read", registry=own)
        self.budget = Gauge("hadskip_budget", "Mean layers asked for: the operating point", registry=own)
        self.drift = Gauge(
            "hadskip_drift", "Stability index of layers run, against when the operating point was met", registry=own
        )
        self.reloads = Counter("hadskip_reloads", "Times that the bundle was read anew", ("result",), registry=own)
        self.bundle = Info("hadskip_bundle", "What is served", registry=own)

    def saw(self, routes: np.ndarray, truncated: Sequence[bool]) -> None:
        """
        Args:
            routes: bool [n, L].
        """
        for count in routes.sum(axis=1).tolist():
            self.layers.observe(count)
        for layer, count in enumerate(routes.sum(axis=0).tolist(), start=1):
            self.runs.labels(layer).inc(count)
        self.truncated.inc(sum(truncated))

    def set_budget(self, budget: float | None) -> None:
        if budget is not None:
            self.budget.set(budget)

    def serves(self, predictor: Predictor) -> None:
        engine, layers = predictor.engine_info, predictor.bundle.manifest.model.layers
        if layers != self._num_layers:  # its buckets are numbers of layers
            self._registry.unregister(self.layers)
            self._num_layers, self.layers = layers, _layers_run(layers, self._registry)
        self.drift.set(0)  # what was seen was of the bundle before
        self.bundle.info({"path": str(predictor.bundle.path), "engine": engine.name, "chip": engine.chip or ""})

    def text(self) -> tuple[bytes, str]:
        """What is scraped, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


def _layers_run(layers: int, registry: CollectorRegistry) -> Histogram:
    return Histogram("hadskip_layers_run", "Layers that an input ran", buckets=range(layers + 1), registry=registry)
