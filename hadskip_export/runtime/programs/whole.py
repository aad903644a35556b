"""The whole gated model as one engine, which skips layers by itself: a call of the Predictor is one call of it. It
decides as the chain does.
"""

from dataclasses import dataclass, replace

import numpy as np

from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.policies import Policy
from hadskip_export.runtime.programs.base import Wrap
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class Whole:
    """One piece for all calls, or one more for inputs that come alone; see `Program`.

    A piece takes `inputs`, of each row the threshold of each gate float32 [b, L], and the most layers to run int64 [b];
    it gives logits float32 [b, classes] and which layers ran, [b, L].

    Args:
        several: takes any number of inputs.
        alone: takes a single input, which has no padding; None where `several` takes it, too.
        inputs: names of the `Batch` arrays that they take.
        num_layers: of the model.
    """

    several: Piece
    alone: Piece | None
    inputs: tuple[str, ...]
    num_layers: int

    @property
    def warm_up_rows(self) -> tuple[int, ...]:
        return (1,) if self.alone is None else (1, 2)

    def run(self, batch: Batch, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        piece = self.alone if self.alone is not None and len(batch) == 1 else self.several
        thresholds, most = policy.terms(len(batch), self.num_layers)
        inputs = (getattr(batch, name) for name in self.inputs)
        logits, ran = piece(*inputs, thresholds, np.full(len(batch), most, np.int64))
        return logits, ran > 0

    def wrapped(self, wrap: Wrap) -> "Whole":
        alone = None if self.alone is None else wrap("whole, alone", self.alone)
        return replace(self, several=wrap("whole", self.several), alone=alone)
