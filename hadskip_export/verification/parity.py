"""Does an engine give what the reference gives? Per piece on the reference's own hidden states, then end to end.

A route may flip only in a near tie: where the reference's margin is farther than eps from the threshold, none may. A
plain share of equal routes would reward gates that never vary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hadskip_export.routing.routes import Route
from hadskip_export.runtime.bundle import EngineInfo, Manifest, Tolerance, gate_name, layer_name
from hadskip_export.runtime.engines import Piece, is_reduced
from hadskip_export.runtime.engines.bfloat16 import STEP, Bfloat16States
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Encoded, pad
from hadskip_export.support.errors import HadskipError
from hadskip_export.support.progress import track
from hadskip_export.verification.references import Reference, Trace, traces

ROUTE_EPSILON = 1e-3  # fp32, in logits of the margin; no precision has less
LOGITS_TOLERANCE = 1e-4  # fp32
# Largest difference a piece in fp32 may show on the reference's own inputs.
PIECE_TOLERANCE = {"gate": ROUTE_EPSILON, "head": LOGITS_TOLERANCE, "full": LOGITS_TOLERANCE}
STATE_TOLERANCE = 1e-4  # embeddings and layers
FUSED = "gates in {}"  # what a report calls the gates that are fused with a piece
# Below fp32 single values stray; the mean difference may be this share of the mean of what the reference gives.
MEAN_SHARE = 0.2
# Labels that may differ beyond what full BERT's own precision costs (int8), or at all.
LABEL_DISAGREEMENT = {"fp32": 0.0, "bf16": 0.005, "fp16": 0.005, "int8": 0.01}
# A near tie below fp32: so many times the margin's error after one layer, at most this share of the gate's spread.
NEAR_TIE_ERRORS, NEAR_TIE_SPREAD = 3, 0.05


@dataclass(frozen=True)
class PieceParity:
    """Differences of one piece from the reference, absolute. `tolerance` is for the largest or for the mean one."""

    piece: str
    largest: float
    mean: float
    tolerance: float
    judged: Literal["largest", "mean"] = "largest"

    @property
    def passed(self) -> bool:
        return getattr(self, self.judged) <= self.tolerance  # false for NaN


@dataclass(frozen=True)
class ParityReport:
    """One engine against one reference.

    Args:
        tolerance: `margins`: what counts as a near tie, per gate; `logits`: fp32's, or below fp32 twice what was
            measured here, for checks on other machines to compare with.
        route_agreement: share of inputs with the same layers run.
        flips: inputs whose route differs although no margin on the way was a near tie.
        label_agreement: share of inputs with the same label.
        full_label_agreement: the same of full BERT in this engine and in the reference; None without full BERT.
        logits_largest: largest difference of a logit where routes agree.
        first_bad_piece: the first piece out of tolerance; `routes`, `labels` or `logits` where only the whole is, with
            ` in graph` or ` in guess` where only inputs that come alone are; None if passed. The figures end to end are
            those of the worse way to run (`ways_to_run`).
    """

    engine: str
    precision: str
    reference: str
    texts: int
    pieces: tuple[PieceParity, ...]
    tolerance: Tolerance
    route_agreement: float
    flips: int
    label_agreement: float
    full_label_agreement: float | None
    logits_largest: float
    first_bad_piece: str | None

    @property
    def parity(self) -> Literal["passed", "failed"]:
        return "passed" if self.first_bad_piece is None else "failed"

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        result = [f"{self.engine}-{self.precision} against {self.reference}, {self.texts} texts"]
        result += [
            f"  {piece.piece:<17} largest {piece.largest:.1e}  mean {piece.mean:.1e}  tolerance {piece.tolerance:.0e}"
            f"{'' if piece.judged == 'largest' else ' of the mean'}{'' if piece.passed else '  FAILED'}"
            for piece in self.pieces
        ]
        result.append(
            f"  end to end: routes agree {self.route_agreement:.2%} ({self.flips} flips that are no near tie), labels"
            f" agree {self.label_agreement:.2%}, logits differ by at most {self.logits_largest:.1e}"
        )
        if self.full_label_agreement is not None and self.precision != "fp32":
            result.append(
                f"  full BERT in {self.precision}: labels agree {self.full_label_agreement:.2%} with its fp32"
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
    if info.gates == "fused":
        fused = [FUSED.format(layer_name(index)) for index in range(manifest.model.layers - 1)]
        differences |= {name: _Difference() for name in fused}
    if info.guess is not None:
        differences[FUSED.format("guess")] = _Difference()
    kept: list[tuple[np.ndarray, ...]] = []
    same_full: list[bool] = []
    rounded = info.precision == "bf16" and predictor.engine.bf16_states
    steps = zip(inputs, traces(reference, inputs, threshold), strict=True)
    for encoded, trace in track(steps, len(inputs), f"parity of {info.name}"):
        errors, full_logits = _compare_pieces(
            pieces, encoded, trace, differences, manifest, info, reference if rounded else None
        )
        for graph in (name for name in ("graph", "rows") if name in pieces):
            _compare_graph(pieces, graph, encoded, manifest, differences[graph])
        kept.append((trace.margins, errors, trace.route, trace.logits[0]))
        if full_logits is not None and trace.full_logits is not None:
            same_full.append(bool(full_logits.argmax() == trace.full_logits.argmax()))
    margins, margin_errors, routes, logits = (np.stack(column) for column in zip(*kept, strict=True))
    piece_reports = tuple(
        difference.report(piece, exact=info.precision == "fp32" or not is_reduced(piece))
        for piece, difference in differences.items()
    )
    near = np.full(margins.shape[1], ROUTE_EPSILON)
    if info.precision != "fp32":
        near = near_ties(margins, margin_errors)
    full_agreement = float(np.mean(same_full)) if same_full else None
    allowed = LABEL_DISAGREEMENT[info.precision]
    if info.precision == "int8" and full_agreement is not None:
        allowed += 1 - full_agreement
    bad = next((report.piece for report in piece_reports if not report.passed), None)
    answers = _Answers(margins - threshold, routes, logits)
    ways = {way: _end_to_end(predictor, inputs, size, answers, near) for way, size in ways_to_run(info).items()}
    for way, found in ways.items():
        near_enough = found.largest <= LOGITS_TOLERANCE if info.precision == "fp32" else np.isfinite(found.largest)
        if bad is None and found.flips:
            bad = f"routes{way}"
        if bad is None and not near_enough:
            bad = f"logits{way}"
        if bad is None and info.precision != "fp32" and 1 - found.label_agreement > allowed + 1e-9:
            bad = f"labels{way}"
    largest = float(np.max([found.largest for found in ways.values()]))  # NaN stays NaN
    logits_tolerance = LOGITS_TOLERANCE
    if info.precision != "fp32" and np.isfinite(largest):
        logits_tolerance = 2 * largest
    return ParityReport(
        info.engine,
        info.precision,
        reference.name,
        len(inputs),
        piece_reports,
        Tolerance(tuple(near.tolist()), logits_tolerance),
        min(found.route_agreement for found in ways.values()),
        max(found.flips for found in ways.values()),
        min(found.label_agreement for found in ways.values()),
        full_agreement,
        largest,
        bad,
    )


def ways_to_run(info: EngineInfo) -> dict[str, int]:
    """In batches and, where inputs that come alone have an engine of their own, one at a time: batch size by what a
    report calls the way."""
    return {"": 32} | ({} if info.single == "chain" else {f" in {info.single}": 1})


@dataclass(frozen=True)
class _Answers:
    """The reference's on all inputs: margins float [n, L] less the threshold, routes bool [n, L], logits."""

    margins: np.ndarray
    routes: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class _Way:
    """What one way to run all inputs gave, beside the reference; see `ParityReport`."""

    flips: int
    route_agreement: float
    label_agreement: float
    largest: float


