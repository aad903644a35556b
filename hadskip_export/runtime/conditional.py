"""The whole gated model as one engine, which skips layers by itself: an input that comes alone is one call. It decides
as the chain does, through which batches still go unless the engine takes them too.
"""

from dataclasses import dataclass

import numpy as np

from hadskip_export.runtime.chain import Chain
from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.routers import Router
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class Conditional:
    """A chain that leaves what it can to a graph.

    Args:
        graph: takes what the chain's embeddings take, the attention_mask, of each row the threshold of each gate
            float32 [b, L], and the most layers to run int64 [1]; gives logits [b, classes] and the layers that ran,
            float32 [b, L] of 0 and 1.
        batches: whether it takes batches; if not, a single input, which has no padding.
    """

    chain: Chain
    graph: Piece
    batches: bool

    def run(self, batch: Batch, router: Router) -> tuple[np.ndarray, np.ndarray]:
        """As `Chain.run`."""
        if len(batch) > 1 and not self.batches:
            return self.chain.run(batch, router)
        thresholds, most = router.terms(len(batch), self.chain.num_layers)
        inputs = (getattr(batch, name) for name in self.chain.embedding_inputs)
        logits, ran = self.graph(*inputs, batch.attention_mask, thresholds, np.array([most], np.int64))
        return logits, ran > 0
