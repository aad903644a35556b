"""A job in this process, a part after the other."""

import time

from hadskip_export.bulk.job import Job, Scored
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.progress import say

SECONDS_BETWEEN_LINES = 15.0


class Tally:
    """Counts what is done, and says so now and then."""

    def __init__(self) -> None:
        self.done = Scored()
        self._began = self._said = time.monotonic()
        self._computed_rows = 0

    def add(self, rows: int, refused: int, computed: bool) -> None:
        """A part."""
        before, now = self.done, time.monotonic()
        self.done = Scored(before.rows + rows, before.refused + refused, before.parts + 1, before.computed + computed)
        self._computed_rows += rows if computed else 0
        if now - self._said > SECONDS_BETWEEN_LINES:
            self._said = now
            say(f"{self.done.rows:,} rows done, {self._computed_rows / (now - self._began):,.0f} a second")


def score_here(job: Job) -> Scored:
    """See `commands.score`."""
    tally = Tally()
    with Predictor.load(job.bundle, **job.options) as predictor:
        for name in job.inputs:
            for part in job.parts(name):
                there = part.place.exists()
                tally.add(part.count, 0 if there else job.write(predictor, part), not there)
    return tally.done
