"""What an engine is compared with: PyTorch where there is torch, else the ONNX pieces run in the plainest way.

A reference takes one input at a time and keeps everything on the way. It shares no code with the chain: no batching,
no compaction, no look-ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hadskip_export.errors import optional_import
from hadskip_export.runtime.bundle import Bundle, gate_name, layer_name
from hadskip_export.runtime.tokenization import Batch, Encoded, pad


@dataclass(frozen=True)
class Trace:
    """One input's way through the model; every array has the batch axis, of size 1.

    Args:
        states: L + 1 of float32 [1, s, H], h_0 to h_L, on the route taken.
        layer_outputs: L of float32 [1, s, H]: f_i(h_{i-1}), also of layers that were skipped.
        margins: float32 [L].
        route: bool [L].
        logits: float32 [1, classes].
        full_logits: of the fine-tuned BERT, float32 [1, classes]; None where there is none.
    """

    states: list[np.ndarray]
    layer_outputs: list[np.ndarray]
    margins: np.ndarray
    route: np.ndarray
    logits: np.ndarray
    full_logits: np.ndarray | None


class Reference(Protocol):
    name: str

    def trace(self, batch: Batch, threshold: float) -> Trace:
        """Runs a batch of one input."""
        ...


def traces(reference: Reference, inputs: Sequence[Encoded], threshold: float):
    """Yields the trace of each input in turn."""
    for encoded in inputs:
        yield reference.trace(pad([encoded]), threshold)


class OnnxReference:
    """The fp32 ONNX pieces on ONNX Runtime without graph optimisation, on one thread."""

    name = "ONNX pieces, not optimised"

    def __init__(self, bundle: Bundle):
        self._ort: Any = optional_import("onnxruntime", "ort or ort-gpu")
        pieces, layers = bundle.manifest.pieces, range(bundle.manifest.model.layers)
        sessions = {file: self._session(bundle.file(file)) for file in set(pieces.values())}
        self._embeddings, self._head = sessions[pieces["embeddings"]], sessions[pieces["head"]]
        self._layers = [sessions[pieces[layer_name(index)]] for index in layers]
        self._gates = [sessions[pieces[gate_name(index)]] for index in layers]
        self._full = sessions[pieces["full"]] if "full" in pieces else None

    def trace(self, batch: Batch, threshold: float) -> Trace:
        mask = batch.attention_mask
        ids = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids}
        states = [self._run(self._embeddings, ids)]
        outputs, margins = [], []
        for layer, gate in zip(self._layers, self._gates, strict=True):
            feed = {"hidden_states": states[-1], "attention_mask": mask}
            margins.append(self._run(gate, feed)[0])
            outputs.append(self._run(layer, feed))
            states.append(outputs[-1] if margins[-1] > threshold else states[-1])
        full = None if self._full is None else self._run(self._full, ids | {"attention_mask": mask})
        route = np.array(margins, np.float32) > threshold
        logits = self._run(self._head, {"hidden_states": states[-1]})
        return Trace(states, outputs, np.array(margins, np.float32), route, logits, full)

    def _session(self, file: Path):
        options = self._ort.SessionOptions()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return self._ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    @staticmethod
    def _run(session, feed: dict[str, np.ndarray]) -> np.ndarray:
        return session.run(None, feed)[0]
