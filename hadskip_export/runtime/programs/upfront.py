"""All gates asked once, on what the embeddings give; then the layers that some row runs. Between layers nobody has to
look at anything, which is what a GPU would have to wait for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.manifest import gate_name, layer_name
from hadskip_export.runtime.policies import Policy
from hadskip_export.runtime.programs.base import Wrap, some_of
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class Upfront:
    """The pieces of a model whose gates read the embeddings, see `Program`.

    Args:
        gates: each gives a margin [b], or one gives those of all, [b, L].
        layers: by index from 0, all of them. The last one may leave out the tokens that the head does not read.
        embedding_inputs, head_takes_mask: see `Chain`.
    """

    embeddings: Piece
    gates: Sequence[Piece]
    layers: Mapping[int, Piece]
    head: Piece
    embedding_inputs: tuple[str, ...]
    head_takes_mask: bool

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def warm_up_rows(self) -> tuple[int, ...]:
        return (1,)

    def run(self, batch: Batch, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        mask = batch.attention_mask
        hidden = self.embeddings(*(getattr(batch, name) for name in self.embedding_inputs))
        asked = [gate(hidden, mask).reshape(len(batch), -1) for gate in self.gates]
        margins = np.concatenate(asked, axis=1).T.tolist()
        decisions = policy.start(len(batch))
        routes = [decisions.rows(index, margin) for index, margin in enumerate(margins)]
        for index, layer in self.layers.items():
            rows = [row for row, run in enumerate(routes[index]) if run]
            if len(rows) == len(batch):
                hidden = layer(hidden, mask)
            elif rows:
                states = layer(*some_of(hidden, mask, rows))
                hidden[rows, : states.shape[1]] = states
        return self.logits(hidden, mask), np.array(routes).T

    def logits(self, hidden: Any, mask: np.ndarray) -> np.ndarray:
        """float32 [b, classes] of what the last layer gave."""
        return self.head(hidden, mask) if self.head_takes_mask else self.head(hidden)

    def wrapped(self, wrap: Wrap) -> "Upfront":
        names = ["gates"] if len(self.gates) == 1 else [gate_name(index) for index in range(len(self.gates))]
        return replace(
            self,
            embeddings=wrap("embeddings", self.embeddings),
            gates=[wrap(name, gate) for name, gate in zip(names, self.gates, strict=True)],
            layers={index: wrap(layer_name(index), layer) for index, layer in self.layers.items()},
            head=wrap("head", self.head),
        )
