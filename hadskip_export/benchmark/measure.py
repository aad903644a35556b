"""The one way in which a speedup is measured: the Predictor and full BERT in turns, pieces alone, what to distrust."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from hadskip_export.benchmark.statistics import PieceTimes, Ratio, ideal_speedup, percentiles, speedup
from hadskip_export.benchmark.systems import System, take_turns
from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.manifest import EngineInfo
from hadskip_export.runtime.tokenization import Text

TURNS = 5
FULL_SETTINGS = {"full, threads asleep": False, "full, threads spinning": True}
IDLE_SHARE = 0.05  # of a core; a worker that waits uses less than a hundredth
WIDE_INTERVAL = 0.1  # of the speedup
BUSY_SHARE = 0.15  # of the processors, before anything was started here


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One workload, measured. Times are milliseconds per call; `p50`, `p90`, `p99` are the Predictor's, `full_*` full
    BERT's.

    Args:
        seq: mean tokens per input.
        routing: `data` (the gates decide), `same` or `mixed` (forced, the same layers for all inputs or not).
        layers_run: mean layers per input.
        last_run: the share of inputs that run the last layer that any may run.
        embeddings_ms, layer_ms, last_layer_ms, head_ms: p50 of each alone, in the same run; a layer with the gates
            that are inside its engine. `layer_ms` is None where the route is one layer, which is the last.
        speedup, speedup_low, speedup_high: full BERT's time over the Predictor's, and its 95 % interval.
        ideal: the speedup if gates, routing and copies cost nothing; `efficiency = speedup / ideal`. None where full
            BERT is in another engine, or `layer_ms` is None.
        cut: how finely the model is cut, see `Cut`.
        full_engine: full BERT's.
        full_setting: the thread setting at which full BERT was faster; that is what it is timed at.
        warnings: why not to trust the figures; empty is good.
        samples: seconds, [calls][turns], by system.
    """

    engine: str
    precision: str
    cut: str
    seq: float
    batch: int
    routing: str
    layers: int
    layers_run: float
    last_run: float
    embeddings_ms: float
    layer_ms: float | None
    last_layer_ms: float
    head_ms: float
    full_p50_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    ideal: float | None
    efficiency: float | None
    p50: float
    p90: float
    p99: float
    full_p90_ms: float
    full_p99_ms: float
    full_engine: str
    full_setting: str
    warnings: tuple[str, ...]
    samples: dict[str, list[list[float]]]


@dataclass(frozen=True)
class Workload:
    """What one row of figures times.

    Args:
        calls: rows of the contest's texts, int arrays of one size; each call is one batch.
        lengths: tokens of every text, int [texts].
        routes: the layers that every text runs, bool [texts, L].
        routing: see `Figures`.
        label: what the progress line calls it.
    """

    calls: Sequence[np.ndarray]
    lengths: np.ndarray
    routes: np.ndarray
    routing: str
    label: str


class Contest:
    """The Predictor and full BERT on the same texts, each in a process of its own. Use it as a context manager.

    Args:
        info: the engine, the same for both.
        options: keyword arguments of `Predictor.load` for the Predictor that is timed.
        routes: forces the layers that each text runs, bool [texts, L].
        full: full BERT's engine, where it is not the same.
        busy: share of the processors in use before anything was started; None if the system does not tell.
    """

    def __init__(
        self,
        bundle: Bundle,
        info: EngineInfo,
        texts: Sequence[Text],
        *,
        options: dict[str, Any] | None = None,
        routes: np.ndarray | None = None,
        full: EngineInfo | None = None,
        busy: float | None = None,
    ):
        self._manifest, self._info, self._full_info, self._busy = bundle.manifest, info, full or info, busy
        folder = str(bundle.path)
        self.skip = System(folder, {"engine": info.name} | (options or {}), texts, routes)
        self.full = {
            setting: System(folder, {"engine": self._full_info.name, "router": "full", "spinning": spinning}, texts)
            for setting, spinning in FULL_SETTINGS.items()
        }

    def __enter__(self) -> "Contest":
        with ExitStack() as stack:
            for system in (self.skip, *self.full.values()):
                stack.enter_context(system)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, workload: Workload, turns: int = TURNS) -> Figures:
        """Times both on the same calls, in turns, and the pieces alone on a fifth of them."""
        calls, routes = workload.calls, workload.routes
        few = calls[: max(1, len(calls) // 5)]
        settings = take_turns(self.full, few, 3, f"{workload.label}: full BERT's thread settings").seconds
        setting = min(settings, key=lambda name: float(np.median(settings[name], axis=1).sum()))
        found = take_turns({"skip": self.skip, "full": self.full[setting]}, calls, turns, workload.label)
        repeats = 3 * max(1, 20 // len(few))
        pieces = PieceTimes(**self.skip.ask("pieces", calls=[call.tolist() for call in few], repeats=repeats))
        skip, full = found.seconds["skip"], found.seconds["full"]
        timed = np.concatenate(calls)
        layers, last = self._manifest.model.layers, self._manifest.reachable_layers[-1]
        layers_run, last_run = float(routes[timed].sum(axis=1).mean()), float(routes[timed, last].mean())
        ratio = speedup(full, skip)
        ideal = None
        if self._full_info == self._info:
            ideal = ideal_speedup(pieces, layers=layers, layers_run=layers_run, last_run=last_run)
        p50, p90, p99 = percentiles(skip)
        full_p50, full_p90, full_p99 = percentiles(full)
        return Figures(
            engine=self._info.engine,
            precision=self._info.precision,
            cut=self._info.cut,
            seq=float(workload.lengths[timed].mean()),
            batch=len(calls[0]),
            routing=workload.routing,
            layers=layers,
            layers_run=layers_run,
            last_run=last_run,
            embeddings_ms=pieces.embeddings * 1e3,
            layer_ms=None if pieces.layer is None else pieces.layer * 1e3,
            last_layer_ms=pieces.last_layer * 1e3,
            head_ms=pieces.head * 1e3,
            full_p50_ms=full_p50,
            speedup=ratio.value,
            speedup_low=ratio.low,
            speedup_high=ratio.high,
            ideal=ideal,
            efficiency=None if ideal is None else ratio.value / ideal,
            p50=p50,
            p90=p90,
            p99=p99,
            full_p90_ms=full_p90,
            full_p99_ms=full_p99,
            full_engine=self._full_info.name,
            full_setting=setting,
            warnings=tuple(distrust(ratio, found.idle_share, self._busy)),
            samples={system: values.tolist() for system, values in found.seconds.items()},
        )


def distrust(ratio: Ratio, idle_share: dict[str, float], busy: float | None) -> list[str]:
    """Why the figures should not be believed, a line each."""
    found = []
    if busy is not None and busy > BUSY_SHARE:
        found.append(f"{busy:.0%} of the machine was busy before this began; stop the other work")
    for system, share in idle_share.items():
        if share > IDLE_SHARE:
            found.append(
                f"{system} used {share:.0%} of a core while it should wait; what the other one took is too long"
            )
    if ratio.high - ratio.low > WIDE_INTERVAL * ratio.value:
        found.append(f"too noisy: the speedup may be anything from {ratio.low:.2f} to {ratio.high:.2f}; run it again")
    elif ratio.low <= 1 <= ratio.high:
        found.append("no difference between the two can be told from noise")
    return found
