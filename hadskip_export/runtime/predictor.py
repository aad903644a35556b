"""`Predictor`: text in, label out, through the layers each input needs."""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypedDict, Unpack, overload

import numpy as np

from hadskip_export.routing.routes import Route, as_route, as_row
from hadskip_export.runtime.bundle import Bundle, gate_names, layer_name, read_bundle
from hadskip_export.runtime.chain import Chain
from hadskip_export.runtime.conditional import Conditional
from hadskip_export.runtime.engines import Engine, EngineOptions, Piece, built_elsewhere, engine_class
from hadskip_export.runtime.routers import (
    CappedRouter,
    ForcedRouter,
    GateRouter,
    Router,
    StaticRouter,
)
from hadskip_export.runtime.speculation import Speculation
from hadskip_export.runtime.tokenization import Batch, Encoded, Ids, Input, Text, Tokenizer, pad, share_batches
from hadskip_export.support.errors import BudgetError, BundleError, EngineError

RouterName = Literal["gates", "full"]
CLOSED = "this predictor is closed; load the bundle again"
EMBEDDING_INPUTS = ("input_ids", "token_type_ids")
WARM_UP_TOKENS = 16  # as good as any input: one of every size is too many


class CallOptions(TypedDict, total=False):
    """What one call may ask for.

    Args:
        batch_size: the most inputs computed together (32); inputs of similar length share a batch, and where lengths
            differ much a batch is parted.
        router, gate_threshold, max_layers: for this call only, see `Predictor.load`.
        routes: bool [n, L], run just these layers whatever the gates say, which are asked all the same. For
            measurements: what would other routes cost, and answer? Not for a static route, as `gate_threshold` is not.
    """

    batch_size: int
    router: RouterName | None
    gate_threshold: float | None
    max_layers: int | None
    routes: np.ndarray | None


@dataclass(frozen=True)
class Prediction:
    """The answer for one input.

    Args:
        label: the likeliest class.
        probabilities: of every class, softmax of the logits.
        layers: the layers that ran, numbered from 1.
        truncated: the input was longer than the model's maximum length and its end was not read.
    """

    label: str
    probabilities: dict[str, float]
    layers: tuple[int, ...]
    truncated: bool


