"""The chain of engines: embeddings, the layers that some row runs, head. This loop is the product."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.routers import Router
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class Chain:
    """The pieces of a model that has been cut up.

    Args:
        layers: by index from 0, ascending: those that some input may run; every input skips the others. They give
            hidden_states or, where gates are fused with them, those and the gates' margins. The last one may leave out
            the tokens that the head does not read, [b, 1, H].
        gates: margin [b] of each, asked before its layer; none in the layouts that look ahead, and of a static route.
        lookahead: all gates as one piece, margins [b, L], asked after the embeddings and each layer that gives
            none itself; None where `gates` are asked, or none.
        embedding_inputs: names of the `Batch` arrays that `embeddings` takes.
        num_layers: of the model, whether or not some input may run them.
    """

    embeddings: Piece
    layers: Mapping[int, Piece]
    gates: Sequence[Piece]
    lookahead: Piece | None
    head: Piece
    embedding_inputs: tuple[str, ...]
    num_layers: int

    def run(self, batch: Batch, router: Router) -> tuple[np.ndarray, np.ndarray]:
        """Runs `batch` as `router` routes it.

        Returns:
            logits float32 [b, classes] and routes bool [b, L], true where the layer ran.
        """
        routes = [[False] * len(batch) for _ in range(self.num_layers)]
        hidden = self.embeddings(*(getattr(batch, name) for name in self.embedding_inputs))
        return self.go_on(0, hidden, batch.attention_mask, routes, router)

    def go_on(
        self, first: int, hidden: Any, mask: np.ndarray, routes: list[list[bool]], router: Router
    ) -> tuple[np.ndarray, np.ndarray]:
        """`run` from layer `first` (from 0).

        Args:
            hidden: hidden_states [b, s, H] of the rows that took `routes` so far.
            routes: who ran which layer, [L][b]; layers from `first` are filled in.
        """
        hidden, margins = self._seen(hidden, mask, first)
        for index, layer in self.layers.items():
            if index < first:
                continue
            margin = self.gates[index](hidden, mask).tolist() if self.gates else [row[index] for row in margins]
            runs = routes[index] = router.select(index, margin, routes)
            if all(runs):
                hidden, margins = self._seen(layer(hidden, mask), mask, index + 1)
            elif any(runs):
                rows = [row for row, run in enumerate(runs) if run]
                length = mask[rows].sum(axis=1).max()  # padding that only the other rows needed is left out
                few = mask[rows, :length]
                states, seen = self._seen(layer(hidden[rows, :length], few), few, index + 1)
                hidden[rows, : states.shape[1]] = states
                for row, new in zip(rows, seen, strict=True):
                    margins[row] = new
        return self.head(hidden), np.array(routes).T

    def _seen(self, output: Any, mask: np.ndarray, layers_done: int) -> tuple[np.ndarray, list[list[float]]]:
        """What a piece gave, and what later gates make of it: hidden_states, margins [b, L]. A skipped layer leaves a
        row unchanged, so its margins hold until a layer runs it. Zeros where nobody looks ahead."""
        if isinstance(output, tuple):
            hidden, margins = output
            return hidden, margins.tolist()
        if self.lookahead is not None and layers_done < self.num_layers:
            return output, self.lookahead(output, mask).tolist()
        return output, [[0.0] * self.num_layers for _ in range(len(output))]
