"""The bundle that is served, and what becomes of a request: tokens, a place in the queue, an answer."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hadskip_export.routing.budgets import resolve_budget
from hadskip_export.routing.drift import DriftWatch
from hadskip_export.routing.routes import as_route
from hadskip_export.runtime.answers import Prediction, answers_of
from hadskip_export.runtime.bundle import MANIFEST
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text
from hadskip_export.serving.batcher import Batcher, Served
from hadskip_export.serving.limits import Limits, RequestError
from hadskip_export.serving.load import LoadControl
from hadskip_export.serving.metrics import Metrics
from hadskip_export.serving.traces import Traces
from hadskip_export.support.errors import BudgetError, DataError

SECONDS_BETWEEN_LOOKS = 1.0  # at whether the bundle was replaced
MOST_SECONDS_BETWEEN_LOOKS = 64.0  # at one that could not be read
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """One input's answer and the logits it is made of."""

    prediction: Prediction
    logits: list[float]


class Service:
    """
    Args:
        load: reads the bundle, now and each time that it was replaced.
        path: where it lies.
        floor: the fewest layers, on average, that load may lower the budget to; it does not where left out.
        traces: of what is done for a request; none if left out.

    Raises:
        BudgetError: a floor that is no budget of the bundle, or not below the one in use.
        HadskipError: see `Predictor.load`.
    """

    def __init__(
        self,
        load: Callable[[], Predictor],
        path: Path,
        limits: Limits,
        floor: float | None = None,
        *,
        traces: Traces | None = None,
    ):
        self.limits = limits
        self.ending = False  # still answering, but to be asked no more
        self._load, self._file, self._floor = load, path / MANIFEST, floor
        self._traces = traces or Traces()
        self._served = self._read()
        self.metrics = Metrics(self.predictor.bundle.manifest.model.layers)
        self.metrics.serves(self.predictor)
        self.metrics.set_budget(self.budget)
        self._batcher: Batcher | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the event loop serves."""
        self._batcher = Batcher(self.limits, self.metrics, self._traces)
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            await self._batcher.close()
            self.predictor.close()

    @property
    def predictor(self) -> Predictor:
        """Of the bundle that is served now."""
        return self._served.predictor

    @property
    def budget(self) -> float | None:
        """Layers per input on average that are asked for just now; None where a threshold takes the place of one, or
        full BERT answers."""
        return self._served.control.budget or self.predictor.budget

    @property
    def lives(self) -> bool:
        """Whether what is asked is computed."""
        return self._batcher is not None and self._batcher.lives

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits for an answer."""
        return self._batcher is None or self._batcher.is_empty

    @property
    def has_room(self) -> bool:
        return self._batcher is not None and self._batcher.has_room and not self.ending

    async def answer(
        self, texts: Sequence[Text], *, budget: float | None = None, truncate: bool = True, needs_score: bool = False
    ) -> list[Answered]:
        """
        Args:
            budget: see `Predictor.__call__`; the service's own where left out.
            truncate: whether a text that is too long may lose its end; else it is refused.
            needs_score: whether a model that gives labels is of no use.

        Raises:
            RequestError: too many inputs (413), no score (422), no room for them (429), or it took too long (504).
            DataError, BudgetError, BundleError, EngineError: see `Predictor.__call__`.
        """
        assert self._batcher is not None
        served = self._served
        problem = served.predictor.problem
        if needs_score and not problem.is_score:
            raise RequestError(
                422, "Validation", f"this model gives labels ({problem.type}), and documents need a score"
            )
        if len(texts) > self.limits.inputs:
            raise RequestError(
                413, "Validation", f"{len(texts)} inputs; at most {self.limits.inputs} are taken in one request"
            )
        if not texts:
            raise DataError("no inputs; give at least one text")
        served.asking += 1
        try:
            with self._batcher.room_for(len(texts)):
                async with asyncio.timeout(self.limits.timeout):
                    return await self._answer(self._batcher, served, texts, budget, truncate)
        except TimeoutError:
            raise RequestError(504, "Timeout", f"not computed within {self.limits.timeout:g} s") from None
        finally:
            served.asking -= 1

    async def _answer(
        self, batcher: Batcher, served: Served, texts: Sequence[Text], budget: float | None, truncate: bool
    ) -> list[Answered]:
        predictor = served.predictor
        began = time.monotonic()
        encoded = await asyncio.to_thread(predictor.tokenizer.encode, list(texts))
        self._traces.span("tokenize", began, time.monotonic(), inputs=len(texts), tokens=sum(map(len, encoded)))
        truncated = [item.truncated for item in encoded]
        if any(truncated) and not truncate:
            raise DataError(
                f"input {truncated.index(True) + 1}: longer than the model's {predictor.tokenizer.max_length} tokens;"
                " ask with truncate, or shorten it"
            )
        logits, routes = await batcher.ask(served, encoded, budget)
        self.metrics.saw(routes, truncated)
        if budget is None and not served.control.level:
            self._watch_drift(served, routes)
        answer, rows = answers_of(predictor.problem), zip(logits.tolist(), routes.tolist(), truncated, strict=True)
        return [Answered(answer(row, as_route(route), cut), row) for row, route, cut in rows]

    def _watch_drift(self, served: Served, routes: np.ndarray) -> None:
        """Of inputs at the service's own operating point; routes bool [n, L]."""
        if served.drift is None or (drift := served.drift.saw(routes.sum(axis=1).tolist())) is None:
            return
        self.metrics.drift.set(drift.index)
        if served.drift.turned(drift):
            logger.warning(
                "inputs run other numbers of layers than those that the operating point was met on (stability index"
                " %.2f); calibrate on texts of today",
                drift.index,
            )

    def _read(self) -> Served:
        state = _state(self._file)  # before: what comes while it is read is another
        predictor = self._load()
        try:
            return Served(predictor, LoadControl(_budgets(predictor, self._floor)), state, _drift_watch(predictor))
        except BudgetError:
            predictor.close()
            raise

    async def _watch(self) -> None:
        """Serves the bundle that has come in the place of this one, and closes this one after its last request. One
        that cannot be read is tried again, ever more seldom: it may still be on its way."""
        assert self._batcher is not None
        pause = SECONDS_BETWEEN_LOOKS
        while True:
            await asyncio.sleep(pause)
            if _state(self._file) in (None, self._served.state):
                pause = SECONDS_BETWEEN_LOOKS
                continue
            try:
                new = await asyncio.to_thread(self._read)
            except Exception as error:
                self.metrics.reloads.labels("failed").inc()
                logger.error("the bundle that was read before is served on: %s", error)
                pause = min(2 * pause, MOST_SECONDS_BETWEEN_LOOKS)
                continue
            pause, before, self._served = SECONDS_BETWEEN_LOOKS, self._served, new
            self.metrics.reloads.labels("done").inc()
            self.metrics.serves(new.predictor)
            self.metrics.set_budget(self.budget)
            while before.asking:
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS / 10)
            await self._batcher.computed()
            before.predictor.close()


