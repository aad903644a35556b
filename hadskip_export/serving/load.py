"""Fewer layers while requests queue: latency is held by the budget, not by refusals."""

from collections.abc import Sequence
from dataclasses import dataclass

DOWN_AFTER = 0.25  # seconds that requests waited too long until the budget is lowered by a level
UP_AFTER, MOST_UP_AFTER = 4.0, 64.0  # seconds that they did not, until it is raised by one
CALM = 0.25  # of the wait that is too long: below it nothing is wrong
IDLE = 1.0  # seconds without a batch: whatever was, is over


@dataclass
class LoadControl:
    """Which budget is computed with, by how long requests waited.

    It cannot swing: between the wait that lowers and the one that raises lies a factor of four, and each time that a
    raise has to be taken back, the next one is waited for twice as long.

    Args:
        budgets: from the operating point down to the floor; a single one never changes.
        most_wait: seconds in the queue above which it is too long.
    """

    budgets: Sequence[float | None]
    most_wait: float = 0.05
    level: int = 0
    _since: float = 0.0  # when the present state of affairs began: too long, calm, or neither
    _state: int = 0  # 1 too long, -1 calm
    _last: float = 0.0  # when a batch ended
    _raised: float = -MOST_UP_AFTER  # when it was last raised
    _up_after: float = UP_AFTER

    @property
    def budget(self) -> float | None:
        return self.budgets[self.level]

    def begins(self, now: float) -> None:
        """Before each batch: time in which there was none was calm."""
        if now - self._last > IDLE:
            self.level = max(0, self.level - int((now - self._last) / self._up_after))
            self._state, self._since = 0, now

    def saw(self, waited: float, now: float) -> None:
        """After each batch.

        Args:
            waited: seconds in the queue of the request that waited longest.
            now: a monotonic clock.
        """
        state = 1 if waited > self.most_wait else -1 if waited < CALM * self.most_wait else 0
        if state != self._state:
            self._state, self._since = state, now
        lasted, self._last = now - self._since, now
        if state == 1 and lasted >= DOWN_AFTER and self.level + 1 < len(self.budgets):
            if now - self._raised < self._up_after:
                self._up_after = min(2 * self._up_after, MOST_UP_AFTER)
            self.level, self._since = self.level + 1, now
        elif state == -1 and lasted >= self._up_after and self.level > 0:
            self.level, self._since, self._raised = self.level - 1, now, now
        elif state == -1 and lasted >= MOST_UP_AFTER:
            self._up_after = UP_AFTER