def _end_to_end(
    predictor: Predictor, inputs: Sequence[Encoded], batch_size: int, answers: _Answers, near: np.ndarray
) -> _Way:
    logits, routes = predictor.run_as_built(inputs, batch_size)
    same = (routes == answers.routes).all(axis=1)
    return _Way(
        count_flips(answers.margins, answers.routes, routes, near),
        float(same.mean()),
        float((logits.argmax(1) == answers.logits.argmax(1)).mean()),
        largest_difference(logits[same], answers.logits[same]),
    )


def near_ties(margins: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Below fp32: how close to the threshold, per gate, a margin may fall on either side.

    Args:
        margins: the reference's, float [n, L].
        errors: of the margins that the gates give when the layer before is the engine's, float [n, L].
    """
    spread = np.quantile(margins, 0.99, axis=0) - np.quantile(margins, 0.01, axis=0)
    measured = NEAR_TIE_ERRORS * np.quantile(np.abs(errors), 0.99, axis=0)
    near = np.maximum(ROUTE_EPSILON, np.minimum(measured, NEAR_TIE_SPREAD * spread))
    return np.where(np.isfinite(near), near, ROUTE_EPSILON)  # a manifest holds no NaN


def count_flips(margins: np.ndarray, routes: np.ndarray, got: np.ndarray, near: np.ndarray) -> int:
    """Inputs whose first differing decision is no near tie.

    Only the first counts: after it the two routes see different hidden states.

    Args:
        margins: the reference's, less the threshold, float [n, L].
        routes, got: bool [n, L], the reference's and the engine's.
        near: what counts as a near tie, float [L].
    """
    different = routes != got
    first = different.argmax(axis=1)
    clear = np.abs(np.take_along_axis(margins, first[:, None], axis=1)[:, 0]) > near[first]
    return int((different.any(axis=1) & clear).sum())


def largest_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Of logits, float [n, classes]; infinite where there is nothing to compare."""
    return float(np.abs(got - expected).max()) if len(got) else float("inf")


class _Difference:
    """Running largest and mean of absolute differences, and the mean of what was expected."""

    def __init__(self) -> None:
        self.largest, self.sum, self.expected, self.count = 0.0, 0.0, 0.0, 0

    def add(self, got: np.ndarray, expected: np.ndarray, rounding: float = 0.0) -> None:
        """`rounding`: the share of each value that is allowed for."""
        difference = np.abs(np.asarray(got, np.float64) - expected)
        difference = np.maximum(difference - rounding * np.abs(expected), 0)
        self.largest = float(np.maximum(self.largest, difference.max()))  # NaN stays NaN
        self.sum, self.count = self.sum + float(difference.sum()), self.count + difference.size
        self.expected += float(np.abs(expected).sum())

    def report(self, piece: str, exact: bool) -> PieceParity:
        count = max(1, self.count)
        if not exact:
            return PieceParity(piece, self.largest, self.sum / count, MEAN_SHARE * self.expected / count, "mean")
        tolerance = next((t for kind, t in PIECE_TOLERANCE.items() if piece.startswith(kind)), STATE_TOLERANCE)
        return PieceParity(piece, self.largest, self.sum / count, tolerance)


def _compare_pieces(
    pieces: dict[str, Piece],
    encoded: Encoded,
    trace: Trace,
    differences: dict[str, _Difference],
    manifest: Manifest,
    info: EngineInfo,
    on_rounded: Reference | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Adds to `differences`; returns the error of each gate's margin after the engine's own piece before it, float
    [L], and the engine's logits of full BERT. A static route has no gates, whose margins are then right, and lacks the
    layers that nobody runs.

    Args:
        on_rounded: where hidden_states are bfloat16 between the engine's pieces, what says which margins and logits
            fp32 gives on rounded ones. Embeddings may then be off by what rounding makes of a value.
    """
    batch = pad([encoded])
    mask = batch.attention_mask

    def margin_on(index: int, state: np.ndarray) -> np.ndarray:
        if on_rounded is None:
            return trace.margins[index : index + 1]
        return on_rounded.margin(index, np.asarray(Bfloat16States.nearest(state)), mask)

    def logits_on(state: np.ndarray) -> np.ndarray:
        if on_rounded is None:
            return trace.logits
        return on_rounded.logits(np.asarray(Bfloat16States.nearest(state)))

    embedding_inputs = [getattr(batch, name) for name in manifest.model.inputs if name != "attention_mask"]
    before = pieces["embeddings"](*embedding_inputs), trace.states[0]
    differences["embeddings"].add(*before, rounding=0.0 if on_rounded is None else STEP)
    errors = np.zeros(len(trace.margins))
    for index, expected in enumerate(trace.layer_outputs):
        state = trace.states[index]
        layer, gate = layer_name(index), gate_name(index)
        if gate in pieces:
            right = margin_on(index, state)
            differences[gate].add(pieces[gate](state, mask), right)
            differences["gates"].add(pieces["gates"](state, mask)[:, index], right)
            errors[index] = (pieces[gate](before[0], mask) - pieces[gate](before[1], mask))[0]
        if layer in pieces:
            output = pieces[layer](state, mask)
            if isinstance(output, tuple):  # fused gates against the engine's own, on what its layer gave
                output, margins = output
                alone = pieces["gates"](output, mask)
                differences[FUSED.format(layer)].add(margins[:, index + 1 :], alone[:, index + 1 :])
            before = output, expected
            if index == manifest.reachable_layers[-1]:  # either may give the first token alone
                before = output[:, :1], expected[:, :1]
            differences[layer].add(*before)
    differences["head"].add(pieces["head"](trace.states[-1]), logits_on(trace.states[-1]))
    if info.guess is not None:
        _compare_guess(pieces, info.guess, [*embedding_inputs, mask], differences)
    full_logits = None
    if trace.full_logits is not None and "full" in pieces:
        full_logits = pieces["full"](*(getattr(batch, name) for name in manifest.model.inputs))
        differences["full"].add(full_logits, trace.full_logits)
    return errors, full_logits


def _compare_guess(
    pieces: dict[str, Piece], route: Route, inputs: list[np.ndarray], differences: dict[str, _Difference]
) -> None:
    """Every step of the guess against the engine's own pieces, on the states that the guess gives."""
    logits, margins, *states = pieces["guess"](*inputs)
    mask, state = inputs[-1], states[0]
    for index in range(margins.shape[1]):
        differences[FUSED.format("guess")].add(margins[:, index], pieces["gates"](state, mask)[:, index])
        if index + 1 in route:
            output = pieces[layer_name(index)](state, mask)
            state = states[1 + route.index(index + 1)]
            differences["guess"].add(state, output[0] if isinstance(output, tuple) else output)
    differences["guess"].add(logits, pieces["head"](state))


def _compare_graph(
    pieces: dict[str, Piece], graph: str, encoded: Encoded, manifest: Manifest, difference: _Difference
) -> None:
    """A whole graph's logits against those of the engine's own pieces on the layers that it ran."""
    batch, num_layers = pad([encoded]), manifest.model.layers
    inputs = [getattr(batch, name) for name in manifest.model.inputs if name != "attention_mask"]
    thresholds = np.full((1, num_layers), manifest.router.threshold, np.float32)
    logits, ran = pieces[graph](*inputs, batch.attention_mask, thresholds, np.array([num_layers], np.int64))
    state = pieces["embeddings"](*inputs)
    for index in np.flatnonzero(ran[0]).tolist():
        output = pieces[layer_name(index)](state, batch.attention_mask)
        state = output[0] if isinstance(output, tuple) else output
    difference.add(logits, pieces["head"](state))
