"""The frozen teacher of distillation, run as seldom as possible."""

import torch
from torch import Tensor

from hadskip_export.modeling.encoder import Classifier, Output
from hadskip_export.trainers.batches import Dataset, TrainingBatch, ordered_batches


class Teacher:
    """A fine-tuned classifier without dropout and without a graph.

    Its logits for the training data are computed once and kept. Hidden states and attention maps, some 200 kB for a
    sentence in a model of MiniLM's size, are not: they are computed anew where a loss asks for them.
    """

    def __init__(self, model: Classifier, data: Dataset, device: str = "cpu"):
        self.model = model.eval().requires_grad_(False)
        self._data = data
        self._device = device
        self._logits: Tensor | None = None

    @torch.no_grad()
    def logits(self) -> Tensor:
        """For every row of the training data, float32 [n, classes]."""
        if self._logits is None:
            logits = torch.zeros(len(self._data), len(self.model.config.labels), device=self._device)
            for batch in ordered_batches(self._data, device=self._device):
                logits[torch.from_numpy(batch.rows)] = self._answer(*batch.inputs)
            self._logits = logits
        return self._logits

    def _answer(self, *inputs: Tensor) -> Tensor:
        """In fp32, though a step in bf16 asks."""
        with torch.autocast(torch.device(self._device).type, enabled=False):
            return self.model(*inputs).logits

    @torch.no_grad()
    def __call__(self, batch: TrainingBatch, keep_states: bool) -> Output:
        """The teacher's output for a batch of the training data, or what was made of it."""
        if keep_states:
            return self.model(*batch.inputs, keep_states=True)
        logits = self.logits()[torch.from_numpy(batch.rows)]
        if batch.altered is not None and batch.altered.any():
            logits[batch.altered] = self._answer(*(values[batch.altered] for values in batch.inputs))
        return Output(logits)
