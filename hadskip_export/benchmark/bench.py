"""`bench`: a bundle against full BERT on the same inputs, in interleaved turns, each system in its own process."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.benchmark.statistics import ideal_speedup, percentiles, speedup
from hadskip_export.benchmark.systems import System, faster, take_turns
from hadskip_export.environment import environment
from hadskip_export.errors import BundleError, DataError
from hadskip_export.exporters.golden import read_golden
from hadskip_export.metrics import METRICS
from hadskip_export.runtime.bundle import EngineInfo, ModelInfo, read_bundle
from hadskip_export.runtime.tokenization import Text, Tokenizer
from hadskip_export.tables import Columns, read_examples

PEERS = ("full",)
MOST_CALLS = 100
TURNS = 5
FULL_SETTINGS = {"full, threads asleep": False, "full, threads spinning": True}


@dataclass(frozen=True)
class Row:
    """One measurement. Times are milliseconds per call; `p50`, `p90`, `p99` are the Predictor's, `full_*` full BERT's.

    Args:
        seq: mean tokens per input of the timed calls.
        layers_run: mean layers per input of the timed calls; `mean_layers`: over all of the data.
        metric, full_metric: with gates and of full BERT, on all of the labelled data; None without labels.
        embeddings_ms, layer_ms, head_ms: p50 of each alone, in the same run.
        speedup, speedup_low, speedup_high: full BERT's time over the Predictor's, and its 95 % interval.
        ideal: the speedup if gates, routing and copies cost nothing; `efficiency = speedup / ideal`.
        histogram: share of inputs that ran 0, 1, ..., L layers, over all of the data.
        samples: seconds, [calls][turns], by system.
    """

    engine: str
    precision: str
    seq: float
    batch: int
    routing: str
    layers: int
    layers_run: float
    embeddings_ms: float
    layer_ms: float
    head_ms: float
    full_p50_ms: float
    skip_p50_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    ideal: float
    efficiency: float
    metric_name: str
    metric: float | None
    full_metric: float | None
    mean_layers: float
    p50: float
    p90: float
    p99: float
    full_p90_ms: float
    full_p99_ms: float
    full_setting: str
    histogram: list[float]
    samples: dict[str, list[list[float]]]

    def lines(self) -> list[str]:
        """The row as a person reads it."""
        quality = ["", "", ""]
        if self.metric is not None:
            quality = [f"{self.metric_name:>10}", f"{self.full_metric:>10.4f}", f"{self.metric:>10.4f}"]
        return [
            f"{self.engine}-{self.precision}, batch {self.batch}, {self.seq:.0f} tokens per input on average",
            f"{'':<12} {'layers':>7} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {quality[0]}",
            f"{'full BERT':<12} {self.layers:>7.2f} {self.full_p50_ms:>8.2f} {self.full_p90_ms:>8.2f}"
            f" {self.full_p99_ms:>8.2f} {quality[1]}",
            f"{'hadskip':<12} {self.mean_layers:>7.2f} {self.p50:>8.2f} {self.p90:>8.2f} {self.p99:>8.2f} {quality[2]}",
            f"speedup {self.speedup:.2f}x (95 % interval {self.speedup_low:.2f} to {self.speedup_high:.2f}),"
            f" ideal {self.ideal:.2f}x at {self.layers_run:.2f} layers run, efficiency {self.efficiency:.0%}"
            f" ({self.full_setting})",
            "layers run: " + ", ".join(f"{count}: {share:.0%}" for count, share in enumerate(self.histogram) if share),
        ]


def bench(
    bundle: str | Path,
    *,
    engine: str | None = None,
    data: str | Path | None = None,
    batch: Sequence[int] = (1,),
    against: Sequence[str] = ("full",),
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> dict[str, Any]:
    """Times a bundle against full BERT.

    Args:
        engine: which of the bundle's engines; the first if left out.
        data: labelled texts to time and to measure the metric on; the golden texts if left out.
        batch: inputs per call; one row for each.
        against: what to compare with; `full` is all there is.

    Returns:
        `{"environment": {...}, "rows": [Row, ...]}` as `--json` writes it.

    Raises:
        BundleError: see `read_bundle`; a bundle without its full model.
        DataError: see `read_examples`; a label the model does not know; an unknown peer.
    """
    for peer in against:
        if peer not in PEERS:
            raise DataError(f"--against {peer}: not known; there is {', '.join(PEERS)}")
    if any(size < 1 for size in batch):
        raise DataError("--batch: expected at least 1")
    opened = read_bundle(bundle)
    info, manifest = opened.engine(engine), opened.manifest
    if "full" not in info.files:
        raise BundleError(f"{bundle}: carries no full model to compare with (built with --no-full); build it again")
    texts: list[Text]
    labels: np.ndarray | None = None
    if data is None:
        texts = read_golden(opened).texts
    else:
        examples = read_examples(data, Columns(text_column, pair_column, label_column), manifest.model.labels)
        texts = examples.texts
        labels = np.array([manifest.model.labels.index(label) for label in examples.labels])
    for size in batch:
        if size > len(texts):
            raise DataError(f"--batch {size}: there are only {len(texts)} texts; give more with --data")
    before = environment()
    tokenizer = Tokenizer(opened.file(manifest.tokenizer), manifest.model.max_length)
    lengths = np.array([len(encoded) for encoded in tokenizer.encode(texts)])
    rows = measure(str(bundle), info, manifest.model, texts, lengths, batch, manifest.metric, labels)
    load_after = environment()["load"]
    return {"environment": before | {"load_after": load_after}, "rows": [asdict(row) for row in rows]}


def measure(
    bundle: str,
    info: EngineInfo,
    model: ModelInfo,
    texts: list[Text],
    lengths: np.ndarray,
    batches: Sequence[int],
    metric: str,
    labels: np.ndarray | None,
) -> list[Row]:
    """Starts the systems and times them at each batch size."""
    name = f"{info.engine}-{info.precision}"
    with ExitStack() as stack:
        skip = stack.enter_context(System(bundle, {"engine": name}, texts))
        alone = stack.enter_context(System(bundle, {"engine": name}, texts))
        answers = skip.ask("answers")
        layers_run = np.array(answers["layers_run"])
        full = {
            setting: stack.enter_context(
                System(bundle, {"engine": name, "router": "full", "spinning": spinning}, texts)
            )
            for setting, spinning in FULL_SETTINGS.items()
        }
        score = full_score = None
        if labels is not None:
            full_answers = full["full, threads asleep"].ask("answers")
            score = METRICS[metric](np.array(answers["predicted"]), labels)
            full_score = METRICS[metric](np.array(full_answers["predicted"]), labels)
        rows = []
        for size in batches:
            calls = choose_calls(len(texts), size)
            setting = faster(full, calls[: max(1, len(calls) // 5)], f"batch {size}: full BERT's thread settings")
            systems = {"skip": skip, "full": full[setting]}
            seconds = take_turns(systems, calls, TURNS, f"batch {size}")
            parts = _pieces(alone, calls)
            timed = np.concatenate(calls)
            ratio = speedup(seconds["full"], seconds["skip"])
            p50, p90, p99 = percentiles(seconds["skip"])
            full_p50, full_p90, full_p99 = percentiles(seconds["full"])
            k = float(layers_run[timed].mean())
            ideal = ideal_speedup(parts["embeddings"], parts["layer"], parts["head"], model.layers, k)
            rows.append(
                Row(
                    engine=info.engine,
                    precision=info.precision,
                    seq=float(lengths[timed].mean()),
                    batch=size,
                    routing="data",
                    layers=model.layers,
                    layers_run=k,
                    embeddings_ms=parts["embeddings"],
                    layer_ms=parts["layer"],
                    head_ms=parts["head"],
                    full_p50_ms=full_p50,
                    skip_p50_ms=p50,
                    speedup=ratio.value,
                    speedup_low=ratio.low,
                    speedup_high=ratio.high,
                    ideal=ideal,
                    efficiency=ratio.value / ideal,
                    metric_name=metric,
                    metric=score,
                    full_metric=full_score,
                    mean_layers=float(layers_run.mean()),
                    p50=p50,
                    p90=p90,
                    p99=p99,
                    full_p90_ms=full_p90,
                    full_p99_ms=full_p99,
                    full_setting=setting,
                    histogram=(np.bincount(layers_run, minlength=model.layers + 1) / len(layers_run)).tolist(),
                    samples={system: values.tolist() for system, values in seconds.items()},
                )
            )
        return rows


def choose_calls(texts: int, batch: int, seed: int = 0) -> list[np.ndarray]:
    """At most `MOST_CALLS` calls of `batch` different texts each, drawn at random; int arrays of row numbers."""
    order = np.random.default_rng(seed).permutation(texts)
    return [order[start : start + batch] for start in range(0, texts - batch + 1, batch)][:MOST_CALLS]


def _pieces(alone: System, calls: Sequence[np.ndarray]) -> dict[str, float]:
    """p50 of embeddings, one layer and head, in milliseconds."""
    alone.ask("pieces", rows=[int(row) for row in calls[0]])
    samples = [alone.ask("pieces", rows=[int(row) for row in call]) for call in calls for _ in range(3)]
    return {name: float(np.median([sample[name] for sample in samples])) * 1e3 for name in samples[0]}