class Predictor:
    """A bundle ready to answer. Made by `Predictor.load`; safe to call from many threads at once."""

    def __init__(
        self,
        bundle: Bundle,
        engine: str | None = None,
        threads: int | None = None,
        spinning: bool = False,
        router: RouterName = "gates",
        gate_threshold: float | None = None,
        max_layers: int | None = None,
        allow_failed: bool = False,
        warm_up: bool = True,
    ):
        manifest, model = bundle.manifest, bundle.manifest.model
        self.bundle = bundle
        self.engine_info = info = bundle.engine(engine)
        self.labels = model.labels
        self.tokenizer = Tokenizer(bundle.file(manifest.tokenizer), model.max_length, model.vocab_size)
        self._router: RouterName = router
        self._threshold = manifest.router.threshold if gate_threshold is None else gate_threshold
        self._max_layers = max_layers
        self._check(router, max_layers, gate_threshold)
        if info.parity == "failed" and not allow_failed:
            raise BundleError(
                f"{bundle.path}: {info.name} failed its parity check at {info.first_bad_piece}; build it again, "
                "or load it all the same with allow_failed=True"
            )
        if reason := built_elsewhere(info.engine, info.versions, info.chip):
            raise EngineError(
                f"{bundle.path}: {info.name} {reason}; make it anew with hadskip-export build {bundle.path} --engine"
                f" {info.engine} --precision {info.precision}"
            )
        files = {piece: bundle.file(file) for piece, file in info.files.items()}
        engine_type = engine_class(info.engine)
        self._engine: Engine | None = engine_type(files, info.precision, EngineOptions(threads, spinning))
        self._most_padding = engine_type.most_padding
        self._lock = threading.Lock()
        self.gated: Chain | Speculation | Conditional | None = None  # runs `router="gates"`; None until it is needed
        self._chain: Chain | None = None
        self._full: Piece | None = None
        _ = self._load_full() if router == "full" else self._load_gated()
        if warm_up:
            ids = np.zeros(min(WARM_UP_TOKENS, model.max_length), np.int64)
            one, every_gate_open = Encoded(ids, ids, False), None if manifest.router.kind == "static" else -math.inf
            for rows in [1] if info.single == "chain" else [1, 2]:  # what runs two may be another engine
                self.run([one] * rows, gate_threshold=every_gate_open, max_layers=model.layers)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        engine: str | None = None,
        threads: int | None = None,
        spinning: bool = False,
        router: RouterName = "gates",
        gate_threshold: float | None = None,
        max_layers: int | None = None,
        allow_failed: bool = False,
        warm_up: bool = True,
    ) -> "Predictor":
        """Checks a bundle and loads its engines.

        Args:
            path: the bundle's folder.
            engine: one of the bundle's engines, `ort` or `ort-fp32`; the first if left out.
            threads: the most threads one call computes with; the CPUs this process may use if left out.
            spinning: let idle engine threads wait busily, see `EngineOptions`.
            router: `gates` for the bundle's own, a static route too, or `full` to run the fine-tuned BERT with every
                layer, whatever other options say (the kill switch: it must work with those a service has).
            gate_threshold: a layer runs where its gate's margin, in logits, is above this; the fitted value if left
                out. Raise it for speed, lower it for accuracy.
            max_layers: the most layers an input may run.
            allow_failed: load an engine whose parity check failed.
            warm_up: run every piece once, so that the first call is as fast as the second.

        Raises:
            BundleError: see `read_bundle`; also no such engine, a failed parity check, no full model in the bundle.
            EngineError: the engine's library is missing or refuses a piece.
            BudgetError: `max_layers` is not between 1 and the number of layers; `gate_threshold` is NaN, or the bundle
                has a static route and no gate.
        """
        started = time.perf_counter()
        bundle = read_bundle(path)
        predictor = cls(bundle, engine, threads, spinning, router, gate_threshold, max_layers, allow_failed, warm_up)
        name = predictor.engine_info.name
        logger = _logger()
        if predictor.engine_info.parity == "unverified":
            logger.warning("%s: %s was never checked; run hadskip-export validate on this machine", path, name)
        logger.info("%s: %s loaded in %.2f s", path, name, time.perf_counter() - started)
        return predictor

    @overload
    def __call__(self, inputs: str | tuple[str, str] | Ids, **options: Unpack[CallOptions]) -> Prediction: ...

    @overload
    def __call__(
        self,
        inputs: list[str] | list[tuple[str, str]] | list[Text] | list[Ids] | list[Input],
        **options: Unpack[CallOptions],
    ) -> list[Prediction]: ...

    def __call__(
        self, inputs: Input | Sequence[Input], **options: Unpack[CallOptions]
    ) -> Prediction | list[Prediction]:
        """Classifies a text, a pair of texts (a tuple), an input tokenised before (a mapping with `input_ids`, see
        `Tokenizer.encode`), or a list of these.

        Args:
            inputs: a list gives a list, in the same order.
            options: see `CallOptions`.

        Raises:
            DataError: an input that is nothing of the sort, see `Tokenizer.encode`.
            BudgetError: see `load`.
        """
        single = isinstance(inputs, str | tuple | Mapping)
        encoded = self.tokenizer.encode([inputs] if single else inputs)  # type: ignore[list-item,arg-type]
        logits, routes = self.run(encoded, **options)
        predictions = [
            self._prediction(row, as_route(route), item.truncated)
            for row, route, item in zip(logits.tolist(), routes.tolist(), encoded, strict=True)
        ]
        return predictions[0] if single else predictions

    def _prediction(self, logits: list[float], route: Route, truncated: bool) -> Prediction:
        """In plain Python: on a handful of numbers numpy's calls take five times as long."""
        largest = max(logits)
        exponentials = [math.exp(logit - largest) for logit in logits]
        total = sum(exponentials)
        probabilities = {label: value / total for label, value in zip(self.labels, exponentials, strict=True)}
        return Prediction(self.labels[logits.index(largest)], probabilities, route, truncated)

    def run(
        self,
        encoded: Sequence[Encoded],
        batch_size: int = 32,
        router: RouterName | None = None,
        gate_threshold: float | None = None,
        max_layers: int | None = None,
        routes: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The call without its text: tokenised inputs to logits float32 [n, classes] and routes bool [n, L]."""
        router = router or self._router
        max_layers = self._max_layers if max_layers is None else max_layers
        threshold = self._threshold if gate_threshold is None else gate_threshold
        self._check(router, max_layers, gate_threshold, routes)
        if batch_size < 1:
            raise BudgetError(f"batch_size={batch_size}: expected at least 1")
        shape = (len(encoded), self.bundle.manifest.model.layers)
        fitting = isinstance(routes, np.ndarray) and routes.dtype == bool and routes.shape == shape
        if routes is not None and not fitting:
            raise BudgetError(f"routes: expected a bool array {shape}, inputs by layers")
        pieces = self._load_full() if router == "full" else self._load_gated()

        def answer(some: Sequence[Encoded], forced: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            return self._run_batch(pieces, pad(some), self._new_router(threshold, max_layers, forced))

        batches = share_batches([len(one) for one in encoded], batch_size, self._most_padding)
        if len(batches) == 1:
            return answer(encoded, routes)
        logits, ran = np.zeros((len(encoded), len(self.labels)), np.float32), np.zeros(shape, bool)
        for rows in batches:
            some = [encoded[row] for row in rows]
            logits[rows], ran[rows] = answer(some, None if routes is None else routes[rows])
        return logits, ran

    def _run_batch(
        self, pieces: Chain | Speculation | Conditional | Piece, batch: Batch, router: Router
    ) -> tuple[np.ndarray, np.ndarray]:
        model = self.bundle.manifest.model
        if isinstance(pieces, Chain | Speculation | Conditional):
            logits, ran = pieces.run(batch, router)
        else:
            logits = pieces(*(getattr(batch, name) for name in model.inputs))
            ran = np.ones((len(batch), model.layers), bool)
        if logits.shape != (len(batch), len(self.labels)):
            raise BundleError(
                f"{self.bundle.path}: logits {logits.shape[1:]} for {len(self.labels)} labels; build it again"
            )
        return logits, ran

    def run_as_built(self, encoded: Sequence[Encoded], batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """`run` with the bundle's own router, whatever was asked for at load: what its parity is about."""
        manifest = self.bundle.manifest
        threshold = None if manifest.router.kind == "static" else manifest.router.threshold
        return self.run(encoded, batch_size, router="gates", gate_threshold=threshold, max_layers=manifest.model.layers)

    @property
    def engine(self) -> Engine:
        """
        Raises:
            EngineError: the predictor is closed.
        """
        if self._engine is None:
            raise EngineError(CLOSED)
        return self._engine

    def close(self) -> None:
        """Frees the engines. A closed predictor raises `EngineError` when called."""
        with self._lock:
            self._engine = self.gated = self._chain = self._full = None

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _new_router(self, threshold: float, max_layers: int | None, routes: np.ndarray | None) -> Router:
        manifest = self.bundle.manifest
        router: Router = GateRouter(threshold)
        if manifest.router.route is not None:
            router = StaticRouter(as_row(manifest.router.route, manifest.model.layers).tolist())
        if routes is not None:
            router = ForcedRouter(routes)
        return router if max_layers is None else CappedRouter(router, max_layers)

    def _check(
        self,
        router: RouterName,
        max_layers: int | None,
        gate_threshold: float | None,
        routes: np.ndarray | None = None,
    ) -> None:
        num_layers = self.bundle.manifest.model.layers
        if router not in ("gates", "full"):
            raise BundleError(f"router={router!r}: expected 'gates' or 'full'")
        if router == "full" and "full" not in self.engine_info.files:
            raise BundleError(f"{self.bundle.path}: carries no full model (built with --no-full); build it again")
        if max_layers is not None and not 1 <= max_layers <= num_layers:
            raise BudgetError(f"max_layers={max_layers}: expected 1 to {num_layers}")
        if gate_threshold is not None and math.isnan(gate_threshold):
            raise BudgetError("gate_threshold=nan: expected a number; every layer would be skipped")
        if self.bundle.manifest.router.kind == "static" and not (gate_threshold is None and routes is None):
            option = "routes" if gate_threshold is None else "gate_threshold"
            raise BudgetError(
                f"{option}: {self.bundle.path} has a static route and no gates; leave it out, or use max_layers"
            )

    def load_chain(self) -> Chain:
        """The model piece by piece, loaded when it is first asked for: where graphs take all calls nobody needs it to
        answer one.

        Raises:
            EngineError: the predictor is closed.
        """
        chain = self._chain
        if chain is None:
            with self._lock:
                chain = self._new_chain(self.engine)
        return chain

    def _load_gated(self) -> Chain | Speculation | Conditional:
        """Loads what asks the gates when it is first needed. A call that has it is not disturbed by a `close` from then
        on, nor does one that finds it wait for whoever loads something else."""
        gated = self.gated
        if gated is None:
            with self._lock:
                engine, gated = self.engine, self.gated
                if gated is None:
                    self.gated = gated = self._new_gated(engine)
        return gated

    def _new_gated(self, engine: Engine) -> Chain | Speculation | Conditional:
        info = self.engine_info
        if info.single == "chain":
            return self._new_chain(engine)
        single = engine.load(info.single)
        if info.guess is not None:
            return Speculation(self._new_chain(engine), single, info.guess)
        batches: Piece | Chain = single
        if info.batches != "graph":
            batches = self._new_chain(engine) if info.batches == "chain" else engine.load(info.batches)
        return Conditional(single, batches, self._embedding_inputs, self.bundle.manifest.model.layers)

    def _new_chain(self, engine: Engine) -> Chain:
        if self._chain is None:
            manifest = self.bundle.manifest
            gates = [engine.load(name) for name in gate_names(self.engine_info.gates, manifest.model.layers)]
            separate = self.engine_info.gates == "separate"
            self._chain = Chain(
                embeddings=engine.load("embeddings"),
                layers={index: engine.load(layer_name(index)) for index in manifest.reachable_layers},
                gates=gates if separate else [],
                lookahead=gates[0] if gates and not separate else None,
                head=engine.load("head"),
                embedding_inputs=self._embedding_inputs,
                num_layers=manifest.model.layers,
            )
        return self._chain

    @property
    def _embedding_inputs(self) -> tuple[str, ...]:
        return tuple(name for name in EMBEDDING_INPUTS if name in self.bundle.manifest.model.inputs)

    def _load_full(self) -> Piece:
        """The same for the full model, so that whoever never asks for it does not hold it in memory."""
        full = self._full
        if full is None:
            with self._lock:
                engine, full = self.engine, self._full
                if full is None:
                    self._full = full = engine.load("full")
        return full


def _logger():
    """This module's logger, quiet unless the application listens to `hadskip_export`."""
    import logging  # here, for it is a tenth of the time to import this package

    package = logging.getLogger("hadskip_export")
    if not package.handlers:
        package.addHandler(logging.NullHandler())
    return logging.getLogger(__name__)
