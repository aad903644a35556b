"""`bench`: a bundle against full BERT on the same inputs, in interleaved turns, each system in its own process."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.benchmark.measure import Contest, Figures
from hadskip_export.data.metrics import METRICS
from hadskip_export.data.tables import Columns, read_examples
from hadskip_export.runtime.bundle import Bundle, EngineInfo, read_bundle
from hadskip_export.runtime.engines import engine_class
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text
from hadskip_export.support.environment import busy_share, environment
from hadskip_export.support.errors import BundleError, DataError
from hadskip_export.verification.golden import check_golden, read_golden

PEERS = ("full",)
MOST_CALLS = 100
EFFICIENT = 0.9  # from here on the calls between the pieces are not worth the memory that would save them


@dataclass(frozen=True, kw_only=True)
class Row(Figures):
    """One measurement.

    Args:
        mean_layers: mean layers per input over all of the data; `layers_run`: of the timed calls.
        metric, full_metric: with gates and of full BERT, on all of the labelled data; None without labels.
        histogram: share of inputs that ran 0, 1, ..., L layers, over all of the data.
        profile: mean milliseconds of a call by part, see `profile`; None where it was not asked for.
        hint: how it could be faster, see `faster_alone`; None where nobody knows.
    """

    metric_name: str
    metric: float | None
    full_metric: float | None
    mean_layers: float
    histogram: list[float]
    profile: dict[str, float] | None
    hint: str | None

    def lines(self) -> list[str]:
        """The row as a person reads it."""
        quality = ["", "", ""]
        if self.metric is not None:
            quality = [f"{self.metric_name:>10}", f"{self.full_metric:>10.4f}", f"{self.metric:>10.4f}"]
        ideal = ""
        if self.ideal is not None and self.efficiency is not None:
            ideal = f" ideal {self.ideal:.2f}x at {self.layers_run:.2f} layers run, efficiency {self.efficiency:.0%}"
        return [
            f"{self.engine}-{self.precision}, batch {self.batch}, {self.seq:.0f} tokens per input on average",
            f"{'':<12} {'layers':>7} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {quality[0]}",
            f"{'full BERT':<12} {self.layers:>7.2f} {self.full_p50_ms:>8.2f} {self.full_p90_ms:>8.2f}"
            f" {self.full_p99_ms:>8.2f} {quality[1]}",
            f"{'hadskip':<12} {self.mean_layers:>7.2f} {self.p50:>8.2f} {self.p90:>8.2f} {self.p99:>8.2f} {quality[2]}",
            f"speedup {self.speedup:.2f}x (95 % interval {self.speedup_low:.2f} to {self.speedup_high:.2f}),{ideal}"
            f" ({self.full_setting})",
            "layers run: " + ", ".join(f"{count}: {share:.0%}" for count, share in enumerate(self.histogram) if share),
            *(f"do not trust this: {warning}" for warning in self.warnings),
            *([] if self.hint is None else [f"to make it faster: {self.hint}"]),
            *self._profile_lines(),
        ]

    def _profile_lines(self) -> list[str]:
        if self.profile is None:
            return []
        total = sum(self.profile.values())
        rows = [f"  {part:<12} {ms:>8.3f} ms {ms / total:>6.1%}" for part, ms in self.profile.items()]
        return ["where a call's time goes, on average:", *rows]


def bench(
    bundle: str | Path,
    *,
    engine: str | None = None,
    data: str | Path | None = None,
    batch: Sequence[int] = (1,),
    against: Sequence[str] = ("full",),
    max_layers: int | None = None,
    profile: bool = False,
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
        max_layers: the most layers an input may run.
        profile: split a call into its parts, too.

    Returns:
        `{"environment": {...}, "rows": [Row, ...]}` as `--json` writes it.

    Raises:
        BundleError: see `read_bundle`; a bundle without its full model; an engine that was never checked, or does not
            give the answers it gave when it was built, for the speed of wrong answers is worth nothing.
        BudgetError: `max_layers` is not between 1 and the number of layers.
        DataError: see `read_examples`; a label the model does not know; an unknown peer.
    """
    for peer in against:
        if peer not in PEERS:
            raise DataError(f"--against {peer}: not known; there is {', '.join(PEERS)}")
    if any(size < 1 for size in batch):
        raise DataError("--batch: expected at least 1")
    before, busy = environment(), busy_share()
    opened = read_bundle(bundle)
    info, manifest = opened.engine(engine), opened.manifest
    if "full" not in info.files:
        raise BundleError(f"{bundle}: carries no full model to compare with (built with --no-full); build it again")
    if info.parity == "unverified":
        raise BundleError(f"{bundle}: {info.name} was never checked; run hadskip-export validate on this machine first")
    golden = read_golden(opened)
    texts: list[Text] = golden.texts
    labels: np.ndarray | None = None
    if data is not None:
        examples = read_examples(data, Columns(text_column, pair_column, label_column), manifest.model.labels)
        texts = examples.texts
        labels = np.array([manifest.model.labels.index(label) for label in examples.labels])
    for size in batch:
        if size > len(texts):
            raise DataError(f"--batch {size}: there are only {len(texts)} texts; give more with --data")
    with Predictor(opened, info.name) as predictor:
        check = check_golden(predictor, golden)
        lengths = np.array([len(encoded) for encoded in predictor.tokenizer.encode(texts)])
    if not check.passed:
        raise BundleError(
            f"{bundle}: on this machine {info.name} does not give its golden answers ({check}); run"
            " hadskip-export validate"
        )
    rows = []
    with Contest(str(bundle), info, manifest, texts, {"max_layers": max_layers}) as contest:
        for size in batch:
            answers = contest.skip.ask("answers", batch_size=size)
            routes = np.array(answers["routes"])
            layers_run = routes.sum(axis=1)
            metric = full_metric = None
            if labels is not None:
                measured = METRICS[manifest.metric]
                full_answers = next(iter(contest.full.values())).ask("answers", batch_size=size)
                metric = measured(np.array(answers["predicted"]), labels)
                full_metric = measured(np.array(full_answers["predicted"]), labels)
            calls = choose_calls(len(texts), size)
            figures = contest.measure(calls, lengths, routes, "data", f"batch {size}", busy)
            parts = contest.skip.ask("profile", calls=[call.tolist() for call in calls])["parts"] if profile else None
            rows.append(
                Row(
                    **vars(figures),
                    metric_name=manifest.metric,
                    metric=metric,
                    full_metric=full_metric,
                    mean_layers=float(layers_run.mean()),
                    histogram=(np.bincount(layers_run, minlength=manifest.model.layers + 1) / len(texts)).tolist(),
                    profile=parts and {part: seconds * 1e3 for part, seconds in parts.items()},
                    hint=None if figures.warnings else faster_alone(opened, info, size, figures.efficiency),
                )
            )
    after = {"load_after": environment()["load"]}
    return {"environment": before | after, "rows": [asdict(row) for row in rows]}


def faster_alone(bundle: Bundle, info: EngineInfo, batch: int, efficiency: float | None) -> str | None:
    """What would save an input that comes alone the calls between the pieces, where these cost a small model much."""
    kind = engine_class(info.engine)
    could = "graph" in kind.singles(info.precision) and bundle.manifest.router.kind == "gates"
    if batch > 1 or info.single != "chain" or not could or efficiency is None or efficiency >= EFFICIENT:
        return None
    command = ["hadskip-export", "build", str(bundle.path), "--engine", info.engine, "--precision", info.precision]
    if kind.batches != "chain":
        return f"{shlex.join([*command, '--single', 'graph'])} runs every call as one engine"
    return (
        f"{shlex.join([*command, '--gates', info.gates, '--single', 'graph'])} runs inputs that come alone as one"
        " engine, which takes the memory of the weights once more"
    )


def choose_calls(texts: int, batch: int, seed: int = 0) -> list[np.ndarray]:
    """At most `MOST_CALLS` calls of `batch` different texts each, drawn at random; int arrays of row numbers."""
    order = np.random.default_rng(seed).permutation(texts)
    return [order[start : start + batch] for start in range(0, texts - batch + 1, batch)][:MOST_CALLS]
