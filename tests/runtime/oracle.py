"""Answers by PyTorch and transformers, one input at a time: no batch, no padding, no engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BertTokenizerFast

from hadskip_export.exporters.write import Source
from hadskip_export.runtime.tokenization import Text


@dataclass(frozen=True)
class Answer:
    label: str
    probabilities: dict[str, float]
    layers: tuple[int, ...]
    truncated: bool


class Oracle:
    def __init__(self, source: Source, model_folder: Path):
        self.source = source
        self.labels = source.model.classifier.config.labels
        self._tokenizer = BertTokenizerFast.from_pretrained(model_folder)

    def ids(self, text: Text) -> tuple[dict[str, torch.Tensor], bool]:
        """Inputs of a batch of one, and whether the text was cut."""
        # as lists: given a single pair, transformers takes an empty second text for none
        pair = ([text],) if isinstance(text, str) else ([text[0]], [text[1]])
        cut = self._tokenizer(*pair, truncation=True, max_length=self.source.max_length, return_tensors="pt")
        return cut, len(self._tokenizer(*pair)["input_ids"][0]) > self.source.max_length

    @torch.no_grad()
    def decided(self, text: Text, decide: Callable[[int, float], bool]) -> Answer:
        """The answer if just those layers run of which `decide` says so: (layer from 0, margin of its gate)."""
        ids, truncated = self.ids(text)
        output = self.source.model.route(
            ids["input_ids"],
            ids["attention_mask"],
            ids["token_type_ids"],
            lambda index, margin: torch.tensor([decide(index, float(margin))]),
        )
        layers = tuple(index + 1 for index, run in enumerate(output.gates[0].tolist()) if run)
        return self._answer(output.logits[0], layers, truncated)

    def gates(self, text: Text, threshold: float | Sequence[float] = 0.0, max_layers: int | None = None) -> Answer:
        """The answer if gates decide, at one threshold or each at its own."""
        num_layers = len(self.source.model.gates)
        thresholds = [threshold] * num_layers if isinstance(threshold, int | float) else threshold
        ran = [0]

        def decide(index: int, margin: float) -> bool:
            run = margin > thresholds[index] and (max_layers is None or ran[0] < max_layers)
            ran[0] += run
            return run

        return self.decided(text, decide)

    def forced(self, text: Text, route: list[bool]) -> Answer:
        """The answer if just these layers run, whatever the gates say."""
        return self.decided(text, lambda index, margin: route[index])

    @torch.no_grad()
    def full(self, text: Text) -> Answer:
        ids, truncated = self.ids(text)
        output = self.source.full(ids["input_ids"], ids["attention_mask"], ids["token_type_ids"])
        return self._answer(output.logits[0], tuple(range(1, len(self.source.full.layers) + 1)), truncated)

    def _answer(self, logits: torch.Tensor, layers: tuple[int, ...], truncated: bool) -> Answer:
        probabilities = dict(zip(self.labels, logits.softmax(-1).tolist(), strict=True))
        return Answer(self.labels[int(logits.argmax())], probabilities, layers, truncated)
