"""Does an engine give what the reference gives? Per piece on the reference's own hidden states, then end to end.

A route may flip only in a near tie: where the reference's margin is farther than eps from the threshold, none may. A
plain share of equal routes would reward gates that never vary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hadskip_export.data.problems import Problem, same_answers
from hadskip_export.routing.routes import FIXED_MARGIN
from hadskip_export.runtime.engines import Piece, is_reduced
from hadskip_export.runtime.engines.bfloat16 import STEP, Bfloat16States
from hadskip_export.runtime.loading import policy_of
from hadskip_export.runtime.manifest import (
    ALL_GATES,
    FULL,
    WHOLE,
    WHOLE_ALONE,
    EngineInfo,
    Manifest,
    Tolerance,
    exit_name,
    gate_name,
    layer_name,
)
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Batch, Encoded, pad
from hadskip_export.support.errors import HadskipError
from hadskip_export.support.progress import track
from hadskip_export.verification.references import (
    NOTHING,
    Reference,
    Trace,
    margins_before_layers,
    thresholds_of,
    traces,
)

ROUTE_EPSILON = 1e-3  # fp32, in logits of the margin; no precision has less
LOGITS_TOLERANCE = 1e-4  # fp32
# Largest difference a piece in fp32 may show on the reference's own inputs.
PIECE_TOLERANCE = {
    "gate": ROUTE_EPSILON,
    "exit": LOGITS_TOLERANCE,
    "head": LOGITS_TOLERANCE,
    "full": LOGITS_TOLERANCE,
}
STATE_TOLERANCE = 1e-4  # embeddings and layers
FUSED, FUSED_EXIT = "gates in {}", "exit in {}"  # what a report calls what is fused with a piece
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
        label_agreement: share of inputs with the same answer, see `agree`.
        full_label_agreement: the same of full BERT in this engine and in the reference; None without full BERT.
        logits_largest: largest difference of a logit where routes agree.
        first_bad_piece: the first piece out of tolerance; `routes`, `labels` or `logits` where only the whole is, with
            ` alone` where only inputs that come alone are; None if passed. The figures end to end are those of the
            worse way to run (`ways_to_run`).
    """

    engine: str
    precision: str
    cut: str
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


def compare(reference: Reference, predictor: Predictor, inputs: Sequence[Encoded]) -> ParityReport:
    """Compares the engine that `predictor` has loaded with `reference` on tokenised inputs.

    Raises:
        HadskipError: no input to compare on.
    """
    if not inputs:
        raise HadskipError("nothing to compare on: no text was given")
    info, thresholds = predictor.engine_info, thresholds_of(predictor.bundle.manifest)
    comparison = _Comparison(reference, predictor, inputs[0])
    seen = []
    for encoded, trace in track(
        zip(inputs, traces(reference, inputs, thresholds), strict=True), len(inputs), f"parity of {info.name}"
    ):
        comparison.add(encoded, trace)
        seen.append((trace.margins, trace.route, trace.logits[0]))
    margins, routes, logits = (np.stack(column) for column in zip(*seen, strict=True))
    margins = apart(predictor.bundle.manifest, margins, thresholds)
    pieces = comparison.reports()
    near = np.full(margins.shape[1], ROUTE_EPSILON)
    if info.precision != "fp32":
        near = near_ties(margins, np.stack(comparison.margin_errors))
    answers = _Answers(margins, routes, logits)
    ways = {way: _end_to_end(predictor, inputs, size, answers, near) for way, size in ways_to_run(info).items()}
    problem, full_agreement = predictor.bundle.manifest.model.problem, None
    if comparison.full_logits:
        full_agreement = float(agree(problem, *map(np.stack, zip(*comparison.full_logits, strict=True))).mean())
    largest = float(np.max([found.largest for found in ways.values()]))  # NaN stays NaN
    return ParityReport(
        engine=info.engine,
        precision=info.precision,
        cut=info.cut,
        reference=reference.name,
        texts=len(inputs),
        pieces=pieces,
        tolerance=Tolerance(tuple(near.tolist()), _logits_tolerance(info.precision, largest)),
        route_agreement=min(found.route_agreement for found in ways.values()),
        flips=max(found.flips for found in ways.values()),
        label_agreement=min(found.label_agreement for found in ways.values()),
        full_label_agreement=full_agreement,
        logits_largest=largest,
        first_bad_piece=next((piece.piece for piece in pieces if not piece.passed), None)
        or _first_bad_way(info.precision, ways, full_agreement),
    )


