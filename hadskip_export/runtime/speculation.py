"""Guessing a route: the commonest one as a single engine, which saves the calls between its layers and, on a device,
the reads that decide them. It also asks every gate; where the first of them disagrees, the chain goes on from the
hidden state kept at that point. So whatever was guessed, the gates decide, and the answer is the chain's, as far as one
engine gives what several give one by one (`parity`).
"""

from dataclasses import dataclass

import numpy as np

from hadskip_export.routing.routes import Route
from hadskip_export.runtime.chain import Chain
from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.routers import Router
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class Speculation:
    """A chain that tries a guess first, where a batch is a single input: rows of a larger one part ways too soon.

    Args:
        guess: takes what the chain's embeddings take and the attention_mask; gives logits [1, classes], margins [1, L]
            of every gate on the state that it sees on `route`, and hidden_states [1, s, H] of the embeddings and after
            each layer of `route`, of which the model's last may give [1, 1, H].
        route: the layers that `guess` runs, numbered from 1.
    """

    chain: Chain
    guess: Piece
    route: Route

    def run(self, batch: Batch, router: Router) -> tuple[np.ndarray, np.ndarray]:
        """As `Chain.run`."""
        if len(batch) > 1 or router.terms(1, self.chain.num_layers)[1] < len(self.route):
            return self.chain.run(batch, router)
        inputs = (getattr(batch, name) for name in self.chain.embedding_inputs)
        logits, margins, *states = self.guess(*inputs, batch.attention_mask)
        routes = [[False] for _ in range(self.chain.num_layers)]
        layers_done = 0
        for index, margin in enumerate(margins[0].tolist()):
            runs = router.select(index, [margin], routes)
            if runs != [index + 1 in self.route]:
                return self.chain.go_on(index, states[layers_done], batch.attention_mask, routes, router)
            routes[index] = runs
            layers_done += runs[0]
        return logits, np.array(routes).T
