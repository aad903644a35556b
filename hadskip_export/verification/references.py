"""What an engine is compared with: PyTorch where there is torch, else the ONNX pieces run in the plainest way.

A reference takes one input at a time and keeps everything on the way. It shares no code with the chain: no batching,
no compaction, no look-ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hadskip_export.routing.criteria import Criterion
from hadskip_export.routing.routes import FIXED_MARGIN, as_row
from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.engines.ort import import_onnxruntime, open_session
from hadskip_export.runtime.manifest import FULL, Manifest, exit_name, gate_name, layer_name
from hadskip_export.runtime.tokenization import Batch, Encoded, pad
from hadskip_export.support.errors import BundleError

NOTHING = 1e-30  # of an exit's margin, less than any that float32 tells apart from 0


@dataclass(frozen=True)
class Trace:
    """One input's way through the model; every array has the batch axis, of size 1.

    Args:
        states: L + 1 of float32 [1, s, H], h_0 to h_L, on the route taken; with exits of who never leaves.
        layer_outputs: L of float32 [1, s, H]: f_i(h_{i-1}), also of layers that were skipped; h_{i-1} of those that a
            bundle of a static route leaves out. After the last layer that may run both may have the first token alone.
        margins: float32 [L]; of a static route `FIXED_MARGIN` where a layer runs, less than 0 by as much where not;
            with exits see `margins_before_layers`, infinite for the first.
        route: bool [L].
        logits: float32 [1, classes].
        full_logits: of the fine-tuned BERT, float32 [1, classes]; None where there is none.
        answers: of each exit but the last, float32 [1, answers]; none without exits.
        gates: with exits, the margins of the gates on the way, float32 [L], if there are any.
    """

    states: list[np.ndarray]
    layer_outputs: list[np.ndarray]
    margins: np.ndarray
    route: np.ndarray
    logits: np.ndarray
    full_logits: np.ndarray | None
    answers: list[np.ndarray] = field(default_factory=list)
    gates: np.ndarray | None = None


class Reference(Protocol):
    name: str

    def trace(self, batch: Batch, thresholds: np.ndarray) -> Trace:
        """Runs a batch of one input; thresholds float32 [L]."""
        ...

    def margin(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Of the gate before layer `index`, from 0, on [1, s, H]: float32 [1]."""
        ...

    def answers(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Of the exit after layer `index`, from 0, on [1, s, H]: float32 [1, answers]."""
        ...

    def logits(self, hidden_states: np.ndarray) -> np.ndarray:
        """The head's on [1, s, H], all of them real tokens, or on the first one's [1, 1, H]: float32 [1, classes]."""
        ...


def thresholds_of(manifest: Manifest) -> np.ndarray:
    """Those that a bundle was checked at, of its default point, float32 [L]; zeros where nobody asks gates."""
    thresholds = manifest.default_point.thresholds or (0.0,) * manifest.model.layers
    return np.array(thresholds, np.float32)


def traces(reference: Reference, inputs: Sequence[Encoded], thresholds: np.ndarray):
    """Yields the trace of each input in turn."""
    for encoded in inputs:
        yield reference.trace(pad([encoded]), thresholds)


def trace_of_exits(
    criterion: Criterion,
    states: list[np.ndarray],
    outputs: list[np.ndarray],
    answers: list[np.ndarray],
    *,
    logits: np.ndarray,
    thresholds: np.ndarray,
    gates: np.ndarray | None,
) -> Trace:
    """The trace of an input that no exit let go, and that was answered by the exits of the layers skipped, too.

    Args:
        logits: the head's, float32 [1, classes].
    """
    runs = np.ones(len(thresholds), bool) if gates is None else gates > 0
    said = criterion.margins(answers, runs[None])[0]
    route = runs & np.logical_and.accumulate(said > thresholds)
    route[0] = True
    last = int(route.nonzero()[0][-1])
    taken = logits if last == len(answers) else answers[last][:, : logits.shape[1]]
    margins = margins_before_layers(said, thresholds, gates)
    return Trace(states, outputs, margins, route, taken, None, answers, gates)


def margins_before_layers(said: np.ndarray, thresholds: np.ndarray, gates: np.ndarray | None) -> np.ndarray:
    """What decides on each layer of one input, float32 [L]. A gate counts as an exit whose margin's logarithm is as far
    from the threshold's as the gate's margin from 0, up to `FIXED_MARGIN`, and the lesser of the two decides.

    Args:
        said: what `Criterion.margins` gives.
        gates: their margins; None without any.
    """
    if gates is None:
        return said
    margins = np.maximum(said, NOTHING)
    allowed = np.maximum(thresholds, NOTHING) * np.exp(np.clip(gates, -FIXED_MARGIN, FIXED_MARGIN).astype(np.float64))
    margins[1:] = np.minimum(margins, allowed)[1:]
    return margins


class OnnxReference:
    """The fp32 ONNX pieces on ONNX Runtime without graph optimisation, on one thread."""

    name = "ONNX pieces, not optimised"

    def __init__(self, bundle: Bundle):
        self._ort: Any = import_onnxruntime()
        self._path = bundle.path
        pieces, model, route = bundle.manifest.pieces, bundle.manifest.model, bundle.manifest.router.route
        sessions = {file: self._session(bundle.file(file)) for file in set(pieces.values())}
        self._pieces = {piece: sessions[file] for piece, file in pieces.items()}
        self._inputs, self._head_inputs, self._layers = model.embedding_inputs, model.head_inputs, range(model.layers)
        self._fixed = None if route is None else np.where(as_row(route, model.layers), FIXED_MARGIN, -FIXED_MARGIN)
        self._router = bundle.manifest.router

    def trace(self, batch: Batch, thresholds: np.ndarray) -> Trace:
        if self._router.has_exits:
            return self._trace_exits(batch, thresholds)
        mask = batch.attention_mask
        ids = {name: getattr(batch, name) for name in self._inputs}
        states = [self._run("embeddings", ids)]
        outputs, margins = [], []
        for index in self._layers:
            seen = states[0 if self._router.asks_once else -1]
            margins.append(self.margin(index, seen, mask)[0] if self._fixed is None else self._fixed[index])
            layer, feed = layer_name(index), {"hidden_states": states[-1], "attention_mask": mask}
            outputs.append(self._run(layer, feed) if layer in self._pieces else states[-1])
            states.append(outputs[-1] if margins[-1] > thresholds[index] else states[-1])
        full = self.full(batch) if FULL in self._pieces else None
        route = np.array(margins, np.float32) > thresholds
        return Trace(states, outputs, np.array(margins, np.float32), route, self.logits(states[-1]), full)

    def _trace_exits(self, batch: Batch, thresholds: np.ndarray) -> Trace:
        mask, jumps = batch.attention_mask, self._router.jumps_to_exits
        states = [self._run("embeddings", {name: getattr(batch, name) for name in self._inputs})]
        outputs, answers, gates = [], [], np.full(len(self._layers), FIXED_MARGIN, np.float32)
        for index in self._layers:
            if jumps and index:
                gates[index] = self.margin(index, states[-1], mask)[0]
            outputs.append(self._run(layer_name(index), {"hidden_states": states[-1], "attention_mask": mask}))
            states.append(outputs[-1] if gates[index] > 0 else states[-1])
            if index + 1 < len(self._layers):
                answers.append(self.answers(index, outputs[-1], mask))
        logits, full = self.logits(states[-1]), self.full(batch) if FULL in self._pieces else None
        asked = gates if jumps else None
        trace = trace_of_exits(
            self._router.leaves_by, states, outputs, answers, logits=logits, thresholds=thresholds, gates=asked
        )
        return replace(trace, full_logits=full)

    def answers(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feed = {"hidden_states": hidden_states, "attention_mask": attention_mask}
        return self._run(exit_name(index), {name: feed[name] for name in self._router.exit_inputs})

    def full(self, batch: Batch) -> np.ndarray:
        """Full BERT's logits of any number of inputs, float32 [b, classes].

        Raises:
            BundleError: the bundle has no full model.
        """
        if FULL not in self._pieces:
            raise BundleError(
                f"{self._path}: carries no full model to compare with (built with --no-full); build it again"
            )
        names = (*self._inputs, "attention_mask")
        return self._run(FULL, {name: getattr(batch, name) for name in names})

    def margin(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self._run(gate_name(index), {"hidden_states": hidden_states, "attention_mask": attention_mask})

    def logits(self, hidden_states: np.ndarray) -> np.ndarray:
        feed = {"hidden_states": hidden_states, "attention_mask": np.ones(hidden_states.shape[:2], np.int64)}
        return self._run("head", {name: feed[name] for name in self._head_inputs})

    def _session(self, file: Path):
        options = self._ort.SessionOptions()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return open_session(self._ort, file, options, "CPUExecutionProvider")

    def _run(self, piece: str, feed: dict[str, np.ndarray]) -> np.ndarray:
        return self._pieces[piece].run(None, feed)[0]
