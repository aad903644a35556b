"""What whoever watches a training is told beside the batches done."""

import time

from torch import Tensor

MEMORY = 0.95  # of the loss shown, for each batch


class Display:
    """The loss, the last figure on held-out texts, and the time left of all phases by what a batch took so far.

    Args:
        batches: of all phases of the training; those of which nothing is left are taken off by `skip`.
    """

    def __init__(self, batches: int = 0):
        self._left = batches
        self._done = 0
        self._started = 0.0
        self._loss: Tensor | None = None  # on the device: to read it waits for it
        self.held_out: float | None = None

    def skip(self, batches: int) -> None:
        """Of a run that was stopped."""
        self._left -= batches

    def saw(self, loss: Tensor) -> None:
        """After each batch."""
        if not self._done:
            self._started = time.monotonic()  # the first takes what the others do not
        self._loss = loss if self._loss is None else MEMORY * self._loss + (1 - MEMORY) * loss
        self._done += 1
        self._left -= 1

    def new_phase(self) -> None:
        """Its loss is another one."""
        self._loss = self.held_out = None

    def __str__(self) -> str:
        parts = [] if self._loss is None else [f"loss {float(self._loss):.3f}"]
        if self.held_out is not None:
            parts.append(f"held out {self.held_out:.3f}")
        if self._done > 1 and self._left > 0:
            seconds = (time.monotonic() - self._started) / (self._done - 1) * self._left
            parts.append(f"{seconds / 60:.0f} min left" if seconds >= 60 else f"{seconds:.0f} s left")
        return "".join(f", {part}" for part in parts)
