"""Requests that come while the engine computes are computed together when it is free.

None waits for others to come: a service without load answers as fast as the predictor does. One batch is computed at a
time, for it already has all threads.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from hadskip_export.routing.drift import DriftWatch
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Encoded
from hadskip_export.serving.limits import Limits, RequestError
from hadskip_export.serving.load import LoadControl
from hadskip_export.serving.metrics import Metrics
from hadskip_export.serving.traces import Traces

Answers = tuple[np.ndarray, np.ndarray]  # logits, float32 [n, labels]; routes, bool [n, L]


@dataclass(eq=False)
class Served:
    """A bundle that is loaded, and the budget it is asked for.

    Args:
        state: of its file when it was read, by which another is known.
        drift: None where there is nothing to compare inputs with.
        asking: requests that have begun with it and are not answered yet.
    """

    predictor: Predictor
    control: LoadControl
    state: tuple[int, int] | None = None
    drift: DriftWatch | None = None
    asking: int = 0


@dataclass(eq=False)
class _Request:
    served: Served
    encoded: Sequence[Encoded]
    budget: float | None
    answers: "asyncio.Future[Answers]"
    came: float = field(default_factory=time.monotonic)
    began: float | None = None  # to be computed, with so many inputs; and when it was
    ended: float | None = None
    inputs_together: int = 0

    @property
    def tokens(self) -> int:
        return len(self.encoded) * max(map(len, self.encoded), default=0)  # padded

    def joins(self, other: "_Request") -> bool:
        return self.served is other.served and self.budget == other.budget


class Batcher:
    """The queue before the engine. To be used from one event loop."""

    def __init__(self, limits: Limits, metrics: Metrics, traces: Traces):
        self._limits, self._metrics, self._traces = limits, metrics, traces
        self._waiting: deque[_Request] = deque()
        self._inputs = 0  # that have come and are not answered
        self._came = asyncio.Event()
        self._engine = ThreadPoolExecutor(1, "engine")
        self._pace = 0.0  # seconds for an input, lately
        self._loop = asyncio.create_task(self._run())

    @property
    def lives(self) -> bool:
        """Whether anything is computed any more."""
        return not self._loop.done()

    @property
    def is_empty(self) -> bool:
        return not self._inputs

    @property
    def has_room(self) -> bool:
        return self._inputs < self._limits.queue

    @contextlib.contextmanager
    def room_for(self, inputs: int) -> Iterator[None]:
        """Holds it for a request from when it came until it is answered.

        Raises:
            RequestError: there is none (429).
        """
        if self._inputs and self._inputs + inputs > self._limits.queue:
            seconds = max(1, math.ceil(self._pace * self._inputs))
            raise RequestError(429, "Overloaded", f"{self._inputs} inputs wait; try again in {seconds} s", seconds)
        self._count(inputs)
        try:
            yield
        finally:
            self._count(-inputs)

    async def ask(self, served: Served, encoded: Sequence[Encoded], budget: float | None = None) -> Answers:
        """
        Args:
            budget: as of `Predictor.run`; that of the control if left out.

        Raises:
            HadskipError: see `Predictor.run`.
        """
        request = _Request(served, encoded, budget, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._came.set()
        try:
            return await request.answers
        finally:
            self._trace(request)

    def _trace(self, request: _Request) -> None:
        """Of one that is given up, too, as far as it came."""
        now = time.monotonic()
        began = now if request.began is None else request.began
        self._traces.span("queue", request.came, began)
        if request.began is not None:
            ended = now if request.ended is None else request.ended
            self._traces.span("compute", began, ended, inputs_together=request.inputs_together)

    async def close(self) -> None:
        """Whoever still waits is left without an answer: a server asks for this when nobody does."""
        self._loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._loop
        self._engine.shutdown()

    async def computed(self) -> None:
        """Comes back when what is computed now has been, though nobody may wait for it any more."""
        await asyncio.get_running_loop().run_in_executor(self._engine, lambda: None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._came.wait()
            batch = self._take()
            if not self._waiting:
                self._came.clear()
            if not batch:
                continue
            started, control = time.monotonic(), batch[0].served.control
            inputs = sum(len(request.encoded) for request in batch)
            for request in batch:
                request.began, request.inputs_together = started, inputs
            control.begins(started)
            found = await loop.run_in_executor(self._engine, self._compute, batch)
            ended = time.monotonic()
            for request, answers in zip(batch, found, strict=True):
                request.ended = ended
                if request.answers.done():  # given up
                    continue
                if isinstance(answers, Exception):
                    request.answers.set_exception(answers)
                else:
                    request.answers.set_result(answers)
            self._pace = 0.9 * self._pace + 0.1 * (ended - started) / max(1, inputs)
            if computed := sum(len(answers) for answers in found if not isinstance(answers, Exception)):
                self._metrics.batch.observe(computed)
            control.saw(started - min(request.came for request in batch), ended)
            self._metrics.set_budget(control.budget)

    def _take(self) -> list[_Request]:
        """The oldest request, and those behind it that may be computed with it and for which there is room."""
        batch: list[_Request] = []
        left: deque[_Request] = deque()
        tokens = 0
        for request in self._waiting:
            if request.answers.done():  # given up
                continue
            if not batch or (batch[0].joins(request) and tokens + request.tokens <= self._limits.batch_tokens):
                batch.append(request)
                tokens += request.tokens
            else:
                left.append(request)
        self._waiting = left
        return batch

    def _compute(self, batch: Sequence[_Request]) -> list[Answers | Exception]:
        """On the engine's thread. What one of them cannot have is no reason for the others to go without."""
        try:
            return list(self._together(batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [answers for request in batch for answers in self._compute([request])]

    def _together(self, batch: Sequence[_Request]) -> list[Answers]:
        first = batch[0]
        budget = first.served.control.budget if first.budget is None else first.budget
        encoded = [item for request in batch for item in request.encoded]
        logits, routes = first.served.predictor.run(encoded, budget=budget)
        ends = np.cumsum([len(request.encoded) for request in batch])[:-1]
        return list(zip(np.split(logits, ends), np.split(routes, ends), strict=True))

    def _count(self, inputs: int) -> None:
        self._inputs += inputs
        self._metrics.waiting.set(self._inputs)
