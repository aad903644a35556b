"""Exits with gates on the way to them: an input jumps over layers until it leaves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.manifest import gate_name
from hadskip_export.runtime.policies import Policy
from hadskip_export.runtime.programs.base import Wrap, some_of
from hadskip_export.runtime.programs.exits import Exits
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class GatedExits(Exits):
    """See `Exits`. An input is answered by the exit of the last layer that it ran.

    The policy decides by the margin of the exit before a layer, whichever that was, and by minus infinity where the
    gate is shut, which no threshold opens.

    Args:
        gates: before each layer but the first, margin [b]: open where it is above 0.
    """

    gates: Sequence[Piece]

    def run(self, batch: Batch, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        mask, last = batch.attention_mask, len(self.layers) - 1
        logits = np.zeros((len(batch), self.num_labels), np.float32)
        routes = np.zeros((len(batch), len(self.layers)), bool)
        thresholds, most = policy.terms(len(batch), len(self.layers))
        least = np.minimum.accumulate(thresholds[:, ::-1], axis=1)[:, ::-1]  # of this layer and those after it
        decisions, memory = policy.start(len(batch)), self.criterion.start(len(batch))
        decisions.rows(0, [math.inf] * len(batch))  # so that it knows of the layer
        hidden = self.embeddings(*(getattr(batch, name) for name in self.embedding_inputs))
        rows, runs = np.arange(len(batch)), np.ones(len(batch), bool)  # of those that are still here
        seen = np.zeros(len(batch), np.float32)
        for index, layer in self.layers.items():
            if index:
                margins = np.full(len(batch), -np.inf, np.float32)
                margins[rows] = seen
                stays = (seen > least[rows, index]) & (routes[rows].sum(axis=1) < most)
                if not stays.any():
                    decisions.rows(index, margins.tolist())  # so that it knows why
                    break
                if not stays.all():
                    rows, seen, memory = rows[stays], seen[stays], memory[stays]
                    hidden, mask = some_of(hidden, mask, stays)
                gate = self.gates[index - 1](hidden, mask)
                margins[rows] = np.where(gate <= 0, -np.inf, np.where(np.isnan(gate), np.nan, seen))
                runs = np.array(decisions.rows(index, margins.tolist()))[rows]
            if runs.all():
                hidden, answers = self._answered(index, layer(hidden, mask), mask)
            elif runs.any():
                some, few = some_of(hidden, mask, runs)
                states, answers = self._answered(index, layer(some, few), few)
                hidden[np.flatnonzero(runs), : states.shape[1]] = states
            else:
                continue
            routes[rows[runs], index], logits[rows[runs]] = True, answers[:, : self.num_labels]
            if index < last:
                seen[runs], memory[runs] = self.criterion.look(answers, memory[runs])
        return logits, routes

    def wrapped(self, wrap: Wrap) -> Self:
        gates = [wrap(gate_name(index), gate) for index, gate in enumerate(self.gates, 1)]
        return replace(super().wrapped(wrap), gates=gates)
