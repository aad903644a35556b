"""The chain of engines: embeddings, the layers that some row runs, head. This loop is the product."""

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
class Chain:
    """The pieces of a model that has been cut up, see `Program`.

    Args:
        layers: by index from 0, ascending: those that some input may run; every input skips the others. They give
            hidden_states or, where they answer for the gates after them, those and all gates' margins. The last one may
            leave out the tokens that the head does not read, [b, 1, H].
        gates: margin [b] of each, asked before its layer; none in the cut `layers`, and of a static route.
        all_gates: all gates as one piece, margins [b, L], asked after the embeddings and each layer that gives none
            itself; None where `gates` are asked, or none.
        embedding_inputs: names of the `Batch` arrays that `embeddings` takes.
        head_takes_mask: beside hidden_states, for the mean of all tokens.
        num_layers: of the model, whether or not some input may run them.
    """

    embeddings: Piece
    layers: Mapping[int, Piece]
    gates: Sequence[Piece]
    all_gates: Piece | None
    head: Piece
    embedding_inputs: tuple[str, ...]
    num_layers: int
    head_takes_mask: bool = False

    @property
    def warm_up_rows(self) -> tuple[int, ...]:
        return (1,)

    def run(self, batch: Batch, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        mask = batch.attention_mask
        routes = [[False] * len(batch) for _ in range(self.num_layers)]
        decisions = policy.start(len(batch))
        hidden, margins = self._seen(
            self.embeddings(*(getattr(batch, name) for name in self.embedding_inputs)), mask, 0
        )
        for index, layer in self.layers.items():
            margin = self.gates[index](hidden, mask).tolist() if self.gates else [row[index] for row in margins]
            runs = routes[index] = decisions.rows(index, margin)
            if all(runs):
                hidden, margins = self._seen(layer(hidden, mask), mask, index + 1)
            elif any(runs):
                rows = [row for row, run in enumerate(runs) if run]
                some, few = some_of(hidden, mask, rows)
                states, seen = self._seen(layer(some, few), few, index + 1)
                hidden[rows, : states.shape[1]] = states
                for row, new in zip(rows, seen, strict=True):
                    margins[row] = new
        return self.logits(hidden, mask), np.array(routes).T

    def logits(self, hidden: Any, mask: np.ndarray) -> np.ndarray:
        """float32 [b, classes] of what the last layer gave."""
        return self.head(hidden, mask) if self.head_takes_mask else self.head(hidden)

    def _seen(self, output: Any, mask: np.ndarray, layers_done: int) -> tuple[Any, list[list[float]]]:
        """What a piece gave, and what later gates make of it: hidden_states, margins [b, L]. A skipped layer leaves a
        row unchanged, so its margins hold until a layer runs it. Zeros where nobody asks all gates."""
        if isinstance(output, tuple):
            hidden, margins = output
            return hidden, margins.tolist()
        if self.all_gates is not None and layers_done < self.num_layers:
            return output, self.all_gates(output, mask).tolist()
        return output, [[0.0] * self.num_layers for _ in range(len(output))]

    def wrapped(self, wrap: Wrap) -> "Chain":
        return replace(
            self,
            embeddings=wrap("embeddings", self.embeddings),
            layers={index: wrap(layer_name(index), layer) for index, layer in self.layers.items()},
            gates=[wrap(gate_name(index), gate) for index, gate in enumerate(self.gates)],
            all_gates=None if self.all_gates is None else wrap("gates", self.all_gates),
            head=wrap("head", self.head),
        )
