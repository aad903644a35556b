"""Several systems on the same texts: how good, how fast and how large each is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.benchmark.measure import TURNS
from hadskip_export.benchmark.statistics import percentiles
from hadskip_export.benchmark.systems import Process, System, choose_calls, take_turns
from hadskip_export.runtime.tokenization import Text

BATCH = 32  # texts of a call, where what counts is how many a second


@dataclass(frozen=True)
class Entered:
    """Who takes part.

    Args:
        name: what a table calls it.
        engine: what it computes in.
        process: which has it loaded.
        disk_mb: what is deployed of it.
        columns: of its logits, in the order of the labels that all are compared on.
    """

    name: str
    engine: str
    process: Process
    disk_mb: float
    columns: tuple[int, ...]


@contextmanager
def loaded_bundle(
    name: str, bundle: Path, options: dict[str, Any], columns: tuple[int, ...], texts: Sequence[Text]
) -> Iterator[Entered]:
    """
    Args:
        options: keyword arguments of `Predictor.load`; its engine by its whole name.
    """
    disk = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    with System(str(bundle), options, texts) as process:
        yield Entered(name, options["engine"], process, disk / 1e6, columns)


@dataclass(frozen=True)
class PeerFigures:
    """A system beside others, on the same texts.

    Args:
        metric: on all of them.
        p50, p90, p99: milliseconds of a call of one text.
        throughput: texts a second, in batches.
        disk_mb, memory_mb: of its bundle, all of it, and of the process that has it loaded, at most.
    """

    name: str
    engine: str
    metric: float
    p50: float
    p90: float
    p99: float
    throughput: float
    disk_mb: float
    memory_mb: float


def race(
    entered: Sequence[Entered], texts: Sequence[Text], score: Callable[[np.ndarray], float]
) -> tuple[PeerFigures, ...]:
    """
    Args:
        entered: no two of one name, each loaded with `texts`.
        score: of logits, float [texts, labels].
    """
    size = min(BATCH, len(texts))
    alone, batches = choose_calls(len(texts), 1), choose_calls(len(texts), size)
    processes = {one.name: one.process for one in entered}
    single = take_turns(processes, alone, TURNS, "one text a call").seconds
    several = take_turns(processes, batches, TURNS, f"{size} texts a call").seconds
    figures = []
    for one in entered:
        logits = np.array(one.process.ask("answers", batch_size=BATCH)["logits"])
        p50, p90, p99 = percentiles(single[one.name])
        figures.append(
            PeerFigures(
                name=one.name,
                engine=one.engine,
                metric=score(logits[:, list(one.columns)]),
                p50=p50,
                p90=p90,
                p99=p99,
                throughput=len(batches) * size / float(np.median(several[one.name], axis=1).sum()),
                disk_mb=one.disk_mb,
                memory_mb=one.process.ask("memory")["mb"],
            )
        )
    return tuple(figures)


def fastest_as_good(ours: PeerFigures, others: Sequence[PeerFigures]) -> PeerFigures | None:
    """The fastest of the others whose metric is ours or better."""
    as_good = [other for other in others if other.metric >= ours.metric]
    return min(as_good, key=lambda other: other.p50, default=None)
