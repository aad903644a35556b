"""The queue before the engine: what is computed together, what is refused, what is given up."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Encoded
from hadskip_export.serving.batcher import Batcher, Served
from hadskip_export.serving.limits import Limits, RequestError
from hadskip_export.serving.load import LoadControl
from hadskip_export.serving.metrics import Metrics
from hadskip_export.serving.traces import Traces
from hadskip_export.support.errors import BudgetError, EngineError
from tests.conftest import sentences

TEXTS = [text for text, _ in sentences(60, 5)]


class Slow:
    """A predictor that first waits until it may, and notes what it was asked for."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self.may = threading.Event()
        self.asked: list[tuple[int, float | None]] = []

    def run(self, encoded: Sequence[Encoded], budget: float | None = None):
        assert self.may.wait(30)
        self.asked.append((len(encoded), budget))
        return self._predictor.run(encoded, budget=budget)


@pytest.fixture(scope="module")
def predictor(points_bundle: Path):
    with Predictor.load(points_bundle, threads=1) as loaded:
        yield loaded


@pytest.fixture
def slow(predictor: Predictor):
    return Slow(predictor)


def tried(check, predictor, limits: Limits | None = None, budgets: Sequence[float | None] = (None,)):
    """Runs `check(batcher, served)` on a loop of its own."""

    async def run():
        batcher = Batcher(limits or Limits(), Metrics(4), Traces())
        try:
            return await check(batcher, Served(predictor, LoadControl(budgets)))
        finally:
            await batcher.close()

    return asyncio.run(run())


def test_requests_that_come_while_it_computes_are_computed_together_and_each_gets_its_own(predictor, slow):
    encoded = [predictor.tokenizer.encode(TEXTS[i : i + 1 + i % 3]) for i in range(0, 30, 3)]

    async def check(batcher: Batcher, served: Served):
        asked = [asyncio.create_task(batcher.ask(served, encoded[0]))]
        await asyncio.sleep(0.05)  # it is being computed, the others wait
        asked += [asyncio.create_task(batcher.ask(served, one)) for one in encoded[1:]]
        await asyncio.sleep(0.05)
        slow.may.set()
        return await asyncio.gather(*asked)

    answers = tried(check, slow)
    assert [count for count, _ in slow.asked] == [len(encoded[0]), sum(map(len, encoded[1:]))]
    for one, (logits, routes) in zip(encoded, answers, strict=True):
        wanted, ran = predictor.run(one)
        np.testing.assert_allclose(logits, wanted, atol=1e-5)
        assert (routes == ran).all()


def test_no_more_tokens_are_computed_together_than_may_and_none_waits_for_ever(predictor, slow):
    one = predictor.tokenizer.encode(["a b c d"])
    tokens, requests = len(one[0]), 11

    async def check(batcher: Batcher, served: Served):
        asked = [asyncio.create_task(batcher.ask(served, one))]
        await asyncio.sleep(0.05)
        asked += [asyncio.create_task(batcher.ask(served, one)) for _ in range(requests - 1)]
        asked.append(asyncio.create_task(batcher.ask(served, one * 20)))  # more than a batch by itself
        await asyncio.sleep(0.05)
        slow.may.set()
        await asyncio.gather(*asked)

    tried(check, slow, Limits(batch_tokens=4 * tokens))
    assert [count for count, _ in slow.asked] == [1, 4, 4, 2, 20]


def test_what_asks_for_another_budget_is_computed_apart_and_in_turn(predictor, slow):
    one = predictor.tokenizer.encode(["a"])

    async def check(batcher: Batcher, served: Served):
        budgets = [None, 1.0, 2.0, 1.0, None, 2.0]
        asked = [asyncio.create_task(batcher.ask(served, one, budgets[0]))]
        await asyncio.sleep(0.05)
        asked += [asyncio.create_task(batcher.ask(served, one, budget)) for budget in budgets[1:]]
        await asyncio.sleep(0.05)
        slow.may.set()
        await asyncio.gather(*asked)

    tried(check, slow, budgets=(4.0, 2.0))
    assert slow.asked == [(1, 4.0), (2, 1.0), (2, 2.0), (1, 4.0)]


def test_a_full_house_refuses_and_says_when_to_come_again(predictor):
    async def check(batcher: Batcher, served: Served):
        with batcher.room_for(3), batcher.room_for(2):
            assert not batcher.has_room
            with pytest.raises(RequestError) as refused, batcher.room_for(1):
                pass
            assert refused.value.status == 429 and refused.value.retry_after >= 1
        assert batcher.has_room
        with batcher.room_for(1):
            pass

    tried(check, predictor, Limits(queue=5))


def test_a_request_larger_than_the_house_is_taken_when_nobody_is_in_it(predictor):
    async def check(batcher: Batcher, served: Served):
        with batcher.room_for(60):
            assert not batcher.has_room

    tried(check, predictor, Limits(queue=5))


def test_what_was_given_up_is_never_computed(predictor, slow):
    one = predictor.tokenizer.encode(["a"])

    async def check(batcher: Batcher, served: Served):
        running = asyncio.create_task(batcher.ask(served, one))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(batcher.ask(served, one))
        await asyncio.sleep(0.05)
        for asked in (running, late):
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        slow.may.set()
        await batcher.ask(served, one)

    tried(check, slow)
    assert slow.asked == [(1, None), (1, None)]  # the first, which had begun, and the last


def test_one_that_cannot_be_answered_costs_the_others_nothing(predictor):
    """All were computed together."""
    good, bad = predictor.tokenizer.encode(["a"]), [Encoded(np.array([10**6]), np.array([0]), False)]

    async def check(batcher: Batcher, served: Served):
        asked = [asyncio.create_task(batcher.ask(served, one)) for one in (good, good, bad, good)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = tried(check, predictor)
    assert isinstance(found[2], EngineError)
    wanted = predictor.run(good)[0]
    for answers in (found[0], found[1], found[3]):
        np.testing.assert_allclose(answers[0], wanted, atol=1e-5)


def test_an_error_is_that_of_the_predictor(predictor):
    async def check(batcher: Batcher, served: Served):
        with pytest.raises(BudgetError):
            await batcher.ask(served, predictor.tokenizer.encode(["a"]), budget=9.0)
        return await batcher.ask(served, predictor.tokenizer.encode(["a"]))

    assert len(tried(check, predictor)[0]) == 1


def test_the_budget_falls_while_requests_wait_and_is_what_is_computed(predictor):
    one = predictor.tokenizer.encode(TEXTS[:8])
    budgets: list[float | None] = []

    class Timed(Slow):
        def run(self, encoded, budget=None):
            budgets.append(budget)
            time.sleep(0.1)
            return predictor.run(encoded, budget=budget)

    timed = Timed(predictor)

    async def check(batcher: Batcher, served: Served):
        asked = [asyncio.create_task(batcher.ask(served, one)) for _ in range(12)]
        await asyncio.gather(*asked)

    tried(check, timed, Limits(batch_tokens=1), budgets=(4.0, 2.0, 1.0))
    assert budgets[0] == 4.0 and budgets[-1] == 1.0 and budgets == sorted(budgets, reverse=True)
