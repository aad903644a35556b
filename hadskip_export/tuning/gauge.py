"""What an engine of a bundle does with texts as its threshold moves."""

import time
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from hadskip_export.data.text import Text
from hadskip_export.routing.thresholds import HardRoutes, find_threshold
from hadskip_export.runtime.choices import CallOptions
from hadskip_export.runtime.policies import Decisions, GatePolicy
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import pad, share_batches
from hadskip_export.support.errors import EngineError
from hadskip_export.support.progress import track
from hadskip_export.verification.references import OnnxReference

BATCH = 32
MOST_PADDING = 128  # tokens of a batch
CALLS, TURNS = 100, 3


class Gauge:
    """A predictor with gates and some texts.

    All but `p50_ms` is of batches of 32, which below fp32 is not quite what texts do that come alone.
    """

    def __init__(self, predictor: Predictor, texts: Sequence[Text]):
        self.predictor, self._texts = predictor, texts
        self.encoded = predictor.tokenizer.encode(texts)
        self._routes = HardRoutes(self._evaluate, len(texts))
        self._by_length = sorted(self.encoded, key=len)  # those of similar length share a batch

    def threshold(self, budget: float) -> float:
        """At which the texts run so many layers on average, in logits; where they never do, the nearest.

        Raises:
            EngineError: margins that are no numbers.
        """
        try:
            return find_threshold(self._routes, budget)
        except ValueError as error:
            bundle, name = self.predictor.bundle.path, self.predictor.engine_info.name
            raise EngineError(f"{bundle}: {name}: {error} here; try another engine") from error

    def run(self, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 [n, labels] and routes bool [n, L] of all texts; see `Predictor.run`."""
        return self.predictor.run(self.encoded, BATCH, **options)

    def full_logits(self) -> np.ndarray:
        """Full BERT's in fp32, float32 [n, labels]: by the engine, where that is its precision; else by the bundle's
        ONNX graph, which takes longer.

        Raises:
            BundleError: the bundle has no full model.
            EngineError: onnxruntime is not installed, where it is needed.
        """
        if self.predictor.engine_info.precision == "fp32":
            return self.run(router="full")[0]
        reference = OnnxReference(self.predictor.bundle)
        logits = np.zeros((len(self.encoded), len(self.predictor.labels)), np.float32)
        batches = share_batches([len(one) for one in self.encoded], BATCH, MOST_PADDING)
        for rows in track(batches, len(batches), "full BERT in fp32, in batches"):
            logits[rows] = reference.full(pad([self.encoded[row] for row in rows]))
        return logits

    def p50_ms(self, **options: Unpack[CallOptions]) -> float:
        """What half of the calls take no longer than, of one text each, text in and answer out: the median of a hundred
        different texts, and of three turns the slowest, for it is to hold tomorrow, too."""
        chosen = np.random.default_rng(0).permutation(len(self._texts))[:CALLS].tolist()
        turns = np.zeros((1 + TURNS, len(chosen)))
        for turn in turns:
            for position, row in enumerate(chosen):
                started = time.perf_counter()
                self.predictor(self._texts[row], **options)
                turn[position] = time.perf_counter() - started
        return float(np.median(turns[1:], axis=1).max()) * 1e3  # in the first, engines meet lengths not seen before

    def _evaluate(self, rows: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """What the chain's gates do. Where graphs answer they may differ by what `parity` allows."""
        chain = self.predictor.load_chain()
        routes = np.zeros((len(rows), chain.num_layers), bool)
        margins = np.zeros(routes.shape, np.float32)
        starts = range(0, len(rows), BATCH)
        # All of them at first; then ever fewer.
        every = len(rows) == len(self.encoded)
        for start in track(starts, len(starts), "texts, in batches") if every else starts:
            part = slice(start, start + BATCH)
            batch = pad([self._by_length[row] for row in rows[part].tolist()])
            policy = _Asked(threshold, chain.num_layers)
            _, routes[part] = chain.run(batch, policy)
            margins[part] = policy.margins
        router = self.predictor.bundle.manifest.router
        if np.isnan(margins).any() or (router.asks_gates and not np.isfinite(margins).all()):
            raise ValueError("the gates' margins are no numbers")
        return routes, margins


class _Asked(GatePolicy):
    """Keeps the margins that it decided by, float32 [b, L]."""

    def __init__(self, threshold: float, num_layers: int):
        super().__init__([threshold] * num_layers)
        self._num_layers = num_layers
        self.margins = np.zeros((0, num_layers), np.float32)

    def start(self, rows: int) -> Decisions:
        self.margins = np.full((rows, self._num_layers), -np.inf, np.float32)  # of who has left and is not asked
        return self

    def rows(self, index: int, margins: Sequence[float]) -> list[bool]:
        self.margins[:, index] = margins
        return super().rows(index, margins)
