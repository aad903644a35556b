"""The engines of a bundle against each other, on the same texts: what each may be served at, and how fast that is."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.benchmark.statistics import percentiles
from hadskip_export.benchmark.systems import System, take_turns
from hadskip_export.data.examples import Examples
from hadskip_export.data.text import Text
from hadskip_export.runtime.choices import RouterName
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.progress import say
from hadskip_export.tuning.loss import Judge, Loss
from hadskip_export.tuning.search import Calibrated, Search

CALLS, TURNS = 100, 5
MARGIN = 1.15  # of a time, by which what is raced is faster: the race is on another day


@dataclass(frozen=True)
class Goal:
    """What is asked for: with a time the least loss in that time, else the least time with that loss.

    Args:
        max_loss: of the metric, with 95 % confidence.
        p50_ms: milliseconds of a call of one text, that half of the calls take no longer than.
    """

    max_loss: float | None
    p50_ms: float | None


@dataclass(frozen=True)
class Candidate:
    """A way to serve.

    Args:
        engine: name of one of the bundle's.
        router: `full` for full BERT in that engine.
        at: its operating point; None of full BERT.
        loss: against full BERT in fp32. For each engine by itself: that the best of several holds is less sure.
        metric, full_metric: its own, and full BERT's in that engine; None without labels.
        offered: whether it may be chosen; else it shows what half of the layers would gain and lose.
        p50_ms, p90_ms: milliseconds of a call of one text, of all systems in turns; p50 of the slowest turn.
    """

    engine: str
    router: RouterName
    at: Calibrated | None
    loss: Loss
    metric: float | None
    full_metric: float | None
    offered: bool = True
    p50_ms: float = float("nan")
    p90_ms: float = float("nan")

    @property
    def layers_run(self) -> float | None:
        """Mean layers; None of full BERT."""
        return None if self.at is None else self.at.routes.mean_layers

    def meets(self, goal: Goal) -> bool:
        if not self.offered:
            return False
        slow = goal.p50_ms is not None and not self.p50_ms <= goal.p50_ms
        return not slow and (goal.max_loss is None or self.loss.most <= goal.max_loss)


def judge_of(bundle: Path, engine: str, examples: Examples) -> Judge:
    """Full BERT's answers, by an engine in fp32, and what is right."""
    with Predictor.load(bundle, engine=engine) as predictor:
        return Search(predictor, examples).judge()


def candidates_of(bundle: Path, engine: str, examples: Examples, judge: Judge, goal: Goal) -> list[Candidate]:
    """What an engine has to offer: full BERT, and the operating point that the goal leads to; where none does, that of
    half of the layers, which shows what they would gain and lose."""
    with Predictor.load(bundle, engine=engine) as predictor:
        name, search = predictor.engine_info.name, Search(predictor, examples)
        say(f"{name}: looking for the operating point")
        full = search.full_logits()
        metric, loss = search.score(full), judge.loss(full)
        tried: list[Calibrated] = []
        if goal.p50_ms is not None:
            most = goal.p50_ms / MARGIN
            tried = [row for row in search.in_time(most) if row.takes_at_most(most)]
        elif loss.most <= (most := goal.max_loss or 0.0):  # full BERT is the first of the order, see `Search.within`
            tried = [row for row in search.within(most, judge) if row.loses_at_most(most)]
        found = tried[-1] if tried else search.at(predictor.bundle.manifest.model.layers / 2)
        of_found = found.loss or judge.loss(search.logits_at(found))
        return [
            Candidate(name, "full", None, loss, metric, metric),
            Candidate(name, "gates", found, of_found, found.metric, metric, bool(tried)),
        ]


def loss_served(bundle: Path, examples: Examples, judge: Judge) -> Loss:
    """What a bundle loses as it is loaded without an option, and asked for one text after the other."""
    with Predictor.load(bundle) as predictor:
        encoded = predictor.tokenizer.encode(examples.texts)
        return judge.loss(predictor.run(encoded, 1)[0])


def race(bundle: Path, candidates: Sequence[Candidate], texts: Sequence[Text]) -> list[Candidate]:
    """Times them on the same texts, one a call, in turns, each in a process of its own."""
    systems: dict[str, System] = {}
    with ExitStack() as stack:
        for number, candidate in enumerate(candidates):
            options: dict[str, Any] = {"engine": candidate.engine, "router": candidate.router}
            if candidate.at is not None:
                options["gate_threshold"] = candidate.at.threshold
            systems[str(number)] = stack.enter_context(System(str(bundle), options, texts))
        chosen = np.random.default_rng(0).permutation(len(texts))[:CALLS]
        seconds = take_turns(systems, list(chosen[:, None]), 1 + TURNS, "candidates in turns").seconds
    timed = []
    for number, candidate in enumerate(candidates):
        turns = seconds[str(number)][:, 1:]  # in the first, engines meet lengths that they have not seen
        timed.append(
            replace(candidate, p50_ms=float(np.median(turns, axis=0).max()) * 1e3, p90_ms=percentiles(turns)[1])
        )
    return timed


def ranked(candidates: Sequence[Candidate], goal: Goal) -> list[Candidate]:
    """Those that meet the goal, the best first: that lose least where a time is given, else the fastest."""
    fit = [candidate for candidate in candidates if candidate.meets(goal)]
    if goal.p50_ms is not None:
        return sorted(fit, key=lambda candidate: (candidate.loss.most, candidate.p50_ms))
    return sorted(fit, key=lambda candidate: candidate.p50_ms)
