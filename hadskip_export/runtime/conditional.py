"""The whole gated model as one engine, which skips layers by itself: a call of the Predictor is one call of it. It
decides as the chain does.
"""

from dataclasses import dataclass

import numpy as np

from hadskip_export.runtime.chain import Chain
from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.routers import Router
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class Conditional:
    """A graph for inputs that come alone, and what runs several.

    Graphs take what the embeddings take, the attention_mask, of each row the threshold of each gate float32 [b, L], and
    the most layers to run int64 [b]; they give logits float32 [b, classes] and the layers that ran, float32 [b, L] of
    0 and 1.

    Args:
        graph: takes a single input, which has no padding.
        batches: a graph that takes any number of inputs, perhaps the same one, or the chain.
        embedding_inputs: names of the `Batch` arrays that the embeddings take.
        num_layers: of the model.
    """

    graph: Piece
    batches: Piece | Chain
    embedding_inputs: tuple[str, ...]
    num_layers: int

    def run(self, batch: Batch, router: Router) -> tuple[np.ndarray, np.ndarray]:
        """As `Chain.run`."""
        graph = self.graph if len(batch) == 1 else self.batches
        if isinstance(graph, Chain):
            return graph.run(batch, router)
        thresholds, most = router.terms(len(batch), self.num_layers)
        inputs = (getattr(batch, name) for name in self.embedding_inputs)
        logits, ran = graph(*inputs, batch.attention_mask, thresholds, np.full(len(batch), most, np.int64))
        return logits, ran > 0
