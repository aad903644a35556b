"""`Predictor`: text in, answer out, through the layers each input needs."""

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Unpack, overload

import numpy as np

from hadskip_export.routing.budgets import resolve_budget
from hadskip_export.routing.routes import as_route
from hadskip_export.runtime.answers import Prediction, Ranked, answers_of, ranked
from hadskip_export.runtime.bundle import Bundle, read_bundle
from hadskip_export.runtime.choices import CallOptions, Choice, Choices, RouterName
from hadskip_export.runtime.deadlines import Deadlines, Pace
from hadskip_export.runtime.engines import Cut, Engine, EngineOptions, built_elsewhere, engine_class
from hadskip_export.runtime.forks import never_destroy, watch
from hadskip_export.runtime.integrity import check_files
from hadskip_export.runtime.loading import CHAINS, GATED, Pieces, load_full
from hadskip_export.runtime.manifest import FULL, MODEL
from hadskip_export.runtime.programs.base import Program
from hadskip_export.runtime.signatures import check_signature
from hadskip_export.runtime.tokenization import Encoded, Ids, Input, Tokenizer, one_by_one, pad, share_batches
from hadskip_export.support.errors import BudgetError, BundleError, EngineError, first_line
from hadskip_export.support.values import check_flag, real_number, whole_number

CLOSED = "this predictor is closed; load the bundle again"
ELSEWHERE = (
    "a predictor stays in the process that loaded it; call Predictor.load after the fork, in each process (gunicorn:"
    " leave --preload out)"
)
WARM_UP_TOKENS = 16  # as good as any input: one of every size is too many


@dataclass(frozen=True)
class LoadOptions:
    """How a bundle is loaded, see `Predictor.load`.

    Raises:
        EngineError: a flag that is neither True nor False.
    """

    engine: str | None = None
    precision: str | None = None
    cut: Cut | None = None
    threads: int | None = None
    spinning: bool = False
    router: RouterName = "gates"
    budget: float | None = None
    gate_threshold: float | None = None
    max_layers: int | None = None
    label_thresholds: Mapping[str, float] | None = None
    allow_failed: bool = False
    warm_up: bool = True

    def __post_init__(self) -> None:
        check_flag("allow_failed", self.allow_failed)
        check_flag("warm_up", self.warm_up)


