"""The chain of engines: embeddings, the layers that some row runs, head. This loop is the product."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.routers import Router
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class Chain:
    """The pieces of a model that has been cut up.

    Args:
        layers: by index from 0, ascending: those that some input may run; every input skips the others.
        gates: one per layer, or a single one that answers for all; routers ask them, the loop does not. None for a
            static route.
        embedding_inputs: names of the `Batch` arrays that `embeddings` takes.
        num_layers: of the model, whether or not some input may run them.
    """

    embeddings: Piece
    layers: Mapping[int, Piece]
    gates: Sequence[Piece]
    head: Piece
    embedding_inputs: tuple[str, ...]
    num_layers: int

    def run(self, batch: Batch, router: Router) -> tuple[np.ndarray, np.ndarray]:
        """Runs `batch` as `router` routes it.

        Returns:
            logits float32 [b, classes] and routes bool [b, L], true where the layer ran.
        """
        mask = batch.attention_mask
        routes = np.zeros((len(batch), self.num_layers), bool)
        hidden = self.embeddings(*(getattr(batch, name) for name in self.embedding_inputs))
        for index, layer in self.layers.items():
            rows = routes[:, index] = router.select(index, hidden, mask)
            count = np.count_nonzero(rows)
            if count == len(rows):
                hidden = layer(hidden, mask)
            elif count:
                length = mask[rows].sum(axis=1).max()  # padding that only the other rows needed is left out
                hidden[rows, :length] = layer(hidden[rows, :length], mask[rows, :length])
        return self.head(hidden), routes