def apart(manifest: Manifest, margins: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How far margins are above thresholds, as what is near is told by. Most exits give shares, or what has one for a
    factor, and a model that is sure of nearly all has nearly all of them near 0: so of those it is the logarithms, in
    which an engine's errors are as large everywhere; what is no more than `NOTHING`, as a threshold below all of them,
    counts as that. A gate that is shut is farther down."""
    if not manifest.router.has_exits or manifest.router.leaves_by.of_gate:
        return margins - thresholds
    least = NOTHING * math.exp(-FIXED_MARGIN) if manifest.router.jumps_to_exits else NOTHING
    return np.log(np.maximum(margins, least)) - np.log(np.maximum(thresholds, NOTHING))


def ways_to_run(info: EngineInfo) -> dict[str, int]:
    """In batches and, where inputs that come alone may take another graph, one at a time: batch size by what a report
    calls the way."""
    return {"": 32} | ({" alone": 1} if info.cut == "whole" else {})


def wider(one: Tolerance, other: Tolerance) -> Tolerance:
    """The larger of two, gate by gate."""
    margins = tuple(max(pair) for pair in zip(one.margins, other.margins, strict=True))
    return Tolerance(margins, max(one.logits, other.logits))


def _logits_tolerance(precision: str, largest: float) -> float:
    return 2 * largest if precision != "fp32" and np.isfinite(largest) else LOGITS_TOLERANCE


def _first_bad_way(precision: str, ways: Mapping[str, "_Way"], full_agreement: float | None) -> str | None:
    """What is out of tolerance end to end, though every piece is in it."""
    allowed = LABEL_DISAGREEMENT[precision]
    if precision == "int8" and full_agreement is not None:
        allowed += 1 - full_agreement
    for way, found in ways.items():
        if found.flips:
            return f"routes{way}"
        if not (found.largest <= LOGITS_TOLERANCE if precision == "fp32" else np.isfinite(found.largest)):
            return f"logits{way}"
        if precision != "fp32" and 1 - found.label_agreement > allowed + 1e-9:
            return f"labels{way}"
    return None


@dataclass(frozen=True)
class _Answers:
    """The reference's on all inputs: margins float [n, L] less the thresholds, routes bool [n, L], logits."""

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
    problem = predictor.bundle.manifest.model.problem
    agreed = agree(problem, logits, answers.logits)
    if problem.is_score:  # another route, after a near tie, is another number
        agreed |= ~same
    return _Way(
        count_flips(answers.margins, answers.routes, routes, near),
        float(same.mean()),
        float(agreed.mean()),
        largest_difference(logits[same], answers.logits[same]),
    )


def agree(problem: Problem, got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Whether logits, float [n, labels] both, come to the same label or labels, bool [n]. A score is the same within a
    share of what scores are apart, for most have no equal at all."""
    ours, theirs = problem.decide(got), problem.decide(expected)
    if problem.is_score:
        return np.abs(ours - theirs) <= max(MEAN_SHARE * theirs.std(), LOGITS_TOLERANCE)
    return same_answers(ours, theirs)


def near_ties(margins: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Below fp32: how close to the threshold, per gate, a margin may fall on either side.

    Args:
        margins: the reference's, float [n, L].
        errors: of the margins that the gates give when the layer before is the engine's, float [n, L].
    """
    with np.errstate(invalid="ignore"):  # a layer that nobody decides on has no margin that is finite
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


class _Comparison:
    """The pieces of an engine beside a reference, one input after the other. A static route has no gates, whose margins
    are then right, and lacks the layers that nobody runs. Of exits the margins are those of all of them in turn.

    Attributes:
        margin_errors: of each input, the error of each gate's margin after the engine's own piece before it, float [L].
        full_logits: of each input, full BERT's in the engine and the reference's, float [labels].
    """

    def __init__(self, reference: Reference, predictor: Predictor, first: Encoded):
        self._info, self._manifest = predictor.engine_info, predictor.bundle.manifest
        self._reference = reference
        self._pieces: dict[str, Piece] = {piece: predictor.engine.load(piece) for piece in self._info.files}
        self._differences: dict[str, _Difference] = {}
        self.margin_errors: list[np.ndarray] = []
        self.full_logits: list[tuple[np.ndarray, np.ndarray]] = []
        # Where hidden_states are bfloat16 between the pieces, the reference says what fp32 gives on rounded ones, and
        # embeddings may be off by what rounding makes of a value.
        self._rounded = isinstance(self._embed(pad([first])), Bfloat16States)

    def add(self, encoded: Encoded, trace: Trace) -> None:
        """Compares every piece on what the reference gave it."""
        batch = pad([encoded])
        before = self._embed(batch), trace.states[0]
        self._difference("embeddings").add(*before, rounding=STEP if self._rounded else 0.0)
        errors, answers, embedded, once = np.zeros(len(trace.margins)), [], before, self._manifest.router.asks_once
        for index in range(len(trace.layer_outputs)):
            errors[index] = self._compare_gate(index, trace, embedded if once else before, batch.attention_mask)
            before = self._compare_layer(index, trace, batch.attention_mask) or before
            if index < len(trace.answers):
                answers.append(self._compare_exit(index, trace, before[0], batch.attention_mask))
        if answers:
            gates = None if trace.gates is None else trace.gates + errors.astype(np.float32)
            thresholds = thresholds_of(self._manifest)
            said = self._manifest.router.leaves_by.margins(answers, None if gates is None else gates[None] > 0)[0]
            found = margins_before_layers(said, thresholds, gates)
            ours, theirs = (apart(self._manifest, one, thresholds)[1:] for one in (found, trace.margins))
            errors[1:] = ours - theirs  # nobody decides on the first layer
        last, right = trace.states[-1], trace.logits
        if answers or self._rounded:
            right = self._reference.logits(_rounded(last) if self._rounded else last)
        self._difference("head").add(self._logits(last, batch), right)
        self.margin_errors.append(errors)
        self._compare_full(batch, trace)
        for name in (WHOLE, WHOLE_ALONE):
            if name in self._pieces:
                self._compare_whole(name, batch)

    def reports(self) -> tuple[PieceParity, ...]:
        return tuple(
            difference.report(piece, exact=self._info.precision == "fp32" or not is_reduced(piece))
            for piece, difference in self._differences.items()
        )

    def _difference(self, piece: str) -> "_Difference":
        return self._differences.setdefault(piece, _Difference())

    def _embed(self, batch: Batch) -> Any:
        return self._pieces["embeddings"](*(getattr(batch, name) for name in self._manifest.model.embedding_inputs))

    def _logits(self, state: Any, batch: Batch) -> np.ndarray:
        """The head's, of a batch of one input."""
        inputs = {"hidden_states": state, "attention_mask": batch.attention_mask}
        return self._pieces["head"](*(inputs[name] for name in self._manifest.model.head_inputs))

    def _compare_gate(self, index: int, trace: Trace, before: tuple[Any, np.ndarray], mask: np.ndarray) -> float:
        """Returns the error of its margin after the engine's own piece `before` it, beside the reference's."""
        name, state = gate_name(index), trace.states[0 if self._manifest.router.asks_once else index]
        if name not in self._pieces and ALL_GATES not in self._pieces:
            return 0.0

        def gate(hidden: Any) -> np.ndarray:
            if name in self._pieces:
                return self._pieces[name](hidden, mask)
            return self._pieces[ALL_GATES](hidden, mask)[:, index]

        right = (trace.margins if trace.gates is None else trace.gates)[index : index + 1]
        if self._rounded:
            right = self._reference.margin(index, _rounded(state), mask)
        self._difference(name if name in self._pieces else ALL_GATES).add(gate(state), right)
        return float((gate(before[0]) - gate(before[1]))[0])

    def _compare_exit(self, index: int, trace: Trace, own: Any, mask: np.ndarray) -> np.ndarray:
        """Returns what it says of `own`, what the engine's own layer gave."""
        state = trace.layer_outputs[index]
        right = self._reference.answers(index, _rounded(state), mask) if self._rounded else trace.answers[index]
        self._difference(exit_name(index)).add(self._exit(index, state, mask), right)
        return self._exit(index, own, mask)

    def _exit(self, index: int, hidden: Any, mask: np.ndarray) -> np.ndarray:
        inputs = {"hidden_states": hidden, "attention_mask": mask}
        return self._pieces[exit_name(index)](*(inputs[one] for one in self._manifest.router.exit_inputs))

    def _compare_layer(self, index: int, trace: Trace, mask: np.ndarray) -> tuple[Any, np.ndarray] | None:
        """Returns what it gave and what the reference gave; None where nobody runs it."""
        name, expected = layer_name(index), trace.layer_outputs[index]
        if name not in self._pieces:
            return None
        output = self._pieces[name](trace.states[index], mask)
        if isinstance(output, tuple):  # the gates in it against the engine's own, on what the layer gave
            output, fused = output
            if self._manifest.router.has_exits:
                self._difference(FUSED_EXIT.format(name)).add(fused, self._exit(index, output, mask))
            else:
                alone = self._pieces[ALL_GATES](output, mask)
                self._difference(FUSED.format(name)).add(fused[:, index + 1 :], alone[:, index + 1 :])
        if index == self._manifest.reachable_layers[-1]:  # either may give the first token alone
            output, expected = output[:, :1], expected[:, :1]
        self._difference(name).add(output, expected)
        return output, expected

    def _compare_full(self, batch: Batch, trace: Trace) -> None:
        if trace.full_logits is None or FULL not in self._pieces:
            return
        logits = self._pieces[FULL](*(getattr(batch, name) for name in self._manifest.model.inputs))
        self._difference(FULL).add(logits, trace.full_logits)
        self.full_logits.append((logits[0], trace.full_logits[0]))

    def _compare_whole(self, name: str, batch: Batch) -> None:
        """A whole graph's logits against those of the engine's own pieces on the layers that it ran."""
        model = self._manifest.model
        terms, most = policy_of(self._manifest, thresholds_of(self._manifest).tolist()).terms(1, model.layers)
        inputs = (getattr(batch, name) for name in model.inputs)
        logits, ran = self._pieces[name](*inputs, terms, np.array([most], np.int64))
        state = self._embed(batch)
        for index in np.flatnonzero(ran[0]).tolist():
            output = self._pieces[layer_name(index)](state, batch.attention_mask)
            state = output[0] if isinstance(output, tuple) else output
        left = int(ran.sum()) - 1
        if self._manifest.router.has_exits and left + 1 < model.layers:
            right = self._exit(left, state, batch.attention_mask)[:, : len(model.labels)]
        else:
            right = self._logits(state, batch)
        self._difference(name).add(logits, right)


def _rounded(state: np.ndarray) -> np.ndarray:
    return np.asarray(Bfloat16States.nearest(state))
