"""PyTorch as the reference, in fp32, one input at a time."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hadskip_export.modeling.encoder import Classifier, attention_bias
from hadskip_export.modeling.exits import ExitClassifier, Student
from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.runtime.tokenization import Batch
from hadskip_export.verification.references import Trace, trace_of_exits


class TorchReference:
    """See `Reference`. `full`: the fine-tuned BERT, or None."""

    name = "PyTorch fp32"

    def __init__(self, model: Student, full: Classifier | None):
        self._model = model.cpu().float().eval()
        self._full = None if full is None else full.cpu().float().eval()

    @torch.no_grad()
    def trace(self, batch: Batch, thresholds: np.ndarray) -> Trace:
        ids, mask, types = (
            torch.from_numpy(array) for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        )
        full = None if self._full is None else self._full(ids, mask, types).logits.numpy()
        body = self._model.classifier
        states: list[Tensor] = [body.embeddings(ids, types)]
        bias, distances = attention_bias(mask), body.distances()
        outputs: list[Tensor] = []
        if isinstance(self._model, ExitClassifier):
            gates = [gate.margin for gate in self._model.gates]
            asked = []
            for index, layer in enumerate(body.layers):
                asked += [gate(states[-1], mask) for gate in gates[index : index + 1]]
                outputs.append(layer(states[-1], bias, distances)[0])
                states.append(states[-1] if gates and asked[-1] <= 0 else outputs[-1])
            answers = [leave(state, mask).numpy() for leave, state in zip(self._model.exits, outputs[:-1], strict=True)]
            trace = trace_of_exits(
                CRITERIA[self._model.criterion],
                [state.numpy() for state in states],
                [output.numpy() for output in outputs],
                answers,
                logits=body.head(states[-1], mask).numpy(),
                thresholds=thresholds,
                gates=torch.cat(asked).numpy() if asked else None,
            )
            return replace(trace, full_logits=full)
        margins = []
        for layer, gate, threshold in zip(body.layers, self._model.gates, thresholds.tolist(), strict=True):
            margins.append(gate.margin(states[0 if self._model.upfront else -1], mask))
            outputs.append(layer(states[-1], bias, distances)[0])
            states.append(outputs[-1] if margins[-1] > threshold else states[-1])
        margin = torch.cat(margins)
        return Trace(
            [state.numpy() for state in states],
            [output.numpy() for output in outputs],
            margin.numpy(),
            (margin > torch.from_numpy(thresholds)).numpy(),
            body.head(states[-1], mask).numpy(),
            full,
        )

    @torch.no_grad()
    def margin(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self._model.gates[index].margin(*map(torch.from_numpy, (hidden_states, attention_mask))).numpy()

    @torch.no_grad()
    def answers(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        assert isinstance(self._model, ExitClassifier)
        return self._model.exits[index](*map(torch.from_numpy, (hidden_states, attention_mask))).numpy()

    @torch.no_grad()
    def logits(self, hidden_states: np.ndarray) -> np.ndarray:
        states = torch.from_numpy(hidden_states)
        return self._model.classifier.head(states, torch.ones(states.shape[:2], dtype=torch.int64)).numpy()
