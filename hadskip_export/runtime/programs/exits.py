"""Layers in their order, and an exit after each: an input leaves where its answer is good enough, and the others go on
without it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from hadskip_export.routing.criteria import Criterion
from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.manifest import exit_name, layer_name
from hadskip_export.runtime.policies import Policy
from hadskip_export.runtime.programs.base import Wrap, some_of
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class Exits:
    """The pieces of a model with exits, see `Program`.

    The policy decides on a layer by the margin of the exit before it, see `routing.criteria`. That of the first layer,
    which always runs, is infinite, and so is that of rows that have left, less than 0.

    Args:
        layers: by index from 0, all of them. They give hidden_states or, where they answer for their exits, those and
            the answers. The last one may leave out the tokens that the head does not read.
        exits: after each layer, answers [b, labels], or one more from an exit that tells how certain it is; the last
            one is the model's head.
        embedding_inputs: names of the `Batch` arrays that `embeddings` takes.
        exits_take_mask: of each, whether it does beside hidden_states.
    """

    embeddings: Piece
    layers: Mapping[int, Piece]
    exits: Sequence[Piece]
    criterion: Criterion
    embedding_inputs: tuple[str, ...]
    exits_take_mask: Sequence[bool]
    num_labels: int

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def warm_up_rows(self) -> tuple[int, ...]:
        return (1,)

    def run(self, batch: Batch, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        mask, last = batch.attention_mask, len(self.layers) - 1
        logits = np.zeros((len(batch), self.num_labels), np.float32)
        routes = np.zeros((len(batch), len(self.layers)), bool)
        decisions, memory = policy.start(len(batch)), self.criterion.start(len(batch))
        decisions.rows(0, [math.inf] * len(batch))  # so that it knows of the layer
        hidden = self.embeddings(*(getattr(batch, name) for name in self.embedding_inputs))
        rows = np.arange(len(batch))  # of those that are still here
        for index, layer in self.layers.items():
            hidden, answers = self._answered(index, layer(hidden, mask), mask)
            routes[rows, index], logits[rows] = True, answers[:, : self.num_labels]
            if index == last:
                break
            seen, memory = self.criterion.look(answers, memory)
            margins = np.full(len(batch), -np.inf, np.float32)
            margins[rows] = seen
            runs = np.array(decisions.rows(index + 1, margins.tolist()))[rows]
            if not runs.any():
                break
            if not runs.all():
                rows, memory = rows[runs], memory[runs]
                hidden, mask = some_of(hidden, mask, runs)
        return logits, routes

    def logits(self, hidden: Any, mask: np.ndarray) -> np.ndarray:
        """float32 [b, labels] of what the last layer gave."""
        return self.answers(len(self.layers) - 1, hidden, mask)

    def answers(self, index: int, hidden: Any, mask: np.ndarray) -> np.ndarray:
        """float32 [b, labels], or one more, of the exit after layer `index`, from 0."""
        return self.exits[index](hidden, mask) if self.exits_take_mask[index] else self.exits[index](hidden)

    def _answered(self, index: int, output: Any, mask: np.ndarray) -> tuple[Any, np.ndarray]:
        """What a layer gave, and what its exit says of it.

        Raises:
            ValueError: other than the criterion reads.
        """
        hidden, answers = output if isinstance(output, tuple) else (output, self.answers(index, output, mask))
        expected = self.num_labels + (self.criterion.beside_logits if index + 1 < len(self.layers) else 0)
        if answers.shape[1] != expected:
            raise ValueError(f"an exit with {answers.shape[1]} answers, not {expected}")
        return hidden, answers

    def wrapped(self, wrap: Wrap) -> Self:
        *early, head = self.exits
        return replace(
            self,
            embeddings=wrap("embeddings", self.embeddings),
            layers={index: wrap(layer_name(index), layer) for index, layer in self.layers.items()},
            exits=[*(wrap(exit_name(index), one) for index, one in enumerate(early)), wrap("head", head)],
        )
