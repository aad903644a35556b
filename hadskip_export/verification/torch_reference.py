"""PyTorch as the reference, in fp32, one input at a time."""

import numpy as np
import torch
from torch import Tensor

from hadskip_export.modeling.encoder import Classifier, attention_bias
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.runtime.tokenization import Batch
from hadskip_export.verification.references import Trace


class TorchReference:
    """See `Reference`. `full`: the fine-tuned BERT, or None."""

    name = "PyTorch fp32"

    def __init__(self, model: GatedClassifier, full: Classifier | None):
        self._model = model.cpu().float().eval()
        self._full = None if full is None else full.cpu().float().eval()

    @torch.no_grad()
    def trace(self, batch: Batch, thresholds: np.ndarray) -> Trace:
        ids, mask, types = (
            torch.from_numpy(array) for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        )
        body = self._model.classifier
        states: list[Tensor] = [body.embeddings(ids, types)]
        bias, distances = attention_bias(mask), body.distances()
        outputs, margins = [], []
        for layer, gate, threshold in zip(body.layers, self._model.gates, thresholds.tolist(), strict=True):
            margins.append(gate.margin(states[-1], mask))
            outputs.append(layer(states[-1], bias, distances)[0])
            states.append(outputs[-1] if margins[-1] > threshold else states[-1])
        margin = torch.cat(margins)
        return Trace(
            [state.numpy() for state in states],
            [output.numpy() for output in outputs],
            margin.numpy(),
            (margin > torch.from_numpy(thresholds)).numpy(),
            body.head(states[-1], mask).numpy(),
            None if self._full is None else self._full(ids, mask, types).logits.numpy(),
        )

    @torch.no_grad()
    def margin(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self._model.gates[index].margin(*map(torch.from_numpy, (hidden_states, attention_mask))).numpy()

    @torch.no_grad()
    def logits(self, hidden_states: np.ndarray) -> np.ndarray:
        states = torch.from_numpy(hidden_states)
        return self._model.classifier.head(states, torch.ones(states.shape[:2], dtype=torch.int64)).numpy()
