"""`validate`: a bundle on the machine it will serve on, without torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hadskip_export.exporters.golden import read_golden
from hadskip_export.exporters.parity import (
    LOGITS_TOLERANCE,
    ROUTE_EPSILON,
    ParityReport,
    compare,
    count_flips,
    largest_difference,
)
from hadskip_export.exporters.references import OnnxReference
from hadskip_export.metrics import METRICS
from hadskip_export.routes import RouteStatistics, statistics
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.tables import Columns, Examples, read_examples


@dataclass(frozen=True)
class GoldenCheck:
    """The engine here against the answers recorded when the bundle was built (by PyTorch)."""

    texts: int
    flips: int
    logits_largest: float

    @property
    def passed(self) -> bool:
        return self.flips == 0 and self.logits_largest <= LOGITS_TOLERANCE


@dataclass(frozen=True)
class DataCheck:
    """The bundle on labelled data: metric with gates and of the full BERT (None where the bundle has none), routes,
    and the share of inputs both give the same label."""

    texts: int
    metric: str
    value: float
    full_value: float | None
    label_agreement: float | None
    routes: RouteStatistics


@dataclass(frozen=True)
class Validation:
    """What `validate` found."""

    golden: GoldenCheck
    parity: ParityReport
    data: DataCheck | None

    @property
    def passed(self) -> bool:
        return self.golden.passed and self.parity.parity == "passed"

    def lines(self) -> list[str]:
        """As a person reads it."""
        golden = self.golden
        result = [
            f"golden: {golden.texts} texts, {golden.flips} flips, logits differ by at most {golden.logits_largest:.1e}"
            f" ({'passed' if golden.passed else 'FAILED'})",
            *self.parity.lines(),
        ]
        if self.data is not None:
            data = self.data
            result.append(
                f"data: {data.texts} texts, {data.metric} {data.value:.4f} at {data.routes.mean_layers:.2f} layers"
            )
            if data.full_value is not None:
                result.append(f"  full BERT {data.full_value:.4f}; the same label for {data.label_agreement:.2%}")
        return result


def validate(
    bundle: str | Path,
    *,
    engine: str | None = None,
    data: str | Path | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Validation:
    """Checks an engine of a bundle against its golden files and, piece by piece, against the ONNX pieces run plainly.

    Args:
        engine: which of the bundle's engines; the first if left out.
        data: labelled texts to compare on instead of the golden ones, and to measure the metric on.

    Raises:
        BundleError: see `read_bundle`; a failed engine is checked all the same.
        DataError: see `read_examples`; a label the model does not know.
    """
    with Predictor.load(bundle, engine=engine, allow_failed=True) as predictor:
        golden = read_golden(predictor.bundle)
        examples = None
        if data is not None:
            examples = read_examples(data, Columns(text_column, pair_column, label_column), predictor.labels)
        inputs = predictor.tokenizer.encode(golden.texts)
        logits, routes = predictor.run(inputs, router="gates")
        threshold = predictor.bundle.manifest.router.threshold
        flips = count_flips(golden.margins - threshold, golden.routes, routes, ROUTE_EPSILON)
        same = (routes == golden.routes).all(axis=1)
        largest = largest_difference(logits[same], golden.logits[same])
        check = GoldenCheck(len(golden.texts), flips, largest)
        texts = golden.texts if examples is None else examples.texts
        report = compare(OnnxReference(predictor.bundle), predictor, predictor.tokenizer.encode(texts))
        return Validation(check, report, None if examples is None else _on_data(predictor, examples))


def _on_data(predictor: Predictor, examples: Examples) -> DataCheck:
    metric = predictor.bundle.manifest.metric
    expected = np.array([predictor.labels.index(label) for label in examples.labels])
    inputs = predictor.tokenizer.encode(examples.texts)
    logits, routes = predictor.run(inputs, router="gates")
    predicted = logits.argmax(axis=1)
    full_value = agreement = None
    if "full" in predictor.engine_info.files:
        full = predictor.run(inputs, router="full")[0].argmax(axis=1)
        full_value, agreement = METRICS[metric](full, expected), float((full == predicted).mean())
    return DataCheck(
        len(examples), metric, METRICS[metric](predicted, expected), full_value, agreement, statistics(routes)
    )