class Predictor:
    """A bundle ready to answer. Made by `Predictor.load`; safe to call from many threads at once."""

    def __init__(self, bundle: Bundle, options: LoadOptions | None = None):
        self._options = options = options or LoadOptions()
        manifest, model = bundle.manifest, bundle.manifest.model
        self.bundle = bundle
        self.engine_info = info = bundle.engine(options.engine, options.precision, options.cut)
        self.problem = model.problem.with_thresholds(options.label_thresholds or {})
        self.labels, self._answer = model.labels, answers_of(self.problem)
        self.tokenizer = Tokenizer(
            bundle.file(manifest.tokenizer), model.max_length, model.vocab_size, model.type_vocab_size
        )
        self._choices = Choices(
            bundle,
            has_full=self.has_full,
            router=options.router,
            budget=options.budget,
            gate_threshold=options.gate_threshold,
            max_layers=options.max_layers,
        )
        if info.parity == "failed" and not options.allow_failed:
            raise BundleError(
                f"{bundle.path}: {info.name} failed its parity check at {info.first_bad_piece}; build it again, "
                "or load it all the same with allow_failed=True"
            )
        if reason := built_elsewhere(info.engine, info.versions, info.chip):
            raise EngineError(
                f"{bundle.path}: {info.name} {reason}; make it anew with hadskip-export build {bundle.path} --engine"
                f" {info.engine} --precision {info.precision} --cut {info.cut}"
            )
        self._folder, self._loading = bundle.path.absolute(), True
        read = {*info.files.values(), *(name for name in manifest.files if name.startswith(f"{MODEL}/"))}
        self._read_later = {name: file for name, file in manifest.files.items() if name in read}
        files = {piece: self._folder / file for piece, file in info.files.items()}
        engine_type, self._engine_options = engine_class(info.engine), EngineOptions(options.threads, options.spinning)
        self._engine: Engine | None = engine_type(files, info.precision, self._engine_options)
        self._most_padding = engine_type.most_padding
        self._lock, self._deadlines = threading.Lock(), Deadlines(manifest.points)
        self._why_closed = CLOSED
        self.gated: Program | None = None  # runs `router="gates"`; None until it is needed
        self._chain: Pieces | None = None
        self._full: Program | None = None
        watch(self)
        program = self._load_full() if options.router == "full" else self._load_gated()
        if options.warm_up:
            ids = np.zeros(min(WARM_UP_TOKENS, model.max_length), np.int64)
            one, every_gate_open = Encoded(ids, ids, False), -math.inf if manifest.router.decides else None
            for rows in program.warm_up_rows:
                self.run([one] * rows, gate_threshold=every_gate_open, max_layers=model.layers)
        self._loading = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        engine: str | None = None,
        precision: str | None = None,
        cut: Cut | None = None,
        threads: int | None = None,
        spinning: bool = False,
        router: RouterName = "gates",
        budget: float | None = None,
        gate_threshold: float | None = None,
        max_layers: int | None = None,
        label_thresholds: Mapping[str, float] | None = None,
        allow_failed: bool = False,
        warm_up: bool = True,
        verify: str | Path | None = None,
    ) -> "Predictor":
        """Checks a bundle and loads its engines.

        Args:
            path: the bundle's folder.
            engine, precision, cut: which of the bundle's engines, the first that is as asked: `ort`, `int8`, `gates`.
                `engine` may say all of it: `ort-int8-gates`.
            threads: the most threads one call computes with; the CPUs this process may use if left out, and never more.
            spinning: let idle engine threads wait busily, see `EngineOptions`.
            router: `gates` for the bundle's own, a static route too, or `full` to run the fine-tuned BERT with every
                layer, whatever other options say (the kill switch: it must work with those a service has).
            budget: layers per input on average, below 1 a share of them: the thresholds of that operating point, or
                between those of its neighbours; the bundle's default point if left out.
            gate_threshold: a layer runs where its gate's margin, in logits, is above this, in place of the operating
                point's. Raise it for speed, lower it for accuracy.
            max_layers: the most layers an input may run.
            label_thresholds: of a model of several labels at once, label -> the probability above which it is given,
                in place of the bundle's.
            allow_failed: load an engine whose parity check failed, and take logits that are no finite numbers.
            warm_up: run every piece once, so that the first call is as fast as the second.
            verify: a public key (PEM, elliptic curve); a bundle that its holder did not sign, as it is, is refused. See
                `hadskip-export build --sign`.

        Raises:
            BundleError: see `read_bundle`, `check_signature`; also no such engine, a failed parity check, no full model
                in the bundle.
            EngineError: the engine's library is missing or refuses a piece; no number of `threads`, or no flag.
            DataError: `label_thresholds` of a label that there is not, or no probability.
            BudgetError: no such `router`; `max_layers` is not between 1 and the number of layers; `budget` is beyond
                the bundle's operating points or comes with a `gate_threshold`; one of them is no number, or the bundle
                has a static route.
        """
        started = time.perf_counter()
        bundle = read_bundle(path)
        if verify is not None:
            check_signature(bundle, verify)
        predictor = cls(
            bundle,
            LoadOptions(
                engine=engine,
                precision=precision,
                cut=cut,
                threads=threads,
                spinning=spinning,
                router=router,
                budget=budget,
                gate_threshold=gate_threshold,
                max_layers=max_layers,
                label_thresholds=label_thresholds,
                allow_failed=allow_failed,
                warm_up=warm_up,
            ),
        )
        name = predictor.engine_info.name
        logger = _logger()
        if predictor.engine_info.parity == "unverified":
            logger.warning("%s: %s was never checked; run hadskip-export validate on this machine", path, name)
        logger.info("%s: %s loaded in %.2f s", path, name, time.perf_counter() - started)
        return predictor

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str gives texts one after the other, too
        self, inputs: str | tuple[str, str] | Ids, **options: Unpack[CallOptions]
    ) -> Prediction: ...

    @overload
    def __call__(self, inputs: Iterable[Input], **options: Unpack[CallOptions]) -> list[Prediction]: ...

    def __call__(
        self, inputs: Input | Iterable[Input], **options: Unpack[CallOptions]
    ) -> Prediction | list[Prediction]:
        """Classifies a text, a pair of texts (a tuple), an input tokenised before (a mapping with `input_ids`, see
        `Tokenizer.encode`), or several of these.

        Args:
            inputs: several are whatever gives them one after the other: a list, a column of pandas, an array of NumPy,
                a generator. They give a list, in the same order. A tuple is one pair, and a set has no order.
            options: see `CallOptions`.

        Raises:
            DataError: an input that is nothing of the sort, see `Tokenizer.encode`.
            BudgetError: see `load`.
            EngineError: logits that are no finite numbers; the engine failed, or is closed.
        """
        started = time.perf_counter()
        single = isinstance(inputs, str | tuple | Mapping)
        encoded = self.tokenizer.encode([inputs] if single else inputs)  # type: ignore[list-item]
        _, predictions = self._predict(encoded, options, started)
        return predictions[0] if single else predictions

    def rank(
        self, query: str, documents: Iterable[str], top: int | None = None, **options: Unpack[CallOptions]
    ) -> list[Ranked]:
        """Scores each document together with the query, and gives the best first.

        Args:
            documents: whatever gives them one after the other.
            top: so many of them; all if left out.
            options: see `CallOptions`.

        Raises:
            DataError: a query or document that is no text; documents in no order or in a table.
            BundleError: the model gives labels, no score.
            BudgetError, EngineError: see `__call__`; `top` is no number of documents.
        """
        if not self.problem.is_score:
            raise BundleError(f"{self.bundle.path}: gives labels ({self.problem.type}), and documents need a score")
        started = time.perf_counter()
        top = None if top is None else whole_number("top", top)
        documents = list(one_by_one(documents))
        encoded = self.tokenizer.encode([(query, document) for document in documents])
        logits, predictions = self._predict(encoded, options, started)
        return ranked(documents, predictions, logits[:, 0].tolist())[:top]

    def _predict(
        self, encoded: Sequence[Encoded], options: CallOptions, started: float
    ) -> tuple[np.ndarray, list[Prediction]]:
        """Logits, float32 [n, labels], and what they come to. `started`: when the call began, for its deadline."""
        if (deadline := options.get("deadline_ms")) is not None:
            if not (deadline := real_number("deadline_ms", deadline)) > 0:
                raise BudgetError(f"deadline_ms={deadline:g}: expected milliseconds above 0")
            options = {**options, "deadline_ms": deadline - (time.perf_counter() - started) * 1e3}
        logits, routes = self.run(encoded, **options)
        return logits, [
            self._answer(row, as_route(route), item.truncated)
            for row, route, item in zip(logits.tolist(), routes.tolist(), encoded, strict=True)
        ]

    def run(
        self,
        encoded: Sequence[Encoded],
        batch_size: int = 32,
        *,
        router: RouterName | None = None,
        budget: float | None = None,
        gate_threshold: float | None = None,
        max_layers: int | None = None,
        deadline_ms: float | None = None,
        routes: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The call without its text: tokenised inputs to logits float32 [n, labels] and routes bool [n, L].

        Raises:
            BudgetError: see `load`; no number of inputs as `batch_size`.
            EngineError: logits that are no finite numbers, unless loaded with `allow_failed`; or the engine failed.
        """
        choice = self._choices.choose(router, budget, gate_threshold, max_layers)
        if deadline_ms is not None and choice.router != "full":
            if budget is not None or gate_threshold is not None:
                raise BudgetError("deadline_ms: chooses the budget; leave budget and gate_threshold out")
            choice = self._in_time(choice, encoded, real_number("deadline_ms", deadline_ms))
        if routes is not None:
            choice = replace(choice, routes=self._choices.check_routes(routes, len(encoded)))
        logits, ran = self._answers(encoded, whole_number("batch_size", batch_size), choice)
        if not (np.isfinite(logits).all() or self._options.allow_failed):
            raise EngineError(
                f"{self.bundle.path}: {self.engine_info.name} gives logits that are no finite numbers; run"
                " hadskip-export validate, and build it anew or at a higher precision"
            )
        return logits, ran

    def run_as_built(
        self, encoded: Sequence[Encoded], batch_size: int = 32, thresholds: Sequence[float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`run` with the bundle's gates, whatever was asked for at load: what its checks are about.

        Args:
            thresholds: of each gate, [L]; those of the default point if left out.
        """
        choice = self._choices.built if thresholds is None else Choice("gates", thresholds)
        return self._answers(encoded, batch_size, choice)

    def _answers(self, encoded: Sequence[Encoded], batch_size: int, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """Shares the inputs out to batches and runs each."""
        program = self._load_full() if choice.router == "full" else self._load_gated()

        def answer(rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            batch, policy = pad([encoded[row] for row in rows]), choice.policy(self.bundle.manifest, rows)
            try:
                logits, ran = program.run(batch, policy)
            except (ValueError, IndexError, TypeError) as error:  # a graph may give other than it says
                raise EngineError(
                    f"{self.bundle.path}: {self.engine_info.name} has a piece that gives what no other takes"
                    f" ({first_line(error)}); build it again"
                ) from error
            if logits.shape != (len(rows), len(self.labels)):
                raise BundleError(
                    f"{self.bundle.path}: logits {logits.shape[1:]} for {len(self.labels)} labels; build it again"
                )
            return logits, ran

        batches = share_batches([len(one) for one in encoded], batch_size, self._most_padding)
        if len(batches) == 1:
            return answer(range(len(encoded)))
        num_layers = self.bundle.manifest.model.layers
        logits, ran = np.zeros((len(encoded), len(self.labels)), np.float32), np.zeros((len(encoded), num_layers), bool)
        for rows in batches:
            logits[rows], ran[rows] = answer(rows)
        return logits, ran

    @property
    def engine(self) -> Engine:
        """
        Raises:
            EngineError: the predictor is closed, or another process's.
        """
        if self._engine is None:
            raise EngineError(self._why_closed)
        return self._engine

    @property
    def decides(self) -> bool:
        """Whether it decides for each input, unless a call says otherwise: neither a static route nor full BERT."""
        return self._options.router == "gates" and self.bundle.manifest.router.decides

    @property
    def has_full(self) -> bool:
        """Whether the bundle carries full BERT, so that `router="full"` can run."""
        return FULL in self.engine_info.files

    @property
    def budget(self) -> float | None:
        """Layers per input on average, of the operating point in use; None where `gate_threshold` is in its place, or
        full BERT answers."""
        if self._options.gate_threshold is not None or self._options.router == "full":
            return None
        manifest, asked = self.bundle.manifest, self._options.budget
        return manifest.default_budget if asked is None else resolve_budget(asked, manifest.model.layers)

    def close(self) -> None:
        """Frees the engines. A closed predictor raises `EngineError` when called."""
        with self._lock:
            engine, self._engine = self._engine, None
            self.gated = self._chain = self._full = None
        if engine is not None:
            engine.close()

    def leave_to_parent(self) -> None:
        """Closed without closing, in a process forked from the one that loaded it; see `runtime.forks`."""
        never_destroy(self._engine, self.gated, self._chain, self._full)
        self._engine = self.gated = self._chain = self._full = None
        # New locks: a thread that is not here may have held the others.
        self._lock, self._deadlines = threading.Lock(), Deadlines(self.bundle.manifest.points)
        if self._why_closed is CLOSED:
            self._why_closed = f"{self.bundle.path}: {ELSEWHERE}"

    def __reduce__(self) -> NoReturn:
        """
        Raises:
            EngineError: whoever pickles or copies it; an engine cannot be.
        """
        raise EngineError(f"{self.bundle.path}: {ELSEWHERE}, instead of pickling or copying it")

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        options, bundle = self._options, self.bundle
        shown: dict[str, object] = {"engine": self.engine_info.name, "threads": self._engine_options.thread_count}
        shown |= {"router": options.router, "gate_threshold": options.gate_threshold, "max_layers": options.max_layers}
        shown["budget"] = self.budget if options.budget is None else options.budget
        told = " ".join(f"{name}={value}" for name, value in shown.items() if value is not None)
        return f"<Predictor {str(bundle.path)!r} {told} {'closed' if self._engine is None else 'open'}>"

    def _in_time(self, choice: Choice, encoded: Sequence[Encoded], deadline_ms: float) -> Choice:
        """At the operating point that `Deadlines` chooses."""
        if math.isnan(deadline_ms):
            raise BudgetError("deadline_ms=nan: expected milliseconds")
        if not self.bundle.manifest.router.decides:
            return choice
        lengths = [len(one) for one in encoded]
        return replace(choice, thresholds=self._deadlines.thresholds(lengths, deadline_ms, self._measure_pace))

    def _measure_pace(self) -> Pace:
        model = self.bundle.manifest.model
        fewest = Choice("gates", [math.inf] * model.layers)
        every = replace(fewest, routes=np.ones((1, model.layers), bool))

        def run(tokens: int, every_layer: bool) -> None:
            ids = np.zeros(tokens, np.int64)
            self._answers([Encoded(ids, ids, False)], 1, every if every_layer else fewest)

        return Pace(run, model.layers, model.max_length, fewest=int(self.bundle.manifest.router.has_exits))

    def _check_unchanged(self) -> None:
        """What is loaded after the rest is read from the folder as it is then, in whose place another may be.

        Raises:
            BundleError: it is.
        """
        if self._loading:
            return
        try:
            check_files(self._folder, self._read_later)
        except BundleError as error:
            raise BundleError(
                f"{self.bundle.path}: changed since it was loaded, and what is asked for was not read yet; load it"
                f" again ({error})"
            ) from error

    def load_chain(self) -> Pieces:
        """The model piece by piece, loaded when it is first asked for: where one engine takes all calls nobody needs it
        to answer one.

        Raises:
            EngineError: the predictor is closed.
            BundleError: its folder has changed.
        """
        chain = self._chain
        if chain is None:
            with self._lock:
                chain = self._chain
                if chain is None:
                    engine, manifest = self.engine, self.bundle.manifest
                    self._check_unchanged()
                    self._chain = chain = CHAINS[self.engine_info.cut](engine, self.engine_info, manifest)
        return chain

    def _load_gated(self) -> Program:
        """Loads what asks the gates when it is first needed. A call that has it is not disturbed by a `close` from then
        on, nor does one that finds it wait for whoever loads something else."""
        gated = self.gated
        if gated is None:
            with self._lock:
                engine, gated = self.engine, self.gated
                if gated is None:
                    self._check_unchanged()
                    gated = GATED[self.engine_info.cut](engine, self.engine_info, self.bundle.manifest)
                    self.gated = gated
        return gated

    def _load_full(self) -> Program:
        """The same for the full model, so that whoever never asks for it does not hold it in memory."""
        full = self._full
        if full is None:
            with self._lock:
                engine, full = self.engine, self._full
                if full is None:
                    self._check_unchanged()
                    self._full = full = load_full(engine, self.engine_info, self.bundle.manifest)
        return full


def _logger():
    """This module's logger, quiet unless the application listens to `hadskip_export`."""
    import logging  # here, for it is a tenth of the time to import this package

    package = logging.getLogger("hadskip_export")
    if not package.handlers:
        package.addHandler(logging.NullHandler())
    return logging.getLogger(__name__)
