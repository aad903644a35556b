"""A job in this process, a part after the other."""

import time
from dataclasses import replace

from hadskip_export.bulk.job import Job, Scored
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.progress import SECONDS_BETWEEN_LINES, say


class Tally:
    """Counts what is done, and says so now and then."""

    def __init__(self, job: Job) -> None:
        self._done, self._empty = Scored(), dict.fromkeys(job.inputs)
        self._began = self._said = time.monotonic()
        self._computed_rows = 0

    def add(self, name: str, rows: int, refused: int, computed: bool) -> None:
        """A part."""
        before, now = self._done, time.monotonic()
        self._done = Scored(before.rows + rows, before.refused + refused, before.parts + 1, before.computed + computed)
        self._empty.pop(name, None)
        self._computed_rows += rows if computed else 0
        if now - self._said > SECONDS_BETWEEN_LINES:
            self._said = now
            say(f"{self._done.rows:,} rows done, {self._computed_rows / (now - self._began):,.0f} a second")

    @property
    def scored(self) -> Scored:
        return replace(self._done, empty=tuple(self._empty))


def score_here(job: Job) -> Scored:
    """See `commands.score`."""
    with Predictor.load(job.bundle, **job.options) as predictor, job.begun():
        tally = Tally(job)
        for name in job.inputs:
            for part in job.parts(name):
                tally.add(name, part.count, 0 if part.done else job.write(predictor, part), not part.done)
    return tally.scored
