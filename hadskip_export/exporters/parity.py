"""Does an engine give what the reference gives? Per piece on the reference's own hidden states, then end to end.

A route may flip only in a near tie: where the reference's margin is farther than eps from the threshold, none may. A
plain share of equal routes would reward gates that never vary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hadskip_export.errors import HadskipError
from hadskip_export.exporters.references import Reference, Trace, traces
from hadskip_export.progress import track
from hadskip_export.runtime.bundle import gate_name, layer_name
from hadskip_export.runtime.engines import Piece
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Encoded, pad

ROUTE_EPSILON = 1e-3  # fp32, in logits of the margin
LOGITS_TOLERANCE = 1e-4  # fp32
# Largest difference a piece may show on the reference's own inputs, fp32.
PIECE_TOLERANCE = {"gate": ROUTE_EPSILON, "head": LOGITS_TOLERANCE, "full": LOGITS_TOLERANCE}
STATE_TOLERANCE = 1e-4  # embeddings and layers


@dataclass(frozen=True)
class PieceParity:
    """Differences of one piece from the reference, absolute."""

    piece: str
    largest: float
    mean: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.largest <= self.tolerance  # false for NaN


@dataclass(frozen=True)
class ParityReport:
    """One engine against one reference.

    Args:
        route_agreement: share of inputs with the same layers run.
        flips: inputs whose route differs although no margin on the way was within `route_epsilon` of the threshold.
        label_agreement: share of inputs with the same label.
        logits_largest: largest difference of a logit where routes agree.
        first_bad_piece: the first piece out of tolerance, `routes` or `logits` where only the whole is; None if passed.
    """

    engine: str
    precision: str
    reference: str
    texts: int
    pieces: tuple[PieceParity, ...]
    route_agreement: float
    route_epsilon: float
    flips: int
    label_agreement: float
    logits_largest: float
    first_bad_piece: str | None

    @property
    def parity(self) -> Literal["passed", "failed"]:
        return "passed" if self.first_bad_piece is None else "failed"

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        result = [f"{self.engine}-{self.precision} against {self.reference}, {self.texts} texts"]
        result += [
            f"  {piece.piece:<12} largest {piece.largest:.1e}  mean {piece.mean:.1e}  tolerance {piece.tolerance:.0e}"
            f"{'' if piece.passed else '  FAILED'}"
            for piece in self.pieces
        ]
        result.append(
            f"  end to end: routes agree {self.route_agreement:.2%} ({self.flips} flips that are no near tie), labels"
            f" agree {self.label_agreement:.2%}, logits differ by at most {self.logits_largest:.1e}"
        )
        verdict = "passed" if self.first_bad_piece is None else f"FAILED at {self.first_bad_piece}"
        return [*result, f"  parity {verdict}"]


def compare(reference: Reference, predictor: Predictor, inputs: Sequence[Encoded]) -> ParityReport:
    """Compares the engine that `predictor` has loaded with `reference` on tokenised inputs.

    Raises:
        HadskipError: no input to compare on.
    """
    if not inputs:
        raise HadskipError("nothing to compare on: no text was given")
    info, manifest = predictor.engine_info, predictor.bundle.manifest
    threshold = manifest.router.threshold
    pieces = {piece: predictor.engine.load(piece) for piece in info.files}
    differences = {piece: _Difference() for piece in pieces}
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    steps = zip(inputs, traces(reference, inputs, threshold), strict=True)
    for encoded, trace in track(steps, len(inputs), f"parity of {info.engine}-{info.precision}"):
        _compare_pieces(pieces, encoded, trace, differences, manifest.model.inputs)
        kept.append((trace.margins, trace.route, trace.logits[0]))
    piece_reports = tuple(difference.report(piece) for piece, difference in differences.items())
    margins, routes, logits = (np.stack(column) for column in zip(*kept, strict=True))
    got_logits, got_routes = predictor.run(inputs, router="gates", gate_threshold=threshold)
    same = (got_routes == routes).all(axis=1)
    flips = count_flips(margins - threshold, routes, got_routes, ROUTE_EPSILON)
    largest = largest_difference(got_logits[same], logits[same])
    bad = next((report.piece for report in piece_reports if not report.passed), None)
    if bad is None and flips:
        bad = "routes"
    if bad is None and not largest <= LOGITS_TOLERANCE:
        bad = "logits"
    return ParityReport(
        info.engine,
        info.precision,
        reference.name,
        len(inputs),
        piece_reports,
        float(same.mean()),
        ROUTE_EPSILON,
        flips,
        float((got_logits.argmax(1) == logits.argmax(1)).mean()),
        largest,
        bad,
    )


def count_flips(margins: np.ndarray, routes: np.ndarray, got: np.ndarray, epsilon: float) -> int:
    """Inputs whose first differing decision is no near tie.

    Only the first counts: after it the two routes see different hidden states.

    Args:
        margins: the reference's, less the threshold, float [n, L].
        routes, got: bool [n, L], the reference's and the engine's.
    """
    different = routes != got
    first = different.argmax(axis=1)
    clear = np.abs(np.take_along_axis(margins, first[:, None], axis=1)[:, 0]) > epsilon
    return int((different.any(axis=1) & clear).sum())


def largest_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Of logits, float [n, classes]; infinite where there is nothing to compare."""
    return float(np.abs(got - expected).max()) if len(got) else float("inf")


class _Difference:
    """Running largest and mean of absolute differences."""

    def __init__(self) -> None:
        self.largest, self.sum, self.count = 0.0, 0.0, 0

    def add(self, got: np.ndarray, expected: np.ndarray) -> None:
        difference = np.abs(got.astype(np.float64) - expected)
        self.largest = float(np.maximum(self.largest, difference.max()))  # NaN stays NaN
        self.sum, self.count = self.sum + float(difference.sum()), self.count + difference.size

    def report(self, piece: str) -> PieceParity:
        tolerance = next((t for kind, t in PIECE_TOLERANCE.items() if piece.startswith(kind)), STATE_TOLERANCE)
        return PieceParity(piece, self.largest, self.sum / max(1, self.count), tolerance)


def _compare_pieces(
    pieces: dict[str, Piece],
    encoded: Encoded,
    trace: Trace,
    differences: dict[str, _Difference],
    full_inputs: tuple[str, ...],
) -> None:
    batch = pad([encoded])
    mask = batch.attention_mask
    embedding_inputs = [getattr(batch, name) for name in full_inputs if name != "attention_mask"]
    differences["embeddings"].add(pieces["embeddings"](*embedding_inputs), trace.states[0])
    for index, expected in enumerate(trace.layer_outputs):
        state = trace.states[index]
        layer, gate = layer_name(index), gate_name(index)
        differences[layer].add(pieces[layer](state, mask), expected)
        differences[gate].add(pieces[gate](state, mask), trace.margins[index : index + 1])
        column = pieces["gates"](state, mask)[:, index]
        differences["gates"].add(column, trace.margins[index : index + 1])
    differences["head"].add(pieces["head"](trace.states[-1]), trace.logits)
    if trace.full_logits is not None and "full" in pieces:
        inputs = [getattr(batch, name) for name in full_inputs]
        differences["full"].add(pieces["full"](*inputs), trace.full_logits)