def _budgets(predictor: Predictor, floor: float | None) -> Sequence[float | None]:
    """The operating points from the one in use down to the floor; without, that alone.

    Raises:
        BudgetError: a floor that is no budget of the bundle, or not below the one in use.
    """
    if floor is None:
        return [None]
    default, manifest = predictor.budget, predictor.bundle.manifest
    if not manifest.router.decides or default is None:
        raise BudgetError(f"least budget {floor:g}: there are no gates to ask, or a threshold that overrules it")
    manifest.thresholds_at(floor)
    floor = resolve_budget(floor, manifest.model.layers)
    if not 1 <= floor < default:
        raise BudgetError(f"least budget {floor:g}: expected at least 1 layer, and less than the budget {default:g}")
    between = {point.budget for point in manifest.points if floor < point.budget < default}
    return sorted({default, floor, *between}, reverse=True)


def _drift_watch(predictor: Predictor) -> DriftWatch | None:
    """None where no operating point says what its texts ran: a static route, a threshold, a budget between points."""
    manifest = predictor.bundle.manifest
    point = next((point for point in manifest.points if point.budget == predictor.budget), None)
    watched = predictor.decides and point is not None and point.routes
    return DriftWatch(point) if watched and point is not None else None


def _state(file: Path) -> tuple[int, int] | None:
    """What changes when another bundle takes its place; None while there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
